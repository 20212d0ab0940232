//! Pruning without an update of what stays: by magnitude, or by Wanda's score.
//!
//! Magnitude keeps the largest `|w|`. Wanda keeps the largest `|w| ‖x‖`: a weight matters by what it adds to the output,
//! so inputs that are small make their weights unimportant however large these are. Inputs that never fired would make
//! all their weights equal; there the magnitude decides among them, below all others.
//! Source: Zhu, Gupta, "To Prune, or Not to Prune", section 3 (magnitude and the schedule); Sun et al., "A Simple and
//! Effective Pruning Approach for Large Language Models" (Wanda), section 3.

use super::grid::{AffineParts, GridSpec, Groups, scale_type};
use super::matrix::Matrix;
use super::pattern::{Mask, Pattern, mask};
use super::statistics::Statistics;
use super::{Candidate, Layer, Method, MethodError, Settings, sparse};

/// The method: keeps the largest weights.
pub static MAGNITUDE: Method = Method {
    name: "magnitude",
    summary: "keeps the largest weights, as codes or (above 8 bits) as floats",
    source: "To Prune, or Not to Prune, section 3",
    needs_statistics: false,
    bits: 2..=16,
    propose: |layer, settings| masked(layer, settings, magnitude(layer.weight(), settings.pattern)),
};

/// The method: keeps the weights that add most to the output.
pub static WANDA: Method = Method {
    name: "wanda",
    summary: "keeps the weights with the largest |w| |x|, as codes or (above 8 bits) as floats",
    source: "A Simple and Effective Pruning Approach for Large Language Models, section 3",
    needs_statistics: true,
    bits: 2..=16,
    propose: |layer, settings| {
        let statistics = layer.needed_statistics()?;
        masked(
            layer,
            settings,
            wanda(layer.weight(), statistics, settings.pattern),
        )
    },
};

/// What a mask keeps, as it is or rounded to nearest.
fn masked(layer: &Layer, settings: &Settings, mask: Mask) -> Result<Candidate, MethodError> {
    let kept = mask.apply(layer.weight());
    let Some(spec) = kept_grid(settings)? else {
        return sparse::values(layer, &kept, &mask, settings.pattern, settings.scale_elem);
    };
    let groups = Groups::new(kept.cols(), settings.group_len);
    let parts = AffineParts::quantize(&kept, &spec, groups, |_, _, part| spec.fit(part));
    sparse::codes(layer, &parts, &mask, settings.pattern)
}

/// The grid that kept weights are rounded to: symmetric, so that what is dropped is code 0 everywhere. None where they
/// stay floats.
pub(super) fn kept_grid(settings: &Settings) -> Result<Option<GridSpec>, MethodError> {
    if settings.bits > 8 {
        return scale_type(settings.scale_elem).map(|_| None);
    }
    // Grids are fitted as a sweep reaches them, so their scales cannot be codes.
    let symmetric = Settings {
        symmetric: true,
        scale_bits: 0,
        ..settings.clone()
    };
    GridSpec::from_settings(&symmetric).map(Some)
}

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
            scale_bits: 0,
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
