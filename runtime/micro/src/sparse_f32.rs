//! Rows of a sparse f32 matrix times a panel: work falls with the number of non-zeros.
//!
//! Lanes of a vector are columns of the panel (tokens, pixels), which lies in the level-1 cache. Each non-zero is broadcast
//! and multiplied with one run of the panel, so an entry costs a broadcast, an offset, and as many multiply-adds as the
//! panel has vectors. A group's rows have equally many entries: their sums are independent, which hides the latency of
//! the multiply-add, and the loop has one branch.

use lapidary_abi::kernel::{SPARSE_SHAPES, SparseF32};

/// Plain Rust.
///
/// # Safety
/// `args` must satisfy the contract of [`SparseF32`].
pub unsafe extern "C" fn portable(args: *const SparseF32) {
    // SAFETY: the caller passes a valid block.
    unsafe {
        let s = &*args;
        let (rows, _) = SPARSE_SHAPES[s.shape as usize];
        for g in 0..s.groups {
            for j in 0..s.cols as usize {
                // All sums before the first is stored: a row may be there twice, and `c` may be `init`.
                let mut sums = [0f32; MOST_ROWS];
                for (r, sum) in sums[..rows].iter_mut().enumerate() {
                    *sum = start(s, *s.rows.add(g * rows + r) as usize, j);
                    for t in entries(s, g) {
                        let at = *s.offsets.add(t * rows + r) as usize;
                        *sum += *s.values.add(t * rows + r) * *s.x.add(at + j);
                    }
                }
                for (r, sum) in sums[..rows].iter().enumerate() {
                    let row = *s.rows.add(g * rows + r) as usize;
                    *s.c.add(row * s.c_stride + j) = sum.max(s.lo).min(s.hi);
                }
            }
        }
    }
}

/// Most rows of a group.
const MOST_ROWS: usize = 16;

/// What a sum starts from.
///
/// # Safety
/// The block is valid and has this row and lane.
#[inline]
unsafe fn start(s: &SparseF32, row: usize, j: usize) -> f32 {
    // SAFETY: as promised to this function.
    unsafe {
        let bias = if s.bias.is_null() {
            0.0
        } else {
            *s.bias.add(row)
        };
        if s.init.is_null() {
            bias
        } else {
            *s.init.add(row * s.init_stride + j) + bias
        }
    }
}

/// The entries of a group.
///
/// # Safety
/// The block is valid and has this group.
#[inline]
unsafe fn entries(s: &SparseF32, g: usize) -> core::ops::Range<usize> {
    // SAFETY: as promised to this function.
    unsafe { *s.starts.add(g) as usize..*s.starts.add(g + 1) as usize }
}

