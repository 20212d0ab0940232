//! Softmax and its logarithm along one axis.

use crate::ops::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance, resolve_axis,
};
use crate::tensor::{Tensor, Value, count};
use crate::types::TensorType;
use crate::Type;

const AXIS: AttrDef = AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "axis that sums to one");

/// Softmax.
pub static SOFTMAX: OpDef = OpDef {
    name: "softmax",
    summary: "exp(x) / sum(exp(x)) along an axis",
    source: "ONNX Softmax-13",
    operands: &[Operand::One("x")],
    attrs: &[AXIS],
    infer,
    eval: Eval::Direct(|ctx| eval(ctx, false)),
    tolerance: Tolerance::Approximate(1e-5, 1e-7),
    ..OpDef::BASE
};

/// Logarithm of softmax.
pub static LOG_SOFTMAX: OpDef = OpDef {
    name: "log_softmax",
    summary: "log(softmax(x)) along an axis",
    source: "ONNX LogSoftmax-13",
    operands: &[Operand::One("x")],
    attrs: &[AXIS],
    infer,
    eval: Eval::Direct(|ctx| eval(ctx, true)),
    decompose: Some(|b, node| {
        let (x, axis) = (node.need(0)?, node.int("axis")?);
        let top = b.reduce("reduce_max", x, &[axis], true)?;
        let shifted = b.op("sub", &[x, top])?;
        let e = b.op("exp", &[shifted])?;
        let sum = b.reduce("reduce_sum", e, &[axis], true)?;
        let log = b.op("log", &[sum])?;
        Ok(vec![b.op("sub", &[shifted, log])?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

fn infer(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if !elem.is_float() {
        return Err(OpError::new(format!("is not defined for {elem}")));
    }
    let shape = ctx.shape(0)?.map(<[_]>::to_vec);
    if let Some(shape) = &shape {
        resolve_axis(ctx.int("axis")?, shape.len())?;
    }
    Ok(vec![Type::Tensor(TensorType { elem, shape })])
}

fn eval(ctx: &EvalCtx, log: bool) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axis = resolve_axis(ctx.int("axis")?, x.rank())?;
    let Some(values) = x.floats() else {
        return Err(OpError::new(format!("is not defined for {}", x.elem())));
    };
    let (n, inner) = (x.shape()[axis], count(&x.shape()[axis + 1..]));
    let mut out = values.to_vec();
    if let Some(rows) = x.len().checked_div(n) {
        for start in (0..rows).map(|i| i / inner * inner * n + i % inner) {
            let at = |i: usize| start + i * inner;
            let top = (0..n).map(|i| values[at(i)]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..n).map(|i| (values[at(i)] - top).exp()).sum();
            for i in 0..n {
                let shifted = values[at(i)] - top;
                out[at(i)] = if log { shifted - sum.ln() } else { shifted.exp() / sum };
            }
        }
    }
    Ok(vec![Tensor::from_f64(x.elem(), x.shape(), out).into()])
}
