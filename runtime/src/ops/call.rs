//! What a library operation is given, with the questions that operations ask.

use super::number;
use crate::error::RunError;
use crate::value::{Operand, Tensor, Value, View};
use lapidary_abi::ElemType;
use lapidary_abi::program::{CallAttr, ValueIndex};

/// A call of a library operation.
pub struct Call<'a> {
    /// Name of the operation.
    pub op: &'a str,
    /// Attributes.
    pub attrs: &'a [(String, CallAttr)],
    /// Operands; `None` for one left out.
    pub operands: Vec<Option<Operand<'a>>>,
    /// Number of results that are used.
    pub results: usize,
    /// Looks up the tensor of a [`CallAttr::Value`].
    pub constant: &'a dyn Fn(ValueIndex) -> Result<Operand<'a>, RunError>,
}

/// What operations return.
pub type Results = Result<Vec<Value>, RunError>;

/// An error of an operation; its name is added by the caller.
pub fn fail<T>(message: impl Into<String>) -> Result<T, RunError> {
    Err(RunError::Input(message.into()))
}

/// One tensor as the result.
pub fn one(tensor: Tensor) -> Results {
    Ok(vec![Value::Tensor(tensor)])
}

impl<'a> Call<'a> {
    /// Operand `n`, whatever it is.
    pub fn operand(&self, n: usize) -> Result<&Operand<'a>, RunError> {
        match self.operands.get(n) {
            Some(Some(operand)) => Ok(operand),
            _ => fail(format!("operand {n} is missing")),
        }
    }

    /// Whether operand `n` is given.
    pub fn has(&self, n: usize) -> bool {
        matches!(self.operands.get(n), Some(Some(_)))
    }

    /// Operand `n`, a tensor.
    pub fn tensor(&self, n: usize) -> Result<&View<'a>, RunError> {
        match self.operand(n)? {
            Operand::Tensor(view) => Ok(view),
            other => fail(format!(
                "operand {n} must be a tensor, found {}",
                other.describe()
            )),
        }
    }

    /// Operand `n`, a tensor, if given.
    pub fn optional(&self, n: usize) -> Result<Option<&View<'a>>, RunError> {
        if self.has(n) {
            self.tensor(n).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Operand `n`, a sequence.
    pub fn sequence(&self, n: usize) -> Result<&'a [Value], RunError> {
        match self.operand(n)? {
            Operand::Sequence(s) => Ok(s),
            other => fail(format!(
                "operand {n} must be a sequence, found {}",
                other.describe()
            )),
        }
    }

    /// The integers of operand `n`, if given.
    pub fn ints(&self, n: usize) -> Result<Option<Vec<i64>>, RunError> {
        let Some(view) = self.optional(n)? else {
            return Ok(None);
        };
        if !view.elem().is_int() {
            return fail(format!(
                "operand {n} must be of integers, found {}",
                view.elem()
            ));
        }
        Ok(Some(
            (0..view.len())
                .map(|i| number::int(view, i) as i64)
                .collect(),
        ))
    }

    /// The only integer of operand `n`, if given.
    pub fn int(&self, n: usize) -> Result<Option<i64>, RunError> {
        match self.ints(n)?.as_deref() {
            None => Ok(None),
            Some(&[value]) => Ok(Some(value)),
            Some(other) => fail(format!(
                "operand {n} must hold one number, found {}",
                other.len()
            )),
        }
    }

    /// The first number of operand `n`, if given and not empty.
    pub fn float(&self, n: usize) -> Result<Option<f64>, RunError> {
        Ok(self
            .optional(n)?
            .filter(|v| !v.is_empty())
            .map(|v| number::float(v, 0)))
    }

    fn attr(&self, name: &str) -> Option<&'a CallAttr> {
        self.attrs.iter().find(|(n, _)| n == name).map(|(_, a)| a)
    }

    /// An integer attribute.
    pub fn attr_int(&self, name: &str, default: i64) -> i64 {
        match self.attr(name) {
            Some(CallAttr::Int(i)) => *i,
            _ => default,
        }
    }

    /// An integer attribute without default.
    pub fn attr_int_opt(&self, name: &str) -> Option<i64> {
        match self.attr(name) {
            Some(CallAttr::Int(i)) => Some(*i),
            _ => None,
        }
    }

    /// A list of integers; `None` if left out.
    pub fn attr_ints(&self, name: &str) -> Option<&'a [i64]> {
        match self.attr(name) {
            Some(CallAttr::Ints(i)) => Some(i),
            _ => None,
        }
    }

    /// A float attribute; `None` if left out.
    pub fn attr_float(&self, name: &str) -> Option<f32> {
        match self.attr(name) {
            Some(CallAttr::Float(f)) => Some(*f),
            _ => None,
        }
    }

    /// A list of floats; `None` if left out.
    pub fn attr_floats(&self, name: &str) -> Option<&'a [f32]> {
        match self.attr(name) {
            Some(CallAttr::Floats(f)) => Some(f),
            _ => None,
        }
    }

    /// A text attribute.
    pub fn attr_str(&self, name: &str, default: &'a str) -> &'a str {
        match self.attr(name) {
            Some(CallAttr::Str(s)) => s,
            _ => default,
        }
    }

    /// A list of texts; `None` if left out.
    pub fn attr_strs(&self, name: &str) -> Option<&'a [String]> {
        match self.attr(name) {
            Some(CallAttr::Strs(s)) => Some(s),
            _ => None,
        }
    }

    /// An element type attribute, also as ONNX's number.
    pub fn attr_elem(&self, name: &str) -> Option<ElemType> {
        match self.attr(name) {
            Some(CallAttr::Elem(e)) => Some(*e),
            Some(CallAttr::Int(n)) => ElemType::from_onnx(i32::try_from(*n).ok()?),
            _ => None,
        }
    }

    /// A tensor attribute.
    pub fn attr_tensor(&self, name: &str) -> Result<Option<View<'a>>, RunError> {
        match self.attr(name) {
            Some(CallAttr::Value(v)) => match (self.constant)(*v)? {
                Operand::Tensor(view) => Ok(Some(view)),
                other => fail(format!(
                    "attribute `{name}` must be a tensor, found {}",
                    other.describe()
                )),
            },
            _ => Ok(None),
        }
    }
}

/// An axis counted from the front; `rank` itself is out of range.
pub fn axis(axis: i64, rank: usize) -> Result<usize, RunError> {
    let from_front = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    match usize::try_from(from_front) {
        Ok(a) if a < rank => Ok(a),
        _ => fail(format!("axis {axis} is out of range for rank {rank}")),
    }
}

/// A length that is not negative.
pub fn length(value: i64) -> Result<usize, RunError> {
    usize::try_from(value).or_else(|_| fail(format!("{value} is not a length")))
}

/// The element type that both operands must have.
pub fn same_elem(a: &View, b: &View) -> Result<ElemType, RunError> {
    if a.elem() == b.elem() {
        Ok(a.elem())
    } else {
        fail(format!(
            "element types differ: {} and {}",
            a.elem(),
            b.elem()
        ))
    }
}
