//! Blocks that many architectures share: normalization, attention with grouped heads, multi-layer perceptrons, and how
//! a decoder begins and ends.

use super::net::{Built, Net, Stop};
use super::rope::Rope;
use crate::checkpoint::config::Config;
use crate::error::Problem;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{Attr, ElemType, ValueId};

/// Normalization over the last axis by the root mean square.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// Length of the axis.
    pub width: usize,
    /// Added to the mean of the squares.
    pub eps: f64,
    /// The weight is stored less one (Gemma).
    pub plus_one: bool,
}

impl RmsNorm {
    /// Over `width` numbers, with the `rms_norm_eps` of the settings.
    pub fn read(config: &Config, width: usize) -> Result<RmsNorm, Problem> {
        let eps = config.float_or("rms_norm_eps", 1e-6)?;
        let plus_one = false;
        Ok(RmsNorm {
            width,
            eps,
            plus_one,
        })
    }

    /// Over another number of numbers.
    pub fn over(self, width: usize) -> RmsNorm {
        RmsNorm { width, ..self }
    }

    /// Normalizes `x` with the weight `name.weight`.
    pub fn build(&self, net: &mut Net, x: ValueId, name: &str) -> Built {
        let mut scale = net.wide(&format!("{name}.weight"), &[self.width])?;
        let mut b = net.b();
        if self.plus_one {
            let one = b.lit(scale, 1.0)?;
            scale = b.op("add", &[scale, one])?;
        }
        let attrs = [
            ("axis", (-1i64).into()),
            ("epsilon", (self.eps as f32).into()),
        ];
        Ok(b.op_with("rms_normalization", &[x, scale], attrs)?)
    }
}

/// Layer normalization over the last axis with `name.weight` and `name.bias`, or as they were once called.
pub fn layer_norm(net: &mut Net, x: ValueId, name: &str, width: usize, eps: f64) -> Built {
    let [scale, shift] = match net.has(&format!("{name}.gamma")) {
        true => ["gamma", "beta"],
        false => ["weight", "bias"],
    };
    let scale = net.wide(&format!("{name}.{scale}"), &[width])?;
    let shift = net.wide(&format!("{name}.{shift}"), &[width])?;
    let attrs = [("axis", (-1i64).into()), ("epsilon", (eps as f32).into())];
    Ok(net
        .b()
        .op_with("layer_normalization", &[x, scale, shift], attrs)?)
}

/// Numbers of heads, and of numbers in each.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads of queries.
    pub query: usize,
    /// Heads of keys and values, each shared by as many heads of queries.
    pub key: usize,
    /// Numbers of a head.
    pub size: usize,
}

impl Heads {
    /// As many heads of each kind, which divide `width` among them.
    pub fn equal(config: &Config, setting: &str, width: usize) -> Result<Heads, Problem> {
        let query = config.size(setting)?;
        Heads::checked(
            config,
            setting,
            query,
            query,
            width / query,
            width.is_multiple_of(query),
        )
    }

    /// By the usual settings, for states of `width` numbers.
    pub fn read(config: &Config, width: usize) -> Result<Heads, Problem> {
        const QUERY: &str = "num_attention_heads";
        let query = config.size(QUERY)?;
        let key = config.size_or("num_key_value_heads", query)?;
        let size = config.size_opt("head_dim")?;
        let fits = size.is_some() || width.is_multiple_of(query);
        Heads::checked(
            config,
            QUERY,
            query,
            key,
            size.unwrap_or(width / query),
            fits,
        )
    }

    fn checked(
        config: &Config,
        setting: &str,
        query: usize,
        key: usize,
        size: usize,
        fits: bool,
    ) -> Result<Heads, Problem> {
        if !fits || size == 0 {
            return Err(config.problem(
                setting,
                format!("is {query}, which does not divide the width of the states"),
            ));
        }
        if !query.is_multiple_of(key) {
            return Err(config.problem(
                setting,
                format!("is {query}, no multiple of the {key} heads of keys"),
            ));
        }
        Ok(Heads { query, key, size })
    }

