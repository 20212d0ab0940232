//! The vocabulary of a GGUF file, and that of a checkpoint's `tokenizer.json`: either made of the other.
//!
//! ```text
//! tokenizer.ggml.model   gpt2   pairs of bytes (BPE on bytes as letters), in the order of `merges`; `pre` says how texts are cut first
//!                        llama  SentencePiece: neighbours become one token in the order of `scores`; spaces are U+2581, and what has no
//!                               token is bytes
//! ```
//! The order of scores becomes merges: every way to cut a token into two others, the highest score first, as transformers
//! converts SentencePiece's models. Sources: ggml-org/ggml, `docs/gguf.md`; ggml-org/llama.cpp, `llama-vocab.cpp` (patterns by `pre`).

use super::file::{File, Meta, Written};
use crate::error::Problem;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// What stands for a space.
const SPACE: &str = "\u{2581}";

/// How texts are cut before pairs of bytes are joined.
struct Cut {
    /// Names as `tokenizer.ggml.pre`, the one that is written first.
    names: &'static [&'static str],
    /// Digits stand alone.
    digits: bool,
    /// The pieces; GPT-2's if none.
    pattern: Option<&'static str>,
}

static CUTS: &[Cut] = &[
    Cut {
        names: &["gpt-2", "phi-2", "olmo", "mpt"],
        digits: false,
        pattern: None,
    },
    Cut {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        digits: true,
        pattern: None,
    },
    Cut {
        names: &[
            "llama-bpe",
            "llama-v3",
            "llama3",
            "dbrx",
            "smaug-bpe",
            "falcon3",
        ],
        digits: false,
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    },
    Cut {
        names: &["qwen2", "stablelm2", "deepseek-r1-qwen"],
        digits: false,
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    },
];

/// What a token is, as `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    /// Never text, such as the end of a text.
    Control = 3,
    /// Found in texts as a whole.
    Defined = 4,
    Unused = 5,
    Byte = 6,
}

const KINDS: [Kind; 6] = [
    Kind::Normal,
    Kind::Unknown,
    Kind::Control,
    Kind::Defined,
    Kind::Unused,
    Kind::Byte,
];

/// How tokens are joined.
enum Join {
    /// Pairs, the first in the list first.
    Pairs {
        cut: &'static Cut,
        merges: Vec<(String, String)>,
    },
    /// By the score of what they become; `prefix`: texts begin with a space.
    Scores { scores: Vec<f64>, prefix: bool },
}

/// A vocabulary.
pub(crate) struct Vocabulary {
    tokens: Vec<(String, Kind)>,
    join: Join,
    /// A text begins with this.
    first: Option<u32>,
    bos: Option<u32>,
    /// Tokens that end a text.
    ends: Vec<u32>,
    /// The template of conversations.
    template: Option<String>,
}

/// Metadata that says which token something is.
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const ALSO_END: &str = "tokenizer.ggml.eot_token_id";
const MODEL: &str = "tokenizer.ggml.model";

