//! Evolutionary search over levels, by a fitness that measures the whole.
//!
//! Errors of layers do not add up to the loss of a model, so a choice by sums is a start and no more. A *level* is a step
//! of compression of one item; levels are spaced so that one item's step up pays for another's step down. Each generation
//! exchanges a few such steps in copies of the parent, measures the copies in stages (each on more data than the one
//! before, fewer copies in each), and keeps the best of what is left and the parent.
//! Source: Sieberling et al., "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search", section 3.

use lapidary_ir::random::SplitMix64;
use std::collections::BTreeSet;

/// Settings of the search; the published ones for bit widths are the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvoSettings {
    /// Generations.
    pub generations: usize,
    /// Copies of the parent in each generation.
    pub offspring: usize,
    /// How many are left after each stage; the last is 1.
    pub survivors: Vec<usize>,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for EvoSettings {
    fn default() -> EvoSettings {
        EvoSettings {
            generations: 150,
            offspring: 128,
            survivors: vec![16, 4, 1],
            seed: 0,
        }
    }
}

/// What may be exchanged, and what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct EvoProblem {
    /// Cost of each level of each item, in the budget's unit.
    pub costs: Vec<Vec<u64>>,
    /// Items that exchange steps with each other, such as weights of one size; an item is in one group at most.
    pub groups: Vec<Vec<usize>>,
    /// What all levels together may cost.
    pub budget: u64,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evolved {
    /// Each item's level.
    pub levels: Vec<usize>,
    /// Its fitness in the last stage of the last generation.
    pub fitness: f64,
    /// The parent's fitness after each generation.
    pub history: Vec<f64>,
    /// Measurements made, in all stages.
    pub evaluations: usize,
}

/// Why a search cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvoError {
    /// The start is not one level for each item.
    #[error("the start has no such level for item {0}")]
    Start(usize),
    /// The start costs too much.
    #[error("the start costs {cost}, the budget is {budget}")]
    Budget {
        /// Cost of the start.
        cost: u64,
        /// The budget.
        budget: u64,
    },
    /// No stage, or a group of unknown items.
    #[error("the search has no stage, or a group names an item that does not exist")]
    Settings,
}

impl EvoProblem {
    /// What these levels cost.
    pub fn cost(&self, levels: &[usize]) -> u64 {
        self.costs.iter().zip(levels).map(|(c, &l)| c[l]).sum()
    }

    /// A copy of `parent` with a few steps exchanged; `None` if that does not fit the budget or changes nothing.
    fn mutate(&self, parent: &[usize], rng: &mut SplitMix64) -> Option<Vec<usize>> {
        let mut levels = parent.to_vec();
        // The smaller of two draws: mostly one exchange, sometimes three.
        let exchanges = 1 + rng.below(3).min(rng.below(3));
        for _ in 0..exchanges {
            let group = &self.groups[self.pick_group(rng)?];
            let up: Vec<usize> = group
                .iter()
                .copied()
                .filter(|&i| levels[i] + 1 < self.costs[i].len())
                .collect();
            let raised = *up.get(rng.below(up.len()))?;
            let down: Vec<usize> = group
                .iter()
                .copied()
                .filter(|&i| i != raised && levels[i] > 0)
                .collect();
            let lowered = *down.get(rng.below(down.len()))?;
            levels[raised] += 1;
            levels[lowered] -= 1;
        }
        (levels != parent && self.cost(&levels) <= self.budget).then_some(levels)
    }

    /// A group, as often as it has items.
    fn pick_group(&self, rng: &mut SplitMix64) -> Option<usize> {
        let all: usize = self.groups.iter().map(Vec::len).sum();
        let mut at = rng.below(all);
        self.groups.iter().position(|g| {
            let here = at < g.len();
            at = at.wrapping_sub(g.len());
            here
        })
    }
}

