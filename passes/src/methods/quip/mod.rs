//! QuIP#: runs of eight weights become vectors of a lattice table, after signs and Hadamard matrices on both sides have made them
//! look normal.
//!
//! `W~ = H diag(v) W diag(u) H` with random signs `u` and `v` and orthonormal Hadamard matrices is scaled to the size that the table
//! E8P (`lapidary_ir::encodings::lattice`) is best for, and rounded run by run: each run to the nearest vector, with the errors of
//! the runs before it spread over the weights behind them where there is a Hessian (LDLQ). Sums of two tables have 3 and 4 bits.
//!
//! ```text
//! scale{v s; scale{u; rotate{rows, H; rotate{columns, H; codebook{E8P; int16}}}}}        2 bits
//! .. sum{codebook{E8P; int16}, scale{1/2.04; codebook{E8; int8}}}                        3 bits
//! .. sum{codebook{E8P; int16}, scale{1/3.45; codebook{E8P; int16}}}                      4 bits
//! ```
//! The published method turns a whole side at once, by small Hadamard matrices of other sizes where its length is no power of
//! two; here the blocks are as long as a power of two that divides the length, at most 4096. Rows that are no multiple of eight
//! long are filled up with zeros, which the term leaves out again (`gather`).
//! Source: Tseng et al., "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks", sections 3, 4;
//! Chee et al., "QuIP: 2-Bit Quantization of Large Language Models With Guarantees", section 3 (LDLQ, which is the
//! column sweep of GPTQ, theorem 6).

pub mod nearest;

use super::grid::{index_type, scale_type, stored_scale, wide_enough};
use super::matrix::Matrix;
use super::quest::turn_blocks;
use super::sweep::{self, DAMPING, Prepared, Rounding, prepare};
use super::{Method, dense, measured, threads};
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::gather::gather;
use lapidary_ir::encodings::lattice::{self, DIM};
use lapidary_ir::encodings::rotate::{MAX_HADAMARD, hadamard, longest_block};
use lapidary_ir::encodings::scale::scale;
use lapidary_ir::encodings::sum::sum;
use lapidary_ir::encodings::{Encoding, dense as plain};
use lapidary_ir::random::SplitMix64;
use lapidary_ir::{ElemType, Tensor};
use nearest::{Grid, Residual};
use std::ops::Range;

/// The method.
pub static QUIP: Method = Method {
    name: "quip",
    summary: "both sides turned by signs and Hadamard matrices, runs of 8 weights on the lattice E8, with error feedback where there is a Hessian",
    source: "QuIP#, sections 3 and 4",
    needs_statistics: false,
    bits: 2..=4,
    propose: |layer, settings| {
        let weight = layer.weight();
        let (elem, mut assumptions) = wide_enough(scale_type(settings.scale_elem)?, weight);
        let sides = Sides::new(weight.rows(), weight.cols(), settings.seed);
        let grid = Grid::of(settings.bits)?;
        let prepared = layer
            .statistics()
            .map(|s| prepare(&sides.turn_hessian(&s.hessian), DAMPING, false));
        let parts = quip(&sides.turn(weight), prepared.as_ref(), &grid, elem);
        assumptions.extend(prepared.into_iter().flat_map(|p| p.assumptions));
        measured(layer, encoding(&sides, &parts, &grid, elem), assumptions)
    },
};

/// How both sides of a weight are turned.
#[derive(Clone, Debug, PartialEq)]
pub struct Sides {
    /// Columns of the weight, `I`; the turned weight has those of `input_signs`.
    pub columns: usize,
    /// A sign for each input, `I` rounded up to a multiple of eight.
    pub input_signs: Vec<f64>,
    /// A sign for each output, `O`.
    pub output_signs: Vec<f64>,
}

