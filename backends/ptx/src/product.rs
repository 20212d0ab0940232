//! The contractions that [`lapidary_ir::kernel::contraction`] recognises, each a loop of its own.
//!
//! | tile | how |
//! | --- | --- |
//! | codes | `mma.sync` m16n8k32: a warp has every so-many-th 8 columns. A quad of the panel is a register of the right fragment as it lies in memory |
//! | numbers, up to four rows | every warp takes its share of `k`, a lane a column; the warps' sums are added up at the end |
//! | numbers | both operands come to shared memory by `cp.async`, [`STAGES`] pieces of [`DEPTH`] at a time, and are multiplied from there |
//!
//! Products of numbers are of `f32`, so tensor cores, which would round them to fewer bits, do not multiply them.

use crate::function::{Address, Fun, Space};
use crate::tile::{Index, Tile, WARP};
use crate::writer::{Ty, Val};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::contraction::{Contraction, Facts, Kind, PANEL, recognise};
use lapidary_ir::kernel::{At, Axis, Stmt, TileElem, TileType};

/// Rows of a tile up to which warps share `k` instead of the tile.
const FEW_ROWS: u32 = 4;

/// Threads of a block whose warps share `k`.
const SHARING_THREADS: u32 = 256;

/// Least `k` that is worth sharing.
const SHARED_K: i64 = 64;

/// Elements of `k` in a piece in shared memory.
const DEPTH: u32 = 32;

/// Pieces in shared memory: one is multiplied, the others are on their way.
const STAGES: u32 = 3;

const F32: TileElem = TileElem::Elem(ElemType::F32);

/// Whether warps share the `k` of this contraction.
fn shares(facts: &Facts, g: &Contraction) -> bool {
    let long = facts.int(g.k).is_none_or(|k| k >= SHARED_K);
    g.kind == Kind::F32 && g.rows <= FEW_ROWS && long
}

/// Threads that a block needs for its contractions.
pub(crate) fn threads<'k>(facts: &Facts<'k>, body: &'k [Stmt]) -> Option<u32> {
    body.iter().find_map(|stmt| match recognise(facts, stmt) {
        Some(g) => shares(facts, &g).then_some(SHARING_THREADS),
        None => stmt.op.bodies().find_map(|b| threads(facts, b)),
    })
}

impl<'k> Fun<'k> {
    /// Writes a contraction that is recognised; false if this statement is none.
    pub fn contraction(&mut self, stmt: &'k Stmt) -> Result<bool, Error> {
        let Some(g) = recognise(&self.facts, stmt) else {
            return Ok(false);
        };
        // No target that this is for has them chosen: they run as they are written.
        if g.kind == Kind::Bf16 {
            return Ok(false);
        }
        let shares = self.threads == SHARING_THREADS && shares(&self.facts, &g);
        if g.kind == Kind::F32 && !shares && !self.slots_are_shared() {
            return Ok(false);
        }
        for buf in [g.a, g.b] {
            let resource = self.buffer_resource(buf);
            self.before_read(resource);
        }
        let tile = match g.kind {
            Kind::I8 => self.codes(&g)?,
            _ if shares => self.shared_k(&g)?,
            _ => self.staged(&g)?,
        };
        self.set(g.acc, tile);
        Ok(true)
    }

    /// Runs `body` for every tap, with the first element of its panel.
    pub fn over_taps(
        &mut self,
        g: &Contraction<'k>,
        mut body: impl FnMut(&mut Self, Val) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let base = self.scalar(g.b_base)?;
        let Some((index, prefix)) = g.tap else {
            return body(self, base);
        };
        let k = self.scalar(g.k)?;
        let k = match (g.kind, k.known()) {
            (Kind::I8, Some(k)) => Val::long(g.kind.padded(k)),
            (Kind::I8, None) => {
                let up = self.w.add(k, Val::long(3));
                self.w.op(Ty::B64, "and.b64", &[up, Val::long(-4)])
            }
            _ => k,
        };
        let step = self.w.mul(k, Val::long(i64::from(g.panel)));
        let t = self.w.register(Ty::B64);
        self.w.copy(t, Val::long(0));
        let top = self.w.label();
        let (mut reads, mut writes) = (vec![], vec![]);
        self.accesses(prefix, &mut reads, &mut writes);
        self.hazards.open(&reads, &writes);
        self.w.place(top);
        self.set_scalar(index, t);
        self.statements(prefix)?;
        let at = self.w.mul_add(t, step, base);
        body(self, at)?;
        self.w.to(t, "add.s64", &[t, Val::long(1)]);
        let more = self.w.compare("lt.s64", t, Val::long(i64::from(g.taps)));
        self.w.line(format_args!("@{more} bra.uni {top};"));
        Ok(())
    }

