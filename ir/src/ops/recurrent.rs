//! Recurrent networks: LSTM, GRU and the plain RNN.

use super::linear::checked_count;
use super::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::graph::Node;
use crate::tensor::{Tensor, Value};
use crate::{Dim, Type};

mod compose;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&LSTM, &GRU, &RNN];

const ACTIVATIONS: AttrDef =
    AttrDef::new("activations", AttrKind::Strs, Default::Absent, "activations per direction, in the order f g h");
const ALPHA: AttrDef = AttrDef::new("activation_alpha", AttrKind::Floats, Default::Absent, "first parameters of the activations");
const BETA: AttrDef = AttrDef::new("activation_beta", AttrKind::Floats, Default::Absent, "second parameters of the activations");
const CLIP: AttrDef = AttrDef::new("clip", AttrKind::Float, Default::Absent, "bound of the activations' inputs");
const DIRECTION: AttrDef =
    AttrDef::new("direction", AttrKind::Str, Default::Str("forward"), "forward, reverse or bidirectional");
const HIDDEN: AttrDef = AttrDef::new("hidden_size", AttrKind::Int, Default::Absent, "units; those of `r`");
const LAYOUT: AttrDef = AttrDef::new("layout", AttrKind::Int, Default::Int(0), "1: the batch is the first axis");

/// Long short-term memory.
pub static LSTM: OpDef = OpDef {
    name: "lstm",
    summary: "long short-term memory with optional peepholes",
    source: "ONNX LSTM-22",
    operands: &[
        Operand::One("x"),
        Operand::One("w"),
        Operand::One("r"),
        Operand::Optional("b"),
        Operand::Optional("sequence_lens"),
        Operand::Optional("initial_h"),
        Operand::Optional("initial_c"),
        Operand::Optional("p"),
    ],
    results: &[Operand::Optional("y"), Operand::Optional("y_h"), Operand::Optional("y_c")],
    attrs: &[
        ALPHA,
        BETA,
        ACTIVATIONS,
        CLIP,
        DIRECTION,
        HIDDEN,
        AttrDef::new("input_forget", AttrKind::Int, Default::Int(0), "the forget gate is 1 - the input gate"),
        LAYOUT,
    ],
    infer: |ctx| infer(ctx, 4),
    eval: Eval::Direct(|ctx| eval(ctx, Cell::Lstm)),
    decompose: Some(|b, node| compose::decompose(b, node, Cell::Lstm)),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Gated recurrent unit.
pub static GRU: OpDef = OpDef {
    name: "gru",
    summary: "gated recurrent unit",
    source: "ONNX GRU-22",
    operands: &[
        Operand::One("x"),
        Operand::One("w"),
        Operand::One("r"),
        Operand::Optional("b"),
        Operand::Optional("sequence_lens"),
        Operand::Optional("initial_h"),
    ],
    results: &[Operand::Optional("y"), Operand::Optional("y_h")],
    attrs: &[
        ALPHA,
        BETA,
        ACTIVATIONS,
        CLIP,
        DIRECTION,
        HIDDEN,
        LAYOUT,
        AttrDef::new("linear_before_reset", AttrKind::Int, Default::Int(0), "the reset gate comes after the product"),
    ],
    infer: |ctx| infer(ctx, 3),
    eval: Eval::Direct(|ctx| eval(ctx, Cell::Gru)),
    decompose: Some(|b, node| compose::decompose(b, node, Cell::Gru)),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Plain recurrent network.
pub static RNN: OpDef = OpDef {
    name: "rnn",
    summary: "h = f(x w' + h r' + b)",
    source: "ONNX RNN-22",
    operands: &[
        Operand::One("x"),
        Operand::One("w"),
        Operand::One("r"),
        Operand::Optional("b"),
        Operand::Optional("sequence_lens"),
        Operand::Optional("initial_h"),
    ],
    results: &[Operand::Optional("y"), Operand::Optional("y_h")],
    attrs: &[ALPHA, BETA, ACTIVATIONS, CLIP, DIRECTION, HIDDEN, LAYOUT],
    infer: |ctx| infer(ctx, 1),
    eval: Eval::Direct(|ctx| eval(ctx, Cell::Rnn)),
    decompose: Some(|b, node| compose::decompose(b, node, Cell::Rnn)),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Lstm,
    Gru,
    Rnn,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru => 3,
            Cell::Rnn => 1,
        }
    }

    fn activations(self) -> &'static [&'static str] {
        match self {
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Rnn => &["Tanh"],
        }
    }
}

