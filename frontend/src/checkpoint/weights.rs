//! The tensors of a checkpoint by name, out of one file or of many: plainly stored, or packed and then a term.

use super::safetensors::{self, Stored};
use crate::error::Problem;
use crate::files::Files;
use lapidary_ir::encodings::Encoding;
use serde::Deserialize;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The file of a checkpoint that is in one piece.
pub(crate) const SINGLE: &str = "model.safetensors";

/// What tells in which file each tensor of a checkpoint in pieces is.
const INDEX: &str = "model.safetensors.index.json";

const SHARD_REMEDY: &str =
    "put every file that `model.safetensors.index.json` names into the folder, complete";

/// All tensors of a checkpoint.
#[derive(Debug)]
pub struct Weights {
    tensors: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    what: What,
    file: String,
    used: Cell<bool>,
}

#[derive(Debug)]
enum What {
    Stored(Stored),
    Term(Arc<Encoding>),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Maps the files in `folder` and reads their headers.
    pub fn read(folder: &Path, files: &Files) -> Result<Weights, Problem> {
        let exists = |name: &str| folder.join(name).exists();
        let mut tensors = BTreeMap::new();
        if exists(INDEX) {
            let index = index(files)?;
            for file in index.values().collect::<BTreeSet<_>>() {
                let own = open(files, file, Some(SHARD_REMEDY))?;
                let named = own
                    .into_iter()
                    .filter(|(name, _)| index.get(name) == Some(file));
                tensors.extend(named.map(|(name, stored)| (name, held(stored, file))));
            }
            if let Some((name, file)) = index.iter().find(|(name, _)| !tensors.contains_key(*name))
            {
                return Err(Problem {
                    place: format!("tensor `{name}`"),
                    reason: format!("is not in `{file}`, where `{INDEX}` says it is"),
                    remedy: Some(SHARD_REMEDY.to_owned()),
                });
            }
        } else if exists(SINGLE) {
            let own = open(files, SINGLE, None)?;
            tensors.extend(
                own.into_iter()
                    .map(|(name, stored)| (name, held(stored, SINGLE))),
            );
        } else {
            let other = [
                "pytorch_model.bin",
                "pytorch_model.bin.index.json",
                "tf_model.h5",
            ];
            let remedy = match other.iter().find(|name| exists(name)) {
                Some(name) => format!(
                    "`{name}` is not read: load the checkpoint with transformers and save it with `save_pretrained`"
                ),
                None => "download the weights as well as `config.json`".to_owned(),
            };
            return Err(Problem {
                place: "weights".to_owned(),
                reason: format!("the folder has neither `{SINGLE}` nor `{INDEX}`"),
                remedy: Some(remedy),
            });
        }
        Ok(Weights { tensors })
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True if there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor as it is stored, unless it is a term, and the name of its file. From now on it counts as used.
    pub fn take(&self, name: &str) -> Option<(&Stored, &str)> {
        let held = self.tensors.get(name)?;
        held.used.set(true);
        match &held.what {
            What::Stored(stored) => Some((stored, &held.file)),
            What::Term(_) => None,
        }
    }

    /// The term of a packed weight, and the name of its file. From now on it counts as used.
    pub fn term(&self, name: &str) -> Option<(&Arc<Encoding>, &str)> {
        let held = self.tensors.get(name)?;
        let What::Term(term) = &held.what else {
            return None;
        };
        held.used.set(true);
        Some((term, &held.file))
    }

    /// The tensors that are no terms, by name.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors
            .iter()
            .filter_map(|(name, held)| match &held.what {
                What::Stored(stored) => Some((name.as_str(), stored)),
                What::Term(_) => None,
            })
    }

