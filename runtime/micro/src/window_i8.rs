//! Windows of codes with weights of codes, as [`window_f32`](crate::window_f32) defines them, by `vpdpbusd`.
//!
//! The bytes of four taps are interleaved, so that each 32-bit lane has the taps of one channel; packing the results undoes the
//! order in which that leaves the channels. Sums are exact there as here, so the results are the same bits.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use lapidary_abi::kernel::{RESULT_CODE, WindowF32};

/// Most groups of four taps.
const MOST: usize = 16;

/// # Safety
/// `args` must satisfy the contract of [`WindowF32`]; the CPU must have AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub unsafe extern "C" fn entry(args: *const WindowF32) {
    // SAFETY: the caller passes a valid block; runs start inside the columns.
    unsafe {
        let g = &*args;
        let coded = g.codes != 0 && !g.b.is_null() && g.result == RESULT_CODE;
        if !coded || !g.residual.is_null() || g.taps > 4 * MOST {
            return crate::window_f32::avx512::entry(args);
        }
        for j in (0..g.cols).step_by(64) {
            run(g, j);
        }
    }
}

/// Up to 64 columns from `j` on, all rows.
///
/// # Safety
/// The block is valid, has codes as operands and result, no residual, at most `4 * MOST` taps, and column `j`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn run(g: &WindowF32, j: usize) {
    let n = (g.cols - j).min(64);
    let mask = if n < 64 { (1u64 << n) - 1 } else { !0 };
    let (rows, groups) = (g.rows as usize, g.taps.div_ceil(4));
    let mut weights = MaybeUninit::<[[__m512i; 4]; MOST]>::uninit();
    let weights = weights.as_mut_ptr().cast::<[__m512i; 4]>();
    let none = _mm512_setzero_si512();
    // SAFETY: masks leave out what is past `cols`; taps that do not exist are not read.
    unsafe {
        for group in 0..groups {
            let mut four = [none; 4];
            for (q, of) in four.iter_mut().enumerate() {
                let t = 4 * group + q;
                if t < g.taps {
                    let at = g.b.cast::<i8>().wrapping_add(t * g.b_stride + j);
                    *of = _mm512_maskz_loadu_epi8(mask, at);
                }
            }
            weights.add(group).write(interleave(four));
        }
        let scale = row(g.scale, 1.0, j, n);
        let bias = row(g.bias, -0.0, j, n);
        let (lo, hi) = (_mm512_set1_ps(g.lo), _mm512_set1_ps(g.hi));
        let zero = _mm512_set1_epi16(g.zero as i16);
        let low = _mm512_set1_epi16(0xFF);
        for r in 0..rows {
            let mut acc = [none; 4];
            for group in 0..groups {
                let mut four = [none; 4];
                let here = (g.taps - 4 * group).min(4);
                for (q, of) in four.iter_mut().enumerate() {
                    if q < here {
                        let from = *g.a.add((4 * group + q) * rows + r);
                        *of = _mm512_maskz_loadu_epi8(mask, from.cast::<i8>().wrapping_add(j));
                    }
                }
                let (data, w) = (interleave(four), &*weights.add(group));
                for v in 0..4 {
                    acc[v] = _mm512_dpbusd_epi32(acc[v], data[v], w[v]);
                }
            }
            let mut codes = [none; 4];
            for v in 0..4 {
                let x = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[v]), scale[v]);
                let x = _mm512_add_ps(x, bias[v]);
                // The second operand is returned if either is NaN.
                let x = _mm512_min_ps(hi, _mm512_max_ps(lo, x));
                codes[v] = _mm512_cvtps_epi32(x);
            }
            let first = _mm512_add_epi16(_mm512_packs_epi32(codes[0], codes[1]), zero);
            let second = _mm512_add_epi16(_mm512_packs_epi32(codes[2], codes[3]), zero);
            let bytes =
                _mm512_packus_epi16(_mm512_and_si512(first, low), _mm512_and_si512(second, low));
            let to = g.c.cast::<i8>().wrapping_add(r * g.c_stride + j);
            _mm512_mask_storeu_epi8(to, mask, bytes);
        }
    }
}

/// Vectors of lanes of four taps: of each 16 channels, vector `v` has the four from `4 * v` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(taps: [__m512i; 4]) -> [__m512i; 4] {
    let low = _mm512_unpacklo_epi8(taps[0], taps[1]);
    let high = _mm512_unpackhi_epi8(taps[0], taps[1]);
    let more_low = _mm512_unpacklo_epi8(taps[2], taps[3]);
    let more_high = _mm512_unpackhi_epi8(taps[2], taps[3]);
    [
        _mm512_unpacklo_epi16(low, more_low),
        _mm512_unpackhi_epi16(low, more_low),
        _mm512_unpacklo_epi16(high, more_high),
        _mm512_unpackhi_epi16(high, more_high),
    ]
}

/// Values of `n` columns from `j` on in the order of [`interleave`]; `other` if there are none.
///
/// # Safety
/// `p` is null or has these columns.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn row(p: *const f32, other: f32, j: usize, n: usize) -> [__m512; 4] {
    if p.is_null() {
        return [_mm512_set1_ps(other); 4];
    }
    let mut of = [_mm512_setzero_ps(); 4];
    for (i, of) in of.iter_mut().enumerate() {
        let mask = ((1u32 << n.saturating_sub(16 * i).min(16)) - 1) as __mmask16;
        // SAFETY: the mask leaves out what is past the columns.
        *of = unsafe { _mm512_maskz_loadu_ps(mask, p.wrapping_add(j + 16 * i)) };
    }
    // A transposition of blocks of four.
    let even = _mm512_shuffle_f32x4::<0x88>(of[0], of[1]);
    let odd = _mm512_shuffle_f32x4::<0xDD>(of[0], of[1]);
    let more_even = _mm512_shuffle_f32x4::<0x88>(of[2], of[3]);
    let more_odd = _mm512_shuffle_f32x4::<0xDD>(of[2], of[3]);
    [
        _mm512_shuffle_f32x4::<0x88>(even, more_even),
        _mm512_shuffle_f32x4::<0x88>(odd, more_odd),
        _mm512_shuffle_f32x4::<0xDD>(even, more_even),
        _mm512_shuffle_f32x4::<0xDD>(odd, more_odd),
    ]
}
