//! Shapes: reading them, changing them, joining and cutting tensors.

use super::broadcast::{broadcast_index, tensor_type};
use super::index_map::{around_axis, assemble, strided};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, broadcast_dims,
    broadcast_shapes, resolve_axis, checked_count};
use crate::tensor::{Tensor, Value, strides};
use crate::{Dim, ElemType, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &SHAPE, &SIZE, &RESHAPE, &FLATTEN, &SQUEEZE, &UNSQUEEZE, &TRANSPOSE, &CONCAT, &SPLIT, &EXPAND, &TILE,
];

/// The shape as a tensor.
pub static SHAPE: OpDef = OpDef {
    name: "shape",
    summary: "dimensions of x, or of its axes from `start` up to `end`",
    source: "ONNX Shape-25",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("start", AttrKind::Int, Default::Int(0), "first axis, clamped"),
        AttrDef::new("end", AttrKind::Int, Default::Absent, "axis after the last, clamped; absent: the rank"),
    ],
    infer: |ctx| {
        let len = ctx.shape(0)?.map(|s| axis_range(s.len(), ctx.int("start").unwrap_or(0), ctx.int_opt("end")).len());
        let dim = len.map_or_else(|| ctx.fresh_dim(), Dim::from);
        Ok(vec![tensor_type(ElemType::I64, Some(vec![dim]))])
    },
    contents: Some(|ctx| {
        let shape = ctx.shape(0).ok()??;
        Some(shape[axis_range(shape.len(), ctx.int("start").unwrap_or(0), ctx.int_opt("end"))].to_vec())
    }),
    eval: Eval::Direct(|ctx| {
        let shape = ctx.tensor(0)?.shape();
        let range = axis_range(shape.len(), ctx.int("start")?, ctx.int_opt("end"));
        let dims: Vec<i64> = shape[range].iter().map(|&d| d as i64).collect();
        Ok(vec![Tensor::ints(&dims).into()])
    }),
    ..OpDef::BASE
};

/// The number of elements.
pub static SIZE: OpDef = OpDef {
    name: "size",
    summary: "number of elements of x",
    source: "ONNX Size-25",
    operands: &[Operand::One("x")],
    infer: |ctx| {
        ctx.elem(0)?;
        Ok(vec![Type::tensor(ElemType::I64, [] as [i64; 0])])
    },
    contents: Some(|ctx| Some(vec![product(ctx.shape(0).ok()??)])),
    eval: Eval::Direct(|ctx| Ok(vec![Tensor::int(ctx.tensor(0)?.len() as i64).into()])),
    ..OpDef::BASE
};

/// Another shape.
pub static RESHAPE: OpDef = OpDef {
    name: "reshape",
    summary: "the elements of x in another shape; -1 is inferred, 0 copies unless `allowzero`",
    source: "ONNX Reshape-25",
    operands: &[Operand::One("x"), Operand::One("shape")],
    attrs: &[AttrDef::new("allowzero", AttrKind::Int, Default::Int(0), "1: 0 is a dimension of length 0")],
    infer: infer_reshape,
    contents: Some(first_contents),
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let shape = reshape_target(x.shape(), &ctx.i64s(1)?, ctx.flag("allowzero"))?;
        Ok(vec![x.clone().with_shape(shape).into()])
    }),
    ..OpDef::BASE
};

/// Two dimensions.
pub static FLATTEN: OpDef = OpDef {
    name: "flatten",
    summary: "x as a matrix: axes before `axis` become rows, the rest columns",
    source: "ONNX Flatten-25",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Int(1), "first axis of the columns")],
    infer: |ctx| {
        let shape = match ctx.shape(0)? {
            Some(s) => {
                let axis = flatten_axis(ctx.int("axis")?, s.len())?;
                vec![product(&s[..axis]), product(&s[axis..])]
            }
            None => vec![ctx.fresh_dim(), ctx.fresh_dim()],
        };
        Ok(vec![tensor_type(ctx.elem(0)?, Some(shape))])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let axis = flatten_axis(ctx.int("axis")?, x.rank())?;
        let (rows, columns) = x.shape().split_at(axis);
        let shape = [rows.iter().product(), columns.iter().product()];
        Ok(vec![x.clone().with_shape(shape).into()])
    }),
    ..OpDef::BASE
};

