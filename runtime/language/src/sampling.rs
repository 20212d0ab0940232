//! The choice of the next token from scores.
//!
//! In this order, as transformers does: scores of tokens that were there before are lowered, all are divided by the
//! temperature, and of the probabilities that they give only the highest `top_k`, of these only the highest that `top_p` is
//! reached by, of these only those above `min_p` of the highest remain. Sums run in the order of tokens or of
//! probabilities, so that a seed gives the same tokens always.

use crate::Error;
use crate::settings::Settings;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// What scores are divided by; 0 chooses the most probable token.
    pub temperature: f64,
    /// Only so many of the most probable tokens; 0: all.
    pub top_k: usize,
    /// Only the most probable tokens, of so much probability in all; 1: all.
    pub top_p: f64,
    /// Only tokens of so much of the most probable one's probability; 0: all.
    pub min_p: f64,
    /// Scores of tokens that were there before are divided by it, or multiplied where they are negative; 1: neither.
    pub repetition_penalty: f64,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// What a model's files ask for.
    pub fn of(settings: &Settings) -> Sampling {
        Sampling {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            min_p: settings.min_p,
            repetition_penalty: settings.repetition_penalty,
            seed: 0,
        }
    }
}

/// Chooses the tokens of one text.
#[derive(Debug)]
pub struct Sampler {
    how: Sampling,
    random: u64,
    scores: Vec<f64>,
    kept: Vec<(u32, f64)>,
}

/// A token that was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// Logarithm of its probability by the model, at temperature 1; where it was asked for.
    pub logprob: Option<f64>,
}

impl Sampler {
    /// From the beginning of the random numbers.
    pub fn new(how: Sampling) -> Sampler {
        Sampler {
            random: how.seed,
            how,
            scores: vec![],
            kept: vec![],
        }
    }

    /// Chooses by the model's scores after the tokens `before`; `holes` are never chosen.
    pub fn choose(
        &mut self,
        scores: impl Iterator<Item = f32>,
        before: &[u32],
        holes: &[u32],
        logprob: bool,
    ) -> Result<Chosen, Error> {
        self.scores.clear();
        self.scores.extend(scores.map(f64::from));
        if self.scores.iter().any(|s| s.is_nan()) {
            return Err(Error::new(
                "the model's scores are no numbers",
                "its weights are damaged, or too large for f32",
            ));
        }
        for &hole in holes {
            if let Some(score) = self.scores.get_mut(hole as usize) {
                *score = f64::NEG_INFINITY;
            }
        }
        let normal = logprob.then(|| log_sum(&self.scores));
        let plain = logprob.then(|| self.scores.clone());
        self.penalize(before);
        let token = match self.how.temperature > 0.0 {
            true => self.draw(),
            false => highest(&self.scores),
        };
        let logprob = plain
            .zip(normal)
            .map(|(s, normal)| s[token as usize] - normal);
        Ok(Chosen { token, logprob })
    }

