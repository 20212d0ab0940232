//! Writing by index: a copy of the data with some elements replaced or combined.

use super::broadcast::check_elem;
use super::elementwise::{float_max, float_min};
use super::index::{coordinates, element_targets, same_rank};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
    resolve_axis,
};
use crate::tensor::{Data, Tensor, Value, strides};
use crate::Type;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&SCATTER, &SCATTER_ELEMENTS, &SCATTER_ND, &TENSOR_SCATTER];

const OPERANDS: &[Operand] = &[Operand::One("data"), Operand::One("indices"), Operand::One("updates")];
const AXIS: AttrDef = AttrDef::new("axis", AttrKind::Int, Default::Int(0), "axis that is indexed");
const REDUCTION: AttrDef = AttrDef::new(
    "reduction",
    AttrKind::Str,
    Default::Str("none"),
    "how an update meets what is there: `none` (replaces it), `add`, `mul`, `max` or `min`",
);

/// The old name of `scatter_elements`.
pub static SCATTER: OpDef = OpDef {
    name: "scatter",
    summary: "the data with updates written where `scatter_elements` without reduction writes them",
    source: "ONNX Scatter-9",
    operands: OPERANDS,
    attrs: &[AXIS],
    infer: infer_elements,
    decompose: Some(|b, n| {
        b.node("scatter_elements", n.operands.clone(), n.attrs.clone(), 1)
    }),
    ..OpDef::BASE
};

