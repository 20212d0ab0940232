//! Spatial layout: padding, cropping, and moving blocks between depth and space.

use super::broadcast::tensor_type;
use super::index_map::{assemble};
use super::shape_values::{axis_len, product, reshape_to};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, resolve_axis, checked_count};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Tensor, Value, strides};
use crate::{Attr, Dim, Type, ValueId};

/// The family's ops.
pub static OPS: &[&OpDef] = &[&PAD, &CENTER_CROP_PAD, &DEPTH_TO_SPACE, &SPACE_TO_DEPTH];

/// Borders.
pub static PAD: OpDef = OpDef {
    name: "pad",
    summary: "x with borders added, or cut off where a pad is negative",
    source: "ONNX Pad-25; negative pads cut before the others are added",
    operands: &[
        Operand::One("x"),
        Operand::One("pads"),
        Operand::Optional("constant_value"),
        Operand::Optional("axes"),
    ],
    attrs: &[AttrDef::new("mode", AttrKind::Str, Default::Str("constant"), "`constant`, `reflect`, `edge` or `wrap`")],
    infer: infer_pad,
    eval: Eval::Direct(eval_pad),
    ..OpDef::BASE
};

/// Centred window.
pub static CENTER_CROP_PAD: OpDef = OpDef {
    name: "center_crop_pad",
    summary: "the centre of x cut or padded with zeros to the given lengths",
    source: "ONNX CenterCropPad-18",
    operands: &[Operand::One("x"), Operand::One("shape")],
    attrs: &[AttrDef::new("axes", AttrKind::Ints, Default::Absent, "axes that change; absent: all")],
    infer: |ctx| {
        let shape = match ctx.shape(0)? {
            None => None,
            Some(s) => {
                let mut out = s.to_vec();
                let axes = crop_axes(ctx.ints("axes"), s.len())?;
                for (i, &axis) in axes.iter().enumerate() {
                    out[axis] = match ctx.dims(1) {
                        Some(lens) => lens.get(i).cloned().ok_or_else(|| OpError::new("`shape` has too few lengths"))?,
                        None => ctx.fresh_dim(),
                    };
                }
                Some(out)
            }
        };
        Ok(vec![tensor_type(ctx.elem(0)?, shape)])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let axes = crop_axes(ctx.ints("axes"), x.rank())?;
        let lens = super::shape::as_shape(&ctx.i64s(1)?)?;
        if lens.len() != axes.len() {
            return Err(OpError::new("`shape` needs one length per axis"));
        }
        let mut pads = vec![(0i64, 0i64); x.rank()];
        for (&axis, &len) in axes.iter().zip(&lens) {
            let more = i64::try_from(len).unwrap_or(i64::MAX) - x.shape()[axis] as i64;
            // Half, rounded towards zero, goes before: cuts and pads both leave the odd one after.
            pads[axis] = (more / 2, more - more / 2);
        }
        Ok(vec![pad(x, &pads, Mode::Constant, None)?.into()])
    }),
    ..OpDef::BASE
};

const BLOCK_ATTRS: &[AttrDef] = &[
    AttrDef::new("blocksize", AttrKind::Int, Default::Required, "side of a block"),
    AttrDef::new("mode", AttrKind::Str, Default::Str("DCR"), "`DCR`: depth is [block, channel]; `CRD`: [channel, block]"),
];

/// Depth to blocks.
pub static DEPTH_TO_SPACE: OpDef = OpDef {
    name: "depth_to_space",
    summary: "[n, c*b*b, h, w] to [n, c, h*b, w*b]: depth becomes blocks of b by b",
    source: "ONNX DepthToSpace-28",
    operands: &[Operand::One("x")],
    attrs: BLOCK_ATTRS,
    infer: |ctx| {
        let b = Dim::from(block(ctx.node)?);
        infer_blocks(ctx, |[n, c, h, w]| {
            Ok([n.clone(), divide(c, &(&b * &b))?, h * &b, w * &b])
        })
    },
    decompose: Some(|b, n| {
        let channel_first = crd(n)?;
        regroup(b, n, |x| {
            let s = vec![x.block, x.block];
            let depth = if channel_first { [vec![x.small_c], s].concat() } else { [s, vec![x.small_c]].concat() };
            let (c, i) = if channel_first { (1, 2) } else { (3, 1) };
            (
                [vec![x.n], depth, vec![x.h, x.w]].concat(),
                vec![0, c, 4, i, 5, i + 1],
                vec![vec![x.n], vec![x.small_c], vec![x.h, x.block], vec![x.w, x.block]],
            )
        })
    }),
    ..OpDef::BASE
};

