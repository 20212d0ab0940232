//! Conversions.

use super::Element;
use super::Rule;
use super::expr::E;
use super::index::Pos;
use lapidary_ir::ElemType;
use lapidary_ir::kernel::Binary;
use lapidary_ir::ops::OpError;

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::pointwise("cast", cast),
    Rule::pointwise("cast_like", cast),
    Rule::pointwise("bit_cast", |x, p| {
        let (from, to) = (x.elem(0)?, x.out_elem()?);
        let plain = |e: ElemType| super::expr::compute_type(e) == e;
        if !plain(from) || !plain(to) {
            return Err(OpError::new(format!(
                "kernels do not reinterpret {from} as {to}"
            )));
        }
        let a = x.at(0, p)?;
        Ok(x.b().bitcast(to, a))
    }),
];

fn cast(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (from, to) = (x.elem(0)?, x.out_elem()?);
    let small = to.is_float() && to.bits() <= 8;
    if small && from != to {
        let wants_infinity = !x.flag("saturate") && to != ElemType::F4E2M1;
        if wants_infinity {
            return Err(OpError::new(format!(
                "kernels convert to {to} with `saturate` only"
            )));
        }
        if to == ElemType::F8E8M0 && x.text("round_mode") != "nearest" {
            return Err(OpError::new(
                "kernels convert to f8e8m0 with `round_mode` `nearest` only",
            ));
        }
    }
    let a = x.at(0, p)?;
    let b = x.b();
    if to == ElemType::Bool && b.ty(a) != ElemType::Bool {
        let zero = b.int(b.ty(a), 0);
        return Ok(b.binary(Binary::Ne, a, zero));
    }
    if b.ty(a).is_float() && to.is_int() && to.bits() < 32 {
        // Saturated to 32 bits, then the low bits.
        let wide = b.cast(ElemType::I32, a);
        return Ok(b.cast(to, wide));
    }
    Ok(b.cast(to, a))
}
