//! What users ask of compression: a budget, or a recipe that names each weight's choice.

use super::codes::Activations;
use super::cuts::Cut;
use super::loss::Difference;
use crate::methods::MethodError;
use crate::methods::pattern::Pattern;
use serde::{Deserialize, Serialize};

/// What may be spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// All weights together, as a share of the bytes that they are stored in.
    Share(f64),
    /// All weights together, in bytes.
    Bytes(u64),
    /// Bits for each element of the weights that are compressed, on average.
    Bits(f64),
}

/// What is asked of a compressed model: budgets of bytes and of time, within which the loss is least; or limits, within which the
/// bytes are fewest; or budgets, with limits that the result must keep.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Goal {
    /// What may be spent.
    pub budget: Option<Budget>,
    /// Most predicted nanoseconds of a run.
    pub latency_ns: Option<f64>,
    /// Most divergence of predictions from the original's, in nats.
    pub max_divergence: Option<f64>,
    /// Least share of predictions whose most probable class is the original's.
    pub min_agreement: Option<f64>,
    /// Most relative squared error: of results that are no predictions, or of weights where there is no data.
    pub max_error: Option<f64>,
}

impl Goal {
    /// True if the difference from the original is limited.
    pub fn limits(&self) -> bool {
        self.limits_predictions() || self.max_error.is_some()
    }

    /// True if it is limited by what only predictions have.
    pub fn limits_predictions(&self) -> bool {
        self.max_divergence.is_some() || self.min_agreement.is_some()
    }

    /// True for a difference within the limits. It is of one kind, and so are they.
    pub fn fits(&self, difference: &Difference) -> bool {
        let mut most = [self.max_divergence, self.max_error].into_iter().flatten();
        most.all(|most| difference.loss <= most)
            && self
                .min_agreement
                .is_none_or(|least| difference.agreement.is_some_and(|a| a >= least))
    }
}

impl From<Budget> for Goal {
    fn from(budget: Budget) -> Goal {
        Goal {
            budget: Some(budget),
            ..Goal::default()
        }
    }
}

impl Budget {
    /// A size as users write it: `0.25x` of what it was, or bytes, `300000`, `12MB`, `12MiB`.
    pub fn size(text: &str) -> Result<Budget, String> {
        let bad =
            || format!("`{text}` is no size: write a share like `0.25x`, or bytes like `12MB`");
        let number = |s: &str| {
            s.trim()
                .parse::<f64>()
                .ok()
                .filter(|n| n.is_finite() && *n > 0.0)
        };
        if let Some(share) = text.strip_suffix('x') {
            return number(share).map(Budget::Share).ok_or_else(bad);
        }
        const UNITS: [(&str, f64); 6] = [
            ("KiB", 1024.0),
            ("MiB", 1024.0 * 1024.0),
            ("GiB", 1024.0 * 1024.0 * 1024.0),
            ("KB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
        ];
        let unit = UNITS
            .iter()
            .find_map(|(u, n)| Some((text.strip_suffix(u)?, *n)));
        let (digits, unit) = unit.unwrap_or((text, 1.0));
        let bytes = number(digits).ok_or_else(bad)? * unit;
        Ok(Budget::Bytes(bytes as u64))
    }
}

/// One method with settings, as recipes name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Name of the method; `keep` leaves the weight as it is.
    pub method: String,
    /// Bits of a code.
    #[serde(default = "four")]
    pub bits: u32,
    /// Weights of a row that share a scale; 0 for the whole row.
    #[serde(default)]
    pub group: usize,
    /// Grids symmetric around zero.
    #[serde(default)]
    pub symmetric: bool,
    /// Searches the clipping of each group's range.
    #[serde(default)]
    pub clip: bool,
    /// Bits of the codes that scales of groups are stored as; 0 for 16-bit floats.
    #[serde(default)]
    pub scale_bits: u32,
    /// Stored bits for each weight, of methods that can meet any number; 0 for `bits`.
    #[serde(default)]
    pub rate: f64,
    /// How softly values are assigned while a palette is made (DKM); 0 for the exact optimum, 1 for the usual distance of a value
    /// from its entry.
    #[serde(default)]
    pub temperature: f64,
    /// Share of the weights that methods which prune leave out; 0 for what they do by themselves.
    #[serde(default)]
    pub sparsity: f64,
    /// Weights of a row that pruning keeps or leaves out together; 0 for each alone.
    #[serde(default)]
    pub block: usize,
    /// So many of every so many weights of a row are kept, in place of a share: `[2, 4]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_of_m: Option<[usize; 2]>,
}