/// Blocks to depth.
pub static SPACE_TO_DEPTH: OpDef = OpDef {
    name: "space_to_depth",
    summary: "[n, c, h*b, w*b] to [n, c*b*b, h, w]: blocks of b by b become depth",
    source: "ONNX SpaceToDepth-28",
    operands: &[Operand::One("x")],
    attrs: BLOCK_ATTRS,
    infer: |ctx| {
        let b = Dim::from(block(ctx.node)?);
        infer_blocks(ctx, |[n, c, h, w]| {
            Ok([n.clone(), &(c * &b) * &b, divide(h, &b)?, divide(w, &b)?])
        })
    },
    decompose: Some(|b, n| {
        let channel_first = crd(n)?;
        regroup(b, n, |x| {
            let perm = if channel_first { vec![0, 1, 3, 5, 2, 4] } else { vec![0, 3, 5, 1, 2, 4] };
            (
                vec![x.n, x.c, x.small_h, x.block, x.small_w, x.block],
                perm,
                vec![vec![x.n], vec![x.c, x.block, x.block], vec![x.small_h], vec![x.small_w]],
            )
        })
    }),
    ..OpDef::BASE
};

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

impl Mode {
    fn named(name: &str) -> Result<Mode, OpError> {
        Ok(match name {
            "constant" => Mode::Constant,
            "reflect" => Mode::Reflect,
            "edge" => Mode::Edge,
            "wrap" => Mode::Wrap,
            other => return Err(OpError::new(format!("`mode` is `{other}`, expected `constant`, `reflect`, `edge` or `wrap`"))),
        })
    }

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

/// The axes that pads are given for.
fn pad_axes(axes: Option<Vec<i64>>, rank: usize) -> Result<Vec<usize>, OpError> {
    match axes {
        Some(axes) => axes.iter().map(|&a| resolve_axis(a, rank)).collect(),
        None => Ok((0..rank).collect()),
    }
}

fn crop_axes(axes: Option<Vec<i64>>, rank: usize) -> Result<Vec<usize>, OpError> {
    pad_axes(axes, rank)
}

fn infer_pad(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    Mode::named(&ctx.str("mode"))?;
    let Some(shape) = ctx.shape(0)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let known = !ctx.has(3) || ctx.const_ints(3).is_some();
    let out = match ctx.dims(1) {
        Some(pads) if known => {
            let axes = pad_axes(ctx.const_ints(3), shape.len())?;
            if pads.len() != 2 * axes.len() {
                return Err(OpError::new(format!("{} pads for {} axes", pads.len(), axes.len())));
            }
            let mut out = shape.to_vec();
            for (i, &axis) in axes.iter().enumerate() {
                out[axis] = &(&out[axis] + &pads[i]) + &pads[i + axes.len()];
                if out[axis].as_const().is_some_and(|d| d < 0) {
                    return Err(OpError::new(format!("pads cut more than axis {axis} has")));
                }
            }
            out
        }
        _ => shape.iter().map(|_| ctx.fresh_dim()).collect(),
    };
    Ok(vec![tensor_type(elem, Some(out))])
}

fn eval_pad(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axes = if ctx.has(3) { Some(ctx.i64s(3)?) } else { None };
    let axes = pad_axes(axes, x.rank())?;
    let given = ctx.i64s(1)?;
    if given.len() != 2 * axes.len() {
        return Err(OpError::new(format!("{} pads for {} axes", given.len(), axes.len())));
    }
    let mut pads = vec![(0, 0); x.rank()];
    for (i, &axis) in axes.iter().enumerate() {
        pads[axis] = (given[i], given[i + axes.len()]);
    }
    Ok(vec![pad(x, &pads, Mode::named(&ctx.str("mode"))?, ctx.tensor_opt(2))?.into()])
}

fn pad(x: &Tensor, pads: &[(i64, i64)], mode: Mode, fill: Option<&Tensor>) -> Result<Tensor, OpError> {
    let bad = |axis: usize| OpError::new(format!("pads {:?} do not fit axis {axis} of {:?}", pads[axis], x.shape()));
    let mut shape = vec![];
    let mut tables = vec![];
    for (axis, (&len, &(before, after))) in x.shape().iter().zip(pads).enumerate() {
        let len = len as i64;
        let out = before.checked_add(after).and_then(|p| p.checked_add(len)).filter(|&d| d >= 0);
        let out = out.ok_or_else(|| bad(axis))?;
        shape.push(usize::try_from(out).map_err(|_| bad(axis))?);
        tables.push((len, before, before.min(0), (len + before.min(0) + after.min(0)).max(0)));
    }
    checked_count(&shape)?;
    // One table per axis: where each place of the result reads.
    let sources: Vec<Vec<Option<usize>>> = tables
        .iter()
        .zip(&shape)
        .enumerate()
        .map(|(axis, (&(_, before, cut, kept), &out))| {
            if kept == 0 && out > 0 && mode != Mode::Constant {
                return Err(bad(axis));
            }
            let place = |o: usize| mode.source(o as i64 - before.max(0), kept).map(|s| (s - cut) as usize);
            Ok((0..out).map(place).collect())
        })
        .collect::<Result<_, _>>()?;
    let zero = Tensor::zeros(x.elem(), []);
    let fill = fill.unwrap_or(&zero);
    if fill.len() != 1 {
        return Err(OpError::new("`constant_value` must be one element"));
    }
    let (all, own) = (strides(&shape), strides(x.shape()));
    assemble(&[x, fill], shape.clone(), |i| {
        let mut at = 0;
        for axis in 0..shape.len() {
            match sources[axis][i / all[axis] % shape[axis]] {
                Some(s) => at += s * own[axis],
                None => return (1, 0),
            }
        }
        (0, at)
    })
}

fn block(n: &Node) -> Result<i64, OpError> {
    match n.attr("blocksize") {
        Some(Attr::Int(b)) if (1..=1 << 16).contains(&b) => Ok(b),
        _ => Err(OpError::new("`blocksize` must be a positive integer")),
    }
}

fn crd(n: &Node) -> Result<bool, OpError> {
    match n.attr("mode") {
        Some(Attr::Str(m)) if m == "DCR" => Ok(false),
        Some(Attr::Str(m)) if m == "CRD" => Ok(true),
        other => Err(OpError::new(format!("`mode` is {other:?}, expected `DCR` or `CRD`"))),
    }
}

fn divide(d: &Dim, by: &Dim) -> Result<Dim, OpError> {
    match (d.as_const(), by.as_const()) {
        (Some(a), Some(b)) if a % b != 0 => Err(OpError::new(format!("dimension {a} is no multiple of {b}"))),
        _ => Ok(d.floor_div(by)),
    }
}

fn infer_blocks(
    ctx: &InferCtx,
    f: impl Fn(&[Dim; 4]) -> Result<[Dim; 4], OpError>,
) -> Result<Vec<Type>, OpError> {
    crd(ctx.node)?;
    let shape = match ctx.shape(0)? {
        Some(s) => {
            let four: &[Dim; 4] = s.try_into().map_err(|_| OpError::new(format!("needs 4 axes, found {}", s.len())))?;
            f(four)?.to_vec()
        }
        None => (0..4).map(|_| ctx.fresh_dim()).collect(),
    };
    Ok(vec![tensor_type(ctx.elem(0)?, Some(shape))])
}

/// Dimensions as `i64[1]` values: of the operand, and divided by the block (`c` by its square).
#[derive(Clone, Copy)]
struct Lens {
    n: ValueId,
    c: ValueId,
    h: ValueId,
    w: ValueId,
    block: ValueId,
    small_c: ValueId,
    small_h: ValueId,
    small_w: ValueId,
}

/// Reshape, transpose, reshape, as `plan` says.
fn regroup(
    b: &mut Builder,
    n: &Node,
    plan: impl Fn(Lens) -> (Vec<ValueId>, Vec<i64>, Vec<Vec<ValueId>>),
) -> Result<Vec<ValueId>, OpError> {
    let x = n.operand(0).ok_or_else(|| OpError::new("operand 0 is missing"))?;
    let side = block(n)?;
    let (one, square) = (b.ints(&[side]), b.ints(&[side * side]));
    let [bn, c, h, w] = [0, 1, 2, 3].map(|i| axis_len(b, x, i));
    let (c, h, w) = (c?, h?, w?);
    let lens = Lens {
        n: bn?,
        c,
        h,
        w,
        block: one,
        small_c: b.op("div", &[c, square])?,
        small_h: b.op("div", &[h, one])?,
        small_w: b.op("div", &[w, one])?,
    };
    let (split, perm, merged) = plan(lens);
    let y = reshape_to(b, x, &split)?;
    let y = b.op_with("transpose", &[y], [("perm", Attr::Ints(perm))])?;
    let shape: Vec<ValueId> = merged.iter().map(|m| product(b, m)).collect::<Result<_, _>>()?;
    Ok(vec![reshape_to(b, y, &shape)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_read_the_right_place() {
        let x = Tensor::ints(&[1, 2, 3]);
        for (mode, pads, want) in [
            (Mode::Constant, (1, 1), vec![0, 1, 2, 3, 0]),
            (Mode::Edge, (2, 1), vec![1, 1, 1, 2, 3, 3]),
            (Mode::Reflect, (2, 2), vec![3, 2, 1, 2, 3, 2, 1]),
            (Mode::Reflect, (5, 0), vec![2, 1, 2, 3, 2, 1, 2, 3]),
            (Mode::Wrap, (4, 1), vec![3, 1, 2, 3, 1, 2, 3, 1]),
            (Mode::Constant, (-1, 2), vec![2, 3, 0, 0]),
            (Mode::Edge, (-1, 1), vec![2, 3, 3]),
        ] {
            assert_eq!(pad(&x, &[pads], mode, None).unwrap().to_i64s().unwrap(), want, "{pads:?}");
        }
        assert!(pad(&x, &[(-2, -2)], Mode::Constant, None).is_err());
        assert!(pad(&Tensor::ints(&[]), &[(1, 0)], Mode::Edge, None).is_err());
        assert!(pad(&x, &[(i64::MAX, 1)], Mode::Constant, None).is_err());
    }
}
