//! Factors of convolutions' filters: several small convolutions in place of one.
//!
//! ```text
//! spatial   [R, C, kh, 1] then [O, R, 1, kw]                     singular values of one reshape: the best of its kind
//! tucker    1x1 C -> rc, kh x kw rc -> ro, 1x1 ro -> O           of the axes O and C, by alternating bases
//! cp        1x1 C -> R, kh x 1 and 1 x kw by channel, 1x1 R -> O alternating least squares
//! ```
//! Filters are `[O, C, kh, kw]`, row-major. Each factorization says its squared error and decodes to filters; all are
//! of the weights alone. CP of high rank may not converge: what it reached is what it says.
//! Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", section 2 (spatial); Kim
//! et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", section 3
//! (Tucker); Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", section 3.

use super::factor::{Singular, leading_svd, solve};
use super::matrix::Matrix;
use lapidary_ir::random::SplitMix64;

/// Filters `[O, C, kh, kw]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Filters {
    /// `[O, C, kh, kw]`.
    pub shape: [usize; 4],
    /// Row-major.
    pub data: Vec<f64>,
}

impl Filters {
    fn at(&self, [o, c, i, j]: [usize; 4]) -> f64 {
        let [_, channels, height, width] = self.shape;
        self.data[((o * channels + c) * height + i) * width + j]
    }

    /// The elements as a matrix whose rows are the axes `rows` and whose columns are the others, the first ones highest.
    fn unfold(&self, rows: &[usize]) -> Matrix {
        let columns: Vec<usize> = (0..4).filter(|a| !rows.contains(a)).collect();
        let count = |axes: &[usize]| axes.iter().map(|&a| self.shape[a]).product::<usize>();
        Matrix::from_fn(count(rows), count(&columns), |r, c| {
            let mut at = [0; 4];
            for (mut place, axes) in [(r, rows), (c, &columns)] {
                for &axis in axes.iter().rev() {
                    at[axis] = place % self.shape[axis];
                    place /= self.shape[axis];
                }
            }
            self.at(at)
        })
    }

    /// Filters of `shape` whose elements are `f([o, c, i, j])`.
    pub fn from_fn(shape: [usize; 4], f: impl Fn([usize; 4]) -> f64) -> Filters {
        let [_, channels, height, width] = shape;
        let place = |at: usize| {
            let (c, i) = (at / (width * height) % channels, at / width % height);
            f([at / (width * height * channels), c, i, at % width])
        };
        Filters {
            shape,
            data: (0..shape.iter().product()).map(place).collect(),
        }
    }

    /// Sum of squared differences.
    pub fn distance(&self, other: &Filters) -> f64 {
        let pairs = self.data.iter().zip(&other.data);
        pairs.map(|(a, b)| (a - b).powi(2)).sum()
    }
}

/// A column of filters, then a row of filters.
#[derive(Clone, Debug)]
pub struct Spatial {
    /// `[R, C, kh, 1]`.
    pub columns: Filters,
    /// `[O, R, 1, kw]`.
    pub rows: Filters,
    /// Sum of squared differences.
    pub squared_error: f64,
}

impl Spatial {
    /// The filters that both together are.
    pub fn decode(&self) -> Filters {
        let ([ranks, channels, height, _], [outputs, _, _, width]) =
            (self.columns.shape, self.rows.shape);
        Filters::from_fn([outputs, channels, height, width], |[o, c, i, j]| {
            let all =
                (0..ranks).map(|r| self.rows.at([o, r, 0, j]) * self.columns.at([r, c, i, 0]));
            all.sum()
        })
    }
}

