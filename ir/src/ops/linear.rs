//! Matrix products.

use super::compose::Len;
use super::{
    AttrDef, AttrKind, Default, Eval, InferCtx, OpDef, OpError, Operand, Tolerance,
    broadcast_dims, broadcast_shapes,
};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::elementwise::broadcast_index;
use crate::tensor::{Data, Tensor, count};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type, ValueId};

/// The family's ops.
pub static OPS: &[&OpDef] = &[&MATMUL, &GEMM, &MATMUL_INTEGER, &FUSED_MATMUL];

/// Most elements that an evaluator makes.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// Matrix product over the last two axes.
pub static MATMUL: OpDef = OpDef {
    name: "matmul",
    summary: "matrix product over the last two axes, the others broadcast; integers wrap",
    source: "ONNX MatMul-13, numpy.matmul",
    operands: &[Operand::One("a"), Operand::One("b")],
    infer: |ctx| {
        let (a, b) = (ctx.elem(0)?, ctx.elem(1)?);
        if a != b {
            return Err(OpError::new(format!("operands have element types {a} and {b}, which must be equal")));
        }
        Ok(vec![Type::Tensor(TensorType { elem: a, shape: matmul_type_shape(ctx, 0, 1)? })])
    },
    eval: Eval::Direct(|ctx| Ok(vec![matmul(ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(0)?.elem())?.into()])),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Scaled product with bias.
pub static GEMM: OpDef = OpDef {
    name: "gemm",
    summary: "alpha * a' b' + beta * c, where ' transposes on request",
    source: "ONNX Gemm-13",
    operands: &[Operand::One("a"), Operand::One("b"), Operand::Optional("c")],
    attrs: &[
        AttrDef::new("alpha", AttrKind::Float, Default::Float(1.0), "factor of the product"),
        AttrDef::new("beta", AttrKind::Float, Default::Float(1.0), "factor of `c`"),
        AttrDef::new("transA", AttrKind::Int, Default::Int(0), "transpose `a`"),
        AttrDef::new("transB", AttrKind::Int, Default::Int(0), "transpose `b`"),
    ],
    infer: infer_gemm,
    decompose: Some(decompose_gemm),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Product of 8-bit integers.
pub static MATMUL_INTEGER: OpDef = OpDef {
    name: "matmul_integer",
    summary: "(a - a_zero_point) (b - b_zero_point) in i32",
    source: "ONNX MatMulInteger-10",
    operands: &[
        Operand::One("a"),
        Operand::One("b"),
        Operand::Optional("a_zero_point"),
        Operand::Optional("b_zero_point"),
    ],
    infer: |ctx| {
        int8_operand(ctx, 0)?;
        int8_operand(ctx, 1)?;
        Ok(vec![Type::Tensor(TensorType { elem: ElemType::I32, shape: matmul_type_shape(ctx, 0, 1)? })])
    },
    decompose: Some(|b, node| {
        let (x, w) = (node.need(0)?, node.need(1)?);
        let x = shifted(b, x, node.operand(2), true)?;
        let w = shifted(b, w, node.operand(3), false)?;
        Ok(vec![b.op("matmul", &[x, w])?])
    }),
    ..OpDef::BASE
};

/// Product with transposes and a factor.
pub static FUSED_MATMUL: OpDef = OpDef {
    name: "fused_matmul",
    summary: "alpha * a' b', where ' transposes the last two axes, or moves the first axis before the last, on request",
    source: "ONNX Runtime com.microsoft FusedMatMul-1",
    operands: &[Operand::One("a"), Operand::One("b")],
    attrs: &[
        AttrDef::new("alpha", AttrKind::Float, Default::Float(1.0), "factor of the product"),
        AttrDef::new("transA", AttrKind::Int, Default::Int(0), "transpose the last two axes of `a`"),
        AttrDef::new("transB", AttrKind::Int, Default::Int(0), "transpose the last two axes of `b`"),
        AttrDef::new("transBatchA", AttrKind::Int, Default::Int(0), "move the first axis of `a` before the last one"),
        AttrDef::new("transBatchB", AttrKind::Int, Default::Int(0), "move the first axis of `b` before the last one"),
    ],
    infer: infer_fused,
    decompose: Some(|b, node| {
        let mut out = vec![];
        for (i, batch, last) in [(0, "transBatchA", "transA"), (1, "transBatchB", "transB")] {
            let x = node.need(i)?;
            let perm = fused_perm(b.shape(x)?.len(), node.flag(batch), node.flag(last));
            out.push(b.transpose(x, &perm)?);
        }
        let y = b.op("matmul", &out)?;
        Ok(vec![times(b, y, node.float("alpha").unwrap_or(1.0))?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Shape of the product of operands `i` and `j`, if both ranks are known.
pub fn matmul_type_shape(ctx: &InferCtx, i: usize, j: usize) -> Result<Option<Vec<Dim>>, OpError> {
    match (ctx.shape(i)?, ctx.shape(j)?) {
        (Some(a), Some(b)) => matmul_dims(a, b).map(Some),
        _ => Ok(None),
    }
}

/// Shape of the product of tensors of these shapes.
pub fn matmul_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let (Some(ka), Some(kb)) = (a.last(), b.get(b.len().saturating_sub(2))) else {
        return Err(OpError::new("a product needs operands of rank 1 or more"));
    };
    if let (Some(p), Some(q)) = (ka.as_const(), kb.as_const())
        && p != q
    {
        return Err(OpError::new(format!("inner dimensions {p} and {q} of the product differ")));
    }
    let mut out = broadcast_dims(&a[..a.len().saturating_sub(2)], &b[..b.len().saturating_sub(2)])?;
    if a.len() > 1 {
        out.push(a[a.len() - 2].clone());
    }
    if b.len() > 1 {
        out.push(b[b.len() - 1].clone());
    }
    Ok(out)
}

/// Product of two tensors of one class, in `f64` or wrapping integers, rounded to `elem`.
pub fn matmul(a: &Tensor, b: &Tensor, elem: ElemType) -> Result<Tensor, OpError> {
    let (sa, sb) = (a.shape(), b.shape());
    if sa.is_empty() || sb.is_empty() {
        return Err(OpError::new("a product needs operands of rank 1 or more"));
    }
    let (m, k) = if sa.len() == 1 { (1, sa[0]) } else { (sa[sa.len() - 2], sa[sa.len() - 1]) };
    let (kb, n) = if sb.len() == 1 { (sb[0], 1) } else { (sb[sb.len() - 2], sb[sb.len() - 1]) };
    if k != kb {
        return Err(OpError::new(format!("inner dimensions {k} and {kb} of the product differ")));
    }
    let (ba, bb) = (&sa[..sa.len().saturating_sub(2)], &sb[..sb.len().saturating_sub(2)]);
    let batch = broadcast_shapes(ba, bb)?;
    let (ia, ib) = (broadcast_index(ba, &batch), broadcast_index(bb, &batch));
    let mut shape = batch.clone();
    shape.extend((sa.len() > 1).then_some(m));
    shape.extend((sb.len() > 1).then_some(n));
    let total = checked_count(&shape)?;
    let starts: Vec<(usize, usize)> = (0..count(&batch)).map(|i| (ia(i) * m * k, ib(i) * k * n)).collect();
    match (a.data(), b.data()) {
        (Data::Float(x), Data::Float(y)) => {
            let mut out = vec![0.0; total];
            for (block, &(oa, ob)) in starts.iter().enumerate() {
                for r in 0..m {
                    let row = &mut out[(block * m + r) * n..][..n];
                    for (p, &v) in x[oa + r * k..][..k].iter().enumerate() {
                        for (o, &w) in row.iter_mut().zip(&y[ob + p * n..][..n]) {
                            *o += v * w;
                        }
                    }
                }
            }
            Ok(Tensor::from_f64(elem, shape, out))
        }
        (Data::Int(x), Data::Int(y)) => {
            let mut out = vec![0i128; total];
            for (block, &(oa, ob)) in starts.iter().enumerate() {
                for r in 0..m {
                    let row = &mut out[(block * m + r) * n..][..n];
                    for (p, &v) in x[oa + r * k..][..k].iter().enumerate() {
                        for (o, &w) in row.iter_mut().zip(&y[ob + p * n..][..n]) {
                            *o = o.wrapping_add(v.wrapping_mul(w));
                        }
                    }
                }
            }
            Ok(Tensor::from_int(elem, shape, out))
        }
        _ => Err(OpError::new(format!("is not defined for {} and {}", a.elem(), b.elem()))),
    }
}

/// Number of elements of a shape, refused if an evaluator should not make so many.
pub fn checked_count(shape: &[usize]) -> Result<usize, OpError> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= MAX_ELEMENTS)
        .ok_or_else(|| OpError::new(format!("a result of shape {shape:?} is too large to evaluate")))
}

/// `x * factor`; integers need a whole factor.
pub fn times(b: &mut Builder, x: ValueId, factor: f64) -> Result<ValueId, OpError> {
    if factor == 1.0 {
        return Ok(x);
    }
    if !b.elem(x)?.is_float() && factor.fract() != 0.0 {
        return Err(OpError::new(format!("factor {factor} is not defined for integers")));
    }
    let f = b.lit(x, factor)?;
    b.op("mul", &[x, f])
}

fn int8_operand(ctx: &InferCtx, i: usize) -> Result<(), OpError> {
    match ctx.elem(i)? {
        ElemType::I8 | ElemType::U8 => Ok(()),
        other => Err(OpError::new(format!("operand {i} must be i8 or u8, found {other}"))),
    }
}

/// `x - zero_point` in `i32`; a 1-D zero point of a left operand goes with its rows, of a right one
/// with its columns.
pub fn shifted(b: &mut Builder, x: ValueId, zero: Option<ValueId>, rows: bool) -> Result<ValueId, OpError> {
    let x32 = b.cast(x, ElemType::I32)?;
    let Some(zero) = zero else { return Ok(x32) };
    let mut zero = b.cast(zero, ElemType::I32)?;
    let shape = b.shape(zero)?;
    if rows && shape.len() == 1 && shape[0].as_const() != Some(1) {
        zero = b.unsqueeze(zero, &[-1])?;
    } else if shape.len() == 1 && shape[0].as_const() == Some(1) {
        zero = b.reshape(zero, &[] as &[Len])?;
    }
    b.op("sub", &[x32, zero])
}

fn infer_gemm(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if ctx.elem(1)? != elem || ctx.has(2) && ctx.elem(2)? != elem {
        return Err(OpError::new("operands must have one element type"));
    }
    let side = |i: usize, flag: &str| -> Result<[Dim; 2], OpError> {
        match ctx.shape(i)? {
            Some([r, c]) => Ok(if ctx.flag(flag) { [c.clone(), r.clone()] } else { [r.clone(), c.clone()] }),
            Some(s) => Err(OpError::new(format!("operand {i} must be a matrix, found rank {}", s.len()))),
            None => Ok([ctx.fresh_dim(), ctx.fresh_dim()]),
        }
    };
    let (a, b) = (side(0, "transA")?, side(1, "transB")?);
    let shape = matmul_dims(&a, &b)?;
    if ctx.has(2)
        && let Some(c) = ctx.shape(2)?
    {
        if c.len() > 2 {
            return Err(OpError::new("operand 2 must broadcast to a matrix"));
        }
        broadcast_dims(c, &shape)?;
    }
    Ok(vec![Type::tensor(elem, shape)])
}

fn decompose_gemm(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (mut x, mut w) = (node.need(0)?, node.need(1)?);
    if node.flag("transA") {
        x = b.transpose(x, &[1, 0])?;
    }
    if node.flag("transB") {
        w = b.transpose(w, &[1, 0])?;
    }
    let y = b.op("matmul", &[x, w])?;
    let y = times(b, y, node.float("alpha").unwrap_or(1.0))?;
    let Some(c) = node.operand(2) else { return Ok(vec![y]) };
    let c = times(b, c, node.float("beta").unwrap_or(1.0))?;
    Ok(vec![b.op("add", &[y, c])?])
}

/// Order of axes that `fused_matmul` reads an operand of this rank in: `transBatch` turns
/// `[m, batch.., k]` into `[batch.., m, k]`, and `trans` then exchanges the last two.
fn fused_perm(rank: usize, batch: bool, last: bool) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    if rank < 2 {
        return perm;
    }
    if batch && rank > 2 {
        let first = perm.remove(0);
        perm.insert(rank - 2, first);
    }
    if last {
        perm.swap(rank - 2, rank - 1);
    }
    perm
}

fn infer_fused(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if ctx.elem(1)? != elem {
        return Err(OpError::new("operands must have one element type"));
    }
    let side = |i: usize, batch: &str, last: &str| -> Result<Option<Vec<Dim>>, OpError> {
        Ok(ctx.shape(i)?.map(|s| {
            fused_perm(s.len(), ctx.flag(batch), ctx.flag(last)).into_iter().map(|p| s[p].clone()).collect()
        }))
    };
    let shape = match (side(0, "transBatchA", "transA")?, side(1, "transBatchB", "transB")?) {
        (Some(a), Some(b)) => Some(matmul_dims(&a, &b)?),
        _ => None,
    };
    Ok(vec![Type::Tensor(TensorType { elem, shape })])
}
