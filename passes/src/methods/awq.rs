//! AWQ: columns whose inputs are large are scaled up before rounding, and down again on the input's side.
//!
//! Rounding errors of a column are as large as its group's step, whatever the column's own size; scaled up by `s`, a
//! column suffers `1/s` of it. The scales are `s = mean|x|^α`, normalised; `α` is searched by the layer's output error,
//! which the Hessian gives without a forward pass: all values of `α` are screened by its diagonal, the best few scored
//! exactly. Then each group's clipping may be searched by its own block of the Hessian.
//! Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", section 3.
//! Grids here contain zero, so that `α = 0` is round to nearest.

use super::grid::{AffineParts, Grid, GridSpec, Groups, stored_scale};
use super::matrix::Matrix;
use super::statistics::Statistics;
use super::{Method, dense, measured, rtn, threads};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::scale;

/// The method; the columns' scales stay in the term.
pub static AWQ: Method = Method {
    name: "awq",
    summary: "columns of large inputs are scaled up before rounding, and down again by a factor that is stored",
    source: "AWQ, section 3",
    needs_statistics: true,
    bits: 2..=8,
    propose: |layer, settings| {
        let (weight, statistics) = (layer.weight(), layer.needed_statistics()?);
        let spec = GridSpec {
            clip_exponent: None,
            ..GridSpec::from_settings(settings)?
        };
        let groups = Groups::new(weight.cols(), settings.group_len);
        let search = AwqSettings {
            clip: settings.clip,
            ..AwqSettings::new(spec, groups)
        };
        let found = awq(weight, statistics, &search);
        let back = Matrix::from_fn(1, weight.cols(), |_, c| 1.0 / found.input_scales[c]);
        let back = dense(spec.scale_elem, &back);
        let term = scale::scale(ElemType::F32, back, found.parts.encoding());
        measured(layer, term, vec![])
    },
};

/// Settings of the search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AwqSettings {
    /// How grids are fitted.
    pub spec: GridSpec,
    /// Groups of a row.
    pub groups: Groups,
    /// How many values of `α`, from 0 up in steps of 0.05, at most 20.
    pub steps: usize,
    /// How many of them are scored exactly, besides 0.
    pub exact: usize,
    /// Searches each group's clipping afterwards, down to 55 % of its range.
    pub clip: bool,
}

impl AwqSettings {
    /// The published search with `spec` and `groups`.
    pub fn new(spec: GridSpec, groups: Groups) -> AwqSettings {
        AwqSettings {
            spec,
            groups,
            steps: 20,
            exact: 3,
            clip: false,
        }
    }
}

/// Result of the search: the weight is `parts * diag(1 / input_scales)`.
#[derive(Clone, Debug)]
pub struct Awq {
    /// The exponent that was best.
    pub alpha: f64,
    /// Scales of the columns, `[I]`; their inverse is folded into what gives the inputs.
    pub input_scales: Vec<f64>,
    /// The scaled weight as codes.
    pub parts: AffineParts,
    /// `tr(Δ H Δ^T)` of the decoded weight.
    pub quadratic_error: f64,
}

impl Awq {
    /// The decoded weight with the scales undone.
    pub fn decode(&self) -> Matrix {
        let back: Vec<f64> = self.input_scales.iter().map(|s| 1.0 / s).collect();
        self.parts.decode().scale_columns(&back)
    }
}

/// The scales of an exponent: `max(mean|x|^α, 1e-4)`, so that largest and smallest have a product of 1, and their
/// inverses are what `elem` holds.
pub fn input_scales(mean_abs: &[f64], alpha: f64, elem: ElemType) -> Vec<f64> {
    let raw: Vec<f64> = mean_abs.iter().map(|a| a.powf(alpha).max(1e-4)).collect();
    let fold = |f: fn(f64, f64) -> f64, from| raw.iter().copied().fold(from, f);
    let middle = (fold(f64::max, 0.0) * fold(f64::min, f64::INFINITY)).sqrt();
    let stored = |s: &f64| 1.0 / stored_scale(middle / s, elem);
    raw.iter().map(stored).collect()
}

