//! What calibration says of a layer's inputs, gathered in one pass, and the error that follows from it.
//!
//! Inputs are rows of `X` `[T, I]`; the layer is `y = W x` with `W` `[O, I]`. The relative output error of `Ŵ` is
//! `‖X(W-Ŵ)^T‖² / ‖XW^T‖²`, which is `tr((W-Ŵ) H (W-Ŵ)^T) / tr(W H W^T)`, so the inputs themselves need not be kept.

use super::MethodError;
use super::matrix::Matrix;
use super::sweep::{DAMPING, Prepared, prepare};
use std::sync::OnceLock;

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
    prepared: OnceLock<Prepared>,
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
            prepared: OnceLock::new(),
        }
    }

    /// Number of inputs, `I`.
    pub fn inputs(&self) -> usize {
        self.hessian.rows()
    }

    /// The Hessian made fit for a sweep, its columns by activity; factored once, whoever asks.
    pub fn prepared(&self) -> &Prepared {
        self.prepared
            .get_or_init(|| prepare(&self.hessian, DAMPING, true))
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

/// Sums over rows of inputs, from which [`Statistics`] follow; gathered part by part.
#[derive(Clone, Debug)]
pub struct Moments {
    rows: u64,
    gram: Matrix,
    sum: Vec<f64>,
    abs_sum: Vec<f64>,
    abs_max: Vec<f64>,
}

impl Moments {
    /// Of no rows yet, of this many inputs.
    pub fn new(inputs: usize) -> Moments {
        Moments {
            rows: 0,
            gram: Matrix::zeros(inputs, inputs),
            sum: vec![0.0; inputs],
            abs_sum: vec![0.0; inputs],
            abs_max: vec![0.0; inputs],
        }
    }

    /// Adds a part of the sums of more rows. The parts are: 0 their number, 1 `X^T X` `[I, I]`, and for each input 2 the sum, 3 the sum
    /// and 4 the maximum of absolute values (of no rows anything below 0).
    ///
    /// # Errors
    /// Lengths disagree, or there is no such part.
    pub fn add_part(&mut self, part: usize, values: &[f32]) -> Result<(), String> {
        let sums = match part {
            0 => {
                self.rows += values.first().copied().unwrap_or(0.0) as u64;
                return Ok(());
            }
            1 => self.gram.data_mut(),
            2 => &mut self.sum,
            3 => &mut self.abs_sum,
            4 => &mut self.abs_max,
            _ => return Err(format!("moments have no part {part}")),
        };
        if sums.len() != values.len() {
            return Err(format!("moments are not of {} inputs", self.sum.len()));
        }
        let pairs = sums.iter_mut().zip(values);
        match part {
            4 => pairs.for_each(|(to, &v)| *to = to.max(f64::from(v))),
            _ => pairs.for_each(|(to, &v)| *to += f64::from(v)),
        }
        Ok(())
    }

    /// Adds the sums of other inputs of the same weight.
    pub fn merge(&mut self, other: &Moments) {
        let add = |to: &mut [f64], from: &[f64]| {
            to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        };
        add(self.gram.data_mut(), other.gram.data());
        add(&mut self.sum, &other.sum);
        add(&mut self.abs_sum, &other.abs_sum);
        for (to, &from) in self.abs_max.iter_mut().zip(&other.abs_max) {
            *to = to.max(from);
        }
        self.rows += other.rows;
    }

    /// The sums, part by part, as [`Moments::read`] takes them.
    pub fn parts(&self) -> [&[f64]; 4] {
        [self.gram.data(), &self.sum, &self.abs_sum, &self.abs_max]
    }

    /// Rows that were seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The sums of this many rows of so many inputs, from [`Moments::parts`] one behind the other, little-endian; none if there
    /// are not as many.
    pub fn read(rows: u64, inputs: usize, mut bytes: &[u8]) -> Option<Moments> {
        let mut numbers = |n: usize| {
            let (part, rest) = bytes.split_at_checked(n.checked_mul(8)?)?;
            bytes = rest;
            let numbers = part.as_chunks::<8>().0.iter();
            Some(
                numbers
                    .map(|&b| f64::from_le_bytes(b))
                    .collect::<Vec<f64>>(),
            )
        };
        let found = Moments {
            rows,
            gram: Matrix::new(inputs, inputs, numbers(inputs.checked_mul(inputs)?)?)?,
            sum: numbers(inputs)?,
            abs_sum: numbers(inputs)?,
            abs_max: numbers(inputs)?,
        };
        bytes.is_empty().then_some(found)
    }

    /// The statistics; none of no rows.
    pub fn into_statistics(self) -> Option<Statistics> {
        if self.rows == 0 {
            return None;
        }
        let n = self.rows as f64;
        let over = |v: Vec<f64>| v.into_iter().map(|s| s / n).collect();
        let mut hessian = self.gram;
        hessian.data_mut().iter_mut().for_each(|v| *v *= 2.0 / n);
        Some(Statistics {
            hessian,
            mean: over(self.sum),
            mean_abs: over(self.abs_sum),
            max_abs: self.abs_max,
            samples: self.rows,
            prepared: OnceLock::new(),
        })
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

    #[test]
    fn moments_of_parts_are_those_of_the_whole() {
        let x = random(40, 3, 8).map(|v| f64::from(v as f32));
        let mut sum = Moments::new(3);
        for rows in [0..15, 15..15, 15..40] {
            let part = x.block(rows, 0..3);
            let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
            let columns = |f: &dyn Fn(f32, f64) -> f32, start: f32| -> Vec<f32> {
                (0..3)
                    .map(|c| (0..part.rows()).fold(start, |acc, r| f(acc, part[(r, c)])))
                    .collect()
            };
            let sums = columns(&|a, v| a + v as f32, 0.0);
            let abs = columns(&|a, v| a + v.abs() as f32, 0.0);
            let max = columns(&|a, v| a.max(v.abs() as f32), f32::NEG_INFINITY);
            let rows = [part.rows() as f32];
            let parts = [&rows[..], &narrow(part.gram().data()), &sums, &abs, &max];
            for (i, values) in parts.into_iter().enumerate() {
                sum.add_part(i, values).expect("lengths agree");
            }
        }
        let (own, want) = (
            sum.clone().into_statistics().expect("rows"),
            Statistics::from_inputs(&x),
        );
        assert!(own.hessian.sub(&want.hessian).square_sum() < 1e-10);
        for (a, b) in [
            (&own.mean, &want.mean),
            (&own.mean_abs, &want.mean_abs),
            (&own.max_abs, &want.max_abs),
        ] {
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5));
        }
        assert_eq!(own.samples, 40);
        assert!(sum.add_part(1, &[0.0; 4]).is_err() && sum.add_part(5, &[]).is_err());
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
