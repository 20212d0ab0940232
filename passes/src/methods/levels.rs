//! Tables of levels: a code points at one of 16 or 256 fixed numbers, and each block has a scale.
//!
//! NF4's levels are quantiles of the normal distribution; the others are the values of small floats. What is stored as
//! the scale, and how long a block is, makes the format:
//!
//! ```text
//! format  levels    block  scale
//! nf4     16 (nf4)  64     largest |w|, a float
//! fp4     e2m1      any    largest |w| / 6, a float
//! mxfp4   e2m1      32     a power of two (e8m0)
//! nvfp4   e2m1      16     e4m3, times one float for the tensor
//! fp8     e4m3      row    largest |w| / 448, a float
//! ```
//! Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", section 3 and appendix E (nf4); "OCP
//! Microscaling Formats (MX) Specification v1.0", sections 5 and 6; NVIDIA's NVFP4 as ModelOpt writes it; "OCP 8-bit
//! Floating Point Specification".

use super::grid::{Groups, packed_codes, scale_type, stored_scale};
use super::matrix::Matrix;
use super::{Method, measured, threads};
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::scale;
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::{ElemType, Tensor, minifloat};

/// The 16 levels of NF4, as `f32`.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Levels in rising order, each with its code.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    levels: Vec<(f64, u8)>,
    /// `midpoints[i]` lies between level `i` and the next.
    midpoints: Vec<f64>,
    even_ties: bool,
}

impl Levels {
    /// Levels of a table; of two levels that are equally near, the lower wins. Code `i` is entry `i`.
    pub fn of_table(table: &[f64]) -> Levels {
        let coded = table.iter().zip(0..=u8::MAX).map(|(&v, code)| (v, code));
        Levels::new(coded.collect(), false)
    }

    /// The finite values of a small float type; of two that are equally near, the one with an even code wins.
    pub fn of_float(elem: ElemType) -> Levels {
        let codes = if elem == ElemType::F4E2M1 { 16 } else { 256u16 };
        let all = (0..codes).map(|c| (minifloat::decode(elem, c as u8), c as u8));
        // Of the two zeros, the positive one.
        let kept = all.filter(|(v, _)| v.is_finite() && !(*v == 0.0 && v.is_sign_negative()));
        Levels::new(kept.collect(), true)
    }

    fn new(mut levels: Vec<(f64, u8)>, even_ties: bool) -> Levels {
        levels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let midpoints = levels.windows(2).map(|w| (w[0].0 + w[1].0) / 2.0);
        Levels {
            midpoints: midpoints.collect(),
            levels,
            even_ties,
        }
    }

    /// Value and code of the level nearest to `v`; what lies outside takes the last level.
    pub fn nearest(&self, v: f64) -> (f64, u8) {
        let at = self.midpoints.partition_point(|&m| m < v);
        let tie = self.midpoints.get(at).is_some_and(|&m| m == v);
        if tie && self.even_ties && self.levels[at].1 & 1 == 1 {
            return self.levels[at + 1];
        }
        self.levels[at]
    }

    /// The largest magnitude.
    pub fn top(&self) -> f64 {
        let ends = [self.levels.first(), self.levels.last()];
        ends.iter().flatten().fold(0.0, |a, l| l.0.abs().max(a))
    }
}

/// What a block's scale is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockScale {
    /// The largest magnitude reaches the largest level; stored as this float type.
    Float(ElemType),
    /// The power of two `floor(log2(max)) - exponent of the largest level`; larger values saturate.
    PowerOfTwo,
    /// e4m3, relative to one `f32` for the tensor that makes the largest scale 448.
    Nested,
}

