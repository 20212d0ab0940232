//! Which network a file holds: its settings as a checkpoint's, its tensors by a checkpoint's names.
//!
//! [`super::names`] says what llama.cpp's converter made of an architecture: renamed settings and tensors, experts stacked to one
//! tensor, and rows of queries and keys reordered where its rotary embedding turns neighbours. The same tables
//! serve [`crate::export`], the other way round.

use super::blocks;
use super::file::{File, Meta, Stored, Written};
use super::names::{INNER, NETWORKS, Network, OUTER, ROUTERS, SETTINGS};
use crate::checkpoint::config::Config;
use crate::checkpoint::weights::Weights;
use crate::error::Problem;
use bytes::Bytes;
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::{ElemType, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Factors of the rotary embedding's wave lengths.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The settings and weights of a file named `name`.
pub fn of(mut file: File, name: &str) -> Result<(Config, Weights), Problem> {
    let network = network(&file, name)?;
    if let Some(Meta::Int(parts @ 2..)) = file.meta.get("split.count") {
        return Err(Problem {
            place: format!("metadata `split.count` of `{name}`"),
            reason: format!("says that it is one of {parts} files"),
            remedy: Some("`llama-gguf-split --merge` makes one file of them".to_owned()),
        });
    }
    let mut settings = Map::new();
    let arch = network.name;
    for &(theirs, ours) in SETTINGS.iter().chain(network.settings) {
        if let Some(value) = file.meta.get(&format!("{arch}.{theirs}")) {
            settings.insert(ours.to_owned(), json_of(value));
        }
    }
    let experts = settings
        .get("num_local_experts")
        .and_then(Value::as_u64)
        .unwrap_or(0)
        > 0;
    let model_type = network.model_types[usize::from(experts)];
    if model_type.is_empty() {
        let only = if experts { "without" } else { "with" };
        return Err(Problem {
            place: format!("metadata `{arch}.expert_count` of `{name}`"),
            reason: format!("`{arch}` is read {only} experts only"),
            remedy: Some("use the checkpoint that the file was made from".to_owned()),
        });
    }
    settings.insert("model_type".to_owned(), json!(model_type));
    let vocabulary = file.tensors.get("token_embd.weight").map(|t| t.shape[0]);
    settings.insert("vocab_size".to_owned(), json!(vocabulary.unwrap_or(0)));
    let tied = !file.tensors.contains_key("output.weight");
    settings.insert("tie_word_embeddings".to_owned(), json!(tied));
    for (probe, ours) in [("attn_q", "attention_bias"), ("ffn_up", "mlp_bias")] {
        let biased = file.tensors.contains_key(&format!("blk.0.{probe}.bias"));
        settings.insert(ours.to_owned(), json!(biased));
    }
    let factors = file.tensors.remove(ROPE_FACTORS);
    let rope = rope(&file, name, arch, factors.as_ref())?;
    settings.insert("rope_parameters".to_owned(), rope);
    (network.complete)(&mut settings);
    let config = Config::of(settings, name);
    let heads = heads(&config)?;
    let mut terms = vec![];
    for (theirs, stored) in &file.tensors {
        let found = named(theirs, stored, network, heads).map_err(|reason| Problem {
            place: format!("tensor `{theirs}` of `{name}`"),
            reason,
            remedy: Some(
                "is the file made by llama.cpp's converter, for this architecture?".to_owned(),
            ),
        })?;
        terms.extend(found);
    }
    Ok((config, Weights::of_terms(terms, name)))
}

fn network(file: &File, name: &str) -> Result<&'static Network, Problem> {
    const KEY: &str = "general.architecture";
    let found = match file.meta.get(KEY) {
        Some(Meta::Text(text)) => text.as_str(),
        _ => "",
    };
    NETWORKS.iter().find(|n| n.name == found).ok_or_else(|| {
        let known: Vec<&str> = NETWORKS.iter().map(|n| n.name).collect();
        Problem {
            place: format!("metadata `{KEY}` of `{name}`"),
            reason: format!("`{found}` is not read from GGUF files"),
            remedy: Some(format!(
                "known are {}; or use the checkpoint that it was made from",
                known.join(", ")
            )),
        }
    })
}

