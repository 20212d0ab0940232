//! Products and convolutions take in what follows them: bias, residual, activation.

use super::algebra::input;
use super::reading::{float, int, terms};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, Attrs, ElemType, Tensor, ValueId};

/// A row: an activation after a product is part of it.
macro_rules! into_linear {
    ($name:literal, $op:literal, $read:expr, $samples:expr) => {
        Rule {
            name: $name,
            left: &[concat!("(", $op, " (fused_linear ?a ?w ?bias ?r ?at) ?act)")],
            right: Right::Build(|graph, m| function_into(graph, m, "fused_linear", ["a", "w", "bias", "r"], $read)),
            condition: None,
            class: Class::Exact,
            source: "computed while the tile is in cache",
            samples: $samples,
        }
    };
}

/// A row: an activation after a convolution is part of it.
macro_rules! into_conv {
    ($name:literal, $op:literal, $read:expr, $samples:expr) => {
        Rule {
            name: $name,
            left: &[concat!("(", $op, " (conv ?x ?w ?b ?at) ?act)"), concat!("(", $op, " (fused_conv ?x ?w ?b ?z ?at) ?act)")],
            right: Right::Build(|graph, m| {
                if int(graph.attrs(m.get("at")).ok_or("no attributes")?, "group", 1) != 1 && depthwise(graph, m) {
                    return Err("windows over single channels only clamp");
                }
                function_into(graph, m, "fused_conv", ["x", "w", "b", "z"], $read)
            }),
            condition: None,
            class: Class::Exact,
            source: "computed while the tile is in cache",
            samples: $samples,
        }
    };
}
/// The family's rules. Each makes one pass over a result of two.
pub static RULES: &[Rule] = &[
    Rule {
        name: "fuse-bias-into-matmul",
        left: &["(add (matmul ?a ?w attrs0) ?bias attrs0)"],
        right: Right::Build(bias_into_matmul),
        condition: None,
        class: Class::Exact,
        source: "the row is added while the tile is in registers",
        samples: &[|b| {
            let y = matmul(b)?;
            let bias = row(b);
            b.op("add", &[y, bias])
        }],
    },
    Rule {
        name: "fuse-bias-first-into-matmul",
        left: &["(add ?bias (matmul ?a ?w attrs0) attrs0)"],
        right: Right::Build(bias_into_matmul),
        condition: None,
        class: Class::Exact,
        source: "addition commutes exactly",
        samples: &[|b| {
            let y = matmul(b)?;
            let bias = row(b);
            b.op("add", &[bias, y])
        }],
    },
    Rule {
        name: "fuse-matmul-plain",
        left: &["(matmul ?a ?w attrs0)"],
        right: Right::Build(|graph, m| {
            matrix(graph, m.get("w"))?;
            Ok(graph.add_op("fused_linear", &[m.get("a"), m.get("w")], []))
        }),
        condition: None,
        class: Class::Exact,
        source: "brings the form that the other rules extend",
        samples: &[matmul],
    },
    Rule {
        name: "fuse-gemm-plain",
        left: &["(gemm ?a ?w ?bias ?at)"],
        right: Right::Build(gemm_to_linear),
        condition: None,
        class: Class::Exact,
        source: "a transposed constant is transposed at compile time",
        samples: &[|b| {
            let x = input(b, "x", &[3, 5]);
            let w = b.constant(&Tensor::from_f64(ElemType::F32, [4, 5], (0..20).map(|i| f64::from(i % 5) - 2.0).collect()));
            let bias = row(b);
            b.op_with("gemm", &[x, w, bias], [("transB", Attr::Int(1))])
        }],
    },
    Rule {
        name: "fuse-residual-into-linear",
        left: &["(add (fused_linear ?a ?w ?bias none ?at) ?r attrs0)"],
        right: Right::Build(|graph, m| residual_into(graph, m, "fused_linear", ["a", "w", "bias"])),
        condition: None,
        class: Class::Exact,
        source: "the residual is added while the tile is in registers",
        samples: &[|b| {
            let y = linear(b)?;
            let r = input(b, "r", &[3, 4]);
            b.op("add", &[y, r])
        }],
    },
    Rule {
        name: "fuse-residual-first-into-linear",
        left: &["(add ?r (fused_linear ?a ?w ?bias none ?at) attrs0)"],
        right: Right::Build(|graph, m| residual_into(graph, m, "fused_linear", ["a", "w", "bias"])),
        condition: None,
        class: Class::Exact,
        source: "addition commutes exactly",
        samples: &[|b| {
            let y = linear(b)?;
            let r = input(b, "r", &[3, 4]);
            b.op("add", &[r, y])
        }],
    },
    Rule {
        name: "fuse-relu-into-linear",
        left: &["(relu (fused_linear ?a ?w ?bias ?r ?at) attrs0)"],
        right: Right::Build(|graph, m| activation_into(graph, m, "fused_linear", ["a", "w", "bias", "r"], ("Relu", None))),
        condition: None,
        class: Class::Exact,
        source: "clamped while the tile is in registers",
        samples: &[|b| {
            let y = linear(b)?;
            b.op("relu", &[y])
        }],
    },
    Rule {
        name: "fuse-residual-into-conv",
        left: &["(add (conv ?x ?w ?b ?at) ?r attrs0)"],
        right: Right::Build(|graph, m| residual_into(graph, m, "fused_conv", ["x", "w", "b"])),
        condition: None,
        class: Class::Exact,
        source: "the residual is added while the tile is in registers",
        samples: &[|b| {
            let y = conv(b)?;
            let r = input(b, "r", &[1, 4, 4, 4]);
            b.op("add", &[y, r])
        }],
    },
    Rule {
        name: "fuse-residual-first-into-conv",
        left: &["(add ?r (conv ?x ?w ?b ?at) attrs0)"],
        right: Right::Build(|graph, m| residual_into(graph, m, "fused_conv", ["x", "w", "b"])),
        condition: None,
        class: Class::Exact,
        source: "addition commutes exactly",
        samples: &[|b| {
            let y = conv(b)?;
            let r = input(b, "r", &[1, 4, 4, 4]);
            b.op("add", &[r, y])
        }],
    },
    Rule {
        name: "fuse-relu-into-conv",
        left: &["(relu (conv ?x ?w ?b ?at) attrs0)"],
        right: Right::Build(|graph, m| activation_into(graph, m, "fused_conv", ["x", "w", "b", ""], ("Relu", None))),
        condition: None,
        class: Class::Exact,
        source: "clamped while the tile is in registers",
        samples: &[|b| {
            let y = conv(b)?;
            b.op("relu", &[y])
        }],
    },
    Rule {
        name: "fuse-relu-into-fused-conv",
        left: &["(relu (fused_conv ?x ?w ?b ?z ?at) attrs0)"],
        right: Right::Build(|graph, m| activation_into(graph, m, "fused_conv", ["x", "w", "b", "z"], ("Relu", None))),
        condition: None,
        class: Class::Exact,
        source: "clamped while the tile is in registers",
        samples: &[|b| {
            let y = conv(b)?;
            let (x, w) = (b.module.node(b.module.producer(y).expect("a node")).operands[0], b.module.node(b.module.producer(y).expect("a node")).operands[1]);
            let r = input(b, "r", &[1, 4, 4, 4]);
            let fused = b.node("fused_conv", vec![x, w, None, Some(r)], Attrs::new(), 1)?[0];
            b.op("relu", &[fused])
        }],
    },
    Rule {
        name: "fuse-clip-into-conv",
        left: &["(clip (conv ?x ?w ?b ?at) ?lo ?hi attrs0)"],
        right: Right::Build(|graph, m| {
            let clip = clip_bounds(graph, m)?;
            activation_into(graph, m, "fused_conv", ["x", "w", "b", ""], ("Clip", Some(clip)))
        }),
        condition: None,
        class: Class::Exact,
        source: "clamped while the tile is in registers",
        samples: &[|b| {
            let y = conv(b)?;
            let (lo, hi) = (b.scalar(ElemType::F32, 0.0), b.scalar(ElemType::F32, 1.5));
            b.op("clip", &[y, lo, hi])
        }],
    },
    into_linear!("fuse-gelu-into-linear", "gelu", gelu, &[|b| linear_then(b, "gelu", []), |b| linear_then(b, "gelu", [("approximate", Attr::Str("tanh".into()))])]),
    into_conv!("fuse-gelu-into-conv", "gelu", gelu, &[|b| conv_then(b, "gelu", [])]),
    into_linear!("fuse-swish-into-linear", "swish", |at| Ok(("Swish", vec![float(at, "alpha", 1.0)])), &[|b| linear_then(b, "swish", [])]),
    into_conv!("fuse-swish-into-conv", "swish", |at| Ok(("Swish", vec![float(at, "alpha", 1.0)])), &[|b| conv_then(b, "swish", [])]),
    into_linear!("fuse-sigmoid-into-linear", "sigmoid", |_| Ok(("Sigmoid", vec![])), &[|b| linear_then(b, "sigmoid", [])]),
    into_conv!("fuse-sigmoid-into-conv", "sigmoid", |_| Ok(("Sigmoid", vec![])), &[|b| conv_then(b, "sigmoid", [])]),
    into_linear!("fuse-tanh-into-linear", "tanh", |_| Ok(("Tanh", vec![])), &[|b| linear_then(b, "tanh", [])]),
    into_conv!("fuse-tanh-into-conv", "tanh", |_| Ok(("Tanh", vec![])), &[|b| conv_then(b, "tanh", [])]),
    into_linear!("fuse-leaky-relu-into-linear", "leaky_relu", |at| Ok(("LeakyRelu", vec![float(at, "alpha", 0.01)])), &[|b| linear_then(b, "leaky_relu", [("alpha", Attr::Float(0.2))])]),
    into_conv!("fuse-leaky-relu-into-conv", "leaky_relu", |at| Ok(("LeakyRelu", vec![float(at, "alpha", 0.01)])), &[|b| conv_then(b, "leaky_relu", [])]),
    into_linear!("fuse-hard-swish-into-linear", "hard_swish", |_| Ok(("HardSwish", vec![])), &[|b| linear_then(b, "hard_swish", [])]),
    into_conv!("fuse-hard-swish-into-conv", "hard_swish", |_| Ok(("HardSwish", vec![])), &[|b| conv_then(b, "hard_swish", [])]),
    into_linear!("fuse-hard-sigmoid-into-linear", "hard_sigmoid", hard_sigmoid, &[|b| linear_then(b, "hard_sigmoid", [])]),
    into_conv!("fuse-hard-sigmoid-into-conv", "hard_sigmoid", hard_sigmoid, &[|b| conv_then(b, "hard_sigmoid", [])]),
];

