//! What `sum` and `emul` share: terms of one shape, combined element by element from left to right.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{ElemType, Tensor, ValueId};

/// A term decoding to `elem`.
pub fn of(ctor: &'static Constructor, elem: ElemType, terms: Vec<Encoding>) -> Encoding {
    let shape = terms.first().map_or(vec![], |e| e.shape.clone());
    Encoding::of(ctor, elem, shape, [], terms)
}

pub fn check(e: &Encoding) -> Result<(), DecodeError> {
    e.check_floats()?;
    if e.children.is_empty() || e.children.iter().any(|c| c.shape != e.shape) {
        return Err(e.error("needs terms, all of the result's shape"));
    }
    Ok(())
}

pub fn decode(e: &Encoding, combine: fn(f64, f64) -> f64) -> Result<Tensor, DecodeError> {
    let mut values: Vec<f64> = e.floats(0)?.iter().map(|&v| e.round(v)).collect();
    for i in 1..e.children.len() {
        for (a, &v) in values.iter_mut().zip(&e.floats(i)?) {
            *a = e.round(combine(*a, e.round(v)));
        }
    }
    Ok(e.tensor(values))
}

pub fn open(e: &Encoding, b: &mut Builder, op: &str) -> Result<ValueId, OpError> {
    let mut y = e.worked(b, 0)?;
    for i in 1..e.children.len() {
        let next = e.worked(b, i)?;
        y = b.op(op, &[y, next])?;
    }
    b.cast(y, e.elem)
}

pub fn sample(
    ctor: &'static Constructor,
    s: &mut Sampler,
    elem: ElemType,
    shape: &[usize],
) -> Option<Encoding> {
    let n = elem.is_float().then(|| s.below(3) + 1)?;
    let terms = (0..n).map(|_| s.term(ElemType::F32, shape)).collect();
    Some(of(ctor, elem, terms))
}
