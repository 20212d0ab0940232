//! A text with a draft: a smaller model proposes the next few tokens one by one, and the model judges all of them in one run.
//!
//! ```text
//! draft:  t -> x1 -> x2 -> .. -> xk                  each drawn from the draft's probabilities q
//! model:  t x1 x2 .. xk => p0 p1 .. pk               one run, as fast as a token where reading weights takes the time
//! text:   x1 .. xi while they are accepted, then one from what p has more of than q, or from pk if all were
//! ```
//! So probabilities of texts are those of the model alone, and greedy texts are the same (but for rounding: the products of a run
//! have more rows).

use crate::Error;
use crate::generate::{Finish, Generator};
use crate::prompt_cache;
use crate::sampling::Sampler;
use crate::session::{Session, vocabulary_size};
use crate::settings::{self, Settings, file};
use crate::writing::{Job, Reader, Writing};
use lapidary_abi::program::File;
use lapidary_runtime::Model;

/// Tokens that are proposed at a time at first.
const FIRST: usize = 4;

/// Most of them.
const MOST: usize = 16;

/// A model that proposes tokens.
pub struct Draft {
    model: Model,
    /// Most tokens of a sequence.
    context: usize,
}

impl Draft {
    /// This model, for one with these files: it must have the same tokens.
    pub fn new(model: Model, files: &[File], of: &Generator) -> Result<Draft, Error> {
        let (own, other) = (
            vocabulary_size(model.inputs(), model.outputs())?,
            of.vocabulary().size(),
        );
        let tokenizer = |files| file(files, settings::TOKENIZER);
        if own != other || tokenizer(files) != tokenizer(of.files()) {
            return Err(Error::new(
                format!(
                    "the draft has another tokenizer than the model, or other tokens ({own}, the model has {other})"
                ),
                "give a smaller model of the same family, or a compressed one of the same checkpoint",
            ));
        }
        let context = Settings::read(files)?.context;
        Ok(Draft {
            model,
            context: context.unwrap_or(usize::MAX),
        })
    }
}

/// Writes a text.
pub fn write<R: Reader>(generator: &Generator, draft: &Draft, job: Job<R>) -> Result<(), Error> {
    let mut session = generator.session()?;
    session.join()?;
    let Some(mut writing) = Writing::begin(generator, job) else {
        return Ok(());
    };
    writing.drafted = Some([0, 0]);
    let end = go_on(&mut writing, &mut session, draft);
    writing.end(end, &session);
    Ok(())
}

fn go_on<R: Reader>(
    writing: &mut Writing<R>,
    session: &mut Session,
    draft: &Draft,
) -> Result<Finish, Error> {
    let prompt = writing.tokens.clone();
    let known = match &writing.cache {
        Some(path) => prompt_cache::take_up(path, session, &prompt)?,
        None => true,
    };
    session.feed(0, &prompt[session.len(0)..])?;
    if let (false, Some(path)) = (known, &writing.cache) {
        prompt_cache::save(path, session, &prompt)?;
    }
    if let Some(finish) = writing.next(session, 0)? {
        return Ok(finish);
    }
    let mut drafts = Session::new(&draft.model, None)?;
    drafts.join()?;
    let mut how = writing.request.sampling.clone();
    // Random numbers of its own.
    how.seed = !how.seed;
    let mut sampler = Sampler::new(how);
    let mut ahead = FIRST;
    loop {
        // One token comes from the model in any case.
        let written = writing.tokens.len();
        let room = draft.context.saturating_sub(written);
        let count = ahead.min(writing.limit - written - 1).min(room);
        let mut all = writing.tokens.clone();
        let mut proposals = Vec::with_capacity(count);
        for _ in 0..count {
            drafts.feed(0, &all[drafts.len(0)..])?;
            let holes = writing.holes();
            let proposed = sampler.propose(drafts.scores(0), &all, holes)?;
            all.push(proposed.token);
            proposals.push(proposed);
        }
        session.feed_and_score(&all[session.len(0)..], count + 1)?;
        let mut right = 0;
        for at in 0..=count {
            let (is_right, finish) = writing.judge(session, at, proposals.get(at))?;
            if let Some([_, accepted]) = &mut writing.drafted {
                *accepted += usize::from(is_right);
            }
            if let Some(finish) = finish {
                count_proposed(writing, count);
                return Ok(finish);
            }
            if !is_right {
                break;
            }
            right += 1;
        }
        count_proposed(writing, count);
        // What was proposed in vain is forgotten; the last token has not been read by either.
        let len = writing.tokens.len() - 1;
        session.truncate(0, len)?;
        drafts.truncate(0, len)?;
        ahead = match right == count {
            true => (ahead + 2).min(MOST),
            false => (right + 1).max(1),
        };
    }
}

fn count_proposed<R>(writing: &mut Writing<R>, count: usize) {
    if let Some([proposed, _]) = &mut writing.drafted {
        *proposed += count;
    }
}
