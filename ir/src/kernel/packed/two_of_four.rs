//! A batch of `f16` times 4-bit weights of which two of each four columns are kept, for sparse tensor cores: the canonical kernel,
//! written and recognised, and its own layout.
//!
//! Source: "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models" (Frantar et al. 2024), section
//! on Sparse-MARLIN; "Accelerating Sparse Deep Neural Networks" (Mishra et al. 2021): what is kept, and its metadata.
//!
//! Tiles of 32 outputs, in them steps of 64 columns, of which 32 are kept. A lane `4 g + p` has of a step:
//!
//! **Codes**, 16 bytes: word `2 h + t` is the left fragment of outputs `16 t ..` and kept columns `16 h ..`: kept columns
//! `{2p, 2p + 1, 2p + 8, 2p + 9}` of output `g`, then of output `g + 8`, in the nibbles of a dense batch.
//! **Places**, 8 bytes: word `h` is of columns `32 h + 16 (p % 2) ..` of output `16 (p / 2) + g`, then of the eighth output after that:
//! two bits for each that is kept, so that selector `t` of an `mma.sp` finds those of outputs `16 t ..`.
//! **Scales** are `[group][tile][g][r]`, of output `8 r + g`.
//!
//! ```text
//! grid (p in parts, j in ceil(rows / outputs), i in ceil(m / tile))
//!   for o, b in the tile:
//!     acc = const 0
//!     for g in groups of the part carry acc:
//!       q = load CODES[o, g] >> shift & 15            [64]
//!       c = load PLACES[o, g] >> shift & 3            [64]
//!       x = load X[b, g, 4 (0, 0, 1, 1, ..) + c]      [64]
//!       acc = muladd (reduce sum (x * (q - 8))), load SCALES[g, o], acc
//!     store C[p, b, o], acc
//! ```

use super::batch::{MOST, digits, field, loops, product, word};
use super::{Batch, Bits, GROUP, LANES, STEP, WARPS, Weights, facts};
use crate::ElemType;
use crate::backend::Error;
use crate::kernel::build::KernelBuilder;
use crate::kernel::{Axis, Binary, Kernel, Param, TileElem};

/// Outputs of a warp: two fragments, whose places share words.
pub const PAIR_OUTPUTS: u32 = 32;

/// Columns of a group that are kept.
const KEPT: u32 = GROUP / 2;

/// `c[p, b, o] = sum over part p of the i of x[b, i] W[o, i]` for `m` vectors, row-major: parameters codes (`u8`), places (`u8`), scales
/// (`f16`), `x` (`f16`), `c` (`f32`), and the size `m` where it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TwoOfFour {
    /// The product, of all columns.
    pub batch: Batch,
}

impl TwoOfFour {
    /// Of `m` vectors; `parts` blocks share the columns.
    ///
    /// # Errors
    /// As [`Batch::new`], or outputs that are no multiple of 32.
    pub fn new(weights: Weights, parts: u32, m: Option<u32>) -> Result<TwoOfFour, Error> {
        let batch = Batch::new(weights, parts, m)?;
        let w = &batch.weights;
        match w.rows.is_multiple_of(PAIR_OUTPUTS) {
            true => Ok(TwoOfFour { batch }),
            false => Err(w.error(format!("{} outputs on sparse tensor cores", w.rows))),
        }
    }

    /// Warps of a block that have the same outputs, each for its share of the vectors.
    pub fn shares(&self) -> u32 {
        self.batch.tile().div_ceil(32)
    }

    /// Fragments of eight vectors of a warp.
    pub fn fragments(&self) -> u32 {
        self.batch.tile() / 8 / self.shares()
    }

    /// Outputs of a block.
    pub fn outputs(&self) -> u32 {
        WARPS / self.shares() * PAIR_OUTPUTS
    }

    /// Tiles of outputs.
    pub fn across(&self) -> u32 {
        self.batch.weights.rows.div_ceil(self.outputs())
    }

    /// Blocks of `m` vectors.
    pub fn grid(&self, m: u32) -> u32 {
        self.batch.parts * self.across() * m.div_ceil(self.batch.tile())
    }

    /// Bytes of codes, of places and of scales.
    pub fn bytes(&self) -> [u64; 3] {
        let w = &self.batch.weights;
        let numbers = u64::from(w.rows) * u64::from(w.columns);
        [numbers / 4, numbers / 8, 2 * numbers / u64::from(GROUP)]
    }

