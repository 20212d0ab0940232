//! Scalar expressions: what one element of a result is, in terms of its operands' elements.
//!
//! An op is lowered by a function from a position in its result to an expression; calling the functions of
//! producers instead of loading their results is what fuses a chain. Expressions are interned, so equal
//! parts are one node, and [`super::emit`] computes each where its loop variables are known: outside every
//! loop that it does not depend on.

use super::index::{LoopVar, SymbolKind, symbol_kind};
use lapidary_ir::dim::Atom;
use lapidary_ir::kernel::{Binary, Literal, ReduceKind, Unary};
use lapidary_ir::{Dim, ElemType, ValueId};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// An expression of a [`Body`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct E(u32);

/// A literal that can be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// Integer or bool.
    Int(i64),
    /// Bits of an `f64`.
    Float(u64),
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// A number.
    Const(ElemType, Number),
    /// An element of a stored value; 0 where the mask is false.
    Load {
        /// Which.
        value: ValueId,
        /// Its stored type.
        elem: ElemType,
        /// Row-major linear index.
        offset: Dim,
        /// Where it exists; everywhere if `None`.
        mask: Option<E>,
        /// Loops in each of whose passes it is read anew, because they write what it reads.
        anew: Vec<LoopVar>,
    },
    /// An index, as `i64`.
    Index(Dim),
    /// A function of one operand.
    Unary(Unary, E),
    /// A function of two operands of one type.
    Binary(Binary, E, E),
    /// A choice.
    Select(E, E, E),
    /// A conversion; to a type that kernels do not compute in, it rounds and widens again.
    Cast(ElemType, E),
    /// The same bits as another type of the same width.
    Bitcast(ElemType, E),
    /// A reduction over loops, innermost last.
    Reduce {
        /// How.
        kind: ReduceKind,
        /// The loops.
        vars: Vec<LoopVar>,
        /// What is reduced.
        body: E,
    },
}

/// An arena of expressions with the loop variables that occur in them.
#[derive(Default, Debug)]
pub struct Body {
    nodes: Vec<Node>,
    types: Vec<ElemType>,
    free: Vec<Rc<BTreeSet<LoopVar>>>,
    interned: HashMap<Node, E>,
    extents: Vec<Dim>,
    data: Vec<E>,
}

/// The type that kernels compute in for a stored type.
pub fn compute_type(elem: ElemType) -> ElemType {
    use ElemType::*;
    match elem {
        F16 | BF16 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 | F4E2M1 => F32,
        I4 | I2 => I8,
        U4 | U2 => U8,
        other => other,
    }
}

impl Body {
    /// A new loop variable, counting from 0.
    pub fn loop_var(&mut self, extent: Dim) -> LoopVar {
        self.extents.push(extent);
        LoopVar(self.extents.len() as u32 - 1)
    }

    /// New loop variables, one per extent.
    pub fn loop_vars(&mut self, extents: &[Dim]) -> Vec<LoopVar> {
        extents.iter().map(|d| self.loop_var(d.clone())).collect()
    }

    /// How far a loop variable counts.
    pub fn extent(&self, v: LoopVar) -> &Dim {
        &self.extents[v.0 as usize]
    }

    /// Makes a loop longer or shorter: two loops became one.
    pub fn set_extent(&mut self, v: LoopVar, extent: Dim) {
        self.extents[v.0 as usize] = extent;
    }

    /// The node behind an expression.
    pub fn node(&self, e: E) -> &Node {
        &self.nodes[e.0 as usize]
    }

    /// Its type: one that kernels compute in.
    pub fn ty(&self, e: E) -> ElemType {
        self.types[e.0 as usize]
    }

    /// Loop variables that an expression depends on.
    pub fn free(&self, e: E) -> &Rc<BTreeSet<LoopVar>> {
        &self.free[e.0 as usize]
    }

    /// The expression behind a `@n` symbol.
    pub fn data(&self, n: u32) -> E {
        self.data[n as usize]
    }

    /// An integer expression as (part of) an index.
    pub fn data_index(&mut self, e: E) -> Dim {
        if let Node::Index(d) = self.node(e) {
            return d.clone();
        }
        if let Node::Const(_, Number::Int(i)) = self.node(e) {
            return Dim::from(*i);
        }
        let n = match self.data.iter().position(|&d| d == e) {
            Some(n) => n,
            None => {
                self.data.push(e);
                self.data.len() - 1
            }
        };
        Dim::sym(&format!("@{n}"))
    }

    /// True if an atom depends on a loop variable.
    pub fn atom_depends(&self, a: &Atom, var: LoopVar) -> bool {
        let mut out = BTreeSet::new();
        self.atom_free(a, &mut out);
        out.contains(&var)
    }

