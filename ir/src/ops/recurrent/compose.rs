//! Recurrent networks in terms of simpler ops: the product with the inputs of all steps at once, then one step
//! after the other, written out if they are few, else as a loop.

use super::{Cell, Named, activations};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::{Attr, ElemType, Tensor, Type, ValueId};

/// Most steps that are written out.
const UNROLLED: i64 = 16;

type R<T> = Result<T, OpError>;

/// What the steps of one direction share.
struct Direction<'n> {
    node: &'n Node,
    cell: Cell,
    hidden: i64,
    /// `[hidden, gates * hidden]`.
    r: ValueId,
    /// Bias of the recurrent product of GRU's candidate, where it is added before the reset gate.
    inner_bias: Option<ValueId>,
    /// Peepholes, `[3 * hidden]`.
    p: Option<ValueId>,
    acts: Vec<Named>,
    /// Lengths of the sequences, `[batch, 1]`.
    lens: Option<ValueId>,
}

/// What a step leaves: the new state, and the step's output.
struct Step {
    h: ValueId,
    c: Option<ValueId>,
    y: ValueId,
}

/// Operands as in the op, results `y`, `y_h` and for LSTM `y_c`.
pub fn decompose(b: &mut Builder, node: &Node, cell: Cell) -> R<Vec<ValueId>> {
    let batch_first = node.flag("layout");
    let swap = |b: &mut Builder, v: ValueId| if batch_first { b.transpose(v, &[1, 0, 2]) } else { Ok(v) };
    let x = node.need(0)?;
    let x = swap(b, x)?;
    let hidden = b.shape(node.need(2)?)?.get(2).and_then(|d| d.as_const());
    let hidden = hidden.ok_or_else(|| OpError::new("the number of units must be known"))?;
    let reverse: &[bool] = match node.text("direction").as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(OpError::new(format!("attribute `direction` must not be `{other}`"))),
    };
    let (mut ys, mut hs, mut cs) = (vec![], vec![], vec![]);
    for (d, &backwards) in reverse.iter().enumerate() {
        let state = |b: &mut Builder, i: usize| -> R<ValueId> {
            match node.operand(i) {
                Some(s) => {
                    let s = swap(b, s)?;
                    pick(b, s, d)
                }
                None => {
                    let elem = b.elem(x)?;
                    b.filled(elem, 0.0, &[Len::Of(x, 1), Len::N(hidden)])
                }
            }
        };
        let h = state(b, 5)?;
        let c = if cell == Cell::Lstm { Some(state(b, 6)?) } else { None };
        let (y, h, c) = direction(b, node, cell, hidden, x, d, backwards, (h, c))?;
        ys.push(b.unsqueeze(y, &[1])?);
        hs.push(b.unsqueeze(h, &[0])?);
        if let Some(c) = c {
            cs.push(b.unsqueeze(c, &[0])?);
        }
    }
    let y = b.concat(&ys, 1)?;
    let y = if batch_first { b.transpose(y, &[2, 0, 1, 3])? } else { y };
    let h = b.concat(&hs, 0)?;
    let mut out = vec![y, swap(b, h)?];
    if cell == Cell::Lstm {
        let c = b.concat(&cs, 0)?;
        out.push(swap(b, c)?);
    }
    out.truncate(node.results.len());
    Ok(out)
}

/// Part `i` along the first axis, without that axis.
fn pick(b: &mut Builder, v: ValueId, i: usize) -> R<ValueId> {
    let i = b.constant(&Tensor::int(i as i64));
    b.op_with("gather", &[v, i], [("axis", 0i64.into())])
}

/// Outputs of all steps `[steps, batch, hidden]`, and the last state.
#[allow(clippy::too_many_arguments, reason = "called once")]
fn direction(
    b: &mut Builder,
    node: &Node,
    cell: Cell,
    hidden: i64,
    x: ValueId,
    d: usize,
    backwards: bool,
    (h, c): (ValueId, Option<ValueId>),
) -> R<(ValueId, ValueId, Option<ValueId>)> {
    let weights = |b: &mut Builder, i: usize| -> R<ValueId> {
        let w = pick(b, node.need(i)?, d)?;
        b.swap_last(w)
    };
    let (w, r) = (weights(b, 1)?, weights(b, 2)?);
    let rows = cell.gates() as i64 * hidden;
    let lens = match node.operand(4) {
        Some(lens) => Some(b.cast(lens, ElemType::I64)?),
        None => None,
    };
    let turn = |b: &mut Builder, v: ValueId| match lens {
        _ if !backwards => Ok(v),
        Some(lens) => {
            let attrs = [("time_axis", Attr::Int(0)), ("batch_axis", Attr::Int(1))];
            b.op_with("reverse_sequence", &[v, lens], attrs)
        }
        None => b.slice_step(v, 0, -1, i64::MIN, -1),
    };
    let x = turn(b, x)?;
    let mut xw = b.op("matmul", &[x, w])?;
    let mut inner_bias = None;
    if let Some(bias) = node.operand(3) {
        let bias = pick(b, bias, d)?;
        let of_x = b.slice(bias, 0, 0, rows)?;
        let mut of_h = b.slice(bias, 0, rows, 2 * rows)?;
        if cell == Cell::Gru && node.flag("linear_before_reset") {
            inner_bias = Some(b.slice(of_h, 0, 2 * hidden, 3 * hidden)?);
            let gates = b.slice(of_h, 0, 0, 2 * hidden)?;
            let elem = b.elem(gates)?;
            let none = b.filled(elem, 0.0, &[Len::N(hidden)])?;
            of_h = b.concat(&[gates, none], 0)?;
        }
        let bias = b.op("add", &[of_x, of_h])?;
        xw = b.op("add", &[xw, bias])?;
    }
    let run = Direction {
        node,
        cell,
        hidden,
        r,
        inner_bias,
        p: node.operand(7).map(|p| pick(b, p, d)).transpose()?,
        acts: activations(node, cell, d)?,
        lens: lens.map(|l| b.unsqueeze(l, &[1])).transpose()?,
    };
    let steps = b.shape(xw)?[0].as_const();
    let (y, h, c) = match steps {
        Some(n @ 1..=UNROLLED) => run.unrolled(b, n, xw, h, c)?,
        _ => run.looped(b, xw, h, c)?,
    };
    Ok((turn(b, y)?, h, c))
}

