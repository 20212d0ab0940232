//! SpQR: few-bit codes in tiny groups whose scales are codes themselves, and outliers kept apart.
//!
//! Groups of 16 columns make the grid fit closely; their scales and zero points would cost as much as the codes, so
//! they are rounded to 3 bits in groups of 16 rows. A weight whose rounding error, by the column sweep's measure
//! `((w-ŵ) / U_jj)²`, exceeds a threshold is an outlier: it is stored as `f16`, its error is zero, and the grid of its group
//! is fitted without it. Which weights would spoil a grid is found by leaving out one after the other.
//! Source: Dettmers et al., "SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression",
//! section 4.

mod term;
#[cfg(test)]
mod tests;

use super::grid::{Groups, stored_scale};
use super::matrix::Matrix;
use super::sweep::{self, Prepared, Rounding, prepare};
use super::{Candidate, Layer, Method, MethodError, Settings, measured, threads};
use lapidary_ir::{ElemType, minifloat};
use std::ops::Range;

/// The method; groups are those of the settings, at most 32 columns.
pub static SPQR: Method = Method {
    name: "spqr",
    summary: "tiny groups whose scales are 3-bit codes, error feedback, and outliers kept apart as 16-bit floats",
    source: "SpQR, section 4",
    needs_statistics: true,
    bits: 2..=8,
    propose,
};

/// Most consecutive rows that share the grids of their scales and zero points.
pub const SECOND_ORDER_ROWS: usize = 16;

/// Settings of the core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpqrSettings {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Bits of a scale's and a zero point's code, 2 to 8.
    pub scale_bits: u32,
    /// Columns of a group.
    pub group_len: usize,
    /// Threshold of outliers, relative to the mean of all columns' `Var(w) / U_jj²`; infinity for none.
    pub outlier_threshold: f64,
}

impl Default for SpqrSettings {
    fn default() -> SpqrSettings {
        SpqrSettings {
            bits: 3,
            scale_bits: 3,
            group_len: 16,
            outlier_threshold: 0.2,
        }
    }
}

/// Codes of numbers on one uniform grid: `value = scale * (code - zero)` with a float zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
struct FloatGrid {
    scale: f64,
    zero: f64,
    max: f64,
}

impl FloatGrid {
    /// The grid over the range of `values`; scale and zero point as `f16`.
    fn of(values: &[f64], bits: u32) -> FloatGrid {
        let fold = |f: fn(f64, f64) -> f64, from| values.iter().copied().fold(from, f);
        let (low, high) = (
            fold(f64::min, f64::INFINITY),
            fold(f64::max, f64::NEG_INFINITY),
        );
        let max = f64::from((1u32 << bits) - 1);
        let top = low.abs().max(high.abs());
        // A range that f16 could not tell from its position is one value.
        let range = if high - low > 1e-3 * top {
            high - low
        } else {
            top
        };
        let scale = stored_scale(range / max, ElemType::F16);
        let zero = minifloat::round_to(ElemType::F16, (-low / scale).clamp(-65504.0, 65504.0));
        FloatGrid { scale, zero, max }
    }

    fn code(&self, v: f64) -> f64 {
        (v / self.scale + self.zero)
            .round_ties_even()
            .clamp(0.0, self.max)
    }

    fn value(&self, code: f64) -> f64 {
        self.scale * (code - self.zero)
    }
}

/// A weight that is kept apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlier {
    /// Its column.
    pub column: usize,
    /// Its value, as `f16` holds it.
    pub value: f64,
}

