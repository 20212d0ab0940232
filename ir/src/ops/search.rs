//! Ops that order, compare or pick elements: their results depend on the data in ways no tile program can
//! follow, so compiled code calls the runtime library for them.

use super::{AttrDef, AttrKind, Default, Eval, EvalCtx, OpDef, OpError, Operand, checked_count, resolve_axis};
use crate::tensor::{Data, Tensor, Value, count};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type};
use std::cmp::Ordering;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&TOP_K, &UNIQUE, &NON_MAX_SUPPRESSION];

/// Largest or smallest elements along an axis.
pub static TOP_K: OpDef = OpDef {
    name: "top_k",
    summary: "the k largest or smallest elements along `axis`, and where they are; the first of equal ones wins",
    source: "ONNX TopK-24",
    operands: &[Operand::One("x"), Operand::One("k")],
    results: &[Operand::One("values"), Operand::One("indices")],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "axis to search"),
        AttrDef::new("largest", AttrKind::Int, Default::Int(1), "0 for the smallest"),
        AttrDef::new("sorted", AttrKind::Int, Default::Int(1), "0 allows any order (ours is sorted all the same)"),
    ],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        let dims = match ctx.shape(0)? {
            None => None,
            Some(shape) => {
                let mut dims = shape.to_vec();
                let axis = resolve_axis(ctx.int("axis")?, dims.len())?;
                dims[axis] = match ctx.dims(1) {
                    Some([k]) => k.clone(),
                    Some(_) => return Err(OpError::new("`k` must be one integer")),
                    None => ctx.fresh_dim(),
                };
                Some(dims)
            }
        };
        let ty = |elem| Type::Tensor(TensorType { elem, shape: dims.clone() });
        Ok(vec![ty(elem), ty(ElemType::I64)])
    },
    eval: Eval::Direct(top_k),
    ..OpDef::BASE
};

/// Distinct elements or slices.
pub static UNIQUE: OpDef = OpDef {
    name: "unique",
    summary: "distinct elements (or slices along `axis`), where each first occurs, which one each input is, and how often",
    source: "ONNX Unique-28",
    operands: &[Operand::One("x")],
    results: &[
        Operand::One("y"),
        Operand::Optional("indices"),
        Operand::Optional("inverse_indices"),
        Operand::Optional("counts"),
    ],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Absent, "axis of the slices; the flattened tensor if left out"),
        AttrDef::new("sorted", AttrKind::Int, Default::Int(1), "0 for the order of first occurrence"),
    ],
    infer: |ctx| {
        let (elem, found) = (ctx.elem(0)?, ctx.fresh_dim());
        let y = match (ctx.int_opt("axis"), ctx.shape(0)?) {
            (None, _) => Type::tensor(elem, [found.clone()]),
            (Some(_), None) => Type::unranked(elem),
            (Some(axis), Some(shape)) => {
                let mut dims = shape.to_vec();
                let axis = resolve_axis(axis, dims.len())?;
                dims[axis] = found.clone();
                Type::tensor(elem, dims)
            }
        };
        let inverse = match (ctx.int_opt("axis"), ctx.shape(0)?) {
            (Some(axis), Some(shape)) => shape[resolve_axis(axis, shape.len())?].clone(),
            (None, Some(shape)) => shape.iter().fold(Dim::from(1i64), |a, d| a * d),
            _ => ctx.fresh_dim(),
        };
        let index = |d: &Dim| Type::tensor(ElemType::I64, [d.clone()]);
        Ok(vec![y, index(&found), index(&inverse), index(&found)])
    },
    eval: Eval::Direct(unique),
    ..OpDef::BASE
};

/// Boxes that overlap no better one.
pub static NON_MAX_SUPPRESSION: OpDef = OpDef {
    name: "non_max_suppression",
    summary: "per batch entry and class, the best boxes that overlap no better one: rows of (batch, class, box)",
    source: "ONNX NonMaxSuppression-11",
    operands: &[
        Operand::One("boxes"),
        Operand::One("scores"),
        Operand::Optional("max_output_boxes_per_class"),
        Operand::Optional("iou_threshold"),
        Operand::Optional("score_threshold"),
    ],
    results: &[Operand::One("selected_indices")],
    attrs: &[AttrDef::new("center_point_box", AttrKind::Int, Default::Int(0), "1 for boxes as (x centre, y centre, width, height), 0 for two corners (y1, x1, y2, x2)")],
    infer: |ctx| {
        ctx.elem(0)?; ctx.elem(1)?;
        Ok(vec![Type::tensor(ElemType::I64, [ctx.fresh_dim(), Dim::from(3i64)])])
    },
    eval: Eval::Direct(non_max_suppression),
    ..OpDef::BASE
};