fn json_of(value: &Meta) -> Value {
    match value {
        Meta::Int(n) => i64::try_from(*n).map_or(Value::Null, Value::from),
        Meta::Float(v) => Value::from(*v),
        Meta::Bool(b) => Value::from(*b),
        Meta::Text(t) => Value::from(t.as_str()),
        // A number for each layer, if it is the same for all.
        Meta::List(list) => match list.split_first() {
            Some((first, rest)) if rest.iter().all(|v| v == first) => json_of(first),
            _ => Value::from("a list of different numbers"),
        },
        Meta::Long { count, .. } => Value::from(format!("a list of {count} values")),
    }
}

/// The rotary embedding as `rope_parameters`.
fn rope(file: &File, name: &str, arch: &str, factors: Option<&Stored>) -> Result<Value, Problem> {
    let get = |key: &str| file.meta.get(&format!("{arch}.rope.{key}")).map(json_of);
    let mut rope = json!({ "rope_theta": get("freq_base").unwrap_or(json!(10_000.0)) });
    match get("scaling.type").as_ref().and_then(Value::as_str) {
        None | Some("none") => {}
        Some(kind) => {
            rope["rope_type"] = json!(kind);
            rope["factor"] = get("scaling.factor").unwrap_or(Value::Null);
        }
    }
    if let Some(stored) = factors {
        let values = whole(stored)
            .and_then(|e| e.decode().ok())
            .and_then(|t| t.to_f64s());
        let values = values.ok_or_else(|| Problem {
            place: format!("tensor `{ROPE_FACTORS}` of `{name}`"),
            reason: "is no list of numbers".to_owned(),
            remedy: None,
        })?;
        rope["rope_type"] = json!("factors");
        rope["factors"] = json!(values);
    }
    let size = |key: &str| file.meta.get(&format!("{arch}.{key}")).map(json_of);
    let size = |key: &str| size(key).and_then(|v| v.as_f64());
    let head = size("attention.key_length").or_else(|| {
        let [width, heads] = ["embedding_length", "attention.head_count"].map(size);
        Some(width? / heads?)
    });
    if let (Some(turned), Some(head)) = (size("rope.dimension_count"), head)
        && turned != head
    {
        rope["partial_rotary_factor"] = json!(turned / head);
    }
    Ok(rope)
}

/// Heads of queries, of keys, and the size of each.
fn heads(config: &Config) -> Result<[usize; 3], Problem> {
    let query = config.size("num_attention_heads")?;
    let key = config.size_or("num_key_value_heads", query)?;
    let size = config.size_or("head_dim", config.size("hidden_size")? / query)?;
    Ok([query, key, size])
}

