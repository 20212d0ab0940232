//! Tensors made from little: ranges, fills, diagonals, triangles.

use super::broadcast::{check_elem, tensor_type};
use super::index_map::{assemble};
use super::shape::{as_shape, axis_count};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
    resolve_axis, checked_count};
use crate::builder::SMALL_CONSTANT;
use crate::tensor::{Data, Tensor, Value};
use crate::{Attr, Dim, ElemType, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[&RANGE, &CONSTANT_OF_SHAPE, &EYE_LIKE, &TRILU, &ONE_HOT];

/// Evenly spaced numbers.
pub static RANGE: OpDef = OpDef {
    name: "range",
    summary: "start, start + delta, … below the limit (above it, if delta is negative)",
    source: "ONNX Range-27",
    operands: &[Operand::One("start"), Operand::One("limit"), Operand::One("delta")],
    attrs: &[AttrDef::new("stash_type", AttrKind::Int, Default::Int(1), "ONNX type number that small floats compute in; the evaluator is wider")],
    infer: infer_range,
    contents: Some(|ctx| {
        let (start, limit, delta) = (ctx.dims(0)?.first()?, ctx.dims(1)?.first()?, ctx.const_ints(2)?);
        let span = (limit - start).as_const()?;
        let n = int_steps(0, span.into(), (*delta.first()?).into()).ok()?;
        (n <= SMALL_CONSTANT).then(|| {
            (0..n as i64).map(|i| start + &Dim::from(i.saturating_mul(delta[0]))).collect()
        })
    }),
    eval: Eval::Direct(eval_range),
    tolerance: Tolerance::Rounding(2),
    ..OpDef::BASE
};

/// A fill.
pub static CONSTANT_OF_SHAPE: OpDef = OpDef {
    name: "constant_of_shape",
    summary: "a tensor of the given shape filled with one value (0.0 in f32 if none is given)",
    source: "ONNX ConstantOfShape-25",
    operands: &[Operand::One("shape")],
    attrs: &[AttrDef::new("value", AttrKind::Tensor, Default::Absent, "the value: a tensor of one element")],
    infer: |ctx| {
        let elem = fill_value(ctx.attr("value"))?.elem();
        let shape = match ctx.dims(0) {
            Some(dims) if dims.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) => {
                return Err(OpError::new("dimensions must not be negative"));
            }
            Some(dims) => Some(dims.to_vec()),
            None => axis_count(ctx, 0)?.map(|n| (0..n).map(|_| ctx.fresh_dim()).collect()),
        };
        Ok(vec![tensor_type(elem, shape)])
    },
    contents: Some(|ctx| {
        let value = *fill_value(ctx.attr("value")).ok()?.to_i64s()?.first()?;
        let dims = as_shape(&ctx.const_ints(0)?).ok()?;
        let n = checked_count(&dims).ok().filter(|&n| n <= SMALL_CONSTANT)?;
        Some(vec![Dim::from(value); n])
    }),
    eval: Eval::Direct(|ctx| {
        let shape = as_shape(&ctx.i64s(0)?)?;
        checked_count(&shape)?;
        Ok(vec![fill_value(ctx.attr("value"))?.gather_linear(shape, |_| 0).into()])
    }),
    ..OpDef::BASE
};

/// A diagonal of ones.
pub static EYE_LIKE: OpDef = OpDef {
    name: "eye_like",
    summary: "zeros in the shape of the matrix x, ones on its k-th diagonal",
    source: "ONNX EyeLike-22",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("dtype", AttrKind::Elem, Default::Absent, "element type; absent: that of x"),
        AttrDef::new("k", AttrKind::Int, Default::Int(0), "diagonal: above the main one if positive"),
    ],
    infer: |ctx| {
        let elem = ctx.elem_attr("dtype").unwrap_or(ctx.elem(0)?);
        check_elem(elem, elem.is_float() || elem.int_range().is_some())?;
        match ctx.shape(0)? {
            Some(s) if s.len() != 2 => Err(OpError::new(format!("needs a matrix, found rank {}", s.len()))),
            s => Ok(vec![tensor_type(elem, s.map(<[Dim]>::to_vec))]),
        }
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let (elem, k) = (ctx.elem_attr("dtype").unwrap_or(x.elem()), ctx.int("k")?);
        let &[_, columns] = x.shape() else {
            return Err(OpError::new("needs a matrix"));
        };
        let one = |i: usize| (i % columns) as i64 == ((i / columns) as i64).saturating_add(k);
        Ok(vec![super::cast::cast(
            &Tensor::from_int(ElemType::Bool, x.shape(), (0..x.len()).map(|i| i128::from(one(i))).collect()),
            elem,
            true,
            "up",
        )?
        .into()])
    }),
    ..OpDef::BASE
};

