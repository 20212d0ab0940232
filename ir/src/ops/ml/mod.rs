//! Classical machine learning (`ai.onnx.ml`): encoders, scalers, linear models, support vectors, trees.
//!
//! `CastMap`, `DictVectorizer` and `ZipMap` take or give maps, which are no type of this IR; the importer
//! refuses them.

mod encode;
mod linear;
mod scale;
mod svm;
mod tree;

use super::{AttrDef, AttrKind, Default, EvalCtx, InferCtx, OpDef, OpError};
use crate::tensor::{Data, Tensor};
use crate::{Dim, ElemType, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &encode::LABEL_ENCODER,
    &encode::CATEGORY_MAPPER,
    &encode::ONE_HOT_ENCODER,
    &encode::ARRAY_FEATURE_EXTRACTOR,
    &encode::FEATURE_VECTORIZER,
    &scale::BINARIZER,
    &scale::SCALER,
    &scale::NORMALIZER,
    &scale::IMPUTER,
    &linear::LINEAR_REGRESSOR,
    &linear::LINEAR_CLASSIFIER,
    &svm::SVM_REGRESSOR,
    &svm::SVM_CLASSIFIER,
    &tree::TREE_ENSEMBLE,
    &tree::TREE_ENSEMBLE_REGRESSOR,
    &tree::TREE_ENSEMBLE_CLASSIFIER,
];

const POST_TRANSFORM: AttrDef =
    AttrDef::new("post_transform", AttrKind::Str, Default::Str("NONE"), "NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT");

/// Applies a `post_transform` to the scores of one row.
fn post_transform(kind: &str, row: &mut [f64]) -> Result<(), OpError> {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let normalize = |row: &mut [f64], otherwise: Option<f64>| {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v = otherwise.filter(|_| sum == 0.0).unwrap_or(*v / sum));
    };
    match kind {
        "NONE" => {}
        "LOGISTIC" => row.iter_mut().for_each(|v| *v = logistic(*v)),
        "SOFTMAX" => {
            row.iter_mut().for_each(|v| *v = (*v - top).exp());
            normalize(row, None);
        }
        "SOFTMAX_ZERO" => {
            let zero = |v: f64| if v.abs() > 1e-7 { (v - top).exp() } else { v * (-top).exp() };
            row.iter_mut().for_each(|v| *v = zero(*v));
            normalize(row, Some(0.5));
        }
        "PROBIT" => row.iter_mut().for_each(|v| *v = probit(*v)),
        other => return Err(OpError::new(format!("there is no `post_transform` `{other}`"))),
    }
    Ok(())
}

fn logistic(v: f64) -> f64 {
    let positive = 1.0 / (1.0 + (-v.abs()).exp());
    if v < 0.0 { 1.0 - positive } else { positive }
}

/// The inverse of the normal distribution function, by Winitzki's approximation (which ONNX prescribes).
fn probit(p: f64) -> f64 {
    let x = 2.0 * p - 1.0;
    let product = (1.0 - x) * (1.0 + x);
    if product == 0.0 {
        return 0.0;
    }
    let log = product.ln();
    let v = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    let root = (-v + (v * v - log / 0.147).sqrt()).sqrt();
    std::f64::consts::SQRT_2 * if x < 0.0 { -root } else { root }
}

/// The features of operand 0 as a matrix: values, rows, columns. A vector is one row.
fn features(ctx: &EvalCtx) -> Result<(Vec<f64>, usize, usize), OpError> {
    let x = ctx.tensor(0)?;
    let values = x.to_f64s().ok_or_else(|| OpError::new("features must be numbers"))?;
    match *x.shape() {
        [columns] => Ok((values, 1, columns)),
        [rows, columns] => Ok((values, rows, columns)),
        _ => Err(OpError::new("features must have shape [N, F]")),
    }
}

/// Number of rows of the features, for type rules.
fn batch(ctx: &InferCtx) -> Result<Dim, OpError> {
    ctx.elem(0)?;
    Ok(match ctx.shape(0)? {
        Some([_]) => Dim::from(1i64),
        Some([n, _]) => n.clone(),
        Some(_) => return Err(OpError::new("features must have shape [N, F]")),
        None => ctx.fresh_dim(),
    })
}

/// What a classifier calls its classes.
enum Labels {
    Ints(Vec<i64>),
    Strs(Vec<String>),
}

impl Labels {
    fn new(ints: Option<Vec<i64>>, strs: Vec<String>) -> Labels {
        if strs.is_empty() { Labels::Ints(ints.unwrap_or_default()) } else { Labels::Strs(strs) }
    }

    fn len(&self) -> usize {
        match self {
            Labels::Ints(v) => v.len(),
            Labels::Strs(v) => v.len(),
        }
    }

    fn elem(&self) -> ElemType {
        match self {
            Labels::Ints(_) => ElemType::I64,
            Labels::Strs(_) => ElemType::String,
        }
    }

