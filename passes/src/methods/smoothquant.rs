//! SmoothQuant: moves the spread of inputs into the weight, so that both can be 8-bit codes.
//!
//! Input channels with outliers force a coarse step on all of them. Each channel is divided by `s = max|x|^α /
//! max|w|^(1-α)` and the weight's column multiplied by it; `α = 0.5` balances the two ranges. The weight then has one
//! scale for each row, the input one for the tensor or for each token.
//! Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
//! section 4.

use super::matrix::Matrix;
use super::statistics::Statistics;
use super::threads;

/// The factors that inputs are divided by and columns multiplied, `[I]`.
pub fn factors(weight: &Matrix, max_abs_input: &[f64], alpha: f64) -> Vec<f64> {
    let mut columns = vec![0f64; weight.cols()];
    for r in 0..weight.rows() {
        let row = columns.iter_mut().zip(weight.row(r));
        row.for_each(|(m, w)| *m = m.max(w.abs()));
    }
    balance(max_abs_input, &columns, alpha)
}

/// The factors of inputs with these largest values, whose columns have these, `[I]` all.
pub fn balance(max_abs_input: &[f64], max_abs_column: &[f64], alpha: f64) -> Vec<f64> {
    let pairs = max_abs_input.iter().zip(max_abs_column);
    pairs
        .map(|(x, w)| x.max(1e-5).powf(alpha) / w.max(1e-5).powf(1.0 - alpha))
        .collect()
}

/// Symmetric codes `-127..=127` with a scale for each row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCodes {
    /// Columns.
    pub columns: usize,
    /// Codes, row-major.
    pub codes: Vec<i8>,
    /// Scale of each row.
    pub scales: Vec<f64>,
}

impl RowCodes {
    /// Codes of the rows of `m`; with `one_scale`, all rows share the scale of the largest value.
    pub fn quantize(m: &Matrix, one_scale: bool) -> RowCodes {
        let largest = |v: &[f64]| v.iter().fold(0f64, |a, x| a.max(x.abs()));
        let scale = |top: f64| {
            if top > 0.0 {
                f64::from((top / 127.0) as f32)
            } else {
                1.0
            }
        };
        let shared = one_scale.then(|| scale(largest(m.data())));
        let rows = threads::map(m.rows(), |r| {
            let step = shared.unwrap_or_else(|| scale(largest(m.row(r))));
            let code = |v: &f64| (v / step).round_ties_even().clamp(-127.0, 127.0) as i8;
            (step, m.row(r).iter().map(code).collect::<Vec<i8>>())
        });
        RowCodes {
            columns: m.cols(),
            scales: rows.iter().map(|r| r.0).collect(),
            codes: rows.into_iter().flat_map(|r| r.1).collect(),
        }
    }

    /// The decoded matrix.
    pub fn decode(&self) -> Matrix {
        Matrix::from_rows(self.scales.len(), self.columns, |r, out| {
            let codes = &self.codes[r * self.columns..];
            out.iter_mut()
                .zip(codes)
                .for_each(|(o, &c)| *o = self.scales[r] * f64::from(c));
        })
    }
}

/// A weight that is ready for products of 8-bit codes.
#[derive(Clone, Debug)]
pub struct Smoothed {
    /// Exponent.
    pub alpha: f64,
    /// What inputs are divided by, `[I]`.
    pub factors: Vec<f64>,
    /// The multiplied weight as codes, a scale for each row.
    pub weight: RowCodes,
    /// Predicted relative output error, by [`predicted_error`].
    pub predicted_error: f64,
}

/// Smooths `weight` `[O, I]` with the exponent, of those given, whose predicted error is least; `None` if there is none.
pub fn smooth(weight: &Matrix, statistics: &Statistics, alphas: &[f64]) -> Option<Smoothed> {
    let trials = alphas.iter().map(|&alpha| {
        let factors = factors(weight, &statistics.max_abs, alpha);
        let scaled = weight.scale_columns(&factors);
        let codes = RowCodes::quantize(&scaled, false);
        Smoothed {
            alpha,
            predicted_error: predicted_error(weight, statistics, &factors, &scaled, &codes),
            factors,
            weight: codes,
        }
    });
    trials.min_by(|a, b| a.predicted_error.total_cmp(&b.predicted_error))
}

