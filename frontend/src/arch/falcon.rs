//! Falcon (arXiv 2311.16867): attention and perceptron side by side, few heads of keys and values.

use super::Architecture;
use super::blocks::{
    Activation, Heads, Scores, Sight, Vocabulary, attention, joined, layer_norm, part,
};
use super::rope::Settings;
use lapidary_ir::ops::compose::Len;

/// The architecture.
pub static FALCON: Architecture = Architecture {
    model_type: "falcon",
    classes: &["FalconForCausalLM"],
    ignored: &[],
    build: |net| {
        const TABLE: &str = "transformer.word_embeddings";
        let config = net.config;
        config.only("alibi", false)?;
        let grouped = config.flag_or("new_decoder_architecture", false)?;
        if !grouped {
            config.only("multi_query", true)?;
        }
        let hidden = config.size("hidden_size")?;
        let mut heads = Heads::equal(config, "num_attention_heads", hidden)?;
        heads.key = if grouped {
            config.size_or("num_kv_heads", heads.query)?
        } else {
            1
        };
        if !heads.query.is_multiple_of(heads.key) {
            return Err(config
                .problem(
                    "num_kv_heads",
                    format!("does not divide {} heads", heads.query),
                )
                .into());
        }
        let inner = config.size_or("ffn_hidden_size", 4 * hidden)?;
        let eps = config.float_or("layer_norm_epsilon", 1e-5)?;
        let bias = config.flag_or("bias", false)?;
        let parallel = grouped || config.flag_or("parallel_attn", true)?;
        let two_norms = grouped && config.size_or("num_ln_in_parallel_attn", 2)? == 2;
        let activation = Activation::read(config, "activation", Activation::Gelu)?;
        let vocabulary = Vocabulary::read(config, hidden, true)?;
        let n_layers = net.count("num_hidden_layers")?;
        let (ids, mut x) = vocabulary.begin(net, TABLE)?;
        let rope = Settings::read(config, 10_000.0)?.angles(net, ids, heads.size)?;
        let width = heads.queries() + 2 * heads.keys();
        // A group is the queries that share a key, the key and the value.
        let group = (heads.query / heads.key + 2) * heads.size;
        for i in 0..n_layers {
            net.enter(format!("transformer.h.{i}."));
            let first = if two_norms {
                "ln_attn"
            } else {
                "input_layernorm"
            };
            let normed = layer_norm(net, x, first, hidden, eps)?;
            let all = net.linear(
                normed,
                "self_attention.query_key_value",
                hidden,
                width,
                bias,
            )?;
            let lens = [
                Len::Of(all, 0),
                Len::Of(all, 1),
                Len::N(heads.key as i64),
                Len::N(group as i64),
            ];
            let all = net.b().reshape(all, &lens)?;
            let mut of = |begin: usize, end: usize, width: usize| {
                let y = part(net, all, begin, end)?;
                joined(net, y, width)
            };
            let (key, value) = (group - 2 * heads.size, group - heads.size);
            let q = of(0, key, heads.queries())?;
            let k = of(key, value, heads.keys())?;
            let v = of(value, group, heads.keys())?;
            let q = rope.rotate(net, q, heads.query)?;
            let k = rope.rotate(net, k, heads.key)?;
            let sight = Sight {
                causal: true,
                ..Sight::default()
            };
            let h = attention(net, [q, k, v], heads, sight, Scores::default())?;
            let attended = net.linear(h, "self_attention.dense", heads.queries(), hidden, bias)?;
            let after = net.add(x, attended)?;
            let h = match (parallel, two_norms) {
                (true, true) => layer_norm(net, x, "ln_mlp", hidden, eps)?,
                (true, false) => normed,
                (false, _) => layer_norm(net, after, "post_attention_layernorm", hidden, eps)?,
            };
            let h = net.linear(h, "mlp.dense_h_to_4h", hidden, inner, bias)?;
            let h = activation.build(net, h)?;
            let h = net.linear(h, "mlp.dense_4h_to_h", inner, hidden, bias)?;
            x = net.add(after, h)?;
        }
        net.enter("transformer.");
        let x = layer_norm(net, x, "ln_f", hidden, eps)?;
        vocabulary.end(net, x, TABLE, "lm_head")
    },
};
