//! Handwritten kernels: addresses, control flow, contractions.

pub use super::blocks::{blocks_are_rounded, products_of_blocks, weights_become_numbers};
pub use super::packed::{
    batches_times_packed_weights, batches_times_two_of_four, products_of_halves,
    vectors_times_packed_weights,
};
pub use super::panels::{sparse_products_and_their_panels, sparse_products_of_codes};
pub use super::softmax::{halves_become_numbers, scores_become_weights};
use super::*;
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{
    Epilogue, GemmTile, Kind, PANEL, RowsAt, Scaled, Stage, epilogue, gemm,
};
use lapidary_ir::kernel::window::{WindowTile, window};
use lapidary_ir::kernel::*;

/// Scales rows: tiles with a remainder, a grid of two axes.
fn scale(elem: ElemType, tile: u32) -> Kernel {
    let mut b = KernelBuilder::new("scale");
    let (x, y) = (b.buffer("x", elem, false), b.buffer("y", elem, true));
    let n = b.size_param("n");
    let row = b.grid(Extent::Const(3));
    let block = b.grid(Extent::Param {
        param: n,
        divisor: tile,
    });
    let n = b.size(n);
    let len = b.index(i64::from(tile));
    let at = b.binary(Binary::Mul, block, len);
    let left = b.binary(Binary::Sub, n, at);
    let first = b.binary(Binary::Mul, row, n);
    let base = b.binary(Binary::Add, first, at);
    let v = b.load(x, base, &[tile], vec![Axis::stride(1).valid(left)]);
    let v = if elem == ElemType::Bool {
        b.unary(Unary::Not, v)
    } else {
        b.binary(Binary::Add, v, v)
    };
    b.store(y, base, vec![Axis::stride(1).valid(left)], v);
    b.finish()
}

/// Every element type, tiles that fit their rows and tiles that do not.
pub fn tiles_with_remainders_of_every_type(backend: &Backend) {
    let mut rng = Rng(1);
    for elem in [
        ElemType::F32,
        ElemType::F64,
        ElemType::Bool,
        ElemType::I8,
        ElemType::U8,
        ElemType::I16,
        ElemType::U16,
        ElemType::I32,
        ElemType::U32,
        ElemType::I64,
        ElemType::U64,
    ] {
        for (n, tile) in [(16, 16), (7, 4), (37, 18), (33, 16), (5, 5), (3, 8)] {
            let len = 3 * n as usize;
            let x: Vec<u8> = match elem {
                ElemType::F32 => rng.f32s(len),
                ElemType::F64 => (0..len).flat_map(|_| rng.unit().to_le_bytes()).collect(),
                ElemType::Bool => (0..len).map(|_| rng.below(2) as u8).collect(),
                _ => (0..len * elem.size_bytes())
                    .map(|_| rng.bits() as u8)
                    .collect(),
            };
            let y = vec![0u8; x.len()];
            check(backend, &scale(elem, tile), &[x, y], &[n], 0.0);
        }
    }
}

/// Rows by offsets with a mask, columns by a stride, transposed on the way.
pub fn gathers_masks_and_transpositions(backend: &Backend) {
    let mut b = KernelBuilder::new("gather");
    let (x, y) = (
        b.buffer("x", ElemType::F32, false),
        b.buffer("y", ElemType::F32, true),
    );
    let block = b.grid(Extent::Const(3));
    let rows = b.iota(6);
    let seven = b.index(7);
    let offsets = b.binary(Binary::Mul, rows, seven);
    let offsets = b.binary(Binary::Mod, offsets, seven);
    let five = b.index(5);
    let offsets = b.binary(Binary::Add, offsets, five);
    let two = b.index(2);
    let odd = b.binary(Binary::Mod, rows, two);
    let mask = b.binary(Binary::Eq, odd, block);
    let mut row_axis = Axis::offsets(offsets);
    row_axis.mask = Some(mask);
    let cols = b.iota(8);
    let three = b.index(3);
    let col_mask = b.binary(Binary::Ne, cols, three);
    let mut col_axis = Axis::stride(2);
    col_axis.mask = Some(col_mask);
    let t = b.load(x, block, &[6, 8], vec![row_axis, col_axis]);
    let t = b.emit(TileType::of(ElemType::F32, &[8, 6]), Op::Transpose(t));
    let size = b.index(48);
    let base = b.binary(Binary::Mul, block, size);
    let valid = b.binary(Binary::Add, block, five);
    b.store(
        y,
        base,
        vec![Axis::stride(6).valid(valid), Axis::stride(1)],
        t,
    );
    let kernel = b.finish();
    let mut rng = Rng(2);
    check(
        backend,
        &kernel,
        &[rng.f32s(40), rng.f32s(3 * 48)],
        &[],
        0.0,
    );
}

