//! Functions of `f64`; also what most functions of `f32` are computed with.

use super::*;
use std::f64::consts::{FRAC_2_PI, FRAC_PI_2, FRAC_PI_4, LN_2, LOG2_E};

pub(super) fn unary(m: &mut Math, f: Unary, x: Var) -> Option<Var> {
    Some(match f {
        Unary::Exp => exp(m, x),
        Unary::Log => log(m, x),
        Unary::Sin => sin_cos(m, x, 0),
        Unary::Cos => sin_cos(m, x, 1),
        Unary::Tan => tan(m, x),
        Unary::Asin => asin(m, x),
        Unary::Acos => acos(m, x),
        Unary::Atan => atan(m, x),
        Unary::Sinh => sinh(m, x),
        Unary::Cosh => cosh(m, x),
        Unary::Tanh => tanh(m, x),
        Unary::Asinh => asinh(m, x),
        Unary::Acosh => acosh(m, x),
        Unary::Atanh => atanh(m, x),
        Unary::Erf => erf(m, x),
        _ => return None,
    })
}

pub(super) fn binary(m: &mut Math, f: Binary, x: Var, y: Var) -> Option<Var> {
    match f {
        Binary::Pow => Some(power::pow(m, x, y)),
        Binary::Atan2 => Some(atan2(m, x, y)),
        _ => None,
    }
}

/// Terms `1 / (n + first)!`.
fn inverse_factorials(first: u32, terms: u32) -> Vec<f64> {
    (first..first + terms)
        .map(|n| 1.0 / (1..=n).map(f64::from).product::<f64>())
        .collect()
}

/// Every second of them, with alternating signs.
fn alternating(first: u32, terms: u32, sign: f64) -> Vec<f64> {
    (0..terms)
        .map(|i| {
            let sign = if i % 2 == 0 { sign } else { -sign };
            sign * inverse_factorials(first + 2 * i, 1)[0]
        })
        .collect()
}

pub(super) fn exp(m: &mut Math, x: Var) -> Var {
    let x = m.clamp(x, -750.0, 711.0);
    let (k, r) = by_ln2(m, x);
    let y = m.poly(r, &inverse_factorials(0, 14));
    let k = m.to(k, I64);
    m.scale(y, k)
}

/// `x = k ln 2 + r`.
fn by_ln2(m: &mut Math, x: Var) -> (Var, Var) {
    let k = m.mul_c(x, LOG2_E);
    let k = m.un(Unary::RoundEven, k);
    let r = m.fma_c(x, k, -0.6931471803691238);
    (k, m.fma_c(r, k, -1.9082149292705877e-10))
}

/// `e^x - 1`, without cancellation for small `x`.
fn exp_m1(m: &mut Math, x: Var) -> Var {
    let near = m.poly(x, &inverse_factorials(2, 14));
    let xx = m.mul(x, x);
    let near = m.fma(near, xx, x);
    let far = exp(m, x);
    let far = m.add_c(far, -1.0);
    let a = m.un(Unary::Abs, x);
    m.where_c(Binary::Lt, a, 0.4, near, far)
}

pub(super) fn log(m: &mut Math, x: Var) -> Var {
    let big = m.mul_c(x, 2f64.powi(54));
    let scaled = m.where_c(Binary::Lt, x, f64::MIN_POSITIVE, big, x);
    let (none, shift) = (m.c(0.0), m.c(-54.0));
    let less = m.where_c(Binary::Lt, x, f64::MIN_POSITIVE, shift, none);
    let bits = m.bits(scaled, I64);
    let from = m.i(I64, std::f64::consts::FRAC_1_SQRT_2.to_bits() as i64);
    let above = m.sub(bits, from);
    let mantissa = m.i(I64, 52);
    let e = m.op(Binary::Shr, above, mantissa);
    let place = m.op(Binary::Shl, e, mantissa);
    let bits = m.sub(bits, place);
    let one_f = m.bits(bits, F64);
    let f = m.add_c(one_f, -1.0);
    let e = m.to(e, F64);
    let e = m.add(e, less);
    // log(1 + f) = 2 atanh(s), s = f / (2 + f).
    let below = m.add_c(f, 2.0);
    let s = m.div(f, below);
    let z = m.mul(s, s);
    let terms: Vec<f64> = (1..12).map(|n| 2.0 / f64::from(2 * n + 1)).collect();
    let p = m.poly(z, &terms);
    let zs = m.mul(z, s);
    let y = m.mul(p, zs);
    let y = m.fma_c(y, e, 1.9082149292705877e-10);
    let twice = m.add(s, s);
    let y = m.add(y, twice);
    let y = m.fma_c(y, e, 0.6931471803691238);
    single::log_edges(m, x, y)
}

