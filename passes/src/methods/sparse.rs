//! Pruned weights as terms: the places that a mask keeps, and the values or codes that lie there.
//!
//! ```text
//! values   sparse{pattern; values}                  dense floats
//! codes    affine{scales; sparse{pattern; codes}}   signed codes, of which 0 is the value 0
//! ```
//! N:M patterns store places in their runs. Others store a bit for each place (or block), or where rows begin and each
//! entry's column, whichever is smaller: a bitmap from about one in sixteen on.
//! Source: Mishra et al., "Accelerating Sparse Deep Neural Networks" (N:M); Zeng et al., "GQSA: Group Quantization and
//! Sparsity for Accelerating Large Language Model Inference", section 3 (codes of the groups that are kept).

use super::grid::{AffineParts, index_type, packed_codes, wide_enough};
use super::matrix::Matrix;
use super::pattern::{Mask, Pattern};
use super::{Candidate, Layer, MethodError, measured};
use bytes::Bytes;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::int::{int, pack};
use lapidary_ir::encodings::{Encoding, dense as plain, scale, sparse};
use lapidary_ir::{ElemType, Tensor};

/// A candidate of the weights that a mask keeps, as floats of type `elem`, or a wider one where they need it.
pub(super) fn values(
    layer: &Layer,
    weights: &Matrix,
    mask: &Mask,
    pattern: Pattern,
    elem: ElemType,
) -> Result<Candidate, MethodError> {
    let (elem, assumptions) = wide_enough(elem, weights);
    let term = place(mask, pattern, |shape, kept| {
        let values = kept.iter().map(|&at| weights.data()[at]).collect();
        let ones = Tensor::from_f64(elem, vec![1; shape.len()], vec![1.0]);
        let values = plain::from_tensor(&Tensor::from_f64(elem, shape, values));
        // A product with 1 is what makes a term of `f32` of stored numbers of another type.
        scale::scale(ElemType::F32, plain::from_tensor(&ones), values)
    });
    measured(layer, term, assumptions)
}

/// A candidate of the codes that a mask keeps. The grids are symmetric, and what is dropped has the code of 0.
pub(super) fn codes(
    layer: &Layer,
    parts: &AffineParts,
    mask: &Mask,
    pattern: Pattern,
) -> Result<Candidate, MethodError> {
    let elem = match parts.bits {
        0..=2 => ElemType::I2,
        3..=4 => ElemType::I4,
        _ => ElemType::I8,
    };
    let zero = 1u8 << (parts.bits - 1);
    let stored = place(mask, pattern, |shape, kept| {
        let signed = kept.iter().map(|&at| parts.codes[at].wrapping_sub(zero));
        int(
            elem,
            parts.bits,
            shape,
            Bytes::from(pack(signed, parts.bits)),
        )
    });
    measured(
        layer,
        affine(ElemType::F32, parts.scale_term(), stored, None),
        vec![],
    )
}

