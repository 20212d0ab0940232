//! Architectures of checkpoints: one file each, and one line in [`ARCHITECTURES`].
//!
//! A file says what the network is, in blocks that many share ([`blocks`], [`rope`], [`experts`]); [`net`] gives it the
//! settings and the weights by name, and gathers what is wrong with them.

mod bert;
mod bitnet;
mod blocks;
mod distilbert;
mod experts;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod llama;
mod mistral;
mod mixtral;
mod net;
mod olmo2;
mod olmoe;
mod opt;
mod phi3;
mod pooling;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod roberta;
pub(crate) mod rope;

pub use blocks::{Heads, Vocabulary};
pub use llama::Sizes as LlamaSizes;
pub use net::{Form, Net, Stop};
pub use pooling::{Mode, Pooling};

use crate::checkpoint::config::Config;
use crate::error::Problem;

/// A kind of network.
#[derive(Debug)]
pub struct Architecture {
    /// What `config.json` calls it.
    pub model_type: &'static str,
    /// Classes of transformers whose weights it reads.
    pub classes: &'static [&'static str],
    /// Tensors that it does without: how their names begin or end.
    pub ignored: &'static [&'static str],
    /// Writes the network.
    pub build: fn(&mut Net) -> Result<(), Stop>,
}

/// What networks of an architecture do with text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Decoders predict the token that follows, and so write text.
    WriteText,
    /// The states of encoders become embeddings of texts.
    Embed,
}

impl Architecture {
    /// What it does with text.
    pub fn purpose(&self) -> Purpose {
        let decoder = |c: &&str| c.ends_with("ForCausalLM") || c.ends_with("LMHeadModel");
        match self.classes.iter().any(decoder) {
            true => Purpose::WriteText,
            false => Purpose::Embed,
        }
    }
}

/// Every architecture.
pub static ARCHITECTURES: &[&Architecture] = &[
    &bert::BERT,
    &bitnet::BITNET,
    &distilbert::DISTILBERT,
    &falcon::FALCON,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gpt2::GPT2,
    &gpt_bigcode::GPT_BIGCODE,
    &gpt_neox::GPT_NEOX,
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mixtral::MIXTRAL,
    &olmo2::OLMO2,
    &olmoe::OLMOE,
    &opt::OPT,
    &phi3::PHI3,
    &qwen2::QWEN2,
    &qwen2_moe::QWEN2_MOE,
    &qwen3::QWEN3,
    &roberta::ROBERTA,
];

/// The architecture of a checkpoint with these settings.
pub fn of(config: &Config) -> Result<&'static Architecture, Problem> {
    let model_type = config.text("model_type")?;
    let named = model_type.as_deref().unwrap_or_default();
    let Some(&found) = ARCHITECTURES.iter().find(|a| a.model_type == named) else {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.model_type).collect();
        let reason = match model_type {
            Some(name) => format!("`{name}` is not a known architecture"),
            None => "is missing".to_owned(),
        };
        return Err(Problem {
            remedy: Some(format!("known are {}", known.join(", "))),
            ..config.problem("model_type", reason)
        });
    };
    if let Some(classes) = config.texts("architectures")?
        && !classes.is_empty()
        && !classes.iter().any(|c| found.classes.contains(&c.as_str()))
    {
        return Err(Problem {
            remedy: Some(format!(
                "of `{named}`, known are {}",
                found.classes.join(", ")
            )),
            ..config.problem(
                "architectures",
                format!("`{}` is not known", classes.join(", ")),
            )
        });
    }
    Ok(found)
}
