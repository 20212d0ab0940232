//! GPT-2 (Language Models are Unsupervised Multitask Learners, 2019): learnt positions, layers that normalize first,
//! weights stored as they multiply.

use super::Architecture;
use super::blocks::{Activation, Heads, Scores, Sight, Vocabulary, attention, layer_norm, part};

/// The architecture.
pub static GPT2: Architecture = Architecture {
    model_type: "gpt2",
    classes: &["GPT2LMHeadModel"],
    // Masks that older versions of transformers saved.
    ignored: &[".attn.bias", ".attn.masked_bias"],
    build: |net| {
        let config = net.config;
        config.only("add_cross_attention", false)?;
        let root = net.root(&["transformer.", ""], "wte.weight");
        let hidden = config.size("n_embd")?;
        let heads = Heads::equal(config, "n_head", hidden)?;
        let inner = config.size_or("n_inner", 4 * hidden)?;
        let eps = config.float_or("layer_norm_epsilon", 1e-5)?;
        let activation = Activation::read(config, "activation_function", Activation::GeluTanh)?;
        let scaled = config.flag_or("scale_attn_weights", true)?;
        let by_layer = config.flag_or("scale_attn_by_inverse_layer_idx", false)?;
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
        for i in 0..n_layers {
            net.enter(format!("{root}h.{i}."));
            let h = layer_norm(net, x, "ln_1", hidden, eps)?;
            let all = net.conv1d(h, "attn.c_attn", hidden, 3 * hidden)?;
            let mut of = |n: usize| part(net, all, n * hidden, (n + 1) * hidden);
            let qkv = [of(0)?, of(1)?, of(2)?];
            let sight = Sight {
                causal: true,
                ..Sight::default()
            };
            let scale = if scaled {
                (heads.size as f64).powf(-0.5)
            } else {
                1.0
            };
            let scores = Scores {
                scale: Some(if by_layer {
                    scale / (i + 1) as f64
                } else {
                    scale
                }),
                softcap: None,
            };
            let h = attention(net, qkv, heads, sight, scores)?;
            let h = net.conv1d(h, "attn.c_proj", hidden, hidden)?;
            x = net.add(x, h)?;
            let h = layer_norm(net, x, "ln_2", hidden, eps)?;
            let h = net.conv1d(h, "mlp.c_fc", hidden, inner)?;
            let h = activation.build(net, h)?;
            let h = net.conv1d(h, "mlp.c_proj", inner, hidden)?;
            x = net.add(x, h)?;
        }
        net.enter(root);
        let x = layer_norm(net, x, "ln_f", hidden, eps)?;
        vocabulary.end(net, x, &table, "lm_head")
    },
};
