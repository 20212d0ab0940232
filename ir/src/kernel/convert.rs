//! Conversions of the small floats (`f16`, `bf16` and those of 8 and 4 bits) as integer arithmetic on their bits.
//!
//! Decoding shifts exponent and mantissa to their places in an `f32` and corrects the exponent by a
//! multiplication with a power of two, which also gives subnormal numbers their values. Encoding rounds
//! to nearest even: normal results by an integer addition below the kept bits, subnormal ones by adding a
//! power of two whose last bit is the smallest subnormal. What is too large saturates for 8 and 4 bits, and
//! is infinite for `f16` and `bf16`.

use super::build::KernelBuilder;
use super::legalize::is_small;
use super::*;

/// Where a format keeps what.
struct Layout {
    exp: u32,
    man: u32,
    bias: i32,
    special: Special,
}

#[derive(Clone, Copy, PartialEq)]
enum Special {
    /// Infinities and NaN at the largest exponent.
    Ieee,
    /// All ones is NaN.
    NanOnes,
    /// Minus zero is NaN.
    NanNegZero,
    /// Every pattern is a number.
    None,
}

fn layout(elem: ElemType) -> Option<Layout> {
    let l = |exp, man, bias, special| {
        Some(Layout {
            exp,
            man,
            bias,
            special,
        })
    };
    match elem {
        ElemType::F16 => l(5, 10, 15, Special::Ieee),
        ElemType::BF16 => l(8, 7, 127, Special::Ieee),
        ElemType::F8E4M3FN => l(4, 3, 7, Special::NanOnes),
        ElemType::F8E4M3FNUZ => l(4, 3, 8, Special::NanNegZero),
        ElemType::F8E5M2 => l(5, 2, 15, Special::Ieee),
        ElemType::F8E5M2FNUZ => l(5, 2, 16, Special::NanNegZero),
        ElemType::F4E2M1 => l(2, 1, 1, Special::None),
        _ => None,
    }
}

const F32: TileElem = TileElem::Elem(ElemType::F32);
const F64: TileElem = TileElem::Elem(ElemType::F64);
const U32: TileElem = TileElem::Elem(ElemType::U32);
const I32: TileElem = TileElem::Elem(ElemType::I32);

/// A conversion from or to a small float.
pub(super) fn cast(b: &mut KernelBuilder, x: Var, to: TileElem) -> Option<Var> {
    let from = b.ty(x).elem;
    if from == to {
        return None;
    }
    let (TileElem::Elem(source), TileElem::Elem(_)) = (from, to) else {
        return None;
    };
    if is_small(from) {
        let wide = decode(b, x, source)?;
        return match to {
            TileElem::Elem(target) if is_small(to) => encode(b, wide, target),
            _ => Some(b.cast(wide, to)),
        };
    }
    let TileElem::Elem(target) = to else {
        return None;
    };
    // Rounding twice is wrong: `f64` and wide integers go to odd first.
    let wide = match from {
        F32 => x,
        F64 => to_odd(b, x),
        TileElem::Elem(e) if e.bits() <= 24 => b.cast(x, F32),
        _ => {
            let double = b.cast(x, F64);
            to_odd(b, double)
        }
    };
    encode(b, wide, target)
}

/// `f64` to `f32` so that a second rounding is right: the last bit is one if anything was lost.
fn to_odd(b: &mut KernelBuilder, x: Var) -> Var {
    let nearest = b.cast(x, F32);
    let back = b.cast(nearest, F64);
    let bits = bitcast(b, nearest, I32);
    // One step towards zero where rounding went away from it.
    let (ax, ay) = (b.unary(Unary::Abs, x), b.unary(Unary::Abs, back));
    let away = b.binary(Binary::Gt, ay, ax);
    let inexact = b.binary(Binary::Ne, back, x);
    let one = constant(b, bits, 1);
    let down = b.binary(Binary::Sub, bits, one);
    let toward = b.select(away, down, bits);
    let odd = b.binary(Binary::Or, toward, one);
    let bits = b.select(inexact, odd, bits);
    let odd = bitcast(b, bits, F32);
    let nan = b.unary(Unary::IsNan, x);
    b.select(nan, nearest, odd)
}

fn bitcast(b: &mut KernelBuilder, x: Var, elem: TileElem) -> Var {
    let ty = TileType { elem, ..b.ty(x) };
    b.emit(ty, Op::Bitcast(x))
}

/// An integer constant beside `x`.
fn constant(b: &mut KernelBuilder, x: Var, value: i64) -> Var {
    let ty = b.ty(x);
    b.constant(ty, Literal::Int(value))
}