fn four() -> u32 {
    4
}

/// Choices by the names of weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Structures that go before anything else is done, one cut after the other.
    #[serde(default, rename = "cut", skip_serializing_if = "Vec::is_empty")]
    pub cuts: Vec<Cut>,
    /// Which values between weights are 8-bit codes; weights that they are multiplied with then are, too, where no entry below makes
    /// something else of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Activations>,
    /// The first entry whose pattern fits a weight's name holds for it.
    #[serde(default, rename = "weight")]
    pub weights: Vec<Entry>,
}

/// A choice for the weights whose names fit a pattern.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// A name in which `*` stands for any text.
    pub name: String,
    /// What becomes of them.
    #[serde(flatten)]
    pub level: Level,
}

impl Default for Level {
    fn default() -> Level {
        Level {
            method: "rtn".to_owned(),
            bits: four(),
            group: 0,
            symmetric: false,
            clip: false,
            scale_bits: 0,
            rate: 0.0,
            temperature: 0.0,
            sparsity: 0.0,
            block: 0,
            n_of_m: None,
        }
    }
}

impl Level {
    /// True if the weight stays as it is.
    pub fn keeps(&self) -> bool {
        self.method == "keep"
    }

    /// Share of the weights that are left out.
    pub fn zeros(&self) -> f64 {
        match self.n_of_m {
            Some([n, m]) => 1.0 - n as f64 / m.max(1) as f64,
            None => self.sparsity,
        }
    }

    /// Where weights that are pruned compete, if it says so.
    ///
    /// # Errors
    /// There is no such pattern.
    pub(super) fn pattern(&self) -> Result<Option<Pattern>, MethodError> {
        let wrong = |reason: String| Err(MethodError::Settings(reason));
        if !(0.0..=1.0).contains(&self.sparsity) {
            return wrong(format!("`sparsity` is a share, not {}", self.sparsity));
        }
        Ok(match (self.n_of_m, self.block, self.sparsity) {
            (Some([keep, of]), _, _) if (1..=256).contains(&of) && (1..=of).contains(&keep) => {
                Some(Pattern::NOfM { keep, of })
            }
            (Some([n, m]), _, _) => {
                return wrong(format!("{n} of {m} is no pattern: `n_of_m` is like [2, 4]"));
            }
            (None, _, 0.0) => None,
            (None, 0 | 1, sparsity) => Some(Pattern::Rows { sparsity }),
            (None, len, sparsity) => Some(Pattern::Blocks { len, sparsity }),
        })
    }

    /// The weight stays as it is.
    pub fn keep() -> Level {
        Level {
            method: "keep".to_owned(),
            bits: 0,
            ..Level::default()
        }
    }
}

/// True if a name fits a pattern in which `*` stands for any text.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(head) else {
        return false;
    };
    (0..=rest.len()).any(|i| rest.is_char_boundary(i) && fits(tail, &rest[i..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, want) in [
            ("a*", "abc", true),
            ("*.w", "x.y.w", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*b*c", "a1b2c", true),
            ("a*b", "ac", false),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn sizes_are_shares_or_bytes() {
        assert_eq!(Budget::size("0.25x"), Ok(Budget::Share(0.25)));
        assert_eq!(Budget::size("12MB"), Ok(Budget::Bytes(12_000_000)));
        assert_eq!(Budget::size("2KiB"), Ok(Budget::Bytes(2048)));
        for bad in ["", "x", "-1x", "nanx", "12TB", "0"] {
            assert!(Budget::size(bad).is_err(), "{bad}");
        }
    }
}
