//! Values of the reference evaluator and of the runtime: the same things, held differently.

use lapidary_abi::program::{Port, ValueType};
use lapidary_ir::tensor::{Data, Tensor, Value};
use lapidary_ir::{Module, Type};
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::{RunError, value};

/// A value for the runtime.
pub fn to_runtime(v: &Value) -> Result<value::Value, RunError> {
    Ok(match v {
        Value::Tensor(t) => value::Value::Tensor(match t.data() {
            Data::Str(s) => value::Tensor::from_strings(t.shape().to_vec(), s.clone())?,
            _ => {
                let bytes = t.to_bytes().unwrap_or_default();
                value::Tensor::from_bytes(t.elem(), t.shape().to_vec(), Bytes::copy_of(&bytes)?)?
            }
        }),
        Value::Sequence(s) => {
            value::Value::Sequence(s.iter().map(to_runtime).collect::<Result<_, _>>()?)
        }
        Value::Optional(o) => value::Value::Optional(match o {
            Some(v) => Some(Box::new(to_runtime(v)?)),
            None => None,
        }),
    })
}

/// A value for the evaluator; `None` if a tensor's bytes are not of its type.
pub fn to_evaluator(v: &value::Value) -> Option<Value> {
    Some(match v {
        value::Value::Tensor(t) => {
            let view = t.view();
            let shape = view.dims().to_vec();
            Value::Tensor(if t.elem() == lapidary_ir::ElemType::String {
                Tensor::new(t.elem(), shape, Data::Str(view.strings().to_vec()))
            } else {
                Tensor::from_bytes(t.elem(), shape, view.bytes())?
            })
        }
        value::Value::Sequence(s) => {
            Value::Sequence(s.iter().map(to_evaluator).collect::<Option<_>>()?)
        }
        value::Value::Optional(o) => Value::Optional(match o {
            Some(v) => Some(Box::new(to_evaluator(v)?)),
            None => None,
        }),
    })
}

/// The type of a run-time value.
pub fn type_of(v: &value::Value) -> Option<Type> {
    match v {
        value::Value::Tensor(t) => {
            let dims = t.dims().iter().map(|&n| n as i64);
            Some(Type::tensor(t.elem(), dims))
        }
        value::Value::Sequence(s) => Some(Type::Sequence(Box::new(type_of(s.first()?)?))),
        value::Value::Optional(o) => Some(Type::Optional(Box::new(type_of(o.as_deref()?)?))),
    }
}

/// What a module takes, for readers of input files (dimensions are not stated).
pub fn input_ports(module: &Module) -> Vec<Port> {
    let port = |(n, &v): (usize, &lapidary_ir::ValueId)| Port {
        name: module.value(v).name.clone(),
        ty: value_type(&module.value(v).ty),
        value: n as u32,
    };
    module.top().inputs.iter().enumerate().map(port).collect()
}

/// What a module gives, for writers of output files (dimensions are not stated).
pub fn output_ports(module: &Module) -> Vec<Port> {
    let port = |(n, &v): (usize, &lapidary_ir::ValueId)| {
        let name = module.output_names.get(n).cloned();
        Port {
            name: name.unwrap_or_else(|| module.value(v).name.clone()),
            ty: value_type(&module.value(v).ty),
            value: n as u32,
        }
    };
    module.top().outputs.iter().enumerate().map(port).collect()
}

fn value_type(ty: &Type) -> ValueType {
    match ty {
        Type::Tensor(t) => ValueType::Tensor {
            elem: t.elem,
            dims: None,
        },
        Type::Sequence(t) => ValueType::Sequence(Box::new(value_type(t))),
        Type::Optional(t) => ValueType::Optional(Box::new(value_type(t))),
    }
}