fn float(b: &mut KernelBuilder, x: Var, value: f32) -> Var {
    let ty = TileType {
        elem: F32,
        ..b.ty(x)
    };
    b.constant(ty, Literal::Float(f64::from(value)))
}

fn and(b: &mut KernelBuilder, x: Var, mask: u32) -> Var {
    let mask = constant(b, x, i64::from(mask));
    b.binary(Binary::And, x, mask)
}

fn shift(b: &mut KernelBuilder, f: Binary, x: Var, by: u32) -> Var {
    let by = constant(b, x, i64::from(by));
    b.binary(f, x, by)
}

/// The stored bits in 32.
fn raw(b: &mut KernelBuilder, x: Var, elem: ElemType) -> Var {
    let stored = if elem.bits() == 16 {
        ElemType::U16
    } else {
        ElemType::U8
    };
    let bits = bitcast(b, x, TileElem::Elem(stored));
    b.cast(bits, U32)
}

/// 32 bits as stored.
fn stored(b: &mut KernelBuilder, bits: Var, elem: ElemType) -> Var {
    let stored = if elem.bits() == 16 {
        ElemType::U16
    } else {
        ElemType::U8
    };
    let narrow = b.cast(bits, TileElem::Elem(stored));
    bitcast(b, narrow, TileElem::Elem(elem))
}

fn decode(b: &mut KernelBuilder, x: Var, elem: ElemType) -> Option<Var> {
    let bits = raw(b, x, elem);
    if elem == ElemType::BF16 {
        let high = shift(b, Binary::Shl, bits, 16);
        return Some(bitcast(b, high, F32));
    }
    if elem == ElemType::F8E8M0 {
        return Some(decode_exponent(b, bits));
    }
    let l = layout(elem)?;
    let width = l.exp + l.man;
    let magnitude = and(b, bits, (1 << width) - 1);
    let placed = shift(b, Binary::Shl, magnitude, 23 - l.man);
    let placed = bitcast(b, placed, F32);
    let scale = float(b, placed, 2f32.powi(127 - l.bias));
    let mut value = b.binary(Binary::Mul, placed, scale);
    let nan = float(b, placed, f32::NAN);
    let max_exp = ((1u32 << l.exp) - 1) << l.man;
    match l.special {
        Special::Ieee => {
            let from = constant(b, magnitude, i64::from(max_exp));
            let inf = float(b, placed, f32::INFINITY);
            let is_inf = b.binary(Binary::Eq, magnitude, from);
            let is_nan = b.binary(Binary::Gt, magnitude, from);
            value = b.select(is_inf, inf, value);
            value = b.select(is_nan, nan, value);
        }
        Special::NanOnes => {
            let ones = constant(b, magnitude, (1 << width) - 1);
            let is_nan = b.binary(Binary::Eq, magnitude, ones);
            value = b.select(is_nan, nan, value);
        }
        Special::NanNegZero => {
            let minus_zero = constant(b, bits, 1 << width);
            let is_nan = b.binary(Binary::Eq, bits, minus_zero);
            value = b.select(is_nan, nan, value);
        }
        Special::None => {}
    }
    let sign = and(b, bits, 1 << width);
    let sign = shift(b, Binary::Shl, sign, 31 - width);
    let value = bitcast(b, value, U32);
    let signed = b.binary(Binary::Or, value, sign);
    Some(bitcast(b, signed, F32))
}

/// A power of two by its exponent; 255 is NaN, 0 is 2^-127, which is subnormal.
fn decode_exponent(b: &mut KernelBuilder, bits: Var) -> Var {
    let placed = shift(b, Binary::Shl, bits, 23);
    let value = bitcast(b, placed, F32);
    let (zero, last) = (constant(b, bits, 0), constant(b, bits, 255));
    let smallest = float(b, bits, 2f32.powi(-127));
    let nan = float(b, bits, f32::NAN);
    let is_zero = b.binary(Binary::Eq, bits, zero);
    let is_nan = b.binary(Binary::Eq, bits, last);
    let value = b.select(is_zero, smallest, value);
    b.select(is_nan, nan, value)
}

