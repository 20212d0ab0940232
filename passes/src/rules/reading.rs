//! What rules read out of classes: factors, polynomials in one value, shapes.
//!
//! Exporters place the constants of a formula in many ways. A rule whose pattern finds the part of a formula that does
//! not vary asks these functions for the rest, instead of listing every placement.

use crate::egraph::lang::{Graph, Head, Query};
use egg::Id;
use lapidary_ir::ops::resolve_axis;
use lapidary_ir::{Attr, Attrs, Dim, ElemType};
use std::collections::HashMap;

/// A refusal that nobody is told: the left side is wider than what the rule is about.
pub const OTHER: &str = "";

/// Formulas are read at most this deep.
const DEPTH: usize = 10;

/// Terms of a class with this op: operands, attributes.
pub fn terms<'g>(
    graph: &'g Graph,
    id: Id,
    op: &'g str,
) -> impl Iterator<Item = (&'g [Id], &'g Attrs)> + 'g {
    graph[id].nodes.iter().filter_map(move |t| match t.head {
        Head::Op(o) if o.name == op => {
            let (&attrs, operands) = t.children.split_last()?;
            Some((operands, graph.attrs(attrs)?))
        }
        _ => None,
    })
}

/// The op's operands, if the class has such a term.
pub fn operands(graph: &Graph, id: Id, op: &str) -> Option<Vec<Id>> {
    terms(graph, id, op)
        .next()
        .map(|(operands, _)| operands.to_vec())
}

/// An integer attribute.
pub fn int(attrs: &Attrs, name: &str, default: i64) -> i64 {
    match attrs.get(name) {
        Some(Attr::Int(v)) => *v,
        _ => default,
    }
}

/// A float attribute.
pub fn float(attrs: &Attrs, name: &str, default: f32) -> f32 {
    match attrs.get(name) {
        Some(Attr::Float(v)) => *v,
        _ => default,
    }
}

/// The dimensions of a class.
pub fn shape(graph: &Graph, id: Id) -> Option<Vec<Dim>> {
    Some(graph.ty(id)?.shape()?.to_vec())
}

/// Number of dimensions.
pub fn rank(graph: &Graph, id: Id) -> Option<usize> {
    Some(graph.ty(id)?.shape()?.len())
}

/// True if two classes have one known shape.
pub fn same_shape(graph: &Graph, a: Id, b: Id) -> bool {
    shape(graph, a).is_some() && shape(graph, a) == shape(graph, b)
}

/// True if both classes have the same element type, which is a float.
pub fn same_float(graph: &Graph, a: Id, b: Id) -> bool {
    let elem = |id| graph.ty(id).and_then(|t| t.elem());
    elem(a).is_some_and(ElemType::is_float) && elem(a) == elem(b)
}

/// How far a constant of an element type may be from the number it stands for, relatively.
pub fn precision(graph: &Graph, id: Id) -> f64 {
    match graph.ty(id).and_then(|t| t.elem()) {
        Some(ElemType::F64) => 1e-9,
        Some(ElemType::F32) => 1e-6,
        Some(ElemType::F16) => 2e-3,
        _ => 1e-2,
    }
}

/// The number that a class of one element is, if it is constant arithmetic.
pub fn number(graph: &Graph, id: Id) -> Option<f64> {
    number_within(graph, id, DEPTH)
}

fn number_within(graph: &Graph, id: Id, depth: usize) -> Option<f64> {
    if let Some(v) = graph.scalar(id) {
        return Some(v);
    }
    let one = graph.const_shape(id)?.iter().product::<usize>() == 1;
    if depth == 0 || !one || !graph[id].data.is_constant() {
        return None;
    }
    graph[id].nodes.iter().find_map(|t| {
        let Head::Op(op) = t.head else { return None };
        let (_, operands) = t.children.split_last()?;
        let arg = |i: usize| number_within(graph, *operands.get(i)?, depth - 1);
        match op.name {
            "add" => Some(arg(0)? + arg(1)?),
            "sub" => Some(arg(0)? - arg(1)?),
            "mul" => Some(arg(0)? * arg(1)?),
            "div" => Some(arg(0)? / arg(1)?),
            "sqrt" => Some(arg(0)?.sqrt()),
            "neg" => Some(-arg(0)?),
            "reciprocal" => Some(arg(0)?.recip()),
            _ => None,
        }
    })
}

/// True if a class is this number, as exactly as its element type holds it.
pub fn is_number(graph: &Graph, id: Id, value: f64) -> bool {
    number(graph, id).is_some_and(|v| near(graph, id, v, value))
}

/// True if a coefficient that was computed in a class' element type stands for this number.
pub fn near(graph: &Graph, id: Id, found: f64, value: f64) -> bool {
    (found - value).abs() <= 4.0 * precision(graph, id) * value.abs().max(1e-30)
}

