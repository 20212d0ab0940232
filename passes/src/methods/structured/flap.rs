//! FLAP: inputs that hardly vary are taken out, and their mean goes to the bias.
//!
//! Without the columns `S` a layer loses `W_S x_S`. Its mean is constant and can be added back exactly, so what remains is
//! the covariance's part, `tr(W_S C_SS W_S^T)`; the score is the diagonal of that, `var(x_j) Σ_i w_ij²`. Scores are made
//! comparable over layers by each layer's mean and deviation, and the lowest of all go, each counted with the parameters
//! that it frees.
//! Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", section 3.

use crate::methods::lowrank::mean_fold;
use crate::methods::matrix::Matrix;
use crate::methods::statistics::Statistics;

/// The scores of the inputs of `weight` `[O, I]`, `[I]`.
pub fn scores(weight: &Matrix, statistics: &Statistics) -> Vec<f64> {
    let column = |c: usize| {
        (0..weight.rows())
            .map(|r| weight[(r, c)].powi(2))
            .sum::<f64>()
    };
    let variance = |c: usize| statistics.hessian[(c, c)] / 2.0 - statistics.mean[c].powi(2);
    (0..weight.cols())
        .map(|c| variance(c).max(0.0) * column(c))
        .collect()
}

/// Scores less their mean, by their deviation (of a sample: `n - 1`); zeros if all are equal.
pub fn standardize(scores: &[f64]) -> Vec<f64> {
    let n = scores.len().max(1) as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let square_sum: f64 = scores.iter().map(|s| (s - mean).powi(2)).sum();
    let deviation = (square_sum / (n - 1.0).max(1.0)).sqrt();
    let of = |s: &f64| {
        if deviation > 0.0 {
            (s - mean) / deviation
        } else {
            0.0
        }
    };
    scores.iter().map(of).collect()
}

/// Means of runs of `len` scores: the scores of heads from those of their channels.
pub fn by_heads(scores: &[f64], len: usize) -> Vec<f64> {
    let mean = |run: &[f64]| run.iter().sum::<f64>() / run.len() as f64;
    scores.chunks(len.max(1)).map(mean).collect()
}

/// What `weight` `[O, I]` adds to the layer's bias once these inputs are gone, `[O]`.
pub fn bias(weight: &Matrix, statistics: &Statistics, dropped: &[usize]) -> Vec<f64> {
    let mut mean = vec![0.0; weight.cols()];
    dropped.iter().for_each(|&c| mean[c] = statistics.mean[c]);
    mean_fold(weight, &mean)
}

/// A structure that may go: its score, standardized, and the parameters that it frees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Structure {
    /// The lower, the earlier it goes.
    pub score: f64,
    /// Parameters of all slices that go with it.
    pub parameters: usize,
}

/// The structures that go, in rising order of their places: the lowest scores, until the share `ratio` of all structures'
/// parameters is freed (never more). Of equal scores the earlier goes first.
pub fn choose(structures: &[Structure], ratio: f64) -> Vec<usize> {
    let all: usize = structures.iter().map(|s| s.parameters).sum();
    let most = (all as f64 * ratio.clamp(0.0, 1.0)) as usize;
    let mut order: Vec<usize> = (0..structures.len()).collect();
    order.sort_by(|&a, &b| structures[a].score.total_cmp(&structures[b].score));
    let mut freed = 0;
    let mut gone: Vec<usize> = order
        .into_iter()
        .take_while(|&k| {
            freed += structures[k].parameters;
            freed <= most
        })
        .collect();
    gone.sort_unstable();
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{correlated, near, random};

    /// Inputs with means of their own.
    fn shifted() -> (Matrix, Statistics, Matrix) {
        let base = correlated(48, 2000, 3);
        let shift = random(1, 48, 4);
        let rms = Statistics::from_inputs(&base).rms();
        let at = |r: usize, c: usize| base[(r, c)] + 3.0 * rms[c] * shift[(0, c)].abs();
        let x = Matrix::from_fn(2000, 48, at);
        let statistics = Statistics::from_inputs(&x);
        (x, statistics, random(20, 48, 5))
    }

    #[test]
    fn with_the_bias_what_is_lost_is_the_covariances_part() {
        let (x, statistics, w) = shifted();
        let scores = scores(&w, &statistics);
        let mut order: Vec<usize> = (0..48).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let gone = &order[..12];
        let lost = Matrix::from_fn(
            20,
            48,
            |r, c| if gone.contains(&c) { w[(r, c)] } else { 0.0 },
        );
        let bias = bias(&w, &statistics, gone);
        let y = x.mul_transposed(&lost);
        let left = Matrix::from_fn(2000, 20, |t, r| y[(t, r)] - bias[r]);
        let with = left.square_sum() / 2000.0;
        near(with, lost.quadratic(&statistics.covariance()), 1e-9);
        let without = y.square_sum() / 2000.0;
        near(without, lost.quadratic(&statistics.second_moment()), 1e-9);
        assert!(with < 0.3 * without, "{with} {without}");
        // The score is the diagonal's part of it.
        let diagonal: f64 = gone.iter().map(|&c| scores[c]).sum();
        let covariance = statistics.covariance();
        let direct =
            |c: &usize| covariance[(*c, *c)] * (0..20).map(|r| w[(r, *c)].powi(2)).sum::<f64>();
        near(diagonal, gone.iter().map(direct).sum(), 1e-9);
    }

    #[test]
    fn inputs_that_do_not_vary_go_first_and_cost_nothing() {
        let mut x = random(300, 6, 1);
        (0..300).for_each(|t| x[(t, 2)] = 5.0);
        let statistics = Statistics::from_inputs(&x);
        let w = random(4, 6, 2);
        let scores = scores(&w, &statistics);
        assert!(scores[2] < 1e-9 && (0..6).all(|c| c == 2 || scores[c] > 0.01));
        let bias = bias(&w, &statistics, &[2]);
        assert!((0..4).all(|r| (bias[r] - 5.0 * w[(r, 2)]).abs() < 1e-9));
    }

    #[test]
    fn layers_compete_by_deviations_and_structures_by_what_they_free() {
        let s = standardize(&[1.0, 2.0, 3.0]);
        assert_eq!(s, [-1.0, 0.0, 1.0]);
        assert_eq!(standardize(&[7.0; 3]), [0.0; 3]);
        assert_eq!(by_heads(&[1.0, 3.0, 10.0, 20.0], 2), [2.0, 15.0]);
        let of = |score, parameters| Structure { score, parameters };
        let all = [of(0.5, 100), of(-1.0, 10), of(-0.5, 10), of(2.0, 80)];
        assert_eq!(choose(&all, 0.1), [1, 2]);
        assert_eq!(choose(&all, 0.05), [1]);
        assert_eq!(choose(&all, 0.6), [0, 1, 2]);
        assert_eq!(choose(&all, 1.0), [0, 1, 2, 3]);
    }
}