impl Direction<'_> {
    fn unrolled(&self, b: &mut Builder, steps: i64, xw: ValueId, h: ValueId, c: Option<ValueId>) -> R<(ValueId, ValueId, Option<ValueId>)> {
        let (mut h, mut c, mut ys) = (h, c, vec![]);
        for t in 0..steps {
            let x = pick(b, xw, t as usize)?;
            let now = b.constant(&Tensor::int(t));
            let step = self.step(b, x, now, h, c)?;
            ys.push(b.unsqueeze(step.y, &[0])?);
            (h, c) = (step.h, step.c);
        }
        Ok((b.concat(&ys, 0)?, h, c))
    }

    fn looped(&self, b: &mut Builder, xw: ValueId, h: ValueId, c: Option<ValueId>) -> R<(ValueId, ValueId, Option<ValueId>)> {
        let trips = b.lens(&[Len::Of(xw, 0)])?;
        let trips = b.squeeze(trips, &[0])?;
        let on = b.constant(&Tensor::bool(true));
        let region = b.module.add_region();
        let none: [i64; 0] = [];
        let now = b.module.add_input(region, "step", Type::tensor(ElemType::I64, none));
        let go = b.module.add_input(region, "go", Type::tensor(ElemType::Bool, none));
        let state: Vec<ValueId> = [Some(h), c].into_iter().flatten().collect();
        let mut inner = vec![];
        for (&v, name) in state.iter().zip(["h", "c"]) {
            let ty = b.ty(v).clone();
            inner.push(b.module.add_input(region, name, ty));
        }
        let mut body = b.inside(region);
        let x = body.op_with("gather", &[xw, now], [("axis", 0i64.into())])?;
        let step = self.step(&mut body, x, now, inner[0], inner.get(1).copied())?;
        let mut outputs = vec![go, step.h];
        outputs.extend(step.c);
        outputs.push(step.y);
        let mut types: Vec<Type> = state.iter().map(|&v| b.ty(v).clone()).collect();
        let mut scanned = vec![b.shape(xw)?[0].clone()];
        scanned.extend(b.shape(step.y)?);
        types.push(Type::tensor(b.elem(step.y)?, scanned));
        b.module.region_mut(region).outputs = outputs;
        let mut operands = vec![Some(trips), Some(on)];
        operands.extend(state.iter().map(|&v| Some(v)));
        let results = b.control("loop", operands, vec![region], types)?;
        let y = results[state.len()];
        Ok((y, results[0], c.map(|_| results[1])))
    }

    /// One step at time `now` from `x`, the product with the inputs.
    fn step(&self, b: &mut Builder, x: ValueId, now: ValueId, h: ValueId, c: Option<ValueId>) -> R<Step> {
        let (new_h, new_c) = match self.cell {
            Cell::Rnn => {
                let back = b.op("matmul", &[h, self.r])?;
                let sum = b.op("add", &[x, back])?;
                (self.act(b, 0, sum)?, None)
            }
            Cell::Gru => (self.gru(b, x, h)?, None),
            Cell::Lstm => {
                let c = c.ok_or_else(|| OpError::new("a cell state is needed"))?;
                let (h, c) = self.lstm(b, x, h, c)?;
                (h, Some(c))
            }
        };
        let Some(lens) = self.lens else {
            return Ok(Step { h: new_h, c: new_c, y: new_h });
        };
        // Sequences that have ended keep their state and give zeros.
        let on = b.op("less", &[now, lens])?;
        let zero = b.lit(new_h, 0.0)?;
        let y = b.op("where", &[on, new_h, zero])?;
        let h = b.op("where", &[on, new_h, h])?;
        let c = match (new_c, c) {
            (Some(new), Some(old)) => Some(b.op("where", &[on, new, old])?),
            _ => None,
        };
        Ok(Step { h, c, y })
    }

    /// Columns of gate `g`.
    fn gate(&self, b: &mut Builder, v: ValueId, g: i64) -> R<ValueId> {
        b.slice(v, 1, g * self.hidden, (g + 1) * self.hidden)
    }

    fn gru(&self, b: &mut Builder, x: ValueId, h: ValueId) -> R<ValueId> {
        let n = self.hidden;
        let of_gates = b.slice(self.r, 1, 0, 2 * n)?;
        let of_candidate = b.slice(self.r, 1, 2 * n, 3 * n)?;
        let back = b.op("matmul", &[h, of_gates])?;
        let x_gates = b.slice(x, 1, 0, 2 * n)?;
        let gates = b.op("add", &[x_gates, back])?;
        let gates = self.act(b, 0, gates)?;
        let (z, r) = (self.gate(b, gates, 0)?, self.gate(b, gates, 1)?);
        let back = if self.node.flag("linear_before_reset") {
            let mut back = b.op("matmul", &[h, of_candidate])?;
            if let Some(bias) = self.inner_bias {
                back = b.op("add", &[back, bias])?;
            }
            b.op("mul", &[r, back])?
        } else {
            let reset = b.op("mul", &[h, r])?;
            b.op("matmul", &[reset, of_candidate])?
        };
        let candidate = self.gate(b, x, 2)?;
        let candidate = b.op("add", &[candidate, back])?;
        let candidate = self.act(b, 1, candidate)?;
        let one = b.lit(z, 1.0)?;
        let rest = b.op("sub", &[one, z])?;
        let new = b.op("mul", &[rest, candidate])?;
        let old = b.op("mul", &[z, h])?;
        b.op("add", &[new, old])
    }

    fn lstm(&self, b: &mut Builder, x: ValueId, h: ValueId, c: ValueId) -> R<(ValueId, ValueId)> {
        let back = b.op("matmul", &[h, self.r])?;
        let gates = b.op("add", &[x, back])?;
        // In the order of the weights: input, output, forget, cell.
        let peep = |b: &mut Builder, g: i64, c: ValueId| -> R<ValueId> {
            let v = self.gate(b, gates, g)?;
            let Some(p) = self.p else { return Ok(v) };
            let p = b.slice(p, 0, g * self.hidden, (g + 1) * self.hidden)?;
            let seen = b.op("mul", &[p, c])?;
            b.op("add", &[v, seen])
        };
        let i = peep(b, 0, c)?;
        let i = self.act(b, 0, i)?;
        let forget = if self.node.flag("input_forget") {
            let one = b.lit(i, 1.0)?;
            b.op("sub", &[one, i])?
        } else {
            let f = peep(b, 2, c)?;
            self.act(b, 0, f)?
        };
        let cell = self.gate(b, gates, 3)?;
        let cell = self.act(b, 1, cell)?;
        let (kept, added) = (b.op("mul", &[forget, c])?, b.op("mul", &[i, cell])?);
        let c = b.op("add", &[kept, added])?;
        let o = peep(b, 1, c)?;
        let o = self.act(b, 0, o)?;
        let shown = self.named(b, 2, c)?;
        Ok((b.op("mul", &[o, shown])?, c))
    }

    /// Activation `i` of its clipped argument.
    fn act(&self, b: &mut Builder, i: usize, mut x: ValueId) -> R<ValueId> {
        if let Some(clip) = self.node.float("clip").filter(|&c| c > 0.0) {
            let (low, high) = (b.lit(x, -clip)?, b.lit(x, clip)?);
            x = b.op("clip", &[x, low, high])?;
        }
        self.named(b, i, x)
    }

    fn named(&self, b: &mut Builder, i: usize, x: ValueId) -> R<ValueId> {
        let (name, alpha, beta) = &self.acts[i];
        let alpha = |default: f32| alpha.unwrap_or(default);
        let beta = |default: f32| beta.unwrap_or(default);
        match name.to_ascii_lowercase().as_str() {
            plain @ ("sigmoid" | "tanh" | "relu" | "softsign" | "softplus") => b.op(plain, &[x]),
            "leakyrelu" => b.op_with("leaky_relu", &[x], [("alpha", alpha(0.01).into())]),
            "thresholdedrelu" => b.op_with("thresholded_relu", &[x], [("alpha", alpha(1.0).into())]),
            "elu" => b.op_with("elu", &[x], [("alpha", alpha(1.0).into())]),
            "hardsigmoid" => b.op_with("hard_sigmoid", &[x], [("alpha", alpha(0.2).into()), ("beta", beta(0.5).into())]),
            "affine" => {
                let (a, c) = (b.lit(x, alpha(1.0).into())?, b.lit(x, beta(0.0).into())?);
                let y = b.op("mul", &[x, a])?;
                b.op("add", &[y, c])
            }
            "scaledtanh" => {
                let (a, c) = (b.lit(x, alpha(1.0).into())?, b.lit(x, beta(1.0).into())?);
                let y = b.op("mul", &[x, c])?;
                let y = b.op("tanh", &[y])?;
                b.op("mul", &[y, a])
            }
            _ => Err(OpError::new(format!("activation `{name}` is not known"))),
        }
    }
}
