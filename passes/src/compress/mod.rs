//! Compression within a budget: weights get the encodings with the least loss that fit it.
//!
//! `before => after`: `matmul(x, dense W)` becomes `matmul(x, transpose(affine{..; int}))`, and so for each weight that is
//! worth it. Every method proposes encodings of every weight, each with its measured error and its stored bytes; a
//! multiple-choice knapsack picks one for each weight. Its lower bound says how far from the best choice it can be at most.
//!
//! With data ([`Samples`]) the inputs of weights are observed first (`observe`), errors are those of outputs, and the choice is by
//! the measured difference of the model's results (`loss`, `choose`). Without, what is least within the bytes is the
//! mean error: relative errors of weights, each as often as the weight has elements, so that no large weight is given up for
//! many small ones. Where time is limited, each choice is priced by the part of the program that it becomes (`price`), and the whole
//! is predicted again when it is chosen. A recipe fixes choices by name, so that a build is repeated without searching; it may also
//! say which structures are cut away first (`cuts`), and which values between weights become 8-bit codes (`codes`).

mod apply;
mod choose;
mod codes;
mod cuts;
mod goal;
mod levels;
mod loss;
mod observe;
mod price;
mod recipe;
mod samples;
mod segments;
mod sites;
mod work;

pub use levels::{packed, stacked, stacks};
pub use loss::{Difference, Distance, Spread};
pub use price::{Clock, Cost};
pub use recipe::{Budget, Entry, Goal, Level, Recipe};
pub use samples::{Failure, Program, Samples};
pub use work::Store;

use crate::methods::statistics::Statistics;
use crate::methods::{Candidate, MethodError};
use crate::search::knapsack::KnapsackError;
use apply::apply;
pub use apply::transfer;
pub use codes::{Activations, Coded, PRESETS, Preset, Scope};
pub use cuts::{Cut, Removed, Score, remove};
use goal::Choose;
use lapidary_ir::Module;
use lapidary_ir::ops::OpError;
use levels::{Kept, Keys, Pick, Tried};
use loss::Meter;
use price::{Costs, Time, price};
pub use sites::Weight;
use sites::{MIN_ELEMENTS, Site, bytes_of, find};
use std::collections::BTreeMap;
use std::time::Duration;
use work::Memory;

/// What was made of the weights.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was cut away before, one for each cut of the recipe, with the cut.
    pub cuts: Vec<(Cut, Removed)>,
    /// What became of the values between weights, where the recipe asks for codes.
    pub activations: Option<(Activations, Coded)>,
    /// Number of the module's values before it had terms.
    pub first_term: usize,
    /// Each weight that a choice was made for, in the order of the program.
    pub weights: Vec<Chosen>,
    /// Bytes of all weights before, and after.
    pub bytes: (u64, u64),
    /// What the choice was made by, and its lower bound within the budget: the predicted loss with data, the mean relative
    /// error of an element without; none with a recipe.
    pub bound: Option<(f64, f64)>,
    /// The least that `bound` would be about at other sizes: bytes of all weights, and predicted loss or mean error.
    pub front: Vec<(u64, f64)>,
    /// How far the results are from the original's, on the data.
    pub measured: Option<Measured>,
    /// Predicted nanoseconds of a run before, and after, where time was limited.
    pub latency_ns: Option<(f64, f64)>,
}

/// The measured difference from the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// What is compared.
    pub distance: Distance,
    /// The difference.
    pub difference: Difference,
    /// Samples that it was measured on, of those given.
    pub samples: (usize, usize),
}

/// What became of a weight.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// Rows (outputs) and columns (inputs).
    pub shape: [usize; 2],
    /// The model stores outputs as columns.
    pub by_columns: bool,
    /// The choice.
    pub level: Level,
    /// The term, without its bytes.
    pub encoding: String,
    /// Bytes before and after.
    pub bytes: (u64, u64),
    /// Relative error of the weights, ‖W - Ŵ‖² / ‖W‖², or of their outputs where their inputs were observed.
    pub error: f64,
    /// What the method assumed or repaired.
    pub assumptions: Vec<String>,
    /// Everything that the weight was tried with; nothing with a recipe.
    pub tried: Vec<Alternative>,
}

