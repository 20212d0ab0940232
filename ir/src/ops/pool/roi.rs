//! Pooling over regions of interest of an image.

use crate::ops::linear::checked_count;
use crate::ops::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
};
use crate::tensor::{Tensor, Value};
use crate::{Dim, Type};

const SPATIAL_SCALE: AttrDef =
    AttrDef::new("spatial_scale", AttrKind::Float, Default::Float(1.0), "from coordinates of regions to those of `x`");

/// Largest element of every bin of every region.
pub static MAX_ROI_POOL: OpDef = OpDef {
    name: "max_roi_pool",
    summary: "largest element in each bin of each region `[batch, x1, y1, x2, y2]`",
    source: "ONNX MaxRoiPool-22; Fast R-CNN",
    operands: &[Operand::One("x"), Operand::One("rois")],
    attrs: &[AttrDef::new("pooled_shape", AttrKind::Ints, Default::Required, "bins: height, width"), SPATIAL_SCALE],
    infer: |ctx| {
        let bins = bins(&ctx.ints("pooled_shape").unwrap_or_default())?;
        infer(ctx, bins)
    },
    eval: Eval::Direct(eval_max_roi_pool),
    ..OpDef::BASE
};

/// Mean or largest of samples in every bin of every region.
pub static ROI_ALIGN: OpDef = OpDef {
    name: "roi_align",
    summary: "mean or maximum of bilinear samples in each bin of each region `[x1, y1, x2, y2]`",
    source: "ONNX RoiAlign-22; Mask R-CNN",
    operands: &[Operand::One("x"), Operand::One("rois"), Operand::One("batch_indices")],
    attrs: &[
        AttrDef::new("coordinate_transformation_mode", AttrKind::Str, Default::Str("half_pixel"), "half_pixel or output_half_pixel"),
        AttrDef::new("mode", AttrKind::Str, Default::Str("avg"), "avg or max"),
        AttrDef::new("output_height", AttrKind::Int, Default::Int(1), "bins along the height"),
        AttrDef::new("output_width", AttrKind::Int, Default::Int(1), "bins along the width"),
        AttrDef::new("sampling_ratio", AttrKind::Int, Default::Int(0), "samples per bin and axis; 0: by the bin's size"),
        SPATIAL_SCALE,
    ],
    infer: |ctx| {
        let bins = bins(&[ctx.int("output_height")?, ctx.int("output_width")?])?;
        infer(ctx, bins)
    },
    eval: Eval::Direct(eval_roi_align),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

fn bins(list: &[i64]) -> Result<[usize; 2], OpError> {
    match *list {
        [h, w] if (1..1 << 20).contains(&h) && (1..1 << 20).contains(&w) => Ok([h as usize, w as usize]),
        _ => Err(OpError::new(format!("bins of {list:?} are not a positive height and width"))),
    }
}

fn infer(ctx: &InferCtx, bins: [usize; 2]) -> Result<Vec<Type>, OpError> {
    let c = match ctx.shape(0)? {
        Some([_, c, _, _]) => c.clone(),
        Some(_) => return Err(OpError::new("operand 0 must have rank 4")),
        None => ctx.fresh_dim(),
    };
    let n = match ctx.shape(1)? {
        Some([n, _]) => n.clone(),
        Some(_) => return Err(OpError::new("operand 1 must have rank 2")),
        None => ctx.fresh_dim(),
    };
    Ok(vec![Type::tensor(ctx.elem(0)?, [n, c, Dim::from(bins[0]), Dim::from(bins[1])])])
}

struct Image<'a> {
    values: &'a [f64],
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    rois: &'a [f64],
    n_rois: usize,
}

fn read<'a>(ctx: &'a EvalCtx, columns: usize) -> Result<Image<'a>, OpError> {
    let (x, rois) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let (&[batch, channels, height, width], &[n_rois, c]) = (x.shape(), rois.shape()) else {
        return Err(OpError::new("an image of rank 4 and regions of rank 2 are needed"));
    };
    if c != columns {
        return Err(OpError::new(format!("a region has {columns} numbers, found {c}")));
    }
    match (x.floats(), rois.floats()) {
        (Some(values), Some(rois)) => Ok(Image { values, batch, channels, height, width, rois, n_rois }),
        _ => Err(OpError::new(format!("is not defined for {}", x.elem()))),
    }
}