    fn atom_free(&self, a: &Atom, out: &mut BTreeSet<LoopVar>) {
        match a {
            Atom::Sym(s) => self.symbol_free(s, out),
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                a.visit_symbols(&mut |s| self.symbol_free(s, out));
                b.visit_symbols(&mut |s| self.symbol_free(s, out));
            }
        }
    }

    fn symbol_free(&self, s: &str, out: &mut BTreeSet<LoopVar>) {
        match symbol_kind(s) {
            SymbolKind::Loop(v) => {
                out.insert(v);
            }
            SymbolKind::Data(n) => out.extend(self.free(self.data(n)).iter()),
            SymbolKind::Program => {}
        }
    }

    /// Loop variables that an index depends on.
    pub fn dim_free(&self, d: &Dim) -> BTreeSet<LoopVar> {
        let mut out = BTreeSet::new();
        d.visit_symbols(&mut |s| self.symbol_free(s, &mut out));
        out
    }

    /// Operands of a node, expressions inside indices included.
    pub fn children(&self, e: E) -> Vec<E> {
        let mut out = vec![];
        let of_dim = |d: &Dim, out: &mut Vec<E>| {
            d.visit_symbols(&mut |s| {
                if let SymbolKind::Data(n) = symbol_kind(s) {
                    out.push(self.data(n));
                }
            });
        };
        match self.node(e) {
            Node::Const(..) => {}
            Node::Load { offset, mask, .. } => {
                of_dim(offset, &mut out);
                out.extend(mask);
            }
            Node::Index(d) => of_dim(d, &mut out),
            Node::Unary(_, x) | Node::Cast(_, x) | Node::Bitcast(_, x) => out.push(*x),
            Node::Binary(_, a, b) => out.extend([*a, *b]),
            Node::Select(c, a, b) => out.extend([*c, *a, *b]),
            Node::Reduce { body, .. } => out.push(*body),
        }
        out
    }

    /// Every expression below (and with) `e`, each once.
    pub fn reachable(&self, e: E) -> Vec<E> {
        let (mut seen, mut stack) = (BTreeSet::new(), vec![e]);
        while let Some(e) = stack.pop() {
            if seen.insert(e) {
                stack.extend(self.children(e));
            }
        }
        seen.into_iter().collect()
    }

    fn add(&mut self, node: Node, ty: ElemType) -> E {
        if let Some(&e) = self.interned.get(&node) {
            return e;
        }
        let e = E(self.nodes.len() as u32);
        let mut free = BTreeSet::new();
        match &node {
            Node::Load { offset, anew, .. } => {
                free = self.dim_free(offset);
                free.extend(anew);
            }
            Node::Index(d) => free = self.dim_free(d),
            _ => {}
        }
        self.nodes.push(node.clone());
        for c in self.children(e) {
            free.extend(self.free[c.0 as usize].iter());
        }
        if let Node::Reduce { vars, .. } = &node {
            vars.iter().for_each(|v| {
                free.remove(v);
            });
        }
        self.types.push(compute_type(ty));
        self.free.push(Rc::new(free));
        self.interned.insert(node, e);
        e
    }

    /// A number of a type that kernels compute in (or that such a type holds).
    pub fn float(&mut self, elem: ElemType, value: f64) -> E {
        let elem = compute_type(elem);
        if !elem.is_float() {
            return self.int(elem, value as i64);
        }
        self.add(Node::Const(elem, Number::Float(value.to_bits())), elem)
    }

    /// An integer (or the float of that value).
    pub fn int(&mut self, elem: ElemType, value: i64) -> E {
        let elem = compute_type(elem);
        if elem.is_float() {
            return self.float(elem, value as f64);
        }
        self.add(Node::Const(elem, Number::Int(value)), elem)
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) -> E {
        self.int(ElemType::Bool, i64::from(value))
    }

    /// The truth value that an expression is known to be.
    pub fn as_bool(&self, e: E) -> Option<bool> {
        match self.node(e) {
            Node::Const(ElemType::Bool, Number::Int(i)) => Some(*i != 0),
            _ => None,
        }
    }

    /// An element of a stored value.
    pub fn load(&mut self, value: ValueId, elem: ElemType, offset: Dim, mask: Option<E>) -> E {
        self.load_anew(value, elem, offset, mask, &[])
    }

    /// An element of a stored value that these loops write.
    pub fn load_anew(
        &mut self,
        value: ValueId,
        elem: ElemType,
        offset: Dim,
        mask: Option<E>,
        anew: &[LoopVar],
    ) -> E {
        let mask = mask.filter(|&m| self.as_bool(m) != Some(true));
        if let Some(m) = mask
            && self.as_bool(m) == Some(false)
        {
            return self.int(elem, 0);
        }
        self.add(
            Node::Load {
                value,
                elem,
                offset,
                mask,
                anew: anew.to_vec(),
            },
            elem,
        )
    }

    /// An index, as `i64`.
    pub fn index(&mut self, d: Dim) -> E {
        match d.as_const() {
            Some(c) => self.int(ElemType::I64, c),
            None => self.add(Node::Index(d), ElemType::I64),
        }
    }

    /// A function of one operand.
    pub fn unary(&mut self, f: Unary, x: E) -> E {
        let ty = match f {
            Unary::Not | Unary::IsNan | Unary::IsInf => ElemType::Bool,
            _ => self.ty(x),
        };
        self.add(Node::Unary(f, x), ty)
    }

    /// A function of two operands of one type.
    pub fn binary(&mut self, f: Binary, a: E, b: E) -> E {
        use Binary::*;
        debug_assert_eq!(self.ty(a), self.ty(b), "{f:?}");
        let compares = matches!(f, Eq | Ne | Lt | Le | Gt | Ge);
        match (f, self.as_bool(a), self.as_bool(b)) {
            (And, Some(true), _) | (Or, Some(false), _) => return b,
            (And, _, Some(true)) | (Or, _, Some(false)) => return a,
            (And, Some(false), _) | (Or, Some(true), _) => return a,
            (And, _, Some(false)) | (Or, _, Some(true)) => return b,
            _ => {}
        }
        let ty = if compares { ElemType::Bool } else { self.ty(a) };
        self.add(Node::Binary(f, a, b), ty)
    }

    /// A choice.
    pub fn select(&mut self, c: E, a: E, b: E) -> E {
        debug_assert_eq!(self.ty(a), self.ty(b), "select");
        match self.as_bool(c) {
            Some(true) => a,
            Some(false) => b,
            None if a == b => a,
            None => {
                let ty = self.ty(a);
                self.add(Node::Select(c, a, b), ty)
            }
        }
    }

    /// Conversion to a type; small types round and widen again.
    pub fn cast(&mut self, elem: ElemType, x: E) -> E {
        if self.ty(x) == elem {
            return x;
        }
        self.add(Node::Cast(elem, x), elem)
    }

    /// The same bits as another compute type.
    pub fn bitcast(&mut self, elem: ElemType, x: E) -> E {
        if self.ty(x) == elem {
            return x;
        }
        self.add(Node::Bitcast(elem, x), elem)
    }

    /// A reduction over loops, innermost last; over nothing it is the kind's neutral element.
    pub fn reduce(&mut self, kind: ReduceKind, vars: &[LoopVar], body: E) -> E {
        let ty = self.ty(body);
        let empty = vars.iter().any(|&v| self.extent(v).as_const() == Some(0));
        if empty {
            return self.neutral(kind, ty);
        }
        self.add(
            Node::Reduce {
                kind,
                vars: vars.to_vec(),
                body,
            },
            ty,
        )
    }

    /// What a reduction starts from.
    pub fn neutral(&mut self, kind: ReduceKind, ty: ElemType) -> E {
        match neutral(kind, ty) {
            Literal::Int(i) => self.int(ty, i),
            Literal::Float(f) => self.float(ty, f),
        }
    }

    /// `a < b` between indices; a constant where that is certain.
    pub fn index_less(&mut self, a: &Dim, b: &Dim) -> E {
        match self.less(a, b) {
            Some(known) => self.bool(known),
            None => {
                let (a, b) = (self.index(a.clone()), self.index(b.clone()));
                self.binary(Binary::Lt, a, b)
            }
        }
    }

    /// `0 <= i < n`.
    pub fn index_within(&mut self, i: &Dim, n: &Dim) -> E {
        let low = self.index_less(&Dim::from(-1i64), i);
        let high = self.index_less(i, n);
        self.binary(Binary::And, low, high)
    }

    /// The same expression with every index rewritten.
    pub fn rewrite(&mut self, e: E, index: &dyn Fn(&Dim) -> Dim, memo: &mut HashMap<E, E>) -> E {
        if let Some(&done) = memo.get(&e) {
            return done;
        }
        let ty = self.ty(e);
        let new = match self.node(e).clone() {
            n @ Node::Const(..) => self.add(n, ty),
            Node::Load {
                value,
                elem,
                offset,
                mask,
                anew,
            } => {
                let offset = self.rewrite_dim(&offset, index, memo);
                let mask = mask.map(|m| self.rewrite(m, index, memo));
                self.load_anew(value, elem, offset, mask, &anew)
            }
            Node::Index(d) => {
                let d = self.rewrite_dim(&d, index, memo);
                self.index(d)
            }
            Node::Unary(f, x) => {
                let x = self.rewrite(x, index, memo);
                self.unary(f, x)
            }
            Node::Binary(f, a, b) => {
                let (a, b) = (self.rewrite(a, index, memo), self.rewrite(b, index, memo));
                self.binary(f, a, b)
            }
            Node::Select(c, a, b) => {
                let c = self.rewrite(c, index, memo);
                let (a, b) = (self.rewrite(a, index, memo), self.rewrite(b, index, memo));
                self.select(c, a, b)
            }
            Node::Cast(t, x) => {
                let x = self.rewrite(x, index, memo);
                self.cast(t, x)
            }
            Node::Bitcast(t, x) => {
                let x = self.rewrite(x, index, memo);
                self.bitcast(t, x)
            }
            Node::Reduce { kind, vars, body } => {
                let body = self.rewrite(body, index, memo);
                self.reduce(kind, &vars, body)
            }
        };
        memo.insert(e, new);
        new
    }

    /// The same expression with all its loads masked: 0 is read where `mask` is false.
    pub fn guard(&mut self, e: E, mask: E) -> E {
        if self.as_bool(mask) == Some(true) {
            return e;
        }
        let mut memo = HashMap::new();
        self.guarded(e, mask, &mut memo)
    }

    fn guarded(&mut self, e: E, mask: E, memo: &mut HashMap<E, E>) -> E {
        if let Some(&done) = memo.get(&e) {
            return done;
        }
        let ty = self.ty(e);
        let mut node = self.node(e).clone();
        match &mut node {
            Node::Const(..) => {}
            Node::Index(d) => *d = self.guarded_dim(d, mask, memo),
            Node::Load {
                offset, mask: own, ..
            } => {
                *offset = self.guarded_dim(offset, mask, memo);
                *own = Some(match *own {
                    Some(o) => self.binary(Binary::And, mask, o),
                    None => mask,
                });
            }
            Node::Unary(_, x) | Node::Cast(_, x) | Node::Bitcast(_, x) => {
                *x = self.guarded(*x, mask, memo);
            }
            Node::Binary(_, a, b) => {
                *a = self.guarded(*a, mask, memo);
                *b = self.guarded(*b, mask, memo);
            }
            Node::Select(c, a, b) => {
                for x in [c, a, b] {
                    *x = self.guarded(*x, mask, memo);
                }
            }
            Node::Reduce { body, .. } => *body = self.guarded(*body, mask, memo),
        }
        let new = self.add(node, ty);
        memo.insert(e, new);
        new
    }

    fn guarded_dim(&mut self, d: &Dim, mask: E, memo: &mut HashMap<E, E>) -> Dim {
        let mut with = HashMap::new();
        let mut data = vec![];
        d.visit_symbols(&mut |s| {
            if let SymbolKind::Data(n) = symbol_kind(s) {
                data.push((s.to_owned(), n));
            }
        });
        for (name, n) in data {
            let e = self.guarded(self.data(n), mask, memo);
            with.insert(name, self.data_index(e));
        }
        if with.is_empty() {
            d.clone()
        } else {
            d.substitute(&|s| with.get(s).cloned())
        }
    }

    /// An index rewritten, expressions inside it included.
    pub fn rewrite_dim(
        &mut self,
        d: &Dim,
        index: &dyn Fn(&Dim) -> Dim,
        memo: &mut HashMap<E, E>,
    ) -> Dim {
        let mut data = vec![];
        d.visit_symbols(&mut |s| {
            if let SymbolKind::Data(n) = symbol_kind(s) {
                data.push((s.to_owned(), n));
            }
        });
        let mut with = HashMap::new();
        for (name, n) in data {
            let e = self.rewrite(self.data(n), index, memo);
            with.insert(name, self.data_index(e));
        }
        let d = index(d);
        if with.is_empty() {
            d
        } else {
            d.substitute(&|s| with.get(s).cloned())
        }
    }
}

/// What a reduction over nothing gives.
pub fn neutral(kind: ReduceKind, ty: ElemType) -> Literal {
    let (lo, hi) = ty.int_range().unwrap_or((0, 0));
    let (lo, hi) = (lo as i64, hi as u64 as i64);
    let float = ty.is_float();
    match kind {
        ReduceKind::Sum if float => Literal::Float(0.0),
        ReduceKind::Prod if float => Literal::Float(1.0),
        ReduceKind::Max if float => Literal::Float(f64::NEG_INFINITY),
        ReduceKind::Min if float => Literal::Float(f64::INFINITY),
        ReduceKind::Sum | ReduceKind::Or => Literal::Int(0),
        ReduceKind::Prod => Literal::Int(1),
        ReduceKind::And => Literal::Int(if ty == ElemType::Bool { 1 } else { -1 }),
        ReduceKind::Max => Literal::Int(lo),
        ReduceKind::Min => Literal::Int(hi),
    }
}
