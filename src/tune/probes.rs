//! Small programs that are mostly one kind of work.
//!
//! They are built, lowered and compiled as models are, so that what is measured is what programs run. Their data fits the
//! second-level cache. Weights are as good as any others: no kernel's time depends on their values, zeros aside.

use lapidary_ir::builder::Builder;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::dense;
use lapidary_ir::encodings::int::{int, pack};
use lapidary_ir::ops::OpError;
use lapidary_ir::random::SplitMix64;
use lapidary_ir::speeds::Work;
use lapidary_ir::types::Type;
use lapidary_ir::{Attr, ElemType, Module, Tensor, ValueId};
use std::cell::Cell;
use std::sync::Arc;

/// A program, and the kind of work that it is there for.
pub struct Probe {
    /// The kind.
    pub work: Work,
    /// The program.
    pub module: Module,
}

type Built = Result<ValueId, OpError>;

/// One result of inputs of these types.
fn module(
    work: Work,
    inputs: &[(ElemType, &[i64])],
    build: impl FnOnce(&mut Builder, &[ValueId]) -> Built,
) -> Result<Probe, OpError> {
    let (mut module, fresh) = (Module::new("probe"), Cell::new(0));
    let mut values = vec![];
    for (elem, dims) in inputs {
        let ty = Type::tensor(*elem, dims.to_vec());
        values.push(module.add_input(Module::TOP, "x", ty));
    }
    let mut b = Builder::new(&mut module, Module::TOP, "probe", &fresh);
    let y = build(&mut b, &values)?;
    module.region_mut(Module::TOP).outputs.push(y);
    module.output_names.push("y".into());
    Ok(Probe { work, module })
}

/// Random numbers, of which the share `keep` is not zero; zeros are in runs of `run` along the first axis.
fn numbers(shape: &[usize], keep: f64, run: usize) -> Vec<f64> {
    let n: usize = shape.iter().product();
    let inner = n / shape[0].max(1);
    let mut random = SplitMix64::new(7);
    let values = random.normals(n);
    let kept: Vec<bool> = (0..n)
        .map(|_| (random.below(10_000) as f64) < keep * 1e4)
        .collect();
    let at = |i: usize| kept[i / inner / run * run * inner + i % inner];
    (0..n)
        .map(|i| if at(i) { values[i] } else { 0.0 })
        .collect()
}

fn floats(shape: &[usize], keep: f64) -> Tensor {
    Tensor::from_f64(ElemType::F32, shape, numbers(shape, keep, 1))
}

fn codes(shape: &[usize], keep: f64) -> Tensor {
    let code = |v: f64| {
        if v == 0.0 {
            0
        } else {
            (v * 40.0).clamp(-127.0, 127.0) as i128 | 1
        }
    };
    let codes = numbers(shape, keep, 4).into_iter().map(code);
    Tensor::from_int(ElemType::I8, shape, codes.collect())
}

/// `[m, k]` times constant `[k, n]`, of which the share `keep` is not zero.
fn product(work: Work, [m, k, n]: [usize; 3], keep: f64) -> Result<Probe, OpError> {
    module(work, &[(ElemType::F32, &[m as i64, k as i64])], |b, x| {
        let w = b.constant(&floats(&[k, n], keep));
        b.op("matmul", &[x[0], w])
    })
}

/// The same of codes; zeros are fours.
fn product_of_codes(work: Work, [m, k, n]: [usize; 3], keep: f64) -> Result<Probe, OpError> {
    module(work, &[(ElemType::U8, &[m as i64, k as i64])], |b, x| {
        let zero = b.constant(&Tensor::from_int(ElemType::U8, [], vec![9]));
        let w = b.constant(&codes(&[k, n], keep));
        let scale = b.constant(&Tensor::from_f64(ElemType::F32, [n], vec![1e-3; n]));
        let operands = [x[0], zero, w, scale].map(Some);
        Ok(b.multi("quantized_linear", &operands, &[], 1)?[0])
    })
}

/// With weights of a few bits in blocks, of numbers that are rounded first or not.
fn product_of_blocks(
    work: Work,
    [m, k, n]: [usize; 3],
    (bits, block): (u32, usize),
    rounded: bool,
) -> Result<Probe, OpError> {
    module(work, &[(ElemType::F32, &[m as i64, k as i64])], |b, x| {
        let x = match rounded {
            true => b.op_with("round_blocks", x, [("block_size", (block as i64).into())])?,
            false => x[0],
        };
        let all = (0..n * k).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8);
        let stored = pack(all.map(|c| c & (0xFF >> (8 - bits))), bits);
        let stored = int(ElemType::U8, bits, vec![n, k], stored.into());
        let scales = Tensor::from_f64(ElemType::F16, [n, k / block], vec![0.5; n * k / block]);
        let term = affine(ElemType::F32, dense::from_tensor(&scales), stored, None);
        let w = b.term(&Arc::new(term));
        let w = b.transpose(w, &[1, 0])?;
        b.op("matmul", &[x, w])
    })
}

