//! What every weight is tried with, and what comes of it.

use super::recipe::{Entry, Recipe};
use super::sites::{Site, Weight, bytes_of, matrix};
use super::work::{self, Key, Store};
use super::{CompressError, Level, Means};
use crate::methods::matrix::Matrix;
use crate::methods::statistics::Statistics;
use crate::methods::{Candidate, Layer, METHODS, Method, MethodError, Settings};
use lapidary_ir::Module;
use lapidary_ir::encodings::Encoding;

/// What one weight becomes.
pub(super) struct Pick {
    /// The choice.
    pub level: Level,
    /// What the method made; none if the weight stays as it is.
    pub candidate: Option<Candidate>,
}

/// A level that was tried with a weight.
pub(super) struct Tried {
    /// The level.
    pub level: Level,
    /// Relative error of the weight, or of its outputs where there are statistics.
    pub error: f64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// What the method made, if it is to be kept.
    pub candidate: Option<Candidate>,
}

impl Tried {
    /// Of a weight that takes `own` bytes as it is.
    fn new(level: &Level, candidate: Option<Candidate>, own: u64, keep: bool) -> Tried {
        let (error, bytes) = candidate
            .as_ref()
            .map_or((0.0, own), |c| (c.error, c.bytes));
        Tried {
            level: level.clone(),
            error,
            bytes,
            candidate: candidate.filter(|_| keep),
        }
    }

    /// The term, if it was kept and the weight does not stay as it is.
    pub fn term(&self) -> Option<&Encoding> {
        Some(&self.candidate.as_ref()?.encoding)
    }
}

fn level(method: &str, bits: u32, group: usize, clip: bool) -> Level {
    Level {
        method: method.to_owned(),
        bits,
        group,
        clip,
        ..Level::default()
    }
}

/// Entropy-coded grids, which take any number of bits.
fn entropy(rates: &[f64]) -> impl Iterator<Item = Level> {
    rates.iter().map(|&rate| Level {
        method: "entropy".to_owned(),
        rate,
        ..Level::default()
    })
}

/// Grids of groups with error feedback, whose scales are codes of 8 bits.
fn feedback(grids: &[(u32, usize)]) -> impl Iterator<Item = Level> {
    grids.iter().map(|&(bits, group)| Level {
        method: "gptq-refit".to_owned(),
        bits,
        group,
        clip: bits < 5,
        scale_bits: if group > 0 { 8 } else { 0 },
        ..Level::default()
    })
}

/// Weights of more elements are tried with every other rate only: a level of so many takes a minute.
const MANY: usize = 1 << 22;

/// Stored bits for each weight that entropy-coded grids are tried with. On weights as they are they lose less than everything
/// else here below 8 bits.
fn rates(elements: usize) -> Vec<f64> {
    const RATES: [f64; 17] = [
        6.0, 5.0, 4.5, 4.0, 3.6, 3.3, 3.0, 2.75, 2.5, 2.25, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8,
    ];
    let step = if elements > MANY { 2 } else { 1 };
    RATES.into_iter().step_by(step).collect()
}

/// Levels that need no data, from large to small. Palettes are exact where weights were clustered before.
fn without_data(elements: usize) -> Vec<Level> {
    let mut levels = vec![
        Level::keep(),
        level("palette", 8, 0, false),
        level("fp8", 8, 0, false),
        level("rtn", 8, 0, false),
        level("rtn", 8, 64, false),
        level("rtn", 7, 0, false),
        level("palette", 4, 0, false),
        level("palette", 2, 0, false),
    ];
    levels.extend(entropy(&rates(elements)));
    levels
}

/// Levels that look at the inputs of the weight, from large to small.
fn with_data(elements: usize) -> Vec<Level> {
    let mut levels = vec![Level::keep(), level("palette", 8, 0, false)];
    levels.extend(feedback(&[
        (8, 0),
        (6, 0),
        (5, 64),
        (4, 64),
        (3, 32),
        (2, 16),
    ]));
    levels.extend(entropy(&rates(elements)));
    levels
}

