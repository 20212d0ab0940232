//! Support vector machines.
//! Source of the probability estimates: Wu, Lin, Weng, "Probability estimates for multi-class
//! classification by pairwise coupling", 2004 (as in LIBSVM).

use super::super::{AttrDef, AttrKind, Default, Eval, EvalCtx, OpDef, OpError, Operand, Tolerance};
use super::{Labels, POST_TRANSFORM, argmax, batch, classifier_types, features, logistic, post_transform, wide};
use crate::tensor::{Tensor, Value};
use crate::{Dim, ElemType, Type};

const COEFFICIENTS: AttrDef = AttrDef::new("coefficients", AttrKind::Floats, Default::Absent, "weights of the support vectors (or of the features)");
const KERNEL_PARAMS: AttrDef = AttrDef::new("kernel_params", AttrKind::Floats, Default::Absent, "gamma, coef0, degree");
const KERNEL_TYPE: AttrDef = AttrDef::new("kernel_type", AttrKind::Str, Default::Str("LINEAR"), "LINEAR, POLY, RBF or SIGMOID");
const RHO: AttrDef = AttrDef::new("rho", AttrKind::Floats, Default::Absent, "intercepts");
const SUPPORT_VECTORS: AttrDef = AttrDef::new("support_vectors", AttrKind::Floats, Default::Absent, "the vectors, one after the other");

pub(super) static SVM_REGRESSOR: OpDef = OpDef {
    name: "svm_regressor",
    summary: "a weighted sum of kernels between features and support vectors",
    source: "ONNX SVMRegressor-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        COEFFICIENTS,
        KERNEL_PARAMS,
        KERNEL_TYPE,
        AttrDef::new("n_supports", AttrKind::Int, Default::Int(0), "number of support vectors; 0 for a linear model"),
        AttrDef::new("one_class", AttrKind::Int, Default::Int(0), "1 to give only the sign"),
        POST_TRANSFORM,
        RHO,
        SUPPORT_VECTORS,
    ],
    infer: |ctx| Ok(vec![Type::tensor(ElemType::F32, [batch(ctx)?, Dim::from(1i64)])]),
    eval: Eval::Direct(regressor),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

pub(super) static SVM_CLASSIFIER: OpDef = OpDef {
    name: "svm_classifier",
    summary: "the class that wins most duels between pairs of classes, and scores or probabilities",
    source: "ONNX SVMClassifier-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    results: &[Operand::One("y"), Operand::One("z")],
    attrs: &[
        AttrDef::new("classlabels_ints", AttrKind::Ints, Default::Absent, "names of the classes"),
        AttrDef::new("classlabels_strings", AttrKind::Strs, Default::Absent, "names of the classes"),
        COEFFICIENTS,
        KERNEL_PARAMS,
        KERNEL_TYPE,
        POST_TRANSFORM,
        AttrDef::new("prob_a", AttrKind::Floats, Default::Absent, "slopes of the probability estimates"),
        AttrDef::new("prob_b", AttrKind::Floats, Default::Absent, "offsets of the probability estimates"),
        RHO,
        SUPPORT_VECTORS,
        AttrDef::new("vectors_per_class", AttrKind::Ints, Default::Absent, "support vectors of each class; none for a linear model"),
    ],
    infer: |ctx| {
        let labels = Labels::new(ctx.ints("classlabels_ints"), ctx.strs("classlabels_strings"));
        classifier_types(ctx, &labels, ctx.fresh_dim())
    },
    eval: Eval::Direct(classifier),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// A kernel function with its parameters.
struct Kernel {
    kind: String,
    gamma: f64,
    coef0: f64,
    degree: i32,
}

impl Kernel {
    fn new(ctx: &EvalCtx) -> Result<Kernel, OpError> {
        let p = wide(ctx.floats("kernel_params"));
        let at = |i: usize| p.get(i).copied().unwrap_or(0.0);
        let kind = ctx.str("kernel_type");
        if !["LINEAR", "POLY", "RBF", "SIGMOID"].contains(&kind.as_str()) {
            return Err(OpError::new(format!("there is no `kernel_type` `{kind}`")));
        }
        Ok(Kernel { kind, gamma: at(0), coef0: at(1), degree: at(2) as i32 })
    }

    fn of(&self, a: &[f64], b: &[f64]) -> f64 {
        let dot = || a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        match self.kind.as_str() {
            "POLY" => (dot() * self.gamma + self.coef0).powi(self.degree),
            "SIGMOID" => (dot() * self.gamma + self.coef0).tanh(),
            "RBF" => (-self.gamma * a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>()).exp(),
            _ => dot(),
        }
    }
}

fn misfit() -> OpError {
    OpError::new("support vectors, coefficients and intercepts do not fit together")
}

fn regressor(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, rows, f) = features(ctx)?;
    let (w, rho, vectors) = (wide(ctx.floats("coefficients")), wide(ctx.floats("rho")), wide(ctx.floats("support_vectors")));
    let n = usize::try_from(ctx.int("n_supports")?).map_err(|_| misfit())?;
    let (&rho, fits) = (rho.first().ok_or_else(misfit)?, if n == 0 { w.len() == f } else { w.len() == n && Some(vectors.len()) == n.checked_mul(f) });
    if !fits {
        return Err(misfit());
    }
    let kernel = Kernel::new(ctx)?;
    let score = |row: &[f64]| -> f64 {
        if n == 0 {
            return rho + row.iter().zip(&w).map(|(a, b)| a * b).sum::<f64>();
        }
        rho + (0..n).map(|j| w[j] * kernel.of(row, &vectors[j * f..(j + 1) * f])).sum::<f64>()
    };
    let mut out: Vec<f64> = (0..rows).map(|r| score(&x[r * f..(r + 1) * f])).collect();
    if ctx.flag("one_class") {
        out.iter_mut().for_each(|v| *v = if *v > 0.0 { 1.0 } else { -1.0 });
    }
    for v in &mut out {
        post_transform(&ctx.str("post_transform"), std::slice::from_mut(v))?;
    }
    Ok(vec![Tensor::from_f64(ElemType::F32, [rows, 1], out).into()])
}

