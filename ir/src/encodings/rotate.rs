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

/// Rows of the largest Hadamard matrix.
pub const MAX_HADAMARD: usize = 1 << 12;

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

/// A block, whose length is a power of two, times the Hadamard matrix with rows of length 1, by `n log n` additions. It is its
/// own inverse.
pub fn transform(block: &mut [f64]) {
    let mut half = 1;
    while half < block.len() {
        for pair in block.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (block.len() as f64).sqrt();
    block.iter_mut().for_each(|v| *v *= scale);
}

/// The longest Hadamard matrix, of at most `most` rows, whose blocks divide `n` numbers.
pub fn longest_block(n: usize, most: usize) -> usize {
    let most = most.clamp(1, MAX_HADAMARD);
    1 << n.trailing_zeros().min(most.ilog2())
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (axis, size) = block(e)?;
    let r = match e.children.get(1) {
        Some(_) => Some(e.floats(1)?),
        None => None,
    };
    let (x, inner) = (e.floats(0)?, count(&e.shape[axis + 1..]));
    let mut out = vec![0.0; x.len()];
    // One inner position of one block at a time: `size` numbers, `inner` apart.
    for i in 0..x.len() / size {
        let at = |k: usize| (i / inner * size + k) * inner + i % inner;
        let mut row: Vec<f64> = (0..size).map(|k| e.round(x[at(k)])).collect();
        match &r {
            Some(r) => row = matmul::product(&row, r, size, size, |v| e.round(v)),
            None => transform(&mut row),
        }
        for (j, v) in row.into_iter().enumerate() {
            out[at(j)] = e.round(v);
        }
    }
    Ok(e.tensor(out))
}

/// Hadamard matrices longer than this are opened as the Kronecker product of two that are about as long as each other.
const WHOLE: usize = 128;

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let (axis, size) = block(e).map_err(|e| OpError::new(e.to_string()))?;
    let x = e.worked(b, 0)?;
    // The axis goes last, so that a block is a row of a product.
    let rank = e.shape.len();
    let mut there: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
    there.push(axis);
    let mut back: Vec<usize> = (0..rank - 1).collect();
    back.insert(axis, rank - 1);
    let moved: Vec<Len> = there.iter().map(|&a| Len::N(e.shape[a] as i64)).collect();
    let n = |n: usize| Len::N(n as i64);
    let x = b.transpose(x, &there)?;
    let y = match e.children.get(1) {
        Some(_) => {
            let x = b.reshape(x, &[n(e.len() / size), n(size)])?;
            let r = e.worked(b, 1)?;
            b.op("matmul", &[x, r])?
        }
        None if size <= WHOLE => times_hadamard(e, b, x, size)?,
        None => {
            // Row i * short + j of the matrix is row i of the long one beside row j of the short one.
            let short = 1 << (size.ilog2() / 2);
            let long = size / short;
            let y = times_hadamard(e, b, x, short)?;
            let y = b.reshape(y, &[n(e.len() / size), n(long), n(short)])?;
            let y = b.transpose(y, &[0, 2, 1])?;
            let y = times_hadamard(e, b, y, long)?;
            let y = b.reshape(y, &[n(e.len() / size), n(short), n(long)])?;
            b.transpose(y, &[0, 2, 1])?
        }
    };
    let y = b.reshape(y, &moved)?;
    let y = b.transpose(y, &back)?;
    b.cast(y, e.elem)
}

/// Runs of `size` numbers, as rows, times the Hadamard matrix.
fn times_hadamard(
    e: &Encoding,
    b: &mut Builder,
    x: ValueId,
    size: usize,
) -> Result<ValueId, OpError> {
    let matrix = Tensor::from_f64(e.work(), [size, size], hadamard_matrix(size));
    let matrix = b.constant(&matrix);
    let runs = e.len() / size;
    let x = b.reshape(x, &[Len::N(runs as i64), Len::N(size as i64)])?;
    b.op("matmul", &[x, matrix])
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
    use crate::encodings::{dense, open_constants};
    use crate::{Constant, Module, eval};

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

    #[test]
    fn fast_and_opened_transforms_are_products_with_the_matrix() {
        for size in [1usize, 2, 64, 256, 512] {
            let x: Vec<f64> = (0..3 * size).map(|i| (i * i % 17) as f64 - 8.0).collect();
            let want = matmul::product(&x, &hadamard_matrix(size), size, size, |v| v);
            let near = |got: &[f64]| got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4);
            let mut fast = x.clone();
            fast.chunks_mut(size).for_each(transform);
            assert!(near(&fast), "{size}");
            let given = dense::from_tensor(&Tensor::from_f64(ElemType::F32, [3, size], x));
            let term = hadamard(ElemType::F32, 1, size, given);
            assert!(near(
                term.decode().expect("valid").floats().expect("floats")
            ));
            let mut m = Module::new("term");
            let y = m.add_constant("", Constant::new(term));
            m.region_mut(Module::TOP).outputs.push(y);
            m.output_names.push("y".into());
            open_constants(&mut m, &|_, _| true).expect("opens");
            let out = eval::run(&m, vec![]).expect("runs");
            let out = out[0].as_tensor().and_then(Tensor::to_f64s);
            assert!(near(&out.expect("numbers")), "{size}");
        }
        let blocks = [(384, 128), (11008, 4096), (5, 8), (0, 4)];
        assert_eq!(
            blocks.map(|(n, most)| longest_block(n, most)),
            [128, 256, 1, 4]
        );
    }
}
