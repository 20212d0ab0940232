//! Activations that are common enough to be one node of an expression; the others decompose.
//! Formulas are those of the evaluator, computed in `f32` at least and rounded once.

use super::expr::{Body, E};
use super::index::Pos;
use super::{Element, Rule};
use lapidary_ir::kernel::{Binary, Unary};
use lapidary_ir::ops::OpError;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::pointwise("relu", |x, p| {
        let a = x.at(0, p)?;
        let b = x.b();
        let zero = b.int(b.ty(a), 0);
        Ok(b.binary(Binary::Max, a, zero))
    }),
    Rule::pointwise("leaky_relu", |x, p| {
        let (alpha, a) = (param(x, "alpha")?, x.at(0, p)?);
        let b = x.b();
        let zero = b.float(b.ty(a), 0.0);
        let scaled = times(b, a, alpha);
        let below = b.binary(Binary::Lt, a, zero);
        Ok(b.select(below, scaled, a))
    }),
    Rule::pointwise("sigmoid", |x, p| {
        let a = x.at(0, p)?;
        Ok(sigmoid(x.b(), a))
    }),
    Rule::pointwise("swish", |x, p| {
        let (alpha, a) = (param(x, "alpha")?, x.at(0, p)?);
        let b = x.b();
        let y = times(b, a, alpha);
        let y = sigmoid(b, y);
        Ok(b.binary(Binary::Mul, a, y))
    }),
    Rule::pointwise("hard_sigmoid", |x, p| {
        let (alpha, beta) = (param(x, "alpha")?, param(x, "beta")?);
        let a = x.at(0, p)?;
        Ok(ramp(x.b(), a, alpha, beta))
    }),
    Rule::pointwise("hard_swish", |x, p| {
        let a = x.at(0, p)?;
        let b = x.b();
        let y = ramp(b, a, 1.0 / 6.0, 0.5);
        Ok(b.binary(Binary::Mul, a, y))
    }),
    Rule::pointwise("gelu", gelu),
];

fn param(x: &Element, name: &str) -> Result<f64, OpError> {
    x.float(name)
        .ok_or_else(|| OpError::new(format!("attribute `{name}` is missing")))
}

fn times(b: &mut Body, a: E, factor: f64) -> E {
    if factor == 1.0 {
        return a;
    }
    let factor = b.float(b.ty(a), factor);
    b.binary(Binary::Mul, a, factor)
}

fn plus(b: &mut Body, a: E, term: f64) -> E {
    let term = b.float(b.ty(a), term);
    b.binary(Binary::Add, a, term)
}

fn sigmoid(b: &mut Body, a: E) -> E {
    let one = b.float(b.ty(a), 1.0);
    let y = b.unary(Unary::Neg, a);
    let y = b.unary(Unary::Exp, y);
    let y = b.binary(Binary::Add, y, one);
    b.binary(Binary::Div, one, y)
}

fn ramp(b: &mut Body, a: E, alpha: f64, beta: f64) -> E {
    let (zero, one) = (b.float(b.ty(a), 0.0), b.float(b.ty(a), 1.0));
    let y = times(b, a, alpha);
    let y = plus(b, y, beta);
    let y = b.binary(Binary::Max, y, zero);
    b.binary(Binary::Min, y, one)
}

fn gelu(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let form = x.text("approximate");
    let a = x.at(0, p)?;
    let b = x.b();
    let bent = match form.as_str() {
        "none" => {
            let y = times(b, a, FRAC_1_SQRT_2);
            b.unary(Unary::Erf, y)
        }
        "tanh" => {
            let y = b.binary(Binary::Mul, a, a);
            let y = times(b, y, 0.044715);
            let y = plus(b, y, 1.0);
            let y = b.binary(Binary::Mul, y, a);
            let y = times(b, y, (2.0 / PI).sqrt());
            b.unary(Unary::Tanh, y)
        }
        other => return Err(OpError::new(format!("`approximate` is `{other}`"))),
    };
    let y = plus(b, bent, 1.0);
    let y = times(b, y, 0.5);
    Ok(b.binary(Binary::Mul, a, y))
}