/// Searches the scales of `weight` `[O, I]`.
pub fn awq(weight: &Matrix, statistics: &Statistics, settings: &AwqSettings) -> Awq {
    let diagonal = statistics.hessian.diagonal();
    let scales_of = |alpha| input_scales(&statistics.mean_abs, alpha, settings.spec.scale_elem);
    let quantized = |scales: &[f64]| {
        let scaled = weight.scale_columns(scales);
        rtn::round_to_nearest(&scaled, &settings.spec, settings.groups)
    };
    let mut trials: Vec<(f64, f64)> = (0..settings.steps.clamp(1, 20))
        .map(|step| {
            let alpha = step as f64 * 0.05;
            let scales = scales_of(alpha);
            let decoded = quantized(&scales).decode();
            let by_diagonal = (0..weight.rows()).map(|r| {
                let pairs = weight.row(r).iter().zip(decoded.row(r));
                pairs
                    .zip(scales.iter().zip(&diagonal))
                    .map(|((w, d), (s, h))| h * (w - d / s).powi(2))
                    .sum::<f64>()
            });
            (by_diagonal.sum(), alpha)
        })
        .collect();
    trials.sort_by(|a, b| a.0.total_cmp(&b.0));
    trials.truncate(settings.exact.max(1));
    let mut alphas: Vec<f64> = trials.into_iter().map(|t| t.1).collect();
    if !alphas.contains(&0.0) {
        alphas.push(0.0);
    }
    let score = |found: &Awq| weight.sub(&found.decode()).quadratic(&statistics.hessian);
    let scored = alphas.into_iter().map(|alpha| {
        let scales = scales_of(alpha);
        let mut found = Awq {
            alpha,
            parts: quantized(&scales),
            input_scales: scales,
            quadratic_error: 0.0,
        };
        found.quadratic_error = score(&found);
        found
    });
    let best = scored
        .min_by(|a, b| a.quadratic_error.total_cmp(&b.quadratic_error))
        .expect("there is one exponent at least");
    if !settings.clip {
        return best;
    }
    let mut clipped = Awq {
        parts: clip(weight, statistics, settings, &best.input_scales),
        ..best.clone()
    };
    clipped.quadratic_error = score(&clipped);
    // The search looks at one group at a time; errors of groups that add up may still make it worse.
    if clipped.quadratic_error < best.quadratic_error {
        clipped
    } else {
        best
    }
}

/// Grids over 100 % to 55 % of each group's range, by the group's own block of the Hessian.
fn clip(
    weight: &Matrix,
    statistics: &Statistics,
    settings: &AwqSettings,
    scales: &[f64],
) -> AffineParts {
    let scaled = weight.scale_columns(scales);
    let back: Vec<f64> = scales.iter().map(|s| 1.0 / s).collect();
    let groups = settings.groups;
    // The Hessian of the scaled inputs, by groups.
    let blocks: Vec<Matrix> = threads::map(groups.count, |g| {
        let range = groups.range(g);
        Matrix::from_fn(range.len(), range.len(), |r, c| {
            let (r, c) = (range.start + r, range.start + c);
            statistics.hessian[(r, c)] * back[r] * back[c]
        })
    });
    AffineParts::quantize(&scaled, &settings.spec, groups, |_, range, part| {
        let h = &blocks[groups.of(range.start)];
        let fold = |f: fn(f64, f64) -> f64| part.iter().copied().fold(0.0, f);
        let (low, high) = (fold(f64::min), fold(f64::max));
        let mut best = (f64::INFINITY, settings.spec.fit(part));
        for step in 0..10 {
            let keep = 1.0 - f64::from(step) * 0.05;
            let grid = settings.spec.of_range(keep * low, keep * high);
            let error = group_error(part, &grid, h);
            if error < best.0 {
                best = (error, grid);
            }
        }
        best.1
    })
}

