//! BitNet b1.58 (arXiv 2402.17764) in floats: normalizations inside of attention and perceptron.

use super::blocks::{Activation, GatedMlp, Heads, RmsNorm, SelfAttention};
use super::{Architecture, llama};

/// The architecture.
pub static BITNET: Architecture = Architecture {
    model_type: "bitnet",
    classes: &["BitNetForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let bias = config.flag_or("attention_bias", false)?;
        let heads = Heads::read(config, hidden)?;
        let norm = RmsNorm::read(config, hidden)?;
        let attention = SelfAttention {
            qkv_bias: bias,
            out_bias: bias,
            sub_norm: Some(norm.over(heads.queries())),
            ..SelfAttention::plain(hidden, heads)
        };
        let mlp = GatedMlp {
            activation: Activation::read(config, "hidden_act", Activation::Relu2)?,
            sub_norm: Some(norm),
            ..GatedMlp::read(config, hidden)?
        };
        llama::build(net, |_| Ok(attention), mlp)
    },
};
