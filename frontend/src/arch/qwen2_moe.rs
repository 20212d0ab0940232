//! Qwen2-MoE (arXiv 2407.10671): Qwen2 with experts, one of which all tokens share.

use super::blocks::{GatedMlp, Heads, SelfAttention};
use super::experts::Experts;
use super::{Architecture, llama, qwen2};

/// The architecture.
pub static QWEN2_MOE: Architecture = Architecture {
    model_type: "qwen2_moe",
    classes: &["Qwen2MoeForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let plain = SelfAttention {
            qkv_bias: config.flag_or("qkv_bias", true)?,
            ..SelfAttention::plain(hidden, Heads::read(config, hidden)?)
        };
        if config.size_or("decoder_sparse_step", 1)? != 1 {
            return Err(config
                .problem(
                    "decoder_sparse_step",
                    "layers without experts are not supported",
                )
                .into());
        }
        let of = |setting: &str| {
            let inner = config.size(setting)?;
            GatedMlp::read(config, hidden).map(|mlp| GatedMlp { inner, ..mlp })
        };
        let (mlp, shared) = (
            of("moe_intermediate_size")?,
            of("shared_expert_intermediate_size")?,
        );
        let experts = Experts {
            count: net.count("num_experts")?,
            chosen: config.size("num_experts_per_tok")?,
            renormalized: config.flag_or("norm_topk_prob", false)?,
        };
        llama::layers(net, false, qwen2::windowed(config, plain)?, |net, x| {
            let routed = experts.build(net, x, hidden, "mlp.gate", |net, x, e| {
                let names = ["gate", "up", "down"].map(|w| format!("mlp.experts.{e}.{w}_proj"));
                mlp.named(net, x, [&names[0], &names[1], &names[2]])
            })?;
            let names = ["gate", "up", "down"].map(|w| format!("mlp.shared_expert.{w}_proj"));
            let common = shared.named(net, x, [&names[0], &names[1], &names[2]])?;
            let open = net.linear(x, "mlp.shared_expert_gate", hidden, 1, false)?;
            let mut b = net.b();
            let open = b.op("sigmoid", &[open])?;
            let common = b.op("mul", &[open, common])?;
            net.add(routed, common)
        })
    },
};
