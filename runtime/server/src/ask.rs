//! What clients ask for of a model that writes text.

use crate::error::Refused;
use crate::fields::{Fields, empty};
use crate::prompts::Prompts;
use crate::served::Name;
use crate::texts::{Parts, Writer};
use lapidary_language::chat::{self, Message};
use lapidary_language::generate::Request;
use lapidary_language::options::Options;
use lapidary_language::{Error, Generator};
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Most texts of one request.
const MOST_TEXTS: usize = 128;

/// Tokens of a completion where the client does not say it, as the interface has it.
const COMPLETION_TOKENS: usize = 16;

/// Most alternatives that are told for each token.
const MOST_TOP: usize = 20;

/// Texts to stop at.
const MOST_STOPS: usize = 16;

/// The model that is asked, and what holds where a client says nothing.
pub struct Asked {
    /// What clients call it.
    pub name: Name,
    /// What runs it.
    pub writer: Writer,
    options: Options,
}

/// What kind of text is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What follows a prompt.
    Completion,
    /// The next words of a conversation.
    Chat,
}

/// A request that can be answered.
pub struct Question {
    /// What kind of text.
    pub kind: Kind,
    /// Whether the answer is sent piece by piece.
    pub stream: bool,
    /// Whether a streamed answer ends with the numbers of tokens.
    pub usage: bool,
    /// What each text begins with: the prompt, where it is to be repeated.
    pub echo: Vec<String>,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Whether probabilities of tokens are told.
    pub logprobs: bool,
    texts: Vec<(Vec<u32>, Request)>,
}

impl Asked {
    /// With these defaults.
    pub fn new(name: Name, options: &Options, writer: Writer) -> Asked {
        Asked {
            name,
            writer,
            options: options.clone(),
        }
    }

    /// The model.
    pub fn generator(&self) -> &Arc<Generator> {
        self.writer.generator()
    }

    /// Begins to answer.
    pub fn begin(&self, question: &mut Question) -> Result<Parts, Refused> {
        let texts = std::mem::take(&mut question.texts);
        self.writer.write(texts, question.stream)
    }

    /// Reads a request. It may take a while where prompts are long.
    pub fn read(&self, kind: Kind, body: &[u8]) -> Result<Question, Refused> {
        let fields = Fields::read(body)?;
        self.name.check(&fields)?;
        let prompts = match kind {
            Kind::Completion => self.prompts(&fields)?,
            Kind::Chat => vec![self.conversation(&fields)?],
        };
        let n = fields.whole("n", 1..=MOST_TEXTS)?.unwrap_or(1);
        if prompts.len() * n > MOST_TEXTS {
            let count = prompts.len() * n;
            let message = format!("{count} texts are asked for, at most {MOST_TEXTS} at a time");
            return Err(Refused::field("n", message));
        }
        let request = self.request(kind, &fields)?;
        let echo = kind == Kind::Completion && fields.truth("echo")?;
        if echo && request.logprobs.is_some() {
            let message =
                "probabilities of the prompt's tokens are not supported: give `echo` or `logprobs`";
            return Err(Refused::field("echo", message));
        }
        let text = |tokens: &Vec<u32>| match echo {
            true => self.generator().decode(tokens),
            false => Ok(String::new()),
        };
        let begin = prompts
            .iter()
            .map(text)
            .collect::<Result<Vec<_>, Error>>()?;
        let many = |all: &[String]| {
            all.iter()
                .flat_map(|t| std::iter::repeat_n(t.clone(), n))
                .collect()
        };
        let texts = prompts.iter().flat_map(|p| std::iter::repeat_n(p, n));
        let texts = texts.zip(0..).map(|(prompt, i)| {
            let mut request = request.clone();
            request.sampling.seed = request.sampling.seed.wrapping_add(i);
            (prompt.clone(), request)
        });
        let options = fields.get("stream_options");
        Ok(Question {
            kind,
            stream: fields.truth("stream")?,
            usage: options.is_some_and(|o| o["include_usage"] == true),
            echo: many(&begin),
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            logprobs: request.logprobs.is_some(),
            texts: texts.collect(),
        })
    }

