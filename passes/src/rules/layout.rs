//! Motion and merging of transposes, reshapes and other changes of view.

use super::algebra::input;
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::Attr;

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "layout-merge-transposes",
        left: "(transpose (transpose ?x ?inner) ?outer)",
        right: Right::Build(merge_transposes),
        condition: None,
        class: Class::Exact,
        source: "one permutation instead of two; none if they cancel",
        samples: &[
            |b| {
                let x = input(b, "x", &[2, 3, 4]);
                let y = b.op_with("transpose", &[x], [("perm", Attr::Ints(vec![1, 2, 0]))])?;
                b.op_with("transpose", &[y], [("perm", Attr::Ints(vec![2, 1, 0]))])
            },
            |b| {
                let x = input(b, "x", &[2, 3]);
                let y = b.op("transpose", &[x])?;
                b.op("transpose", &[y])
            },
        ],
    },
    Rule {
        name: "layout-merge-reshapes",
        left: "(reshape (reshape ?x ?s1 ?a1) ?s2 ?a2)",
        right: Right::Pattern("(reshape ?x ?s2 ?a2)"),
        condition: Some(|graph, m| {
            // A zero copies a dimension of the inner result, which the merged reshape would not see.
            let shape = graph.ints(m.get("s2")).ok_or("the outer shape is not constant")?;
            if shape.contains(&0) { Err("the outer shape copies a dimension") } else { Ok(()) }
        }),
        class: Class::Exact,
        source: "only the last shape is seen",
        samples: &[|b| {
            let x = input(b, "x", &[2, 6]);
            let (s1, s2) = (b.ints(&[3, 4]), b.ints(&[4, 3]));
            let y = b.op("reshape", &[x, s1])?;
            b.op("reshape", &[y, s2])
        }],
    },
    Rule {
        name: "layout-drop-identity",
        left: "(identity ?x attrs0)",
        right: Right::Pattern("?x"),
        condition: None,
        class: Class::Exact,
        source: "it is what it is",
        samples: &[|b| {
            let x = input(b, "x", &[2]);
            b.op("identity", &[x])
        }],
    },
];

/// The permutation of a transpose; without `perm` it reverses.
fn permutation(graph: &Graph, attrs: Id, rank: usize) -> Option<Vec<usize>> {
    match graph.attrs(attrs)?.get("perm") {
        Some(Attr::Ints(p)) => p.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v < rank)).collect(),
        _ => Some((0..rank).rev().collect()),
    }
}

fn merge_transposes(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let x = m.get("x");
    let rank = graph.ty(x).and_then(|t| t.shape()).map(<[_]>::len).ok_or("the rank is not known")?;
    let perms = (permutation(graph, m.get("inner"), rank), permutation(graph, m.get("outer"), rank));
    let (Some(inner), Some(outer)) = perms else { return Err("a permutation does not fit the rank") };
    if inner.len() != rank || outer.len() != rank {
        return Err("a permutation does not fit the rank");
    }
    let both: Vec<i64> = outer.iter().map(|&o| inner[o] as i64).collect();
    Ok(if both.iter().enumerate().all(|(i, &p)| p == i as i64) { x } else { graph.add_op("transpose", &[x], [("perm", Attr::Ints(both))]) })
}
