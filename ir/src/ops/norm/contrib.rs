//! Fused normalizations and activations of ONNX Runtime's transformer optimizer.

use super::batch::same_type;
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::{Dim, ElemType, Type, ValueId};

const EPSILON_12: AttrDef =
    AttrDef::new("epsilon", AttrKind::Float, Default::Float(1e-12), "added to the variance");

/// Layer normalization of a sum.
pub static SKIP_LAYER_NORMALIZATION: OpDef = OpDef {
    name: "skip_layer_normalization",
    summary: "layer normalization of input + skip + bias over the last axis; also the sum",
    source: "ONNX Runtime com.microsoft SkipLayerNormalization-1",
    operands: &[
        Operand::One("input"),
        Operand::One("skip"),
        Operand::One("gamma"),
        Operand::Optional("beta"),
        Operand::Optional("bias"),
    ],
    results: &[
        Operand::One("output"),
        Operand::Optional("mean"),
        Operand::Optional("inv_std_var"),
        Operand::Optional("input_skip_bias_sum"),
    ],
    attrs: &[EPSILON_12],
    infer: infer_skip,
    decompose: Some(|b, node| {
        let sum = skip_sum(b, node, 4)?;
        let mut out = layer_norm(b, node, sum, node.need(2)?, node.operand(3), node.results.len().clamp(1, 3))?;
        if node.results.len() > 3 {
            out.push(sum);
        }
        Ok(out)
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// RMS normalization of a sum.
pub static SKIP_SIMPLIFIED_LAYER_NORMALIZATION: OpDef = OpDef {
    name: "skip_simplified_layer_normalization",
    summary: "RMS normalization of input + skip + bias over the last axis; also the sum",
    source: "ONNX Runtime com.microsoft SkipSimplifiedLayerNormalization-1",
    operands: &[Operand::One("input"), Operand::One("skip"), Operand::One("gamma"), Operand::Optional("bias")],
    results: &[
        Operand::One("output"),
        Operand::Optional("mean"),
        Operand::Optional("inv_std_var"),
        Operand::Optional("input_skip_bias_sum"),
    ],
    attrs: &[EPSILON_12],
    infer: infer_skip,
    decompose: Some(|b, node| {
        let sum = skip_sum(b, node, 3)?;
        let eps = node.float("epsilon").unwrap_or(1e-12);
        let attrs = [("axis", (-1i64).into()), ("epsilon", (eps as f32).into())];
        let mut out = vec![b.op_with("rms_normalization", &[sum, node.need(2)?], attrs)?];
        if node.results.len() > 1 {
            // The mean is not computed; the position exists only to keep the order of results.
            let wide = b.cast(sum, ElemType::F32)?;
            out.push(b.reduce("reduce_mean", wide, &[-1], true)?);
            out.push(super::layer::inverse_rms(b, wide, -1, eps)?);
            out.push(sum);
            out.truncate(node.results.len());
        }
        Ok(out)
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Embeddings of BERT.
pub static EMBED_LAYER_NORMALIZATION: OpDef = OpDef {
    name: "embed_layer_normalization",
    summary: "layer normalization of word + position + segment embeddings; also the mask's lengths and the sum",
    source: "ONNX Runtime com.microsoft EmbedLayerNormalization-1",
    operands: &[
        Operand::One("input_ids"),
        Operand::Optional("segment_ids"),
        Operand::One("word_embedding"),
        Operand::One("position_embedding"),
        Operand::Optional("segment_embedding"),
        Operand::One("gamma"),
        Operand::One("beta"),
        Operand::Optional("mask"),
        Operand::Optional("position_ids"),
    ],
    results: &[Operand::One("output"), Operand::Optional("mask_index"), Operand::Optional("embedding_sum")],
    attrs: &[
        EPSILON_12,
        AttrDef::new("mask_index_type", AttrKind::Int, Default::Int(0), "kept for its readers; `mask_index` sums the mask, and is zero without one"),
    ],
    infer: |ctx| {
        let elem = ctx.elem(2)?;
        let (n, s) = match ctx.shape(0)? {
            Some([n, s]) => (n.clone(), s.clone()),
            Some(_) => return Err(OpError::new("operand 0 must have rank 2")),
            None => (ctx.fresh_dim(), ctx.fresh_dim()),
        };
        let h = ctx.shape(2)?.and_then(<[_]>::last).cloned().unwrap_or_else(|| ctx.fresh_dim());
        let y = Type::tensor(elem, [n.clone(), s, h]);
        Ok(vec![y.clone(), Type::tensor(ElemType::I32, [n]), y])
    },
    decompose: Some(decompose_embed),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Gelu of a biased value.
pub static BIAS_GELU: OpDef = OpDef {
    name: "bias_gelu",
    summary: "gelu(a + b), b along the last axis",
    source: "ONNX Runtime com.microsoft BiasGelu-1",
    operands: &[Operand::One("a"), Operand::One("b")],
    infer: |ctx| Ok(vec![same_type(ctx)?]),
    decompose: Some(|b, node| {
        let sum = b.op("add", &[node.need(0)?, node.need(1)?])?;
        Ok(vec![b.op("gelu", &[sum])?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Gelu by tanh.
pub static FAST_GELU: OpDef = OpDef {
    name: "fast_gelu",
    summary: "the tanh approximation of gelu(x + bias)",
    source: "ONNX Runtime com.microsoft FastGelu-1",
    operands: &[Operand::One("x"), Operand::Optional("bias")],
    infer: |ctx| Ok(vec![same_type(ctx)?]),
    decompose: Some(|b, node| {
        let mut x = node.need(0)?;
        if let Some(bias) = node.operand(1) {
            x = b.op("add", &[x, bias])?;
        }
        Ok(vec![b.op_with("gelu", &[x], [("approximate", "tanh".into())])?])
    }),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Gelu by a sigmoid.
pub static QUICK_GELU: OpDef = OpDef {
    name: "quick_gelu",
    summary: "x * sigmoid(alpha * x)",
    source: "ONNX Runtime com.microsoft QuickGelu-1",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("alpha", AttrKind::Float, Default::Float(1.702), "slope")],
    infer: |ctx| Ok(vec![same_type(ctx)?]),
    decompose: Some(|b, node| {
        let x = node.need(0)?;
        let alpha = b.lit(x, node.float("alpha").unwrap_or(1.702))?;
        let scaled = b.op("mul", &[x, alpha])?;
        let gate = b.op("sigmoid", &[scaled])?;
        Ok(vec![b.op("mul", &[x, gate])?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

fn infer_skip(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let y = same_type(ctx)?;
    let stat = match ctx.shape(0)? {
        Some([front @ .., _]) => {
            let mut shape = front.to_vec();
            shape.push(Dim::from(1i64));
            Type::tensor(ElemType::F32, shape)
        }
        Some([]) => return Err(OpError::new("operand 0 must have an axis")),
        None => Type::unranked(ElemType::F32),
    };
    Ok(vec![y.clone(), stat.clone(), stat, y])
}

fn skip_sum(b: &mut Builder, node: &Node, bias: usize) -> Result<ValueId, OpError> {
    let sum = b.op("add", &[node.need(0)?, node.need(1)?])?;
    match node.operand(bias) {
        Some(bias) => b.op("add", &[sum, bias]),
        None => Ok(sum),
    }
}

fn layer_norm(
    b: &mut Builder,
    node: &Node,
    x: ValueId,
    gamma: ValueId,
    beta: Option<ValueId>,
    n_results: usize,
) -> Result<Vec<ValueId>, OpError> {
    let eps = node.float("epsilon").unwrap_or(1e-12) as f32;
    let attrs = [("axis", (-1i64).into()), ("epsilon", eps.into())];
    b.multi("layer_normalization", &[Some(x), Some(gamma), beta], &attrs, n_results)
}

fn decompose_embed(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    use crate::ops::compose::Len;
    let ids = node.need(0)?;
    let rows = |b: &mut Builder, table: ValueId, ids: ValueId| b.op_with("gather", &[table, ids], [("axis", 0i64.into())]);
    let word = rows(b, node.need(2)?, ids)?;
    let positions = match node.operand(8) {
        Some(ids) => rows(b, node.need(3)?, ids)?,
        None => {
            let all = b.iota(Len::Of(ids, 1))?;
            rows(b, node.need(3)?, all)?
        }
    };
    let mut sum = b.op("add", &[word, positions])?;
    if let (Some(ids), Some(table)) = (node.operand(1), node.operand(4)) {
        let segment = rows(b, table, ids)?;
        sum = b.op("add", &[sum, segment])?;
    }
    let mut out = layer_norm(b, node, sum, node.need(5)?, Some(node.need(6)?), 1)?;
    if node.results.len() > 1 {
        out.push(match node.operand(7) {
            Some(mask) => {
                let mask = b.cast(mask, ElemType::I32)?;
                b.reduce("reduce_sum", mask, &[1], false)?
            }
            None => b.filled(ElemType::I32, 0.0, &[Len::Of(ids, 0)])?,
        });
    }
    if node.results.len() > 2 {
        out.push(sum);
    }
    Ok(out)
}
