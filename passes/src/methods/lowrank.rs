//! Low-rank approximation weighted by the inputs, and its named settings.
//!
//! For a target `D` `[O, I]` and a symmetric `C` `[I, I]`, the `L` of rank `r` with the least `tr((D-L) C (D-L)^T)` is
//! found from `C = S S^T` and the singular values of `D S = U Σ V^T`: `L = U_r Σ_r V_r^T S^-1`, with the error
//! `Σ_{i>r} σ_i²`. Any square `S` gives the same `L`. What published methods differ in is the target and `C`:
//!
//! ```text
//! name      target   weighted by      bias
//! svd       W        nothing          -
//! svd-llm   W        second moment    -
//! lord      W        covariance       (W-L) E[x]
//! afm       W        covariance       (W-L) E[x]
//! eora      W - Ŵ    second moment    -
//! ```
//! With the covariance and the bias the error is never larger than with the second moment and none; the same bias may
//! be added after any lossy step.
//! Source: Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
//! section 3; Kaushal et al., "LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression", section 3;
//! Yu, Wu, "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!", section 3 (atomic feature mimicking);
//! Liu et al., "EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation", section 3.

use super::factor::{self, Singular};
use super::grid::{scale_type, wide_enough};
use super::matrix::Matrix;
use super::statistics::Statistics;
use super::{Candidate, Layer, Method, MethodError, Settings, dense, measured};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::matmul::matmul;

/// The method: two factors of least error.
pub static SVD: Method = Method {
    name: "svd",
    summary: "two factors, of as many 16-bit numbers as the bits allow, with the least error of the weights",
    source: "SVD-LLM, section 3 (baseline)",
    needs_statistics: false,
    bits: 1..=8,
    propose: |layer, settings| propose(layer, settings, &SETTINGS[0]),
};

/// The method: two factors of least output error.
pub static SVD_LLM: Method = Method {
    name: "svd-llm",
    summary: "two factors, of as many 16-bit numbers as the bits allow, with the least error of the outputs",
    source: "SVD-LLM, section 3",
    needs_statistics: true,
    bits: 1..=8,
    propose: |layer, settings| propose(layer, settings, &SETTINGS[1]),
};

/// Factors that take `settings.bits` for each weight.
fn propose(
    layer: &Layer,
    settings: &Settings,
    setting: &LowRankSetting,
) -> Result<Candidate, MethodError> {
    let weight = layer.weight();
    let (elem, assumptions) = wide_enough(scale_type(settings.scale_elem)?, weight);
    let share = f64::from(settings.bits) / f64::from(elem.bits());
    let rank = rank_of_share(weight.rows(), weight.cols(), share).max(1);
    let found = approximate(
        setting,
        weight,
        None,
        layer.statistics(),
        rank,
        settings.seed,
    )?;
    let factors = vec![dense(elem, &found.left), dense(elem, &found.right)];
    measured(layer, matmul(ElemType::F32, factors), assumptions)
}

/// What an approximation error is weighted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// Nothing: the error of the weights themselves.
    Plain,
    /// `E[x x^T]`: the error of the output.
    SecondMoment,
    /// The covariance: the error of the output that a bias cannot repair.
    Covariance,
}

/// A published method as a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowRankSetting {
    /// Name in recipes and reports.
    pub name: &'static str,
    /// What the error is weighted by.
    pub weighting: Weighting,
    /// True if what is approximated is the error of a weight that is compressed already.
    pub compensates: bool,
}

/// The named settings.
pub static SETTINGS: &[LowRankSetting] = &[
    setting("svd", Weighting::Plain, false),
    setting("svd-llm", Weighting::SecondMoment, false),
    setting("lord", Weighting::Covariance, false),
    setting("afm", Weighting::Covariance, false),
    setting("eora", Weighting::SecondMoment, true),
];

const fn setting(name: &'static str, weighting: Weighting, compensates: bool) -> LowRankSetting {
    LowRankSetting {
        name,
        weighting,
        compensates,
    }
}

