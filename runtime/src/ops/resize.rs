//! Resampling of images along chosen axes, one axis after the other: the filters are separable.
//!
//! Called only where the sizes of the result are known no earlier than at run time.

use super::call::{Call, Results, axis, fail, one};
use super::moves::{every, strides, take_grid};
use super::number;
use super::parts::around;
use crate::error::RunError;
use crate::value::{Tensor, View, count};

/// Interpolation.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// One neighbour.
    Nearest,
    /// Two.
    Linear,
    /// Four, with this coefficient.
    Cubic(f64),
}

/// How one axis is resampled.
struct Axis {
    /// Which one.
    axis: usize,
    /// Length of the operand.
    input: usize,
    /// Length of the result.
    output: usize,
    /// Scale that was asked for; `output / input` where lengths were.
    scale: f64,
    /// Region of interest, as parts of the axis.
    region: (f64, f64),
}

struct Mode<'a> {
    coordinates: &'a str,
    nearest: &'a str,
    kind: Kind,
    antialias: bool,
    exclude_outside: bool,
}

/// Positions and weights that one position of the result reads; `None` outside the region of interest.
type Taps = Option<Vec<(usize, f64)>>;

pub fn resize(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let mode = Mode {
        coordinates: call.attr_str("coordinate_transformation_mode", "half_pixel"),
        nearest: call.attr_str("nearest_mode", "round_prefer_floor"),
        kind: match call.attr_str("mode", "nearest") {
            "nearest" => Kind::Nearest,
            "linear" => Kind::Linear,
            "cubic" => Kind::Cubic(call.attr_float("cubic_coeff_a").unwrap_or(-0.75).into()),
            other => return fail(format!("there is no mode `{other}`")),
        },
        antialias: call.attr_int("antialias", 0) != 0,
        exclude_outside: call.attr_int("exclude_outside", 0) != 0,
    };
    let axes = axes(call, data, &mode)?;
    let mut dims = data.dims().to_vec();
    axes.iter().for_each(|a| dims[a.axis] = a.output);
    count(&dims)?;
    let mut taps = Vec::new();
    for a in &axes {
        if a.output == a.input && a.scale == 1.0 && mode.coordinates != "tf_crop_and_resize" {
            continue;
        }
        if a.input == 0 && a.output > 0 {
            return fail("an empty axis cannot grow");
        }
        taps.push((a.axis, mode.taps(a)?));
    }
    let outside = f64::from(call.attr_float("extrapolation_value").unwrap_or(0.0));
    if mode.kind == Kind::Nearest {
        return one(nearest(data, &taps, outside)?);
    }
    if !data.elem().is_float() && data.elem().int_range().is_none() {
        return fail(format!("is not defined for {}", data.elem()));
    }
    let values: Vec<f64> = resample(number::floats(data), data.dims(), &taps)
        .into_iter()
        .map(|v| v.unwrap_or(outside))
        .collect();
    one(match data.elem().int_range() {
        None => number::from_floats(data.elem(), dims, &values)?,
        // Integers are rounded as a cast does, and stay in range.
        Some((low, high)) => {
            let cast = |v: &f64| (v.trunc() as i128).clamp(low, high);
            let whole: Vec<i128> = values.iter().map(cast).collect();
            number::from_ints(data.elem(), dims, &whole)?
        }
    })
}