/// What a weight could have become.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// The choice that it would have been.
    pub level: Level,
    /// Its bytes.
    pub bytes: u64,
    /// Its error, as [`Chosen::error`].
    pub error: f64,
}

/// Why nothing was compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// There is no weight to compress.
    #[error("no weight has at least {MIN_ELEMENTS} elements and is a matrix, filters or a table")]
    NoWeights,
    /// A recipe names a method that there is not.
    #[error("there is no method `{0}`; there are: keep, {1}")]
    Unknown(String, String),
    /// A method cannot do what the recipe asks.
    #[error("`{weight}`: {method}: {error}")]
    Method {
        /// The weight.
        weight: String,
        /// The method.
        method: String,
        /// Why not.
        error: MethodError,
    },
    /// The budget is too small.
    #[error("the budget is {budget} bytes, the smallest that the methods reach is {least}")]
    Budget {
        /// Bytes asked.
        budget: u64,
        /// Least bytes.
        least: u64,
    },
    /// No choice is as fast as asked.
    #[error(
        "the latency asked for is {:.3} ms, the least that the methods are predicted to reach{} is {:.3} ms",
        asked_ns / 1e6, if *in_bytes { " within the size" } else { "" }, least_ns / 1e6
    )]
    Latency {
        /// Nanoseconds asked.
        asked_ns: f64,
        /// Least nanoseconds.
        least_ns: f64,
        /// Bytes are limited as well.
        in_bytes: bool,
    },
    /// Time is limited, and nothing predicts it, or it could not be.
    #[error("the time of a run cannot be predicted: {0}")]
    Clock(Failure),
    /// The model cannot be as near to the original as asked.
    #[error("the model is not as near to the original as asked: {0}")]
    Limit(String),
    /// A limit of the difference was given, but no data, or nothing to compare.
    #[error("{0}")]
    NoMeasure(&'static str),
    /// The user's data could not be run.
    #[error("calibration: {0}")]
    Data(Failure),
    /// What is kept between runs could not be written.
    #[error("the work folder: {0}")]
    Work(Failure),
    /// There is no such job.
    #[error("there is no job {0}; there are {1}")]
    Job(usize, usize),
    /// Jobs are to be put together, and one was not done.
    #[error("job {0} was not done")]
    Undone(usize),
    /// Values between weights cannot be codes as asked.
    #[error("activations: {0}")]
    Codes(String),
    /// Structures cannot be removed.
    #[error("cut `{0}`: {1}")]
    Cut(String, String),
    /// The choice failed.
    #[error(transparent)]
    Knapsack(#[from] KnapsackError),
    /// A weight does not decode.
    #[error("`{0}`: {1}")]
    Weight(String, String),
    /// The graph could not be changed.
    #[error("{}", .0.0)]
    Graph(OpError),
}

/// The weights of a module that may be compressed, in the order of the program.
pub fn weights(module: &Module) -> Vec<Weight> {
    find(module).iter().map(|s| s.described(false)).collect()
}

/// What compression works with.
pub struct Means<'a> {
    /// Data to look at.
    pub data: Option<&'a dyn Samples>,
    /// Where work is kept between runs.
    pub store: Option<&'a dyn Store>,
    /// Where what is needed again within this run is put if there is no `store`; in memory if there is neither.
    pub scratch: Option<&'a dyn Store>,
    /// Told what begins.
    pub progress: &'a dyn Fn(&str),
    /// Predicts times, where these are limited: weights are then also tried with encodings for speed.
    pub clock: Option<&'a Clock<'a>>,
    /// What each weight is tried with, in place of the usual: a file's format may hold some encodings only.
    pub levels: Option<&'a dyn Fn(&Weight) -> Vec<Level>>,
    /// How long to search for better choices by measured losses; a fixed number of steps, the same every time, if it is not said.
    pub search_time: Option<Duration>,
    /// Bytes of the moments of inputs that are gathered at a time, as `f32`: a model with more is observed piece by piece.
    pub pass_bytes: u64,
}

