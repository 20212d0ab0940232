//! Vector palettes: a code points at several neighbouring weights at once, and codes of several tables add up.
//!
//! Runs of `dim` inputs are points; k-means finds a table of them (seeded, by Lloyd's iteration from spread starts), and
//! each further table is one of what is left. Where columns have weights, distances and means are weighted coordinate by
//! coordinate.
//! Source: Egiazarian et al., "Extreme Compression of Large Language Models via Additive Quantization" (AQLM), section 3
//! (residual start of the additive tables); Arthur, Vassilvitskii, "k-means++: The Advantages of Careful Seeding".

use super::matrix::Matrix;
use super::{MethodError, threads};
use lapidary_ir::random::SplitMix64;
use lapidary_ir::{ElemType, minifloat};

/// Points that tables are fitted to; more are sampled.
const MOST_POINTS: usize = 1 << 15;

/// Settings of the core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VectorSettings {
    /// Weights of a point; divides the columns.
    pub dim: usize,
    /// Bits of a code, 1 to 12.
    pub bits: u32,
    /// Tables that add up.
    pub tables: usize,
    /// Most rounds of Lloyd's iteration.
    pub rounds: usize,
    /// Element type of the tables.
    pub elem: ElemType,
    /// Start of the random numbers.
    pub seed: u64,
}

/// A table and the codes that point into it.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorTable {
    /// `[2^bits, dim]`.
    pub table: Matrix,
    /// Codes, `[O, I / dim]`.
    pub codes: Vec<u16>,
}

/// Tables whose entries add up.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorParts {
    /// Rows, `O`.
    pub rows: usize,
    /// Columns, `I`.
    pub columns: usize,
    /// Coarse to fine.
    pub tables: Vec<VectorTable>,
}

impl VectorParts {
    /// The weight of the first `tables` tables, as `f32`.
    pub fn decode(&self, tables: usize) -> Matrix {
        Matrix::from_rows(self.rows, self.columns, |r, out| {
            for t in self.tables.iter().take(tables) {
                let dim = t.table.cols();
                let codes = &t.codes[r * (self.columns / dim)..];
                for (run, &code) in out.chunks_mut(dim).zip(codes) {
                    let entry = t.table.row(usize::from(code));
                    run.iter_mut().zip(entry).for_each(|(o, e)| *o += e);
                }
            }
            out.iter_mut().for_each(|o| *o = f64::from(*o as f32));
        })
    }
}

/// Tables of `weights` `[O, I]`, whose columns weigh `column_weights` `[I]`.
pub fn vector_palette(
    weights: &Matrix,
    column_weights: Option<&[f64]>,
    settings: &VectorSettings,
) -> Result<VectorParts, MethodError> {
    let (rows, columns, dim) = (weights.rows(), weights.cols(), settings.dim);
    let whole = dim > 0 && columns.is_multiple_of(dim);
    if !whole || !(1..=12).contains(&settings.bits) || rows * columns == 0 {
        return Err(MethodError::Settings(format!(
            "points of {dim} weights do not divide {columns} columns, or codes are not of 1 to 12 bits"
        )));
    }
    if column_weights.is_some_and(|w| w.len() != columns) {
        return Err(MethodError::Shape("each column needs a weight".into()));
    }
    let points = |data: &[f64]| {
        Matrix::new(rows * columns / dim, dim, data.to_vec()).expect("points divide the weights")
    };
    // A small floor keeps columns of no weight from having any mean at all.
    let floor = column_weights.map_or(0.0, |w| w.iter().sum::<f64>() / columns as f64 * 1e-9);
    let weigh =
        |_: usize, c: usize| column_weights.map_or(1.0, |w| w[c].max(floor + f64::MIN_POSITIVE));
    let importance = points(Matrix::from_fn(rows, columns, weigh).data());
    let mut left = points(weights.data());
    let mut tables = vec![];
    for stage in 0..settings.tables {
        let mut rng = SplitMix64::new(settings.seed.wrapping_add(stage as u64));
        let table = fit(&left, &importance, settings, &mut rng);
        let table = table.map(|v| minifloat::round_to(settings.elem, v));
        let codes = nearest(&left, &importance, &table);
        for (p, &code) in codes.iter().enumerate() {
            let entry = table.row(usize::from(code));
            left.row_mut(p)
                .iter_mut()
                .zip(entry)
                .for_each(|(v, e)| *v -= e);
        }
        tables.push(VectorTable { table, codes });
    }
    Ok(VectorParts {
        rows,
        columns,
        tables,
    })
}

