//! Which weights are kept: patterns of sparsity, and masks of the least important weights.
//!
//! A pattern says where weights compete: over the whole tensor, inside each row, in runs of `M` of a row (N:M), or as
//! blocks of a row that are kept or dropped whole. Of equal scores the earlier weight is dropped first, so that exactly
//! as many are dropped as were asked for.
//! Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), section 3 (rows);
//! Mishra et al., "Accelerating Sparse Deep Neural Networks" (N:M).

use super::matrix::Matrix;
use super::threads;

/// Where weights compete, and how many are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// The share `sparsity` of the whole tensor.
    Tensor {
        /// Share that is dropped, 0 to 1.
        sparsity: f64,
    },
    /// The share `sparsity` of each row.
    Rows {
        /// Share that is dropped, 0 to 1.
        sparsity: f64,
    },
    /// `keep` of every `of` consecutive inputs of a row are kept.
    NOfM {
        /// Kept of each run.
        keep: usize,
        /// Length of a run.
        of: usize,
    },
    /// Runs of `len` inputs of a row are kept or dropped whole; the share `sparsity` of each row's runs is dropped.
    Blocks {
        /// Length of a run.
        len: usize,
        /// Share that is dropped, 0 to 1.
        sparsity: f64,
    },
}

impl Pattern {
    /// Columns that compete with each other, or go together; 1 where they are not consecutive.
    pub fn run(&self) -> usize {
        match *self {
            Pattern::NOfM { of, .. } => of.max(1),
            Pattern::Blocks { len, .. } => len.max(1),
            Pattern::Tensor { .. } | Pattern::Rows { .. } => 1,
        }
    }
}

/// Which weights are kept, `[O, I]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// True where a weight is kept, row-major.
    pub kept: Vec<bool>,
}

impl Mask {
    /// Keeps everything.
    pub fn all(rows: usize, columns: usize) -> Mask {
        Mask {
            rows,
            columns,
            kept: vec![true; rows * columns],
        }
    }

    /// A row.
    pub fn row(&self, r: usize) -> &[bool] {
        &self.kept[r * self.columns..][..self.columns]
    }

    /// Weights that are kept.
    pub fn count(&self) -> usize {
        self.kept.iter().filter(|&&k| k).count()
    }

    /// Kept weights by all.
    pub fn density(&self) -> f64 {
        self.count() as f64 / self.kept.len().max(1) as f64
    }

    /// The weights with zeros where they are dropped.
    pub fn apply(&self, weights: &Matrix) -> Matrix {
        let mut out = weights.clone();
        let dropped = out.data_mut().iter_mut().zip(&self.kept);
        dropped
            .filter(|(_, kept)| !**kept)
            .for_each(|(w, _)| *w = 0.0);
        out
    }
}

/// The mask of `pattern` that keeps the highest `scores` `[O, I]`.
pub fn mask(scores: &Matrix, pattern: Pattern) -> Mask {
    let (rows, columns) = (scores.rows(), scores.cols());
    let kept = match pattern {
        Pattern::Tensor { sparsity } => {
            let mut kept = vec![true; rows * columns];
            drop_lowest(scores.data(), share(rows * columns, sparsity), &mut kept);
            kept
        }
        _ => threads::map(rows, |r| row_mask(scores.row(r), pattern)).concat(),
    };
    Mask {
        rows,
        columns,
        kept,
    }
}

/// The mask of one row. A short last run of N:M drops in proportion.
fn row_mask(scores: &[f64], pattern: Pattern) -> Vec<bool> {
    let mut kept = vec![true; scores.len()];
    match pattern {
        Pattern::Tensor { sparsity } | Pattern::Rows { sparsity } => {
            drop_lowest(scores, share(scores.len(), sparsity), &mut kept)
        }
        Pattern::NOfM { keep, of } => {
            let of = of.max(1);
            for (s, k) in scores.chunks(of).zip(kept.chunks_mut(of)) {
                drop_lowest(s, run_drop(s.len(), keep, of), k);
            }
        }
        Pattern::Blocks { len, sparsity } => {
            let len = len.max(1);
            let sums: Vec<f64> = scores.chunks(len).map(|s| s.iter().sum()).collect();
            let mut whole = vec![true; sums.len()];
            drop_lowest(&sums, share(sums.len(), sparsity), &mut whole);
            for (k, whole) in kept.chunks_mut(len).zip(whole) {
                k.fill(whole);
            }
        }
    }
    kept
}

