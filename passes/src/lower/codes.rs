//! What products of codes share: which nodes have kernels, and their operands besides those of products of numbers.

use super::activation::Fused;
use super::linear::dense;
use super::{Lowerer, WeightSource};
use crate::schedules::codes::{Codes, Tail, TailStage, Zero};
use lapidary_ir::graph::Node;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::quant::tail::{STAGES, TABLE, stage_operand};
use lapidary_ir::{Constant, ElemType, Module, NodeId, ValueId};
use std::sync::Arc;

/// Makes packed weights of dense ones.
pub type Pack = Arc<dyn Fn(&[u8], &mut Vec<u8>) + Send + Sync>;
/// Sums the columns of dense weights.
pub type Sums = Arc<dyn Fn(&[u8], &mut Vec<i32>) + Send + Sync>;

/// True if `quantized_linear` or `quantized_conv` has kernels for a node; `fits` says so of the weights' shape.
pub fn takes(module: &Module, n: NodeId, fits: fn(&[usize]) -> bool) -> bool {
    let node = module.node(n);
    let ty = |i: usize| node.operand(i).map(|v| &module.value(v).ty);
    let elem = |i: usize| ty(i).and_then(|t| t.elem());
    let Some(w) = node.operand(2).and_then(|w| module.as_constant(w)) else {
        return false;
    };
    let columns = match node.op.name {
        "quantized_conv" => w.shape().first(),
        _ => w.shape().last(),
    };
    let row = |i: usize| {
        let shape = ty(i).and_then(|t| t.as_tensor()?.const_shape());
        shape.as_deref() == columns.map(std::slice::from_ref)
    };
    // Nothing is nothing in any type, and has no kernel.
    let result = node.results.first().map(|&v| &module.value(v).ty);
    let empty = result
        .and_then(|t| t.shape())
        .is_none_or(|s| s.iter().any(|d| d.as_const() == Some(0)));
    let known = node.operand(5).is_none_or(|v| code(module, v).is_some());
    elem(0) == Some(ElemType::U8)
        && elem(2) == Some(ElemType::I8)
        && row(3)
        && (node.operand(4).is_none() || row(4))
        && known
        && !empty
        && tail_fits(module, n)
        && w.shape().iter().all(|&d| d > 0)
        && fits(w.shape())
}

/// What is said where [`takes`] was wrong.
pub fn no_kernel() -> OpError {
    OpError::new("its shapes or layouts have no kernel for codes")
}

/// The byte of a constant code.
fn code(module: &Module, v: ValueId) -> Option<u8> {
    let tensor = module.as_constant(v)?.decode().ok()?;
    tensor.integers()?.first().map(|&c| c as u8)
}

/// The code of zero in the left operand, if it is known.
pub fn zero(module: &Module, n: NodeId) -> Option<u8> {
    module.node(n).operand(1).and_then(|v| code(module, v))
}

/// How the operands of a node are multiplied.
pub fn of(module: &Module, n: NodeId) -> Codes {
    let node = module.node(n);
    let known = node.operand(5).and_then(|v| code(module, v));
    let elem = node.operand(5).and_then(|v| module.value(v).ty.elem());
    Codes {
        zero: match zero(module, n) {
            None => Zero::Given,
            Some(0) if whole_bias(module, n).is_none() => Zero::Nothing,
            Some(_) => Zero::Offsets,
        },
        result: elem.zip(known),
    }
}

/// The bias of a node, unless it is part of the offsets.
pub fn bias(module: &Module, n: NodeId) -> Option<ValueId> {
    let apart = zero(module, n).is_none() || whole_bias(module, n).is_none();
    module.node(n).operand(4).filter(|_| apart)
}

/// The bias in units of the sums, if all of it is whole numbers: exporters quantize biases so. It is then added before the
/// one rounding that scaling takes, as every other engine does.
fn whole_bias(module: &Module, n: NodeId) -> Option<Vec<i32>> {
    let node = module.node(n);
    let numbers = |i| {
        module
            .as_constant(node.operand(i)?)?
            .decode()
            .ok()?
            .to_f64s()
    };
    let (bias, scale) = (numbers(4)?, numbers(3)?);
    let whole = |(b, s): (f64, f64)| {
        let units = b / s;
        // Both were rounded to `f32` a few times.
        let near = (units - units.round()).abs() <= 1e-3 + units.abs() * f64::from(f32::EPSILON);
        (units.is_finite() && units.abs() < f64::from(1 << 21) && near)
            .then_some(units.round() as i32)
    };
    (bias.len() == scale.len()).then(|| bias.into_iter().zip(scale).map(whole).collect())?
}

