//! `rotate`: a term turned back from the basis that it is stored in.
//!
//! ```text
//! children: e, r?
//! value[.., q * b + j, ..] = sum_k e[.., q * b + k, ..] R[k, j]      (along `axis`, in blocks of b)
//! ```
//! `R` is the orthogonal matrix `r` `[b, b]`, or without it the Hadamard matrix of `block` `b`, a power of two:
//! `R[k, j] = (-1)^popcount(k & j) / sqrt(b)`. A random sign for each channel is a `scale` of the result.
//! Source: `QuEST: Stable Training of LLMs with 1-Bit Weights and Activations`, section 3; `QuaRot: Outlier-Free 4-Bit
//! Inference in Rotated LLMs`, section 3.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding, matmul};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::tensor::count;
use crate::{Attr, ElemType, Tensor, ValueId};

/// The constructor.
pub static ROTATE: Constructor = Constructor {
    name: "rotate",
    summary: "turned by an orthogonal matrix along an axis, in blocks",
    children: &["e", "r?"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check: |e| block(e).map(|_| ()),
    decode,
    open,
    sample,
};

/// Largest Hadamard matrix: it is written out where it is multiplied with.
const MAX_HADAMARD: usize = 1 << 12;

/// `e`, whose blocks of so many elements along `axis` are stored in the Hadamard basis.
pub fn hadamard(elem: ElemType, axis: usize, block: usize, e: Encoding) -> Encoding {
    let shape = e.shape.clone();
    let params = [
        ("axis", Attr::Int(axis as i64)),
        ("block", Attr::Int(block as i64)),
    ];
    Encoding::of(&ROTATE, elem, shape, params, [e])
}

/// `e` times the orthogonal matrix `r` along `axis`, block by block.
pub fn rotate(elem: ElemType, axis: usize, e: Encoding, r: Encoding) -> Encoding {
    let shape = e.shape.clone();
    let params = [("axis", Attr::Int(axis as i64))];
    Encoding::of(&ROTATE, elem, shape, params, [e, r])
}

/// The axis, and the length of a block.
fn block(e: &Encoding) -> Result<(usize, usize), DecodeError> {
    e.check_floats()?;
    let axis = e.axis_param()?;
    if e.children[0].shape != e.shape {
        return Err(e.error("the turned term has another shape than the result"));
    }
    let size = match e.children.get(1) {
        Some(r) => match r.shape[..] {
            [b, c] if b == c && b > 0 => b,
            _ => return Err(e.error("the matrix must be square")),
        },
        None => {
            let size = e.size_param("block")?;
            if !size.is_power_of_two() || size > MAX_HADAMARD {
                return Err(e.error(format!(
                    "`block` must be a power of two up to {MAX_HADAMARD}"
                )));
            }
            size
        }
    };
    if e.shape[axis].is_multiple_of(size) {
        Ok((axis, size))
    } else {
        Err(e.error(format!("blocks of {size} do not divide the axis")))
    }
}

/// The Hadamard matrix with rows of length 1, row-major.
pub fn hadamard_matrix(n: usize) -> Vec<f64> {
    let (scale, sign) = ((n as f64).sqrt().recip(), |i: usize| {
        1 - 2 * (((i / n) & (i % n)).count_ones() % 2) as i32
    });
    (0..n * n).map(|i| f64::from(sign(i)) * scale).collect()
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (axis, size) = block(e)?;
    let r = match e.children.get(1) {
        Some(_) => e.floats(1)?,
        None => hadamard_matrix(size),
    };
    let (x, inner) = (e.floats(0)?, count(&e.shape[axis + 1..]));
    let mut out = vec![0.0; x.len()];
    // One inner position of one block at a time: `size` numbers, `inner` apart.
    for i in 0..x.len() / size {
        let at = |k: usize| (i / inner * size + k) * inner + i % inner;
        let row: Vec<f64> = (0..size).map(|k| x[at(k)]).collect();
        let turned = matmul::product(&row, &r, size, size, |v| e.round(v));
        turned
            .into_iter()
            .enumerate()
            .for_each(|(j, v)| out[at(j)] = v);
    }
    Ok(e.tensor(out))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let (axis, size) = block(e).map_err(|e| OpError::new(e.to_string()))?;
    let r = match e.children.get(1) {
        Some(_) => e.worked(b, 1)?,
        None => b.constant(&Tensor::from_f64(
            e.work(),
            [size, size],
            hadamard_matrix(size),
        )),
    };
    let x = e.worked(b, 0)?;
    // The axis goes last, so that a block is a row of a product.
    let rank = e.shape.len();
    let mut there: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
    there.push(axis);
    let mut back: Vec<usize> = (0..rank - 1).collect();
    back.insert(axis, rank - 1);
    let moved: Vec<Len> = there.iter().map(|&a| Len::N(e.shape[a] as i64)).collect();
    let x = b.transpose(x, &there)?;
    let x = b.reshape(x, &[Len::N((e.len() / size) as i64), Len::N(size as i64)])?;
    let y = b.op("matmul", &[x, r])?;
    let y = b.reshape(y, &moved)?;
    let y = b.transpose(y, &back)?;
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    if !elem.is_float() || shape.is_empty() {
        return None;
    }
    let axis = s.below(shape.len());
    let x = s.term(ElemType::F32, shape);
    let size = s.divisor(shape[axis]);
    Some(if size.is_power_of_two() && s.below(3) > 0 {
        hadamard(elem, axis, size, x)
    } else {
        // Any matrix has a decode; that it is orthogonal matters to those who make terms.
        rotate(elem, axis, x, s.term(ElemType::F32, &[size, size]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn two_turns_are_none() {
        let x = Tensor::from_f64(ElemType::F32, [2, 8], (0..16).map(f64::from).collect());
        for axis in [0, 1] {
            let once = hadamard(
                ElemType::F32,
                axis,
                if axis == 0 { 2 } else { 4 },
                dense::from_tensor(&x),
            );
            let twice = hadamard(ElemType::F32, axis, if axis == 0 { 2 } else { 4 }, once);
            let back = twice.decode().expect("valid");
            let far = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-5;
            assert!(
                !back
                    .floats()
                    .expect("floats")
                    .iter()
                    .zip(x.floats().expect("floats"))
                    .any(far)
            );
        }
    }
}
