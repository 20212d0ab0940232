//! A few rows times packed weights, of `f32` throughout: the canonical kernel, written and recognised.
//!
//! ```text
//! grid (i in ceil(m / batch), j in ceil(rows / outputs))
//!   for o in j * outputs .. min((j + 1) * outputs, rows)
//!     acc = const 0                                                    [batch]
//!     for run, chunk carry acc:
//!       q = load CODES[o, run, lanes, chunk] >> shift & mask           [128]
//!       s = load SCALES[o, run, part, chunk]                           [128]
//!       x = load X[i * batch .., columns of the chunk]                 [batch, 128]
//!       acc = acc + reduce sum (x * s * (q - z))
//!     store Y[i * batch .., o], acc
//! ```

use super::{Bits, CHUNK, LANES, Weights, count, facts, tiles};
use crate::ElemType;
use crate::backend::Error;
use crate::kernel::build::KernelBuilder;
use crate::kernel::{
    At, Axis, Binary, Extent, Kernel, Literal, Param, ReduceKind, TileElem, TileType, Var,
};

/// Rows of a batch that are multiplied at a time at most.
pub const MOST_BATCH: u32 = 4;

/// Warps of a block.
pub const WARPS: u32 = 8;

/// Blocks that fill the largest GPU, as long as there are as many: two for each of 132 multiprocessors, nearly.
const BLOCKS: u32 = 256;

/// `y[b, o] = sum over i of x[b, i] W[o, i]` for `m` vectors, row-major: parameters codes (`u8`), scales, `x`, `y`, and the size
/// `m` where it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gemv {
    /// The matrix.
    pub weights: Weights,
    /// Vectors that are multiplied at a time.
    pub batch: u32,
    /// Vectors, where their number is known.
    pub m: Option<u32>,
}

impl Gemv {
    /// Of so many vectors at a time.
    ///
    /// # Errors
    /// The batch is none or more than [`MOST_BATCH`]; there are no vectors, or more than offsets reach.
    pub fn new(weights: Weights, batch: u32, m: Option<u32>) -> Result<Gemv, Error> {
        if batch == 0 || batch > MOST_BATCH {
            let what = format!("a batch of {batch}, 1 to {MOST_BATCH} are multiplied");
            return Err(weights.error(what));
        }
        let longest = u64::from(weights.columns.max(weights.rows));
        if m.is_some_and(|m| m == 0 || u64::from(m) * longest >= 1 << 31) {
            return Err(weights.error(format!("{m:?} vectors")));
        }
        Ok(Gemv { weights, batch, m })
    }

    /// Outputs of a warp: what it reads of the vectors serves as many. Wide scales take registers of as many more.
    pub fn rows(&self) -> u32 {
        match self.weights.scale() {
            ElemType::F32 => 2,
            _ => 4,
        }
    }

    /// Warps that share the columns of an output: where outputs alone are too few blocks.
    pub fn sharing(&self) -> u32 {
        let w = &self.weights;
        let mut sharing = 1;
        while sharing < WARPS && sharing < w.runs() && self.across(sharing) < BLOCKS {
            sharing *= 2;
        }
        sharing
    }

    fn across(&self, sharing: u32) -> u32 {
        self.weights.rows.div_ceil(self.rows() * WARPS / sharing)
    }

    /// Outputs of a block.
    pub fn outputs(&self) -> u32 {
        self.rows() * WARPS / self.sharing()
    }

    /// Blocks of a batch: the inner axis of the grid.
    pub fn blocks(&self) -> u32 {
        self.across(self.sharing())
    }

    /// Blocks of `m` vectors.
    pub fn grid(&self, m: u32) -> u32 {
        m.div_ceil(self.batch) * self.blocks()
    }

