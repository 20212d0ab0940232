//! Builds the expression of a result's element, through every producer that is computed in place.

use super::expr::{Body, E};
use super::index::Pos;
use super::{Form, rule};
use lapidary_ir::graph::Node;
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::tensor::{Data, count};
use lapidary_ir::{Attr, Dim, ElemType, Module, NodeId, ValueId};
use std::collections::{HashMap, HashSet};

/// What lowering knows of a module before it writes the first kernel.
#[derive(Debug)]
pub struct Facts {
    /// The module, decomposed.
    pub module: Module,
    /// Values that consumers compute themselves.
    pub inlined: HashSet<ValueId>,
    /// Integer values whose contents are sizes: they are never stored for their own sake.
    pub contents: HashMap<ValueId, Vec<Dim>>,
    /// Values that are stored channels last; all others are row-major.
    pub channels: HashMap<ValueId, super::channels::Channels>,
    /// Products whose sums are stored before what follows them.
    pub sums: HashMap<NodeId, Sums>,
}

/// Sums of a product, row-major like its result, in parts that must be added up.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// `f32` `[parts][rows][columns]`.
    pub value: ValueId,
    /// How many.
    pub parts: u32,
}

/// Builds expressions for one kernel.
#[derive(Debug)]
pub struct Expand<'f> {
    /// The module.
    pub facts: &'f Facts,
    /// The expressions.
    pub body: Body,
    memo: HashMap<(ValueId, Pos), E>,
}

impl Facts {
    /// Shape of a tensor of known rank.
    pub fn shape(&self, v: ValueId) -> Result<Vec<Dim>, OpError> {
        let info = self.module.value(v);
        info.ty
            .shape()
            .map(<[Dim]>::to_vec)
            .ok_or_else(|| OpError::new(format!("the shape of `{}` is not known", info.name)))
    }

    /// Element type of a tensor that kernels can work on.
    pub fn elem(&self, v: ValueId) -> Result<ElemType, OpError> {
        match self.module.value(v).ty.elem() {
            Some(e @ (ElemType::C64 | ElemType::C128)) => {
                Err(OpError::new(format!("kernels do not compute {e}")))
            }
            Some(ElemType::String) => Err(OpError::new("kernels do not compute strings")),
            Some(e) => Ok(e),
            None => Err(OpError::new("a tensor is needed")),
        }
    }
}

