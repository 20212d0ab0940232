//! Arithmetic, comparison, logic, selection.

use super::expr::{E, compute_type};
use super::index::Pos;
use super::{Element, Rule};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::{Binary, Unary};
use lapidary_ir::ops::OpError;

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::pointwise("add", |x, p| two(x, p, Binary::Add)),
    Rule::pointwise("sub", |x, p| two(x, p, Binary::Sub)),
    Rule::pointwise("mul", |x, p| two(x, p, Binary::Mul)),
    Rule::pointwise("div", |x, p| two(x, p, Binary::Div)),
    Rule::pointwise("mod", |x, p| {
        let f = if x.flag("fmod") {
            Binary::Rem
        } else {
            Binary::Mod
        };
        two(x, p, f)
    }),
    Rule::pointwise("pow", pow),
    Rule::pointwise("max", |x, p| fold(x, p, Binary::Max)),
    Rule::pointwise("min", |x, p| fold(x, p, Binary::Min)),
    Rule::pointwise("sum", |x, p| fold(x, p, Binary::Add)),
    Rule::pointwise("bit_shift", shift),
    Rule::pointwise("bitwise_and", |x, p| two(x, p, Binary::And)),
    Rule::pointwise("bitwise_or", |x, p| two(x, p, Binary::Or)),
    Rule::pointwise("bitwise_xor", |x, p| two(x, p, Binary::Xor)),
    Rule::pointwise("bitwise_not", |x, p| one(x, p, Unary::BitNot)),
    Rule::pointwise("neg", |x, p| one(x, p, Unary::Neg)),
    Rule::pointwise("abs", |x, p| one(x, p, Unary::Abs)),
    Rule::pointwise("sign", |x, p| one(x, p, Unary::Sign)),
    Rule::pointwise("reciprocal", |x, p| one(x, p, Unary::Reciprocal)),
    Rule::pointwise("sqrt", |x, p| one(x, p, Unary::Sqrt)),
    Rule::pointwise("exp", |x, p| one(x, p, Unary::Exp)),
    Rule::pointwise("log", |x, p| one(x, p, Unary::Log)),
    Rule::pointwise("ceil", |x, p| one(x, p, Unary::Ceil)),
    Rule::pointwise("floor", |x, p| one(x, p, Unary::Floor)),
    Rule::pointwise("round", |x, p| one(x, p, Unary::RoundEven)),
    Rule::pointwise("erf", |x, p| one(x, p, Unary::Erf)),
    Rule::pointwise("sin", |x, p| one(x, p, Unary::Sin)),
    Rule::pointwise("cos", |x, p| one(x, p, Unary::Cos)),
    Rule::pointwise("tan", |x, p| one(x, p, Unary::Tan)),
    Rule::pointwise("asin", |x, p| one(x, p, Unary::Asin)),
    Rule::pointwise("acos", |x, p| one(x, p, Unary::Acos)),
    Rule::pointwise("atan", |x, p| one(x, p, Unary::Atan)),
    Rule::pointwise("sinh", |x, p| one(x, p, Unary::Sinh)),
    Rule::pointwise("cosh", |x, p| one(x, p, Unary::Cosh)),
    Rule::pointwise("tanh", |x, p| one(x, p, Unary::Tanh)),
    Rule::pointwise("asinh", |x, p| one(x, p, Unary::Asinh)),
    Rule::pointwise("acosh", |x, p| one(x, p, Unary::Acosh)),
    Rule::pointwise("atanh", |x, p| one(x, p, Unary::Atanh)),
    Rule::pointwise("equal", |x, p| two(x, p, Binary::Eq)),
    Rule::pointwise("greater", |x, p| two(x, p, Binary::Gt)),
    Rule::pointwise("greater_or_equal", |x, p| two(x, p, Binary::Ge)),
    Rule::pointwise("less", |x, p| two(x, p, Binary::Lt)),
    Rule::pointwise("less_or_equal", |x, p| two(x, p, Binary::Le)),
    Rule::pointwise("and", |x, p| two(x, p, Binary::And)),
    Rule::pointwise("or", |x, p| two(x, p, Binary::Or)),
    Rule::pointwise("xor", |x, p| two(x, p, Binary::Xor)),
    Rule::pointwise("not", |x, p| one(x, p, Unary::Not)),
    Rule::pointwise("where", |x, p| {
        let (c, a, b) = (x.broadcast(0, p)?, x.broadcast(1, p)?, x.broadcast(2, p)?);
        Ok(x.b().select(c, a, b))
    }),
    Rule::pointwise("clip", |x, p| {
        let mut y = x.at(0, p)?;
        for (i, f) in [(1, Binary::Max), (2, Binary::Min)] {
            if x.has(i) {
                let bound = x.broadcast(i, p)?;
                y = x.b().binary(f, y, bound);
            }
        }
        Ok(y)
    }),
    Rule::pointwise("is_nan", |x, p| one(x, p, Unary::IsNan)),
    Rule::pointwise("is_inf", is_inf),
];

