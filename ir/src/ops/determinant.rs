//! Determinants.

use super::{Eval, OpDef, OpError, Operand, Tolerance};
use crate::tensor::Tensor;
use crate::types::TensorType;
use crate::Type;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&DET];

/// Determinant of square matrices.
pub static DET: OpDef = OpDef {
    name: "det",
    summary: "determinant of the square matrices in the last two axes",
    source: "ONNX Det-22",
    operands: &[Operand::One("x")],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        let shape = match ctx.shape(0)? {
            None => None,
            Some([batch @ .., n, m]) => match (n.as_const(), m.as_const()) {
                (Some(n), Some(m)) if n != m => return Err(OpError::new(format!("takes square matrices, found {n} by {m}"))),
                _ => Some(batch.to_vec()),
            },
            Some(_) => return Err(OpError::new("takes rank 2 or more")),
        };
        Ok(vec![Type::Tensor(TensorType { elem, shape })])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let (Some(values), [batch @ .., n, m]) = (x.floats(), x.shape()) else {
            return Err(OpError::new("takes floats of rank 2 or more"));
        };
        if n != m {
            return Err(OpError::new(format!("takes square matrices, found {n} by {m}")));
        }
        let count = crate::tensor::count(batch);
        let out = (0..count).map(|b| det(values[b * n * n..(b + 1) * n * n].to_vec(), *n)).collect();
        Ok(vec![Tensor::from_f64(x.elem(), batch, out).into()])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Gaussian elimination with the largest pivot of each column.
fn det(mut a: Vec<f64>, n: usize) -> f64 {
    let mut product = 1.0;
    for k in 0..n {
        let pivot = (k..n).fold(k, |p, r| if a[r * n + k].abs() > a[p * n + k].abs() { r } else { p });
        if a[pivot * n + k] == 0.0 {
            return 0.0;
        }
        if pivot != k {
            (0..n).for_each(|c| a.swap(k * n + c, pivot * n + c));
            product = -product;
        }
        product *= a[k * n + k];
        for r in k + 1..n {
            let factor = a[r * n + k] / a[k * n + k];
            (k..n).for_each(|c| a[r * n + c] -= factor * a[k * n + c]);
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use crate::eval::testing::{f32s, gives, refuses};

    #[test]
    fn determinants() {
        let cases: &[(&[usize], &[f64], &[usize], &[f64])] = &[
            (&[2, 2], &[0.0, 2.0, 3.0, 4.0], &[], &[-6.0]),
            (&[2, 1, 1], &[3.0, -1.0], &[2], &[3.0, -1.0]),
            (&[2, 2], &[1.0, 2.0, 2.0, 4.0], &[], &[0.0]),
        ];
        for (shape, values, out, expected) in cases {
            gives("det", &[f32s(shape, values)], &[], &[f32s(out, expected)]);
        }
        refuses("det", &[f32s(&[1, 2], &[1.0, 2.0])], &[], "square");
    }
}
