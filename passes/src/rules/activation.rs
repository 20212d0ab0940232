//! Activations that exporters write out: GELU in both forms, SiLU, the sigmoid.

use super::algebra::input;
use super::reading::{OTHER, Cubic, is_number, is_polynomial, number, polynomial, same_shape, scaled};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, ElemType, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

/// The family's rules. Each makes one node of a chain whose operand is read more than once, so that the chain is one pass
/// and can be the epilogue of a product.
pub static RULES: &[Rule] = &[
    Rule {
        name: "activation-gelu",
        left: &[
            "(mul ?p (add (erf ?u attrs0) ?one attrs0) attrs0)",
            "(mul (add (erf ?u attrs0) ?one attrs0) ?p attrs0)",
            "(mul (mul ?p (add (erf ?u attrs0) ?one attrs0) attrs0) ?half attrs0)",
            "(mul (mul (add (erf ?u attrs0) ?one attrs0) ?p attrs0) ?half attrs0)",
            "(mul ?p (mul (add (erf ?u attrs0) ?one attrs0) ?half attrs0) attrs0)",
            "(mul (mul (add (erf ?u attrs0) ?one attrs0) ?half attrs0) ?p attrs0)",
            "(div (mul ?p (add (erf ?u attrs0) ?one attrs0) attrs0) ?two attrs0)",
        ],
        right: Right::Build(|graph, m| gelu(graph, m, [0.0, FRAC_1_SQRT_2, 0.0, 0.0], "none")),
        condition: None,
        class: Class::Reassociates,
        source: "Gaussian Error Linear Units (arXiv 1606.08415): 0.5 x (1 + erf(x / sqrt 2))",
        samples: &[
            |b| {
                let (x, e) = bent(b, "erf", erf_of)?;
                let y = b.op("mul", &[x, e])?;
                let half = b.scalar(ElemType::F32, 0.5);
                b.op("mul", &[y, half])
            },
            |b| {
                let (x, e) = bent(b, "erf", erf_of)?;
                let half = b.scalar(ElemType::F32, 0.5);
                let h = b.op("mul", &[half, x])?;
                b.op("mul", &[h, e])
            },
            |b| {
                let (x, e) = bent(b, "erf", |b, x| {
                    let c = b.scalar(ElemType::F32, FRAC_1_SQRT_2);
                    b.op("mul", &[x, c])
                })?;
                let half = b.scalar(ElemType::F32, 0.5);
                let h = b.op("mul", &[e, half])?;
                b.op("mul", &[h, x])
            },
        ],
    },
    Rule {
        name: "activation-gelu-tanh",
        left: &[
            "(mul ?p (add (tanh ?u attrs0) ?one attrs0) attrs0)",
            "(mul (add (tanh ?u attrs0) ?one attrs0) ?p attrs0)",
            "(mul (mul ?p (add (tanh ?u attrs0) ?one attrs0) attrs0) ?half attrs0)",
            "(mul (mul (add (tanh ?u attrs0) ?one attrs0) ?p attrs0) ?half attrs0)",
            "(mul ?p (mul (add (tanh ?u attrs0) ?one attrs0) ?half attrs0) attrs0)",
            "(mul (mul (add (tanh ?u attrs0) ?one attrs0) ?half attrs0) ?p attrs0)",
        ],
        right: Right::Build(|graph, m| {
            let slope = (2.0 / PI).sqrt();
            gelu(graph, m, [0.0, slope, 0.0, slope * 0.044_715], "tanh")
        }),
        condition: None,
        class: Class::Reassociates,
        source: "Gaussian Error Linear Units (arXiv 1606.08415): the approximation by tanh",
        samples: &[
            |b| {
                let (x, t) = bent(b, "tanh", |b, x| {
                    let (three, c, s) = (b.scalar(ElemType::F32, 3.0), b.scalar(ElemType::F32, 0.044_715), b.scalar(ElemType::F32, (2.0 / PI).sqrt()));
                    let cube = b.op("pow", &[x, three])?;
                    let cube = b.op("mul", &[c, cube])?;
                    let sum = b.op("add", &[x, cube])?;
                    b.op("mul", &[s, sum])
                })?;
                let half = b.scalar(ElemType::F32, 0.5);
                let h = b.op("mul", &[half, x])?;
                b.op("mul", &[h, t])
            },
            |b| {
                let (x, t) = bent(b, "tanh", |b, x| {
                    let (one, c, s) = (b.scalar(ElemType::F32, 1.0), b.scalar(ElemType::F32, 0.044_715), b.scalar(ElemType::F32, (2.0 / PI).sqrt()));
                    let square = b.op("mul", &[x, x])?;
                    let square = b.op("mul", &[square, c])?;
                    let sum = b.op("add", &[square, one])?;
                    let scaled = b.op("mul", &[x, s])?;
                    b.op("mul", &[scaled, sum])
                })?;
                let half = b.scalar(ElemType::F32, 0.5);
                let y = b.op("mul", &[t, x])?;
                b.op("mul", &[y, half])
            },
        ],
    },
    Rule {
        name: "activation-swish",
        left: &["(mul ?x (sigmoid ?u attrs0) attrs0)", "(mul (sigmoid ?u attrs0) ?x attrs0)", "(div ?x (add (exp (neg ?u attrs0) attrs0) ?one attrs0) attrs0)"],
        right: Right::Build(|graph, m| {
            let (x, u) = (m.get("x"), m.get("u"));
            if m.find("one").is_some_and(|one| !is_number(graph, one, 1.0)) {
                return Err("the addend is not one");
            }
            let (base, alpha) = scaled(graph, u);
            let (alpha, same) = if graph.find(u) == graph.find(x) { (1.0, true) } else { (alpha, base == graph.find(x)) };
            if !same || !same_shape(graph, x, u) {
                return Err("the sigmoid is not of the other factor: a gate");
            }
            Ok(graph.add_op("swish", &[x], [("alpha", Attr::Float(alpha as f32))]))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "Swish (arXiv 1710.05941), SiLU where alpha is one: x sigmoid(alpha x)",
        samples: &[
            |b| {
                let x = input(b, "x", &[2, 3]);
                let s = b.op("sigmoid", &[x])?;
                b.op("mul", &[x, s])
            },
            |b| {
                let x = input(b, "x", &[2, 3]);
                let c = b.scalar(ElemType::F32, 1.702);
                let u = b.op("mul", &[x, c])?;
                let s = b.op("sigmoid", &[u])?;
                b.op("mul", &[s, x])
            },
            |b| {
                let (x, one) = (input(b, "x", &[2, 3]), b.scalar(ElemType::F32, 1.0));
                let y = b.op("neg", &[x])?;
                let y = b.op("exp", &[y])?;
                let y = b.op("add", &[y, one])?;
                b.op("div", &[x, y])
            },
        ],
    },
    Rule {
        name: "activation-sigmoid",
        left: &[
            "(div ?one (add (exp (neg ?x attrs0) attrs0) ?one attrs0) attrs0)",
            "(reciprocal (add (exp (neg ?x attrs0) attrs0) ?one attrs0) attrs0)",
        ],
        right: Right::Pattern("(sigmoid ?x attrs0)"),
        condition: Some(|graph, m| if is_number(graph, m.get("one"), 1.0) { Ok(()) } else { Err("the addend is not one") }),
        class: Class::Reassociates,
        source: "the definition",
        samples: &[|b| {
            let x = input(b, "x", &[2, 3]);
            let one = b.scalar(ElemType::F32, 1.0);
            let y = b.op("neg", &[x])?;
            let y = b.op("exp", &[y])?;
            let y = b.op("add", &[y, one])?;
            b.op("div", &[one, y])
        }],
    },
    Rule {
        name: "activation-hard-swish",
        left: &["(mul ?x (hard_sigmoid ?x ?at) attrs0)", "(mul (hard_sigmoid ?x ?at) ?x attrs0)"],
        right: Right::Pattern("(hard_swish ?x attrs0)"),
        condition: Some(|graph, m| {
            let attrs = graph.attrs(m.get("at")).ok_or("no attributes")?;
            let (alpha, beta) = (super::reading::float(attrs, "alpha", 0.2), super::reading::float(attrs, "beta", 0.5));
            if (alpha - 1.0 / 6.0).abs() < 1e-6 && beta == 0.5 { Ok(()) } else { Err("the ramp is not that of the hard swish") }
        }),
        class: Class::Reassociates,
        source: "MobileNetV3 (arXiv 1905.02244)",
        samples: &[|b| {
            let x = input(b, "x", &[2, 3]);
            let y = b.op_with("hard_sigmoid", &[x], [("alpha", Attr::Float(1.0 / 6.0))])?;
            b.op("mul", &[x, y])
        }],
    },
];

/// `p (f(u) + 1) half` is a gelu of `x` if `p half` is `x / 2` and `u` is this polynomial in `x`.
fn gelu(graph: &mut Graph, m: &Bound, inner: Cubic, form: &str) -> Result<Id, &'static str> {
    let (p, u) = (m.get("p"), m.get("u"));
    if !is_number(graph, m.get("one"), 1.0) {
        return Err("the addend is not one");
    }
    let factor = |name: &str| m.find(name).map(|id| number(graph, id).ok_or("a factor is not a number"));
    let outer = match (factor("half"), factor("two")) {
        (Some(half), _) => half?,
        (None, Some(two)) => two?.recip(),
        (None, None) => 1.0,
    };
    // `p` may have a part of the half, and `x` may itself be something that is scaled.
    let (base, own) = scaled(graph, p);
    let candidates = [(p, 1.0), (base, own)];
    let found = candidates.into_iter().find(|&(x, own)| {
        let factors = (own * outer - 0.5).abs() <= 1e-6;
        factors && polynomial(graph, u, x).is_some_and(|found| is_polynomial(graph, x, found, inner))
    });
    let Some((x, _)) = found else {
        // The product inside another that has the half is met on its own.
        return Err(if m.find("half").is_none() && (own - 0.5).abs() > 1e-6 { OTHER } else { "the factors are not those of a gelu" });
    };
    if !same_shape(graph, x, u) {
        return Err("constants broadcast it");
    }
    Ok(graph.add_op("gelu", &[x], [("approximate", Attr::Str(form.into()))]))
}

/// `x`, and `1 + f(inner(x))`.
fn bent(b: &mut Builder, f: &str, inner: fn(&mut Builder, ValueId) -> Result<ValueId, OpError>) -> Result<(ValueId, ValueId), OpError> {
    let x = input(b, "x", &[2, 3]);
    let u = inner(b, x)?;
    let y = b.op(f, &[u])?;
    let one = b.scalar(ElemType::F32, 1.0);
    Ok((x, b.op("add", &[y, one])?))
}

fn erf_of(b: &mut Builder, x: ValueId) -> Result<ValueId, OpError> {
    let c = b.scalar(ElemType::F32, SQRT_2);
    b.op("div", &[x, c])
}
