//! Linear models.

use super::super::{AttrDef, AttrKind, Default, Eval, EvalCtx, OpDef, OpError, Operand, Tolerance, checked_count};
use super::{Labels, POST_TRANSFORM, argmax, batch, classifier_types, features, post_transform, wide};
use crate::tensor::{Tensor, Value};
use crate::{Dim, ElemType, Type};

pub(super) static LINEAR_REGRESSOR: OpDef = OpDef {
    name: "linear_regressor",
    summary: "features times coefficients, plus intercepts",
    source: "ONNX LinearRegressor-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("coefficients", AttrKind::Floats, Default::Absent, "[targets, F], row-major"),
        AttrDef::new("intercepts", AttrKind::Floats, Default::Absent, "one per target"),
        POST_TRANSFORM,
        AttrDef::new("targets", AttrKind::Int, Default::Int(1), "number of targets"),
    ],
    infer: |ctx| Ok(vec![Type::tensor(ElemType::F32, [batch(ctx)?, Dim::from(ctx.int("targets")?.max(0))])]),
    eval: Eval::Direct(|ctx| {
        let targets = usize::try_from(ctx.int("targets")?).map_err(|_| OpError::new("`targets` must not be negative"))?;
        let (mut scores, rows) = scores(ctx, Some(targets))?;
        for row in scores.chunks_mut(targets.max(1)) {
            post_transform(&ctx.str("post_transform"), row)?;
        }
        Ok(vec![Tensor::from_f64(ElemType::F32, [rows, targets], scores).into()])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

pub(super) static LINEAR_CLASSIFIER: OpDef = OpDef {
    name: "linear_classifier",
    summary: "the class with the best linear score, and all scores",
    source: "ONNX LinearClassifier-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    results: &[Operand::One("y"), Operand::One("z")],
    attrs: &[
        AttrDef::new("classlabels_ints", AttrKind::Ints, Default::Absent, "names of the classes"),
        AttrDef::new("classlabels_strings", AttrKind::Strs, Default::Absent, "names of the classes"),
        AttrDef::new("coefficients", AttrKind::Floats, Default::Required, "[classes, F], row-major"),
        AttrDef::new("intercepts", AttrKind::Floats, Default::Absent, "one per class"),
        AttrDef::new("multi_class", AttrKind::Int, Default::Int(0), "not used, as in ONNX"),
        POST_TRANSFORM,
    ],
    infer: |ctx| {
        let labels = Labels::new(ctx.ints("classlabels_ints"), ctx.strs("classlabels_strings"));
        let columns = match ctx.shape(0)?.and_then(<[Dim]>::last).and_then(Dim::as_const) {
            Some(f) if f > 0 => match ctx.floats("coefficients").len() as i64 / f {
                1 if labels.len() == 2 => Dim::from(2i64),
                n => Dim::from(n),
            },
            _ => ctx.fresh_dim(),
        };
        classifier_types(ctx, &labels, columns)
    },
    eval: Eval::Direct(linear_classifier),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Features times coefficients plus intercepts, and the number of rows; `width` columns, else as many as
/// the coefficients make.
fn scores(ctx: &EvalCtx, width: Option<usize>) -> Result<(Vec<f64>, usize), OpError> {
    let (x, rows, f) = features(ctx)?;
    let (w, bias) = (wide(ctx.floats("coefficients")), wide(ctx.floats("intercepts")));
    let width = width.unwrap_or(w.len().checked_div(f).unwrap_or(0));
    if Some(w.len()) != width.checked_mul(f) || !(bias.is_empty() || bias.len() == width) {
        return Err(OpError::new(format!("coefficients and intercepts do not fit {f} features")));
    }
    let mut out = Vec::with_capacity(checked_count(&[rows, width])?);
    for r in 0..rows {
        for t in 0..width {
            let dot: f64 = (0..f).map(|k| x[r * f + k] * w[t * f + k]).sum();
            out.push(dot + bias.get(t).copied().unwrap_or(0.0));
        }
    }
    Ok((out, rows))
}

fn linear_classifier(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let labels = Labels::new(ctx.ints("classlabels_ints"), ctx.strs("classlabels_strings"));
    let (mut values, rows) = scores(ctx, None)?;
    let mut width = values.len().checked_div(rows).unwrap_or(0);
    if width == 1 && labels.len() == 2 {
        // One score tells two classes apart by its sign.
        values = values.into_iter().flat_map(|s| [-s, s]).collect();
        width = 2;
    }
    let transform = ctx.str("post_transform");
    let mut classes = vec![];
    for row in values.chunks_mut(width.max(1)) {
        post_transform(&transform, row)?;
        classes.push(argmax(row));
    }
    let labels = if width == 1 {
        let threshold = if transform == "NONE" { 0.0 } else { 0.5 };
        let Labels::Ints(names) = &labels else {
            return Err(OpError::new("one score needs integer class labels"));
        };
        let name = names.first().copied().unwrap_or(1);
        let out = values.iter().map(|&s| if s >= threshold { name.into() } else { 0 }).collect();
        Tensor::from_int(ElemType::I64, [rows], out)
    } else {
        labels.tensor(&classes)
    };
    Ok(vec![labels.into(), Tensor::from_f64(ElemType::F32, [rows, width], values).into()])
}
