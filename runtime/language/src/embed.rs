//! Embeddings: texts to vectors, by an encoder that was compiled with its pooling.
//!
//! Such a program takes tokens `[batch,seq]` with a mask and gives `embedding`, `f32[batch,width]`. What it must know of texts besides
//! is in a file of its own, [`Limits`], which the compiler makes of the checkpoint's.

use crate::Error;
use crate::settings;
use crate::vocabulary::Vocabulary;
use lapidary_abi::program::{File, Port, ValueType};
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::Model;
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::value::{Operand, View};
use serde_json::json;
use std::cmp::Reverse;

/// The file that a program which gives embeddings carries beside its tokenizer.
const LIMITS: &str = "embedding.json";

/// Texts that are embedded at the same time, where the user does not say it.
pub const TOGETHER: usize = 8;

/// Which texts an encoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens that it knows.
    pub vocabulary: usize,
    /// Most tokens of a text, those that the tokenizer adds included.
    pub longest: usize,
    /// Whether texts become lower case before they are cut into tokens.
    pub lowercase: bool,
}

impl Limits {
    /// The file that says so.
    pub fn file(&self) -> File {
        let text = json!({
            "vocabulary": self.vocabulary, "longest": self.longest, "lowercase": self.lowercase,
        });
        File {
            name: LIMITS.to_owned(),
            text: text.to_string(),
        }
    }

    /// Reads the file.
    pub fn read(files: &[File]) -> Result<Limits, Error> {
        let object = settings::object(files, LIMITS)?;
        let size = |name: &str| {
            let found = object.get(name).and_then(|v| v.as_u64()).filter(|&n| n > 0);
            found.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                let message = format!("`{name}` of `{LIMITS}` is missing or wrong");
                Error::new(message, "compile the model again")
            })
        };
        Ok(Limits {
            vocabulary: size("vocabulary")?,
            longest: size("longest")?,
            lowercase: object.get("lowercase").is_some_and(|v| v == true),
        })
    }
}

/// How many numbers a program's embeddings have, by its inputs and outputs; none if it gives no embeddings.
pub fn width(inputs: &[Port], outputs: &[Port]) -> Option<usize> {
    let [output] = outputs else { return None };
    let ValueType::Tensor {
        elem: ElemType::F32,
        dims: Some(dims),
    } = &output.ty
    else {
        return None;
    };
    let own = output.name == "embedding" && inputs.iter().all(|p| fill(&p.name).is_some());
    let width = dims.last().and_then(Size::as_const).filter(|_| own);
    width.and_then(|n| usize::try_from(n).ok())
}

/// What an input has where there is a token, given the token; padding has zeros.
fn fill(input: &str) -> Option<fn(u32) -> i64> {
    match input {
        "input_ids" => Some(i64::from),
        "attention_mask" => Some(|_| 1),
        "token_type_ids" => Some(|_| 0),
        _ => None,
    }
}

/// An encoder with its tokenizer.
pub struct Embedder {
    model: Model,
    vocabulary: Vocabulary,
    limits: Limits,
    width: usize,
}

