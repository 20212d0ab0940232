//! `vpdpbusd` on 512 bits: 32 columns of the tile at once, one instance per number of rows.
//!
//! Sums go through memory to what makes results of them, so that there is one instance of that, not one for each tile.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::*;
use crate::{move_f32, rows_collide};
use lapidary_abi::kernel::{MAX_ROWS_I8, MAX_ROWS_INIT_I8, MoveF32};

/// Bytes of `k` that colliding rows are copied at a time.
const STAGE_LEN: usize = 512;
/// Bytes between staged rows: one cache line more, so that they do not collide.
const STAGE_PITCH: usize = STAGE_LEN + 64;

/// The sums of 32 columns.
#[repr(C, align(64))]
struct Sums([[i32; PANEL_I8]; MAX_ROWS_INIT_I8]);

/// Copies of pieces of rows, and their addresses.
#[repr(C, align(64))]
struct Stage {
    bytes: [[u8; STAGE_PITCH]; MAX_ROWS_I8],
    rows: [*const u8; MAX_ROWS_I8],
}

/// Codes of 32 columns.
#[repr(C, align(64))]
struct Bytes([[u8; PANEL_I8]; MAX_ROWS_INIT_I8]);

/// # Safety
/// `args` must satisfy the contract of [`GemmI8`]; the CPU must have AVX-512 F, BW, DQ, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe extern "C" fn entry(args: *const GemmI8) {
    let mut sums = MaybeUninit::<Sums>::uninit();
    let sums = sums.as_mut_ptr().cast::<i32>();
    // SAFETY: the caller passes a valid block; the instance is the one for its rows and columns, and writes the sums that
    // are then read.
    unsafe {
        let g = &*args;
        for c0 in (0..g.cols as usize).step_by(PANEL_I8) {
            let cols = (g.cols as usize - c0).min(PANEL_I8);
            if g.init.is_null() {
                let tiles = if cols > 16 { &WIDE } else { &NARROW };
                tiles[g.rows as usize - 1](g, c0, sums);
            } else {
                given(g, c0, sums);
            }
            match g.result {
                RESULT_I32 => write_sums(g, c0, cols, sums),
                RESULT_CODE if g.stage_count > 0 => write_codes::<true>(g, c0, cols, sums),
                RESULT_CODE => write_codes::<false>(g, c0, cols, sums),
                _ => write_numbers(g, c0, cols, sums),
            }
        }
    }
}

/// The sums of 32 columns that are given.
///
/// # Safety
/// The block is valid, `init` is not null, `out` is a [`Sums`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn given(g: &GemmI8, c0: usize, out: *mut i32) {
    let at: [i64; PANEL_I8] = core::array::from_fn(|j| ((c0 + j) * g.init_stride) as i64);
    let turned = MoveF32 {
        src: g.init.cast(),
        dst: out.cast(),
        at: at.as_ptr(),
        src_stride: 1,
        dst_stride: PANEL_I8,
        rows: g.rows as usize,
        cols: PANEL_I8,
    };
    // SAFETY: whole panels of columns are readable, and `sums` has `cols` elements.
    unsafe {
        move_f32::avx512::transposed(&turned);
        if g.a_zero == 0 {
            return;
        }
        for v in 0..2 {
            let mask = lanes(g.cols as usize, c0 + 16 * v);
            let of = _mm512_maskz_loadu_epi32(mask, g.sums.wrapping_add(c0 + 16 * v));
            let less = _mm512_mullo_epi32(of, _mm512_set1_epi32(g.a_zero));
            for r in 0..g.rows as usize {
                let at = out.add(r * PANEL_I8 + 16 * v);
                let sum = _mm512_sub_epi32(_mm512_load_si512(at.cast()), less);
                _mm512_store_si512(at.cast(), sum);
            }
        }
    }
}

type Tile = unsafe fn(&GemmI8, usize, *mut i32);