    /// The kept code that is the `kept`-th of a row, or its place.
    fn at(&self, row: u32, kept: u32) -> usize {
        row as usize * (self.batch.weights.columns / 2) as usize + kept as usize
    }

    /// Whether there are two values for each four columns of each output.
    fn check(&self, values: &[u8], most: u8) -> Result<(), Error> {
        let w = &self.batch.weights;
        if values.len() != w.rows as usize * (w.columns / 2) as usize {
            return Err(w.error(format!("{} values for the matrix", values.len())));
        }
        match values.iter().find(|&&v| v > most) {
            Some(v) => Err(w.error(format!("{v} where {most} is the most"))),
            None => Ok(()),
        }
    }

    /// Bytes of every lane of every step of every tile.
    fn by_lanes(&self, mut word: impl FnMut([u32; 3], &mut Vec<u8>)) -> Vec<u8> {
        let w = &self.batch.weights;
        let mut packed = vec![];
        for tile in 0..w.rows / PAIR_OUTPUTS {
            for step in 0..w.columns / STEP {
                (0..LANES).for_each(|lane| word([tile, step, lane], &mut packed));
            }
        }
        packed
    }

    /// Codes as the entry reads them, from `[outputs][columns / 2]`, a kept code a byte.
    ///
    /// # Errors
    /// Their number is not that of the matrix, or a code has more than four bits.
    pub fn pack_codes(&self, codes: &[u8]) -> Result<Vec<u8>, Error> {
        self.check(codes, 15)?;
        Ok(self.by_lanes(|[tile, step, lane], packed| {
            for (h, t) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let word = word(lane, |row, kept| {
                    let row = PAIR_OUTPUTS * tile + 16 * t + row;
                    codes[self.at(row, STEP / 2 * step + 16 * h + kept)]
                });
                packed.extend(word.to_le_bytes());
            }
        }))
    }

    /// Places as the entry reads them, from `[outputs][columns / 4][2]`: which two of four columns are kept, the first one first.
    ///
    /// # Errors
    /// Their number is not that of the matrix, or they do not grow below 4.
    pub fn pack_places(&self, places: &[u8]) -> Result<Vec<u8>, Error> {
        self.check(places, 3)?;
        if places.chunks_exact(2).any(|two| two[0] >= two[1]) {
            return Err(self
                .batch
                .weights
                .error("places that do not grow".to_owned()));
        }
        Ok(self.by_lanes(|[tile, step, lane], packed| {
            let (g, p) = (lane / 4, lane % 4);
            for h in 0..2 {
                for high in 0..2 {
                    let row = PAIR_OUTPUTS * tile + 16 * (p / 2) + g + 8 * high;
                    let first = STEP / 2 * step + 16 * h + 8 * (p % 2);
                    let bits = (0..8).fold(0, |bits, nth| {
                        bits | u16::from(places[self.at(row, first + nth)]) << (2 * nth)
                    });
                    packed.extend(bits.to_le_bytes());
                }
            }
        }))
    }

    /// Scales as the entry reads them, from `[outputs][groups]`.
    ///
    /// # Errors
    /// As [`Weights::check_scales`].
    pub fn pack_scales(&self, scales: &[f32]) -> Result<Vec<u8>, Error> {
        let w = &self.batch.weights;
        w.check_scales(scales)?;
        let groups = w.columns / GROUP;
        let mut packed = Vec::with_capacity(2 * scales.len());
        for group in 0..groups {
            for nth in 0..w.rows {
                let (inside, r) = (nth % PAIR_OUTPUTS / 4, nth % 4);
                let output = nth / PAIR_OUTPUTS * PAIR_OUTPUTS + 8 * r + inside;
                let at = output as usize * groups as usize + group as usize;
                w.put_scale(&mut packed, scales[at]);
            }
        }
        Ok(packed)
    }

    /// The canonical kernel.
    pub fn kernel(&self) -> Kernel {
        let steps = self.batch.weights.columns / STEP;
        // Of what is kept in a group: offsets and shifts of codes and of places, and the first column that it may be.
        let shared = |b: &mut KernelBuilder| {
            let kept = b.iota(KEPT);
            let codes = digits(
                b,
                kept,
                [[1, 2, 2], [2, 4, 16], [16, 2, 8], [32, 2, 16 * LANES]],
            );
            let places = digits(
                b,
                kept,
                [[4, 2, 1], [8, 2, 8], [16, 2, 4], [32, 2, 8 * LANES]],
            );
            let shifts = [[8, 2, 4], [1, 4, 2]].map(|of| digits(b, kept, [of]));
            let shifts = shifts.map(|s| b.cast(s, TileElem::Elem(ElemType::U8)));
            ([codes, places], shifts, digits(b, kept, [[2, KEPT / 2, 4]]))
        };
        // Where an output's codes, places and scale are.
        let output = |b: &mut KernelBuilder, o| {
            let all = [
                [16 * LANES * steps, 4, 1, 64],
                [8 * LANES * steps, 16, 2, 32],
                [PAIR_OUTPUTS, 2, 1, 4],
            ];
            all.map(|[tile, half, high, group]| {
                let tile = [PAIR_OUTPUTS, MOST, tile];
                digits(b, o, [tile, [16, 2, half], [8, 2, high], [1, 8, group]])
            })
        };
        loops(
            &self.batch,
            ["codes", "places"],
            self.outputs(),
            shared,
            |b, _, o| output(b, o),
            |b, [codes, places], (offsets, shifts, first), [code, place, scale], g, (x, of_x)| {
                let of = |b: &mut KernelBuilder, buffer, bytes: u32, from, nth: usize, mask| {
                    let of_group = b.index(i64::from(GROUP / STEP * bytes * LANES));
                    let at = b.binary(Binary::Mul, g, of_group);
                    let at = b.binary(Binary::Add, at, from);
                    let loaded = b.load(buffer, at, &[KEPT], vec![Axis::offsets(offsets[nth])]);
                    field(b, loaded, shifts[nth], mask)
                };
                let q = of(b, codes, 16, code, 0, 15);
                let kept = of(b, places, 8, place, 1, 3);
                let kept = b.cast(kept, TileElem::Index);
                let kept = b.binary(Binary::Add, kept, *first);
                let of_x = b.load(x, of_x, &[KEPT], vec![Axis::offsets(kept)]);
                (product(b, q, of_x), scale)
            },
        )
    }

    /// What a kernel computes, if it is one of these.
    pub fn of(kernel: &Kernel) -> Option<TwoOfFour> {
        let [rows, columns, parts, m] = facts(kernel)?;
        let m = match &kernel.params[..] {
            [_, _, _, _, Param::Buffer { .. }] => Some(m),
            [_, _, _, _, Param::Buffer { .. }, Param::Size { .. }] => None,
            _ => return None,
        };
        let weights = Weights::new(&kernel.name, rows, columns, Bits::Four, GROUP).ok()?;
        let found = TwoOfFour::new(weights, parts, m).ok()?;
        (found.kernel() == *kernel).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_of_four(
        rows: u32,
        columns: u32,
        parts: u32,
        m: Option<u32>,
    ) -> Result<TwoOfFour, Error> {
        let weights = Weights::new("sparse", rows, columns, Bits::Four, GROUP)?;
        TwoOfFour::new(weights, parts, m)
    }

    #[test]
    fn kernels_that_are_written_are_recognised() {
        for (rows, columns, parts) in [(256, 128, 1), (160, 640, 3)] {
            for m in [Some(1), Some(33), None] {
                let spec = two_of_four(rows, columns, parts, m).unwrap();
                let kernel = spec.kernel();
                crate::kernel::verify::verify(&kernel).unwrap();
                assert_eq!(TwoOfFour::of(&kernel), Some(spec));
                assert_eq!(Batch::of(&kernel), None);
            }
        }
    }

    #[test]
    fn other_weights_are_refused() {
        assert!(two_of_four(48, 128, 1, None).is_err());
        assert!(two_of_four(32, 128, 2, None).is_err());
        let spec = two_of_four(32, 128, 1, Some(3)).unwrap();
        let fine = [1, 3].repeat(32 * 32);
        assert_eq!(
            spec.pack_places(&fine).unwrap().len() as u64,
            spec.bytes()[1]
        );
        for wrong in [[1, 1], [3, 1], [2, 4]] {
            let mut places = fine.clone();
            places[100..102].copy_from_slice(&wrong);
            assert!(spec.pack_places(&places).is_err(), "{wrong:?}");
        }
        assert!(spec.pack_places(&fine[2..]).is_err());
        assert!(spec.pack_codes(&[16; 32 * 64]).is_err());
        assert_eq!(
            spec.pack_codes(&[15; 32 * 64]).unwrap().len() as u64,
            spec.bytes()[0]
        );
        assert_eq!(
            spec.pack_scales(&[1.0; 32]).unwrap().len() as u64,
            spec.bytes()[2]
        );
        assert!(spec.pack_scales(&[1.0; 31]).is_err());
    }
}
