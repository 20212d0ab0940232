//! Folding of scales into constant weights. What a rule writes in terms of constants is computed at compile time.

use super::algebra::input;
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, Attrs, ElemType, Tensor, ValueId};

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "fold-batch-norm-into-conv",
        left: &["(batch_normalization (conv ?x ?w ?b ?conv) ?scale ?shift ?mean ?var ?norm)"],
        right: Right::Build(fold_batch_norm),
        condition: None,
        class: Class::Reassociates,
        source: "an affine map after a linear one; only the bias is left to add",
        samples: &[|b| normalized_conv(b, true), |b| normalized_conv(b, false)],
    },
    Rule {
        name: "fold-scale-into-conv",
        left: &["(mul (conv ?x ?w ?b ?conv) ?s attrs0)"],
        right: Right::Build(fold_scale),
        condition: None,
        class: Class::Reassociates,
        source: "a channel scale after a linear map; one multiplication less for each output",
        samples: &[|b| {
            let y = conv(b, true)?;
            let s = b.constant(&Tensor::from_f64(ElemType::F32, [4, 1, 1], vec![0.5, -1.5, 2.0, 1.0]));
            b.op("mul", &[y, s])
        }],
    },
    Rule {
        name: "fold-shift-into-conv",
        left: &["(add (conv ?x ?w ?b ?conv) ?s attrs0)"],
        right: Right::Build(fold_shift),
        condition: None,
        class: Class::Reassociates,
        source: "a channel shift after a linear map is its bias; one addition less for each output",
        samples: &[|b| shifted_conv(b, true), |b| shifted_conv(b, false)],
    },
    Rule {
        name: "fold-scale-into-linear",
        left: &["(mul (fused_linear ?a ?w ?b none ?at) ?s attrs0)"],
        right: Right::Build(|graph, m| scale_columns(graph, m, "mul")),
        condition: None,
        class: Class::Reassociates,
        source: "a factor of each column after a linear map; one multiplication less for each output",
        samples: &[
            |b| {
                let y = linear(b)?;
                let s = b.constant(&Tensor::from_f64(ElemType::F32, [4], vec![0.5, -1.5, 2.0, 1.0]));
                b.op("mul", &[y, s])
            },
            |b| {
                let y = linear(b)?;
                let s = b.scalar(ElemType::F32, 0.125);
                b.op("mul", &[y, s])
            },
        ],
    },
    Rule {
        name: "fold-divisor-into-linear",
        left: &["(div (fused_linear ?a ?w ?b none ?at) ?s attrs0)"],
        right: Right::Build(|graph, m| scale_columns(graph, m, "div")),
        condition: None,
        class: Class::Reassociates,
        source: "a divisor of each column after a linear map; one division less for each output",
        samples: &[|b| {
            let y = linear(b)?;
            let s = b.scalar(ElemType::F32, 8.0);
            b.op("div", &[y, s])
        }],
    },
    Rule {
        name: "fold-scale-into-rows",
        left: &["(fused_linear (mul ?a ?s attrs0) ?w ?b ?r ?at)"],
        right: Right::Build(|graph, m| {
            if !constant(graph, m, &["w", "s"]) || constant(graph, m, &["a"]) {
                return Err("weights and scale must be constant");
            }
            let normal = ["rms_normalization", "layer_normalization"].iter().any(|op| super::reading::terms(graph, m.get("a"), op).next().is_some());
            if normal {
                return Err("the normalization before it takes the factor");
            }
            let k = graph.const_shape(m.get("w")).and_then(|s| s.first().copied()).ok_or("the weights' shape is not known")?;
            let own = graph.const_shape(m.get("s")).ok_or("the scale's shape is not known")?;
            let one_per_row = own.iter().rev().enumerate().all(|(i, &d)| d == 1 || i == 0 && d == k);
            if !one_per_row || !super::reading::fits_into(graph, m.get("s"), m.get("a")) {
                return Err("the scale is not one number per row of the weights");
            }
            let column = graph.add_constant(&Tensor::ints(&[-1, 1]));
            let scale = graph.add_op("reshape", &[m.get("s"), column], []);
            let w = graph.add_op("mul", &[m.get("w"), scale], []);
            let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
            Ok(graph.add_op_attrs("fused_linear", &[m.get("a"), w, m.get("b"), m.get("r")], &attrs))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "a factor of each input before a linear map; one pass over the input less",
        samples: &[|b| {
            let x = input(b, "x", &[3, 5]);
            let s = b.constant(&Tensor::from_f64(ElemType::F32, [5], vec![0.5, -1.5, 2.0, 1.0, 0.25]));
            let x = b.op("mul", &[x, s])?;
            let w = b.constant(&Tensor::from_f64(ElemType::F32, [5, 4], (0..20).map(|i| f64::from(i % 7) * 0.5 - 1.0).collect()));
            b.op("fused_linear", &[x, w])
        }],
    },
];

fn scale_columns(graph: &mut Graph, m: &Bound, by: &'static str) -> Result<Id, &'static str> {
    if !constant(graph, m, &["w", "b", "s"]) {
        return Err("weights and scale must be constant");
    }
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    if !matches!(attrs.get("activation"), None | Some(Attr::Str(_))) || matches!(attrs.get("activation"), Some(Attr::Str(s)) if !s.is_empty()) {
        return Err("there is an activation before it");
    }
    let n = graph.const_shape(m.get("w")).and_then(|s| s.last().copied()).ok_or("the weights' shape is not known")?;
    let own = graph.const_shape(m.get("s")).ok_or("the scale's shape is not known")?;
    let count: usize = own.iter().product();
    if own.last().is_some_and(|&d| d != count) || (count != 1 && count != n) {
        return Err("the scale is not one number per column");
    }
    let flat = graph.add_constant(&Tensor::ints(&[-1]));
    let scale = graph.add_op("reshape", &[m.get("s"), flat], []);
    let w = graph.add_op(by, &[m.get("w"), scale], []);
    let bias = match graph.ty(m.get("b")) {
        Some(_) => graph.add_op(by, &[m.get("b"), scale], []),
        None => m.get("b"),
    };
    Ok(graph.add_op_attrs("fused_linear", &[m.get("a"), w, bias], &attrs))
}

fn linear(b: &mut Builder) -> Result<ValueId, OpError> {
    let x = input(b, "x", &[3, 5]);
    let w = b.constant(&Tensor::from_f64(ElemType::F32, [5, 4], (0..20).map(|i| f64::from(i % 7) * 0.5 - 1.0).collect()));
    let bias = b.constant(&Tensor::from_f64(ElemType::F32, [4], vec![0.1, 0.2, -0.3, 0.4]));
    b.op("fused_linear", &[x, w, bias])
}

/// `weights * scale` along output channels, and `(bias - mean) * scale + shift`, as terms over constants.
fn scaled_conv(graph: &mut Graph, m: &Bound, scale: Id, mean: Option<Id>, shift: Option<Id>) -> Result<Id, &'static str> {
    let (w, bias) = (m.get("w"), m.get("b"));
    let rank = graph.ty(w).and_then(|t| t.shape()).map(<[_]>::len).ok_or("the weights' rank is not known")?;
    let mut column = vec![1i64; rank];
    column[0] = -1;
    let column = graph.add_constant(&Tensor::ints(&column));
    let by_channel = graph.add_op("reshape", &[scale, column], []);
    let weights = graph.add_op("mul", &[w, by_channel], []);
    let has_bias = graph.ty(bias).is_some();
    let centred = match (has_bias, mean) {
        (true, Some(mean)) => Some(graph.add_op("sub", &[bias, mean], [])),
        (true, None) => Some(bias),
        (false, Some(mean)) => Some(graph.add_op("neg", &[mean], [])),
        (false, None) => None,
    };
    let scaled = centred.map(|c| graph.add_op("mul", &[c, scale], []));
    let new_bias = match (scaled, shift) {
        (Some(c), Some(shift)) => graph.add_op("add", &[c, shift], []),
        (Some(c), None) => c,
        (None, _) => bias,
    };
    let attrs = graph.attrs(m.get("conv")).cloned().unwrap_or_default();
    Ok(graph.add_op_attrs("conv", &[m.get("x"), weights, new_bias], &attrs))
}

fn constant(graph: &Graph, m: &Bound, names: &[&str]) -> bool {
    names.iter().all(|n| graph[m.get(n)].data.is_constant())
}

fn fold_batch_norm(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    if !constant(graph, m, &["w", "b", "scale", "shift", "mean", "var"]) {
        return Err("weights and statistics must be constant");
    }
    let attrs = graph.attrs(m.get("norm")).ok_or("no attributes")?;
    if matches!(attrs.get("training_mode"), Some(Attr::Int(v)) if *v != 0) {
        return Err("in training mode the statistics are those of the batch");
    }
    let epsilon = match attrs.get("epsilon") {
        Some(Attr::Float(e)) => f64::from(*e),
        _ => 1e-5,
    };
    let elem = graph.ty(m.get("var")).and_then(|t| t.elem()).filter(|e| e.is_float()).ok_or("the element type is not known")?;
    let epsilon = graph.add_constant(&Tensor::from_f64(elem, [], vec![epsilon]));
    let shifted = graph.add_op("add", &[m.get("var"), epsilon], []);
    let deviation = graph.add_op("sqrt", &[shifted], []);
    let scale = graph.add_op("div", &[m.get("scale"), deviation], []);
    scaled_conv(graph, m, scale, Some(m.get("mean")), Some(m.get("shift")))
}

/// `s`, if it is one constant number for each output channel of a convolution with constant weights, as a row.
fn per_channel(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    if !constant(graph, m, &["w", "b", "s"]) {
        return Err("weights and the operand of channels must be constant");
    }
    let channels = graph.const_shape(m.get("w")).and_then(|s| s.first().copied()).ok_or("the weights' shape is not known")?;
    let rank = graph.ty(m.get("w")).and_then(|t| t.shape()).map(<[_]>::len).unwrap_or(0);
    let shape = graph.const_shape(m.get("s")).ok_or("the operand's shape is not known")?;
    // `[c, 1, 1]` or `[1, c, 1, 1]`: one number per channel.
    let fits = shape.len() + 1 >= rank && shape.len() <= rank && shape.iter().rev().enumerate().all(|(i, &d)| d == if i + 2 == rank { channels } else { 1 });
    if !fits {
        return Err("the operand is not one number per output channel");
    }
    let flat = graph.add_constant(&Tensor::ints(&[-1]));
    Ok(graph.add_op("reshape", &[m.get("s"), flat], []))
}

fn fold_scale(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let scale = per_channel(graph, m)?;
    scaled_conv(graph, m, scale, None, None)
}

fn fold_shift(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let shift = per_channel(graph, m)?;
    let bias = match graph.ty(m.get("b")) {
        Some(_) => graph.add_op("add", &[m.get("b"), shift], []),
        None => shift,
    };
    let attrs = graph.attrs(m.get("conv")).cloned().unwrap_or_default();
    Ok(graph.add_op_attrs("conv", &[m.get("x"), m.get("w"), bias], &attrs))
}

fn conv(b: &mut Builder, bias: bool) -> Result<ValueId, OpError> {
    let x = input(b, "x", &[1, 3, 5, 5]);
    let w = b.constant(&Tensor::from_f64(ElemType::F32, [4, 3, 2, 2], (0..48).map(|i| f64::from(i % 7) * 0.25 - 0.6).collect()));
    let bias = bias.then(|| b.constant(&Tensor::from_f64(ElemType::F32, [4], vec![0.1, 0.2, -0.3, 0.4])));
    Ok(b.node("conv", vec![Some(x), Some(w), bias], Attrs::new(), 1)?[0])
}

fn shifted_conv(b: &mut Builder, bias: bool) -> Result<ValueId, OpError> {
    let y = conv(b, bias)?;
    let s = b.constant(&Tensor::from_f64(ElemType::F32, [4, 1, 1], vec![0.5, -1.5, 2.0, 1.0]));
    b.op("add", &[y, s])
}

fn normalized_conv(b: &mut Builder, bias: bool) -> Result<ValueId, OpError> {
    let y = conv(b, bias)?;
    let mut parameter = |values: [f64; 4]| b.constant(&Tensor::from_f64(ElemType::F32, [4], values.to_vec()));
    let operands = [parameter([1.0, 0.5, 2.0, -1.0]), parameter([0.0, 1.0, -1.0, 0.5]), parameter([0.3, -0.2, 0.1, 0.0]), parameter([1.0, 0.5, 2.0, 0.25])];
    let operands = [y].into_iter().chain(operands).map(Some).collect();
    Ok(b.node("batch_normalization", operands, Attrs::new(), 1)?[0])
}
