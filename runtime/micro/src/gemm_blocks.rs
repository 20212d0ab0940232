//! One tile of 8-bit activations times weights of 2 to 6 or 8 bits, both in blocks along `k` that share a scale.
//!
//! One layout of weights serves every number of rows: it is one forward stream for each panel of 16 columns, scales
//! right before the codes that they are for, which is what a single row is bound by (see [`GemmBlocks`] for the picture).
//! Codes are unsigned and are unpacked by masks and shifts in registers; the zero point comes in as where the sums
//! start. Codes of 3, 5 and 6 bits are put together of two fields first: one dot product for each costs less than one for each
//! field. Integer sums of a block are exact; blocks are added up in f32 in their order, with a fused
//! multiply-add where the level has one.

use half::f16;
use lapidary_abi::kernel::{
    CODE_WIDTHS, GemmBlocks, MAX_BLOCK, PANEL_BLOCKS, ZEROS_CODES, ZEROS_MINIMUMS, code_parts,
    code_unit,
};

/// Bytes that hold `32 / f` consecutive fields of `f` bits of 16 columns.
pub(crate) const LINE: usize = PANEL_BLOCKS * 4;

/// How codes of some width lie in their lines.
pub(crate) struct Codes {
    /// Bits of the low part.
    pub low: usize,
    /// Bits of the high part, 0 if there is none.
    pub high: usize,
    /// Steps of a unit.
    pub unit: usize,
    /// Lines of a unit.
    pub lines: usize,
}

impl Codes {
    pub const fn of(bits: usize) -> Codes {
        let (low, high) = code_parts(bits as u32);
        let unit = code_unit(bits as u32) as usize;
        Codes {
            low: low as usize,
            high: high as usize,
            unit,
            lines: unit * bits / 32,
        }
    }

    /// Line and shift of the low part of the steps from `4 * q` on.
    pub const fn low_at(&self, q: usize) -> (usize, usize) {
        let fields = 8 / self.low;
        (q / fields, q % fields * self.low)
    }

    /// The same of the high part, which is the last line.
    pub const fn high_at(&self, q: usize) -> (usize, usize) {
        (self.lines - 1, q * self.high)
    }
}

/// `bits` ones.
pub(crate) const fn low_bits(bits: usize) -> u8 {
    (0xFFu16 >> (8 - bits)) as u8
}

/// `$rows::<BITS>($g)` for the bits of the codes of a block.
macro_rules! for_width {
    ($rows:ident, $g:ident) => {
        match $g.bits {
            2 => $rows::<2>($g),
            3 => $rows::<3>($g),
            4 => $rows::<4>($g),
            5 => $rows::<5>($g),
            6 => $rows::<6>($g),
            _ => $rows::<8>($g),
        }
    };
}

/// Checks what memory safety does not depend on, but results do.
#[inline(always)]
fn check(g: &GemmBlocks) {
    debug_assert!(CODE_WIDTHS.contains(&g.bits) && matches!(g.scale_bytes, 2 | 4));
    debug_assert!(g.block <= MAX_BLOCK && g.block.is_multiple_of(code_unit(g.bits) as usize));
}

/// Plain Rust: one row at a time.
///
/// # Safety
/// `args` must satisfy the contract of [`GemmBlocks`].
pub unsafe extern "C" fn portable(args: *const GemmBlocks) {
    // SAFETY: the caller passes a valid block; pointers advance by exactly the stated bytes.
    unsafe {
        let g = &*args;
        check(g);
        let codes = Codes::of(g.bits as usize);
        let (low, high) = (low_bits(codes.low), low_bits(codes.high));
        for r in 0..g.rows as usize {
            let (mut a, mut w) = (g.a.add(r * g.a_stride), g.w);
            let mut out = [0f32; PANEL_BLOCKS];
            for _ in 0..g.blocks {
                let scales = numbers::<false>(&mut w, g.scale_bytes);
                let offset = a.cast::<i32>().read_unaligned();
                let mut sums = [offset; PANEL_BLOCKS];
                let mut minimums = None;
                match g.zeros {
                    ZEROS_CODES => {
                        for (j, sum) in sums.iter_mut().enumerate() {
                            *sum *= i32::from(*w.add(j));
                        }
                        w = w.add(PANEL_BLOCKS);
                    }
                    ZEROS_MINIMUMS => {
                        sums = [0; PANEL_BLOCKS];
                        minimums = Some(numbers::<false>(&mut w, g.scale_bytes));
                    }
                    _ => {}
                }
                a = a.add(4);
                for _ in 0..g.block / codes.unit {
                    for q in 0..codes.unit / 4 {
                        let act = a.add(4 * q).cast::<[i8; 4]>().read().map(i32::from);
                        let ((line, by), (high_line, by_high)) =
                            (codes.low_at(q), codes.high_at(q));
                        // Without a high part nothing is taken of its line.
                        let [of_low, of_high] = [line, high_line]
                            .map(|i| &*w.add(i * LINE).cast::<[[u8; 4]; PANEL_BLOCKS]>());
                        for j in 0..PANEL_BLOCKS {
                            for i in 0..4 {
                                let upper = of_high[j][i].wrapping_shr(by_high as u32) & high;
                                let code = i32::from(of_low[j][i] >> by & low)
                                    | i32::from(upper) << codes.low;
                                sums[j] += code * act[i];
                            }
                        }
                    }
                    w = w.add(codes.lines * LINE);
                    a = a.add(codes.unit);
                }
                let act_scale = a.cast::<f32>().read_unaligned();
                a = a.add(4);
                for j in 0..PANEL_BLOCKS {
                    if let Some(minimums) = minimums {
                        out[j] += offset as f32 * act_scale * minimums[j];
                    }
                    out[j] += sums[j] as f32 * (scales[j] * act_scale);
                }
            }
            for (j, &x) in out.iter().enumerate().take(g.cols as usize) {
                let x = if g.bias.is_null() {
                    x
                } else {
                    x + *g.bias.add(j)
                };
                // Not `f32::max`: what is no number stays none.
                let x = if x < g.lo { g.lo } else { x };
                let x = if x > g.hi { g.hi } else { x };
                g.c.add(r * g.c_stride + j).write(x);
            }
        }
    }
}

/// The numbers of the columns at the beginning of a stream, which advances past them.
///
/// # Safety
/// The stream has so many numbers of 2 or 4 bytes; with `F16C` the CPU converts halves.
#[inline(always)]
pub(crate) unsafe fn numbers<const F16C: bool>(
    w: &mut *const u8,
    bytes: u32,
) -> [f32; PANEL_BLOCKS] {
    // SAFETY: the caller's promise.
    unsafe {
        let at = *w;
        *w = at.add(PANEL_BLOCKS * bytes as usize);
        if bytes == 4 {
            return at.cast::<[f32; PANEL_BLOCKS]>().read_unaligned();
        }
        let halves = at.cast::<[u16; PANEL_BLOCKS]>().read_unaligned();
        #[cfg(target_arch = "x86_64")]
        if F16C {
            use core::arch::x86_64::{__m128i, __m256, _mm256_cvtph_ps};
            // `half` asks for the feature at each number.
            let halves: [__m128i; 2] = core::mem::transmute(halves);
            let numbers: [__m256; 2] = [_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1])];
            return core::mem::transmute::<[__m256; 2], [f32; PANEL_BLOCKS]>(numbers);
        }
        halves.map(|h| f16::from_bits(h).to_f32())
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512;

#[cfg(target_arch = "x86_64")]
pub mod avx2;

#[cfg(test)]
mod tests;
