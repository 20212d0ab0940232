//! `sparse`: values in some places, zeros in all others.
//!
//! ```text
//! children: values, where, columns?
//! ```
//! The parameter `pattern` says what `where` means: `bitmap`, `rows` (compressed sparse rows) or `nm` (n of m): see
//! `pattern.rs`. Values are a term themselves, so sparse and quantized is nesting.
//! Source: `Accelerating Sparse Deep Neural Networks` (2:4); `GQSA: Group Quantization and Sparsity for Accelerating Large
//! Language Model Inference` (blocks of 1x16).

use super::pattern::{self, Pattern};
use super::sampling::Sampler;
use super::{Constructor, Encoding};
use crate::tensor::Data;
use crate::{Attr, ElemType, Tensor};

/// The constructor.
pub static SPARSE: Constructor = Constructor {
    name: "sparse",
    summary: "values in some places, zeros elsewhere",
    children: &["values", "where", "columns?"],
    has_blob: false,
    algebraic: false,
    contents: Some(|e| Pattern::of(e, 0)?.targets().map(|_| ())),
    check: |e| Pattern::of(e, 0).map(|_| ()),
    decode: |e| {
        let (targets, values) = (Pattern::of(e, 0)?.targets()?, e.children[0].decode()?);
        Ok(put(
            Tensor::zeros(e.elem, e.shape.clone()),
            &targets,
            &values,
        ))
    },
    open: |e, b| {
        let pattern = Pattern::of(e, 0).map_err(|e| crate::ops::OpError::new(e.to_string()))?;
        pattern.place(b, None)
    },
    sample,
};

/// Values in the places that the bits of `grid` mark, one bit for each block of the result.
pub fn bitmap(shape: Vec<usize>, values: Encoding, grid: Encoding) -> Encoding {
    let elem = values.elem;
    Encoding::of(
        &SPARSE,
        elem,
        shape,
        [("pattern", "bitmap".into())],
        [values, grid],
    )
}

/// Compressed sparse rows of a matrix: where each row begins (and their end), and each entry's column.
pub fn rows(shape: [usize; 2], values: Encoding, starts: Encoding, columns: Encoding) -> Encoding {
    let elem = values.elem;
    Encoding::of(
        &SPARSE,
        elem,
        shape.to_vec(),
        [("pattern", "rows".into())],
        [values, starts, columns],
    )
}

/// n of m: values and their places in groups of `m`, both `[.., groups, n]`.
pub fn nm(m: usize, values: Encoding, places: Encoding) -> Encoding {
    let elem = values.elem;
    let mut shape = values.shape.clone();
    shape.pop();
    if let Some(last) = shape.last_mut() {
        *last = last.saturating_mul(m);
    }
    let params = [("pattern", "nm".into()), ("m", Attr::Int(m as i64))];
    Encoding::of(&SPARSE, elem, shape, params, [values, places])
}

/// `base` with these values at these places.
pub(super) fn put(base: Tensor, targets: &[usize], values: &Tensor) -> Tensor {
    fn over<T: Copy>(mut base: Vec<T>, targets: &[usize], values: &[T]) -> Vec<T> {
        targets.iter().zip(values).for_each(|(&t, &v)| base[t] = v);
        base
    }
    let data = match (base.data(), values.data()) {
        (Data::Float(b), Data::Float(v)) => Data::Float(over(b.clone(), targets, v)),
        (Data::Int(b), Data::Int(v)) => Data::Int(over(b.clone(), targets, v)),
        _ => return base,
    };
    Tensor::new(base.elem(), base.shape(), data)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let (params, children) = pattern::sample(s, elem, shape)?;
    Some(Encoding::of(
        &SPARSE,
        elem,
        shape.to_vec(),
        params,
        children,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::{dense, int};
    use bytes::Bytes;

    fn floats(values: Vec<f64>, shape: &[usize]) -> Encoding {
        dense::from_tensor(&Tensor::from_f64(ElemType::F32, shape, values))
    }

    fn ints(values: &[i64]) -> Encoding {
        dense::from_tensor(&Tensor::ints(values))
    }

    #[test]
    fn patterns_put_values_in_their_places() {
        let grid = int::int(ElemType::U8, 1, vec![2, 2], Bytes::from(vec![0b0110]));
        let blocks = bitmap(
            vec![2, 4],
            floats(vec![1.0, 2.0, 3.0, 4.0], &[2, 1, 2]),
            grid,
        );
        let want = [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0];
        assert_eq!(blocks.decode().expect("valid").floats(), Some(&want[..]));
        let csr = rows(
            [2, 3],
            floats(vec![1.0, 2.0, 3.0], &[3]),
            ints(&[0, 1, 3]),
            ints(&[2, 0, 1]),
        );
        assert_eq!(
            csr.decode().expect("valid").floats(),
            Some(&[0.0, 0.0, 1.0, 2.0, 3.0, 0.0][..])
        );
        let places = int::int(ElemType::U8, 2, vec![1, 2], Bytes::from(vec![0b1101]));
        let two_of_four = nm(4, floats(vec![5.0, 6.0], &[1, 2]), places);
        assert_eq!(
            two_of_four.decode().expect("valid").floats(),
            Some(&[0.0, 5.0, 0.0, 6.0][..])
        );
    }

    #[test]
    fn places_outside_are_errors() {
        let values = || floats(vec![1.0], &[1]);
        assert!(
            rows([1, 3], values(), ints(&[0, 1]), ints(&[3]))
                .check()
                .is_err()
        );
        assert!(
            rows([1, 3], values(), ints(&[0, 2]), ints(&[1]))
                .check()
                .is_err()
        );
        assert!(bitmap(vec![3], values(), ints(&[1, 1, 0])).check().is_err());
        assert!(
            nm(
                4,
                floats(vec![1.0; 2], &[1, 2]),
                dense::from_tensor(&Tensor::ints(&[2, 2]).with_shape([1, 2]))
            )
            .check()
            .is_err()
        );
    }
}
