//! Factorizations of [`Matrix`], by faer: inverse Cholesky factors, singular values, eigenvalues, least squares.

use super::matrix::Matrix;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Par, Side, Spec};
use lapidary_ir::random::SplitMix64;

/// A matrix that was to be positive definite is not, or an iteration did not converge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the matrix is not positive definite, or its values do not converge")]
pub struct Singular;

/// The upper triangular `U` with `h^-1 = U^T U`, for a symmetric positive definite `h`.
///
/// With rows and columns in reverse, `h = M M^T` for an upper `M`, and `U = M^-1`: one factorization and one
/// triangular inverse, instead of an inverse between two factorizations.
///
/// A Hessian may take a gigabyte: this one is factored in its own place, and the inverse is the only other matrix.
pub fn inverse_upper(mut h: Matrix) -> Result<Matrix, Singular> {
    let n = h.rows();
    // Row-major elements backwards are the matrix with its rows and columns in reverse.
    h.data_mut().reverse();
    let scratch = cholesky_in_place_scratch::<f64>(n, Par::Seq, Spec::default());
    let mut memory = MemBuffer::try_new(scratch).map_err(|_| Singular)?;
    cholesky_in_place(
        h.view_mut(),
        LltRegularization::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .map_err(|_| Singular)?;
    let mut u = Matrix::zeros(n, n);
    invert_lower_triangular(u.view_mut(), h.view(), Par::Seq);
    u.data_mut().reverse();
    let sound = u.is_finite() && u.diagonal().iter().all(|&d| d > 0.0);
    sound.then_some(u).ok_or(Singular)
}

/// `x` with `a x = b`, for a symmetric positive definite `a`; `b` has a right-hand side in each column.
pub fn solve(a: &Matrix, b: &Matrix) -> Result<Matrix, Singular> {
    use faer::linalg::solvers::Solve;
    let llt = a.view().llt(Side::Lower).map_err(|_| Singular)?;
    let x = Matrix::from_view(llt.solve(b.view()).as_ref());
    x.is_finite().then_some(x).ok_or(Singular)
}

/// `a ≈ u diag(values) v^T`, values in falling order.
#[derive(Clone, Debug)]
pub struct Svd {
    /// Left vectors, `[rows, k]`.
    pub u: Matrix,
    /// Singular values.
    pub values: Vec<f64>,
    /// Right vectors, `[cols, k]`.
    pub v: Matrix,
}

/// All `min(rows, cols)` singular values and vectors.
pub fn svd(a: &Matrix) -> Result<Svd, Singular> {
    let svd = a.view().thin_svd().map_err(|_| Singular)?;
    let diagonal = svd.S();
    let out = Svd {
        u: Matrix::from_view(svd.U()),
        values: (0..a.rows().min(a.cols())).map(|i| diagonal[i]).collect(),
        v: Matrix::from_view(svd.V()),
    };
    let sound = out.u.is_finite() && out.v.is_finite();
    sound.then_some(out).ok_or(Singular)
}

/// The largest `rank` singular values and vectors: exactly where that is cheap, else by a range finder with two
/// power steps.
///
/// Source: Halko, Martinsson, Tropp, "Finding structure with randomness", algorithms 4.4 and 5.1.
pub fn leading_svd(a: &Matrix, rank: usize, seed: u64) -> Result<Svd, Singular> {
    let small = a.rows().min(a.cols());
    let rank = rank.min(small);
    if small <= 384 || 4 * (rank + 16) >= small {
        return Ok(svd(a)?.truncated(rank));
    }
    let probes = rank + 16;
    let mut rng = SplitMix64::new(seed);
    let normals = rng.normals(a.cols() * probes);
    let random = Matrix::new(a.cols(), probes, normals).expect("as many numbers as elements");
    let transposed = a.transpose();
    let mut range = orthonormal(&a.mul(&random));
    for _ in 0..2 {
        range = orthonormal(&a.mul(&orthonormal(&transposed.mul(&range))));
    }
    let inner = svd(&range.transpose().mul(a))?;
    Ok(Svd {
        u: range.mul(&inner.u),
        ..inner
    }
    .truncated(rank))
}

impl Svd {
    /// The largest `rank` values and their vectors.
    pub fn truncated(self, rank: usize) -> Svd {
        let rank = rank.min(self.values.len());
        Svd {
            u: self.u.block(0..self.u.rows(), 0..rank),
            values: self.values[..rank].to_vec(),
            v: self.v.block(0..self.v.rows(), 0..rank),
        }
    }
}

/// An orthonormal basis of the columns.
fn orthonormal(a: &Matrix) -> Matrix {
    Matrix::from_view(a.view().qr().compute_thin_Q().as_ref())
}

/// Eigenvalues of a symmetric matrix in rising order, and its eigenvectors as columns.
pub fn eigen(a: &Matrix) -> Result<(Vec<f64>, Matrix), Singular> {
    let e = a
        .view()
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| Singular)?;
    let values = e.S();
    let values = (0..a.rows()).map(|i| values[i]).collect();
    let vectors = Matrix::from_view(e.U());
    vectors
        .is_finite()
        .then_some((values, vectors))
        .ok_or(Singular)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::random;

    #[test]
    fn inverse_factor_gives_the_inverse() {
        let x = random(90, 40, 3);
        let h = x.gram();
        let u = inverse_upper(h.clone()).expect("positive definite");
        let product = u.gram().mul(&h);
        assert!(product.sub(&Matrix::identity(40)).square_sum() < 1e-18);
        assert!((1..40).all(|r| (0..r).all(|c| u[(r, c)] == 0.0)));
    }

    #[test]
    fn singular_matrices_are_refused() {
        let x = random(10, 40, 3);
        assert_eq!(inverse_upper(x.gram().map(|v| v * 0.0)), Err(Singular));
        let nan = Matrix::from_fn(4, 4, |_, _| f64::NAN);
        assert_eq!(inverse_upper(nan), Err(Singular));
    }

    #[test]
    fn leading_values_equal_those_of_the_whole() {
        let (a, b) = (random(500, 20, 5), random(20, 450, 6));
        let m = a.mul(&b);
        let lead = leading_svd(&m, 20, 1).expect("converges");
        let whole = svd(&m).expect("converges");
        for (a, b) in lead.values.iter().zip(&whole.values) {
            assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
        }
        let back = lead.u.scale_columns(&lead.values).mul_transposed(&lead.v);
        assert!(back.sub(&m).square_sum() / m.square_sum() < 1e-20);
    }

    #[test]
    fn eigenvectors_rebuild_the_matrix() {
        let h = random(30, 30, 8).gram();
        let (values, q) = eigen(&h).expect("symmetric");
        let back = q.scale_columns(&values).mul_transposed(&q);
        assert!(back.sub(&h).square_sum() / h.square_sum() < 1e-24);
        assert!(values.windows(2).all(|w| w[0] <= w[1]));
    }

    #[test]
    fn systems_are_solved() {
        let a = random(30, 12, 9).gram();
        let x = random(12, 2, 10);
        let solved = solve(&a, &a.mul(&x)).expect("positive definite");
        assert!(solved.sub(&x).square_sum() < 1e-16);
    }
}
