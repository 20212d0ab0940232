//! Deformable convolution: every tap reads at an offset of its own, by linear interpolation.

use super::{DILATIONS, GROUP, KERNEL_SHAPE, PADS, STRIDES, infer_conv};
use crate::ops::linear::checked_count;
use crate::ops::window::{WindowAttrs, image_shape, unravel};
use crate::ops::{AttrDef, AttrKind, Default, Eval, EvalCtx, OpDef, OpError, Operand, Tolerance};
use crate::tensor::{Tensor, Value, count, strides};

/// Deformable convolution.
pub static DEFORM_CONV: OpDef = OpDef {
    name: "deform_conv",
    summary: "convolution whose taps are moved by `offset` and weighted by `mask`",
    source: "ONNX DeformConv-22; Deformable ConvNets v2 (arXiv 1811.11168)",
    operands: &[
        Operand::One("x"),
        Operand::One("w"),
        Operand::One("offset"),
        Operand::Optional("b"),
        Operand::Optional("mask"),
    ],
    attrs: &[
        DILATIONS,
        GROUP,
        KERNEL_SHAPE,
        AttrDef::new("offset_group", AttrKind::Int, Default::Int(1), "groups of channels that share offsets"),
        PADS,
        STRIDES,
    ],
    infer: |ctx| infer_conv(ctx, 0, 1, ctx.elem(0)?),
    eval: Eval::Direct(eval),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

fn eval(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, w, offset) = (ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(2)?);
    let (n, c, spatial) = image_shape(x.shape())?;
    let (m, c_group, kernel) = image_shape(w.shape())?;
    let positive = |name: &str| -> Result<usize, OpError> {
        usize::try_from(ctx.int(name)?).ok().filter(|&g| g > 0).ok_or_else(|| OpError::new(format!("attribute `{name}` must be positive")))
    };
    let (group, offset_group) = (positive("group")?, positive("offset_group")?);
    let axes = spatial.len();
    let window = WindowAttrs::read(ctx.node, kernel.iter().map(|&k| k as i64).collect())?.over(spatial)?;
    let (taps, places, plane) = (count(kernel), count(&window.out), count(spatial));
    if c != c_group * group || m % group != 0 || c % offset_group != 0 {
        return Err(OpError::new(format!("filters {:?} do not fit an input {:?} in {group} groups", w.shape(), x.shape())));
    }
    let (mask, bias) = (ctx.tensor_opt(4), ctx.tensor_opt(3));
    if offset.len() != n * offset_group * taps * axes * places
        || mask.is_some_and(|t| t.len() != n * offset_group * taps * places)
        || bias.is_some_and(|t| t.len() != m)
    {
        return Err(OpError::new("the offsets, mask or bias do not fit the window"));
    }
    let float = |t: &Tensor| t.to_f64s().ok_or_else(|| OpError::new(format!("is not defined for {}", t.elem())));
    let (xs, ws, offsets) = (float(x)?, float(w)?, float(offset)?);
    let mask = mask.map(float).transpose()?;
    let bias = bias.map(float).transpose()?;
    let mut shape = vec![n, m];
    shape.extend(&window.out);
    let mut out = vec![0.0; checked_count(&shape)?];
    let steps = strides(spatial);
    let mut at = vec![0.0; axes];
    for i in 0..n {
        for ch in 0..c {
            let og = i * offset_group + ch / (c / offset_group);
            let g = ch / c_group;
            let image = &xs[(i * c + ch) * plane..][..plane];
            for place in 0..places {
                let index = unravel(place, &window.out);
                for tap in 0..taps {
                    let k = unravel(tap, kernel);
                    for a in 0..axes {
                        let base = (index[a] * window.strides[a] + k[a] * window.dilations[a]) as f64 - window.begin[a] as f64;
                        at[a] = base + offsets[((og * taps + tap) * axes + a) * places + place];
                    }
                    let mut v = interpolate(image, spatial, &steps, &at);
                    if let Some(mask) = &mask {
                        v *= mask[(og * taps + tap) * places + place];
                    }
                    for o in g * (m / group)..(g + 1) * (m / group) {
                        out[(i * m + o) * places + place] += v * ws[(o * c_group + ch % c_group) * taps + tap];
                    }
                }
            }
        }
    }
    if let Some(bias) = bias {
        out.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i / places.max(1) % m]);
    }
    Ok(vec![Tensor::from_f64(x.elem(), shape, out).into()])
}

/// N-linear interpolation at `at`; what lies outside is zero.
fn interpolate(image: &[f64], shape: &[usize], steps: &[usize], at: &[f64]) -> f64 {
    let mut sum = 0.0;
    'corner: for corner in 0..1usize << shape.len() {
        let (mut weight, mut position) = (1.0, 0);
        for a in 0..shape.len() {
            let low = at[a].floor();
            let high = corner >> a & 1 == 1;
            let p = if high { low + 1.0 } else { low };
            weight *= if high { at[a] - low } else { low + 1.0 - at[a] };
            if weight == 0.0 || !(p >= 0.0 && p < shape[a] as f64) {
                continue 'corner;
            }
            position += p as usize * steps[a];
        }
        sum += weight * image[position];
    }
    sum
}