/// A convolution, and what its weights are.
fn convolution(
    work: Work,
    [channels, size, kernel]: [usize; 3],
    of_codes: bool,
) -> Result<Probe, OpError> {
    let elem = if of_codes {
        ElemType::U8
    } else {
        ElemType::F32
    };
    let (c, s) = (channels as i64, size as i64);
    module(work, &[(elem, &[1, c, s, s])], |b, x| {
        let attrs = [
            ("group", c.into()),
            ("pads", Attr::Ints(vec![kernel as i64 / 2; 4])),
        ];
        let shape = [channels, 1, kernel, kernel];
        if !of_codes {
            let w = b.constant(&floats(&shape, 1.0));
            return b.op_with("conv", &[x[0], w], attrs);
        }
        let zero = b.constant(&Tensor::from_int(ElemType::U8, [], vec![9]));
        let w = b.constant(&codes(&shape, 1.0));
        let ones = vec![1e-3; channels];
        let scale = b.constant(&Tensor::from_f64(ElemType::F32, [channels], ones));
        let operands = [x[0], zero, w, scale].map(Some);
        Ok(b.multi("quantized_conv", &operands, &attrs, 1)?[0])
    })
}

/// `op` of each number.
fn each(work: Work, op: &'static str) -> Result<Probe, OpError> {
    module(work, &[(ElemType::F32, &[1 << 14])], |b, x| b.op(op, x))
}

/// An activation where a product leaves its tile; the product is small.
fn activated(work: Work, name: &str) -> Result<Probe, OpError> {
    module(work, &[(ElemType::F32, &[56, 4])], |b, x| {
        let w = b.constant(&floats(&[4, 512], 1.0));
        let attrs = [("activation", Attr::Str(name.into()))];
        Ok(b.multi("fused_linear", &[Some(x[0]), Some(w)], &attrs, 1)?[0])
    })
}

/// Every probe. What a probe contains besides its own kind of work comes before it, so that it is known by then.
pub fn probes() -> Result<Vec<Probe>, OpError> {
    let mut all = vec![
        module(Work::Vector, &[(ElemType::F32, &[1 << 13])], |b, x| {
            (0..12).try_fold(x[0], |y, i| {
                b.op(if i % 2 == 0 { "mul" } else { "add" }, &[y, x[0]])
            })
        })?,
        module(Work::Scalar, &[(ElemType::F32, &[96, 128])], |b, x| {
            b.transpose(x[0], &[1, 0])
        })?,
    ];
    // Twice, as each of them is part of the others.
    for _ in 0..2 {
        all.push(product(Work::Gemm, [14, 256, 512], 1.0)?);
        all.push(product(Work::Gemm, [1, 256, 512], 1.0)?);
        all.push(product(Work::Call, [1, 4, 4096], 1.0)?);
        all.push(product(Work::Store, [14, 4, 2048], 1.0)?);
    }
    for m in [1, 2, 4, 8, 14] {
        all.push(product(Work::Gemm, [m, 256, 512], 1.0)?);
    }
    for m in [1, 2, 4, 8, 14] {
        all.push(product(Work::GemmBf16, [m, 256, 512], 1.0)?);
    }
    for m in [1, 2, 4, 8, 14] {
        all.push(product_of_codes(Work::GemmCodes, [m, 512, 512], 1.0)?);
    }
    all.push(product_of_blocks(
        Work::Round,
        [256, 512, 16],
        (4, 32),
        true,
    )?);
    for (bits, short, long, unpack) in [
        (2, Work::ShortBlocks2, Work::Blocks2, Work::Unpack2),
        (4, Work::ShortBlocks4, Work::Blocks4, Work::Unpack4),
        (8, Work::ShortBlocks8, Work::Blocks8, Work::Unpack8),
    ] {
        for (work, block) in [(short, 32), (long, 128)] {
            for m in [1, 2, 4, 12] {
                all.push(product_of_blocks(work, [m, 512, 512], (bits, block), true)?);
            }
            all.push(product_of_blocks(
                unpack,
                [1, 512, 512],
                (bits, block),
                false,
            )?);
        }
    }
    // Few entries are mostly panels being filled.
    all.push(product(Work::Sparse, [64, 256, 2048], 0.1)?);
    all.push(product(Work::Move, [64, 1024, 64], 0.004)?);
    all.push(product(Work::Sparse, [64, 256, 2048], 0.1)?);
    all.push(product(Work::SparseFew, [16, 256, 2048], 0.1)?);
    all.push(product(Work::SparseColumn, [1, 512, 2048], 0.1)?);
    for m in [16, 32, 64] {
        all.push(product_of_codes(Work::SparseCodes, [m, 512, 2048], 0.1)?);
    }
    all.push(module(
        Work::Copy,
        &[(ElemType::F32, &[1, 1024, 8, 8])],
        |b, x| {
            let w = b.constant(&floats(&[64, 1024, 1, 1], 0.004));
            b.op("conv", &[x[0], w])
        },
    )?);
    all.push(convolution(Work::Window, [64, 28, 3], false)?);
    all.push(convolution(Work::WindowCodes, [64, 28, 3], true)?);
    for (work, op) in [(Work::Exp, "exp"), (Work::Tanh, "tanh"), (Work::Erf, "erf")] {
        all.push(each(work, op)?);
    }
    for (work, name) in [
        (Work::Sigmoid, "Sigmoid"),
        (Work::Swish, "Swish"),
        (Work::Gelu, "Gelu"),
        (Work::GeluTanh, "GeluTanh"),
    ] {
        all.push(activated(work, name)?);
    }
    Ok(all)
}

/// So many small products, each of the result of the one before.
pub fn chain(n: usize) -> Result<Module, OpError> {
    let probe = module(Work::Gemm, &[(ElemType::F32, &[1, 32])], |b, x| {
        let w = b.constant(&floats(&[32, 32], 1.0));
        (0..n).try_fold(x[0], |y, _| b.op("matmul", &[y, w]))
    })?;
    Ok(probe.module)
}
