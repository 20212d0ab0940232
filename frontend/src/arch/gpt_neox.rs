//! GPT-NeoX (arXiv 2204.06745): a part of each head is rotated, attention and perceptron may read the same states.

use super::Architecture;
use super::blocks::{
    Activation, Heads, Scores, Sight, Vocabulary, attention, joined, layer_norm, part,
};
use super::rope::Settings;
use lapidary_ir::ops::compose::Len;

/// The architecture.
pub static GPT_NEOX: Architecture = Architecture {
    model_type: "gpt_neox",
    classes: &["GPTNeoXForCausalLM"],
    ignored: &[".attention.bias", ".attention.masked_bias"],
    build: |net| {
        const TABLE: &str = "gpt_neox.embed_in";
        let config = net.config;
        let hidden = config.size("hidden_size")?;
        let heads = Heads::equal(config, "num_attention_heads", hidden)?;
        let inner = config.size("intermediate_size")?;
        let eps = config.float_or("layer_norm_eps", 1e-5)?;
        let bias = config.flag_or("attention_bias", true)?;
        let parallel = config.flag_or("use_parallel_residual", true)?;
        let activation = Activation::read(config, "hidden_act", Activation::Gelu)?;
        let vocabulary = Vocabulary::read(config, hidden, false)?;
        let n_layers = net.count("num_hidden_layers")?;
        let (ids, mut x) = vocabulary.begin(net, TABLE)?;
        let mut rotary = Settings::read(config, 10_000.0)?;
        if !config.has("rope_parameters") && !config.has("rotary_pct") {
            rotary.share = 0.25;
        }
        let rope = rotary.angles(net, ids, heads.size)?;
        for i in 0..n_layers {
            net.enter(format!("gpt_neox.layers.{i}."));
            let h = layer_norm(net, x, "input_layernorm", hidden, eps)?;
            // Each head has its query, key and value side by side.
            let all = net.linear(h, "attention.query_key_value", hidden, 3 * hidden, bias)?;
            let lens = [
                Len::Of(all, 0),
                Len::Of(all, 1),
                Len::N(heads.query as i64),
                Len::N(3 * heads.size as i64),
            ];
            let all = net.b().reshape(all, &lens)?;
            let mut of = |n: usize| {
                let y = part(net, all, n * heads.size, (n + 1) * heads.size)?;
                joined(net, y, hidden)
            };
            let (q, k, v) = (of(0)?, of(1)?, of(2)?);
            let q = rope.rotate(net, q, heads.query)?;
            let k = rope.rotate(net, k, heads.key)?;
            let sight = Sight {
                causal: true,
                ..Sight::default()
            };
            let h = attention(net, [q, k, v], heads, sight, Scores::default())?;
            let attended = net.linear(h, "attention.dense", hidden, hidden, bias)?;
            let after = net.add(x, attended)?;
            let h = layer_norm(
                net,
                if parallel { x } else { after },
                "post_attention_layernorm",
                hidden,
                eps,
            )?;
            let h = net.linear(h, "mlp.dense_h_to_4h", hidden, inner, true)?;
            let h = activation.build(net, h)?;
            let h = net.linear(h, "mlp.dense_4h_to_h", inner, hidden, true)?;
            x = net.add(after, h)?;
        }
        net.enter("gpt_neox.");
        let x = layer_norm(net, x, "final_layer_norm", hidden, eps)?;
        vocabulary.end(net, x, TABLE, "embed_out")
    },
};
