//! Products of `f16` or `bf16` on the tensor cores, with sums of `f32`.
//!
//! `mma.sync` m16n8k16, whose operands come by `ldmatrix` from shared memory, which `cp.async` fills three pieces of
//! 32 columns at a time. A row of a piece is 64 bytes, four times 16; the `c`-th 16 bytes of row `r` are at place
//! `c ^ (r / 2 % 4)`, so that the eight rows that `ldmatrix` reads at a time are in different banks. Operands are rounded to
//! 16 bits by whoever makes them: this is for models that are of such numbers, or whose user allows it.
//!
//! Where tiles are few, blocks share the columns (split-K): each writes sums of its own, and [`sum`] adds them up in order, so
//! that results do not depend on which block is first.

use super::frame;
use crate::Entry;
use crate::tile::WARP;
use crate::writer::{Ty, Val, Writer};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::packed::{DEPTH, Halves, TILE_OUTPUTS, WARPS};

/// Pieces in shared memory: one is multiplied, the others are on their way.
const STAGES: u32 = 3;

/// Bytes of a row of a piece.
const ROW: u32 = 2 * DEPTH;

const THREADS: u32 = WARPS * WARP;

/// Tiles of rows that follow one another for the same columns: their blocks find the right operand in the cache.
const BAND: u32 = 8;

/// The entry of a canonical kernel, with its parameters, then as every entry.
pub fn halves(product: &Halves) -> Entry {
    let kernel = Kernel {
        p: product,
        w: Writer::default(),
    };
    kernel.entry()
}

/// Where a thread's lanes read fragments: the offset in a piece for each 16 of its columns.
type Places = [Val; 2];

struct Kernel<'p> {
    p: &'p Halves,
    w: Writer,
}

/// What a thread copies of an operand.
struct Source {
    /// Address of its 16 bytes of the next piece.
    from: Val,
    /// Offset in a piece.
    to: Val,
    /// Whether the row is there.
    there: Val,
    /// Whether this thread copies any of it, where not all do.
    mine: Option<Val>,
}

