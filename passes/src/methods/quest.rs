//! QuEST: rows are rotated by blocks of a Hadamard matrix, and rounded on the grid that is best for normal values.
//!
//! The rotation spreads outliers over their block, so that values look normal; then the clipping that loses least is
//! known in advance as a multiple of the root mean square. The input is rotated the same way when the layer runs.
//! Source: Panferov et al., "QuEST: Stable Training of LLMs with 1-Bit Weights and Activations", section 3. The
//! multiples of the published code are kept for checkpoints that were trained with them; [`best_clip`] computes ours.

use super::grid::{packed_codes, scale_type, wide_enough};
use super::matrix::Matrix;
use super::sweep::{self, Prepared, prepare};
use super::{Method, MethodError, dense, measured, threads};
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::rotate;
use lapidary_ir::{ElemType, minifloat};

/// The method.
pub static QUEST: Method = Method {
    name: "quest",
    summary: "rotated by blocks of a Hadamard matrix, on the grid that is best for normal values, with error feedback where there is a Hessian",
    source: "QuEST, section 3",
    needs_statistics: false,
    bits: 1..=8,
    propose: |layer, settings| {
        let (elem, mut assumptions) = wide_enough(scale_type(settings.scale_elem)?, layer.weight());
        let mut parts = quest(layer.weight(), settings.bits, elem)?;
        if let Some(statistics) = layer.statistics() {
            // What the layer reads is turned as well.
            let turned = turn(&turn(&statistics.hessian).transpose());
            let prepared = prepare(&turned, 0.01, true);
            parts = with_feedback(&parts, &turn(layer.weight()), &prepared);
            assumptions.extend(prepared.assumptions);
        }
        let (rows, columns) = (parts.steps.len(), parts.columns);
        let by_row = |values: Vec<f64>| Matrix::new(values.len(), 1, values);
        let steps = by_row(parts.steps).ok_or_else(|| MethodError::Shape("no rows".into()))?;
        // Half-integers are exact in 16 bits.
        let middle = Matrix::from_fn(1, 1, |_, _| f64::from(parts.levels - 1) / 2.0);
        let codes = packed_codes(settings.bits, &[rows, columns], &parts.codes);
        let turned = affine(
            ElemType::F32,
            dense(elem, &steps),
            codes,
            Some(dense(ElemType::F16, &middle)),
        );
        measured(
            layer,
            rotate::hadamard(ElemType::F32, 1, block_of(columns), turned),
            assumptions,
        )
    },
};

/// Most columns of a block; the published length.
pub const BLOCK: usize = 128;

/// The longest block, up to [`BLOCK`], that divides so many columns.
pub fn block_of(columns: usize) -> usize {
    rotate::longest_block(columns, BLOCK)
}

/// Clipping, in root mean squares, of the published code for 1 to 8 bits.
pub const PUBLISHED_CLIP: [f64; 8] = [
    0.797_884_56,
    1.493_534_62,
    2.051_068_35,
    2.513_930_58,
    2.916_093_88,
    3.276_597_28,
    3.601_049_72,
    3.884_938_68,
];

/// The published clipping of the three levels -s, 0, s.
pub const PUBLISHED_TERNARY_CLIP: f64 = 1.224_008_95;

/// `m` with each row's blocks ([`block_of`] its columns) times the orthonormal Hadamard matrix; its own inverse.
pub fn turn(m: &Matrix) -> Matrix {
    turn_blocks(m, block_of(m.cols()))
}

/// [`turn`] with blocks of this length, a power of two that divides the columns.
pub fn turn_blocks(m: &Matrix, block: usize) -> Matrix {
    Matrix::from_rows(m.rows(), m.cols(), |r, out| {
        out.copy_from_slice(m.row(r));
        out.chunks_mut(block).for_each(rotate::transform);
    })
}

