//! The integer arithmetic of all that is not a product of weights. Numbers are `i32` in units of 2^-16, saturating.
//!
//! `/` is the division of `i64` that rounds toward zero; [`shift`] rounds half up. There is no floating point, so that
//! every implementation gives the same bits.

/// One, in units of 2^-16.
pub const ONE: i64 = 1 << 16;

/// The logarithm of e to base 2, in units of 2^-16.
pub const LOG2_E: i64 = 94548;

/// A polynomial for 2^-r, r from 0 to 1, highest power first, in units of 2^-30: fitted to 8e-5, exact at both ends.
pub const EXP: [i64; 4] = [-42_511_494, 248_300_786, -742_660_204, 1_073_741_824];

/// To the range of `i32`.
pub fn saturate(x: i128) -> i32 {
    x.clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as i32
}

/// `x / 2^by`, half up.
pub fn shift(x: i128, by: u32) -> i128 {
    (x + (1 << (by - 1))) >> by
}

/// The largest integer whose square is at most `x`.
pub fn root(x: u64) -> u64 {
    x.isqrt()
}

/// `2^16 * exp(-d / 2^16)` for `d >= 0`: `exp2` of a whole part by shifting, of the rest by a polynomial of degree 3 in units of 2^-30.
pub fn exp_neg(d: i64) -> i64 {
    let t = (d.min(40 * ONE) * LOG2_E) >> 16;
    let whole = t >> 16;
    let rest = (t & 0xffff) << 14;
    let mut p = EXP[0];
    for c in &EXP[1..] {
        p = ((p * rest) >> 30) + c;
    }
    if whole >= 31 { 0 } else { p >> 14 >> whole }
}

/// `x * sigmoid(x) * y`.
pub fn silu_mul(x: i32, y: i32) -> i32 {
    let e = exp_neg(i64::from(x).abs());
    let part = if x < 0 { e } else { ONE };
    let silu = i64::from(x) * part / (ONE + e);
    saturate(shift(i128::from(silu) * i128::from(y), 16))
}

/// `x / rms(x) * gain`. `epsilon` is in units of 2^-32.
pub fn rms_norm(x: &[i32], gain: &[i32], len: usize, epsilon: u64) -> Vec<i32> {
    let sum: u128 = x[..len]
        .iter()
        .map(|x| (i128::from(*x) * i128::from(*x)) as u128)
        .sum();
    let mean = (sum / len as u128).min(u128::from(u64::MAX / 2)) as u64;
    let rms = root(mean + epsilon).max(1) as i64;
    let one = |(x, g): (&i32, &i32)| saturate(i128::from(i64::from(*x) * i64::from(*g) / rms));
    x.iter().zip(gain).map(one).collect()
}

/// Codes of `x` from -127 to 127, and the largest magnitude: `x` is about `code * largest / 127`.
pub fn quant(x: &[i32]) -> (Vec<i8>, i32) {
    let largest = x
        .iter()
        .map(|x| x.saturating_abs())
        .max()
        .unwrap_or(0)
        .max(1);
    let code = |x: &i32| {
        let twice = i64::from(*x) * 254 + i64::from(largest) * if *x < 0 { -1 } else { 1 };
        (twice / (2 * i64::from(largest))).clamp(-127, 127) as i8
    };
    (x.iter().map(code).collect(), largest)
}

/// A sum of products of codes as a number: `scale` is that of the weights in units of 2^-32, over 127.
pub fn rescale(sum: i64, largest: i32, scale: i32) -> i32 {
    saturate(shift(
        i128::from(sum) * i128::from(largest) * i128::from(scale),
        32,
    ))
}

/// Turns a pair by an angle whose cosine and sine are in units of 2^-30.
pub fn turn(x: (i32, i32), cos: i32, sin: i32) -> (i32, i32) {
    let (a, b) = (i128::from(x.0), i128::from(x.1));
    let (c, s) = (i128::from(cos), i128::from(sin));
    (
        saturate(shift(a * c - b * s, 30)),
        saturate(shift(a * s + b * c, 30)),
    )
}

/// Score of a query and a key of codes, over the square root of their length (`root_len`, in units of 2^-16).
pub fn score(sum: i64, query: i32, key: i32, root_len: i64) -> i32 {
    let number = i128::from(sum) * i128::from(query) * i128::from(key) / (127 * 127);
    saturate(number / i128::from(root_len))
}

/// Probabilities of scores; those from `valid` on are 0.
pub fn softmax(x: &mut [i32], valid: usize) {
    let top = i64::from(x[..valid].iter().copied().max().unwrap_or(0));
    let e: Vec<i64> = x[..valid]
        .iter()
        .map(|x| exp_neg(top - i64::from(*x)))
        .collect();
    let sum: i64 = e.iter().sum::<i64>().max(1);
    for (at, x) in x.iter_mut().enumerate() {
        *x = e.get(at).map_or(0, |e| (e * ONE / sum) as i32);
    }
}

/// What a value of a code contributes to a mix.
pub fn part(probability: i32, code: i8, largest: i32) -> i128 {
    i128::from(probability) * i128::from(code) * i128::from(largest)
}

/// The sum of such parts as a number.
pub fn mixed(sum: i128) -> i32 {
    saturate(sum / (127 << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_the_functions() {
        for d in (0..800_000).step_by(37) {
            let exact = (-(d as f64) / 65536.0).exp();
            let ours = exp_neg(d) as f64 / 65536.0;
            assert!((ours - exact).abs() < 3e-4, "exp(-{d}): {ours} {exact}");
        }
        let (codes, largest) = quant(&[127, -64, 0, 1]);
        assert_eq!((codes, largest), (vec![127, -64, 0, 1], 127));
        assert_eq!(quant(&[0, 0]).0, [0, 0]);
        assert_eq!(turn((65536, 0), 0, 1 << 30), (0, 65536));
        let mut x = [65536, 65536, 0, 5];
        softmax(&mut x, 2);
        assert_eq!(x, [32768, 32768, 0, 0]);
        assert_eq!(quant(&[i32::MIN, 0]).0, [-127, 0]);
    }
}