impl Default for Means<'_> {
    fn default() -> Self {
        Means {
            data: None,
            store: None,
            scratch: None,
            progress: &|_| (),
            clock: None,
            levels: None,
            search_time: None,
            pass_bytes: 1 << 29,
        }
    }
}

/// A module's weights, and where what is made of them goes.
struct Shop<'a> {
    module: &'a Module,
    sites: &'a [Site],
    means: &'a Means<'a>,
    kept: Kept<'a>,
    /// What each weight is tried with.
    ladders: Vec<Vec<Level>>,
}

impl<'a> Shop<'a> {
    fn new(
        module: &'a Module,
        sites: &'a [Site],
        means: &'a Means<'a>,
        memory: &'a Memory,
    ) -> Shop<'a> {
        let observed = observe::observed(module, sites, means).into_iter();
        let ladders = sites.iter().zip(observed);
        Shop {
            module,
            sites,
            means,
            kept: Kept {
                store: means.store.or(means.scratch).unwrap_or(memory),
                keys: Keys::of(module, means),
            },
            ladders: ladders.map(|(s, o)| levels::ladder(s, o, means)).collect(),
        }
    }

    /// What was tried with a weight before, if that is in a store that lasts.
    fn before(&self, site: usize) -> Result<Option<Vec<Tried>>, CompressError> {
        match self.means.store {
            Some(_) => self
                .kept
                .get(self.module, &self.sites[site], &self.ladders[site]),
            None => Ok(None),
        }
    }

    /// Shows these sites with what is known of their inputs, and gives back what was read of each.
    fn visit(
        &self,
        wanted: &[usize],
        mut work: impl FnMut(usize, Option<&Statistics>) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        let mut see = |i: usize, known: Option<&Statistics>| {
            (self.means.progress)(&format!("compress {}", self.sites[i].name));
            work(i, known)?;
            let bytes = bytes_of(self.module, &self.sites[i]);
            self.module.sources.release(bytes as usize);
            Ok(())
        };
        observe::visit(
            self.module,
            self.sites,
            wanted,
            self.means,
            self.kept,
            &mut see,
        )
    }

    /// Tries everything with each of these weights that it was not tried with before.
    fn try_all(&self, wanted: &[usize], keep: bool) -> Result<Vec<Vec<Tried>>, CompressError> {
        let mut tried = wanted
            .iter()
            .map(|&i| Ok((i, self.before(i)?)))
            .collect::<Result<BTreeMap<usize, Option<Vec<Tried>>>, CompressError>>()?;
        let left: Vec<usize> = wanted
            .iter()
            .copied()
            .filter(|i| tried[i].is_none())
            .collect();
        let kept = keep.then_some(self.kept);
        self.visit(&left, |i, known| {
            let (site, levels) = (&self.sites[i], &self.ladders[i]);
            let found = levels::try_all(self.module, site, levels, known, kept)?;
            tried.insert(i, Some(found));
            Ok(())
        })?;
        Ok(tried.into_values().flatten().collect())
    }

    /// Makes what is chosen, if it was not made before; `made` says what was, and may leave out anything.
    fn make(
        &self,
        chosen: &[Level],
        made: impl Fn(usize) -> Option<Candidate>,
    ) -> Result<Vec<Pick>, CompressError> {
        let (mut picks, mut left) = (vec![], vec![]);
        for (i, level) in chosen.iter().enumerate() {
            let mut candidate = made(i);
            if candidate.is_none() && !level.keeps() && self.means.store.is_some() {
                let levels = std::slice::from_ref(level);
                let before = self.kept.get(self.module, &self.sites[i], levels)?;
                candidate = before
                    .and_then(|t| t.into_iter().next())
                    .and_then(|t| t.candidate);
            }
            if candidate.is_none() && !level.keeps() {
                left.push(i);
            }
            picks.push(Pick {
                level: level.clone(),
                candidate,
            });
        }
        self.visit(&left, |i, known| {
            let site = &self.sites[i];
            let level = &chosen[i];
            picks[i].candidate = levels::make(self.module, site, level, known, self.kept)?;
            Ok(())
        })?;
        Ok(picks)
    }
}

