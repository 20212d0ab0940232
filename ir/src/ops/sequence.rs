//! Sequences and optionals.

use super::control::join;
use super::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, resolve_axis};
use crate::tensor::{Data, Tensor, Value, count, strides};
use crate::types::TensorType;
use crate::{Attr, Dim, ElemType, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &SEQUENCE_CONSTRUCT,
    &SEQUENCE_EMPTY,
    &SEQUENCE_AT,
    &SEQUENCE_INSERT,
    &SEQUENCE_ERASE,
    &SEQUENCE_LENGTH,
    &SPLIT_TO_SEQUENCE,
    &CONCAT_FROM_SEQUENCE,
    &OPTIONAL,
    &OPTIONAL_GET_ELEMENT,
    &OPTIONAL_HAS_ELEMENT,
    &REVERSE_SEQUENCE,
];

/// A sequence of its operands.
pub static SEQUENCE_CONSTRUCT: OpDef = OpDef {
    name: "sequence_construct",
    summary: "a sequence of its operands",
    source: "ONNX SequenceConstruct-11",
    operands: &[Operand::Variadic("inputs")],
    infer: |ctx| {
        let mut item = ctx.ty(0)?.clone();
        for i in 1..ctx.types.len() {
            item = join(&item, ctx.ty(i)?, ctx.fresh)?;
        }
        Ok(vec![Type::Sequence(Box::new(item))])
    },
    eval: Eval::Direct(|ctx| {
        let items = (0..ctx.operands.len()).map(|i| ctx.value(i).cloned());
        Ok(vec![Value::Sequence(items.collect::<Result<_, _>>()?)])
    }),
    ..OpDef::BASE
};

/// A sequence of nothing.
pub static SEQUENCE_EMPTY: OpDef = OpDef {
    name: "sequence_empty",
    summary: "an empty sequence of tensors of type `dtype`",
    source: "ONNX SequenceEmpty-11",
    attrs: &[AttrDef::new("dtype", AttrKind::Elem, Default::Elem(ElemType::F32), "element type of its tensors")],
    infer: |ctx| {
        let elem = ctx.elem_attr("dtype").unwrap_or(ElemType::F32);
        Ok(vec![Type::Sequence(Box::new(Type::unranked(elem)))])
    },
    eval: Eval::Direct(|_| Ok(vec![Value::Sequence(vec![])])),
    ..OpDef::BASE
};

/// One item of a sequence.
pub static SEQUENCE_AT: OpDef = OpDef {
    name: "sequence_at",
    summary: "the item at a position, which may count from the end",
    source: "ONNX SequenceAt-11",
    operands: &[Operand::One("input_sequence"), Operand::One("position")],
    infer: |ctx| {
        let mut item = item_type(ctx, 0)?.clone();
        // Items may differ wherever no number is stated, whatever the symbols say.
        if let Type::Tensor(TensorType { shape: Some(dims), .. }) = &mut item {
            for d in dims.iter_mut().filter(|d| d.as_const().is_none()) {
                *d = ctx.fresh_dim();
            }
        }
        Ok(vec![item])
    },
    eval: Eval::Direct(|ctx| {
        let items = sequence(ctx, 0)?;
        let at = resolve_axis(position(ctx, 1)?, items.len())
            .map_err(|_| OpError::new(format!("position is out of range for a sequence of {}", items.len())))?;
        Ok(vec![items[at].clone()])
    }),
    ..OpDef::BASE
};

/// A sequence with one more item.
pub static SEQUENCE_INSERT: OpDef = OpDef {
    name: "sequence_insert",
    summary: "the sequence with a tensor put before `position` (at the end if left out)",
    source: "ONNX SequenceInsert-11",
    operands: &[Operand::One("input_sequence"), Operand::One("tensor"), Operand::Optional("position")],
    infer: |ctx| {
        let item = join(item_type(ctx, 0)?, ctx.ty(1)?, ctx.fresh)?;
        Ok(vec![Type::Sequence(Box::new(item))])
    },
    eval: Eval::Direct(|ctx| {
        let mut items = sequence(ctx, 0)?.to_vec();
        // One place more than there are items; a negative position counts from the end of the input.
        let n = items.len() as i64;
        let at = if ctx.has(2) { position(ctx, 2)? } else { n };
        let at = if at < 0 { at.saturating_add(n) } else { at };
        if !(0..=n).contains(&at) {
            return Err(OpError::new(format!("position is out of range for a sequence of {n}")));
        }
        items.insert(at as usize, ctx.value(1)?.clone());
        Ok(vec![Value::Sequence(items)])
    }),
    ..OpDef::BASE
};

