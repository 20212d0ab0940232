//! Weights of a few bits to numbers: what products with activations that are not rounded multiply with.
//!
//! One text for all levels, written so that a compiler makes vectors of it: the 16 columns of a panel are lanes.

use half::f16;
use lapidary_abi::kernel::{PANEL_BLOCKS, UnpackBlocks};

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`] and have codes of `BITS` bits.
#[inline(always)]
unsafe fn blocks<const BITS: usize>(args: &UnpackBlocks) {
    let mask = (1u32 << BITS) - 1;
    // SAFETY: the caller passes valid arguments; pointers advance by exactly the stated lengths.
    unsafe {
        let (mut w, mut y) = (args.w, args.y);
        for _ in 0..args.blocks {
            let scales: [f32; PANEL_BLOCKS] = match args.scale_bytes {
                2 => w
                    .cast::<[u16; PANEL_BLOCKS]>()
                    .read_unaligned()
                    .map(|s| f16::from_bits(s).to_f32()),
                _ => w.cast::<[f32; PANEL_BLOCKS]>().read_unaligned(),
            };
            w = w.add(PANEL_BLOCKS * args.scale_bytes as usize);
            let mut zeros = [args.zero; PANEL_BLOCKS];
            if args.zeros != 0 {
                zeros = w.cast::<[u8; PANEL_BLOCKS]>().read().map(i32::from);
                w = w.add(PANEL_BLOCKS);
            }
            for _ in 0..args.block * BITS / 32 {
                let line = w.cast::<[u32; PANEL_BLOCKS]>().read_unaligned();
                for p in 0..8 / BITS {
                    for q in 0..4 {
                        let mut row = [0f32; PANEL_BLOCKS];
                        for j in 0..PANEL_BLOCKS {
                            let code = line[j] >> (8 * q + p * BITS) & mask;
                            row[j] = (code as i32 - zeros[j]) as f32 * scales[j];
                        }
                        y.add((4 * p + q) * args.y_stride)
                            .cast::<[f32; PANEL_BLOCKS]>()
                            .write_unaligned(row);
                    }
                }
                w = w.add(4 * PANEL_BLOCKS);
                y = y.add(32 / BITS * args.y_stride);
            }
        }
    }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`].
#[inline(always)]
unsafe fn body(args: *const UnpackBlocks) {
    // SAFETY: the same contract.
    unsafe {
        match (*args).bits {
            2 => blocks::<2>(&*args),
            4 => blocks::<4>(&*args),
            _ => blocks::<8>(&*args),
        }
    }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`].
pub unsafe extern "C" fn portable(args: *const UnpackBlocks) {
    // SAFETY: the same contract.
    unsafe { body(args) }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`]; the CPU must have AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
pub unsafe extern "C" fn avx2(args: *const UnpackBlocks) {
    // SAFETY: the same contract.
    unsafe { body(args) }
}

/// # Safety
/// `args` must satisfy the contract of [`UnpackBlocks`]; the CPU must have AVX-512 F, BW and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,f16c")]
pub unsafe extern "C" fn avx512(args: *const UnpackBlocks) {
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
        let mut random = Random(9);
        for (bits, block) in [(2, 16), (2, 64), (4, 8), (4, 32), (8, 4), (8, 48)] {
            for (scale_bytes, zeros) in [(2, false), (2, true), (4, false), (4, true)] {
                let (count, stride) = (3, PANEL_BLOCKS + 5);
                let (mut w, mut want) = (vec![], vec![f32::NAN; count * block * stride]);
                for b in 0..count {
                    let scales: Vec<f32> = (0..PANEL_BLOCKS)
                        .map(|_| random.int(-400, 400) as f32 / 256.0)
                        .collect();
                    for &scale in &scales {
                        match scale_bytes {
                            2 => w.extend(f16::from_f32(scale).to_le_bytes()),
                            _ => w.extend(scale.to_le_bytes()),
                        }
                    }
                    let top = (1 << bits) - 1;
                    let own: Vec<i64> = (0..PANEL_BLOCKS)
                        .map(|_| if zeros { random.int(0, top) } else { 3 })
                        .collect();
                    if zeros {
                        w.extend(own.iter().map(|&z| z as u8));
                    }
                    for line in (0..block).step_by(32 / bits) {
                        for j in 0..PANEL_BLOCKS {
                            for q in 0..4 {
                                let byte = random.int(0, 255);
                                w.push(byte as u8);
                                for p in 0..8 / bits {
                                    let code = byte >> (p * bits) & top;
                                    let row = b * block + line + 4 * p + q;
                                    want[row * stride + j] = (code - own[j]) as f32 * scales[j];
                                }
                            }
                        }
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
                        zeros: u32::from(zeros),
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
