//! A few rows times packed weights, at the speed of memory.
//!
//! A warp has four outputs, or two, so that what it reads of the vectors serves as many; warps of a block share the columns where
//! outputs alone are too few blocks. Every lane has the codes of the next run on their way while it multiplies those of the
//! last: that is what hides memory's latency. Codes become `f32` without a conversion, which a multiprocessor does for 16
//! lanes at a time only: put into the mantissa of 2^23 they are numbers, `2^23 + q 2^b` with `b` the place of the code's
//! lowest bit, and `fma(that, 2^-b, -(2^23 2^-b + z))` is `q - z`, exactly. So sums are of `f32` throughout, and nothing is
//! rounded that the plain product would not round.

use super::frame;
use crate::Entry;
use crate::tile::WARP;
use crate::writer::{Ty, Val, Writer};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::packed::{Bits, CHUNK, Gemv as Spec, WARPS, Weights};

const THREADS: u32 = WARPS * WARP;

/// 2^23 as bits of `f32`: its mantissa's lowest bit is one.
const TWO_23: i64 = 0x4B00_0000;

/// The entry of a canonical kernel, with its parameters, then as every entry.
pub fn gemv(spec: &Spec) -> Entry {
    let gemv = Gemv {
        spec,
        weights: &spec.weights,
        batch: spec.batch,
        rows: spec.rows(),
        sharing: spec.sharing(),
        w: Writer::default(),
    };
    gemv.entry()
}

struct Gemv<'w> {
    spec: &'w Spec,
    weights: &'w Weights,
    batch: u32,
    /// Outputs of a warp.
    rows: u32,
    /// Warps that share the columns of an output.
    sharing: u32,
    w: Writer,
}

/// Codes of a run and their scales.
struct Fetched {
    codes: [Val; 4],
    scales: Vec<Val>,
}

