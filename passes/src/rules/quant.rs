//! Products of codes stay in integers: `dequantize_linear` on both sides of a product, what follows it, and
//! `quantize_linear` become one op.

use super::reading::{OTHER, float, int, number};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query, Trait};
use egg::Id;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{Attr, Attrs, Dim, ElemType, Module, Tensor, Type, ValueId};

/// A row: what only moves elements, or picks some, is done on codes.
macro_rules! on_codes {
    ($name:literal, $left:literal, $op:literal, $more:expr, $sample:expr) => {
        Rule {
            name: $name,
            left: &[$left],
            right: Right::Build(|graph, m| moved(graph, m, $op, $more)),
            condition: None,
            class: Class::Exact,
            source: "a quarter of the bytes; decoding does not change the order of elements",
            samples: &[$sample],
        }
    };
}

/// The family's rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "quant-matmul",
        left: &[
            "(matmul (dequantize_linear ?a ?as ?az ?aat) (dequantize_linear ?w ?ws ?wz ?wat) attrs0)",
            "(gemm (dequantize_linear ?a ?as ?az ?aat) (dequantize_linear ?w ?ws ?wz ?wat) ?bias ?at)",
        ],
        right: Right::Build(linear),
        condition: None,
        class: Class::Reassociates,
        source: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference (arXiv 1712.05877), section 2.2",
        samples: &[
            |b| {
                let (a, w) = (activations(b, &[3, 5])?, weights(b, &[5, 4], 1)?);
                b.op("matmul", &[a, w])
            },
            |b| {
                let (a, w) = (activations(b, &[3, 5])?, weights(b, &[4, 5], 0)?);
                let bias = row(b);
                b.op_with("gemm", &[a, w, bias], [("transB", Attr::Int(1))])
            },
        ],
    },
    Rule {
        name: "quant-matmul-integer",
        left: &["(cast (matmul_integer ?a ?w ?az ?wz attrs0) ?at)"],
        right: Right::Build(|graph, m| {
            if graph.attrs(m.get("at")).and_then(|a| a.get("to")) != Some(&Attr::Elem(ElemType::F32)) {
                return Err("the sums do not become f32");
            }
            let (a, zero) = left(graph, m.get("a"), m.get("az"))?;
            let w = right(graph, m.get("w"), m.get("wz"))?;
            let n = columns(graph, w, 1)?;
            let one = graph.add_constant(&Tensor::f32(1.0));
            let scale = per_column(graph, one, n);
            Ok(graph.add_op("quantized_linear", &[a, zero, w, scale], []))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "sums beyond 2^24 are rounded by the cast alike",
        samples: &[|b| {
            let a = code_input(b, &[3, 5]);
            let (w, zero) = (codes(b, &[5, 4]), b.constant(&Tensor::from_int(ElemType::U8, [], vec![3])));
            let sums = b.op("matmul_integer", &[a, w, zero])?;
            b.cast(sums, ElemType::F32)
        }],
    },
    Rule {
        name: "quant-conv",
        left: &["(conv (dequantize_linear ?a ?as ?az ?aat) (dequantize_linear ?w ?ws ?wz ?wat) ?bias ?at)"],
        right: Right::Build(conv),
        condition: None,
        class: Class::Reassociates,
        source: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference (arXiv 1712.05877), section 2.2",
        samples: &[quantized_conv, |b| {
            let (x, w) = (activations(b, &[1, 3, 5, 5])?, weights(b, &[3, 1, 2, 2], 0)?);
            Ok(b.multi("conv", &[Some(x), Some(w)], &[("group", Attr::Int(3))], 1)?[0])
        }],
    },
    Rule {
        name: "quant-qlinear-conv",
        left: &["(qlinear_conv ?a ?as ?az ?w ?ws ?wz ?ys ?yz ?sums ?at)"],
        right: Right::Build(qlinear_conv),
        condition: None,
        class: Class::Reassociates,
        source: "ONNX QLinearConv-10: the bias is in units of x_scale * w_scale",
        samples: &[|b| {
            let x = code_input(b, &[1, 3, 5, 5]);
            let (w, bias) = (codes(b, &[4, 3, 2, 2]), b.constant(&Tensor::from_int(ElemType::I32, [4], vec![5, -9, 70, 0])));
            let [xs, ws, ys] = [0.02, 0.031, 0.1].map(|v| b.scalar(ElemType::F32, v));
            let [zx, zy] = [3, 120].map(|v| b.constant(&Tensor::from_int(ElemType::U8, [], vec![v])));
            let zw = b.constant(&Tensor::from_int(ElemType::I8, [], vec![0]));
            b.op("qlinear_conv", &[x, xs, zx, w, ws, zw, ys, zy, bias])
        }],
    },
    Rule {
        name: "quant-qlinear-matmul",
        left: &["(qlinear_matmul ?a ?as ?az ?w ?ws ?wz ?ys ?yz attrs0)"],
        right: Right::Build(|graph, m| {
            let y = linear(graph, m)?;
            result(graph, y, "quantized_linear", m.get("ys"), m.get("yz"))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "ONNX QLinearMatMul-21",
        samples: &[|b| {
            let (a, w) = (code_input(b, &[3, 5]), codes(b, &[5, 4]));
            let [xs, ws, ys] = [0.02, 0.031, 0.1].map(|v| b.scalar(ElemType::F32, v));
            let [zx, zy] = [3, 120].map(|v| b.constant(&Tensor::from_int(ElemType::U8, [], vec![v])));
            let zw = b.constant(&Tensor::from_int(ElemType::I8, [], vec![0]));
            b.op("qlinear_matmul", &[a, xs, zx, w, ws, zw, ys, zy])
        }],
    },
    Rule {
        name: "quant-scale",
        left: &["(mul (quantized_linear ?a ?z ?w ?s none none attrs0) ?by attrs0)", "(mul ?by (quantized_linear ?a ?z ?w ?s none none attrs0) attrs0)"],
        right: Right::Build(|graph, m| {
            let n = columns(graph, m.get("w"), 1)?;
            let by = match graph.const_shape(m.get("by")) {
                Some(s) if s.iter().product::<usize>() == 1 => as_scalar(graph, m.get("by"))?,
                Some(s) if s == [n] => m.get("by"),
                _ => return Err("the factor is not one number per column"),
            };
            let s = graph.add_op("mul", &[m.get("s"), by], []);
            Ok(graph.add_op("quantized_linear", &[m.get("a"), m.get("z"), m.get("w"), s], []))
        }),
        condition: None,
        class: Class::Reassociates,
        source: "one multiplication less for each result",
        samples: &[|b| {
            let y = plain_linear(b)?;
            let by = b.scalar(ElemType::F32, 0.3);
            b.op("mul", &[y, by])
        }],
    },
    Rule {
        name: "quant-bias",
        left: &["(add (quantized_linear ?a ?z ?w ?s none none attrs0) ?bias attrs0)", "(add ?bias (quantized_linear ?a ?z ?w ?s none none attrs0) attrs0)"],
        right: Right::Build(|graph, m| {
            let n = columns(graph, m.get("w"), 1)?;
            if graph.const_shape(m.get("bias")) != Some(vec![n]) || graph.ty(m.get("bias")).and_then(Type::elem) != Some(ElemType::F32) {
                return Err("the addend is not one number per column");
            }
            Ok(graph.add_op("quantized_linear", &[m.get("a"), m.get("z"), m.get("w"), m.get("s"), m.get("bias")], []))
        }),
        condition: None,
        class: Class::Exact,
        source: "added while the tile is in registers",
        samples: &[|b| {
            let y = plain_linear(b)?;
            let bias = row(b);
            b.op("add", &[y, bias])
        }],
    },
    Rule {
        name: "quant-clamp-linear",
        left: &["(relu (quantized_linear ?a ?z ?w ?s ?b none ?at) attrs0)", "(clip (quantized_linear ?a ?z ?w ?s ?b none ?at) ?lo ?hi attrs0)"],
        right: Right::Build(|graph, m| clamped(graph, m, "quantized_linear")),
        condition: None,
        class: Class::Exact,
        source: "clamped while the tile is in registers",
        samples: &[|b| {
            let y = plain_linear(b)?;
            b.op("relu", &[y])
        }],
    },
    Rule {
        name: "quant-clamp-conv",
        left: &["(relu (quantized_conv ?a ?z ?w ?s ?b none ?at) attrs0)", "(clip (quantized_conv ?a ?z ?w ?s ?b none ?at) ?lo ?hi attrs0)"],
        right: Right::Build(|graph, m| clamped(graph, m, "quantized_conv")),
        condition: None,
        class: Class::Exact,
        source: "clamped while the tile is in registers",
        samples: &[|b| {
            let y = plain_conv(b)?;
            let (lo, hi) = (b.scalar(ElemType::F32, -0.5), b.scalar(ElemType::F32, 1.5));
            b.op("clip", &[y, lo, hi])
        }],
    },
    Rule {
        name: "quant-result-of-linear",
        left: &["(quantize_linear (quantized_linear ?a ?z ?w ?s ?b none ?at) ?ys ?yz ?qat)"],
        right: Right::Build(|graph, m| requantized(graph, m, "quantized_linear")),
        condition: None,
        class: Class::Reassociates,
        source: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference (arXiv 1712.05877), section 2.4: one multiplier for both scales",
        samples: &[|b| {
            let y = plain_linear(b)?;
            quantized(b, y)
        }],
    },
    Rule {
        name: "quant-result-of-conv",
        left: &["(quantize_linear (quantized_conv ?a ?z ?w ?s ?b none ?at) ?ys ?yz ?qat)"],
        right: Right::Build(|graph, m| requantized(graph, m, "quantized_conv")),
        condition: None,
        class: Class::Reassociates,
        source: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference (arXiv 1712.05877), section 2.4: one multiplier for both scales",
        samples: &[|b| {
            let y = plain_conv(b)?;
            quantized(b, y)
        }],
    },
    Rule {
        name: "quant-twice",
        left: &["(quantize_linear (dequantize_linear ?x ?s ?z ?dat) ?s ?z ?qat)"],
        right: Right::Build(|graph, m| {
            let positive = number(graph, m.get("s")).is_some_and(|s| s > 0.0 && s.is_normal());
            let known = graph.ty(m.get("z")).is_some() && graph.const_shape(m.get("z")).is_some_and(|s| s.iter().product::<usize>() == 1);
            if !positive || !known || graph.ty(m.get("x")).and_then(Type::elem) != graph.ty(m.get("z")).and_then(Type::elem) {
                return Err("the scale is not one positive number");
            }
            Ok(m.get("x"))
        }),
        condition: None,
        class: Class::Exact,
        source: "a code's number is nearest to that code",
        samples: &[|b| {
            let x = code_input(b, &[3, 5]);
            let (s, z) = (b.scalar(ElemType::F32, 0.05), b.constant(&Tensor::from_int(ElemType::U8, [], vec![3])));
            let y = b.op("dequantize_linear", &[x, s, z])?;
            b.op("quantize_linear", &[y, s, z])
        }],
    },
    Rule {
        name: "quant-concat",
        left: &["(quantize_linear (concat ?x ?y ?at) ?s ?z ?qat)"],
        right: Right::Build(|graph, m| {
            let one = |v: Id| graph.const_shape(v).is_some_and(|s| s.iter().product::<usize>() == 1);
            let coded = |v: Id| super::reading::terms(graph, v, "dequantize_linear").next().is_some();
            if !one(m.get("s")) || graph.ty(m.get("z")).is_some() && !one(m.get("z")) {
                return Err("scale or zero are not one number");
            }
            if !coded(m.get("x")) || !coded(m.get("y")) {
                return Err("the parts are not codes before it");
            }
            let (attrs, quantizing) = (graph.attrs(m.get("at")).cloned().ok_or("no attributes")?, graph.attrs(m.get("qat")).cloned().ok_or("no attributes")?);
            let parts = ["x", "y"].map(|part| {
                let operands: Vec<Id> = [part, "s", "z"].iter().map(|n| m.get(n)).collect();
                graph.add_op_attrs("quantize_linear", &operands, &quantizing)
            });
            Ok(graph.add_op_attrs("concat", &parts, &attrs))
        }),
        condition: None,
        class: Class::Exact,
        source: "each part goes from code to code, which is a table",
        samples: &[|b| {
            let x = activations(b, &[3, 4])?;
            let (s, z) = (b.scalar(ElemType::F32, 0.05), b.constant(&Tensor::from_int(ElemType::U8, [], vec![7])));
            let y = code_input(b, &[3, 4]);
            let y = b.op("dequantize_linear", &[y, s, z])?;
            let all = b.op_with("concat", &[x, y], [("axis", Attr::Int(1))])?;
            b.op("quantize_linear", &[all, s, z])
        }],
    },
    on_codes!("quant-reshape", "(reshape (dequantize_linear ?x ?s ?z ?dat) ?one ?at)", "reshape", &["one"], |b| {
        let (x, shape) = (activations(b, &[3, 4])?, b.ints(&[2, 6]));
        b.op("reshape", &[x, shape])
    }),
    on_codes!("quant-gather", "(gather (dequantize_linear ?x ?s ?z ?dat) ?one ?at)", "gather", &["one"], |b| {
        let (x, rows) = (activations(b, &[3, 4])?, b.ints(&[2, 0]));
        b.op_with("gather", &[x, rows], [("axis", Attr::Int(0))])
    }),
    on_codes!("quant-flatten", "(flatten (dequantize_linear ?x ?s ?z ?dat) ?at)", "flatten", &[], |b| {
        let x = activations(b, &[3, 2, 2])?;
        b.op_with("flatten", &[x], [("axis", Attr::Int(1))])
    }),
    on_codes!("quant-transpose", "(transpose (dequantize_linear ?x ?s ?z ?dat) ?at)", "transpose", &[], |b| {
        let x = activations(b, &[3, 4])?;
        b.transpose(x, &[1, 0])
    }),
    on_codes!("quant-max-pool", "(max_pool (dequantize_linear ?x ?s ?z ?dat) ?at)", "max_pool", &[], |b| {
        let x = activations(b, &[1, 2, 4, 4])?;
        b.op_with("max_pool", &[x], [("kernel_shape", Attr::Ints(vec![2, 2]))])
    }),
];

/// The left operand's codes and their zero as a scalar: one zero for all, in `u8`.
fn left(graph: &mut Graph, a: Id, zero: Id) -> Result<(Id, Id), &'static str> {
    if graph.ty(a).and_then(Type::elem) != Some(ElemType::U8) {
        return Err("the left operand's codes are not u8");
    }
    if graph.ty(zero).is_none() {
        return Ok((a, graph.add_constant(&Tensor::from_int(ElemType::U8, [], vec![0]))));
    }
    Ok((a, as_scalar(graph, zero)?))
}

/// The right operand's codes: constant, in `i8`, symmetric.
fn right(graph: &Graph, w: Id, zero: Id) -> Result<Id, &'static str> {
    if graph.ty(w).and_then(Type::elem) != Some(ElemType::I8) || !graph[w].data.is_constant() {
        return Err("the right operand is not constant i8 codes");
    }
    if graph.ty(zero).is_some() && !graph.has_trait(zero, Trait::Zero) {
        return Err("the right operand's code of zero is not 0");
    }
    Ok(w)
}

/// One element as a scalar.
fn as_scalar(graph: &mut Graph, v: Id) -> Result<Id, &'static str> {
    match graph.const_shape(v) {
        Some(s) if s.is_empty() => Ok(v),
        Some(s) if s.iter().product::<usize>() == 1 => {
            let none = graph.add_constant(&Tensor::ints(&[]));
            Ok(graph.add_op("reshape", &[v, none], []))
        }
        _ => Err("scale or zero of the left operand is not one number"),
    }
}

