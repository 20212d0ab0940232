//! One int8 tile: unsigned activations times signed weights, exact (modulo 2^32), and the way back to numbers or codes.
//!
//! Four consecutive `k` make one 32-bit lane, as `vpdpbusd` wants them; the panel is
//! `[taps][k / 4][32][4]`. Without that instruction, products are formed in 16 bits after widening, since
//! the older `vpmaddubsw` saturates. What follows the sum takes one multiplication and one addition, each rounded, so
//! that every level gives the same bits.

use lapidary_abi::kernel::{GemmI8, PANEL_I8, RESULT_CODE, RESULT_I32};

/// Bytes of one panel line: four `k` of 32 columns.
const LINE: usize = PANEL_I8 * 4;

/// Up to four bytes of a row as one little-endian lane, zero past `n`.
///
/// # Safety
/// `n.min(4)` bytes can be read.
#[inline(always)]
unsafe fn lane(row: *const u8, n: usize) -> u32 {
    // SAFETY: as promised to this function.
    unsafe {
        if n >= 4 {
            return u32::from_le_bytes(row.cast::<[u8; 4]>().read());
        }
        let mut bytes = [0u8; 4];
        for (i, byte) in bytes.iter_mut().enumerate().take(n) {
            *byte = *row.add(i);
        }
        u32::from_le_bytes(bytes)
    }
}

/// Writes one result of the tile, whose sum is `sum`.
///
/// # Safety
/// `args` satisfy the contract of [`GemmI8`]; `r < rows` and `j < cols`.
#[inline(always)]
unsafe fn finish(g: &GemmI8, r: usize, j: usize, sum: i32) {
    // SAFETY: as promised to this function.
    unsafe {
        let at = r * g.c_stride + j;
        let mut sum = sum;
        if g.a_zero != 0 {
            sum = sum.wrapping_sub(g.a_zero.wrapping_mul(*g.sums.add(j)));
        }
        if g.result == RESULT_I32 {
            return g.c.cast::<i32>().add(at).write(sum);
        }
        let mut x = sum as f32 * *g.scale.add(j);
        if !g.bias.is_null() {
            x += *g.bias.add(j);
        }
        // Not `f32::max`: what is no number stays none.
        x = if x < g.lo { g.lo } else { x };
        x = if x > g.hi { g.hi } else { x };
        if g.result == RESULT_CODE {
            let code = (x.round_ties_even() as i32).wrapping_add(g.zero);
            g.c.cast::<u8>().add(at).write(code as u8);
        } else {
            g.c.cast::<f32>().add(at).write(x);
        }
    }
}

