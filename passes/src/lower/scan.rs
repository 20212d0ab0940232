//! `scan` and `sequence_map` as loops: what a loop does not do by itself (slicing its inputs, filling
//! sequences, stacking along other axes) library calls do around it.

use super::Lowerer;
use lapidary_abi::Size;
use lapidary_abi::program::{CallAttr, Place, Step, ValueIndex, ValueType};
use lapidary_ir::graph::Node;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::control::ScanAxes;
use lapidary_ir::{Constant, ElemType, RegionId, Tensor, Type, ValueId};

fn tensor(elem: ElemType, dims: Option<Vec<Size>>) -> ValueType {
    ValueType::Tensor { elem, dims }
}

fn only_region(node: &Node) -> Result<RegionId, OpError> {
    match node.regions[..] {
        [region] => Ok(region),
        _ => Err(OpError::new("needs one region")),
    }
}

fn given(node: &Node) -> Result<Vec<ValueId>, OpError> {
    let operands: Option<Vec<ValueId>> = node.operands.iter().copied().collect();
    operands.ok_or_else(|| OpError::new("an operand is missing"))
}

impl Lowerer {
    fn library(
        &mut self,
        op: &str,
        attrs: &[(&str, CallAttr)],
        operands: &[ValueIndex],
        result: ValueIndex,
    ) {
        self.step(Step::Call {
            op: op.to_owned(),
            attrs: attrs
                .iter()
                .map(|(n, a)| ((*n).to_owned(), a.clone()))
                .collect(),
            operands: operands.iter().map(|&v| Some(v)).collect(),
            results: vec![result],
        });
    }

    /// `from` with an axis turned round.
    fn reversed(
        &mut self,
        from: ValueIndex,
        ty: ValueType,
        axis: i64,
    ) -> Result<ValueIndex, OpError> {
        let mut operands = vec![from];
        for bound in [-1, i64::MIN, axis, -1] {
            let constant = Constant::from_tensor(&Tensor::ints(&[bound]));
            let v = self.facts.module.add_constant("", constant);
            operands.push(self.stored(v)?);
        }
        let to = self.heap(ty);
        self.library("slice", &[], &operands, to);
        Ok(to)
    }

    /// The iteration's number and the condition of a loop.
    fn loop_params(&mut self) -> [ValueIndex; 2] {
        [ElemType::I64, ElemType::Bool].map(|e| self.heap(tensor(e, Some(vec![]))))
    }

    pub(super) fn scan(&mut self, node: &Node) -> Result<(), OpError> {
        let region = only_region(node)?;
        let outputs = self.facts.module.region(region).outputs.clone();
        let axes = ScanAxes::new(node, outputs.len())?;
        let states = axes.inputs.states;
        let operands = given(node)?;
        let carried = operands[..states]
            .iter()
            .map(|&v| self.stored(v))
            .collect::<Result<Vec<_>, _>>()?;
        let steps = self.heap(tensor(ElemType::I64, Some(vec![Size::Const(1)])));
        let mut sources: Vec<(ValueIndex, i64)> = vec![];
        for (k, &v) in operands[states..].iter().enumerate() {
            let ty = self.facts.module.value(v).ty.clone();
            let rank = ty
                .shape()
                .ok_or_else(|| OpError::new("the rank of an input is not known"))?
                .len();
            let axis = axes.inputs.axis(k, rank)? as i64;
            let mut from = self.stored(v)?;
            if k == 0 {
                let range = [
                    ("start", CallAttr::Int(axis)),
                    ("end", CallAttr::Int(axis + 1)),
                ];
                self.library("shape", &range, &[from], steps);
            }
            if axes.inputs.is_reversed(k) {
                let ty = self.value_type(&ty);
                from = self.reversed(from, ty, axis)?;
            }
            sources.push((from, axis));
        }
        let params = self.loop_params();
        let mut body = self.block_after(region, |s, inputs| {
            for (&(from, axis), &to) in sources.iter().zip(&inputs[states..]) {
                s.library(
                    "gather",
                    &[("axis", CallAttr::Int(axis))],
                    &[from, params[0]],
                    to,
                );
            }
            Ok([&params, &inputs[..states]].concat())
        })?;
        body.results.insert(0, params[1]);
        let results: Vec<ValueIndex> = node
            .results
            .iter()
            .map(|&v| self.declare(v, Place::Heap))
            .collect();
        // What the loop yields: states, and rows stacked along the first axis.
        let (mut yielded, mut scan_types, mut ranks) = (results[..states].to_vec(), vec![], vec![]);
        for (k, &v) in outputs[states..].iter().enumerate() {
            let ValueType::Tensor { elem, dims } = self.row_type(v) else {
                return Err(OpError::new("a scan output is no tensor"));
            };
            let rank = dims.as_ref().map_or(0, Vec::len) + 1;
            let rows = dims.map(|d| [vec![Size::Const(0)], d].concat());
            scan_types.push(tensor(elem, rows));
            let moved = axes.output_reversed(k) || axes.output_axis(k, rank)? != 0;
            yielded.push(match results.get(states + k) {
                Some(&result) if !moved => result,
                _ => self.heap(tensor(elem, None)),
            });
            ranks.push(rank);
        }
        self.step(Step::Loop {
            trip_count: Some(steps),
            condition: None,
            carried,
            body,
            results: yielded.clone(),
            scan_types: scan_types.clone(),
        });
        for (k, &rank) in ranks.iter().enumerate() {
            let (mut from, axis) = (yielded[states + k], axes.output_axis(k, rank)?);
            let Some(&result) = results.get(states + k).filter(|&&r| r != from) else {
                continue;
            };
            let ValueType::Tensor { elem, .. } = scan_types[k] else {
                continue;
            };
            if axes.output_reversed(k) {
                from = self.reversed(from, tensor(elem, None), 0)?;
            }
            let mut order: Vec<i64> = (1..rank as i64).collect();
            order.insert(axis, 0);
            self.library(
                "transpose",
                &[("perm", CallAttr::Ints(order))],
                &[from],
                result,
            );
        }
        self.bind_results(&node.results, &results);
        Ok(())
    }

