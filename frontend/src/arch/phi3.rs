//! Phi-3 (arXiv 2404.14219): Llama with projections that are fused.

use super::Architecture;
use super::blocks::{GatedMlp, Heads, RmsNorm, Scores, Sight, Vocabulary, attention, part, window};
use super::rope::Settings;

/// The architecture.
pub static PHI3: Architecture = Architecture {
    model_type: "phi3",
    classes: &["Phi3ForCausalLM"],
    ignored: &[],
    build: |net| {
        const TABLE: &str = "model.embed_tokens";
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let heads = Heads::read(config, hidden)?;
        let norm = RmsNorm::read(config, hidden)?;
        let mlp = GatedMlp::read(config, hidden)?;
        let vocabulary = Vocabulary::read(config, hidden, false)?;
        let n_layers = net.count("num_hidden_layers")?;
        let (ids, mut x) = vocabulary.begin(net, TABLE)?;
        let rope = Settings::read(config, 10_000.0)?.angles(net, ids, heads.size)?;
        let (queries, keys) = (heads.queries(), heads.keys());
        for i in 0..n_layers {
            net.enter(format!("model.layers.{i}."));
            let h = norm.build(net, x, "input_layernorm")?;
            let all = net.linear(h, "self_attn.qkv_proj", hidden, queries + 2 * keys, false)?;
            let q = part(net, all, 0, queries)?;
            let q = rope.rotate(net, q, heads.query)?;
            let k = part(net, all, queries, queries + keys)?;
            let k = rope.rotate(net, k, heads.key)?;
            let v = part(net, all, queries + keys, queries + 2 * keys)?;
            let sight = Sight {
                causal: true,
                window: window(config, i, |_| true)?,
                mask: None,
            };
            let h = attention(net, [q, k, v], heads, sight, Scores::default())?;
            let h = net.linear(h, "self_attn.o_proj", queries, hidden, false)?;
            x = net.add(x, h)?;
            let h = norm.build(net, x, "post_attention_layernorm")?;
            let both = net.linear(h, "mlp.gate_up_proj", hidden, 2 * mlp.inner, false)?;
            let gate = part(net, both, 0, mlp.inner)?;
            let up = part(net, both, mlp.inner, 2 * mlp.inner)?;
            let h = mlp.close(net, gate, up, "mlp.down_proj")?;
            x = net.add(x, h)?;
        }
        net.enter("model.");
        let x = norm.build(net, x, "norm")?;
        vocabulary.end(net, x, TABLE, "lm_head")
    },
};
