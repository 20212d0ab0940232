//! Ensembles of decision trees: tree_ensemble.

use super::call::{Call, Results, fail, length, one};
use super::number;
use crate::error::RunError;
use crate::value::count;

/// Where a branch leads.
#[derive(Clone, Copy)]
enum Next {
    Node(usize),
    Leaf(usize),
}

struct Node {
    feature: usize,
    test: Test,
    nan_is_true: bool,
    yes: Next,
    no: Next,
}

enum Test {
    /// Comparison (0 ≤, 1 <, 2 ≥, 3 >, 4 =, 5 ≠) with a number.
    Compare(usize, f64),
    /// One of a set.
    Member(Vec<f64>),
}

struct Forest {
    nodes: Vec<Node>,
    roots: Vec<usize>,
    /// Target and weight of each leaf.
    leaves: Vec<(usize, f64)>,
}

pub fn tree_ensemble(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let (rows, width) = match *data.dims() {
        [n] => (1, n),
        [rows, n] => (rows, n),
        _ => return fail("features must have shape [N, F]"),
    };
    if !data.elem().is_float() {
        return fail("features must be floats");
    }
    let forest = read(call)?;
    let targets = length(call.attr_int("n_targets", -1))?;
    let combine = call.attr_int("aggregate_function", 1);
    let transform = call.attr_int("post_transform", 0);
    if !(0..4).contains(&combine) || !(0..5).contains(&transform) {
        return fail("`aggregate_function` must be 0 to 3, `post_transform` 0 to 4");
    }
    let features = number::floats(data);
    let mut out = Vec::with_capacity(count(&[rows, targets])?);
    for row in 0..rows {
        let features = &features[row * width..(row + 1) * width];
        let mut scores = forest.predict(features, targets, combine)?;
        post_transform(transform, &mut scores);
        out.extend(scores);
    }
    one(number::from_floats(data.elem(), vec![rows, targets], &out)?)
}

impl Forest {
    fn leaf(&self, features: &[f64], root: usize) -> Result<(usize, f64), RunError> {
        let mut at = Next::Node(root);
        // A path longer than there are nodes goes round in a circle.
        for _ in 0..=self.nodes.len() {
            let node = match at {
                Next::Leaf(l) => return self.leaves.get(l).copied().ok_or_else(|| bad("a leaf")),
                Next::Node(n) => self.nodes.get(n).ok_or_else(|| bad("a node"))?,
            };
            let &v = features.get(node.feature).ok_or_else(|| bad("a feature"))?;
            let is_hit = match &node.test {
                Test::Compare(0, split) => v <= *split,
                Test::Compare(1, split) => v < *split,
                Test::Compare(2, split) => v >= *split,
                Test::Compare(3, split) => v > *split,
                Test::Compare(4, split) => v == *split,
                Test::Compare(_, split) => v != *split,
                Test::Member(set) => set.contains(&v),
            };
            let yes = is_hit || node.nan_is_true && v.is_nan();
            at = if yes { node.yes } else { node.no };
        }
        fail("the trees are malformed: a circle")
    }

    /// The combined leaves (0 average, 1 sum, 2 least, 3 most) that one row reaches.
    fn predict(&self, row: &[f64], targets: usize, combine: i64) -> Result<Vec<f64>, RunError> {
        let mut out: Vec<Option<f64>> = vec![None; targets];
        for &root in &self.roots {
            let (target, weight) = self.leaf(row, root)?;
            let slot = out.get_mut(target).ok_or_else(|| bad("a target"))?;
            *slot = Some(match (*slot, combine) {
                (None, _) => weight,
                (Some(v), 0 | 1) => v + weight,
                (Some(v), 2) => v.min(weight),
                (Some(v), _) => v.max(weight),
            });
        }
        let scale = if combine == 0 {
            1.0 / self.roots.len() as f64
        } else {
            1.0
        };
        Ok(out.into_iter().map(|v| v.unwrap_or(0.0) * scale).collect())
    }
}

fn bad(what: &str) -> RunError {
    RunError::Input(format!(
        "the trees are malformed: no such thing as {what} is named"
    ))
}