    /// The canonical kernel.
    pub fn kernel(&self) -> Kernel {
        let w = &self.weights;
        let mut b = KernelBuilder::new(&w.name);
        let codes = b.buffer("codes", ElemType::U8, false);
        let scales = b.buffer("scales", w.scale(), false);
        let x = b.buffer("x", ElemType::F32, false);
        let y = b.buffer("y", ElemType::F32, true);
        let batches = tiles(&mut b, self.m, self.batch);
        let i = b.grid(batches);
        let j = b.grid(Extent::Const(u64::from(self.blocks())));
        let known = [
            w.rows,
            w.columns,
            w.bits.count(),
            w.group,
            self.batch,
            self.outputs(),
        ];
        let [rows, columns, bits, group, batch, outputs] = known.map(|v| b.index(i64::from(v)));
        let m = count(&mut b, self.m, 4);
        let first = b.binary(Binary::Mul, i, batch);
        let left = b.binary(Binary::Sub, m, first);
        let begin = b.binary(Binary::Mul, j, outputs);
        let end = b.binary(Binary::Add, begin, outputs);
        let end = b.binary(Binary::Min, end, rows);

        // Where the codes, and the scales, of a chunk's columns are from those of its first.
        let [four, eight, sixteen, run_bytes, chunk_columns] =
            [4, 8, 16, 16 * LANES, CHUNK].map(|v| b.index(i64::from(v)));
        let [runs, chunks, parts] =
            [w.runs(), w.chunks(), w.parts()].map(|v| b.index(i64::from(v)));
        let column = b.iota(CHUNK);
        let lane = b.binary(Binary::FloorDiv, column, four);
        let nth = b.binary(Binary::Mod, column, four);
        let bit = b.binary(Binary::Mul, nth, bits);
        let byte = b.binary(Binary::FloorDiv, bit, eight);
        let of_lane = b.binary(Binary::Mul, lane, sixteen);
        let code_offsets = b.binary(Binary::Add, of_lane, byte);
        let shift = b.binary(Binary::Mod, bit, eight);
        let shift = b.cast(shift, TileElem::Elem(ElemType::U8));
        let part = b.binary(Binary::FloorDiv, column, group);
        let scale_offsets = b.binary(Binary::Mul, part, chunks);
        let ty = |elem, shape: &[u32]| TileType::of(elem, shape);
        let mask = (1i64 << w.bits.count()) - 1;
        let mask = b.constant(ty(ElemType::U8, &[CHUNK]), Literal::Int(mask));
        let middle = Literal::Float(f64::from(w.bits.zero()));
        let middle = b.constant(ty(ElemType::F32, &[CHUNK]), middle);
        let [two, zero] = [2, 0].map(|v| b.index(v));
        // Four codes of a lane.
        let bytes_of_chunk = b.binary(Binary::FloorDiv, bits, two);
        let stride = |at: Var, valid: Var| Axis {
            at: At::DynStride(at),
            valid: Some(valid),
            mask: None,
        };

        b.for_loop(begin, end, 1, &[], |b, o, _| {
            let of_row = b.binary(Binary::Mul, o, runs);
            let acc = b.constant(ty(ElemType::F32, &[self.batch]), Literal::Float(0.0));
            let acc = b.for_loop(zero, runs, 1, &[acc], |b, run, acc| {
                let at = b.binary(Binary::Add, of_row, run);
                let code_at = b.binary(Binary::Mul, at, run_bytes);
                let scale_at = b.binary(Binary::Mul, at, parts);
                let scale_at = b.binary(Binary::Mul, scale_at, chunks);
                let before = b.binary(Binary::Mul, run, chunks);
                b.for_loop(zero, chunks, 1, acc, |b, chunk, acc| {
                    let skip = b.binary(Binary::Mul, chunk, bytes_of_chunk);
                    let from = b.binary(Binary::Add, code_at, skip);
                    let q = b.load(codes, from, &[CHUNK], vec![Axis::offsets(code_offsets)]);
                    let q = b.binary(Binary::Shr, q, shift);
                    let q = b.binary(Binary::And, q, mask);
                    let q = b.cast(q, TileElem::Elem(ElemType::I32));
                    let q = b.cast(q, TileElem::Elem(ElemType::F32));
                    let q = b.binary(Binary::Sub, q, middle);
                    let from = b.binary(Binary::Add, scale_at, chunk);
                    let s = b.load(scales, from, &[CHUNK], vec![Axis::offsets(scale_offsets)]);
                    let s = b.cast(s, TileElem::Elem(ElemType::F32));
                    let of_w = b.binary(Binary::Mul, s, q);
                    let of_w = b.broadcast(of_w, &[self.batch, CHUNK], 0);
                    let nth = b.binary(Binary::Add, before, chunk);
                    let column = b.binary(Binary::Mul, nth, chunk_columns);
                    let there = b.binary(Binary::Sub, columns, column);
                    let there = b.binary(Binary::Max, there, zero);
                    let from = b.binary(Binary::Mul, first, columns);
                    let from = b.binary(Binary::Add, from, column);
                    let axes = vec![stride(columns, left), Axis::stride(1).valid(there)];
                    let of_x = b.load(x, from, &[self.batch, CHUNK], axes);
                    let product = b.binary(Binary::Mul, of_x, of_w);
                    let sum = b.reduce(ReduceKind::Sum, product, 1);
                    vec![b.binary(Binary::Add, acc[0], sum)]
                })
            })[0];
            let to = b.binary(Binary::Mul, first, rows);
            let to = b.binary(Binary::Add, to, o);
            b.store(y, to, vec![stride(rows, left)], acc);
            vec![]
        });
        b.finish()
    }

    /// What a kernel computes, if it is one of these.
    pub fn of(kernel: &Kernel) -> Option<Gemv> {
        let [rows, columns, bits, group, batch, _, m] = facts(kernel)?;
        let bits = [Bits::Four, Bits::Eight]
            .into_iter()
            .find(|b| b.count() == bits)?;
        let (wide, m) = match &kernel.params[..] {
            [_, Param::Buffer { elem, .. }, _, _] => (*elem == ElemType::F32, Some(m)),
            [_, Param::Buffer { elem, .. }, _, _, Param::Size { .. }] => {
                (*elem == ElemType::F32, None)
            }
            _ => return None,
        };
        let weights = Weights::new(&kernel.name, rows, columns, bits, group).ok()?;
        let found = Gemv::new(weights.with_wide_scales(wide), batch, m).ok()?;
        (found.kernel() == *kernel).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_are_written_are_recognised() {
        for (rows, columns, group) in [(33, 1024, 128), (7, 96, 32), (8193, 192, 64)] {
            for bits in [Bits::Four, Bits::Eight] {
                for (batch, m) in [(1, Some(1)), (4, None), (3, Some(11))] {
                    for wide in [false, true] {
                        let weights = Weights::new("packed", rows, columns, bits, group).unwrap();
                        let gemv = Gemv::new(weights.with_wide_scales(wide), batch, m).unwrap();
                        let kernel = gemv.kernel();
                        crate::kernel::verify::verify(&kernel).unwrap();
                        assert_eq!(Gemv::of(&kernel), Some(gemv));
                        let mut other = kernel.clone();
                        other.body.pop();
                        assert_eq!(Gemv::of(&other), None);
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_no_kernel_is_refused() {
        let weights = || Weights::new("w", 2, 64, Bits::Four, 32).unwrap();
        assert!(Gemv::new(weights(), 0, None).is_err());
        assert!(Gemv::new(weights(), MOST_BATCH + 1, None).is_err());
        assert!(Gemv::new(weights(), 1, Some(0)).is_err());
        assert!(Gemv::new(weights(), 1, Some(1 << 30)).is_err());
    }
}
