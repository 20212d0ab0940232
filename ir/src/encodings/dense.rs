//! `dense`: plain storage.
//!
//! ```text
//! e0 e1 e2 …      row-major, little-endian, `ElemType::size_bytes` each
//! ```
//! Strings are not bytes: they are held in the parameter `strings`.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::tensor::Data;
use crate::{Attr, Attrs, ElemType, Tensor};
use bytes::Bytes;
use std::sync::Arc;

/// The constructor.
pub static DENSE: Constructor = Constructor {
    name: "dense",
    summary: "plain little-endian storage",
    children: &[],
    has_blob: true,
    algebraic: false,
    contents: None,
    check,
    decode,
    open: |e, b| Ok(b.term(&Arc::new(e.clone()))),
    sample,
};

/// A dense term over `bytes`.
pub fn dense(elem: ElemType, shape: Vec<usize>, bytes: Bytes) -> Encoding {
    Encoding {
        ctor: &DENSE,
        elem,
        shape,
        params: Attrs::new(),
        children: vec![],
        blob: Some(bytes),
    }
}

/// A dense term holding a copy of `tensor`.
pub fn from_tensor(tensor: &Tensor) -> Encoding {
    let mut e = dense(tensor.elem(), tensor.shape().to_vec(), Bytes::new());
    match tensor.data() {
        Data::Str(s) => {
            e.params.insert("strings".into(), Attr::Strs(s.clone()));
        }
        _ => e.blob = tensor.to_bytes().map(Bytes::from),
    }
    e
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let count = e
        .shape
        .iter()
        .try_fold(1usize, |a, &d| a.checked_mul(d))
        .ok_or_else(|| e.error("shape is too large"))?;
    if e.elem == ElemType::String {
        return match e.params.get("strings") {
            Some(Attr::Strs(s)) if s.len() == count => Ok(()),
            _ => Err(e.error(format!("needs {count} strings"))),
        };
    }
    let want = count
        .checked_mul(e.elem.size_bytes())
        .ok_or_else(|| e.error("shape is too large"))?;
    let got = e.blob.as_ref().map_or(0, Bytes::len);
    if want == got {
        Ok(())
    } else {
        Err(e.error(format!(
            "{}{:?} needs {want} bytes, found {got}",
            e.elem, e.shape
        )))
    }
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    if let Some(Attr::Strs(s)) = e.params.get("strings") {
        return Ok(Tensor::new(e.elem, e.shape.clone(), Data::Str(s.clone())));
    }
    let bytes = e.blob.as_deref().unwrap_or(&[]);
    Tensor::from_bytes(e.elem, e.shape.clone(), bytes)
        .ok_or_else(|| e.error("bytes do not fit the type"))
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let n = crate::tensor::count(shape);
    if elem.is_float() {
        return Some(from_tensor(&Tensor::from_f64(elem, shape, s.numbers(n))));
    }
    elem.is_int()
        .then(|| from_tensor(&Tensor::from_int(elem, shape, s.integers(n))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_was_stored() {
        let t = Tensor::from_f64(ElemType::BF16, [2], vec![1.5, -2.0]);
        let e = from_tensor(&t);
        assert_eq!(e.stored_bytes(), 4);
        assert_eq!(e.decode(), Ok(t));
    }
}
