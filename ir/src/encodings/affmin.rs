//! `affmin`: `scale * code + min`, one scale and minimum per group of codes.
//!
//! ```text
//! children: scale, codes, min
//! value[i] = scale[i / block] * codes[i] + min[i / block]
//! ```
//! `scale` and `min` are spread over the codes by the block rule (`blocks.rs`). In real numbers it is `affine` with
//! `zero = -min / scale`, but not bit for bit, and files store the minimum.
//! Source: GGUF's `Q4_1`, `Q5_1` and `Q4_K` blocks.

use super::blocks::{self, spread};
use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static AFFMIN: Constructor = Constructor {
    name: "affmin",
    summary: "scale * code + min, by groups",
    children: &["scale", "codes", "min"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check,
    decode,
    open,
    sample,
};

/// A term decoding to `elem`.
pub fn affmin(elem: ElemType, scale: Encoding, codes: Encoding, min: Encoding) -> Encoding {
    let shape = codes.shape.clone();
    Encoding::of(&AFFMIN, elem, shape, [], [scale, codes, min])
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let [scale, codes, min] = &e.children[..] else {
        return Err(e.error("needs three terms"));
    };
    if codes.shape != e.shape {
        return Err(e.error("codes have another shape than the result"));
    }
    if !codes.elem.is_int() || ![scale.elem, min.elem, e.elem].iter().all(|t| t.is_float()) {
        return Err(e.error("codes must be integers, all else floats"));
    }
    blocks::check(e, &scale.shape, &e.shape)?;
    blocks::check(e, &min.shape, &e.shape)
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (scales, codes, mins) = (e.floats(0)?, e.codes(1)?, e.floats(2)?);
    let part = |values: &[f64], child: usize, i: usize| {
        e.round(values[blocks::index(i, &e.shape, &e.children[child].shape)])
    };
    let values = codes.iter().enumerate().map(|(i, &code)| {
        let scaled = e.round(part(&scales, 0, i) * code as f64);
        e.round(scaled + part(&mins, 2, i))
    });
    Ok(e.tensor(values.collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let mut parts = [e.worked(b, 0)?, e.worked(b, 2)?];
    for (part, child) in parts.iter_mut().zip([0, 2]) {
        *part = spread(b, *part, &e.children[child].shape, &e.shape)?;
    }
    let codes = e.worked(b, 1)?;
    let scaled = b.op("mul", &[codes, parts[0]])?;
    let y = b.op("add", &[scaled, parts[1]])?;
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    if !elem.is_float() {
        return None;
    }
    let (scale, min) = (s.blocks(shape), s.blocks(shape));
    let codes = s.codes(shape, 16);
    let scale = s.term(ElemType::F32, &scale);
    let min = s.term(ElemType::F16, &min);
    Some(affmin(elem, scale, codes, min))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn the_minimum_is_added_after_scaling() {
        let f = |v: Vec<f64>| dense::from_tensor(&Tensor::from_f64(ElemType::F32, [1, v.len()], v));
        let codes = dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 4], vec![0, 1, 2, 15]));
        let e = affmin(ElemType::F32, f(vec![2.0, 0.5]), codes, f(vec![-1.0, 3.0]));
        let want = [-1.0, 1.0, 4.0, 10.5];
        assert_eq!(e.decode().expect("valid").floats(), Some(&want[..]));
    }
}
