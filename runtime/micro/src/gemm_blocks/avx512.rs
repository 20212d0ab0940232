//! `vpdpbusd`: lane *j* of a vector is column *j*, activations are broadcast from memory.

use core::arch::x86_64::*;

use super::*;

/// # Safety
/// `args` must satisfy the contract of [`GemmBlocks`]; the CPU must have AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe extern "C" fn entry(args: *const GemmBlocks) {
    // SAFETY: the caller passes a valid block.
    unsafe {
        let g = &*args;
        check(g);
        for_width!(rows, g)
    }
}

/// All rows, in as few passes over the panel as there are instances for.
///
/// # Safety
/// The block is valid and has codes of `BITS` bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn rows<const BITS: usize>(g: &GemmBlocks) {
    let (mut done, rows) = (0, g.rows as usize);
    while done < rows {
        // SAFETY: each pass is within the rows.
        done += unsafe {
            match rows - done {
                1 => tile::<1, BITS>(g, done),
                2 | 3 => tile::<2, BITS>(g, done),
                4..8 => tile::<4, BITS>(g, done),
                8..12 => tile::<8, BITS>(g, done),
                _ => tile::<12, BITS>(g, done),
            }
        };
    }
}

/// Rows whose addresses are one pointer and a multiple of the stride: what an address can hold.
const TRIPLE: usize = 3;

/// Bytes ahead of a stream that few rows wait for: the CPU's own prefetching stops at each page.
const AHEAD: usize = 2048;
/// Of a stream that one row waits for, into the second cache: more lines may be on their way there than to the first.
const AHEAD_ALONE: usize = 1024;

/// The numbers of the columns.
///
/// # Safety
/// There are numbers of 2 or 4 bytes at `at`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn numbers(at: *const u8, bytes: u32) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            2 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
            _ => _mm512_loadu_ps(at.cast()),
        }
    }
}

/// How far to shift.
#[inline]
#[target_feature(enable = "sse2")]
fn by(bits: usize) -> __m128i {
    _mm_cvtsi32_si128(bits as i32)
}

/// The codes of the steps from `4 * q` on of the unit at `w`, which are of two parts.
///
/// # Safety
/// There is a unit of codes of `BITS` bits at `w`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn joined<const BITS: usize>(w: *const u8, q: usize) -> __m512i {
    let codes = const { Codes::of(BITS) };
    let ((line, at), (high_line, high_at)) = (codes.low_at(q), codes.high_at(q));
    // SAFETY: lines of the unit.
    let (low, high) = unsafe {
        (
            _mm512_loadu_si512(w.add(line * LINE).cast()),
            _mm512_loadu_si512(w.add(high_line * LINE).cast()),
        )
    };
    let low = _mm512_srl_epi16(low, by(at));
    let high = match high_at < codes.low {
        true => _mm512_sll_epi16(high, by(codes.low - high_at)),
        false => _mm512_srl_epi16(high, by(high_at - codes.low)),
    };
    // Of the first where the mask is 1, else of the second.
    let mask = _mm512_set1_epi8(low_bits(codes.low) as i8);
    let both = _mm512_ternarylogic_epi32::<0xE4>(low, high, mask);
    _mm512_and_si512(both, _mm512_set1_epi8(low_bits(BITS) as i8))
}