/// A row-wise softmax: loops that carry scalars and tiles, reductions, a branch, scratch.
pub fn loops_branches_reductions_scratch(backend: &Backend) {
    let n = 40;
    let mut b = KernelBuilder::new("softmax");
    let (x, y) = (
        b.buffer("x", ElemType::F32, false),
        b.buffer("y", ElemType::F32, true),
    );
    let tmp = b.scratch(ElemType::F32, n as u32);
    let row = b.grid(Extent::Const(5));
    let (zero, len) = (b.index(0), b.index(n));
    let base = b.binary(Binary::Mul, row, len);
    let ty = TileType::of(ElemType::F32, &[8]);
    let lowest = b.constant(ty.clone(), Literal::Float(f64::NEG_INFINITY));
    let max = b.for_loop(zero, len, 8, &[lowest], |b, i, max| {
        let at = b.binary(Binary::Add, base, i);
        let v = b.load(x, at, &[8], vec![Axis::stride(1)]);
        vec![b.binary(Binary::Max, max[0], v)]
    })[0];
    let max = b.reduce(ReduceKind::Max, max, 0);
    let none = b.constant(ty, Literal::Float(0.0));
    let sum = b.for_loop(zero, len, 8, &[none], |b, i, sum| {
        let at = b.binary(Binary::Add, base, i);
        let v = b.load(x, at, &[8], vec![Axis::stride(1)]);
        let v = b.binary(Binary::Sub, v, max);
        let e = b.unary(Unary::Exp, v);
        b.store(tmp, i, vec![Axis::stride(1)], e);
        vec![b.binary(Binary::Add, sum[0], e)]
    })[0];
    let sum = b.reduce(ReduceKind::Sum, sum, 0);
    let one = b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(1.0));
    let large = b.binary(Binary::Gt, sum, one);
    let factor = b.if_else(
        large,
        |b| vec![b.unary(Unary::Reciprocal, sum)],
        |_| vec![one],
    )[0];
    b.for_loop(zero, len, 8, &[], |b, i, _| {
        let e = b.load(tmp, i, &[8], vec![Axis::stride(1)]);
        let e = b.binary(Binary::Mul, e, factor);
        let at = b.binary(Binary::Add, base, i);
        b.store(y, at, vec![Axis::stride(1)], e);
        vec![]
    });
    let kernel = b.finish();
    let mut rng = Rng(3);
    check(
        backend,
        &kernel,
        &[rng.f32s(5 * n as usize), vec![0; 20 * n as usize]],
        &[],
        1e-6,
    );
}

/// Division, remainders, shifts, powers at the edges of integer types.
pub fn integer_division_never_traps(backend: &Backend) {
    for elem in [
        ElemType::I32,
        ElemType::I64,
        ElemType::U32,
        ElemType::I8,
        ElemType::U8,
    ] {
        let (lo, hi) = elem.int_range().unwrap();
        let edges: Vec<i128> = vec![0, 1, 7, 100, hi, hi - 1, lo, -1, -7, lo + 1];
        let edges: Vec<i128> = edges
            .into_iter()
            .filter(|v| (lo..=hi).contains(v))
            .collect();
        let size = elem.size_bytes();
        let pairs: Vec<(i128, i128)> = edges
            .iter()
            .flat_map(|&a| edges.iter().map(move |&b| (a, b)))
            .collect();
        let pack = |f: fn(&(i128, i128)) -> i128| -> Vec<u8> {
            pairs
                .iter()
                .flat_map(|p| f(p).to_le_bytes()[..size].to_vec())
                .collect()
        };
        for f in [
            Binary::Div,
            Binary::Mod,
            Binary::Rem,
            Binary::FloorDiv,
            Binary::Shl,
            Binary::Shr,
            Binary::Min,
            Binary::Max,
            Binary::Pow,
        ] {
            let mut b = KernelBuilder::new("divide");
            let (x, y, z) = (
                b.buffer("x", elem, false),
                b.buffer("y", elem, false),
                b.buffer("z", elem, true),
            );
            let i = b.grid(Extent::Const(pairs.len() as u64));
            let (u, v) = (b.load(x, i, &[], vec![]), b.load(y, i, &[], vec![]));
            let w = b.binary(f, u, v);
            b.store(z, i, vec![], w);
            let kernel = b.finish();
            let buffers = [
                pack(|p| p.0),
                pack(|p| if p.1 < 0 { p.1 } else { p.1.min(127) }),
                vec![0; pairs.len() * size],
            ];
            if matches!(f, Binary::Shl | Binary::Shr) && lo < 0 {
                continue; // negative shift counts mean nothing
            }
            check(backend, &kernel, &buffers, &[], 0.0);
        }
    }
}