    /// How the texts are to be written.
    fn request(&self, kind: Kind, fields: &Fields) -> Result<Request, Refused> {
        let one = |v: &Value| v.as_u64() == Some(1);
        for (name, harmless) in [
            ("suffix", empty as fn(&Value) -> bool),
            ("best_of", one),
            ("logit_bias", empty),
            ("presence_penalty", empty),
            ("frequency_penalty", empty),
            ("tools", empty),
            ("functions", empty),
            ("response_format", |v| v["type"] == "text"),
            ("modalities", |v| *v == serde_json::json!(["text"])),
        ] {
            fields.refuse(name, harmless)?;
        }
        let mut options = self.options.clone();
        let any = 0..=usize::MAX;
        options.temperature = fields
            .number("temperature", 0.0..=f64::INFINITY)?
            .or(options.temperature);
        options.top_p = fields.number("top_p", 0.0..=1.0)?.or(options.top_p);
        options.min_p = fields.number("min_p", 0.0..=1.0)?.or(options.min_p);
        options.top_k = fields.whole("top_k", any.clone())?.or(options.top_k);
        let penalty = fields.number("repetition_penalty", f64::MIN_POSITIVE..=f64::INFINITY)?;
        options.repetition_penalty = penalty.or(options.repetition_penalty);
        // Whoever asks twice without a seed wants two texts.
        let random = || RandomState::new().hash_one(0);
        options.seed = fields
            .seed("seed")?
            .or(options.seed)
            .or_else(|| Some(random()));
        if let Some(stop) = fields.texts("stop")? {
            if stop.len() > MOST_STOPS {
                let message = format!("`stop` has {} texts, at most {MOST_STOPS}", stop.len());
                return Err(Refused::field("stop", message));
            }
            options.stop = stop;
        }
        let own = options.max_tokens;
        let asked = match kind {
            Kind::Completion => fields.whole("max_tokens", any)?,
            Kind::Chat => fields
                .whole("max_completion_tokens", any.clone())?
                .or(fields.whole("max_tokens", any)?),
        };
        let usual = (kind == Kind::Completion).then_some(COMPLETION_TOKENS);
        options.max_tokens = asked.or(own).or(usual);
        let mut request = options.request(self.generator().settings());
        request.logprobs = match kind {
            Kind::Completion => fields.whole("logprobs", 0..=MOST_TOP)?,
            Kind::Chat => {
                let top = fields.whole("top_logprobs", 0..=MOST_TOP)?;
                let told = fields.truth("logprobs")?;
                if top.is_some_and(|n| n > 0) && !told {
                    let message = "`top_logprobs` needs `logprobs` to be true";
                    return Err(Refused::field("top_logprobs", message));
                }
                told.then_some(top.unwrap_or(0))
            }
        };
        Ok(request)
    }

    /// Prompts of a completion.
    fn prompts(&self, fields: &Fields) -> Result<Vec<Vec<u32>>, Refused> {
        let generator = self.generator();
        let prompts = Prompts {
            field: "prompt",
            most: MOST_TEXTS,
            encode: &|text| generator.encode(text, true),
            check: &|tokens| generator.check(tokens),
        };
        prompts.read(fields)
    }

    /// The tokens of a conversation.
    fn conversation(&self, fields: &Fields) -> Result<Vec<u32>, Refused> {
        let wrong = || {
            let message = "`messages` must be a list of objects with `role` and `content`, a string or parts of type `text`";
            Refused::field("messages", message)
        };
        let content = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Array(parts) => parts
                .iter()
                .map(|p| p["text"].as_str().filter(|_| p["type"] == "text"))
                .collect(),
            _ => None,
        };
        let message = |m: &Value| {
            Some(Message {
                role: m["role"].as_str()?.to_owned(),
                content: content(&m["content"])?,
            })
        };
        let messages = fields.get("messages").and_then(Value::as_array);
        let messages: Option<Vec<Message>> =
            messages.and_then(|all| all.iter().map(message).collect());
        let messages = messages.filter(|all| !all.is_empty()).ok_or_else(wrong)?;
        let generator = self.generator();
        let tokens = || {
            let text = chat::prompt(generator.files(), &messages)?;
            let tokens = generator.encode(&text, false)?;
            generator.check(&tokens).map(|()| tokens)
        };
        tokens().map_err(|e: Error| Refused::of("messages", &e))
    }
}
