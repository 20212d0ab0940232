//! What an op's functions are given: the node, and its operands' types or values.

use crate::graph::Node;
use crate::tensor::{Tensor, Value};
use crate::{Attr, Dim, ElemType, Type};
use std::cell::Cell;

/// Why an op cannot be typed or evaluated. The caller adds the node's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OpError(pub String);

impl OpError {
    /// An error with this text: lower case, no full stop, names in backquotes.
    pub fn new(text: impl Into<String>) -> OpError {
        OpError(text.into())
    }
}

macro_rules! attr_access {
    ($ctx:ident) => {
        impl $ctx<'_> {
            /// The attribute or its default.
            pub fn attr(&self, name: &str) -> Option<Attr> {
                self.node.attr(name)
            }

            /// Integer attribute or its default; an error if absent.
            pub fn int(&self, name: &str) -> Result<i64, OpError> {
                self.int_opt(name)
                    .ok_or_else(|| OpError::new(format!("attribute `{name}` is missing")))
            }

            /// Integer attribute, if given or defaulted.
            pub fn int_opt(&self, name: &str) -> Option<i64> {
                match self.attr(name) {
                    Some(Attr::Int(v)) => Some(v),
                    _ => None,
                }
            }

            /// True if the integer attribute is non-zero.
            pub fn flag(&self, name: &str) -> bool {
                self.int_opt(name).is_some_and(|v| v != 0)
            }

            /// Integer list, if given or defaulted.
            pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
                match self.attr(name) {
                    Some(Attr::Ints(v)) => Some(v),
                    _ => None,
                }
            }

            /// Float attribute, if given or defaulted.
            pub fn float(&self, name: &str) -> Option<f32> {
                match self.attr(name) {
                    Some(Attr::Float(v)) => Some(v),
                    _ => None,
                }
            }

            /// Float list, if given (empty if not).
            pub fn floats(&self, name: &str) -> Vec<f32> {
                match self.attr(name) {
                    Some(Attr::Floats(v)) => v,
                    _ => vec![],
                }
            }

            /// Text list, if given (empty if not).
            pub fn strs(&self, name: &str) -> Vec<String> {
                match self.attr(name) {
                    Some(Attr::Strs(v)) => v,
                    _ => vec![],
                }
            }

            /// Tensor attribute, if given.
            pub fn tensor_attr(&self, name: &str) -> Option<Tensor> {
                match self.attr(name) {
                    Some(Attr::Tensor(v)) => Some(v),
                    _ => None,
                }
            }

            /// Text attribute, if given or defaulted (empty if not).
            pub fn str(&self, name: &str) -> String {
                match self.attr(name) {
                    Some(Attr::Str(v)) => v,
                    _ => String::new(),
                }
            }

            /// Element-type attribute, if given or defaulted.
            pub fn elem_attr(&self, name: &str) -> Option<ElemType> {
                match self.attr(name) {
                    Some(Attr::Elem(v)) => Some(v),
                    _ => None,
                }
            }
        }
    };
}

/// For type rules.
pub struct InferCtx<'a> {
    /// The node.
    pub node: &'a Node,
    /// Operand types; `None` for one left out.
    pub types: Vec<Option<&'a Type>>,
    /// Operand contents where they are known integers (constants and shape arithmetic), row-major.
    pub contents: Vec<Option<Vec<Dim>>>,
    /// Constant operands that are cheap to decode (at most a few thousand elements).
    pub constants: Vec<Option<Tensor>>,
    /// Types that the node's regions yield.
    pub region_outputs: Vec<Vec<Type>>,
    /// Counter for fresh symbols.
    pub fresh: &'a Cell<u32>,
}

/// For evaluation.
pub struct EvalCtx<'a> {
    /// The node.
    pub node: &'a Node,
    /// Operands; `None` for one left out.
    pub operands: Vec<Option<&'a Value>>,
    /// Inferred types of the results, as far as known.
    pub result_types: Vec<&'a Type>,
}

attr_access!(InferCtx);
attr_access!(EvalCtx);