/// Codes of rotated rows: `value = step * (code - (levels - 1) / 2)`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuestParts {
    /// Columns, `I`.
    pub columns: usize,
    /// Number of levels of the grid.
    pub levels: u32,
    /// Codes, `[O, I]`.
    pub codes: Vec<u8>,
    /// Distance of two levels in each row.
    pub steps: Vec<f64>,
}

impl QuestParts {
    /// The decoded rotated weight.
    pub fn decode_rotated(&self) -> Matrix {
        let middle = f64::from(self.levels - 1) / 2.0;
        Matrix::from_rows(self.steps.len(), self.columns, |r, out| {
            let codes = &self.codes[r * self.columns..];
            out.iter_mut()
                .zip(codes)
                .for_each(|(o, &c)| *o = self.steps[r] * (f64::from(c) - middle));
        })
    }

    /// The decoded weight, rotated back.
    pub fn decode(&self) -> Matrix {
        turn(&self.decode_rotated())
    }
}

/// Rows of `rotated` on a grid of `levels` (2 to 256) levels, clipped at `clip` root mean squares of the row.
pub fn gaussian_grid(rotated: &Matrix, levels: u32, clip: f64, elem: ElemType) -> QuestParts {
    let rows = threads::map(rotated.rows(), |r| {
        let row = rotated.row(r);
        let square_sum: f64 = row.iter().map(|v| v * v).sum();
        let reach = clip * (square_sum / row.len().max(1) as f64).sqrt() + 1e-8;
        let step = minifloat::round_to(elem, 2.0 * reach / f64::from(levels - 1));
        let step = if step > 0.0 {
            step
        } else {
            f64::from(f32::MIN_POSITIVE)
        };
        let code = |v: &f64| {
            let place = v / step + f64::from(levels - 1) / 2.0;
            place.round_ties_even().clamp(0.0, f64::from(levels - 1)) as u8
        };
        (step, row.iter().map(code).collect::<Vec<u8>>())
    });
    QuestParts {
        columns: rotated.cols(),
        levels,
        steps: rows.iter().map(|r| r.0).collect(),
        codes: rows.into_iter().flat_map(|r| r.1).collect(),
    }
}

/// Rotates and rounds `weight` `[O, I]` to codes of `bits` bits with our own clipping.
pub fn quest(weight: &Matrix, bits: u32, elem: ElemType) -> Result<QuestParts, MethodError> {
    if !(1..=8).contains(&bits) {
        return Err(MethodError::Settings(format!(
            "codes of 1 to 8 bits, not of {bits}"
        )));
    }
    let levels = 1 << bits;
    Ok(gaussian_grid(
        &turn(weight),
        levels,
        best_clip(levels),
        elem,
    ))
}

/// Chooses the codes anew, by the column sweep of the rotated weight and Hessian with error feedback; steps stay.
pub fn with_feedback(parts: &QuestParts, rotated: &Matrix, prepared: &Prepared) -> QuestParts {
    let most = f64::from(parts.levels - 1);
    let codes = sweep::sweep_codes(rotated, prepared, |row, weight| {
        let step = parts.steps[row];
        let code = (weight / step + most / 2.0)
            .round_ties_even()
            .clamp(0.0, most);
        (step * (code - most / 2.0), code as u8)
    });
    QuestParts {
        codes,
        ..parts.clone()
    }
}

