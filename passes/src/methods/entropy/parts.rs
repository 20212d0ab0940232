//! The codes of a weight by classes of rows and columns, and their term.

use super::MOST;
use crate::methods::grid::index_type;
use crate::methods::matrix::Matrix;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::coded::rans::rans;
use lapidary_ir::encodings::concat::concat;
use lapidary_ir::encodings::gather::gather;
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::{ElemType, Tensor};

/// Codes of a block of the coder; a block costs eight bytes and is decoded by itself.
const BLOCK_CODES: usize = 1 << 14;

/// Codes of the rows of one class in the columns of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Distance of two values, as `f32` holds it.
    pub step: f64,
    /// Codes, `[rows, columns]`, row-major; 0 stands for 0.
    pub codes: Vec<i8>,
}

/// The codes of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct EntropyParts {
    /// The rows of each class, rising; together all `O` of them.
    pub rows: Vec<Vec<usize>>,
    /// The columns of each class, rising; together all `I` of them.
    pub columns: Vec<Vec<usize>>,
    /// A block for each class of rows and of columns, all of the first class of rows first.
    pub blocks: Vec<Block>,
}

impl EntropyParts {
    /// The decoded weight, rounded to `f32` as the term decodes.
    pub fn decode(&self) -> Matrix {
        let mut out = Matrix::zeros(all(&self.rows), all(&self.columns));
        for (rows, blocks) in self.rows.iter().zip(self.blocks.chunks(self.columns.len())) {
            for (columns, block) in self.columns.iter().zip(blocks) {
                for (&r, codes) in rows.iter().zip(block.codes.chunks(columns.len())) {
                    for (&c, &code) in columns.iter().zip(codes) {
                        out[(r, c)] = f64::from((block.step * f64::from(code)) as f32);
                    }
                }
            }
        }
        out
    }

    /// The term of `f32[O, I]`.
    pub fn encoding(&self) -> Encoding {
        let bands = self.rows.iter().zip(self.blocks.chunks(self.columns.len()));
        let bands = bands.map(|(rows, blocks)| {
            let across = self.columns.iter().zip(blocks);
            joined(
                1,
                across
                    .map(|(c, b)| b.encoding([rows.len(), c.len()]))
                    .collect(),
            )
        });
        let stored = joined(0, bands.collect());
        in_place(0, &self.rows, in_place(1, &self.columns, stored))
    }
}

impl Block {
    fn encoding(&self, shape: [usize; 2]) -> Encoding {
        let least = i32::from(self.codes.iter().copied().min().unwrap_or(0)).min(0);
        let codes = self.codes.iter().map(|&c| (i32::from(c) - least) as u8);
        let zero = Tensor::from_int(ElemType::U8, [1, 1], vec![(-least).into()]);
        let step = Tensor::from_f64(ElemType::F32, [1, 1], vec![self.step]);
        affine(
            ElemType::F32,
            dense::from_tensor(&step),
            rans(shape.to_vec(), &codes.collect::<Vec<u8>>(), BLOCK_CODES),
            Some(dense::from_tensor(&zero)),
        )
    }

    pub(super) fn lengths(&self) -> Lengths {
        let mut counts = [0u64; CODES];
        self.codes
            .iter()
            .for_each(|&c| counts[(i32::from(c) + MOST) as usize] += 1);
        Lengths::of(&counts)
    }
}

fn all(classes: &[Vec<usize>]) -> usize {
    classes.iter().map(Vec::len).sum()
}

fn joined(axis: usize, mut terms: Vec<Encoding>) -> Encoding {
    match terms.len() {
        1 => terms.remove(0),
        _ => concat(axis, terms),
    }
}

/// `stored`, whose axis holds one class after the other, in the weight's own order.
fn in_place(axis: usize, classes: &[Vec<usize>], stored: Encoding) -> Encoding {
    if classes.len() == 1 {
        return stored;
    }
    let mut place = vec![0; all(classes)];
    let order = classes.iter().flatten().enumerate();
    order.for_each(|(k, &own)| place[own] = k as i128);
    let place = Tensor::from_int(index_type(place.len()), [place.len()], place);
    gather(axis, dense::from_tensor(&place), stored)
}

/// Number of codes.
pub(super) const CODES: usize = 2 * MOST as usize + 1;

/// Bits that the coder takes for each code from `-MOST` on.
#[derive(Clone, Debug)]
pub(super) struct Lengths {
    bits: Vec<f64>,
    /// Of all codes that were counted, with the table of frequencies and what else a block stores.
    pub total: f64,
}

impl Lengths {
    /// Lengths by how often each code occurs.
    pub fn of(counts: &[u64; CODES]) -> Lengths {
        // Half an occurrence more of each: a code that did not occur yet may.
        let all: f64 = counts.iter().map(|&n| n as f64 + 0.5).sum();
        // The coder's frequencies are of 4096.
        let bits = counts
            .iter()
            .map(|&n| (all / (n as f64 + 0.5)).log2().min(12.0));
        let bits: Vec<f64> = bits.collect();
        let occur = || (0..CODES).filter(|&k| counts[k] > 0);
        let (first, last) = (
            occur().next().unwrap_or(0),
            occur().next_back().unwrap_or(0),
        );
        let coded: f64 = counts.iter().zip(&bits).map(|(&n, b)| n as f64 * b).sum();
        // Frequencies of two bytes; a step, a zero point, the ends and the state of a block.
        let table = 16.0 * (last - first + 1) as f64 + 32.0 + 8.0 + 64.0 + 32.0;
        Lengths {
            bits,
            total: coded + table,
        }
    }

    pub fn at(&self, code: f64) -> f64 {
        self.bits[(code as i32 + MOST) as usize]
    }
}
