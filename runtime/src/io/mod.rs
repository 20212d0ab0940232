//! Files of inputs and outputs: ONNX protobuf (`.pb`) and numpy (`.npy`, `.npz`).
//!
//! The few fields that are needed are read by hand: the runtime travels in every executable. Compression is
//! left to a library.

pub mod folder;
pub mod npy;
pub mod npz;
pub mod pb;
pub mod protobuf;

use crate::error::RunError;

/// An error about a file's content.
pub(crate) fn bad<T>(message: impl Into<String>) -> Result<T, RunError> {
    Err(RunError::Input(message.into()))
}
