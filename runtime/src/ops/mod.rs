//! The library operations: what compiled programs call instead of generating code.
//!
//! An operation takes whole values and gives whole values; it is named, and means, as the graph op of that
//! name (ONNX, newest version). Here are those whose shape depends on data, those on strings, sequences
//! and optionals, random generators, and the rare ones that are not worth a kernel. They are written
//! for clarity: the hot path is compiled.

use crate::error::RunError;
use crate::value::Value;

pub mod call;
pub mod moves;
pub mod number;
mod shape;

pub use call::Call;

/// An operation.
pub type Function = fn(&Call) -> Result<Vec<Value>, RunError>;

/// Every operation, by name.
pub const TABLE: &[(&str, Function)] = &[
    ("identity", shape::identity),
    ("shape", shape::shape),
    ("size", shape::size),
    ("reshape", shape::reshape),
    ("squeeze", shape::squeeze),
    ("unsqueeze", shape::unsqueeze),
    ("flatten", shape::flatten),
    ("transpose", shape::transpose),
    ("expand", shape::expand),
    ("tile", shape::tile),
];

/// The operation of this name.
pub fn find(name: &str) -> Option<Function> {
    TABLE.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
}