    /// Element offset of row `r` of the left operand, and whether it exists.
    fn row_at(&mut self, g: &Contraction<'k>, r: u32) -> Result<(Val, Option<Val>), Error> {
        let base = self.scalar(g.a_base)?;
        let nth = Index {
            first: r,
            ..Index::SAME
        };
        let skip = match g.a_rows.at {
            At::Stride(s) => Val::long(s * i64::from(r)),
            At::DynStride(s) => {
                let s = self.scalar(s)?;
                self.w.mul(s, Val::long(i64::from(r)))
            }
            At::Offsets(o) => {
                let offsets = self.get(o)?;
                self.fetch(&offsets, 1, nth)[0]
            }
        };
        let at = self.w.add(base, skip);
        let mut there = None;
        if let Some(valid) = g.a_rows.valid {
            let valid = self.scalar(valid)?;
            there = Some(self.w.compare("gt.s64", valid, Val::long(i64::from(r))));
        }
        if let Some(mask) = g.a_rows.mask {
            let mask = self.get(mask)?;
            let exists = self.fetch(&mask, 1, nth)[0];
            there = self.w.both(there, Some(exists));
        }
        Ok((at, there))
    }

    /// The warp's number in the block.
    pub fn warp(&mut self) -> Val {
        let tid = self.tid;
        self.w.op(Ty::B32, "shr.u32", &[tid, Val::int(5)])
    }