/// The kernel over the operations `zero`, `set`, `add`, `fma`, `clamp`, `load`, `store`, `gather` (by 16-bit offsets),
/// `first` (a mask of so many lanes), `load_first` and `store_first` that are in scope.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($features:literal, $lanes:literal) => {
        /// # Safety
        /// `args` must satisfy the contract of [`SparseF32`]; the CPU must have this module's instructions.
        #[target_feature(enable = $features)]
        pub unsafe extern "C" fn entry(args: *const SparseF32) {
            // SAFETY: the caller passes a valid block.
            unsafe {
                let s = &*args;
                match s.shape {
                    0 => groups::<2, 4>(s),
                    1 => groups::<8, 1>(s),
                    _ => column(s),
                }
            }
        }

        /// Groups of `R` rows, `V` vectors of lanes at a time.
        ///
        /// # Safety
        /// The block is valid and of a shape with `R` rows.
        #[target_feature(enable = $features)]
        unsafe fn groups<const R: usize, const V: usize>(s: &SparseF32) {
            let (lo, hi) = (set(s.lo), set(s.hi));
            for lane in (0..s.cols as usize).step_by($lanes * V) {
                let mut there = [first(0); V];
                for (v, there) in there.iter_mut().enumerate() {
                    *there = first((s.cols as usize).saturating_sub(lane + $lanes * v));
                }
                for g in 0..s.groups {
                    // SAFETY: masked lanes are not touched; everything else is what the block says is there.
                    unsafe {
                        let rows = &*s.rows.add(g * R).cast::<[u32; R]>();
                        let mut acc = [[zero(); V]; R];
                        for r in 0..R {
                            let row = rows[r] as usize;
                            if !s.init.is_null() {
                                let from = s.init.add(row * s.init_stride).wrapping_add(lane);
                                for v in 0..V {
                                    let from = from.wrapping_add($lanes * v);
                                    acc[r][v] = load_first(there[v], from);
                                }
                            }
                            if !s.bias.is_null() {
                                let bias = set(*s.bias.add(row));
                                for v in 0..V {
                                    acc[r][v] = add(acc[r][v], bias);
                                }
                            }
                        }
                        for t in entries(s, g) {
                            let at = s.offsets.add(t * R).cast::<[u16; R]>().read_unaligned();
                            let values = s.values.add(t * R);
                            for r in 0..R {
                                let value = set(*values.add(r));
                                let x = s.x.add(at[r] as usize + lane);
                                for v in 0..V {
                                    acc[r][v] = fma(value, load(x.add($lanes * v)), acc[r][v]);
                                }
                            }
                        }
                        for r in 0..R {
                            let row = s.c.add(rows[r] as usize * s.c_stride).wrapping_add(lane);
                            for v in 0..V {
                                let y = clamp(acc[r][v], lo, hi);
                                store_first(there[v], row.wrapping_add($lanes * v), y);
                            }
                        }
                    }
                }
            }
        }

        /// One lane: vectors hold the rows of a group.
        ///
        /// # Safety
        /// The block is valid and of the last shape.
        #[target_feature(enable = $features)]
        unsafe fn column(s: &SparseF32) {
            const R: usize = MOST_ROWS;
            const PARTS: usize = R / $lanes;
            for g in 0..s.groups {
                // SAFETY: everything read is what the block says is there.
                unsafe {
                    let rows = &*s.rows.add(g * R).cast::<[u32; R]>();
                    let mut y = [0f32; R];
                    for (y, &row) in y.iter_mut().zip(rows) {
                        *y = start(s, row as usize, 0);
                    }
                    // Two sums, so that one multiply-add need not wait for the last.
                    let mut acc = [[zero(); 2]; PARTS];
                    for h in 0..PARTS {
                        acc[h][0] = load(y.as_ptr().add($lanes * h));
                    }
                    for t in entries(s, g) {
                        for h in 0..PARTS {
                            let x = gather(s.x, s.offsets.add(t * R + $lanes * h));
                            let value = load(s.values.add(t * R + $lanes * h));
                            acc[h][0] = fma(value, x, acc[h][0]);
                            acc[h].swap(0, 1);
                        }
                    }
                    let (lo, hi) = (set(s.lo), set(s.hi));
                    for h in 0..PARTS {
                        let sum = clamp(add(acc[h][0], acc[h][1]), lo, hi);
                        store(y.as_mut_ptr().add($lanes * h), sum);
                    }
                    for r in 0..R {
                        *s.c.add(rows[r] as usize * s.c_stride) = y[r];
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! Sixteen lanes.

    use core::arch::x86_64::*;

    use super::*;

    operations! { "avx512f":
        zero() -> __m512 { _mm512_setzero_ps() }
        set(x: f32) -> __m512 { _mm512_set1_ps(x) }
        add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        clamp(x: __m512, lo: __m512, hi: __m512) -> __m512 {
            _mm512_min_ps(_mm512_max_ps(x, lo), hi)
        }
        first(n: usize) -> __mmask16 { ((1u32 << n.min(16)) - 1) as __mmask16 }
    }
    operations! { unsafe "avx512f":
        load(at: *const f32) -> __m512 { _mm512_loadu_ps(at) }
        store(at: *mut f32, x: __m512) -> () { _mm512_storeu_ps(at, x) }
        gather(x: *const f32, at: *const u16) -> __m512 {
            _mm512_i32gather_ps::<4>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())), x)
        }
        load_first(there: __mmask16, at: *const f32) -> __m512 { _mm512_maskz_loadu_ps(there, at) }
        store_first(there: __mmask16, at: *mut f32, x: __m512) -> () {
            _mm512_mask_storeu_ps(at, there, x)
        }
    }

    kernel!("avx512f", 16);
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Eight lanes; a panel that is wider than the registers hold is gone through in parts.

    use core::arch::x86_64::*;

    use super::*;

    operations! { "avx2,fma":
        zero() -> __m256 { _mm256_setzero_ps() }
        set(x: f32) -> __m256 { _mm256_set1_ps(x) }
        add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        clamp(x: __m256, lo: __m256, hi: __m256) -> __m256 {
            _mm256_min_ps(_mm256_max_ps(x, lo), hi)
        }
        first(n: usize) -> __m256i {
            _mm256_cmpgt_epi32(
                _mm256_set1_epi32(n.min(8) as i32),
                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
            )
        }
    }
    operations! { unsafe "avx2,fma":
        load(at: *const f32) -> __m256 { _mm256_loadu_ps(at) }
        store(at: *mut f32, x: __m256) -> () { _mm256_storeu_ps(at, x) }
        gather(x: *const f32, at: *const u16) -> __m256 {
            _mm256_i32gather_ps::<4>(x, _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())))
        }
        load_first(there: __m256i, at: *const f32) -> __m256 { _mm256_maskload_ps(at, there) }
        store_first(there: __m256i, at: *mut f32, x: __m256) -> () {
            _mm256_maskstore_ps(at, there, x)
        }
    }

    kernel!("avx2,fma", 8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::Import;

    #[test]
    fn every_shape_equals_the_definition() {
        for_each_level(Import::SparseF32 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::SparseF32`.
            let kernel: unsafe extern "C" fn(*const SparseF32) =
                unsafe { core::mem::transmute(address) };
            let mut random = Random(5);
            for (shape, (in_group, lanes)) in SPARSE_SHAPES.into_iter().enumerate() {
                for cols in [1, 7, 16, 17, 33, 49, 63, 64] {
                    if cols > lanes {
                        continue;
                    }
                    for (groups, k) in [(1, 5), (3, 40), (2, 0)] {
                        let n = groups * in_group;
                        let mut row_of: Vec<u32> = (0..n as u32).rev().collect();
                        // The last row is there twice.
                        if in_group > 1 && k == 40 {
                            row_of[1] = row_of[0];
                        }
                        let mut starts = vec![2u32];
                        for _ in 0..groups {
                            starts.push(starts[starts.len() - 1] + random.int(0, k) as u32);
                        }
                        let total = starts[groups] as usize * in_group;
                        let value = |r: &mut Random| r.int(-64, 64) as f32 / 16.0;
                        let mut values: Vec<f32> = (0..total).map(|_| value(&mut random)).collect();
                        let mut offsets: Vec<u16> = (0..total)
                            .map(|_| (random.int(0, k.max(1) - 1) * lanes as i64) as u16)
                            .collect();
                        if in_group > 1 && k == 40 {
                            for t in starts[0] as usize..starts[1] as usize {
                                values[t * in_group + 1] = values[t * in_group];
                                offsets[t * in_group + 1] = offsets[t * in_group];
                            }
                        }
                        let x: Vec<f32> = (0..(k as usize + 1) * lanes)
                            .map(|_| value(&mut random))
                            .collect();
                        let bias: Vec<f32> = (0..n).map(|_| value(&mut random)).collect();
                        let pitch = cols + 2;
                        let init: Vec<f32> = (0..n * pitch).map(|_| value(&mut random)).collect();
                        for (with_bias, with_init, in_place, lo, hi) in [
                            (false, false, false, f32::NEG_INFINITY, f32::INFINITY),
                            (true, true, false, -3.0, 5.0),
                            (true, true, true, -30.0, 50.0),
                        ] {
                            let mut c = vec![f32::NAN; n * pitch + 1];
                            if in_place {
                                for (i, c) in c.iter_mut().enumerate().take(n * pitch) {
                                    if i % pitch < cols {
                                        *c = init[i];
                                    }
                                }
                            }
                            let null = core::ptr::null();
                            let block = SparseF32 {
                                x: x.as_ptr(),
                                values: values.as_ptr(),
                                offsets: offsets.as_ptr(),
                                starts: starts.as_ptr(),
                                rows: row_of.as_ptr(),
                                bias: if with_bias { bias.as_ptr() } else { null },
                                init: match (with_init, in_place) {
                                    (true, true) => c.as_ptr(),
                                    (true, false) => init.as_ptr(),
                                    _ => null,
                                },
                                c: c.as_mut_ptr(),
                                init_stride: pitch,
                                c_stride: pitch,
                                groups,
                                cols: cols as u32,
                                shape: shape as u32,
                                lo,
                                hi,
                            };
                            // SAFETY: the block describes the buffers above.
                            unsafe { kernel(&block) };
                            for (g, r) in
                                (0..groups).flat_map(|g| (0..in_group).map(move |r| (g, r)))
                            {
                                let row = row_of[g * in_group + r] as usize;
                                for j in 0..pitch {
                                    let got = c[row * pitch + j];
                                    if j >= cols {
                                        assert!(got.is_nan(), "{level:?}: wrote past the lanes");
                                        continue;
                                    }
                                    let mut want = 0f64;
                                    for t in starts[g] as usize..starts[g + 1] as usize {
                                        let e = t * in_group + r;
                                        want += f64::from(values[e])
                                            * f64::from(x[offsets[e] as usize + j]);
                                    }
                                    want += f64::from(if with_bias { bias[row] } else { 0.0 });
                                    want += f64::from(if with_init {
                                        init[row * pitch + j]
                                    } else {
                                        0.0
                                    });
                                    let want = want.max(f64::from(lo)).min(f64::from(hi));
                                    // Multiples of 1/256 that f32 holds exactly.
                                    assert_eq!(
                                        f64::from(got),
                                        want,
                                        "{level:?} {in_group}x{lanes} cols {cols} row {row} lane {j}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        });
    }
}
