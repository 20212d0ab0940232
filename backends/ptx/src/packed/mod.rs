//! Entries that are written for a shape, not statement by statement: products with weights that stay packed, and products on
//! tensor cores, sparse ones too. Weights, their layout, and the canonical kernels that these stand for: [`lapidary_ir::kernel::packed`].

mod batch;
mod frame;
mod gemv;
pub mod halves;
mod marlin;
mod two_of_four;

pub use gemv::gemv;
pub use marlin::marlin;
pub use two_of_four::two_of_four;

use crate::Entry;
use lapidary_ir::kernel::Kernel;
use lapidary_ir::kernel::packed::{Batch, Gemv, Halves, TwoOfFour};

/// The entry of a kernel that one is written for; `None` for any other.
pub(crate) fn entry(kernel: &Kernel) -> Option<Entry> {
    let gemv = || Gemv::of(kernel).map(|g| gemv(&g));
    let marlin = || Batch::of(kernel).map(|b| marlin(&b));
    let halves = || Halves::of(kernel).map(|h| halves::halves(&h));
    let sparse = || TwoOfFour::of(kernel).map(|s| two_of_four(&s));
    gemv().or_else(marlin).or_else(sparse).or_else(halves)
}
