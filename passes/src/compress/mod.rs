//! Compression within a budget: weights get the encodings with the least loss that fit it.
//!
//! `before => after`: `matmul(x, dense W)` becomes `matmul(x, transpose(affine{..; int}))`, and so for each weight that is
//! worth it. Every method proposes encodings of every weight, each with its measured error and its stored bytes; a
//! multiple-choice knapsack picks one for each weight. Its lower bound says how far from the best choice it can be at most.
//!
//! With data ([`Samples`]) the inputs of weights are observed first (`observe`), errors are those of outputs, and the choice is by
//! the measured difference of the model's results (`loss`, `choose`). Without, what is least within the bytes is the
//! mean error: relative errors of weights, each as often as the weight has elements, so that no large weight is given up for
//! many small ones. A recipe fixes choices by name, so that a build is repeated without searching.

mod apply;
mod choose;
mod levels;
mod loss;
mod observe;
mod recipe;
mod samples;
mod sites;
mod work;

pub use loss::{Difference, Distance};
pub use recipe::{Budget, Entry, Goal, Level, Recipe};
pub use samples::{Failure, Program, Samples};
pub use work::Store;

use crate::methods::MethodError;
use crate::search::knapsack::KnapsackError;
use apply::apply;
pub use apply::transfer;
use choose::{Search, by_sum};
use lapidary_ir::Module;
use lapidary_ir::ops::OpError;
use levels::{Pick, Tried, again, try_all};
use loss::Meter;
pub use sites::Weight;
use sites::{MIN_ELEMENTS, Site, bytes_of, find, stored};

/// What was made of the weights.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each weight that a choice was made for, in the order of the program.
    pub weights: Vec<Chosen>,
    /// Bytes of all weights before, and after.
    pub bytes: (u64, u64),
    /// What the choice was made by, and its lower bound within the budget: the predicted loss with data, the mean relative
    /// error of an element without; none with a recipe.
    pub bound: Option<(f64, f64)>,
    /// How far the results are from the original's, on the data.
    pub measured: Option<Measured>,
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
    /// Told what begins.
    pub progress: &'a dyn Fn(&str),
    /// What each weight is tried with, in place of the usual: a file's format may hold some encodings only.
    pub levels: Option<&'a dyn Fn(&Weight) -> Vec<Level>>,
}

impl Default for Means<'_> {
    fn default() -> Self {
        Means {
            data: None,
            store: None,
            progress: &|_| (),
            levels: None,
        }
    }
}

/// Tries everything with the weight of this number in [`weights`], and keeps the result in the store, where [`compress`] finds it,
/// on whatever machine that was.
///
/// # Errors
/// There is no such job; or as [`compress`].
pub fn job(module: &Module, index: usize, means: &Means) -> Result<(), CompressError> {
    let sites = find(module);
    let site = sites
        .get(index)
        .ok_or(CompressError::Job(index, sites.len()))?;
    let statistics = observe::observe(module, &sites, means)?;
    (means.progress)(&format!("compress {}", site.name));
    try_all(module, site, statistics[index].as_deref(), means).map(|_| ())
}

