//! The rewrite rules: one row each, by family.
//!
//! A row is a name, a left side, a right side, a condition and a class. Names read `family-what-it-does` and are shown to
//! users. Losing information is not a rewrite. Every row is checked for soundness from this table: both sides are
//! evaluated on random inputs of the row's samples.
//!
//! Pattern syntax is egg's: `(add ?x ?y attrs0)`. The last child of an op is its attribute set: `attrs0` for none, or a
//! variable. An absent operand is `none`.

use crate::egraph::lang::Graph;
use egg::{Id, Subst, Var};
use lapidary_ir::ValueId;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;

macro_rules! families {
    ($($family:ident,)*) => {
        $(pub mod $family;)*
        /// Every rule, by family.
        pub static FAMILIES: &[(&str, &[Rule])] = &[$((stringify!($family), $family::RULES),)*];
    };
}

families! {
    algebra,
    layout,
}

/// How exact a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Both sides give the same bits.
    Exact,
    /// The same value in real numbers; rounding may differ.
    Reassociates,
}

/// The right side of a rule.
#[derive(Clone, Copy)]
pub enum Right {
    /// A pattern over the left side's variables.
    Pattern(&'static str),
    /// A function that adds the replacement, or says why it does not apply.
    Build(fn(&mut Graph, &Bound) -> Result<Id, &'static str>),
}

/// A rewrite rule.
pub struct Rule {
    /// `family-what-it-does`.
    pub name: &'static str,
    /// Pattern.
    pub left: &'static str,
    /// Replacement.
    pub right: Right,
    /// Checked before a pattern is applied; the text says why it may refuse.
    pub condition: Option<fn(&Graph, &Bound) -> Result<(), &'static str>>,
    /// Exactness.
    pub class: Class,
    /// Where the identity is from, or why the right side is no worse.
    pub source: &'static str,
    /// Programs in which the left side occurs at the result, for the soundness test, which evaluates both sides on random
    /// inputs.
    pub samples: &'static [Sample],
}

/// Writes a small program with the rule's left side; the value is its result.
pub type Sample = fn(&mut Builder) -> Result<ValueId, OpError>;

/// Variables of a match.
pub struct Bound<'a> {
    /// egg's substitution.
    pub subst: &'a Subst,
}

impl Bound<'_> {
    /// The class bound to `?name`.
    pub fn get(&self, name: &str) -> Id {
        let var: Var = format!("?{name}")
            .parse()
            .expect("rule variables are identifiers");
        self.subst[var]
    }
}

/// Every rule.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    FAMILIES.iter().flat_map(|(_, rules)| rules.iter())
}