impl Kernel<'_> {
    /// Bytes of a piece of both operands.
    fn stage(&self) -> u32 {
        ROW * (self.p.tile() + TILE_OUTPUTS)
    }

    fn entry(mut self) -> Entry {
        let shared = STAGES * self.stage();
        self.body();
        let mut params = vec!["a", "b", "c"];
        if self.p.m.is_none() {
            params.push("m");
        }
        let shared = Some(("pieces", shared));
        frame::entry(&self.p.name, &params, (THREADS, 2), shared, self.w)
    }

    /// First row, first column and part of this block of `m` rows: bands of tiles of rows, in them column after column.
    fn place(&mut self, m: Val) -> [Val; 3] {
        let (across, tile) = (self.p.across(), self.p.tile());
        let down = match self.p.m {
            Some(m) => Val::int(i64::from(m.div_ceil(tile))),
            None => {
                let up = self.w.add(m, Val::int(i64::from(tile - 1)));
                self.w.int("shr.u32", up, tile.trailing_zeros())
            }
        };
        let block = self.w.block();
        let tiles = self.w.mul(down, Val::int(i64::from(across)));
        let [part, tile] = self.w.divide(block, tiles);
        let [band, inside] = self.w.divide(tile, Val::int(i64::from(BAND * across)));
        let begin = self.w.mul(band, Val::int(i64::from(BAND)));
        let left = self.w.sub(down, begin);
        let height = self.w.int("min.u32", left, BAND);
        let [column, row] = self.w.divide(inside, height);
        let row = self.w.add(row, begin);
        let row = self.w.mul(row, Val::int(i64::from(self.p.tile())));
        let column = self.w.mul(column, Val::int(i64::from(TILE_OUTPUTS)));
        [row, column, part]
    }

    /// What this thread copies of 64 rows of an operand from row `first` on; `at` is where they are in a piece.
    fn source(
        &mut self,
        tid: Val,
        base: Val,
        rows: Val,
        first: Val,
        k: Val,
        at: [u32; 2],
    ) -> Source {
        let row = self.w.int("shr.u32", tid, 2);
        let nth = self.w.int("and.b32", tid, 3);
        let row_of = self.w.add(row, first);
        let row_of = self.w.add(row_of, Val::int(i64::from(at[0])));
        let there = self.w.compare("lt.u32", row_of, rows);
        let column = self.w.mul_add(nth, Val::int(8), k);
        let element = self
            .w
            .mul_add(row_of, Val::int(i64::from(self.p.k)), column);
        let bytes = self.w.op(Ty::B64, "mul.wide.u32", &[element, Val::int(2)]);
        let from = self.w.add(base, bytes);
        let half = self.w.int("shr.u32", row, 1);
        let half = self.w.int("and.b32", half, 3);
        let place = self.w.op(Ty::B32, "xor.b32", &[nth, half]);
        let place = self.w.mul(place, Val::int(16));
        let to = self.w.mul_add(row, Val::int(i64::from(ROW)), place);
        let to = self.w.add(to, Val::int(i64::from(ROW * at[0] + at[1])));
        Source {
            from,
            to,
            there,
            mine: None,
        }
    }

    /// Begins to copy a piece, zeros where there is nothing.
    fn copy(&mut self, sources: &[Source], slot: Val, column: Val, end: Val) {
        let inside = self.w.compare("lt.u32", column, end);
        for source in sources {
            let there = self.w.and(inside, source.there);
            let bytes = self.w.select(there, Val::int(16), Val::int(0));
            let to = self.w.add(slot, source.to);
            let guard = self.w.guard(source.mine);
            self.w.line(format_args!(
                "{guard}cp.async.cg.shared.global [{to}], [{}], 16, {bytes};",
                source.from
            ));
            let step = Val::long(i64::from(ROW));
            self.w.to(source.from, "add.s64", &[source.from, step]);
        }
        self.w.line(format_args!("cp.async.commit_group;"));
        let step = Val::int(i64::from(DEPTH));
        self.w.to(column, "add.s32", &[column, step]);
    }

    /// The next slot, of which there are as many as stages.
    fn advance(&mut self, slot: Val, base: Val) {
        let step = Val::int(i64::from(self.stage()));
        self.w.to(slot, "add.s32", &[slot, step]);
        let end = self.w.add(base, Val::int(i64::from(STAGES * self.stage())));
        let over = self.w.compare("eq.u32", slot, end);
        self.w.line(format_args!("@{over} mov.b32 {slot}, {base};"));
    }

    /// Where a lane reads: row `row` of a piece, 16 bytes `high` of each 32.
    fn places(&mut self, row: Val, high: Val, first: Val) -> Places {
        let half = self.w.int("shr.u32", row, 1);
        let turn = self.w.int("and.b32", half, 3);
        let all = self.w.add(row, first);
        [0, 2].map(|c| {
            let nth = self.w.add(high, Val::int(c));
            let place = self.w.op(Ty::B32, "xor.b32", &[nth, turn]);
            let place = self.w.mul(place, Val::int(16));
            self.w.mul_add(all, Val::int(i64::from(ROW)), place)
        })
    }

    fn load(&mut self, at: Val, offset: u32) -> [Val; 4] {
        let [a, b, c, d] = [(); 4].map(|()| self.w.register(Ty::B32));
        self.w.line(format_args!(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{a}, {b}, {c}, {d}}}, [{at}+{offset}];"
        ));
        [a, b, c, d]
    }

    fn body(&mut self) {
        let p = self.p;
        let [a, b, c] = ["a", "b", "c"].map(|name| self.w.param(name));
        let tid = self.w.special("%tid.x");
        let m = match p.m {
            Some(m) => Val::int(i64::from(m)),
            None => self.w.size("m"),
        };
        let [row, column, part] = self.place(m);
        let base = self.w.special("pieces");

        let length = p.pieces() * DEPTH;
        let k = self.w.mul(part, Val::int(i64::from(length)));
        let end = self.w.add(k, Val::int(i64::from(length)));
        let end = self.w.int("min.u32", end, p.k);
        let mut sources = vec![];
        for at in (0..p.tile()).step_by(64) {
            sources.push(self.source(tid, a, m, row, k, [at, 0]));
        }
        let (right, n) = (ROW * p.tile(), Val::int(i64::from(p.n)));
        if p.tile() < 64 {
            // Half of the threads have no row of the left operand.
            let mine = self.w.compare("lt.u32", tid, Val::int(128));
            sources[0].mine = Some(mine);
        }
        for at in (0..TILE_OUTPUTS).step_by(64) {
            sources.push(self.source(tid, b, n, column, k, [at, right]));
        }
        let nth = self.w.int("and.b32", tid, 3);
        let own = self.w.mul_add(nth, Val::int(8), k);
        let next = self.w.register(Ty::B32);
        self.w.copy(next, own);
        let [read, write] = [(); 2].map(|()| self.w.register(Ty::B32));
        self.w.copy(read, base);
        self.w.copy(write, base);

        let lane = self.w.int("and.b32", tid, WARP - 1);
        let warp = self.w.int("shr.u32", tid, 5);
        let [of_n, of_m] = {
            let n = self.w.int("and.b32", warp, 3);
            let m = self.w.int("shr.u32", warp, 2);
            [
                self.w.mul(n, Val::int(32)),
                self.w.mul(m, Val::int(i64::from(16 * p.fragments()))),
            ]
        };
        let left_places = {
            let row = self.w.int("and.b32", lane, 15);
            let high = self.w.int("shr.u32", lane, 4);
            self.places(row, high, of_m)
        };
        let right_places = {
            let low = self.w.int("and.b32", lane, 7);
            let up = self.w.int("shr.u32", lane, 4);
            let row = self.w.mul_add(up, Val::int(8), low);
            let high = self.w.int("shr.u32", lane, 3);
            let high = self.w.int("and.b32", high, 1);
            self.places(row, high, of_n)
        };
        let sums: Vec<Val> = (0..p.fragments() * 16)
            .map(|_| self.w.register(Ty::F32))
            .collect();
        for &sum in &sums {
            self.w.copy(sum, Val::f32(0.0));
        }

        let bring = |s: &mut Self| {
            s.copy(&sources, write, next, end);
            s.advance(write, base);
        };
        for _ in 1..STAGES {
            bring(self);
        }
        let left = self.w.register(Ty::B32);
        self.w.copy(left, Val::int(i64::from(p.pieces())));
        let top = self.w.label();
        self.w.place(top);
        self.w
            .line(format_args!("cp.async.wait_group {};", STAGES - 2));
        // After this, all have multiplied the piece whose place the next takes, and all see this one.
        self.w.line(format_args!("bar.sync 0;"));
        bring(self);
        self.multiply(read, [left_places, right_places], right, &sums);
        self.advance(read, base);
        self.w.to(left, "add.s32", &[left, Val::int(-1)]);
        let more = self.w.compare("ne.s32", left, Val::int(0));
        self.w.line(format_args!("@{more} bra {top};"));
        self.w.line(format_args!("cp.async.wait_group 0;"));
        let row = self.w.add(row, of_m);
        let column = self.w.add(column, of_n);
        self.store([c, m], [row, column, part], lane, &sums);
    }

    fn multiply(&mut self, slot: Val, [a, b]: [Places; 2], right: u32, sums: &[Val]) {
        let half = match self.p.elem {
            ElemType::BF16 => "bf16",
            _ => "f16",
        };
        for step in 0..2 {
            let [a_at, b_at] = [a, b].map(|p| self.w.add(slot, p[step]));
            let bs = [0, 1].map(|i| self.load(b_at, right + 16 * ROW * i));
            for f in 0..self.p.fragments() {
                let [a0, a1, a2, a3] = self.load(a_at, 16 * ROW * f);
                for j in 0..4 {
                    let at = (4 * (4 * f + j)) as usize;
                    let [c0, c1, c2, c3] = [0, 1, 2, 3].map(|r| sums[at + r]);
                    let pair = bs[(j / 2) as usize];
                    let [b0, b1] = [0, 1].map(|r| pair[(2 * (j % 2)) as usize + r]);
                    self.w.line(format_args!(
                        "mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32 {{{c0}, {c1}, {c2}, {c3}}}, \
                         {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{c0}, {c1}, {c2}, {c3}}};"
                    ));
                }
            }
        }
    }

    fn store(&mut self, [c, m]: [Val; 2], [row, column, part]: [Val; 3], lane: Val, sums: &[Val]) {
        let p = self.p;
        let group = self.w.int("shr.u32", lane, 2);
        let row = self.w.add(row, group);
        let position = self.w.int("and.b32", lane, 3);
        let column = self.w.mul_add(position, Val::int(2), column);
        let skip = self.w.mul(part, m);
        for f in 0..p.fragments() {
            for below in [0, 8] {
                let row = self.w.add(row, Val::int(i64::from(16 * f + below)));
                let of_row = self.w.compare("lt.u32", row, m);
                let all = self.w.add(row, skip);
                let first = self.w.mul_add(all, Val::int(i64::from(p.n)), column);
                let bytes = self.w.op(Ty::B64, "mul.wide.u32", &[first, Val::int(4)]);
                let to = self.w.add(c, bytes);
                for j in 0..4 {
                    let end = Val::int(i64::from(p.n) - i64::from(8 * j));
                    let of_column = self.w.compare("lt.s32", column, end);
                    let there = self.w.and(of_row, of_column);
                    let at = (4 * (4 * f + j) + below / 4) as usize;
                    self.w.line(format_args!(
                        "@{there} st.global.v2.f32 [{to}+{}], {{{}, {}}};",
                        32 * j,
                        sums[at],
                        sums[at + 1]
                    ));
                }
            }
        }
        self.w.line(format_args!("ret;"));
    }
}