impl InferCtx<'_> {
    /// Type of operand `i`, which must be given.
    pub fn ty(&self, i: usize) -> Result<&Type, OpError> {
        self.types
            .get(i)
            .copied()
            .flatten()
            .ok_or_else(|| OpError::new(format!("operand {i} is missing")))
    }

    /// True if operand `i` is given.
    pub fn has(&self, i: usize) -> bool {
        matches!(self.types.get(i), Some(Some(_)))
    }

    /// Element type of operand `i`, which must be a tensor.
    pub fn elem(&self, i: usize) -> Result<ElemType, OpError> {
        let ty = self.ty(i)?;
        ty.elem()
            .ok_or_else(|| OpError::new(format!("operand {i} must be a tensor, found `{ty}`")))
    }

    /// Shape of operand `i` if its rank is known; an error if it is no tensor.
    pub fn shape(&self, i: usize) -> Result<Option<&[Dim]>, OpError> {
        self.elem(i)?;
        Ok(self.ty(i)?.shape())
    }

    /// Contents of integer operand `i` as numbers, if all are known.
    pub fn const_ints(&self, i: usize) -> Option<Vec<i64>> {
        self.contents
            .get(i)?
            .as_ref()?
            .iter()
            .map(Dim::as_const)
            .collect()
    }

    /// Contents of integer operand `i` as dimensions, if known.
    pub fn dims(&self, i: usize) -> Option<&[Dim]> {
        self.contents.get(i)?.as_deref()
    }

    /// A dimension that nothing is known about yet.
    pub fn fresh_dim(&self) -> Dim {
        let n = self.fresh.get();
        self.fresh.set(n + 1);
        Dim::sym(&format!("?{n}"))
    }

    /// Resolves a possibly negative axis against a rank.
    pub fn axis(axis: i64, rank: usize) -> Result<usize, OpError> {
        resolve_axis(axis, rank)
    }
}

impl EvalCtx<'_> {
    /// True if operand `i` is given.
    pub fn has(&self, i: usize) -> bool {
        matches!(self.operands.get(i), Some(Some(_)))
    }

    /// Operand `i`, which must be given.
    pub fn value(&self, i: usize) -> Result<&Value, OpError> {
        self.operands
            .get(i)
            .copied()
            .flatten()
            .ok_or_else(|| OpError::new(format!("operand {i} is missing")))
    }

    /// Tensor operand `i`.
    pub fn tensor(&self, i: usize) -> Result<&Tensor, OpError> {
        self.value(i)?
            .as_tensor()
            .ok_or_else(|| OpError::new(format!("operand {i} must be a tensor")))
    }

    /// Tensor operand `i`, if given.
    pub fn tensor_opt(&self, i: usize) -> Option<&Tensor> {
        self.operands.get(i).copied().flatten()?.as_tensor()
    }

    /// Integer contents of operand `i`.
    pub fn i64s(&self, i: usize) -> Result<Vec<i64>, OpError> {
        self.tensor(i)?
            .to_i64s()
            .ok_or_else(|| OpError::new(format!("operand {i} must hold integers")))
    }
}

/// Resolves a possibly negative axis against a rank.
pub fn resolve_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let resolved = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(resolved)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| OpError::new(format!("axis {axis} is out of range for rank {rank}")))
}

/// Shape of a numpy-style broadcast. Symbols are taken as equal to a constant other than 1 that meets
/// them; two different symbols give an error only when both are numbers that differ.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| {
        (i + s.len())
            .checked_sub(rank)
            .map_or(Dim::from(1i64), |j| s[j].clone())
    };
    (0..rank)
        .map(|i| {
            let (x, y) = (at(a, i), at(b, i));
            match (x.as_const(), y.as_const()) {
                (Some(1), _) => Ok(y),
                (_, Some(1)) => Ok(x),
                (Some(p), Some(q)) if p != q => Err(OpError::new(format!(
                    "dimensions {p} and {q} do not broadcast"
                ))),
                (Some(_), _) => Ok(x),
                (_, Some(_)) => Ok(y),
                (None, None) if x == y => Ok(x),
                // Either may still be 1 at run time: the larger of the two is right in every legal case.
                (None, None) => Ok(x.max_dim(&y)),
            }
        })
        .collect()
}

/// Shape of a broadcast of concrete shapes.
pub fn broadcast_shapes(a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            (x, y) if x == y => Ok(x),
            (x, y) => Err(OpError::new(format!(
                "dimensions {x} and {y} do not broadcast"
            ))),
        })
        .collect()
}

/// Most elements that an evaluated result may have.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// Number of elements of a shape that an op is about to allocate; an error if that is absurd. A dimension 0
/// counts as 1 there, since strides are products of the others.
pub fn checked_count(shape: &[usize]) -> Result<usize, OpError> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= MAX_ELEMENTS)
        .map(|n| if shape.contains(&0) { 0 } else { n })
        .ok_or_else(|| OpError::new(format!("a result of shape {shape:?} is too large")))
}
