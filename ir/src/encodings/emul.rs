//! `emul`: terms multiplied element by element.
//!
//! ```text
//! children: e*                       (at least one)
//! value[i] = e0[i] * e1[i] * …, from left to right
//! ```
//! Signs times a low-rank magnitude, masks, composed embeddings.
//! Source: `BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments`, section 3;
//! `Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems`, section 3.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static EMUL: Constructor = Constructor {
    name: "emul",
    summary: "terms multiplied element by element",
    children: &["e*"],
    has_blob: false,
    algebraic: false,
    check,
    decode,
    open,
    sample,
};

/// A term decoding to `elem`.
pub fn emul(elem: ElemType, terms: Vec<Encoding>) -> Encoding {
    let shape = terms.first().map_or(vec![], |e| e.shape.clone());
    Encoding::of(&EMUL, elem, shape, [], terms)
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    e.check_floats()?;
    if e.children.is_empty() || e.children.iter().any(|c| c.shape != e.shape) {
        return Err(e.error("needs terms, all of the result's shape"));
    }
    Ok(())
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let mut values: Vec<f64> = e.floats(0)?.iter().map(|&v| e.round(v)).collect();
    for i in 1..e.children.len() {
        for (a, &v) in values.iter_mut().zip(&e.floats(i)?) {
            *a = e.round(*a * e.round(v));
        }
    }
    Ok(e.tensor(values))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let mut y = e.worked(b, 0)?;
    for i in 1..e.children.len() {
        let next = e.worked(b, i)?;
        y = b.op("mul", &[y, next])?;
    }
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let n = elem.is_float().then(|| s.below(3) + 1)?;
    let terms = (0..n).map(|_| s.term(ElemType::F32, shape)).collect();
    Some(emul(elem, terms))
}