/// Index quotients and remainders are rounded down.
pub fn index_division_by_constants(backend: &Backend) {
    let values: Vec<i64> = vec![
        0,
        1,
        -1,
        6,
        7,
        8,
        -7,
        -8,
        1 << 40,
        i64::MAX,
        i64::MIN,
        i64::MIN + 1,
        123_456_789_012_345,
    ];
    for d in [1i64, 2, 3, 5, 7, 10, 64, 641, 1_000_003, i64::MAX] {
        for f in [Binary::FloorDiv, Binary::Mod] {
            let mut b = KernelBuilder::new("by_constant");
            let (x, y) = (
                b.buffer("x", ElemType::I64, false),
                b.buffer("y", ElemType::I64, true),
            );
            let i = b.grid(Extent::Const(values.len() as u64));
            let v = b.load(x, i, &[], vec![]);
            let v = b.cast(v, TileElem::Index);
            let d = b.index(d);
            let w = b.binary(f, v, d);
            let w = b.cast(w, TileElem::Elem(ElemType::I64));
            b.store(y, i, vec![], w);
            let x = bytes(&values, |v| v.to_le_bytes());
            check(backend, &b.finish(), &[x.clone(), x], &[], 0.0);
        }
    }
}

/// Codes of 1, 2 and 4 bits, signed and not.
pub fn packed_codes_are_unpacked(backend: &Backend) {
    for (bits, signed) in [(4, false), (4, true), (2, true), (1, false), (2, false)] {
        for n in [8u32, 4, 3, 5] {
            let elem = if signed { ElemType::I8 } else { ElemType::U8 };
            let mut b = KernelBuilder::new("unpack");
            let (x, y) = (
                b.buffer("x", ElemType::U8, false),
                b.buffer("y", elem, true),
            );
            let i = b.grid(Extent::Const(4));
            let len = b.index(i64::from(n));
            let at = b.binary(Binary::Mul, i, len);
            let v = b.load(x, at, &[n], vec![Axis::stride(1)]);
            let codes = n * 8 / bits;
            let v = b.emit(
                TileType::of(elem, &[codes]),
                Op::Unpack { x: v, bits, signed },
            );
            let per_byte = b.index(i64::from(8 / bits));
            let at = b.binary(Binary::Mul, at, per_byte);
            b.store(y, at, vec![Axis::stride(1)], v);
            let mut rng = Rng(4);
            let x: Vec<u8> = (0..4 * n).map(|_| rng.bits() as u8).collect();
            check(
                backend,
                &b.finish(),
                &[x, vec![0; 4 * codes as usize]],
                &[],
                0.0,
            );
        }
    }
}

struct Gemm {
    kind: Kind,
    /// Sums of codes become numbers (`None` inside) or codes.
    scaled: Option<Option<(ElemType, i64)>>,
    rows: u32,
    m: i64,
    k: i64,
    n: i64,
    taps: u32,
    /// Panels of so many columns.
    width: u32,
    /// How many stages codes go through, and then a table.
    stages: usize,
    /// Rows by offsets, some missing.
    masked: bool,
    /// Between the product and the store.
    tail: fn(&mut KernelBuilder, Var) -> Var,
}

