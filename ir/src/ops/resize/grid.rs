//! Sampling at the points of a grid, and affine grids.

use super::coordinates::cubic;
use crate::ops::linear::checked_count;
use crate::ops::window::{image_shape, unravel};
use crate::ops::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::tensor::{Data, Tensor, Value, count, strides};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::{Dim, Type, ValueId};

const ALIGN_CORNERS: AttrDef =
    AttrDef::new("align_corners", AttrKind::Int, Default::Int(0), "-1 and 1 are the centres of the corner pixels, not their edges");

/// Sampling.
pub static GRID_SAMPLE: OpDef = OpDef {
    name: "grid_sample",
    summary: "interpolates `x` at normalized points, innermost coordinate first",
    source: "ONNX GridSample-22; Spatial Transformer Networks (arXiv 1506.02025)",
    operands: &[Operand::One("x"), Operand::One("grid")],
    attrs: &[
        ALIGN_CORNERS,
        AttrDef::new("mode", AttrKind::Str, Default::Str("linear"), "linear, nearest or cubic"),
        AttrDef::new("padding_mode", AttrKind::Str, Default::Str("zeros"), "zeros, border or reflection"),
    ],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        let (Some(x), Some(grid)) = (ctx.shape(0)?, ctx.shape(1)?) else {
            return Ok(vec![Type::unranked(elem)]);
        };
        if x.len() < 3 || grid.len() != x.len() {
            return Err(OpError::new("the grid must have the rank of the image, at least 3"));
        }
        let mut shape = x[..2].to_vec();
        shape.extend_from_slice(&grid[1..grid.len() - 1]);
        Ok(vec![Type::tensor(elem, shape)])
    },
    eval: Eval::Direct(eval_sample),
    tolerance: Tolerance::Approximate(1e-3, 1e-4),
    ..OpDef::BASE
};

/// Affine grid.
pub static AFFINE_GRID: OpDef = OpDef {
    name: "affine_grid",
    summary: "the points of a regular grid under affine maps, as `grid_sample` takes them",
    source: "ONNX AffineGrid-20",
    operands: &[Operand::One("theta"), Operand::One("size")],
    attrs: &[ALIGN_CORNERS],
    infer: infer_affine,
    eval: Eval::Direct(eval_affine),
    decompose: Some(decompose_affine),
    tolerance: Tolerance::Approximate(1e-5, 1e-5),
    ..OpDef::BASE
};

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// Folds a coordinate back into `low..=high`.
fn reflect(at: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    if range <= 0.0 || !at.is_finite() {
        return low.max(0.0);
    }
    let offset = (at - low).rem_euclid(2.0 * range);
    low + if offset > range { 2.0 * range - offset } else { offset }
}

impl Padding {
    /// A pixel index that can be read, or nothing.
    fn index(self, p: f64, len: usize, align: bool) -> Option<usize> {
        let last = len as f64 - 1.0;
        let p = match self {
            Padding::Zeros => p,
            Padding::Border => p.clamp(0.0, last),
            Padding::Reflection if align => reflect(p, 0.0, last),
            Padding::Reflection => reflect(p, -0.5, last + 0.5).clamp(0.0, last),
        };
        (p >= 0.0 && p <= last).then_some(p.round() as usize)
    }
}

fn eval_sample(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, grid) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let (n, c, spatial) = image_shape(x.shape())?;
    let r = spatial.len();
    if grid.rank() != r + 2 || grid.shape()[0] != n || grid.shape()[r + 1] != r {
        return Err(OpError::new(format!("a grid {:?} does not fit an image {:?}", grid.shape(), x.shape())));
    }
    let points = grid.floats().ok_or_else(|| OpError::new("the grid must be of floats"))?;
    let padding = match ctx.str("padding_mode").as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(OpError::new(format!("attribute `padding_mode` must not be `{other}`"))),
    };
    let align = ctx.flag("align_corners");
    let mode = ctx.str("mode");
    let reach: i64 = match mode.as_str() {
        "nearest" => 1,
        "linear" | "bilinear" => 2,
        "cubic" | "bicubic" => 4,
        other => return Err(OpError::new(format!("attribute `mode` must not be `{other}`"))),
    };
    if r > 8 {
        return Err(OpError::new("more than 8 spatial axes are too many"));
    }
    let out = &grid.shape()[1..=r];
    let mut shape = vec![n, c];
    shape.extend(out);
    let total = checked_count(&shape)?;
    let (places, plane, steps) = (count(out), count(spatial), strides(spatial));
    // Weighted positions of every point, the same for all channels.
    let mut taps: Vec<Vec<(usize, f64)>> = Vec::with_capacity(n * places);
    for point in points.chunks_exact(r.max(1)) {
        let mut all = vec![(0usize, 1.0f64)];
        for axis in 0..r {
            let (g, len) = (point[r - 1 - axis], spatial[axis] as f64);
            let mut at = if align { (g + 1.0) / 2.0 * (len - 1.0) } else { ((g + 1.0) * len - 1.0) / 2.0 };
            if mode != "cubic" && mode != "bicubic" {
                // Cubic filters read the unfolded neighbourhood; the others fold the point itself.
                at = match padding {
                    Padding::Zeros => at,
                    Padding::Border => at.clamp(0.0, (len - 1.0).max(0.0)),
                    Padding::Reflection if align => reflect(at, 0.0, len - 1.0),
                    Padding::Reflection => reflect(at, -0.5, len - 0.5),
                };
            }
            let low = at.floor();
            let weights: Vec<(f64, f64)> = match reach {
                1 => vec![(at.round_ties_even(), 1.0)],
                2 => vec![(low, low + 1.0 - at), (low + 1.0, at - low)],
                _ => (-1..3).map(|i| (low + i as f64, cubic((at - low - i as f64).abs(), -0.75))).collect(),
            };
            let weights: Vec<(usize, f64)> = weights
                .into_iter()
                .filter_map(|(p, w)| Some((padding.index(p, spatial[axis], align)? * steps[axis], w)))
                .collect();
            all = all.iter().flat_map(|&(p, w)| weights.iter().map(move |&(q, v)| (p + q, w * v))).collect();
        }
        taps.push(all);
    }
    let pairs = (0..total).map(|i| {
        let (block, place) = (i / places.max(1), i % places.max(1));
        (block * plane, &taps[block / c * places + place])
    });
    let y = match x.data() {
        Data::Float(v) => Tensor::from_f64(
            x.elem(),
            shape,
            pairs.map(|(base, taps)| taps.iter().map(|&(p, w)| w * v[base + p]).sum()).collect(),
        ),
        Data::Int(v) => Tensor::from_int(
            x.elem(),
            shape,
            pairs.map(|(base, taps)| taps.iter().map(|&(p, w)| w * v[base + p] as f64).sum::<f64>().trunc() as i128).collect(),
        ),
        _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
    };
    Ok(vec![y.into()])
}