/// Elements along one axis.
pub static SCATTER_ELEMENTS: OpDef = OpDef {
    name: "scatter_elements",
    summary: "the data with each update written at its place, the index replacing the coordinate of `axis`",
    source: "ONNX ScatterElements-18",
    operands: OPERANDS,
    attrs: &[AXIS, REDUCTION],
    infer: infer_elements,
    eval: Eval::Direct(|ctx| {
        let (data, indices, updates) = (ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(2)?);
        if indices.shape() != updates.shape() {
            return Err(OpError::new("indices and updates must have one shape"));
        }
        let targets = element_targets(data.shape(), indices, ctx.int("axis")?)?;
        let writes = targets.into_iter().enumerate().map(|(i, at)| (at, i));
        Ok(vec![write(data, updates, &ctx.str("reduction"), writes)?.into()])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Slices by coordinates.
pub static SCATTER_ND: OpDef = OpDef {
    name: "scatter_nd",
    summary: "the data with slices written at coordinates, the last axis of the indices",
    source: "ONNX ScatterND-18",
    operands: OPERANDS,
    attrs: &[REDUCTION],
    infer: |ctx| {
        check_elem(ctx.elem(1)?, ctx.elem(1)?.is_int())?;
        check_reduction(ctx, 2)?;
        if let (Some(data), Some(indices)) = (ctx.shape(0)?, ctx.shape(1)?) {
            let depth = indices.last().ok_or_else(|| OpError::new("indices need at least one axis"))?;
            if depth.as_const().is_some_and(|d| d < 0 || d > data.len() as i64) {
                return Err(OpError::new(format!("coordinates of {depth} do not fit rank {}", data.len())));
            }
        }
        Ok(vec![ctx.ty(0)?.clone()])
    },
    eval: Eval::Direct(|ctx| {
        let (data, indices, updates) = (ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(2)?);
        let depth = *indices.shape().last().ok_or_else(|| OpError::new("indices need at least one axis"))?;
        if depth > data.rank() {
            return Err(OpError::new(format!("coordinates of {depth} do not fit rank {}", data.rank())));
        }
        let slice = &data.shape()[depth..];
        let expected = [&indices.shape()[..indices.rank() - 1], slice].concat();
        if updates.shape() != expected {
            return Err(OpError::new(format!("updates have shape {:?}, expected {expected:?}", updates.shape())));
        }
        let inner: usize = slice.iter().product();
        let offsets = coordinates(indices, data.shape(), 0)?;
        let writes = (0..updates.len()).map(|i| (offsets[i / inner] + i % inner, i));
        Ok(vec![write(data, updates, &ctx.str("reduction"), writes)?.into()])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// A cache with new entries.
pub static TENSOR_SCATTER: OpDef = OpDef {
    name: "tensor_scatter",
    summary: "a cache with the update written along `axis` from a place given per batch, as for key-value caches",
    source: "ONNX TensorScatter-24",
    operands: &[
        Operand::One("past_cache"),
        Operand::One("update"),
        Operand::Optional("write_indices"),
    ],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Int(-2), "sequence axis; not the first"),
        AttrDef::new("mode", AttrKind::Str, Default::Str("linear"), "`linear`, or `circular`: places wrap around"),
    ],
    infer: |ctx| {
        if ctx.elem(0)? != ctx.elem(1)? {
            return Err(OpError::new("cache and update must have one element type"));
        }
        circular(&ctx.str("mode"))?;
        if let (Some(cache), Some(update)) = (ctx.shape(0)?, ctx.shape(1)?) {
            let axis = sequence_axis(ctx.int("axis")?, cache.len())?;
            same_rank(cache.len(), update.len())?;
            let differ = |i: &usize| {
                let (a, b) = (cache[*i].as_const(), update[*i].as_const());
                *i != axis && a.is_some() && b.is_some() && a != b
            };
            if let Some(i) = (0..cache.len()).find(differ) {
                return Err(OpError::new(format!("cache and update differ in length on axis {i}")));
            }
        }
        Ok(vec![ctx.ty(0)?.clone()])
    },
    eval: Eval::Direct(eval_tensor_scatter),
    ..OpDef::BASE
};

fn infer_elements(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    check_elem(ctx.elem(1)?, ctx.elem(1)?.is_int())?;
    check_reduction(ctx, 2)?;
    if let Some(data) = ctx.shape(0)? {
        resolve_axis(ctx.int("axis")?, data.len())?;
        for i in [1, 2] {
            if let Some(other) = ctx.shape(i)? {
                same_rank(data.len(), other.len())?;
            }
        }
    }
    Ok(vec![ctx.ty(0)?.clone()])
}

fn check_reduction(ctx: &InferCtx, updates: usize) -> Result<(), OpError> {
    if ctx.elem(0)? != ctx.elem(updates)? {
        return Err(OpError::new(format!("data is {} and updates are {}", ctx.elem(0)?, ctx.elem(updates)?)));
    }
    match ctx.str("reduction").as_str() {
        // Absent on `scatter`, which has no such attribute.
        "" | "none" => Ok(()),
        "add" | "mul" | "max" | "min" => {
            let elem = ctx.elem(0)?;
            check_elem(elem, elem.is_float() || elem.int_range().is_some())
        }
        other => Err(bad_reduction(other)),
    }
}

fn bad_reduction(name: &str) -> OpError {
    OpError::new(format!("`reduction` is `{name}`, expected `none`, `add`, `mul`, `max` or `min`"))
}

/// `data` with element `.1` of `updates` written at `.0`, in order.
fn write(
    data: &Tensor,
    updates: &Tensor,
    reduction: &str,
    writes: impl Iterator<Item = (usize, usize)>,
) -> Result<Tensor, OpError> {
    fn put<T: Clone>(data: &[T], updates: &[T], writes: impl Iterator<Item = (usize, usize)>, f: impl Fn(&T, &T) -> T) -> Vec<T> {
        let mut out = data.to_vec();
        for (at, from) in writes {
            out[at] = f(&out[at], &updates[from]);
        }
        out
    }
    let (elem, shape) = (data.elem(), data.shape());
    Ok(match (data.data(), updates.data()) {
        (Data::Float(d), Data::Float(u)) => {
            let f: fn(f64, f64) -> f64 = match reduction {
                "none" => |_, u| u,
                "add" => |d, u| d + u,
                "mul" => |d, u| d * u,
                "max" => float_max,
                "min" => float_min,
                other => return Err(bad_reduction(other)),
            };
            Tensor::from_f64(elem, shape, put(d, u, writes, |&d, &u| f(d, u)))
        }
        (Data::Int(d), Data::Int(u)) => {
            let f: fn(i128, i128) -> i128 = match reduction {
                "none" => |_, u| u,
                "add" => i128::wrapping_add,
                "mul" => i128::wrapping_mul,
                "max" => i128::max,
                "min" => i128::min,
                other => return Err(bad_reduction(other)),
            };
            let f = |&d: &i128, &u: &i128| crate::tensor::wrap(elem, f(d, u));
            Tensor::from_int(elem, shape, put(d, u, writes, f))
        }
        (Data::Str(d), Data::Str(u)) if reduction == "none" => {
            Tensor::new(elem, shape, Data::Str(put(d, u, writes, |_, u| u.clone())))
        }
        (Data::Complex(d), Data::Complex(u)) if reduction == "none" => {
            Tensor::new(elem, shape, Data::Complex(put(d, u, writes, |_, &u| u)))
        }
        _ => return Err(OpError::new(format!("`{reduction}` is not defined for {elem} and {}", updates.elem()))),
    })
}

fn circular(mode: &str) -> Result<bool, OpError> {
    match mode {
        "linear" => Ok(false),
        "circular" => Ok(true),
        other => Err(OpError::new(format!("`mode` is `{other}`, expected `linear` or `circular`"))),
    }
}

fn sequence_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    match resolve_axis(axis, rank)? {
        0 => Err(OpError::new("`axis` must not be the batch axis")),
        axis => Ok(axis),
    }
}

fn eval_tensor_scatter(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (cache, update) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let axis = sequence_axis(ctx.int("axis")?, cache.rank())?;
    let circular = circular(&ctx.str("mode"))?;
    let fits = cache.rank() == update.rank()
        && (0..cache.rank()).all(|i| i == axis || cache.shape()[i] == update.shape()[i]);
    if !fits || update.shape()[axis] > cache.shape()[axis] {
        return Err(OpError::new(format!("an update of shape {:?} does not fit a cache of {:?}", update.shape(), cache.shape())));
    }
    let starts = if ctx.has(2) { ctx.i64s(2)? } else { vec![0; cache.shape()[0]] };
    let (len, n) = (cache.shape()[axis] as i64, update.shape()[axis] as i64);
    let last = |s: i64| s.checked_add(n).is_some_and(|e| circular || e <= len);
    if starts.len() != cache.shape()[0] || !starts.iter().all(|&s| s >= 0 && last(s)) {
        return Err(OpError::new(format!("write indices {starts:?} do not fit a cache of length {len}")));
    }
    let (from, to) = (strides(update.shape()), strides(cache.shape()));
    let writes = (0..update.len()).map(|i| {
        let mut at = 0;
        for a in 0..cache.rank() {
            let mut c = i / from[a] % update.shape()[a];
            if a == axis {
                // Checked above: not negative, and below the length unless circular.
                let batch = i / from[0] % update.shape()[0];
                c = ((starts[batch] + c as i64) % len) as usize;
            }
            at += c * to[a];
        }
        (at, i)
    });
    Ok(vec![write(cache, update, "none", writes)?.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_meet_the_data() {
        let (data, updates) = (Tensor::ints(&[1, 2, 3]), Tensor::ints(&[10, -5]));
        for (reduction, want) in [
            ("none", [1, -5, 3]),
            ("add", [1, 7, 3]),
            ("mul", [1, -100, 3]),
            ("max", [1, 10, 3]),
            ("min", [1, -5, 3]),
        ] {
            let out = write(&data, &updates, reduction, [(1, 0), (1, 1)].into_iter()).unwrap();
            assert_eq!(out.to_i64s().unwrap(), want, "{reduction}");
        }
        assert!(write(&data, &updates, "sum", std::iter::empty()).is_err());
    }
}