/// `c[m, n] = a[m, taps * k] * b + bias + residual`, by tiles of rows and panels of columns.
fn gemm_kernel(g: &Gemm) -> Kernel {
    let mut b = KernelBuilder::new("gemm");
    let f32s = g.kind.of_numbers();
    let [ea, eb, sums] = g.kind.elems();
    let ec = match g.scaled {
        None => sums,
        Some(code) => code.map_or(ElemType::F32, |c| c.0),
    };
    let (a, w, c) = (
        b.buffer("a", ea, false),
        b.buffer("b", eb, false),
        b.buffer("c", ec, true),
    );
    let bias = b.buffer("bias", ElemType::F32, false);
    let residual = b.buffer("residual", ElemType::F32, false);
    let sums = b.buffer("sums", ElemType::I32, false);
    let codes = b.buffer("codes", ElemType::U8, false);
    let table = b.buffer("table", ec, false);
    let i = b.grid(Extent::Const(g.m as u64).div(g.rows));
    let j = b.grid(Extent::Const(g.n as u64).div(g.width));
    let (rows, panel) = (b.index(i64::from(g.rows)), b.index(i64::from(g.width)));
    let row = b.binary(Binary::Mul, i, rows);
    let col = b.binary(Binary::Mul, j, panel);
    let (m, n, k) = (b.index(g.m), b.index(g.n), b.index(g.k));
    let rows_left = b.binary(Binary::Sub, m, row);
    let cols_left = b.binary(Binary::Sub, n, col);
    let panel_len = b.index(g.kind.padded(g.k) * i64::from(g.width) * i64::from(g.taps));
    let b_base = b.binary(Binary::Mul, j, panel_len);
    let tile = GemmTile {
        kind: g.kind,
        rows: g.rows,
        a,
        b: w,
        b_base,
        k,
        taps: g.taps,
        width: g.width,
    };
    let row_len = g.k * i64::from(g.taps);
    let acc = gemm(&mut b, tile, |b, tap| {
        let len = b.index(row_len);
        let mut base = b.binary(Binary::Mul, row, len);
        if let Some(t) = tap {
            let skip = b.binary(Binary::Mul, t, k);
            base = b.binary(Binary::Add, base, skip);
        }
        let mut rows = Axis::stride(row_len).valid(rows_left);
        if g.masked {
            let i = b.iota(g.rows);
            let offsets = b.binary(Binary::Mul, i, len);
            rows = Axis::offsets(offsets);
            let position = b.binary(Binary::Add, i, row);
            let below = b.binary(Binary::Lt, position, m);
            let two = b.index(2);
            let other = b.binary(Binary::Ne, position, two);
            rows.mask = Some(b.binary(Binary::And, below, other));
        }
        RowsAt { base, rows }
    });
    let acc = (g.tail)(&mut b, acc);
    let c_row = b.binary(Binary::Mul, row, n);
    let c_base = b.binary(Binary::Add, c_row, col);
    let at = RowsAt {
        base: c_base,
        rows: Axis::stride(g.n).valid(rows_left),
    };
    let seven = b.constant(TileType::of(ElemType::I32, &[]), Literal::Int(7));
    let scaled = g.scaled.map(|_| Scaled {
        zero: Some((seven, sums, col)),
        scale: (residual, col),
    });
    let numbers = f32s || scaled.is_some();
    epilogue(
        &mut b,
        acc,
        Epilogue {
            scaled,
            bias: numbers.then_some((bias, col)),
            residual: f32s.then(|| (residual, at.clone())),
            lo: numbers.then_some(if f32s { -1.0 } else { -50.0 }),
            hi: numbers.then_some(if f32s { 3.0 } else { 60.0 }),
            code: g.scaled.flatten(),
            stages: (0..g.stages)
                .map(|i| Stage {
                    factor: 0.75,
                    row: (bias, col),
                    residual: (i == 1).then(|| (codes, at.clone(), 0.3)),
                    lo: -50.0,
                    hi: 60.0,
                })
                .collect(),
            table: (g.stages > 0).then_some(table),
            c,
            c_at: at,
            cols: Some(cols_left),
        },
    );
    b.finish()
}

trait Div {
    fn div(self, by: u32) -> Extent;
}

impl Div for Extent {
    fn div(self, by: u32) -> Extent {
        match self {
            Extent::Const(n) => Extent::Const(n.div_ceil(u64::from(by))),
            other => other,
        }
    }
}

