//! Control flow: `if`, `loop`, `scan`, `sequence_map`. Inner regions see the values around them.

use super::{EvalError, Evaluator, Frame, empty_of, error, take};
use crate::graph::Node;
use crate::ops::control::ScanAxes;
use crate::tensor::{Data, Tensor, Value, count, strides};
use crate::{RegionId, Type};
use std::rc::Rc;

type Values = Vec<Rc<Value>>;

impl Evaluator<'_> {
    pub(super) fn control(
        &self,
        node: &Node,
        operands: &[Option<Rc<Value>>],
        frame: &Frame,
    ) -> Result<Values, EvalError> {
        let run = Control {
            eval: self,
            node,
            operands,
            frame,
        };
        match node.op.name {
            "if" => run.branch(),
            "loop" => run.repeat(),
            "scan" => run.scan(),
            "sequence_map" => run.map(),
            other => Err(error(node, format!("`{other}` is no control-flow op"))),
        }
    }
}

struct Control<'a> {
    eval: &'a Evaluator<'a>,
    node: &'a Node,
    operands: &'a [Option<Rc<Value>>],
    frame: &'a Frame<'a>,
}

impl Control<'_> {
    fn fail(&self, reason: impl Into<String>) -> EvalError {
        error(self.node, reason.into())
    }

    fn region(&self, i: usize) -> Result<RegionId, EvalError> {
        self.node
            .regions
            .get(i)
            .copied()
            .ok_or_else(|| self.fail("a region is missing"))
    }

    /// Runs region `i`, checking how many values go in and come out.
    fn body(&self, i: usize, inputs: Values) -> Result<Values, EvalError> {
        let id = self.region(i)?;
        let wanted = self.eval.module.region(id).inputs.len();
        if wanted != inputs.len() {
            return Err(self.fail(format!(
                "its region takes {wanted} inputs, {} are given",
                inputs.len()
            )));
        }
        self.eval.region(id, inputs, Some(self.frame))
    }

    fn operand(&self, i: usize) -> Result<Rc<Value>, EvalError> {
        let value = self.operands.get(i).cloned().flatten();
        value.ok_or_else(|| self.fail(format!("operand {i} is missing")))
    }

    fn tensor<'v>(&self, value: &'v Value) -> Result<&'v Tensor, EvalError> {
        value
            .as_tensor()
            .ok_or_else(|| self.fail("a tensor is needed"))
    }

    /// The single element of an integer or bool tensor.
    fn scalar(&self, value: &Value) -> Result<i128, EvalError> {
        match self.tensor(value)?.integers() {
            Some([v]) => Ok(*v),
            _ => Err(self.fail("a tensor with one integer or bool is needed")),
        }
    }

    fn branch(&self) -> Result<Values, EvalError> {
        let taken = self.scalar(&*self.operand(0)?)? != 0;
        self.body(usize::from(!taken), vec![])
    }

    fn repeat(&self) -> Result<Values, EvalError> {
        let limit = match self.operands.first().cloned().flatten() {
            Some(m) => Some(self.scalar(&m)?),
            None => None,
        };
        let mut cond = match self.operands.get(1).cloned().flatten() {
            Some(c) => c,
            None => Rc::new(Tensor::bool(true).into()),
        };
        let n = self.operands.len().saturating_sub(2);
        let mut carried = (2..2 + n)
            .map(|i| self.operand(i))
            .collect::<Result<Values, _>>()?;
        let outputs = self.eval.module.region(self.region(0)?).outputs.clone();
        let n_scans = outputs
            .len()
            .checked_sub(1 + n)
            .ok_or_else(|| self.fail("its body yields fewer values than it carries"))?;
        let mut scans: Vec<Vec<Tensor>> = vec![vec![]; n_scans];
        let mut i = 0i128;
        while limit.is_none_or(|m| i < m) && self.scalar(&cond)? != 0 {
            let iteration = Tensor::from_int(crate::ElemType::I64, [], vec![i]);
            let mut inputs = vec![Rc::new(iteration.into()), cond];
            inputs.append(&mut carried);
            let mut out = self.body(0, inputs)?;
            for (rows, v) in scans.iter_mut().zip(out.drain(1 + n..)) {
                rows.push(self.tensor(&v)?.clone());
            }
            carried = out.split_off(1);
            cond = out.remove(0);
            i += 1;
        }
        for (k, rows) in scans.into_iter().enumerate() {
            let ty = &self.eval.module.value(outputs[1 + n + k]).ty;
            carried.push(Rc::new(self.stack(rows, 0, ty)?.into()));
        }
        Ok(carried)
    }

    fn scan(&self) -> Result<Values, EvalError> {
        let outputs = self.eval.module.region(self.region(0)?).outputs.clone();
        let axes = ScanAxes::new(self.node, outputs.len()).map_err(|e| self.fail(e.0))?;
        let states = axes.inputs.states;
        let mut carried = (0..states)
            .map(|i| self.operand(i))
            .collect::<Result<Values, _>>()?;
        let inputs = (states..self.operands.len())
            .map(|i| self.operand(i))
            .collect::<Result<Values, _>>()?;
        let mut slices = vec![];
        for (k, v) in inputs.iter().enumerate() {
            let tensor = self.tensor(v)?;
            let axis = axes
                .inputs
                .axis(k, tensor.rank())
                .map_err(|e| self.fail(e.0))?;
            slices.push((tensor, axis));
        }
        let steps = slices.first().map_or(0, |(t, axis)| t.shape()[*axis]);
        if slices.iter().any(|(t, axis)| t.shape()[*axis] != steps) {
            return Err(self.fail("scan inputs differ in length"));
        }
        let mut scans: Vec<Vec<Tensor>> = vec![vec![]; outputs.len() - states];
        for step in 0..steps {
            let mut ins = std::mem::take(&mut carried);
            for (k, (tensor, axis)) in slices.iter().enumerate() {
                let at = if axes.inputs.is_reversed(k) {
                    steps - 1 - step
                } else {
                    step
                };
                ins.push(Rc::new(pick(tensor, *axis, at).into()));
            }
            let mut out = self.body(0, ins)?;
            for (rows, v) in scans.iter_mut().zip(out.drain(states..)) {
                rows.push(self.tensor(&v)?.clone());
            }
            carried = out;
        }
        for (k, mut rows) in scans.into_iter().enumerate() {
            if axes.output_reversed(k) {
                rows.reverse();
            }
            let ty = &self.eval.module.value(outputs[states + k]).ty;
            let rank = rows
                .first()
                .map(Tensor::rank)
                .or(ty.shape().map(<[_]>::len))
                .unwrap_or(0);
            let axis = axes.output_axis(k, rank + 1).map_err(|e| self.fail(e.0))?;
            carried.push(Rc::new(self.stack(rows, axis, ty)?.into()));
        }
        Ok(carried)
    }

    fn map(&self) -> Result<Values, EvalError> {
        let first = self.operand(0)?;
        let Value::Sequence(items) = &*first else {
            return Err(self.fail("operand 0 must be a sequence"));
        };
        let outputs = self.eval.module.region(self.region(0)?).outputs.len();
        let mut out: Vec<Vec<Value>> = vec![vec![]; outputs];
        for (i, item) in items.iter().enumerate() {
            let mut inputs = vec![Rc::new(item.clone())];
            for k in 1..self.operands.len() {
                let more = self.operand(k)?;
                inputs.push(match &*more {
                    Value::Sequence(other) => {
                        let v = other.get(i).ok_or_else(|| {
                            self.fail(format!("operand {k} is shorter than operand 0"))
                        })?;
                        Rc::new(v.clone())
                    }
                    _ => more.clone(),
                });
            }
            for (list, v) in out.iter_mut().zip(self.body(0, inputs)?) {
                list.push(take(v));
            }
        }
        Ok(out
            .into_iter()
            .map(|v| Rc::new(Value::Sequence(v)))
            .collect())
    }

    /// Joins the values that iterations yielded along a new axis; `row` is the type of one of them.
    fn stack(&self, rows: Vec<Tensor>, axis: usize, row: &Type) -> Result<Tensor, EvalError> {
        match rows.first() {
            Some(_) => stack(&rows, axis).map_err(|e| self.fail(e)),
            None => {
                let Type::Tensor(mut t) = row.clone() else {
                    return Err(self.fail("a scan output must be a tensor"));
                };
                let shape = t.shape.get_or_insert_default();
                shape.insert(axis.min(shape.len()), 0usize.into());
                empty_of(&Type::Tensor(t))
                    .ok_or_else(|| self.fail("an empty scan output has no shape"))
            }
        }
    }
}

