//! Pooling: over windows, over whole images, over regions of interest.

mod roi;
mod unpool;

use super::linear::checked_count;
use super::window::{Window, WindowAttrs, image, image_shape, unravel};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Data, Tensor, Value, count};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type, ValueId};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &MAX_POOL,
    &AVERAGE_POOL,
    &LP_POOL,
    &GLOBAL_AVERAGE_POOL,
    &GLOBAL_MAX_POOL,
    &GLOBAL_LP_POOL,
    &unpool::MAX_UNPOOL,
    &roi::MAX_ROI_POOL,
    &roi::ROI_ALIGN,
];

const AUTO_PAD: AttrDef = AttrDef::new(
    "auto_pad",
    AttrKind::Str,
    Default::Str("NOTSET"),
    "NOTSET, VALID, SAME_UPPER or SAME_LOWER",
);
const CEIL_MODE: AttrDef = AttrDef::new("ceil_mode", AttrKind::Int, Default::Int(0), "round the number of windows up");
const DILATIONS: AttrDef = AttrDef::new("dilations", AttrKind::Ints, Default::Absent, "steps between taps; 1 each");
const KERNEL_SHAPE: AttrDef = AttrDef::new("kernel_shape", AttrKind::Ints, Default::Required, "taps per axis");
const PADS: AttrDef = AttrDef::new("pads", AttrKind::Ints, Default::Absent, "padding: begins, then ends; 0 each");
const STRIDES: AttrDef = AttrDef::new("strides", AttrKind::Ints, Default::Absent, "steps between windows; 1 each");
const P: AttrDef = AttrDef::new("p", AttrKind::Int, Default::Int(2), "exponent of the norm");

/// Largest element of each window.
pub static MAX_POOL: OpDef = OpDef {
    name: "max_pool",
    summary: "largest element of each window, and where it was found in the whole operand",
    source: "ONNX MaxPool-22",
    operands: &[Operand::One("x")],
    results: &[Operand::One("y"), Operand::Optional("indices")],
    attrs: &[
        AUTO_PAD,
        CEIL_MODE,
        DILATIONS,
        KERNEL_SHAPE,
        PADS,
        AttrDef::new("storage_order", AttrKind::Int, Default::Int(0), "1: indices count column-major"),
        STRIDES,
    ],
    infer: |ctx| {
        let shape = infer_pool(ctx)?;
        let ty = |elem| Type::Tensor(TensorType { elem, shape: shape.clone() });
        Ok(vec![ty(ctx.elem(0)?), ty(ElemType::I64)])
    },
    eval: Eval::Direct(eval_max_pool),
    ..OpDef::BASE
};

