//! A batch of `f16` times 4-bit weights, for tensor cores: the canonical kernel, written and recognised, and its own layout.
//!
//! Source: "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models" (Frantar et al. 2024).
//!
//! **Codes.** Tiles of 16 outputs, in them steps of 64 columns, in them a lane's 16 bytes: word `s` is columns
//! `64 step + 16 s + {2p, 2p + 1, 2p + 8, 2p + 9}` of output `g`, then of output `g + 8`, where the lane is `4 g + p`: the right
//! fragments of two m16n8k16. Its eight codes are in nibbles 0, 4, 1, 5, 2, 6, 3, 7: two that are 16 bits apart become a pair of
//! halves by one `lop3`. **Scales** are `[group][output]`.
//!
//! ```text
//! grid (p in parts, j in ceil(rows / 128), i in ceil(m / tile))
//!   for o, b in the tile:
//!     acc = const 0
//!     for g in groups of the part carry acc:
//!       q = load CODES[o, g] >> shift & 15            [128]
//!       x = load X[b, g]                              [128]
//!       acc = muladd (reduce sum (x * (q - 8))), load SCALES[g, o], acc
//!     store C[p, b, o], acc
//! ```

use super::{Bits, CHUNK, LANES, Weights, count, facts, tiles};
use crate::ElemType;
use crate::backend::Error;
use crate::kernel::build::KernelBuilder;
use crate::kernel::{
    Axis, Binary, Buf, Extent, Kernel, Literal, Param, ReduceKind, TileElem, TileType, Var,
};

/// Columns of a step: those of a lane's 16 bytes.
pub const STEP: u32 = 64;

/// Columns of a group: two steps.
pub const GROUP: u32 = CHUNK;

/// Outputs of a warp.
pub const WARP_OUTPUTS: u32 = 16;

/// Outputs of a block.
pub const TILE_OUTPUTS: u32 = 128;

/// Nibble of each of a word's codes.
const NIBBLES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// `c[p, b, o] = sum over part p of the i of x[b, i] W[o, i]` for `m` vectors, row-major: parameters codes (`u8`), scales (`f16`),
/// `x` (`f16`), `c` (`f32`), and the size `m` where it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The matrix.
    pub weights: Weights,
    /// Parts of the columns, of which each has a result of its own.
    pub parts: u32,
    /// Vectors, where their number is known.
    pub m: Option<u32>,
}

impl Batch {
    /// Of `m` vectors; `parts` blocks share the columns.
    ///
    /// # Errors
    /// The weights have not 4 bits in groups of 128 columns with scales of `f16`, or outputs that are no multiple of 16; there are
    /// no vectors; there are more parts than groups; an operand has more than 2^31 bytes.
    pub fn new(weights: Weights, parts: u32, m: Option<u32>) -> Result<Batch, Error> {
        let w = &weights;
        let fits = w.bits == Bits::Four && w.group == GROUP && !w.wide;
        if !fits || !w.rows.is_multiple_of(WARP_OUTPUTS) {
            let (bits, group, rows) = (w.bits.count(), w.group, w.rows);
            return Err(w.error(format!(
                "{bits} bits in groups of {group} of {rows} outputs on tensor cores"
            )));
        }
        if m == Some(0) || parts == 0 || parts > w.columns / GROUP {
            return Err(w.error(format!("a batch of {m:?} in {parts} parts")));
        }
        let longest = u64::from(2 * w.columns).max(4 * u64::from(w.rows) * u64::from(parts));
        match u64::from(m.unwrap_or(1)) * longest <= 1 << 31 {
            true => Ok(Batch { weights, parts, m }),
            false => Err(w.error("more than 2^31 bytes".to_owned())),
        }
    }

    /// Fragments of 16 vectors of a tile: every warp has all.
    pub fn fragments(&self) -> u32 {
        match self.m {
            Some(0..=16) => 1,
            Some(17..=32) => 2,
            _ => 4,
        }
    }

    /// Vectors of a tile.
    pub fn tile(&self) -> u32 {
        16 * self.fragments()
    }

