//! The partial inverse of max pooling.

use super::{KERNEL_SHAPE, PADS, STRIDES};
use crate::ops::linear::checked_count;
use crate::ops::window::{image, image_shape, list, unravel};
use crate::ops::{Eval, EvalCtx, InferCtx, OpDef, OpError, Operand};
use crate::tensor::{Data, Tensor, Value};
use crate::{Dim, Type};

/// Puts pooled elements back where they came from.
pub static MAX_UNPOOL: OpDef = OpDef {
    name: "max_unpool",
    summary: "zeros, with every element of `x` at its index",
    source: "ONNX MaxUnpool-22",
    operands: &[Operand::One("x"), Operand::One("indices"), Operand::Optional("output_shape")],
    attrs: &[KERNEL_SHAPE, PADS, STRIDES],
    infer,
    eval: Eval::Direct(eval),
    ..OpDef::BASE
};

/// Spatial lengths that the window's geometry implies.
fn implied(node: &crate::graph::Node, spatial: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let n = spatial.len();
    let kernel = list(node, "kernel_shape", n, 1, 1)?;
    let (strides, pads) = (list(node, "strides", n, 1, 1)?, list(node, "pads", 2 * n, 0, 0)?);
    Ok((0..n)
        .map(|i| {
            let steps = &spatial[i] - &Dim::from(1i64);
            steps * Dim::from(strides[i]) + Dim::from(kernel[i] - pads[i] - pads[n + i])
        })
        .collect())
}

fn infer(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let Some((n, c, spatial)) = image(ctx, 0)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let mut shape = vec![n.clone(), c.clone()];
    shape.extend(implied(ctx.node, spatial)?);
    if ctx.has(2) {
        shape = match ctx.dims(2) {
            Some(dims) if dims.len() == shape.len() => dims.to_vec(),
            Some(_) => return Err(OpError::new("operand 2 must have an entry per axis")),
            None => shape.iter().map(|_| ctx.fresh_dim()).collect(),
        };
    }
    Ok(vec![Type::tensor(elem, shape)])
}

fn eval(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, indices) = (ctx.tensor(0)?, ctx.i64s(1)?);
    let (n, c, spatial) = image_shape(x.shape())?;
    let dims: Vec<Dim> = spatial.iter().map(|&d| Dim::from(d)).collect();
    let length = |d: Option<i64>| {
        d.and_then(|d| usize::try_from(d).ok()).ok_or_else(|| OpError::new("the output has a negative length"))
    };
    let mut small = vec![n, c];
    for d in implied(ctx.node, &dims)? {
        small.push(length(d.as_const())?);
    }
    let shape: Vec<usize> = match ctx.has(2) {
        true => ctx.i64s(2)?.into_iter().map(|d| length(Some(d))).collect::<Result<_, _>>()?,
        false => small.clone(),
    };
    if shape.len() != small.len() || indices.len() != x.len() {
        return Err(OpError::new("the indices or the output shape do not fit the operand"));
    }
    let (room, total) = (checked_count(&small)?, checked_count(&shape)?);
    let mut source = vec![None; total];
    for (i, &at) in indices.iter().enumerate() {
        let at = usize::try_from(at).ok().filter(|&at| at < room).ok_or_else(|| OpError::new(format!("index {at} is out of range")))?;
        // Indices count in the shape that the window implies; the given shape may be larger.
        let place = unravel(at, &small);
        if place.iter().zip(&shape).all(|(p, d)| p < d) {
            let to = place.iter().zip(&shape).fold(0, |a, (p, d)| a * d + p);
            source[to] = Some(i);
        }
    }
    let y = match x.data() {
        Data::Float(v) => Tensor::from_f64(x.elem(), shape, source.iter().map(|s| s.map_or(0.0, |i| v[i])).collect()),
        Data::Int(v) => Tensor::from_int(x.elem(), shape, source.iter().map(|s| s.map_or(0, |i| v[i])).collect()),
        _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
    };
    Ok(vec![y.into()])
}