/// A sequence with one item less.
pub static SEQUENCE_ERASE: OpDef = OpDef {
    name: "sequence_erase",
    summary: "the sequence without the item at `position` (the last if left out)",
    source: "ONNX SequenceErase-11",
    operands: &[Operand::One("input_sequence"), Operand::Optional("position")],
    infer: |ctx| Ok(vec![Type::Sequence(Box::new(item_type(ctx, 0)?.clone()))]),
    eval: Eval::Direct(|ctx| {
        let mut items = sequence(ctx, 0)?.to_vec();
        let at = if ctx.has(1) { position(ctx, 1)? } else { -1 };
        let at = resolve_axis(at, items.len())
            .map_err(|_| OpError::new(format!("position is out of range for a sequence of {}", items.len())))?;
        items.remove(at);
        Ok(vec![Value::Sequence(items)])
    }),
    ..OpDef::BASE
};

/// How many items a sequence has.
pub static SEQUENCE_LENGTH: OpDef = OpDef {
    name: "sequence_length",
    summary: "the number of items, as an i64 scalar",
    source: "ONNX SequenceLength-11",
    operands: &[Operand::One("input_sequence")],
    infer: |ctx| {
        item_type(ctx, 0)?;
        Ok(vec![Type::tensor(ElemType::I64, [0i64; 0])])
    },
    eval: Eval::Direct(|ctx| {
        let n = sequence(ctx, 0)?.len() as i128;
        Ok(vec![Tensor::from_int(ElemType::I64, [], vec![n]).into()])
    }),
    ..OpDef::BASE
};

/// A tensor cut along an axis.
pub static SPLIT_TO_SEQUENCE: OpDef = OpDef {
    name: "split_to_sequence",
    summary: "pieces of a tensor along `axis`: of size `split` (a scalar), of these sizes, or single slices",
    source: "ONNX SplitToSequence-24",
    operands: &[Operand::One("input"), Operand::Optional("split")],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Int(0), "axis to cut"),
        AttrDef::new("keepdims", AttrKind::Int, Default::Int(1), "0 drops the axis when `split` is left out"),
    ],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        let Some(shape) = ctx.shape(0)? else {
            return Ok(vec![Type::Sequence(Box::new(Type::unranked(elem)))]);
        };
        let (mut dims, axis) = (shape.to_vec(), resolve_axis(ctx.int("axis")?, shape.len())?);
        if !ctx.has(1) {
            if ctx.flag("keepdims") {
                dims[axis] = Dim::from(1i64);
            } else {
                dims.remove(axis);
            }
        } else {
            dims[axis] = match (ctx.const_ints(1).as_deref(), dims[axis].as_const()) {
                (Some([size]), Some(n)) if *size > 0 && n % *size == 0 => Dim::from(*size),
                _ => ctx.fresh_dim(),
            };
        }
        Ok(vec![Type::Sequence(Box::new(Type::tensor(elem, dims)))])
    },
    eval: Eval::Direct(split_to_sequence),
    ..OpDef::BASE
};