    /// Groups of a part.
    pub fn groups(&self) -> u32 {
        (self.weights.columns / GROUP).div_ceil(self.parts)
    }

    /// Tiles of outputs.
    pub fn across(&self) -> u32 {
        self.weights.rows.div_ceil(TILE_OUTPUTS)
    }

    /// Blocks of `m` vectors.
    pub fn grid(&self, m: u32) -> u32 {
        self.parts * self.across() * m.div_ceil(self.tile())
    }

    /// Codes as the entry reads them, from `[outputs][columns]`, a code a byte.
    ///
    /// # Errors
    /// As [`Weights::check_codes`].
    pub fn pack_codes(&self, codes: &[u8]) -> Result<Vec<u8>, Error> {
        let w = &self.weights;
        w.check_codes(codes)?;
        let mut packed = Vec::with_capacity(codes.len() / 2);
        for tile in 0..w.rows / WARP_OUTPUTS {
            for step in 0..w.columns / STEP {
                for lane in 0..LANES {
                    for s in 0..4 {
                        let word = word(lane, |row, column| {
                            let row = (WARP_OUTPUTS * tile + row) as usize;
                            let column = (STEP * step + 16 * s + column) as usize;
                            codes[row * w.columns as usize + column]
                        });
                        packed.extend(word.to_le_bytes());
                    }
                }
            }
        }
        Ok(packed)
    }

    /// Scales as the entry reads them, from `[outputs][groups]`.
    ///
    /// # Errors
    /// As [`Weights::check_scales`].
    pub fn pack_scales(&self, scales: &[f32]) -> Result<Vec<u8>, Error> {
        let w = &self.weights;
        w.check_scales(scales)?;
        let groups = (w.columns / GROUP) as usize;
        let mut packed = Vec::with_capacity(2 * scales.len());
        for group in 0..groups {
            let of_group = scales.iter().skip(group).step_by(groups);
            of_group.for_each(|&scale| w.put_scale(&mut packed, scale));
        }
        Ok(packed)
    }

    /// The canonical kernel.
    pub fn kernel(&self) -> Kernel {
        let w = &self.weights;
        let shared = |b: &mut KernelBuilder| {
            // Where the codes of a group's columns are from that of its first.
            let column = b.iota(GROUP);
            let steps = [STEP, 2, 16 * LANES];
            let offsets = digits(b, column, [[1, 2, 2], [2, 4, 16], [16, 4, 4], steps]);
            let shift = digits(b, column, [[8, 2, 4]]);
            (offsets, b.cast(shift, TileElem::Elem(ElemType::U8)))
        };
        let of_warp = w.columns / STEP * 16 * LANES;
        let place = |b: &mut KernelBuilder, o| {
            digits(b, o, [[WARP_OUTPUTS, MOST, of_warp], [1, 8, 64], [8, 2, 1]])
        };
        loops(
            self,
            ["codes"],
            TILE_OUTPUTS,
            shared,
            |b, _, o| (place(b, o), o),
            |b, [codes], &(offsets, shift), (place, o), g, (x, of_x)| {
                let of_group = b.index(i64::from(GROUP / STEP * 16 * LANES));
                let from = b.binary(Binary::Mul, g, of_group);
                let from = b.binary(Binary::Add, from, place);
                let q = b.load(codes, from, &[GROUP], vec![Axis::offsets(offsets)]);
                let q = field(b, q, shift, 15);
                let of_x = b.load(x, of_x, &[GROUP], vec![Axis::stride(1)]);
                (product(b, q, of_x), o)
            },
        )
    }

    /// What a kernel computes, if it is one of these.
    pub fn of(kernel: &Kernel) -> Option<Batch> {
        let [rows, columns, parts, m] = facts(kernel)?;
        let m = match &kernel.params[..] {
            [_, _, _, Param::Buffer { .. }] => Some(m),
            [_, _, _, _, Param::Size { .. }] => None,
            _ => return None,
        };
        let weights = Weights::new(&kernel.name, rows, columns, Bits::Four, GROUP).ok()?;
        let found = Batch::new(weights, parts, m).ok()?;
        (found.kernel() == *kernel).then_some(found)
    }
}