/// Extent of an axis of the right operand.
fn columns(graph: &Graph, w: Id, axis: usize) -> Result<usize, &'static str> {
    graph.const_shape(w).and_then(|s| s.get(axis).copied()).ok_or("the right operand's shape is not known")
}

/// A factor for each of `n` columns.
fn per_column(graph: &mut Graph, scale: Id, n: usize) -> Id {
    if graph.const_shape(scale) == Some(vec![n]) {
        return scale;
    }
    let shape = graph.add_constant(&Tensor::ints(&[n as i64]));
    graph.add_op("expand", &[scale, shape], [])
}

/// The product of both scales, for each of the columns that lie along `axis` of `w`.
fn scales(graph: &mut Graph, m: &Bound, w: Id, axis: usize) -> Result<Id, &'static str> {
    let n = columns(graph, w, axis)?;
    let own = m.get("ws");
    let right = match graph.const_shape(own) {
        Some(s) if s.iter().product::<usize>() == 1 => as_scalar(graph, own)?,
        Some(s) if s == [n] => {
            let rank = graph.const_shape(w).map_or(0, |s| s.len());
            let given = m.find("wat").and_then(|at| graph.attrs(at)).map(|at| (int(at, "axis", 1), int(at, "block_size", 0)));
            // Products of codes say their axis by what they are.
            let along = given.is_none_or(|(at, block)| block == 0 && resolve_axis(at, rank).ok() == Some(axis));
            if !along {
                return Err("the scales go along another axis");
            }
            own
        }
        _ => return Err("the scales are not one for each column"),
    };
    let left = as_scalar(graph, m.get("as"))?;
    for scale in [left, right] {
        if graph.ty(scale).and_then(Type::elem) != Some(ElemType::F32) {
            return Err("the scales are not f32");
        }
    }
    let both = graph.add_op("mul", &[left, right], []);
    Ok(per_column(graph, both, n))
}

