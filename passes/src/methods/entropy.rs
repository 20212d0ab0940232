//! Entropy-coded rounding: codes of a uniform grid without ends, stored in nearly the bits that they are worth.
//!
//! A grid that need not fit into `2^b` codes has one step for all weights, so it needs neither ranges nor scales of
//! groups: what they would cost goes to the codes, and frequent codes take less than rare ones. At a given size this loses
//! about half of what grids of groups lose. Three things make it better still. Codes are chosen by their error *and* their
//! length (what a bit saves is known: at the rate `R` the error falls as `4^-R`, so a bit is worth `ln 2 / 6` of a squared
//! step). With a Hessian, columns are swept with error feedback. There an error of column `j` counts `1 / U_jj²`, so steps
//! are best in proportion to `U_jj`; columns with like `U_jj` make up a *class* with a step and a code of its own, where
//! that gains more than the order of columns costs. Last, the steps are refitted to the codes by least squares.
//!
//! ```text
//! one class     affine{step; coded{rans}; zero}
//! more          gather{columns; concat{affine{..}, affine{..}, ..}}
//! ```
//! Source: Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm", section 5 (grids
//! without clipping behind an entropy coder); Sullivan, "Efficient Scalar Quantization of Exponential and Laplacian
//! Random Variables" (codes by error and length). Steps of classes are reverse water-filling over the errors' weights.

use super::factor::solve;
use super::grid::{index_type, stored_scale};
use super::matrix::Matrix;
use super::sweep::{self, Prepared, Rounding, prepare};
use super::{Candidate, Layer, Method, MethodError, Settings, candidate, threads};
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::coded::rans::rans;
use lapidary_ir::encodings::concat::concat;
use lapidary_ir::encodings::gather::gather;
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::{ElemType, Tensor};
use std::ops::Range;

/// The method.
pub static ENTROPY: Method = Method {
    name: "entropy",
    summary: "a uniform grid without ends, its codes behind an entropy coder, with error feedback where there is a Hessian",
    source: "The Geometry of LLM Quantization, section 5",
    needs_statistics: false,
    bits: 1..=6,
    propose,
};

/// Largest magnitude of a code: codes are bytes.
const MOST: i32 = 127;

/// Codes of a block of the coder; a block costs eight bytes and is decoded by itself.
const BLOCK_CODES: usize = 1 << 14;

/// What a bit saves, in squared steps: the slope of `step² / 12` as it falls by four with each bit.
const BIT: f64 = std::f64::consts::LN_2 / 6.0;

/// How near the bits for each weight must come to those asked, and how often that is tried.
const TOLERANCE: f64 = 0.01;
const MOST_ROUNDS: usize = 6;

/// Weights that the first step is found by.
const SAMPLE: usize = 1 << 16;

/// Codes of some columns on one grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Distance of two values, as `f32` holds it.
    pub step: f64,
    /// Codes, `[O, columns]`, row-major; 0 stands for 0.
    pub codes: Vec<i8>,
}

/// The codes of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct EntropyParts {
    /// Rows, `O`.
    pub rows: usize,
    /// The columns of each class, in rising order; together all `I` of them.
    pub columns: Vec<Vec<usize>>,
    /// A class for each.
    pub classes: Vec<Class>,
}

impl EntropyParts {
    fn column_count(&self) -> usize {
        self.columns.iter().map(Vec::len).sum()
    }

    /// The decoded weight, rounded to `f32` as the term decodes.
    pub fn decode(&self) -> Matrix {
        Matrix::from_rows(self.rows, self.column_count(), |r, out| {
            for (columns, class) in self.columns.iter().zip(&self.classes) {
                let codes = &class.codes[r * columns.len()..];
                for (&c, &code) in columns.iter().zip(codes) {
                    out[c] = f64::from((class.step * f64::from(code)) as f32);
                }
            }
        })
    }

    /// The term of `f32[O, I]`.
    pub fn encoding(&self) -> Encoding {
        let terms = self.columns.iter().zip(&self.classes);
        let mut terms: Vec<Encoding> = terms
            .map(|(columns, class)| class.encoding([self.rows, columns.len()]))
            .collect();
        if terms.len() == 1 {
            return terms.remove(0);
        }
        let mut place = vec![0; self.column_count()];
        let order = self.columns.iter().flatten().enumerate();
        order.for_each(|(k, &c)| place[c] = k as i128);
        let place = Tensor::from_int(index_type(place.len()), [place.len()], place);
        gather(1, dense::from_tensor(&place), concat(1, terms))
    }
}

