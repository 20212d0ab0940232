//! Palettes: a code points at one of a few numbers that k-means chose for a tensor, or for some of its rows.
//!
//! In one dimension k-means is solved exactly: sorted values are cut into runs by dynamic programming, where the best
//! cut only moves right (divide and conquer, `O(k n log n)`). Equal values are one point with their weights added, so
//! the cost depends on distinct values. Weights may come from calibration: the diagonal of the Hessian, or the inverse
//! diagonal of its inverse, which is what the error of a column costs once others react to it. Codes are then the nearest
//! values, or are chosen by the column sweep with error feedback. With a temperature, values belong to several entries while
//! the table is made (`dkm.rs`).
//! Source: Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization", section 4.1 (sensitivity); Cho et al., "eDKM: An
//! Efficient and Accurate Train-time Weight Clustering for Large Language Models", section 3 (distinct values); Wang,
//! Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming"; Zhang et al., "Sketch to
//! Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation" (palettes by row with feedback).

use super::dkm::soften;
use super::grid::{packed_codes, scale_type, wide_enough};
use super::levels::Levels;
use super::matrix::Matrix;
use super::statistics::Statistics;
use super::sweep::{self, Prepared};
use super::{Candidate, Layer, Method, MethodError, Settings, candidate, threads};
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::dense;
use lapidary_ir::{ElemType, Tensor, minifloat};

/// The method, with one table for the weight.
pub static PALETTE: Method = Method {
    name: "palette",
    summary: "each weight becomes one of a few numbers that k-means chose, with error feedback where there is a Hessian",
    source: "SqueezeLLM, section 4.1",
    needs_statistics: false,
    bits: 1..=8,
    propose: |layer, settings| propose(layer, settings, 0),
};

/// The method, with a table for each row.
pub static SKETCH: Method = Method {
    name: "sketch",
    summary: "as palette, with a table for each row",
    source: "Sketch to Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation",
    needs_statistics: false,
    bits: 1..=4,
    propose: |layer, settings| propose(layer, settings, 1),
};

/// Distinct values that are kept apart; more are merged by their leading bits.
const MOST_POINTS: usize = 1 << 16;

/// Settings of the core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaletteSettings {
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Rows that share a table; 0 for all.
    pub rows_per_table: usize,
    /// Element type of the tables.
    pub elem: ElemType,
    /// How soft values are assigned while tables are made, as [`soften`] takes it; 0 for the exact optimum.
    pub temperature: f64,
}

/// Codes and the tables that they point into.
#[derive(Clone, Debug, PartialEq)]
pub struct PaletteParts {
    /// Rows, `O`.
    pub rows: usize,
    /// Columns, `I`.
    pub columns: usize,
    /// Rows that share a table.
    pub rows_per_table: usize,
    /// Entries of a table.
    pub entries: usize,
    /// Tables in rising order of their entries, `[tables, entries]`.
    pub tables: Vec<f64>,
    /// Codes, `[O, I]`.
    pub codes: Vec<u8>,
}

impl PaletteParts {
    /// The table of a row.
    pub fn table(&self, row: usize) -> &[f64] {
        &self.tables[row / self.rows_per_table * self.entries..][..self.entries]
    }

    /// The decoded weight, as `f32`.
    pub fn decode(&self) -> Matrix {
        Matrix::from_rows(self.rows, self.columns, |r, out| {
            let table = self.table(r);
            let codes = &self.codes[r * self.columns..];
            out.iter_mut()
                .zip(codes)
                .for_each(|(o, &c)| *o = f64::from(table[usize::from(c)] as f32));
        })
    }
}

