//! Identities of arithmetic.

use super::{Class, Right, Rule};
use lapidary_ir::builder::Builder;
use lapidary_ir::{ElemType, Module, Type, ValueId};

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "algebra-sum-of-two-is-add",
        left: "(sum ?a ?b attrs0)",
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
        left: "(add (add ?x ?a attrs0) ?b attrs0)",
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
];

/// An f32 input of a sample.
pub fn input(b: &mut Builder, name: &str, shape: &[i64]) -> ValueId {
    b.module.add_input(Module::TOP, name, Type::tensor(ElemType::F32, shape.iter().copied()))
}

