//! A language model behind HTTP, in the form of the OpenAI interface.
//!
//! One thread runs the model ([`worker`]): it writes the texts of all requests at the same time, a token of each in every turn
//! ([`texts`]), or of an encoder embeds them ([`embeddings`]). Another one talks to clients ([`http`]): it reads what they ask for
//! ([`ask`]), gives it to the first, and writes the answers ([`answer`]) whole or piece by piece ([`stream`]). What a client can make the server hold is bounded: connections, the bytes
//! and the time of a request, the texts that wait, the time in which it must take what is written to it.
//!
//! It is a crate and a stub of its own, so that executables that serve nobody carry none of it.

mod answer;
mod ask;
mod base64;
mod embeddings;
mod error;
mod fields;
mod http;
mod patience;
mod prompts;
mod served;
mod stream;
mod texts;
mod worker;

use lapidary_language::Error;
use lapidary_language::cli::{Extension, Loaded};
use lapidary_language::options::{Flag, Options, number};
use std::net::SocketAddr;
use std::time::Duration;

/// How a model is served.
#[derive(Clone, Debug, PartialEq)]
pub struct Serving {
    /// Where clients connect; nobody is served without it.
    pub listen: Option<SocketAddr>,
    /// Texts that may wait until others are done; else as many as suit the model.
    pub queue: Option<usize>,
    /// How long a client may take to send a request, to take an answer, and to do nothing.
    pub timeout: Duration,
}

impl Default for Serving {
    fn default() -> Serving {
        Serving {
            listen: None,
            queue: None,
            timeout: Duration::from_secs(30),
        }
    }
}

/// The options of a server, besides those of the texts.
pub static FLAGS: &[Flag<Serving>] = &[
    Flag {
        name: "listen",
        value: Some("ADDR"),
        help: "answer requests in the form of the OpenAI interface at this address, like 127.0.0.1:8080 (port 0: any that is free)",
        whole: true,
        set: |o, v| {
            let address = v
                .parse()
                .map_err(|_| format!("`{v}` is no address like 127.0.0.1:8080"))?;
            o.listen = Some(address);
            Ok(())
        },
    },
    Flag {
        name: "queue",
        value: Some("N"),
        help: "texts that may wait for their turn (default: 256, of embeddings 4096); more are refused",
        whole: true,
        set: |o, v| {
            o.queue = number(v, "a number of texts up to 65536", |n| *n <= 65536)?;
            Ok(())
        },
    },
    Flag {
        name: "timeout",
        value: Some("SECONDS"),
        help: "time for a client to send a request, or to take what is written to it (default: 30)",
        whole: true,
        set: |o, v| {
            let some = number(v, "a number of seconds up to 86400", |n| {
                (1..=86400).contains(n)
            })?;
            o.timeout = Duration::from_secs(some.unwrap_or_default());
            Ok(())
        },
    },
];

impl Extension for Serving {
    const FLAGS: &'static [Flag<Serving>] = FLAGS;
    const ABOUT: &'static str = ", for itself or (--listen) for clients";

    fn is_asked(&self) -> bool {
        self.listen.is_some()
    }

    fn run(self, loaded: Loaded, options: &Options) -> Result<(), Error> {
        serve(loaded, options, &self)
    }
}

/// Answers requests until the process is told to end. What a request does not say is as `options` have it.
pub fn serve(loaded: Loaded, options: &Options, serving: &Serving) -> Result<(), Error> {
    let Some(address) = serving.listen else {
        return Err(failed("the server has no address", "give --listen ADDR"));
    };
    let served = served::Served::start(loaded, options, serving)?;
    http::serve(address, serving, served)
}

fn failed(message: impl Into<String>, help: &str) -> Error {
    Error {
        message: message.into(),
        help: help.to_owned(),
    }
}
