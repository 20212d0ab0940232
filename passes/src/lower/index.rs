//! Index arithmetic: positions inside a tensor as polynomials over loop variables.
//!
//! A [`Dim`] serves as an index expression. Its symbols are the program's own, loop variables (`#n`), and
//! values read at run time (`@n`, see [`Body::data_index`]). Division and remainder are simplified with the
//! loop variables' ranges, so that a reshape between loops and tensor usually leaves neither.

use super::expr::Body;
use lapidary_ir::Dim;
use lapidary_ir::dim::Atom;

/// A loop variable, by position in [`Body::extents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoopVar(pub u32);

impl LoopVar {
    /// The variable as an index expression.
    pub fn dim(self) -> Dim {
        Dim::sym(&format!("#{}", self.0))
    }
}

/// What a symbol in an index expression is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// A loop variable.
    Loop(LoopVar),
    /// A value read at run time.
    Data(u32),
    /// A symbol of the program.
    Program,
}

/// Tells what a symbol stands for.
pub fn symbol_kind(name: &str) -> SymbolKind {
    let number = |s: &str| s.parse::<u32>().ok();
    if let Some(n) = name.strip_prefix('#').and_then(number) {
        return SymbolKind::Loop(LoopVar(n));
    }
    match name.strip_prefix('@').and_then(number) {
        Some(n) => SymbolKind::Data(n),
        None => SymbolKind::Program,
    }
}

/// True if only the program's symbols occur: a size known at launch.
pub fn is_size(d: &Dim) -> bool {
    let mut yes = true;
    d.visit_symbols(&mut |s| yes &= symbol_kind(s) == SymbolKind::Program);
    yes
}

/// True if only the program's symbols occur in an atom.
pub fn atom_is_size(a: &Atom) -> bool {
    match a {
        Atom::Sym(s) => symbol_kind(s) == SymbolKind::Program,
        Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
            is_size(a) && is_size(b)
        }
    }
}

/// An atom as a polynomial.
pub fn atom_dim(a: &Atom) -> Dim {
    match a {
        Atom::Sym(s) => Dim::sym(s),
        Atom::FloorDiv(a, b) => a.floor_div(b),
        Atom::Mod(a, b) => a.modulo(b),
        Atom::Min(a, b) => a.min_dim(b),
        Atom::Max(a, b) => a.max_dim(b),
    }
}

/// A term as a polynomial.
pub fn term_dim(atoms: &[Atom], c: i64) -> Dim {
    atoms
        .iter()
        .fold(Dim::from(c), |product, a| product * atom_dim(a))
}

/// How an index depends on one loop variable.
#[derive(Clone, Debug, PartialEq)]
pub enum Along {
    /// Not at all.
    Not,
    /// Linearly, with this coefficient (a size).
    Stride(Dim),
    /// In another way.
    Other,
}

/// How `d` depends on `var`, where the variables that `also` names count as depending on it.
pub fn along(d: &Dim, var: LoopVar, body: &Body) -> Along {
    let mut stride = Dim::default();
    for (atoms, c) in d.terms() {
        let touching = atoms.iter().filter(|a| body.atom_depends(a, var)).count();
        if touching == 0 {
            continue;
        }
        let mut rest = vec![];
        let mut plain = 0;
        for a in atoms {
            if matches!(a, Atom::Sym(s) if symbol_kind(s) == SymbolKind::Loop(var)) {
                plain += 1;
            } else if atom_is_size(a) {
                rest.push(a.clone());
            } else {
                return Along::Other;
            }
        }
        if plain != 1 {
            return Along::Other;
        }
        stride = stride + term_dim(&rest, c);
    }
    if stride == Dim::default() {
        Along::Not
    } else {
        Along::Stride(stride)
    }
}

/// A position in a tensor of a known shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pos {
    /// One index per axis.
    At(Vec<Dim>),
    /// A row-major linear index.
    Flat(Dim),
}

impl Pos {
    /// One index per axis of `shape`.
    pub fn indices(&self, body: &Body, shape: &[Dim]) -> Vec<Dim> {
        match self {
            Pos::At(v) => v.clone(),
            Pos::Flat(f) => {
                let mut out = vec![Dim::default(); shape.len()];
                let mut rest = f.clone();
                for (k, n) in shape.iter().enumerate().rev() {
                    if n.as_const() == Some(1) {
                        continue;
                    }
                    let outermost = shape[..k].iter().all(|d| d.as_const() == Some(1));
                    out[k] = if outermost {
                        rest.clone()
                    } else {
                        body.rem(&rest, n)
                    };
                    if !outermost {
                        rest = body.div(&rest, n);
                    }
                }
                out
            }
        }
    }

    /// The row-major linear index into `shape`.
    pub fn linear(&self, shape: &[Dim]) -> Dim {
        match self {
            Pos::Flat(f) => f.clone(),
            Pos::At(v) => v
                .iter()
                .zip(shape)
                .fold(Dim::default(), |sum, (i, n)| &(sum * n.clone()) + i),
        }
    }
}

impl Body {
    /// `a` div `b`, rounded down, for `b > 0`.
    pub fn div(&self, a: &Dim, b: &Dim) -> Dim {
        if b.as_const() == Some(1) {
            return a.clone();
        }
        let (q, r) = self.split(a, b);
        if self.within(&r, b) {
            return q;
        }
        if q == Dim::default()
            && let Some((Atom::FloorDiv(x, y), 1)) = single_atom(&r)
        {
            return self.div(x, &(y * b));
        }
        q + r.floor_div(b)
    }

