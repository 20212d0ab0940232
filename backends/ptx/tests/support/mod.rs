//! Runs kernels in the PTX interpreter; kernels for the schedules that only this backend has.
#![allow(dead_code, reason = "each test uses a part")]

pub mod entries;
pub mod ptxas;

use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{GemmTile, Kind, PANEL, RowsAt, gemm};
use lapidary_ir::kernel::{
    Axis, Binary, Extent, Kernel, Literal, Param, ReduceKind, TileType, Unary, interp,
};
use lapidary_ir::target::{Feature, Target};
use lapidary_ptx_interp::{Launch, Module, Segment};
use lapidary_suite::{Backend, Rng, check};

/// The oldest and the newest.
pub fn targets() -> Vec<Target> {
    vec![
        Target::nvptx64(Feature::Sm80),
        Target::nvptx64(Feature::Sm100),
    ]
}

/// Runs a kernel's text, in two launches: blocks count from any number on.
pub fn run(
    _: &Backend,
    kernel: &Kernel,
    target: &Target,
    buffers: &[Vec<u8>],
    sizes: &[i64],
) -> Vec<Vec<u8>> {
    let gpu = lapidary_ptx::gpu(target).unwrap();
    let entry = lapidary_ptx::entry(kernel).unwrap_or_else(|e| panic!("{e}"));
    let text = lapidary_ptx::header(gpu) + &entry.text;
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let blocks: u64 = interp::grid(kernel, sizes).unwrap().iter().product();
    let mut copies = buffers.to_vec();
    let mut workspace = vec![0xFF; (entry.workspace_bytes * blocks) as usize];
    // Far apart, so that nothing reaches from one to another.
    let address = |i: usize| (i as u64 + 1) << 32;
    let (mut params, mut nth, mut next_size) = (vec![], 0, sizes.iter());
    let mut read_only = vec![];
    for param in &kernel.params {
        match param {
            Param::Buffer { written, .. } => {
                params.push(address(nth));
                read_only.push(!written);
                nth += 1;
            }
            Param::Size { .. } => params.push(*next_size.next().unwrap() as u64),
        }
    }
    params.extend([address(nth), 0]);
    for (first, count) in [(0, blocks / 3), (blocks / 3, blocks - blocks / 3)] {
        let mut segments: Vec<Segment> = copies
            .iter_mut()
            .chain([&mut workspace])
            .enumerate()
            .map(|(i, bytes)| Segment {
                address: address(i),
                bytes,
                read_only: read_only.get(i).copied().unwrap_or(false),
            })
            .collect();
        *params.last_mut().unwrap() = first;
        let launch = Launch {
            entry: &module.entries[&entry.name],
            params: &params,
            blocks: count as u32,
        };
        if let Err(fault) = launch.run(&mut segments) {
            let near = text
                .lines()
                .enumerate()
                .skip(fault.line.saturating_sub(12) as usize);
            let near: Vec<String> = near
                .take(16)
                .map(|(i, l)| format!("{:4} {l}", i + 1))
                .collect();
            panic!("{fault}\n{}", near.join("\n"));
        }
    }
    copies
}

/// A product of `tiles` tiles of rows, with more of `k` than a piece, on rows that are strided, or masked and elsewhere.
pub fn product(
    kind: Kind,
    rows: u32,
    k: i64,
    width: u32,
    taps: u32,
    masked: bool,
    known: bool,
) -> Kernel {
    let mut b = KernelBuilder::new("product");
    let [of_a, of_w, of_c] = kind.elems();
    let (a, w) = (b.buffer("a", of_a, false), b.buffer("w", of_w, false));
    let c = b.buffer("c", of_c, true);
    let size = (!known).then(|| b.size_param("k"));
    let block = b.grid(Extent::Const(2));
    let k_var = match size {
        Some(param) => b.size(param),
        None => b.index(k),
    };
    let panel = b.index(kind.padded(k) * i64::from(width * taps));
    let b_base = b.binary(Binary::Mul, block, panel);
    let tile = GemmTile {
        kind,
        rows,
        a,
        b: w,
        b_base,
        k: k_var,
        taps,
        width,
    };
    let acc = gemm(&mut b, tile, |b, tap| {
        let base = match tap {
            Some(t) => {
                let k = b.index(k);
                b.binary(Binary::Mul, t, k)
            }
            None => b.index(0),
        };
        let stride = k * i64::from(taps);
        if !masked {
            return RowsAt {
                base,
                rows: Axis::stride(stride),
            };
        }
        let i = b.iota(rows);
        let stride = b.index(stride);
        let offsets = b.binary(Binary::Mul, i, stride);
        let two = b.index(2);
        let mut axis = Axis::offsets(offsets);
        axis.mask = Some(b.binary(Binary::Ne, i, two));
        let valid = b.index(i64::from(rows.max(2)) - 1);
        RowsAt {
            base,
            rows: axis.valid(valid),
        }
    });
    let len = b.index(i64::from(rows * width));
    let at = b.binary(Binary::Mul, block, len);
    b.store(
        c,
        at,
        vec![Axis::stride(i64::from(width)), Axis::stride(1)],
        acc,
    );
    b.finish()
}