/// Instances for 17 to 32 columns, by rows. Eight accumulators hide an instruction's latency, so
/// tiles with few rows keep several partial sums.
#[rustfmt::skip]
static WIDE: [Tile; MAX_ROWS_I8] = [
    tile::<1, 2, 4>, tile::<2, 2, 2>, tile::<3, 2, 2>, tile::<4, 2, 1>, tile::<5, 2, 1>,
    tile::<6, 2, 1>, tile::<7, 2, 1>, tile::<8, 2, 1>, tile::<9, 2, 1>, tile::<10, 2, 1>,
    tile::<11, 2, 1>, tile::<12, 2, 1>, tile::<13, 2, 1>, tile::<14, 2, 1>,
];

/// Instances for up to 16 columns, by rows.
#[rustfmt::skip]
static NARROW: [Tile; MAX_ROWS_I8] = [
    tile::<1, 1, 4>, tile::<2, 1, 4>, tile::<3, 1, 4>, tile::<4, 1, 2>, tile::<5, 1, 2>,
    tile::<6, 1, 2>, tile::<7, 1, 2>, tile::<8, 1, 1>, tile::<9, 1, 1>, tile::<10, 1, 1>,
    tile::<11, 1, 1>, tile::<12, 1, 1>, tile::<13, 1, 1>, tile::<14, 1, 1>,
];

/// The sums of `R` rows by `V` vectors of 16 columns from `c0` on, with `U` (at most 4) partial sums.
///
/// # Safety
/// The block is valid, `rows == R`, the panel has these columns, `out` is a [`Sums`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const R: usize, const V: usize, const U: usize>(
    g: &GemmI8,
    c0: usize,
    out: *mut i32,
) {
    let mut acc = [[[_mm512_setzero_si512(); V]; R]; U];
    let mut stage = MaybeUninit::<Stage>::uninit();
    let line = line_bytes(g);
    // SAFETY: as promised to this function: the panel has whole vectors, `sums` has `cols` elements.
    unsafe {
        if g.a_zero != 0 {
            for v in 0..V {
                let mask = lanes(g.cols as usize, c0 + 16 * v);
                let of = _mm512_maskz_loadu_epi32(mask, g.sums.wrapping_add(c0 + 16 * v));
                let start = _mm512_mullo_epi32(of, _mm512_set1_epi32(g.a_zero.wrapping_neg()));
                for r in 0..R {
                    acc[0][r][v] = start;
                }
            }
        }
        let mut b = g.b.add(c0 * 4);
        for t in 0..g.taps {
            // `a` holds `taps * rows` addresses; each row has `k` bytes, the panel `k / 4` lines, rounded up, for each
            // tap; staged pieces are as long as they were copied, and all but the last are whole lines.
            let rows = g.a.add(t * R);
            let staged = g.k >= 128 && rows_collide(&*rows.cast::<[*const u8; R]>());
            let step = if staged { STAGE_LEN } else { g.k };
            let mut k0 = 0;
            while k0 < g.k {
                let n = step.min(g.k - k0);
                let mut from = rows;
                if staged {
                    from = stage_rows(stage.as_mut_ptr(), rows, R, k0, n);
                }
                multiply(&mut acc, from, b, line, n);
                b = b.wrapping_add(n.div_ceil(4) * line);
                k0 += n;
            }
        }
        for r in 0..R {
            for v in 0..V {
                let mut sum = acc[0][r][v];
                for part in acc.iter().skip(1) {
                    sum = _mm512_add_epi32(sum, part[r][v]);
                }
                _mm512_store_si512(out.add(r * PANEL_I8 + 16 * v).cast(), sum);
            }
        }
    }
}

/// The lanes of 16 that are before `cols`, if the first is column `from`.
#[inline(always)]
fn lanes(cols: usize, from: usize) -> __mmask16 {
    ((1u32 << cols.saturating_sub(from).min(16)) - 1) as __mmask16
}

