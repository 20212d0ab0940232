//! Reductions over axes, positions of extremes, and running sums.

use super::broadcast::{check_elem, infer_number, tensor_type};
use super::elementwise::{float_max, float_min};
use super::index_map::{around_axis, for_each_index, strided};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
    resolve_axis,
};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Data, Tensor, Value, strides, wrap};
use crate::{Attr, Dim, ElemType, Type, ValueId};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &REDUCE_SUM, &REDUCE_PROD, &REDUCE_MAX, &REDUCE_MIN, &REDUCE_MEAN, &REDUCE_L1, &REDUCE_L2,
    &REDUCE_SUM_SQUARE, &REDUCE_LOG_SUM, &REDUCE_LOG_SUM_EXP, &ARG_MAX, &ARG_MIN, &CUMSUM, &CUMPROD,
];

const OPERANDS: &[Operand] = &[Operand::One("data"), Operand::Optional("axes")];
const KEEPDIMS: AttrDef = AttrDef::new("keepdims", AttrKind::Int, Default::Int(1), "1: reduced axes stay, with length 1");
const ATTRS: &[AttrDef] = &[
    KEEPDIMS,
    AttrDef::new("noop_with_empty_axes", AttrKind::Int, Default::Int(0), "1: no axes means none; 0: no axes means all"),
];

/// Accuracy of a long sum in another order.
const SUMMED: Tolerance = Tolerance::Approximate(1e-5, 1e-6);

type Decompose = fn(&mut Builder, &Node) -> Result<Vec<ValueId>, OpError>;
type Contents = fn(&InferCtx) -> Option<Vec<Dim>>;

macro_rules! reductions {
    ($($NAME:ident $name:literal $source:literal $summary:literal $tolerance:expr, $contents:expr, $decompose:expr, $eval:expr;)*) => {$(
        #[doc = concat!("Reduction: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: $summary,
            source: $source,
            operands: OPERANDS,
            attrs: ATTRS,
            infer: infer_reduce,
            contents: $contents,
            eval: Eval::Direct(|ctx| eval_reduce(ctx, &$eval)),
            decompose: $decompose,
            tolerance: $tolerance,
            ..OpDef::BASE
        };
    )*};
}