/// The axes that the operands speak of, with their new lengths.
fn axes(call: &Call, data: &View, mode: &Mode) -> Result<Vec<Axis>, RunError> {
    let chosen = match call.attr_ints("axes").filter(|a| !a.is_empty()) {
        Some(axes) => axes
            .iter()
            .map(|&a| axis(a, data.rank()))
            .collect::<Result<Vec<_>, _>>()?,
        None => (0..data.rank()).collect(),
    };
    if (1..chosen.len()).any(|i| chosen[..i].contains(&chosen[i])) {
        return fail("an axis is given twice");
    }
    let n = chosen.len();
    let numbers = |operand: usize, count: usize| -> Result<Option<Vec<f64>>, RunError> {
        match call.optional(operand)?.filter(|v| !v.is_empty()) {
            Some(v) if v.len() != count => {
                fail(format!("{} numbers are given for {n} axes", v.len()))
            }
            view => Ok(view.map(number::floats)),
        }
    };
    let crops = mode.coordinates == "tf_crop_and_resize";
    let regions: Vec<(f64, f64)> = match numbers(1, 2 * n) {
        Ok(Some(r)) if crops => (0..n).map(|i| (r[i], r[n + i])).collect(),
        Ok(None) if crops => return fail("tf_crop_and_resize needs a region of interest"),
        Err(e) if crops => return Err(e),
        _ => vec![(0.0, 1.0); n],
    };
    let inputs: Vec<usize> = chosen.iter().map(|&a| data.dims()[a]).collect();
    let lens: Vec<(f64, f64)> = match (numbers(2, n)?, numbers(3, n)?) {
        (Some(scales), _) => {
            if let Some(scale) = scales.iter().find(|s| s.is_nan() || **s <= 0.0) {
                return fail(format!("a scale of {scale} is not possible"));
            }
            let len = |i: usize| {
                let part = if crops {
                    regions[i].1 - regions[i].0
                } else {
                    1.0
                };
                (inputs[i] as f64 * part * scales[i]).floor()
            };
            (0..n).map(|i| (len(i), scales[i])).collect()
        }
        (None, Some(sizes)) => by_sizes(
            call.attr_str("keep_aspect_ratio_policy", "stretch"),
            &inputs,
            &sizes,
        )?,
        (None, None) => return fail("exactly one of scales and sizes must be given"),
    };
    if let Some((len, _)) = lens.iter().find(|l| !(0.0..2147483648.0).contains(&l.0)) {
        return fail(format!("a length of {len} is not possible"));
    }
    Ok((0..n)
        .map(|i| Axis {
            axis: chosen[i],
            input: inputs[i],
            output: lens[i].0 as usize,
            scale: lens[i].1,
            region: regions[i],
        })
        .collect())
}

/// Lengths and scales from wished lengths.
fn by_sizes(policy: &str, inputs: &[usize], sizes: &[f64]) -> Result<Vec<(f64, f64)>, RunError> {
    let scales = inputs.iter().zip(sizes).map(|(&n, &s)| s / n as f64);
    let common = match policy {
        "stretch" => None,
        "not_larger" => scales.clone().reduce(f64::min),
        "not_smaller" => scales.clone().reduce(f64::max),
        other => return fail(format!("there is no `keep_aspect_ratio_policy` `{other}`")),
    };
    Ok(match common {
        // Halves are rounded up.
        Some(c) => inputs
            .iter()
            .map(|&n| ((c * n as f64 + 0.5).floor(), c))
            .collect(),
        None => sizes.iter().copied().zip(scales).collect(),
    })
}

