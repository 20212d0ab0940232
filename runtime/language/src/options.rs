//! What whoever runs a language model may choose: one table, from which the command line of an executable, its help and the
//! options of `lapidary run` are made.

use crate::Error;
use crate::evict::{Budget, Policy};
use crate::generate::Request;
use crate::sampling::Sampling;
use crate::settings::Settings;
use std::path::PathBuf;

/// An option, which sets something in `O`.
#[derive(Debug)]
pub struct Flag<O: 'static = Options> {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What its value is called in help; none if it takes no value.
    pub value: Option<&'static str>,
    /// What it does.
    pub help: &'static str,
    /// It is about the whole run, not about one text.
    pub whole: bool,
    /// Takes the value; an error says why it is none.
    pub set: fn(&mut O, &str) -> Result<(), String>,
}

/// Sets the option of this name; an error names it.
pub fn set<O>(flags: &[Flag<O>], options: &mut O, name: &str, value: &str) -> Result<(), String> {
    let flag = flags.iter().find(|f| f.name == name);
    let flag = flag.ok_or_else(|| format!("unknown option `{name}`"))?;
    (flag.set)(options, value).map_err(|why| format!("`{name}`: {why}"))
}

/// Options that there are for embeddings; all others are of text that is written.
pub const OF_EMBEDDINGS: [&str; 5] = ["prompt", "batch", "parallel", "dimensions", "stats"];

/// Most texts that can be written at the same time.
pub const MOST_PARALLEL: usize = 1024;

/// The choices; what is not chosen is as the model's files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The prompt; else standard input.
    pub prompt: Option<String>,
    /// A file of requests, `-` for standard input.
    pub batch: Option<PathBuf>,
    /// Texts of the batch that are written at the same time, else one; or embedded, else [`TOGETHER`](crate::embed::TOGETHER).
    pub parallel: Option<usize>,
    /// Of embeddings only so many numbers, the first ones, as a vector of length 1.
    pub dimensions: Option<usize>,
    /// A file that keeps what the model has of the prompt.
    pub prompt_cache: Option<PathBuf>,
    /// A model that proposes tokens.
    pub draft: Option<PathBuf>,
    /// How many tokens caches may hold; else all.
    pub kv_budget: Option<Budget>,
    /// Which tokens they keep.
    pub kv_evict: Option<Policy>,
    /// The prompt is a user's message of a conversation.
    pub chat: bool,
    /// Repeat the prompt before the text.
    pub echo: bool,
    /// Most tokens to write.
    pub max_tokens: Option<usize>,
    /// See [`Sampling`].
    pub temperature: Option<f64>,
    /// See [`Sampling`].
    pub top_k: Option<usize>,
    /// See [`Sampling`].
    pub top_p: Option<f64>,
    /// See [`Sampling`].
    pub min_p: Option<f64>,
    /// See [`Sampling`].
    pub repetition_penalty: Option<f64>,
    /// See [`Sampling`].
    pub seed: Option<u64>,
    /// Texts to stop at.
    pub stop: Vec<String>,
    /// Tell the tokens and their probabilities.
    pub logprobs: bool,
    /// Tell how fast it was.
    pub stats: bool,
}

/// The number that is written there; an error says what it is not.
pub fn number<T: std::str::FromStr>(
    text: &str,
    what: &str,
    fits: fn(&T) -> bool,
) -> Result<Option<T>, String> {
    let number = text.parse().ok().filter(fits);
    number
        .map(Some)
        .ok_or_else(|| format!("`{text}` is not {what}"))
}

fn share(text: &str) -> Result<Option<f64>, String> {
    number(text, "a number from 0 to 1", |n: &f64| {
        (0.0..=1.0).contains(n)
    })
}