/// Tables for so many rows (0: all). With statistics values are weighted by what an error of their column costs once the others
/// react, and codes chosen by the column sweep.
fn propose(
    layer: &Layer,
    settings: &Settings,
    rows_per_table: usize,
) -> Result<Candidate, MethodError> {
    let weight = layer.weight();
    let (elem, mut assumptions) = wide_enough(scale_type(settings.scale_elem)?, weight);
    let palette_settings = PaletteSettings {
        bits: settings.bits,
        rows_per_table,
        elem,
        temperature: settings.temperature,
    };
    let prepared = layer.statistics().map(Statistics::prepared);
    let weights = prepared.map(reacting_weights);
    let mut parts = palette(weight, weights.as_deref(), &palette_settings)?;
    if let Some(prepared) = prepared {
        parts = with_feedback(&parts, weight, prepared);
        assumptions.extend(prepared.assumptions.iter().cloned());
    }
    let tables = [
        parts.rows.div_ceil(parts.rows_per_table),
        1,
        parts.entries,
        1,
    ];
    let table = Tensor::from_f64(elem, tables, parts.tables.clone());
    let codes = packed_codes(settings.bits, &[parts.rows, parts.columns], &parts.codes);
    let encoding = codebook(ElemType::F32, dense::from_tensor(&table), codes);
    candidate(layer, encoding, &parts.decode(), assumptions)
}

/// A value and how much its error weighs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The value (a mean, where values were merged).
    pub value: f64,
    /// Its weight, above 0.
    pub weight: f64,
}

/// The distinct values in rising order, with the weights of equal ones added. Values of no weight still count a little,
/// so that no value is without a near entry.
pub fn distinct(values: impl Iterator<Item = (f64, f64)>) -> Vec<Point> {
    let mut points: Vec<Point> = values
        .map(|(value, weight)| Point { value, weight })
        .collect();
    points.sort_by(|a, b| a.value.total_cmp(&b.value));
    let total: f64 = points.iter().map(|p| p.weight).sum();
    let least = (total / points.len().max(1) as f64 * 1e-9).max(f64::MIN_POSITIVE);
    points
        .iter_mut()
        .for_each(|p| p.weight = p.weight.max(least));
    let merge = |points: &mut Vec<Point>, key: &dyn Fn(f64) -> f64| {
        points.dedup_by(|next, kept| {
            let same = key(next.value) == key(kept.value);
            if same && next.value != kept.value {
                let sum = kept.value * kept.weight + next.value * next.weight;
                kept.value = sum / (kept.weight + next.weight);
            }
            if same {
                kept.weight += next.weight;
            }
            same
        });
    };
    merge(&mut points, &|v| v);
    if points.len() > MOST_POINTS {
        let top = points.iter().fold(0.0, |a: f64, p| a.max(p.value.abs()));
        let step = 2.0 * top / MOST_POINTS as f64;
        // Equal steps over the range; a run's mean stays inside its step.
        merge(&mut points, &|v| (v / step).floor());
    }
    points
}

/// The `k` centroids of least weighted squared error, in rising order; all points if there are no more than `k`.
pub fn kmeans(points: &[Point], k: usize) -> Vec<f64> {
    let n = points.len();
    if n <= k || k == 0 {
        return points.iter().take(k).map(|p| p.value).collect();
    }
    let runs = Runs::new(points);
    let mut last: Vec<f64> = (0..n).map(|j| runs.cost(0, j + 1)).collect();
    let mut cuts: Vec<Vec<u32>> = vec![];
    for m in 1..k {
        let mut layer = Row {
            runs: &runs,
            last: &last,
            now: vec![f64::INFINITY; n],
            cut: vec![0; n],
        };
        layer.solve(m, n - 1, m, n - 1);
        cuts.push(layer.cut);
        last = layer.now;
    }
    let mut centroids = Vec::with_capacity(k);
    let mut end = n;
    for m in (0..k).rev() {
        let start = if m == 0 {
            0
        } else {
            cuts[m - 1][end - 1] as usize
        };
        centroids.push(runs.mean(start, end));
        end = start;
    }
    centroids.reverse();
    centroids
}