/// `ROWS` rows from `first` on; how many that are.
///
/// # Safety
/// The block is valid, has these rows and codes of `BITS` bits.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const ROWS: usize, const BITS: usize>(g: &GemmBlocks, first: usize) -> usize {
    let codes = const { Codes::of(BITS) };
    let low = _mm512_set1_epi8(low_bits(codes.low) as i8);
    // With registers to spare, fields are left where they are, and their sums are shifted at the end.
    let whole = codes.high == 0;
    let planes = 8 / BITS;
    let apart = whole && ROWS * planes <= 8;
    let stride = g.a_stride;
    // SAFETY: the stream and the rows advance by exactly the stated bytes.
    unsafe {
        let mut a: [*const u8; 4] =
            core::array::from_fn(|i| g.a.wrapping_add((first + TRIPLE * i) * stride));
        let at = |a: &[*const u8; 4], r: usize| a[r / TRIPLE].wrapping_add(r % TRIPLE * stride);
        let mut w = g.w;
        let mut out = [_mm512_setzero_ps(); ROWS];
        for _ in 0..g.blocks {
            let scales = w;
            w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
            let mut sums = [[_mm512_setzero_si512(); 4]; ROWS];
            if g.zeros == ZEROS_MINIMUMS {
                let minimums = numbers(w, g.scale_bytes);
                w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
                for r in 0..ROWS {
                    let a = at(&a, r);
                    let scale = a.wrapping_add(4 + g.block).cast::<f32>().read_unaligned();
                    let total = a.cast::<i32>().read_unaligned() as f32 * scale;
                    out[r] = _mm512_fmadd_ps(_mm512_set1_ps(total), minimums, out[r]);
                }
            } else {
                for r in 0..ROWS {
                    sums[r][0] = _mm512_set1_epi32(at(&a, r).cast::<i32>().read_unaligned());
                }
            }
            if g.zeros == ZEROS_CODES {
                let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(w.cast()));
                for r in 0..ROWS {
                    sums[r][0] = _mm512_mullo_epi32(sums[r][0], zeros);
                }
                w = w.add(PANEL_BLOCKS);
            }
            a = a.map(|a| a.wrapping_add(4));
            for _ in 0..g.block / codes.unit {
                for line in 0..codes.lines {
                    let w = w.wrapping_add(line * LINE);
                    if ROWS == 1 {
                        _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(AHEAD_ALONE).cast());
                    } else if ROWS <= 8 {
                        _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                    }
                }
                for q in 0..codes.unit / 4 {
                    let of_four = if apart {
                        let line = _mm512_loadu_si512(w.cast());
                        _mm512_and_si512(line, _mm512_sll_epi16(low, by(BITS * q)))
                    } else if whole {
                        let line = _mm512_loadu_si512(w.cast());
                        _mm512_and_si512(_mm512_srl_epi16(line, by(BITS * q)), low)
                    } else {
                        joined::<BITS>(w, q)
                    };
                    let to = if apart { q } else { 0 };
                    for r in 0..ROWS {
                        let act = at(&a, r).wrapping_add(4 * q).cast::<i32>().read_unaligned();
                        sums[r][to] =
                            _mm512_dpbusd_epi32(sums[r][to], of_four, _mm512_set1_epi32(act));
                    }
                }
                w = w.add(codes.lines * LINE);
                a = a.map(|a| a.wrapping_add(codes.unit));
            }
            let scale = numbers(scales, g.scale_bytes);
            for r in 0..ROWS {
                let mut sum = sums[r][0];
                for p in 1..if apart { planes } else { 1 } {
                    let more = _mm512_sra_epi32(sums[r][p], by(BITS * p));
                    sum = _mm512_add_epi32(sum, more);
                }
                let act_scale = _mm512_set1_ps(at(&a, r).cast::<f32>().read_unaligned());
                let scale = _mm512_mul_ps(scale, act_scale);
                out[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, out[r]);
            }
            a = a.map(|a| a.wrapping_add(4));
        }
        let cols = ((1u32 << g.cols) - 1) as u16;
        let bias = if g.bias.is_null() {
            _mm512_setzero_ps()
        } else {
            _mm512_maskz_loadu_ps(cols, g.bias)
        };
        let (lo, hi) = (_mm512_set1_ps(g.lo), _mm512_set1_ps(g.hi));
        for r in 0..ROWS {
            // The bound is the first operand: what is no number stays none.
            let x = _mm512_max_ps(lo, _mm512_add_ps(out[r], bias));
            let x = _mm512_min_ps(hi, x);
            _mm512_mask_storeu_ps(g.c.add((first + r) * g.c_stride), cols, x);
        }
    }
    ROWS
}