/// The parts of the format, in the order that columns are swept.
#[derive(Clone, Debug)]
pub struct Spqr {
    /// Settings that they were made with.
    pub settings: SpqrSettings,
    /// Groups of a row.
    pub groups: Groups,
    /// Codes, `[O, I]`.
    pub codes: Vec<u8>,
    /// Codes of the scales and of the zero points, `[O, groups]`.
    pub scale_codes: Vec<u8>,
    /// Codes of the zero points, `[O, groups]`.
    pub zero_codes: Vec<u8>,
    /// Equal bands of rows that share the grids of scales and zero points.
    pub bands: Groups,
    /// Scale and zero point of the scales, `[bands, groups]`.
    pub scale_grids: Vec<[f64; 2]>,
    /// Scale and zero point of the zero points, `[bands, groups]`.
    pub zero_grids: Vec<[f64; 2]>,
    /// Each row's outliers, in rising columns.
    pub outliers: Vec<Vec<Outlier>>,
    /// Column of the weight that is held in place `k`.
    pub order: Vec<usize>,
    /// What had to be repaired.
    pub assumptions: Vec<String>,
}

impl Spqr {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.outliers.len()
    }

    /// Outliers by all weights.
    pub fn outlier_share(&self) -> f64 {
        let count: usize = self.outliers.iter().map(Vec::len).sum();
        count as f64 / self.codes.len().max(1) as f64
    }

    /// Stored bits by weights, where 16 divides the rows: codes, two codes for each group, four `f16` for each group of 16 rows, and a value and a
    /// column for each outlier.
    pub fn bits_per_weight(&self) -> f64 {
        let s = &self.settings;
        let by_group = f64::from(2 * s.scale_bits) / self.groups.len as f64;
        let second = 64.0 / (self.groups.len * SECOND_ORDER_ROWS) as f64;
        f64::from(s.bits) + by_group + second + 32.0 * self.outlier_share()
    }

    /// What the codes stand for, without outliers, as they are swept.
    fn dense(&self) -> Matrix {
        let columns = self.groups.columns;
        Matrix::from_rows(self.rows(), columns, |r, out| {
            for (c, o) in out.iter_mut().enumerate() {
                let (scale, zero) = self.grid(r, self.groups.of(c));
                *o = scale * (f64::from(self.codes[r * columns + c]) - zero);
            }
        })
    }

    fn grid(&self, row: usize, group: usize) -> (f64, f64) {
        let at = row * self.groups.count + group;
        let second = self.bands.of(row) * self.groups.count + group;
        let decode = |[scale, zero]: [f64; 2], code: u8| scale * (f64::from(code) - zero);
        (
            decode(self.scale_grids[second], self.scale_codes[at]),
            decode(self.zero_grids[second], self.zero_codes[at]),
        )
    }

    /// The decoded weight in its own order: outliers replace what their codes stand for.
    pub fn decode(&self) -> Matrix {
        let mut out = self.dense();
        for (r, outliers) in self.outliers.iter().enumerate() {
            outliers.iter().for_each(|o| out[(r, o.column)] = o.value);
        }
        let mut place = vec![0; self.order.len()];
        self.order
            .iter()
            .enumerate()
            .for_each(|(k, &c)| place[c] = k);
        out.select_columns(&place)
    }

    /// The outliers for a reader that adds them to what their codes stand for.
    pub fn additive_outliers(&self) -> Vec<Vec<Outlier>> {
        let dense = self.dense();
        let less = |(r, row): (usize, &Vec<Outlier>)| {
            let moved = row.iter().map(|o| Outlier {
                value: o.value - dense[(r, o.column)],
                ..*o
            });
            moved.collect()
        };
        self.outliers.iter().enumerate().map(less).collect()
    }
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let group_len = match settings.group_len {
        0 => 16,
        len => len.min(32),
    };
    let statistics = layer.needed_statistics()?;
    let found = spqr(
        layer.weight(),
        prepare(&statistics.hessian, 0.01, false),
        &SpqrSettings {
            bits: settings.bits,
            group_len,
            // What rounding costs quarters with each bit, and the threshold is published for three.
            outlier_threshold: 0.2 * 4f64.powi(3 - settings.bits as i32),
            ..SpqrSettings::default()
        },
    )?;
    let term = found.encoding();
    measured(layer, term, found.assumptions)
}

