//! ONNX's attention, and the steps that every other form is made of.

use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::{Dim, ElemType, Type, ValueId};

/// Scaled dot-product attention.
pub static ATTENTION: OpDef = OpDef {
    name: "attention",
    summary: "softmax(softcap(q k' * scale) + bias) v per head; a row without an allowed key is zero",
    source: "ONNX Attention-25; Attention Is All You Need (arXiv 1706.03762)",
    operands: &[
        Operand::One("q"),
        Operand::One("k"),
        Operand::One("v"),
        Operand::Optional("attn_mask"),
        Operand::Optional("past_key"),
        Operand::Optional("past_value"),
        Operand::Optional("nonpad_kv_seqlen"),
    ],
    results: &[
        Operand::One("y"),
        Operand::Optional("present_key"),
        Operand::Optional("present_value"),
        Operand::Optional("qk_matmul_output"),
    ],
    attrs: &[
        AttrDef::new("is_causal", AttrKind::Int, Default::Int(0), "a query sees keys up to its own position"),
        AttrDef::new("kv_num_heads", AttrKind::Int, Default::Absent, "heads of `k` and `v` of rank 3"),
        AttrDef::new("left_window_size", AttrKind::Int, Default::Int(-1), "most keys to the left; -1: all"),
        AttrDef::new("q_num_heads", AttrKind::Int, Default::Absent, "heads of `q` of rank 3"),
        AttrDef::new("qk_matmul_output_mode", AttrKind::Int, Default::Int(0), "0 raw, 1 after softcap, 2 after bias, 3 after softmax"),
        AttrDef::new("right_window_size", AttrKind::Int, Default::Int(-1), "most keys to the right; -1: all"),
        AttrDef::new("scale", AttrKind::Float, Default::Absent, "factor of `q k'`; 1 / sqrt(head size)"),
        AttrDef::new("softcap", AttrKind::Float, Default::Float(0.0), "0, or scores become softcap * tanh(score / softcap)"),
        AttrDef::new("softmax_precision", AttrKind::Elem, Default::Absent, "type of the softmax"),
    ],
    infer,
    decompose: Some(decompose),
    tolerance: Tolerance::Approximate(1e-3, 1e-4),
    ..OpDef::BASE
};

/// `[b, s, h * d]` as `[b, h, s, d]`.
pub(super) fn split_heads(b: &mut Builder, x: ValueId, heads: i64) -> Result<ValueId, OpError> {
    let shape = b.shape(x)?;
    let [_, _, hidden] = shape.as_slice() else {
        return Err(OpError::new("packed heads need an operand of rank 3"));
    };
    if heads < 1 {
        return Err(OpError::new("the number of heads must be positive"));
    }
    let size = hidden.as_const().map_or(-1, |h| h / heads);
    let x = b.reshape(x, &[Len::Of(x, 0), Len::Of(x, 1), Len::N(heads), Len::N(size)])?;
    b.transpose(x, &[0, 2, 1, 3])
}

/// `[b, h, s, d]` as `[b, s, h * d]`.
pub(super) fn join_heads(b: &mut Builder, x: ValueId) -> Result<ValueId, OpError> {
    let x = b.transpose(x, &[0, 2, 1, 3])?;
    let shape = b.shape(x)?;
    let hidden = (&shape[2] * &shape[3]).as_const().unwrap_or(-1);
    b.reshape(x, &[Len::Of(x, 0), Len::Of(x, 1), Len::N(hidden)])
}

/// Repeats every head of `[b, h, s, d]` `times` times in place.
pub(super) fn repeat_heads(b: &mut Builder, x: ValueId, times: i64) -> Result<ValueId, OpError> {
    if times == 1 {
        return Ok(x);
    }
    let heads = known(b, x, 1)?;
    let wide = b.unsqueeze(x, &[2])?;
    let wide = b.expand(wide, &[Len::Of(x, 0), Len::N(heads), Len::N(times), Len::Of(x, 2), Len::Of(x, 3)])?;
    b.reshape(wide, &[Len::Of(x, 0), Len::N(heads * times), Len::Of(x, 2), Len::Of(x, 3)])
}

