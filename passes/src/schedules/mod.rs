//! Kernels for the hot dense forms: written by hand in kernel IR, parameterised by shapes.
//!
//! Each file is one form and knows nothing of graphs: it takes extents and says what parameters its kernel has. Which
//! op uses which schedule, and how operands are laid out and packed for it, is decided in `lower/`.

pub use lapidary_ir::kernel::activation;
pub mod attention;
pub mod blocks;
pub mod cache;
pub mod codes;
pub mod conv;
pub mod depthwise;
pub mod epilogue;
pub mod gemm;
pub mod pack;
pub mod softmax;
pub mod sparse;
#[cfg(test)]
mod testing;

use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::{Binary, Extent, Var};

/// An extent: known when the kernel is written, or a size parameter of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Num {
    /// Known.
    Const(i64),
    /// Given at launch; the position in the kernel's parameters is decided when it is added.
    Sym,
}

/// An extent inside a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// Its value.
    pub var: Var,
    num: Num,
    param: u32,
}

impl Num {
    /// The number, if known.
    pub fn known(self) -> Option<i64> {
        match self {
            Num::Const(c) => Some(c),
            Num::Sym => None,
        }
    }

    /// Adds the size parameter if it needs one. All buffers come first.
    pub(crate) fn bind(self, b: &mut KernelBuilder, name: &str) -> Bound {
        match self {
            Num::Const(c) => Bound {
                var: b.index(c),
                num: self,
                param: 0,
            },
            Num::Sym => {
                let param = b.size_param(name);
                Bound {
                    var: b.size(param),
                    num: self,
                    param,
                }
            }
        }
    }
}

impl Bound {
    /// Grid extent that covers it by tiles of `tile`.
    pub fn tiles(self, tile: u32) -> Extent {
        match self.num {
            Num::Const(c) => Extent::Const((c.max(0) as u64).div_ceil(u64::from(tile))),
            Num::Sym => Extent::Param {
                param: self.param,
                divisor: tile,
            },
        }
    }
}

/// Rows of a tile that cut `extent` most evenly into tiles of at most `most` rows.
pub fn even_rows(extent: Num, most: u32) -> u32 {
    match extent {
        Num::Const(c) if c > 0 => {
            let c = c as u64;
            c.div_ceil(c.div_ceil(u64::from(most))) as u32
        }
        _ => most,
    }
}

pub(crate) fn mul(b: &mut KernelBuilder, x: Var, y: Var) -> Var {
    b.binary(Binary::Mul, x, y)
}

pub(crate) fn add(b: &mut KernelBuilder, x: Var, y: Var) -> Var {
    b.binary(Binary::Add, x, y)
}

pub(crate) fn mul_const(b: &mut KernelBuilder, x: Var, y: i64) -> Var {
    let y = b.index(y);
    b.binary(Binary::Mul, x, y)
}

pub(crate) fn add_const(b: &mut KernelBuilder, x: Var, y: i64) -> Var {
    let y = b.index(y);
    b.binary(Binary::Add, x, y)
}
