//! Optimal brain surgeon: removes whole columns, and updates the rest to make up for them, exactly.
//!
//! Removing the columns `S` costs `Σ_rows w_S (h^-1_SS)^-1 w_S^T`; the best update of the rest is
//! `W -= W_S (h^-1_SS)^-1 h^-1_S`, which is least squares on what stays; `h^-1` is then downdated to that of the columns
//! that are left. Columns are taken one structure (a head, a neuron, one column) after the other, so that of two columns
//! that say the same only one goes.
//! Source: Hassibi, Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon"; Kurtic, Frantar,
//! Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models", section 3.

use super::factor::{Singular, solve};
use super::matrix::Matrix;

/// A weight whose columns are removed one structure after the other.
#[derive(Clone, Debug)]
pub struct Surgeon {
    /// The weight with the updates so far, `[O, I]`; removed columns are zero.
    pub weight: Matrix,
    /// Inverse of the Hessian of the columns that are left, zeros elsewhere.
    inverse: Matrix,
    /// Structures that are left: their columns.
    structures: Vec<Vec<usize>>,
}

impl Surgeon {
    /// Starts with `weight` `[O, I]`, the positive definite `hessian` `[I, I]`, and the structures' columns.
    pub fn new(
        weight: &Matrix,
        hessian: &Matrix,
        structures: Vec<Vec<usize>>,
    ) -> Result<Surgeon, Singular> {
        Ok(Surgeon {
            weight: weight.clone(),
            inverse: solve(hessian, &Matrix::identity(hessian.rows()))?,
            structures,
        })
    }

    /// What removing these columns costs in `tr(Δ H Δ^T)`.
    pub fn saliency(&self, columns: &[usize]) -> Result<f64, Singular> {
        let own = self.weight.select_columns(columns);
        let block = self.inverse.select_both(columns);
        let reacted = solve(&block, &own.transpose())?;
        Ok(own
            .zip(&reacted.transpose(), |a, b| a * b)
            .data()
            .iter()
            .sum())
    }

    /// Removes the structure that costs least; its columns and its cost, or `None` if none is left.
    pub fn remove_least(&mut self) -> Result<Option<(Vec<usize>, f64)>, Singular> {
        let mut best: Option<(usize, f64)> = None;
        for (k, columns) in self.structures.iter().enumerate() {
            let cost = self.saliency(columns)?;
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((k, cost));
            }
        }
        let Some((k, cost)) = best else {
            return Ok(None);
        };
        let columns = self.structures.remove(k);
        self.remove(&columns)?;
        Ok(Some((columns, cost)))
    }

    /// Removes these columns at once.
    pub fn remove(&mut self, columns: &[usize]) -> Result<(), Singular> {
        let n = self.inverse.rows();
        let rows = Matrix::from_fn(columns.len(), n, |r, c| self.inverse[(columns[r], c)]);
        // (h^-1_SS)^-1 h^-1_S, [S, I].
        let reaction = solve(&self.inverse.select_both(columns), &rows)?;
        let own = self.weight.select_columns(columns);
        self.weight = self.weight.sub(&own.mul(&reaction));
        self.inverse = self.inverse.sub(&rows.transpose().mul(&reaction));
        for &c in columns {
            (0..self.weight.rows()).for_each(|r| self.weight[(r, c)] = 0.0);
            (0..n).for_each(|i| {
                self.inverse[(i, c)] = 0.0;
                self.inverse[(c, i)] = 0.0;
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{correlated, near, random};

    fn singles(n: usize) -> Vec<Vec<usize>> {
        (0..n).map(|i| vec![i]).collect()
    }

    #[test]
    fn removing_columns_is_least_squares_on_the_rest() {
        let x = correlated(24, 400, 1);
        let h = x.gram();
        let w = random(10, 24, 2);
        let gone = [3, 4, 5];
        let kept: Vec<usize> = (0..24).filter(|i| !gone.contains(i)).collect();
        let mut surgeon = Surgeon::new(&w, &h, singles(24)).expect("positive definite");
        let saliency = surgeon.saliency(&gone).expect("positive definite");
        surgeon.remove(&gone).expect("positive definite");
        // W X X_K^T (X_K X_K^T)^-1
        let right = Matrix::from_fn(21, 10, |k, r| {
            (0..24).map(|i| w[(r, i)] * h[(i, kept[k])]).sum()
        });
        let least = solve(&h.select_both(&kept), &right).expect("positive definite");
        let found = surgeon.weight.select_columns(&kept).transpose();
        assert!(found.sub(&least).square_sum() / least.square_sum() < 1e-18);
        near(saliency, w.sub(&surgeon.weight).quadratic(&h), 1e-9);
        let inverse = crate::methods::testing::inverse(&h.select_both(&kept));
        let downdated = surgeon.inverse.select_both(&kept);
        assert!(downdated.sub(&inverse).square_sum() / inverse.square_sum() < 1e-16);
    }

    #[test]
    fn one_after_the_other_is_all_at_once() {
        let h = correlated(20, 300, 3).gram();
        let w = random(6, 20, 4);
        let structures: Vec<Vec<usize>> = (0..10).map(|i| vec![2 * i, 2 * i + 1]).collect();
        let mut surgeon = Surgeon::new(&w, &h, structures).expect("positive definite");
        let (mut gone, mut cost) = (vec![], 0.0);
        for _ in 0..4 {
            let (columns, least) = surgeon.remove_least().expect("sound").expect("some left");
            gone.extend(columns);
            cost += least;
        }
        let mut at_once = Surgeon::new(&w, &h, singles(20)).expect("positive definite");
        at_once.remove(&gone).expect("positive definite");
        let far = surgeon.weight.sub(&at_once.weight).square_sum();
        assert!(far / at_once.weight.square_sum() < 1e-12);
        near(cost, w.sub(&surgeon.weight).quadratic(&h), 1e-6);
    }

    #[test]
    fn of_two_equal_columns_one_stays() {
        let mut x = random(200, 8, 5);
        (0..200).for_each(|r| x[(r, 1)] = x[(r, 0)] + 1e-4 * x[(r, 1)]);
        let mut w = random(4, 8, 6).map(|v| v + 3.0);
        (0..4).for_each(|r| w[(r, 1)] = w[(r, 0)]);
        let mut surgeon = Surgeon::new(&w, &x.gram(), singles(8)).expect("positive definite");
        let mut first = || surgeon.remove_least().expect("sound").expect("some left").0[0];
        let (a, b) = (first(), first());
        assert!(a <= 1 && b > 1, "{a} {b}");
    }

    #[test]
    fn all_columns_can_go() {
        let h = random(30, 3, 7).gram();
        let mut surgeon = Surgeon::new(&random(2, 3, 8), &h, singles(3)).expect("sound");
        (0..3).for_each(|_| assert!(surgeon.remove_least().expect("sound").is_some()));
        assert_eq!(surgeon.remove_least(), Ok(None));
        assert_eq!(surgeon.weight, Matrix::zeros(2, 3));
    }
}
