//! Random numbers, and ops that draw them.
//!
//! ONNX leaves the generator open. Ours is SplitMix64, so that a seed gives the same numbers on every
//! machine; without a seed every evaluation of a node draws anew.
//! Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

use super::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, checked_count};
use crate::builder::Builder;
use crate::graph::Node;
use crate::random::SplitMix64;
use crate::tensor::{Tensor, Value};
use crate::types::TensorType;
use crate::{Attr, Dim, ElemType, Type, ValueId};
use std::sync::atomic::{AtomicU64, Ordering};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &RANDOM_NORMAL,
    &RANDOM_UNIFORM,
    &RANDOM_NORMAL_LIKE,
    &RANDOM_UNIFORM_LIKE,
    &BERNOULLI,
    &MULTINOMIAL,
    &DROPOUT,
];

const SEED: AttrDef = AttrDef::new("seed", AttrKind::Float, Default::Absent, "start of the generator; different each time if left out");
const SHAPE: AttrDef = AttrDef::new("shape", AttrKind::Ints, Default::Required, "shape of the result");
const DTYPE: AttrDef = AttrDef::new("dtype", AttrKind::Elem, Default::Elem(ElemType::F32), "element type of the result");
const LIKE: AttrDef = AttrDef::new("dtype", AttrKind::Elem, Default::Absent, "element type of the result, else the operand's");
const MEAN: AttrDef = AttrDef::new("mean", AttrKind::Float, Default::Float(0.0), "mean");
const SCALE: AttrDef = AttrDef::new("scale", AttrKind::Float, Default::Float(1.0), "standard deviation");
const LOW: AttrDef = AttrDef::new("low", AttrKind::Float, Default::Float(0.0), "lower bound");
const HIGH: AttrDef = AttrDef::new("high", AttrKind::Float, Default::Float(1.0), "upper bound");

/// Normal distribution.
pub static RANDOM_NORMAL: OpDef = OpDef {
    name: "random_normal",
    summary: "normally distributed numbers",
    source: "ONNX RandomNormal-22",
    attrs: &[DTYPE, MEAN, SCALE, SEED, SHAPE],
    infer: infer_random,
    eval: Eval::Direct(|ctx| fill(ctx, normal)),
    pure: false,
    ..OpDef::BASE
};

/// Uniform distribution.
pub static RANDOM_UNIFORM: OpDef = OpDef {
    name: "random_uniform",
    summary: "uniformly distributed numbers",
    source: "ONNX RandomUniform-22",
    attrs: &[DTYPE, HIGH, LOW, SEED, SHAPE],
    infer: infer_random,
    eval: Eval::Direct(|ctx| fill(ctx, uniform)),
    pure: false,
    ..OpDef::BASE
};

/// Normal distribution, shaped as another tensor.
pub static RANDOM_NORMAL_LIKE: OpDef = OpDef {
    name: "random_normal_like",
    summary: "normally distributed numbers in the shape of the operand",
    source: "ONNX RandomNormalLike-22",
    operands: &[Operand::One("input")],
    attrs: &[LIKE, MEAN, SCALE, SEED],
    infer: infer_random,
    eval: Eval::Direct(|ctx| fill(ctx, normal)),
    pure: false,
    ..OpDef::BASE
};

/// Uniform distribution, shaped as another tensor.
pub static RANDOM_UNIFORM_LIKE: OpDef = OpDef {
    name: "random_uniform_like",
    summary: "uniformly distributed numbers in the shape of the operand",
    source: "ONNX RandomUniformLike-22",
    operands: &[Operand::One("input")],
    attrs: &[LIKE, HIGH, LOW, SEED],
    infer: infer_random,
    eval: Eval::Direct(|ctx| fill(ctx, uniform)),
    pure: false,
    ..OpDef::BASE
};

/// Coin tosses.
pub static BERNOULLI: OpDef = OpDef {
    name: "bernoulli",
    summary: "1 with the probability that the operand gives, else 0",
    source: "ONNX Bernoulli-22",
    operands: &[Operand::One("input")],
    attrs: &[LIKE, SEED],
    infer: infer_random,
    eval: Eval::Direct(|ctx| {
        let p = ctx.tensor(0)?.to_f64s().ok_or_else(|| OpError::new("probabilities must be numbers"))?;
        let (mut rng, elem) = (generator(ctx), ctx.elem_attr("dtype").unwrap_or(ctx.tensor(0)?.elem()));
        let draws: Vec<bool> = p.into_iter().map(|p| rng.unit() < p).collect();
        let shape = ctx.tensor(0)?.shape();
        Ok(vec![numbers(elem, shape, draws.into_iter().map(|d| f64::from(u8::from(d))).collect())?.into()])
    }),
    pure: false,
    ..OpDef::BASE
};