/// What a depthwise convolution is made of: what the code of zero makes of its sums goes into the bias.
#[derive(Clone)]
pub struct Depthwise {
    codes: Constant,
    scale: Arc<[f32]>,
    bias: Option<Arc<[f32]>>,
    zero: u8,
}

/// Those of a node, if all that they are made of is known.
pub fn depthwise(module: &Module, n: NodeId) -> Option<Depthwise> {
    let node = module.node(n);
    let numbers = |i| {
        let tensor = module.as_constant(node.operand(i)?)?.decode().ok()?;
        Some(
            tensor
                .floats()?
                .iter()
                .map(|&v| v as f32)
                .collect::<Arc<[f32]>>(),
        )
    };
    Some(Depthwise {
        codes: module.as_constant(node.operand(2)?)?.clone(),
        scale: numbers(3)?,
        bias: match node.operand(4) {
            Some(_) => Some(numbers(4)?),
            None => None,
        },
        zero: zero(module, n)?,
    })
}

impl Depthwise {
    /// `len` weights packed by `pack`.
    pub fn weights(&self, low: &mut Lowerer, len: usize, pack: Pack) -> ValueId {
        let own = self.clone();
        let made = move || {
            let mut out = Vec::with_capacity(len);
            pack(&dense(&own.codes)?, &mut out);
            Ok(out)
        };
        low.made_weight(ElemType::I8, vec![len], WeightSource::Made(Arc::new(made)))
    }

    /// What is added to the scaled sums of each of the channels.
    pub fn bias(&self, low: &mut Lowerer, channels: usize) -> ValueId {
        let own = self.clone();
        let made = move || {
            let codes = dense(&own.codes)?;
            let taps = codes.len() / channels;
            let of = |c: usize| {
                let weights = &codes[c * taps..(c + 1) * taps];
                let sum: i64 = weights.iter().map(|&w| i64::from(w as i8)).sum();
                let bias = own.bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
                let zeros = i64::from(own.zero) * sum;
                (bias - zeros as f64 * f64::from(own.scale[c])) as f32
            };
            Ok((0..channels).flat_map(|c| of(c).to_le_bytes()).collect())
        };
        low.made_weight(
            ElemType::F32,
            vec![channels],
            WeightSource::Made(Arc::new(made)),
        )
    }
}

/// The bounds of a node.
pub fn clamp(node: &Node) -> Fused {
    let bound = |name| node.float(name).map(|v| v as f32);
    Fused {
        lo: bound("lo"),
        hi: bound("hi"),
        activation: None,
    }
}

/// Operands that are made for a kernel.
pub struct Made {
    /// Packed weights.
    pub w: ValueId,
    /// Those of [`params`].
    pub params: Vec<ValueId>,
}

/// What a stage of a tail adds.
#[derive(Clone)]
pub struct TailValues {
    /// Codes.
    pub residual: Option<ValueId>,
    /// Numbers for each column: biases, and what the codes of zero make, in steps of the result; one if it is the same
    /// for all.
    row: Arc<[f32]>,
}

/// What follows the product of a node: nothing for most; `None` if it has no kernel.
pub fn tail(module: &Module, n: NodeId) -> Option<(Tail, Vec<TailValues>)> {
    let node = module.node(n);
    let (mut tail, mut values) = (Tail::default(), vec![]);
    if !matches!(node.op.name, "quantized_linear" | "quantized_conv") {
        return Some((tail, values));
    }
    for stage in 0..STAGES {
        let operand = |name| node.operand(stage_operand(stage, name));
        let one = |name| {
            let v = module
                .as_constant(operand(name)?)?
                .decode()
                .ok()?
                .to_f64s()?;
            (v.len() == 1).then(|| v[0])
        };
        let Some(zero) = operand("y_zero") else {
            continue;
        };
        let elem = module.value(zero).ty.elem()?;
        let (x, y) = (one("x_scale")?, one("y_scale")?);
        let bias: Vec<f64> = match operand("bias") {
            Some(b) => module.as_constant(b)?.decode().ok()?.to_f64s()?,
            None => vec![0.0],
        };
        let (mut of_residual, mut shift) = (None, 0.0);
        let residual = operand("residual");
        if let Some(r) = residual {
            let (scale, zero) = (one("residual_scale")?, one("residual_zero")?);
            if module.value(r).ty.elem() != Some(ElemType::U8) {
                return None;
            }
            of_residual = Some((scale / y) as f32);
            shift = scale * zero;
        }
        tail.stages.push(TailStage {
            factor: (x / y) as f32,
            residual: of_residual,
            result: (elem, code(module, zero)?),
        });
        let row = bias.iter().map(|b| ((b - shift) / y) as f32).collect();
        values.push(TailValues { residual, row });
    }
    if let Some(table) = node.operand(TABLE) {
        module.as_constant(table)?;
        tail.table = Some(module.value(table).ty.elem()?);
    }
    let coded = node.operand(5).is_some() || tail == Tail::default();
    coded.then_some((tail, values))
}

