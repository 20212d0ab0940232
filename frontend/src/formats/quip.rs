//! QuIP#: runs of eight weights are vectors of the lattice E8P, turned by signs and a Hadamard matrix on both sides.
//!
//! ```text
//! codebook_id i64 []     which tables add up
//! Qidxs i64 [to, n]      codes of the first table in tiles of 16 rows by 64 columns, then, right of them, those of the second
//!
//! codebook_id   tables                 n
//!  7 E8P12      E8P                    from / 32
//! 17 E8P12RVQ4B E8P + E8P / 3.45       from / 16
//! 18 E8P12RVQ3B E8P + E8 / 2.04        3 from / 64, codes of E8 a byte for each run of a row
//!
//! SU f16 [from], SV f16 [to], Wscale f32 []    signs and what the rows are scaled with; scaleWH f32 [from] divides the inputs
//! weight = diag(SV Wscale) H (table of codes) H^T diag(SU / scaleWH)
//! ```
//! `H` is as large as its side: of order `K 2^k`, with the small matrices of [`hadamard`]. Bits of a code are not at regular distances, so
//! codes are put in order while reading. Where projections of the same input are one module, `fuse_scales` f32 `[parts]` scales the
//! rows of each: these are modules of their own here. Settings are `quip_params` in the published files.
//! Source: Tseng et al., "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks", sections 3 and 4;
//! Cornell-RelaxML/quip-sharp, `lib/codebook` and `lib/linear` (what the tensors are).

use super::{Format, Parts};
use crate::error::Problem;
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::gather::gather;
use lapidary_ir::encodings::hadamard;
use lapidary_ir::encodings::lattice::{self, DIM};
use lapidary_ir::encodings::rotate::{self, MAX_HADAMARD, hadamard_matrix};
use lapidary_ir::encodings::scale::scale;
use lapidary_ir::encodings::sum::sum;
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::{ElemType, Tensor};

/// The format.
pub static QUIP: Format = Format {
    method: "quip",
    marker: "Qidxs",
    term,
    split,
};

/// Rows and columns of a tile of codes.
const TILE: [usize; 2] = [16, 64];

