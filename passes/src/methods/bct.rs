//! BCT: what transformers do between products, on 8-bit codes, without retraining.
//!
//! A function of one number is a table of 256 codes; a softmax and a layer normalization are integer arithmetic
//! (`ir/src/ops/quant/integer.rs`). Here is what becomes of their numbers. Tables reach compiled programs by `tables.rs`, which finds
//! chains of any length; the codes between all operations are written by `compress/codes`.
//! Source: "Blockwise Compression of Transformer-based Models without Retraining" (arXiv 2304.01483); it gives no formulas,
//! these are ours.

use lapidary_ir::ops::quant::integer::{GAIN_BITS, LONGEST_ROW, MOST_GAIN};

/// Codes of a function of codes: `round(f(code * in_scale) / out_scale)`, ties to even, from -128 to 127. Entry `i` is that of
/// the code whose bits are `i`: 0 to 127, then -128 to -1. Where `f` is not a number the code is 0.
pub fn table(f: impl Fn(f64) -> f64, in_scale: f64, out_scale: f64) -> [i8; 256] {
    std::array::from_fn(|bits| {
        let x = f64::from(bits as u8 as i8) * in_scale;
        (f(x) / out_scale).round_ties_even().clamp(-128.0, 127.0) as i8
    })
}

/// The numbers of a layer normalization of codes, as `integer_layer_norm` takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Gains over the result's scale, in units of 2^-16, `[n]`.
    pub gain: Vec<i128>,
    /// Offsets over the result's scale, and its zero point, in units of 2^-16, `[n]`.
    pub offset: Vec<i128>,
    /// `n² epsilon / scale²`.
    pub epsilon: i64,
}

/// `gain (x - mean) / sqrt(variance + epsilon) + offset` for `x = (code - zero) scale`, as codes of `result`: a scale and the code
/// of 0. Beyond 2^17 steps of the result gains and offsets count as that. None where `gain` and `offset` are of different lengths,
/// or too many for exact sums, where numbers are not finite, or scales not above 0.
pub fn layer_norm(
    gain: &[f64],
    offset: &[f64],
    epsilon: f64,
    scale: f64,
    result: (f64, f64),
) -> Option<LayerNorm> {
    let n = gain.len();
    let sound = (1..=LONGEST_ROW).contains(&n)
        && offset.len() == n
        && [scale, result.0].iter().all(|s| *s > 0.0 && s.is_finite())
        && epsilon >= 0.0
        && gain.iter().chain(offset).all(|v| v.is_finite());
    let one = f64::from(1u32 << GAIN_BITS);
    let units = |steps: f64| (steps.clamp(-MOST_GAIN, MOST_GAIN) * one).round() as i128;
    sound.then(|| LayerNorm {
        gain: gain.iter().map(|g| units(g / result.0)).collect(),
        offset: offset
            .iter()
            .map(|o| units(o / result.0 + result.1))
            .collect(),
        // As a number it may be too large; sums of squares have at most 48 bits.
        epsilon: ((n * n) as f64 * epsilon / scale.powi(2))
            .round()
            .min(2f64.powi(60)) as i64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::near;

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

    #[test]
    fn units_are_those_of_the_result() {
        let form = layer_norm(&[2.0, -1.0], &[0.5, 0.0], 1e-3, 0.5, (0.25, 10.0)).expect("sound");
        assert_eq!(form.gain, [8 << 16, -4 << 16]);
        assert_eq!(form.offset, [12 << 16, 10 << 16]);
        // n² epsilon / scale²
        assert_eq!(form.epsilon, 0);
        let form = layer_norm(&[1e9; 3], &[-1e9; 3], 1.0, 0.1, (0.125, 0.0)).expect("sound");
        assert_eq!(
            (form.gain[0], form.offset[0], form.epsilon),
            (1 << 33, -(1 << 33), 900)
        );
        let bad = [
            layer_norm(&[1.0], &[], 0.0, 1.0, (1.0, 0.0)),
            layer_norm(&[], &[], 0.0, 1.0, (1.0, 0.0)),
            layer_norm(&[f64::NAN], &[0.0], 0.0, 1.0, (1.0, 0.0)),
            layer_norm(&[1.0], &[0.0], -1.0, 1.0, (1.0, 0.0)),
            layer_norm(&[1.0], &[0.0], 0.0, 0.0, (1.0, 0.0)),
        ];
        assert!(bad.iter().all(Option::is_none));
    }
}
