//! GPTVQ: codes of several neighbouring weights, chosen by the column sweep with error feedback.
//!
//! A vector of a table fixes `dim` columns at once. Of its errors `d` the columns behind make up for what they can; what is
//! left is `‖d U_bb^-1‖²` with `U_bb` the vector's own block of the Hessian's factor, so the nearest vector is sought in that
//! measure, and its errors then spread column by column as always. Tables that add up are searched one after the other.
//! Rows are scaled to one size first, so that all of them may share the tables. Without a Hessian the nearest is the nearest.
//!
//! ```text
//! scale{rows; codebook{table; codes}}    or, with more tables, scale{rows; sum{codebook, ..}}
//! ```
//! Source: van Baalen et al., "GPTVQ: The Blessing of Dimensionality for LLM Quantization", section 3; Egiazarian et al.,
//! "Extreme Compression of Large Language Models via Additive Quantization" (AQLM), section 3 (additive tables, whose codes
//! are refined by beam search there).

use super::grid::{packed_codes, scale_type, stored_scale, wide_enough};
use super::matrix::Matrix;
use super::palette::reacting_weights;
use super::sweep::{self, Prepared, Rounding, prepare};
use super::vector::{VectorParts, VectorSettings, VectorTable, vector_palette};
use super::{Candidate, Layer, Method, MethodError, Settings, dense, measured};
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::sum::sum;
use lapidary_ir::encodings::{Encoding, dense as plain, scale};
use lapidary_ir::{ElemType, Tensor};
use std::ops::Range;

/// The method: one table of at most 256 vectors.
pub static GPTVQ: Method = Method {
    name: "gptvq",
    summary: "codes of up to 8 bits for 2 to 8 neighbouring weights, with error feedback where there is a Hessian",
    source: "GPTVQ, section 3",
    needs_statistics: false,
    bits: 1..=4,
    propose: |layer, settings| {
        let longest = [8, 4, 2, 2][settings.bits.clamp(1, 4) as usize - 1];
        propose(layer, settings, longest, settings.bits, 1)
    },
};

/// The method: tables of 256 vectors of 8 weights that add up; `bits` counts them.
pub static AQLM: Method = Method {
    name: "aqlm",
    summary: "tables of 256 vectors of 8 weights that add up, with error feedback where there is a Hessian",
    source: "AQLM, section 3",
    needs_statistics: false,
    bits: 1..=4,
    propose: |layer, settings| propose(layer, settings, 8, 1, settings.bits as usize),
};

/// Rounds of k-means; more gain little.
const ROUNDS: usize = 25;

/// Tables of vectors of up to `longest` weights, with `bits` in each code for each weight.
fn propose(
    layer: &Layer,
    settings: &Settings,
    longest: usize,
    bits: u32,
    tables: usize,
) -> Result<Candidate, MethodError> {
    let weight = layer.weight();
    let (elem, mut assumptions) = wide_enough(scale_type(settings.scale_elem)?, weight);
    let row_scale = |r: usize| {
        let mean = weight.row(r).iter().map(|w| w * w).sum::<f64>() / weight.cols() as f64;
        stored_scale(mean.sqrt(), elem)
    };
    let scales: Vec<f64> = (0..weight.rows()).map(row_scale).collect();
    let level = Matrix::from_fn(weight.rows(), weight.cols(), |r, c| {
        weight[(r, c)] / scales[r]
    });
    // The longest vectors that divide a row.
    let dim = 1 << weight.cols().trailing_zeros().min(longest.trailing_zeros());
    let vector_settings = VectorSettings {
        dim,
        bits: bits * dim as u32,
        tables,
        rounds: ROUNDS,
        elem: ElemType::F16,
        seed: settings.seed,
    };
    let prepared = layer.statistics().map(|s| prepare(&s.hessian, 0.01, false));
    let importance = prepared.as_ref().map(reacting_weights);
    let mut parts = vector_palette(&level, importance.as_deref(), &vector_settings)?;
    if let Some(prepared) = &prepared {
        parts = with_feedback(&parts, &level, prepared);
        assumptions.extend(prepared.assumptions.iter().cloned());
    }
    let column = Matrix::new(scales.len(), 1, scales).expect("a scale for each row");
    let term = scale::scale(ElemType::F32, dense(elem, &column), encoding(&parts));
    measured(layer, term, assumptions)
}

/// The term of tables that add up, of codes of at most 8 bits.
fn encoding(parts: &VectorParts) -> Encoding {
    let one = |t: &VectorTable| {
        let (entries, dim) = (t.table.rows(), t.table.cols());
        let table = t.table.data().to_vec();
        let table = Tensor::from_f64(ElemType::F16, [1, 1, entries, dim], table);
        let codes: Vec<u8> = t.codes.iter().map(|&c| c as u8).collect();
        let codes = packed_codes(entries.ilog2(), &[parts.rows, parts.columns / dim], &codes);
        codebook(ElemType::F32, plain::from_tensor(&table), codes)
    };
    let mut terms: Vec<Encoding> = parts.tables.iter().map(one).collect();
    match terms.len() {
        1 => terms.remove(0),
        _ => sum(ElemType::F32, terms),
    }
}

/// Chooses the codes anew, by the column sweep of `weights` `[O, I]` with error feedback; tables stay. `prepared` is in the
/// weight's own order.
pub fn with_feedback(parts: &VectorParts, weights: &Matrix, prepared: &Prepared) -> VectorParts {
    let dim = parts.tables.first().map_or(1, |t| t.table.cols());
    let mut rounding = Vectors {
        tables: &parts.tables,
        upper: &prepared.upper,
        dim,
        turned: vec![],
        first: 0,
    };
    let mut swept = prepared.arrange(weights);
    let (rows, _) = sweep::sweep(&mut swept, &prepared.upper, sweep::BLOCK, &mut rounding);
    let tables = parts.tables.iter().enumerate().map(|(m, t)| VectorTable {
        table: t.table.clone(),
        codes: rows.iter().flat_map(|r| &r.codes[m]).copied().collect(),
    });
    VectorParts {
        tables: tables.collect(),
        ..*parts
    }
}

