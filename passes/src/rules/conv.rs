//! Convolutions that exporters write as several: groups as parts that are convolved one by one and joined.

use super::algebra::input;
use super::reading::{OTHER, int, operands, rank, shape, terms};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query};
use egg::Id;
use lapidary_ir::ops::resolve_axis;
use lapidary_ir::{Attr, Attrs, ElemType, Tensor};

/// The family's rules.
pub static RULES: &[Rule] = &[Rule {
    name: "conv-groups-from-parts",
    left: &["concat"],
    right: Right::Build(groups_from_parts),
    condition: None,
    class: Class::Exact,
    source: "AlexNet's two halves, ResNeXt's paths, depthwise filters (arXiv 1704.04861): one convolution with groups",
    samples: &[
        |b| {
            let x = input(b, "x", &[1, 4, 3, 3]);
            let mut parts = vec![];
            for g in 0..2 {
                let part = b.slice(x, 1, 2 * g, 2 * g + 2)?;
                let w = b.constant(&Tensor::from_f64(ElemType::F32, [3, 2, 2, 2], (0..24).map(|i| f64::from((i + g as i32) % 7) * 0.25 - 0.6).collect()));
                let bias = b.constant(&Tensor::from_f64(ElemType::F32, [3], vec![0.5, g as f64, -1.0]));
                parts.push(b.op("conv", &[part, w, bias])?);
            }
            b.concat(&parts, 1)
        },
        // One channel each.
        |b| {
            let x = input(b, "x", &[2, 3, 4]);
            let mut parts = vec![];
            for g in 0..3 {
                let part = b.slice(x, 1, g, g + 1)?;
                let w = b.constant(&Tensor::from_f64(ElemType::F32, [1, 1, 3], vec![0.5, -1.0, g as f64]));
                parts.push(b.op_with("conv", &[part, w], [("pads", Attr::Ints(vec![1, 1]))])?);
            }
            b.concat(&parts, 1)
        },
    ],
}];

/// A convolution of some channels.
struct Part {
    x: Id,
    w: Id,
    bias: Id,
    attrs: Attrs,
    /// Channels `begin..end` of `x`.
    begin: i64,
    end: i64,
}

fn part(graph: &Graph, id: Id) -> Option<Part> {
    let (conv, attrs) = terms(graph, id, "conv").next()?;
    let of = operands(graph, conv[0], "slice")?;
    let (rank, whole) = (rank(graph, of[0])?, shape(graph, of[0])?);
    let (starts, ends) = (graph.ints(of[1])?, graph.ints(of[2])?);
    let axes = graph.ints(of[3]).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let ones = graph.ty(of[4]).is_none() || graph.ints(of[4])?.iter().all(|&s| s == 1);
    let channels = whole.get(1)?.as_const()?;
    let one_axis = axes.len() == 1 && resolve_axis(axes[0], rank).ok()? == 1;
    let clamp = |i: i64| (if i < 0 { i.saturating_add(channels) } else { i }).clamp(0, channels);
    (one_axis && ones && starts.len() == 1).then(|| Part {
        x: graph.find(of[0]),
        w: conv[1],
        bias: conv[2],
        attrs: attrs.clone(),
        begin: clamp(starts[0]),
        end: clamp(ends[0]),
    })
}

fn groups_from_parts(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let joined = m.operands();
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    let some_conv = joined.iter().any(|&o| terms(graph, o, "conv").next().is_some());
    let rank = rank(graph, joined[0]).ok_or(OTHER)?;
    if !some_conv || joined.len() < 2 || resolve_axis(int(&attrs, "axis", 0), rank) != Ok(1) {
        return Err(OTHER);
    }
    let parts: Vec<Part> = joined.iter().map(|&o| part(graph, o)).collect::<Option<_>>().ok_or("not every part is a convolution of some channels")?;
    let (first, channels) = (&parts[0], shape(graph, parts[0].x).ok_or("the rank is not known")?[1].as_const().ok_or("the number of channels is not known")?);
    let (x, attrs) = (first.x, first.attrs.clone());
    let width = first.end - first.begin;
    let mut end = 0;
    for p in &parts {
        if p.x != x || p.begin != end || p.end - p.begin != width {
            return Err("the parts are not equal runs of one value's channels, in order");
        }
        if p.attrs != attrs || graph.const_shape(p.w).is_none() || graph.const_shape(p.w) != graph.const_shape(first.w) {
            return Err("the parts have different windows");
        }
        if graph.ty(p.bias).is_some() != graph.ty(first.bias).is_some() {
            return Err("only some parts have a bias");
        }
        end = p.end;
    }
    if end != channels {
        return Err("some channels are in no part");
    }
    if parts.iter().any(|p| !graph[p.w].data.is_constant() || !graph[p.bias].data.is_constant()) {
        return Err("weights must be constant");
    }
    let groups = int(&attrs, "group", 1) * parts.len() as i64;
    let (weights, biases): (Vec<Id>, Vec<Id>) = parts.iter().map(|p| (p.w, p.bias)).unzip();
    let has_bias = graph.ty(biases[0]).is_some();
    let w = graph.add_op("concat", &weights, [("axis", Attr::Int(0))]);
    let mut all = vec![x, w];
    if has_bias {
        all.push(graph.add_op("concat", &biases, [("axis", Attr::Int(0))]));
    }
    let mut attrs = attrs;
    attrs.insert("group".into(), Attr::Int(groups));
    Ok(graph.add_op_attrs("conv", &all, &attrs))
}
