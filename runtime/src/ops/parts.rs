//! Parts of tensors put together anew: gather, slice, concat, split, compress, one_hot, where,
//! reverse_sequence, array_feature_extractor.

use super::call::{Call, Results, axis, fail, length, one, same_elem};
use super::moves::{
    Builder, Positions, broadcast, broadcast_strides, linear, strides, take, take_grid,
};
use super::number;
use crate::error::RunError;
use crate::value::{Tensor, Value, View};
use lapidary_abi::ElemType;

/// Lengths before, at and behind an axis.
pub fn around(dims: &[usize], axis: usize) -> (usize, usize, usize) {
    let (before, rest) = dims.split_at(axis);
    (before.iter().product(), rest[0], rest[1..].iter().product())
}

/// The number `index` counted from the front of `len`.
fn from_front(index: i128, len: usize) -> Result<usize, RunError> {
    let at = if index < 0 {
        index + len as i128
    } else {
        index
    };
    match usize::try_from(at) {
        Ok(at) if at < len => Ok(at),
        _ => fail(format!("index {index} is out of range for length {len}")),
    }
}

pub fn gather(call: &Call) -> Results {
    let (data, indices) = (call.tensor(0)?, call.tensor(1)?);
    let along = axis(call.attr_int("axis", 0), data.rank())?;
    let (outer, len, inner) = around(data.dims(), along);
    let mut dims = data.dims()[..along].to_vec();
    dims.extend(indices.dims());
    dims.extend(&data.dims()[along + 1..]);
    let mut out = Builder::new(data.elem(), dims)?;
    let places = (0..indices.len())
        .map(|i| from_front(number::int(indices, i), len))
        .collect::<Result<Vec<_>, _>>()?;
    for o in 0..outer {
        for at in &places {
            out.push(data, (o * len + at) * inner, inner);
        }
    }
    one(out.finish()?)
}

pub fn gather_elements(call: &Call) -> Results {
    let (data, indices) = (call.tensor(0)?, call.tensor(1)?);
    let along = axis(call.attr_int("axis", 0), data.rank())?;
    if indices.rank() != data.rank() {
        return fail("data and indices differ in rank");
    }
    let steps = strides(data.dims());
    let mut out = Builder::new(data.elem(), indices.dims().to_vec())?;
    for (i, mut position) in Positions::of(indices.dims()).enumerate() {
        position[along] = from_front(number::int(indices, i), data.dims()[along])?;
        if position.iter().zip(data.dims()).any(|(p, d)| p >= d) {
            return fail("the indices are larger than the data");
        }
        out.push(data, linear(&position, &steps), 1);
    }
    one(out.finish()?)
}

pub fn gather_nd(call: &Call) -> Results {
    let (data, indices) = (call.tensor(0)?, call.tensor(1)?);
    let batch = length(call.attr_int("batch_dims", 0))?;
    let Some((&depth, index_dims)) = indices.dims().split_last() else {
        return fail("indices must not be a scalar");
    };
    if batch + depth > data.rank()
        || batch > index_dims.len()
        || data.dims()[..batch] != index_dims[..batch]
    {
        return fail(format!(
            "indices {:?} do not fit data {:?}",
            indices.dims(),
            data.dims()
        ));
    }
    let inner: usize = data.dims()[batch + depth..].iter().product();
    let mut dims = index_dims.to_vec();
    dims.extend(&data.dims()[batch + depth..]);
    let steps = strides(data.dims());
    let per_batch: usize = index_dims[batch..].iter().product();
    let batch_len: usize = data.dims()[batch..].iter().product();
    let mut out = Builder::new(data.elem(), dims)?;
    for row in 0..index_dims.iter().product() {
        let mut start = row / per_batch.max(1) * batch_len;
        for k in 0..depth {
            let len = data.dims()[batch + k];
            start += from_front(number::int(indices, row * depth + k), len)? * steps[batch + k];
        }
        out.push(data, start, inner);
    }
    one(out.finish()?)
}