/// Adds the products of `k` bytes of each row.
///
/// # Safety
/// There are `R` addresses of rows of `k` bytes; the panel has `k / 4` lines, rounded up, `pitch` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<const R: usize, const V: usize, const U: usize>(
    acc: &mut [[[__m512i; V]; R]; U],
    rows: *const *const u8,
    b: *const i8,
    pitch: usize,
    k: usize,
) {
    const UNROLL: usize = 4;
    let whole = k / 4;
    let mut i = 0;
    let mut b = b;
    // SAFETY: `i + u < whole` in the loops; the rest reads only the bytes that are left.
    unsafe {
        while i + UNROLL <= whole {
            // Spelt out: a loop here is unrolled too late to keep the sums in registers.
            line(&mut acc[0 % U], rows, b, i, 4);
            line(&mut acc[1 % U], rows, b.add(pitch), i + 1, 4);
            line(&mut acc[2 % U], rows, b.add(2 * pitch), i + 2, 4);
            line(&mut acc[3 % U], rows, b.add(3 * pitch), i + 3, 4);
            i += UNROLL;
            b = b.wrapping_add(4 * pitch);
        }
        while i < whole {
            line(&mut acc[0], rows, b, i, 4);
            i += 1;
            b = b.wrapping_add(pitch);
        }
        if !k.is_multiple_of(4) {
            line(&mut acc[0], rows, b, whole, k % 4);
        }
    }
}

/// Adds the products of lane `i`, of which `n` bytes exist, with the line at `b`.
///
/// # Safety
/// As [`multiply`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn line<const R: usize, const V: usize>(
    acc: &mut [[__m512i; V]; R],
    rows: *const *const u8,
    b: *const i8,
    i: usize,
    n: usize,
) {
    // SAFETY: as promised to this function.
    unsafe {
        let mut w = [_mm512_setzero_si512(); V];
        for v in 0..V {
            w[v] = _mm512_loadu_si512(b.add(v * 64).cast());
        }
        for r in 0..R {
            // Read again each time: more addresses than registers would be spilled anyway, for each tap.
            let row = rows.add(r).read_volatile();
            let at = row.wrapping_add(4 * i);
            let a = if n == 4 {
                _mm512_set1_epi32(lane(at, 4) as i32)
            } else {
                let some = _mm_maskz_loadu_epi8((1 << n) - 1, at.cast());
                _mm512_broadcastd_epi32(some)
            };
            for v in 0..V {
                acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, w[v]);
            }
        }
    }
}

/// Copies `n` bytes of each row from `k0` on; the copies' addresses.
///
/// # Safety
/// There are `count` addresses of rows with these bytes; `n` is at most [`STAGE_LEN`], `count` at most [`MAX_ROWS_I8`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn stage_rows(
    stage: *mut Stage,
    rows: *const *const u8,
    count: usize,
    k0: usize,
    n: usize,
) -> *const *const u8 {
    // SAFETY: as promised to this function.
    unsafe {
        for r in 0..count {
            let to = (&raw mut (*stage).bytes[r]).cast::<u8>();
            copy((*rows.add(r)).add(k0), to, n);
            (*stage).rows[r] = to;
        }
        (&raw const (*stage).rows).cast()
    }
}

/// Copies `n` bytes, 64 at a time.
///
/// # Safety
/// `n` bytes can be read, `n` rounded up to 64 written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    let mut i = 0;
    // SAFETY: reads past `n` are masked off.
    unsafe {
        while i + 64 <= n {
            _mm512_storeu_si512(to.add(i).cast(), _mm512_loadu_si512(from.add(i).cast()));
            i += 64;
        }
        if i < n {
            let mask = (1u64 << (n - i)) - 1;
            _mm512_storeu_si512(
                to.add(i).cast(),
                _mm512_maskz_loadu_epi8(mask, from.add(i).cast()),
            );
        }
    }
}

/// Writes sums as they are.
///
/// # Safety
/// The block is valid and has these columns; `sums` is a [`Sums`] of them.
#[target_feature(enable = "avx512f")]
unsafe fn write_sums(g: &GemmI8, c0: usize, cols: usize, sums: *const i32) {
    // SAFETY: masks leave out what is past `cols`.
    unsafe {
        for r in 0..g.rows as usize {
            for v in 0..2 {
                let sum = _mm512_load_si512(sums.add(r * PANEL_I8 + 16 * v).cast());
                let at = r * g.c_stride + c0 + 16 * v;
                let to = g.c.cast::<i32>().wrapping_add(at);
                _mm512_mask_storeu_epi32(to, lanes(cols, 16 * v), sum);
            }
        }
    }
}

