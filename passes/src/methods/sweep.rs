//! Error feedback from column to column: the sweep that GPTQ, SparseGPT, SpQR and others share.
//!
//! With `h^-1 = U^T U`, columns are fixed from left to right; the error `e = (w - q) / U_jj` of a column is spread over
//! the columns that are still free by `w_k -= e U_jk`, which is the least-squares reaction to it. Spreading is lazy:
//! inside a block of columns row by row, for the columns behind it by one product. Rows do not depend on each other.
//! The sum of all `e²` is the quadratic error under the damped `h`, exactly.
//! Source: "GPTQ: Accurate Post-training Compression for Generative Pretrained Transformers", section 3.3.

use super::factor::inverse_upper;
use super::matrix::Matrix;
use super::threads;
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use std::ops::Range;

/// Columns of a block, if groups do not ask for others.
pub const BLOCK: usize = 128;

/// What decides the values of columns.
pub trait Rounding: Sync {
    /// What is kept for each row.
    type Row: Send;

    /// The state of a row before its first column.
    fn start(&self, row: usize) -> Self::Row;

    /// Columns that belong together; a group is never cut by the end of a block unless it is longer than one.
    fn group_len(&self) -> usize;

    /// How far ahead a group looks: itself, or a larger group that it is a part of.
    fn span_len(&self) -> usize {
        self.group_len()
    }

    /// Sees all rows before a block, with everything so far spread over its columns.
    fn begin_block(&mut self, _weights: &Matrix, _columns: Range<usize>) {}

    /// Sees the weights of a row from the first column of a group on, as far as a span reaches. Errors before the group
    /// are spread over its own columns, and over all of a span that begins with it.
    fn begin_group(&self, state: &mut Self::Row, row: usize, columns: Range<usize>, part: &[f64]);

    /// The value that column `column` takes instead of `weight`.
    fn round(&self, state: &mut Self::Row, row: usize, column: usize, weight: f64) -> f64;
}

/// Codes of all columns in the weight's own order, row by row, of grids or tables that are fixed: `round(row, weight)` gives the
/// value and its code. `weight` `[O, I]` is in its own order.
pub fn sweep_codes(
    weight: &Matrix,
    prepared: &Prepared,
    round: impl Fn(usize, f64) -> (f64, u8) + Sync,
) -> Vec<u8> {
    let mut rounding = Fixed {
        round,
        order: &prepared.order,
    };
    let mut swept = prepared.arrange(weight);
    sweep(&mut swept, &prepared.upper, BLOCK, &mut rounding)
        .0
        .concat()
}

struct Fixed<'a, F> {
    round: F,
    order: &'a [usize],
}

impl<F: Fn(usize, f64) -> (f64, u8) + Sync> Rounding for Fixed<'_, F> {
    type Row = Vec<u8>;

    fn start(&self, _: usize) -> Vec<u8> {
        vec![0; self.order.len()]
    }

    fn group_len(&self) -> usize {
        self.order.len()
    }

    fn begin_group(&self, _: &mut Vec<u8>, _: usize, _: Range<usize>, _: &[f64]) {}

    fn round(&self, codes: &mut Vec<u8>, row: usize, column: usize, weight: f64) -> f64 {
        let (value, code) = (self.round)(row, weight);
        codes[self.order[column]] = code;
        value
    }
}

/// Rounds all of `weights` `[O, I]` in place by `upper` `[I, I]`. Returns the rows' states, and the sum of `e²`.
pub fn sweep<R: Rounding>(
    weights: &mut Matrix,
    upper: &Matrix,
    block: usize,
    rounding: &mut R,
) -> (Vec<R::Row>, f64) {
    let columns = weights.cols();
    let mut states: Vec<R::Row> = (0..weights.rows()).map(|r| rounding.start(r)).collect();
    let group = rounding.group_len().clamp(1, columns.max(1));
    let span = rounding.span_len().clamp(group, columns.max(1));
    let mut total = 0.0;
    for range in blocks(columns, group, span, block) {
        rounding.begin_block(weights, range.clone());
        let mut sums = vec![0.0; weights.rows().div_ceil(threads::ROWS)];
        let tasks = weights
            .data_mut()
            .chunks_mut(threads::ROWS * columns)
            .zip(states.chunks_mut(threads::ROWS))
            .zip(&mut sums)
            .enumerate()
            .collect();
        let shared: &R = rounding;
        threads::for_each(
            tasks,
            |(at, ((rows, states), sum)): (usize, ((&mut [f64], &mut [R::Row]), &mut f64))| {
                let piece = Piece {
                    first_row: at * threads::ROWS,
                    columns,
                    group,
                    span,
                    range: range.clone(),
                };
                *sum = piece.run(rows, states, upper, shared);
            },
        );
        total += sums.iter().sum::<f64>();
    }
    (states, total)
}

/// The blocks of a sweep: as long as whole spans allow; a longer span is cut into blocks of whole groups, if it can.
fn blocks(columns: usize, group: usize, span: usize, block: usize) -> Vec<Range<usize>> {
    let block = if group <= block {
        block / group * group
    } else {
        block.max(1)
    };
    let span = if span <= block {
        block / span * span
    } else {
        span
    };
    let mut out = vec![];
    for start in (0..columns).step_by(span) {
        let end = (start + span).min(columns);
        out.extend((start..end).step_by(block).map(|a| a..(a + block).min(end)));
    }
    out
}

/// Some rows of one block.
struct Piece {
    first_row: usize,
    columns: usize,
    group: usize,
    span: usize,
    range: Range<usize>,
}

