//! Sparse matrices times panels, and the moves that fill panels.

use super::*;
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::moves::{Move, moves};
use lapidary_ir::kernel::sparse::{Packed, Rows, SPARSE_SHAPES, SparseTile, sparse};
use lapidary_ir::kernel::*;

/// Inner extent of the products.
const K: i64 = 40;

/// A panel of `K` rows is gathered from a source, masked, and multiplied; results are lanes of rows.
fn product(shape: usize, parts: u32) -> Kernel {
    let has = |bit: u32| parts >> bit & 1 == 1;
    let (_, lanes) = SPARSE_SHAPES[shape];
    let lanes = lanes as u32;
    let mut b = KernelBuilder::new("sparse");
    let source = b.buffer("source", ElemType::F32, false);
    let matrix = Packed {
        values: b.buffer("values", ElemType::F32, false),
        offsets: b.buffer("offsets", ElemType::U16, false),
        starts: b.buffer("starts", ElemType::U32, false),
        rows: b.buffer("rows", ElemType::U32, false),
    };
    let other = b.buffer("other", ElemType::F32, false);
    let y = b.buffer("y", ElemType::F32, true);
    let groups = b.size_param("groups");
    let cols = b.size_param("cols");
    let block = b.grid(Extent::Const(2));
    let panel = b.scratch(ElemType::F32, K as u32 * lanes);
    let (groups, cols) = (b.size(groups), b.size(cols));
    let [zero, one, k, width, pitch] =
        [0, 1, K, i64::from(lanes), i64::from(lanes) + 3].map(|v| b.index(v));
    // Transposed or not, by the block.
    let iota = b.iota(lanes);
    let row = b.binary(Binary::Add, width, block);
    let at = match has(0) {
        true => b.binary(Binary::Mul, iota, k),
        false => iota,
    };
    let src_stride = if has(0) { one } else { row };
    let m = Move {
        src: (source, block, src_stride),
        at,
        mask: has(1).then(|| b.binary(Binary::Lt, iota, cols)),
        dst: (panel, zero, width),
        rows: k,
        cols: None,
    };
    moves(&mut b, m);
    let tile = SparseTile {
        shape,
        matrix,
        first: block,
        end: groups,
        x: (panel, zero),
        init: has(2).then_some(Rows {
            buf: other,
            base: one,
            stride: pitch,
        }),
        bias: has(3).then_some((other, block)),
        lo: has(4).then_some(-1.0),
        hi: has(4).then_some(1.5),
        c: Rows {
            buf: y,
            base: zero,
            stride: pitch,
        },
        cols: has(1).then_some(cols),
    };
    sparse(&mut b, tile);
    b.finish()
}

/// Every shape, with and without each part.
pub fn sparse_products_and_their_panels(backend: &Backend) {
    let mut rng = Rng(21);
    for (shape, (in_group, lanes)) in SPARSE_SHAPES.into_iter().enumerate() {
        for parts in 0..32 {
            let groups = 3;
            let mut starts = vec![0u32];
            for _ in 0..groups {
                starts.push(starts[starts.len() - 1] + rng.below(9) as u32);
            }
            let entries = starts[groups] as usize * in_group;
            let offsets: Vec<u16> = (0..entries)
                .map(|_| (rng.below(K as u64) * lanes as u64) as u16)
                .collect();
            let rows: Vec<u32> = (0..(groups * in_group) as u32).rev().collect();
            let cols = 1 + rng.below(lanes as u64) as i64;
            let sizes = [groups as i64, cols];
            let pitch = lanes + 3;
            let buffers = [
                rng.f32s((K as usize + 1) * (lanes + 2)),
                rng.f32s(entries),
                bytes(&offsets, |v| v.to_le_bytes()),
                bytes(&starts, |v| v.to_le_bytes()),
                bytes(&rows, |v| v.to_le_bytes()),
                rng.f32s(1 + groups * in_group * pitch),
                rng.f32s(groups * in_group * pitch),
            ];
            check(backend, &product(shape, parts), &buffers, &sizes, 1e-5);
        }
    }
}
