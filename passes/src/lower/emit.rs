//! Expressions to kernel statements.
//!
//! Open bodies are a stack of [`Scope`]s. Every expression is emitted into the outermost scope in which all
//! its loop variables are bound, and remembered there: loop-invariant code leaves the loops by itself, and
//! a row's maximum is computed before the loop over the row. A loop variable may be bound to several
//! consecutive values at once (lanes); what depends on it becomes a tile.

mod reduce;

pub use reduce::{has_calls, lane_count, lane_score};

use super::expr::{Body, E, Node, Number, compute_type};
use super::index::{
    Along, LoopVar, SymbolKind, along, atom_is_size, is_size, symbol_kind, term_dim,
};
use lapidary_ir::dim::Atom;
use lapidary_ir::kernel::{
    At, Axis, Binary, Buf, Kernel, Literal, Op, Param, Stmt, TileElem, TileType, Var,
};
use lapidary_ir::target::Target;
use lapidary_ir::{Dim, ElemType, ValueId};
use std::collections::{BTreeMap, HashMap};

/// What a loop variable is bound to.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// One value.
    Scalar(Var),
    /// `base, base + 1, …`, this many.
    Lanes(Var, u32),
}

/// What was already computed in a scope.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Expr(E),
    Index(Dim),
    Lanes(LoopVar),
    /// An index at the first lane.
    First(Dim),
    Repeat(Var, u32),
    Cast(Var, TileElem),
    Literal(TileElem, Number),
}

#[derive(Default)]
struct Scope {
    stmts: Vec<Stmt>,
    known: HashMap<Key, Var>,
}

/// An argument of the kernel, in the order of its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelArg {
    /// A value's buffer.
    Value(ValueId),
    /// A size.
    Size(Dim),
}

/// Writes one kernel.
pub struct Emit<'b> {
    /// The expressions.
    pub body: &'b Body,
    kernel: Kernel,
    scopes: Vec<Scope>,
    bound: HashMap<LoopVar, (usize, Bound)>,
    args: Vec<KernelArg>,
    /// The value that the kernel writes: it may also be read.
    written: ValueId,
    pub target: &'b Target,
    /// Of the variable on lanes, how many values are left, where not all need exist.
    left: Option<(LoopVar, Var)>,
}

