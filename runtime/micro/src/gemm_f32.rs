//! One f32 tile of a matrix product or convolution: `c = clamp(sum a * b + bias + residual, lo, hi)`.
//!
//! The hottest code of most compiled programs. A tile is at most 14 rows by 32 columns, so that with
//! AVX-512 its 28 accumulators, two weight vectors and one broadcast fill the 32 registers. Rows come
//! through pointers (a convolution's window is never copied), weights from a panel of 32 columns that
//! streams from the second-level cache; there is no blocking of `k`.
//!
//! Sums are fused and in order of `k`, except that tiles with few rows keep several partial sums to hide
//! latency. NaN passes through the clamp: bounds are the first operand of `max` and `min`.

use lapidary_abi::kernel::{Gemm, GemmF32, PANEL_F32};

/// Plain Rust for CPUs without a variant of their own: 4 rows by 8 columns at a time.
///
/// # Safety
/// `args` must satisfy the contract of [`GemmF32`].
pub unsafe extern "C" fn portable(args: *const GemmF32) {
    const ROWS: usize = 4;
    const COLS: usize = 8;
    // SAFETY: the caller passes a valid block.
    let g = unsafe { &*args };
    let (rows, cols) = (g.rows as usize, g.cols as usize);
    for r0 in (0..rows).step_by(ROWS) {
        for c0 in (0..cols).step_by(COLS) {
            // SAFETY: the sub-tile starts inside the tile; the block is valid.
            unsafe {
                if rows - r0 >= ROWS {
                    portable_tile::<ROWS, COLS>(g, r0, c0);
                } else {
                    for r in r0..rows {
                        portable_tile::<1, COLS>(g, r, c0);
                    }
                }
            }
        }
    }
}

