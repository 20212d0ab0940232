//! Which rows and columns share a step and a table of frequencies.
//!
//! Columns are put together by the step that is best for them, rows by how large their weights are at that step: codes of
//! rows of one size have less entropy than a mixture of all. Either costs the order of the axis, so it is done where it gains
//! more. Both are equal cuts of the sorted axis.

use super::parts::{CODES, Lengths};
use super::{MOST, nearest};
use crate::methods::grid::{index_type, stored_scale};
use crate::methods::matrix::Matrix;
use lapidary_ir::ElemType;

/// Weights that classes and the first step are found by.
const SAMPLE: usize = 1 << 18;

/// Most classes of an axis.
const MOST_CLASSES: usize = 16;

/// Classes of the columns as they are swept, and of the rows.
pub(super) struct Grouping {
    /// Class of each row.
    pub rows: Vec<usize>,
    /// Class of each swept column.
    pub columns: Vec<usize>,
    /// Steps of the columns' classes, with the geometric mean of all columns' being 1.
    pub relative: Vec<f64>,
}

impl Grouping {
    /// Classes for the weights `swept`, whose columns' errors weigh `1 / diagonal²`, and the step at which codes that are
    /// rounded to nearest take about `rate` bits. No step makes codes too large to store.
    pub fn of(swept: &Matrix, diagonal: &[f64], rate: f64) -> (Grouping, f64) {
        let mut found = Grouping::of_columns(diagonal, swept.rows());
        let step = found.first_step(swept, rate);
        let square_sum = |r: usize| {
            let row = swept.row(r).iter().zip(&found.columns);
            row.map(|(w, &k)| (w / found.relative[k]).powi(2))
                .sum::<f64>()
        };
        let sizes: Vec<f64> = (0..swept.rows()).map(square_sum).collect();
        let price = |rows: &Vec<usize>| {
            let classes = rows.iter().max().map_or(1, |m| m + 1);
            let index = f64::from(index_type(rows.len()).bits()) / swept.cols() as f64;
            let bits = found.bits(swept, rows, step);
            if classes > 1 { bits + index } else { bits }
        };
        let splits = counts(swept.rows()).map(|n| classes(&sizes, n));
        let best = splits.min_by(|a, b| price(a).total_cmp(&price(b)));
        found.rows = best.expect("a weight has a row");
        let step = found.first_step(swept, rate);
        (found, step)
    }

    /// One class of rows, and as many of columns with like `diagonal` as gain the most bits after what they cost themselves.
    fn of_columns(diagonal: &[f64], rows: usize) -> Grouping {
        let columns = diagonal.len();
        let logs: Vec<f64> = diagonal.iter().map(|u| u.ln()).collect();
        let all = logs.iter().sum::<f64>() / columns as f64;
        let split = |count: usize| {
            let class = classes(diagonal, count);
            let relative = (0..count).map(|k| {
                let own = (0..columns).filter(|&c| class[c] == k);
                let (n, sum) = own.fold((0.0, 0.0), |(n, sum), c| (n + 1.0, sum + logs[c]));
                f64::exp(sum / f64::max(n, 1.0) - all)
            });
            Grouping {
                rows: vec![0; rows],
                relative: relative.collect(),
                columns: class,
            }
        };
        let price = |g: &Grouping| {
            // Half the logarithm of how much the error falls at the same mean rate.
            let of = |c: usize| (g.relative[g.columns[c]] / diagonal[c]).powi(2);
            let loss = 0.5 * (0..columns).map(of).sum::<f64>().log2();
            let count = g.relative.len();
            // A table of some twenty frequencies, and what else a block stores.
            let tables = 500.0 * count as f64 / (rows * columns) as f64;
            let index = f64::from(index_type(columns).bits()) / rows as f64;
            loss + tables + if count > 1 { index } else { 0.0 }
        };
        let splits = counts(columns).map(split);
        splits
            .min_by(|a, b| price(a).total_cmp(&price(b)))
            .expect("a weight has a column")
    }

    /// The step of each class of columns.
    pub fn steps(&self, step: f64) -> Vec<f64> {
        let stored = |relative: &f64| stored_scale(step * relative, ElemType::F32);
        self.relative.iter().map(stored).collect()
    }

