//! Mixtral (arXiv 2401.04088): Mistral whose perceptrons are two of many experts for each token.

use super::blocks::{GatedMlp, Heads, SelfAttention, window};
use super::experts::Experts;
use super::{Architecture, llama};

/// The architecture.
pub static MIXTRAL: Architecture = Architecture {
    model_type: "mixtral",
    classes: &["MixtralForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let plain = SelfAttention::plain(hidden, Heads::read(config, hidden)?);
        let mlp = GatedMlp::read(config, hidden)?;
        let experts = Experts {
            count: net.count("num_local_experts")?,
            chosen: config.size_or("num_experts_per_tok", 2)?,
            renormalized: true,
        };
        let attention = |i| {
            let window = window(config, i, |_| true)?;
            Ok(SelfAttention { window, ..plain })
        };
        llama::layers(net, false, attention, |net, x| {
            experts.build(net, x, hidden, "block_sparse_moe.gate", |net, x, e| {
                let names = ["w1", "w3", "w2"].map(|w| format!("block_sparse_moe.experts.{e}.{w}"));
                mlp.named(net, x, [&names[0], &names[1], &names[2]])
            })
        })
    },
};
