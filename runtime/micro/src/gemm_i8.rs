//! One int8 product: unsigned activations times signed weights, exact (modulo 2^32), and the way back to numbers or codes.
//!
//! Four consecutive `k` make one 32-bit lane, as `vpdpbusd` wants them; the panel is
//! `[taps][k / 4][width][4]`, of which 32 columns are computed at a time. Without that instruction, products are formed in
//! 16 bits after widening, since the older `vpmaddubsw` saturates. Of what follows the sum, every multiplication and addition is
//! rounded, so that every level gives the same bits.

use lapidary_abi::kernel::{GemmI8, PANEL_I8, RESULT_CODE, RESULT_I32, StageI8};

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(test)]
mod tests;

/// Up to four bytes of a row as one little-endian lane, zero past `n`.
///
/// # Safety
/// `n.min(4)` bytes can be read.
#[inline(always)]
unsafe fn lane(row: *const u8, n: usize) -> u32 {
    // SAFETY: as promised to this function.
    unsafe {
        if n >= 4 {
            return u32::from_le_bytes(row.cast::<[u8; 4]>().read());
        }
        let mut bytes = [0u8; 4];
        for (i, byte) in bytes.iter_mut().enumerate().take(n) {
            *byte = *row.add(i);
        }
        u32::from_le_bytes(bytes)
    }
}

/// Bytes from one `k / 4` of the panel to the next.
#[inline(always)]
fn line_bytes(g: &GemmI8) -> usize {
    g.width as usize * 4
}

/// The stages that there are.
#[inline(always)]
fn stages(g: &GemmI8) -> &[StageI8] {
    &g.stages[..(g.stage_count as usize).min(g.stages.len())]
}

/// Writes one result of the tile, whose sum is `sum`.
///
/// # Safety
/// `args` satisfy the contract of [`GemmI8`]; `r < rows` and `j < cols`.
#[inline(always)]
unsafe fn finish(g: &GemmI8, r: usize, j: usize, sum: i32) {
    // Not `f32::max`: what is no number stays none.
    let clamp = |x: f32, lo: f32, hi: f32| {
        let x = if x < lo { lo } else { x };
        if x > hi { hi } else { x }
    };
    // SAFETY: as promised to this function.
    unsafe {
        let at = r * g.c_stride + j;
        let mut sum = sum;
        if g.a_zero != 0 {
            sum = sum.wrapping_sub(g.a_zero.wrapping_mul(*g.sums.add(j)));
        }
        if g.result == RESULT_I32 {
            return g.c.cast::<i32>().add(at).write(sum);
        }
        let mut x = sum as f32 * *g.scale.add(j);
        if !g.bias.is_null() {
            x += *g.bias.add(j);
        }
        x = clamp(x, g.lo, g.hi);
        if g.result != RESULT_CODE {
            return g.c.cast::<f32>().add(at).write(x);
        }
        for stage in stages(g) {
            x = x.round_ties_even() * stage.factor;
            x += *stage.row.add(j);
            if !stage.residual.is_null() {
                let code = *stage.residual.add(r * stage.residual_stride + j);
                x += f32::from(code) * stage.residual_factor;
            }
            x = clamp(x, stage.lo, stage.hi);
        }
        let mut code = (x.round_ties_even() as i32).wrapping_add(g.zero) as u8;
        if !g.table.is_null() {
            code = *g.table.add(usize::from(code));
        }
        g.c.cast::<u8>().add(at).write(code);
    }
}

/// Plain Rust: one row at a time, eight columns at a time.
///
/// # Safety
/// `args` must satisfy the contract of [`GemmI8`].
pub unsafe extern "C" fn portable(args: *const GemmI8) {
    const COLS: usize = 8;
    // SAFETY: the caller passes a valid block: rows have `k` bytes, the panel whole lines.
    unsafe {
        let g = &*args;
        if !g.init.is_null() {
            for (r, j) in
                (0..g.rows as usize).flat_map(|r| (0..g.cols as usize).map(move |j| (r, j)))
            {
                finish(g, r, j, *g.init.add(j * g.init_stride + r));
            }
            return;
        }
        let lines = g.k.div_ceil(4);
        for r in 0..g.rows as usize {
            for c0 in (0..g.cols as usize).step_by(COLS) {
                let mut acc = [0i32; COLS];
                for t in 0..g.taps {
                    let row = *g.a.add(t * g.rows as usize + r);
                    for i in 0..lines {
                        let a = lane(row.add(4 * i), g.k - 4 * i)
                            .to_le_bytes()
                            .map(i32::from);
                        let b = &*g
                            .b
                            .add((t * lines + i) * line_bytes(g) + c0 * 4)
                            .cast::<[[i8; 4]; COLS]>();
                        for j in 0..COLS {
                            for q in 0..4 {
                                acc[j] = acc[j].wrapping_add(a[q] * b[j][q] as i32);
                            }
                        }
                    }
                }
                for (j, &sum) in acc.iter().enumerate().take(g.cols as usize - c0) {
                    finish(g, r, c0 + j, sum);
                }
            }
        }
    }
}
