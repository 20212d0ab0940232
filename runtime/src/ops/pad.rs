//! Borders. Negative pads cut before the others are added.

use super::call::{Call, Results, axis, fail, length, one};
use super::moves::{strides, take_grid};
use crate::error::RunError;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

impl Mode {
    /// Where place `at` (possibly outside) of an axis of length `len` reads; `None` for the constant.
    fn source(self, at: i64, len: i64) -> Option<i64> {
        if (0..len).contains(&at) {
            return Some(at);
        }
        match self {
            Mode::Constant => None,
            Mode::Edge => Some(at.clamp(0, len - 1)),
            Mode::Wrap => Some(at.rem_euclid(len)),
            Mode::Reflect if len == 1 => Some(0),
            Mode::Reflect => {
                let back = at.rem_euclid(2 * (len - 1));
                Some(back.min(2 * (len - 1) - back))
            }
        }
    }
}

pub fn pad(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let mode = match call.attr_str("mode", "constant") {
        "constant" => Mode::Constant,
        "reflect" => Mode::Reflect,
        "edge" => Mode::Edge,
        "wrap" => Mode::Wrap,
        other => return fail(format!("there is no mode `{other}`")),
    };
    let fill = call.optional(2)?;
    if fill.is_some_and(|f| f.len() != 1 || f.elem() != data.elem()) {
        return fail("the constant must be one element of the data's type");
    }
    let mut pads = vec![(0, 0); data.rank()];
    let given = call.ints(1)?.unwrap_or_default();
    let axes = match call.ints(3)? {
        Some(axes) => axes
            .iter()
            .map(|&a| axis(a, data.rank()))
            .collect::<Result<Vec<_>, _>>()?,
        None => (0..data.rank()).collect(),
    };
    if given.len() != 2 * axes.len() {
        return fail(format!("{} pads for {} axes", given.len(), axes.len()));
    }
    for (i, &a) in axes.iter().enumerate() {
        pads[a] = (given[i], given[i + axes.len()]);
    }
    let steps = strides(data.dims());
    // The lengths first: tables of an absurd result would fill the memory.
    let lens = pads
        .iter()
        .zip(data.dims())
        .map(|(&(before, after), &len)| {
            let sum = before.checked_add(after);
            length(sum.and_then(|p| p.checked_add(len as i64)).unwrap_or(-1))
        })
        .collect::<Result<Vec<_>, _>>()?;
    crate::value::count(&lens)?;
    let places = (0..data.rank())
        .map(|a| places(data.dims()[a] as i64, pads[a], lens[a], mode, steps[a]))
        .collect::<Result<Vec<_>, _>>()?;
    one(take_grid(data, &places, fill)?)
}

/// Where each place of one axis of the result reads.
fn places(
    len: i64,
    (before, after): (i64, i64),
    out: usize,
    mode: Mode,
    step: usize,
) -> Result<Vec<Option<usize>>, RunError> {
    let cut = before.min(0);
    let kept = (len + cut + after.min(0)).max(0);
    if kept == 0 && out > 0 && mode != Mode::Constant {
        return fail("cannot pad an empty axis by its own elements");
    }
    let place = |o: usize| mode.source(o as i64 - before.max(0), kept);
    Ok((0..out)
        .map(|o| place(o).map(|s| (s - cut) as usize * step))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_read_the_right_place() {
        let cases: &[(Mode, (i64, i64), &[i64])] = &[
            (Mode::Constant, (1, 1), &[-1, 0, 1, 2, -1]),
            (Mode::Edge, (2, 1), &[0, 0, 0, 1, 2, 2]),
            (Mode::Reflect, (2, 2), &[2, 1, 0, 1, 2, 1, 0]),
            (Mode::Wrap, (4, 1), &[2, 0, 1, 2, 0, 1, 2, 0]),
            (Mode::Constant, (-1, 2), &[1, 2, -1, -1]),
            (Mode::Edge, (-1, 1), &[1, 2, 2]),
        ];
        for &(mode, pads, expected) in cases {
            let found = places(3, pads, expected.len(), mode, 1).expect("legal");
            let found: Vec<i64> = found.iter().map(|p| p.map_or(-1, |p| p as i64)).collect();
            assert_eq!(found, expected, "{pads:?}");
        }
        assert!(places(0, (1, 0), 1, Mode::Edge, 1).is_err());
    }
}
