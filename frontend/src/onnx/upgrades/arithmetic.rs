//! Element-wise operators: explicit broadcasting, limits as attributes, types as text.

use super::{Form, Row, Step};
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, ElemType};

pub(super) static ROWS: &[Row] = &[
    Row::new(CONSUMING, 6, drop_consumed_inputs),
    Row::new(&["Cast"], 6, cast_by_name),
    Row::new(&["Selu"], 6, selu_1),
    Row::new(BROADCASTING, 7, explicit_broadcast),
    Row::new(&["PRelu"], 7, prelu_6),
    Row::new(&["Clip"], 11, clip_limits),
];

const CONSUMING: &[&str] = &[
    "Abs",
    "Add",
    "Ceil",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Exp",
    "Floor",
    "HardSigmoid",
    "InstanceNormalization",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Selu",
    "Sigmoid",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
    "BatchNormalization",
    "Reshape",
];

const BROADCASTING: &[&str] = &[
    "Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor",
];

/// `consumed_inputs` only allowed the operator to overwrite its operands.
fn drop_consumed_inputs(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    form.attrs.remove("consumed_inputs");
    Ok(Step::Keep)
}

/// `to` was the type's name.
fn cast_by_name(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    let Some(Attr::Str(name)) = form.attrs.get("to") else {
        return Err(OpError::new("attribute `to` must be text in this version"));
    };
    let elem = match name.as_str() {
        "FLOAT" => ElemType::F32,
        "DOUBLE" => ElemType::F64,
        "FLOAT16" => ElemType::F16,
        "INT8" => ElemType::I8,
        "INT16" => ElemType::I16,
        "INT32" => ElemType::I32,
        "INT64" => ElemType::I64,
        "UINT8" => ElemType::U8,
        "UINT16" => ElemType::U16,
        "UINT32" => ElemType::U32,
        "UINT64" => ElemType::U64,
        "BOOL" => ElemType::Bool,
        other => return Err(OpError::new(format!("cannot cast to {other:?}"))),
    };
    form.attrs.insert("to".into(), Attr::Elem(elem));
    Ok(Step::Keep)
}

/// The first version had rounded defaults.
fn selu_1(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    form.default_attr("alpha", 1.6732f32);
    form.default_attr("gamma", 1.0507f32);
    Ok(Step::Keep)
}

/// `broadcast = 1, axis = k` aligned the second operand's dimensions with the first's from `k` on.
fn explicit_broadcast(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let broadcast = form.take_int("broadcast")?.unwrap_or(0) != 0;
    let Some(axis) = form.take_int("axis")?.filter(|_| broadcast) else {
        return Ok(Step::Keep);
    };
    let (x, y) = (form.operand(0)?, form.operand(1)?);
    let (rank, inner) = (b.shape(x)?.len(), b.shape(y)?.len());
    let axis = lapidary_ir::ops::resolve_axis(axis, rank)?;
    let after = rank
        .checked_sub(axis + inner)
        .ok_or_else(|| OpError::new("`axis` leaves no room for the second operand"))?;
    if after > 0 {
        let axes: Vec<i64> = (inner..inner + after).map(|i| i as i64).collect();
        let axes = b.ints(&axes);
        let y = b.op("unsqueeze", &[y, axes])?;
        form.set_operand(1, y);
    }
    Ok(Step::Keep)
}

/// A slope of one dimension belonged to axis 1, not to the last one.
fn prelu_6(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let (x, slope) = (form.operand(0)?, form.operand(1)?);
    let (rank, shape) = (b.shape(x)?.len(), b.shape(slope)?);
    if shape.len() == 1 && shape[0].as_const() != Some(1) && rank > 2 {
        let axes: Vec<i64> = (1..rank as i64 - 1).collect();
        let axes = b.ints(&axes);
        let slope = b.op("unsqueeze", &[slope, axes])?;
        form.set_operand(1, slope);
    }
    Ok(Step::Keep)
}

/// Limits were attributes.
fn clip_limits(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let elem = b.elem(form.operand(0)?)?;
    for (i, name) in [(1, "min"), (2, "max")] {
        if let Some(v) = form.take_float(name)? {
            let value = b.scalar(elem, f64::from(v));
            form.set_operand(i, value);
        }
    }
    Ok(Step::Keep)
}
