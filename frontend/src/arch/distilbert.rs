//! DistilBERT (arXiv 1910.01108): BERT with half the layers, and without segments.

use super::Architecture;
use super::blocks::{Activation, Heads, Scores, Sight, attention, key_mask, layer_norm};
use lapidary_ir::ops::compose::Len;

/// The architecture.
pub static DISTILBERT: Architecture = Architecture {
    model_type: "distilbert",
    classes: &["DistilBertModel", "DistilBertForMaskedLM"],
    ignored: &["vocab_transform.", "vocab_layer_norm.", "vocab_projector."],
    build: |net| {
        let config = net.config;
        let root = net.root(&["", "distilbert."], "embeddings.word_embeddings.weight");
        let eps = 1e-12;
        let hidden = config.size("dim")?;
        let inner = config.size("hidden_dim")?;
        let heads = Heads::equal(config, "n_heads", hidden)?;
        let activation = Activation::read(config, "activation", Activation::Gelu)?;
        let (words, places) = (
            config.size("vocab_size")?,
            config.size("max_position_embeddings")?,
        );
        let n_layers = net.count("n_layers")?;
        let ids = net.input("input_ids");
        let mask = net.input("attention_mask");
        net.enter(format!("{root}embeddings."));
        let mut x = net.rows("word_embeddings", words, hidden, ids)?;
        let positions = net.b().iota(Len::Of(ids, 1))?;
        let y = net.rows("position_embeddings", places, hidden, positions)?;
        x = net.add(x, y)?;
        x = layer_norm(net, x, "LayerNorm", hidden, eps)?;
        let sight = Sight {
            mask: Some(key_mask(net, mask)?),
            ..Sight::default()
        };
        for i in 0..n_layers {
            net.enter(format!("{root}transformer.layer.{i}."));
            let mut of =
                |name: &str| net.linear(x, &format!("attention.{name}_lin"), hidden, hidden, true);
            let qkv = [of("q")?, of("k")?, of("v")?];
            let h = attention(net, qkv, heads, sight, Scores::default())?;
            let h = net.linear(h, "attention.out_lin", hidden, hidden, true)?;
            x = net.add(x, h)?;
            x = layer_norm(net, x, "sa_layer_norm", hidden, eps)?;
            let h = net.linear(x, "ffn.lin1", hidden, inner, true)?;
            let h = activation.build(net, h)?;
            let h = net.linear(h, "ffn.lin2", inner, hidden, true)?;
            x = net.add(x, h)?;
            x = layer_norm(net, x, "output_layer_norm", hidden, eps)?;
        }
        net.states(x, mask, places)
    },
};