/// Prefix sums of points around their middle.
struct Runs {
    middle: f64,
    weight: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Runs {
    fn new(points: &[Point]) -> Runs {
        let middle = points[points.len() / 2].value;
        let prefix = |f: &dyn Fn(&Point) -> f64| {
            let mut sum = 0.0;
            let sums = points.iter().map(|p| {
                sum += f(p);
                sum
            });
            std::iter::once(0.0).chain(sums).collect::<Vec<f64>>()
        };
        Runs {
            middle,
            weight: prefix(&|p| p.weight),
            first: prefix(&|p| p.weight * (p.value - middle)),
            second: prefix(&|p| p.weight * (p.value - middle).powi(2)),
        }
    }

    fn cost(&self, start: usize, end: usize) -> f64 {
        let weight = self.weight[end] - self.weight[start];
        let first = self.first[end] - self.first[start];
        let second = self.second[end] - self.second[start];
        (second - first * first / weight).max(0.0)
    }

    fn mean(&self, start: usize, end: usize) -> f64 {
        let first = self.first[end] - self.first[start];
        self.middle + first / (self.weight[end] - self.weight[start])
    }
}

/// One more cluster: `now[j]` is the least cost of points `0..=j`, whose last cluster begins at `cut[j]`.
struct Row<'a> {
    runs: &'a Runs,
    last: &'a [f64],
    now: Vec<f64>,
    cut: Vec<u32>,
}

impl Row<'_> {
    /// Solves `from..=to`, whose cuts lie in `low..=high`.
    fn solve(&mut self, from: usize, to: usize, low: usize, high: usize) {
        if from > to {
            return;
        }
        let j = from + (to - from) / 2;
        let mut best = (f64::INFINITY, low);
        for cut in low..=high.min(j) {
            let cost = self.last[cut - 1] + self.runs.cost(cut, j + 1);
            if cost < best.0 {
                best = (cost, cut);
            }
        }
        (self.now[j], self.cut[j]) = (best.0, best.1 as u32);
        if j > from {
            self.solve(from, j - 1, low, best.1);
        }
        self.solve(j + 1, to, best.1, high);
    }
}

/// What errors of columns cost once the others react: `1 / (h^-1)_jj`, from the factored Hessian, in the weight's order.
pub fn reacting_weights(prepared: &Prepared) -> Vec<f64> {
    let n = prepared.order.len();
    let mut inverse = vec![0.0; n];
    for r in 0..n {
        let row = inverse.iter_mut().zip(prepared.upper.row(r));
        row.for_each(|(sum, u)| *sum += u * u);
    }
    let mut out = vec![0.0; n];
    let places = prepared.order.iter().zip(&inverse);
    places.for_each(|(&c, v)| out[c] = 1.0 / v);
    out
}

/// Tables of `weights` `[O, I]`, whose columns weigh `column_weights` `[I]`, and nearest codes.
pub fn palette(
    weights: &Matrix,
    column_weights: Option<&[f64]>,
    settings: &PaletteSettings,
) -> Result<PaletteParts, MethodError> {
    let (rows, columns) = (weights.rows(), weights.cols());
    if !(settings.temperature >= 0.0 && settings.temperature.is_finite()) {
        return Err(MethodError::Settings(format!(
            "a temperature is a number from 0 on, not {}",
            settings.temperature
        )));
    }
    if !(1..=8).contains(&settings.bits) || column_weights.is_some_and(|w| w.len() != columns) {
        return Err(MethodError::Settings(
            "palettes have codes of 1 to 8 bits, and a weight for each column".into(),
        ));
    }
    let rows_per_table = match settings.rows_per_table {
        0 => rows.max(1),
        n => n.min(rows.max(1)),
    };
    let entries = 1usize << settings.bits;
    let tables = threads::map(rows.div_ceil(rows_per_table), |t| {
        let range = t * rows_per_table..((t + 1) * rows_per_table).min(rows);
        let weight = |c: usize| column_weights.map_or(1.0, |w| w[c]);
        let all = range.flat_map(|r| weights.row(r).iter().enumerate());
        let points = distinct(all.map(|(c, &v)| (v, weight(c))));
        let found = soften(&points, &kmeans(&points, entries), settings.temperature);
        let mut table: Vec<f64> = found
            .iter()
            .map(|&v| minifloat::round_to(settings.elem, v))
            .collect();
        table.resize(entries, table.last().copied().unwrap_or(0.0));
        table
    });
    let mut parts = PaletteParts {
        rows,
        columns,
        rows_per_table,
        entries,
        tables: tables.concat(),
        codes: vec![],
    };
    let coded = threads::map(rows, |r| {
        let levels = Levels::of_table(parts.table(r));
        let codes = weights.row(r).iter().map(|&w| levels.nearest(w).1);
        codes.collect::<Vec<u8>>()
    });
    parts.codes = coded.concat();
    Ok(parts)
}