/// Fewer axes.
pub static SQUEEZE: OpDef = OpDef {
    name: "squeeze",
    summary: "x without the given axes of length 1, or without all of them",
    source: "ONNX Squeeze-25",
    operands: &[Operand::One("x"), Operand::Optional("axes")],
    infer: infer_squeeze,
    contents: Some(first_contents),
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let gone: Vec<usize> = if ctx.has(1) {
            ctx.i64s(1)?.iter().map(|&a| resolve_axis(a, x.rank())).collect::<Result<_, _>>()?
        } else {
            (0..x.rank()).filter(|&i| x.shape()[i] == 1).collect()
        };
        if let Some(&axis) = gone.iter().find(|&&a| x.shape()[a] != 1) {
            return Err(OpError::new(format!("axis {axis} has length {}, expected 1", x.shape()[axis])));
        }
        let shape: Vec<usize> = (0..x.rank()).filter(|i| !gone.contains(i)).map(|i| x.shape()[i]).collect();
        Ok(vec![x.clone().with_shape(shape).into()])
    }),
    ..OpDef::BASE
};

/// More axes.
pub static UNSQUEEZE: OpDef = OpDef {
    name: "unsqueeze",
    summary: "x with axes of length 1 inserted at the given places of the result",
    source: "ONNX Unsqueeze-25",
    operands: &[Operand::One("x"), Operand::One("axes")],
    infer: |ctx| {
        let shape = match (ctx.shape(0)?, ctx.const_ints(1), axis_count(ctx, 1)?) {
            (Some(shape), Some(axes), _) => Some(unsqueezed(shape, &axes, Dim::from(1i64))?),
            (Some(shape), None, Some(n)) => Some((0..shape.len() + n).map(|_| ctx.fresh_dim()).collect()),
            _ => None,
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    contents: Some(first_contents),
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let shape = unsqueezed(x.shape(), &ctx.i64s(1)?, 1)?;
        Ok(vec![x.clone().with_shape(shape).into()])
    }),
    ..OpDef::BASE
};

/// Axes in another order.
pub static TRANSPOSE: OpDef = OpDef {
    name: "transpose",
    summary: "axes of x in the order `perm`, or reversed",
    source: "ONNX Transpose-25",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("perm", AttrKind::Ints, Default::Absent, "result axis i is operand axis perm[i]; absent: reversed")],
    infer: |ctx| {
        let shape = match ctx.shape(0)? {
            Some(s) => Some(permutation(ctx.ints("perm"), s.len())?.into_iter().map(|i| s[i].clone()).collect()),
            None => None,
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    contents: Some(|ctx| (ctx.shape(0).ok()??.len() <= 1).then(|| ctx.dims(0).map(<[Dim]>::to_vec))?),
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let perm = permutation(ctx.ints("perm"), x.rank())?;
        let own = strides(x.shape());
        let shape: Vec<usize> = perm.iter().map(|&i| x.shape()[i]).collect();
        let source = strided(&shape, perm.iter().map(|&i| own[i] as isize).collect(), 0);
        Ok(vec![x.gather_linear(shape, source).into()])
    }),
    ..OpDef::BASE
};

/// Tensors one after another.
pub static CONCAT: OpDef = OpDef {
    name: "concat",
    summary: "operands joined along an axis",
    source: "ONNX Concat-13",
    operands: &[Operand::Variadic("inputs")],
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Required, "axis that grows")],
    infer: infer_concat,
    contents: Some(|ctx| {
        let parts: Option<Vec<&[Dim]>> = (0..ctx.types.len()).map(|i| ctx.dims(i)).collect();
        (ctx.shape(0).ok()??.len() == 1).then(|| Some(parts?.concat()))?
    }),
    eval: Eval::Direct(eval_concat),
    ..OpDef::BASE
};

/// Pieces.
pub static SPLIT: OpDef = OpDef {
    name: "split",
    summary: "x cut along an axis into pieces of given lengths, or `num_outputs` of equal length (the last may be shorter)",
    source: "ONNX Split-18",
    operands: &[Operand::One("x"), Operand::Optional("split")],
    results: &[Operand::Variadic("outputs")],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Int(0), "axis that is cut"),
        AttrDef::new("num_outputs", AttrKind::Int, Default::Absent, "number of pieces, if no lengths are given"),
    ],
    infer: infer_split,
    eval: Eval::Direct(eval_split),
    ..OpDef::BASE
};

