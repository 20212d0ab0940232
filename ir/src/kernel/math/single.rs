//! Functions of `f32` that deserve their own short form.

use super::*;
use lapidary_abi::math;

pub(super) fn unary(m: &mut Math, f: Unary, x: Var) -> Option<Var> {
    Some(match f {
        Unary::Exp => exp(m, x),
        Unary::Log => log(m, x),
        Unary::Tanh => tanh(m, x),
        Unary::Erf => erf(m, x),
        Unary::Sin => sin_cos(m, x, 0),
        Unary::Cos => sin_cos(m, x, 1),
        _ => return None,
    })
}

/// `x = k ln 2 + r`; `e^r` is a polynomial.
fn exp(m: &mut Math, x: Var) -> Var {
    let x = m.clamp(x, math::EXP_RANGE.0, math::EXP_RANGE.1);
    let k = m.mul_c(x, std::f64::consts::LOG2_E);
    let k = m.un(Unary::RoundEven, k);
    let r = m.fma_c(x, k, -math::LN2.0);
    let r = m.fma_c(r, k, -math::LN2.1);
    let p = m.poly(r, &math::EXP);
    let rr = m.mul(r, r);
    let tail = m.fma(p, rr, r);
    let y = m.add_c(tail, 1.0);
    let k = m.to(k, I32);
    m.scale(y, k)
}

/// `x = 2^e (1 + f)` with `1 + f` around one.
fn log(m: &mut Math, x: Var) -> Var {
    // Subnormal numbers are scaled up first.
    let big = m.mul_c(x, 8388608.0);
    let scaled = m.where_c(Binary::Lt, x, f64::from(f32::MIN_POSITIVE), big, x);
    let (none, shift) = (m.c(0.0), m.c(-23.0));
    let less = m.where_c(Binary::Lt, x, f64::from(f32::MIN_POSITIVE), shift, none);
    let bits = m.bits(scaled, I32);
    let from = m.i(I32, i64::from(std::f32::consts::FRAC_1_SQRT_2.to_bits()));
    let above = m.sub(bits, from);
    let mantissa = m.i(I32, 23);
    let e = m.op(Binary::Shr, above, mantissa);
    let place = m.op(Binary::Shl, e, mantissa);
    let bits = m.sub(bits, place);
    let one_f = m.bits(bits, F32);
    let f = m.add_c(one_f, -1.0);
    let e = m.to(e, F32);
    let e = m.add(e, less);
    let p = m.poly(
        f,
        &[
            3.3333331178e-01,
            -2.4999997001e-01,
            2.0000716304e-01,
            -1.6667798276e-01,
            1.4249032731e-01,
            -1.2425776723e-01,
            1.1685795939e-01,
            -1.1479188087e-01,
            6.9697539821e-02,
        ],
    );
    let ff = m.mul(f, f);
    let fff = m.mul(ff, f);
    let y = m.mul(fff, p);
    let y = m.fma_c(y, e, math::LN2.1);
    let y = m.fma_c(y, ff, -0.5);
    let y = m.add(y, f);
    let y = m.fma_c(y, e, math::LN2.0);
    log_edges(m, x, y)
}

/// Zero, infinity, negative numbers and NaN.
pub(super) fn log_edges(m: &mut Math, x: Var, y: Var) -> Var {
    let (minus_inf, nan) = (m.c(f64::NEG_INFINITY), m.c(f64::NAN));
    let y = m.where_c(Binary::Eq, x, f64::INFINITY, x, y);
    let y = m.where_c(Binary::Eq, x, 0.0, minus_inf, y);
    // Neither negative numbers nor NaN are at least zero.
    m.where_c(Binary::Ge, x, 0.0, y, nan)
}

fn tanh(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let z = m.mul(x, x);
    let p = m.poly(z, &math::TANH);
    let zx = m.mul(z, x);
    let near = m.fma(p, zx, x);
    // tanh a = 1 - 2 / (e^2a + 1), which is 1 from 9.02 on.
    let twice = m.add(a, a);
    let twice = m.clamp(twice, 0.0, math::TANH_FAR);
    let e = exp(m, twice);
    let e = m.add_c(e, 1.0);
    let two = m.c(-2.0);
    let far = m.div(two, e);
    let far = m.add_c(far, 1.0);
    let far = m.copy_sign(far, x);
    m.where_c(Binary::Lt, a, math::TANH_NEAR, near, far)
}

fn erf(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let z = m.mul(x, x);
    let p = m.poly(z, &math::ERF);
    let near = m.fma(p, x, x);
    // erf t = 1 - e^(t q(t)), which is 1 from 3.92 on.
    let t = m.clamp(a, 0.0, math::ERF_FAR);
    let q = m.poly(t, &math::ERF_TAIL);
    let tq = m.mul(t, q);
    let e = exp(m, tq);
    let one = m.c(1.0);
    let far = m.sub(one, e);
    let far = m.copy_sign(far, x);
    m.where_c(Binary::Lt, a, math::ERF_NEAR, near, far)
}

/// Quarter turns: the polynomials of the rest are chosen and signed by the quarter, `ahead` more for the cosine.
fn sin_cos(m: &mut Math, x: Var, ahead: i64) -> Var {
    let (quarter, rest) = double::quarter_turns_of_f32(m, x);
    let r = m.to(rest, F32);
    let z = m.mul(r, r);
    let s = m.poly(
        z,
        &[
            -1.6666666664e-01,
            8.3333318737e-03,
            -1.9840086163e-04,
            2.7249851596e-06,
        ],
    );
    let zr = m.mul(z, r);
    let sin = m.fma(s, zr, r);
    let c = m.poly(
        z,
        &[
            4.1666666664e-02,
            -1.3888887671e-03,
            2.4800599899e-05,
            -2.7300897269e-07,
        ],
    );
    let zz = m.mul(z, z);
    let one = m.c(1.0);
    let cos = m.fma_c(one, z, -0.5);
    let cos = m.fma(c, zz, cos);
    double::by_quarter(m, quarter, ahead, sin, cos)
}
