//! Constants: a logical tensor type and the encoding term whose bytes decode to it.
//!
//! Bytes are reference-counted slices, usually of a mapped file, so a constant costs no memory until
//! something reads it.

use crate::encodings::{DecodeError, Encoding};
use crate::{ElemType, Tensor, Type};
use bytes::Bytes;
use std::sync::Arc;

/// A compile-time tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    encoding: Arc<Encoding>,
}

impl Constant {
    /// A constant from its encoding.
    pub fn new(encoding: Encoding) -> Constant {
        Constant {
            encoding: Arc::new(encoding),
        }
    }

    /// A constant that shares a term.
    pub fn of_term(encoding: Arc<Encoding>) -> Constant {
        Constant { encoding }
    }

    /// A plainly stored constant; `bytes` as in [`Tensor::from_bytes`].
    pub fn dense(elem: ElemType, shape: Vec<usize>, bytes: Bytes) -> Constant {
        Constant::new(crate::encodings::dense::dense(elem, shape, bytes))
    }

    /// A plainly stored copy of `tensor`.
    pub fn from_tensor(tensor: &Tensor) -> Constant {
        Constant::new(crate::encodings::dense::from_tensor(tensor))
    }

    /// Logical element type.
    pub fn elem(&self) -> ElemType {
        self.encoding.elem
    }

    /// Logical shape.
    pub fn shape(&self) -> &[usize] {
        &self.encoding.shape
    }

    /// Type of the value: element type and shape.
    pub fn ty(&self) -> Type {
        Type::tensor(self.elem(), self.shape().iter().copied())
    }

    /// How the bytes decode.
    pub fn encoding(&self) -> &Arc<Encoding> {
        &self.encoding
    }

    /// Decodes the whole constant. Large constants are large: callers that only need few elements, or
    /// only the type, should not call this.
    pub fn decode(&self) -> Result<Tensor, DecodeError> {
        self.encoding.decode()
    }

    /// Bytes that it is stored in.
    pub fn stored_bytes(&self) -> usize {
        self.encoding.stored_bytes() as usize
    }

    /// True if what reads it must decode: see [`Encoding::is_compressed`].
    pub fn is_compressed(&self) -> bool {
        self.encoding.is_compressed()
    }

    /// The raw little-endian bytes, if it is stored densely.
    pub fn dense_bytes(&self) -> Option<&Bytes> {
        (self.encoding.ctor.name == "dense")
            .then_some(self.encoding.blob.as_ref())
            .flatten()
    }
}