pub fn slice(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let need =
        |v: Option<Vec<i64>>| v.ok_or_else(|| RunError::Input("starts or ends are missing".into()));
    let (starts, ends) = (need(call.ints(1)?)?, need(call.ints(2)?)?);
    let axes = call
        .ints(3)?
        .unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return fail("starts, ends, axes and steps differ in length");
    }
    let mut first = vec![0i64; data.rank()];
    let mut by = vec![1i64; data.rank()];
    let mut dims = data.dims().to_vec();
    for i in 0..starts.len() {
        let a = axis(axes[i], data.rank())?;
        let len = data.dims()[a] as i64;
        let step = steps[i];
        if step == 0 {
            return fail("a step is 0");
        }
        let bound = |v: i64| if v < 0 { v.saturating_add(len) } else { v };
        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let start = bound(starts[i]).clamp(low.max(0), high.max(0));
        let end = bound(ends[i]).clamp(low, high);
        let span = if step > 0 { end - start } else { start - end };
        dims[a] = if len == 0 || span <= 0 {
            0
        } else {
            (span as u64).div_ceil(step.unsigned_abs()) as usize
        };
        (first[a], by[a]) = (start, step);
    }
    let own = strides(data.dims());
    let places = (0..dims.len()).map(|a| {
        let at = |p: usize| (first[a] + p as i64 * by[a]) as usize * own[a];
        (0..dims[a]).map(|p| Some(at(p))).collect()
    });
    one(take_grid(data, &places.collect::<Vec<_>>(), None)?)
}

/// Tensors joined along an existing axis.
pub fn join(parts: &[View], along: usize) -> Result<Tensor, RunError> {
    let Some(first) = parts.first() else {
        return fail("nothing to join");
    };
    let mut dims = first.dims().to_vec();
    dims[along] = 0;
    for part in parts {
        same_elem(first, part)?;
        let fits = part.rank() == dims.len()
            && (0..dims.len()).all(|a| a == along || part.dims()[a] == dims[a]);
        if !fits {
            return fail(format!(
                "shapes {:?} and {:?} do not join along axis {along}",
                first.dims(),
                part.dims()
            ));
        }
        dims[along] += part.dims()[along];
    }
    let (outer, _, inner) = around(&dims, along);
    let mut out = Builder::new(first.elem(), dims)?;
    for o in 0..outer {
        for part in parts {
            let n = part.dims()[along] * inner;
            out.push(part, o * n, n);
        }
    }
    out.finish()
}

pub fn concat(call: &Call) -> Results {
    let parts = (0..call.operands.len())
        .map(|n| call.tensor(n).cloned())
        .collect::<Result<Vec<_>, _>>()?;
    let rank = parts.first().map_or(0, View::rank);
    one(join(&parts, axis(call.attr_int("axis", 0), rank)?)?)
}

/// `data` cut into pieces of these lengths along an axis.
pub fn cut(data: &View, along: usize, lengths: &[usize]) -> Result<Vec<Tensor>, RunError> {
    let (outer, len, inner) = around(data.dims(), along);
    if lengths.iter().try_fold(0usize, |a, &b| a.checked_add(b)) != Some(len) {
        return fail(format!(
            "pieces {lengths:?} do not make up the length {len}"
        ));
    }
    let mut start = 0;
    let mut pieces = Vec::with_capacity(lengths.len());
    for &piece in lengths {
        let mut dims = data.dims().to_vec();
        dims[along] = piece;
        let mut out = Builder::new(data.elem(), dims)?;
        for o in 0..outer {
            out.push(data, (o * len + start) * inner, piece * inner);
        }
        pieces.push(out.finish()?);
        start += piece;
    }
    Ok(pieces)
}

pub fn split(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let along = axis(call.attr_int("axis", 0), data.rank())?;
    let lengths = match call
        .ints(1)?
        .or_else(|| call.attr_ints("split").map(<[i64]>::to_vec))
    {
        Some(split) => split
            .iter()
            .map(|&s| length(s))
            .collect::<Result<Vec<_>, _>>()?,
        None => {
            let n = length(
                call.attr_int_opt("num_outputs")
                    .unwrap_or(call.results as i64),
            )?
            .max(1);
            let (len, piece) = (data.dims()[along], data.dims()[along].div_ceil(n));
            (0..n)
                .map(|i| piece.min(len.saturating_sub(i * piece)))
                .collect()
        }
    };
    Ok(cut(data, along, &lengths)?
        .into_iter()
        .map(Value::Tensor)
        .collect())
}

pub fn compress(call: &Call) -> Results {
    let (data, condition) = (call.tensor(0)?, call.tensor(1)?);
    let chosen = |n: usize| {
        let set = |&i: &usize| number::int(condition, i) != 0;
        let chosen: Vec<usize> = (0..condition.len()).filter(set).collect();
        match chosen.last() {
            Some(&last) if last >= n => fail(format!("the condition is longer than {n} slices")),
            _ => Ok(chosen),
        }
    };
    let Some(along) = call.attr_int_opt("axis") else {
        let chosen = chosen(data.len())?;
        return one(take(
            data,
            vec![chosen.len()],
            None,
            chosen.iter().map(|&i| Some(i)),
        )?);
    };
    let along = axis(along, data.rank())?;
    let (outer, len, inner) = around(data.dims(), along);
    let chosen = chosen(len)?;
    let mut dims = data.dims().to_vec();
    dims[along] = chosen.len();
    let mut out = Builder::new(data.elem(), dims)?;
    for o in 0..outer {
        for &i in &chosen {
            out.push(data, (o * len + i) * inner, inner);
        }
    }
    one(out.finish()?)
}