/// A function of one operand.
pub fn one(x: &mut Element, p: &Pos, f: Unary) -> Result<E, OpError> {
    let a = x.at(0, p)?;
    let whole = matches!(f, Unary::Ceil | Unary::Floor | Unary::RoundEven);
    let ty = x.b().ty(a);
    if whole && !ty.is_float() {
        return Ok(a);
    }
    if f == Unary::IsNan && !ty.is_float() {
        return Ok(x.b().bool(false));
    }
    Ok(x.b().unary(f, a))
}

fn two(x: &mut Element, p: &Pos, f: Binary) -> Result<E, OpError> {
    let (a, b) = (x.broadcast(0, p)?, x.broadcast(1, p)?);
    Ok(x.b().binary(f, a, b))
}

fn fold(x: &mut Element, p: &Pos, f: Binary) -> Result<E, OpError> {
    let mut out = x.broadcast(0, p)?;
    for i in 1..x.arity() {
        let next = x.broadcast(i, p)?;
        out = x.b().binary(f, out, next);
    }
    Ok(out)
}

/// The exponent may have another type. Whole small exponents are products.
fn pow(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (base, exponent) = (x.broadcast(0, p)?, x.broadcast(1, p)?);
    let (tb, te) = (x.b().ty(base), x.b().ty(exponent));
    let constant = match x.b().node(exponent) {
        super::expr::Node::Const(_, super::expr::Number::Float(bits)) => {
            Some(f64::from_bits(*bits))
        }
        super::expr::Node::Const(_, super::expr::Number::Int(i)) => Some(*i as f64),
        _ => None,
    };
    let b = x.b();
    match constant {
        Some(1.0) => return Ok(base),
        Some(2.0) => return Ok(b.binary(Binary::Mul, base, base)),
        Some(3.0) => {
            let square = b.binary(Binary::Mul, base, base);
            return Ok(b.binary(Binary::Mul, square, base));
        }
        Some(0.5) if tb.is_float() => return Ok(b.unary(Unary::Sqrt, base)),
        _ => {}
    }
    if !tb.is_float() && !te.is_float() {
        // Signs survive in 64 bits; an unsigned 64-bit exponent above 2^63 is beyond every range anyway.
        let (wide, e) = (b.cast(ElemType::I64, base), b.cast(ElemType::I64, exponent));
        let y = b.binary(Binary::Pow, wide, e);
        return Ok(b.cast(tb, y));
    }
    let common = if tb == te {
        tb
    } else if tb == ElemType::F64 || te == ElemType::F64 || !tb.is_float() || !te.is_float() {
        ElemType::F64
    } else {
        ElemType::F32
    };
    let (base, exponent) = (b.cast(common, base), b.cast(common, exponent));
    let y = b.binary(Binary::Pow, base, exponent);
    Ok(b.cast(tb, y))
}

/// Shifts by the width or more shift everything out.
fn shift(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let f = match x.text("direction").as_str() {
        "LEFT" => Binary::Shl,
        "RIGHT" => Binary::Shr,
        other => return Err(OpError::new(format!("cannot shift `{other}`"))),
    };
    let elem = x.elem(0)?;
    let (a, n) = (x.broadcast(0, p)?, x.broadcast(1, p)?);
    let b = x.b();
    let ty = compute_type(elem);
    let bits = i64::from(elem.bits());
    let (zero, most) = (b.int(ty, 0), b.int(ty, bits - 1));
    let above = b.binary(Binary::Gt, n, most);
    let below = b.binary(Binary::Lt, n, zero);
    let out = b.binary(Binary::Or, above, below);
    let n = b.select(out, zero, n);
    let shifted = b.binary(f, a, n);
    let mut rest = zero;
    if f == Binary::Shr && elem.int_range().is_some_and(|r| r.0 < 0) {
        let all = b.int(ty, -1);
        let negative = b.binary(Binary::Lt, a, zero);
        rest = b.select(negative, all, zero);
    }
    Ok(b.select(out, rest, shifted))
}

fn is_inf(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (negative, positive) = (x.flag("detect_negative"), x.flag("detect_positive"));
    let a = x.at(0, p)?;
    let b = x.b();
    let ty = b.ty(a);
    if !ty.is_float() || (!negative && !positive) {
        return Ok(b.bool(false));
    }
    let infinite = b.unary(Unary::IsInf, a);
    if negative && positive {
        return Ok(infinite);
    }
    let zero = b.float(ty, 0.0);
    let f = if positive { Binary::Gt } else { Binary::Lt };
    let side = b.binary(f, a, zero);
    Ok(b.binary(Binary::And, infinite, side))
}