/// The best of rank `rank`: what is left out are the other singular values of the filters as `[O kw, C kh]`.
pub fn spatial(filters: &Filters, rank: usize, seed: u64) -> Result<Spatial, Singular> {
    let [outputs, channels, height, width] = filters.shape;
    let flat = filters.unfold(&[0, 3]);
    let svd = leading_svd(&flat, rank.max(1), seed)?;
    let (roots, ranks) = (
        svd.values.iter().map(|v| v.sqrt()).collect::<Vec<_>>(),
        svd.values.len(),
    );
    let kept: f64 = svd.values.iter().map(|v| v * v).sum();
    Ok(Spatial {
        columns: Filters::from_fn([ranks, channels, height, 1], |[r, c, i, _]| {
            svd.v[(c * height + i, r)] * roots[r]
        }),
        rows: Filters::from_fn([outputs, ranks, 1, width], |[o, r, _, j]| {
            svd.u[(o * width + j, r)] * roots[r]
        }),
        squared_error: (flat.square_sum() - kept).max(0.0),
    })
}

/// Fewer channels in the middle.
#[derive(Clone, Debug)]
pub struct Tucker {
    /// `[O, ro]`, orthonormal columns.
    pub outputs: Matrix,
    /// `[C, rc]`, orthonormal columns.
    pub inputs: Matrix,
    /// `[ro, rc, kh, kw]`.
    pub core: Filters,
    /// Sum of squared differences.
    pub squared_error: f64,
}

impl Tucker {
    /// The filters that all together are.
    pub fn decode(&self) -> Filters {
        expand(&expand(&self.core, 0, &self.outputs), 1, &self.inputs)
    }
}

/// An axis of the filters times a matrix `[new, old]`.
fn expand(filters: &Filters, axis: usize, by: &Matrix) -> Filters {
    let mut shape = filters.shape;
    shape[axis] = by.rows();
    let turned = by.mul(&filters.unfold(&[axis]));
    let others: Vec<usize> = (0..4).filter(|&a| a != axis).collect();
    Filters::from_fn(shape, |at| {
        let column = others.iter().fold(0, |p, &a| p * shape[a] + at[a]);
        turned[(at[axis], column)]
    })
}

/// Bases of `ranks` (outputs, inputs) channels: singular vectors of each axis, refined by `rounds` of fitting one to what the
/// other leaves.
pub fn tucker(
    filters: &Filters,
    ranks: [usize; 2],
    rounds: usize,
    seed: u64,
) -> Result<Tucker, Singular> {
    let basis =
        |f: &Filters, axis: usize| Ok(leading_svd(&f.unfold(&[axis]), ranks[axis].max(1), seed)?.u);
    let (mut outputs, mut inputs) = (basis(filters, 0)?, basis(filters, 1)?);
    for _ in 0..rounds {
        outputs = basis(&expand(filters, 1, &inputs.transpose()), 0)?;
        inputs = basis(&expand(filters, 0, &outputs.transpose()), 1)?;
    }
    let core = expand(
        &expand(filters, 0, &outputs.transpose()),
        1,
        &inputs.transpose(),
    );
    let square_sum = |f: &Filters| f.data.iter().map(|v| v * v).sum::<f64>();
    Ok(Tucker {
        squared_error: (square_sum(filters) - square_sum(&core)).max(0.0),
        outputs,
        inputs,
        core,
    })
}

/// A sum of products of four vectors.
#[derive(Clone, Debug)]
pub struct Cp {
    /// For `O`, `C`, `kh`, `kw`: `[length, R]`.
    pub factors: [Matrix; 4],
    /// Sum of squared differences.
    pub squared_error: f64,
}

impl Cp {
    /// The filters that all together are.
    pub fn decode(&self) -> Filters {
        let [o, c, i, j] = &self.factors;
        let shape = [o.rows(), c.rows(), i.rows(), j.rows()];
        Filters::from_fn(shape, |at| {
            let product = |r: usize| o[(at[0], r)] * c[(at[1], r)] * i[(at[2], r)] * j[(at[3], r)];
            (0..o.cols()).map(product).sum()
        })
    }
}

