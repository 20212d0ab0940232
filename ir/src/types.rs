//! Types of values: tensors with symbolic shapes, sequences, optionals.

use crate::{Dim, ElemType};
use std::fmt;

/// Longest dimension that is a number.
pub const MAX_DIM: i64 = 1 << 48;

/// Most dimensions.
pub const MAX_RANK: usize = 64;

/// Type of a tensor. `shape` is `None` while the rank is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub elem: ElemType,
    /// Dimensions, outermost first.
    pub shape: Option<Vec<Dim>>,
}

/// Type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A tensor.
    Tensor(TensorType),
    /// Any number of values of one type.
    Sequence(Box<Type>),
    /// A value or nothing.
    Optional(Box<Type>),
}

impl TensorType {
    /// A tensor type of known shape.
    pub fn new(elem: ElemType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> TensorType {
        TensorType {
            elem,
            shape: Some(shape.into_iter().map(Into::into).collect()),
        }
    }

    /// A tensor type of unknown rank.
    pub fn unranked(elem: ElemType) -> TensorType {
        TensorType { elem, shape: None }
    }

    /// Rank, if known.
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// The shape as numbers, if every dimension is one.
    pub fn const_shape(&self) -> Option<Vec<usize>> {
        self.shape
            .as_ref()?
            .iter()
            .map(|d| usize::try_from(d.as_const()?).ok())
            .collect()
    }
}

impl Type {
    /// A tensor type of known shape.
    pub fn tensor(elem: ElemType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> Type {
        Type::Tensor(TensorType::new(elem, shape))
    }

    /// A tensor type of unknown rank.
    pub fn unranked(elem: ElemType) -> Type {
        Type::Tensor(TensorType::unranked(elem))
    }

    /// The tensor type, if it is one.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// Element type of a tensor.
    pub fn elem(&self) -> Option<ElemType> {
        self.as_tensor().map(|t| t.elem)
    }

    /// Shape of a tensor of known rank.
    pub fn shape(&self) -> Option<&[Dim]> {
        self.as_tensor()?.shape.as_deref()
    }

    /// An error if no value can have it: a length below 0 or above [`MAX_DIM`], or more than [`MAX_RANK`]
    /// dimensions. Type rules may compute with lengths of possible types without a thought of overflow.
    pub fn check(&self) -> Result<(), String> {
        let shape = match self {
            Type::Tensor(t) => t.shape.as_deref().unwrap_or_default(),
            Type::Sequence(t) | Type::Optional(t) => return t.check(),
        };
        if shape.len() > MAX_RANK {
            let rank = shape.len();
            return Err(format!("rank {rank} is above the limit of {MAX_RANK}"));
        }
        let impossible = |d: &&Dim| d.as_const().is_some_and(|d| !(0..=MAX_DIM).contains(&d));
        match shape.iter().find(impossible) {
            Some(d) => Err(format!(
                "dimension {d} is impossible: lengths are 0 to {MAX_DIM}"
            )),
            None => Ok(()),
        }
    }

    /// Replaces symbols in every dimension (see [`Dim::substitute`]).
    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Dim>) -> Type {
        match self {
            Type::Tensor(t) => Type::Tensor(TensorType {
                elem: t.elem,
                shape: t
                    .shape
                    .as_ref()
                    .map(|s| s.iter().map(|d| d.substitute(with)).collect()),
            }),
            Type::Sequence(t) => Type::Sequence(Box::new(t.substitute(with))),
            Type::Optional(t) => Type::Optional(Box::new(t.substitute(with))),
        }
    }
}

impl fmt::Display for Type {
    /// `f32[batch,4]`, `f32[*]` (unknown rank), `sequence<f32[*]>`, `optional<…>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(TensorType { elem, shape: None }) => write!(f, "{elem}[*]"),
            Type::Tensor(TensorType {
                elem,
                shape: Some(shape),
            }) => {
                let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
                write!(f, "{elem}[{}]", dims.join(","))
            }
            Type::Sequence(t) => write!(f, "sequence<{t}>"),
            Type::Optional(t) => write!(f, "optional<{t}>"),
        }
    }
}