/// Decoding without attributes that change what it is.
fn plain_decoding(graph: &Graph, m: &Bound, name: &str) -> Result<(), &'static str> {
    let other = m.find(name).and_then(|at| graph.attrs(at)).is_some_and(|at| match at.get("output_dtype") {
        Some(Attr::Elem(e)) => *e != ElemType::F32,
        _ => false,
    });
    if other { Err("the numbers are not f32") } else { Ok(()) }
}

fn linear(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    plain_decoding(graph, m, "aat")?;
    plain_decoding(graph, m, "wat")?;
    let (a, zero) = left(graph, m.get("a"), m.get("az"))?;
    let mut w = right(graph, m.get("w"), m.get("wz"))?;
    if graph.const_shape(w).is_none_or(|s| s.len() != 2) || super::reading::rank(graph, a).is_none_or(|r| r < 2) {
        return Err("the right operand is not one matrix");
    }
    let mut bias = None;
    let mut axis = 1;
    if let Some(at) = m.find("at") {
        let attrs = graph.attrs(at).cloned().ok_or("no attributes")?;
        let given = m.get("bias");
        let has_bias = graph.ty(given).is_some();
        if int(&attrs, "transA", 0) != 0 || float(&attrs, "alpha", 1.0) != 1.0 || has_bias && float(&attrs, "beta", 1.0) != 1.0 {
            return Err("the left operand is transposed or a factor is not one");
        }
        axis = usize::from(int(&attrs, "transB", 0) == 0);
        if has_bias {
            if graph.const_shape(given) != Some(vec![columns(graph, w, axis)?]) {
                return Err("the addend is not one number per column");
            }
            bias = Some(given);
        }
    }
    let scale = scales(graph, m, w, axis)?;
    if axis == 0 {
        w = graph.add_op("transpose", &[w], [("perm", Attr::Ints(vec![1, 0]))]);
    }
    let operands: Vec<Id> = [a, zero, w, scale].into_iter().chain(bias).collect();
    Ok(graph.add_op("quantized_linear", &operands, []))
}

