//! One head's tokens, and which of them are kept: plain arithmetic on rows.

use super::Policy;
use std::cmp::Ordering;

/// How much attention each token of a head got.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// Probabilities, added up over all queries.
    pub total: &'a [f32],
    /// The same of the last queries.
    pub local: &'a [f32],
    /// Queries that could see the token.
    pub queries: &'a [f32],
}

/// What becomes of tokens that are not kept, where it is not nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merging {
    /// A token whose key has no kept one of at least this cosine is dropped: EMS calls this the zero class. Keys that are not
    /// alike must not be merged: that costs more than dropping them.
    pub threshold: f32,
    /// Each counts as much as it is important, else equally.
    pub weighted: bool,
    /// What stands for several tokens gets their attention: the logarithm of their number is added to its scores.
    pub corrected: bool,
}

/// What is done with a head that has too many tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// What tokens are kept by.
    pub policy: Policy,
    /// So many of the first ones are kept always.
    pub sinks: usize,
    /// What becomes of the others.
    pub merging: Option<Merging>,
}

impl Rule {
    /// A policy as it is used where nothing else is said.
    pub fn of(policy: Policy) -> Rule {
        match policy {
            Policy::Recent | Policy::H2o => Rule {
                policy,
                sinks: 0,
                merging: None,
            },
            Policy::Ems => Rule {
                policy,
                sinks: 4,
                merging: Some(Merging {
                    threshold: 0.9,
                    weighted: true,
                    corrected: true,
                }),
            },
        }
    }

    /// How many of the newest are kept always, of so many that are kept.
    pub fn recent(&self, budget: usize) -> usize {
        match self.policy {
            Policy::Recent => budget,
            Policy::H2o | Policy::Ems => budget / 2,
        }
    }
}

/// How important the first `old` tokens are and, by the same measure, the others; from 0 on.
///
/// For EMS, `max(g / max g, l / max l)` with `g = total / queries` and `l = local`, the maxima over the old ones: of the newest
/// few queries have been seen, so that their means say little.
pub fn importance(policy: Policy, attended: &Attended, old: usize) -> Vec<f32> {
    match policy {
        Policy::Recent => vec![0.0; attended.total.len()],
        Policy::H2o => attended.total.to_vec(),
        Policy::Ems => {
            let pairs = attended.total.iter().zip(attended.queries);
            let global: Vec<f32> = pairs.map(|(t, q)| t / q.max(1.0)).collect();
            let most = |x: &[f32]| {
                x.iter()
                    .take(old)
                    .copied()
                    .fold(f32::MIN_POSITIVE, f32::max)
            };
            let (g, l) = (most(&global), most(attended.local));
            let both = global.iter().zip(attended.local);
            both.map(|(a, b)| (a / g).max(b / l)).collect()
        }
    }
}

/// Which of the tokens are kept, in order, at most `budget`: the first `sinks`, the last `recent`, and the most important ones
/// between, of equal ones the older.
pub fn keep(importance: &[f32], sinks: usize, recent: usize, budget: usize) -> Vec<usize> {
    let n = importance.len();
    let sinks = sinks.min(budget).min(n);
    let recent = recent.min(budget - sinks).min(n - sinks);
    let mut between: Vec<usize> = (sinks..n - recent).collect();
    between.sort_by(|&a, &b| {
        let order = importance[b].partial_cmp(&importance[a]);
        order.unwrap_or(Ordering::Equal)
    });
    between.truncate(budget - sinks - recent);
    between.sort_unstable();
    let (first, last) = (0..sinks, n - recent..n);
    first.chain(between).chain(last).collect()
}

/// A head's tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Head {
    /// `[tokens][size]`.
    pub keys: Vec<f32>,
    /// `[tokens][size of values]`.
    pub values: Vec<f32>,
    /// See [`Attended`].
    pub total: Vec<f32>,
    /// See [`Attended`].
    pub local: Vec<f32>,
    /// See [`Attended`].
    pub queries: Vec<f32>,
    /// What is added to scores: the logarithm of how many tokens it stands for.
    pub bias: Vec<f32>,
}

impl Head {
    /// Tokens.
    pub fn len(&self) -> usize {
        self.bias.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bias.is_empty()
    }

    /// Leaves at most `budget` tokens, in order.
    pub fn compress(&mut self, rule: &Rule, budget: usize) {
        let n = self.len();
        if n <= budget {
            return;
        }
        let recent = rule.recent(budget);
        let attended = Attended {
            total: &self.total,
            local: &self.local,
            queries: &self.queries,
        };
        let importance = importance(rule.policy, &attended, n.saturating_sub(recent));
        let kept = keep(&importance, rule.sinks, recent, budget);
        if let Some(merging) = &rule.merging {
            self.merge(&kept, &importance, merging);
        }
        self.retain(&kept);
    }

    /// Makes those that are not kept part of the kept ones that they are like; the others are as they were.
    fn merge(&mut self, kept: &[usize], importance: &[f32], merging: &Merging) {
        let weight = |t: usize| if merging.weighted { importance[t] } else { 1.0 };
        let mut weights: Vec<f32> = (0..self.len()).map(weight).collect();
        let (size, value_size) = (self.keys.len() / self.len(), self.values.len() / self.len());
        for (token, center) in self.assign(kept, merging.threshold) {
            let (own, all) = (weights[token], weights[center] + weights[token]);
            // Where nothing is known of either, the kept one stays.
            if all > 0.0 {
                blend(&mut self.keys, size, (token, center), own / all);
                blend(&mut self.values, value_size, (token, center), own / all);
                weights[center] = all;
            }
            self.total[center] += self.total[token];
            self.local[center] += self.local[token];
            if merging.corrected {
                self.bias[center] = (self.bias[center].exp() + self.bias[token].exp()).ln();
            }
        }
    }