fn infer_affine(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let axes = match (ctx.shape(0)?, ctx.shape(1)?) {
        (Some([_, r, _]), _) if r.as_const().is_some() => r.as_const(),
        (Some(s), _) if s.len() != 3 => return Err(OpError::new("operand 0 must have rank 3")),
        (_, Some([n])) => n.as_const().map(|n| n - 2),
        _ => None,
    };
    let Some(r) = axes else { return Ok(vec![Type::unranked(elem)]) };
    if r != 2 && r != 3 {
        return Err(OpError::new(format!("maps of {r} axes are not defined")));
    }
    let mut shape: Vec<Dim> = match ctx.dims(1) {
        Some(size) if size.len() as i64 == r + 2 => [&size[..1], &size[2..]].concat(),
        Some(_) => return Err(OpError::new(format!("operand 1 must have {} entries", r + 2))),
        None => (0..=r).map(|_| ctx.fresh_dim()).collect(),
    };
    shape.push(Dim::from(r));
    Ok(vec![Type::tensor(elem, shape)])
}

/// Coordinate of pixel `i` of `len`.
fn normalized(i: usize, len: usize, align: bool) -> f64 {
    let (i, len) = (i as f64, len as f64);
    match align {
        true if len > 1.0 => -1.0 + 2.0 * i / (len - 1.0),
        true => -1.0,
        false => (2.0 * i + 1.0) / len - 1.0,
    }
}

/// The points of the regular grid, with a 1 behind each, times the maps. The size must be known.
fn decompose_affine(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (theta, size) = (node.need(0)?, node.need(1)?);
    let size = b.module.as_constant(size).and_then(|c| c.decode().ok()?.to_i64s());
    let size: Option<Vec<usize>> = size.and_then(|s| s.into_iter().map(|d| usize::try_from(d).ok()).collect());
    let size = size.filter(|s| (4..=5).contains(&s.len())).ok_or_else(|| OpError::new("the size must be constant: batch, channels and 2 or 3 lengths"))?;
    let (spatial, r) = (&size[2..], size.len() - 2);
    let places = checked_count(spatial)?;
    let mut points = Vec::with_capacity(places * (r + 1));
    for place in 0..places {
        let index = unravel(place, spatial);
        points.extend((0..r).rev().map(|a| normalized(index[a], spatial[a], node.flag("align_corners"))));
        points.push(1.0);
    }
    let points = b.constant(&Tensor::from_f64(b.elem(theta)?, [places, r + 1], points));
    let maps = b.swap_last(theta)?;
    let y = b.op("matmul", &[points, maps])?;
    let mut lens = vec![Len::N(size[0] as i64)];
    lens.extend(spatial.iter().chain([&r]).map(|&n| Len::N(n as i64)));
    Ok(vec![b.reshape(y, &lens)?])
}

fn eval_affine(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let theta = ctx.tensor(0)?;
    let size: Option<Vec<usize>> = ctx.i64s(1)?.into_iter().map(|d| usize::try_from(d).ok()).collect();
    let (Some(maps), Some(size), &[n, r, columns]) = (theta.floats(), size, theta.shape()) else {
        return Err(OpError::new("maps of rank 3 and a size are needed"));
    };
    if !(2..=3).contains(&r) || columns != r + 1 || size.len() != r + 2 || size[0] != n {
        return Err(OpError::new(format!("maps {:?} do not fit a size {size:?}", theta.shape())));
    }
    let spatial = &size[2..];
    let mut shape = vec![n];
    shape.extend(spatial);
    shape.push(r);
    let align = ctx.flag("align_corners");
    let mut out = Vec::with_capacity(checked_count(&shape)?);
    for map in maps.chunks_exact(r * columns) {
        for place in 0..count(spatial) {
            let index = unravel(place, spatial);
            // Innermost coordinate first.
            let point: Vec<f64> = (0..r)
                .rev()
                .map(|a| normalized(index[a], spatial[a], align))
                .collect();
            for row in map.chunks_exact(columns) {
                out.push(row[r] + row[..r].iter().zip(&point).map(|(m, p)| m * p).sum::<f64>());
            }
        }
    }
    Ok(vec![Tensor::from_f64(theta.elem(), shape, out).into()])
}
