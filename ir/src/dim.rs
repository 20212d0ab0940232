//! Symbolic dimensions: integer polynomials over named symbols, kept in one canonical form.
//!
//! `P + N` and `N + P` are the same [`Dim`], and `2*N - N` is `N`; so equality of shapes is equality of
//! values. What is not polynomial (`floordiv`, `mod`, `min`, `max`) is an opaque atom over such sums.
//! Expressions larger than [`Dim::MAX_WEIGHT`], which only absurd programs make, become a symbol of their
//! own, named by their content; so arithmetic on what a file says takes bounded time and memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A factor of a monomial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// A named unknown: `batch`, `seq`; names starting with `?` are the compiler's own.
    Sym(Arc<str>),
    /// Quotient rounded towards minus infinity.
    FloorDiv(Dim, Dim),
    /// Remainder with the sign of the divisor.
    Mod(Dim, Dim),
    /// The smaller of two.
    Min(Dim, Dim),
    /// The larger of two.
    Max(Dim, Dim),
}

/// A dimension (or any shape-like integer): a sum of `coefficient * product of atoms`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Dim {
    /// Product of atoms (sorted, the empty product is 1) to its non-zero coefficient.
    terms: BTreeMap<Vec<Atom>, i64>,
}

impl Dim {
    /// A symbol by name.
    pub fn sym(name: &str) -> Dim {
        Dim::atom(Atom::Sym(name.into()))
    }

    fn atom(atom: Atom) -> Dim {
        Dim {
            terms: BTreeMap::from([(vec![atom], 1)]),
        }
    }