    /// The tokens that are not kept and not of the zero class, each with the kept one whose key has the greatest cosine.
    fn assign(&self, kept: &[usize], threshold: f32) -> Vec<(usize, usize)> {
        let size = self.keys.len() / self.len().max(1);
        let unit = |t: usize| -> Vec<f32> {
            let row = &self.keys[t * size..(t + 1) * size];
            let length = dot(row, row).sqrt();
            row.iter()
                .map(|x| x / length.max(f32::MIN_POSITIVE))
                .collect()
        };
        let centers: Vec<(usize, Vec<f32>)> = kept.iter().map(|&t| (t, unit(t))).collect();
        let others = (0..self.len()).filter(|t| kept.binary_search(t).is_err());
        let nearest = |token: usize| {
            let own = unit(token);
            let zero_class = (threshold, None);
            let best = centers.iter().fold(zero_class, |best, (center, key)| {
                let cosine = dot(&own, key);
                let better = cosine > best.0 || best.1.is_none() && cosine == best.0;
                if better {
                    (cosine, Some(*center))
                } else {
                    best
                }
            });
            Some((token, best.1?))
        };
        others.filter_map(nearest).collect()
    }

    /// Leaves only these tokens.
    fn retain(&mut self, kept: &[usize]) {
        let n = self.len();
        let all = [
            &mut self.keys,
            &mut self.values,
            &mut self.total,
            &mut self.local,
            &mut self.queries,
            &mut self.bias,
        ];
        for rows in all {
            let size = rows.len() / n;
            for (to, &from) in kept.iter().enumerate() {
                rows.copy_within(from * size..(from + 1) * size, to * size);
            }
            rows.truncate(kept.len() * size);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Moves row `to` towards row `from` by this share of the way.
fn blend(rows: &mut [f32], size: usize, (from, to): (usize, usize), share: f32) {
    for j in 0..size {
        let x = rows[from * size + j];
        let y = &mut rows[to * size + j];
        *y += (x - *y) * share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens with these keys, each of which got as much attention as its number says.
    fn head(keys: &[[f32; 2]]) -> Head {
        let n = keys.len();
        Head {
            keys: keys.concat(),
            values: (0..n).map(|i| i as f32).collect(),
            total: (0..n).map(|i| i as f32 + 1.0).collect(),
            local: vec![0.0; n],
            queries: vec![1.0; n],
            bias: vec![0.0; n],
        }
    }

    #[test]
    fn the_first_the_newest_and_the_most_important_are_kept() {
        let importance = [0.0, 5.0, 1.0, 5.0, 9.0, 0.0, 0.0];
        assert_eq!(keep(&importance, 0, 2, 4), [1, 4, 5, 6]);
        assert_eq!(keep(&importance, 1, 2, 4), [0, 4, 5, 6]);
        assert_eq!(keep(&importance, 0, 9, 3), [4, 5, 6]);
        assert_eq!(keep(&importance, 9, 9, 3), [0, 1, 2]);
        assert_eq!(keep(&importance, 2, 2, 100), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn tokens_seen_by_few_are_not_at_a_disadvantage() {
        let attended = Attended {
            total: &[8.0, 2.0, 0.1],
            local: &[0.0, 0.0, 0.1],
            queries: &[100.0, 2.0, 1.0],
        };
        let h2o = importance(Policy::H2o, &attended, 3);
        assert!(h2o[0] > h2o[1]);
        let ems = importance(Policy::Ems, &attended, 3);
        assert!(ems[1] > ems[0] && ems[2] == 1.0, "{ems:?}");
    }

    #[test]
    fn the_zero_class_is_eviction() {
        let keys = [
            [1.0, 0.0],
            [0.0, 1.0],
            [-1.0, 0.1],
            [0.7, -0.7],
            [0.1, -1.0],
        ];
        let rule = |threshold: f32| Rule {
            sinks: 0,
            merging: Some(Merging {
                threshold,
                weighted: true,
                corrected: true,
            }),
            policy: Policy::Ems,
        };
        let after = |rule: Rule| {
            let mut head = head(&keys);
            head.compress(&rule, 2);
            assert_eq!(head.len(), 2);
            head
        };
        let none = after(Rule {
            merging: None,
            ..rule(0.0)
        });
        assert_eq!(after(rule(0.99)), none);
        assert_ne!(after(rule(0.6)), none);
    }

    #[test]
    fn what_stands_for_several_counts_as_several() {
        let mut all = head(&[[3.0, 4.0], [6.0, 8.0], [0.0, -1.0], [0.0, -2.0]]);
        let merging = Merging {
            threshold: 0.9,
            weighted: false,
            corrected: true,
        };
        let rule = Rule {
            policy: Policy::H2o,
            sinks: 0,
            merging: Some(merging),
        };
        all.compress(&rule, 2);
        // The newest and the most important one before.
        assert_eq!(all.values, [2.0, 3.0]);
        let mut all = head(&[[3.0, 4.0], [6.0, 8.0], [0.0, -1.0]]);
        all.total[1] = 9.0;
        all.compress(&rule, 2);
        assert_eq!(all.keys, [4.5, 6.0, 0.0, -1.0]);
        assert_eq!(all.values, [0.5, 2.0]);
        assert_eq!(all.total, [10.0, 3.0]);
        assert!((all.bias[0] - 2f32.ln()).abs() < 1e-6 && all.bias[1] == 0.0);
    }
}
