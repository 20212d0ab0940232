//! `TypeProto` to types.

use super::proto::{Dimension, TensorTypeProto, TypeProto, ValueInfoProto};
use super::tensor::elem_type;
use lapidary_ir::types::TensorType;
use lapidary_ir::{Dim, Type};
use std::collections::BTreeMap;

/// The type, or why it cannot be expressed; see [`read_type`].
pub fn value_type(
    proto: &TypeProto,
    name: &str,
    dims: &BTreeMap<String, i64>,
) -> Result<Type, String> {
    let ty = read_type(proto, name, dims)?;
    ty.check()?;
    Ok(ty)
}

/// Dimension `i` of `name` without a name or number becomes the
/// symbol `?name_i`; symbols named in `dims` become numbers.
fn read_type(proto: &TypeProto, name: &str, dims: &BTreeMap<String, i64>) -> Result<Type, String> {
    let inner = |e: &Option<Box<TypeProto>>| match e {
        Some(t) => read_type(t, name, dims).map(Box::new),
        None => Err("element type is missing".to_owned()),
    };
    if let Some(t) = &proto.tensor_type {
        tensor_type(t, name, dims).map(Type::Tensor)
    } else if let Some(t) = &proto.sequence_type {
        inner(&t.elem_type).map(Type::Sequence)
    } else if let Some(t) = &proto.optional_type {
        inner(&t.elem_type).map(Type::Optional)
    } else if proto.map_type.is_some() {
        Err("maps are not supported; feed their keys and values as tensors".into())
    } else if proto.sparse_tensor_type.is_some() {
        Err("sparse tensors as inputs or outputs are not supported; use dense ones".into())
    } else if let Some(t) = &proto.opaque_type {
        Err(format!(
            "opaque type `{}.{}` is not supported",
            t.domain, t.name
        ))
    } else {
        Err("type is missing".into())
    }
}

fn tensor_type(
    proto: &TensorTypeProto,
    name: &str,
    dims: &BTreeMap<String, i64>,
) -> Result<TensorType, String> {
    let elem = elem_type(proto.elem_type)?;
    let Some(shape) = &proto.shape else {
        return Ok(TensorType::unranked(elem));
    };
    let dim = |(i, d): (usize, &Dimension)| match symbol(d, name, i) {
        Ok(number) => Dim::from(number),
        Err(symbol) => match dims.get(&symbol) {
            Some(&number) => Dim::from(number),
            None => Dim::sym(&symbol),
        },
    };
    Ok(TensorType {
        elem,
        shape: Some(shape.dim.iter().enumerate().map(dim).collect()),
    })
}

/// The number of dimension `i` of `name`, or the symbol that stands for it.
fn symbol(d: &Dimension, name: &str, i: usize) -> Result<i64, String> {
    match (d.dim_value, d.dim_param.as_deref()) {
        (Some(n), _) if n >= 0 => Ok(n),
        (_, Some(s)) if !s.is_empty() && !s.starts_with('?') => Err(s.to_owned()),
        _ => Err(format!("?{name}_{i}")),
    }
}

/// Symbols in the declared shape of a value.
pub fn symbols(port: &ValueInfoProto) -> Vec<String> {
    let mut ty = port.r#type.as_ref();
    while let Some(of) = ty.and_then(|t| t.sequence_type.as_ref().or(t.optional_type.as_ref())) {
        ty = of.elem_type.as_deref();
    }
    let tensor = ty.and_then(|t| t.tensor_type.as_ref());
    let shape = tensor.and_then(|t| t.shape.as_ref());
    let dims = shape.iter().flat_map(|s| &s.dim).enumerate();
    dims.filter_map(|(i, d)| symbol(d, &port.name, i).err())
        .collect()
}

/// Checks what a model declares about a value against what was inferred; gives the better of the two.
/// Where inference knows a dimension as a number, a different declared number is an error.
pub fn check_declared(inferred: &Type, declared: &Type) -> Result<Type, String> {
    let mismatch = || format!("declared as `{declared}`, but computed as `{inferred}`");
    match (inferred, declared) {
        (Type::Tensor(i), Type::Tensor(d)) => {
            if i.elem != d.elem {
                return Err(mismatch());
            }
            match (&i.shape, &d.shape) {
                (None, _) => Ok(declared.clone()),
                (_, None) => Ok(inferred.clone()),
                (Some(a), Some(b)) => {
                    let differ = |(x, y): (&Dim, &Dim)| matches!((x.as_const(), y.as_const()), (Some(x), Some(y)) if x != y);
                    if a.len() != b.len() || a.iter().zip(b).any(differ) {
                        return Err(mismatch());
                    }
                    Ok(inferred.clone())
                }
            }
        }
        (Type::Sequence(i), Type::Sequence(d)) => {
            Ok(Type::Sequence(Box::new(check_declared(i, d)?)))
        }
        (Type::Optional(i), Type::Optional(d)) => {
            Ok(Type::Optional(Box::new(check_declared(i, d)?)))
        }
        // ONNX lets a plain value stand for a filled optional; it is an optional still.
        (Type::Optional(i), d) => Ok(Type::Optional(Box::new(check_declared(i, d)?))),
        _ => Err(mismatch()),
    }
}