impl Vocabulary {
    /// That of a file; none if it has none.
    pub fn of_file(file: &File, name: &str) -> Result<Option<Vocabulary>, Problem> {
        let wrong = |key: &str, reason: String, remedy: &str| Problem {
            place: format!("metadata `{key}` of `{name}`"),
            reason,
            remedy: Some(remedy.to_owned()),
        };
        let get = |key: &str| file.meta.get(key);
        let text = |key: &str| match get(key) {
            Some(Meta::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let list = |key: &str| -> Result<Vec<Meta>, Problem> {
            let damaged = || wrong(key, "is no list of values".to_owned(), super::REMEDY);
            get(key).and_then(Meta::values).ok_or_else(damaged)
        };
        let model = text(MODEL).unwrap_or("none");
        if model == "none" || model == "no_vocab" {
            return Ok(None);
        }
        let texts: Vec<String> = list("tokenizer.ggml.tokens")?
            .into_iter()
            .map(|v| match v {
                Meta::Text(t) => t,
                other => format!("{other:?}"),
            })
            .collect();
        let kinds = match get("tokenizer.ggml.token_type") {
            Some(_) => list("tokenizer.ggml.token_type")?,
            None => vec![],
        };
        let kind = |i: usize| match kinds.get(i) {
            Some(&Meta::Int(n)) => KINDS.iter().find(|k| **k as i128 == n).copied(),
            _ => None,
        };
        let tokens: Vec<(String, Kind)> = texts
            .into_iter()
            .enumerate()
            .map(|(i, t)| (t, kind(i).unwrap_or(Kind::Normal)))
            .collect();
        let flag = |key: &str, otherwise: bool| match get(key) {
            Some(Meta::Bool(b)) => *b,
            _ => otherwise,
        };
        let join = match model {
            "gpt2" => {
                let pre = text("tokenizer.ggml.pre").unwrap_or("gpt-2");
                let cut = CUTS.iter().find(|c| c.names.contains(&pre));
                let known: Vec<&str> = CUTS.iter().flat_map(|c| c.names).copied().collect();
                let cut = cut.ok_or_else(|| {
                    wrong(
                        "tokenizer.ggml.pre",
                        format!("`{pre}` is not known"),
                        &format!("known are {}; or use the checkpoint that the file was made from, with its `tokenizer.json`", known.join(", ")),
                    )
                })?;
                let merges = list("tokenizer.ggml.merges")?.into_iter();
                let pair = |m: Meta| match m {
                    Meta::Text(t) => t.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
                    _ => None,
                };
                Join::Pairs {
                    cut,
                    merges: merges.filter_map(pair).collect(),
                }
            }
            "llama" => {
                let scores = list("tokenizer.ggml.scores")?;
                let score = |m: &Meta| match m {
                    Meta::Float(v) => *v,
                    Meta::Int(n) => *n as f64,
                    _ => 0.0,
                };
                Join::Scores {
                    scores: scores.iter().map(score).collect(),
                    prefix: flag("tokenizer.ggml.add_space_prefix", true),
                }
            }
            other => {
                return Err(wrong(
                    MODEL,
                    format!("vocabularies of kind `{other}` are not read"),
                    "use the checkpoint that the file was made from, with its `tokenizer.json`; `build --scores` needs none",
                ));
            }
        };
        let id = |key: &str| match get(key) {
            Some(&Meta::Int(n)) => u32::try_from(n)
                .ok()
                .filter(|&n| (n as usize) < tokens.len()),
            _ => None,
        };
        let bos = id(BOS);
        let begins = flag(
            "tokenizer.ggml.add_bos_token",
            matches!(join, Join::Scores { .. }),
        );
        Ok(Some(Vocabulary {
            first: bos.filter(|_| begins),
            bos,
            ends: [EOS, ALSO_END].iter().filter_map(|key| id(key)).collect(),
            template: text("tokenizer.chat_template").map(str::to_owned),
            tokens,
            join,
        }))
    }

    /// The texts of a checkpoint's files `tokenizer.json` and `tokenizer_config.json`.
    pub fn to_files(&self) -> [String; 2] {
        let special = |(i, (text, kind)): (usize, &(String, Kind))| {
            let is_special = matches!(kind, Kind::Control | Kind::Unknown);
            (is_special || *kind == Kind::Defined).then(|| {
                json!({
                    "id": i, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": is_special,
                })
            })
        };
        let added: Vec<Value> = self.tokens.iter().enumerate().filter_map(special).collect();
        // Of tokens with one text the first counts.
        let mut vocabulary = Map::new();
        for (i, (text, _)) in self.tokens.iter().enumerate() {
            vocabulary.entry(text.clone()).or_insert(json!(i));
        }
        let unknown = self.tokens.iter().find(|(_, k)| *k == Kind::Unknown);
        let mut model = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|(t, _)| t), "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        });
        let (normalizer, pre_tokenizer, decoder);
        match &self.join {
            Join::Pairs { cut, merges } => {
                model["merges"] = merges.iter().map(|(a, b)| json!([a, b])).collect();
                // Llama 3's and those like it take whole words that they know.
                model["ignore_merges"] = (cut.pattern.is_some()).into();
                normalizer = Value::Null;
                pre_tokenizer = cut.to_json();
                decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
            }
            Join::Scores { scores, prefix } => {
                model["byte_fallback"] = true.into();
                model["fuse_unk"] = true.into();
                let merges = self.merges(scores);
                model["merges"] = merges.iter().map(|(a, b)| json!([a, b])).collect();
                let space =
                    json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
                let mut steps = vec![space];
                let mut back = vec![
                    json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if *prefix {
                    steps.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
                    back.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                normalizer = json!({"type": "Sequence", "normalizers": steps});
                pre_tokenizer = Value::Null;
                decoder = json!({"type": "Sequence", "decoders": back});
            }
        }
        model["vocab"] = vocabulary.into();
        let text = |id: Option<u32>| id.map(|id| self.tokens[id as usize].0.as_str());
        let template = text(self.first).zip(self.first).map(|(text, id)| {
            let first = |n: u32| json!({"SpecialToken": {"id": text, "type_id": n}});
            let sequence = |name: &str, n: u32| json!({"Sequence": {"id": name, "type_id": n}});
            json!({
                "type": "TemplateProcessing", "single": [first(0), sequence("A", 0)],
                "pair": [first(0), sequence("A", 0), first(1), sequence("B", 1)],
                "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
            })
        });
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": template, "decoder": decoder, "model": model,
        });
        let end = self.ends.first().copied();
        let config = json!({"bos_token": text(self.bos), "eos_token": text(end), "chat_template": self.template});
        [tokenizer.to_string(), config.to_string()]
    }

    /// Tokens that begin and end a text, as settings have them.
    pub fn ids(&self) -> Value {
        json!({"bos_token_id": self.bos, "eos_token_id": self.ends})
    }

    /// Pairs of tokens that become another, the highest score first.
    fn merges(&self, scores: &[f64]) -> Vec<(&str, &str)> {
        let normal = self.tokens.iter().enumerate();
        let normal = normal.filter(|(_, (_, kind))| *kind == Kind::Normal);
        let ids: HashMap<&str, usize> = normal.map(|(i, (text, _))| (text.as_str(), i)).collect();
        let mut found: Vec<(f64, usize, usize, usize)> = vec![];
        for (i, (text, kind)) in self.tokens.iter().enumerate() {
            if *kind != Kind::Normal {
                continue;
            }
            let cuts = text.char_indices().skip(1).map(|(at, _)| at);
            for at in cuts {
                let parts = ids.get(&text[..at]).zip(ids.get(&text[at..]));
                if let Some((&left, &right)) = parts {
                    found.push((scores.get(i).copied().unwrap_or(0.0), i, left, right));
                }
            }
        }
        found.sort_by(|a, b| {
            b.0.total_cmp(&a.0)
                .then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3)))
        });
        let text = |i: usize| self.tokens[i].0.as_str();
        found.iter().map(|m| (text(m.2), text(m.3))).collect()
    }

    /// That of a checkpoint's files, for a model of so many tokens, where it can be said in a GGUF file; else why not.
    pub fn of_checkpoint(
        tokenizer: &Value,
        config: &Value,
        ids: &Value,
        size: usize,
    ) -> Result<Vocabulary, String> {
        let model = &tokenizer["model"];
        if model["type"] != "BPE" {
            return Err(format!("its model is {}, not BPE", model["type"]));
        }
        let mut tokens: Vec<(String, Kind)> = (0..size)
            .map(|i| (format!("[PAD{i}]"), Kind::Unused))
            .collect();
        let spaces = model["byte_fallback"] == true;
        let unknown = model["unk_token"].as_str();
        let known = model["vocab"].as_object().into_iter().flatten();
        for (text, id) in known {
            let at = id.as_u64().and_then(|id| usize::try_from(id).ok());
            let place = at
                .and_then(|at| tokens.get_mut(at))
                .ok_or_else(|| format!("token `{text}` has number {id}, the model has {size}"))?;
            let byte = spaces && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            let kind = match () {
                () if Some(text.as_str()) == unknown => Kind::Unknown,
                () if byte => Kind::Byte,
                () => Kind::Normal,
            };
            *place = (text.clone(), kind);
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let at = added["id"].as_u64().and_then(|id| usize::try_from(id).ok());
            let text = added["content"].as_str();
            if let Some((place, text)) = at.and_then(|at| tokens.get_mut(at)).zip(text) {
                let kind = match added["special"].as_bool() {
                    _ if place.1 == Kind::Unknown => Kind::Unknown,
                    Some(true) => Kind::Control,
                    _ => Kind::Defined,
                };
                *place = (text.to_owned(), kind);
            }
        }
        let pair = |m: &Value| match m {
            Value::String(text) => text
                .split_once(' ')
                .map(|(a, b)| (a.to_owned(), b.to_owned())),
            pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
        };
        let merges = model["merges"].as_array().into_iter().flatten();
        let merges: Vec<(String, String)> = merges.filter_map(pair).collect();
        let join = match spaces {
            true => {
                // What the first merge makes has the highest score.
                let mut ranks: HashMap<String, usize> = HashMap::new();
                for (rank, (a, b)) in merges.iter().enumerate() {
                    ranks.entry(format!("{a}{b}")).or_insert(rank);
                }
                let last = merges.len();
                let score = |(t, _): &(String, Kind)| -(*ranks.get(t).unwrap_or(&last) as f64);
                let text = [&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]]
                    .map(Value::to_string)
                    .concat();
                let never = text.contains("\"prepend_scheme\":\"never\"");
                let prefix = text.contains("\"Prepend\"") || text.contains("\"Metaspace\"");
                Join::Scores {
                    scores: tokens.iter().map(score).collect(),
                    prefix: prefix && !never,
                }
            }
            false => Join::Pairs {
                cut: Cut::of_json(&tokenizer["pre_tokenizer"])?,
                merges,
            },
        };
        let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let inside = |n: &u32| (*n as usize) < size;
        let bos = number(&ids["bos_token_id"]).filter(inside);
        let ends = match &ids["eos_token_id"] {
            Value::Array(all) => all.iter().filter_map(number).filter(inside).collect(),
            one => number(one).filter(inside).into_iter().collect(),
        };
        let single = tokenizer["post_processor"].to_string();
        let begins = bos.is_some_and(|id| {
            single.contains(
                &json!({"SpecialToken": {"id": tokens[id as usize].0, "type_id": 0}}).to_string(),
            )
        });
        Ok(Vocabulary {
            first: bos.filter(|_| begins),
            bos,
            ends,
            template: config["chat_template"].as_str().map(str::to_owned),
            tokens,
            join,
        })
    }

    /// As metadata of a file.
    pub fn metadata(&self) -> BTreeMap<String, Written> {
        let mut out = BTreeMap::new();
        let mut put = |key: &str, value: Written| drop(out.insert(key.to_owned(), value));
        match &self.join {
            Join::Pairs { cut, merges } => {
                put(MODEL, Written::Text("gpt2".to_owned()));
                put("tokenizer.ggml.pre", Written::Text(cut.names[0].to_owned()));
                let merges = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
                put("tokenizer.ggml.merges", Written::Texts(merges));
            }
            Join::Scores { scores, prefix } => {
                put(MODEL, Written::Text("llama".to_owned()));
                put("tokenizer.ggml.add_space_prefix", Written::Bool(*prefix));
                let scores = scores.iter().map(|&s| s as f32).collect();
                put("tokenizer.ggml.scores", Written::Floats(scores));
            }
        }
        let texts = self.tokens.iter().map(|(t, _)| t.clone()).collect();
        put("tokenizer.ggml.tokens", Written::Texts(texts));
        let kinds = self.tokens.iter().map(|&(_, k)| k as i32).collect();
        put("tokenizer.ggml.token_type", Written::Ints(kinds));
        put(
            "tokenizer.ggml.add_bos_token",
            Written::Bool(self.first.is_some()),
        );
        let keys = [
            (BOS, self.bos.as_ref()),
            (EOS, self.ends.first()),
            (ALSO_END, self.ends.get(1)),
        ];
        for (key, id) in keys {
            if let Some(&id) = id {
                put(key, Written::Int(id));
            }
        }
        if let Some(template) = &self.template {
            put("tokenizer.chat_template", Written::Text(template.clone()));
        }
        out
    }
}