/// `left * right`, and what it leaves.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `U_r √Σ_r`, `[O, r]`.
    pub left: Matrix,
    /// `√Σ_r V_r^T S^-1`, `[r, I]`.
    pub right: Matrix,
    /// What to add to the layer's bias, `[O]`; with [`Weighting::Covariance`] only.
    pub bias: Option<Vec<f64>>,
    /// `tr((D-L) C (D-L)^T)`.
    pub squared_error: f64,
}

impl LowRank {
    /// The product.
    pub fn decode(&self) -> Matrix {
        self.left.mul(&self.right)
    }
}

/// The rank at which two factors hold as many numbers as the weight: only below it anything is saved.
pub fn break_even_rank(outputs: usize, inputs: usize) -> usize {
    outputs * inputs / (outputs + inputs).max(1)
}

/// The rank at which the factors hold the share `share` of the weight's numbers.
pub fn rank_of_share(outputs: usize, inputs: usize, share: f64) -> usize {
    let all = (outputs * inputs) as f64 / (outputs + inputs).max(1) as f64;
    (all * share.clamp(0.0, 1.0)) as usize
}

/// A square factor of a symmetric matrix, `S S^T`, and its inverse.
#[derive(Clone, Debug)]
pub struct Root {
    root: Matrix,
    inverse: Matrix,
}

impl Root {
    /// Factors `c`; eigenvalues below a relative 1e-8 are raised to that, so that the inverse is finite.
    pub fn of(c: &Matrix) -> Result<Root, Singular> {
        if let Some(root) = Root::by_cholesky(c) {
            return Ok(root);
        }
        let (values, q) = factor::eigen(c)?;
        let top = values.last().copied().unwrap_or(0.0);
        if top <= 0.0 {
            return Ok(Root {
                root: Matrix::identity(c.rows()),
                inverse: Matrix::identity(c.rows()),
            });
        }
        let roots: Vec<f64> = values.iter().map(|v| v.max(1e-8 * top).sqrt()).collect();
        let back: Vec<f64> = roots.iter().map(|r| 1.0 / r).collect();
        Ok(Root {
            root: q.scale_columns(&roots),
            inverse: q.scale_columns(&back).transpose(),
        })
    }

    /// The Cholesky factor, much cheaper, where it is far from singular.
    fn by_cholesky(c: &Matrix) -> Option<Root> {
        // inverse_upper gives U with c^-1 = U^T U, so c = (U^-1)(U^-1)^T and S^-1 = U.
        let inverse = factor::inverse_upper(c.clone()).ok()?;
        let pivots = inverse.diagonal();
        let fold = |f: fn(f64, f64) -> f64, from| pivots.iter().copied().fold(from, f);
        if fold(f64::min, f64::INFINITY) < 1e-4 * fold(f64::max, 0.0) {
            return None;
        }
        // c U^T = U^-1 (U^-1)^T U^T = U^-1.
        Some(Root {
            root: c.mul_transposed(&inverse),
            inverse,
        })
    }
}

/// The best approximation of `target` `[O, I]` of rank `rank`; `root` factors the weighting, `None` is the identity.
pub fn weighted_lowrank(
    target: &Matrix,
    root: Option<&Root>,
    rank: usize,
    seed: u64,
) -> Result<LowRank, Singular> {
    let weighted = root.map_or_else(|| target.clone(), |r| target.mul(&r.root));
    let svd = factor::leading_svd(&weighted, rank, seed)?;
    let kept = svd.u.scale_columns(&svd.values).mul_transposed(&svd.v);
    let roots: Vec<f64> = svd.values.iter().map(|v| v.sqrt()).collect();
    let right = svd.v.scale_columns(&roots).transpose();
    Ok(LowRank {
        left: svd.u.scale_columns(&roots),
        right: root.map_or_else(|| right.clone(), |r| right.mul(&r.inverse)),
        bias: None,
        squared_error: weighted.sub(&kept).square_sum(),
    })
}

