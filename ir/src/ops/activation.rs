//! Activation functions.
//!
//! Each formula is written once, over [`Arith`]: on numbers it is the evaluator's meaning, on graph values
//! it is the decomposition that lowering fuses. On graph values it computes in `f32` at least, as the
//! small types would lose the formula's intermediate results.

use super::broadcast::{binary, check_elem, eval_unary, infer_float, infer_number};
use super::elementwise::{float_max, float_min};
use super::index_map::around_axis;
use super::shape_values::axis_len;
use super::{
    AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance,
    resolve_axis,
};
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Data, Tensor, Value};
use crate::{Attr, ElemType, Type, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &RELU, &LEAKY_RELU, &ELU, &CELU, &SELU, &PRELU, &THRESHOLDED_RELU, &HARD_SIGMOID, &HARD_SWISH,
    &SWISH, &SWIGLU, &SIGMOID, &SOFTPLUS, &SOFTSIGN, &MISH, &GELU, &SHRINK, &HARDMAX,
];

const X: &[Operand] = &[Operand::One("x")];

/// What formulas are written in: ops by name on numbers or on graph values.
trait Arith {
    type V: Copy;
    fn num(&mut self, value: f64) -> Self::V;
    fn op(&mut self, name: &'static str, args: &[Self::V]) -> Result<Self::V, OpError>;
}

/// Formulas on numbers; truth values are 0 and 1.
struct Numbers;

impl Arith for Numbers {
    type V = f64;
    fn num(&mut self, value: f64) -> f64 {
        value
    }
    fn op(&mut self, name: &'static str, args: &[f64]) -> Result<f64, OpError> {
        Ok(match (name, args) {
            ("add", [a, b]) => a + b,
            ("sub", [a, b]) => a - b,
            ("mul", [a, b]) => a * b,
            ("div", [a, b]) => a / b,
            ("max", [a, b]) => float_max(*a, *b),
            ("min", [a, b]) => float_min(*a, *b),
            ("abs", [a]) => a.abs(),
            ("neg", [a]) => -a,
            ("exp", [a]) => a.exp(),
            ("log", [a]) => a.ln(),
            ("tanh", [a]) => a.tanh(),
            ("erf", [a]) => libm::erf(*a),
            ("sigmoid", [a]) => 1.0 / (1.0 + (-a).exp()),
            ("greater", [a, b]) => f64::from(u8::from(a > b)),
            ("less", [a, b]) => f64::from(u8::from(a < b)),
            ("where", [c, a, b]) => if *c != 0.0 { *a } else { *b },
            _ => return Err(OpError::new(format!("a formula uses `{name}` on {} operands", args.len()))),
        })
    }
}

/// Formulas on graph values of one element type.
struct Graph<'a, 'm>(&'a mut Builder<'m>, ElemType);

impl Arith for Graph<'_, '_> {
    type V = ValueId;
    fn num(&mut self, value: f64) -> ValueId {
        self.0.scalar(self.1, value)
    }
    fn op(&mut self, name: &'static str, args: &[ValueId]) -> Result<ValueId, OpError> {
        self.0.op(name, args)
    }
}

type R<A> = Result<<A as Arith>::V, OpError>;

fn param(n: &Node, name: &str) -> Result<f64, OpError> {
    match n.attr(name) {
        Some(Attr::Float(v)) => Ok(f64::from(v)),
        _ => Err(OpError::new(format!("attribute `{name}` is missing"))),
    }
}

fn leaky_relu<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    let (zero, alpha) = (a.num(0.0), a.num(param(n, "alpha")?));
    let (below, scaled) = (a.op("less", &[x, zero])?, a.op("mul", &[x, alpha])?);
    a.op("where", &[below, scaled, x])
}

/// `x` above zero, else `alpha * (exp(x) - 1)`, all times `gamma`.
fn exponential<A: Arith>(a: &mut A, x: A::V, alpha: f64, gamma: f64) -> R<A> {
    let (zero, one) = (a.num(0.0), a.num(1.0));
    let (alpha, gamma) = (a.num(alpha * gamma), a.num(gamma));
    let e = a.op("exp", &[x])?;
    let e = a.op("sub", &[e, one])?;
    let e = a.op("mul", &[e, alpha])?;
    let linear = a.op("mul", &[x, gamma])?;
    let below = a.op("less", &[x, zero])?;
    a.op("where", &[below, e, linear])
}