    /// Every warp takes `unroll` elements of `k`, then those that are as many further on as all warps take.
    fn shared_k(&mut self, g: &Contraction<'k>) -> Result<Tile, Error> {
        let (rows, warps) = (g.rows, self.threads / WARP);
        let unroll = if rows == 1 { 8 } else { 4 };
        let stride = i64::from(warps * unroll);
        let k = self.scalar(g.k)?;
        let whole = k.known().is_some_and(|k| k % stride == 0);
        let acc: Vec<Val> = (0..rows).map(|_| self.w.register(Ty::F32)).collect();
        for &acc in &acc {
            self.w.copy(acc, Val::f32(0.0));
        }
        let warp = self.warp();
        let first = self.w.mul(warp, Val::int(i64::from(unroll)));
        let first = self.w.widen(first);
        let (a, b) = (self.buffer(g.a)?.0, self.buffer(g.b)?.0);
        self.over_taps(g, |s, panel| {
            let lane = s.w.widen(s.lane);
            let at = s.w.mul_add(first, Val::long(i64::from(PANEL)), panel);
            let at = s.w.add(at, lane);
            let b_at = s.pointer(b, at, F32);
            let mut of_a = vec![];
            for r in 0..rows {
                let (at, there) = s.row_at(g, r)?;
                let at = s.w.add(at, first);
                of_a.push((s.pointer(a, at, F32), there));
            }
            let kk = s.w.register(Ty::B64);
            s.w.copy(kk, first);
            let [top, after] = [(); 2].map(|()| s.w.label());
            let none = s.w.compare("ge.s64", kk, k);
            s.w.line(format_args!("@{none} bra {after};"));
            s.w.place(top);
            let mut loaded = vec![];
            for u in 0..unroll {
                let here = match whole {
                    true => None,
                    false => {
                        let at = s.w.add(kk, Val::long(i64::from(u)));
                        Some(s.w.compare("lt.s64", at, k))
                    }
                };
                let y = s.load_at(b_at, i64::from(4 * PANEL * u), here);
                let xs: Vec<Val> = of_a
                    .iter()
                    .map(|&(at, there)| {
                        let there = s.w.both(here, there);
                        s.load_at(at, i64::from(4 * u), there)
                    })
                    .collect();
                loaded.push((y, xs));
            }
            for (y, xs) in loaded {
                for (&acc, x) in acc.iter().zip(xs) {
                    s.w.to(acc, "fma.rn.f32", &[x, y, acc]);
                }
            }
            s.advance(b_at, 4 * i64::from(PANEL) * stride);
            for &(at, _) in &of_a {
                s.advance(at, 4 * stride);
            }
            s.w.to(kk, "add.s64", &[kk, Val::long(stride)]);
            let more = s.w.compare("lt.s64", kk, k);
            s.w.line(format_args!("@{more} bra {top};"));
            s.w.place(after);
            Ok(())
        })?;
        // Sums of the warps: [warp][row][column].
        let len = rows * PANEL;
        let (slot, address) = self.slot(4 * len * warps, None);
        let resource = self.slot_resource(slot);
        self.before_write(resource);
        for (r, &acc) in acc.iter().enumerate() {
            let lane = self.lane;
            let at = self.w.mul_add(warp, Val::int(i64::from(len)), lane);
            let at = self.w.add(at, Val::int(r as i64 * i64::from(PANEL)));
            let to = self.byte_address(address, at, F32);
            self.store_element(F32, to, acc, None);
        }
        self.before_read(resource);
        let ty = self.kernel.ty(g.acc).clone();
        let mut parts = vec![];
        for part in 0..self.layout(len).parts() {
            let there = self.exists(len, part);
            let e = self.element(len, part);
            let mut sum = Val::f32(0.0);
            for warp in 0..warps {
                let at = self.w.add(e, Val::int(i64::from(warp * len)));
                let from = self.byte_address(address, at, F32);
                let x = self.load_element(F32, from, there);
                sum = match warp {
                    0 => x,
                    _ => self.w.op(Ty::F32, "add.rn.f32", &[sum, x]),
                };
            }
            parts.push(sum);
        }
        Ok(Tile {
            ty,
            parts,
            uniform: false,
        })
    }

    /// A register with the address of an element, to be moved on.
    pub fn pointer(&mut self, address: Address, offset: Val, elem: TileElem) -> Address {
        let at = self.byte_address(address, offset, elem);
        let pointer = self.w.register(at.at.ty);
        self.w.copy(pointer, at.at);
        Address {
            at: pointer,
            ..address
        }
    }

    /// Moves a pointer on.
    pub fn advance(&mut self, at: Address, bytes: i64) {
        match at.space {
            Space::Global => self.w.to(at.at, "add.s64", &[at.at, Val::long(bytes)]),
            Space::Shared => self.w.to(at.at, "add.s32", &[at.at, Val::int(bytes)]),
        }
    }

    /// A number that is so many bytes from an address, or zero.
    fn load_at(&mut self, at: Address, bytes: i64, there: Option<Val>) -> Val {
        let to = self.w.register(Ty::F32);
        if there.is_some() {
            self.w.copy(to, Val::f32(0.0));
        }
        let guard = self.w.guard(there);
        self.w.line(format_args!(
            "{guard}ld.{}.f32 {to}, [{}+{bytes}];",
            at.space.name(),
            at.at
        ));
        to
    }

