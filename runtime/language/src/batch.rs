//! Many requests, one JSON object a line, answered in their order by one object each.

use crate::chat::{self, Message};
use crate::engine::Engine;
use crate::generate::{Generator, Piece, Request, Summary};
use crate::options::{FLAGS, Options};
use crate::writing::{Job, Reader};
use crate::{Error, cli};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

/// Longest line that is read.
const MAX_LINE: u64 = 16 << 20;

/// Requests that are read ahead of the first one without an answer, for each text that is written at a time.
const AHEAD: usize = 16;

/// Lines of requests.
pub enum Lines {
    /// Of a file: all of them are there.
    File(BufReader<std::fs::File>),
    /// Of whoever may wait for an answer before the next one.
    Others(Receiver<Result<Vec<u8>, Error>>),
}

impl Lines {
    /// Those of a file, or of standard input where it is called `-`.
    pub fn at(path: &Path) -> Result<Lines, Error> {
        if path.to_str() == Some("-") {
            return Ok(Lines::as_they_come());
        }
        let file = std::fs::File::open(path).map_err(|e| {
            Error::new(
                format!("{}: {e}", path.display()),
                "check that the path exists, and that you may use it",
            )
        })?;
        Ok(Lines::File(BufReader::new(file)))
    }

    /// Those of standard input.
    fn as_they_come() -> Lines {
        let (send, receive) = sync_channel(1);
        // Ends with the input, or with the process.
        std::thread::spawn(move || {
            let mut input = std::io::stdin().lock();
            loop {
                let line = read_line(&mut input);
                let last = !matches!(&line, Ok(line) if !line.is_empty());
                if send.send(line).is_err() || last {
                    return;
                }
            }
        });
        Lines::Others(receive)
    }

    /// The next line, empty at the end; none if there is none yet and `wait` is false.
    pub fn next(&mut self, wait: bool) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Lines::File(file) => read_line(file).map(Some),
            Lines::Others(lines) if wait => lines.recv().unwrap_or_else(|_| Ok(vec![])).map(Some),
            Lines::Others(lines) => lines.try_recv().ok().transpose(),
        }
    }
}

fn read_line(input: &mut dyn BufRead) -> Result<Vec<u8>, Error> {
    let mut line = vec![];
    let read = input.take(MAX_LINE).read_until(b'\n', &mut line);
    read.map_err(|e| {
        Error::new(
            format!("the requests: {e}"),
            "check that the file exists, and that it is UTF-8",
        )
    })?;
    if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
        let message = format!("a request has more than {MAX_LINE} bytes");
        return Err(Error::new(message, "give shorter prompts"));
    }
    Ok(line)
}

/// Answers in the order of their requests.
#[derive(Default)]
struct Answers {
    /// From the first that is not written on.
    left: VecDeque<Option<Value>>,
    written: usize,
}

impl Answers {
    /// A place for one more; its number.
    fn expect(&mut self, answer: Option<Value>) -> usize {
        self.left.push_back(answer);
        self.written + self.left.len() - 1
    }

    /// The next one to write, if it is there.
    fn next(&mut self) -> Option<Value> {
        let answer = self.left.front_mut()?.take()?;
        self.left.pop_front();
        self.written += 1;
        Some(answer)
    }
}

/// Collects the answer to one request.
struct Collect {
    answers: Rc<RefCell<Answers>>,
    place: usize,
    text: String,
    logprobs: Option<Vec<Value>>,
}

impl Reader for Collect {
    fn read(&mut self, piece: Piece) -> ControlFlow<()> {
        self.text += piece.text;
        if let (Some(all), Some(token), Some(logprob)) =
            (&mut self.logprobs, piece.token, piece.logprob)
        {
            all.push(json!({ "token": token, "logprob": logprob }));
        }
        ControlFlow::Continue(())
    }

    fn end(self, result: Result<Summary, Error>) {
        let answer = match result {
            Err(error) => refused(&error),
            Ok(summary) => {
                let mut answer = json!({
                    "text": self.text, "finish": summary.finish.name(),
                    "prompt_tokens": summary.prompt_tokens, "tokens": summary.tokens,
                });
                if let Some(logprobs) = self.logprobs {
                    answer["logprobs"] = logprobs.into();
                }
                answer
            }
        };
        let mut answers = self.answers.borrow_mut();
        let at = self.place - answers.written;
        answers.left[at] = Some(answer);
    }
}

/// The answer to a request that has none.
pub fn refused(error: &Error) -> Value {
    json!({ "error": error.message, "help": error.help })
}

