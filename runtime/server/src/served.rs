//! The model that is served, by what it does.

use crate::Serving;
use crate::ask::Asked;
use crate::embeddings::Embeddings;
use crate::error::Refused;
use crate::fields::Fields;
use crate::texts::Writer;
use crate::worker::Queue;
use lapidary_language::cli::Loaded;
use lapidary_language::options::{MOST_PARALLEL, Options};
use lapidary_language::{Error, Program, embed};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Texts that are written at the same time, where the user does not say it.
const PARALLEL: usize = 8;

/// Texts that may wait to be written, where the user does not say it.
pub const WAITING: usize = 256;

/// Texts that may wait to be embedded, where the user does not say it: two of the longest requests.
pub const WAITING_EMBEDDINGS: usize = 4096;

/// What clients call the model.
#[derive(Clone, Debug)]
pub struct Name {
    /// Its name.
    pub id: String,
    /// When it was loaded, in seconds of Unix time.
    created: u64,
}

impl Name {
    fn now(id: String) -> Name {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Name {
            id,
            created: now.map_or(0, |t| t.as_secs()),
        }
    }

    /// An error unless a request is for this model.
    pub fn check(&self, fields: &Fields) -> Result<(), Refused> {
        match fields.text("model")? {
            Some(name) if name != self.id => Err(Refused::model(name, &self.id)),
            _ => Ok(()),
        }
    }

    /// As clients list it.
    pub fn described(&self) -> Value {
        json!({"id": self.id, "object": "model", "created": self.created, "owned_by": "lapidary"})
    }
}

/// The model that is served.
pub enum Served {
    /// It writes text.
    Text(Arc<Asked>),
    /// It gives embeddings.
    Embeddings(Arc<Embeddings>),
}

impl Served {
    /// Starts the thread that runs it.
    pub fn start(loaded: Loaded, options: &Options, serving: &Serving) -> Result<Served, Error> {
        loaded.program.check(options)?;
        let name = Name::now(loaded.name);
        let parallel = |usual| options.parallel.unwrap_or(usual).min(MOST_PARALLEL);
        let queue = |usual| serving.queue.unwrap_or(usual);
        Ok(match loaded.program {
            Program::Writes(generator) => {
                let writer =
                    Writer::start(generator, parallel(PARALLEL), queue(WAITING), loaded.pin)?;
                Served::Text(Arc::new(Asked::new(name, options, writer)))
            }
            Program::Embeds(embedder) => {
                let sizes = [parallel(embed::TOGETHER), queue(WAITING_EMBEDDINGS)];
                let embeddings =
                    Embeddings::start(name, embedder, sizes, options.dimensions, loaded.pin)?;
                Served::Embeddings(Arc::new(embeddings))
            }
        })
    }

    /// What clients call it.
    pub fn name(&self) -> &Name {
        match self {
            Served::Text(asked) => &asked.name,
            Served::Embeddings(embeddings) => embeddings.name(),
        }
    }

    /// The thread that runs it.
    pub fn queue(&self) -> &dyn Queue {
        match self {
            Served::Text(asked) => asked.writer.worker(),
            Served::Embeddings(embeddings) => embeddings.worker(),
        }
    }

    /// The model, if it writes text.
    pub fn text(&self) -> Result<&Arc<Asked>, Refused> {
        match self {
            Served::Text(asked) => Ok(asked),
            Served::Embeddings(embeddings) => Err(self.cannot(
                embeddings.embedder().model().name(),
                "gives embeddings (`/v1/embeddings`) and writes no text",
            )),
        }
    }

    /// The model, if it gives embeddings.
    pub fn embeddings(&self) -> Result<&Arc<Embeddings>, Refused> {
        match self {
            Served::Embeddings(embeddings) => Ok(embeddings),
            Served::Text(asked) => Err(self.cannot(
                asked.generator().model().name(),
                "writes text and gives no embeddings",
            )),
        }
    }

    fn cannot(&self, kind: &str, does: &str) -> Refused {
        Refused::wrong(format!(
            "`{}` is a model of the kind `{kind}`, which {does}",
            self.name().id
        ))
    }
}