reductions! {
    REDUCE_SUM "reduce_sum" "ONNX ReduceSum-13" "sum; 0 for nothing" SUMMED,
        Some(|ctx| fold_contents(ctx, Dim::from(0i64), |a, b| a + b)), None,
        Rule { float: |v| v.iter().sum(), int: |_, v| v.iter().fold(0, |a, &b| i128::wrapping_add(a, b)) };
    REDUCE_PROD "reduce_prod" "ONNX ReduceProd-18" "product; 1 for nothing" SUMMED,
        Some(|ctx| fold_contents(ctx, Dim::from(1i64), |a, b| a * b)), None,
        Rule { float: |v| v.iter().product(), int: |e, v| v.iter().fold(1, |a, &b| wrap(e, a.wrapping_mul(b))) };
    REDUCE_MAX "reduce_max" "ONNX ReduceMax-20" "largest; NaN wins; the type's least value for nothing" Tolerance::Exact,
        Some(|ctx| extreme_contents(ctx, Dim::max_dim)), None,
        Rule {
            float: |v| v.iter().copied().fold(f64::NEG_INFINITY, float_max),
            int: |e, v| v.iter().copied().max().unwrap_or_else(|| e.int_range().map_or(0, |r| r.0)),
        };
    REDUCE_MIN "reduce_min" "ONNX ReduceMin-20" "smallest; NaN wins; the type's greatest value for nothing" Tolerance::Exact,
        Some(|ctx| extreme_contents(ctx, Dim::min_dim)), None,
        Rule {
            float: |v| v.iter().copied().fold(f64::INFINITY, float_min),
            int: |e, v| v.iter().copied().min().unwrap_or_else(|| e.int_range().map_or(0, |r| r.1)),
        };
    REDUCE_MEAN "reduce_mean" "ONNX ReduceMean-18" "mean; integers truncate; NaN (integers: 0) for nothing" SUMMED,
        None, Some(decompose_mean as Decompose),
        Rule {
            float: |v| v.iter().sum::<f64>() / v.len() as f64,
            int: |e, v| {
                let sum = wrap(e, v.iter().fold(0, |a, &b| i128::wrapping_add(a, b)));
                sum.checked_div(v.len() as i128).unwrap_or(0)
            },
        };
    REDUCE_L1 "reduce_l1" "ONNX ReduceL1-18" "sum of absolute values" SUMMED,
        None, Some(|b, n| { let x = map(b, n, &["abs"])?; again(b, n, "reduce_sum", x) }),
        Rule { float: |v| v.iter().map(|x| x.abs()).sum(), int: |_, v| v.iter().map(|x| x.abs()).sum() };
    REDUCE_L2 "reduce_l2" "ONNX ReduceL2-18" "square root of the sum of squares; integers truncate" SUMMED,
        None, Some(decompose_l2 as Decompose),
        Rule {
            float: |v| v.iter().map(|x| x * x).sum::<f64>().sqrt(),
            int: |e, v| (wrap(e, v.iter().fold(0, |a, &x| x.wrapping_mul(x).wrapping_add(a))) as f64).sqrt() as i128,
        };
    REDUCE_SUM_SQUARE "reduce_sum_square" "ONNX ReduceSumSquare-18" "sum of squares" SUMMED,
        None, Some(|b, n| { let x = square(b, n)?; again(b, n, "reduce_sum", x) }),
        Rule {
            float: |v| v.iter().map(|x| x * x).sum(),
            int: |_, v| v.iter().fold(0, |a, &x| x.wrapping_mul(x).wrapping_add(a)),
        };
    REDUCE_LOG_SUM "reduce_log_sum" "ONNX ReduceLogSum-28" "logarithm of the sum; integers truncate" SUMMED,
        None, Some(decompose_log_sum as Decompose),
        Rule { float: |v| v.iter().sum::<f64>().ln(), int: |_, v| (v.iter().map(|&x| x as f64).sum::<f64>()).ln() as i128 };
    REDUCE_LOG_SUM_EXP "reduce_log_sum_exp" "ONNX ReduceLogSumExp-28"
        "logarithm of the sum of exponentials, without overflow; integers truncate" SUMMED,
        None, Some(decompose_log_sum_exp as Decompose),
        Rule {
            float: log_sum_exp,
            int: |_, v| log_sum_exp(&v.iter().map(|&x| x as f64).collect::<Vec<_>>()) as i128,
        };
}

/// How a list of elements becomes one, per class of arithmetic.
struct Rule {
    float: fn(&[f64]) -> f64,
    int: fn(ElemType, &[i128]) -> i128,
}

fn log_sum_exp(v: &[f64]) -> f64 {
    let most = v.iter().copied().fold(f64::NEG_INFINITY, float_max);
    if most.is_infinite() {
        return most;
    }
    v.iter().map(|x| (x - most).exp()).sum::<f64>().ln() + most
}

/// The reduced axes: `None` if they are not known yet.
fn known_axes(ctx: &InferCtx, rank: usize) -> Result<Option<Vec<bool>>, OpError> {
    if ctx.has(1) && ctx.const_ints(1).is_none() {
        // An operand of length 0 is as good as known.
        let empty = ctx.shape(1)?.is_some_and(|s| s.first().and_then(Dim::as_const) == Some(0));
        if !empty {
            return Ok(None);
        }
    }
    let axes = ctx.const_ints(1).unwrap_or_default();
    axis_set(&axes, rank, ctx.flag("noop_with_empty_axes")).map(Some)
}

