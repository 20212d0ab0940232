//! `gather`: slices of a term along an axis, in another order or more than once.
//!
//! ```text
//! children: index, e
//! value[.., i, ..] = e[.., index[i], ..]      (along `axis`)
//! ```
//! A permutation is GPTQ's activation order; an index that repeats is deduplicated rows of an embedding.
//! Source: `GPTQ: Accurate Post-training Compression for Generative Pretrained Transformers`; `Experimental Analysis of
//! Large-scale Learnable Vector Storage Compression`, section 3.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{Attr, ElemType, Tensor, ValueId};

/// The constructor.
pub static GATHER: Constructor = Constructor {
    name: "gather",
    summary: "slices along an axis, by index",
    children: &["index", "e"],
    has_blob: false,
    algebraic: false,
    contents: Some(|e| source(e).map(|_| ())),
    check: |e| axis(e).map(|_| ()),
    decode,
    open,
    sample,
};

/// Slices of `e` along `axis`.
pub fn gather(axis: usize, index: Encoding, e: Encoding) -> Encoding {
    let mut shape = e.shape.clone();
    shape[axis] = index.len();
    let elem = e.elem;
    Encoding::of(
        &GATHER,
        elem,
        shape,
        [("axis", Attr::Int(axis as i64))],
        [index, e],
    )
}

/// The axis, if the shapes fit.
fn axis(e: &Encoding) -> Result<usize, DecodeError> {
    let axis = e.axis_param()?;
    let (index, from) = (&e.children[0], &e.children[1]);
    let mut shape = from.shape.clone();
    if let Some(n) = shape.get_mut(axis) {
        *n = index.len();
    }
    if from.elem != e.elem || !index.elem.is_int() || index.shape.len() != 1 || shape != e.shape {
        return Err(e.error("index and slices do not fit the result"));
    }
    Ok(axis)
}

/// The axis and the index.
fn source(e: &Encoding) -> Result<(usize, Vec<usize>), DecodeError> {
    let axis = axis(e)?;
    let long = e.children[1].shape[axis];
    let legal = |i: &i64| usize::try_from(*i).ok().filter(|&i| i < long);
    let at: Option<Vec<usize>> = e.codes(0)?.iter().map(legal).collect();
    at.map(|at| (axis, at))
        .ok_or_else(|| e.error("an index is outside its axis"))
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (axis, index) = source(e)?;
    let from = e.children[1].decode()?;
    let inner: usize = e.shape[axis + 1..].iter().product();
    let (n, long) = (index.len(), from.shape()[axis]);
    let at = |i: usize| (i / inner / n * long + index[i / inner % n]) * inner + i % inner;
    Ok(from.gather_linear(e.shape.clone(), at))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let (index, from) = (e.child(b, 0), e.child(b, 1));
    let axis = e.params.get("axis").cloned().unwrap_or(Attr::Int(0));
    let index = b.cast(index, ElemType::I64)?;
    b.op_with("gather", &[from, index], [("axis", axis)])
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let axis = (!shape.is_empty()).then(|| s.below(shape.len()))?;
    let mut from = shape.to_vec();
    from[axis] = s.one_of(&[1, 3, 8]);
    let index = s.codes(&[shape[axis]], from[axis] as i64);
    Some(gather(axis, index, s.term(elem, &from)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn columns_change_places() {
        let x = Tensor::from_f64(ElemType::F32, [2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let e = gather(
            1,
            dense::from_tensor(&Tensor::ints(&[1, 0, 1])),
            dense::from_tensor(&x),
        );
        assert_eq!(
            e.decode().expect("valid").floats(),
            Some(&[2.0, 1.0, 2.0, 4.0, 3.0, 4.0][..])
        );
        let outside = gather(
            1,
            dense::from_tensor(&Tensor::ints(&[2])),
            dense::from_tensor(&x),
        );
        assert!(outside.check().is_err());
    }
}
