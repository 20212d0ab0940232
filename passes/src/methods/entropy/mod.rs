//! Entropy-coded rounding: codes of a uniform grid without ends, stored in nearly the bits that they are worth.
//!
//! A grid that need not fit into `2^b` codes has one step for all weights, so it needs neither ranges nor scales of
//! groups: what they would cost goes to the codes, and frequent codes take less than rare ones. At a given size this loses
//! less than half of what grids of groups lose. Three things make it better still. Codes are chosen by their error *and* their
//! length (what a bit saves is known: at the rate `R` the error falls as `4^-R`, so a bit is worth `ln 2 / 6` of a squared
//! step). With a Hessian, columns are swept with error feedback. There an error of column `j` counts `1 / U_jj²`, so steps
//! are best in proportion to `U_jj`; columns with like `U_jj` make up a *class* with a step and a table of its own, as do rows
//! of like size ([`grouping`]). Last, the steps are refitted to the codes by least squares.
//!
//! ```text
//! one class     affine{step; coded{rans}; zero}
//! more          gather{rows; gather{columns; concat{concat{affine{..}, ..}, ..}}}
//! ```
//! Source: Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm" (error feedback on grids
//! without clipping); Sullivan, "Efficient Scalar Quantization of Exponential and Laplacian Random Variables" (codes by
//! error and length). Steps of classes are reverse water-filling over the weights of errors (Cover, Thomas, "Elements of
//! Information Theory", section 10.3.3).

mod grouping;
mod parts;

pub use parts::{Block, EntropyParts};

use super::factor::solve;
use super::grid::stored_scale;
use super::matrix::Matrix;
use super::sweep::{self, Prepared, Rounding};
use super::{Candidate, Layer, Method, MethodError, Settings, candidate, threads};
use grouping::Grouping;
use lapidary_ir::ElemType;
use parts::Lengths;
use std::ops::Range;

/// The method.
pub static ENTROPY: Method = Method {
    name: "entropy",
    summary: "a uniform grid without ends, its codes behind an entropy coder, with error feedback where there is a Hessian",
    source: "The Geometry of LLM Quantization (grids without clipping)",
    needs_statistics: false,
    bits: 1..=6,
    propose,
};

/// Largest magnitude of a code: codes are bytes.
const MOST: i32 = 127;

/// What a bit saves, in squared steps: the slope of `step² / 12` as it falls by four with each bit.
const BIT: f64 = std::f64::consts::LN_2 / 6.0;

/// How near the bits for each weight must come to those asked, and how often that is tried.
const TOLERANCE: f64 = 0.01;
const MOST_ROUNDS: usize = 6;

/// Codes of `weight` `[O, I]` that take about `rate` bits for each weight, with all that is stored beside them; fewer
/// where not even the finest step takes as many. With a Hessian that is factored they are chosen by the column sweep,
/// and their steps fitted to it.
pub fn entropy(weight: &Matrix, hessian: Option<(&Matrix, &Prepared)>, rate: f64) -> EntropyParts {
    let swept = hessian.map_or_else(|| weight.clone(), |(_, p)| p.arrange(weight));
    let diagonal = hessian.map_or_else(|| vec![1.0; weight.cols()], |(_, p)| p.upper.diagonal());
    let (grouping, mut step) = Grouping::of(&swept, &diagonal, rate);
    let least = grouping.least_step(&swept);
    let mut lengths = grouping.lengths(&swept, &grouping.rows, step);
    let mut best: Option<(f64, EntropyParts)> = None;
    // The logarithms of the nearest steps that take more bits and fewer, and their bits.
    let (mut fine, mut coarse): (Option<(f64, f64)>, Option<(f64, f64)>) = (None, None);
    for _ in 0..MOST_ROUNDS {
        let rounding = Coding {
            steps: grouping.steps(step),
            grouping: &grouping,
            lengths: &lengths,
        };
        let parts = rounding.run(&swept, hessian.map(|(_, p)| p));
        let bits = parts.encoding().bits_per_weight();
        lengths = parts.blocks.iter().map(Block::lengths).collect();
        let off = (bits - rate).abs();
        if best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, parts));
        }
        if off < TOLERANCE {
            break;
        }
        let here = (step.log2(), bits);
        if bits > rate {
            fine = Some(here)
        } else {
            coarse = Some(here)
        }
        let next = match (fine, coarse) {
            (Some((low, more)), Some((high, less))) if more > less => {
                low + (high - low) * (more - rate) / (more - less)
            }
            // At high rates a step of twice the length saves a bit, at low ones less.
            _ => here.0 + ((bits - rate) / (1.0 - (-rate).exp2())).clamp(-2.0, 2.0),
        };
        let next = next.exp2().max(least);
        if next == step {
            break;
        }
        step = next;
    }
    let (_, parts) = best.expect("there was one round at least");
    refit(parts, weight, hessian.map(|(h, _)| h))
}