fn axis_set(axes: &[i64], rank: usize, noop: bool) -> Result<Vec<bool>, OpError> {
    if axes.is_empty() {
        return Ok(vec![!noop; rank]);
    }
    let mut set = vec![false; rank];
    for &axis in axes {
        set[resolve_axis(axis, rank)?] = true;
    }
    Ok(set)
}

fn reduced_shape<D: Clone>(shape: &[D], reduced: &[bool], keepdims: bool, one: D) -> Vec<D> {
    let pairs = shape.iter().zip(reduced);
    if keepdims {
        pairs.map(|(d, &r)| if r { one.clone() } else { d.clone() }).collect()
    } else {
        pairs.filter(|(_, r)| !**r).map(|(d, _)| d.clone()).collect()
    }
}

fn infer_reduce(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    check_elem(elem, elem.is_float() || elem.int_range().is_some())?;
    let keepdims = ctx.flag("keepdims");
    let shape = match ctx.shape(0)? {
        None => None,
        Some(shape) => match known_axes(ctx, shape.len())? {
            Some(reduced) => Some(reduced_shape(shape, &reduced, keepdims, Dim::from(1i64))),
            None if keepdims => Some(shape.iter().map(|_| ctx.fresh_dim()).collect()),
            None => None,
        },
    };
    Ok(vec![tensor_type(elem, shape)])
}

/// Contents of a reduction of a whole vector.
fn fold_contents(ctx: &InferCtx, start: Dim, f: impl Fn(&Dim, &Dim) -> Dim) -> Option<Vec<Dim>> {
    let values = ctx.dims(0)?;
    match ctx.shape(0).ok()??.len() {
        0 => Some(values.to_vec()),
        1 if known_axes(ctx, 1).ok()?? == [true] => {
            Some(vec![values.iter().fold(start, |a, b| f(&a, b))])
        }
        _ => None,
    }
}

fn extreme_contents(ctx: &InferCtx, f: impl Fn(&Dim, &Dim) -> Dim) -> Option<Vec<Dim>> {
    let first = ctx.dims(0)?.first()?.clone();
    fold_contents(ctx, first, f)
}

fn eval_reduce(ctx: &EvalCtx, rule: &Rule) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axes = if ctx.has(1) { ctx.i64s(1)? } else { vec![] };
    let reduced = axis_set(&axes, x.rank(), ctx.flag("noop_with_empty_axes"))?;
    let out_shape = reduced_shape(x.shape(), &reduced, ctx.flag("keepdims"), 1);
    let data = match x.data() {
        Data::Float(v) => Data::Float(groups(v, x.shape(), &reduced, rule.float)),
        Data::Int(v) => Data::Int(groups(v, x.shape(), &reduced, |v| (rule.int)(x.elem(), v))),
        _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
    };
    let out = match data {
        Data::Int(v) => Tensor::from_int(x.elem(), out_shape, v),
        Data::Float(v) => Tensor::from_f64(x.elem(), out_shape, v),
        data => Tensor::new(x.elem(), out_shape, data),
    };
    Ok(vec![out.into()])
}

/// Applies `f` to each group of elements that differ in the reduced axes only.
fn groups<T: Copy>(values: &[T], shape: &[usize], reduced: &[bool], f: impl Fn(&[T]) -> T) -> Vec<T> {
    let steps = strides(shape);
    let part = |which: bool| -> (Vec<usize>, Vec<isize>) {
        (0..shape.len())
            .filter(|&i| reduced[i] == which)
            .map(|i| (shape[i], steps[i] as isize))
            .unzip()
    };
    let ((kept, kept_steps), (gone, gone_steps)) = (part(false), part(true));
    let (start, step) = (strided(&kept, kept_steps, 0), strided(&gone, gone_steps, 0));
    let offsets: Vec<usize> = (0..gone.iter().product()).map(step).collect();
    let mut group = Vec::with_capacity(offsets.len());
    (0..kept.iter().product())
        .map(|i| {
            let base = start(i);
            group.clear();
            group.extend(offsets.iter().map(|o| values[base + o]));
            f(&group)
        })
        .collect()
}

