//! What is kept between runs: a run that was killed goes on where it was, and machines share what they have made.
//!
//! Everything expensive is a function of what goes in, so it is kept under the checksum of that: the moments of inputs under
//! the module and the data, the candidates of a weight under the weight, its statistics and the levels. A run with a
//! [`Store`] asks it first; the same program therefore makes the same result whether it is killed or not, and whoever fills the
//! store. Entries that cannot be read back are made again.

use super::levels::Tried;
use super::recipe::Level;
use super::{CompressError, Failure};
use crate::methods::Candidate;
use crate::methods::matrix::Matrix;
use crate::methods::statistics::Moments;
use bytes::Bytes;
use lapidary_ir::text::{self, checksum};
use lapidary_ir::{Constant, Module};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Entries of another version are others: its methods may make something else of the same.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Keeps bytes by name. Names are letters, digits and one dot.
pub trait Store {
    /// What was kept under a name, if all of it was.
    fn get(&self, name: &str) -> Option<Bytes>;

    /// Keeps the parts, one behind the other, under a name: all or nothing.
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), Failure>;

    /// Forgets what was kept under a name, if there was anything. What was got before stays.
    fn remove(&self, name: &str);
}

/// Keeps bytes in memory, for those who have no other place.
#[derive(Default)]
pub(super) struct Memory(RefCell<BTreeMap<String, Bytes>>);

impl Store for Memory {
    fn get(&self, name: &str) -> Option<Bytes> {
        self.0.borrow().get(name).cloned()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), Failure> {
        let bytes = Bytes::from(parts.concat());
        self.0.borrow_mut().insert(name.to_owned(), bytes);
        Ok(())
    }

    fn remove(&self, name: &str) {
        self.0.borrow_mut().remove(name);
    }
}

/// A checksum of numbers, in parts.
#[derive(Clone, Copy)]
pub(super) struct Key(u64);

impl Key {
    /// Of what an entry is about.
    pub fn new(about: &str) -> Key {
        Key(checksum(VERSION.as_bytes())).bytes(about.as_bytes())
    }

    /// And of these bytes.
    pub fn bytes(self, bytes: &[u8]) -> Key {
        let both = [self.0, checksum(bytes), bytes.len() as u64];
        Key(checksum(&both.map(u64::to_le_bytes).concat()))
    }

    /// And of these numbers.
    pub fn numbers(self, numbers: &[f64]) -> Key {
        // In pieces: a copy of all would be as large as they are.
        numbers.chunks(1 << 16).fold(self, |key, piece| {
            key.bytes(
                &piece
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect::<Vec<u8>>(),
            )
        })
    }

    /// The name of an entry.
    pub fn name(self, ending: &str) -> String {
        format!("{:016x}.{ending}", self.0)
    }
}

/// What the candidates of a weight depend on where nothing is known of its inputs: itself.
pub(super) fn key_of_weight(matrix: &Matrix, levels: &[Level]) -> Key {
    let shape = format!("{} {} {levels:?}", matrix.rows(), matrix.cols());
    Key::new(&shape).numbers(matrix.data())
}

/// What the candidates of a weight of this name depend on where the whole model and the data decide.
pub(super) fn key_of_observed(provenance: Key, name: &str, levels: &[Level]) -> Key {
    provenance.bytes(format!("{name:?} {levels:?}").as_bytes())
}

/// Candidates as they are kept: this beside a module whose constants are the terms.
#[derive(Serialize, Deserialize)]
struct Kept {
    tried: Vec<KeptTried>,
}

#[derive(Serialize, Deserialize)]
struct KeptTried {
    level: Level,
    error: f64,
    bytes: u64,
    /// Which constant the term is; none if the weight stays as it is.
    #[serde(default)]
    term: Option<usize>,
    #[serde(default)]
    assumptions: Vec<String>,
}

