//! What transformers do between products, on 8-bit codes and in integers alone: exact, and the same on every target.
//!
//! A softmax takes the exponentials of distances from the row's largest code from a table, adds them up and multiplies with the
//! reciprocal of the sum. A layer normalization needs sums of codes and of their squares only, and the reciprocal of a root: by a
//! table and one step of Newton's method. A zero point changes neither: both see differences of codes alone.
//! Source: "Blockwise Compression of Transformer-based Models without Retraining" (BCT, arXiv 2304.01483); it gives no formulas,
//! these are ours.

use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, resolve_axis};
use crate::types::TensorType;
use crate::{Attr, ElemType, Tensor, Type, ValueId};

/// Probabilities of codes.
pub static INTEGER_SOFTMAX: OpDef = OpDef {
    name: "integer_softmax",
    summary: "exp(scale x) / sum(exp(scale x)) along an axis, in units of 2^-8, 255 at most: exponentials rounded to 2^-15, their \
              shares to 2^-8",
    source: "Lapidary; BCT (arXiv 2304.01483) names the parts",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "axis that sums to one"),
        AttrDef::new("scale", AttrKind::Float, Default::Required, "what a step of the codes is worth"),
    ],
    infer: |ctx| {
        if !ctx.float("scale").is_some_and(|s| s > 0.0 && s.is_finite()) {
            return Err(OpError::new("attribute `scale` must be a number above 0"));
        }
        let ty = of_codes(ctx)?;
        if let Some(shape) = ctx.shape(0)? {
            resolve_axis(ctx.int("axis")?, shape.len())?;
        }
        Ok(vec![ty])
    },
    decompose: Some(softmax),
    ..OpDef::BASE
};

/// Most codes of a row that is normalized: their sums of squares, times their number, stay within 64 bits.
pub const LONGEST_ROW: usize = 1 << 16;

/// Bits behind the point of the gains and offsets of [`INTEGER_LAYER_NORM`].
pub const GAIN_BITS: u32 = 16;

/// Largest gain and offset, in steps of the result: products with normalized numbers, which are up to 2^8, stay within 64 bits.
pub const MOST_GAIN: f64 = 131_072.0;

/// Bits behind the point of normalized numbers.
const NORMAL_BITS: u32 = 20;

/// Layer normalization of codes.
pub static INTEGER_LAYER_NORM: OpDef = OpDef {
    name: "integer_layer_norm",
    summary: "gain (x - mean) / sqrt(variance + epsilon / n²) + offset over the last axis of n codes, rounded to u8; gain and offset are in \
              steps of the result, in units of 2^-16 and up to 2^17, the offset with the result's zero point; epsilon is n² times that of \
              codes",
    source: "Lapidary; BCT (arXiv 2304.01483) names the parts: sums, sums of squares, inverse roots by a table and a step of Newton's",
    operands: &[Operand::One("x"), Operand::One("gain"), Operand::One("offset")],
    attrs: &[AttrDef::new("epsilon", AttrKind::Int, Default::Int(0), "n² times what is added to the variance of codes")],
    infer: |ctx| {
        let ty = of_codes(ctx)?;
        if ctx.int("epsilon")? < 0 {
            return Err(OpError::new("attribute `epsilon` must not be negative"));
        }
        let row = ctx.shape(0)?.map(|s| s.last().and_then(|d| d.as_const()));
        for i in [1, 2] {
            if ctx.elem(i)? != ElemType::I64 {
                return Err(OpError::new("gain and offset must be i64"));
            }
            let shape = ctx.shape(i)?.ok_or_else(|| OpError::new("gain and offset must have known lengths"))?;
            let n = match shape {
                [n] => n.as_const(),
                _ => None,
            };
            let fits = n.is_some_and(|n| (1..=LONGEST_ROW as i64).contains(&n) && row.is_none_or(|r| r.is_none_or(|r| r == n)));
            if !fits {
                return Err(OpError::new(format!("gain and offset must be one for each code of a row, {LONGEST_ROW} at most")));
            }
        }
        Ok(vec![ty])
    },
    decompose: Some(layer_norm),
    ..OpDef::BASE
};

/// Codes in, codes of `u8` out.
fn of_codes(ctx: &InferCtx) -> Result<Type, OpError> {
    if !matches!(ctx.elem(0)?, ElemType::U8 | ElemType::I8) {
        return Err(OpError::new("only codes of 8 bits have an integer form"));
    }
    Ok(Type::Tensor(TensorType { elem: ElemType::U8, shape: ctx.shape(0)?.map(<[_]>::to_vec) }))
}

/// Integer arithmetic as graph ops.
struct Integers<'b, 'm>(&'b mut Builder<'m>);