/// Matrix products and convolutions with all epilogues.
pub fn contractions_with_and_without_micro_kernels(backend: &Backend) {
    let same: fn(&mut KernelBuilder, Var) -> Var = |_, acc| acc;
    let halved: fn(&mut KernelBuilder, Var) -> Var = |b, acc| {
        let half = b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(0.5));
        b.binary(Binary::Mul, acc, half)
    };
    let base = Gemm {
        kind: Kind::F32,
        scaled: None,
        rows: 6,
        m: 13,
        k: 9,
        n: 40,
        taps: 1,
        width: PANEL,
        stages: 0,
        masked: false,
        tail: same,
    };
    let cases = [
        Gemm { ..base },
        Gemm {
            tail: halved,
            ..base
        },
        Gemm {
            taps: 3,
            masked: true,
            ..base
        },
        Gemm {
            taps: 3,
            masked: true,
            tail: halved,
            ..base
        },
        Gemm {
            rows: 14,
            m: 14,
            n: 32,
            ..base
        },
        Gemm {
            kind: Kind::Bf16,
            ..base
        },
        Gemm {
            kind: Kind::Bf16,
            taps: 3,
            masked: true,
            tail: halved,
            ..base
        },
        Gemm {
            kind: Kind::Bf16,
            k: 10,
            width: 96,
            n: 150,
            ..base
        },
        Gemm {
            kind: Kind::I8,
            k: 10,
            ..base
        },
        Gemm {
            kind: Kind::I8,
            k: 8,
            taps: 2,
            ..base
        },
        Gemm {
            kind: Kind::I8,
            scaled: Some(None),
            ..base
        },
        Gemm {
            kind: Kind::I8,
            scaled: Some(Some((ElemType::U8, 50))),
            rows: 14,
            ..base
        },
        Gemm {
            kind: Kind::I8,
            scaled: Some(Some((ElemType::I8, -3))),
            taps: 3,
            masked: true,
            ..base
        },
        Gemm {
            kind: Kind::I8,
            scaled: Some(Some((ElemType::U8, 50))),
            taps: 3,
            width: 96,
            stages: 1,
            masked: true,
            n: 70,
            ..base
        },
        Gemm {
            kind: Kind::I8,
            scaled: Some(Some((ElemType::I8, -3))),
            width: 64,
            stages: 2,
            n: 150,
            ..base
        },
        Gemm {
            kind: Kind::I8,
            width: 64,
            tail: |b, acc| b.binary(Binary::Add, acc, acc),
            n: 70,
            ..base
        },
    ];
    let mut rng = Rng(5);
    for g in &cases {
        let kernel = gemm_kernel(g);
        let a_len = (g.m * g.k * i64::from(g.taps)) as usize;
        let width = i64::from(g.width);
        let b_len =
            ((g.n + width - 1) / width * width * g.kind.padded(g.k) * i64::from(g.taps)) as usize;
        let [of_a, of_w, _] = g.kind.elems();
        let mut fill = |n: usize, elem| match elem {
            ElemType::F32 => rng.f32s(n),
            // Numbers of few bits.
            ElemType::BF16 => {
                let numbers = rng.f32s(n);
                let high = numbers.chunks_exact(4).flat_map(|b| [b[2], b[3]]);
                high.collect()
            }
            _ => (0..n).map(|_| rng.bits() as u8).collect::<Vec<u8>>(),
        };
        let (a, w) = (fill(a_len, of_a), fill(b_len, of_w));
        let c_len = (g.m * g.n) as usize;
        let (bias, residual) = (rng.f32s(g.n as usize), rng.f32s(c_len));
        let sums: Vec<u8> = (0..g.n as i32).flat_map(i32::to_le_bytes).collect();
        let (codes, table) = (
            (0..c_len).map(|i| (i * 89) as u8).collect(),
            (0..256).map(|i| (i * 167 + 5) as u8).collect(),
        );
        let c_size = match g.scaled {
            Some(Some(_)) => 1,
            _ => 4,
        };
        check(
            backend,
            &kernel,
            &[
                a,
                w,
                vec![0; c_size * c_len],
                bias,
                residual,
                sums,
                codes,
                table,
            ],
            &[],
            1e-4,
        );
    }
}