/// Improves `start`. `fitness` (smaller is better) is given levels, the generation and the stage; within a stage of a
/// generation it should measure all on the same data.
pub fn search(
    problem: &EvoProblem,
    start: &[usize],
    settings: &EvoSettings,
    mut fitness: impl FnMut(&[usize], usize, usize) -> f64,
) -> Result<Evolved, EvoError> {
    if start.len() != problem.costs.len() {
        return Err(EvoError::Start(start.len().min(problem.costs.len())));
    }
    if let Some(i) = (0..start.len()).find(|&i| start[i] >= problem.costs[i].len()) {
        return Err(EvoError::Start(i));
    }
    let known = |g: &Vec<usize>| g.iter().all(|&i| i < start.len());
    if settings.survivors.is_empty() || !problem.groups.iter().all(known) {
        return Err(EvoError::Settings);
    }
    let cost = problem.cost(start);
    if cost > problem.budget {
        return Err(EvoError::Budget {
            cost,
            budget: problem.budget,
        });
    }
    let mut rng = SplitMix64::new(settings.seed);
    let mut parent = start.to_vec();
    let mut found = Evolved {
        levels: vec![],
        fitness: f64::NAN,
        history: Vec::with_capacity(settings.generations),
        evaluations: 0,
    };
    for generation in 0..settings.generations {
        let mut candidates = offspring(problem, &parent, settings.offspring, &mut rng);
        for (stage, &survivors) in settings.survivors.iter().enumerate() {
            if stage + 1 == settings.survivors.len() {
                // The parent comes first, so that a copy must be better to take its place.
                candidates.insert(0, parent.clone());
            }
            let measured = candidates.into_iter().map(|c| {
                found.evaluations += 1;
                let measured = fitness(&c, generation, stage);
                // What is not a number is no improvement.
                let comparable = if measured.is_nan() {
                    f64::INFINITY
                } else {
                    measured
                };
                (comparable, c)
            });
            let mut measured: Vec<(f64, Vec<usize>)> = measured.collect();
            measured.sort_by(|a, b| a.0.total_cmp(&b.0));
            measured.truncate(survivors.max(1));
            found.fitness = measured.first().map_or(found.fitness, |m| m.0);
            candidates = measured.into_iter().map(|m| m.1).collect();
        }
        if let Some(best) = candidates.into_iter().next() {
            parent = best;
        }
        found.history.push(found.fitness);
    }
    if settings.generations == 0 {
        found.fitness = fitness(&parent, 0, settings.survivors.len() - 1);
        found.evaluations = 1;
    }
    found.levels = parent;
    Ok(found)
}