/// A classifier's parameters.
struct Machine {
    kernel: Kernel,
    weights: Vec<f64>,
    rho: Vec<f64>,
    vectors: Vec<f64>,
    per_class: Vec<usize>,
    classes: usize,
    features: usize,
}

impl Machine {
    fn new(ctx: &EvalCtx, classes: usize, features: usize) -> Result<Machine, OpError> {
        let per_class = ctx.ints("vectors_per_class").unwrap_or_default();
        let per_class = per_class.iter().map(|&n| usize::try_from(n).map_err(|_| misfit())).collect::<Result<Vec<_>, _>>()?;
        let m = Machine {
            kernel: Kernel::new(ctx)?,
            weights: wide(ctx.floats("coefficients")),
            rho: wide(ctx.floats("rho")),
            vectors: wide(ctx.floats("support_vectors")),
            per_class,
            classes,
            features,
        };
        let n = m.per_class.iter().try_fold(0usize, |a, &b| a.checked_add(b)).ok_or_else(misfit)?;
        let pairs = classes * (classes - 1) / 2;
        let fits = match n {
            0 => Some(m.weights.len()) == classes.checked_mul(features) && !m.rho.is_empty(),
            _ => {
                m.per_class.len() == classes
                    && classes > 1
                    && Some(m.vectors.len()) == n.checked_mul(features)
                    && Some(m.weights.len()) == n.checked_mul(classes - 1)
                    && m.rho.len() >= pairs
            }
        };
        if fits { Ok(m) } else { Err(misfit()) }
    }

    fn is_linear(&self) -> bool {
        self.per_class.iter().sum::<usize>() == 0
    }

    /// One score per class.
    fn linear(&self, x: &[f64]) -> Vec<f64> {
        let dot = |w: &[f64]| x.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
        (0..self.classes).map(|c| self.rho[0] + dot(&self.weights[c * self.features..][..self.features])).collect()
    }

    /// Votes per class and one score per pair of classes.
    fn duels(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n: usize = self.per_class.iter().sum();
        let kernels: Vec<f64> = (0..n).map(|j| self.kernel.of(x, &self.vectors[j * self.features..][..self.features])).collect();
        let starts: Vec<usize> = (0..self.classes).map(|c| self.per_class[..c].iter().sum()).collect();
        let part = |row: usize, class: usize| -> f64 {
            (starts[class]..starts[class] + self.per_class[class]).map(|k| self.weights[row * n + k] * kernels[k]).sum()
        };
        let (mut votes, mut scores) = (vec![0.0; self.classes], vec![]);
        for i in 0..self.classes {
            for j in i + 1..self.classes {
                let s = self.rho[scores.len()] + part(j - 1, i) + part(i, j);
                votes[if s > 0.0 { i } else { j }] += 1.0;
                scores.push(s);
            }
        }
        (votes, scores)
    }
}

