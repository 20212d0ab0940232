//! Windows over channels: depthwise convolution and maximum pooling, channels in lanes.
//!
//! Every row of the tile is one output pixel; its taps are reached through pointers, so a window is never copied.
//! Rows go in groups, because they share the weights of a tap, by two vectors of channels, because those share the
//! pointers. NaN passes through the clamp and wins every maximum.

use lapidary_abi::kernel::{RESULT_CODE, WindowF32};

/// Plain Rust.
///
/// # Safety
/// `args` must satisfy the contract of [`WindowF32`].
pub unsafe extern "C" fn portable(args: *const WindowF32) {
    const LANES: usize = 8;
    // SAFETY: the caller passes a valid block: `cols` elements behind every row address, in every row of the
    // result and of the residual, in the bias and in each tap's weights.
    unsafe {
        let g = &*args;
        let rows = g.rows as usize;
        for r in 0..rows {
            for j0 in (0..g.cols).step_by(LANES) {
                let n = LANES.min(g.cols - j0);
                let mut acc = [if g.b.is_null() {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }; LANES];
                for t in 0..g.taps {
                    let row = *g.a.add(t * rows + r);
                    for (j, acc) in acc.iter_mut().enumerate().take(n) {
                        let x = match g.codes {
                            0 => *row.cast::<f32>().add(j0 + j),
                            _ => f32::from(*row.cast::<u8>().add(j0 + j)),
                        };
                        if g.b.is_null() {
                            // A NaN is taken and stays.
                            *acc = if x > *acc || x.is_nan() { x } else { *acc };
                        } else {
                            let at = t * g.b_stride + j0 + j;
                            *acc += x * match g.codes {
                                0 => *g.b.cast::<f32>().add(at),
                                _ => f32::from(*g.b.cast::<i8>().add(at)),
                            };
                        }
                    }
                }
                for (j, &sum) in acc.iter().enumerate().take(n) {
                    let col = j0 + j;
                    let mut x = sum;
                    if !g.scale.is_null() {
                        x *= *g.scale.add(col);
                    }
                    if !g.bias.is_null() {
                        x += *g.bias.add(col);
                    }
                    if !g.residual.is_null() {
                        x += *g.residual.add(r * g.residual_stride + col);
                    }
                    x = if g.lo > x { g.lo } else { x };
                    x = if g.hi < x { g.hi } else { x };
                    let at = r * g.c_stride + col;
                    if g.result == RESULT_CODE {
                        let code = (x.round_ties_even() as i32).wrapping_add(g.zero);
                        *g.c.cast::<u8>().add(at) = code as u8;
                    } else {
                        *g.c.cast::<f32>().add(at) = x;
                    }
                }
            }
        }
    }
}

/// True if the result is just the greatest code of each window.
#[cfg(target_arch = "x86_64")]
#[inline]
fn is_maximum_of_codes(g: &WindowF32) -> bool {
    let plain = g.bias.is_null() && g.residual.is_null() && g.zero == 0;
    let all = g.lo <= 0.0 && g.hi >= 255.0;
    g.b.is_null() && g.codes != 0 && g.result == RESULT_CODE && plain && all
}

/// Fewer than eight codes, zeros after them. Not inlined: it is rare, and there are many tiles.
///
/// # Safety
/// `n` bytes can be read.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn few_codes(p: *const u8, n: usize) -> i64 {
    let mut eight = [0u8; 8];
    // SAFETY: as promised to this function.
    unsafe { core::ptr::copy_nonoverlapping(p, eight.as_mut_ptr(), n) };
    i64::from_le_bytes(eight)
}

/// Writes the first of eight codes.
///
/// # Safety
/// `n` bytes can be written; `n` is at most 8.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn write_few_codes(p: *mut u8, n: usize, codes: i64) {
    // SAFETY: as promised to this function.
    unsafe { core::ptr::copy_nonoverlapping(codes.to_le_bytes().as_ptr(), p, n) };
}