/// A triangle.
pub static TRILU: OpDef = OpDef {
    name: "trilu",
    summary: "the upper or lower triangle of each matrix, from its k-th diagonal on; zeros elsewhere",
    source: "ONNX Trilu-14",
    operands: &[Operand::One("x"), Operand::Optional("k")],
    attrs: &[AttrDef::new("upper", AttrKind::Int, Default::Int(1), "1: upper, 0: lower")],
    infer: |ctx| {
        ctx.elem(0)?;
        match ctx.shape(0)? {
            Some(s) if s.len() < 2 => Err(OpError::new(format!("needs at least 2 axes, found {}", s.len()))),
            _ => Ok(vec![ctx.ty(0)?.clone()]),
        }
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let k = match ctx.has(1).then(|| ctx.i64s(1)).transpose()?.as_deref() {
            None => 0,
            Some([k]) => *k,
            Some(_) => return Err(OpError::new("`k` must be one integer")),
        };
        let &[.., rows, columns] = x.shape() else {
            return Err(OpError::new("needs at least 2 axes"));
        };
        let upper = ctx.flag("upper");
        let zero = Tensor::zeros(x.elem(), []);
        let out = assemble(&[x, &zero], x.shape().to_vec(), |i| {
            let (r, c) = ((i / columns % rows) as i64, (i % columns) as i64);
            let edge = r.saturating_add(k);
            let kept = if upper { c >= edge } else { c <= edge };
            if kept { (0, i) } else { (1, 0) }
        })?;
        Ok(vec![out.into()])
    }),
    ..OpDef::BASE
};

/// Indices as unit vectors.
pub static ONE_HOT: OpDef = OpDef {
    name: "one_hot",
    summary: "a new axis of length `depth` with values[1] at each index and values[0] elsewhere",
    source: "ONNX OneHot-28",
    operands: &[Operand::One("indices"), Operand::One("depth"), Operand::One("values")],
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "place of the new axis in the result")],
    infer: |ctx| {
        let shape = match ctx.shape(0)? {
            None => None,
            Some(s) => {
                let axis = resolve_axis(ctx.int("axis")?, s.len() + 1)?;
                let depth = match ctx.dims(1).and_then(|d| d.first()) {
                    Some(d) => d.clone(),
                    None => ctx
                        .constants
                        .get(1)
                        .and_then(|c| Some(Dim::from(*c.as_ref()?.to_f64s()?.first()? as i64)))
                        .unwrap_or_else(|| ctx.fresh_dim()),
                };
                let mut s = s.to_vec();
                s.insert(axis, depth);
                Some(s)
            }
        };
        Ok(vec![tensor_type(ctx.elem(2)?, shape)])
    },
    eval: Eval::Direct(eval_one_hot),
    ..OpDef::BASE
};

fn fill_value(value: Option<Attr>) -> Result<Tensor, OpError> {
    match value {
        None => Ok(Tensor::f32(0.0)),
        Some(Attr::Tensor(t)) if t.len() == 1 => Ok(t),
        Some(_) => Err(OpError::new("`value` must be a tensor of one element")),
    }
}

/// Number of steps from `start` to `limit`.
fn int_steps(start: i128, limit: i128, delta: i128) -> Result<usize, OpError> {
    let span = limit - start;
    let n = match delta {
        0 => return Err(OpError::new("`delta` must not be 0")),
        d if (d > 0) == (span > 0) => (span.abs() + d.abs() - 1) / d.abs(),
        _ => 0,
    };
    let n = usize::try_from(n).map_err(|_| OpError::new("the range is too long"))?;
    checked_count(&[n])
}

fn float_steps(start: f64, limit: f64, delta: f64) -> Result<usize, OpError> {
    let n = ((limit - start) / delta).ceil().max(0.0);
    if !n.is_finite() {
        return Err(OpError::new("the range is not finite"));
    }
    checked_count(&[n as usize])
}

