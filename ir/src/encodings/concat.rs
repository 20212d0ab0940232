//! `concat`: terms one after the other along an axis.
//!
//! ```text
//! children: e*                       (at least one)
//! ```
//! Shards of a checkpoint, fused projections, scales of their own for the shards of a ternary model.
//! Source: `Spectra: A Comprehensive Study of Ternary, Quantized, and FP16 Language Models`.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::tensor::{Data, count};
use crate::{Attr, ElemType, Tensor, ValueId};

/// The constructor.
pub static CONCAT: Constructor = Constructor {
    name: "concat",
    summary: "terms one after the other along an axis",
    children: &["e*"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check,
    decode,
    open,
    sample,
};

/// The terms along `axis`.
pub fn concat(axis: usize, terms: Vec<Encoding>) -> Encoding {
    let mut shape = terms.first().map_or(vec![], |e| e.shape.clone());
    let elem = terms.first().map_or(ElemType::F32, |e| e.elem);
    if let Some(n) = shape.get_mut(axis) {
        *n = terms.iter().filter_map(|e| e.shape.get(axis)).sum();
    }
    Encoding::of(
        &CONCAT,
        elem,
        shape,
        [("axis", Attr::Int(axis as i64))],
        terms,
    )
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let axis = e.axis_param()?;
    let mut long = 0usize;
    for c in &e.children {
        let mut shape = c.shape.clone();
        if shape.len() != e.shape.len() || c.elem != e.elem {
            return Err(e.error("a part has another rank or type than the result"));
        }
        long = long.saturating_add(std::mem::replace(&mut shape[axis], e.shape[axis]));
        if shape != e.shape {
            return Err(e.error(format!(
                "a part of shape {:?} is no part of {:?}",
                c.shape, e.shape
            )));
        }
    }
    (long == e.shape[axis])
        .then_some(())
        .ok_or_else(|| e.error("the parts do not fill the axis"))
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    fn join<T: Clone>(parts: &[(&[T], usize)], outer: usize) -> Vec<T> {
        (0..outer)
            .flat_map(|i| {
                parts
                    .iter()
                    .flat_map(move |(p, n)| p[i * n..(i + 1) * n].iter().cloned())
            })
            .collect()
    }
    let axis = e.axis_param()?;
    let outer = count(&e.shape[..axis]);
    let parts: Vec<Tensor> = e
        .children
        .iter()
        .map(|c| c.decode())
        .collect::<Result<_, _>>()?;
    let run = |t: &Tensor| count(&t.shape()[axis..]);
    let floats: Option<Vec<_>> = parts.iter().map(|t| Some((t.floats()?, run(t)))).collect();
    let ints: Option<Vec<_>> = parts
        .iter()
        .map(|t| Some((t.integers()?, run(t))))
        .collect();
    let data = match (floats, ints) {
        (Some(parts), _) => Data::Float(join(&parts, outer)),
        (_, Some(parts)) => Data::Int(join(&parts, outer)),
        _ => return Err(e.error("is of numbers")),
    };
    Ok(Tensor::new(e.elem, e.shape.clone(), data))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let parts: Vec<ValueId> = (0..e.children.len()).map(|i| e.child(b, i)).collect();
    b.concat(&parts, e.int_param("axis").unwrap_or(0))
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let axis = (!shape.is_empty()).then(|| s.below(shape.len()))?;
    let cut = s.below(shape[axis] + 1);
    let part = |s: &mut Sampler, n: usize| {
        let mut shape = shape.to_vec();
        shape[axis] = n;
        s.term(elem, &shape)
    };
    let parts = match cut {
        0 => vec![part(s, shape[axis])],
        cut if cut == shape[axis] => vec![part(s, cut)],
        cut => vec![part(s, cut), part(s, shape[axis] - cut)],
    };
    Some(concat(axis, parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn columns_stand_side_by_side() {
        let f = |shape: [usize; 2], v: Vec<f64>| {
            dense::from_tensor(&Tensor::from_f64(ElemType::F32, shape, v))
        };
        let e = concat(
            1,
            vec![
                f([2, 1], vec![1.0, 4.0]),
                f([2, 2], vec![2.0, 3.0, 5.0, 6.0]),
            ],
        );
        assert_eq!(
            e.decode().expect("valid").floats(),
            Some(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..])
        );
    }
}
