//! 4-bit weights of which two of each four are kept, times batches of `f16` on the sparse tensor cores.
//!
//! `mma.sp` m16n8k32: the kept weights are the left operand, with their places, and the vectors the right one, which is dense. A warp
//! has two fragments of outputs, whose places share a register, so that the vectors that `ldmatrix` reads serve both; of
//! more than 32 vectors each half of a block's warps has its own. Scales and parts are as in the dense kernel.
//!
//! Source: "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models" (Frantar et al. 2024), section
//! on Sparse-MARLIN. What differs is what differs in the dense kernel, and codes' order: see [`lapidary_ir::kernel::packed`].

use super::batch::{Constants, ROW, Source, THREADS, Tile, stages};
use super::frame;
use crate::Entry;
use crate::tile::WARP;
use crate::writer::{Ty, Val, Writer};
use lapidary_ir::kernel::packed::{GROUP, PAIR_OUTPUTS, STEP, TwoOfFour};

/// The entry of a canonical kernel, with its parameters, then as every entry.
pub fn two_of_four(product: &TwoOfFour) -> Entry {
    let mut kernel = Kernel {
        p: product,
        w: Writer::default(),
    };
    kernel.body();
    let mut params = vec!["codes", "places", "scales", "x", "c"];
    if product.batch.m.is_none() {
        params.push("m");
    }
    let shared = Some(("pieces", stages(kernel.stage()) * kernel.stage()));
    frame::entry(
        product.batch.weights.name(),
        &params,
        (THREADS, 2),
        shared,
        kernel.w,
    )
}

struct Kernel<'p> {
    p: &'p TwoOfFour,
    w: Writer,
}

/// Where a lane reads in a step.
struct Places {
    codes: Val,
    places: Val,
    /// Vectors: of each 32 columns.
    vectors: [Val; 2],
}

/// A lane's numbers of a fragment of sums.
type Fragment = [Val; 4];

