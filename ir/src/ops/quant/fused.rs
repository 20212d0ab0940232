//! Products of codes with everything around them: what rewriting makes of `dequantize_linear`, a product, its bias, a
//! clamp and `quantize_linear`, so that a backend can do it in integers and in one pass over the result. What may follow is in
//! [`tail`].

use super::tail;
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::conv::{CONV_ATTRS, conv_of, infer_conv};
use crate::ops::linear::{matmul_type_shape, shifted};
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::types::TensorType;
use crate::{ElemType, Type, ValueId};

const OPERANDS: &[Operand] = &tail::operands([
    Operand::One("a"),
    Operand::One("a_zero_point"),
    Operand::One("b"),
    Operand::One("scale"),
    Operand::Optional("bias"),
    Operand::Optional("y_zero_point"),
]);
const LO: AttrDef = AttrDef::new("lo", AttrKind::Float, Default::Absent, "lower bound before rounding");
const HI: AttrDef = AttrDef::new("hi", AttrKind::Float, Default::Absent, "upper bound before rounding");

/// A product of codes with a constant matrix of codes.
pub static QUANTIZED_LINEAR: OpDef = OpDef {
    name: "quantized_linear",
    summary: "clamp((a - a_zero_point) b * scale + bias, lo, hi), with scale and bias for each column; with \
              y_zero_point its code, saturate(round(..) + y_zero_point), and what its tail makes of it",
    source: "Lapidary; the parts are ONNX DequantizeLinear-28, MatMul-13 and QuantizeLinear-28",
    operands: OPERANDS,
    attrs: &[LO, HI],
    infer: |ctx| {
        let shape = matmul_type_shape(ctx, 0, 2)?;
        let ty = Type::Tensor(TensorType { elem: result(ctx)?, shape });
        tail::check(ctx, &ty)?;
        Ok(vec![ty])
    },
    decompose: Some(|b, node| {
        let a = shifted(b, node.need(0)?, node.operand(1), false)?;
        let w = b.cast(node.need(2)?, ElemType::I32)?;
        let sums = b.op("matmul", &[a, w])?;
        Ok(vec![of_sums(b, node, sums, 0)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// A convolution of codes with constant filters of codes.
pub static QUANTIZED_CONV: OpDef = OpDef {
    name: "quantized_conv",
    summary: "clamp(conv(a - a_zero_point, b) * scale + bias, lo, hi), with scale and bias for each output channel; \
              with y_zero_point its code, saturate(round(..) + y_zero_point), and what its tail makes of it",
    source: "Lapidary; the parts are ONNX DequantizeLinear-28, Conv-22 and QuantizeLinear-28",
    operands: OPERANDS,
    attrs: &{
        let [auto_pad, dilations, group, kernel_shape, pads, strides] = *CONV_ATTRS else { panic!("the list of conv has these") };
        [auto_pad, dilations, group, kernel_shape, pads, strides, LO, HI]
    },
    infer: |ctx| {
        let types = infer_conv(ctx, 0, 2, result(ctx)?)?;
        types.iter().try_for_each(|ty| tail::check(ctx, ty))?;
        Ok(types)
    },
    decompose: Some(|b, node| {
        let x = shifted(b, node.need(0)?, node.operand(1), false)?;
        let w = b.cast(node.need(2)?, ElemType::I32)?;
        let sums = conv_of(b, node, &[Some(x), Some(w)])?;
        let spatial = b.shape(sums)?.len().saturating_sub(2);
        Ok(vec![of_sums(b, node, sums, spatial)?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// A function of an 8-bit code, as a table.
pub static LOOKUP: OpDef = OpDef {
    name: "lookup",
    summary: "table[x], where the bits of x are an unsigned number",
    source: "Lapidary; the chain of ops that it stands for is a function of one code",
    operands: &[Operand::One("x"), Operand::One("table")],
    infer: |ctx| {
        if !matches!(ctx.elem(0)?, ElemType::U8 | ElemType::I8) {
            return Err(OpError::new("only codes of 8 bits are looked up"));
        }
        if let Some(table) = ctx.shape(1)?
            && (table.len() != 1 || table[0].as_const().is_some_and(|n| n != 256))
        {
            return Err(OpError::new("the table must have 256 elements"));
        }
        Ok(vec![Type::Tensor(TensorType { elem: ctx.elem(1)?, shape: ctx.shape(0)?.map(<[_]>::to_vec) })])
    },
    decompose: Some(|b, node| {
        let index = b.cast(node.need(0)?, ElemType::U8)?;
        let index = b.cast(index, ElemType::I32)?;
        Ok(vec![b.op_with("gather", &[node.need(1)?, index], [("axis", 0i64.into())])?])
    }),
    ..OpDef::BASE
};

fn result(ctx: &InferCtx) -> Result<ElemType, OpError> {
    let codes = |i| Ok::<_, OpError>(matches!(ctx.elem(i)?, ElemType::U8 | ElemType::I8));
    if !codes(0)? || !codes(2)? || ctx.elem(1)? != ctx.elem(0)? {
        return Err(OpError::new("operands must be codes of 8 bits, and the zero point one of `a`"));
    }
    if ctx.elem(3)? != ElemType::F32 || ctx.has(4) && ctx.elem(4)? != ElemType::F32 {
        return Err(OpError::new("scale and bias must be f32"));
    }
    match ctx.has(5) {
        false => Ok(ElemType::F32),
        true if codes(5)? => tail::elem(ctx, ctx.elem(5)?),
        true => Err(OpError::new("the result's zero point must be a code of 8 bits")),
    }
}

/// The result from sums in `i32`; columns are followed by this many axes.
fn of_sums(b: &mut Builder, node: &Node, sums: ValueId, after: usize) -> Result<ValueId, OpError> {
    let axes: Vec<i64> = (1..=after as i64).collect();
    let column = |b: &mut Builder, v: ValueId| if after == 0 { Ok(v) } else { b.unsqueeze(v, &axes) };
    let mut y = b.cast(sums, ElemType::F32)?;
    let scale = column(b, node.need(3)?)?;
    y = b.op("mul", &[y, scale])?;
    if let Some(bias) = node.operand(4) {
        let bias = column(b, bias)?;
        y = b.op("add", &[y, bias])?;
    }
    for (name, op) in [("lo", "max"), ("hi", "min")] {
        if let Some(bound) = node.float(name) {
            let bound = b.lit(y, bound)?;
            y = b.op(op, &[y, bound])?;
        }
    }
    let Some(zero) = node.operand(5) else { return Ok(y) };
    let elem = b.elem(zero)?;
    let (least, most) = elem.int_range().ok_or_else(|| OpError::new(format!("codes of type {elem} are not defined")))?;
    y = b.op("round", &[y])?;
    let zero = b.cast(zero, ElemType::F32)?;
    y = b.op("add", &[y, zero])?;
    let (least, most) = (b.lit(y, least as f64)?, b.lit(y, most as f64)?);
    y = b.op("clip", &[y, least, most])?;
    y = b.cast(y, elem)?;
    tail::apply(b, node, y, column)
}
