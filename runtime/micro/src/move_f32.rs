//! Gathers columns of an f32 matrix: the panels of sparse products, whose lanes are pixels or tokens.
//!
//! Two layouts matter: columns that are runs of the source's (pixels of an image's rows), which are copied with masks, and
//! columns that are the source's rows (tokens), which are transposed in blocks of 8 by 8.

use lapidary_abi::kernel::{MOVE_COLS, MoveF32};

/// Plain Rust.
///
/// # Safety
/// `args` must satisfy the contract of [`MoveF32`].
pub unsafe extern "C" fn portable(args: *const MoveF32) {
    // SAFETY: the caller passes a valid block.
    unsafe { one_by_one(&*args, 0, 0) }
}

/// The rows from `row` on of the columns from `col` on, one element at a time.
///
/// # Safety
/// The block is valid.
#[inline(never)]
unsafe fn one_by_one(m: &MoveF32, row: usize, col: usize) {
    assert!(m.cols <= MOVE_COLS, "{} columns at once", m.cols);
    for i in row..m.rows {
        for j in col..m.cols {
            // SAFETY: offsets that are not negative are readable in each row, and the result has `cols` columns.
            unsafe {
                let at = *m.at.add(j);
                let x = match at {
                    0.. => *m.src.add(i * m.src_stride + at as usize),
                    _ => 0.0,
                };
                *m.dst.add(i * m.dst_stride + j) = x;
            }
        }
    }
}

