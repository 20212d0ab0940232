//! The thread that runs the model.

use crate::error::Refused;
use crate::failed;
use lapidary_language::engine::Engine;
use lapidary_language::generate::{Finish, Piece, Request, Summary};
use lapidary_language::sampling::Scored;
use lapidary_language::writing::{Job, Reader};
use lapidary_language::{Error, Generator};
use lapidary_runtime::pool::pin_this_thread;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
struct Send {
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

/// The thread, and the way to it.
pub struct Worker {
    generator: Arc<Generator>,
    /// Places for texts that run or wait.
    places: Arc<Semaphore>,
    all: usize,
    jobs: Mutex<Option<Sender<Job<Send>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts it, for so many texts at the same time, and so many that wait.
    pub fn start(
        generator: Generator,
        parallel: usize,
        queue: usize,
        pin: bool,
    ) -> Result<Worker, Error> {
        let generator = Arc::new(generator);
        let (send, receive) = channel();
        let own = Arc::clone(&generator);
        let thread = std::thread::Builder::new().name("model".to_owned());
        let thread = thread.spawn(move || {
            if pin {
                pin_this_thread(own.model().threads());
            }
            work(&own, parallel, &receive);
        });
        let thread = thread.map_err(|e| failed(format!("no thread: {e}"), "end other programs"))?;
        Ok(Worker {
            generator,
            places: Arc::new(Semaphore::new(parallel + queue)),
            all: parallel + queue,
            jobs: Mutex::new(Some(send)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The model.
    pub fn generator(&self) -> &Arc<Generator> {
        &self.generator
    }

    /// Texts that run or wait.
    pub fn texts(&self) -> usize {
        self.all - self.places.available_permits()
    }

    /// Whether texts are written at all.
    pub fn is_well(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Gives it texts to write, all of them or none.
    pub fn write(
        &self,
        texts: Vec<(Vec<u32>, Request)>,
        one_by_one: bool,
    ) -> Result<Parts, Refused> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let jobs = jobs
            .as_ref()
            .ok_or_else(|| Refused::unavailable("the server is ending"))?;
        let count = texts.len();
        if count > self.all {
            let message = format!(
                "{count} texts in one request, the server takes {}",
                self.all
            );
            return Err(Refused::wrong(message));
        }
        let places = Arc::clone(&self.places).try_acquire_many_owned(count as u32);
        let mut places = places.map_err(|_| Refused::busy())?;
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
            let job = Job {
                prompt,
                request,
                cache: None,
                reader,
            };
            jobs.send(job)
                .map_err(|_| Refused::failed("the model has stopped"))?;
        }
        Ok(parts)
    }

    /// Takes no more texts.
    pub fn close(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.take();
    }

    /// Waits for the texts that somebody still reads.
    pub fn join(&self) {
        self.close();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // It has told its readers if it failed.
            let _ = thread.join();
        }
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