/// What codes of one weight are: which tables add up.
struct Tables {
    id: i64,
    /// The form of the codes that is read.
    version: f64,
    /// Words for 64 columns of a row.
    words: usize,
    /// The second table, and how many times smaller it is.
    second: Option<(Second, f64)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Second {
    E8p,
    E8,
}

const TABLES: &[Tables] = &[
    Tables {
        id: 7,
        version: 1.0,
        words: 2,
        second: None,
    },
    Tables {
        id: 17,
        version: 1.0,
        words: 4,
        second: Some((Second::E8p, 3.45)),
    },
    Tables {
        id: 18,
        version: 0.0,
        words: 3,
        second: Some((Second::E8, 2.04)),
    },
];

/// Rows of the largest matrix that is stored, beside one of a power of two that is not.
const MAX_OUTER: usize = 1024;

/// Words of E8P for 64 columns of a row.
const E8P_WORDS: usize = 2;

/// The modules that a fused one stands for, with their rows: those of what attention asks for are as many as the inputs.
fn split(module: &str, [to, from]: [usize; 2]) -> Vec<(&'static str, usize)> {
    match module.rsplit('.').next() {
        Some("upgate_proj") if to.is_multiple_of(2) => {
            vec![("up_proj", to / 2), ("gate_proj", to / 2)]
        }
        Some("qkv_proj") if to > from && (to - from).is_multiple_of(2) => {
            let keys = (to - from) / 2;
            vec![("q_proj", from), ("k_proj", keys), ("v_proj", keys)]
        }
        _ => vec![],
    }
}

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    for part in ["A", "B"] {
        if p.has(part) && !p.raw(part)?.is_empty() {
            return Err(p.wrong(part, "is a correction of low rank, which is not read"));
        }
    }
    let id = p.number("codebook_id")?;
    let Some(tables) = TABLES.iter().find(|t| t.id == id) else {
        let reason = format!("is {id}; 7 (E8P12), 17 (E8P12RVQ4B) and 18 (E8P12RVQ3B) are read");
        return Err(p.wrong("codebook_id", reason));
    };
    let version = p.settings.float_or("codebook_version", tables.version)?;
    if version != tables.version {
        let reason = format!("is {version}; {} is read of codebook {id}", tables.version);
        return Err(p.settings.problem("codebook_version", reason));
    }
    let [to] = p.shape("SV")?;
    let [from] = p.shape("SU")?;
    if !to.is_multiple_of(TILE[0]) || !from.is_multiple_of(TILE[1]) {
        let reason = format!("is of {to} by {from} weights, which tiles of 16 by 64 do not divide");
        return Err(p.wrong("Qidxs", reason));
    }
    let width = from / TILE[1] * tables.words;
    let stored = p.of("Qidxs", &[ElemType::I64], &[to, width])?;
    // Words of some columns, row by row.
    let columns = |first: usize, count: usize| {
        let row = move |row: &[u8]| row[8 * first..][..8 * count].to_vec();
        let rows = stored.bytes.chunks_exact(8 * width).map(row);
        rows.collect::<Vec<_>>().concat()
    };
    let e8p = |first: usize| {
        let bytes = columns(first, from / TILE[1] * E8P_WORDS);
        let words = bytes
            .chunks_exact(8)
            .map(|w| w.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)));
        let codes = lattice::unpack(&words.collect::<Vec<u64>>(), from / DIM);
        let codes = codes.ok_or_else(|| p.wrong("Qidxs", "does not hold whole tiles"))?;
        let codes: Vec<u8> = codes.into_iter().flat_map(u16::to_le_bytes).collect();
        let codes = dense::dense(ElemType::U16, vec![to, from / DIM], codes.into());
        Ok::<_, Problem>(codebook(ElemType::F32, lattice::e8p(), codes))
    };
    let mut term = e8p(0)?;
    if let Some((second, smaller)) = tables.second {
        let first = from / TILE[1] * E8P_WORDS;
        let second = match second {
            Second::E8p => e8p(first)?,
            Second::E8 => {
                let codes = columns(first, width - first).into();
                let codes = dense::dense(ElemType::U8, vec![to, from / DIM], codes);
                codebook(ElemType::F32, lattice::e8(), codes)
            }
        };
        let said = p.settings.float_or("resid_scale_override", -1.0)?;
        let smaller = if said > 0.0 { said } else { smaller };
        let factor = vector(&[1, 1], vec![1.0 / smaller]);
        term = sum(
            ElemType::F32,
            vec![term, scale(ElemType::F32, factor, second)],
        );
    }
    let no_matrix = |part, n| {
        let reason = format!("has {n} numbers, and no Hadamard matrix is known of that order");
        p.wrong(part, reason)
    };
    term = turned(1, term).ok_or_else(|| no_matrix("SU", from))?;
    term = turned(0, term).ok_or_else(|| no_matrix("SV", to))?;
    term = scale(ElemType::F32, inputs(p, from)?, term);
    Ok(Some(scale(ElemType::F32, outputs(p, [to, from])?, term)))
}

fn vector(shape: &[usize], values: Vec<f64>) -> Encoding {
    dense::from_tensor(&Tensor::from_f64(ElemType::F32, shape.to_vec(), values))
}

/// The finite numbers of a part.
fn numbers(p: &Parts, part: &str, shape: &[usize]) -> Result<Vec<f64>, Problem> {
    let stored = p.floats(part, shape)?;
    let tensor = Tensor::from_bytes(stored.elem, stored.shape, &stored.bytes);
    let numbers = tensor.and_then(|t| t.to_f64s());
    let finite = numbers.filter(|n| n.iter().all(|v| v.is_finite()));
    finite.ok_or_else(|| p.wrong(part, "holds what is not a finite number"))
}

/// What the inputs are scaled with, `[1, from]`.
fn inputs(p: &Parts, from: usize) -> Result<Encoding, Problem> {
    if !p.has("scaleWH") {
        return Ok(p.floats("SU", &[from])?.dense(&[1, from]));
    }
    let (signs, by) = (numbers(p, "SU", &[from])?, numbers(p, "scaleWH", &[from])?);
    if by.contains(&0.0) {
        return Err(p.wrong("scaleWH", "holds zeros, by which inputs would be divided"));
    }
    let scales = signs.iter().zip(by).map(|(s, by)| s / by);
    Ok(vector(&[1, from], scales.collect()))
}

