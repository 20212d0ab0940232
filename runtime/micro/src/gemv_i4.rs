//! One row of int8 activations times 4-bit weights in blocks of 16 interleaved rows: token generation.
//!
//! Bound by memory, so the layout is one forward stream: for each group 16 scales (f16), then the codes;
//! each 64 bytes hold 16 rows by 8 columns (see [`GemvI4`] for the picture). Codes are unsigned; the zero
//! point of 8 is taken off as `8 * sum of the group's activations`. Integer sums of a group are exact;
//! groups are added up in f32 in their order.

use half::f16;
use lapidary_abi::kernel::{BLOCK_ROWS_I4, GemvI4};

/// Bytes of a group's scales.
const SCALES: usize = BLOCK_ROWS_I4 * 2;
/// Bytes that hold 8 columns of 16 rows.
const CHUNK: usize = 64;
/// Longest group whose sums (of codes left in the high nibble, too) fit 32 bits.
const MAX_GROUP: usize = 1 << 16;

/// Plain Rust.
///
/// # Safety
/// `args` must satisfy the contract of [`GemvI4`].
pub unsafe extern "C" fn portable(args: *const GemvI4) {
    // SAFETY: the caller passes a valid block; the stream advances by exactly the stated bytes.
    unsafe {
        let g = &*args;
        assert!(g.group <= MAX_GROUP, "an int4 group of {} columns", g.group);
        let mut stream = g.weights;
        for block in 0..g.n_blocks {
            let mut out = [0f32; BLOCK_ROWS_I4];
            for group in 0..g.groups {
                let scales = stream.cast::<[[u8; 2]; BLOCK_ROWS_I4]>().read();
                stream = stream.add(SCALES);
                let mut sums = [-8 * *g.act_sums.add(group); BLOCK_ROWS_I4];
                for i in 0..g.group / 8 {
                    let codes = &*stream.cast::<[[u8; 4]; BLOCK_ROWS_I4]>();
                    let act = &*g.act.add(group * g.group + 8 * i).cast::<[i8; 8]>();
                    for (sum, codes) in sums.iter_mut().zip(codes) {
                        for q in 0..4 {
                            *sum += (codes[q] & 15) as i32 * act[q] as i32
                                + (codes[q] >> 4) as i32 * act[q + 4] as i32;
                        }
                    }
                    stream = stream.add(CHUNK);
                }
                let act_scale = *g.act_scales.add(group);
                for r in 0..BLOCK_ROWS_I4 {
                    out[r] += sums[r] as f32 * (f16::from_le_bytes(scales[r]).to_f32() * act_scale);
                }
            }
            g.out
                .add(block * BLOCK_ROWS_I4)
                .cast::<[f32; BLOCK_ROWS_I4]>()
                .write(out);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! `vpdpbusd`: lane *r* of a vector is row *r*. High nibbles are left in place and their sum shifted.

    use core::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// `args` must satisfy the contract of [`GemvI4`]; the CPU must have AVX-512 F and VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe extern "C" fn entry(args: *const GemvI4) {
        // SAFETY: the caller passes a valid block.
        unsafe {
            let g = &*args;
            assert!(g.group <= MAX_GROUP, "an int4 group of {} columns", g.group);
            // Constant lengths let the loops of the usual groups be unrolled.
            match g.group {
                32 => blocks::<32>(g),
                64 => blocks::<64>(g),
                128 => blocks::<128>(g),
                _ => blocks::<0>(g),
            }
        }
    }

    /// All blocks, for a group length known now, or 0.
    ///
    /// # Safety
    /// The block is valid and `GROUP` is 0 or its group length.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn blocks<const GROUP: usize>(g: &GemvI4) {
        let group_len = if GROUP == 0 { g.group } else { GROUP };
        let (low, high) = (_mm512_set1_epi8(0x0F), _mm512_set1_epi8(0xF0u8 as i8));
        let mut stream = g.weights;
        for block in 0..g.n_blocks {
            let mut out = _mm512_setzero_ps();
            let mut act = g.act;
            for group in 0..g.groups {
                // SAFETY: the stream advances by exactly the stated bytes, the activations by the group.
                unsafe {
                    let scales = _mm512_cvtph_ps(_mm256_loadu_si256(stream.cast()));
                    stream = stream.add(SCALES);
                    let mut sum_low = _mm512_set1_epi32(-8 * *g.act_sums.add(group));
                    let mut sum_high = _mm512_setzero_si512();
                    for _ in 0..group_len / 8 {
                        let w = _mm512_loadu_si512(stream.cast());
                        let a_low = _mm512_set1_epi32(act.cast::<i32>().read_unaligned());
                        let a_high = _mm512_set1_epi32(act.add(4).cast::<i32>().read_unaligned());
                        sum_low = _mm512_dpbusd_epi32(sum_low, _mm512_and_si512(w, low), a_low);
                        sum_high = _mm512_dpbusd_epi32(sum_high, _mm512_and_si512(w, high), a_high);
                        stream = stream.add(CHUNK);
                        act = act.add(8);
                    }
                    let sum = _mm512_add_epi32(sum_low, _mm512_srai_epi32::<4>(sum_high));
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*g.act_scales.add(group)));
                    out = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, out);
                }
            }
            // SAFETY: `n_blocks * 16` results.
            unsafe { _mm512_storeu_ps(g.out.add(block * BLOCK_ROWS_I4), out) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! `vpmaddubsw` on nibbles: two products are at most 3,840, so 32 columns fit 16 bits exactly.

    use core::arch::x86_64::*;

    use super::*;

    /// Columns whose sums are kept in 16 bits: `32 * 15 * 128 / 2 = 30,720`.
    const SHORT: usize = 32;

    /// # Safety
    /// `args` must satisfy the contract of [`GemvI4`]; the CPU must have AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe extern "C" fn entry(args: *const GemvI4) {
        // SAFETY: the caller passes a valid block; the stream advances by exactly the stated bytes.
        unsafe {
            let g = &*args;
            assert!(g.group <= MAX_GROUP, "an int4 group of {} columns", g.group);
            let ones = _mm256_set1_epi16(1);
            let mut stream = g.weights;
            for block in 0..g.n_blocks {
                let mut out = [_mm256_setzero_ps(); 2];
                let mut act = g.act;
                for group in 0..g.groups {
                    let scales = stream;
                    stream = stream.add(SCALES);
                    let mut sums = [_mm256_set1_epi32(-8 * *g.act_sums.add(group)); 2];
                    let mut left = g.group;
                    while left > 0 {
                        let n = left.min(SHORT);
                        let short = short_sums(stream, act, n);
                        for h in 0..2 {
                            sums[h] = _mm256_add_epi32(sums[h], _mm256_madd_epi16(short[h], ones));
                        }
                        stream = stream.add(n * 8);
                        act = act.add(n);
                        left -= n;
                    }
                    let act_scale = _mm256_set1_ps(*g.act_scales.add(group));
                    for h in 0..2 {
                        let scale = _mm256_mul_ps(
                            _mm256_cvtph_ps(_mm_loadu_si128(scales.add(16 * h).cast())),
                            act_scale,
                        );
                        out[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[h]), scale, out[h]);
                    }
                }
                for h in 0..2 {
                    _mm256_storeu_ps(g.out.add(block * BLOCK_ROWS_I4 + 8 * h), out[h]);
                }
            }
        }
    }

    /// Sums of `n` (at most [`SHORT`]) columns, two 16-bit parts per row.
    ///
    /// # Safety
    /// `n * 8` bytes of codes and `n` activations exist.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn short_sums(codes: *const u8, act: *const i8, n: usize) -> [__m256i; 2] {
        let low = _mm256_set1_epi8(0x0F);
        let mut short = [_mm256_setzero_si256(); 2];
        for i in 0..n / 8 {
            // SAFETY: as promised to this function.
            unsafe {
                let a_low = _mm256_set1_epi32(act.add(8 * i).cast::<i32>().read_unaligned());
                let a_high = _mm256_set1_epi32(act.add(8 * i + 4).cast::<i32>().read_unaligned());
                for h in 0..2 {
                    let w = _mm256_loadu_si256(codes.add(i * CHUNK + 32 * h).cast());
                    let w_high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                    let products_low = _mm256_maddubs_epi16(_mm256_and_si256(w, low), a_low);
                    let products_high = _mm256_maddubs_epi16(w_high, a_high);
                    short[h] =
                        _mm256_add_epi16(short[h], _mm256_add_epi16(products_low, products_high));
                }
            }
        }
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::Import;

    /// `code(row, column)` and `scale(row, group)` in the stored layout.
    fn pack(
        rows: usize,
        group: usize,
        groups: usize,
        code: impl Fn(usize, usize) -> u8,
        scale: impl Fn(usize, usize) -> f16,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in 0..rows / BLOCK_ROWS_I4 {
            let row = |r: usize| block * BLOCK_ROWS_I4 + r;
            for g in 0..groups {
                (0..BLOCK_ROWS_I4).for_each(|r| bytes.extend(scale(row(r), g).to_le_bytes()));
                for k in (g * group..(g + 1) * group).step_by(8) {
                    for r in 0..BLOCK_ROWS_I4 {
                        bytes
                            .extend((k..k + 4).map(|k| code(row(r), k) | code(row(r), k + 4) << 4));
                    }
                }
            }
        }
        bytes
    }

    #[test]
    fn every_group_length_equals_the_reference() {
        for_each_level(Import::GemvI4 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::GemvI4`.
            let kernel: unsafe extern "C" fn(*const GemvI4) =
                unsafe { core::mem::transmute(address) };
            let mut random = Random(3);
            for group in [8, 16, 24, 32, 40, 64, 128, 136, 256] {
                for (groups, n_blocks) in [(1, 1), (3, 2), (5, 3)] {
                    for extremes in [false, true] {
                        let (rows, cols) = (n_blocks * BLOCK_ROWS_I4, group * groups);
                        let codes: Vec<u8> = (0..rows * cols)
                            .map(|i| {
                                if extremes {
                                    15 * (i / cols % 2) as u8
                                } else {
                                    random.int(0, 15) as u8
                                }
                            })
                            .collect();
                        let scales: Vec<f16> = (0..rows * groups)
                            .map(|_| f16::from_f32(random.int(-400, 400) as f32 / 256.0))
                            .collect();
                        let act: Vec<i8> = (0..cols)
                            .map(|_| {
                                if extremes {
                                    -128
                                } else {
                                    random.int(-128, 127) as i8
                                }
                            })
                            .collect();
                        let act_scales: Vec<f32> = (0..groups)
                            .map(|_| random.int(1, 100) as f32 / 50.0)
                            .collect();
                        let act_sums: Vec<i32> = act
                            .chunks(group)
                            .map(|c| c.iter().map(|&x| x as i32).sum())
                            .collect();
                        let weights = pack(
                            rows,
                            group,
                            groups,
                            |r, k| codes[r * cols + k],
                            |r, g| scales[r * groups + g],
                        );
                        let mut out = vec![f32::NAN; rows + 1];
                        let block = GemvI4 {
                            weights: weights.as_ptr(),
                            act: act.as_ptr(),
                            act_sums: act_sums.as_ptr(),
                            act_scales: act_scales.as_ptr(),
                            out: out.as_mut_ptr(),
                            group,
                            groups,
                            n_blocks,
                        };
                        // SAFETY: the block describes the buffers above.
                        unsafe { kernel(&block) };
                        assert!(out[rows].is_nan(), "{level:?}: wrote past the results");
                        for r in 0..rows {
                            let (mut want, mut size) = (0f64, 0f64);
                            for g in 0..groups {
                                let sum: i64 = (g * group..(g + 1) * group)
                                    .map(|k| (codes[r * cols + k] as i64 - 8) * act[k] as i64)
                                    .sum();
                                let term = sum as f64
                                    * scales[r * groups + g].to_f64()
                                    * act_scales[g] as f64;
                                want += term;
                                size += term.abs();
                            }
                            assert!(
                                (out[r] as f64 - want).abs() <= 4e-7 * size,
                                "{level:?} group {group} x {groups} row {r}: {} expected {want}",
                                out[r]
                            );
                        }
                    }
                }
            }
        });
    }
}