impl Sides {
    /// Random signs for a weight `[rows, columns]`.
    pub fn new(rows: usize, columns: usize, seed: u64) -> Sides {
        let mut rng = SplitMix64::new(seed);
        let mut signs = |n: usize| -> Vec<f64> {
            let sign = |_| 1.0 - 2.0 * (rng.next_u64() >> 63) as f64;
            (0..n).map(sign).collect()
        };
        Sides {
            columns,
            input_signs: signs(columns.next_multiple_of(DIM)),
            output_signs: signs(rows),
        }
    }

    /// Lengths of the Hadamard matrices of inputs and outputs.
    fn blocks(&self) -> (usize, usize) {
        let of = |signs: &[f64]| longest_block(signs.len(), MAX_HADAMARD);
        (of(&self.input_signs), of(&self.output_signs))
    }

    /// Rows `[n, I]` with signs, filled up, and turned as inputs are.
    fn turn_rows(&self, m: &Matrix) -> Matrix {
        let signs = &self.input_signs;
        let signed = Matrix::from_rows(m.rows(), signs.len(), |r, out| {
            let numbers = m.row(r).iter().zip(signs).map(|(v, s)| v * s);
            out.iter_mut().zip(numbers).for_each(|(o, v)| *o = v);
        });
        turn_blocks(&signed, self.blocks().0)
    }

    /// A weight `[O, I]` turned on both sides.
    pub fn turn(&self, weight: &Matrix) -> Matrix {
        let columns = self.turn_rows(weight).transpose();
        let signed = columns.scale_columns(&self.output_signs);
        turn_blocks(&signed, self.blocks().1).transpose()
    }

    /// A Hessian `[I, I]` of the turned inputs.
    pub fn turn_hessian(&self, hessian: &Matrix) -> Matrix {
        self.turn_rows(&self.turn_rows(hessian).transpose())
    }

    /// The weight that becomes this turned one.
    pub fn turn_back(&self, turned: &Matrix) -> Matrix {
        let (inputs, outputs) = self.blocks();
        let columns = turn_blocks(&turned.transpose(), outputs);
        let rows = columns.scale_columns(&self.output_signs).transpose();
        let rows = turn_blocks(&rows, inputs).scale_columns(&self.input_signs);
        rows.block(0..rows.rows(), 0..self.columns)
    }
}

/// Codes of a turned weight, and their scale.
#[derive(Clone, Debug, PartialEq)]
pub struct QuipParts {
    /// Rows, `O`.
    pub rows: usize,
    /// Runs of eight weights in a row.
    pub runs: usize,
    /// What the tables' numbers are multiplied with.
    pub scale: f64,
    /// Codes `[O, runs]` of each table, coarse to fine.
    pub codes: Vec<Vec<u16>>,
}

impl QuipParts {
    /// The decoded turned weight, `[O, 8 runs]`.
    pub fn decode_turned(&self, grid: &Grid) -> Matrix {
        Matrix::from_rows(self.rows, self.runs * DIM, |r, out| {
            for (run, out) in out.chunks_exact_mut(DIM).enumerate() {
                let code = |table: usize| {
                    let codes = self.codes.get(table);
                    codes.map_or(0, |c| c[r * self.runs + run])
                };
                let values = grid.vector([code(0), code(1)]);
                out.iter_mut()
                    .zip(values)
                    .for_each(|(o, v)| *o = v * self.scale);
            }
        })
    }
}

