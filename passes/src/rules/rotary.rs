//! Rotary position embeddings, written with halves or with neighbours.
//!
//! ```text
//! x * cos + concat(-x[h..], x[..h]) * sin                    => rotary_embedding(x, cos[..h], sin[..h])
//! reshape(x * cos2 + stack(-x[1::2], x[::2]) * sin2)         => rotary_embedding(x, cos2[::2], sin2[::2]) {interleaved}
//! ```
//! The angles must be the same for both numbers of a pair, which is known if the tables are made by a concatenation of one
//! half with itself, or are constants that repeat.

use super::reading::{int, operands, shape};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query, Trait};
use egg::Id;
use lapidary_ir::ops::resolve_axis;
use lapidary_ir::{Attr, Dim, Tensor};

#[path = "rotary_samples.rs"]
mod samples;

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "rotary-by-halves",
        left: &[
            "(add (mul ?x ?c attrs0) (mul (concat (neg ?b attrs0) ?a ?cat) ?s attrs0) attrs0)",
            "(add (mul (concat (neg ?b attrs0) ?a ?cat) ?s attrs0) (mul ?x ?c attrs0) attrs0)",
            "(add (mul ?c ?x attrs0) (mul ?s (concat (neg ?b attrs0) ?a ?cat) attrs0) attrs0)",
        ],
        right: Right::Build(by_halves),
        condition: None,
        class: Class::Reassociates,
        source: "RoFormer (arXiv 2104.09864) as Hugging Face writes it; the turned copy is not made",
        samples: samples::HALVES,
    },
    Rule {
        name: "rotary-by-pairs",
        left: &[
            "(add (mul ?x ?c attrs0) (mul (reshape (concat (neg ?b attrs0) ?a ?cat) ?to ?rat) ?s attrs0) attrs0)",
            "(add (mul ?x ?c attrs0) (mul (reshape (concat (unsqueeze (neg ?b attrs0) ?axis attrs0) ?a ?cat) ?to ?rat) ?s attrs0) attrs0)",
            "(add (mul (reshape (concat (unsqueeze (neg ?b attrs0) ?axis attrs0) ?a ?cat) ?to ?rat) ?s attrs0) (mul ?x ?c attrs0) attrs0)",
        ],
        right: Right::Build(by_pairs),
        condition: None,
        class: Class::Reassociates,
        source: "RoFormer (arXiv 2104.09864) as first written: pairs are neighbours; the turned copy is not made",
        samples: samples::PAIRS,
    },
];

/// What a slice takes: operand, begin, end, step along its one axis, the last.
fn slice_of_last(graph: &Graph, id: Id) -> Option<(Id, i64, i64, i64)> {
    let o = operands(graph, id, "slice")?;
    let (starts, ends) = (graph.ints(o[1])?, graph.ints(o[2])?);
    let all = shape(graph, o[0])?;
    let axes = graph.ints(o[3])?;
    let width = all.last()?.as_const()?;
    let step = match graph.ty(o[4]) {
        Some(_) => *graph.ints(o[4])?.first()?,
        None => 1,
    };
    let last = axes.len() == 1 && resolve_axis(axes[0], all.len()).ok()? == all.len() - 1;
    let clamp = |i: i64| (if i < 0 { i.saturating_add(width) } else { i }).clamp(0, width);
    last.then(|| (graph.find(o[0]), clamp(starts[0]), clamp(ends[0]), step))
}

fn checked(graph: &Graph, m: &Bound) -> Result<i64, &'static str> {
    let dims = shape(graph, m.get("x")).filter(|d| d.len() == 4).ok_or("the operand is not of rank four: batch, heads, positions, numbers")?;
    dims[3].as_const().filter(|w| w % 2 == 0).ok_or("the numbers of a head are not known to be even")
}

