//! The ops that the runtime's library computes, each with the reason why it is not a kernel.

use lapidary_ir::graph::Node;
use lapidary_ir::{Attr, ElemType};

/// Op and reason.
pub static LIBRARY: &[(&str, &str)] = &[
    ("non_zero", SHAPE),
    ("unique", SHAPE),
    ("compress", SHAPE),
    ("non_max_suppression", SHAPE),
    ("top_k", CONTROL),
    ("multinomial", RANDOM),
    ("bernoulli", RANDOM),
    ("random_normal", RANDOM),
    ("random_normal_like", RANDOM),
    ("random_uniform", RANDOM),
    ("random_uniform_like", RANDOM),
    ("string_normalizer", STRINGS),
    ("string_concat", STRINGS),
    ("string_split", STRINGS),
    ("regex_full_match", STRINGS),
    ("tf_idf_vectorizer", STRINGS),
    ("label_encoder", STRINGS),
    ("sequence_at", VALUES),
    ("sequence_construct", VALUES),
    ("sequence_empty", VALUES),
    ("sequence_erase", VALUES),
    ("sequence_insert", VALUES),
    ("sequence_length", VALUES),
    ("split_to_sequence", VALUES),
    ("concat_from_sequence", VALUES),
    ("optional", VALUES),
    ("optional_get_element", VALUES),
    ("optional_has_element", VALUES),
    ("array_feature_extractor", CONTROL),
    ("reverse_sequence", CONTROL),
    ("det", CONTROL),
    ("rans_decode", CONTROL),
    ("tree_ensemble", CONTROL),
];

const SHAPE: &str = "the shape of its result depends on data";
const CONTROL: &str = "it is control, not arithmetic";
const RANDOM: &str = "it draws random numbers";
const STRINGS: &str = "it handles strings";
const VALUES: &str = "it handles sequences or optionals";

/// Ops that become library calls only when the shape of their result is known no earlier than at run time, or
/// their elements are none that kernels know (text).
pub static DYNAMIC: &[&str] = &[
    "reshape",
    "slice",
    "expand",
    "tile",
    "pad",
    "range",
    "constant_of_shape",
    "resize",
    "squeeze",
    "unsqueeze",
    "one_hot",
    "split",
    "identity",
    "concat",
    "transpose",
    "gather",
    "cast",
    "cast_like",
    "equal",
    "shape",
    "size",
];

/// Ops that become library calls where their decomposition does not apply.
pub static OTHERWISE: &[&str] = &["dropout"];

/// True for conversions that no kernel computes: to small floats with infinities, or rounded in special ways.
pub fn is_rare_cast(node: &Node, from: ElemType, to: ElemType) -> bool {
    let small = to.is_float() && to.bits() <= 8 && from != to;
    let wants_infinity = matches!(node.attr("saturate"), Some(Attr::Int(0)));
    let rounds = |m: &Attr| matches!(m, Attr::Str(m) if m != "nearest");
    let is_cast = matches!(node.op.name, "cast" | "cast_like");
    let infinite = wants_infinity && to != ElemType::F4E2M1;
    let rounded = to == ElemType::F8E8M0 && node.attr("round_mode").as_ref().is_some_and(rounds);
    is_cast && small && (infinite || rounded)
}

/// Why an op is always a library call, if it is.
pub fn reason(op: &str) -> Option<&'static str> {
    LIBRARY.iter().find(|l| l.0 == op).map(|l| l.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_is_either_lowered_or_called() {
        for (op, _) in LIBRARY {
            assert!(super::super::rule(op).is_none(), "{op}");
        }
    }
}
