//! Convolutions: as products over channels-last pixels where weights are constant, else element by element.

use super::activation::{Fused, activated};
use super::codes::{self, TailValues};
use super::conv_kernel::Schedule;
use super::expand::Facts;
use super::expr::{Body, E};
use super::index::{LoopVar, Pos};
use super::{Element, Lowerer, Rule};
use crate::schedules::Num;
use crate::schedules::codes::{Tail, width};
use crate::schedules::conv::{Conv, Pixels};
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::{Binary, ReduceKind};
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::window::WindowAttrs;
use lapidary_ir::{Constant, Dim, ElemType, Module, NodeId, ValueId};
use std::sync::Arc;

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::steps("conv", steps),
    Rule::steps("fused_conv", steps),
    Rule::steps_for("quantized_conv", steps, takes_codes),
];

/// True if there is a kernel for a convolution of codes.
fn takes_codes(module: &Module, n: NodeId) -> bool {
    if !codes::takes(module, n, |w| (3..=4).contains(&w.len())) {
        return false;
    }
    let node = module.node(n);
    let ty = |v: Option<ValueId>| v.and_then(|v| module.value(v).ty.shape());
    let (Some(x), Some(y)) = (ty(node.operand(0)), ty(node.results.first().copied())) else {
        return false;
    };
    let w = node
        .operand(2)
        .and_then(|w| module.as_constant(w))
        .map_or(&[][..], |w| w.shape());
    let (Ok(input), Ok(output)) = (const_dims(&x[1..]), const_dims(&y[1..])) else {
        return false;
    };
    let depthwise = is_depthwise(node.int("group").unwrap_or(1), input[0], output[0]);
    let taps: usize = w[2..].iter().product();
    let kernel = w[2..].iter().map(|&k| k as i64).collect();
    let padded = WindowAttrs::read(node, kernel).and_then(|w| pads(&w, &input[1..], &output[1..]));
    let known =
        codes::zero(module, n).is_some() || padded.is_ok_and(|p| p.iter().all(|p| *p == (0, 0)));
    let some = input.iter().chain(&output).all(|&n| n > 0);
    let plain = codes::tail(module, n).is_some_and(|t| t.0 == Tail::default());
    let constants = !depthwise || plain && codes::depthwise(module, n).is_some();
    constants && taps as i64 <= MAX_TAPS && known && some
}

/// Numbers of two spatial axes; one axis is the second of two, of which the first has `unit`.
pub(super) fn two_axes(rank: usize, v: &[i64], unit: i64) -> [i64; 2] {
    match rank {
        1 => [unit, v[0]],
        _ => [v[0], v[1]],
    }
}

/// One filter for each channel.
pub(super) fn is_depthwise(groups: i64, channels: i64, out_channels: i64) -> bool {
    groups > 1 && groups == channels && groups == out_channels
}

/// Most taps of a scheduled window: more have too many row addresses.
pub(super) const MAX_TAPS: i64 = 256;
/// With at most so many channels, a padded copy of the input pays: a window's row is then one run of elements.
const FEW_CHANNELS: i64 = 8;

/// A convolution that has a schedule.
pub struct Plan {
    pub x: ValueId,
    pub w: ValueId,
    /// The filters, if they are constant.
    pub filters: Option<Constant>,
    pub bias: Option<ValueId>,
    pub residual: Option<ValueId>,
    /// Spatial padding, before and after.
    pub pads: Vec<(i64, i64)>,
    pub batch: Dim,
    pub conv: Conv,
    /// What a tail adds.
    pub tail: Vec<TailValues>,
}

