//! Matrix product operators: a weight as a tensor train over the digits of its row and column numbers.
//!
//! With `O = o1 o2 ..` and `I = i1 i2 ..` the weight is a tensor whose `k`-th axis is the pair of the `k`-th digits. Singular
//! values cut it apart axis by axis; of each bond the largest `rank` are kept. Because all cores but the last are
//! orthonormal, the squared error is the sum of the squares left out. With two digits the train is a sum of `rank` Kronecker
//! products, the best one of the weights' own error.
//! Source: "CompactifAI: Extreme Compression of Large Language Models using Quantum-Inspired Tensor Networks"; Oseledets,
//! "Tensor-Train Decomposition", algorithm 1. What healing by training gains there is not done here.

use super::factor::{Singular, leading_svd};
use super::grid::{scale_type, wide_enough};
use super::matrix::Matrix;
use super::{Candidate, Layer, Method, MethodError, Settings, measured};
use lapidary_ir::encodings::{dense as plain, tt};
use lapidary_ir::{ElemType, Tensor};

/// The method, with two digits.
pub static MPO: Method = Method {
    name: "mpo",
    summary: "a tensor train of two cores, of as many 16-bit numbers as the bits allow, with the least error of the weights",
    source: "CompactifAI",
    needs_statistics: false,
    bits: 1..=8,
    propose,
};

/// One core, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Core {
    /// `[bond before, row digit, column digit, bond behind]`.
    pub shape: [usize; 4],
    /// Its numbers.
    pub data: Vec<f64>,
}

/// A tensor train.
#[derive(Clone, Debug, PartialEq)]
pub struct Train {
    /// From the highest digit to the lowest.
    pub cores: Vec<Core>,
    /// Sum of squared differences to the weight.
    pub squared_error: f64,
}

/// The train of `weight` `[O, I]` with bonds of at most `rank`; `rows` and `columns` are the sizes of their digits, the
/// highest first, and multiply to `O` and `I`.
pub fn tensor_train(
    weight: &Matrix,
    rows: &[usize],
    columns: &[usize],
    rank: usize,
    seed: u64,
) -> Result<Train, Singular> {
    let sides: Vec<usize> = rows.iter().zip(columns).map(|(o, i)| o * i).collect();
    let mut rest = Matrix::new(1, weight.data().len(), by_digits(weight, rows, columns))
        .expect("digits multiply to the weight's shape");
    let (mut cores, mut squared_error) = (vec![], 0.0);
    for (k, side) in sides.iter().enumerate() {
        let (bond, behind) = (rest.rows(), rest.cols() / side);
        let shape = |next| [bond, rows[k], columns[k], next];
        if k + 1 == sides.len() {
            let data = rest.data().to_vec();
            cores.push(Core {
                shape: shape(1),
                data,
            });
            break;
        }
        let tall = Matrix::new(bond * side, behind, rest.data().to_vec()).expect("as many");
        let svd = leading_svd(&tall, rank.max(1), seed)?;
        let kept: f64 = svd.values.iter().map(|v| v * v).sum();
        squared_error += (tall.square_sum() - kept).max(0.0);
        rest = svd.v.scale_columns(&svd.values).transpose();
        cores.push(Core {
            shape: shape(svd.values.len()),
            data: svd.u.data().to_vec(),
        });
    }
    Ok(Train {
        cores,
        squared_error,
    })
}

/// The weight's elements with digits interleaved: row digit, column digit, next row digit ..
fn by_digits(weight: &Matrix, rows: &[usize], columns: &[usize]) -> Vec<f64> {
    let count = weight.data().len();
    let place = |mut at: usize| {
        let (mut row, mut column, mut row_step, mut column_step) = (0, 0, 1, 1);
        for (o, i) in rows.iter().zip(columns).rev() {
            column += at % i * column_step;
            at /= i;
            row += at % o * row_step;
            at /= o;
            (row_step, column_step) = (row_step * o, column_step * i);
        }
        weight[(row, column)]
    };
    (0..count).map(place).collect()
}