/// The nearest entry of each point; of equally near ones the first. In pieces, as a table of all distances is large.
fn nearest(points: &Matrix, importance: &Matrix, table: &Matrix) -> Vec<u16> {
    let squared = table.map(|v| v * v);
    let pieces = threads::map(points.rows().div_ceil(threads::ROWS), |piece| {
        let rows = piece * threads::ROWS..((piece + 1) * threads::ROWS).min(points.rows());
        let part = |m: &Matrix| m.block(rows.clone(), 0..m.cols());
        let (points, importance) = (part(points), part(importance));
        // Σ h (x-c)² less Σ h x² is Σ h c² - 2 Σ h x c.
        let squares = importance.mul_transposed(&squared);
        let products = points.zip(&importance, |x, h| h * x).mul_transposed(table);
        let of = |p: usize| {
            let distance = |(s, x): (&f64, &f64)| s - 2.0 * x;
            let all = squares.row(p).iter().zip(products.row(p)).map(distance);
            let best = all.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
            best.map_or(0, |(k, _)| k as u16)
        };
        (0..points.rows()).map(of).collect::<Vec<u16>>()
    });
    pieces.concat()
}

fn fit(
    points: &Matrix,
    importance: &Matrix,
    settings: &VectorSettings,
    rng: &mut SplitMix64,
) -> Matrix {
    let (points, importance) = sample(points, importance, rng);
    let mut table = spread(&points, &importance, 1 << settings.bits, rng);
    let mut last = vec![];
    for _ in 0..settings.rounds {
        let codes = nearest(&points, &importance, &table);
        if codes == last {
            break;
        }
        table = means(&points, &importance, &codes, &table);
        last = codes;
    }
    table
}

/// At most [`MOST_POINTS`] of the points.
fn sample(points: &Matrix, importance: &Matrix, rng: &mut SplitMix64) -> (Matrix, Matrix) {
    let (n, dim) = (points.rows(), points.cols());
    if n <= MOST_POINTS {
        return (points.clone(), importance.clone());
    }
    let picked: Vec<usize> = (0..MOST_POINTS).map(|_| rng.below(n)).collect();
    let take = |m: &Matrix| Matrix::from_fn(MOST_POINTS, dim, |r, c| m[(picked[r], c)]);
    (take(points), take(importance))
}

/// Starts that are far apart: each is drawn by its squared distance from those before it.
fn spread(points: &Matrix, importance: &Matrix, count: usize, rng: &mut SplitMix64) -> Matrix {
    let n = points.rows();
    let mut table = Matrix::zeros(count, points.cols());
    let mut distances = vec![f64::INFINITY; n];
    let mut next = rng.below(n);
    for k in 0..count {
        table.row_mut(k).copy_from_slice(points.row(next));
        let mut total = 0.0;
        for (p, distance) in distances.iter_mut().enumerate() {
            let pairs = points
                .row(p)
                .iter()
                .zip(table.row(k))
                .zip(importance.row(p));
            let here: f64 = pairs.map(|((x, c), h)| h * (x - c).powi(2)).sum();
            *distance = distance.min(here);
            total += *distance;
        }
        let mut at = rng.unit() * total;
        next = distances
            .iter()
            .position(|d| {
                at -= d;
                at < 0.0
            })
            .unwrap_or_else(|| rng.below(n));
    }
    table
}

