//! Where resize reads: per axis, the operand's positions and weights for every output position.

use crate::ops::OpError;

/// How one axis is resampled.
pub struct Axis {
    /// Length of the operand.
    pub input: usize,
    /// Length of the result.
    pub output: usize,
    /// Scale that was asked for; `output / input` where lengths were.
    pub scale: f64,
    /// Region of interest, as parts of the axis.
    pub roi: (f64, f64),
}

/// The attributes, read.
pub struct Mode {
    /// `coordinate_transformation_mode`.
    pub coordinates: String,
    /// `nearest_mode`.
    pub nearest: String,
    /// `mode`.
    pub kind: Kind,
    /// Stretch the filter when the axis shrinks.
    pub antialias: bool,
    /// Weights outside the operand are zero, and the others sum to one.
    pub exclude_outside: bool,
}

/// Interpolation.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// One neighbour.
    Nearest,
    /// Two.
    Linear,
    /// Four, with this coefficient.
    Cubic(f64),
}

/// Positions and weights of one output position; `None` if it lies outside the region of interest.
pub type Taps = Option<Vec<(usize, f64)>>;

impl Mode {
    /// The taps of every output position of an axis.
    pub fn taps(&self, axis: &Axis) -> Result<Vec<Taps>, OpError> {
        (0..axis.output)
            .map(|x| {
                let at = self.origin(axis, x as f64)?;
                if self.coordinates == "tf_crop_and_resize" && !(at >= 0.0 && at <= axis.input as f64 - 1.0) {
                    return Ok(None);
                }
                self.weights(axis, at).map(Some)
            })
            .collect()
    }

    /// Coordinate in the operand of position `x` of the result.
    fn origin(&self, axis: &Axis, x: f64) -> Result<f64, OpError> {
        let (scale, input) = (axis.scale, axis.input as f64);
        // The result's length before it was cut to an integer.
        let output = scale * input;
        let half = (x + 0.5) / scale - 0.5;
        Ok(match self.coordinates.as_str() {
            "half_pixel" => half,
            "pytorch_half_pixel" => if output == 1.0 { -0.5 } else { half },
            "half_pixel_symmetric" => input / 2.0 * (1.0 - axis.output as f64 / output) + half,
            "asymmetric" => x / scale,
            "align_corners" => if output == 1.0 { 0.0 } else { x * (input - 1.0) / (output - 1.0) },
            "tf_crop_and_resize" => {
                let (start, end) = axis.roi;
                let step = if output == 1.0 { 0.5 } else { x / (output - 1.0) };
                start * (input - 1.0) + step * (end - start) * (input - 1.0)
            }
            other => return Err(OpError::new(format!("attribute `coordinate_transformation_mode` must not be `{other}`"))),
        })
    }

    fn weights(&self, axis: &Axis, at: f64) -> Result<Vec<(usize, f64)>, OpError> {
        let last = axis.input as f64 - 1.0;
        let clamp = |p: f64| p.clamp(0.0, last) as usize;
        let stretch = if self.antialias { axis.scale.min(1.0) } else { 1.0 };
        let (reach, filter): (f64, Box<dyn Fn(f64) -> f64>) = match self.kind {
            Kind::Nearest => return Ok(vec![(clamp(self.round(at)?), 1.0)]),
            Kind::Linear => (1.0, Box::new(|d: f64| (1.0 - d.abs()).max(0.0))),
            Kind::Cubic(a) => (2.0, Box::new(move |d: f64| cubic(d.abs(), a))),
        };
        // All positions that the stretched filter can reach.
        let wide = reach / stretch;
        if wide > f64::from(1 << 24) {
            return Err(OpError::new("the scale is too small to evaluate"));
        }
        let low = (at - wide).floor() as i64;
        let high = (at + wide).ceil() as i64;
        let mut taps: Vec<(i64, f64)> =
            (low..=high).map(|p| (p, filter((p as f64 - at) * stretch))).filter(|t| t.1 != 0.0).collect();
        if self.exclude_outside {
            taps.retain(|t| t.0 >= 0 && t.0 as f64 <= last);
        }
        if self.exclude_outside || self.antialias {
            let sum: f64 = taps.iter().map(|t| t.1).sum();
            taps.iter_mut().for_each(|t| t.1 /= sum);
        }
        Ok(taps.into_iter().map(|(p, w)| (clamp(p as f64), w)).collect())
    }

    fn round(&self, at: f64) -> Result<f64, OpError> {
        Ok(match self.nearest.as_str() {
            "round_prefer_floor" => (at - 0.5).ceil(),
            "round_prefer_ceil" => (at + 0.5).floor(),
            "floor" => at.floor(),
            "ceil" => at.ceil(),
            other => return Err(OpError::new(format!("attribute `nearest_mode` must not be `{other}`"))),
        })
    }
}

/// The cubic convolution kernel. Source: Keys, Cubic convolution interpolation, equation 4.
pub fn cubic(d: f64, a: f64) -> f64 {
    if d <= 1.0 {
        ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        a * (((d - 5.0) * d + 8.0) * d - 4.0)
    } else {
        0.0
    }
}