impl<'b> Emit<'b> {
    /// A kernel that writes one value.
    pub fn new(name: &str, body: &'b Body, written: ValueId, target: &'b Target) -> Emit<'b> {
        Emit {
            body,
            kernel: Kernel {
                name: name.to_owned(),
                params: vec![],
                grid: vec![],
                scratch: vec![],
                vars: vec![],
                body: vec![],
            },
            scopes: vec![Scope::default()],
            bound: HashMap::new(),
            args: vec![],
            written,
            target,
            left: None,
        }
    }

    /// The kernel and what its parameters are.
    pub fn finish(mut self) -> (Kernel, Vec<KernelArg>) {
        self.kernel.body = self.scopes.remove(0).stmts;
        (self.kernel, self.args)
    }

    fn var(&mut self, ty: TileType) -> Var {
        self.kernel.vars.push(ty);
        Var(self.kernel.vars.len() as u32 - 1)
    }

    fn ty(&self, v: Var) -> TileType {
        self.kernel.ty(v).clone()
    }

    fn top(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("a scope is open")
    }

    fn push(&mut self, ty: TileType, op: Op) -> Var {
        let v = self.var(ty);
        self.top().stmts.push(Stmt {
            results: vec![v],
            op,
        });
        v
    }

    /// Finds what `key` names in any open scope, or computes it in scope `level`.
    fn at_level(&mut self, level: usize, key: Key, make: impl FnOnce(&mut Self) -> Var) -> Var {
        if let Some(v) = self.scopes.iter().find_map(|s| s.known.get(&key)) {
            return *v;
        }
        let inner = self.scopes.split_off(level + 1);
        let v = make(self);
        self.top().known.insert(key, v);
        self.scopes.extend(inner);
        v
    }

    /// Scope in which all these variables are bound.
    fn level<'v>(&self, vars: impl IntoIterator<Item = &'v LoopVar>) -> usize {
        vars.into_iter()
            .filter_map(|v| self.bound.get(v).map(|b| b.0))
            .max()
            .unwrap_or(0)
    }

    /// The variable among these that is bound to lanes, if one is.
    fn lanes<'v>(
        &self,
        vars: impl IntoIterator<Item = &'v LoopVar>,
    ) -> Option<(LoopVar, Var, u32)> {
        vars.into_iter().find_map(|&v| match self.bound.get(&v) {
            Some((_, Bound::Lanes(base, n))) => Some((v, *base, *n)),
            _ => None,
        })
    }

    /// Adds a grid axis.
    pub fn grid_axis(&mut self, extent: &Dim, divisor: u32) -> Var {
        let extent = match extent.as_const() {
            Some(n) => {
                lapidary_ir::kernel::Extent::Const((n.max(0) as u64).div_ceil(u64::from(divisor)))
            }
            None => lapidary_ir::kernel::Extent::Param {
                param: self.size_param(extent),
                divisor,
            },
        };
        self.kernel.grid.push(extent);
        let axis = self.kernel.grid.len() as u32 - 1;
        self.push(TileType::index(), Op::Grid(axis))
    }

    /// Binds a variable to a scalar that is known in the innermost scope.
    pub fn bind(&mut self, v: LoopVar, to: Var) {
        self.bound
            .insert(v, (self.scopes.len() - 1, Bound::Scalar(to)));
    }

    fn size_param(&mut self, d: &Dim) -> u32 {
        if let Some(i) = self
            .args
            .iter()
            .position(|a| matches!(a, KernelArg::Size(x) if x == d))
        {
            return i as u32;
        }
        self.args.push(KernelArg::Size(d.clone()));
        let name = format!("n{}", self.args.len() - 1);
        self.kernel.params.push(Param::Size { name });
        self.args.len() as u32 - 1
    }

    /// The buffer of a value.
    pub fn buffer(&mut self, value: ValueId, elem: ElemType) -> Buf {
        if let Some(i) = self.args.iter().position(|a| *a == KernelArg::Value(value)) {
            return Buf(i as u32);
        }
        self.args.push(KernelArg::Value(value));
        let name = format!("b{}", self.args.len() - 1);
        self.kernel.params.push(Param::Buffer {
            name,
            elem,
            written: value == self.written,
        });
        Buf(self.args.len() as u32 - 1)
    }

    /// A literal, in the outermost scope.
    pub fn literal(&mut self, elem: TileElem, value: Literal) -> Var {
        let number = match value {
            Literal::Int(i) => Number::Int(i),
            Literal::Float(f) => Number::Float(f.to_bits()),
        };
        self.at_level(0, Key::Literal(elem, number), |s| {
            s.push(
                TileType {
                    elem,
                    shape: vec![],
                },
                Op::Const(value),
            )
        })
    }

    /// An index literal.
    pub fn int(&mut self, i: i64) -> Var {
        self.literal(TileElem::Index, Literal::Int(i))
    }

    fn repeat(&mut self, x: Var, n: u32) -> Var {
        let ty = self.ty(x);
        if !ty.shape.is_empty() {
            return x;
        }
        // Where `x` was computed is not recorded: the innermost scope is always right, and a scope that
        // already holds the repetition is found.
        let level = self.home(x);
        self.at_level(level, Key::Repeat(x, n), |s| {
            s.push(
                TileType {
                    elem: ty.elem,
                    shape: vec![n],
                },
                Op::Broadcast { x, axis: 0 },
            )
        })
    }

    /// The scope whose table holds `x`; the innermost if it is in none.
    fn home(&self, x: Var) -> usize {
        let holds = |s: &Scope| s.known.values().any(|&v| v == x);
        self.scopes
            .iter()
            .position(holds)
            .unwrap_or(self.scopes.len() - 1)
    }

    fn same_shape(&mut self, a: Var, b: Var) -> (Var, Var) {
        let (sa, sb) = (self.ty(a).shape, self.ty(b).shape);
        match (sa.first(), sb.first()) {
            (None, Some(&n)) => (self.repeat(a, n), b),
            (Some(&n), None) => (a, self.repeat(b, n)),
            _ => (a, b),
        }
    }

    /// A function of two vars in the innermost scope; scalars are repeated.
    pub fn binary(&mut self, f: Binary, a: Var, b: Var) -> Var {
        use Binary::*;
        let (a, b) = self.same_shape(a, b);
        let mut ty = self.ty(a);
        if matches!(f, Eq | Ne | Lt | Le | Gt | Ge) {
            ty.elem = TileElem::Elem(ElemType::Bool);
        }
        self.push(ty, Op::Binary(f, a, b))
    }

    fn cast(&mut self, x: Var, elem: TileElem) -> Var {
        let ty = self.ty(x);
        if ty.elem == elem {
            return x;
        }
        let level = self.home(x);
        self.at_level(level, Key::Cast(x, elem), |s| {
            s.push(
                TileType {
                    elem,
                    shape: ty.shape,
                },
                Op::Cast(x),
            )
        })
    }

    /// An index: a scalar, or a tile if it depends on lanes.
    pub fn index(&mut self, d: &Dim) -> Var {
        if let Some(c) = d.as_const() {
            return self.int(c);
        }
        if is_size(d) {
            return self.at_level(0, Key::Index(d.clone()), |s| {
                let p = s.size_param(d);
                s.push(TileType::index(), Op::Size(p))
            });
        }
        let free = self.body.dim_free(d);
        let level = self.level(&free);
        self.at_level(level, Key::Index(d.clone()), |s| s.index_here(d, level))
    }

    /// Splits a sum into what belongs to this scope and the rest, which is computed further out.
    fn index_here(&mut self, d: &Dim, level: usize) -> Var {
        let mut groups: BTreeMap<Vec<Atom>, Dim> = BTreeMap::new();
        let mut outer = Dim::default();
        // At least one term belongs here, so that every split makes the rest smaller.
        let on_lanes = d.terms().any(|(atoms, c)| {
            let free = self.body.dim_free(&term_dim(atoms, c));
            self.level(&free) == level && self.lanes(&free).is_some()
        });
        for (atoms, c) in d.terms() {
            let term = term_dim(atoms, c);
            let free = self.body.dim_free(&term);
            let here = self.level(&free) == level && (!on_lanes || self.lanes(&free).is_some());
            if is_size(&term) || !here {
                outer = outer + term;
                continue;
            }
            let (sizes, varying): (Vec<Atom>, Vec<Atom>) =
                atoms.iter().cloned().partition(atom_is_size);
            let slot = groups.entry(varying).or_default();
            *slot = &*slot + &term_dim(&sizes, c);
        }
        let mut sum = (outer != Dim::default()).then(|| self.index(&outer));
        for (atoms, factor) in groups {
            let mut product: Option<Var> = None;
            for a in &atoms {
                let v = self.atom(a);
                product = Some(match product {
                    Some(p) => self.binary(Binary::Mul, p, v),
                    None => v,
                });
            }
            let mut term = product.unwrap_or_else(|| self.int(1));
            if factor.as_const() != Some(1) {
                let factor = self.index(&factor);
                term = self.binary(Binary::Mul, term, factor);
            }
            sum = Some(match sum {
                Some(s) => self.binary(Binary::Add, s, term),
                None => term,
            });
        }
        sum.unwrap_or_else(|| self.int(0))
    }

    fn atom(&mut self, a: &Atom) -> Var {
        let (f, x, y) = match a {
            Atom::Sym(s) => match symbol_kind(s) {
                SymbolKind::Loop(v) => return self.loop_value(v),
                SymbolKind::Data(n) => {
                    let x = self.expr(self.body.data(n));
                    return self.cast(x, TileElem::Index);
                }
                SymbolKind::Program => return self.index(&Dim::sym(s)),
            },
            Atom::FloorDiv(x, y) => (Binary::FloorDiv, x, y),
            Atom::Mod(x, y) => (Binary::Mod, x, y),
            Atom::Min(x, y) => (Binary::Min, x, y),
            Atom::Max(x, y) => (Binary::Max, x, y),
        };
        let (x, y) = (self.index(x), self.index(y));
        self.binary(f, x, y)
    }

    fn loop_value(&mut self, v: LoopVar) -> Var {
        let (level, bound) = self.bound[&v];
        match bound {
            Bound::Scalar(x) => x,
            Bound::Lanes(base, n) => self.at_level(level, Key::Lanes(v), |s| {
                let iota = s.push(
                    TileType {
                        elem: TileElem::Index,
                        shape: vec![n],
                    },
                    Op::Iota,
                );
                s.binary(Binary::Add, iota, base)
            }),
        }
    }

    /// Where the elements of a position are: base and, on lanes, an axis.
    fn address(&mut self, offset: &Dim) -> (Var, Vec<Axis>, Vec<u32>) {
        let (base, mut axes, shape) = self.place(offset);
        let free = self.body.dim_free(offset);
        if let (Some(axis), Some((v, left))) = (axes.first_mut(), self.left)
            && self.lanes(&free).is_some_and(|l| l.0 == v)
        {
            axis.valid = Some(left);
        }
        (base, axes, shape)
    }

    fn place(&mut self, offset: &Dim) -> (Var, Vec<Axis>, Vec<u32>) {
        let free = self.body.dim_free(offset);
        let Some((v, base, n)) = self.lanes(&free) else {
            return (self.index(offset), vec![], vec![]);
        };
        if let Along::Stride(stride) = along(offset, v, self.body) {
            // The lanes' first element: the same index with the variable at its base.
            let (level, bound) = self.bound[&v];
            self.bound.insert(v, (level, Bound::Scalar(base)));
            let key = Key::First(offset.clone());
            let first = self.at_level(self.level(&free), key, |s| {
                s.without_lanes(v, offset, &stride)
            });
            self.bound.insert(v, (level, bound));
            let axis = match stride.as_const() {
                Some(s) => Axis::stride(s),
                None => Axis {
                    at: At::DynStride(self.index(&stride)),
                    valid: None,
                    mask: None,
                },
            };
            return (first, vec![axis], vec![n]);
        }
        let (mut uniform, mut varying) = (Dim::default(), Dim::default());
        for (atoms, c) in offset.terms() {
            let term = term_dim(atoms, c);
            if self.lanes(&self.body.dim_free(&term)).is_some() {
                varying = varying + term;
            } else {
                uniform = uniform + term;
            }
        }
        let offsets = self.index(&varying);
        let offsets = self.repeat(offsets, n);
        let base = self.index(&uniform);
        (base, vec![Axis::offsets(offsets)], vec![n])
    }

    /// `offset` where `v` (a lanes variable, bound to its base for now) is a scalar.
    fn without_lanes(&mut self, v: LoopVar, offset: &Dim, stride: &Dim) -> Var {
        let rest = offset - &(stride * v.dim());
        let Bound::Scalar(base) = self.bound[&v].1 else {
            return self.index(offset);
        };
        let mut at = base;
        if stride.as_const() != Some(1) {
            let stride = self.index(stride);
            at = self.binary(Binary::Mul, at, stride);
        }
        if rest == Dim::default() {
            return at;
        }
        let rest = self.index(&rest);
        self.binary(Binary::Add, at, rest)
    }

    /// An expression: a scalar, or a tile if it depends on lanes.
    pub fn expr(&mut self, e: E) -> Var {
        let free = self.body.free(e).clone();
        let level = self.level(free.iter());
        self.at_level(level, Key::Expr(e), |s| s.expr_here(e))
    }

    fn expr_here(&mut self, e: E) -> Var {
        let ty = self.body.ty(e);
        let elem = TileElem::Elem(ty);
        match self.body.node(e).clone() {
            Node::Const(_, Number::Int(i)) => self.literal(elem, Literal::Int(i)),
            Node::Const(_, Number::Float(b)) => {
                self.literal(elem, Literal::Float(f64::from_bits(b)))
            }
            Node::Index(d) => {
                let x = self.index(&d);
                self.cast(x, elem)
            }
            Node::Load {
                value,
                elem,
                offset,
                mask,
                ..
            } => self.load(value, elem, &offset, mask),
            Node::Unary(f, x) => {
                let x = self.expr(x);
                let mut ty = self.ty(x);
                ty.elem = elem;
                self.push(ty, Op::Unary(f, x))
            }
            Node::Binary(f, a, b) => {
                let (a, b) = (self.expr(a), self.expr(b));
                self.binary(f, a, b)
            }
            Node::Select(c, a, b) => {
                let (c, a, b) = (self.expr(c), self.expr(a), self.expr(b));
                let n = [c, a, b]
                    .iter()
                    .find_map(|&v| self.ty(v).shape.first().copied());
                let [c, a, b] = [c, a, b].map(|v| n.map_or(v, |n| self.repeat(v, n)));
                let ty = self.ty(a);
                self.push(ty, Op::Select(c, a, b))
            }
            Node::Cast(to, x) => {
                let x = self.expr(x);
                let there = self.cast(x, TileElem::Elem(to));
                self.cast(there, elem)
            }
            Node::Bitcast(_, x) => {
                let x = self.expr(x);
                let mut ty = self.ty(x);
                ty.elem = elem;
                self.push(ty, Op::Bitcast(x))
            }
            Node::Reduce { kind, vars, body } => self.reduce(kind, &vars, body),
        }
    }

    fn load(&mut self, value: ValueId, elem: ElemType, offset: &Dim, mask: Option<E>) -> Var {
        let buf = self.buffer(value, elem);
        let mask = mask.map(|m| self.expr(m));
        let (base, mut axes, mut shape) = self.address(offset);
        let mask_lanes = mask.and_then(|m| self.ty(m).shape.first().copied());
        if axes.is_empty()
            && let Some(n) = mask_lanes
        {
            // The same element in every lane, where the mask allows it.
            axes = vec![Axis::stride(0)];
            shape = vec![n];
        }
        let computed = TileElem::Elem(compute_type(elem));
        let ty = TileType::of(elem, &shape);
        let Some(mask) = mask else {
            let x = self.push(ty, Op::Load { buf, base, axes });
            return self.cast_here(x, computed);
        };
        if let (Some(&n), Some(axis)) = (shape.first(), axes.first_mut()) {
            axis.mask = Some(self.repeat(mask, n));
            let x = self.push(ty, Op::Load { buf, base, axes });
            return self.cast_here(x, computed);
        }
        let (then_var, result) = (self.var(ty.clone()), self.var(ty.clone()));
        let zero = if elem.is_float() {
            Literal::Float(0.0)
        } else {
            Literal::Int(0)
        };
        let zero = self.literal(TileElem::Elem(elem), zero);
        self.top().stmts.push(Stmt {
            results: vec![result],
            op: Op::If {
                condition: mask,
                then_body: vec![Stmt {
                    results: vec![then_var],
                    op: Op::Load { buf, base, axes },
                }],
                then_yields: vec![then_var],
                else_body: vec![],
                else_yields: vec![zero],
            },
        });
        self.cast_here(result, computed)
    }

    fn cast_here(&mut self, x: Var, elem: TileElem) -> Var {
        let ty = self.ty(x);
        if ty.elem == elem {
            return x;
        }
        self.push(
            TileType {
                elem,
                shape: ty.shape,
            },
            Op::Cast(x),
        )
    }

    /// Writes an expression's value at a position.
    pub fn store(&mut self, value: ValueId, elem: ElemType, offset: &Dim, mask: Option<E>, e: E) {
        let buf = self.buffer(value, elem);
        let mut x = self.expr(e);
        let mask = mask.map(|m| self.expr(m));
        let (base, mut axes, shape) = self.address(offset);
        x = self.cast(x, TileElem::Elem(elem));
        match (shape.first(), mask) {
            (Some(&n), mask) => {
                x = self.repeat(x, n);
                axes[0].mask = mask.map(|m| self.repeat(m, n));
            }
            (None, Some(condition)) => {
                self.top().stmts.push(Stmt {
                    results: vec![],
                    op: Op::If {
                        condition,
                        then_body: vec![Stmt {
                            results: vec![],
                            op: Op::Store { buf, base, axes, x },
                        }],
                        then_yields: vec![],
                        else_body: vec![],
                        else_yields: vec![],
                    },
                });
                return;
            }
            (None, None) => {}
        }
        self.top().stmts.push(Stmt {
            results: vec![],
            op: Op::Store { buf, base, axes, x },
        });
    }

    /// A loop in the innermost scope. `lanes` consecutive values are bound at once (1: a scalar).
    pub fn for_loop(
        &mut self,
        v: LoopVar,
        range: (Var, Var),
        lanes: u32,
        init: &[Var],
        body: &mut dyn FnMut(&mut Self, &[Var]) -> Vec<Var>,
    ) -> Vec<Var> {
        let index = self.var(TileType::index());
        let carried: Vec<(Var, Var)> = init
            .iter()
            .map(|&i| {
                let ty = self.ty(i);
                (self.var(ty), i)
            })
            .collect();
        let inner: Vec<Var> = carried.iter().map(|c| c.0).collect();
        self.scopes.push(Scope::default());
        let bound = if lanes > 1 {
            Bound::Lanes(index, lanes)
        } else {
            Bound::Scalar(index)
        };
        let before = self.bound.insert(v, (self.scopes.len() - 1, bound));
        let yields = body(self, &inner);
        match before {
            Some(b) => self.bound.insert(v, b),
            None => self.bound.remove(&v),
        };
        let stmts = self.scopes.pop().expect("pushed above").stmts;
        let results: Vec<Var> = init
            .iter()
            .map(|&i| {
                let ty = self.ty(i);
                self.var(ty)
            })
            .collect();
        self.top().stmts.push(Stmt {
            results: results.clone(),
            op: Op::For {
                index,
                begin: range.0,
                end: range.1,
                step: lanes,
                carried,
                body: stmts,
                yields,
            },
        });
        results
    }

    /// A loop over groups of lanes, in whose last not all need exist: what does not is neither read nor written.
    pub fn part_loop(
        &mut self,
        v: LoopVar,
        (begin, end): (Var, Var),
        lanes: u32,
        body: &mut dyn FnMut(&mut Self, &[Var]) -> Vec<Var>,
    ) {
        self.for_loop(v, (begin, end), lanes, &[], &mut |s, acc| {
            let Some((_, Bound::Lanes(index, _))) = s.bound.get(&v).copied() else {
                return body(s, acc);
            };
            let left = s.push(TileType::index(), Op::Binary(Binary::Sub, end, index));
            let before = s.left.replace((v, left));
            let yields = body(s, acc);
            s.left = before;
            yields
        });
    }

    /// The end of the part of `begin..end` that whole groups of lanes cover.
    pub fn whole_lanes(&mut self, extent: &Dim, lanes: u32) -> Dim {
        let n = Dim::from(i64::from(lanes));
        extent.floor_div(&n) * n
    }
}
