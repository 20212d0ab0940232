//! Packing the right side of a product into panels `[panel][k][32]`, at compile time or at run time.

use super::{Num, add, mul, mul_const};
use lapidary_abi::kernel::MAX_WIDTH_BF16;
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{Kind, PANEL};
use lapidary_ir::kernel::{At, Axis, Binary, Kernel, Var};

/// Calls `put` for every element of the panels `[panel][tap][k / step][width][step]` in order: with the index that `element(tap,
/// k, column)` says of a weight, or with nothing where there is none. `sizes`: taps, elements of a tap, columns.
pub fn each(
    kind: Kind,
    [taps, k, n]: [usize; 3],
    width: u32,
    element: impl Fn(usize, usize, usize) -> usize,
    mut put: impl FnMut(Option<usize>),
) {
    let (width, step) = (width as usize, kind.step() as usize);
    for panel in 0..n.div_ceil(width) {
        for (tap, first) in (0..taps).flat_map(|t| (0..k).step_by(step).map(move |kk| (t, kk))) {
            for column in panel * width..(panel + 1) * width {
                for kk in first..first + step {
                    let there = kk < k && column < n;
                    put(there.then(|| element(tap, kk, column)));
                }
            }
        }
    }
}

/// Columns of panels of `n` columns that are about equally wide, at most so many times [`PANEL`].
pub fn even_width(n: i64, most: i64) -> u32 {
    let panels = (n as u64).div_ceil(u64::from(PANEL)).max(1);
    let calls = panels.div_ceil(most as u64);
    panels.div_ceil(calls) as u32 * PANEL
}

/// Columns of a panel of `bf16` with `row` elements in each of `n` columns, for `m` rows. Rows are rounded once for a panel, so it is
/// wide, but no more than half of a second-level cache of `l2` bytes. A few rows wait for weights and are not worth it. `None` where
/// there are so few columns that rounding takes longer than the products save.
pub fn width_bf16([m, n, row]: [i64; 3], l2: u64) -> Option<u32> {
    const FEW: i64 = 4;
    if n <= i64::from(PANEL) / 2 {
        return None;
    }
    let most = match m <= FEW {
        true => 1,
        false => l2 as i64 / 2 / (2 * row.max(1) * i64::from(PANEL)),
    };
    Some(even_width(
        n,
        most.clamp(1, MAX_WIDTH_BF16 as i64 / i64::from(PANEL)),
    ))
}

/// The first element of a panel, `panel` of those that have `taps` rows of `k` elements in each of `width` columns.
pub fn panel_at(
    b: &mut KernelBuilder,
    kind: Kind,
    panel: Var,
    [taps, width]: [i64; 2],
    k: Var,
) -> Var {
    let rows = kind.padded_extent(b, k);
    let len = mul_const(b, rows, taps * width);
    mul(b, panel, len)
}

/// Packs numbers, which are `f32` little-endian bytes, at compile time: as they are, or as numbers of `bf16`.
pub fn pack_numbers(
    kind: Kind,
    bytes: &[u8],
    sizes: [usize; 3],
    width: u32,
    element: impl Fn(usize, usize, usize) -> usize,
    out: &mut Vec<u8>,
) {
    let number = |at: Option<usize>| {
        let bytes = at.and_then(|i| bytes.get(4 * i..)?.first_chunk());
        bytes.copied().unwrap_or_default()
    };
    each(kind, sizes, width, element, |at| match kind {
        Kind::Bf16 => {
            let half = half::bf16::from_f32(f32::from_le_bytes(number(at)));
            out.extend(half.to_le_bytes());
        }
        _ => out.extend(number(at)),
    });
}

/// A kernel that packs matrices which are known only at run time.
///
/// Parameters: `src`, `dst`, then those of `batch`, `k`, `n` that are [`Num::Sym`]. `transposed`: `src` is `[batch][n][k]`
/// instead of `[batch][k][n]`.
pub fn kernel(name: &str, batch: Num, k: Num, n: Num, transposed: bool) -> Kernel {
    let mut b = KernelBuilder::new(name);
    let (src, dst) = (
        b.buffer("src", ElemType::F32, false),
        b.buffer("dst", ElemType::F32, true),
    );
    let [batch, k_bound, n_bound] =
        [(batch, "batch"), (k, "k"), (n, "n")].map(|(num, name)| num.bind(&mut b, name));
    let (batch_at, panel, kk) = (
        b.grid(batch.tiles(1)),
        b.grid(n_bound.tiles(PANEL)),
        b.grid(k_bound.tiles(1)),
    );

    let matrix = mul(&mut b, k_bound.var, n_bound.var);
    let src_matrix = mul(&mut b, batch_at, matrix);
    let col0 = mul_const(&mut b, panel, i64::from(PANEL));
    let (inner, at) = if transposed {
        let column = mul(&mut b, col0, k_bound.var);
        (
            add(&mut b, column, kk),
            k.known().map_or(At::DynStride(k_bound.var), At::Stride),
        )
    } else {
        let row = mul(&mut b, kk, n_bound.var);
        (add(&mut b, row, col0), At::Stride(1))
    };
    let src_at = add(&mut b, src_matrix, inner);
    let left = b.binary(Binary::Sub, n_bound.var, col0);
    // Columns that do not exist read as zero, which is what the panel must hold there.
    let row = b.load(
        src,
        src_at,
        &[PANEL],
        vec![Axis {
            at,
            valid: Some(left),
            mask: None,
        }],
    );

    let up = super::add_const(&mut b, n_bound.var, i64::from(PANEL) - 1);
    let width = b.index(i64::from(PANEL));
    let panels = b.binary(Binary::FloorDiv, up, width);
    let before = mul(&mut b, batch_at, panels);
    let index = add(&mut b, before, panel);
    let rows_before = mul(&mut b, index, k_bound.var);
    let dst_row = add(&mut b, rows_before, kk);
    let dst_at = mul_const(&mut b, dst_row, i64::from(PANEL));
    b.store(dst, dst_at, vec![Axis::stride(1)], row);
    b.finish()
}
