//! What every backend gives for a list of kernels, whatever it generates code with.

use crate::kernel::Kernel;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machine code of all kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Position-independent code; must be placed [`ALIGN`]-byte aligned.
    pub bytes: Vec<u8>,
    /// Offset of each kernel's entry in `bytes`.
    pub entries: Vec<u64>,
}

/// Machine code of one kernel, with the constants it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Position-independent; must be placed [`ALIGN`]-byte aligned.
    pub bytes: Vec<u8>,
    /// Offset of the entry.
    pub entry: u64,
}

/// Alignment of the code, and of each kernel's part in it.
pub const ALIGN: usize = 64;

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
    /// The code generator refused the function.
    #[error("code generation of kernel `{kernel}` failed: {message}")]
    Codegen {
        /// Its name.
        kernel: String,
        /// The generator's message.
        message: String,
    },
    /// The object file could not be made.
    #[error("cannot make an object: {0}")]
    Object(String),
}

/// Translates each kernel by `one`, on several threads where there are many, and lays the functions out in order:
/// the result does not depend on the number of threads.
pub fn assemble(
    kernels: &[Kernel],
    one: impl Fn(&Kernel) -> Result<Function, Error> + Sync,
) -> Result<Code, Error> {
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(4);
    let functions = if kernels.len() < 8 || threads == 1 {
        kernels.iter().map(one).collect::<Result<Vec<_>, _>>()?
    } else {
        in_parallel(kernels, &one, threads)?
    };
    let mut code = Code {
        bytes: vec![],
        entries: vec![],
    };
    for function in functions {
        code.bytes
            .resize(code.bytes.len().next_multiple_of(ALIGN), 0);
        code.entries.push(code.bytes.len() as u64 + function.entry);
        code.bytes.extend(function.bytes);
    }
    Ok(code)
}

/// Every thread takes the next kernel; the result keeps the order.
fn in_parallel(
    kernels: &[Kernel],
    one: &(impl Fn(&Kernel) -> Result<Function, Error> + Sync),
    threads: usize,
) -> Result<Vec<Function>, Error> {
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<Function, Error>>>> =
        kernels.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = kernels.get(i) else { break };
                    let result = one(kernel);
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
