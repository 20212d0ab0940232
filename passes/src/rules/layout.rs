//! Motion and merging of transposes, reshapes and other changes of view.

use super::algebra::input;
use super::reading::{OTHER, permutation, rank, same_shape, shape, terms};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Head, Query};
use egg::Id;
use lapidary_ir::{Attr, Attrs, Tensor};

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "layout-merge-transposes",
        left: &["(transpose (transpose ?x ?inner) ?outer)"],
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
        left: &["(reshape (reshape ?x ?s1 ?a1) ?s2 ?a2)"],
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
        left: &["(identity ?x attrs0)"],
        right: Right::Pattern("?x"),
        condition: None,
        class: Class::Exact,
        source: "it is what it is",
        samples: &[|b| {
            let x = input(b, "x", &[2]);
            b.op("identity", &[x])
        }],
    },
    Rule {
        name: "layout-drop-same-shape",
        left: &["(reshape ?x ?s ?a)", "(expand ?x ?s attrs0)"],
        right: Right::Build(|graph, m| {
            let to = graph[m.get("s")].data.contents.clone().ok_or(OTHER)?;
            let own = shape(graph, m.get("x")).ok_or(OTHER)?;
            let same = to.len() == own.len() && to.iter().zip(&own).all(|(t, d)| t == d);
            if same { Ok(m.get("x")) } else { Err(OTHER) }
        }),
        condition: None,
        class: Class::Exact,
        source: "it has that shape",
        samples: &[
            |b| {
                let (x, s) = (input(b, "x", &[2, 6]), b.ints(&[2, 6]));
                b.op("reshape", &[x, s])
            },
            |b| {
                let (x, s) = (input(b, "x", &[2, 6]), b.ints(&[2, 6]));
                b.op("expand", &[x, s])
            },
        ],
    },
    Rule {
        name: "layout-transpose-past-function",
        left: &["(transpose ?y ?perm)"],
        right: Right::Build(|graph, m| past_function(graph, m, "transpose", &[], "perm", "transpose")),
        condition: None,
        class: Class::Exact,
        source: "two transpositions meet and become one; functions of each element do not mind their order",
        samples: &[|b| {
            let x = input(b, "x", &[2, 3, 4]);
            let y = b.transpose(x, &[1, 0, 2])?;
            let y = b.op("relu", &[y])?;
            b.transpose(y, &[0, 2, 1])
        }],
    },
    Rule {
        name: "layout-reshape-past-function",
        left: &["(reshape ?y ?s ?perm)"],
        right: Right::Build(|graph, m| past_function(graph, m, "reshape", &["s"], "perm", "reshape")),
        condition: None,
        class: Class::Exact,
        source: "two reshapes meet and become one; functions of each element do not mind their order",
        samples: &[|b| {
            let x = input(b, "x", &[2, 6]);
            let (s1, s2) = (b.ints(&[3, 4]), b.ints(&[4, 3]));
            let y = b.op("reshape", &[x, s1])?;
            let y = b.op("tanh", &[y])?;
            b.op("reshape", &[y, s2])
        }],
    },
    Rule {
        name: "layout-transpose-past-sum",
        left: &["(transpose (add ?x ?y attrs0) ?perm)"],
        right: Right::Build(|graph, m| past_pair(graph, m, "add")),
        condition: None,
        class: Class::Exact,
        source: "two transpositions meet and become one; constants are transposed at compile time",
        samples: &[
            |b| {
                let (x, y) = (input(b, "x", &[2, 3, 4]), input(b, "y", &[3, 2, 4]));
                let x = b.transpose(x, &[1, 0, 2])?;
                let sum = b.op("add", &[x, y])?;
                b.transpose(sum, &[1, 0, 2])
            },
            |b| {
                let x = input(b, "x", &[2, 3]);
                let x = b.transpose(x, &[1, 0])?;
                let c = b.constant(&Tensor::from_f64(lapidary_ir::ElemType::F32, [2], vec![1.0, -1.0]));
                let sum = b.op("add", &[x, c])?;
                b.transpose(sum, &[1, 0])
            },
        ],
    },
    Rule {
        name: "layout-transpose-past-product",
        left: &["(transpose (mul ?x ?y attrs0) ?perm)"],
        right: Right::Build(|graph, m| past_pair(graph, m, "mul")),
        condition: None,
        class: Class::Exact,
        source: "two transpositions meet and become one; constants are transposed at compile time",
        samples: &[|b| {
            let x = input(b, "x", &[2, 3, 4]);
            let x = b.transpose(x, &[1, 0, 2])?;
            let c = b.scalar(lapidary_ir::ElemType::F32, 0.5);
            let y = b.op("mul", &[x, c])?;
            b.transpose(y, &[1, 0, 2])
        }],
    },
    Rule {
        name: "layout-transpose-of-matmul",
        left: &["(transpose (matmul ?a ?b attrs0) ?perm)"],
        right: Right::Build(|graph, m| {
            let (a, b) = (m.get("a"), m.get("b"));
            let rank = rank(graph, a).filter(|&r| r >= 2 && rank(graph, b) == Some(r)).ok_or("the operands are not of one rank of at least two")?;
            let perm = graph.attrs(m.get("perm")).and_then(|p| permutation(p, rank)).ok_or("the permutation does not fit the rank")?;
            let mut swapped: Vec<usize> = (0..rank).collect();
            swapped.swap(rank - 2, rank - 1);
            if perm != swapped {
                return Err("other axes than the last two are exchanged");
            }
            let free = |x: Id| graph[x].data.is_constant() || terms(graph, x, "transpose").next().is_some();
            if !free(a) || !free(b) {
                return Err("an operand would have to be transposed instead");
            }
            let perm: Vec<i64> = swapped.iter().map(|&p| p as i64).collect();
            let [a, b] = [a, b].map(|x| graph.add_op("transpose", &[x], [("perm", Attr::Ints(perm.clone()))]));
            Ok(graph.add_op("matmul", &[b, a], []))
        }),
        condition: None,
        class: Class::Exact,
        source: "(a b)' is b' a': the weights are transposed at compile time, what was transposed no more",
        samples: &[|b| {
            let x = input(b, "x", &[3, 5]);
            let x = b.transpose(x, &[1, 0])?;
            let w = b.constant(&Tensor::from_f64(lapidary_ir::ElemType::F32, [4, 5], (0..20).map(|i| f64::from(i % 7) - 3.0).collect()));
            let y = b.op("matmul", &[w, x])?;
            b.transpose(y, &[1, 0])
        }],
    },
    Rule {
        name: "layout-reshape-past-linear",
        left: &["(reshape (fused_linear (reshape ?x ?s ?a) ?w ?bias none ?at) ?to ?o)"],
        right: Right::Build(reshape_past_linear),
        condition: None,
        class: Class::Exact,
        source: "leading axes are rows of a product either way; what follows sees the shape of the rest",
        samples: &[|b| {
            let x = input(b, "x", &[2, 3, 5]);
            let (flat, back) = (b.ints(&[-1, 5]), b.ints(&[2, 3, 4]));
            let x = b.op("reshape", &[x, flat])?;
            let w = b.constant(&Tensor::from_f64(lapidary_ir::ElemType::F32, [5, 4], (0..20).map(|i| f64::from(i % 7) - 3.0).collect()));
            let y = b.op("fused_linear", &[x, w])?;
            b.op("reshape", &[y, back])
        }],
    },
];