/// Convolutions that have kernels for codes.
fn takes_conv(graph: &Graph, m: &Bound) -> Result<Attrs, &'static str> {
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    let w = graph.const_shape(m.get("w")).ok_or("the right operand's shape is not known")?;
    let known = |name: &str| m.find(name).is_none_or(|v| graph.ty(v).is_none() || graph[v].data.is_constant());
    if int(&attrs, "group", 1) > 1 && w.get(1) == Some(&1) && !["as", "az", "ws"].into_iter().all(known) {
        return Err("windows over single channels need scales that are known");
    }
    let spatial = super::reading::shape(graph, m.get("a")).ok_or(OTHER)?;
    if !(3..=4).contains(&w.len()) || spatial.iter().skip(1).any(|d| d.as_const().is_none_or(|n| n <= 0)) {
        return Err("only images of known size have a kernel");
    }
    if w.iter().skip(2).product::<usize>() > 256 {
        return Err("only windows of at most 256 taps have a kernel");
    }
    let unpadded = match (attrs.get("pads"), attrs.get("auto_pad")) {
        (None, None) => true,
        (Some(Attr::Ints(p)), None) => p.iter().all(|&p| p == 0),
        (pads, Some(Attr::Str(s))) if s == "NOTSET" => !matches!(pads, Some(Attr::Ints(p)) if p.iter().any(|&p| p != 0)),
        (_, Some(Attr::Str(s))) => s == "VALID",
        _ => false,
    };
    if !unpadded && graph.ty(m.get("az")).is_some() && graph.scalar(m.get("az")).is_none() {
        return Err("the padding is a code that is known at run time only");
    }
    Ok(attrs)
}