/// The schedule of a convolution, if it has one.
pub fn plan(facts: &Facts, n: NodeId) -> Option<Plan> {
    let node = facts.module.node(n);
    let quantized = node.op.name == "quantized_conv";
    let (x, w) = (
        node.operand(0)?,
        node.operand(if quantized { 2 } else { 1 })?,
    );
    let (bias, residual) = match quantized {
        true => (codes::bias(&facts.module, n), None),
        false => (node.operand(2), node.operand(3)),
    };
    let filters = facts.module.as_constant(w).cloned();
    if quantized && filters.is_none() {
        return None;
    }
    let out = *node.results.first()?;
    let f32s = [Some(x), Some(w), bias, residual, Some(out)];
    let mut others = f32s
        .into_iter()
        .flatten()
        .filter(|&v| facts.elem(v) != Ok(ElemType::F32));
    if !quantized && others.next().is_some() || quantized && !takes_codes(&facts.module, n) {
        return None;
    }
    let numbers = |d: &[Dim]| d.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>();
    let (shape, result) = (facts.shape(x).ok()?, facts.shape(out).ok()?);
    let (input, output) = (numbers(&shape[1..])?, numbers(&result[1..])?);
    let (oc, channels) = (output[0], input[0]);
    let kernel = numbers(facts.shape(w).ok()?.get(2..)?)?;
    let rank = kernel.len();
    let taps: i64 = kernel.iter().product();
    let empty = input.iter().chain(&output).any(|&n| n <= 0);
    if !(1..=2).contains(&rank) || input.len() != rank + 1 || taps > MAX_TAPS || empty {
        return None;
    }
    if let Some(r) = residual
        && facts.shape(r).ok()? != result
    {
        return None;
    }
    let window = WindowAttrs::read(node, kernel.clone()).ok()?;
    let pads = pads(&window, &input[1..], &output[1..]).ok()?;
    let Fused { lo, hi, activation } = match quantized {
        true => codes::clamp(node),
        false => Fused::of(node)?,
    };
    let (tail, of_tail) = codes::tail(&facts.module, n)?;
    for &v in of_tail.iter().filter_map(|v| v.residual.as_ref()) {
        if facts.shape(v).ok()? != result {
            return None;
        }
    }
    let groups = node.int("group").unwrap_or(1).max(1);
    if is_depthwise(groups, channels, oc) && activation.is_some() {
        return None;
    }
    let two = |v: &[i64], unit: i64| two_axes(rank, v, unit);
    let begin: Vec<i64> = pads.iter().map(|p| p.0).collect();
    Some(Plan {
        x,
        w,
        filters,
        bias,
        residual,
        batch: shape[0].clone(),
        conv: Conv {
            batch: shape[0].as_const().map_or(Num::Sym, Num::Const),
            input: two(&input[1..], 1),
            output: two(&output[1..], 1),
            channels,
            out_channels: oc,
            groups,
            kernel: two(&kernel, 1),
            strides: two(&window.strides, 1),
            pads: two(&begin, 0),
            dilations: two(&window.dilations, 1),
            x: Pixels::dense(channels),
            y: Pixels::dense(oc),
            bias: bias.is_some(),
            residual: residual.map(|_| Pixels::dense(oc)),
            lo,
            hi,
            activation,
            codes: quantized.then(|| codes::of(&facts.module, n)),
            bf16: false,
            tail,
            tail_residuals: vec![],
            width: PANEL,
        },
        tail: of_tail,
        pads,
    })
}

/// Padding before and after each axis.
pub fn pads(w: &WindowAttrs, input: &[i64], out: &[i64]) -> Result<Vec<(i64, i64)>, OpError> {
    let n = w.kernel.len();
    (0..n)
        .map(|i| {
            Ok(match w.auto_pad.as_str() {
                "NOTSET" => (w.pads[i], w.pads[n + i]),
                "VALID" => (0, 0),
                same => {
                    let need = ((out[i] - 1) * w.strides[i] + w.reach(i)? - input[i]).max(0);
                    let (small, large) = (need / 2, need - need / 2);
                    if same == "SAME_UPPER" {
                        (small, large)
                    } else {
                        (large, small)
                    }
                }
            })
        })
        .collect()
}