/// `log(1 + x)`, with the rounding of the sum taken back.
fn log_1p(m: &mut Math, x: Var) -> Var {
    let u = m.add_c(x, 1.0);
    let y = log(m, u);
    let rounded = m.add_c(u, -1.0);
    let ratio = m.div(x, rounded);
    let fixed = m.mul(y, ratio);
    let fixed = m.where_c(Binary::Eq, u, 1.0, x, fixed);
    m.where_c(Binary::Eq, u, f64::INFINITY, u, fixed)
}

/// `x` in quarter turns: their number as `i64`, and the rest in `-pi/4..pi/4`. The number is cut at the given
/// powers of two, so that each piece has at most 20 bits and its product with each part of pi/2 (33 bits) is
/// exact. With [`PIECES`] that holds up to 2^53, above which neighbouring numbers are more than a turn apart.
fn quarter_turns(m: &mut Math, x: Var, pieces: &[i32]) -> (Var, Var) {
    const PARTS: [f64; 3] = [
        1.5707963267341256,
        6.077100506303966e-11,
        2.0222662487959506e-21,
    ];
    let k = m.mul_c(x, FRAC_2_PI);
    let k = m.un(Unary::RoundEven, k);
    let mut cut = vec![];
    let mut low = k;
    for &power in pieces {
        let high = m.mul_c(low, 2f64.powi(-power));
        let high = m.un(Unary::Trunc, high);
        let high = m.mul_c(high, 2f64.powi(power));
        low = m.sub(low, high);
        cut.push(high);
    }
    cut.push(low);
    let mut r = x;
    for part in PARTS {
        for &piece in &cut {
            r = m.fma_c(r, piece, -part);
        }
    }
    (m.to(k, I64), r)
}

/// Where numbers of quarters are cut.
const PIECES: [i32; 2] = [40, 20];

/// As [`quarter_turns`], for an `f32` tile of any size: the number of quarters as `i32`, the rest as `f64`.
pub(super) fn quarter_turns_of_f32(m: &mut Math, x: Var) -> (Var, Var) {
    let wide = m.to(x, F64);
    let (k, r) = m.wide(|m| quarter_turns(m, wide, &[]));
    let k = m.to(k, I32);
    let a = m.un(Unary::Abs, x);
    let limit = m.c(1e5);
    let large = m.op(Binary::Gt, a, limit);
    let mut any = large;
    for _ in 0..m.shape.len() {
        any = m.b.reduce(ReduceKind::Or, any, 0);
    }
    let (shape, elem) = (m.shape.clone(), m.elem);
    let results = m.b.if_else(
        any,
        |b| {
            let mut m = Math { b, shape, elem };
            let (big_k, big_r) = quarter_turns_by_bits(&mut m, x);
            let k = m.pick(large, big_k, k);
            let r = m.pick(large, big_r, r);
            vec![k, r]
        },
        |_| vec![k, r],
    );
    (results[0], results[1])
}

