//! Rows of a sparse int8 matrix times a panel of codes: work falls with the number of entries.
//!
//! An entry is four weights of consecutive inputs, which is what `vpdpbusd` multiplies in one lane: it is broadcast, and
//! multiplied with one run of the panel, whose lanes are columns (tokens, pixels). So an entry costs a broadcast, an offset,
//! and a load and a product for each vector of the panel, which lies in the level-1 cache. Sums are exact modulo 2^32; what
//! makes results of them is [`crate::gemm_i8`]'s.

use lapidary_abi::kernel::{SPARSE_LANES_I8, SPARSE_ROWS_I8, SparseI8};

const R: usize = SPARSE_ROWS_I8;

/// Plain Rust.
///
/// # Safety
/// `args` must satisfy the contract of [`SparseI8`].
pub unsafe extern "C" fn portable(args: *const SparseI8) {
    // SAFETY: the caller passes a valid block.
    unsafe {
        let s = &*args;
        for g in 0..s.groups {
            // All sums before the first is stored: a row may be there twice, and `c` may be `init`.
            let mut sums = [[0i32; SPARSE_LANES_I8]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = *s.rows.add(g * R + r) as usize;
                for (j, sum) in sums[..s.cols as usize].iter_mut().enumerate() {
                    if !s.init.is_null() {
                        *sum = *s.init.add(row * s.init_stride + j);
                    }
                    for t in entries(s, g) {
                        let w = s.values.add((t * R + r) * 4);
                        let x = s.x.add((*s.offsets.add(t * R + r) as usize + j) * 4);
                        for q in 0..4 {
                            *sum = sum.wrapping_add(i32::from(*w.add(q)) * i32::from(*x.add(q)));
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let row = *s.rows.add(g * R + r) as usize;
                let to = s.c.add(row * s.c_stride);
                core::ptr::copy_nonoverlapping(sums.as_ptr(), to, s.cols as usize);
            }
        }
    }
}

/// The entries of a group.
///
/// # Safety
/// The block is valid and has this group.
#[inline]
unsafe fn entries(s: &SparseI8, g: usize) -> core::ops::Range<usize> {
    // SAFETY: as promised to this function.
    unsafe { *s.starts.add(g) as usize..*s.starts.add(g + 1) as usize }
}

/// The kernel over the operations `zero`, `weights` (four codes for all lanes), `dot` (adds products), `load`, `first` (a
/// mask of so many lanes), `load_first` and `store_first` that are in scope; instances for each number of vectors.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($features:literal, $lanes:literal, [$($fewer:literal)*] $most:literal) => {
        /// # Safety
        /// `args` must satisfy the contract of [`SparseI8`]; the CPU must have this module's instructions.
        #[target_feature(enable = $features)]
        pub unsafe extern "C" fn entry(args: *const SparseI8) {
            // SAFETY: the caller passes a valid block.
            unsafe {
                let s = &*args;
                let cols = s.cols as usize;
                for lane in (0..cols).step_by($lanes * $most) {
                    match (cols - lane).div_ceil($lanes) {
                        $($fewer => groups::<$fewer>(s, lane),)*
                        _ => groups::<$most>(s, lane),
                    }
                }
            }
        }

        /// `V` vectors of lanes from `lane` on.
        ///
        /// # Safety
        /// The block is valid, and its lanes up to the next multiple of 16 include these.
        #[target_feature(enable = $features)]
        unsafe fn groups<const V: usize>(s: &SparseI8, lane: usize) {
            let mut there = [first(0); V];
            for (v, there) in there.iter_mut().enumerate() {
                *there = first((s.cols as usize).saturating_sub(lane + $lanes * v));
            }
            for g in 0..s.groups {
                // SAFETY: masked lanes are not touched; everything else is what the block says is there.
                unsafe {
                    let rows = &*s.rows.add(g * R).cast::<[u32; R]>();
                    let mut acc = [[zero(); V]; R];
                    if !s.init.is_null() {
                        for r in 0..R {
                            let from = s.init.add(rows[r] as usize * s.init_stride);
                            for v in 0..V {
                                let from = from.wrapping_add(lane + $lanes * v);
                                acc[r][v] = load_first(there[v], from);
                            }
                        }
                    }
                    for t in entries(s, g) {
                        let at = s.offsets.add(t * R).cast::<[u16; R]>().read_unaligned();
                        let values = s.values.add(t * R * 4).cast::<i32>();
                        for r in 0..R {
                            let w = weights(values.add(r).read_unaligned());
                            let x = s.x.add(4 * (at[r] as usize + lane));
                            for v in 0..V {
                                acc[r][v] = dot(acc[r][v], load(x.add(4 * $lanes * v)), w);
                            }
                        }
                    }
                    for r in 0..R {
                        let row = s.c.add(rows[r] as usize * s.c_stride);
                        for v in 0..V {
                            let to = row.wrapping_add(lane + $lanes * v);
                            store_first(there[v], to, acc[r][v]);
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! `vpdpbusd` on sixteen lanes.

    use core::arch::x86_64::*;

    use super::*;

    operations! { "avx512f,avx512vnni":
        zero() -> __m512i { _mm512_setzero_si512() }
        weights(codes: i32) -> __m512i { _mm512_set1_epi32(codes) }
        dot(acc: __m512i, x: __m512i, w: __m512i) -> __m512i { _mm512_dpbusd_epi32(acc, x, w) }
        first(n: usize) -> __mmask16 { ((1u32 << n.min(16)) - 1) as __mmask16 }
    }
    operations! { unsafe "avx512f,avx512vnni":
        load(at: *const u8) -> __m512i { _mm512_loadu_si512(at.cast()) }
        load_first(there: __mmask16, at: *const i32) -> __m512i {
            _mm512_maskz_loadu_epi32(there, at)
        }
        store_first(there: __mmask16, at: *mut i32, x: __m512i) -> () {
            _mm512_mask_storeu_epi32(at, there, x)
        }
    }

    kernel!("avx512f,avx512vnni", 16, [1 2 3] 4);
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Eight lanes, widened to 16 bits: even and odd bytes, two `vpmaddwd` each.

    use core::arch::x86_64::*;

    use super::*;

    operations! { "avx2":
        zero() -> __m256i { _mm256_setzero_si256() }
        weights(codes: i32) -> [__m256i; 2] {{
            let all = _mm256_set1_epi32(codes);
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(all));
            [even, _mm256_srai_epi16::<8>(all)]
        }}
        dot(acc: __m256i, x: __m256i, w: [__m256i; 2]) -> __m256i {{
            let even = _mm256_and_si256(x, _mm256_set1_epi16(0xFF));
            let odd = _mm256_srli_epi16::<8>(x);
            let products =
                _mm256_add_epi32(_mm256_madd_epi16(even, w[0]), _mm256_madd_epi16(odd, w[1]));
            _mm256_add_epi32(acc, products)
        }}
        first(n: usize) -> __m256i {
            _mm256_cmpgt_epi32(
                _mm256_set1_epi32(n.min(8) as i32),
                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
            )
        }
    }
    operations! { unsafe "avx2":
        load(at: *const u8) -> __m256i { _mm256_loadu_si256(at.cast()) }
        load_first(there: __m256i, at: *const i32) -> __m256i {
            _mm256_maskload_epi32(at, there)
        }
        store_first(there: __m256i, at: *mut i32, x: __m256i) -> () {
            _mm256_maskstore_epi32(at, there, x)
        }
    }

    kernel!("avx2", 8, [1] 2);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::Import;

    #[test]
    fn every_width_equals_the_definition() {
        for_each_level(Import::SparseI8 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::SparseI8`.
            let kernel: unsafe extern "C" fn(*const SparseI8) =
                unsafe { core::mem::transmute(address) };
            let mut random = Random(11);
            for cols in [1usize, 7, 8, 15, 16, 17, 31, 33, 48, 49, 63, 64] {
                for (groups, k, extremes) in
                    [(1, 5, false), (3, 40, false), (2, 0, false), (2, 30, true)]
                {
                    let (lanes, n) = (cols.next_multiple_of(16), groups * R);
                    let mut row_of: Vec<u32> = (0..n as u32).rev().collect();
                    let mut starts = vec![2u32];
                    for _ in 0..groups {
                        starts.push(starts[starts.len() - 1] + random.int(0, k) as u32);
                    }
                    let total = starts[groups] as usize * R;
                    let mut values: Vec<[i8; 4]> = (0..total)
                        .map(|i| {
                            core::array::from_fn(|_| match extremes {
                                true => [-128, 127][i % 2],
                                false => random.int(-128, 127) as i8,
                            })
                        })
                        .collect();
                    let mut offsets: Vec<u16> = (0..total)
                        .map(|_| (random.int(0, k.max(1) - 1) * lanes as i64) as u16)
                        .collect();
                    // The last row is there twice.
                    if k == 40 {
                        row_of[1] = row_of[0];
                        for t in starts[0] as usize..starts[1] as usize {
                            values[t * R + 1] = values[t * R];
                            offsets[t * R + 1] = offsets[t * R];
                        }
                    }
                    let x: Vec<u8> = (0..(k as usize + 1) * lanes * 4)
                        .map(|_| {
                            if extremes {
                                255
                            } else {
                                random.int(0, 255) as u8
                            }
                        })
                        .collect();
                    let pitch = cols + 2;
                    let numbers = |r: &mut Random| r.int(-9999, 9999) as i32;
                    let init: Vec<i32> = (0..n * pitch).map(|_| numbers(&mut random)).collect();
                    for (with_init, in_place) in [(false, false), (true, false), (true, true)] {
                        const NOT_WRITTEN: i32 = 0x5A5A_5A5A;
                        let mut c = vec![NOT_WRITTEN; n * pitch + 1];
                        if in_place {
                            for (i, c) in c.iter_mut().enumerate().take(n * pitch) {
                                if i % pitch < cols {
                                    *c = init[i];
                                }
                            }
                        }
                        let block = SparseI8 {
                            x: x.as_ptr(),
                            values: values.as_ptr().cast(),
                            offsets: offsets.as_ptr(),
                            starts: starts.as_ptr(),
                            rows: row_of.as_ptr(),
                            init: match (with_init, in_place) {
                                (true, true) => c.as_ptr(),
                                (true, false) => init.as_ptr(),
                                _ => core::ptr::null(),
                            },
                            c: c.as_mut_ptr(),
                            init_stride: pitch,
                            c_stride: pitch,
                            groups,
                            cols: cols as u32,
                        };
                        // SAFETY: the block describes the buffers above.
                        unsafe { kernel(&block) };
                        for (g, r) in (0..groups).flat_map(|g| (0..R).map(move |r| (g, r))) {
                            let row = row_of[g * R + r] as usize;
                            for j in 0..pitch {
                                let mut want = if with_init { init[row * pitch + j] } else { 0 };
                                for t in starts[g] as usize..starts[g + 1] as usize {
                                    let e = t * R + r;
                                    for q in 0..4 {
                                        let at = offsets[e] as usize + j.min(cols - 1);
                                        want += i32::from(values[e][q]) * i32::from(x[at * 4 + q]);
                                    }
                                }
                                if j >= cols {
                                    want = NOT_WRITTEN;
                                }
                                assert_eq!(
                                    c[row * pitch + j],
                                    want,
                                    "{level:?} {cols} lanes, row {row} lane {j}"
                                );
                            }
                        }
                    }
                }
            }
        });
    }
}
