//! Packing the right side of a product into panels `[panel][k][32]`, at compile time or at run time.

use super::{Num, add, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::{At, Axis, Binary, Kernel};

/// Packs `f32` little-endian bytes at compile time. `element(k, column)` is the linear index of a weight; columns past `n`
/// are zero.
pub fn pack_panels(
    bytes: &[u8],
    k: usize,
    n: usize,
    element: impl Fn(usize, usize) -> usize,
    out: &mut Vec<u8>,
) {
    let width = PANEL as usize;
    for panel in 0..n.div_ceil(width) {
        for kk in 0..k {
            for column in panel * width..(panel + 1) * width {
                if column < n {
                    let at = element(kk, column) * 4;
                    out.extend_from_slice(&bytes[at..at + 4]);
                } else {
                    out.extend_from_slice(&[0; 4]);
                }
            }
        }
    }
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
