//! AWQ as AutoAWQ's kernels read it: codes of eight outputs in a word, even ones first.
//!
//! ```text
//! qweight i32 [from, to/8]      nibble p of a word is output 8c + (0 2 4 6 1 3 5 7)[p]
//! qzeros  i32 [groups, to/8]    the same order;   scales f16 [groups, to]
//! value[o, i] = scales[g, o] * (code - zero[g, o])
//! ```
//! What scales of activations have been found are in the weights before: nothing is left to apply.
//! Source: AutoAWQ, `awq/utils/packing_utils.py`, `awq/modules/linear/gemm.py`.

use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use bytes::Bytes;
use lapidary_ir::ElemType;
use lapidary_ir::encodings::{Encoding, affine};

/// The format.
pub static AWQ: Format = Format {
    method: "awq",
    marker: "qweight",
    term,
    split: whole,
};

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    let version = p
        .settings
        .text("version")?
        .unwrap_or_default()
        .to_lowercase();
    if !matches!(version.as_str(), "" | "gemm") {
        let reason = format!("`{version}` is not read: gemm is");
        return Err(p.settings.problem("version", reason));
    }
    let name = p.settings.alias(&["bits", "w_bit"]);
    if p.settings.size_or(name, 4)? != 4 {
        return Err(p.settings.problem(name, "must be 4"));
    }
    let [from, words] = p.shape("qweight")?;
    let [groups, to] = p.shape("scales")?;
    if to != words * 8 || !from.is_multiple_of(groups) {
        let reason = format!("has shape {:?}, which does not fit `qweight`", [groups, to]);
        return Err(p.wrong("scales", reason));
    }
    let qweight = p.of("qweight", &[ElemType::I32], &[from, words])?;
    let qzeros = p.of("qzeros", &[ElemType::I32], &[groups, words])?;
    let scales = p.floats("scales", &[groups, to])?.transposed();
    let codes = in_order(to, from, &qweight.bytes);
    let zeros = in_order(to, groups, &qzeros.bytes);
    Ok(Some(affine::affine(
        ElemType::F32,
        scales,
        codes,
        Some(zeros),
    )))
}

/// The codes of words `[rows, to/8]` as `[to, rows]`: output 8c + 2q + b is nibble q + 4b of word c.
fn in_order(to: usize, rows: usize, bytes: &Bytes) -> Encoding {
    let line = (to / 8 * 32) as i64;
    codes(
        4,
        &[to, rows],
        0,
        &[(to / 8, 32), (4, 4), (2, 16), (rows, line)],
        bytes,
    )
}