impl Integers<'_, '_> {
    fn lit(&mut self, elem: ElemType, value: i128) -> ValueId {
        self.0.constant(&Tensor::from_int(elem, [], vec![value]))
    }

    /// `op` with a number of the left side's type.
    fn with(&mut self, op: &str, x: ValueId, value: i128) -> Result<ValueId, OpError> {
        let elem = self.0.elem(x)?;
        let value = self.lit(elem, value);
        self.0.op(op, &[x, value])
    }

    fn shift(&mut self, x: ValueId, by: ValueId, direction: &str) -> Result<ValueId, OpError> {
        self.0.op_with("bit_shift", &[x, by], [("direction", Attr::Str(direction.to_owned()))])
    }

    fn right(&mut self, x: ValueId, by: u32) -> Result<ValueId, OpError> {
        let elem = self.0.elem(x)?;
        let by = self.lit(elem, by.into());
        self.shift(x, by, "RIGHT")
    }

    fn table(&mut self, entries: Vec<i128>, index: ValueId) -> Result<ValueId, OpError> {
        let table = self.0.constant(&Tensor::from_int(ElemType::U64, [entries.len()], entries));
        self.0.op_with("gather", &[table, index], [("axis", 0i64.into())])
    }
}

fn softmax(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (x, axis) = (node.need(0)?, node.int("axis")?);
    let scale = node.float("scale").unwrap_or(1.0);
    let exponentials = (0..256).map(|d| (32768.0 * libm::exp(-scale * f64::from(d))).round() as i128);
    let x = b.cast(x, ElemType::I32)?;
    let top = b.reduce("reduce_max", x, &[axis], true)?;
    let far = b.op("sub", &[top, x])?;
    let mut b = Integers(b);
    let e = b.table(exponentials.collect(), far)?;
    let sum = b.0.reduce("reduce_sum", e, &[axis], true)?;
    // The largest code alone gives 2^15, so that the reciprocal in units of 2^-45 has at most 31 bits.
    let half = b.right(sum, 1)?;
    let one = b.with("add", half, 1 << 45)?;
    let reciprocal = b.0.op("div", &[one, sum])?;
    let share = b.0.op("mul", &[e, reciprocal])?;
    let share = b.with("add", share, 1 << 36)?;
    let share = b.right(share, 37)?;
    let share = b.with("min", share, 255)?;
    Ok(vec![b.0.cast(share, ElemType::U8)?])
}

fn layer_norm(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (x, gain, offset) = (node.need(0)?, node.need(1)?, node.need(2)?);
    let epsilon = node.int("epsilon")?;
    let n = b.shape(gain)?.first().and_then(|d| d.as_const()).unwrap_or(1).into();
    let x = b.cast(x, ElemType::I64)?;
    let sum = b.reduce("reduce_sum", x, &[-1], true)?;
    let square = b.op("mul", &[x, x])?;
    let squares = b.reduce("reduce_sum", square, &[-1], true)?;
    let mut b = Integers(b);
    // n² times the variance, exactly: it is never below 0.
    let all = b.with("mul", squares, n)?;
    let mean = b.0.op("mul", &[sum, sum])?;
    let spread = b.0.op("sub", &[all, mean])?;
    let spread = b.with("add", spread, epsilon.into())?;
    let (root, shift) = inverse_root(&mut b, spread)?;
    let far = b.with("mul", x, n)?;
    let far = b.0.op("sub", &[far, sum])?;
    let size = b.0.op("abs", &[far])?;
    let size = b.0.cast(size, ElemType::U64)?;
    let size = b.0.op("mul", &[size, root])?;
    let shift = b.with("sub", shift, NORMAL_BITS.into())?;
    let size = b.shift(size, shift, "RIGHT")?;
    let size = b.0.cast(size, ElemType::I64)?;
    let sign = b.0.op("sign", &[far])?;
    let normal = b.0.op("mul", &[size, sign])?;
    let product = b.0.op("mul", &[normal, gain])?;
    let offset = b.with("mul", offset, 1 << NORMAL_BITS)?;
    let all = b.0.op("add", &[product, offset])?;
    let unit = NORMAL_BITS + GAIN_BITS;
    let all = b.with("add", all, 1 << (unit - 1))?;
    let code = b.right(all, unit)?;
    let code = b.with("max", code, 0)?;
    let code = b.with("min", code, 255)?;
    Ok(vec![b.0.cast(code, ElemType::U8)?])
}

