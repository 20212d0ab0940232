//! Sliding windows: the geometry that convolutions and pools share, on numbers and on symbols.

use super::{InferCtx, OpError};
use crate::Dim;
use crate::graph::Node;

/// A window over `n` spatial axes; every list has `n` entries.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Taps per axis.
    pub kernel: Vec<usize>,
    /// Steps between windows.
    pub strides: Vec<usize>,
    /// Steps between taps.
    pub dilations: Vec<usize>,
    /// Padding before the input.
    pub begin: Vec<usize>,
    /// Padding after the input (what the output length implies may need more, with `ceil_mode`).
    pub end: Vec<usize>,
    /// Number of windows.
    pub out: Vec<usize>,
}

/// The attributes of a window, read and checked.
pub struct WindowAttrs {
    /// Taps per axis.
    pub kernel: Vec<i64>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Steps between taps.
    pub dilations: Vec<i64>,
    /// Begins, then ends.
    pub pads: Vec<i64>,
    /// `NOTSET`, `VALID`, `SAME_UPPER` or `SAME_LOWER`.
    pub auto_pad: String,
    /// Round the number of windows up.
    pub ceil: bool,
}

/// A list attribute of `n` entries, each at least `least`.
pub fn list(
    node: &Node,
    name: &str,
    n: usize,
    default: i64,
    least: i64,
) -> Result<Vec<i64>, OpError> {
    let list = node
        .ints(name)
        .filter(|v| !v.is_empty())
        .unwrap_or_else(|| vec![default; n]);
    if list.len() != n {
        return Err(OpError::new(format!(
            "attribute `{name}` has {} entries, expected {n}",
            list.len()
        )));
    }
    match list.iter().find(|&&v| v < least || v > i64::from(i32::MAX)) {
        Some(v) => Err(OpError::new(format!("attribute `{name}` must not be {v}"))),
        None => Ok(list),
    }
}

impl WindowAttrs {
    /// Reads `strides`, `dilations`, `pads`, `auto_pad`, `ceil_mode` for this kernel.
    pub fn read(node: &Node, kernel: Vec<i64>) -> Result<WindowAttrs, OpError> {
        let n = kernel.len();
        if kernel
            .iter()
            .any(|&k| !(1..=i64::from(i32::MAX)).contains(&k))
        {
            return Err(OpError::new(format!(
                "kernel {kernel:?} must be positive along every axis"
            )));
        }
        let auto_pad = match node.text("auto_pad").as_str() {
            "" | "NOTSET" => "NOTSET".to_owned(),
            known @ ("VALID" | "SAME_UPPER" | "SAME_LOWER") => known.to_owned(),
            other => {
                return Err(OpError::new(format!(
                    "attribute `auto_pad` must not be `{other}`"
                )));
            }
        };
        Ok(WindowAttrs {
            strides: list(node, "strides", n, 1, 1)?,
            dilations: list(node, "dilations", n, 1, 1)?,
            pads: list(node, "pads", 2 * n, 0, 0)?,
            ceil: node.flag("ceil_mode"),
            kernel,
            auto_pad,
        })
    }

    /// Number of windows along axis `i` of an input of this length.
    pub fn out_dim(&self, i: usize, input: &Dim) -> Result<Dim, OpError> {
        let n = self.kernel.len();
        let stride = Dim::from(self.strides[i]);
        if self.auto_pad.starts_with("SAME") {
            return Ok(input.ceil_div(&stride));
        }
        let (begin, end) = match self.auto_pad.as_str() {
            "VALID" => (0, 0),
            _ => (self.pads[i], self.pads[n + i]),
        };
        let reach = self.reach(i)?;
        let slack = input + Dim::from(begin + end - reach);
        if slack.as_const().is_some_and(|s| s < 0) {
            return Err(OpError::new(format!(
                "a window of {reach} does not fit the padded input along spatial axis {i}"
            )));
        }
        let one = Dim::from(1i64);
        if self.ceil && self.auto_pad != "VALID" {
            // The last window must start inside the input or its left padding.
            let all = slack.ceil_div(&stride) + &one;
            let started = (input + Dim::from(begin)).ceil_div(&stride);
            return Ok(all.min_dim(&started));
        }
        Ok(slack.floor_div(&stride) + &one)
    }

    /// Length of input that one window spans along axis `i`.
    pub fn reach(&self, i: usize) -> Result<i64, OpError> {
        (self.kernel[i] - 1)
            .checked_mul(self.dilations[i])
            .map(|r| r + 1)
            .ok_or_else(|| OpError::new("the window is too large"))
    }

