//! Products with weights that are products, sums or scalings themselves: what encoding terms open to.
//!
//! A low-rank weight is multiplied from the left, one factor after the other; a sum of terms is a sum of products; a
//! scale moves to what is smaller, the activations before or behind the product.
//! The identities are those of linear algebra; what each is worth is the cost model's to say.

use super::algebra::input;
use super::reading::{OTHER, int, permutation, same_shape, shape};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::Attr;

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "linear-factor-after-factor",
        left: &["(matmul ?x (matmul ?a ?b attrs0) attrs0)"],
        right: Right::Pattern("(matmul (matmul ?x ?a attrs0) ?b attrs0)"),
        condition: Some(|graph, m| all_matrices(graph, &[m.get("a"), m.get("b")])),
        class: Class::Reassociates,
        source: "SVD-LLM (arXiv 2403.07378), section 3: a low-rank weight is never multiplied out",
        samples: &[|b| {
            let (x, a, c) = (input(b, "x", &[2, 3, 4]), input(b, "a", &[4, 2]), input(b, "b", &[2, 5]));
            let w = b.op("matmul", &[a, c])?;
            b.op("matmul", &[x, w])
        }],
    },
    Rule {
        name: "linear-transpose-of-product",
        left: &["(transpose (matmul ?a ?b attrs0) ?p)"],
        right: Right::Pattern("(matmul (transpose ?b ?p) (transpose ?a ?p) attrs0)"),
        condition: Some(|graph, m| {
            all_matrices(graph, &[m.get("a"), m.get("b")])?;
            turned(graph, m)
        }),
        class: Class::Exact,
        source: "the factors are smaller than their product, and another rule may multiply them one by one",
        samples: &[|b| {
            let (a, c) = (input(b, "a", &[4, 2]), input(b, "b", &[2, 5]));
            let w = b.op("matmul", &[a, c])?;
            b.transpose(w, &[1, 0])
        }],
    },
    Rule {
        name: "linear-transpose-of-sum",
        left: &["(transpose (add ?a ?b attrs0) ?p)"],
        right: Right::Pattern("(add (transpose ?a ?p) (transpose ?b ?p) attrs0)"),
        condition: Some(two_matrices_turned),
        class: Class::Exact,
        source: "each addend meets the product that reads it in its own form",
        samples: &[|b| {
            let (x, y) = (input(b, "x", &[2, 3]), input(b, "y", &[2, 3]));
            let s = b.op("add", &[x, y])?;
            b.transpose(s, &[1, 0])
        }],
    },
    Rule {
        name: "linear-transpose-of-scaling",
        left: &["(transpose (mul ?a ?b attrs0) ?p)"],
        right: Right::Pattern("(mul (transpose ?a ?p) (transpose ?b ?p) attrs0)"),
        condition: Some(two_matrices_turned),
        class: Class::Exact,
        source: "the scales meet the product that reads them in their own form",
        samples: &[|b| {
            let (x, v) = (input(b, "x", &[2, 3]), input(b, "v", &[2, 1]));
            let y = b.op("mul", &[x, v])?;
            b.transpose(y, &[1, 0])
        }],
    },
    Rule {
        name: "linear-sum-of-products",
        left: &["(matmul ?x (add ?a ?b attrs0) attrs0)"],
        right: Right::Pattern("(add (matmul ?x ?a attrs0) (matmul ?x ?b attrs0) attrs0)"),
        condition: Some(|graph, m| {
            all_matrices(graph, &[m.get("a"), m.get("b")])?;
            if same_shape(graph, m.get("a"), m.get("b")) { Ok(()) } else { Err("one addend is spread over the other") }
        }),
        class: Class::Reassociates,
        source: "EoRA (arXiv 2410.21271), section 3: a low-rank correction is cheap next to the weight it corrects",
        samples: &[|b| {
            let (x, p, q) = (input(b, "x", &[3, 4]), input(b, "p", &[4, 5]), input(b, "q", &[4, 5]));
            let w = b.op("add", &[p, q])?;
            b.op("matmul", &[x, w])
        }],
    },
    Rule {
        name: "linear-scale-behind-product",
        left: &["(matmul ?x (mul ?w ?v attrs0) attrs0)"],
        right: Right::Pattern("(mul (matmul ?x ?w attrs0) ?v attrs0)"),
        condition: Some(|graph, m| scales(graph, m, 1)),
        class: Class::Reassociates,
        source: "a scale of each output: one multiplication for each result instead of one for each weight",
        samples: &[|b| {
            let (x, w, v) = (input(b, "x", &[2, 3, 4]), input(b, "w", &[4, 5]), input(b, "v", &[1, 5]));
            let w = b.op("mul", &[w, v])?;
            b.op("matmul", &[x, w])
        }],
    },
    Rule {
        name: "linear-scale-before-product",
        left: &["(matmul ?x (mul ?w ?v attrs0) attrs0)"],
        right: Right::Build(|graph, m| {
            scales(graph, m, 0)?;
            let one = graph.add_constant(&lapidary_ir::Tensor::ints(&[1]));
            let v = graph.add_op("squeeze", &[m.get("v"), one], []);
            let x = graph.add_op("mul", &[m.get("x"), v], []);
            Ok(graph.add_op("matmul", &[x, m.get("w")], []))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "SmoothQuant (arXiv 2211.10438), section 4: a scale of each input is the activations'",
        samples: &[|b| {
            let (x, w, v) = (input(b, "x", &[2, 3, 4]), input(b, "w", &[4, 5]), input(b, "v", &[4, 1]));
            let w = b.op("mul", &[w, v])?;
            b.op("matmul", &[x, w])
        }],
    },
    Rule {
        name: "linear-rows-of-product",
        left: &["(gather (matmul ?a ?b attrs0) ?i ?g)"],
        right: Right::Pattern("(matmul (gather ?a ?i ?g) ?b attrs0)"),
        condition: Some(|graph, m| {
            all_matrices(graph, &[m.get("a"), m.get("b")])?;
            let attrs = graph.attrs(m.get("g")).ok_or(OTHER)?;
            // A list of rows at least: a single row would be a vector, whose product has another shape.
            let rank = shape(graph, m.get("i")).map_or(0, |s| s.len());
            if int(attrs, "axis", 0) == 0 && rank > 0 { Ok(()) } else { Err("the gathered slices are no rows") }
        }),
        class: Class::Exact,
        source: "a factorized embedding (ALBERT, arXiv 1909.11942, section 3): only rows that are looked up are multiplied",
        samples: &[|b| {
            let (a, c) = (input(b, "a", &[6, 2]), input(b, "b", &[2, 5]));
            let (w, i) = (b.op("matmul", &[a, c])?, b.ints(&[4, 0, 4]));
            b.op_with("gather", &[w, i], [("axis", Attr::Int(0))])
        }],
    },
];

fn all_matrices(graph: &Graph, of: &[Id]) -> Result<(), &'static str> {
    let matrix = |&id: &Id| graph.const_shape(id).is_some_and(|s| s.len() == 2);
    if of.iter().all(matrix) { Ok(()) } else { Err("the factors are not matrices of known shape") }
}