impl Class {
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

    fn lengths(&self) -> Lengths {
        Lengths::of(self.codes.iter().map(|&c| i32::from(c)))
    }
}

/// Bits that the coder takes for each code from `-MOST` on.
#[derive(Clone)]
struct Lengths {
    bits: Vec<f64>,
    mean: f64,
}

impl Lengths {
    fn of(codes: impl Iterator<Item = i32>) -> Lengths {
        // Half an occurrence more of each: a code that did not occur yet may.
        let mut counts = vec![0.5; 2 * MOST as usize + 1];
        codes.for_each(|c| counts[(c + MOST) as usize] += 1.0);
        let all: f64 = counts.iter().sum();
        // The coder's frequencies are of 4096.
        let bits: Vec<f64> = counts.iter().map(|n| (all / n).log2().min(12.0)).collect();
        let mean = counts.iter().zip(&bits).map(|(n, b)| n * b).sum::<f64>() / all;
        Lengths { bits, mean }
    }

    fn at(&self, code: f64) -> f64 {
        self.bits[(code as i32 + MOST) as usize]
    }
}

/// Codes of `weight` `[O, I]` that take about `rate` bits for each weight, with all that is stored beside them; fewer
/// where not even the finest step takes as many. With a Hessian that is factored they are chosen by the column sweep,
/// and their steps fitted to it.
pub fn entropy(weight: &Matrix, hessian: Option<(&Matrix, &Prepared)>, rate: f64) -> EntropyParts {
    let swept = hessian.map_or_else(|| weight.clone(), |(_, p)| p.arrange(weight));
    let diagonal = hessian.map_or_else(|| vec![1.0; weight.cols()], |(_, p)| p.upper.diagonal());
    let grouping = Grouping::of(&diagonal, weight.rows());
    let (mut step, mut lengths) = grouping.first_step(&swept, rate);
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
        lengths = parts.classes.iter().map(Class::lengths).collect();
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
        step = match (fine, coarse) {
            (Some((low, more)), Some((high, less))) if more > less => {
                low + (high - low) * (more - rate) / (more - less)
            }
            // At high rates a step of twice the length saves a bit, at low ones less.
            _ => here.0 + ((bits - rate) / (1.0 - (-rate).exp2())).clamp(-2.0, 2.0),
        }
        .exp2();
    }
    let (_, parts) = best.expect("there was one round at least");
    refit(parts, weight, hessian.map(|(h, _)| h))
}

/// Which class each column is of, as columns are swept.
struct Grouping {
    class: Vec<usize>,
    /// Steps of the classes, with the geometric mean of all columns' being 1.
    relative: Vec<f64>,
}

