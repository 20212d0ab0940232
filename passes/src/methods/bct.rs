//! BCT: what transformers do between products, on 8-bit codes and in integers alone.
//!
//! A function of one number is a table of 256 codes. A softmax takes the exponentials of distances from the row's largest code from a table,
//! adds them up and multiplies with the reciprocal of the sum. A layer normalization needs sums of codes and of their
//! squares only, exactly, and the reciprocal of a root: by a table and one step of Newton's method. None of them needs retraining.
//! Tables of functions reach compiled programs by `tables.rs`, which finds chains of any length; the others are the arithmetic for
//! targets without floats.
//! Source: "Blockwise Compression of Transformer-based Models without Retraining" (arXiv 2304.01483); it gives no formulas,
//! these are ours.

use super::MethodError;

/// Codes of a function of codes: `round(f(code * in_scale) / out_scale)`, ties to even, from -128 to 127. Entry `i` is that of
/// the code whose bits are `i`: 0 to 127, then -128 to -1. Where `f` is not a number the code is 0.
pub fn table(f: impl Fn(f64) -> f64, in_scale: f64, out_scale: f64) -> [i8; 256] {
    std::array::from_fn(|bits| {
        let x = f64::from(bits as u8 as i8) * in_scale;
        (f(x) / out_scale).round_ties_even().clamp(-128.0, 127.0) as i8
    })
}

/// One, in what [`IntegerSoftmax`] gives.
pub const ONE: u16 = 1 << 15;

/// The softmax of rows of codes of one scale.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegerSoftmax {
    /// `exp(-d scale)` in units of 2^-15, for each distance `d` of two codes.
    exponentials: Vec<u16>,
}

impl IntegerSoftmax {
    /// For codes of this scale.
    ///
    /// # Errors
    /// The scale is not above 0.
    pub fn new(scale: f64) -> Result<IntegerSoftmax, MethodError> {
        positive(scale, "scale")?;
        let of = |d: u8| f64::from(ONE) * (-f64::from(d) * scale).exp();
        Ok(IntegerSoftmax {
            exponentials: (0..=u8::MAX).map(|d| of(d).round() as u16).collect(),
        })
    }

    /// Probabilities in units of 2^-15; a row of `n` adds up to 1 within `n` 2^-16.
    pub fn apply(&self, row: &[i8]) -> Vec<u16> {
        let top = row.iter().copied().max().unwrap_or(0);
        let each = row
            .iter()
            .map(|&q| u64::from(self.exponentials[usize::from(top.abs_diff(q))]));
        let sum: u64 = each.clone().sum();
        // The largest code alone gives 2^15, so that the reciprocal in units of 2^-45 has at most 31 bits.
        let reciprocal = ((1 << 45) + sum / 2) / sum.max(1);
        each.map(|e| ((e * reciprocal + (1 << 29)) >> 30) as u16)
            .collect()
    }
}

/// Bits behind the point of normalized numbers, and of gains and offsets in codes.
const NORMAL_BITS: u32 = 20;
const GAIN_BITS: u32 = 16;

/// Most codes of a row: their sums of squares, times their number, are of 64 bits.
const MOST_CODES: usize = 1 << 16;

/// A layer normalization of rows of codes of one scale, to codes of another.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegerLayerNorm {
    /// Gains over the result's scale, in units of 2^-16, `[n]`.
    gains: Vec<i64>,
    /// Offsets over the result's scale, in units of 2^-16, `[n]`.
    offsets: Vec<i64>,
    /// `n² epsilon / in_scale²`.
    epsilon: u64,
    roots: InverseRoot,
}

impl IntegerLayerNorm {
    /// `gain (x - mean) / sqrt(variance + epsilon) + offset` for `x = code * in_scale`, over `out_scale`; `gain` and `offset` are `[n]`.
    /// Beyond 2^17 steps of the result they count as that.
    ///
    /// # Errors
    /// `gain` and `offset` are of different lengths or longer than 65536, numbers are not finite, or scales not above 0.
    pub fn new(
        gain: &[f64],
        offset: &[f64],
        epsilon: f64,
        in_scale: f64,
        out_scale: f64,
    ) -> Result<IntegerLayerNorm, MethodError> {
        if gain.len() != offset.len() || gain.len() > MOST_CODES {
            return Err(MethodError::Shape(format!(
                "{} gains and {} offsets; as many of both are needed, at most {MOST_CODES}",
                gain.len(),
                offset.len()
            )));
        }
        positive(in_scale, "scale of the codes")?;
        positive(out_scale, "scale of the result")?;
        let sound = epsilon >= 0.0 && gain.iter().chain(offset).all(|v| v.is_finite());
        if !sound {
            return Err(MethodError::NotFinite("normalization"));
        }
        // Normalized numbers are up to 2^8, so that products stay in 64 bits.
        let most = 2f64.powi(17 + GAIN_BITS as i32);
        let fixed = |v: &f64| {
            let units = v / out_scale * f64::from(1 << GAIN_BITS);
            units.round().clamp(-most, most) as i64
        };
        let count = gain.len() as f64;
        let limit = 2f64.powi(62);
        Ok(IntegerLayerNorm {
            gains: gain.iter().map(fixed).collect(),
            offsets: offset.iter().map(fixed).collect(),
            epsilon: (count * count * epsilon / in_scale.powi(2))
                .round()
                .min(limit) as u64,
            roots: InverseRoot::new(),
        })
    }

