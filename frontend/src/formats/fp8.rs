//! Weights of 8-bit floats with a scale for each square block, as DeepSeek's checkpoints hold them.
//!
//! ```text
//! weight f8_e4m3 [to, from]      weight_scale_inv f32 [to/128, from/128], the last blocks cut off
//! value[o, i] = weight[o, i] * weight_scale_inv[o / 128, i / 128]     (the name says inverse, the use is a factor)
//! ```
//! Source: `DeepSeek-V3 Technical Report`, section 3.3; transformers' `finegrained_fp8`.

use super::parts::by_runs;
use super::{Format, Parts, whole};
use crate::error::Problem;
use lapidary_ir::ElemType;
use lapidary_ir::encodings::{Encoding, scale};

/// The format.
pub static BLOCKS: Format = Format {
    method: "fp8",
    marker: "weight_scale_inv",
    term,
    split: whole,
};

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    let [to, from] = p.shape("weight")?;
    let [rows, columns] = p.shape("weight_scale_inv")?;
    let weight = p.of("weight", &[ElemType::F8E4M3FN], &[to, from])?;
    let scales = p.floats("weight_scale_inv", &[rows, columns])?;
    let block = p
        .settings
        .lengths("weight_block_size")?
        .unwrap_or(vec![128; 2]);
    let &[high, wide] = &block[..] else {
        return Err(p
            .settings
            .problem("weight_block_size", "must be two lengths"));
    };
    if [rows, columns] != [to.div_ceil(high), from.div_ceil(wide)] {
        let reason = format!(
            "has shape {:?}, the weight {:?}",
            [rows, columns],
            [to, from]
        );
        return Err(p.wrong("weight_scale_inv", reason));
    }
    let scales = by_runs(
        by_runs(scales.dense(&[rows, columns]), 0, to, high),
        1,
        from,
        wide,
    );
    p.skip("input_scale");
    let term = scale::scale(ElemType::F32, scales, weight.dense(&[to, from]));
    Ok(Some(term))
}