impl Grouping {
    /// Classes of columns with like `diagonal` (of `U`): as many as gain the most bits after what they cost themselves.
    fn of(diagonal: &[f64], rows: usize) -> Grouping {
        let columns = diagonal.len();
        let mut order: Vec<usize> = (0..columns).collect();
        order.sort_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b]));
        let logs: Vec<f64> = diagonal.iter().map(|u| u.ln()).collect();
        let mean = |part: &[usize]| part.iter().map(|&c| logs[c]).sum::<f64>() / part.len() as f64;
        let all = mean(&order);
        let split = |count: usize| {
            let mut found = Grouping {
                class: vec![0; columns],
                relative: vec![],
            };
            for part in order.chunks(columns.div_ceil(count)) {
                part.iter()
                    .for_each(|&c| found.class[c] = found.relative.len());
                found.relative.push((mean(part) - all).exp());
            }
            found
        };
        // Half the logarithm of how much the error falls at the same mean rate.
        let loss = |g: &Grouping| {
            let of = |c: usize| (g.relative[g.class[c]] / diagonal[c]).powi(2);
            0.5 * (0..columns).map(of).sum::<f64>().log2()
        };
        let cost = |g: &Grouping| {
            let classes = g.relative.len() as f64;
            let index = if columns <= 0x100 { 8.0 } else { 16.0 };
            // Step, zero point, starts and a table of some twenty frequencies.
            let tables = 500.0 * classes / (rows * columns) as f64;
            tables
                + if classes > 1.0 {
                    index / rows as f64
                } else {
                    0.0
                }
        };
        let price = |g: &Grouping| loss(g) + cost(g);
        let counts = [1, 2, 4, 8, 16].into_iter().filter(|&n| n <= columns);
        let all = counts.map(split);
        all.min_by(|a, b| price(a).total_cmp(&price(b)))
            .expect("a weight has a column")
    }

    /// The step of each class.
    fn steps(&self, step: f64) -> Vec<f64> {
        let stored = |relative: &f64| stored_scale(step * relative, ElemType::F32);
        self.relative.iter().map(stored).collect()
    }

    /// The step at which codes that are rounded to nearest have the entropy `rate`, and their lengths. No step makes codes
    /// too large to store.
    fn first_step(&self, swept: &Matrix, rate: f64) -> (f64, Vec<Lengths>) {
        let every = (swept.rows() * swept.cols()).div_ceil(SAMPLE);
        let rows: Vec<&[f64]> = (0..swept.rows())
            .step_by(every)
            .map(|r| swept.row(r))
            .collect();
        let lengths = |step: f64| -> Vec<Lengths> {
            let steps = self.steps(step);
            let of = |k: usize| {
                let own = (0..self.class.len()).filter(move |&c| self.class[c] == k);
                let codes = own.flat_map(|c| rows.iter().map(move |r| r[c]));
                Lengths::of(codes.map(|w| nearest(w / steps[k]) as i32))
            };
            (0..steps.len()).map(of).collect()
        };
        let bits = |lengths: &[Lengths]| -> f64 {
            let all = self.class.iter().map(|&k| lengths[k].mean);
            all.sum::<f64>() / self.class.len() as f64
        };
        let top = |(r, k): (usize, usize)| swept.row(r)[k].abs() / self.relative[self.class[k]];
        let places = (0..swept.rows()).flat_map(|r| (0..swept.cols()).map(move |k| (r, k)));
        let top = places.map(top).fold(0.0, f64::max);
        if top == 0.0 {
            return (1.0, lengths(1.0));
        }
        let (mut low, mut high) = ((top / f64::from(MOST)).log2(), (2.0 * top).log2());
        for _ in 0..20 {
            let middle = (low + high) / 2.0;
            if bits(&lengths(middle.exp2())) > rate {
                low = middle;
            } else {
                high = middle;
            }
        }
        (high.exp2(), lengths(high.exp2()))
    }
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
    steps: Vec<f64>,
    lengths: &'a [Lengths],
}

impl Coding<'_> {
    /// The code of a weight in swept column `column`.
    fn code(&self, column: usize, weight: f64) -> f64 {
        let class = self.grouping.class[column];
        let place = weight / self.steps[class];
        let (low, high) = (nearest(place.floor()), nearest(place.ceil()));
        let price = |code: f64| (place - code).powi(2) + BIT * self.lengths[class].at(code);
        if price(high) < price(low) { high } else { low }
    }

    fn run(mut self, swept: &Matrix, prepared: Option<&Prepared>) -> EntropyParts {
        let rows = match prepared {
            Some(p) => sweep::sweep(&mut swept.clone(), &p.upper, sweep::BLOCK, &mut self).0,
            None => threads::map(swept.rows(), |r| {
                let row = swept.row(r).iter().enumerate();
                row.map(|(k, &w)| self.code(k, w) as i8).collect()
            }),
        };
        // Classes hold the weight's own columns in their order.
        let mut class = vec![0; swept.cols()];
        let mut place = vec![0; swept.cols()];
        for (k, &of) in self.grouping.class.iter().enumerate() {
            let own = prepared.map_or(k, |p| p.order[k]);
            (class[own], place[own]) = (of, k);
        }
        let of = |k: usize| {
            (0..class.len())
                .filter(|&c| class[c] == k)
                .collect::<Vec<_>>()
        };
        let columns: Vec<Vec<usize>> = (0..self.steps.len()).map(of).collect();
        let codes = |columns: &Vec<usize>| {
            let row = |row: &Vec<i8>| columns.iter().map(|&c| row[place[c]]).collect::<Vec<i8>>();
            rows.iter().flat_map(row).collect()
        };
        let classes = columns
            .iter()
            .zip(&self.steps)
            .map(|(columns, &step)| Class {
                step,
                codes: codes(columns),
            });
        EntropyParts {
            rows: swept.rows(),
            classes: classes.collect(),
            columns,
        }
    }
}