    /// The names of these classes; without names, or past them, the numbers themselves.
    fn tensor(&self, classes: &[usize]) -> Tensor {
        match self {
            Labels::Ints(v) => {
                let name = |&c: &usize| v.get(c).map_or(c as i128, |&l| i128::from(l));
                Tensor::from_int(ElemType::I64, [classes.len()], classes.iter().map(name).collect())
            }
            Labels::Strs(v) => {
                let name = |&c: &usize| v.get(c).cloned().unwrap_or_default();
                Tensor::new(ElemType::String, [classes.len()], Data::Str(classes.iter().map(name).collect()))
            }
        }
    }
}

/// Types of a classifier's results: a label per row and a matrix of scores.
fn classifier_types(ctx: &InferCtx, labels: &Labels, scores: Dim) -> Result<Vec<Type>, OpError> {
    let n = batch(ctx)?;
    Ok(vec![Type::tensor(labels.elem(), [n.clone()]), Type::tensor(ElemType::F32, [n, scores])])
}

/// Position of the largest score, the first of equal ones.
fn argmax(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn wide(v: Vec<f32>) -> Vec<f64> {
    v.into_iter().map(f64::from).collect()
}

#[cfg(test)]
mod tests {
    use crate::Attr;
    use crate::eval::testing::{f32s, gives, i64s, refuses, texts};

    #[test]
    fn encoders() {
        let x = texts(&[3], &["b", "a", "z"]);
        let attrs = [("keys_strings", Attr::Strs(vec!["a".into(), "b".into()])), ("values_int64s", Attr::Ints(vec![5, 6]))];
        gives("label_encoder", std::slice::from_ref(&x), &attrs, &[i64s(&[3], &[6, 5, -1])]);
        let cats = [("cats_strings", Attr::Strs(vec!["a".into(), "b".into()]))];
        let hot = f32s(&[3, 2], &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        gives("one_hot_encoder", std::slice::from_ref(&x), &cats, &[hot]);
        let strict = [cats[0].clone(), ("zeros", Attr::Int(0))];
        refuses("one_hot_encoder", &[x], &strict, "no category");
        let (nan, keys) = (f32s(&[1], &[f64::NAN]), Attr::Floats(vec![f32::NAN]));
        let attrs = [("keys_floats", keys), ("values_floats", Attr::Floats(vec![1.0]))];
        gives("label_encoder", &[nan], &attrs, &[f32s(&[1], &[1.0])]);
    }

    #[test]
    fn linear_and_kernel_models() {
        let x = f32s(&[2, 2], &[1.0, 2.0, -1.0, 0.0]);
        let attrs = [("coefficients", Attr::Floats(vec![1.0, 2.0])), ("intercepts", Attr::Floats(vec![0.5]))];
        gives("linear_regressor", std::slice::from_ref(&x), &attrs, &[f32s(&[2, 1], &[5.5, -0.5])]);
        let labels = [attrs[0].clone(), attrs[1].clone(), ("classlabels_strings", Attr::Strs(vec!["n".into(), "p".into()]))];
        let expected = [texts(&[2], &["p", "n"]), f32s(&[2, 2], &[-5.5, 5.5, 0.5, -0.5])];
        gives("linear_classifier", std::slice::from_ref(&x), &labels, &expected);
        let svm = [("coefficients", Attr::Floats(vec![1.0, 2.0])), ("rho", Attr::Floats(vec![0.5]))];
        gives("svm_regressor", std::slice::from_ref(&x), &svm, &[f32s(&[2, 1], &[5.5, -0.5])]);
        refuses("svm_regressor", &[x], &svm[..1], "do not fit");
    }

    #[test]
    fn malformed_trees_are_refused() {
        let tree = |children: i64| {
            [
                ("n_targets", Attr::Int(1)),
                ("nodes_treeids", Attr::Ints(vec![0, 0])),
                ("nodes_nodeids", Attr::Ints(vec![0, 1])),
                ("nodes_featureids", Attr::Ints(vec![0, 0])),
                ("nodes_values", Attr::Floats(vec![0.0, 0.0])),
                ("nodes_modes", Attr::Strs(vec!["BRANCH_LEQ".into(), "LEAF".into()])),
                ("nodes_truenodeids", Attr::Ints(vec![children, 0])),
                ("nodes_falsenodeids", Attr::Ints(vec![1, 0])),
                ("target_treeids", Attr::Ints(vec![0])),
                ("target_nodeids", Attr::Ints(vec![1])),
                ("target_ids", Attr::Ints(vec![0])),
                ("target_weights", Attr::Floats(vec![3.0])),
            ]
        };
        let x = f32s(&[1, 1], &[-1.0]);
        gives("tree_ensemble_regressor", std::slice::from_ref(&x), &tree(1), &[f32s(&[1, 1], &[3.0])]);
        refuses("tree_ensemble_regressor", std::slice::from_ref(&x), &tree(0), "circle");
        refuses("tree_ensemble_regressor", &[x], &tree(7), "no such node");
    }
}
