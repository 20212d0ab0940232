//! Packs part of a strided f32 matrix into one panel `[k][32]`, for products whose right side is only
//! known at run time (attention). Columns past `cols` become zero.
//!
//! Two layouts matter: rows of the matrix along the columns (copy) and along `k` (transpose).

use lapidary_abi::kernel::{PANEL_F32, PackF32};

/// Plain Rust.
///
/// # Safety
/// `args` must satisfy the contract of [`PackF32`].
pub unsafe extern "C" fn portable(args: *const PackF32) {
    // SAFETY: the caller passes a valid block.
    unsafe {
        let p = &*args;
        strided(p, 0, p.k);
    }
}

/// Packs `begin..end` of `k`, one element at a time where it must.
///
/// # Safety
/// The block is valid and `end <= k`.
#[inline]
unsafe fn strided(p: &PackF32, begin: usize, end: usize) {
    for k in begin..end {
        // SAFETY: the panel has `k` lines of 32; the source has `cols` elements at its stride for each.
        unsafe {
            let line = p.dst.add(k * PANEL_F32);
            let src = p.src.add(k * p.k_stride);
            if p.col_stride == 1 {
                core::ptr::copy_nonoverlapping(src, line, p.cols);
            } else {
                for j in 0..p.cols {
                    *line.add(j) = *src.add(j * p.col_stride);
                }
            }
            core::ptr::write_bytes(line.add(p.cols), 0, PANEL_F32 - p.cols);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Transposes in blocks of 8 by 8 registers.

    use core::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// `args` must satisfy the contract of [`PackF32`]; the CPU must have AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe extern "C" fn entry(args: *const PackF32) {
        // SAFETY: the caller passes a valid block; loads stay in the `cols` columns and in `k`.
        unsafe {
            let p = &*args;
            if p.k_stride != 1 || p.col_stride == 1 {
                return strided(p, 0, p.k);
            }
            let whole = p.k / 8 * 8;
            for j0 in (0..PANEL_F32).step_by(8) {
                for k0 in (0..whole).step_by(8) {
                    let mut m = [_mm256_setzero_ps(); 8];
                    for (j, m) in m.iter_mut().enumerate() {
                        if j0 + j < p.cols {
                            *m = _mm256_loadu_ps(p.src.add((j0 + j) * p.col_stride + k0));
                        }
                    }
                    let m = transpose(m);
                    for (k, m) in m.iter().enumerate() {
                        _mm256_storeu_ps(p.dst.add((k0 + k) * PANEL_F32 + j0), *m);
                    }
                }
            }
            strided(p, whole, p.k);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose(m: [__m256; 8]) -> [__m256; 8] {
        let mut pairs = m;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(m[2 * i], m[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(m[2 * i], m[2 * i + 1]);
        }
        let mut fours = m;
        for i in 0..2 {
            for h in 0..2 {
                let (x, y) = (pairs[4 * i + h], pairs[4 * i + 2 + h]);
                fours[4 * i + 2 * h] = _mm256_shuffle_ps::<0x44>(x, y);
                fours[4 * i + 2 * h + 1] = _mm256_shuffle_ps::<0xEE>(x, y);
            }
        }
        let mut out = m;
        for i in 0..4 {
            out[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
            out[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::Import;

    #[test]
    fn every_layout_equals_the_reference() {
        for_each_level(Import::PackF32 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::PackF32`.
            let kernel: unsafe extern "C" fn(*const PackF32) =
                unsafe { core::mem::transmute(address) };
            for cols in 1..=PANEL_F32 {
                for k in [0, 1, 7, 8, 9, 24, 33] {
                    for (k_stride, col_stride) in [
                        (cols, 1),
                        (cols + 5, 1),
                        (1, k.max(1)),
                        (1, k + 3),
                        (2, 2 * k + 1),
                        (1, 1),
                    ] {
                        let n = k.max(1) * k_stride + cols * col_stride;
                        let src: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
                        let mut dst = vec![-1f32; (k + 1) * PANEL_F32];
                        let block = PackF32 {
                            src: src.as_ptr(),
                            dst: dst.as_mut_ptr(),
                            k_stride,
                            col_stride,
                            k,
                            cols,
                        };
                        // SAFETY: the block describes the buffers above.
                        unsafe { kernel(&block) };
                        for (i, &found) in dst.iter().enumerate() {
                            let (q, j) = (i / PANEL_F32, i % PANEL_F32);
                            let want = match () {
                                _ if q == k => -1.0,
                                _ if j >= cols => 0.0,
                                _ => src[q * k_stride + j * col_stride],
                            };
                            assert_eq!(
                                found, want,
                                "{level:?} cols {cols} k {k} strides {k_stride} {col_stride} at {q},{j}"
                            );
                        }
                    }
                }
            }
        });
    }
}
