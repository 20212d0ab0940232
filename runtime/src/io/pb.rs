//! ONNX values in files: `TensorProto`, `SequenceProto`, `OptionalProto`.
//!
//! Source: ONNX, `onnx.proto3` and `onnx-data.proto3`. 4- and 2-bit elements are packed in files, lowest
//! bits first, and one per byte in memory.

use super::bad;
use super::protobuf::{Field, Fields, fixed, put_bytes, put_number, varints};
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, Value, count};
use lapidary_abi::ElemType;
use lapidary_abi::program::ValueType;

/// Nested sequences deeper than this are refused.
const MAX_DEPTH: usize = 32;

/// Reads a value; which message it is follows from the type that the model expects.
pub fn read_value(bytes: &[u8], ty: &ValueType) -> Result<Value, RunError> {
    read_depth(bytes, ty, 0)
}

fn read_depth(bytes: &[u8], ty: &ValueType, depth: usize) -> Result<Value, RunError> {
    if depth > MAX_DEPTH {
        return bad("values are nested too deep");
    }
    match ty {
        ValueType::Tensor { .. } => Ok(Value::Tensor(read_tensor(bytes)?)),
        ValueType::Sequence(of) => {
            let mut values = Vec::new();
            for field in Fields(bytes) {
                match field? {
                    (3 | 5 | 7, Field::Bytes(b)) => values.push(read_depth(b, of, depth + 1)?),
                    (4 | 6, _) => {
                        return bad("sequences of sparse tensors or maps are not supported");
                    }
                    _ => {}
                }
            }
            Ok(Value::Sequence(values))
        }
        ValueType::Optional(of) => {
            for field in Fields(bytes) {
                match field? {
                    (3 | 5 | 7, Field::Bytes(b)) => {
                        return Ok(Value::Optional(Some(Box::new(read_depth(
                            b,
                            of,
                            depth + 1,
                        )?))));
                    }
                    (4 | 6, _) => return bad("optional sparse tensors or maps are not supported"),
                    _ => {}
                }
            }
            Ok(Value::Optional(None))
        }
    }
}

/// Reads a `TensorProto`.
pub fn read_tensor(message: &[u8]) -> Result<Tensor, RunError> {
    let (mut dims, mut ints, mut wide, mut raw, mut strings) =
        (vec![], vec![], vec![], vec![], vec![]);
    let (mut number, mut is_raw, mut elem) = (0, false, None);
    for field in Fields(message) {
        match field? {
            (1, f) => varints(f, &mut dims)?,
            (2, Field::Varint(v)) => {
                number = v;
                elem = i32::try_from(v).ok().and_then(ElemType::from_onnx);
            }
            (4 | 10, f) => fixed(f, &mut raw)?,
            (5, f) => varints(f, &mut ints)?,
            (6, Field::Bytes(b)) => match std::str::from_utf8(b) {
                Ok(text) => strings.push(text.to_owned()),
                Err(_) => return bad("a text is not UTF-8"),
            },
            (7 | 11, f) => varints(f, &mut wide)?,
            (9, Field::Bytes(b)) => {
                raw = b.to_vec();
                is_raw = true;
            }
            (13, _) => {
                return bad("the tensor's data is in another file, which is not supported here");
            }
            _ => {}
        }
    }
    let Some(elem) = elem else {
        return bad(format!("element type {number} is not supported"));
    };
    let dims: Vec<usize> = dims
        .iter()
        .map(|&d| usize::try_from(d as i64))
        .collect::<Result<_, _>>()
        .or_else(|_| bad("a negative dimension"))?;
    let n = count(&dims)?;
    if elem == ElemType::String {
        return Tensor::from_strings(dims, strings);
    }
    let per_byte = per_byte(elem);
    let data = if is_raw
        || matches!(
            elem,
            ElemType::F32 | ElemType::F64 | ElemType::C64 | ElemType::C128
        ) {
        unpack(elem, &raw, n)
    } else if matches!(elem, ElemType::I64 | ElemType::U64 | ElemType::U32) {
        // Elements are the low bytes of each number.
        wide.iter()
            .flat_map(|v| v.to_le_bytes()[..elem.size_bytes()].to_vec())
            .collect()
    } else if per_byte > 1 {
        let packed: Vec<u8> = ints.iter().map(|&v| v as u8).collect();
        unpack(elem, &packed, n)
    } else {
        ints.iter()
            .flat_map(|v| v.to_le_bytes()[..elem.size_bytes()].to_vec())
            .collect()
    };
    Tensor::from_bytes(elem, dims, Bytes::copy_of(&data)?)
}

fn per_byte(elem: ElemType) -> usize {
    match elem.bits() {
        4 => 2,
        2 => 4,
        _ => 1,
    }
}