/// Orders two elements of a tensor; NaN is above every number.
fn compare(data: &Data, a: usize, b: usize) -> Ordering {
    let floats = |x: f64, y: f64| x.partial_cmp(&y).unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()));
    match data {
        Data::Float(v) => floats(v[a], v[b]),
        Data::Int(v) => v[a].cmp(&v[b]),
        Data::Str(v) => v[a].cmp(&v[b]),
        Data::Complex(v) => floats(v[a][0], v[b][0]).then(floats(v[a][1], v[b][1])),
    }
}

fn top_k(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axis = resolve_axis(ctx.int("axis")?, x.rank())?;
    let (n, inner) = (x.shape()[axis], count(&x.shape()[axis + 1..]));
    let k = match ctx.i64s(1)?.as_slice() {
        [k] => usize::try_from(*k).ok().filter(|&k| k <= n),
        _ => None,
    };
    let k = k.ok_or_else(|| OpError::new(format!("`k` must be between 0 and {n}")))?;
    let mut shape = x.shape().to_vec();
    shape[axis] = k;
    let mut from = vec![0; count(&shape)];
    let largest = ctx.flag("largest");
    for line in 0..count(&x.shape()[..axis]) * inner {
        let (o, i) = (line / inner, line % inner);
        let at = |j: usize| (o * n + j) * inner + i;
        let mut order: Vec<usize> = (0..n).collect();
        // A stable sort keeps the first of equal elements first.
        order.sort_by(|&a, &b| {
            let c = compare(x.data(), at(a), at(b));
            if largest { c.reverse() } else { c }
        });
        for (r, &j) in order.iter().take(k).enumerate() {
            from[(o * k + r) * inner + i] = at(j);
        }
    }
    let values = x.gather_linear(shape.clone(), |i| from[i]);
    let indices = from.iter().map(|&f| (f / inner % n) as i128).collect();
    Ok(vec![values.into(), Tensor::from_int(ElemType::I64, shape, indices).into()])
}

fn unique(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    // Slices are lists of linear indices; without an axis each holds one element.
    let (axis, base) = match ctx.int_opt("axis") {
        Some(axis) => (resolve_axis(axis, x.rank())?, x.shape().to_vec()),
        None => (0, vec![x.len()]),
    };
    let (n, inner, outer) = (base[axis], count(&base[axis + 1..]), count(&base[..axis]));
    let at = |slice: usize, e: usize| (e / inner * n + slice) * inner + e % inner;
    let order_of = |a: usize, b: usize| {
        let differing = (0..outer * inner).map(|e| compare(x.data(), at(a, e), at(b, e)));
        differing.into_iter().find(|c| c.is_ne()).unwrap_or(Ordering::Equal)
    };
    let mut sorted: Vec<usize> = (0..n).collect();
    sorted.sort_by(|&a, &b| order_of(a, b));
    // Runs of equal slices, each by its first occurrence (the sort is stable).
    let mut groups: Vec<Vec<usize>> = vec![];
    for s in sorted {
        match groups.last_mut() {
            Some(g) if order_of(g[0], s).is_eq() => g.push(s),
            _ => groups.push(vec![s]),
        }
    }
    if !ctx.flag("sorted") {
        groups.sort_by_key(|g| g[0]);
    }
    let mut inverse = vec![0i128; n];
    for (g, members) in groups.iter().enumerate() {
        members.iter().for_each(|&m| inverse[m] = g as i128);
    }
    let found = groups.len();
    let mut shape = base;
    shape[axis] = found;
    let row = (found * inner).max(1);
    let y = x.gather_linear(shape, |i| {
        let (o, g, e) = (i / row, i / inner % found, i % inner);
        (o * n + groups[g][0]) * inner + e
    });
    let index = |v: Vec<i128>| Tensor::from_int(ElemType::I64, [v.len()], v).into();
    Ok(vec![
        y.into(),
        index(groups.iter().map(|g| g[0] as i128).collect()),
        index(inverse),
        index(groups.iter().map(|g| g.len() as i128).collect()),
    ])
}

/// The corners of a box, smallest first.
fn corners(b: &[f64], center: bool) -> [f64; 4] {
    if center {
        let (x, y, w, h) = (b[0], b[1], b[2] / 2.0, b[3] / 2.0);
        [y - h, x - w, y + h, x + w]
    } else {
        [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])]
    }
}