impl Kernel<'_> {
    /// Tiles of outputs of a block.
    fn tiles(&self) -> u32 {
        self.p.outputs() / PAIR_OUTPUTS
    }

    /// Where codes and places begin in a step, and its bytes: rows, then codes, then places.
    fn offsets(&self) -> [u32; 3] {
        let codes = ROW * self.p.batch.tile();
        let places = codes + 16 * WARP * self.tiles();
        [codes, places, places + 8 * WARP * self.tiles()]
    }

    fn stage(&self) -> u32 {
        self.offsets()[2]
    }

    /// Copies of the lanes' `bytes` of codes or places of this block's tiles, to an offset in a step.
    fn stream(&mut self, tile: &Tile, tid: Val, from: Val, bytes: u32, to: u32) -> Source {
        let weights = &self.p.batch.weights;
        let (rows, columns) = (weights.rows(), weights.columns());
        // Threads that copy a tile's step.
        let (each, all) = (2 * bytes, 2 * bytes * self.tiles());
        let in_block = self.w.int("shr.u32", tid, each.trailing_zeros());
        let first = self.w.mul(tile.across, Val::int(i64::from(self.tiles())));
        let nth = self.w.add(first, in_block);
        // Warps without outputs have those of the last: zeros would be no places.
        let nth = self.w.int("min.u32", nth, rows / PAIR_OUTPUTS - 1);
        let step = self.w.mul(tile.begin, Val::int(i64::from(GROUP / STEP)));
        let step = self
            .w
            .mul_add(nth, Val::int(i64::from(columns / STEP)), step);
        let piece = self.w.int("and.b32", tid, each - 1);
        let piece = self.w.mul_add(step, Val::int(i64::from(each)), piece);
        let own = self.w.mul(tid, Val::int(16));
        Source {
            from: self.w.at(from, piece, 16),
            to: self.w.add(own, Val::int(i64::from(to))),
            there: None,
            step: bytes * WARP,
            mine: (all < THREADS).then(|| self.w.compare("lt.u32", tid, Val::int(i64::from(all)))),
        }
    }

    fn body(&mut self) {
        let p = self.p;
        let rows = p.batch.weights.rows();
        let [codes, places, scales, x, c] =
            ["codes", "places", "scales", "x", "c"].map(|n| self.w.param(n));
        let tid = self.w.special("%tid.x");
        let tile = Tile::of(&mut self.w, &p.batch, p.across());
        let lane = self.w.int("and.b32", tid, WARP - 1);
        let warp = self.w.int("shr.u32", tid, 5);
        let own = self.w.int("and.b32", warp, self.tiles() - 1);
        let share = self.w.int("shr.u32", warp, self.tiles().trailing_zeros());
        let mut sources = tile.vectors(&mut self.w, &p.batch, x, tid);
        let [at_codes, at_places, stage] = self.offsets();
        sources.push(self.stream(&tile, tid, codes, 16, at_codes));
        sources.push(self.stream(&tile, tid, places, 8, at_places));
        let ring = tile.ring(&mut self.w, "pieces", sources, stage);

        let column = {
            let first = self.w.mul(tile.across, Val::int(i64::from(p.outputs())));
            self.w
                .mul_add(own, Val::int(i64::from(PAIR_OUTPUTS)), first)
        };
        let exists = self.w.compare("lt.u32", column, Val::int(i64::from(rows)));
        let group = self.w.int("shr.u32", lane, 2);
        let scale_at = {
            let first = self
                .w
                .mul_add(tile.begin, Val::int(i64::from(rows)), column);
            let nth = self.w.mul_add(group, Val::int(4), first);
            self.w.at(scales, nth, 2)
        };
        let constants = Constants::new(&mut self.w);
        // The first vector of this warp in the tile.
        let first = self.w.mul(share, Val::int(i64::from(8 * p.fragments())));
        let at = self.places(lane, own, first);
        let count = 2 * p.fragments();
        let [sums, of_group] = [(); 2].map(|()| -> Vec<Fragment> {
            let fragment = |_| [(); 4].map(|()| self.w.register(Ty::F32));
            (0..count).map(fragment).collect()
        });
        for &sum in sums.iter().flatten() {
            self.w.copy(sum, Val::f32(0.0));
        }
        let pairs = [(); 2].map(|()| self.w.register(Ty::B32));
        for pair in pairs {
            self.w.copy(pair, Val::int(0));
        }
        let [low, high] = pairs;
        let begin = |w: &mut Writer| {
            w.line(format_args!(
                "@{exists} ld.global.nc.v2.b32 {{{low}, {high}}}, [{scale_at}];"
            ));
            let step = Val::long(2 * i64::from(rows));
            w.to(scale_at, "add.s64", &[scale_at, step]);
            for &sum in of_group.iter().flatten() {
                w.copy(sum, Val::f32(0.0));
            }
        };
        tile.each_group(
            &mut self.w,
            &ring,
            begin,
            |w| multiply(w, ring.read, &at, &constants, &of_group),
            |w| scale(w, pairs, &of_group, &sums),
        );
        let position = self.w.int("and.b32", lane, 3);
        let row = self.w.add(tile.row, first);
        let row = self.w.mul_add(position, Val::int(2), row);
        let column = self.w.add(column, group);
        self.store(c, &tile, [row, column], exists, &sums);
    }

    /// Where a lane of the warp whose tile is `own`, and whose vectors are from `first` on, reads.
    fn places(&mut self, lane: Val, own: Val, first: Val) -> Places {
        let [codes, places, _] = self.offsets();
        let nth = self.w.mul_add(own, Val::int(i64::from(WARP)), lane);
        let row = self.w.int("and.b32", lane, 7);
        let piece = self.w.int("shr.u32", lane, 3);
        let row_at = self.w.add(first, row);
        let vectors = [0, 4].map(|c| {
            let nth = self.w.add(piece, Val::int(c));
            let place = self.w.op(Ty::B32, "xor.b32", &[nth, row]);
            let place = self.w.mul(place, Val::int(16));
            self.w.mul_add(row_at, Val::int(i64::from(ROW)), place)
        });
        let [of_codes, of_places] = [(16, codes), (8, places)].map(|(bytes, from)| {
            let place = self.w.mul(nth, Val::int(bytes));
            self.w.add(place, Val::int(i64::from(from)))
        });
        Places {
            codes: of_codes,
            places: of_places,
            vectors,
        }
    }

    fn store(
        &mut self,
        c: Val,
        tile: &Tile,
        [row, column]: [Val; 2],
        exists: Val,
        sums: &[Fragment],
    ) {
        let n = self.p.batch.weights.rows();
        let skip = self.w.mul(tile.part, tile.m);
        for (f, of_vectors) in sums.chunks_exact(2).enumerate() {
            for i in 0..2 {
                let row = self.w.add(row, Val::int((8 * f + i) as i64));
                let there = self.w.compare("lt.u32", row, tile.m);
                let there = self.w.and(there, exists);
                let all = self.w.add(row, skip);
                let first = self.w.mul_add(all, Val::int(i64::from(n)), column);
                let to = self.w.at(c, first, 4);
                let outputs = of_vectors.iter().flat_map(|s| [s[i], s[i + 2]]);
                for (r, sum) in outputs.enumerate() {
                    let offset = 32 * r;
                    self.w.line(format_args!(
                        "@{there} st.global.f32 [{to}+{offset}], {sum};"
                    ));
                }
            }
        }
        self.w.line(format_args!("ret;"));
    }
}

