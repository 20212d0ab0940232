//! What instructions on one thread's registers compute.

use crate::instruction::{Compare, Function, Kind, Round, Type};
use half::{bf16, f16};

fn f32_of(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn of_f32(x: f32) -> u64 {
    u64::from(x.to_bits())
}

fn mask(x: u64, bits: u32) -> u64 {
    match bits {
        64 => x,
        _ => x & ((1 << bits) - 1),
    }
}

/// A signed number of the low bits.
fn signed(x: u64, bits: u32) -> i64 {
    (x << (64 - bits)) as i64 >> (64 - bits)
}

/// An integer of a type.
fn integer(x: u64, ty: Type) -> i128 {
    match ty.kind {
        Kind::Signed => i128::from(signed(x, ty.bits)),
        _ => i128::from(mask(x, ty.bits)),
    }
}

/// A function of up to three operands.
pub(crate) fn compute(function: Function, ty: Type, x: [u64; 3]) -> u64 {
    let [a, b, c] = x;
    match function {
        Function::Mov => return mask(a, ty.bits.max(1)),
        Function::Prmt => return permute(a, b, c),
        Function::Lop3(table) => return logic(table, a, b, c),
        Function::Sub2 | Function::Fma2 | Function::Mul2 => return pairs(function, ty, x),
        Function::MulWide => {
            let half = ty;
            return (integer(a, half) * integer(b, half)) as u64;
        }
        _ => {}
    }
    match (ty.kind, ty.bits) {
        (Kind::Float, 64) => {
            let [a, b, c] = x.map(f64::from_bits);
            float(function, a, b, c).to_bits()
        }
        (Kind::Float, _) => {
            // Sums, products, quotients and roots of `f32` are the same when they are rounded from `f64`.
            let [a, b, c] = x.map(f32_of);
            of_f32(match function {
                Function::Mad => a.mul_add(b, c),
                _ => float(function, f64::from(a), f64::from(b), 0.0) as f32,
            })
        }
        (Kind::Pred, _) => match function {
            Function::Not => u64::from(a == 0),
            Function::And => a & b,
            Function::Or => a | b,
            _ => a ^ b,
        },
        _ => mask(int(function, ty, x), ty.bits),
    }
}

fn float(function: Function, a: f64, b: f64, c: f64) -> f64 {
    let nan = a.is_nan() || b.is_nan();
    match function {
        Function::Neg => -a,
        Function::Abs => a.abs(),
        Function::Sqrt => a.sqrt(),
        Function::Rcp => 1.0 / a,
        Function::Add => a + b,
        Function::Sub => a - b,
        Function::Mul => a * b,
        Function::Div => a / b,
        Function::Mad => a.mul_add(b, c),
        Function::MinNan | Function::MaxNan if nan => f64::NAN,
        Function::Min | Function::MinNan => a.min(b),
        _ => a.max(b),
    }
}

fn int(function: Function, ty: Type, [a, b, c]: [u64; 3]) -> u64 {
    let (x, y) = (integer(a, ty), integer(b, ty));
    let bits = ty.bits;
    let value = match function {
        Function::Neg => -x,
        Function::Abs => i128::from(signed(a, bits)).abs(),
        Function::Not => return !a,
        Function::Add => x + y,
        Function::Sub => x - y,
        Function::Mul => x.wrapping_mul(y),
        Function::MulHi => (x * y) >> bits,
        Function::Mad => x.wrapping_mul(y).wrapping_add(integer(c, ty)),
        // What a GPU gives for a division by zero is not defined.
        Function::Div if y == 0 => -1,
        Function::Div => x / y,
        Function::Min => x.min(y),
        Function::Max => x.max(y),
        Function::And => return a & b,
        Function::Or => return a | b,
        Function::Xor => return a ^ b,
        Function::Shl => match b as u32 {
            n if n >= bits => 0,
            n => x << n,
        },
        Function::Shr => x >> (b as u32).min(bits),
        Function::Bfe => return extract(ty, a, b, c),
        _ => 0,
    };
    value as u64
}

/// Bits of `a` from `first` on; past the end there are zeros, or copies of the sign.
fn extract(ty: Type, a: u64, first: u64, count: u64) -> u64 {
    let (first, count) = ((first & 0xFF) as u32, (count & 0xFF) as u32);
    if count == 0 {
        return 0;
    }
    let wide = integer(a, ty) >> first.min(ty.bits);
    match (count < ty.bits, ty.kind) {
        (true, Kind::Signed) => signed(wide as u64, count) as u64,
        (true, _) => mask(wide as u64, count),
        (false, _) => wide as u64,
    }
}

/// Byte `i` is the one of eight (those of `a`, then those of `b`) that digit `i` of `c` names; bit 3 of a digit repeats its
/// sign.
fn permute(a: u64, b: u64, c: u64) -> u64 {
    let all = mask(a, 32) | b << 32;
    (0..4).fold(0, |to, i| {
        let digit = c >> (4 * i) & 0xF;
        let byte = all >> (8 * (digit & 7)) & 0xFF;
        let byte = match digit & 8 {
            0 => byte,
            _ if byte & 0x80 != 0 => 0xFF,
            _ => 0,
        };
        to | byte << (8 * i)
    })
}

/// The function of three bits that a table gives: its value for (a, b, c) is bit 4a + 2b + c.
fn logic(table: u8, a: u64, b: u64, c: u64) -> u64 {
    (0..32).fold(0, |to, i| {
        let row = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
        to | u64::from(table >> row & 1) << i
    })
}

fn half_of(ty: Type, bits: u64) -> f64 {
    match ty.kind {
        Kind::Brain => bf16::from_bits(bits as u16).to_f64(),
        _ => f16::from_bits(bits as u16).to_f64(),
    }
}

fn of_half(ty: Type, x: f64) -> u64 {
    u64::from(match ty.kind {
        Kind::Brain => bf16::from_f64(x).to_bits(),
        _ => f16::from_f64(x).to_bits(),
    })
}

fn pairs(function: Function, ty: Type, x: [u64; 3]) -> u64 {
    let one = |shift: u32| {
        let [a, b, c] = x.map(|x| half_of(ty, x >> shift & 0xFFFF));
        let y = match function {
            Function::Sub2 => a - b,
            Function::Mul2 => a * b,
            // The product is exact.
            _ => a * b + c,
        };
        of_half(ty, y) << shift
    };
    one(0) | one(16)
}

/// Two numbers of `f32` as halves.
pub(crate) fn pair(brain: bool, high: u64, low: u64) -> u64 {
    let ty = Type {
        kind: if brain { Kind::Brain } else { Kind::Float },
        bits: 16,
    };
    let one = |x: u64| of_half(ty, f64::from(f32_of(x)));
    one(high) << 16 | one(low)
}

/// A comparison.
pub(crate) fn compare(compare: Compare, ty: Type, a: u64, b: u64) -> bool {
    if ty.kind == Kind::Float {
        let number = |x: u64| match ty.bits {
            64 => f64::from_bits(x),
            _ => f64::from(f32_of(x)),
        };
        let (a, b) = (number(a), number(b));
        let nan = a.is_nan() || b.is_nan();
        return match compare {
            Compare::Eq => a == b,
            Compare::Ne => a != b && !nan,
            Compare::Lt => a < b,
            Compare::Le => a <= b,
            Compare::Gt => a > b,
            Compare::Ge => a >= b,
            Compare::Neu => a != b,
            Compare::Nan => nan,
        };
    }
    let (a, b) = (integer(a, ty), integer(b, ty));
    match compare {
        Compare::Eq => a == b,
        Compare::Ne | Compare::Neu => a != b,
        Compare::Lt => a < b,
        Compare::Le => a <= b,
        Compare::Gt => a > b,
        Compare::Ge => a >= b,
        Compare::Nan => false,
    }
}

/// A conversion.
pub(crate) fn convert(to: Type, from: Type, round: Round, x: u64) -> u64 {
    match (from.kind, to.kind) {
        (Kind::Float | Kind::Brain, Kind::Float | Kind::Brain) => {
            let value = rounded(round, number(from, x));
            bits_of(to, value)
        }
        (Kind::Float | Kind::Brain, _) => {
            let value = rounded(round, number(from, x));
            if value.is_nan() {
                return match from.bits == 64 || to.bits == 64 {
                    true => 1 << (to.bits - 1),
                    false => 0,
                };
            }
            let (lo, hi) = match to.kind {
                Kind::Signed => (-(1i128 << (to.bits - 1)), (1i128 << (to.bits - 1)) - 1),
                _ => (0, (1i128 << to.bits) - 1),
            };
            mask((value as i128).clamp(lo, hi) as u64, to.bits)
        }
        (_, Kind::Float | Kind::Brain) => {
            let value = integer(x, from);
            match to.bits {
                // Rounded once.
                32 => of_f32(value as f32),
                64 => (value as f64).to_bits(),
                _ => of_half(to, value as f64),
            }
        }
        // A register keeps the sign of a narrow result.
        (_, Kind::Signed) if to.bits < 32 => mask(signed(x, to.bits) as u64, 32),
        _ => mask(integer(x, from) as u64, to.bits),
    }
}

fn number(ty: Type, x: u64) -> f64 {
    match ty.bits {
        64 => f64::from_bits(x),
        32 => f64::from(f32_of(x)),
        _ => half_of(ty, x),
    }
}

fn bits_of(ty: Type, x: f64) -> u64 {
    match ty.bits {
        64 => x.to_bits(),
        32 => of_f32(x as f32),
        _ => of_half(ty, x),
    }
}

fn rounded(round: Round, x: f64) -> f64 {
    match round {
        Round::Nearest => x,
        Round::Rni => x.round_ties_even(),
        Round::Rzi => x.trunc(),
        Round::Rmi => x.floor(),
        Round::Rpi => x.ceil(),
    }
}
