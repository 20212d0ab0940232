//! The command line of a language model's executable.
//!
//! Exit status: 0 done; 1 the text cannot be written or embedded; 2 wrong usage.

use crate::chat::{self, Message};
use crate::generate::{Generator, Summary};
use crate::options::{self, FLAGS, Flag, OF_EMBEDDINGS, Options};
use crate::program::{Program, gives_embeddings};
use crate::{Draft, Error, batch, embed_command};
use lapidary_abi::experts::Order;
use lapidary_abi::program::File;
use lapidary_runtime::exec::{Memory, parse_expert_order};
use lapidary_runtime::image::Image;
use lapidary_runtime::pool::pin_this_thread;
use lapidary_runtime::{Model, ModelOptions};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

/// Longest prompt that is read from standard input.
const MAX_PROMPT: u64 = 16 << 20;

/// What an executable can do besides answering its own command line, in a crate of its own: options that say so.
pub trait Extension: Default + 'static {
    /// Its options.
    const FLAGS: &'static [Flag<Self>];

    /// For whom it does it, for help: what follows `writes text`.
    const ABOUT: &'static str;

    /// Whether the options ask for it.
    fn is_asked(&self) -> bool;

    /// Does it.
    fn run(self, loaded: Loaded, options: &Options) -> Result<(), Error>;
}

/// A model that is ready to run, with what belongs to it.
pub struct Loaded {
    /// The model, with its tokenizer.
    pub program: Program,
    /// What it is called.
    pub name: String,
    /// Whether the thread that runs it is to stay on one core.
    pub pin: bool,
}

/// No extension.
#[derive(Debug, Default)]
pub struct Nothing;

impl Extension for Nothing {
    const FLAGS: &'static [Flag<Nothing>] = &[];
    const ABOUT: &'static str = "";

    fn is_asked(&self) -> bool {
        false
    }

    fn run(self, _: Loaded, _: &Options) -> Result<(), Error> {
        Ok(())
    }
}

/// What only executables take.
#[derive(Debug, Default)]
struct Own {
    threads: usize,
    huge_pages: bool,
    memory: Option<Memory>,
    /// As [`ModelOptions::expert_order`], if it is given.
    expert_order: Option<Option<Order>>,
    no_pin: bool,
    help: bool,
    version: bool,
}

/// Runs the model at the end of this process' own executable as the command line says.
pub fn main<E: Extension>() -> ExitCode {
    let args: Result<Vec<String>, _> = std::env::args_os()
        .skip(1)
        .map(|a| a.into_string())
        .collect();
    let parsed = match args {
        Ok(args) => parse::<E>(args),
        Err(arg) => Err(format!("{arg:?} is no UTF-8")),
    };
    let (own, options, extension) = match parsed {
        Ok(parsed) => parsed,
        Err(message) => {
            eprintln!("error: {message}\ntry --help");
            return ExitCode::from(2);
        }
    };
    match act(&own, &options, extension) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}\nhelp: {}", error.help);
            ExitCode::from(1)
        }
    }
}

fn parse<E: Extension>(args: Vec<String>) -> Result<(Own, Options, E), String> {
    let (mut own, mut options) = (Own::default(), Options::default());
    let mut extension = E::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, given) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let bare = name.strip_prefix("--").unwrap_or("");
        let flag = FLAGS.iter().find(|f| f.name == bare).map(|f| f.value);
        let more = E::FLAGS.iter().find(|f| f.name == bare).map(|f| f.value);
        let takes = ["threads", "memory", "expert-order"].contains(&bare)
            || flag.or(more).flatten().is_some();
        let value = match (takes, given) {
            (true, Some(value)) => value,
            (true, None) => args
                .next()
                .ok_or_else(|| format!("`{name}` needs a value"))?,
            (false, Some(_)) => return Err(format!("`{name}` takes no value")),
            (false, None) => String::new(),
        };
        match name {
            "--threads" | "-j" => {
                let n = value.parse().ok().filter(|n| (1..=4096).contains(n));
                own.threads = n.ok_or_else(|| format!("`{value}` is not a number of threads"))?;
            }
            "--memory" => own.memory = Some(Memory::parse(&value)?),
            "--expert-order" => {
                let order = parse_expert_order(&value);
                own.expert_order =
                    Some(order.ok_or_else(|| format!("`{value}` is none of hebf, fifo, none"))?);
            }
            "--huge-pages" => own.huge_pages = true,
            "--no-pin" => own.no_pin = true,
            "--help" | "-h" => own.help = true,
            "--version" | "-V" => own.version = true,
            _ if flag.is_some() => options.set(bare, &value)?,
            _ if more.is_some() => options::set(E::FLAGS, &mut extension, bare, &value)?,
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    Ok((own, options, extension))
}

