//! How a tile lies in a block's threads.
//!
//! | elements | who holds them |
//! | --- | --- |
//! | 1 | every thread the same |
//! | up to 32 | lane `l` of every warp element `l` |
//! | more | thread `t`, in its register `r`, element `r * threads + t` |
//!
//! So tiles of equal sizes lie alike, whatever their shape: operations on elements need no exchange. Elements of small tiles
//! are in every warp, so that a shuffle reaches them. A thread beyond the tile's end computes on what happens to be there
//! and never writes it.

use crate::function::Fun;
use crate::writer::{Ty, Val};
use lapidary_ir::kernel::{Class, Kernel, Literal, TileElem, TileType};

/// Threads of a warp.
pub(crate) const WARP: u32 = 32;

/// Most threads of a block: with more, a thread has less than 255 registers.
const MOST_THREADS: u32 = 256;

/// Elements of the largest tile that a thread holds before a block gets more threads.
const ELEMENTS_OF_A_THREAD: u32 = 4;

/// A var's value.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub ty: TileType,
    /// Registers (or numbers) in order.
    pub parts: Vec<Val>,
    /// All elements are the same value, in all threads.
    pub uniform: bool,
}

/// Threads of a block of this kernel.
pub(crate) fn threads(kernel: &Kernel) -> u32 {
    let most = kernel.vars.iter().map(TileType::len).max().unwrap_or(1);
    most.div_ceil(ELEMENTS_OF_A_THREAD)
        .next_power_of_two()
        .clamp(WARP, MOST_THREADS)
}

/// The register type of an element.
pub(crate) fn register(elem: TileElem) -> Ty {
    match elem.class() {
        Class::F32 => Ty::F32,
        Class::F64 => Ty::F64,
        Class::Bool => Ty::Pred,
        Class::Int { bits, .. } | Class::Bits(bits) if bits > 32 => Ty::B64,
        Class::Int { .. } | Class::Bits(_) => Ty::B32,
    }
}

pub(crate) fn is_signed(elem: TileElem) -> bool {
    matches!(elem.class(), Class::Int { signed: true, .. })
}

/// A literal of an element.
pub(crate) fn literal(elem: TileElem, literal: Literal) -> Val {
    match elem.class() {
        Class::F32 => Val::f32(literal.as_float() as f32),
        Class::F64 => Val::f64(literal.as_float()),
        Class::Bool => Val::bool(literal.as_int() != 0),
        _ => {
            let x = elem.wrap_literal(literal.held(elem).as_int());
            match register(elem) {
                Ty::B64 => Val::long(x),
                _ => Val::int(x),
            }
        }
    }
}

/// `(e / len) * outer + (e % len) * inner + first`: which element of another tile an element is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub len: u32,
    pub outer: u32,
    pub inner: u32,
    pub first: u32,
}

impl Index {
    /// The same element.
    pub const SAME: Index = Index {
        len: 1,
        outer: 1,
        inner: 0,
        first: 0,
    };

    /// The position of the row, for rows of `cols` elements.
    pub fn row(cols: u32) -> Index {
        Index {
            len: cols,
            ..Index::SAME
        }
    }

    /// The position in the row, for rows of `cols` elements.
    pub fn col(cols: u32) -> Index {
        Index {
            len: cols,
            outer: 0,
            inner: 1,
            first: 0,
        }
    }

    /// Of an element by its number.
    pub fn of(self, e: u32) -> u32 {
        e / self.len * self.outer + e % self.len * self.inner + self.first
    }
}

/// How tiles of a number of elements lie in blocks of a number of threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub threads: u32,
    pub len: u32,
}

impl Layout {
    /// Registers of each thread.
    pub fn parts(self) -> u32 {
        match self.in_every_warp() {
            true => 1,
            false => self.len.div_ceil(self.threads),
        }
    }

    /// True if every warp holds all elements.
    pub fn in_every_warp(self) -> bool {
        self.len <= WARP
    }

    /// The element in a thread's register, if there is one.
    pub fn element(self, thread: u32, part: u32) -> Option<u32> {
        let e = match self.len {
            1 => 0,
            _ if self.in_every_warp() => thread % WARP,
            _ => part * self.threads + thread,
        };
        (e < self.len).then_some(e)
    }

