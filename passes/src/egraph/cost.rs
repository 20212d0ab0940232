//! What a term costs on a target: time in units of about a nanosecond, from bytes moved and arithmetic done.
//!
//! A model for choosing between equal programs, not a prediction; the calibrated one is the business of `tune`.

use super::extract::is_free;
use super::lang::{Graph, Head, Query, Term};
use lapidary_ir::target::Target;
use lapidary_ir::tensor::count;

/// Ops that only change how bytes are looked at.
const VIEWS: &[&str] = &["reshape", "squeeze", "unsqueeze", "flatten", "identity"];

/// Ops whose arithmetic is a contraction of operand 0 with weights.
const CONTRACTIONS: &[&str] = &[
    "matmul",
    "gemm",
    "fused_linear",
    "conv",
    "conv_transpose",
    "fused_conv",
    "quantized_linear",
    "quantized_conv",
    "qlinear_conv",
    "qlinear_matmul",
    "conv_integer",
    "matmul_integer",
];

/// The operand that a contraction's weights are, and how many products a nanosecond makes.
fn weights_of(op: &str) -> (usize, u64) {
    match op {
        "quantized_linear" | "quantized_conv" => (2, 128),
        // Element by element.
        "qlinear_conv" | "qlinear_matmul" => (3, 1),
        "conv_integer" | "matmul_integer" => (1, 1),
        _ => (1, 32),
    }
}

/// Elements assumed for a dimension that is a symbol.
const SYMBOLIC: usize = 64;

/// Cost of one term alone.
pub fn cost(target: &Target, graph: &Graph, term: &Term) -> u64 {
    let Head::Op(op) = &term.head else { return 0 };
    if is_free(graph, term) {
        // Not quite nothing: of two ways to write a constant, the shorter is better.
        return 1;
    }
    if VIEWS.contains(&op.name) {
        return 20;
    }
    let elements = |id| {
        graph.ty(id).map_or(0, |ty| {
            ty.shape().map_or(SYMBOLIC, |s| {
                s.iter()
                    .map(|d| d.as_const().map_or(SYMBOLIC, |c| c as usize))
                    .product()
            })
        })
    };
    let bytes = |id| {
        elements(id)
            * graph
                .ty(id)
                .and_then(|t| t.elem())
                .map_or(0, |e| e.size_bytes())
    };
    let result = graph.lookup(term.clone()).map_or(0, bytes);
    let moved: usize = term.children.iter().map(|&c| bytes(c)).sum::<usize>() + result;
    // About 16 bytes a nanosecond from cache, and a launch.
    let mut total = 500 + moved as u64 / u64::from(target.vector_bytes.max(1));
    if CONTRACTIONS.contains(&op.name) {
        let out = graph.lookup(term.clone()).map_or(0, elements);
        let (operand, speed) = weights_of(op.name);
        let weights = graph
            .const_shape(term.children[operand])
            .unwrap_or_default();
        let inner = match op.name {
            "matmul" | "gemm" | "fused_linear" | "quantized_linear" | "qlinear_matmul"
            | "matmul_integer" => graph
                .const_shape(term.children[0])
                .and_then(|s| s.last().copied())
                .unwrap_or(SYMBOLIC),
            _ => count(&weights) / weights.first().copied().unwrap_or(1).max(1),
        };
        total += (out as u64).saturating_mul(inner as u64) / speed;
    }
    total
}