/// A length that must be a number at compile time.
pub(super) fn known(b: &Builder, x: ValueId, axis: usize) -> Result<i64, OpError> {
    b.shape(x)?
        .get(axis)
        .and_then(Dim::as_const)
        .ok_or_else(|| OpError::new(format!("axis {axis} of an operand must have a known length")))
}

/// Positions `0..n` of the value's axis, in a shape that puts them along the last (`row` false) or the
/// last but one axis.
pub(super) fn positions(b: &mut Builder, of: ValueId, axis: usize, row: bool) -> Result<ValueId, OpError> {
    let all = b.iota(Len::Of(of, axis))?;
    if row { b.unsqueeze(all, &[1]) } else { Ok(all) }
}

/// 0 where allowed, minus infinity elsewhere.
pub(super) fn barrier(b: &mut Builder, allowed: ValueId, elem: ElemType, low: f64) -> Result<ValueId, OpError> {
    let (zero, low) = (b.scalar(elem, 0.0), b.scalar(elem, low));
    b.op("where", &[allowed, zero, low])
}

/// Sum of what is there.
pub(super) fn plus(b: &mut Builder, a: Option<ValueId>, c: ValueId) -> Result<Option<ValueId>, OpError> {
    Ok(Some(match a {
        Some(a) => b.op("add", &[a, c])?,
        None => c,
    }))
}

/// Both conditions.
pub(super) fn both(b: &mut Builder, a: Option<ValueId>, c: ValueId) -> Result<Option<ValueId>, OpError> {
    Ok(Some(match a {
        Some(a) => b.op("and", &[a, c])?,
        None => c,
    }))
}

/// `q k'` with the square root of the scale on both sides, as ONNX defines it.
pub(super) fn scores(b: &mut Builder, q: ValueId, k: ValueId, scale: f64) -> Result<ValueId, OpError> {
    let root = b.lit(q, scale.sqrt())?;
    let q = b.op("mul", &[q, root])?;
    let k = b.swap_last(k)?;
    let k = b.op("mul", &[k, root])?;
    b.op("matmul", &[q, k])
}

/// `softcap * tanh(x / softcap)`, or `x` if it is 0.
pub(super) fn capped(b: &mut Builder, x: ValueId, softcap: f64) -> Result<ValueId, OpError> {
    if softcap <= 0.0 {
        return Ok(x);
    }
    let cap = b.lit(x, softcap)?;
    let y = b.op("div", &[x, cap])?;
    let y = b.op("tanh", &[y])?;
    b.op("mul", &[y, cap])
}

fn head_dims(ctx: &InferCtx, i: usize, heads: &str) -> Result<Option<[Dim; 4]>, OpError> {
    match ctx.shape(i)? {
        None => Ok(None),
        Some([b, h, s, d]) => Ok(Some([b.clone(), h.clone(), s.clone(), d.clone()])),
        Some([b, s, hidden]) => {
            let h = ctx.int(heads)?;
            if h < 1 || hidden.as_const().is_some_and(|n| n % h != 0) {
                return Err(OpError::new(format!("{hidden} does not divide into {h} heads")));
            }
            Ok(Some([b.clone(), Dim::from(h), s.clone(), hidden.floor_div(&Dim::from(h))]))
        }
        Some(s) => Err(OpError::new(format!("operand {i} must have rank 3 or 4, found {}", s.len()))),
    }
}

