//! Text to tokens and back.

use crate::Error;
use crate::settings;
use lapidary_abi::program::File;
pub use tokenizers::Tokenizer;

/// Tokens before the first new one that are decoded with it: what a token's text is may depend on them.
const CONTEXT: usize = 8;

/// Reads a `tokenizer.json`; texts are neither padded nor cut.
pub fn tokenizer(bytes: &[u8]) -> Result<Tokenizer, String> {
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
    Ok(tokenizer)
}

/// A tokenizer, and which of a model's tokens it knows.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// Tokens of the model without a text: they are never chosen.
    holes: Vec<u32>,
    size: usize,
}

impl Vocabulary {
    /// That of a model's files.
    pub fn of(files: &[File], size: usize) -> Result<Vocabulary, Error> {
        let tokenizer = settings::file(files, settings::TOKENIZER).ok_or_else(|| {
            Error::new(
                "the model has no tokenizer",
                "put the `tokenizer.json` of the model into its folder, and compile it again",
            )
        })?;
        Vocabulary::read(tokenizer, size)
    }

    /// Reads a `tokenizer.json`, for a model of so many tokens.
    pub fn read(text: &str, size: usize) -> Result<Vocabulary, Error> {
        const HELP: &str =
            "use the `tokenizer.json` that belongs to the model, as transformers saves it";
        let wrong = |reason: String| Error::new(format!("`tokenizer.json`: {reason}"), HELP);
        let tokenizer = tokenizer(text.as_bytes()).map_err(wrong)?;
        let known = |id: &u32| tokenizer.id_to_token(*id).is_some();
        let holes: Vec<u32> = (0..size as u32).filter(|id| !known(id)).collect();
        if holes.len() == size {
            return Err(wrong("it knows none of the model's tokens".to_owned()));
        }
        Ok(Vocabulary {
            tokenizer,
            holes,
            size,
        })
    }

    /// Tokens of the model that have no text.
    pub fn holes(&self) -> &[u32] {
        &self.holes
    }

    /// Tokens of the model.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The text of one token within others; of a special one its name. Part of a character has the text that stands for such.
    pub fn token_text(&self, token: u32) -> String {
        // Decoders may treat the beginning of a text in a way of its own, so it is the second of two.
        let (one, two) = (self.decode(&[token]), self.decode(&[token, token]));
        let text = match (&one, &two) {
            (Ok(one), Ok(two)) => two.strip_prefix(one.as_str()).unwrap_or(one),
            _ => "",
        };
        match text.is_empty() {
            true => self.tokenizer.id_to_token(token).unwrap_or_default(),
            false => text.to_owned(),
        }
    }

    /// The tokens of a text; `special` puts around them what the tokenizer has for that.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|e| {
            Error::new(
                format!("the text cannot be encoded: {e}"),
                "does the tokenizer belong to the model?",
            )
        })?;
        let ids = encoding.get_ids();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.size) {
            return Err(Error::new(
                format!(
                    "the tokenizer gives token {id}, but the model has only {}",
                    self.size
                ),
                "use the tokenizer that belongs to the model",
            ));
        }
        Ok(ids.to_vec())
    }

    /// An error if one of the tokens is none of the model's.
    pub fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        match tokens.iter().find(|&&t| t as usize >= self.size) {
            None => Ok(()),
            Some(token) => Err(Error::new(
                format!("there is no token {token}: the model has {}", self.size),
                "use the tokenizer that belongs to the model",
            )),
        }
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.tokenizer.decode(tokens, true).map_err(|e| {
            Error::new(
                format!("the tokens have no text: {e}"),
                "does the tokenizer belong to the model?",
            )
        })
    }
}

/// Tokens that become text one by one. A character whose bytes are several tokens comes with the last of them.
pub struct Stream<'v> {
    vocabulary: &'v Vocabulary,
    /// The last tokens before those that have not become text yet, and these.
    tokens: Vec<u32>,
    /// How many of them have become text.
    done: usize,
}

