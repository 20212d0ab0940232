//! The algebra of weight encodings: terms that say how stored bytes decode to a tensor.
//!
//! A term is a tree of *constructors*. Each constructor is one file here and one line in
//! [`ENCODINGS`]; it states its stored size, validity and decode once, and everything else (text
//! form, evaluator, size reports, tests) is derived from the list.

pub mod affine;
pub mod dense;
pub mod int;

use crate::{Attrs, ElemType, Tensor};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Every constructor.
pub static ENCODINGS: &[&Constructor] = &[&dense::DENSE, &int::INT, &affine::AFFINE];

/// Definition of one constructor.
#[derive(Debug)]
pub struct Constructor {
    /// Name in the text form.
    pub name: &'static str,
    /// One line: what the bytes are.
    pub summary: &'static str,
    /// Names of its child terms, in order; a trailing `?` marks an optional last child.
    pub children: &'static [&'static str],
    /// True if it owns bytes of its own.
    pub has_blob: bool,
    /// Bytes that this constructor itself stores (children count their own).
    pub own_bytes: fn(&Encoding) -> u64,
    /// Checks parameters, children's shapes and the length of the bytes.
    pub check: fn(&Encoding) -> Result<(), DecodeError>,
    /// Decodes a checked term.
    pub decode: fn(&Encoding) -> Result<Tensor, DecodeError>,
}

/// A term: a constructor applied to parameters, child terms and bytes.
#[derive(Clone, Debug)]
pub struct Encoding {
    /// The constructor.
    pub ctor: &'static Constructor,
    /// Logical element type of the decoded tensor.
    pub elem: ElemType,
    /// Logical shape of the decoded tensor.
    pub shape: Vec<usize>,
    /// Parameters by name.
    pub params: Attrs,
    /// Child terms.
    pub children: Vec<Arc<Encoding>>,
    /// Bytes of its own.
    pub blob: Option<Bytes>,
}

/// Why a term is not valid or its bytes do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encoding `{constructor}`: {reason}")]
pub struct DecodeError {
    /// Name of the constructor.
    pub constructor: &'static str,
    /// What is wrong.
    pub reason: String,
}

impl Encoding {
    /// An error about this term.
    pub fn error(&self, reason: impl Into<String>) -> DecodeError {
        DecodeError {
            constructor: self.ctor.name,
            reason: reason.into(),
        }
    }

    /// Checks the whole term.
    pub fn check(&self) -> Result<(), DecodeError> {
        self.children.iter().try_for_each(|c| c.check())?;
        (self.ctor.check)(self)
    }

    /// Decodes the whole term after checking it.
    pub fn decode(&self) -> Result<Tensor, DecodeError> {
        (self.ctor.check)(self)?;
        (self.ctor.decode)(self)
    }

    /// All stored bytes of the term.
    pub fn stored_bytes(&self) -> u64 {
        (self.ctor.own_bytes)(self) + self.children.iter().map(|c| c.stored_bytes()).sum::<u64>()
    }

    /// Number of logical elements.
    pub fn len(&self) -> usize {
        crate::tensor::count(&self.shape)
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All stored bits divided by logical elements.
    pub fn bits_per_weight(&self) -> f64 {
        self.stored_bytes() as f64 * 8.0 / self.len().max(1) as f64
    }

    /// Integer parameter.
    pub fn int_param(&self, name: &str) -> Option<i64> {
        match self.params.get(name) {
            Some(crate::Attr::Int(v)) => Some(*v),
            _ => None,
        }
    }
}

impl PartialEq for Encoding {
    fn eq(&self, other: &Encoding) -> bool {
        self.ctor.name == other.ctor.name
            && self.elem == other.elem
            && self.shape == other.shape
            && self.params == other.params
            && self.children == other.children
            && self.blob == other.blob
    }
}

/// The constructor with this name.
pub fn constructor(name: &str) -> Option<&'static Constructor> {
    ENCODINGS.iter().copied().find(|c| c.name == name)
}

impl fmt::Display for Encoding {
    /// The term as the text form writes it, without its bytes: `int{bits = 4} u8[4,32]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::text::term(self))
    }
}