/// Broadcast to a shape.
pub static EXPAND: OpDef = OpDef {
    name: "expand",
    summary: "x broadcast with a shape, both ways",
    source: "ONNX Expand-13",
    operands: &[Operand::One("x"), Operand::One("shape")],
    infer: |ctx| {
        let shape = match (ctx.shape(0)?, ctx.dims(1), axis_count(ctx, 1)?) {
            (Some(x), Some(to), _) => Some(broadcast_dims(x, to)?),
            (Some(x), None, Some(n)) => Some((0..n.max(x.len())).map(|_| ctx.fresh_dim()).collect()),
            _ => None,
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    contents: Some(|ctx| {
        let (x, to) = (ctx.dims(0)?, ctx.const_ints(1)?);
        let n = usize::try_from(*to.last().filter(|_| to.len() == 1)?).ok()?;
        match x {
            [one] if n <= crate::builder::SMALL_CONSTANT => Some(vec![one.clone(); n]),
            _ if n == 1 || n == x.len() => Some(x.to_vec()),
            _ => None,
        }
    }),
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let shape = broadcast_shapes(x.shape(), &as_shape(&ctx.i64s(1)?)?)?;
        checked_count(&shape)?;
        let source = broadcast_index(x.shape(), &shape);
        Ok(vec![x.gather_linear(shape, source).into()])
    }),
    ..OpDef::BASE
};

/// Repetition.
pub static TILE: OpDef = OpDef {
    name: "tile",
    summary: "x repeated a number of times along each axis",
    source: "ONNX Tile-13",
    operands: &[Operand::One("x"), Operand::One("repeats")],
    infer: |ctx| {
        let shape = match (ctx.shape(0)?, ctx.dims(1)) {
            (Some(x), Some(n)) if x.len() == n.len() => Some(x.iter().zip(n).map(|(d, n)| d * n).collect()),
            (Some(x), Some(n)) => return Err(OpError::new(format!("{} repeats for rank {}", n.len(), x.len()))),
            (Some(x), None) => Some(x.iter().map(|_| ctx.fresh_dim()).collect()),
            _ => None,
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let repeats = as_shape(&ctx.i64s(1)?)?;
        if repeats.len() != x.rank() {
            return Err(OpError::new(format!("{} repeats for rank {}", repeats.len(), x.rank())));
        }
        let too_large = || OpError::new("the result is too large");
        let shape: Vec<usize> = x
            .shape()
            .iter()
            .zip(&repeats)
            .map(|(d, n)| d.checked_mul(*n).ok_or_else(too_large))
            .collect::<Result<_, _>>()?;
        checked_count(&shape)?;
        let (all, own, lens) = (strides(&shape), strides(x.shape()), x.shape().to_vec());
        let source = |i: usize| -> usize {
            (0..lens.len()).map(|a| i / all[a] % shape[a] % lens[a] * own[a]).sum()
        };
        Ok(vec![x.gather_linear(shape.clone(), source).into()])
    }),
    ..OpDef::BASE
};

/// Non-negative dimensions from integers.
pub fn as_shape(dims: &[i64]) -> Result<Vec<usize>, OpError> {
    dims.iter()
        .map(|&d| usize::try_from(d).map_err(|_| OpError::new(format!("{d} is not a dimension"))))
        .collect()
}

/// Length of the 1-D operand `i`, if its shape says so.
pub fn axis_count(ctx: &InferCtx, i: usize) -> Result<Option<usize>, OpError> {
    let len = ctx.shape(i)?.and_then(|s| s.first()?.as_const());
    // Ranks beyond this are no tensors but attempts to exhaust memory.
    Ok(len.and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= 64))
}

fn first_contents(ctx: &InferCtx) -> Option<Vec<Dim>> {
    ctx.dims(0).map(<[Dim]>::to_vec)
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1i64), |a, d| a * d)
}

fn axis_range(rank: usize, start: i64, end: Option<i64>) -> std::ops::Range<usize> {
    let r = rank as i64;
    let clamp = |a: i64| (if a < 0 { a.saturating_add(r) } else { a }).clamp(0, r) as usize;
    let (start, end) = (clamp(start), clamp(end.unwrap_or(r)));
    start..end.max(start)
}

