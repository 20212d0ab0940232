//! Layer and root-mean-square normalization from the means, roots and quotients that exporters write.
//!
//! ```text
//! x / sqrt(mean(x * x) + e)                  => rms_normalization(x, 1)
//! rms_normalization(x - mean(x), 1)          => layer_normalization(x, 1)
//! layer_normalization(x, 1) * gamma + beta   => layer_normalization(x, gamma, beta)
//! ```
//! What other rules normalize comes first: a square is a product, constants are last, one over a root is its reciprocal.

use super::algebra::input;
use super::reading::{fits_into, int, is_number, number, rank, same_float, trailing_axes};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, Attrs, ElemType, Tensor, ValueId};

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "norm-root-mean-square",
        left: &[
            "(div ?x (sqrt (add (reduce_mean (mul ?x ?x attrs0) ?axes ?mean) ?eps attrs0) attrs0) attrs0)",
            "(mul ?x (reciprocal (sqrt (add (reduce_mean (mul ?x ?x attrs0) ?axes ?mean) ?eps attrs0) attrs0) attrs0) attrs0)",
            "(mul (reciprocal (sqrt (add (reduce_mean (mul ?x ?x attrs0) ?axes ?mean) ?eps attrs0) attrs0) attrs0) ?x attrs0)",
        ],
        right: Right::Build(root_mean_square),
        condition: None,
        class: Class::Reassociates,
        source: "Root Mean Square Layer Normalization (arXiv 1910.07467); one pass over a row that stays in cache",
        samples: &[
            |b| {
                let x = input(b, "x", &[2, 3, 5]);
                let root = root_of_mean_square(b, x)?;
                b.op("div", &[x, root])
            },
            |b| {
                let x = input(b, "x", &[2, 3, 5]);
                let root = root_of_mean_square(b, x)?;
                let inverse = b.op("reciprocal", &[root])?;
                b.op("mul", &[x, inverse])
            },
        ],
    },
    Rule {
        name: "norm-centred-is-layer",
        left: &["(rms_normalization (sub ?x (reduce_mean ?x ?axes ?mean) attrs0) ?scale ?at)"],
        right: Right::Build(|graph, m| {
            let (x, attrs) = (m.get("x"), graph.attrs(m.get("at")).cloned().ok_or("no attributes")?);
            let mean = graph.attrs(m.get("mean")).cloned().ok_or("no attributes")?;
            let rank = rank(graph, x).ok_or("the rank is not known")? as i64;
            let own = int(&attrs, "axis", -1);
            let own = if own < 0 { own + rank } else { own };
            if trailing_axes(graph, x, m.get("axes"), &mean) != usize::try_from(own).ok() {
                return Err("the mean is over other axes than the variance");
            }
            Ok(graph.add_op_attrs("layer_normalization", &[x, m.get("scale")], &attrs))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "Layer Normalization (arXiv 1607.06450): the root mean square of what is left without the mean is the deviation",
        samples: &[|b| {
            let x = input(b, "x", &[2, 3, 5]);
            let mean = b.reduce("reduce_mean", x, &[-1], true)?;
            let d = b.op("sub", &[x, mean])?;
            let one = b.scalar(ElemType::F32, 1.0);
            b.op("rms_normalization", &[d, one])
        }],
    },
    Rule {
        name: "norm-scale-into-rms",
        left: &["(mul (rms_normalization ?x ?one ?at) ?g attrs0)", "(mul ?g (rms_normalization ?x ?one ?at) attrs0)"],
        right: Right::Build(|graph, m| scale_into(graph, m, "rms_normalization")),
        condition: None,
        class: Class::Reassociates,
        source: "the weights of the normalization",
        samples: &[|b| {
            let y = normalized(b, "rms_normalization", false)?;
            let g = row(b);
            b.op("mul", &[y, g])
        }, |b| {
            let y = normalized(b, "rms_normalization", false)?;
            let g = input(b, "g", &[5]);
            b.op("mul", &[g, y])
        }],
    },
    Rule {
        name: "norm-scale-into-layer",
        left: &["(mul (layer_normalization ?x ?one none ?at) ?g attrs0)", "(mul ?g (layer_normalization ?x ?one none ?at) attrs0)"],
        right: Right::Build(|graph, m| scale_into(graph, m, "layer_normalization")),
        condition: None,
        class: Class::Reassociates,
        source: "the weights of the normalization",
        samples: &[|b| {
            let y = normalized(b, "layer_normalization", false)?;
            let g = row(b);
            b.op("mul", &[g, y])
        }],
    },
    Rule {
        name: "norm-shift-into-layer",
        left: &["(add (layer_normalization ?x ?g none ?at) ?b attrs0)", "(add ?b (layer_normalization ?x ?g none ?at) attrs0)"],
        right: Right::Build(|graph, m| {
            let (x, b) = (m.get("x"), m.get("b"));
            row_of(graph, b, x, m)?;
            if !same_float(graph, b, x) {
                return Err("the addend has another element type");
            }
            let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
            Ok(graph.add_op_attrs("layer_normalization", &[x, m.get("g"), b], &attrs))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "the bias of the normalization",
        samples: &[|b| {
            let y = normalized(b, "layer_normalization", true)?;
            let g = row(b);
            b.op("add", &[y, g])
        }],
    },
];

fn root_mean_square(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let (x, eps) = (m.get("x"), m.get("eps"));
    let epsilon = number(graph, eps).ok_or("the addend under the root is not a number")?;
    let elem = graph.ty(x).and_then(|t| t.elem()).filter(|e| matches!(e, ElemType::F32 | ElemType::F64)).ok_or("only f32 and f64 compute their statistics in their own type")?;
    let mean = graph.attrs(m.get("mean")).cloned().ok_or("no attributes")?;
    let axis = trailing_axes(graph, x, m.get("axes"), &mean).ok_or("the mean is not over the trailing axes")?;
    if epsilon < 0.0 || (f64::from(epsilon as f32) - epsilon).abs() > 1e-6 * epsilon {
        return Err("the addend under the root is no positive number of single precision");
    }
    let rank = rank(graph, x).ok_or("the rank is not known")?;
    let one = graph.add_constant(&Tensor::from_f64(elem, [], vec![1.0]));
    let attrs: Attrs = [
        ("axis".into(), Attr::Int(axis as i64 - rank as i64)),
        ("epsilon".into(), Attr::Float(epsilon as f32)),
        ("stash_type".into(), Attr::Elem(elem)),
    ]
    .into();
    Ok(graph.add_op_attrs("rms_normalization", &[x, one], &attrs))
}

/// The operand must be along the normalized axes: it is then the same for all rows.
fn row_of(graph: &Graph, row: Id, x: Id, m: &Bound) -> Result<(), &'static str> {
    let attrs = graph.attrs(m.get("at")).ok_or("no attributes")?;
    let (Some(own), Some(all)) = (rank(graph, row), rank(graph, x)) else { return Err("a rank is not known") };
    let axis = int(attrs, "axis", -1);
    let axis = if axis < 0 { axis + all as i64 } else { axis };
    let trailing = all as i64 - axis;
    let lead = graph.const_shape(row).is_some_and(|s| s.iter().take(own.saturating_sub(trailing as usize)).all(|&d| d == 1));
    if fits_into(graph, row, x) && (own as i64 <= trailing || lead) { Ok(()) } else { Err("it is not along the normalized axes") }
}

fn scale_into(graph: &mut Graph, m: &Bound, op: &'static str) -> Result<Id, &'static str> {
    let (x, g) = (m.get("x"), m.get("g"));
    if !is_number(graph, m.get("one"), 1.0) {
        return Err("the normalization has weights already");
    }
    row_of(graph, g, x, m)?;
    if !same_float(graph, g, x) {
        return Err("the factor has another element type");
    }
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    Ok(graph.add_op_attrs(op, &[x, g], &attrs))
}

fn row(b: &mut Builder) -> ValueId {
    b.constant(&Tensor::from_f64(ElemType::F32, [5], vec![0.5, -1.0, 0.25, 2.0, 1.5]))
}

fn root_of_mean_square(b: &mut Builder, x: ValueId) -> Result<ValueId, OpError> {
    let square = b.op("mul", &[x, x])?;
    let mean = b.reduce("reduce_mean", square, &[-1], true)?;
    let eps = b.scalar(ElemType::F32, 1e-5);
    let sum = b.op("add", &[mean, eps])?;
    b.op("sqrt", &[sum])
}

fn normalized(b: &mut Builder, op: &str, weights: bool) -> Result<ValueId, OpError> {
    let x = input(b, "x", &[2, 3, 5]);
    let scale = if weights { row(b) } else { b.scalar(ElemType::F32, 1.0) };
    b.op(op, &[x, scale])
}
