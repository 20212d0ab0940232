//! Uniform grids: `value = scale * (code - zero)`, one grid for each group of a row.
//!
//! A grid is fitted so that zero is one of its values, and its scale is rounded to the type that it is stored in
//! *before* codes are chosen, so that codes belong to the scale that will be read.
//! Source: "GPTQ: Accurate Post-training Compression for Generative Pretrained Transformers", section 3, and the
//! quantizer published with it (ranges, search of the clipping).

pub use super::groups::Groups;
use super::matrix::Matrix;
use super::{MethodError, Settings};
use bytes::Bytes;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::int::{int, pack};
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::{ElemType, Tensor, minifloat};
use std::ops::Range;

/// How grids are fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GridSpec {
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// The same range on both sides of zero.
    pub symmetric: bool,
    /// Exponent of the error that the clipping of the range is searched by; `None` takes the whole range. 2.4 is the
    /// published heuristic, 2 the least squared error.
    pub clip_exponent: Option<f64>,
    /// Element type that scales are stored in, unless they are codes.
    pub scale_elem: ElemType,
    /// Bits of the codes that scales are stored as, up to 8, times one power of two for each row; 0 for floats. For grids
    /// whose whole row is known before codes are chosen.
    pub scale_bits: u32,
}

/// A grid of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Distance of two values.
    pub scale: f64,
    /// Code of the value 0; need not be an integer.
    pub zero: f64,
    /// Largest code.
    pub max: f64,
}

impl Grid {
    /// The nearest code, ties to even.
    pub fn code(&self, value: f64) -> f64 {
        ((value / self.scale).round_ties_even() + self.zero).clamp(0.0, self.max)
    }

    /// What a code stands for.
    pub fn value(&self, code: f64) -> f64 {
        self.scale * (code - self.zero)
    }

    /// The nearest value of the grid.
    pub fn nearest(&self, value: f64) -> f64 {
        self.value(self.code(value))
    }
}

impl GridSpec {
    /// What the settings ask for. Fails where codes would not be of 2 to 8 bits or scales not floats.
    pub fn from_settings(settings: &Settings) -> Result<GridSpec, MethodError> {
        if !(2..=8).contains(&settings.bits) {
            return Err(MethodError::Settings(format!(
                "codes of 2 to 8 bits, not of {}",
                settings.bits
            )));
        }
        Ok(GridSpec {
            bits: settings.bits,
            symmetric: settings.symmetric,
            clip_exponent: settings.clip.then_some(2.4),
            scale_elem: scale_type(settings.scale_elem)?,
            scale_bits: settings.scale_bits.min(8),
        })
    }

    /// Largest code.
    pub fn max_code(&self) -> f64 {
        f64::from((1u32 << self.bits) - 1)
    }

    /// The grid of these weights.
    pub fn fit(&self, weights: &[f64]) -> Grid {
        let fold = |f: fn(f64, f64) -> f64| weights.iter().copied().fold(0.0, f);
        let (low, high) = (fold(f64::min), fold(f64::max));
        let Some(exponent) = self.clip_exponent else {
            return self.of_range(low, high);
        };
        let mut best = (f64::INFINITY, self.of_range(low, high));
        for step in 0..80 {
            let part = 1.0 - f64::from(step) / 100.0;
            let grid = self.of_range(part * low, part * high);
            let mut error = 0.0;
            for run in weights.chunks(16) {
                let errors = run.iter().map(|&w| (w - grid.nearest(w)).abs());
                error += errors.map(|e| power(e, exponent)).sum::<f64>();
                if error >= best.0 {
                    break;
                }
            }
            if error < best.0 {
                best = (error, grid);
            }
        }
        best.1
    }

    /// The grids of a row's groups, which share what their scales are codes of.
    pub fn fit_row(&self, row: &[f64], groups: Groups) -> Vec<Grid> {
        let fitted = (0..groups.count).map(|g| self.fit(&row[groups.range(g)]));
        self.nested(fitted.collect())
    }

    /// The grids of a row with scales as they are stored.
    fn nested(&self, mut grids: Vec<Grid>) -> Vec<Grid> {
        if self.scale_bits == 0 {
            return grids;
        }
        let scales: Vec<f64> = grids.iter().map(|g| g.scale).collect();
        for (grid, scale) in grids.iter_mut().zip(coded_scales(&scales, self.scale_bits)) {
            if !self.symmetric {
                // The range begins where it began.
                let zero = (grid.zero * grid.scale / scale).round_ties_even();
                grid.zero = zero.clamp(0.0, grid.max);
            }
            grid.scale = scale;
        }
        grids
    }

