//! What calibration says of a layer's inputs, gathered in one pass, and the error that follows from it.
//!
//! Inputs are rows of `X` `[T, I]`; the layer is `y = W x` with `W` `[O, I]`. The relative output error of `Ŵ` is
//! `‖X(W-Ŵ)^T‖² / ‖XW^T‖²`, which is `tr((W-Ŵ) H (W-Ŵ)^T) / tr(W H W^T)`, so the inputs themselves need not be kept.

use super::MethodError;
use super::matrix::Matrix;

/// Statistics of a layer's inputs.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// `H = 2/T X^T X`, `[I, I]`.
    pub hessian: Matrix,
    /// Mean of each input, `[I]`.
    pub mean: Vec<f64>,
    /// Mean absolute value of each input, `[I]`.
    pub mean_abs: Vec<f64>,
    /// Largest absolute value of each input, `[I]`.
    pub max_abs: Vec<f64>,
    /// Rows that were seen.
    pub samples: u64,
}

impl Statistics {
    /// Statistics of the rows of `x`.
    pub fn from_inputs(x: &Matrix) -> Statistics {
        let n = x.rows().max(1) as f64;
        let columns = |f: &dyn Fn(f64, f64) -> f64| {
            let mut out = vec![0.0; x.cols()];
            for r in 0..x.rows() {
                out.iter_mut()
                    .zip(x.row(r))
                    .for_each(|(acc, &v)| *acc = f(*acc, v));
            }
            out
        };
        let over = |sums: Vec<f64>| sums.into_iter().map(|s| s / n).collect();
        Statistics {
            hessian: x.gram().map(|v| 2.0 / n * v),
            mean: over(columns(&|acc, v| acc + v)),
            mean_abs: over(columns(&|acc, v| acc + v.abs())),
            max_abs: columns(&|acc, v| acc.max(v.abs())),
            samples: x.rows() as u64,
        }
    }

    /// Number of inputs, `I`.
    pub fn inputs(&self) -> usize {
        self.hessian.rows()
    }

    /// Second moment `E[x x^T]`.
    pub fn second_moment(&self) -> Matrix {
        self.hessian.map(|v| v / 2.0)
    }

    /// Covariance `E[x x^T] - E[x] E[x]^T`.
    pub fn covariance(&self) -> Matrix {
        Matrix::from_fn(self.inputs(), self.inputs(), |r, c| {
            self.hessian[(r, c)] / 2.0 - self.mean[r] * self.mean[c]
        })
    }

    /// Root mean square of each input.
    pub fn rms(&self) -> Vec<f64> {
        let diagonal = self.hessian.diagonal();
        diagonal.iter().map(|h| (h.max(0.0) / 2.0).sqrt()).collect()
    }

    /// Fails if lengths disagree or numbers are not finite.
    pub fn check(&self) -> Result<(), MethodError> {
        let n = self.inputs();
        let lengths = [&self.mean, &self.mean_abs, &self.max_abs];
        if self.hessian.cols() != n || lengths.iter().any(|v| v.len() != n) {
            return Err(MethodError::Shape(format!(
                "statistics of {n} inputs disagree in their lengths"
            )));
        }
        let finite = |v: &Vec<f64>| v.iter().all(|x| x.is_finite());
        if !self.hessian.is_finite() || !lengths.iter().all(|v| finite(v)) {
            return Err(MethodError::NotFinite("calibration statistics"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{random, tl1};

    #[test]
    fn the_reference_layer_is_the_stated_one() {
        let t = tl1();
        let near = |a: f64, b: f64, tol: f64| assert!((a - b).abs() < tol, "{a} is not {b}");
        for (c, want) in [-0.00214171, -0.08078803, -0.15625422].iter().enumerate() {
            near(t.w[(0, c)], *want, 5e-9);
        }
        for (c, want) in [-29.752836, -3.761737, -2.976203].iter().enumerate() {
            near(t.x[(0, c)], *want, 5e-7);
        }
        near(t.w.square_sum().sqrt(), 11.214549072, 1e-8);
        near(t.x.square_sum().sqrt(), 1306.5370425, 1e-6);
        near(t.x.mul_transposed(&t.w).square_sum(), 820373.037, 1e-2);
    }

    #[test]
    fn error_by_the_hessian_is_the_output_error() {
        let t = tl1();
        let wrong = t.w.map(|v| (v * 20.0).round() / 20.0);
        let delta = t.w.sub(&wrong);
        let direct =
            t.x.mul_transposed(&delta).square_sum() / t.x.mul_transposed(&t.w).square_sum();
        let by_h = delta.quadratic(&t.stats.hessian) / t.w.quadratic(&t.stats.hessian);
        assert!((by_h / direct - 1.0).abs() < 1e-10);
    }

    #[test]
    fn moments_are_those_of_the_inputs() {
        let x = random(500, 3, 4).map(|v| v + 2.0);
        let s = Statistics::from_inputs(&x);
        let mean = x.row_sum_over(500);
        assert!(s.mean.iter().zip(&mean).all(|(a, b)| (a - b).abs() < 1e-12));
        let centred = Matrix::from_fn(500, 3, |r, c| x[(r, c)] - mean[c]);
        let covariance = centred.gram().map(|v| v / 500.0);
        assert!(s.covariance().sub(&covariance).square_sum() < 1e-20);
        assert!(s.check().is_ok());
    }

    impl Matrix {
        /// Mean of each column.
        fn row_sum_over(&self, n: usize) -> Vec<f64> {
            let columns = 0..self.cols();
            columns
                .map(|c| (0..self.rows()).map(|r| self[(r, c)]).sum::<f64>() / n as f64)
                .collect()
        }
    }
}