fn infer(ctx: &InferCtx, gates: i64) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let directions = match ctx.str("direction").as_str() {
        "forward" | "reverse" => 1i64,
        "bidirectional" => 2,
        other => return Err(OpError::new(format!("attribute `direction` must not be `{other}`"))),
    };
    let batch_first = ctx.flag("layout");
    let (first, second) = match ctx.shape(0)? {
        Some([a, b, _]) => (a.clone(), b.clone()),
        Some(_) => return Err(OpError::new("operand 0 must have rank 3")),
        None => (ctx.fresh_dim(), ctx.fresh_dim()),
    };
    let hidden = match (ctx.shape(2)?, ctx.int_opt("hidden_size")) {
        (Some([_, g, h]), _) => {
            if let (Some(g), Some(h)) = (g.as_const(), h.as_const())
                && h.checked_mul(gates) != Some(g)
            {
                return Err(OpError::new(format!("recurrent weights of {g} rows do not fit {h} units")));
            }
            h.clone()
        }
        (Some(_), _) => return Err(OpError::new("operand 2 must have rank 3")),
        (None, Some(h)) => Dim::from(h),
        (None, None) => ctx.fresh_dim(),
    };
    let d = Dim::from(directions);
    let (y, last) = if batch_first {
        ([first.clone(), second, d.clone(), hidden.clone()], [first, d, hidden])
    } else {
        ([first, d.clone(), second.clone(), hidden.clone()], [d, second, hidden])
    };
    let mut out = vec![Type::tensor(elem, y), Type::tensor(elem, last.clone())];
    if gates == 4 {
        out.push(Type::tensor(elem, last));
    }
    Ok(out)
}

type Activation = Box<dyn Fn(f64) -> f64>;
/// An activation's name and its parameters, where given.
type Named = (String, Option<f32>, Option<f32>);

/// An activation by name with its parameters or their defaults.
fn activation(name: &str, alpha: Option<f32>, beta: Option<f32>) -> Result<Activation, OpError> {
    let a = |default: f64| alpha.map_or(default, f64::from);
    let b = |default: f64| beta.map_or(default, f64::from);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    Ok(match name.to_ascii_lowercase().as_str() {
        "sigmoid" => Box::new(sigmoid),
        "tanh" => Box::new(f64::tanh),
        "relu" => Box::new(|x| x.max(0.0)),
        "softsign" => Box::new(|x| x / (1.0 + x.abs())),
        "softplus" => Box::new(|x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        "affine" => {
            let (a, b) = (a(1.0), b(0.0));
            Box::new(move |x| a * x + b)
        }
        "leakyrelu" => {
            let a = a(0.01);
            Box::new(move |x| if x < 0.0 { a * x } else { x })
        }
        "thresholdedrelu" => {
            let a = a(1.0);
            Box::new(move |x| if x > a { x } else { 0.0 })
        }
        "scaledtanh" => {
            let (a, b) = (a(1.0), b(1.0));
            Box::new(move |x| a * (b * x).tanh())
        }
        "hardsigmoid" => {
            let (a, b) = (a(0.2), b(0.5));
            Box::new(move |x| (a * x + b).clamp(0.0, 1.0))
        }
        "elu" => {
            let a = a(1.0);
            Box::new(move |x| if x < 0.0 { a * x.exp_m1() } else { x })
        }
        _ => return Err(OpError::new(format!("activation `{name}` is not known"))),
    })
}

/// Name and parameters of the activations of one direction.
fn activations(node: &Node, cell: Cell, direction: usize) -> Result<Vec<Named>, OpError> {
    let per = cell.activations().len();
    let names = node.texts("activations").filter(|n| !n.is_empty());
    let (alphas, betas) = (node.floats("activation_alpha").unwrap_or_default(), node.floats("activation_beta").unwrap_or_default());
    // Parameters are listed only for activations that take them, over all directions in order.
    let (mut next_alpha, mut next_beta) = (alphas.iter().copied(), betas.iter().copied());
    let mut out = vec![];
    for i in 0..(direction + 1) * per {
        let name = match &names {
            Some(names) => names.get(i).map(String::as_str).ok_or_else(|| OpError::new("attribute `activations` is too short"))?,
            None => cell.activations()[i % per],
        };
        let lower = name.to_ascii_lowercase();
        let takes_alpha = matches!(lower.as_str(), "affine" | "leakyrelu" | "thresholdedrelu" | "scaledtanh" | "hardsigmoid" | "elu");
        let takes_beta = matches!(lower.as_str(), "affine" | "scaledtanh" | "hardsigmoid");
        let alpha = if takes_alpha { next_alpha.next() } else { None };
        let beta = if takes_beta { next_beta.next() } else { None };
        if i >= direction * per {
            out.push((name.to_owned(), alpha, beta));
        }
    }
    Ok(out)
}

struct Run<'a> {
    cell: Cell,
    hidden: usize,
    /// `[gates * hidden, input]`, `[gates * hidden, hidden]`.
    w: &'a [f64],
    r: &'a [f64],
    /// Biases of the input and the recurrent product.
    wb: Vec<f64>,
    rb: Vec<f64>,
    /// Peepholes `i o f`.
    p: Option<&'a [f64]>,
    clip: Option<f64>,
    linear_before_reset: bool,
    input_forget: bool,
    acts: Vec<Activation>,
}

