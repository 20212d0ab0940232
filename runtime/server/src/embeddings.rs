//! Embeddings for clients, by an encoder on a thread of its own.
//!
//! The thread takes texts of all requests that wait, in their order, and runs those of like lengths together. A request's texts keep their
//! places until its answer is sent, piece by piece: so what is computed and not yet taken is bounded, too.

use crate::base64;
use crate::error::Refused;
use crate::fields::Fields;
use crate::prompts::Prompts;
use crate::served::Name;
use crate::worker::Worker;
use futures_core::Stream;
use lapidary_language::embed::shortened;
use lapidary_language::{Embedder, Error};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::iter::Enumerate;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::task::{Context, Poll};
use std::vec::IntoIter;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Most texts of one request, as the interface has it.
const MOST_TEXTS: usize = 2048;

/// Texts that are taken together, for each that is in one run of the model: those of like lengths go into one.
const AHEAD: usize = 4;

/// What an answer begins with.
const BEGIN: &str = "{\"object\":\"list\",\"data\":[";

/// Places of a request's texts.
type Places = Arc<OwnedSemaphorePermit>;

/// A text to embed.
pub struct Job {
    index: usize,
    tokens: Vec<u32>,
    to: UnboundedSender<(usize, Result<Vec<f32>, Error>)>,
    _places: Places,
}

/// An encoder that is served.
pub struct Embeddings {
    name: Name,
    embedder: Arc<Embedder>,
    worker: Worker<Job>,
    /// Numbers of an embedding, where a request does not say it.
    dimensions: Option<usize>,
}

/// A request that can be answered.
pub struct Question {
    texts: Vec<Vec<u32>>,
    tokens: usize,
    dimensions: Option<usize>,
    base64: bool,
}

impl Embeddings {
    /// Starts it, for so many texts in one run, and so many that wait.
    pub fn start(
        name: Name,
        embedder: Embedder,
        [parallel, queue]: [usize; 2],
        dimensions: Option<usize>,
        pin: bool,
    ) -> Result<Embeddings, Error> {
        if let Some(n) = dimensions {
            shortened(&vec![0.0; embedder.width()], n)?;
        }
        let embedder = Arc::new(embedder);
        let own = Arc::clone(&embedder);
        let pin = pin.then(|| embedder.model().threads());
        let worker = Worker::start(parallel + queue, pin, move |jobs| {
            work(&own, parallel, jobs);
        })?;
        Ok(Embeddings {
            name,
            embedder,
            worker,
            dimensions,
        })
    }

    /// What clients call it.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The model.
    pub fn embedder(&self) -> &Embedder {
        &self.embedder
    }

    /// The thread.
    pub fn worker(&self) -> &Worker<Job> {
        &self.worker
    }

    /// Reads a request. It may take a while where texts are long.
    pub fn read(&self, body: &[u8]) -> Result<Question, Refused> {
        let fields = Fields::read(body)?;
        self.name.check(&fields)?;
        let prompts = Prompts {
            field: "input",
            most: MOST_TEXTS,
            encode: &|text| self.embedder.encode(text),
            check: &|tokens| self.embedder.check(tokens),
        };
        let texts = prompts.read(&fields)?;
        let base64 = match fields.text("encoding_format")? {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                let message = "`encoding_format` must be `float` or `base64`";
                return Err(Refused::field("encoding_format", message));
            }
        };
        let width = self.embedder.width();
        let dimensions = fields.whole("dimensions", 1..=width)?;
        Ok(Question {
            tokens: texts.iter().map(Vec::len).sum(),
            texts,
            dimensions: dimensions.or(self.dimensions),
            base64,
        })
    }

    /// The answer, once all its vectors are there.
    pub async fn answer(&self, question: Question) -> Result<Answer, Refused> {
        let count = question.texts.len();
        let places = Arc::new(self.worker.reserve(count)?);
        let (to, mut done) = unbounded_channel();
        for (index, tokens) in question.texts.into_iter().enumerate() {
            self.worker.give(Job {
                index,
                tokens,
                to: to.clone(),
                _places: Arc::clone(&places),
            })?;
        }
        drop(to);
        let mut vectors = vec![vec![]; count];
        for _ in 0..count {
            match done.recv().await {
                Some((index, Ok(vector))) => {
                    vectors[index] = match question.dimensions {
                        Some(n) => shortened(&vector, n)?,
                        None => vector,
                    }
                }
                Some((_, Err(error))) => return Err(Refused::failed(error.message)),
                None => return Err(Refused::failed("the model has stopped")),
            }
        }
        let usage = json!({"prompt_tokens": question.tokens, "total_tokens": question.tokens});
        let model = Value::from(self.name.id.as_str());
        Ok(Answer {
            vectors: vectors.into_iter().enumerate(),
            base64: question.base64,
            end: Some(format!("],\"model\":{model},\"usage\":{usage}}}")),
            _places: places,
        })
    }
}

/// Embeds texts until nobody can ask for more.
fn work(embedder: &Embedder, parallel: usize, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let others = jobs.try_iter().take(AHEAD * parallel - 1);
        let all = std::iter::once(first).chain(others);
        // Nobody waits for those whose client has left.
        let all: Vec<Job> = all.filter(|job| !job.to.is_closed()).collect();
        let texts: Vec<&[u32]> = all.iter().map(|job| job.tokens.as_slice()).collect();
        let done: Vec<Result<Vec<f32>, Error>> = match embedder.embed(&texts, parallel) {
            Ok(vectors) => vectors.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); all.len()],
        };
        for (job, vector) in all.into_iter().zip(done) {
            let _ = job.to.send((job.index, vector));
        }
    }
}

/// The pieces of an answer: its vectors one by one, and what is said of all.
pub struct Answer {
    vectors: Enumerate<IntoIter<Vec<f32>>>,
    base64: bool,
    end: Option<String>,
    _places: Places,
}

impl Answer {
    /// The next vector, with what stands before it.
    fn piece(&mut self) -> Option<String> {
        let (index, vector) = self.vectors.next()?;
        let before = if index == 0 { BEGIN } else { "," };
        let vector = shown(&vector, self.base64);
        Some(format!(
            "{before}{{\"object\":\"embedding\",\"index\":{index},\"embedding\":{vector}}}"
        ))
    }
}

impl Stream for Answer {
    type Item = Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = self.piece().or_else(|| self.end.take());
        Poll::Ready(piece.map(Ok))
    }
}

/// A vector as JSON.
fn shown(vector: &[f32], base64: bool) -> String {
    if base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
        return format!("\"{}\"", base64::encode(bytes.into_iter()));
    }
    let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
    format!("[{}]", numbers.join(","))
}
