//! OLMoE (arXiv 2409.02060): experts, and queries and keys normalized over all heads.

use super::blocks::{GatedMlp, Heads, QkNorm, RmsNorm, SelfAttention};
use super::experts::Experts;
use super::{Architecture, llama};

/// The architecture.
pub static OLMOE: Architecture = Architecture {
    model_type: "olmoe",
    classes: &["OlmoeForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let bias = config.flag_or("attention_bias", false)?;
        if config.has("clip_qkv") {
            return Err(config
                .problem("clip_qkv", "limits of queries and keys are not supported")
                .into());
        }
        let attention = SelfAttention {
            qkv_bias: bias,
            out_bias: bias,
            norm: QkNorm::Whole(RmsNorm::read(config, hidden)?),
            ..SelfAttention::plain(hidden, Heads::read(config, hidden)?)
        };
        let mlp = GatedMlp::read(config, hidden)?;
        let experts = Experts {
            count: net.count("num_experts")?,
            chosen: config.size("num_experts_per_tok")?,
            renormalized: config.flag_or("norm_topk_prob", false)?,
        };
        llama::layers(
            net,
            false,
            |_| Ok(attention),
            |net, x| {
                experts.build(net, x, hidden, "mlp.gate", |net, x, e| {
                    let names = ["gate", "up", "down"].map(|w| format!("mlp.experts.{e}.{w}_proj"));
                    mlp.named(net, x, [&names[0], &names[1], &names[2]])
                })
            },
        )
    },
};
