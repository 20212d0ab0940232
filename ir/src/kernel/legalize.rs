//! Expands what no backend should have to know.
//!
//! Elementary functions become polynomials ([`super::math`]), conversions of small floats become integer
//! arithmetic ([`super::convert`]), both as ordinary kernel IR, so that they are defined once for
//! every backend. What stays: arithmetic, comparisons, square roots, roundings, conversions between `f32`,
//! `f64` and integers.

use super::build::KernelBuilder;
use super::*;

/// The same kernel without elementary functions, small floats' conversions, and float or integer powers and
/// remainders.
pub fn legalize(kernel: Kernel) -> Kernel {
    legalize_but(kernel, &|_, _| false)
}

/// The same, but what `keeps` says of a function and its operand's type the backend computes by itself.
pub fn legalize_but(kernel: Kernel, keeps: &dyn Fn(Unary, &TileType) -> bool) -> Kernel {
    if !contains(&kernel, &kernel.body) {
        return kernel;
    }
    KernelBuilder::rewrite(kernel, &mut |b, op, ty| match op {
        Op::Unary(f, _) if keeps(*f, ty) => None,
        _ => expand(b, op, ty),
    })
}

fn contains(kernel: &Kernel, body: &[Stmt]) -> bool {
    body.iter().any(|s| {
        let small = |v: &Var| is_small(kernel.ty(*v).elem);
        let here = match &s.op {
            Op::Unary(f, _) => super::math::is_elementary(*f),
            Op::Binary(f, ..) => {
                matches!(f, Binary::Pow | Binary::Atan2 | Binary::Mod | Binary::Rem)
            }
            Op::Cast(x) => small(x) || s.results.iter().any(small),
            _ => false,
        };
        here || s.op.bodies().any(|inner| contains(kernel, inner))
    })
}

/// True for floats that are only loaded, stored and converted.
pub(super) fn is_small(elem: TileElem) -> bool {
    matches!(elem, TileElem::Elem(e) if e.is_float() && !matches!(e, ElemType::F32 | ElemType::F64))
}

/// Writes what replaces an operation with one result; `None` keeps it.
fn expand(b: &mut KernelBuilder, op: &Op, ty: &TileType) -> Option<Var> {
    match *op {
        Op::Unary(f, x) if super::math::is_elementary(f) => super::math::unary(b, f, x),
        Op::Binary(f @ (Binary::Pow | Binary::Atan2 | Binary::Mod | Binary::Rem), x, y) => {
            super::math::binary(b, f, x, y)
        }
        Op::Cast(x) if is_small(b.ty(x).elem) || is_small(ty.elem) => {
            super::convert::cast(b, x, ty.elem)
        }
        _ => None,
    }
}
