//! Resize along chosen axes, one axis after the other: the filters are separable.

use super::coordinates::{Axis, Kind, Mode, Taps};
use crate::ops::linear::checked_count;
use crate::ops::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance, resolve_axis};
use crate::tensor::{Data, Tensor, Value, count};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::{Dim, ElemType, Type, ValueId};

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
    decompose: Some(decompose),
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

/// What is asked for, whoever asks.
struct Request {
    axes: Vec<usize>,
    roi: Option<Vec<f64>>,
    scales: Option<Vec<f64>>,
    sizes: Option<Vec<i64>>,
    policy: String,
    mode: Mode,
}

impl Request {
    fn crops(&self) -> bool {
        self.mode.coordinates == "tf_crop_and_resize"
    }

    /// Shape of the result, and the taps of each axis that changes.
    fn plan(&self, x: &[usize]) -> Result<(Vec<usize>, Vec<Plan>), OpError> {
        let axes = &self.axes;
        let fits = |n: usize, per: usize| {
            if n == per * axes.len() { Ok(()) } else { Err(OpError::new(format!("{n} numbers are given for {} axes", axes.len()))) }
        };
        let crop = self.crops();
        let roi = match self.roi.as_ref().filter(|_| crop) {
            Some(roi) => {
                fits(roi.len(), 2)?;
                Some((0..axes.len()).map(|i| (roi[i], roi[axes.len() + i])).collect::<Vec<_>>())
            }
            None if crop => return Err(OpError::new("tf_crop_and_resize needs a region of interest")),
            None => None,
        };
        let input: Vec<usize> = axes.iter().map(|&a| x[a]).collect();
        let lens = match (&self.scales, &self.sizes) {
            (Some(scales), _) => {
                fits(scales.len(), 1)?;
                by_scales(&input, scales, roi.as_deref())?
            }
            (None, Some(sizes)) => {
                fits(sizes.len(), 1)?;
                by_sizes(&self.policy, &input, sizes)?
            }
            (None, None) => return Err(OpError::new("exactly one of scales and sizes must be given")),
        };
        let mut shape = x.to_vec();
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
            plans.push((axis, self.mode.taps(&Axis { input: input[i], output, scale, roi })?));
        }
        Ok((shape, plans))
    }
}

fn mode(node: &Node) -> Result<Mode, OpError> {
    Ok(Mode {
        coordinates: node.text("coordinate_transformation_mode"),
        nearest: node.text("nearest_mode"),
        kind: match node.text("mode").as_str() {
            "nearest" => Kind::Nearest,
            "linear" => Kind::Linear,
            "cubic" => Kind::Cubic(node.float("cubic_coeff_a").unwrap_or(-0.75)),
            other => return Err(OpError::new(format!("attribute `mode` must not be `{other}`"))),
        },
        antialias: node.flag("antialias"),
        exclude_outside: node.flag("exclude_outside"),
    })
}

fn eval(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let floats = |i: usize| ctx.tensor_opt(i).filter(|t| !t.is_empty()).and_then(Tensor::to_f64s);
    let request = Request {
        axes: axes_of(ctx.ints("axes"), x.rank())?,
        roi: floats(1),
        scales: floats(2),
        sizes: ctx.has(3).then(|| ctx.i64s(3)).transpose()?,
        policy: ctx.str("keep_aspect_ratio_policy"),
        mode: mode(ctx.node)?,
    };
    let (shape, plans) = request.plan(x.shape())?;
    if request.mode.kind == Kind::Nearest {
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

/// Along each axis in turn: a weighted sum of gathers whose indices and weights are constants. Lengths, scales
/// and the region of interest must be known.
fn decompose(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let x = node.need(0)?;
    let elem = b.elem(x)?;
    let shape: Option<Vec<usize>> = b.ty(x).as_tensor().and_then(|t| t.const_shape());
    let shape = shape.ok_or_else(|| OpError::new("lengths must be known: fix them with `--dim`"))?;
    let known = |b: &Builder, i: usize| -> Result<Option<Tensor>, OpError> {
        let Some(v) = node.operand(i) else { return Ok(None) };
        let constant = b.module.as_constant(v).ok_or_else(|| OpError::new(format!("operand {i} must be constant")))?;
        let tensor = constant.decode().map_err(|e| OpError::new(e.to_string()))?;
        Ok(Some(tensor).filter(|t| !t.is_empty()))
    };
    let mode = mode(node)?;
    let crops = mode.coordinates == "tf_crop_and_resize";
    let request = Request {
        axes: axes_of(node.ints("axes"), shape.len())?,
        roi: if crops { known(b, 1)?.and_then(|t| t.to_f64s()) } else { None },
        scales: known(b, 2)?.and_then(|t| t.to_f64s()),
        sizes: known(b, 3)?.and_then(|t| t.to_i64s()),
        policy: node.text("keep_aspect_ratio_policy"),
        mode,
    };
    let (out_shape, plans) = request.plan(&shape)?;
    let moves = request.mode.kind == Kind::Nearest;
    let computed = if moves || elem.is_float() { elem } else { ElemType::F32 };
    let mut y = b.cast(x, computed)?;
    let mut inside: Option<ValueId> = None;
    for (axis, taps) in &plans {
        // Lengths along the axis, 1 along the others: what is the same for all of them.
        let along: Vec<usize> = (0..shape.len()).map(|a| if a == *axis { taps.len() } else { 1 }).collect();
        let most = taps.iter().flatten().map(Vec::len).max().unwrap_or(1).max(1);
        let mut sum: Option<ValueId> = None;
        for k in 0..most {
            let tap = |t: &Taps| t.as_ref().and_then(|t| t.get(k).copied());
            let at: Vec<i64> = taps.iter().map(|t| tap(t).map_or(0, |t| t.0 as i64)).collect();
            let at = b.ints(&at);
            let mut part = b.op_with("gather", &[y, at], [("axis", (*axis as i64).into())])?;
            if !moves {
                let weights = taps.iter().map(|t| tap(t).map_or(0.0, |t| t.1)).collect();
                let weights = b.constant(&Tensor::from_f64(computed, along.clone(), weights));
                part = b.op("mul", &[part, weights])?;
            }
            sum = Some(match sum {
                Some(sum) => b.op("add", &[sum, part])?,
                None => part,
            });
        }
        y = sum.unwrap_or(y);
        if taps.iter().any(Option::is_none) {
            let here = taps.iter().map(|t| i128::from(t.is_some())).collect();
            let here = b.constant(&Tensor::from_int(ElemType::Bool, along, here));
            inside = Some(match inside {
                Some(inside) => b.op("and", &[inside, here])?,
                None => here,
            });
        }
    }
    if let Some(inside) = inside {
        let fill = b.lit(y, node.float("extrapolation_value").unwrap_or(0.0))?;
        y = b.op("where", &[inside, y, fill])?;
    }
    if let (false, Some((least, most))) = (computed == elem, elem.int_range()) {
        let (least, most) = (b.lit(y, least as f64)?, b.lit(y, most as f64)?);
        y = b.op("clip", &[y, least, most])?;
    }
    let y = b.cast(y, elem)?;
    let lens: Vec<Len> = out_shape.iter().map(|&n| Len::N(n as i64)).collect();
    Ok(vec![if plans.is_empty() { b.reshape(y, &lens)? } else { y }])
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
