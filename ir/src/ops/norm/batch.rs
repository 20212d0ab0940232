//! Normalization per channel, group and neighbourhood.

use super::layer::{EPSILON, STASH_TYPE};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::{
    AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance, resolve_axis,
};
use crate::types::TensorType;
use crate::{Attr, ElemType, Type, ValueId};

/// Batch normalization.
pub static BATCH_NORMALIZATION: OpDef = OpDef {
    name: "batch_normalization",
    summary: "normalizes every channel by given statistics, or by its own in training mode",
    source: "ONNX BatchNormalization-15",
    operands: &[
        Operand::One("x"),
        Operand::One("scale"),
        Operand::One("b"),
        Operand::One("input_mean"),
        Operand::One("input_var"),
    ],
    results: &[Operand::One("y"), Operand::Optional("running_mean"), Operand::Optional("running_var")],
    attrs: &[
        EPSILON,
        AttrDef::new("momentum", AttrKind::Float, Default::Float(0.9), "part of the old running statistics that is kept"),
        AttrDef::new("training_mode", AttrKind::Int, Default::Int(0), "use the batch's own statistics"),
    ],
    infer: |ctx| {
        let same = same_type(ctx)?;
        if let (Some(x), Some(s)) = (ctx.shape(0)?, ctx.shape(1)?)
            && x.len() < 2 && !(x.len() == 1 && s.len() == 1) {
                return Err(OpError::new("an operand with channels is needed"));
            }
        Ok(vec![same, ctx.ty(3)?.clone(), ctx.ty(4)?.clone()])
    },
    decompose: Some(decompose_batch),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Instance normalization.
pub static INSTANCE_NORMALIZATION: OpDef = OpDef {
    name: "instance_normalization",
    summary: "normalizes every channel of every image by its own statistics",
    source: "ONNX InstanceNormalization-22",
    operands: &[Operand::One("x"), Operand::One("scale"), Operand::One("b")],
    attrs: &[EPSILON],
    infer: |ctx| Ok(vec![same_type(ctx)?]),
    decompose: Some(|b, node| {
        let x = node.need(0)?;
        let rank = b.shape(x)?.len();
        let axes: Vec<i64> = (2..rank as i64).collect();
        let (mean, var) = moments(b, x, &axes)?;
        let scale = per_channel(b, node.need(1)?, rank)?;
        let bias = per_channel(b, node.need(2)?, rank)?;
        Ok(vec![normalize(b, x, mean, var, node.float("epsilon").unwrap_or(1e-5), scale, bias)?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Group normalization.
pub static GROUP_NORMALIZATION: OpDef = OpDef {
    name: "group_normalization",
    summary: "normalizes groups of channels of every image; scale and bias per channel",
    source: "ONNX GroupNormalization-21; Group Normalization (arXiv 1803.08494)",
    operands: &[Operand::One("x"), Operand::One("scale"), Operand::One("bias")],
    attrs: &[
        EPSILON,
        AttrDef::new("num_groups", AttrKind::Int, Default::Required, "groups of channels"),
        STASH_TYPE,
    ],
    infer: |ctx| {
        let groups = ctx.int("num_groups")?;
        if groups < 1 {
            return Err(OpError::new("attribute `num_groups` must be positive"));
        }
        if let Some(c) = ctx.shape(0)?.and_then(|s| s.get(1)?.as_const())
            && c % groups != 0
        {
            return Err(OpError::new(format!("{c} channels do not divide into {groups} groups")));
        }
        Ok(vec![same_type(ctx)?])
    },
    decompose: Some(|b, node| {
        let x = node.need(0)?;
        let (rank, elem) = (b.shape(x)?.len(), b.elem(x)?);
        let wide = b.cast(x, node.elem_attr("stash_type").unwrap_or(ElemType::F32))?;
        let grouped = b.reshape(wide, &[Len::N(0), Len::N(node.int("num_groups")?), Len::N(-1)])?;
        let (mean, var) = moments(b, grouped, &[2])?;
        let unit = standardize(b, grouped, mean, var, node.float("epsilon").unwrap_or(1e-5))?;
        let unit = b.cast(unit, elem)?;
        let lens: Vec<Len> = (0..rank).map(|i| Len::Of(x, i)).collect();
        let unit = b.reshape(unit, &lens)?;
        let scale = per_channel(b, node.need(1)?, rank)?;
        let bias = per_channel(b, node.need(2)?, rank)?;
        let y = b.op("mul", &[unit, scale])?;
        Ok(vec![b.op("add", &[y, bias])?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Division by a norm.
pub static LP_NORMALIZATION: OpDef = OpDef {
    name: "lp_normalization",
    summary: "x / its p-norm along an axis; zero where the norm is",
    source: "ONNX LpNormalization-22",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "axis of the norm"),
        AttrDef::new("p", AttrKind::Int, Default::Int(2), "1 or 2"),
    ],
    infer: |ctx| {
        if let Some(shape) = ctx.shape(0)? {
            resolve_axis(ctx.int("axis")?, shape.len())?;
        }
        Ok(vec![same_type(ctx)?])
    },
    decompose: Some(|b, node| {
        let (x, axis) = (node.need(0)?, node.int("axis")?);
        let op = match node.int("p")? {
            1 => "reduce_l1",
            2 => "reduce_l2",
            p => return Err(OpError::new(format!("attribute `p` must be 1 or 2, found {p}"))),
        };
        let norm = b.reduce(op, x, &[axis], true)?;
        let (zero, one) = (b.lit(x, 0.0)?, b.lit(x, 1.0)?);
        let empty = b.op("equal", &[norm, zero])?;
        let norm = b.op("where", &[empty, one, norm])?;
        Ok(vec![b.op("div", &[x, norm])?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Zero mean and unit variance.
pub static MEAN_VARIANCE_NORMALIZATION: OpDef = OpDef {
    name: "mean_variance_normalization",
    summary: "(x - mean) / (sqrt(mean(x^2) - mean^2) + 1e-9) over axes",
    source: "ONNX MeanVarianceNormalization-13",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("axes", AttrKind::Ints, Default::Ints(&[0, 2, 3]), "axes of the statistics")],
    infer: |ctx| Ok(vec![same_type(ctx)?]),
    decompose: Some(|b, node| {
        let x = node.need(0)?;
        let axes = node.ints("axes").unwrap_or_default();
        let (mean, var) = moments(b, x, &axes)?;
        let centred = b.op("sub", &[x, mean])?;
        let deviation = b.op("sqrt", &[var])?;
        let eps = b.lit(x, 1e-9)?;
        let divisor = b.op("add", &[deviation, eps])?;
        Ok(vec![b.op("div", &[centred, divisor])?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Local response normalization.
pub static LRN: OpDef = OpDef {
    name: "lrn",
    summary: "x / (bias + alpha / size * sum of squares over nearby channels) ^ beta",
    source: "ONNX LRN-13; ImageNet Classification with Deep Convolutional Neural Networks, section 3.3",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("alpha", AttrKind::Float, Default::Float(1e-4), "weight of the squares"),
        AttrDef::new("beta", AttrKind::Float, Default::Float(0.75), "exponent"),
        AttrDef::new("bias", AttrKind::Float, Default::Float(1.0), "bias"),
        AttrDef::new("size", AttrKind::Int, Default::Required, "number of channels to sum"),
    ],
    infer: |ctx| {
        if !(1..=1 << 20).contains(&ctx.int("size")?) {
            return Err(OpError::new("attribute `size` must be positive"));
        }
        Ok(vec![same_type(ctx)?])
    },
    decompose: Some(|b, node| {
        let (x, size) = (node.need(0)?, node.int("size")?);
        // Mean over channels as an average pool of `[n, 1, c, rest]`, where the padding counts.
        let square = b.op("mul", &[x, x])?;
        let rank = b.shape(x)?.len();
        let image = b.reshape(square, &[Len::N(0), Len::N(1), Len::Of(x, 1), Len::N(-1)])?;
        let (before, after) = ((size - 1) / 2, size / 2);
        let attrs: [(&'static str, Attr); 3] = [
            ("kernel_shape", vec![size, 1].into()),
            ("pads", vec![before, 0, after, 0].into()),
            ("count_include_pad", 1i64.into()),
        ];
        let mean = b.op_with("average_pool", &[image], attrs)?;
        let lens: Vec<Len> = (0..rank).map(|i| Len::Of(x, i)).collect();
        let mean = b.reshape(mean, &lens)?;
        let alpha = b.lit(x, node.float("alpha").unwrap_or(1e-4))?;
        let bias = b.lit(x, node.float("bias").unwrap_or(1.0))?;
        let beta = b.lit(x, node.float("beta").unwrap_or(0.75))?;
        let scaled = b.op("mul", &[mean, alpha])?;
        let sum = b.op("add", &[scaled, bias])?;
        let power = b.op("pow", &[sum, beta])?;
        Ok(vec![b.op("div", &[x, power])?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// The type of operand 0, which must be of float class.
pub(super) fn same_type(ctx: &InferCtx) -> Result<Type, OpError> {
    let elem = ctx.elem(0)?;
    if !elem.is_float() {
        return Err(OpError::new(format!("is not defined for {elem}")));
    }
    Ok(Type::Tensor(TensorType { elem, shape: ctx.shape(0)?.map(<[_]>::to_vec) }))
}

/// Mean and population variance over axes, which are kept with length 1.
pub(super) fn moments(b: &mut Builder, x: ValueId, axes: &[i64]) -> Result<(ValueId, ValueId), OpError> {
    let mean = b.reduce("reduce_mean", x, axes, true)?;
    let centred = b.op("sub", &[x, mean])?;
    let square = b.op("mul", &[centred, centred])?;
    Ok((mean, b.reduce("reduce_mean", square, axes, true)?))
}

/// `(x - mean) / sqrt(var + epsilon)`.
fn standardize(b: &mut Builder, x: ValueId, mean: ValueId, var: ValueId, epsilon: f64) -> Result<ValueId, OpError> {
    let eps = b.lit(var, epsilon)?;
    let sum = b.op("add", &[var, eps])?;
    let deviation = b.op("sqrt", &[sum])?;
    let centred = b.op("sub", &[x, mean])?;
    b.op("div", &[centred, deviation])
}

fn normalize(
    b: &mut Builder,
    x: ValueId,
    mean: ValueId,
    var: ValueId,
    epsilon: f64,
    scale: ValueId,
    bias: ValueId,
) -> Result<ValueId, OpError> {
    let unit = standardize(b, x, mean, var, epsilon)?;
    let y = b.op("mul", &[unit, scale])?;
    b.op("add", &[y, bias])
}

/// A 1-D value as `[c, 1, 1, ..]`, to meet axis 1 of an operand of this rank.
fn per_channel(b: &mut Builder, v: ValueId, rank: usize) -> Result<ValueId, OpError> {
    if rank <= 2 {
        return Ok(v);
    }
    let axes: Vec<i64> = (1..rank as i64 - 1).collect();
    b.unsqueeze(v, &axes)
}

fn decompose_batch(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let x = node.need(0)?;
    let (rank, elem) = (b.shape(x)?.len(), b.elem(x)?);
    let (old_mean, old_var) = (node.need(3)?, node.need(4)?);
    let stat = b.elem(old_mean)?;
    let channel = |b: &mut Builder, v: ValueId| -> Result<ValueId, OpError> {
        let v = b.cast(v, elem)?;
        per_channel(b, v, rank)
    };
    let eps = node.float("epsilon").unwrap_or(1e-5);
    let (scale, bias) = (channel(b, node.need(1)?)?, channel(b, node.need(2)?)?);
    if !node.flag("training_mode") {
        let (mean, var) = (channel(b, old_mean)?, channel(b, old_var)?);
        let y = normalize(b, x, mean, var, eps, scale, bias)?;
        return Ok([y, old_mean, old_var].into_iter().take(node.results.len().max(1)).collect());
    }
    let axes: Vec<i64> = (0..rank as i64).filter(|&a| a != 1).collect();
    let (mean, var) = moments(b, x, &axes)?;
    let mut out = vec![normalize(b, x, mean, var, eps, scale, bias)?];
    let momentum = node.float("momentum").unwrap_or(0.9);
    for (old, new) in [(old_mean, mean), (old_var, var)].into_iter().take(node.results.len().saturating_sub(1)) {
        let new = b.squeeze(new, &axes)?;
        let new = b.cast(new, stat)?;
        let (keep, take) = (b.lit(old, momentum)?, b.lit(old, 1.0 - momentum)?);
        let kept = b.op("mul", &[old, keep])?;
        let taken = b.op("mul", &[new, take])?;
        out.push(b.op("add", &[kept, taken])?);
    }
    Ok(out)
}
