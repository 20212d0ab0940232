//! `affine`: `scale * (code - zero)`, one scale and zero point per group of codes.
//!
//! ```text
//! children: scale, codes, zero?      (terms themselves: two-level scales are nesting)
//! value[i] = scale[i / block] * (codes[i] - zero[i / block])
//! ```
//! `scale` and `zero` are spread over the codes by the block rule (`blocks.rs`). A zero point may be a code or a
//! float (half-integers, HQQ); without it zero is 0.
//! Source: `Integer Quantization for Deep Learning Inference`, section 3; ONNX DequantizeLinear.

use super::blocks::{self, spread};
use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static AFFINE: Constructor = Constructor {
    name: "affine",
    summary: "scale * (code - zero), by groups",
    children: &["scale", "codes", "zero?"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check,
    decode,
    open,
    sample,
};

/// An affine term decoding to `elem`.
pub fn affine(
    elem: ElemType,
    scale: Encoding,
    codes: Encoding,
    zero: Option<Encoding>,
) -> Encoding {
    let shape = codes.shape.clone();
    let children = [Some(scale), Some(codes), zero].into_iter().flatten();
    Encoding::of(&AFFINE, elem, shape, [], children)
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let (scale, codes) = (&e.children[0], &e.children[1]);
    if codes.shape != e.shape {
        return Err(e.error("codes have another shape than the result"));
    }
    if !codes.elem.is_int() || !scale.elem.is_float() || !e.elem.is_float() {
        return Err(e.error("codes must be integers, scale and result floats"));
    }
    blocks::check(e, &scale.shape, &e.shape)?;
    e.children.get(2).map_or(Ok(()), |zero| {
        if !zero.elem.is_float() && !zero.elem.is_int() {
            return Err(e.error("a zero point must be a number"));
        }
        blocks::check(e, &zero.shape, &e.shape)
    })
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (scales, codes) = (e.floats(0)?, e.codes(1)?);
    let zeros = match e.children.get(2) {
        None => None,
        Some(zero) => Some((
            &zero.shape,
            zero.decode()?
                .to_f64s()
                .ok_or_else(|| e.error("a zero point must be a number"))?,
        )),
    };
    let values = codes.iter().enumerate().map(|(i, &code)| {
        let zero = zeros.as_ref().map_or(0.0, |(shape, z)| {
            e.round(z[blocks::index(i, &e.shape, shape)])
        });
        let scale = e.round(scales[blocks::index(i, &e.shape, &e.children[0].shape)]);
        e.round(scale * e.round(code as f64 - zero))
    });
    Ok(e.tensor(values.collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let codes = e.worked(b, 1)?;
    let centred = match e.children.get(2) {
        None => codes,
        Some(zero) => {
            let z = e.worked(b, 2)?;
            let z = spread(b, z, &zero.shape, &e.shape)?;
            b.op("sub", &[codes, z])?
        }
    };
    let scale = e.worked(b, 0)?;
    let scale = spread(b, scale, &e.children[0].shape, &e.shape)?;
    let y = b.op("mul", &[centred, scale])?;
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    if !elem.is_float() {
        return None;
    }
    let (scale, zero) = (s.blocks(shape), s.blocks(shape));
    let bits = s.one_of(&[1, 2, 3, 4, 5, 6, 8]);
    let codes = s.codes(shape, 1 << bits);
    let scale = s.term(ElemType::F32, &scale);
    let zero = match s.below(3) {
        0 => None,
        1 => Some(s.codes(&zero, 16)),
        _ => Some(s.term(ElemType::F32, &zero)),
    };
    Some(affine(elem, scale, codes, zero))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::{dense, int};
    use bytes::Bytes;

    #[test]
    fn groups_share_a_scale() {
        let codes = int::int(
            ElemType::U8,
            4,
            vec![1, 4],
            Bytes::from(int::pack([0, 1, 2, 15], 4)),
        );
        let scale = dense::from_tensor(&Tensor::from_f64(ElemType::F32, [1, 2], vec![1.0, 0.5]));
        let zero = dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 1], vec![8]));
        let e = affine(ElemType::F32, scale, codes, Some(zero));
        assert_eq!(
            e.decode().expect("valid").floats(),
            Some(&[-8.0, -7.0, -3.0, 3.5][..])
        );
        assert_eq!(e.stored_bytes(), 2 + 8 + 1);
    }
}
