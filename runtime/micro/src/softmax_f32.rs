//! Rows of scores to weights of a running softmax, as attention needs them: each row while it is in the first-level cache.
//!
//! One text for all levels, over the operations and the exponential of [`crate::unary_f32`]; loops over single elements are
//! written so that a compiler makes vectors of them.

use lapidary_abi::kernel::{MASK_ADDED, MASK_BOOL, SOFTMAX_LANES, SoftmaxF32};

/// A row of scores, scaled and with its mask, where keys that it does not see have minus infinity; `row` has whole vectors.
///
/// # Safety
/// The block is valid, and so is its row `r`.
#[inline(always)]
unsafe fn scores(g: &SoftmaxF32, r: usize, row: &mut [f32]) {
    let bound = |at: i64, step: u32| {
        let at = at.saturating_add((r * step as usize) as i64);
        at.clamp(0, g.here as i64) as usize
    };
    let first = bound(g.first, g.first_step);
    let end = bound(g.end, g.end_step).max(first);
    let seen = &mut row[first..end];
    seen.iter_mut().for_each(|x| *x *= g.scale);
    let at = r * g.mask_pitch + first;
    // SAFETY: the mask has `here` elements in each row, and `end` is at most that.
    unsafe {
        match g.mask_kind {
            MASK_ADDED => {
                let mask = core::slice::from_raw_parts(g.mask.cast::<f32>().add(at), end - first);
                seen.iter_mut().zip(mask).for_each(|(x, m)| *x += m);
            }
            MASK_BOOL => {
                let mask = core::slice::from_raw_parts(g.mask.add(at), end - first);
                let keep = |x: f32, m: u8| if m == 0 { f32::NEG_INFINITY } else { x };
                seen.iter_mut()
                    .zip(mask)
                    .for_each(|(x, &m)| *x = keep(*x, m));
            }
            _ => {}
        }
    }
    row[..first].fill(f32::NEG_INFINITY);
    row[end..].fill(f32::NEG_INFINITY);
}