/// Codes of a turned weight `[O, 8 n]`, with a scale of type `elem`: by the column sweep of the turned Hessian, in the weight's own
/// order, with error feedback (LDLQ), or without it the nearest.
pub fn quip(
    turned: &Matrix,
    prepared: Option<&Prepared>,
    grid: &Grid,
    elem: ElemType,
) -> QuipParts {
    let count = (turned.rows() * turned.cols()).max(1) as f64;
    let size = (turned.square_sum() / count).sqrt();
    let scale = stored_scale(size / grid.reach, elem);
    let rows = match prepared {
        Some(prepared) => {
            let mut swept = prepared.arrange(turned);
            let mut runs = Runs { grid, scale };
            sweep::sweep(&mut swept, &prepared.upper, sweep::BLOCK, &mut runs).0
        }
        None => threads::map(turned.rows(), |r| {
            let mut row = QuipRow::default();
            let runs = turned.row(r).chunks_exact(DIM);
            runs.for_each(|run| row.push(run, grid, scale));
            row
        }),
    };
    let codes = |table: usize| {
        let of = |row: &QuipRow| row.codes.iter().map(|c| c[table]).collect::<Vec<_>>();
        rows.iter().flat_map(of).collect()
    };
    QuipParts {
        rows: rows.len(),
        runs: turned.cols() / DIM,
        scale,
        codes: (0..grid.tables()).map(codes).collect(),
    }
}

/// A row as it is rounded.
#[derive(Default)]
struct QuipRow {
    codes: Vec<[u16; 2]>,
    /// What the last run became.
    values: [f64; DIM],
}

impl QuipRow {
    /// Rounds the next run.
    fn push(&mut self, run: &[f64], grid: &Grid, scale: f64) {
        let codes = grid.round(&std::array::from_fn(|i| run[i] / scale));
        self.codes.push(codes);
        self.values = grid.vector(codes).map(|v| v * scale);
    }
}

struct Runs<'a> {
    grid: &'a Grid,
    scale: f64,
}

impl Rounding for Runs<'_> {
    type Row = QuipRow;

    fn start(&self, _: usize) -> QuipRow {
        QuipRow::default()
    }

    fn group_len(&self) -> usize {
        DIM
    }

    fn begin_group(&self, row: &mut QuipRow, _: usize, _: Range<usize>, part: &[f64]) {
        row.push(&part[..DIM], self.grid, self.scale);
    }

    fn round(&self, row: &mut QuipRow, _: usize, column: usize, _: f64) -> f64 {
        row.values[column % DIM]
    }
}

/// The term of a weight that was turned so.
fn encoding(sides: &Sides, parts: &QuipParts, grid: &Grid, elem: ElemType) -> Encoding {
    let of = |table: Encoding, codes: &[u16]| {
        let codes = codes.iter().map(|&c| i128::from(c)).collect();
        let type_of = index_type(table.shape[2]);
        let codes = Tensor::from_int(type_of, [parts.rows, parts.runs], codes);
        codebook(ElemType::F32, table, plain::from_tensor(&codes))
    };
    let mut term = of(lattice::e8p(), &parts.codes[0]);
    if let Some((table, finer)) = grid.residual {
        let table = match table {
            Residual::E8 => lattice::e8(),
            Residual::E8p => lattice::e8p(),
        };
        let factor = Matrix::from_fn(1, 1, |_, _| 1.0 / finer);
        let rest = of(table, &parts.codes[1]);
        let rest = scale(ElemType::F32, dense(ElemType::F32, &factor), rest);
        term = sum(ElemType::F32, vec![term, rest]);
    }
    let (inputs, outputs) = sides.blocks();
    term = hadamard(ElemType::F32, 1, inputs, term);
    if outputs > 1 {
        term = hadamard(ElemType::F32, 0, outputs, term);
    }
    let width = sides.input_signs.len();
    let signs = Matrix::from_fn(1, width, |_, c| sides.input_signs[c]);
    term = scale(ElemType::F32, dense(ElemType::F16, &signs), term);
    let signs = Matrix::from_fn(parts.rows, 1, |r, _| parts.scale * sides.output_signs[r]);
    term = scale(ElemType::F32, dense(elem, &signs), term);
    if width == sides.columns {
        return term;
    }
    let kept = (0..sides.columns as i128).collect();
    let kept = Tensor::from_int(index_type(width), [sides.columns], kept);
    gather(1, plain::from_tensor(&kept), term)
}

#[cfg(test)]
mod tests;