/// The slice of `tensor` at `index` of `axis`, without that axis.
fn pick(tensor: &Tensor, axis: usize, index: usize) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let n = shape.remove(axis);
    let inner = strides(tensor.shape())[axis];
    tensor.gather_linear(shape, |i| (i / inner * n + index) * inner + i % inner)
}

/// Joins equally shaped tensors along a new axis.
fn stack(rows: &[Tensor], axis: usize) -> Result<Tensor, String> {
    let (first, n) = (&rows[0], rows.len());
    if rows
        .iter()
        .any(|r| r.shape() != first.shape() || r.elem() != first.elem())
    {
        return Err("iterations yield values of different shapes".into());
    }
    let mut shape = first.shape().to_vec();
    shape.insert(axis, n);
    let inner = count(&shape[axis + 1..]).max(1);
    // Output position `i` is row `i / inner % n` at `i / (inner * n) * inner + i % inner`.
    let at = |i: usize| (i / inner % n, i / (inner * n) * inner + i % inner);
    macro_rules! join {
        ($variant:ident) => {
            Data::$variant(
                (0..count(&shape))
                    .filter_map(|i| {
                        let (row, k) = at(i);
                        match rows[row].data() {
                            Data::$variant(v) => v.get(k).cloned(),
                            _ => None,
                        }
                    })
                    .collect(),
            )
        };
    }
    let data = match first.data() {
        Data::Float(_) => join!(Float),
        Data::Int(_) => join!(Int),
        Data::Complex(_) => join!(Complex),
        Data::Str(_) => join!(Str),
    };
    Ok(Tensor::new(first.elem(), shape, data))
}