/// The rows over the operations `set`, `add`, `mul`, `max`, `exp`, `load` and `store` that are in scope.
macro_rules! rows {
    ($(#[$features:meta])* $vector:ty, $lanes:literal) => {
        /// # Safety
        /// `args` must satisfy the contract of [`SoftmaxF32`]; the CPU must have this module's instructions.
        $(#[$features])*
        pub unsafe extern "C" fn entry(args: *const SoftmaxF32) {
            // SAFETY: the caller passes a valid block.
            let g = unsafe { &*args };
            for r in 0..g.rows {
                // SAFETY: rows have room for whole vectors, and are the caller's alone.
                unsafe {
                    let whole = g.here.next_multiple_of(SOFTMAX_LANES);
                    let row = core::slice::from_raw_parts_mut(g.s.add(r * g.pitch), whole);
                    scores(g, r, row);
                    weights(g, r, row);
                }
            }
        }

        /// A row of scores to weights.
        ///
        /// # Safety
        /// The block is valid, and so is its row `r`; `row` has whole vectors.
        #[inline]
        $(#[$features])*
        unsafe fn weights(g: &SoftmaxF32, r: usize, row: &mut [f32]) {
            let (rows, _) = row.as_chunks_mut::<$lanes>();
            let mut top = [set(f64::NEG_INFINITY); 2];
            for (i, x) in rows.iter().enumerate() {
                // SAFETY: a whole vector.
                top[i % 2] = max(top[i % 2], unsafe { load(x.as_ptr()) });
            }
            let top = folded(max(top[0], top[1]), f32::max);
            // SAFETY: each of them has a number for row `r`, where it is there at all.
            let before = (!g.m.is_null()).then(|| unsafe { *g.m.add(r) });
            let now = before.map_or(top, |before| before.max(top));
            let top = if now == f32::NEG_INFINITY { 0.0 } else { now };
            let (less, mut sum) = (set(-f64::from(top)), [set(0.0); 2]);
            for (i, x) in rows.iter_mut().enumerate() {
                // SAFETY: a whole vector.
                unsafe {
                    let e = exp(add(load(x.as_ptr()), less));
                    store(x.as_mut_ptr(), e);
                    sum[i % 2] = add(sum[i % 2], e);
                }
            }
            let sum = folded(add(sum[0], sum[1]), |a, b| a + b);
            // SAFETY: as above; `o` has `width` numbers in each row.
            unsafe {
                if let Some(before) = before {
                    let fall = folded(exp(set(f64::from(before - top))), |_, b| b);
                    *g.m.add(r) = now;
                    *g.l.add(r) = *g.l.add(r) * fall + sum;
                    let o = core::slice::from_raw_parts_mut(g.o.add(r * g.o_pitch), g.width);
                    o.iter_mut().for_each(|x| *x *= fall);
                } else if !g.l.is_null() {
                    *g.l.add(r) = sum;
                } else {
                    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                    row[..g.here].iter_mut().for_each(|x| *x *= inverse);
                }
            }
        }

        /// What a function makes of all lanes.
        #[inline]
        $(#[$features])*
        fn folded(x: $vector, f: impl Fn(f32, f32) -> f32) -> f32 {
            let mut all = [0f32; $lanes];
            // SAFETY: a whole vector.
            unsafe { store(all.as_mut_ptr(), x) };
            all.into_iter().reduce(f).unwrap_or(0.0)
        }
    };
}

pub mod portable {
    //! One number at a time.

    use super::*;
    use crate::unary_f32::portable::{add, exp, load, max, set, store};

    rows!(f32, 1);
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Eight numbers.

    use core::arch::x86_64::*;

    use super::*;
    use crate::unary_f32::avx2::{add, exp, max, set, store};

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn load(at: *const f32) -> __m256 {
        // SAFETY: as promised to this function.
        unsafe { _mm256_loadu_ps(at) }
    }

    rows!(
        #[target_feature(enable = "avx2,fma")]
        __m256,
        8
    );
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! Sixteen numbers.

    use core::arch::x86_64::*;

    use super::*;
    use crate::unary_f32::avx512::{add, exp, max, set, store};

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: as promised to this function.
        unsafe { _mm512_loadu_ps(at) }
    }

    rows!(
        #[target_feature(enable = "avx512f,avx512dq")]
        __m512,
        16
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::{Import, MASK_NONE};

    const ROWS: usize = 3;
    const WIDTH: usize = 5;

    /// How a row ends.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum End {
        Running,
        Sum,
        Divided,
    }

    #[test]
    fn every_level_equals_the_definition() {
        let mut random = Random(11);
        for here in [1, 16, 31, 70] {
            for mask_kind in [MASK_NONE, MASK_BOOL, MASK_ADDED] {
                for (first, end, steps) in
                    [(0, here as i64, [0, 0]), (-2, 1, [1, 1]), (0, -1, [0, 1])]
                {
                    for how in [End::Running, End::Sum, End::Divided] {
                        check(&mut random, (here, mask_kind), (first, end, steps), how);
                    }
                }
            }
        }
    }

    fn check(
        random: &mut Random,
        (here, mask_kind): (usize, u32),
        (first, end, [first_step, end_step]): (i64, i64, [u32; 2]),
        how: End,
    ) {
        let scale = 0.25f32;
        let mut numbers =
            |n: usize| -> Vec<f32> { (0..n).map(|_| random.int(-99, 99) as f32 / 8.0).collect() };
        let pitch = here.next_multiple_of(SOFTMAX_LANES) + 16;
        let (s, o, added) = (
            numbers(ROWS * pitch),
            numbers(ROWS * WIDTH),
            numbers(ROWS * here),
        );
        // The first row has seen nothing yet, and its scores may be all hidden.
        let m = [f32::NEG_INFINITY, 3.0, 60.0];
        let l = [0.0, 2.0, 1.5];
        let allowed: Vec<u8> = added.iter().map(|&x| u8::from(x > 0.0)).collect();
        let mask: Vec<u8> = match mask_kind {
            MASK_BOOL => allowed.clone(),
            _ => added.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        for_each_level(Import::SoftmaxF32 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::SoftmaxF32`.
            let kernel: unsafe extern "C" fn(*const SoftmaxF32) =
                unsafe { core::mem::transmute(address) };
            let (mut got, mut got_m, mut got_l, mut got_o) = (s.clone(), m, l, o.clone());
            let null = core::ptr::null_mut();
            let args = SoftmaxF32 {
                s: got.as_mut_ptr(),
                mask: mask.as_ptr(),
                m: if how == End::Running {
                    got_m.as_mut_ptr()
                } else {
                    null
                },
                l: if how == End::Divided {
                    null
                } else {
                    got_l.as_mut_ptr()
                },
                o: got_o.as_mut_ptr(),
                pitch,
                mask_pitch: here,
                o_pitch: WIDTH,
                width: WIDTH,
                rows: ROWS,
                here,
                first,
                end,
                first_step,
                end_step,
                mask_kind,
                scale,
            };
            // SAFETY: the arguments describe the buffers above.
            unsafe { kernel(&args) };
            for r in 0..ROWS {
                let (from, to) = (
                    first + i64::from(first_step) * r as i64,
                    end + i64::from(end_step) * r as i64,
                );
                let x = |j: usize| -> f64 {
                    let x = f64::from(s[r * pitch + j]) * f64::from(scale);
                    let seen = (from..to).contains(&(j as i64));
                    match mask_kind {
                        _ if !seen => f64::NEG_INFINITY,
                        MASK_BOOL if allowed[r * here + j] == 0 => f64::NEG_INFINITY,
                        MASK_ADDED => x + f64::from(added[r * here + j]),
                        _ => x,
                    }
                };
                let before = if how == End::Running {
                    f64::from(m[r])
                } else {
                    f64::NEG_INFINITY
                };
                let now = (0..here).map(x).fold(before, f64::max);
                let top = if now == f64::NEG_INFINITY { 0.0 } else { now };
                let sum: f64 = (0..here).map(|j| (x(j) - top).exp()).sum();
                let share = match how {
                    End::Divided if sum > 0.0 => 1.0 / sum,
                    End::Divided => 0.0,
                    _ => 1.0,
                };
                let close = |got: f32, want: f64, what: &str| {
                    let ok = f64::from(got) == want
                        || (f64::from(got) - want).abs() <= 2e-6 * (1.0 + want.abs());
                    assert!(
                        ok,
                        "{level:?}, {here} keys, mask {mask_kind}, {how:?}, row {r}, {what}: {got}, not {want}"
                    );
                };
                for j in 0..here {
                    close(got[r * pitch + j], (x(j) - top).exp() * share, "a weight");
                }
                let fall = (before - top).exp();
                match how {
                    End::Running => {
                        close(got_m[r], now, "the largest score");
                        close(got_l[r], f64::from(l[r]) * fall + sum, "the sum");
                        for i in 0..WIDTH {
                            close(
                                got_o[r * WIDTH + i],
                                f64::from(o[r * WIDTH + i]) * fall,
                                "a result",
                            );
                        }
                    }
                    End::Sum => close(got_l[r], sum, "the sum"),
                    End::Divided => {}
                }
            }
        });
    }
}