/// At most `count` distinct copies that differ from the parent; fewer where there are not so many.
fn offspring(
    problem: &EvoProblem,
    parent: &[usize],
    count: usize,
    rng: &mut SplitMix64,
) -> Vec<Vec<usize>> {
    let (mut out, mut seen) = (Vec::with_capacity(count + 1), BTreeSet::new());
    let mut tries = 0;
    while out.len() < count && tries < 20 * count {
        tries += 1;
        if let Some(levels) = problem.mutate(parent, rng)
            && seen.insert(levels.clone())
        {
            out.push(levels);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::knapsack::{Choice, Limits, solve};

    /// Twenty items in pairs, four levels each: a low level costs more where the partner is low as well, which a sum over
    /// items cannot say.
    struct Fake {
        problem: EvoProblem,
        own: Vec<f64>,
        pair: Vec<f64>,
    }

    impl Fake {
        fn new(seed: u64) -> Fake {
            let mut rng = SplitMix64::new(seed);
            Fake {
                problem: EvoProblem {
                    costs: vec![vec![0, 1, 2, 3]; 20],
                    groups: vec![(0..20).collect()],
                    budget: 30,
                },
                own: (0..20).map(|_| 0.5 + rng.unit()).collect(),
                pair: (0..10).map(|_| 3.0 * rng.unit()).collect(),
            }
        }

        fn own(&self, i: usize, level: usize) -> f64 {
            self.own[i] * 0.4f64.powi(level as i32)
        }

        fn of_pair(&self, p: usize, a: usize, b: usize) -> f64 {
            let both = if a < 2 && b < 2 { self.pair[p] } else { 0.0 };
            self.own(p, a) + self.own(p + 10, b) + both
        }

        fn fitness(&self, levels: &[usize]) -> f64 {
            (0..10)
                .map(|p| self.of_pair(p, levels[p], levels[p + 10]))
                .sum()
        }

        /// The best of all: pairs do not depend on each other, so a knapsack over pairs is exact.
        fn optimum(&self) -> f64 {
            let of_pair = |p: usize| {
                let both = (0..16).map(|k| Choice {
                    error: self.of_pair(p, k / 4, k % 4),
                    costs: vec![(k / 4 + k % 4) as f64],
                });
                both.collect()
            };
            let items: Vec<Vec<Choice>> = (0..10).map(of_pair).collect();
            let found = solve(&items, &[30.0], Limits::default()).expect("it fits");
            assert!(found.optimal);
            found.error
        }

        /// The best by the sum of what each item loses alone, all others at their highest level.
        fn by_sum(&self) -> Vec<usize> {
            let of_item = |i: usize| {
                let level = |k: usize| Choice {
                    error: self.own(i, k),
                    costs: vec![k as f64],
                };
                (0..4).map(level).collect()
            };
            let items: Vec<Vec<Choice>> = (0..20).map(of_item).collect();
            solve(&items, &[30.0], Limits::default())
                .expect("it fits")
                .chosen
        }
    }

    #[test]
    fn it_finds_the_optimum_where_sums_fail() {
        let mut reached = 0;
        for seed in 0..10 {
            let fake = Fake::new(77);
            let (best, sum) = (fake.optimum(), fake.fitness(&fake.by_sum()));
            assert!(sum > 1.05 * best, "the sum is misled: {sum} {best}");
            let settings = EvoSettings {
                seed,
                ..EvoSettings::default()
            };
            let found = search(&fake.problem, &fake.by_sum(), &settings, |levels, _, _| {
                assert!(fake.problem.cost(levels) <= fake.problem.budget);
                fake.fitness(levels)
            })
            .expect("a sound start");
            assert!(found.fitness <= sum && found.fitness >= best - 1e-12);
            assert!(found.history.windows(2).all(|h| h[1] <= h[0]));
            reached += usize::from(found.fitness <= best + 1e-12);
        }
        assert!(reached >= 9, "{reached} of 10");
    }

    #[test]
    fn budgets_hold_with_uneven_steps_and_groups() {
        let problem = EvoProblem {
            costs: (0..12).map(|i| vec![0, 1 + i % 3, 4 + i % 5]).collect(),
            groups: vec![(0..6).collect(), (6..12).collect()],
            budget: 20,
        };
        let start = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0];
        let settings = EvoSettings {
            generations: 30,
            offspring: 20,
            survivors: vec![4, 1],
            seed: 3,
        };
        let run = || {
            search(&problem, &start, &settings, |levels, _, _| {
                assert!(problem.cost(levels) <= 20);
                let weighed = levels
                    .iter()
                    .zip(1..)
                    .map(|(&l, i)| l as f64 * f64::from(i));
                -weighed.sum::<f64>()
            })
        };
        let found = run().expect("a sound start");
        assert!(problem.cost(&found.levels) <= 20);
        // Groups keep their levels' sum.
        let sum = |g: std::ops::Range<usize>| found.levels[g].iter().sum::<usize>();
        assert_eq!((sum(0..6), sum(6..12)), (6, 2));
        assert_eq!(run(), Ok(found));
    }

    #[test]
    fn linear_choices_take_as_many_generations_as_known() {
        // Choosing k of n: expected k (n - k) / offspring generations, a few times that in measurements.
        for (n, k, offspring) in [(32, 12, 32), (64, 24, 32)] {
            let bound = 10 * k * (n - k) / offspring;
            let mut worst = 0;
            for seed in 0..8 {
                let mut rng = SplitMix64::new(seed + 100);
                let weights: Vec<f64> = (0..n).map(|_| rng.unit()).collect();
                let mut sorted = weights.clone();
                sorted.sort_by(f64::total_cmp);
                let best: f64 = sorted[..k].iter().sum();
                let problem = EvoProblem {
                    costs: vec![vec![0, 1]; n],
                    groups: vec![(0..n).collect()],
                    budget: k as u64,
                };
                let start: Vec<usize> = (0..n).map(|i| usize::from(i < k)).collect();
                let settings = EvoSettings {
                    generations: bound,
                    offspring,
                    survivors: vec![1],
                    seed,
                };
                let found = search(&problem, &start, &settings, |levels, _, _| {
                    let picked = levels.iter().zip(&weights).filter(|(l, _)| **l == 1);
                    picked.map(|(_, w)| w).sum()
                })
                .expect("a sound start");
                let reached = found.history.iter().position(|f| f <= &(best + 1e-12));
                worst = worst.max(reached.expect("within ten times the expected generations"));
            }
            assert!(worst > 0);
        }
    }

    #[test]
    fn a_fitness_that_is_no_number_never_wins() {
        let fake = Fake::new(5);
        let start = [2, 1].repeat(10);
        let before = fake.fitness(&start);
        let found = search(
            &fake.problem,
            &start,
            &EvoSettings::default(),
            |levels, _, _| {
                // The sign of a NaN is the processor's choice.
                if levels == start { before } else { -f64::NAN }
            },
        );
        assert_eq!(found.expect("a sound start").levels, start);
    }

    #[test]
    fn what_cannot_begin_is_an_error() {
        let problem = EvoProblem {
            costs: vec![vec![1, 5]; 2],
            groups: vec![vec![0, 1]],
            budget: 6,
        };
        let zero = |_: &[usize], _: usize, _: usize| 0.0;
        let settings = EvoSettings::default();
        let run = |p: &EvoProblem, start: &[usize]| search(p, start, &settings, zero);
        assert_eq!(run(&problem, &[0]), Err(EvoError::Start(1)));
        assert_eq!(run(&problem, &[0, 2]), Err(EvoError::Start(1)));
        assert!(matches!(
            run(&problem, &[1, 1]),
            Err(EvoError::Budget { cost: 10, .. })
        ));
        let unknown = EvoProblem {
            groups: vec![vec![7]],
            ..problem.clone()
        };
        assert_eq!(run(&unknown, &[0, 0]), Err(EvoError::Settings));
        // No exchange is possible: the start is what is found.
        let alone = EvoProblem {
            groups: vec![],
            ..problem
        };
        assert_eq!(run(&alone, &[0, 1]).expect("a sound start").levels, [0, 1]);
    }
}