/// Reads an activation's attributes: its name in a fused op, and its parameters there.
type Reading = fn(&Attrs) -> Result<(&'static str, Vec<f32>), &'static str>;


fn gelu(at: &Attrs) -> Result<(&'static str, Vec<f32>), &'static str> {
    match at.get("approximate") {
        Some(Attr::Str(s)) if s == "tanh" => Ok(("GeluTanh", vec![])),
        _ => Ok(("Gelu", vec![])),
    }
}

fn hard_sigmoid(at: &Attrs) -> Result<(&'static str, Vec<f32>), &'static str> {
    Ok(("HardSigmoid", vec![float(at, "alpha", 0.2), float(at, "beta", 0.5)]))
}

/// One filter for each channel.
fn depthwise(graph: &Graph, m: &Bound) -> bool {
    let group = graph.attrs(m.get("at")).map_or(1, |a| int(a, "group", 1));
    graph.const_shape(m.get("w")).is_none_or(|w| w.first() == Some(&(group as usize)))
}

fn function_into(graph: &mut Graph, m: &Bound, op: &'static str, operands: [&str; 4], read: Reading) -> Result<Id, &'static str> {
    let (name, params) = read(graph.attrs(m.get("act")).ok_or("no attributes")?)?;
    let mut attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    no_activation(&attrs)?;
    let operands: Vec<Id> = operands.iter().filter_map(|n| m.find(n)).collect();
    if graph.ty(operands[0]).and_then(|t| t.elem()) != Some(ElemType::F32) {
        return Err("only f32 is fused");
    }
    if !graph[operands[1]].data.is_constant() && !compressed(graph, operands[1]) {
        return Err("the weights are not constant");
    }
    attrs.insert("activation".into(), Attr::Str(name.into()));
    if !params.is_empty() {
        attrs.insert("activation_params".into(), Attr::Floats(params));
    }
    Ok(graph.add_op_attrs(op, &operands, &attrs))
}

/// True for the transposition of a compressed constant, which products take as it is.
fn compressed(graph: &Graph, w: Id) -> bool {
    let constant = |x: Id| graph[x].data.constant.as_ref().is_some_and(|c| c.is_compressed());
    terms(graph, w, "transpose").any(|(operands, _)| operands.first().is_some_and(|&x| constant(x)))
}

fn linear_then<const N: usize>(b: &mut Builder, op: &str, attrs: [(&'static str, Attr); N]) -> Result<ValueId, OpError> {
    let y = linear(b)?;
    b.op_with(op, &[y], attrs)
}

fn conv_then<const N: usize>(b: &mut Builder, op: &str, attrs: [(&'static str, Attr); N]) -> Result<ValueId, OpError> {
    let y = conv(b)?;
    b.op_with(op, &[y], attrs)
}

fn rank(graph: &Graph, id: Id) -> Option<usize> {
    Some(graph.ty(id)?.shape()?.len())
}

/// Only products with one matrix for all rows have the fused form.
fn matrix(graph: &Graph, w: Id) -> Result<(), &'static str> {
    if rank(graph, w) == Some(2) { Ok(()) } else { Err("the right operand is not one matrix") }
}

fn bias_into_matmul(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let (a, w, bias) = (m.get("a"), m.get("w"), m.get("bias"));
    matrix(graph, w)?;
    if rank(graph, a).is_none_or(|r| r < 2) {
        return Err("the left operand's rank is not known to be two or more");
    }
    let (n, len) = (graph.const_shape(w).map(|s| s[1]), graph.const_shape(bias));
    if len.as_deref() != n.as_ref().map(std::slice::from_ref) {
        return Err("the addend is not one number per column");
    }
    Ok(graph.add_op("fused_linear", &[a, w, bias], []))
}

fn gemm_to_linear(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    let int = |name: &str| matches!(attrs.get(name), Some(Attr::Int(v)) if *v != 0);
    let one = |name: &str| !matches!(attrs.get(name), Some(Attr::Float(v)) if *v != 1.0);
    let bias = m.get("bias");
    let has_bias = graph.ty(bias).is_some();
    if int("transA") || !one("alpha") || has_bias && !one("beta") {
        return Err("the left operand is transposed or a factor is not one");
    }
    if !graph.ty(m.get("w")).and_then(|t| t.elem()).is_some_and(|e| e.is_float()) {
        return Err("integers are not fused");
    }
    let w = match int("transB") {
        true if graph[m.get("w")].data.is_constant() => graph.add_op("transpose", &[m.get("w")], []),
        true => return Err("the right operand is transposed and not constant"),
        false => m.get("w"),
    };
    let columns = graph.const_shape(w).map(|s| s[1]);
    if has_bias && graph.const_shape(bias).as_deref() != columns.as_ref().map(std::slice::from_ref) {
        return Err("the addend is not one number per column");
    }
    Ok(graph.add_op("fused_linear", &[m.get("a"), w, bias], []))
}

fn no_activation(attrs: &Attrs) -> Result<(), &'static str> {
    match attrs.get("activation") {
        None => Ok(()),
        Some(Attr::Str(s)) if s.is_empty() => Ok(()),
        _ => Err("there is an activation before it"),
    }
}

fn residual_into(graph: &mut Graph, m: &Bound, op: &str, operands: [&str; 3]) -> Result<Id, &'static str> {
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    no_activation(&attrs)?;
    let operands = operands.map(|name| m.get(name));
    let fused = graph.add_op_attrs(op, &[operands[0], operands[1], operands[2], m.get("r")], &attrs);
    // The fused form has the product's own shape: the residual must not broadcast it, nor be broadcast.
    let (result, residual) = (graph.ty(fused), graph.ty(m.get("r")));
    if result.is_none() || result != residual {
        return Err("the residual has another shape than the result");
    }
    Ok(fused)
}

fn activation_into(graph: &mut Graph, m: &Bound, op: &str, operands: [&str; 4], (name, params): (&str, Option<[f32; 2]>)) -> Result<Id, &'static str> {
    let mut attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    no_activation(&attrs)?;
    attrs.insert("activation".into(), Attr::Str(name.into()));
    if let Some(params) = params {
        attrs.insert("activation_params".into(), Attr::Floats(params.to_vec()));
    }
    let operands: Vec<Id> = operands.iter().filter(|n| !n.is_empty()).map(|n| m.get(n)).collect();
    if graph.ty(operands[0]).and_then(|t| t.elem()).is_none_or(|e| e != ElemType::F32) {
        return Err("only f32 is fused");
    }
    Ok(graph.add_op_attrs(op, &operands, &attrs))
}

fn clip_bounds(graph: &Graph, m: &Bound) -> Result<[f32; 2], &'static str> {
    let bound = |name: &str, absent: f32| match graph.ty(m.get(name)) {
        None => Some(absent),
        Some(_) => graph.scalar(m.get(name)).map(|v| v as f32),
    };
    match (bound("lo", f32::MIN), bound("hi", f32::MAX)) {
        (Some(lo), Some(hi)) => Ok([lo, hi]),
        _ => Err("the bounds are not constant"),
    }
}

fn matmul(b: &mut Builder) -> Result<ValueId, OpError> {
    let a = input(b, "a", &[3, 5]);
    let w = b.constant(&Tensor::from_f64(ElemType::F32, [5, 4], (0..20).map(|i| f64::from(i % 7) * 0.5 - 1.0).collect()));
    b.op("matmul", &[a, w])
}

fn row(b: &mut Builder) -> ValueId {
    b.constant(&Tensor::from_f64(ElemType::F32, [4], vec![0.5, -1.0, 0.25, 2.0]))
}

fn linear(b: &mut Builder) -> Result<ValueId, OpError> {
    let a = input(b, "a", &[3, 5]);
    let w = b.constant(&Tensor::from_f64(ElemType::F32, [5, 4], (0..20).map(|i| f64::from(i % 7) * 0.5 - 1.0).collect()));
    let bias = row(b);
    b.op("fused_linear", &[a, w, bias])
}

fn conv(b: &mut Builder) -> Result<ValueId, OpError> {
    let x = input(b, "x", &[1, 3, 5, 5]);
    let w = b.constant(&Tensor::from_f64(ElemType::F32, [4, 3, 2, 2], (0..48).map(|i| f64::from(i % 7) * 0.25 - 0.6).collect()));
    Ok(b.node("conv", vec![Some(x), Some(w), None], Attrs::new(), 1)?[0])
}
