//! Shapes that are data: identity, shape, size, reshape, squeeze, unsqueeze, flatten, transpose, expand, tile.

use super::call::{Call, Results, axis, fail, length, one};
use super::moves::{broadcast, broadcast_strides, every, strides, take_grid};
use crate::error::RunError;
use crate::value::{Tensor, View, count};

pub fn identity(call: &Call) -> Results {
    Ok(vec![call.operand(0)?.to_value()?])
}

pub fn shape(call: &Call) -> Results {
    let dims = call.tensor(0)?.dims();
    let rank = dims.len() as i64;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let start = clamp(call.attr_int("start", 0));
    let end = clamp(call.attr_int_opt("end").unwrap_or(rank)).max(start);
    let dims: Vec<i64> = dims[start..end].iter().map(|&d| d as i64).collect();
    one(Tensor::from_i64(vec![dims.len()], &dims)?)
}

pub fn size(call: &Call) -> Results {
    one(Tensor::from_i64(
        Vec::new(),
        &[call.tensor(0)?.len() as i64],
    )?)
}

fn reshaped(data: &View, dims: Vec<usize>) -> Results {
    one(data.to_tensor()?.with_dims(dims)?)
}

pub fn reshape(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let target = call
        .ints(1)?
        .or_else(|| call.attr_ints("shape").map(<[i64]>::to_vec));
    let target = target.ok_or_else(|| RunError::Input("the shape is missing".into()))?;
    let keep_zero = call.attr_int("allowzero", 0) != 0;
    let mut dims = Vec::with_capacity(target.len());
    let mut inferred = None;
    for (i, &d) in target.iter().enumerate() {
        dims.push(match d {
            -1 if inferred.is_none() => {
                inferred = Some(i);
                1
            }
            -1 => return fail(format!("shape {target:?} has more than one -1")),
            0 if !keep_zero => match data.dims().get(i) {
                Some(&d) => d,
                None => return fail(format!("no axis {i} to copy the length of")),
            },
            d => length(d)?,
        });
    }
    if let Some(i) = inferred {
        let rest = count(&dims)?;
        if rest == 0 && data.is_empty() && keep_zero {
            return fail("-1 cannot be inferred beside a dimension 0");
        }
        // An axis of nothing beside an axis of length 0.
        dims[i] = data.len().checked_div(rest).unwrap_or(0);
    }
    reshaped(data, dims)
}

fn axes(call: &Call) -> Result<Option<Vec<i64>>, RunError> {
    Ok(call
        .ints(1)?
        .or_else(|| call.attr_ints("axes").map(<[i64]>::to_vec)))
}

pub fn squeeze(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let drop = match axes(call)? {
        None => (0..data.rank()).filter(|&i| data.dims()[i] == 1).collect(),
        Some(axes) => axes
            .iter()
            .map(|&a| axis(a, data.rank()))
            .collect::<Result<Vec<_>, _>>()?,
    };
    if let Some(&a) = drop.iter().find(|&&a| data.dims()[a] != 1) {
        return fail(format!("axis {a} of {:?} is not of length 1", data.dims()));
    }
    let kept = (0..data.rank())
        .filter(|i| !drop.contains(i))
        .map(|i| data.dims()[i]);
    reshaped(data, kept.collect())
}

pub fn unsqueeze(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let axes = axes(call)?.unwrap_or_default();
    let rank = data.rank() + axes.len();
    let new = axes
        .iter()
        .map(|&a| axis(a, rank))
        .collect::<Result<Vec<_>, _>>()?;
    if (1..new.len()).any(|i| new[..i].contains(&new[i])) {
        return fail(format!("axes {axes:?} are not all different"));
    }
    let mut rest = data.dims().iter();
    let dims: Vec<usize> = (0..rank)
        .map(|i| {
            if new.contains(&i) {
                1
            } else {
                rest.next().copied().unwrap_or(1)
            }
        })
        .collect();
    reshaped(data, dims)
}

pub fn flatten(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let at = call.attr_int("axis", 1);
    let at = if at < 0 { at + data.rank() as i64 } else { at };
    let at = length(at)?;
    if at > data.rank() {
        return fail(format!(
            "axis {at} is out of range for rank {}",
            data.rank()
        ));
    }
    let (outer, inner) = data.dims().split_at(at);
    reshaped(data, vec![outer.iter().product(), inner.iter().product()])
}

pub fn transpose(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let order: Vec<usize> = match call.attr_ints("perm") {
        Some(perm) => perm
            .iter()
            .map(|&a| axis(a, data.rank()))
            .collect::<Result<_, _>>()?,
        None => (0..data.rank()).rev().collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if sorted != (0..data.rank()).collect::<Vec<_>>() {
        return fail(format!("{order:?} is not an order of {} axes", data.rank()));
    }
    let own = strides(data.dims());
    let places = order.iter().map(|&a| every(data.dims()[a], own[a]));
    one(take_grid(data, &places.collect::<Vec<_>>(), None)?)
}

/// `data` stretched to `dims`.
pub fn stretch(data: &View, dims: Vec<usize>) -> Result<Tensor, RunError> {
    count(&dims)?;
    let steps = broadcast_strides(data.dims(), &dims);
    let places = dims.iter().zip(steps).map(|(&d, step)| every(d, step));
    take_grid(data, &places.collect::<Vec<_>>(), None)
}

pub fn expand(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let shape = call.ints(1)?.unwrap_or_default();
    let shape = shape
        .iter()
        .map(|&d| length(d))
        .collect::<Result<Vec<_>, _>>()?;
    one(stretch(data, broadcast(data.dims(), &shape)?)?)
}

pub fn tile(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let repeats = call.ints(1)?.unwrap_or_default();
    if repeats.len() != data.rank() {
        return fail(format!(
            "{} repeats for rank {}",
            repeats.len(),
            data.rank()
        ));
    }
    let mut dims = Vec::new();
    for (&d, &r) in data.dims().iter().zip(&repeats) {
        let long = d.checked_mul(length(r)?);
        dims.push(long.ok_or_else(|| RunError::Input("the result is too large".into()))?);
    }
    count(&dims)?;
    let own = strides(data.dims());
    let places = (0..dims.len()).map(|a| {
        let len = data.dims()[a];
        (0..dims[a]).map(|i| Some(i % len * own[a])).collect()
    });
    one(take_grid(data, &places.collect::<Vec<_>>(), None)?)
}