/// The nearest code.
fn nearest(place: f64) -> f64 {
    place
        .round_ties_even()
        .clamp(-f64::from(MOST), f64::from(MOST))
}

/// Rounding by error and length.
struct Coding<'a> {
    grouping: &'a Grouping,
    /// By classes of columns.
    steps: Vec<f64>,
    /// By classes of rows and of columns.
    lengths: &'a [Lengths],
}

impl Coding<'_> {
    /// The code of a weight in a row and a swept column.
    fn code(&self, row: usize, column: usize, weight: f64) -> f64 {
        let class = self.grouping.columns[column];
        let lengths = &self.lengths[self.grouping.rows[row] * self.steps.len() + class];
        let place = weight / self.steps[class];
        let (low, high) = (nearest(place.floor()), nearest(place.ceil()));
        let price = |code: f64| (place - code).powi(2) + BIT * lengths.at(code);
        if price(high) < price(low) { high } else { low }
    }

    fn run(mut self, swept: &Matrix, prepared: Option<&Prepared>) -> EntropyParts {
        let coded: Vec<Vec<i8>> = match prepared {
            Some(p) => sweep::sweep(&mut swept.clone(), &p.upper, sweep::BLOCK, &mut self).0,
            None => threads::map(swept.rows(), |r| {
                let row = swept.row(r).iter().enumerate();
                row.map(|(k, &w)| self.code(r, k, w) as i8).collect()
            }),
        };
        // Blocks hold the weight's own columns in their order.
        let mut place: Vec<usize> = (0..swept.cols()).collect();
        if let Some(p) = prepared {
            p.order
                .iter()
                .enumerate()
                .for_each(|(k, &own)| place[own] = k);
        }
        let of = |class: usize| {
            let own = |&c: &usize| self.grouping.columns[place[c]] == class;
            (0..place.len()).filter(own).collect()
        };
        let columns: Vec<Vec<usize>> = (0..self.steps.len()).map(of).collect();
        let bands = self.lengths.len() / self.steps.len();
        let of = |band: usize| {
            let own = |&r: &usize| self.grouping.rows[r] == band;
            (0..swept.rows()).filter(own).collect()
        };
        let rows: Vec<Vec<usize>> = (0..bands).map(of).collect();
        let block = |rows: &[usize], columns: &[usize], step: f64| {
            let row = |&r: &usize| {
                columns
                    .iter()
                    .map(|&c| coded[r][place[c]])
                    .collect::<Vec<i8>>()
            };
            let codes = rows.iter().flat_map(row).collect();
            Block { step, codes }
        };
        let pairs = rows.iter().flat_map(|r| {
            let across = columns.iter().zip(&self.steps);
            across.map(move |(c, &step)| (r, c, step))
        });
        EntropyParts {
            blocks: pairs.map(|(r, c, step)| block(r, c, step)).collect(),
            rows,
            columns,
        }
    }
}

impl Rounding for Coding<'_> {
    type Row = Vec<i8>;

    fn start(&self, _: usize) -> Vec<i8> {
        Vec::with_capacity(self.grouping.columns.len())
    }

    fn group_len(&self) -> usize {
        1
    }

    fn begin_group(&self, _: &mut Vec<i8>, _: usize, _: Range<usize>, _: &[f64]) {}

    fn round(&self, codes: &mut Vec<i8>, row: usize, column: usize, weight: f64) -> f64 {
        let code = self.code(row, column, weight);
        codes.push(code as i8);
        self.steps[self.grouping.columns[column]] * code
    }
}