/// Plain Rust: one row at a time, eight columns at a time.
///
/// # Safety
/// `args` must satisfy the contract of [`GemmI8`].
pub unsafe extern "C" fn portable(args: *const GemmI8) {
    const COLS: usize = 8;
    // SAFETY: the caller passes a valid block: rows have `k` bytes, the panel whole lines.
    unsafe {
        let g = &*args;
        let lines = g.k.div_ceil(4);
        for r in 0..g.rows as usize {
            for c0 in (0..g.cols as usize).step_by(COLS) {
                let mut acc = [0i32; COLS];
                for t in 0..g.taps {
                    let row = *g.a.add(t * g.rows as usize + r);
                    for i in 0..lines {
                        let a = lane(row.add(4 * i), g.k - 4 * i)
                            .to_le_bytes()
                            .map(i32::from);
                        let b = &*g
                            .b
                            .add((t * lines + i) * LINE + c0 * 4)
                            .cast::<[[i8; 4]; COLS]>();
                        for j in 0..COLS {
                            for q in 0..4 {
                                acc[j] = acc[j].wrapping_add(a[q] * b[j][q] as i32);
                            }
                        }
                    }
                }
                for (j, &sum) in acc.iter().enumerate().take(g.cols as usize - c0) {
                    finish(g, r, c0 + j, sum);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! `vpdpbusd` on 512 bits: the whole tile at once, one instance per number of rows.

    use core::arch::x86_64::*;
    use core::mem::MaybeUninit;

    use super::*;
    use crate::rows_collide;

    /// Bytes of `k` that colliding rows are copied at a time.
    const STAGE_LEN: usize = 512;
    /// Bytes between staged rows: one cache line more, so that they do not collide.
    const STAGE_PITCH: usize = STAGE_LEN + 64;

    /// # Safety
    /// `args` must satisfy the contract of [`GemmI8`]; the CPU must have AVX-512 F, BW and VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub unsafe extern "C" fn entry(args: *const GemmI8) {
        // SAFETY: the caller passes a valid block; the instance is the one for its rows and columns.
        unsafe {
            let g = &*args;
            let tiles = if g.cols > 16 { &WIDE } else { &NARROW };
            tiles[g.rows as usize - 1](g)
        }
    }

    type Tile = unsafe fn(&GemmI8);

    /// Instances for 17 to 32 columns, by rows. Eight accumulators hide an instruction's latency, so
    /// tiles with few rows keep several partial sums.
    #[rustfmt::skip]
    static WIDE: [Tile; 14] = [
        tile::<1, 2, 4>, tile::<2, 2, 2>, tile::<3, 2, 2>, tile::<4, 2, 1>, tile::<5, 2, 1>,
        tile::<6, 2, 1>, tile::<7, 2, 1>, tile::<8, 2, 1>, tile::<9, 2, 1>, tile::<10, 2, 1>,
        tile::<11, 2, 1>, tile::<12, 2, 1>, tile::<13, 2, 1>, tile::<14, 2, 1>,
    ];

    /// Instances for up to 16 columns, by rows.
    #[rustfmt::skip]
    static NARROW: [Tile; 14] = [
        tile::<1, 1, 4>, tile::<2, 1, 4>, tile::<3, 1, 4>, tile::<4, 1, 2>, tile::<5, 1, 2>,
        tile::<6, 1, 2>, tile::<7, 1, 2>, tile::<8, 1, 1>, tile::<9, 1, 1>, tile::<10, 1, 1>,
        tile::<11, 1, 1>, tile::<12, 1, 1>, tile::<13, 1, 1>, tile::<14, 1, 1>,
    ];

    /// `R` rows by `V` vectors of 16 columns, with `U` (at most 4) partial sums.
    ///
    /// # Safety
    /// The block is valid, `rows == R`, `cols <= 16 * V`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn tile<const R: usize, const V: usize, const U: usize>(g: &GemmI8) {
        let mut acc = [[[_mm512_setzero_si512(); V]; R]; U];
        let mut stage = MaybeUninit::<[[u8; STAGE_PITCH]; R]>::uninit();
        let mut b = g.b;
        for t in 0..g.taps {
            // SAFETY: `a` holds `taps * rows` addresses; each row has `k` bytes, the panel `k / 4` lines,
            // rounded up, for each tap; staged pieces are as long as they were copied, and all but the
            // last are whole lines.
            unsafe {
                let rows = *g.a.add(t * R).cast::<[*const u8; R]>();
                let staged = g.k >= 128 && rows_collide(&rows);
                let step = if staged { STAGE_LEN } else { g.k };
                let mut k0 = 0;
                while k0 < g.k {
                    let n = step.min(g.k - k0);
                    let mut from = rows;
                    if staged {
                        for r in 0..R {
                            let to = stage.as_mut_ptr().cast::<u8>().add(r * STAGE_PITCH);
                            copy(rows[r].add(k0), to, n);
                            from[r] = to;
                        }
                    }
                    multiply(&mut acc, &from, b, n);
                    b = b.add(n.div_ceil(4) * LINE);
                    k0 += n;
                }
            }
        }
        // Into an array of its own, so that the accumulators stay in registers until here.
        let mut sums = [[_mm512_setzero_si512(); V]; R];
        for r in 0..R {
            for v in 0..V {
                sums[r][v] = acc[0][r][v];
                for part in acc.iter().skip(1) {
                    sums[r][v] = _mm512_add_epi32(sums[r][v], part[r][v]);
                }
            }
        }
        for v in 0..V {
            let column = std::array::from_fn(|r| sums[r][v]);
            // SAFETY: the block is valid and has these rows.
            unsafe { finish::<R>(g, 16 * v, column) };
        }
    }

    /// Writes 16 columns of every row, as the plain [`finish`](super::finish) does.
    ///
    /// # Safety
    /// The block is valid, `rows == R`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn finish<const R: usize>(g: &GemmI8, column: usize, sums: [__m512i; R]) {
        let count = (g.cols as usize).saturating_sub(column).min(16);
        let mask = ((1u64 << count) - 1) as __mmask16;
        // SAFETY: the mask leaves out what is past `cols`.
        unsafe {
            let mut correction = _mm512_setzero_si512();
            if g.a_zero != 0 {
                let of = _mm512_maskz_loadu_epi32(mask, g.sums.wrapping_add(column));
                correction = _mm512_mullo_epi32(of, _mm512_set1_epi32(g.a_zero));
            }
            let (mut scale, mut bias) = (_mm512_setzero_ps(), _mm512_set1_ps(-0.0));
            if g.result != RESULT_I32 {
                scale = _mm512_maskz_loadu_ps(mask, g.scale.wrapping_add(column));
                if !g.bias.is_null() {
                    bias = _mm512_maskz_loadu_ps(mask, g.bias.wrapping_add(column));
                }
            }
            let (lo, hi) = (_mm512_set1_ps(g.lo), _mm512_set1_ps(g.hi));
            let zero = _mm512_set1_epi32(g.zero);
            for (r, sum) in sums.into_iter().enumerate() {
                let at = r * g.c_stride + column;
                let sum = _mm512_sub_epi32(sum, correction);
                if g.result == RESULT_I32 {
                    _mm512_mask_storeu_epi32(g.c.cast::<i32>().wrapping_add(at), mask, sum);
                    continue;
                }
                let mut x = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), bias);
                // The second operand is what stays where one is no number.
                x = _mm512_min_ps(hi, _mm512_max_ps(lo, x));
                if g.result == RESULT_CODE {
                    let code = _mm512_add_epi32(_mm512_cvtps_epi32(x), zero);
                    let out = g.c.cast::<i8>().wrapping_add(at);
                    _mm512_mask_cvtepi32_storeu_epi8(out, mask, code);
                } else {
                    _mm512_mask_storeu_ps(g.c.cast::<f32>().wrapping_add(at), mask, x);
                }
            }
        }
    }

    /// Adds the products of `k` bytes of each row.
    ///
    /// # Safety
    /// Every row has `k` bytes, the panel `k / 4` lines, rounded up.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn multiply<const R: usize, const V: usize, const U: usize>(
        acc: &mut [[[__m512i; V]; R]; U],
        rows: &[*const u8; R],
        b: *const i8,
        k: usize,
    ) {
        const UNROLL: usize = 4;
        let whole = k / 4;
        let mut i = 0;
        // SAFETY: `i + u < whole` in the loops; the rest reads only the bytes that are left.
        unsafe {
            while i + UNROLL <= whole {
                // Spelt out: a loop here is unrolled too late to keep the sums in registers.
                line(&mut acc[0 % U], rows, b, i, 4);
                line(&mut acc[1 % U], rows, b, i + 1, 4);
                line(&mut acc[2 % U], rows, b, i + 2, 4);
                line(&mut acc[3 % U], rows, b, i + 3, 4);
                i += UNROLL;
            }
            while i < whole {
                line(&mut acc[0], rows, b, i, 4);
                i += 1;
            }
            if !k.is_multiple_of(4) {
                line(&mut acc[0], rows, b, whole, k % 4);
            }
        }
    }

    /// Adds the products of lane `i`, of which `n` bytes exist.
    ///
    /// # Safety
    /// As [`multiply`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn line<const R: usize, const V: usize>(
        acc: &mut [[__m512i; V]; R],
        rows: &[*const u8; R],
        b: *const i8,
        i: usize,
        n: usize,
    ) {
        // SAFETY: as promised to this function.
        unsafe {
            let mut w = [_mm512_setzero_si512(); V];
            for v in 0..V {
                w[v] = _mm512_loadu_si512(b.add(i * LINE + v * 64).cast());
            }
            for r in 0..R {
                let a = _mm512_set1_epi32(lane(rows[r].add(4 * i), n) as i32);
                for v in 0..V {
                    acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, w[v]);
                }
            }
        }
    }

    /// Copies `n` bytes, 64 at a time.
    ///
    /// # Safety
    /// `n` bytes can be read, `n` rounded up to 64 written.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
        let mut i = 0;
        // SAFETY: reads past `n` are masked off.
        unsafe {
            while i + 64 <= n {
                _mm512_storeu_si512(to.add(i).cast(), _mm512_loadu_si512(from.add(i).cast()));
                i += 64;
            }
            if i < n {
                let mask = (1u64 << (n - i)) - 1;
                _mm512_storeu_si512(
                    to.add(i).cast(),
                    _mm512_maskz_loadu_epi8(mask, from.add(i).cast()),
                );
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
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

    /// `R` rows by `V` vectors of 8 columns.
    ///
    /// # Safety
    /// The block is valid; `r0 + R <= rows`; `c0 + 8 * V <= PANEL_I8`.
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const R: usize, const V: usize>(g: &GemmI8, r0: usize, c0: usize) {
        let mut acc = [[_mm256_setzero_si256(); V]; R];
        let lines = g.k.div_ceil(4);
        let whole = g.k / 4;
        // SAFETY: rows have `k` bytes, the panel whole lines; masks leave out what is past `cols`.
        unsafe {
            for t in 0..g.taps {
                let rows = &*g.a.add(t * g.rows as usize + r0).cast::<[*const u8; R]>();
                let b = g.b.add(t * lines * LINE + c0 * 4);
                for i in 0..whole {
                    line(&mut acc, rows, b, i, 4);
                }
                if lines > whole {
                    line(&mut acc, rows, b, whole, g.k % 4);
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
                    let code = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(g.zero));
                    let mut codes = [0i32; 8];
                    _mm256_storeu_si256(codes.as_mut_ptr().cast(), code);
                    let count = (g.cols as usize).saturating_sub(column).min(8);
                    let out = g.c.cast::<u8>().wrapping_add(at);
                    for (j, &code) in codes.iter().enumerate().take(count) {
                        out.add(j).write(code as u8);
                    }
                } else {
                    _mm256_maskstore_ps(g.c.cast::<f32>().wrapping_add(at), mask, x);
                }
            }
        }
    }

    /// Adds the products of lane `i`, of which `n` bytes exist.
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
            // SAFETY: line `i` of the panel exists.
            let w = unsafe { _mm256_loadu_si256(b.add(i * LINE + v * 32).cast()) };
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::{Import, MAX_ROWS_I8, RESULT_F32};

    #[derive(Clone, Copy, Debug)]
    struct Case {
        rows: usize,
        cols: usize,
        k: usize,
        taps: usize,
        result: u32,
        pitch: usize,
        extremes: bool,
    }

    fn check(
        case: Case,
        address: *const core::ffi::c_void,
        random: &mut Random,
    ) -> Result<(), String> {
        let Case {
            rows,
            cols,
            k,
            taps,
            result,
            pitch,
            extremes,
        } = case;
        // SAFETY: the table holds a function of this type at `Import::GemmI8`.
        let kernel: unsafe extern "C" fn(*const GemmI8) = unsafe { core::mem::transmute(address) };
        let lines = k.div_ceil(4);
        let a: Vec<u8> = (0..taps * rows * pitch + 1)
            .map(|_| {
                if extremes {
                    255
                } else {
                    random.int(0, 255) as u8
                }
            })
            .collect();
        let panel = Aligned::new(taps * lines * LINE, |i| {
            let q = i / LINE % lines.max(1) * 4 + i % 4;
            match () {
                _ if q >= k => 0,
                _ if extremes => [-128i8, 127][i / 4 % 2],
                _ => random.int(-128, 127) as i8,
            }
        });
        let c_stride = cols + 2;
        let size = if result == RESULT_CODE { 1 } else { 4 };
        let before: Vec<u8> = (0..rows * c_stride * size)
            .map(|_| random.next() as u8)
            .collect();
        let mut c = before.clone();
        let addresses: Vec<*const u8> = (0..taps * rows)
            .rev()
            .map(|i| a[i * pitch..].as_ptr())
            .collect();
        let sums: Vec<i32> = (0..cols).map(|_| random.int(-999, 999) as i32).collect();
        let scale: Vec<f32> = (0..cols).map(|j| 0.001 * (j + 1) as f32).collect();
        let bias: Vec<f32> = (0..cols).map(|j| j as f32 - 9.5).collect();
        let with_bias = k % 2 == 0;
        let (lo, hi) = (-120.0f32, 100.5f32);
        let block = GemmI8 {
            a: addresses.as_ptr(),
            b: panel.as_ptr(),
            c: c.as_mut_ptr().cast(),
            sums: sums.as_ptr(),
            scale: scale.as_ptr(),
            bias: if with_bias {
                bias.as_ptr()
            } else {
                core::ptr::null()
            },
            c_stride,
            k,
            taps,
            rows: rows as u32,
            cols: cols as u32,
            a_zero: taps as i32 - 1,
            zero: 3,
            lo,
            hi,
            result,
        };
        // SAFETY: the block describes the buffers above.
        unsafe { kernel(&block) };
        for r in 0..rows {
            for j in 0..c_stride {
                let at = (r * c_stride + j) * size;
                let mut want = before[at..at + size].to_vec();
                if j < cols {
                    let mut sum = 0i32;
                    for t in 0..taps {
                        let row = &a[(taps * rows - 1 - (t * rows + r)) * pitch..];
                        for q in 0..k {
                            let w = panel[(t * lines + q / 4) * LINE + j * 4 + q % 4];
                            sum = sum.wrapping_add(row[q] as i32 * w as i32);
                        }
                    }
                    sum -= (taps as i32 - 1) * sums[j];
                    let scaled = sum as f32 * scale[j];
                    let x = if with_bias { scaled + bias[j] } else { scaled };
                    let x = x.clamp(lo, hi);
                    want = match result {
                        RESULT_I32 => sum.to_le_bytes().to_vec(),
                        RESULT_CODE => vec![(x.round_ties_even() as i32 + 3) as u8],
                        _ => x.to_le_bytes().to_vec(),
                    };
                }
                if c[at..at + size] != want {
                    return Err(format!(
                        "{case:?}: at {r},{j} found {:?} expected {want:?}",
                        &c[at..at + size]
                    ));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_shape_equals_the_reference() {
        for_each_level(Import::GemmI8 as usize, |level, address| {
            let mut random = Random(5);
            for rows in 1..=MAX_ROWS_I8 {
                for cols in [1, 7, 8, 9, 15, 16, 17, 31, 32] {
                    for k in [0, 1, 2, 3, 4, 5, 16, 23, 40] {
                        for taps in [1, 2, 9] {
                            for (result, extremes) in [
                                (RESULT_I32, false),
                                (RESULT_F32, false),
                                (RESULT_CODE, false),
                                (RESULT_CODE, true),
                                (RESULT_I32, true),
                            ] {
                                let case = Case {
                                    rows,
                                    cols,
                                    k,
                                    taps,
                                    result,
                                    pitch: k + 1,
                                    extremes,
                                };
                                check(case, address, &mut random)
                                    .unwrap_or_else(|e| panic!("{level:?}: {e}"));
                            }
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn long_and_colliding_rows_equal_the_reference() {
        for_each_level(Import::GemmI8 as usize, |level, address| {
            let mut random = Random(6);
            for (k, pitch) in [(1030, 4096), (1024, 4096), (131, 4096), (513, 513)] {
                for rows in [9, 14] {
                    let case = Case {
                        rows,
                        cols: 30,
                        k,
                        taps: 2,
                        result: RESULT_I32,
                        pitch,
                        extremes: false,
                    };
                    check(case, address, &mut random).unwrap_or_else(|e| panic!("{level:?}: {e}"));
                }
            }
        });
    }

    /// A row that ends where readable memory ends: reading past `k` would fault.
    #[cfg(target_os = "linux")]
    #[test]
    fn rows_are_not_read_past_k() {
        const PAGE: usize = 65536;
        // SAFETY: a fresh private mapping whose second half is made inaccessible.
        let base = unsafe {
            let p = libc::mmap(
                core::ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(p, libc::MAP_FAILED);
            assert_eq!(
                libc::mprotect(p.cast::<u8>().add(PAGE).cast(), PAGE, libc::PROT_NONE),
                0
            );
            p.cast::<u8>()
        };
        for_each_level(Import::GemmI8 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::GemmI8`.
            let kernel: unsafe extern "C" fn(*const GemmI8) =
                unsafe { core::mem::transmute(address) };
            for k in [1usize, 2, 3, 5, 7, 66, 513] {
                let panel = Aligned::new(k.div_ceil(4) * LINE, |_| 1i8);
                // SAFETY: inside the readable half.
                let row = unsafe { base.add(PAGE - k) };
                // SAFETY: `k` bytes are writable there; the block describes the buffers.
                unsafe {
                    core::ptr::write_bytes(row, 3, k);
                    for rows in [1usize, 14] {
                        let addresses = vec![row.cast_const(); rows];
                        let mut c = vec![0i32; 14 * 32];
                        kernel(&GemmI8 {
                            a: addresses.as_ptr(),
                            b: panel.as_ptr(),
                            c: c.as_mut_ptr().cast(),
                            sums: core::ptr::null(),
                            scale: core::ptr::null(),
                            bias: core::ptr::null(),
                            c_stride: 32,
                            k,
                            taps: 1,
                            rows: rows as u32,
                            cols: 32,
                            a_zero: 0,
                            zero: 0,
                            lo: f32::NEG_INFINITY,
                            hi: f32::INFINITY,
                            result: RESULT_I32,
                        });
                        assert!(
                            c[..rows * 32].iter().all(|&x| x == 3 * k as i32),
                            "{level:?} k {k}"
                        );
                    }
                }
            }
        });
        // SAFETY: the mapping from above, not used any more.
        unsafe { libc::munmap(base.cast(), 2 * PAGE) };
    }
}
