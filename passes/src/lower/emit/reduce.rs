//! Reductions, and how many lanes loops have.

use super::{Bound, Emit};
use crate::lower::expr::{Body, E, Node, neutral};
use crate::lower::index::{Along, LoopVar, along};
use lapidary_ir::kernel::{Binary, Op, ReduceKind, TileElem, TileType, Unary, Var};
use lapidary_ir::target::Target;
use lapidary_ir::{Dim, ElemType};

impl Emit<'_> {
    pub(super) fn reduce(&mut self, kind: ReduceKind, vars: &[LoopVar], body: E) -> Var {
        let ty = self.body.ty(body);
        let elem = TileElem::Elem(ty);
        let vars: Vec<LoopVar> = vars
            .iter()
            .copied()
            .filter(|&v| {
                let unit = self.body.extent(v).as_const() == Some(1);
                if unit {
                    let zero = self.int(0);
                    self.bound.insert(v, (0, Bound::Scalar(zero)));
                }
                !unit
            })
            .collect();
        // A loop around this one may use the same variables (a row minus its own mean): theirs do not count.
        let free = self.body.free(body).clone();
        let on_lanes = self.lanes(free.iter().filter(|v| !vars.contains(v)));
        let start = self.literal(elem, neutral(kind, ty));
        if let Some((_, _, n)) = on_lanes {
            let start = self.repeat(start, n);
            return self.reduce_loops(&vars, &[start], &mut |s, acc| {
                vec![s.accumulate(kind, acc[0], body)]
            })[0];
        }
        let lanes = vars.last().map_or(1, |&v| self.reduce_lanes(v, body, ty));
        let (Some(&last), true) = (vars.last(), lanes > 1) else {
            return self.reduce_loops(&vars, &[start], &mut |s, acc| {
                vec![s.accumulate(kind, acc[0], body)]
            })[0];
        };
        let wide = self.repeat(start, lanes);
        let extent = self.body.extent(last).clone();
        let middle = self.whole_lanes(&extent, lanes);
        let (zero, mid, end) = (self.int(0), self.index(&middle), self.index(&extent));
        let both = self.reduce_loops(&vars[..vars.len() - 1], &[wide, start], &mut |s, acc| {
            let w = s.for_loop(last, (zero, mid), lanes, &acc[..1], &mut |s, acc| {
                vec![s.accumulate(kind, acc[0], body)]
            })[0];
            if middle == extent {
                return vec![w, acc[1]];
            }
            let x = s.for_loop(last, (mid, end), 1, &acc[1..], &mut |s, acc| {
                vec![s.accumulate(kind, acc[0], body)]
            })[0];
            vec![w, x]
        });
        let across = self.push(
            TileType {
                elem,
                shape: vec![],
            },
            Op::Reduce {
                kind,
                x: both[0],
                axis: 0,
            },
        );
        self.combine(kind, across, both[1])
    }

    pub(super) fn reduce_loops(
        &mut self,
        vars: &[LoopVar],
        init: &[Var],
        innermost: &mut dyn FnMut(&mut Self, &[Var]) -> Vec<Var>,
    ) -> Vec<Var> {
        let Some((&v, rest)) = vars.split_first() else {
            return innermost(self, init);
        };
        let extent = self.body.extent(v).clone();
        let (zero, end) = (self.int(0), self.index(&extent));
        self.for_loop(v, (zero, end), 1, init, &mut |s, acc| {
            s.reduce_loops(rest, acc, innermost)
        })
    }

    pub(super) fn combine(&mut self, kind: ReduceKind, a: Var, b: Var) -> Var {
        let f = match kind {
            ReduceKind::Sum => Binary::Add,
            ReduceKind::Prod => Binary::Mul,
            ReduceKind::Max => Binary::Max,
            ReduceKind::Min => Binary::Min,
            ReduceKind::And => Binary::And,
            ReduceKind::Or => Binary::Or,
        };
        self.binary(f, a, b)
    }

    pub(super) fn accumulate(&mut self, kind: ReduceKind, acc: Var, body: E) -> Var {
        let ty = self.ty(acc);
        if kind == ReduceKind::Sum
            && self.body.ty(body).is_float()
            && let Node::Binary(Binary::Mul, a, b) = *self.body.node(body)
        {
            let (mut a, mut b) = (self.expr(a), self.expr(b));
            if let Some(&n) = ty.shape.first() {
                (a, b) = (self.repeat(a, n), self.repeat(b, n));
            }
            return self.push(ty, Op::MulAdd(a, b, acc));
        }
        let mut x = self.expr(body);
        if let Some(&n) = ty.shape.first() {
            x = self.repeat(x, n);
        }
        self.combine(kind, acc, x)
    }

    /// Lanes for a reduction over `v`: more than 1 if most of what the body reads is consecutive in `v`.
    pub(super) fn reduce_lanes(&self, v: LoopVar, body: E, ty: ElemType) -> u32 {
        if lane_score(self.body, v, body, None) <= 0 {
            return 1;
        }
        reduction_lanes(
            self.body.extent(v),
            ty,
            has_calls(self.body, body),
            self.target,
        )
    }
}

