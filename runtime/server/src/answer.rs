//! Answers in the form of the OpenAI interface, whole ones and pieces.

use crate::ask::{Asked, Kind, Question};
use crate::error::Refused;
use crate::texts::{Ended, Part, Parts, Token};
use lapidary_language::Generator;
use serde_json::{Map, Value, json};
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// What all pieces of an answer have in common.
pub struct Form {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
}

impl Form {
    /// Of the answer to a question.
    pub fn new(asked: &Asked, question: &Question) -> Form {
        let prefix = match question.kind {
            Kind::Completion => "cmpl",
            Kind::Chat => "chatcmpl",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Form {
            kind: question.kind,
            id: format!("{prefix}-{:016x}", RandomState::new().hash_one(1)),
            created: now.map_or(0, |t| t.as_secs()),
            model: asked.name.id.clone(),
            logprobs: question.logprobs,
        }
    }

    /// An object with these choices.
    pub fn object(&self, choices: Vec<Value>, piece: bool) -> Value {
        let object = match (self.kind, piece) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    /// A choice, or a piece of one.
    pub fn choice(
        &self,
        generator: &Generator,
        part: &Part,
        place: &mut Place,
        piece: bool,
    ) -> Value {
        let logprobs = match self.logprobs {
            true => self.logprobs(generator, &part.tokens, place),
            false => Value::Null,
        };
        let ended = part.end.as_ref().and_then(|e| e.as_ref().ok());
        let mut choice = json!({
            "index": part.index, "logprobs": logprobs, "finish_reason": ended.map(|e| e.finish.name()),
        });
        let (name, content) = match (self.kind, piece) {
            (Kind::Completion, _) => ("text", json!(part.text)),
            (Kind::Chat, false) => {
                let message = json!({"role": "assistant", "content": part.text, "refusal": null});
                ("message", message)
            }
            (Kind::Chat, true) => {
                let mut delta = Map::new();
                if !std::mem::replace(&mut place.begun, true) {
                    delta.insert("role".to_owned(), json!("assistant"));
                }
                if !part.text.is_empty() || ended.is_none() {
                    delta.insert("content".to_owned(), json!(part.text));
                }
                ("delta", delta.into())
            }
        };
        choice[name] = content;
        choice
    }

    fn logprobs(&self, generator: &Generator, tokens: &[Token], place: &mut Place) -> Value {
        let text = |token: u32| generator.token_text(token);
        match self.kind {
            Kind::Chat => {
                let told = |token: u32, logprob: f64| {
                    let text = text(token);
                    json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()})
                };
                let each = |t: &Token| {
                    let mut one = told(t.token, t.logprob.unwrap_or_default());
                    let top = t.top.iter().map(|s| told(s.token, s.logprob));
                    one["top_logprobs"] = top.collect();
                    one
                };
                json!({"content": tokens.iter().map(each).collect::<Vec<_>>(), "refusal": null})
            }
            Kind::Completion => {
                let texts: Vec<String> = tokens.iter().map(|t| text(t.token)).collect();
                let offsets: Vec<usize> = texts
                    .iter()
                    .map(|t| {
                        let at = place.offset;
                        place.offset += t.chars().count();
                        at
                    })
                    .collect();
                let top = |t: &Token| -> Value {
                    let all = t.top.iter().map(|s| (text(s.token), json!(s.logprob)));
                    Value::Object(all.collect())
                };
                json!({
                    "tokens": texts,
                    "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
        }
    }
}

/// How far the pieces of a choice have come.
#[derive(Clone, Default)]
pub struct Place {
    begun: bool,
    /// Characters of the tokens.
    offset: usize,
}

/// Numbers of tokens.
pub fn usage(prompt: usize, written: usize) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
    })
}

/// The whole answer, when all its texts are done.
pub async fn whole(asked: &Asked, question: &Question, mut parts: Parts) -> Result<Value, Refused> {
    let form = Form::new(asked, question);
    let mut choices = vec![Value::Null; question.echo.len()];
    let (mut left, mut written) = (choices.len(), 0);
    while left > 0 {
        let Some(mut part) = parts.recv().await else {
            return Err(Refused::failed("the model has stopped"));
        };
        match &part.end {
            None => continue,
            Some(Err(error)) => return Err(Refused::failed(error.message.clone())),
            Some(Ok(Ended { tokens, .. })) => written += tokens,
        }
        part.text.insert_str(0, &question.echo[part.index]);
        let index = part.index;
        choices[index] = form.choice(asked.generator(), &part, &mut Place::default(), false);
        left -= 1;
    }
    let mut answer = form.object(choices, false);
    answer["usage"] = usage(question.prompt_tokens, written);
    Ok(answer)
}
