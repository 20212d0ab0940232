//! Many requests, one JSON object a line, answered in their order by one object each.

use crate::chat::{self, Message};
use crate::generate::{Generator, Request};
use crate::options::{FLAGS, Options};
use crate::{Error, cli};
use serde_json::{Map, Value, json};
use std::io::{BufRead, Write};
use std::ops::ControlFlow;

/// Longest line that is read.
const MAX_LINE: u64 = 16 << 20;

/// Answers every line; false if some could not be. What is not in a request is as `options` say.
pub fn run(
    generator: &Generator,
    options: &Options,
    input: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let mut all = true;
    let failed = |e: std::io::Error| {
        Error::new(
            format!("the requests: {e}"),
            "check that the file exists, and that it is UTF-8",
        )
    };
    loop {
        let mut line = vec![];
        let read = std::io::Read::take(&mut *input, MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(failed)? == 0 {
            return Ok(all);
        }
        if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
            let message = format!("a request has more than {MAX_LINE} bytes");
            return Err(Error::new(message, "give shorter prompts"));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let answer = answer(generator, options, &line).unwrap_or_else(|e| {
            all = false;
            json!({ "error": e.message, "help": e.help })
        });
        if writeln!(out, "{answer}")
            .and_then(|()| out.flush())
            .is_err()
        {
            // The reader has gone away.
            return Ok(all);
        }
    }
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(
        reason,
        "a request is an object with `prompt` or `messages`, and options by their names with _",
    )
}

fn answer(generator: &Generator, options: &Options, line: &[u8]) -> Result<Value, Error> {
    let request = serde_json::from_slice(line).map_err(|e| wrong(format!("the request: {e}")))?;
    let Value::Object(request) = request else {
        return Err(wrong("the request is no object"));
    };
    let options = chosen(options, &request)?;
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
    let asked: Request = options.request(generator.settings());
    let (mut text, mut logprobs) = (String::new(), vec![]);
    let summary = generator.write(&tokens, &asked, &mut |piece| {
        text += piece.text;
        if let (Some(token), Some(logprob)) = (piece.token, piece.logprob) {
            logprobs.push(json!({ "token": token, "logprob": logprob }));
        }
        ControlFlow::Continue(())
    })?;
    let mut answer = json!({
        "text": text, "finish": summary.finish.name(),
        "prompt_tokens": summary.prompt_tokens, "tokens": summary.tokens,
    });
    if asked.logprobs {
        answer["logprobs"] = logprobs.into();
    }
    Ok(answer)
}

/// The options with what a request says.
fn chosen(options: &Options, request: &Map<String, Value>) -> Result<Options, Error> {
    let mut options = options.clone();
    if request.contains_key("stop") {
        options.stop.clear();
    }
    for (name, value) in request.iter().filter(|(name, _)| *name != "messages") {
        let flag = FLAGS
            .iter()
            .find(|f| f.name.replace('-', "_") == *name && f.name != "batch")
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
