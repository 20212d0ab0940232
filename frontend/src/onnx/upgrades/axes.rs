//! Operators along axes: reductions, softmax, selection.

use super::{Form, Row, Step};
use lapidary_ir::Attr;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::{OpError, resolve_axis};

pub(super) static ROWS: &[Row] = &[
    Row::new(&["TopK"], 10, top_k_count),
    Row::new(&["Softmax", "LogSoftmax", "Hardmax"], 13, flattened_softmax),
    Row::new(&["ReduceSum"], 13, reduce_axes),
    Row::new(REDUCTIONS, 18, reduce_axes),
    Row::new(&["DFT"], 20, dft_axis),
];

const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

fn reduce_axes(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    form.ints_to_operand("axes", 1, b)?;
    Ok(Step::Keep)
}

fn top_k_count(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let k = form
        .take_int("k")?
        .ok_or_else(|| OpError::new("attribute `k` is missing"))?;
    let k = b.ints(&[k]);
    form.set_operand(1, k);
    Ok(Step::Keep)
}

/// Below 13 the operand was flattened to two dimensions at `axis` (1 if left out), and the function was
/// taken over the second.
fn flattened_softmax(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let x = form.operand(0)?;
    let axis = form.take_int("axis")?.unwrap_or(1);
    if let Some(rank) = b.ty(x).shape().map(<[_]>::len)
        && rank > 0
        && resolve_axis(axis, rank)? == rank - 1
    {
        form.attrs.insert("axis".into(), Attr::Int(-1));
        return Ok(Step::Keep);
    }
    let op = match form.op.as_str() {
        "Softmax" => "softmax",
        "LogSoftmax" => "log_softmax",
        _ => "hardmax",
    };
    let shape = b.op("shape", &[x])?;
    let flat = b.op_with("flatten", &[x], [("axis", Attr::Int(axis))])?;
    let y = b.op_with(op, &[flat], [("axis", Attr::Int(-1))])?;
    Ok(Step::Done(vec![b.op("reshape", &[y, shape])?]))
}

/// `axis` was an attribute, and 1 if left out.
fn dft_axis(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let axis = form.take_int("axis")?.unwrap_or(1);
    let axis = b.constant(&lapidary_ir::Tensor::int(axis));
    form.set_operand(2, axis);
    Ok(Step::Keep)
}
