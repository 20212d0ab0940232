//! ONNX Runtime's ops from codes to codes: decode, compute, encode.

use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::window::WindowAttrs;
use crate::ops::{
    AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance, broadcast_dims, resolve_axis,
};
use crate::types::TensorType;
use crate::{Attr, Dim, Type, ValueId};

macro_rules! binary {
    ($ident:ident $name:literal $op:literal $source:literal) => {
        #[doc = concat!("`", $op, "` on codes.")]
        pub static $ident: OpDef = OpDef {
            name: $name,
            summary: concat!("quantize(", $op, "(dequantize(a), dequantize(b)))"),
            source: $source,
            operands: &[
                Operand::One("a"),
                Operand::One("a_scale"),
                Operand::Optional("a_zero_point"),
                Operand::One("b"),
                Operand::One("b_scale"),
                Operand::Optional("b_zero_point"),
                Operand::One("c_scale"),
                Operand::Optional("c_zero_point"),
            ],
            infer: |ctx| {
                let shape = match (ctx.shape(0)?, ctx.shape(3)?) {
                    (Some(a), Some(b)) => Some(broadcast_dims(a, b)?),
                    _ => None,
                };
                Ok(vec![Type::Tensor(TensorType { elem: ctx.elem(0)?, shape })])
            },
            decompose: Some(|b, node| {
                let x = decode(b, node, 0)?;
                let y = decode(b, node, 3)?;
                let sum = b.op($op, &[x, y])?;
                Ok(vec![encode(b, node, sum, 6)?])
            }),
            tolerance: Tolerance::Rounding(1),
            ..OpDef::BASE
        };
    };
}

binary!(QLINEAR_ADD "qlinear_add" "add" "ONNX Runtime com.microsoft QLinearAdd-1");
binary!(QLINEAR_MUL "qlinear_mul" "mul" "ONNX Runtime com.microsoft QLinearMul-1");

const UNARY: &[Operand] = &[
    Operand::One("x"),
    Operand::One("x_scale"),
    Operand::Optional("x_zero_point"),
    Operand::One("y_scale"),
    Operand::Optional("y_zero_point"),
];

const CHANNELS_LAST: AttrDef =
    AttrDef::new("channels_last", AttrKind::Int, Default::Int(0), "the channel axis is the last one");