/// `y[r] = sum over t of x[t + r] * w[t]`, channel by channel, as codes, or the maximum.
fn window_kernel(rows: u32, cols: i64, taps: i64, codes: bool, maximum: bool) -> Kernel {
    let mut b = KernelBuilder::new("window");
    let (of_x, of_w) = match codes {
        true => (ElemType::U8, ElemType::I8),
        false => (ElemType::F32, ElemType::F32),
    };
    let (x, w) = (b.buffer("x", of_x, false), b.buffer("w", of_w, false));
    let (scale, bias) = (
        b.buffer("scale", ElemType::F32, false),
        b.buffer("bias", ElemType::F32, false),
    );
    let y = b.buffer("y", of_x, true);
    let tile = b.grid(Extent::Const(2));
    let (zero, len) = (b.index(0), b.index(cols));
    let valid = (cols % 16 != 0).then_some(len);
    let height = b.index(i64::from(rows));
    let row = b.binary(Binary::Mul, tile, height);
    let spec = WindowTile {
        rows,
        width: (cols as u32).next_multiple_of(16),
        a: x,
        codes,
        weights: (!maximum).then_some((w, zero, cols)),
        cols: valid,
        taps: taps as u32,
    };
    let acc = window(&mut b, spec, |b, t| {
        let from = b.binary(Binary::Add, row, t);
        RowsAt {
            base: b.binary(Binary::Mul, from, len),
            rows: Axis::stride(cols),
        }
    });
    let base = b.binary(Binary::Mul, row, len);
    epilogue(
        &mut b,
        acc,
        Epilogue {
            scaled: (codes && !maximum).then_some(Scaled {
                zero: None,
                scale: (scale, zero),
            }),
            bias: (!maximum).then_some((bias, zero)),
            residual: None,
            lo: codes.then_some(if maximum { 0.0 } else { -100.0 }),
            hi: codes.then_some(if maximum { 255.0 } else { 155.0 }),
            code: codes.then_some((ElemType::U8, if maximum { 0 } else { 100 })),
            stages: vec![],
            table: None,
            c: y,
            c_at: RowsAt {
                base,
                rows: Axis::stride(cols),
            },
            cols: valid,
        },
    );
    b.finish()
}

/// Depthwise convolutions and maximum pools, of numbers and of codes.
pub fn windows_of_numbers_and_codes(backend: &Backend) {
    let mut rng = Rng(6);
    for (rows, cols, taps) in [(3, 40, 9), (14, 64, 4), (5, 16, 1), (2, 130, 3)] {
        for (codes, maximum) in [(true, false), (true, true), (false, false), (false, true)] {
            let mut fill = |n: i64| match codes {
                true => (0..n).map(|_| rng.bits() as u8).collect(),
                false => rng.f32s(n as usize),
            };
            let x = fill((2 * i64::from(rows) + taps - 1) * cols);
            let w = fill(taps * cols);
            let y = vec![0; 2 * rows as usize * cols as usize * if codes { 1 } else { 4 }];
            let scale = (0..cols).map(|j| 0.0021 * (1 + j % 4) as f32);
            let scale = scale.flat_map(f32::to_le_bytes).collect();
            let bias = rng.f32s(cols as usize);
            let kernel = window_kernel(rows, cols, taps, codes, maximum);
            check(backend, &kernel, &[x, w, scale, bias, y], &[], 1e-4);
        }
    }
}

/// Every machine in the list gets code without relocations.
pub fn other_machines_get_code(backend: &Backend) {
    let kernel = scale(ElemType::F32, 16);
    let g = gemm_kernel(&Gemm {
        kind: Kind::F32,
        scaled: None,
        rows: 4,
        m: 8,
        k: 9,
        n: 40,
        taps: 2,
        width: PANEL,
        stages: 0,
        masked: true,
        tail: |_, acc| acc,
    });
    for target in [Target::aarch64(), Target::riscv64()] {
        for micro_kernels in [false, true] {
            let target = Target {
                micro_kernels,
                ..target.clone()
            };
            let code = (backend.compile)(&[kernel.clone(), g.clone()], &target)
                .unwrap_or_else(|e| panic!("{}: {e}", target.triple));
            assert!(code.bytes.len() > 64 && code.entries.len() == 2);
        }
    }
    let unknown = Target {
        triple: "powerpc-unknown-none".to_owned(),
        ..Target::x86_64()
    };
    assert!(matches!(
        (backend.compile)(&[kernel], &unknown),
        Err(Error::Target { .. })
    ));
}