/// Grids of groups that products read as they are, from large to small: the numbers of bits that there are kernels for, with scales
/// that are numbers of 16 bits.
fn grids(observed: bool) -> impl Iterator<Item = Level> {
    const GRIDS: [(u32, usize); 10] = [
        (8, 128),
        (6, 128),
        (5, 64),
        (4, 32),
        (4, 64),
        (4, 128),
        (3, 32),
        (3, 64),
        (2, 16),
        (2, 32),
    ];
    let method = if observed { "gptq-refit" } else { "rtn" };
    GRIDS
        .iter()
        .map(move |&(bits, group)| level(method, bits, group, bits < 5))
}

/// Levels whose weights stay as small in memory as in the file where they are multiplied, for [`Means::levels`].
pub fn packed(weight: &Weight) -> Vec<Level> {
    let kept = std::iter::once(Level::keep());
    kept.chain(grids(weight.observed)).collect()
}

/// Length of the groups of stacks.
const STACKED: usize = 64;

/// A weight as a stack of grids of so many bits in all.
fn stack(bits: u32) -> Level {
    level("stack", bits, STACKED, true)
}

/// Levels of which the first parts are weights, too, for [`Means::levels`]. Tables are not multiplied part by part.
pub fn stacks(weight: &Weight) -> Vec<Level> {
    let kept = std::iter::once(Level::keep());
    match weight.looked_up {
        true => kept.chain(grids(weight.observed)).collect(),
        false => kept.chain([8, 5, 3, 2].map(stack)).collect(),
    }
}

/// All weights of a module that have parts as stacks of the most bits, and its tables as codes of 8 bits.
pub fn stacked(module: &Module) -> Recipe {
    let entry = |weight: Weight| Entry {
        level: match weight.looked_up {
            true => level("rtn", 8, STACKED, false),
            false => stack(8),
        },
        name: weight.name,
    };
    Recipe {
        weights: super::weights(module).into_iter().map(entry).collect(),
        ..Recipe::default()
    }
}

/// Levels that have kernels of their own: few bits where reading weights takes the time, few weights where products do.
fn quick(statistics: bool) -> impl Iterator<Item = Level> {
    let prune = if statistics { "sparsegpt" } else { "magnitude" };
    let shares = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95];
    let pruned = shares.map(|sparsity| Level {
        method: prune.to_owned(),
        bits: 16,
        sparsity,
        ..Level::default()
    });
    grids(statistics).chain(pruned)
}

/// What a weight is tried with.
pub(super) fn ladder(site: &Site, observed: bool, means: &Means) -> Vec<Level> {
    let mut levels = match (means.levels, observed) {
        (Some(of), _) => return of(&site.described(observed)),
        (None, true) => with_data(site.elements()),
        (None, false) => without_data(site.elements()),
    };
    if means.clock.is_some() {
        levels.extend(quick(observed));
    }
    levels
}

/// What the candidates of weights are kept under.
#[derive(Clone, Copy)]
pub(super) enum Keys {
    /// Each under itself.
    ByWeight,
    /// All under the model and the data.
    ByModel(Key),
}

impl Keys {
    /// For what is known of a module.
    pub fn of(module: &Module, means: &Means) -> Keys {
        means.data.map_or(Keys::ByWeight, |data| {
            Keys::ByModel(work::key_of_model(module, data.key()))
        })
    }

    /// Of a weight that was decoded.
    fn of_matrix(self, site: &Site, matrix: &Matrix, levels: &[Level]) -> Key {
        match self {
            Keys::ByWeight => work::key_of_weight(matrix, levels),
            Keys::ByModel(key) => work::key_of_observed(key, &site.name, levels),
        }
    }

    /// Decodes the weight only if it must.
    fn of_site(self, module: &Module, site: &Site, levels: &[Level]) -> Result<Key, CompressError> {
        Ok(match self {
            Keys::ByWeight => self.of_matrix(site, &matrix(module, site)?, levels),
            Keys::ByModel(key) => work::key_of_observed(key, &site.name, levels),
        })
    }
}

/// Where what is made of weights is kept, so that memory holds one weight's at a time.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    pub store: &'a dyn Store,
    pub keys: Keys,
}

