//! OLMo 2 (arXiv 2501.00656): layers normalize what they add, and queries and keys over all heads.

use super::Architecture;
use super::blocks::{GatedMlp, Heads, QkNorm, RmsNorm, SelfAttention, Vocabulary};
use super::rope::Settings;

/// The architecture.
pub static OLMO2: Architecture = Architecture {
    model_type: "olmo2",
    classes: &["Olmo2ForCausalLM"],
    ignored: &[],
    build: |net| {
        const TABLE: &str = "model.embed_tokens";
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let norm = RmsNorm::read(config, hidden)?;
        let bias = config.flag_or("attention_bias", false)?;
        let attention = SelfAttention {
            qkv_bias: bias,
            out_bias: bias,
            norm: QkNorm::Whole(norm),
            ..SelfAttention::plain(hidden, Heads::read(config, hidden)?)
        };
        let mlp = GatedMlp::read(config, hidden)?;
        let vocabulary = Vocabulary::read(config, hidden, false)?;
        let n_layers = net.count("num_hidden_layers")?;
        let (ids, mut x) = vocabulary.begin(net, TABLE)?;
        let rope = Settings::read(config, 10_000.0)?.angles(net, ids, attention.heads.size)?;
        for i in 0..n_layers {
            net.enter(format!("model.layers.{i}."));
            let h = attention.build(net, x, &rope)?;
            let h = norm.build(net, h, "post_attention_layernorm")?;
            x = net.add(x, h)?;
            let h = mlp.build(net, x)?;
            let h = norm.build(net, h, "post_feedforward_layernorm")?;
            x = net.add(x, h)?;
        }
        net.enter("model.");
        let x = norm.build(net, x, "norm")?;
        vocabulary.end(net, x, TABLE, "lm_head")
    },
};