fn steps(low: &mut Lowerer, n: NodeId) -> Result<(), OpError> {
    let out = low.facts.module.node(n).results[0];
    let Some(plan) = plan(&low.facts, n) else {
        if low.facts.module.node(n).op.name == "quantized_conv" {
            return Err(codes::no_kernel());
        }
        return low.elements(n, out, element);
    };
    let sparse = super::sparse::is_chosen(low, n);
    if sparse && plan.conv.codes.is_none() {
        return super::sparse::conv(low, n, plan);
    }
    let mut conv = plan.conv;
    let padded = plan.pads.iter().any(|p| *p != (0, 0));
    // Missing rows read as zeros, which other codes of zero are not.
    let fill = match conv.codes {
        Some(_) => codes::zero(&low.facts.module, n).unwrap_or(0),
        None => 0,
    };
    let narrow = conv.channels <= FEW_CHANNELS && conv.groups == 1 && conv.kernel[1] > 1;
    let x = if (narrow || fill != 0) && padded {
        let (before, after) = match plan.pads[..] {
            [(b, a)] => ([0, b], [0, a]),
            _ => (
                [plan.pads[0].0, plan.pads[1].0],
                [plan.pads[0].1, plan.pads[1].1],
            ),
        };
        conv.pads = [0, 0];
        conv.input = [0, 1].map(|i| conv.input[i] + before[i] + after[i]);
        low.channels_last(plan.x, &plan.pads, fill)?
    } else {
        low.channels_last(plan.x, &vec![(0, 0); plan.pads.len()], 0)?
    };
    conv.x = low.pixels(x, conv.channels);
    let residual = match plan.residual {
        Some(r) => {
            let r = low.channels_last(r, &vec![(0, 0); plan.pads.len()], 0)?;
            conv.residual = Some(low.pixels(r, conv.out_channels));
            Some(r)
        }
        None => None,
    };
    let mut tail = plan.tail;
    for of in &mut tail {
        let mut at = Pixels::dense(conv.out_channels);
        if let Some(r) = of.residual {
            let r = low.channels_last(r, &vec![(0, 0); plan.pads.len()], 0)?;
            (of.residual, at) = (Some(r), low.pixels(r, conv.out_channels));
        }
        conv.tail_residuals.push(at);
    }
    let y = low.channels_last_result(out)?;
    conv.y = low.pixels(y, conv.out_channels);
    if sparse {
        let at = super::sparse::CodesAt {
            x,
            bias: plan.bias,
            tail: &tail,
            y,
            images: &plan.batch,
        };
        if super::sparse::conv_of_codes(low, n, &conv, at)? {
            return low.finish_result(y, out);
        }
    }
    let row = conv.channels / conv.groups * conv.kernel[0] * conv.kernel[1];
    if conv.codes.is_some() && low.target.micro_kernels {
        conv.width = width(conv.group_out(), row);
    }
    let pixels = conv.output[0] * conv.output[1];
    let numbers = plan.filters.is_some() && conv.codes.is_none();
    if let Some(width) = low.width_bf16(numbers, [pixels, conv.group_out(), row]) {
        (conv.bf16, conv.width) = (true, width);
    }
    let mut schedule = Schedule::of(low, conv.flattened());
    let mut bias = plan.bias;
    let (w, coded) = match &mut schedule {
        Schedule::Product(conv) if let Some(c) = conv.codes => {
            let (pack, sums) = (conv.clone(), conv.clone());
            let made = codes::weights(
                low,
                n,
                c,
                conv.packed_bytes(),
                conv.out_channels as usize,
                Arc::new(move |bytes, out| pack.pack(bytes, out)),
                Arc::new(move |bytes, out| sums.sums(bytes, out)),
            )?;
            (made.w, made.params)
        }
        Schedule::Depthwise(d) if d.conv.codes.is_some() => {
            let numbers = codes::depthwise(&low.facts.module, n)
                .ok_or_else(|| OpError::new("weights, scale or zero are not constant"))?;
            d.conv.bias = true;
            let (own, channels) = (d.clone(), d.conv.channels as usize);
            let pack: codes::Pack = Arc::new(move |bytes, out| own.pack(bytes, out));
            bias = Some(numbers.bias(low, channels));
            (
                numbers.weights(
                    low,
                    channels * (d.conv.kernel[0] * d.conv.kernel[1]) as usize,
                    pack,
                ),
                low.facts.module.node(n).operand(3).into_iter().collect(),
            )
        }
        _ => match plan.filters {
            Some(filters) => (schedule.weights(low, filters), vec![]),
            None => (schedule.packed(low, plan.w)?, vec![]),
        },
    };
    let buffers: Vec<ValueId> = [x, w]
        .into_iter()
        .chain(coded)
        .chain([bias, residual].into_iter().flatten())
        .chain(codes::tail_operands(low, n, &tail))
        .chain([y])
        .collect();
    schedule.launch(low, "conv", &buffers, &plan.batch)?;
    low.finish_result(y, out)
}

