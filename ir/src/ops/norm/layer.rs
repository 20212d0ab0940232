//! Normalization over the trailing axes.

use crate::builder::Builder;
use crate::ops::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance, broadcast_dims,
    broadcast_shapes, resolve_axis,
};
use crate::ops::elementwise::broadcast_index;
use crate::tensor::{Tensor, Value, count};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type, ValueId};

pub(super) const AXIS: AttrDef = AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "first axis of the normalized ones");
pub(super) const EPSILON: AttrDef =
    AttrDef::new("epsilon", AttrKind::Float, Default::Float(1e-5), "added to the variance");
pub(super) const STASH_TYPE: AttrDef =
    AttrDef::new("stash_type", AttrKind::Elem, Default::Elem(ElemType::F32), "type of the statistics");

/// Layer normalization.
pub static LAYER_NORMALIZATION: OpDef = OpDef {
    name: "layer_normalization",
    summary: "(x - mean) / sqrt(variance + epsilon) * scale + b over the axes from `axis` on",
    source: "ONNX LayerNormalization-17; Layer Normalization (arXiv 1607.06450)",
    operands: &[Operand::One("x"), Operand::One("scale"), Operand::Optional("b")],
    results: &[Operand::One("y"), Operand::Optional("mean"), Operand::Optional("inv_std_dev")],
    attrs: &[AXIS, EPSILON, STASH_TYPE],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        let stash = statistics(ctx)?;
        Ok(vec![normalized(ctx, elem)?, stash.clone(), stash])
    },
    eval: Eval::Direct(|ctx| eval(ctx, true)),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Normalization by the root mean square.
