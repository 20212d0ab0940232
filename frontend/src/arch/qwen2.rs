//! Qwen2 (arXiv 2407.10671): Llama with biases on queries, keys and values.

use super::blocks::{GatedMlp, Heads, SelfAttention, window};
use super::net::Stop;
use super::{Architecture, llama};
use crate::checkpoint::config::Config;
use crate::error::Problem;

/// The architecture.
pub static QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    classes: &["Qwen2ForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let plain = SelfAttention {
            qkv_bias: true,
            ..SelfAttention::plain(hidden, Heads::read(config, hidden)?)
        };
        let mlp = GatedMlp::read(config, hidden)?;
        llama::build(net, windowed(config, plain)?, mlp)
    },
};

/// Attention of each layer: the later ones may have a window.
pub fn windowed(
    config: &Config,
    plain: SelfAttention,
) -> Result<impl Fn(usize) -> Result<SelfAttention, Stop>, Problem> {
    let on = config.flag_or("use_sliding_window", false)?;
    let first = config.size_or("max_window_layers", 28)?;
    Ok(move |i| {
        let window = window(config, i, |i| on && i >= first)?;
        Ok(SelfAttention { window, ..plain })
    })
}
