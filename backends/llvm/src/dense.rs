//! Products: register-tiled loops for the contractions that [`lapidary_ir::kernel::contraction`] recognises, and
//! [`Op::Dot`](lapidary_ir::kernel::Op::Dot) by itself.
//!
//! A recognised tile is cut into pieces whose accumulators, with a row of the panel and one broadcast element, fit the
//! vector registers; each piece has its own loop over `k`, in which nothing else is live. Four bytes at a time
//! are multiplied by the target's dot product instruction, or by pairs of 16-bit products, or one by one.

use crate::function::Fun;
use crate::tile::Tile;
use crate::writer::{Lane, Ty, Val};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::contraction::{Contraction, Kind, PANEL, Plan};
use lapidary_ir::kernel::{Class, TileElem, Var};
use lapidary_ir::target::Feature;

const I32: TileElem = TileElem::Elem(ElemType::I32);

/// Rows and vectors of the best piece of a tile for so many registers: the one that loads least per product.
fn piece(rows: u32, vectors: u32, registers: u32) -> (u32, u32) {
    let mut best = (1, 1);
    let mut best_cost = f64::INFINITY;
    for v in (1..=vectors).filter(|v| vectors.is_multiple_of(*v)) {
        let fit = registers.saturating_sub(v + 1) / v;
        if fit == 0 {
            continue;
        }
        // As even as the number of pieces allows.
        let r = rows.div_ceil(rows.div_ceil(fit.min(rows)));
        let cost = f64::from(r + v) / f64::from(r * v);
        if cost < best_cost {
            (best, best_cost) = ((r, v), cost);
        }
    }
    best
}

impl<'k> Fun<'k> {
    /// The accumulator of a recognised contraction, in registers.
    pub fn product(&mut self, plan: &Plan<'k>) -> Result<(), Error> {
        let g = &plan.found;
        let ty = self.kernel.ty(g.acc).clone();
        let types = self.part_types(&ty);
        let per_row = self.row_cuts(&ty).len() as u32;
        let (rows, vectors) = piece(g.rows, per_row, self.target.vector_registers);
        let mut parts: Vec<Option<Val>> = vec![None; types.len()];
        let mut row = 0;
        while row < g.rows {
            let height = rows.min(g.rows - row);
            for first in (0..per_row).step_by(vectors as usize) {
                let start: Vec<Val> = (0..height * vectors)
                    .map(|i| {
                        let ty = types[(i % vectors + first) as usize];
                        match ty.lane.is_float() {
                            true => self.w.float(ty, 0.0),
                            false => self.w.int(ty, 0),
                        }
                    })
                    .collect();
                let piece = Piece {
                    row,
                    height,
                    first,
                    vectors,
                };
                let sums = self.over_taps(plan, &piece, start)?;
                for (i, sum) in sums.into_iter().enumerate() {
                    let (r, v) = (i as u32 / vectors, i as u32 % vectors);
                    parts[((row + r) * per_row + first + v) as usize] = Some(sum);
                }
            }
            row += height;
        }
        let parts = parts.into_iter().flatten().collect();
        self.set(g.acc, Tile { ty, parts });
        Ok(())
    }

    fn over_taps(
        &mut self,
        plan: &Plan<'k>,
        piece: &Piece,
        start: Vec<Val>,
    ) -> Result<Vec<Val>, Error> {
        let g = &plan.found;
        let (b, elem) = self.buffer(g.b)?;
        let base = self.scalar(g.b_base)?;
        let b = self.element(b, base, elem.size_bytes() as i64);
        let Some((index, prefix)) = g.tap else {
            let rows = self.rows_of(plan)?;
            return self.over_k(g, piece, &rows, b, start);
        };
        let (zero, taps) = (self.w.index(0), self.w.index(i64::from(g.taps)));
        let l = self.begin_loop(zero, taps, &start);
        self.set_scalar(index, l.index.value);
        self.statements(prefix)?;
        let rows = self.rows_of(plan)?;
        let k = self.scalar(g.k)?;
        let (row_bytes, k) = match g.kind {
            Kind::I8 => {
                let up = self.w.two_int("add", k, 3);
                (i64::from(PANEL), self.w.two_int("and", up, -4))
            }
            _ => (i64::from(4 * PANEL), k),
        };
        let tap_bytes = self.w.two_int("mul", k, row_bytes);
        let skip = self.w.two("mul", l.index.value, tap_bytes);
        let b = self.w.offset(b, skip);
        let sums = self.over_k(g, piece, &rows, b, l.values())?;
        let out = l.values();
        self.end_loop(l, 1, &sums);
        Ok(out)
    }

