//! The multiple-choice knapsack: one option for each item, with the least total error within budgets.
//!
//! A multiplier for each budget turns costs into errors; with multipliers fixed, every item chooses for itself, and the
//! total is a lower bound of what any choice within the budgets can reach. The multipliers that make the bound highest are
//! found by bisection, one budget after the other. A choice is then made from them: repaired until it fits, filled
//! greedily by the best error saved for what is left of the budgets, and improved by branch and bound as far as a limit
//! of nodes allows. Small instances are solved exactly; for large ones the bound says how far from the optimum a choice
//! can be at most.
//! Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems", chapter 11; Frantar, Alistarh, "SPDY: Accurate Pruning with
//! Speedup Guarantees", section 3 (layers as items).

use std::cmp::Ordering;

/// An option of an item.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What it adds to the total error.
    pub error: f64,
    /// What it takes of each budget; finite and not negative.
    pub costs: Vec<f64>,
}

/// A choice for every item.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// Each item's option.
    pub chosen: Vec<usize>,
    /// Total error.
    pub error: f64,
    /// Total costs.
    pub costs: Vec<f64>,
    /// No choice within the budgets has a smaller total error than this.
    pub bound: f64,
    /// True if no choice within the budgets is better.
    pub optimal: bool,
}

/// Why there is no solution.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KnapsackError {
    /// An item has no option.
    #[error("item {0} has no option")]
    NoOption(usize),
    /// Numbers are missing, negative or not finite.
    #[error(
        "item {0} has errors or costs that are not finite, or not one cost for each of {1} budgets"
    )]
    Malformed(usize, usize),
    /// Nothing was found that fits.
    #[error(
        "no choice fits the budgets: the smallest costs are {least:?}, the budgets {budgets:?}"
    )]
    Budget {
        /// For each budget, the least that any choice takes of it.
        least: Vec<f64>,
        /// The budgets.
        budgets: Vec<f64>,
    },
}

/// Most items that branch and bound is tried on: it goes as deep as there are items, and closes no gap of more.
const MOST_SEARCHED: usize = 1000;

/// How much work may go into closing the gap to the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes of branch and bound.
    pub nodes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nodes: 200_000 }
    }
}

/// The options that no other option of the item beats in error and all costs, by rising first cost.
pub fn pareto(options: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..options.len()).collect();
    let key = |i: usize| (&options[i].costs, options[i].error);
    order.sort_by(|&a, &b| {
        let ((ca, ea), (cb, eb)) = (key(a), key(b));
        let costs = ca.iter().zip(cb).map(|(x, y)| x.total_cmp(y));
        costs
            .fold(Ordering::Equal, Ordering::then)
            .then(ea.total_cmp(&eb))
            .then(a.cmp(&b))
    });
    let mut kept: Vec<usize> = vec![];
    for i in order {
        let beaten = kept.iter().any(|&k| {
            options[k].error <= options[i].error
                && options[k]
                    .costs
                    .iter()
                    .zip(&options[i].costs)
                    .all(|(a, b)| a <= b)
        });
        if !beaten {
            kept.push(i);
        }
    }
    kept
}

/// Items that must take the same option, as one item: option `k` is option `k` of all of them. As many options as the
/// shortest has.
pub fn tie(items: &[&[Choice]]) -> Vec<Choice> {
    let options = items.iter().map(|i| i.len()).min().unwrap_or(0);
    let sum = |k: usize| {
        let budgets = items.iter().map(|i| i[k].costs.len()).min().unwrap_or(0);
        Choice {
            error: items.iter().map(|i| i[k].error).sum(),
            costs: (0..budgets)
                .map(|b| items.iter().map(|i| i[k].costs[b]).sum())
                .collect(),
        }
    };
    (0..options).map(sum).collect()
}