/// Large `f32`: the mantissa times a window of the bits of 2/pi, as integers. Bits of 2/pi whose product is a
/// multiple of four quarters are left out, so that the product's top two bits are the quarter.
fn quarter_turns_by_bits(m: &mut Math, x: Var) -> (Var, Var) {
    // 32 zero bits, then 2/pi.
    const BITS: [i64; 9] = [
        0,
        0xa2f9_836e,
        0x4e44_1529,
        0xfc27_57d1,
        0xf534_ddc0,
        0xdb62_9599,
        0x3c43_9041,
        0xfe51_63ab,
        0xdebb_c561,
    ];
    let u32s = TileElem::Elem(ElemType::U32);
    let bits = m.bits(x, u32s);
    let bits = m.to(bits, U64);
    let word = |m: &mut Math, x: i64| m.i(U64, x);
    let (c23, exp_mask) = (word(m, 23), word(m, 0xFF));
    let exponent = m.op(Binary::Shr, bits, c23);
    let exponent = m.op(Binary::And, exponent, exp_mask);
    let (man_mask, one) = (word(m, 0x7F_FFFF), word(m, 0x80_0000));
    let mantissa = m.op(Binary::And, bits, man_mask);
    let mantissa = m.op(Binary::Or, mantissa, one);
    // x = mantissa * 2^(exponent - 150); the window starts at bit exponent - 151 of 2/pi (the first is 1),
    // which is bit exponent - 151 - 1 + 32 of the table.
    let start = word(m, 151 + 1 - 32);
    let at = m.sub(exponent, start);
    let (five, mask) = (word(m, 5), word(m, 31));
    let index = m.op(Binary::Shr, at, five);
    let by = m.op(Binary::And, at, mask);
    let pick = |m: &mut Math, offset: usize| {
        let mut chosen = word(m, BITS[offset]);
        for i in 1..5 {
            let (here, value) = (word(m, i as i64), word(m, BITS[i + offset]));
            let is = m.op(Binary::Eq, index, here);
            chosen = m.pick(is, value, chosen);
        }
        chosen
    };
    let words = [0, 1, 2, 3].map(|i| pick(m, i));
    let c32 = word(m, 32);
    // (first << 32 | second) << by, without the bits above; then the same with the words moved on.
    let join = |m: &mut Math, first: Var, second: Var| {
        let high = m.op(Binary::Shl, first, c32);
        let both = m.op(Binary::Or, high, second);
        m.op(Binary::Shl, both, by)
    };
    let w01 = join(m, words[0], words[1]);
    let w2 = m.op(Binary::Shl, words[2], by);
    let w2 = m.op(Binary::Shr, w2, c32);
    let high = m.op(Binary::Or, w01, w2);
    let w23 = join(m, words[2], words[3]);
    let low = m.op(Binary::Shr, w23, c32);
    let product = m.mul(mantissa, high);
    let below = m.mul(mantissa, low);
    let below = m.op(Binary::Shr, below, c32);
    let product = m.add(product, below);
    let (half, c62, two) = (word(m, 1 << 61), word(m, 62), word(m, 2));
    let rounded = m.add(product, half);
    let quarter = m.op(Binary::Shr, rounded, c62);
    let fraction = m.op(Binary::Shl, product, two);
    let ty = m.ty(I64);
    let fraction = m.b.emit(ty, Op::Bitcast(fraction));
    let (rest, quarter) = m.wide(|m| {
        let fraction = m.to(fraction, F64);
        let rest = m.mul_c(fraction, FRAC_PI_2 * 2f64.powi(-64));
        (rest, quarter)
    });
    // The sign, and NaN from infinities.
    let quarter = m.to(quarter, I32);
    let minus_quarter = m.un(Unary::Neg, quarter);
    let minus_rest = m.un(Unary::Neg, rest);
    let zero = m.c(0.0);
    let negative = m.op(Binary::Lt, x, zero);
    let quarter = m.pick(negative, minus_quarter, quarter);
    let rest = m.pick(negative, minus_rest, rest);
    let a = m.un(Unary::Abs, x);
    let limit = m.c(f64::from(f32::MAX));
    let finite = m.op(Binary::Le, a, limit);
    let nan = m.wide(|m| m.c(f64::NAN));
    (quarter, m.pick(finite, rest, nan))
}

/// The sine or cosine of the whole angle from those of the rest.
pub(super) fn by_quarter(m: &mut Math, quarter: Var, ahead: i64, sin: Var, cos: Var) -> Var {
    let int = m.b.ty(quarter).elem;
    let (ahead, one, two, zero) = (m.i(int, ahead), m.i(int, 1), m.i(int, 2), m.i(int, 0));
    let quarter = m.add(quarter, ahead);
    let odd = m.op(Binary::And, quarter, one);
    let odd = m.op(Binary::Ne, odd, zero);
    let y = m.pick(odd, cos, sin);
    let lower = m.op(Binary::And, quarter, two);
    let lower = m.op(Binary::Ne, lower, zero);
    let minus = m.un(Unary::Neg, y);
    m.pick(lower, minus, y)
}

/// Sine and cosine of the rest of a turn.
fn both(m: &mut Math, r: Var) -> (Var, Var) {
    let z = m.mul(r, r);
    let s = m.poly(z, &alternating(3, 8, -1.0));
    let zr = m.mul(z, r);
    let sin = m.fma(s, zr, r);
    let c = m.poly(z, &alternating(2, 9, -1.0));
    let one = m.c(1.0);
    (sin, m.fma(c, z, one))
}