fn infer(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let (t1, t2) = (ctx.elem(0)?, ctx.elem(2)?);
    if ctx.has(4) != ctx.has(5) || ctx.has(4) && ctx.has(6) {
        return Err(OpError::new("past key and value go together, and not with `nonpad_kv_seqlen`"));
    }
    let parts = (head_dims(ctx, 0, "q_num_heads")?, head_dims(ctx, 1, "kv_num_heads")?, head_dims(ctx, 2, "kv_num_heads")?);
    let (Some(q), Some(k), Some(v)) = parts else {
        return Ok(vec![Type::unranked(t1), Type::unranked(t1), Type::unranked(t2), Type::unranked(t1)]);
    };
    if let (Some(hq), Some(hk)) = (q[1].as_const(), k[1].as_const())
        && (hk < 1 || hq % hk != 0)
    {
        return Err(OpError::new(format!("{hq} query heads do not share {hk} key heads")));
    }
    if let (Some(p), Some(r)) = (q[3].as_const(), k[3].as_const())
        && p != r
    {
        return Err(OpError::new(format!("queries have head size {p}, keys {r}")));
    }
    let past = if ctx.has(4) {
        match ctx.shape(4)? {
            Some([_, _, p, _]) => p.clone(),
            Some(_) => return Err(OpError::new("operand 4 must have rank 4")),
            None => ctx.fresh_dim(),
        }
    } else {
        Dim::from(0i64)
    };
    let total = &k[2] + &past;
    let [batch, hq, sq, _] = q;
    let y = match ctx.shape(0)?.map(<[Dim]>::len) {
        Some(3) => Type::tensor(t1, [batch.clone(), sq.clone(), &hq * &v[3]]),
        _ => Type::tensor(t1, [batch.clone(), hq.clone(), sq.clone(), v[3].clone()]),
    };
    let present = |elem, of: &[Dim; 4]| Type::tensor(elem, [batch.clone(), of[1].clone(), total.clone(), of[3].clone()]);
    Ok(vec![y, present(t1, &k), present(t2, &v), Type::tensor(t1, [batch.clone(), hq, sq, total.clone()])])
}

/// The additive bias of an attention node: mask, causal frontier, window, padding.
fn bias_of(b: &mut Builder, node: &Node, q: ValueId, k: ValueId) -> Result<Option<ValueId>, OpError> {
    let elem = b.elem(q)?;
    let mut bias = None;
    if let Some(mask) = node.operand(3) {
        bias = Some(pad_mask(b, mask, k, elem)?);
    }
    let (left, right) = (node.int("left_window_size")?, node.int("right_window_size")?);
    let mut allowed = None;
    if node.flag("is_causal") || left >= 0 || right >= 0 {
        // Absolute position of a query: its index after what the cache already holds.
        let mut row = positions(b, q, 2, true)?;
        let column = positions(b, k, 2, false)?;
        match (node.operand(4), node.operand(6)) {
            (Some(past), _) => {
                let past = b.lens(&[Len::Of(past, 2)])?;
                row = b.op("add", &[row, past])?;
            }
            (None, Some(valid)) => {
                let len = b.lens(&[Len::Of(q, 2)])?;
                let offset = b.op("sub", &[valid, len])?;
                let offset = b.unsqueeze(offset, &[1, 2, 3])?;
                row = b.op("add", &[row, offset])?;
            }
            (None, None) => {}
        }
        let ahead = b.op("sub", &[column, row])?;
        let mut limit = |b: &mut Builder, op: &str, bound: i64| -> Result<(), OpError> {
            let bound = b.lit(ahead, bound as f64)?;
            let ok = b.op(op, &[ahead, bound])?;
            allowed = both(b, allowed, ok)?;
            Ok(())
        };
        if node.flag("is_causal") {
            limit(b, "less_or_equal", 0)?;
        }
        if left >= 0 {
            limit(b, "greater_or_equal", -left)?;
        }
        if right >= 0 {
            limit(b, "less_or_equal", right)?;
        }
    }
    if let Some(valid) = node.operand(6) {
        let column = positions(b, k, 2, false)?;
        let valid = b.unsqueeze(valid, &[1, 2, 3])?;
        let ok = b.op("less", &[column, valid])?;
        allowed = both(b, allowed, ok)?;
    }
    match allowed {
        Some(allowed) => {
            let wall = barrier(b, allowed, elem, f64::NEG_INFINITY)?;
            plus(b, bias, wall)
        }
        None => Ok(bias),
    }
}

