//! Writing decompositions: short names for the ops that nearly every one of them uses.

use super::OpError;
use crate::builder::Builder;
use crate::graph::Node;
use crate::{Attr, ElemType, Tensor, ValueId};

/// One dimension of a shape that is made at run time if it has to be.
#[derive(Clone, Copy, Debug)]
pub enum Len {
    /// This number; -1 is what remains, as in `reshape`.
    N(i64),
    /// The length of the value's axis.
    Of(ValueId, usize),
}

impl Builder<'_> {
    /// A 0-D constant of the element type of `like`.
    pub fn lit(&mut self, like: ValueId, value: f64) -> Result<ValueId, OpError> {
        let elem = self.elem(like)?;
        Ok(self.scalar(elem, value))
    }

    /// `x` with this element type.
    pub fn cast(&mut self, x: ValueId, to: ElemType) -> Result<ValueId, OpError> {
        if self.elem(x)? == to {
            return Ok(x);
        }
        self.op_with("cast", &[x], [("to", to.into())])
    }

    /// `x` with its axes in this order.
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Result<ValueId, OpError> {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(x);
        }
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.op_with("transpose", &[x], [("perm", perm.into())])
    }

    /// `x` with its last two axes exchanged.
    pub fn swap_last(&mut self, x: ValueId) -> Result<ValueId, OpError> {
        let rank = self.shape(x)?.len();
        if rank < 2 {
            return Err(OpError::new("a matrix is needed"));
        }
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(x, &perm)
    }

    /// A 1-D `i64` tensor of these lengths; a constant if all are known.
    pub fn lens(&mut self, lens: &[Len]) -> Result<ValueId, OpError> {
        let mut parts: Vec<Result<i64, (ValueId, usize)>> = Vec::with_capacity(lens.len());
        for len in lens {
            parts.push(match *len {
                Len::N(n) => Ok(n),
                Len::Of(v, axis) => {
                    let shape = self.shape(v)?;
                    let dim = shape
                        .get(axis)
                        .ok_or_else(|| OpError::new(format!("axis {axis} is out of range")))?;
                    dim.as_const().ok_or((v, axis))
                }
            });
        }
        if let Ok(known) = parts.iter().copied().collect::<Result<Vec<i64>, _>>() {
            return Ok(self.ints(&known));
        }
        let mut values = Vec::with_capacity(parts.len());
        for part in parts {
            values.push(match part {
                Ok(n) => self.ints(&[n]),
                Err((v, axis)) => {
                    let (start, end) = (axis as i64, axis as i64 + 1);
                    self.op_with(
                        "shape",
                        &[v],
                        [("start", start.into()), ("end", end.into())],
                    )?
                }
            });
        }
        self.concat(&values, 0)
    }

    /// `x` in another shape.
    pub fn reshape(&mut self, x: ValueId, lens: &[Len]) -> Result<ValueId, OpError> {
        let shape = self.lens(lens)?;
        self.op("reshape", &[x, shape])
    }

    /// `x` broadcast to a shape.
    pub fn expand(&mut self, x: ValueId, lens: &[Len]) -> Result<ValueId, OpError> {
        let shape = self.lens(lens)?;
        self.op("expand", &[x, shape])
    }

    /// A tensor of `value` of this shape.
    pub fn filled(&mut self, elem: ElemType, value: f64, lens: &[Len]) -> Result<ValueId, OpError> {
        let scalar = self.scalar(elem, value);
        self.expand(scalar, lens)
    }

    /// A reduction by its op name over these axes.
    pub fn reduce(
        &mut self,
        op: &str,
        x: ValueId,
        axes: &[i64],
        keep: bool,
    ) -> Result<ValueId, OpError> {
        let axes = self.ints(axes);
        self.op_with(op, &[x, axes], [("keepdims", keep.into())])
    }

    /// `x` with axes of length 1 inserted at these places of the result.
    pub fn unsqueeze(&mut self, x: ValueId, axes: &[i64]) -> Result<ValueId, OpError> {
        let axes = self.ints(axes);
        self.op("unsqueeze", &[x, axes])
    }

    /// `x` without these axes, which have length 1.
    pub fn squeeze(&mut self, x: ValueId, axes: &[i64]) -> Result<ValueId, OpError> {
        let axes = self.ints(axes);
        self.op("squeeze", &[x, axes])
    }

    /// Elements `start..end` along `axis` (negative counts from the end, `i64::MAX` is the end).
    pub fn slice(
        &mut self,
        x: ValueId,
        axis: i64,
        start: i64,
        end: i64,
    ) -> Result<ValueId, OpError> {
        self.slice_step(x, axis, start, end, 1)
    }

    /// Every `step`-th element of `start..end` along `axis`.
    pub fn slice_step(
        &mut self,
        x: ValueId,
        axis: i64,
        start: i64,
        end: i64,
        step: i64,
    ) -> Result<ValueId, OpError> {
        let operands = [
            x,
            self.ints(&[start]),
            self.ints(&[end]),
            self.ints(&[axis]),
            self.ints(&[step]),
        ];
        self.op("slice", &operands)
    }

    /// These values one after the other along `axis`.
    pub fn concat(&mut self, values: &[ValueId], axis: i64) -> Result<ValueId, OpError> {
        if let [only] = values {
            return Ok(*only);
        }
        self.op_with("concat", values, [("axis", axis.into())])
    }

    /// A node with optional operands and any number of results.
    pub fn multi(
        &mut self,
        op: &str,
        operands: &[Option<ValueId>],
        attrs: &[(&str, Attr)],
        n_results: usize,
    ) -> Result<Vec<ValueId>, OpError> {
        let attrs = attrs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect();
        self.node(op, operands.to_vec(), attrs, n_results)
    }

    /// `0, 1, ... n - 1` as `i64`, where `n` is a length.
    pub fn iota(&mut self, n: Len) -> Result<ValueId, OpError> {
        let n = self.lens(&[n])?;
        let end = self.squeeze(n, &[0])?;
        let (zero, one) = (
            self.constant(&Tensor::int(0)),
            self.constant(&Tensor::int(1)),
        );
        self.op("range", &[zero, end, one])
    }
}

