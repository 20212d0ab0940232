//! Halves to numbers: what attention multiplies of caches that hold halves.

use half::f16;
use lapidary_abi::kernel::WidenF16;

/// Elements ahead of a stream that is read once: the CPU's own prefetching stops at each page. Into the second cache: more lines may
/// be on their way there than to the first.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 1024;

/// # Safety
/// `args` must satisfy the contract of [`WidenF16`].
pub unsafe extern "C" fn portable(args: *const WidenF16) {
    // SAFETY: the caller passes valid arguments.
    unsafe {
        let w = &*args;
        for i in 0..w.n {
            *w.dst.add(i) = f16::from_bits(*w.src.add(i)).to_f32();
        }
    }
}

/// # Safety
/// `args` must satisfy the contract of [`WidenF16`]; the CPU must have F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
pub unsafe extern "C" fn avx2(args: *const WidenF16) {
    use core::arch::x86_64::*;
    // SAFETY: whole vectors lie inside; what is ahead of the stream is not read.
    unsafe {
        let w = &*args;
        for i in (0..w.n).step_by(8) {
            if i % 32 == 0 {
                _mm_prefetch::<_MM_HINT_T1>(w.src.wrapping_add(i + AHEAD).cast());
            }
            let x = _mm256_cvtph_ps(_mm_loadu_si128(w.src.add(i).cast()));
            _mm256_storeu_ps(w.dst.add(i), x);
        }
    }
}

/// # Safety
/// `args` must satisfy the contract of [`WidenF16`]; the CPU must have AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub unsafe extern "C" fn avx512(args: *const WidenF16) {
    use core::arch::x86_64::*;
    // SAFETY: whole vectors lie inside; what is ahead of the stream is not read.
    unsafe {
        let w = &*args;
        for i in (0..w.n).step_by(32) {
            _mm_prefetch::<_MM_HINT_T1>(w.src.wrapping_add(i + AHEAD).cast());
            for i in [i, i + 16] {
                let x = _mm512_cvtph_ps(_mm256_loadu_si256(w.src.add(i).cast()));
                _mm512_storeu_ps(w.dst.add(i), x);
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
    fn every_half_is_widened_exactly() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for_each_level(Import::WidenF16 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::WidenF16`.
            let kernel: unsafe extern "C" fn(*const WidenF16) =
                unsafe { core::mem::transmute(address) };
            let mut got = vec![0f32; all.len()];
            let args = WidenF16 {
                src: all.as_ptr(),
                dst: got.as_mut_ptr(),
                n: all.len(),
            };
            // SAFETY: the arguments describe the buffers above.
            unsafe { kernel(&args) };
            for (&bits, got) in all.iter().zip(got) {
                let want = f16::from_bits(bits).to_f32();
                let same = got == want || got.is_nan() && want.is_nan();
                assert!(same, "{level:?}, {bits:#x}: {got}, not {want}");
            }
        });
    }
}
