//! BERT (arXiv 1810.04805) and what is built like it, MiniLM among them: an encoder. Its heads for tasks are left out.

use super::Architecture;
use super::blocks::{Activation, Heads, Scores, Sight, attention, key_mask, layer_norm};
use super::net::{Built, Net, Stop};
use lapidary_ir::ValueId;
use lapidary_ir::ops::compose::Len;

/// The architecture.
pub static BERT: Architecture = Architecture {
    model_type: "bert",
    classes: &["BertModel", "BertForMaskedLM", "BertForPreTraining"],
    ignored: &["pooler.", "bert.pooler.", "cls."],
    build: |net| {
        let root = net.root(&["", "bert."], "embeddings.word_embeddings.weight");
        build(net, root, 0, |net, ids| {
            Ok(net.b().iota(Len::Of(ids, 1))?)
        })
    },
};

/// The encoder under the scope `root`; `positions` gives rows of the table of positions for the tokens, from row `first` on.
pub fn build(
    net: &mut Net,
    root: &str,
    first: usize,
    positions: impl Fn(&mut Net, ValueId) -> Built,
) -> Result<(), Stop> {
    let config = net.config;
    config.only("is_decoder", false)?;
    if let Some(kind) = config
        .text("position_embedding_type")?
        .filter(|k| k != "absolute")
    {
        let reason = format!("positions of kind `{kind}` are not supported");
        return Err(config.problem("position_embedding_type", reason).into());
    }
    let hidden = config.size("hidden_size")?;
    let inner = config.size("intermediate_size")?;
    let heads = Heads::equal(config, "num_attention_heads", hidden)?;
    let eps = config.float_or("layer_norm_eps", 1e-12)?;
    let activation = Activation::read(config, "hidden_act", Activation::Gelu)?;
    let [words, kinds] = ["vocab_size", "type_vocab_size"].map(|s| config.size(s));
    let places = config.size("max_position_embeddings")?;
    let longest = places.checked_sub(first).filter(|&n| n > 0);
    let longest = longest.ok_or_else(|| {
        let reason = format!("is {places}, but the first token has position {first}");
        config.problem("max_position_embeddings", reason)
    })?;
    let n_layers = net.count("num_hidden_layers")?;
    let ids = net.input("input_ids");
    let mask = net.input("attention_mask");
    let segments = net.input("token_type_ids");
    net.enter(format!("{root}embeddings."));
    let positions = positions(net, ids)?;
    let mut x = net.rows("word_embeddings", words?, hidden, ids)?;
    let y = net.rows("token_type_embeddings", kinds?, hidden, segments)?;
    x = net.add(x, y)?;
    let y = net.rows("position_embeddings", places, hidden, positions)?;
    x = net.add(x, y)?;
    x = layer_norm(net, x, "LayerNorm", hidden, eps)?;
    let sight = Sight {
        mask: Some(key_mask(net, mask)?),
        ..Sight::default()
    };
    for i in 0..n_layers {
        net.enter(format!("{root}encoder.layer.{i}."));
        let mut of =
            |name: &str| net.linear(x, &format!("attention.self.{name}"), hidden, hidden, true);
        let qkv = [of("query")?, of("key")?, of("value")?];
        let h = attention(net, qkv, heads, sight, Scores::default())?;
        let h = net.linear(h, "attention.output.dense", hidden, hidden, true)?;
        x = net.add(x, h)?;
        x = layer_norm(net, x, "attention.output.LayerNorm", hidden, eps)?;
        let h = net.linear(x, "intermediate.dense", hidden, inner, true)?;
        let h = activation.build(net, h)?;
        let h = net.linear(h, "output.dense", inner, hidden, true)?;
        x = net.add(x, h)?;
        x = layer_norm(net, x, "output.LayerNorm", hidden, eps)?;
    }
    net.states(x, mask, longest)
}
