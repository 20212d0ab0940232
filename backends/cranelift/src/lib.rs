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
mod shape;
mod tile;

#[cfg(test)]
mod tests;

use lapidary_ir::kernel::Kernel;
use lapidary_ir::target::Target;

/// Machine code of all kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Position-independent code; must be placed 64-byte aligned.
    pub bytes: Vec<u8>,
    /// Offset of each kernel's entry in `bytes`.
    pub entries: Vec<u64>,
}

/// Why code could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The target description names no machine that code can be generated for.
    #[error("no code can be generated for `{triple}`: {message}")]
    Target {
        /// The triple.
        triple: String,
        /// What is wrong.
        message: String,
    },
    /// The kernel uses what this backend does not translate.
    #[error("kernel `{kernel}` cannot be translated: {what}")]
    Unsupported {
        /// Its name.
        kernel: String,
        /// What it uses.
        what: String,
    },
    /// Cranelift refused the function.
    #[error("code generation of kernel `{kernel}` failed: {message}")]
    Codegen {
        /// Its name.
        kernel: String,
        /// Cranelift's message.
        message: String,
    },
    /// The object file could not be made.
    #[error("cannot make an object: {0}")]
    Object(String),
}

/// Alignment of each function in the blob.
const ALIGN: usize = 64;

/// Translates kernels to one blob of machine code.
pub fn compile(kernels: &[Kernel], target: &Target) -> Result<Code, Error> {
    let isas = isa::isas(target)?;
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(4);
    let functions = if kernels.len() < 8 || threads == 1 {
        kernels
            .iter()
            .map(|k| function::compile(k, target, &isas))
            .collect::<Result<Vec<_>, _>>()?
    } else {
        in_parallel(kernels, target, &isas, threads)?
    };
    let mut code = Code {
        bytes: vec![],
        entries: vec![],
    };
    for function in functions {
        code.bytes
            .resize(code.bytes.len().next_multiple_of(ALIGN), 0);
        code.entries.push(code.bytes.len() as u64);
        code.bytes.extend(function);
    }
    Ok(code)
}

/// The machine code of each kernel as text, for people: what [`compile`] makes, instruction by instruction.
pub fn listing(kernels: &[Kernel], target: &Target) -> Result<Vec<String>, Error> {
    let isas = isa::isas(target)?;
    kernels
        .iter()
        .map(|k| function::listing(k, target, &isas))
        .collect()
}

/// Every thread takes the next kernel; the result keeps the order.
fn in_parallel(
    kernels: &[Kernel],
    target: &Target,
    isas: &isa::Isas,
    threads: usize,
) -> Result<Vec<Vec<u8>>, Error> {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<Vec<u8>, Error>>>> =
        kernels.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = kernels.get(i) else { break };
                    let result = function::compile(kernel, target, isas);
                    if let Ok(mut slot) = done[i].lock() {
                        *slot = Some(result);
                    }
                }
            });
        }
    });
    done.into_iter()
        .map(|slot| {
            slot.into_inner()
                .ok()
                .flatten()
                .unwrap_or_else(|| Err(Error::Object("a compiling thread stopped".to_owned())))
        })
        .collect()
}