    /// `a` mod `b`, for `b > 0`.
    pub fn rem(&self, a: &Dim, b: &Dim) -> Dim {
        if b.as_const() == Some(1) {
            return Dim::default();
        }
        let (_, r) = self.split(a, b);
        if self.within(&r, b) {
            return r;
        }
        r.modulo(b)
    }

    /// `a = q * b + r` where `r` collects what is not visibly a multiple of `b`.
    fn split(&self, a: &Dim, b: &Dim) -> (Dim, Dim) {
        let (mut q, mut r) = (Dim::default(), Dim::default());
        for (atoms, c) in a.terms() {
            let term = term_dim(atoms, c);
            let quotient = term.floor_div(b);
            if &quotient * b == term {
                q = q + quotient;
            } else {
                r = r + term;
            }
        }
        // A constant splits too: `4i + 5` is `4(i + 1) + 1`.
        if let Some(n) = b.as_const().filter(|&n| n > 0) {
            let constant: i64 = r.terms().filter(|t| t.0.is_empty()).map(|t| t.1).sum();
            let up = constant.div_euclid(n);
            if up != 0 {
                q = q + Dim::from(up);
                r = r - Dim::from(up * n);
            }
        }
        (q, r)
    }

    /// True if `0 <= d < n` for certain.
    pub fn within(&self, d: &Dim, n: &Dim) -> bool {
        match (self.bound(d, false), self.bound(d, true)) {
            (Some(lo), Some(hi)) => nonnegative(&lo) && nonnegative(&(n - &(hi + Dim::from(1i64)))),
            _ => false,
        }
    }

    /// True if `a < b` for certain (`Some(true)`), certainly not (`Some(false)`), or unknown.
    pub fn less(&self, a: &Dim, b: &Dim) -> Option<bool> {
        let d = b - a;
        if let Some(lo) = self.bound(&d, false)
            && nonnegative(&(lo - Dim::from(1i64)))
        {
            return Some(true);
        }
        let hi = self.bound(&d, true)?;
        nonnegative(&(Dim::default() - hi)).then_some(false)
    }

    /// The largest (or smallest) value of an index over the loops, as a size.
    fn bound(&self, d: &Dim, upper: bool) -> Option<Dim> {
        let mut sum = Dim::default();
        for (atoms, c) in d.terms() {
            let want_high = upper == (c > 0);
            let mut product = Dim::from(c);
            for a in atoms {
                product = product * self.atom_bound(a, want_high)?;
            }
            sum = sum + product;
        }
        Some(sum)
    }

    fn atom_bound(&self, a: &Atom, upper: bool) -> Option<Dim> {
        let one = Dim::from(1i64);
        match a {
            _ if atom_is_size(a) => Some(atom_dim(a)),
            Atom::Sym(s) => match symbol_kind(s) {
                SymbolKind::Loop(v) if upper => Some(self.extent(v) - &one),
                SymbolKind::Loop(_) => Some(Dim::default()),
                _ => None,
            },
            Atom::FloorDiv(x, n) if n.as_const().is_some_and(|n| n > 0) => {
                let b = self.bound(x, upper)?;
                nonnegative(&b).then(|| b.floor_div(n))
            }
            Atom::Mod(_, n) if is_size(n) => Some(if upper { n - &one } else { Dim::default() }),
            Atom::Min(x, y) if upper => self
                .bound(x, true)
                .filter(|b| b.as_const().is_some())
                .or_else(|| self.bound(y, true)),
            Atom::Max(x, y) if !upper => self
                .bound(x, false)
                .filter(|b| b.as_const().is_some())
                .or_else(|| self.bound(y, false)),
            _ => None,
        }
    }
}

fn single_atom(d: &Dim) -> Option<(&Atom, i64)> {
    let mut terms = d.terms();
    match (terms.next()?, terms.next()) {
        (([a], c), None) => Some((a, c)),
        _ => None,
    }
}

/// True if a size cannot be negative when every symbol is at least 1.
pub fn nonnegative(d: &Dim) -> bool {
    if let Some(c) = d.as_const() {
        return c >= 0;
    }
    let shifted = d.substitute(&|s| Some(Dim::sym(s) + Dim::from(1i64)));

    shifted
        .terms()
        .all(|(atoms, c)| c >= 0 && atoms.iter().all(|a| matches!(a, Atom::Sym(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshapes_leave_no_division() {
        let mut body = Body::default();
        let n = Dim::sym("N");
        let (i, j) = (body.loop_var(n.clone()), body.loop_var(Dim::from(12i64)));
        let at = Pos::At(vec![i.dim(), j.dim()]);
        let flat = at.linear(&[n.clone(), Dim::from(12i64)]);
        let back = Pos::Flat(flat).indices(&body, &[n.clone(), Dim::from(12i64)]);
        assert_eq!(back, vec![i.dim(), j.dim()]);
        assert_eq!(
            body.div(
                &(Dim::from(4i64) * j.dim() + Dim::from(5i64)),
                &Dim::from(4i64)
            ),
            j.dim() + Dim::from(1i64)
        );
        assert_eq!(body.less(&j.dim(), &Dim::from(12i64)), Some(true));
        assert_eq!(body.less(&i.dim(), &n), Some(true));
    }
}