impl Mode<'_> {
    /// The taps of every output position of an axis.
    fn taps(&self, axis: &Axis) -> Result<Vec<Taps>, RunError> {
        let crops = self.coordinates == "tf_crop_and_resize";
        (0..axis.output)
            .map(|x| {
                let at = self.origin(axis, x as f64)?;
                let inside = (0.0..=axis.input as f64 - 1.0).contains(&at);
                if crops && !inside {
                    return Ok(None);
                }
                self.weights(axis, at).map(Some)
            })
            .collect()
    }

    /// Coordinate in the operand of position `x` of the result.
    fn origin(&self, axis: &Axis, x: f64) -> Result<f64, RunError> {
        let (scale, input) = (axis.scale, axis.input as f64);
        // The result's length before it was cut to an integer.
        let output = scale * input;
        let half = (x + 0.5) / scale - 0.5;
        Ok(match self.coordinates {
            "half_pixel" => half,
            "pytorch_half_pixel" if output == 1.0 => -0.5,
            "pytorch_half_pixel" => half,
            "half_pixel_symmetric" => input / 2.0 * (1.0 - axis.output as f64 / output) + half,
            "asymmetric" => x / scale,
            "align_corners" if output == 1.0 => 0.0,
            "align_corners" => x * (input - 1.0) / (output - 1.0),
            "tf_crop_and_resize" => {
                let (start, end) = axis.region;
                let step = if output == 1.0 {
                    0.5
                } else {
                    x / (output - 1.0)
                };
                start * (input - 1.0) + step * (end - start) * (input - 1.0)
            }
            other => {
                return fail(format!(
                    "there is no `coordinate_transformation_mode` `{other}`"
                ));
            }
        })
    }

    fn weights(&self, axis: &Axis, at: f64) -> Result<Vec<(usize, f64)>, RunError> {
        let last = axis.input as f64 - 1.0;
        let clamp = |p: f64| p.clamp(0.0, last) as usize;
        let reach = match self.kind {
            Kind::Nearest => return Ok(vec![(clamp(self.round(at)?), 1.0)]),
            Kind::Linear => 1.0,
            Kind::Cubic(_) => 2.0,
        };
        let filter = |d: f64| match self.kind {
            Kind::Cubic(a) => cubic(d.abs(), a),
            _ => (1.0 - d.abs()).max(0.0),
        };
        let stretch = if self.antialias {
            axis.scale.min(1.0)
        } else {
            1.0
        };
        // All positions that the stretched filter can reach.
        let wide = reach / stretch;
        if wide > f64::from(1 << 24) {
            return fail("the scale is too small");
        }
        let mut taps: Vec<(f64, f64)> = ((at - wide).floor() as i64..=(at + wide).ceil() as i64)
            .map(|p| (p as f64, filter((p as f64 - at) * stretch)))
            .filter(|t| t.1 != 0.0)
            .collect();
        if self.exclude_outside {
            taps.retain(|t| (0.0..=last).contains(&t.0));
        }
        if self.exclude_outside || self.antialias {
            let sum: f64 = taps.iter().map(|t| t.1).sum();
            taps.iter_mut().for_each(|t| t.1 /= sum);
        }
        Ok(taps.into_iter().map(|(p, w)| (clamp(p), w)).collect())
    }

    fn round(&self, at: f64) -> Result<f64, RunError> {
        Ok(match self.nearest {
            "round_prefer_floor" => (at - 0.5).ceil(),
            "round_prefer_ceil" => (at + 0.5).floor(),
            "floor" => at.floor(),
            "ceil" => at.ceil(),
            other => return fail(format!("there is no `nearest_mode` `{other}`")),
        })
    }
}

/// The cubic convolution kernel. Source: Keys, Cubic convolution interpolation, equation 4.
fn cubic(d: f64, a: f64) -> f64 {
    if d <= 1.0 {
        ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        a * (((d - 5.0) * d + 8.0) * d - 4.0)
    } else {
        0.0
    }
}

/// Interpolates along one axis after the other; `None` outside the region of interest.
fn resample(values: Vec<f64>, dims: &[usize], taps: &[(usize, Vec<Taps>)]) -> Vec<Option<f64>> {
    let mut dims = dims.to_vec();
    let mut values: Vec<Option<f64>> = values.into_iter().map(Some).collect();
    for (axis, taps) in taps {
        let (outer, len, inner) = around(&dims, *axis);
        let mut next = Vec::with_capacity(outer * taps.len() * inner);
        for o in 0..outer {
            for tap in taps {
                for i in 0..inner {
                    let read =
                        |&(p, w): &(usize, f64)| Some(w * values[(o * len + p) * inner + i]?);
                    next.push(tap.as_ref().and_then(|t| t.iter().map(read).sum()));
                }
            }
        }
        dims[*axis] = taps.len();
        values = next;
    }
    values
}

/// Nearest neighbours of any element type.
fn nearest(data: &View, taps: &[(usize, Vec<Taps>)], outside: f64) -> Result<Tensor, RunError> {
    let steps = strides(data.dims());
    let places: Vec<Vec<Option<usize>>> = (0..data.rank())
        .map(|a| match taps.iter().find(|t| t.0 == a) {
            Some((_, taps)) => taps
                .iter()
                .map(|t| Some(t.as_ref()?.first()?.0 * steps[a]))
                .collect(),
            None => every(data.dims()[a], steps[a]),
        })
        .collect();
    if places.iter().flatten().all(Option::is_some) {
        return take_grid(data, &places, None);
    }
    let elem = data.elem();
    let fill = match elem.int_range() {
        Some(_) => number::from_ints(elem, vec![1], &[outside as i128])?,
        None if elem.is_float() => number::from_floats(elem, vec![1], &[outside])?,
        None => return fail("extrapolation is not defined for this element type"),
    };
    take_grid(data, &places, Some(&fill.view()))
}
