//! The matrix that methods work on: row-major, `f64`.
//!
//! Weights are `f32` in models; methods accumulate over thousands of columns, divide by pivots and compare small
//! differences of large sums, so all of them compute in `f64`. Products and factorizations are faer's.

use super::threads;
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use std::ops::{Index, IndexMut, Range};

/// A dense row-major matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Matrix {
    /// A matrix `[rows, cols]` of row-major `data`; `None` if the lengths disagree.
    pub fn new(rows: usize, cols: usize, data: Vec<f64>) -> Option<Matrix> {
        (rows.checked_mul(cols) == Some(data.len())).then_some(Matrix { rows, cols, data })
    }

    /// As [`Matrix::new`], from weights as they are stored.
    pub fn from_f32(rows: usize, cols: usize, data: &[f32]) -> Option<Matrix> {
        Matrix::new(rows, cols, data.iter().map(|&v| f64::from(v)).collect())
    }

    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix {
            rows,
            cols,
            data: vec![0.0; rows * cols],
        }
    }

    /// The matrix whose elements are `f(row, column)`.
    pub fn from_fn(rows: usize, cols: usize, f: impl Fn(usize, usize) -> f64) -> Matrix {
        let data = (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c)));
        Matrix {
            rows,
            cols,
            data: data.map(|(r, c)| f(r, c)).collect(),
        }
    }

    /// The identity of `n` rows.
    pub fn identity(n: usize) -> Matrix {
        Matrix::from_fn(n, n, |r, c| f64::from(u8::from(r == c)))
    }

    /// The matrix with `f(row, row's elements)` as its rows, which have `cols` elements; rows are computed in parallel.
    pub fn from_rows(rows: usize, cols: usize, f: impl Fn(usize, &mut [f64]) + Sync) -> Matrix {
        let mut out = Matrix::zeros(rows, cols);
        if cols > 0 {
            let tasks = out
                .data
                .chunks_mut(threads::ROWS * cols)
                .enumerate()
                .collect();
            threads::for_each(tasks, |(at, chunk): (usize, &mut [f64])| {
                for (k, row) in chunk.chunks_mut(cols).enumerate() {
                    f(at * threads::ROWS + k, row);
                }
            });
        }
        out
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All elements, row-major.
    pub fn data(&self) -> &[f64] {
        &self.data
    }

    /// All elements, row-major.
    pub fn data_mut(&mut self) -> &mut [f64] {
        &mut self.data
    }

    /// A row.
    pub fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.cols..][..self.cols]
    }

    /// A row.
    pub fn row_mut(&mut self, r: usize) -> &mut [f64] {
        &mut self.data[r * self.cols..][..self.cols]
    }

    /// The diagonal.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.rows.min(self.cols))
            .map(|i| self[(i, i)])
            .collect()
    }

    /// True if there is no NaN and no infinity.
    pub fn is_finite(&self) -> bool {
        self.data.iter().all(|v| v.is_finite())
    }

    /// The matrix with rows and columns exchanged.
    pub fn transpose(&self) -> Matrix {
        Matrix::from_fn(self.cols, self.rows, |r, c| self[(c, r)])
    }

    /// Element-wise `f`.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Matrix {
        Matrix {
            data: self.data.iter().map(|&v| f(v)).collect(),
            ..*self
        }
    }

    /// Element-wise `f` of two matrices of one shape.
    pub fn zip(&self, other: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
        debug_assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        let pairs = self.data.iter().zip(&other.data);
        Matrix {
            data: pairs.map(|(&a, &b)| f(a, b)).collect(),
            ..*self
        }
    }

    /// `self - other`.
    pub fn sub(&self, other: &Matrix) -> Matrix {
        self.zip(other, |a, b| a - b)
    }

    /// `self + other`.
    pub fn add(&self, other: &Matrix) -> Matrix {
        self.zip(other, |a, b| a + b)
    }

    /// `self * diag(v)`: each column times a factor.
    pub fn scale_columns(&self, v: &[f64]) -> Matrix {
        Matrix::from_fn(self.rows, self.cols, |r, c| self[(r, c)] * v[c])
    }

    /// The columns `columns[0]`, `columns[1]` …
    pub fn select_columns(&self, columns: &[usize]) -> Matrix {
        Matrix::from_fn(self.rows, columns.len(), |r, c| self[(r, columns[c])])
    }

    /// The rows and columns `index[0]`, `index[1]` … of a square matrix.
    pub fn select_both(&self, index: &[usize]) -> Matrix {
        Matrix::from_fn(index.len(), index.len(), |r, c| self[(index[r], index[c])])
    }

    /// Rows `rows`, columns `cols`.
    pub fn block(&self, rows: Range<usize>, cols: Range<usize>) -> Matrix {
        Matrix::from_fn(rows.len(), cols.len(), |r, c| {
            self[(rows.start + r, cols.start + c)]
        })
    }

    /// Sum of squares.
    pub fn square_sum(&self) -> f64 {
        self.data.iter().map(|v| v * v).sum()
    }

    /// `self * other`.
    pub fn mul(&self, other: &Matrix) -> Matrix {
        debug_assert_eq!(self.cols, other.rows);
        self.product(other.view(), other.cols)
    }

    /// `self * other^T`.
    pub fn mul_transposed(&self, other: &Matrix) -> Matrix {
        debug_assert_eq!(self.cols, other.cols);
        self.product(other.view().transpose(), other.rows)
    }

    /// `self^T * self`.
    pub fn gram(&self) -> Matrix {
        self.transpose().mul(self)
    }

    /// `tr(self * h * self^T)` for a square `h`: the sum over rows `d` of `d h d^T`.
    pub fn quadratic(&self, h: &Matrix) -> f64 {
        // In pieces, so that the product itself is never held whole.
        let pieces = self.rows.div_ceil(threads::ROWS);
        let sums = threads::map(pieces, |at| {
            let rows = at * threads::ROWS..((at + 1) * threads::ROWS).min(self.rows);
            let len = rows.len();
            let part = &self.data[rows.start * self.cols..rows.end * self.cols];
            let mut out = vec![0.0; part.len()];
            matmul(
                MatMut::from_row_major_slice_mut(&mut out, len, self.cols),
                Accum::Replace,
                MatRef::from_row_major_slice(part, len, self.cols),
                h.view(),
                1.0,
                Par::Seq,
            );
            out.iter().zip(part).map(|(a, b)| a * b).sum::<f64>()
        });
        sums.iter().sum()
    }

    fn product(&self, other: MatRef<'_, f64>, cols: usize) -> Matrix {
        let mut out = Matrix::zeros(self.rows, cols);
        if cols == 0 || self.rows == 0 || self.cols == 0 {
            return out;
        }
        let tasks = out
            .data
            .chunks_mut(threads::ROWS * cols)
            .zip(self.data.chunks(threads::ROWS * self.cols))
            .collect();
        threads::for_each(tasks, |(dst, lhs): (&mut [f64], &[f64])| {
            let rows = lhs.len() / self.cols;
            matmul(
                MatMut::from_row_major_slice_mut(dst, rows, cols),
                Accum::Replace,
                MatRef::from_row_major_slice(lhs, rows, self.cols),
                other,
                1.0,
                Par::Seq,
            );
        });
        out
    }

    /// The matrix as faer sees it.
    pub(crate) fn view(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.data, self.rows, self.cols)
    }

    /// The matrix as faer changes it.
    pub(crate) fn view_mut(&mut self) -> MatMut<'_, f64> {
        MatMut::from_row_major_slice_mut(&mut self.data, self.rows, self.cols)
    }

    /// A copy of one of faer's matrices.
    pub(crate) fn from_view(m: MatRef<'_, f64>) -> Matrix {
        Matrix::from_fn(m.nrows(), m.ncols(), |r, c| m[(r, c)])
    }
}

impl Index<(usize, usize)> for Matrix {
    type Output = f64;

    fn index(&self, (r, c): (usize, usize)) -> &f64 {
        &self.data[r * self.cols + c]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (r, c): (usize, usize)) -> &mut f64 {
        &mut self.data[r * self.cols + c]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::random;

    #[test]
    fn products_equal_the_plain_sums() {
        let (a, b) = (random(70, 33, 1), random(33, 9, 2));
        let plain = Matrix::from_fn(70, 9, |r, c| (0..33).map(|k| a[(r, k)] * b[(k, c)]).sum());
        let far = |m: &Matrix| m.sub(&plain).square_sum();
        assert!(far(&a.mul(&b)) < 1e-20);
        assert!(far(&a.mul_transposed(&b.transpose())) < 1e-20);
        let h = b.mul_transposed(&b);
        let direct = a.mul(&b).square_sum();
        assert!((a.quadratic(&h) / direct - 1.0).abs() < 1e-12);
    }

    #[test]
    fn lengths_must_agree() {
        assert!(Matrix::new(2, 3, vec![0.0; 5]).is_none());
        assert!(Matrix::new(0, 3, vec![]).is_some());
    }
}