/// Keeps what was tried with a weight.
pub(super) fn keep_tried(
    store: &dyn Store,
    key: Key,
    tried: &[Tried],
) -> Result<(), CompressError> {
    let mut module = Module::new("candidates");
    let mut kept = vec![];
    for t in tried {
        let term = t.candidate.as_ref().map(|c| {
            let v = module.add_constant("", Constant::new(c.encoding.clone()));
            module.region_mut(Module::TOP).outputs.push(v);
            module
                .output_names
                .push(format!("c{}", module.output_names.len()));
            module.output_names.len() - 1
        });
        kept.push(KeptTried {
            level: t.level.clone(),
            error: t.error,
            bytes: t.bytes,
            term,
            assumptions: t
                .candidate
                .as_ref()
                .map_or(vec![], |c| c.assumptions.clone()),
        });
    }
    let (graph, parts) = text::print_with_weights(&module);
    let mut side: Vec<&[u8]> = vec![];
    let (mut at, zeros) = (0, [0; 64]);
    for (offset, bytes) in &parts {
        // Parts are aligned to less than this.
        side.push(&zeros[..(offset - at) as usize]);
        side.push(bytes);
        at = offset + bytes.len() as u64;
    }
    let list = toml::to_string(&Kept { tried: kept }).map_err(|e| CompressError::Work(e.into()))?;
    let put = |ending: &str, parts: &[&[u8]]| {
        store
            .put(&key.name(ending), parts)
            .map_err(CompressError::Work)
    };
    put("weights", &side)?;
    put("lap", &[graph.as_bytes()])?;
    // The list is last: where it is, all is.
    put("toml", &[list.as_bytes()])
}

/// What was tried with a weight before; its terms are views of what the store gives.
pub(super) fn tried(store: &dyn Store, key: Key) -> Option<Vec<Tried>> {
    let list = store.get(&key.name("toml"))?;
    let list: Kept = toml::from_str(std::str::from_utf8(&list).ok()?).ok()?;
    let (graph, side) = (
        store.get(&key.name("lap"))?,
        store.get(&key.name("weights"))?,
    );
    let module = text::parse_located(std::str::from_utf8(&graph).ok()?, Some(&side))
        .ok()?
        .module;
    let entry = |t: KeptTried| {
        let candidate = match t.term {
            None => None,
            Some(i) => {
                let encoding = module
                    .as_constant(*module.top().outputs.get(i)?)?
                    .encoding();
                encoding.check().ok()?;
                Some(Candidate {
                    encoding: (**encoding).clone(),
                    error: t.error,
                    bytes: t.bytes,
                    assumptions: t.assumptions,
                })
            }
        };
        Some(Tried {
            level: t.level,
            error: t.error,
            bytes: t.bytes,
            candidate,
        })
    };
    list.tried.into_iter().map(entry).collect()
}

/// What everything depends on that is gathered of a module; `data` is [`Samples::key`](super::Samples::key).
pub(super) fn key_of_model(module: &Module, data: u64) -> Key {
    let printed = text::print_elided(module);
    // Its checksums have read all weights.
    module.sources.release(usize::MAX);
    Key::new("model")
        .bytes(printed.as_bytes())
        .bytes(&data.to_le_bytes())
}

/// Keeps moments.
pub(super) fn keep_moments(
    store: &dyn Store,
    key: Key,
    moments: &Moments,
) -> Result<(), CompressError> {
    let bytes: Vec<u8> = moments
        .parts()
        .into_iter()
        .flatten()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let (rows, sum) = (moments.rows().to_le_bytes(), checksum(&bytes).to_le_bytes());
    store
        .put(&key.name("moments"), &[&rows, &sum, &bytes])
        .map_err(CompressError::Work)
}

/// The moments of so many inputs, as they were kept.
pub(super) fn moments(store: &dyn Store, key: Key, inputs: usize) -> Option<Moments> {
    let bytes = store.get(&key.name("moments"))?;
    let (rows, rest) = bytes.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    if checksum(rest) != u64::from_le_bytes(*sum) {
        return None;
    }
    Moments::read(u64::from_le_bytes(*rows), inputs, rest)
}