/// True if a node has no tail, or one that has a kernel.
fn tail_fits(module: &Module, n: NodeId) -> bool {
    let node = module.node(n);
    let shape = |v: ValueId| module.value(v).ty.shape();
    let columns = node.operand(3).and_then(|v| {
        let of = module.value(v).ty.as_tensor()?.const_shape()?;
        of.first().copied()
    });
    tail(module, n).is_some_and(|(_, values)| {
        let result = node.results.first().and_then(|&v| shape(v));
        values.iter().all(|of| {
            let fits = of.residual.is_none_or(|r| shape(r) == result);
            fits && (of.row.len() == 1 || Some(of.row.len()) == columns)
        })
    })
}

/// The operands of a kernel for the tail of a node, as [`Tail::params`] has them.
pub fn tail_operands(low: &mut Lowerer, n: NodeId, values: &[TailValues]) -> Vec<ValueId> {
    let node = low.facts.module.node(n);
    let table = node.operand(TABLE);
    let scales = node.operand(3).map(|v| &low.facts.module.value(v).ty);
    let shape = scales.and_then(|t| t.as_tensor()?.const_shape());
    let columns = shape.and_then(|s| s.first().copied()).unwrap_or(0);
    let mut operands = vec![];
    for of in values {
        let row = of.row.clone();
        let made = move || {
            let all = (0..columns).map(|j| row[if row.len() == 1 { 0 } else { j }]);
            Ok(all.flat_map(f32::to_le_bytes).collect())
        };
        let made = WeightSource::Made(Arc::new(made));
        operands.push(low.made_weight(ElemType::F32, vec![columns], made));
        operands.extend(of.residual);
    }
    operands.extend(table);
    operands
}

/// Weights of `bytes` bytes made by `pack`, and the parameters that come with them.
pub fn weights(
    low: &mut Lowerer,
    n: NodeId,
    codes: Codes,
    bytes: usize,
    columns: usize,
    pack: Pack,
    sums: Sums,
) -> Result<Made, OpError> {
    let own = constant(low, n)?;
    let packed = move || {
        let mut out = Vec::with_capacity(bytes);
        pack(&dense(&own)?, &mut out);
        Ok(out)
    };
    let packed = WeightSource::Made(Arc::new(packed));
    let w = low.made_weight(ElemType::I8, vec![bytes], packed);
    let params = params(low, n, codes, columns, sums)?;
    Ok(Made { w, params })
}

/// The weights of a node.
pub fn constant(low: &Lowerer, n: NodeId) -> Result<Constant, OpError> {
    let module = &low.facts.module;
    let w = module.node(n).operand(2);
    w.and_then(|w| module.as_constant(w).cloned())
        .ok_or_else(|| OpError::new("the weights are not constant"))
}

/// The zero, sums and scale of a node, as [`Codes::params`](crate::schedules::codes::Codes::params) has them.
pub fn params(
    low: &mut Lowerer,
    n: NodeId,
    codes: Codes,
    columns: usize,
    sums: Sums,
) -> Result<Vec<ValueId>, OpError> {
    let constant = constant(low, n)?;
    let module = &low.facts.module;
    let node = module.node(n).clone();
    let (code, bias) = (zero(module, n).unwrap_or(1), whole_bias(module, n));
    let offsets = move || {
        let mut out = Vec::with_capacity(columns);
        sums(&dense(&constant)?, &mut out);
        if codes.zero == Zero::Offsets {
            for (j, sum) in out.iter_mut().enumerate() {
                let bias = bias.as_ref().map_or(0, |b| b[j]);
                *sum = sum.wrapping_mul(i32::from(code)).wrapping_sub(bias);
            }
        }
        Ok(out.into_iter().flat_map(i32::to_le_bytes).collect())
    };
    let given = (codes.zero == Zero::Given)
        .then(|| node.operand(1))
        .flatten();
    let sums = (codes.zero != Zero::Nothing).then(|| {
        let offsets = WeightSource::Made(Arc::new(offsets));
        low.made_weight(ElemType::I32, vec![columns], offsets)
    });
    Ok([given, sums, node.operand(3)]
        .into_iter()
        .flatten()
        .collect())
}