impl Node {
    /// Operand `i`, which must be given.
    pub fn need(&self, i: usize) -> Result<ValueId, OpError> {
        self.operand(i)
            .ok_or_else(|| OpError::new(format!("operand {i} is missing")))
    }

    /// Integer attribute or its default; an error if absent.
    pub fn int(&self, name: &str) -> Result<i64, OpError> {
        self.int_opt(name)
            .ok_or_else(|| OpError::new(format!("attribute `{name}` is missing")))
    }

    /// Integer attribute, if given or defaulted.
    pub fn int_opt(&self, name: &str) -> Option<i64> {
        match self.attr(name) {
            Some(Attr::Int(v)) => Some(v),
            _ => None,
        }
    }

    /// True if the integer attribute is non-zero.
    pub fn flag(&self, name: &str) -> bool {
        self.int_opt(name).is_some_and(|v| v != 0)
    }

    /// Integer list, if given or defaulted.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.attr(name) {
            Some(Attr::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// Float attribute, if given or defaulted.
    pub fn float(&self, name: &str) -> Option<f64> {
        match self.attr(name) {
            Some(Attr::Float(v)) => Some(f64::from(v)),
            _ => None,
        }
    }

    /// Float list, if given or defaulted.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        match self.attr(name) {
            Some(Attr::Floats(v)) => Some(v),
            _ => None,
        }
    }

    /// Text attribute, if given or defaulted (empty if not).
    pub fn text(&self, name: &str) -> String {
        match self.attr(name) {
            Some(Attr::Str(v)) => v,
            _ => String::new(),
        }
    }

    /// Text list, if given or defaulted.
    pub fn texts(&self, name: &str) -> Option<Vec<String>> {
        match self.attr(name) {
            Some(Attr::Strs(v)) => Some(v),
            _ => None,
        }
    }

    /// Element-type attribute, if given or defaulted.
    pub fn elem_attr(&self, name: &str) -> Option<ElemType> {
        match self.attr(name) {
            Some(Attr::Elem(v)) => Some(v),
            _ => None,
        }
    }
}