/// How many of a run of `len` are dropped where `keep` of every `of` stay.
pub(super) fn run_drop(len: usize, keep: usize, of: usize) -> usize {
    len * of.saturating_sub(keep) / of.max(1)
}

/// How many of `count` the share `sparsity` is.
pub(super) fn share(count: usize, sparsity: f64) -> usize {
    ((count as f64 * sparsity.clamp(0.0, 1.0)) as usize).min(count)
}

/// Clears `kept` at the `count` lowest scores; of equal ones, the earlier.
pub(super) fn drop_lowest(scores: &[f64], count: usize, kept: &mut [bool]) {
    if count == 0 {
        return;
    }
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    let by_score = |a: &u32, b: &u32| {
        let (x, y) = (scores[*a as usize], scores[*b as usize]);
        x.total_cmp(&y).then(a.cmp(b))
    };
    if count < order.len() {
        order.select_nth_unstable_by(count - 1, by_score);
    }
    order[..count]
        .iter()
        .for_each(|&i| kept[i as usize] = false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, random};

    #[test]
    fn exactly_as_many_are_dropped_as_asked() {
        let scores = random(7, 37, 1).map(|v| (v * 2.0).round());
        for sparsity in [0.0, 0.3, 0.5, 0.99, 1.0] {
            let rows = mask(&scores, Pattern::Rows { sparsity });
            let want = 37 - (37.0 * sparsity) as usize;
            assert!((0..7).all(|r| rows.row(r).iter().filter(|k| **k).count() == want));
            let tensor = mask(&scores, Pattern::Tensor { sparsity });
            assert_eq!(tensor.count(), 259 - (259.0 * sparsity) as usize);
            let blocks = mask(&scores, Pattern::Blocks { len: 4, sparsity });
            for r in 0..7 {
                let whole = blocks.row(r).chunks(4);
                assert!(whole.clone().all(|b| b.iter().all(|k| *k == b[0])));
                assert_eq!(whole.filter(|b| !b[0]).count(), (10.0 * sparsity) as usize);
            }
        }
    }

    #[test]
    fn runs_keep_their_highest() {
        let scores = random(5, 64, 2);
        let m = mask(&scores, Pattern::NOfM { keep: 2, of: 4 });
        for r in 0..5 {
            for (s, k) in scores.row(r).chunks(4).zip(m.row(r).chunks(4)) {
                let kept = s.iter().zip(k).filter(|(_, k)| **k).map(|(s, _)| *s);
                let lost = s.iter().zip(k).filter(|(_, k)| !**k).map(|(s, _)| *s);
                assert_eq!(kept.clone().count(), 2);
                assert!(
                    kept.fold(f64::INFINITY, f64::min) >= lost.fold(f64::NEG_INFINITY, f64::max)
                );
            }
        }
    }

    #[test]
    fn energy_lost_of_normals_is_the_known_share() {
        let w = random(500, 2000, 3);
        let scores = w.map(f64::abs);
        let lost = |p| 1.0 - mask(&scores, p).apply(&w).square_sum() / w.square_sum();
        for (keep, of, golden) in [(1, 2, 0.181), (2, 4, 0.132), (4, 8, 0.103), (1, 4, 0.382)] {
            near(lost(Pattern::NOfM { keep, of }), golden, 0.01);
        }
        near(lost(Pattern::Tensor { sparsity: 0.5 }), 0.071, 0.01);
    }
}
