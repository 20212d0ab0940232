//! Convolutions of any number of spatial axes.

mod deform;
mod transpose;

use super::linear::{checked_count, shifted};
use super::window::{WindowAttrs, image, image_shape, unravel};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Data, Tensor, Value, count};
use crate::types::TensorType;
use crate::{Attr, Dim, ElemType, Type, ValueId};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &CONV,
    &transpose::CONV_TRANSPOSE,
    &transpose::COL2IM,
    &CONV_INTEGER,
    &deform::DEFORM_CONV,
    &FUSED_CONV,
    &CAUSAL_CONV_WITH_STATE,
];

const AUTO_PAD: AttrDef = AttrDef::new(
    "auto_pad",
    AttrKind::Str,
    Default::Str("NOTSET"),
    "NOTSET, VALID, SAME_UPPER or SAME_LOWER",
);
const DILATIONS: AttrDef = AttrDef::new("dilations", AttrKind::Ints, Default::Absent, "steps between taps; 1 each");
const GROUP: AttrDef = AttrDef::new("group", AttrKind::Int, Default::Int(1), "groups of channels");
const KERNEL_SHAPE: AttrDef =
    AttrDef::new("kernel_shape", AttrKind::Ints, Default::Absent, "taps per axis; those of `w`");
const PADS: AttrDef = AttrDef::new("pads", AttrKind::Ints, Default::Absent, "padding: begins, then ends; 0 each");
const STRIDES: AttrDef = AttrDef::new("strides", AttrKind::Ints, Default::Absent, "steps between windows; 1 each");

/// Attributes of every convolution.
pub(in crate::ops) const CONV_ATTRS: &[AttrDef] = &[AUTO_PAD, DILATIONS, GROUP, KERNEL_SHAPE, PADS, STRIDES];

/// Convolution.
pub static CONV: OpDef = OpDef {
    name: "conv",
    summary: "grouped convolution of `[n, c, spatial..]` with `[m, c/group, kernel..]`; integers wrap",
    source: "ONNX Conv-22; integer element types as in ConvInteger-10",
    operands: &[Operand::One("x"), Operand::One("w"), Operand::Optional("b")],
    attrs: CONV_ATTRS,
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        if ctx.elem(1)? != elem || ctx.has(2) && ctx.elem(2)? != elem {
            return Err(OpError::new("operands must have one element type"));
        }
        infer_conv(ctx, 0, 1, elem)
    },
    eval: Eval::Direct(eval_conv),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Convolution of 8-bit integers.
pub static CONV_INTEGER: OpDef = OpDef {
    name: "conv_integer",
    summary: "convolution of x - x_zero_point with w - w_zero_point in i32; padding is the zero point",
    source: "ONNX ConvInteger-10",
    operands: &[
        Operand::One("x"),
        Operand::One("w"),
        Operand::Optional("x_zero_point"),
        Operand::Optional("w_zero_point"),
    ],
    attrs: CONV_ATTRS,
    infer: |ctx| infer_conv(ctx, 0, 1, ElemType::I32),
    decompose: Some(|b, node| {
        let (x, w) = (node.need(0)?, node.need(1)?);
        let x = shifted(b, x, node.operand(2), false)?;
        let w = shifted_filters(b, w, node.operand(3))?;
        Ok(vec![conv_of(b, node, &[Some(x), Some(w)])?])
    }),
    ..OpDef::BASE
};

