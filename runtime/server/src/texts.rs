//! Texts that are written for clients, by a model on a thread of its own.

use crate::error::Refused;
use crate::worker::Worker;
use lapidary_language::engine::Engine;
use lapidary_language::generate::{Finish, Piece, Request, Summary};
use lapidary_language::sampling::Scored;
use lapidary_language::writing::{Job, Reader};
use lapidary_language::{Error, Generator};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A token as it is sent to whoever talks to the client.
pub struct Token {
    /// The token.
    pub token: u32,
    /// Logarithm of its probability, where that was asked for.
    pub logprob: Option<f64>,
    /// The most probable tokens in its place.
    pub top: Vec<Scored>,
}

/// A part of a text.
#[derive(Default)]
pub struct Part {
    /// The number of the text in its request.
    pub index: usize,
    /// Text that is complete now.
    pub text: String,
    /// Its tokens, where their probabilities were asked for.
    pub tokens: Vec<Token>,
    /// How it went, in the last part.
    pub end: Option<Result<Ended, Error>>,
}

/// How a text went.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens that were written.
    pub tokens: usize,
}

/// Parts of the texts of a request, as many as their tokens at most; texts whose parts nobody takes are ended.
pub type Parts = UnboundedReceiver<Part>;

/// Sends a text's parts, one by one or all at its end.
pub struct Send {
    to: UnboundedSender<Part>,
    part: Part,
    one_by_one: bool,
    _place: OwnedSemaphorePermit,
}

impl Reader for Send {
    fn read(&mut self, piece: Piece) -> ControlFlow<()> {
        self.part.text += piece.text;
        if let (Some(token), Some(_)) = (piece.token, piece.logprob) {
            self.part.tokens.push(Token {
                token,
                logprob: piece.logprob,
                top: piece.top.to_vec(),
            });
        }
        if self.to.is_closed() {
            return ControlFlow::Break(());
        }
        if self.one_by_one && !self.part.text.is_empty() {
            let next = Part {
                index: self.part.index,
                ..Part::default()
            };
            let _ = self.to.send(std::mem::replace(&mut self.part, next));
        }
        ControlFlow::Continue(())
    }

    fn is_gone(&self) -> bool {
        self.to.is_closed()
    }

    fn end(mut self, result: Result<Summary, Error>) {
        self.part.end = Some(result.map(|summary| Ended {
            finish: summary.finish,
            tokens: summary.tokens,
        }));
        let _ = self.to.send(self.part);
    }
}

/// The model, and the thread that runs it.
pub struct Writer {
    generator: Arc<Generator>,
    worker: Worker<Job<Send>>,
}

impl Writer {
    /// Starts it, for so many texts at the same time, and so many that wait.
    pub fn start(
        generator: Generator,
        parallel: usize,
        queue: usize,
        pin: bool,
    ) -> Result<Writer, Error> {
        let generator = Arc::new(generator);
        let own = Arc::clone(&generator);
        let pin = pin.then(|| generator.model().threads());
        let worker = Worker::start(parallel + queue, pin, move |jobs| {
            work(&own, parallel, jobs);
        })?;
        Ok(Writer { generator, worker })
    }

    /// The model.
    pub fn generator(&self) -> &Arc<Generator> {
        &self.generator
    }

    /// The thread.
    pub fn worker(&self) -> &Worker<Job<Send>> {
        &self.worker
    }

    /// Gives it texts to write, all of them or none.
    pub fn write(
        &self,
        texts: Vec<(Vec<u32>, Request)>,
        one_by_one: bool,
    ) -> Result<Parts, Refused> {
        let mut places = self.worker.reserve(texts.len())?;
        let (to, parts) = unbounded_channel();
        for (index, (prompt, request)) in texts.into_iter().enumerate() {
            let Some(place) = places.split(1) else {
                return Err(Refused::failed("a text has no place"));
            };
            let reader = Send {
                to: to.clone(),
                part: Part {
                    index,
                    ..Part::default()
                },
                one_by_one,
                _place: place,
            };
            self.worker.give(Job {
                prompt,
                request,
                cache: None,
                reader,
            })?;
        }
        Ok(parts)
    }
}

/// Writes texts until nobody can ask for more.
fn work(generator: &Generator, parallel: usize, jobs: &Receiver<Job<Send>>) {
    let mut engine = match Engine::new(generator, parallel) {
        Ok(engine) => engine,
        Err(error) => {
            for job in jobs {
                job.reader.end(Err(error.clone()));
            }
            return;
        }
    };
    loop {
        if engine.is_idle() {
            match jobs.recv() {
                Ok(job) => engine.add(job),
                Err(_) => return,
            }
        }
        while let Ok(job) = jobs.try_recv() {
            engine.add(job);
        }
        engine.turn();
    }
}
