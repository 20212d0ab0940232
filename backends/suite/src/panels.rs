//! Sparse matrices times panels, and the moves that fill panels.

use super::*;
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, RowsAt, Scaled, Stage};
use lapidary_ir::kernel::moves::{Move, moves};
use lapidary_ir::kernel::sparse::{Form, Packed, Rows, SPARSE_SHAPES, SparseTile, sparse};
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
        fours: false,
        src: (source, block, src_stride),
        at,
        mask: has(1).then(|| b.binary(Binary::Lt, iota, cols)),
        dst: (panel, zero, width),
        rows: k,
        cols: None,
    };
    moves(&mut b, m);
    let tile = SparseTile {
        form: Form::Numbers(shape),
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

/// The same of codes: inner extent in fours, and results through an epilogue. `y` has a row for each lane.
fn product_of_codes(lanes: u32, parts: u32, n: i64) -> Kernel {
    let has = |bit: u32| parts >> bit & 1 == 1;
    let mut b = KernelBuilder::new("sparse_codes");
    let source = b.buffer("source", ElemType::U8, false);
    let matrix = Packed {
        values: b.buffer("values", ElemType::I8, false),
        offsets: b.buffer("offsets", ElemType::U16, false),
        starts: b.buffer("starts", ElemType::U32, false),
        rows: b.buffer("rows", ElemType::U32, false),
    };
    let [scale, row] = ["scale", "row"].map(|name| b.buffer(name, ElemType::F32, false));
    let sums = b.buffer("sums", ElemType::I32, false);
    let residual = b.buffer("residual", ElemType::U8, false);
    let table = b.buffer("table", ElemType::I8, false);
    let result = match (has(3), has(4)) {
        (false, _) => ElemType::F32,
        (true, true) => ElemType::I8,
        (true, false) => ElemType::U8,
    };
    let y = b.buffer("y", result, true);
    let groups = b.size_param("groups");
    let cols = b.size_param("cols");
    let block = b.grid(Extent::Const(1));
    let panel = b.scratch(ElemType::U8, K as u32 * lanes * 4);
    let padded = (n as u32).next_multiple_of(32);
    let results = b.scratch(ElemType::I32, padded * lanes);
    let (groups, cols) = (b.size(groups), b.size(cols));
    let [zero, one, k, width, pitch] = [0, 1, K, i64::from(lanes), n].map(|v| b.index(v));
    let iota = b.iota(lanes);
    let at = match has(0) {
        true => b.binary(Binary::Mul, iota, k),
        false => iota,
    };
    let m = Move {
        fours: true,
        src: (source, block, if has(0) { one } else { width }),
        at,
        mask: has(1).then(|| b.binary(Binary::Lt, iota, cols)),
        dst: (panel, zero, width),
        rows: k,
        cols: None,
    };
    moves(&mut b, m);
    let here = Rows {
        buf: results,
        base: zero,
        stride: width,
    };
    for init in [None, Some(here)]
        .into_iter()
        .take(if has(2) { 2 } else { 1 })
    {
        let tile = SparseTile {
            form: Form::Codes(lanes),
            matrix,
            first: block,
            end: groups,
            x: (panel, zero),
            init,
            bias: None,
            lo: None,
            hi: None,
            c: here,
            cols: has(1).then_some(cols),
        };
        sparse(&mut b, tile);
    }
    let three = {
        let ty = TileType::of(ElemType::I32, &[]);
        b.constant(ty, Literal::Int(3))
    };
    let lanes_here = if has(1) { cols } else { width };
    b.for_loop(zero, lanes_here, 16, &[], |b, lane, _| {
        let acc = contraction::load_sums(b, results, lane, i64::from(lanes), [16, padded]);
        let left = b.binary(Binary::Sub, lanes_here, lane);
        let at = RowsAt {
            base: b.binary(Binary::Mul, lane, pitch),
            rows: Axis::stride(n).valid(left),
        };
        let stage = Stage {
            factor: 0.37,
            row: (row, zero),
            residual: has(5).then(|| (residual, at.clone(), 0.8)),
            lo: -50.0,
            hi: 77.0,
        };
        let code = has(3).then_some((if has(4) { ElemType::I8 } else { ElemType::U8 }, 50));
        let e = Epilogue {
            scaled: Some(Scaled {
                zero: Some((three, sums, zero)),
                scale: (scale, zero),
            }),
            bias: (!has(3)).then_some((row, zero)),
            residual: None,
            lo: Some(-50.0),
            hi: Some(77.0),
            code,
            stages: if has(3) { vec![stage] } else { vec![] },
            table: (has(3) && has(4)).then_some(table),
            c: y,
            c_at: at,
            cols: (n % 32 != 0).then_some(pitch),
        };
        contraction::epilogue(b, acc, e);
        vec![]
    });
    b.finish()
}

/// Every width, with and without each part.
pub fn sparse_products_of_codes(backend: &Backend) {
    const R: usize = lapidary_abi::kernel::SPARSE_ROWS_I8;
    let mut rng = Rng(23);
    for (lanes, first, step) in [(16usize, 0, 5), (48, 63, 64), (64, 11, 64)] {
        for parts in (first..64).step_by(step) {
            let groups = 10;
            let n = groups * R;
            let mut starts = vec![0u32];
            for _ in 0..groups {
                starts.push(starts[starts.len() - 1] + rng.below(9) as u32);
            }
            let entries = starts[groups] as usize * R;
            let offsets: Vec<u16> = (0..entries)
                .map(|_| (rng.below(K as u64) * lanes as u64) as u16)
                .collect();
            let rows: Vec<u32> = (0..n as u32).rev().collect();
            let cols = 1 + rng.below(lanes as u64) as i64;
            let mut codes = |n: usize| (0..n).map(|_| rng.bits() as u8).collect::<Vec<u8>>();
            let (source, values) = (codes((K as usize + 1) * lanes * 4), codes(entries * 4));
            let (residual, table) = (codes(lanes * n), codes(256));
            let sums: Vec<i32> = (0..n as i32).map(|j| j * 31 - 400).collect();
            let scale: Vec<f32> = (0..n).map(|j| 0.001 * (j + 1) as f32).collect();
            let size = if parts >> 3 & 1 == 1 { 1 } else { 4 };
            let buffers = [
                source,
                values,
                bytes(&offsets, |v| v.to_le_bytes()),
                bytes(&starts, |v| v.to_le_bytes()),
                bytes(&rows, |v| v.to_le_bytes()),
                bytes(&scale, |v| v.to_le_bytes()),
                rng.f32s(n),
                bytes(&sums, |v| v.to_le_bytes()),
                residual,
                table,
                vec![7; lanes * n * size],
            ];
            let kernel = product_of_codes(lanes as u32, parts, n as i64);
            check(backend, &kernel, &buffers, &[groups as i64, cols], 1e-5);
        }
    }
}
