//! Layers of experts whose weights are not in memory, in programs written by hand; the "compiled" kernel is a function of this test.
#![cfg(target_os = "linux")]

use lapidary_abi::experts::Order;
use lapidary_abi::kernel::KernelContext;
use lapidary_abi::program::*;
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::exec::Memory;
use lapidary_runtime::exec::{Model, ModelOptions};
use lapidary_runtime::image::Image;
use lapidary_runtime::memory::{Code, Mapping, Weights};
use lapidary_runtime::value::{Operand, Tensor, Value};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const EXPERTS: usize = 5;
/// Weights of each expert, and bytes of each weight.
const PLANES: usize = 2;
const BYTES: usize = 4 << 20;

/// `args = [weight, in, out]`: `out[i] = in[i] +` the sum of the first number of every page of the weight.
unsafe extern "C" fn add_pages(_: *const KernelContext, args: *const u64, begin: u64, end: u64) {
    // SAFETY: the program gives a weight of BYTES and two f32 buffers of grid length.
    unsafe {
        let (weight, from, to) = (
            *args as *const f32,
            *args.add(1) as *const f32,
            *args.add(2) as *mut f32,
        );
        let sum: f32 = (0..BYTES / 4096).map(|page| *weight.add(page * 1024)).sum();
        for i in begin as usize..end as usize {
            *to.add(i) = *from.add(i) + sum;
        }
    }
}

fn code() -> Code {
    // SAFETY: one byte of this program's own code; only its address is used.
    Code::Linked(unsafe { std::slice::from_raw_parts(add_pages as *const u8, 1) })
}

/// The number in every page of a weight.
fn number(weight: usize) -> f32 {
    (weight + 1) as f32
}

/// Held by tests that look at what is in this process' memory.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages = text.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    pages.expect("a number") * page
}

/// The weights of all experts in a file, none of them in memory; `None` if the system keeps them there.
fn cold_weights() -> Option<Arc<Mapping>> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("experts.weights");
    let mut file = (File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true))
    .open(&path)
    .expect("a file");
    for weight in 0..EXPERTS * PLANES {
        let page: Vec<u8> = number(weight).to_le_bytes().repeat(1024);
        (0..BYTES / 4096).for_each(|_| file.write_all(&page).expect("written"));
    }
    file.sync_all().expect("written");
    // SAFETY: advice on a file of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let len = EXPERTS * PLANES * BYTES;
    let mapping = Mapping::of_file(&file, 0, len, false).expect("mapped");
    std::fs::remove_file(&path).expect("removed");
    let is_cold = (0..EXPERTS * PLANES).all(|w| !mapping.is_in_memory(w * BYTES, BYTES));
    if !is_cold {
        eprintln!("skipped: this system keeps files in memory");
    }
    is_cold.then(|| Arc::new(mapping))
}

/// For each expert, zeros of as many rows as `counts` says, plus the sums of its two weights, one weight after another.
fn program() -> Program {
    let rows = |e: usize| Size::Sym(e as u32);
    let tensor = |dims: Vec<Size>| ValueType::Tensor {
        elem: ElemType::F32,
        dims: Some(dims),
    };
    let mut p = Program {
        name: "experts".into(),
        symbols: (0..=EXPERTS).map(|e| format!("rows{e}")).collect(),
        weights_bytes: (EXPERTS * PLANES * BYTES) as u64,
        ..Program::default()
    };
    let value = |p: &mut Program, ty: &ValueType, place: Place| {
        let ty = ty.clone();
        p.values.push(ValueDecl { ty, place });
        p.values.len() as u32 - 1
    };
    let counts = ValueType::Tensor {
        elem: ElemType::I64,
        dims: Some(vec![(EXPERTS as i64).into()]),
    };
    let zeros = tensor(vec![Size::Sym(EXPERTS as u32)]);
    for (n, (name, ty)) in [("counts", counts), ("zeros", zeros)]
        .into_iter()
        .enumerate()
    {
        let value = value(&mut p, &ty, Place::Input(n as u32));
        let name = name.into();
        p.inputs.push(Port { name, ty, value });
    }
    for e in 0..EXPERTS {
        p.body.steps.push(Step::BindElement {
            symbol: e as u32,
            value: 0,
            element: e as u32,
        });
    }
    let mut mixture = Mixture::default();
    for e in 0..EXPERTS {
        let begin = p.body.steps.len() as u32;
        p.kernels.push(KernelDecl {
            name: format!("expert{e}"),
            code_offset: 0,
            scratch_bytes: 0,
        });
        let ty = tensor(vec![rows(e)]);
        let mut from = 1;
        for plane in 0..PLANES {
            let weight = tensor(vec![(BYTES as i64 / 4).into()]);
            let place = Place::Weights {
                offset: ((e * PLANES + plane) * BYTES) as u64,
                bytes: BYTES as u64,
            };
            let weight = value(&mut p, &weight, place);
            let to = value(&mut p, &ty, Place::Heap);
            p.body.steps.push(Step::Launch {
                kernel: e as u32,
                grid: rows(e),
                grain: 1,
                args: [weight, from, to].map(Arg::Buffer).to_vec(),
                flops: 0.into(),
            });
            from = to;
        }
        mixture.experts.push(Expert {
            begin,
            end: p.body.steps.len() as u32,
            tokens: rows(e),
        });
        let (name, ty) = (format!("y{e}"), ty.clone());
        p.outputs.push(Port {
            name,
            ty,
            value: from,
        });
    }
    p.mixtures.push(mixture);
    p
}

