//! Widened to 16 bits: even and odd bytes of each lane, two `vpmaddwd` each; 4 rows by 16 columns.

use core::arch::x86_64::*;

use super::*;

const MAX_ROWS: usize = 4;

/// # Safety
/// `args` must satisfy the contract of [`GemmI8`]; the CPU must have AVX2.
#[target_feature(enable = "avx2")]
pub unsafe extern "C" fn entry(args: *const GemmI8) {
    // SAFETY: the caller passes a valid block; sub-tiles start inside the tile.
    unsafe {
        let g = &*args;
        let rows = g.rows as usize;
        if !g.init.is_null() {
            return given(g);
        }
        for c0 in (0..g.cols as usize).step_by(16) {
            let wide = g.cols as usize - c0 > 8;
            for r0 in (0..rows).step_by(MAX_ROWS) {
                match (wide, (rows - r0).min(MAX_ROWS)) {
                    (true, 1) => tile::<1, 2>(g, r0, c0),
                    (true, 2) => tile::<2, 2>(g, r0, c0),
                    (true, 3) => tile::<3, 2>(g, r0, c0),
                    (true, _) => tile::<4, 2>(g, r0, c0),
                    (false, 1) => tile::<1, 1>(g, r0, c0),
                    (false, 2) => tile::<2, 1>(g, r0, c0),
                    (false, 3) => tile::<3, 1>(g, r0, c0),
                    (false, _) => tile::<4, 1>(g, r0, c0),
                }
            }
        }
    }
}

/// Sums that are given, a row of 8 columns at a time.
///
/// # Safety
/// The block is valid, and `init` is not null.
#[target_feature(enable = "avx2")]
unsafe fn given(g: &GemmI8) {
    let columns = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let at = _mm256_mullo_epi32(columns, _mm256_set1_epi32(g.init_stride as i32));
    for c0 in (0..g.cols as usize).step_by(8) {
        for r in 0..g.rows as usize {
            // SAFETY: whole panels of columns are readable.
            unsafe {
                let from = g.init.add(c0 * g.init_stride + r);
                finish::<1>(g, r, c0, [_mm256_i32gather_epi32::<4>(from, at)]);
            }
        }
    }
}

/// `R` rows by `V` vectors of 8 columns.
///
/// # Safety
/// The block is valid; `r0 + R <= rows`; `c0 + 8 * V <= width`.
#[target_feature(enable = "avx2")]
unsafe fn tile<const R: usize, const V: usize>(g: &GemmI8, r0: usize, c0: usize) {
    let mut acc = [[_mm256_setzero_si256(); V]; R];
    let lines = g.k.div_ceil(4);
    let whole = g.k / 4;
    let pitch = line_bytes(g);
    // SAFETY: rows have `k` bytes, the panel whole lines; masks leave out what is past `cols`.
    unsafe {
        for t in 0..g.taps {
            let rows = &*g.a.add(t * g.rows as usize + r0).cast::<[*const u8; R]>();
            let b = g.b.add(t * lines * pitch + c0 * 4);
            for i in 0..whole {
                line(&mut acc, rows, b.add(i * pitch), i, 4);
            }
            if lines > whole {
                line(&mut acc, rows, b.add(whole * pitch), whole, g.k % 4);
            }
        }
        for v in 0..V {
            let column = std::array::from_fn(|r| acc[r][v]);
            finish::<R>(g, r0, c0 + 8 * v, column);
        }
    }
}