/// Sigmoid on codes.
pub static QLINEAR_SIGMOID: OpDef = OpDef {
    name: "qlinear_sigmoid",
    summary: "quantize(sigmoid(dequantize(x)))",
    source: "ONNX Runtime com.microsoft QLinearSigmoid-1",
    operands: UNARY,
    infer: same,
    decompose: Some(|b, node| {
        let x = decode(b, node, 0)?;
        let y = b.op("sigmoid", &[x])?;
        Ok(vec![encode(b, node, y, 3)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Leaky ReLU on codes.
pub static QLINEAR_LEAKY_RELU: OpDef = OpDef {
    name: "qlinear_leaky_relu",
    summary: "quantize(leaky_relu(dequantize(x)))",
    source: "ONNX Runtime com.microsoft QLinearLeakyRelu-1",
    operands: UNARY,
    attrs: &[AttrDef::new("alpha", AttrKind::Float, Default::Float(0.01), "slope below zero")],
    infer: same,
    decompose: Some(|b, node| {
        let x = decode(b, node, 0)?;
        let alpha = node.float("alpha").unwrap_or(0.01) as f32;
        let y = b.op_with("leaky_relu", &[x], [("alpha", alpha.into())])?;
        Ok(vec![encode(b, node, y, 3)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Average pool on codes.
pub static QLINEAR_AVERAGE_POOL: OpDef = OpDef {
    name: "qlinear_average_pool",
    summary: "quantize(average_pool(dequantize(x)))",
    source: "ONNX Runtime com.microsoft QLinearAveragePool-1",
    operands: UNARY,
    attrs: &[
        AttrDef::new("auto_pad", AttrKind::Str, Default::Str("NOTSET"), "NOTSET, VALID, SAME_UPPER or SAME_LOWER"),
        AttrDef::new("ceil_mode", AttrKind::Int, Default::Int(0), "round the number of windows up"),
        CHANNELS_LAST,
        AttrDef::new("count_include_pad", AttrKind::Int, Default::Int(0), "padding counts as zeros"),
        AttrDef::new("kernel_shape", AttrKind::Ints, Default::Required, "taps per axis"),
        AttrDef::new("pads", AttrKind::Ints, Default::Absent, "padding: begins, then ends; 0 each"),
        AttrDef::new("strides", AttrKind::Ints, Default::Absent, "steps between windows; 1 each"),
    ],
    infer: |ctx| {
        pooled(ctx, |ctx, spatial| {
            let kernel = ctx.ints("kernel_shape").unwrap_or_default();
            WindowAttrs::read(ctx.node, kernel)?.out_dims(spatial)
        })
    },
    decompose: Some(|b, node| {
        let attrs: Vec<(&str, Attr)> = ["auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"]
            .into_iter()
            .filter_map(|name| Some((name, node.attr(name)?)))
            .collect();
        channels_first(b, node, |b, x| Ok(b.multi("average_pool", &[Some(x)], &attrs, 1)?[0]))
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Mean of every channel on codes.
pub static QLINEAR_GLOBAL_AVERAGE_POOL: OpDef = OpDef {
    name: "qlinear_global_average_pool",
    summary: "quantize(global_average_pool(dequantize(x)))",
    source: "ONNX Runtime com.microsoft QLinearGlobalAveragePool-1",
    operands: UNARY,
    attrs: &[CHANNELS_LAST],
    infer: |ctx| pooled(ctx, |_, spatial| Ok(vec![Dim::from(1i64); spatial.len()])),
    decompose: Some(|b, node| channels_first(b, node, |b, x| b.op("global_average_pool", &[x]))),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Concatenation of codes with scales of their own.
pub static QLINEAR_CONCAT: OpDef = OpDef {
    name: "qlinear_concat",
    summary: "quantize(concat of dequantized operands); operands come as codes, scale, zero point",
    source: "ONNX Runtime com.microsoft QLinearConcat-1",
    operands: &[Operand::One("y_scale"), Operand::One("y_zero_point"), Operand::Variadic("inputs")],
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Required, "axis to join along")],
    infer: |ctx| {
        let n = ctx.types.len();
        if n < 5 || (n - 2) % 3 != 0 {
            return Err(OpError::new("operands must be codes, scale and zero point each"));
        }
        let elem = ctx.elem(1)?;
        let mut sum: Option<Vec<Dim>> = None;
        for i in (2..n).step_by(3) {
            let Some(shape) = ctx.shape(i)? else { return Ok(vec![Type::unranked(elem)]) };
            let axis = resolve_axis(ctx.int("axis")?, shape.len())?;
            sum = Some(match sum {
                None => shape.to_vec(),
                Some(mut all) if all.len() == shape.len() => {
                    all[axis] = &all[axis] + &shape[axis];
                    all
                }
                Some(_) => return Err(OpError::new("operands must have one rank")),
            });
        }
        Ok(vec![Type::Tensor(TensorType { elem, shape: sum })])
    },
    decompose: Some(|b, node| {
        let mut parts = vec![];
        for i in (2..node.operands.len()).step_by(3) {
            parts.push(decode(b, node, i)?);
        }
        let y = b.concat(&parts, node.int("axis")?)?;
        Ok(vec![encode(b, node, y, 0)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Softmax on codes.
pub static QLINEAR_SOFTMAX: OpDef = OpDef {
    name: "qlinear_softmax",
    summary: "quantize(softmax(dequantize(x)))",
    source: "ONNX Runtime com.microsoft QLinearSoftmax-1",
    operands: UNARY,
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "axis that sums to one"),
        AttrDef::new("opset", AttrKind::Int, Default::Required, "below 13, all axes from `axis` on sum to one"),
    ],
    infer: same,
    decompose: Some(|b, node| {
        use crate::ops::compose::Len;
        let x = decode(b, node, 0)?;
        let rank = b.shape(x)?.len();
        let axis = resolve_axis(node.int("axis")?, rank)?;
        let y = if node.int("opset")? >= 13 || axis + 1 == rank {
            b.op_with("softmax", &[x], [("axis", (axis as i64).into())])?
        } else {
            let mut lens: Vec<Len> = (0..axis).map(|i| Len::Of(x, i)).collect();
            lens.push(Len::N(-1));
            let flat = b.reshape(x, &lens)?;
            let y = b.op("softmax", &[flat])?;
            let lens: Vec<Len> = (0..rank).map(|i| Len::Of(x, i)).collect();
            b.reshape(y, &lens)?
        };
        Ok(vec![encode(b, node, y, 3)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

fn same(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    ctx.elem(0)?;
    Ok(vec![ctx.ty(0)?.clone()])
}

/// Numbers of the codes, scale and zero point at operands `i`, `i + 1`, `i + 2`.
fn decode(b: &mut Builder, node: &Node, i: usize) -> Result<ValueId, OpError> {
    let operands = [Some(node.need(i)?), Some(node.need(i + 1)?), node.operand(i + 2)];
    Ok(b.multi("dequantize_linear", &operands, &[], 1)?[0])
}

/// Codes of `y` by the scale and zero point at operands `i`, `i + 1`, in the type of operand 0.
fn encode(b: &mut Builder, node: &Node, y: ValueId, i: usize) -> Result<ValueId, OpError> {
    let operands = [Some(y), Some(node.need(i)?), node.operand(i + 1)];
    let elem = match node.operand(i + 1) {
        Some(zero) => b.elem(zero)?,
        None => b.elem(node.need(0)?)?,
    };
    Ok(b.multi("quantize_linear", &operands, &[("output_dtype", elem.into())], 1)?[0])
}

fn pooled(
    ctx: &InferCtx,
    out: impl Fn(&InferCtx, &[Dim]) -> Result<Vec<Dim>, OpError>,
) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    Ok(vec![match ctx.shape(0)? {
        None => Type::unranked(elem),
        Some(s) if s.len() < 3 => return Err(OpError::new("operand 0 must have spatial axes")),
        Some([n, rest @ .., c]) if ctx.flag("channels_last") => {
            let mut shape = vec![n.clone()];
            shape.extend(out(ctx, rest)?);
            shape.push(c.clone());
            Type::tensor(elem, shape)
        }
        Some(s) => {
            let mut shape = s[..2].to_vec();
            shape.extend(out(ctx, &s[2..])?);
            Type::tensor(elem, shape)
        }
    }])
}

fn channels_first(
    b: &mut Builder,
    node: &Node,
    f: impl Fn(&mut Builder, ValueId) -> Result<ValueId, OpError>,
) -> Result<Vec<ValueId>, OpError> {
    let mut x = decode(b, node, 0)?;
    let rank = b.shape(x)?.len();
    let last = node.flag("channels_last") && rank > 2;
    if last {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.remove(rank - 1);
        perm.insert(1, rank - 1);
        x = b.transpose(x, &perm)?;
    }
    let mut y = f(b, x)?;
    if last {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.remove(1);
        perm.push(1);
        y = b.transpose(y, &perm)?;
    }
    Ok(vec![encode(b, node, y, 3)?])
}
