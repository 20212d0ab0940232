//! Index maps: how the elements of a result are found in the operands.
//!
//! Data movement (transpose, slice, pad, concat, scatter …) is one shape and one function from a linear
//! result index to a linear operand index; what is written here is shared by all of them.

use super::{OpError, checked_count};
use crate::Tensor;
use crate::tensor::{Data, strides};

/// Maps a linear index of a tensor of shape `out` to `start + sum(index[i] * steps[i])`.
pub fn strided(out: &[usize], steps: Vec<isize>, start: usize) -> impl Fn(usize) -> usize + use<> {
    let all = strides(out);
    let parts: Vec<(usize, usize, isize)> = (0..out.len())
        .filter(|&i| steps[i] != 0)
        .map(|i| (all[i], out[i].max(1), steps[i]))
        .collect();
    move |i| {
        let offset: isize = parts
            .iter()
            .map(|&(stride, len, step)| (i / stride % len) as isize * step)
            .sum();
        start.wrapping_add_signed(offset)
    }
}

/// Maps a linear index of `out` to the linear index of the operand of shape `operand` broadcast to it.
pub fn broadcast_index(operand: &[usize], out: &[usize]) -> impl Fn(usize) -> usize + use<> {
    let own = strides(operand);
    let skip = out.len() - operand.len();
    let steps = (0..out.len())
        .map(|i| match i.checked_sub(skip) {
            Some(j) if operand[j] != 1 => own[j] as isize,
            _ => 0,
        })
        .collect();
    strided(out, steps, 0)
}

/// Calls `f` with every linear index of `shape` and its coordinates.
pub fn for_each_index(shape: &[usize], mut f: impl FnMut(usize, &[usize])) {
    let mut at = vec![0; shape.len()];
    for i in 0..shape.iter().product() {
        f(i, &at);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
}

/// Linear index of coordinates.
pub fn linear(at: &[usize], strides: &[usize]) -> usize {
    at.iter().zip(strides).map(|(a, s)| a * s).sum()
}

/// `shape` seen as `[outer, shape[axis], inner]`.
pub fn around_axis(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (
        shape[..axis].iter().product(),
        shape[axis],
        shape[axis + 1..].iter().product(),
    )
}

/// A tensor of `shape` whose element `i` is element `pick(i).1` of `sources[pick(i).0]`. The sources must
/// have one element type.
pub fn assemble(
    sources: &[&Tensor],
    shape: Vec<usize>,
    pick: impl Fn(usize) -> (usize, usize),
) -> Result<Tensor, OpError> {
    let elem = sources
        .first()
        .ok_or_else(|| OpError::new("at least one operand is needed"))?
        .elem();
    if let Some(other) = sources.iter().find(|s| s.elem() != elem) {
        return Err(OpError::new(format!(
            "operands have element types {elem} and {}, which must be equal",
            other.elem()
        )));
    }
    let n = checked_count(&shape)?;
    macro_rules! class {
        ($variant:ident) => {{
            let parts: Vec<_> = sources
                .iter()
                .filter_map(|s| match s.data() {
                    Data::$variant(v) => Some(v.as_slice()),
                    _ => None,
                })
                .collect();
            let elements = (0..n).map(|i| {
                let (which, at) = pick(i);
                parts[which][at].clone()
            });
            Data::$variant(elements.collect())
        }};
    }
    let data = match sources[0].data() {
        Data::Float(_) => class!(Float),
        Data::Int(_) => class!(Int),
        Data::Complex(_) => class!(Complex),
        Data::Str(_) => class!(Str),
    };
    Ok(Tensor::new(elem, shape, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_find_their_elements() {
        let transposed = strided(&[3, 2], vec![1, 3], 0);
        assert_eq!(
            (0..6).map(transposed).collect::<Vec<_>>(),
            [0, 3, 1, 4, 2, 5]
        );
        let reversed = strided(&[3], vec![-1], 2);
        assert_eq!((0..3).map(reversed).collect::<Vec<_>>(), [2, 1, 0]);
        let column = broadcast_index(&[2, 1], &[2, 2]);
        assert_eq!((0..4).map(column).collect::<Vec<_>>(), [0, 0, 1, 1]);
    }
}
