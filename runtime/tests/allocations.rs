//! Launches do not allocate: a run of a hundred times as many takes as many allocations.

use lapidary_abi::kernel::KernelContext;
use lapidary_abi::program::*;
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::exec::{Model, ModelOptions};
use lapidary_runtime::image::Image;
use lapidary_runtime::memory::{Code, Weights};
use lapidary_runtime::value::{Tensor, Value};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// `args = [in, out]`.
unsafe extern "C" fn kernel(_: *const KernelContext, args: *const u64, begin: u64, end: u64) {
    for i in begin as usize..end as usize {
        // SAFETY: the program gives two f32 buffers of grid length.
        unsafe { *(*args.add(1) as *mut f32).add(i) = *(*args as *const f32).add(i) + 1.0 };
    }
}

/// A chain of launches over heap values of a size known only at run time, each freed after its use.
fn chain(launches: u32) -> Model {
    let n = Size::Sym(0);
    let ty = ValueType::Tensor {
        elem: ElemType::F32,
        dims: Some(vec![n.clone()]),
    };
    let place = |v| if v == 0 { Place::Input(0) } else { Place::Heap };
    let mut steps = Vec::new();
    for i in 0..launches {
        steps.push(Step::Launch {
            kernel: 0,
            grid: n.clone(),
            grain: 1,
            args: vec![Arg::Buffer(i), Arg::Buffer(i + 1)],
            flops: n.clone(),
        });
        if i > 0 {
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
        outputs: vec![port("y", launches)],
        values: (0..=launches)
            .map(|v| ValueDecl {
                ty: ty.clone(),
                place: place(v),
            })
            .collect(),
        kernels: vec![KernelDecl {
            name: "add".into(),
            code_offset: 0,
            scratch_bytes: 0,
        }],
        body: Block {
            steps,
            ..Block::default()
        },
        ..Program::default()
    };
    // SAFETY: one byte of this program's own code; only its address is used.
    let code = Code::Linked(unsafe { std::slice::from_raw_parts(kernel as *const u8, 1) });
    let image = Image {
        program,
        code,
        weights: Weights::Linked(&[]),
        checksum: 0,
    };
    image
        .load(ModelOptions {
            threads: 1,
            ..ModelOptions::default()
        })
        .expect("loads")
}

#[test]
fn launches_do_not_allocate() {
    let x: Value = Tensor::from_f32(vec![3], &[0.0; 3]).expect("fits").into();
    let allocations = [10, 1000].map(|launches| {
        let model = chain(launches);
        // The first run makes the working memory.
        for _ in 0..2 {
            model.run(std::slice::from_ref(&x)).expect("runs");
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        model.run(std::slice::from_ref(&x)).expect("runs");
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    assert_eq!(allocations[0], allocations[1]);
}