/// Columns of a vector as at most two runs of the source's: where lane 0 of a run would be, and its lanes as bits. `None` if
/// they are more.
#[cfg(target_arch = "x86_64")]
fn runs(at: &[i64]) -> Option<[(isize, u32); 2]> {
    let mut found = [(0isize, 0u32); 2];
    let mut n = 0;
    for (j, &at) in at.iter().enumerate().filter(|(_, at)| **at >= 0) {
        let origin = at as isize - j as isize;
        if n == 0 || found[n - 1].0 != origin {
            found.get_mut(n)?.0 = origin;
            n += 1;
        }
        found[n - 1].1 |= 1 << j;
    }
    Some(found)
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Eight columns at a time: one or two masked loads where they are one or two runs, else one by one.

    use core::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// `args` must satisfy the contract of [`MoveF32`]; the CPU must have AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe extern "C" fn entry(args: *const MoveF32) {
        // SAFETY: the caller passes a valid block.
        unsafe {
            let m = &*args;
            assert!(m.cols <= MOVE_COLS, "{} columns at once", m.cols);
            if m.src_stride == 1 && m.rows >= 8 {
                transposed(m);
            } else {
                copied(m);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn mask(lane: impl Fn(usize) -> bool) -> __m256i {
        let l = |j| -i32::from(lane(j));
        _mm256_setr_epi32(l(0), l(1), l(2), l(3), l(4), l(5), l(6), l(7))
    }

    /// # Safety
    /// The block is valid.
    #[target_feature(enable = "avx2")]
    unsafe fn copied(m: &MoveF32) {
        // SAFETY: as many offsets as columns.
        let at = unsafe { core::slice::from_raw_parts(m.at, m.cols) };
        for j0 in (0..m.cols).step_by(8) {
            let n = (m.cols - j0).min(8);
            let Some([(first, a), (second, b)]) = runs(&at[j0..j0 + n]) else {
                // SAFETY: the block is valid.
                unsafe { one_by_one(&MoveF32 { cols: j0 + n, ..*m }, 0, j0) };
                continue;
            };
            let lanes = [a, b].map(|bits| mask(|j| bits >> j & 1 == 1));
            let stored = mask(|j| j < n);
            for i in 0..m.rows {
                // SAFETY: masked lanes are not touched; the others are elements of the row and of the result.
                unsafe {
                    let src = m.src.add(i * m.src_stride);
                    let mut x = _mm256_maskload_ps(src.wrapping_offset(first), lanes[0]);
                    if b != 0 {
                        let y = _mm256_maskload_ps(src.wrapping_offset(second), lanes[1]);
                        x = _mm256_or_ps(x, y);
                    }
                    let dst = m.dst.add(i * m.dst_stride + j0);
                    if n == 8 {
                        _mm256_storeu_ps(dst, x);
                    } else {
                        _mm256_maskstore_ps(dst, stored, x);
                    }
                }
            }
        }
    }

    /// Rows of the result are consecutive in the source.
    ///
    /// # Safety
    /// The block is valid, and `src_stride` is 1.
    #[target_feature(enable = "avx2")]
    unsafe fn transposed(m: &MoveF32) {
        let whole = m.rows / 8 * 8;
        for j0 in (0..m.cols).step_by(8) {
            let n = (m.cols - j0).min(8);
            let stored = mask(|j| j < n);
            let (mut at, mut there) = ([0usize; 8], 0u32);
            for j in 0..n {
                // SAFETY: as many offsets as columns.
                if let from @ 0.. = unsafe { *m.at.add(j0 + j) } {
                    (at[j], there) = (from as usize, there | 1 << j);
                }
            }
            let all = there == 0xFF;
            for i0 in (0..whole).step_by(8) {
                // SAFETY: eight rows from `i0` on are elements of each column that is there.
                unsafe {
                    let mut x = [_mm256_setzero_ps(); 8];
                    for j in 0..8 {
                        if all || there >> j & 1 == 1 {
                            x[j] = _mm256_loadu_ps(m.src.add(at[j] + i0));
                        }
                    }
                    for (i, x) in transpose(x).into_iter().enumerate() {
                        let dst = m.dst.add((i0 + i) * m.dst_stride + j0);
                        if n == 8 {
                            _mm256_storeu_ps(dst, x);
                        } else {
                            _mm256_maskstore_ps(dst, stored, x);
                        }
                    }
                }
            }
        }
        // SAFETY: the block is valid.
        unsafe { one_by_one(m, whole, 0) };
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

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! Sixteen columns at a time, all columns of a row together; transposed in blocks of 16 by 16, whole cache lines.

    use core::arch::x86_64::*;

    use super::*;

    /// Vectors of a row.
    const MOST: usize = MOVE_COLS / 16;

    /// [`runs`] of up to sixteen columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn runs_of_16(at: &[i64]) -> Option<[(isize, u32); 2]> {
        let mut offsets = [-1i64; 16];
        offsets[..at.len()].copy_from_slice(at);
        // SAFETY: sixteen numbers.
        let halves = unsafe {
            [0, 8].map(|h| _mm512_loadu_si512(offsets.as_ptr().add(h).cast::<__m512i>()))
        };
        let iota = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
        let later = _mm512_add_epi64(iota, _mm512_set1_epi64(8));
        let origins = [
            _mm512_sub_epi64(halves[0], iota),
            _mm512_sub_epi64(halves[1], later),
        ];
        let both = |m: [__mmask8; 2]| u32::from(m[0]) | u32::from(m[1]) << 8;
        let zero = _mm512_setzero_si512();
        let mut left = both(halves.map(|h| _mm512_cmpge_epi64_mask(h, zero)));
        let mut found = [(0isize, 0u32); 2];
        for run in &mut found {
            if left == 0 {
                break;
            }
            let first = left.trailing_zeros() as usize;
            let origin = offsets[first] - first as i64;
            let wanted = _mm512_set1_epi64(origin);
            let here = both(origins.map(|o| _mm512_cmpeq_epi64_mask(o, wanted))) & left;
            *run = (origin as isize, here);
            left &= !here;
        }
        (left == 0).then_some(found)
    }

    /// # Safety
    /// `args` must satisfy the contract of [`MoveF32`]; the CPU must have AVX-512 F and AVX2.
    #[target_feature(enable = "avx512f,avx2")]
    pub unsafe extern "C" fn entry(args: *const MoveF32) {
        // SAFETY: the caller passes a valid block, of as many offsets as columns.
        unsafe {
            let m = &*args;
            assert!(m.cols <= MOVE_COLS, "{} columns at once", m.cols);
            if m.src_stride == 1 && m.rows >= 8 {
                return transposed(m);
            }
            let at = core::slice::from_raw_parts(m.at, m.cols);
            let vectors = m.cols.div_ceil(16);
            let mut groups = [([(0isize, 0u32); 2], 0 as __mmask16); MOST];
            for (v, (found, stored)) in groups[..vectors].iter_mut().enumerate() {
                let part = &at[16 * v..m.cols.min(16 * v + 16)];
                let Some(two) = runs_of_16(part) else {
                    return one_by_one(m, 0, 0);
                };
                *found = two;
                *stored = ((1u32 << part.len()) - 1) as __mmask16;
            }
            for i in 0..m.rows {
                let (src, dst) = (m.src.add(i * m.src_stride), m.dst.add(i * m.dst_stride));
                for (v, &([(first, a), (second, b)], stored)) in
                    groups[..vectors].iter().enumerate()
                {
                    let mut x = _mm512_maskz_loadu_ps(a as __mmask16, src.wrapping_offset(first));
                    if b != 0 {
                        x = _mm512_mask_loadu_ps(x, b as __mmask16, src.wrapping_offset(second));
                    }
                    _mm512_mask_storeu_ps(dst.wrapping_add(16 * v), stored, x);
                }
            }
        }
    }

    /// Rows of the result are consecutive in the source.
    ///
    /// # Safety
    /// The block is valid, and `src_stride` is 1.
    #[target_feature(enable = "avx512f,avx2")]
    pub unsafe fn transposed(m: &MoveF32) {
        for j0 in (0..m.cols).step_by(16) {
            let n = (m.cols - j0).min(16);
            let stored = ((1u32 << n) - 1) as __mmask16;
            let (mut at, mut there) = ([0usize; 16], 0u32);
            for j in 0..n {
                // SAFETY: as many offsets as columns.
                if let from @ 0.. = unsafe { *m.at.add(j0 + j) } {
                    (at[j], there) = (from as usize, there | 1 << j);
                }
            }
            let whole = if there == 0xFFFF { m.rows / 16 * 16 } else { 0 };
            for i0 in (0..whole).step_by(16) {
                // SAFETY: sixteen rows of sixteen columns are there, in the source and in the result.
                unsafe {
                    let dst = m.dst.add(i0 * m.dst_stride + j0);
                    square(m.src.add(i0), &at, dst, m.dst_stride);
                }
            }
            for i0 in (whole..m.rows).step_by(16) {
                let rows = (m.rows - i0).min(16);
                let present = ((1u32 << rows) - 1) as __mmask16;
                let mut x = [_mm512_setzero_ps(); 16];
                for j in 0..16 {
                    if there >> j & 1 == 1 {
                        // SAFETY: the rows that are there are elements of each column that is.
                        x[j] = unsafe { _mm512_maskz_loadu_ps(present, m.src.add(at[j] + i0)) };
                    }
                }
                let x = transpose(x);
                for i in 0..16 {
                    if i < rows {
                        // SAFETY: the result has these rows, and columns that are stored.
                        unsafe {
                            let dst = m.dst.add((i0 + i) * m.dst_stride + j0);
                            _mm512_mask_storeu_ps(dst, stored, x[i]);
                        }
                    }
                }
            }
        }
    }

    /// Sixteen rows and columns that are all there. Lanes of 128 bits are put together as they are loaded, which leaves half
    /// of the shuffles, of which there is one in a cycle.
    ///
    /// # Safety
    /// Sixteen elements are readable at each of the offsets, and sixteen rows of the result are writable.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn square(src: *const f32, at: &[usize; 16], dst: *mut f32, dst_stride: usize) {
        for q in 0..4 {
            // SAFETY: as promised to this function.
            unsafe {
                let mut x = [_mm512_setzero_ps(); 4];
                for r in 0..4 {
                    let part = |a: usize| _mm_loadu_ps(src.add(at[4 * a + r] + 4 * q));
                    let mut all = _mm512_castps128_ps512(part(0));
                    all = _mm512_insertf32x4::<1>(all, part(1));
                    all = _mm512_insertf32x4::<2>(all, part(2));
                    x[r] = _mm512_insertf32x4::<3>(all, part(3));
                }
                let (a, b) = (
                    _mm512_unpacklo_ps(x[0], x[1]),
                    _mm512_unpacklo_ps(x[2], x[3]),
                );
                let (c, d) = (
                    _mm512_unpackhi_ps(x[0], x[1]),
                    _mm512_unpackhi_ps(x[2], x[3]),
                );
                let rows = [
                    _mm512_shuffle_ps::<0x44>(a, b),
                    _mm512_shuffle_ps::<0xEE>(a, b),
                    _mm512_shuffle_ps::<0x44>(c, d),
                    _mm512_shuffle_ps::<0xEE>(c, d),
                ];
                for (s, row) in rows.into_iter().enumerate() {
                    _mm512_storeu_ps(dst.add((4 * q + s) * dst_stride), row);
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(m: [__m512; 16]) -> [__m512; 16] {
        let mut pairs = m;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(m[2 * i], m[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(m[2 * i], m[2 * i + 1]);
        }
        // Lane q of fours[4 i + r] is column 4 q + r of the rows 4 i..4 i + 4.
        let mut fours = m;
        for i in 0..4 {
            for h in 0..2 {
                let (x, y) = (pairs[4 * i + h], pairs[4 * i + 2 + h]);
                fours[4 * i + 2 * h] = _mm512_shuffle_ps::<0x44>(x, y);
                fours[4 * i + 2 * h + 1] = _mm512_shuffle_ps::<0xEE>(x, y);
            }
        }
        let mut out = m;
        for r in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x88>(fours[r], fours[4 + r]);
            let high = _mm512_shuffle_f32x4::<0xDD>(fours[r], fours[4 + r]);
            let low2 = _mm512_shuffle_f32x4::<0x88>(fours[8 + r], fours[12 + r]);
            let high2 = _mm512_shuffle_f32x4::<0xDD>(fours[8 + r], fours[12 + r]);
            out[r] = _mm512_shuffle_f32x4::<0x88>(low, low2);
            out[8 + r] = _mm512_shuffle_f32x4::<0xDD>(low, low2);
            out[4 + r] = _mm512_shuffle_f32x4::<0x88>(high, high2);
            out[12 + r] = _mm512_shuffle_f32x4::<0xDD>(high, high2);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::Import;

    /// Offsets of `cols` columns that are so many runs, with some that are not there.
    fn offsets(random: &mut Random, cols: usize, kind: usize, pitch: usize) -> Vec<i64> {
        let mut next = 0;
        (0..cols)
            .map(|j| {
                let missing = kind > 0 && random.int(0, 9) == 0;
                next = match kind {
                    0 => j as i64 + 3,
                    1 => next + if random.int(0, 9) == 0 { 7 } else { 1 },
                    2 => random.int(0, 200),
                    _ => (j * pitch) as i64,
                };
                if missing { -1 } else { next }
            })
            .collect()
    }

    #[test]
    fn every_layout_equals_the_reference() {
        for_each_level(Import::MoveF32 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::MoveF32`.
            let kernel: unsafe extern "C" fn(*const MoveF32) =
                unsafe { core::mem::transmute(address) };
            let mut random = Random(11);
            for cols in [1, 2, 7, 8, 9, 15, 16, 31, 49, 64] {
                for rows in [0, 1, 7, 8, 9, 24, 33] {
                    for kind in 0..4 {
                        for src_stride in [1, 37] {
                            let at = offsets(&mut random, cols, kind, rows + 5);
                            let most = at.iter().max().copied().unwrap_or(0).max(0) as usize;
                            let n = most + rows.max(1) * src_stride + 1;
                            let src: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
                            let pitch = cols + 3;
                            let mut dst = vec![-1f32; rows * pitch + 1];
                            let block = MoveF32 {
                                src: src.as_ptr(),
                                dst: dst.as_mut_ptr(),
                                at: at.as_ptr(),
                                src_stride,
                                dst_stride: pitch,
                                rows,
                                cols,
                            };
                            // SAFETY: the block describes the buffers above.
                            unsafe { kernel(&block) };
                            for (k, &found) in dst.iter().enumerate() {
                                let (i, j) = (k / pitch, k % pitch);
                                let want = match () {
                                    _ if i >= rows || j >= cols => -1.0,
                                    _ if at[j] < 0 => 0.0,
                                    _ => src[i * src_stride + at[j] as usize],
                                };
                                assert_eq!(
                                    found, want,
                                    "{level:?} {rows} x {cols} kind {kind} stride {src_stride} at {i},{j}"
                                );
                            }
                        }
                    }
                }
            }
        });
    }
}