/// The tables `[b, s, pairs]`, of which the first operand of each pair is taken.
fn tables(graph: &mut Graph, m: &Bound, width: i64, step: i64, repeats: Trait) -> Result<[Id; 2], &'static str> {
    let x = shape(graph, m.get("x")).ok_or("the rank is not known")?;
    let mut out = vec![];
    for name in ["c", "s"] {
        let table = m.get(name);
        let dims = shape(graph, table).ok_or("the rank of a table is not known")?;
        if !graph.has_trait(table, repeats) {
            return Err("the two numbers of a pair are not known to turn by one angle");
        }
        let one = Dim::from(1i64);
        let lead: Vec<&Dim> = dims.iter().rev().skip(2).collect();
        let over_heads = lead.first().is_none_or(|d| **d == one);
        let batch = lead.get(1).is_none_or(|d| **d == one || **d == x[0]);
        if dims.len() < 2 || dims.len() > 4 || dims[dims.len() - 1].as_const() != Some(width) || dims[dims.len() - 2] != x[2] || !over_heads || !batch {
            return Err("a table has another shape than batch, positions and numbers");
        }
        let mut numbers = [0, if step == 1 { width / 2 } else { width }, -1, step].map(|v| graph.add_constant(&Tensor::ints(&[v]))).to_vec();
        numbers.insert(0, table);
        let half = graph.add_op("slice", &numbers, []);
        // To rank three, with the batch of `x`.
        let mut flat = half;
        if dims.len() == 4 {
            let axis = graph.add_constant(&Tensor::ints(&[1]));
            flat = graph.add_op("squeeze", &[flat, axis], []);
        }
        if dims.len() == 2 {
            let axis = graph.add_constant(&Tensor::ints(&[0]));
            flat = graph.add_op("unsqueeze", &[flat, axis], []);
        }
        let have = shape(graph, flat).ok_or("the rank of a table is not known")?;
        if have[0] != x[0] {
            let (Some(b), Some(s)) = (x[0].as_const(), x[2].as_const()) else { return Err("a table is not for every sequence of the batch, whose size is not known") };
            let to = graph.add_constant(&Tensor::ints(&[b, s, width / 2]));
            flat = graph.add_op("expand", &[flat, to], []);
        }
        out.push(flat);
    }
    Ok([out[0], out[1]])
}

fn by_halves(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let width = checked(graph, m)?;
    let x = graph.find(m.get("x"));
    let along = graph.attrs(m.get("cat")).map(|a| int(a, "axis", 0));
    let first = slice_of_last(graph, m.get("a")) == Some((x, 0, width / 2, 1));
    let second = slice_of_last(graph, m.get("b")) == Some((x, width / 2, width, 1));
    if !first || !second || !matches!(along, Some(-1 | 3)) {
        return Err("what is turned is not the operand's halves");
    }
    let [cos, sin] = tables(graph, m, width, 1, Trait::EqualHalves)?;
    Ok(graph.add_op("rotary_embedding", &[x, cos, sin], []))
}

fn by_pairs(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let width = checked(graph, m)?;
    let x = graph.find(m.get("x"));
    let along = graph.attrs(m.get("cat")).map(|a| int(a, "axis", 0));
    let part = |name: &str| {
        let inner = ["unsqueeze", "reshape"].iter().find_map(|op| operands(graph, m.get(name), op));
        slice_of_last(graph, m.get(name)).or_else(|| slice_of_last(graph, inner?[0]))
    };
    let stacked = shape(graph, m.get("a")).is_some_and(|d| d.len() == 5 && d[4].as_const() == Some(1));
    let first = part("a") == Some((x, 0, width, 2));
    let second = part("b") == Some((x, 1, width, 2));
    if !first || !second || !stacked || !matches!(along, Some(-1 | 4)) {
        return Err("what is turned is not the operand's neighbours");
    }
    let [cos, sin] = tables(graph, m, width, 2, Trait::EqualPairs)?;
    Ok(graph.add_op("rotary_embedding", &[x, cos, sin], [("interleaved", Attr::Int(1))]))
}
