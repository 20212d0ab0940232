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

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! Sixteen lanes.

    use core::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// `args` must satisfy the contract of [`SparseF32`]; the CPU must have AVX-512 F.
    #[target_feature(enable = "avx512f")]
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

    /// Groups of `R` rows, `V` vectors of lanes.
    ///
    /// # Safety
    /// The block is valid and of this shape.
    #[target_feature(enable = "avx512f")]
    unsafe fn groups<const R: usize, const V: usize>(s: &SparseF32) {
        let mut lanes = [0; V];
        for (v, lanes) in lanes.iter_mut().enumerate() {
            let n = (s.cols as usize).saturating_sub(16 * v).min(16);
            *lanes = ((1u32 << n) - 1) as __mmask16;
        }
        let (lo, hi) = (_mm512_set1_ps(s.lo), _mm512_set1_ps(s.hi));
        for g in 0..s.groups {
            // SAFETY: masked lanes are not touched; everything else is what the block says is there.
            unsafe {
                let rows = &*s.rows.add(g * R).cast::<[u32; R]>();
                let mut acc = [[_mm512_setzero_ps(); V]; R];
                for r in 0..R {
                    let row = rows[r] as usize;
                    if !s.init.is_null() {
                        for v in 0..V {
                            let from = s.init.add(row * s.init_stride).wrapping_add(16 * v);
                            acc[r][v] = _mm512_maskz_loadu_ps(lanes[v], from);
                        }
                    }
                    if !s.bias.is_null() {
                        let bias = _mm512_set1_ps(*s.bias.add(row));
                        for v in 0..V {
                            acc[r][v] = _mm512_add_ps(acc[r][v], bias);
                        }
                    }
                }
                for t in entries(s, g) {
                    let at = s.offsets.add(t * R).cast::<[u16; R]>().read_unaligned();
                    let values = s.values.add(t * R);
                    for r in 0..R {
                        let value = _mm512_set1_ps(*values.add(r));
                        let x = s.x.add(at[r] as usize);
                        for v in 0..V {
                            let x = _mm512_loadu_ps(x.add(16 * v));
                            acc[r][v] = _mm512_fmadd_ps(value, x, acc[r][v]);
                        }
                    }
                }
                for r in 0..R {
                    let row = s.c.add(rows[r] as usize * s.c_stride);
                    for v in 0..V {
                        let y = _mm512_min_ps(_mm512_max_ps(acc[r][v], lo), hi);
                        _mm512_mask_storeu_ps(row.wrapping_add(16 * v), lanes[v], y);
                    }
                }
            }
        }
    }

    /// One lane: vectors hold the rows of a group.
    ///
    /// # Safety
    /// The block is valid and of the last shape.
    #[target_feature(enable = "avx512f")]
    unsafe fn column(s: &SparseF32) {
        const R: usize = 16;
        for g in 0..s.groups {
            // SAFETY: everything read is what the block says is there.
            unsafe {
                let rows = &*s.rows.add(g * R).cast::<[u32; R]>();
                let first: [f32; R] = core::array::from_fn(|r| start(s, rows[r] as usize, 0));
                let mut acc = [_mm512_loadu_ps(first.as_ptr()), _mm512_setzero_ps()];
                for t in entries(s, g) {
                    let at = _mm256_loadu_si256(s.offsets.add(t * R).cast());
                    let x = _mm512_i32gather_ps::<4>(_mm512_cvtepu16_epi32(at), s.x);
                    let value = _mm512_loadu_ps(s.values.add(t * R));
                    acc[0] = _mm512_fmadd_ps(value, x, acc[0]);
                    acc.swap(0, 1);
                }
                let mut y = [0f32; R];
                let sum = _mm512_add_ps(acc[0], acc[1]);
                let (lo, hi) = (_mm512_set1_ps(s.lo), _mm512_set1_ps(s.hi));
                _mm512_storeu_ps(y.as_mut_ptr(), _mm512_min_ps(_mm512_max_ps(sum, lo), hi));
                for r in 0..R {
                    *s.c.add(rows[r] as usize * s.c_stride) = y[r];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Eight lanes; a panel that is wider than the registers hold is gone through in parts.

    use core::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// `args` must satisfy the contract of [`SparseF32`]; the CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
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
    /// The block is valid and of a shape with `R` rows and a multiple of `8 * V` lanes.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn groups<const R: usize, const V: usize>(s: &SparseF32) {
        let (lo, hi) = (_mm256_set1_ps(s.lo), _mm256_set1_ps(s.hi));
        for g in 0..s.groups {
            for lane in (0..s.cols as usize).step_by(8 * V) {
                // SAFETY: masked lanes are not touched; everything else is what the block says is there.
                unsafe {
                    let lanes: [__m256i; V] =
                        core::array::from_fn(|v| mask(s.cols as i32 - (lane + 8 * v) as i32));
                    let rows = &*s.rows.add(g * R).cast::<[u32; R]>();
                    let mut acc = [[_mm256_setzero_ps(); V]; R];
                    for r in 0..R {
                        let row = rows[r] as usize;
                        if !s.init.is_null() {
                            for v in 0..V {
                                let from = s.init.add(row * s.init_stride);
                                let from = from.wrapping_add(lane + 8 * v);
                                acc[r][v] = _mm256_maskload_ps(from, lanes[v]);
                            }
                        }
                        if !s.bias.is_null() {
                            let bias = _mm256_set1_ps(*s.bias.add(row));
                            for v in 0..V {
                                acc[r][v] = _mm256_add_ps(acc[r][v], bias);
                            }
                        }
                    }
                    for t in entries(s, g) {
                        let at = s.offsets.add(t * R).cast::<[u16; R]>().read_unaligned();
                        let values = s.values.add(t * R);
                        for r in 0..R {
                            let value = _mm256_set1_ps(*values.add(r));
                            let x = s.x.add(at[r] as usize + lane);
                            for v in 0..V {
                                let x = _mm256_loadu_ps(x.add(8 * v));
                                acc[r][v] = _mm256_fmadd_ps(value, x, acc[r][v]);
                            }
                        }
                    }
                    for r in 0..R {
                        let row = s.c.add(rows[r] as usize * s.c_stride);
                        for v in 0..V {
                            let y = _mm256_min_ps(_mm256_max_ps(acc[r][v], lo), hi);
                            _mm256_maskstore_ps(row.wrapping_add(lane + 8 * v), lanes[v], y);
                        }
                    }
                }
            }
        }
    }

    /// The first `n` lanes.
    #[target_feature(enable = "avx2")]
    fn mask(n: i32) -> __m256i {
        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane)
    }

    /// One lane: vectors hold the rows of a group.
    ///
    /// # Safety
    /// The block is valid and of the last shape.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn column(s: &SparseF32) {
        const R: usize = 16;
        for g in 0..s.groups {
            // SAFETY: everything read is what the block says is there.
            unsafe {
                let rows = &*s.rows.add(g * R).cast::<[u32; R]>();
                let mut y: [f32; R] = core::array::from_fn(|r| start(s, rows[r] as usize, 0));
                let mut acc = [0, 8].map(|h| _mm256_loadu_ps(y.as_ptr().add(h)));
                for t in entries(s, g) {
                    for h in 0..2 {
                        let at = _mm_loadu_si128(s.offsets.add(t * R + 8 * h).cast());
                        let x = _mm256_i32gather_ps::<4>(s.x, _mm256_cvtepu16_epi32(at));
                        let value = _mm256_loadu_ps(s.values.add(t * R + 8 * h));
                        acc[h] = _mm256_fmadd_ps(value, x, acc[h]);
                    }
                }
                let (lo, hi) = (_mm256_set1_ps(s.lo), _mm256_set1_ps(s.hi));
                for h in 0..2 {
                    let bounded = _mm256_min_ps(_mm256_max_ps(acc[h], lo), hi);
                    _mm256_storeu_ps(y.as_mut_ptr().add(8 * h), bounded);
                }
                for r in 0..R {
                    *s.c.add(rows[r] as usize * s.c_stride) = y[r];
                }
            }
        }
    }
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
