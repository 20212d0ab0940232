//! Element-wise arithmetic with numpy-style broadcasting.

use super::broadcast::{
    contents_fold, eval_float, eval_fold, eval_unary, infer_broadcast_int, infer_broadcast_number, infer_float,
    infer_number,
};
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Data, Tensor, Value};
use crate::{Dim, Type, ValueId};

pub use super::broadcast::{broadcast_index, contents_binary, eval_binary, infer_broadcast};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &ADD, &SUB, &MUL, &DIV, &MOD, &POW, &MAX, &MIN, &SUM, &MEAN, &BIT_SHIFT, &BITWISE_AND,
    &BITWISE_OR, &BITWISE_XOR, &BITWISE_NOT, &NEG, &ABS, &SIGN, &RECIPROCAL, &SQRT, &EXP, &LOG,
    &CEIL, &FLOOR, &ROUND, &ERF, &SIN, &COS, &TAN, &ASIN, &ACOS, &ATAN, &SINH, &COSH, &TANH,
    &ASINH, &ACOSH, &ATANH,
];

const AB: &[Operand] = &[Operand::One("a"), Operand::One("b")];
const MANY: &[Operand] = &[Operand::Variadic("data")];
const X: &[Operand] = &[Operand::One("x")];

/// Sum of two tensors.
pub static ADD: OpDef = OpDef {
    name: "add",
    summary: "a + b with broadcasting; integers wrap",
    source: "ONNX Add-14",
    operands: AB,
    infer: infer_broadcast_number,
    contents: Some(|ctx| contents_binary(ctx, |a, b| Some(a + b))),
    eval: Eval::Direct(|ctx| eval_binary(ctx, |a, b| a + b, |a, b| Ok(a.wrapping_add(b)))),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Difference of two tensors.
pub static SUB: OpDef = OpDef {
    name: "sub",
    summary: "a - b with broadcasting; integers wrap",
    source: "ONNX Sub-14",
    operands: AB,
    infer: infer_broadcast_number,
    contents: Some(|ctx| contents_binary(ctx, |a, b| Some(a - b))),
    eval: Eval::Direct(|ctx| eval_binary(ctx, |a, b| a - b, |a, b| Ok(a.wrapping_sub(b)))),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Product of two tensors.
pub static MUL: OpDef = OpDef {
    name: "mul",
    summary: "a * b with broadcasting; integers wrap",
    source: "ONNX Mul-14",
    operands: AB,
    infer: infer_broadcast_number,
    contents: Some(|ctx| contents_binary(ctx, |a, b| Some(a * b))),
    eval: Eval::Direct(|ctx| eval_binary(ctx, |a, b| a * b, |a, b| Ok(a.wrapping_mul(b)))),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Quotient of two tensors.
pub static DIV: OpDef = OpDef {
    name: "div",
    summary: "a / b with broadcasting; integers truncate towards zero",
    source: "ONNX Div-14",
    operands: AB,
    infer: infer_broadcast_number,
    contents: Some(|ctx| contents_binary(ctx, div_dims)),
    eval: Eval::Direct(|ctx| {
        eval_binary(ctx, |a, b| a / b, |a, b| a.checked_div(b).ok_or_else(by_zero))
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// Remainder.
pub static MOD: OpDef = OpDef {
    name: "mod",
    summary: "remainder of a / b: with the sign of b, or of a if `fmod`",
    source: "ONNX Mod-28",
    operands: AB,
    attrs: &[AttrDef::new(
        "fmod",
        AttrKind::Int,
        Default::Int(0),
        "1: the quotient is truncated, so that the result has the sign of a",
    )],
    infer: infer_broadcast_number,
    contents: Some(|ctx| {
        let fmod = ctx.flag("fmod");
        contents_binary(ctx, |a, b| match (a.as_const(), b.as_const()) {
            (Some(a), Some(b)) if fmod => a.checked_rem(b).map(Dim::from),
            (_, Some(0)) => None,
            _ => (!fmod).then(|| a.modulo(b)),
        })
    }),
    eval: Eval::Direct(|ctx| {
        if ctx.flag("fmod") {
            eval_binary(ctx, |a, b| a % b, |a, b| a.checked_rem(b).ok_or_else(by_zero))
        } else {
            eval_binary(ctx, floor_mod, |a, b| {
                let r = a.checked_rem(b).ok_or_else(by_zero)?;
                Ok(if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
            })
        }
    }),
    ..OpDef::BASE
};

/// Power.
pub static POW: OpDef = OpDef {
    name: "pow",
    summary: "x to the power y with broadcasting; the result has x's element type",
    source: "ONNX Pow-15",
    operands: &[Operand::One("x"), Operand::One("y")],
    infer: |ctx| {
        let (x, y) = (ctx.elem(0)?, ctx.elem(1)?);
        super::broadcast::check_elem(x, x.is_float() || x.is_int())?;
        super::broadcast::check_elem(y, y.is_float() || y.is_int())?;
        let shape = super::broadcast::broadcast_all(ctx, 0)?;
        Ok(vec![super::broadcast::tensor_type(x, shape)])
    },
    eval: Eval::Direct(eval_pow),
    tolerance: Tolerance::Approximate(1e-6, 1e-30),
    ..OpDef::BASE
};

/// Largest of several tensors.
pub static MAX: OpDef = OpDef {
    name: "max",
    summary: "element-wise largest of any number of tensors with broadcasting; NaN wins",
    source: "ONNX Max-13",
    operands: MANY,
    infer: infer_broadcast_number,
    contents: Some(|ctx| contents_fold(ctx, |a, b| Some(a.max_dim(b)))),
    eval: Eval::Direct(|ctx| eval_fold(ctx, float_max, i128::max)),
    ..OpDef::BASE
};

/// Smallest of several tensors.
pub static MIN: OpDef = OpDef {
    name: "min",
    summary: "element-wise smallest of any number of tensors with broadcasting; NaN wins",
    source: "ONNX Min-13",
    operands: MANY,
    infer: infer_broadcast_number,
    contents: Some(|ctx| contents_fold(ctx, |a, b| Some(a.min_dim(b)))),
    eval: Eval::Direct(|ctx| eval_fold(ctx, float_min, i128::min)),
    ..OpDef::BASE
};

/// Sum of several tensors.
pub static SUM: OpDef = OpDef {
    name: "sum",
    summary: "element-wise sum of any number of tensors with broadcasting",
    source: "ONNX Sum-13",
    operands: MANY,
    infer: infer_broadcast_number,
    decompose: Some(|b, n| Ok(vec![add_up(b, n)?])),
    ..OpDef::BASE
};

/// Mean of several tensors.
pub static MEAN: OpDef = OpDef {
    name: "mean",
    summary: "element-wise mean of any number of tensors with broadcasting",
    source: "ONNX Mean-13",
    operands: MANY,
    infer: infer_broadcast_number,
    decompose: Some(|b, n| {
        let sum = add_up(b, n)?;
        let elem = b.elem(sum)?;
        let count = b.scalar(elem, n.operands.len() as f64);
        Ok(vec![b.op("div", &[sum, count])?])
    }),
    ..OpDef::BASE
};

/// Shift.
pub static BIT_SHIFT: OpDef = OpDef {
    name: "bit_shift",
    summary: "x shifted by y bits; right shifts of signed types keep the sign",
    source: "ONNX BitShift-28",
    operands: &[Operand::One("x"), Operand::One("y")],
    attrs: &[AttrDef::new(
        "direction",
        AttrKind::Str,
        Default::Required,
        "`LEFT` or `RIGHT`",
    )],
    infer: infer_broadcast_int,
    eval: Eval::Direct(|ctx| {
        let left = match ctx.str("direction").as_str() {
            "LEFT" => true,
            "RIGHT" => false,
            other => return Err(OpError::new(format!("`direction` is `{other}`, expected `LEFT` or `RIGHT`"))),
        };
        let bits = i128::from(ctx.tensor(0)?.elem().bits());
        eval_binary(
            ctx,
            |_, _| f64::NAN,
            |x, y| {
                Ok(match (0..bits).contains(&y) {
                    true if left => x << y,
                    true => x >> y,
                    false if !left && x < 0 => -1,
                    false => 0,
                })
            },
        )
    }),
    ..OpDef::BASE
};

macro_rules! bitwise {
    ($($NAME:ident $name:literal $source:literal $summary:literal $f:expr;)*) => {$(
        #[doc = concat!("Bitwise: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: $summary,
            source: $source,
            operands: AB,
            infer: infer_broadcast_int,
            eval: Eval::Direct(|ctx| eval_binary(ctx, |_, _| f64::NAN, |a, b| Ok($f(a, b)))),
            ..OpDef::BASE
        };
    )*};
}

bitwise! {
    BITWISE_AND "bitwise_and" "ONNX BitwiseAnd-18" "bits set in both operands" |a: i128, b: i128| a & b;
    BITWISE_OR "bitwise_or" "ONNX BitwiseOr-18" "bits set in either operand" |a: i128, b: i128| a | b;
    BITWISE_XOR "bitwise_xor" "ONNX BitwiseXor-18" "bits set in exactly one operand" |a: i128, b: i128| a ^ b;
}

macro_rules! number_ops {
    ($($NAME:ident $name:literal $source:literal $summary:literal $infer:ident $contents:expr, $f:expr, $g:expr;)*) => {$(
        #[doc = concat!("Element-wise: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: $summary,
            source: $source,
            operands: X,
            infer: $infer,
            contents: $contents,
            eval: Eval::Direct(|ctx| eval_unary(ctx, $f, $g)),
            ..OpDef::BASE
        };
    )*};
}

number_ops! {
    BITWISE_NOT "bitwise_not" "ONNX BitwiseNot-18" "every bit inverted" infer_int None, |v| v, |v: i128| !v;
    NEG "neg" "ONNX Neg-13" "negated value" infer_number
        Some(|ctx| Some(ctx.dims(0)?.iter().map(|d| Dim::from(0i64) - d).collect())), |v: f64| -v, |v: i128| -v;
    ABS "abs" "ONNX Abs-13" "absolute value" infer_number None, f64::abs, i128::abs;
    SIGN "sign" "ONNX Sign-13" "-1, 0 or 1 by sign; NaN stays" infer_number None,
        |v: f64| if v == 0.0 || v.is_nan() { v } else { v.signum() }, i128::signum;
}

macro_rules! float_ops {
    ($($NAME:ident $name:literal $source:literal $summary:literal $tolerance:expr, $f:expr;)*) => {$(
        #[doc = concat!("Element-wise: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: $name,
            summary: $summary,
            source: $source,
            operands: X,
            infer: infer_float,
            eval: Eval::Direct(|ctx| eval_float(ctx, $f)),
            tolerance: $tolerance,
            ..OpDef::BASE
        };
    )*};
}

/// Accuracy of the elementary functions in compiled code.
const FUNCTION: Tolerance = Tolerance::Approximate(1e-6, 1e-7);

float_ops! {
    RECIPROCAL "reciprocal" "ONNX Reciprocal-13" "1 / x" Tolerance::Rounding(1), |v| 1.0 / v;
    SQRT "sqrt" "ONNX Sqrt-13" "square root; NaN below zero" Tolerance::Rounding(1), f64::sqrt;
    EXP "exp" "ONNX Exp-13" "e to the power x" FUNCTION, f64::exp;
    LOG "log" "ONNX Log-13" "natural logarithm" FUNCTION, f64::ln;
    CEIL "ceil" "ONNX Ceil-13" "smallest whole number not below x" Tolerance::Exact, f64::ceil;
    FLOOR "floor" "ONNX Floor-13" "largest whole number not above x" Tolerance::Exact, f64::floor;
    ROUND "round" "ONNX Round-22" "nearest whole number, halves to even" Tolerance::Exact, f64::round_ties_even;
    ERF "erf" "ONNX Erf-13" "Gauss error function" FUNCTION, libm::erf;
    SIN "sin" "ONNX Sin-22" "sine of radians" FUNCTION, f64::sin;
    COS "cos" "ONNX Cos-22" "cosine of radians" FUNCTION, f64::cos;
    TAN "tan" "ONNX Tan-22" "tangent of radians" FUNCTION, f64::tan;
    ASIN "asin" "ONNX Asin-22" "inverse sine" FUNCTION, f64::asin;
    ACOS "acos" "ONNX Acos-22" "inverse cosine" FUNCTION, f64::acos;
    ATAN "atan" "ONNX Atan-22" "inverse tangent" FUNCTION, f64::atan;
    SINH "sinh" "ONNX Sinh-22" "hyperbolic sine" FUNCTION, f64::sinh;
    COSH "cosh" "ONNX Cosh-22" "hyperbolic cosine" FUNCTION, f64::cosh;
    TANH "tanh" "ONNX Tanh-13" "hyperbolic tangent" FUNCTION, f64::tanh;
    ASINH "asinh" "ONNX Asinh-22" "inverse hyperbolic sine" FUNCTION, f64::asinh;
    ACOSH "acosh" "ONNX Acosh-22" "inverse hyperbolic cosine" FUNCTION, f64::acosh;
    ATANH "atanh" "ONNX Atanh-22" "inverse hyperbolic tangent" FUNCTION, f64::atanh;
}

/// The larger of two floats; NaN if either is.
pub fn float_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The smaller of two floats; NaN if either is.
pub fn float_min(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

fn infer_int(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    super::broadcast::check_elem(elem, elem.is_int())?;
    Ok(vec![ctx.ty(0)?.clone()])
}

fn by_zero() -> OpError {
    OpError::new("an integer is divided by zero")
}

/// Truncating division where it is known to equal floor division: numbers, and sums that only a constant
/// could make negative (a dimension computed that way would be negative itself).
fn div_dims(a: &Dim, b: &Dim) -> Option<Dim> {
    if let (Some(a), Some(b)) = (a.as_const(), b.as_const()) {
        return a.checked_div(b).map(Dim::from);
    }
    let positive = |d: &Dim| d.terms().all(|(atoms, c)| c > 0 || atoms.is_empty());
    let divisor = b.as_const().is_none_or(|b| b > 0) && b.terms().all(|(_, c)| c > 0);
    (positive(a) && divisor).then(|| a.floor_div(b))
}

fn floor_mod(a: f64, b: f64) -> f64 {
    let r = a % b;
    if r == 0.0 {
        0f64.copysign(b)
    } else if (r < 0.0) != (b < 0.0) {
        r + b
    } else {
        r
    }
}

fn eval_pow(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, y) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let as_float = |t: &Tensor| {
        let values = t
            .to_f64s()
            .ok_or_else(|| OpError::new(format!("is not defined for {}", t.elem())))?;
        Ok(Tensor::new(crate::ElemType::F64, t.shape(), Data::Float(values)))
    };
    let out = match (x.data(), y.data()) {
        (Data::Int(_), Data::Int(_)) => {
            super::broadcast::binary(x, y, f64::powf, int_pow)?
        }
        (Data::Int(_), _) => {
            let p = super::broadcast::binary(&as_float(x)?, &as_float(y)?, f64::powf, int_pow)?;
            let whole = p.floats().unwrap_or_default().iter().map(|&v| v as i128);
            Tensor::from_int(x.elem(), p.shape(), whole.collect())
        }
        _ => {
            let p = super::broadcast::binary(&as_float(x)?, &as_float(y)?, f64::powf, int_pow)?;
            Tensor::from_f64(x.elem(), p.shape(), p.floats().unwrap_or_default().to_vec())
        }
    };
    Ok(vec![out.into()])
}

/// Integer power by squaring, modulo 2^128 (every element type wraps further).
fn int_pow(x: i128, y: i128) -> Result<i128, OpError> {
    if y < 0 {
        return match x {
            0 => Err(by_zero()),
            1 => Ok(1),
            -1 => Ok(if y % 2 == 0 { 1 } else { -1 }),
            _ => Ok(0),
        };
    }
    let (mut base, mut exponent, mut out) = (x, y, 1i128);
    while exponent > 0 {
        if exponent & 1 == 1 {
            out = out.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    Ok(out)
}

fn add_up(b: &mut Builder, n: &Node) -> Result<ValueId, OpError> {
    let mut operands = n.operands.iter().flatten().copied();
    let first = operands
        .next()
        .ok_or_else(|| OpError::new("at least one operand is needed"))?;
    operands.try_fold(first, |sum, v| b.op("add", &[sum, v]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_follow_the_divisor() {
        for (a, b, want) in [(5.0, 3.0, 2.0), (-5.0, 3.0, 1.0), (5.0, -3.0, -1.0), (-1.0, f64::INFINITY, f64::INFINITY)] {
            assert_eq!(floor_mod(a, b), want, "{a} mod {b}");
        }
        assert!(floor_mod(1.0, 0.0).is_nan() && floor_mod(f64::INFINITY, 1.0).is_nan());
        assert!(floor_mod(0.0, -2.0).is_sign_negative());
    }

    #[test]
    fn integer_powers() {
        for (x, y, want) in [(2, 10, 1024), (-1, -3, -1), (7, -1, 0), (3, 0, 1)] {
            assert_eq!(int_pow(x, y), Ok(want), "{x}^{y}");
        }
        assert!(int_pow(0, -1).is_err());
    }

    #[test]
    fn symbolic_division_needs_a_positive_sum() {
        let n = Dim::sym("n");
        assert_eq!(div_dims(&(&n * Dim::from(6i64)), &Dim::from(3i64)), Some(&n * Dim::from(2i64)));
        assert_eq!(div_dims(&(Dim::from(0i64) - &n), &Dim::from(3i64)), None);
        assert_eq!(div_dims(&Dim::from(-7i64), &Dim::from(2i64)), Some(Dim::from(-3i64)));
        assert_eq!(div_dims(&n, &Dim::from(0i64)), None);
    }
}
