//! Building a tensor from elements of others: the one primitive of all operations that only move data.

use super::call::fail;
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;

/// A tensor under construction, filled from front to back.
pub struct Builder {
    elem: ElemType,
    dims: Vec<usize>,
    bytes: Bytes,
    at: usize,
    strings: Vec<String>,
}

impl Builder {
    /// For a tensor of this type; an error if it would be too large.
    pub fn new(elem: ElemType, dims: Vec<usize>) -> Result<Builder, RunError> {
        let n = count(&dims)?;
        Ok(Builder {
            elem,
            dims,
            bytes: Bytes::zeroed(n * elem.size_bytes())?,
            at: 0,
            strings: Vec::new(),
        })
    }

    /// Appends `len` elements of `from`, which has the same element type, from `start` on.
    pub fn push(&mut self, from: &View, start: usize, len: usize) {
        if self.elem == ElemType::String {
            self.strings
                .extend_from_slice(&from.strings()[start..start + len]);
            return;
        }
        let size = self.elem.size_bytes();
        let n = len * size;
        self.bytes.as_mut_slice()[self.at..self.at + n]
            .copy_from_slice(&from.bytes()[start * size..start * size + n]);
        self.at += n;
    }

    /// Appends `len` zeros (empty strings).
    pub fn push_zeros(&mut self, len: usize) {
        if self.elem == ElemType::String {
            self.strings.extend(std::iter::repeat_n(String::new(), len));
        }
        self.at += len * self.elem.size_bytes();
    }

    /// The tensor; an error if too few elements were pushed.
    pub fn finish(self) -> Result<Tensor, RunError> {
        if self.elem == ElemType::String {
            return Tensor::from_strings(self.dims, self.strings);
        }
        if self.at != self.bytes.as_slice().len() {
            return fail("internal: the result is not filled");
        }
        Tensor::from_bytes(self.elem, self.dims, self.bytes)
    }
}

/// A tensor of shape `dims` whose elements are `from`'s at `indices`; `None` takes `fill`'s only element,
/// or zero.
pub fn take(
    from: &View,
    dims: Vec<usize>,
    fill: Option<&View>,
    indices: impl Iterator<Item = Option<usize>>,
) -> Result<Tensor, RunError> {
    let mut out = Builder::new(from.elem(), dims)?;
    for index in indices {
        match (index, fill) {
            (Some(i), _) => out.push(from, i, 1),
            (None, Some(fill)) => out.push(fill, 0, 1),
            (None, None) => out.push_zeros(1),
        }
    }
    out.finish()
}

/// A tensor whose element at `(i, j, …)` is `from`'s at `places[0][i] + places[1][j] + …`, and `fill`'s only
/// element, or zero, where one of these is `None`.
pub fn take_grid(
    from: &View,
    places: &[Vec<Option<usize>>],
    fill: Option<&View>,
) -> Result<Tensor, RunError> {
    let dims: Vec<usize> = places.iter().map(Vec::len).collect();
    let mut out = Builder::new(from.elem(), dims.clone())?;
    let Some((last, outer)) = places.split_last() else {
        out.push(from, 0, 1);
        return out.finish();
    };
    // Neighbours that stay neighbours move together.
    let mut runs: Vec<(Option<usize>, usize)> = Vec::new();
    for &place in last {
        match runs.last_mut() {
            Some((None, n)) if place.is_none() => *n += 1,
            Some((Some(start), n)) if place == Some(*start + *n) => *n += 1,
            _ => runs.push((place, 1)),
        }
    }
    let nothing = |out: &mut Builder, n: usize| match fill {
        Some(fill) => (0..n).for_each(|_| out.push(fill, 0, 1)),
        None => out.push_zeros(n),
    };
    let mut at = vec![0; outer.len()];
    let rows = if dims.contains(&0) {
        0
    } else {
        count(&dims[..outer.len()])?
    };
    for _ in 0..rows {
        let base: Option<usize> = outer.iter().zip(&at).map(|(p, &i)| p[i]).sum();
        for &(start, n) in &runs {
            match base.zip(start) {
                Some((base, start)) => out.push(from, base + start, n),
                None => nothing(&mut out, n),
            }
        }
        for axis in (0..at.len()).rev() {
            at[axis] += 1;
            if at[axis] < dims[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    out.finish()
}

/// Places of `len` neighbours that are `step` elements apart, for [`take_grid`].
pub fn every(len: usize, step: usize) -> Vec<Option<usize>> {
    (0..len).map(|i| Some(i * step)).collect()
}

/// Elements between neighbours along each axis, of a dense tensor.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i].max(1);
    }
    strides
}

/// All positions of a shape in row-major order.
pub struct Positions {
    dims: Vec<usize>,
    next: Option<Vec<usize>>,
}

impl Positions {
    /// Of `dims`.
    pub fn of(dims: &[usize]) -> Positions {
        Positions {
            dims: dims.to_vec(),
            next: (!dims.contains(&0)).then(|| vec![0; dims.len()]),
        }
    }
}

impl Iterator for Positions {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        let current = self.next.take()?;
        let mut following = current.clone();
        for axis in (0..self.dims.len()).rev() {
            following[axis] += 1;
            if following[axis] < self.dims[axis] {
                self.next = Some(following);
                break;
            }
            following[axis] = 0;
        }
        Some(current)
    }
}

/// Linear index of a position.
pub fn linear(position: &[usize], strides: &[usize]) -> usize {
    position.iter().zip(strides).map(|(p, s)| p * s).sum()
}

/// The shape that both shapes broadcast to.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, RunError> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => fail(format!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// Strides of `dims` seen under the broadcast shape `to`: 0 along stretched axes.
pub fn broadcast_strides(dims: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides(dims);
    let missing = to.len() - dims.len();
    (0..to.len())
        .map(|i| match i.checked_sub(missing) {
            Some(j) if dims[j] != 1 => own[j],
            _ => 0,
        })
        .collect()
}