fn act<E: Extension>(own: &Own, options: &Options, extension: E) -> Result<bool, Error> {
    let image = Image::of_this_executable()?;
    let name = image.program.name.clone();
    if own.help {
        let embeds = gives_embeddings(&image.program.inputs, &image.program.outputs);
        print(&help::<E>(&name, embeds));
        return Ok(true);
    }
    if own.version {
        print(&format!(
            "{name} (lapidary runtime {})\n",
            env!("CARGO_PKG_VERSION")
        ));
        return Ok(true);
    }
    let default = ModelOptions::default();
    let loading = ModelOptions {
        threads: own.threads,
        pin: !own.no_pin,
        huge_pages: own.huge_pages,
        memory: own.memory.clone(),
        expert_order: own.expert_order.unwrap_or(default.expert_order),
    };
    let program = Program::load(image, loading)?.within_budget(options)?;
    if extension.is_asked() {
        let loaded = Loaded {
            program,
            name: own_name().unwrap_or(name),
            pin: !own.no_pin,
        };
        return extension.run(loaded, options).map(|()| true);
    }
    if !own.no_pin {
        pin_this_thread(program.model().threads());
    }
    run(&program, None, options)
}

/// The name of this executable's file.
fn own_name() -> Option<String> {
    let path = std::env::current_exe().ok()?;
    Some(path.file_name()?.to_str()?.to_owned())
}

/// Prints; a reader that has gone away is no error of ours.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn help<E: Extension>(name: &str, embeds: bool) -> String {
    let exe = std::env::args().next().unwrap_or_else(|| "model".into());
    let does = match embeds {
        true => "gives embeddings of texts",
        false => "writes text",
    };
    let mut text = format!(
        "{name}, compiled by lapidary: {does}{}\n\nusage: {exe} --prompt TEXT [options]\n\n",
        E::ABOUT
    );
    let own = [
        ("threads N", "threads to use (default: one for each core)"),
        ("no-pin", "let threads move between cores"),
        (
            "memory SIZE",
            "have at most so much in memory, such as 2GiB, or what a file says at any time, as @FILE: weights in parts are used as far as they fit, others are read again as they are used",
        ),
        (
            "expert-order ORDER",
            "how experts that tokens chose are read from the file, while others are computed: hebf (default; those of most tokens first), fifo (by number) or none (when they are used)",
        ),
        (
            "huge-pages",
            "ask for huge pages for working memory and weights",
        ),
        ("help, --version", ""),
    ];
    let named = |name: &str, value: Option<&str>, help: &'static str| {
        let name = value.map_or(name.to_owned(), |v| format!("{name} {v}"));
        (name, help)
    };
    let fits = |f: &&Flag| !embeds || OF_EMBEDDINGS.contains(&f.name);
    let flags = FLAGS.iter().filter(fits);
    let flags = flags.map(|f| named(f.name, f.value, f.help));
    let more = E::FLAGS.iter().map(|f| named(f.name, f.value, f.help));
    let flags = flags.chain(more);
    let own = own.iter().map(|&(name, help)| (name.to_owned(), help));
    for (name, help) in flags.chain(own) {
        text += format!("  --{name:<22} {help}").trim_end();
        text += "\n";
    }
    text + "\nexit status: 0 done, 1 failed, 2 wrong usage\n"
}

/// The draft that an executable holds, which another one of this language is.
fn draft_of(path: &Path, model: &Model) -> Result<(Model, Vec<File>), Error> {
    let mut image = Image::open(path)?;
    let files = std::mem::take(&mut image.program.files);
    let options = ModelOptions {
        threads: model.threads(),
        ..ModelOptions::default()
    };
    Ok((image.load(options)?, files))
}

