//! The loop that writes a text: the model's scores, the choice of a token, the text that it completes.

use crate::Error;
use crate::sampling::{Sampler, Sampling};
use crate::session::{Session, vocabulary_size};
use crate::settings::{self, Settings};
use crate::vocabulary::{Stream, Vocabulary};
use lapidary_abi::program::File;
use lapidary_runtime::Model;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// A language model with its tokenizer.
pub struct Generator {
    model: Model,
    vocabulary: Vocabulary,
    settings: Settings,
    files: Vec<File>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to write; else as many as the context holds.
    pub max_tokens: Option<usize>,
    /// The text ends before any of these.
    pub stop: Vec<String>,
    /// Tell the probabilities of the tokens.
    pub logprobs: bool,
}

/// A token as it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece<'t> {
    /// The token; none for what was held back when the text ends.
    pub token: Option<u32>,
    /// Text that is complete now, of this token or of earlier ones.
    pub text: &'t str,
    /// Logarithm of the token's probability, where it was asked for.
    pub logprob: Option<f64>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    End,
    /// One of the texts to stop at came.
    Stop,
    /// It has as many tokens as it may have.
    Length,
    /// Whoever reads it wants no more.
    Cancelled,
}

impl Finish {
    /// Its name in reports: that of the OpenAI interface, where it has one.
    pub fn name(self) -> &'static str {
        match self {
            Finish::End | Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens written, that which ended the text included.
    pub tokens: usize,
    /// Time for the prompt, up to the first scores.
    pub prompt_time: Duration,
    /// Time for the rest.
    pub time: Duration,
    /// Bytes of the caches at the end.
    pub cache_bytes: usize,
}

impl Generator {
    /// From a model that was compiled step by step, and the files of its checkpoint.
    pub fn new(model: Model, files: Vec<File>) -> Result<Generator, Error> {
        let size = vocabulary_size(&model)?;
        let tokenizer = settings::file(&files, settings::TOKENIZER).ok_or_else(|| {
            Error::new(
                "the model has no tokenizer",
                "put the `tokenizer.json` of the model into its folder, and compile it again",
            )
        })?;
        Ok(Generator {
            vocabulary: Vocabulary::read(tokenizer, size)?,
            settings: Settings::read(&files)?,
            model,
            files,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What the model's files say.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The model's files.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The tokens of a prompt; `special` puts around them what the tokenizer has for that. An empty prompt is the token that
    /// begins a text.
    pub fn encode(&self, prompt: &str, special: bool) -> Result<Vec<u32>, Error> {
        let mut tokens = self.vocabulary.encode(prompt, special)?;
        if prompt.is_empty() && tokens.is_empty() {
            tokens.extend(self.settings.bos);
        }
        match tokens.is_empty() {
            true => Err(Error::new(
                "the prompt has no tokens",
                "give some text that the model's tokenizer knows",
            )),
            false => Ok(tokens),
        }
    }

    /// Writes what follows the tokens of a prompt; `each` is told every token, and may end the text.
    pub fn write(
        &self,
        prompt: &[u32],
        request: &Request,
        each: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> Result<Summary, Error> {
        let begin = Instant::now();
        let room = self.room(prompt.len())?;
        let limit = request.max_tokens.unwrap_or(usize::MAX).min(room);
        let mut session = Session::new(&self.model)?;
        session.feed(prompt)?;
        let prompt_time = begin.elapsed();
        let mut tokens = prompt.to_vec();
        let mut sampler = Sampler::new(request.sampling.clone());
        let mut text = Text {
            stream: Stream::after(&self.vocabulary, prompt),
            held: String::new(),
            stop: &request.stop,
        };
        let mut finish = Finish::Length;
        while tokens.len() - prompt.len() < limit {
            if tokens.len() > session.len() {
                session.feed(&tokens[session.len()..])?;
            }
            let holes = self.vocabulary.holes();
            let chosen = sampler.choose(session.scores(), &tokens, holes, request.logprobs)?;
            tokens.push(chosen.token);
            if self.settings.eos.contains(&chosen.token) {
                finish = Finish::End;
                break;
            }
            let (ready, stopped) = text.push(chosen.token)?;
            let piece = Piece {
                token: Some(chosen.token),
                text: &ready,
                logprob: chosen.logprob,
            };
            if each(piece).is_break() {
                finish = Finish::Cancelled;
                break;
            }
            if stopped {
                finish = Finish::Stop;
                break;
            }
        }
        if matches!(finish, Finish::End | Finish::Length) {
            let (rest, stopped) = text.finish()?;
            if stopped {
                finish = Finish::Stop;
            }
            let piece = Piece {
                token: None,
                text: &rest,
                logprob: None,
            };
            if !rest.is_empty() && each(piece).is_break() {
                finish = Finish::Cancelled;
            }
        }
        Ok(Summary {
            finish,
            prompt_tokens: prompt.len(),
            tokens: tokens.len() - prompt.len(),
            prompt_time,
            time: begin.elapsed() - prompt_time,
            cache_bytes: session.cache_bytes(),
        })
    }

    /// Tokens that may follow so many of a prompt.
    fn room(&self, prompt: usize) -> Result<usize, Error> {
        let Some(context) = self.settings.context else {
            return Ok(usize::MAX);
        };
        if prompt >= context {
            return Err(Error::new(
                format!("the prompt has {prompt} tokens, the model's context holds {context}"),
                "give a shorter prompt",
            ));
        }
        Ok(context - prompt)
    }
}

/// Text on its way out: what might become a text to stop at is held back.
struct Text<'v, 's> {
    stream: Stream<'v>,
    held: String,
    stop: &'s [String],
}

impl Text<'_, '_> {
    /// Text that can go, and whether it ends there.
    fn push(&mut self, token: u32) -> Result<(String, bool), Error> {
        self.held += &self.stream.push(token)?;
        Ok(self.release(false))
    }

    fn finish(&mut self) -> Result<(String, bool), Error> {
        self.held += &self.stream.finish()?;
        Ok(self.release(true))
    }

    fn release(&mut self, last: bool) -> (String, bool) {
        let stops = || self.stop.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |&at: &usize| stops().any(|s| s.starts_with(&self.held[at..]));
        let places = self.held.char_indices().map(|(at, _)| at);
        let keep = match last {
            true => None,
            false => places.into_iter().find(may_begin),
        };
        let kept = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, kept), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::testing::bytes;

    #[test]
    fn what_may_be_a_stop_is_held_back() {
        let vocabulary = Vocabulary::read(&bytes(), 256).expect("a tokenizer");
        let run = |text: &str, stop: &[&str]| -> (Vec<String>, bool) {
            let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
            let mut out = Text {
                stream: Stream::after(&vocabulary, &[]),
                held: String::new(),
                stop: &stop,
            };
            let mut pieces = vec![];
            for token in text.bytes() {
                let (piece, stopped) = out.push(token.into()).expect("decoded");
                pieces.push(piece);
                if stopped {
                    return (pieces, true);
                }
            }
            let (piece, stopped) = out.finish().expect("decoded");
            pieces.push(piece);
            (pieces, stopped)
        };
        let (pieces, stopped) = run("ab\n\ncd", &["\n\n", "zz"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("ab", true));
        let (pieces, stopped) = run("ab\ncz", &["\n\n", "zz"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("ab\ncz", false));
        assert_eq!(pieces[2], "", "a newline waits");
        let (pieces, stopped) = run("aaab", &["aab"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("a", true));
    }
}