/// No index is so large: `a / b % MOST` is `a / b`.
pub(super) const MOST: u32 = u32::MAX;

/// The sum of an index' digits, each at a place of its own: of `index / by % of * times`, for `[by, of, times]`.
pub(super) fn digits<const N: usize>(b: &mut KernelBuilder, index: Var, all: [[u32; 3]; N]) -> Var {
    let each = all.map(|digit| {
        let [by, of, times] = digit.map(|v| b.index(i64::from(v)));
        let whole = b.binary(Binary::FloorDiv, index, by);
        let digit = b.binary(Binary::Mod, whole, of);
        b.binary(Binary::Mul, digit, times)
    });
    let sum = each
        .into_iter()
        .reduce(|sum, d| b.binary(Binary::Add, sum, d));
    sum.unwrap_or_else(|| b.index(0))
}

/// Bits of bytes: `bytes >> shift & mask`.
pub(super) fn field(b: &mut KernelBuilder, bytes: Var, shift: Var, mask: i64) -> Var {
    let bits = b.binary(Binary::Shr, bytes, shift);
    let mask = b.constant(b.ty(bytes), Literal::Int(mask));
    b.binary(Binary::And, bits, mask)
}

/// The sum of the products of codes less their zero with numbers.
pub(super) fn product(b: &mut KernelBuilder, codes: Var, x: Var) -> Var {
    let number = TileElem::Elem(ElemType::F32);
    let q = b.cast(codes, TileElem::Elem(ElemType::I32));
    let q = b.cast(q, number);
    let zero = b.constant(b.ty(q), Literal::Float(f64::from(Bits::Four.zero())));
    let q = b.binary(Binary::Sub, q, zero);
    let x = b.cast(x, number);
    let product = b.binary(Binary::Mul, x, q);
    b.reduce(ReduceKind::Sum, product, 0)
}

/// A kernel of tiles: for each output and vector the sum over a part's groups, each times its scale. `stored` names what holds
/// the weights. `shared` writes what all outputs share, `output` what the groups of one share, and `group` the product of a group
/// with the vector's numbers from a place on, and which of the group's scales is the output's.
pub(super) fn loops<const N: usize, S, O>(
    spec: &Batch,
    stored: [&str; N],
    outputs: u32,
    shared: impl FnOnce(&mut KernelBuilder) -> S,
    output: impl FnOnce(&mut KernelBuilder, &S, Var) -> O,
    group: impl FnOnce(&mut KernelBuilder, [Buf; N], &S, O, Var, (Buf, Var)) -> (Var, Var),
) -> Kernel {
    let w = &spec.weights;
    let mut b = KernelBuilder::new(&w.name);
    let stored = stored.map(|name| b.buffer(name, ElemType::U8, false));
    let scales = b.buffer("scales", ElemType::F16, false);
    let x = b.buffer("x", ElemType::F16, false);
    let c = b.buffer("c", ElemType::F32, true);
    let batches = tiles(&mut b, spec.m, spec.tile());
    let of_part = b.grid(Extent::Const(u64::from(spec.parts)));
    let across = b.grid(Extent::Const(u64::from(w.rows.div_ceil(outputs))));
    let down = b.grid(batches);
    let known = [w.rows, w.columns, spec.parts];
    let [rows, columns, _] = known.map(|v| b.index(i64::from(v)));
    let m = count(&mut b, spec.m, 3 + N as u32);
    let [wide, tile, of_groups, all, of_group] = [
        outputs,
        spec.tile(),
        spec.groups(),
        w.columns / GROUP,
        GROUP,
    ]
    .map(|v| b.index(i64::from(v)));
    // `from + length`, cut at an end.
    let cut = |b: &mut KernelBuilder, from, length, end| {
        let to = b.binary(Binary::Add, from, length);
        b.binary(Binary::Min, to, end)
    };
    let first_o = b.binary(Binary::Mul, across, wide);
    let last_o = cut(&mut b, first_o, wide, rows);
    let first_b = b.binary(Binary::Mul, down, tile);
    let last_b = cut(&mut b, first_b, tile, m);
    let first_g = b.binary(Binary::Mul, of_part, of_groups);
    let last_g = cut(&mut b, first_g, of_groups, all);
    let shared = shared(&mut b);
    let nothing = TileType::of(ElemType::F32, &[]);
    let nothing = b.constant(nothing, Literal::Float(0.0));
    b.for_loop(first_o, last_o, 1, &[], |b, o, _| {
        let output = output(b, &shared, o);
        b.for_loop(first_b, last_b, 1, &[], |b, v, _| {
            let of_x = b.binary(Binary::Mul, v, columns);
            let acc = b.for_loop(first_g, last_g, 1, &[nothing], |b, g, acc| {
                let from = b.binary(Binary::Mul, g, of_group);
                let from = b.binary(Binary::Add, of_x, from);
                let (sum, at) = group(b, stored, &shared, output, g, (x, from));
                let before = b.binary(Binary::Mul, g, rows);
                let at = b.binary(Binary::Add, before, at);
                let scale = b.load(scales, at, &[], vec![]);
                let scale = b.cast(scale, TileElem::Elem(ElemType::F32));
                vec![b.mul_add(sum, scale, acc[0])]
            })[0];
            let to = b.binary(Binary::Mul, of_part, m);
            let to = b.binary(Binary::Add, to, v);
            let to = b.binary(Binary::Mul, to, rows);
            let to = b.binary(Binary::Add, to, o);
            b.store(c, to, vec![], acc);
            vec![]
        });
        vec![]
    });
    b.finish()
}