impl Piece {
    fn run<R: Rounding>(
        &self,
        rows: &mut [f64],
        states: &mut [R::Row],
        upper: &Matrix,
        rounding: &R,
    ) -> f64 {
        let (a, b, columns) = (self.range.start, self.range.end, self.columns);
        let mut errors = vec![0.0; states.len() * (b - a)];
        let mut sum = 0.0;
        for (r, state) in states.iter_mut().enumerate() {
            let row = &mut rows[r * columns..][..columns];
            let at = self.first_row + r;
            for j in a..b {
                if j % self.group == 0 {
                    let ahead = j..(j + self.span).min(columns);
                    rounding.begin_group(state, at, ahead.clone(), &row[ahead]);
                }
                let value = rounding.round(state, at, j, row[j]);
                let factors = &upper.row(j)[j..b];
                let e = (row[j] - value) / factors[0];
                row[j] = value;
                if e != 0.0 {
                    let free = row[j + 1..b].iter_mut().zip(&factors[1..]);
                    free.for_each(|(w, u)| *w -= e * u);
                    sum += e * e;
                }
                errors[r * (b - a) + j - a] = e;
            }
        }
        if b < columns {
            let free = MatMut::from_row_major_slice_mut(rows, states.len(), columns);
            matmul(
                free.subcols_mut(b, columns - b),
                Accum::Add,
                MatRef::from_row_major_slice(&errors, states.len(), b - a),
                upper.view().submatrix(a, b, b - a, columns - b),
                -1.0,
                Par::Seq,
            );
        }
        sum
    }
}

/// What methods damp by where nothing else is said.
pub const DAMPING: f64 = 0.01;

/// A Hessian made fit for a sweep.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// `U` with `(P^T h P + damping)^-1 = U^T U`.
    pub upper: Matrix,
    /// The column that is swept `k`-th.
    pub order: Vec<usize>,
    /// Inputs that are always zero; their weights are of no consequence.
    pub dead: Vec<usize>,
    /// What was added to the diagonal.
    pub damping: f64,
    /// What had to be repaired.
    pub assumptions: Vec<String>,
}

/// Damps and factors `hessian` `[I, I]`; `damping` is relative to its mean diagonal. `by_activity` orders columns by
/// falling diagonal, so that the most important are fixed while most others are free.
///
/// Where the factorization fails, damping grows tenfold until it passes; where even that fails, `h` is taken to be
/// the identity. Either is an assumption that the candidate carries.
pub fn prepare(hessian: &Matrix, damping: f64, by_activity: bool) -> Prepared {
    let n = hessian.rows();
    let diagonal = hessian.diagonal();
    let dead: Vec<usize> = (0..n).filter(|&i| diagonal[i] <= 0.0).collect();
    let live = (n - dead.len()).max(1) as f64;
    let mean = diagonal.iter().filter(|&&d| d > 0.0).sum::<f64>() / live;
    let mean = if mean > 0.0 { mean } else { 1.0 };
    let mut order: Vec<usize> = (0..n).collect();
    if by_activity {
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    }
    let mut assumptions = vec![];
    if !dead.is_empty() {
        assumptions.push(format!(
            "{} of {n} inputs were zero in calibration; their weights became zero",
            dead.len()
        ));
    }
    let mut relative = damping.max(0.0);
    while relative <= 10.0 {
        let mut h = if by_activity {
            hessian.select_both(&order)
        } else {
            hessian.clone()
        };
        let added = relative * mean;
        for (k, &column) in order.iter().enumerate() {
            let own = diagonal[column];
            h[(k, k)] = added + if own > 0.0 { own } else { mean };
        }
        if let Ok(upper) = inverse_upper(h) {
            if relative > damping {
                assumptions.push(format!(
                    "the Hessian is singular; it was damped by {relative:e} of its mean diagonal"
                ));
            }
            return Prepared {
                upper,
                order,
                dead,
                damping: added,
                assumptions,
            };
        }
        relative = (relative * 10.0).max(1e-6);
    }
    assumptions.push("the Hessian cannot be factored; inputs were taken as uncorrelated".into());
    Prepared {
        upper: Matrix::identity(n),
        order,
        dead,
        damping: 0.0,
        assumptions,
    }
}

impl Prepared {
    /// The weight as it is swept: dead inputs have none, columns are in order.
    pub fn arrange(&self, weight: &Matrix) -> Matrix {
        let mut is_dead = vec![false; weight.cols()];
        self.dead.iter().for_each(|&d| is_dead[d] = true);
        Matrix::from_fn(weight.rows(), weight.cols(), |r, k| {
            let c = self.order[k];
            if is_dead[c] { 0.0 } else { weight[(r, c)] }
        })
    }

    /// The inverse of [`Prepared::arrange`].
    pub fn restore(&self, swept: &Matrix) -> Matrix {
        let mut place = vec![0; self.order.len()];
        self.order
            .iter()
            .enumerate()
            .for_each(|(k, &c)| place[c] = k);
        swept.select_columns(&place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_never_cut_short_groups() {
        for (columns, group, span, block) in [
            (256, 64, 64, 128),
            (300, 100, 100, 128),
            (300, 200, 200, 128),
            (300, 4, 200, 126),
            (64, 4, 16, 24),
            (7, 7, 7, 3),
        ] {
            let all = blocks(columns, group, span, block);
            let covered: Vec<usize> = all.iter().cloned().flatten().collect();
            assert_eq!(covered, (0..columns).collect::<Vec<_>>());
            assert!(all.iter().all(|r| r.len() <= block));
            for len in [group, span] {
                for g in (0..columns).step_by(len) {
                    let end = (g + len).min(columns);
                    let whole = all.iter().any(|r| r.start <= g && end <= r.end);
                    let begins = all.iter().any(|r| r.start == g);
                    assert!(if len <= block { whole } else { begins }, "{len} at {g}");
                }
            }
        }
    }
}