/// Alternating least squares from random factors, `rounds` times over the axes; a little damping keeps factors that become
/// alike from growing without end.
pub fn cp(filters: &Filters, rank: usize, rounds: usize, seed: u64) -> Result<Cp, Singular> {
    let mut rng = SplitMix64::new(seed);
    let mut factors = filters
        .shape
        .map(|n| Matrix::new(n, rank.max(1), rng.normals(n * rank.max(1))).expect("as many"));
    for _ in 0..rounds {
        for axis in 0..4 {
            let others: Vec<usize> = (0..4).filter(|&a| a != axis).collect();
            // Rows of the other axes' products, the first axis highest, as the unfolding's columns.
            let spread = |at: usize, r: usize| {
                let mut place = at;
                let mut product = 1.0;
                for &a in others.iter().rev() {
                    product *= factors[a][(place % filters.shape[a], r)];
                    place /= filters.shape[a];
                }
                product
            };
            let count = others.iter().map(|&a| filters.shape[a]).product();
            let products = Matrix::from_fn(count, factors[axis].cols(), spread);
            let mut gram = products.gram();
            let ridge = gram.diagonal().iter().sum::<f64>() / gram.rows() as f64 * 1e-9;
            (0..gram.rows()).for_each(|r| gram[(r, r)] += ridge + f64::MIN_POSITIVE);
            let right = filters.unfold(&[axis]).mul(&products).transpose();
            factors[axis] = solve(&gram, &right)?.transpose();
        }
    }
    let mut found = Cp {
        factors,
        squared_error: 0.0,
    };
    found.squared_error = filters.distance(&found.decode());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::factor::svd;
    use crate::methods::testing::{near, random};

    const SHAPE: [usize; 4] = [6, 5, 3, 4];

    fn filters(seed: u64) -> Filters {
        let data = random(1, SHAPE.iter().product(), seed).data().to_vec();
        Filters { shape: SHAPE, data }
    }

    #[test]
    fn column_and_row_filters_are_the_best_of_their_kind() {
        let k = filters(1);
        for rank in [1, 4, 9] {
            let found = spatial(&k, rank, 0).expect("converges");
            near(k.distance(&found.decode()), found.squared_error, 1e-9);
            let values = svd(&k.unfold(&[0, 3])).expect("converges").values;
            near(
                found.squared_error,
                values[rank..].iter().map(|v| v * v).sum(),
                1e-9,
            );
        }
        let whole = spatial(&k, 15, 0).expect("converges");
        assert!(k.distance(&whole.decode()) < 1e-20);
    }

    #[test]
    fn tucker_is_no_worse_than_both_tails_and_rounds_help() {
        let k = filters(2);
        let ranks = [4, 3];
        let tail = |axis: usize| {
            let values = svd(&k.unfold(&[axis])).expect("converges").values;
            values[ranks[axis]..].iter().map(|v| v * v).sum::<f64>()
        };
        let first = tucker(&k, ranks, 0, 0).expect("converges");
        let refined = tucker(&k, ranks, 5, 0).expect("converges");
        for found in [&first, &refined] {
            near(k.distance(&found.decode()), found.squared_error, 1e-9);
        }
        assert!(first.squared_error <= tail(0) + tail(1));
        assert!(refined.squared_error <= first.squared_error);
        let whole = tucker(&k, [6, 5], 0, 0).expect("converges");
        assert!(k.distance(&whole.decode()) < 1e-20);
    }

    #[test]
    fn filters_of_low_rank_are_found_again() {
        let factors = [
            random(6, 2, 3),
            random(5, 2, 4),
            random(3, 2, 5),
            random(4, 2, 6),
        ];
        let k = Cp {
            factors,
            squared_error: 0.0,
        }
        .decode();
        let energy: f64 = k.data.iter().map(|v| v * v).sum();
        let found = cp(&k, 2, 300, 7).expect("solves");
        assert!(
            found.squared_error < 1e-8 * energy,
            "{}",
            found.squared_error / energy
        );
        assert!(tucker(&k, [2, 2], 0, 0).expect("converges").squared_error < 1e-13 * energy);
        assert!(spatial(&k, 2, 0).expect("converges").squared_error < 1e-13 * energy);
    }
}
