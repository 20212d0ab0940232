//! SpQR's parts as a term.

use super::Spqr;
use crate::methods::dense;
use crate::methods::grid::{index_type, packed_codes};
use crate::methods::matrix::Matrix;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::{Encoding, dense as plain, patch, scale};
use lapidary_ir::{ElemType, Tensor};

impl Spqr {
    /// The term `patch{affine{scales, codes, zeros}; rows; values}` of `f32[O, I]` in the order of the parts, where scales
    /// and zero points are `affine` themselves.
    pub(super) fn encoding(&self) -> Encoding {
        let (rows, columns, s) = (self.rows(), self.groups.columns, &self.settings);
        let nested = |codes: &[u8], grids: &[[f64; 2]]| {
            let part = |k: usize| {
                let at = |b: usize, g: usize| grids[b * self.groups.count + g][k];
                let part = Matrix::from_fn(self.bands.count, self.groups.count, at);
                dense(ElemType::F16, &part)
            };
            let codes = packed_codes(s.scale_bits, &[rows, self.groups.count], codes);
            affine(ElemType::F32, part(0), codes, Some(part(1)))
        };
        let base = affine(
            ElemType::F32,
            nested(&self.scale_codes, &self.scale_grids),
            packed_codes(s.bits, &[rows, columns], &self.codes),
            Some(nested(&self.zero_codes, &self.zero_grids)),
        );
        let all = || self.outliers.iter().flatten();
        let floats =
            |v: Vec<f64>| plain::from_tensor(&Tensor::from_f64(ElemType::F16, [v.len()], v));
        // A product with 1 makes them `f32`, as the base is.
        let values = floats(all().map(|o| o.value).collect());
        let values = scale::scale(ElemType::F32, floats(vec![1.0]), values);
        let integers =
            |elem, v: Vec<i128>| plain::from_tensor(&Tensor::from_int(elem, [v.len()], v));
        let mut starts = vec![0i128];
        for row in &self.outliers {
            starts.push(starts[starts.len() - 1] + row.len() as i128);
        }
        let places = all().map(|o| o.column as i128).collect();
        patch::rows(
            base,
            values,
            integers(ElemType::U32, starts),
            integers(index_type(columns), places),
        )
    }
}
