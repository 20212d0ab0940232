//! Sizes that are known exactly, or only once the inputs' dimensions are.

use serde::{Deserialize, Serialize};

/// An integer expression over the program's symbols, evaluated on the host when the symbols are bound.
///
/// Symbols are numbered as in [`crate::program::Program::symbols`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Size {
    /// A number.
    Const(i64),
    /// The value of a symbol.
    Sym(u32),
    /// Sum of two sizes.
    Add(Box<Size>, Box<Size>),
    /// Product of two sizes.
    Mul(Box<Size>, Box<Size>),
    /// Quotient, rounded towards minus infinity.
    FloorDiv(Box<Size>, Box<Size>),
    /// Remainder with the sign of the divisor.
    Mod(Box<Size>, Box<Size>),
    /// The smaller of two.
    Min(Box<Size>, Box<Size>),
    /// The larger of two.
    Max(Box<Size>, Box<Size>),
}

impl Size {
    /// The value, given the symbols' values; `None` on overflow, division by zero or an unbound symbol.
    pub fn eval(&self, symbols: &[i64]) -> Option<i64> {
        let two = |a: &Size, b: &Size| Some((a.eval(symbols)?, b.eval(symbols)?));
        match self {
            Size::Const(c) => Some(*c),
            Size::Sym(s) => symbols.get(*s as usize).copied(),
            Size::Add(a, b) => two(a, b).and_then(|(a, b)| a.checked_add(b)),
            Size::Mul(a, b) => two(a, b).and_then(|(a, b)| a.checked_mul(b)),
            Size::FloorDiv(a, b) => two(a, b).and_then(|(a, b)| {
                let (q, r) = (a.checked_div(b)?, a.checked_rem(b)?);
                Some(if r != 0 && (r < 0) != (b < 0) {
                    q - 1
                } else {
                    q
                })
            }),
            Size::Mod(a, b) => two(a, b).and_then(|(a, b)| {
                let r = a.checked_rem(b)?;
                Some(if r != 0 && (r < 0) != (b < 0) {
                    r + b
                } else {
                    r
                })
            }),
            Size::Min(a, b) => two(a, b).map(|(a, b)| a.min(b)),
            Size::Max(a, b) => two(a, b).map(|(a, b)| a.max(b)),
        }
    }

    /// The number, when it does not depend on a symbol.
    pub fn as_const(&self) -> Option<i64> {
        self.eval(&[])
    }
}

impl From<i64> for Size {
    fn from(value: i64) -> Self {
        Size::Const(value)
    }
}
