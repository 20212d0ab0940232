use super::*;
use crate::kernel::contraction::Facts;
use crate::kernel::legalize::legalize;

const FORMATS: [(u32, u32); 7] = [
    (2, 16),
    (3, 32),
    (4, 32),
    (4, 128),
    (5, 64),
    (6, 16),
    (8, 16),
];

#[test]
fn products_that_are_written_are_recognised() {
    for parts in 0..64u32 {
        let has = |bit: u32| parts >> bit & 1 == 1;
        for (bits, block) in FORMATS {
            let mut b = KernelBuilder::new("k");
            let [w, a] = ["w", "a"].map(|n| b.buffer(n, ElemType::U8, false));
            let other = b.buffer("other", ElemType::F32, false);
            let c = b.buffer("c", ElemType::F32, true);
            let [zero, base, stride, end] = [0, 7, 100, 3].map(|v| b.index(v));
            let rows = |buf, base| Rows { buf, base, stride };
            let tile = BlocksTile {
                format: Format {
                    block,
                    bits,
                    scale_bytes: if has(0) { 2 } else { 4 },
                    zeros: Zeros::ALL[parts as usize % 3],
                },
                rows: 4,
                first: zero,
                end,
                blocks: base,
                a: rows(a, zero),
                w: (w, base),
                bias: has(2).then_some((other, base)),
                lo: has(3).then_some(-1.0),
                hi: has(4).then_some(2.5),
                c: rows(c, base),
                cols: has(5).then_some(end),
            };
            blocks(&mut b, tile);
            let kernel = b.finish();
            crate::kernel::verify::verify(&kernel).expect("valid");
            for kernel in [kernel.clone(), legalize(kernel)] {
                let facts = Facts::new(&kernel);
                let last = kernel.body.last().expect("the loop");
                assert_eq!(
                    recognise(&facts, last),
                    Some(tile),
                    "{parts:b} {bits} {block}"
                );
                assert_eq!(recognise_round(&facts, last), None);
            }
        }
    }
}

#[test]
fn unpacking_that_is_written_is_recognised() {
    for (bits, block) in FORMATS {
        for (i, zeros) in (0..6).zip(Zeros::ALL.into_iter().cycle()) {
            let scale_bytes = [2, 4][i / 3];
            let mut b = KernelBuilder::new("k");
            let w = b.buffer("w", ElemType::U8, false);
            let y = b.buffer("y", ElemType::F32, true);
            let [base, stride, blocks] = [7, 32, 3].map(|v| b.index(v));
            let tile = UnpackTile {
                format: Format {
                    block,
                    bits,
                    scale_bytes,
                    zeros,
                },
                zero: if zeros == Zeros::Shared { 8 } else { 0 },
                blocks,
                w: (w, base),
                y: Rows {
                    buf: y,
                    base,
                    stride,
                },
            };
            unpack(&mut b, tile);
            let kernel = b.finish();
            crate::kernel::verify::verify(&kernel).expect("valid");
            for kernel in [kernel.clone(), legalize(kernel)] {
                let facts = Facts::new(&kernel);
                let last = kernel.body.last().expect("the loop");
                assert_eq!(recognise_unpack(&facts, last), Some(tile), "{bits} {block}");
                assert_eq!(recognise(&facts, last), None);
            }
        }
    }
}

#[test]
fn roundings_that_are_written_are_recognised() {
    for (block, factor) in [(16, 1), (32, -8), (256, 1)] {
        let mut b = KernelBuilder::new("k");
        let x = b.buffer("x", ElemType::F32, false);
        let y = b.buffer("y", ElemType::U8, true);
        let [zero, base, end] = [0, 7, 3].map(|v| b.index(v));
        let tile = RoundTile {
            block,
            factor,
            first: zero,
            end,
            x: (x, base),
            y: (y, zero),
        };
        round(&mut b, tile);
        let kernel = b.finish();
        crate::kernel::verify::verify(&kernel).expect("valid");
        let facts = Facts::new(&kernel);
        let last = kernel.body.last().expect("the loop");
        assert_eq!(recognise_round(&facts, last), Some(tile));
        assert_eq!(recognise(&facts, last), None);
    }
}