/// Products in all ways that `product.rs` has.
pub fn products(backend: &Backend) {
    let mut rng = Rng(7);
    let mut one = |kind, rows: u32, k: i64, width: u32, taps: u32, masked: bool, known: bool| {
        let kernel = product(kind, rows, k, width, taps, masked, known);
        let a = (i64::from(rows * taps) * k) as usize;
        let w = (2 * kind.padded(k) * i64::from(width * taps)) as usize;
        let mut fill = |n: usize| match kind.of_numbers() {
            true => rng.f32s(n),
            false => (0..n).map(|_| rng.bits() as u8).collect(),
        };
        let buffers = [fill(a), fill(w), vec![0; 2 * (rows * width) as usize * 4]];
        let sizes = if known { vec![] } else { vec![k] };
        check(backend, &kernel, &buffers, &sizes, 2e-4);
    };
    for rows in [1, 2, 4, 5, 8, 14] {
        for (k, taps, masked) in [
            (64, 1, false),
            (97, 1, true),
            (256, 3, true),
            (9, 2, false),
            (131, 1, false),
        ] {
            one(Kind::F32, rows, k, PANEL, taps, masked, true);
        }
        for (k, width, taps, masked) in [
            (64, 32, 1, false),
            (100, 96, 1, true),
            (36, 64, 3, true),
            (33, 32, 2, false),
        ] {
            one(Kind::I8, rows, k, width, taps, masked, true);
        }
    }
    one(Kind::F32, 1, 300, PANEL, 1, false, false);
    one(Kind::F32, 14, 70, PANEL, 1, false, false);
    one(Kind::I8, 14, 70, 32, 1, false, false);
}

/// Rows that are normalised and exponentiated by more threads than a warp.
pub fn wide_rows(backend: &Backend) {
    let mut rng = Rng(8);
    for lanes in [32u32, 96, 128, 200, 512, 1024] {
        let mut b = KernelBuilder::new("wide");
        let (x, y) = (
            b.buffer("x", ElemType::F32, false),
            b.buffer("y", ElemType::F32, true),
        );
        let row = b.grid(Extent::Const(3));
        let n = b.index(i64::from(lanes));
        let base = b.binary(Binary::Mul, row, n);
        let v = b.load(x, base, &[lanes], vec![Axis::stride(1)]);
        let most = b.reduce(ReduceKind::Max, v, 0);
        let v = b.binary(Binary::Sub, v, most);
        let e = b.unary(Unary::Exp, v);
        let sum = b.reduce(ReduceKind::Sum, e, 0);
        let e = b.binary(Binary::Div, e, sum);
        // The same in rank 2: columns' and rows' sums, turned round.
        let t = b.load(
            x,
            base,
            &[4, lanes / 4],
            vec![Axis::stride(i64::from(lanes / 4)), Axis::stride(1)],
        );
        let sums = b.reduce(ReduceKind::Sum, t, 1);
        let wide = b.broadcast(sums, &[4, lanes / 4], 1);
        let least = b.reduce(ReduceKind::Min, wide, 0);
        let least = b.reduce(ReduceKind::Min, least, 0);
        let half = b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(0.5));
        let least = b.binary(Binary::Mul, least, half);
        let e = b.binary(Binary::Add, e, least);
        b.store(y, base, vec![Axis::stride(1)], e);
        let kernel = b.finish();
        let (x, y) = (rng.f32s(3 * lanes as usize), vec![0; 12 * lanes as usize]);
        check(backend, &kernel, &[x, y], &[], 1e-4);
    }
}

/// The PTX of [`products`].
pub fn texts() -> Vec<String> {
    let mut texts = vec![];
    for (kind, rows) in [(Kind::F32, 1), (Kind::F32, 14), (Kind::I8, 14)] {
        let kernel = product(kind, rows, 128, PANEL, 1, false, true);
        texts.push(lapidary_ptx::entry(&kernel).unwrap().text);
    }
    texts
}

/// Runs the text of one of [`texts`] on memory of zeros.
pub fn run_alone(text: &str) -> Result<(), lapidary_ptx_interp::Fault> {
    let text = lapidary_ptx::header(&lapidary_ptx::GPUS[0]) + text;
    let module = Module::parse(&text).unwrap();
    let entry = module.entries.values().next().unwrap();
    let mut buffers = [(); 4].map(|()| vec![0; 1 << 16]);
    let address = |i: usize| (i as u64 + 1) << 32;
    let mut segments: Vec<Segment> = buffers
        .iter_mut()
        .enumerate()
        .map(|(i, bytes)| Segment {
            address: address(i),
            bytes,
            read_only: false,
        })
        .collect();
    let params = [address(0), address(1), address(2), address(3), 0];
    let launch = Launch {
        entry,
        params: &params,
        blocks: 1,
    };
    launch.run(&mut segments).map(|_| ())
}
