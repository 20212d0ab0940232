//! Short ways to write values and run ops, for unit tests.

use super::eval_op;
use crate::tensor::{Data, Tensor, Value};
use crate::{Attr, ElemType};

/// An `f32` tensor.
pub fn f32s(shape: &[usize], values: &[f64]) -> Value {
    Tensor::from_f64(ElemType::F32, shape, values.to_vec()).into()
}

/// An `i64` tensor.
pub fn i64s(shape: &[usize], values: &[i128]) -> Value {
    Tensor::from_int(ElemType::I64, shape, values.to_vec()).into()
}

/// A `bool` scalar.
pub fn truth(value: bool) -> Value {
    Tensor::bool(value).into()
}

/// A text tensor.
pub fn texts(shape: &[usize], values: &[&str]) -> Value {
    let values = values.iter().map(|v| (*v).to_owned()).collect();
    Tensor::new(ElemType::String, shape, Data::Str(values)).into()
}

/// Runs `op` and gives its first `n` results, or the reason why there are none.
pub fn run(
    op: &str,
    operands: &[Value],
    attrs: &[(&str, Attr)],
    n: usize,
) -> Result<Vec<Value>, String> {
    let operands: Vec<_> = operands.iter().cloned().map(Some).collect();
    let attrs = attrs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), v.clone()))
        .collect();
    eval_op(op, &operands, attrs, n).map_err(|e| e.reason)
}

/// Checks that `op` gives exactly `expected`.
pub fn gives(op: &str, operands: &[Value], attrs: &[(&str, Attr)], expected: &[Value]) {
    let got = run(op, operands, attrs, expected.len());
    assert_eq!(got.as_deref(), Ok(expected), "{op} {attrs:?}");
}

/// Checks that `op` refuses, and says `reason`.
pub fn refuses(op: &str, operands: &[Value], attrs: &[(&str, Attr)], reason: &str) {
    match run(op, operands, attrs, 1) {
        Ok(v) => panic!("{op} gives {v:?}"),
        Err(e) => assert!(e.contains(reason), "{op}: {e}"),
    }
}