fn data(n: &Node) -> Result<ValueId, OpError> {
    n.operand(0).ok_or_else(|| OpError::new("operand 0 is missing"))
}

/// The data operand after some unary ops.
fn map(b: &mut Builder, n: &Node, ops: &[&str]) -> Result<ValueId, OpError> {
    ops.iter().try_fold(data(n)?, |x, op| b.op(op, &[x]))
}

fn square(b: &mut Builder, n: &Node) -> Result<ValueId, OpError> {
    let x = data(n)?;
    b.op("mul", &[x, x])
}

/// Another reduction of `x` over the same axes.
fn again(b: &mut Builder, n: &Node, op: &str, x: ValueId) -> Result<Vec<ValueId>, OpError> {
    b.node(op, vec![Some(x), n.operand(1)], n.attrs.clone(), 1)
}

/// The data as floats, for formulas that leave the integers; `back` undoes it.
fn as_float(b: &mut Builder, x: ValueId) -> Result<ValueId, OpError> {
    if b.elem(x)?.is_float() {
        return Ok(x);
    }
    b.op_with("cast", &[x], [("to", Attr::Elem(ElemType::F64))])
}

fn back(b: &mut Builder, y: ValueId, elem: ElemType) -> Result<Vec<ValueId>, OpError> {
    if b.elem(y)? == elem {
        return Ok(vec![y]);
    }
    Ok(vec![b.op_with("cast", &[y], [("to", Attr::Elem(elem))])?])
}

/// sum / (elements of the operand / elements of the result)
fn decompose_mean(b: &mut Builder, n: &Node) -> Result<Vec<ValueId>, OpError> {
    let x = data(n)?;
    let elem = b.elem(x)?;
    let sum = again(b, n, "reduce_sum", x)?[0];
    let fixed = |v| Some(b.ty(v).as_tensor()?.const_shape()?.iter().product::<usize>());
    if let (Some(all), Some(groups)) = (fixed(x), fixed(sum))
        && groups > 0
    {
        let count = b.scalar(elem, (all / groups) as f64);
        return Ok(vec![b.op("div", &[sum, count])?]);
    }
    let (all, groups, one) = (b.op("size", &[x])?, b.op("size", &[sum])?, b.constant(&Tensor::int(1)));
    let groups = b.op("max", &[groups, one])?;
    let count = b.op("div", &[all, groups])?;
    let count = b.op_with("cast", &[count], [("to", Attr::Elem(elem))])?;
    Ok(vec![b.op("div", &[sum, count])?])
}

fn decompose_l2(b: &mut Builder, n: &Node) -> Result<Vec<ValueId>, OpError> {
    let elem = b.elem(data(n)?)?;
    let squared = square(b, n)?;
    let sum = again(b, n, "reduce_sum", squared)?[0];
    let sum = as_float(b, sum)?;
    let root = b.op("sqrt", &[sum])?;
    back(b, root, elem)
}

fn decompose_log_sum(b: &mut Builder, n: &Node) -> Result<Vec<ValueId>, OpError> {
    let x = data(n)?;
    let elem = b.elem(x)?;
    let x = as_float(b, x)?;
    let sum = again(b, n, "reduce_sum", x)?[0];
    let log = b.op("log", &[sum])?;
    back(b, log, elem)
}