/// Mean squared error of a standard normal value on `levels` levels from `-clip` to `clip`.
pub fn normal_error(levels: u32, clip: f64) -> f64 {
    let step = 2.0 * clip / f64::from(levels - 1);
    let density = |v: f64| (-v * v / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let below = |v: f64| 0.5 * libm::erfc(-v / std::f64::consts::SQRT_2);
    // The integral of (v - q)^2 density from a to b, with v density falling to 0 at infinity.
    let times = |v: f64| if v.is_finite() { v * density(v) } else { 0.0 };
    let cell = |a: f64, b: f64, q: f64| {
        let mass = below(b) - below(a);
        (1.0 + q * q) * mass + times(a) - times(b) + 2.0 * q * (density(b) - density(a))
    };
    let cells = (0..levels).map(|k| {
        let q = -clip + f64::from(k) * step;
        let a = if k == 0 {
            f64::NEG_INFINITY
        } else {
            q - step / 2.0
        };
        let b = if k + 1 == levels {
            f64::INFINITY
        } else {
            q + step / 2.0
        };
        cell(a, b, q)
    });
    cells.sum()
}

/// The clipping with the least [`normal_error`].
pub fn best_clip(levels: u32) -> f64 {
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (0.3, 8.0);
    while high - low > 1e-9 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if normal_error(levels, a) < normal_error(levels, b) {
            high = b;
        } else {
            low = a;
        }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{mse, near, random, tl1};

    #[test]
    fn errors_of_normals_are_the_known_ones() {
        let golden = [0.363380, 0.118846, 0.037440, 0.011543, 0.003495, 0.001040];
        for (bits, golden) in (1..).zip(golden) {
            near(
                normal_error(1 << bits, PUBLISHED_CLIP[bits - 1]),
                golden,
                1e-4,
            );
        }
        near(normal_error(3, PUBLISHED_TERNARY_CLIP), 0.190174, 1e-4);
        let w = random(64, 4096, 3);
        for (bits, golden) in [(2, 0.118846), (4, 0.011543)] {
            let clip = PUBLISHED_CLIP[bits - 1];
            let found = gaussian_grid(&w, 1 << bits, clip, ElemType::F32).decode_rotated();
            near(mse(&w, &found), golden, 0.02);
        }
    }

    #[test]
    fn published_clipping_is_the_best_to_six_bits() {
        for bits in 1..=6 {
            near(best_clip(1 << bits), PUBLISHED_CLIP[bits - 1], 2e-3);
        }
        near(best_clip(3), PUBLISHED_TERNARY_CLIP, 1e-3);
        near(best_clip(128), 3.612, 1e-3);
        near(best_clip(256), 3.924, 1e-3);
    }

    #[test]
    fn rotating_twice_is_nothing_and_products_stay() {
        let (w, x) = (random(5, 256, 1), random(7, 256, 2));
        let (rw, rx) = (turn(&w), turn(&x));
        assert!(turn(&rw).sub(&w).square_sum() < 1e-24);
        let y = x.mul_transposed(&w);
        assert!(rx.mul_transposed(&rw).sub(&y).square_sum() / y.square_sum() < 1e-24);
        assert_eq!((block_of(100), block_of(384), block_of(1)), (4, 128, 1));
    }

    #[test]
    fn feedback_gains_and_needs_the_turned_hessian() {
        let t = tl1();
        let plain = quest(&t.w, 3, ElemType::F16).expect("whole");
        let turned = turn(&turn(&t.stats.hessian).transpose());
        let fed = |h: &Matrix| {
            let prepared = prepare(h, 0.01, true);
            t.rel(&with_feedback(&plain, &turn(&t.w), &prepared).decode())
        };
        assert!(fed(&turned) < 0.2 * t.rel(&plain.decode()));
        assert!(fed(&turned) < fed(&t.stats.hessian));
        let alone = prepare(&Matrix::identity(256), 0.0, false);
        assert_eq!(with_feedback(&plain, &turn(&t.w), &alone), plain);
    }

    #[test]
    fn rotation_tames_outliers() {
        let mut w = random(32, 256, 4);
        (0..32).for_each(|r| w[(r, 9)] *= 50.0);
        let clip = best_clip(16);
        let straight = gaussian_grid(&w, 16, clip, ElemType::F16).decode_rotated();
        let rotated = quest(&w, 4, ElemType::F16).expect("whole").decode();
        assert!(mse(&w, &rotated) < 0.5 * mse(&w, &straight));
        assert!(quest(&w, 9, ElemType::F16).is_err());
        let zeros = quest(&Matrix::zeros(1, 128), 2, ElemType::F16).expect("whole");
        assert!(zeros.decode().is_finite());
    }
}
