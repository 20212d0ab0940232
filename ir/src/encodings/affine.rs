//! `affine`: `scale * (code - zero)`, one scale and zero point per group of codes.
//!
//! ```text
//! children: scale, codes, zero?      (terms themselves: two-level scales are nesting)
//! value[i] = scale[i / block] * (codes[i] - zero[i / block])
//! ```
//! `scale` (and `zero`) has the rank of `codes`; along each axis its length divides into equal blocks:
//! axis length `n` with `s` scales has blocks of `ceil(n / s)` codes, and a length of 1 is shared by the
//! whole axis. Per tensor, per channel and per group are this one rule.
//! Source: `Integer Quantization for Deep Learning Inference`, section 3; ONNX DequantizeLinear.

use super::{Constructor, DecodeError, Encoding};
use crate::{Attrs, ElemType, Tensor, tensor};
use std::sync::Arc;

/// The constructor.
pub static AFFINE: Constructor = Constructor {
    name: "affine",
    summary: "scale * (code - zero), by groups",
    children: &["scale", "codes", "zero?"],
    has_blob: false,
    own_bytes: |_| 0,
    check,
    decode,
};

/// An affine term decoding to `elem`.
pub fn affine(
    elem: ElemType,
    scale: Encoding,
    codes: Encoding,
    zero: Option<Encoding>,
) -> Encoding {
    let shape = codes.shape.clone();
    let children = [Some(scale), Some(codes), zero]
        .into_iter()
        .flatten()
        .map(Arc::new)
        .collect();
    Encoding {
        ctor: &AFFINE,
        elem,
        shape,
        params: Attrs::new(),
        children,
        blob: None,
    }
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let (scale, codes) = match &e.children[..] {
        [scale, codes] | [scale, codes, _] => (scale, codes),
        _ => return Err(e.error("needs a scale, codes and perhaps a zero point")),
    };
    if codes.shape != e.shape {
        return Err(e.error("codes have another shape than the result"));
    }
    if !codes.elem.is_int() || !scale.elem.is_float() || !e.elem.is_float() {
        return Err(e.error("codes must be integers, scale and result floats"));
    }
    for part in e.children.iter().filter(|c| !Arc::ptr_eq(c, codes)) {
        if part.shape.len() != e.shape.len()
            || part
                .shape
                .iter()
                .zip(&e.shape)
                .any(|(&s, &n)| s == 0 && n != 0 || s > n.max(1))
        {
            return Err(e.error(format!(
                "a scale or zero point of shape {:?} cannot be spread over {:?}",
                part.shape, e.shape
            )));
        }
    }
    Ok(())
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let bad = || e.error("children do not decode to numbers");
    let scale = e.children[0].decode()?;
    let codes = e.children[1].decode()?;
    let zero = e.children.get(2).map(|z| z.decode()).transpose()?;
    let zero_values = zero
        .as_ref()
        .map(|z| z.to_f64s().ok_or_else(bad))
        .transpose()?;
    let (scales, codes) = (
        scale.floats().ok_or_else(bad)?,
        codes.integers().ok_or_else(bad)?,
    );
    let values = codes.iter().enumerate().map(|(i, &code)| {
        let z = zero
            .as_ref()
            .zip(zero_values.as_ref())
            .map_or(0.0, |(t, v)| v[block_index(i, &e.shape, t.shape())]);
        scales[block_index(i, &e.shape, scale.shape())] * (code as f64 - z)
    });
    Ok(Tensor::from_f64(e.elem, e.shape.clone(), values.collect()))
}

/// Linear index, into a tensor of shape `blocks`, of the block that holds element `i` of `shape`.
fn block_index(i: usize, shape: &[usize], blocks: &[usize]) -> usize {
    let (mut rest, mut at) = (i, 0);
    let (stride, block_stride) = (tensor::strides(shape), tensor::strides(blocks));
    for axis in 0..shape.len() {
        let (coordinate, len) = (
            rest / stride[axis],
            shape[axis].div_ceil(blocks[axis].max(1)),
        );
        rest %= stride[axis];
        at += coordinate / len.max(1) * block_stride[axis];
    }
    at
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
