//! Reading by index: slices, gathers, selections.

use super::broadcast::{check_elem, tensor_type};
use super::index_map::{around_axis, strided};
use super::shape::axis_count;
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, resolve_axis, checked_count};
use crate::tensor::{Data, Tensor, Value, strides};
use crate::{Dim, ElemType, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &SLICE, &GATHER, &GATHER_ELEMENTS, &GATHER_ND, &COMPRESS, &NON_ZERO,
];

/// A range of each axis.
pub static SLICE: OpDef = OpDef {
    name: "slice",
    summary: "elements from `starts` towards `ends` (exclusive, clamped) by `steps` along `axes`",
    source: "ONNX Slice-13",
    operands: &[
        Operand::One("x"),
        Operand::One("starts"),
        Operand::One("ends"),
        Operand::Optional("axes"),
        Operand::Optional("steps"),
    ],
    infer: infer_slice,
    contents: Some(|ctx| {
        let (x, starts, ends) = (ctx.dims(0)?, ctx.const_ints(1)?, ctx.const_ints(2)?);
        let steps = if ctx.has(4) { ctx.const_ints(4)? } else { vec![1] };
        if ctx.shape(0).ok()??.len() != 1 || ctx.has(3) && ctx.const_ints(3)?.len() != 1 {
            return None;
        }
        let (start, n) = range(x.len(), *starts.first()?, *ends.first()?, *steps.first()?).ok()?;
        let step = *steps.first()?;
        (0..n as i64).map(|i| x.get(usize::try_from(start as i64 + i * step).ok()?).cloned()).collect()
    }),
    eval: Eval::Direct(eval_slice),
    ..OpDef::BASE
};

/// Slices by index.
pub static GATHER: OpDef = OpDef {
    name: "gather",
    summary: "slices of x along `axis` at the indices, which may count from the end",
    source: "ONNX Gather-13",
    operands: &[Operand::One("x"), Operand::One("indices")],
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Int(0), "axis that is indexed")],
    infer: |ctx| {
        check_elem(ctx.elem(1)?, ctx.elem(1)?.is_int())?;
        let shape = match (ctx.shape(0)?, ctx.shape(1)?) {
            (Some(x), Some(indices)) => {
                let axis = resolve_axis(ctx.int("axis")?, x.len())?;
                Some([&x[..axis], indices, &x[axis + 1..]].concat())
            }
            _ => None,
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    contents: Some(|ctx| {
        let (x, indices) = (ctx.dims(0)?, ctx.const_ints(1)?);
        if ctx.shape(0).ok()??.len() != 1 {
            return None;
        }
        let pick = |&i: &i64| Some(x[wrap_index(i.into(), x.len()).ok()?].clone());
        indices.iter().map(pick).collect()
    }),
    eval: Eval::Direct(|ctx| {
        let (x, indices) = (ctx.tensor(0)?, ctx.tensor(1)?);
        let axis = resolve_axis(ctx.int("axis")?, x.rank())?;
        let (_, len, inner) = around_axis(x.shape(), axis);
        let at = indices_of(indices, len)?;
        let shape = [&x.shape()[..axis], indices.shape(), &x.shape()[axis + 1..]].concat();
        checked_count(&shape)?;
        let source = |i: usize| (i / inner / at.len() * len + at[i / inner % at.len()]) * inner + i % inner;
        Ok(vec![x.gather_linear(shape, source).into()])
    }),
    ..OpDef::BASE
};

/// Elements by index along one axis.
pub static GATHER_ELEMENTS: OpDef = OpDef {
    name: "gather_elements",
    summary: "x at the place of each index, whose value replaces the coordinate of `axis`",
    source: "ONNX GatherElements-13",
    operands: &[Operand::One("x"), Operand::One("indices")],
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Int(0), "axis that is indexed")],
    infer: |ctx| {
        check_elem(ctx.elem(1)?, ctx.elem(1)?.is_int())?;
        if let (Some(x), Some(indices)) = (ctx.shape(0)?, ctx.shape(1)?) {
            resolve_axis(ctx.int("axis")?, x.len())?;
            same_rank(x.len(), indices.len())?;
        }
        Ok(vec![tensor_type(ctx.elem(0)?, ctx.shape(1)?.map(<[Dim]>::to_vec))])
    },
    eval: Eval::Direct(|ctx| {
        let (x, indices) = (ctx.tensor(0)?, ctx.tensor(1)?);
        let targets = element_targets(x.shape(), indices, ctx.int("axis")?)?;
        Ok(vec![x.gather_linear(indices.shape(), |i| targets[i]).into()])
    }),
    ..OpDef::BASE
};