    /// Addresses of A's rows. Rows that are neither read nor stored stand at the first one.
    fn rows_of(&mut self, plan: &Plan<'k>) -> Result<Vec<Val>, Error> {
        let g = &plan.found;
        let (a, elem) = self.buffer(g.a)?;
        let base = self.scalar(g.a_base)?;
        let missing = plan.to_zeros.then_some(self.zeros);
        self.row_addresses(a, elem, base, g.a_rows, g.rows, missing)
    }

    fn over_k(
        &mut self,
        g: &Contraction<'k>,
        piece: &Piece,
        rows: &[Val],
        b: Val,
        start: Vec<Val>,
    ) -> Result<Vec<Val>, Error> {
        let rows = &rows[piece.row as usize..(piece.row + piece.height) as usize];
        let k = self.scalar(g.k)?;
        let zero = self.w.index(0);
        if g.kind == Kind::F32 {
            let l = self.begin_loop(zero, k, &start);
            let kk = l.index.value;
            let panel = self.panel(piece, b, kk, i64::from(4 * PANEL), Lane::F32);
            let mut sums = l.values();
            for (r, &row) in rows.iter().enumerate() {
                let at = self.element(row, kk, 4);
                let x = self.w.load(Ty::scalar(Lane::F32), at);
                for (v, &p) in panel.iter().enumerate() {
                    let sum = &mut sums[r * panel.len() + v];
                    let x = self.w.splat(x, p.ty.lanes);
                    *sum = self.multiply_add(TileElem::Elem(ElemType::F32), x, p, *sum);
                }
            }
            let out = l.values();
            self.end_loop(l, 1, &sums);
            return Ok(out);
        }
        let whole = self.w.two_int("and", k, -4);
        let l = self.begin_loop(zero, whole, &start);
        let kk = l.index.value;
        let dword = Ty::scalar(Lane::I32);
        let sums = self.fours(piece, b, kk, l.values(), |s, r| {
            let at = s.w.offset(rows[r], kk);
            let bytes = s.w.load(
                Ty {
                    lane: Lane::I8,
                    lanes: 4,
                },
                at,
            );
            s.w.convert("bitcast", bytes, dword)
        });
        let out = l.values();
        self.end_loop(l, 4, &sums);
        if self.facts.int(g.k).is_some_and(|k| k % 4 == 0) {
            return Ok(out);
        }
        // The last one to three bytes; the panel has zeros beside them, but the rows end.
        let rest = self.w.two("sub", k, whole);
        let more = self.w.compare_int("icmp ne", rest, 0);
        let [tail, after] = [(); 2].map(|()| self.w.new_block());
        let before = (out.clone(), self.w.current());
        self.w.branch(more, tail, after);
        self.w.begin(tail);
        let exist: Vec<Val> = (0..3)
            .map(|j| self.w.compare_int("icmp sgt", rest, j))
            .collect();
        let sums = self.fours(piece, b, whole, out, |s, r| {
            let row = s.w.offset(rows[r], whole);
            let mut all = s.w.int(dword, 0);
            for (j, &exists) in exist.iter().enumerate() {
                let at = s.w.offset_by(row, j as i64);
                let at = s.w.select(exists, at, s.zeros);
                let byte = s.w.load(Ty::scalar(Lane::I8), at);
                let wide = s.w.convert("zext", byte, dword);
                let placed = s.w.two_int("shl", wide, 8 * j as i64);
                all = s.w.two("or", all, placed);
            }
            all
        });
        let end = (sums, self.w.current());
        self.w.jump(after);
        self.w.begin(after);
        Ok(self.merge(&before, &end))
    }