    /// Where a thread finds an element nearest: in which register, and in which lane of its own warp; `None` if another warp
    /// holds it.
    fn nearest(self, thread: u32, element: u32) -> Option<(u32, u32)> {
        match self.len {
            1 => Some((0, thread % WARP)),
            _ if self.in_every_warp() => Some((0, element)),
            _ => {
                let owner = element % self.threads;
                (owner / WARP == thread / WARP).then_some((element / self.threads, owner % WARP))
            }
        }
    }

    /// How threads get, for register `part` of tiles like `to`, the elements at `index` of a tile like this.
    pub fn route(self, to: Layout, part: u32, index: Index) -> Route {
        let mut route = None;
        for thread in 0..self.threads {
            let Some(e) = to.element(thread, part) else {
                continue;
            };
            let Some((part, lane)) = self.nearest(thread, index.of(e)) else {
                return Route::Shared;
            };
            let now = match lane == thread % WARP {
                true => Route::Own(part),
                false => Route::Lane(part),
            };
            route = match (route, now) {
                (None, now) => Some(now),
                (Some(Route::Own(a) | Route::Lane(a)), Route::Own(b) | Route::Lane(b))
                    if a != b =>
                {
                    return Route::Shared;
                }
                (Some(Route::Own(_)), now) => Some(now),
                (Some(before), _) => Some(before),
            };
        }
        route.unwrap_or(Route::Own(0))
    }
}

/// How an element gets to who needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// It is there, in this register.
    Own(u32),
    /// From another lane's register.
    Lane(u32),
    /// Through memory.
    Shared,
}