/// The class without scalar factors, and their product. The shape stays the same.
pub fn scaled(graph: &Graph, id: Id) -> (Id, f64) {
    let (mut at, mut factor) = (graph.find(id), 1.0);
    for _ in 0..DEPTH {
        let next = graph[at].nodes.iter().find_map(|t| {
            let Head::Op(op) = t.head else { return None };
            let (base, f) = match (op.name, &t.children[..]) {
                ("mul", &[a, b, _]) => match (number(graph, a), number(graph, b)) {
                    (None, Some(f)) => (a, f),
                    (Some(f), None) => (b, f),
                    _ => return None,
                },
                ("div", &[a, b, _]) => (a, number(graph, b)?.recip()),
                ("neg", &[a, _]) => (a, -1.0),
                _ => return None,
            };
            (graph.find(base) != at && same_shape(graph, base, at)).then_some((graph.find(base), f))
        });
        match next {
            Some((base, f)) if (factor * f).is_finite() => (at, factor) = (base, factor * f),
            _ => break,
        }
    }
    (at, factor)
}

/// Coefficients of a polynomial of degree three.
pub type Cubic = [f64; 4];

/// The class as a polynomial in `x`.
pub fn polynomial(graph: &Graph, id: Id, x: Id) -> Option<Cubic> {
    let mut known = HashMap::from([(graph.find(x), Some([0.0, 1.0, 0.0, 0.0]))]);
    polynomial_within(graph, graph.find(id), &mut known)
}

fn polynomial_within(
    graph: &Graph,
    id: Id,
    known: &mut HashMap<Id, Option<Cubic>>,
) -> Option<Cubic> {
    if let Some(found) = known.get(&id) {
        return *found;
    }
    if let Some(c) = number(graph, id) {
        return Some([c, 0.0, 0.0, 0.0]);
    }
    // Not known while it is being worked out: a class may contain itself.
    known.insert(id, None);
    let found = graph[id].nodes.iter().find_map(|t| {
        let Head::Op(op) = t.head else { return None };
        let (_, operands) = t.children.split_last()?;
        let mut arg = |i: usize| polynomial_within(graph, graph.find(*operands.get(i)?), known);
        match op.name {
            "add" => {
                let (a, b) = (arg(0)?, arg(1)?);
                Some(std::array::from_fn(|i| a[i] + b[i]))
            }
            "sub" => {
                let (a, b) = (arg(0)?, arg(1)?);
                Some(std::array::from_fn(|i| a[i] - b[i]))
            }
            "neg" => arg(0).map(|a| a.map(|c| -c)),
            "mul" => product(arg(0)?, arg(1)?),
            "div" => {
                let by = number(graph, operands[1])?.recip();
                arg(0).map(|a| a.map(|c| c * by))
            }
            "pow" => {
                let a = arg(0)?;
                match number(graph, operands[1])? {
                    2.0 => product(a, a),
                    3.0 => product(product(a, a)?, a),
                    _ => None,
                }
            }
            _ => None,
        }
    });
    known.insert(id, found);
    found
}

fn product(a: Cubic, b: Cubic) -> Option<Cubic> {
    let mut out = [0.0; 4];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            match out.get_mut(i + j) {
                Some(c) => *c += x * y,
                None if x * y != 0.0 => return None,
                None => {}
            }
        }
    }
    Some(out)
}

/// True if these are the polynomial's coefficients, as exactly as the element type of `like` holds them.
pub fn is_polynomial(graph: &Graph, like: Id, found: Cubic, want: Cubic) -> bool {
    let ok = |(f, w): (&f64, &f64)| {
        if *w == 0.0 {
            f.abs() < 1e-12
        } else {
            near(graph, like, *f, *w)
        }
    };
    found.iter().zip(&want).all(ok)
}

/// The permutation of a transpose of this rank; without `perm` it reverses.
pub fn permutation(attrs: &Attrs, rank: usize) -> Option<Vec<usize>> {
    let perm: Vec<usize> = match attrs.get("perm") {
        Some(Attr::Ints(p)) => p
            .iter()
            .map(|&v| resolve_axis(v, rank).ok())
            .collect::<Option<_>>()?,
        _ => (0..rank).rev().collect(),
    };
    (perm.len() == rank).then_some(perm)
}

/// Axes of a reduction with kept dimensions, if they are the trailing ones: the first of them.
pub fn trailing_axes(graph: &Graph, x: Id, axes: Id, attrs: &Attrs) -> Option<usize> {
    let rank = rank(graph, x)?;
    if int(attrs, "keepdims", 1) != 1 {
        return None;
    }
    let mut axes: Vec<usize> = match graph.ty(axes) {
        None if int(attrs, "noop_with_empty_axes", 0) == 0 => (0..rank).collect(),
        None => return None,
        Some(_) => graph
            .ints(axes)?
            .iter()
            .map(|&a| resolve_axis(a, rank).ok())
            .collect::<Option<_>>()?,
    };
    axes.sort_unstable();
    axes.dedup();
    let first = *axes.first()?;
    (axes.len() == rank - first).then_some(first)
}

/// True if an addend or factor of this class leaves the shape of `x` as it is.
pub fn fits_into(graph: &Graph, small: Id, x: Id) -> bool {
    let (Some(small), Some(x)) = (shape(graph, small), shape(graph, x)) else {
        return false;
    };
    small.len() <= x.len()
        && small
            .iter()
            .rev()
            .zip(x.iter().rev())
            .all(|(s, d)| s.as_const() == Some(1) || s == d)
}