/// The sparse term of a mask; `stored` makes the values of a shape from their places in the weight, row-major.
fn place(
    mask: &Mask,
    pattern: Pattern,
    stored: impl Fn(Vec<usize>, &[usize]) -> Encoding,
) -> Encoding {
    let (rows, columns) = (mask.rows, mask.columns);
    let kept: Vec<usize> = (0..mask.kept.len()).filter(|&at| mask.kept[at]).collect();
    if let Pattern::NOfM { keep, of } = pattern
        && of > 1
        && columns.is_multiple_of(of)
    {
        let bits = usize::BITS - (of - 1).leading_zeros();
        let shape = vec![rows, columns / of, keep];
        let places = kept.iter().map(|&at| (at % of) as u8);
        let places = packed_codes(bits, &shape, &places.collect::<Vec<u8>>());
        return sparse::nm(of, stored(shape, &kept), places);
    }
    let width = match pattern {
        Pattern::Blocks { len, .. } if len > 0 && columns.is_multiple_of(len) => len,
        _ => 1,
    };
    let (entries, across) = (kept.len() / width, columns / width);
    let shape = if width == 1 {
        vec![entries]
    } else {
        vec![entries, 1, width]
    };
    let values = stored(shape, &kept);
    let column_type = index_type(across);
    let list = entries * column_type.bits() as usize / 8 + 4 * (rows + 1);
    let corners = kept.iter().step_by(width);
    if (rows * across).div_ceil(8) <= list {
        let mut marks = vec![0; rows * across];
        corners.for_each(|&at| marks[at / width] = 1);
        let grid = packed_codes(1, &[rows, across], &marks);
        return sparse::bitmap(vec![rows, columns], values, grid);
    }
    let mut starts = vec![0i128; rows + 1];
    corners
        .clone()
        .for_each(|&at| starts[at / columns + 1] += 1);
    (0..rows).for_each(|r| starts[r + 1] += starts[r]);
    let integers = |elem, v: Vec<i128>| plain::from_tensor(&Tensor::from_int(elem, [v.len()], v));
    let places = corners.map(|&at| (at % columns / width) as i128).collect();
    sparse::rows(
        [rows, columns],
        values,
        integers(ElemType::U32, starts),
        integers(column_type, places),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::grid::{GridSpec, Groups};
    use crate::methods::pattern::mask;
    use crate::methods::testing::{decoded, random};

    const PATTERNS: [Pattern; 5] = [
        Pattern::Tensor { sparsity: 0.5 },
        Pattern::Rows { sparsity: 0.98 },
        Pattern::NOfM { keep: 2, of: 4 },
        Pattern::Blocks {
            len: 4,
            sparsity: 0.5,
        },
        Pattern::Blocks {
            len: 16,
            sparsity: 0.97,
        },
    ];

    fn places(e: &Encoding) -> String {
        e.params
            .get("pattern")
            .map_or(String::new(), |p| format!("{p:?}"))
    }

    #[test]
    fn terms_are_what_the_mask_keeps() {
        let w = random(64, 512, 3).map(|v| f64::from(v as f32));
        let layer = Layer::new(&w, None).expect("sound");
        for pattern in PATTERNS {
            let mask = mask(&w.map(f64::abs), pattern);
            let found = values(&layer, &w, &mask, pattern, ElemType::F32).expect("valid");
            assert_eq!(decoded(&found.encoding), mask.apply(&w), "{pattern:?}");
            for bits in [2, 4, 8] {
                let spec = GridSpec {
                    bits,
                    symmetric: true,
                    clip_exponent: None,
                    scale_elem: ElemType::F16,
                    scale_bits: 0,
                };
                let groups = Groups::new(512, 64);
                let kept = mask.apply(&w);
                let parts = AffineParts::quantize(&kept, &spec, groups, |_, _, p| spec.fit(p));
                let found = codes(&layer, &parts, &mask, pattern).expect("valid");
                assert_eq!(decoded(&found.encoding), parts.decode(), "{pattern:?}");
            }
        }
    }

    #[test]
    fn what_is_rare_is_listed_and_what_is_common_marked() {
        let w = random(64, 512, 3);
        let term = |pattern| {
            let mask = mask(&w.map(f64::abs), pattern);
            place(&mask, pattern, |shape, kept| {
                let kept = kept.iter().map(|&at| w.data()[at]).collect();
                plain::from_tensor(&Tensor::from_f64(ElemType::F16, shape, kept))
            })
        };
        let [half, few, two, blocks, rare] = PATTERNS.map(term);
        let all = 64 * 512;
        assert_eq!(half.stored_bytes(), all / 2 * 2 + all / 8);
        // Ten of 512 are kept of each row, with columns of two bytes.
        assert!(places(&few).contains("rows"));
        assert_eq!(few.stored_bytes(), 64 * 11 * 4 + 65 * 4);
        // 2:4 takes two bits for each place that is kept.
        assert_eq!(two.stored_bytes(), all / 2 * 2 + all / 2 / 4);
        assert_eq!(blocks.stored_bytes(), all / 2 * 2 + all / 4 / 8);
        assert!(places(&rare).contains("bitmap"));
    }

    #[test]
    fn nothing_may_be_kept() {
        let w = random(3, 8, 1);
        let layer = Layer::new(&w, None).expect("sound");
        let pattern = Pattern::Rows { sparsity: 1.0 };
        let none = mask(&w, pattern);
        let found = values(&layer, &w, &none, pattern, ElemType::F16).expect("valid");
        assert_eq!(decoded(&found.encoding), Matrix::zeros(3, 8));
    }
}
