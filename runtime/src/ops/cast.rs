//! Casts of any element type to any other.
//!
//! What ONNX leaves open for floats out of an integer type's range: 32 and 64 bits saturate, narrower types
//! keep the low bits of the value saturated to i32; NaN gives 0.

use super::call::{Call, Results, fail, one};
use super::number::{self, put_float, put_int};
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;
use lapidary_abi::elem::ElemClass;
use lapidary_abi::minifloat;

pub fn cast(call: &Call) -> Results {
    let to = call
        .attr_elem("to")
        .ok_or_else(|| RunError::Input("attribute `to` is missing".into()))?;
    of(call, to)
}

pub fn cast_like(call: &Call) -> Results {
    of(call, call.tensor(1)?.elem())
}

fn of(call: &Call, to: ElemType) -> Results {
    let rule = FloatRule {
        to,
        saturate: call.attr_int("saturate", 1) != 0,
        round: match call.attr_str("round_mode", "up") {
            "up" => |m| if m > 1.0 { 2.0 } else { 1.0 },
            "down" => |_| 1.0,
            "nearest" => |m| if m >= 1.5 { 2.0 } else { 1.0 },
            other => return fail(format!("there is no `round_mode` `{other}`")),
        },
    };
    one(convert(call.tensor(0)?, &rule)?)
}

fn convert(data: &View, rule: &FloatRule) -> Result<Tensor, RunError> {
    use ElemClass::{Bool, Complex, Float, Signed, String, Unsigned};
    let (from, to, dims) = (data.elem(), rule.to, data.dims().to_vec());
    if to == from {
        return data.to_tensor();
    }
    let all = 0..data.len();
    if to == ElemType::String {
        let text: &dyn Fn(usize) -> std::string::String = match from.class() {
            Float => &|i| float_text(from, number::float(data, i)),
            Signed | Unsigned | Bool => &|i| number::int(data, i).to_string(),
            Complex | String => return fail(format!("{from} cannot become text")),
        };
        return Tensor::from_strings(dims, all.map(text).collect());
    }
    let mut out = Bytes::zeroed(count(&dims)? * to.size_bytes())?;
    let bytes = out.as_mut_slice();
    match (from.class(), to.class()) {
        (Float, Float) => all.for_each(|i| rule.put(bytes, i, number::float(data, i))),
        (Signed | Unsigned | Bool, Float) => all.for_each(|i| {
            let v = number::int(data, i);
            // Straight to `f32`, so that it is rounded once.
            let exact = to == ElemType::F32;
            rule.put(bytes, i, if exact { (v as f32).into() } else { v as f64 });
        }),
        (String, Float) => {
            for (i, text) in data.strings().iter().enumerate() {
                rule.put(bytes, i, parse_float(text, to)?);
            }
        }
        (Float, Bool) => all.for_each(|i| bytes[i] = (number::float(data, i) != 0.0).into()),
        (Float, Signed | Unsigned) => {
            let wide = if to.bits() < 32 { ElemType::I32 } else { to };
            let (low, high) = wide.int_range().unwrap_or((0, 0));
            let whole = |i| (number::float(data, i) as i128).clamp(low, high);
            all.for_each(|i| put_int(to, bytes, i, whole(i)));
        }
        (Signed | Unsigned | Bool, Signed | Unsigned | Bool) => {
            all.for_each(|i| put_int(to, bytes, i, number::int(data, i)))
        }
        (String, Signed | Unsigned | Bool) => {
            for (i, text) in data.strings().iter().enumerate() {
                put_int(to, bytes, i, parse_int(text)?);
            }
        }
        (Complex, Complex) => {
            // Real and imaginary parts are pairs of the float type.
            let part = |e| match e {
                ElemType::C64 => ElemType::F32,
                _ => ElemType::F64,
            };
            let mut pairs = dims.clone();
            pairs.push(2);
            let parts = View::new(part(from), pairs, data.bytes())?;
            for i in 0..parts.len() {
                put_float(part(to), bytes, i, number::float(&parts, i));
            }
        }
        _ => return fail(format!("{from} cannot become {to}")),
    }
    Tensor::from_bytes(to, dims, out)
}

/// How a number becomes one of a float type.
struct FloatRule {
    to: ElemType,
    /// 8-bit floats: out of range becomes the largest number, not infinity or NaN.
    saturate: bool,
    /// `f8e8m0`: what a number from 1 up to 2 becomes, 1 or 2.
    round: fn(f64) -> f64,
}

impl FloatRule {
    fn put(&self, bytes: &mut [u8], i: usize, v: f64) {
        match self.to {
            ElemType::F8E8M0 => {
                bytes[i] = minifloat::encode(self.to, self.power_of_two(v), self.saturate)
            }
            to if to.bits() <= 8 => bytes[i] = minifloat::encode(to, v, self.saturate),
            to => put_float(to, bytes, i, v),
        }
    }

    /// The magnitude of `v` as a power of two in the range of `f8e8m0`.
    fn power_of_two(&self, v: f64) -> f64 {
        let (least, most) = (2f64.powi(-127), 2f64.powi(127));
        let v = v.abs();
        if v.is_nan() {
            return v;
        }
        let exponent = if v == 0.0 { -1023 } else { libm::ilogb(v) };
        let rounded = if v.is_infinite() || exponent > 127 {
            f64::INFINITY
        } else if exponent < -127 {
            // Up and nearest may still reach the smallest number.
            let reaches = v > 0.0 && (self.round)(v / least + 1.0) > 1.0;
            if reaches { least } else { 0.0 }
        } else {
            let base = 2f64.powi(exponent);
            base * (self.round)(v / base)
        };
        match (rounded < least, rounded > most) {
            (true, _) if self.saturate => least,
            (_, true) if self.saturate => most,
            (false, false) => rounded,
            _ => f64::NAN,
        }
    }
}

/// Rust's parser takes ONNX's spellings too: NaN, INF, +inf, 1e-5.
fn parse_float(text: &str, to: ElemType) -> Result<f64, RunError> {
    let trimmed = text.trim();
    let parsed = if to == ElemType::F32 {
        trimmed.parse::<f32>().map(f64::from)
    } else {
        trimmed.parse()
    };
    parsed.or_else(|_| fail(format!("{text:?} is not a number")))
}

fn parse_int(text: &str) -> Result<i128, RunError> {
    match text.trim().parse() {
        Ok(v) => Ok(v),
        Err(_) => parse_float(text, ElemType::F64).map(|v| v as i128),
    }
}

/// Plain notation, never an exponent; the fewest digits that read back to the same number.
fn float_text(elem: ElemType, v: f64) -> String {
    match v {
        _ if v.is_nan() => "NaN".to_owned(),
        _ if v.is_infinite() => if v > 0.0 { "INF" } else { "-INF" }.to_owned(),
        _ if elem == ElemType::F64 => v.to_string(),
        _ if elem == ElemType::F16 => half::f16::from_f64(v).to_string(),
        _ if elem == ElemType::BF16 => half::bf16::from_f64(v).to_string(),
        _ => (v as f32).to_string(),
    }
}
