//! ONNX Runtime's attention with its own projections, and its multi-head attention.

use super::scaled::{both, capped, join_heads, known, positions, scores, split_heads};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::{Dim, ElemType, Type, ValueId};

const FILTER: AttrDef =
    AttrDef::new("mask_filter_value", AttrKind::Float, Default::Float(-10000.0), "added where a mask forbids");
const NUM_HEADS: AttrDef = AttrDef::new("num_heads", AttrKind::Int, Default::Required, "heads");
const SCALE: AttrDef = AttrDef::new("scale", AttrKind::Float, Default::Absent, "factor of `q k'`; 1 / sqrt(head size)");
const UNIDIRECTIONAL: AttrDef =
    AttrDef::new("unidirectional", AttrKind::Int, Default::Int(0), "a token sees those before it only");

/// Attention with input projections.
pub static MS_ATTENTION: OpDef = OpDef {
    name: "ms_attention",
    summary: "attention of the projections of one input",
    source: "ONNX Runtime com.microsoft Attention-1",
    operands: &[
        Operand::One("input"),
        Operand::One("weights"),
        Operand::Optional("bias"),
        Operand::Optional("mask_index"),
        Operand::Optional("past"),
        Operand::Optional("attention_bias"),
        Operand::Optional("past_sequence_length"),
    ],
    results: &[Operand::One("output"), Operand::Optional("present")],
    attrs: &[
        AttrDef::new("do_rotary", AttrKind::Int, Default::Int(0), "must be 0"),
        FILTER,
        NUM_HEADS,
        AttrDef::new("past_present_share_buffer", AttrKind::Int, Default::Int(0), "must be 0"),
        AttrDef::new("qkv_hidden_sizes", AttrKind::Ints, Default::Absent, "widths of the projections"),
        AttrDef::new("rotary_embedding_dim", AttrKind::Int, Default::Int(0), "unused"),
        SCALE,
        UNIDIRECTIONAL,
    ],
    infer: infer_attention,
    decompose: Some(decompose_attention),
    tolerance: Tolerance::Approximate(1e-3, 1e-4),
    ..OpDef::BASE
};

/// Multi-head attention without projections.
pub static MULTI_HEAD_ATTENTION: OpDef = OpDef {
    name: "multi_head_attention",
    summary: "attention of given queries, keys and values, which may be packed",
    source: "ONNX Runtime com.microsoft MultiHeadAttention-1",
    operands: &[
        Operand::One("query"),
        Operand::Optional("key"),
        Operand::Optional("value"),
        Operand::Optional("bias"),
        Operand::Optional("key_padding_mask"),
        Operand::Optional("attention_bias"),
        Operand::Optional("past_key"),
        Operand::Optional("past_value"),
        Operand::Optional("past_sequence_length"),
        Operand::Optional("cache_indirection"),
    ],
    results: &[
        Operand::One("output"),
        Operand::Optional("present_key"),
        Operand::Optional("present_value"),
        Operand::Optional("qk"),
    ],
    attrs: &[FILTER, NUM_HEADS, SCALE, UNIDIRECTIONAL],
    infer: infer_multi_head,
    decompose: Some(decompose_multi_head),
    tolerance: Tolerance::Approximate(1e-3, 1e-4),
    ..OpDef::BASE
};

/// A mask of any of ONNX Runtime's forms as the positions `[b or 1, 1, q or 1, keys]` that are allowed.
fn allowed_by(b: &mut Builder, mask: ValueId, q: ValueId, k: ValueId) -> Result<ValueId, OpError> {
    let shape = b.shape(mask)?;
    if shape.len() == 1 {
        let batch = b.shape(q)?[0].clone();
        let column = positions(b, k, 2, false)?;
        let mask = b.cast(mask, ElemType::I64)?;
        let (ends, starts) = match (&shape[0] - &batch).as_const() {
            Some(0) => (mask, None),
            _ => {
                let n = batch.as_const().ok_or_else(|| OpError::new("a mask of ends and starts needs a known batch"))?;
                if shape[0].as_const() != Some(2 * n) {
                    return Err(OpError::new(format!("a mask index of {} entries is not known", shape[0])));
                }
                (b.slice(mask, 0, 0, n)?, Some(b.slice(mask, 0, n, 2 * n)?))
            }
        };
        let ends = b.unsqueeze(ends, &[1, 2, 3])?;
        let ok = b.op("less", &[column, ends])?;
        let Some(starts) = starts else { return Ok(ok) };
        let starts = b.unsqueeze(starts, &[1, 2, 3])?;
        let begun = b.op("greater_or_equal", &[column, starts])?;
        return b.op("and", &[ok, begun]);
    }
    let zero = b.lit(mask, 0.0)?;
    let ok = b.op("greater", &[mask, zero])?;
    match shape.len() {
        2 => b.unsqueeze(ok, &[1, 2]),
        3 => b.unsqueeze(ok, &[1]),
        _ => Err(OpError::new(format!("a mask of rank {} is not known", shape.len()))),
    }
}