/// Every option.
pub static FLAGS: &[Flag] = &[
    Flag {
        name: "prompt",
        value: Some("TEXT"),
        help: "what the text begins with, or what is embedded; without it, standard input",
        whole: false,
        set: |o, v| {
            o.prompt = Some(v.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "batch",
        value: Some("FILE"),
        help: "requests, one JSON object a line (`-`: standard input): `prompt` or `messages`, and options by their names with _",
        whole: true,
        set: |o, v| {
            o.batch = Some(v.into());
            Ok(())
        },
    },
    Flag {
        name: "parallel",
        value: Some("N"),
        help: "write so many texts of a batch at the same time (default: 1), or embed them (default: 8)",
        whole: true,
        set: |o, v| {
            let some = number(v, "a number of texts", |n| (1..=MOST_PARALLEL).contains(n))?;
            o.parallel = some;
            Ok(())
        },
    },
    Flag {
        name: "dimensions",
        value: Some("N"),
        help: "of embeddings only the first N numbers, scaled to length 1",
        whole: false,
        set: |o, v| {
            o.dimensions = number(v, "a number of dimensions", |n| *n > 0)?;
            Ok(())
        },
    },
    Flag {
        name: "prompt-cache",
        value: Some("FILE"),
        help: "keep what the model has of the prompt in this file; a prompt that begins the same way is not read again",
        whole: true,
        set: |o, v| {
            o.prompt_cache = Some(v.into());
            Ok(())
        },
    },
    Flag {
        name: "draft",
        value: Some("MODEL"),
        help: "let a smaller model of the same tokens propose what this one judges: another such executable",
        whole: true,
        set: |o, v| {
            o.draft = Some(v.into());
            Ok(())
        },
    },
    Flag {
        name: "kv-budget",
        value: Some("N"),
        help: "keep at most N tokens in the caches of keys and values, or a share of the context as 25%; needs a program that was \
               built with --kv-evictable",
        whole: true,
        set: |o, v| {
            o.kv_budget = Some(v.parse()?);
            Ok(())
        },
    },
    Flag {
        name: "kv-evict",
        value: Some("POLICY"),
        help: "of --kv-budget: which tokens are kept. ems: with most attention for each query or lately, others merged into like \
               ones (default); h2o: with most attention; recent: the newest",
        whole: true,
        set: |o, v| {
            o.kv_evict = Some(v.parse()?);
            Ok(())
        },
    },
    Flag {
        name: "chat",
        value: None,
        help: "the prompt is a message: put it into the model's template of conversations",
        whole: false,
        set: |o, _| {
            o.chat = true;
            Ok(())
        },
    },
    Flag {
        name: "echo",
        value: None,
        help: "repeat the prompt before the text",
        whole: false,
        set: |o, _| {
            o.echo = true;
            Ok(())
        },
    },
    Flag {
        name: "max-tokens",
        value: Some("N"),
        help: "most tokens to write (default: as many as the context holds)",
        whole: false,
        set: |o, v| {
            o.max_tokens = number(v, "a number of tokens", |_| true)?;
            Ok(())
        },
    },
    Flag {
        name: "temperature",
        value: Some("T"),
        help: "divide scores by it; 0 takes the most probable token (default: what the model's files say, else 0; \
               1 with one of the next three)",
        whole: false,
        set: |o, v| {
            o.temperature = number(v, "a temperature", |n: &f64| n.is_finite() && *n >= 0.0)?;
            Ok(())
        },
    },
    Flag {
        name: "top-k",
        value: Some("K"),
        help: "choose among the K most probable tokens; 0: all",
        whole: false,
        set: |o, v| {
            o.top_k = number(v, "a number of tokens", |_| true)?;
            Ok(())
        },
    },
    Flag {
        name: "top-p",
        value: Some("P"),
        help: "choose among the most probable tokens whose probabilities reach P",
        whole: false,
        set: |o, v| {
            o.top_p = share(v)?;
            Ok(())
        },
    },
    Flag {
        name: "min-p",
        value: Some("P"),
        help: "choose among tokens of at least P times the highest probability",
        whole: false,
        set: |o, v| {
            o.min_p = share(v)?;
            Ok(())
        },
    },
    Flag {
        name: "repetition-penalty",
        value: Some("R"),
        help: "lower the scores of tokens that were there before; 1: not at all",
        whole: false,
        set: |o, v| {
            o.repetition_penalty =
                number(v, "a positive number", |n: &f64| n.is_finite() && *n > 0.0)?;
            Ok(())
        },
    },
    Flag {
        name: "seed",
        value: Some("N"),
        help: "start of the random numbers: the same seed gives the same text (default: 0)",
        whole: false,
        set: |o, v| {
            o.seed = number(v, "a seed", |_| true)?;
            Ok(())
        },
    },
    Flag {
        name: "stop",
        value: Some("TEXT"),
        help: "end before this text (repeatable)",
        whole: false,
        set: |o, v| {
            o.stop.push(v.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "logprobs",
        value: None,
        help: "print one JSON object a token, with the logarithm of its probability, instead of the text",
        whole: false,
        set: |o, _| {
            o.logprobs = true;
            Ok(())
        },
    },
    Flag {
        name: "stats",
        value: None,
        help: "print tokens per second to standard error",
        whole: true,
        set: |o, _| {
            o.stats = true;
            Ok(())
        },
    },
];

impl Options {
    /// Sets the option of this name; an error names it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        set(FLAGS, self, name, value)
    }

    /// An error if some of them are of what the model does not do: it gives embeddings, or writes text.
    pub fn check(&self, embeds: bool) -> Result<(), Error> {
        if !embeds && self.dimensions.is_some() {
            let message = "`dimensions` are of embeddings, and the model writes text";
            return Err(Error::new(message, "leave them out"));
        }
        if embeds && !self.fit_embeddings() {
            return Err(Error::new(
                "the model gives embeddings, and the options are of text that is written",
                format!("for embeddings there are --{}", OF_EMBEDDINGS.join(", --")),
            ));
        }
        Ok(())
    }

    /// Whether only [`OF_EMBEDDINGS`] are chosen.
    fn fit_embeddings(&self) -> bool {
        let own = self.clone();
        let same = Options {
            prompt: own.prompt,
            batch: own.batch,
            parallel: own.parallel,
            dimensions: own.dimensions,
            stats: own.stats,
            ..Options::default()
        };
        *self == same
    }

    /// The request, with what the model's files say where nothing is chosen.
    pub fn request(&self, settings: &Settings) -> Request {
        let files = Sampling::of(settings);
        let narrowed = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let otherwise = match narrowed && files.temperature == 0.0 {
            true => 1.0,
            false => files.temperature,
        };
        Request {
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(otherwise),
                top_k: self.top_k.unwrap_or(files.top_k),
                top_p: self.top_p.unwrap_or(files.top_p),
                min_p: self.min_p.unwrap_or(files.min_p),
                repetition_penalty: self.repetition_penalty.unwrap_or(files.repetition_penalty),
                seed: self.seed.unwrap_or(files.seed),
            },
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            logprobs: self.logprobs.then_some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood_or_refused() {
        let mut options = Options::default();
        for (name, value) in [
            ("top-k", "40"),
            ("stop", "a"),
            ("stop", "b"),
            ("chat", ""),
            ("seed", "3"),
        ] {
            options.set(name, value).expect("right");
        }
        assert_eq!(
            (options.top_k, options.chat, options.seed),
            (Some(40), true, Some(3))
        );
        assert_eq!(options.stop, ["a", "b"]);
        let request = options.request(&Settings::default());
        assert_eq!(request.sampling.temperature, 1.0);
        assert!(options.check(false).is_ok() && options.check(true).is_err());
        let mut options = Options::default();
        for name in OF_EMBEDDINGS {
            options.set(name, "1").expect("right");
        }
        assert!(options.check(true).is_ok() && options.check(false).is_err());
        for (name, value) in [
            ("dimensions", "0"),
            ("top-p", "2"),
            ("temperature", "-1"),
            ("temperature", "nan"),
            ("seed", "x"),
            ("no", ""),
        ] {
            let why = options.set(name, value).expect_err("wrong");
            assert!(why.contains(name), "{why}");
        }
    }
}
