//! Kernel IR to HLS C++: text that a high-level synthesis compiler makes circuits of, and that any C++17 compiler runs.
//!
//! [`function`] prints one kernel as one C++ function. A tile is an array in registers (`ARRAY_PARTITION`), an operation on it
//! a loop that is unrolled; a loop of the kernel is a loop, pipelined where nothing loops inside it; `valid` and `mask` guard
//! each access; scratch is a local array, which becomes block memory. Grid axes are the outermost loops. Operations on
//! elements that follow one another become one loop, and what only that loop reads are scalars in it, so the text
//! reads like what a person would write.
//!
//! How a kernel is translated, from outside in: `kernel` is the frame (arguments, statements, control flow); `group`
//! says which statements share a loop; `sums` writes products and reductions, `element` one element of a
//! value as an expression, `memory` where it is; `known` keeps what is known and counted; `types` names types.
//!
//! [`HEADERS`] are what the text includes: `lapidary.h`, the arithmetic of the kernel IR where that of C++ differs (it
//! wraps, does not trap, saturates); `ap_int.h` stands in for the vendor's header where that is not.
//!
//! From kernels to a project: `cost` predicts what a launch takes, [`fit`] chooses how much is computed at once, `top` makes one
//! function of a host program ([`channels`]: how much room there must be between its tasks), [`project`] the files around it, for the devices of [`parts`].
//!
//! What is absent: graph ops, encodings, writing files, vendor tools. Elementary functions are the shared polynomials.

pub mod channels;
mod cost;
mod element;
pub mod fit;
mod folding;
mod group;
mod kernel;
mod known;
mod memory;
mod overlap;
pub mod parts;
pub mod project;
mod sums;
mod top;
mod types;
mod unit;

pub use cost::{Cost, cost};
pub use folding::Folding;
pub use top::{Array, Design, Layer, Source};
pub use types::storage;
pub use unit::Unit;

use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Kernel, legalize};

/// What the text of kernels includes: names and contents.
pub const HEADERS: &[(&str, &str)] = &[
    ("lapidary.h", include_str!("../include/lapidary.h")),
    ("ap_int.h", include_str!("../include/ap_int.h")),
];

/// A kernel as a C++ function of this name: `static void NAME(const float *x_0, …, int64_t n_3)`, arguments as the kernel's
/// parameters. It runs the whole grid. Of a product so many columns are computed at once as the folding says. `lengths` has the
/// number of elements of each buffer by its parameter's position, where it is known: the buffer is an array then.
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
/// let text = lapidary_hls::function(&b.finish(), "copy", lapidary_hls::Folding::default(), &[Some(8)])?;
/// assert!(text.contains("static void copy(const float x_0[8], float *y_1)"));
/// # Ok::<(), lapidary_ir::backend::Error>(())
/// ```
pub fn function(
    kernel: &Kernel,
    name: &str,
    folding: Folding,
    lengths: &[Option<u64>],
) -> Result<String, Error> {
    kernel::write(&legalize::legalize(kernel.clone()), name, folding, lengths)
}
