//! `patch`: a term with some of its elements replaced.
//!
//! ```text
//! children: base, values, where, columns?
//! ```
//! The values overwrite `base` in the places of the pattern (`pattern.rs`); published formats differ on adding or
//! replacing, and the two are not equal bit for bit, so this is not a `sum`.
//! Source: `SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression`, section 4.

use super::pattern::{self, Pattern};
use super::sampling::Sampler;
use super::{Constructor, Encoding, sparse};
use crate::ElemType;
use crate::ops::OpError;

/// The constructor.
pub static PATCH: Constructor = Constructor {
    name: "patch",
    summary: "a term with some elements replaced",
    children: &["base", "values", "where", "columns?"],
    has_blob: false,
    algebraic: false,
    contents: Some(|e| Pattern::of(e, 1)?.targets().map(|_| ())),
    check: |e| {
        let base = &e.children[0];
        if base.elem != e.elem || base.shape != e.shape {
            return Err(e.error("the base has another type than the result"));
        }
        Pattern::of(e, 1).map(|_| ())
    },
    decode: |e| {
        let (base, values) = (e.children[0].decode()?, e.children[1].decode()?);
        Ok(sparse::put(base, &Pattern::of(e, 1)?.targets()?, &values))
    },
    open: |e, b| {
        let pattern = Pattern::of(e, 1).map_err(|e| OpError::new(e.to_string()))?;
        let base = e.child(b, 0);
        pattern.place(b, Some(base))
    },
    sample,
};

/// `base` with the entries of compressed sparse rows put over it.
pub fn rows(base: Encoding, values: Encoding, starts: Encoding, columns: Encoding) -> Encoding {
    let (elem, shape) = (base.elem, base.shape.clone());
    Encoding::of(
        &PATCH,
        elem,
        shape,
        [("pattern", "rows".into())],
        [base, values, starts, columns],
    )
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let (params, mut children) = pattern::sample(s, elem, shape)?;
    children.insert(0, s.term(elem, shape));
    Some(Encoding::of(&PATCH, elem, shape.to_vec(), params, children))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::encodings::dense;

    #[test]
    fn a_patch_replaces() {
        let f = |shape: &[usize], v: Vec<f64>| {
            dense::from_tensor(&Tensor::from_f64(ElemType::F32, shape, v))
        };
        let ints = |v: &[i64]| dense::from_tensor(&Tensor::ints(v));
        let e = rows(
            f(&[2, 2], vec![1.0; 4]),
            f(&[1], vec![0.0]),
            ints(&[0, 0, 1]),
            ints(&[1]),
        );
        assert_eq!(
            e.decode().expect("valid").floats(),
            Some(&[1.0, 1.0, 1.0, 0.0][..])
        );
    }
}
