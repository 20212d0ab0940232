//! A language model's program with what belongs to it, by what it does.

use crate::embed::{self, Embedder, Limits};
use crate::options::Options;
use crate::session::vocabulary_size;
use crate::vocabulary::Vocabulary;
use crate::{Error, Generator};
use lapidary_abi::program::{File, Port};
use lapidary_runtime::image::Image;
use lapidary_runtime::{Model, ModelOptions};

/// A program that is ready to run.
pub enum Program {
    /// It writes text.
    Writes(Generator),
    /// It gives embeddings of texts.
    Embeds(Embedder),
}

impl Program {
    /// From a model that was compiled step by step or for embeddings, and the files that it carries.
    pub fn new(model: Model, files: Vec<File>) -> Result<Program, Error> {
        let size = known_tokens(model.inputs(), model.outputs(), &files)?;
        let vocabulary = Vocabulary::of(&files, size)?;
        Program::of(model, vocabulary, files)
    }

    /// From an image of such a model. Its tokenizer is read while it is loaded.
    pub fn load(mut image: Image, options: ModelOptions) -> Result<Program, Error> {
        let files = std::mem::take(&mut image.program.files);
        let size = known_tokens(&image.program.inputs, &image.program.outputs, &files)?;
        let (model, vocabulary) = std::thread::scope(|scope| {
            let vocabulary = scope.spawn(|| Vocabulary::of(&files, size));
            (image.load(options), vocabulary.join())
        });
        let failed = |_| Err(Error::new("the tokenizer cannot be read", "report this"));
        Program::of(model?, vocabulary.unwrap_or_else(failed)?, files)
    }

    fn of(model: Model, vocabulary: Vocabulary, files: Vec<File>) -> Result<Program, Error> {
        if gives_embeddings(model.inputs(), model.outputs()) {
            return Embedder::new(model, vocabulary, &files).map(Program::Embeds);
        }
        Generator::new(model, vocabulary, files).map(Program::Writes)
    }

    /// The same with caches within the budget that the options ask for, if they do.
    ///
    /// # Errors
    /// The budget cannot be used, or what else is asked for needs all tokens.
    pub fn within_budget(self, options: &Options) -> Result<Program, Error> {
        match self {
            Program::Writes(generator) => generator.within_budget(options).map(Program::Writes),
            Program::Embeds(embedder) => Ok(Program::Embeds(embedder)),
        }
    }

    /// An error if some options are of what it does not do.
    pub fn check(&self, options: &Options) -> Result<(), Error> {
        options.check(matches!(self, Program::Embeds(_)))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        match self {
            Program::Writes(generator) => generator.model(),
            Program::Embeds(embedder) => embedder.model(),
        }
    }
}

/// Whether a program of these inputs and outputs gives embeddings.
pub fn gives_embeddings(inputs: &[Port], outputs: &[Port]) -> bool {
    embed::width(inputs, outputs).is_some()
}

/// How many tokens a model knows.
fn known_tokens(inputs: &[Port], outputs: &[Port], files: &[File]) -> Result<usize, Error> {
    match gives_embeddings(inputs, outputs) {
        true => Limits::read(files).map(|limits| limits.vocabulary),
        false => vocabulary_size(inputs, outputs),
    }
}
