//! Activations that are common enough to be one node of an expression; the others decompose.
//! Formulas are those of the evaluator, computed in `f32` at least and rounded once.

use super::expr::{Body, E};
use super::index::Pos;
use super::{Element, Rule};
use crate::schedules::activation::{Activation, Formula};
use lapidary_ir::graph::Node;
use lapidary_ir::kernel::{Binary, Unary};
use lapidary_ir::ops::OpError;

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::pointwise("relu", |x, p| {
        let a = x.at(0, p)?;
        let b = x.b();
        let zero = b.int(b.ty(a), 0);
        Ok(b.binary(Binary::Max, a, zero))
    }),
    Rule::pointwise("leaky_relu", |x, p| {
        let alpha = param(x, "alpha")?;
        of(x, p, Activation::LeakyRelu(alpha))
    }),
    Rule::pointwise("sigmoid", |x, p| of(x, p, Activation::Sigmoid)),
    Rule::pointwise("swish", |x, p| {
        let alpha = param(x, "alpha")?;
        of(x, p, Activation::Swish(alpha))
    }),
    Rule::pointwise("hard_sigmoid", |x, p| {
        let (alpha, beta) = (param(x, "alpha")?, param(x, "beta")?);
        of(x, p, Activation::HardSigmoid(alpha, beta))
    }),
    Rule::pointwise("hard_swish", |x, p| of(x, p, Activation::HardSwish)),
    Rule::pointwise("gelu", |x, p| match x.text("approximate").as_str() {
        "none" => of(x, p, Activation::Gelu),
        "tanh" => of(x, p, Activation::GeluTanh),
        other => Err(OpError::new(format!("`approximate` is `{other}`"))),
    }),
];

fn param(x: &Element, name: &str) -> Result<f32, OpError> {
    let value = x.float(name).map(|v| v as f32);
    value.ok_or_else(|| OpError::new(format!("attribute `{name}` is missing")))
}

fn of(x: &mut Element, p: &Pos, activation: Activation) -> Result<E, OpError> {
    let a = x.at(0, p)?;
    Ok(activation.apply(x.b(), a))
}

impl Formula for Body {
    type V = E;
    fn number(&mut self, like: E, value: f64) -> E {
        let ty = self.ty(like);
        self.float(ty, value)
    }
    fn unary(&mut self, f: Unary, x: E) -> E {
        Body::unary(self, f, x)
    }
    fn binary(&mut self, f: Binary, a: E, b: E) -> E {
        Body::binary(self, f, a, b)
    }
    fn select(&mut self, c: E, a: E, b: E) -> E {
        Body::select(self, c, a, b)
    }
}

/// What a fused op's `activation` attribute says: a clamp, a function, or neither.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fused {
    /// Lower bound.
    pub lo: Option<f32>,
    /// Upper bound.
    pub hi: Option<f32>,
    /// A function that is no clamp.
    pub activation: Option<Activation>,
}

impl Fused {
    /// Reads the attributes; `None` if the name is not known.
    pub fn of(node: &Node) -> Option<Fused> {
        let params = node.floats("activation_params").unwrap_or_default();
        let param = |i: usize, default: f32| params.get(i).copied().unwrap_or(default);
        let mut fused = Fused::default();
        fused.activation = Some(match node.text("activation").as_str() {
            "" => return Some(fused),
            "Relu" => {
                fused.lo = Some(0.0);
                return Some(fused);
            }
            "Clip" => {
                (fused.lo, fused.hi) = (Some(param(0, f32::MIN)), Some(param(1, f32::MAX)));
                return Some(fused);
            }
            "Tanh" => Activation::Tanh,
            "Sigmoid" => Activation::Sigmoid,
            "LeakyRelu" => Activation::LeakyRelu(param(0, 0.01)),
            "HardSigmoid" => Activation::HardSigmoid(param(0, 0.2), param(1, 0.5)),
            "HardSwish" => Activation::HardSwish,
            "Swish" => Activation::Swish(param(0, 1.0)),
            "Gelu" => Activation::Gelu,
            "GeluTanh" => Activation::GeluTanh,
            _ => return None,
        });
        Some(fused)
    }
}

/// The activation that a fused op names, of `y`.
pub fn activated(x: &mut Element, mut y: E) -> Result<E, OpError> {
    let fused = Fused::of(x.n()).ok_or_else(|| {
        OpError::new(format!(
            "activation `{}` is not known",
            x.text("activation")
        ))
    })?;
    let b = x.b();
    for (bound, f) in [(fused.lo, Binary::Max), (fused.hi, Binary::Min)] {
        if let Some(bound) = bound {
            let bound = b.number(y, f64::from(bound));
            y = Body::binary(b, f, y, bound);
        }
    }
    Ok(match fused.activation {
        Some(activation) => activation.apply(b, y),
        None => y,
    })
}