/// Multiplies the step in shared memory from `step` on.
fn multiply(w: &mut Writer, step: Val, at: &Places, k: &Constants, sums: &[Fragment]) {
    let codes = w.add(step, at.codes);
    let words: [Val; 4] = [(); 4].map(|()| w.register(Ty::B32));
    let [a, b, c, d] = words;
    w.line(format_args!(
        "ld.shared.v4.b32 {{{a}, {b}, {c}, {d}}}, [{codes}];"
    ));
    let places = w.add(step, at.places);
    let kept = [(); 2].map(|()| w.register(Ty::B32));
    let [low, high] = kept;
    w.line(format_args!(
        "ld.shared.v2.b32 {{{low}, {high}}}, [{places}];"
    ));
    for h in 0..2 {
        let left = [0, 1].map(|t| k.halves(w, words[2 * h + t]));
        let from = w.add(step, at.vectors[h]);
        for (f, of_vectors) in sums.chunks_exact(2).enumerate() {
            let [b0, b1, b2, b3] = [(); 4].map(|()| w.register(Ty::B32));
            let offset = 8 * ROW as usize * f;
            w.line(format_args!(
                "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{b0}, {b1}, {b2}, {b3}}}, [{from}+{offset}];"
            ));
            for (t, [c0, c1, c2, c3]) in of_vectors.iter().enumerate() {
                // Registers go by rows first, codes by columns.
                let [[a0, a2], [a1, a3]] = left[t];
                w.line(format_args!(
                    "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {{{c0}, {c1}, {c2}, {c3}}}, \
                     {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}, {b2}, {b3}}}, {{{c0}, {c1}, {c2}, {c3}}}, {}, {t};",
                    kept[h]
                ));
            }
        }
    }
}

/// Adds a group's sums, scaled.
fn scale(w: &mut Writer, pairs: [Val; 2], group: &[Fragment], sums: &[Fragment]) {
    // A fragment's are those of outputs `g` and `g + 8`.
    let scales = pairs.map(|pair| w.pair(pair));
    for (i, (part, sum)) in group.iter().zip(sums).enumerate() {
        for (r, (&part, &sum)) in part.iter().zip(sum).enumerate() {
            let scale = scales[i % 2][r / 2];
            w.to(sum, "fma.rn.f32", &[part, scale, sum]);
        }
    }
}
