//! What a program that gives embeddings does with its options: one text, or a batch of them, to a JSON object each.

use crate::batch::{self, Lines};
use crate::embed::{Embedder, TOGETHER, shortened};
use crate::options::Options;
use crate::{Error, cli};
use std::io::Write;
use std::time::Instant;

/// Requests that are read together, for each text that is embedded at a time: those of like lengths go into one run.
const AHEAD: usize = 8;

/// Does what the options say; false if some requests could not be answered.
pub fn run(embedder: &Embedder, options: &Options) -> Result<bool, Error> {
    let mut out = std::io::stdout().lock();
    if let Some(path) = &options.batch {
        return batched(embedder, options, Lines::at(path)?, &mut out);
    }
    let begin = Instant::now();
    let text = match &options.prompt {
        Some(text) => text.clone(),
        None => cli::read_prompt()?,
    };
    let tokens = embedder.encode(&text)?;
    let vectors = embedder.embed(&[tokens.as_slice()], 1)?;
    for vector in vectors {
        // A reader that has gone away is no error of ours.
        let _ = writeln!(out, "{}", answer(vector, tokens.len(), options.dimensions)?);
    }
    tell(embedder, options, [1, tokens.len()], begin);
    Ok(true)
}

/// Answers every line, in order; false if some could not be.
fn batched(
    embedder: &Embedder,
    options: &Options,
    mut lines: Lines,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let together = options.parallel.unwrap_or(TOGETHER);
    let (begin, mut all, mut counts) = (Instant::now(), true, [0, 0]);
    let mut end = None;
    while end.is_none() {
        let mut asked = vec![];
        while end.is_none() && asked.len() < AHEAD * together {
            // Nobody may wait for an answer while we wait for a request.
            match lines.next(asked.is_empty()) {
                Ok(Some(line)) if line.is_empty() => end = Some(Ok(())),
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(line)) => asked.push(read(embedder, options, &line)),
                Ok(None) => break,
                Err(error) => end = Some(Err(error)),
            }
        }
        let texts: Vec<&[u32]> = asked.iter().flatten().map(|(t, _)| t.as_slice()).collect();
        let mut vectors = embedder.embed(&texts, together)?.into_iter();
        for one in asked {
            let answer = one.and_then(|(tokens, dimensions)| {
                counts[1] += tokens.len();
                answer(vectors.next().unwrap_or_default(), tokens.len(), dimensions)
            });
            counts[0] += 1;
            all &= answer.is_ok();
            let line = answer.unwrap_or_else(|error| batch::refused(&error).to_string());
            if writeln!(out, "{line}").is_err() {
                // The reader has gone away.
                return Ok(all);
            }
        }
        let _ = out.flush();
    }
    tell(embedder, options, counts, begin);
    end.unwrap_or(Ok(())).map(|()| all)
}

/// The tokens of a request, and how many dimensions it asks for.
fn read(
    embedder: &Embedder,
    options: &Options,
    line: &[u8],
) -> Result<(Vec<u32>, Option<usize>), Error> {
    let options = batch::chosen(options, &batch::object(line)?)?;
    options.check(true)?;
    let text = options.prompt.as_deref();
    let text = text.ok_or_else(|| batch::wrong("the request has no `prompt`"))?;
    Ok((embedder.encode(text)?, options.dimensions))
}

/// A line with an embedding.
fn answer(vector: Vec<f32>, tokens: usize, dimensions: Option<usize>) -> Result<String, Error> {
    let vector = match dimensions {
        Some(n) => shortened(&vector, n)?,
        None => vector,
    };
    let vector = serde_json::to_string(&vector)
        .map_err(|e| Error::new(format!("the embedding is no JSON: {e}"), "report this"))?;
    Ok(format!(
        "{{\"embedding\":{vector},\"prompt_tokens\":{tokens}}}"
    ))
}

fn tell(embedder: &Embedder, options: &Options, [texts, tokens]: [usize; 2], begin: Instant) {
    if options.stats {
        let time = begin.elapsed().as_secs_f64();
        eprintln!(
            "{texts} texts, {tokens} tokens in {:.1} ms, {:.1} texts/s; {} threads",
            time * 1e3,
            texts as f64 / time.max(1e-9),
            embedder.model().threads()
        );
    }
}
