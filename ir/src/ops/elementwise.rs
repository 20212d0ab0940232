//! Element-wise arithmetic with numpy-style broadcasting.

use super::{Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance, broadcast_dims, broadcast_shapes};
use crate::tensor::{Data, Tensor, Value, count, strides};
use crate::types::TensorType;
use crate::{Dim, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[&ADD];

/// Sum of two tensors.
pub static ADD: OpDef = OpDef {
    name: "add",
    summary: "a + b with broadcasting; integers wrap",
    source: "ONNX Add-14",
    operands: &[Operand::One("a"), Operand::One("b")],
    infer: infer_broadcast,
    contents: Some(|ctx| contents_binary(ctx, |a, b| Some(a + b))),
    eval: Eval::Direct(|ctx| eval_binary(ctx, |a, b| a + b, |a, b| Ok(a.wrapping_add(b)))),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Type rule of ops whose operands broadcast to a result of the same element type.
pub fn infer_broadcast(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let (a, b) = (ctx.elem(0)?, ctx.elem(1)?);
    if a != b {
        return Err(OpError::new(format!("operands have element types {a} and {b}, which must be equal")));
    }
    let shape = match (ctx.shape(0)?, ctx.shape(1)?) {
        (Some(a), Some(b)) => Some(broadcast_dims(a, b)?),
        _ => None,
    };
    Ok(vec![Type::Tensor(TensorType { elem: a, shape })])
}

/// Contents rule of integer binary ops on equally long contents, or one of length 1.
pub fn contents_binary(ctx: &InferCtx, f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> Option<Vec<Dim>> {
    let (a, b) = (ctx.dims(0)?, ctx.dims(1)?);
    let n = if a.is_empty() || b.is_empty() { 0 } else { a.len().max(b.len()) };
    if a.len() != n && a.len() != 1 || b.len() != n && b.len() != 1 {
        return None;
    }
    (0..n).map(|i| f(&a[i % a.len()], &b[i % b.len()])).collect()
}

/// Evaluates a broadcasting binary op by one function per class; the result has operand 0's type.
pub fn eval_binary(ctx: &EvalCtx, float: impl Fn(f64, f64) -> f64, int: impl Fn(i128, i128) -> Result<i128, OpError>) -> Result<Vec<Value>, OpError> {
    let (a, b) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let (ia, ib) = (broadcast_index(a.shape(), &shape), broadcast_index(b.shape(), &shape));
    let n = count(&shape);
    let out = match (a.data(), b.data()) {
        (Data::Float(x), Data::Float(y)) => Tensor::from_f64(a.elem(), shape, (0..n).map(|i| float(x[ia(i)], y[ib(i)])).collect()),
        (Data::Int(x), Data::Int(y)) => Tensor::from_int(a.elem(), shape, (0..n).map(|i| int(x[ia(i)], y[ib(i)])).collect::<Result<_, _>>()?),
        _ => return Err(OpError::new(format!("is not defined for {} and {}", a.elem(), b.elem()))),
    };
    Ok(vec![out.into()])
}

/// Maps a linear index of `out` to the linear index of the operand of shape `operand` broadcast to it.
pub fn broadcast_index(operand: &[usize], out: &[usize]) -> impl Fn(usize) -> usize + use<> {
    let (own, all) = (strides(operand), strides(out));
    let skip = out.len() - operand.len();
    let steps: Vec<(usize, usize, usize)> =
        (0..operand.len()).map(|i| (all[i + skip], out[i + skip], if operand[i] == 1 { 0 } else { own[i] })).collect();
    move |i| steps.iter().map(|&(stride, len, step)| i / stride % len * step).sum()
}
