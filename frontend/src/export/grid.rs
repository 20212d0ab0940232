//! A weight on uniform grids, taken apart: `value = scale * (code - zero)`.

use lapidary_ir::encodings::Encoding;

/// Codes and grids of a weight, whatever its term's bytes look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Bits of a code.
    pub bits: u32,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Groups of a row, all of one length.
    pub groups: usize,
    /// Codes `[rows, columns]`.
    pub codes: Vec<u8>,
    /// Scales `[rows, groups]`.
    pub scales: Vec<f32>,
    /// Zero points `[rows, groups]`.
    pub zeros: Vec<u8>,
}

impl Grid {
    /// The grid of an `affine` term over unsigned codes, with zero points that are codes and groups of one length.
    pub fn of(term: &Encoding) -> Option<Grid> {
        let [scale, codes, zero] = &term.children[..] else {
            return None;
        };
        let &[rows, columns] = &term.shape[..] else {
            return None;
        };
        let unsigned = codes.elem.int_range().is_some_and(|(low, _)| low == 0);
        if term.ctor.name != "affine"
            || codes.ctor.name != "int"
            || !unsigned
            || term.check().is_err()
        {
            return None;
        }
        let bits = u32::try_from(codes.int_param("bits")?).ok()?;
        let groups = scale.shape[1].max(zero.shape[1]);
        if !columns.is_multiple_of(groups) {
            return None;
        }
        let spread = |e: &Encoding| -> Option<Vec<f64>> {
            let values = e.decode().ok()?.to_f64s()?;
            let [r, g] = e.shape[..] else { return None };
            if rows % r != 0 || groups % g != 0 {
                return None;
            }
            let at = |i: usize| values[i / groups / (rows / r) * g + i % groups / (groups / g)];
            Some((0..rows * groups).map(at).collect())
        };
        let whole = |v: f64| (v.fract() == 0.0 && (0.0..256.0).contains(&v)).then_some(v as u8);
        Some(Grid {
            bits,
            rows,
            columns,
            groups,
            codes: codes
                .integers()
                .ok()?
                .into_iter()
                .map(|c| c as u8)
                .collect(),
            scales: spread(scale)?.into_iter().map(|v| v as f32).collect(),
            zeros: spread(zero)?
                .into_iter()
                .map(whole)
                .collect::<Option<_>>()?,
        })
    }

    /// Inputs that share a scale.
    pub fn group(&self) -> usize {
        self.columns / self.groups
    }

    /// The zero point of all, if it is the same.
    pub fn shared_zero(&self) -> Option<u8> {
        let first = *self.zeros.first()?;
        self.zeros.iter().all(|&z| z == first).then_some(first)
    }

    /// True if every scale is a number of 16 bits.
    pub fn half_scales(&self) -> bool {
        let fits = |&s: &f32| half::f16::from_f32(s).to_f32() == s;
        self.scales.iter().all(fits)
    }

    /// Scales as bytes: of 16 bits if they are such numbers, else of 32; and whether they are.
    pub fn scale_bytes(&self) -> (Vec<u8>, bool) {
        let halves = self.half_scales();
        let bytes = match halves {
            true => self
                .scales
                .iter()
                .flat_map(|&s| half::f16::from_f32(s).to_le_bytes())
                .collect(),
            false => self.scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        };
        (bytes, halves)
    }
}

/// A matrix `[rows, columns]` with rows as columns.
pub fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns.max(1);
    (0..values.len())
        .map(|i| values[i % rows * columns + i / rows])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::encodings::{affine::affine, dense, int};
    use lapidary_ir::{ElemType, Tensor};

    #[test]
    fn parts_that_are_shared_are_spread() {
        let codes = int::int(ElemType::U4, 4, vec![2, 4], int::pack(0..8, 4).into());
        let floats = |shape: [usize; 2], v: &[f64]| {
            dense::from_tensor(&Tensor::from_f64(ElemType::F16, shape, v.to_vec()))
        };
        let zero = |v: f64| floats([1, 1], &[v]);
        let term = |z| {
            affine(
                ElemType::F32,
                floats([2, 2], &[1.0, 2.0, 3.0, 4.0]),
                codes.clone(),
                Some(z),
            )
        };
        let grid = Grid::of(&term(zero(8.0))).expect("a grid");
        assert_eq!(grid.codes, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(
            (grid.scales, grid.zeros),
            (vec![1.0, 2.0, 3.0, 4.0], vec![8; 4])
        );
        assert!(Grid::of(&term(zero(7.5))).is_none());
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 3), [1, 4, 2, 5, 3, 6]);
    }
}
