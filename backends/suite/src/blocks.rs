//! Products of activations and weights in blocks, and the rounding that makes the activations.

use super::*;
use lapidary_ir::kernel::blocks::{
    BlocksTile, Format, PANEL, RoundTile, UnpackTile, Zeros, blocks, round, unpack,
};
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::sparse::Rows;
use lapidary_ir::kernel::*;
use lapidary_ir::{ElemType, Tensor};

/// Blocks of a row.
const BLOCKS: i64 = 3;

/// A product of two panels; the second has as many columns as the size parameter says.
fn product(format: Format, rows: u32, parts: u32) -> Kernel {
    let has = |bit: u32| parts >> bit & 1 == 1;
    let mut b = KernelBuilder::new("blocks");
    let a = b.buffer("a", ElemType::U8, false);
    let w = b.buffer("w", ElemType::U8, false);
    let bias = b.buffer("bias", ElemType::F32, false);
    let y = b.buffer("y", ElemType::F32, true);
    let (first, end) = (b.size_param("first"), b.size_param("end"));
    let cols = b.size_param("cols");
    let panel = b.grid(Extent::Const(2));
    let [first, end, cols] = [first, end, cols].map(|p| b.size(p));
    let a_stride = BLOCKS * format.act_bytes();
    let [zero, width, a_stride, count, pitch, length] = [
        0,
        i64::from(PANEL),
        a_stride,
        BLOCKS,
        37,
        BLOCKS * format.panel_bytes(),
    ]
    .map(|v| b.index(v));
    let col0 = b.binary(Binary::Mul, panel, width);
    let from = b.binary(Binary::Mul, panel, length);
    let tile = BlocksTile {
        format,
        rows,
        first,
        end,
        blocks: count,
        a: Rows {
            buf: a,
            base: zero,
            stride: a_stride,
        },
        w: (w, from),
        bias: has(0).then_some((bias, col0)),
        lo: has(1).then_some(-20.0),
        hi: has(2).then_some(15.0),
        c: Rows {
            buf: y,
            base: col0,
            stride: pitch,
        },
        cols: has(3).then_some(cols),
    };
    blocks(&mut b, tile);
    b.finish()
}

/// Bytes with scales that are numbers of a moderate size at these places of each block.
fn stream(
    rng: &mut Rng,
    block: usize,
    count: usize,
    scales: impl Fn(&mut Rng) -> Vec<(usize, Vec<u8>)>,
) -> Vec<u8> {
    let mut out = vec![];
    for _ in 0..count {
        let mut bytes: Vec<u8> = (0..block).map(|_| rng.bits() as u8).collect();
        for (at, scale) in scales(rng) {
            bytes[at..at + scale.len()].copy_from_slice(&scale);
        }
        out.extend(bytes);
    }
    out
}

fn number(rng: &mut Rng) -> f32 {
    (rng.unit() * 0.02 - 0.01) as f32
}

/// Blocks of weights.
fn panels(rng: &mut Rng, format: Format, count: usize) -> Vec<u8> {
    stream(rng, format.panel_bytes() as usize, count, |rng| {
        let minimums = usize::from(format.zeros == Zeros::Minimums);
        let scales = (0..(1 + minimums) * PANEL as usize).map(|j| {
            let scale = number(rng);
            let bytes = match format.scale_bytes {
                2 => half(scale),
                _ => scale.to_le_bytes().to_vec(),
            };
            (j * format.scale_bytes as usize, bytes)
        });
        scales.collect()
    })
}

/// What blocks have before their codes.
const HEADS: [(u32, Zeros); 6] = [
    (2, Zeros::Shared),
    (4, Zeros::Shared),
    (2, Zeros::Codes),
    (4, Zeros::Codes),
    (2, Zeros::Minimums),
    (4, Zeros::Minimums),
];

/// Every format, with and without each part, tiles with all their rows and with some.
pub fn products_of_blocks(backend: &Backend) {
    let mut rng = Rng(33);
    let mut case = 0u32;
    for (bits, block) in [
        (2, 16),
        (2, 64),
        (3, 32),
        (3, 96),
        (4, 16),
        (4, 32),
        (4, 128),
        (5, 32),
        (5, 64),
        (6, 16),
        (6, 32),
        (8, 16),
        (8, 48),
    ] {
        for (scale_bytes, zeros) in HEADS {
            case += 1;
            let format = Format {
                block,
                bits,
                scale_bytes,
                zeros,
            };
            let rows = [1, 4, 5, 13][case as usize % 4];
            let a = stream(
                &mut rng,
                format.act_bytes() as usize,
                rows * BLOCKS as usize,
                |rng| {
                    // What zero points are multiplied with is a small number.
                    let offset = rng.below(4000) as i32 - 2000;
                    vec![
                        (0, offset.to_le_bytes().to_vec()),
                        (4 + block as usize, number(rng).to_le_bytes().to_vec()),
                    ]
                },
            );
            let w = panels(&mut rng, format, 2 * BLOCKS as usize);
            let buffers = [a, w, rng.f32s(2 * PANEL as usize), rng.f32s(rows * 37)];
            let tile = if case.is_multiple_of(2) { 1 } else { 4 };
            let kernel = product(format, tile, case % 16);
            let cols = 1 + rng.below(u64::from(PANEL)) as i64;
            let first = i64::from(tile) * i64::from(rows > 4);
            check(
                backend,
                &kernel,
                &buffers,
                &[first, rows as i64, cols],
                1e-5,
            );
        }
    }
}

