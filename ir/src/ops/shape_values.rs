//! Shapes as graph values: what decompositions need when dimensions are not numbers.
//!
//! Known dimensions become constants; others are read from the `shape` of a value at run time. Either way
//! the contents rules see through them, so result types stay exact.

use super::OpError;
use crate::ValueId;
use crate::builder::Builder;

/// Length of `axis` of `x` as an `i64[1]` value.
pub fn axis_len(b: &mut Builder, x: ValueId, axis: usize) -> Result<ValueId, OpError> {
    let shape = b.shape(x)?;
    let dim = shape.get(axis).ok_or_else(|| {
        OpError::new(format!(
            "axis {axis} is out of range for rank {}",
            shape.len()
        ))
    })?;
    if let Some(len) = dim.as_const() {
        return Ok(b.ints(&[len]));
    }
    let (all, at) = (b.op("shape", &[x])?, b.ints(&[axis as i64]));
    b.op("gather", &[all, at])
}

/// Product of `i64[1]` values as an `i64[1]` value; 1 for none.
pub fn product(b: &mut Builder, lens: &[ValueId]) -> Result<ValueId, OpError> {
    match lens.split_first() {
        None => Ok(b.ints(&[1])),
        Some((&first, rest)) => rest.iter().try_fold(first, |p, &l| b.op("mul", &[p, l])),
    }
}

/// `x` reshaped to the dimensions given as `i64[1]` values.
pub fn reshape_to(b: &mut Builder, x: ValueId, lens: &[ValueId]) -> Result<ValueId, OpError> {
    let shape = if lens.is_empty() {
        b.ints(&[])
    } else {
        b.op_with("concat", lens, [("axis", 0i64.into())])?
    };
    // A dimension may really be 0, so 0 must not mean "as before".
    b.op_with("reshape", &[x, shape], [("allowzero", 1i64.into())])
}
