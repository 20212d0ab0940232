//! The 8- and 4-bit float formats: bit pattern to number and back.
//!
//! Decoding follows each format's layout; encoding picks the nearest representable number (ties to the
//! even mantissa) by search over the at most 256 patterns, which is plain rather than fast.
//! Source: ONNX, "Float stored in 8 bits" and "Float stored in 4 bits"; OCP Microscaling Formats v1.0.

use crate::ElemType;

/// Exponent bits, mantissa bits, bias, and how infinities and NaN are spelt.
struct Layout {
    exp: u32,
    man: u32,
    bias: i32,
    special: Special,
}

enum Special {
    /// No infinities; all-ones is NaN (either sign).
    NanOnes,
    /// No infinities, no negative zero: `0x80` is NaN.
    NanNegZero,
    /// IEEE: infinities and NaNs at the largest exponent.
    Ieee,
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
        ElemType::F8E4M3FN => l(4, 3, 7, Special::NanOnes),
        ElemType::F8E4M3FNUZ => l(4, 3, 8, Special::NanNegZero),
        ElemType::F8E5M2 => l(5, 2, 15, Special::Ieee),
        ElemType::F8E5M2FNUZ => l(5, 2, 16, Special::NanNegZero),
        ElemType::F4E2M1 => l(2, 1, 1, Special::None),
        _ => None,
    }
}

/// The number that `bits` stands for in `elem`. `elem` must be one of the small float types.
pub fn decode(elem: ElemType, bits: u8) -> f64 {
    if elem == ElemType::F8E8M0 {
        return if bits == 0xFF {
            f64::NAN
        } else {
            2f64.powi(i32::from(bits) - 127)
        };
    }
    let Some(l) = layout(elem) else {
        return f64::NAN;
    };
    let sign = if (bits >> (l.exp + l.man)) & 1 == 1 {
        -1.0
    } else {
        1.0
    };
    let exp = u32::from(bits >> l.man) & ((1 << l.exp) - 1);
    let man = u32::from(bits) & ((1 << l.man) - 1);
    match l.special {
        Special::NanOnes if bits & 0x7F == 0x7F => return f64::NAN,
        Special::NanNegZero if bits == 0x80 => return f64::NAN,
        Special::Ieee if exp == (1 << l.exp) - 1 => {
            return if man == 0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            };
        }
        _ => {}
    }
    let scale = |e: i32| 2f64.powi(e - l.bias - l.man as i32);
    sign * if exp == 0 {
        f64::from(man) * scale(1)
    } else {
        f64::from(man + (1 << l.man)) * scale(exp as i32)
    }
}

/// The pattern of the nearest number. Out of range: the largest number if `saturate`, else infinity
/// where the format has one and NaN where it has not.
pub fn encode(elem: ElemType, value: f64, saturate: bool) -> u8 {
    let nan = match elem {
        ElemType::F8E4M3FN | ElemType::F8E5M2 => 0x7F,
        ElemType::F8E4M3FNUZ | ElemType::F8E5M2FNUZ => 0x80,
        ElemType::F8E8M0 => 0xFF,
        _ => 0,
    };
    if value.is_nan() {
        return nan;
    }
    let count: u16 = if elem == ElemType::F4E2M1 { 16 } else { 256 };
    let finite = |b: u8| decode(elem, b).is_finite();
    let signed = elem != ElemType::F8E8M0;
    // Walk the non-negative patterns in increasing order; they are monotone in every format.
    let half = if signed { count / 2 } else { count };
    let magnitude = value.abs();
    let top = (0..half)
        .rev()
        .map(|b| b as u8)
        .find(|&b| finite(b))
        .unwrap_or(0);
    let sign = if signed && value.is_sign_negative() {
        (half & 0xFF) as u8
    } else {
        0
    };
    let max = decode(elem, top);
    let step = max - decode(elem, top - 1);
    // Halfway above the largest number is a tie, which stays where the mantissa is even.
    let limit = max + step / 2.0;
    if (!saturate || value.is_infinite())
        && (magnitude > limit || (magnitude == limit && top & 1 == 1))
    {
        return match elem {
            _ if saturate || elem == ElemType::F4E2M1 => top | sign,
            ElemType::F8E5M2 => 0x7C | sign,
            ElemType::F8E4M3FN => nan | sign,
            _ => nan,
        };
    }
    let mut best = 0u8;
    for b in 0..=top {
        let (d, db) = (
            (decode(elem, b) - magnitude).abs(),
            (decode(elem, best) - magnitude).abs(),
        );
        if d < db || (d == db && b & 1 == 0) {
            best = b;
        }
    }
    let negative_zero_is_nan = nan == 0x80;
    if best == 0 && negative_zero_is_nan {
        0
    } else {
        best | sign
    }
}

/// `value` rounded to `elem` (any float type) and widened again.
pub fn round_to(elem: ElemType, value: f64) -> f64 {
    match elem {
        ElemType::F32 => f64::from(value as f32),
        ElemType::F16 => half::f16::from_f64(value).to_f64(),
        ElemType::BF16 => half::bf16::from_f64(value).to_f64(),
        ElemType::F64 => value,
        _ => decode(elem, encode(elem, value, true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_read_back() {
        for elem in [
            ElemType::F8E4M3FN,
            ElemType::F8E4M3FNUZ,
            ElemType::F8E5M2,
            ElemType::F8E5M2FNUZ,
            ElemType::F4E2M1,
            ElemType::F8E8M0,
        ] {
            for bits in 0..=if elem == ElemType::F4E2M1 { 15 } else { 255u8 } {
                let value = decode(elem, bits);
                if !value.is_nan() {
                    assert_eq!(encode(elem, value, false), bits, "{elem} {bits:#x}");
                }
            }
        }
        assert_eq!(decode(ElemType::F8E4M3FN, 0x7E), 448.0);
        assert_eq!(decode(ElemType::F8E5M2, 0x7B), 57344.0);
        assert_eq!(encode(ElemType::F8E4M3FN, 1000.0, true), 0x7E);
        assert_eq!(encode(ElemType::F8E4M3FN, 1000.0, false), 0x7F);
    }
}