/// Intersection over union of two boxes.
fn overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let area = |c: [f64; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let (h, w) = (a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1]));
    if h <= 0.0 || w <= 0.0 || area(a) <= 0.0 || area(b) <= 0.0 {
        return 0.0;
    }
    h * w / (area(a) + area(b) - h * w)
}

fn non_max_suppression(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (boxes, scores) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let (&[batch, n, 4], &[b, classes, m]) = (boxes.shape(), scores.shape()) else {
        return Err(OpError::new("takes boxes [batch, n, 4] and scores [batch, classes, n]"));
    };
    let (Some(boxes), Some(scores)) = (boxes.floats(), scores.floats()) else {
        return Err(OpError::new("takes floats"));
    };
    if b != batch || m != n {
        return Err(OpError::new("boxes and scores differ in batch or number"));
    }
    let threshold = |i: usize| ctx.tensor_opt(i).and_then(|t| t.to_f64s()?.first().copied());
    let most = if ctx.has(2) { ctx.i64s(2)?.first().copied().unwrap_or(0).max(0) as usize } else { 0 };
    let (iou, least) = (threshold(3).unwrap_or(0.0), threshold(4));
    let center = ctx.flag("center_point_box");
    let mut out: Vec<i128> = vec![];
    for class in 0..batch * classes {
        let (entry, c) = (class / classes, class % classes);
        let score = |i: usize| scores[class * n + i];
        let corners = |i: usize| corners(&boxes[(entry * n + i) * 4..][..4], center);
        let mut order: Vec<usize> = (0..n).filter(|&i| least.is_none_or(|t| score(i) > t)).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        let mut kept: Vec<usize> = vec![];
        for i in order {
            if kept.len() >= most {
                break;
            }
            if kept.iter().all(|&k| overlap(corners(k), corners(i)) <= iou) {
                kept.push(i);
                out.extend([entry as i128, c as i128, i as i128]);
            }
        }
    }
    let shape = vec![out.len() / 3, 3];
    checked_count(&shape)?;
    Ok(vec![Tensor::from_int(ElemType::I64, shape, out).into()])
}

#[cfg(test)]
mod tests {
    use crate::Attr;
    use crate::eval::testing::{f32s, gives, i64s, refuses};

    #[test]
    fn the_first_of_equal_elements_wins() {
        let x = f32s(&[2, 3], &[1.0, 3.0, 3.0, f64::INFINITY, -1.0, 0.0]);
        let k = i64s(&[1], &[2]);
        let large = [f32s(&[2, 2], &[3.0, 3.0, f64::INFINITY, 0.0]), i64s(&[2, 2], &[1, 2, 0, 2])];
        gives("top_k", &[x.clone(), k.clone()], &[], &large);
        let small = [f32s(&[2, 2], &[1.0, 3.0, -1.0, 0.0]), i64s(&[2, 2], &[0, 1, 1, 2])];
        gives("top_k", &[x.clone(), k], &[("largest", Attr::Int(0))], &small);
        refuses("top_k", &[x, i64s(&[1], &[4])], &[], "between 0 and 3");
    }

    #[test]
    fn distinct_elements() {
        let x = i64s(&[6], &[2, 1, 1, 3, 4, 3]);
        let sorted = [i64s(&[4], &[1, 2, 3, 4]), i64s(&[4], &[1, 0, 3, 4]), i64s(&[6], &[1, 0, 0, 2, 3, 2]), i64s(&[4], &[2, 1, 2, 1])];
        gives("unique", std::slice::from_ref(&x), &[], &sorted);
        let first = [i64s(&[4], &[2, 1, 3, 4]), i64s(&[4], &[0, 1, 3, 4])];
        gives("unique", &[x], &[("sorted", Attr::Int(0))], &first);
        let rows = i64s(&[3, 2], &[1, 0, 1, 0, 0, 5]);
        gives("unique", &[rows], &[("axis", Attr::Int(0))], &[i64s(&[2, 2], &[0, 5, 1, 0])]);
    }

    #[test]
    fn overlapping_boxes_are_dropped() {
        let boxes = f32s(&[1, 3, 4], &[0.0, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 0.0, 5.0, 1.0, 6.0]);
        let scores = f32s(&[1, 1, 3], &[0.9, 0.95, 0.5]);
        let operands = [boxes, scores, i64s(&[1], &[3]), f32s(&[1], &[0.5])];
        gives("non_max_suppression", &operands, &[], &[i64s(&[2, 3], &[0, 0, 1, 0, 0, 2])]);
    }
}
