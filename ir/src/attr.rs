//! Attributes: compile-time parameters of a node, by name.

use crate::{ElemType, Tensor, Type};
use std::collections::BTreeMap;

/// One attribute value.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// Integer, also truth values (0 and 1).
    Int(i64),
    /// List of integers.
    Ints(Vec<i64>),
    /// Float.
    Float(f32),
    /// List of floats.
    Floats(Vec<f32>),
    /// Text.
    Str(String),
    /// List of texts.
    Strs(Vec<String>),
    /// An element type.
    Elem(ElemType),
    /// A value type.
    Type(Type),
    /// A small tensor.
    Tensor(Tensor),
}

/// Attributes of a node, ordered by name.
pub type Attrs = BTreeMap<String, Attr>;

macro_rules! conversions {
    ($($from:ty => $variant:ident,)*) => { $(
        impl From<$from> for Attr {
            fn from(value: $from) -> Attr { Attr::$variant(value) }
        }
    )* };
}

conversions! {
    i64 => Int, Vec<i64> => Ints, f32 => Float, Vec<f32> => Floats, String => Str, Vec<String> => Strs,
    ElemType => Elem, Type => Type, Tensor => Tensor,
}

impl From<&str> for Attr {
    fn from(value: &str) -> Attr {
        Attr::Str(value.to_owned())
    }
}

impl From<bool> for Attr {
    fn from(value: bool) -> Attr {
        Attr::Int(i64::from(value))
    }
}