impl Fun<'_> {
    pub fn layout(&self, len: u32) -> Layout {
        Layout {
            threads: self.threads,
            len,
        }
    }

    /// The number of the element in this thread's register `part`.
    pub fn element(&mut self, len: u32, part: u32) -> Val {
        match len {
            1 => Val::int(0),
            _ if len <= WARP => self.lane,
            _ => {
                let tid = self.tid;
                self.w.add(tid, Val::int(i64::from(part * self.threads)))
            }
        }
    }

    /// Whether there is an element in this thread's register; `None`: in every thread.
    pub fn exists(&mut self, len: u32, part: u32) -> Option<Val> {
        let (who, end) = match len {
            1 => return None,
            _ if len <= WARP => (self.lane, len),
            _ => (self.tid, len - part * self.threads),
        };
        let all = if len <= WARP { WARP } else { self.threads };
        (end < all).then(|| self.w.compare("lt.u32", who, Val::int(i64::from(end))))
    }

    /// Whether this thread writes its register's element for all; `None`: every thread does.
    pub fn owns(&mut self, len: u32, part: u32) -> Option<Val> {
        if len > WARP {
            return self.exists(len, part);
        }
        let tid = self.tid;
        (len < self.threads).then(|| self.w.compare("lt.u32", tid, Val::int(i64::from(len))))
    }

    /// Quotient and remainder of an element's number and a constant.
    pub fn split(&mut self, len: u32, part: u32, by: u32) -> (Val, Val) {
        let zero = Val::int(0);
        if by == 1 {
            return (self.element(len, part), zero);
        }
        if by >= len {
            return (zero, self.element(len, part));
        }
        // Threads divide alike in every register.
        if len > WARP && self.threads.is_multiple_of(by) {
            let tid = self.tid;
            let (q, r) = self.divide(tid, self.threads, by);
            let skip = Val::int(i64::from(part * (self.threads / by)));
            return (self.w.add(q, skip), r);
        }
        let e = self.element(len, part);
        self.divide(e, len.next_multiple_of(self.threads), by)
    }

    /// Quotient and remainder of a number below `end` and a constant.
    fn divide(&mut self, x: Val, end: u32, by: u32) -> (Val, Val) {
        if by.is_power_of_two() {
            let q = self.w.op(
                Ty::B32,
                "shr.u32",
                &[x, Val::int(i64::from(by.trailing_zeros()))],
            );
            let r = self
                .w
                .op(Ty::B32, "and.b32", &[x, Val::int(i64::from(by - 1))]);
            return (q, r);
        }
        // With x < 2^bits and by > 2^(log - 1), the quotient is x * (2^(bits + log) / by + 1) >> (bits + log).
        let bits = u32::BITS - end.leading_zeros();
        let log = u32::BITS - (by - 1).leading_zeros();
        let q = match 2 * bits < u32::BITS {
            true => {
                let factor = (1u64 << (bits + log)) / u64::from(by) + 1;
                let p = self.w.mul(x, Val::int(factor as i64));
                let shift = Val::int(i64::from(bits + log));
                self.w.op(Ty::B32, "shr.u32", &[p, shift])
            }
            false => self.w.op(Ty::B32, "div.u32", &[x, Val::int(i64::from(by))]),
        };
        let back = self.w.mul(q, Val::int(i64::from(by)));
        (q, self.w.sub(x, back))
    }

    /// The number that an index gives for an element of a tile of `len` elements.
    pub fn indexed(&mut self, len: u32, part: u32, index: Index) -> Val {
        let (q, r) = self.split(len, part, index.len);
        let [outer, inner, first] =
            [index.outer, index.inner, index.first].map(|x| Val::int(i64::from(x)));
        let at = self.w.mul_add(r, inner, first);
        self.w.mul_add(q, outer, at)
    }

    /// A tile of a literal.
    pub fn const_tile(&mut self, ty: &TileType, x: Literal) -> Tile {
        self.repeat(ty, literal(ty.elem, x))
    }

    /// A tile whose elements are all this value of all threads.
    pub fn repeat(&self, ty: &TileType, x: Val) -> Tile {
        Tile {
            ty: ty.clone(),
            parts: vec![x; self.layout(ty.len()).parts() as usize],
            uniform: true,
        }
    }

    /// Applies `f` part by part; what is repeated is computed once.
    pub fn elementwise(
        &mut self,
        ty: &TileType,
        operands: &[&Tile],
        mut f: impl FnMut(&mut Self, &[Val]) -> Val,
    ) -> Tile {
        let count = operands[0].parts.len();
        let mut parts: Vec<Val> = Vec::with_capacity(count);
        let mut last: Option<Vec<Val>> = None;
        for i in 0..count {
            let values: Vec<Val> = operands.iter().map(|o| o.parts[i]).collect();
            let part = match last.as_ref() == Some(&values) {
                true => parts[i - 1],
                false => f(self, &values),
            };
            parts.push(part);
            last = Some(values);
        }
        Tile {
            ty: ty.clone(),
            parts,
            uniform: operands.iter().all(|o| o.uniform),
        }
    }

    /// Brings an integer of less than 32 bits back into its range after arithmetic.
    pub fn normalize(&mut self, elem: TileElem, x: Val) -> Val {
        match elem.class() {
            Class::Int { bits, signed } if bits < 32 => match x.known() {
                Some(k) => Val::int(elem.wrap_literal(k)),
                None => {
                    let name = if signed { "bfe.s32" } else { "bfe.u32" };
                    let (first, len) = (Val::int(0), Val::int(i64::from(bits)));
                    self.w.op(Ty::B32, name, &[x, first, len])
                }
            },
            Class::Bits(bits) if bits < 32 => {
                let mask = Val::int((1 << bits) - 1);
                self.w.op(Ty::B32, "and.b32", &[x, mask])
            }
            _ => x,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_take_the_shortest_way() {
        let of = |len| Layout { threads: 128, len };
        let route = |from, to, index| of(from).route(of(to), 0, index);
        // Columns of 32 repeat in every warp; rows come from one lane; columns of 256 lie in other threads.
        assert_eq!(route(32, 448, Index::col(32)), Route::Own(0));
        assert_eq!(route(14, 448, Index::row(32)), Route::Lane(0));
        assert_eq!(route(128, 512, Index::col(128)), Route::Own(0));
        assert_eq!(route(256, 512, Index::row(2)), Route::Shared);
        assert_eq!(of(448).element(100, 3), None);
        assert_eq!(of(448).element(63, 3), Some(447));
    }
}
