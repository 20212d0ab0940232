//! Block second order from gradients: which weights, or runs of weights, a loss can do without.
//!
//! The Hessian is taken to be `F = λI + 1/m Σ g g^T` over `m` gradients of the loss, in blocks of consecutive weights. Each
//! gradient changes the inverse by a product of two vectors, so `F` itself is never formed. Removing the weights `Q` of a
//! block costs `½ w_Q^T (F^-1_QQ)^-1 w_Q`, and the best update of the others is `-F^-1_:Q (F^-1_QQ)^-1 w_Q`. Gradients come
//! from outside: the compiler has no backward pass. High sparsity is reached in several steps, each with new gradients.
//! Source: Kurtic et al., "The Optimal BERT Surgeon: Scalable and Accurate Second-Order Pruning for Large Language Models",
//! section 3.

use crate::methods::factor::{Singular, solve};
use crate::methods::matrix::Matrix;
use std::ops::Range;

/// Inverse of the damped Fisher matrix of a list of weights, by blocks.
#[derive(Clone, Debug)]
pub struct BlockFisher {
    len: usize,
    block: usize,
    count: f64,
    inverses: Vec<Matrix>,
}

impl BlockFisher {
    /// Of `len` weights in blocks of `block`, before the first of `count` gradients; `damping` is `λ`, above 0.
    pub fn new(len: usize, block: usize, damping: f64, count: usize) -> BlockFisher {
        let block = block.clamp(1, len.max(1));
        let start = |b: usize| {
            let own = (len - b * block).min(block);
            Matrix::identity(own).map(|v| v / damping)
        };
        BlockFisher {
            len,
            block,
            count: count.max(1) as f64,
            inverses: (0..len.div_ceil(block)).map(start).collect(),
        }
    }

    /// Adds one gradient of all weights.
    ///
    /// # Panics
    /// It is of another length.
    pub fn add(&mut self, gradient: &[f64]) {
        assert_eq!(
            gradient.len(),
            self.len,
            "a gradient has a number for each weight"
        );
        for (inverse, g) in self.inverses.iter_mut().zip(gradient.chunks(self.block)) {
            let dot = |row: &[f64]| row.iter().zip(g).map(|(a, b)| a * b).sum::<f64>();
            let v: Vec<f64> = (0..g.len()).map(|r| dot(inverse.row(r))).collect();
            let scale = self.count + dot(&v);
            for (r, vr) in v.iter().enumerate() {
                let row = inverse.row_mut(r).iter_mut().zip(&v);
                row.for_each(|(x, vc)| *x -= vr * vc / scale);
            }
        }
    }

    /// What removing the weights of a run, which lies in one block, costs.
    pub fn saliency(&self, weights: &[f64], run: Range<usize>) -> Result<f64, Singular> {
        let (_, _, reaction) = self.reaction(weights, &run)?;
        let pairs = weights[run].iter().zip(reaction.data());
        Ok(0.5 * pairs.map(|(w, r)| w * r).sum::<f64>())
    }

    /// Removes the weights of a run, and updates the others of its block.
    pub fn remove(&self, weights: &mut [f64], run: Range<usize>) -> Result<(), Singular> {
        let (block, own, reaction) = self.reaction(weights, &run)?;
        let inverse = &self.inverses[block];
        for r in 0..inverse.rows() {
            let columns = own.clone().zip(reaction.data());
            let update: f64 = columns.map(|(c, x)| inverse[(r, c)] * x).sum();
            weights[block * self.block + r] -= update;
        }
        weights[run].fill(0.0);
        Ok(())
    }

    /// The block of a run, its places in it, and `(F^-1_QQ)^-1 w_Q`.
    fn reaction(
        &self,
        weights: &[f64],
        run: &Range<usize>,
    ) -> Result<(usize, Range<usize>, Matrix), Singular> {
        let block = run.start / self.block;
        let first = block * self.block;
        let own = run.start - first..run.end - first;
        let columns: Vec<usize> = own.clone().collect();
        let inverse = self.inverses[block].select_both(&columns);
        let w = Matrix::from_fn(columns.len(), 1, |k, _| weights[run.start + k]);
        Ok((block, own, solve(&inverse, &w)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{inverse, near, random};

    /// Eight weights in blocks of `block`, after 30 gradients; and the gradients.
    fn fisher(block: usize) -> (BlockFisher, Matrix) {
        let gradients = random(30, 8, 1);
        let mut fisher = BlockFisher::new(8, block, 0.1, 30);
        (0..30).for_each(|k| fisher.add(gradients.row(k)));
        (fisher, gradients)
    }

    #[test]
    fn the_inverse_is_that_of_the_damped_mean() {
        let (fisher, gradients) = fisher(8);
        let mean = gradients.gram().map(|v| v / 30.0);
        let damped = mean.add(&Matrix::identity(8).map(|v| 0.1 * v));
        let far = fisher.inverses[0].sub(&inverse(&damped)).square_sum();
        assert!(far < 1e-18);
        let mut one = BlockFisher::new(3, 3, 0.5, 1);
        one.add(&[1.0, -2.0, 0.5]);
        let g = Matrix::new(3, 1, vec![1.0, -2.0, 0.5]).expect("as many");
        let direct = g
            .mul_transposed(&g)
            .add(&Matrix::identity(3).map(|v| 0.5 * v));
        assert!(one.inverses[0].sub(&inverse(&direct)).square_sum() < 1e-18);
    }

    #[test]
    fn removing_costs_what_was_said_and_no_update_is_cheaper() {
        let (fisher, gradients) = fisher(8);
        let f = gradients
            .gram()
            .map(|v| v / 30.0)
            .add(&Matrix::identity(8).map(|v| 0.1 * v));
        let before = random(1, 8, 2).data().to_vec();
        let cost = |after: &[f64]| {
            let delta = Matrix::from_fn(1, 8, |_, c| after[c] - before[c]);
            0.5 * delta.quadratic(&f)
        };
        for run in [3..4, 2..6] {
            let mut after = before.clone();
            fisher
                .remove(&mut after, run.clone())
                .expect("positive definite");
            assert!(after[run.clone()].iter().all(|&w| w == 0.0));
            near(
                cost(&after),
                fisher.saliency(&before, run.clone()).expect("sound"),
                1e-9,
            );
            for other in (0..8).filter(|i| !run.contains(i)) {
                for step in [-0.01, 0.01] {
                    let mut moved = after.clone();
                    moved[other] += step;
                    assert!(cost(&moved) > cost(&after));
                }
            }
        }
    }

    #[test]
    fn one_weight_alone_is_the_known_formula_and_blocks_are_apart() {
        let (fisher, _) = fisher(4);
        let w = random(1, 8, 3).data().to_vec();
        let own = fisher.inverses[1][(2, 2)];
        near(
            fisher.saliency(&w, 6..7).expect("sound"),
            w[6] * w[6] / (2.0 * own),
            1e-12,
        );
        let mut after = w.clone();
        fisher.remove(&mut after, 6..7).expect("sound");
        assert_eq!(after[..4], w[..4]);
        assert!(after[4..6] != w[4..6]);
    }
}
