//! `matmul`: a product of matrices.
//!
//! ```text
//! children: e*                       (at least two; each a matrix)
//! value = e0 · e1 · …, from left to right
//! ```
//! Low rank is a product of a tall and a wide matrix; longer chains are allowed. The order of each sum is free.
//! Source: `SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression`, section 3.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static MATMUL: Constructor = Constructor {
    name: "matmul",
    summary: "a product of matrices",
    children: &["e*"],
    has_blob: false,
    algebraic: true,
    contents: None,
    check,
    decode,
    open,
    sample,
};

/// A term decoding to `elem`.
pub fn matmul(elem: ElemType, factors: Vec<Encoding>) -> Encoding {
    let side = |e: Option<&Encoding>, axis: usize| e.and_then(|e| e.shape.get(axis).copied());
    let shape = [side(factors.first(), 0), side(factors.last(), 1)];
    let shape = shape.into_iter().flatten().collect();
    Encoding::of(&MATMUL, elem, shape, [], factors)
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    e.check_floats()?;
    let [first, .., last] = &e.children[..] else {
        return Err(e.error("needs at least two factors"));
    };
    let chained = e.children.iter().all(|c| c.shape.len() == 2)
        && e.children
            .windows(2)
            .all(|w| w[0].shape[1] == w[1].shape[0])
        && e.shape == [first.shape[0], last.shape[1]];
    chained
        .then_some(())
        .ok_or_else(|| e.error("the factors' shapes do not fit each other and the result"))
}

/// The product of `a` `[m, k]` and `b` `[k, n]`, `k > 0`, each element rounded by `round`.
pub(super) fn product(
    a: &[f64],
    b: &[f64],
    k: usize,
    n: usize,
    round: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(a.len() / k * n);
    for row in a.chunks_exact(k) {
        for j in 0..n {
            let sum: f64 = row
                .iter()
                .enumerate()
                .map(|(i, &x)| round(x) * round(b[i * n + j]))
                .sum();
            out.push(round(sum));
        }
    }
    out
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let mut y = e.floats(0)?;
    for i in 1..e.children.len() {
        let shape = &e.children[i].shape;
        if shape[0] == 0 {
            y = vec![0.0; e.shape[0] * shape[1]];
        } else {
            y = product(&y, &e.floats(i)?, shape[0], shape[1], |v| e.round(v));
        }
    }
    Ok(e.tensor(y))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let mut y = e.worked(b, 0)?;
    for i in 1..e.children.len() {
        let next = e.worked(b, i)?;
        y = b.op("matmul", &[y, next])?;
    }
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let &[m, n] = shape else { return None };
    if !elem.is_float() {
        return None;
    }
    let mut sides = vec![m];
    sides.extend(
        (0..s.below(2) + 1)
            .map(|_| s.one_of(&[1, 2, 4]))
            .collect::<Vec<_>>(),
    );
    sides.push(n);
    let factors = sides.windows(2).map(|w| s.term(ElemType::F32, w)).collect();
    Some(matmul(elem, factors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn a_chain_multiplies_from_left_to_right() {
        let f = |shape: [usize; 2], v: Vec<f64>| {
            dense::from_tensor(&Tensor::from_f64(ElemType::F32, shape, v))
        };
        let e = matmul(
            ElemType::F32,
            vec![
                f([2, 1], vec![1.0, 2.0]),
                f([1, 1], vec![3.0]),
                f([1, 2], vec![1.0, -1.0]),
            ],
        );
        assert_eq!(
            e.decode().expect("valid").floats(),
            Some(&[3.0, -3.0, 6.0, -6.0][..])
        );
        assert_eq!(e.stored_bytes(), 20);
    }
}
