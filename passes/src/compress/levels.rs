//! What every weight is tried with, and what comes of it.

use super::sites::{Site, bytes_of, matrix};
use super::work::{self, keep_tried, key_of};
use super::{CompressError, Level, Means};
use crate::methods::matrix::Matrix;
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
        symmetric: false,
        clip,
    }
}

/// Levels that need no data, from large to small.
fn without_data() -> Vec<Level> {
    vec![
        Level::keep(),
        level("palette", 8, 0, false),
        level("fp8", 8, 0, false),
        level("rtn", 8, 0, false),
        level("rtn", 8, 64, false),
        level("rtn", 6, 64, false),
        level("rtn", 5, 32, false),
        level("rtn", 5, 128, false),
        level("rtn", 4, 32, true),
        level("rtn", 4, 128, true),
        level("hqq", 4, 64, false),
        level("nf4", 4, 64, false),
        level("mxfp4", 4, 32, false),
        level("palette", 4, 0, false),
        level("rtn", 3, 32, true),
        level("hqq", 3, 64, false),
        level("palette", 3, 0, false),
        level("rtn", 2, 16, true),
        level("hqq", 2, 32, false),
        level("palette", 2, 0, false),
        level("ternary", 2, 64, false),
        level("binary", 1, 64, false),
    ]
}

/// Levels that look at the inputs of the weight, from large to small.
fn with_data() -> Vec<Level> {
    vec![
        Level::keep(),
        level("palette", 8, 0, false),
        level("gptq-refit", 8, 0, false),
        level("gptq-refit", 6, 0, false),
        level("gptq-refit", 5, 0, false),
        level("gptq-refit", 5, 64, false),
        level("gptq-refit", 4, 32, true),
        level("gptq-refit", 4, 64, true),
        level("gptq-refit", 4, 0, true),
        level("gptq-refit", 3, 16, true),
        level("gptq-refit", 3, 32, true),
        level("gptq-refit", 3, 64, true),
        level("gptq-refit", 3, 0, true),
        level("gptq-refit", 2, 16, true),
        level("gptq-refit", 2, 32, true),
        level("gptq-refit", 2, 64, true),
        level("gptq-refit", 2, 0, true),
    ]
}

/// What a weight is tried with.
fn ladder(site: &Site, statistics: Option<&Statistics>, means: &Means) -> Vec<Level> {
    match (means.levels, statistics) {
        (Some(of), _) => of(&site.weight()),
        (None, Some(_)) => with_data(),
        (None, None) => without_data(),
    }
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
/// weight, are kept only if there is data or a store: without, the choice needs no more than their errors and bytes.
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
        means.store.is_some() || means.data.is_some(),
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