/// `axis` of `flatten`, which may also be the rank.
fn flatten_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    if axis == rank as i64 {
        return Ok(rank);
    }
    resolve_axis(axis, rank)
}

fn infer_reshape(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let Some(target) = ctx.dims(1) else {
        let shape = axis_count(ctx, 1)?.map(|n| (0..n).map(|_| ctx.fresh_dim()).collect());
        return Ok(vec![tensor_type(elem, shape)]);
    };
    let input = ctx.shape(0)?;
    let numbers: Option<Vec<usize>> =
        input.and_then(|s| s.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect());
    if let (Some(from), Some(to)) = (numbers, ctx.const_ints(1)) {
        let shape = reshape_target(&from, &to, ctx.flag("allowzero"))?;
        return Ok(vec![tensor_type(elem, Some(shape.into_iter().map(Dim::from).collect()))]);
    }
    let mut shape = vec![];
    let mut inferred = None;
    for (i, d) in target.iter().enumerate() {
        shape.push(match d.as_const() {
            Some(0) if !ctx.flag("allowzero") => match input {
                Some(s) => s.get(i).cloned().ok_or_else(|| OpError::new(format!("0 at place {i} copies an axis that is not there")))?,
                None => ctx.fresh_dim(),
            },
            Some(-1) => {
                if inferred.replace(i).is_some() {
                    return Err(OpError::new("only one dimension can be inferred"));
                }
                Dim::from(1i64)
            }
            Some(n) if n < 0 => return Err(OpError::new(format!("{n} is not a dimension"))),
            _ => d.clone(),
        });
    }
    if let Some(i) = inferred {
        shape[i] = match input {
            Some(s) => product(s).floor_div(&product(&shape)),
            None => ctx.fresh_dim(),
        };
    }
    Ok(vec![tensor_type(elem, Some(shape))])
}

fn reshape_target(from: &[usize], to: &[i64], allowzero: bool) -> Result<Vec<usize>, OpError> {
    let total = from.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
    let total = total.ok_or_else(|| OpError::new("the operand is too large"))?;
    let (mut shape, mut inferred, mut rest) = (vec![], None, 1usize);
    for (i, &d) in to.iter().enumerate() {
        let d = match d {
            0 if !allowzero => *from.get(i).ok_or_else(|| OpError::new(format!("0 at place {i} copies an axis that is not there")))?,
            -1 if inferred.is_none() => {
                inferred = Some(i);
                1
            }
            -1 => return Err(OpError::new("only one dimension can be inferred")),
            d => usize::try_from(d).map_err(|_| OpError::new(format!("{d} is not a dimension")))?,
        };
        rest = rest.saturating_mul(d);
        shape.push(d);
    }
    if let Some(i) = inferred {
        shape[i] = total.checked_div(rest).unwrap_or(0);
        if rest == 0 && total == 0 && allowzero {
            return Err(OpError::new("-1 cannot be inferred beside a dimension 0"));
        }
        rest = rest.saturating_mul(shape[i]);
    }
    if rest != total {
        return Err(OpError::new(format!("{from:?} has {total} elements, {to:?} asks for {rest}")));
    }
    // Among the dimensions of an empty tensor an absurd one could hide.
    if total == 0 {
        checked_count(&shape)?;
    }
    Ok(shape)
}

fn infer_squeeze(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let Some(shape) = ctx.shape(0)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let gone: Vec<usize> = if !ctx.has(1) {
        // Every dimension must be a number (or a symbol, which is not 1 unless the data says so).
        (0..shape.len()).filter(|&i| shape[i].as_const() == Some(1)).collect()
    } else if let Some(axes) = ctx.const_ints(1) {
        axes.iter().map(|&a| resolve_axis(a, shape.len())).collect::<Result<_, _>>()?
    } else {
        let rank = axis_count(ctx, 1)?.and_then(|n| shape.len().checked_sub(n));
        return Ok(vec![tensor_type(elem, rank.map(|r| (0..r).map(|_| ctx.fresh_dim()).collect()))]);
    };
    if !ctx.has(1) && shape.iter().any(|d| d.as_const().is_none()) {
        return Ok(vec![Type::unranked(elem)]);
    }
    if let Some(&axis) = gone.iter().find(|&&a| shape[a].as_const().is_some_and(|d| d != 1)) {
        return Err(OpError::new(format!("axis {axis} has length {}, expected 1", shape[axis])));
    }
    let shape = (0..shape.len()).filter(|i| !gone.contains(i)).map(|i| shape[i].clone());
    Ok(vec![tensor_type(elem, Some(shape.collect()))])
}