fn elu<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    exponential(a, x, param(n, "alpha")?, 1.0)
}

fn selu<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    exponential(a, x, param(n, "alpha")?, param(n, "gamma")?)
}

fn celu<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    let (zero, one, alpha) = (a.num(0.0), a.num(1.0), a.num(param(n, "alpha")?));
    let e = a.op("div", &[x, alpha])?;
    let e = a.op("exp", &[e])?;
    let e = a.op("sub", &[e, one])?;
    let e = a.op("mul", &[e, alpha])?;
    let (low, high) = (a.op("min", &[e, zero])?, a.op("max", &[x, zero])?);
    a.op("add", &[low, high])
}

fn thresholded_relu<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    let (zero, alpha) = (a.num(0.0), a.num(param(n, "alpha")?));
    let above = a.op("greater", &[x, alpha])?;
    a.op("where", &[above, x, zero])
}

/// `min(1, max(0, alpha * x + beta))`
fn ramp<A: Arith>(a: &mut A, x: A::V, alpha: f64, beta: f64) -> R<A> {
    let (zero, one) = (a.num(0.0), a.num(1.0));
    let (alpha, beta) = (a.num(alpha), a.num(beta));
    let y = a.op("mul", &[x, alpha])?;
    let y = a.op("add", &[y, beta])?;
    let y = a.op("max", &[y, zero])?;
    a.op("min", &[y, one])
}

fn hard_sigmoid<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    ramp(a, x, param(n, "alpha")?, param(n, "beta")?)
}

fn hard_swish<A: Arith>(a: &mut A, _: &Node, x: A::V) -> R<A> {
    let y = ramp(a, x, 1.0 / 6.0, 0.5)?;
    a.op("mul", &[x, y])
}

fn swish<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    let alpha = a.num(param(n, "alpha")?);
    let y = a.op("mul", &[x, alpha])?;
    let y = a.op("sigmoid", &[y])?;
    a.op("mul", &[x, y])
}

fn sigmoid<A: Arith>(a: &mut A, _: &Node, x: A::V) -> R<A> {
    let one = a.num(1.0);
    let y = a.op("neg", &[x])?;
    let y = a.op("exp", &[y])?;
    let y = a.op("add", &[y, one])?;
    a.op("div", &[one, y])
}

/// `max(x, 0) + log(1 + exp(-|x|))`: the exponential cannot overflow.
fn softplus<A: Arith>(a: &mut A, _: &Node, x: A::V) -> R<A> {
    let (zero, one) = (a.num(0.0), a.num(1.0));
    let y = a.op("abs", &[x])?;
    let y = a.op("neg", &[y])?;
    let y = a.op("exp", &[y])?;
    let y = a.op("add", &[y, one])?;
    let y = a.op("log", &[y])?;
    let high = a.op("max", &[x, zero])?;
    a.op("add", &[high, y])
}

fn softsign<A: Arith>(a: &mut A, _: &Node, x: A::V) -> R<A> {
    let one = a.num(1.0);
    let y = a.op("abs", &[x])?;
    let y = a.op("add", &[y, one])?;
    a.op("div", &[x, y])
}

fn mish<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    let y = softplus(a, n, x)?;
    let y = a.op("tanh", &[y])?;
    a.op("mul", &[x, y])
}

fn gelu<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    let (half, one) = (a.num(0.5), a.num(1.0));
    let bent = match n.attr("approximate") {
        Some(Attr::Str(s)) if s == "none" => {
            let c = a.num(FRAC_1_SQRT_2);
            let y = a.op("mul", &[x, c])?;
            a.op("erf", &[y])?
        }
        Some(Attr::Str(s)) if s == "tanh" => {
            let (c, cubic) = (a.num((2.0 / PI).sqrt()), a.num(0.044715));
            let y = a.op("mul", &[x, x])?;
            let y = a.op("mul", &[y, cubic])?;
            let y = a.op("add", &[y, one])?;
            let y = a.op("mul", &[y, x])?;
            let y = a.op("mul", &[y, c])?;
            a.op("tanh", &[y])?
        }
        other => return Err(OpError::new(format!("`approximate` is {other:?}, expected `none` or `tanh`"))),
    };
    let y = a.op("add", &[bent, one])?;
    let y = a.op("mul", &[y, half])?;
    a.op("mul", &[x, y])
}

