//! HQQ: half-quadratic quantization, which moves each group's zero point so that most weights land closer.
//!
//! It seeks the least `Σ|w-ŵ|^p` with `p < 1`, which tolerates a few large errors for many small ones: alternately the
//! errors are shrunk (what remains is taken to be outliers), and the zero point becomes the mean that fits the rest. The
//! scale stays that of the group's range. Needs no data; zero points are floats.
//! Source: Badri, Shaji, "Half-Quadratic Quantization of Large Machine Learning Models"; the settings are those of the
//! code published with it. Where that stops all groups at once, each group here keeps its best zero point.

use super::grid::{AffineParts, GridSpec, Groups, Zeros, stored_scale};
use super::matrix::Matrix;
use super::{Candidate, Layer, Method, MethodError, Settings, candidate, threads};
use lapidary_ir::{ElemType, minifloat};

/// The method.
pub static HQQ: Method = Method {
    name: "hqq",
    summary: "moves each group's zero point to the least error of an exponent below 1; needs no data",
    source: "Half-Quadratic Quantization of Large Machine Learning Models",
    needs_statistics: false,
    bits: 2..=8,
    propose,
};

/// Settings of the core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HqqSettings {
    /// Bits of a code.
    pub bits: u32,
    /// Element type of scales and zero points.
    pub elem: ElemType,
    /// Exponent of the error.
    pub p: f64,
    /// First weight of the quadratic term, and its growth in each round.
    pub beta: (f64, f64),
    /// Most rounds; 0 leaves the zero point of the range.
    pub rounds: usize,
}

impl HqqSettings {
    /// The published settings.
    pub fn new(bits: u32, elem: ElemType) -> HqqSettings {
        HqqSettings {
            bits,
            elem,
            p: 0.7,
            beta: (10.0, 1.01),
            rounds: 20,
        }
    }

    /// Scale and zero point of one group.
    fn fit(&self, weights: &[f64]) -> (f64, f64) {
        let max = f64::from((1u32 << self.bits) - 1);
        let fold = |f: fn(f64, f64) -> f64, from| weights.iter().copied().fold(from, f);
        let (low, high) = (
            fold(f64::min, f64::INFINITY),
            fold(f64::max, f64::NEG_INFINITY),
        );
        if high <= low {
            // One value only: code 1 with zero point 0, or anything for zeros.
            let scale = stored_scale(high.abs(), self.elem);
            return (scale, if high < 0.0 { 2.0 } else { 0.0 });
        }
        let scale = stored_scale((high - low) / max, self.elem);
        let stored = |zero| minifloat::round_to(self.elem, zero);
        let error = |zero: f64| -> f64 {
            let errors = weights
                .iter()
                .map(|w| (w - rounded(*w, scale, zero, max)).abs());
            errors.sum()
        };
        let mut zero = -low / scale;
        let mut best = (error(stored(zero)), stored(zero));
        let mut beta = self.beta.0;
        for _ in 0..self.rounds {
            let target: f64 = weights
                .iter()
                .map(|&w| {
                    let code = (w / scale + zero).round_ties_even().clamp(0.0, max);
                    let kept = shrink(w - scale * (code - zero), beta, self.p);
                    code - (w - kept) / scale
                })
                .sum();
            zero = target / weights.len() as f64;
            beta *= self.beta.1;
            let now = error(stored(zero));
            if now >= best.0 {
                break;
            }
            best = (now, stored(zero));
        }
        (scale, best.1)
    }
}

/// The generalized soft threshold: what of an error is taken to be an outlier.
fn shrink(x: f64, beta: f64, p: f64) -> f64 {
    let left = x.abs() - f64::from((x.abs() as f32).powf(p as f32 - 1.0)) / beta;
    if left > 0.0 { left.copysign(x) } else { 0.0 }
}

fn rounded(w: f64, scale: f64, zero: f64, max: f64) -> f64 {
    scale * ((w / scale + zero).round_ties_even().clamp(0.0, max) - zero)
}

/// Codes of `weights` `[O, I]` by groups.
pub fn hqq(weights: &Matrix, settings: &HqqSettings, groups: Groups) -> AffineParts {
    let max = f64::from((1u32 << settings.bits) - 1);
    let rows = threads::map(weights.rows(), |r| {
        let mut codes = Vec::with_capacity(groups.columns);
        let mut grids = Vec::with_capacity(groups.count);
        for g in 0..groups.count {
            let part = &weights.row(r)[groups.range(g)];
            let (scale, zero) = settings.fit(part);
            let code = |w: &f64| (w / scale + zero).round_ties_even().clamp(0.0, max) as u8;
            codes.extend(part.iter().map(code));
            grids.push((scale, zero));
        }
        (codes, grids)
    });
    let grids = || rows.iter().flat_map(|(_, grids)| grids);
    AffineParts {
        rows: weights.rows(),
        groups,
        bits: settings.bits,
        scale_elem: settings.elem,
        scale_bits: 0,
        scales: grids().map(|g| g.0).collect(),
        zeros: Zeros::Floats(settings.elem, grids().map(|g| g.1).collect()),
        codes: rows.iter().flat_map(|(codes, _)| codes).copied().collect(),
    }
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let spec = GridSpec::from_settings(settings)?;
    let groups = Groups::new(layer.weight().cols(), settings.group_len);
    let hqq_settings = HqqSettings::new(spec.bits, spec.scale_elem);
    let parts = hqq(layer.weight(), &hqq_settings, groups);
    candidate(layer, parts.encoding(), &parts.decode(), vec![])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, random};
    use lapidary_ir::random::SplitMix64;

    fn mean_error(w: &Matrix, bits: u32, rounds: usize) -> f64 {
        let s = HqqSettings {
            rounds,
            ..HqqSettings::new(bits, ElemType::F16)
        };
        let found = hqq(w, &s, Groups::new(w.cols(), 0)).decode();
        let total: f64 = w.sub(&found).data().iter().map(|e| e.abs()).sum();
        total / w.data().len() as f64
    }

    #[test]
    fn mean_errors_of_normals_are_the_known_ones() {
        let w = random(4096, 64, 5);
        for (bits, range, moved) in [
            (4, 0.0761, 0.0732),
            (3, 0.1633, 0.1547),
            (2, 0.3827, 0.3668),
        ] {
            near(mean_error(&w, bits, 0), range, 0.01);
            near(mean_error(&w, bits, 20), moved, 0.03);
        }
    }

    #[test]
    fn outliers_are_where_it_pays() {
        let mut rng = SplitMix64::new(5);
        let mut w = Matrix::new(4096, 64, rng.normals(4096 * 64)).expect("lengths agree");
        for _ in 0..1300 {
            let at = (rng.unit() * (4096.0 * 64.0)) as usize;
            w.data_mut()[at] *= 10.0;
        }
        near(mean_error(&w, 2, 0), 0.5528, 0.02);
        near(mean_error(&w, 2, 20), 0.4944, 0.05);
    }

    #[test]
    fn the_mean_error_is_never_above_that_of_the_range() {
        for seed in 0..20 {
            let w = random(1, 32, seed).map(|v| v * v * v);
            for bits in 2..=4 {
                assert!(mean_error(&w, bits, 20) <= mean_error(&w, bits, 0));
            }
        }
    }

    #[test]
    fn constant_groups_are_exact() {
        for v in [0.0, 0.5, -0.25] {
            let w = Matrix::from_fn(1, 8, |_, _| v);
            let s = HqqSettings::new(2, ElemType::F16);
            assert_eq!(hqq(&w, &s, Groups::new(8, 0)).decode(), w);
        }
    }
}