/// Steps that lose least of the outputs with these codes: for each class of rows, the quadratic form in one number for each
/// class of columns.
fn refit(mut parts: EntropyParts, weight: &Matrix, hessian: Option<&Matrix>) -> EntropyParts {
    let (decoded, count) = (parts.decode(), parts.columns.len());
    // The part of the output's gradient that each class of columns has.
    let products: Vec<Matrix> = parts
        .columns
        .iter()
        .map(|columns| {
            let own = decoded.select_columns(columns);
            match hessian {
                Some(h) => own.mul_transposed(&h.select_columns(columns)),
                None => {
                    let mut alone = Matrix::zeros(decoded.rows(), decoded.cols());
                    for r in 0..decoded.rows() {
                        columns
                            .iter()
                            .for_each(|&c| alone[(r, c)] = decoded[(r, c)]);
                    }
                    alone
                }
            }
        })
        .collect();
    for (rows, blocks) in parts.rows.iter().zip(parts.blocks.chunks_mut(count)) {
        let (mut a, mut b) = (Matrix::zeros(count, count), Matrix::zeros(count, 1));
        for (k, product) in products.iter().enumerate() {
            for &r in rows {
                let row = product.row(r);
                b[(k, 0)] += row
                    .iter()
                    .zip(weight.row(r))
                    .map(|(p, w)| p * w)
                    .sum::<f64>();
                for (l, columns) in parts.columns.iter().enumerate() {
                    let own = columns.iter().map(|&c| row[c] * decoded[(r, c)]);
                    a[(k, l)] += own.sum::<f64>();
                }
            }
        }
        // Blocks of zeros alone keep their steps.
        let ridge = a.diagonal().iter().sum::<f64>() / count as f64 * 1e-10 + f64::MIN_POSITIVE;
        for k in 0..count {
            a[(k, k)] += ridge;
            b[(k, 0)] += ridge;
        }
        let Ok(factors) = solve(&a, &b) else {
            continue;
        };
        if factors.data().iter().all(|f| (0.5..2.0).contains(f)) {
            for (block, f) in blocks.iter_mut().zip(factors.data()) {
                block.step = stored_scale(block.step * f, ElemType::F32);
            }
        }
    }
    parts
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let rate = if settings.rate > 0.0 {
        settings.rate
    } else {
        f64::from(settings.bits)
    };
    if !(0.25..=6.0).contains(&rate) {
        return Err(MethodError::Settings(format!(
            "from 0.25 to 6 bits for each weight, not {rate}"
        )));
    }
    let hessian = layer.statistics().map(|s| (&s.hessian, s.prepared()));
    let parts = entropy(layer.weight(), hessian, rate);
    let (encoding, decoded) = (parts.encoding(), parts.decode());
    let assumptions = hessian.map_or(vec![], |(_, p)| p.assumptions.clone());
    candidate(layer, encoding, &decoded, assumptions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::gptq::{GptqSettings, Order, gptq};
    use crate::methods::grid::Groups;
    use crate::methods::sweep::prepare;
    use crate::methods::testing::{mse, near, random, tl1};

    #[test]
    fn errors_of_normals_are_those_that_theory_states() {
        let w = random(256, 512, 3);
        for rate in [3.0, 4.0, 5.0] {
            let parts = entropy(&w, None, rate);
            near(parts.encoding().bits_per_weight(), rate, 0.01);
            // Uniform grids lose pi e / 6 of what any code must at high rates.
            let want = std::f64::consts::PI * std::f64::consts::E / 6.0 * 4f64.powf(-rate);
            near(mse(&w, &parts.decode()), want, 0.03);
        }
        // At two bits the best scalar table without a coder has 0.1175, the lattice E8P 0.0916.
        near(mse(&w, &entropy(&w, None, 2.0).decode()), 0.088, 0.02);
    }

    #[test]
    fn any_rate_is_met() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, true);
        for rate in [1.0, 1.6, 2.5, 3.3, 4.7] {
            for hessian in [None, Some((&t.stats.hessian, &prepared))] {
                let bits = entropy(&t.w, hessian, rate).encoding().bits_per_weight();
                assert!((bits - rate).abs() < 0.05, "{bits} for {rate}");
            }
        }
    }

    #[test]
    fn it_beats_grids_of_more_bits_on_the_reference_layer() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, true);
        for bits in [2, 3, 4] {
            let spec = crate::methods::testing::grid(bits);
            let grid = GptqSettings {
                spec,
                groups: Groups::new(256, 64),
                damping: 0.01,
                order: Order::StaticGroups,
                block: sweep::BLOCK,
            };
            let grid = gptq(&t.w, &t.stats.hessian, &grid).parts;
            let parts = entropy(&t.w, Some((&t.stats.hessian, &prepared)), f64::from(bits));
            assert!(parts.encoding().stored_bytes() < grid.encoding().stored_bytes());
            assert!(t.rel(&parts.decode()) < 0.6 * t.rel(&grid.decode()));
        }
    }

    #[test]
    fn far_outliers_are_kept_and_bits_given_up() {
        let mut w = random(64, 128, 5);
        w[(3, 7)] = 2000.0;
        let parts = entropy(&w, None, 4.0);
        assert!(parts.encoding().bits_per_weight() < 1.5);
        let far = (parts.decode()[(3, 7)] - 2000.0).abs();
        assert!(far < 2000.0 / f64::from(MOST), "{far}");
    }

    #[test]
    fn an_identity_hessian_changes_nothing() {
        let w = random(40, 64, 7);
        let h = Matrix::identity(64);
        let prepared = prepare(&h, 0.01, true);
        assert_eq!(
            entropy(&w, Some((&h, &prepared)), 3.0),
            entropy(&w, None, 3.0)
        );
    }

    #[test]
    fn fitted_steps_lose_less() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, true);
        let mut parts = entropy(&t.w, Some((&t.stats.hessian, &prepared)), 2.0);
        let fitted = t.rel(&parts.decode());
        for k in 0..parts.blocks.len() {
            for factor in [0.98, 1.02] {
                let kept = parts.blocks[k].step;
                parts.blocks[k].step *= factor;
                assert!(t.rel(&parts.decode()) > fitted);
                parts.blocks[k].step = kept;
            }
        }
    }
}
