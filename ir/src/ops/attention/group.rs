//! ONNX Runtime's grouped-query attention with a cache.

use super::rotary::{angles_at, rotate};
use super::scaled::{barrier, both, capped, join_heads, known, positions, repeat_heads, scores, split_heads};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::{Dim, ElemType, Type, ValueId};

/// Grouped-query attention.
pub static GROUP_QUERY_ATTENTION: OpDef = OpDef {
    name: "group_query_attention",
    summary: "causal attention with fewer key heads, rotary embedding, a cache, and lengths per sequence",
    source: "ONNX Runtime com.microsoft GroupQueryAttention-1; GQA (arXiv 2305.13245)",
    operands: &[
        Operand::One("query"),
        Operand::Optional("key"),
        Operand::Optional("value"),
        Operand::Optional("past_key"),
        Operand::Optional("past_value"),
        Operand::One("seqlens_k"),
        Operand::One("total_sequence_length"),
        Operand::Optional("cos_cache"),
        Operand::Optional("sin_cache"),
        Operand::Optional("position_ids"),
        Operand::Optional("attention_bias"),
        Operand::Optional("head_sink"),
        Operand::Optional("k_scale"),
        Operand::Optional("v_scale"),
        Operand::Optional("q_norm_weight"),
        Operand::Optional("k_norm_weight"),
        Operand::Optional("query_seqlens"),
    ],
    results: &[
        Operand::One("output"),
        Operand::Optional("present_key"),
        Operand::Optional("present_value"),
        Operand::Optional("output_qk"),
    ],
    attrs: &[
        AttrDef::new("causal", AttrKind::Int, Default::Int(1), "a query sees keys up to its own position"),
        AttrDef::new("do_rotary", AttrKind::Int, Default::Int(0), "rotate queries and keys"),
        AttrDef::new("k_norm_epsilon", AttrKind::Float, Default::Absent, "unused without norm weights"),
        AttrDef::new("k_quant_type", AttrKind::Str, Default::Str("NONE"), "must be NONE"),
        AttrDef::new("kv_cache_bit_width", AttrKind::Int, Default::Int(0), "must be 0"),
        AttrDef::new("kv_num_heads", AttrKind::Int, Default::Required, "heads of keys and values"),
        AttrDef::new("local_window_size", AttrKind::Int, Default::Int(-1), "most positions to the left, its own included; -1: all"),
        AttrDef::new("num_heads", AttrKind::Int, Default::Required, "heads of queries"),
        AttrDef::new("q_norm_epsilon", AttrKind::Float, Default::Absent, "unused without norm weights"),
        AttrDef::new("qk_norm_epsilon", AttrKind::Float, Default::Float(1e-6), "unused without norm weights"),
        AttrDef::new("qk_output", AttrKind::Int, Default::Int(0), "must be 0"),
        AttrDef::new("rotary_interleaved", AttrKind::Int, Default::Int(0), "pairs are neighbours, not halves"),
        AttrDef::new("scale", AttrKind::Float, Default::Absent, "factor of `q k'`; 1 / sqrt(head size)"),
        AttrDef::new("sliding_window_cache", AttrKind::Int, Default::Int(0), "must be 0"),
        AttrDef::new("smooth_softmax", AttrKind::Int, Default::Int(-1), "1: the softmax's denominator has one more term, 1"),
        AttrDef::new("softcap", AttrKind::Float, Default::Float(0.0), "0, or scores become softcap * tanh(score / softcap)"),
        AttrDef::new("v_quant_type", AttrKind::Str, Default::Str("NONE"), "must be NONE"),
    ],
    infer,
    decompose: Some(decompose),
    tolerance: Tolerance::Approximate(1e-3, 1e-4),
    ..OpDef::BASE
};

