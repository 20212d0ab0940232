//! 4-bit weights times batches of `f16` on the tensor cores.
//!
//! Source: "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models" (Frantar et al. 2024): the
//! order of codes, how they become `f16`, the ring of copies. What differs: a lane's 16 bytes are 64 rows of `k` by 16
//! outputs, codes enter the product as the integers that they are and a group's sum is scaled in `f32`, and blocks that share
//! `k` write sums of `f32` of their own, which whoever reads them adds up in order.

use super::frame;
use crate::Entry;
use crate::tile::WARP;
use crate::writer::{Ty, Val, Writer};
use lapidary_ir::kernel::packed::{Batch, GROUP, STEP, TILE_OUTPUTS, WARP_OUTPUTS, WARPS};

const THREADS: u32 = WARPS * WARP;

/// Bytes of a row of the left operand's step, in shared memory: eight times 16, the `c`-th at `c ^ (row % 8)`.
const ROW: u32 = 2 * STEP;

/// The entry of a canonical kernel, with its parameters, then as every entry.
pub fn marlin(batch: &Batch) -> Entry {
    let mut kernel = Kernel {
        p: batch,
        w: Writer::default(),
    };
    kernel.body();
    let mut params = vec!["codes", "scales", "x", "c"];
    if batch.m.is_none() {
        params.push("m");
    }
    let shared = Some(("pieces", kernel.stages() * kernel.stage()));
    frame::entry(
        batch.weights.name(),
        &params,
        (THREADS, 2),
        shared,
        kernel.w,
    )
}

struct Kernel<'p> {
    p: &'p Batch,
    w: Writer,
}

/// 16 bytes that a thread copies at every step.
struct Source {
    from: Val,
    /// Offset in a step.
    to: Val,
    there: Val,
    /// Bytes between steps.
    step: u32,
    /// Whether this thread copies any of it, where not all do.
    mine: Option<Val>,
}

/// Where steps are copied to.
struct Ring {
    sources: Vec<Source>,
    base: Val,
    read: Val,
    write: Val,
    /// Steps that are still to be copied.
    left: Val,
}

/// Constants of the way from codes to halves.
struct Constants {
    /// 1024 twice: the halves whose lowest bit is one.
    k1024: Val,
    k1032: Val,
    sixteenth: Val,
    minus72: Val,
}

