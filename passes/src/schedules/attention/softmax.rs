//! A row of scores to weights, with a running maximum and sum.

use super::{Attention, LANES, MaskAt, Scratch, panels, reciprocal, scalar};
use crate::schedules::{add, add_const, mul, mul_const};
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::{Axis, Binary, Literal, ReduceKind, Unary, Var};

impl Attention {
    /// Turns a row of scores, of the query at position `row`, into weights relative to the running maximum.
    pub(super) fn softmax_row(
        &self,
        b: &mut KernelBuilder,
        scratch: &Scratch,
        mask: Option<&MaskAt>,
        (r, row): (Var, Var),
        (key0, here): (Var, Var),
    ) {
        let from = mul_const(b, r, self.run());
        let width = self.lanes();
        let allowed = if self.causal {
            // Keys of this run up to the query's own position.
            let one = b.index(1);
            let next = add(b, row, one);
            let ahead = b.binary(Binary::Sub, next, key0);
            let none = b.index(0);
            let ahead = b.binary(Binary::Max, ahead, none);
            b.binary(Binary::Min, here, ahead)
        } else {
            here
        };
        // Keys of this run before the first one that is seen.
        let unseen = self.left.map(|left| {
            let first = add_const(b, row, -left);
            b.binary(Binary::Sub, first, key0)
        });
        let mask_at = mask.map(|m| {
            let mut at = m.base;
            if let Some(by_row) = m.by_row {
                let skip = mul(b, r, by_row);
                at = add(b, at, skip);
            }
            (m, add(b, at, key0))
        });
        let exact = self.exact();
        let low = b.constant(scalar(), Literal::Float(f64::NEG_INFINITY));
        let wide_low = b.broadcast(low, &[width], 0);
        let scale = b.constant(scalar(), Literal::Float(f64::from(self.scale)));
        let most = lanes(
            b,
            (allowed, width),
            exact,
            wide_low,
            |b, j, axis, left, most| {
                let at = add(b, from, j);
                let mut x = b.load(scratch.s, at, &[width], vec![Axis::stride(1)]);
                x = b.binary(Binary::Mul, x, scale);
                if let Some(cap) = self.softcap {
                    x = bounded(b, x, cap);
                }
                if let Some(unseen) = unseen {
                    let lane = b.iota(width);
                    let key = b.binary(Binary::Add, lane, j);
                    let seen = b.binary(Binary::Ge, key, unseen);
                    x = b.select(seen, x, low);
                }
                if let Some((m, at)) = mask_at {
                    let at = add(b, at, j);
                    let own = b.load(m.buf, at, &[width], vec![axis]);
                    x = if m.condition {
                        b.select(own, x, low)
                    } else {
                        b.binary(Binary::Add, x, own)
                    };
                }
                let at = add(b, from, j);
                b.store(scratch.s, at, vec![Axis::stride(1)], x);
                let x = existing(b, x, low, left, width);
                b.binary(Binary::Max, most, x)
            },
        );
        let most = b.reduce(ReduceKind::Max, most, 0);
        let before = (!self.one_run()).then(|| b.load(scratch.m, r, &[], vec![]));
        let now = match before {
            Some(before) => b.binary(Binary::Max, before, most),
            None => most,
        };
        if before.is_some() {
            b.store(scratch.m, r, vec![], now);
        }
        // Where nothing is allowed yet the maximum is minus infinity, and any other number serves.
        let nothing = b.constant(scalar(), Literal::Float(0.0));
        let none = b.binary(Binary::Eq, now, low);
        let top = b.select(none, nothing, now);
        let sums = b.broadcast(nothing, &[width], 0);
        let sum = lanes(b, (allowed, width), exact, sums, |b, j, _, left, sum| {
            let at = add(b, from, j);
            let x = b.load(scratch.s, at, &[width], vec![Axis::stride(1)]);
            let x = b.binary(Binary::Sub, x, top);
            let e = b.unary(Unary::Exp, x);
            // Rows in scratch memory are whole vectors: what is missing weighs nothing.
            let e = existing(b, e, nothing, left, width);
            let at = add(b, from, j);
            b.store(scratch.s, at, vec![Axis::stride(1)], e);
            b.binary(Binary::Add, sum, e)
        });
        let sum = b.reduce(ReduceKind::Sum, sum, 0);
        if self.causal {
            // What lies after the query weighs nothing; the vector of the last key is done.
            let up = add_const(b, allowed, i64::from(width) - 1);
            let vector = b.index(i64::from(width));
            let vectors = b.binary(Binary::FloorDiv, up, vector);
            let first = mul(b, vectors, vector);
            let zeros = b.broadcast(nothing, &[width], 0);
            b.for_loop(first, here, width, &[], |b, j, _| {
                let at = add(b, from, j);
                b.store(scratch.s, at, vec![Axis::stride(1)], zeros);
                vec![]
            });
        }
        let Some(before) = before else {
            if self.direct() {
                self.divided(b, scratch, from, here, sum);
            } else {
                b.store(scratch.l, r, vec![], sum);
            }
            return;
        };
        let fall = b.binary(Binary::Sub, before, top);
        let fall = b.unary(Unary::Exp, fall);
        let old = b.load(scratch.l, r, &[], vec![]);
        let total = b.mul_add(old, fall, sum);
        b.store(scratch.l, r, vec![], total);
        let width = panels(self.value_size) * i64::from(PANEL);
        let from = mul_const(b, r, width);
        let (zero, end) = (b.index(0), b.index(width));
        b.for_loop(zero, end, LANES, &[], |b, j, _| {
            let at = add(b, from, j);
            let o = b.load(scratch.o, at, &[LANES], vec![Axis::stride(1)]);
            let o = b.binary(Binary::Mul, o, fall);
            let at = add(b, from, j);
            b.store(scratch.o, at, vec![Axis::stride(1)], o);
            vec![]
        });
    }