/// The choice with the least total error whose costs do not exceed `budgets`.
pub fn solve(
    items: &[Vec<Choice>],
    budgets: &[f64],
    limits: Limits,
) -> Result<Solution, KnapsackError> {
    for (i, item) in items.iter().enumerate() {
        if item.is_empty() {
            return Err(KnapsackError::NoOption(i));
        }
        let sound = |c: &Choice| {
            c.error.is_finite()
                && c.costs.len() == budgets.len()
                && c.costs.iter().all(|v| v.is_finite() && *v >= 0.0)
        };
        if !item.iter().all(sound) {
            return Err(KnapsackError::Malformed(i, budgets.len()));
        }
    }
    let fronts: Vec<Vec<usize>> = items.iter().map(|item| pareto(item)).collect();
    let problem = Problem {
        items,
        fronts: &fronts,
        budgets,
    };
    let least = problem.least_costs();
    if least.iter().zip(budgets).any(|(l, b)| l > b) {
        return Err(problem.infeasible(least));
    }
    let multipliers = problem.multipliers();
    let mut bound = problem.dual(&multipliers).value;
    let mut best = problem
        .repaired(&multipliers)
        .map(|chosen| problem.filled(chosen));
    let search = Search::run(&problem, &multipliers, best.take(), limits);
    let Some(chosen) = search.best else {
        return Err(problem.infeasible(least));
    };
    let error = problem.error(&chosen);
    if search.complete {
        bound = error;
    }
    Ok(Solution {
        error,
        costs: problem.costs(&chosen),
        optimal: search.complete || error <= bound,
        bound: bound.min(error),
        chosen,
    })
}

struct Problem<'a> {
    items: &'a [Vec<Choice>],
    fronts: &'a [Vec<usize>],
    budgets: &'a [f64],
}

/// The Lagrangian at some multipliers.
struct Dual {
    value: f64,
    chosen: Vec<usize>,
    costs: Vec<f64>,
}