/// The core: heads `[b, h, s, d]` to the joined output, and the scores after masks.
fn attend(
    b: &mut Builder,
    node: &Node,
    (q, k, v): (ValueId, ValueId, ValueId),
    mask: Option<ValueId>,
    bias: Option<ValueId>,
) -> Result<(ValueId, ValueId), OpError> {
    let scale = match node.float("scale").filter(|&s| s != 0.0) {
        Some(scale) => scale,
        None => 1.0 / (known(b, q, 3)? as f64).sqrt(),
    };
    let mut s = scores(b, q, k, scale)?;
    s = capped(b, s, 0.0)?;
    if let Some(mask) = mask {
        let ok = allowed_by(b, mask, q, k)?;
        let filter = node.float("mask_filter_value").unwrap_or(-10000.0);
        let (zero, low) = (b.lit(s, 0.0)?, b.lit(s, filter)?);
        let wall = b.op("where", &[ok, zero, low])?;
        s = b.op("add", &[s, wall])?;
    }
    if node.flag("unidirectional") {
        // The last query is at the last key.
        let (row, column) = (positions(b, q, 2, true)?, positions(b, k, 2, false)?);
        let (keys, queries) = (b.lens(&[Len::Of(k, 2)])?, b.lens(&[Len::Of(q, 2)])?);
        let past = b.op("sub", &[keys, queries])?;
        let row = b.op("add", &[row, past])?;
        let seen = b.op("less_or_equal", &[column, row])?;
        let seen = both(b, None, seen)?.unwrap_or(seen);
        let low = b.lit(s, f64::from(f32::MIN))?;
        s = b.op("where", &[seen, s, low])?;
    }
    if let Some(bias) = bias {
        s = b.op("add", &[s, bias])?;
    }
    let p = b.op_with("softmax", &[s], [("axis", (-1i64).into())])?;
    let y = b.op("matmul", &[p, v])?;
    Ok((join_heads(b, y)?, s))
}

fn widths(ctx_sizes: Option<Vec<i64>>, total: &Dim) -> Result<[Dim; 3], OpError> {
    match ctx_sizes.filter(|s| !s.is_empty()) {
        Some(s) if s.len() == 3 && s.iter().all(|&w| w > 0) => Ok([Dim::from(s[0]), Dim::from(s[1]), Dim::from(s[2])]),
        Some(s) => Err(OpError::new(format!("attribute `qkv_hidden_sizes` must not be {s:?}"))),
        None => {
            let third = total.floor_div(&Dim::from(3i64));
            Ok([third.clone(), third.clone(), third])
        }
    }
}

fn infer_attention(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if ctx.flag("do_rotary") || ctx.flag("past_present_share_buffer") {
        return Err(OpError::new("attributes `do_rotary` and `past_present_share_buffer` must be 0"));
    }
    let heads = ctx.int("num_heads")?;
    if heads < 1 {
        return Err(OpError::new("attribute `num_heads` must be positive"));
    }
    let (n, s) = match ctx.shape(0)? {
        Some([n, s, _]) => (n.clone(), s.clone()),
        Some(_) => return Err(OpError::new("operand 0 must have rank 3")),
        None => (ctx.fresh_dim(), ctx.fresh_dim()),
    };
    let total = match ctx.shape(1)? {
        Some([_, w]) => w.clone(),
        Some(_) => return Err(OpError::new("operand 1 must have rank 2")),
        None => ctx.fresh_dim(),
    };
    let [_, hk, hv] = widths(ctx.ints("qkv_hidden_sizes"), &total)?;
    let past = match ctx.has(4) {
        false => Dim::from(0i64),
        true => match ctx.shape(4)? {
            Some([_, _, _, p, _]) => p.clone(),
            Some(_) => return Err(OpError::new("operand 4 must have rank 5")),
            None => ctx.fresh_dim(),
        },
    };
    let present = [Dim::from(2i64), n.clone(), Dim::from(heads), &past + &s, hk.floor_div(&Dim::from(heads))];
    Ok(vec![Type::tensor(elem, [n, s, hv]), Type::tensor(elem, present)])
}

fn decompose_attention(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let mut all = b.op("matmul", &[node.need(0)?, node.need(1)?])?;
    if let Some(bias) = node.operand(2) {
        all = b.op("add", &[all, bias])?;
    }
    let total = Dim::from(known(b, all, 2)?);
    let heads = node.int("num_heads")?;
    let mut parts = vec![];
    let mut start = 0;
    for width in widths(node.ints("qkv_hidden_sizes"), &total)? {
        let end = start + width.as_const().unwrap_or(0);
        let part = b.slice(all, 2, start, end)?;
        parts.push(split_heads(b, part, heads)?);
        start = end;
    }
    let (q, mut k, mut v) = (parts[0], parts[1], parts[2]);
    if let Some(past) = node.operand(4) {
        for (i, x) in [&mut k, &mut v].into_iter().enumerate() {
            let old = b.slice(past, 0, i as i64, i as i64 + 1)?;
            let old = b.squeeze(old, &[0])?;
            *x = b.concat(&[old, *x], 2)?;
        }
    }
    let mut out = vec![attend(b, node, (q, k, v), node.operand(3), node.operand(5))?.0];
    if node.results.len() > 1 {
        let (k, v) = (b.unsqueeze(k, &[0])?, b.unsqueeze(v, &[0])?);
        out.push(b.concat(&[k, v], 0)?);
    }
    Ok(out)
}