/// A tensor's name and term in a checkpoint; of stacked experts, each one's.
fn named(
    theirs: &str,
    stored: &Stored,
    network: &Network,
    [query, key, size]: [usize; 3],
) -> Result<Vec<(String, Encoding)>, String> {
    let unknown = || format!("has no place in the architecture `{}`", network.name);
    let (name, kind) = theirs.rsplit_once('.').ok_or_else(unknown)?;
    let find = |list: &[(&str, &'static str)], name: &str| {
        list.iter().find(|(n, _)| *n == name).map(|(_, ours)| *ours)
    };
    let odd = || format!("has {} dimensions", stored.shape.len());
    let Some((layer, inner)) = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    else {
        let ours = find(OUTER, name).ok_or_else(unknown)?;
        let mut term = whole(stored).ok_or_else(odd)?;
        if is_whole_norm(network, name) {
            term = less_one(&term)?;
        }
        return Ok(vec![(format!("{ours}.{kind}"), term)]);
    };
    if let Some(ours) = find(network.experts, inner) {
        let &[count, rows, columns] = &stored.shape[..] else {
            return Err(odd());
        };
        let expert = |e: usize| {
            let term = blocks::term(stored.kind, &[(rows, 1)], e * rows, columns, &stored.bytes);
            let ours = ours.replace('#', &e.to_string());
            (format!("model.layers.{layer}.{ours}.{kind}"), term)
        };
        return Ok((0..count).map(expert).collect());
    }
    let ours = find(network.inner, inner).or_else(|| find(INNER, inner));
    let ours = ours.ok_or_else(unknown)?;
    let heads = match inner {
        "attn_q" if network.paired => Some(query),
        "attn_k" if network.paired => Some(key),
        _ => None,
    };
    let term = match heads {
        // One row, whichever way it is written.
        None if inner == "ffn_gate_inp_shexp" => {
            let columns = stored.shape.last().copied().unwrap_or(1);
            blocks::term(stored.kind, &[(1, 1)], 0, columns, &stored.bytes)
        }
        None if is_whole_norm(network, inner) => less_one(&whole(stored).ok_or_else(odd)?)?,
        None => whole(stored).ok_or_else(odd)?,
        Some(heads) => unpaired(stored, heads, size)?,
    };
    Ok(vec![(format!("model.layers.{layer}.{ours}.{kind}"), term)])
}

/// Whether a tensor is a normalization's whole factor, where a checkpoint has what is above one.
fn is_whole_norm(network: &Network, theirs: &str) -> bool {
    network.whole_norms && theirs.ends_with("norm")
}

/// Each number of a vector less one.
fn less_one(vector: &Encoding) -> Result<Encoding, String> {
    let values = vector.decode().map_err(|e| e.to_string())?.to_f64s();
    let values = values.ok_or("is no vector of numbers")?;
    let less = values.iter().map(|v| v - 1.0).collect();
    let tensor = Tensor::from_f64(ElemType::F32, vector.shape.clone(), less);
    Ok(dense::from_tensor(&tensor))
}

/// A vector or matrix as it is.
fn whole(stored: &Stored) -> Option<Encoding> {
    match stored.shape[..] {
        [n] => Some(listed(blocks::term(
            stored.kind,
            &[(1, 1)],
            0,
            n,
            &stored.bytes,
        ))),
        [rows, columns] => Some(blocks::term(
            stored.kind,
            &[(rows, 1)],
            0,
            columns,
            &stored.bytes,
        )),
        _ => None,
    }
}

/// One row of plain elements as a list.
fn listed(mut row: Encoding) -> Encoding {
    if matches!(row.ctor.name, "dense" | "strided") {
        row.shape.remove(0);
    }
    row
}

/// Rows of heads in which numbers that rotate together are neighbours, in the order in which they are half a head apart.
fn unpaired(stored: &Stored, heads: usize, size: usize) -> Result<Encoding, String> {
    let rows = stored.shape[0];
    if heads.checked_mul(size) != Some(rows) || !size.is_multiple_of(2) {
        return Err(format!(
            "has {rows} rows, which are no {heads} heads of {size}"
        ));
    }
    let order = [(heads, size), (2, 1), (size / 2, 2)];
    match stored.shape[..] {
        [_, columns] => Ok(blocks::term(stored.kind, &order, 0, columns, &stored.bytes)),
        [_] if stored.kind.elements == 1 => {
            let term = blocks::term(stored.kind, &order, 0, 1, &stored.bytes);
            let mut list = term;
            list.shape = vec![rows];
            Ok(list)
        }
        _ => Err("is no vector or matrix".to_owned()),
    }
}

/// Where a checkpoint's tensor goes in a file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its name there.
    pub name: String,
    /// Which of the tensors stacked under that name it is.
    pub expert: Option<usize>,
    /// It scores experts: such tensors are not quantized.
    pub router: bool,
    /// It is what is above one of a normalization's factor, which goes into the file whole.
    pub above_one: bool,
    /// Heads, and the size of each, whose rows are put in the order of pairs.
    heads: Option<[usize; 2]>,
}

impl Place {
    /// A tensor on its own, in its own order.
    pub fn of(name: &str) -> Place {
        Place {
            name: name.to_owned(),
            expert: None,
            router: false,
            above_one: false,
            heads: None,
        }
    }

    /// Rows of so many bytes in the order of the file.
    pub fn rows(&self, bytes: Bytes, row: usize) -> Bytes {
        let Some([heads, size]) = self.heads else {
            return bytes;
        };
        let mut out = Vec::with_capacity(bytes.len());
        for at in 0..heads * size {
            let (head, pair, which) = (at / size, at % size / 2, at % 2);
            let from = head * size + which * (size / 2) + pair;
            out.extend_from_slice(&bytes[from * row..(from + 1) * row]);
        }
        out.into()
    }
}