fn conv(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    plain_decoding(graph, m, "aat")?;
    plain_decoding(graph, m, "wat")?;
    let attrs = takes_conv(graph, m)?;
    let (a, zero) = left(graph, m.get("a"), m.get("az"))?;
    let w = right(graph, m.get("w"), m.get("wz"))?;
    let scale = scales(graph, m, w, 0)?;
    let given = m.get("bias");
    let bias = graph.ty(given).is_some().then_some(given);
    let operands: Vec<Id> = [a, zero, w, scale].into_iter().chain(bias).collect();
    Ok(graph.add_op_attrs("quantized_conv", &operands, &attrs))
}

fn qlinear_conv(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let attrs = takes_conv(graph, m)?;
    let (a, zero) = left(graph, m.get("a"), m.get("az"))?;
    let w = right(graph, m.get("w"), m.get("wz"))?;
    let scale = scales(graph, m, w, 0)?;
    let mut operands = vec![a, zero, w, scale];
    if graph.ty(m.get("sums")).is_some() {
        let numbers = graph.add_op("cast", &[m.get("sums")], [("to", Attr::Elem(ElemType::F32))]);
        operands.push(graph.add_op("mul", &[numbers, scale], []));
    }
    let y = graph.add_op_attrs("quantized_conv", &operands, &attrs);
    result(graph, y, "quantized_conv", m.get("ys"), m.get("yz"))
}

