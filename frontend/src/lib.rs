//! Files of other programs into the graph IR.
//!
//! [`import`] takes whatever a path names: an ONNX file ([`onnx`]), a GGUF file ([`gguf`]), a checkpoint's folder ([`checkpoint`], with one
//! file per architecture in [`arch`] and one per way to pack weights in [`formats`]), or the text form ([`text`]).

pub mod arch;
pub mod checkpoint;
mod error;
pub mod export;
mod files;
pub mod formats;
pub mod gguf;
pub mod onnx;
mod text;

pub use arch::{Form, Purpose};
pub use error::{ImportError, Problem};
pub use files::{map, map_source};

use lapidary_ir::Module;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Imports what `path` names: a folder is a checkpoint, a file that ends in `.gguf` that, in `.lap` the text form, any
/// other ONNX.
pub fn import(path: &Path, options: &onnx::ImportOptions) -> Result<Module, ImportError> {
    match kind(path) {
        Kind::Checkpoint => checkpoint::import_folder(path, &options.dims, Form::Whole),
        Kind::Gguf => gguf::import_file(path, &options.dims, Form::Whole),
        Kind::Text => text::import_file(path, &options.dims),
        Kind::Onnx => onnx::import_file(path, options),
    }
}

/// Imports a language model in a form, such as [`Form::Stepwise`]: a folder, or a file that ends in `.gguf`.
pub fn import_language(
    path: &Path,
    dims: &BTreeMap<String, i64>,
    form: Form,
) -> Result<Module, ImportError> {
    match kind(path) {
        Kind::Checkpoint => checkpoint::import_folder(path, dims, form),
        Kind::Gguf => gguf::import_file(path, dims, form),
        Kind::Text | Kind::Onnx => {
            let mut problems = error::Problems::new("use the folder of a checkpoint");
            problems.add(
                "file",
                "is no checkpoint of a language model".to_owned(),
                None,
            );
            Err(problems.of(&path.display().to_string()))
        }
    }
}

/// The files that the model at `path` is read from, for build systems: in order, each once. Some may be missing, which is
/// for the import to say.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    let own = path.to_owned();
    match kind(path) {
        Kind::Checkpoint => checkpoint::files_of(path),
        Kind::Gguf => vec![own],
        Kind::Text => {
            // Only modules with large constants have one.
            let weights = Some(path.with_extension(text::WEIGHTS)).filter(|w| w.exists());
            std::iter::once(own).chain(weights).collect()
        }
        Kind::Onnx => {
            let external = onnx::external_files(path);
            std::iter::once(own).chain(external).collect()
        }
    }
}

enum Kind {
    Checkpoint,
    Gguf,
    Text,
    Onnx,
}

fn kind(path: &Path) -> Kind {
    if path.is_dir() {
        return Kind::Checkpoint;
    }
    match path.extension() {
        Some(e) if e == text::ENDING => Kind::Text,
        Some(e) if e == gguf::ENDING => Kind::Gguf,
        _ => Kind::Onnx,
    }
}

/// Fixes dimensions by name, each of which the module must have.
fn bind_dims(module: &mut Module, dims: &BTreeMap<String, i64>, problems: &mut error::Problems) {
    let mut known = BTreeSet::new();
    for &input in &module.top().inputs {
        for dim in module.value(input).ty.shape().unwrap_or_default() {
            dim.visit_symbols(&mut |name| {
                known.insert(name.to_owned());
            });
        }
    }
    for name in dims.keys().filter(|n| !known.contains(*n)) {
        problems.push(error::unknown_dim(name, &known));
    }
    if dims.is_empty() || !problems.is_empty() {
        return;
    }
    for e in lapidary_ir::infer::bind_symbols(module, dims) {
        problems.add(&format!("node `{}` ({})", e.node, e.op), e.reason, None);
    }
}
