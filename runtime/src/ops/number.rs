//! Single elements of tensors as numbers, whatever their type.

use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;
use lapidary_abi::minifloat;

fn raw<const N: usize>(bytes: &[u8], index: usize) -> [u8; N] {
    let mut raw = [0; N];
    raw.copy_from_slice(&bytes[index * N..(index + 1) * N]);
    raw
}

/// Element `index` as an integer; floats are cut off, strings and complex numbers are 0.
pub fn int(view: &View, index: usize) -> i128 {
    let b = view.bytes();
    match view.elem() {
        ElemType::I64 => i64::from_le_bytes(raw(b, index)).into(),
        ElemType::I32 => i32::from_le_bytes(raw(b, index)).into(),
        ElemType::I16 => i16::from_le_bytes(raw(b, index)).into(),
        ElemType::I8 | ElemType::I4 | ElemType::I2 => (b[index] as i8).into(),
        ElemType::U64 => u64::from_le_bytes(raw(b, index)).into(),
        ElemType::U32 => u32::from_le_bytes(raw(b, index)).into(),
        ElemType::U16 => u16::from_le_bytes(raw(b, index)).into(),
        ElemType::U8 | ElemType::U4 | ElemType::U2 => b[index].into(),
        ElemType::Bool => (b[index] != 0).into(),
        e if e.is_float() => float(view, index) as i128,
        _ => 0,
    }
}

/// Element `index` as a float: exact for floats; integers beyond 2^53 are rounded; strings are NaN, and
/// complex numbers are their real part.
pub fn float(view: &View, index: usize) -> f64 {
    let b = view.bytes();
    match view.elem() {
        ElemType::F32 => f32::from_le_bytes(raw(b, index)).into(),
        ElemType::F64 => f64::from_le_bytes(raw(b, index)),
        ElemType::F16 => half::f16::from_le_bytes(raw(b, index)).to_f64(),
        ElemType::BF16 => half::bf16::from_le_bytes(raw(b, index)).to_f64(),
        ElemType::C64 => f32::from_le_bytes(raw(b, 2 * index)).into(),
        ElemType::C128 => f64::from_le_bytes(raw(b, 2 * index)),
        ElemType::String => f64::NAN,
        e if e.is_float() => minifloat::decode(e, b[index]),
        _ => int(view, index) as f64,
    }
}

/// Element `index` of a complex tensor: real and imaginary part.
pub fn complex(view: &View, index: usize) -> [f64; 2] {
    let b = view.bytes();
    [2 * index, 2 * index + 1].map(|i| match view.elem() {
        ElemType::C64 => f32::from_le_bytes(raw(b, i)).into(),
        _ => f64::from_le_bytes(raw(b, i)),
    })
}

/// All elements as floats.
pub fn floats(view: &View) -> Vec<f64> {
    (0..view.len()).map(|i| float(view, i)).collect()
}

/// Writes a float to element `index`: rounded to nearest; integers cut it off and saturate; `bool` is
/// whether it differs from zero.
pub fn put_float(elem: ElemType, bytes: &mut [u8], index: usize, value: f64) {
    match elem {
        ElemType::F32 => put(bytes, index, (value as f32).to_le_bytes()),
        ElemType::F64 => put(bytes, index, value.to_le_bytes()),
        ElemType::F16 => put(bytes, index, half::f16::from_f64(value).to_le_bytes()),
        ElemType::BF16 => put(bytes, index, half::bf16::from_f64(value).to_le_bytes()),
        ElemType::C64 => {
            put(bytes, 2 * index, (value as f32).to_le_bytes());
            put(bytes, 2 * index + 1, 0f32.to_le_bytes());
        }
        ElemType::C128 => {
            put(bytes, 2 * index, value.to_le_bytes());
            put(bytes, 2 * index + 1, 0f64.to_le_bytes());
        }
        ElemType::Bool => bytes[index] = (value != 0.0).into(),
        ElemType::String => {}
        e if e.is_float() => bytes[index] = minifloat::encode(e, value, true),
        e => {
            let (low, high) = e.int_range().unwrap_or((0, 0));
            put_int(e, bytes, index, (value as i128).clamp(low, high));
        }
    }
}

/// Writes an integer to element `index`: wraps in integers, `bool` is whether it differs from zero.
pub fn put_int(elem: ElemType, bytes: &mut [u8], index: usize, value: i128) {
    match elem {
        ElemType::I64 | ElemType::U64 => put(bytes, index, (value as i64).to_le_bytes()),
        ElemType::I32 | ElemType::U32 => put(bytes, index, (value as i32).to_le_bytes()),
        ElemType::I16 | ElemType::U16 => put(bytes, index, (value as i16).to_le_bytes()),
        ElemType::I8 | ElemType::U8 => bytes[index] = value as u8,
        // Sign- or zero-extended to the byte.
        ElemType::I4 => bytes[index] = (((value as i8) << 4) >> 4) as u8,
        ElemType::I2 => bytes[index] = (((value as i8) << 6) >> 6) as u8,
        ElemType::U4 => bytes[index] = value as u8 & 0xF,
        ElemType::U2 => bytes[index] = value as u8 & 0x3,
        ElemType::Bool => bytes[index] = (value != 0).into(),
        e => put_float(e, bytes, index, value as f64),
    }
}

fn put<const N: usize>(bytes: &mut [u8], index: usize, value: [u8; N]) {
    bytes[index * N..(index + 1) * N].copy_from_slice(&value);
}

/// A tensor of floats, rounded to `elem`.
pub fn from_floats(elem: ElemType, dims: Vec<usize>, values: &[f64]) -> Result<Tensor, RunError> {
    let mut bytes = Bytes::zeroed(count(&dims)? * elem.size_bytes())?;
    for (i, &v) in values.iter().enumerate() {
        put_float(elem, bytes.as_mut_slice(), i, v);
    }
    Tensor::from_bytes(elem, dims, bytes)
}

/// A tensor of integers, wrapped to `elem`.
pub fn from_ints(elem: ElemType, dims: Vec<usize>, values: &[i128]) -> Result<Tensor, RunError> {
    let mut bytes = Bytes::zeroed(count(&dims)? * elem.size_bytes())?;
    for (i, &v) in values.iter().enumerate() {
        put_int(elem, bytes.as_mut_slice(), i, v);
    }
    Tensor::from_bytes(elem, dims, bytes)
}

/// A number that keeps 64-bit integers exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Of a float type.
    Float(f64),
    /// Of an integer type or `bool`.
    Int(i128),
}

/// Element `index`, exactly.
pub fn number(view: &View, index: usize) -> Number {
    if view.elem().is_float() {
        Number::Float(float(view, index))
    } else {
        Number::Int(int(view, index))
    }
}

impl Number {
    /// Order with NaN above everything.
    pub fn order(&self, other: &Number) -> std::cmp::Ordering {
        match (self, other) {
            (Number::Int(a), Number::Int(b)) => a.cmp(b),
            (a, b) => {
                let (a, b) = (a.as_f64(), b.as_f64());
                a.partial_cmp(&b)
                    .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
            }
        }
    }

    /// As a float.
    pub fn as_f64(self) -> f64 {
        match self {
            Number::Float(f) => f,
            Number::Int(i) => i as f64,
        }
    }
}
