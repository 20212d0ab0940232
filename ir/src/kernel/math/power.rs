//! Powers and float remainders.

use super::*;

/// A power with a small whole constant exponent, by multiplication.
pub(super) fn small(m: &mut Math, x: Var, y: Var) -> Option<Var> {
    let n = m.small_power(y)?;
    let mut out = m.c(1.0);
    if n != 0 {
        out = x;
        for _ in 1..n.abs() {
            out = m.mul(out, x);
        }
    }
    Some(if n < 0 {
        m.un(Unary::Reciprocal, out)
    } else {
        out
    })
}

/// `e^(y log |x|)`, then the signs and the many edges of `f64`'s power.
pub(super) fn pow(m: &mut Math, x: Var, y: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let l = double::log(m, a);
    let exponent = m.mul(y, l);
    let p = double::exp(m, exponent);
    let one = m.c(1.0);
    let y_nan = m.un(Unary::IsNan, y);
    // |x| = 1 is 1 whatever y is (for x = -1: unless y is NaN).
    let unit = m.where_c(Binary::Eq, a, 1.0, one, p);
    let p = m.pick(y_nan, p, unit);
    let whole = m.un(Unary::Trunc, y);
    let is_whole = m.op(Binary::Eq, whole, y);
    let half = m.mul_c(y, 0.5);
    let half_whole = m.un(Unary::Trunc, half);
    let is_odd = m.op(Binary::Ne, half, half_whole);
    let is_odd = m.op(Binary::And, is_odd, is_whole);
    // The sign bit, so that -0 counts.
    let bits = m.bits(x, I64);
    let zero = m.i(I64, 0);
    let negative = m.op(Binary::Lt, bits, zero);
    let flips = m.op(Binary::And, negative, is_odd);
    let minus = m.un(Unary::Neg, p);
    let signed = m.pick(flips, minus, p);
    // A negative finite number to a fraction is no number.
    let zero = m.c(0.0);
    let largest = m.c(f64::MAX);
    let below = m.op(Binary::Lt, x, zero);
    let finite = m.op(Binary::Le, a, largest);
    let fraction = m.un(Unary::Not, is_whole);
    let bad = m.op(Binary::And, below, finite);
    let bad = m.op(Binary::And, bad, fraction);
    let nan = m.c(f64::NAN);
    let y_out = m.pick(bad, nan, signed);
    let y_out = m.where_c(Binary::Eq, x, 1.0, one, y_out);
    m.where_c(Binary::Eq, y, 0.0, one, y_out)
}

/// Square and multiply; a negative exponent gives 0 but for the bases 1 and -1.
pub(super) fn integer(m: &mut Math, x: Var, y: Var) -> Option<Var> {
    let elem = m.elem;
    let TileElem::Elem(e) = elem else {
        return None;
    };
    if !e.is_int() {
        return None;
    }
    let (zero, one) = (m.i(elem, 0), m.i(elem, 1));
    let (begin, end) = (m.b.index(0), m.b.index(i64::from(e.bits())));
    let shape = m.shape.clone();
    let results = m.b.for_loop(begin, end, 1, &[one, x, y], |b, _, carried| {
        let mut m = Math { b, shape, elem };
        let &[out, base, exponent] = carried else {
            return carried.to_vec();
        };
        let one = m.i(elem, 1);
        let bit = m.op(Binary::And, exponent, one);
        let set = m.op(Binary::Eq, bit, one);
        let more = m.mul(out, base);
        let out = m.pick(set, more, out);
        let base = m.mul(base, base);
        // An arithmetic shift keeps negative exponents at -1; they are replaced below.
        let exponent = m.op(Binary::Shr, exponent, one);
        vec![out, base, exponent]
    });
    let minus_one = m.i(elem, -1);
    let is_one = m.op(Binary::Eq, x, one);
    let is_minus_one = m.op(Binary::Eq, x, minus_one);
    let bit = m.op(Binary::And, y, one);
    let odd = m.op(Binary::Eq, bit, one);
    let unit = m.pick(odd, minus_one, one);
    let inverse = m.pick(is_minus_one, unit, zero);
    let inverse = m.pick(is_one, one, inverse);
    let negative = m.op(Binary::Lt, y, zero);
    Some(m.pick(negative, inverse, results[0]))
}