    /// The grid over `low..=high`, which contains 0.
    pub fn of_range(&self, low: f64, high: f64) -> Grid {
        let max = self.max_code();
        let (mut low, mut high) = (low.min(0.0), high.max(0.0));
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        if self.symmetric {
            let top = high.max(-low);
            let scale = stored_scale(2.0 * top / max, self.scale_elem);
            let zero = f64::from(1u32 << (self.bits - 1));
            return Grid { scale, zero, max };
        }
        let scale = stored_scale((high - low) / max, self.scale_elem);
        let zero = (-low / scale).round_ties_even().clamp(0.0, max);
        Grid { scale, zero, max }
    }
}

fn power(e: f64, exponent: f64) -> f64 {
    if exponent == 2.0 {
        e * e
    } else {
        // Errors are only compared: six digits are enough, and take a third of the time.
        f64::from((e as f32).powf(exponent as f32))
    }
}

/// `elem` if scales may be stored in it.
pub fn scale_type(elem: ElemType) -> Result<ElemType, MethodError> {
    match elem {
        ElemType::F64 | ElemType::F32 | ElemType::F16 | ElemType::BF16 => Ok(elem),
        _ => Err(MethodError::Settings(format!(
            "scales are f16, bf16, f32 or f64, not {elem}"
        ))),
    }
}

/// `elem`, or a type of the same size with a larger range if the matrix needs it, which is then said.
pub fn wide_enough(elem: ElemType, m: &Matrix) -> (ElemType, Vec<String>) {
    let largest = m.data().iter().fold(0.0, |a: f64, v| a.max(v.abs()));
    if elem == ElemType::F16 && largest > 65504.0 {
        let said = format!("numbers up to {largest:.1e} are stored as bf16");
        return (ElemType::BF16, vec![said]);
    }
    (elem, vec![])
}