/// Convolution, sum and activation.
pub static FUSED_CONV: OpDef = OpDef {
    name: "fused_conv",
    summary: "activation(conv(x, w, b) + z)",
    source: "ONNX Runtime com.microsoft FusedConv-1",
    operands: &[Operand::One("x"), Operand::One("w"), Operand::Optional("b"), Operand::Optional("z")],
    attrs: &[
        AUTO_PAD,
        DILATIONS,
        GROUP,
        KERNEL_SHAPE,
        PADS,
        STRIDES,
        AttrDef::new("activation", AttrKind::Str, Default::Absent, "Relu, Tanh, Sigmoid, LeakyRelu, Clip, HardSigmoid, HardSwish, Swish, Gelu or GeluTanh"),
        AttrDef::new("activation_params", AttrKind::Floats, Default::Absent, "parameters of the activation"),
    ],
    infer: |ctx| infer_conv(ctx, 0, 1, ctx.elem(0)?),
    decompose: Some(|b, node| {
        let mut y = conv_of(b, node, &[node.operand(0), node.operand(1), node.operand(2)])?;
        if let Some(z) = node.operand(3) {
            y = b.op("add", &[y, z])?;
        }
        Ok(vec![fused_activation(b, node, y)?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Depthwise causal convolution that carries its tail.
pub static CAUSAL_CONV_WITH_STATE: OpDef = OpDef {
    name: "causal_conv_with_state",
    summary: "depthwise causal 1-D convolution of past_state and input; also the last k - 1 positions",
    source: "ONNX CausalConvWithState-27",
    operands: &[
        Operand::One("input"),
        Operand::One("weight"),
        Operand::Optional("bias"),
        Operand::Optional("past_state"),
    ],
    results: &[Operand::One("output"), Operand::One("present_state")],
    attrs: &[AttrDef::new("activation", AttrKind::Str, Default::Str("none"), "silu, swish or none")],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        let (n, c, l) = match ctx.shape(0)? {
            Some([n, c, l]) => (n.clone(), c.clone(), l.clone()),
            Some(_) => return Err(OpError::new("operand 0 must have rank 3")),
            None => (ctx.fresh_dim(), ctx.fresh_dim(), ctx.fresh_dim()),
        };
        let k = match ctx.shape(1)? {
            Some([_, _, k]) => k.clone(),
            Some(_) => return Err(OpError::new("operand 1 must have rank 3")),
            None => ctx.fresh_dim(),
        };
        let state = [n.clone(), c.clone(), k - Dim::from(1i64)];
        Ok(vec![Type::tensor(elem, [n, c, l]), Type::tensor(elem, state)])
    },
    decompose: Some(decompose_causal),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Kernel taps: the attribute, or the spatial part of the filters.
pub(super) fn kernel_of(node: &Node, filters: Option<&[Dim]>) -> Result<Option<Vec<i64>>, OpError> {
    let own: Option<Vec<i64>> = filters.and_then(|f| f.get(2..)?.iter().map(Dim::as_const).collect());
    let given = node.ints("kernel_shape").filter(|k| !k.is_empty());
    let taps = given.iter().chain(&own).flatten();
    if let Some(k) = taps.copied().find(|k| !(0..=i64::from(i32::MAX)).contains(k)) {
        return Err(OpError::new(format!("a filter must not have {k} taps along an axis")));
    }
    match (given, own) {
        (Some(a), Some(b)) if a != b => {
            Err(OpError::new(format!("attribute `kernel_shape` is {a:?}, the filters have {b:?}")))
        }
        (Some(a), _) => Ok(Some(a)),
        (None, b) => Ok(b),
    }
}

/// Type of a convolution of operand `x` with filters `w`.
pub(in crate::ops) fn infer_conv(ctx: &InferCtx, x: usize, w: usize, elem: ElemType) -> Result<Vec<Type>, OpError> {
    let filters = ctx.shape(w)?;
    let Some((n, c, spatial)) = image(ctx, x)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let group = Dim::from(ctx.int("group")?.max(1));
    if let Some(f) = filters {
        if f.len() != spatial.len() + 2 {
            return Err(OpError::new(format!("filters of rank {} meet an input of rank {}", f.len(), spatial.len() + 2)));
        }
        if let (Some(own), Some(want)) = (c.as_const(), (&f[1] * &group).as_const())
            && own != want
        {
            return Err(OpError::new(format!("{own} channels meet filters for {want}")));
        }
        if f[0].modulo(&group).as_const().is_some_and(|r| r != 0) {
            return Err(OpError::new(format!("{} filters do not divide into {group} groups", f[0])));
        }
    }
    let mut shape = vec![n.clone(), filters.map_or_else(|| ctx.fresh_dim(), |f| f[0].clone())];
    match kernel_of(ctx.node, filters)? {
        Some(kernel) => shape.extend(WindowAttrs::read(ctx.node, kernel)?.out_dims(spatial)?),
        None => shape.extend(spatial.iter().map(|_| ctx.fresh_dim())),
    }
    Ok(vec![Type::Tensor(TensorType { elem, shape: Some(shape) })])
}

fn eval_conv(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, w) = (ctx.tensor(0)?, ctx.tensor(1)?);
    Ok(vec![convolve(ctx.node, x, w, ctx.tensor_opt(2))?.into()])
}

/// Convolution of concrete tensors by the node's attributes.
fn convolve(node: &Node, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, OpError> {
    let (n, c, spatial) = image_shape(x.shape())?;
    let (m, c_group, kernel) = image_shape(w.shape())?;
    let group = usize::try_from(node.int("group")?).ok().filter(|&g| g > 0).ok_or_else(|| OpError::new("attribute `group` must be positive"))?;
    if c != c_group * group || m % group != 0 || kernel.len() != spatial.len() {
        return Err(OpError::new(format!("filters {:?} do not fit an input {:?} in {group} groups", w.shape(), x.shape())));
    }
    if bias.is_some_and(|b| b.len() != m) {
        return Err(OpError::new(format!("a bias of {m} elements is needed")));
    }
    let window = WindowAttrs::read(node, kernel.iter().map(|&k| k as i64).collect())?.over(spatial)?;
    let mut shape = vec![n, m];
    shape.extend(&window.out);
    checked_count(&shape)?;
    let (places, plane, taps) = (count(&window.out), count(spatial), count(kernel));
    // Which input position each tap reads is the same for every channel.
    let maps: Vec<Vec<(usize, usize)>> = (0..places)
        .map(|p| {
            let mut map = Vec::with_capacity(taps);
            window.taps(&unravel(p, &window.out), spatial, |tap, at| map.push((tap, at)));
            map
        })
        .collect();
    fn run<T: Copy>(
        (n, m, group, c_group, plane, taps): (usize, usize, usize, usize, usize, usize),
        maps: &[Vec<(usize, usize)>],
        (x, w, bias): (&[T], &[T], Option<&[T]>),
        zero: T,
        fma: impl Fn(T, T, T) -> T,
        add: impl Fn(T, T) -> T,
    ) -> Vec<T> {
        let mut out = Vec::with_capacity(n * m * maps.len());
        for i in 0..n {
            for o in 0..m {
                let first = o / (m / group) * c_group;
                for map in maps {
                    let mut sum = zero;
                    for ch in 0..c_group {
                        let xs = &x[(i * c_group * group + first + ch) * plane..];
                        let ws = &w[(o * c_group + ch) * taps..];
                        for &(tap, at) in map {
                            sum = fma(sum, xs[at], ws[tap]);
                        }
                    }
                    out.push(bias.map_or(sum, |b| add(sum, b[o])));
                }
            }
        }
        out
    }
    let sizes = (n, m, group, c_group, plane, taps);
    match (x.data(), w.data()) {
        (Data::Float(xs), Data::Float(ws)) => {
            let bias = bias.and_then(Tensor::floats);
            Ok(Tensor::from_f64(x.elem(), shape, run(sizes, &maps, (xs, ws, bias), 0.0, |s, a, b| s + a * b, |a, b| a + b)))
        }
        (Data::Int(xs), Data::Int(ws)) => {
            let bias = bias.and_then(Tensor::integers);
            let out = run(sizes, &maps, (xs, ws, bias), 0, |s: i128, a: i128, b: i128| s.wrapping_add(a.wrapping_mul(b)), i128::wrapping_add);
            Ok(Tensor::from_int(x.elem(), shape, out))
        }
        _ => Err(OpError::new(format!("is not defined for {} and {}", x.elem(), w.elem()))),
    }
}

/// A `conv` with the geometry of `node` on other operands.
pub(in crate::ops) fn conv_of(b: &mut Builder, node: &Node, operands: &[Option<ValueId>]) -> Result<ValueId, OpError> {
    let attrs: Vec<(&str, Attr)> = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]
        .into_iter()
        .filter_map(|name| Some((name, node.attr(name)?)))
        .collect();
    Ok(b.multi("conv", operands, &attrs, 1)?[0])
}

/// `w - zero_point` in `i32`, where a 1-D zero point goes with the filters.
pub(in crate::ops) fn shifted_filters(b: &mut Builder, w: ValueId, zero: Option<ValueId>) -> Result<ValueId, OpError> {
    let rank = b.shape(w)?.len();
    match zero {
        Some(zero) if b.shape(zero)?.len() == 1 => {
            let axes: Vec<i64> = (1..rank as i64).collect();
            let zero = b.unsqueeze(zero, &axes)?;
            shifted(b, w, Some(zero), false)
        }
        _ => shifted(b, w, zero, false),
    }
}

pub(in crate::ops) fn fused_activation(b: &mut Builder, node: &Node, y: ValueId) -> Result<ValueId, OpError> {
    let params = node.floats("activation_params").unwrap_or_default();
    let param = |i: usize, default: f32| params.get(i).copied().unwrap_or(default);
    match node.text("activation").as_str() {
        "" => Ok(y),
        "Relu" => b.op("relu", &[y]),
        "Tanh" => b.op("tanh", &[y]),
        "Sigmoid" => b.op("sigmoid", &[y]),
        "LeakyRelu" => b.op_with("leaky_relu", &[y], [("alpha", param(0, 0.01).into())]),
        "HardSigmoid" => {
            b.op_with("hard_sigmoid", &[y], [("alpha", param(0, 0.2).into()), ("beta", param(1, 0.5).into())])
        }
        "HardSwish" => b.op("hard_swish", &[y]),
        "Swish" => b.op_with("swish", &[y], [("alpha", param(0, 1.0).into())]),
        "Gelu" => b.op("gelu", &[y]),
        "GeluTanh" => b.op_with("gelu", &[y], [("approximate", "tanh".into())]),
        "Clip" => {
            let least = b.lit(y, f64::from(param(0, f32::MIN)))?;
            let most = b.lit(y, f64::from(param(1, f32::MAX)))?;
            b.op("clip", &[y, least, most])
        }
        other => Err(OpError::new(format!("activation `{other}` is not known"))),
    }
}

fn decompose_causal(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    use super::compose::Len;
    let (x, w) = (node.need(0)?, node.need(1)?);
    let filters = b.shape(w)?;
    let (Some(c), Some(k)) = (filters.first().and_then(Dim::as_const), filters.get(2).and_then(Dim::as_const)) else {
        return Err(OpError::new("needs filters of known shape"));
    };
    let elem = b.elem(x)?;
    let past = match node.operand(3) {
        Some(past) => past,
        None => b.filled(elem, 0.0, &[Len::Of(x, 0), Len::Of(x, 1), Len::N(k - 1)])?,
    };
    let all = b.concat(&[past, x], 2)?;
    let y = b.multi("conv", &[Some(all), Some(w), node.operand(2)], &[("group", c.into())], 1)?[0];
    let y = match node.text("activation").as_str() {
        "" | "none" => y,
        "silu" | "swish" => {
            let s = b.op("sigmoid", &[y])?;
            b.op("mul", &[y, s])?
        }
        other => return Err(OpError::new(format!("activation `{other}` is not known"))),
    };
    // `-0` would mean the start, so a kernel of one tap keeps nothing by a slice that ends at 0.
    let state = if k == 1 { b.slice(all, 2, 0, 0)? } else { b.slice(all, 2, 1 - k, i64::MAX)? };
    Ok(vec![y, state])
}
