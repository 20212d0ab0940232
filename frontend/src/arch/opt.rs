//! OPT (arXiv 2205.01068): learnt positions that begin at two.

use super::Architecture;
use super::blocks::{Activation, Heads, Scores, Sight, Vocabulary, attention, layer_norm};
use lapidary_ir::Tensor;

/// Rows of the table of positions before that of the first token.
const OFFSET: usize = 2;

/// The architecture.
pub static OPT: Architecture = Architecture {
    model_type: "opt",
    classes: &["OPTForCausalLM"],
    ignored: &[],
    build: |net| {
        let config = net.config;
        config.only("layer_norm_elementwise_affine", true)?;
        let root = net.root(&["model.decoder.", "decoder."], "embed_tokens.weight");
        let hidden = config.size("hidden_size")?;
        let width = config.size_or("word_embed_proj_dim", hidden)?;
        let heads = Heads::equal(config, "num_attention_heads", hidden)?;
        let inner = config.size("ffn_dim")?;
        let eps = 1e-5;
        let bias = config.flag_or("enable_bias", true)?;
        let before = config.flag_or("do_layer_norm_before", true)?;
        let last = before && !config.flag_or("_remove_final_layer_norm", false)?;
        let activation = Activation::read(config, "activation_function", Activation::Relu)?;
        let vocabulary = Vocabulary::read(config, width, true)?;
        let n_layers = net.count("num_hidden_layers")?;
        let rows = config.size("max_position_embeddings")? + OFFSET;
        let table = format!("{root}embed_tokens");
        let (ids, mut x) = vocabulary.begin(net, &table)?;
        net.enter(root);
        if width != hidden {
            x = net.linear(x, "project_in", width, hidden, false)?;
        }
        let positions = net.positions(ids)?;
        let mut b = net.b();
        let offset = b.constant(&Tensor::int(OFFSET as i64));
        let positions = b.op("add", &[positions, offset])?;
        let places = net.rows("embed_positions", rows, hidden, positions)?;
        x = net.add(x, places)?;
        for i in 0..n_layers {
            net.enter(format!("{root}layers.{i}."));
            let mut h = x;
            if before {
                h = layer_norm(net, h, "self_attn_layer_norm", hidden, eps)?;
            }
            let mut of =
                |name: &str| net.linear(h, &format!("self_attn.{name}_proj"), hidden, hidden, bias);
            let qkv = [of("q")?, of("k")?, of("v")?];
            let sight = Sight {
                causal: true,
                ..Sight::default()
            };
            let h = attention(net, qkv, heads, sight, Scores::default())?;
            let h = net.linear(h, "self_attn.out_proj", hidden, hidden, bias)?;
            x = net.add(x, h)?;
            if !before {
                x = layer_norm(net, x, "self_attn_layer_norm", hidden, eps)?;
            }
            let mut h = x;
            if before {
                h = layer_norm(net, h, "final_layer_norm", hidden, eps)?;
            }
            let h = net.linear(h, "fc1", hidden, inner, bias)?;
            let h = activation.build(net, h)?;
            let h = net.linear(h, "fc2", inner, hidden, bias)?;
            x = net.add(x, h)?;
            if !before {
                x = layer_norm(net, x, "final_layer_norm", hidden, eps)?;
            }
        }
        net.enter(root);
        if last {
            x = layer_norm(net, x, "final_layer_norm", hidden, eps)?;
        }
        if width != hidden {
            x = net.linear(x, "project_out", hidden, width, false)?;
        }
        vocabulary.end(net, x, &table, "lm_head")
    },
};