fn eval_max_roi_pool(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let image = read(ctx, 5)?;
    let [ph, pw] = bins(&ctx.ints("pooled_shape").unwrap_or_default())?;
    let scale = f64::from(ctx.float("spatial_scale").unwrap_or(1.0));
    let shape = [image.n_rois, image.channels, ph, pw];
    let mut out = Vec::with_capacity(checked_count(&shape)?);
    for roi in image.rois.chunks_exact(5) {
        let batch = index(roi[0], image.batch)?;
        let edge = |v: f64| (v * scale).round();
        let (x1, y1, x2, y2) = (edge(roi[1]), edge(roi[2]), edge(roi[3]), edge(roi[4]));
        let (bh, bw) = ((y2 - y1 + 1.0).max(1.0) / ph as f64, (x2 - x1 + 1.0).max(1.0) / pw as f64);
        let range = |i: usize, bin: f64, start: f64, len: usize| {
            let clamp = |v: f64| (v + start).clamp(0.0, len as f64) as usize;
            clamp((i as f64 * bin).floor())..clamp(((i + 1) as f64 * bin).ceil())
        };
        for c in 0..image.channels {
            let plane = &image.values[(batch * image.channels + c) * image.height * image.width..];
            for i in 0..ph {
                for j in 0..pw {
                    let best = range(i, bh, y1, image.height)
                        .flat_map(|y| range(j, bw, x1, image.width).map(move |x| (y, x)))
                        .map(|(y, x)| plane[y * image.width + x])
                        .reduce(f64::max);
                    out.push(best.unwrap_or(0.0));
                }
            }
        }
    }
    Ok(vec![Tensor::from_f64(ctx.tensor(0)?.elem(), shape, out).into()])
}

fn index(value: f64, len: usize) -> Result<usize, OpError> {
    if value >= 0.0 && value < len as f64 {
        Ok(value as usize)
    } else {
        Err(OpError::new(format!("batch index {value} is out of range")))
    }
}

/// Most samples per bin and axis that an evaluator takes.
const MAX_SAMPLES: f64 = 4096.0;

fn eval_roi_align(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let image = read(ctx, 4)?;
    let [ph, pw] = bins(&[ctx.int("output_height")?, ctx.int("output_width")?])?;
    let scale = f64::from(ctx.float("spatial_scale").unwrap_or(1.0));
    let mode = ctx.str("coordinate_transformation_mode");
    let half = mode == "half_pixel";
    if !half && mode != "output_half_pixel" {
        return Err(OpError::new(format!("attribute `coordinate_transformation_mode` must not be `{mode}`")));
    }
    let max = match ctx.str("mode").as_str() {
        "avg" => false,
        "max" => true,
        other => return Err(OpError::new(format!("attribute `mode` must not be `{other}`"))),
    };
    let ratio = ctx.int("sampling_ratio")?;
    let batches = ctx.i64s(2)?;
    if batches.len() != image.n_rois {
        return Err(OpError::new("there must be a batch index per region"));
    }
    let shape = [image.n_rois, image.channels, ph, pw];
    let mut out = Vec::with_capacity(checked_count(&shape)?);
    for (roi, &batch) in image.rois.chunks_exact(4).zip(&batches) {
        let batch = index(batch as f64, image.batch)?;
        let at: Vec<f64> = roi.iter().map(|v| v * scale - if half { 0.5 } else { 0.0 }).collect();
        let least = if half { f64::NEG_INFINITY } else { 1.0 };
        let (w, h) = ((at[2] - at[0]).max(least), (at[3] - at[1]).max(least));
        let (bh, bw) = (h / ph as f64, w / pw as f64);
        let samples = |bin: f64| if ratio > 0 { ratio as f64 } else { bin.ceil() };
        let (gh, gw) = (samples(bh), samples(bw));
        if gh.max(gw) > MAX_SAMPLES {
            return Err(OpError::new(format!("{gh} x {gw} samples per bin are too many")));
        }
        let (gh, gw) = (gh.max(0.0) as usize, gw.max(0.0) as usize);
        for c in 0..image.channels {
            let plane = &image.values[(batch * image.channels + c) * image.height * image.width..];
            for i in 0..ph {
                for j in 0..pw {
                    let mut sum = 0.0;
                    let mut best: Option<f64> = None;
                    for iy in 0..gh {
                        let y = at[1] + i as f64 * bh + (iy as f64 + 0.5) * bh / gh as f64;
                        for ix in 0..gw {
                            let x = at[0] + j as f64 * bw + (ix as f64 + 0.5) * bw / gw as f64;
                            let parts = bilinear(plane, image.height, image.width, y, x);
                            sum += parts.iter().sum::<f64>();
                            let top = parts.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                            best = Some(best.map_or(top, |b| b.max(top)));
                        }
                    }
                    out.push(if max { best.unwrap_or(0.0) } else { sum / (gh * gw).max(1) as f64 });
                }
            }
        }
    }
    Ok(vec![Tensor::from_f64(ctx.tensor(0)?.elem(), shape, out).into()])
}

/// The four weighted neighbours of a point; zeros more than one pixel outside.
fn bilinear(plane: &[f64], height: usize, width: usize, y: f64, x: f64) -> [f64; 4] {
    if !(y >= -1.0 && y <= height as f64 && x >= -1.0 && x <= width as f64) || height == 0 || width == 0 {
        return [0.0; 4];
    }
    let axis = |v: f64, len: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low >= len - 1 { (len - 1, len - 1, 0.0) } else { (low, low + 1, v - low as f64) }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (axis(y, height), axis(x, width));
    let (hy, hx) = (1.0 - ly, 1.0 - lx);
    [
        hy * hx * plane[y0 * width + x0],
        hy * lx * plane[y0 * width + x1],
        ly * hx * plane[y1 * width + x0],
        ly * lx * plane[y1 * width + x1],
    ]
}
