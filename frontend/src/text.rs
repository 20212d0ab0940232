//! Modules saved in the text form, with their side file of weights.

use crate::bind_dims;
use crate::error::{ImportError, Problems};
use crate::files::map_source;
use lapidary_ir::sources::Sources;
use lapidary_ir::{Module, text, verify};
use std::collections::BTreeMap;
use std::path::Path;

/// How names of text files end.
pub const ENDING: &str = "lap";

/// How the name of the file with the weights ends.
pub const WEIGHTS: &str = "weights";

const REMEDY: &str =
    "the text form is described in `ir/src/text/mod.rs`; `lapidary inspect` prints it";

/// Imports a module that was saved as text, and fixes these dimensions.
pub fn import_file(path: &Path, dims: &BTreeMap<String, i64>) -> Result<Module, ImportError> {
    let mut problems = Problems::new(REMEDY);
    let module = read(path, dims, &mut problems);
    problems.or(module, path)
}

fn read(path: &Path, dims: &BTreeMap<String, i64>, problems: &mut Problems) -> Option<Module> {
    let mut sources = Sources::default();
    let mut map = |path: &Path| map_source(path, &mut sources);
    let source = match map(path) {
        Ok(bytes) => bytes,
        Err(e) => {
            problems.add("file", e, Some("is the path right, and may you read it?"));
            return None;
        }
    };
    let Ok(source) = std::str::from_utf8(&source) else {
        problems.add("file", "is not UTF-8 text", None);
        return None;
    };
    let side = path.with_extension(WEIGHTS);
    let weights = match side.exists().then(|| map(&side)).transpose() {
        Ok(weights) => weights,
        Err(e) => {
            problems.add("weights", e, Some("may you read the file?"));
            return None;
        }
    };
    let parsed = match text::parse_located(source, weights.as_ref()) {
        Ok(parsed) => parsed,
        Err(diagnostics) => {
            for d in diagnostics {
                problems.add("text", d.to_string(), None);
            }
            return None;
        }
    };
    for d in verify::errors(&parsed.module) {
        problems.add("text", parsed.locate(d).to_string(), None);
    }
    let mut module = parsed.module;
    if problems.is_empty() {
        bind_dims(&mut module, dims, problems);
    }
    module.sources = sources;
    Some(module)
}
