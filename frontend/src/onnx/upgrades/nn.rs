//! Layers: normalisation, dropout, pooling, recurrence, quantisation.

use super::{Form, Row, Step};
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, ElemType, Tensor};

pub(super) static ROWS: &[Row] = &[
    Row::new(&["LpPool", "GlobalLpPool"], 2, integer_p),
    Row::new(&["RNN", "GRU", "LSTM"], 7, drop_output_sequence),
    Row::new(&["Gemm"], 7, gemm_6),
    Row::new(&["BatchNormalization"], 7, batch_norm_6),
    Row::new(&["BatchNormalization"], 9, batch_norm_7),
    Row::new(&["BatchNormalization"], 14, batch_norm_9),
    Row::new(&["Dropout"], 7, dropout_6),
    Row::new(&["Dropout"], 12, dropout_7),
    Row::new(&["RoiAlign"], 16, roi_align_10),
    Row::new(&["GroupNormalization"], 21, group_norm_18),
];

fn integer_p(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    if let Some(p) = form.take_float("p")? {
        if p.fract() != 0.0 {
            return Err(OpError::new(format!(
                "`p` is {p}; only whole numbers are supported"
            )));
        }
        form.attrs.insert("p".into(), Attr::Int(p as i64));
    }
    Ok(Step::Keep)
}

/// Said whether `Y` is wanted, as its being named does now.
fn drop_output_sequence(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    form.attrs.remove("output_sequence");
    Ok(Step::Keep)
}

fn gemm_6(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    form.attrs.remove("broadcast");
    Ok(Step::Keep)
}

/// `is_test` is 0 by default, which asked for training; with one result it could only mean inference on
/// the given statistics in every runtime of the time when it is 1.
fn batch_norm_6(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    if form.take_int("is_test")?.unwrap_or(0) == 0 {
        form.attrs.insert("training_mode".into(), Attr::Int(1));
    }
    Ok(Step::Keep)
}

/// `spatial = 0` normalised every position by its own statistics, of shape `[C, D1, …]`.
fn batch_norm_7(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    if form.take_int("spatial")?.unwrap_or(1) != 0 {
        return Ok(Step::Keep);
    }
    if form.n_results > 1 || form.attrs.contains_key("training_mode") {
        return Err(OpError::new("training with `spatial = 0` is not supported"));
    }
    let epsilon = form.take_float("epsilon")?.unwrap_or(1e-5);
    let (x, scale, bias) = (form.operand(0)?, form.operand(1)?, form.operand(2)?);
    let (mean, var) = (form.operand(3)?, form.operand(4)?);
    let epsilon = b.scalar(b.elem(x)?, f64::from(epsilon));
    let centred = b.op("sub", &[x, mean])?;
    let var = b.op("add", &[var, epsilon])?;
    let deviation = b.op("sqrt", &[var])?;
    let unit = b.op("div", &[centred, deviation])?;
    let scaled = b.op("mul", &[unit, scale])?;
    Ok(Step::Done(vec![b.op("add", &[scaled, bias])?]))
}

/// More than one result meant training; the fourth and fifth were for the backward pass.
fn batch_norm_9(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    match form.n_results {
        0 | 1 => {}
        2 | 3 => form.default_attr("training_mode", 1i64),
        _ => {
            return Err(OpError::new(
                "results `saved_mean` and `saved_var` are not supported; remove them",
            ));
        }
    }
    Ok(Step::Keep)
}

/// Trains unless `is_test` is set.
fn dropout_6(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    if form.take_int("is_test")?.unwrap_or(0) == 0 {
        let training = b.constant(&Tensor::bool(true));
        form.set_operand(2, training);
    }
    Ok(Step::Keep)
}

fn dropout_7(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let ratio = form.take_float("ratio")?.unwrap_or(0.5);
    let ratio = b.scalar(ElemType::F32, f64::from(ratio));
    form.set_operand(1, ratio);
    Ok(Step::Keep)
}

fn roi_align_10(form: &mut Form, _: &mut Builder) -> Result<Step, OpError> {
    form.default_attr("coordinate_transformation_mode", "output_half_pixel");
    Ok(Step::Keep)
}

/// Scale and bias were per group; they are per channel now.
fn group_norm_18(form: &mut Form, b: &mut Builder) -> Result<Step, OpError> {
    let Some(Attr::Int(groups)) = form.attrs.get("num_groups").cloned() else {
        return Err(OpError::new("attribute `num_groups` is missing"));
    };
    let channels = b.shape(form.operand(0)?)?.get(1).and_then(|c| c.as_const());
    let channels = channels.ok_or_else(|| OpError::new("the number of channels must be known"))?;
    if groups <= 0 || channels % groups != 0 {
        return Err(OpError::new(format!(
            "{channels} channels do not divide into {groups} groups"
        )));
    }
    let one = b.ints(&[1]);
    let wide = b.ints(&[groups, channels / groups]);
    let flat = b.ints(&[channels]);
    for i in [1, 2] {
        let column = b.op("unsqueeze", &[form.operand(i)?, one])?;
        let each = b.op("expand", &[column, wide])?;
        let each = b.op("reshape", &[each, flat])?;
        form.set_operand(i, each);
    }
    Ok(Step::Keep)
}