/// Mean of each window.
pub static AVERAGE_POOL: OpDef = OpDef {
    name: "average_pool",
    summary: "mean of each window, with or without its padding",
    source: "ONNX AveragePool-22",
    operands: &[Operand::One("x")],
    attrs: &[
        AUTO_PAD,
        CEIL_MODE,
        AttrDef::new("count_include_pad", AttrKind::Int, Default::Int(0), "padding counts as zeros"),
        DILATIONS,
        KERNEL_SHAPE,
        PADS,
        STRIDES,
    ],
    infer: |ctx| Ok(vec![Type::Tensor(TensorType { elem: ctx.elem(0)?, shape: infer_pool(ctx)? })]),
    eval: Eval::Direct(|ctx| {
        let with_pad = ctx.flag("count_include_pad");
        eval_windows(ctx, |window, at, spatial, values| {
            let n = if with_pad { window.padded_taps(at, spatial) } else { values.len() };
            values.iter().sum::<f64>() / n as f64
        })
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Norm of each window.
pub static LP_POOL: OpDef = OpDef {
    name: "lp_pool",
    summary: "p-norm of each window",
    source: "ONNX LpPool-22",
    operands: &[Operand::One("x")],
    attrs: &[AUTO_PAD, CEIL_MODE, DILATIONS, KERNEL_SHAPE, P, PADS, STRIDES],
    infer: |ctx| Ok(vec![Type::Tensor(TensorType { elem: ctx.elem(0)?, shape: infer_pool(ctx)? })]),
    eval: Eval::Direct(|ctx| {
        let p = ctx.int("p")? as f64;
        eval_windows(ctx, |_, _, _, values| {
            values.iter().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p)
        })
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Mean of every channel.
pub static GLOBAL_AVERAGE_POOL: OpDef = OpDef {
    name: "global_average_pool",
    summary: "mean over all spatial axes",
    source: "ONNX GlobalAveragePool-22",
    operands: &[Operand::One("x")],
    infer: infer_global,
    decompose: Some(|b, node| {
        let (x, axes) = spatial_axes(b, node)?;
        Ok(vec![b.reduce("reduce_mean", x, &axes, true)?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Largest element of every channel.
pub static GLOBAL_MAX_POOL: OpDef = OpDef {
    name: "global_max_pool",
    summary: "largest element over all spatial axes",
    source: "ONNX GlobalMaxPool-22",
    operands: &[Operand::One("x")],
    infer: infer_global,
    decompose: Some(|b, node| {
        let (x, axes) = spatial_axes(b, node)?;
        Ok(vec![b.reduce("reduce_max", x, &axes, true)?])
    }),
    ..OpDef::BASE
};

/// Norm of every channel.
pub static GLOBAL_LP_POOL: OpDef = OpDef {
    name: "global_lp_pool",
    summary: "p-norm over all spatial axes",
    source: "ONNX GlobalLpPool-22",
    operands: &[Operand::One("x")],
    attrs: &[P],
    infer: infer_global,
    decompose: Some(|b, node| {
        let (x, axes) = spatial_axes(b, node)?;
        let p = node.int("p")?;
        Ok(vec![match p {
            1 => b.reduce("reduce_l1", x, &axes, true)?,
            2 => b.reduce("reduce_l2", x, &axes, true)?,
            p if p > 0 => {
                let (up, down) = (b.lit(x, p as f64)?, b.lit(x, 1.0 / p as f64)?);
                let y = b.op("abs", &[x])?;
                let y = b.op("pow", &[y, up])?;
                let y = b.reduce("reduce_sum", y, &axes, true)?;
                b.op("pow", &[y, down])?
            }
            _ => return Err(OpError::new("attribute `p` must be positive")),
        }])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

fn attrs_of(node: &Node) -> Result<WindowAttrs, OpError> {
    let kernel = node.ints("kernel_shape").ok_or_else(|| OpError::new("attribute `kernel_shape` is missing"))?;
    WindowAttrs::read(node, kernel)
}

fn infer_pool(ctx: &InferCtx) -> Result<Option<Vec<Dim>>, OpError> {
    let attrs = attrs_of(ctx.node)?;
    let Some((n, c, spatial)) = image(ctx, 0)? else {
        return Ok(None);
    };
    let mut shape = vec![n.clone(), c.clone()];
    shape.extend(attrs.out_dims(spatial)?);
    Ok(Some(shape))
}

fn infer_global(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    Ok(vec![match image(ctx, 0)? {
        Some((n, c, spatial)) => {
            let mut shape = vec![n.clone(), c.clone()];
            shape.extend(spatial.iter().map(|_| Dim::from(1i64)));
            Type::tensor(elem, shape)
        }
        None => Type::unranked(elem),
    }])
}

fn spatial_axes(b: &mut Builder, node: &Node) -> Result<(ValueId, Vec<i64>), OpError> {
    let x = node.need(0)?;
    Ok((x, (2..b.shape(x)?.len() as i64).collect()))
}

/// Evaluates a float pool: one function from the values of a window to the result.
fn eval_windows(
    ctx: &EvalCtx,
    f: impl Fn(&Window, &[usize], &[usize], &[f64]) -> f64,
) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let (n, c, spatial) = image_shape(x.shape())?;
    let window = attrs_of(ctx.node)?.over(spatial)?;
    let values = x.floats().ok_or_else(|| OpError::new(format!("is not defined for {}", x.elem())))?;
    let mut shape = vec![n, c];
    shape.extend(&window.out);
    let mut out = Vec::with_capacity(checked_count(&shape)?);
    let (places, plane) = (count(&window.out), count(spatial));
    let indices: Vec<Vec<usize>> = (0..places).map(|p| unravel(p, &window.out)).collect();
    let mut taken = vec![];
    for block in 0..n * c {
        for at in &indices {
            taken.clear();
            window.taps(at, spatial, |_, p| taken.push(values[block * plane + p]));
            out.push(f(&window, at, spatial, &taken));
        }
    }
    Ok(vec![Tensor::from_f64(x.elem(), shape, out).into()])
}

fn eval_max_pool(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let (n, c, spatial) = image_shape(x.shape())?;
    let window = attrs_of(ctx.node)?.over(spatial)?;
    let mut shape = vec![n, c];
    shape.extend(&window.out);
    let total = checked_count(&shape)?;
    let (places, plane) = (count(&window.out), count(spatial));
    let maps: Vec<Vec<usize>> = (0..places)
        .map(|p| {
            let mut map = vec![];
            window.taps(&unravel(p, &window.out), spatial, |_, at| map.push(at));
            map
        })
        .collect();
    // First of the largest; a NaN wins, as it does in a chain of maxima.
    fn best<T: Copy>(v: &[T], map: &[usize], above: impl Fn(T, T) -> bool) -> Option<usize> {
        map.iter().copied().reduce(|a, b| if above(v[b], v[a]) { b } else { a })
    }
    let mut picked = Vec::with_capacity(total);
    for block in 0..n * c {
        for map in &maps {
            let at = match x.data() {
                Data::Float(v) => best(&v[block * plane..][..plane], map, |b, a| b > a || b.is_nan() && !a.is_nan()),
                Data::Int(v) => best(&v[block * plane..][..plane], map, |b, a| b > a),
                _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
            };
            picked.push(at.map(|at| (block, at)));
        }
    }
    let y = match x.data() {
        Data::Float(v) => Tensor::from_f64(
            x.elem(),
            shape.clone(),
            picked.iter().map(|p| p.map_or(f64::NEG_INFINITY, |(b, at)| v[b * plane + at])).collect(),
        ),
        Data::Int(v) => {
            let least = x.elem().int_range().map_or(0, |r| r.0);
            let out = picked.iter().map(|p| p.map_or(least, |(b, at)| v[b * plane + at])).collect();
            Tensor::from_int(x.elem(), shape.clone(), out)
        }
        _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
    };
    let columns = ctx.flag("storage_order");
    let order = |at: usize| {
        if !columns {
            return at;
        }
        let (mut out, mut step) = (0, 1);
        for (i, d) in unravel(at, spatial).iter().zip(spatial) {
            out += i * step;
            step *= d;
        }
        out
    };
    let indices = picked.iter().map(|p| p.map_or(0, |(b, at)| (b * plane + order(at)) as i128)).collect();
    Ok(vec![y.into(), Tensor::from_int(ElemType::I64, shape, indices).into()])
}