/// Tries everything with the weight of this number in [`weights`], and keeps the result in the store, where [`compress`] finds it,
/// on whatever machine that was.
///
/// # Errors
/// There is no such job; or as [`compress`].
pub fn job(module: &Module, index: usize, means: &Means) -> Result<(), CompressError> {
    let sites = find(module);
    if index >= sites.len() {
        return Err(CompressError::Job(index, sites.len()));
    }
    let memory = Memory::default();
    let shop = Shop::new(module, &sites, means, &memory);
    shop.try_all(&[index], true).map(|_| ())
}

/// The numbers of the weights whose jobs were not done, or not kept.
///
/// # Errors
/// As [`job`].
pub fn missing(module: &Module, means: &Means) -> Result<Vec<usize>, CompressError> {
    let (sites, memory) = (find(module), Memory::default());
    let shop = Shop::new(module, &sites, means, &memory);
    let mut missing = vec![];
    for i in 0..sites.len() {
        if shop.before(i)?.is_none() {
            missing.push(i);
        }
    }
    Ok(missing)
}

/// Looks at the data, once for all jobs, and keeps what it says in the store.
///
/// # Errors
/// The data cannot be run, or the store not be written.
pub fn prepare(module: &Module, means: &Means) -> Result<(), CompressError> {
    match means.store {
        Some(store) => observe::keep_all(module, &find(module), means, store),
        None => Ok(()),
    }
}

/// Compresses the weights of a module towards a goal.
///
/// # Errors
/// The goal cannot be met, a weight does not decode, or the data cannot be run.
pub fn compress(module: &mut Module, goal: &Goal, means: &Means) -> Result<Report, CompressError> {
    let (changed, report) = compressed(module, goal, means)?;
    *module = changed;
    Ok(report)
}

fn compressed(
    module: &Module,
    goal: &Goal,
    means: &Means,
) -> Result<(Module, Report), CompressError> {
    let (sites, memory) = (find(module), Memory::default());
    if sites.is_empty() {
        return Err(CompressError::NoWeights);
    }
    let time = Time::of(module, goal, means)?;
    let shop = Shop::new(module, &sites, means, &memory);
    let all: Vec<usize> = (0..sites.len()).collect();
    // What is measured must be decoded again and again, and what is priced lowered; what is neither, once, if it is chosen.
    let keep =
        means.store.is_some() || time.is_some() || loss::is_measured(module, &sites, means.data);
    let tried = shop.try_all(&all, keep)?;
    let mut prices = vec![];
    if let Some(time) = &time {
        for (i, tried) in tried.iter().enumerate() {
            (means.progress)(&format!("predict {}", sites[i].name));
            prices.push(price(module, &sites, i, tried, time.clock)?);
        }
    }
    let costs = Costs::new(&tried, &prices);
    let meter = match means.data {
        Some(data) => Meter::new(module, &sites, data, means.progress)?,
        None => None,
    };
    let mut choose = Choose::new(module, &sites, &tried, &costs, goal, meter, means)?;
    let mut left = time.as_ref().map(|t| t.left(&costs));
    for round in 1.. {
        let (chosen, bound, measured) = choose.within(left)?;
        let of = |i: usize| &tried[i][chosen[i]];
        let levels: Vec<Level> = all.iter().map(|&i| of(i).level.clone()).collect();
        let picks = shop.make(&levels, |i| of(i).candidate.clone())?;
        let mut changed = module.clone();
        let mut report = apply(&mut changed, &sites, picks)?;
        (report.bound, report.measured) = (Some(bound), measured);
        for (i, of_weight) in prices.iter().enumerate() {
            report.stored(i, of_weight[chosen[i]].bytes);
        }
        if let (Some(time), Some(left)) = (&time, &mut left) {
            let ns = time.of_run(&changed)?;
            report.latency_ns = Some((time.whole, ns));
            // Parts are not quite the whole: what is missing is taken from the budget.
            let over = ns - time.asked;
            if over > 0.0 && round < ROUNDS {
                *left -= over;
                continue;
            }
            if over > 0.0 {
                return Err(CompressError::Latency {
                    asked_ns: time.asked,
                    least_ns: ns,
                    in_bytes: goal.budget.is_some(),
                });
            }
        }
        report.front = choose.front();
        let alternative = |t: &Tried| Alternative {
            level: t.level.clone(),
            bytes: t.bytes,
            error: t.error,
        };
        for (weight, tried) in report.weights.iter_mut().zip(&tried) {
            weight.tried = tried.iter().map(alternative).collect();
        }
        return Ok((changed, report));
    }
    unreachable!("the last round returns")
}