    /// The codes of a row of `n`, halves rounded up.
    ///
    /// # Errors
    /// The row is of another length.
    pub fn apply(&self, row: &[i8]) -> Result<Vec<i8>, MethodError> {
        let n = self.gains.len();
        if row.len() != n {
            return Err(MethodError::Shape(format!(
                "a row of {} codes for {n} gains",
                row.len()
            )));
        }
        let sum: i32 = row.iter().map(|&q| i32::from(q)).sum();
        let squares: i64 = row.iter().map(|&q| i64::from(q).pow(2)).sum();
        // n² times the variance, exactly: it is never below 0.
        let spread = n as i64 * squares - i64::from(sum).pow(2);
        let (root, shift) = self.roots.of((spread as u64).saturating_add(self.epsilon));
        let pairs = row.iter().zip(&self.gains).zip(&self.offsets);
        let code = |((&q, gain), offset): ((&i8, &i64), &i64)| {
            let far = n as i64 * i64::from(q) - i64::from(sum);
            let normal = (far * root) >> (shift - NORMAL_BITS);
            let half = 1 << (NORMAL_BITS + GAIN_BITS - 1);
            let all = normal * gain + (offset << NORMAL_BITS) + half;
            (all >> (NORMAL_BITS + GAIN_BITS)).clamp(-128, 127) as i8
        };
        Ok(pairs.map(code).collect())
    }
}

/// Reciprocals of square roots.
#[derive(Clone, Debug, PartialEq)]
struct InverseRoot {
    /// `1 / sqrt(m)` in units of 2^-31 for `m` from 1 to 4, by the 192 values of its leading eight bits.
    starts: Vec<u64>,
}

impl InverseRoot {
    fn new() -> InverseRoot {
        let middle = |k: u32| (f64::from(k) + 0.5) / 64.0;
        let start = |k| (2f64.powi(31) / middle(k).sqrt()).round() as u64;
        InverseRoot {
            starts: (64..256).map(start).collect(),
        }
    }

    /// `root` and `shift` (31 to 62), so that `1 / sqrt(x)` is `root 2^-shift` within 2^-15 of itself; `x` 0 is taken for 1.
    fn of(&self, x: u64) -> (i64, u32) {
        let x = x.max(1);
        // x = m 4^(31 - up / 2), with m from 1 to 4 in units of 2^-62.
        let up = x.leading_zeros() & !1;
        let m = x << up;
        let start = self.starts[(m >> 56) as usize - 64];
        // y (3 - m y²) / 2
        let square = (start * start) >> 31;
        let product = ((m >> 32) * square) >> 30;
        let root = (start * (3 * (1 << 31) - product)) >> 32;
        (root as i64, 62 - up / 2)
    }
}

