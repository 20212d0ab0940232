//! One level for each weight, by what it does to the model's results.
//!
//! The loss of a model is not a sum over its weights, but nearly so where each loss is small. So weights are probed: each
//! alone gets a few levels, with all others original, and the model's loss is measured; between them it is
//! interpolated, as a power of the weight's own error. A knapsack over the predicted losses is the start, and
//! an evolutionary search over the measured loss refines it. (Probing once more around the choice was tried: predictions are
//! within a tenth of what is measured, and the differences of neighbouring levels are too small to say more.)
//! Sources: Frantar, Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", section 3; Sieberling et al., "EvoPress: Towards
//! Optimal Dynamic Model Compression via Evolutionary Search", section 3.

use super::CompressError;
use super::levels::Tried;
use super::loss::{Difference, Meter};
use super::price::Costs;
use crate::search::evopress::{self, EvoProblem, EvoSettings};
use crate::search::knapsack::{self, Choice, KnapsackError, Solution};
use std::time::{Duration, Instant};

/// Errors of a weight near which it is probed.
const PROBED: [f64; 3] = [0.15, 0.015, 0.0015];

/// Losses below this are rounding.
const LEAST_LOSS: f64 = 1e-9;

/// Samples that a probe runs on at most; a choice is measured on all.
const PROBE_SAMPLES: usize = 4;

/// The fewest bytes between these that are enough: `attempt` gives what it finds with so many at most, if that is good enough, and
/// its bytes. None if not even the most are.
pub(super) fn fewest<T>(
    [mut low, mut high]: [f64; 2],
    mut attempt: impl FnMut(f64) -> Result<Option<(f64, T)>, CompressError>,
) -> Result<Option<T>, CompressError> {
    let mut best = None;
    for step in 0..12 {
        let budget = if step == 0 { high } else { (low + high) / 2.0 };
        match attempt(budget) {
            Ok(Some((bytes, found))) => {
                high = budget.min(bytes);
                best = Some(found);
            }
            Ok(None) if step == 0 => break,
            Ok(None) => low = budget,
            // Few bytes may take more time than there is.
            Err(CompressError::Knapsack(KnapsackError::Budget { .. })) if step > 0 => low = budget,
            Err(e) => return Err(e),
        }
        if high - low < 0.002 * high {
            break;
        }
    }
    Ok(best)
}

/// A choice, and how good it is.
pub(super) struct Outcome {
    /// Each weight's level.
    pub levels: Vec<usize>,
    /// The predicted loss, and the least that the prediction allows within the budget.
    pub predicted: (f64, f64),
    /// The measured one.
    pub measured: Difference,
}

/// The options of a weight; `error` is what each adds to the whole.
fn options(tried: &[Tried], costs: &[Vec<f64>], error: impl Fn(&Tried) -> f64) -> Vec<Choice> {
    let choice = |(t, costs): (&Tried, &Vec<f64>)| Choice {
        error: error(t),
        costs: costs.clone(),
    };
    tried.iter().zip(costs).map(choice).collect()
}

/// Chooses by predicted errors alone: `error(site, level)` is what a choice adds to the whole.
pub(super) fn by_sum(
    tried: &[Vec<Tried>],
    costs: &Costs,
    budgets: &[f64],
    error: impl Fn(usize, &Tried) -> f64,
) -> Result<Solution, KnapsackError> {
    let of = |(site, (tried, costs)): (usize, (&Vec<Tried>, &Vec<Vec<f64>>))| {
        options(tried, costs, |t| error(site, t))
    };
    let items: Vec<Vec<Choice>> = tried.iter().zip(&costs.0).enumerate().map(of).collect();
    let budgets: Vec<f64> = budgets.iter().map(|b| b.max(0.0)).collect();
    knapsack::solve(&items, &budgets, knapsack::Limits::default())
}

/// What a weight's error costs the model: points of (error, loss), between which the logarithms are interpolated.
#[derive(Clone, Debug)]
struct Curve(Vec<(f64, f64)>);

impl Curve {
    fn loss(&self, error: f64) -> f64 {
        if error <= 0.0 {
            return 0.0;
        }
        let x = error.ln();
        let after = self.0.partition_point(|p| p.0 < x);
        let y = match (after.checked_sub(1).map(|i| self.0[i]), self.0.get(after)) {
            (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0).max(1e-12),
            // Outside of what was probed losses are as errors are.
            (Some(a), None) => a.1 + (x - a.0),
            (None, Some(b)) => b.1 + (x - b.0),
            (None, None) => x,
        };
        y.exp()
    }
}