/// A sequence joined into a tensor.
pub static CONCAT_FROM_SEQUENCE: OpDef = OpDef {
    name: "concat_from_sequence",
    summary: "the tensors of a sequence joined along `axis`, a new one if `new_axis`",
    source: "ONNX ConcatFromSequence-11",
    operands: &[Operand::One("input_sequence")],
    attrs: &[
        AttrDef::new("axis", AttrKind::Int, Default::Required, "axis of the result to join along"),
        AttrDef::new("new_axis", AttrKind::Int, Default::Int(0), "1 to insert the axis"),
    ],
    infer: |ctx| {
        let Type::Tensor(TensorType { elem, shape }) = item_type(ctx, 0)? else {
            return Err(OpError::new("a sequence of tensors is needed"));
        };
        let Some(mut dims) = shape.clone() else {
            return Ok(vec![Type::unranked(*elem)]);
        };
        if ctx.flag("new_axis") {
            let axis = resolve_axis(ctx.int("axis")?, dims.len() + 1)?;
            dims.insert(axis, ctx.fresh_dim());
        } else {
            let axis = resolve_axis(ctx.int("axis")?, dims.len())?;
            dims[axis] = ctx.fresh_dim();
        }
        Ok(vec![Type::tensor(*elem, dims)])
    },
    eval: Eval::Direct(|ctx| {
        let tensors = sequence(ctx, 0)?.iter().map(|v| {
            let t = v.as_tensor().cloned().ok_or_else(|| OpError::new("a sequence of tensors is needed"))?;
            if !ctx.flag("new_axis") {
                return Ok(t);
            }
            let mut shape = t.shape().to_vec();
            shape.insert(resolve_axis(ctx.int("axis")?, shape.len() + 1)?, 1);
            Ok(t.with_shape(shape))
        });
        let tensors = tensors.collect::<Result<Vec<_>, OpError>>()?;
        Ok(vec![join_tensors(&tensors, ctx.int("axis")?)?.into()])
    }),
    ..OpDef::BASE
};

/// A filled or empty optional.
pub static OPTIONAL: OpDef = OpDef {
    name: "optional",
    summary: "an optional that holds its operand, or nothing of type `type`",
    source: "ONNX Optional-28",
    operands: &[Operand::Optional("input")],
    attrs: &[AttrDef::new("type", AttrKind::Type, Default::Absent, "type of what it could hold, if it is empty")],
    infer: |ctx| {
        let inner = match (ctx.has(0), ctx.attr("type")) {
            (true, _) => ctx.ty(0)?.clone(),
            (false, Some(Attr::Type(ty))) => ty,
            _ => return Err(OpError::new("needs an operand or the attribute `type`")),
        };
        Ok(vec![Type::Optional(Box::new(inner))])
    },
    eval: Eval::Direct(|ctx| {
        let inner = ctx.has(0).then(|| ctx.value(0).cloned()).transpose()?;
        Ok(vec![Value::Optional(inner.map(Box::new))])
    }),
    ..OpDef::BASE
};

/// What an optional holds.
pub static OPTIONAL_GET_ELEMENT: OpDef = OpDef {
    name: "optional_get_element",
    summary: "what an optional holds; anything else as it is",
    source: "ONNX OptionalGetElement-28",
    operands: &[Operand::One("input")],
    infer: |ctx| {
        Ok(vec![match ctx.ty(0)? {
            Type::Optional(inner) => (**inner).clone(),
            ty => ty.clone(),
        }])
    },
    eval: Eval::Direct(|ctx| match ctx.value(0)? {
        Value::Optional(Some(v)) => Ok(vec![(**v).clone()]),
        Value::Optional(None) => Err(OpError::new("the optional is empty")),
        v => Ok(vec![v.clone()]),
    }),
    ..OpDef::BASE
};

/// Whether an optional holds something.
pub static OPTIONAL_HAS_ELEMENT: OpDef = OpDef {
    name: "optional_has_element",
    summary: "true unless the operand is an empty optional or left out",
    source: "ONNX OptionalHasElement-28",
    operands: &[Operand::Optional("input")],
    infer: |_| Ok(vec![Type::tensor(ElemType::Bool, [0i64; 0])]),
    eval: Eval::Direct(|ctx| {
        let has = ctx.has(0) && !matches!(ctx.value(0)?, Value::Optional(None));
        Ok(vec![Tensor::bool(has).into()])
    }),
    ..OpDef::BASE
};

