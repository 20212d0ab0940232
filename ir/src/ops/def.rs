//! What a table entry holds.

use super::ctx::{EvalCtx, InferCtx, OpError};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::Value;
use crate::{Attr, Dim, ElemType, Type, ValueId};

/// How many values an operand or result position stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Exactly one.
    One(&'static str),
    /// One or none.
    Optional(&'static str),
    /// One or none, given only after rewriting: rules do not see it.
    Late(&'static str),
    /// Any number (only last).
    Variadic(&'static str),
}

/// Kind of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the variants of `Attr`")]
pub enum AttrKind {
    Int,
    Ints,
    Float,
    Floats,
    Str,
    Strs,
    Elem,
    Type,
    Tensor,
}

/// What holds when an attribute is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "named as the variants of `Attr`")]
pub enum Default {
    /// It must be given.
    Required,
    /// It may be absent, which means something of its own.
    Absent,
    Int(i64),
    Ints(&'static [i64]),
    Float(f32),
    Str(&'static str),
    Elem(ElemType),
}

impl Default {
    /// The default as an attribute.
    pub fn value(self) -> Option<Attr> {
        match self {
            Default::Required | Default::Absent => None,
            Default::Int(v) => Some(Attr::Int(v)),
            Default::Ints(v) => Some(Attr::Ints(v.to_vec())),
            Default::Float(v) => Some(Attr::Float(v)),
            Default::Str(v) => Some(Attr::Str(v.to_owned())),
            Default::Elem(v) => Some(Attr::Elem(v)),
        }
    }
}

/// An attribute.
#[derive(Clone, Copy, Debug)]
pub struct AttrDef {
    /// Name.
    pub name: &'static str,
    /// Kind.
    pub kind: AttrKind,
    /// Default.
    pub default: Default,
    /// One line.
    pub doc: &'static str,
}

/// How the evaluator computes an op.
#[derive(Clone, Copy)]
pub enum Eval {
    /// By this function.
    Direct(fn(&EvalCtx) -> Result<Vec<Value>, OpError>),
    /// By evaluating its decomposition.
    Decompose,
    /// By the evaluator itself, which runs the op's regions (`if`, `loop`, `scan`, `sequence_map`).
    Control,
}

/// How far a compiled result may be from the evaluator's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// The same bits.
    Exact,
    /// Rounding of a few operations: units in the last place of the result's type.
    Rounding(u32),
    /// Relative and absolute.
    Approximate(f64, f64),
}

/// Definition of one op.
#[derive(Clone, Copy)]
pub struct OpDef {
    /// Name in snake case, as in ONNX where there is such an op.
    pub name: &'static str,
    /// One line: what it computes.
    pub summary: &'static str,
    /// Where its meaning is written down.
    pub source: &'static str,
    /// Operands.
    pub operands: &'static [Operand],
    /// Results.
    pub results: &'static [Operand],
    /// Attributes.
    pub attrs: &'static [AttrDef],
    /// Names of its regions.
    pub regions: &'static [&'static str],
    /// Type rule: one type per result.
    pub infer: fn(&InferCtx) -> Result<Vec<Type>, OpError>,
    /// Contents of its integer result as (symbolic) numbers, when the operands' contents are known; this is
    /// how shape arithmetic becomes shapes. Only the first result can have contents.
    pub contents: Option<fn(&InferCtx) -> Option<Vec<Dim>>>,
    /// Meaning.
    pub eval: Eval,
    /// The op in terms of simpler ones: operands to results.
    pub decompose: Option<fn(&mut Builder, &Node) -> Result<Vec<ValueId>, OpError>>,
    /// Accuracy of compiled code.
    pub tolerance: Tolerance,
    /// False if two equal nodes may give different results (random without a seed).
    pub pure: bool,
}

impl OpDef {
    /// What entries start from: `OpDef { name: "relu", …, ..OpDef::BASE }`.
    pub const BASE: OpDef = OpDef {
        name: "",
        summary: "",
        source: "",
        operands: &[],
        results: &[Operand::One("y")],
        attrs: &[],
        regions: &[],
        infer: |_| Err(OpError::new("has no type rule")),
        contents: None,
        eval: Eval::Decompose,
        decompose: None,
        tolerance: Tolerance::Exact,
        pure: true,
    };

    /// Operands that a node has while rules rewrite it, absent ones included.
    pub fn operands_in_rules(&self) -> usize {
        let late = |o: &&Operand| matches!(o, Operand::Late(_));
        self.operands.len() - self.operands.iter().filter(late).count()
    }

    /// Fewest and most operands.
    pub fn arity(&self) -> (usize, usize) {
        let least = self
            .operands
            .iter()
            .filter(|o| matches!(o, Operand::One(_)))
            .count();
        let variadic = matches!(self.operands.last(), Some(Operand::Variadic(_)));
        (
            least,
            if variadic {
                usize::MAX
            } else {
                self.operands.len()
            },
        )
    }
}

impl AttrDef {
    /// An attribute definition.
    pub const fn new(
        name: &'static str,
        kind: AttrKind,
        default: Default,
        doc: &'static str,
    ) -> AttrDef {
        AttrDef {
            name,
            kind,
            default,
            doc,
        }
    }
}

impl std::fmt::Debug for OpDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpDef({})", self.name)
    }
}
