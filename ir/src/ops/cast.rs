//! Conversion between element types.

use super::broadcast::tensor_type;
use super::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand};
use crate::tensor::{Data, Tensor, Value};
use crate::{Dim, ElemType, Type, minifloat};
use lapidary_abi::elem::ElemClass;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&CAST, &CAST_LIKE, &BIT_CAST];

const SATURATE: AttrDef = AttrDef::new(
    "saturate",
    AttrKind::Int,
    Default::Int(1),
    "8-bit floats: 1: out of range becomes the largest number; 0: infinity or NaN",
);
const ROUND_MODE: AttrDef = AttrDef::new(
    "round_mode",
    AttrKind::Str,
    Default::Str("up"),
    "`f8e8m0` only: `up`, `down` or `nearest`",
);

/// Conversion.
pub static CAST: OpDef = OpDef {
    name: "cast",
    summary: "x converted to another element type",
    source: "ONNX Cast-28. What ONNX leaves open for floats out of an integer type's range: 32 and 64 bits saturate, \
        narrower types keep the low bits of the value saturated to i32; NaN gives 0",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("to", AttrKind::Elem, Default::Required, "element type of the result"),
        SATURATE,
        ROUND_MODE,
    ],
    infer: |ctx| infer_cast(ctx, target(ctx)?),
    contents: Some(|ctx| contents_cast(ctx, ctx.elem_attr("to")?)),
    eval: Eval::Direct(|ctx| {
        let to = ctx.elem_attr("to").ok_or_else(|| OpError::new("attribute `to` is missing"))?;
        eval_cast(ctx, to)
    }),
    ..OpDef::BASE
};

/// Conversion to another operand's type.
pub static CAST_LIKE: OpDef = OpDef {
    name: "cast_like",
    summary: "x converted to the element type of the second operand",
    source: "ONNX CastLike-25",
    operands: &[Operand::One("x"), Operand::One("like")],
    attrs: &[SATURATE, ROUND_MODE],
    infer: |ctx| infer_cast(ctx, ctx.elem(1)?),
    contents: Some(|ctx| contents_cast(ctx, ctx.elem(1).ok()?)),
    eval: Eval::Direct(|ctx| eval_cast(ctx, ctx.tensor(1)?.elem())),
    decompose: Some(|b, n| {
        let missing = || OpError::new("an operand is missing");
        let like = n.operand(1).ok_or_else(missing)?;
        let mut attrs = vec![("to", b.elem(like)?.into())];
        for name in ["saturate", "round_mode"] {
            attrs.extend(n.attr(name).map(|v| (name, v)));
        }
        Ok(vec![b.op_with("cast", &[n.operand(0).ok_or_else(missing)?], attrs)?])
    }),
    ..OpDef::BASE
};

/// Reinterpretation.
pub static BIT_CAST: OpDef = OpDef {
    name: "bit_cast",
    summary: "the bits of x read as another element type of the same width",
    source: "ONNX BitCast-26",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("to", AttrKind::Elem, Default::Required, "element type of the result")],
    infer: |ctx| {
        let (from, to) = (ctx.elem(0)?, target(ctx)?);
        if width(from) != width(to) || width(to) == 0 {
            return Err(OpError::new(format!("{from} and {to} do not have the same width")));
        }
        Ok(vec![tensor_type(to, ctx.shape(0)?.map(<[Dim]>::to_vec))])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let to = ctx.elem_attr("to").ok_or_else(|| OpError::new("attribute `to` is missing"))?;
        let out = (width(x.elem()) == width(to))
            .then(|| Tensor::from_bytes(to, x.shape(), &x.to_bytes()?))
            .flatten();
        let different = || OpError::new(format!("{} and {to} do not have the same width", x.elem()));
        Ok(vec![out.ok_or_else(different)?.into()])
    }),
    ..OpDef::BASE
};

/// Bits of one element as ONNX stores it: `bool` takes a byte.
fn width(elem: ElemType) -> u32 {
    if elem == ElemType::Bool { 8 } else { elem.bits() }
}

fn target(ctx: &InferCtx) -> Result<ElemType, OpError> {
    ctx.elem_attr("to").ok_or_else(|| OpError::new("attribute `to` is missing"))
}

fn infer_cast(ctx: &InferCtx, to: ElemType) -> Result<Vec<Type>, OpError> {
    let from = ctx.elem(0)?;
    let complex = |e: ElemType| e.class() == ElemClass::Complex;
    if complex(from) != complex(to) {
        return Err(OpError::new(format!("{from} cannot become {to}")));
    }
    Ok(vec![tensor_type(to, ctx.shape(0)?.map(<[Dim]>::to_vec))])
}

/// Symbolic contents survive between the types that hold any dimension; numbers survive wherever they fit.
fn contents_cast(ctx: &InferCtx, to: ElemType) -> Option<Vec<Dim>> {
    let (low, high) = to.int_range()?;
    let keep = |d: &Dim| match d.as_const() {
        Some(v) if to == ElemType::Bool => Some(Dim::from(i64::from(v != 0))),
        Some(v) => (low..=high).contains(&i128::from(v)).then(|| d.clone()),
        None => (to.is_int() && to.bits() >= 32).then(|| d.clone()),
    };
    ctx.dims(0)?.iter().map(keep).collect()
}

