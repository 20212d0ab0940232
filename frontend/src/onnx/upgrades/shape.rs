//! Operators that move elements: shapes, axes and positions that were attributes became operands.

use super::{Form, Row, Step, floats};
use lapidary_ir::Attr;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;

pub(super) static ROWS: &[Row] = &[
    Row::new(&["Pad"], 2, pad_1),
    Row::new(&["Concat"], 4, concat_1),
    Row::new(&["Reshape"], 5, reshape_1),
    Row::new(&["Tile"], 6, tile_1),
    Row::new(&["Upsample"], 7, upsample_1),
    Row::new(&["Upsample"], 9, upsample_7),
    Row::new(&["Scan"], 9, scan_8),
    Row::new(&["Slice"], 10, slice_1),
    Row::new(&["Upsample"], i64::MAX, upsample),
    Row::new(&["Resize"], 11, resize_10),
    Row::new(&["Pad"], 11, pad_2),
    Row::new(&["Scatter"], i64::MAX, scatter),
    Row::new(&["Squeeze", "Unsqueeze"], 13, squeeze_axes),
    Row::new(&["Split"], 13, split_sizes),
    Row::new(&["Split"], 18, split_count),
    Row::new(&["GridSample"], 20, grid_sample_16),
    Row::new(&["Resize"], i64::MAX, drop_empty_resize_operands),
];

fn pad_1(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    if let Some(pads) = form.attrs.remove("paddings") {
        form.attrs.insert("pads".into(), pads);
    }
    Ok(Step::Keep)
}

fn pad_2(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    form.ints_to_operand("pads", 1, b)?;
    let elem = b.elem(form.operand(0)?)?;
    if let Some(v) = form.take_float("value")? {
        let value = b.scalar(elem, f64::from(v));
        form.set_operand(2, value);
    }
    Ok(Step::Keep)
}

fn concat_1(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    form.default_attr("axis", 1i64);
    Ok(Step::Keep)
}

fn reshape_1(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    form.ints_to_operand("shape", 1, b)?;
    Ok(Step::Keep)
}

fn tile_1(_: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    Err(OpError::new(
        "version 1, which repeats along one axis, is not supported",
    ))
}

fn scan_8(_: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    Err(OpError::new(
        "version 8, which scans batches, is not supported",
    ))
}

fn slice_1(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    for (i, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
        form.ints_to_operand(name, i, b)?;
    }
    Ok(Step::Keep)
}

fn squeeze_axes(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    form.ints_to_operand("axes", 1, b)?;
    Ok(Step::Keep)
}

fn split_sizes(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    form.ints_to_operand("split", 1, b)?;
    Ok(Step::Keep)
}

/// Without sizes, the number of results said how many equal parts there are.
fn split_count(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    if form.operand(1).is_err() {
        form.default_attr("num_outputs", form.n_results as i64);
    }
    Ok(Step::Keep)
}

fn scatter(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    form.op = "ScatterElements".into();
    Ok(Step::Keep)
}

fn upsample_1(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    let mut scale = |name: &str| {
        let v = form.take_float(name)?;
        v.ok_or_else(|| OpError::new(format!("attribute `{name}` is missing")))
    };
    let scales = vec![1.0, 1.0, scale("height_scale")?, scale("width_scale")?];
    form.default_attr("scales", Attr::Floats(scales));
    Ok(Step::Keep)
}

fn upsample_7(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let scales = form
        .take_floats("scales")?
        .ok_or_else(|| OpError::new("attribute `scales` is missing"))?;
    let scales = floats(b, &scales);
    form.set_operand(1, scales);
    Ok(Step::Keep)
}

/// `Upsample` is the oldest form of `Resize`.
fn upsample(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    form.op = "Resize".into();
    resize_10(form, b)
}

/// Positions were scaled without a shift and rounded down, and there was no region of interest.
fn resize_10(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    let scales = form.operand(1)?;
    form.operands = vec![Some(form.operand(0)?), None, Some(scales)];
    if form.attrs.get("mode") == Some(&Attr::from("bilinear")) {
        form.attrs.insert("mode".into(), Attr::from("linear"));
    }
    form.attrs
        .insert("coordinate_transformation_mode".into(), "asymmetric".into());
    form.attrs.insert("nearest_mode".into(), "floor".into());
    Ok(Step::Keep)
}

/// `roi` and `scales` may be given as empty tensors, which means left out.
fn drop_empty_resize_operands(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    for i in [1, 2] {
        let empty = |v| b.module.as_constant(v).is_some_and(|c| c.shape() == [0]);
        if form.operands.get(i).copied().flatten().is_some_and(empty) {
            form.operands[i] = None;
        }
    }
    Ok(Step::Keep)
}

fn grid_sample_16(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    let renamed = match form.attrs.get("mode") {
        Some(Attr::Str(m)) if m == "bilinear" => "linear",
        Some(Attr::Str(m)) if m == "bicubic" => "cubic",
        _ => return Ok(Step::Keep),
    };
    form.attrs.insert("mode".into(), renamed.into());
    Ok(Step::Keep)
}
