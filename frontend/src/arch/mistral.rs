//! Mistral (arXiv 2310.06825): Llama with a sliding window.

use super::blocks::{GatedMlp, Heads, SelfAttention, window};
use super::{Architecture, llama};

/// The architecture.
pub static MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    classes: &["MistralForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let plain = SelfAttention::plain(hidden, Heads::read(config, hidden)?);
        let mlp = GatedMlp::read(config, hidden)?;
        let attention = |i| {
            let window = window(config, i, |_| true)?;
            Ok(SelfAttention { window, ..plain })
        };
        llama::build(net, attention, mlp)
    },
};
