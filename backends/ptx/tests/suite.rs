//! Every kernel of the suite runs in the PTX interpreter and gives what the kernel interpreter gives.

use lapidary_ir::kernel::{Kernel, Param, interp};
use lapidary_ir::target::{Feature, Target};
use lapidary_ptx_interp::{Launch, Module, Segment};
use lapidary_suite::Backend;

/// The oldest and the newest.
fn targets() -> Vec<Target> {
    vec![
        Target::nvptx64(Feature::Sm80),
        Target::nvptx64(Feature::Sm100),
    ]
}

/// Runs a kernel's text, in two launches: blocks count from any number on.
fn run(
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

static BACKEND: Backend = Backend {
    compile: lapidary_ptx::compile,
    targets,
    run,
};

lapidary_suite::suite!(kernels BACKEND);
