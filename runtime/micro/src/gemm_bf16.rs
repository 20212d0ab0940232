//! One tile of a matrix product or convolution whose weights are `bf16`: as [`super::gemm_f32`], with what is multiplied rounded.
//!
//! `vdpbf16ps` multiplies two pairs for each sum, twice as many as a multiply-add of `f32` in the same time. Rows are rounded in
//! pieces on their way into the first-level cache, by each call that reads them, and no other kernel knows of it. It takes a
//! tenth of the time of products with 32 columns, so a panel may have more, for which rows are rounded once.

use lapidary_abi::kernel::{GemmBf16, MAX_WIDTH_BF16, PANEL_F32};

use crate::gemm_f32::portable_finish;

/// The nearest number of `bf16`, of two the one whose last bit is 0.
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return x;
    }
    let half = 0x7FFF + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(half) & 0xFFFF_0000)
}

/// Plain Rust for CPUs without such products: a column of sums at a time.
///
/// # Safety
/// `args` must satisfy the contract of [`GemmBf16`].
pub unsafe extern "C" fn portable(args: *const GemmBf16) {
    // SAFETY: the caller passes a valid block: `k` elements per row, whole panels, and `cols` columns of what is added.
    unsafe {
        let g = &*args;
        let width = g.width as usize;
        for row in 0..g.rows as usize {
            let mut sums = [0f32; MAX_WIDTH_BF16];
            for t in 0..g.taps {
                let a = *g.a.add(t * g.rows as usize + row);
                let panel = g.b.add(t * g.k.div_ceil(2) * 2 * width);
                for k in 0..g.k {
                    let x = rounded(*a.add(k));
                    let pairs = panel.add(k / 2 * 2 * width + k % 2);
                    for (j, sum) in sums.iter_mut().enumerate().take(width) {
                        let w = f32::from_bits(u32::from(*pairs.add(2 * j)) << 16);
                        *sum += x * w;
                    }
                }
            }
            for (col, &sum) in sums.iter().enumerate().take(g.cols as usize) {
                portable_finish(g, sum, row, col);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! 512-bit vectors: the whole tile at once, one instance per number of rows.

    use core::arch::x86_64::*;
    use core::mem::MaybeUninit;

    use super::*;
    use crate::gemm_f32::avx512::{Row, begin, end, results};

    /// Elements of `k` that are rounded at a time: with their panel, most of a first-level cache of 32 KiB.
    const PIECE: usize = 256;
    /// Elements between rounded rows: one cache line more, so that they do not collide.
    const PITCH: usize = PIECE + 32;
    /// Bytes ahead of a panel that few rows wait for, as in [`crate::gemm_f32`].
    const AHEAD: usize = 2048;

    /// # Safety
    /// `args` must satisfy the contract of [`GemmBf16`]; the CPU must have AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe extern "C" fn entry(args: *const GemmBf16) {
        // SAFETY: the caller passes a valid block; the instance is the one for its rows.
        unsafe {
            let g = &*args;
            TILES[g.rows as usize - 1](g)
        }
    }

    /// Rounded rows; pairs are read as one number.
    #[repr(align(64))]
    struct Piece<const R: usize>([[u16; PITCH]; R]);

    type Tile = unsafe fn(&GemmBf16);

    /// Instances by rows; tiles with few rows keep several partial sums.
    #[rustfmt::skip]
    static TILES: [Tile; 14] = [
        tile::<1, 4>, tile::<2, 2>, tile::<3, 2>, tile::<4, 1>, tile::<5, 1>, tile::<6, 1>, tile::<7, 1>,
        tile::<8, 1>, tile::<9, 1>, tile::<10, 1>, tile::<11, 1>, tile::<12, 1>, tile::<13, 1>, tile::<14, 1>,
    ];

    /// `R` rows, piece by piece of `k`, of each the columns of 32 at a time, with `U` (at most 2, or 4) partial sums. What is the same
    /// for any number of rows is not part of it: there are many of these.
    ///
    /// # Safety
    /// The block is valid, `rows == R`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn tile<const R: usize, const U: usize>(g: &GemmBf16) {
        let mut piece = MaybeUninit::<Piece<R>>::uninit();
        let piece = piece.as_mut_ptr().cast::<u16>();
        let mut sums = [[[_mm512_setzero_ps(); 2]; R]; MAX_WIDTH_BF16 / PANEL_F32];
        let (mut b, line) = (g.b, 2 * g.width as usize);
        let groups = (g.cols as usize).div_ceil(PANEL_F32);
        for t in 0..g.taps {
            let mut k = 0;
            while k < g.k {
                let n = PIECE.min(g.k - k);
                let pairs = n.div_ceil(2);
                // SAFETY: `a` holds `taps * rows` addresses; each row has `k` elements, the panel a line for each pair of them.
                unsafe {
                    round_rows(core::slice::from_raw_parts(g.a.add(t * R), R), k, piece, n);
                    for (group, sums) in sums.iter_mut().enumerate().take(groups) {
                        let panel = (b.add(group * 2 * PANEL_F32), line);
                        match g.cols as usize - group * PANEL_F32 > 16 {
                            true => multiply::<R, 2, U>(sums, piece.cast(), panel, pairs),
                            false => multiply::<R, 1, U>(sums, piece.cast(), panel, pairs),
                        }
                    }
                    b = b.add(pairs * line);
                }
                k += n;
            }
        }
        for (group, sums) in sums.iter().enumerate().take(groups) {
            // SAFETY: the block is valid and has the group.
            unsafe { results(&part(g, group), sums) }
        }
    }

    /// The block of a group of columns.
    ///
    /// # Safety
    /// The block is valid and has the group.
    unsafe fn part(g: &GemmBf16, group: usize) -> GemmBf16 {
        let at = group * PANEL_F32;
        // SAFETY: what is not null has elements for all columns.
        unsafe {
            GemmBf16 {
                c: g.c.add(at),
                bias: if g.bias.is_null() {
                    g.bias
                } else {
                    g.bias.add(at)
                },
                residual: match g.residual.is_null() {
                    true => g.residual,
                    false => g.residual.add(at),
                },
                cols: (g.cols - at as u32).min(PANEL_F32 as u32),
                ..*g
            }
        }
    }

    /// Rounds `n` elements of each row from `k` on.
    ///
    /// # Safety
    /// They can be read; `to` has [`PITCH`] elements for each row.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn round_rows(rows: &[*const f32], k: usize, to: *mut u16, n: usize) {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: as promised to this function.
            unsafe { round(row.add(k), to.add(r * PITCH), n) }
        }
    }

    /// Rounds `n` elements, 32 at a time; what is past them is zero.
    ///
    /// # Safety
    /// `n` elements can be read, `n` rounded up to 32 written; `to` is not read by others.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn round(from: *const f32, to: *mut u16, n: usize) {
        let mut i = 0;
        // SAFETY: reads past `n` are masked off.
        unsafe {
            while i + 32 <= n {
                let (low, high) = (
                    _mm512_loadu_ps(from.add(i)),
                    _mm512_loadu_ps(from.add(i + 16)),
                );
                store(to.add(i), low, high);
                i += 32;
            }
            if i < n {
                let mask = (1u32 << (n - i)) - 1;
                let low = _mm512_maskz_loadu_ps(mask as u16, from.add(i));
                let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(i + 16));
                store(to.add(i), low, high);
            }
        }
    }

    /// # Safety
    /// 32 elements can be written.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn store(to: *mut u16, low: __m512, high: __m512) {
        // SAFETY: as promised to this function; both types are 512 bits.
        unsafe {
            let both: __m512i = core::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.cast(), both);
        }
    }

    /// Adds the products of so many pairs to the sums of `V` vectors.
    ///
    /// # Safety
    /// Rows are `PITCH / 2` pairs apart and the panel's lines `step` elements; there are `pairs` of both.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn multiply<const R: usize, const V: usize, const U: usize>(
        sums: &mut [Row; R],
        rows: *const i32,
        (b, step): (*const u16, usize),
        pairs: usize,
    ) {
        let mut acc = begin::<R, V, U>(sums);
        let mut i = 0;
        // SAFETY: `i + u < pairs` throughout.
        unsafe {
            // Spelt out: a loop here is unrolled too late to keep the sums in registers.
            if U == 4 {
                while i + 4 <= pairs {
                    line(&mut acc[0], rows, (b, step), i);
                    line(&mut acc[1 % U], rows, (b, step), i + 1);
                    line(&mut acc[2 % U], rows, (b, step), i + 2);
                    line(&mut acc[3 % U], rows, (b, step), i + 3);
                    i += 4;
                }
            } else {
                while i + 2 <= pairs {
                    line(&mut acc[0], rows, (b, step), i);
                    line(&mut acc[1 % U], rows, (b, step), i + 1);
                    i += 2;
                }
            }
            while i < pairs {
                line(&mut acc[0], rows, (b, step), i);
                i += 1;
            }
        }
        end(&acc, sums);
    }

    /// Adds the products of one pair of each row.
    ///
    /// # Safety
    /// As [`multiply`], for pair `i`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn line<const R: usize, const V: usize>(
        acc: &mut [[__m512; V]; R],
        rows: *const i32,
        (b, step): (*const u16, usize),
        i: usize,
    ) {
        // SAFETY: pair `i` of each row and line `i` of the panel exist.
        unsafe {
            let mut w = [_mm512_setzero_si512(); V];
            for v in 0..V {
                let at = b.add(i * step + v * 32);
                w[v] = _mm512_load_si512(at.cast());
                if R <= 2 {
                    _mm_prefetch::<_MM_HINT_T1>(at.cast::<i8>().wrapping_add(AHEAD));
                }
            }
            for r in 0..R {
                let a: __m512bh =
                    core::mem::transmute(_mm512_set1_epi32(*rows.add(r * (PITCH / 2) + i)));
                for v in 0..V {
                    let w: __m512bh = core::mem::transmute(w[v]);
                    acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, w);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use core::ptr::null;
    use lapidary_abi::kernel::{Import, MAX_ROWS_F32};

    /// Small integers make every order of summation exact, and what is rounded is known: 257 is 256, 259 is 260.
    #[test]
    fn every_shape_equals_the_reference() {
        for_each_level(Import::GemmBf16 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::GemmBf16`.
            let kernel: unsafe extern "C" fn(*const GemmBf16) =
                unsafe { core::mem::transmute(address) };
            let mut random = Random(11);
            for rows in 1..=MAX_ROWS_F32 {
                for (cols, k) in [
                    (1, 1),
                    (15, 2),
                    (16, 31),
                    (17, 33),
                    (31, 128),
                    (32, 130),
                    (32, 300),
                    (5, 0),
                ] {
                    for (taps, options) in [(1, 0), (2, 15), (9, 6), (1, 9)] {
                        let pitch = k + 1;
                        let a: Vec<f32> = (0..taps * rows * pitch)
                            .map(|_| [1.0, -2.0, 257.0, -259.0, 3.0][random.int(0, 4) as usize])
                            .collect();
                        let lines = k.div_ceil(2).max(1);
                        let width = usize::next_multiple_of(cols, PANEL_F32);
                        let weight =
                            |t: usize, q: usize, j: usize| ((t + 3 * q + 5 * j) % 7) as f32 - 3.0;
                        let panel = Aligned::new(taps * lines * 2 * width, |i| {
                            let (line, at) = (i / (2 * width), i % (2 * width));
                            let (t, q) = (line / lines, 2 * (line % lines) + at % 2);
                            match q < k {
                                true => (weight(t, q, at / 2).to_bits() >> 16) as u16,
                                false => 0,
                            }
                        });
                        // Rows in reverse, so that the addresses matter.
                        let addresses: Vec<*const f32> = (0..taps * rows)
                            .rev()
                            .map(|i| a[i * pitch..].as_ptr())
                            .collect();
                        let bias: Vec<f32> = (0..cols).map(|j| j as f32).collect();
                        let before: Vec<f32> =
                            (0..rows * (cols + 3)).map(|i| (i % 5) as f32).collect();
                        let residual = before.clone();
                        let mut c = before.clone();
                        let has = |bit: u32| options & bit != 0;
                        let block = GemmBf16 {
                            a: addresses.as_ptr(),
                            b: panel.as_ptr(),
                            c: c.as_mut_ptr(),
                            bias: if has(1) { bias.as_ptr() } else { null() },
                            residual: if has(2) { residual.as_ptr() } else { null() },
                            c_stride: cols + 3,
                            residual_stride: cols + 3,
                            k,
                            taps,
                            rows: rows as u32,
                            cols: cols as u32,
                            width: width as u32,
                            lo: if has(8) { -50.0 } else { f32::NEG_INFINITY },
                            hi: if has(8) { 900.0 } else { f32::INFINITY },
                            accumulate: u32::from(has(4)),
                        };
                        // SAFETY: the block describes the buffers above.
                        unsafe { kernel(&block) };
                        for (i, (&got, &was)) in c.iter().zip(&before).enumerate() {
                            let (r, j) = (i / (cols + 3), i % (cols + 3));
                            if j >= cols {
                                assert_eq!(got, was, "{level:?}: wrote past {rows}x{cols}");
                                continue;
                            }
                            let mut want = if has(4) { was } else { 0.0 };
                            for t in 0..taps {
                                let row = &a[(taps * rows - 1 - (t * rows + r)) * pitch..];
                                for q in 0..k {
                                    want += rounded(row[q]) * weight(t, q, j);
                                }
                            }
                            want += if has(1) { bias[j] } else { 0.0 };
                            want += if has(2) { was } else { 0.0 };
                            want = want.max(block.lo).min(block.hi);
                            assert_eq!(
                                got, want,
                                "{level:?}: {rows}x{cols}, k {k}, taps {taps}, at {r},{j}"
                            );
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn rounding_is_to_the_nearest_and_even() {
        for (x, want) in [
            (257.0, 256.0),
            (259.0, 260.0),
            (-259.0, -260.0),
            (0.1, 0.100097656),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (-0.0, -0.0),
        ] {
            assert_eq!(rounded(x).to_bits(), f32::to_bits(want), "{x}");
        }
        assert!(rounded(f32::NAN).is_nan());
    }
}
