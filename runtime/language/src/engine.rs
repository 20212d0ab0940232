//! The loop that writes texts, several at a time: the model's scores, the choice of a token, the text that it completes.
//!
//! ```text
//! sequences of the session   [0 .. running)   a token of each in every turn, all in one run of the model
//!                            [running]        one whose prompt is being read, a part of it in every turn
//! ```
//! A prompt is read by itself, in parts that do not depend on what runs beside it. So the sequences that run decide a text only
//! through how many rows the products of a step have: products of packed weights with rounded activations add up a row the same
//! way for any number; those of `f32` form partial sums where there are few rows, which may round differently.

use crate::generate::{Finish, Generator};
use crate::session::{CHUNK, Session};
use crate::writing::{Job, Reader, Writing};
use crate::{Error, prompt_cache};
use std::collections::VecDeque;

/// Tokens after a prompt that there is room for from the beginning; memory is taken as it is filled.
const AHEAD: usize = 512;

/// Texts that are written at the same time.
pub struct Engine<'g, R> {
    generator: &'g Generator,
    session: Session<'g>,
    /// Most sequences at a time.
    most: usize,
    /// Text `n` is sequence `n` of the session.
    running: Vec<Writing<'g, R>>,
    /// The one after them, of whose prompt the session has a part.
    joining: Option<Writing<'g, R>>,
    waiting: VecDeque<Job<R>>,
}

impl<'g, R: Reader> Engine<'g, R> {
    /// Of no texts yet, at most so many at a time.
    pub fn new(generator: &'g Generator, most: usize) -> Result<Engine<'g, R>, Error> {
        Ok(Engine {
            session: generator.session()?,
            generator,
            most: most.max(1),
            running: vec![],
            joining: None,
            waiting: VecDeque::new(),
        })
    }

    /// Adds a text, which begins when there is room.
    pub fn add(&mut self, job: Job<R>) {
        self.waiting.push_back(job);
    }

    /// Texts that are not done, those that wait included.
    pub fn texts(&self) -> usize {
        self.waiting.len() + usize::from(self.joining.is_some()) + self.running.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.texts() == 0
    }

    /// Ends all texts with an error.
    pub fn fail(&mut self, error: &Error) {
        let writing = self.running.drain(..).chain(self.joining.take());
        let readers = writing.map(|w| w.reader);
        for reader in readers.chain(self.waiting.drain(..).map(|job| job.reader)) {
            reader.end(Err(error.clone()));
        }
    }

    /// Goes on with every text: a part of a prompt, and a token of each that runs.
    pub fn turn(&mut self) {
        let done = self
            .admit()
            .and_then(|()| self.read())
            .and_then(|()| self.step());
        if let Err(error) = done {
            // A run of the model failed: what it leaves is not known.
            self.fail(&error);
        }
        if self.is_idle()
            && let Err(error) = self.session.clear()
        {
            self.fail(&error);
        }
    }

    /// Begins with the prompt of the next text that waits; those that nobody waits for are dropped.
    fn admit(&mut self) -> Result<(), Error> {
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front() {
                Some(job) if job.reader.is_gone() => {
                    if let Some(writing) = Writing::begin(self.generator, job) {
                        writing.end(Ok(Finish::Cancelled), &self.session);
                    }
                }
                job => self.waiting.extend(job),
            }
        }
        while self.joining.is_none() && self.running.len() < self.most {
            let Some(job) = self.waiting.pop_front() else {
                break;
            };
            self.joining = Writing::begin(self.generator, job);
            if let Some(writing) = &self.joining {
                self.session
                    .reserve(writing.limit.min(writing.prompt + AHEAD))?;
                self.session.join()?;
                self.take_up();
            }
        }
        Ok(())
    }

    /// Takes what a file has of the prompt; a file that is wrong ends the text.
    fn take_up(&mut self) {
        let Some(mut writing) = self.joining.take() else {
            return;
        };
        let found = match &writing.cache {
            Some(path) if self.most == 1 => {
                prompt_cache::take_up(path, &mut self.session, &writing.tokens)
            }
            _ => Ok(true),
        };
        match found {
            Ok(all) => {
                writing.cache = writing.cache.filter(|_| !all);
                self.joining = Some(writing);
            }
            Err(error) => {
                self.session.leave();
                writing.end(Err(error), &self.session);
            }
        }
    }

    /// Reads a part of a prompt; at its end, the first token is chosen.
    fn read(&mut self) -> Result<(), Error> {
        let Some(mut writing) = self.joining.take() else {
            return Ok(());
        };
        let at = self.running.len();
        if writing.reader.is_gone() {
            self.session.leave();
            writing.end(Ok(Finish::Cancelled), &self.session);
            return Ok(());
        }
        let done = self.session.len(at);
        let end = writing.prompt.min(done + CHUNK);
        if let Err(error) = self.session.feed(at, &writing.tokens[done..end]) {
            self.joining = Some(writing);
            return Err(error);
        }
        if end < writing.prompt {
            self.joining = Some(writing);
            return Ok(());
        }
        let saved = match writing.cache.take() {
            Some(path) => prompt_cache::save(&path, &self.session, &writing.tokens),
            None => Ok(()),
        };
        match saved.and_then(|()| writing.next(&self.session, at)) {
            Ok(None) => self.running.push(writing),
            end => {
                self.session.leave();
                writing.end(end.map(|f| f.unwrap_or(Finish::Length)), &self.session);
            }
        }
        Ok(())
    }

    /// Adds a token to each text that runs.
    fn step(&mut self) -> Result<(), Error> {
        // From the last one on: whoever takes the place of one that has ended has had its turn.
        let last: Vec<u32> = self.running.iter().map(Writing::last).collect();
        // One that has just joined has its first token, and gets the second one now.
        self.session.step(&last)?;
        for at in (0..self.running.len()).rev() {
            let end = match self.running[at].next(&self.session, at) {
                Ok(None) => continue,
                end => end.map(|f| f.unwrap_or(Finish::Length)),
            };
            let behind = self.running.len() - 1;
            self.session.replace(at, behind)?;
            if self.joining.is_some() {
                self.session.replace(behind, behind + 1)?;
            }
            self.session.leave();
            self.running.swap_remove(at).end(end, &self.session);
        }
        Ok(())
    }
}
