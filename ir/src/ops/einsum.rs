//! Einstein summation.

use super::broadcast::{check_elem, common_elem, tensor_type};
use super::index_map::{strided};
use super::shape_values::{axis_len, product, reshape_to};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
    broadcast_dims, broadcast_shapes, checked_count};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Tensor, Value, strides};
use crate::{Attr, Dim, ElemType, Type, ValueId};

/// The family's ops.
pub static OPS: &[&OpDef] = &[&EINSUM];

/// Einstein summation.
pub static EINSUM: OpDef = OpDef {
    name: "einsum",
    summary: "product of the operands, summed over every label that the result lacks",
    source: "ONNX Einsum-28",
    operands: &[Operand::Variadic("inputs")],
    attrs: &[AttrDef::new("equation", AttrKind::Str, Default::Required, "`ij,jk->ik`; `...` broadcasts")],
    infer: infer_einsum,
    eval: Eval::Direct(eval_einsum),
    decompose: Some(decompose_einsum),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// An axis name: a letter, or (above the letters) an axis of the ellipsis, counted from the right.
type Label = u32;

const ELLIPSIS: Label = 0x1_0000;

/// A parsed equation: the labels of every operand and of the result.
#[derive(Debug, PartialEq)]
struct Equation {
    terms: Vec<Vec<Label>>,
    out: Vec<Label>,
}

impl Equation {
    fn parse(text: &str, ranks: &[usize]) -> Result<Equation, OpError> {
        let bad = |what: String| OpError::new(format!("equation `{text}`: {what}"));
        let text: String = text.chars().filter(|c| *c != ' ').collect();
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let words: Vec<&str> = left.split(',').collect();
        if words.len() != ranks.len() {
            return Err(bad(format!("has {} terms for {} operands", words.len(), ranks.len())));
        }
        let letters = |word: &str, ellipsis: usize| -> Result<Vec<Label>, OpError> {
            let mut labels = vec![];
            let mut rest = word;
            while let Some(c) = rest.chars().next() {
                if let Some(after) = rest.strip_prefix("...") {
                    labels.extend((0..ellipsis).rev().map(|i| ELLIPSIS + i as Label));
                    rest = after;
                } else if c.is_ascii_alphabetic() {
                    labels.push(u32::from(c));
                    rest = &rest[1..];
                } else {
                    return Err(bad(format!("unexpected `{c}`")));
                }
            }
            Ok(labels)
        };
        let mut widest = 0;
        let mut terms = vec![];
        for (word, &rank) in words.iter().zip(ranks) {
            let named = letters(word, 0)?.len();
            let ellipsis = match word.matches("...").count() {
                0 if named == rank => 0,
                1 if named <= rank => rank - named,
                _ => return Err(bad(format!("`{word}` does not fit rank {rank}"))),
            };
            widest = widest.max(ellipsis);
            terms.push(letters(word, ellipsis)?);
        }
        let out = match right {
            Some(word) => letters(word, widest)?,
            None => {
                let mut all: Vec<Label> = terms.iter().flatten().copied().collect();
                all.sort_unstable();
                let once = all.chunk_by(|a, b| a == b).filter(|c| c.len() == 1);
                let mut out: Vec<Label> = (0..widest).rev().map(|i| ELLIPSIS + i as Label).collect();
                out.extend(once.map(|c| c[0]).filter(|&l| l < ELLIPSIS));
                out
            }
        };
        let mut seen = std::collections::HashSet::new();
        if !out.iter().all(|l| seen.insert(*l) && terms.iter().flatten().any(|t| t == l)) {
            return Err(bad("the result's labels must be distinct labels of the operands".to_owned()));
        }
        Ok(Equation { terms, out })
    }

    fn of(n: &Node, ranks: &[usize]) -> Result<Equation, OpError> {
        match n.attr("equation") {
            Some(Attr::Str(text)) => Equation::parse(&text, ranks),
            _ => Err(OpError::new("attribute `equation` is missing")),
        }
    }
}

fn infer_einsum(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = common_elem(ctx, 0)?;
    check_elem(elem, elem.is_float() || elem.is_int())?;
    let mut shapes = vec![];
    for i in 0..ctx.types.len() {
        match ctx.shape(i)? {
            Some(shape) => shapes.push(shape),
            None => return Ok(vec![Type::unranked(elem)]),
        }
    }
    let ranks: Vec<usize> = shapes.iter().map(|s| s.len()).collect();
    let equation = Equation::of(ctx.node, &ranks)?;
    let mut lens = std::collections::HashMap::<Label, Dim>::new();
    for (term, shape) in equation.terms.iter().zip(&shapes) {
        for (label, dim) in term.iter().zip(*shape) {
            let merged = match lens.get(label) {
                Some(known) => broadcast_dims(std::slice::from_ref(known), std::slice::from_ref(dim))?.remove(0),
                None => dim.clone(),
            };
            lens.insert(*label, merged);
        }
    }
    let shape = equation.out.iter().map(|l| lens[l].clone()).collect();
    Ok(vec![tensor_type(elem, Some(shape))])
}

fn eval_einsum(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let operands: Vec<&Tensor> = (0..ctx.operands.len()).map(|i| ctx.tensor(i)).collect::<Result<_, _>>()?;
    let ranks: Vec<usize> = operands.iter().map(|t| t.rank()).collect();
    let equation = Equation::of(ctx.node, &ranks)?;
    // All labels, those of the result first; the rest is summed.
    let mut labels = equation.out.clone();
    for l in equation.terms.iter().flatten() {
        if !labels.contains(l) {
            labels.push(*l);
        }
    }
    let mut lens = vec![1; labels.len()];
    for (term, t) in equation.terms.iter().zip(&operands) {
        for (label, &d) in term.iter().zip(t.shape()) {
            let at = labels.iter().position(|l| l == label).unwrap_or_default();
            lens[at] = broadcast_shapes(&[lens[at]], &[d])?[0];
        }
    }
    checked_count(&lens)?;
    let index: Vec<_> = equation
        .terms
        .iter()
        .zip(&operands)
        .map(|(term, t)| {
            let own = strides(t.shape());
            let step = |l: &Label| {
                let axes = (0..term.len()).filter(|&i| term[i] == *l && t.shape()[i] != 1);
                axes.map(|i| own[i] as isize).sum()
            };
            strided(&lens, labels.iter().map(step).collect(), 0)
        })
        .collect();
    let (kept, summed) = lens.split_at(equation.out.len());
    let (n, inner) = (checked_count(kept)?, checked_count(summed)?);
    let elem = operands.first().ok_or_else(|| OpError::new("at least one operand is needed"))?.elem();
    let mixed = || OpError::new("operands must have one number type");
    let out = if elem.is_float() {
        let values: Option<Vec<&[f64]>> = operands.iter().map(|t| t.floats()).collect();
        let values = values.ok_or_else(mixed)?;
        let term = |i: usize| values.iter().zip(&index).map(|(v, at)| v[at(i)]).product::<f64>();
        Tensor::from_f64(elem, kept, (0..n).map(|o| (0..inner).map(|k| term(o * inner + k)).sum()).collect())
    } else {
        let values: Option<Vec<&[i128]>> = operands.iter().map(|t| t.integers()).collect();
        let values = values.ok_or_else(mixed)?;
        let term = |i: usize| values.iter().zip(&index).fold(1i128, |p, (v, at)| p.wrapping_mul(v[at(i)]));
        let sum = |o: usize| (0..inner).fold(0i128, |s, k| s.wrapping_add(term(o * inner + k)));
        Tensor::from_int(elem, kept, (0..n).map(sum).collect())
    };
    Ok(vec![out.into()])
}

/// Operands are joined from the left, each pair by a matmul where the shared labels allow one.
fn decompose_einsum(b: &mut Builder, n: &Node) -> Result<Vec<ValueId>, OpError> {
    let operands: Vec<ValueId> = n.operands.iter().flatten().copied().collect();
    let ranks: Vec<usize> = operands.iter().map(|&v| Ok(b.shape(v)?.len())).collect::<Result<_, OpError>>()?;
    let equation = Equation::of(n, &ranks)?;
    let mut parts = vec![];
    for (term, &v) in equation.terms.iter().zip(&operands) {
        parts.push(diagonal(b, Part { v, labels: term.clone() })?);
    }
    let mut joined = parts.remove(0);
    while !parts.is_empty() {
        let next = parts.remove(0);
        let needed = |l: &Label| equation.out.contains(l) || parts.iter().any(|p| p.labels.contains(l));
        joined = join(b, joined, next, &needed)?;
    }
    let joined = sum_others(b, joined, &|l| equation.out.contains(l))?;
    Ok(vec![permute(b, &joined, &equation.out)?])
}

/// A value and the label of each of its axes.
struct Part {
    v: ValueId,
    labels: Vec<Label>,
}

/// Makes the labels of a part distinct: of a repeated label only the diagonal is kept.
fn diagonal(b: &mut Builder, mut p: Part) -> Result<Part, OpError> {
    while let Some((i, j)) = (0..p.labels.len())
        .flat_map(|j| (0..j).map(move |i| (i, j)))
        .find(|&(i, j)| p.labels[i] == p.labels[j])
    {
        // A mask that is 1 where both axes agree; then one of the two axes is summed away.
        let iota = |b: &mut Builder, axis: usize| -> Result<ValueId, OpError> {
            let (zero, one, scalar) = (b.constant(&Tensor::int(0)), b.constant(&Tensor::int(1)), b.ints(&[]));
            let len = axis_len(b, p.v, axis)?;
            let len = b.op("reshape", &[len, scalar])?;
            let iota = b.op("range", &[zero, len, one])?;
            let mut shape = vec![1; p.labels.len()];
            shape[axis] = -1;
            let shape = b.ints(&shape);
            b.op("reshape", &[iota, shape])
        };
        let (along_i, along_j) = (iota(b, i)?, iota(b, j)?);
        let same = b.op("equal", &[along_i, along_j])?;
        let elem = b.elem(p.v)?;
        let zero = b.scalar(elem, 0.0);
        let kept = b.op("where", &[same, p.v, zero])?;
        p.v = reduce_sum(b, kept, &[j])?;
        p.labels.remove(j);
    }
    Ok(p)
}

fn reduce_sum(b: &mut Builder, v: ValueId, axes: &[usize]) -> Result<ValueId, OpError> {
    let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
    let axes = b.ints(&axes);
    b.op_with("reduce_sum", &[v, axes], [("keepdims", Attr::Int(0))])
}

/// Sums over every label that is not `needed`.
fn sum_others(b: &mut Builder, p: Part, needed: &dyn Fn(&Label) -> bool) -> Result<Part, OpError> {
    let axes: Vec<usize> = (0..p.labels.len()).filter(|&i| !needed(&p.labels[i])).collect();
    if axes.is_empty() {
        return Ok(p);
    }
    let v = reduce_sum(b, p.v, &axes)?;
    Ok(Part { v, labels: p.labels.into_iter().filter(needed).collect() })
}

/// The part with exactly these labels in this order; labels that it lacks become axes of length 1.
fn permute(b: &mut Builder, p: &Part, order: &[Label]) -> Result<ValueId, OpError> {
    let perm: Vec<i64> = order
        .iter()
        .filter_map(|l| p.labels.iter().position(|x| x == l))
        .map(|i| i as i64)
        .collect();
    let missing: Vec<i64> = (0..order.len()).filter(|&i| !p.labels.contains(&order[i])).map(|i| i as i64).collect();
    let mut v = p.v;
    if !perm.iter().copied().eq(0..perm.len() as i64) {
        v = b.op_with("transpose", &[v], [("perm", Attr::Ints(perm))])?;
    }
    if !missing.is_empty() {
        let axes = b.ints(&missing);
        v = b.op("unsqueeze", &[v, axes])?;
    }
    Ok(v)
}

/// The product of two parts, summed over the labels that nothing else needs.
fn join(b: &mut Builder, x: Part, y: Part, needed: &dyn Fn(&Label) -> bool) -> Result<Part, OpError> {
    let x = { let has = |l: &Label| needed(l) || y.labels.contains(l); sum_others(b, x, &has)? };
    let y = { let has = |l: &Label| needed(l) || x.labels.contains(l); sum_others(b, y, &has)? };
    let both: Vec<Label> = x.labels.iter().copied().filter(|l| y.labels.contains(l)).collect();
    let (batch, inner): (Vec<Label>, Vec<Label>) = both.iter().partition(|l| needed(l));
    let only = |p: &Part| -> Vec<Label> { p.labels.iter().copied().filter(|l| !both.contains(l)).collect() };
    let (left, right) = (only(&x), only(&y));
    let shapes = (b.shape(x.v)?, b.shape(y.v)?);
    let dim = |p: &Part, shape: &[Dim], l: Label| {
        p.labels.iter().position(|x| *x == l).map(|i| shape[i].clone())
    };
    // A matmul needs equal lengths of what it sums; a length-1 axis that broadcasts is no matmul.
    let equal = inner.iter().all(|&l| dim(&x, &shapes.0, l) == dim(&y, &shapes.1, l));
    let elem = b.elem(x.v)?;
    let typed = elem.is_float() || matches!(elem, ElemType::I32 | ElemType::I64 | ElemType::U32 | ElemType::U64);
    if inner.is_empty() || !equal || !typed {
        let order: Vec<Label> = [batch, left, right, inner].concat();
        let (xv, yv) = (permute(b, &x, &order)?, permute(b, &y, &order)?);
        let v = b.op("mul", &[xv, yv])?;
        return sum_others(b, Part { v, labels: order }, needed);
    }
    let lens = |b: &mut Builder, p: &Part, labels: &[Label]| -> Result<Vec<ValueId>, OpError> {
        let axes = labels.iter().filter_map(|l| p.labels.iter().position(|x| x == l));
        axes.map(|i| axis_len(b, p.v, i)).collect()
    };
    let (left_lens, right_lens) = (lens(b, &x, &left)?, lens(b, &y, &right)?);
    let inner_lens = lens(b, &x, &inner)?;
    let (rows, columns) = (product(b, &left_lens)?, product(b, &right_lens)?);
    let depth = product(b, &inner_lens)?;
    // [batch…, rows, depth] x [batch…, depth, columns]
    let matrix = |b: &mut Builder, p: &Part, first: &[Label], second: &[Label], to: [ValueId; 2]| {
        let v = permute(b, p, &[&batch, first, second].concat())?;
        if first.len() == 1 && second.len() == 1 {
            return Ok(v);
        }
        let mut shape = lens(b, p, &batch)?;
        shape.extend(to);
        reshape_to(b, v, &shape)
    };
    let xv = matrix(b, &x, &left, &inner, [rows, depth])?;
    let yv = matrix(b, &y, &inner, &right, [depth, columns])?;
    let mut v = b.op("matmul", &[xv, yv])?;
    if left.len() != 1 || right.len() != 1 {
        let mut shape = vec![];
        for i in 0..batch.len() {
            shape.push(axis_len(b, v, i)?);
        }
        shape.extend(left_lens.iter().chain(&right_lens));
        v = reshape_to(b, v, &shape)?;
    }
    Ok(Part { v, labels: [batch, left, right].concat() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_parse() {
        let parse = |t: &str, r: &[usize]| Equation::parse(t, r);
        let l = |s: &str| s.chars().map(u32::from).collect::<Vec<_>>();
        assert_eq!(parse("ij, jk", &[2, 2]).unwrap().out, l("ik"));
        assert_eq!(parse("ba", &[2]).unwrap().out, l("ab"));
        assert_eq!(parse("ii", &[2]).unwrap().out, l(""));
        let e = parse("...ij->...ji", &[4]).unwrap();
        assert_eq!(e.out, [ELLIPSIS + 1, ELLIPSIS, u32::from('j'), u32::from('i')]);
        for (bad, ranks) in [("ij", &[3][..]), ("i,j", &[1]), ("i->k", &[1]), ("i->ii", &[1]), ("i.j", &[2]), ("é", &[1])] {
            assert!(parse(bad, ranks).is_err(), "{bad}");
        }
    }
}
