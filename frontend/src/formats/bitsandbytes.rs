//! bitsandbytes: 4-bit codes of a table with a scale for each run of the flat weight, and int8 by rows.
//!
//! ```text
//! weight u8 [n/2, 1]        two codes a byte, the first one high, in row-major order of the weight
//!   weight.quant_map [16], weight.absmax f32 [n/64]: a run may go over the ends of rows
//!   absmax may be codes itself: absmax u8 [n/64], weight.nested_quant_map f32 [256], weight.nested_absmax f32 [n/64/256]
//!   weight.quant_state.bitsandbytes__nf4: text of JSON with `shape`, `blocksize`, `nested_blocksize`, `nested_offset`
//! value[i] = table[code] * absmax[i / 64];   absmax[j] = map[code] * nested_absmax[j / 256] + offset
//!
//! weight i8 [to, from], SCB f32 [to]:   value[o, i] = SCB[o] / 127 * code
//! ```
//! Source: bitsandbytes, `functional.py`; `QLoRA: Efficient Finetuning of Quantized LLMs`, section 3.

use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use lapidary_ir::encodings::r#gen::generate;
use lapidary_ir::encodings::strided::{Places, strided};
use lapidary_ir::encodings::{Encoding, affine, codebook, dense, scale, sum};
use lapidary_ir::{ElemType, Tensor};
use serde::Deserialize;

/// What the settings call them all.
const METHOD: &str = "bitsandbytes";

/// Codes of normal floats.
pub static NF4: Format = Format {
    method: METHOD,
    marker: "weight.quant_state.bitsandbytes__nf4",
    term: |p| four_bits(p, NF4.marker).map(Some),
    split: whole,
};

/// Codes of 4-bit floats.
pub static FP4: Format = Format {
    method: METHOD,
    marker: "weight.quant_state.bitsandbytes__fp4",
    term: |p| four_bits(p, FP4.marker).map(Some),
    split: whole,
};

/// Codes of a byte, by rows.
pub static INT8: Format = Format {
    method: METHOD,
    marker: "SCB",
    term: |p| by_rows(p).map(Some),
    split: whole,
};

/// What is said beside the tensors.
#[derive(Deserialize)]
struct State {
    shape: Vec<usize>,
    blocksize: usize,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

fn four_bits(p: &Parts, marker: &str) -> Result<Encoding, Problem> {
    let [length] = p.shape(marker)?;
    let text = p.of(marker, &[ElemType::U8], &[length])?.bytes;
    let state: State =
        serde_json::from_slice(&text).map_err(|e| p.wrong(marker, format!("is not valid: {e}")))?;
    let &[to, from] = &state.shape[..] else {
        return Err(p.wrong(
            marker,
            format!("has the shape {:?}; a matrix is needed", state.shape),
        ));
    };
    let [bytes, _] = p.shape("weight")?;
    let n = to
        .checked_mul(from)
        .filter(|&n| n > 0 && n.div_ceil(2) == bytes);
    let n = n.ok_or_else(|| {
        let reason = format!(
            "has {bytes} bytes, which are no codes of a weight {:?}",
            [to, from]
        );
        p.wrong("weight", reason)
    })?;
    if state.blocksize == 0 || state.nested_blocksize == Some(0) {
        return Err(p.wrong(marker, "has runs of length 0"));
    }
    let weight = p.of("weight", &[ElemType::U8], &[bytes, 1])?.bytes;
    let packed = codes(4, &[n], 4, &[(bytes, 8), (2, -4)], &weight);
    let table = p.floats("weight.quant_map", &[16])?.dense(&[1, 16, 1]);
    let scales = scales(p, &state, n)?;
    if state.blocksize.saturating_mul(scales.len() - 1) >= n
        || state.blocksize != n.div_ceil(scales.len())
    {
        let reason = format!(
            "has {} runs of {} for {n} weights",
            scales.len(),
            state.blocksize
        );
        return Err(p.wrong("weight.absmax", reason));
    }
    let flat = codebook::codebook(ElemType::F32, table, packed);
    Ok(reshaped(
        scale::scale(ElemType::F32, scales, flat),
        [to, from],
    ))
}

/// A factor for each run.
fn scales(p: &Parts, state: &State, n: usize) -> Result<Encoding, Problem> {
    const MAX: &str = "weight.absmax";
    let runs = n.div_ceil(state.blocksize);
    let Some(block) = state.nested_blocksize else {
        return Ok(p.floats(MAX, &[runs])?.dense(&[runs]));
    };
    let offset = state.nested_offset.ok_or_else(|| {
        p.wrong(
            MAX,
            "is codes, but `nested_offset` is missing from its state",
        )
    })?;
    let codes = p.of(MAX, &[ElemType::U8], &[runs])?.dense(&[runs]);
    let map = p
        .floats("weight.nested_quant_map", &[256])?
        .dense(&[1, 256, 1]);
    let outer = runs.div_ceil(block);
    if runs.div_ceil(outer) != block.min(runs) {
        return Err(p.wrong(
            MAX,
            format!("has {runs} codes, which runs of {block} do not divide"),
        ));
    }
    let outer = p.floats("weight.nested_absmax", &[outer])?.dense(&[outer]);
    let values = codebook::codebook(ElemType::F32, map, codes);
    let scaled = scale::scale(ElemType::F32, outer, values);
    // One number that every element reads.
    let places = Places {
        bits: 32,
        first: 0,
        digits: vec![(runs, 0)],
    };
    let offset = (offset as f32).to_le_bytes().to_vec();
    let offset = strided(ElemType::F32, vec![runs], places, offset.into());
    Ok(sum::sum(ElemType::F32, vec![scaled, offset]))
}

/// A list as a matrix.
fn reshaped(list: Encoding, [to, from]: [usize; 2]) -> Encoding {
    let graph = format!(
        "fn reshaped(%x: f32[{}]) -> (y: f32[{to},{from}]) {{\n  \
         const %shape = dense i64[2] [{to}, {from}]\n  %y = reshape(%x, %shape)\n  return %y\n}}",
        list.len()
    );
    generate(ElemType::F32, vec![to, from], &graph, vec![list])
}

fn by_rows(p: &Parts) -> Result<Encoding, Problem> {
    let [to, from] = p.shape("weight")?;
    let weight = p.of("weight", &[ElemType::I8], &[to, from])?;
    if p.has("weight_format") && p.numbers("weight_format")?.iter().any(|&n| n != 0) {
        return Err(p.wrong(
            "weight_format",
            "is not 0 (rows): other orders are not read",
        ));
    }
    let most = p.floats("SCB", &[to])?.dense(&[to, 1]);
    let unit = Tensor::from_f64(ElemType::F32, [1, 1], vec![f64::from(1.0f32 / 127.0)]);
    let scales = scale::scale(ElemType::F32, dense::from_tensor(&unit), most);
    Ok(affine::affine(
        ElemType::F32,
        scales,
        weight.dense(&[to, from]),
        None,
    ))
}