impl Rounding for Coding<'_> {
    type Row = Vec<i8>;

    fn start(&self, _: usize) -> Vec<i8> {
        Vec::with_capacity(self.grouping.class.len())
    }

    fn group_len(&self) -> usize {
        1
    }

    fn begin_group(&self, _: &mut Vec<i8>, _: usize, _: Range<usize>, _: &[f64]) {}

    fn round(&self, codes: &mut Vec<i8>, _: usize, column: usize, weight: f64) -> f64 {
        let code = self.code(column, weight);
        codes.push(code as i8);
        self.steps[self.grouping.class[column]] * code
    }
}

/// Steps that lose least of the outputs with these codes: the quadratic form in one number for each class.
fn refit(mut parts: EntropyParts, weight: &Matrix, hessian: Option<&Matrix>) -> EntropyParts {
    let (decoded, count) = (parts.decode(), parts.classes.len());
    let (mut a, mut b) = (Matrix::zeros(count, count), Matrix::zeros(count, 1));
    for (k, columns) in parts.columns.iter().enumerate() {
        let own = decoded.select_columns(columns);
        let product = match hessian {
            Some(h) => own.mul_transposed(&h.select_columns(columns)),
            None => decoded.clone(),
        };
        b[(k, 0)] = product.zip(weight, |p, w| p * w).data().iter().sum();
        for (l, columns) in parts.columns.iter().enumerate() {
            let (x, y) = (
                product.select_columns(columns),
                decoded.select_columns(columns),
            );
            a[(k, l)] = x.zip(&y, |x, y| x * y).data().iter().sum();
        }
    }
    // Classes of zeros alone keep their steps.
    let ridge = a.diagonal().iter().sum::<f64>() / count as f64 * 1e-10 + f64::MIN_POSITIVE;
    (0..count).for_each(|k| {
        a[(k, k)] += ridge;
        b[(k, 0)] += ridge;
    });
    if let Ok(factors) = solve(&a, &b)
        && factors.data().iter().all(|f| (0.5..2.0).contains(f))
    {
        for (class, f) in parts.classes.iter_mut().zip(factors.data()) {
            class.step = stored_scale(class.step * f, ElemType::F32);
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
    let prepared = layer.statistics().map(|s| prepare(&s.hessian, 0.01, true));
    let hessian = layer
        .statistics()
        .map(|s| &s.hessian)
        .zip(prepared.as_ref());
    let parts = entropy(layer.weight(), hessian, rate);
    let (encoding, decoded) = (parts.encoding(), parts.decode());
    let assumptions = prepared.map_or(vec![], |p| p.assumptions);
    candidate(layer, encoding, &decoded, assumptions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::gptq::{GptqSettings, Order, gptq};
    use crate::methods::grid::{GridSpec, Groups};
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
            let spec = GridSpec {
                bits,
                symmetric: false,
                clip_exponent: None,
                scale_elem: ElemType::F16,
                scale_bits: 0,
            };
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
    fn classes_are_made_where_they_gain() {
        let steep: Vec<f64> = (0..64).map(|i| f64::from(i + 1)).collect();
        assert!(Grouping::of(&steep, 1000).relative.len() > 1);
        // Four rows cannot pay for the order of their columns.
        assert_eq!(Grouping::of(&steep, 4).relative.len(), 1);
        assert_eq!(Grouping::of(&[2.0; 64], 1000).relative, [1.0]);
        let found = Grouping::of(&steep, 1000);
        let logs = found.class.iter().map(|&k| found.relative[k].ln());
        assert!(logs.sum::<f64>().abs() < 1e-9);
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
        for k in 0..parts.classes.len() {
            for factor in [0.98, 1.02] {
                let kept = parts.classes[k].step;
                parts.classes[k].step *= factor;
                assert!(t.rel(&parts.decode()) > fitted);
                parts.classes[k].step = kept;
            }
        }
    }
}