/// Functions of each element of one operand.
const FUNCTIONS: &[&str] = &[
    "relu", "leaky_relu", "elu", "selu", "celu", "sigmoid", "hard_sigmoid", "swish", "hard_swish", "softplus", "softsign", "mish", "gelu", "tanh", "erf", "exp", "log",
    "sqrt", "reciprocal", "neg", "abs", "floor", "ceil", "round", "sign", "sin", "cos", "cast", "not",
];

/// How far a move looks for another that it could meet.
const DEPTH: usize = 4;

/// True if a class is made by such a move, or element by element from one that is.
fn meets_one(graph: &Graph, id: Id, op: &str, depth: usize) -> bool {
    graph[id].nodes.iter().any(|t| {
        let Head::Op(f) = t.head else { return false };
        let through = depth > 0 && (FUNCTIONS.contains(&f.name) || op == "transpose" && ["add", "mul"].contains(&f.name));
        f.name == op || through && t.children[..t.children.len() - 1].iter().any(|&x| meets_one(graph, x, op, depth - 1))
    })
}

/// `move(f(x)) => f(move(x))`, if `x` is itself moved, so that the two meet.
fn past_function(graph: &mut Graph, m: &Bound, op: &'static str, operands: &[&str], attrs: &str, meet: &str) -> Result<Id, &'static str> {
    let y = m.get("y");
    let found = graph[y].nodes.iter().find_map(|t| match (&t.head, &t.children[..]) {
        (Head::Op(f), &[x, at]) if FUNCTIONS.contains(&f.name) => {
            meets_one(graph, x, meet, DEPTH).then_some((f.name, x, at))
        }
        _ => None,
    });
    let (name, x, at) = found.ok_or(OTHER)?;
    if !same_shape(graph, x, y) || operands.iter().any(|o| graph.ints(m.get(o)).is_none_or(|s| s.contains(&0))) {
        return Err("the shape is not constant, or copies a dimension");
    }
    let all: Vec<Id> = [x].into_iter().chain(operands.iter().map(|o| m.get(o))).collect();
    let of = graph.attrs(m.get(attrs)).cloned().ok_or("no attributes")?;
    let moved = graph.add_op_attrs(op, &all, &of);
    let of = graph.attrs(at).cloned().ok_or("no attributes")?;
    Ok(graph.add_op_attrs(name, &[moved], &of))
}

/// `transpose(f(x, y)) => f(transpose(x), transpose(y))`, if an operand is itself transposed.
fn past_pair(graph: &mut Graph, m: &Bound, op: &'static str) -> Result<Id, &'static str> {
    let (x, y) = (m.get("x"), m.get("y"));
    let attrs: Attrs = graph.attrs(m.get("perm")).cloned().ok_or("no attributes")?;
    if [x, y].iter().all(|&v| !meets_one(graph, v, "transpose", DEPTH)) {
        return Err(OTHER);
    }
    let result = [x, y].iter().filter_map(|&v| rank(graph, v)).max().ok_or("the rank is not known")?;
    let perm = permutation(&attrs, result).ok_or("the permutation does not fit the rank")?;
    let mut moved = vec![];
    for v in [x, y] {
        let own = rank(graph, v).ok_or("the rank is not known")?;
        let single = graph.const_shape(v).is_some_and(|s| s.iter().all(|&d| d == 1));
        if own == 0 || single && own <= result {
            moved.push(v);
            continue;
        }
        let mut at = v;
        if own < result {
            if !graph[v].data.is_constant() {
                return Err("an operand of lower rank would have to be reshaped");
            }
            let axes: Vec<i64> = (0..(result - own) as i64).collect();
            let axes = graph.add_constant(&Tensor::ints(&axes));
            at = graph.add_op("unsqueeze", &[v, axes], []);
        }
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        moved.push(graph.add_op("transpose", &[at], [("perm", Attr::Ints(perm))]));
    }
    Ok(graph.add_op(op, &moved, []))
}

fn reshape_past_linear(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let (x, w) = (m.get("x"), m.get("w"));
    let (x_dims, w_dims) = (shape(graph, x).ok_or("the rank is not known")?, shape(graph, w).ok_or("the rank is not known")?);
    if x_dims.len() < 2 || x_dims.last() != w_dims.first() {
        return Err("the rows are not those of the operand");
    }
    let want = [&x_dims[..x_dims.len() - 1], &w_dims[1..]].concat();
    let to = graph[m.get("to")].data.contents.clone().ok_or("the shape is not known")?;
    let zeros = matches!(graph.attrs(m.get("o")).and_then(|a| a.get("allowzero").cloned()), None | Some(Attr::Int(0)));
    let free = to.iter().filter(|d| d.as_const() == Some(-1)).count();
    let fits = to.len() == want.len() && to.iter().zip(&want).all(|(t, w)| t == w || t.as_const() == Some(-1));
    if !fits || free > 1 || !zeros {
        return Err("the result has not the operand's leading dimensions");
    }
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    Ok(graph.add_op_attrs("fused_linear", &[x, w, m.get("bias")], &attrs))
}

fn merge_transposes(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let x = m.get("x");
    let rank = graph.ty(x).and_then(|t| t.shape()).map(<[_]>::len).ok_or("the rank is not known")?;
    let of = |attrs| permutation(graph.attrs(attrs)?, rank);
    let perms = (of(m.get("inner")), of(m.get("outer")));
    let (Some(inner), Some(outer)) = perms else { return Err("a permutation does not fit the rank") };
    if inner.len() != rank || outer.len() != rank {
        return Err("a permutation does not fit the rank");
    }
    let both: Vec<i64> = outer.iter().map(|&o| inner[o] as i64).collect();
    Ok(if both.iter().enumerate().all(|(i, &p)| p == i as i64) { x } else { graph.add_op("transpose", &[x], [("perm", Attr::Ints(both))]) })
}