impl<'f> Expand<'f> {
    /// No expression yet.
    pub fn new(facts: &'f Facts) -> Expand<'f> {
        Expand {
            facts,
            body: Body::default(),
            memo: HashMap::new(),
        }
    }

    /// The element of a value at a position.
    pub fn value(&mut self, v: ValueId, pos: &Pos) -> Result<E, OpError> {
        let key = (v, pos.clone());
        if let Some(&e) = self.memo.get(&key) {
            return Ok(e);
        }
        let e = self.value_anew(v, pos)?;
        self.memo.insert(key, e);
        Ok(e)
    }

    fn value_anew(&mut self, v: ValueId, pos: &Pos) -> Result<E, OpError> {
        let elem = self.facts.elem(v)?;
        if let Some(c) = self.facts.module.as_constant(v)
            && count(c.shape()) == 1
        {
            let t = c.decode().map_err(|e| OpError::new(e.to_string()))?;
            match t.data() {
                Data::Float(x) => return Ok(self.body.float(elem, x[0])),
                Data::Int(x) => return Ok(self.body.int(elem, x[0] as i64)),
                _ => {}
            }
        }
        let shape = self.facts.shape(v)?;
        if let Some(contents) = self.facts.contents.get(&v) {
            return Ok(self.sizes(elem, contents, &pos.linear(&shape)));
        }
        if self.facts.inlined.contains(&v)
            && let Some(node) = self.facts.module.producer(v)
        {
            return self.result(node, v, pos);
        }
        let offset = self.facts.offset(&self.body, v, &shape, pos);
        Ok(self.stored(v, elem, offset))
    }

    /// A load of a stored value.
    pub fn stored(&mut self, v: ValueId, elem: ElemType, offset: Dim) -> E {
        self.body.load(self.facts.root(v), elem, offset, None)
    }

    /// Element `at` of a list of sizes.
    pub fn sizes(&mut self, elem: ElemType, contents: &[Dim], at: &Dim) -> E {
        let Some((last, rest)) = contents.split_last() else {
            return self.body.int(elem, 0);
        };
        if let Some(d) = at
            .as_const()
            .and_then(|i| contents.get(usize::try_from(i).ok()?))
        {
            let e = self.body.index(d.clone());
            return self.body.cast(elem, e);
        }
        let mut out = self.body.index(last.clone());
        for (i, d) in rest.iter().enumerate().rev() {
            let here = self.body.index_less(at, &Dim::from(i + 1));
            let d = self.body.index(d.clone());
            out = self.body.select(here, d, out);
        }
        self.body.cast(elem, out)
    }

    /// The element of a node's result by the node's rule.
    pub fn result(&mut self, node: NodeId, v: ValueId, pos: &Pos) -> Result<E, OpError> {
        let n = self.facts.module.node(node);
        let found = rule(n.op.name);
        let Some(Form::Elements(f)) = found.map(|r| r.form) else {
            return Err(OpError::new(format!("`{}` has no element rule", n.op)));
        };
        self.result_by(f, node, v, pos)
    }

    /// The element of a node's result by a given function, rounded to the result's type.
    pub fn result_by(
        &mut self,
        f: super::ElementFn,
        node: NodeId,
        v: ValueId,
        pos: &Pos,
    ) -> Result<E, OpError> {
        let n = self.facts.module.node(node);
        let result = n.results.iter().position(|&r| r == v).unwrap_or(0);
        let elem = self.facts.elem(v)?;
        let mut element = Element {
            x: self,
            node,
            result,
        };
        let e = f(&mut element, pos)?;
        Ok(self.body.cast(elem, e))
    }
}

/// What an element function works with: one result of one node.
#[derive(Debug)]
pub struct Element<'a, 'f> {
    /// The expressions.
    pub x: &'a mut Expand<'f>,
    /// The node.
    pub node: NodeId,
    /// Which of its results.
    pub result: usize,
}

impl<'f> Element<'_, 'f> {
    /// The node.
    pub fn n(&self) -> &'f Node {
        self.x.facts.module.node(self.node)
    }

    /// The expressions.
    pub fn b(&mut self) -> &mut Body {
        &mut self.x.body
    }

    /// Operand `i`, which must be given.
    pub fn operand(&self, i: usize) -> Result<ValueId, OpError> {
        self.n()
            .operand(i)
            .ok_or_else(|| OpError::new(format!("operand {i} is missing")))
    }

    /// True if operand `i` is given.
    pub fn has(&self, i: usize) -> bool {
        self.n().operand(i).is_some()
    }

    /// Number of operands.
    pub fn arity(&self) -> usize {
        self.n().operands.len()
    }

    /// Shape of operand `i`.
    pub fn shape(&self, i: usize) -> Result<Vec<Dim>, OpError> {
        self.x.facts.shape(self.operand(i)?)
    }

    /// Stored type of operand `i`.
    pub fn elem(&self, i: usize) -> Result<ElemType, OpError> {
        self.x.facts.elem(self.operand(i)?)
    }

    /// Shape of the result.
    pub fn out_shape(&self) -> Result<Vec<Dim>, OpError> {
        self.x.facts.shape(self.n().results[self.result])
    }

    /// Stored type of the result.
    pub fn out_elem(&self) -> Result<ElemType, OpError> {
        self.x.facts.elem(self.n().results[self.result])
    }

    /// Contents of integer operand `i`, if they are sizes.
    pub fn contents(&self, i: usize) -> Option<&'f [Dim]> {
        let v = self.n().operand(i)?;
        self.x.facts.contents.get(&v).map(Vec::as_slice)
    }

    /// Contents of integer operand `i` as numbers.
    pub fn const_ints(&self, i: usize) -> Option<Vec<i64>> {
        self.contents(i)?.iter().map(Dim::as_const).collect()
    }

    /// An attribute or its default.
    pub fn attr(&self, name: &str) -> Option<Attr> {
        self.n().attr(name)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name) {
            Some(Attr::Int(i)) => Some(i),
            _ => None,
        }
    }

    /// True if an integer attribute is not 0.
    pub fn flag(&self, name: &str) -> bool {
        self.int(name).is_some_and(|i| i != 0)
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.attr(name) {
            Some(Attr::Ints(i)) => Some(i),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f64> {
        match self.attr(name) {
            Some(Attr::Float(f)) => Some(f64::from(f)),
            _ => None,
        }
    }

    /// A text attribute, empty if absent.
    pub fn text(&self, name: &str) -> String {
        match self.attr(name) {
            Some(Attr::Str(s)) => s,
            _ => String::new(),
        }
    }

    /// A possibly negative axis attribute.
    pub fn axis(&self, name: &str, rank: usize) -> Result<usize, OpError> {
        resolve_axis(self.int(name).unwrap_or(0), rank)
    }

    /// Operand `i` at a position of its own.
    pub fn at(&mut self, i: usize, pos: &Pos) -> Result<E, OpError> {
        let v = self.operand(i)?;
        self.x.value(v, pos)
    }

    /// Operand `i`, broadcast to the result, at a position of the result.
    pub fn broadcast(&mut self, i: usize, pos: &Pos) -> Result<E, OpError> {
        let out = self.out_shape()?;
        let shape = self.shape(i)?;
        let pos = broadcast_pos(&self.x.body, pos, &out, &shape);
        self.at(i, &pos)
    }
}

/// A position in a tensor of `shape` that is broadcast to `out`.
pub fn broadcast_pos(body: &Body, pos: &Pos, out: &[Dim], shape: &[Dim]) -> Pos {
    if out == shape {
        return pos.clone();
    }
    let index = pos.indices(body, out);
    let skip = index.len().saturating_sub(shape.len());
    let one = Dim::from(1i64);
    Pos::At(
        index[skip..]
            .iter()
            .zip(&out[skip..])
            .zip(shape)
            .map(|((i, o), d)| match d.as_const() {
                Some(1) => Dim::default(),
                Some(_) => i.clone(),
                None if o == d => i.clone(),
                // A symbol that may be 1 at run time.
                None => i.min_dim(&(d - &one)),
            })
            .collect(),
    )
}
