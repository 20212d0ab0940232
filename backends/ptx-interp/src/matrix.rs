//! Matrix products of a warp: which thread holds which element of a fragment.
//!
//! Lane `l` is in group `l / 4`, at position `l % 4` in it. With `w` elements in 32 bits (2 of `f16`, 4 of bytes):
//!
//! ```text
//! a (16 x 8w, row-major): register r has row group + 8 * (r % 2), columns position * w + 4w * (r / 2) + 0..w
//! b (8w x 8):             register r has column group, rows position * w + 4w * r + 0..w
//! c, d (16 x 8):          register r has row group + 8 * (r / 2), column position * 2 + r % 2
//! ```

use crate::instruction::Mma;
use half::{bf16, f16};

/// `d = a * b + c` of a warp; by lane.
pub(crate) fn multiply(
    kind: Mma,
    a: &[[u32; 4]; 32],
    b: &[[u32; 2]; 32],
    c: &[[u32; 4]; 32],
) -> [[u32; 4]; 32] {
    let width = match kind {
        Mma::F16 | Mma::Bf16 => 2,
        Mma::Bytes(_) => 4,
    };
    let element = |register: u32, i: usize, left: bool| -> f64 {
        match kind {
            Mma::F16 => f16::from_bits((register >> (16 * i)) as u16).to_f64(),
            Mma::Bf16 => bf16::from_bits((register >> (16 * i)) as u16).to_f64(),
            Mma::Bytes(signed) => {
                let byte = (register >> (8 * i)) as u8;
                match signed[usize::from(!left)] {
                    true => f64::from(byte as i8),
                    false => f64::from(byte),
                }
            }
        }
    };
    let depth = 8 * width;
    let mut left = vec![0.0; 16 * depth];
    let mut right = vec![0.0; depth * 8];
    for lane in 0..32 {
        let (group, position) = (lane / 4, lane % 4);
        for i in 0..width {
            for r in 0..4 {
                let row = group + 8 * (r % 2);
                let col = position * width + 4 * width * (r / 2) + i;
                left[row * depth + col] = element(a[lane][r], i, true);
            }
            for r in 0..2 {
                let row = position * width + 4 * width * r + i;
                right[row * 8 + group] = element(b[lane][r], i, false);
            }
        }
    }
    let mut d = [[0; 4]; 32];
    for lane in 0..32 {
        for r in 0..4 {
            let row = lane / 4 + 8 * (r / 2);
            let col = lane % 4 * 2 + r % 2;
            let sum: f64 = (0..depth)
                .map(|k| left[row * depth + k] * right[k * 8 + col])
                .sum();
            d[lane][r] = match kind {
                Mma::Bytes(_) => (c[lane][r] as i32).wrapping_add(sum as i32) as u32,
                _ => ((f64::from(f32::from_bits(c[lane][r])) + sum) as f32).to_bits(),
            };
        }
    }
    d
}