/// The levels of a weight of which none is beaten in error and all costs by another, by rising bytes.
fn frontier(tried: &[Tried], costs: &[Vec<f64>]) -> Vec<usize> {
    knapsack::pareto(&options(tried, costs, |t| t.error))
}

/// Searches levels by measured losses.
pub(super) struct Search<'a, 's> {
    tried: &'a [Vec<Tried>],
    costs: &'a Costs,
    meter: Meter<'s>,
    /// For each weight the levels worth a choice, by rising bytes.
    frontiers: Vec<Vec<usize>>,
    original: Vec<usize>,
    curves: Vec<Curve>,
    progress: &'a dyn Fn(&str),
}

impl<'a, 's> Search<'a, 's> {
    /// Probes each weight.
    pub fn new(
        tried: &'a [Vec<Tried>],
        costs: &'a Costs,
        meter: Meter<'s>,
        progress: &'a dyn Fn(&str),
    ) -> Result<Search<'a, 's>, CompressError> {
        let pairs = tried.iter().zip(&costs.0);
        let frontiers: Vec<Vec<usize>> = pairs.map(|(t, c)| frontier(t, c)).collect();
        // Of the exact levels the smallest comes first.
        let exact = |(tried, f): (&Vec<Tried>, &Vec<usize>)| {
            let error = |l: usize| tried[l].error;
            let least = f.iter().copied();
            least
                .min_by(|&a, &b| error(a).total_cmp(&error(b)))
                .unwrap_or(0)
        };
        let original = tried.iter().zip(&frontiers).map(exact).collect();
        let mut search = Search {
            tried,
            costs,
            meter,
            frontiers,
            original,
            curves: vec![],
            progress,
        };
        for site in 0..tried.len() {
            (search.progress)(&format!("probe: weight {} of {}", site + 1, tried.len()));
            let curve = search.probe(site)?;
            search.curves.push(curve);
        }
        Ok(search)
    }

    fn stride(&self) -> usize {
        self.meter.samples().div_ceil(PROBE_SAMPLES)
    }

    fn probe(&mut self, site: usize) -> Result<Curve, CompressError> {
        let tried = &self.tried[site];
        let distance = |l: usize, to: f64| (tried[l].error / to).ln().abs();
        let lossy: Vec<usize> = self.frontiers[site]
            .iter()
            .copied()
            .filter(|&l| tried[l].error > 0.0)
            .collect();
        let mut levels: Vec<usize> = PROBED
            .iter()
            .filter_map(|&e| {
                let near = lossy.iter().copied();
                near.min_by(|&a, &b| distance(a, e).total_cmp(&distance(b, e)))
            })
            .collect();
        levels.sort_unstable();
        levels.dedup();
        let stride = self.stride();
        let mut points = vec![];
        for level in levels {
            let mut choice = self.original.clone();
            choice[site] = level;
            let loss = self.meter.measure(self.tried, &choice, 0, stride)?.loss;
            points.push((tried[level].error.ln(), loss.max(LEAST_LOSS).ln()));
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Curve(points))
    }

    fn predicted(&self, site: usize, level: usize) -> f64 {
        self.curves[site].loss(self.tried[site][level].error)
    }

    /// The least predicted loss within budgets.
    pub fn predict(&self, budgets: &[f64]) -> Result<Solution, KnapsackError> {
        by_sum(self.tried, self.costs, budgets, |site, t| {
            self.curves[site].loss(t.error)
        })
    }

    fn measure(&mut self, solution: &Solution) -> Result<Outcome, CompressError> {
        let measured = self.meter.measure(self.tried, &solution.chosen, 0, 1)?;
        Ok(Outcome {
            levels: solution.chosen.clone(),
            predicted: (solution.error, solution.bound),
            measured,
        })
    }

    /// The best that was found within budgets, of which the first is of bytes; searched for once, or again and again for so long.
    pub fn within(
        &mut self,
        budgets: &[f64],
        time: Option<Duration>,
    ) -> Result<Outcome, CompressError> {
        let started = Instant::now();
        let solution = self.predict(budgets)?;
        let start = self.measure(&solution)?;
        let mut best = self.evolve(start, budgets, 0)?;
        let mut seed = 1;
        while time.is_some_and(|time| started.elapsed() < time) {
            best = self.evolve(best, budgets, seed)?;
            seed += 1;
        }
        Ok(best)
    }