#[cfg(test)]
pub(super) mod tests {
    use crate::lower::checks::{check, numbers};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::ops::quant::tail::{TABLE, stage_operand};
    use lapidary_ir::{Attr, ElemType, Tensor, ValueId};

    /// Weights, of which one in `keep` blocks of four inputs of an output is not zero, unevenly over the outputs.
    fn codes(b: &mut Builder, shape: &[usize], keep: usize) -> ValueId {
        let n: usize = shape.iter().product();
        let code = |i: usize| {
            let (input, other) = match shape {
                [_, n] => (i / n, i % n),
                _ => {
                    let taps: usize = shape[2..].iter().product();
                    (i / taps % shape[1], i % taps + taps * (i / taps / shape[1]))
                }
            };
            let block = (other * 1013 + input / 4).wrapping_mul(2_654_435_761) >> 7;
            let kept = block % keep == 0 || (other % 13 == 0 && block % 3 == 0);
            if kept {
                (i * 97 % 255) as i128 - 127
            } else {
                0
            }
        };
        b.constant(&Tensor::from_int(
            ElemType::I8,
            shape.to_vec(),
            (0..n).map(code).collect(),
        ))
    }

    /// How weights are pruned (see [`codes`]), the code of zero (a negative one is found when it runs), a bias, codes of
    /// results.
    pub type Form = (usize, i128, bool, Option<ElemType>);