fn turned(graph: &Graph, m: &Bound) -> Result<(), &'static str> {
    let attrs = graph.attrs(m.get("p")).ok_or(OTHER)?;
    let perm = permutation(attrs, 2).ok_or(OTHER)?;
    if perm == [1, 0] { Ok(()) } else { Err("nothing is turned") }
}

fn two_matrices_turned(graph: &Graph, m: &Bound) -> Result<(), &'static str> {
    all_matrices(graph, &[m.get("a"), m.get("b")])?;
    turned(graph, m)
}

/// `v` is a factor for each row (0) or column (1) of the matrix `w`.
fn scales(graph: &Graph, m: &Bound, side: usize) -> Result<(), &'static str> {
    let (w, v) = (m.get("w"), m.get("v"));
    all_matrices(graph, &[w, v])?;
    let (w, v) = (graph.const_shape(w).ok_or(OTHER)?, graph.const_shape(v).ok_or(OTHER)?);
    let of = |axis: usize| if axis == side { w[axis] } else { 1 };
    if [of(0), of(1)] == v[..] { Ok(()) } else { Err(OTHER) }
}

#[cfg(test)]
mod tests {
    use crate::fold::{Limits, fold_constants};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::encodings::{Encoding, dense, matmul, open_constants, scale, sum};
    use lapidary_ir::target::Target;
    use lapidary_ir::{Constant, ElemType, Module, Tensor, Type};
    use std::cell::Cell;

    fn random(shape: [usize; 2]) -> Encoding {
        let n = shape[0] * shape[1];
        let values = (0..n).map(|i| ((i * 7919 + 13) % 1000) as f64 / 500.0 - 1.0);
        dense::from_tensor(&Tensor::from_f64(ElemType::F32, shape, values.collect()))
    }

    /// A scaled sum of a low-rank and a plain weight, turned: nothing of the weight's size is computed.
    #[test]
    fn a_low_rank_weight_is_never_multiplied_out() {
        let (o, i, r) = (512, 384, 8);
        let low = || matmul::matmul(ElemType::F32, vec![random([o, r]), random([r, i])]);
        let both = sum::sum(ElemType::F32, vec![low(), low()]);
        let term = scale::scale(ElemType::F32, random([o, 1]), both);
        let (mut m, fresh) = (Module::new("t"), Cell::new(0));
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [4i64, i as i64]));
        let w = m.add_constant("w", Constant::new(term));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let w = b.transpose(w, &[1, 0]).expect("a matrix");
        let y = b.op("matmul", &[x, w]).expect("fits");
        m.region_mut(Module::TOP).outputs.push(y);
        open_constants(&mut m, &|_, e| e.ctor.algebraic).expect("valid");
        let rules: Vec<_> = crate::rules::all().collect();
        crate::egraph::saturate(&mut m, &Target::x86_64(), &crate::egraph::Options::default(), &rules);
        fold_constants(&mut m, Limits::default());
        for &n in &m.top().nodes {
            let ty = &m.value(m.node(n).results[0]).ty;
            let shape = ty.as_tensor().and_then(|t| t.const_shape()).expect("known");
            assert!(shape.iter().product::<usize>() <= 4 * o.max(i), "{}", lapidary_ir::text::print_elided(&m));
        }
    }
}
