//! ONNX models into the graph IR.
//!
//! [`import`] walks a decoded model ([`proto`]) and maps each node to the op table by name; a form of an
//! older opset is first rewritten to the newest one by a row in [`upgrades`]. [`tensor`] reads
//! weights without copying them ([`external_files`] lists where they are), [`tensor_file`] reads and writes single values.

mod attributes;
mod external;
mod functions;
pub mod import;
mod names;
mod node;
mod order;
pub mod proto;
pub mod tensor;
pub mod tensor_file;
mod types;
pub mod upgrades;

pub use external::external_files;
pub use import::{ImportOptions, import_bytes, import_file};
