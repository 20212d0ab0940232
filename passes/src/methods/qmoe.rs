//! QMoE: rows of three values, whose codes are words of a dictionary that is not stored.
//!
//! A row's grid is its smallest weight, zero and its largest. Weights are rounded to it by the column sweep, with the errors of those
//! before them, or without a Hessian to the nearest; outliers make the grid wide, so that most codes are zero. Runs of up to 28 codes
//! become a word of 16 bits: the more zeros, the fewer words, and below one bit a weight from about 83 % of zeros on.
//!
//! ```text
//! codebook{[0, min, max] of each row; coded{dictionary}}
//! ```
//! Source: Frantar, Alistarh, "QMoE: Practical Sub-1-Bit Compression of Trillion-Parameter Models", sections 3 and 4.

use super::matrix::Matrix;
use super::palette::PaletteParts;
use super::sweep::{self, Prepared, Rounding, prepare};
use super::{Method, candidate, threads};
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::coded::dictionary::dictionary;
use lapidary_ir::encodings::dense;
use lapidary_ir::minifloat::round_to;
use lapidary_ir::{ElemType, Tensor};
use std::ops::Range;

/// The method.
pub static QMOE: Method = Method {
    name: "qmoe",
    summary: "codes for a row's smallest weight, zero and its largest, as words of a fixed dictionary, with error feedback where there is a Hessian",
    source: "QMoE, sections 3 and 4",
    needs_statistics: false,
    bits: 2..=2,
    propose: |layer, _| {
        let prepared = layer
            .statistics()
            .map(|s| prepare(&s.hessian, DAMPING, false));
        let parts = min_max(layer.weight(), prepared.as_ref());
        let table = Tensor::from_f64(ENDS, [parts.rows, 1, 3, 1], parts.tables.clone());
        let codes = dictionary([parts.rows, parts.columns], &parts.codes);
        let encoding = codebook(ElemType::F32, dense::from_tensor(&table), codes);
        let assumptions = prepared.map_or(vec![], |p| p.assumptions);
        candidate(layer, encoding, &parts.decode(), assumptions)
    },
};

/// What the published method adds to the Hessian's diagonal, as a share of its mean: experts see few tokens.
const DAMPING: f64 = 0.1;

/// The type of a row's ends.
const ENDS: ElemType = ElemType::BF16;

/// Its largest number: those of `f32` above it would become infinite.
const LARGEST: f64 = 255.0 * (1u128 << 120) as f64;

/// Rows of `{min, 0, max}`: what exceeds half of the row's largest or smallest weight becomes that, the rest 0. By the
/// column sweep if a Hessian is given. Table entries are 0, min, max.
pub fn min_max(weights: &Matrix, prepared: Option<&Prepared>) -> PaletteParts {
    let ends: Vec<[f64; 2]> = (0..weights.rows())
        .map(|r| {
            let fold = |f: fn(f64, f64) -> f64| weights.row(r).iter().copied().fold(0.0, f);
            let stored = |v: f64| round_to(ENDS, v.clamp(-LARGEST, LARGEST));
            [stored(fold(f64::min)), stored(fold(f64::max))]
        })
        .collect();
    let mut rounding = MinMax {
        ends: &ends,
        columns: weights.cols(),
    };
    let codes: Vec<Vec<u8>> = match prepared {
        None => threads::map(weights.rows(), |r| {
            let row = weights.row(r).iter();
            row.map(|&w| min_max_code(w, &ends[r])).collect()
        }),
        Some(p) => {
            let mut swept = p.arrange(weights);
            sweep::sweep(&mut swept, &p.upper, sweep::BLOCK, &mut rounding).0
        }
    };
    PaletteParts {
        rows: weights.rows(),
        columns: weights.cols(),
        rows_per_table: 1,
        entries: 3,
        tables: ends.iter().flat_map(|e| [0.0, e[0], e[1]]).collect(),
        codes: codes.concat(),
    }
}

fn min_max_code(w: f64, ends: &[f64; 2]) -> u8 {
    if w > ends[1] / 2.0 {
        2
    } else if w < ends[0] / 2.0 {
        1
    } else {
        0
    }
}

struct MinMax<'a> {
    ends: &'a [[f64; 2]],
    columns: usize,
}

impl Rounding for MinMax<'_> {
    type Row = Vec<u8>;

    fn start(&self, _: usize) -> Vec<u8> {
        Vec::with_capacity(self.columns)
    }

    fn group_len(&self) -> usize {
        self.columns
    }

    fn begin_group(&self, _: &mut Vec<u8>, _: usize, _: Range<usize>, _: &[f64]) {}

    fn round(&self, codes: &mut Vec<u8>, row: usize, _: usize, weight: f64) -> f64 {
        let code = min_max_code(weight, &self.ends[row]);
        codes.push(code);
        [0.0, self.ends[row][0], self.ends[row][1]][usize::from(code)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, random, tl1};
    use crate::methods::{Layer, Settings};

    #[test]
    fn rows_of_extremes_have_the_known_errors() {
        let t = tl1();
        let zeros = |p: &PaletteParts| {
            p.codes.iter().filter(|&&c| c == 0).count() as f64 / p.codes.len() as f64
        };
        let plain = min_max(&t.w, None);
        near(t.rel(&plain.decode()), 0.590, 0.01);
        near(zeros(&plain), 0.833, 0.01);
        let prepared = prepare(&t.stats.hessian, DAMPING, false);
        let fed = min_max(&t.w, Some(&prepared));
        near(t.rel(&fed.decode()), 0.0751, 0.03);
        near(zeros(&fed), 0.774, 0.01);
        let empty = min_max(&Matrix::zeros(2, 5), None);
        assert_eq!(empty.decode(), Matrix::zeros(2, 5));
    }

    #[test]
    fn the_largest_weights_stay_finite() {
        let w = Matrix::from_fn(1, 4, |_, c| {
            f64::from(if c % 2 == 0 { f32::MAX } else { f32::MIN })
        });
        assert_eq!(min_max(&w, None).tables, [0.0, -LARGEST, LARGEST]);
    }

    /// The share of zeros of normal weights, by the grid alone.
    #[test]
    fn longer_rows_have_more_zeros() {
        for (width, golden) in [(768, 0.880), (3072, 0.921)] {
            let codes = min_max(&random(256, width, 1), None).codes;
            let zeros = codes.iter().filter(|&&c| c == 0).count();
            near(zeros as f64 / codes.len() as f64, golden, 0.01);
        }
    }

    #[test]
    fn many_zeros_take_less_than_a_bit() {
        let w = random(64, 3072, 2);
        let layer = Layer::new(&w, None).expect("sound");
        let found = (QMOE.propose)(&layer, &Settings::default()).expect("a candidate");
        let bits = 8.0 * found.bytes as f64 / (64.0 * 3072.0);
        assert!((16.0 / 28.0..0.75).contains(&bits), "{bits}");
    }
}
