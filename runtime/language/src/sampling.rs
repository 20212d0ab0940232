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

/// A token, and the logarithm of its probability by the model, at temperature 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Logarithm of its probability.
    pub logprob: f64,
}

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// Logarithm of its probability, where it was asked for.
    pub logprob: Option<f64>,
    /// The most probable tokens, as many as were asked for, from the most probable one on.
    pub top: Vec<Scored>,
}

impl Chosen {
    /// One of which nothing else is asked.
    fn plain(token: u32) -> Chosen {
        Chosen {
            token,
            logprob: None,
            top: vec![],
        }
    }
}

/// A token that one model proposes to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposed {
    /// The token.
    pub token: u32,
    /// The probabilities that it was drawn by, in the order of tokens.
    pub among: Vec<(u32, f64)>,
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

    /// Chooses by the model's scores after the tokens `before`; `holes` are never chosen. Tells the probabilities of the token and
    /// of so many others, if any are asked for.
    pub fn choose(
        &mut self,
        scores: impl Iterator<Item = f32> + Clone,
        before: &[u32],
        holes: &[u32],
        logprobs: Option<usize>,
    ) -> Result<Chosen, Error> {
        self.judge(scores, before, holes, logprobs, None)
    }

    /// As [`Sampler::choose`], where another model has proposed a token: it is chosen as often as keeps every token's probability
    /// what it is without a proposal.
    /// Source: Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", ICML 2023, section 2.3.
    pub fn judge(
        &mut self,
        scores: impl Iterator<Item = f32> + Clone,
        before: &[u32],
        holes: &[u32],
        logprobs: Option<usize>,
        proposed: Option<&Proposed>,
    ) -> Result<Chosen, Error> {
        let greedy = self.how.temperature <= 0.0 && self.how.repetition_penalty == 1.0;
        if greedy && logprobs.is_none() {
            let token = highest_as_it_is(scores.clone()).filter(|token| !holes.contains(token));
            if let Some(token) = token {
                return Ok(Chosen::plain(token));
            }
        }
        self.read(scores, holes)?;
        let plain = logprobs.map(|top| (top, log_sum(&self.scores), self.scores.clone()));
        self.penalize(before);
        let token = match (self.how.temperature > 0.0, proposed) {
            (false, _) => highest(&self.scores),
            (true, None) => self.draw(),
            (true, Some(proposed)) => self.accept(proposed),
        };
        let Some((top, normal, plain)) = plain else {
            return Ok(Chosen::plain(token));
        };
        let scored = |token: u32| Scored {
            token,
            logprob: plain[token as usize] - normal,
        };
        Ok(Chosen {
            token,
            logprob: Some(scored(token).logprob),
            top: most(&plain, top).into_iter().map(scored).collect(),
        })
    }

    /// Proposes a token for another model, by this one's scores.
    pub fn propose(
        &mut self,
        scores: impl Iterator<Item = f32>,
        before: &[u32],
        holes: &[u32],
    ) -> Result<Proposed, Error> {
        self.read(scores, holes)?;
        self.penalize(before);
        if self.how.temperature > 0.0 {
            let token = self.draw();
            let sum: f64 = self.kept.iter().map(|c| c.1).sum();
            let among = self.kept.iter().map(|&(t, w)| (t, w / sum)).collect();
            return Ok(Proposed { token, among });
        }
        let token = highest(&self.scores);
        Ok(Proposed {
            token,
            among: vec![(token, 1.0)],
        })
    }

    fn read(&mut self, scores: impl Iterator<Item = f32>, holes: &[u32]) -> Result<(), Error> {
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
        Ok(())
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
        self.narrow();
        let at = self.unit();
        pick(&self.kept, at)
    }

    /// The proposed token, or one of those that this model has chosen more often than the other one proposes them.
    fn accept(&mut self, proposed: &Proposed) -> u32 {
        self.narrow();
        let sum: f64 = self.kept.iter().map(|c| c.1).sum();
        self.kept.iter_mut().for_each(|c| c.1 /= sum);
        let share = |of: &[(u32, f64)], token: u32| {
            let found = of.binary_search_by_key(&token, |c| c.0);
            found.map_or(0.0, |i| of[i].1)
        };
        let (own, others) = (
            share(&self.kept, proposed.token),
            share(&proposed.among, proposed.token),
        );
        if self.unit() * others < own {
            return proposed.token;
        }
        let left = self
            .kept
            .iter()
            .map(|&(t, p)| (t, (p - share(&proposed.among, t)).max(0.0)));
        let left: Vec<(u32, f64)> = left.filter(|c| c.1 > 0.0).collect();
        let at = self.unit();
        // Nothing is left where both say the same, up to rounding.
        pick(if left.is_empty() { &self.kept } else { &left }, at)
    }

    /// The tokens that may be chosen, in their order, with their shares of a sum.
    fn narrow(&mut self) {
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

/// The token at a place in [0, 1) among shares that lie one after the other.
fn pick(among: &[(u32, f64)], at: f64) -> u32 {
    let mut left = at * among.iter().map(|c| c.1).sum::<f64>();
    for &(token, share) in among {
        left -= share;
        if left < 0.0 {
            return token;
        }
    }
    // Rounding of the sum.
    among.last().map_or(0, |c| c.0)
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

/// The first of the highest scores, if all are numbers, of scores as a model gives them. They are compared as integers, which have one order,
/// so that compilers compare several at a time.
fn highest_as_it_is(scores: impl Iterator<Item = f32> + Clone) -> Option<u32> {
    // Its own inverse: negative numbers are turned around.
    let ordered = |bits: i32| bits ^ ((bits >> 31) as u32 >> 1) as i32;
    let (top, odd) = scores.clone().fold((i32::MIN, false), |(top, odd), s| {
        (top.max(ordered(s.to_bits() as i32)), odd | s.is_nan())
    });
    let top = f32::from_bits(ordered(top) as u32);
    let mut scores = scores;
    let at = scores.position(|s| s == top).filter(|_| !odd)?;
    u32::try_from(at).ok()
}

/// The tokens of the highest scores, so many of them; of equal ones the first.
fn most(scores: &[f64], n: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| {
        let (x, y) = (scores[*a as usize], scores[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    let mut all: Vec<u32> = (0..scores.len() as u32).collect();
    if n == 0 {
        return vec![];
    }
    if n < all.len() {
        all.select_nth_unstable_by(n - 1, order);
        all.truncate(n);
    }
    all.sort_unstable_by(order);
    all
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
            let chosen = sampler.choose(scores.into_iter(), before, holes, None);
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
    fn the_most_probable_token_is_the_first_of_the_highest() {
        let mut sampler = Sampler::new(Sampling {
            temperature: 0.0,
            ..PLAIN
        });
        let values = [
            -0.0,
            0.0,
            1.5,
            -1.5,
            1e-45,
            -1e-45,
            f32::MAX,
            f32::NEG_INFINITY,
        ];
        for i in 0..values.len().pow(4) {
            let of = |k: u32| values[i / values.len().pow(k) % values.len()];
            let scores = [0, 1, 2, 3].map(of);
            for holes in [&[][..], &[1], &[0, 2]] {
                let open = |s: &(usize, f32)| !holes.contains(&(s.0 as u32));
                let mut best = None;
                for (at, score) in (0..).zip(scores).filter(open) {
                    if best.is_none_or(|b: usize| score > scores[b]) {
                        best = Some(at);
                    }
                }
                let chosen = sampler.choose(scores.into_iter(), &[], holes, None);
                let token = chosen.expect("numbers").token as usize;
                // Where nothing is above the least number there is, holes are as good as the others.
                if scores[best.expect("not all are holes")] > f32::NEG_INFINITY {
                    assert_eq!(Some(token), best, "{scores:?}, {holes:?}");
                }
            }
        }
        let odd = [1.0, f32::NAN, 2.0].into_iter();
        assert!(sampler.choose(odd, &[], &[], None).is_err());
    }

    #[test]
    fn proposals_change_no_probability() {
        let logs = |p: [f32; 5]| p.map(f32::ln);
        let own = logs([0.1, 0.4, 0.2, 0.25, 0.05]);
        for others in [
            logs([0.1, 0.4, 0.2, 0.25, 0.05]),
            logs([0.5, 0.1, 0.2, 0.1, 0.1]),
            logs([0.0, 0.0, 0.0, 0.0, 1.0]),
        ] {
            for how in [
                PLAIN,
                Sampling { top_k: 3, ..PLAIN },
                Sampling {
                    temperature: 0.7,
                    ..PLAIN
                },
                Sampling {
                    top_p: 0.6,
                    ..PLAIN
                },
            ] {
                let mut plain = Sampler::new(how.clone());
                let mut draft = Sampler::new(Sampling {
                    seed: 1,
                    ..how.clone()
                });
                let mut judge = Sampler::new(Sampling {
                    seed: 2,
                    ..how.clone()
                });
                let (mut want, mut found, mut right) = ([0.0f64; 5], [0.0f64; 5], 0.0);
                const N: usize = 40_000;
                for _ in 0..N {
                    let chosen = plain
                        .choose(own.into_iter(), &[], &[], None)
                        .expect("numbers");
                    want[chosen.token as usize] += 1.0 / N as f64;
                    let proposed = draft
                        .propose(others.into_iter(), &[], &[])
                        .expect("numbers");
                    let chosen = judge.judge(own.into_iter(), &[], &[], None, Some(&proposed));
                    let chosen = chosen.expect("numbers");
                    found[chosen.token as usize] += 1.0 / N as f64;
                    right += f64::from(chosen.token == proposed.token) / N as f64;
                }
                let near = found.iter().zip(want).all(|(f, w)| (f - w).abs() < 0.015);
                assert!(near, "{how:?}: {found:?}, not {want:?}");
                // The same model is always right.
                assert!(others != own || (right - 1.0f64).abs() < 1e-9, "{right}");
            }
        }
        let greedy = Sampling {
            temperature: 0.0,
            ..PLAIN
        };
        let proposed = |token| Proposed {
            token,
            among: vec![(token, 1.0)],
        };
        for token in 0..5 {
            let chosen = Sampler::new(greedy.clone()).judge(
                own.into_iter(),
                &[],
                &[],
                None,
                Some(&proposed(token)),
            );
            assert_eq!(chosen.expect("numbers").token, 1);
        }
    }

    #[test]
    fn seeds_repeat_and_probabilities_are_the_models() {
        let scores = [1.0f32, 2.0, 3.0, 2.5];
        let all = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(Sampling { seed, ..PLAIN });
            let mut one = || {
                sampler
                    .choose(scores.into_iter(), &[], &[], Some(3))
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
            .choose(scores.into_iter(), &[], &[], Some(3))
            .expect("numbers");
        let sum: f64 = scores.iter().map(|&s| f64::from(s).exp()).sum();
        assert!((chosen.logprob.expect("asked for") - (3.0 - sum.ln())).abs() < 1e-9);
        let top: Vec<u32> = chosen.top.iter().map(|s| s.token).collect();
        assert_eq!(top, [2, 3, 1]);
        assert!((chosen.top[1].logprob - (2.5 - sum.ln())).abs() < 1e-9);
        assert!(
            sampler
                .choose([f32::NAN].into_iter(), &[], &[], None)
                .is_err()
        );
    }
}