impl Problem<'_> {
    fn least_costs(&self) -> Vec<f64> {
        let least = |b: usize| {
            let items = self.items.iter().map(|item| {
                let costs = item.iter().map(|c| c.costs[b]);
                costs.fold(f64::INFINITY, f64::min)
            });
            items.sum()
        };
        (0..self.budgets.len()).map(least).collect()
    }

    fn infeasible(&self, least: Vec<f64>) -> KnapsackError {
        KnapsackError::Budget {
            least,
            budgets: self.budgets.to_vec(),
        }
    }

    fn error(&self, chosen: &[usize]) -> f64 {
        self.items
            .iter()
            .zip(chosen)
            .map(|(item, &k)| item[k].error)
            .sum()
    }

    fn costs(&self, chosen: &[usize]) -> Vec<f64> {
        let sum = |b: usize| {
            let pairs = self.items.iter().zip(chosen);
            pairs.map(|(item, &k)| item[k].costs[b]).sum()
        };
        (0..self.budgets.len()).map(sum).collect()
    }

    fn fits(&self, costs: &[f64]) -> bool {
        costs.iter().zip(self.budgets).all(|(c, b)| c <= b)
    }

    /// An option's error with its costs priced.
    fn priced(&self, item: usize, option: usize, multipliers: &[f64]) -> f64 {
        let choice = &self.items[item][option];
        let costs = choice.costs.iter().zip(multipliers).map(|(c, m)| c * m);
        choice.error + costs.sum::<f64>()
    }

    fn dual(&self, multipliers: &[f64]) -> Dual {
        let mut value = 0.0;
        let best = |(i, front): (usize, &Vec<usize>)| {
            let priced = front.iter().map(|&k| (self.priced(i, k, multipliers), k));
            // Of equal prices the first, which is the cheapest in the first budget.
            let (price, k) = priced
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .expect("every item has an option");
            value += price;
            k
        };
        let chosen: Vec<usize> = self.fronts.iter().enumerate().map(best).collect();
        let spent = multipliers.iter().zip(self.budgets).map(|(m, b)| m * b);
        value -= spent.sum::<f64>();
        Dual {
            value,
            costs: self.costs(&chosen),
            chosen,
        }
    }

    /// Multipliers that make the bound high: each in turn is raised while its budget is exceeded.
    fn multipliers(&self) -> Vec<f64> {
        let mut multipliers = vec![0.0; self.budgets.len()];
        let rounds = if self.budgets.len() > 1 { 8 } else { 1 };
        for _ in 0..rounds {
            for b in 0..multipliers.len() {
                let over = |m: f64, all: &mut Vec<f64>| {
                    all[b] = m;
                    self.dual(all).costs[b] > self.budgets[b]
                };
                if !over(0.0, &mut multipliers) {
                    continue;
                }
                let (mut low, mut high) = (0.0, 1e-12);
                while over(high, &mut multipliers) && high < 1e30 {
                    (low, high) = (high, high * 4.0);
                }
                for _ in 0..100 {
                    let middle = (low + high) / 2.0;
                    if over(middle, &mut multipliers) {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
                multipliers[b] = high;
            }
        }
        multipliers
    }

    /// The choice of the multipliers, with options exchanged until it fits; `None` if that gets stuck.
    fn repaired(&self, multipliers: &[f64]) -> Option<Vec<usize>> {
        let Dual {
            mut chosen,
            mut costs,
            ..
        } = self.dual(multipliers);
        while !self.fits(&costs) {
            let excess = |costs: &[f64]| -> f64 {
                let pairs = costs.iter().zip(self.budgets);
                pairs
                    .map(|(c, b)| ((c - b) / b.abs().max(1e-300)).max(0.0))
                    .sum()
            };
            let now = excess(&costs);
            let mut best: Option<(f64, usize, usize)> = None;
            for (i, k) in self.moves() {
                let moved = self.moved(&costs, i, chosen[i], k);
                let gain = now - excess(&moved);
                if gain <= 0.0 {
                    continue;
                }
                let lost = self.items[i][k].error - self.items[i][chosen[i]].error;
                let ratio = lost / gain;
                if best.is_none_or(|(r, ..)| ratio < r) {
                    best = Some((ratio, i, k));
                }
            }
            let (_, i, k) = best?;
            costs = self.moved(&costs, i, chosen[i], k);
            chosen[i] = k;
        }
        Some(chosen)
    }

    /// Takes better options as long as any fits, the best error saved for the share of what is left first.
    fn filled(&self, mut chosen: Vec<usize>) -> Vec<usize> {
        let mut costs = self.costs(&chosen);
        loop {
            let mut best: Option<(f64, usize, usize)> = None;
            for (i, k) in self.moves() {
                let gain = self.items[i][chosen[i]].error - self.items[i][k].error;
                let moved = self.moved(&costs, i, chosen[i], k);
                if gain <= 0.0 || !self.fits(&moved) {
                    continue;
                }
                let taken: f64 = (0..costs.len())
                    .map(|b| {
                        (moved[b] - costs[b]).max(0.0) / (self.budgets[b] - costs[b]).max(1e-300)
                    })
                    .sum();
                let ratio = gain / taken.max(1e-12);
                if best.is_none_or(|(r, ..)| ratio > r) {
                    best = Some((ratio, i, k));
                }
            }
            let Some((_, i, k)) = best else {
                return chosen;
            };
            chosen[i] = k;
            costs = self.costs(&chosen);
        }
    }

    fn moves(&self) -> impl Iterator<Item = (usize, usize)> {
        let items = self.fronts.iter().enumerate();
        items.flat_map(|(i, front)| front.iter().map(move |&k| (i, k)))
    }

    fn moved(&self, costs: &[f64], item: usize, from: usize, to: usize) -> Vec<f64> {
        let options = &self.items[item];
        let pairs = options[to].costs.iter().zip(&options[from].costs);
        costs
            .iter()
            .zip(pairs)
            .map(|(c, (to, from))| c - from + to)
            .collect()
    }
}

/// Depth first, items whose choice matters most first; a node is left where its bound is no better than the best choice.
struct Search<'a> {
    problem: &'a Problem<'a>,
    order: Vec<usize>,
    /// Each item's options by priced error, with that.
    options: Vec<Vec<(f64, usize)>>,
    /// Least priced error, and least costs, of the items from a depth on.
    tail_price: Vec<f64>,
    tail_costs: Vec<Vec<f64>>,
    multipliers: &'a [f64],
    best: Option<Vec<usize>>,
    best_error: f64,
    left: usize,
}