/// Encodes `weight` `[O, I]`.
pub fn spqr(
    weight: &Matrix,
    prepared: Prepared,
    settings: &SpqrSettings,
) -> Result<Spqr, MethodError> {
    let known = |bits| (2..=8).contains(&bits);
    if !known(settings.bits) || !known(settings.scale_bits) || settings.group_len == 0 {
        return Err(MethodError::Settings(
            "codes and scales of 2 to 8 bits in groups of one column at least".into(),
        ));
    }
    let groups = Groups::new(weight.cols(), settings.group_len);
    let bands = Groups::new(weight.rows(), SECOND_ORDER_ROWS);
    let mut swept = prepared.arrange(weight);
    let diagonal = prepared.upper.diagonal();
    let mut rounding = TinyGroups {
        settings,
        groups,
        bands,
        threshold: settings.outlier_threshold * mean_variance(&swept, &diagonal),
        diagonal,
        grids: vec![],
        second: vec![],
    };
    // A block is a group, whose grids are fitted to all rows at once because rows share their scales' grids.
    let (rows, _) = sweep::sweep(&mut swept, &prepared.upper, groups.len, &mut rounding);
    let second = |pick: fn(&SecondOrder) -> FloatGrid| {
        let at = (0..bands.count).flat_map(|b| (0..groups.count).map(move |g| (b, g)));
        let grid = at.map(|(b, g)| pick(&rounding.second[g][b]));
        grid.map(|g| [g.scale, g.zero]).collect()
    };
    Ok(Spqr {
        settings: *settings,
        groups,
        bands,
        scale_codes: rows.iter().flat_map(|r| &r.scale_codes).copied().collect(),
        zero_codes: rows.iter().flat_map(|r| &r.zero_codes).copied().collect(),
        scale_grids: second(|s| s.scales),
        zero_grids: second(|s| s.zeros),
        codes: rows.iter().flat_map(|r| &r.codes).copied().collect(),
        outliers: rows.into_iter().map(|r| r.outliers).collect(),
        order: prepared.order,
        assumptions: prepared.assumptions,
    })
}

/// Mean over columns of their variance over rows, by `U_jj²`.
fn mean_variance(weights: &Matrix, diagonal: &[f64]) -> f64 {
    let n = weights.rows().max(1) as f64;
    let columns = diagonal.iter().enumerate().map(|(c, u)| {
        let column = (0..weights.rows()).map(|r| weights[(r, c)]);
        let mean = column.clone().sum::<f64>() / n;
        column.map(|v| (v - mean).powi(2)).sum::<f64>() / n / (u * u)
    });
    columns.sum::<f64>() / diagonal.len().max(1) as f64
}

/// Grids of the scales and zero points of 16 rows.
struct SecondOrder {
    scales: FloatGrid,
    zeros: FloatGrid,
}

struct TinyGroups<'a> {
    settings: &'a SpqrSettings,
    groups: Groups,
    bands: Groups,
    threshold: f64,
    diagonal: Vec<f64>,
    /// Codes and grid of each row, in the group at hand.
    grids: Vec<RowGrid>,
    /// By groups, then by bands of rows.
    second: Vec<Vec<SecondOrder>>,
}

#[derive(Clone, Copy)]
struct RowGrid {
    scale_code: u8,
    zero_code: u8,
    grid: FloatGrid,
}

struct SpqrRow {
    codes: Vec<u8>,
    scale_codes: Vec<u8>,
    zero_codes: Vec<u8>,
    outliers: Vec<Outlier>,
}