    /// Lengths of the codes of a sample that are rounded to nearest, by classes of rows and of columns.
    pub fn lengths(&self, swept: &Matrix, rows: &[usize], step: f64) -> Vec<Lengths> {
        let (steps, every) = (self.steps(step), every(swept));
        let bands = rows.iter().max().map_or(1, |m| m + 1);
        let mut counts = vec![[0u64; CODES]; bands * steps.len()];
        for r in (0..swept.rows()).step_by(every) {
            for (w, &k) in swept.row(r).iter().zip(&self.columns) {
                let code = nearest(w / steps[k]) as i32 + MOST;
                counts[rows[r] * steps.len() + k][code as usize] += 1;
            }
        }
        counts.iter().map(Lengths::of).collect()
    }

    /// Bits for each weight by these classes of rows, without the order of an axis.
    fn bits(&self, swept: &Matrix, rows: &[usize], step: f64) -> f64 {
        let sampled = swept.rows().div_ceil(every(swept)) * swept.cols();
        let all = self.lengths(swept, rows, step);
        all.iter().map(|l| l.total).sum::<f64>() / sampled as f64
    }

    /// The least step with which no weight has a code too large to store; 0 if all weights are.
    pub fn least_step(&self, swept: &Matrix) -> f64 {
        let top = |r: usize| {
            let row = swept.row(r).iter().zip(&self.columns);
            let places = row.map(|(w, &k)| w.abs() / self.relative[k]);
            places.fold(0.0, f64::max)
        };
        (0..swept.rows()).map(top).fold(0.0, f64::max) / f64::from(MOST)
    }

    fn first_step(&self, swept: &Matrix, rate: f64) -> f64 {
        let least = self.least_step(swept);
        if least == 0.0 {
            return 1.0;
        }
        let mut low = least.log2();
        // Twice the largest weight.
        let mut high = low + f64::from(2 * MOST).log2();
        for _ in 0..20 {
            let middle = (low + high) / 2.0;
            if self.bits(swept, &self.rows, middle.exp2()) > rate {
                low = middle;
            } else {
                high = middle;
            }
        }
        high.exp2()
    }
}

/// Of so many rows one is looked at.
fn every(swept: &Matrix) -> usize {
    (swept.rows() * swept.cols()).div_ceil(SAMPLE)
}

/// Numbers of classes that an axis may have.
fn counts(len: usize) -> impl Iterator<Item = usize> {
    let doubled = std::iter::successors(Some(1), |n| Some(2 * n));
    doubled.take_while(move |&n| n <= len.min(MOST_CLASSES))
}

/// Classes of equal size by rising `keys`.
fn classes(keys: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    let mut out = vec![0; keys.len()];
    let places = order.iter().enumerate();
    places.for_each(|(place, &k)| out[k] = place * count / keys.len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::random;

    #[test]
    fn classes_of_columns_are_made_where_they_gain() {
        let steep: Vec<f64> = (0..64).map(|i| f64::from(i + 1)).collect();
        let found = Grouping::of_columns(&steep, 1000);
        assert!(found.relative.len() > 1);
        let logs = found.columns.iter().map(|&k| found.relative[k].ln());
        assert!(logs.sum::<f64>().abs() < 1e-9);
        // Four rows cannot pay for the order of their columns.
        assert_eq!(Grouping::of_columns(&steep, 4).relative.len(), 1);
        assert_eq!(Grouping::of_columns(&[2.0; 64], 1000).relative, [1.0]);
    }

    #[test]
    fn rows_of_other_sizes_are_apart() {
        let w = random(64, 256, 3);
        let mixed = Matrix::from_fn(64, 256, |r, c| {
            if r % 2 == 0 {
                20.0 * w[(r, c)]
            } else {
                w[(r, c)]
            }
        });
        let count = |w: &Matrix| {
            let rows = Grouping::of(w, &[1.0; 256], 3.0).0.rows;
            rows.iter().max().map_or(0, |m| m + 1)
        };
        assert_eq!(count(&w), 1);
        assert_eq!(count(&mixed), 2);
    }
}
