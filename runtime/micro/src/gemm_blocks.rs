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
pub mod avx512 {
    //! `vpdpbusd`: lane *j* of a vector is column *j*, activations are broadcast from memory.

    use core::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// `args` must satisfy the contract of [`GemmBlocks`]; the CPU must have AVX-512 F, BW and VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub unsafe extern "C" fn entry(args: *const GemmBlocks) {
        // SAFETY: the caller passes a valid block.
        unsafe {
            let g = &*args;
            check(g);
            match g.bits {
                2 => rows::<2>(g),
                3 => rows::<3>(g),
                4 => rows::<4>(g),
                5 => rows::<5>(g),
                6 => rows::<6>(g),
                _ => rows::<8>(g),
            }
        }
    }

    /// All rows, in as few passes over the panel as there are instances for.
    ///
    /// # Safety
    /// The block is valid and has codes of `BITS` bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn rows<const BITS: usize>(g: &GemmBlocks) {
        let (mut done, rows) = (0, g.rows as usize);
        while done < rows {
            // SAFETY: each pass is within the rows.
            done += unsafe {
                match rows - done {
                    1 => tile::<1, BITS>(g, done),
                    2 | 3 => tile::<2, BITS>(g, done),
                    4..8 => tile::<4, BITS>(g, done),
                    8..12 => tile::<8, BITS>(g, done),
                    _ => tile::<12, BITS>(g, done),
                }
            };
        }
    }

    /// Rows whose addresses are one pointer and a multiple of the stride: what an address can hold.
    const TRIPLE: usize = 3;

    /// Bytes ahead of a stream that few rows wait for: the CPU's own prefetching stops at each page.
    const AHEAD: usize = 2048;
    /// Of a stream that one row waits for, into the second cache: more lines may be on their way there than to the first.
    const AHEAD_ALONE: usize = 1024;

    /// The numbers of the columns.
    ///
    /// # Safety
    /// There are numbers of 2 or 4 bytes at `at`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn numbers(at: *const u8, bytes: u32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            match bytes {
                2 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
                _ => _mm512_loadu_ps(at.cast()),
            }
        }
    }

    /// How far to shift.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn by(bits: usize) -> __m128i {
        _mm_cvtsi32_si128(bits as i32)
    }

    /// The codes of the steps from `4 * q` on of the unit at `w`, which are of two parts.
    ///
    /// # Safety
    /// There is a unit of codes of `BITS` bits at `w`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn joined<const BITS: usize>(w: *const u8, q: usize) -> __m512i {
        let codes = const { Codes::of(BITS) };
        let ((line, at), (high_line, high_at)) = (codes.low_at(q), codes.high_at(q));
        // SAFETY: lines of the unit.
        let (low, high) = unsafe {
            (
                _mm512_loadu_si512(w.add(line * LINE).cast()),
                _mm512_loadu_si512(w.add(high_line * LINE).cast()),
            )
        };
        let low = _mm512_srl_epi16(low, by(at));
        let high = match high_at < codes.low {
            true => _mm512_sll_epi16(high, by(codes.low - high_at)),
            false => _mm512_srl_epi16(high, by(high_at - codes.low)),
        };
        // Of the first where the mask is 1, else of the second.
        let mask = _mm512_set1_epi8(low_bits(codes.low) as i8);
        let both = _mm512_ternarylogic_epi32::<0xE4>(low, high, mask);
        _mm512_and_si512(both, _mm512_set1_epi8(low_bits(BITS) as i8))
    }

    /// `ROWS` rows from `first` on; how many that are.
    ///
    /// # Safety
    /// The block is valid, has these rows and codes of `BITS` bits.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn tile<const ROWS: usize, const BITS: usize>(g: &GemmBlocks, first: usize) -> usize {
        let codes = const { Codes::of(BITS) };
        let low = _mm512_set1_epi8(low_bits(codes.low) as i8);
        // With registers to spare, fields are left where they are, and their sums are shifted at the end.
        let whole = codes.high == 0;
        let planes = 8 / BITS;
        let apart = whole && ROWS * planes <= 8;
        let stride = g.a_stride;
        // SAFETY: the stream and the rows advance by exactly the stated bytes.
        unsafe {
            let mut a: [*const u8; 4] =
                core::array::from_fn(|i| g.a.wrapping_add((first + TRIPLE * i) * stride));
            let at = |a: &[*const u8; 4], r: usize| a[r / TRIPLE].wrapping_add(r % TRIPLE * stride);
            let mut w = g.w;
            let mut out = [_mm512_setzero_ps(); ROWS];
            for _ in 0..g.blocks {
                let scales = w;
                w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
                let mut sums = [[_mm512_setzero_si512(); 4]; ROWS];
                if g.zeros == ZEROS_MINIMUMS {
                    let minimums = numbers(w, g.scale_bytes);
                    w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
                    for r in 0..ROWS {
                        let a = at(&a, r);
                        let scale = a.wrapping_add(4 + g.block).cast::<f32>().read_unaligned();
                        let total = a.cast::<i32>().read_unaligned() as f32 * scale;
                        out[r] = _mm512_fmadd_ps(_mm512_set1_ps(total), minimums, out[r]);
                    }
                } else {
                    for r in 0..ROWS {
                        sums[r][0] = _mm512_set1_epi32(at(&a, r).cast::<i32>().read_unaligned());
                    }
                }
                if g.zeros == ZEROS_CODES {
                    let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(w.cast()));
                    for r in 0..ROWS {
                        sums[r][0] = _mm512_mullo_epi32(sums[r][0], zeros);
                    }
                    w = w.add(PANEL_BLOCKS);
                }
                a = a.map(|a| a.wrapping_add(4));
                for _ in 0..g.block / codes.unit {
                    for line in 0..codes.lines {
                        let w = w.wrapping_add(line * LINE);
                        if ROWS == 1 {
                            _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(AHEAD_ALONE).cast());
                        } else if ROWS <= 8 {
                            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                        }
                    }
                    for q in 0..codes.unit / 4 {
                        let of_four = if apart {
                            let line = _mm512_loadu_si512(w.cast());
                            _mm512_and_si512(line, _mm512_sll_epi16(low, by(BITS * q)))
                        } else if whole {
                            let line = _mm512_loadu_si512(w.cast());
                            _mm512_and_si512(_mm512_srl_epi16(line, by(BITS * q)), low)
                        } else {
                            joined::<BITS>(w, q)
                        };
                        let to = if apart { q } else { 0 };
                        for r in 0..ROWS {
                            let act = at(&a, r).wrapping_add(4 * q).cast::<i32>().read_unaligned();
                            sums[r][to] =
                                _mm512_dpbusd_epi32(sums[r][to], of_four, _mm512_set1_epi32(act));
                        }
                    }
                    w = w.add(codes.lines * LINE);
                    a = a.map(|a| a.wrapping_add(codes.unit));
                }
                let scale = numbers(scales, g.scale_bytes);
                for r in 0..ROWS {
                    let mut sum = sums[r][0];
                    for p in 1..if apart { planes } else { 1 } {
                        let more = _mm512_sra_epi32(sums[r][p], by(BITS * p));
                        sum = _mm512_add_epi32(sum, more);
                    }
                    let act_scale = _mm512_set1_ps(at(&a, r).cast::<f32>().read_unaligned());
                    let scale = _mm512_mul_ps(scale, act_scale);
                    out[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, out[r]);
                }
                a = a.map(|a| a.wrapping_add(4));
            }
            let cols = ((1u32 << g.cols) - 1) as u16;
            let bias = if g.bias.is_null() {
                _mm512_setzero_ps()
            } else {
                _mm512_maskz_loadu_ps(cols, g.bias)
            };
            let (lo, hi) = (_mm512_set1_ps(g.lo), _mm512_set1_ps(g.hi));
            for r in 0..ROWS {
                // The bound is the first operand: what is no number stays none.
                let x = _mm512_max_ps(lo, _mm512_add_ps(out[r], bias));
                let x = _mm512_min_ps(hi, x);
                _mm512_mask_storeu_ps(g.c.add((first + r) * g.c_stride), cols, x);
            }
        }
        ROWS
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! `vpmaddubsw` on codes of at most 6 bits, of whose products a few add up in 16 bits without saturation; a code of 8 bits is
    //! two of 4.

    use core::arch::x86_64::*;

    use super::*;

    /// How many sums of two products of codes of `bits` bits add up within 16 bits.
    const fn short(bits: usize) -> usize {
        i16::MAX as usize / (2 * 128 * low_bits(bits) as usize)
    }

    /// # Safety
    /// `args` must satisfy the contract of [`GemmBlocks`]; the CPU must have AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe extern "C" fn entry(args: *const GemmBlocks) {
        // SAFETY: the caller passes a valid block.
        unsafe {
            let g = &*args;
            check(g);
            match g.bits {
                2 => rows::<2>(g),
                3 => rows::<3>(g),
                4 => rows::<4>(g),
                5 => rows::<5>(g),
                6 => rows::<6>(g),
                _ => rows::<8>(g),
            }
        }
    }

    /// # Safety
    /// The block is valid and has codes of `BITS` bits.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn rows<const BITS: usize>(g: &GemmBlocks) {
        let mut done = 0;
        while done < g.rows as usize {
            // SAFETY: each pass is within the rows.
            done += unsafe {
                match g.rows as usize - done {
                    1 => tile::<1, BITS>(g, done),
                    _ => tile::<2, BITS>(g, done),
                }
            };
        }
    }

    /// The numbers of the columns from `8 * h` on.
    ///
    /// # Safety
    /// There are numbers of 2 or 4 bytes of 16 columns at `at`.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn numbers(at: *const u8, bytes: u32, h: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            match bytes {
                2 => _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * h).cast())),
                _ => _mm256_loadu_ps(at.add(32 * h).cast()),
            }
        }
    }

    /// The fields of `bits` bits from bit `at` on of half a line, moved to the bits from `to` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn field(line: __m256i, (at, to): (usize, usize), bits: usize) -> __m256i {
        let moved = match at < to {
            true => _mm256_sll_epi16(line, _mm_cvtsi32_si128((to - at) as i32)),
            false => _mm256_srl_epi16(line, _mm_cvtsi32_si128((at - to) as i32)),
        };
        _mm256_and_si256(moved, _mm256_set1_epi8((low_bits(bits) << to) as i8))
    }

    /// The codes of the steps from `4 * q` on and the columns from `8 * h` on of the unit at `w`; of those of 8 bits one half.
    ///
    /// # Safety
    /// There is a unit of codes of `BITS` bits at `w`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes<const BITS: usize>(w: *const u8, q: usize, h: usize, half: usize) -> __m256i {
        let codes = const { Codes::of(BITS) };
        // SAFETY: lines of the unit.
        let line = |line: usize| unsafe { _mm256_loadu_si256(w.add(line * LINE + 32 * h).cast()) };
        let (low, at) = codes.low_at(q);
        let own = field(line(low), (at + 4 * half, 0), codes.low.min(4));
        if codes.high == 0 {
            return own;
        }
        let (high, at) = codes.high_at(q);
        _mm256_or_si256(own, field(line(high), (at, codes.low), codes.high))
    }

    /// `ROWS` rows from `first` on; how many that are. Halves of a line are columns 0..8 and 8..16.
    ///
    /// # Safety
    /// The block is valid, has these rows and codes of `BITS` bits.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<const ROWS: usize, const BITS: usize>(g: &GemmBlocks, first: usize) -> usize {
        let form = const { Codes::of(BITS) };
        // Of a code of 8 bits halves are multiplied, the high one counts 16 times.
        let halves = if BITS == 8 { 2 } else { 1 };
        let (groups, most) = (form.unit / 4, short(BITS / halves));
        let run = most.min(groups);
        let pairs = _mm256_set1_epi16(1);
        // SAFETY: the stream and the rows advance by exactly the stated bytes.
        unsafe {
            let mut a: [*const u8; ROWS] =
                core::array::from_fn(|r| g.a.add((first + r) * g.a_stride));
            let mut w = g.w;
            let mut out = [[_mm256_setzero_ps(); 2]; ROWS];
            for _ in 0..g.blocks {
                let scales = w;
                w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
                let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
                if g.zeros == ZEROS_MINIMUMS {
                    for r in 0..ROWS {
                        let scale = a[r].add(4 + g.block).cast::<f32>().read_unaligned();
                        let total = a[r].cast::<i32>().read_unaligned() as f32 * scale;
                        for h in 0..2 {
                            let minimums = numbers(w, g.scale_bytes, h);
                            out[r][h] = _mm256_fmadd_ps(_mm256_set1_ps(total), minimums, out[r][h]);
                        }
                    }
                    w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
                } else {
                    for r in 0..ROWS {
                        sums[r] = [_mm256_set1_epi32(a[r].cast::<i32>().read_unaligned()); 2];
                    }
                }
                if g.zeros == ZEROS_CODES {
                    for h in 0..2 {
                        let zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(w.add(8 * h).cast()));
                        for r in 0..ROWS {
                            sums[r][h] = _mm256_mullo_epi32(sums[r][h], zeros);
                        }
                    }
                    w = w.add(PANEL_BLOCKS);
                }
                a = a.map(|a| a.add(4));
                let mut left = g.block / form.unit;
                while left > 0 {
                    // Several units, or a few steps of one.
                    let n = left.min((most / groups).max(1));
                    for from in (0..groups).step_by(run) {
                        let mut short = [[[_mm256_setzero_si256(); 2]; 2]; ROWS];
                        for unit in 0..n {
                            let w = w.add(unit * form.lines * LINE);
                            for q in from..from + run {
                                for (h, half) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                                    if half == halves {
                                        continue;
                                    }
                                    let codes = codes::<BITS>(w, q, h, half);
                                    for r in 0..ROWS {
                                        let act = a[r].add(unit * form.unit + 4 * q);
                                        let act =
                                            _mm256_set1_epi32(act.cast::<i32>().read_unaligned());
                                        let products = _mm256_maddubs_epi16(codes, act);
                                        short[r][half][h] =
                                            _mm256_add_epi16(short[r][half][h], products);
                                    }
                                }
                            }
                        }
                        for r in 0..ROWS {
                            for h in 0..2 {
                                let sum = _mm256_madd_epi16(short[r][0][h], pairs);
                                sums[r][h] = _mm256_add_epi32(sums[r][h], sum);
                                if halves == 2 {
                                    let high = _mm256_madd_epi16(short[r][1][h], pairs);
                                    let high = _mm256_slli_epi32::<4>(high);
                                    sums[r][h] = _mm256_add_epi32(sums[r][h], high);
                                }
                            }
                        }
                    }
                    w = w.add(n * form.lines * LINE);
                    a = a.map(|a| a.add(n * form.unit));
                    left -= n;
                }
                for h in 0..2 {
                    let scale = numbers(scales, g.scale_bytes, h);
                    for r in 0..ROWS {
                        let act_scale = _mm256_set1_ps(a[r].cast::<f32>().read_unaligned());
                        let scale = _mm256_mul_ps(scale, act_scale);
                        let sum = _mm256_cvtepi32_ps(sums[r][h]);
                        out[r][h] = _mm256_fmadd_ps(sum, scale, out[r][h]);
                    }
                }
                a = a.map(|a| a.add(4));
            }
            let cols = g.cols as usize;
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let (lo, hi) = (_mm256_set1_ps(g.lo), _mm256_set1_ps(g.hi));
            for h in 0..2 {
                let there = _mm256_set1_epi32(cols as i32 - 8 * h as i32);
                let mask = _mm256_cmpgt_epi32(there, lanes);
                let bias = if g.bias.is_null() {
                    _mm256_setzero_ps()
                } else {
                    _mm256_maskload_ps(g.bias.wrapping_add(8 * h), mask)
                };
                for r in 0..ROWS {
                    // The bound is the first operand: what is no number stays none.
                    let x = _mm256_max_ps(lo, _mm256_add_ps(out[r][h], bias));
                    let x = _mm256_min_ps(hi, x);
                    let to = g.c.wrapping_add((first + r) * g.c_stride + 8 * h);
                    _mm256_maskstore_ps(to, mask, x);
                }
            }
        }
        ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::{Import, MAX_ROWS_BLOCKS};

    struct Case {
        bits: u32,
        block: usize,
        blocks: usize,
        rows: usize,
        cols: usize,
        halves: bool,
        zeros: u32,
        bias: bool,
        extremes: bool,
    }

    /// What a case multiplies, with the definition beside the stored bytes.
    struct Operands {
        a: Vec<u8>,
        w: Vec<u8>,
        bias: Vec<f32>,
        /// Expected results and the sum of the absolute values that make them.
        want: Vec<(f64, f64)>,
    }

    fn operands(case: &Case, random: &mut Random) -> Operands {
        let Case {
            bits,
            block,
            blocks,
            rows,
            ..
        } = *case;
        let k = block * blocks;
        let top = (1i64 << bits) - 1;
        let codes: Vec<i64> = (0..k * PANEL_BLOCKS)
            .map(|i| {
                if case.extremes {
                    top * (i as i64 % 2)
                } else {
                    random.int(0, top)
                }
            })
            .collect();
        let acts: Vec<i64> = (0..k * rows)
            .map(|_| {
                if case.extremes {
                    -128
                } else {
                    random.int(-128, 127)
                }
            })
            .collect();
        let zeros: Vec<i64> = (0..blocks * PANEL_BLOCKS)
            .map(|_| random.int(0, top))
            .collect();
        let zero = |b: usize, j: usize| match case.zeros {
            ZEROS_CODES => zeros[b * PANEL_BLOCKS + j],
            ZEROS_MINIMUMS => 0,
            _ => 1 << (bits - 1),
        };
        let scales: Vec<f32> = (0..blocks * PANEL_BLOCKS)
            .map(|_| f16::from_f32(random.int(-400, 400) as f32 / 256.0).to_f32())
            .collect();
        let minimums: Vec<f32> = (0..blocks * PANEL_BLOCKS)
            .map(|_| match case.zeros {
                ZEROS_MINIMUMS => random.int(-300, 300) as f32 / 128.0,
                _ => 0.0,
            })
            .collect();
        let act_scales: Vec<f32> = (0..blocks * rows)
            .map(|_| random.int(1, 100) as f32 / 50.0)
            .collect();
        let bias: Vec<f32> = (0..case.cols).map(|_| random.int(-50, 50) as f32).collect();
        let mut a = vec![];
        for r in 0..rows {
            for b in 0..blocks {
                let own = &acts[r * k + b * block..][..block];
                let factor = match case.zeros {
                    ZEROS_CODES => -1,
                    ZEROS_MINIMUMS => 1,
                    _ => -(1 << (bits - 1)),
                };
                a.extend((factor * own.iter().sum::<i64>() as i32).to_le_bytes());
                a.extend(own.iter().map(|&x| x as u8));
                a.extend(act_scales[r * blocks + b].to_le_bytes());
            }
        }
        let mut w = vec![];
        for b in 0..blocks {
            let mut numbers = |all: &[f32]| {
                for &number in &all[b * PANEL_BLOCKS..][..PANEL_BLOCKS] {
                    match case.halves {
                        true => w.extend(f16::from_f32(number).to_le_bytes()),
                        false => w.extend(number.to_le_bytes()),
                    }
                }
            };
            numbers(&scales);
            if case.zeros == ZEROS_MINIMUMS {
                numbers(&minimums);
            }
            if case.zeros == ZEROS_CODES {
                w.extend((0..PANEL_BLOCKS).map(|j| zero(b, j) as u8));
            }
            let unit = code_unit(bits) as usize;
            for k0 in (b * block..(b + 1) * block).step_by(unit) {
                let (low, high) = code_parts(bits);
                for (width, from) in [(low, 0), (high, low)].into_iter().filter(|p| p.0 > 0) {
                    for line in (k0..k0 + unit).step_by(32 / width as usize) {
                        for (j, i) in (0..PANEL_BLOCKS).flat_map(|j| (0..4).map(move |i| (j, i))) {
                            let field = |p: u32| {
                                let at = line + 4 * p as usize + i;
                                let code = codes[at * PANEL_BLOCKS + j] as u8 >> from;
                                (code & low_bits(width as usize)) << (p * width)
                            };
                            w.push((0..8 / width).fold(0, |byte, p| byte | field(p)));
                        }
                    }
                }
            }
        }
        let element = |r: usize, j: usize| {
            let (mut want, mut size) = (0f64, 0f64);
            for b in 0..blocks {
                let sum: i64 = (b * block..(b + 1) * block)
                    .map(|k_at| (codes[k_at * PANEL_BLOCKS + j] - zero(b, j)) * acts[r * k + k_at])
                    .sum();
                let scale = f64::from(scales[b * PANEL_BLOCKS + j]);
                let total: i64 = acts[r * k + b * block..][..block].iter().sum();
                let minimum = f64::from(minimums[b * PANEL_BLOCKS + j]);
                for term in [sum as f64 * scale, total as f64 * minimum] {
                    let term = term * f64::from(act_scales[r * blocks + b]);
                    want += term;
                    size += term.abs();
                }
            }
            if case.bias {
                want += f64::from(bias[j]);
                size += f64::from(bias[j].abs());
            }
            (want.clamp(-3000.0, 3000.0), size)
        };
        let want = (0..rows)
            .flat_map(|r| (0..case.cols).map(move |j| (r, j)))
            .map(|(r, j)| element(r, j))
            .collect();
        Operands { a, w, bias, want }
    }

    fn run(kernel: unsafe extern "C" fn(*const GemmBlocks), case: &Case, o: &Operands) -> Vec<f32> {
        let pitch = case.cols + 3;
        let mut c = vec![f32::NAN; case.rows * pitch];
        let block = GemmBlocks {
            a: o.a.as_ptr(),
            w: o.w.as_ptr(),
            c: c.as_mut_ptr(),
            bias: if case.bias {
                o.bias.as_ptr()
            } else {
                core::ptr::null()
            },
            a_stride: o.a.len() / case.rows,
            c_stride: pitch,
            block: case.block,
            blocks: case.blocks,
            rows: case.rows as u32,
            cols: case.cols as u32,
            bits: case.bits,
            scale_bytes: if case.halves { 2 } else { 4 },
            zeros: case.zeros,
            lo: -3000.0,
            hi: 3000.0,
        };
        // SAFETY: the block describes the buffers above.
        unsafe { kernel(&block) };
        for row in c.chunks(pitch) {
            assert!(
                row[case.cols..].iter().all(|x| x.is_nan()),
                "wrote past the columns"
            );
        }
        c.chunks(pitch)
            .flat_map(|row| row[..case.cols].to_vec())
            .collect()
    }

    #[test]
    fn every_form_equals_the_definition() {
        let mut random = Random(3);
        for bits in CODE_WIDTHS {
            let unit = code_unit(bits) as usize;
            let blocks = [16, 32, 48, 64, 96, 128, 272];
            for block in blocks.into_iter().filter(|b| b % unit == 0) {
                for rows in 1..=MAX_ROWS_BLOCKS {
                    let case = Case {
                        bits,
                        block,
                        blocks: 1 + (rows + block / 16) % 4,
                        rows,
                        cols: [16, 16, 1, 7, 9, 15][(rows + block / 16) % 6],
                        halves: random.int(0, 1) == 1,
                        zeros: random.int(0, 2) as u32,
                        bias: random.int(0, 1) == 1,
                        extremes: random.int(0, 3) == 0,
                    };
                    let o = operands(&case, &mut random);
                    for_each_level(Import::GemmBlocks as usize, |level, address| {
                        // SAFETY: the table holds a function of this type at `Import::GemmBlocks`.
                        let kernel: unsafe extern "C" fn(*const GemmBlocks) =
                            unsafe { core::mem::transmute(address) };
                        for (i, (got, (want, size))) in
                            run(kernel, &case, &o).into_iter().zip(&o.want).enumerate()
                        {
                            assert!(
                                (f64::from(got) - want).abs() <= 6e-7 * size,
                                "{level:?}: {bits} bits, block {block}, {rows} rows, element {i}: {got}, not {want}"
                            );
                        }
                    });
                }
            }
        }
    }
}
