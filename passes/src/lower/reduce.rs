//! Reductions, positions of extremes, running sums.

use super::expr::{Body, E};
use super::index::{LoopVar, Pos};
use super::{Element, Lowerer, Rule, Spec};
use lapidary_ir::kernel::{Binary, ReduceKind, Unary};
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{Attr, Dim, ElemType, NodeId};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::reduce("reduce_sum", |x, p| plain(x, p, ReduceKind::Sum)),
    Rule::reduce("reduce_prod", |x, p| plain(x, p, ReduceKind::Prod)),
    Rule::reduce("reduce_max", |x, p| plain(x, p, ReduceKind::Max)),
    Rule::reduce("reduce_min", |x, p| plain(x, p, ReduceKind::Min)),
    Rule::reduce("reduce_mean", |x, p| {
        let (v, vars) = inner(x, p)?;
        let b = x.b();
        let sum = b.reduce(ReduceKind::Sum, &vars, v);
        let count = count(b, &vars, b.ty(v));
        Ok(b.binary(Binary::Div, sum, count))
    }),
    Rule::reduce("reduce_l1", |x, p| {
        let (v, vars) = inner(x, p)?;
        let b = x.b();
        let v = b.unary(Unary::Abs, v);
        Ok(b.reduce(ReduceKind::Sum, &vars, v))
    }),
    Rule::reduce("reduce_sum_square", |x, p| {
        let (v, vars) = inner(x, p)?;
        let b = x.b();
        let v = b.binary(Binary::Mul, v, v);
        Ok(b.reduce(ReduceKind::Sum, &vars, v))
    }),
    Rule::reduce("reduce_l2", |x, p| {
        let (v, vars) = inner(x, p)?;
        let b = x.b();
        let ty = b.ty(v);
        let v = b.binary(Binary::Mul, v, v);
        let sum = b.reduce(ReduceKind::Sum, &vars, v);
        Ok(by_float(b, sum, ty, Unary::Sqrt))
    }),
    Rule::reduce("reduce_log_sum", |x, p| {
        let (v, vars) = inner(x, p)?;
        let b = x.b();
        let ty = b.ty(v);
        let v = widened(b, v);
        let sum = b.reduce(ReduceKind::Sum, &vars, v);
        Ok(by_float(b, sum, ty, Unary::Log))
    }),
    Rule::general("reduce_log_sum_exp", |x, p| {
        let (v, vars) = inner(x, p)?;
        let b = x.b();
        let ty = b.ty(v);
        let v = widened(b, v);
        let most = b.reduce(ReduceKind::Max, &vars, v);
        let zero = b.float(b.ty(v), 0.0);
        let infinite = b.unary(Unary::IsInf, most);
        let shift = b.select(infinite, zero, most);
        let e = b.binary(Binary::Sub, v, shift);
        let e = b.unary(Unary::Exp, e);
        let sum = b.reduce(ReduceKind::Sum, &vars, e);
        let log = b.unary(Unary::Log, sum);
        let y = b.binary(Binary::Add, log, shift);
        let y = b.select(infinite, most, y);
        Ok(b.cast(ty, y))
    }),
    Rule::general("arg_max", |x, p| arg(x, p, ReduceKind::Max)),
    Rule::general("arg_min", |x, p| arg(x, p, ReduceKind::Min)),
    Rule::steps("cumsum", |low, n| running(low, n, Binary::Add)),
    Rule::steps("cumprod", |low, n| running(low, n, Binary::Mul)),
];

/// The operand's element under new loops over the reduced axes.
fn inner(x: &mut Element, p: &Pos) -> Result<(E, Vec<LoopVar>), OpError> {
    let (shape, out) = (x.shape(0)?, x.out_shape()?);
    let axes = match x.const_ints(1) {
        Some(a) => a,
        None => {
            let empty = x.has(1) && x.shape(1)?.first().and_then(Dim::as_const) == Some(0);
            if x.has(1) && !empty {
                return Err(OpError::new("`axes` must be constant"));
            }
            vec![]
        }
    };
    let mut reduced = vec![axes.is_empty() && !x.flag("noop_with_empty_axes"); shape.len()];
    for a in axes {
        reduced[resolve_axis(a, shape.len())?] = true;
    }
    let at = p.indices(&x.x.body, &out);
    let mut kept = at.iter();
    let (mut from, mut vars) = (vec![], vec![]);
    for (n, &r) in shape.iter().zip(&reduced) {
        let keepdims = out.len() == shape.len();
        let index = if !r || keepdims { kept.next() } else { None };
        if r {
            let v = x.b().loop_var(n.clone());
            vars.push(v);
            from.push(v.dim());
        } else {
            from.push(
                index
                    .cloned()
                    .ok_or_else(|| OpError::new("the result has too few axes"))?,
            );
        }
    }
    let v = x.at(0, &Pos::At(from))?;
    Ok((v, vars))
}