fn positive(scale: f64, what: &str) -> Result<(), MethodError> {
    if scale > 0.0 && scale.is_finite() {
        return Ok(());
    }
    Err(MethodError::Settings(format!(
        "the {what} is a number above 0, not {scale}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, random};

    fn gelu(x: f64) -> f64 {
        0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2)
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// Largest and mean error of a table over inputs from `-range` to `range`.
    fn errors(f: impl Fn(f64) -> f64, table: &[i8; 256], range: f64, out_scale: f64) -> (f64, f64) {
        let in_scale = range / 127.0;
        let steps = 200_000;
        let at = |i: i32| range * (2.0 * f64::from(i) / f64::from(steps) - 1.0);
        let error = |x: f64| {
            let code = (x / in_scale).round_ties_even().clamp(-128.0, 127.0) as i8;
            (f(x) - out_scale * f64::from(table[usize::from(code as u8)])).abs()
        };
        let all = (0..=steps).map(|i| error(at(i)));
        let (most, sum) = all.fold((0.0, 0.0), |(m, s): (f64, f64), e| (m.max(e), s + e));
        (most, sum / f64::from(steps + 1))
    }

    #[test]
    fn tables_of_gelu_have_the_known_errors() {
        for (range, most, mean) in [(4.0, 0.0327, 0.0082), (8.0, 0.0651, 0.0122)] {
            let step = range / 127.0;
            let found = errors(gelu, &table(gelu, step, step), range, step);
            near(found.0, most, 0.01);
            near(found.1, mean, 0.01);
        }
    }

    #[test]
    fn tables_are_off_by_half_a_step_on_both_sides_at_most() {
        type Case = (fn(f64) -> f64, f64, f64, f64);
        let cases: [Case; 3] = [
            // The largest slopes.
            (gelu, 4.0, 4.0, 1.129),
            (sigmoid, 6.0, 1.0, 0.25),
            (f64::exp, 1.0, 1f64.exp(), 1f64.exp()),
        ];
        for (f, range, top, slope) in cases {
            let (step, out) = (range / 127.0, top / 127.0);
            let most = errors(f, &table(f, step, out), range, out).0;
            assert!(most <= out / 2.0 + step / 2.0 * slope + 1e-9, "{most}");
        }
        let saturated = table(|x| x, 2.0, 1.0);
        assert_eq!(
            [saturated[127], saturated[128], saturated[3]],
            [127, -128, 6]
        );
    }

    fn codes(n: usize, scale: f64, seed: u64) -> Vec<i8> {
        let numbers = random(1, n, seed);
        let code = |v: &f64| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
        numbers.data().iter().map(code).collect()
    }

    #[test]
    fn probabilities_add_up_and_are_those_of_floats() {
        for (n, scale) in [(1, 0.1), (7, 0.03), (64, 0.05), (512, 0.02)] {
            let softmax = IntegerSoftmax::new(scale).expect("positive");
            let row = codes(n, scale, n as u64);
            let found = softmax.apply(&row);
            let sum: f64 = found.iter().map(|&p| f64::from(p) / 32768.0).sum();
            assert!((sum - 1.0).abs() <= 2f64.powi(-7), "{sum}");
            let exact = row.iter().map(|&q| (f64::from(q) * scale).exp());
            let all: f64 = exact.clone().sum();
            for (p, e) in found.iter().zip(exact) {
                assert!((f64::from(*p) / 32768.0 - e / all).abs() < 2f64.powi(-14));
            }
        }
        let softmax = IntegerSoftmax::new(1.0).expect("positive");
        assert_eq!(softmax.apply(&[127, -128]), [ONE, 0]);
        assert_eq!(softmax.apply(&[-128; 4]), [ONE / 4; 4]);
        assert!(softmax.apply(&[]).is_empty());
        assert!(IntegerSoftmax::new(0.0).is_err() && IntegerSoftmax::new(f64::NAN).is_err());
    }

    #[test]
    fn inverse_roots_are_near() {
        let roots = InverseRoot::new();
        let mut worst = 0f64;
        for bits in 0..64 {
            for x in [
                1u64 << bits,
                (1 << bits) + (1 << bits) / 3,
                u64::MAX >> bits,
            ] {
                let (root, shift) = roots.of(x);
                let found = root as f64 / 2f64.powi(shift as i32);
                worst = worst.max((found * (x as f64).sqrt() - 1.0).abs());
            }
        }
        assert!(worst < 2f64.powi(-14), "{worst}");
        assert_eq!(roots.of(0), roots.of(1));
    }

    #[test]
    fn normalized_codes_are_those_of_floats() {
        for (n, scale, out, epsilon) in [
            (16, 0.1, 0.05, 1e-5),
            (768, 0.02, 0.03, 1e-12),
            (5, 3.0, 0.02, 0.5),
        ] {
            let (gain, offset) = (random(1, n, 1), random(1, n, 2));
            let norm = IntegerLayerNorm::new(gain.data(), offset.data(), epsilon, scale, out);
            let norm = norm.expect("sound");
            let row = codes(n, scale, 3);
            let x: Vec<f64> = row.iter().map(|&q| f64::from(q) * scale).collect();
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let found = norm.apply(&row).expect("as long");
            for (i, code) in found.into_iter().enumerate() {
                let y = (x[i] - mean) / (variance + epsilon).sqrt();
                let exact = (gain.data()[i] * y + offset.data()[i]) / out;
                let far = (f64::from(code) - exact.clamp(-128.0, 127.0)).abs();
                assert!(far < 0.51, "{n}: {code} {exact}");
            }
        }
    }

    #[test]
    fn extreme_rows_are_normalized() {
        let of = |n: usize, gain: f64, epsilon| {
            IntegerLayerNorm::new(&vec![gain; n], &vec![0.25; n], epsilon, 0.1, 0.125)
        };
        // A row of one value has its offset alone.
        let flat = of(9, 1.0, 0.0).expect("sound");
        assert_eq!(flat.apply(&[-128; 9]), Ok(vec![2; 9]));
        // One code far from many: the largest that a normalized number can be, in a row of the largest length.
        let long = of(MOST_CODES, 1e9, 1e-5).expect("sound");
        let mut row = vec![-128; MOST_CODES];
        row[7] = 127;
        let found = long.apply(&row).expect("as long");
        assert_eq!((found[7], found[8]), (127, -128));
        assert_eq!(of(0, 1.0, 0.0).expect("sound").apply(&[]), Ok(vec![]));
        assert!(flat.apply(&[0; 8]).is_err());
        assert!(of(MOST_CODES + 1, 1.0, 0.0).is_err());
        assert!(of(3, f64::NAN, 0.0).is_err() && of(3, 1.0, -1.0).is_err());
        assert!(IntegerLayerNorm::new(&[1.0], &[], 0.0, 1.0, 1.0).is_err());
        assert!(IntegerLayerNorm::new(&[1.0], &[0.0], 0.0, 0.0, 1.0).is_err());
    }
}
