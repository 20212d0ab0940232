//! The formats of compressed-tensors: packed codes, codes of a byte, and zeros left out by a bit mask.
//!
//! ```text
//! weight_packed i32 [to, words]  codes + 2^(bits-1), 32/bits of them in a word, low bits first, rows filled up
//!   weight_shape [2], weight_scale [to, groups], weight_zero_point i32 [to bits/32, groups] packed down the rows
//! weight i8 or fp8 [to, from]    weight_scale [1], [to, 1], [to, groups] or by square blocks; weight_zero_point i8
//! compressed [n], bitmask u8 [to, from/8] low bits first, shape [2], row_offsets [to]
//! value[o, i] = scale[o, g] * (code - zero[o, g])
//! ```
//! Source: vllm-project/compressed-tensors, `compressors/`.

use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use lapidary_ir::encodings::{Encoding, affine, dense, scale, sparse};
use lapidary_ir::{ElemType, Tensor};

/// What the settings call them all.
const METHOD: &str = "compressed-tensors";

/// Packed codes.
pub static PACKED: Format = Format {
    method: METHOD,
    marker: "weight_packed",
    term: packed,
    split: whole,
};

/// Codes of a byte.
pub static QUANTIZED: Format = Format {
    method: METHOD,
    marker: "weight_scale",
    term: |p| (!p.has("weight_packed")).then(|| quantized(p)).transpose(),
    split: whole,
};

/// Zeros left out.
pub static BITMASK: Format = Format {
    method: METHOD,
    marker: "bitmask",
    term: |p| bitmask(p).map(Some),
    split: whole,
};

/// Bits of a word.
const WORD: usize = 32;

fn packed(p: &Parts) -> Result<Option<Encoding>, Problem> {
    if p.has("meta") {
        return Ok(None);
    }
    let [to, words] = p.shape("weight_packed")?;
    let [to_, from] = two_lengths(p, "weight_shape")?;
    let bits = [4usize, 8, 2]
        .into_iter()
        .find(|b| from.div_ceil(WORD / b) == words);
    let bits = bits.filter(|_| to_ == to).ok_or_else(|| {
        let reason = format!(
            "has shape {:?}; codes of 2, 4 or 8 bits of a weight {:?} need another",
            [to, words],
            [to_, from]
        );
        p.wrong("weight_packed", reason)
    })?;
    let bytes = p.of("weight_packed", &[ElemType::I32], &[to, words])?.bytes;
    let line = (WORD * words) as i64;
    let stored = codes(
        bits,
        &[to, from],
        0,
        &[(to, line), (from, bits as i64)],
        &bytes,
    );
    let scales = scales(p, [to, from])?;
    let groups = scales.shape[1];
    let half = 1i128 << (bits - 1);
    let zeros = match p.has("weight_zero_point") {
        false => dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 1], vec![half])),
        true => {
            let rows = to.div_ceil(WORD / bits);
            let part = p.of("weight_zero_point", &[ElemType::I32], &[rows, groups])?;
            let per = WORD / bits;
            if !to.is_multiple_of(per) {
                let reason = format!("packs {to} outputs, which do not fill its words");
                return Err(p.wrong("weight_zero_point", reason));
            }
            let down = [
                (to / per, (WORD * groups) as i64),
                (per, bits as i64),
                (groups, WORD as i64),
            ];
            codes(bits, &[to, groups], 0, &down, &part.bytes)
        }
    };
    refuse_order(p, from, groups)?;
    p.skip("input_scale");
    p.skip("input_zero_point");
    Ok(Some(affine::affine(
        ElemType::F32,
        scales,
        stored,
        Some(zeros),
    )))
}

/// Groups must be in the order of the inputs.
fn refuse_order(p: &Parts, from: usize, groups: usize) -> Result<(), Problem> {
    if !p.has("weight_g_idx") {
        return Ok(());
    }
    let block = from.div_ceil(groups);
    let numbers = p.numbers("weight_g_idx")?;
    let ordered = numbers.len() == from
        && (numbers.iter().enumerate()).all(|(i, &g)| g == -1 || g == (i / block) as i64);
    ordered.then_some(()).ok_or_else(|| {
        p.wrong(
            "weight_g_idx",
            "puts inputs into groups out of order, which is read of `gptq` only",
        )
    })
}

