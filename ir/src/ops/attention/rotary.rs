//! Rotary position embeddings.

use super::scaled::known;
use crate::builder::Builder;
use crate::ops::compose::Len;
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::{Type, ValueId};

const INTERLEAVED: AttrDef =
    AttrDef::new("interleaved", AttrKind::Int, Default::Int(0), "pairs are neighbours, not halves");
const DIM: AttrDef =
    AttrDef::new("rotary_embedding_dim", AttrKind::Int, Default::Int(0), "leading part of each head to rotate; 0: all");

/// ONNX's rotary embedding.
pub static ROTARY_EMBEDDING: OpDef = OpDef {
    name: "rotary_embedding",
    summary: "rotates pairs of each head by the angles of its position",
    source: "ONNX RotaryEmbedding-23; RoFormer (arXiv 2104.09864)",
    operands: &[
        Operand::One("x"),
        Operand::One("cos_cache"),
        Operand::One("sin_cache"),
        Operand::Optional("position_ids"),
    ],
    attrs: &[
        INTERLEAVED,
        AttrDef::new("num_heads", AttrKind::Int, Default::Absent, "heads of an operand of rank 3"),
        DIM,
    ],
    infer: same,
    decompose: Some(|b, node| {
        let x = node.need(0)?;
        let (cos, sin) = (node.need(1)?, node.need(2)?);
        let heads = match b.shape(x)?.len() {
            3 => Some(node.int("num_heads")?),
            _ => None,
        };
        let angles = match node.operand(3) {
            Some(ids) => angles_at(b, cos, sin, ids)?,
            None => (cos, sin),
        };
        Ok(vec![rotate(b, x, heads, angles, node.int("rotary_embedding_dim")?, node.flag("interleaved"))?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// ONNX Runtime's rotary embedding.
pub static MS_ROTARY_EMBEDDING: OpDef = OpDef {
    name: "ms_rotary_embedding",
    summary: "rotates pairs of each head by the angles of its position; one id is an offset",
    source: "ONNX Runtime com.microsoft RotaryEmbedding-1",
    operands: &[
        Operand::One("input"),
        Operand::One("position_ids"),
        Operand::One("cos_cache"),
        Operand::One("sin_cache"),
    ],
    attrs: &[
        INTERLEAVED,
        AttrDef::new("is_packed_batching", AttrKind::Int, Default::Int(0), "must be 0"),
        AttrDef::new("num_heads", AttrKind::Int, Default::Int(0), "heads of an operand of rank 3; 0: by the caches"),
        DIM,
        AttrDef::new("scale", AttrKind::Float, Default::Float(1.0), "must be 1"),
    ],
    infer: |ctx| {
        if ctx.flag("is_packed_batching") || ctx.float("scale") != Some(1.0) {
            return Err(OpError::new("attributes `is_packed_batching` and `scale` must have their defaults"));
        }
        same(ctx)
    },
    decompose: Some(|b, node| {
        let (x, ids, cos, sin) = (node.need(0)?, node.need(1)?, node.need(2)?, node.need(3)?);
        let packed = b.shape(x)?.len() == 3;
        let heads = match (packed, node.int("num_heads")?) {
            (false, _) => None,
            (true, 0) => Some(known(b, x, 2)? / (known(b, cos, 1)? * 2).max(1)),
            (true, heads) => Some(heads),
        };
        let ids = match b.shape(ids)?.len() {
            2 => ids,
            _ => {
                let steps = b.iota(Len::Of(x, if packed { 1 } else { 2 }))?;
                let ids = b.op("add", &[steps, ids])?;
                b.unsqueeze(ids, &[0])?
            }
        };
        let angles = angles_at(b, cos, sin, ids)?;
        Ok(vec![rotate(b, x, heads, angles, node.int("rotary_embedding_dim")?, node.flag("interleaved"))?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

fn same(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    ctx.elem(0)?;
    match ctx.shape(0)?.map(<[_]>::len) {
        None | Some(3 | 4) => Ok(vec![ctx.ty(0)?.clone()]),
        Some(rank) => Err(OpError::new(format!("operand 0 must have rank 3 or 4, found {rank}"))),
    }
}

/// Rows of both caches at positions `[b, s]`.
pub(super) fn angles_at(b: &mut Builder, cos: ValueId, sin: ValueId, ids: ValueId) -> Result<(ValueId, ValueId), OpError> {
    let cos = b.op_with("gather", &[cos, ids], [("axis", 0i64.into())])?;
    let sin = b.op_with("gather", &[sin, ids], [("axis", 0i64.into())])?;
    Ok((cos, sin))
}

/// Rotates `[b, h, s, d]`, or `[b, s, h * d]` if heads are given, by angles `[b, s, pairs]`.
pub(super) fn rotate(
    b: &mut Builder,
    x: ValueId,
    heads: Option<i64>,
    (cos, sin): (ValueId, ValueId),
    dim: i64,
    interleaved: bool,
) -> Result<ValueId, OpError> {
    // Heads stay where they are: an axis more, and no copy.
    let (four, head_axis) = match heads {
        Some(heads) if heads < 1 => return Err(OpError::new("the number of heads must be positive")),
        Some(heads) => {
            let size = known(b, x, 2)? / heads;
            (b.reshape(x, &[Len::Of(x, 0), Len::Of(x, 1), Len::N(heads), Len::N(size)])?, 2)
        }
        None => (x, 1),
    };
    let size = known(b, four, 3)?;
    let dim = if dim == 0 { size } else { dim };
    if dim < 2 || dim > size || dim % 2 != 0 {
        return Err(OpError::new(format!("{dim} of {size} numbers per head cannot be rotated in pairs")));
    }
    let (cos, sin) = (b.unsqueeze(cos, &[head_axis])?, b.unsqueeze(sin, &[head_axis])?);
    let turned = if dim == size { four } else { b.slice(four, 3, 0, dim)? };
    let (re, im) = if interleaved {
        (b.slice_step(turned, 3, 0, dim, 2)?, b.slice_step(turned, 3, 1, dim, 2)?)
    } else {
        (b.slice(turned, 3, 0, dim / 2)?, b.slice(turned, 3, dim / 2, dim)?)
    };
    let (cr, si) = (b.op("mul", &[cos, re])?, b.op("mul", &[sin, im])?);
    let (sr, ci) = (b.op("mul", &[sin, re])?, b.op("mul", &[cos, im])?);
    let (real, imag) = (b.op("sub", &[cr, si])?, b.op("add", &[sr, ci])?);
    let mut y = if interleaved {
        let (real, imag) = (b.unsqueeze(real, &[4])?, b.unsqueeze(imag, &[4])?);
        let pairs = b.concat(&[real, imag], 4)?;
        b.reshape(pairs, &[Len::Of(four, 0), Len::Of(four, 1), Len::Of(four, 2), Len::N(dim)])?
    } else {
        b.concat(&[real, imag], 3)?
    };
    if dim < size {
        let rest = b.slice(four, 3, dim, size)?;
        y = b.concat(&[y, rest], 3)?;
    }
    match heads {
        Some(heads) => b.reshape(y, &[Len::Of(x, 0), Len::Of(x, 1), Len::N(heads * size)]),
        None => Ok(y),
    }
}
