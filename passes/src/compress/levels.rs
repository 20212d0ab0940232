//! What every weight is tried with, and what comes of it.

use super::sites::{Site, bytes_of, matrix};
use super::work::{self, keep_tried, key_of};
use super::{CompressError, Level, Means};
use crate::methods::matrix::Matrix;
use crate::methods::pattern::Pattern;
use crate::methods::statistics::Statistics;
use crate::methods::{Candidate, Layer, METHODS, Method, Settings};
use lapidary_ir::Module;
use lapidary_ir::encodings::Encoding;
use std::sync::Arc;

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

/// Levels that have kernels of their own: few bits where reading weights takes the time, few weights where products do.
fn quick(statistics: bool) -> impl Iterator<Item = Level> {
    let (grid, prune) = match statistics {
        true => ("gptq", "sparsegpt"),
        false => ("rtn", "magnitude"),
    };
    let grids = [(8, 128), (4, 32), (4, 128), (2, 32)];
    let shares = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95];
    let grids = grids.map(|(bits, group)| level(grid, bits, group, bits < 5));
    let pruned = shares.map(|sparsity| Level {
        method: prune.to_owned(),
        bits: 16,
        sparsity,
        ..Level::default()
    });
    grids.into_iter().chain(pruned)
}

/// What a weight is tried with.
fn ladder(site: &Site, statistics: Option<&Statistics>, means: &Means) -> Vec<Level> {
    let mut levels = match (means.levels, statistics) {
        (Some(of), _) => return of(&site.described(statistics.is_some())),
        (None, Some(_)) => with_data(site.elements()),
        (None, None) => without_data(site.elements()),
    };
    if means.clock.is_some() {
        levels.extend(quick(statistics.is_some()));
    }
    levels
}

/// True if what was tried with a weight is in the store.
pub(super) fn is_kept(
    module: &Module,
    site: &Site,
    statistics: Option<&Statistics>,
    means: &Means,
) -> Result<bool, CompressError> {
    let Some(store) = means.store else {
        return Ok(false);
    };
    let key = key_of(
        &matrix(module, site)?,
        statistics,
        &ladder(site, statistics, means),
    );
    Ok(work::tried(store, key).is_some())
}

/// Tries every level with a weight; those that a method cannot do are left out. Terms, which together may be larger than the
/// weight, are kept only if there is data or a store, or they are to be priced: without, the choice needs no more than their errors
/// and bytes.
pub(super) fn try_all(
    module: &Module,
    site: &Site,
    statistics: Option<&Statistics>,
    means: &Means,
) -> Result<Vec<Tried>, CompressError> {
    let matrix = matrix(module, site)?;
    let levels = ladder(site, statistics, means);
    let key = means
        .store
        .map(|store| (store, key_of(&matrix, statistics, &levels)));
    if let Some(found) = key.and_then(|(store, key)| work::tried(store, key)) {
        return Ok(found);
    }
    let (own, keep) = (
        bytes_of(module, site),
        means.store.is_some() || means.data.is_some() || means.clock.is_some(),
    );
    let tried = levels.into_iter().filter_map(|level| {
        let candidate = propose(site, &matrix, statistics, &level).ok()?;
        let (error, bytes) = candidate
            .as_ref()
            .map_or((0.0, own), |c| (c.error, c.bytes));
        Some(Tried {
            level,
            error,
            bytes,
            candidate: candidate.filter(|_| keep),
        })
    });
    let tried: Vec<Tried> = tried.collect();
    let Some((store, key)) = key else {
        return Ok(tried);
    };
    keep_tried(store, key, &tried)?;
    // Views of the store instead of what was just made: memory holds one weight's at a time.
    Ok(work::tried(store, key).unwrap_or(tried))
}

/// What a level makes of a weight; none if it stays as it is.
pub(super) fn propose(
    site: &Site,
    matrix: &Matrix,
    statistics: Option<&Statistics>,
    level: &Level,
) -> Result<Option<Candidate>, CompressError> {
    if level.keeps() {
        return Ok(None);
    }
    let fails = |error| CompressError::Method {
        weight: site.name.clone(),
        method: level.method.clone(),
        error,
    };
    let method = method(&level.method)?;
    let layer = Layer::new(matrix, statistics).map_err(fails)?;
    let settings = Settings {
        bits: level.bits,
        group_len: level.group,
        symmetric: level.symmetric,
        clip: level.clip,
        scale_bits: level.scale_bits,
        rate: level.rate,
        pattern: match level.sparsity {
            0.0 => Settings::default().pattern,
            sparsity => Pattern::Rows { sparsity },
        },
        ..Settings::default()
    };
    (method.propose)(&layer, &settings).map(Some).map_err(fails)
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

/// A weight after a level, made again.
pub(super) fn again(
    module: &Module,
    site: &Site,
    statistics: Option<&Arc<Statistics>>,
    level: Level,
) -> Result<Pick, CompressError> {
    let candidate = match level.keeps() {
        true => None,
        false => propose(
            site,
            &matrix(module, site)?,
            statistics.map(Arc::as_ref),
            &level,
        )?,
    };
    Ok(Pick { level, candidate })
}