fn infer(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let (hq, hk) = (ctx.int("num_heads")?, ctx.int("kv_num_heads")?);
    if hk < 1 || hq < 1 || hq % hk != 0 {
        return Err(OpError::new(format!("{hq} query heads do not share {hk} key heads")));
    }
    if (12..17).any(|i| ctx.has(i)) || ctx.flag("sliding_window_cache") || ctx.flag("qk_output") || ctx.flag("kv_cache_bit_width") {
        return Err(OpError::new("quantized or windowed caches, norms inside, padded chunks and `qk_output` are not supported"));
    }
    let (n, s, hidden) = match ctx.shape(0)? {
        Some([n, s, hidden]) => (n.clone(), s.clone(), hidden.clone()),
        Some(_) => return Err(OpError::new("operand 0 must have rank 3")),
        None => (ctx.fresh_dim(), ctx.fresh_dim(), ctx.fresh_dim()),
    };
    let heads = match ctx.has(1) {
        true => Some(hq),
        false => hk.checked_mul(2).and_then(|k| k.checked_add(hq)),
    };
    let heads = heads.ok_or_else(|| OpError::new(format!("{hq} and {hk} heads are too many")))?;
    let size = hidden.floor_div(&Dim::from(heads));
    let past = match ctx.has(3) {
        false => Dim::from(0i64),
        true => match ctx.shape(3)? {
            Some([_, _, p, _]) => p.clone(),
            Some(_) => return Err(OpError::new("operand 3 must have rank 4")),
            None => ctx.fresh_dim(),
        },
    };
    let present = match ctx.const_ints(6).and_then(|t| t.first().copied()) {
        // The cache is as long as the past, or as what is asked for if that is longer.
        Some(total) => past.max_dim(&Dim::from(total)),
        None if past == Dim::from(0i64) => s.clone(),
        None => ctx.fresh_dim(),
    };
    let cache = Type::tensor(elem, [n.clone(), Dim::from(hk), present.clone(), size.clone()]);
    Ok(vec![
        Type::tensor(elem, [n.clone(), s.clone(), &size * &Dim::from(hq)]),
        cache.clone(),
        cache,
        Type::tensor(elem, [n, Dim::from(hq), s, present]),
    ])
}

/// `[b, h, s, d]` parts of a packed `[b, s, (hq + 2 hk) d]`, or of three operands.
fn heads(b: &mut Builder, node: &Node, hq: i64, hk: i64) -> Result<[ValueId; 3], OpError> {
    let q = node.need(0)?;
    if let (Some(k), Some(v)) = (node.operand(1), node.operand(2)) {
        return Ok([split_heads(b, q, hq)?, split_heads(b, k, hk)?, split_heads(b, v, hk)?]);
    }
    let all = split_heads(b, q, hq + 2 * hk)?;
    Ok([b.slice(all, 1, 0, hq)?, b.slice(all, 1, hq, hq + hk)?, b.slice(all, 1, hq + hk, hq + 2 * hk)?])
}