    /// The fewest bytes that meet what `fits` asks of the measured difference, within the other budgets.
    pub fn least(
        &mut self,
        others: &[f64],
        fits: impl Fn(&Difference) -> bool,
    ) -> Result<Option<Outcome>, CompressError> {
        let bytes = |search: &Self, pick: &dyn Fn(&[usize]) -> usize| -> f64 {
            let of = |(costs, f): (&Vec<Vec<f64>>, &Vec<usize>)| costs[pick(f)][0];
            search.costs.0.iter().zip(&search.frontiers).map(of).sum()
        };
        let (least, most) = (bytes(self, &|f| f[0]), bytes(self, &|f| f[f.len() - 1]));
        fewest([least, most], |budget| {
            let solution = self.predict(&[&[budget], others].concat())?;
            let found = self.measure(&solution)?;
            (self.progress)(&format!(
                "{budget:.0} bytes: loss {:.5}",
                found.measured.loss
            ));
            Ok(fits(&found.measured).then_some((solution.costs[0], found)))
        })
    }

    /// Exchanges levels as long as the measured loss falls.
    fn evolve(
        &mut self,
        start: Outcome,
        budgets: &[f64],
        seed: u64,
    ) -> Result<Outcome, CompressError> {
        let (tried, frontiers, costs) = (self.tried, self.frontiers.clone(), self.costs);
        let place = |(site, &level): (usize, &usize)| {
            let f = &frontiers[site];
            let own = f.iter().position(|&l| l == level);
            let bytes = |l: usize| costs.0[site][l][0];
            let near = || f.partition_point(|&l| bytes(l) < bytes(level));
            own.unwrap_or_else(near).min(f.len() - 1)
        };
        let begin: Vec<usize> = start.levels.iter().enumerate().map(place).collect();
        let levels = |places: &[usize]| -> Vec<usize> {
            places.iter().zip(&frontiers).map(|(&p, f)| f[p]).collect()
        };
        let pairs = costs.0.iter().zip(&frontiers);
        let problem = EvoProblem {
            costs: pairs
                .map(|(c, f)| f.iter().map(|&l| c[l][0] as u64).collect())
                .collect(),
            groups: vec![(0..tried.len()).collect()],
            budget: budgets[0].max(0.0) as u64,
        };
        let over = |levels: &[usize]| {
            let mut others = budgets.iter().enumerate().skip(1);
            others.any(|(b, &budget)| costs.sum(levels, b) > budget)
        };
        if problem.cost(&begin) > problem.budget || over(&levels(&begin)) {
            return Ok(start);
        }
        let settings = EvoSettings {
            generations: 12,
            offspring: 12,
            survivors: vec![3, 1],
            seed,
        };
        let (all, mut failed) = (self.meter.samples(), None);
        let meter = &mut self.meter;
        let progress = self.progress;
        let found = evopress::search(&problem, &begin, &settings, |places, generation, stage| {
            if over(&levels(places)) {
                return f64::INFINITY;
            }
            progress(&format!(
                "evolve: generation {} of {}",
                generation + 1,
                settings.generations
            ));
            let (first, stride) = if stage == 0 {
                (generation, all)
            } else {
                (0, 2)
            };
            match meter.measure(tried, &levels(places), first, stride) {
                Ok(d) => d.loss,
                Err(e) => {
                    failed.get_or_insert(e);
                    f64::NAN
                }
            }
        });
        if let Some(e) = failed {
            return Err(e);
        }
        // What cannot be searched is left as it is.
        let Ok(found) = found else { return Ok(start) };
        let levels = levels(&found.levels);
        let measured = self.meter.measure(tried, &levels, 0, 1)?;
        if over(&levels) || measured.loss >= start.measured.loss {
            return Ok(start);
        }
        let predicted = levels
            .iter()
            .enumerate()
            .map(|(s, &l)| self.predicted(s, l))
            .sum();
        Ok(Outcome {
            levels,
            predicted: (predicted, start.predicted.1.min(predicted)),
            measured,
        })
    }

    /// What losses are.
    pub fn meter(&self) -> &Meter<'s> {
        &self.meter
    }
}
