//! Activations, each formula once: on tiles of a schedule and on the scalar expressions of lowering.

use super::build::KernelBuilder;
use super::{Binary, Literal, Unary, Var};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// What formulas are written in.
pub trait Formula {
    /// A value.
    type V: Copy;
    /// A number beside `like`.
    fn number(&mut self, like: Self::V, value: f64) -> Self::V;
    /// A function of one operand.
    fn unary(&mut self, f: Unary, x: Self::V) -> Self::V;
    /// A function of two.
    fn binary(&mut self, f: Binary, a: Self::V, b: Self::V) -> Self::V;
    /// A choice.
    fn select(&mut self, c: Self::V, a: Self::V, b: Self::V) -> Self::V;
}

impl Formula for KernelBuilder {
    type V = Var;
    fn number(&mut self, like: Var, value: f64) -> Var {
        let ty = self.ty(like);
        self.constant(ty, Literal::Float(value))
    }
    fn unary(&mut self, f: Unary, x: Var) -> Var {
        KernelBuilder::unary(self, f, x)
    }
    fn binary(&mut self, f: Binary, a: Var, b: Var) -> Var {
        KernelBuilder::binary(self, f, a, b)
    }
    fn select(&mut self, c: Var, a: Var, b: Var) -> Var {
        KernelBuilder::select(self, c, a, b)
    }
}

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "named for the functions they are")]
pub enum Activation {
    Tanh,
    Sigmoid,
    /// The factor below zero.
    LeakyRelu(f32),
    /// Slope and offset of the ramp from 0 to 1.
    HardSigmoid(f32, f32),
    HardSwish,
    /// The factor inside the sigmoid.
    Swish(f32),
    Gelu,
    GeluTanh,
}

impl Activation {
    /// The activation of `x`.
    pub fn apply<F: Formula>(self, f: &mut F, x: F::V) -> F::V {
        match self {
            Activation::Tanh => f.unary(Unary::Tanh, x),
            Activation::Sigmoid => sigmoid(f, x),
            Activation::LeakyRelu(alpha) => {
                let zero = f.number(x, 0.0);
                let low = times(f, x, f64::from(alpha));
                let negative = f.binary(Binary::Lt, x, zero);
                f.select(negative, low, x)
            }
            Activation::HardSigmoid(alpha, beta) => ramp(f, x, f64::from(alpha), f64::from(beta)),
            Activation::HardSwish => {
                let y = ramp(f, x, 1.0 / 6.0, 0.5);
                f.binary(Binary::Mul, x, y)
            }
            Activation::Swish(alpha) => {
                let y = times(f, x, f64::from(alpha));
                let y = sigmoid(f, y);
                f.binary(Binary::Mul, x, y)
            }
            Activation::Gelu => {
                let y = times(f, x, FRAC_1_SQRT_2);
                let y = f.unary(Unary::Erf, y);
                half_of_one_and(f, y, x)
            }
            Activation::GeluTanh => {
                let y = f.binary(Binary::Mul, x, x);
                let y = times(f, y, 0.044_715);
                let y = plus(f, y, 1.0);
                let y = f.binary(Binary::Mul, y, x);
                let y = times(f, y, (2.0 / PI).sqrt());
                let y = f.unary(Unary::Tanh, y);
                half_of_one_and(f, y, x)
            }
        }
    }
}

fn times<F: Formula>(f: &mut F, x: F::V, factor: f64) -> F::V {
    if factor == 1.0 {
        return x;
    }
    let factor = f.number(x, factor);
    f.binary(Binary::Mul, x, factor)
}

fn plus<F: Formula>(f: &mut F, x: F::V, term: f64) -> F::V {
    let term = f.number(x, term);
    f.binary(Binary::Add, x, term)
}

/// `x * (0.5 * (1 + bent))`
fn half_of_one_and<F: Formula>(f: &mut F, bent: F::V, x: F::V) -> F::V {
    let y = plus(f, bent, 1.0);
    let y = times(f, y, 0.5);
    f.binary(Binary::Mul, x, y)
}

fn sigmoid<F: Formula>(f: &mut F, x: F::V) -> F::V {
    let one = f.number(x, 1.0);
    let y = f.unary(Unary::Neg, x);
    let y = f.unary(Unary::Exp, y);
    let y = f.binary(Binary::Add, y, one);
    f.binary(Binary::Div, one, y)
}

fn ramp<F: Formula>(f: &mut F, x: F::V, alpha: f64, beta: f64) -> F::V {
    let (zero, one) = (f.number(x, 0.0), f.number(x, 1.0));
    let y = times(f, x, alpha);
    let y = plus(f, y, beta);
    let y = f.binary(Binary::Max, y, zero);
    f.binary(Binary::Min, y, one)
}