/// Sequences of a batch reversed, each over its own length.
pub static REVERSE_SEQUENCE: OpDef = OpDef {
    name: "reverse_sequence",
    summary: "reverses the first `sequence_lens[b]` steps of each batch entry `b`",
    source: "ONNX ReverseSequence-28",
    operands: &[Operand::One("input"), Operand::One("sequence_lens")],
    attrs: &[
        AttrDef::new("batch_axis", AttrKind::Int, Default::Int(1), "axis of the batch"),
        AttrDef::new("time_axis", AttrKind::Int, Default::Int(0), "axis of time"),
    ],
    infer: |ctx| {
        ctx.elem(0)?;
        if let Some(shape) = ctx.shape(0)? {
            resolve_axis(ctx.int("batch_axis")?, shape.len())?;
            resolve_axis(ctx.int("time_axis")?, shape.len())?;
        }
        Ok(vec![ctx.ty(0)?.clone()])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let (batch, time) = (resolve_axis(ctx.int("batch_axis")?, x.rank())?, resolve_axis(ctx.int("time_axis")?, x.rank())?);
        let (lens, shape, steps) = (ctx.i64s(1)?, x.shape().to_vec(), strides(x.shape()));
        if lens.len() != shape[batch] || lens.iter().any(|&l| l < 0 || l as usize > shape[time]) || batch == time {
            return Err(OpError::new("`sequence_lens` must give a length within the time axis per batch entry"));
        }
        let out = x.gather_linear(shape.clone(), |i| {
            let (b, t) = (i / steps[batch] % shape[batch], i / steps[time] % shape[time]);
            let len = lens[b] as usize;
            let from = if t < len { len - 1 - t } else { t };
            i - t * steps[time] + from * steps[time]
        });
        Ok(vec![out.into()])
    }),
    ..OpDef::BASE
};

fn item_type<'a>(ctx: &'a InferCtx, i: usize) -> Result<&'a Type, OpError> {
    match ctx.ty(i)? {
        Type::Sequence(item) => Ok(item),
        other => Err(OpError::new(format!("operand {i} must be a sequence, found `{other}`"))),
    }
}

fn sequence<'a>(ctx: &'a EvalCtx, i: usize) -> Result<&'a [Value], OpError> {
    match ctx.value(i)? {
        Value::Sequence(items) => Ok(items),
        _ => Err(OpError::new(format!("operand {i} must be a sequence"))),
    }
}

fn position(ctx: &EvalCtx, i: usize) -> Result<i64, OpError> {
    match ctx.i64s(i)?.as_slice() {
        [p] => Ok(*p),
        _ => Err(OpError::new("`position` must be one integer")),
    }
}

fn split_to_sequence(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let axis = resolve_axis(ctx.int("axis")?, x.rank())?;
    let n = x.shape()[axis];
    let sizes: Vec<usize> = match ctx.tensor_opt(1) {
        None => vec![1; n],
        Some(split) => {
            let given = ctx.i64s(1)?;
            let sizes: Option<Vec<usize>> = given.iter().map(|&s| usize::try_from(s).ok()).collect();
            let sizes = sizes.ok_or_else(|| OpError::new("`split` must not be negative"))?;
            match (split.rank(), sizes.as_slice()) {
                (0, &[0]) => return Err(OpError::new("`split` must be positive")),
                (0, &[size]) => (0..n.div_ceil(size)).map(|i| size.min(n - i * size)).collect(),
                _ if sizes.iter().try_fold(0usize, |a, &s| a.checked_add(s)) == Some(n) => sizes,
                _ => return Err(OpError::new(format!("the entries of `split` must add up to {n}"))),
            }
        }
    };
    let inner: usize = count(&x.shape()[axis + 1..]).max(1);
    let drop_axis = !ctx.has(1) && !ctx.flag("keepdims");
    let mut start = 0;
    let pieces = sizes.into_iter().map(|size| {
        let mut shape = x.shape().to_vec();
        shape[axis] = size;
        let row = (size * inner).max(1);
        let piece = x.gather_linear(shape.clone(), |i| (i / row * n + start) * inner + i % row);
        start += size;
        if drop_axis {
            shape.remove(axis);
        }
        Value::Tensor(piece.with_shape(shape))
    });
    Ok(vec![Value::Sequence(pieces.collect())])
}