    /// Numbers of all queries of a position.
    pub fn queries(&self) -> usize {
        self.query * self.size
    }

    /// Numbers of all keys of a position.
    pub fn keys(&self) -> usize {
        self.key * self.size
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sight {
    /// Only those up to its own position.
    pub causal: bool,
    /// Only this many up to its own position.
    pub window: Option<usize>,
    /// A condition, broadcast to `[batch, heads, queries, keys]`.
    pub mask: Option<ValueId>,
}

/// Scores of attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scores {
    /// Their factor; else 1 / sqrt(numbers of a head).
    pub scale: Option<f64>,
    /// Their bound, if they have one.
    pub softcap: Option<f64>,
}

/// Attention of `q` to `k` and `v`, `f32[batch,seq,heads * size]` each.
pub fn attention(
    net: &mut Net,
    [q, k, v]: [ValueId; 3],
    heads: Heads,
    sight: Sight,
    scores: Scores,
) -> Built {
    let mut attrs: Vec<(&str, Attr)> = vec![
        ("q_num_heads", (heads.query as i64).into()),
        ("kv_num_heads", (heads.key as i64).into()),
        ("is_causal", sight.causal.into()),
    ];
    attrs.extend(
        sight
            .window
            .map(|w| ("left_window_size", Attr::Int(w as i64 - 1))),
    );
    attrs.extend(scores.scale.map(|s| ("scale", Attr::Float(s as f32))));
    attrs.extend(scores.softcap.map(|s| ("softcap", Attr::Float(s as f32))));
    let (k, filled) = net.kept(k, "key", heads.keys())?;
    let (v, _) = net.kept(v, "value", heads.keys())?;
    let mut operands = vec![Some(q), Some(k), Some(v), sight.mask];
    // The op's own operands of keys and values that came before are copied, not added to.
    operands.extend(filled.into_iter().flat_map(|f| [None, None, Some(f)]));
    while operands.last() == Some(&None) {
        operands.pop();
    }
    Ok(net.b().multi("attention", &operands, &attrs, 1)?[0])
}

/// What queries and keys are normalized over before they are rotated.
#[derive(Clone, Copy, Debug)]
pub enum QkNorm {
    /// Not at all.
    None,
    /// The numbers of each head.
    Head(RmsNorm),
    /// All heads together.
    Whole(RmsNorm),
}

/// Causal self-attention with `self_attn.{q,k,v,o}_proj`, as Llama and its relatives have it.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention {
    /// Width of the states.
    pub hidden: usize,
    /// The heads.
    pub heads: Heads,
    /// The projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The projection of the result has a bias.
    pub out_bias: bool,
    /// Normalization of queries and keys, by `self_attn.{q,k}_norm`.
    pub norm: QkNorm,
    /// Normalization of the result before its projection, by `self_attn.attn_sub_norm`.
    pub sub_norm: Option<RmsNorm>,
    /// Keys up to this far back are seen; else all.
    pub window: Option<usize>,
    /// Scores.
    pub scores: Scores,
}

impl SelfAttention {
    /// Without biases, normalizations and window.
    pub fn plain(hidden: usize, heads: Heads) -> SelfAttention {
        SelfAttention {
            hidden,
            heads,
            qkv_bias: false,
            out_bias: false,
            norm: QkNorm::None,
            sub_norm: None,
            window: None,
            scores: Scores::default(),
        }
    }

