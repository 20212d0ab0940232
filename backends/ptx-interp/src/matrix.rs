//! Matrix products of a warp: which thread holds which element of a fragment.
//!
//! Lane `l` is in group `l / 4`, at position `l % 4` in it. With `w` elements in 32 bits (2 of `f16`, 4 of bytes):
//!
//! ```text
//! a (16 x 8w, row-major): register r has row group + 8 * (r % 2), columns position * w + 4w * (r / 2) + 0..w
//! b (8w x 8):             register r has column group, rows position * w + 4w * r + 0..w
//! c, d (16 x 8):          register r has row group + 8 * (r / 2), column position * 2 + r % 2
//! ```
//!
//! A sparse `a` (16 x 32, of `f16`) is held as the 16 x 16 that are kept, two of each four columns; `b` has four registers. The
//! lanes at positions `2 s` and `2 s + 1`, where `s` is the selector, have the places of columns 0 to 15 and 16 to 31: of row
//! `group` in the lower half of their 32 bits, of row `group + 8` in the upper one; of each four columns two bits for the first
//! and two for the second, which is further to the right.
//! Source: PTX ISA 8.5, "Warp-level matrix multiply-accumulate operation using mma.sp instruction with sparse matrix A".

use crate::instruction::Mma;
use half::{bf16, f16};

/// `d = a * b + c` of a warp; by lane.
pub(crate) fn multiply(
    kind: Mma,
    a: &[[u32; 4]; 32],
    b: &[[u32; 2]; 32],
    c: &[[u32; 4]; 32],
) -> [[u32; 4]; 32] {
    let depth = 8 * width(kind);
    let (left, right) = (left(kind, a), right(kind, b));
    products(&left, &right, depth, |lane, r, sum| match kind {
        Mma::Bytes(_) => (c[lane][r] as i32).wrapping_add(sum as i32) as u32,
        _ => plus(c[lane][r], sum),
    })
}

/// The same of a sparse `a` of `f16`; or else the lane whose places do not grow.
pub(crate) fn multiply_sparse(
    a: &[[u32; 4]; 32],
    b: &[[u32; 4]; 32],
    c: &[[u32; 4]; 32],
    places: &[u32; 32],
    selector: usize,
) -> Result<[[u32; 4]; 32], usize> {
    const DEPTH: usize = 32;
    let (kept, right) = (left(Mma::F16, a), right(Mma::F16, b));
    let mut left = vec![0.0; 16 * DEPTH];
    for row in 0..16 {
        for four in 0..DEPTH / 4 {
            let lane = 4 * (row % 8) + 2 * selector + four / 4;
            let bits = places[lane] >> (16 * (row / 8) + 4 * (four % 4));
            let two = [bits & 3, bits >> 2 & 3];
            if two[0] >= two[1] {
                return Err(lane);
            }
            for (i, place) in two.into_iter().enumerate() {
                left[row * DEPTH + 4 * four + place as usize] =
                    kept[row * DEPTH / 2 + 2 * four + i];
            }
        }
    }
    Ok(products(&left, &right, DEPTH, |lane, r, sum| {
        plus(c[lane][r], sum)
    }))
}

/// A number of `f32` and a sum.
fn plus(c: u32, sum: f64) -> u32 {
    ((f64::from(f32::from_bits(c)) + sum) as f32).to_bits()
}

/// Elements in 32 bits.
fn width(kind: Mma) -> usize {
    match kind {
        Mma::F16 | Mma::Bf16 => 2,
        Mma::Bytes(_) => 4,
    }
}

/// The `i`-th element in a register; `side` is 0 for the left matrix.
fn element(kind: Mma, register: u32, i: usize, side: usize) -> f64 {
    match kind {
        Mma::F16 => f16::from_bits((register >> (16 * i)) as u16).to_f64(),
        Mma::Bf16 => bf16::from_bits((register >> (16 * i)) as u16).to_f64(),
        Mma::Bytes(signed) => {
            let byte = (register >> (8 * i)) as u8;
            match signed[side] {
                true => f64::from(byte as i8),
                false => f64::from(byte),
            }
        }
    }
}

/// The left matrix that lanes hold, `[16][8w]`.
fn left(kind: Mma, a: &[[u32; 4]; 32]) -> Vec<f64> {
    let width = width(kind);
    let mut matrix = vec![0.0; 16 * 8 * width];
    for (lane, registers) in a.iter().enumerate() {
        for (r, &register) in registers.iter().enumerate() {
            for i in 0..width {
                let row = lane / 4 + 8 * (r % 2);
                let column = lane % 4 * width + 4 * width * (r / 2) + i;
                matrix[row * 8 * width + column] = element(kind, register, i, 0);
            }
        }
    }
    matrix
}

/// The right one, `[4wN][8]`.
fn right<const N: usize>(kind: Mma, b: &[[u32; N]; 32]) -> Vec<f64> {
    let width = width(kind);
    let mut matrix = vec![0.0; 4 * width * N * 8];
    for (lane, registers) in b.iter().enumerate() {
        for (r, &register) in registers.iter().enumerate() {
            for i in 0..width {
                let row = lane % 4 * width + 4 * width * r + i;
                matrix[row * 8 + lane / 4] = element(kind, register, i, 1);
            }
        }
    }
    matrix
}

/// What each register of each lane gets of the product of `[16][depth]` and `[depth][8]`.
fn products(
    left: &[f64],
    right: &[f64],
    depth: usize,
    result: impl Fn(usize, usize, f64) -> u32,
) -> [[u32; 4]; 32] {
    std::array::from_fn(|lane| {
        std::array::from_fn(|r| {
            let row = lane / 4 + 8 * (r / 2);
            let column = lane % 4 * 2 + r % 2;
            let terms = (0..depth).map(|k| left[row * depth + k] * right[k * 8 + column]);
            result(lane, r, terms.sum())
        })
    })
}
