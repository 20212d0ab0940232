//! Sparse model soups: pruned copies of a model that were trained apart are averaged.
//!
//! Copies that share a mask keep it when averaged; copies that do not would lose their sparsity, and are refused. Statistics
//! of batch norms belong to one copy's activations and must be taken anew afterwards.
//! Source: Zimmer, Spiegel, Pokutta, "Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging", section 3.

use crate::methods::matrix::Matrix;

/// Why weights are not averaged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SoupError {
    /// There are no copies, not a factor for each, or they are of different shapes.
    #[error("copies must be at least one, of one shape, with a factor above 0 for each")]
    Shape,
    /// Zeros are in different places.
    #[error("masks differ: {common} of {all} weights are zero in all copies, {any} in some")]
    Masks {
        /// Zero in every copy.
        common: usize,
        /// Zero in one at least.
        any: usize,
        /// All weights.
        all: usize,
    },
}

/// The mean of copies of one weight, each as often as its factor says.
pub fn soup(copies: &[Matrix], factors: &[f64]) -> Result<Matrix, SoupError> {
    let first = copies.first().ok_or(SoupError::Shape)?;
    let fits = |m: &Matrix| (m.rows(), m.cols()) == (first.rows(), first.cols());
    let positive = factors.iter().all(|&f| f > 0.0 && f.is_finite());
    if !copies.iter().all(fits) || factors.len() != copies.len() || !positive {
        return Err(SoupError::Shape);
    }
    let zeros = |i: usize| copies.iter().filter(|m| m.data()[i] == 0.0).count();
    let all = first.data().len();
    let any = (0..all).filter(|&i| zeros(i) > 0).count();
    let common = (0..all).filter(|&i| zeros(i) == copies.len()).count();
    if any != common {
        return Err(SoupError::Masks { common, any, all });
    }
    let total: f64 = factors.iter().sum();
    let start = Matrix::zeros(first.rows(), first.cols());
    let weighted = copies.iter().zip(factors);
    Ok(weighted.fold(start, |sum, (m, f)| sum.zip(m, |s, v| s + f / total * v)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::random;

    fn pruned(seed: u64) -> Matrix {
        let w = random(6, 10, seed);
        Matrix::from_fn(6, 10, |r, c| if (r + c) % 3 == 0 { 0.0 } else { w[(r, c)] })
    }

    #[test]
    fn the_soup_keeps_the_mask_and_is_the_mean_of_outputs() {
        let copies = [pruned(1), pruned(2), pruned(3)];
        let mean = soup(&copies, &[1.0, 2.0, 1.0]).expect("one mask");
        let zeros = |m: &Matrix| m.data().iter().filter(|&&v| v == 0.0).count();
        assert_eq!(zeros(&mean), zeros(&copies[0]));
        let x = random(4, 10, 4);
        let y = |m: &Matrix| x.mul_transposed(m);
        let outputs = y(&copies[0])
            .add(&y(&copies[1]).map(|v| 2.0 * v))
            .add(&y(&copies[2]));
        assert!(y(&mean).sub(&outputs.map(|v| v / 4.0)).square_sum() < 1e-24);
    }

    #[test]
    fn other_masks_and_shapes_are_refused() {
        let mut other = pruned(2);
        other[(0, 0)] = 1.0;
        let error = soup(&[pruned(1), other], &[1.0, 1.0]);
        let want = SoupError::Masks {
            common: 19,
            any: 20,
            all: 60,
        };
        assert_eq!(error, Err(want));
        assert_eq!(soup(&[], &[]), Err(SoupError::Shape));
        assert_eq!(soup(&[pruned(1)], &[0.0]), Err(SoupError::Shape));
        let narrow = [pruned(1), random(6, 9, 1)];
        assert_eq!(soup(&narrow, &[1.0, 1.0]), Err(SoupError::Shape));
    }
}
