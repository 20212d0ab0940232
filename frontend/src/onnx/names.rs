//! ONNX operator names to entries of the op table, and the versions of operator sets that are understood.
//!
//! The mapping is mechanical: an op's name in the table is the ONNX name in snake case, so both are equal
//! once underscores and case are dropped. Where an operator of `com.microsoft` has the name of another
//! ONNX operator, its entry has the prefix `ms_`.

use lapidary_ir::Op;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The domain of the standard operators, as it is spelt here.
pub const ONNX: &str = "";
/// Operators of onnxruntime.
pub const MICROSOFT: &str = "com.microsoft";

/// Domains whose operators are in the op table, each with its newest version.
pub const DOMAINS: &[(&str, i64)] = &[
    (ONNX, 28),
    ("ai.onnx.ml", 5),
    ("ai.onnx.preview.training", 1),
    ("ai.onnx.preview", 1),
    (MICROSOFT, 1),
];

/// One spelling per domain.
pub fn domain(name: &str) -> &str {
    if name == "ai.onnx" { ONNX } else { name }
}

/// Newest version of a domain, if its operators are in the table.
pub fn newest(domain: &str) -> Option<i64> {
    DOMAINS.iter().find(|(d, _)| *d == domain).map(|(_, v)| *v)
}

/// The table's op for an ONNX operator.
pub fn table_op(domain: &str, op_type: &str) -> Option<Op> {
    static INDEX: OnceLock<HashMap<String, Op>> = OnceLock::new();
    let index = INDEX.get_or_init(|| Op::all().map(|op| (op.name.replace('_', ""), op)).collect());
    newest(domain)?;
    if !op_type.starts_with(|c: char| c.is_ascii_uppercase()) || op_type.contains('_') {
        return None;
    }
    let plain = op_type.to_ascii_lowercase();
    let own = if domain == MICROSOFT {
        index.get(&format!("ms{plain}"))
    } else {
        None
    };
    let found = own.or_else(|| index.get(&plain)).copied()?;
    (domain == MICROSOFT || !found.name.starts_with("ms_")).then_some(found)
}

/// How a node's operator is written in messages.
pub fn qualified(domain: &str, op_type: &str) -> String {
    if domain.is_empty() {
        op_type.to_owned()
    } else {
        format!("{domain}.{op_type}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ops_differ_only_in_underscores() {
        let mut seen = HashMap::new();
        for op in Op::all() {
            if let Some(other) = seen.insert(op.name.replace('_', ""), op) {
                panic!("`{op}` and `{other}` are one ONNX name");
            }
        }
    }

    #[test]
    fn names_are_found_by_domain() {
        assert_eq!(table_op(ONNX, "Add").map(|op| op.name), Some("add"));
        assert_eq!(table_op(ONNX, "add"), None);
        assert_eq!(table_op("org.example", "Add"), None);
    }
}
