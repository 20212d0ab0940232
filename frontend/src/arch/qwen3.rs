//! Qwen3 (arXiv 2505.09388): Qwen2 without biases, with normalized heads of queries and keys.

use super::blocks::{GatedMlp, Heads, QkNorm, RmsNorm, SelfAttention};
use super::{Architecture, llama, qwen2};

/// The architecture.
pub static QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    classes: &["Qwen3ForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let bias = config.flag_or("attention_bias", false)?;
        let plain = SelfAttention {
            qkv_bias: bias,
            out_bias: bias,
            norm: QkNorm::Head(RmsNorm::read(config, hidden)?),
            ..SelfAttention::plain(hidden, Heads::read(config, hidden)?)
        };
        let mlp = GatedMlp::read(config, hidden)?;
        llama::build(net, qwen2::windowed(config, plain)?, mlp)
    },
};
