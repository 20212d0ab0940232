//! The block rule: how a part with fewer elements is spread over a tensor.
//!
//! The part has the tensor's rank. Along an axis of length `n` on which it has `s` elements, each holds for
//! `ceil(n / s)` elements in a row; `s = 1` is shared by the whole axis. Per tensor, per channel and per group are this
//! one rule.

use super::{DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::{Tensor, ValueId, tensor};

/// Elements of one block along an axis.
pub fn block(n: usize, s: usize) -> usize {
    n.div_ceil(s.max(1)).max(1)
}

/// Refuses a part that cannot be spread over the shape.
pub fn check(e: &Encoding, part: &[usize], shape: &[usize]) -> Result<(), DecodeError> {
    let fits =
        |(&s, &n): (&usize, &usize)| s >= 1 && s <= n.max(1) && block(n, s) * (s - 1) < n.max(1);
    if part.len() == shape.len() && part.iter().zip(shape).all(fits) {
        Ok(())
    } else {
        Err(e.error(format!(
            "a part of shape {part:?} cannot be spread over {shape:?}"
        )))
    }
}

/// Linear index, into a part of shape `blocks`, of the block that holds element `i` of `shape`.
pub fn index(i: usize, shape: &[usize], blocks: &[usize]) -> usize {
    let (mut rest, mut at) = (i, 0);
    let (stride, block_stride) = (tensor::strides(shape), tensor::strides(blocks));
    for axis in 0..shape.len() {
        at += rest / stride[axis] / block(shape[axis], blocks[axis]) * block_stride[axis];
        rest %= stride[axis];
    }
    at
}

/// The value of a part, in a shape that broadcasts to `shape`.
pub fn spread(
    b: &mut Builder,
    mut v: ValueId,
    blocks: &[usize],
    shape: &[usize],
) -> Result<ValueId, OpError> {
    for (axis, (&s, &n)) in blocks.iter().zip(shape).enumerate() {
        if s == 1 || s == n {
            continue;
        }
        let size = block(n, s);
        if s * size == n {
            // An axis for the elements of a block, and both together again: index arithmetic only.
            let now: Vec<Len> = b
                .shape(v)?
                .iter()
                .map(|d| Len::N(d.as_const().unwrap_or(-1)))
                .collect();
            let mut wide = now.clone();
            wide.insert(axis + 1, Len::N(size as i64));
            let mut long = now;
            long[axis] = Len::N(n as i64);
            v = b.unsqueeze(v, &[axis as i64 + 1])?;
            v = b.expand(v, &wide)?;
            v = b.reshape(v, &long)?;
        } else {
            let (places, size) = (
                b.iota(Len::N(n as i64))?,
                b.constant(&Tensor::int(size as i64)),
            );
            let places = b.op("div", &[places, size])?;
            v = b.op_with("gather", &[v, places], [("axis", (axis as i64).into())])?;
        }
    }
    Ok(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_blocks_end_early() {
        let at: Vec<usize> = (0..7).map(|i| index(i, &[7], &[3])).collect();
        assert_eq!(at, [0, 0, 0, 1, 1, 1, 2]);
        let at: Vec<usize> = (0..8).map(|i| index(i, &[2, 4], &[1, 2])).collect();
        assert_eq!(at, [0, 0, 1, 1, 0, 0, 1, 1]);
    }
}
