//! Softmax and layer normalization in integers, where they read codes and write codes.
//!
//! `before => after`: `quantize_linear(softmax(dequantize_linear(q)))  =>  integer_softmax(q)`, and the same of a layer normalization.

use crate::methods::bct;
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{ElemType, Module, NodeId, Tensor, ValueId};
use std::cell::Cell;

/// Rewrites what it can; the number of operations.
pub(super) fn rewrite(module: &mut Module) -> Result<usize, OpError> {
    let fresh = Cell::new(first_fresh(module));
    let mut made = 0;
    let nodes = std::mem::take(&mut module.region_mut(Module::TOP).nodes);
    for n in nodes {
        if let Some(found) = Between::find(module, n) {
            let mut b = Builder::new(module, Module::TOP, "integer", &fresh);
            if let Some(codes) = found.build(&mut b)? {
                let old = module.node(n).results[0];
                // Nodes behind this one read the new codes when they are put back.
                module.replace_uses(old, codes);
                made += 1;
            }
        }
        module.region_mut(Module::TOP).nodes.push(n);
    }
    Ok(made)
}

/// An operation between two changes of type.
struct Between {
    node: NodeId,
    /// The codes that it reads.
    codes: ValueId,
    /// What a step of them is worth.
    scale: f64,
    /// What a step of the result is worth, and the code of 0.
    result: (f64, f64),
}

impl Between {
    /// Of a node that writes codes.
    fn find(module: &Module, n: NodeId) -> Option<Between> {
        let of = |v: ValueId, op: &str| {
            let n = module.producer(v)?;
            (module.node(n).op.name == op).then_some(n)
        };
        let number = |v: Option<ValueId>| {
            let tensor = module.as_constant(v?)?.decode().ok()?;
            let numbers = tensor.to_f64s()?;
            (numbers.len() == 1).then(|| numbers[0])
        };
        let writes = module.node(n);
        let is_u8 = module.value(*writes.results.first()?).ty.elem() == Some(ElemType::U8);
        if writes.op.name != "quantize_linear" || !is_u8 {
            return None;
        }
        let node = module.producer(writes.operand(0)?)?;
        let reads = module.node(of(module.node(node).operand(0)?, "dequantize_linear")?);
        Some(Between {
            node,
            codes: reads.operand(0)?,
            scale: number(reads.operand(1))?,
            result: (number(writes.operand(1))?, number(writes.operand(2))?),
        })
    }

    /// The operation in integers, if it has such a form.
    fn build(&self, b: &mut Builder) -> Result<Option<ValueId>, OpError> {
        let node = b.module.node(self.node).clone();
        match node.op.name {
            "softmax" if self.result == (1.0 / 256.0, 0.0) => {
                let attrs = [
                    ("axis", node.int("axis")?.into()),
                    ("scale", (self.scale as f32).into()),
                ];
                b.op_with("integer_softmax", &[self.codes], attrs).map(Some)
            }
            "layer_normalization" if is_last(b.module, self.codes, node.int("axis")?) => {
                let numbers = |v: Option<ValueId>| {
                    let tensor = b.module.as_constant(v?)?.decode().ok()?;
                    tensor
                        .floats()
                        .filter(|_| tensor.shape().len() == 1)
                        .map(<[f64]>::to_vec)
                };
                let Some(gain) = numbers(node.operand(1)) else {
                    return Ok(None);
                };
                let offset = match node.operand(2) {
                    None => vec![0.0; gain.len()],
                    given => match numbers(given) {
                        Some(offset) => offset,
                        None => return Ok(None),
                    },
                };
                let epsilon = node.float("epsilon").unwrap_or(1e-5);
                let Some(form) = bct::layer_norm(&gain, &offset, epsilon, self.scale, self.result)
                else {
                    return Ok(None);
                };
                let units = |b: &mut Builder, units: Vec<i128>| {
                    b.constant(&Tensor::from_int(ElemType::I64, [units.len()], units))
                };
                let (gain, offset) = (units(b, form.gain), units(b, form.offset));
                let attrs = [("epsilon", form.epsilon.into())];
                b.op_with("integer_layer_norm", &[self.codes, gain, offset], attrs)
                    .map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// True if `axis` is the last one of a value.
fn is_last(module: &Module, v: ValueId, axis: i64) -> bool {
    let rank = module.value(v).ty.shape().map_or(0, <[_]>::len);
    axis == -1 || resolve_axis(axis, rank).is_ok_and(|a| a + 1 == rank)
}
