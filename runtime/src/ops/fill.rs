//! Tensors made from little: range, constant_of_shape.

use super::call::{Call, Results, fail, length, one, same_elem};
use super::moves::take;
use super::number::{self, Number};
use crate::value::{Tensor, count};
use lapidary_abi::ElemType;

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