/// Rows `r0..r0+R`, columns `c0..min(c0+C, cols)`.
///
/// # Safety
/// The block is valid, `r0 + R <= rows`, `c0 + C <= PANEL_F32`.
unsafe fn portable_tile<const R: usize, const C: usize>(g: &GemmF32, r0: usize, c0: usize) {
    let mut acc = [[0f32; C]; R];
    let width = C.min(g.cols as usize - c0);
    // SAFETY: all addresses are within what the block's contract promises: `k` elements per row, whole
    // panels, and `width` columns of the result, bias and residual.
    unsafe {
        for t in 0..g.taps {
            let rows = g.a.add(t * g.rows as usize + r0);
            let panel = g.b.add(t * g.k * PANEL_F32 + c0);
            for k in 0..g.k {
                let b = &*panel.add(k * PANEL_F32).cast::<[f32; C]>();
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = *(*rows.add(r)).add(k);
                    for j in 0..C {
                        // `mul_add` is an instruction on these; elsewhere it may be a slow library call.
                        acc[j] = if cfg!(any(target_arch = "aarch64", target_arch = "riscv64")) {
                            a.mul_add(b[j], acc[j])
                        } else {
                            a * b[j] + acc[j]
                        };
                    }
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (j, &sum) in acc.iter().enumerate().take(width) {
                portable_finish(g, sum, r0 + r, c0 + j);
            }
        }
    }
}

/// Adds what is to be added to a sum, clamps and stores it.
///
/// # Safety
/// The block is valid, `row < rows`, `col < cols`.
pub(crate) unsafe fn portable_finish<W>(g: &Gemm<W>, sum: f32, row: usize, col: usize) {
    // SAFETY: the element is one of those that the block's contract promises.
    unsafe {
        let out = g.c.add(row * g.c_stride + col);
        let mut x = sum;
        if g.accumulate != 0 {
            x += *out;
        }
        if !g.bias.is_null() {
            x += *g.bias.add(col);
        }
        if !g.residual.is_null() {
            x += *g.residual.add(row * g.residual_stride + col);
        }
        // Comparisons with NaN are false, so NaN stays.
        x = if g.lo > x { g.lo } else { x };
        *out = if g.hi < x { g.hi } else { x };
    }
}

/// Whether the bounds can change any value.
#[cfg(target_arch = "x86_64")]
fn clamps(g: &GemmF32) -> bool {
    g.lo != f32::NEG_INFINITY || g.hi != f32::INFINITY
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! 512-bit vectors: the whole tile at once, one instance per number of rows.

    use core::arch::x86_64::*;
    use core::mem::MaybeUninit;

    use super::*;
    use crate::rows_collide;

    /// Elements ahead of a panel that few rows wait for: the CPU's own prefetching stops at each page. Into the second cache: more
    /// lines may be on their way there than to the first.
    const AHEAD: usize = 512;
    /// Elements of `k` that colliding rows are copied at a time.
    const STAGE_LEN: usize = 128;
    /// Elements between staged rows: one cache line more, so that they do not collide.
    const STAGE_PITCH: usize = STAGE_LEN + 16;

    /// # Safety
    /// `args` must satisfy the contract of [`GemmF32`]; the CPU must have AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub unsafe extern "C" fn entry(args: *const GemmF32) {
        // SAFETY: the caller passes a valid block; the instance is the one for its rows and columns.
        unsafe {
            let g = &*args;
            let tiles = if g.cols > 16 { &WIDE } else { &NARROW };
            tiles[g.rows as usize - 1](g)
        }
    }

    type Tile = unsafe fn(&GemmF32);

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
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const R: usize, const V: usize, const U: usize>(g: &GemmF32) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        let mut b = g.b;
        for t in 0..g.taps {
            // SAFETY: `a` holds `taps * rows` addresses; each row has `k` elements, the panel `taps * k` lines.
            unsafe {
                let rows = &*g.a.add(t * R).cast::<[*const f32; R]>();
                if g.k >= 32 && rows_collide(rows) {
                    staged::<R, V, U>(&mut sums, rows, b, g.k);
                } else {
                    multiply::<R, V, U>(&mut sums, rows, b, g.k);
                }
                b = b.add(g.k * PANEL_F32);
            }
        }
        // SAFETY: the block is valid.
        unsafe { results(g, &sums) }
    }

    /// Adds `k` products to the sums, of rows that are copied piece by piece.
    ///
    /// # Safety
    /// As [`multiply`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn staged<const R: usize, const V: usize, const U: usize>(
        sums: &mut [Row; R],
        rows: &[*const f32; R],
        b: *const f32,
        k: usize,
    ) {
        let mut stage = MaybeUninit::<[[f32; STAGE_PITCH]; R]>::uninit();
        let mut from = *rows;
        let mut k0 = 0;
        while k0 < k {
            let n = STAGE_LEN.min(k - k0);
            // SAFETY: rows have `k` elements, the panel so many lines; what is read of the stage was copied.
            unsafe {
                for r in 0..R {
                    let to = stage.as_mut_ptr().cast::<f32>().add(r * STAGE_PITCH);
                    copy(rows[r].add(k0), to, n);
                    from[r] = to;
                }
                multiply::<R, V, U>(sums, &from, b.add(k0 * PANEL_F32), n);
            }
            k0 += n;
        }
    }

    /// Two vectors of a row, 32 columns.
    pub(crate) type Row = [__m512; 2];

    /// Accumulators of `V` vectors that begin with these sums, and so many more that begin with zero.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn begin<const R: usize, const V: usize, const U: usize>(
        sums: &[Row; R],
    ) -> [[[__m512; V]; R]; U] {
        let mut acc = [[[_mm512_setzero_ps(); V]; R]; U];
        for r in 0..R {
            for v in 0..V {
                acc[0][r][v] = sums[r][v];
            }
        }
        acc
    }

    /// What the accumulators of [`begin`] are together.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn end<const R: usize, const V: usize, const U: usize>(
        acc: &[[[__m512; V]; R]; U],
        sums: &mut [Row; R],
    ) {
        for r in 0..R {
            for v in 0..V {
                let mut sum = acc[0][r][v];
                for part in acc.iter().skip(1) {
                    sum = _mm512_add_ps(sum, part[r][v]);
                }
                sums[r][v] = sum;
            }
        }
    }

    /// Adds what is to be added to the sums of up to 32 columns, clamps and stores. It is called, for there are many tiles, and it is
    /// little of what they do.
    ///
    /// # Safety
    /// The block is valid and has so many rows.
    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn results<W>(g: &Gemm<W>, sums: &[Row]) {
        let mask = |v: u32| ((1u64 << g.cols.saturating_sub(16 * v).min(16)) - 1) as __mmask16;
        let masks = [mask(0), mask(1)];
        let (lo, hi) = (_mm512_set1_ps(g.lo), _mm512_set1_ps(g.hi));
        let mut bias = [_mm512_setzero_ps(); 2];
        // SAFETY: masks leave out what is past `cols`; addresses of it are computed without the promise to be in bounds.
        unsafe {
            if !g.bias.is_null() {
                for v in 0..2 {
                    bias[v] = _mm512_maskz_loadu_ps(masks[v], g.bias.wrapping_add(16 * v));
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for v in 0..2 {
                    let out = g.c.wrapping_add(r * g.c_stride + 16 * v);
                    let mut x = sums[v];
                    if g.accumulate != 0 {
                        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(masks[v], out));
                    }
                    if !g.bias.is_null() {
                        x = _mm512_add_ps(x, bias[v]);
                    }
                    if !g.residual.is_null() {
                        let at = g.residual.wrapping_add(r * g.residual_stride + 16 * v);
                        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(masks[v], at));
                    }
                    x = _mm512_min_ps(hi, _mm512_max_ps(lo, x));
                    _mm512_mask_storeu_ps(out, masks[v], x);
                }
            }
        }
    }

    /// Adds `k` products to the sums. It is called: sums that live across the loops around it are spilled in the innermost one.
    ///
    /// # Safety
    /// Every row has `k` elements, the panel `k` lines.
    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply<const R: usize, const V: usize, const U: usize>(
        sums: &mut [Row; R],
        rows: &[*const f32; R],
        b: *const f32,
        k: usize,
    ) {
        let mut acc = begin::<R, V, U>(sums);
        let mut i = 0;
        // SAFETY: `i + u < k` throughout.
        unsafe {
            // Spelt out: a loop here is unrolled too late to keep the sums in registers.
            if U == 4 {
                while i + 4 <= k {
                    line(&mut acc[0], rows, b, i);
                    line(&mut acc[1 % U], rows, b, i + 1);
                    line(&mut acc[2 % U], rows, b, i + 2);
                    line(&mut acc[3 % U], rows, b, i + 3);
                    i += 4;
                }
            } else {
                while i + 2 <= k {
                    line(&mut acc[0], rows, b, i);
                    line(&mut acc[1 % U], rows, b, i + 1);
                    i += 2;
                }
            }
            while i < k {
                line(&mut acc[0], rows, b, i);
                i += 1;
            }
        }
        end(&acc, sums);
    }

    /// Adds the products of one `k`.
    ///
    /// # Safety
    /// As [`multiply`], for element `i`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn line<const R: usize, const V: usize>(
        acc: &mut [[__m512; V]; R],
        rows: &[*const f32; R],
        b: *const f32,
        i: usize,
    ) {
        // SAFETY: element `i` of each row and line `i` of the panel exist.
        unsafe {
            let mut w = [_mm512_setzero_ps(); V];
            for v in 0..V {
                w[v] = _mm512_load_ps(b.add(i * PANEL_F32 + v * 16));
                if R <= 2 {
                    let ahead = b.wrapping_add(i * PANEL_F32 + v * 16 + AHEAD);
                    _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                }
            }
            for r in 0..R {
                let a = _mm512_set1_ps(*rows[r].add(i));
                for v in 0..V {
                    acc[r][v] = _mm512_fmadd_ps(a, w[v], acc[r][v]);
                }
            }
        }
    }

    /// Copies `n` elements, 16 at a time; `to` has room for a multiple of 16.
    ///
    /// # Safety
    /// `n` elements can be read, `n` rounded up to 16 written; `to` is not read by others.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn copy(from: *const f32, to: *mut f32, n: usize) {
        let mut i = 0;
        // SAFETY: reads past `n` are masked off.
        unsafe {
            while i + 16 <= n {
                _mm512_storeu_ps(to.add(i), _mm512_loadu_ps(from.add(i)));
                i += 16;
            }
            if i < n {
                let mask = (1u16 << (n - i)) - 1;
                _mm512_storeu_ps(to.add(i), _mm512_maskz_loadu_ps(mask, from.add(i)));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! 256-bit vectors: sub-tiles of at most 6 rows by 16 columns.

    use core::arch::x86_64::*;

    use super::*;

    const MAX_ROWS: usize = 6;

    /// # Safety
    /// `args` must satisfy the contract of [`GemmF32`]; the CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe extern "C" fn entry(args: *const GemmF32) {
        // SAFETY: the caller passes a valid block.
        let g = unsafe { &*args };
        let (rows, cols) = (g.rows as usize, g.cols as usize);
        // One or two rows are bound by memory: read each line of the panel once.
        let columns_at_once = if rows <= 2 && cols > 16 { 32 } else { 16 };
        for c0 in (0..cols).step_by(columns_at_once) {
            let vectors = (cols - c0).min(columns_at_once).div_ceil(8);
            let blocks = rows.div_ceil(MAX_ROWS);
            let mut r0 = 0;
            for block in 0..blocks {
                let height = (rows - r0).div_ceil(blocks - block);
                // SAFETY: the sub-tile lies in the tile.
                unsafe { select(g, r0, c0, height, vectors) };
                r0 += height;
            }
        }
    }

    /// # Safety
    /// The block is valid; the sub-tile of `rows` rows starts in the tile.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn select(g: &GemmF32, r0: usize, c0: usize, rows: usize, vectors: usize) {
        // SAFETY: as promised to this function.
        unsafe {
            match (rows, vectors) {
                (1, 3..) => tile::<1, 4, 2>(g, r0, c0),
                (2, 3..) => tile::<2, 4, 1>(g, r0, c0),
                (1, 2) => tile::<1, 2, 4>(g, r0, c0),
                (2, 2) => tile::<2, 2, 2>(g, r0, c0),
                (3, 2) => tile::<3, 2, 1>(g, r0, c0),
                (4, 2) => tile::<4, 2, 1>(g, r0, c0),
                (5, 2) => tile::<5, 2, 1>(g, r0, c0),
                (6, 2) => tile::<6, 2, 1>(g, r0, c0),
                (1, 1) => tile::<1, 1, 4>(g, r0, c0),
                (2, 1) => tile::<2, 1, 4>(g, r0, c0),
                (3, 1) => tile::<3, 1, 2>(g, r0, c0),
                (4, 1) => tile::<4, 1, 2>(g, r0, c0),
                (5, 1) => tile::<5, 1, 2>(g, r0, c0),
                (6, 1) => tile::<6, 1, 2>(g, r0, c0),
                _ => unreachable!("a sub-tile of {rows} rows and {vectors} vectors"),
            }
        }
    }

    /// `R` rows by `V` vectors of 8 columns, with `U` (at most 4) partial sums.
    ///
    /// # Safety
    /// The block is valid; `r0 + R <= rows`; `c0 + 8 * V <= PANEL_F32`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const R: usize, const V: usize, const U: usize>(
        g: &GemmF32,
        r0: usize,
        c0: usize,
    ) {
        const UNROLL: usize = 4;
        let mut acc = [[[_mm256_setzero_ps(); V]; R]; U];
        for t in 0..g.taps {
            // SAFETY: `a` holds `taps * rows` addresses; rows have `k` elements, the panel `taps * k` lines.
            unsafe {
                let rows = &*g.a.add(t * g.rows as usize + r0).cast::<[*const f32; R]>();
                let b = g.b.add(t * g.k * PANEL_F32 + c0);
                let mut i = 0;
                while i + UNROLL <= g.k {
                    for u in 0..UNROLL {
                        line(&mut acc[u % U], rows, b, i + u);
                    }
                    i += UNROLL;
                }
                while i < g.k {
                    line(&mut acc[0], rows, b, i);
                    i += 1;
                }
            }
        }
        for u in 1..U {
            for r in 0..R {
                for v in 0..V {
                    acc[0][r][v] = _mm256_add_ps(acc[0][r][v], acc[u][r][v]);
                }
            }
        }
        // SAFETY: as promised to this function.
        unsafe { finish(g, &acc[0], r0, c0) }
    }

    /// Adds the products of one `k`.
    ///
    /// # Safety
    /// Element `i` of each row and line `i` of the panel exist.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn line<const R: usize, const V: usize>(
        acc: &mut [[__m256; V]; R],
        rows: &[*const f32; R],
        b: *const f32,
        i: usize,
    ) {
        // SAFETY: as promised to this function.
        unsafe {
            let mut w = [_mm256_setzero_ps(); V];
            for v in 0..V {
                w[v] = _mm256_loadu_ps(b.add(i * PANEL_F32 + v * 8));
            }
            for r in 0..R {
                let a = _mm256_broadcast_ss(&*rows[r].add(i));
                for v in 0..V {
                    acc[r][v] = _mm256_fmadd_ps(a, w[v], acc[r][v]);
                }
            }
        }
    }

    /// Adds what is to be added, clamps and stores.
    ///
    /// # Safety
    /// As [`tile`].
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn finish<const R: usize, const V: usize>(
        g: &GemmF32,
        acc: &[[__m256; V]; R],
        r0: usize,
        c0: usize,
    ) {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let (lo, hi, clamps) = (_mm256_set1_ps(g.lo), _mm256_set1_ps(g.hi), clamps(g));
        for v in 0..V {
            let col = c0 + 8 * v;
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(g.cols as i32 - col as i32), lanes);
            for r in 0..R {
                let row = r0 + r;
                // SAFETY: masks leave out what is past `cols`; addresses are computed without the promise
                // to be in bounds, as a vector past `cols` may start outside.
                unsafe {
                    let out = g.c.wrapping_add(row * g.c_stride + col);
                    let mut x = acc[r][v];
                    if g.accumulate != 0 {
                        x = _mm256_add_ps(x, _mm256_maskload_ps(out, mask));
                    }
                    if !g.bias.is_null() {
                        x = _mm256_add_ps(x, _mm256_maskload_ps(g.bias.wrapping_add(col), mask));
                    }
                    if !g.residual.is_null() {
                        let at = g.residual.wrapping_add(row * g.residual_stride + col);
                        x = _mm256_add_ps(x, _mm256_maskload_ps(at, mask));
                    }
                    if clamps {
                        x = _mm256_min_ps(hi, _mm256_max_ps(lo, x));
                    }
                    _mm256_maskstore_ps(out, mask, x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::{Import, MAX_ROWS_F32};

    #[derive(Clone, Copy, Debug)]
    struct Case {
        rows: usize,
        cols: usize,
        k: usize,
        taps: usize,
        /// Bits: 1 bias, 2 residual, 4 accumulate, 8 clamp.
        options: u32,
        /// Elements between rows of `a`.
        pitch: usize,
        integers: bool,
    }

    /// Small integers make every order of summation exact.
    fn check(
        case: Case,
        kernel: unsafe extern "C" fn(*const GemmF32),
        random: &mut Random,
    ) -> Result<(), String> {
        let Case {
            rows,
            cols,
            k,
            taps,
            options,
            pitch,
            integers,
        } = case;
        let mut value = |_| {
            if integers {
                random.int(-3, 3) as f32
            } else {
                random.int(-1000, 1000) as f32 / 700.0
            }
        };
        let a: Vec<f32> = (0..taps * rows * pitch + 1).map(&mut value).collect();
        let panel = Aligned::new(taps * k * PANEL_F32, &mut value);
        let bias: Vec<f32> = (0..cols).map(&mut value).collect();
        let (c_stride, residual_stride) = (cols + 3, cols + 1);
        let residual: Vec<f32> = (0..rows * residual_stride).map(&mut value).collect();
        let before: Vec<f32> = (0..rows * c_stride).map(&mut value).collect();
        // Rows in reverse, so that the addresses matter.
        let addresses: Vec<*const f32> = (0..taps * rows)
            .rev()
            .map(|i| a[i * pitch..].as_ptr())
            .collect();
        let mut c = before.clone();
        let has = |bit: u32| options & bit != 0;
        let (lo, hi) = if has(8) {
            (0.0, 6.0)
        } else {
            (f32::NEG_INFINITY, f32::INFINITY)
        };
        let block = GemmF32 {
            a: addresses.as_ptr(),
            b: panel.as_ptr(),
            c: c.as_mut_ptr(),
            bias: if has(1) {
                bias.as_ptr()
            } else {
                core::ptr::null()
            },
            residual: if has(2) {
                residual.as_ptr()
            } else {
                core::ptr::null()
            },
            c_stride,
            residual_stride,
            k,
            taps,
            rows: rows as u32,
            cols: cols as u32,
            width: PANEL_F32 as u32,
            lo,
            hi,
            accumulate: has(4) as u32,
        };
        // SAFETY: the block describes the buffers above.
        unsafe { kernel(&block) };
        for r in 0..rows {
            for j in 0..c_stride {
                let i = r * c_stride + j;
                if j >= cols {
                    if c[i].to_bits() != before[i].to_bits() {
                        return Err(format!("{case:?}: wrote past the tile at {r},{j}"));
                    }
                    continue;
                }
                let mut want = if has(4) { before[i] as f64 } else { 0.0 };
                for t in 0..taps {
                    let row = &a[(taps * rows - 1 - (t * rows + r)) * pitch..];
                    for q in 0..k {
                        want += row[q] as f64 * panel[(t * k + q) * PANEL_F32 + j] as f64;
                    }
                }
                want += if has(1) { bias[j] as f64 } else { 0.0 };
                want += if has(2) {
                    residual[r * residual_stride + j] as f64
                } else {
                    0.0
                };
                want = want.max(lo as f64).min(hi as f64);
                let tolerance = if integers {
                    0.0
                } else {
                    4e-6 * ((k * taps) as f64 + 4.0)
                };
                if (c[i] as f64 - want).abs() > tolerance {
                    return Err(format!(
                        "{case:?}: at {r},{j} found {} expected {want}",
                        c[i]
                    ));
                }
            }
        }
        Ok(())
    }

    fn kernel_at(address: *const core::ffi::c_void) -> unsafe extern "C" fn(*const GemmF32) {
        // SAFETY: the table holds a function of this type at `Import::GemmF32`.
        unsafe { core::mem::transmute(address) }
    }

    #[test]
    fn every_shape_equals_the_reference() {
        for_each_level(Import::GemmF32 as usize, |level, address| {
            let mut random = Random(7);
            for rows in 1..=MAX_ROWS_F32 {
                for cols in [1, 7, 8, 9, 15, 16, 17, 24, 31, 32] {
                    for k in [0, 1, 3, 4, 5, 18] {
                        for taps in [1, 2, 9] {
                            for options in 0..16 {
                                let case = Case {
                                    rows,
                                    cols,
                                    k,
                                    taps,
                                    options,
                                    pitch: k + 1,
                                    integers: true,
                                };
                                check(case, kernel_at(address), &mut random)
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
        for_each_level(Import::GemmF32 as usize, |level, address| {
            let mut random = Random(9);
            for (k, pitch) in [
                (300, 1024),
                (256, 1024),
                (33, 2048),
                (127, 131),
                (1000, 1000),
            ] {
                for (rows, integers) in [(9, true), (14, true), (14, false), (5, false), (1, false)]
                {
                    let case = Case {
                        rows,
                        cols: 29,
                        k,
                        taps: 1,
                        options: 3,
                        pitch,
                        integers,
                    };
                    check(case, kernel_at(address), &mut random)
                        .unwrap_or_else(|e| panic!("{level:?}: {e}"));
                }
            }
        });
    }

    #[test]
    fn nan_passes_through_relu_and_through_no_clamp() {
        for_each_level(Import::GemmF32 as usize, |level, address| {
            let panel = Aligned::new(PANEL_F32, |_| 1.0f32);
            for (lo, hi) in [
                (f32::NEG_INFINITY, f32::INFINITY),
                (0.0, f32::INFINITY),
                (0.0, 6.0),
            ] {
                let a = [f32::NAN, -2.0, f32::INFINITY];
                let rows: Vec<*const f32> = (0..3).map(|i| &raw const a[i]).collect();
                let mut c = [9f32; 3 * 20];
                let block = GemmF32 {
                    a: rows.as_ptr(),
                    b: panel.as_ptr(),
                    c: c.as_mut_ptr(),
                    bias: core::ptr::null(),
                    residual: core::ptr::null(),
                    c_stride: 20,
                    residual_stride: 0,
                    k: 1,
                    taps: 1,
                    rows: 3,
                    cols: 20,
                    width: PANEL_F32 as u32,
                    lo,
                    hi,
                    accumulate: 0,
                };
                // SAFETY: the block describes the buffers above.
                unsafe { kernel_at(address)(&block) };
                assert!(c[..20].iter().all(|x| x.is_nan()), "{level:?} {lo} {hi}");
                assert!(
                    c[20..40].iter().all(|&x| x == (-2f32).max(lo)),
                    "{level:?} {lo} {hi}"
                );
                assert!(c[40..].iter().all(|&x| x == hi), "{level:?} {lo} {hi}");
            }
        });
    }
}