    /// The window over an input of these spatial lengths.
    pub fn over(&self, input: &[usize]) -> Result<Window, OpError> {
        let n = self.kernel.len();
        if input.len() != n {
            return Err(OpError::new(format!(
                "a kernel of {n} axes meets {} spatial axes",
                input.len()
            )));
        }
        let mut w = Window {
            kernel: self.kernel.iter().map(|&v| v as usize).collect(),
            strides: self.strides.iter().map(|&v| v as usize).collect(),
            dilations: self.dilations.iter().map(|&v| v as usize).collect(),
            begin: vec![],
            end: vec![],
            out: vec![],
        };
        for i in 0..n {
            let out = self
                .out_dim(i, &Dim::from(input[i]))?
                .as_const()
                .unwrap_or(0)
                .max(0);
            let (begin, end) = match self.auto_pad.as_str() {
                "NOTSET" => (self.pads[i], self.pads[n + i]),
                "VALID" => (0, 0),
                same => {
                    let need =
                        ((out - 1) * self.strides[i] + self.reach(i)? - input[i] as i64).max(0);
                    let small = need / 2;
                    if same == "SAME_UPPER" {
                        (small, need - small)
                    } else {
                        (need - small, small)
                    }
                }
            };
            w.begin.push(begin as usize);
            w.end.push(end as usize);
            w.out.push(out as usize);
        }
        Ok(w)
    }

    /// Symbolic number of windows along every axis.
    pub fn out_dims(&self, input: &[Dim]) -> Result<Vec<Dim>, OpError> {
        if input.len() != self.kernel.len() {
            return Err(OpError::new(format!(
                "a kernel of {} axes meets {} spatial axes",
                self.kernel.len(),
                input.len()
            )));
        }
        input
            .iter()
            .enumerate()
            .map(|(i, d)| self.out_dim(i, d))
            .collect()
    }
}

impl Window {
    /// Calls `f(tap, position)` for every tap of the window at output index `at` that meets the input,
    /// both row-major linear.
    pub fn taps(&self, at: &[usize], input: &[usize], mut f: impl FnMut(usize, usize)) {
        let n = self.kernel.len();
        let taps: usize = self.kernel.iter().product();
        'tap: for tap in 0..taps {
            let (mut rest, mut position, mut stride) = (tap, 0, 1);
            for i in (0..n).rev() {
                let k = rest % self.kernel[i];
                rest /= self.kernel[i];
                let p = at[i] * self.strides[i] + k * self.dilations[i];
                if p < self.begin[i] || p - self.begin[i] >= input[i] {
                    continue 'tap;
                }
                position += (p - self.begin[i]) * stride;
                stride *= input[i];
            }
            f(tap, position);
        }
    }

    /// Number of taps of the window at `at` that lie in the input or its declared padding.
    pub fn padded_taps(&self, at: &[usize], input: &[usize]) -> usize {
        (0..self.kernel.len())
            .map(|i| {
                let limit = self.begin[i] + input[i] + self.end[i];
                (0..self.kernel[i])
                    .filter(|k| at[i] * self.strides[i] + k * self.dilations[i] < limit)
                    .count()
            })
            .product()
    }
}

/// Multi-index of a row-major position.
pub fn unravel(mut position: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for i in (0..shape.len()).rev() {
        out[i] = position % shape[i].max(1);
        position /= shape[i].max(1);
    }
    out
}

/// Batch, channels and spatial dimensions of operand `i`, if its rank is known.
#[allow(clippy::type_complexity, reason = "three named parts of one shape")]
pub fn image<'a>(
    ctx: &'a InferCtx,
    i: usize,
) -> Result<Option<(&'a Dim, &'a Dim, &'a [Dim])>, OpError> {
    match ctx.shape(i)? {
        Some([n, c, spatial @ ..]) if !spatial.is_empty() => Ok(Some((n, c, spatial))),
        Some(s) => Err(OpError::new(format!(
            "operand {i} must be batch, channels and at least one spatial axis, found rank {}",
            s.len()
        ))),
        None => Ok(None),
    }
}

/// The same of a concrete shape.
pub fn image_shape(shape: &[usize]) -> Result<(usize, usize, &[usize]), OpError> {
    match shape {
        [n, c, spatial @ ..] if !spatial.is_empty() => Ok((*n, *c, spatial)),
        _ => Err(OpError::new(format!(
            "an operand of batch, channels and spatial axes is needed, found rank {}",
            shape.len()
        ))),
    }
}