impl Gemv<'_> {
    fn entry(mut self) -> Entry {
        let shared = 4 * (THREADS / WARP) * self.rows * self.batch;
        self.body();
        let mut params = vec!["codes", "scales", "x", "y"];
        if self.spec.m.is_none() {
            params.push("m");
        }
        let (name, shared) = (self.weights.name(), Some(("sums", shared)));
        frame::entry(name, &params, (THREADS, 2), shared, self.w)
    }

    fn body(&mut self) {
        let weights = self.weights;
        let (runs, parts) = (weights.runs(), weights.parts());
        let [codes, scales, x, y] = ["codes", "scales", "x", "y"].map(|p| self.w.param(p));
        let tid = self.w.special("%tid.x");
        let block = self.w.block();
        let lane = self.w.op(Ty::B32, "and.b32", &[tid, Val::int(31)]);
        let warp = self.w.op(Ty::B32, "shr.u32", &[tid, Val::int(5)]);
        let share = i64::from(self.sharing);
        let place = self.w.op(Ty::B32, "and.b32", &[warp, Val::int(share - 1)]);
        let shift = Val::int(i64::from(self.sharing.trailing_zeros()));
        let of_warp = self.w.op(Ty::B32, "shr.u32", &[warp, shift]);
        // Which outputs, and which vectors, of which the last batch may have fewer.
        let blocks = Val::int(i64::from(self.spec.blocks()));
        let [batch, across] = match self.spec.m {
            Some(m) if m <= self.batch => [Val::int(0), block],
            _ => self.w.divide(block, blocks),
        };
        let m = match self.spec.m {
            Some(m) => Val::int(i64::from(m)),
            None => self.w.size("m"),
        };
        let vector = self.w.mul(batch, Val::int(i64::from(self.batch)));
        let begin = self.w.mul(across, Val::int(i64::from(self.spec.outputs())));
        let own = self
            .w
            .mul_add(of_warp, Val::int(i64::from(self.rows)), begin);
        let part = match parts {
            1 => Val::int(0),
            _ => {
                let lanes = (weights.group() / 4).trailing_zeros();
                let lanes = Val::int(i64::from(lanes));
                self.w.op(Ty::B32, "shr.u32", &[lane, lanes])
            }
        };
        let (mut code_at, mut scale_at) = (vec![], vec![]);
        for r in 0..self.rows {
            let row = self.w.add(own, Val::int(i64::from(r)));
            // Rows that are not there are the last one, and are not stored.
            let last = Val::int(i64::from(weights.rows()) - 1);
            let row = self.w.op(Ty::B32, "min.u32", &[row, last]);
            let run = self.w.mul_add(row, Val::int(i64::from(runs)), place);
            let nth = self.w.mul_add(run, Val::int(32), lane);
            code_at.push(self.w.at(codes, nth, 16));
            let nth = self.w.mul_add(run, Val::int(i64::from(parts)), part);
            scale_at.push(self.w.at(scales, nth, weights.part_bytes()));
        }
        let run = self.w.register(Ty::B32);
        self.w.copy(run, place);
        let first_column = self.w.mul(place, Val::int(i64::from(weights.run())));
        let column = self.w.mul_add(lane, Val::int(4), first_column);
        let x_at = (0..self.batch)
            .map(|b| {
                let columns = i64::from(weights.columns());
                let nth = match self.whole() {
                    true => self.w.add(column, Val::int(i64::from(b) * columns)),
                    // Vectors that are not there are the last one, and are not stored.
                    false => {
                        let row = self.w.add(vector, Val::int(i64::from(b)));
                        let last = self.w.add(m, Val::int(-1));
                        let row = self.w.op(Ty::B32, "min.u32", &[row, last]);
                        self.w.mul_add(row, Val::int(columns), column)
                    }
                };
                self.w.at(x, nth, 4)
            })
            .collect::<Vec<_>>();
        let sums: Vec<Val> = (0..self.rows * self.batch)
            .map(|_| self.w.register(Ty::F32))
            .collect();
        for &sum in &sums {
            self.w.copy(sum, Val::f32(0.0));
        }
        let magic = self.w.op(Ty::B32, "mov.b32", &[Val::int(TWO_23)]);
        // The first codes; lanes of a warp that has none read nothing.
        let next: Vec<Fetched> = (0..self.rows).map(|_| self.fetched()).collect();
        let has = self.w.compare("lt.u32", run, Val::int(i64::from(runs)));
        self.fetch(&next, &code_at, &scale_at, has);
        let [top, after] = [(); 2].map(|()| self.w.label());
        self.w.line(format_args!("@!{has} bra {after};"));
        self.w.place(top);
        let now: Vec<Fetched> = next.iter().map(|f| self.moved(f)).collect();
        for (&c, &s) in code_at.iter().zip(&scale_at) {
            self.w.to(c, "add.s64", &[c, Val::long(512 * share)]);
            let step = i64::from(parts * weights.part_bytes()) * share;
            self.w.to(s, "add.s64", &[s, Val::long(step)]);
        }
        self.w.to(run, "add.s32", &[run, Val::int(share)]);
        let more = self.w.compare("lt.u32", run, Val::int(i64::from(runs)));
        self.fetch(&next, &code_at, &scale_at, more);
        self.multiply(&now, &x_at, column, magic, &sums);
        let step = i64::from(weights.run()) * share;
        for &x in &x_at {
            self.w.to(x, "add.s64", &[x, Val::long(4 * step)]);
        }
        if !weights.columns().is_multiple_of(weights.run()) {
            self.w.to(column, "add.s32", &[column, Val::int(step)]);
        }
        self.w.line(format_args!("@{more} bra {top};"));
        self.w.place(after);
        self.finish(&sums, [tid, lane, warp, begin], [y, vector, m]);
    }

    /// Whether one batch has all vectors.
    fn whole(&self) -> bool {
        self.spec.m == Some(self.batch)
    }

    fn fetched(&mut self) -> Fetched {
        let words = self.weights.part_bytes() / 4;
        Fetched {
            codes: [(); 4].map(|()| self.w.register(Ty::B32)),
            scales: (0..words).map(|_| self.w.register(Ty::B32)).collect(),
        }
    }

    /// A copy, whose places the next codes may take.
    fn moved(&mut self, of: &Fetched) -> Fetched {
        let to = self.fetched();
        let pairs = to.codes.iter().zip(&of.codes);
        for (&to, &from) in pairs.chain(to.scales.iter().zip(&of.scales)) {
            self.w.copy(to, from);
        }
        to
    }

    /// Begins to read a run of every row: codes pass the cache by, as nobody reads them again.
    fn fetch(&mut self, to: &[Fetched], codes: &[Val], scales: &[Val], condition: Val) {
        for (of, &at) in to.iter().zip(codes) {
            let [a, b, c, d] = of.codes;
            self.w.line(format_args!(
                "@{condition} ld.global.nc.L1::no_allocate.v4.b32 {{{a}, {b}, {c}, {d}}}, [{at}];"
            ));
        }
        for (of, &at) in to.iter().zip(scales) {
            for (i, some) in of.scales.chunks(4).enumerate() {
                let list: Vec<String> = some.iter().map(Val::to_string).collect();
                self.w.line(format_args!(
                    "@{condition} ld.global.nc.v{}.b32 {{{}}}, [{at}+{}];",
                    list.len(),
                    list.join(", "),
                    16 * i
                ));
            }
        }
    }

    /// Adds the products of a run.
    fn multiply(&mut self, now: &[Fetched], x: &[Val], column: Val, magic: Val, sums: &[Val]) {
        let ragged = !self.weights.columns().is_multiple_of(self.weights.run());
        let mut scales = vec![];
        for chunk in 0..self.weights.chunks() {
            if chunk % 2 == 0 {
                scales = now.iter().map(|of| self.scales(of, chunk)).collect();
            }
            let there = ragged.then(|| {
                let end = i64::from(self.weights.columns()) - i64::from(chunk * CHUNK);
                self.w.compare("lt.s32", column, Val::int(end))
            });
            let xs: Vec<[Val; 4]> = x.iter().map(|&at| self.vector(at, chunk, there)).collect();
            for (r, of) in now.iter().enumerate() {
                let qs = self.numbers(&of.codes, chunk, magic);
                let scale = scales[r][(chunk % 2) as usize];
                for (b, xs) in xs.iter().enumerate() {
                    let mut sum = self.w.op(Ty::F32, "mul.f32", &[xs[0], qs[0]]);
                    for (&x, &q) in xs.iter().zip(&qs).skip(1) {
                        sum = self.w.op(Ty::F32, "fma.rn.f32", &[x, q, sum]);
                    }
                    let to = sums[r * self.batch as usize + b];
                    self.w.to(to, "fma.rn.f32", &[sum, scale, to]);
                }
            }
        }
    }

    /// Four numbers of a vector, zeros where there are none.
    fn vector(&mut self, at: Val, chunk: u32, there: Option<Val>) -> [Val; 4] {
        let [a, b, c, d] = [(); 4].map(|()| self.w.register(Ty::F32));
        if there.is_some() {
            for x in [a, b, c, d] {
                self.w.copy(x, Val::f32(0.0));
            }
        }
        let guard = self.w.guard(there);
        let offset = 4 * CHUNK * chunk;
        self.w.line(format_args!(
            "{guard}ld.global.nc.v4.f32 {{{a}, {b}, {c}, {d}}}, [{at}+{offset}];"
        ));
        [a, b, c, d]
    }

    /// `q - z` of the four codes of a chunk.
    fn numbers(&mut self, codes: &[Val; 4], chunk: u32, magic: Val) -> [Val; 4] {
        let bits = self.weights.bits();
        let zero = f32::from(bits.zero());
        let two_23 = f32::from_bits(TWO_23 as u32);
        let word = match bits {
            Bits::Eight => codes[chunk as usize],
            Bits::Four => {
                let word = codes[(chunk / 2) as usize];
                match chunk % 2 {
                    0 => word,
                    _ => self.w.op(Ty::B32, "shr.u32", &[word, Val::int(16)]),
                }
            }
        };
        std::array::from_fn(|i| {
            let q = self.w.register(Ty::B32);
            let unit = match bits {
                Bits::Eight => {
                    // A byte of the word below three of 2^23.
                    let digits = 0x7650 | i;
                    self.w
                        .line(format_args!("prmt.b32 {q}, {word}, {magic}, {digits};"));
                    1.0
                }
                Bits::Four => {
                    let mask = 0xF << (4 * i);
                    self.w
                        .line(format_args!("lop3.b32 {q}, {word}, {mask}, {magic}, 0xEA;"));
                    0.5f32.powi(4 * i as i32)
                }
            };
            let q = self.w.op(Ty::F32, "mov.b32", &[q]);
            let down = Val::f32(-(two_23 * unit + zero));
            match unit == 1.0 {
                true => self.w.op(Ty::F32, "add.f32", &[q, down]),
                false => self.w.op(Ty::F32, "fma.rn.f32", &[q, Val::f32(unit), down]),
            }
        })
    }

    /// The scales of a chunk and the next.
    fn scales(&mut self, of: &Fetched, chunk: u32) -> [Val; 2] {
        if self.weights.scale() == ElemType::F32 {
            return [chunk, chunk + 1]
                .map(|c| self.w.op(Ty::F32, "mov.b32", &[of.scales[c as usize]]));
        }
        let pair = of.scales[(chunk / 2) as usize];
        let [low, high] = [(); 2].map(|()| self.w.register(Ty::B16));
        self.w
            .line(format_args!("mov.b32 {{{low}, {high}}}, {pair};"));
        [low, high].map(|h| self.w.op(Ty::F32, "cvt.f32.f16", &[h]))
    }

    /// Adds up lanes, then warps, and stores.
    fn finish(
        &mut self,
        sums: &[Val],
        [tid, lane, warp, begin]: [Val; 4],
        [y, vector, m]: [Val; 3],
    ) {
        for &sum in sums {
            for step in [16, 8, 4, 2, 1] {
                let bits = self.w.op(Ty::B32, "mov.b32", &[sum]);
                let other = self.w.register(Ty::B32);
                self.w.line(format_args!(
                    "shfl.sync.bfly.b32 {other}, {bits}, {step}, 31, 0xffffffff;"
                ));
                let other = self.w.op(Ty::F32, "mov.b32", &[other]);
                self.w.to(sum, "add.f32", &[sum, other]);
            }
        }
        let of_warp = sums.len() as u32;
        let base = self.w.special("sums");
        let to = self.w.mul_add(warp, Val::int(i64::from(4 * of_warp)), base);
        let one = self.w.compare("eq.u32", lane, Val::int(0));
        for (i, &sum) in sums.iter().enumerate() {
            let offset = 4 * i;
            self.w
                .line(format_args!("@{one} st.shared.f32 [{to}+{offset}], {sum};"));
        }
        self.w.line(format_args!("bar.sync 0;"));
        // A thread for each result: [warp][row][batch].
        let end = self.w.label();
        let results = self.spec.outputs() * self.batch;
        let none = self.w.compare("ge.u32", tid, Val::int(i64::from(results)));
        self.w.line(format_args!("@{none} bra {end};"));
        let batch = Val::int(i64::from(self.batch));
        let nth = self.w.op(Ty::B32, "div.u32", &[tid, batch]);
        let b = {
            let whole = self.w.mul(nth, batch);
            self.w.sub(tid, whole)
        };
        let row = self.w.add(begin, nth);
        let none = self
            .w
            .compare("ge.u32", row, Val::int(i64::from(self.weights.rows())));
        self.w.line(format_args!("@{none} bra {end};"));
        let own = self.w.int("shr.u32", nth, self.rows.trailing_zeros());
        let inside = self.w.int("and.b32", nth, self.rows - 1);
        let inside = self.w.mul_add(inside, batch, b);
        let warps = Val::int(i64::from(self.sharing * of_warp));
        let from = self.w.mul_add(own, warps, inside);
        let from = self.w.mul_add(from, Val::int(4), base);
        let total = self.w.register(Ty::F32);
        self.w.copy(total, Val::f32(0.0));
        for s in 0..self.sharing {
            let sum = self.w.register(Ty::F32);
            let offset = 4 * of_warp * s;
            self.w
                .line(format_args!("ld.shared.f32 {sum}, [{from}+{offset}];"));
            self.w.to(total, "add.f32", &[total, sum]);
        }
        let b = self.w.add(b, vector);
        if !self.whole() {
            let none = self.w.compare("ge.u32", b, m);
            self.w.line(format_args!("@{none} bra {end};"));
        }
        let nth = self
            .w
            .mul_add(b, Val::int(i64::from(self.weights.rows())), row);
        let to = self.w.at(y, nth, 4);
        self.w.line(format_args!("st.global.f32 [{to}], {total};"));
        self.w.place(end);
        self.w.line(format_args!("ret;"));
    }
}