fn group_error(part: &[f64], grid: &Grid, h: &Matrix) -> f64 {
    let delta: Vec<f64> = part.iter().map(|&w| w - grid.nearest(w)).collect();
    let rows = delta.iter().enumerate().map(|(r, d)| {
        let dot: f64 = h.row(r).iter().zip(&delta).map(|(h, d)| h * d).sum();
        d * dot
    });
    rows.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{decoded, mse, near, tl1};
    use lapidary_ir::ElemType;

    fn settings(bits: u32) -> AwqSettings {
        let spec = crate::methods::testing::grid(bits);
        AwqSettings::new(spec, Groups::new(256, 64))
    }

    #[test]
    fn errors_on_the_reference_layer_are_the_known_ones() {
        let t = tl1();
        for (bits, golden, alpha) in [
            (4, 0.007161, 0.35),
            (3, 0.032960, 0.30),
            (2, 0.180658, 0.30),
        ] {
            let all = AwqSettings {
                exact: 20,
                ..settings(bits)
            };
            let found = awq(&t.w, &t.stats, &all);
            near(t.rel(&found.decode()), golden, 0.01);
            // The minimum is flat: 1 % of the error is two steps of the exponent.
            assert!((found.alpha - alpha).abs() < 0.11, "{}", found.alpha);
        }
    }

    #[test]
    fn it_is_never_worse_than_rounding_and_clipping_never_worse_than_not() {
        let t = tl1();
        for bits in 2..=4 {
            let s = settings(bits);
            let plain = rtn::round_to_nearest(&t.w, &s.spec, s.groups).decode();
            let found = t.rel(&awq(&t.w, &t.stats, &s).decode());
            let clipped = t.rel(&awq(&t.w, &t.stats, &AwqSettings { clip: true, ..s }).decode());
            assert!(found <= t.rel(&plain));
            assert!(clipped <= found);
        }
    }

    #[test]
    fn the_term_is_the_parts_with_the_columns_factors() {
        let t = tl1();
        let settings = super::super::Settings {
            group_len: 64,
            ..Default::default()
        };
        let term = (AWQ.propose)(&t.layer(), &settings).expect("a candidate");
        let found = awq(&t.w, &t.stats, &self::settings(4));
        assert!(mse(&found.decode(), &decoded(&term.encoding)) < 1e-12);
        let parts = found.parts.encoding().stored_bytes();
        assert_eq!(term.bytes, parts + 2 * 256);
    }

    #[test]
    fn exponent_zero_is_round_to_nearest() {
        let t = tl1();
        let s = AwqSettings {
            steps: 1,
            ..settings(3)
        };
        let found = awq(&t.w, &t.stats, &s);
        let plain = rtn::round_to_nearest(&t.w, &s.spec, s.groups);
        assert_eq!(found.parts, plain);
        assert!(found.input_scales.iter().all(|&s| s == 1.0));
    }

    #[test]
    fn the_error_is_that_of_the_decoded_weight() {
        let t = tl1();
        let found = awq(&t.w, &t.stats, &settings(4));
        let rel = found.quadratic_error / t.w.quadratic(&t.stats.hessian);
        near(rel, t.rel(&found.decode()), 1e-9);
    }

    #[test]
    fn folding_the_scales_keeps_the_function() {
        let t = tl1();
        let s = input_scales(&t.stats.mean_abs, 0.5, ElemType::F16);
        let back: Vec<f64> = s.iter().map(|s| 1.0 / s).collect();
        let y = t.x.mul_transposed(&t.w);
        let folded =
            t.x.scale_columns(&back)
                .mul_transposed(&t.w.scale_columns(&s));
        assert!(y.sub(&folded).square_sum() / y.square_sum() < 1e-20);
    }
}