    /// The piece's vectors of a row of the panel.
    fn panel(&mut self, piece: &Piece, b: Val, kk: Val, row_bytes: i64, lane: Lane) -> Vec<Val> {
        let skip = self.w.two_int("mul", kk, row_bytes);
        let at = self.w.offset(b, skip);
        (piece.first..piece.first + piece.vectors)
            .map(|v| {
                let at = self.w.offset_by(at, i64::from(v * self.lanes * 4));
                let ty = Ty {
                    lane,
                    lanes: self.lanes,
                };
                self.w.load(ty, at)
            })
            .collect()
    }

    /// Four steps of `k`; `left` gives the four bytes of a row.
    fn fours(
        &mut self,
        piece: &Piece,
        b: Val,
        kk: Val,
        mut sums: Vec<Val>,
        mut left: impl FnMut(&mut Self, usize) -> Val,
    ) -> Vec<Val> {
        let panel = self.panel(piece, b, kk, i64::from(PANEL), Lane::I32);
        for r in 0..piece.height as usize {
            let x = left(self, r);
            for (v, &p) in panel.iter().enumerate() {
                let sum = &mut sums[r * panel.len() + v];
                let x = self.w.splat(x, p.ty.lanes);
                *sum = self.dot_of_fours((false, x), (true, p), *sum);
            }
        }
        sums
    }

    /// `acc + a * b` on tiles.
    pub fn dot(&mut self, acc: Var, a: Var, b: Var) -> Result<Tile, Error> {
        let quads = self.quads.get(&b).cloned();
        let (mut acc, a, b) = (self.get(acc)?, self.get(a)?, self.get(b)?);
        let ([m, n], [_, k]) = (&acc.ty.shape[..], &a.ty.shape[..]) else {
            return Err(self.unsupported("a dot of tiles that are not of rank 2"));
        };
        let (m, n, k) = (*m as usize, *n, *k);
        if a.ty.shape[0] as usize != m || b.ty.shape[..] != [k, n] {
            return Err(self.unsupported("a dot of tiles that do not fit"));
        }
        let signed = |t: &Tile| crate::tile::is_signed(t.ty.elem);
        let byte = |t: &Tile| matches!(t.ty.elem.class(), Class::Int { bits: 8, .. });
        let per_row = self.row_cuts(&acc.ty).len();
        if let Some(quads) = quads
            && k == 4
            && byte(&a)
            && a.parts.len() == m
            && acc.ty.elem == I32
        {
            for i in 0..m {
                let x = self.dword(a.parts[i]);
                for (j, &q) in quads.iter().enumerate() {
                    let x = self.w.splat(x, q.ty.lanes);
                    let sum = &mut acc.parts[i * per_row + j];
                    *sum = self.dot_of_fours((signed(&a), x), (signed(&b), q), *sum);
                }
            }
            return Ok(acc);
        }
        let elem = acc.ty.elem;
        let left = self.scalars(&a);
        for kk in 0..k as usize {
            let right: Vec<Val> = b.parts[kk * per_row..(kk + 1) * per_row]
                .iter()
                .map(|&p| self.cast_part(b.ty.elem, elem, p))
                .collect();
            for i in 0..m {
                let x = self.cast_part(a.ty.elem, elem, left[i * k as usize + kk]);
                for (j, &p) in right.iter().enumerate() {
                    let x = self.w.splat(x, p.ty.lanes);
                    let sum = &mut acc.parts[i * per_row + j];
                    *sum = self.multiply_add(elem, x, p, *sum);
                }
            }
        }
        Ok(acc)
    }