impl<'v> Stream<'v> {
    /// After these tokens.
    pub fn after(vocabulary: &'v Vocabulary, tokens: &[u32]) -> Stream<'v> {
        let tokens = tokens[tokens.len().saturating_sub(CONTEXT)..].to_vec();
        Stream {
            vocabulary,
            done: tokens.len(),
            tokens,
        }
    }

    /// The text that this token completes.
    pub fn push(&mut self, token: u32) -> Result<String, Error> {
        self.tokens.push(token);
        let text = self.rest()?;
        // Bytes that are no whole character yet decode as this.
        if text.ends_with('\u{FFFD}') && self.tokens.len() - self.done < CONTEXT {
            return Ok(String::new());
        }
        self.done = self.tokens.len();
        let spare = self.done.saturating_sub(CONTEXT);
        self.tokens.drain(..spare);
        self.done -= spare;
        Ok(text)
    }

    /// The text of what is left, which may be no whole character.
    pub fn finish(&mut self) -> Result<String, Error> {
        let text = self.rest()?;
        self.done = self.tokens.len();
        Ok(text)
    }

    fn rest(&self) -> Result<String, Error> {
        let before = self.vocabulary.decode(&self.tokens[..self.done])?;
        let all = self.vocabulary.decode(&self.tokens)?;
        // Decoders work from left to right; one that changed what it gave before would have to be followed from there.
        let same = before
            .bytes()
            .zip(all.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        let begin = (0..=same).rev().find(|&i| all.is_char_boundary(i));
        Ok(all[begin.unwrap_or(0)..].to_owned())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    /// A tokenizer of bytes: token n is byte n.
    pub fn bytes() -> String {
        // The alphabet of byte-level tokenizers: printable bytes are themselves, others follow from 256 on.
        let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
        let mut spare = 256;
        let vocabulary: serde_json::Map<String, serde_json::Value> = (0..256u32)
            .map(|b| {
                let c = if printable(b) {
                    b
                } else {
                    spare += 1;
                    spare - 1
                };
                (
                    char::from_u32(c).expect("a character").to_string(),
                    b.into(),
                )
            })
            .collect();
        serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::bytes;
    use super::*;

    #[test]
    fn characters_are_never_split() {
        let vocabulary = Vocabulary::read(&bytes(), 300).expect("a tokenizer");
        assert_eq!(vocabulary.holes().len(), 44);
        let text = "aé☃ 🦀.";
        let tokens = vocabulary.encode(text, true).expect("encoded");
        assert_eq!(tokens.len(), text.len());
        let mut stream = Stream::after(&vocabulary, &[b'x'.into(), b' '.into()]);
        let pieces: Vec<String> = tokens
            .iter()
            .map(|&t| stream.push(t).expect("decoded"))
            .collect();
        assert_eq!(pieces.concat(), text);
        let whole: Vec<&str> = pieces
            .iter()
            .map(String::as_str)
            .filter(|p| !p.is_empty())
            .collect();
        assert_eq!(whole, ["a", "é", "☃", " ", "🦀", "."]);
        assert_eq!(stream.finish().expect("decoded"), "");
        assert_eq!(vocabulary.token_text(b' '.into()), " ");
        assert_eq!(vocabulary.token_text(0xC3), "\u{FFFD}");
        // The beginning of a character that never ends.
        assert_eq!(stream.push(0xC3).expect("decoded"), "");
        assert_eq!(stream.finish().expect("decoded"), "\u{FFFD}");
    }

    #[test]
    fn tokens_that_the_model_has_not_are_refused() {
        let vocabulary = Vocabulary::read(&bytes(), 100).expect("a tokenizer");
        assert!(vocabulary.encode("abc", true).is_ok());
        let error = vocabulary.encode("xyz", true).expect_err("too high");
        assert!(error.message.contains("token 120"), "{error}");
        assert!(Vocabulary::read("{}", 100).is_err());
    }
}