fn plain(x: &mut Element, p: &Pos, kind: ReduceKind) -> Result<E, OpError> {
    let (v, vars) = inner(x, p)?;
    if vars.is_empty() {
        return Ok(v);
    }
    let b = x.b();
    let kind = match (kind, b.ty(v)) {
        (ReduceKind::Max, ElemType::Bool) => ReduceKind::Or,
        (ReduceKind::Min, ElemType::Bool) => ReduceKind::And,
        (k, _) => k,
    };
    Ok(b.reduce(kind, &vars, v))
}

/// Number of iterations of some loops, in a type.
pub fn count(b: &mut Body, vars: &[LoopVar], ty: ElemType) -> E {
    let n = vars
        .iter()
        .fold(Dim::from(1i64), |n, &v| n * b.extent(v).clone());
    let n = b.index(n);
    match n_const(b, n) {
        Some(c) => b.int(ty, c),
        None => b.cast(ty, n),
    }
}

fn n_const(b: &Body, e: E) -> Option<i64> {
    match b.node(e) {
        super::expr::Node::Const(_, super::expr::Number::Int(i)) => Some(*i),
        _ => None,
    }
}

fn widened(b: &mut Body, v: E) -> E {
    if b.ty(v).is_float() {
        v
    } else {
        b.cast(ElemType::F64, v)
    }
}

/// A float function of a number of any type; integers truncate.
fn by_float(b: &mut Body, v: E, ty: ElemType, f: Unary) -> E {
    let v = widened(b, v);
    let y = b.unary(f, v);
    b.cast(ty, y)
}

/// The first (or last) position that holds the extreme; the first NaN wins.
fn arg(x: &mut Element, p: &Pos, kind: ReduceKind) -> Result<E, OpError> {
    let (shape, out) = (x.shape(0)?, x.out_shape()?);
    let axis = x.axis("axis", shape.len())?;
    let last = x.flag("select_last_index");
    let mut at = p.indices(&x.x.body, &out);
    let v = x.b().loop_var(shape[axis].clone());
    if out.len() == shape.len() {
        at[axis] = v.dim();
    } else {
        at.insert(axis, v.dim());
    }
    let e = x.at(0, &Pos::At(at))?;
    let b = x.b();
    let most = b.reduce(kind, &[v], e);
    let mut hit = b.binary(Binary::Eq, e, most);
    if b.ty(e).is_float() {
        let nan = b.unary(Unary::IsNan, e);
        hit = b.binary(Binary::Or, hit, nan);
    }
    let i = b.index(v.dim());
    let (none, pick) = if last {
        (b.int(ElemType::I64, -1), ReduceKind::Max)
    } else {
        (b.index(shape[axis].clone()), ReduceKind::Min)
    };
    let i = b.select(hit, i, none);
    Ok(b.reduce(pick, &[v], i))
}

/// One pass along the axis, in order: each element from the one before.
fn running(low: &mut Lowerer, n: NodeId, f: Binary) -> Result<(), OpError> {
    let node = low.facts.module.node(n).clone();
    let missing = || OpError::new("an operand is missing");
    let (data, out) = (node.operand(0).ok_or_else(missing)?, node.results[0]);
    let axis = node.operand(1).ok_or_else(missing)?;
    let axis = low
        .facts
        .contents
        .get(&axis)
        .and_then(|c| c.first()?.as_const())
        .ok_or_else(|| OpError::new("`axis` must be constant"))?;
    let flag = |name: &str| node.attr(name) == Some(Attr::Int(1));
    let (exclusive, reverse) = (flag("exclusive"), flag("reverse"));
    let shape = low.facts.shape(data)?;
    let axis = resolve_axis(axis, shape.len())?;
    let elem = low.facts.elem(out)?;
    low.kernel(node.op.name, out, |x| {
        let vars = x.body.loop_vars(&shape);
        let mut at: Vec<Dim> = vars.iter().map(|v| v.dim()).collect();
        let step = vars[axis].dim();
        let one = Dim::from(1i64);
        let place = |i: &Dim| {
            if reverse {
                &(&shape[axis] - &one) - i
            } else {
                i.clone()
            }
        };
        at[axis] = place(&(&step - &one));
        let before = Pos::At(at.clone());
        let started = x.body.index_less(&Dim::default(), &step);
        at[axis] = place(&step);
        let here = Pos::At(at);
        let offset = here.linear(&shape);
        let so_far = x.body.load(out, elem, before.linear(&shape), Some(started));
        let neutral = x.body.int(elem, i64::from(f == Binary::Mul));
        let so_far = x.body.select(started, so_far, neutral);
        let addend = if exclusive {
            let v = x.value(data, &before)?;
            x.body.where_inside(started, v, neutral)
        } else {
            x.value(data, &here)?
        };
        let value = x.body.binary(f, so_far, addend);
        Ok(Spec {
            serial: vec![vars[axis]],
            vars,
            offset,
            mask: None,
            value,
        })
    })
}