impl Run<'_> {
    fn clip(&self, v: f64) -> f64 {
        self.clip.map_or(v, |c| v.clamp(-c, c))
    }

    /// `x w' + bias` of gate `g`, unit `u`.
    fn product(weights: &[f64], bias: &[f64], row: usize, x: &[f64]) -> f64 {
        let n = x.len();
        bias[row] + weights[row * n..][..n].iter().zip(x).map(|(a, b)| a * b).sum::<f64>()
    }

    /// One step for one sequence: new `h`, and new `c` for LSTM.
    fn step(&self, x: &[f64], h: &[f64], c: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = self.hidden;
        let from_x = |g: usize, u: usize| Self::product(self.w, &self.wb, g * n + u, x);
        let from_h = |g: usize, u: usize, h: &[f64]| Self::product(self.r, &self.rb, g * n + u, h);
        let f = |i: usize, v: f64| (self.acts[i])(self.clip(v));
        match self.cell {
            Cell::Rnn => ((0..n).map(|u| f(0, from_x(0, u) + from_h(0, u, h))).collect(), vec![]),
            Cell::Gru => {
                let z: Vec<f64> = (0..n).map(|u| f(0, from_x(0, u) + from_h(0, u, h))).collect();
                let r: Vec<f64> = (0..n).map(|u| f(0, from_x(1, u) + from_h(1, u, h))).collect();
                let reset: Vec<f64> = h.iter().zip(&r).map(|(h, r)| h * r).collect();
                let candidate = |u: usize| {
                    let back = if self.linear_before_reset { r[u] * from_h(2, u, h) } else { from_h(2, u, &reset) };
                    f(1, from_x(2, u) + back)
                };
                ((0..n).map(|u| (1.0 - z[u]) * candidate(u) + z[u] * h[u]).collect(), vec![])
            }
            Cell::Lstm => {
                let peep = |g: usize, u: usize, c: &[f64]| self.p.map_or(0.0, |p| p[g * n + u] * c[u]);
                let gate = |g: usize, u: usize| from_x(g, u) + from_h(g, u, h);
                let new_c: Vec<f64> = (0..n)
                    .map(|u| {
                        let i = f(0, gate(0, u) + peep(0, u, c));
                        let forget = if self.input_forget { 1.0 - i } else { f(0, gate(2, u) + peep(2, u, c)) };
                        forget * c[u] + i * f(1, gate(3, u))
                    })
                    .collect();
                let new_h = (0..n).map(|u| f(0, gate(1, u) + peep(1, u, &new_c)) * (self.acts[2])(new_c[u])).collect();
                (new_h, new_c)
            }
        }
    }
}

