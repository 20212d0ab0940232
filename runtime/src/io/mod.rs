//! Files of inputs and outputs: ONNX protobuf (`.pb`) and numpy (`.npy`, `.npz`).
//!
//! Written by hand because the program that reads them is small and has no other use for the libraries.

pub mod folder;
mod inflate;
pub mod npy;
pub mod npz;
pub mod pb;
pub mod protobuf;

use crate::error::RunError;

/// An error about a file's content.
pub(crate) fn bad<T>(message: impl Into<String>) -> Result<T, RunError> {
    Err(RunError::Input(message.into()))
}
