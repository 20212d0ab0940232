//! Losses and optimizers.

use super::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::builder::Builder;
use crate::graph::Node;
use crate::types::TensorType;
use crate::{Attr, Attrs, Dim, ElemType, Type, ValueId};

/// The family's ops.
pub static OPS: &[&OpDef] =
    &[&NEGATIVE_LOG_LIKELIHOOD_LOSS, &SOFTMAX_CROSS_ENTROPY_LOSS, &ADAGRAD, &ADAM, &MOMENTUM];

const LOSS_ATTRS: &[AttrDef] = &[
    AttrDef::new("ignore_index", AttrKind::Int, Default::Absent, "target that counts for nothing"),
    AttrDef::new("reduction", AttrKind::Str, Default::Str("mean"), "none, sum, or (weighted) mean"),
];

/// Loss from log probabilities.
pub static NEGATIVE_LOG_LIKELIHOOD_LOSS: OpDef = OpDef {
    name: "negative_log_likelihood_loss",
    summary: "minus the log probability of the target class, weighted and reduced",
    source: "ONNX NegativeLogLikelihoodLoss-22",
    operands: &[Operand::One("input"), Operand::One("target"), Operand::Optional("weight")],
    results: &[Operand::One("loss")],
    attrs: LOSS_ATTRS,
    infer: |ctx| Ok(vec![infer_loss(ctx)?]),
    decompose: Some(|b, node| Ok(vec![log_likelihood(b, node)?])),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Loss from scores.
pub static SOFTMAX_CROSS_ENTROPY_LOSS: OpDef = OpDef {
    name: "softmax_cross_entropy_loss",
    summary: "the negative log likelihood loss of the scores' log softmax, and that log softmax",
    source: "ONNX SoftmaxCrossEntropyLoss-13",
    operands: &[Operand::One("scores"), Operand::One("labels"), Operand::Optional("weights")],
    results: &[Operand::One("output"), Operand::Optional("log_prob")],
    attrs: LOSS_ATTRS,
    infer: |ctx| Ok(vec![infer_loss(ctx)?, ctx.ty(0)?.clone()]),
    decompose: Some(cross_entropy),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

const NORM: AttrDef = AttrDef::new("norm_coefficient", AttrKind::Float, Default::Float(0.0), "weight of the L2 regulariser");
const EPSILON: AttrDef = AttrDef::new("epsilon", AttrKind::Float, Default::Float(1e-6), "keeps the divisor from zero");

/// Adagrad step.
pub static ADAGRAD: OpDef = OpDef {
    name: "adagrad",
    summary: "one Adagrad step: from rate, step number, tensors, gradients and squared sums to new tensors and sums",
    source: "ONNX Adagrad-1 (ai.onnx.preview.training)",
    operands: &[Operand::One("r"), Operand::One("t"), Operand::Variadic("inputs")],
    results: &[Operand::Variadic("outputs")],
    attrs: &[
        AttrDef::new("decay_factor", AttrKind::Float, Default::Float(0.0), "decay of the rate"),
        EPSILON,
        NORM,
    ],
    infer: |ctx| infer_optimizer(ctx, 3, &[0, 2]),
    decompose: Some(adagrad),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Adam step.
pub static ADAM: OpDef = OpDef {
    name: "adam",
    summary: "one Adam step: from rate, step number, tensors, gradients and two averages to new tensors and averages",
    source: "ONNX Adam-1 (ai.onnx.preview.training)",
    operands: &[Operand::One("r"), Operand::One("t"), Operand::Variadic("inputs")],
    results: &[Operand::Variadic("outputs")],
    attrs: &[
        AttrDef::new("alpha", AttrKind::Float, Default::Float(0.9), "decay of the average gradient"),
        AttrDef::new("beta", AttrKind::Float, Default::Float(0.999), "decay of the average squared gradient"),
        EPSILON,
        NORM,
        AttrDef::new("norm_coefficient_post", AttrKind::Float, Default::Float(0.0), "shrinks the new tensors"),
    ],
    infer: |ctx| infer_optimizer(ctx, 4, &[0, 2, 3]),
    decompose: Some(adam),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Momentum step.
pub static MOMENTUM: OpDef = OpDef {
    name: "momentum",
    summary: "one gradient step with momentum: from rate, step number, tensors, gradients and momenta to new tensors and momenta",
    source: "ONNX Momentum-1 (ai.onnx.preview.training)",
    operands: &[Operand::One("r"), Operand::One("t"), Operand::Variadic("inputs")],
    results: &[Operand::Variadic("outputs")],
    attrs: &[
        AttrDef::new("alpha", AttrKind::Float, Default::Required, "decay of the momentum"),
        AttrDef::new("beta", AttrKind::Float, Default::Required, "weight of the gradient after the first step"),
        AttrDef::new("mode", AttrKind::Str, Default::Required, "`nesterov` or `standard`"),
        AttrDef::new("norm_coefficient", AttrKind::Float, Default::Required, "weight of the L2 regulariser"),
    ],
    infer: |ctx| infer_optimizer(ctx, 3, &[0, 2]),
    decompose: Some(momentum),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

fn infer_loss(ctx: &InferCtx) -> Result<Type, OpError> {
    let elem = ctx.elem(0)?;
    ctx.elem(1)?;
    Ok(match ctx.str("reduction").as_str() {
        "none" => Type::Tensor(TensorType { elem, shape: ctx.shape(1)?.map(<[Dim]>::to_vec) }),
        "sum" | "mean" => Type::tensor(elem, [0i64; 0]),
        other => return Err(OpError::new(format!("`reduction` must be none, sum or mean, found `{other}`"))),
    })
}

fn operand(node: &Node, i: usize) -> Result<ValueId, OpError> {
    node.operand(i).ok_or_else(|| OpError::new(format!("operand {i} is missing")))
}

fn log_likelihood(b: &mut Builder, node: &Node) -> Result<ValueId, OpError> {
    let (input, target) = (operand(node, 0)?, operand(node, 1)?);
    let (elem, index) = (b.elem(input)?, b.elem(target)?);
    let zero = b.scalar(elem, 0.0);
    let (target, ignored) = match node.attr("ignore_index") {
        Some(Attr::Int(ignore)) => {
            let ignore = b.scalar(index, ignore as f64);
            let ignored = b.op("equal", &[target, ignore])?;
            let first = b.scalar(index, 0.0);
            (b.op("where", &[ignored, first, target])?, Some(ignored))
        }
        _ => (target, None),
    };
    let one = b.ints(&[1]);
    let at = b.op("unsqueeze", &[target, one])?;
    let picked = b.op_with("gather_elements", &[input, at], [("axis", Attr::Int(1))])?;
    let picked = b.op("squeeze", &[picked, one])?;
    let mut loss = b.op("neg", &[picked])?;
    let mut weight = match (node.operand(2), ignored) {
        (Some(w), _) => Some(b.op("gather", &[w, target])?),
        (None, Some(_)) => Some(b.scalar(elem, 1.0)),
        (None, None) => None,
    };
    if let (Some(w), true) = (weight, node.operand(2).is_some()) {
        loss = b.op("mul", &[loss, w])?;
    }
    if let (Some(w), Some(ignored)) = (weight, ignored) {
        weight = Some(b.op("where", &[ignored, zero, w])?);
        loss = b.op("where", &[ignored, zero, loss])?;
    }
    let reduce = |b: &mut Builder, op: &str, v| b.op_with(op, &[v], [("keepdims", Attr::Int(0))]);
    match (node.attr("reduction"), weight) {
        (Some(Attr::Str(r)), _) if r == "none" => Ok(loss),
        (Some(Attr::Str(r)), _) if r == "sum" => reduce(b, "reduce_sum", loss),
        (_, None) => reduce(b, "reduce_mean", loss),
        (_, Some(w)) => {
            let (total, weights) = (reduce(b, "reduce_sum", loss)?, reduce(b, "reduce_sum", w)?);
            b.op("div", &[total, weights])
        }
    }
}

fn cross_entropy(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let log_prob = b.op_with("log_softmax", &[operand(node, 0)?], [("axis", Attr::Int(1))])?;
    let operands = vec![Some(log_prob), node.operand(1), node.operand(2)];
    let attrs: Attrs = node.attrs.clone();
    let loss = b.node("negative_log_likelihood_loss", operands, attrs, 1)?[0];
    Ok(vec![loss, log_prob])
}

/// Operands after the first two come in `groups` equally long groups; results repeat those in `kept`.
fn infer_optimizer(ctx: &InferCtx, groups: usize, kept: &[usize]) -> Result<Vec<Type>, OpError> {
    let n = group_len(ctx.types.len(), groups)?;
    let mut out = vec![];
    for g in kept {
        for i in 0..n {
            out.push(ctx.ty(2 + g * n + i)?.clone());
        }
    }
    Ok(out)
}

fn group_len(operands: usize, groups: usize) -> Result<usize, OpError> {
    let n = operands.saturating_sub(2);
    if n == 0 || !n.is_multiple_of(groups) {
        return Err(OpError::new(format!("takes {groups} operands per optimised tensor")));
    }
    Ok(n / groups)
}

/// Parts of an optimizer step that all of them share.
struct Step<'b, 'm> {
    b: &'b mut Builder<'m>,
    node: &'b Node,
    elem: ElemType,
    len: usize,
}

impl<'b, 'm> Step<'b, 'm> {
    fn new(b: &'b mut Builder<'m>, node: &'b Node, groups: usize) -> Result<Step<'b, 'm>, OpError> {
        let len = group_len(node.operands.len(), groups)?;
        let elem = b.elem(operand(node, 2)?)?;
        Ok(Step { b, node, elem, len })
    }

    fn input(&self, group: usize, i: usize) -> Result<ValueId, OpError> {
        operand(self.node, 2 + group * self.len + i)
    }

    fn float(&self, name: &str) -> Result<f64, OpError> {
        match self.node.attr(name) {
            Some(Attr::Float(v)) => Ok(f64::from(v)),
            _ => Err(OpError::new(format!("attribute `{name}` is missing"))),
        }
    }

    fn number(&mut self, v: f64) -> ValueId {
        self.b.scalar(self.elem, v)
    }

    /// `v` times a number.
    fn scaled(&mut self, v: ValueId, by: f64) -> Result<ValueId, OpError> {
        let by = self.number(by);
        self.b.op("mul", &[v, by])
    }

    /// Operand `i`, a scalar, in the tensors' element type.
    fn scalar(&mut self, i: usize) -> Result<ValueId, OpError> {
        let v = operand(self.node, i)?;
        if self.b.elem(v)? == self.elem {
            return Ok(v);
        }
        self.b.op_with("cast", &[v], [("to", Attr::Elem(self.elem))])
    }

    /// Gradient `i` plus the regulariser's.
    fn gradient(&mut self, i: usize) -> Result<ValueId, OpError> {
        let (x, g) = (self.input(0, i)?, self.input(1, i)?);
        let norm = self.float("norm_coefficient")?;
        let pull = self.scaled(x, norm)?;
        self.b.op("add", &[pull, g])
    }

    /// `yes` after the first step, `no` at it.
    fn after_first(&mut self, yes: ValueId, no: ValueId) -> Result<ValueId, OpError> {
        let (t, zero) = (self.scalar(1)?, self.number(0.0));
        let later = self.b.op("greater", &[t, zero])?;
        self.b.op("where", &[later, yes, no])
    }
}

fn adagrad(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let mut s = Step::new(b, node, 3)?;
    let (mut xs, mut hs) = (vec![], vec![]);
    let (decay, epsilon) = (s.float("decay_factor")?, s.float("epsilon")?);
    let (rate, t) = (s.scalar(0)?, s.scalar(1)?);
    let (slow, one) = (s.scaled(t, decay)?, s.number(1.0));
    let slow = s.b.op("add", &[slow, one])?;
    let rate = s.b.op("div", &[rate, slow])?;
    for i in 0..s.len {
        let g = s.gradient(i)?;
        let square = s.b.op("mul", &[g, g])?;
        let h = s.input(2, i)?;
        let h = s.b.op("add", &[h, square])?;
        let (root, e) = (s.b.op("sqrt", &[h])?, s.number(epsilon));
        let root = s.b.op("add", &[root, e])?;
        let step = s.b.op("mul", &[rate, g])?;
        let step = s.b.op("div", &[step, root])?;
        let x = s.input(0, i)?;
        xs.push(s.b.op("sub", &[x, step])?);
        hs.push(h);
    }
    xs.append(&mut hs);
    Ok(xs)
}

fn adam(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let mut s = Step::new(b, node, 4)?;
    let (alpha, beta, epsilon) = (s.float("alpha")?, s.float("beta")?, s.float("epsilon")?);
    let shrink = 1.0 - s.float("norm_coefficient_post")?;
    // After the first step the rate undoes the averages' start at zero.
    let (rate, t, one) = (s.scalar(0)?, s.scalar(1)?, s.number(1.0));
    let (alpha_t, beta_t) = (s.number(alpha), s.number(beta));
    let (alpha_t, beta_t) = (s.b.op("pow", &[alpha_t, t])?, s.b.op("pow", &[beta_t, t])?);
    let (left, right) = (s.b.op("sub", &[one, beta_t])?, s.b.op("sub", &[one, alpha_t])?);
    let left = s.b.op("sqrt", &[left])?;
    let left = s.b.op("mul", &[rate, left])?;
    let later = s.b.op("div", &[left, right])?;
    let rate = s.after_first(later, rate)?;
    let (mut xs, mut vs, mut hs) = (vec![], vec![], vec![]);
    for i in 0..s.len {
        let g = s.gradient(i)?;
        let square = s.b.op("mul", &[g, g])?;
        let (v, h) = (s.input(2, i)?, s.input(3, i)?);
        let (v, dv) = (s.scaled(v, alpha)?, s.scaled(g, 1.0 - alpha)?);
        let (h, dh) = (s.scaled(h, beta)?, s.scaled(square, 1.0 - beta)?);
        let (v, h) = (s.b.op("add", &[v, dv])?, s.b.op("add", &[h, dh])?);
        let (root, e) = (s.b.op("sqrt", &[h])?, s.number(epsilon));
        let root = s.b.op("add", &[root, e])?;
        let step = s.b.op("mul", &[rate, v])?;
        let step = s.b.op("div", &[step, root])?;
        let x = s.input(0, i)?;
        let x = s.b.op("sub", &[x, step])?;
        xs.push(s.scaled(x, shrink)?);
        vs.push(v);
        hs.push(h);
    }
    xs.append(&mut vs);
    xs.append(&mut hs);
    Ok(xs)
}

fn momentum(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let mut s = Step::new(b, node, 3)?;
    let (alpha, beta) = (s.float("alpha")?, s.float("beta")?);
    let nesterov = match node.attr("mode") {
        Some(Attr::Str(m)) if m == "nesterov" => true,
        Some(Attr::Str(m)) if m == "standard" => false,
        _ => return Err(OpError::new("`mode` must be `nesterov` or `standard`")),
    };
    let (later, first) = (s.number(beta), s.number(1.0));
    let (rate, beta) = (s.scalar(0)?, s.after_first(later, first)?);
    let (mut xs, mut vs) = (vec![], vec![]);
    for i in 0..s.len {
        let g = s.gradient(i)?;
        let fresh = s.b.op("mul", &[beta, g])?;
        let v = s.input(2, i)?;
        let v = s.scaled(v, alpha)?;
        let v = s.b.op("add", &[v, fresh])?;
        let mut step = v;
        if nesterov {
            step = s.scaled(v, alpha)?;
            step = s.b.op("add", &[g, step])?;
        }
        let step = s.b.op("mul", &[rate, step])?;
        let x = s.input(0, i)?;
        xs.push(s.b.op("sub", &[x, step])?);
        vs.push(v);
    }
    xs.append(&mut vs);
    Ok(xs)
}
