//! Llama (arXiv 2302.13971) and the models that are built like it, with every form of rotary scaling of its versions.

use super::Architecture;
use super::blocks::{GatedMlp, Heads, RmsNorm, SelfAttention, Vocabulary};
use super::net::{Net, Stop};
use super::rope::Settings;

/// The architecture.
pub static LLAMA: Architecture = Architecture {
    model_type: "llama",
    classes: &["LlamaForCausalLM"],
    ignored: &[],
    build: |net| {
        let hidden = net.config.size("hidden_size")?;
        let bias = net.config.flag_or("attention_bias", false)?;
        let attention = SelfAttention {
            qkv_bias: bias,
            out_bias: bias,
            ..SelfAttention::plain(hidden, Heads::read(net.config, hidden)?)
        };
        let mlp = GatedMlp {
            bias: net.config.flag_or("mlp_bias", false)?,
            ..GatedMlp::read(net.config, hidden)?
        };
        build(net, |_| Ok(attention), mlp)
    },
};

/// A decoder of layers that normalize first: attention of a layer's own form, then a gated perceptron.
pub fn build(
    net: &mut Net,
    attention: impl Fn(usize) -> Result<SelfAttention, Stop>,
    mlp: GatedMlp,
) -> Result<(), Stop> {
    layers(net, false, attention, |net, x| mlp.build(net, x))
}

/// As [`build`], with any perceptron; `tied` where the settings do not say.
pub fn layers(
    net: &mut Net,
    tied: bool,
    attention: impl Fn(usize) -> Result<SelfAttention, Stop>,
    mlp: impl Fn(&mut Net, lapidary_ir::ValueId) -> super::net::Built,
) -> Result<(), Stop> {
    const TABLE: &str = "model.embed_tokens";
    let n_layers = net.count("num_hidden_layers")?;
    let first = attention(0)?;
    let norm = RmsNorm::read(net.config, first.hidden)?;
    let vocabulary = Vocabulary::read(net.config, first.hidden, tied)?;
    let (ids, mut x) = vocabulary.begin(net, TABLE)?;
    let rope = Settings::read(net.config, 10_000.0)?.angles(net, ids, first.heads.size)?;
    for i in 0..n_layers {
        net.enter(format!("model.layers.{i}."));
        let h = norm.build(net, x, "input_layernorm")?;
        let h = attention(i)?.build(net, h, &rope)?;
        x = net.add(x, h)?;
        let h = norm.build(net, x, "post_attention_layernorm")?;
        let h = mlp(net, h)?;
        x = net.add(x, h)?;
    }
    net.enter("model.");
    let x = norm.build(net, x, "norm")?;
    vocabulary.end(net, x, TABLE, "lm_head")
}
