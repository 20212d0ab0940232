//! Values in files: `TensorProto`, `SequenceProto` and `OptionalProto` as in ONNX's own test data.

use super::proto::{OptionalProto, SequenceProto, TensorProto, decode, element_kind};
use super::tensor;
use crate::files::{Files, map};
use bytes::Bytes;
use lapidary_ir::Type;
use lapidary_ir::tensor::Value;
use prost::Message;
use std::path::Path;

/// Reads a `.pb` file; `ty` says which message it holds.
pub fn read_value(path: &Path, ty: &Type) -> Result<Value, String> {
    value_from_bytes(map(path)?, ty).map_err(|e| format!("`{}`: {e}", path.display()))
}

/// Decodes a value; `ty` says which message it is.
pub fn value_from_bytes(bytes: Bytes, ty: &Type) -> Result<Value, String> {
    match ty {
        Type::Tensor(_) => tensor_value(&decode::<TensorProto>(bytes)?),
        Type::Sequence(_) => sequence_value(&decode::<SequenceProto>(bytes)?),
        Type::Optional(_) => optional_value(&decode::<OptionalProto>(bytes)?),
    }
}

/// Encodes a value as the message that its kind has.
pub fn value_to_bytes(name: &str, value: &Value) -> Vec<u8> {
    match value {
        Value::Tensor(t) => tensor::to_proto(name, t).encode_to_vec(),
        Value::Sequence(s) => sequence_proto(name, s).encode_to_vec(),
        Value::Optional(o) => optional_proto(name, o.as_deref()).encode_to_vec(),
    }
}

fn tensor_value(proto: &TensorProto) -> Result<Value, String> {
    tensor::decode(proto, &Files::default()).map(Value::Tensor)
}

fn sequence_value(proto: &SequenceProto) -> Result<Value, String> {
    let items: Result<Vec<Value>, String> = match proto.elem_type {
        element_kind::TENSOR => proto.tensor_values.iter().map(tensor_value).collect(),
        element_kind::SEQUENCE => proto.sequence_values.iter().map(sequence_value).collect(),
        element_kind::OPTIONAL => proto.optional_values.iter().map(optional_value).collect(),
        element_kind::UNDEFINED => Ok(vec![]),
        kind => return Err(format!("sequence of element kind {kind} is not supported")),
    };
    Ok(Value::Sequence(items?))
}

fn optional_value(proto: &OptionalProto) -> Result<Value, String> {
    let inner = if let Some(t) = &proto.tensor_value {
        Some(tensor_value(t)?)
    } else if let Some(s) = &proto.sequence_value {
        Some(sequence_value(s)?)
    } else if let Some(o) = &proto.optional_value {
        Some(optional_value(o)?)
    } else if proto.sparse_tensor_value.is_some() || proto.elem_type == element_kind::MAP {
        return Err(format!(
            "optional of element kind {} is not supported",
            proto.elem_type
        ));
    } else {
        None
    };
    Ok(Value::Optional(inner.map(Box::new)))
}

fn sequence_proto(name: &str, items: &[Value]) -> SequenceProto {
    let mut out = SequenceProto {
        name: name.to_owned(),
        ..SequenceProto::default()
    };
    for item in items {
        match item {
            Value::Tensor(t) => {
                out.elem_type = element_kind::TENSOR;
                out.tensor_values.push(tensor::to_proto("", t));
            }
            Value::Sequence(s) => {
                out.elem_type = element_kind::SEQUENCE;
                out.sequence_values.push(sequence_proto("", s));
            }
            Value::Optional(o) => {
                out.elem_type = element_kind::OPTIONAL;
                out.optional_values.push(optional_proto("", o.as_deref()));
            }
        }
    }
    out
}

fn optional_proto(name: &str, item: Option<&Value>) -> OptionalProto {
    let mut out = OptionalProto {
        name: name.to_owned(),
        ..OptionalProto::default()
    };
    match item {
        None => {}
        Some(Value::Tensor(t)) => {
            out.elem_type = element_kind::TENSOR;
            out.tensor_value = Some(tensor::to_proto("", t));
        }
        Some(Value::Sequence(s)) => {
            out.elem_type = element_kind::SEQUENCE;
            out.sequence_value = Some(sequence_proto("", s));
        }
        Some(Value::Optional(o)) => {
            out.elem_type = element_kind::OPTIONAL;
            out.optional_value = Some(Box::new(optional_proto("", o.as_deref())));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::{ElemType, Tensor};

    #[test]
    fn values_read_back() {
        let tensor = Type::unranked(ElemType::F32);
        let item = Value::Tensor(Tensor::f32(1.5));
        let sequence = Value::Sequence(vec![item.clone(), item.clone()]);
        let cases = [
            (item.clone(), tensor.clone()),
            (sequence.clone(), Type::Sequence(Box::new(tensor.clone()))),
            (
                Value::Sequence(vec![]),
                Type::Sequence(Box::new(tensor.clone())),
            ),
            (
                Value::Optional(None),
                Type::Optional(Box::new(tensor.clone())),
            ),
            (
                Value::Optional(Some(Box::new(sequence))),
                Type::Optional(Box::new(Type::Sequence(Box::new(tensor)))),
            ),
        ];
        for (value, ty) in cases {
            let bytes = Bytes::from(value_to_bytes("v", &value));
            assert_eq!(value_from_bytes(bytes, &ty), Ok(value));
        }
    }
}
