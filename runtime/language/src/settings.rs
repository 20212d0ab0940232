//! What a checkpoint's files say of writing text.

use crate::Error;
use lapidary_abi::program::File;
use serde_json::{Map, Value};

/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// Special tokens by name, and often the template of conversations.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// How to choose tokens, and where to stop.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// The template of conversations, where it is a file of its own.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The model's settings.
pub const CONFIG: &str = "config.json";

/// Files of a checkpoint that a program which writes text carries, as far as there are such.
pub const FILES: [&str; 5] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    GENERATION_CONFIG,
    CHAT_TEMPLATE,
    CONFIG,
];

/// What the files say, apart from the tokenizer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// The token that begins one.
    pub bos: Option<u32>,
    /// Most tokens of a sequence.
    pub context: Option<usize>,
    /// What scores are divided by; 0 chooses the most probable token.
    pub temperature: f64,
    /// Only so many of the most probable tokens; 0: all.
    pub top_k: usize,
    /// Only the most probable tokens, of so much probability in all.
    pub top_p: f64,
    /// Only tokens of so much of the most probable one's probability.
    pub min_p: f64,
    /// Scores of tokens that were there before are divided by it.
    pub repetition_penalty: f64,
}

/// The file of a name.
pub fn file<'f>(files: &'f [File], name: &str) -> Option<&'f str> {
    files
        .iter()
        .find(|f| f.name == name)
        .map(|f| f.text.as_str())
}

/// The object in the file of a name; an empty one if there is no such file.
pub(crate) fn object(files: &[File], name: &str) -> Result<Map<String, Value>, Error> {
    let Some(text) = file(files, name) else {
        return Ok(Map::new());
    };
    let wrong = |reason: String| {
        Error::new(
            format!("`{name}`: {reason}"),
            "use the file as transformers saves it",
        )
    };
    match serde_json::from_str(text).map_err(|e| wrong(e.to_string()))? {
        Value::Object(object) => Ok(object),
        _ => Err(wrong("is no object".to_owned())),
    }
}

fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

impl Settings {
    /// Reads them.
    pub fn read(files: &[File]) -> Result<Settings, Error> {
        let (config, own) = (object(files, CONFIG)?, object(files, GENERATION_CONFIG)?);
        let of = |name: &str| own.get(name).or(config.get(name)).filter(|v| !v.is_null());
        let eos = match of("eos_token_id") {
            Some(Value::Array(all)) => all.iter().filter_map(token).collect(),
            other => other.and_then(token).into_iter().collect(),
        };
        let lengths = ["max_position_embeddings", "n_positions", "n_ctx"];
        let context = lengths.iter().find_map(|name| config.get(*name)?.as_u64());
        let sampled = own
            .get("do_sample")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let number = |name: &str, otherwise: f64| {
            let found = own.get(name).and_then(Value::as_f64);
            found.filter(|n| n.is_finite()).unwrap_or(otherwise)
        };
        Ok(Settings {
            eos,
            bos: of("bos_token_id").and_then(token),
            context: context.and_then(|n| usize::try_from(n).ok()),
            temperature: if sampled {
                number("temperature", 1.0).max(0.0)
            } else {
                0.0
            },
            top_k: number("top_k", 0.0) as usize,
            top_p: number("top_p", 1.0),
            min_p: number("min_p", 0.0),
            repetition_penalty: Some(number("repetition_penalty", 1.0))
                .filter(|&p| p > 0.0)
                .unwrap_or(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> Vec<File> {
        let file = |(name, text): &(&str, &str)| File {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        };
        all.iter().map(file).collect()
    }

    #[test]
    fn generation_config_comes_first() {
        let settings = Settings::read(&files(&[
            (
                CONFIG,
                r#"{"eos_token_id": 2, "bos_token_id": 1, "max_position_embeddings": 64}"#,
            ),
            (
                GENERATION_CONFIG,
                r#"{"eos_token_id": [5, 6], "do_sample": true, "temperature": 0.6, "top_k": 20}"#,
            ),
        ]))
        .expect("right");
        assert_eq!((settings.eos, settings.bos), (vec![5, 6], Some(1)));
        assert_eq!(settings.context, Some(64));
        assert_eq!((settings.temperature, settings.top_k), (0.6, 20));
        let plain = Settings::read(&files(&[(GENERATION_CONFIG, r#"{"temperature": 0.6}"#)]));
        assert_eq!(plain.expect("right").temperature, 0.0);
    }

    #[test]
    fn files_that_are_no_json_are_refused() {
        let error = Settings::read(&files(&[(CONFIG, "{")])).expect_err("wrong");
        assert!(error.message.starts_with("`config.json`"), "{error}");
    }
}