fn shrink<A: Arith>(a: &mut A, n: &Node, x: A::V) -> R<A> {
    let (lambda, bias) = (param(n, "lambd")?, a.num(param(n, "bias")?));
    let (low, high, zero) = (a.num(-lambda), a.num(lambda), a.num(0.0));
    let (below, above) = (a.op("less", &[x, low])?, a.op("greater", &[x, high])?);
    let (up, down) = (a.op("add", &[x, bias])?, a.op("sub", &[x, bias])?);
    let y = a.op("where", &[above, down, zero])?;
    a.op("where", &[below, up, y])
}

fn relu<A: Arith>(a: &mut A, _: &Node, x: A::V) -> R<A> {
    let zero = a.num(0.0);
    a.op("max", &[x, zero])
}

macro_rules! activations {
    ($($NAME:ident $f:ident $source:literal $summary:literal $infer:ident [$($attr:literal $default:literal)*];)*) => {$(
        #[doc = concat!("Activation: ", $summary, ".")]
        pub static $NAME: OpDef = OpDef {
            name: stringify!($f),
            summary: $summary,
            source: $source,
            operands: X,
            attrs: &[$(AttrDef::new($attr, AttrKind::Float, Default::Float($default), "coefficient of the formula")),*],
            infer: $infer,
            eval: Eval::Direct(|ctx| eval_formula(ctx, |x| $f(&mut Numbers, ctx.node, x))),
            decompose: Some(|b, n| decompose_formula(b, n, |b, elem, x| $f(&mut Graph(b, elem), n, x))),
            tolerance: Tolerance::Approximate(2e-6, 1e-6),
            ..OpDef::BASE
        };
    )*};
}

activations! {
    LEAKY_RELU leaky_relu "ONNX LeakyRelu-16" "x, or alpha * x below zero" infer_float ["alpha" 0.01];
    ELU elu "ONNX Elu-22" "x, or alpha * (exp(x) - 1) below zero" infer_float ["alpha" 1.0];
    CELU celu "ONNX Celu-28" "max(0, x) + min(0, alpha * (exp(x / alpha) - 1))" infer_float ["alpha" 1.0];
    SELU selu "ONNX Selu-22" "gamma * x, or gamma * alpha * (exp(x) - 1) below zero" infer_float
        ["alpha" 1.673_263_2 "gamma" 1.050_701];
    THRESHOLDED_RELU thresholded_relu "ONNX ThresholdedRelu-22" "x above alpha, else 0" infer_float ["alpha" 1.0];
    HARD_SIGMOID hard_sigmoid "ONNX HardSigmoid-22" "alpha * x + beta limited to [0, 1]" infer_float
        ["alpha" 0.2 "beta" 0.5];
    HARD_SWISH hard_swish "ONNX HardSwish-22" "x * (x / 6 + 1 / 2 limited to [0, 1])" infer_float [];
    SWISH swish "ONNX Swish-24" "x * sigmoid(alpha * x)" infer_float ["alpha" 1.0];
    SIGMOID sigmoid "ONNX Sigmoid-13" "1 / (1 + exp(-x))" infer_float [];
    SOFTPLUS softplus "ONNX Softplus-22" "log(1 + exp(x))" infer_float [];
    SOFTSIGN softsign "ONNX Softsign-22" "x / (1 + |x|)" infer_float [];
    MISH mish "ONNX Mish-22" "x * tanh(softplus(x))" infer_float [];
    SHRINK shrink "ONNX Shrink-9" "x + bias below -lambd, x - bias above lambd, else 0" infer_number
        ["bias" 0.0 "lambd" 0.5];
}

/// Rectifier.
pub static RELU: OpDef = OpDef {
    name: "relu",
    summary: "max(x, 0)",
    source: "ONNX Relu-14",
    operands: X,
    infer: infer_number,
    eval: Eval::Direct(|ctx| eval_unary(ctx, |v| float_max(v, 0.0), |v| v.max(0))),
    decompose: Some(|b, n| {
        let x = operand(n, 0)?;
        let elem = b.elem(x)?;
        Ok(vec![relu(&mut Graph(b, elem), n, x)?])
    }),
    ..OpDef::BASE
};