/// Codes into a table by blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelParts {
    /// Rows, `O`.
    pub rows: usize,
    /// Blocks of a row.
    pub blocks: Groups,
    /// Codes, `[O, I]`.
    pub codes: Vec<u8>,
    /// Scale of each block as decoded, `[O, blocks]`; with a nested scale, without the tensor's.
    pub scales: Vec<f64>,
    /// Factor of the whole tensor; 1 unless the scale is nested.
    pub tensor_scale: f64,
    /// What each code stands for; NaN for codes that do not occur.
    pub table: Vec<f64>,
}

impl LevelParts {
    /// The decoded weight, rounded to `f32`.
    pub fn decode(&self) -> Matrix {
        let columns = self.blocks.columns;
        Matrix::from_rows(self.rows, columns, |r, out| {
            let codes = &self.codes[r * columns..];
            for (c, o) in out.iter_mut().enumerate() {
                let scale = self.scales[r * self.blocks.count + self.blocks.of(c)];
                let level = self.table[usize::from(codes[c])];
                *o = f64::from((scale * self.tensor_scale * level) as f32);
            }
        })
    }
}

/// The method: 16 levels at the quantiles of a normal distribution.
pub static NF4_BLOCKS: Method = Method {
    name: "nf4",
    summary: "4-bit codes of levels at a normal distribution's quantiles, a scale for each block",
    source: "QLoRA, section 3",
    needs_statistics: false,
    bits: 4..=4,
    propose: |layer, settings| {
        let block = if settings.group_len == 0 {
            64
        } else {
            settings.group_len
        };
        let elem = scale_type(settings.scale_elem)?;
        let parts = nf4(layer.weight(), block, elem);
        measured(layer, parts.encoding(4, elem), vec![])
    },
};

/// The method: e2m1 by blocks of 32 that share an exponent.
pub static MXFP4: Method = Method {
    name: "mxfp4",
    summary: "4-bit floats, blocks of 32 share an exponent",
    source: "OCP Microscaling Formats (MX) Specification",
    needs_statistics: false,
    bits: 4..=4,
    propose: |layer, _| {
        let parts = mxfp4(layer.weight());
        measured(layer, parts.encoding(4, ElemType::F8E8M0), vec![])
    },
};

/// The method: e2m1 by blocks of 16 with scales of e4m3.
pub static NVFP4: Method = Method {
    name: "nvfp4",
    summary: "4-bit floats, blocks of 16 with scales of 8-bit floats, times one float for the tensor",
    source: "NVIDIA's NVFP4, as ModelOpt writes it",
    needs_statistics: false,
    bits: 4..=4,
    propose: |layer, _| {
        let parts = nvfp4(layer.weight());
        measured(layer, parts.encoding(4, ElemType::F8E4M3FN), vec![])
    },
};

/// The method: e4m3 with a scale for each row.
pub static FP8: Method = Method {
    name: "fp8",
    summary: "8-bit floats (e4m3), a scale for each row",
    source: "FP8 Formats for Deep Learning, section 3",
    needs_statistics: false,
    bits: 8..=8,
    propose: |layer, _| {
        let parts = fp8(layer.weight());
        measured(layer, parts.encoding(8, ElemType::F32), vec![])
    },
};

impl LevelParts {
    /// The term `scale{scales, codebook{table, int codes}}` of `f32[O, I]`, scales as `scale_elem`; those that are nested
    /// are `scale{tensor's, scales}`.
    fn encoding(&self, bits: u32, scale_elem: ElemType) -> Encoding {
        let table = self.table.iter().map(|v| if v.is_nan() { 0.0 } else { *v });
        let table = Tensor::from_f64(ElemType::F32, [1, 1, self.table.len(), 1], table.collect());
        let codes = packed_codes(bits, &[self.rows, self.blocks.columns], &self.codes);
        let levels = codebook(ElemType::F32, dense::from_tensor(&table), codes);
        let scales = Tensor::from_f64(
            scale_elem,
            [self.rows, self.blocks.count],
            self.scales.clone(),
        );
        let mut scales = dense::from_tensor(&scales);
        if self.tensor_scale != 1.0 {
            let whole = Tensor::from_f64(ElemType::F32, [1, 1], vec![self.tensor_scale]);
            scales = scale::scale(ElemType::F32, dense::from_tensor(&whole), scales);
        }
        scale::scale(ElemType::F32, scales, levels)
    }
}

