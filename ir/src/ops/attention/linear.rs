//! Linear attention: a matrix state per head that every token updates and reads.

use crate::ops::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::tensor::{Tensor, Value};
use crate::{Dim, Type};

/// Linear attention.
pub static LINEAR_ATTENTION: OpDef = OpDef {
    name: "linear_attention",
    summary: "s = exp(decay) s + beta k (v - s' k)'; y = scale * s' q, with the parts that the rule names",
    source: "ONNX LinearAttention-27; Gated Delta Networks (arXiv 2412.06464)",
    operands: &[
        Operand::One("query"),
        Operand::One("key"),
        Operand::One("value"),
        Operand::Optional("past_state"),
        Operand::Optional("decay"),
        Operand::Optional("beta"),
    ],
    results: &[Operand::One("output"), Operand::One("present_state")],
    attrs: &[
        AttrDef::new("chunk_size", AttrKind::Int, Default::Int(64), "a hint for schedules"),
        AttrDef::new("kv_num_heads", AttrKind::Int, Default::Required, "heads of keys and values"),
        AttrDef::new("q_num_heads", AttrKind::Int, Default::Required, "heads of queries"),
        AttrDef::new("scale", AttrKind::Float, Default::Float(0.0), "factor of the result; 0: 1 / sqrt(key size)"),
        AttrDef::new("update_rule", AttrKind::Str, Default::Str("gated_delta"), "linear, gated, delta or gated_delta"),
    ],
    infer,
    eval: Eval::Direct(eval),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

fn rule(name: &str) -> Result<(bool, bool), OpError> {
    match name {
        "linear" => Ok((false, false)),
        "gated" => Ok((true, false)),
        "delta" => Ok((false, true)),
        "gated_delta" => Ok((true, true)),
        other => Err(OpError::new(format!("attribute `update_rule` must not be `{other}`"))),
    }
}

fn infer(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let (gated, delta) = rule(&ctx.str("update_rule"))?;
    if gated != ctx.has(4) || delta != ctx.has(5) {
        return Err(OpError::new("decay and beta must be given exactly if the rule uses them"));
    }
    let (hq, hk) = (ctx.int("q_num_heads")?, ctx.int("kv_num_heads")?);
    if hk < 1 || hq < 1 || hq % hk != 0 {
        return Err(OpError::new(format!("{hq} query heads do not share {hk} key heads")));
    }
    let dims = |i: usize| -> Result<[Dim; 3], OpError> {
        match ctx.shape(i)? {
            Some([b, t, h]) => Ok([b.clone(), t.clone(), h.clone()]),
            Some(_) => Err(OpError::new(format!("operand {i} must have rank 3"))),
            None => Ok([ctx.fresh_dim(), ctx.fresh_dim(), ctx.fresh_dim()]),
        }
    };
    let ([batch, t, hidden], [_, _, values]) = (dims(0)?, dims(2)?);
    let (dk, dv) = (hidden.floor_div(&Dim::from(hq)), values.floor_div(&Dim::from(hk)));
    let state = if ctx.has(3) { ctx.elem(3)? } else { ctx.elem(0)? };
    Ok(vec![
        Type::tensor(ctx.elem(0)?, [batch.clone(), t, &dv * &Dim::from(hq)]),
        Type::tensor(state, [batch, Dim::from(hk), dk, dv]),
    ])
}

fn eval(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (q, k, v) = (ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(2)?);
    let (gated, delta) = rule(&ctx.str("update_rule"))?;
    let heads = |name: &str| usize::try_from(ctx.int(name)?).ok().filter(|&h| h > 0).ok_or_else(|| OpError::new(format!("attribute `{name}` must be positive")));
    let (hq, hk) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    let (&[n, t, hidden], &[_, _, key_hidden], &[_, _, value_hidden]) = (q.shape(), k.shape(), v.shape()) else {
        return Err(OpError::new("queries, keys and values must have rank 3"));
    };
    let (dk, dv) = (hidden / hq, value_hidden / hk);
    if hq % hk != 0 || dk * hq != hidden || dk * hk != key_hidden || dv * hk != value_hidden || k.len() != n * t * key_hidden || v.len() != n * t * value_hidden {
        return Err(OpError::new("queries, keys and values do not fit each other"));
    }
    let float = |i: usize| ctx.tensor_opt(i).and_then(Tensor::to_f64s);
    let (Some(qs), Some(ks), Some(vs)) = (float(0), float(1), float(2)) else {
        return Err(OpError::new(format!("is not defined for {}", q.elem())));
    };
    let (decay, beta) = (float(4).filter(|_| gated), float(5).filter(|_| delta));
    // How many numbers a token has in the optional operands.
    let (decays, betas) = (decay.as_ref().map_or(0, Vec::len) / (n * t).max(1), beta.as_ref().map_or(0, Vec::len) / (n * t).max(1));
    if gated && decays != hk && decays != hk * dk || delta && betas != hk && betas != 1 {
        return Err(OpError::new("decay or beta does not fit the heads"));
    }
    let mut state = float(3).unwrap_or_else(|| vec![0.0; n * hk * dk * dv]);
    if state.len() != n * hk * dk * dv {
        return Err(OpError::new("the past state does not fit the heads"));
    }
    let scale = match f64::from(ctx.float("scale").unwrap_or(0.0)) {
        0.0 => 1.0 / (dk as f64).sqrt(),
        scale => scale,
    };
    let mut out = vec![0.0; n * t * hq * dv];
    for i in 0..n {
        for step in 0..t {
            let token = i * t + step;
            for h in 0..hk {
                let s = &mut state[(i * hk + h) * dk * dv..][..dk * dv];
                let key = &ks[token * key_hidden + h * dk..][..dk];
                let mut value = vs[token * value_hidden + h * dv..][..dv].to_vec();
                if let Some(g) = &decay {
                    for d in 0..dk {
                        let g = if decays == hk { g[token * decays + h] } else { g[token * decays + h * dk + d] };
                        s[d * dv..][..dv].iter_mut().for_each(|x| *x *= g.exp());
                    }
                }
                if let Some(beta) = &beta {
                    let rate = beta[token * betas + if betas == 1 { 0 } else { h }];
                    for (m, v) in value.iter_mut().enumerate() {
                        let held: f64 = (0..dk).map(|d| s[d * dv + m] * key[d]).sum();
                        *v = rate * (*v - held);
                    }
                }
                for d in 0..dk {
                    for m in 0..dv {
                        s[d * dv + m] += key[d] * value[m];
                    }
                }
                for r in 0..hq / hk {
                    let head = h * (hq / hk) + r;
                    let query = &qs[token * hidden + head * dk..][..dk];
                    for m in 0..dv {
                        let sum: f64 = (0..dk).map(|d| query[d] * s[d * dv + m]).sum();
                        out[(token * hq + head) * dv + m] = scale * sum;
                    }
                }
            }
        }
    }
    let elem = ctx.tensor_opt(3).map_or(q.elem(), Tensor::elem);
    Ok(vec![
        Tensor::from_f64(q.elem(), [n, t, hq * dv], out).into(),
        Tensor::from_f64(elem, [n, hk, dk, dv], state).into(),
    ])
}