/// Samples of categories.
pub static MULTINOMIAL: OpDef = OpDef {
    name: "multinomial",
    summary: "draws `sample_size` categories per row, by unnormalised log probabilities",
    source: "ONNX Multinomial-22",
    operands: &[Operand::One("input")],
    attrs: &[
        AttrDef::new("dtype", AttrKind::Elem, Default::Elem(ElemType::I32), "element type of the result"),
        AttrDef::new("sample_size", AttrKind::Int, Default::Int(1), "draws per row"),
        SEED,
    ],
    infer: |ctx| {
        let batch = match ctx.shape(0)? {
            Some([batch, _]) => batch.clone(),
            None => ctx.fresh_dim(),
            Some(_) => return Err(OpError::new("takes rank 2")),
        };
        let elem = ctx.elem_attr("dtype").unwrap_or(ElemType::I32);
        Ok(vec![Type::tensor(elem, [batch, Dim::from(ctx.int("sample_size")?.max(0))])])
    },
    eval: Eval::Direct(multinomial),
    pure: false,
    ..OpDef::BASE
};

/// Elements dropped in training.
pub static DROPOUT: OpDef = OpDef {
    name: "dropout",
    summary: "in training drops elements with probability `ratio` and scales the others; else the operand itself",
    source: "ONNX Dropout-22",
    operands: &[Operand::One("data"), Operand::Optional("ratio"), Operand::Optional("training_mode")],
    results: &[Operand::One("output"), Operand::Optional("mask")],
    attrs: &[AttrDef::new("seed", AttrKind::Int, Default::Absent, "start of the generator; different each time if left out")],
    infer: |ctx| {
        ctx.elem(0)?;
        let shape = ctx.shape(0)?.map(<[Dim]>::to_vec);
        Ok(vec![ctx.ty(0)?.clone(), Type::Tensor(TensorType { elem: ElemType::Bool, shape })])
    },
    eval: Eval::Direct(dropout),
    decompose: Some(dropout_inference),
    pure: false,
    ..OpDef::BASE
};

/// The generator that a node's `seed` starts.
fn generator(ctx: &EvalCtx) -> SplitMix64 {
    static DRAWS: AtomicU64 = AtomicU64::new(0);
    match ctx.attr("seed") {
        Some(Attr::Float(seed)) => SplitMix64::new(u64::from(seed.to_bits())),
        Some(Attr::Int(seed)) => SplitMix64::new(seed as u64),
        _ => SplitMix64::new(SplitMix64::new(DRAWS.fetch_add(1, Ordering::Relaxed)).next_u64()),
    }
}

fn normal(ctx: &EvalCtx, rng: &mut SplitMix64) -> f64 {
    // Box and Muller; 1 - u keeps the logarithm finite.
    let (u, v) = (1.0 - rng.unit(), rng.unit());
    let z = (-2.0 * libm::log(u)).sqrt() * libm::cos(std::f64::consts::TAU * v);
    f64::from(ctx.float("mean").unwrap_or(0.0)) + f64::from(ctx.float("scale").unwrap_or(1.0)) * z
}

fn uniform(ctx: &EvalCtx, rng: &mut SplitMix64) -> f64 {
    let (low, high) = (f64::from(ctx.float("low").unwrap_or(0.0)), f64::from(ctx.float("high").unwrap_or(1.0)));
    low + (high - low) * rng.unit()
}

fn infer_random(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let given = ctx.elem_attr("dtype");
    if !ctx.types.is_empty() {
        let elem = given.map_or_else(|| ctx.elem(0), Ok)?;
        let shape = ctx.shape(0)?.map(<[Dim]>::to_vec);
        return Ok(vec![Type::Tensor(TensorType { elem, shape })]);
    }
    let shape = ctx.ints("shape").ok_or_else(|| OpError::new("attribute `shape` is missing"))?;
    if shape.iter().any(|&d| d < 0) {
        return Err(OpError::new("`shape` must not be negative"));
    }
    Ok(vec![Type::tensor(given.unwrap_or(ElemType::F32), shape)])
}

fn fill(ctx: &EvalCtx, draw: fn(&EvalCtx, &mut SplitMix64) -> f64) -> Result<Vec<Value>, OpError> {
    let (elem, shape) = match ctx.tensor_opt(0) {
        Some(like) => (ctx.elem_attr("dtype").unwrap_or(like.elem()), like.shape().to_vec()),
        None => {
            let dims = ctx.ints("shape").unwrap_or_default();
            let shape: Result<_, _> = dims.iter().map(|&d| usize::try_from(d)).collect();
            let shape = shape.map_err(|_| OpError::new("`shape` must not be negative"))?;
            (ctx.elem_attr("dtype").unwrap_or(ElemType::F32), shape)
        }
    };
    let mut rng = generator(ctx);
    let values = (0..checked_count(&shape)?).map(|_| draw(ctx, &mut rng)).collect();
    Ok(vec![numbers(elem, &shape, values)?.into()])
}

fn numbers(elem: ElemType, shape: &[usize], values: Vec<f64>) -> Result<Tensor, OpError> {
    if elem.is_float() {
        Ok(Tensor::from_f64(elem, shape, values))
    } else if elem.int_range().is_some() {
        Ok(Tensor::from_int(elem, shape, values.into_iter().map(|v| v as i128).collect()))
    } else {
        Err(OpError::new(format!("cannot draw numbers of type {elem}")))
    }
}

