//! What the tests of methods share: the reference layer TL1, correlated inputs, comparison with known values.
//!
//! TL1 rewards methods that look at the inputs far more than real layers do: it checks arithmetic and order, and is
//! no evidence of a model's quality.

use super::grid::GridSpec;
use super::matrix::Matrix;
use super::statistics::Statistics;
use super::{Layer, factor};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::Encoding;
use lapidary_ir::random::SplitMix64;
use std::sync::OnceLock;

/// The reference layer.
pub struct ReferenceLayer {
    /// Weights `[128, 256]`.
    pub w: Matrix,
    /// Calibration inputs `[1024, 256]`.
    pub x: Matrix,
    /// Their statistics.
    pub stats: Statistics,
}

impl ReferenceLayer {
    /// The layer as methods see it.
    pub fn layer(&self) -> Layer<'_> {
        Layer::new(&self.w, Some(&self.stats)).expect("a sound layer")
    }

    /// Relative output error of `approximation`.
    pub fn rel(&self, approximation: &Matrix) -> f64 {
        self.layer().error(approximation)
    }
}

/// TL1: one stream of normals gives `W`/16, `A`, `Z` and `N`; inputs are of low rank with a steep spectrum.
pub fn tl1() -> &'static ReferenceLayer {
    static LAYER: OnceLock<ReferenceLayer> = OnceLock::new();
    LAYER.get_or_init(|| {
        let mut rng = SplitMix64::new(1);
        let mut next =
            |rows, cols| Matrix::new(rows, cols, rng.normals(rows * cols)).expect("lengths agree");
        let w = next(128, 256).map(|v| v / 16.0);
        let (a, z, n) = (next(32, 256), next(1024, 32), next(1024, 256));
        let low = z.mul(&a);
        let x = Matrix::from_fn(1024, 256, |r, c| {
            (low[(r, c)] / 32f64.sqrt() + 0.3 * n[(r, c)]) * 16.0 / (1.0 + c as f64).sqrt()
        });
        let stats = Statistics::from_inputs(&x);
        ReferenceLayer { w, x, stats }
    })
}

/// Grids with zero points, unclipped, scales of f16.
pub fn grid(bits: u32) -> GridSpec {
    GridSpec {
        bits,
        symmetric: false,
        clip_exponent: None,
        scale_elem: ElemType::F16,
        scale_bits: 0,
    }
}

/// A matrix of standard normals.
pub fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut rng = SplitMix64::new(seed);
    Matrix::new(rows, cols, rng.normals(rows * cols)).expect("lengths agree")
}

/// Inputs `[count, n]` with correlation `0.9^|i-j|` and log-normal scales: the regime where calibration matters.
pub fn correlated(n: usize, count: usize, seed: u64) -> Matrix {
    let mut rng = SplitMix64::new(seed);
    let scales: Vec<f64> = rng.normals(n).into_iter().map(f64::exp).collect();
    let normals = Matrix::new(count, n, rng.normals(count * n)).expect("lengths agree");
    // A first-order autoregression has just this correlation.
    let fresh = (1.0 - 0.9f64 * 0.9).sqrt();
    let mut x = normals;
    for r in 0..count {
        let row = x.row_mut(r);
        for i in 1..n {
            row[i] = 0.9 * row[i - 1] + fresh * row[i];
        }
        row.iter_mut().zip(&scales).for_each(|(v, s)| *v *= s);
    }
    x
}

/// Fails unless `value` is within `tolerance` (relative) of `golden`.
#[track_caller]
pub fn near(value: f64, golden: f64, tolerance: f64) {
    assert!(
        (value / golden - 1.0).abs() <= tolerance,
        "{value:.6} is not within {tolerance} of {golden}"
    );
}

/// What a term of a matrix decodes to.
pub fn decoded(term: &Encoding) -> Matrix {
    let values = term.decode().expect("a valid term").to_f64s();
    Matrix::new(term.shape[0], term.shape[1], values.expect("numbers")).expect("a matrix")
}

/// Sum of squared differences by the sum of squares.
pub fn mse(w: &Matrix, approximation: &Matrix) -> f64 {
    w.sub(approximation).square_sum() / w.square_sum()
}

/// `a^-1` of a symmetric positive definite matrix.
pub fn inverse(a: &Matrix) -> Matrix {
    factor::solve(a, &Matrix::identity(a.rows())).expect("positive definite")
}
