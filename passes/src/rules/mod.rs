//! The rewrite rules: one row each, by family.
//!
//! A row is a name, a left side, a right side, a condition and a class. Names read `family-what-it-does` and are shown to
//! users. Losing information is not a rewrite. Every row is checked for soundness from this table: both sides are
//! evaluated on random inputs of the row's samples.
//!
//! Pattern syntax is egg's: `(add ?x ?y attrs0)`. The last child of an op is its attribute set: `attrs0` for none, or a
//! variable. An absent operand is `none`. A row may have several left sides: the ways in which exporters write one thing.
//! The name of an op alone (`concat`) matches every node of it, whatever the number of its operands.

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

pub mod reading;

families! {
    activation,
    algebra,
    attention,
    conv,
    fold,
    fuse,
    layout,
    linear,
    norm,
    quant,
    rotary,
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
    /// A function that adds the replacement, or says why it does not apply ([`reading::OTHER`]: it is not about this).
    Build(fn(&mut Graph, &Bound) -> Result<Id, &'static str>),
}

/// A rewrite rule.
pub struct Rule {
    /// `family-what-it-does`.
    pub name: &'static str,
    /// Patterns, any of which is replaced; all bind the variables that the right side uses.
    pub left: &'static [&'static str],
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

    /// The class bound to `?name`, if the left side that matched has it.
    pub fn find(&self, name: &str) -> Option<Id> {
        let var: Var = format!("?{name}").parse().ok()?;
        self.subst.get(var).copied()
    }

    /// The operands of the node that a left side of an op's name alone matched.
    pub fn operands(&self) -> Vec<Id> {
        (0..)
            .map_while(|i| self.subst.get(Var::from_u32(i)).copied())
            .collect()
    }
}

/// Every rule.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    FAMILIES.iter().flat_map(|(_, rules)| rules.iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egraph::saturate::{force, pattern};
    use egg::ENodeOrVar;
    use lapidary_ir::tensor::{Tensor, Value, count};
    use lapidary_ir::{Module, eval};
    use std::cell::Cell;
    use std::collections::HashSet;

    fn variables(text: &str) -> HashSet<Var> {
        let ast = pattern(text).unwrap_or_else(|e| panic!("`{text}`: {e}"));
        ast.iter()
            .filter_map(|n| match n {
                ENodeOrVar::Var(v) => Some(*v),
                ENodeOrVar::ENode(_) => None,
            })
            .collect()
    }

    #[test]
    fn the_table_is_well_formed() {
        let mut names = HashSet::new();
        for (family, rules) in FAMILIES {
            for rule in *rules {
                assert!(names.insert(rule.name), "`{}` is defined twice", rule.name);
                assert!(
                    rule.name.starts_with(&format!("{family}-")),
                    "`{}` does not start with its family",
                    rule.name
                );
                assert!(!rule.samples.is_empty(), "`{}` has no sample", rule.name);
                assert!(!rule.left.is_empty(), "`{}` has no left side", rule.name);
                for left in rule.left {
                    let bound = variables(left);
                    if let Right::Pattern(right) = rule.right {
                        assert!(
                            variables(right).is_subset(&bound),
                            "`{}` uses an unbound variable",
                            rule.name
                        );
                    }
                    let ast = pattern(left).expect("parsed above");
                    let ops = ast.iter().any(|n| matches!(n, ENodeOrVar::ENode(_)));
                    assert!(ops, "`{}` matches everything", rule.name);
                }
            }
        }
    }

    /// Values spread over both signs, different for each input.
    fn random(module: &Module) -> Vec<Value> {
        let inputs = module.top().inputs.iter().enumerate();
        inputs
            .map(|(k, &v)| {
                let ty = module
                    .value(v)
                    .ty
                    .as_tensor()
                    .expect("samples take tensors");
                let shape = ty.const_shape().expect("samples have constant shapes");
                let noise = |i: usize| (((i + 1) * 7919 + k * 104_729) % 1000) as f64 / 250.0 - 2.0;
                let n = count(&shape);
                let tensor = if ty.elem.is_float() {
                    Tensor::from_f64(ty.elem, shape, (0..n).map(noise).collect())
                } else {
                    Tensor::from_int(
                        ty.elem,
                        shape,
                        (0..n).map(|i| (noise(i) * 3.0) as i128).collect(),
                    )
                };
                tensor.into()
            })
            .collect()
    }

    #[test]
    fn both_sides_of_every_rule_are_equal() {
        for rule in all() {
            for (n, sample) in rule.samples.iter().enumerate() {
                let mut module = Module::new(rule.name);
                let fresh = Cell::new(0);
                let result = sample(&mut Builder::new(
                    &mut module,
                    Module::TOP,
                    "sample",
                    &fresh,
                ))
                .unwrap_or_else(|e| panic!("`{}` sample {n}: {e}", rule.name));
                module.region_mut(Module::TOP).outputs.push(result);
                let inputs = random(&module);
                let before = eval::run(&module, inputs.clone()).expect("samples evaluate");
                assert!(
                    force(&mut module, rule),
                    "`{}` does not fire on sample {n}",
                    rule.name
                );
                let after = eval::run(&module, inputs)
                    .unwrap_or_else(|e| panic!("`{}` sample {n}: {e}", rule.name));
                compare(
                    rule,
                    n,
                    before[0].as_tensor().expect("a tensor"),
                    after[0].as_tensor().expect("a tensor"),
                );
            }
        }
    }

    fn compare(rule: &Rule, n: usize, before: &Tensor, after: &Tensor) {
        assert_eq!(
            (before.elem(), before.shape()),
            (after.elem(), after.shape()),
            "`{}` sample {n} changes the type",
            rule.name
        );
        if rule.class == Class::Exact {
            assert_eq!(before, after, "`{}` sample {n}", rule.name);
            return;
        }
        for (x, y) in before
            .to_f64s()
            .expect("numbers")
            .iter()
            .zip(after.to_f64s().expect("numbers"))
        {
            assert!(
                (x - y).abs() <= 1e-5 * (1.0 + x.abs()),
                "`{}` sample {n}: {x} became {y}",
                rule.name
            );
        }
    }
}
