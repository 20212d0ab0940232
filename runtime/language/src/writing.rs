//! A text on its way: what is asked for, what there is of it, and whoever it is for.

use crate::Error;
use crate::generate::{Finish, Generator, Piece, Request, Summary};
use crate::sampling::{Chosen, Proposed, Sampler};
use crate::session::Session;
use crate::text::Text;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Whoever a text is for.
pub trait Reader {
    /// Takes a token as it is written; may end the text.
    fn read(&mut self, piece: Piece) -> ControlFlow<()>;

    /// True if nobody reads any more.
    fn is_gone(&self) -> bool {
        false
    }

    /// Takes how it went, once.
    fn end(self, result: Result<Summary, Error>);
}

/// A text to write.
pub struct Job<R> {
    /// The tokens that it follows.
    pub prompt: Vec<u32>,
    /// What is asked for.
    pub request: Request,
    /// A file that keeps what the model has of the prompt; only where there is one text at a time.
    pub cache: Option<PathBuf>,
    /// Whoever it is for.
    pub reader: R,
}

/// A text that is being written.
pub struct Writing<'g, R> {
    generator: &'g Generator,
    /// What is asked for.
    pub request: Request,
    /// Where what the model has of the prompt is kept, unless it is there already.
    pub cache: Option<PathBuf>,
    /// Whoever it is for.
    pub reader: R,
    /// Those of the prompt and of the text.
    pub tokens: Vec<u32>,
    /// Those of the prompt.
    pub prompt: usize,
    /// Most tokens of both.
    pub limit: usize,
    /// What chooses them.
    pub sampler: Sampler,
    text: Text<'g>,
    begin: Instant,
    prompt_time: Option<Duration>,
    /// Tokens that a draft has proposed, and how many of them were right; none without a draft.
    pub drafted: Option<[usize; 2]>,
}

impl<'g, R: Reader> Writing<'g, R> {
    /// Nothing yet; none if it cannot begin, of which the reader is told.
    pub fn begin(generator: &'g Generator, job: Job<R>) -> Option<Writing<'g, R>> {
        let room = match (job.prompt.is_empty(), generator.room(job.prompt.len())) {
            (false, Ok(room)) => room,
            (true, _) => {
                let error = Error::new("the prompt has no tokens", "give some text");
                job.reader.end(Err(error));
                return None;
            }
            (_, Err(error)) => {
                job.reader.end(Err(error));
                return None;
            }
        };
        let most = job.request.max_tokens.unwrap_or(usize::MAX).min(room);
        let stop = job.request.stop.clone();
        Some(Writing {
            generator,
            cache: job.cache,
            reader: job.reader,
            prompt: job.prompt.len(),
            limit: job.prompt.len().saturating_add(most),
            sampler: Sampler::new(job.request.sampling.clone()),
            text: Text::after(generator.vocabulary(), &job.prompt, stop),
            tokens: job.prompt,
            request: job.request,
            begin: Instant::now(),
            prompt_time: None,
            drafted: None,
        })
    }

    /// Tokens that are never chosen.
    pub fn holes(&self) -> &'g [u32] {
        self.generator.vocabulary().holes()
    }

    /// The last token.
    pub fn last(&self) -> u32 {
        self.tokens.last().copied().unwrap_or_default()
    }

    /// Chooses the next token by the scores after a sequence of the session; why the text ends, if it does.
    pub fn next(&mut self, session: &Session, at: usize) -> Result<Option<Finish>, Error> {
        Ok(self.judge(session, at, None)?.1)
    }

    /// As [`Writing::next`], with a token that was proposed: whether it is the one, and why the text ends, if it does.
    pub fn judge(
        &mut self,
        session: &Session,
        at: usize,
        proposed: Option<&Proposed>,
    ) -> Result<(bool, Option<Finish>), Error> {
        self.prompt_time.get_or_insert_with(|| self.begin.elapsed());
        if self.tokens.len() >= self.limit {
            return Ok((false, Some(self.close(Finish::Length)?)));
        }
        let holes = self.generator.vocabulary().holes();
        let (scores, logprobs) = (session.scores(at), self.request.logprobs);
        let chosen = self
            .sampler
            .judge(scores, &self.tokens, holes, logprobs, proposed)?;
        let right = proposed.is_some_and(|p| p.token == chosen.token);
        Ok((right, self.push(&chosen)?))
    }

    /// Adds a token; why the text ends, if it does.
    fn push(&mut self, chosen: &Chosen) -> Result<Option<Finish>, Error> {
        self.tokens.push(chosen.token);
        if self.generator.settings().eos.contains(&chosen.token) {
            return self.close(Finish::End).map(Some);
        }
        let (ready, stopped) = self.text.push(chosen.token)?;
        let piece = Piece {
            token: Some(chosen.token),
            text: &ready,
            logprob: chosen.logprob,
            top: &chosen.top,
        };
        if self.reader.read(piece).is_break() {
            return Ok(Some(Finish::Cancelled));
        }
        if stopped {
            return Ok(Some(Finish::Stop));
        }
        match self.tokens.len() >= self.limit {
            true => self.close(Finish::Length).map(Some),
            false => Ok(None),
        }
    }

    /// Gives away the text that was held back; why it ends then.
    fn close(&mut self, finish: Finish) -> Result<Finish, Error> {
        let (rest, stopped) = self.text.finish()?;
        let piece = Piece {
            token: None,
            text: &rest,
            logprob: None,
            top: &[],
        };
        if !rest.is_empty() && self.reader.read(piece).is_break() {
            return Ok(Finish::Cancelled);
        }
        Ok(if stopped { Finish::Stop } else { finish })
    }

    /// Tells the reader how it went.
    pub fn end(self, finish: Result<Finish, Error>, session: &Session) {
        let all = self.begin.elapsed();
        let prompt_time = self.prompt_time.unwrap_or(all);
        self.reader.end(finish.map(|finish| Summary {
            finish,
            prompt_tokens: self.prompt,
            tokens: self.tokens.len() - self.prompt,
            prompt_time,
            time: all - prompt_time,
            cache_bytes: session.cache_bytes(),
            drafted: self.drafted,
        }));
    }
}