fn load(
    program: Program,
    weights: Weights,
    options: ModelOptions,
) -> Result<Model, lapidary_runtime::RunError> {
    let program = Program::from_bytes(&program.to_bytes()).expect("what was encoded decodes");
    let image = Image {
        program,
        code: code(),
        weights,
        checksum: 0,
    };
    image.load(ModelOptions {
        threads: 1,
        pin: false,
        ..options
    })
}

/// The experts in the order in which they were computed; checks what they gave, and that no more than this was ever in memory.
fn run(model: &Model, counts: [i64; EXPERTS], limit: u64) -> Vec<usize> {
    let counts_value: Value = Tensor::from_i64(vec![EXPERTS], &counts)
        .expect("fits")
        .into();
    let most = counts.into_iter().max().unwrap_or(0) as usize;
    let zeros: Value = Tensor::from_f32(vec![most], &vec![0.0; most])
        .expect("fits")
        .into();
    let mut launched = vec![];
    let mut note = |t: lapidary_runtime::KernelTiming| {
        let resident = resident();
        assert!(resident <= limit, "{resident} bytes in memory of {limit}");
        launched.push(t.name.strip_prefix("expert").and_then(|e| e.parse().ok()));
    };
    let inputs: [Operand; 2] = [counts_value.operand(), zeros.operand()];
    let outputs = model
        .run_with(&inputs, &mut [], Some(&mut note))
        .expect("runs");
    for (e, output) in outputs.iter().enumerate() {
        let tensor = output
            .value
            .as_ref()
            .and_then(|v| v.as_tensor())
            .expect("a tensor");
        let sum = (0..PLANES).map(|p| number(e * PLANES + p)).sum::<f32>() * (BYTES / 4096) as f32;
        let want: Vec<u8> = sum.to_le_bytes().repeat(counts[e] as usize);
        assert_eq!(tensor.bytes(), want, "expert {e}");
    }
    let mut order: Vec<usize> = launched.into_iter().flatten().collect();
    order.dedup();
    order
}

const COUNTS: [i64; EXPERTS] = [1, 1, 0, 7, 3];

/// Orders of reading, and the orders of computing that follow where nothing is in memory. Nobody chose expert 2: it has nothing to wait
/// for.
const CASES: [(Option<Order>, [usize; EXPERTS]); 3] = [
    (Some(Order::Hebf), [2, 3, 4, 0, 1]),
    (Some(Order::Fifo), [2, 0, 1, 3, 4]),
    (None, [0, 1, 2, 3, 4]),
];

#[test]
fn experts_are_computed_in_the_order_in_which_they_are_read() {
    let _alone = alone();
    for (expert_order, want) in CASES {
        let Some(mapping) = cold_weights() else {
            return;
        };
        let options = ModelOptions {
            expert_order,
            ..ModelOptions::default()
        };
        let weights = Weights::Mapped(Arc::clone(&mapping));
        let model = load(program(), weights, options).expect("loads");
        assert_eq!(run(&model, COUNTS, u64::MAX), want, "{expert_order:?}");
        let is_in_memory = |w: usize| mapping.is_in_memory(w * BYTES, BYTES);
        let read = (0..EXPERTS * PLANES).filter(|w| COUNTS[w / PLANES] > 0);
        assert!(read.into_iter().all(is_in_memory));
        // What is in memory is computed in the order of the program.
        assert_eq!(run(&model, COUNTS, u64::MAX), [0, 1, 2, 3, 4]);
    }
}

#[test]
fn what_is_read_ahead_keeps_the_limit() {
    let _alone = alone();
    // Besides what this process has already, and what is left free: room for no expert, for one and a half, and for two.
    for room in [
        3 * BYTES / 2,
        (16 << 20) + 3 * BYTES,
        (16 << 20) + 9 * BYTES / 2,
    ] {
        for (expert_order, want) in CASES {
            let Some(mapping) = cold_weights() else {
                return;
            };
            let limit = (resident() + room as u64).max(20 << 20);
            let options = ModelOptions {
                expert_order,
                memory: Some(Memory::Bytes(limit)),
                ..ModelOptions::default()
            };
            let model = load(program(), Weights::Mapped(mapping), options).expect("loads");
            assert_eq!(run(&model, COUNTS, limit), want, "{expert_order:?}");
            // Then some are in memory, which ones is the system's affair.
            for counts in [[9, 0, 2, 2, 2], [0; EXPERTS], [1; EXPERTS]] {
                let mut order = run(&model, counts, limit);
                order.sort_unstable();
                assert_eq!(order, [0, 1, 2, 3, 4]);
            }
        }
    }
}

#[test]
fn groups_of_steps_that_do_not_exist_are_refused() {
    let steps = program().body.steps.len() as u32;
    for (expert, begin, end) in [
        (0, 1, steps + 1),
        (1, 0, 2),
        (4, steps, steps - 1),
        (2, 1, 2),
    ] {
        let mut program = program();
        let expert = &mut program.mixtures[0].experts[expert];
        (expert.begin, expert.end) = (begin, end);
        program.weights_bytes = 0;
        program.values.iter_mut().for_each(|v| {
            if let Place::Weights { offset, bytes } = &mut v.place {
                (*offset, *bytes) = (0, 0);
                v.ty = ValueType::Tensor {
                    elem: ElemType::F32,
                    dims: Some(vec![0.into()]),
                };
            }
        });
        let refused = load(program, Weights::Linked(&[]), ModelOptions::default());
        let why = refused.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            why.contains("the steps of an expert are out of range"),
            "{begin}..{end}: {why}"
        );
    }
}