/// The numbers of the weights whose jobs were not done, or not kept.
///
/// # Errors
/// As [`job`].
pub fn missing(module: &Module, means: &Means) -> Result<Vec<usize>, CompressError> {
    let sites = find(module);
    let statistics = observe::observe(module, &sites, means)?;
    let mut missing = vec![];
    for (i, (site, known)) in sites.iter().zip(&statistics).enumerate() {
        if !levels::is_kept(module, site, known.as_deref(), means)? {
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
    observe::observe(module, &find(module), means).map(|_| ())
}

/// Compresses the weights of a module towards a goal.
///
/// # Errors
/// The goal cannot be met, a weight does not decode, or the data cannot be run.
pub fn compress(module: &mut Module, goal: &Goal, means: &Means) -> Result<Report, CompressError> {
    let sites = find(module);
    if sites.is_empty() {
        return Err(CompressError::NoWeights);
    }
    let statistics = observe::observe(module, &sites, means)?;
    let mut tried = vec![];
    for (site, known) in sites.iter().zip(&statistics) {
        (means.progress)(&format!("compress {}", site.name));
        tried.push(try_all(module, site, known.as_deref(), means)?);
        module.sources.release(bytes_of(module, site) as usize);
    }
    let meter = match means.data {
        Some(data) => Meter::new(module, &sites, data, means.progress)?,
        None => None,
    };
    let (levels, bound, measured) = match meter {
        Some(meter) => by_loss(module, &sites, &tried, goal, meter, means)?,
        None => by_error(module, &sites, &tried, goal)?,
    };
    let mut report = apply(module, &sites, |module, i| {
        let chosen = &tried[i][levels[i]];
        let level = chosen.level.clone();
        match &chosen.candidate {
            Some(candidate) => Ok(Pick {
                level,
                candidate: Some(candidate.clone()),
            }),
            None => {
                (means.progress)(&format!("compress {}", sites[i].name));
                again(module, &sites[i], statistics[i].as_ref(), level)
            }
        }
    })?;
    (report.bound, report.measured) = (Some(bound), measured);
    Ok(report)
}

type Choice = (Vec<usize>, (f64, f64), Option<Measured>);

/// Bytes that the weights which may be compressed may take.
fn allowed(module: &Module, sites: &[Site], budget: Budget) -> f64 {
    let (all, own) = (
        stored(module),
        sites.iter().map(|s| bytes_of(module, s)).sum::<u64>(),
    );
    let rest = (all - own) as f64;
    match budget {
        Budget::Share(share) => all as f64 * share - rest,
        Budget::Bytes(bytes) => bytes as f64 - rest,
        Budget::Bits(bits) => sites.iter().map(|s| s.elements() as f64).sum::<f64>() * bits / 8.0,
    }
    .max(0.0)
}

/// What the user hears when a budget is too small: of all weights, as budgets are stated.
fn too_small(
    module: &Module,
    sites: &[Site],
    allowed: f64,
) -> impl Fn(KnapsackError) -> CompressError {
    let own: u64 = sites.iter().map(|s| bytes_of(module, s)).sum();
    let rest = stored(module) - own;
    move |e| match e {
        KnapsackError::Budget { least, .. } => CompressError::Budget {
            budget: allowed as u64 + rest,
            least: least.iter().sum::<f64>() as u64 + rest,
        },
        other => other.into(),
    }
}

/// The least mean error within the budget.
fn by_error(
    module: &Module,
    sites: &[Site],
    tried: &[Vec<Tried>],
    goal: &Goal,
) -> Result<Choice, CompressError> {
    if goal.limits() {
        return Err(CompressError::NoMeasure(
            "how near the results are to the original's can be asked for only with data, of a model that gives floats and whose weights \
             have less than 4 GiB as f32",
        ));
    }
    let budget = goal
        .budget
        .ok_or(CompressError::NoMeasure("there is no budget"))?;
    let elements: f64 = sites.iter().map(|s| s.elements() as f64).sum();
    let allowed = allowed(module, sites, budget);
    let solution = by_sum(tried, allowed, |i, t| {
        t.error * sites[i].elements() as f64 / elements
    })
    .map_err(too_small(module, sites, allowed))?;
    Ok((solution.chosen, (solution.error, solution.bound), None))
}

/// The least measured loss within the budget, or the fewest bytes within the limits.
fn by_loss(
    module: &Module,
    sites: &[Site],
    tried: &[Vec<Tried>],
    goal: &Goal,
    meter: Meter,
    means: &Means,
) -> Result<Choice, CompressError> {
    if goal.limits() && meter.distance() == Distance::Squares {
        return Err(CompressError::NoMeasure(
            "divergence and agreement are of predictions, and no result of the model is known to be one: name it `logits`",
        ));
    }
    let mut search = Search::new(tried, meter, means.progress)?;
    let outcome = match goal.budget {
        Some(budget) => {
            let allowed = allowed(module, sites, budget);
            let outcome = search.within(allowed);
            outcome.map_err(|e| match e {
                CompressError::Knapsack(e) => too_small(module, sites, allowed)(e),
                other => other,
            })?
        }
        None => search
            .least(|d| goal.fits(d))?
            .ok_or_else(|| CompressError::Limit("not even the largest encodings are".into()))?,
    };
    if !goal.fits(&outcome.measured) {
        return Err(CompressError::Limit(format!(
            "within the budget its divergence is {:.4} and its agreement {:.4}",
            outcome.measured.loss,
            outcome.measured.agreement.unwrap_or(0.0)
        )));
    }
    let measured = Measured {
        distance: search.meter().distance(),
        difference: outcome.measured,
        samples: (
            search.meter().samples(),
            means.data.map_or(0, |d| d.count()),
        ),
    };
    Ok((outcome.levels, outcome.predicted, Some(measured)))
}

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
    let sites = find(module);
    let statistics = observe::observe(module, &sites, means)?;
    apply(module, &sites, |module, i| {
        let fits = |e: &&Entry| recipe::fits(&e.name, &sites[i].name);
        let entry = recipe.weights.iter().find(fits);
        let level = entry.map_or_else(Level::keep, |e| e.level.clone());
        (means.progress)(&format!("compress {}", sites[i].name));
        again(module, &sites[i], statistics[i].as_ref(), level)
    })
}

impl Report {
    /// The recipe that gives the same again.
    pub fn recipe(&self) -> Recipe {
        let entry = |c: &Chosen| Entry {
            name: c.name.clone(),
            level: c.level.clone(),
        };
        Recipe {
            weights: self.weights.iter().map(entry).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
