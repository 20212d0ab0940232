//! Identities of arithmetic.

use super::reading::{OTHER, fits_into, is_number};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::builder::Builder;
use lapidary_ir::{ElemType, Module, Type, ValueId};

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "algebra-sum-of-two-is-add",
        left: &["(sum ?a ?b attrs0)"],
        right: Right::Pattern("(add ?a ?b attrs0)"),
        condition: None,
        class: Class::Exact,
        source: "one form for other rules to match",
        samples: &[|b| {
            let (x, y) = (input(b, "x", &[2, 3]), input(b, "y", &[3]));
            b.op("sum", &[x, y])
        }],
    },
    Rule {
        name: "algebra-add-constants-together",
        left: &["(add (add ?x ?a attrs0) ?b attrs0)"],
        right: Right::Pattern("(add ?x (add ?a ?b attrs0) attrs0)"),
        condition: Some(|graph, m| {
            let constant = |v| graph[m.get(v)].data.is_constant();
            if constant("a") && constant("b") && !constant("x") { Ok(()) } else { Err("both addends must be constant") }
        }),
        class: Class::Reassociates,
        source: "one addition less: the constants are added at compile time",
        samples: &[|b| {
            let x = input(b, "x", &[2, 3]);
            let (c, d) = (b.scalar(ElemType::F32, 1.5), b.scalar(ElemType::F32, -0.25));
            let sum = b.op("add", &[x, c])?;
            b.op("add", &[sum, d])
        }],
    },
    Rule {
        name: "algebra-constant-last-in-sum",
        left: &["(add ?c ?x attrs0)"],
        right: Right::Pattern("(add ?x ?c attrs0)"),
        condition: Some(first_is_constant),
        class: Class::Exact,
        source: "one form for other rules to match: constants come last",
        samples: &[|b| {
            let (x, c) = (input(b, "x", &[2, 3]), b.scalar(ElemType::F32, 1.5));
            b.op("add", &[c, x])
        }],
    },
    Rule {
        name: "algebra-constant-last-in-product",
        left: &["(mul ?c ?x attrs0)"],
        right: Right::Pattern("(mul ?x ?c attrs0)"),
        condition: Some(first_is_constant),
        class: Class::Exact,
        source: "one form for other rules to match: constants come last",
        samples: &[|b| {
            let (x, c) = (input(b, "x", &[2, 3]), b.scalar(ElemType::F32, 1.5));
            b.op("mul", &[c, x])
        }],
    },
    Rule {
        name: "algebra-square-is-product",
        left: &["(pow ?x ?two attrs0)"],
        right: Right::Pattern("(mul ?x ?x attrs0)"),
        condition: Some(|graph, m| {
            exponent(graph, m.get("x"), m.get("two"), 2.0)
        }),
        class: Class::Exact,
        source: "a product of two is rounded once, as the power is",
        samples: &[|b| {
            let (x, c) = (input(b, "x", &[2, 3]), b.scalar(ElemType::F32, 2.0));
            b.op("pow", &[x, c])
        }],
    },
    Rule {
        name: "algebra-half-power-is-root",
        left: &["(pow ?x ?half attrs0)"],
        right: Right::Pattern("(sqrt ?x attrs0)"),
        condition: Some(|graph, m| exponent(graph, m.get("x"), m.get("half"), 0.5)),
        class: Class::Reassociates,
        source: "the definition; they differ at minus zero and minus infinity",
        samples: &[|b| {
            let (x, c) = (input(b, "x", &[2, 3]), b.scalar(ElemType::F32, 0.5));
            let x = b.op("abs", &[x])?;
            b.op("pow", &[x, c])
        }],
    },
    Rule {
        name: "algebra-inverse-root-power",
        left: &["(pow ?x ?half attrs0)"],
        right: Right::Pattern("(reciprocal (sqrt ?x attrs0) attrs0)"),
        condition: Some(|graph, m| exponent(graph, m.get("x"), m.get("half"), -0.5)),
        class: Class::Reassociates,
        source: "a root and a division instead of a logarithm and an exponential",
        samples: &[|b| {
            let (x, c, one) = (input(b, "x", &[2, 3]), b.scalar(ElemType::F32, -0.5), b.scalar(ElemType::F32, 1.0));
            let x = b.op("mul", &[x, x])?;
            let x = b.op("add", &[x, one])?;
            b.op("pow", &[x, c])
        }],
    },
    Rule {
        name: "algebra-one-over",
        left: &["(div ?one ?x attrs0)"],
        right: Right::Pattern("(reciprocal ?x attrs0)"),
        condition: Some(|graph, m| {
            if !is_number(graph, m.get("one"), 1.0) {
                return Err(OTHER);
            }
            if fits_into(graph, m.get("one"), m.get("x")) { Ok(()) } else { Err("the one broadcasts the other operand") }
        }),
        class: Class::Exact,
        source: "brings the form that a quotient is recognised in",
        samples: &[|b| {
            let (x, one) = (input(b, "x", &[2, 3]), b.scalar(ElemType::F32, 1.0));
            let x = b.op("exp", &[x])?;
            b.op("div", &[one, x])
        }],
    },
];

fn first_is_constant(graph: &Graph, m: &Bound) -> Result<(), &'static str> {
    let constant = |v| graph[m.get(v)].data.is_constant();
    if constant("c") && !constant("x") { Ok(()) } else { Err(OTHER) }
}

fn exponent(graph: &Graph, x: Id, exponent: Id, value: f64) -> Result<(), &'static str> {
    if !is_number(graph, exponent, value) {
        return Err(OTHER);
    }
    if !graph.ty(x).and_then(|t| t.elem()).is_some_and(|e| e.is_float()) {
        return Err("only powers of floats");
    }
    if fits_into(graph, exponent, x) { Ok(()) } else { Err("the exponent broadcasts the other operand") }
}

/// An f32 input of a sample.
pub fn input(b: &mut Builder, name: &str, shape: &[i64]) -> ValueId {
    b.module.add_input(Module::TOP, name, Type::tensor(ElemType::F32, shape.iter().copied()))
}