    /// The number, if there is no symbol in it.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&vec![]).copied(),
            _ => None,
        }
    }

    /// The terms: each a product of atoms and its coefficient.
    pub fn terms(&self) -> impl Iterator<Item = (&[Atom], i64)> {
        self.terms.iter().map(|(atoms, c)| (atoms.as_slice(), *c))
    }

    /// Most weight of an expression: far more than real shapes have.
    pub const MAX_WEIGHT: usize = 512;

    /// Its size: terms, factors, and 8 for each nested expression, so that depth is bounded too.
    pub fn weight(&self) -> usize {
        let factor = |atom: &Atom| match atom {
            Atom::Sym(_) => 1,
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                8 + a.weight() + b.weight()
            }
        };
        let terms = self.terms.keys();
        terms
            .map(|atoms| 1 + atoms.iter().map(factor).sum::<usize>())
            .sum()
    }

    /// True if `self * other` may be too large to be written out.
    pub fn outgrows_product(&self, other: &Dim) -> bool {
        let (a, b) = (self.terms.len(), other.terms.len());
        a * other.weight() + b * self.weight() > Dim::MAX_WEIGHT
    }

    /// True if their sum, or another function of both, may be too large to be written out.
    pub fn outgrows_sum(&self, other: &Dim) -> bool {
        8 + self.weight() + other.weight() > Dim::MAX_WEIGHT
    }

    /// The symbol that stands for a too large expression; the same one for the same expression.
    fn opaque(&self, function: &str, other: &Dim) -> Dim {
        let text = format!("{function}({self}, {other})");
        Dim::sym(&format!(
            "?p{:016x}",
            crate::text::checksum(text.as_bytes())
        ))
    }

    fn function(&self, other: &Dim, name: &str, make: fn(Dim, Dim) -> Atom) -> Dim {
        if self.outgrows_sum(other) {
            return self.opaque(name, other);
        }
        Dim::atom(make(self.clone(), other.clone()))
    }

    fn combine(&self, other: &Dim, sign: i64) -> Dim {
        let mut terms = self.terms.clone();
        for (atoms, c) in &other.terms {
            let slot = terms.entry(atoms.clone()).or_insert(0);
            *slot = slot.saturating_add(c.saturating_mul(sign));
            if *slot == 0 {
                terms.remove(atoms);
            }
        }
        Dim { terms }
    }

    /// Quotient rounded towards minus infinity; exact division of every term is carried out.
    pub fn floor_div(&self, by: &Dim) -> Dim {
        match (self.as_const(), by.as_const()) {
            (_, Some(1)) => return self.clone(),
            (Some(a), Some(b)) if b != 0 && (a, b) != (i64::MIN, -1) => {
                return Dim::from(a.div_euclid(b) - i64::from(b < 0 && a.rem_euclid(b) != 0));
            }
            (None, Some(b))
                if b != 0 && self.terms.values().all(|c| c.checked_rem(b) == Some(0)) =>
            {
                return Dim {
                    terms: self.terms.iter().map(|(a, c)| (a.clone(), c / b)).collect(),
                };
            }
            _ => {}
        }
        self.div_by_monomial(by)
            .unwrap_or_else(|| self.function(by, "floordiv", Atom::FloorDiv))
    }

    /// `self / by` when `by` is one term that divides every term of `self` (its symbols taken as non-zero).
    fn div_by_monomial(&self, by: &Dim) -> Option<Dim> {
        let (atoms, coefficient) = by.terms().next().filter(|_| by.terms.len() == 1)?;
        let mut out = Dim::default();
        for (term, c) in &self.terms {
            let mut rest = term.clone();
            for a in atoms {
                let at = rest.iter().position(|r| r == a)?;
                rest.remove(at);
            }
            if c.checked_rem(coefficient) != Some(0) {
                return None;
            }
            out.terms.insert(rest, c / coefficient);
        }
        Some(out)
    }

    /// Quotient rounded towards plus infinity.
    pub fn ceil_div(&self, by: &Dim) -> Dim {
        (self + by - Dim::from(1i64)).floor_div(by)
    }

    /// Remainder with the sign of the divisor.
    pub fn modulo(&self, by: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b != 0
        {
            let r = a.wrapping_rem(b);
            return Dim::from(if r != 0 && (r < 0) != (b < 0) {
                r + b
            } else {
                r
            });
        }
        if by.as_const() == Some(1) || self.div_by_monomial(by).is_some() {
            return Dim::from(0i64);
        }
        self.function(by, "mod", Atom::Mod)
    }

    /// True if `other` is a maximum (or, if not `max`, a minimum) with `self` as one side: then
    /// `min(self, max(self, x))` is `self`, and `max(self, min(self, x))` too.
    fn is_one_of(&self, other: &Dim, max: bool) -> bool {
        let mut terms = other.terms();
        match (terms.next(), terms.next()) {
            (Some(([Atom::Max(a, b)], 1)), None) if max => self == a || self == b,
            (Some(([Atom::Min(a, b)], 1)), None) if !max => self == a || self == b,
            _ => false,
        }
    }

    /// The smaller of two.
    pub fn min_dim(&self, other: &Dim) -> Dim {
        match (self - other).as_const() {
            Some(d) => {
                if d <= 0 {
                    self.clone()
                } else {
                    other.clone()
                }
            }
            None if self.is_one_of(other, true) => self.clone(),
            None if other.is_one_of(self, true) => other.clone(),
            None => self.function(other, "min", Atom::Min),
        }
    }

    /// The larger of two.
    pub fn max_dim(&self, other: &Dim) -> Dim {
        match (self - other).as_const() {
            Some(d) => {
                if d >= 0 {
                    self.clone()
                } else {
                    other.clone()
                }
            }
            None if self.is_one_of(other, false) => self.clone(),
            None if other.is_one_of(self, false) => other.clone(),
            None => self.function(other, "max", Atom::Max),
        }
    }

    /// A number that it is never below, symbols taken as at least 1; `None` if none is known.
    pub fn lower_bound(&self) -> Option<i64> {
        let mut sum = 0i64;
        for (atoms, c) in &self.terms {
            if atoms.is_empty() {
                sum = sum.saturating_add(*c);
            } else if *c < 0 {
                return None;
            } else if atoms.iter().all(|a| matches!(a, Atom::Sym(_))) {
                sum = sum.saturating_add(*c);
            } else if atoms.iter().any(|a| a.lower_bound().is_none_or(|b| b < 0)) {
                return None;
            }
        }
        Some(sum)
    }

    /// Replaces symbols for which `with` gives a value, and simplifies again.
    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        let mut sum = Dim::default();
        for (atoms, c) in &self.terms {
            let mut product = Dim::from(*c);
            for atom in atoms {
                let two = |a: &Dim, b: &Dim| (a.substitute(with), b.substitute(with));
                let value = match atom {
                    Atom::Sym(name) => with(name).unwrap_or_else(|| Dim::atom(atom.clone())),
                    Atom::FloorDiv(a, b) => {
                        let (a, b) = two(a, b);
                        a.floor_div(&b)
                    }
                    Atom::Mod(a, b) => {
                        let (a, b) = two(a, b);
                        a.modulo(&b)
                    }
                    Atom::Min(a, b) => {
                        let (a, b) = two(a, b);
                        a.min_dim(&b)
                    }
                    Atom::Max(a, b) => {
                        let (a, b) = two(a, b);
                        a.max_dim(&b)
                    }
                };
                product = product * value;
            }
            sum = sum + product;
        }
        sum
    }

    /// Calls `f` with the name of every symbol in it, repeats included.
    pub fn visit_symbols(&self, f: &mut dyn FnMut(&str)) {
        for atoms in self.terms.keys() {
            for atom in atoms {
                match atom {
                    Atom::Sym(name) => f(name),
                    Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                        a.visit_symbols(f);
                        b.visit_symbols(f);
                    }
                }
            }
        }
    }
}

