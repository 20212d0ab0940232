//! HQQ: codes in groups of a flat weight, with zero points that are floats.
//!
//! ```text
//! the weight as rows of `group_size` (axis 1) or as columns of that length (axis 0): a matrix [R, C] of codes
//! W_q  its rows in chunks that lie in the same bytes, the first chunk in the highest bits
//!      4 bits: byte[r, c] = q[r] << 4 | q[r + R/2];  2 bits: four chunks, 1 bit: eight;  8 bits: as they are
//!      3 bits: ten chunks in an i32 [R/10, C], chunk k at bit 27 - 3k, rows filled up to tens
//! scale, zero [R, 1] or [1, C]      value = (code - zero) * scale
//! ```
//! Beside them `nbits`, `group_size`, `axis`, `shape` and more, each a small tensor. `W_q` may say that it is of floats.
//! Source: `Half-Quadratic Quantization of Large Machine Learning Models`; mobiusml/hqq, `bitpack.py`.

use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use lapidary_ir::ElemType;
use lapidary_ir::encodings::r#gen::generate;
use lapidary_ir::encodings::{Encoding, affine};

/// The format.
pub static HQQ: Format = Format {
    method: "hqq",
    marker: "W_q",
    term,
    split: whole,
};

/// Parts that say what the others already tell, or what a program does with them.
const SAID: &[&str] = &[
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "channel_wise",
    "optimize",
    "round_zero",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
];

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    let numbers = p.numbers("shape")?;
    let length = |&n: &i64| usize::try_from(n).ok().filter(|n| (1..1 << 31).contains(n));
    let lengths: Option<Vec<usize>> = numbers.iter().map(length).collect();
    let Some(&[to, from]) = lengths.as_deref() else {
        return Err(p.wrong("shape", format!("must be two lengths, found {numbers:?}")));
    };
    let (bits, axis) = (p.number("nbits")?, p.number("axis")?);
    let bits = usize::try_from(bits)
        .ok()
        .filter(|b| matches!(b, 1 | 2 | 3 | 4 | 8));
    let bits = bits.ok_or_else(|| p.wrong("nbits", "must be 1, 2, 3, 4 or 8"))?;
    let group = match p.has("group_size") {
        true => p.number("group_size")?,
        false => from as i64,
    };
    let group = usize::try_from(group)
        .ok()
        .filter(|&g| g > 0 && from.is_multiple_of(g));
    let group = group
        .ok_or_else(|| p.wrong("group_size", format!("must divide rows of {from} weights")))?;
    let groups = to * from / group;
    let (rows, columns, part) = match axis {
        1 => (groups, group, [groups, 1]),
        0 => (group, groups, [1, groups]),
        _ => return Err(p.wrong("axis", "must be 0 or 1")),
    };
    let chunks = match bits {
        3 => 10,
        _ => 8 / bits,
    };
    let width = if bits == 3 { 32 } else { 8 };
    let lines = rows.div_ceil(chunks);
    let packed = p.raw("W_q")?;
    if packed.len() != lines * columns * width / 8 || bits != 3 && lines * chunks != rows {
        let reason = format!(
            "has {} bytes; {bits}-bit codes [{rows}, {columns}] have another number",
            packed.len()
        );
        return Err(p.wrong("W_q", reason));
    }
    let highest = (chunks - 1) * bits;
    let digits = [
        (chunks, -(bits as i64)),
        (lines, (width * columns) as i64),
        (columns, width as i64),
    ];
    let (scale, zero) = (p.floats("scale", &part)?, p.floats("zero", &part)?);
    SAID.iter().for_each(|said| p.skip(said));
    let term = |shape: &[usize], part: &[usize]| {
        let codes = codes(bits, shape, highest as i64, &digits, &packed);
        affine::affine(
            ElemType::F32,
            scale.dense(part),
            codes,
            Some(zero.dense(part)),
        )
    };
    if axis == 1 {
        return Ok(Some(term(&[to, from], &[to, from / group])));
    }
    // Groups run across rows: the weight in the shape that they are columns of, and back.
    let graph = format!(
        "fn reshaped(%x: f32[{rows},{columns}]) -> (y: f32[{to},{from}]) {{\n  \
         const %shape = dense i64[2] [{to}, {from}]\n  %y = reshape(%x, %shape)\n  return %y\n}}"
    );
    let inner = term(&[rows, columns], &[1, columns]);
    Ok(Some(generate(
        ElemType::F32,
        vec![to, from],
        &graph,
        vec![inner],
    )))
}
