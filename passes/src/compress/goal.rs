//! The choice that a goal asks for: within which budgets, by which errors, and what is said where there is none.

use super::choose::{Search, by_sum, fewest};
use super::levels::Tried;
use super::loss::{Distance, Meter};
use super::price::Costs;
use super::recipe::{Budget, Goal};
use super::sites::{Site, bytes_of, stored};
use super::{CompressError, Means, Measured};
use crate::search::knapsack::{KnapsackError, Solution};
use lapidary_ir::Module;
use std::time::Duration;

/// A level for each weight; what it was made by, and its lower bound; what was measured.
pub(super) type Choice = (Vec<usize>, (f64, f64), Option<Measured>);

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

/// Chooses a level for each weight.
pub(super) struct Choose<'a, 's> {
    module: &'a Module,
    sites: &'a [Site],
    tried: &'a [Vec<Tried>],
    costs: &'a Costs,
    goal: &'a Goal,
    /// By measured losses; else by errors of weights.
    search: Option<Search<'a, 's>>,
    /// How long better choices are searched for; a fixed number of steps if it is not said.
    search_time: Option<Duration>,
    /// Samples that were given.
    given: usize,
}

impl<'a, 's> Choose<'a, 's> {
    /// With a meter, weights are probed first.
    pub fn new(
        module: &'a Module,
        sites: &'a [Site],
        tried: &'a [Vec<Tried>],
        costs: &'a Costs,
        goal: &'a Goal,
        meter: Option<Meter<'s>>,
        means: &'a Means,
    ) -> Result<Choose<'a, 's>, CompressError> {
        let of = |distance| meter.as_ref().is_some_and(|m| m.distance() == distance);
        if goal.limits_predictions() && of(Distance::Squares) {
            return Err(CompressError::NoMeasure(
                "divergence and agreement are of predictions, and no result of the model is known to be one: name it `logits`",
            ));
        }
        if goal.max_error.is_some() && of(Distance::Divergence) {
            return Err(CompressError::NoMeasure(
                "the model's results are predictions, whose difference is a divergence: limit that, or their agreement",
            ));
        }
        if goal.limits_predictions() && meter.is_none() {
            return Err(CompressError::NoMeasure(
                "how near the results are to the original's can be asked for only with data, of a model that gives floats and whose \
                 weights have less than 4 GiB as f32",
            ));
        }
        let search = match meter {
            Some(meter) => Some(Search::new(tried, costs, meter, means.progress)?),
            None => None,
        };
        Ok(Choose {
            module,
            sites,
            tried,
            costs,
            goal,
            search,
            search_time: means.search_time,
            given: means.data.map_or(0, |d| d.count()),
        })
    }

    /// The best choice of which weights take so many nanoseconds at most.
    pub fn within(&mut self, ns: Option<f64>) -> Result<Choice, CompressError> {
        let bytes = match self.goal.budget {
            Some(budget) => Some(allowed(self.module, self.sites, budget)),
            // Only time is limited.
            None if !self.goal.limits() => Some(self.costs.most()[0]),
            None => None,
        };
        let found = match (self.search.is_some(), bytes) {
            (false, bytes) => self.by_error(bytes, ns),
            (true, bytes) => self.by_loss(bytes, ns),
        };
        found.map_err(|e| match e {
            CompressError::Knapsack(e) => self.too_small(bytes, ns, e),
            other => other,
        })
    }

    /// The least mean error within the budgets, or the fewest bytes within the limit.
    fn by_error(&self, bytes: Option<f64>, ns: Option<f64>) -> Result<Choice, CompressError> {
        let most = self.goal.max_error.unwrap_or(f64::INFINITY);
        let within = |bytes: f64| -> Result<Solution, CompressError> {
            let budgets: Vec<f64> = [bytes].into_iter().chain(ns).collect();
            Ok(self.predict(&budgets)?)
        };
        let solution = match bytes {
            Some(bytes) => Some(within(bytes)?).filter(|s| s.error <= most),
            None => fewest(self.range(), |budget| {
                let solution = within(budget)?;
                Ok((solution.error <= most).then_some((solution.costs[0], solution)))
            })?,
        };
        let solution = solution.ok_or_else(|| {
            CompressError::Limit(match bytes {
                Some(_) => format!("within the budget the mean error of weights is above {most:e}"),
                None => "not even the largest encodings are".into(),
            })
        })?;
        Ok((solution.chosen, (solution.error, solution.bound), None))
    }