fn sin_cos(m: &mut Math, x: Var, ahead: i64) -> Var {
    let (quarter, r) = quarter_turns(m, x, &PIECES);
    let (sin, cos) = both(m, r);
    by_quarter(m, quarter, ahead, sin, cos)
}

fn tan(m: &mut Math, x: Var) -> Var {
    let (quarter, r) = quarter_turns(m, x, &PIECES);
    let (sin, cos) = both(m, r);
    let s = by_quarter(m, quarter, 0, sin, cos);
    let c = by_quarter(m, quarter, 1, sin, cos);
    m.div(s, c)
}

/// Brought to `0..tan(pi/8)` by the reciprocal and by an eighth of a turn.
fn atan(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let inverse = m.un(Unary::Reciprocal, a);
    let small = m.where_c(Binary::Gt, a, 1.0, inverse, a);
    let (less, more) = (m.add_c(small, -1.0), m.add_c(small, 1.0));
    let turned = m.div(less, more);
    let edge = 0.4142135623730951;
    let t = m.where_c(Binary::Gt, small, edge, turned, small);
    let z = m.mul(t, t);
    let terms: Vec<f64> = (1..22)
        .map(|n| if n % 2 == 1 { -1.0 } else { 1.0 } / f64::from(2 * n + 1))
        .collect();
    let p = m.poly(z, &terms);
    let zt = m.mul(z, t);
    let y = m.fma(p, zt, t);
    let eighth = m.add_c(y, FRAC_PI_4);
    let y = m.where_c(Binary::Gt, small, edge, eighth, y);
    let right = m.c(FRAC_PI_2);
    let rest = m.sub(right, y);
    let y = m.where_c(Binary::Gt, a, 1.0, rest, y);
    m.copy_sign(y, x)
}

fn atan2(m: &mut Math, y: Var, x: Var) -> Var {
    let (ay, ax) = (m.un(Unary::Abs, y), m.un(Unary::Abs, x));
    let ratio = m.div(ay, ax);
    // 0/0 counts as 0, inf/inf as 1.
    let same = m.op(Binary::Eq, ay, ax);
    let (zero, one) = (m.c(0.0), m.c(1.0));
    let equal = m.where_c(Binary::Eq, ay, 0.0, zero, one);
    let ratio = m.pick(same, equal, ratio);
    let angle = atan(m, ratio);
    let half_turn = m.c(std::f64::consts::PI);
    let other = m.sub(half_turn, angle);
    let int = m.bits(x, I64);
    let zero = m.i(I64, 0);
    let left = m.op(Binary::Lt, int, zero);
    let angle = m.pick(left, other, angle);
    let signed = m.copy_sign(angle, y);
    let x_nan = m.un(Unary::IsNan, x);
    m.pick(x_nan, x, signed)
}

fn asin(m: &mut Math, x: Var) -> Var {
    let one = m.c(1.0);
    let (less, more) = (m.sub(one, x), m.add(one, x));
    let product = m.mul(less, more);
    let root = m.un(Unary::Sqrt, product);
    let ratio = m.div(x, root);
    atan(m, ratio)
}

fn acos(m: &mut Math, x: Var) -> Var {
    let one = m.c(1.0);
    let (less, more) = (m.sub(one, x), m.add(one, x));
    let ratio = m.div(less, more);
    let root = m.un(Unary::Sqrt, ratio);
    let half = atan(m, root);
    m.add(half, half)
}

fn sinh(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let t = exp_m1(m, a);
    let one_more = m.add_c(t, 1.0);
    let ratio = m.div(t, one_more);
    let sum = m.add(t, ratio);
    let near = m.mul_c(sum, 0.5);
    let far = half_exp(m, a);
    let y = m.where_c(Binary::Lt, a, 22.0, near, far);
    m.copy_sign(y, x)
}

/// `e^a / 2`, which overflows later than `e^a`.
fn half_exp(m: &mut Math, a: Var) -> Var {
    let half = m.mul_c(a, 0.5);
    let e = exp(m, half);
    let half = m.mul_c(e, 0.5);
    m.mul(half, e)
}