/// `root` and `shift` (31 to 62), both `u64`, so that `1 / sqrt(x)` is `root 2^-shift` within 2^-15 of itself; `x` 0 is taken for 1.
fn inverse_root(b: &mut Integers, x: ValueId) -> Result<(ValueId, ValueId), OpError> {
    let x = b.0.cast(x, ElemType::U64)?;
    let mut m = b.with("max", x, 1)?;
    let mut up: Option<ValueId> = None;
    // x = m 4^(31 - up / 2), with m from 1 to 4 in units of 2^-62.
    for step in [32u32, 16, 8, 4, 2] {
        let small = b.with("less", m, 1 << (64 - step))?;
        let small = b.0.cast(small, ElemType::U64)?;
        let by = b.with("mul", small, step.into())?;
        m = b.shift(m, by, "LEFT")?;
        up = Some(match up {
            Some(up) => b.0.op("add", &[up, by])?,
            None => by,
        });
    }
    let up = up.ok_or_else(|| OpError::new("no step was taken"))?;
    let start = |k: u32| (2f64.powi(31) / ((f64::from(k) + 0.5) / 64.0).sqrt()).round() as i128;
    let index = b.right(m, 56)?;
    let index = b.with("sub", index, 64)?;
    let index = b.0.cast(index, ElemType::I32)?;
    let start = b.table((64..256).map(start).collect(), index)?;
    // y (3 - m y²) / 2
    let square = b.0.op("mul", &[start, start])?;
    let square = b.right(square, 31)?;
    let high = b.right(m, 32)?;
    let product = b.0.op("mul", &[high, square])?;
    let product = b.right(product, 30)?;
    let three = b.lit(ElemType::U64, 3 << 31);
    let rest = b.0.op("sub", &[three, product])?;
    let root = b.0.op("mul", &[start, rest])?;
    let root = b.right(root, 32)?;
    let half = b.right(up, 1)?;
    let most = b.lit(ElemType::U64, 62);
    let shift = b.0.op("sub", &[most, half])?;
    Ok((root, shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use crate::tensor::Value;
    use crate::{Module, eval};
    use std::cell::Cell;

    /// One result of ops on inputs.
    fn run(inputs: &[Tensor], of: impl FnOnce(&mut Builder, &[ValueId]) -> Result<ValueId, OpError>) -> Vec<i128> {
        let (mut m, fresh) = (Module::new("net"), Cell::new(0));
        let own: Vec<ValueId> = inputs
            .iter()
            .map(|t| m.add_input(Module::TOP, "x", Type::tensor(t.elem(), t.shape().iter().map(|&n| n as i64))))
            .collect();
        let y = of(&mut Builder::new(&mut m, Module::TOP, "n", &fresh), &own).expect("fits");
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".into());
        let out = eval::run(&m, inputs.iter().cloned().map(Value::from).collect()).expect("runs");
        out[0].as_tensor().and_then(Tensor::integers).expect("integers").to_vec()
    }

    fn codes(elem: ElemType, rows: usize, n: usize, seed: u64) -> Tensor {
        let (least, most) = elem.int_range().expect("integers");
        let mut random = SplitMix64::new(seed);
        let codes = (0..rows * n).map(|_| least + i128::from(random.next_u64()).rem_euclid(most - least + 1));
        Tensor::from_int(elem, [rows, n], codes.collect())
    }

    fn softmax_of(x: &Tensor, scale: f32) -> Vec<i128> {
        run(std::slice::from_ref(x), |b, x| b.op_with("integer_softmax", x, [("scale", scale.into())]))
    }

    #[test]
    fn probabilities_are_those_of_floats() {
        for (elem, n, scale) in [(ElemType::U8, 7, 0.03f32), (ElemType::I8, 64, 0.05), (ElemType::U8, 300, 0.02)] {
            let x = codes(elem, 3, n, n as u64);
            let found = softmax_of(&x, scale);
            let numbers = x.to_f64s().expect("numbers");
            for (row, found) in numbers.chunks(n).zip(found.chunks(n)) {
                let exact = row.iter().map(|q| (q * f64::from(scale)).exp());
                let sum: f64 = exact.clone().sum();
                let all: i128 = found.iter().sum();
                // Half a unit each, and what a row adds up to of 256 of them.
                assert!((all - 256).abs() <= 2 + n as i128 / 2, "{all}");
                for (p, e) in found.iter().zip(exact) {
                    assert!((*p as f64 - (256.0 * e / sum).min(255.0)).abs() < 0.6, "{p} {}", 256.0 * e / sum);
                }
            }
        }
        let row = |codes: &[i128]| Tensor::from_int(ElemType::I8, [1, codes.len()], codes.to_vec());
        assert_eq!(softmax_of(&row(&[127, -128]), 1.0), [255, 0]);
        assert_eq!(softmax_of(&row(&[-128; 4]), 1.0), [64; 4]);
    }

    #[test]
    fn inverse_roots_are_near() {
        let xs: Vec<i128> = (0..63).flat_map(|bits| [1i128 << bits, (1 << bits) + (1 << bits) / 3, i128::from(i64::MAX >> bits)]).collect();
        let x = Tensor::from_int(ElemType::I64, [xs.len()], xs.clone());
        let of = |which: usize| {
            run(std::slice::from_ref(&x), |b, x| {
                let (root, shift) = inverse_root(&mut Integers(b), x[0])?;
                b.cast([root, shift][which], ElemType::I64)
            })
        };
        for ((x, root), shift) in xs.iter().zip(of(0)).zip(of(1)) {
            let found = root as f64 / 2f64.powi(shift as i32);
            assert!((found * (*x.max(&1) as f64).sqrt() - 1.0).abs() < 2f64.powi(-14), "{x}");
        }
    }

    fn units(values: &[f64]) -> Tensor {
        let fixed = |v: &f64| (v * f64::from(1 << GAIN_BITS)).round().clamp(-MOST_GAIN * 65536.0, MOST_GAIN * 65536.0) as i128;
        Tensor::from_int(ElemType::I64, [values.len()], values.iter().map(fixed).collect())
    }

    fn norm_of(x: &Tensor, gain: &[f64], offset: &[f64], epsilon: i64) -> Vec<i128> {
        run(&[x.clone(), units(gain), units(offset)], |b, v| b.op_with("integer_layer_norm", v, [("epsilon", epsilon.into())]))
    }

    #[test]
    fn normalized_codes_are_those_of_floats() {
        for (elem, n, epsilon) in [(ElemType::U8, 16, 0.5), (ElemType::I8, 768, 1e-3), (ElemType::U8, 5, 4.0)] {
            let mut random = SplitMix64::new(n as u64);
            let gain: Vec<f64> = random.normals(n).into_iter().map(|g| 30.0 * g).collect();
            let offset: Vec<f64> = random.normals(n).into_iter().map(|o| 128.0 + 20.0 * o).collect();
            let x = codes(elem, 4, n, 3);
            let found = norm_of(&x, &gain, &offset, (epsilon * (n * n) as f64).round() as i64);
            let numbers = x.to_f64s().expect("numbers");
            for (row, found) in numbers.chunks(n).zip(found.chunks(n)) {
                let mean = row.iter().sum::<f64>() / n as f64;
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
                for (i, &code) in found.iter().enumerate() {
                    let exact = gain[i] * (row[i] - mean) / (variance + epsilon).sqrt() + offset[i];
                    assert!((code as f64 - exact.clamp(0.0, 255.0)).abs() < 0.52, "{n}: {code} {exact}");
                }
            }
        }
    }

    #[test]
    fn extreme_rows_are_normalized() {
        // A row of one value has its offset alone.
        let flat = Tensor::from_int(ElemType::U8, [1, 9], vec![7; 9]);
        assert_eq!(norm_of(&flat, &[1.0; 9], &[2.4; 9], 0), [2; 9]);
        // One code far from many: the largest that a normalized number can be, in a row of the largest length.
        let mut row = vec![-128; LONGEST_ROW];
        row[7] = 127;
        let row = Tensor::from_int(ElemType::I8, [1, LONGEST_ROW], row);
        let found = norm_of(&row, &vec![1e9; LONGEST_ROW], &vec![100.0; LONGEST_ROW], 1);
        assert_eq!((found[7], found[8]), (255, 0));
    }

    #[test]
    fn what_has_no_integer_form_is_refused() {
        let (mut m, fresh) = (Module::new("net"), Cell::new(0));
        let floats = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [2i64, 4]));
        let codes = m.add_input(Module::TOP, "c", Type::tensor(ElemType::U8, [2i64, 4]));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        for (x, scale) in [(floats, 1.0f32), (codes, 0.0), (codes, f32::NAN)] {
            assert!(b.op_with("integer_softmax", &[x], [("scale", scale.into())]).is_err());
        }
        assert!(b.op_with("integer_softmax", &[codes], [("scale", 1f32.into()), ("axis", 2i64.into())]).is_err());
        let four = b.constant(&units(&[1.0; 4]));
        let three = b.constant(&units(&[1.0; 3]));
        for (x, gain) in [(floats, four), (codes, three), (codes, codes)] {
            assert!(b.op("integer_layer_norm", &[x, gain, four]).is_err());
        }
        assert!(b.op_with("integer_layer_norm", &[codes, four, four], [("epsilon", (-1i64).into())]).is_err());
        assert!(b.op("integer_layer_norm", &[codes, four, four]).is_ok());
    }
}