/// log(sum(exp(x - m))) + m with m the largest element, or 0 where that is infinite.
fn decompose_log_sum_exp(b: &mut Builder, n: &Node) -> Result<Vec<ValueId>, OpError> {
    let x = data(n)?;
    let elem = b.elem(x)?;
    let x = as_float(b, x)?;
    let zero = { let e = b.elem(x)?; b.scalar(e, 0.0) };
    let finite_max = |b: &mut Builder, keepdims: bool| -> Result<ValueId, OpError> {
        let mut attrs = n.attrs.clone();
        attrs.insert("keepdims".to_owned(), keepdims.into());
        let most = b.node("reduce_max", vec![Some(x), n.operand(1)], attrs, 1)?[0];
        let infinite = b.op("is_inf", &[most])?;
        b.op("where", &[infinite, zero, most])
    };
    let wide = finite_max(b, true)?;
    let keepdims = n.attr("keepdims") != Some(Attr::Int(0));
    let most = if keepdims { wide } else { finite_max(b, false)? };
    let e = b.op("sub", &[x, wide])?;
    let e = b.op("exp", &[e])?;
    let sum = again(b, n, "reduce_sum", e)?[0];
    let log = b.op("log", &[sum])?;
    let y = b.op("add", &[log, most])?;
    back(b, y, elem)
}

macro_rules! positions {
    ($($NAME:ident $name:literal $source:literal $summary:literal $before:expr;)*) => {$(
        #[doc = concat!("Search: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: $summary,
            source: $source,
            operands: &[Operand::One("data")],
            attrs: &[
                AttrDef::new("axis", AttrKind::Int, Default::Int(0), "axis that is searched"),
                KEEPDIMS,
                AttrDef::new("select_last_index", AttrKind::Int, Default::Int(0), "1: the last of equals"),
            ],
            infer: infer_position,
            eval: Eval::Direct(|ctx| eval_position(ctx, $before)),
            ..OpDef::BASE
        };
    )*};
}

positions! {
    ARG_MAX "arg_max" "ONNX ArgMax-13" "index of the largest element along an axis; NaN counts as largest" |order| order.is_gt();
    ARG_MIN "arg_min" "ONNX ArgMin-13" "index of the smallest element along an axis; NaN counts as smallest" |order| order.is_lt();
}

fn infer_position(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    check_elem(elem, elem.is_float() || elem.int_range().is_some())?;
    let Some(shape) = ctx.shape(0)? else {
        return Ok(vec![Type::unranked(ElemType::I64)]);
    };
    let mut reduced = vec![false; shape.len()];
    reduced[resolve_axis(ctx.int("axis")?, shape.len())?] = true;
    let shape = reduced_shape(shape, &reduced, ctx.flag("keepdims"), Dim::from(1i64));
    Ok(vec![tensor_type(ElemType::I64, Some(shape))])
}

fn eval_position(
    ctx: &EvalCtx,
    better: impl Fn(std::cmp::Ordering) -> bool,
) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axis = resolve_axis(ctx.int("axis")?, x.rank())?;
    let last = ctx.flag("select_last_index");
    let (outer, len, inner) = around_axis(x.shape(), axis);
    if len == 0 && outer * inner > 0 {
        return Err(OpError::new("the searched axis is empty"));
    }
    // Whether element `a` replaces the best so far `b`.
    let replaces = |a: usize, b: usize| match x.data() {
        Data::Float(v) => match v[a].partial_cmp(&v[b]) {
            Some(order) => better(order) || last && order.is_eq(),
            None => v[a].is_nan() && (last || !v[b].is_nan()),
        },
        Data::Int(v) => better(v[a].cmp(&v[b])) || last && v[a] == v[b],
        _ => false,
    };
    let mut out = Vec::with_capacity(outer * inner);
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| (o * len + k) * inner + i;
            let best = (1..len).fold(0, |best, k| if replaces(at(k), at(best)) { k } else { best });
            out.push(best as i128);
        }
    }
    let mut reduced = vec![false; x.rank()];
    reduced[axis] = true;
    let shape = reduced_shape(x.shape(), &reduced, ctx.flag("keepdims"), 1);
    Ok(vec![Tensor::from_int(ElemType::I64, shape, out).into()])
}

