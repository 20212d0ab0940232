//! Products of codes by `mma.sync` m16n8k32, whose sums are exact.
//!
//! A warp has every so-many-th 8 columns. Lane `l` is in group `l / 4`, at position `l % 4` in it: of the left fragment it holds
//! four consecutive codes of rows `group` and `group + 8`, at `4 * position` and 16 further on; of the right one the quads
//! `position` and `position + 4` of column `group`, which lie in the panel as they are.

use crate::function::{Address, Fun};
use crate::tile::{Tile, WARP};
use crate::writer::{Ty, Val};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::contraction::{Contraction, Facts};
use lapidary_ir::kernel::{At, Binary, Op, TileElem, Var};

/// Elements of `k` of a matrix product of codes.
const CODES_DEPTH: i64 = 32;

const I32: TileElem = TileElem::Elem(ElemType::I32);

/// True if an index (or every element of a tile of them) is certainly a multiple.
fn is_multiple(facts: &Facts, var: Var, of: i64) -> bool {
    match facts.def(var) {
        Some(Op::Const(x)) => x.as_int() % of == 0,
        Some(Op::Broadcast { x, .. }) => is_multiple(facts, *x, of),
        Some(Op::Binary(Binary::Mul, a, b)) => {
            is_multiple(facts, *a, of) || is_multiple(facts, *b, of)
        }
        Some(Op::Binary(Binary::Add | Binary::Sub, a, b)) => {
            is_multiple(facts, *a, of) && is_multiple(facts, *b, of)
        }
        Some(Op::Select(_, a, b)) => is_multiple(facts, *a, of) && is_multiple(facts, *b, of),
        _ => false,
    }
}

impl<'k> Fun<'k> {
    /// Codes by matrix products.
    pub fn codes(&mut self, g: &Contraction<'k>) -> Result<Tile, Error> {
        let ty = self.kernel.ty(g.acc).clone();
        let (rows, width) = (g.rows, g.panel);
        let warps = self.threads / WARP;
        let tiles = (width / 8).div_ceil(warps);
        let acc: Vec<[Val; 4]> = (0..tiles)
            .map(|_| [(); 4].map(|()| self.w.register(Ty::B32)))
            .collect();
        for &acc in acc.iter().flatten() {
            self.w.copy(acc, Val::int(0));
        }
        let lane = self.lane;
        let group = self.w.op(Ty::B32, "shr.u32", &[lane, Val::int(2)]);
        let position = self.w.op(Ty::B32, "and.b32", &[lane, Val::int(3)]);
        let warp = self.warp();
        let k = self.scalar(g.k)?;
        let (a, b) = (self.buffer(g.a)?.0, self.buffer(g.b)?.0);
        let words = k.known().is_some_and(|k| k % 4 == 0)
            && is_multiple(&self.facts, g.a_base, 4)
            && match g.a_rows.at {
                At::Stride(s) => s % 4 == 0,
                At::DynStride(v) | At::Offsets(v) => is_multiple(&self.facts, v, 4),
            };
        self.over_taps(g, |s, panel| {
            let lefts = s.left_rows(g, a, group, position)?;
            // The quad of the panel that this thread begins with, in each of its columns.
            let row = s.w.mul(position, Val::int(i64::from(width)));
            let mut rights = vec![];
            for tile in 0..tiles {
                let col = s.column_of(warp, tile, group);
                let inside = match (tile + 1) * warps * 8 > width {
                    true => Some(s.w.compare("lt.u32", col, Val::int(i64::from(width)))),
                    false => None,
                };
                let quad = s.w.add(row, col);
                let byte = s.w.mul(quad, Val::int(4));
                let byte = s.w.widen(byte);
                let at = s.w.add(panel, byte);
                let at = s.pointer(b, at, TileElem::Elem(ElemType::I8));
                rights.push((at, inside));
            }
            let kk = s.w.register(Ty::B64);
            let first = s.w.mul(position, Val::int(4));
            let first = s.w.widen(first);
            s.w.copy(kk, Val::long(0));
            let [top, after] = [(); 2].map(|()| s.w.label());
            let none = s.w.compare("ge.s64", kk, k);
            s.w.line(format_args!("@{none} bra.uni {after};"));
            s.w.place(top);
            let mine = s.w.add(kk, first);
            let mut left = vec![];
            for (skip, half) in [(0, 0), (0, 1), (16, 0), (16, 1)] {
                let (at, there) = lefts[half];
                let from = s.w.add(mine, Val::long(skip));
                left.push(s.four_codes(at, skip, from, k, there, words));
            }
            let quads = [0, 16].map(|skip| {
                let at = s.w.add(mine, Val::long(skip));
                s.w.compare("lt.s64", at, k)
            });
            for (&(at, inside), acc) in rights.iter().zip(&acc) {
                let mut right = vec![];
                for (i, &here) in quads.iter().enumerate() {
                    let there = s.w.both(Some(here), inside);
                    let to = s.w.register(Ty::B32);
                    s.w.copy(to, Val::int(0));
                    let guard = s.w.guard(there);
                    let skip = i as u32 * 16 * width;
                    s.w.line(format_args!(
                        "{guard}ld.{}.b32 {to}, [{}+{skip}];",
                        at.space.name(),
                        at.at
                    ));
                    right.push(to);
                }
                let d = acc.map(|v| v.to_string()).join(", ");
                let of = |v: &[Val]| v.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
                s.w.line(format_args!(
                    "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {{{d}}}, {{{}}}, {{{}}}, {{{d}}};",
                    of(&left),
                    of(&right)
                ));
                s.advance(at, CODES_DEPTH * i64::from(width));
            }
            for (at, _) in lefts {
                s.advance(at, CODES_DEPTH);
            }
            s.w.to(kk, "add.s64", &[kk, Val::long(CODES_DEPTH)]);
            let more = s.w.compare("lt.s64", kk, k);
            s.w.line(format_args!("@{more} bra.uni {top};"));
            s.w.place(after);
            Ok(())
        })?;
        // From where the products left them to where the tile has them.
        let len = ty.len();
        let (slot, address) = self.slot(4 * len, None);
        let resource = self.slot_resource(slot);
        self.before_write(resource);
        for (tile, acc) in acc.iter().enumerate() {
            let eight = self.column_of(warp, tile as u32, Val::int(0));
            for (r, &acc) in acc.iter().enumerate() {
                let row = self.w.add(group, Val::int(8 * (r as i64 / 2)));
                let col = self.w.mul_add(position, Val::int(2), eight);
                let col = self.w.add(col, Val::int(r as i64 % 2));
                let in_rows = self.w.compare("lt.u32", row, Val::int(i64::from(rows)));
                let in_cols = self.w.compare("lt.u32", col, Val::int(i64::from(width)));
                let there = self.w.and(in_rows, in_cols);
                let e = self.w.mul_add(row, Val::int(i64::from(width)), col);
                let to = self.byte_address(address, e, I32);
                self.store_element(I32, to, acc, Some(there));
            }
        }
        self.before_read(resource);
        let mut parts = vec![];
        for part in 0..self.layout(len).parts() {
            let there = self.exists(len, part);
            let e = self.element(len, part);
            let from = self.byte_address(address, e, I32);
            parts.push(self.load_element(I32, from, there));
        }
        Ok(Tile {
            ty,
            parts,
            uniform: false,
        })
    }

