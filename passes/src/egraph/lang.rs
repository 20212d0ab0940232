//! The e-graph's language: one generic node, not one variant per op.
//!
//! A node is a head and children. Attributes are a child of their own ([`Head::Attrs`], always the last), so that a
//! pattern can bind them: `(transpose ?x ?perm)`. An optional operand left out is [`Head::Absent`], also at the end: an op
//! that is not variadic always has all its operands.
//! Only pure ops with one result and no region enter; everything else is a leaf ([`Head::Value`]) at which the
//! e-graph of a block ends.

pub use super::traits::Trait;
use super::traits::{self, Known, Traits};
use crate::fold::Limits;
use egg::{Analysis, DidMerge, EGraph, FromOp, Id, Language};
use lapidary_ir::builder::SMALL_CONSTANT;
use lapidary_ir::graph::Node;
use lapidary_ir::ops::{InferCtx, Op};
use lapidary_ir::tensor::count;
use lapidary_ir::{Attr, Attrs, Constant, Dim, Tensor, Type, ValueId};
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Head {
    /// An op; the children are its operands and then its attributes.
    Op(Op),
    /// A value from outside the block: an input, or a constant of the module.
    Value(ValueId),
    /// A constant that a rule made, by position in [`Facts::made`].
    Made(usize),
    /// Attributes, by position in [`Facts::attrs`].
    Attrs(usize),
    /// An optional operand that is left out.
    Absent,
}

/// An e-node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    /// What it is.
    pub head: Head,
    /// Its children.
    pub children: Vec<Id>,
}

impl Language for Term {
    type Discriminant = (Head, usize);

    fn discriminant(&self) -> Self::Discriminant {
        (self.head.clone(), self.children.len())
    }