impl Cut {
    fn to_json(&self) -> Value {
        let bytes = |own: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": own});
        let mut steps = vec![];
        if self.digits {
            steps.push(json!({"type": "Digits", "individual_digits": true}));
        }
        if let Some(pattern) = self.pattern {
            steps.push(json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}));
        }
        match steps.is_empty() {
            true => bytes(true),
            false => {
                steps.push(bytes(self.pattern.is_none()));
                json!({"type": "Sequence", "pretokenizers": steps})
            }
        }
    }

    /// The one that a tokenizer has.
    fn of_json(own: &Value) -> Result<&'static Cut, String> {
        let steps = match own["pretokenizers"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![own],
        };
        let has = |kind: &str| steps.iter().find(|s| s["type"] == kind);
        let level = has("ByteLevel").ok_or("it does not join bytes")?;
        if level["add_prefix_space"] == true {
            return Err("it begins texts with a space".to_owned());
        }
        let pattern = has("Split").map(|s| s["pattern"]["Regex"].as_str().unwrap_or_default());
        let digits = has("Digits").is_some();
        let own = level["use_regex"] != false;
        let known = CUTS
            .iter()
            .find(|c| c.pattern == pattern && c.digits == digits && c.pattern.is_none() == own);
        known.ok_or_else(|| "it cuts texts in a way that has no name here".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(cut: &Cut) -> Value {
        json!({
            "added_tokens": [{"id": 5, "content": "<end>", "special": true}, {"id": 6, "content": "<tool>", "special": false}],
            "pre_tokenizer": cut.to_json(), "post_processor": null,
            "model": {"type": "BPE", "byte_fallback": false, "unk_token": null, "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4},
                      "merges": [["a", "b"], ["ab", "c"]]},
        })
    }

    #[test]
    fn pairs_of_bytes_come_back() {
        for cut in CUTS {
            let ids = json!({"bos_token_id": null, "eos_token_id": [5]});
            let own =
                Vocabulary::of_checkpoint(&tokenizer(cut), &json!({}), &ids, 8).expect("said");
            let meta = own.metadata();
            assert_eq!(
                meta["tokenizer.ggml.pre"],
                Written::Text(cut.names[0].to_owned())
            );
            assert_eq!(
                meta["tokenizer.ggml.token_type"],
                Written::Ints(vec![1, 1, 1, 1, 1, 3, 4, 5])
            );
            let [files, _] = own.to_files();
            let back: Value = serde_json::from_str(&files).expect("JSON");
            assert_eq!(back["pre_tokenizer"], cut.to_json());
            assert_eq!(back["model"]["merges"], json!([["a", "b"], ["ab", "c"]]));
            assert_eq!(back["added_tokens"][0]["special"], true);
            assert_eq!(back["added_tokens"][1]["special"], false);
        }
    }

    #[test]
    fn scores_become_merges() {
        let kind = |t: &str| (t.to_owned(), Kind::Normal);
        let own = Vocabulary {
            tokens: ["a", "b", "c", "ab", "bc", "abc"].map(kind).into(),
            join: Join::Scores {
                scores: vec![-9.0, -9.0, -9.0, -2.0, -1.0, -3.0],
                prefix: false,
            },
            first: None,
            bos: None,
            ends: vec![],
            template: None,
        };
        let [files, _] = own.to_files();
        let back: Value = serde_json::from_str(&files).expect("JSON");
        let want = json!([["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]);
        assert_eq!(back["model"]["merges"], want);
    }

    #[test]
    fn what_a_file_cannot_say_is_named() {
        let ids = json!({});
        let refused =
            |tokenizer: Value| Vocabulary::of_checkpoint(&tokenizer, &json!({}), &ids, 8).err();
        let words = json!({"model": {"type": "WordLevel"}});
        assert!(refused(words).is_some_and(|why| why.contains("WordLevel")));
        let mut other = tokenizer(&CUTS[0]);
        other["pre_tokenizer"] = json!({"type": "Whitespace"});
        assert!(refused(other).is_some_and(|why| why.contains("bytes")));
        let mut large = tokenizer(&CUTS[0]);
        large["model"]["vocab"]["z"] = json!(99);
        assert!(refused(large).is_some_and(|why| why.contains("number 99")));
    }
}
