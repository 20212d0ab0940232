//! Values of sizes while symbols are being bound.

use lapidary_abi::Size;

/// A symbol that has no value yet.
pub const UNBOUND: i64 = i64::MIN;

/// The size's value; `None` on overflow, division by zero, or a symbol without a value.
pub fn eval(size: &Size, symbols: &[i64]) -> Option<i64> {
    if let Size::Const(c) = size {
        return Some(*c);
    }
    is_bound(size, symbols)
        .then(|| size.eval(symbols))
        .flatten()
}

/// Whether every symbol that the size names has a value.
pub fn is_bound(size: &Size, symbols: &[i64]) -> bool {
    match size {
        Size::Const(_) => true,
        Size::Sym(s) => symbols.get(*s as usize).is_some_and(|&v| v != UNBOUND),
        Size::Add(a, b)
        | Size::Mul(a, b)
        | Size::FloorDiv(a, b)
        | Size::Mod(a, b)
        | Size::Min(a, b)
        | Size::Max(a, b) => is_bound(a, symbols) && is_bound(b, symbols),
    }
}

/// The values of dimensions; `None` if one is unknown or negative.
pub fn dims(sizes: &[Size], symbols: &[i64]) -> Option<Vec<usize>> {
    sizes
        .iter()
        .map(|s| eval(s, symbols).and_then(|v| usize::try_from(v).ok()))
        .collect()
}

/// Fills `out` with the values of dimensions; false if one is unknown or negative.
pub fn dims_into(sizes: &[Size], symbols: &[i64], out: &mut Vec<usize>) -> bool {
    out.clear();
    let value = |s| usize::try_from(eval(s, symbols)?).ok();
    out.extend(sizes.iter().map_while(value));
    out.len() == sizes.len()
}

/// Text of a size for messages and help: numbers, symbols' names, formulas.
pub fn text(size: &Size, names: &[String]) -> String {
    let two = |a: &Size, op: &str, b: &Size| format!("({}{op}{})", text(a, names), text(b, names));
    match size {
        Size::Const(c) => c.to_string(),
        Size::Sym(s) => names
            .get(*s as usize)
            .cloned()
            .unwrap_or_else(|| format!("?{s}")),
        Size::Add(a, b) => two(a, "+", b),
        Size::Mul(a, b) => two(a, "*", b),
        Size::FloorDiv(a, b) => two(a, "/", b),
        Size::Mod(a, b) => two(a, "%", b),
        Size::Min(a, b) => format!("min({}, {})", text(a, names), text(b, names)),
        Size::Max(a, b) => format!("max({}, {})", text(a, names), text(b, names)),
    }
}
