//! GGUF files into the graph IR: metadata becomes settings, tensors become terms, and the network is that of
//! [`crate::arch`].
//!
//! [`mod@file`] reads the container, [`blocks`] says what each type of tensors means, [`network`] which architecture a file
//! is of and what its tensors are called there, by the tables of [`names`], and [`vocabulary`] how its tokens are written.

pub mod blocks;
pub mod file;
mod grids;
pub(crate) mod names;
pub(crate) mod network;
#[cfg(test)]
mod tests;
pub(crate) mod vocabulary;

use crate::arch::{self, Form, Net};
use crate::bind_dims;
use crate::error::{ImportError, Problem, Problems};
use crate::files::map_source;
use bytes::Bytes;
use lapidary_ir::Module;
use lapidary_ir::sources::Sources;
use std::collections::BTreeMap;
use std::path::Path;
use vocabulary::Vocabulary;

/// How names of files end.
pub const ENDING: &str = "gguf";

/// What to do where nothing better is known.
const REMEDY: &str = "is the file complete, and made by llama.cpp's converter?";

/// Imports a file, and fixes these dimensions (`batch`, `seq`). Inputs and outputs are those of a checkpoint's folder.
pub fn import_file(
    path: &Path,
    dims: &BTreeMap<String, i64>,
    form: Form,
) -> Result<Module, ImportError> {
    let mut problems = Problems::new(REMEDY);
    let module = read(path, dims, form, &mut problems);
    problems.or(module, path)
}

fn read(
    path: &Path,
    dims: &BTreeMap<String, i64>,
    form: Form,
    problems: &mut Problems,
) -> Option<Module> {
    let mut sources = Sources::default();
    let opened = open(path, &mut sources);
    let (bytes, name) = opened.map_err(|p| problems.push(p)).ok()?;
    let mut module = build(&bytes, &name, dims, form, problems)?;
    module.sources = sources;
    Some(module)
}

/// The files that a checkpoint's folder has beside its weights, made of a GGUF file's metadata: names and texts of tokenizer and settings.
/// None if the file has no vocabulary.
pub fn texts(path: &Path) -> Result<Option<Vec<(&'static str, String)>>, ImportError> {
    let mut problems = Problems::new(REMEDY);
    let found = vocabulary_of(path).map_err(|p| problems.push(p)).ok();
    problems.or(found, path)
}

fn vocabulary_of(path: &Path) -> Result<Option<Vec<(&'static str, String)>>, Problem> {
    let (bytes, name) = open(path, &mut Sources::default())?;
    let file = file::read(&bytes, &name)?;
    let Some(vocabulary) = Vocabulary::of_file(&file, &name)? else {
        return Ok(None);
    };
    let (config, _) = network::of(file, &name)?;
    let mut settings = vocabulary.ids();
    settings["max_position_embeddings"] = config.size_opt("max_position_embeddings")?.into();
    let [tokenizer, own] = vocabulary.to_files();
    Ok(Some(vec![
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", own),
        ("config.json", settings.to_string()),
    ]))
}

/// Maps a file; its bytes, and its name.
fn open(path: &Path, sources: &mut Sources) -> Result<(Bytes, String), Problem> {
    let bytes = map_source(path, sources).map_err(|reason| Problem {
        place: "file".to_owned(),
        reason,
        remedy: Some("is the path right, and may you read it?".to_owned()),
    })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok((bytes, name.into_owned()))
}

/// Imports the bytes of a file of this name.
pub fn import_bytes(
    bytes: &Bytes,
    name: &str,
    dims: &BTreeMap<String, i64>,
) -> Result<Module, ImportError> {
    let mut problems = Problems::new(REMEDY);
    match build(bytes, name, dims, Form::Whole, &mut problems) {
        Some(module) if problems.is_empty() => Ok(module),
        _ => Err(problems.of(name)),
    }
}

fn build(
    bytes: &Bytes,
    name: &str,
    dims: &BTreeMap<String, i64>,
    form: Form,
    problems: &mut Problems,
) -> Option<Module> {
    let found = file::read(bytes, name)
        .and_then(|file| network::of(file, name))
        .and_then(|(config, weights)| Ok((arch::of(&config)?, config, weights)));
    let (architecture, config, weights) = found.map_err(|p| problems.push(p)).ok()?;
    let mut net = Net::new(&config, &weights, problems, form);
    (architecture.build)(&mut net).unwrap_or_else(|stop| net.stopped(stop));
    let mut module = net.finish(architecture)?;
    bind_dims(&mut module, dims, problems);
    Some(module)
}
