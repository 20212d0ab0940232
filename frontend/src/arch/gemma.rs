//! Gemma 2 (arXiv 2408.00118) and Gemma 3 (arXiv 2503.19786): normalizations around every part of a layer, windows in
//! some layers, and in the second bounds of scores, in the third a rotary base for each kind of layer.

use super::Architecture;
use super::blocks::{
    Activation, GatedMlp, Heads, QkNorm, RmsNorm, Scores, SelfAttention, Vocabulary, window,
};
use super::net::{Net, Stop};
use super::rope::{Rope, Settings};
use lapidary_ir::ValueId;

/// Gemma 2.
pub static GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    classes: &["Gemma2ForCausalLM"],
    ignored: &[],
    build: |net| {
        let form = |net: &mut Net, ids: ValueId, attention: &SelfAttention| {
            let rope =
                Settings::read(net.config, 10_000.0)?.angles(net, ids, attention.heads.size)?;
            Ok([rope, rope])
        };
        build(net, |i| i.is_multiple_of(2), false, form)
    },
};

/// Gemma 3, for text.
pub static GEMMA3: Architecture = Architecture {
    model_type: "gemma3_text",
    classes: &["Gemma3ForCausalLM"],
    ignored: &[],
    build: |net| {
        let form = |net: &mut Net, ids: ValueId, attention: &SelfAttention| {
            let all = match Settings::of_kind(net.config, "full_attention", 1e6)? {
                Some(settings) => settings,
                None => Settings::read(net.config, 1e6)?,
            };
            let near = match Settings::of_kind(net.config, "sliding_attention", 10_000.0)? {
                Some(settings) => settings,
                None => Settings::plain(net.config.float_or("rope_local_base_freq", 10_000.0)?),
            };
            let size = attention.heads.size;
            Ok([all.angles(net, ids, size)?, near.angles(net, ids, size)?])
        };
        let pattern = net
            .config
            .alias(&["sliding_window_pattern", "_sliding_window_pattern"]);
        let every = net.config.size_or(pattern, 6)?;
        build(net, move |i| !(i + 1).is_multiple_of(every), true, form)
    },
};

/// `slides` says which layers have a window where the settings do not, `angles` gives the rotations of layers without and
/// with one.
fn build(
    net: &mut Net,
    slides: impl Fn(usize) -> bool,
    normalized: bool,
    angles: impl Fn(&mut Net, ValueId, &SelfAttention) -> Result<[Rope; 2], Stop>,
) -> Result<(), Stop> {
    const TABLE: &str = "model.embed_tokens";
    let config = net.config;
    let hidden = config.size("hidden_size")?;
    let norm = RmsNorm {
        plus_one: true,
        ..RmsNorm::read(config, hidden)?
    };
    let bias = config.flag_or("attention_bias", false)?;
    if config.flag_or("use_bidirectional_attention", false)? {
        let reason = "attention to later tokens is not supported";
        return Err(config.problem("use_bidirectional_attention", reason).into());
    }
    let scale = config.positive("query_pre_attn_scalar")?.powf(-0.5);
    let attention = SelfAttention {
        qkv_bias: bias,
        out_bias: bias,
        norm: if normalized {
            QkNorm::Head(norm)
        } else {
            QkNorm::None
        },
        scores: Scores {
            scale: Some(scale),
            softcap: config.float_opt("attn_logit_softcapping")?,
        },
        ..SelfAttention::plain(hidden, Heads::read(config, hidden)?)
    };
    let setting = config.alias(&["hidden_activation", "hidden_act"]);
    let mlp = GatedMlp {
        activation: Activation::read(config, setting, Activation::GeluTanh)?,
        ..GatedMlp::read(config, hidden)?
    };
    let vocabulary = Vocabulary::read(config, hidden, true)?;
    let n_layers = net.count("num_hidden_layers")?;
    let (ids, x) = vocabulary.begin(net, TABLE)?;
    let mut x = net.scaled(x, (hidden as f64).sqrt())?;
    let [all, near] = angles(net, ids, &attention)?;
    for i in 0..n_layers {
        net.enter(format!("model.layers.{i}."));
        let window = window(config, i, &slides)?;
        let rope = if window.is_some() { near } else { all };
        let h = norm.build(net, x, "input_layernorm")?;
        let h = SelfAttention {
            window,
            ..attention
        }
        .build(net, h, &rope)?;
        let h = norm.build(net, h, "post_attention_layernorm")?;
        x = net.add(x, h)?;
        let h = norm.build(net, x, "pre_feedforward_layernorm")?;
        let h = mlp.build(net, h)?;
        let h = norm.build(net, h, "post_feedforward_layernorm")?;
        x = net.add(x, h)?;
    }
    net.enter("model.");
    let x = norm.build(net, x, "norm")?;
    let mut y = vocabulary.scores(net, x, TABLE, "lm_head")?;
    if let Some(cap) = config.float_opt("final_logit_softcapping")? {
        let inner = net.scaled(y, 1.0 / cap)?;
        let inner = net.b().op("tanh", &[inner])?;
        y = net.scaled(inner, cap)?;
    }
    net.output("logits", y);
    Ok(())
}