/// What a checkpoint with these settings is called in GGUF files.
pub(crate) fn of_checkpoint(config: &Config) -> Result<&'static Network, Problem> {
    let model_type = config.text("model_type")?.unwrap_or_default();
    let known = NETWORKS
        .iter()
        .find(|n| n.model_types.contains(&model_type.as_str()));
    known.filter(|_| !model_type.is_empty()).ok_or_else(|| {
        let known: Vec<&str> = NETWORKS
            .iter()
            .flat_map(|n| n.model_types)
            .filter(|n| !n.is_empty())
            .collect();
        Problem {
            remedy: Some(format!("known are {}", known.join(", "))),
            ..config.problem(
                "model_type",
                format!("`{model_type}` is not written to GGUF files"),
            )
        }
    })
}

/// Where a checkpoint's tensor goes; none if its values are computed.
pub(crate) fn place(
    network: &Network,
    config: &Config,
    name: &str,
    shape: &[usize],
) -> Result<Option<Place>, Problem> {
    let wrong = |reason: &str| Problem {
        place: format!("tensor `{name}`"),
        reason: reason.to_owned(),
        remedy: None,
    };
    let tied = config.flag_or("tie_word_embeddings", false)?;
    if name.ends_with("rotary_emb.inv_freq") || tied && name == "lm_head.weight" {
        return Ok(None);
    }
    let unknown = || wrong("has no place in GGUF files of this architecture");
    let (base, kind) = name.rsplit_once('.').ok_or_else(unknown)?;
    let find = |list: &[(&'static str, &str)], name: &str| {
        list.iter()
            .find(|(_, ours)| *ours == name)
            .map(|(theirs, _)| *theirs)
    };
    let inner = base
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'));
    let Some((layer, inner)) = inner else {
        let theirs = find(OUTER, base).ok_or_else(unknown)?;
        let mut place = Place::of(&format!("{theirs}.{kind}"));
        place.above_one = is_whole_norm(network, theirs);
        return Ok(Some(place));
    };
    let expert = |ours: &str| -> Option<usize> {
        let (before, after) = ours.split_once('#')?;
        inner
            .strip_prefix(before)?
            .strip_suffix(after)?
            .parse()
            .ok()
    };
    let mut experts = network.experts.iter();
    if let Some((theirs, e)) = experts.find_map(|(theirs, ours)| Some((theirs, expert(ours)?))) {
        let mut place = Place::of(&format!("blk.{layer}.{theirs}.{kind}"));
        place.expert = Some(e);
        return Ok(Some(place));
    }
    let theirs = find(network.inner, inner).or_else(|| find(INNER, inner));
    let theirs = theirs.ok_or_else(unknown)?;
    let mut place = Place::of(&format!("blk.{layer}.{theirs}.{kind}"));
    place.above_one = is_whole_norm(network, theirs);
    place.router = ROUTERS.contains(&theirs);
    let [query, key, size] = heads(config)?;
    place.heads = match theirs {
        "attn_q" if network.paired => Some([query, size]),
        "attn_k" if network.paired => Some([key, size]),
        _ => None,
    };
    if place
        .heads
        .is_some_and(|[n, size]| shape.first() != Some(&(n * size)) || size % 2 != 0)
    {
        return Err(wrong("has another number of rows than its heads"));
    }
    Ok(Some(place))
}

/// The settings as a file's metadata.
pub(crate) fn metadata(
    config: &Config,
    network: &Network,
) -> Result<BTreeMap<String, Written>, Problem> {
    let mut out = BTreeMap::from([(
        "general.architecture".to_owned(),
        Written::Text(network.name.to_owned()),
    )]);
    let [_, _, size] = heads(config)?;
    let arch = network.name;
    let count = |name: &str, n: usize| {
        let n = u32::try_from(n).map_err(|_| config.problem(name, "is too large"));
        n.map(Written::Int)
    };
    for &(theirs, ours) in SETTINGS.iter().chain(network.settings) {
        let key = format!("{arch}.{theirs}");
        if theirs.ends_with("epsilon") || theirs.ends_with("softcapping") {
            let value = config.float_opt(ours)?;
            out.extend(value.map(|v| (key, Written::Float(v as f32))));
        } else if let Some(n) = config.size_opt(ours)? {
            out.insert(key, count(ours, n)?);
        }
    }
    for theirs in [
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ] {
        out.insert(format!("{arch}.{theirs}"), count("head_dim", size)?);
    }
    out.insert(
        format!("{arch}.vocab_size"),
        count("vocab_size", config.size("vocab_size")?)?,
    );
    Ok(out)
}
