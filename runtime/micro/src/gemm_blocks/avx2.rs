//! `vpmaddubsw` on codes of at most 6 bits, of whose products a few add up in 16 bits without saturation; a code of 8 bits is
//! two of 4.

use core::arch::x86_64::*;

use super::*;

/// How many sums of two products of codes of `bits` bits add up within 16 bits.
const fn short(bits: usize) -> usize {
    i16::MAX as usize / (2 * 128 * low_bits(bits) as usize)
}

/// # Safety
/// `args` must satisfy the contract of [`GemmBlocks`]; the CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe extern "C" fn entry(args: *const GemmBlocks) {
    // SAFETY: the caller passes a valid block.
    unsafe {
        let g = &*args;
        check(g);
        for_width!(rows, g)
    }
}

/// # Safety
/// The block is valid and has codes of `BITS` bits.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<const BITS: usize>(g: &GemmBlocks) {
    let mut done = 0;
    while done < g.rows as usize {
        // SAFETY: each pass is within the rows.
        done += unsafe {
            match g.rows as usize - done {
                1 => tile::<1, BITS>(g, done),
                _ => tile::<2, BITS>(g, done),
            }
        };
    }
}

/// The numbers of the columns from `8 * h` on.
///
/// # Safety
/// There are numbers of 2 or 4 bytes of 16 columns at `at`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn numbers(at: *const u8, bytes: u32, h: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            2 => _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * h).cast())),
            _ => _mm256_loadu_ps(at.add(32 * h).cast()),
        }
    }
}

/// The fields of `bits` bits from bit `at` on of half a line, moved to the bits from `to` on.
#[inline]
#[target_feature(enable = "avx2")]
fn field(line: __m256i, (at, to): (usize, usize), bits: usize) -> __m256i {
    let moved = match at < to {
        true => _mm256_sll_epi16(line, _mm_cvtsi32_si128((to - at) as i32)),
        false => _mm256_srl_epi16(line, _mm_cvtsi32_si128((at - to) as i32)),
    };
    _mm256_and_si256(moved, _mm256_set1_epi8((low_bits(bits) << to) as i8))
}

/// The codes of the steps from `4 * q` on and the columns from `8 * h` on of the unit at `w`; of those of 8 bits one half.
///
/// # Safety
/// There is a unit of codes of `BITS` bits at `w`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn codes<const BITS: usize>(w: *const u8, q: usize, h: usize, half: usize) -> __m256i {
    let codes = const { Codes::of(BITS) };
    // SAFETY: lines of the unit.
    let line = |line: usize| unsafe { _mm256_loadu_si256(w.add(line * LINE + 32 * h).cast()) };
    let (low, at) = codes.low_at(q);
    let own = field(line(low), (at + 4 * half, 0), codes.low.min(4));
    if codes.high == 0 {
        return own;
    }
    let (high, at) = codes.high_at(q);
    _mm256_or_si256(own, field(line(high), (at, codes.low), codes.high))
}

