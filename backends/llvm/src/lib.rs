//! Kernel IR to machine code by LLVM.
//!
//! `compile` gives what the Cranelift backend gives: one position-independent blob without relocations, each kernel a
//! function with the convention of [`lapidary_abi::kernel::KernelFn`]. Vectors are as wide as the target says, and
//! its dot product instructions are used.
//!
//! How a kernel is translated, from outside in: `function` is the frame (arguments, the loop over blocks,
//! statements, control flow); `tile` says how a tile lies in LLVM's vectors; `elementwise` and `shape` translate
//! operations; `memory` loads and stores; `dense` multiplies; `calls` calls micro-kernels. They write text
//! (`writer`), which needs no LLVM; `machine` hands it to LLVM's code generator and links the result, and is there with
//! the feature `llvm` alone, so that the workspace builds and its tests run where LLVM is not installed.
//!
//! Micro-kernels are called, where the target has them, for
//! * windows over each channel: the generated loop took 1.15 times as long (MobileNetV2, 512-bit vectors);
//! * every contraction when the x86-64 target's vectors are narrower than 512 bits, for the runtime chooses its micro-kernels by
//!   the machine that the program starts on, which may be wider than what the code was made for;
//! * 8-bit products, which have not been measured yet, and those with sparse weights.
//!
//! `f32` products in 512-bit vectors, and on other machines, are generated: the accumulators stay in registers until
//! the epilogue, whatever it is, has used them. That took 0.86 to 0.92 of the time of calls (SqueezeNet, BERT, ResNet-50).
//!
//! What is absent: graph ops, encodings, the host program, executable memory, LLVM's middle passes.

mod calls;
mod dense;
mod elementwise;
mod function;
#[cfg(feature = "llvm")]
mod machine;
mod memory;
mod shape;
mod tile;
mod writer;

use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Kernel, legalize};
use lapidary_ir::target::Target;

/// A kernel as LLVM's textual IR.
pub fn text(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    function::write(&legalize::legalize(kernel.clone()), target)
}

/// Translates kernels to one blob of machine code.
#[cfg(feature = "llvm")]
pub fn compile(kernels: &[Kernel], target: &Target) -> Result<lapidary_ir::backend::Code, Error> {
    lapidary_ir::backend::assemble(kernels, |kernel| {
        machine::compile(&kernel.name, &text(kernel, target)?, target)
    })
}

/// The machine code of each kernel as text, for people.
#[cfg(feature = "llvm")]
pub fn listing(kernels: &[Kernel], target: &Target) -> Result<Vec<String>, Error> {
    let one = |kernel: &Kernel| machine::listing(&kernel.name, &text(kernel, target)?, target);
    kernels.iter().map(one).collect()
}

#[cfg(all(test, feature = "llvm"))]
mod tests {
    use lapidary_ir::target::Target;
    use lapidary_suite::Backend;

    /// Every level that this machine has, with and without micro-kernels.
    fn native_targets() -> Vec<Target> {
        let host = Target::host();
        let level = |cpu: &str| Target::named(Some(&host.triple), Some(cpu)).ok();
        let cpus = ["x86-64-v2", "x86-64-v3", "x86-64-v4", "generic", "native"];
        let mut targets: Vec<Target> = vec![];
        for target in cpus.into_iter().filter_map(level) {
            let runs = target.features.iter().all(|f| host.features.contains(f));
            if runs && !targets.iter().any(|t| t.features == target.features) {
                targets.push(target);
            }
        }
        targets
            .into_iter()
            .map(Target::widest)
            .flat_map(|t| {
                [true, false].map(|micro_kernels| Target {
                    micro_kernels,
                    ..t.clone()
                })
            })
            .collect()
    }

    static BACKEND: Backend = Backend {
        compile: super::compile,
        targets: native_targets,
        run: lapidary_suite::run_native,
    };

    lapidary_suite::suite!(BACKEND);
}
