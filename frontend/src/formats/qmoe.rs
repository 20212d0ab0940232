//! QMoE: rows of three values each, whose codes are words of a dictionary that no file holds.
//!
//! ```text
//! w_comp i16 [words]         words, without a sign, row after row     row_off i32 [to + 1]: each row's first word, and their count
//! ter_minmax bf16 [2 to]     the smallest and the largest value of each row
//! value[o, i] = [0, min[o], max[o]][code]                             up to 28 codes a word, the last one of an odd row is unused
//! ```
//! The published files are pickles: their tensors are read from safetensors, under the same names. An empty `weight` beside them, which
//! transformers asks for, says nothing. How wide rows are follows from their words, but for that unused code: a width that is odd has
//! to be said, by a tensor `shape` (`[to, from]`).
//! Source: `QMoE: Practical Sub-1-Bit Compression of Trillion-Parameter Models`, section 4; IST-DASLab/qmoe, `sub1.py`.

use super::{Format, Parts, whole};
use crate::error::Problem;
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::coded::dictionary;
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::{ElemType, Tensor};

/// The format.
pub static QMOE: Format = Format {
    method: "qmoe",
    marker: "w_comp",
    term,
    split: whole,
};

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    if p.has("weight") && !p.raw("weight")?.is_empty() {
        return Err(p.wrong("weight", "is not empty beside the words that stand for it"));
    }
    let [count] = p.shape("w_comp")?;
    let [offsets] = p.shape("row_off")?;
    let to = offsets - 1;
    let words = p.of("w_comp", &[ElemType::I16, ElemType::U16], &[count])?;
    let starts = p.of("row_off", &[ElemType::I32], &[offsets])?;
    let offsets = p.numbers("row_off")?;
    let legal = offsets[0] == 0 && offsets.is_sorted() && offsets[to] == count as i64;
    if to == 0 || !legal {
        let reason = format!("does not divide the {count} words among {to} rows");
        return Err(p.wrong("row_off", reason));
    }
    let from = width(p, &words.bytes, &offsets)?;
    let codes = dictionary::of_words([to, from], words.bytes, starts.dense(&[to + 1]));
    Ok(Some(codebook(ElemType::F32, values(p, to)?, codes)))
}

/// How many weights a row has, which its words fill.
fn width(p: &Parts, words: &[u8], offsets: &[i64]) -> Result<usize, Problem> {
    let pairs_of = |w: &[u8]| &dictionary::words()[usize::from(u16::from_le_bytes([w[0], w[1]]))];
    let rows = || {
        let row = |w: &[i64]| words[2 * w[0] as usize..2 * w[1] as usize].chunks_exact(2);
        offsets.windows(2).map(row)
    };
    let lens = || rows().map(|row| row.map(|w| pairs_of(w).len()).sum::<usize>());
    let pairs = lens().next().unwrap_or(0);
    if let Some((row, other)) = lens().enumerate().find(|(_, n)| *n != pairs) {
        let reason = format!(
            "has words for {} weights in row {row}, for {} in row 0",
            2 * other,
            2 * pairs
        );
        return Err(p.wrong("w_comp", reason));
    }
    if !p.has("shape") {
        return Ok(2 * pairs);
    }
    let to = offsets.len() - 1;
    let said = p.numbers("shape")?;
    let from = match said[..] {
        [rows, from] if rows == to as i64 => usize::try_from(from).ok(),
        _ => None,
    };
    let Some(from) = from.filter(|from| from.div_ceil(2) == pairs) else {
        let reason = format!("is {said:?}, but the words are of {to} rows of {pairs} pairs");
        return Err(p.wrong("shape", reason));
    };
    // The second code of a pair stands above three times the first.
    let beyond = |w: &[u8]| pairs_of(w).last().is_some_and(|&pair| pair >= 3);
    let longer = rows().position(|row| row.last().is_some_and(beyond));
    match longer.filter(|_| from < 2 * pairs) {
        Some(row) => Err(p.wrong("w_comp", format!("goes on behind the end of row {row}"))),
        None => Ok(from),
    }
}

/// The values of each row's codes: a table of zero, the smallest and the largest.
fn values(p: &Parts, to: usize) -> Result<Encoding, Problem> {
    let ends = p.floats("ter_minmax", &[2 * to])?;
    let numbers = Tensor::from_bytes(ends.elem, ends.shape, &ends.bytes).and_then(|t| t.to_f64s());
    let numbers = numbers.ok_or_else(|| p.wrong("ter_minmax", "does not hold numbers"))?;
    let ordered = |e: &[f64]| e[0].is_finite() && e[1].is_finite() && e[0] <= e[1];
    if let Some(row) = numbers.chunks_exact(2).position(|e| !ordered(e)) {
        let (low, high) = (numbers[2 * row], numbers[2 * row + 1]);
        let reason = format!("has {low} and {high} as the ends of row {row}");
        return Err(p.wrong("ter_minmax", reason));
    }
    let table = numbers.chunks_exact(2).flat_map(|e| [0.0, e[0], e[1]]);
    let table = Tensor::from_f64(ends.elem, [to, 1, 3, 1], table.collect());
    Ok(dense::from_tensor(&table))
}
