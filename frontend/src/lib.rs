//! Files of other programs into the graph IR.

pub mod onnx;