/// Does with a model what the options say; false if some requests could not be answered. A draft is one that is at hand, or the
/// executable that the options name.
pub fn run(
    program: &Program,
    draft: Option<(Model, Vec<File>)>,
    options: &Options,
) -> Result<bool, Error> {
    program.check(options)?;
    let generator = match program {
        Program::Writes(generator) => generator,
        Program::Embeds(embedder) => return embed_command::run(embedder, options),
    };
    let draft = match (draft, &options.draft) {
        (None, Some(path)) => Some(draft_of(path, generator.model())?),
        (draft, _) => draft,
    };
    let draft = draft.map(|(model, files)| Draft::new(model, &files, generator));
    let draft = draft.transpose()?;
    if let Some(path) = &options.batch {
        if options.prompt_cache.is_some() || draft.is_some() {
            return Err(Error::new(
                "`--prompt-cache` and `--draft` are for one text, not for a batch",
                "give one of the two",
            ));
        }
        let lines = batch::Lines::at(path)?;
        return batch::run(generator, options, lines, &mut std::io::stdout().lock());
    }
    let prompt = match &options.prompt {
        Some(prompt) => prompt.clone(),
        None => read_prompt()?,
    };
    let tokens = tokens(generator, &prompt, options.chat)?;
    if options.echo && !options.logprobs {
        print(&prompt);
    }
    let request = options.request(generator.settings());
    let mut out = std::io::stdout().lock();
    let help = (options.prompt_cache.as_deref(), draft.as_ref());
    let summary = generator.write(tokens, request, help, &mut |piece| {
        let text = match options.logprobs {
            false => piece.text.to_owned(),
            true => format!(
                "{}\n",
                serde_json::json!({ "token": piece.token, "text": piece.text, "logprob": piece.logprob })
            ),
        };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            // The reader has gone away.
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    if !options.logprobs {
        let _ = writeln!(out);
    }
    if options.stats {
        eprintln!("{}", stats(&summary, generator.model()));
    }
    Ok(true)
}

/// The prompt on standard input.
pub(crate) fn read_prompt() -> Result<String, Error> {
    let wrong = |reason: String| {
        Error::new(
            format!("the prompt on standard input: {reason}"),
            "give a text of UTF-8, or --prompt TEXT",
        )
    };
    let mut bytes = vec![];
    let mut input = std::io::stdin().lock().take(MAX_PROMPT + 1);
    input
        .read_to_end(&mut bytes)
        .map_err(|e| wrong(e.to_string()))?;
    if bytes.len() as u64 > MAX_PROMPT {
        return Err(wrong(format!("has more than {MAX_PROMPT} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| wrong(e.utf8_error().to_string()))
}

/// The tokens of a prompt, or of a conversation that begins with it.
pub(crate) fn tokens(generator: &Generator, prompt: &str, chat: bool) -> Result<Vec<u32>, Error> {
    if !chat {
        return generator.encode(prompt, true);
    }
    let message = Message {
        role: "user".to_owned(),
        content: prompt.to_owned(),
    };
    // The template has the special tokens.
    generator.encode(&chat::prompt(generator.files(), &[message])?, false)
}

fn stats(s: &Summary, model: &Model) -> String {
    let threads = model.threads();
    let rate =
        |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    // The first token is chosen by the prompt's scores.
    let steps = s.tokens.saturating_sub(1);
    let mut text = format!(
        "prompt: {} tokens in {:.1} ms, {:.1} tokens/s; text: {} tokens in {:.1} ms, {:.1} tokens/s; {threads} threads, caches \
         of {} bytes",
        s.prompt_tokens,
        s.prompt_time.as_secs_f64() * 1e3,
        rate(s.prompt_tokens, s.prompt_time),
        s.tokens,
        s.time.as_secs_f64() * 1e3,
        rate(steps, s.time),
        s.cache_bytes,
    );
    if let Some([proposed, right]) = s.drafted {
        text += &format!("; {right} of {proposed} tokens of the draft accepted");
    }
    if let Some([_, used, all]) = model.weight_bytes() {
        text += &format!("; {used} of {all} bytes of weights used");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood_or_refused() {
        let parse =
            |line: &str| parse::<Nothing>(line.split_whitespace().map(str::to_owned).collect());
        let (own, options, _) =
            parse("--prompt a=b --top-k=3 --threads 2 --stats --no-pin").expect("right");
        assert_eq!((own.threads, own.no_pin), (2, true));
        assert_eq!(
            (options.prompt.as_deref(), options.top_k, options.stats),
            (Some("a=b"), Some(3), true)
        );
        for wrong in [
            "--prompt",
            "--threads 0",
            "x",
            "-x",
            "--stats=1",
            "--top-p 2",
            "--",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for flag in FLAGS {
            let name = format!("--{} ", flag.name);
            assert!(help::<Nothing>("m", false).contains(&name));
            let own = OF_EMBEDDINGS.contains(&flag.name);
            assert_eq!(help::<Nothing>("m", true).contains(&name), own);
        }
    }
}
