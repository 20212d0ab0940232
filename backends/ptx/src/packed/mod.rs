//! Entries that are written for a shape, not statement by statement: products with weights that stay packed, and products on
//! tensor cores. Weights, their layout, and the canonical kernels that these stand for: [`lapidary_ir::kernel::packed`].

mod frame;
mod gemv;
pub mod halves;
mod marlin;

pub use gemv::gemv;
pub use marlin::marlin;

use crate::Entry;
use lapidary_ir::kernel::Kernel;
use lapidary_ir::kernel::packed::{Batch, Gemv, Halves};

/// The entry of a kernel that one is written for; `None` for any other.
pub(crate) fn entry(kernel: &Kernel) -> Option<Entry> {
    let gemv = || Gemv::of(kernel).map(|g| gemv(&g));
    let marlin = || Batch::of(kernel).map(|b| marlin(&b));
    let halves = || Halves::of(kernel).map(|h| halves::halves(&h));
    gemv().or_else(marlin).or_else(halves)
}
