//! Llama (arXiv 2302.13971) and the models that are built like it, with every form of rotary scaling of its versions.

use super::Architecture;
use super::blocks::{Activation, GatedMlp, Heads, RmsNorm, SelfAttention, Vocabulary};
use super::net::{Net, Stop};
use super::rope::Settings;
use crate::checkpoint::config::Config;
use crate::error::{ImportError, Problem, Problems};
use std::path::Path;

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

/// The sizes of a Llama without biases whose angles are not scaled, for what runs such networks by itself.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Numbers of a token's vector.
    pub hidden: usize,
    /// Numbers between the products of the perceptron.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: Heads,
    /// Tokens; whether their scores have the weights of their table.
    pub vocabulary: Vocabulary,
    /// Tokens that a text may have.
    pub positions: usize,
    /// Added to the mean square by norms.
    pub epsilon: f64,
    /// Base of the angles of positions.
    pub theta: f64,
    /// The token that a text begins with, if there is one.
    pub begin: Option<usize>,
}

impl Sizes {
    /// Of the checkpoint in a folder.
    ///
    /// # Errors
    /// It is another network, or its settings cannot be read.
    pub fn read(folder: &Path) -> Result<Sizes, ImportError> {
        let mut problems =
            Problems::new("give the folder of a Llama in the form that transformers saves");
        Config::read(folder)
            .and_then(|config| Sizes::of(&config))
            .map_err(|problem| {
                problems.push(problem);
                problems.of(&folder.display().to_string())
            })
    }

    fn of(config: &Config) -> Result<Sizes, Problem> {
        let kind = config.text("model_type")?.unwrap_or_default();
        if kind != LLAMA.model_type {
            return Err(config.problem(
                "model_type",
                format!("is `{kind}`; only `llama` is supported here"),
            ));
        }
        config.only("attention_bias", false)?;
        config.only("mlp_bias", false)?;
        let hidden = config.size("hidden_size")?;
        let mlp = GatedMlp::read(config, hidden)?;
        if mlp.activation != Activation::Silu {
            return Err(config.problem("hidden_act", "is not `silu`"));
        }
        let rope = Settings::read(config, 10_000.0)?;
        if !rope.is_plain()? {
            return Err(
                config.problem("rope_scaling", "scales angles, which is not supported here")
            );
        }
        Ok(Sizes {
            hidden,
            inner: mlp.inner,
            layers: config.size("num_hidden_layers")?,
            heads: Heads::read(config, hidden)?,
            vocabulary: Vocabulary::read(config, hidden, false)?,
            positions: config.size("max_position_embeddings")?,
            epsilon: RmsNorm::read(config, hidden)?.eps,
            theta: rope.theta,
            begin: config
                .float_opt("bos_token_id")?
                .map(|token| token as usize),
        })
    }
}
