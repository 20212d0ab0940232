//! Pruning without an update of what stays: by magnitude, or by Wanda's score.
//!
//! Magnitude keeps the largest `|w|`. Wanda keeps the largest `|w| ‖x‖`: a weight matters by what it adds to the output,
//! so inputs that are small make their weights unimportant however large these are. Inputs that never fired would make
//! all their weights equal; there the magnitude decides among them, below all others.
//! Source: Zhu, Gupta, "To Prune, or Not to Prune", section 3 (magnitude and the schedule); Sun et al., "A Simple and
//! Effective Pruning Approach for Large Language Models" (Wanda), section 3.

use super::matrix::Matrix;
use super::pattern::{Mask, Pattern, mask};
use super::statistics::Statistics;

/// Keeps the largest weights.
pub fn magnitude(weights: &Matrix, pattern: Pattern) -> Mask {
    mask(&weights.map(f64::abs), pattern)
}

/// Keeps the weights with the largest `|w| ‖x‖`.
pub fn wanda(weights: &Matrix, statistics: &Statistics, pattern: Pattern) -> Mask {
    mask(&wanda_scores(weights, &statistics.rms()), pattern)
}

/// `|w| ‖x‖` up to a common factor; below the smallest positive one, `|w|` of inputs that never fired.
fn wanda_scores(weights: &Matrix, rms: &[f64]) -> Matrix {
    let scored = |r: usize, c: usize| weights[(r, c)].abs() * rms[c];
    let scores = Matrix::from_fn(weights.rows(), weights.cols(), scored);
    if rms.iter().all(|&v| v > 0.0) {
        return scores;
    }
    let positive = scores.data().iter().copied().filter(|&s| s > 0.0);
    let least = positive.fold(f64::INFINITY, f64::min);
    let top = weights.data().iter().fold(0.0, |a: f64, w| a.max(w.abs()));
    let factor = if least.is_finite() && top > 0.0 {
        0.5 * least / top
    } else {
        1.0
    };
    Matrix::from_fn(weights.rows(), weights.cols(), |r, c| {
        if rms[c] > 0.0 {
            scores[(r, c)]
        } else {
            weights[(r, c)].abs() * factor
        }
    })
}

/// The cubic schedule of gradual pruning: sparsity at step `t` of `steps`, from `first` to `last`.
pub fn cubic_sparsity(first: f64, last: f64, t: usize, steps: usize) -> f64 {
    let left = 1.0 - (t.min(steps) as f64 / steps.max(1) as f64);
    last + (first - last) * left.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::grid::{GridSpec, Groups};
    use crate::methods::palette::reacting_weights;
    use crate::methods::rtn::round_to_nearest;
    use crate::methods::sweep::prepare;
    use crate::methods::testing::{near, random, tl1};
    use lapidary_ir::ElemType;

    #[test]
    fn scores_of_silent_inputs_are_below_all_others() {
        let w = Matrix::new(1, 4, vec![5.0, 0.1, 7.0, 0.2]).expect("lengths agree");
        let scores = wanda_scores(&w, &[0.0, 1.0, 0.0, 1.0]);
        let m = mask(&scores, Pattern::Rows { sparsity: 0.5 });
        assert_eq!(m.kept, [false, true, false, true]);
        let m = mask(&scores, Pattern::Rows { sparsity: 0.25 });
        assert_eq!(m.kept, [false, true, true, true]);
    }

    #[test]
    fn inputs_of_one_size_make_it_magnitude() {
        let w = random(6, 32, 4);
        let scores = wanda_scores(&w, &[3.0; 32]);
        let pattern = Pattern::Rows { sparsity: 0.4 };
        assert_eq!(mask(&scores, pattern), magnitude(&w, pattern));
    }

    #[test]
    fn half_of_all_groups_with_four_bit_codes_have_the_known_errors() {
        let t = tl1();
        let spec = GridSpec {
            bits: 4,
            symmetric: false,
            clip_exponent: None,
            scale_elem: ElemType::F16,
        };
        let rounded = round_to_nearest(&t.w, &spec, Groups::new(256, 16)).decode();
        let pattern = Pattern::Blocks {
            len: 16,
            sparsity: 0.5,
        };
        let error = |m: Mask| t.rel(&m.apply(&rounded));
        near(error(wanda(&t.w, &t.stats, pattern)), 0.1165, 0.01);
        near(error(magnitude(&t.w, pattern)), 0.3972, 0.03);
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        let reacting = reacting_weights(&prepared);
        let saliency = Matrix::from_fn(128, 256, |r, c| t.w[(r, c)].powi(2) * reacting[c]);
        near(error(mask(&saliency, pattern)), 0.1176, 0.01);
    }

    #[test]
    fn the_schedule_rises_from_first_to_last() {
        near(cubic_sparsity(0.1, 0.9, 0, 10), 0.1, 1e-12);
        near(cubic_sparsity(0.1, 0.9, 5, 10), 0.9 - 0.8 / 8.0, 1e-12);
        near(cubic_sparsity(0.1, 0.9, 10, 10), 0.9, 1e-12);
        let all: Vec<f64> = (0..=20).map(|t| cubic_sparsity(0.2, 0.8, t, 20)).collect();
        assert!(all.windows(2).all(|w| w[0] < w[1]));
    }
}
