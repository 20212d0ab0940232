//! Tensors made from little: range, constant_of_shape, eye_like, and casts of any type to any other.

use super::call::{Call, Results, fail, length, one, same_elem};
use super::moves::take;
use super::number::{self, Number};
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;
use lapidary_abi::minifloat;

pub fn range(call: &Call) -> Results {
    let (start, limit, delta) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
    let elem = same_elem(start, limit)?;
    same_elem(start, delta)?;
    if [start, limit, delta].iter().any(|v| v.len() != 1) {
        return fail("start, limit and delta must be single numbers");
    }
    match [start, limit, delta].map(|v| number::number(v, 0)) {
        [Number::Int(start), Number::Int(limit), Number::Int(delta)] if delta != 0 => {
            let (span, step) = if delta > 0 {
                (limit - start, delta)
            } else {
                (start - limit, -delta)
            };
            let n = if span <= 0 {
                0
            } else {
                (span + step - 1) / step
            };
            let n = count(&[usize::try_from(n).unwrap_or(usize::MAX)])?;
            let values: Vec<i128> = (0..n).map(|i| start + i as i128 * delta).collect();
            one(number::from_ints(elem, vec![n], &values)?)
        }
        [
            Number::Float(start),
            Number::Float(limit),
            Number::Float(delta),
        ] if delta != 0.0 => {
            let n = ((limit - start) / delta).ceil().max(0.0);
            if n.is_nan() || n > crate::value::MAX_ELEMENTS as f64 {
                return fail("the range is too long");
            }
            let values: Vec<f64> = (0..n as usize).map(|i| start + i as f64 * delta).collect();
            one(number::from_floats(elem, vec![values.len()], &values)?)
        }
        _ => fail("delta must not be 0"),
    }
}

pub fn constant_of_shape(call: &Call) -> Results {
    let dims = call.ints(0)?.unwrap_or_default();
    let dims = dims
        .iter()
        .map(|&d| length(d))
        .collect::<Result<Vec<_>, _>>()?;
    let n = count(&dims)?;
    match call.attr_tensor("value")? {
        Some(value) if value.len() == 1 => {
            one(take(&value, dims, None, std::iter::repeat_n(Some(0), n))?)
        }
        Some(_) => fail("the value must be one number"),
        None => one(Tensor::zeros(ElemType::F32, dims)?),
    }
}

pub fn cast(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let to = call
        .attr_elem("to")
        .ok_or_else(|| RunError::Input("attribute `to` is missing".into()))?;
    one(cast_to(data, to, call.attr_int("saturate", 1) != 0)?)
}

pub fn cast_like(call: &Call) -> Results {
    let to = call.tensor(1)?.elem();
    one(cast_to(
        call.tensor(0)?,
        to,
        call.attr_int("saturate", 1) != 0,
    )?)
}

/// `data` in another element type.
pub fn cast_to(data: &View, to: ElemType, saturate: bool) -> Result<Tensor, RunError> {
    let dims = data.dims().to_vec();
    if to == data.elem() {
        return data.to_tensor();
    }
    if to == ElemType::String {
        let texts = (0..data.len()).map(|i| text(data, i)).collect();
        return Tensor::from_strings(dims, texts);
    }
    let mut out = crate::bytes::Bytes::zeroed(count(&dims)? * to.size_bytes())?;
    for i in 0..data.len() {
        let value = match data.elem() {
            ElemType::String => parse(&data.strings()[i], to)?,
            _ => number::number(data, i),
        };
        let bytes = out.as_mut_slice();
        match value {
            Number::Float(f) if to.is_float() && to.bits() <= 8 => {
                bytes[i] = minifloat::encode(to, f, saturate)
            }
            Number::Float(f) => number::put_float(to, bytes, i, f),
            Number::Int(v) => number::put_int(to, bytes, i, v),
        }
    }
    Tensor::from_bytes(to, dims, out)
}

fn parse(text: &str, to: ElemType) -> Result<Number, RunError> {
    let text = text.trim();
    if to.is_int()
        && let Ok(i) = text.parse::<i128>()
    {
        return Ok(Number::Int(i));
    }
    // Rust's parser takes ONNX's spellings too: NaN, INF, +inf, 1e-5.
    match text.parse::<f64>() {
        Ok(f) => Ok(Number::Float(f)),
        Err(_) => fail(format!("`{text}` is not a number")),
    }
}

/// The text of an element: shortest digits that read back, as numpy writes them.
fn text(data: &View, i: usize) -> String {
    match (data.elem(), number::number(data, i)) {
        (ElemType::Bool, Number::Int(v)) => if v != 0 { "True" } else { "False" }.to_owned(),
        (_, Number::Int(v)) => v.to_string(),
        (elem, Number::Float(f)) => float_text(elem, f),
    }
}

fn float_text(elem: ElemType, f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf" } else { "-inf" }.into();
    }
    let magnitude = f.abs();
    let plain = magnitude == 0.0 || (1e-4..1e16).contains(&magnitude);
    let shortest = match (elem, plain) {
        (ElemType::F64, true) => format!("{f:?}"),
        (ElemType::F64, false) => format!("{f:e}"),
        (_, true) => format!("{:?}", f as f32),
        (_, false) => format!("{:e}", f as f32),
    };
    match shortest.split_once('e') {
        // Exponents have a sign and two digits.
        Some((digits, exponent)) => {
            let e: i32 = exponent.parse().unwrap_or(0);
            format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
        }
        None => shortest,
    }
}
