//! GPTQ: codes of a column packed down the rows of a matrix of words, scales and zero points by groups of inputs.
//!
//! ```text
//! qweight i32 [from bits/32, to]      codes of an output one after the other, low bits first, word below word
//! qzeros  i32 [groups, to bits/32]    zero points the same way along the outputs, less one (v1) or as they are (v2)
//! scales  f16 [groups, to]            g_idx i32 [from]: the group of each input, where they are not in order
//! value[o, i] = scales[g, o] * (code - zero[g, o])
//! ```
//! Source: AutoGPTQ, `qlinear_cuda_old.py`; GPTQModel's format `gptq_v2`.

use super::parts::{by_runs, packed};
use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::{Encoding, affine, dense, gather};
use lapidary_ir::{ElemType, Tensor};

/// The format.
pub static GPTQ: Format = Format {
    method: "gptq",
    marker: "qweight",
    term,
    split: whole,
};

/// Bits of a word.
const WORD: usize = 32;

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    let stored_as = p.settings.text("checkpoint_format")?;
    let v2 = match stored_as.as_deref().unwrap_or("gptq") {
        "gptq" => false,
        "gptq_v2" => true,
        other => {
            let reason = format!("`{other}` is not read: gptq and gptq_v2 are");
            return Err(p.settings.problem("checkpoint_format", reason));
        }
    };
    let bits = p.settings.size("bits")?;
    if !matches!(bits, 2 | 3 | 4 | 8) {
        let reason = format!("is {bits}; 2, 3, 4 and 8 are read");
        return Err(p.settings.problem("bits", reason));
    }
    let [words, to] = p.shape("qweight")?;
    let [groups, _] = p.shape("scales")?;
    if !(words * WORD).is_multiple_of(bits) || !(to * bits).is_multiple_of(WORD) {
        let reason = format!(
            "has shape {:?}, which {bits}-bit codes do not fill",
            [words, to]
        );
        return Err(p.wrong("qweight", reason));
    }
    let (from, zero_words) = (words * WORD / bits, to * bits / WORD);
    if groups > from {
        return Err(p.wrong("scales", format!("has {groups} groups of {from} inputs")));
    }
    let int32 = &[ElemType::I32];
    let qweight = p.of("qweight", int32, &[words, to])?;
    let qzeros = p.of("qzeros", int32, &[groups, zero_words])?;
    let scales = p.floats("scales", &[groups, to])?.transposed();
    // Down a column, the bytes of the words are the codes as `int` packs them.
    let column = [(to, WORD as i64), (words, (WORD * to) as i64), (4, 8)];
    let stored = packed(bits, &[to, from], &column, &qweight.bytes);
    let apart = [(to, bits as i64), (groups, (WORD * zero_words) as i64)];
    let mut zeros = codes(bits, &[to, groups], 0, &apart, &qzeros.bytes);
    if !v2 && !stored_as_v2(p, bits, &qzeros.bytes)? {
        zeros = one_more(bits, zeros);
    }
    let run = match from.is_multiple_of(groups) {
        true => from / groups,
        // The last group is shorter.
        false => p.settings.size("group_size")?,
    };
    if from.div_ceil(run) != groups {
        let reason =
            format!("has {groups} groups; {from} inputs in groups of {run} need another number");
        return Err(p.wrong("scales", reason));
    }
    let order = match p.has("g_idx") {
        true => group_of_each(p, from, groups)?,
        false => None,
    };
    let order = order.filter(|o| o.iter().enumerate().any(|(i, &g)| g != i / run));
    let spread = |part: Encoding| match &order {
        None => by_runs(part, 1, from, run),
        Some(order) => {
            let order = order.iter().map(|&g| g as i128).collect();
            let index = dense::from_tensor(&Tensor::from_int(ElemType::I32, [from], order));
            gather::gather(1, index, part)
        }
    };
    let (scales, zeros) = (spread(scales), spread(zeros));
    Ok(Some(affine::affine(
        ElemType::F32,
        scales,
        stored,
        Some(zeros),
    )))
}

/// The group of each input.
fn group_of_each(p: &Parts, from: usize, groups: usize) -> Result<Option<Vec<usize>>, Problem> {
    p.of("g_idx", &[ElemType::I32, ElemType::I64], &[from])?;
    let numbers = p.numbers("g_idx")?;
    // Some writers leave zeros where groups are in order.
    if groups > 1 && numbers.iter().all(|&g| g == 0) {
        return Ok(None);
    }
    let legal = |(i, g): (usize, i64)| {
        let group = usize::try_from(g).ok().filter(|&g| g < groups);
        group.ok_or_else(|| {
            let reason = format!("puts input {i} into group {g}, but there are {groups}");
            p.wrong("g_idx", reason)
        })
    };
    let groups: Result<_, _> = numbers.into_iter().enumerate().map(legal).collect();
    groups.map(Some)
}

/// Some writers store zero points as they are and call the format `gptq` all the same. A symmetric grid tells: its zero
/// point is half of the codes, which is one less in the stored form of v1.
fn stored_as_v2(p: &Parts, bits: usize, qzeros: &[u8]) -> Result<bool, Problem> {
    let half = 1u8 << (bits - 1);
    let symmetric = p.settings.flag_or("sym", false)?;
    let same = match bits {
        4 => qzeros.iter().all(|&b| b == half << 4 | half),
        8 => qzeros.iter().all(|&b| b == half),
        2 => qzeros.iter().all(|&b| b == 0b1010_1010),
        _ => false,
    };
    Ok(symmetric && same)
}

/// Zero points that are stored less one: the largest stored code stands for 0.
fn one_more(bits: usize, stored: Encoding) -> Encoding {
    let count = 1usize << bits;
    let next = (0..count).map(|q| ((q + 1) % count) as f64).collect();
    let table = Tensor::from_f64(ElemType::F32, [1, 1, count, 1], next);
    codebook(ElemType::F32, dense::from_tensor(&table), stored)
}
