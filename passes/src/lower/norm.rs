//! Softmax and normalizations: statistics of a row, computed once before the loop over the row.

use super::expr::E;
use super::index::{LoopVar, Pos};
use super::reduce::count;
use super::{Element, KernelArg, Lowerer, Rule};
use crate::schedules::{Num, softmax};
use lapidary_ir::kernel::{Binary, ReduceKind, Unary};
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{Attr, Dim, ElemType, NodeId};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::scheduled(
        "softmax",
        |x, p| {
            let (e, sum, _) = exponentials(x, p)?;
            Ok(x.b().binary(Binary::Div, e, sum))
        },
        softmax_of_rows,
    ),
    Rule::general("log_softmax", |x, p| {
        let (_, sum, shifted) = exponentials(x, p)?;
        let b = x.b();
        let log = b.unary(Unary::Log, sum);
        Ok(b.binary(Binary::Sub, shifted, log))
    }),
    Rule::general("layer_normalization", |x, p| normalized(x, p, true)),
    Rule::general("rms_normalization", |x, p| normalized(x, p, false)),
];

/// Operations worth waking another thread for.
const THREAD_WORK: i64 = 64 << 10;
/// Operations of one element of a softmax.
const SOFTMAX_WORK: i64 = 32;

/// A softmax over the last axis of `f32`, whose length is a known multiple of four.
fn softmax_of_rows(low: &mut Lowerer, n: NodeId) -> Result<bool, OpError> {
    let node = low.facts.module.node(n);
    let (Some(x), y) = (node.operand(0), node.results[0]) else {
        return Ok(false);
    };
    let (shape, axis) = (low.facts.shape(x)?, node.int("axis")?);
    let last = resolve_axis(axis, shape.len())? + 1 == shape.len();
    let f32s = [x, y]
        .iter()
        .all(|&v| low.facts.elem(v) == Ok(ElemType::F32));
    let rows_in_order = [x, y].iter().all(|&v| low.facts.is_row_major(v));
    let Some((width, lead)) = shape.split_last() else {
        return Ok(false);
    };
    if !last || !f32s || !rows_in_order || shape.iter().any(|d| d.as_const() == Some(0)) {
        return Ok(false);
    }
    // Rows that are no whole vectors go element by element.
    if width.as_const().is_none_or(|w| w % 4 != 0) {
        return Ok(false);
    }
    let rows = lead.iter().fold(Dim::from(1i64), |n, d| n * d.clone());
    let num = |d: &Dim| d.as_const().map_or(Num::Sym, Num::Const);
    let mut args = vec![KernelArg::Value(x), KernelArg::Value(y)];
    if rows.as_const().is_none() {
        args.push(KernelArg::Size(rows.clone()));
    }
    let per_row = width.as_const().unwrap_or(256) * SOFTMAX_WORK;
    let grain = (THREAD_WORK / per_row.max(1)).clamp(1, 1 << 20) as u32;
    let flops = &(&rows * width) * &Dim::from(SOFTMAX_WORK);
    low.launch(
        softmax::kernel(
            num(&rows),
            width.as_const().unwrap_or_default(),
            low.target.has_wide_vectors(),
        ),
        &args,
        &rows,
        grain,
        &flops,
    )?;
    Ok(true)
}

/// `exp(x - max)`, the row's sum of them, and `x - max`.
fn exponentials(x: &mut Element, p: &Pos) -> Result<(E, E, E), OpError> {
    let shape = x.out_shape()?;
    let axis = x.axis("axis", shape.len())?;
    let mut at = p.indices(&x.x.body, &shape);
    let r = x.b().loop_var(shape[axis].clone());
    at[axis] = r.dim();
    let (own, row) = (x.at(0, p)?, x.at(0, &Pos::At(at))?);
    let b = x.b();
    let most = b.reduce(ReduceKind::Max, &[r], row);
    let in_row = b.binary(Binary::Sub, row, most);
    let in_row = b.unary(Unary::Exp, in_row);
    let sum = b.reduce(ReduceKind::Sum, &[r], in_row);
    let shifted = b.binary(Binary::Sub, own, most);
    let e = b.unary(Unary::Exp, shifted);
    Ok((e, sum, shifted))
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` over the axes from `axis`; without mean if not
/// `centred`. Further results are the mean and the inverse deviation.
fn normalized(x: &mut Element, p: &Pos, centred: bool) -> Result<E, OpError> {
    let (shape, out) = (x.shape(0)?, x.out_shape()?);
    let axis = x.axis("axis", shape.len())?;
    let epsilon = x.float("epsilon").unwrap_or(1e-5);
    let stash = match x.attr("stash_type") {
        Some(Attr::Elem(e)) => super::expr::compute_type(e),
        _ => ElemType::F32,
    };
    let at = p.indices(&x.x.body, &out);
    let vars: Vec<LoopVar> = x.b().loop_vars(&shape[axis..]);
    let row: Vec<Dim> = at[..axis]
        .iter()
        .cloned()
        .chain(vars.iter().map(|v| v.dim()))
        .collect();
    let v = x.at(0, &Pos::At(row))?;
    let b = x.b();
    let wide = if b.ty(v) == ElemType::F64 {
        ElemType::F64
    } else {
        stash
    };
    let v = b.cast(wide, v);
    let n = count(b, &vars, wide);
    let mean = if centred {
        let sum = b.reduce(ReduceKind::Sum, &vars, v);
        Some(b.binary(Binary::Div, sum, n))
    } else {
        None
    };
    let d = match mean {
        Some(m) => b.binary(Binary::Sub, v, m),
        None => v,
    };
    let square = b.binary(Binary::Mul, d, d);
    let sum = b.reduce(ReduceKind::Sum, &vars, square);
    let variance = b.binary(Binary::Div, sum, n);
    let epsilon = b.float(wide, epsilon);
    let variance = b.binary(Binary::Add, variance, epsilon);
    let deviation = b.unary(Unary::Sqrt, variance);
    let inverse = b.unary(Unary::Reciprocal, deviation);
    match (x.result, mean) {
        (0, _) => {}
        (1, Some(m)) => return Ok(m),
        _ => return Ok(inverse),
    }
    let own = x.at(0, p)?;
    let elem = x.out_elem()?;
    let b = x.b();
    let mut y = b.cast(wide, own);
    if let Some(m) = mean {
        y = b.binary(Binary::Sub, y, m);
    }
    y = b.binary(Binary::Mul, y, inverse);
    // The normalized value is rounded to the operand's type before it is scaled.
    y = b.cast(elem, y);
    let ty = b.ty(y);
    for (i, f) in [(1, Binary::Mul), (2, Binary::Add)] {
        if x.has(i) {
            let operand = x.broadcast(i, p)?;
            let b = x.b();
            let operand = b.cast(ty, operand);
            y = b.binary(f, y, operand);
        }
    }
    Ok(y)
}