/// Gaussian error linear unit.
pub static GELU: OpDef = OpDef {
    name: "gelu",
    summary: "x * (1 + erf(x / sqrt(2))) / 2, or its tanh approximation",
    source: "ONNX Gelu-20",
    operands: X,
    attrs: &[AttrDef::new("approximate", AttrKind::Str, Default::Str("none"), "`none` or `tanh`")],
    infer: infer_float,
    eval: Eval::Direct(|ctx| eval_formula(ctx, |x| gelu(&mut Numbers, ctx.node, x))),
    decompose: Some(|b, n| decompose_formula(b, n, |b, elem, x| gelu(&mut Graph(b, elem), n, x))),
    tolerance: Tolerance::Approximate(2e-6, 1e-6),
    ..OpDef::BASE
};

/// Gated activation.
pub static SWIGLU: OpDef = OpDef {
    name: "swiglu",
    summary: "swish(a) * b",
    source: "ONNX SwiGLU-28",
    operands: &[Operand::One("a"), Operand::One("b")],
    attrs: &[AttrDef::new("alpha", AttrKind::Float, Default::Float(1.0), "factor inside the sigmoid")],
    infer: |ctx| {
        check_elem(ctx.elem(0)?, ctx.elem(0)?.is_float())?;
        super::broadcast::infer_broadcast(ctx)
    },
    decompose: Some(|b, n| {
        let alpha = n.attr("alpha").unwrap_or(Attr::Float(1.0));
        let gate = b.op_with("swish", &[operand(n, 0)?], [("alpha", alpha)])?;
        Ok(vec![b.op("mul", &[gate, operand(n, 1)?])?])
    }),
    tolerance: Tolerance::Approximate(2e-6, 1e-6),
    ..OpDef::BASE
};

