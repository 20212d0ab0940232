//! Between numbers and codes: per tensor, per axis, per block.

use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance, resolve_axis,
};
use crate::tensor::{Data, Tensor, Value, strides};
use crate::types::TensorType;
use crate::{ElemType, Type, ValueId, minifloat};

const AXIS: AttrDef = AttrDef::new("axis", AttrKind::Int, Default::Int(1), "axis of the scales, if there are several");
const BLOCK_SIZE: AttrDef =
    AttrDef::new("block_size", AttrKind::Int, Default::Int(0), "elements along the axis that share a scale; 0: by shapes");
const OUTPUT_DTYPE: AttrDef =
    AttrDef::new("output_dtype", AttrKind::Elem, Default::Absent, "type of the result");

/// Numbers to codes.
pub static QUANTIZE_LINEAR: OpDef = OpDef {
    name: "quantize_linear",
    summary: "saturate(round(x / scale) + zero_point), ties to even; small floats saturate without a zero point",
    source: "ONNX QuantizeLinear-28",
    operands: &[Operand::One("x"), Operand::One("y_scale"), Operand::Optional("y_zero_point")],
    attrs: &[
        AXIS,
        BLOCK_SIZE,
        OUTPUT_DTYPE,
        AttrDef::new("precision", AttrKind::Elem, Default::Absent, "type of the division"),
        AttrDef::new("saturate", AttrKind::Int, Default::Int(1), "8-bit floats: 0 overflows to NaN or infinity"),
    ],
    infer: |ctx| {
        let zero = if ctx.has(2) { Some(ctx.elem(2)?) } else { None };
        let elem = match (ctx.elem_attr("output_dtype"), zero) {
            (Some(a), Some(b)) if a != b => {
                return Err(OpError::new(format!("attribute `output_dtype` is {a}, the zero point has {b}")));
            }
            (a, b) => a.or(b).unwrap_or(ElemType::U8),
        };
        scale_fits(ctx)?;
        Ok(vec![like(ctx, elem)?])
    },
    eval: Eval::Direct(eval_quantize),
    decompose: Some(decompose_quantize),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Codes to numbers.
pub static DEQUANTIZE_LINEAR: OpDef = OpDef {
    name: "dequantize_linear",
    summary: "(x - zero_point) * scale",
    source: "ONNX DequantizeLinear-28",
    operands: &[Operand::One("x"), Operand::One("x_scale"), Operand::Optional("x_zero_point")],
    attrs: &[AXIS, BLOCK_SIZE, OUTPUT_DTYPE],
    infer: |ctx| {
        scale_fits(ctx)?;
        let elem = ctx.elem_attr("output_dtype").map_or_else(|| number_of(ctx.elem(1)?), Ok)?;
        Ok(vec![like(ctx, elem)?])
    },
    eval: Eval::Direct(eval_dequantize),
    decompose: Some(decompose_dequantize),
    tolerance: Tolerance::Rounding(2),
    ..OpDef::BASE
};

/// Numbers to codes by their own range.
pub static DYNAMIC_QUANTIZE_LINEAR: OpDef = OpDef {
    name: "dynamic_quantize_linear",
    summary: "u8 codes over the range of x widened to 0; also their scale and zero point",
    source: "ONNX DynamicQuantizeLinear-11",
    operands: &[Operand::One("x")],
    results: &[Operand::One("y"), Operand::One("y_scale"), Operand::One("y_zero_point")],
    infer: |ctx| {
        let none: [i64; 0] = [];
        Ok(vec![like(ctx, ElemType::U8)?, Type::tensor(ElemType::F32, none), Type::tensor(ElemType::U8, none)])
    },
    decompose: Some(|b, node| {
        let x = node.need(0)?;
        let (y, scale, zero) = dynamic_codes(b, x)?;
        Ok(vec![y, scale, zero])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Codes, scale and zero point of `x` by its range, in `u8`.
pub(super) fn dynamic_codes(b: &mut Builder, x: ValueId) -> Result<(ValueId, ValueId, ValueId), OpError> {
    let axes: Vec<i64> = (0..b.shape(x)?.len() as i64).collect();
    let (zero, one, most) = (b.lit(x, 0.0)?, b.lit(x, 1.0)?, b.lit(x, 255.0)?);
    let high = b.reduce("reduce_max", x, &axes, false)?;
    let low = b.reduce("reduce_min", x, &axes, false)?;
    let high = b.op("max", &[high, zero])?;
    let low = b.op("min", &[low, zero])?;
    let range = b.op("sub", &[high, low])?;
    let flat = b.op("equal", &[range, zero])?;
    let range = b.op("where", &[flat, one, range])?;
    let scale = b.op("div", &[range, most])?;
    let point = b.op("div", &[low, scale])?;
    let point = b.op("sub", &[zero, point])?;
    let point = b.op("clip", &[point, zero, most])?;
    let point = b.op("round", &[point])?;
    let point = b.cast(point, ElemType::U8)?;
    let y = b.op("quantize_linear", &[x, scale, point])?;
    Ok((y, scale, point))
}

fn like(ctx: &InferCtx, elem: ElemType) -> Result<Type, OpError> {
    ctx.elem(0)?;
    Ok(Type::Tensor(TensorType { elem, shape: ctx.shape(0)?.map(<[_]>::to_vec) }))
}

/// Checks what is known of the scale's shape against the operand's.
fn scale_fits(ctx: &InferCtx) -> Result<(), OpError> {
    let (Some(x), Some(scale)) = (ctx.shape(0)?, ctx.shape(1)?) else { return Ok(()) };
    if ctx.int("block_size")? < 0 {
        return Err(OpError::new("attribute `block_size` must not be negative"));
    }
    let ok = match scale {
        [] => true,
        [n] if n.as_const() == Some(1) => true,
        [n] if x.len() != 1 || ctx.int("block_size")? == 0 => {
            let axis = resolve_axis(ctx.int("axis")?, x.len())?;
            (n - &x[axis]).as_const().is_none_or(|d| d == 0)
        }
        s => s.len() == x.len(),
    };
    if ok { Ok(()) } else { Err(OpError::new("the scale fits neither an axis nor blocks of the operand")) }
}

/// The type that a scale of this type makes numbers of.
fn number_of(scale: ElemType) -> Result<ElemType, OpError> {
    match scale {
        ElemType::F8E8M0 => Ok(ElemType::F32),
        e if e.is_float() => Ok(e),
        e => Err(OpError::new(format!("a scale of type {e} needs attribute `output_dtype`"))),
    }
}

/// From an element of `x` to that of a scale or zero point.
fn code_index(x: &[usize], scale: &[usize], axis: i64, block: usize) -> Result<Box<dyn Fn(usize) -> usize>, OpError> {
    let (n, bad) = (scale.iter().product::<usize>(), || OpError::new(format!("a scale {scale:?} does not fit an operand {x:?}")));
    if scale.is_empty() || scale.len() == 1 && n == 1 {
        return Ok(Box::new(|_| 0));
    }
    let axis = resolve_axis(axis, x.len())?;
    let (steps, len) = (strides(x), x[axis]);
    if scale.len() == 1 && n == len && block <= 1 {
        let step = steps[axis];
        return Ok(Box::new(move |i| i / step % len));
    }
    if scale.len() != x.len() || scale.iter().zip(x).enumerate().any(|(i, (s, d))| i != axis && s != d) {
        return Err(bad());
    }
    let blocks = scale[axis];
    let block = if block > 0 { block } else { len.div_ceil(blocks.max(1)) }.max(1);
    if len.div_ceil(block) != blocks {
        return Err(bad());
    }
    let inner = steps[axis];
    Ok(Box::new(move |i| (i / inner / len * blocks + i / inner % len / block) * inner + i % inner))
}

fn geometry(ctx: &EvalCtx) -> Result<(Box<dyn Fn(usize) -> usize>, Option<Vec<f64>>), OpError> {
    let (x, scale) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let block = usize::try_from(ctx.int("block_size")?).map_err(|_| OpError::new("attribute `block_size` must not be negative"))?;
    let index = code_index(x.shape(), scale.shape(), ctx.int("axis")?, block)?;
    let zero = ctx.tensor_opt(2);
    if zero.is_some_and(|z| z.len() != scale.len()) {
        return Err(OpError::new("there must be as many zero points as scales"));
    }
    Ok((index, zero.and_then(Tensor::to_f64s)))
}

fn numbers(t: &Tensor) -> Result<Vec<f64>, OpError> {
    t.to_f64s().ok_or_else(|| OpError::new(format!("is not defined for {}", t.elem())))
}

/// Type in which `x / scale` is rounded.
fn precision(x: ElemType, scale: ElemType, asked: Option<ElemType>) -> ElemType {
    match asked {
        Some(p) => p,
        None if scale == ElemType::F8E8M0 || !scale.is_float() || !x.is_float() => ElemType::F32,
        None => scale,
    }
}

fn eval_quantize(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, scale) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let elem = ctx.elem_attr("output_dtype").or(ctx.tensor_opt(2).map(Tensor::elem)).unwrap_or(ElemType::U8);
    let wide = precision(x.elem(), scale.elem(), ctx.elem_attr("precision"));
    let (index, zero) = geometry(ctx)?;
    let (xs, scales) = (numbers(x)?, numbers(scale)?);
    let ratio = |i: usize| {
        let (a, b) = (minifloat::round_to(wide, xs[i]), minifloat::round_to(wide, scales[index(i)]));
        minifloat::round_to(wide, a / b)
    };
    let point = |i: usize| zero.as_ref().map_or(0.0, |z| z[index(i)]);
    if let Some((least, most)) = elem.int_range() {
        let code = |i: usize| (ratio(i).round_ties_even() + point(i)).clamp(least as f64, most as f64) as i128;
        return Ok(vec![Tensor::from_int(elem, x.shape(), (0..xs.len()).map(code).collect()).into()]);
    }
    let saturate = ctx.flag("saturate") || elem == ElemType::F4E2M1;
    let code = |i: usize| {
        let v = ratio(i) + point(i);
        minifloat::decode(elem, minifloat::encode(elem, v, saturate))
    };
    match elem {
        ElemType::F8E4M3FN | ElemType::F8E4M3FNUZ | ElemType::F8E5M2 | ElemType::F8E5M2FNUZ | ElemType::F4E2M1 => {
            // The values are representable already, so that making the tensor does not saturate them again.
            Ok(vec![Tensor::new(elem, x.shape(), Data::Float((0..xs.len()).map(code).collect())).into()])
        }
        _ => Err(OpError::new(format!("codes of type {elem} are not defined"))),
    }
}

fn eval_dequantize(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, scale) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let elem = ctx.elem_attr("output_dtype").map_or_else(|| number_of(scale.elem()), Ok)?;
    if !elem.is_float() {
        return Err(OpError::new(format!("numbers of type {elem} are not defined")));
    }
    let (index, zero) = geometry(ctx)?;
    let (xs, scales) = (numbers(x)?, numbers(scale)?);
    let number = |i: usize| {
        let code = xs[i] - zero.as_ref().map_or(0.0, |z| z[index(i)]);
        minifloat::round_to(ElemType::F32, code) * scales[index(i)]
    };
    Ok(vec![Tensor::from_f64(elem, x.shape(), (0..xs.len()).map(number).collect()).into()])
}

/// A scale or zero point in a shape that broadcasts with `x`.
fn spread(b: &mut Builder, node: &Node, x: ValueId, v: ValueId) -> Result<ValueId, OpError> {
    let (xs, vs) = (b.shape(x)?, b.shape(v)?);
    if vs.is_empty() {
        return Ok(v);
    }
    if vs.len() == 1 && vs[0].as_const() == Some(1) {
        return b.reshape(v, &[]);
    }
    let axis = resolve_axis(node.int("axis")?, xs.len())?;
    let block = node.int("block_size")?;
    if vs.len() == 1 && (xs.len() > 1 || block == 0) {
        let after: Vec<i64> = (1..(xs.len() - axis) as i64).collect();
        return if after.is_empty() { Ok(v) } else { b.unsqueeze(v, &after) };
    }
    let (Some(len), Some(blocks)) = (xs[axis].as_const(), vs.get(axis).and_then(crate::Dim::as_const)) else {
        return Err(OpError::new("blocks along an axis of unknown length have no decomposition"));
    };
    let block = if block > 0 { block } else { (len + blocks - 1) / blocks.max(1) };
    // Every scale is repeated by a gather of `i / block`, which also cuts the last block.
    let picks: Vec<i64> = (0..len).map(|i| i / block.max(1)).collect();
    let picks = b.ints(&picks);
    b.op_with("gather", &[v, picks], [("axis", (axis as i64).into())])
}

fn decompose_quantize(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (x, scale) = (node.need(0)?, node.need(1)?);
    let elem = match node.operand(2) {
        Some(zero) => b.elem(zero)?,
        None => node.elem_attr("output_dtype").unwrap_or(ElemType::U8),
    };
    let wide = precision(b.elem(x)?, b.elem(scale)?, node.elem_attr("precision"));
    let scale = spread(b, node, x, scale)?;
    let (xw, sw) = (b.cast(x, wide)?, b.cast(scale, wide)?);
    let ratio = b.op("div", &[xw, sw])?;
    let Some((least, most)) = elem.int_range() else {
        let saturate = i64::from(node.flag("saturate"));
        return Ok(vec![b.op_with("cast", &[ratio], [("to", elem.into()), ("saturate", saturate.into())])?]);
    };
    let mut code = b.op("round", &[ratio])?;
    // The sum with a zero point of up to 16 bits is exact in f32 but not in the half types.
    code = b.cast(code, ElemType::F32)?;
    if let Some(zero) = node.operand(2) {
        let zero = spread(b, node, x, zero)?;
        let zero = b.cast(zero, ElemType::F32)?;
        code = b.op("add", &[code, zero])?;
    }
    let (least, most) = (b.lit(code, least as f64)?, b.lit(code, most as f64)?);
    let code = b.op("clip", &[code, least, most])?;
    Ok(vec![b.cast(code, elem)?])
}

fn decompose_dequantize(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (x, scale) = (node.need(0)?, node.need(1)?);
    let own = b.elem(scale)?;
    let elem = node.elem_attr("output_dtype").map_or_else(|| number_of(own), Ok)?;
    let mut code = x;
    if let Some(zero) = node.operand(2).filter(|_| b.elem(x).is_ok_and(|e| !e.is_float())) {
        let zero = spread(b, node, x, zero)?;
        let (wide, zero) = (b.cast(x, ElemType::I32)?, b.cast(zero, ElemType::I32)?);
        code = b.op("sub", &[wide, zero])?;
    }
    let code = b.cast(code, ElemType::F32)?;
    let scale = spread(b, node, x, scale)?;
    let scale = b.cast(scale, ElemType::F32)?;
    let y = b.op("mul", &[code, scale])?;
    Ok(vec![b.cast(y, elem)?])
}
