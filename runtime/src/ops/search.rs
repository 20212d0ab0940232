//! Finding, comparing and ordering: equal, top_k, unique, non_max_suppression.

use super::call::{Call, Results, axis, fail, length, one, same_elem};
use super::moves::{Builder, Positions, broadcast, broadcast_strides, linear, take};
use super::number::{self, Number};
use super::parts::around;
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;
use std::cmp::Ordering;

pub fn top_k(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let along = axis(call.attr_int("axis", -1), data.rank())?;
    let (outer, len, inner) = around(data.dims(), along);
    let k = match call.int(1)? {
        Some(k) => length(k)?,
        None => return fail("k is missing"),
    };
    if k > len {
        return fail(format!("k is {k}, the axis has {len} elements"));
    }
    let largest = call.attr_int("largest", 1) != 0;
    let mut dims = data.dims().to_vec();
    dims[along] = k;
    let mut chosen = vec![0; outer * k * inner];
    let mut order: Vec<usize> = Vec::with_capacity(len);
    for o in 0..outer {
        for i in 0..inner {
            let at = |j: usize| (o * len + j) * inner + i;
            let values: Vec<_> = (0..len).map(|j| number::number(data, at(j))).collect();
            order.clear();
            order.extend(0..len);
            // Equal elements keep their order: the lower index comes first.
            order.sort_by(|&a, &b| {
                let by_value = if largest {
                    values[b].order(&values[a])
                } else {
                    values[a].order(&values[b])
                };
                by_value.then(a.cmp(&b))
            });
            for (rank, &j) in order[..k].iter().enumerate() {
                chosen[(o * k + rank) * inner + i] = j;
            }
        }
    }
    let source = |n: usize| {
        let (o, i) = (n / (k * inner).max(1), n % inner.max(1));
        (o * len + chosen[n]) * inner + i
    };
    let values = take(
        data,
        dims.clone(),
        None,
        (0..chosen.len()).map(|n| Some(source(n))),
    )?;
    let indices: Vec<i64> = chosen.iter().map(|&j| j as i64).collect();
    Ok(vec![
        values.into(),
        Tensor::from_i64(dims, &indices)?.into(),
    ])
}

/// Order of two pieces of the same length.
fn compare(data: &View, a: usize, b: usize) -> Ordering {
    if data.elem() == ElemType::String {
        return data.strings()[a].cmp(&data.strings()[b]);
    }
    if matches!(data.elem(), ElemType::C64 | ElemType::C128) {
        let [a, b] = [a, b].map(|i| number::complex(data, i).map(Number::Float));
        return a[0].order(&b[0]).then(a[1].order(&b[1]));
    }
    number::number(data, a).order(&number::number(data, b))
}

/// Whether elements are equal; NaN equals nothing.
pub fn equal(call: &Call) -> Results {
    let (a, b) = (call.tensor(0)?, call.tensor(1)?);
    let elem = same_elem(a, b)?;
    let dims = broadcast(a.dims(), b.dims())?;
    let mut out = Bytes::zeroed(count(&dims)?)?;
    let [sa, sb] = [a, b].map(|v| broadcast_strides(v.dims(), &dims));
    for (n, p) in Positions::of(&dims).enumerate() {
        let (i, j) = (linear(&p, &sa), linear(&p, &sb));
        let is_equal = match elem {
            ElemType::String => a.strings()[i] == b.strings()[j],
            ElemType::C64 | ElemType::C128 => number::complex(a, i) == number::complex(b, j),
            _ => number::number(a, i) == number::number(b, j),
        };
        out.as_mut_slice()[n] = is_equal.into();
    }
    one(Tensor::from_bytes(ElemType::Bool, dims, out)?)
}

