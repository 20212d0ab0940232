//! Conversions.

use super::Element;
use super::Rule;
use super::expr::E;
use super::index::Pos;
use lapidary_ir::kernel::Binary;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::pointwise("cast", cast),
    Rule::pointwise("cast_like", cast),
    Rule::pointwise("unpack", unpack),
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

/// A code's bits lie in one byte, or begin in one and end in the next.
fn unpack(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (bits, to) = (x.int("bits").unwrap_or(8), x.out_elem()?);
    let bytes = x.shape(0)?[0].clone();
    let at = &p.linear(&x.out_shape()?) * &Dim::from(bits);
    let eight = Dim::from(8i64);
    let (byte, shift) = (x.x.body.div(&at, &eight), x.x.body.rem(&at, &eight));
    let mut code = wide_byte(x, byte.clone())?;
    if 8 % bits != 0 {
        // What follows the last byte is not read: no code ends there.
        let next = (&byte + &Dim::from(1i64)).min_dim(&(&bytes - &Dim::from(1i64)));
        let high = wide_byte(x, next)?;
        let b = x.b();
        let by = b.int(ElemType::I32, 8);
        let high = b.binary(Binary::Shl, high, by);
        code = b.binary(Binary::Or, code, high);
    }
    let b = x.b();
    if bits < 8 {
        let shift = b.index(shift);
        let shift = b.cast(ElemType::I32, shift);
        code = b.binary(Binary::Shr, code, shift);
        let mask = b.int(ElemType::I32, (1 << bits) - 1);
        code = b.binary(Binary::And, code, mask);
    }
    if to.int_range().is_some_and(|(lo, _)| lo < 0) {
        let sign = b.int(ElemType::I32, 1 << (bits - 1));
        code = b.binary(Binary::Xor, code, sign);
        code = b.binary(Binary::Sub, code, sign);
    }
    Ok(b.cast(to, code))
}

fn wide_byte(x: &mut Element, at: Dim) -> Result<E, OpError> {
    let byte = x.at(0, &Pos::At(vec![at]))?;
    Ok(x.b().cast(ElemType::I32, byte))
}