macro_rules! running {
    ($($NAME:ident $name:literal $source:literal $summary:literal $start:literal $contents:expr, $float:expr, $int:expr;)*) => {$(
        #[doc = concat!("Running: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: $summary,
            source: $source,
            operands: &[Operand::One("x"), Operand::One("axis")],
            attrs: &[
                AttrDef::new("exclusive", AttrKind::Int, Default::Int(0), "1: an element does not count itself"),
                AttrDef::new("reverse", AttrKind::Int, Default::Int(0), "1: from the end"),
            ],
            infer: |ctx| {
                if let (Some(shape), Some(axis)) = (ctx.shape(0)?, ctx.const_ints(1)) {
                    resolve_axis(one_axis(&axis)?, shape.len())?;
                }
                infer_number(ctx)
            },
            contents: $contents,
            eval: Eval::Direct(|ctx| {
                let x = ctx.tensor(0)?;
                let out = match x.data() {
                    Data::Float(v) => Tensor::from_f64(x.elem(), x.shape(), run(ctx, v, f64::from($start), $float)?),
                    Data::Int(v) => Tensor::from_int(x.elem(), x.shape(), run(ctx, v, i128::from($start), $int)?),
                    _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
                };
                Ok(vec![out.into()])
            }),
            tolerance: SUMMED,
            ..OpDef::BASE
        };
    )*};
}

running! {
    CUMSUM "cumsum" "ONNX CumSum-14" "running sum along an axis" 0i32
        Some((|ctx| {
            if ctx.shape(0).ok()??.len() != 1 || ctx.flag("exclusive") || ctx.flag("reverse") {
                return None;
            }
            let mut sum = Dim::from(0i64);
            Some(ctx.dims(0)?.iter().map(|d| { sum = &sum + d; sum.clone() }).collect())
        }) as Contents),
        |a, b| a + b, |a, b| a.wrapping_add(b);
    CUMPROD "cumprod" "ONNX CumProd-26" "running product along an axis" 1i32
        None, |a, b| a * b, |a, b| a.wrapping_mul(b);
}

fn one_axis(axis: &[i64]) -> Result<i64, OpError> {
    match axis {
        [axis] => Ok(*axis),
        _ => Err(OpError::new("`axis` must be one integer")),
    }
}

fn run<T: Copy>(ctx: &EvalCtx, v: &[T], start: T, f: impl Fn(T, T) -> T) -> Result<Vec<T>, OpError> {
    let shape = ctx.tensor(0)?.shape();
    let axis = resolve_axis(one_axis(&ctx.i64s(1)?)?, shape.len())?;
    let (exclusive, reverse) = (ctx.flag("exclusive"), ctx.flag("reverse"));
    let mut lines = shape.to_vec();
    let len = std::mem::replace(&mut lines[axis], 1);
    let steps = strides(shape);
    let mut out = v.to_vec();
    for_each_index(&lines, |_, at| {
        let base = super::index_map::linear(at, &steps);
        let mut sum = start;
        for k in 0..len {
            let k = if reverse { len - 1 - k } else { k };
            let i = base + k * steps[axis];
            let next = f(sum, v[i]);
            out[i] = if exclusive { sum } else { next };
            sum = next;
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_follow_the_axes() {
        let v = [1, 2, 3, 4, 5, 6];
        let sum = |r: [bool; 2]| groups(&v, &[2, 3], &r, |g| g.iter().sum());
        assert_eq!(sum([true, false]), [5, 7, 9]);
        assert_eq!(sum([false, true]), [6, 15]);
        assert_eq!(sum([true, true]), [21]);
        assert_eq!(sum([false, false]), v);
        assert_eq!(groups::<i32>(&[], &[0, 2], &[true, false], |g| g.iter().sum()), [0, 0]);
        assert_eq!(axis_set(&[-1], 2, false), Ok(vec![false, true]));
        assert!(axis_set(&[2], 2, false).is_err());
    }

    #[test]
    fn log_sum_exp_does_not_overflow() {
        assert_eq!(log_sum_exp(&[1000.0, 1000.0]), 1000.0 + 2f64.ln());
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    }
}