pub fn unique(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let sorted = call.attr_int("sorted", 1) != 0;
    let along = call
        .attr_int_opt("axis")
        .map(|a| axis(a, data.rank()))
        .transpose()?;
    // Pieces: single elements, or everything at one position of the axis.
    let (outer, len, inner) = along.map_or((1, data.len(), 1), |a| around(data.dims(), a));
    let piece =
        |p: usize| (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * len + p) * inner + i));
    let by_content = |a: usize, b: usize| {
        let unequal = piece(a)
            .zip(piece(b))
            .map(|(x, y)| compare(data, x, y))
            .find(|o| o.is_ne());
        unequal.unwrap_or(Ordering::Equal)
    };
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|&a, &b| by_content(a, b).then(a.cmp(&b)));
    // Groups of equal pieces, each in order of position.
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for p in order {
        match groups.last_mut() {
            Some(group) if by_content(group[0], p).is_eq() => group.push(p),
            _ => groups.push(vec![p]),
        }
    }
    if !sorted {
        groups.sort_by_key(|g| g[0]);
    }
    let mut inverse = vec![0i64; len];
    for (g, group) in groups.iter().enumerate() {
        for &p in group {
            inverse[p] = g as i64;
        }
    }
    let dims = match along {
        Some(a) => {
            let mut dims = data.dims().to_vec();
            dims[a] = groups.len();
            dims
        }
        None => vec![groups.len()],
    };
    let mut values = Builder::new(data.elem(), dims)?;
    for o in 0..outer {
        for group in &groups {
            values.push(data, (o * len + group[0]) * inner, inner);
        }
    }
    let first: Vec<i64> = groups.iter().map(|g| g[0] as i64).collect();
    let counts: Vec<i64> = groups.iter().map(|g| g.len() as i64).collect();
    let list = |v: &[i64]| Tensor::from_i64(vec![v.len()], v);
    Ok(vec![
        values.finish()?.into(),
        list(&first)?.into(),
        list(&inverse)?.into(),
        list(&counts)?.into(),
    ])
}

/// A box by its lower and upper corner.
struct Rect {
    low: [f64; 2],
    high: [f64; 2],
}

impl Rect {
    fn read(boxes: &View, at: usize, by_center: bool) -> Rect {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| number::float(boxes, at * 4 + i));
        if by_center {
            // x, y, width, height
            Rect {
                low: [a - c / 2.0, b - d / 2.0],
                high: [a + c / 2.0, b + d / 2.0],
            }
        } else {
            Rect {
                low: [a.min(c), b.min(d)],
                high: [a.max(c), b.max(d)],
            }
        }
    }

    fn area(&self) -> f64 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }

    /// Intersection over union.
    fn overlap(&self, other: &Rect) -> f64 {
        let side = |i: usize| self.high[i].min(other.high[i]) - self.low[i].max(other.low[i]);
        let (w, h) = (side(0), side(1));
        if w <= 0.0 || h <= 0.0 || self.area() <= 0.0 || other.area() <= 0.0 {
            return 0.0;
        }
        w * h / (self.area() + other.area() - w * h)
    }
}

pub fn non_max_suppression(call: &Call) -> Results {
    let (boxes, scores) = (call.tensor(0)?, call.tensor(1)?);
    let (&[batches, n, 4], &[score_batches, classes, score_n]) = (boxes.dims(), scores.dims())
    else {
        return fail(format!(
            "boxes {:?} and scores {:?} do not fit",
            boxes.dims(),
            scores.dims()
        ));
    };
    if score_batches != batches || score_n != n {
        return fail("boxes and scores differ in number");
    }
    let most = call.int(2)?.unwrap_or(0).max(0) as usize;
    let overlap = call.float(3)?.unwrap_or(0.0);
    let threshold = call.float(4)?;
    let by_center = call.attr_int("center_point_box", 0) != 0;
    let mut found = Vec::new();
    for batch in 0..batches {
        let rects: Vec<Rect> = (0..n)
            .map(|i| Rect::read(boxes, batch * n + i, by_center))
            .collect();
        for class in 0..classes {
            let score = |i: usize| number::float(scores, (batch * classes + class) * n + i);
            for i in keep(&rects, score, threshold, overlap, most)? {
                found.extend([batch as i64, class as i64, i as i64]);
            }
        }
    }
    Ok(vec![
        Tensor::from_i64(vec![found.len() / 3, 3], &found)?.into(),
    ])
}

fn keep(
    rects: &[Rect],
    score: impl Fn(usize) -> f64,
    threshold: Option<f64>,
    overlap: f64,
    most: usize,
) -> Result<Vec<usize>, RunError> {
    let mut order: Vec<usize> = (0..rects.len())
        .filter(|&i| threshold.is_none_or(|t| score(i) > t))
        .collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.len() >= most {
            break;
        }
        if kept.iter().all(|&k| rects[k].overlap(&rects[i]) <= overlap) {
            kept.push(i);
        }
    }
    Ok(kept)
}