/// Codes of `weights` `[O, I]` by `levels`.
pub fn quantize(
    weights: &Matrix,
    levels: &Levels,
    scale: BlockScale,
    blocks: Groups,
) -> LevelParts {
    let largest = |part: &[f64]| part.iter().fold(0.0, |a: f64, w| a.max(w.abs()));
    let top = levels.top();
    let e4m3 = Levels::of_float(ElemType::F8E4M3FN);
    let tensor_scale = match scale {
        BlockScale::Nested => {
            stored_scale(largest(weights.data()) / (top * e4m3.top()), ElemType::F32)
        }
        _ => 1.0,
    };
    let block_scale = |max: f64| match scale {
        BlockScale::Float(elem) => stored_scale(max / top, elem),
        BlockScale::PowerOfTwo if max > 0.0 => {
            2f64.powf((max.log2().floor() - top.log2().floor()).clamp(-127.0, 127.0))
        }
        BlockScale::PowerOfTwo => 2f64.powi(-127),
        BlockScale::Nested => e4m3.nearest(max / top / tensor_scale).0,
    };
    let rows = threads::map(weights.rows(), |r| {
        let mut codes = Vec::with_capacity(blocks.columns);
        let mut scales = Vec::with_capacity(blocks.count);
        for b in 0..blocks.count {
            let part = &weights.row(r)[blocks.range(b)];
            let scale = block_scale(largest(part));
            let whole = scale * tensor_scale;
            let code = |w: &f64| match whole > 0.0 {
                true => levels.nearest(w / whole).1,
                false => levels.nearest(0.0).1,
            };
            codes.extend(part.iter().map(code));
            scales.push(scale);
        }
        (codes, scales)
    });
    let mut table = vec![
        f64::NAN;
        1 + levels
            .levels
            .iter()
            .map(|l| usize::from(l.1))
            .max()
            .unwrap_or(0)
    ];
    levels
        .levels
        .iter()
        .for_each(|&(v, code)| table[usize::from(code)] = v);
    LevelParts {
        rows: weights.rows(),
        blocks,
        scales: rows.iter().flat_map(|(_, s)| s).copied().collect(),
        codes: rows.into_iter().flat_map(|(c, _)| c).collect(),
        tensor_scale,
        table,
    }
}

/// NF4: blocks of `block` weights with a scale of type `elem`.
pub fn nf4(weights: &Matrix, block: usize, elem: ElemType) -> LevelParts {
    let levels = Levels::of_table(&NF4.map(f64::from));
    let blocks = Groups::new(weights.cols(), block);
    quantize(weights, &levels, BlockScale::Float(elem), blocks)
}

/// FP4: e2m1 with a float scale for each block.
pub fn fp4(weights: &Matrix, block: usize, elem: ElemType) -> LevelParts {
    let levels = Levels::of_float(ElemType::F4E2M1);
    let blocks = Groups::new(weights.cols(), block);
    quantize(weights, &levels, BlockScale::Float(elem), blocks)
}

/// MXFP4: e2m1 by blocks of 32 that share an exponent.
pub fn mxfp4(weights: &Matrix) -> LevelParts {
    let levels = Levels::of_float(ElemType::F4E2M1);
    quantize(
        weights,
        &levels,
        BlockScale::PowerOfTwo,
        Groups::new(weights.cols(), 32),
    )
}

/// NVFP4: e2m1 by blocks of 16 with e4m3 scales, and one scale for the tensor.
pub fn nvfp4(weights: &Matrix) -> LevelParts {
    let levels = Levels::of_float(ElemType::F4E2M1);
    quantize(
        weights,
        &levels,
        BlockScale::Nested,
        Groups::new(weights.cols(), 16),
    )
}

