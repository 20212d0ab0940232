//! Kernel IR to machine code by Cranelift.
//!
//! [`compile`] makes one position-independent blob without relocations from all kernels of a model; each
//! kernel is one function with the convention of [`lapidary_abi::kernel::KernelFn`]. [`object`]
//! makes linkable objects: with a plain C entry from a program of launches alone, or as data of a library.
//!
//! How a kernel is translated, from outside in: `function` is the frame (arguments, the loop over blocks,
//! statements, control flow); `tile` says how a tile lies in Cranelift values; `elementwise` and `shape`
//! translate operations; `memory` loads and stores; `gemm` calls micro-kernels for the contractions that
//! [`lapidary_ir::kernel::contraction`] recognises. Elementary functions and small float formats do not
//! appear here: [`lapidary_ir::kernel::legalize`] has expanded them.
//!
//! What is absent: graph ops, encodings, the host program, executable memory.

mod elementwise;
mod function;
mod gemm;
mod isa;
mod memory;
pub mod object;
mod panels;
mod shape;
mod tile;

use lapidary_ir::backend::{Code, Error, assemble};
use lapidary_ir::kernel::Kernel;
use lapidary_ir::target::Target;

/// Translates kernels to one blob of machine code.
pub fn compile(kernels: &[Kernel], target: &Target) -> Result<Code, Error> {
    let isas = isa::isas(target)?;
    assemble(kernels, |kernel| function::compile(kernel, target, &isas))
}

/// The machine code of each kernel as text, for people: what [`compile`] makes, instruction by instruction.
pub fn listing(kernels: &[Kernel], target: &Target) -> Result<Vec<String>, Error> {
    let isas = isa::isas(target)?;
    kernels
        .iter()
        .map(|k| function::listing(k, target, &isas))
        .collect()
}

#[cfg(test)]
mod tests {
    use lapidary_ir::target::Target;
    use lapidary_suite::Backend;

    /// Targets that this machine can run code for.
    fn native_targets() -> Vec<Target> {
        let host = Target::host();
        let plain = Target {
            micro_kernels: false,
            ..host.clone().with_features(vec![])
        };
        vec![host, plain]
    }

    static BACKEND: Backend = Backend {
        compile: super::compile,
        targets: native_targets,
        run: lapidary_suite::run_native,
    };

    lapidary_suite::suite!(BACKEND);
}