fn eval_cast(ctx: &EvalCtx, to: ElemType) -> Result<Vec<Value>, OpError> {
    let out = cast(ctx.tensor(0)?, to, ctx.flag("saturate"), &ctx.str("round_mode"))?;
    Ok(vec![out.into()])
}

/// `x` converted to `to`.
pub fn cast(x: &Tensor, to: ElemType, saturate: bool, round_mode: &str) -> Result<Tensor, OpError> {
    let illegal = || OpError::new(format!("{} cannot become {to}", x.elem()));
    if x.elem() == to {
        return Ok(x.clone());
    }
    let shape = x.shape();
    // The rules round already, and a second rounding would saturate what must stay infinite.
    let floats = |v| Tensor::new(to, shape, Data::Float(v));
    Ok(match (x.data(), to.class()) {
        (Data::Float(v), ElemClass::Float) => {
            let f = float_rule(to, saturate, round_mode)?;
            floats(v.iter().map(|&v| f(v)).collect())
        }
        (Data::Int(v), ElemClass::Float) => {
            let f = float_rule(to, saturate, round_mode)?;
            let exact = |v: i128| if to == ElemType::F32 { f64::from(v as f32) } else { v as f64 };
            floats(v.iter().map(|&v| f(exact(v))).collect())
        }
        (Data::Str(v), ElemClass::Float) => {
            let f = float_rule(to, saturate, round_mode)?;
            let out: Result<_, _> = v.iter().map(|s| Ok(f(parse_float(s, to)?))).collect();
            floats(out?)
        }
        (Data::Float(v), ElemClass::Bool) => {
            Tensor::from_int(to, shape, v.iter().map(|&v| i128::from(v != 0.0)).collect())
        }
        (Data::Float(v), ElemClass::Signed | ElemClass::Unsigned) => {
            let wide = if to.bits() < 32 { ElemType::I32 } else { to };
            let (low, high) = wide.int_range().ok_or_else(illegal)?;
            let whole = |&v: &f64| (v as i128).clamp(low, high);
            Tensor::from_int(to, shape, v.iter().map(whole).collect())
        }
        (Data::Int(v), ElemClass::Signed | ElemClass::Unsigned | ElemClass::Bool) => {
            Tensor::from_int(to, shape, v.clone())
        }
        (Data::Str(v), ElemClass::Signed | ElemClass::Unsigned | ElemClass::Bool) => {
            let out: Result<_, _> = v.iter().map(|s| parse_int(s)).collect();
            Tensor::from_int(to, shape, out?)
        }
        (Data::Float(v), ElemClass::String) => {
            let text = |&v: &f64| print_float(v, x.elem());
            Tensor::new(to, shape, Data::Str(v.iter().map(text).collect()))
        }
        (Data::Int(v), ElemClass::String) => {
            Tensor::new(to, shape, Data::Str(v.iter().map(i128::to_string).collect()))
        }
        (Data::Complex(v), ElemClass::Complex) => {
            let round = |v: f64| if to == ElemType::C64 { f64::from(v as f32) } else { v };
            Tensor::new(to, shape, Data::Complex(v.iter().map(|c| c.map(round)).collect()))
        }
        _ => return Err(illegal()),
    })
}

/// How a number is brought into the range of a float type, before the ordinary rounding.
fn float_rule(to: ElemType, saturate: bool, round_mode: &str) -> Result<Box<dyn Fn(f64) -> f64>, OpError> {
    Ok(match to {
        ElemType::F32 | ElemType::F64 | ElemType::F16 | ElemType::BF16 => {
            Box::new(move |v| minifloat::round_to(to, v))
        }
        ElemType::F8E8M0 => {
            let round: fn(f64) -> f64 = match round_mode {
                "up" => |m| if m > 1.0 { 2.0 } else { 1.0 },
                "down" => |_| 1.0,
                "nearest" => |m| if m >= 1.5 { 2.0 } else { 1.0 },
                other => {
                    return Err(OpError::new(format!(
                        "`round_mode` is `{other}`, expected `up`, `down` or `nearest`"
                    )));
                }
            };
            Box::new(move |v| power_of_two(v, saturate, round))
        }
        _ => Box::new(move |v| minifloat::decode(to, minifloat::encode(to, v, saturate))),
    })
}

/// The magnitude of `v` as a power of two in the range of `f8e8m0`.
fn power_of_two(v: f64, saturate: bool, round: fn(f64) -> f64) -> f64 {
    let (least, most) = (2f64.powi(-127), 2f64.powi(127));
    let v = v.abs();
    if v.is_nan() {
        return v;
    }
    let exponent = if v == 0.0 { -1023 } else { libm::ilogb(v) };
    let rounded = if v.is_infinite() || exponent > 127 {
        f64::INFINITY
    } else if exponent < -127 {
        // Up and nearest may still reach the smallest number.
        if v > 0.0 && round(v / least + 1.0) > 1.0 { least } else { 0.0 }
    } else {
        let base = 2f64.powi(exponent);
        base * round(v / base)
    };
    match (rounded < least, rounded > most) {
        (true, _) if saturate => least,
        (_, true) if saturate => most,
        (false, false) => rounded,
        _ => f64::NAN,
    }
}

