//! Products with everything that follows them: what rewriting makes of `matmul`, `add` and an activation, so that a
//! backend can do it in one pass over the result. (A convolution's fused form is `fused_conv`.)

use super::conv::fused_activation;
use super::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::types::TensorType;
use crate::{Dim, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[&FUSED_LINEAR];

/// A product with its epilogue.
pub static FUSED_LINEAR: OpDef = OpDef {
    name: "fused_linear",
    summary: "activation(matmul(a, b) + bias + residual); `b` is a matrix, `bias` a row, `residual` has the result's shape",
    source: "Lapidary; the parts are ONNX MatMul-13, Add-14 and the activation's own op",
    operands: &[Operand::One("a"), Operand::One("b"), Operand::Optional("bias"), Operand::Optional("residual")],
    attrs: &[
        AttrDef::new("activation", AttrKind::Str, Default::Absent, "as `fused_conv`'s; none if absent"),
        AttrDef::new("activation_params", AttrKind::Floats, Default::Absent, "parameters of the activation"),
    ],
    infer: infer_linear,
    decompose: Some(|b, node| {
        let mut y = b.op("matmul", &[node.need(0)?, node.need(1)?])?;
        for addend in [node.operand(2), node.operand(3)].into_iter().flatten() {
            y = b.op("add", &[y, addend])?;
        }
        Ok(vec![fused_activation(b, node, y)?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

fn infer_linear(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if (1..4).any(|i| ctx.has(i) && ctx.elem(i) != Ok(elem)) {
        return Err(OpError::new("operands must have one element type"));
    }
    let (Some(a), Some(b)) = (ctx.shape(0)?, ctx.shape(1)?) else { return Ok(vec![Type::unranked(elem)]) };
    let ([lead @ .., k], [kb, n]) = (a, b) else { return Err(OpError::new("`b` must be a matrix and `a` at least a vector")) };
    if let (Some(k), Some(kb)) = (k.as_const(), kb.as_const())
        && k != kb
    {
        return Err(OpError::new(format!("inner dimensions {k} and {kb} differ")));
    }
    let shape: Vec<Dim> = lead.iter().chain([n]).cloned().collect();
    Ok(vec![Type::Tensor(TensorType { elem, shape: Some(shape) })])
}
