//! GPT-BigCode (arXiv 2301.03988): GPT-2 with one head of keys and values for all heads of queries.

use super::Architecture;
use super::blocks::{Activation, Heads, Scores, Sight, Vocabulary, attention, layer_norm, part};

/// The architecture.
pub static GPT_BIGCODE: Architecture = Architecture {
    model_type: "gpt_bigcode",
    classes: &["GPTBigCodeForCausalLM"],
    ignored: &[".attn.bias", ".attn.masked_bias"],
    build: |net| {
        let config = net.config;
        config.only("add_cross_attention", false)?;
        config.only("multi_query", true)?;
        config.only("scale_attn_weights", true)?;
        let root = "transformer.";
        let hidden = config.size("n_embd")?;
        let heads = Heads {
            key: 1,
            ..Heads::equal(config, "n_head", hidden)?
        };
        let inner = config.size_or("n_inner", 4 * hidden)?;
        let eps = config.float_or("layer_norm_epsilon", 1e-5)?;
        let activation = Activation::read(config, "activation_function", Activation::GeluTanh)?;
        let vocabulary = Vocabulary::read(config, hidden, true)?;
        let n_layers = net.count("n_layer")?;
        let table = format!("{root}wte");
        let (ids, x) = vocabulary.begin(net, &table)?;
        let positions = net.positions(ids)?;
        let places = net.rows(
            &format!("{root}wpe"),
            config.size("n_positions")?,
            hidden,
            positions,
        )?;
        let mut x = net.add(x, places)?;
        let width = hidden + 2 * heads.size;
        for i in 0..n_layers {
            net.enter(format!("{root}h.{i}."));
            let h = layer_norm(net, x, "ln_1", hidden, eps)?;
            let all = net.linear(h, "attn.c_attn", hidden, width, true)?;
            let q = part(net, all, 0, hidden)?;
            let k = part(net, all, hidden, hidden + heads.size)?;
            let v = part(net, all, hidden + heads.size, width)?;
            let sight = Sight {
                causal: true,
                ..Sight::default()
            };
            let h = attention(net, [q, k, v], heads, sight, Scores::default())?;
            let h = net.linear(h, "attn.c_proj", hidden, hidden, true)?;
            x = net.add(x, h)?;
            let h = layer_norm(net, x, "ln_2", hidden, eps)?;
            let h = net.linear(h, "mlp.c_fc", hidden, inner, true)?;
            let h = activation.build(net, h)?;
            let h = net.linear(h, "mlp.c_proj", inner, hidden, true)?;
            x = net.add(x, h)?;
        }
        net.enter(root);
        let x = layer_norm(net, x, "ln_f", hidden, eps)?;
        vocabulary.end(net, x, &table, "lm_head")
    },
};