/// Slices by coordinates.
pub static GATHER_ND: OpDef = OpDef {
    name: "gather_nd",
    summary: "slices of x at coordinates, the last axis of the indices; the first `batch_dims` axes go together",
    source: "ONNX GatherND-13",
    operands: &[Operand::One("x"), Operand::One("indices")],
    attrs: &[AttrDef::new("batch_dims", AttrKind::Int, Default::Int(0), "number of leading axes shared")],
    infer: |ctx| {
        check_elem(ctx.elem(1)?, ctx.elem(1)?.is_int())?;
        let shape = match (ctx.shape(0)?, ctx.shape(1)?) {
            (Some(x), Some(indices)) => match indices.last().map(Dim::as_const) {
                None => return Err(OpError::new("indices need at least one axis")),
                Some(None) => None,
                Some(Some(depth)) => {
                    let from = coordinate_end(ctx.int("batch_dims")?, depth, x.len(), indices.len())?;
                    Some([&indices[..indices.len() - 1], &x[from..]].concat())
                }
            },
            _ => None,
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    eval: Eval::Direct(|ctx| {
        let (x, indices) = (ctx.tensor(0)?, ctx.tensor(1)?);
        let batch = ctx.int("batch_dims")?;
        let depth = *indices.shape().last().ok_or_else(|| OpError::new("indices need at least one axis"))?;
        let from = coordinate_end(batch, depth as i64, x.rank(), indices.rank())?;
        let batch = batch as usize;
        if x.shape()[..batch] != indices.shape()[..batch] {
            return Err(OpError::new("the shared axes differ in length"));
        }
        let offsets = coordinates(indices, x.shape(), batch)?;
        let inner: usize = x.shape()[from..].iter().product();
        let shape = [&indices.shape()[..indices.rank() - 1], &x.shape()[from..]].concat();
        checked_count(&shape)?;
        Ok(vec![x.gather_linear(shape, |i| offsets[i / inner] + i % inner).into()])
    }),
    ..OpDef::BASE
};

/// Slices where a condition holds.
pub static COMPRESS: OpDef = OpDef {
    name: "compress",
    summary: "slices of x along an axis, or elements of the flat x, where the condition holds",
    source: "ONNX Compress-28",
    operands: &[Operand::One("x"), Operand::One("condition")],
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Absent, "axis that is selected from; absent: x is flattened")],
    infer: |ctx| {
        check_elem(ctx.elem(1)?, ctx.elem(1)? == ElemType::Bool)?;
        let kept = match ctx.const_ints(1) {
            Some(c) => Dim::from(c.iter().filter(|&&c| c != 0).count()),
            None => ctx.fresh_dim(),
        };
        let shape = match (ctx.shape(0)?, ctx.int_opt("axis")) {
            (_, None) => Some(vec![kept]),
            (Some(s), Some(axis)) => {
                let mut s = s.to_vec();
                let axis = resolve_axis(axis, s.len())?;
                s[axis] = kept;
                Some(s)
            }
            (None, Some(_)) => None,
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    eval: Eval::Direct(|ctx| {
        let (x, condition) = (ctx.tensor(0)?, ctx.i64s(1)?);
        let axis = ctx.int_opt("axis").map(|a| resolve_axis(a, x.rank())).transpose()?;
        let (_, len, inner) = axis.map_or((1, x.len(), 1), |a| around_axis(x.shape(), a));
        let kept: Vec<usize> = (0..condition.len()).filter(|&i| condition[i] != 0).collect();
        if kept.last().is_some_and(|&k| k >= len) {
            return Err(OpError::new(format!("the condition is longer than the {len} slices")));
        }
        let mut shape = axis.map_or(vec![0], |_| x.shape().to_vec());
        shape[axis.unwrap_or(0)] = kept.len();
        let source = |i: usize| (i / inner / kept.len() * len + kept[i / inner % kept.len()]) * inner + i % inner;
        Ok(vec![x.gather_linear(shape, source).into()])
    }),
    ..OpDef::BASE
};

/// Places of non-zeros.
pub static NON_ZERO: OpDef = OpDef {
    name: "non_zero",
    summary: "coordinates of the elements that are not zero: [rank, count], row-major",
    source: "ONNX NonZero-13",
    operands: &[Operand::One("x")],
    infer: |ctx| {
        let rank = ctx.shape(0)?.map(<[Dim]>::len);
        let rank = rank.map_or_else(|| ctx.fresh_dim(), Dim::from);
        Ok(vec![tensor_type(ElemType::I64, Some(vec![rank, ctx.fresh_dim()]))])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let hit = |i: &usize| match x.data() {
            Data::Float(v) => v[*i] != 0.0,
            Data::Int(v) => v[*i] != 0,
            Data::Complex(v) => v[*i] != [0.0; 2],
            Data::Str(v) => !v[*i].is_empty(),
        };
        let hits: Vec<usize> = (0..x.len()).filter(hit).collect();
        let steps = strides(x.shape());
        let out = (0..x.rank())
            .flat_map(|a| hits.iter().map(move |&i| (a, i)))
            .map(|(a, i)| (i / steps[a] % x.shape()[a]) as i128)
            .collect();
        Ok(vec![Tensor::from_int(ElemType::I64, [x.rank(), hits.len()], out).into()])
    }),
    ..OpDef::BASE
};

/// An index that may count from the end, as a place below `len`.
pub fn wrap_index(index: i128, len: usize) -> Result<usize, OpError> {
    let at = if index < 0 { index.saturating_add(len as i128) } else { index };
    usize::try_from(at)
        .ok()
        .filter(|&a| a < len)
        .ok_or_else(|| OpError::new(format!("index {index} is out of range for length {len}")))
}

fn indices_of(indices: &Tensor, len: usize) -> Result<Vec<usize>, OpError> {
    let values = indices.integers().ok_or_else(|| OpError::new("indices must be integers"))?;
    values.iter().map(|&i| wrap_index(i, len)).collect()
}

pub(super) fn same_rank(x: usize, indices: usize) -> Result<(), OpError> {
    if x == indices && x > 0 {
        Ok(())
    } else {
        Err(OpError::new(format!("ranks {x} and {indices} must be equal and not 0")))
    }
}

/// The linear place in `shape` of each element of `indices`, which replaces the coordinate of `axis`.
pub(super) fn element_targets(shape: &[usize], indices: &Tensor, axis: i64) -> Result<Vec<usize>, OpError> {
    same_rank(shape.len(), indices.rank())?;
    let axis = resolve_axis(axis, shape.len())?;
    if let Some(a) = (0..shape.len()).find(|&a| a != axis && indices.shape()[a] > shape[a]) {
        return Err(OpError::new(format!("indices are longer than the data on axis {a}")));
    }
    let own = strides(shape);
    let steps = (0..shape.len()).map(|a| if a == axis { 0 } else { own[a] as isize }).collect();
    let base = strided(indices.shape(), steps, 0);
    let at = indices_of(indices, shape[axis])?;
    Ok(at.iter().enumerate().map(|(i, k)| base(i) + k * own[axis]).collect())
}

/// First axis of x that coordinates do not reach.
fn coordinate_end(batch: i64, depth: i64, rank: usize, indices: usize) -> Result<usize, OpError> {
    let fits = batch >= 0 && batch < indices as i64 && depth >= 1;
    let end = fits.then(|| batch.checked_add(depth)).flatten();
    end.filter(|&e| e <= rank as i64)
        .map(|e| e as usize)
        .ok_or_else(|| OpError::new(format!("coordinates of {depth} after {batch} shared axes do not fit rank {rank}")))
}

/// The linear offset in `shape` of each coordinate (the last axis of `indices`) after `batch` shared axes.
pub(super) fn coordinates(indices: &Tensor, shape: &[usize], batch: usize) -> Result<Vec<usize>, OpError> {
    let depth = indices.shape().last().copied().unwrap_or(1);
    let own = strides(shape);
    let values = indices.integers().ok_or_else(|| OpError::new("indices must be integers"))?;
    let (outer, lead) = indices.shape().split_at(batch);
    let batches: usize = outer.iter().product();
    let each: usize = lead[..lead.len() - 1].iter().product();
    let block: usize = shape[batch..].iter().product();
    let mut out = Vec::with_capacity(batches * each);
    for b in 0..batches {
        for k in 0..each {
            let at = &values[(b * each + k) * depth..][..depth];
            let mut offset = b * block;
            for (j, &i) in at.iter().enumerate() {
                offset += wrap_index(i, shape[batch + j])? * own[batch + j];
            }
            out.push(offset);
        }
    }
    Ok(out)
}

/// First place and number of places that a slice of an axis of `len` reads.
fn range(len: usize, start: i64, end: i64, step: i64) -> Result<(usize, usize), OpError> {
    let n = len as i64;
    let from_end = |a: i64| if a < 0 { a.saturating_add(n) } else { a };
    let (low, high) = if step < 0 { (-1, n - 1) } else { (0, n) };
    let start = from_end(start).clamp(low.max(0).min(high.max(0)), high.max(0));
    let end = from_end(end).clamp(low, high.max(low));
    let span = i128::from(end) - i128::from(start);
    let count = match i128::from(step) {
        0 => return Err(OpError::new("a step must not be 0")),
        _ if n == 0 => 0,
        s if (s > 0) == (span > 0) => (span.abs() + s.abs() - 1) / s.abs(),
        _ => 0,
    };
    Ok((start as usize, count as usize))
}

/// Length of a slice of a symbolic axis.
fn symbolic_len(len: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
    let zero = Dim::from(0i64);
    // Where a bound lies on the axis: negative numbers count from the end, and all is clamped.
    let place = |d: &Dim| -> Dim {
        let at = match d.as_const() {
            Some(v) if v < 0 => len + d,
            // Larger than any axis: the customary way to say "to the end".
            Some(v) if v >= i64::from(i32::MAX) => return len.clone(),
            _ => d.clone(),
        };
        let at = if at.lower_bound().is_some_and(|b| b >= 0) { at } else { at.max_dim(&zero) };
        if (len - &at).lower_bound().is_some_and(|b| b >= 0) { at } else { at.min_dim(len) }
    };
    match step {
        1.. => {
            let span = &place(end) - &place(start);
            let n = span.ceil_div(&Dim::from(step));
            Some(if span.lower_bound().is_some_and(|b| b >= 0) { n } else { n.max_dim(&zero) })
        }
        // The whole axis backwards, which is what negative steps are used for.
        -1 if start.as_const() == Some(-1) && end.as_const().is_some_and(|e| e < -i64::from(i32::MAX)) => Some(len.clone()),
        _ => None,
    }
}

fn infer_slice(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let Some(shape) = ctx.shape(0)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let rank = shape.len();
    let axes = match (ctx.has(3), ctx.const_ints(3)) {
        (true, None) => return Ok(vec![tensor_type(elem, Some((0..rank).map(|_| ctx.fresh_dim()).collect()))]),
        (true, Some(axes)) => axes.iter().map(|&a| resolve_axis(a, rank)).collect::<Result<_, _>>()?,
        (false, _) => {
            let n = ctx.dims(1).or(ctx.dims(2)).map(<[Dim]>::len);
            let n = match n {
                Some(n) => n,
                None => axis_count(ctx, 1)?.unwrap_or(rank),
            };
            if n > rank {
                return Err(OpError::new(format!("{n} ranges for rank {rank}")));
            }
            (0..n).collect::<Vec<_>>()
        }
    };
    let steps = if ctx.has(4) { ctx.const_ints(4) } else { Some(vec![1; axes.len()]) };
    let mut out = shape.to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        let bound = |k: usize| ctx.dims(k).and_then(|d| d.get(i));
        let step = steps.as_ref().and_then(|s| s.get(i)).copied();
        let len = match (bound(1), bound(2), step) {
            (_, _, Some(0)) => return Err(OpError::new("a step must not be 0")),
            (Some(start), Some(end), Some(step)) => {
                let len = shape[axis].as_const().and_then(|l| usize::try_from(l).ok());
                match (len, start.as_const(), end.as_const()) {
                    (Some(len), Some(s), Some(e)) => Some(Dim::from(range(len, s, e, step)?.1)),
                    _ => symbolic_len(&shape[axis], start, end, step),
                }
            }
            _ => None,
        };
        out[axis] = len.unwrap_or_else(|| ctx.fresh_dim());
    }
    Ok(vec![tensor_type(elem, Some(out))])
}