fn infer_multi_head(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let heads = ctx.int("num_heads")?;
    if heads < 1 {
        return Err(OpError::new("attribute `num_heads` must be positive"));
    }
    if ctx.has(8) || ctx.has(9) {
        return Err(OpError::new("shared cache buffers and beam indirection are not supported"));
    }
    let h = Dim::from(heads);
    let fresh = |n: usize| -> Vec<Dim> { (0..n).map(|_| ctx.fresh_dim()).collect() };
    let (n, s, size) = match ctx.shape(0)? {
        Some([n, s, hidden]) => (n.clone(), s.clone(), hidden.floor_div(&h)),
        Some([n, s, _, _, d]) => (n.clone(), s.clone(), d.clone()),
        Some(_) => return Err(OpError::new("operand 0 must have rank 3 or 5")),
        None => (ctx.fresh_dim(), ctx.fresh_dim(), ctx.fresh_dim()),
    };
    let shape = |i: usize| if ctx.has(i) { ctx.shape(i) } else { Ok(None) };
    let keys = match (shape(1)?, ctx.has(1)) {
        (Some([_, l, _] | [_, l, _, _, _] | [_, _, l, _]), _) => l.clone(),
        (_, false) => s.clone(),
        _ => ctx.fresh_dim(),
    };
    let v_size = match (shape(2)?, ctx.has(2)) {
        (Some([_, _, hidden]), _) => hidden.floor_div(&h),
        (Some([_, _, _, d]), _) => d.clone(),
        (_, false) => size.clone(),
        _ => ctx.fresh_dim(),
    };
    let past = match (shape(6)?, ctx.has(6)) {
        (Some([_, _, p, _]), _) => p.clone(),
        (_, false) => Dim::from(0i64),
        _ => fresh(1).remove(0),
    };
    let total = &keys + &past;
    Ok(vec![
        Type::tensor(elem, [n.clone(), s.clone(), &v_size * &h]),
        Type::tensor(elem, [n.clone(), h.clone(), total.clone(), size]),
        Type::tensor(elem, [n.clone(), h.clone(), total.clone(), v_size]),
        Type::tensor(elem, [n, h, s, total]),
    ])
}

/// Part `i` of `[b, s, h, parts, d]` as `[b, h, s, d]`.
fn packed_part(b: &mut Builder, x: ValueId, i: i64) -> Result<ValueId, OpError> {
    let part = b.slice(x, 3, i, i + 1)?;
    let part = b.squeeze(part, &[3])?;
    b.transpose(part, &[0, 2, 1, 3])
}

fn decompose_multi_head(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let heads = node.int("num_heads")?;
    let query = node.need(0)?;
    let mut offset = 0;
    let mut biased = |b: &mut Builder, x: ValueId| -> Result<ValueId, OpError> {
        let Some(bias) = node.operand(3) else { return Ok(x) };
        let width = known(b, x, 2)?;
        let part = b.slice(bias, 0, offset, offset + width)?;
        offset += width;
        b.op("add", &[x, part])
    };
    let (q, mut k, mut v);
    match (b.shape(query)?.len(), node.operand(1), node.operand(2)) {
        (5, _, _) => {
            if node.operand(3).is_some() {
                return Err(OpError::new("a bias of packed projections is not supported"));
            }
            (q, k, v) = (packed_part(b, query, 0)?, packed_part(b, query, 1)?, packed_part(b, query, 2)?);
        }
        (_, Some(key), None) => {
            let x = biased(b, query)?;
            if node.operand(3).is_some() {
                return Err(OpError::new("a bias of packed projections is not supported"));
            }
            q = split_heads(b, x, heads)?;
            (k, v) = (packed_part(b, key, 0)?, packed_part(b, key, 1)?);
        }
        (_, Some(key), Some(value)) => {
            let x = biased(b, query)?;
            q = split_heads(b, x, heads)?;
            if b.shape(key)?.len() == 4 {
                (k, v) = (key, value);
            } else {
                let key = biased(b, key)?;
                let value = biased(b, value)?;
                (k, v) = (split_heads(b, key, heads)?, split_heads(b, value, heads)?);
            }
        }
        _ => return Err(OpError::new("keys are missing")),
    }
    if let (Some(key), Some(value)) = (node.operand(6), node.operand(7)) {
        k = b.concat(&[key, k], 2)?;
        v = b.concat(&[value, v], 2)?;
    }
    let (y, s) = attend(b, node, (q, k, v), node.operand(4), node.operand(5))?;
    let mut out = vec![y, k, v, s];
    out.truncate(node.results.len().max(1));
    Ok(out)
}