    /// Pieces of both operands through shared memory.
    fn staged(&mut self, g: &Contraction<'k>) -> Result<Tile, Error> {
        let rows = g.rows;
        let ty = self.kernel.ty(g.acc).clone();
        let len = ty.len();
        let acc: Vec<Val> = (0..self.layout(len).parts())
            .map(|_| self.w.register(Ty::F32))
            .collect();
        for &acc in &acc {
            self.w.copy(acc, Val::f32(0.0));
        }
        let of_a = TileType::of(ElemType::F32, &[rows, DEPTH]);
        let (a_bytes, b_bytes) = (4 * rows * DEPTH, 4 * DEPTH * PANEL);
        let stage_bytes = a_bytes + b_bytes;
        let (slot, address) = self.slot(STAGES * stage_bytes, None);
        let resource = self.slot_resource(slot);
        let k = self.scalar(g.k)?;
        let (a, b) = (self.buffer(g.a)?.0, self.buffer(g.b)?.0);
        let axes = [g.a_rows.clone(), Axis::stride(1)];
        // Where this thread's elements of the tile are in a piece.
        let mut places = vec![];
        for part in 0..self.layout(len).parts() {
            let (i, j) = self.split(len, part, PANEL);
            let row = self.w.mul(i, Val::int(i64::from(4 * DEPTH)));
            let col = self.w.mul(j, Val::int(4));
            places.push((row, col));
        }
        self.over_taps(g, |s, panel| {
            s.before_write(resource);
            let base = s.scalar(g.a_base)?;
            // What this thread copies: elements of rows, one at a time, and quarters of rows of the panel.
            let places_a = s.places_of(&of_a, &axes)?;
            let mut copies_a = vec![];
            for part in 0..s.layout(of_a.len()).parts() {
                let (at, there) = s.locate(&of_a, part, base, &places_a, true);
                let from = s.pointer(a, at, F32);
                let (_, kk) = s.split(of_a.len(), part, DEPTH);
                let e = s.element(of_a.len(), part);
                let to = s.byte_address(address, e, F32).at;
                let owns = s.owns(of_a.len(), part);
                copies_a.push((from, to, s.w.widen(kk), there, owns));
            }
            let quarters = DEPTH * PANEL / 4;
            let mut copies_b = vec![];
            for part in 0..s.layout(quarters).parts() {
                let q = s.element(quarters, part);
                let at = s.w.mul(q, Val::int(4));
                let to = s.byte_address(address, at, F32).at;
                let to = s.w.add(to, Val::int(i64::from(a_bytes)));
                let at = s.w.widen(at);
                let at = s.w.add(panel, at);
                let from = s.pointer(b, at, F32);
                let (row, _) = s.split(quarters, part, PANEL / 4);
                let owns = s.owns(quarters, part);
                copies_b.push((from, to, s.w.widen(row), owns));
            }
            // Copies the piece that begins at `k0` to `stage` bytes from the first.
            let copy = |s: &mut Self, k0: Val, stage: Val| {
                for &(from, to, kk, there, owns) in &copies_a {
                    let at = s.w.add(kk, k0);
                    let inside = s.w.compare("lt.s64", at, k);
                    let there = s.w.both(there, Some(inside)).unwrap_or(inside);
                    let to = s.w.add(to, stage);
                    s.copy_async(from, to, 4, there, owns);
                    s.advance(from, i64::from(4 * DEPTH));
                }
                for &(from, to, kk, owns) in &copies_b {
                    let at = s.w.add(kk, k0);
                    let inside = s.w.compare("lt.s64", at, k);
                    let to = s.w.add(to, stage);
                    s.copy_async(from, to, 16, inside, owns);
                    s.advance(from, i64::from(4 * DEPTH * PANEL));
                }
                s.w.line(format_args!("cp.async.commit_group;"));
            };
            for stage in 0..STAGES - 1 {
                let k0 = Val::long(i64::from(stage * DEPTH));
                copy(s, k0, Val::int(i64::from(stage * stage_bytes)));
            }
            let [now, next] = [(); 2].map(|()| s.w.register(Ty::B32));
            s.w.copy(now, Val::int(0));
            s.w.copy(next, Val::int(i64::from((STAGES - 1) * stage_bytes)));
            let k0 = s.w.register(Ty::B64);
            s.w.copy(k0, Val::long(0));
            let [top, after] = [(); 2].map(|()| s.w.label());
            let none = s.w.compare("ge.s64", k0, k);
            s.w.line(format_args!("@{none} bra.uni {after};"));
            s.w.place(top);
            // This thread's copies, then everybody's; and everybody has multiplied what is copied over next.
            s.w.line(format_args!("cp.async.wait_group {};", STAGES - 2));
            s.w.line(format_args!("bar.sync 0;"));
            let ahead = s.w.add(k0, Val::long(i64::from((STAGES - 1) * DEPTH)));
            copy(s, ahead, next);
            s.multiply(&acc, &places, address.at, a_bytes, now);
            for at in [now, next] {
                let further = s.w.add(at, Val::int(i64::from(stage_bytes)));
                let end = Val::int(i64::from(STAGES * stage_bytes));
                let wraps = s.w.compare("eq.s32", further, end);
                let further = s.w.select(wraps, Val::int(0), further);
                s.w.copy(at, further);
            }
            s.w.to(k0, "add.s64", &[k0, Val::long(i64::from(DEPTH))]);
            let more = s.w.compare("lt.s64", k0, k);
            s.w.line(format_args!("@{more} bra.uni {top};"));
            s.w.place(after);
            s.w.line(format_args!("cp.async.wait_group 0;"));
            Ok(())
        })?;
        Ok(Tile {
            ty,
            parts: acc,
            uniform: false,
        })
    }

