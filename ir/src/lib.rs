//! The two intermediate representations of Lapidary, and their meaning.
//!
//! * the **graph IR**: [`graph`] (modules, regions, nodes), [`types`] and [`dim`] (element types, symbolic
//!   shapes), [`attr`] (attributes), [`ops`] (one table entry per op), [`constant`] and [`encodings`]
//!   (how stored bytes decode to a tensor), [`builder`] (writing graphs);
//! * the **kernel IR**: [`kernel`] (loops over tiles), what every backend translates; [`backend`] (what it gives);
//! * [`text`] (printer and parser of the graph IR), [`verify`] (everything that must hold of a module) and
//!   [`diagnostic`] (how both say what is wrong);
//! * [`tensor`] and [`eval`]: the reference evaluator, which *is* the meaning of the graph IR.
//! * [`random`]: the generator of random numbers, the same on every machine;
//! * [`target`] and [`speeds`]: what the compiler knows of a machine, and how fast it is.
//!
//! This crate knows nothing of ONNX, e-graphs or targets. Alone, it reads, checks, prints and runs a program.

pub mod attr;
pub mod backend;
pub mod builder;
pub mod constant;
pub mod diagnostic;
pub mod dim;
pub mod encodings;
pub mod eval;
pub mod graph;
pub mod infer;
pub mod kernel;
pub mod ops;
pub mod random;
pub mod same;
pub mod sources;
pub mod speeds;
pub mod target;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use attr::{Attr, Attrs};
pub use constant::Constant;
pub use dim::Dim;
pub use graph::{ConstId, Module, NodeId, RegionId, ValueId};
pub use lapidary_abi::{ElemType, attended, minifloat};
pub use ops::Op;
pub use tensor::Tensor;
pub use types::{TensorType, Type};
