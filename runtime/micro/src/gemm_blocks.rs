//! One tile of 8-bit activations times weights of 2, 4 or 8 bits, both in blocks along `k` that share a scale.
//!
//! One layout of weights serves every number of rows: it is one forward stream for each panel of 16 columns, scales
//! right before the codes that they are for, which is what a single row is bound by (see [`GemmBlocks`] for the picture).
//! Codes are unsigned and are unpacked by masks and shifts in registers; the zero point comes in as where the sums
//! start. Integer sums of a block are exact; blocks are added up in f32 in their order, with a fused
//! multiply-add where the level has one.

use half::f16;
use lapidary_abi::kernel::{GemmBlocks, MAX_BLOCK, PANEL_BLOCKS};

/// Bytes that hold `32 / bits` consecutive `k` of 16 columns.
const LINE: usize = PANEL_BLOCKS * 4;

/// Bytes of a block's zero points.
const ZEROS: usize = PANEL_BLOCKS;

/// Checks what memory safety does not depend on, but results do.
#[inline(always)]
fn check(g: &GemmBlocks) {
    debug_assert!(matches!(g.bits, 2 | 4 | 8) && matches!(g.scale_bytes, 2 | 4));
    debug_assert!(g.block <= MAX_BLOCK && (g.block * g.bits as usize).is_multiple_of(32));
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
        let (bits, mask) = (g.bits as usize, (0xFFu16 >> (8 - g.bits)) as u8);
        for r in 0..g.rows as usize {
            let (mut a, mut w) = (g.a.add(r * g.a_stride), g.w);
            let mut out = [0f32; PANEL_BLOCKS];
            for _ in 0..g.blocks {
                let scales = w;
                w = w.add(PANEL_BLOCKS * g.scale_bytes as usize);
                let offset = a.cast::<i32>().read_unaligned();
                let mut sums = [offset; PANEL_BLOCKS];
                if g.zeros != 0 {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum *= i32::from(*w.add(j));
                    }
                    w = w.add(ZEROS);
                }
                a = a.add(4);
                for _ in 0..g.block * bits / 32 {
                    let line = &*w.cast::<[[u8; 4]; PANEL_BLOCKS]>();
                    for p in 0..8 / bits {
                        let act = a.add(4 * p).cast::<[i8; 4]>().read().map(i32::from);
                        for j in 0..PANEL_BLOCKS {
                            for q in 0..4 {
                                sums[j] += i32::from(line[j][q] >> (p * bits) & mask) * act[q];
                            }
                        }
                    }
                    w = w.add(LINE);
                    a = a.add(32 / bits);
                }
                let act_scale = a.cast::<f32>().read_unaligned();
                a = a.add(4);
                for j in 0..PANEL_BLOCKS {
                    let scale = match g.scale_bytes {
                        2 => f16::from_le_bytes(scales.cast::<[u8; 2]>().add(j).read()).to_f32(),
                        _ => scales.cast::<f32>().add(j).read_unaligned(),
                    };
                    out[j] += sums[j] as f32 * (scale * act_scale);
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
                2 => rows::<4>(g),
                4 => rows::<2>(g),
                _ => rows::<1>(g),
            }
        }
    }

    /// All rows, in as few passes over the panel as there are instances for.
    ///
    /// # Safety
    /// The block is valid and has codes of `8 / PLANES` bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn rows<const PLANES: usize>(g: &GemmBlocks) {
        let (mut done, rows) = (0, g.rows as usize);
        while done < rows {
            // SAFETY: each pass is within the rows.
            done += unsafe {
                match rows - done {
                    1 => tile::<1, PLANES>(g, done),
                    2 | 3 => tile::<2, PLANES>(g, done),
                    4..8 => tile::<4, PLANES>(g, done),
                    8..12 => tile::<8, PLANES>(g, done),
                    _ => tile::<12, PLANES>(g, done),
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

    /// `ROWS` rows from `first` on; how many that are.
    ///
    /// # Safety
    /// The block is valid, has these rows and codes of `8 / PLANES` bits.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn tile<const ROWS: usize, const PLANES: usize>(g: &GemmBlocks, first: usize) -> usize {
        let bits = 8 / PLANES;
        let low = _mm512_set1_epi8((0xFFu16 >> (8 - bits)) as u8 as i8);
        // With registers to spare, fields are left where they are, and their sums are shifted at the end.
        let apart = ROWS * PLANES <= 8;
        let shift = |p: usize| _mm_cvtsi32_si128((bits * p) as i32);
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
                let mut sums = [[_mm512_setzero_si512(); PLANES]; ROWS];
                for r in 0..ROWS {
                    sums[r][0] = _mm512_set1_epi32(at(&a, r).cast::<i32>().read_unaligned());
                }
                if g.zeros != 0 {
                    let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(w.cast()));
                    for r in 0..ROWS {
                        sums[r][0] = _mm512_mullo_epi32(sums[r][0], zeros);
                    }
                    w = w.add(ZEROS);
                }
                a = a.map(|a| a.wrapping_add(4));
                for _ in 0..g.block / (4 * PLANES) {
                    let line = _mm512_loadu_si512(w.cast());
                    if ROWS == 1 {
                        _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(AHEAD_ALONE).cast());
                    } else if ROWS <= 8 {
                        _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                    }
                    for p in 0..PLANES {
                        let codes = if apart {
                            _mm512_and_si512(line, _mm512_sll_epi16(low, shift(p)))
                        } else {
                            _mm512_and_si512(_mm512_srl_epi16(line, shift(p)), low)
                        };
                        let to = if apart { p } else { 0 };
                        for r in 0..ROWS {
                            let act = at(&a, r).wrapping_add(4 * p).cast::<i32>().read_unaligned();
                            sums[r][to] =
                                _mm512_dpbusd_epi32(sums[r][to], codes, _mm512_set1_epi32(act));
                        }
                    }
                    w = w.add(LINE);
                    a = a.map(|a| a.wrapping_add(4 * PLANES));
                }
                let scale = match g.scale_bytes {
                    2 => _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast())),
                    _ => _mm512_loadu_ps(scales.cast()),
                };
                for r in 0..ROWS {
                    let mut sum = sums[r][0];
                    for p in 1..if apart { PLANES } else { 1 } {
                        let more = _mm512_sra_epi32(sums[r][p], shift(p));
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
    //! `vpmaddubsw` on fields of at most 4 bits, whose products add up in 16 bits without saturation; a code of 8 bits is
    //! two of them.

    use core::arch::x86_64::*;

    use super::*;

    /// Lines whose sums are kept in 16 bits: 8 sums of two products, `8 * 2 * 15 * 128 = 30,720`.
    const SHORT: usize = 8;

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
                4 => rows::<4>(g),
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

    /// `ROWS` rows from `first` on; how many that are. Halves of a line are columns 0..8 and 8..16.
    ///
    /// # Safety
    /// The block is valid, has these rows and codes of `BITS` bits.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<const ROWS: usize, const BITS: usize>(g: &GemmBlocks, first: usize) -> usize {
        // Fields of a byte, and the place in a column's 4 bytes of activations that a field goes with.
        let field = BITS.min(4);
        let (fields, step) = (8 / field, 32 / BITS);
        let low = _mm256_set1_epi8((0xFFu16 >> (8 - field)) as u8 as i8);
        let ones = _mm256_set1_epi16(1);
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
                for r in 0..ROWS {
                    sums[r] = [_mm256_set1_epi32(a[r].cast::<i32>().read_unaligned()); 2];
                }
                if g.zeros != 0 {
                    for h in 0..2 {
                        let zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(w.add(8 * h).cast()));
                        for r in 0..ROWS {
                            sums[r][h] = _mm256_mullo_epi32(sums[r][h], zeros);
                        }
                    }
                    w = w.add(ZEROS);
                }
                a = a.map(|a| a.add(4));
                let mut left = g.block / step;
                while left > 0 {
                    let n = left.min(SHORT / fields);
                    // The high half of codes of 8 bits counts 16 times.
                    let mut short = [[[_mm256_setzero_si256(); 2]; 2]; ROWS];
                    for _ in 0..n {
                        for h in 0..2 {
                            let line = _mm256_loadu_si256(w.add(32 * h).cast());
                            for f in 0..fields {
                                let shift = _mm_cvtsi32_si128((field * f) as i32);
                                let codes = _mm256_and_si256(_mm256_srl_epi16(line, shift), low);
                                let (at, to) = if BITS == 8 { (0, f) } else { (4 * f, 0) };
                                for r in 0..ROWS {
                                    let act = a[r].add(at).cast::<i32>().read_unaligned();
                                    let products =
                                        _mm256_maddubs_epi16(codes, _mm256_set1_epi32(act));
                                    short[r][to][h] = _mm256_add_epi16(short[r][to][h], products);
                                }
                            }
                        }
                        w = w.add(LINE);
                        a = a.map(|a| a.add(step));
                    }
                    for r in 0..ROWS {
                        for h in 0..2 {
                            let sum = _mm256_madd_epi16(short[r][0][h], ones);
                            sums[r][h] = _mm256_add_epi32(sums[r][h], sum);
                            if BITS == 8 {
                                let high = _mm256_madd_epi16(short[r][1][h], ones);
                                let high = _mm256_slli_epi32::<4>(high);
                                sums[r][h] = _mm256_add_epi32(sums[r][h], high);
                            }
                        }
                    }
                    left -= n;
                }
                for h in 0..2 {
                    let scale = match g.scale_bytes {
                        2 => _mm256_cvtph_ps(_mm_loadu_si128(scales.add(16 * h).cast())),
                        _ => _mm256_loadu_ps(scales.add(32 * h).cast()),
                    };
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
        zeros: bool,
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
        let zero = |b: usize, j: usize| {
            if case.zeros {
                zeros[b * PANEL_BLOCKS + j]
            } else {
                1 << (bits - 1)
            }
        };
        let scales: Vec<f32> = (0..blocks * PANEL_BLOCKS)
            .map(|_| f16::from_f32(random.int(-400, 400) as f32 / 256.0).to_f32())
            .collect();
        let act_scales: Vec<f32> = (0..blocks * rows)
            .map(|_| random.int(1, 100) as f32 / 50.0)
            .collect();
        let bias: Vec<f32> = (0..case.cols).map(|_| random.int(-50, 50) as f32).collect();
        let mut a = vec![];
        for r in 0..rows {
            for b in 0..blocks {
                let own = &acts[r * k + b * block..][..block];
                let factor = if case.zeros { 1 } else { 1 << (bits - 1) };
                a.extend((-factor * own.iter().sum::<i64>() as i32).to_le_bytes());
                a.extend(own.iter().map(|&x| x as u8));
                a.extend(act_scales[r * blocks + b].to_le_bytes());
            }
        }
        let mut w = vec![];
        for b in 0..blocks {
            for j in 0..PANEL_BLOCKS {
                let scale = scales[b * PANEL_BLOCKS + j];
                match case.halves {
                    true => w.extend(f16::from_f32(scale).to_le_bytes()),
                    false => w.extend(scale.to_le_bytes()),
                }
            }
            if case.zeros {
                w.extend((0..PANEL_BLOCKS).map(|j| zero(b, j) as u8));
            }
            for k0 in (b * block..(b + 1) * block).step_by(32 / bits as usize) {
                for j in 0..PANEL_BLOCKS {
                    for q in 0..4 {
                        let field = |p: u32| {
                            let at = k0 + 4 * p as usize + q;
                            (codes[at * PANEL_BLOCKS + j] as u8) << (p * bits)
                        };
                        w.push((0..8 / bits).fold(0, |byte, p| byte | field(p)));
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
                let term = sum as f64 * scale * f64::from(act_scales[r * blocks + b]);
                want += term;
                size += term.abs();
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
            zeros: u32::from(case.zeros),
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
        for bits in [2, 4, 8] {
            for block in [16, 32, 48, 64, 128, 272] {
                for rows in 1..=MAX_ROWS_BLOCKS {
                    let case = Case {
                        bits,
                        block,
                        blocks: 1 + (rows + block / 16) % 4,
                        rows,
                        cols: [16, 16, 1, 7, 9, 15][(rows + block / 16) % 6],
                        halves: random.int(0, 1) == 1,
                        zeros: random.int(0, 1) == 1,
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