struct Found {
    best: Option<Vec<usize>>,
    complete: bool,
}

impl<'a> Search<'a> {
    fn run(
        problem: &'a Problem<'a>,
        multipliers: &'a [f64],
        best: Option<Vec<usize>>,
        limits: Limits,
    ) -> Found {
        let count = problem.items.len();
        if count > MOST_SEARCHED {
            return Found {
                best,
                complete: false,
            };
        }
        let mut options: Vec<Vec<(f64, usize)>> = (0..count)
            .map(|i| {
                let front = problem.fronts[i].iter();
                let mut priced: Vec<(f64, usize)> = front
                    .map(|&k| (problem.priced(i, k, multipliers), k))
                    .collect();
                priced.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                priced
            })
            .collect();
        // Where the second best is far behind, the choice is all but made; where they are close it is open.
        let margin = |i: usize| {
            options[i]
                .get(1)
                .map_or(f64::INFINITY, |o| o.0 - options[i][0].0)
        };
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| margin(b).total_cmp(&margin(a)).then(a.cmp(&b)));
        options = order
            .iter()
            .map(|&i| std::mem::take(&mut options[i]))
            .collect();
        let budgets = problem.budgets.len();
        let mut tail_price = vec![0.0; count + 1];
        let mut tail_costs = vec![vec![0.0; budgets]; count + 1];
        for d in (0..count).rev() {
            tail_price[d] = tail_price[d + 1] + options[d][0].0;
            for b in 0..budgets {
                let costs = options[d]
                    .iter()
                    .map(|o| problem.items[order[d]][o.1].costs[b]);
                tail_costs[d][b] = tail_costs[d + 1][b] + costs.fold(f64::INFINITY, f64::min);
            }
        }
        let mut search = Search {
            problem,
            order,
            options,
            tail_price,
            tail_costs,
            multipliers,
            best_error: best.as_ref().map_or(f64::INFINITY, |b| problem.error(b)),
            best,
            left: limits.nodes,
        };
        let mut chosen = vec![0; count];
        let complete = search.go(0, 0.0, problem.budgets.to_vec(), &mut chosen);
        Found {
            best: search.best,
            complete,
        }
    }

    /// Tries all choices from `depth` on, with `left` of the budgets; false if nodes ran out.
    fn go(&mut self, depth: usize, error: f64, left: Vec<f64>, chosen: &mut Vec<usize>) -> bool {
        if depth == self.order.len() {
            if error < self.best_error {
                // Summed once more in the items' order, as it is reported.
                self.best_error = error.min(self.problem.error(chosen));
                self.best = Some(chosen.clone());
            }
            return true;
        }
        let item = self.order[depth];
        for at in 0..self.options[depth].len() {
            if self.left == 0 {
                return false;
            }
            self.left -= 1;
            let (price, option) = self.options[depth][at];
            let spent = left
                .iter()
                .zip(self.multipliers)
                .map(|(l, m)| l * m)
                .sum::<f64>();
            let bound = error + price + self.tail_price[depth + 1] - spent;
            // Options follow by rising price, so that none behind this one is better. Sums round, hence the margin.
            if bound >= self.best_error - 1e-12 * self.best_error.abs() {
                return true;
            }
            let choice = &self.problem.items[item][option];
            let rest: Vec<f64> = left.iter().zip(&choice.costs).map(|(l, c)| l - c).collect();
            let room = self.tail_costs[depth + 1]
                .iter()
                .zip(&rest)
                .zip(self.problem.budgets);
            // A budget is used up to its last bit; sums in another order must not refuse that.
            if room.clone().any(|((t, r), b)| *t > r + 1e-9 * b.abs()) {
                continue;
            }
            chosen[item] = option;
            if depth + 1 == self.order.len() && !self.problem.fits(&self.problem.costs(chosen)) {
                continue;
            }
            if !self.go(depth + 1, error + choice.error, rest, chosen) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
#[path = "knapsack_tests.rs"]
mod tests;