fn eval(ctx: &EvalCtx, cell: Cell) -> Result<Vec<Value>, OpError> {
    let (x, w, r) = (ctx.tensor(0)?, ctx.tensor(1)?, ctx.tensor(2)?);
    let batch_first = ctx.flag("layout");
    let (&[first, second, input], &[directions, rows, w_input], &[r_directions, r_rows, hidden]) = (x.shape(), w.shape(), r.shape()) else {
        return Err(OpError::new("the input and the weights must have rank 3"));
    };
    let (steps, batch) = if batch_first { (second, first) } else { (first, second) };
    let gates = cell.gates();
    let reverse: &[bool] = match ctx.str("direction").as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(OpError::new(format!("attribute `direction` must not be `{other}`"))),
    };
    if rows != gates * hidden || r_rows != rows || w_input != input || directions != reverse.len() || r_directions != directions {
        return Err(OpError::new(format!("weights {:?} and {:?} do not fit an input {:?}", w.shape(), r.shape(), x.shape())));
    }
    let optional = |i: usize, len: usize| -> Result<Option<&[f64]>, OpError> {
        match ctx.tensor_opt(i) {
            Some(t) if t.len() == len => Ok(t.floats()),
            Some(t) => Err(OpError::new(format!("operand {i} has shape {:?}, {len} elements are needed", t.shape()))),
            None => Ok(None),
        }
    };
    let state = directions * batch * hidden;
    let (bias, h0) = (optional(3, directions * 2 * rows)?, optional(5, state)?);
    let (c0, peep) = match cell {
        Cell::Lstm => (optional(6, state)?, optional(7, directions * 3 * hidden)?),
        _ => (None, None),
    };
    let lens: Vec<usize> = match ctx.has(4) {
        true => ctx.i64s(4)?.iter().map(|&l| usize::try_from(l).unwrap_or(0).min(steps)).collect(),
        false => vec![steps; batch],
    };
    let (Some(xs), Some(ws), Some(rs)) = (x.floats(), w.floats(), r.floats()) else {
        return Err(OpError::new(format!("is not defined for {}", x.elem())));
    };
    if lens.len() != batch {
        return Err(OpError::new("there must be a length per sequence"));
    }
    let state_at = |d: usize, i: usize| if batch_first { i * directions + d } else { d * batch + i } * hidden;
    let y_at = |t: usize, d: usize, i: usize| {
        if batch_first { (i * steps + t) * directions + d } else { (t * directions + d) * batch + i }
    };
    let mut y = vec![0.0; checked_count(&[steps, state])?];
    let (mut last_h, mut last_c) = (vec![0.0; state], vec![0.0; state]);
    for (d, &backwards) in reverse.iter().enumerate() {
        let half = |part: usize| bias.map_or_else(|| vec![0.0; rows], |b| b[(2 * d + part) * rows..][..rows].to_vec());
        let run = Run {
            cell,
            hidden,
            w: &ws[d * rows * input..][..rows * input],
            r: &rs[d * rows * hidden..][..rows * hidden],
            wb: half(0),
            rb: half(1),
            p: peep.map(|p| &p[d * 3 * hidden..][..3 * hidden]),
            clip: ctx.float("clip").map(f64::from).filter(|&c| c > 0.0),
            linear_before_reset: ctx.flag("linear_before_reset"),
            input_forget: ctx.flag("input_forget"),
            acts: activations(ctx.node, cell, d)?.iter().map(|(n, a, b)| activation(n, *a, *b)).collect::<Result<_, _>>()?,
        };
        for i in 0..batch {
            let start = |s: Option<&[f64]>| s.map_or_else(|| vec![0.0; hidden], |s| s[state_at(d, i)..][..hidden].to_vec());
            let (mut h, mut c) = (start(h0), start(c0));
            for step in 0..lens[i] {
                let t = if backwards { lens[i] - 1 - step } else { step };
                let at = if batch_first { i * steps + t } else { t * batch + i } * input;
                (h, c) = run.step(&xs[at..][..input], &h, &c);
                y[y_at(t, d, i) * hidden..][..hidden].copy_from_slice(&h);
            }
            last_h[state_at(d, i)..][..hidden].copy_from_slice(&h);
            if cell == Cell::Lstm {
                last_c[state_at(d, i)..][..hidden].copy_from_slice(&c);
            }
        }
    }
    let (y_shape, s_shape) = if batch_first {
        ([batch, steps, directions, hidden], [batch, directions, hidden])
    } else {
        ([steps, directions, batch, hidden], [directions, batch, hidden])
    };
    let mut out: Vec<Value> =
        vec![Tensor::from_f64(x.elem(), y_shape, y).into(), Tensor::from_f64(x.elem(), s_shape, last_h).into()];
    if cell == Cell::Lstm {
        out.push(Tensor::from_f64(x.elem(), s_shape, last_c).into());
    }
    Ok(out)
}