/// Answers every line; false if some could not be. What is not in a request is as `options` say.
pub fn run(
    generator: &Generator,
    options: &Options,
    mut lines: Lines,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let parallel = options.parallel.unwrap_or(1);
    let mut engine = Engine::new(generator, parallel)?;
    let answers = Rc::new(RefCell::new(Answers::default()));
    let (begin, mut tokens) = (Instant::now(), 0);
    let (mut all, mut end) = (true, None);
    while end.is_none() || !answers.borrow().left.is_empty() {
        while end.is_none()
            && engine.texts() < parallel
            && answers.borrow().left.len() < AHEAD * parallel
        {
            // Nobody may wait for an answer that is there while we wait for a request.
            let wait = answers.borrow().left.is_empty();
            let line = match lines.next(wait) {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    end = Some(Err(error));
                    break;
                }
            };
            if line.is_empty() {
                end = Some(Ok(()));
            } else if !line.trim_ascii().is_empty() {
                match asked(generator, options, &line) {
                    Ok((prompt, request)) => {
                        let reader = Collect {
                            place: answers.borrow_mut().expect(None),
                            answers: Rc::clone(&answers),
                            text: String::new(),
                            logprobs: request.logprobs.map(|_| vec![]),
                        };
                        engine.add(Job {
                            prompt,
                            request,
                            cache: None,
                            reader,
                        });
                    }
                    Err(error) => {
                        answers.borrow_mut().expect(Some(refused(&error)));
                    }
                }
            }
        }
        engine.turn();
        while let Some(answer) = { answers.borrow_mut().next() } {
            all &= answer.get("error").is_none();
            tokens += answer["tokens"].as_u64().unwrap_or(0);
            if writeln!(out, "{answer}")
                .and_then(|()| out.flush())
                .is_err()
            {
                // The reader has gone away.
                return Ok(all);
            }
        }
    }
    if options.stats {
        let (n, time) = (answers.borrow().written, begin.elapsed().as_secs_f64());
        eprintln!(
            "{n} requests, {tokens} tokens in {:.1} ms, {:.1} tokens/s; {parallel} at a time, {} threads",
            time * 1e3,
            tokens as f64 / time.max(1e-9),
            generator.model().threads()
        );
    }
    end.unwrap_or(Ok(())).map(|()| all)
}

/// An error about a request.
pub fn wrong(reason: impl Into<String>) -> Error {
    Error::new(
        reason,
        "a request is an object with `prompt` or `messages`, and options by their names with _",
    )
}

/// The prompt's tokens, and the request.
fn asked(
    generator: &Generator,
    options: &Options,
    line: &[u8],
) -> Result<(Vec<u32>, Request), Error> {
    let request = object(line)?;
    let options = chosen(options, &request)?;
    options.check(false)?;
    let tokens = match request.get("messages") {
        Some(messages) => {
            let text = chat::prompt(generator.files(), &read_messages(messages)?)?;
            generator.encode(&text, false)?
        }
        None => {
            let text = options.prompt.as_deref();
            let text = text.ok_or_else(|| wrong("the request has no `prompt`"))?;
            cli::tokens(generator, text, options.chat)?
        }
    };
    Ok((tokens, options.request(generator.settings())))
}

/// A request.
pub fn object(line: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(line).map_err(|e| wrong(format!("the request: {e}")))? {
        Value::Object(request) => Ok(request),
        _ => Err(wrong("the request is no object")),
    }
}

/// The options with what a request says.
pub fn chosen(options: &Options, request: &Map<String, Value>) -> Result<Options, Error> {
    let mut options = options.clone();
    if request.contains_key("stop") {
        options.stop.clear();
    }
    for (name, value) in request.iter().filter(|(name, _)| *name != "messages") {
        let flag = FLAGS
            .iter()
            .find(|f| f.name.replace('-', "_") == *name && !f.whole)
            .ok_or_else(|| wrong(format!("the request has an unknown option `{name}`")))?;
        let values = match value {
            Value::Array(all) => all.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let text = match (value, flag.value) {
                (Value::Null | Value::Bool(false), _) => continue,
                (Value::Bool(true), None) => String::new(),
                (Value::String(text), Some(_)) => text.clone(),
                (Value::Number(number), Some(_)) => number.to_string(),
                _ => return Err(wrong(format!("`{name}` must not be {value}"))),
            };
            options.set(flag.name, &text).map_err(wrong)?;
        }
    }
    Ok(options)
}

fn read_messages(messages: &Value) -> Result<Vec<Message>, Error> {
    let read = |m: &Value| {
        let text = |name: &str| m[name].as_str().map(str::to_owned);
        Some(Message {
            role: text("role")?,
            content: text("content")?,
        })
    };
    let all = messages
        .as_array()
        .and_then(|all| all.iter().map(read).collect());
    all.ok_or_else(|| wrong("`messages` must be a list of objects with `role` and `content`"))
}
