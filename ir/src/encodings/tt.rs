//! `tt`: a matrix as a tensor train (matrix product operator).
//!
//! ```text
//! children: core*                    (core i: [r_i, o_i, n_i, r_i+1], the first and last rank 1)
//! value[(x0 .. xm), (y0 .. ym)] = core0[0, x0, y0, :] · core1[:, x1, y1, :] · …
//! ```
//! Row and column numbers are written in mixed radix, the first digit the highest. The order of each sum is free.
//! Source: `Tensor-Train Decomposition`, section 4; `CompactifAI: Extreme Compression of Large Language Models using
//! Quantum-Inspired Tensor Networks`.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static TT: Constructor = Constructor {
    name: "tt",
    summary: "a matrix as a tensor train",
    children: &["core*"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check,
    decode,
    open,
    sample,
};

/// A term decoding to `elem`.
pub fn tt(elem: ElemType, cores: Vec<Encoding>) -> Encoding {
    let side = |axis: usize| {
        cores
            .iter()
            .map(|c| c.shape[axis])
            .fold(1, usize::saturating_mul)
    };
    let shape = vec![side(1), side(2)];
    Encoding::of(&TT, elem, shape, [], cores)
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    e.check_floats()?;
    let cores = &e.children;
    if cores.is_empty() || cores.iter().any(|c| c.shape.len() != 4 || c.is_empty()) {
        return Err(e.error("needs cores of four axes"));
    }
    let side = |axis: usize| {
        cores
            .iter()
            .try_fold(1usize, |n, c| n.checked_mul(c.shape[axis]))
    };
    let chained = cores.windows(2).all(|w| w[0].shape[3] == w[1].shape[0])
        && cores[0].shape[0] == 1
        && cores[cores.len() - 1].shape[3] == 1
        && matches!(e.shape[..], [o, n] if side(1) == Some(o) && side(2) == Some(n));
    chained
        .then_some(())
        .ok_or_else(|| e.error("the cores' shapes do not fit each other and the result"))
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let cores: Vec<Vec<f64>> = (0..e.children.len())
        .map(|i| e.floats(i))
        .collect::<Result<_, _>>()?;
    let values = (0..e.len()).map(|at| {
        // Digits are taken from the last core, whose digit is the lowest, to the first.
        let (mut row, mut column) = (at / e.shape[1], at % e.shape[1]);
        let mut right = vec![1.0];
        for (core, term) in cores.iter().zip(&e.children).rev() {
            let [ranks, rows, columns, inner] = term.shape[..] else {
                continue;
            };
            let (x, y) = (row % rows, column % columns);
            (row, column) = (row / rows, column / columns);
            let at = |r: usize| ((r * rows + x) * columns + y) * inner;
            let dot = |r: usize| {
                core[at(r)..][..inner]
                    .iter()
                    .zip(&right)
                    .map(|(a, b)| e.round(*a) * b)
                    .sum::<f64>()
            };
            right = (0..ranks).map(|r| e.round(dot(r))).collect();
        }
        right[0]
    });
    Ok(e.tensor(values.collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let n = |v: usize| Len::N(v as i64);
    let (mut y, mut done) = (e.worked(b, 0)?, 1);
    for (i, core) in e.children.iter().enumerate() {
        let &[rank, rows, columns, next] = &core.shape[..] else {
            return Err(OpError::new("a core has four axes"));
        };
        let side = rows * columns;
        if i > 0 {
            let x = e.worked(b, i)?;
            let x = b.reshape(x, &[n(rank), n(side * next)])?;
            y = b.op("matmul", &[y, x])?;
        }
        done *= side;
        y = b.reshape(y, &[n(done), n(next)])?;
    }
    // [o0, n0, o1, n1, ..] to [o0, o1, .., n0, n1, ..].
    let digits: Vec<Len> = e
        .children
        .iter()
        .flat_map(|c| [n(c.shape[1]), n(c.shape[2])])
        .collect();
    let order: Vec<usize> = (0..2)
        .flat_map(|side| (0..e.children.len()).map(move |i| 2 * i + side))
        .collect();
    let y = b.reshape(y, &digits)?;
    let y = b.transpose(y, &order)?;
    let y = b.reshape(y, &[n(e.shape[0]), n(e.shape[1])])?;
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let &[mut rows, mut columns] = shape else {
        return None;
    };
    if !elem.is_float() {
        return None;
    }
    let (mut cores, mut rank) = (vec![], 1);
    loop {
        let (o, n) = (s.divisor(rows), s.divisor(columns));
        (rows, columns) = (rows / o, columns / n);
        let last = rows == 1 && columns == 1;
        let next = if last { 1 } else { s.one_of(&[1, 2, 3]) };
        cores.push(s.term(ElemType::F32, &[rank, o, n, next]));
        rank = next;
        if last {
            return Some(tt(elem, cores));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn a_train_of_rank_one_is_a_kronecker_product() {
        let core = |v: [f64; 4]| {
            dense::from_tensor(&Tensor::from_f64(ElemType::F32, [1, 2, 2, 1], v.to_vec()))
        };
        let e = tt(
            ElemType::F32,
            vec![core([1.0, 2.0, 3.0, 4.0]), core([1.0, 0.0, 0.0, 5.0])],
        );
        let want = [
            1.0, 0.0, 2.0, 0.0, 0.0, 5.0, 0.0, 10.0, 3.0, 0.0, 4.0, 0.0, 0.0, 15.0, 0.0, 20.0,
        ];
        assert_eq!(e.decode().expect("valid").floats(), Some(&want[..]));
    }
}
