//! Products with everything that follows them: what rewriting makes of `matmul`, `add` and an activation, so that a
//! backend can do it in one pass over the result (a convolution's fused form is `fused_conv`); and products with parts of weights,
//! the last of which may be left out.

use super::conv::fused_activation;
use super::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[&FUSED_LINEAR, &REFINE];

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
    infer: |ctx| infer_product(ctx, 4),
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

/// A product with a part of a weight, added to what the parts before it gave.
pub static REFINE: OpDef = OpDef {
    name: "refine",
    summary: "sum + matmul(a, b) where more than `part` parts of the weights are used, else sum (zeros without it); `detail` is how many are",
    source: "Lapidary; loading as much of a weight as there is room for: BitStack, section 3",
    operands: &[Operand::One("a"), Operand::One("b"), Operand::Optional("sum"), Operand::One("detail")],
    attrs: &[AttrDef::new("part", AttrKind::Int, Default::Required, "number of the part among all weights' parts, from 0 on")],
    infer: |ctx| {
        if ctx.elem(3)? != ElemType::I64 {
            return Err(OpError::new("`detail` is an i64"));
        }
        infer_product(ctx, 3)
    },
    decompose: Some(|b, node| {
        let [a, w, detail] = [node.need(0)?, node.need(1)?, node.need(3)?];
        let y = b.op("matmul", &[a, w])?;
        let (refined, sum) = match node.operand(2) {
            Some(sum) => (b.op("add", &[sum, y])?, sum),
            None => (y, b.scalar(b.elem(y)?, 0.0)),
        };
        let part = b.scalar(ElemType::I64, node.int("part")? as f64);
        let is_used = b.op("greater", &[detail, part])?;
        Ok(vec![b.op("where", &[is_used, refined, sum])?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// The type of a product of the first two operands, of which those before `end` have the element type.
fn infer_product(ctx: &InferCtx, end: usize) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if (1..end).any(|i| ctx.has(i) && ctx.elem(i) != Ok(elem)) {
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
