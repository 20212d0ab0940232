//! Products on codes.

use super::linear::dynamic_codes;
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::conv::{conv_of, infer_conv, shifted_filters};
use crate::ops::linear::{matmul_dims, matmul_type_shape, shifted, times};
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type, ValueId};

/// Convolution of codes.
pub static QLINEAR_CONV: OpDef = OpDef {
    name: "qlinear_conv",
    summary: "quantize(conv of codes in i32 * x_scale * w_scale), bias in i32",
    source: "ONNX QLinearConv-10",
    operands: &[
        Operand::One("x"),
        Operand::One("x_scale"),
        Operand::One("x_zero_point"),
        Operand::One("w"),
        Operand::One("w_scale"),
        Operand::One("w_zero_point"),
        Operand::One("y_scale"),
        Operand::One("y_zero_point"),
        Operand::Optional("b"),
    ],
    attrs: crate::ops::conv::CONV_ATTRS,
    infer: |ctx| infer_conv(ctx, 0, 3, ctx.elem(7)?),
    decompose: Some(|b, node| {
        let x = shifted(b, node.need(0)?, node.operand(2), false)?;
        let w = shifted_filters(b, node.need(3)?, node.operand(5))?;
        let y = conv_of(b, node, &[Some(x), Some(w), node.operand(8)])?;
        let rank = b.shape(y)?.len() as i64;
        let mut w_scale = node.need(4)?;
        if b.shape(w_scale)?.len() == 1 {
            let axes: Vec<i64> = (1..rank - 1).collect();
            w_scale = b.unsqueeze(w_scale, &axes)?;
        }
        let x_scale = scalar(b, node.need(1)?)?;
        let scale = b.op("mul", &[x_scale, w_scale])?;
        Ok(vec![requantize(b, y, scale, node.need(6)?, node.need(7)?)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Product of codes.
pub static QLINEAR_MATMUL: OpDef = OpDef {
    name: "qlinear_matmul",
    summary: "quantize(matmul of codes in i32 * a_scale * b_scale)",
    source: "ONNX QLinearMatMul-21",
    operands: &[
        Operand::One("a"),
        Operand::One("a_scale"),
        Operand::One("a_zero_point"),
        Operand::One("b"),
        Operand::One("b_scale"),
        Operand::One("b_zero_point"),
        Operand::One("y_scale"),
        Operand::One("y_zero_point"),
    ],
    infer: |ctx| {
        Ok(vec![Type::Tensor(TensorType { elem: ctx.elem(7)?, shape: matmul_type_shape(ctx, 0, 3)? })])
    },
    decompose: Some(|b, node| {
        let (a, w) = (node.need(0)?, node.need(3)?);
        if b.elem(a)?.is_float() {
            return qlinear_matmul_float(b, node);
        }
        let a = shifted(b, a, node.operand(2), true)?;
        let w = shifted(b, w, node.operand(5), false)?;
        let y = b.op("matmul", &[a, w])?;
        let a_scale = rows(b, node.need(1)?)?;
        let scale = b.op("mul", &[a_scale, node.need(4)?])?;
        Ok(vec![requantize(b, y, scale, node.need(6)?, node.need(7)?)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Product of numbers, quantized on the way, and codes.
pub static DYNAMIC_QUANTIZE_MATMUL: OpDef = OpDef {
    name: "dynamic_quantize_matmul",
    summary: "dynamic_quantize_linear(a) times the codes b, as numbers, plus bias",
    source: "ONNX Runtime com.microsoft DynamicQuantizeMatMul-1",
    operands: &[
        Operand::One("a"),
        Operand::One("b"),
        Operand::One("b_scale"),
        Operand::Optional("b_zero_point"),
        Operand::Optional("bias"),
    ],
    infer: |ctx| {
        Ok(vec![Type::Tensor(TensorType { elem: ctx.elem(0)?, shape: matmul_type_shape(ctx, 0, 1)? })])
    },
    decompose: Some(|b, node| {
        let (a, scale, zero) = dynamic_codes(b, node.need(0)?)?;
        let y = product(b, (a, scale, Some(zero)), (node.need(1)?, node.need(2)?, node.operand(3)))?;
        Ok(vec![biased(b, y, node.operand(4))?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-4),
    ..OpDef::BASE
};

/// Product of codes as numbers.
pub static MATMUL_INTEGER_TO_FLOAT: OpDef = OpDef {
    name: "matmul_integer_to_float",
    summary: "matmul of codes in i32 * a_scale * b_scale + bias",
    source: "ONNX Runtime com.microsoft MatMulIntegerToFloat-1",
    operands: &[
        Operand::One("a"),
        Operand::One("b"),
        Operand::One("a_scale"),
        Operand::One("b_scale"),
        Operand::Optional("a_zero_point"),
        Operand::Optional("b_zero_point"),
        Operand::Optional("bias"),
    ],
    infer: |ctx| {
        Ok(vec![Type::Tensor(TensorType { elem: ctx.elem(2)?, shape: matmul_type_shape(ctx, 0, 1)? })])
    },
    decompose: Some(|b, node| {
        let left = (node.need(0)?, node.need(2)?, node.operand(4));
        let y = product(b, left, (node.need(1)?, node.need(3)?, node.operand(5)))?;
        Ok(vec![biased(b, y, node.operand(6))?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Scaled product of codes with bias.
pub static QGEMM: OpDef = OpDef {
    name: "qgemm",
    summary: "alpha * a' b' on codes plus i32 bias; quantized if an output scale is given, else f32",
    source: "ONNX Runtime com.microsoft QGemm-1",
    operands: &[
        Operand::One("a"),
        Operand::One("a_scale"),
        Operand::One("a_zero_point"),
        Operand::One("b"),
        Operand::One("b_scale"),
        Operand::One("b_zero_point"),
        Operand::Optional("c"),
        Operand::Optional("y_scale"),
        Operand::Optional("y_zero_point"),
    ],
    attrs: &[
        AttrDef::new("alpha", AttrKind::Float, Default::Float(1.0), "factor of the product"),
        AttrDef::new("transA", AttrKind::Int, Default::Int(0), "transpose `a`"),
        AttrDef::new("transB", AttrKind::Int, Default::Int(0), "transpose `b`"),
    ],
    infer: infer_qgemm,
    decompose: Some(|b, node| {
        let mut a = shifted(b, node.need(0)?, node.operand(2), false)?;
        let (mut w, trans_b) = (node.need(3)?, node.flag("transB"));
        if trans_b {
            w = b.transpose(w, &[1, 0])?;
        }
        let w = shifted(b, w, node.operand(5), false)?;
        if node.flag("transA") {
            a = b.transpose(a, &[1, 0])?;
        }
        let mut y = b.op("matmul", &[a, w])?;
        if let Some(c) = node.operand(6) {
            y = b.op("add", &[y, c])?;
        }
        let scale = b.op("mul", &[node.need(1)?, node.need(4)?])?;
        let scale = times(b, scale, node.float("alpha").unwrap_or(1.0))?;
        match (node.operand(7), node.operand(8)) {
            (Some(y_scale), Some(zero)) => Ok(vec![requantize(b, y, scale, y_scale, zero)?]),
            _ => {
                let y = b.cast(y, ElemType::F32)?;
                Ok(vec![b.op("mul", &[y, scale])?])
            }
        }
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// A one-element tensor as a scalar.
fn scalar(b: &mut Builder, v: ValueId) -> Result<ValueId, OpError> {
    if b.shape(v)?.is_empty() { Ok(v) } else { b.reshape(v, &[]) }
}

/// Per-row parameters as a column.
fn rows(b: &mut Builder, v: ValueId) -> Result<ValueId, OpError> {
    match b.shape(v)?.as_slice() {
        [n] if n.as_const() != Some(1) => b.unsqueeze(v, &[-1]),
        [_] => b.reshape(v, &[]),
        _ => Ok(v),
    }
}

/// `saturate(round(y * (scale / y_scale)) + zero)`.
pub(super) fn requantize(
    b: &mut Builder,
    y: ValueId,
    scale: ValueId,
    y_scale: ValueId,
    zero: ValueId,
) -> Result<ValueId, OpError> {
    let elem = b.elem(zero)?;
    let (least, most) = elem.int_range().ok_or_else(|| OpError::new(format!("codes of type {elem} are not defined")))?;
    let scale = b.cast(scale, ElemType::F32)?;
    let y_scale = scalar(b, y_scale)?;
    let y_scale = b.cast(y_scale, ElemType::F32)?;
    let factor = b.op("div", &[scale, y_scale])?;
    let y = b.cast(y, ElemType::F32)?;
    let y = b.op("mul", &[y, factor])?;
    let y = b.op("round", &[y])?;
    let zero = scalar(b, zero)?;
    let zero = b.cast(zero, ElemType::F32)?;
    let y = b.op("add", &[y, zero])?;
    let (least, most) = (b.lit(y, least as f64)?, b.lit(y, most as f64)?);
    let y = b.op("clip", &[y, least, most])?;
    b.cast(y, elem)
}

type Codes = (ValueId, ValueId, Option<ValueId>);

/// Product of codes `(codes, scale, zero point)` as numbers.
fn product(b: &mut Builder, left: Codes, right: Codes) -> Result<ValueId, OpError> {
    let x = shifted(b, left.0, left.2, true)?;
    let w = shifted(b, right.0, right.2, false)?;
    let y = b.op("matmul", &[x, w])?;
    let left_scale = rows(b, left.1)?;
    let scale = b.op("mul", &[left_scale, right.1])?;
    let elem = b.elem(scale)?;
    let y = b.cast(y, elem)?;
    b.op("mul", &[y, scale])
}

fn biased(b: &mut Builder, y: ValueId, bias: Option<ValueId>) -> Result<ValueId, OpError> {
    match bias {
        Some(bias) => b.op("add", &[y, bias]),
        None => Ok(y),
    }
}

fn qlinear_matmul_float(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let mut sides = vec![];
    for i in [0, 3] {
        let v = b.cast(node.need(i)?, ElemType::F32)?;
        let scale = if i == 0 { rows(b, node.need(1)?)? } else { node.need(4)? };
        let scale = b.cast(scale, ElemType::F32)?;
        sides.push(b.op("mul", &[v, scale])?);
    }
    let y = b.op("matmul", &sides)?;
    let scale = b.cast(node.need(6)?, ElemType::F32)?;
    Ok(vec![b.op("quantize_linear", &[y, scale, node.need(7)?])?])
}

fn infer_qgemm(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = if ctx.has(8) { ctx.elem(8)? } else { ElemType::F32 };
    let side = |i: usize, flag: &str| -> Result<[Dim; 2], OpError> {
        match ctx.shape(i)? {
            Some([r, c]) => Ok(if ctx.flag(flag) { [c.clone(), r.clone()] } else { [r.clone(), c.clone()] }),
            Some(s) => Err(OpError::new(format!("operand {i} must be a matrix, found rank {}", s.len()))),
            None => Ok([ctx.fresh_dim(), ctx.fresh_dim()]),
        }
    };
    Ok(vec![Type::tensor(elem, matmul_dims(&side(0, "transA")?, &side(3, "transB")?)?)])
}