/// What makes numbers of the sums of 32 columns.
struct Scaling {
    scale: [__m512; 2],
    /// Minus zero if there is none, which changes nothing.
    bias: [__m512; 2],
}

impl Scaling {
    /// # Safety
    /// The block is valid and has these columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn new(g: &GemmI8, c0: usize, cols: usize) -> Scaling {
        let masks = [lanes(cols, 0), lanes(cols, 16)];
        // SAFETY: masks leave out what is past `cols`.
        unsafe {
            let row = |p: *const f32| {
                [
                    _mm512_maskz_loadu_ps(masks[0], p.wrapping_add(c0)),
                    _mm512_maskz_loadu_ps(masks[1], p.wrapping_add(c0 + 16)),
                ]
            };
            Scaling {
                scale: row(g.scale),
                bias: if g.bias.is_null() {
                    [_mm512_set1_ps(-0.0); 2]
                } else {
                    row(g.bias)
                },
            }
        }
    }

    /// The numbers of a row.
    ///
    /// # Safety
    /// `sums` are 32 sums.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn numbers(&self, g: &GemmI8, sums: *const i32) -> [__m512; 2] {
        // SAFETY: as promised to this function.
        let (x, y) = unsafe {
            (
                _mm512_cvtepi32_ps(_mm512_load_si512(sums.cast())),
                _mm512_cvtepi32_ps(_mm512_load_si512(sums.add(16).cast())),
            )
        };
        // Spelt out, as closures are not inlined here.
        let x = _mm512_add_ps(_mm512_mul_ps(x, self.scale[0]), self.bias[0]);
        let y = _mm512_add_ps(_mm512_mul_ps(y, self.scale[1]), self.bias[1]);
        clamp([x, y], g.lo, g.hi)
    }
}

/// The second operand is what stays where one is no number.
#[inline]
#[target_feature(enable = "avx512f")]
fn clamp(x: [__m512; 2], lo: f32, hi: f32) -> [__m512; 2] {
    let (lo, hi) = (_mm512_set1_ps(lo), _mm512_set1_ps(hi));
    [
        _mm512_min_ps(hi, _mm512_max_ps(lo, x[0])),
        _mm512_min_ps(hi, _mm512_max_ps(lo, x[1])),
    ]
}

/// Writes numbers.
///
/// # Safety
/// As [`write_sums`].
#[target_feature(enable = "avx512f")]
unsafe fn write_numbers(g: &GemmI8, c0: usize, cols: usize, sums: *const i32) {
    // SAFETY: masks leave out what is past `cols`.
    unsafe {
        let scaling = Scaling::new(g, c0, cols);
        for r in 0..g.rows as usize {
            let x = scaling.numbers(g, sums.add(r * PANEL_I8));
            for v in 0..2 {
                let at = r * g.c_stride + c0 + 16 * v;
                let to = g.c.cast::<f32>().wrapping_add(at);
                _mm512_mask_storeu_ps(to, lanes(cols, 16 * v), x[v]);
            }
        }
    }
}