fn unsqueezed<D: Clone>(shape: &[D], axes: &[i64], one: D) -> Result<Vec<D>, OpError> {
    let rank = shape.len() + axes.len();
    let mut new = vec![false; rank];
    for &axis in axes {
        if std::mem::replace(&mut new[resolve_axis(axis, rank)?], true) {
            return Err(OpError::new(format!("axis {axis} is inserted twice")));
        }
    }
    let mut old = shape.iter();
    Ok(new
        .into_iter()
        .map(|n| if n { one.clone() } else { old.next().unwrap_or(&one).clone() })
        .collect())
}

fn permutation(perm: Option<Vec<i64>>, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(perm) = perm else {
        return Ok((0..rank).rev().collect());
    };
    let out: Vec<usize> = perm.iter().map(|&p| resolve_axis(p, rank)).collect::<Result<_, _>>()?;
    if out.len() != rank || !(0..rank).all(|i| out.contains(&i)) {
        return Err(OpError::new(format!("`perm` {perm:?} is no permutation of {rank} axes")));
    }
    Ok(out)
}

fn infer_concat(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = super::broadcast::common_elem(ctx, 0)?;
    let mut out: Option<Vec<Dim>> = None;
    let mut known = true;
    for i in 0..ctx.types.len() {
        let Some(shape) = ctx.shape(i)? else {
            known = false;
            continue;
        };
        let axis = resolve_axis(ctx.int("axis")?, shape.len())?;
        let Some(out) = &mut out else {
            out = Some(shape.to_vec());
            continue;
        };
        if out.len() != shape.len() {
            return Err(OpError::new(format!("operands have ranks {} and {}", out.len(), shape.len())));
        }
        for (j, (a, b)) in out.iter_mut().zip(shape).enumerate() {
            match (a.as_const(), b.as_const()) {
                _ if j == axis => *a = &*a + b,
                (Some(x), Some(y)) if x != y => {
                    return Err(OpError::new(format!("operands have lengths {x} and {y} on axis {j}")));
                }
                (None, Some(_)) => *a = b.clone(),
                _ => {}
            }
        }
    }
    if !known && let Some(out) = &mut out {
        let axis = resolve_axis(ctx.int("axis")?, out.len())?;
        out[axis] = ctx.fresh_dim();
    }
    Ok(vec![tensor_type(elem, out)])
}

fn eval_concat(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let parts: Vec<&Tensor> = (0..ctx.operands.len()).map(|i| ctx.tensor(i)).collect::<Result<_, _>>()?;
    let first = parts.first().ok_or_else(|| OpError::new("at least one operand is needed"))?;
    let axis = resolve_axis(ctx.int("axis")?, first.rank())?;
    let mut shape = first.shape().to_vec();
    // Which operand holds each place of the axis, and where.
    let mut places = vec![];
    for (which, p) in parts.iter().enumerate() {
        let fits = p.rank() == shape.len() && (0..shape.len()).all(|j| j == axis || p.shape()[j] == shape[j]);
        if !fits {
            return Err(OpError::new(format!("operands of shapes {shape:?} and {:?} do not join on axis {axis}", p.shape())));
        }
        places.extend((0..p.shape()[axis]).map(|k| (which, k)));
    }
    shape[axis] = places.len();
    let (_, len, inner) = around_axis(&shape, axis);
    let out = assemble(&parts, shape, |i| {
        let (which, k) = places[i / inner % len];
        (which, (i / inner / len * parts[which].shape()[axis] + k) * inner + i % inner)
    })?;
    Ok(vec![out.into()])
}

/// Lengths of `n` pieces of `len`: all equal but the last ones, which get what is left.
fn equal_pieces(len: usize, n: usize) -> Vec<usize> {
    let chunk = len.div_ceil(n);
    (0..n).map(|i| chunk.min(len.saturating_sub(i * chunk))).collect()
}

fn piece_count(num_outputs: Option<i64>, results: usize) -> Result<usize, OpError> {
    let n = num_outputs.and_then(|n| usize::try_from(n).ok()).unwrap_or(results);
    if (1..=1 << 16).contains(&n) {
        Ok(n)
    } else {
        Err(OpError::new("the number of pieces is not given"))
    }
}