/// A positive scale as `elem` stores it: never 0 and never infinite.
pub fn stored_scale(scale: f64, elem: ElemType) -> f64 {
    let (least, most) = match elem {
        ElemType::F16 => (2f64.powi(-24), 65504.0),
        ElemType::BF16 => (2f64.powi(-126), 255.0 * 2f64.powi(120)),
        _ => (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
    };
    minifloat::round_to(elem, scale.clamp(least, most))
}

/// The power of two that scales up to `top` are codes of `bits` bits of: the least that reaches it. The largest code has its
/// highest bit set, so that the same unit is found again from scales that are stored.
fn scale_unit(top: f64, bits: u32) -> f64 {
    let most = f64::from((1u32 << bits) - 1);
    (top / most).log2().ceil().clamp(-127.0, 119.0).exp2()
}

/// A row's scales as they are read where they are stored as codes.
pub fn coded_scales(scales: &[f64], bits: u32) -> Vec<f64> {
    let unit = scale_unit(scales.iter().copied().fold(0.0, f64::max), bits);
    let most = f64::from((1u32 << bits) - 1);
    let code = |s: &f64| (s / unit).round_ties_even().clamp(1.0, most);
    scales.iter().map(|s| unit * code(s)).collect()
}

/// Zero points of [`AffineParts`].
#[derive(Clone, Debug, PartialEq)]
pub enum Zeros {
    /// One for all groups.
    Shared(f64),
    /// An integer for each group, `[O, groups]`, stored as a code.
    Codes(Vec<f64>),
    /// A number for each group, `[O, groups]`, stored as a float of this type.
    Floats(ElemType, Vec<f64>),
}

/// Codes on grids: the plain parts of an `affine` term.
#[derive(Clone, Debug, PartialEq)]
pub struct AffineParts {
    /// Rows, `O`.
    pub rows: usize,
    /// How rows are cut.
    pub groups: Groups,
    /// Bits of a code.
    pub bits: u32,
    /// Codes, `[O, I]`.
    pub codes: Vec<u8>,
    /// Element type of the scales, unless they are codes.
    pub scale_elem: ElemType,
    /// Bits of the scales' codes; 0 for floats.
    pub scale_bits: u32,
    /// Scales as they are read, `[O, groups]`.
    pub scales: Vec<f64>,
    /// Zero points.
    pub zeros: Zeros,
}

impl AffineParts {
    /// Codes of `weights` on the grids that `fit` gives for the weights of each group.
    pub fn quantize(
        weights: &Matrix,
        spec: &GridSpec,
        groups: Groups,
        fit: impl Fn(usize, Range<usize>, &[f64]) -> Grid + Sync,
    ) -> AffineParts {
        let rows = super::threads::map(weights.rows(), |r| {
            let part = |g: usize| &weights.row(r)[groups.range(g)];
            let fitted = (0..groups.count).map(|g| fit(r, groups.range(g), part(g)));
            let grids = spec.nested(fitted.collect());
            let mut codes = Vec::with_capacity(groups.columns);
            for (g, grid) in grids.iter().enumerate() {
                codes.extend(part(g).iter().map(|&w| grid.code(w) as u8));
            }
            (codes, grids)
        });
        AffineParts::from_rows(rows, spec, groups)
    }

    /// The parts of rows of codes and grids; grids have zero points that are integers.
    pub fn from_rows(
        rows: Vec<(Vec<u8>, Vec<Grid>)>,
        spec: &GridSpec,
        groups: Groups,
    ) -> AffineParts {
        let grids = || rows.iter().flat_map(|(_, grids)| grids);
        AffineParts {
            rows: rows.len(),
            groups,
            bits: spec.bits,
            scale_elem: spec.scale_elem,
            scale_bits: spec.scale_bits,
            scales: grids().map(|g| g.scale).collect(),
            zeros: if spec.symmetric {
                Zeros::Shared(f64::from(1u32 << (spec.bits - 1)))
            } else {
                Zeros::Codes(grids().map(|g| g.zero).collect())
            },
            codes: rows.into_iter().flat_map(|(codes, _)| codes).collect(),
        }
    }

    /// The zero point of a group.
    pub fn zero(&self, row: usize, group: usize) -> f64 {
        match &self.zeros {
            Zeros::Shared(z) => *z,
            Zeros::Codes(z) | Zeros::Floats(_, z) => z[row * self.groups.count + group],
        }
    }

    /// `code - zero` of a row, which its scales multiply.
    pub fn steps(&self, row: usize) -> Vec<f64> {
        let codes = &self.codes[row * self.groups.columns..][..self.groups.columns];
        let step = |(c, &code): (usize, &u8)| f64::from(code) - self.zero(row, self.groups.of(c));
        codes.iter().enumerate().map(step).collect()
    }

    /// The decoded weight, rounded to `f32` as the term decodes.
    pub fn decode(&self) -> Matrix {
        Matrix::from_rows(self.rows, self.groups.columns, |r, out| {
            let scales = &self.scales[r * self.groups.count..];
            for (c, (o, step)) in out.iter_mut().zip(self.steps(r)).enumerate() {
                *o = f64::from((scales[self.groups.of(c)] * step) as f32);
            }
        })
    }

    /// The term `affine{scale, int codes, zero}` of `f32[O, I]`.
    pub fn encoding(&self) -> Encoding {
        let elem = code_type(self.bits);
        let by_group = vec![self.rows, self.groups.count];
        let floats = |elem, shape: &[usize], values: &[f64]| {
            let rounded = Tensor::from_f64(elem, shape, values.to_vec());
            dense::from_tensor(&rounded)
        };
        let packed = |shape: Vec<usize>, codes: &mut dyn Iterator<Item = u8>| {
            int(elem, self.bits, shape, Bytes::from(pack(codes, self.bits)))
        };
        let codes = packed(
            vec![self.rows, self.groups.columns],
            &mut self.codes.iter().copied(),
        );
        let zero = match &self.zeros {
            Zeros::Shared(z) if z.fract() == 0.0 => {
                packed(vec![1, 1], &mut std::iter::once(*z as u8))
            }
            Zeros::Shared(z) => floats(ElemType::F16, &[1, 1], &[*z]),
            Zeros::Codes(z) => packed(by_group.clone(), &mut z.iter().map(|&z| z as u8)),
            Zeros::Floats(elem, z) => floats(*elem, &by_group, z),
        };
        affine(ElemType::F32, self.scale_term(), codes, Some(zero))
    }

    /// The term of the scales, `[O, groups]`: floats, or `affine{powers of two, codes}`.
    pub fn scale_term(&self) -> Encoding {
        let shape = [self.rows, self.groups.count];
        if self.scale_bits == 0 {
            let scales = Tensor::from_f64(self.scale_elem, shape, self.scales.clone());
            return dense::from_tensor(&scales);
        }
        let of_row = |row: &[f64]| {
            let top = row.iter().copied().fold(0.0, f64::max);
            scale_unit(top, self.scale_bits)
        };
        let rows = || self.scales.chunks(self.groups.count);
        let units: Vec<f64> = rows().map(of_row).collect();
        let codes = rows()
            .zip(&units)
            .flat_map(|(row, unit)| row.iter().map(move |s| (s / unit) as u8));
        let codes = packed_codes(self.scale_bits, &shape, &codes.collect::<Vec<u8>>());
        let units = Tensor::from_f64(ElemType::F8E8M0, [self.rows, 1], units);
        affine(ElemType::F32, dense::from_tensor(&units), codes, None)
    }

    /// The scales of a row as they are read once stored.
    pub fn stored_scales(&self, scales: &[f64]) -> Vec<f64> {
        let stored = |&s: &f64| stored_scale(s, self.scale_elem);
        match self.scale_bits {
            0 => scales.iter().map(stored).collect(),
            bits => coded_scales(scales, bits),
        }
    }
}

/// The term of codes of so many bits.
pub fn packed_codes(bits: u32, shape: &[usize], codes: &[u8]) -> Encoding {
    let bytes = Bytes::from(pack(codes.iter().copied(), bits));
    int(code_type(bits), bits, shape.to_vec(), bytes)
}

/// The smallest unsigned type that counts so many things from 0 on.
pub fn index_type(count: usize) -> ElemType {
    match count {
        0..=0x100 => ElemType::U8,
        0x101..=0x1_0000 => ElemType::U16,
        _ => ElemType::U32,
    }
}

/// The smallest unsigned type of codes of so many bits.
fn code_type(bits: u32) -> ElemType {
    match bits {
        0..=2 => ElemType::U2,
        3..=4 => ElemType::U4,
        _ => ElemType::U8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_a_value_of_every_grid() {
        for symmetric in [false, true] {
            let spec = GridSpec {
                bits: 3,
                symmetric,
                clip_exponent: None,
                scale_elem: ElemType::F16,
                scale_bits: 0,
            };
            for weights in [&[1.0, 3.0][..], &[-2.0, -0.5], &[-1.0, 0.7], &[0.0, 0.0]] {
                let grid = spec.fit(weights);
                assert_eq!(grid.nearest(0.0), 0.0, "{weights:?}");
                let far = weights.iter().map(|w| (w - grid.nearest(*w)).abs());
                assert!(far.fold(0.0, f64::max) <= grid.scale * 1.01);
            }
        }
    }

    #[test]
    fn scales_survive_the_type_they_are_stored_in() {
        assert!(stored_scale(1e-30, ElemType::F16) > 0.0);
        assert_eq!(stored_scale(1e30, ElemType::F16), 65504.0);
        assert_eq!(stored_scale(0.1, ElemType::F16), f64::from(half_of(0.1)));
        assert!(stored_scale(3e38, ElemType::BF16).is_finite());
    }

    #[test]
    fn coded_scales_are_found_again_and_near() {
        for seed in 0..50 {
            let drawn = crate::methods::testing::random(1, 9, seed);
            let scales: Vec<f64> = drawn.data().iter().map(|v| (3.0 * v).exp2()).collect();
            let top = scales.iter().copied().fold(0.0, f64::max);
            for bits in 2..=8 {
                let stored = coded_scales(&scales, bits);
                assert_eq!(coded_scales(&stored, bits), stored, "seed {seed}");
                let unit = scale_unit(top, bits);
                for (a, b) in scales.iter().zip(&stored) {
                    assert!((a - b).abs() <= unit / 2.0 || *b == unit);
                    assert!((b / unit).fract() == 0.0 && b / unit < f64::from(1 << bits));
                }
            }
        }
    }

    fn half_of(v: f64) -> f32 {
        minifloat::round_to(ElemType::F16, v) as f32
    }
}