    fn matches(&self, other: &Term) -> bool {
        self.head == other.head && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

impl FromOp for Term {
    type Error = String;

    /// In patterns, `attrs0` is the empty attribute set and `none` an absent operand; everything else is an op.
    fn from_op(op: &str, children: Vec<Id>) -> Result<Term, String> {
        let head = match op {
            "attrs0" => Head::Attrs(NO_ATTRS),
            "none" => Head::Absent,
            name => Head::Op(Op::named(name).ok_or_else(|| format!("there is no op `{name}`"))?),
        };
        Ok(Term { head, children })
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.head {
            Head::Op(op) => write!(f, "{op}"),
            Head::Value(v) => write!(f, "{v}"),
            Head::Made(n) => write!(f, "made{n}"),
            Head::Attrs(n) => write!(f, "attrs{n}"),
            Head::Absent => write!(f, "none"),
        }
    }
}

/// Position of the empty attribute set.
pub const NO_ATTRS: usize = 0;

/// What is known of an e-class.
#[derive(Clone, Debug, Default)]
pub struct Fact {
    /// Type, unless it is an attribute leaf or absent.
    pub ty: Option<Type>,
    /// The constant it equals.
    pub constant: Option<Arc<Constant>>,
    /// Integer contents.
    pub contents: Option<Vec<Dim>>,
    /// The attributes, if it is an attribute leaf.
    pub attrs: Option<usize>,
    /// True if everything below it is constant, so that folding will compute it at compile time.
    pub foldable: bool,
    /// What is known of its contents.
    pub traits: Traits,
}

impl Fact {
    /// True for constants, for what folds to one, and for the leaves that are no tensors. Compressed constants are none of these:
    /// arithmetic on them would need them decoded.
    pub fn is_constant(&self) -> bool {
        let plain = self.constant.as_ref().is_some_and(|c| !c.is_compressed());
        self.foldable || plain || self.ty.is_none()
    }
}

/// The e-graph's analysis: types, constants and attributes, kept in tables that nodes point into.
#[derive(Default)]
pub struct Facts {
    /// Attribute sets; the first is empty.
    pub attrs: Vec<Attrs>,
    /// Constants that rules made.
    pub made: Vec<Arc<Constant>>,
    /// Types and constants of the block's leaves.
    pub leaves: HashMap<ValueId, (Type, Option<Arc<Constant>>, Traits)>,
    /// Counter for fresh symbols.
    pub fresh: Cell<u32>,
}

/// The e-graph.
pub type Graph = EGraph<Term, Facts>;

impl Facts {
    /// Tables with the empty attribute set.
    pub fn new(first_fresh: u32) -> Facts {
        Facts {
            attrs: vec![Attrs::new()],
            fresh: Cell::new(first_fresh),
            ..Facts::default()
        }
    }

    /// Position of an attribute set, adding it if new.
    pub fn intern(&mut self, attrs: &Attrs) -> usize {
        self.attrs
            .iter()
            .position(|a| a == attrs)
            .unwrap_or_else(|| {
                self.attrs.push(attrs.clone());
                self.attrs.len() - 1
            })
    }
}

impl Analysis<Term> for Facts {
    type Data = Fact;

    fn make(egraph: &mut Graph, term: &Term, _id: Id) -> Fact {
        match &term.head {
            Head::Value(v) => {
                let (ty, constant, traits) = egraph.analysis.leaves[v].clone();
                Fact {
                    traits,
                    contents: constant.as_deref().and_then(small_ints),
                    ty: Some(ty),
                    constant,
                    ..Fact::default()
                }
            }
            Head::Made(n) => {
                let constant = egraph.analysis.made[*n].clone();
                let ty = Type::tensor(constant.elem(), constant.shape().iter().copied());
                Fact {
                    contents: small_ints(&constant),
                    traits: Traits::of(&constant),
                    ty: Some(ty),
                    constant: Some(constant),
                    ..Fact::default()
                }
            }
            Head::Attrs(n) => Fact {
                attrs: Some(*n),
                ..Fact::default()
            },
            Head::Absent => Fact::default(),
            Head::Op(op) => op_fact(egraph, *op, &term.children),
        }
    }

    fn merge(&mut self, to: &mut Fact, from: Fact) -> DidMerge {
        let mut did = DidMerge(false, false);
        did = did | prefer(&mut to.constant, from.constant);
        did = did | prefer(&mut to.contents, from.contents);
        did = did | prefer(&mut to.attrs, from.attrs);
        did = did | DidMerge(from.foldable && !to.foldable, to.foldable && !from.foldable);
        to.foldable |= from.foldable;
        let traits = to.traits.or(from.traits);
        did = did | DidMerge(traits != to.traits, traits != from.traits);
        to.traits = traits;
        // The more exact type wins: numbers over symbols.
        match (&to.ty, from.ty) {
            (Some(a), Some(b)) if *a != b => {
                let better = numbers(&b) > numbers(a);
                did = did | DidMerge(better, !better);
                if better {
                    to.ty = Some(b);
                }
            }
            (Some(_), None) => did = did | DidMerge(false, true),
            (None, Some(b)) => {
                to.ty = Some(b);
                did = did | DidMerge(true, false);
            }
            _ => {}
        }
        did
    }
}

/// Takes what one side knows and the other does not.
fn prefer<T>(to: &mut Option<T>, from: Option<T>) -> DidMerge {
    match (to.is_some(), from) {
        (false, Some(v)) => {
            *to = Some(v);
            DidMerge(true, false)
        }
        (true, None) => DidMerge(false, true),
        _ => DidMerge(false, false),
    }
}

fn numbers(ty: &Type) -> usize {
    ty.shape().map_or(0, |s| {
        1 + s.iter().filter(|d| d.as_const().is_some()).count()
    })
}

fn small_ints(constant: &Constant) -> Option<Vec<Dim>> {
    constant.elem().int_range()?;
    (count(constant.shape()) <= SMALL_CONSTANT)
        .then(|| constant.decode().ok()?.to_i64s())?
        .map(|v| v.into_iter().map(Dim::from).collect())
}

/// Type and contents by the op's own rules; nothing is known if the rule refuses.
fn op_fact(egraph: &Graph, op: Op, children: &[Id]) -> Fact {
    let Some((&attrs, operands)) = children.split_last() else {
        return Fact::default();
    };
    let Some(attrs) = egraph[attrs].data.attrs else {
        return Fact::default();
    };
    let facts: Vec<&Fact> = operands.iter().map(|&o| &egraph[o].data).collect();
    let placeholder = |i: usize, f: &Fact| f.ty.as_ref().map(|_| ValueId(i as u32));
    let node = Node {
        op,
        name: String::new(),
        operands: facts
            .iter()
            .enumerate()
            .map(|(i, f)| placeholder(i, f))
            .collect(),
        results: vec![ValueId(u32::MAX)],
        attrs: egraph.analysis.attrs[attrs].clone(),
        regions: vec![],
    };
    let small = |f: &&Fact| {
        f.constant
            .as_ref()
            .filter(|c| traits::is_visible(c))
            .and_then(|c| c.decode().ok())
    };
    let ctx = InferCtx {
        node: &node,
        types: facts.iter().map(|f| f.ty.as_ref()).collect(),
        contents: facts.iter().map(|f| f.contents.clone()).collect(),
        constants: facts.iter().map(small).collect(),
        region_outputs: vec![],
        fresh: &egraph.analysis.fresh,
    };
    let ty = (op.infer)(&ctx).ok().and_then(|t| t.into_iter().next());
    let given = facts.iter().any(|f| f.ty.is_some());
    let known: Vec<Known> = operands
        .iter()
        .zip(&facts)
        .filter(|(_, f)| f.ty.is_some())
        .map(|(&o, f)| Known {
            id: usize::from(egraph.find(o)),
            shape: f.ty.as_ref().and_then(Type::shape),
            traits: f.traits,
        })
        .collect();
    let shape = ty.as_ref().and_then(Type::shape);
    let traits = traits::of_result(op.name, &node.attrs, &known, shape);
    let constant = given && facts.iter().all(|f| f.is_constant());
    Fact {
        traits,
        foldable: constant && !is_factored(op, &facts, ty.as_ref()),
        ty,
        contents: op.contents.and_then(|rule| rule(&ctx)),
        ..Fact::default()
    }
}

/// True for a product of matrices that is larger than both: it is left to run time, as `fold` leaves it.
fn is_factored(op: Op, operands: &[&Fact], result: Option<&Type>) -> bool {
    let size = |ty: Option<&Type>| {
        let shape = ty.and_then(Type::as_tensor)?.const_shape()?;
        Some(count(&shape))
    };
    let parts: usize = operands.iter().filter_map(|f| size(f.ty.as_ref())).sum();
    let limit = Limits::default().elements.max(parts);
    op.name == "matmul" && size(result).is_some_and(|n| n > limit)
}

/// What appliers and conditions ask about bound variables.
pub trait Query {
    /// Type of a class.
    fn ty(&self, id: Id) -> Option<&Type>;
    /// True if the class is a constant with this trait.
    fn has_trait(&self, id: Id, asked: Trait) -> bool;
    /// The class as a float constant of one element.
    fn scalar(&self, id: Id) -> Option<f64>;
    /// Integer contents as numbers.
    fn ints(&self, id: Id) -> Option<Vec<i64>>;
    /// Attributes of an attribute leaf.
    fn attrs(&self, id: Id) -> Option<&Attrs>;
    /// The shape as numbers.
    fn const_shape(&self, id: Id) -> Option<Vec<usize>>;
    /// Adds a constant.
    fn add_constant(&mut self, tensor: &Tensor) -> Id;
    /// Adds an op with this attribute set.
    fn add_op_attrs(&mut self, op: &str, operands: &[Id], attrs: &Attrs) -> Id;
    /// Adds an op with these attributes.
    fn add_op(
        &mut self,
        op: &str,
        operands: &[Id],
        attrs: impl IntoIterator<Item = (&'static str, Attr)>,
    ) -> Id;
}

impl Query for Graph {
    fn ty(&self, id: Id) -> Option<&Type> {
        self[id].data.ty.as_ref()
    }

    fn has_trait(&self, id: Id, asked: Trait) -> bool {
        self[id].data.traits.has(asked)
    }

    fn scalar(&self, id: Id) -> Option<f64> {
        let constant = self[id]
            .data
            .constant
            .as_ref()
            .filter(|c| count(c.shape()) == 1)?;
        constant.decode().ok()?.to_f64s()?.first().copied()
    }

    fn ints(&self, id: Id) -> Option<Vec<i64>> {
        self[id]
            .data
            .contents
            .as_ref()?
            .iter()
            .map(Dim::as_const)
            .collect()
    }

    fn attrs(&self, id: Id) -> Option<&Attrs> {
        self[id].data.attrs.map(|a| &self.analysis.attrs[a])
    }

    fn const_shape(&self, id: Id) -> Option<Vec<usize>> {
        self.ty(id)?.as_tensor()?.const_shape()
    }

    fn add_constant(&mut self, tensor: &Tensor) -> Id {
        let constant = Constant::from_tensor(tensor);
        let made = &mut self.analysis.made;
        // A rule that fires again must not make new terms: equal constants are one.
        let known = made.iter().position(|c| **c == constant);
        let head = Head::Made(known.unwrap_or(made.len()));
        if known.is_none() {
            made.push(Arc::new(constant));
        }
        self.add(Term {
            head,
            children: vec![],
        })
    }

    fn add_op(
        &mut self,
        op: &str,
        operands: &[Id],
        attrs: impl IntoIterator<Item = (&'static str, Attr)>,
    ) -> Id {
        let attrs: Attrs = attrs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        self.add_op_attrs(op, operands, &attrs)
    }

    fn add_op_attrs(&mut self, op: &str, operands: &[Id], attrs: &Attrs) -> Id {
        let op = Op::named(op).expect("rules name ops of the table");
        let attrs = self.analysis.intern(attrs);
        let attrs = self.add(Term {
            head: Head::Attrs(attrs),
            children: vec![],
        });
        let missing = op.operands_in_rules().saturating_sub(operands.len());
        let absent = (missing > 0 && op.arity().1 != usize::MAX).then(|| {
            self.add(Term {
                head: Head::Absent,
                children: vec![],
            })
        });
        let absents = std::iter::repeat_n(absent, missing).flatten();
        let children = operands
            .iter()
            .copied()
            .chain(absents)
            .chain([attrs])
            .collect();
        self.add(Term {
            head: Head::Op(op),
            children,
        })
    }
}