/// The bytes of the `f16` nearest to a number.
fn half(v: f32) -> Vec<u8> {
    let tensor = Tensor::from_f64(ElemType::F16, [1], vec![f64::from(v)]);
    tensor.to_bytes().expect("a number")
}

fn rounding(block: u32, factor: i32) -> Kernel {
    let mut b = KernelBuilder::new("round");
    let x = b.buffer("x", ElemType::F32, false);
    let y = b.buffer("y", ElemType::U8, true);
    let count = b.size_param("blocks");
    let half = b.grid(Extent::Const(2));
    let count = b.size(count);
    let [zero, two] = [0, 2].map(|v| b.index(v));
    let first = b.binary(Binary::Mul, half, two);
    let limit = b.binary(Binary::Add, first, two);
    let end = b.binary(Binary::Min, limit, count);
    let tile = RoundTile {
        block,
        factor,
        first,
        end,
        x: (x, zero),
        y: (y, zero),
    };
    round(&mut b, tile);
    b.finish()
}

/// Blocks of several lengths, with zeros, numbers that are next to none, and what is no number.
pub fn blocks_are_rounded(backend: &Backend) {
    let mut rng = Rng(34);
    for (block, factor) in [(16, 1), (32, -8), (48, -1), (128, -128), (256, -2)] {
        let mut x = rng.f32s(4 * block);
        x[4 * block..8 * block].fill(0);
        let mut put = |at: usize, v: f32| x[4 * at..4 * at + 4].copy_from_slice(&v.to_le_bytes());
        put(2 * block + 3, -70.0);
        // Half way between two codes.
        put(2 * block + 4, 70.0 / 127.0 * 2.5);
        for i in 0..block {
            put(3 * block + i, f32::from_bits(i as u32));
        }
        let y = vec![0u8; 4 * (block + 8)];
        check(
            backend,
            &rounding(block as u32, factor),
            &[x.clone(), y.clone()],
            &[4],
            0.0,
        );
        // What is no number, and is infinite, has codes of 0 in the first and any in the second.
        let mut put = |at: usize, v: f32| x[4 * at..4 * at + 4].copy_from_slice(&v.to_le_bytes());
        put(5, f32::NAN);
        check(backend, &rounding(block as u32, factor), &[x, y], &[3], 0.0);
    }
}

fn unpacking(format: Format) -> Kernel {
    let mut b = KernelBuilder::new("unpack");
    let w = b.buffer("w", ElemType::U8, false);
    let y = b.buffer("y", ElemType::F32, true);
    let count = b.size_param("blocks");
    let half = b.grid(Extent::Const(2));
    let count = b.size(count);
    let [stride, width, length] =
        [37, i64::from(PANEL), 2 * format.panel_bytes()].map(|v| b.index(v));
    let base = b.binary(Binary::Mul, half, width);
    let from = b.binary(Binary::Mul, half, length);
    let tile = UnpackTile {
        format,
        zero: 1 << (format.bits - 1),
        blocks: count,
        w: (w, from),
        y: Rows {
            buf: y,
            base,
            stride,
        },
    };
    unpack(&mut b, tile);
    b.finish()
}

/// Panels side by side, of every format; their rows are not all that there are.
pub fn weights_become_numbers(backend: &Backend) {
    let mut rng = Rng(35);
    for (bits, block) in [
        (2, 16),
        (2, 64),
        (3, 64),
        (4, 16),
        (4, 32),
        (5, 32),
        (6, 48),
        (8, 16),
        (8, 48),
    ] {
        for (scale_bytes, zeros) in HEADS {
            let format = Format {
                block,
                bits,
                scale_bytes,
                zeros,
            };
            let w = panels(&mut rng, format, 4);
            let buffers = [w, rng.f32s(2 * block as usize * 37)];
            check(backend, &unpacking(format), &buffers, &[2], 0.0);
        }
    }
}