    /// The file that a tensor is in.
    pub fn file_of(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|held| held.file.as_str())
    }

    /// The modules that have a tensor whose name ends so.
    pub(crate) fn modules(&self, ending: &str) -> Vec<String> {
        let names = self.tensors.keys();
        let modules = names.filter_map(|name| name.strip_suffix(ending));
        modules.map(str::to_owned).collect()
    }

    /// From now on, the weight of a module is this term, whose parts lie in this file.
    pub(crate) fn put(&mut self, module: &str, file: &str, term: Encoding) {
        let held = Held {
            file: file.to_owned(),
            what: What::Term(Arc::new(term)),
            used: Cell::new(false),
        };
        // Some writers name the parts after the weight, some after the module.
        let module = module.strip_suffix(".weight").unwrap_or(module);
        self.tensors.insert(format!("{module}.weight"), held);
    }

    /// A tensor of zeros may stay unused: quantizers write biases for modules that have none.
    pub(crate) fn excuse_zeros(&self, name: &str) {
        if let Some(held) = self.tensors.get(name)
            && let What::Stored(stored) = &held.what
            && stored.bytes.iter().all(|&b| b == 0)
        {
            held.used.set(true);
        }
    }

    /// All of a file's tensors as terms.
    pub(crate) fn of_terms(
        terms: impl IntoIterator<Item = (String, Encoding)>,
        file: &str,
    ) -> Weights {
        let held = |term| Held {
            what: What::Term(Arc::new(term)),
            file: file.to_owned(),
            used: Cell::new(false),
        };
        let tensors = terms.into_iter().map(|(name, term)| (name, held(term)));
        Weights {
            tensors: tensors.collect(),
        }
    }

    /// Tensors as if they were in a file.
    #[cfg(test)]
    pub(crate) fn of_stored(stored: impl IntoIterator<Item = (String, Stored)>) -> Weights {
        let tensors = stored
            .into_iter()
            .map(|(name, stored)| (name, held(stored, SINGLE)));
        Weights {
            tensors: tensors.collect(),
        }
    }

    /// Names of tensors that nothing took, with the names of their files.
    pub fn unused(&self) -> impl Iterator<Item = (&str, &str)> {
        let unused = self.tensors.iter().filter(|(_, held)| !held.used.get());
        unused.map(|(name, held)| (name.as_str(), held.file.as_str()))
    }

    /// A name with the same ending, for messages about one that is missing.
    pub fn similar(&self, name: &str) -> Option<&str> {
        let parts: Vec<&str> = name.rsplit('.').collect();
        let shared = |other: &str| {
            other
                .rsplit('.')
                .zip(&parts)
                .take_while(|(a, b)| a == *b)
                .count()
        };
        let best = self.tensors.keys().max_by_key(|k| shared(k))?;
        (shared(best) >= 2).then_some(best)
    }
}

fn held(stored: Stored, file: &str) -> Held {
    Held {
        what: What::Stored(stored),
        file: file.to_owned(),
        used: Cell::new(false),
    }
}

fn open(
    files: &Files,
    name: &str,
    remedy: Option<&str>,
) -> Result<BTreeMap<String, Stored>, Problem> {
    let bytes = files
        .open(name, "the weights' file")
        .map_err(|reason| Problem {
            place: "weights".to_owned(),
            reason,
            remedy: remedy.map(str::to_owned),
        })?;
    safetensors::read(&bytes, name)
}

/// Which file each tensor is in.
fn index(files: &Files) -> Result<BTreeMap<String, String>, Problem> {
    let wrong = |reason: String| Problem {
        place: format!("file `{INDEX}`"),
        reason,
        remedy: Some("download the file again, or save the checkpoint again".to_owned()),
    };
    let bytes = files.open(INDEX, "the list of weights").map_err(wrong)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| wrong(format!("is not valid: {e}")))?;
    Ok(index.weight_map)
}

/// Names of the files with a checkpoint's weights, its index among them; none if it cannot be read.
pub(super) fn names(folder: &Path) -> Vec<String> {
    if !folder.join(INDEX).exists() {
        return vec![SINGLE.to_owned()];
    }
    let shards = index(&Files::new(Some(folder))).unwrap_or_default();
    let inside = shards.into_values().filter(|name| Files::is_inside(name));
    let shards: BTreeSet<String> = inside.collect();
    std::iter::once(INDEX.to_owned()).chain(shards).collect()
}
