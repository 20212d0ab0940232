//! Resize along chosen axes, one axis after the other: the filters are separable.

use super::coordinates::{Axis, Kind, Mode, Taps};
use crate::ops::linear::checked_count;
use crate::ops::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance, resolve_axis};
use crate::tensor::{Data, Tensor, Value, count};
use crate::{Dim, Type};

/// Resize.
pub static RESIZE: OpDef = OpDef {
    name: "resize",
    summary: "resamples along axes by nearest, linear or cubic interpolation",
    source: "ONNX Resize-19",
    operands: &[Operand::One("x"), Operand::Optional("roi"), Operand::Optional("scales"), Operand::Optional("sizes")],
    attrs: &[
        AttrDef::new("antialias", AttrKind::Int, Default::Int(0), "stretch the filter when shrinking"),
        AttrDef::new("axes", AttrKind::Ints, Default::Absent, "axes that the operands speak of; all"),
        AttrDef::new("coordinate_transformation_mode", AttrKind::Str, Default::Str("half_pixel"), "from positions of the result to those of `x`"),
        AttrDef::new("cubic_coeff_a", AttrKind::Float, Default::Float(-0.75), "coefficient of the cubic filter"),
        AttrDef::new("exclude_outside", AttrKind::Int, Default::Int(0), "no weight outside `x`"),
        AttrDef::new("extrapolation_value", AttrKind::Float, Default::Float(0.0), "result outside `roi`"),
        AttrDef::new("keep_aspect_ratio_policy", AttrKind::Str, Default::Str("stretch"), "stretch, not_larger or not_smaller"),
        AttrDef::new("mode", AttrKind::Str, Default::Str("nearest"), "nearest, linear or cubic"),
        AttrDef::new("nearest_mode", AttrKind::Str, Default::Str("round_prefer_floor"), "which neighbour is the nearest"),
    ],
    infer,
    eval: Eval::Direct(eval),
    tolerance: Tolerance::Approximate(1e-4, 1e-4),
    ..OpDef::BASE
};

