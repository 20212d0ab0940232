//! Weights of a few bits to numbers: what products with activations that are not rounded multiply with.
//!
//! One text for all levels, written so that a compiler makes vectors of it: the 16 columns of a panel are lanes.

use crate::gemm_blocks::{Codes, LINE, low_bits, numbers};
use lapidary_abi::kernel::{PANEL_BLOCKS, UnpackBlocks, ZEROS_CODES, ZEROS_MINIMUMS};

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`] and have codes of `BITS` bits; with `F16C` the CPU converts halves.
#[inline(always)]
unsafe fn blocks<const BITS: usize, const F16C: bool>(args: &UnpackBlocks) {
    let codes = const { Codes::of(BITS) };
    let (low, high) = (low_bits(codes.low), low_bits(codes.high));
    // SAFETY: the caller passes valid arguments; pointers advance by exactly the stated lengths.
    unsafe {
        let (mut w, mut y) = (args.w, args.y);
        for _ in 0..args.blocks {
            let scales = numbers::<F16C>(&mut w, args.scale_bytes);
            let (mut zeros, mut minimums) = ([0; PANEL_BLOCKS], [0.0; PANEL_BLOCKS]);
            match args.zeros {
                ZEROS_CODES => {
                    zeros = w.cast::<[u8; PANEL_BLOCKS]>().read().map(i32::from);
                    w = w.add(PANEL_BLOCKS);
                }
                ZEROS_MINIMUMS => minimums = numbers::<F16C>(&mut w, args.scale_bytes),
                _ => zeros = [args.zero; PANEL_BLOCKS],
            }
            for _ in 0..args.block / codes.unit {
                for q in 0..codes.unit / 4 {
                    let ((line, by), (high_line, by_high)) = (codes.low_at(q), codes.high_at(q));
                    // Without a high part nothing is taken of its line.
                    let [of_low, of_high] = [line, high_line].map(|i| {
                        w.add(i * LINE)
                            .cast::<[u32; PANEL_BLOCKS]>()
                            .read_unaligned()
                    });
                    for i in 0..4 {
                        let mut row = [0f32; PANEL_BLOCKS];
                        for j in 0..PANEL_BLOCKS {
                            let mut code = of_low[j] >> (8 * i + by) & u32::from(low);
                            if codes.high > 0 {
                                let upper = of_high[j] >> (8 * i + by_high) & u32::from(high);
                                code |= upper << codes.low;
                            }
                            let number = (code as i32 - zeros[j]) as f32 * scales[j];
                            row[j] = number + minimums[j];
                        }
                        y.add((4 * q + i) * args.y_stride)
                            .cast::<[f32; PANEL_BLOCKS]>()
                            .write_unaligned(row);
                    }
                }
                w = w.add(codes.lines * LINE);
                y = y.add(codes.unit * args.y_stride);
            }
        }
    }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`]; with `F16C` the CPU converts halves.
#[inline(always)]
unsafe fn body<const F16C: bool>(args: *const UnpackBlocks) {
    // SAFETY: the same contract.
    unsafe {
        match (*args).bits {
            2 => blocks::<2, F16C>(&*args),
            3 => blocks::<3, F16C>(&*args),
            4 => blocks::<4, F16C>(&*args),
            5 => blocks::<5, F16C>(&*args),
            6 => blocks::<6, F16C>(&*args),
            _ => blocks::<8, F16C>(&*args),
        }
    }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`].
pub unsafe extern "C" fn portable(args: *const UnpackBlocks) {
    // SAFETY: the same contract.
    unsafe { body::<false>(args) }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`]; the CPU must have AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