/// One instruction set's variant: vectors of `$lanes`, and how many elements of the last are there.
#[cfg(target_arch = "x86_64")]
macro_rules! variant {
    ($name:ident, $features:literal, $lanes:literal, $mask:ident, $make_mask:expr, $load:expr, $store:expr,
     $load_codes:expr, $load_weights:expr, $store_codes:expr, $max_codes:expr, $set1:ident, $mul:ident, $add:ident, $max:ident, $min:ident, $fma:ident, $nan_max:expr) => {
        pub mod $name {
            //! Groups of up to 7 rows by 2 vectors.

            use super::*;
            use core::arch::x86_64::*;

            /// # Safety
            /// `args` must satisfy the contract of [`WindowF32`]; the CPU must have the module's instructions.
            #[target_feature(enable = $features)]
            pub unsafe extern "C" fn entry(args: *const WindowF32) {
                // SAFETY: the caller passes a valid block; groups cover the rows, vectors the columns.
                unsafe {
                    let g = &*args;
                    if is_maximum_of_codes(g) {
                        return maximum_of_codes(g);
                    }
                    let rows = g.rows as usize;
                    let groups = rows.div_ceil(7);
                    let mut r = 0;
                    for i in 0..groups {
                        let n = (rows - r).div_ceil(groups - i);
                        match n {
                            1 => group::<1>(g, r),
                            2 => group::<2>(g, r),
                            3 => group::<3>(g, r),
                            4 => group::<4>(g, r),
                            5 => group::<5>(g, r),
                            6 => group::<6>(g, r),
                            _ => group::<7>(g, r),
                        }
                        r += n;
                    }
                }
            }

            /// The maximum of codes, as codes: many to a vector.
            ///
            /// # Safety
            /// The block is valid and is one of [`is_maximum_of_codes`].
            #[target_feature(enable = $features)]
            unsafe fn maximum_of_codes(g: &WindowF32) {
                let rows = g.rows as usize;
                // SAFETY: columns from `j` on exist; what is less than a vector goes byte by byte, or is masked off.
                unsafe {
                    for r in 0..rows {
                        let to = g.c.cast::<u8>().wrapping_add(r * g.c_stride);
                        let mut j = 0;
                        while j < g.cols {
                            j += ($max_codes)(g, r, j, to.wrapping_add(j));
                        }
                    }
                }
            }

            /// Rows `r..r + R`, all columns.
            ///
            /// # Safety
            /// The block is valid and has these rows.
            #[target_feature(enable = $features)]
            unsafe fn group<const R: usize>(g: &WindowF32, r: usize) {
                let mut j = 0;
                // SAFETY: columns from `j` on exist; masks leave out what is past `cols`.
                unsafe {
                    // Codes go by single vectors: twice as many instances are not worth their size.
                    while g.codes != 0 && j < g.cols {
                        match g.b.is_null() {
                            true => tile::<R, 1, true, true>(g, r, j),
                            false => tile::<R, 1, false, true>(g, r, j),
                        }
                        j += $lanes;
                    }
                    while j < g.cols {
                        match (g.cols - j > $lanes, g.b.is_null()) {
                            (true, true) => tile::<R, 2, true, false>(g, r, j),
                            (true, false) => tile::<R, 2, false, false>(g, r, j),
                            (false, true) => tile::<R, 1, true, false>(g, r, j),
                            (false, false) => tile::<R, 1, false, false>(g, r, j),
                        }
                        j += 2 * $lanes;
                    }
                }
            }

            /// `R` rows by `V` vectors of columns from `j`.
            ///
            /// # Safety
            /// As [`group`]; column `j` exists.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const V: usize, const MAX: bool, const CODES: bool>(
                g: &WindowF32,
                r: usize,
                j: usize,
            ) {
                // SAFETY: addresses are computed without the promise to be in bounds, as a vector's end may lie
                // outside; masks leave out what does.
                unsafe {
                    let counts: [usize; V] = core::array::from_fn(|v| {
                        (g.cols - j).saturating_sub(v * $lanes).min($lanes)
                    });
                    let masks: [$mask; V] = counts.map($make_mask);
                    let start = $set1(if MAX { f32::NEG_INFINITY } else { 0.0 });
                    let mut acc = [[start; V]; R];
                    let rows = g.rows as usize;
                    for t in 0..g.taps {
                        let a = *g.a.add(t * rows + r).cast::<[*const u8; R]>();
                        let mut w = [start; V];
                        if !MAX {
                            for v in 0..V {
                                let at = t * g.b_stride + j + v * $lanes;
                                w[v] = if CODES {
                                    $load_weights(g.b.cast::<u8>().wrapping_add(at), counts[v])
                                } else {
                                    $load(g.b.cast::<f32>().wrapping_add(at), masks[v])
                                };
                            }
                        }
                        for i in 0..R {
                            for v in 0..V {
                                let at = j + v * $lanes;
                                let x = if CODES {
                                    $load_codes(a[i].wrapping_add(at), counts[v])
                                } else {
                                    $load(a[i].cast::<f32>().wrapping_add(at), masks[v])
                                };
                                acc[i][v] = if MAX {
                                    $nan_max(acc[i][v], x)
                                } else {
                                    $fma(x, w[v], acc[i][v])
                                };
                            }
                        }
                    }
                    let (lo, hi) = ($set1(g.lo), $set1(g.hi));
                    for i in 0..R {
                        for v in 0..V {
                            let col = j + v * $lanes;
                            let mut x = acc[i][v];
                            if !g.scale.is_null() {
                                x = $mul(x, $load(g.scale.wrapping_add(col), masks[v]));
                            }
                            if !g.bias.is_null() {
                                x = $add(x, $load(g.bias.wrapping_add(col), masks[v]));
                            }
                            if !g.residual.is_null() {
                                x = $add(
                                    x,
                                    $load(
                                        g.residual.wrapping_add((r + i) * g.residual_stride + col),
                                        masks[v],
                                    ),
                                );
                            }
                            // The second operand is returned if either is NaN.
                            x = $min(hi, $max(lo, x));
                            let at = (r + i) * g.c_stride + col;
                            if g.result == RESULT_CODE {
                                let out = g.c.cast::<u8>().wrapping_add(at);
                                $store_codes(out, counts[v], x, g.zero);
                            } else {
                                $store(g.c.cast::<f32>().wrapping_add(at), masks[v], x);
                            }
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
variant!(
    avx2,
    "avx2,fma",
    8,
    __m256i,
    |n: usize| _mm256_cmpgt_epi32(
        _mm256_set1_epi32(n as i32),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
    ),
    |p, m| _mm256_maskload_ps(p, m),
    |p, m, x| _mm256_maskstore_ps(p, m, x),
    |p: *const u8, n: usize| {
        let codes = if n == 8 {
            p.cast::<i64>().read_unaligned()
        } else {
            few_codes(p, n)
        };
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes)))
    },
    |p: *const u8, n: usize| {
        let codes = if n == 8 {
            p.cast::<i64>().read_unaligned()
        } else {
            few_codes(p, n)
        };
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(codes)))
    },
    |p: *mut u8, n: usize, x, zero: i32| {
        let code = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero));
        // The low bytes of each half, side by side.
        let bytes = _mm256_shuffle_epi8(code, _mm256_set1_epi32(0x0C08_0400));
        let halves = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
        let codes = _mm_cvtsi128_si64(_mm256_castsi256_si128(halves));
        if n == 8 {
            p.cast::<i64>().write_unaligned(codes);
        } else {
            write_few_codes(p, n, codes);
        }
    },
    |g: &WindowF32, r: usize, j: usize, to: *mut u8| {
        let from = |t: usize| {
            (*g.a.add(t * g.rows as usize + r))
                .cast::<u8>()
                .wrapping_add(j)
        };
        if g.cols - j < 32 {
            *to = (0..g.taps).fold(0, |most, t| most.max(*from(t)));
            return 1;
        }
        let mut most = _mm256_setzero_si256();
        for t in 0..g.taps {
            most = _mm256_max_epu8(most, _mm256_loadu_si256(from(t).cast()));
        }
        _mm256_storeu_si256(to.cast(), most);
        32
    },
    _mm256_set1_ps,
    _mm256_mul_ps,
    _mm256_add_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_fmadd_ps,
    // `max` returns its second operand if either is NaN: a NaN in the sum must win too.
    |acc, x| {
        let most = _mm256_max_ps(acc, x);
        _mm256_blendv_ps(most, acc, _mm256_cmp_ps::<_CMP_UNORD_Q>(acc, acc))
    }
);