    fn penalize(&mut self, before: &[u32]) {
        let penalty = self.how.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let mut seen = before.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(score) = self.scores.get_mut(token as usize) {
                *score = if *score > 0.0 {
                    *score / penalty
                } else {
                    *score * penalty
                };
            }
        }
    }

    fn draw(&mut self) -> u32 {
        let top = self.scores[highest(&self.scores) as usize];
        let weight = |&s: &f64| ((s - top) / self.how.temperature).exp();
        self.kept.clear();
        let weights = self.scores.iter().map(weight);
        self.kept
            .extend((0..).zip(weights).filter(|&(_, w)| w > 0.0));
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let k = self.how.top_k;
        if (1..self.kept.len()).contains(&k) {
            self.kept.select_nth_unstable_by(k - 1, order);
            self.kept.truncate(k);
        }
        if self.how.top_p < 1.0 {
            self.kept.sort_unstable_by(order);
            let goal = self.how.top_p * self.kept.iter().map(|c| c.1).sum::<f64>();
            let mut sum = 0.0;
            let mut below = |c: &(u32, f64)| {
                sum += c.1;
                sum < goal
            };
            let n = self.kept.iter().take_while(|c| below(c)).count();
            self.kept.truncate(n + 1);
        }
        // The highest weight is 1.
        self.kept.retain(|c| c.1 >= self.how.min_p.min(1.0));
        // Whatever was sorted or selected: one order for all.
        self.kept.sort_unstable_by_key(|c| c.0);
        let mut left = self.unit() * self.kept.iter().map(|c| c.1).sum::<f64>();
        for &(token, w) in &self.kept {
            left -= w;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding of the sum.
        self.kept.last().map_or(0, |c| c.0)
    }

    /// A number in [0, 1), by SplitMix64.
    /// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The first of the highest scores.
fn highest(scores: &[f64]) -> u32 {
    let mut best = 0;
    for (i, s) in scores.iter().enumerate() {
        if *s > scores[best] {
            best = i;
        }
    }
    best as u32
}

/// Logarithm of the sum of exponentials.
fn log_sum(scores: &[f64]) -> f64 {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 7,
    };

    /// How often each of four tokens of probabilities 0.4, 0.3, 0.2, 0.1 is chosen.
    fn shares(how: Sampling, before: &[u32], holes: &[u32]) -> [f64; 4] {
        let scores = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let mut sampler = Sampler::new(how);
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            let chosen = sampler.choose(scores.into_iter(), before, holes, false);
            counts[chosen.expect("numbers").token as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        let cases = [
            (PLAIN, [0.1, 0.4, 0.2, 0.3]),
            (
                Sampling {
                    temperature: 0.0,
                    ..PLAIN
                },
                [0.0, 1.0, 0.0, 0.0],
            ),
            (
                Sampling {
                    temperature: 0.5,
                    ..PLAIN
                },
                [1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0],
            ),
            (
                Sampling { top_k: 2, ..PLAIN },
                [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
            ),
            (
                Sampling {
                    top_p: 0.6,
                    ..PLAIN
                },
                [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
            ),
            (
                Sampling {
                    top_p: 0.3,
                    ..PLAIN
                },
                [0.0, 1.0, 0.0, 0.0],
            ),
            (
                Sampling {
                    min_p: 0.6,
                    ..PLAIN
                },
                [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
            ),
        ];
        for (how, want) in cases {
            let found = shares(how.clone(), &[], &[]);
            let near = found
                .iter()
                .zip(want)
                .all(|(f, w): (&f64, f64)| (f - w).abs() < 0.015);
            assert!(near, "{how:?}: {found:?}");
        }
        assert_eq!(shares(PLAIN, &[], &[1])[1], 0.0);
        // Scores are negative: those of what was there before double.
        let found = shares(
            Sampling {
                repetition_penalty: 2.0,
                ..PLAIN
            },
            &[1, 1],
            &[],
        );
        assert!((found[1] - 0.16 / 0.76).abs() < 0.015, "{found:?}");
    }

    #[test]
    fn seeds_repeat_and_probabilities_are_the_models() {
        let scores = [1.0f32, 2.0, 3.0, 2.5];
        let all = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(Sampling { seed, ..PLAIN });
            let mut one = || {
                sampler
                    .choose(scores.into_iter(), &[], &[], true)
                    .expect("numbers")
            };
            (0..50).map(|_| one().token).collect()
        };
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
        let mut sampler = Sampler::new(Sampling {
            temperature: 0.0,
            ..PLAIN
        });
        let chosen = sampler
            .choose(scores.into_iter(), &[], &[], true)
            .expect("numbers");
        let sum: f64 = scores.iter().map(|&s| f64::from(s).exp()).sum();
        assert!((chosen.logprob.expect("asked for") - (3.0 - sum.ln())).abs() < 1e-9);
        assert!(
            sampler
                .choose([f32::NAN].into_iter(), &[], &[], false)
                .is_err()
        );
    }
}