impl Kernel<'_> {
    /// Steps in shared memory: as many as 48 KiB hold, six at most.
    fn stages(&self) -> u32 {
        (49152 / self.stage()).min(6)
    }

    /// Bytes of a step in shared memory: rows, then codes.
    fn stage(&self) -> u32 {
        ROW * self.p.tile() + 16 * THREADS
    }

    fn advance(&mut self, slot: Val, base: Val) {
        let stage = i64::from(self.stage());
        self.w.to(slot, "add.s32", &[slot, Val::int(stage)]);
        let end = self.w.add(base, Val::int(i64::from(self.stages()) * stage));
        let over = self.w.compare("eq.u32", slot, end);
        self.w.line(format_args!("@{over} mov.b32 {slot}, {base};"));
    }

    /// Begins to copy a step; after the last, nothing.
    fn bring(&mut self, ring: &Ring) {
        let some = self.w.compare("gt.s32", ring.left, Val::int(0));
        for source in &ring.sources {
            let there = self.w.and(some, source.there);
            let bytes = self.w.select(there, Val::int(16), Val::int(0));
            let to = self.w.add(ring.write, source.to);
            let guard = self.w.guard(source.mine);
            self.w.line(format_args!(
                "{guard}cp.async.cg.shared.global [{to}], [{}], 16, {bytes};",
                source.from
            ));
            let step = Val::long(i64::from(source.step));
            self.w.to(source.from, "add.s64", &[source.from, step]);
        }
        self.w.line(format_args!("cp.async.commit_group;"));
        self.w.to(ring.left, "add.s32", &[ring.left, Val::int(-1)]);
        self.advance(ring.write, ring.base);
    }

    fn body(&mut self) {
        let p = self.p;
        let (rows, columns) = (p.weights.rows(), p.weights.columns());
        let [codes, scales, x, c] = ["codes", "scales", "x", "c"].map(|n| self.w.param(n));
        let tid = self.w.special("%tid.x");
        let block = self.w.block();
        let (m, down) = match p.m {
            Some(m) => (
                Val::int(i64::from(m)),
                Val::int(i64::from(m.div_ceil(p.tile()))),
            ),
            None => {
                let m = self.w.size("m");
                let up = self.w.add(m, Val::int(i64::from(p.tile() - 1)));
                (m, self.w.int("shr.u32", up, p.tile().trailing_zeros()))
            }
        };
        let tiles = self.w.mul(down, Val::int(i64::from(p.across())));
        let [part, tile] = self.w.divide(block, tiles);
        let [across, down] = self.w.divide(tile, down);
        let lane = self.w.int("and.b32", tid, WARP - 1);
        let warp = self.w.int("shr.u32", tid, 5);
        let row = self.w.mul(down, Val::int(i64::from(p.tile())));
        let column = {
            let first = self.w.mul(across, Val::int(i64::from(TILE_OUTPUTS)));
            self.w
                .mul_add(warp, Val::int(i64::from(WARP_OUTPUTS)), first)
        };
        // Warps without outputs copy zeros.
        let exists = self.w.compare("lt.u32", column, Val::int(i64::from(rows)));
        let begin = self.w.mul(part, Val::int(i64::from(p.groups())));
        let end = self.w.add(begin, Val::int(i64::from(p.groups())));
        let end = self.w.int("min.u32", end, columns / GROUP);
        let groups = self.w.sub(end, begin);

        let mut sources = vec![];
        let in_tile = self.w.int("shr.u32", tid, 3);
        let nth = self.w.int("and.b32", tid, 7);
        for at in (0..p.tile()).step_by(32) {
            // 32 rows of 8 times 16 bytes.
            let own = self.w.add(in_tile, Val::int(i64::from(at)));
            let of_x = self.w.add(row, own);
            let there = self.w.compare("lt.u32", of_x, m);
            let k = self.w.mul(begin, Val::int(i64::from(GROUP)));
            let k = self.w.mul_add(nth, Val::int(8), k);
            let element = self.w.mul_add(of_x, Val::int(i64::from(columns)), k);
            let turn = self.w.int("and.b32", own, 7);
            let place = self.w.op(Ty::B32, "xor.b32", &[nth, turn]);
            let place = self.w.mul(place, Val::int(16));
            let to = self.w.mul_add(own, Val::int(i64::from(ROW)), place);
            let mine = (p.tile() < 32).then(|| self.w.compare("lt.u32", tid, Val::int(128)));
            sources.push(Source {
                from: self.w.at(x, element, 2),
                to,
                there,
                step: ROW,
                mine,
            });
        }
        let own = {
            let to = self.w.mul(tid, Val::int(16));
            self.w.add(to, Val::int(i64::from(ROW * p.tile())))
        };
        let tile = self.w.int("shr.u32", column, 4);
        let steps = i64::from(columns / STEP);
        let first = self.w.mul(begin, Val::int(2));
        let first = self.w.mul_add(tile, Val::int(steps), first);
        let first = self.w.mul_add(first, Val::int(32), lane);
        sources.push(Source {
            from: self.w.at(codes, first, 16),
            to: own,
            there: exists,
            step: 16 * WARP,
            mine: None,
        });
        let base = self.w.special("pieces");
        let [read, write] = [(); 2].map(|()| self.w.register(Ty::B32));
        self.w.copy(read, base);
        self.w.copy(write, base);
        let left = self.w.register(Ty::B32);
        let all = self.w.mul(groups, Val::int(2));
        self.w.copy(left, all);
        let ring = Ring {
            sources,
            base,
            read,
            write,
            left,
        };

        let position = self.w.int("and.b32", lane, 3);
        let own_column = self.w.mul_add(position, Val::int(2), column);
        let scale_at = {
            let nth = self.w.mul_add(begin, Val::int(i64::from(rows)), own_column);
            self.w.at(scales, nth, 2)
        };
        let constants = Constants {
            k1024: self.w.number(0x6400_6400),
            k1032: self.w.number(0x6408_6408),
            sixteenth: self.w.number(0x2C00_2C00),
            minus72: self.w.number(0xD480_D480),
        };
        // Where a lane reads fragments of the left operand: for each 16 columns.
        let places: [Val; 4] = {
            let row = self.w.int("and.b32", lane, 15);
            let high = self.w.int("shr.u32", lane, 4);
            let turn = self.w.int("and.b32", lane, 7);
            [0, 2, 4, 6].map(|c| {
                let nth = self.w.add(high, Val::int(c));
                let place = self.w.op(Ty::B32, "xor.b32", &[nth, turn]);
                let place = self.w.mul(place, Val::int(16));
                self.w.mul_add(row, Val::int(i64::from(ROW)), place)
            })
        };
        let count = 8 * p.fragments();
        let sums: Vec<Val> = (0..count).map(|_| self.w.register(Ty::F32)).collect();
        let group: Vec<Val> = (0..count).map(|_| self.w.register(Ty::F32)).collect();
        for &sum in &sums {
            self.w.copy(sum, Val::f32(0.0));
        }
        let pairs = [(); 2].map(|()| self.w.register(Ty::B32));
        for pair in pairs {
            self.w.copy(pair, Val::int(0));
        }
        for _ in 1..self.stages() {
            self.bring(&ring);
        }
        let [top, after] = [(); 2].map(|()| self.w.label());
        // A part may have no groups where they are few.
        let none = self.w.compare("le.s32", groups, Val::int(0));
        self.w.line(format_args!("@{none} bra {after};"));
        self.w.place(top);
        for (i, pair) in pairs.into_iter().enumerate() {
            let offset = 16 * i;
            self.w.line(format_args!(
                "@{exists} ld.global.nc.b32 {pair}, [{scale_at}+{offset}];"
            ));
        }
        let step = Val::long(2 * i64::from(rows));
        self.w.to(scale_at, "add.s64", &[scale_at, step]);
        for &sum in &group {
            self.w.copy(sum, Val::f32(0.0));
        }
        for _ in 0..GROUP / STEP {
            self.w
                .line(format_args!("cp.async.wait_group {};", self.stages() - 2));
            // After this, all have multiplied the step whose place the next takes, and all see this one.
            self.w.line(format_args!("bar.sync 0;"));
            self.bring(&ring);
            self.multiply(&ring, own, &places, &constants, &group);
            self.advance(ring.read, base);
        }
        self.scale(pairs, &group, &sums);
        self.w.to(groups, "add.s32", &[groups, Val::int(-1)]);
        let more = self.w.compare("gt.s32", groups, Val::int(0));
        self.w.line(format_args!("@{more} bra {top};"));
        self.w.place(after);
        self.w.line(format_args!("cp.async.wait_group 0;"));
        self.store([c, m], [row, own_column, part], lane, exists, &sums);
    }

    fn multiply(&mut self, ring: &Ring, own: Val, places: &[Val; 4], k: &Constants, sums: &[Val]) {
        let at = self.w.add(ring.read, own);
        let words: [Val; 4] = [(); 4].map(|()| self.w.register(Ty::B32));
        let [a, b, c, d] = words;
        self.w.line(format_args!(
            "ld.shared.v4.b32 {{{a}, {b}, {c}, {d}}}, [{at}];"
        ));
        for (word, &place) in words.into_iter().zip(places) {
            let right = self.halves(word, k);
            let at = self.w.add(ring.read, place);
            for f in 0..self.p.fragments() {
                let [a0, a1, a2, a3] = [(); 4].map(|()| self.w.register(Ty::B32));
                let offset = 16 * ROW * f;
                self.w.line(format_args!(
                    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{a0}, {a1}, {a2}, {a3}}}, [{at}+{offset}];"
                ));
                for (j, [b0, b1]) in right.into_iter().enumerate() {
                    let at = 8 * f as usize + 4 * j;
                    let [c0, c1, c2, c3] = [0, 1, 2, 3].map(|r| sums[at + r]);
                    self.w.line(format_args!(
                        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{c0}, {c1}, {c2}, {c3}}}, \
                         {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{c0}, {c1}, {c2}, {c3}}};"
                    ));
                }
            }
        }
    }

    /// `q - 8` of a word's codes, exactly: the right fragments of two products. A code in the lowest bits of 1024 is `1024 + q`,
    /// four bits higher `1024 + 16 q`.
    fn halves(&mut self, word: Val, k: &Constants) -> [[Val; 2]; 2] {
        let upper = self.w.int("shr.u32", word, 8);
        [word, upper].map(|word| {
            let [low, high] = [0x000F_000F, 0x00F0_00F0].map(|mask: u32| {
                let q = self.w.register(Ty::B32);
                self.w.line(format_args!(
                    "lop3.b32 {q}, {word}, {mask}, {}, 0xEA;",
                    k.k1024
                ));
                q
            });
            [
                self.w.op(Ty::B32, "sub.f16x2", &[low, k.k1032]),
                self.w
                    .op(Ty::B32, "fma.rn.f16x2", &[high, k.sixteenth, k.minus72]),
            ]
        })
    }

    /// Adds a group's sums, scaled.
    fn scale(&mut self, pairs: [Val; 2], group: &[Val], sums: &[Val]) {
        let scales = pairs.map(|pair| {
            let halves = [(); 2].map(|()| self.w.register(Ty::B16));
            self.w.line(format_args!(
                "mov.b32 {{{}, {}}}, {pair};",
                halves[0], halves[1]
            ));
            halves.map(|h| self.w.op(Ty::F32, "cvt.f32.f16", &[h]))
        });
        for (i, (&part, &sum)) in group.iter().zip(sums).enumerate() {
            let scale = scales[i / 4 % 2][i % 2];
            self.w.to(sum, "fma.rn.f32", &[part, scale, sum]);
        }
    }

    fn store(
        &mut self,
        [c, m]: [Val; 2],
        [row, column, part]: [Val; 3],
        lane: Val,
        exists: Val,
        sums: &[Val],
    ) {
        let n = self.p.weights.rows();
        let group = self.w.int("shr.u32", lane, 2);
        let row = self.w.add(row, group);
        let skip = self.w.mul(part, m);
        for f in 0..self.p.fragments() {
            for below in [0, 8] {
                let row = self.w.add(row, Val::int(i64::from(16 * f + below)));
                let there = self.w.compare("lt.u32", row, m);
                let there = self.w.and(there, exists);
                let all = self.w.add(row, skip);
                let first = self.w.mul_add(all, Val::int(i64::from(n)), column);
                let to = self.w.at(c, first, 4);
                for j in 0..2 {
                    let at = (8 * f + 4 * j + below / 4) as usize;
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