/// The element of a convolution, with what `fused_conv` adds to it.
fn element(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let mut y = sum(x, p)?;
    if x.n().op.name != "fused_conv" {
        return Ok(y);
    }
    if x.has(3) {
        let z = x.broadcast(3, p)?;
        y = x.b().binary(Binary::Add, y, z);
    }
    activated(x, y)
}

fn sum(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (shape, w, out) = (x.shape(0)?, x.shape(1)?, x.out_shape()?);
    let at = p.indices(&x.x.body, &out);
    let group = x.int("group").unwrap_or(1).max(1);
    let kernel = const_dims(&w[2..])?;
    let window = Taps::new(x, kernel, &shape[2..], &out[2..])?;
    let channel = x.b().loop_var(w[1].clone());
    let per_group = w[0].floor_div(&Dim::from(group));
    let first = if group == 1 {
        Dim::default()
    } else {
        x.b().div(&at[1], &per_group) * w[1].clone()
    };
    let (spatial, inside) = window.place(&mut x.x.body, &at[2..], &shape[2..]);
    let from = [&[at[0].clone(), first + channel.dim()][..], &spatial].concat();
    let value = x.at(0, &Pos::At(from))?;
    let taps: Vec<Dim> = window.vars.iter().map(|v| v.dim()).collect();
    let weight = x.at(
        1,
        &Pos::At([&[at[1].clone(), channel.dim()][..], &taps].concat()),
    )?;
    let b = x.b();
    let zero = b.int(b.ty(value), 0);
    let value = b.where_inside(inside, value, zero);
    let product = b.binary(Binary::Mul, value, weight);
    let vars = [&[channel], &window.vars[..]].concat();
    let mut y = b.reduce(ReduceKind::Sum, &vars, product);
    if x.has(2) {
        let bias = x.at(2, &Pos::At(vec![at[1].clone()]))?;
        y = x.b().binary(Binary::Add, y, bias);
    }
    Ok(y)
}

/// Dimensions that must be numbers.
pub fn const_dims(d: &[Dim]) -> Result<Vec<i64>, OpError> {
    d.iter()
        .map(Dim::as_const)
        .collect::<Option<_>>()
        .ok_or_else(|| OpError::new("the kernel's shape must be constant"))
}

/// The loops over a window's taps.
pub struct Taps {
    /// One loop per spatial axis.
    pub vars: Vec<LoopVar>,
    /// Taps per axis.
    pub kernel: Vec<i64>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Steps between taps.
    pub dilations: Vec<i64>,
    /// Padding before the input.
    pub begin: Vec<Dim>,
    /// Declared padding after the input.
    pub end: Vec<Dim>,
}

impl Taps {
    /// Reads the node's window attributes and opens the loops.
    pub fn new(
        x: &mut Element,
        kernel: Vec<i64>,
        input: &[Dim],
        out: &[Dim],
    ) -> Result<Taps, OpError> {
        let w = WindowAttrs::read(x.n(), kernel)?;
        let n = w.kernel.len();
        let (mut begin, mut end) = (vec![], vec![]);
        for i in 0..n {
            let (b, e) = match w.auto_pad.as_str() {
                "NOTSET" => (Dim::from(w.pads[i]), Dim::from(w.pads[n + i])),
                "VALID" => (Dim::default(), Dim::default()),
                same => {
                    let spans = (&out[i] - &Dim::from(1i64)) * Dim::from(w.strides[i])
                        + Dim::from(w.reach(i)?);
                    let need = (spans - &input[i]).max_dim(&Dim::default());
                    let small = need.floor_div(&Dim::from(2i64));
                    let large = &need - &small;
                    if same == "SAME_UPPER" {
                        (small, large)
                    } else {
                        (large, small)
                    }
                }
            };
            begin.push(b);
            end.push(e);
        }
        let extents: Vec<Dim> = w.kernel.iter().map(|&k| Dim::from(k)).collect();
        Ok(Taps {
            vars: x.b().loop_vars(&extents),
            kernel: w.kernel,
            strides: w.strides,
            dilations: w.dilations,
            begin,
            end,
        })
    }