/// `y[i] = sum over p of c[p, i]` of `len` numbers in each part, in order: an entry with parameters `c` and `y`, then as every
/// entry; the number of its blocks.
///
/// # Errors
/// There is nothing to add up, or more than 2^31 bytes of it.
pub fn sum(name: &str, parts: u32, len: u32) -> Result<(Entry, u32), Error> {
    if parts == 0 || len == 0 || 4 * u64::from(parts) * u64::from(len) > 1 << 31 {
        return Err(Error::Unsupported {
            kernel: name.to_owned(),
            what: format!("a sum of {parts} parts of {len} numbers"),
        });
    }
    let mut w = Writer::default();
    let [c, y] = ["c", "y"].map(|name| w.param(name));
    let tid = w.special("%tid.x");
    let block = w.block();
    let nth = w.mul_add(block, Val::int(i64::from(THREADS)), tid);
    let none = w.compare("ge.u32", nth, Val::int(i64::from(len)));
    let end = w.label();
    w.line(format_args!("@{none} bra {end};"));
    let bytes = w.op(Ty::B64, "mul.wide.u32", &[nth, Val::int(4)]);
    let from = w.add(c, bytes);
    let to = w.add(y, bytes);
    let total = w.register(Ty::F32);
    w.copy(total, Val::f32(0.0));
    for part in 0..parts {
        let x = w.register(Ty::F32);
        let offset = 4 * u64::from(part) * u64::from(len);
        w.line(format_args!("ld.global.f32 {x}, [{from}+{offset}];"));
        w.to(total, "add.f32", &[total, x]);
    }
    w.line(format_args!("st.global.f32 [{to}], {total};"));
    w.place(end);
    w.line(format_args!("ret;"));
    let entry = frame::entry(name, &["c", "y"], (THREADS, 4), None, w);
    Ok((entry, len.div_ceil(THREADS)))
}
