//! Features moved, scaled, thresholded and filled in.

use super::super::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance};
use super::{features, wide};
use crate::tensor::{Data, Tensor, Value};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type};

pub(super) static BINARIZER: OpDef = OpDef {
    name: "binarizer",
    summary: "1 where the element is above the threshold, else 0",
    source: "ONNX Binarizer-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("threshold", AttrKind::Float, Default::Float(0.0), "threshold")],
    infer: |ctx| {
        ctx.elem(0)?;
        Ok(vec![ctx.ty(0)?.clone()])
    },
    eval: Eval::Direct(|ctx| {
        let (x, t) = (ctx.tensor(0)?, f64::from(ctx.float("threshold").unwrap_or(0.0)));
        let data = match x.data() {
            Data::Float(v) => Data::Float(v.iter().map(|&v| f64::from(u8::from(v > t))).collect()),
            Data::Int(v) => Data::Int(v.iter().map(|&v| i128::from(v as f64 > t)).collect()),
            _ => return Err(OpError::new("takes numbers")),
        };
        Ok(vec![Tensor::new(x.elem(), x.shape(), data).into()])
    }),
    ..OpDef::BASE
};

pub(super) static SCALER: OpDef = OpDef {
    name: "scaler",
    summary: "(x - offset) * scale, by column",
    source: "ONNX Scaler-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("offset", AttrKind::Floats, Default::Absent, "subtracted first; one, or one per column"),
        AttrDef::new("scale", AttrKind::Floats, Default::Absent, "multiplied then; one, or one per column"),
    ],
    infer: floats_of_same_shape,
    eval: Eval::Direct(|ctx| {
        let (v, _, columns) = features(ctx)?;
        let list = |name: &str, otherwise: f64| match wide(ctx.floats(name)) {
            v if v.is_empty() => Ok(vec![otherwise]),
            v if v.len() == 1 || v.len() == columns => Ok(v),
            v => Err(OpError::new(format!("`{name}` has {} entries for {columns} columns", v.len()))),
        };
        let (offset, scale) = (list("offset", 0.0)?, list("scale", 1.0)?);
        let at = |list: &[f64], i: usize| list[i % columns % list.len()];
        let out = v.iter().enumerate().map(|(i, v)| (v - at(&offset, i)) * at(&scale, i)).collect();
        Ok(vec![Tensor::from_f64(ElemType::F32, ctx.tensor(0)?.shape(), out).into()])
    }),
    tolerance: Tolerance::Rounding(2),
    ..OpDef::BASE
};

pub(super) static NORMALIZER: OpDef = OpDef {
    name: "normalizer",
    summary: "divides each row by its largest magnitude (MAX), sum of magnitudes (L1) or length (L2)",
    source: "ONNX Normalizer-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("norm", AttrKind::Str, Default::Str("MAX"), "MAX, L1 or L2")],
    infer: floats_of_same_shape,
    eval: Eval::Direct(|ctx| {
        let (v, _, columns) = features(ctx)?;
        let norm: fn(&[f64]) -> f64 = match ctx.str("norm").as_str() {
            "MAX" => |r| r.iter().fold(0.0, |a: f64, v| a.max(v.abs())),
            "L1" => |r| r.iter().map(|v| v.abs()).sum(),
            "L2" => |r| r.iter().map(|v| v * v).sum::<f64>().sqrt(),
            other => return Err(OpError::new(format!("`norm` must be MAX, L1 or L2, found `{other}`"))),
        };
        let rows = v.chunks(columns.max(1));
        let out = rows.flat_map(|r| r.iter().map(move |v| v / norm(r).max(1e-30))).collect();
        Ok(vec![Tensor::from_f64(ElemType::F32, ctx.tensor(0)?.shape(), out).into()])
    }),
    tolerance: Tolerance::Rounding(4),
    ..OpDef::BASE
};

pub(super) static IMPUTER: OpDef = OpDef {
    name: "imputer",
    summary: "replaces a given value (or NaN) by a value per column",
    source: "ONNX Imputer-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("imputed_value_floats", AttrKind::Floats, Default::Absent, "put in; one, or one per column"),
        AttrDef::new("imputed_value_int64s", AttrKind::Ints, Default::Absent, "put in; one, or one per column"),
        AttrDef::new("replaced_value_float", AttrKind::Float, Default::Float(0.0), "taken out"),
        AttrDef::new("replaced_value_int64", AttrKind::Int, Default::Int(0), "taken out"),
    ],
    infer: |ctx| {
        ctx.elem(0)?;
        Ok(vec![ctx.ty(0)?.clone()])
    },
    eval: Eval::Direct(imputer),
    ..OpDef::BASE
};

fn imputer(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let columns = x.shape().last().copied().unwrap_or(1).max(1);
    let fits = |n: usize| n == 1 || n == columns;
    let wrong = || OpError::new("needs one imputed value, or one per column, of the features' kind");
    let data = match x.data() {
        Data::Float(v) => {
            let (with, out) = (wide(ctx.floats("imputed_value_floats")), f64::from(ctx.float("replaced_value_float").unwrap_or(0.0)));
            if !fits(with.len()) {
                return Err(wrong());
            }
            let hit = |v: f64| v == out || v.is_nan() && out.is_nan();
            Data::Float(v.iter().enumerate().map(|(i, &v)| if hit(v) { with[i % columns % with.len()] } else { v }).collect())
        }
        Data::Int(v) => {
            let (with, out) = (ctx.ints("imputed_value_int64s").unwrap_or_default(), i128::from(ctx.int("replaced_value_int64")?));
            if !fits(with.len()) {
                return Err(wrong());
            }
            Data::Int(v.iter().enumerate().map(|(i, &v)| if v == out { with[i % columns % with.len()].into() } else { v }).collect())
        }
        _ => return Err(wrong()),
    };
    let out = match data {
        Data::Float(v) => Tensor::from_f64(x.elem(), x.shape(), v),
        Data::Int(v) => Tensor::from_int(x.elem(), x.shape(), v),
        other => Tensor::new(x.elem(), x.shape(), other),
    };
    Ok(vec![out.into()])
}

fn floats_of_same_shape(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    ctx.elem(0)?;
    let shape = ctx.shape(0)?.map(<[Dim]>::to_vec);
    Ok(vec![Type::Tensor(TensorType { elem: ElemType::F32, shape })])
}