fn multinomial(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let (&[batch, classes], Some(logits)) = (x.shape(), x.floats()) else {
        return Err(OpError::new("takes floats of rank 2"));
    };
    let draws = usize::try_from(ctx.int("sample_size")?).map_err(|_| OpError::new("`sample_size` must not be negative"))?;
    checked_count(&[batch, draws])?;
    if classes == 0 {
        return Err(OpError::new("there is no category to draw"));
    }
    let mut rng = generator(ctx);
    let mut out = Vec::with_capacity(batch * draws);
    for row in logits.chunks_exact(classes) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = row.iter().map(|v| libm::exp(v - top)).collect();
        let total: f64 = weights.iter().sum();
        for _ in 0..draws {
            let mut left = rng.unit() * total;
            let found = weights.iter().position(|w| {
                left -= w;
                left < 0.0
            });
            out.push(found.unwrap_or(classes - 1) as f64);
        }
    }
    let elem = ctx.elem_attr("dtype").unwrap_or(ElemType::I32);
    Ok(vec![numbers(elem, &[batch, draws], out)?.into()])
}

fn dropout(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let training = match ctx.tensor_opt(2) {
        Some(t) => t.integers().is_some_and(|v| v.iter().any(|&v| v != 0)),
        None => false,
    };
    let ratio = match ctx.tensor_opt(1) {
        Some(t) => t.to_f64s().and_then(|v| v.first().copied()).ok_or_else(|| OpError::new("`ratio` must be a number"))?,
        None => 0.5,
    };
    let mask = |keep: Vec<i128>| Tensor::from_int(ElemType::Bool, x.shape(), keep).into();
    if !training || ratio == 0.0 {
        return Ok(vec![x.clone().into(), mask(vec![1; x.len()])]);
    }
    let values = x.floats().ok_or_else(|| OpError::new("takes floats"))?;
    let mut rng = generator(ctx);
    let keep: Vec<i128> = values.iter().map(|_| i128::from(rng.unit() >= ratio)).collect();
    let out = values.iter().zip(&keep).map(|(v, &k)| if k == 1 { v / (1.0 - ratio) } else { 0.0 }).collect();
    Ok(vec![Tensor::from_f64(x.elem(), x.shape(), out).into(), mask(keep)])
}

/// Outside training: `dropout(x)` => `identity(x)`, and a mask of ones.
fn dropout_inference(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let data = node.operand(0).ok_or_else(|| OpError::new("operand 0 is missing"))?;
    if let Some(training) = node.operand(2) {
        let known = b.module.as_constant(training).and_then(|c| c.decode().ok());
        if known.and_then(|t| t.to_i64s()).is_none_or(|v| v.iter().any(|&v| v != 0)) {
            return Err(OpError::new("training mode draws random numbers, which has no decomposition"));
        }
    }
    let mut out = vec![b.op("identity", &[data])?];
    if node.results.len() > 1 {
        let (one, shape) = (b.constant(&Tensor::bool(true)), b.op("shape", &[data])?);
        out.push(b.op("expand", &[one, shape])?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use crate::Attr;
    use crate::eval::testing::{f32s, gives, i64s, run};
    use crate::tensor::Value;

    fn floats(v: &[Value]) -> Vec<f64> {
        v[0].as_tensor().and_then(|t| t.to_f64s()).unwrap_or_default()
    }

    #[test]
    fn seeds_repeat_and_their_absence_does_not() {
        let draw = |seed: Option<f32>| {
            let mut attrs = vec![("shape", Attr::Ints(vec![1000]))];
            attrs.extend(seed.map(|s| ("seed", Attr::Float(s))));
            floats(&run("random_normal", &[], &attrs, 1).expect("draws"))
        };
        assert_eq!(draw(Some(1.0)), draw(Some(1.0)));
        assert_ne!(draw(None), draw(None));
        let v = draw(Some(2.0));
        let mean = v.iter().sum::<f64>() / 1000.0;
        let var = v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 1000.0;
        assert!(mean.abs() < 0.15 && (var - 1.0).abs() < 0.15, "{mean} {var}");
    }

    #[test]
    fn draws_follow_their_probabilities() {
        let p = f32s(&[3], &[0.0, 1.0, 0.0]);
        gives("bernoulli", std::slice::from_ref(&p), &[], std::slice::from_ref(&p));
        let logits = f32s(&[1, 3], &[-1e9, 0.0, -1e9]);
        let attrs = [("sample_size", Attr::Int(3)), ("dtype", Attr::Elem(crate::ElemType::I64))];
        gives("multinomial", &[logits], &attrs, &[i64s(&[1, 3], &[1, 1, 1])]);
        let x = f32s(&[2], &[1.0, 2.0]);
        gives("dropout", std::slice::from_ref(&x), &[], std::slice::from_ref(&x));
    }
}
