//! `codebook`: each code stands for a vector of a table.
//!
//! ```text
//! children: table [.., n, d], codes [.., k]
//! value[.., d * j + t] = table[block of codes][codes[.., j]][t]
//! ```
//! The table's last two axes are its `n` vectors of length `d`; the axes before them are spread over the codes by the
//! block rule (`blocks.rs`), so a table may belong to the tensor, a row or a group. Palettes, NF4 and ternary values have
//! `d = 1`; product and lattice codes more. Several tables that add up (AQLM) are a `sum` of such terms.
//! Source: `Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding`,
//! section 3; `Extreme Compression of Large Language Models via Additive Quantization`, section 3.

use super::blocks;
use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::tensor::{count, strides};
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static CODEBOOK: Constructor = Constructor {
    name: "codebook",
    summary: "vectors of a table, by code",
    children: &["table", "codes"],
    has_blob: false,
    algebraic: false,
    contents: Some(|e| entries(e).map(|_| ())),
    check,
    decode,
    open,
    sample,
};

/// A term decoding to `elem`; `table` is `[.., n, d]` with one axis for each of the codes' before.
pub fn codebook(elem: ElemType, table: Encoding, codes: Encoding) -> Encoding {
    let mut shape = codes.shape.clone();
    let dim = table.shape.last().copied().unwrap_or(1);
    if let Some(last) = shape.last_mut() {
        *last = last.saturating_mul(dim);
    }
    Encoding::of(&CODEBOOK, elem, shape, [], [table, codes])
}

/// The axes of the table before its vectors, and how many and how long these are.
fn parts(e: &Encoding) -> Result<(&[usize], usize, usize), DecodeError> {
    match &e.children[0].shape[..] {
        [scope @ .., n, d] if *n > 0 && *d > 0 => Ok((scope, *n, *d)),
        _ => Err(e.error("a table has vectors on its last two axes")),
    }
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let (scope, _, d) = parts(e)?;
    let codes = &e.children[1];
    if !codes.elem.is_int() || !e.children[0].elem.is_float() || !e.elem.is_float() {
        return Err(e.error("codes must be integers, table and result floats"));
    }
    let fits = match (e.shape.split_last(), codes.shape.split_last()) {
        (Some((last, front)), Some((k, codes))) => {
            front == codes && k.checked_mul(d) == Some(*last)
        }
        _ => false,
    };
    if !fits {
        return Err(e.error(format!(
            "codes of shape {:?} give no result of shape {:?}",
            codes.shape, e.shape
        )));
    }
    blocks::check(e, scope, &codes.shape)
}

/// The entry of the table that each code stands for.
fn entries(e: &Encoding) -> Result<Vec<usize>, DecodeError> {
    let (scope, n, _) = parts(e)?;
    let of = |(i, code): (usize, i64)| {
        let code = usize::try_from(code).ok().filter(|&c| c < n);
        let code = code.ok_or_else(|| e.error(format!("a code is not below {n}")))?;
        Ok(blocks::index(i, &e.children[1].shape, scope) * n + code)
    };
    e.codes(1)?.into_iter().enumerate().map(of).collect()
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (_, _, d) = parts(e)?;
    let table = e.floats(0)?;
    let vectors = entries(e)?
        .into_iter()
        .flat_map(|at| &table[at * d..(at + 1) * d]);
    Ok(e.tensor(vectors.copied().collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let (scope, n, d) = parts(e).map_err(|e| OpError::new(e.to_string()))?;
    let shape = &e.children[1].shape;
    let table = e.child(b, 0);
    let table = b.reshape(
        table,
        &[Len::N((count(scope) * n) as i64), Len::N(d as i64)],
    )?;
    let codes = e.child(b, 1);
    let mut at = b.cast(codes, ElemType::I32)?;
    for (axis, stride) in strides(scope).into_iter().enumerate() {
        if scope[axis] == 1 {
            continue;
        }
        // The vectors of this axis' blocks lie `stride * n` apart.
        let size = blocks::block(shape[axis], scope[axis]);
        let places = b.iota(Len::N(shape[axis] as i64))?;
        let places = b.cast(places, ElemType::I32)?;
        let size = b.constant(&Tensor::from_int(ElemType::I32, [], vec![size as i128]));
        let places = b.op("div", &[places, size])?;
        let apart = b.constant(&Tensor::from_int(
            ElemType::I32,
            [],
            vec![(stride * n) as i128],
        ));
        let places = b.op("mul", &[places, apart])?;
        let after: Vec<i64> = (1..(shape.len() - axis) as i64).collect();
        let places = if after.is_empty() {
            places
        } else {
            b.unsqueeze(places, &after)?
        };
        at = b.op("add", &[at, places])?;
    }
    let vectors = b.op("gather", &[table, at])?;
    let lens: Vec<Len> = e.shape.iter().map(|&n| Len::N(n as i64)).collect();
    let y = b.reshape(vectors, &lens)?;
    b.cast(y, e.elem)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let (&last, _) = shape.split_last().filter(|_| elem.is_float())?;
    let (d, n) = (s.divisor(last), s.one_of(&[1, 2, 5, 16, 300]));
    let mut codes = shape.to_vec();
    codes[shape.len() - 1] = last / d;
    // One large table, whose codes take 16 bits, is enough.
    let mut table = if n > 256 {
        vec![1; codes.len()]
    } else {
        s.blocks(&codes)
    };
    table.extend([n, d]);
    let own = s.one_of(&[elem, ElemType::F16]);
    let table = s.term(own, &table);
    let codes = s.codes(&codes, n as i64);
    Some(codebook(elem, table, codes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn rows_have_tables_of_their_own() {
        let table = Tensor::from_f64(ElemType::F32, [2, 1, 2, 1], vec![1.0, 2.0, 10.0, 20.0]);
        let codes = Tensor::from_int(ElemType::U8, [2, 3], vec![0, 1, 1, 1, 0, 0]);
        let e = codebook(
            ElemType::F32,
            dense::from_tensor(&table),
            dense::from_tensor(&codes),
        );
        let want = [1.0, 2.0, 2.0, 20.0, 10.0, 10.0];
        assert_eq!(e.decode().expect("valid").floats(), Some(&want[..]));
    }

    #[test]
    fn a_code_outside_the_table_is_an_error() {
        let table = dense::from_tensor(&Tensor::from_f64(ElemType::F32, [1, 2, 1], vec![1.0, 2.0]));
        let codes = dense::from_tensor(&Tensor::from_int(ElemType::U8, [1], vec![2]));
        assert!(codebook(ElemType::F32, table, codes).decode().is_err());
    }

    #[test]
    fn samples_have_long_vectors_and_wide_codes() {
        let wide =
            (0..400).filter_map(|seed| sample(&mut Sampler::new(seed, 1), ElemType::F32, &[4, 16]));
        let mut wide = wide.filter(|e| e.children[1].elem == ElemType::U16);
        assert!(wide.any(|e| e.children[0].shape[3..] == [8]));
    }
}