    /// A column of the warp's `tile`-th eight columns.
    fn column_of(&mut self, warp: Val, tile: u32, within: Val) -> Val {
        let warps = self.threads / WARP;
        let eight = self.w.add(warp, Val::int(i64::from(tile * warps)));
        self.w.mul_add(eight, Val::int(8), within)
    }

    /// Pointers to this thread's two rows of the left operand, at its place in 32 elements, and whether they exist.
    fn left_rows(
        &mut self,
        g: &Contraction<'k>,
        a: Address,
        group: Val,
        position: Val,
    ) -> Result<[(Address, Option<Val>); 2], Error> {
        let base = self.scalar(g.a_base)?;
        let first = self.w.mul(position, Val::int(4));
        let first = self.w.widen(first);
        let mut both = vec![];
        for half in 0..2 {
            let row = self.w.add(group, Val::int(8 * half));
            let wide = self.w.widen(row);
            let skip = match g.a_rows.at {
                At::Stride(s) => self.w.mul(wide, Val::long(s)),
                At::DynStride(s) => {
                    let s = self.scalar(s)?;
                    self.w.mul(wide, s)
                }
                At::Offsets(o) => {
                    let offsets = self.get(o)?;
                    self.fetch_lane(&offsets, row)
                }
            };
            let mut there = None;
            if g.rows < 8 * (half as u32 + 1) {
                let rows = Val::int(i64::from(g.rows));
                there = Some(self.w.compare("lt.u32", row, rows));
            }
            if let Some(valid) = g.a_rows.valid {
                let valid = self.scalar(valid)?;
                let inside = self.w.compare("lt.s64", wide, valid);
                there = self.w.both(there, Some(inside));
            }
            if let Some(mask) = g.a_rows.mask {
                let mask = self.get(mask)?;
                let exists = self.fetch_lane(&mask, row);
                there = self.w.both(there, Some(exists));
            }
            let at = self.w.add(base, skip);
            let at = self.w.add(at, first);
            let at = self.pointer(a, at, TileElem::Elem(ElemType::U8));
            both.push((at, there));
        }
        Ok([both[0], both[1]])
    }

    /// Four codes as they lie in memory, `skip` bytes from an address; those that do not exist are zero.
    fn four_codes(
        &mut self,
        at: Address,
        skip: i64,
        from: Val,
        k: Val,
        there: Option<Val>,
        words: bool,
    ) -> Val {
        if words {
            let inside = self.w.compare("lt.s64", from, k);
            let there = self.w.both(there, Some(inside));
            let to = self.w.register(Ty::B32);
            self.w.copy(to, Val::int(0));
            let guard = self.w.guard(there);
            self.w.line(format_args!(
                "{guard}ld.{}.b32 {to}, [{}+{skip}];",
                at.space.name(),
                at.at
            ));
            return to;
        }
        let bytes = [0, 1, 2, 3].map(|i| {
            let position = self.w.add(from, Val::long(i));
            let inside = self.w.compare("lt.s64", position, k);
            let there = self.w.both(there, Some(inside));
            let to = self.w.register(Ty::B32);
            self.w.copy(to, Val::int(0));
            let guard = self.w.guard(there);
            let skip = skip + i;
            self.w.line(format_args!(
                "{guard}ld.{}.u8 {to}, [{}+{skip}];",
                at.space.name(),
                at.at
            ));
            to
        });
        let pair = |s: &mut Self, low: Val, high: Val, by: i64| {
            let high = s.w.op(Ty::B32, "shl.b32", &[high, Val::int(by)]);
            s.w.op(Ty::B32, "or.b32", &[low, high])
        };
        let low = pair(self, bytes[0], bytes[1], 8);
        let high = pair(self, bytes[2], bytes[3], 8);
        pair(self, low, high, 16)
    }
}