    /// `sum + a0 * b0 + … + a3 * b3` in each 32-bit lane, of bytes that are signed or not.
    fn dot_of_fours(&mut self, a: (bool, Val), b: (bool, Val), sum: Val) -> Val {
        let has = |s: &Self, f| s.target.features.contains(&f);
        let lanes = sum.ty.lanes;
        // The unsigned operand first.
        let (a, b) = if a.0 && !b.0 { (b, a) } else { (a, b) };
        let mixed = !a.0 && b.0;
        let x86 = self.target.arch() == "x86_64";
        let vnni = has(self, Feature::Avx512Vnni) || has(self, Feature::AvxVnni) && lanes < 16;
        if x86 && mixed && vnni && matches!(lanes, 4 | 8 | 16) {
            let name = format!("llvm.x86.avx512.vpdpbusd.{}", lanes * 32);
            return self.w.intrinsic(&name, sum.ty, &[sum, a.1, b.1]);
        }
        let arm = match (a.0, b.0) {
            (false, true) => has(self, Feature::I8mm).then_some("usdot"),
            (true, true) => has(self, Feature::DotProd).then_some("sdot"),
            _ => has(self, Feature::DotProd).then_some("udot"),
        };
        if let (Some(name), 4) = (arm, lanes) {
            let bytes = Ty {
                lane: Lane::I8,
                lanes: 16,
            };
            let (x, y) = (
                self.w.convert("bitcast", a.1, bytes),
                self.w.convert("bitcast", b.1, bytes),
            );
            let name = format!("llvm.aarch64.neon.{name}.v4i32.v16i8");
            return self.w.intrinsic(&name, sum.ty, &[sum, x, y]);
        }
        let pairs = match lanes {
            4 => Some("llvm.x86.sse2.pmadd.wd"),
            8 if has(self, Feature::Avx2) => Some("llvm.x86.avx2.pmadd.wd"),
            16 if has(self, Feature::Avx512) => Some("llvm.x86.avx512.pmaddw.d.512"),
            _ => None,
        };
        if let (Some(name), true) = (pairs, x86) {
            return self.dot_by_pairs(name, a, b, sum);
        }
        let mut sum = sum;
        for shift in [24, 16, 8, 0] {
            let [x, y] = [a, b].map(|(signed, v)| {
                let up = self.w.two_int("shl", v, shift);
                self.w.two_int(if signed { "ashr" } else { "lshr" }, up, 24)
            });
            let product = self.w.two("mul", x, y);
            sum = self.w.two("add", sum, product);
        }
        sum
    }

    /// Even bytes, then odd ones, as 16-bit integers whose products an instruction adds in pairs.
    fn dot_by_pairs(&mut self, name: &str, a: (bool, Val), b: (bool, Val), sum: Val) -> Val {
        let words = Ty {
            lane: Lane::I16,
            lanes: 2 * sum.ty.lanes,
        };
        let mut sum = sum;
        for odd in [false, true] {
            let [x, y] = [a, b].map(|(signed, v)| {
                let v = self.w.convert("bitcast", v, words);
                let v = if odd { v } else { self.w.two_int("shl", v, 8) };
                self.w.two_int(if signed { "ashr" } else { "lshr" }, v, 8)
            });
            let products = self.w.intrinsic(name, sum.ty, &[x, y]);
            sum = self.w.two("add", sum, products);
        }
        sum
    }
}

/// Part of a tile.
struct Piece {
    row: u32,
    height: u32,
    /// First vector of a row, and how many.
    first: u32,
    vectors: u32,
}

#[cfg(test)]
mod tests {
    use super::piece;

    #[test]
    fn pieces_fit_the_registers() {
        for (rows, vectors, registers) in
            [(14, 2, 32), (4, 4, 16), (14, 8, 32), (6, 4, 16), (1, 8, 16)]
        {
            let (r, v) = piece(rows, vectors, registers);
            assert!(r * v + v < registers && r <= rows && vectors % v == 0);
        }
        assert_eq!(piece(14, 2, 32), (14, 2));
        assert_eq!(piece(6, 4, 16), (6, 2));
    }
}