/// The codes of what the class of `y` computes as numbers.
fn result(graph: &mut Graph, y: Id, op: &'static str, scale: Id, zero: Id) -> Result<Id, &'static str> {
    let (operands, attrs) = super::reading::terms(graph, y, op).next().map(|(o, a)| (o.to_vec(), a.clone())).ok_or(OTHER)?;
    coded(graph, &operands, attrs, op, scale, zero)
}

fn requantized(graph: &mut Graph, m: &Bound, op: &'static str) -> Result<Id, &'static str> {
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    let asked = graph.attrs(m.get("qat")).ok_or("no attributes")?;
    if int(asked, "block_size", 0) != 0 || asked.contains_key("precision") {
        return Err("the result is quantized in blocks or in another precision");
    }
    let operands = ["a", "z", "w", "s", "b"].map(|name| m.get(name));
    coded(graph, &operands, attrs, op, m.get("ys"), m.get("yz"))
}

fn coded(graph: &mut Graph, operands: &[Id], mut attrs: Attrs, op: &'static str, scale: Id, zero: Id) -> Result<Id, &'static str> {
    if graph.ty(zero).is_none() || !matches!(graph.ty(zero).and_then(Type::elem), Some(ElemType::U8 | ElemType::I8)) {
        return Err("the result's codes are not of 8 bits");
    }
    let by = number(graph, scale).filter(|s| *s > 0.0).ok_or("the result's scale is not one positive number")?;
    if graph.scalar(zero).is_none() || graph.ty(scale).and_then(Type::elem) != Some(ElemType::F32) {
        return Err("the result's zero is not one known code");
    }
    for name in ["lo", "hi"] {
        if attrs.contains_key(name) {
            let bound = float(&attrs, name, 0.0) / by as f32;
            attrs.insert(name.into(), Attr::Float(bound));
        }
    }
    let scale = as_scalar(graph, scale)?;
    let zero = as_scalar(graph, zero)?;
    let mut operands: Vec<Id> = operands.to_vec();
    operands[3] = graph.add_op("div", &[operands[3], scale], []);
    match operands.get(4).copied() {
        Some(bias) if graph.ty(bias).is_some() => operands[4] = graph.add_op("div", &[bias, scale], []),
        Some(_) => {}
        None => return Err(OTHER),
    }
    operands.truncate(5);
    operands.push(zero);
    Ok(graph.add_op_attrs(op, &operands, &attrs))
}

fn clamped(graph: &mut Graph, m: &Bound, op: &'static str) -> Result<Id, &'static str> {
    let mut attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    if attrs.contains_key("lo") || attrs.contains_key("hi") {
        return Err("there is a clamp before it");
    }
    let mut bound = |name: &str, var: &str| match m.find(var) {
        None => Ok::<(), &str>(()),
        Some(v) if graph.ty(v).is_none() => Ok(()),
        Some(v) => {
            let value = graph.scalar(v).ok_or("the bounds are not constant")?;
            attrs.insert(name.into(), Attr::Float(value as f32));
            Ok(())
        }
    };
    bound("lo", "lo")?;
    bound("hi", "hi")?;
    if m.find("lo").is_none() {
        attrs.insert("lo".into(), Attr::Float(0.0));
    }
    let operands = ["a", "z", "w", "s", "b"].map(|name| m.get(name));
    Ok(graph.add_op_attrs(op, &operands, &attrs))
}

/// `op` on the codes, decoded afterwards.
fn moved(graph: &mut Graph, m: &Bound, op: &'static str, more: &[&str]) -> Result<Id, &'static str> {
    let one = |v: Id| graph.ty(v).is_none() || graph.const_shape(v).is_some_and(|s| s.iter().product::<usize>() == 1);
    if !one(m.get("s")) || !one(m.get("z")) {
        return Err("scale or zero are not one number");
    }
    if op == "max_pool" && number(graph, m.get("s")).is_none_or(|s| s <= 0.0) {
        return Err("the scale is not known to be positive");
    }
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    let decoding = graph.attrs(m.get("dat")).cloned().ok_or("no attributes")?;
    if int(&decoding, "block_size", 0) != 0 {
        return Err("scales go by blocks");
    }
    let operands: Vec<Id> = [m.get("x")].into_iter().chain(more.iter().map(|name| m.get(name))).collect();
    let codes = graph.add_op_attrs(op, &operands, &attrs);
    let (scale, zero) = (as_scalar(graph, m.get("s"))?, m.get("z"));
    let mut operands = vec![codes, scale];
    if graph.ty(zero).is_some() {
        operands.push(as_scalar(graph, zero)?);
    }
    Ok(graph.add_op_attrs("dequantize_linear", &operands, &decoding))
}

fn code_input(b: &mut Builder, shape: &[i64]) -> ValueId {
    b.module.add_input(Module::TOP, "codes", Type::tensor(ElemType::U8, shape.iter().map(|&d| Dim::from(d))))
}

fn codes(b: &mut Builder, shape: &[usize]) -> ValueId {
    let n: usize = shape.iter().product();
    b.constant(&Tensor::from_int(ElemType::I8, shape.to_vec(), (0..n).map(|i| (i * 37 % 200) as i128 - 100).collect()))
}

fn activations(b: &mut Builder, shape: &[i64]) -> Result<ValueId, OpError> {
    let x = code_input(b, shape);
    let (s, z) = (b.scalar(ElemType::F32, 0.02), b.constant(&Tensor::from_int(ElemType::U8, [], vec![3])));
    b.op("dequantize_linear", &[x, s, z])
}

fn weights(b: &mut Builder, shape: &[usize], axis: i64) -> Result<ValueId, OpError> {
    let n = shape[axis as usize];
    let scale = b.constant(&Tensor::from_f64(ElemType::F32, [n], (0..n).map(|i| 0.01 * (i + 1) as f64).collect()));
    let (w, zero) = (codes(b, shape), b.constant(&Tensor::from_int(ElemType::I8, [n], vec![0; n])));
    b.op_with("dequantize_linear", &[w, scale, zero], [("axis", Attr::Int(axis))])
}

fn row(b: &mut Builder) -> ValueId {
    b.constant(&Tensor::from_f64(ElemType::F32, [4], vec![0.5, -1.0, 0.25, 2.0]))
}

fn quantized_conv(b: &mut Builder) -> Result<ValueId, OpError> {
    let (x, w, bias) = (activations(b, &[1, 3, 5, 5])?, weights(b, &[4, 3, 2, 2], 0)?, row(b));
    Ok(b.multi("conv", &[Some(x), Some(w), Some(bias)], &[("pads", Attr::Ints(vec![1, 1, 0, 0]))], 1)?[0])
}

fn scale_row(b: &mut Builder) -> ValueId {
    b.constant(&Tensor::from_f64(ElemType::F32, [4], vec![0.0021, 0.0015, 0.0032, 0.0011]))
}

fn plain_linear(b: &mut Builder) -> Result<ValueId, OpError> {
    let (a, w, s) = (code_input(b, &[3, 5]), codes(b, &[5, 4]), scale_row(b));
    let zero = b.constant(&Tensor::from_int(ElemType::U8, [], vec![3]));
    b.op("quantized_linear", &[a, zero, w, s])
}

fn plain_conv(b: &mut Builder) -> Result<ValueId, OpError> {
    let (a, w, s) = (code_input(b, &[1, 3, 5, 5]), codes(b, &[4, 3, 2, 2]), scale_row(b));
    let (zero, bias) = (b.constant(&Tensor::from_int(ElemType::U8, [], vec![3])), row(b));
    b.op("quantized_conv", &[a, zero, w, s, bias])
}

fn quantized(b: &mut Builder, y: ValueId) -> Result<ValueId, OpError> {
    let (s, z) = (b.scalar(ElemType::F32, 0.013), b.constant(&Tensor::from_int(ElemType::U8, [], vec![120])));
    b.op("quantize_linear", &[y, s, z])
}