impl Kept<'_> {
    /// What was made of a weight with these levels before.
    pub fn get(
        self,
        module: &Module,
        site: &Site,
        levels: &[Level],
    ) -> Result<Option<Vec<Tried>>, CompressError> {
        let key = self.keys.of_site(module, site, levels)?;
        Ok(work::tried(self.store, key))
    }

    /// Keeps what was made, and returns views of what is kept.
    fn put(
        self,
        site: &Site,
        matrix: &Matrix,
        levels: &[Level],
        tried: Vec<Tried>,
    ) -> Result<Vec<Tried>, CompressError> {
        let key = self.keys.of_matrix(site, matrix, levels);
        work::keep_tried(self.store, key, &tried)?;
        Ok(work::tried(self.store, key).unwrap_or(tried))
    }
}

/// Tries levels with a weight; those that a method cannot do are left out. Without a place to keep them the terms, which
/// together may be larger than the weight, are dropped: errors and bytes stay.
pub(super) fn try_all(
    module: &Module,
    site: &Site,
    levels: &[Level],
    statistics: Option<&Statistics>,
    kept: Option<Kept>,
) -> Result<Vec<Tried>, CompressError> {
    let matrix = matrix(module, site)?;
    let own = bytes_of(module, site);
    let layer = Layer::new(&matrix, statistics).ok();
    let mut tried = vec![];
    for level in levels {
        let candidate = match (level.keeps(), &layer) {
            (true, _) => None,
            (false, None) => continue,
            (false, Some(layer)) => {
                let method = method(&level.method)?;
                match propose(method, layer, level, statistics) {
                    Ok(candidate) => Some(candidate),
                    Err(_) => continue,
                }
            }
        };
        tried.push(Tried::new(level, candidate, own, kept.is_some()));
    }
    match kept {
        Some(kept) => kept.put(site, &matrix, levels, tried),
        None => Ok(tried),
    }
}

/// What a level makes of a weight; none if it stays as it is.
pub(super) fn make(
    module: &Module,
    site: &Site,
    level: &Level,
    statistics: Option<&Statistics>,
    kept: Kept,
) -> Result<Option<Candidate>, CompressError> {
    let fails = |error| CompressError::Method {
        weight: site.name.clone(),
        method: level.method.clone(),
        error,
    };
    let method = method(&level.method)?;
    let matrix = matrix(module, site)?;
    let layer = Layer::new(&matrix, statistics).map_err(fails)?;
    let candidate = propose(method, &layer, level, statistics).map_err(fails)?;
    let tried = vec![Tried::new(level, Some(candidate), 0, true)];
    let levels = std::slice::from_ref(level);
    let made = kept.put(site, &matrix, levels, tried)?.into_iter().next();
    Ok(made.and_then(|t| t.candidate))
}

/// Second moments of few inputs are mostly chance; the candidate says so.
fn warned(mut candidate: Candidate, statistics: Option<&Statistics>) -> Candidate {
    if let Some(s) = statistics.filter(|s| s.samples < 4 * s.inputs() as u64) {
        candidate.assumptions.push(format!(
            "its {} inputs were seen {} times, less than four times as often as there are inputs: more data would say more",
            s.inputs(),
            s.samples
        ));
    }
    candidate
}

fn settings(level: &Level) -> Result<Settings, MethodError> {
    let usual = Settings::default();
    Ok(Settings {
        bits: level.bits,
        group_len: level.group,
        symmetric: level.symmetric,
        clip: level.clip,
        scale_bits: level.scale_bits,
        rate: level.rate,
        temperature: level.temperature,
        pattern: level.pattern()?.unwrap_or(usual.pattern),
        ..usual
    })
}

/// What a method makes of a layer at a level.
fn propose(
    method: &Method,
    layer: &Layer,
    level: &Level,
    statistics: Option<&Statistics>,
) -> Result<Candidate, MethodError> {
    let candidate = (method.propose)(layer, &settings(level)?)?;
    Ok(warned(candidate, statistics))
}

fn method(name: &str) -> Result<&'static Method, CompressError> {
    METHODS
        .iter()
        .copied()
        .find(|m| m.name == name)
        .ok_or_else(|| {
            let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
            CompressError::Unknown(name.to_owned(), names.join(", "))
        })
}