fn read(call: &Call) -> Result<Forest, RunError> {
    let ints = |name: &str| -> Result<Vec<usize>, RunError> {
        let list = call.attr_ints(name).unwrap_or_default();
        list.iter().map(|&i| length(i)).collect()
    };
    let floats = |name: &str| -> Result<Vec<f64>, RunError> {
        Ok(call
            .attr_tensor(name)?
            .map_or(Vec::new(), |v| number::floats(&v)))
    };
    let (modes, splits) = (floats("nodes_modes")?, floats("nodes_splits")?);
    let features = ints("nodes_featureids")?;
    let (yes, yes_leaf) = (ints("nodes_truenodeids")?, ints("nodes_trueleafs")?);
    let (no, no_leaf) = (ints("nodes_falsenodeids")?, ints("nodes_falseleafs")?);
    let nan = ints("nodes_missing_value_tracks_true")?;
    let lens = [&features, &yes, &yes_leaf, &no, &no_leaf].map(Vec::len);
    if splits.len() != modes.len() || lens.iter().any(|&l| l != modes.len()) {
        return fail("the trees are malformed: attributes of nodes differ in length");
    }
    // Sets are separated by NaN, in the order of the nodes that use them.
    let members = floats("membership_values")?;
    let mut sets = members.split(|v| v.is_nan());
    let next = |at: usize, is_leaf: usize| match is_leaf {
        0 => Next::Node(at),
        _ => Next::Leaf(at),
    };
    let mut nodes = Vec::with_capacity(modes.len());
    for i in 0..modes.len() {
        let test = match modes[i] as usize {
            mode @ 0..=5 => Test::Compare(mode, splits[i]),
            6 => Test::Member(sets.next().ok_or_else(|| bad("a set"))?.to_vec()),
            _ => return Err(bad("a mode")),
        };
        nodes.push(Node {
            feature: features[i],
            test,
            nan_is_true: nan.get(i).is_some_and(|&v| v != 0),
            yes: next(yes[i], yes_leaf[i]),
            no: next(no[i], no_leaf[i]),
        });
    }
    let (targets, weights) = (ints("leaf_targetids")?, floats("leaf_weights")?);
    if targets.len() != weights.len() {
        return fail("the trees are malformed: attributes of leaves differ in length");
    }
    Ok(Forest {
        nodes,
        roots: ints("tree_roots")?,
        leaves: targets.into_iter().zip(weights).collect(),
    })
}

/// 0 none, 1 softmax, 2 logistic, 3 softmax that keeps zeros, 4 probit.
fn post_transform(kind: i64, row: &mut [f64]) {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match kind {
        1 => {
            row.iter_mut().for_each(|v| *v = libm::exp(*v - top));
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        2 => row.iter_mut().for_each(|v| *v = logistic(*v)),
        3 => {
            let zero = |v: f64| {
                if v.abs() > 1e-7 {
                    libm::exp(v - top)
                } else {
                    v * libm::exp(-top)
                }
            };
            row.iter_mut().for_each(|v| *v = zero(*v));
            let sum: f64 = row.iter().sum();
            let part = |v: f64| if sum == 0.0 { 0.5 } else { v / sum };
            row.iter_mut().for_each(|v| *v = part(*v));
        }
        4 => row.iter_mut().for_each(|v| *v = probit(*v)),
        _ => {}
    }
}

fn logistic(v: f64) -> f64 {
    let positive = 1.0 / (1.0 + libm::exp(-v.abs()));
    if v < 0.0 { 1.0 - positive } else { positive }
}

/// The inverse of the normal distribution function, by Winitzki's approximation (which ONNX prescribes).
fn probit(p: f64) -> f64 {
    let x = 2.0 * p - 1.0;
    let product = (1.0 - x) * (1.0 + x);
    if product == 0.0 {
        return 0.0;
    }
    let log = libm::log(product);
    let v = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    let root = (-v + (v * v - log / 0.147).sqrt()).sqrt();
    std::f64::consts::SQRT_2 * if x < 0.0 { -root } else { root }
}