/// Joins tensors along an existing axis; they must agree in everything else.
fn join_tensors(tensors: &[Tensor], axis: i64) -> Result<Tensor, OpError> {
    let first = tensors.first().ok_or_else(|| OpError::new("the sequence is empty"))?;
    let axis = resolve_axis(axis, first.rank())?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    for t in tensors {
        let fits = t.elem() == first.elem()
            && t.rank() == first.rank()
            && (0..t.rank()).all(|i| i == axis || t.shape()[i] == shape[i]);
        if !fits {
            return Err(OpError::new("the tensors of the sequence differ in type or shape"));
        }
        shape[axis] += t.shape()[axis];
    }
    super::checked_count(&shape)?;
    let outer = count(&shape[..axis]);
    macro_rules! rows {
        ($variant:ident) => {{
            let mut out = Vec::with_capacity(count(&shape));
            for o in 0..outer {
                for t in tensors {
                    if let Data::$variant(v) = t.data() {
                        let row = v.len() / outer;
                        out.extend_from_slice(&v[o * row..(o + 1) * row]);
                    }
                }
            }
            Data::$variant(out)
        }};
    }
    let data = match first.data() {
        Data::Float(_) => rows!(Float),
        Data::Int(_) => rows!(Int),
        Data::Complex(_) => rows!(Complex),
        Data::Str(_) => rows!(Str),
    };
    Ok(Tensor::new(first.elem(), shape, data))
}

#[cfg(test)]
mod tests {
    use crate::Attr;
    use crate::eval::testing::{f32s, gives, i64s, refuses, truth};
    use crate::tensor::Value;

    fn seq(items: &[Value]) -> Value {
        Value::Sequence(items.to_vec())
    }

    #[test]
    fn sequences() {
        let (a, b) = (f32s(&[1], &[1.0]), f32s(&[1], &[2.0]));
        let both = seq(&[a.clone(), b.clone()]);
        gives("sequence_construct", &[a.clone(), b.clone()], &[], std::slice::from_ref(&both));
        gives("sequence_at", &[both.clone(), i64s(&[], &[-1])], &[], std::slice::from_ref(&b));
        refuses("sequence_at", &[both.clone(), i64s(&[], &[2])], &[], "out of range");
        gives("sequence_insert", &[both.clone(), b.clone(), i64s(&[], &[0])], &[], &[seq(&[b.clone(), a.clone(), b.clone()])]);
        refuses("sequence_insert", &[both.clone(), b.clone(), i64s(&[], &[-3])], &[], "out of range");
        gives("sequence_erase", std::slice::from_ref(&both), &[], &[seq(std::slice::from_ref(&a))]);
        gives("sequence_length", std::slice::from_ref(&both), &[], &[i64s(&[], &[2])]);
        let joined = f32s(&[2], &[1.0, 2.0]);
        gives("concat_from_sequence", std::slice::from_ref(&both), &[("axis", Attr::Int(0))], &[joined]);
        let stacked = f32s(&[1, 2], &[1.0, 2.0]);
        let new_axis = [("axis", Attr::Int(-1)), ("new_axis", Attr::Int(1))];
        gives("concat_from_sequence", &[both], &new_axis, &[stacked]);
    }

    #[test]
    fn splits() {
        let x = f32s(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let rows = seq(&[f32s(&[2, 2], &[0.0, 1.0, 2.0, 3.0]), f32s(&[1, 2], &[4.0, 5.0])]);
        gives("split_to_sequence", &[x.clone(), i64s(&[], &[2])], &[], std::slice::from_ref(&rows));
        gives("split_to_sequence", &[x.clone(), i64s(&[2], &[2, 1])], &[], &[rows]);
        let columns = seq(&[f32s(&[3], &[0.0, 2.0, 4.0]), f32s(&[3], &[1.0, 3.0, 5.0])]);
        let attrs = [("axis", Attr::Int(1)), ("keepdims", Attr::Int(0))];
        gives("split_to_sequence", std::slice::from_ref(&x), &attrs, &[columns]);
        refuses("split_to_sequence", &[x, i64s(&[1], &[2])], &[], "add up to 3");
    }

    #[test]
    fn optionals() {
        let a = f32s(&[1], &[1.0]);
        let some = Value::Optional(Some(Box::new(a.clone())));
        gives("optional", std::slice::from_ref(&a), &[], std::slice::from_ref(&some));
        gives("optional_get_element", std::slice::from_ref(&some), &[], std::slice::from_ref(&a));
        refuses("optional_get_element", &[Value::Optional(None)], &[], "empty");
        for (value, expected) in [(some, true), (a, true), (Value::Optional(None), false)] {
            gives("optional_has_element", &[value], &[], &[truth(expected)]);
        }
    }
}