/// Writes 8 columns of some rows, as the plain [`finish`](super::finish) does.
///
/// # Safety
/// The block is valid; `r0 + R <= rows`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn finish<const R: usize>(g: &GemmI8, r0: usize, column: usize, sums: [__m256i; R]) {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(g.cols as i32 - column as i32), lanes);
    // SAFETY: the mask leaves out what is past `cols`, as do the copies.
    unsafe {
        let mut correction = _mm256_setzero_si256();
        if g.a_zero != 0 {
            let of = _mm256_maskload_epi32(g.sums.wrapping_add(column), mask);
            correction = _mm256_mullo_epi32(of, _mm256_set1_epi32(g.a_zero));
        }
        let (mut scale, mut bias) = (_mm256_setzero_ps(), _mm256_set1_ps(-0.0));
        if g.result != RESULT_I32 {
            scale = _mm256_maskload_ps(g.scale.wrapping_add(column), mask);
            if !g.bias.is_null() {
                bias = _mm256_maskload_ps(g.bias.wrapping_add(column), mask);
            }
        }
        let (lo, hi) = (_mm256_set1_ps(g.lo), _mm256_set1_ps(g.hi));
        for (r, sum) in sums.into_iter().enumerate() {
            let at = (r0 + r) * g.c_stride + column;
            let sum = _mm256_sub_epi32(sum, correction);
            if g.result == RESULT_I32 {
                _mm256_maskstore_epi32(g.c.cast::<i32>().wrapping_add(at), mask, sum);
                continue;
            }
            let mut x = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), bias);
            // The second operand is what stays where one is no number.
            x = _mm256_min_ps(hi, _mm256_max_ps(lo, x));
            if g.result == RESULT_CODE {
                let count = (g.cols as usize).saturating_sub(column).min(8);
                for stage in stages(g) {
                    x = staged(stage, r0 + r, column, (count, mask), x);
                }
                let code = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(g.zero));
                let mut codes = [0i32; 8];
                _mm256_storeu_si256(codes.as_mut_ptr().cast(), code);
                let out = g.c.cast::<u8>().wrapping_add(at);
                for (j, &code) in codes.iter().enumerate().take(count) {
                    let code = code as u8;
                    out.add(j).write(if g.table.is_null() {
                        code
                    } else {
                        *g.table.add(usize::from(code))
                    });
                }
            } else {
                _mm256_maskstore_ps(g.c.cast::<f32>().wrapping_add(at), mask, x);
            }
        }
    }
}

/// One stage of 8 columns of a row.
///
/// # Safety
/// The block is valid and has these columns.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn staged(
    stage: &StageI8,
    r: usize,
    column: usize,
    (count, mask): (usize, __m256i),
    x: __m256,
) -> __m256 {
    // SAFETY: the mask leaves out what is past `cols`, as does the copy.
    unsafe {
        let whole = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let mut y = _mm256_mul_ps(whole, _mm256_set1_ps(stage.factor));
        y = _mm256_add_ps(y, _mm256_maskload_ps(stage.row.wrapping_add(column), mask));
        if !stage.residual.is_null() {
            let from = stage
                .residual
                .wrapping_add(r * stage.residual_stride + column);
            let mut codes = [0u8; 8];
            core::ptr::copy_nonoverlapping(from, codes.as_mut_ptr(), count);
            let codes = _mm_cvtsi64_si128(i64::from_le_bytes(codes));
            let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
            let factor = _mm256_set1_ps(stage.residual_factor);
            y = _mm256_add_ps(y, _mm256_mul_ps(codes, factor));
        }
        let (lo, hi) = (_mm256_set1_ps(stage.lo), _mm256_set1_ps(stage.hi));
        // The second operand is what stays where one is no number.
        _mm256_min_ps(hi, _mm256_max_ps(lo, y))
    }
}

/// Adds the products of lane `i`, of which `n` bytes exist, with the line at `b`.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn line<const R: usize, const V: usize>(
    acc: &mut [[__m256i; V]; R],
    rows: &[*const u8; R],
    b: *const i8,
    i: usize,
    n: usize,
) {
    let zero = _mm256_setzero_si256();
    let (mut even, mut odd) = ([zero; V], [zero; V]);
    for v in 0..V {
        // SAFETY: the line has these columns.
        let w = unsafe { _mm256_loadu_si256(b.add(v * 32).cast()) };
        even[v] = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
        odd[v] = _mm256_srai_epi16::<8>(w);
    }
    let low_bytes = _mm256_set1_epi16(0xFF);
    for r in 0..R {
        // SAFETY: `n` bytes of lane `i` exist.
        let a = _mm256_set1_epi32(unsafe { lane(rows[r].add(4 * i), n) } as i32);
        let (a_even, a_odd) = (_mm256_and_si256(a, low_bytes), _mm256_srli_epi16::<8>(a));
        for v in 0..V {
            let products = _mm256_add_epi32(
                _mm256_madd_epi16(a_even, even[v]),
                _mm256_madd_epi16(a_odd, odd[v]),
            );
            acc[r][v] = _mm256_add_epi32(acc[r][v], products);
        }
    }
}
