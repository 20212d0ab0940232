//! A language model with its tokenizer, and what is asked of it.

use crate::Error;
use crate::engine::Engine;
use crate::evict::Eviction;
use crate::options::Options;
use crate::sampling::{Sampling, Scored};
use crate::session::Session;
use crate::settings::Settings;
use crate::speculate::{self, Draft};
use crate::vocabulary::Vocabulary;
use crate::writing::{Job, Reader};
use lapidary_abi::program::File;
use lapidary_runtime::Model;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

/// A language model with its tokenizer.
pub struct Generator {
    model: Model,
    vocabulary: Vocabulary,
    settings: Settings,
    files: Vec<File>,
    eviction: Option<Eviction>,
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
    /// Tell the probabilities of the tokens, and of so many of the most probable ones at each place.
    pub logprobs: Option<usize>,
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
    /// The most probable tokens in its place, as many as were asked for.
    pub top: &'t [Scored],
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
    /// Tokens that a draft has proposed, and how many of them were right.
    pub drafted: Option<[usize; 2]>,
}

impl Generator {
    /// From a model that was compiled step by step, and what belongs to it.
    pub(crate) fn new(
        model: Model,
        vocabulary: Vocabulary,
        files: Vec<File>,
    ) -> Result<Generator, Error> {
        Ok(Generator {
            settings: Settings::read(&files)?,
            vocabulary,
            model,
            files,
            eviction: None,
        })
    }

    /// The same with caches within the budget that the options ask for, if they do.
    ///
    /// # Errors
    /// The budget cannot be used, or what else is asked for needs all tokens.
    pub fn within_budget(mut self, options: &Options) -> Result<Generator, Error> {
        let wrong = |message: &str, help: &str| Err(Error::new(message, help));
        let Some(budget) = options.kv_budget else {
            return match options.kv_evict {
                Some(_) => wrong(
                    "`--kv-evict` says what is evicted where there is a budget",
                    "give `--kv-budget` as well",
                ),
                None => Ok(self),
            };
        };
        if options.draft.is_some() || options.prompt_cache.is_some() {
            return wrong(
                "`--draft` and `--prompt-cache` go back to earlier tokens, which `--kv-budget` evicts",
                "give one of the two",
            );
        }
        let policy = options.kv_evict.unwrap_or_default();
        self.eviction = Some(Eviction::new(policy, budget, self.settings.context)?);
        self.session().map(drop)?;
        Ok(self)
    }

    /// A session of no sequence yet.
    pub(crate) fn session(&self) -> Result<Session<'_>, Error> {
        Session::new(&self.model, self.eviction.clone())
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

    /// The text of tokens, without special ones.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.vocabulary.decode(tokens)
    }

    /// The text of one token within others.
    pub fn token_text(&self, token: u32) -> String {
        self.vocabulary.token_text(token)
    }

    /// An error if nothing can be written after a prompt of these tokens.
    pub fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        self.vocabulary.check(prompt)?;
        self.room(prompt.len()).map(|_| ())
    }

    /// Writes what follows the tokens of a prompt; `each` is told every token, and may end the text. `cache` keeps what the model
    /// has of the prompt from one process to the next; a draft proposes tokens.
    pub fn write(
        &self,
        prompt: Vec<u32>,
        request: Request,
        (cache, draft): (Option<&Path>, Option<&Draft>),
        each: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> Result<Summary, Error> {
        let mut result = None;
        let reader = Only {
            each,
            result: &mut result,
        };
        let job = Job {
            prompt,
            request,
            cache: cache.map(Path::to_owned),
            reader,
        };
        if let Some(draft) = draft {
            speculate::write(self, draft, job)?;
        } else {
            let mut engine = Engine::new(self, 1)?;
            engine.add(job);
            while !engine.is_idle() {
                engine.turn();
            }
        }
        result.unwrap_or_else(|| Err(Error::new("the text has no end", "report this")))
    }

    /// What becomes tokens and text.
    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Tokens that may follow so many of a prompt; an error if those are too many.
    pub fn room(&self, prompt: usize) -> Result<usize, Error> {
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

/// The one reader of a text.
struct Only<'r> {
    each: &'r mut dyn FnMut(Piece) -> ControlFlow<()>,
    result: &'r mut Option<Result<Summary, Error>>,
}

impl Reader for Only<'_> {
    fn read(&mut self, piece: Piece) -> ControlFlow<()> {
        (self.each)(piece)
    }

    fn end(self, result: Result<Summary, Error>) {
        *self.result = Some(result);
    }
}
