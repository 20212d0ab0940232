//! RoBERTa (arXiv 1907.11692): BERT whose positions count the tokens that are not padding.

use super::net::{Built, Net};
use super::{Architecture, bert};
use crate::error::Problem;
use lapidary_ir::{ElemType, Tensor, ValueId};

/// The architecture.
pub static ROBERTA: Architecture = Architecture {
    model_type: "roberta",
    classes: &["RobertaModel", "RobertaForMaskedLM"],
    ignored: &["pooler.", "roberta.pooler.", "lm_head."],
    build: |net| {
        let root = net.root(&["", "roberta."], "embeddings.word_embeddings.weight");
        let padding = padding(net)?;
        bert::build(net, root, padding + 1, |net, ids| {
            positions(net, ids, padding)
        })
    },
};

/// The token of padding.
fn padding(net: &Net) -> Result<usize, Problem> {
    let found = net.config.float_or("pad_token_id", 1.0)?;
    match found.fract() == 0.0 && (0.0..f64::from(u32::MAX)).contains(&found) {
        true => Ok(found as usize),
        false => Err(net
            .config
            .problem("pad_token_id", format!("is {found}, which is no token"))),
    }
}

/// `padding + 1` for the first token, and so on; `padding` for padding.
fn positions(net: &mut Net, ids: ValueId, padding: usize) -> Built {
    let mut b = net.b();
    let padding = b.constant(&Tensor::int(padding as i64));
    let is_padding = b.op("equal", &[ids, padding])?;
    let counted = b.op("not", &[is_padding])?;
    let counted = b.cast(counted, ElemType::I64)?;
    let axis = b.constant(&Tensor::int(1));
    let so_far = b.op("cumsum", &[counted, axis])?;
    let places = b.op("mul", &[so_far, counted])?;
    Ok(b.op("add", &[places, padding])?)
}