fn infer_split(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let shape = ctx.shape(0)?;
    let axis = match shape {
        Some(s) => resolve_axis(ctx.int("axis")?, s.len())?,
        None => 0,
    };
    let results = ctx.node.results.len();
    let lens: Vec<Dim> = if ctx.has(1) {
        match (ctx.dims(1), ctx.shape(1)?.and_then(|s| s.first()?.as_const())) {
            (Some(dims), _) => dims.to_vec(),
            (None, n) => (0..piece_count(n, results)?).map(|_| ctx.fresh_dim()).collect(),
        }
    } else {
        let n = piece_count(ctx.int_opt("num_outputs"), results)?;
        match shape.map(|s| &s[axis]) {
            None => (0..n).map(|_| ctx.fresh_dim()).collect(),
            Some(len) => match len.as_const().and_then(|l| usize::try_from(l).ok()) {
                Some(l) => equal_pieces(l, n).into_iter().map(Dim::from).collect(),
                None => {
                    let chunk = len.ceil_div(&Dim::from(n));
                    let last = len - &(&chunk * Dim::from(n - 1));
                    let mut lens = vec![chunk; n];
                    lens[n - 1] = last;
                    lens
                }
            },
        }
    };
    if let Some(len) = shape.and_then(|s| s[axis].as_const())
        && let Some(sum) = lens.iter().fold(Dim::from(0i64), |a, l| a + l).as_const()
        && sum != len
    {
        return Err(OpError::new(format!("pieces add up to {sum}, axis {axis} has length {len}")));
    }
    let piece = |len: Dim| {
        let shape = shape.map(|s| {
            let mut s = s.to_vec();
            s[axis] = len;
            s
        });
        tensor_type(elem, shape)
    };
    Ok(lens.into_iter().map(piece).collect())
}

fn eval_split(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axis = resolve_axis(ctx.int("axis")?, x.rank())?;
    let (_, len, inner) = around_axis(x.shape(), axis);
    let lens = if ctx.has(1) {
        as_shape(&ctx.i64s(1)?)?
    } else {
        equal_pieces(len, piece_count(ctx.int_opt("num_outputs"), ctx.node.results.len())?)
    };
    if lens.iter().try_fold(0usize, |a, &l| a.checked_add(l)) != Some(len) {
        return Err(OpError::new(format!("pieces {lens:?} do not add up to {len}")));
    }
    let mut start = 0;
    let mut out = vec![];
    for piece in lens {
        let mut shape = x.shape().to_vec();
        shape[axis] = piece;
        let from = start;
        let source = |i: usize| (i / inner / piece * len + from + i / inner % piece) * inner + i % inner;
        out.push(x.gather_linear(shape, source).into());
        start += piece;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_resolve() {
        for (from, to, zero, want) in [
            (&[2usize, 3][..], &[3i64, -1][..], false, Some(vec![3, 2])),
            (&[2, 3], &[0, 3], false, Some(vec![2, 3])),
            (&[0, 3], &[3, 0], true, Some(vec![3, 0])),
            (&[2, 3], &[], false, None),
            (&[2, 3], &[-1, -1], false, None),
            (&[2, 3], &[4, -1], false, None),
            (&[2, 3], &[-2], false, None),
            (&[2], &[2, 0], false, None),
            (&[0], &[i64::MAX, i64::MAX, 0], true, None),
        ] {
            assert_eq!(reshape_target(from, to, zero).ok(), want, "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn axes_resolve() {
        assert_eq!(axis_range(3, -2, None), 1..3);
        assert_eq!(axis_range(3, 2, Some(1)), 2..2);
        assert_eq!(axis_range(3, i64::MIN, Some(i64::MAX)), 0..3);
        assert_eq!(unsqueezed(&[5, 6], &[0, -1], 1), Ok(vec![1, 5, 6, 1]));
        assert!(unsqueezed(&[5], &[0, 0], 1).is_err());
        assert!(permutation(Some(vec![0, 0]), 2).is_err());
        assert_eq!(equal_pieces(7, 4), [2, 2, 2, 1]);
        assert_eq!(equal_pieces(2, 4), [1, 1, 0, 0]);
    }
}