fn axes_of(axes: Option<Vec<i64>>, rank: usize) -> Result<Vec<usize>, OpError> {
    let axes: Vec<usize> = match axes.filter(|a| !a.is_empty()) {
        Some(axes) => axes.into_iter().map(|a| resolve_axis(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    let mut seen = vec![false; rank];
    for &a in &axes {
        if std::mem::replace(&mut seen[a], true) {
            return Err(OpError::new(format!("axis {a} is given twice")));
        }
    }
    Ok(axes)
}

/// Lengths and scales along the axes, from wished lengths by the policy.
fn by_sizes(policy: &str, input: &[usize], sizes: &[i64]) -> Result<Vec<(usize, f64)>, OpError> {
    let scales = input.iter().zip(sizes).map(|(&n, &s)| s as f64 / n as f64);
    let common = match policy {
        "stretch" => None,
        "not_larger" => scales.clone().reduce(f64::min),
        "not_smaller" => scales.clone().reduce(f64::max),
        other => return Err(OpError::new(format!("attribute `keep_aspect_ratio_policy` must not be `{other}`"))),
    };
    scales
        .zip(input.iter().zip(sizes))
        .map(|(scale, (&n, &size))| {
            let (len, scale) = match common {
                // Halves are rounded up.
                Some(c) => ((c * n as f64 + 0.5).floor(), c),
                None => (size as f64, scale),
            };
            if (0.0..2147483648.0).contains(&len) { Ok((len as usize, scale)) } else { Err(OpError::new(format!("a length of {len} is not possible"))) }
        })
        .collect()
}

fn by_scales(input: &[usize], scales: &[f64], roi: Option<&[(f64, f64)]>) -> Result<Vec<(usize, f64)>, OpError> {
    input
        .iter()
        .zip(scales)
        .enumerate()
        .map(|(i, (&n, &scale))| {
            let part = roi.map_or(1.0, |r| r[i].1 - r[i].0);
            let len = (n as f64 * part * scale).floor();
            if scale > 0.0 && (0.0..2147483648.0).contains(&len) {
                Ok((len as usize, scale))
            } else {
                Err(OpError::new(format!("a scale of {scale} is not possible")))
            }
        })
        .collect()
}

fn infer(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if ctx.has(2) == ctx.has(3) {
        return Err(OpError::new("exactly one of scales and sizes must be given"));
    }
    let Some(shape) = ctx.shape(0)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let axes = axes_of(ctx.ints("axes"), shape.len())?;
    let mut out = shape.to_vec();
    let crop = ctx.str("coordinate_transformation_mode") == "tf_crop_and_resize";
    if let Some(dims) = ctx.has(3).then(|| ctx.dims(3)).flatten() {
        if dims.len() != axes.len() {
            return Err(OpError::new(format!("{} sizes are given for {} axes", dims.len(), axes.len())));
        }
        let lens: Option<Vec<usize>> = axes.iter().map(|&a| usize::try_from(shape[a].as_const()?).ok()).collect();
        let policy = ctx.str("keep_aspect_ratio_policy");
        match (policy.as_str(), lens, ctx.const_ints(3)) {
            ("stretch", _, _) => axes.iter().zip(dims).for_each(|(&a, d)| out[a] = d.clone()),
            (policy, Some(lens), Some(sizes)) => {
                for (&a, (len, _)) in axes.iter().zip(by_sizes(policy, &lens, &sizes)?) {
                    out[a] = Dim::from(len);
                }
            }
            _ => axes.iter().for_each(|&a| out[a] = ctx.fresh_dim()),
        }
        return Ok(vec![Type::tensor(elem, out)]);
    }
    let scales = ctx.constants.get(2).and_then(Option::as_ref).and_then(Tensor::to_f64s);
    if let Some(scales) = scales.filter(|_| !crop) {
        if scales.len() != axes.len() {
            return Err(OpError::new(format!("{} scales are given for {} axes", scales.len(), axes.len())));
        }
        for (&a, &scale) in axes.iter().zip(&scales) {
            out[a] = match shape[a].as_const() {
                Some(n) => Dim::from(by_scales(&[usize::try_from(n).unwrap_or(0)], &[scale], None)?[0].0),
                None if scale.fract() == 0.0 && scale >= 1.0 => &shape[a] * &Dim::from(scale as i64),
                None => ctx.fresh_dim(),
            };
        }
        return Ok(vec![Type::tensor(elem, out)]);
    }
    axes.iter().for_each(|&a| out[a] = ctx.fresh_dim());
    Ok(vec![Type::tensor(elem, out)])
}

fn eval(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axes = axes_of(ctx.ints("axes"), x.rank())?;
    let floats = |i: usize| ctx.tensor_opt(i).filter(|t| !t.is_empty()).and_then(Tensor::to_f64s);
    let fits = |n: usize, per: usize| {
        if n == per * axes.len() { Ok(()) } else { Err(OpError::new(format!("{n} numbers are given for {} axes", axes.len()))) }
    };
    let coordinates = ctx.str("coordinate_transformation_mode");
    let crop = coordinates == "tf_crop_and_resize";
    let roi = match floats(1).filter(|_| crop) {
        Some(roi) => {
            fits(roi.len(), 2)?;
            Some((0..axes.len()).map(|i| (roi[i], roi[axes.len() + i])).collect::<Vec<_>>())
        }
        None if crop => return Err(OpError::new("tf_crop_and_resize needs a region of interest")),
        None => None,
    };
    let input: Vec<usize> = axes.iter().map(|&a| x.shape()[a]).collect();
    let lens = match (floats(2), ctx.has(3)) {
        (Some(scales), _) => {
            fits(scales.len(), 1)?;
            by_scales(&input, &scales, roi.as_deref())?
        }
        (None, true) => {
            let sizes = ctx.i64s(3)?;
            fits(sizes.len(), 1)?;
            by_sizes(&ctx.str("keep_aspect_ratio_policy"), &input, &sizes)?
        }
        (None, false) => return Err(OpError::new("exactly one of scales and sizes must be given")),
    };
    let mode = Mode {
        coordinates,
        nearest: ctx.str("nearest_mode"),
        kind: match ctx.str("mode").as_str() {
            "nearest" => Kind::Nearest,
            "linear" => Kind::Linear,
            "cubic" => Kind::Cubic(f64::from(ctx.float("cubic_coeff_a").unwrap_or(-0.75))),
            other => return Err(OpError::new(format!("attribute `mode` must not be `{other}`"))),
        },
        antialias: ctx.flag("antialias"),
        exclude_outside: ctx.flag("exclude_outside"),
    };
    let mut shape = x.shape().to_vec();
    axes.iter().zip(&lens).for_each(|(&a, l)| shape[a] = l.0);
    checked_count(&shape)?;
    let mut plans = vec![];
    for (i, &axis) in axes.iter().enumerate() {
        let (output, scale) = lens[i];
        if output == input[i] && scale == 1.0 && !crop {
            continue;
        }
        if input[i] == 0 && output > 0 {
            return Err(OpError::new("an empty axis cannot grow"));
        }
        let roi = roi.as_ref().map_or((0.0, 1.0), |r| r[i]);
        plans.push((axis, mode.taps(&Axis { input: input[i], output, scale, roi })?));
    }
    if mode.kind == Kind::Nearest {
        return Ok(vec![nearest(ctx, x, plans)?.into()]);
    }
    let values = x.to_f64s().ok_or_else(|| OpError::new(format!("is not defined for {}", x.elem())))?;
    let (values, outside) = resample(values, x.shape(), &plans);
    let fill = f64::from(ctx.float("extrapolation_value").unwrap_or(0.0));
    let values: Vec<f64> = values.iter().zip(outside).map(|(&v, out)| if out { fill } else { v }).collect();
    Ok(vec![match x.elem().int_range() {
        None => Tensor::from_f64(x.elem(), shape, values),
        // Integers are rounded as a cast does, and stay in range.
        Some((least, most)) => {
            let cast = |v: f64| (v.trunc() as i128).clamp(least, most);
            Tensor::from_int(x.elem(), shape, values.into_iter().map(cast).collect())
        }
    }
    .into()])
}

type Plan = (usize, Vec<Taps>);

/// Interpolates along one axis after the other; also which elements lie outside the region of interest.
fn resample(mut values: Vec<f64>, shape: &[usize], plans: &[Plan]) -> (Vec<f64>, Vec<bool>) {
    let mut shape = shape.to_vec();
    let mut outside = vec![false; values.len()];
    for (axis, taps) in plans {
        let (n, inner) = (shape[*axis], count(&shape[axis + 1..]));
        let outer = count(&shape[..*axis]);
        let mut next = Vec::with_capacity(outer * taps.len() * inner);
        let mut next_outside = Vec::with_capacity(next.capacity());
        for o in 0..outer {
            for tap in taps {
                for i in 0..inner {
                    let at = |p: usize| (o * n + p) * inner + i;
                    match tap {
                        None => {
                            next.push(0.0);
                            next_outside.push(true);
                        }
                        Some(tap) => {
                            next.push(tap.iter().map(|&(p, w)| w * values[at(p)]).sum());
                            next_outside.push(tap.iter().any(|&(p, _)| outside[at(p)]));
                        }
                    }
                }
            }
        }
        shape[*axis] = taps.len();
        (values, outside) = (next, next_outside);
    }
    (values, outside)
}

/// Nearest neighbours of any element type.
fn nearest(ctx: &EvalCtx, x: &Tensor, plans: Vec<Plan>) -> Result<Tensor, OpError> {
    let mut y = x.clone();
    let mut outside = vec![false; x.len()];
    for (axis, taps) in plans {
        let mut shape = y.shape().to_vec();
        let (n, inner, m) = (shape[axis], count(&shape[axis + 1..]), taps.len());
        shape[axis] = m;
        let source = |i: usize| {
            let p = taps[i / inner % m].as_ref().map_or(0, |t| t[0].0);
            (i / inner / m * n + p) * inner + i % inner
        };
        let total = checked_count(&shape)?;
        outside = (0..total).map(|i| taps[i / inner % m].is_none() || outside[source(i)]).collect();
        y = y.gather_linear(shape, source);
    }
    if !outside.contains(&true) {
        return Ok(y);
    }
    let fill = f64::from(ctx.float("extrapolation_value").unwrap_or(0.0));
    let shape = y.shape().to_vec();
    Ok(match y.data() {
        Data::Float(v) => Tensor::from_f64(y.elem(), shape, v.iter().zip(&outside).map(|(&v, &o)| if o { fill } else { v }).collect()),
        Data::Int(v) => Tensor::from_int(y.elem(), shape, v.iter().zip(&outside).map(|(&v, &o)| if o { fill as i128 } else { v }).collect()),
        _ => return Err(OpError::new("extrapolation is not defined for this element type")),
    })
}