    /// Divides a row of weights by their sum; nothing where nothing may be attended.
    fn divided(&self, b: &mut KernelBuilder, scratch: &Scratch, from: Var, here: Var, sum: Var) {
        let inverse = reciprocal(b, sum);
        let (zero, width) = (b.index(0), self.lanes());
        b.for_loop(zero, here, width, &[], |b, j, _| {
            let at = add(b, from, j);
            let e = b.load(scratch.s, at, &[width], vec![Axis::stride(1)]);
            let e = b.binary(Binary::Mul, e, inverse);
            b.store(scratch.s, at, vec![Axis::stride(1)], e);
            vec![]
        });
    }
}

/// `cap * tanh(x / cap)`.
pub(super) fn bounded(b: &mut KernelBuilder, x: Var, cap: f32) -> Var {
    let [cap, inverse] =
        [cap, 1.0 / cap].map(|number| b.constant(scalar(), Literal::Float(f64::from(number))));
    let x = b.binary(Binary::Mul, x, inverse);
    let x = b.unary(Unary::Tanh, x);
    b.binary(Binary::Mul, x, cap)
}

/// `x` where it exists, else `other`.
fn existing(b: &mut KernelBuilder, x: Var, other: Var, left: Option<Var>, lanes: u32) -> Var {
    let Some(left) = left else { return x };
    let i = b.iota(lanes);
    let there = b.binary(Binary::Lt, i, left);
    b.select(there, x, other)
}

/// A loop over `n` elements by vectors that carries one, and a last vector that is not whole unless `exact`. The body
/// gets the position, the axis, how many elements exist if that is not all, and the carried vector.
fn lanes(
    b: &mut KernelBuilder,
    (n, step): (Var, u32),
    exact: bool,
    init: Var,
    body: impl Fn(&mut KernelBuilder, Var, Axis, Option<Var>, Var) -> Var,
) -> Var {
    let (zero, width) = (b.index(0), b.index(i64::from(step)));
    let groups = b.binary(Binary::FloorDiv, n, width);
    let whole = if exact { n } else { mul(b, groups, width) };
    let most = b.for_loop(zero, whole, step, &[init], |b, j, x| {
        vec![body(b, j, Axis::stride(1), None, x[0])]
    })[0];
    if exact {
        return most;
    }
    let left = b.binary(Binary::Sub, n, whole);
    let any = b.binary(Binary::Gt, left, zero);
    b.if_else(
        any,
        |b| {
            vec![body(
                b,
                whole,
                Axis::stride(1).valid(left),
                Some(left),
                most,
            )]
        },
        |_| vec![most],
    )[0]
}