/// Two factors as near to each other as they get, the larger first.
fn halves(n: usize) -> [usize; 2] {
    let root = (1..=n)
        .take_while(|d| d * d <= n)
        .filter(|d| n.is_multiple_of(*d));
    let low = root.last().unwrap_or(1);
    [n / low, low]
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let weight = layer.weight();
    let (rows, columns) = (halves(weight.rows()), halves(weight.cols()));
    // Bonds cost least where a large digit meets a small one.
    let columns = [columns[1], columns[0]];
    let (elem, assumptions) = wide_enough(scale_type(settings.scale_elem)?, weight);
    let all = weight.rows() * weight.cols() * settings.bits as usize;
    let for_each = rows[0] * columns[0] + rows[1] * columns[1];
    let rank = all / (for_each * elem.bits() as usize);
    let mut found = tensor_train(weight, &rows, &columns, rank, settings.seed)?;
    // Both cores get numbers of one size: the first is orthonormal, and all of the weight's is in the last.
    let top = |c: &Core| c.data.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
    let ratio = (top(&found.cores[1]) / top(&found.cores[0])).sqrt();
    if ratio.is_finite() && ratio > 0.0 {
        for (core, factor) in found.cores.iter_mut().zip([ratio, 1.0 / ratio]) {
            core.data.iter_mut().for_each(|v| *v *= factor);
        }
    }
    let core = |c: &Core| plain::from_tensor(&Tensor::from_f64(elem, c.shape, c.data.clone()));
    let term = tt::tt(ElemType::F32, found.cores.iter().map(core).collect());
    measured(layer, term, assumptions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::factor::svd;
    use crate::methods::testing::{decoded, near, random};

    fn term(train: &Train) -> Matrix {
        let core = |c: &Core| {
            plain::from_tensor(&Tensor::from_f64(ElemType::F64, c.shape, c.data.clone()))
        };
        decoded(&tt::tt(
            ElemType::F64,
            train.cores.iter().map(core).collect(),
        ))
    }

    #[test]
    fn the_error_is_the_sum_of_what_was_left_out() {
        let w = random(24, 30, 3);
        for rank in [1, 2, 4] {
            let train = tensor_train(&w, &[4, 3, 2], &[2, 5, 3], rank, 0).expect("converges");
            near(w.sub(&term(&train)).square_sum(), train.squared_error, 1e-9);
            let bonds = train.cores.windows(2);
            assert!(bonds.clone().all(|c| c[0].shape[3] == c[1].shape[0]));
            assert!(bonds.clone().all(|c| c[0].shape[3] <= rank));
        }
        let whole = tensor_train(&w, &[4, 3, 2], &[2, 5, 3], 1000, 0).expect("converges");
        assert!(w.sub(&term(&whole)).square_sum() < 1e-20 * w.square_sum());
    }

    #[test]
    fn two_cores_are_the_best_sum_of_kronecker_products() {
        let w = random(12, 20, 5);
        let train = tensor_train(&w, &[4, 3], &[4, 5], 3, 0).expect("converges");
        let turned = Matrix::new(16, 15, by_digits(&w, &[4, 3], &[4, 5])).expect("as many");
        let tail = svd(&turned).expect("converges").values;
        let tail: f64 = tail[3..].iter().map(|v| v * v).sum();
        near(train.squared_error, tail, 1e-9);
    }

    #[test]
    fn a_kronecker_product_needs_rank_one() {
        let (a, b) = (random(4, 6, 1), random(5, 3, 2));
        let w = Matrix::from_fn(20, 18, |r, c| a[(r / 5, c / 3)] * b[(r % 5, c % 3)]);
        let train = tensor_train(&w, &[4, 5], &[6, 3], 1, 0).expect("converges");
        assert!(w.sub(&term(&train)).square_sum() < 1e-20 * w.square_sum());
        assert_eq!(
            (halves(704), halves(256), halves(7)),
            ([32, 22], [16, 16], [7, 1])
        );
    }
}