    /// The type of a value of a region that is written already: its symbols count as unknown.
    fn row_type(&mut self, v: ValueId) -> ValueType {
        let ty = self.facts.module.value(v).ty.clone();
        self.value_type(&ty)
    }

    pub(super) fn map(&mut self, node: &Node) -> Result<(), OpError> {
        let region = only_region(node)?;
        let mut sources = vec![];
        for v in given(node)? {
            let is_sequence = matches!(self.facts.module.value(v).ty, Type::Sequence(_));
            sources.push((self.stored(v)?, is_sequence));
        }
        let length = self.heap(tensor(ElemType::I64, Some(vec![])));
        match sources.first() {
            Some(&(first, true)) => self.library("sequence_length", &[], &[first], length),
            _ => return Err(OpError::new("operand 0 must be a sequence")),
        }
        let outputs = self.facts.module.region(region).outputs.clone();
        let mut list = || -> Vec<ValueIndex> {
            let item = |v: &ValueId| ValueType::Sequence(Box::new(self.row_type(*v)));
            let types: Vec<ValueType> = outputs.iter().map(item).collect();
            types.into_iter().map(|t| self.heap(t)).collect()
        };
        let (carried, before, after) = (list(), list(), list());
        for &empty in &carried {
            self.library("sequence_empty", &[], &[], empty);
        }
        let params = self.loop_params();
        let mut body = self.block_after(region, |s, inputs| {
            for (&(from, is_sequence), &to) in sources.iter().zip(inputs) {
                match is_sequence {
                    true => s.library("sequence_at", &[], &[from, params[0]], to),
                    false => s.step(Step::Move { from, to }),
                }
            }
            Ok([&params[..], &before].concat())
        })?;
        let items = std::mem::replace(&mut body.results, vec![params[1]]);
        for ((&list, item), &longer) in before.iter().zip(items).zip(&after) {
            body.steps.push(Step::Call {
                op: "sequence_insert".to_owned(),
                attrs: vec![],
                operands: vec![Some(list), Some(item)],
                results: vec![longer],
            });
            body.results.push(longer);
        }
        let mut results: Vec<ValueIndex> = node
            .results
            .iter()
            .map(|&v| self.declare(v, Place::Heap))
            .collect();
        // Results that nobody asked for still have a place in the loop.
        results.extend(carried.iter().skip(results.len()));
        self.step(Step::Loop {
            trip_count: Some(length),
            condition: None,
            carried,
            body,
            results,
            scan_types: vec![],
        });
        Ok(())
    }
}
