//! Comparison, logic, selection, and the ops that pass their operand through.

use super::broadcast::{
    broadcast_all, broadcast_index, check_elem, common_elem, infer_number, tensor_type,
};
use super::index_map::{assemble};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, broadcast_shapes, checked_count};
use crate::tensor::{Data, Tensor, Value};
use crate::{Dim, ElemType, Type};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &EQUAL, &GREATER, &GREATER_OR_EQUAL, &LESS, &LESS_OR_EQUAL, &AND, &OR, &XOR, &NOT, &WHERE,
    &CLIP, &IS_NAN, &IS_INF, &IDENTITY,
];

const AB: &[Operand] = &[Operand::One("a"), Operand::One("b")];
const X: &[Operand] = &[Operand::One("x")];

/// Equality.
pub static EQUAL: OpDef = OpDef {
    name: "equal",
    summary: "true where a = b, with broadcasting; NaN equals nothing",
    source: "ONNX Equal-19",
    operands: AB,
    infer: |ctx| {
        common_elem(ctx, 0)?;
        Ok(vec![tensor_type(ElemType::Bool, broadcast_all(ctx, 0)?)])
    },
    contents: Some(|ctx| {
        super::broadcast::contents_binary(ctx, |a, b| {
            let equal = a == b || (a.as_const()? == b.as_const()?);
            Some(Dim::from(i64::from(equal)))
        })
    }),
    eval: Eval::Direct(|ctx| eval_predicate(ctx, |a, b| a == b, |a, b| a == b)),
    ..OpDef::BASE
};

macro_rules! orders {
    ($($NAME:ident $name:literal $source:literal $op:tt;)*) => {$(
        #[doc = concat!("Order: a ", stringify!($op), " b.")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: concat!("true where a ", stringify!($op), " b, with broadcasting; false for NaN"),
            source: $source,
            operands: AB,
            infer: infer_order,
            eval: Eval::Direct(|ctx| eval_predicate(ctx, |a, b| a $op b, |a, b| a $op b)),
            ..OpDef::BASE
        };
    )*};
}

orders! {
    GREATER "greater" "ONNX Greater-13" >;
    GREATER_OR_EQUAL "greater_or_equal" "ONNX GreaterOrEqual-16" >=;
    LESS "less" "ONNX Less-13" <;
    LESS_OR_EQUAL "less_or_equal" "ONNX LessOrEqual-16" <=;
}

macro_rules! logic {
    ($($NAME:ident $name:literal $source:literal $summary:literal $op:tt;)*) => {$(
        #[doc = concat!("Logic: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: $summary,
            source: $source,
            operands: AB,
            infer: infer_logic,
            eval: Eval::Direct(|ctx| super::broadcast::eval_binary(ctx, |_, _| f64::NAN, |a, b| Ok(a $op b))),
            ..OpDef::BASE
        };
    )*};
}

logic! {
    AND "and" "ONNX And-7" "true where both are, with broadcasting" &;
    OR "or" "ONNX Or-7" "true where either is, with broadcasting" |;
    XOR "xor" "ONNX Xor-7" "true where exactly one is, with broadcasting" ^;
}

/// Negation.
pub static NOT: OpDef = OpDef {
    name: "not",
    summary: "true where x is false",
    source: "ONNX Not-1",
    operands: X,
    infer: infer_logic,
    contents: Some(|ctx| {
        let flip = |d: &Dim| Some(Dim::from(i64::from(d.as_const()? == 0)));
        ctx.dims(0)?.iter().map(flip).collect()
    }),
    eval: Eval::Direct(|ctx| super::broadcast::eval_unary(ctx, |v| v, |v| 1 - v)),
    ..OpDef::BASE
};

/// Selection.
pub static WHERE: OpDef = OpDef {
    name: "where",
    summary: "x where the condition holds, else y, with broadcasting",
    source: "ONNX Where-16",
    operands: &[
        Operand::One("condition"),
        Operand::One("x"),
        Operand::One("y"),
    ],
    infer: |ctx| {
        check_elem(ctx.elem(0)?, ctx.elem(0)? == ElemType::Bool)?;
        Ok(vec![tensor_type(
            common_elem(ctx, 1)?,
            broadcast_all(ctx, 0)?,
        )])
    },
    contents: Some(|ctx| {
        let (c, x, y) = (ctx.const_ints(0)?, ctx.dims(1)?, ctx.dims(2)?);
        let n = c.len().max(x.len()).max(y.len());
        if [c.len(), x.len(), y.len()]
            .iter()
            .any(|&l| l != n && l != 1)
        {
            return None;
        }
        let pick = |i: usize| if c[i % c.len()] != 0 { &x[i % x.len()] } else { &y[i % y.len()] };
        Some((0..n).map(|i| pick(i).clone()).collect())
    }),
    eval: Eval::Direct(eval_where),
    ..OpDef::BASE
};

