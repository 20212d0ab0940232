//! Matrices: det.

use super::call::{Call, Results, fail, one};
use super::number;
use crate::value::count;

pub fn det(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let (true, &[ref batch @ .., n, m]) = (data.elem().is_float(), data.dims()) else {
        return fail("takes floats of rank 2 or more");
    };
    if n != m {
        return fail(format!("takes square matrices, found {n} by {m}"));
    }
    let values = number::floats(data);
    let determinants: Vec<f64> = (0..count(batch)?)
        .map(|b| determinant(values[b * n * n..(b + 1) * n * n].to_vec(), n))
        .collect();
    one(number::from_floats(
        data.elem(),
        batch.to_vec(),
        &determinants,
    )?)
}

/// Gaussian elimination with the largest pivot of each column.
fn determinant(mut a: Vec<f64>, n: usize) -> f64 {
    let mut product = 1.0;
    for k in 0..n {
        let size = |row: usize| a[row * n + k].abs();
        let pivot = (k..n).fold(
            k,
            |best, row| if size(row) > size(best) { row } else { best },
        );
        if size(pivot) == 0.0 {
            return 0.0;
        }
        if pivot != k {
            (0..n).for_each(|c| a.swap(k * n + c, pivot * n + c));
            product = -product;
        }
        product *= a[k * n + k];
        for row in k + 1..n {
            let factor = a[row * n + k] / a[k * n + k];
            (k..n).for_each(|c| a[row * n + c] -= factor * a[k * n + c]);
        }
    }
    product
}