/// Each entry becomes the mean of its points; one without points takes the place of a point that is farthest from its
/// entry.
fn means(points: &Matrix, importance: &Matrix, codes: &[u16], table: &Matrix) -> Matrix {
    let (count, dim) = (table.rows(), table.cols());
    let (mut sums, mut weights) = (Matrix::zeros(count, dim), Matrix::zeros(count, dim));
    for (p, &code) in codes.iter().enumerate() {
        let k = usize::from(code);
        for d in 0..dim {
            sums[(k, d)] += importance[(p, d)] * points[(p, d)];
            weights[(k, d)] += importance[(p, d)];
        }
    }
    let mut out = sums.zip(&weights, |s, w| if w > 0.0 { s / w } else { 0.0 });
    let empty: Vec<usize> = (0..count).filter(|&k| weights[(k, 0)] == 0.0).collect();
    if empty.is_empty() {
        return out;
    }
    let far = |p: usize| -> f64 {
        let entry = table.row(usize::from(codes[p]));
        let pairs = points.row(p).iter().zip(entry).zip(importance.row(p));
        pairs.map(|((x, c), h)| h * (x - c).powi(2)).sum()
    };
    let mut farthest: Vec<(f64, usize)> = (0..codes.len()).map(|p| (far(p), p)).collect();
    farthest.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (k, (_, p)) in empty.into_iter().zip(farthest) {
        out.row_mut(k).copy_from_slice(points.row(p));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{mse, near, random, tl1};

    fn settings(dim: usize, bits: u32, tables: usize) -> VectorSettings {
        VectorSettings {
            dim,
            bits,
            tables,
            rounds: 60,
            elem: ElemType::F16,
            seed: 1,
        }
    }

    #[test]
    fn errors_on_the_reference_layer_are_the_known_ones() {
        let t = tl1();
        let parts = vector_palette(&t.w, None, &settings(4, 6, 2)).expect("sound");
        near(mse(&t.w, &parts.decode(1)), 0.1777, 0.05);
        near(mse(&t.w, &parts.decode(2)), 0.0329, 0.05);
        near(t.rel(&parts.decode(2)), 0.0345, 0.15);
    }

    #[test]
    fn weights_of_columns_lower_the_output_error() {
        let t = tl1();
        let by_input = t.stats.hessian.diagonal();
        let rel = |weights| {
            let parts = vector_palette(&t.w, weights, &settings(2, 6, 1)).expect("sound");
            t.rel(&parts.decode(1))
        };
        assert!(rel(Some(&by_input)) < rel(None));
    }

    #[test]
    fn each_table_lowers_the_error_and_decoding_is_their_sum() {
        let w = random(24, 64, 3);
        let parts = vector_palette(&w, None, &settings(8, 5, 4)).expect("sound");
        let errors: Vec<f64> = (0..=4).map(|m| mse(&w, &parts.decode(m))).collect();
        assert!(errors.windows(2).all(|e| e[1] < e[0]), "{errors:?}");
        let at = |r: usize, c: usize| -> f64 {
            let entry = |t: &VectorTable| t.table[(usize::from(t.codes[r * 8 + c / 8]), c % 8)];
            parts.tables.iter().map(entry).sum()
        };
        let sum = Matrix::from_fn(24, 64, at);
        assert!(mse(&sum, &parts.decode(4)) < 1e-12);
        assert_eq!(vector_palette(&w, None, &settings(8, 5, 4)), Ok(parts));
    }

    #[test]
    fn few_points_are_kept_exactly() {
        let w = Matrix::from_fn(8, 8, |r, c| ((r * c) % 3) as f64 * 0.5);
        let parts = vector_palette(&w, None, &settings(2, 6, 1)).expect("sound");
        assert_eq!(parts.decode(1), w);
        assert!(vector_palette(&w, None, &settings(3, 6, 1)).is_err());
        assert!(vector_palette(&w, None, &settings(2, 13, 1)).is_err());
        assert!(vector_palette(&w, Some(&[1.0]), &settings(2, 4, 1)).is_err());
    }
}