fn decompose(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (hq, hk) = (node.int("num_heads")?, node.int("kv_num_heads")?);
    let [mut q, mut k, v] = heads(b, node, hq, hk)?;
    let elem = b.elem(q)?;
    // Per sequence: tokens after this step, and before it.
    let lengths = b.cast(node.need(5)?, ElemType::I64)?;
    let lengths = b.reshape(lengths, &[Len::N(-1), Len::N(1)])?;
    let one = b.lit(lengths, 1.0)?;
    let totals = b.op("add", &[lengths, one])?;
    let steps = b.iota(Len::Of(q, 2))?;
    let first = node.operand(3).is_none_or(|past| b.shape(past).is_ok_and(|s| s[2].as_const() == Some(0)));
    let before = if first {
        b.lit(totals, 0.0)?
    } else {
        let s = b.lens(&[Len::Of(q, 2)])?;
        b.op("sub", &[totals, s])?
    };
    let place = b.op("add", &[before, steps])?;
    let place = if first { b.unsqueeze(place, &[0])? } else { place };
    if node.flag("do_rotary") {
        let ids = match node.operand(9) {
            Some(ids) => ids,
            None => {
                // A padded prompt's trailing rows lie past the caches' use, so they are clamped at 0.
                let zero = b.lit(place, 0.0)?;
                b.op("max", &[place, zero])?
            }
        };
        let (cos, sin) = (node.need(7)?, node.need(8)?);
        let dim = 2 * known(b, cos, 1)?;
        let angles = angles_at(b, cos, sin, ids)?;
        let inter = node.flag("rotary_interleaved");
        q = rotate(b, q, None, angles, dim, inter)?;
        k = rotate(b, k, None, angles, dim, inter)?;
    }
    let (k_all, v_all) = match (node.operand(3), node.operand(4)) {
        (Some(pk), Some(pv)) if !first => {
            let total = b.cast(node.need(6)?, ElemType::I64)?;
            let total = b.reshape(total, &[Len::N(1)])?;
            (append(b, pk, k, before, total)?, append(b, pv, v, before, total)?)
        }
        _ => (k, v),
    };
    let (k_wide, v_wide) = (repeat_heads(b, k_all, hq / hk)?, repeat_heads(b, v_all, hq / hk)?);
    let scale = match node.float("scale").filter(|&s| s != 0.0) {
        Some(scale) => scale,
        None => 1.0 / (known(b, q, 3)? as f64).sqrt(),
    };
    let s = scores(b, q, k_wide, scale)?;
    let mut s = capped(b, s, node.float("softcap").unwrap_or(0.0))?;
    if let Some(bias) = node.operand(10) {
        s = b.op("add", &[s, bias])?;
    }
    let column = positions(b, k_all, 2, false)?;
    let valid = b.unsqueeze(totals, &[2, 3])?;
    let mut ok = Some(b.op("less", &[column, valid])?);
    if node.flag("causal") {
        let row = b.unsqueeze(place, &[1, 3])?;
        let seen = b.op("less_or_equal", &[column, row])?;
        // A row of padding sees the sequence's valid keys, as in ONNX Runtime.
        ok = both(b, ok, seen)?;
        let window = node.int("local_window_size")?;
        if window > 0 {
            let reach = b.lit(row, window as f64)?;
            let left = b.op("sub", &[row, reach])?;
            let near = b.op("greater", &[column, left])?;
            ok = both(b, ok, near)?;
        }
    }
    if let Some(ok) = ok {
        let wall = barrier(b, ok, elem, f64::NEG_INFINITY)?;
        s = b.op("add", &[s, wall])?;
    }
    let p = match (node.operand(11), node.int("smooth_softmax")? == 1) {
        (None, false) => b.op("softmax", &[s])?,
        (sink, _) => {
            // One more column, which takes weight and gives nothing.
            let sink = match sink {
                Some(sink) => sink,
                None => b.filled(elem, 0.0, &[Len::N(hq)])?,
            };
            let sink = b.reshape(sink, &[Len::N(1), Len::N(hq), Len::N(1), Len::N(1)])?;
            let sink = b.expand(sink, &[Len::Of(s, 0), Len::N(hq), Len::Of(s, 2), Len::N(1)])?;
            let wide = b.concat(&[s, sink], 3)?;
            let wide = b.op("softmax", &[wide])?;
            b.slice(wide, 3, 0, -1)?
        }
    };
    let y = b.op("matmul", &[p, v_wide])?;
    let mut out = vec![join_heads(b, y)?, k_all, v_all, s];
    out.truncate(node.results.len().max(1));
    Ok(out)
}

/// The cache of `total` (or its own, if longer) rows with `new` written at row `before` of each sequence.
fn append(b: &mut Builder, past: ValueId, new: ValueId, before: ValueId, total: ValueId) -> Result<ValueId, OpError> {
    let own = b.lens(&[Len::Of(past, 2)])?;
    let rows = b.op("max", &[own, total])?;
    let rows = b.squeeze(rows, &[0])?;
    let (zero, one) = (b.lit(rows, 0.0)?, b.lit(rows, 1.0)?);
    let places = b.op("range", &[zero, rows, one])?;
    // Row r of the result is row r of the past, or row r - before of what is new.
    let step = b.op("sub", &[places, before])?;
    let (zero1, last) = (b.lit(own, 0.0)?, b.lens(&[Len::Of(new, 2)])?);
    let is_old = b.op("less", &[step, zero1])?;
    let is_new = b.op("less", &[step, last])?;
    let both_rows = b.concat(&[past, new], 2)?;
    let from_new = b.op("add", &[step, own])?;
    let pick = b.op("where", &[is_old, places, from_new])?;
    // Rows beyond both are zero, as ONNX Runtime leaves them.
    let pick = b.op("where", &[is_new, pick, zero1])?;
    let pick = b.unsqueeze(pick, &[1, 3])?;
    let shape = b.op("shape", &[both_rows])?;
    let front = b.slice(shape, 0, 0, 2)?;
    let size = b.slice(shape, 0, 3, 4)?;
    let middle = b.unsqueeze(rows, &[0])?;
    let shape = b.concat(&[front, middle, size], 0)?;
    let pick = b.op("expand", &[pick, shape])?;
    let y = b.op_with("gather_elements", &[both_rows, pick], [("axis", 2i64.into())])?;
    let filled = b.unsqueeze(is_new, &[1, 3])?;
    let none = b.lit(y, 0.0)?;
    b.op("where", &[filled, y, none])
}
