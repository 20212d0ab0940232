//! Numbers to 8-bit codes, in blocks that share a scale: what [`GemmBlocks`](lapidary_abi::kernel::GemmBlocks) reads.
//!
//! One text for all levels, written so that a compiler makes vectors of it: the largest size is found among bits, which
//! as integers are ordered as the numbers are, with what is no number above all.

use lapidary_abi::kernel::RoundBlocks;

/// Largest code.
const MOST: f32 = 127.0;

/// # Safety
/// `args` must satisfy the contract of [`RoundBlocks`].
#[inline(always)]
unsafe fn body(args: *const RoundBlocks) {
    // SAFETY: the caller passes a valid block of arguments; pointers advance by exactly the stated lengths.
    unsafe {
        let r = &*args;
        let (mut x, mut y) = (r.x, r.y);
        for _ in 0..r.blocks {
            let numbers = core::slice::from_raw_parts(x, r.block);
            let codes = core::slice::from_raw_parts_mut(y.add(4).cast::<i8>(), r.block);
            let most = numbers.iter().fold(0, |most: i32, x| {
                most.max((x.to_bits() & 0x7FFF_FFFF) as i32)
            });
            let most = f32::from_bits(most as u32);
            let inverse = MOST / most;
            let mut sum = 0i32;
            for (code, x) in codes.iter_mut().zip(numbers) {
                let number = (x * inverse).round_ties_even();
                let number = if number.is_nan() { 0.0 } else { number };
                let number = number.clamp(-MOST, MOST);
                *code = number.to_int_unchecked::<i32>() as i8;
                sum += i32::from(*code);
            }
            y.cast::<i32>().write_unaligned(sum * r.factor);
            y.add(4 + r.block)
                .cast::<f32>()
                .write_unaligned(most / MOST);
            x = x.add(r.block);
            y = y.add(r.block + 8);
        }
    }
}

/// # Safety
/// `args` must satisfy the contract of [`RoundBlocks`].
pub unsafe extern "C" fn portable(args: *const RoundBlocks) {
    // SAFETY: the same contract.
    unsafe { body(args) }
}

/// # Safety
/// `args` must satisfy the contract of [`RoundBlocks`]; the CPU must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub unsafe extern "C" fn avx2(args: *const RoundBlocks) {
    // SAFETY: the same contract.
    unsafe { body(args) }
}

/// # Safety
/// `args` must satisfy the contract of [`RoundBlocks`]; the CPU must have AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe extern "C" fn avx512(args: *const RoundBlocks) {
    // SAFETY: the same contract.
    unsafe { body(args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::Import;

    #[test]
    fn every_form_equals_the_definition() {
        let mut random = Random(5);
        for (block, factor) in [(16, 1), (20, -8), (32, -8), (128, -1), (256, -128)] {
            let blocks = 5;
            let mut x: Vec<f32> = (0..block * blocks)
                .map(|_| random.int(-1000, 1000) as f32 / 64.0)
                .collect();
            x[block..2 * block].fill(0.0);
            // Numbers next to none; what is no number, and what is infinite.
            for (i, x) in x[2 * block..3 * block].iter_mut().enumerate() {
                *x = f32::from_bits(i as u32);
            }
            x[3 * block + 7] = f32::NAN;
            x[4 * block + 7] = f32::NEG_INFINITY;
            for_each_level(Import::RoundBlocks as usize, |level, address| {
                // SAFETY: the table holds a function of this type at `Import::RoundBlocks`.
                let kernel: unsafe extern "C" fn(*const RoundBlocks) =
                    unsafe { core::mem::transmute(address) };
                let mut y = vec![0xABu8; blocks * (block + 8) + 16];
                let args = RoundBlocks {
                    x: x.as_ptr(),
                    y: y.as_mut_ptr(),
                    block,
                    blocks,
                    factor,
                };
                // SAFETY: the arguments describe the buffers above.
                unsafe { kernel(&args) };
                for (b, (x, y)) in x.chunks(block).zip(y.chunks(block + 8)).enumerate() {
                    let most = x.iter().fold(0f32, |m, x| {
                        if m.is_nan() || m >= x.abs() {
                            m
                        } else {
                            x.abs()
                        }
                    });
                    let code = |x: &f32| {
                        let code = (x * (127.0 / most)).round_ties_even();
                        if code.is_nan() {
                            0
                        } else {
                            code.clamp(-127.0, 127.0) as i8
                        }
                    };
                    let want: Vec<i8> = x.iter().map(code).collect();
                    let got: Vec<i8> = y[4..4 + block].iter().map(|&c| c as i8).collect();
                    assert_eq!(got, want, "{level:?}: block {b} of {block}");
                    let word = |at: usize| y[at..at + 4].try_into().expect("four bytes");
                    let sum: i32 = want.iter().map(|&c| i32::from(c)).sum();
                    assert_eq!(i32::from_le_bytes(word(0)), sum * factor, "{level:?}");
                    let scale = f32::from_le_bytes(word(4 + block));
                    let same = scale == most / 127.0 || scale.is_nan() && most.is_nan();
                    assert!(same, "{level:?}: {scale}");
                }
                assert!(y[blocks * (block + 8)..].iter().all(|&b| b == 0xAB));
            });
        }
    }
}