fn encode(b: &mut KernelBuilder, x: Var, elem: ElemType) -> Option<Var> {
    let bits = bitcast(b, x, U32);
    let nan = b.unary(Unary::IsNan, x);
    if elem == ElemType::F8E8M0 {
        let out = encode_exponent(b, bits, nan);
        return Some(stored(b, out, elem));
    }
    let l = layout(elem)?;
    let width = l.exp + l.man;
    let drop = 23 - l.man;
    let magnitude = and(b, bits, 0x7FFF_FFFF);
    // Normal results: add half of the last kept bit, a little less if that bit is even, and rebias.
    let odd = shift(b, Binary::Shr, magnitude, drop);
    let odd = and(b, odd, 1);
    let half = constant(b, magnitude, (1 << (drop - 1)) - 1);
    let up = b.binary(Binary::Add, magnitude, half);
    let up = b.binary(Binary::Add, up, odd);
    let kept = shift(b, Binary::Shr, up, drop);
    let rebias = constant(b, kept, i64::from(127 - l.bias) << l.man);
    let normal = b.binary(Binary::Sub, kept, rebias);
    let mut out = normal;
    if l.bias < 127 {
        // Subnormal results: the last bit of the sum is the smallest subnormal.
        let magic = 2f32.powi(24 - l.bias - l.man as i32);
        let abs = bitcast(b, magnitude, F32);
        let m = float(b, abs, magic);
        let sum = b.binary(Binary::Add, abs, m);
        let sum = bitcast(b, sum, U32);
        let m = constant(b, sum, i64::from(magic.to_bits()));
        let subnormal = b.binary(Binary::Sub, sum, m);
        let first_normal = constant(b, magnitude, i64::from(127 + 1 - l.bias) << 23);
        let below = b.binary(Binary::Lt, magnitude, first_normal);
        out = b.select(below, subnormal, normal);
    }
    // Too large: compared before rebiasing, where nothing has wrapped.
    let (top, over) = limits(elem, &l);
    let first_over = constant(b, kept, i64::from(top) + (i64::from(127 - l.bias) << l.man));
    let too_large = b.binary(Binary::Gt, kept, first_over);
    let over = constant(b, out, i64::from(over));
    out = b.select(too_large, over, out);
    let mut sign = shift(b, Binary::Shr, bits, 31 - width);
    sign = and(b, sign, 1 << width);
    if l.special == Special::NanNegZero {
        let zero = constant(b, out, 0);
        let is_zero = b.binary(Binary::Eq, out, zero);
        sign = b.select(is_zero, zero, sign);
    }
    out = b.binary(Binary::Or, out, sign);
    let quiet = constant(b, out, i64::from(nan_of(&l, width)));
    out = b.select(nan, quiet, out);
    Some(stored(b, out, elem))
}

/// Largest finite pattern, and what anything larger becomes.
fn limits(elem: ElemType, l: &Layout) -> (u32, u32) {
    let ones = (1u32 << (l.exp + l.man)) - 1;
    let infinity = ((1u32 << l.exp) - 1) << l.man;
    let top = match l.special {
        Special::Ieee => infinity - 1,
        Special::NanOnes => ones - 1,
        Special::NanNegZero | Special::None => ones,
    };
    let keeps_infinity = matches!(elem, ElemType::F16 | ElemType::BF16);
    (top, if keeps_infinity { infinity } else { top })
}

fn nan_of(l: &Layout, width: u32) -> u32 {
    let infinity = ((1u32 << l.exp) - 1) << l.man;
    match l.special {
        Special::Ieee if width == 15 => infinity | 1 << (l.man - 1),
        Special::Ieee | Special::NanOnes => (1 << width) - 1,
        Special::NanNegZero => 1 << width,
        Special::None => 0,
    }
}

/// The nearest power of two; ties go to the even exponent. Negative numbers count as positive.
fn encode_exponent(b: &mut KernelBuilder, bits: Var, nan: Var) -> Var {
    let exponent = shift(b, Binary::Shr, bits, 23);
    let exponent = and(b, exponent, 0xFF);
    let mantissa = and(b, bits, 0x7F_FFFF);
    // Halfway between 2^e and 2^(e+1) is a mantissa of one half. The smallest numbers are linear.
    let half = constant(b, mantissa, 0x40_0000);
    let more = b.binary(Binary::Gt, mantissa, half);
    let tie = b.binary(Binary::Eq, mantissa, half);
    let odd = and(b, exponent, 1);
    let up = b.cast(more, U32);
    let odd_tie = b.select(tie, odd, up);
    let rounded = b.binary(Binary::Add, exponent, odd_tie);
    let zero = constant(b, exponent, 0);
    // Subnormal: 2^-127 is a mantissa of one half, 2^-126 the next; three quarters is the tie, to even.
    let three_quarters = constant(b, mantissa, 0x60_0000);
    let above = b.binary(Binary::Gt, mantissa, three_quarters);
    let above = b.cast(above, U32);
    let is_subnormal = b.binary(Binary::Eq, exponent, zero);
    let out = b.select(is_subnormal, above, rounded);
    let largest = constant(b, out, 254);
    let out = b.binary(Binary::Min, out, largest);
    let all = constant(b, out, 255);
    b.select(nan, all, out)
}
