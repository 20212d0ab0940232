//! Hugging Face checkpoints into the graph IR: a folder with `config.json` and weights in safetensors.
//!
//! [`config`] reads the settings in the forms of many years, [`safetensors`] and [`weights`] find the tensors, which
//! stay views of their mapped files; packed weights become terms ([`crate::formats`]). What a network is made of is in [`crate::arch`], chosen by `model_type`.

pub mod config;
pub mod safetensors;
pub mod weights;

use crate::arch::{self, Form, Net};
use crate::error::{ImportError, Problem, Problems};
use crate::{bind_dims, files::Files, formats};
use config::Config;
use lapidary_ir::Module;
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
/// [`Form::Stepwise`] networks also take `past` and `last`, `i64[batch]`, and the caches of every layer,
/// `f32[batch,capacity,width]`, which they give back with the keys and values of the given tokens; their `logits` are
/// `f32[batch,1,vocabulary]`, of token `last` of those given.
pub fn import_folder(
    folder: &Path,
    dims: &BTreeMap<String, i64>,
    form: Form,
) -> Result<Module, ImportError> {
    let mut problems = Problems::new(REMEDY);
    let module = read(folder, dims, form, &mut problems);
    match module {
        Some(module) if problems.is_empty() => Ok(module),
        _ => Err(problems.of(&folder.display().to_string())),
    }
}

fn read(
    folder: &Path,
    dims: &BTreeMap<String, i64>,
    form: Form,
    problems: &mut Problems,
) -> Option<Module> {
    let config = noted(Config::read(folder), problems)?;
    let architecture = noted(arch::of(&config), problems)?;
    let files = Files::new(Some(folder));
    let mut weights = noted(Weights::read(folder, &files), problems)?;
    formats::unpack(&config, &mut weights, problems);
    let mut net = Net::new(&config, &weights, problems, form);
    (architecture.build)(&mut net).unwrap_or_else(|stop| net.stopped(stop));
    let mut module = net.finish(architecture)?;
    bind_dims(&mut module, dims, problems);
    module.sources = files.into_sources();
    Some(module)
}

/// Whether the checkpoint in `folder` is of an architecture that writes text; false as well if there is none.
pub fn writes_text(folder: &Path) -> bool {
    let architecture = Config::read(folder).and_then(|config| arch::of(&config));
    architecture.is_ok_and(|a| a.writes_text())
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
