//! Kernel IR to HLS C++: text that a high-level synthesis compiler makes circuits of, and that any C++17 compiler runs.
//!
//! [`function`] prints one kernel as one C++ function. A tile is an array in registers (`ARRAY_PARTITION`), an operation on it
//! a loop that is unrolled; a loop of the kernel is a loop, pipelined where nothing loops inside it; `valid` and `mask` guard
//! each access; scratch is a local array, which becomes block memory. Grid axes are the outermost loops. Operations on
//! elements that follow one another become one loop, and what only that loop reads are scalars in it, so the text
//! reads like what a person would write.
//!
//! How a kernel is translated, from outside in: `kernel` is the frame (arguments, statements, control flow); `group`
//! says which statements share a loop; `element` writes one element of a value as an expression; `types` names types.
//!
//! [`HEADERS`] are what the text includes: `lapidary.h`, the arithmetic of the kernel IR where that of C++ differs (it
//! wraps, does not trap, saturates); `ap_int.h` and `hls_stream.h` stand in for the vendor's headers where those are not.
//!
//! What is absent: graph ops, encodings, the host program, files, vendor tools. Elementary functions are the shared polynomials.

mod element;
mod group;
mod kernel;
mod types;

pub use types::storage;

use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Kernel, legalize};

/// What the text of kernels includes: names and contents.
pub const HEADERS: &[(&str, &str)] = &[
    ("lapidary.h", include_str!("../include/lapidary.h")),
    ("ap_int.h", include_str!("../include/ap_int.h")),
];

/// A kernel as a C++ function of this name: `static void NAME(const float *x_0, …, int64_t n_3)`, arguments as the kernel's
/// parameters. It runs the whole grid.
///
/// # Errors
/// The kernel uses what is not translated.
///
/// ```
/// use lapidary_ir::ElemType;
/// use lapidary_ir::kernel::{Axis, Extent, build::KernelBuilder};
/// let mut b = KernelBuilder::new("copy");
/// let (x, y) = (b.buffer("x", ElemType::F32, false), b.buffer("y", ElemType::F32, true));
/// let i = b.grid(Extent::Const(8));
/// let v = b.load(x, i, &[], vec![]);
/// b.store(y, i, vec![], v);
/// let text = lapidary_hls::function(&b.finish(), "copy")?;
/// assert!(text.contains("static void copy(const float *x_0, float *y_1)"));
/// # Ok::<(), lapidary_ir::backend::Error>(())
/// ```
pub fn function(kernel: &Kernel, name: &str) -> Result<String, Error> {
    kernel::write(&legalize::legalize(kernel.clone()), name)
}
