//! What attention does between its products: rows of scores to weights, and halves of caches to numbers.

use super::*;
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::softmax::{Mask, Rest, Softmax, softmax};
use lapidary_ir::kernel::widen::{Widen, widen};
use lapidary_ir::kernel::*;

const ROWS: i64 = 3;
/// Keys that there is room for.
const ROOM: u32 = 64;
const WIDTH: i64 = 32;

/// One form: what rows see, and how they end.
#[derive(Clone, Copy)]
struct Form {
    first: Option<i64>,
    end: Option<i64>,
    /// Its elements, and whether each row has its own.
    mask: Option<(ElemType, bool)>,
    rest: usize,
    softcap: Option<f32>,
}

/// Scores from `x` become weights in `y`. Each block has rows of its own.
fn kernel(form: Form, exact: bool) -> Kernel {
    let mut b = KernelBuilder::new("softmax");
    let x = b.buffer("x", ElemType::F32, false);
    let y = b.buffer("y", ElemType::F32, true);
    let [m, l, o] = ["m", "l", "o"].map(|name| b.buffer(name, ElemType::F32, true));
    let mask = form.mask.map(|(elem, _)| b.buffer("mask", elem, false));
    let keys = b.size_param("keys");
    b.grid(Extent::Const(1));
    let s = b.scratch(ElemType::F32, ROWS as u32 * ROOM);
    let here = b.size(keys);
    let [zero, rows, pitch] = [0, ROWS, i64::from(ROOM)].map(|v| b.index(v));
    let copy =
        |b: &mut KernelBuilder, (from, from_pitch): (Buf, Var), (to, to_pitch): (Buf, Var)| {
            b.for_loop(zero, rows, 1, &[], |b, r, _| {
                let [from_at, to_at] = [from_pitch, to_pitch].map(|p| b.binary(Binary::Mul, r, p));
                let row = Axis::stride(1).valid(here);
                let v = b.load(from, from_at, &[ROOM], vec![row.clone()]);
                b.store(to, to_at, vec![row], v);
                vec![]
            });
        };
    copy(&mut b, (x, here), (s, pitch));
    let scale = b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(0.5));
    let rest = match form.rest {
        0 => Rest::Running {
            m,
            l,
            o,
            width: b.index(WIDTH),
        },
        1 => Rest::Sum(l),
        _ => Rest::Divided,
    };
    let given = Softmax {
        s,
        pitch,
        rows,
        here,
        scale,
        softcap: form.softcap,
        first: form.first.map(|v| b.index(v)),
        end: form.end.map(|v| b.index(v)),
        mask: mask.zip(form.mask).map(|(buf, (_, by_row))| Mask {
            buf,
            base: zero,
            pitch: by_row.then_some(here),
        }),
        rest,
        lanes: 16,
        exact,
    };
    softmax(&mut b, given);
    copy(&mut b, (s, pitch), (y, here));
    b.finish()
}

/// What rows see with every mask, for rows that are whole vectors and rows that are not.
pub fn scores_become_weights(backend: &Backend) {
    let mut rng = Rng(17);
    let sees = [
        (None, None),
        (Some(-1), Some(2)),
        (None, Some(-1)),
        (Some(3), None),
    ];
    let masks = [
        None,
        Some((ElemType::F32, true)),
        Some((ElemType::F32, false)),
        Some((ElemType::Bool, true)),
    ];
    let forms = sees.into_iter().flat_map(|s| masks.map(|m| (s, m)));
    for (i, ((first, end), mask)) in forms.enumerate() {
        for (j, (keys, softcap)) in [(7, None), (32, None), (41, Some(2.0))]
            .into_iter()
            .enumerate()
        {
            let form = Form {
                first,
                end,
                mask,
                rest: (i + j) % 3,
                softcap,
            };
            let n = (ROWS * keys) as usize;
            let mut buffers = vec![rng.f32s(n), vec![0; 4 * n]];
            // The first row has seen nothing before.
            let m = [f32::NEG_INFINITY, 0.25, 3.0];
            buffers.push(m.iter().flat_map(|x| x.to_le_bytes()).collect());
            buffers.push(rng.f32s(ROWS as usize));
            buffers.push(rng.f32s((ROWS * WIDTH) as usize));
            match mask {
                Some((ElemType::Bool, _)) => {
                    buffers.push((0..n).map(|_| rng.below(2) as u8).collect());
                }
                Some(_) => buffers.push(rng.f32s(n)),
                None => {}
            }
            let exact = keys % 16 == 0 && first.is_none() && end.is_none();
            check(backend, &kernel(form, exact), &buffers, &[keys], 1e-5);
        }
    }
}

/// Halves from somewhere on, every kind of them among them.
pub fn halves_become_numbers(backend: &Backend) {
    const N: i64 = 96;
    let mut b = KernelBuilder::new("widen");
    let (x, y) = (
        b.buffer("x", ElemType::F16, false),
        b.buffer("y", ElemType::F32, true),
    );
    let block = b.grid(Extent::Const(2));
    let n = b.index(N);
    let from = b.binary(Binary::Mul, block, n);
    let zero = b.index(0);
    let scratch = b.scratch(ElemType::F32, N as u32);
    let w = Widen {
        src: (x, from),
        dst: (scratch, zero),
        n,
    };
    widen(&mut b, w);
    let all = b.load(scratch, zero, &[N as u32], vec![Axis::stride(1)]);
    b.store(y, from, vec![Axis::stride(1)], all);
    let kernel = b.finish();
    // Zeros, the least and the largest of both kinds, infinities, and others.
    let bits = |i: i64| match i {
        0..8 => [0, 0x8000, 1, 0x83ff, 0x400, 0x7bff, 0x7c00, 0xfc00][i as usize],
        _ => (i * 631 % 0x7c00) as u16 | ((i as u16 & 1) << 15),
    };
    let x: Vec<u8> = (0..2 * N).flat_map(|i| bits(i).to_le_bytes()).collect();
    check(backend, &kernel, &[x, vec![0; 8 * N as usize]], &[], 0.0);
}