    /// The product of `x` in codes with weights.
    pub fn product(
        b: &mut Builder,
        x: ValueId,
        op: &str,
        w: &[usize],
        (keep, zero, bias, result): Form,
        attrs: &[(&'static str, Attr)],
    ) -> ValueId {
        let zero_given = zero < 0;
        let (a, zero) = if zero_given {
            let made = b
                .multi("dynamic_quantize_linear", &[Some(x)], &[], 3)
                .expect("codes");
            (made[0], made[2])
        } else {
            let (s, z) = (
                b.scalar(ElemType::F32, 0.01),
                b.constant(&Tensor::from_int(ElemType::U8, [], vec![zero])),
            );
            (b.op("quantize_linear", &[x, s, z]).expect("codes"), z)
        };
        let n = if op == "quantized_conv" {
            w[0]
        } else {
            w[w.len() - 1]
        };
        let unit = if result.is_some() { 5.17e-3 } else { 1e-4 };
        let scale: Vec<f64> = (0..n).map(|j| unit * (j % 5 + 1) as f64).collect();
        // Where zero is known the bias is of whole numbers of units, as exporters write it.
        let units = |(j, s): (usize, &f64)| s * (j as f64 * 13.0 - 50.0);
        let bias = bias.then(|| match zero_given {
            true => numbers(&[n], 6),
            false => Tensor::from_f64(
                ElemType::F32,
                [n],
                scale.iter().enumerate().map(units).collect(),
            ),
        });
        let scale = b.constant(&Tensor::from_f64(ElemType::F32, [n], scale));
        let (w, bias) = (codes(b, w, keep), bias.map(|t| b.constant(&t)));
        let code = result.map(|elem| b.constant(&Tensor::from_int(elem, [], vec![9])));
        let operands = [Some(a), Some(zero), Some(w), Some(scale), bias, code];
        b.multi(op, &operands, attrs, 1).expect("a product")[0]
    }

    const FORMS: [Form; 6] = [
        (1, 0, false, None),
        (1, 0, true, None),
        (1, 100, true, None),
        (1, 0, true, Some(ElemType::U8)),
        (1, 77, false, Some(ElemType::I8)),
        (1, -1, true, None),
    ];

    #[test]
    fn products_of_codes() {
        let cases: &[(&[usize], usize)] = &[(&[1, 70], 45), (&[33, 8], 64), (&[2, 3, 5], 9)];
        for &(a, n) in cases {
            for (form, symbolic) in FORMS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
                let kernels = check(&format!("{a:?} {n} {form:?}"), &[a], symbolic, |b, x| {
                    let w = [a[a.len() - 1], n];
                    let bounds = [("lo", Attr::Float(-0.1))];
                    product(b, x[0], "quantized_linear", &w, form, &bounds)
                });
                assert!(kernels <= 9, "{kernels} kernels: it was not one product");
            }
        }
    }

    /// A product with two stages and a table; `residual` is what the second adds.
    pub fn with_tail(
        b: &mut Builder,
        x: ValueId,
        residual: ValueId,
        op: &str,
        w: &[usize],
        keep: usize,
        attrs: &[(&'static str, Attr)],
    ) -> ValueId {
        let form = (keep, 40, true, Some(ElemType::U8));
        let y = product(b, x, op, w, form, attrs);
        let Some(n) = b.module.producer(y) else {
            unreachable!("a product has a node")
        };
        let columns = if op == "quantized_conv" { w[0] } else { w[1] };
        let (mut operands, attrs) = (
            b.module.node(n).operands.clone(),
            b.module.node(n).attrs.clone(),
        );
        operands.resize(TABLE + 1, None);
        let zero = |b: &mut Builder, z| b.constant(&Tensor::from_int(ElemType::U8, [], vec![z]));
        let zeros = [20, 77, 90].map(|z| zero(b, z));
        let (s, z) = (b.scalar(ElemType::F32, 0.011), zeros[0]);
        let residual = b.op("quantize_linear", &[residual, s, z]).expect("codes");
        let bias = b.constant(&numbers(&[columns], 4));
        let table = (0..256).map(|i| (i * 167 + 3) % 256).collect();
        let table = b.constant(&Tensor::from_int(ElemType::U8, [256], table));
        let [x1, y1, y2] = [0.031, 0.029, 0.047].map(|s| b.scalar(ElemType::F32, s));
        for (stage, name, v) in [
            (0, "x_scale", x1),
            (0, "bias", bias),
            (0, "y_scale", y1),
            (0, "y_zero", zeros[1]),
            (1, "x_scale", y1),
            (1, "residual", residual),
            (1, "residual_scale", s),
            (1, "residual_zero", z),
            (1, "y_scale", y2),
            (1, "y_zero", zeros[2]),
        ] {
            operands[stage_operand(stage, name)] = Some(v);
        }
        operands[TABLE] = Some(table);
        b.node(op, operands, attrs, 1).expect("a product")[0]
    }

    #[test]
    fn codes_that_go_through_a_tail() {
        for symbolic in [false, true] {
            for (rows, k, n) in [(15, 8, 70), (3, 45, 9)] {
                let (a, r): (&[usize], &[usize]) = (&[rows, k], &[rows, n]);
                check("tail", &[a, r], symbolic, |b, x| {
                    with_tail(b, x[0], x[1], "quantized_linear", &[k, n], 1, &[])
                });
            }
            let pads = [("pads", Attr::Ints(vec![1, 1, 1, 1]))];
            check(
                "tail of a convolution",
                &[&[1, 12, 6, 7], &[1, 70, 6, 7]],
                symbolic,
                |b, x| with_tail(b, x[0], x[1], "quantized_conv", &[70, 12, 3, 3], 1, &pads),
            );
        }
    }

    #[test]
    fn convolutions_of_codes() {
        let ints = |v: &[i64]| Attr::Ints(v.to_vec());
        // Input, filters, strides, pads, groups.
        type Case = (
            &'static [usize],
            &'static [usize],
            &'static [i64],
            &'static [i64],
            i64,
        );
        let cases: &[Case] = &[
            (&[1, 5, 6, 7], &[3, 5, 3, 3], &[1, 1], &[0, 0, 0, 0], 1),
            (&[2, 12, 6, 7], &[35, 12, 3, 3], &[1, 1], &[1, 1, 1, 1], 1),
            (&[1, 3, 17, 9], &[4, 3, 7, 7], &[2, 2], &[3, 3, 3, 3], 1),
            (&[1, 12, 5, 4], &[7, 12, 1, 1], &[1, 1], &[0, 0, 0, 0], 1),
            (&[1, 20, 9, 9], &[6, 10, 3, 2], &[1, 2], &[2, 0, 1, 1], 2),
            (&[1, 19, 7, 7], &[19, 1, 3, 3], &[1, 1], &[1, 1, 1, 1], 19),
            (&[1, 6, 20], &[5, 6, 3], &[2], &[1, 0], 1),
        ];
        for (shape, filters, strides, pads, groups) in cases {
            for (form, symbolic) in FORMS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
                let attrs = [
                    ("strides", ints(strides)),
                    ("pads", ints(pads)),
                    ("group", Attr::Int(*groups)),
                ];
                check(
                    &format!("{shape:?} {filters:?} {form:?}"),
                    &[shape],
                    symbolic,
                    |b, x| product(b, x[0], "quantized_conv", filters, form, &attrs),
                );
            }
        }
    }
}