pub unsafe extern "C" fn avx2(args: *const UnpackBlocks) {
    // SAFETY: the same contract.
    unsafe { body::<true>(args) }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`]; the CPU must have AVX-512 F, BW and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,f16c")]
pub unsafe extern "C" fn avx512(args: *const UnpackBlocks) {
    // SAFETY: the same contract.
    unsafe { body::<true>(args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use half::f16;
    use lapidary_abi::kernel::Import;

    #[test]
    fn every_form_equals_the_definition() {
        let mut random = Random(9);
        for (bits, block) in [
            (2, 16),
            (2, 64),
            (3, 32),
            (3, 96),
            (4, 8),
            (4, 32),
            (5, 32),
            (6, 16),
            (6, 48),
            (8, 4),
            (8, 48),
        ] {
            for (scale_bytes, zeros) in [2, 4].into_iter().flat_map(|s| (0..3).map(move |z| (s, z)))
            {
                let (count, stride) = (3, PANEL_BLOCKS + 5);
                let (mut w, mut want) = (vec![], vec![f32::NAN; count * block * stride]);
                let form = Codes::of(bits);
                for b in 0..count {
                    let mut numbers = |random: &mut Random| {
                        let number = |_| random.int(-400, 400) as f32 / 256.0;
                        let all: Vec<f32> = (0..PANEL_BLOCKS).map(number).collect();
                        for &number in &all {
                            match scale_bytes {
                                2 => w.extend(f16::from_f32(number).to_le_bytes()),
                                _ => w.extend(number.to_le_bytes()),
                            }
                        }
                        all
                    };
                    let scales = numbers(&mut random);
                    let minimums = (zeros == ZEROS_MINIMUMS).then(|| numbers(&mut random));
                    let top = (1 << bits) - 1;
                    let own: Vec<i64> = (0..PANEL_BLOCKS)
                        .map(|_| match zeros {
                            ZEROS_CODES => random.int(0, top),
                            ZEROS_MINIMUMS => 0,
                            _ => 3,
                        })
                        .collect();
                    if zeros == ZEROS_CODES {
                        w.extend(own.iter().map(|&z| z as u8));
                    }
                    for unit in 0..block / form.unit {
                        let lines: Vec<u8> = (0..form.lines * LINE)
                            .map(|_| random.int(0, 255) as u8)
                            .collect();
                        for (k, j) in
                            (0..form.unit).flat_map(|k| (0..PANEL_BLOCKS).map(move |j| (k, j)))
                        {
                            let field = |(line, by): (usize, usize), bits: usize| {
                                let byte = lines[line * LINE + 4 * j + k % 4];
                                i64::from(byte.checked_shr(by as u32).unwrap_or(0) & low_bits(bits))
                            };
                            let high = field(form.high_at(k / 4), form.high) << form.low;
                            let code = field(form.low_at(k / 4), form.low) | high;
                            let minimum = minimums.as_ref().map_or(0.0, |m| m[j]);
                            want[(b * block + unit * form.unit + k) * stride + j] =
                                (code - own[j]) as f32 * scales[j] + minimum;
                        }
                        w.extend(lines);
                    }
                }
                for_each_level(Import::UnpackBlocks as usize, |level, address| {
                    // SAFETY: the table holds a function of this type at `Import::UnpackBlocks`.
                    let kernel: unsafe extern "C" fn(*const UnpackBlocks) =
                        unsafe { core::mem::transmute(address) };
                    let mut y = vec![f32::NAN; want.len()];
                    let args = UnpackBlocks {
                        w: w.as_ptr(),
                        y: y.as_mut_ptr(),
                        y_stride: stride,
                        block,
                        blocks: count,
                        bits: bits as u32,
                        scale_bytes,
                        zeros,
                        zero: 3,
                    };
                    // SAFETY: the arguments describe the buffers above.
                    unsafe { kernel(&args) };
                    for (i, (got, want)) in y.iter().zip(&want).enumerate() {
                        let same = got == want || got.is_nan() && want.is_nan();
                        assert!(
                            same,
                            "{level:?}: {bits} bits by {block}, {i}: {got}, not {want}"
                        );
                    }
                });
            }
        }
    }
}