/// `fmod` by repeated subtraction of exact multiples, in `f64`: each round takes the quotient's top bits, so that the
/// product is exact, and so is the difference. Operands of `f32` need 24-bit quotients, operands of `f64`
/// products in two parts.
pub(super) fn remainder(m: &mut Math, f: Binary, x: Var, y: Var) -> Var {
    let elem = m.elem;
    let (wide_x, wide_y) = (m.to(x, F64), m.to(y, F64));
    m.elem = F64;
    let (a, d) = (m.un(Unary::Abs, wide_x), m.un(Unary::Abs, wide_y));
    // `f64`'s exponents span 2098 bits, `f32`'s 277; a round takes 22 at least.
    let rounds = if elem == F32 { 15 } else { 96 };
    let (begin, end) = (m.b.index(0), m.b.index(rounds));
    let shape = m.shape.clone();
    let r = m.b.for_loop(begin, end, 1, &[a], |b, _, carried| {
        let mut m = Math {
            b,
            shape,
            elem: F64,
        };
        vec![reduce_once(&mut m, carried[0], d)]
    })[0];
    let r = m.copy_sign(r, wide_x);
    // Infinite divisors leave finite dividends as they are; infinite dividends and zero divisors give NaN.
    let (inf, nan, largest) = (m.c(f64::INFINITY), m.c(f64::NAN), m.c(f64::MAX));
    let far = m.op(Binary::Eq, d, inf);
    let r = m.pick(far, wide_x, r);
    let finite = m.op(Binary::Le, a, largest);
    let r = m.pick(finite, r, nan);
    let r = m.where_c(Binary::Gt, d, 0.0, r, nan);
    let r = if f == Binary::Mod {
        let zero = m.c(0.0);
        let (r_negative, y_negative) = (m.op(Binary::Lt, r, zero), m.op(Binary::Lt, wide_y, zero));
        let differ = m.op(Binary::Ne, r_negative, y_negative);
        let nonzero = m.op(Binary::Ne, r, zero);
        let moves = m.op(Binary::And, differ, nonzero);
        let moved = m.add(r, wide_y);
        m.pick(moves, moved, r)
    } else {
        r
    };
    m.elem = elem;
    m.to(r, elem)
}

/// `r - q d` for a `q` of at most 24 bits that is not above `r / d`.
fn reduce_once(m: &mut Math, r: Var, d: Var) -> Var {
    let q = m.div(r, d);
    // A quotient that overflows is replaced by one that surely is small enough.
    let big = m.c(2f64.powi(1000));
    let q = m.op(Binary::Min, q, big);
    // A little less, so that rounding never makes it too large; what that leaves is for the next round.
    let q = m.fma_c(q, q, -(2f64.powi(-50)));
    let bits = m.bits(q, I64);
    let mask = m.i(I64, !((1 << 29) - 1));
    let bits = m.op(Binary::And, bits, mask);
    let q = m.bits(bits, F64);
    let q = m.un(Unary::Trunc, q);
    // d = high + low, with 26 and 27 bits.
    let bits = m.bits(d, I64);
    let mask = m.i(I64, !((1 << 27) - 1));
    let bits = m.op(Binary::And, bits, mask);
    let high = m.bits(bits, F64);
    let low = m.sub(d, high);
    let product = m.mul(q, high);
    let next = m.sub(r, product);
    let product = m.mul(q, low);
    let next = m.sub(next, product);
    let keep = m.op(Binary::Ge, r, d);
    m.pick(keep, next, r)
}
