//! The table of graph ops: one entry says everything about an op.
//!
//! Printer, parser, verifier, documentation, shape inference, evaluator, e-graph node and the test lists
//! read these entries; nothing else enumerates ops. An entry lives in the file of its family, and a family
//! is one line in [`FAMILIES`].

pub mod broadcast;
pub mod compose;
mod ctx;
mod def;
pub mod index_map;
pub mod shape_values;
pub mod window;

pub use ctx::{
    EvalCtx, InferCtx, MAX_ELEMENTS, OpError, broadcast_dims, broadcast_shapes, checked_count,
    resolve_axis,
};
pub use def::{AttrDef, AttrKind, Default, Eval, OpDef, Operand, Tolerance};

use crate::Attr;
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

macro_rules! families {
    ($($family:ident,)*) => {
        $(pub mod $family;)*
        /// Every family: its name and its ops.
        pub static FAMILIES: &[(&str, &[&OpDef])] = &[$((stringify!($family), $family::OPS),)*];
    };
}

families! {
    elementwise,
    compare,
    activation,
    cast,
    reduce,
    einsum,
    shape,
    layout,
    generate,
    index,
    scatter,
    control,
    determinant,
    ml,
    linear,
    conv,
    fused,
    random,
    search,
    sequence,
    signal,
    strings,
    training,
    pool,
    norm,
    quant,
    attention,
    recurrent,
    resize,
}

/// A handle to an op's table entry; equal if it is the same entry.
#[derive(Clone, Copy)]
pub struct Op(&'static OpDef);

impl Op {
    /// The op with this name.
    pub fn named(name: &str) -> Option<Op> {
        static INDEX: OnceLock<HashMap<&'static str, &'static OpDef>> = OnceLock::new();
        let index = INDEX.get_or_init(|| Op::all().map(|op| (op.0.name, op.0)).collect());
        index.get(name).copied().map(Op)
    }

    /// Every op, by family.
    pub fn all() -> impl Iterator<Item = Op> {
        FAMILIES
            .iter()
            .flat_map(|(_, ops)| ops.iter().copied().map(Op))
    }

    /// A handle to an entry.
    pub const fn of(def: &'static OpDef) -> Op {
        Op(def)
    }

    /// The attribute's default value, if it has one.
    pub fn attr_default(&self, name: &str) -> Option<Attr> {
        self.0
            .attrs
            .iter()
            .find(|a| a.name == name)?
            .default
            .value()
    }
}

impl std::ops::Deref for Op {
    type Target = OpDef;
    fn deref(&self) -> &OpDef {
        self.0
    }
}

impl PartialEq for Op {
    fn eq(&self, other: &Op) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Op {}

impl std::hash::Hash for Op {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl PartialOrd for Op {
    fn partial_cmp(&self, other: &Op) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Op {
    fn cmp(&self, other: &Op) -> std::cmp::Ordering {
        self.0.name.cmp(other.0.name)
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_documented() {
        let mut seen = std::collections::HashSet::new();
        for op in Op::all() {
            assert!(seen.insert(op.name), "`{}` is defined twice", op.name);
            assert!(
                !op.summary.is_empty() && !op.source.is_empty(),
                "`{}` lacks a summary or a source",
                op.name
            );
        }
    }
}
