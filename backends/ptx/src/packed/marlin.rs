//! 4-bit weights times batches of `f16` on the tensor cores.
//!
//! Source: "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models" (Frantar et al. 2024): the
//! order of codes, how they become `f16`, the ring of copies. What differs: a lane's 16 bytes are 64 rows of `k` by 16
//! outputs, codes enter the product as the integers that they are and a group's sum is scaled in `f32`, and blocks that share
//! `k` write sums of `f32` of their own, which whoever reads them adds up in order.

use super::batch::{Constants, ROW, Source, THREADS, Tile, stages};
use super::frame;
use crate::Entry;
use crate::tile::WARP;
use crate::writer::{Ty, Val, Writer};
use lapidary_ir::kernel::packed::{Batch, STEP, TILE_OUTPUTS, WARP_OUTPUTS};

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
    let shared = Some(("pieces", stages(kernel.stage()) * kernel.stage()));
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

impl Kernel<'_> {
    /// Bytes of a step in shared memory: rows, then codes.
    fn stage(&self) -> u32 {
        ROW * self.p.tile() + 16 * THREADS
    }

    fn body(&mut self) {
        let p = self.p;
        let (rows, columns) = (p.weights.rows(), p.weights.columns());
        let [codes, scales, x, c] = ["codes", "scales", "x", "c"].map(|n| self.w.param(n));
        let tid = self.w.special("%tid.x");
        let tile = Tile::of(&mut self.w, p, p.across());
        let lane = self.w.int("and.b32", tid, WARP - 1);
        let warp = self.w.int("shr.u32", tid, 5);
        let column = {
            let first = self.w.mul(tile.across, Val::int(i64::from(TILE_OUTPUTS)));
            self.w
                .mul_add(warp, Val::int(i64::from(WARP_OUTPUTS)), first)
        };
        // Warps without outputs copy zeros.
        let exists = self.w.compare("lt.u32", column, Val::int(i64::from(rows)));
        let mut sources = tile.vectors(&mut self.w, p, x, tid);
        let own = {
            let to = self.w.mul(tid, Val::int(16));
            self.w.add(to, Val::int(i64::from(ROW * p.tile())))
        };
        let of_warp = self.w.int("shr.u32", column, 4);
        let steps = i64::from(columns / STEP);
        let first = self.w.mul(tile.begin, Val::int(2));
        let first = self.w.mul_add(of_warp, Val::int(steps), first);
        let first = self.w.mul_add(first, Val::int(32), lane);
        sources.push(Source {
            from: self.w.at(codes, first, 16),
            to: own,
            there: Some(exists),
            step: 16 * WARP,
            mine: None,
        });
        let stage = self.stage();
        let ring = tile.ring(&mut self.w, "pieces", sources, stage);

        let position = self.w.int("and.b32", lane, 3);
        let own_column = self.w.mul_add(position, Val::int(2), column);
        let scale_at = {
            let nth = self
                .w
                .mul_add(tile.begin, Val::int(i64::from(rows)), own_column);
            self.w.at(scales, nth, 2)
        };
        let constants = Constants::new(&mut self.w);
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
        let begin = |w: &mut Writer| {
            for (i, pair) in pairs.into_iter().enumerate() {
                let offset = 16 * i;
                w.line(format_args!(
                    "@{exists} ld.global.nc.b32 {pair}, [{scale_at}+{offset}];"
                ));
            }
            let step = Val::long(2 * i64::from(rows));
            w.to(scale_at, "add.s64", &[scale_at, step]);
            for &sum in &group {
                w.copy(sum, Val::f32(0.0));
            }
        };
        tile.each_group(
            &mut self.w,
            &ring,
            begin,
            |w| {
                let from = w.add(ring.read, own);
                multiply(w, (ring.read, from), &places, &constants, &group);
            },
            |w| scale(w, pairs, &group, &sums),
        );
        let at = [tile.row, own_column, tile.part];
        self.store([c, tile.m], at, lane, exists, &sums);
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

/// Multiplies the step in shared memory from `step` on, whose codes of this lane are at `codes`.
fn multiply(
    w: &mut Writer,
    (step, codes): (Val, Val),
    places: &[Val; 4],
    k: &Constants,
    sums: &[Val],
) {
    let words: [Val; 4] = [(); 4].map(|()| w.register(Ty::B32));
    let [a, b, c, d] = words;
    w.line(format_args!(
        "ld.shared.v4.b32 {{{a}, {b}, {c}, {d}}}, [{codes}];"
    ));
    for (word, &place) in words.into_iter().zip(places) {
        let right = k.halves(w, word);
        let at = w.add(step, place);
        for (f, sums) in (0..).zip(sums.chunks_exact(8)) {
            let [a0, a1, a2, a3] = [(); 4].map(|()| w.register(Ty::B32));
            let offset = 16 * ROW * f;
            w.line(format_args!(
                "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{a0}, {a1}, {a2}, {a3}}}, [{at}+{offset}];"
            ));
            for (j, [b0, b1]) in right.into_iter().enumerate() {
                let [c0, c1, c2, c3] = [0, 1, 2, 3].map(|r| sums[4 * j + r]);
                w.line(format_args!(
                    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{c0}, {c1}, {c2}, {c3}}}, \
                     {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{c0}, {c1}, {c2}, {c3}}};"
                ));
            }
        }
    }
}

/// Adds a group's sums, scaled.
fn scale(w: &mut Writer, pairs: [Val; 2], group: &[Val], sums: &[Val]) {
    let scales = pairs.map(|pair| w.pair(pair));
    for (i, (&part, &sum)) in group.iter().zip(sums).enumerate() {
        let scale = scales[i / 4 % 2][i % 2];
        w.to(sum, "fma.rn.f32", &[part, scale, sum]);
    }
}