/// What the rows are scaled with, `[to, 1]`.
fn outputs(p: &Parts, shape: [usize; 2]) -> Result<Encoding, Problem> {
    let to = shape[0];
    let said = p.shape_of("Wscale")?;
    let [one] = numbers(p, "Wscale", &said)?[..] else {
        return Err(p.wrong("Wscale", "must hold one number"));
    };
    let mut scales = vec![one; to];
    let rows = split(p.module(), shape);
    if !rows.is_empty() {
        let factors = numbers(p, "fuse_scales", &[rows.len()])?;
        let factors = rows.iter().zip(factors).flat_map(|(r, f)| vec![f; r.1]);
        scales.iter_mut().zip(factors).for_each(|(s, f)| *s *= f);
    } else if p.has("fuse_scales") {
        let reason = "scales parts of a module that has none: qkv_proj and upgate_proj have";
        return Err(p.wrong("fuse_scales", reason));
    }
    // The published files have the scale of rows among their signs.
    if scales.iter().all(|&s| s == 1.0) {
        return Ok(p.floats("SV", &[to])?.dense(&[to, 1]));
    }
    let signs = numbers(p, "SV", &[to])?;
    let scales = signs.iter().zip(scales).map(|(sign, scale)| sign * scale);
    Ok(vector(&[to, 1], scales.collect()))
}

/// `e` times the Hadamard matrix of all of an axis; none if none is known.
fn turned(axis: usize, e: Encoding) -> Option<Encoding> {
    let n = e.shape[axis];
    let (order, power) = hadamard::order(n)?;
    let inner = power.min(MAX_HADAMARD);
    let outer = n / inner;
    if outer > MAX_OUTER {
        return None;
    }
    let mut e = rotate::hadamard(ElemType::F32, axis, inner, e);
    if outer == 1 {
        return Some(e);
    }
    // What the small matrix turns lies `inner` apart: it is brought together, and back.
    let place = |of: &dyn Fn(usize) -> usize| {
        let places = (0..n).map(|i| of(i) as i128).collect();
        dense::from_tensor(&Tensor::from_int(ElemType::U32, [n], places))
    };
    e = gather(axis, place(&|i| i % outer * inner + i / outer), e);
    e = rotate::rotate(ElemType::F32, axis, e, small(order, outer / order));
    Some(gather(axis, place(&|i| i % inner * outer + i / inner), e))
}

/// The Kronecker product of the small matrix of an order with the one of a power of two, its rows of length 1, as columns.
fn small(order: usize, power: usize) -> Encoding {
    let n = order * power;
    let signs = hadamard::matrix(order).unwrap_or_else(|| vec![1]);
    let rest = hadamard_matrix(power);
    let root = (order as f64).sqrt();
    let at = |i: usize| {
        let (column, row) = (i / n, i % n);
        let sign = signs[row / power * order + column / power];
        f64::from(sign) / root * rest[row % power * power + column % power]
    };
    vector(&[n, n], (0..n * n).map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sides that are longer than the longest matrix a term names.
    #[test]
    fn long_sides_are_turned_whole() {
        let n = 2 * MAX_HADAMARD;
        let mut want: Vec<f64> = (0..n).map(|i| (i * i % 31) as f64 - 15.0).collect();
        let given = vector(&[1, n], want.clone());
        rotate::transform(&mut want);
        for (axis, shape) in [(1, [1, n]), (0, [n, 1])] {
            let mut given = given.clone();
            given.shape = shape.to_vec();
            let term = turned(axis, given).expect("a matrix");
            let found = term.decode().expect("valid").to_f64s().expect("numbers");
            let near = found.iter().zip(&want).all(|(f, w)| (f - w).abs() < 1e-3);
            assert!(near, "axis {axis}");
        }
        let long = |n| vector(&[1, n], vec![0.0; n]);
        assert!(turned(1, long(MAX_HADAMARD * MAX_OUTER * 2)).is_none());
        assert!(turned(1, long(44)).is_none());
    }
}