impl TinyGroups<'_> {
    /// The exact grid of a row's group, without its outliers.
    fn fit(&self, part: &[f64], diagonal: &[f64]) -> FloatGrid {
        let all = self.range_grid(part);
        if !self.threshold.is_finite() || part.len() < 2 {
            return all;
        }
        let cost = |grid: &FloatGrid, skip: usize| -> f64 {
            let costs = part.iter().zip(diagonal).enumerate();
            let kept = costs.filter(|(k, _)| *k != skip);
            kept.map(|(_, (w, u))| ((w - grid.value(grid.code(*w))) / u).powi(2))
                .sum()
        };
        let base = cost(&all, usize::MAX);
        let mut rest = Vec::with_capacity(part.len());
        let spoils: Vec<bool> = (0..part.len())
            .map(|k| {
                rest.clear();
                rest.extend(part[..k].iter().chain(&part[k + 1..]));
                base - cost(&self.range_grid(&rest), k) > self.threshold
            })
            .collect();
        let kept = part.iter().zip(&spoils).filter(|(_, s)| !**s);
        let kept: Vec<f64> = kept.map(|(w, _)| *w).collect();
        if kept.is_empty() || kept.len() == part.len() {
            return all;
        }
        self.range_grid(&kept)
    }

    /// The grid over the range of `part` and zero, in exact numbers.
    fn range_grid(&self, part: &[f64]) -> FloatGrid {
        let fold = |f: fn(f64, f64) -> f64| part.iter().copied().fold(0.0, f);
        let (mut low, mut high) = (fold(f64::min), fold(f64::max));
        if low == high {
            (low, high) = (-1.0, 1.0);
        }
        let max = f64::from((1u32 << self.settings.bits) - 1);
        let scale = (high - low) / max;
        FloatGrid {
            scale,
            zero: -low / scale,
            max,
        }
    }
}

impl Rounding for TinyGroups<'_> {
    type Row = SpqrRow;

    fn start(&self, _: usize) -> SpqrRow {
        SpqrRow {
            codes: Vec::with_capacity(self.groups.columns),
            scale_codes: Vec::with_capacity(self.groups.count),
            zero_codes: Vec::with_capacity(self.groups.count),
            outliers: vec![],
        }
    }

    fn group_len(&self) -> usize {
        self.groups.len
    }

    fn begin_block(&mut self, weights: &Matrix, columns: Range<usize>) {
        let diagonal = &self.diagonal[columns.clone()];
        let exact = threads::map(weights.rows(), |r| {
            self.fit(&weights.row(r)[columns.clone()], diagonal)
        });
        let (mut grids, mut second) = (Vec::with_capacity(weights.rows()), vec![]);
        for band in exact.chunks(self.bands.len) {
            let of = |pick: fn(&FloatGrid) -> f64| {
                let values: Vec<f64> = band.iter().map(pick).collect();
                FloatGrid::of(&values, self.settings.scale_bits)
            };
            let (scales, zeros) = (of(|g| g.scale), of(|g| g.zero));
            for g in band {
                let (s, z) = (scales.code(g.scale), zeros.code(g.zero));
                grids.push(RowGrid {
                    scale_code: s as u8,
                    zero_code: z as u8,
                    grid: FloatGrid {
                        scale: scales.value(s),
                        zero: zeros.value(z),
                        max: g.max,
                    },
                });
            }
            second.push(SecondOrder { scales, zeros });
        }
        self.grids = grids;
        self.second.push(second);
    }

    fn begin_group(&self, state: &mut SpqrRow, row: usize, _: Range<usize>, _: &[f64]) {
        state.scale_codes.push(self.grids[row].scale_code);
        state.zero_codes.push(self.grids[row].zero_code);
    }

    fn round(&self, state: &mut SpqrRow, row: usize, column: usize, weight: f64) -> f64 {
        let grid = &self.grids[row].grid;
        let code = grid.code(weight);
        let value = grid.value(code);
        // A scale whose code decodes to 0 makes no grid at all.
        let sound = value.is_finite() && code.is_finite();
        let cost = ((weight - value) / self.diagonal[column]).powi(2);
        if sound && cost <= self.threshold {
            state.codes.push(code as u8);
            return value;
        }
        state
            .codes
            .push(if sound { grid.code(0.0) as u8 } else { 0 });
        let value = minifloat::round_to(ElemType::F16, weight.clamp(-65504.0, 65504.0));
        state.outliers.push(Outlier { column, value });
        value
    }
}