    /// A copy to shared memory of so many bytes, or of zeros; what is in shared memory itself is copied at once.
    fn copy_async(&mut self, from: Address, to: Val, bytes: u32, there: Val, owns: Option<Val>) {
        if from.space == Space::Shared {
            let values: Vec<Val> = (0..bytes / 4)
                .map(|i| self.load_at(from, i64::from(4 * i), Some(there)))
                .collect();
            let guard = self.w.guard(owns);
            for (i, x) in values.into_iter().enumerate() {
                self.w
                    .line(format_args!("{guard}st.shared.f32 [{to}+{}], {x};", 4 * i));
            }
            return;
        }
        let guard = self.w.guard(owns);
        let count = self
            .w
            .select(there, Val::int(i64::from(bytes)), Val::int(0));
        let cache = if bytes == 16 { "cg" } else { "ca" };
        self.w.line(format_args!(
            "{guard}cp.async.{cache}.shared.global [{to}], [{}], {bytes}, {count};",
            from.at
        ));
    }

    /// Multiplies a piece: four elements of `k` at a time.
    fn multiply(
        &mut self,
        acc: &[Val],
        places: &[(Val, Val)],
        address: Val,
        a_bytes: u32,
        stage: Val,
    ) {
        let at = self.w.add(address, stage);
        let rows: Vec<Val> = places.iter().map(|p| self.w.add(at, p.0)).collect();
        // Threads that have several elements have them in one column, unless the tile's rows are spread unevenly.
        let same = places.iter().all(|p| p.1 == places[0].1);
        let cols: Vec<Val> = places
            .iter()
            .take(if same { 1 } else { places.len() })
            .map(|p| self.w.add(at, p.1))
            .collect();
        for kk in (0..DEPTH).step_by(4) {
            let mut right: Vec<Vec<Val>> = vec![];
            for &col in &cols {
                right.push(
                    (0..4)
                        .map(|i| {
                            let to = self.w.register(Ty::F32);
                            let skip = a_bytes + 4 * PANEL * (kk + i);
                            self.w
                                .line(format_args!("ld.shared.f32 {to}, [{col}+{skip}];"));
                            to
                        })
                        .collect(),
                );
            }
            for (part, (&acc, &row)) in acc.iter().zip(&rows).enumerate() {
                let left = [(); 4].map(|()| self.w.register(Ty::F32));
                let [x, y, z, w] = left;
                let skip = 4 * kk;
                self.w.line(format_args!(
                    "ld.shared.v4.f32 {{{x}, {y}, {z}, {w}}}, [{row}+{skip}];"
                ));
                let right = &right[part.min(right.len() - 1)];
                for (x, &y) in left.into_iter().zip(right) {
                    self.w.to(acc, "fma.rn.f32", &[x, y, acc]);
                }
            }
        }
    }
}
