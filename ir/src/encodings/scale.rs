//! `scale`: a term times factors for each channel or block.
//!
//! ```text
//! children: v, e
//! value[i] = v[i / block] * e[i]
//! ```
//! `v` is spread over `e` by the block rule (`blocks.rs`): smoothing scales of input channels, norms of rows,
//! exponents of MX blocks.
//! Source: `SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models`, section 4; OCP
//! Microscaling Formats (MX) Specification, section 5.

use super::blocks::{self, spread};
use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static SCALE: Constructor = Constructor {
    name: "scale",
    summary: "factors for each channel or block",
    children: &["v", "e"],
    has_blob: false,
    algebraic: true,
    contents: None,
    check,
    decode,
    open,
    sample,
};

/// A term decoding to `elem`.
pub fn scale(elem: ElemType, v: Encoding, e: Encoding) -> Encoding {
    let shape = e.shape.clone();
    Encoding::of(&SCALE, elem, shape, [], [v, e])
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    e.check_floats()?;
    if e.children[1].shape != e.shape {
        return Err(e.error("the scaled term has another shape than the result"));
    }
    blocks::check(e, &e.children[0].shape, &e.shape)
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (v, x) = (e.floats(0)?, e.floats(1)?);
    let values = x.iter().enumerate().map(|(i, &x)| {
        let v = v[blocks::index(i, &e.shape, &e.children[0].shape)];
        e.round(e.round(v) * e.round(x))
    });
    Ok(e.tensor(values.collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let (v, x) = (e.worked(b, 0)?, e.worked(b, 1)?);
    let v = spread(b, v, &e.children[0].shape, &e.shape)?;
    let y = b.op("mul", &[x, v])?;
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    if !elem.is_float() {
        return None;
    }
    let blocks = s.blocks(shape);
    let v = s.term(ElemType::F32, &blocks);
    Some(scale(elem, v, s.term(ElemType::F32, shape)))
}