/// Plain notation, never an exponent; the fewest digits that read back to the same number.
fn print_float(v: f64, elem: ElemType) -> String {
    match v {
        _ if v.is_nan() => "NaN".to_owned(),
        _ if v.is_infinite() => if v > 0.0 { "INF" } else { "-INF" }.to_owned(),
        _ if elem == ElemType::F64 => v.to_string(),
        _ if elem == ElemType::F16 => half::f16::from_f64(v).to_string(),
        _ if elem == ElemType::BF16 => half::bf16::from_f64(v).to_string(),
        _ => (v as f32).to_string(),
    }
}

fn parse_float(s: &str, to: ElemType) -> Result<f64, OpError> {
    let text = s.trim();
    // Straight to `f32`, so that it is rounded once.
    let parsed = if to == ElemType::F32 {
        text.parse::<f32>().map(f64::from)
    } else {
        text.parse::<f64>()
    };
    parsed.map_err(|_| OpError::new(format!("{s:?} is not a number")))
}

fn parse_int(s: &str) -> Result<i128, OpError> {
    match s.trim().parse::<i128>() {
        Ok(v) => Ok(v),
        Err(_) => parse_float(s, ElemType::F64).map(|v| v as i128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_convert() {
        use ElemType::*;
        struct Case(ElemType, f64, ElemType, bool, &'static str, f64);
        let cases = [
            Case(F32, 2.9, I8, true, "up", 2.0),
            Case(F32, -2.9, I32, true, "up", -2.0),
            Case(F32, 1e20, I64, true, "up", i64::MAX as f64),
            Case(F32, -3.0, U8, true, "up", 253.0),
            Case(F32, -3.0, U32, true, "up", 0.0),
            Case(F32, -9.0, I4, true, "up", 7.0),
            Case(F32, -0.0, Bool, true, "up", 0.0),
            Case(I16, 200.0, I8, true, "up", -56.0),
            Case(I8, -1.0, U4, true, "up", 15.0),
            Case(F32, 1e6, F16, true, "up", f64::INFINITY),
            Case(F32, 1e6, F8E4M3FN, true, "up", 448.0),
            Case(F32, 464.0, F8E4M3FN, false, "up", 448.0),
            Case(F32, f64::INFINITY, F8E5M2, false, "up", f64::INFINITY),
            Case(F32, f64::INFINITY, F8E5M2, true, "up", 57344.0),
            Case(F32, 1e9, F4E2M1, true, "up", 6.0),
            Case(F32, 3.0, F8E8M0, true, "up", 4.0),
            Case(F32, 3.0, F8E8M0, true, "down", 2.0),
            Case(F32, 2.9, F8E8M0, true, "nearest", 2.0),
            Case(F32, 3.0, F8E8M0, true, "nearest", 4.0),
            Case(F32, 0.0, F8E8M0, true, "up", 2f64.powi(-127)),
            Case(F32, f64::INFINITY, F8E8M0, true, "up", 2f64.powi(127)),
        ];
        for Case(from, v, to, saturate, mode, want) in cases {
            let x = if from.is_float() {
                Tensor::from_f64(from, [], vec![v])
            } else {
                Tensor::from_int(from, [], vec![v as i128])
            };
            let got = cast(&x, to, saturate, mode).unwrap().to_f64s().unwrap()[0];
            assert_eq!(got, want, "{v} {from} -> {to} {mode}");
        }
        let one = Tensor::f32(f32::INFINITY);
        assert!(cast(&one, F8E4M3FN, false, "up").unwrap().floats().unwrap()[0].is_nan());
        assert!(cast(&one, F8E8M0, false, "nearest").unwrap().floats().unwrap()[0].is_nan());
        assert!(cast(&one, C64, true, "up").is_err());
    }

    #[test]
    fn texts_read_back() {
        let words = |v: &[&str]| {
            let v: Vec<String> = v.iter().map(|&s| s.to_owned()).collect();
            Tensor::new(ElemType::String, [v.len()], Data::Str(v))
        };
        let text = words(&["3.5", "-INF", "+inf", "1e-5"]);
        let x = cast(&text, ElemType::F32, true, "up").unwrap();
        assert_eq!(x.floats().unwrap()[..3], [3.5, f64::NEG_INFINITY, f64::INFINITY]);
        let back = cast(&x, ElemType::String, true, "up").unwrap();
        assert_eq!(back.strings().unwrap(), ["3.5", "-INF", "INF", "0.00001"]);
        assert!(cast(&words(&["x"]), ElemType::I32, true, "up").is_err());
    }
}