    /// The least measured loss within the budgets, or the fewest bytes within the limits.
    fn by_loss(&mut self, bytes: Option<f64>, ns: Option<f64>) -> Result<Choice, CompressError> {
        let goal = self.goal;
        let Some(search) = &mut self.search else {
            return Err(CompressError::NoMeasure("there is no data"));
        };
        let others: Vec<f64> = ns.into_iter().collect();
        let outcome = match bytes {
            Some(bytes) => search.within(&[&[bytes], &others[..]].concat(), self.search_time)?,
            None => search
                .least(&others, |d| goal.fits(d))?
                .ok_or_else(|| CompressError::Limit("not even the largest encodings are".into()))?,
        };
        if !goal.fits(&outcome.measured) {
            let loss = outcome.measured.loss;
            return Err(CompressError::Limit(match outcome.measured.agreement {
                Some(agreement) => format!(
                    "within the budget its divergence is {loss:.4} and its agreement {agreement:.4}"
                ),
                None => format!("within the budget the error of its results is {loss:.2e}"),
            }));
        }
        let measured = Measured {
            distance: search.meter().distance(),
            difference: outcome.measured,
            samples: (search.meter().samples(), self.given),
        };
        Ok((outcome.levels, outcome.predicted, Some(measured)))
    }

    /// The least predicted loss, or mean error, at some sizes from the smallest to the original's: bytes of all weights, and loss.
    pub fn front(&self) -> Vec<(u64, f64)> {
        const POINTS: i32 = 24;
        let [least, most] = self.range();
        let rest = stored(self.module) - self.own_bytes();
        let point = |k: i32| {
            let share = f64::from(k) / f64::from(POINTS - 1);
            let budget = least * (most / least.max(1.0)).powf(share);
            // Rounding must not forbid the smallest choice, and nothing but bytes is limited.
            let mut budgets = self.costs.most();
            budgets[0] = budget * (1.0 + 1e-9);
            let solution = self.predict(&budgets).ok()?;
            Some((solution.costs[0] as u64 + rest, solution.error))
        };
        let mut front: Vec<(u64, f64)> = (0..POINTS).filter_map(point).collect();
        front.dedup();
        front
    }

    /// The fewest and the most bytes that weights may become.
    fn range(&self) -> [f64; 2] {
        let bytes = |pick: fn(f64, f64) -> f64, from: f64| -> f64 {
            let of = |costs: &Vec<Vec<f64>>| costs.iter().map(|c| c[0]).fold(from, pick);
            self.costs.0.iter().map(of).sum()
        };
        [bytes(f64::min, f64::INFINITY), bytes(f64::max, 0.0)]
    }

    /// By measured losses where there are any, else by errors.
    fn predict(&self, budgets: &[f64]) -> Result<Solution, KnapsackError> {
        match &self.search {
            Some(search) => search.predict(budgets),
            None => {
                let elements: f64 = self.sites.iter().map(|s| s.elements() as f64).sum();
                by_sum(self.tried, self.costs, budgets, |i, t| {
                    t.error * self.sites[i].elements() as f64 / elements
                })
            }
        }
    }

    fn own_bytes(&self) -> u64 {
        self.sites.iter().map(|s| bytes_of(self.module, s)).sum()
    }

    /// What the user hears when a budget is too small: of all weights, and of whole runs, as budgets are stated.
    fn too_small(&self, bytes: Option<f64>, ns: Option<f64>, e: KnapsackError) -> CompressError {
        let KnapsackError::Budget { least, budgets } = e else {
            return e.into();
        };
        let rest = stored(self.module) - self.own_bytes();
        match (bytes, ns, self.goal.latency_ns) {
            (Some(bytes), ns, _) if ns.is_none() || least[0] > budgets[0] => {
                CompressError::Budget {
                    budget: bytes as u64 + rest,
                    least: least[0] as u64 + rest,
                }
            }
            (_, Some(ns), Some(asked_ns)) => CompressError::Latency {
                asked_ns,
                // What is not of weights takes the difference.
                least_ns: asked_ns - ns + least.last().copied().unwrap_or(0.0),
                in_bytes: self.goal.budget.is_some(),
            },
            _ => KnapsackError::Budget { least, budgets }.into(),
        }
    }
}