/// Clamping.
pub static CLIP: OpDef = OpDef {
    name: "clip",
    summary: "x limited to [min, max]; max wins if they cross, NaN stays",
    source: "ONNX Clip-13",
    operands: &[
        Operand::One("x"),
        Operand::Optional("min"),
        Operand::Optional("max"),
    ],
    infer: |ctx| {
        for i in 1..3 {
            if ctx.has(i) && ctx.elem(i)? != ctx.elem(0)? {
                return Err(OpError::new("the limits must have the element type of x"));
            }
        }
        infer_number(ctx)
    },
    decompose: Some(|b, n| {
        let mut x = n.operand(0).ok_or_else(|| OpError::new("operand 0 is missing"))?;
        for (i, op) in [(1, "max"), (2, "min")] {
            if let Some(mut limit) = n.operand(i) {
                // A limit stored as a list of one must not raise the rank of a scalar.
                if b.ty(limit).shape().is_none_or(|s| !s.is_empty()) {
                    let scalar = b.ints(&[]);
                    limit = b.op("reshape", &[limit, scalar])?;
                }
                x = b.op(op, &[x, limit])?;
            }
        }
        Ok(vec![x])
    }),
    ..OpDef::BASE
};

/// NaN test.
pub static IS_NAN: OpDef = OpDef {
    name: "is_nan",
    summary: "true where x is not a number",
    source: "ONNX IsNaN-20",
    operands: X,
    infer: infer_float_test,
    eval: Eval::Direct(|ctx| eval_float_test(ctx, f64::is_nan)),
    ..OpDef::BASE
};

/// Infinity test.
pub static IS_INF: OpDef = OpDef {
    name: "is_inf",
    summary: "true where x is infinite, of the signs asked for",
    source: "ONNX IsInf-20",
    operands: X,
    attrs: &[
        AttrDef::new("detect_negative", AttrKind::Int, Default::Int(1), "1: minus infinity counts"),
        AttrDef::new("detect_positive", AttrKind::Int, Default::Int(1), "1: plus infinity counts"),
    ],
    infer: infer_float_test,
    eval: Eval::Direct(|ctx| {
        let (negative, positive) = (ctx.flag("detect_negative"), ctx.flag("detect_positive"));
        eval_float_test(ctx, |v| {
            negative && v == f64::NEG_INFINITY || positive && v == f64::INFINITY
        })
    }),
    ..OpDef::BASE
};

/// Nothing.
pub static IDENTITY: OpDef = OpDef {
    name: "identity",
    summary: "x itself, of any type",
    source: "ONNX Identity-25",
    operands: X,
    infer: |ctx| Ok(vec![ctx.ty(0)?.clone()]),
    contents: Some(|ctx| ctx.dims(0).map(<[Dim]>::to_vec)),
    eval: Eval::Direct(|ctx| Ok(vec![ctx.value(0)?.clone()])),
    ..OpDef::BASE
};

fn infer_order(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = common_elem(ctx, 0)?;
    check_elem(elem, elem.is_float() || elem.is_int())?;
    Ok(vec![tensor_type(ElemType::Bool, broadcast_all(ctx, 0)?)])
}

fn infer_logic(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = common_elem(ctx, 0)?;
    check_elem(elem, elem == ElemType::Bool)?;
    Ok(vec![tensor_type(elem, broadcast_all(ctx, 0)?)])
}

fn infer_float_test(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    check_elem(elem, elem.is_float())?;
    Ok(vec![tensor_type(ElemType::Bool, ctx.shape(0)?.map(<[Dim]>::to_vec))])
}

fn bools(shape: Vec<usize>, values: impl Iterator<Item = bool>) -> Vec<Value> {
    vec![Tensor::from_int(ElemType::Bool, shape, values.map(i128::from).collect()).into()]
}

fn eval_predicate(
    ctx: &EvalCtx,
    float: impl Fn(f64, f64) -> bool,
    int: impl Fn(i128, i128) -> bool,
) -> Result<Vec<Value>, OpError> {
    let (a, b) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let n = checked_count(&shape)?;
    let (ia, ib) = (broadcast_index(a.shape(), &shape), broadcast_index(b.shape(), &shape));
    Ok(match (a.data(), b.data()) {
        (Data::Float(x), Data::Float(y)) => bools(shape, (0..n).map(|i| float(x[ia(i)], y[ib(i)]))),
        (Data::Int(x), Data::Int(y)) => bools(shape, (0..n).map(|i| int(x[ia(i)], y[ib(i)]))),
        // Orders are not typed for these; equality of complex numbers and texts is.
        (Data::Complex(x), Data::Complex(y)) => bools(shape, (0..n).map(|i| x[ia(i)] == y[ib(i)])),
        (Data::Str(x), Data::Str(y)) => bools(shape, (0..n).map(|i| x[ia(i)] == y[ib(i)])),
        _ => return Err(OpError::new(format!("is not defined for {} and {}", a.elem(), b.elem()))),
    })
}

fn eval_float_test(ctx: &EvalCtx, f: impl Fn(f64) -> bool) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let v = x
        .floats()
        .ok_or_else(|| OpError::new(format!("is not defined for {}", x.elem())))?;
    Ok(bools(x.shape().to_vec(), v.iter().map(|&v| f(v))))
}

fn eval_where(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (c, x, y) = (ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(2)?);
    let condition = c
        .integers()
        .ok_or_else(|| OpError::new("the condition must be `bool`"))?;
    let shape = broadcast_shapes(c.shape(), &broadcast_shapes(x.shape(), y.shape())?)?;
    let [ic, ix, iy] = [c, x, y].map(|t| broadcast_index(t.shape(), &shape));
    let out = assemble(&[x, y], shape, |i| {
        if condition[ic(i)] != 0 { (0, ix(i)) } else { (1, iy(i)) }
    })?;
    Ok(vec![out.into()])
}