/// A lane's word of a fragment: codes of 16 outputs and 16 columns, by offsets in these.
pub(super) fn word(lane: u32, code: impl Fn(u32, u32) -> u8) -> u32 {
    let (g, p) = (lane / 4, lane % 4);
    NIBBLES
        .into_iter()
        .enumerate()
        .fold(0, |word, (nth, nibble)| {
            let column = 2 * p + [0, 1, 8, 9][nth % 4];
            let code = code(g + 8 * (nth as u32 / 4), column);
            word | u32::from(code) << (4 * nibble)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(rows: u32, columns: u32) -> Weights {
        Weights::new("batch", rows, columns, Bits::Four, GROUP).unwrap()
    }

    #[test]
    fn kernels_that_are_written_are_recognised() {
        for (rows, columns, parts) in [(128, 128, 1), (144, 640, 3)] {
            for m in [Some(1), Some(33), None] {
                let batch = Batch::new(weights(rows, columns), parts, m).unwrap();
                let kernel = batch.kernel();
                crate::kernel::verify::verify(&kernel).unwrap();
                assert_eq!(Batch::of(&kernel), Some(batch));
                assert_eq!(super::super::Gemv::of(&kernel), None);
            }
        }
    }

    #[test]
    fn other_weights_are_refused() {
        let eight = Weights::new("w", 16, 128, Bits::Eight, 128).unwrap();
        assert!(Batch::new(eight, 1, None).is_err());
        let small = Weights::new("w", 16, 128, Bits::Four, 64).unwrap();
        assert!(Batch::new(small, 1, None).is_err());
        assert!(Batch::new(weights(16, 128).with_wide_scales(true), 1, None).is_err());
        assert!(Batch::new(weights(24, 128), 1, None).is_err());
        let w = || weights(16, 256);
        assert!(Batch::new(w(), 1, Some(0)).is_err());
        assert!(Batch::new(w(), 3, None).is_err());
        assert!(Batch::new(w(), 1, Some(1 << 24)).is_err());
        let batch = Batch::new(w(), 1, None).unwrap();
        assert!(batch.pack_codes(&[0; 16]).is_err());
        assert!(batch.pack_scales(&[0.0; 16]).is_err());
    }
}