    /// Where the taps of the window at `at` lie in the input, and whether that is inside.
    pub fn place(&self, b: &mut Body, at: &[Dim], input: &[Dim]) -> (Vec<Dim>, E) {
        let mut inside = b.bool(true);
        let mut place = vec![];
        for (i, v) in self.vars.iter().enumerate() {
            let p = &at[i] * &Dim::from(self.strides[i]) + v.dim() * Dim::from(self.dilations[i])
                - &self.begin[i];
            let here = b.index_within(&p, &input[i]);
            inside = b.binary(Binary::And, inside, here);
            place.push(p);
        }
        (place, inside)
    }
}

#[cfg(test)]
mod tests {
    use crate::lower::Options;
    use crate::lower::checks::{check, check_lowered_for, numbers};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::target::{Feature, Target};
    use lapidary_ir::{Attr, Attrs, ValueId};

    fn conv(
        b: &mut Builder,
        op: &str,
        x: ValueId,
        filters: &[usize],
        attrs: &[(&str, Attr)],
        more: [Option<ValueId>; 2],
    ) -> ValueId {
        let w = b.constant(&numbers(filters, 5));
        let attrs: Attrs = attrs
            .iter()
            .map(|(k, v)| ((*k).into(), v.clone()))
            .collect();
        let mut operands = vec![Some(x), Some(w), more[0]];
        if op == "fused_conv" {
            operands.push(more[1]);
        }
        b.node(op, operands, attrs, 1).expect("a convolution")[0]
    }

    #[test]
    fn convolutions_of_every_geometry() {
        let ints = |v: &[i64]| Attr::Ints(v.to_vec());
        // Input, filters, strides, pads, dilations, groups.
        type Case = (
            &'static [usize],
            &'static [usize],
            &'static [i64],
            &'static [i64],
            &'static [i64],
            i64,
        );
        let cases: &[Case] = &[
            (
                &[1, 5, 6, 7],
                &[3, 5, 3, 3],
                &[1, 1],
                &[1, 1, 1, 1],
                &[1, 1],
                1,
            ),
            (
                &[2, 3, 9, 8],
                &[35, 3, 3, 3],
                &[2, 2],
                &[0, 1, 2, 0],
                &[1, 1],
                1,
            ),
            (
                &[1, 3, 17, 9],
                &[4, 3, 7, 7],
                &[2, 2],
                &[3, 3, 3, 3],
                &[1, 1],
                1,
            ),
            (
                &[1, 12, 5, 4],
                &[7, 12, 1, 1],
                &[1, 1],
                &[0, 0, 0, 0],
                &[1, 1],
                1,
            ),
            (
                &[1, 12, 5, 5],
                &[7, 12, 1, 1],
                &[2, 2],
                &[0, 0, 0, 0],
                &[1, 1],
                1,
            ),
            (
                &[1, 20, 9, 9],
                &[6, 10, 3, 2],
                &[1, 2],
                &[2, 0, 1, 1],
                &[2, 3],
                2,
            ),
            (
                &[1, 19, 7, 7],
                &[19, 1, 3, 3],
                &[1, 1],
                &[1, 1, 1, 1],
                &[1, 1],
                19,
            ),
            (
                &[2, 9, 8, 7],
                &[18, 1, 5, 5],
                &[2, 2],
                &[2, 2, 2, 2],
                &[1, 1],
                9,
            ),
            (&[1, 6, 20], &[5, 6, 3], &[2], &[1, 0], &[2], 1),
            (
                &[1, 10, 9, 9],
                &[40, 5, 3, 2],
                &[1, 2],
                &[2, 0, 1, 1],
                &[2, 3],
                2,
            ),
            (
                &[1, 13, 5, 4],
                &[70, 13, 1, 1],
                &[1, 1],
                &[0, 0, 0, 0],
                &[1, 1],
                1,
            ),
            (
                &[1, 8, 1, 1],
                &[9, 8, 1, 1],
                &[1, 1],
                &[0, 0, 0, 0],
                &[1, 1],
                1,
            ),
            (
                &[1, 2, 4, 4, 4],
                &[3, 2, 2, 2, 2],
                &[1, 1, 1],
                &[0, 0, 0, 0, 0, 0],
                &[1, 1, 1],
                1,
            ),
        ];
        // Those have eight bits.
        let target = Target::x86_64().with_features(vec![Feature::Avx512Bf16]);
        let options = Options {
            bf16: true,
            ..Options::default()
        };
        for (i, (shape, filters, strides, pads, dilations, groups)) in cases.iter().enumerate() {
            for symbolic in [false, true] {
                let attrs = [
                    ("strides", ints(strides)),
                    ("pads", ints(pads)),
                    ("dilations", ints(dilations)),
                    ("group", Attr::Int(*groups)),
                ];
                let build = |b: &mut Builder, x: &[ValueId]| {
                    let bias = b.constant(&numbers(&filters[..1], 6));
                    conv(b, "conv", x[0], filters, &attrs, [Some(bias), None])
                };
                check(&format!("conv{i}"), &[shape], symbolic, build);
                let how = (&target, &options, 2e-2);
                check_lowered_for(how, &format!("conv{i} of bf16"), &[shape], symbolic, build);
            }
        }
    }