/// Rectifier with a learnt slope.
pub static PRELU: OpDef = OpDef {
    name: "prelu",
    summary: "x, or slope * x below zero; the slope broadcasts to x",
    source: "ONNX PRelu-16",
    operands: &[Operand::One("x"), Operand::One("slope")],
    infer: |ctx| {
        super::broadcast::infer_broadcast(ctx)?;
        infer_number(ctx)
    },
    eval: Eval::Direct(|ctx| {
        let (x, slope) = (ctx.tensor(0)?, ctx.tensor(1)?);
        let out = binary(
            x,
            slope,
            |x, s| if x < 0.0 { x * s } else { x },
            |x, s| Ok(if x < 0 { x.wrapping_mul(s) } else { x }),
        )?;
        if out.shape() != x.shape() {
            return Err(OpError::new("the slope must broadcast to x"));
        }
        Ok(vec![out.into()])
    }),
    decompose: Some(|b, n| {
        let (x, slope) = (operand(n, 0)?, operand(n, 1)?);
        let elem = b.elem(x)?;
        let zero = b.scalar(elem, 0.0);
        let (below, scaled) = (b.op("less", &[x, zero])?, b.op("mul", &[x, slope])?);
        Ok(vec![b.op("where", &[below, scaled, x])?])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// One at the first largest element.
pub static HARDMAX: OpDef = OpDef {
    name: "hardmax",
    summary: "1 at the first largest element along an axis, else 0",
    source: "ONNX Hardmax-13",
    operands: X,
    attrs: &[AttrDef::new("axis", AttrKind::Int, Default::Int(-1), "axis that is searched")],
    infer: |ctx: &InferCtx| -> Result<Vec<Type>, OpError> {
        if let Some(shape) = ctx.shape(0)? {
            resolve_axis(ctx.int("axis")?, shape.len())?;
        }
        infer_float(ctx)
    },
    eval: Eval::Direct(eval_hardmax),
    decompose: Some(|b, n| {
        let x = operand(n, 0)?;
        let (elem, rank) = (b.elem(x)?, b.shape(x)?.len());
        let axis = match n.attr("axis") {
            Some(Attr::Int(axis)) => resolve_axis(axis, rank)?,
            _ => return Err(OpError::new("attribute `axis` is missing")),
        };
        let at = b.op_with("arg_max", &[x], [("axis", Attr::Int(axis as i64)), ("keepdims", Attr::Int(1))])?;
        let (zero, one) = (b.constant(&Tensor::int(0)), b.constant(&Tensor::int(1)));
        let scalar = b.ints(&[]);
        let len = axis_len(b, x, axis)?;
        let len = b.op("reshape", &[len, scalar])?;
        let iota = b.op("range", &[zero, len, one])?;
        let mut shape = vec![1; rank];
        shape[axis] = -1;
        let shape = b.ints(&shape);
        let iota = b.op("reshape", &[iota, shape])?;
        let hit = b.op("equal", &[iota, at])?;
        Ok(vec![b.op_with("cast", &[hit], [("to", Attr::Elem(elem))])?])
    }),
    ..OpDef::BASE
};

fn operand(n: &Node, i: usize) -> Result<ValueId, OpError> {
    n.operand(i).ok_or_else(|| OpError::new(format!("operand {i} is missing")))
}

fn eval_formula(ctx: &EvalCtx, f: impl Fn(f64) -> Result<f64, OpError>) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let out = match x.data() {
        Data::Float(v) => {
            let out: Result<_, _> = v.iter().map(|&v| f(v)).collect();
            Tensor::from_f64(x.elem(), x.shape(), out?)
        }
        Data::Int(v) => {
            let out: Result<_, _> = v.iter().map(|&v| Ok(f(v as f64)? as i128)).collect();
            Tensor::from_int(x.elem(), x.shape(), out?)
        }
        _ => return Err(OpError::new(format!("is not defined for {}", x.elem()))),
    };
    Ok(vec![out.into()])
}

fn decompose_formula<'m>(
    b: &mut Builder<'m>,
    n: &Node,
    f: impl FnOnce(&mut Builder<'m>, ElemType, ValueId) -> Result<ValueId, OpError>,
) -> Result<Vec<ValueId>, OpError> {
    let x = operand(n, 0)?;
    let elem = b.elem(x)?;
    if matches!(elem, ElemType::F32 | ElemType::F64) {
        return Ok(vec![f(b, elem, x)?]);
    }
    let wide = b.op_with("cast", &[x], [("to", Attr::Elem(ElemType::F32))])?;
    let y = f(b, ElemType::F32, wide)?;
    Ok(vec![b.op_with("cast", &[y], [("to", Attr::Elem(elem))])?])
}

fn eval_hardmax(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let values = x.floats().ok_or_else(|| OpError::new("needs floats"))?;
    let (outer, len, inner) = around_axis(x.shape(), resolve_axis(ctx.int("axis")?, x.rank())?);
    let mut out = vec![0.0; values.len()];
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| (o * len + k) * inner + i;
            let best = (1..len).fold(0, |best, k| if values[at(k)] > values[at(best)] { k } else { best });
            if len > 0 {
                out[at(best)] = 1.0;
            }
        }
    }
    Ok(vec![Tensor::from_f64(x.elem(), x.shape(), out).into()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dim, Op};

    #[test]
    fn softplus_neither_overflows_nor_vanishes() {
        let node = Node {
            op: Op::of(&SOFTPLUS),
            name: String::new(),
            operands: vec![],
            results: vec![],
            attrs: crate::Attrs::new(),
            regions: vec![],
        };
        for (x, want) in [(1000.0, 1000.0), (-1000.0, 0.0), (0.0, 2f64.ln())] {
            assert_eq!(softplus(&mut Numbers, &node, x), Ok(want), "{x}");
        }
    }

    #[test]
    fn formulas_decompose_to_typed_graphs() {
        for def in OPS.iter().filter(|d| d.operands.len() == 1) {
            for elem in [ElemType::F32, ElemType::F16] {
                let mut m = crate::Module::new("m");
                let ty = Type::tensor(elem, [Dim::sym("n"), Dim::from(3i64)]);
                let x = m.add_input(crate::Module::TOP, "x", ty.clone());
                let fresh = std::cell::Cell::new(0);
                let mut b = Builder::new(&mut m, crate::Module::TOP, "", &fresh);
                let y = b.op(def.name, &[x]).unwrap();
                let node = b.module.node(b.module.producer(y).unwrap()).clone();
                let out = def.decompose.unwrap()(&mut b, &node).unwrap();
                assert_eq!(b.ty(out[0]), &ty, "{}", def.name);
            }
        }
    }
}
