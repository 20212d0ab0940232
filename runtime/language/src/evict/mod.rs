//! Caches of a limited number of tokens: which ones are kept when there are too many, and what becomes of the others.
//!
//! ```text
//! tokens of a head   [sinks] [... by importance ...] [recent]        one list for each head of keys and values
//! ```
//! Keys have been rotated before they are cached, so what is left keeps its phase, and new tokens are counted on from all that
//! there were. What a head's tokens are kept by is how much attention they got, which programs count that are built for it
//! ([`lapidary_abi::attended`]).

mod head;
mod panels;

pub use head::{Attended, Head, Merging, Rule, importance, keep};
pub(crate) use panels::{compress, forget, is_counted};

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// Fewest tokens that a cache is limited to.
pub const LEAST: usize = 8;

/// What tokens are kept by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The newest.
    Recent,
    /// Half of them the newest, the others those with the most attention so far: "H2O: Heavy-Hitter Oracle for Efficient
    /// Generative Inference of Large Language Models" (arXiv 2306.14048).
    H2o,
    /// As H2O, by attention for each query that saw a token or attention lately, whichever is more; the first tokens always; and
    /// tokens that are evicted become part of a similar one that is kept, if there is one: after "EMS: Adaptive Evict-then-Merge
    /// Strategy for Head-wise KV Cache Compression Based on Global-Local Importance" (arXiv 2412.08521). All heads have the same
    /// budget here.
    #[default]
    Ems,
}

/// Names of the policies.
const POLICIES: [(&str, Policy); 3] = [
    ("ems", Policy::Ems),
    ("h2o", Policy::H2o),
    ("recent", Policy::Recent),
];

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        let found = POLICIES.iter().find(|(name, _)| *name == text);
        let names = || POLICIES.map(|(name, _)| name).join(", ");
        found
            .map(|f| f.1)
            .ok_or_else(|| format!("`{text}` is none of {}", names()))
    }
}

/// How many tokens caches may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// So many.
    Tokens(usize),
    /// So much of the context.
    Share(f64),
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        let wrong = || format!("`{text}` is no budget: {LEAST} tokens or more, or a share as 25%");
        match text.strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.parse().map_err(|_| wrong())?;
                let fits = share > 0.0 && share <= 100.0;
                fits.then_some(Budget::Share(share / 100.0))
                    .ok_or_else(wrong)
            }
            None => {
                let tokens = text.parse().ok().filter(|&n| n >= LEAST);
                tokens.map(Budget::Tokens).ok_or_else(wrong)
            }
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Tokens(n) => write!(f, "{n} tokens"),
            Budget::Share(s) => write!(f, "{}%", s * 100.0),
        }
    }
}

/// How caches are kept within a budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    /// What is done with a head.
    pub rule: Rule,
    /// Most tokens of a sequence.
    pub budget: usize,
}

impl Eviction {
    /// By a policy, of a context of so many tokens if that is known.
    ///
    /// # Errors
    /// The budget is a share, and the context is not known or too small.
    pub fn new(policy: Policy, budget: Budget, context: Option<usize>) -> Result<Eviction, Error> {
        let budget = match (budget, context) {
            (Budget::Tokens(n), _) => Some(n),
            (Budget::Share(share), Some(context)) => Some((context as f64 * share) as usize),
            (Budget::Share(_), None) => None,
        };
        let Some(budget) = budget.filter(|&n| n >= LEAST) else {
            return Err(Error::new(
                match budget {
                    Some(n) => format!("caches of {n} tokens are too small"),
                    None => "how long the model's context is is not known".to_owned(),
                },
                "give `--kv-budget` a number of tokens, 8 or more",
            ));
        };
        Ok(Eviction {
            rule: Rule::of(policy),
            budget,
        })
    }

    /// Tokens that are evicted at once, so that it is not done for each; also most that are read at once.
    pub fn piece(&self) -> usize {
        (self.budget / 8).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_understood_or_refused() {
        assert_eq!("256".parse(), Ok(Budget::Tokens(256)));
        assert_eq!("25%".parse(), Ok(Budget::Share(0.25)));
        for wrong in ["", "7", "-3", "0%", "101%", "nan%", "x", "1.5", "25 %x"] {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
        assert_eq!("h2o".parse(), Ok(Policy::H2o));
        let why = "all".parse::<Policy>().expect_err("no policy");
        assert!(why.contains("ems, h2o, recent"), "{why}");
        let of = |budget, context| Eviction::new(Policy::Ems, budget, context).map(|e| e.budget);
        assert_eq!(of(Budget::Share(0.25), Some(256)).ok(), Some(64));
        assert!(of(Budget::Share(0.25), None).is_err());
        assert!(of(Budget::Share(0.01), Some(256)).is_err());
    }
}