fn cosh(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let e = exp(m, a);
    let inverse = m.un(Unary::Reciprocal, e);
    let sum = m.add(e, inverse);
    let near = m.mul_c(sum, 0.5);
    let far = half_exp(m, a);
    m.where_c(Binary::Lt, a, 22.0, near, far)
}

fn tanh(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let twice = m.add(a, a);
    let twice = m.clamp(twice, 0.0, 60.0);
    let t = exp_m1(m, twice);
    let below = m.add_c(t, 2.0);
    let y = m.div(t, below);
    m.copy_sign(y, x)
}

fn asinh(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let aa = m.mul(a, a);
    let sum = m.add_c(aa, 1.0);
    let root = m.un(Unary::Sqrt, sum);
    let below = m.add_c(root, 1.0);
    let ratio = m.div(aa, below);
    let t = m.add(a, ratio);
    let near = log_1p(m, t);
    let far = log(m, a);
    let far = m.add_c(far, LN_2);
    let y = m.where_c(Binary::Lt, a, 1e8, near, far);
    m.copy_sign(y, x)
}

fn acosh(m: &mut Math, x: Var) -> Var {
    let t = m.add_c(x, -1.0);
    let tt = m.mul(t, t);
    let sum = m.fma_c(tt, t, 2.0);
    let root = m.un(Unary::Sqrt, sum);
    let sum = m.add(t, root);
    let near = log_1p(m, sum);
    let far = log(m, x);
    let far = m.add_c(far, LN_2);
    let y = m.where_c(Binary::Lt, x, 1e8, near, far);
    let nan = m.c(f64::NAN);
    m.where_c(Binary::Ge, x, 1.0, y, nan)
}

fn atanh(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let one = m.c(1.0);
    let below = m.sub(one, a);
    let twice = m.add(a, a);
    let ratio = m.div(twice, below);
    let y = log_1p(m, ratio);
    let y = m.mul_c(y, 0.5);
    m.copy_sign(y, x)
}

fn erf(m: &mut Math, x: Var) -> Var {
    let a = m.un(Unary::Abs, x);
    let z = m.mul(x, x);
    // The Taylor series below one.
    let terms: Vec<f64> = (0..20)
        .map(|n| {
            let sign = if n % 2 == 0 { 1.0 } else { -1.0 };
            sign * std::f64::consts::FRAC_2_SQRT_PI * inverse_factorials(n, 1)[0]
                / f64::from(2 * n + 1)
        })
        .collect();
    let p = m.poly(z, &terms);
    let near = m.mul(p, x);
    // erfc t = e^(-t^2) g(u) / (t + 2.4), u = (t - 2.4) / (t + 2.4), up to 6, where erf is 1.
    let t = m.clamp(a, 0.0, 6.0);
    let (less, more) = (m.add_c(t, -2.4), m.add_c(t, 2.4));
    let u = m.div(less, more);
    let g = m.poly(
        u,
        &[
            1.048_793_925_777_759_9,
            -7.848_500_341_832_603e-1,
            4.221_396_370_243_557e-1,
            -1.429_419_982_255_370_5e-1,
            1.411_911_277_701_172_5e-2,
            1.085_001_538_422_977_6e-2,
            -3.424_435_466_323_545_3e-3,
            -1.119_087_171_602_062e-3,
            5.357_652_872_692_307e-4,
            1.913_725_254_458_668_4e-4,
            -7.709_095_422_066_022e-5,
            -4.406_263_255_567_614e-5,
            7.594_898_905_272_194_5e-6,
            1.038_404_165_451_979_3e-5,
            8.657_506_806_779_164e-7,
            -2.037_644_020_604_564e-6,
            -7.949_028_217_460_073e-7,
            2.366_529_569_595_698_4e-7,
            2.310_692_710_397_088e-7,
        ],
    );
    let g = m.div(g, more);
    let tt = m.mul(t, t);
    let minus = m.un(Unary::Neg, tt);
    let e = exp(m, minus);
    let c = m.mul(e, g);
    let one = m.c(1.0);
    let far = m.sub(one, c);
    let far = m.copy_sign(far, x);
    m.where_c(Binary::Lt, a, 1.0, near, far)
}

impl Math<'_> {
    /// With `f64` constants.
    fn wide<T>(&mut self, f: impl FnOnce(&mut Math) -> T) -> T {
        let elem = std::mem::replace(&mut self.elem, F64);
        let result = f(self);
        self.elem = elem;
        result
    }
}