struct Vectors<'a> {
    tables: &'a [VectorTable],
    upper: &'a Matrix,
    dim: usize,
    /// For each vector of the block at hand, `U_bb^-1` and each table times it.
    turned: Vec<(Matrix, Vec<Matrix>)>,
    /// First column of the block.
    first: usize,
}

/// Codes of each table, and the values of the vector at hand.
struct VectorRow {
    codes: Vec<Vec<u16>>,
    values: Vec<f64>,
}

impl Rounding for Vectors<'_> {
    type Row = VectorRow;

    fn start(&self, _: usize) -> VectorRow {
        VectorRow {
            codes: vec![vec![]; self.tables.len()],
            values: vec![0.0; self.dim],
        }
    }

    fn group_len(&self) -> usize {
        self.dim
    }

    fn begin_block(&mut self, _: &Matrix, columns: Range<usize>) {
        self.first = columns.start;
        self.turned = columns
            .step_by(self.dim)
            .map(|at| {
                let own = at..at + self.dim;
                let back = inverse_upper_triangle(&self.upper.block(own.clone(), own));
                let turned = self.tables.iter().map(|t| t.table.mul(&back)).collect();
                (back, turned)
            })
            .collect();
    }

    fn begin_group(&self, state: &mut VectorRow, _: usize, columns: Range<usize>, part: &[f64]) {
        let (back, turned) = &self.turned[(columns.start - self.first) / self.dim];
        // w U_bb^-1, from which the turned vectors are taken one after the other.
        let mut left = vec![0.0; self.dim];
        for (k, w) in part[..self.dim].iter().enumerate() {
            left.iter_mut()
                .zip(back.row(k))
                .for_each(|(l, b)| *l += w * b);
        }
        state.values.fill(0.0);
        for ((table, turned), codes) in self.tables.iter().zip(turned).zip(&mut state.codes) {
            let mut best = (f64::INFINITY, 0);
            for k in 0..turned.rows() {
                let pairs = left.iter().zip(turned.row(k));
                let far: f64 = pairs.map(|(l, t)| (l - t) * (l - t)).sum();
                if far < best.0 {
                    best = (far, k);
                }
            }
            codes.push(best.1 as u16);
            left.iter_mut()
                .zip(turned.row(best.1))
                .for_each(|(l, t)| *l -= t);
            let entry = state.values.iter_mut().zip(table.table.row(best.1));
            entry.for_each(|(v, t)| *v += t);
        }
    }

    fn round(&self, state: &mut VectorRow, _: usize, column: usize, _: f64) -> f64 {
        state.values[column % self.dim]
    }
}

/// The inverse of a small upper triangular matrix, by back substitution.
fn inverse_upper_triangle(u: &Matrix) -> Matrix {
    let n = u.rows();
    let mut inverse = Matrix::zeros(n, n);
    for c in 0..n {
        for r in (0..=c).rev() {
            let above: f64 = (r + 1..=c).map(|k| u[(r, k)] * inverse[(k, c)]).sum();
            let own = f64::from(u8::from(r == c));
            inverse[(r, c)] = (own - above) / u[(r, r)];
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{random, tl1};

    fn settings(dim: usize, tables: usize) -> VectorSettings {
        VectorSettings {
            dim,
            bits: 6,
            tables,
            rounds: ROUNDS,
            elem: ElemType::F16,
            seed: 3,
        }
    }

    #[test]
    fn feedback_gains_on_the_reference_layer() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        let weights = reacting_weights(&prepared);
        for (dim, tables) in [(2, 1), (4, 1), (4, 2)] {
            let plain = vector_palette(&t.w, Some(&weights), &settings(dim, tables));
            let plain = plain.expect("sound");
            let fed = with_feedback(&plain, &t.w, &prepared);
            assert!(t.rel(&fed.decode(tables)) < 0.5 * t.rel(&plain.decode(tables)));
        }
    }

    #[test]
    fn vectors_of_one_weight_are_a_palette() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        let mut plain = vector_palette(&t.w, None, &settings(1, 1)).expect("sound");
        let mut levels: Vec<f64> = plain.tables[0].table.data().to_vec();
        levels.sort_by(f64::total_cmp);
        let entries = levels.len();
        plain.tables[0].table = Matrix::new(entries, 1, levels.clone()).expect("as many");
        let fed = with_feedback(&plain, &t.w, &prepared).decode(1);
        let palette = crate::methods::palette::PaletteParts {
            rows: 128,
            columns: 256,
            rows_per_table: 128,
            entries,
            tables: levels,
            codes: vec![],
        };
        let same = crate::methods::palette::with_feedback(&palette, &t.w, &prepared).decode();
        assert_eq!(fed, same);
    }

    #[test]
    fn an_identity_hessian_takes_the_nearest_vectors() {
        let w = random(20, 32, 5);
        let plain = vector_palette(&w, None, &settings(4, 1)).expect("sound");
        let prepared = prepare(&Matrix::identity(32), 0.0, false);
        assert_eq!(with_feedback(&plain, &w, &prepared), plain);
    }

    #[test]
    fn triangles_are_inverted() {
        let u = Matrix::from_fn(5, 5, |r, c| if r <= c { 1.0 + (r * c) as f64 } else { 0.0 });
        let product = u.mul(&inverse_upper_triangle(&u));
        assert!(product.sub(&Matrix::identity(5)).square_sum() < 1e-20);
    }
}