/// One element per byte; other widths as they are. At most `n` elements.
fn unpack(elem: ElemType, packed: &[u8], n: usize) -> Vec<u8> {
    let per_byte = per_byte(elem);
    if per_byte == 1 {
        return packed.to_vec();
    }
    let bits = elem.bits();
    let signed = matches!(elem, ElemType::I4 | ElemType::I2);
    let code = |i: usize| {
        // Shifted to the top, then down: extends the sign where there is one.
        let top = packed[i / per_byte] << (8 - bits - (i % per_byte) as u32 * bits);
        if signed {
            ((top as i8) >> (8 - bits)) as u8
        } else {
            top >> (8 - bits)
        }
    };
    (0..n.min(packed.len() * per_byte)).map(code).collect()
}

fn pack(elem: ElemType, bytes: &[u8]) -> Vec<u8> {
    let (per_byte, bits) = (per_byte(elem), elem.bits());
    let mask = (1u8 << bits) - 1;
    let one = |codes: &[u8]| {
        codes
            .iter()
            .rev()
            .fold(0, |byte, &c| byte << bits | (c & mask))
    };
    bytes.chunks(per_byte).map(one).collect()
}

/// Writes a value as the message of its kind.
pub fn write_value(value: &Value, name: &str) -> Vec<u8> {
    match value {
        Value::Tensor(t) => write_tensor(t, name),
        Value::Sequence(values) => {
            let mut out = Vec::new();
            put_bytes(&mut out, 1, name.as_bytes());
            put_number(&mut out, 2, values.first().map_or(1, kind_number));
            for value in values {
                put_bytes(&mut out, kind_field(value), &write_value(value, ""));
            }
            out
        }
        Value::Optional(value) => {
            let mut out = Vec::new();
            put_bytes(&mut out, 1, name.as_bytes());
            put_number(&mut out, 2, value.as_deref().map_or(0, kind_number));
            if let Some(value) = value {
                put_bytes(&mut out, kind_field(value), &write_value(value, ""));
            }
            out
        }
    }
}

/// `SequenceProto.DataType`, which `OptionalProto.DataType` agrees with.
fn kind_number(value: &Value) -> u64 {
    match value {
        Value::Tensor(_) => 1,
        Value::Sequence(_) => 3,
        Value::Optional(_) => 5,
    }
}

fn kind_field(value: &Value) -> u32 {
    match value {
        Value::Tensor(_) => 3,
        Value::Sequence(_) => 5,
        Value::Optional(_) => 7,
    }
}

/// Writes a `TensorProto`.
pub fn write_tensor(tensor: &Tensor, name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(tensor.bytes().len() + 64 + name.len());
    for &d in tensor.dims() {
        put_number(&mut out, 1, d as u64);
    }
    put_number(&mut out, 2, tensor.elem().onnx() as u64);
    for text in tensor.strings() {
        put_bytes(&mut out, 6, text.as_bytes());
    }
    put_bytes(&mut out, 8, name.as_bytes());
    if per_byte(tensor.elem()) > 1 {
        put_bytes(&mut out, 9, &pack(tensor.elem(), tensor.bytes()));
    } else if tensor.elem() != ElemType::String {
        put_bytes(&mut out, 9, tensor.bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_read_back() {
        for &elem in ElemType::ALL {
            let bytes: Vec<u8> = (0..6 * elem.size_bytes()).map(|i| (i % 2) as u8).collect();
            let tensor = match elem {
                ElemType::String => Tensor::from_strings(vec![2, 3], vec!["ä".into(); 6]),
                _ => Tensor::from_bytes(elem, vec![2, 3], Bytes::copy_of(&bytes).expect("small")),
            };
            let tensor = tensor.expect("fits");
            let back = read_tensor(&write_tensor(&tensor, "x")).expect("reads");
            assert_eq!((back.elem(), back.dims()), (elem, tensor.dims()));
            assert_eq!(
                (back.bytes(), back.strings()),
                (tensor.bytes(), tensor.strings())
            );
        }
    }

    #[test]
    fn signs_survive_packing() {
        let codes = [-8i8, 7, -1].map(|v| v as u8);
        assert_eq!(unpack(ElemType::I4, &pack(ElemType::I4, &codes), 3), codes);
        let codes = [-2i8, 1, -1, 0, 1].map(|v| v as u8);
        assert_eq!(unpack(ElemType::I2, &pack(ElemType::I2, &codes), 5), codes);
    }

    #[test]
    fn nonsense_is_refused() {
        let tensor = write_tensor(&Tensor::from_f32(vec![2], &[1.0, 2.0]).expect("fits"), "x");
        for end in 1..tensor.len() {
            assert!(read_tensor(&tensor[..end]).is_err(), "cut at {end}");
        }
        assert!(read_tensor(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x10\x01").is_err());
    }
}