pub fn one_hot(call: &Call) -> Results {
    let (indices, values) = (call.tensor(0)?, call.tensor(2)?);
    let depth = match call.tensor(1)? {
        d if d.len() == 1 => length(number::float(d, 0) as i64)?,
        _ => return fail("the depth must be one number"),
    };
    if values.len() != 2 {
        return fail("the values must be two: off and on");
    }
    let along = axis(call.attr_int("axis", -1), indices.rank() + 1)?;
    let mut dims = indices.dims().to_vec();
    dims.insert(along, depth);
    let (outer, _, inner) = around(&dims, along);
    let mut out = Builder::new(values.elem(), dims)?;
    for o in 0..outer {
        for d in 0..depth {
            for i in 0..inner {
                let index = number::float(indices, o * inner + i) as i64;
                let index = if index < 0 {
                    index.saturating_add(depth as i64)
                } else {
                    index
                };
                out.push(values, usize::from(index == d as i64), 1);
            }
        }
    }
    one(out.finish()?)
}

pub fn where_(call: &Call) -> Results {
    let (condition, x, y) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
    let elem = same_elem(x, y)?;
    let dims = broadcast(&broadcast(condition.dims(), x.dims())?, y.dims())?;
    let steps = [condition, x, y].map(|v| broadcast_strides(v.dims(), &dims));
    let mut out = Builder::new(elem, dims.clone())?;
    for p in Positions::of(&dims) {
        let [c, a, b] = [0, 1, 2].map(|i| linear(&p, &steps[i]));
        if number::int(condition, c) != 0 {
            out.push(x, a, 1)
        } else {
            out.push(y, b, 1)
        }
    }
    one(out.finish()?)
}

pub fn reverse_sequence(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let lens = call.ints(1)?.unwrap_or_default();
    let batch = axis(call.attr_int("batch_axis", 1), data.rank())?;
    let time = axis(call.attr_int("time_axis", 0), data.rank())?;
    if batch == time || lens.len() != data.dims()[batch] {
        return fail("batch and time axis, or the number of lengths, do not fit");
    }
    if lens
        .iter()
        .any(|&l| l < 0 || l as usize > data.dims()[time])
    {
        return fail("a length is longer than the data");
    }
    let own = strides(data.dims());
    let indices = Positions::of(data.dims()).map(|mut p| {
        let len = lens[p[batch]] as usize;
        if p[time] < len {
            p[time] = len - 1 - p[time];
        }
        Some(linear(&p, &own))
    });
    one(take(data, data.dims().to_vec(), None, indices)?)
}

pub fn array_feature_extractor(call: &Call) -> Results {
    let (data, indices) = (call.tensor(0)?, call.tensor(1)?);
    let Some((&features, outer)) = data.dims().split_last() else {
        return fail("the data must not be a scalar");
    };
    let rows: usize = outer.iter().product();
    // ONNX keeps a batch axis of 1 for data of rank 1.
    let mut dims = if outer.is_empty() {
        vec![1]
    } else {
        outer.to_vec()
    };
    dims.push(indices.len());
    // Columns, unlike other indices, do not count from the end.
    let columns = (0..indices.len())
        .map(|i| match usize::try_from(number::int(indices, i)) {
            Ok(column) if column < features => Ok(column),
            _ => fail(format!("a column is out of range for {features} columns")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut out = Builder::new(data.elem(), dims)?;
    for row in 0..rows {
        for column in &columns {
            out.push(data, row * features + column, 1);
        }
    }
    one(out.finish()?)
}

pub fn non_zero(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let is_set = |i: usize| match data.elem() {
        ElemType::String => !data.strings()[i].is_empty(),
        ElemType::C64 | ElemType::C128 => number::complex(data, i) != [0.0; 2],
        _ => number::float(data, i) != 0.0,
    };
    let found: Vec<Vec<usize>> = Positions::of(data.dims())
        .enumerate()
        .filter(|(i, _)| is_set(*i))
        .map(|(_, p)| p)
        .collect();
    let mut out = Vec::with_capacity(found.len() * data.rank());
    for a in 0..data.rank() {
        out.extend(found.iter().map(|p| p[a] as i64));
    }
    one(Tensor::from_i64(vec![data.rank(), found.len()], &out)?)
}