/// Chooses the codes anew, by the column sweep with error feedback; tables stay.
pub fn with_feedback(parts: &PaletteParts, weights: &Matrix, prepared: &Prepared) -> PaletteParts {
    let tables: Vec<Levels> = (0..parts.rows.div_ceil(parts.rows_per_table))
        .map(|t| Levels::of_table(parts.table(t * parts.rows_per_table)))
        .collect();
    let codes = sweep::sweep_codes(weights, prepared, |row, weight| {
        tables[row / parts.rows_per_table].nearest(weight)
    });
    PaletteParts {
        codes,
        ..parts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::sweep::prepare;
    use crate::methods::testing::{mse, near, random, tl1};

    fn settings(bits: u32, rows_per_table: usize) -> PaletteSettings {
        PaletteSettings {
            bits,
            rows_per_table,
            elem: ElemType::F16,
            temperature: 0.0,
        }
    }

    /// Least cost over all cuts of the points into at most `k` runs.
    fn brute_force(points: &[Point], k: usize) -> f64 {
        let runs = Runs::new(points);
        fn go(runs: &Runs, start: usize, n: usize, k: usize) -> f64 {
            if k == 1 || start == n {
                return if start == n { 0.0 } else { runs.cost(start, n) };
            }
            let ends = start + 1..=n;
            ends.map(|e| runs.cost(start, e) + go(runs, e, n, k - 1))
                .fold(f64::INFINITY, f64::min)
        }
        go(&runs, 0, points.len(), k)
    }

    #[test]
    fn means_are_the_best_of_all() {
        for seed in 0..40 {
            let n = 2 + seed as usize % 11;
            let values = random(2, n, seed);
            let pairs = values.row(0).iter().zip(values.row(1));
            let points = distinct(pairs.map(|(&v, w)| (v, w.abs())));
            for k in 1..=5 {
                let centroids = kmeans(&points, k);
                let cost: f64 = points
                    .iter()
                    .map(|p| {
                        let near = centroids.iter().map(|c| (c - p.value).powi(2));
                        p.weight * near.fold(f64::INFINITY, f64::min)
                    })
                    .sum();
                assert!(
                    (cost - brute_force(&points, k)).abs() < 1e-9,
                    "seed {seed}, k {k}"
                );
                assert!(centroids.windows(2).all(|w| w[0] <= w[1]));
            }
        }
    }

    #[test]
    fn equal_values_are_one_point() {
        let values = [1.0, 2.0, 1.0, 5.0, 2.0, 1.0];
        let points = distinct(values.iter().map(|&v| (v, 1.0)));
        assert_eq!(points.len(), 3);
        assert_eq!((points[0].value, points[0].weight), (1.0, 3.0));
        let apart: Vec<Point> = values
            .iter()
            .map(|&value| Point { value, weight: 1.0 })
            .collect();
        let mut sorted = apart.clone();
        sorted.sort_by(|a, b| a.value.total_cmp(&b.value));
        assert_eq!(kmeans(&points, 2), kmeans(&sorted, 2));
    }

    #[test]
    fn errors_on_the_reference_layer_are_the_known_ones() {
        let t = tl1();
        for (bits, golden) in [(4, 0.00973), (3, 0.03524), (2, 0.12077)] {
            let parts = palette(&t.w, None, &settings(bits, 0)).expect("sound");
            near(t.rel(&parts.decode()), golden, 0.1);
        }
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        let weights = reacting_weights(&prepared);
        // The known errors of tables by row are those of Lloyd's iteration (0.00907, 0.02794, 0.09284); it stops in local
        // minima, and the exact optimum is this.
        for (bits, exact, iterated, swept) in [
            (4, 0.004044, 0.00907, 0.00113),
            (3, 0.019866, 0.02794, 0.00333),
            (2, 0.084921, 0.09284, 0.01234),
        ] {
            let parts = palette(&t.w, Some(&weights), &settings(bits, 1)).expect("sound");
            let rel = t.rel(&parts.decode());
            near(rel, exact, 0.01);
            assert!(rel < iterated);
            let fed = t.rel(&with_feedback(&parts, &t.w, &prepared).decode());
            assert!(fed < 1.1 * swept, "{fed} {swept}");
        }
    }

    #[test]
    fn soft_tables_are_read_by_the_nearest() {
        let t = tl1();
        let of = |temperature| {
            let settings = PaletteSettings {
                temperature,
                ..settings(3, 0)
            };
            palette(&t.w, None, &settings)
        };
        let (exact, soft) = (of(0.0).expect("sound"), of(0.5).expect("sound"));
        assert_ne!(exact.tables, soft.tables);
        for (w, v) in t.w.data().iter().zip(soft.decode().data()) {
            let near = soft.tables.iter().map(|c| (c - w).abs());
            assert_eq!(near.fold(f64::INFINITY, f64::min), (v - w).abs());
        }
        let (best, lost) = (mse(&t.w, &exact.decode()), mse(&t.w, &soft.decode()));
        assert!(best < lost && lost < 1.2 * best, "{best} {lost}");
        assert!(of(-1.0).is_err() && of(f64::NAN).is_err());
    }

    /// However many there are, weights of 16 bits have few distinct values, and none is merged with another.
    #[test]
    fn sixteen_bit_weights_are_counted_exactly() {
        let w = random(300, 400, 9).map(|v| minifloat::round_to(ElemType::BF16, v));
        let points = distinct(w.data().iter().map(|&v| (v, 1.0)));
        let count: f64 = points.iter().map(|p| p.weight).sum();
        assert_eq!(count, 120_000.0);
        assert!(points.len() < 10_000, "{}", points.len());
        let own = |p: &Point| minifloat::round_to(ElemType::BF16, p.value) == p.value;
        assert!(points.iter().all(own));
    }

    #[test]
    fn few_values_are_kept_exactly_and_tables_are_full() {
        let w = Matrix::from_fn(6, 10, |r, c| ((r * c) % 3) as f64 * 0.5);
        let parts = palette(&w, None, &settings(3, 2)).expect("sound");
        assert_eq!(parts.decode(), w);
        assert_eq!(parts.tables.len(), 3 * 8);
        assert!(palette(&w, None, &settings(9, 0)).is_err());
        assert!(palette(&w, Some(&[1.0]), &settings(2, 0)).is_err());
    }

    #[test]
    fn many_values_are_merged_at_little_cost() {
        let w = random(300, 400, 4);
        let points = distinct(w.data().iter().map(|&v| (v, 1.0)));
        assert!(points.len() <= MOST_POINTS + 1);
        let parts = palette(&w, None, &settings(4, 0)).expect("sound");
        // 16 levels that are optimal for the normal distribution lose 0.0095 of its energy.
        near(mse(&w, &parts.decode()), 0.0095, 0.02);
    }
}
