//! BitNet's packed ternary weights: four rows in a byte, far apart.
//!
//! ```text
//! weight u8 [to/4, from]     bits 2k of byte [r, i] are the value + 1 of row r + k to/4
//! weight_scale [1]           a divisor of `bitlinear` layers, a factor of `autobitlinear`
//! ```
//! Source: `The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits`; transformers, `integrations/bitnet.py`.

use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use lapidary_ir::encodings::{Encoding, affine, dense};
use lapidary_ir::{ElemType, Tensor};

/// The format.
pub static BITNET: Format = Format {
    method: "bitnet",
    marker: "weight_scale",
    term,
    split: whole,
};

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    let [rows, from] = p.shape("weight")?;
    let bytes = p.of("weight", &[ElemType::U8], &[rows, from])?.bytes;
    let one = p.floats("weight_scale", &[1])?.dense(&[1, 1]);
    let class = p
        .settings
        .text("linear_class")?
        .unwrap_or_else(|| "bitlinear".to_owned());
    let scales = match class.as_str() {
        "autobitlinear" => one,
        "bitlinear" => {
            let given = one
                .decode()
                .ok()
                .and_then(|t| t.floats().map(|f| f[0] as f32));
            let given = given.filter(|s| s.is_finite() && *s != 0.0);
            let given =
                given.ok_or_else(|| p.wrong("weight_scale", "is no number to divide by"))?;
            let factor = Tensor::from_f64(ElemType::F32, [1, 1], vec![f64::from(1.0 / given)]);
            dense::from_tensor(&factor)
        }
        other => {
            let reason = format!("`{other}` is not read: bitlinear and autobitlinear are");
            return Err(p.settings.problem("linear_class", reason));
        }
    };
    if let Some(bad) = bytes.iter().position(|b| b & b >> 1 & 0x55 != 0) {
        let reason = format!("holds a code that is not ternary in byte {bad}");
        return Err(p.wrong("weight", reason));
    }
    let line = 8 * from as i64;
    let shape = [4 * rows, from];
    let packed = codes(2, &shape, 0, &[(4, 2), (rows, line), (from, 8)], &bytes);
    let zero = dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 1], vec![1]));
    Ok(Some(affine::affine(
        ElemType::F32,
        scales,
        packed,
        Some(zero),
    )))
}
