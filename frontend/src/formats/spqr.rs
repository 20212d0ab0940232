//! SpQR as its kernels read it: 3-bit codes in tiles of 16x16, with scales and zero points that are codes themselves, and
//! outliers that are added.
//!
//! ```text
//! dense_weights i64   a word for 16 columns of a row; tiles row by row, in a tile its 16 rows one after the other
//!   bits 0-2 scale code, 3-5 zero code, 6+3j code of column j, 54-61 byte (row / 2) of the tile's four f16:
//!   scale of scales, scale of zeros, zero of scales, zero of zeros
//! row_offsets i32 [to + 1], col_vals i32: f16 value << 16 | column
//! s = ss (qs - zs),  z = sz (qz - zz),  value = s (code - z) + outlier        each step rounded to f16
//! ```
//! Source: `SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression`, section 4; Vahe1994/SpQR,
//! `inference_lib`.

use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use lapidary_ir::ElemType;
use lapidary_ir::encodings::strided::{Places, strided};
use lapidary_ir::encodings::{Encoding, affine, dense, sparse, sum};

/// The format.
pub static SPQR: Format = Format {
    method: "spqr",
    marker: "dense_weights",
    term,
    split: whole,
};

/// Rows and columns of a tile.
const TILE: usize = 16;
/// Bits of a word.
const WORD: i64 = 64;

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    for (name, only) in [("bits", 3), ("beta1", TILE), ("beta2", TILE)] {
        if p.settings.size_or(name, only)? != only {
            return Err(p.settings.problem(name, format!("must be {only}")));
        }
    }
    let [words] = p.shape("dense_weights")?;
    let [offsets] = p.shape("row_offsets")?;
    let (to, per_row) = (offsets - 1, words / (offsets - 1).max(1));
    if to == 0 || per_row * to != words || !to.is_multiple_of(TILE) {
        let reason =
            format!("has {words} words, which {to} rows (`row_offsets`) in tiles do not fill");
        return Err(p.wrong("dense_weights", reason));
    }
    let (from, tiles) = (per_row * TILE, per_row);
    let bytes = p.of("dense_weights", &[ElemType::I64], &[words])?.bytes;
    if p.has("in_perm") && !p.raw("in_perm")?.is_empty() {
        let two = p.raw("in_perm")?;
        let ordered = two.chunks_exact(2).enumerate();
        let in_place = |(i, b): (usize, &[u8])| usize::from(u16::from_le_bytes([b[0], b[1]])) == i;
        if !{ ordered }.all(in_place) {
            return Err(p.wrong("in_perm", "reorders the inputs, which is not read"));
        }
    }
    let (row, tile) = (WORD, WORD * TILE as i64);
    let band = tile * tiles as i64;
    // Three bits of every word, from this one on.
    let three = |first: i64| {
        let digits = [(to / TILE, band), (TILE, row), (tiles, tile)];
        codes(3, &[to, tiles], first, &digits, &bytes)
    };
    // Two bytes, of which each lies in four pieces of two bits in the word of every other row.
    let half = |which: i64| {
        let places = Places {
            bits: 2,
            first: 54 + 4 * WORD * which,
            digits: vec![(to / TILE, band), (tiles, tile), (2, 2 * row), (4, 2)],
        };
        strided(ElemType::F16, vec![to / TILE, tiles], places, bytes.clone())
    };
    let f16 = ElemType::F16;
    let scales = affine::affine(f16, half(0), three(0), Some(half(2)));
    let zeros = affine::affine(f16, half(1), three(3), Some(half(3)));
    let digits = [(to / TILE, band), (TILE, row), (tiles, tile), (TILE, 3)];
    let packed = codes(3, &[to, from], 6, &digits, &bytes);
    let base = affine::affine(f16, scales, packed, Some(zeros));
    let added = outliers(p, [to, from])?;
    let sum = match added {
        Some(added) => sum::sum(f16, vec![base, added]),
        None => base,
    };
    Ok(Some(sum))
}

fn outliers(p: &Parts, shape: [usize; 2]) -> Result<Option<Encoding>, Problem> {
    let starts = p.of("row_offsets", &[ElemType::I32], &[shape[0] + 1])?;
    let list = p.shape_of("col_vals")?;
    let count: usize = list.iter().product();
    if count == 0 {
        return Ok(None);
    }
    let pairs = p.of("col_vals", &[ElemType::I32], &list)?.bytes;
    let offsets = p.numbers("row_offsets")?;
    let column = |i: usize| u16::from_le_bytes([pairs[4 * i], pairs[4 * i + 1]]);
    let legal = offsets[0] == 0 && offsets.is_sorted() && offsets[shape[0]] == count as i64;
    if !legal {
        let reason = format!("does not divide the {count} outliers among the rows");
        return Err(p.wrong("row_offsets", reason));
    }
    let grows = |w: &[i64]| {
        let row: Vec<u16> = (w[0] as usize..w[1] as usize).map(column).collect();
        row.windows(2).all(|w| w[0] < w[1]) && row.last().is_none_or(|&c| usize::from(c) < shape[1])
    };
    if !offsets.windows(2).all(grows) {
        return Err(p.wrong(
            "col_vals",
            "has columns out of order, or outside of the weight",
        ));
    }
    let part = |elem, first| {
        let places = Places {
            bits: 16,
            first,
            digits: vec![(count, 32)],
        };
        strided(elem, vec![count], places, pairs.clone())
    };
    let starts = dense::dense(ElemType::I32, vec![shape[0] + 1], starts.bytes);
    Ok(Some(sparse::rows(
        shape,
        part(ElemType::F16, 16),
        starts,
        part(ElemType::U16, 0),
    )))
}