impl Embedder {
    /// From a model that was compiled for embeddings, and what belongs to it.
    pub(crate) fn new(
        model: Model,
        vocabulary: Vocabulary,
        files: &[File],
    ) -> Result<Embedder, Error> {
        let width = width(model.inputs(), model.outputs());
        let width = width.ok_or_else(|| {
            Error::new(
                "the model gives no embeddings",
                "compile the folder of an encoder's checkpoint",
            )
        })?;
        Ok(Embedder {
            limits: Limits::read(files)?,
            model,
            vocabulary,
            width,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Which texts it takes.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Numbers of an embedding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The tokens of a text, with those that the tokenizer puts around it; an error if the text is empty, or too long.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        if text.is_empty() {
            return Err(Error::new("the text is empty", "give some text"));
        }
        let tokens = match self.limits.lowercase {
            true => self.vocabulary.encode(&text.to_lowercase(), true)?,
            false => self.vocabulary.encode(text, true)?,
        };
        self.check(&tokens)?;
        Ok(tokens)
    }

    /// An error if a text of these tokens cannot be embedded. Nothing is cut off in silence.
    pub fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let (n, longest) = (tokens.len(), self.limits.longest);
        if n == 0 {
            return Err(Error::new(
                "the text has no tokens",
                "give some text that the model's tokenizer knows",
            ));
        }
        if n > longest {
            return Err(Error::new(
                format!("the text has {n} tokens, the model takes at most {longest}"),
                "give a shorter text, or parts of it",
            ));
        }
        self.vocabulary.check(tokens)
    }

    /// The embeddings of texts, in their order, [`Embedder::width`] numbers of each; so many texts go into one run of the model at
    /// most. In a run each has at least half as many tokens as the longest, so that at most half of the work is for padding.
    pub fn embed(&self, texts: &[&[u32]], together: usize) -> Result<Vec<Vec<f32>>, Error> {
        for text in texts {
            self.check(text)?;
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| Reverse(texts[i].len()));
        let mut vectors = vec![vec![]; texts.len()];
        let mut rest = &order[..];
        while let [longest, ..] = rest {
            let longest = texts[*longest].len();
            let alike = rest.iter().take(together.max(1));
            let count = alike
                .take_while(|&&i| 2 * texts[i].len() >= longest)
                .count();
            let (run, later) = rest.split_at(count);
            let rows: Vec<&[u32]> = run.iter().map(|&i| texts[i]).collect();
            for (&i, vector) in run.iter().zip(self.run(&rows, longest)?) {
                vectors[i] = vector;
            }
            rest = later;
        }
        Ok(vectors)
    }

    /// Those of one run, whose longest text has so many tokens.
    fn run(&self, texts: &[&[u32]], longest: usize) -> Result<Vec<Vec<f32>>, Error> {
        let filled = |port: &Port| -> Vec<u8> {
            let fill = fill(&port.name).unwrap_or(|_| 0);
            let row = |text: &&[u32]| {
                let padding = std::iter::repeat_n(0, longest - text.len());
                text.iter().map(|&t| fill(t)).chain(padding).collect()
            };
            let numbers = texts.iter().flat_map::<Vec<i64>, _>(row);
            numbers.flat_map(i64::to_le_bytes).collect()
        };
        let inputs: Vec<Vec<u8>> = self.model.inputs().iter().map(filled).collect();
        let view = |bytes| View::new(ElemType::I64, vec![texts.len(), longest], bytes);
        let views = inputs.iter().map(|bytes| view(bytes).map(Operand::Tensor));
        let views = views.collect::<Result<Vec<Operand>, _>>()?;
        let row = self.width * size_of::<f32>();
        let mut out = Bytes::zeroed(texts.len() * row)?;
        self.model
            .run_with(&views, &mut [Some(out.as_mut_slice())], None)?;
        let vectors: Vec<Vec<f32>> = out.as_slice().chunks_exact(row).map(floats).collect();
        match vectors.iter().flatten().all(|v| v.is_finite()) {
            true => Ok(vectors),
            false => Err(Error::new(
                "an embedding has numbers that are not finite",
                "are the model's weights what they should be?",
            )),
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (all, _) = bytes.as_chunks::<4>();
    all.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The first `n` numbers of an embedding, as a vector of length 1; an error if it has fewer.
pub fn shortened(vector: &[f32], n: usize) -> Result<Vec<f32>, Error> {
    let kept = vector.get(..n).ok_or_else(|| {
        let message = format!(
            "{n} dimensions are asked for, the model's embeddings have {}",
            vector.len()
        );
        Error::new(message, "ask for fewer, or for none in particular")
    })?;
    let squares = kept.iter().map(|&v| f64::from(v) * f64::from(v));
    let length = squares.sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    Ok(kept
        .iter()
        .map(|&v| (f64::from(v) / length) as f32)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_back() {
        let limits = Limits {
            vocabulary: 30522,
            longest: 256,
            lowercase: true,
        };
        assert_eq!(Limits::read(&[limits.file()]), Ok(limits));
        let wrong = Limits::read(&[]).expect_err("no file");
        assert!(wrong.message.contains("`vocabulary`"), "{wrong}");
    }

    #[test]
    fn shortened_vectors_have_length_1() {
        assert_eq!(shortened(&[3.0, 4.0, 12.0], 2), Ok(vec![0.6, 0.8]));
        assert_eq!(shortened(&[0.0, 1.0], 1), Ok(vec![0.0]));
        let wrong = shortened(&[1.0], 2).expect_err("too many");
        assert!(wrong.message.contains("2 dimensions"), "{wrong}");
    }
}