fn quantized(p: &Parts) -> Result<Encoding, Problem> {
    let [to, from] = p.shape("weight")?;
    let small = [ElemType::I8, ElemType::F8E4M3FN];
    let weight = p.of("weight", &small, &[to, from])?;
    let scales = scales(p, [to, from])?;
    let zeros = match p.has("weight_zero_point") {
        false => None,
        true => {
            let shape = p.shape_of("weight_zero_point")?;
            let part = p.of("weight_zero_point", &small, &shape)?;
            let fits = shape.iter().product::<usize>() == scales.len();
            let part = fits
                .then_some(part)
                .ok_or_else(|| p.wrong("weight_zero_point", "has another shape than the scales"))?;
            (part.elem == ElemType::I8).then(|| part.dense(&scales.shape))
        }
    };
    p.skip("input_scale");
    p.skip("input_zero_point");
    let stored = weight.dense(&[to, from]);
    Ok(match weight.elem {
        ElemType::I8 => affine::affine(ElemType::F32, scales, stored, zeros),
        _ => scale::scale(ElemType::F32, scales, stored),
    })
}

/// Scales of the tensor, of rows, of groups or of square blocks, as a matrix of blocks.
fn scales(p: &Parts, [to, from]: [usize; 2]) -> Result<Encoding, Problem> {
    let shape = p.shape_of("weight_scale")?;
    let part = p.floats("weight_scale", &shape)?;
    let matrix = match shape[..] {
        [] | [1] => [1, 1],
        [n] if n == to => [to, 1],
        [a, b] => [a, b],
        _ => [0, 0],
    };
    let whole = |s: usize, n: usize| s > 0 && n.is_multiple_of(s);
    if !whole(matrix[0], to) || !whole(matrix[1], from) {
        let reason = format!(
            "has shape {shape:?}, which does not divide a weight {:?}",
            [to, from]
        );
        return Err(p.wrong("weight_scale", reason));
    }
    Ok(part.dense(&matrix))
}

fn bitmask(p: &Parts) -> Result<Encoding, Problem> {
    let [to, line] = p.shape("bitmask")?;
    let [to_, from] = two_lengths(p, "shape")?;
    if to_ != to || from.div_ceil(8) != line {
        let reason = format!("has shape {:?}, the weight {:?}", [to, line], [to_, from]);
        return Err(p.wrong("bitmask", reason));
    }
    let mask = p.of("bitmask", &[ElemType::U8], &[to, line])?.bytes;
    let shape = p.shape_of("compressed")?;
    let values = p.floats("compressed", &shape)?;
    let count = shape.iter().product::<usize>();
    let last = 0xFFu8 >> (line * 8 - from);
    let marked = |row: &[u8]| {
        let whole: u32 = row[..line - 1].iter().map(|b| b.count_ones()).sum();
        (whole + (row[line - 1] & last).count_ones()) as usize
    };
    let marks: usize = mask.chunks(line).map(marked).sum();
    if marks != count {
        let reason = format!("marks {marks} values, `compressed` holds {count}");
        return Err(p.wrong("bitmask", reason));
    }
    // Where rows begin follows from the mask.
    p.skip("row_offsets");
    let places = codes(
        1,
        &[to, from],
        0,
        &[(to, 8 * line as i64), (from, 1)],
        &mask,
    );
    Ok(sparse::bitmap(
        vec![to, from],
        values.dense(&[count]),
        places,
    ))
}

/// A shape that is held in a part.
fn two_lengths(p: &Parts, part: &str) -> Result<[usize; 2], Problem> {
    let numbers = p.numbers(part)?;
    let length = |&n: &i64| usize::try_from(n).ok().filter(|n| (1..1 << 31).contains(n));
    match numbers
        .iter()
        .map(length)
        .collect::<Option<Vec<_>>>()
        .as_deref()
    {
        Some(&[a, b]) => Ok([a, b]),
        _ => Err(p.wrong(part, format!("must be two lengths, found {numbers:?}"))),
    }
}