/// Choices that are made at most, until the whole is predicted to be as fast as asked.
const ROUNDS: usize = 6;

/// Compresses as a recipe says; weights that it does not name stay as they are. Methods that look at the inputs of weights
/// need the data that the recipe was made with.
///
/// # Errors
/// As [`compress`], and the recipe names what there is not.
pub fn follow(
    module: &mut Module,
    recipe: &Recipe,
    means: &Means,
) -> Result<Report, CompressError> {
    let whole = sites::stored(module);
    let mut smaller = module.clone();
    let mut cuts = vec![];
    for cut in &recipe.cuts {
        let removed = cuts::choose(&smaller, cut, means)?;
        cuts::remove(&mut smaller, &removed)?;
        cuts.push((cut.clone(), removed));
    }
    let (sites, memory) = (find(&smaller), Memory::default());
    let shop = Shop::new(&smaller, &sites, means, &memory);
    let level = |site: &Site| {
        let fits = |e: &&Entry| recipe::fits(&e.name, &site.name);
        let entry = recipe.weights.iter().find(fits);
        entry.map_or_else(Level::keep, |e| e.level.clone())
    };
    let levels: Vec<Level> = sites.iter().map(level).collect();
    let picks = shop.make(&levels, |_| None)?;
    let mut report = apply(&mut smaller, &sites, picks)?;
    report.bytes.0 = whole;
    report.cuts = cuts;
    if let Some(asked) = &recipe.activations {
        let coded = codes::encode(&mut smaller, asked, means)?;
        report.measured = coded.measured;
        report.bytes.1 = sites::stored(&smaller);
        report.activations = Some((asked.clone(), coded));
    }
    *module = smaller;
    Ok(report)
}

impl Report {
    /// A weight that was changed takes so many bytes in the program: some kernels read it in a form of their own.
    fn stored(&mut self, index: usize, bytes: u64) {
        let weight = &mut self.weights[index];
        if !weight.level.keeps() {
            self.bytes.1 = self.bytes.1 - weight.bytes.1 + bytes;
            weight.bytes.1 = bytes;
        }
    }

    /// The recipe that gives the same again.
    pub fn recipe(&self) -> Recipe {
        let entry = |c: &Chosen| Entry {
            name: c.name.clone(),
            level: c.level.clone(),
        };
        // Weights that no entry made anything of became codes with the values.
        let named = |c: &&Chosen| self.activations.is_none() || !c.level.keeps();
        Recipe {
            cuts: self.cuts.iter().map(|(cut, _)| cut.clone()).collect(),
            activations: self.activations.as_ref().map(|(asked, _)| asked.clone()),
            weights: self.weights.iter().filter(named).map(entry).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