/// A mask as an additive bias, padded with minus infinity to the number of keys.
fn pad_mask(b: &mut Builder, mask: ValueId, k: ValueId, elem: ElemType) -> Result<ValueId, OpError> {
    let mut mask = match b.elem(mask)? {
        ElemType::Bool => barrier(b, mask, elem, f64::NEG_INFINITY)?,
        _ => b.cast(mask, elem)?,
    };
    let shape = b.shape(mask)?;
    let (Some(own), total) = (shape.last(), b.shape(k)?[2].clone()) else {
        return Ok(mask);
    };
    let missing = &total - own;
    if missing.as_const() == Some(0) {
        return Ok(mask);
    }
    let last = shape.len() - 1;
    let (Some(own), Some(total)) = (own.as_const(), total.as_const()) else {
        // Lengths are not known to differ, and a mask of one column would have to broadcast.
        let mut lens: Vec<Len> = (0..last).map(|i| Len::Of(mask, i)).collect();
        let total = b.lens(&[Len::Of(k, 2)])?;
        let own = b.lens(&[Len::Of(mask, last)])?;
        let rest = b.op("sub", &[total, own])?;
        lens.push(Len::N(0));
        let front = if last > 0 { Some(b.lens(&lens[..last])?) } else { None };
        let shape = match front {
            Some(front) => b.concat(&[front, rest], 0)?,
            None => rest,
        };
        let low = b.scalar(elem, f64::NEG_INFINITY);
        let fill = b.op("expand", &[low, shape])?;
        return b.concat(&[mask, fill], last as i64);
    };
    if own < total {
        let mut lens: Vec<Len> = (0..last).map(|i| Len::Of(mask, i)).collect();
        lens.push(Len::N(total - own));
        let fill = b.filled(elem, f64::NEG_INFINITY, &lens)?;
        mask = b.concat(&[mask, fill], last as i64)?;
    }
    Ok(mask)
}

fn decompose(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (mut q, mut k, mut v) = (node.need(0)?, node.need(1)?, node.need(2)?);
    let elem = b.elem(q)?;
    let packed = b.shape(q)?.len() == 3;
    if packed {
        q = split_heads(b, q, node.int("q_num_heads")?)?;
        k = split_heads(b, k, node.int("kv_num_heads")?)?;
        v = split_heads(b, v, node.int("kv_num_heads")?)?;
    }
    if let (Some(key), Some(value)) = (node.operand(4), node.operand(5)) {
        k = b.concat(&[key, k], 2)?;
        v = b.concat(&[value, v], 2)?;
    }
    let (present_key, present_value) = (k, v);
    let scale = match node.float("scale") {
        Some(scale) => scale,
        None => 1.0 / (known(b, q, 3)? as f64).sqrt(),
    };
    let (hq, hk) = (b.shape(q)?[1].clone(), b.shape(k)?[1].clone());
    if hq != hk {
        let times = known(b, q, 1)? / known(b, k, 1)?.max(1);
        k = repeat_heads(b, k, times)?;
        v = repeat_heads(b, v, times)?;
    }
    let raw = scores(b, q, k, scale)?;
    let soft = capped(b, raw, node.float("softcap").unwrap_or(0.0))?;
    let bias = bias_of(b, node, q, k)?;
    let biased = match bias {
        Some(bias) => b.op("add", &[soft, bias])?,
        None => soft,
    };
    let wide = b.cast(biased, node.elem_attr("softmax_precision").unwrap_or(elem))?;
    let mut p = b.op_with("softmax", &[wide], [("axis", (-1i64).into())])?;
    if let Some(bias) = bias {
        // A row whose bias is minus infinity everywhere attends to nothing.
        let top = b.reduce("reduce_max", bias, &[-1], true)?;
        let low = b.scalar(elem, f64::NEG_INFINITY);
        let empty = b.op("equal", &[top, low])?;
        let zero = b.lit(p, 0.0)?;
        p = b.op("where", &[empty, zero, p])?;
    }
    let p = b.cast(p, elem)?;
    let p2 = b.cast(p, b.elem(v)?)?;
    let y = b.op("matmul", &[p2, v])?;
    let y = b.cast(y, elem)?;
    let y = if packed { join_heads(b, y)? } else { y };
    let shown = match node.int("qk_matmul_output_mode")? {
        0 => raw,
        1 => soft,
        2 => biased,
        3 => p,
        mode => return Err(OpError::new(format!("attribute `qk_matmul_output_mode` must not be {mode}"))),
    };
    let mut out = vec![y, present_key, present_value, shown];
    out.truncate(node.results.len().max(1));
    Ok(out)
}