fn classifier(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, rows, f) = features(ctx)?;
    let labels = Labels::new(ctx.ints("classlabels_ints"), ctx.strs("classlabels_strings"));
    let m = Machine::new(ctx, labels.len().max(1), f)?;
    let (prob_a, prob_b) = (wide(ctx.floats("prob_a")), wide(ctx.floats("prob_b")));
    let has_probabilities = !prob_a.is_empty() && !m.is_linear();
    let pairs = m.classes * (m.classes - 1) / 2;
    if has_probabilities && (prob_a.len() < pairs || prob_b.len() < pairs) {
        return Err(OpError::new("`prob_a` and `prob_b` must have an entry per pair of classes"));
    }
    let all_positive = m.weights.iter().all(|&w| w >= 0.0);
    let transform = ctx.str("post_transform");
    let (mut classes, mut out) = (vec![], vec![]);
    for r in 0..rows {
        let row = &x[r * f..(r + 1) * f];
        let (votes, mut scores) = if m.is_linear() { (None, m.linear(row)) } else {
            let (votes, scores) = m.duels(row);
            (Some(votes), scores)
        };
        if has_probabilities {
            scores = probabilities(m.classes, &scores, &prob_a, &prob_b);
        }
        let ballot = votes.as_ref().unwrap_or(&scores);
        let best = argmax(ballot);
        let weight = ballot[best];
        let mut two_sided = false;
        classes.push(match (m.rho.len(), labels.len()) {
            (1, 2) => {
                two_sided = true;
                if !has_probabilities && all_positive && weight >= 0.5 { 1 } else { best }
            }
            (1, _) => usize::from(weight > 0.0),
            _ => best,
        });
        if scores.len() == 1 && two_sided && transform != "PROBIT" {
            scores = vec![-scores[0], scores[0]];
            post_transform(&transform, &mut scores)?;
        } else if scores.len() > 1 || transform == "PROBIT" {
            post_transform(&transform, &mut scores)?;
        }
        out.extend(scores);
    }
    let width = out.len().checked_div(rows).unwrap_or(0);
    Ok(vec![labels.tensor(&classes).into(), Tensor::from_f64(ElemType::F32, [rows, width], out).into()])
}

/// Class probabilities from the scores of all pairs.
fn probabilities(k: usize, scores: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut r = vec![vec![0.0; k]; k];
    let mut pair = 0;
    for i in 0..k {
        for j in i + 1..k {
            let p = (1.0 - logistic(scores[pair] * a[pair] + b[pair])).clamp(1e-7, 1.0 - 1e-7);
            (r[i][j], r[j][i]) = (p, 1.0 - p);
            pair += 1;
        }
    }
    let q: Vec<Vec<f64>> = (0..k)
        .map(|t| {
            (0..k)
                .map(|j| if j == t { (0..k).filter(|&i| i != t).map(|i| r[i][t] * r[i][t]).sum() } else { -r[j][t] * r[t][j] })
                .collect()
        })
        .collect();
    let mut p = vec![1.0 / k as f64; k];
    for _ in 0..k.max(100) {
        let mut qp: Vec<f64> = q.iter().map(|row| row.iter().zip(&p).map(|(a, b)| a * b).sum()).collect();
        let mut pqp: f64 = p.iter().zip(&qp).map(|(a, b)| a * b).sum();
        if qp.iter().all(|v| (v - pqp).abs() < 0.005 / k as f64) {
            break;
        }
        for t in 0..k {
            let diff = (pqp - qp[t]) / q[t][t];
            p[t] += diff;
            pqp = (pqp + diff * (diff * q[t][t] + 2.0 * qp[t])) / ((1.0 + diff) * (1.0 + diff));
            p.iter_mut().for_each(|v| *v /= 1.0 + diff);
            qp.iter_mut().zip(&q[t]).for_each(|(v, q)| *v = (*v + diff * q) / (1.0 + diff));
        }
    }
    p
}