/// Approximates `weight`, or with a setting that compensates what `compressed` lacks of it.
pub fn approximate(
    setting: &LowRankSetting,
    weight: &Matrix,
    compressed: Option<&Matrix>,
    statistics: Option<&Statistics>,
    rank: usize,
    seed: u64,
) -> Result<LowRank, MethodError> {
    let target = match (setting.compensates, compressed) {
        (true, Some(c)) => weight.sub(c),
        (true, None) => {
            let reason = format!("`{}` compensates a compressed weight", setting.name);
            return Err(MethodError::Settings(reason));
        }
        (false, _) => weight.clone(),
    };
    let needed = || statistics.ok_or(MethodError::NeedsStatistics);
    let root = match setting.weighting {
        Weighting::Plain => None,
        Weighting::SecondMoment => Some(Root::of(&needed()?.second_moment())?),
        Weighting::Covariance => Some(Root::of(&needed()?.covariance())?),
    };
    let mut found = weighted_lowrank(&target, root.as_ref(), rank, seed)?;
    if setting.weighting == Weighting::Covariance {
        let left = target.sub(&found.decode());
        found.bias = Some(mean_fold(&left, &needed()?.mean));
    }
    Ok(found)
}

/// The bias that restores the mean of what a layer lost: `D E[x]` for a lost `D` `[O, I]`.
pub fn mean_fold(lost: &Matrix, mean: &[f64]) -> Vec<f64> {
    let dot = |r: usize| lost.row(r).iter().zip(mean).map(|(d, m)| d * m).sum();
    (0..lost.rows()).map(dot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::grid::Groups;
    use crate::methods::rtn::round_to_nearest;
    use crate::methods::testing::{correlated, mse, near, random, tl1};

    fn named(name: &str) -> &'static LowRankSetting {
        SETTINGS.iter().find(|s| s.name == name).expect("a setting")
    }

    #[test]
    fn compensation_on_the_reference_layer_has_the_known_errors() {
        let t = tl1();
        for (bits, plain, eora) in [(3, 0.03062, 0.01448), (2, 0.1835, 0.0784)] {
            let spec = crate::methods::testing::grid(bits);
            let rounded = round_to_nearest(&t.w, &spec, Groups::new(256, 64)).decode();
            let svd = weighted_lowrank(&t.w.sub(&rounded), None, 8, 0).expect("converges");
            near(t.rel(&rounded.add(&svd.decode())), plain, 0.01);
            let found = approximate(named("eora"), &t.w, Some(&rounded), Some(&t.stats), 8, 0);
            near(
                t.rel(&rounded.add(&found.expect("sound").decode())),
                eora,
                0.01,
            );
        }
    }

    #[test]
    fn plain_values_of_the_reference_layer_have_the_known_errors() {
        let t = tl1();
        for (rank, golden) in [(21, 0.64457), (42, 0.40217), (63, 0.24339), (84, 0.11618)] {
            let found = approximate(named("svd"), &t.w, None, None, rank, 0).expect("converges");
            near(t.rel(&found.decode()), golden, 1e-3);
            let whitened = approximate(named("svd-llm"), &t.w, None, Some(&t.stats), rank, 0);
            assert!(t.rel(&whitened.expect("converges").decode()) < 0.5 * golden);
        }
    }

    #[test]
    fn whitening_beats_plain_values_on_correlated_inputs() {
        let x = correlated(256, 4096, 2);
        let stats = Statistics::from_inputs(&x);
        let w = random(256, 256, 3);
        let rel = |name| {
            let found = approximate(named(name), &w, None, Some(&stats), 64, 0).expect("sound");
            w.sub(&found.decode()).quadratic(&stats.hessian) / w.quadratic(&stats.hessian)
        };
        assert!(
            rel("svd") > 10.0 * rel("svd-llm"),
            "{} {}",
            rel("svd"),
            rel("svd-llm")
        );
    }

    #[test]
    fn the_error_is_the_tail_whatever_the_root() {
        let t = tl1();
        let c = t.stats.second_moment();
        let energy = t.w.quadratic(&c);
        let found = weighted_lowrank(&t.w, Some(&Root::of(&c).expect("sound")), 24, 0);
        let found = found.expect("converges");
        let direct = t.w.sub(&found.decode()).quadratic(&c);
        assert!((direct - found.squared_error).abs() < 1e-10 * energy);
        let (values, q) = factor::eigen(&c).expect("symmetric");
        let roots: Vec<f64> = values.iter().map(|v| v.max(0.0).sqrt()).collect();
        let tail = factor::svd(&t.w.mul(&q.scale_columns(&roots))).expect("converges");
        let tail: f64 = tail.values[24..].iter().map(|s| s * s).sum();
        near(found.squared_error, tail, 1e-7);
    }

    #[test]
    fn centred_whitening_is_principal_components_of_the_output() {
        let mut x = correlated(40, 2000, 5);
        for r in 0..x.rows() {
            x.row_mut(r)
                .iter_mut()
                .zip(0..)
                .for_each(|(v, i)| *v += f64::from(i % 5));
        }
        let stats = Statistics::from_inputs(&x);
        let w = random(30, 40, 6);
        let found = approximate(named("afm"), &w, None, Some(&stats), 10, 0).expect("sound");
        let output = w.mul(&stats.covariance()).mul_transposed(&w);
        let (_, vectors) = factor::eigen(&output).expect("symmetric");
        let lead = vectors.block(0..30, 20..30);
        let projection = lead.mul_transposed(&lead);
        let mimicked = projection.mul(&w);
        assert!(mse(&mimicked, &found.decode()) < 1e-12);
        // y_mean - U U^T y_mean is the bias that the projection needs.
        let lost = mean_fold(&w.sub(&mimicked), &stats.mean);
        let bias = found.bias.as_ref().expect("a bias");
        assert!(lost.iter().zip(bias).all(|(a, b)| (a - b).abs() < 1e-6));
        // With the bias the output error is that of the covariance, and no larger than without.
        let with = found.squared_error;
        let without = approximate(named("svd-llm"), &w, None, Some(&stats), 10, 0).expect("sound");
        assert!(with <= without.squared_error);
        let y = x.mul_transposed(&w);
        let low = x.mul_transposed(&found.decode());
        let measured = Matrix::from_fn(y.rows(), 30, |r, c| y[(r, c)] - low[(r, c)] - bias[c]);
        near(measured.square_sum() / 2000.0, with, 1e-6);
    }

    #[test]
    fn folding_the_mean_leaves_the_covariance_part_of_the_error() {
        let x = correlated(24, 1500, 7).map(|v| v + 1.5);
        let stats = Statistics::from_inputs(&x);
        let w = random(9, 24, 8);
        let gone = [2, 11, 12];
        let lost = Matrix::from_fn(
            9,
            24,
            |r, c| if gone.contains(&c) { w[(r, c)] } else { 0.0 },
        );
        let bias = mean_fold(&lost, &stats.mean);
        let y = x.mul_transposed(&lost);
        near(
            y.square_sum() / 1500.0,
            lost.quadratic(&stats.second_moment()),
            1e-9,
        );
        let left = Matrix::from_fn(y.rows(), 9, |r, c| y[(r, c)] - bias[c]);
        near(
            left.square_sum() / 1500.0,
            lost.quadratic(&stats.covariance()),
            1e-9,
        );
    }

    #[test]
    fn singular_moments_are_no_obstacle() {
        let x = random(10, 40, 9);
        let stats = Statistics::from_inputs(&x);
        let w = random(12, 40, 10);
        let found = approximate(named("svd-llm"), &w, None, Some(&stats), 10, 0).expect("sound");
        assert!(found.right.is_finite());
        // Ten inputs span ten directions: rank 10 reproduces them.
        let y = x.mul_transposed(&w);
        let low = x.mul_transposed(&found.decode());
        assert!(y.sub(&low).square_sum() / y.square_sum() < 1e-6);
        let silent = Statistics::from_inputs(&x.map(|_| 0.0));
        assert!(approximate(named("eora"), &w, Some(&w), Some(&silent), 2, 0).is_ok());
        let missing = approximate(named("eora"), &w, None, Some(&stats), 2, 0);
        assert!(missing.is_err());
    }

    #[test]
    fn ranks_save_only_below_the_break_even() {
        assert_eq!(break_even_rank(4096, 4096), 2048);
        assert_eq!(break_even_rank(11008, 4096), 2985);
        assert_eq!(rank_of_share(4096, 4096, 0.5), 1024);
    }
}
