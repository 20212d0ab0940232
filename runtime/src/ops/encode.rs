//! Encoders of classical machine learning: label_encoder; and the entropy decoder of weights.

use super::call::{Call, Results, fail, length, one};
use super::moves::Builder;
use super::number;
use crate::error::RunError;
use crate::value::{Tensor, View};
use lapidary_abi::ElemType;
use lapidary_abi::rans::Model;
use std::collections::HashMap;

/// An element as a key; floats by their bits, so that NaN finds NaN.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Int(i128),
    Float(u64),
    Text(&'a str),
}

fn keys<'a>(view: &'a View) -> impl Iterator<Item = Key<'a>> {
    let float = |v: f64| match v {
        _ if v.is_nan() => f64::NAN,
        // Both zeros are one key.
        0.0 => 0.0,
        v => v,
    };
    (0..view.len()).map(move |i| match view.elem() {
        ElemType::String => Key::Text(&view.strings()[i]),
        e if e.int_range().is_some() => Key::Int(number::int(view, i)),
        _ => Key::Float(float(number::float(view, i)).to_bits()),
    })
}

/// The list that is given under `kind` with one of ONNX's endings.
fn given(call: &Call, kind: &str) -> Result<Tensor, RunError> {
    if let Some(view) = call.attr_tensor(&format!("{kind}_tensor"))? {
        return view.to_tensor();
    }
    if let Some(texts) = call.attr_strs(&format!("{kind}_strings")) {
        return Tensor::from_strings(vec![texts.len()], texts.to_vec());
    }
    if let Some(ints) = call.attr_ints(&format!("{kind}_int64s")) {
        return Tensor::from_i64(vec![ints.len()], ints);
    }
    match call.attr_floats(&format!("{kind}_floats")) {
        Some(floats) => Tensor::from_f32(vec![floats.len()], floats),
        None => fail(format!("the {kind} are missing")),
    }
}

fn default(call: &Call, elem: ElemType) -> Result<Tensor, RunError> {
    if let (Some(view), Some(_)) = (
        call.attr_tensor("default_tensor")?,
        call.attr_tensor("values_tensor")?,
    ) {
        return view.to_tensor();
    }
    if elem == ElemType::String {
        let text = call.attr_str("default_string", "_Unused").to_owned();
        Tensor::from_strings(vec![1], vec![text])
    } else if elem.int_range().is_some() {
        number::from_ints(elem, vec![1], &[call.attr_int("default_int64", -1).into()])
    } else if elem.is_float() {
        let value = call.attr_float("default_float").unwrap_or(-0.0);
        number::from_floats(elem, vec![1], &[value.into()])
    } else {
        fail("values must be texts or numbers")
    }
}

pub fn label_encoder(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let (known, values) = (given(call, "keys")?, given(call, "values")?);
    let default = default(call, values.elem())?;
    let (known, values, default) = (known.view(), values.view(), default.view());
    if known.len() != values.len() || default.elem() != values.elem() || default.len() != 1 {
        return fail("keys, values and default do not fit together");
    }
    // The last of equal keys wins, as in a dictionary.
    let index: HashMap<Key, usize> = keys(&known).zip(0..).collect();
    let mut out = Builder::new(values.elem(), data.dims().to_vec())?;
    for key in keys(data) {
        match index.get(&key) {
            Some(&i) => out.push(&values, i, 1),
            None => out.push(&default, 0, 1),
        }
    }
    one(out.finish()?)
}

pub fn rans_decode(call: &Call) -> Results {
    let (bytes, starts) = (call.tensor(0)?, call.ints(1)?.unwrap_or_default());
    let frequencies = call.ints(2)?.unwrap_or_default();
    let dims = call.attr_ints("shape").unwrap_or_default();
    let dims: Vec<usize> = dims.iter().map(|&d| length(d)).collect::<Result<_, _>>()?;
    let block = length(call.attr_int("block", 1))?.max(1);
    let frequencies: Option<Vec<u32>> =
        frequencies.iter().map(|&f| u32::try_from(f).ok()).collect();
    let Some(model) = frequencies.and_then(|f| Model::new(&f)) else {
        return fail("the frequencies do not add up");
    };
    let mut y = Tensor::zeros(ElemType::U8, dims)?;
    let out = y.bytes_mut().unwrap_or_default();
    if starts.len() != out.len().div_ceil(block) + 1 {
        return fail("there is not one start for each block");
    }
    for (part, w) in out.chunks_mut(block).zip(starts.windows(2)) {
        let (from, to) = (length(w[0])?, length(w[1])?);
        let block = bytes.bytes().get(from..to);
        if !block.is_some_and(|b| model.read(b, part)) {
            return fail("a block of codes is damaged");
        }
    }
    one(y)
}
