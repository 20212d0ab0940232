//! Motion of transposes and reshapes.

use super::Rule;

/// The family's rules.
pub static RULES: &[Rule] = &[];