/// FP8: e4m3 with an `f32` scale for each row.
pub fn fp8(weights: &Matrix) -> LevelParts {
    let levels = Levels::of_float(ElemType::F8E4M3FN);
    let blocks = Groups::new(weights.cols(), 0);
    quantize(weights, &levels, BlockScale::Float(ElemType::F32), blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{decoded, mse, near, random};

    #[test]
    fn errors_of_normals_are_the_known_ones() {
        let w = random(4096, 64, 5);
        let error = |p: LevelParts| mse(&w, &p.decode());
        near(error(nf4(&w, 64, ElemType::F32)), 0.0085, 0.01);
        near(error(fp4(&w, 64, ElemType::F32)), 0.0111, 0.01);
        near(error(mxfp4(&w)), 0.0132, 0.01);
        near(error(nvfp4(&w)), 0.0090, 0.01);
    }

    #[test]
    fn nearest_levels_are_those_of_the_evaluator() {
        for elem in [ElemType::F4E2M1, ElemType::F8E4M3FN, ElemType::F8E5M2] {
            let levels = Levels::of_float(elem);
            let check = |v: f64| {
                let want = minifloat::round_to(elem, v.clamp(-levels.top(), levels.top()));
                assert_eq!(levels.nearest(v).0, want, "{elem} of {v}");
            };
            // Every midpoint is a tie.
            levels.midpoints.iter().for_each(|&m| check(m));
            random(1, 500, 3).data().iter().for_each(|r| check(r * 3.0));
            (-1400..1400).for_each(|i| check(f64::from(i) * 0.37));
        }
    }

    #[test]
    fn table_ties_go_to_the_lower_level() {
        let levels = Levels::of_table(&[0.0, 1.0, 3.0]);
        assert_eq!(levels.nearest(0.5), (0.0, 0));
        assert_eq!(levels.nearest(2.0), (1.0, 1));
        assert_eq!(levels.nearest(9.0), (3.0, 2));
    }

    #[test]
    fn terms_are_the_parts() {
        let w = random(6, 64, 4);
        for (parts, elem) in [
            (nvfp4(&w), ElemType::F8E4M3FN),
            (mxfp4(&w), ElemType::F8E8M0),
            (nf4(&w, 32, ElemType::F16), ElemType::F16),
        ] {
            let term = parts.encoding(4, elem);
            assert!(mse(&parts.decode(), &decoded(&term)) < 1e-12, "{elem}");
        }
        let (codes, scales, tensor, table) = (6 * 64 / 2, 6 * 4, 4, 16 * 4);
        let term = nvfp4(&w).encoding(4, ElemType::F8E4M3FN);
        assert_eq!(term.stored_bytes(), codes + scales + tensor + table);
    }

    #[test]
    fn scales_are_what_each_format_stores() {
        let mut w = random(3, 64, 9);
        w.row_mut(1).fill(0.0);
        for parts in [mxfp4(&w), nvfp4(&w), fp8(&w), nf4(&w, 64, ElemType::F16)] {
            let decoded = parts.decode();
            assert!(decoded.row(1).iter().all(|&v| v == 0.0));
            assert!(mse(&w, &decoded) < 0.02);
        }
        assert!(mxfp4(&w).scales.iter().all(|s| s.log2().fract() == 0.0));
        let nested = nvfp4(&w);
        assert_eq!(nested.scales.iter().copied().fold(0.0, f64::max), 448.0);
        // A block whose largest weight is 7 saturates at 6 instead of taking the next exponent.
        let seven = Matrix::from_fn(1, 32, |_, c| if c == 0 { 7.0 } else { 1.0 });
        let parts = mxfp4(&seven);
        assert_eq!((parts.scales[0], parts.decode()[(0, 0)]), (1.0, 6.0));
    }
}
