//! Type rules, contents rules and evaluation of element-wise ops with numpy-style broadcasting.

use super::{EvalCtx, InferCtx, OpError, broadcast_dims, broadcast_shapes, checked_count};
use crate::tensor::{Data, Tensor, Value};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type};

pub use super::index_map::broadcast_index;

/// A tensor type of maybe unknown shape.
pub fn tensor_type(elem: ElemType, shape: Option<Vec<Dim>>) -> Type {
    Type::Tensor(TensorType { elem, shape })
}

/// An error unless `ok`, naming the element type.
pub fn check_elem(elem: ElemType, ok: bool) -> Result<(), OpError> {
    if ok {
        Ok(())
    } else {
        Err(OpError::new(format!("is not defined for {elem}")))
    }
}

/// Shape of the broadcast of all operands from `first` on, if every rank is known.
pub fn broadcast_all(ctx: &InferCtx, first: usize) -> Result<Option<Vec<Dim>>, OpError> {
    let mut shape = Some(vec![]);
    for i in first..ctx.types.len() {
        shape = match (shape, ctx.shape(i)?) {
            (Some(a), Some(b)) => Some(broadcast_dims(&a, b)?),
            _ => None,
        };
    }
    Ok(shape)
}

/// The element type that all operands from `first` on have.
pub fn common_elem(ctx: &InferCtx, first: usize) -> Result<ElemType, OpError> {
    let elem = ctx.elem(first)?;
    for i in first + 1..ctx.types.len() {
        let other = ctx.elem(i)?;
        if other != elem {
            return Err(OpError::new(format!(
                "operands have element types {elem} and {other}, which must be equal"
            )));
        }
    }
    Ok(elem)
}

/// Type rule of ops whose operands (any number) broadcast to a result of the same element type.
pub fn infer_broadcast(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = common_elem(ctx, 0)?;
    Ok(vec![tensor_type(elem, broadcast_all(ctx, 0)?)])
}

/// As [`infer_broadcast`], for floats and integers only.
pub fn infer_broadcast_number(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    check_elem(elem, elem.is_float() || elem.is_int())?;
    infer_broadcast(ctx)
}

/// As [`infer_broadcast`], for integers only.
pub fn infer_broadcast_int(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    check_elem(elem, elem.is_int())?;
    infer_broadcast(ctx)
}

/// Type rule of ops on one number tensor: the same type.
pub fn infer_number(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    check_elem(elem, elem.is_float() || elem.is_int())?;
    Ok(vec![ctx.ty(0)?.clone()])
}

/// Type rule of ops on one float tensor: the same type.
pub fn infer_float(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    check_elem(elem, elem.is_float())?;
    Ok(vec![ctx.ty(0)?.clone()])
}

/// Contents rule of integer binary ops on equally long contents, or one of length 1.
pub fn contents_binary(ctx: &InferCtx, f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> Option<Vec<Dim>> {
    contents_zip(ctx.dims(0)?, flat(ctx, 1)?, f)
}

/// Contents of operand `i`, if they meet those of operand 0 in their order: both of one axis at most, of equal
/// shape, or one of them of one element.
fn flat<'c>(ctx: &'c InferCtx, i: usize) -> Option<&'c [Dim]> {
    let (a, b) = (ctx.dims(0)?, ctx.dims(i)?);
    let (x, y) = (ctx.shape(0).ok()??, ctx.shape(i).ok()??);
    let fits = x.len().max(y.len()) <= 1 || x == y || a.len() == 1 || b.len() == 1;
    fits.then_some(b)
}