    /// Attention of `x`, `f32[batch,seq,hidden]`, to itself.
    pub fn build(&self, net: &mut Net, x: ValueId, rope: &Rope) -> Built {
        let Heads { query, key, .. } = self.heads;
        let parts = [("q", query), ("k", key), ("v", key)].map(|(name, heads)| {
            let to = heads * self.heads.size;
            let y = net.linear(
                x,
                &format!("self_attn.{name}_proj"),
                self.hidden,
                to,
                self.qkv_bias,
            )?;
            if name == "v" {
                return Ok(y);
            }
            let y = self.normalized(net, y, &format!("self_attn.{name}_norm"), heads)?;
            rope.rotate(net, y, heads)
        });
        let [q, k, v] = parts;
        let sight = Sight {
            causal: true,
            window: self.window,
            mask: None,
        };
        let mut y = attention(net, [q?, k?, v?], self.heads, sight, self.scores)?;
        if let Some(norm) = self.sub_norm {
            y = norm.build(net, y, "self_attn.attn_sub_norm")?;
        }
        net.linear(
            y,
            "self_attn.o_proj",
            self.heads.queries(),
            self.hidden,
            self.out_bias,
        )
    }

    fn normalized(&self, net: &mut Net, x: ValueId, name: &str, heads: usize) -> Built {
        let size = self.heads.size;
        match self.norm {
            QkNorm::None => Ok(x),
            QkNorm::Whole(norm) => norm.over(heads * size).build(net, x, name),
            QkNorm::Head(norm) => {
                let lens = [
                    Len::Of(x, 0),
                    Len::Of(x, 1),
                    Len::N(heads as i64),
                    Len::N(size as i64),
                ];
                let apart = net.b().reshape(x, &lens)?;
                let y = norm.over(size).build(net, apart, name)?;
                joined(net, y, heads * size)
            }
        }
    }
}

/// `x` of shape `[batch, seq, …]` as `[batch, seq, width]`.
pub fn joined(net: &mut Net, x: ValueId, width: usize) -> Built {
    Ok(net
        .b()
        .reshape(x, &[Len::Of(x, 0), Len::Of(x, 1), Len::N(width as i64)])?)
}

/// Elements `begin..end` of the last axis.
pub fn part(net: &mut Net, x: ValueId, begin: usize, end: usize) -> Built {
    Ok(net.b().slice(x, -1, begin as i64, end as i64)?)
}

/// Functions between the layers of a perceptron.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// By the error function.
    Gelu,
    /// By the hyperbolic tangent.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0) squared.
    Relu2,
}

/// Names of activations in settings.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
];

impl Activation {
    /// The activation that a setting names, or this one.
    pub fn read(
        config: &Config,
        setting: &str,
        default: Activation,
    ) -> Result<Activation, Problem> {
        let Some(name) = config.text(setting)? else {
            return Ok(default);
        };
        let found = ACTIVATIONS.iter().find(|(n, _)| *n == name);
        found.map(|(_, a)| *a).ok_or_else(|| {
            let known: Vec<&str> = ACTIVATIONS.iter().map(|(n, _)| *n).collect();
            Problem {
                remedy: Some(format!("known are {}", known.join(", "))),
                ..config.problem(setting, format!("the activation `{name}` is not supported"))
            }
        })
    }

    /// The activation of `x`.
    pub fn build(self, net: &mut Net, x: ValueId) -> Built {
        let mut b = net.b();
        Ok(match self {
            Activation::Silu => b.op("swish", &[x])?,
            Activation::Gelu => b.op("gelu", &[x])?,
            Activation::GeluTanh => b.op_with("gelu", &[x], [("approximate", "tanh".into())])?,
            Activation::Relu => b.op("relu", &[x])?,
            Activation::Relu2 => {
                let y = b.op("relu", &[x])?;
                b.op("mul", &[y, y])?
            }
        })
    }
}

/// A perceptron whose inner states are gated: down(act(gate(x)) * up(x)).
#[derive(Clone, Copy, Debug)]
pub struct GatedMlp {
    /// Width of the states.
    pub hidden: usize,
    /// Width of the inner states.
    pub inner: usize,
    /// The activation.
    pub activation: Activation,
    /// All three have biases.
    pub bias: bool,
    /// Normalization of the inner states, by `mlp.ffn_sub_norm`.
    pub sub_norm: Option<RmsNorm>,
}