fn eval_slice(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let (starts, ends) = (ctx.i64s(1)?, ctx.i64s(2)?);
    let axes = if ctx.has(3) { ctx.i64s(3)? } else { (0..starts.len() as i64).collect() };
    let steps = if ctx.has(4) { ctx.i64s(4)? } else { vec![1; starts.len()] };
    if [ends.len(), axes.len(), steps.len()].iter().any(|&l| l != starts.len()) {
        return Err(OpError::new("`starts`, `ends`, `axes` and `steps` must be equally long"));
    }
    let own = strides(x.shape());
    let mut shape = x.shape().to_vec();
    let mut by: Vec<isize> = own.iter().map(|&s| s as isize).collect();
    let mut first = 0;
    for i in 0..axes.len() {
        let axis = resolve_axis(axes[i], x.rank())?;
        let (start, n) = range(x.shape()[axis], starts[i], ends[i], steps[i])?;
        shape[axis] = n;
        // With one place or none the step does not matter, and it may be absurd.
        by[axis] = if n > 1 { own[axis] as isize * steps[i] as isize } else { 0 };
        first += start * own[axis];
    }
    let source = strided(&shape, by, first);
    Ok(vec![x.gather_linear(shape, source).into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_clamp_as_in_python() {
        for (len, start, end, step, want) in [
            (5, 1, 4, 1, (1, 3)),
            (5, -2, i64::MAX, 1, (3, 2)),
            (5, -1, i64::MIN, -1, (4, 5)),
            (5, 20, -10, -2, (4, 3)),
            (5, 3, 1, 1, (3, 0)),
            (5, 0, 5, i64::MAX, (0, 1)),
            (0, 0, 5, 1, (0, 0)),
            (0, -1, i64::MIN, -1, (0, 0)),
        ] {
            assert_eq!(range(len, start, end, step), Ok(want), "{len}[{start}:{end}:{step}]");
        }
        assert!(range(5, 0, 1, 0).is_err());
    }

    #[test]
    fn symbolic_slices_have_simple_lengths() {
        let n = Dim::sym("n");
        let d = |v: i64| Dim::from(v);
        for (start, end, want) in [
            (d(0), d(i64::MAX), "n"),
            (d(1), d(i64::MAX), "n - 1"),
            (d(0), d(-1), "n - 1"),
            (d(-1), d(i64::MAX), "1"),
            (d(0), d(8), "min(8, n)"),
            (d(0), n.clone(), "n"),
        ] {
            assert_eq!(symbolic_len(&n, &start, &end, 1).unwrap().to_string(), want, "{start}:{end}");
        }
    }
}