    #[test]
    fn stretches_stay_channels_last() {
        let pad = [("pads", Attr::Ints(vec![1, 1, 1, 1]))];
        let kernels = check("block", &[&[1, 3, 8, 8]], false, |b, x| {
            let first = conv(b, "conv", x[0], &[6, 3, 3, 3], &pad, [None, None]);
            let first = b.op("relu", &[first]).expect("relu");
            let relu = [
                ("pads", Attr::Ints(vec![1, 1, 1, 1])),
                ("activation", Attr::Str("Relu".into())),
            ];
            let second = conv(
                b,
                "fused_conv",
                first,
                &[6, 6, 3, 3],
                &relu,
                [None, Some(first)],
            );
            let one = conv(b, "conv", second, &[4, 6, 1, 1], &[], [None, None]);
            let three = conv(b, "conv", second, &[5, 6, 3, 3], &pad, [None, None]);
            let both = b
                .op_with("concat", &[one, three], [("axis", Attr::Int(1))])
                .expect("concat");
            let deeper = conv(b, "conv", both, &[3, 9, 3, 3], &pad, [None, None]);
            let nested = b
                .op_with("concat", &[both, deeper], [("axis", Attr::Int(1))])
                .expect("concat");
            let pooled = b
                .op_with(
                    "max_pool",
                    &[nested],
                    [
                        ("kernel_shape", Attr::Ints(vec![3, 3])),
                        ("strides", Attr::Ints(vec![2, 2])),
                    ],
                )
                .expect("pool");
            let wide = conv(b, "conv", pooled, &[40, 12, 1, 1], &[], [None, None]);
            let mean = b.op("global_average_pool", &[wide]).expect("mean");
            b.op_with("flatten", &[mean], [("axis", Attr::Int(1))])
                .expect("flatten")
        });
        // The padded copy, relu, convolutions, the pool, the mean: no copies between.
        assert!(kernels <= 11, "{kernels} kernels");
    }

    #[test]
    fn consumers_that_want_rows_get_them() {
        check("rows", &[&[1, 3, 6, 5]], false, |b, x| {
            let y = conv(b, "conv", x[0], &[4, 3, 1, 1], &[], [None, None]);
            let t = b
                .op_with("transpose", &[y], [("perm", Attr::Ints(vec![0, 2, 3, 1]))])
                .expect("transpose");
            let shape = b.ints(&[1, 4, 30]);
            let flat = b.op("reshape", &[y, shape]).expect("reshape");
            let back = b.ints(&[1, 6, 5, 4]);
            let flat = b.op("reshape", &[flat, back]).expect("reshape");
            b.op("add", &[t, flat]).expect("add")
        });
    }
}
