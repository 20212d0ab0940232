//! Which numbers the codes of a value stand for.
//!
//! Two passes over the data: the first finds the least and the largest number of each value, the second the squared error of codes whose
//! range is that, or cut on both sides. Every range has 0 in it, exactly, because padding and rectifiers give it.

use super::super::CompressError;
use super::super::samples::Samples;
use super::place::{Counted, Found, Place};
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{ElemType, Module, Tensor, ValueId};
use std::cell::Cell;

/// Scores so far below the largest of their row count for nothing in a softmax: e^-12 is 6e-6.
const NEGLIGIBLE: f64 = 12.0;

/// Parts of a range that are tried.
const CUTS: [f64; 6] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5];

/// Octaves below the covering power of two that are tried.
const OCTAVES: i32 = 3;

/// What a code of `u8` stands for: `(code - zero) scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Code {
    /// What a step is worth.
    pub scale: f32,
    /// The code of 0.
    pub zero: u8,
}

impl Code {
    /// Codes with this step for the middle of a range.
    fn of(lo: f64, hi: f64, scale: f64) -> Code {
        let part = (255.0 * scale / (hi - lo)).min(1.0);
        Code {
            scale: scale as f32,
            zero: (-lo * part / scale).round().clamp(0.0, 255.0) as u8,
        }
    }

    /// What may stand for a range; the first covers it.
    fn candidates(lo: f64, hi: f64, powers_of_two: bool) -> Vec<Code> {
        let step = (hi - lo) / 255.0;
        let scales: Vec<f64> = match powers_of_two {
            // Rounding the zero point may cost half a step at an end.
            true => (0..OCTAVES)
                .map(|k| 2f64.powi(step.log2().ceil() as i32 - k))
                .collect(),
            false => CUTS.iter().map(|c| c * step).collect(),
        };
        scales.into_iter().map(|s| Code::of(lo, hi, s)).collect()
    }
}

/// Probabilities, in units of 2^-8.
const SHARES: Code = Code {
    scale: 1.0 / 256.0,
    zero: 0,
};

/// The codes of each range; none where its numbers are not finite.
pub(super) fn ranges(
    module: &Module,
    found: &Found,
    powers_of_two: bool,
    samples: &dyn Samples,
    progress: &dyn Fn(&str),
) -> Result<Vec<Option<Code>>, CompressError> {
    let observed: Vec<&Place> = found
        .places
        .iter()
        .filter(|p| p.counted != Counted::Shares)
        .collect();
    let mut ends = vec![(0f64, 0f64); found.ranges];
    let watch = |stage: &str,
                 places: &[&Place],
                 output: &dyn Fn(&mut Builder, &Place) -> Result<ValueId, OpError>,
                 see: &mut dyn FnMut(usize, &[f32])| {
        let outputs = |probe: &mut Module, fresh: &Cell<u32>| {
            let of = |place: &&Place| {
                let mut b = Builder::new(probe, Module::TOP, "calibrate", fresh);
                output(&mut b, place)
            };
            places.iter().map(of).collect()
        };
        let mut shown = |i: usize, numbers: &[f32]| see(places[i].range, numbers);
        super::watch(module, samples, progress, stage, outputs, &mut shown)
    };
    watch(
        "ranges",
        &observed,
        &least_and_most,
        &mut |range, numbers| {
            if let &[least, most] = numbers {
                let (lo, hi) = &mut ends[range];
                // What is not a number must not be lost, as it would be in `f64::min`.
                *lo = if least.is_nan() {
                    f64::NAN
                } else {
                    lo.min(least.into())
                };
                *hi = if most.is_nan() {
                    f64::NAN
                } else {
                    hi.max(most.into())
                };
            }
        },
    )?;
    let candidates: Vec<Vec<Code>> = ends
        .iter()
        .map(|&(lo, hi)| match (hi - lo).is_finite() {
            // A value that is always 0 has codes, too: any.
            true if hi == lo => Code::candidates(0.0, 1.0, powers_of_two),
            true => Code::candidates(lo, hi, powers_of_two),
            false => vec![],
        })
        .collect();
    let mut errors: Vec<Vec<f64>> = candidates.iter().map(|c| vec![0.0; c.len()]).collect();
    let bounded: Vec<&Place> = observed
        .into_iter()
        .filter(|p| !candidates[p.range].is_empty())
        .collect();
    let of = |b: &mut Builder, place: &Place| squared_errors(b, place, &candidates[place.range]);
    watch("codes", &bounded, &of, &mut |range, numbers| {
        let sums = errors[range].iter_mut().zip(numbers);
        sums.for_each(|(sum, &n)| *sum += f64::from(n));
    })?;
    let mut chosen: Vec<Option<Code>> = candidates
        .iter()
        .zip(&errors)
        .map(|(codes, errors)| {
            let best = (0..codes.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b]))?;
            Some(codes[best])
        })
        .collect();
    for place in found.places.iter().filter(|p| p.counted == Counted::Shares) {
        chosen[place.range] = Some(SHARES);
    }
    Ok(chosen)
}

/// The numbers of a value that count, `f32[1,n]`.
fn counted(b: &mut Builder, place: &Place) -> Result<ValueId, OpError> {
    let mut x = place.value;
    if let Counted::Scores(axis) = place.counted {
        let top = b.reduce("reduce_max", x, &[axis], true)?;
        let far = b.lit(top, NEGLIGIBLE)?;
        let least = b.op("sub", &[top, far])?;
        x = b.op("max", &[x, least])?;
    }
    b.reshape(x, &[Len::N(1), Len::N(-1)])
}

fn least_and_most(b: &mut Builder, place: &Place) -> Result<ValueId, OpError> {
    let x = counted(b, place)?;
    let least = b.reduce("reduce_min", x, &[1], false)?;
    let most = b.reduce("reduce_max", x, &[1], false)?;
    b.concat(&[least, most], 0)
}

/// The sum of squared errors with each of these codes, `f32[codes]`.
fn squared_errors(b: &mut Builder, place: &Place, codes: &[Code]) -> Result<ValueId, OpError> {
    let x = counted(b, place)?;
    let column = |b: &mut Builder, of: &dyn Fn(&Code) -> f64| {
        b.constant(&Tensor::from_f64(
            ElemType::F32,
            [codes.len(), 1],
            codes.iter().map(of).collect(),
        ))
    };
    let scale = column(b, &|c| c.scale.into());
    let least = column(b, &|c| -f64::from(c.zero));
    let most = column(b, &|c| 255.0 - f64::from(c.zero));
    let code = b.op("div", &[x, scale])?;
    let code = b.op("round", &[code])?;
    let code = b.op("max", &[code, least])?;
    let code = b.op("min", &[code, most])?;
    let back = b.op("mul", &[code, scale])?;
    let error = b.op("sub", &[x, back])?;
    let square = b.op("mul", &[error, error])?;
    b.reduce("reduce_sum", square, &[1], false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_cover_a_range_and_have_zero() {
        for (lo, hi) in [(0.0, 6.0), (-1.0, 3.0), (-5.0, 0.0), (-0.1, 100.0)] {
            for power in [false, true] {
                let all = Code::candidates(lo, hi, power);
                let Code { scale, zero } = all[0];
                let (scale, zero) = (f64::from(scale), f64::from(zero));
                assert!(-zero * scale <= lo + scale && (255.0 - zero) * scale >= hi - scale);
                assert!(scale <= 2.0 * (hi - lo) / 255.0);
                for c in &all {
                    let own = f64::from(c.scale).log2();
                    assert!(!power || own.fract() == 0.0, "{c:?}");
                }
            }
        }
    }
}
