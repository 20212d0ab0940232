//! What the executor adds to each launch: chains of kernels that do next to nothing.
//!
//! `cargo run --release -p lapidary-runtime --example launch_bench`

use lapidary_abi::kernel::KernelContext;
use lapidary_abi::program::{
    Arg, Block, KernelDecl, Place, Port, Program, Step, ValueDecl, ValueType,
};
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::image::Image;
use lapidary_runtime::memory::{Code, Weights};
use lapidary_runtime::value::{Tensor, Value};
use lapidary_runtime::{Model, ModelOptions, RunError};
use std::time::Instant;

const LAUNCHES: u32 = 4000;

/// `args = [in, out, n]`.
unsafe extern "C" fn kernel(_: *const KernelContext, args: *const u64, begin: u64, end: u64) {
    for i in begin as usize..end as usize {
        // SAFETY: the program gives two f32 buffers of grid length.
        unsafe { *(*args.add(1) as *mut f32).add(i) = *(*args as *const f32).add(i) + 1.0 };
    }
}

/// A chain of launches; with `symbolic`, lengths are known only at run time and values live on the heap.
fn chain(symbolic: bool, threads: usize) -> Result<Model, RunError> {
    let n = if symbolic {
        Size::Sym(0)
    } else {
        Size::Const(4)
    };
    let ty = ValueType::Tensor {
        elem: ElemType::F32,
        dims: Some(vec![n.clone()]),
    };
    let mut values = vec![ValueDecl {
        ty: ty.clone(),
        place: Place::Input(0),
    }];
    let mut steps = Vec::new();
    for i in 0..LAUNCHES {
        values.push(ValueDecl {
            ty: ty.clone(),
            place: match symbolic {
                true => Place::Heap,
                false => Place::Arena {
                    offset: u64::from(i % 2) * 64,
                },
            },
        });
        steps.push(Step::Launch {
            kernel: 0,
            grid: n.clone(),
            grain: 16,
            args: vec![Arg::Buffer(i), Arg::Buffer(i + 1), Arg::Size(n.clone())],
            flops: n.clone(),
        });
        if symbolic && i > 0 {
            steps.push(Step::Free { value: i });
        }
    }
    let port = |name: &str, value| Port {
        name: name.into(),
        ty: ty.clone(),
        value,
    };
    let program = Program {
        symbols: vec!["n".into()],
        inputs: vec![port("x", 0)],
        outputs: vec![port("y", LAUNCHES)],
        values,
        kernels: vec![KernelDecl {
            name: "add".into(),
            code_offset: 0,
            scratch_bytes: 0,
        }],
        body: Block {
            steps,
            ..Block::default()
        },
        arena_bytes: 128,
        ..Program::default()
    };
    // SAFETY: one byte of this program's own code; only its address is used.
    let code = Code::Linked(unsafe { std::slice::from_raw_parts(kernel as *const u8, 1) });
    Image {
        program,
        code,
        weights: Weights::Linked(&[]),
        checksum: 0,
    }
    .load(ModelOptions {
        threads,
        ..ModelOptions::default()
    })
}

fn main() -> Result<(), RunError> {
    let x: Value = Tensor::from_f32(vec![4], &[0.0; 4])?.into();
    for (name, symbolic) in [
        ("constant sizes, arena", false),
        ("symbolic sizes, heap", true),
    ] {
        for threads in [1, 2] {
            let model = chain(symbolic, threads)?;
            let mut best = f64::INFINITY;
            for _ in 0..200 {
                let start = Instant::now();
                model.run(std::slice::from_ref(&x))?;
                best = best.min(start.elapsed().as_secs_f64());
            }
            let each = best * 1e9 / f64::from(LAUNCHES);
            println!("{name}, {threads} threads: {each:.1} ns for a launch");
        }
    }
    Ok(())
}