/// Contents rule of associative integer ops on any number of operands.
pub fn contents_fold(ctx: &InferCtx, f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> Option<Vec<Dim>> {
    (1..ctx.types.len()).try_fold(ctx.dims(0)?.to_vec(), |a, i| {
        contents_zip(&a, flat(ctx, i)?, &f)
    })
}

fn contents_zip(a: &[Dim], b: &[Dim], f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> Option<Vec<Dim>> {
    let n = if a.is_empty() || b.is_empty() {
        0
    } else {
        a.len().max(b.len())
    };
    if n == 0 {
        return Some(vec![]);
    }
    if a.len() != n && a.len() != 1 || b.len() != n && b.len() != 1 {
        return None;
    }
    (0..n)
        .map(|i| f(&a[i % a.len()], &b[i % b.len()]))
        .collect()
}

/// Evaluates a broadcasting binary op by one function per class; the result has operand 0's type.
pub fn eval_binary(
    ctx: &EvalCtx,
    float: impl Fn(f64, f64) -> f64,
    int: impl Fn(i128, i128) -> Result<i128, OpError>,
) -> Result<Vec<Value>, OpError> {
    Ok(vec![
        binary(ctx.tensor(0)?, ctx.tensor(1)?, float, int)?.into(),
    ])
}

/// Evaluates a broadcasting associative op on any number of operands.
pub fn eval_fold(
    ctx: &EvalCtx,
    float: impl Fn(f64, f64) -> f64,
    int: impl Fn(i128, i128) -> i128,
) -> Result<Vec<Value>, OpError> {
    let mut out = ctx.tensor(0)?.clone();
    for i in 1..ctx.operands.len() {
        out = binary(&out, ctx.tensor(i)?, &float, |a, b| Ok(int(a, b)))?;
    }
    Ok(vec![out.into()])
}

/// A broadcasting binary function of two tensors of one class.
pub fn binary(
    a: &Tensor,
    b: &Tensor,
    float: impl Fn(f64, f64) -> f64,
    int: impl Fn(i128, i128) -> Result<i128, OpError>,
) -> Result<Tensor, OpError> {
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let n = checked_count(&shape)?;
    let (ia, ib) = (
        broadcast_index(a.shape(), &shape),
        broadcast_index(b.shape(), &shape),
    );
    match (a.data(), b.data()) {
        (Data::Float(x), Data::Float(y)) => Ok(Tensor::from_f64(
            a.elem(),
            shape,
            (0..n).map(|i| float(x[ia(i)], y[ib(i)])).collect(),
        )),
        (Data::Int(x), Data::Int(y)) => {
            let out: Result<_, _> = (0..n).map(|i| int(x[ia(i)], y[ib(i)])).collect();
            Ok(Tensor::from_int(a.elem(), shape, out?))
        }
        _ => Err(OpError::new(format!(
            "is not defined for {} and {}",
            a.elem(),
            b.elem()
        ))),
    }
}

/// Evaluates an element-wise op on one tensor by one function per class.
pub fn eval_unary(
    ctx: &EvalCtx,
    float: impl Fn(f64) -> f64,
    int: impl Fn(i128) -> i128,
) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let out = match x.data() {
        Data::Float(v) => {
            Tensor::from_f64(x.elem(), x.shape(), v.iter().map(|&v| float(v)).collect())
        }
        Data::Int(v) => Tensor::from_int(x.elem(), x.shape(), v.iter().map(|&v| int(v)).collect()),
        _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
    };
    Ok(vec![out.into()])
}

/// Evaluates an element-wise op on one float tensor.
pub fn eval_float(ctx: &EvalCtx, f: impl Fn(f64) -> f64) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let v = x
        .floats()
        .ok_or_else(|| OpError::new(format!("is not defined for {}", x.elem())))?;
    let out = v.iter().map(|&v| f(v)).collect();
    Ok(vec![Tensor::from_f64(x.elem(), x.shape(), out).into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_broadcast() {
        let a = Tensor::ints(&[1, 2]).with_shape([2, 1]);
        let b = Tensor::ints(&[10, 20, 30]);
        let sum = binary(&a, &b, |a, b| a + b, |a, b| Ok(a + b)).unwrap();
        assert_eq!(sum.shape(), [2, 3]);
        assert_eq!(sum.to_i64s().unwrap(), [11, 21, 31, 12, 22, 32]);
        assert!(binary(&b, &Tensor::ints(&[1, 2]), |a, _| a, |a, _| Ok(a)).is_err());
        assert!(binary(&b, &Tensor::f32(1.0), |a, _| a, |a, _| Ok(a)).is_err());
    }
}
