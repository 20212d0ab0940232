//! Hugging Face checkpoints into the graph IR: a folder with `config.json` and weights in safetensors.
//!
//! [`config`] reads the settings in the forms of many years, [`safetensors`] and [`weights`] find the tensors, which
//! stay views of their mapped files; packed weights become terms ([`crate::formats`]). What a network is made of is in [`crate::arch`], chosen by `model_type`.

pub mod config;
pub mod safetensors;
mod sentences;
pub mod weights;

use crate::arch::{self, Form, Net, Purpose};
use crate::error::{ImportError, Problem, Problems};
use crate::{bind_dims, files::Files, formats};
use config::Config;
use lapidary_ir::Module;
pub use sentences::Sentences;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weights::Weights;

/// What to do where nothing better is known.
const REMEDY: &str = "is the checkpoint complete, and in the form that transformers saves?";

/// Imports the checkpoint in `folder`, and fixes these dimensions (`batch`, `seq`).
///
/// Inputs are `input_ids` `i64[batch,seq]` and, of encoders, `attention_mask` and `token_type_ids` of the same type. The
/// output is `logits` `f32[batch,seq,vocabulary]`, of encoders `last_hidden_state` `f32[batch,seq,width]`.
///
/// [`Form::Stepwise`] networks also take `past`, `i64[batch]`, and `wanted`, `i64[batch,wanted]`, and the caches of every layer,
/// `f32[batch,capacity,width]`, which they give back with the keys and values of the given tokens; their `logits` are
/// `f32[batch,wanted,vocabulary]`, of those of the given tokens. [`Form::Evictable`] ones take `position`, `i64[batch]`, too. Those of
/// [`Form::Embedding`] give `embedding`, `f32[batch,width]`.
pub fn import_folder(
    folder: &Path,
    dims: &BTreeMap<String, i64>,
    form: Form,
) -> Result<Module, ImportError> {
    let mut problems = Problems::new(REMEDY);
    let read = read(folder, dims, form, &mut problems);
    problems.or(read.map(|(module, _)| module), folder)
}

/// An encoder as it gives embeddings of texts.
#[derive(Debug)]
pub struct Encoder {
    /// The network, [`Form::Embedding`].
    pub module: Module,
    /// Tokens that it knows.
    pub vocabulary: usize,
    /// Most tokens of a text, those that the tokenizer adds included.
    pub longest: usize,
    /// Whether texts become lower case before they are cut into tokens.
    pub lowercase: bool,
}

/// Imports the encoder in `folder` for embeddings, as the files say that sentence-transformers keeps there ([`Sentences`]).
///
/// # Errors
/// The checkpoint cannot be read or is a decoder's, or the files ask for what is not supported.
pub fn import_encoder(folder: &Path) -> Result<Encoder, ImportError> {
    let mut problems = Problems::new(REMEDY);
    let encoder = read_encoder(folder, &mut problems);
    problems.or(encoder, folder)
}

fn read_encoder(folder: &Path, problems: &mut Problems) -> Option<Encoder> {
    let sentences = Sentences::read(folder, problems)?;
    let form = Form::Embedding(sentences.pooling);
    let vocabulary = Config::read(folder).and_then(|config| config.size("vocab_size"));
    let (module, positions) = read(folder, &BTreeMap::new(), form, problems)?;
    Some(Encoder {
        module,
        vocabulary: noted(vocabulary, problems)?,
        longest: sentences.longest.unwrap_or(usize::MAX).min(positions?),
        lowercase: sentences.lowercase,
    })
}

/// The network, and how many tokens a sequence has at most if it is an encoder.
fn read(
    folder: &Path,
    dims: &BTreeMap<String, i64>,
    form: Form,
    problems: &mut Problems,
) -> Option<(Module, Option<usize>)> {
    let config = noted(Config::read(folder), problems)?;
    let architecture = noted(arch::of(&config), problems)?;
    let files = Files::new(Some(folder));
    let mut weights = noted(Weights::read(folder, &files), problems)?;
    formats::unpack(&config, &mut weights, problems);
    let mut net = Net::new(&config, &weights, problems, form);
    (architecture.build)(&mut net).unwrap_or_else(|stop| net.stopped(stop));
    let longest = net.longest();
    let mut module = net.finish(architecture)?;
    bind_dims(&mut module, dims, problems);
    module.sources = files.into_sources();
    Some((module, longest))
}

/// What the checkpoint in `folder` does with text; none if there is none of a known architecture.
pub fn purpose(folder: &Path) -> Option<Purpose> {
    let architecture = Config::read(folder).and_then(|config| arch::of(&config));
    architecture.ok().map(|a| a.purpose())
}

fn noted<T>(found: Result<T, Problem>, problems: &mut Problems) -> Option<T> {
    found.map_err(|p| problems.push(p)).ok()
}

/// The files that a checkpoint is read from: `config.json` and the weights.
pub fn files_of(folder: &Path) -> Vec<PathBuf> {
    let mut names = vec![config::FILE.to_owned()];
    names.extend(weights::names(folder));
    names.into_iter().map(|n| folder.join(n)).collect()
}