fn infer_range(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = super::broadcast::common_elem(ctx, 0)?;
    check_elem(elem, elem.is_float() || elem.is_int())?;
    let number = |i: usize| -> Option<f64> { ctx.constants.get(i)?.as_ref()?.to_f64s()?.first().copied() };
    let first = |i: usize| ctx.dims(i).and_then(|d| d.first());
    let len = if let (Some(start), Some(limit), Some(delta)) = (first(0), first(1), first(2).and_then(Dim::as_const)) {
        if let (Some(start), Some(limit)) = (start.as_const(), limit.as_const()) {
            Dim::from(int_steps(start.into(), limit.into(), delta.into())?)
        } else if delta == 0 {
            return Err(OpError::new("`delta` must not be 0"));
        } else {
            let (span, step) = if delta > 0 { (limit - start, delta) } else { (start - limit, delta.saturating_neg()) };
            let n = span.ceil_div(&Dim::from(step));
            if span.lower_bound().is_some_and(|b| b >= 0) { n } else { n.max_dim(&Dim::from(0i64)) }
        }
    } else if let (Some(start), Some(limit), Some(delta)) = (number(0), number(1), number(2)) {
        Dim::from(float_steps(start, limit, delta)?)
    } else {
        ctx.fresh_dim()
    };
    Ok(vec![tensor_type(elem, Some(vec![len]))])
}

fn eval_range(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let operands = [ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(2)?];
    if operands.iter().any(|t| t.len() != 1 || t.elem() != operands[0].elem()) {
        return Err(OpError::new("operands must be scalars of one type"));
    }
    let elem = operands[0].elem();
    let out = match operands.map(Tensor::data) {
        [Data::Float(s), Data::Float(l), Data::Float(d)] => {
            let n = float_steps(s[0], l[0], d[0])?;
            Tensor::from_f64(elem, [n], (0..n).map(|i| s[0] + i as f64 * d[0]).collect())
        }
        [Data::Int(s), Data::Int(l), Data::Int(d)] => {
            let n = int_steps(s[0], l[0], d[0])?;
            Tensor::from_int(elem, [n], (0..n).map(|i| s[0] + i as i128 * d[0]).collect())
        }
        _ => return Err(OpError::new(format!("is not defined for {elem}"))),
    };
    Ok(vec![out.into()])
}

fn eval_one_hot(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (indices, values) = (ctx.tensor(0)?, ctx.tensor(2)?);
    let numbers = |t: &Tensor| t.to_f64s().ok_or_else(|| OpError::new("indices and depth must be numbers"));
    let depth = match numbers(ctx.tensor(1)?)?.as_slice() {
        [d] if *d >= 0.0 && *d <= super::MAX_ELEMENTS as f64 => *d as usize,
        _ => return Err(OpError::new("`depth` must be one number that is not negative")),
    };
    if values.len() != 2 {
        return Err(OpError::new("`values` must be [off, on]"));
    }
    let axis = resolve_axis(ctx.int("axis")?, indices.rank() + 1)?;
    let inner: usize = indices.shape()[axis..].iter().product();
    let mut shape = indices.shape().to_vec();
    shape.insert(axis, depth);
    let hot: Vec<i64> = numbers(indices)?
        .iter()
        .map(|&v| { let v = v as i64; if v < 0 { v.saturating_add(depth as i64) } else { v } })
        .collect();
    let out = assemble(&[values], shape, |i| {
        let (k, at) = (i / inner % depth, i / inner / depth * inner + i % inner);
        (0, usize::from(hot[at] == k as i64))
    })?;
    Ok(vec![out.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted() {
        for (s, l, d, want) in [(3, 9, 3, 2), (10, 4, -2, 3), (1, 1, 1, 0), (5, 1, 1, 0), (0, 5, 2, 3)] {
            assert_eq!(int_steps(s, l, d), Ok(want), "{s}..{l} by {d}");
            assert_eq!(float_steps(s as f64, l as f64, d as f64), Ok(want));
        }
        assert!(int_steps(0, 1, 0).is_err() && float_steps(0.0, 1.0, 0.0).is_err());
        assert!(int_steps(0, i64::MAX.into(), 1).is_err());
        assert!(float_steps(0.0, f64::NAN, 1.0).is_ok_and(|n| n == 0));
    }
}