/// `ROWS` rows from `first` on; how many that are. Halves of a line are columns 0..8 and 8..16.
///
/// # Safety
/// The block is valid, has these rows and codes of `BITS` bits.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const ROWS: usize, const BITS: usize>(g: &GemmBlocks, first: usize) -> usize {
    let form = const { Codes::of(BITS) };
    // Of a code of 8 bits halves are multiplied, the high one counts 16 times.
    let halves = if BITS == 8 { 2 } else { 1 };
    let (groups, most) = (form.unit / 4, short(BITS / halves));
    let run = most.min(groups);
    let pairs = _mm256_set1_epi16(1);
    // SAFETY: the stream and the rows advance by exactly the stated bytes.
    unsafe {
        let mut a: [*const u8; ROWS] = core::array::from_fn(|r| g.a.add((first + r) * g.a_stride));
        let mut w = g.w;
        let mut out = [[_mm256_setzero_ps(); 2]; ROWS];
        for _ in 0..g.blocks {
            let scales = w;
            w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
            let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
            if g.zeros == ZEROS_MINIMUMS {
                for r in 0..ROWS {
                    let scale = a[r].add(4 + g.block).cast::<f32>().read_unaligned();
                    let total = a[r].cast::<i32>().read_unaligned() as f32 * scale;
                    for h in 0..2 {
                        let minimums = numbers(w, g.scale_bytes, h);
                        out[r][h] = _mm256_fmadd_ps(_mm256_set1_ps(total), minimums, out[r][h]);
                    }
                }
                w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
            } else {
                for r in 0..ROWS {
                    sums[r] = [_mm256_set1_epi32(a[r].cast::<i32>().read_unaligned()); 2];
                }
            }
            if g.zeros == ZEROS_CODES {
                for h in 0..2 {
                    let zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(w.add(8 * h).cast()));
                    for r in 0..ROWS {
                        sums[r][h] = _mm256_mullo_epi32(sums[r][h], zeros);
                    }
                }
                w = w.add(PANEL_BLOCKS);
            }
            a = a.map(|a| a.add(4));
            let mut left = g.block / form.unit;
            while left > 0 {
                // Several units, or a few steps of one.
                let n = left.min((most / groups).max(1));
                for from in (0..groups).step_by(run) {
                    let mut short = [[[_mm256_setzero_si256(); 2]; 2]; ROWS];
                    for unit in 0..n {
                        let w = w.add(unit * form.lines * LINE);
                        for q in from..from + run {
                            for (h, half) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                                if half == halves {
                                    continue;
                                }
                                let codes = codes::<BITS>(w, q, h, half);
                                for r in 0..ROWS {
                                    let act = a[r].add(unit * form.unit + 4 * q);
                                    let act = _mm256_set1_epi32(act.cast::<i32>().read_unaligned());
                                    let products = _mm256_maddubs_epi16(codes, act);
                                    short[r][half][h] =
                                        _mm256_add_epi16(short[r][half][h], products);
                                }
                            }
                        }
                    }
                    for r in 0..ROWS {
                        for h in 0..2 {
                            let sum = _mm256_madd_epi16(short[r][0][h], pairs);
                            sums[r][h] = _mm256_add_epi32(sums[r][h], sum);
                            if halves == 2 {
                                let high = _mm256_madd_epi16(short[r][1][h], pairs);
                                let high = _mm256_slli_epi32::<4>(high);
                                sums[r][h] = _mm256_add_epi32(sums[r][h], high);
                            }
                        }
                    }
                }
                w = w.add(n * form.lines * LINE);
                a = a.map(|a| a.add(n * form.unit));
                left -= n;
            }
            for h in 0..2 {
                let scale = numbers(scales, g.scale_bytes, h);
                for r in 0..ROWS {
                    let act_scale = _mm256_set1_ps(a[r].cast::<f32>().read_unaligned());
                    let scale = _mm256_mul_ps(scale, act_scale);
                    let sum = _mm256_cvtepi32_ps(sums[r][h]);
                    out[r][h] = _mm256_fmadd_ps(sum, scale, out[r][h]);
                }
            }
            a = a.map(|a| a.add(4));
        }
        let cols = g.cols as usize;
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let (lo, hi) = (_mm256_set1_ps(g.lo), _mm256_set1_ps(g.hi));
        for h in 0..2 {
            let there = _mm256_set1_epi32(cols as i32 - 8 * h as i32);
            let mask = _mm256_cmpgt_epi32(there, lanes);
            let bias = if g.bias.is_null() {
                _mm256_setzero_ps()
            } else {
                _mm256_maskload_ps(g.bias.wrapping_add(8 * h), mask)
            };
            for r in 0..ROWS {
                // The bound is the first operand: what is no number stays none.
                let x = _mm256_max_ps(lo, _mm256_add_ps(out[r][h], bias));
                let x = _mm256_min_ps(hi, x);
                let to = g.c.wrapping_add((first + r) * g.c_stride + 8 * h);
                _mm256_maskstore_ps(to, mask, x);
            }
        }
    }
    ROWS
}