impl Atom {
    fn lower_bound(&self) -> Option<i64> {
        match self {
            Atom::Sym(_) => Some(1),
            Atom::FloorDiv(a, b) => (a.lower_bound()? >= 0 && b.lower_bound()? > 0).then_some(0),
            Atom::Mod(_, b) => (b.lower_bound()? > 0).then_some(0),
            Atom::Min(a, b) => Some(a.lower_bound()?.min(b.lower_bound()?)),
            Atom::Max(a, b) => a.lower_bound().max(b.lower_bound()),
        }
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        let mut terms = BTreeMap::new();
        if value != 0 {
            terms.insert(vec![], value);
        }
        Dim { terms }
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Dim {
        Dim::from(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

macro_rules! arithmetic {
    ($trait:ident $method:ident $body:expr) => {
        impl std::ops::$trait<&Dim> for &Dim {
            type Output = Dim;
            fn $method(self, other: &Dim) -> Dim {
                #[allow(
                    clippy::redundant_closure_call,
                    reason = "the macro takes the operation as a closure"
                )]
                ($body)(self, other)
            }
        }
        impl std::ops::$trait<Dim> for Dim {
            type Output = Dim;
            fn $method(self, other: Dim) -> Dim {
                std::ops::$trait::$method(&self, &other)
            }
        }
        impl std::ops::$trait<&Dim> for Dim {
            type Output = Dim;
            fn $method(self, other: &Dim) -> Dim {
                std::ops::$trait::$method(&self, other)
            }
        }
        impl std::ops::$trait<Dim> for &Dim {
            type Output = Dim;
            fn $method(self, other: Dim) -> Dim {
                std::ops::$trait::$method(self, &other)
            }
        }
    };
}

arithmetic!(Add add |a: &Dim, b: &Dim| {
    if a.outgrows_sum(b) { a.opaque("add", b) } else { a.combine(b, 1) }
});
arithmetic!(Sub sub |a: &Dim, b: &Dim| {
    if a.outgrows_sum(b) { a.opaque("sub", b) } else { a.combine(b, -1) }
});
arithmetic!(Mul mul |a: &Dim, b: &Dim| {
    if a.outgrows_product(b) {
        return a.opaque("mul", b);
    }
    let mut sum = Dim::default();
    for (x, cx) in &a.terms {
        for (y, cy) in &b.terms {
            let mut atoms: Vec<Atom> = x.iter().chain(y).cloned().collect();
            atoms.sort();
            sum = sum.combine(&Dim { terms: BTreeMap::from([(atoms, cx.saturating_mul(*cy))]) }, 1);
        }
    }
    sum
});

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(name) => f.write_str(&crate::text::symbol(name)),
            Atom::FloorDiv(a, b) => write!(f, "floordiv({a}, {b})"),
            Atom::Mod(a, b) => write!(f, "mod({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
        }
    }
}

impl fmt::Display for Dim {
    /// Prints like `2*N*P + M - 1`; the text parser reads it back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Constants last, so that `N + 1` reads naturally.
        let ordered = self
            .terms
            .iter()
            .filter(|(a, _)| !a.is_empty())
            .chain(self.terms.iter().filter(|(a, _)| a.is_empty()));
        for (i, (atoms, c)) in ordered.enumerate() {
            let sign = match (i, *c < 0) {
                (0, false) => "",
                (0, true) => "-",
                (_, false) => " + ",
                (_, true) => " - ",
            };
            f.write_str(sign)?;
            let magnitude = c.unsigned_abs();
            let mut factors: Vec<String> = atoms.iter().map(Atom::to_string).collect();
            if magnitude != 1 || factors.is_empty() {
                factors.insert(0, magnitude.to_string());
            }
            f.write_str(&factors.join("*"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_canonical() {
        let (n, p) = (Dim::sym("N"), Dim::sym("P"));
        assert_eq!(&n + &p, &p + &n);
        assert_eq!(&(&n + &p) - &p, n);
        assert_eq!((&n * Dim::from(4i64)).floor_div(&Dim::from(4i64)), n);
        assert_eq!((&n * &p).floor_div(&p), n);
        assert_eq!(
            (Dim::from(2i64) * &n * &p - Dim::from(1i64)).to_string(),
            "2*N*P - 1"
        );
        assert_eq!(
            Dim::from(-7i64).floor_div(&Dim::from(2i64)),
            Dim::from(-4i64)
        );
        assert_eq!(
            (&n + Dim::from(1i64)).substitute(&|_| Some(Dim::from(3i64))),
            Dim::from(4i64)
        );
    }

    #[test]
    fn outgrown_expressions_become_symbols() {
        let (a, b) = (Dim::sym("a"), Dim::sym("b"));
        let (mut square, mut nested) = (&a + &b, a.clone());
        for _ in 0..99 {
            square = &square * &square;
            nested = nested.floor_div(&b);
            assert!(square.weight() <= Dim::MAX_WEIGHT && nested.weight() <= Dim::MAX_WEIGHT);
        }
        // The same expression is the same symbol, so that equal shapes stay equal.
        let large = (0..7).fold(&a + &b, |p, _| &p * &(&p + &b));
        assert_eq!(&large * &large, &large * &large);
    }
}