/// How well loads (and a store) suit lanes along `v`: consecutive is good, strided and gathered are bad.
pub fn lane_score(body: &Body, v: LoopVar, e: E, store: Option<&Dim>) -> i64 {
    let of = |d: &Dim| match along(d, v, body) {
        Along::Not => 0,
        Along::Stride(s) if s.as_const() == Some(1) => 2,
        Along::Stride(_) => -1,
        Along::Other => -2,
    };
    let mut score = store.map_or(0, |d| 2 * of(d));
    let mut inside: Vec<(E, i64)> = vec![(e, 1)];
    let mut seen = std::collections::HashSet::new();
    while let Some((e, weight)) = inside.pop() {
        if !seen.insert(e) {
            continue;
        }
        let weight = match body.node(e) {
            Node::Load { offset, .. } => {
                score += weight * of(offset);
                weight
            }
            Node::Reduce { .. } => weight * 8,
            _ => weight,
        };
        inside.extend(body.children(e).into_iter().map(|c| (c, weight)));
    }
    score
}

/// Lanes for a reduction: of wide vectors as many as leave no element over, if that fills a part of them.
pub(super) fn reduction_lanes(extent: &Dim, ty: ElemType, calls: bool, target: &Target) -> u32 {
    let divides = |l: &u32| extent.as_const().is_some_and(|n| n % i64::from(*l) == 0);
    let wide = [target.vector_bytes / 4, 64, 32].into_iter().find(divides);
    match wide.filter(|_| target.has_wide_vectors()) {
        Some(lanes) => lanes,
        None => narrow_lanes(extent, ty, calls),
    }
}

/// Lanes for a loop of this extent over elements of this type; `calls`: of functions that are called.
pub fn lane_count(extent: &Dim, ty: ElemType, calls: bool, target: &Target) -> u32 {
    if !target.has_wide_vectors() {
        return narrow_lanes(extent, ty, calls);
    }
    // Lanes past the end are idle: that is better than a loop over what is left.
    let most = target.vector_bytes / 4;
    match extent.as_const() {
        None => most,
        Some(n) if n < 4 => 1,
        Some(n) => (n as u64).next_power_of_two().min(u64::from(most)) as u32,
    }
}

pub(super) fn narrow_lanes(extent: &Dim, ty: ElemType, calls: bool) -> u32 {
    let most = match (ty.size_bytes(), calls) {
        (8, _) => 8,
        (_, false) => 16,
        // Functions that a micro-kernel computes are called for all lanes at once.
        (_, true) => 32,
    };
    match extent.as_const() {
        None if calls => most,
        None => 8,
        Some(n) => [32, 16, 8, 4]
            .into_iter()
            .filter(|&l| l <= most)
            .find(|&l| n >= i64::from(l) && (n % i64::from(l) == 0 || n >= 4 * i64::from(l)))
            .or_else(|| [8, 4].into_iter().find(|&l| n >= i64::from(l)))
            .unwrap_or(1),
    }
}

/// True if an expression has functions of `f32` that a micro-kernel computes.
pub fn has_calls(body: &Body, e: E) -> bool {
    let functions = [Unary::Exp, Unary::Tanh, Unary::Erf];
    body.reachable(e).into_iter().any(|e| match body.node(e) {
        Node::Unary(f, x) => functions.contains(f) && body.ty(*x) == ElemType::F32,
        _ => false,
    })
}