impl GatedMlp {
    /// By the usual settings, without biases.
    pub fn read(config: &Config, hidden: usize) -> Result<GatedMlp, Problem> {
        Ok(GatedMlp {
            hidden,
            inner: config.size("intermediate_size")?,
            activation: Activation::read(config, "hidden_act", Activation::Silu)?,
            bias: false,
            sub_norm: None,
        })
    }

    /// With `mlp.{gate,up,down}_proj`.
    pub fn build(&self, net: &mut Net, x: ValueId) -> Built {
        self.named(net, x, ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
    }

    /// With projections of these names.
    pub fn named(&self, net: &mut Net, x: ValueId, [gate, up, down]: [&str; 3]) -> Built {
        let gate = net.linear(x, gate, self.hidden, self.inner, self.bias)?;
        let up = net.linear(x, up, self.hidden, self.inner, self.bias)?;
        self.close(net, gate, up, down)
    }

    /// From what the first two projections gave.
    pub fn close(&self, net: &mut Net, gate: ValueId, up: ValueId, down: &str) -> Built {
        let gate = self.activation.build(net, gate)?;
        let mut y = net.b().op("mul", &[gate, up])?;
        if let Some(norm) = self.sub_norm {
            y = norm.over(self.inner).build(net, y, "mlp.ffn_sub_norm")?;
        }
        net.linear(y, down, self.inner, self.hidden, self.bias)
    }
}

/// How a decoder begins and ends: a table of tokens, and scores of all of them.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary {
    /// Tokens.
    pub size: usize,
    /// Width of their vectors.
    pub width: usize,
    /// The scores' weights are the table.
    pub tied: bool,
}

impl Vocabulary {
    /// By the usual settings; `tied` where they do not say.
    pub fn read(config: &Config, width: usize, tied: bool) -> Result<Vocabulary, Problem> {
        Ok(Vocabulary {
            size: config.size("vocab_size")?,
            width,
            tied: config.flag_or("tie_word_embeddings", tied)?,
        })
    }

    /// The input of tokens, and their vectors from the table `name.weight`.
    pub fn begin(&self, net: &mut Net, name: &str) -> Result<(ValueId, ValueId), Stop> {
        let ids = net.tokens()?;
        let x = net.rows(name, self.size, self.width, ids)?;
        Ok((ids, x))
    }

    /// The scores of all tokens: with the weights `lm_head.weight`, or those of the table `name.weight`.
    pub fn scores(&self, net: &mut Net, x: ValueId, table: &str, head: &str) -> Built {
        let x = net.wanted(x)?;
        net.enter("");
        if self.tied {
            net.skip(&format!("{head}.weight"));
        }
        let name = if self.tied { table } else { head };
        net.linear(x, name, self.width, self.size, false)
    }

    /// The scores as the network's output.
    pub fn end(&self, net: &mut Net, x: ValueId, table: &str, head: &str) -> Result<(), Stop> {
        let y = self.scores(net, x, table, head)?;
        net.output("logits", y);
        Ok(())
    }
}

/// The length of the window, if it is set and layers of this index have it.
pub fn window(
    config: &Config,
    layer: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Option<usize>, Problem> {
    let kinds = config.texts("layer_types")?;
    let slides = match kinds.as_ref().and_then(|k| k.get(layer)) {
        Some(kind) => kind == "sliding_attention",
        None => otherwise(layer),
    };
    if slides {
        config.size_opt("sliding_window")
    } else {
        Ok(None)
    }
}

/// A condition of `input_ids`' type `[batch, seq]` as one for attention, `bool[batch,1,1,seq]`.
pub fn key_mask(net: &mut Net, mask: ValueId) -> Built {
    let mut b = net.b();
    let mask = b.cast(mask, ElemType::Bool)?;
    Ok(b.unsqueeze(mask, &[1, 2])?)
}