#[cfg(target_arch = "x86_64")]
variant!(
    avx512,
    "avx512f,avx512bw,avx512vl",
    16,
    __mmask16,
    |n: usize| ((1u32 << n) - 1) as __mmask16,
    |p, m| _mm512_maskz_loadu_ps(m, p),
    |p, m, x| _mm512_mask_storeu_ps(p, m, x),
    |p: *const u8, n: usize| {
        let mask = ((1u32 << n) - 1) as __mmask16;
        let codes = _mm_maskz_loadu_epi8(mask, p.cast());
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes))
    },
    |p: *const u8, n: usize| {
        let mask = ((1u32 << n) - 1) as __mmask16;
        let codes = _mm_maskz_loadu_epi8(mask, p.cast());
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    },
    |p: *mut u8, n: usize, x, zero: i32| {
        let mask = ((1u32 << n) - 1) as __mmask16;
        let code = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero));
        _mm_mask_storeu_epi8(p.cast(), mask, _mm512_cvtepi32_epi8(code));
    },
    |g: &WindowF32, r: usize, j: usize, to: *mut u8| {
        let n = (g.cols - j).min(64);
        let mask = if n < 64 { (1u64 << n) - 1 } else { !0 };
        let mut most = _mm512_setzero_si512();
        for t in 0..g.taps {
            let from = (*g.a.add(t * g.rows as usize + r)).cast::<i8>();
            let codes = _mm512_maskz_loadu_epi8(mask, from.wrapping_add(j));
            most = _mm512_max_epu8(most, codes);
        }
        _mm512_mask_storeu_epi8(to.cast(), mask, most);
        n
    },
    _mm512_set1_ps,
    _mm512_mul_ps,
    _mm512_add_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    _mm512_fmadd_ps,
    |acc, x| {
        let most = _mm512_max_ps(acc, x);
        _mm512_mask_mov_ps(most, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(acc, acc), acc)
    }
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use core::ffi::c_void;
    use lapidary_abi::kernel::{Import, RESULT_F32};

    #[test]
    fn every_shape_equals_the_definition() {
        for_each_level(Import::WindowF32 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::WindowF32`.
            let kernel: unsafe extern "C" fn(*const WindowF32) =
                unsafe { core::mem::transmute(address) };
            let mut random = Random(11);
            for rows in 1..=14usize {
                for cols in [1usize, 7, 8, 9, 16, 17, 31, 33, 64, 70] {
                    for (taps, options) in [(1, 0), (4, 7), (9, 1), (9, 4), (3, 8), (9, 12)] {
                        let mut value = |_| random.int(-9, 9) as f32;
                        let pitch = cols + 2;
                        let a: Vec<f32> = (0..taps * rows * pitch).map(&mut value).collect();
                        let b: Vec<f32> = (0..taps * cols).map(&mut value).collect();
                        let (bias, residual): (Vec<f32>, Vec<f32>) = (
                            (0..cols).map(&mut value).collect(),
                            (0..rows * cols).map(&mut value).collect(),
                        );
                        let pointers: Vec<*const c_void> = (0..taps * rows)
                            .rev()
                            .map(|i| a[i * pitch..].as_ptr().cast())
                            .collect();
                        let mut c = vec![100f32; rows * pitch];
                        let (max, clamp) = (options & 8 != 0, options & 4 != 0);
                        let null: *const f32 = core::ptr::null();
                        let block = WindowF32 {
                            a: pointers.as_ptr(),
                            b: if max { null.cast() } else { b.as_ptr().cast() },
                            scale: null,
                            c: c.as_mut_ptr().cast(),
                            bias: if options & 1 != 0 {
                                bias.as_ptr()
                            } else {
                                null
                            },
                            residual: if options & 2 != 0 {
                                residual.as_ptr()
                            } else {
                                null
                            },
                            b_stride: cols,
                            c_stride: pitch,
                            residual_stride: cols,
                            taps,
                            cols,
                            rows: rows as u32,
                            lo: if clamp { -2.0 } else { f32::NEG_INFINITY },
                            hi: if clamp { 20.0 } else { f32::INFINITY },
                            codes: 0,
                            result: RESULT_F32,
                            zero: 0,
                        };
                        // SAFETY: the block describes the buffers above.
                        unsafe { kernel(&block) };
                        for r in 0..rows {
                            for j in 0..pitch {
                                let found = c[r * pitch + j];
                                if j >= cols {
                                    assert_eq!(found, 100.0, "{level:?}: wrote past the tile");
                                    continue;
                                }
                                let x =
                                    |t: usize| a[(taps * rows - 1 - (t * rows + r)) * pitch + j];
                                let mut want: f32 = if max {
                                    (0..taps).map(x).fold(f32::NEG_INFINITY, f32::max)
                                } else {
                                    (0..taps).map(|t| x(t) * b[t * cols + j]).sum()
                                };
                                want += if options & 1 != 0 { bias[j] } else { 0.0 };
                                want += if options & 2 != 0 {
                                    residual[r * cols + j]
                                } else {
                                    0.0
                                };
                                want = if clamp { want.clamp(-2.0, 20.0) } else { want };
                                assert_eq!(
                                    found, want,
                                    "{level:?} {rows}x{cols}, {taps} taps, options {options} at {r},{j}"
                                );
                            }
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn codes_are_read_and_written() {
        for_each_level(Import::WindowF32 as usize, |level, address| {
            // SAFETY: as above.
            let kernel: unsafe extern "C" fn(*const WindowF32) =
                unsafe { core::mem::transmute(address) };
            let mut random = Random(12);
            for rows in [1usize, 5, 14] {
                for cols in [1usize, 7, 8, 9, 16, 17, 33, 64, 70, 128, 200] {
                    for max in [false, true] {
                        // Taps that are no multiple of four, one, and more than go into registers.
                        let (taps, pitch) = ([9, 1, 70][cols % 3], cols + 1);
                        let a: Vec<u8> = (0..taps * rows * pitch)
                            .map(|_| random.int(0, 255) as u8)
                            .collect();
                        let b: Vec<i8> = (0..taps * cols)
                            .map(|_| random.int(-128, 127) as i8)
                            .collect();
                        let scale: Vec<f32> =
                            (0..cols).map(|j| 0.0007 * (1 + j % 5) as f32).collect();
                        let bias: Vec<f32> = (0..cols).map(|j| 3.0 - 0.3 * j as f32).collect();
                        let pointers: Vec<*const c_void> = (0..taps * rows)
                            .map(|i| a[i * pitch..].as_ptr().cast())
                            .collect();
                        let mut c = vec![77u8; rows * pitch];
                        let zero = if max { 0 } else { 40 };
                        let block = WindowF32 {
                            a: pointers.as_ptr(),
                            b: if max {
                                core::ptr::null()
                            } else {
                                b.as_ptr().cast()
                            },
                            c: c.as_mut_ptr().cast(),
                            scale: if max {
                                core::ptr::null()
                            } else {
                                scale.as_ptr()
                            },
                            bias: if max {
                                core::ptr::null()
                            } else {
                                bias.as_ptr()
                            },
                            residual: core::ptr::null(),
                            b_stride: cols,
                            c_stride: pitch,
                            residual_stride: 0,
                            taps,
                            cols,
                            rows: rows as u32,
                            lo: -(zero as f32),
                            hi: 255.0 - zero as f32,
                            codes: 1,
                            result: RESULT_CODE,
                            zero,
                        };
                        // SAFETY: the block describes the buffers above.
                        unsafe { kernel(&block) };
                        for r in 0..rows {
                            for j in 0..pitch {
                                let x = |t: usize| f32::from(a[(t * rows + r) * pitch + j]);
                                let want = match max {
                                    _ if j >= cols => 77,
                                    true => (0..taps).map(x).fold(0.0, f32::max) as i32,
                                    false => {
                                        let product = |t: usize| x(t) * f32::from(b[t * cols + j]);
                                        let sum: f32 = (0..taps).map(product).sum();
                                        let x = sum * scale[j] + bias[j];
                                        x.clamp(block.lo, block.hi).round_ties_even() as i32 + zero
                                    }
                                };
                                let found = i32::from(c[r * pitch + j]);
                                assert_eq!(found, want, "{level:?} {rows}x{cols} {max} {r},{j}");
                            }
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn a_nan_wins_wherever_it_is() {
        for_each_level(Import::WindowF32 as usize, |level, address| {
            // SAFETY: as above.
            let kernel: unsafe extern "C" fn(*const WindowF32) =
                unsafe { core::mem::transmute(address) };
            for at in 0..3 {
                let mut a = [1f32, 5.0, 3.0];
                a[at] = f32::NAN;
                let pointers: Vec<*const c_void> =
                    a.iter().map(|x| core::ptr::from_ref(x).cast()).collect();
                let mut c = 0f32;
                let null: *const f32 = core::ptr::null();
                let block = WindowF32 {
                    a: pointers.as_ptr(),
                    b: null.cast(),
                    scale: null,
                    c: core::ptr::from_mut(&mut c).cast(),
                    bias: null,
                    residual: null,
                    b_stride: 0,
                    c_stride: 1,
                    residual_stride: 0,
                    taps: 3,
                    cols: 1,
                    rows: 1,
                    lo: f32::NEG_INFINITY,
                    hi: f32::INFINITY,
                    codes: 0,
                    result: RESULT_F32,
                    zero: 0,
                };
                // SAFETY: the block describes the values above.
                unsafe { kernel(&block) };
                assert!(c.is_nan(), "{level:?} {at}");
            }
        });
    }
}