/// Relative output error of codes for weight and input: the weight's by the Hessian, the input's (one scale for the
/// tensor) as noise of variance `step² / 12` in each channel.
fn predicted_error(
    weight: &Matrix,
    statistics: &Statistics,
    factors: &[f64],
    scaled: &Matrix,
    codes: &RowCodes,
) -> f64 {
    let back: Vec<f64> = factors.iter().map(|f| 1.0 / f).collect();
    let delta = scaled.sub(&codes.decode()).scale_columns(&back);
    let reach = statistics.max_abs.iter().zip(&back);
    let step = reach.map(|(x, b)| x * b).fold(0.0, f64::max) / 127.0;
    // The Hessian is twice the second moment.
    let noise = 2.0 * step * step / 12.0 * scaled.square_sum();
    let energy = weight.quadratic(&statistics.hessian);
    if energy > 0.0 {
        (delta.quadratic(&statistics.hessian) + noise) / energy
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, tl1};

    fn error(w: &Matrix, x: &Matrix, f: &[f64], by_token: bool) -> f64 {
        let back: Vec<f64> = f.iter().map(|f| 1.0 / f).collect();
        let weight = RowCodes::quantize(&w.scale_columns(f), false).decode();
        let input = RowCodes::quantize(&x.scale_columns(&back), !by_token).decode();
        let y = x.mul_transposed(w);
        y.sub(&input.mul_transposed(&weight)).square_sum() / y.square_sum()
    }

    fn with_outlier() -> (Matrix, Statistics) {
        let mut x = tl1().x.clone();
        (0..x.rows()).for_each(|r| x[(r, 7)] *= 50.0);
        let stats = Statistics::from_inputs(&x);
        (x, stats)
    }

    #[test]
    fn errors_with_an_outlier_channel_are_the_known_ones() {
        let (w, (x, stats)) = (&tl1().w, with_outlier());
        near(error(w, &x, &[1.0; 256], false), 8.16e-3, 0.02);
        for (alpha, golden) in [
            (0.25, 1.23e-3),
            (0.5, 1.71e-4),
            (0.75, 1.59e-4),
            (0.85, 3.35e-4),
        ] {
            let f = factors(w, &stats.max_abs, alpha);
            near(error(w, &x, &f, false), golden, 0.02);
        }
    }

    #[test]
    fn the_predicted_best_exponent_is_near_the_measured_one() {
        let (w, (x, stats)) = (&tl1().w, with_outlier());
        let alphas: Vec<f64> = (0..20).map(|i| f64::from(i) * 0.05).collect();
        let found = smooth(w, &stats, &alphas).expect("there are exponents");
        let measured = |a: f64| error(w, &x, &factors(w, &stats.max_abs, a), false);
        let best = alphas
            .iter()
            .map(|&a| measured(a))
            .fold(f64::INFINITY, f64::min);
        assert!(
            found.alpha > 0.1 && found.alpha < 0.94,
            "the minimum is inside"
        );
        assert!(measured(found.alpha) < 1.3 * best);
        near(found.predicted_error, measured(found.alpha), 0.5);
    }

    #[test]
    fn a_scale_for_each_token_loses_less_than_one_for_all() {
        let (w, (x, stats)) = (&tl1().w, with_outlier());
        for f in [vec![1.0; 256], factors(w, &stats.max_abs, 0.5)] {
            assert!(error(w, &x, &f, true) < error(w, &x, &f, false));
        }
    }

    #[test]
    fn smoothing_without_rounding_changes_nothing() {
        let (w, (x, stats)) = (&tl1().w, with_outlier());
        let f = factors(w, &stats.max_abs, 0.5);
        let back: Vec<f64> = f.iter().map(|f| 1.0 / f).collect();
        let y = x.mul_transposed(w);
        let moved = x.scale_columns(&back).mul_transposed(&w.scale_columns(&f));
        assert!(y.sub(&moved).square_sum() / y.square_sum() < 1e-20);
        assert!(smooth(w, &stats, &[]).is_none());
    }
}
