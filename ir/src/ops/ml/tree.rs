//! Ensembles of decision trees, in both of ONNX's layouts.

use super::super::{AttrDef, AttrKind, Default, Eval, EvalCtx, OpDef, OpError, Operand, Tolerance, checked_count};
use super::{Labels, POST_TRANSFORM, argmax, batch, classifier_types, features, post_transform, wide};
use crate::tensor::{Tensor, Value};
use crate::{Dim, ElemType, Type};
use std::collections::HashMap;

const fn optional(name: &'static str, kind: AttrKind, doc: &'static str) -> AttrDef {
    AttrDef::new(name, kind, Default::Absent, doc)
}

const fn required(name: &'static str, kind: AttrKind, doc: &'static str) -> AttrDef {
    AttrDef::new(name, kind, Default::Required, doc)
}

pub(super) static TREE_ENSEMBLE: OpDef = OpDef {
    name: "tree_ensemble",
    summary: "the combined leaves that each row reaches in every tree",
    source: "ONNX TreeEnsemble-5 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("aggregate_function", AttrKind::Int, Default::Int(1), "0 average, 1 sum, 2 min, 3 max"),
        required("leaf_targetids", AttrKind::Ints, "target of each leaf"),
        required("leaf_weights", AttrKind::Tensor, "weight of each leaf"),
        optional("membership_values", AttrKind::Tensor, "sets of the membership nodes, each ended by NaN"),
        optional("n_targets", AttrKind::Int, "number of targets"),
        required("nodes_falseleafs", AttrKind::Ints, "1 if the false branch is a leaf"),
        required("nodes_falsenodeids", AttrKind::Ints, "node or leaf of the false branch"),
        required("nodes_featureids", AttrKind::Ints, "feature that is tested"),
        optional("nodes_hitrates", AttrKind::Tensor, "not used"),
        optional("nodes_missing_value_tracks_true", AttrKind::Ints, "1 if NaN takes the true branch"),
        required("nodes_modes", AttrKind::Tensor, "tests: 0 ≤, 1 <, 2 ≥, 3 >, 4 =, 5 ≠, 6 member"),
        required("nodes_splits", AttrKind::Tensor, "what the feature is compared with"),
        required("nodes_trueleafs", AttrKind::Ints, "1 if the true branch is a leaf"),
        required("nodes_truenodeids", AttrKind::Ints, "node or leaf of the true branch"),
        AttrDef::new("post_transform", AttrKind::Int, Default::Int(0), "0 none, 1 softmax, 2 logistic, 3 softmax_zero, 4 probit"),
        required("tree_roots", AttrKind::Ints, "root node of each tree"),
    ],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        Ok(vec![Type::tensor(elem, [batch(ctx)?, ctx.int_opt("n_targets").map_or_else(|| ctx.fresh_dim(), Dim::from)])])
    },
    eval: Eval::Direct(|ctx| {
        let how = *["AVERAGE", "SUM", "MIN", "MAX"]
            .get(ctx.int("aggregate_function")? as usize)
            .ok_or_else(|| OpError::new("`aggregate_function` must be 0 to 3"))?;
        let transform = *["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"]
            .get(ctx.int("post_transform")? as usize)
            .ok_or_else(|| OpError::new("`post_transform` must be 0 to 4"))?;
        let out = regress(ctx, &flat_forest(ctx)?, how, transform, &[])?;
        Ok(vec![out])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Attributes of the two older ops: those of nodes, then their own.
macro_rules! node_attrs {
    ($($own:expr),* $(,)?) => {
        &[
            optional("base_values", AttrKind::Floats, "added to the result"),
            optional("base_values_as_tensor", AttrKind::Tensor, "added to the result"),
            optional("nodes_falsenodeids", AttrKind::Ints, "node of the false branch"),
            optional("nodes_featureids", AttrKind::Ints, "feature that is tested"),
            optional("nodes_hitrates", AttrKind::Floats, "not used"),
            optional("nodes_hitrates_as_tensor", AttrKind::Tensor, "not used"),
            optional("nodes_missing_value_tracks_true", AttrKind::Ints, "1 if NaN takes the true branch"),
            optional("nodes_modes", AttrKind::Strs, "tests: BRANCH_LEQ and so on, or LEAF"),
            optional("nodes_nodeids", AttrKind::Ints, "number of each node in its tree"),
            optional("nodes_treeids", AttrKind::Ints, "tree of each node"),
            optional("nodes_truenodeids", AttrKind::Ints, "node of the true branch"),
            optional("nodes_values", AttrKind::Floats, "what the feature is compared with"),
            optional("nodes_values_as_tensor", AttrKind::Tensor, "what the feature is compared with"),
            POST_TRANSFORM,
            $($own),*
        ]
    };
}

pub(super) static TREE_ENSEMBLE_REGRESSOR: OpDef = OpDef {
    name: "tree_ensemble_regressor",
    summary: "the combined leaves that each row reaches in every tree, plus base values",
    source: "ONNX TreeEnsembleRegressor-5 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: node_attrs![
        AttrDef::new("aggregate_function", AttrKind::Str, Default::Str("SUM"), "AVERAGE, SUM, MIN or MAX"),
        optional("n_targets", AttrKind::Int, "number of targets"),
        optional("target_ids", AttrKind::Ints, "target of each weight"),
        optional("target_nodeids", AttrKind::Ints, "leaf of each weight"),
        optional("target_treeids", AttrKind::Ints, "tree of each weight"),
        optional("target_weights", AttrKind::Floats, "weights"),
        optional("target_weights_as_tensor", AttrKind::Tensor, "weights"),
    ],
    infer: |ctx| {
        let n = ctx.int_opt("n_targets").map_or_else(|| ctx.fresh_dim(), Dim::from);
        Ok(vec![Type::tensor(ElemType::F32, [batch(ctx)?, n])])
    },
    eval: Eval::Direct(|ctx| {
        let forest = keyed_forest(ctx, "target", targets(ctx)?)?;
        let base = numbers(ctx, "base_values");
        Ok(vec![regress(ctx, &forest, &ctx.str("aggregate_function"), &ctx.str("post_transform"), &base)?])
    }),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

pub(super) static TREE_ENSEMBLE_CLASSIFIER: OpDef = OpDef {
    name: "tree_ensemble_classifier",
    summary: "the class whose leaves sum up to most, and the scores",
    source: "ONNX TreeEnsembleClassifier-5 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    results: &[Operand::One("y"), Operand::One("z")],
    attrs: node_attrs![
        optional("class_ids", AttrKind::Ints, "class of each weight"),
        optional("class_nodeids", AttrKind::Ints, "leaf of each weight"),
        optional("class_treeids", AttrKind::Ints, "tree of each weight"),
        optional("class_weights", AttrKind::Floats, "weights"),
        optional("class_weights_as_tensor", AttrKind::Tensor, "weights"),
        optional("classlabels_int64s", AttrKind::Ints, "names of the classes"),
        optional("classlabels_strings", AttrKind::Strs, "names of the classes"),
    ],
    infer: |ctx| {
        let labels = Labels::new(ctx.ints("classlabels_int64s"), ctx.strs("classlabels_strings"));
        let n = labels.len();
        classifier_types(ctx, &labels, Dim::from(if n == 1 { 2 } else { n }))
    },
    eval: Eval::Direct(classify),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

#[derive(Clone, Copy)]
enum Next {
    Node(usize),
    Leaf(usize),
}

struct Node {
    feature: usize,
    mode: usize,
    split: f64,
    members: Vec<f64>,
    nan_is_true: bool,
    yes: Next,
    no: Next,
}

struct Forest {
    nodes: Vec<Node>,
    roots: Vec<Next>,
    /// Targets and weights of each leaf.
    leaves: Vec<Vec<(usize, f64)>>,
    targets: usize,
}

fn bad(what: &str) -> OpError {
    OpError::new(format!("the trees are malformed: {what}"))
}

impl Forest {
    /// The leaf that a row reaches from `at`.
    fn leaf(&self, row: &[f64], mut at: Next) -> Result<&[(usize, f64)], OpError> {
        // A path longer than there are nodes goes round in a circle.
        for _ in 0..=self.nodes.len() {
            let node = match at {
                Next::Leaf(l) => return self.leaves.get(l).map(Vec::as_slice).ok_or_else(|| bad("no such leaf")),
                Next::Node(n) => self.nodes.get(n).ok_or_else(|| bad("no such node"))?,
            };
            let &v = row.get(node.feature).ok_or_else(|| bad("no such feature"))?;
            let hit = match node.mode {
                0 => v <= node.split,
                1 => v < node.split,
                2 => v >= node.split,
                3 => v > node.split,
                4 => v == node.split,
                5 => v != node.split,
                _ => node.members.contains(&v),
            };
            at = if hit || node.nan_is_true && v.is_nan() { node.yes } else { node.no };
        }
        Err(bad("a circle"))
    }

    /// The combined leaves of one row.
    fn predict(&self, row: &[f64], how: &str) -> Result<Vec<f64>, OpError> {
        let mut out: Vec<Option<f64>> = vec![None; self.targets];
        for &root in &self.roots {
            for &(target, weight) in self.leaf(row, root)? {
                let slot = out.get_mut(target).ok_or_else(|| bad("no such target"))?;
                *slot = Some(match (*slot, how) {
                    (None, _) => weight,
                    (Some(v), "SUM" | "AVERAGE") => v + weight,
                    (Some(v), "MIN") => v.min(weight),
                    (Some(v), "MAX") => v.max(weight),
                    _ => return Err(OpError::new(format!("there is no `aggregate_function` `{how}`"))),
                });
            }
        }
        let scale = if how == "AVERAGE" { 1.0 / self.roots.len() as f64 } else { 1.0 };
        Ok(out.into_iter().map(|v| v.unwrap_or(0.0) * scale).collect())
    }
}

/// Float list `name`, given as a list or as a tensor.
fn numbers(ctx: &EvalCtx, name: &str) -> Vec<f64> {
    match ctx.tensor_attr(&format!("{name}_as_tensor")) {
        Some(t) => t.to_f64s().unwrap_or_default(),
        None => wide(ctx.floats(name)),
    }
}

fn indices(ctx: &EvalCtx, name: &str) -> Result<Vec<usize>, OpError> {
    let v = ctx.ints(name).unwrap_or_default();
    v.iter().map(|&i| usize::try_from(i).map_err(|_| bad(name))).collect()
}

fn targets(ctx: &EvalCtx) -> Result<usize, OpError> {
    let n = ctx.int_opt("n_targets").and_then(|n| usize::try_from(n).ok());
    n.ok_or_else(|| OpError::new("`n_targets` is missing or negative"))
}

/// Reads the layout of `tree_ensemble`: nodes and leaves by position.
fn flat_forest(ctx: &EvalCtx) -> Result<Forest, OpError> {
    let tensor = |name: &str| ctx.tensor_attr(name).and_then(|t| t.to_f64s()).unwrap_or_default();
    let (modes, splits, features) = (tensor("nodes_modes"), tensor("nodes_splits"), indices(ctx, "nodes_featureids")?);
    let (yes, no) = (indices(ctx, "nodes_truenodeids")?, indices(ctx, "nodes_falsenodeids")?);
    let (yes_leaf, no_leaf) = (indices(ctx, "nodes_trueleafs")?, indices(ctx, "nodes_falseleafs")?);
    let nan = indices(ctx, "nodes_missing_value_tracks_true")?;
    let n = modes.len();
    if [splits.len(), features.len(), yes.len(), no.len(), yes_leaf.len(), no_leaf.len()].iter().any(|&l| l != n) {
        return Err(bad("node attributes differ in length"));
    }
    let members = tensor("membership_values");
    let mut sets = members.split(|v| v.is_nan());
    let next = |at: usize, leaf: usize| if leaf != 0 { Next::Leaf(at) } else { Next::Node(at) };
    let mut nodes = vec![];
    for i in 0..n {
        let mode = modes[i] as usize;
        let members = match mode {
            0..=5 => vec![],
            6 => sets.next().ok_or_else(|| bad("too few membership sets"))?.to_vec(),
            _ => return Err(bad("no such mode")),
        };
        nodes.push(Node {
            feature: features[i],
            mode,
            split: splits[i],
            members,
            nan_is_true: nan.get(i).is_some_and(|&v| v != 0),
            yes: next(yes[i], yes_leaf[i]),
            no: next(no[i], no_leaf[i]),
        });
    }
    let (weights, ids) = (tensor("leaf_weights"), indices(ctx, "leaf_targetids")?);
    if weights.len() != ids.len() {
        return Err(bad("leaf attributes differ in length"));
    }
    let leaves = ids.into_iter().zip(weights).map(|leaf| vec![leaf]).collect();
    let roots = indices(ctx, "tree_roots")?.into_iter().map(Next::Node).collect();
    Ok(Forest { nodes, roots, leaves, targets: targets(ctx)? })
}

/// Reads the older layout: nodes by tree and number, weights (`target_…` or `class_…`) apart.
fn keyed_forest(ctx: &EvalCtx, weights: &str, targets: usize) -> Result<Forest, OpError> {
    let (trees, ids, features) = (indices(ctx, "nodes_treeids")?, indices(ctx, "nodes_nodeids")?, indices(ctx, "nodes_featureids")?);
    let (yes, no) = (indices(ctx, "nodes_truenodeids")?, indices(ctx, "nodes_falsenodeids")?);
    let (modes, splits, nan) = (ctx.strs("nodes_modes"), numbers(ctx, "nodes_values"), indices(ctx, "nodes_missing_value_tracks_true")?);
    let n = ids.len();
    if [trees.len(), features.len(), yes.len(), no.len(), modes.len(), splits.len()].iter().any(|&l| l != n) {
        return Err(bad("node attributes differ in length"));
    }
    let at: HashMap<(usize, usize), usize> = (0..n).map(|i| ((trees[i], ids[i]), i)).collect();
    // Leaves and nodes share their positions.
    let find = |tree: usize, id: usize| -> Result<Next, OpError> {
        let &i = at.get(&(tree, id)).ok_or_else(|| bad("no such node"))?;
        Ok(if modes[i] == "LEAF" { Next::Leaf(i) } else { Next::Node(i) })
    };
    let mut nodes = vec![];
    for i in 0..n {
        let mode = match modes[i].as_str() {
            "LEAF" => None,
            mode => {
                let known = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"];
                Some(known.iter().position(|m| *m == mode).ok_or_else(|| bad("no such mode"))?)
            }
        };
        nodes.push(Node {
            feature: features[i],
            mode: mode.unwrap_or(0),
            split: splits[i],
            members: vec![],
            nan_is_true: nan.get(i).is_some_and(|&v| v != 0),
            yes: mode.map_or(Ok(Next::Leaf(i)), |_| find(trees[i], yes[i]))?,
            no: mode.map_or(Ok(Next::Leaf(i)), |_| find(trees[i], no[i]))?,
        });
    }
    // A tree starts at its first node.
    let mut roots: Vec<(usize, Next)> = vec![];
    let mut seen = std::collections::HashSet::new();
    for i in 0..n {
        if seen.insert(trees[i]) {
            roots.push((i, find(trees[i], ids[i])?));
        }
    }
    let mut leaves = vec![vec![]; n];
    let list = |name: &str| indices(ctx, &format!("{weights}_{name}"));
    let (tree, node, target) = (list("treeids")?, list("nodeids")?, list("ids")?);
    let values = numbers(ctx, &format!("{weights}_weights"));
    if [tree.len(), node.len(), target.len()].iter().any(|&l| l != values.len()) {
        return Err(bad("weight attributes differ in length"));
    }
    for i in 0..values.len() {
        let &leaf = at.get(&(tree[i], node[i])).ok_or_else(|| bad("a weight of no leaf"))?;
        leaves[leaf].push((target[i], values[i]));
    }
    Ok(Forest { nodes, roots: roots.into_iter().map(|(_, r)| r).collect(), leaves, targets })
}

fn regress(ctx: &EvalCtx, forest: &Forest, how: &str, transform: &str, base: &[f64]) -> Result<Value, OpError> {
    let (x, rows, f) = features(ctx)?;
    if !(base.is_empty() || base.len() == forest.targets) {
        return Err(bad("a base value per target is needed"));
    }
    let mut out = Vec::with_capacity(checked_count(&[rows, forest.targets])?);
    for r in 0..rows {
        let mut row = forest.predict(&x[r * f..(r + 1) * f], how)?;
        row.iter_mut().zip(base).for_each(|(v, b)| *v += b);
        post_transform(transform, &mut row)?;
        out.extend(row);
    }
    // The older op gives f32 whatever its features are.
    let elem = match ctx.node.op.name {
        "tree_ensemble" => ctx.tensor(0)?.elem(),
        _ => ElemType::F32,
    };
    if !elem.is_float() {
        return Err(OpError::new("features must be floats"));
    }
    Ok(Tensor::from_f64(elem, [rows, forest.targets], out).into())
}

fn classify(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let labels = Labels::new(ctx.ints("classlabels_int64s"), ctx.strs("classlabels_strings"));
    let (transform, base, ids) = (ctx.str("post_transform"), numbers(ctx, "base_values"), indices(ctx, "class_ids")?);
    let forest = keyed_forest(ctx, "class", labels.len())?;
    let (x, rows, f) = features(ctx)?;
    // All weights of one class: a single score that tells two classes apart.
    let binary = ids.first().is_some_and(|first| ids.iter().all(|i| i == first)) && labels.len() <= 2;
    let width = if binary { 2 } else { labels.len() };
    if !(base.is_empty() || base.len() == labels.len()) || width == 0 {
        return Err(bad("a label and a base value per class are needed"));
    }
    let (mut classes, mut out) = (vec![], Vec::with_capacity(checked_count(&[rows, width])?));
    for r in 0..rows {
        let mut row = forest.predict(&x[r * f..(r + 1) * f], "SUM")?;
        row.iter_mut().zip(&base).for_each(|(v, b)| *v += b);
        if binary {
            let s = row[ids[0]];
            row = match transform.as_str() {
                "NONE" | "PROBIT" => vec![1.0 - s, s],
                _ => vec![-s, s],
            };
        }
        post_transform(&transform, &mut row)?;
        classes.push(argmax(&row));
        out.extend(row);
    }
    let labels = match &labels {
        // A single label names the positive class; the other one is 0.
        Labels::Ints(v) if v.len() == 1 => {
            let names = classes.iter().map(|&c| if c == 1 { v[0].into() } else { 0 }).collect();
            Tensor::from_int(ElemType::I64, [rows], names)
        }
        Labels::Strs(v) if v.len() == 1 => return Err(OpError::new("one text label cannot name two classes")),
        labels => labels.tensor(&classes),
    };
    Ok(vec![labels.into(), Tensor::from_f64(ElemType::F32, [rows, width], out).into()])
}