pub static RMS_NORMALIZATION: OpDef = OpDef {
    name: "rms_normalization",
    summary: "x / sqrt(mean(x^2) + epsilon) * scale over the axes from `axis` on",
    source: "ONNX RMSNormalization-23; Root Mean Square Layer Normalization (arXiv 1910.07467)",
    operands: &[Operand::One("x"), Operand::One("scale")],
    attrs: &[AXIS, EPSILON, STASH_TYPE],
    infer: |ctx| Ok(vec![normalized(ctx, ctx.elem(1)?)?]),
    eval: Eval::Direct(|ctx| eval(ctx, false)),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// ONNX Runtime's name for normalization by the root mean square.
pub static SIMPLIFIED_LAYER_NORMALIZATION: OpDef = OpDef {
    name: "simplified_layer_normalization",
    summary: "x / sqrt(mean(x^2) + epsilon) * scale, and the factor",
    source: "ONNX Runtime SimplifiedLayerNormalization-1",
    operands: &[Operand::One("x"), Operand::One("scale")],
    results: &[Operand::One("y"), Operand::Optional("inv_std_var")],
    attrs: &[AXIS, EPSILON, STASH_TYPE],
    infer: |ctx| Ok(vec![normalized(ctx, ctx.elem(1)?)?, statistics(ctx)?]),
    decompose: Some(|b, node| {
        let (x, scale) = (node.need(0)?, node.need(1)?);
        let (axis, eps) = (node.int("axis")?, node.float("epsilon").unwrap_or(1e-5));
        let stash = node.elem_attr("stash_type").unwrap_or(ElemType::F32);
        let attrs = [
            ("axis", axis.into()),
            ("epsilon", (eps as f32).into()),
            ("stash_type", stash.into()),
        ];
        let mut out = vec![b.op_with("rms_normalization", &[x, scale], attrs)?];
        if node.results.len() > 1 {
            let wide = b.cast(x, stash)?;
            out.push(inverse_rms(b, wide, axis, eps)?);
        }
        Ok(out)
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// `1 / sqrt(mean(x^2) + epsilon)` over the axes from `axis` on.
pub(super) fn inverse_rms(b: &mut Builder, x: ValueId, axis: i64, epsilon: f64) -> Result<ValueId, OpError> {
    let rank = b.shape(x)?.len();
    let axes: Vec<i64> = (resolve_axis(axis, rank)? as i64..rank as i64).collect();
    let square = b.op("mul", &[x, x])?;
    let mean = b.reduce("reduce_mean", square, &axes, true)?;
    let eps = b.lit(mean, epsilon)?;
    let sum = b.op("add", &[mean, eps])?;
    let root = b.op("sqrt", &[sum])?;
    b.op("reciprocal", &[root])
}

fn normalized(ctx: &InferCtx, elem: ElemType) -> Result<Type, OpError> {
    if !elem.is_float() || !ctx.elem(0)?.is_float() {
        return Err(OpError::new(format!("is not defined for {}", ctx.elem(0)?)));
    }
    let shape = ctx.shape(0)?.map(<[_]>::to_vec);
    if let Some(shape) = &shape {
        let axis = resolve_axis(ctx.int("axis")?, shape.len())?;
        for i in 1..3 {
            if ctx.has(i)
                && let Some(own) = ctx.shape(i)?
                && broadcast_dims(own, &shape[axis..]).is_err()
                && broadcast_dims(own, shape).is_err()
            {
                return Err(OpError::new(format!("operand {i} does not broadcast to the normalized axes")));
            }
        }
    }
    Ok(Type::Tensor(TensorType { elem, shape }))
}

fn statistics(ctx: &InferCtx) -> Result<Type, OpError> {
    let elem = ctx.elem_attr("stash_type").unwrap_or(ElemType::F32);
    Ok(match ctx.shape(0)? {
        Some(shape) => {
            let axis = resolve_axis(ctx.int("axis")?, shape.len())?;
            let kept = shape.iter().enumerate();
            Type::tensor(elem, kept.map(|(i, d)| if i < axis { d.clone() } else { Dim::from(1i64) }))
        }
        None => Type::unranked(elem),
    })
}

fn eval(ctx: &EvalCtx, centred: bool) -> Result<Vec<Value>, OpError> {
    let (x, scale) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let axis = resolve_axis(ctx.int("axis")?, x.rank())?;
    let eps = f64::from(ctx.float("epsilon").unwrap_or(1e-5));
    let (Some(xs), Some(scales)) = (x.floats(), scale.floats()) else {
        return Err(OpError::new(format!("is not defined for {}", x.elem())));
    };
    let bias = ctx.tensor_opt(2);
    for operand in [Some(scale), bias].into_iter().flatten() {
        if broadcast_shapes(operand.shape(), x.shape())? != x.shape() {
            return Err(OpError::new("scale and bias must broadcast to the operand"));
        }
    }
    let n = count(&x.shape()[axis..]);
    let stash = ctx.elem_attr("stash_type").unwrap_or(ElemType::F32);
    let elem = if centred { x.elem() } else { scale.elem() };
    let at_scale = broadcast_index(scale.shape(), x.shape());
    let at_bias = bias.map(|b| (broadcast_index(b.shape(), x.shape()), b.to_f64s().unwrap_or_default()));
    let (mut out, mut means, mut factors) = (Vec::with_capacity(xs.len()), vec![], vec![]);
    for row in xs.chunks_exact(n.max(1)) {
        let mean = if centred { row.iter().sum::<f64>() / n as f64 } else { 0.0 };
        let factor = 1.0 / (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64 + eps).sqrt();
        for v in row {
            let i = out.len();
            // The normalized value is rounded to the operand's type before it is scaled.
            let y = crate::minifloat::round_to(x.elem(), (v - mean) * factor) * scales[at_scale(i)];
            out.push(y + at_bias.as_ref().map_or(0.0, |(at, b)| b[at(i)]));
        }
        means.push(mean);
        factors.push(factor);
    }
    let kept: Vec<usize> = x.shape().iter().enumerate().map(|(i, &d)| if i < axis { d } else { 1 }).collect();
    means.resize(count(&kept), 0.0);
    factors.resize(count(&kept), 0.0);
    let mut results: Vec<Value> = vec![Tensor::from_f64(elem, x.shape(), out).into()];
    if centred {
        results.push(Tensor::from_f64(stash, kept.clone(), means).into());
        results.push(Tensor::from_f64(stash, kept, factors).into());
    }
    Ok(results)
}