/// Writes codes, two rows at a time.
///
/// # Safety
/// As [`write_sums`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn write_codes<const STAGES: bool>(g: &GemmI8, c0: usize, cols: usize, sums: *const i32) {
    // Packing leaves the codes of four lanes of one vector beside those of the other's, and two rows side by side.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let rows = g.rows as usize;
    let mut own = MaybeUninit::<Bytes>::uninit();
    // SAFETY: masks leave out what is past `cols`; there is room for two rows beyond an odd one in `Bytes`.
    unsafe {
        let scaling = Scaling::new(g, c0, cols);
        let (to, pitch) = if g.table.is_null() {
            (g.c.cast::<u8>().wrapping_add(c0), g.c_stride)
        } else {
            (own.as_mut_ptr().cast::<u8>(), PANEL_I8)
        };
        let mask = if cols < 32 { (1u32 << cols) - 1 } else { !0 };
        let zero = _mm512_set1_epi16(g.zero as i16);
        let low = _mm512_set1_epi16(0xFF);
        let words = |r: usize| {
            let mut x = scaling.numbers(g, sums.add(r * PANEL_I8));
            if STAGES {
                for stage in stages(g) {
                    x = staged(stage, r, c0, cols, x);
                }
            }
            // What is no number becomes the least integer, whose low bits are those of zero.
            let words = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1]));
            _mm512_and_si512(_mm512_add_epi16(words, zero), low)
        };
        for r in (0..rows).step_by(2) {
            let first = words(r);
            let both = r + 1 < rows;
            let second = if both { words(r + 1) } else { first };
            let codes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
            let at = to.wrapping_add(r * pitch);
            _mm256_mask_storeu_epi8(at.cast(), mask, _mm512_castsi512_si256(codes));
            if both {
                let second = _mm512_extracti64x4_epi64::<1>(codes);
                _mm256_mask_storeu_epi8(at.wrapping_add(pitch).cast(), mask, second);
            }
        }
        if g.table.is_null() {
            return;
        }
        let from = own.as_ptr().cast::<u8>();
        if is_x86_feature_detected!("avx512vbmi") {
            return look_up(g, c0, mask, from);
        }
        for r in 0..rows {
            let out = g.c.cast::<u8>().wrapping_add(r * g.c_stride + c0);
            for j in 0..cols {
                let code = *from.add(r * PANEL_I8 + j);
                *out.add(j) = *g.table.add(usize::from(code));
            }
        }
    }
}

/// One stage of a row.
///
/// # Safety
/// The block is valid and has these columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn staged(stage: &StageI8, r: usize, c0: usize, cols: usize, x: [__m512; 2]) -> [__m512; 2] {
    let mut y = x;
    // SAFETY: masks leave out what is past `cols`.
    unsafe {
        for v in 0..2 {
            let (at, mask) = (c0 + 16 * v, lanes(cols, 16 * v));
            let whole = _mm512_roundscale_ps::<0>(x[v]);
            y[v] = _mm512_mul_ps(whole, _mm512_set1_ps(stage.factor));
            let row = _mm512_maskz_loadu_ps(mask, stage.row.wrapping_add(at));
            y[v] = _mm512_add_ps(y[v], row);
            if !stage.residual.is_null() {
                let from = stage.residual.wrapping_add(r * stage.residual_stride + at);
                let codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from.cast()));
                let factor = _mm512_set1_ps(stage.residual_factor);
                y[v] = _mm512_add_ps(y[v], _mm512_mul_ps(_mm512_cvtepi32_ps(codes), factor));
            }
        }
    }
    clamp(y, stage.lo, stage.hi)
}

/// Writes what the table has for the codes of each row.
///
/// # Safety
/// The block is valid, has a table and the columns of the mask; `from` is a [`Bytes`]; the CPU has AVX-512 VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn look_up(g: &GemmI8, c0: usize, mask: __mmask32, from: *const u8) {
    // SAFETY: a table has 256 bytes; masks leave out what is past `cols`.
    unsafe {
        let part = |i: usize| _mm512_loadu_si512(g.table.add(64 * i).cast());
        let (first, second, third, fourth) = (part(0), part(1), part(2), part(3));
        for r in 0..g.rows as usize {
            let codes = _mm256_load_si256(from.add(r * PANEL_I8).cast());
            let codes512 = _mm512_castsi256_si512(codes);
            let small = _mm512_permutex2var_epi8(first, codes512, second);
            let large = _mm512_permutex2var_epi8(third, codes512, fourth);
            let out = _mm256_mask_blend_epi8(
                _mm256_movepi8_mask(codes),
                _mm512_castsi512_si256(small),
                _mm512_castsi512_si256(large),
            );
            let to = g.c.cast::<i8>().wrapping_add(r * g.c_stride + c0);
            _mm256_mask_storeu_epi8(to, mask, out);
        }
    }
}
