//! Constant folding: nodes whose results are known become constants.
//!
//! `before => after`: `add(const 1, const 2) => const 3`; `shape(x: f32[2,3]) => const [2,3]`; an `if` on a
//! constant condition becomes the branch taken. A result is known when every operand is a constant
//! (the reference evaluator computes it) or when shape arithmetic tells its contents. Large results are not
//! materialised: folding trades at most [`Limits::elements`] elements for a node.

mod dense;

use lapidary_ir::builder::contents;
use lapidary_ir::eval::eval_node;
use lapidary_ir::graph::Def;
use lapidary_ir::infer::infer_module;
use lapidary_ir::ops::Eval;
use lapidary_ir::tensor::{Value, count};
use lapidary_ir::{Constant, Module, NodeId, RegionId, Tensor, ValueId};
use std::cell::Cell;

/// Results of compressed weights of up to this many elements are folded: sizes and numbers of formulas.
const VISIBLE: usize = 64;

/// What folding may spend.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most elements of a folded result, unless it is no larger than its operands together.
    pub elements: usize,
    /// Most elements in all operands of a folded node: the reference evaluator is slow on purpose.
    pub operand_elements: usize,
    /// Whether codes become numbers: rules look for the codes, and what is left of them afterwards is better decoded
    /// once.
    pub decode: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            elements: 1 << 16,
            operand_elements: 1 << 20,
            decode: true,
        }
    }
}

/// Folds until nothing changes; the number of nodes folded. Types are refined on the way.
pub fn fold_constants(module: &mut Module, limits: Limits) -> usize {
    let mut total = 0;
    loop {
        let folded: usize = module
            .reachable_regions()
            .into_iter()
            .map(|r| fold_region(module, r, limits))
            .sum();
        if folded == 0 {
            return total;
        }
        total += folded;
        module.remove_dead_nodes();
        // Errors were reported when the module was imported; folding only makes types more exact.
        infer_module(module);
    }
}

fn fold_region(module: &mut Module, region: RegionId, limits: Limits) -> usize {
    let mut folded = 0;
    for id in module.region(region).nodes.clone() {
        if !limits.decode && decodes(module, id) {
            continue;
        }
        if let Some(taken) = constant_branch(module, id) {
            inline_branch(module, region, id, taken);
            folded += 1;
        } else if let Some(constant) = dense_result(module, id) {
            module.sources.release(constant.stored_bytes());
            let result = module.node(id).results[0];
            let name = module.value(result).name.clone();
            let constant = module.add_constant(&name, constant);
            module.replace_uses(result, constant);
            module.region_mut(region).nodes.retain(|&n| n != id);
            for weight in module.node(id).operands.clone().into_iter().flatten() {
                module.drop_unused_constant(weight);
            }
            folded += 1;
        } else if let Some(values) = known_results(module, id, limits) {
            for (result, tensor) in values {
                let name = module.value(result).name.clone();
                let constant = module.add_constant(&name, Constant::from_tensor(&tensor));
                module.replace_uses(result, constant);
            }
            module.region_mut(region).nodes.retain(|&n| n != id);
            folded += 1;
        }
    }
    folded
}

/// The results of a node as tensors, if they are all known.
fn known_results(module: &Module, id: NodeId, limits: Limits) -> Option<Vec<(ValueId, Tensor)>> {
    let node = module.node(id);
    if !node.op.pure || !node.regions.is_empty() || matches!(node.op.eval, Eval::Control) {
        return None;
    }
    by_contents(module, id).or_else(|| by_evaluation(module, id, limits))
}

/// The result of a node on weights, which may be large: computed on their bytes, or a view of them.
fn dense_result(module: &Module, id: NodeId) -> Option<Constant> {
    let node = module.node(id);
    let &[result] = node.results.as_slice() else {
        return None;
    };
    let first = module.as_constant(node.operand(0)?)?;
    let shape = module.value(result).ty.as_tensor()?.const_shape()?;
    if node.op.name == "transpose" {
        return dense::transpose(first, node.ints("perm").as_deref(), shape);
    }
    if node.op.name == "cast" {
        return dense::widen(first, node.elem_attr("to")?);
    }
    let constants = constants(module, id)?;
    if node.op.name == "dequantize_linear" {
        return dense::dequantize(&constants, node.int("axis").unwrap_or(1), shape);
    }
    dense::fold(node.op.name, &constants, first.elem(), shape)
}

/// True if a node makes numbers of more than one code.
fn decodes(module: &Module, id: NodeId) -> bool {
    let node = module.node(id);
    let shape = node
        .operand(0)
        .and_then(|x| module.as_constant(x))
        .map(Constant::shape);
    node.op.name == "dequantize_linear" && shape.is_some_and(|s| count(s) > 1)
}

/// The constant operands of a node, if all its operands are constant.
fn constants(module: &Module, id: NodeId) -> Option<Vec<Option<&Constant>>> {
    let operands = module.node(id).operands.iter();
    operands
        .map(|o| match o.map(|v| module.as_constant(v)) {
            None => Some(None),
            Some(Some(c)) => Some(Some(c)),
            Some(None) => None,
        })
        .collect()
}

/// Shape arithmetic: one integer result of known shape and contents.
fn by_contents(module: &Module, id: NodeId) -> Option<Vec<(ValueId, Tensor)>> {
    let &[result] = module.node(id).results.as_slice() else {
        return None;
    };
    let ty = module.value(result).ty.as_tensor()?;
    let shape = ty.const_shape()?;
    // Contents rules make no fresh symbols; the counter is only there to satisfy the type rules' interface.
    let fresh = Cell::new(0);
    let values: Vec<i128> = contents(module, result, &fresh, 64)?
        .iter()
        .map(|d| d.as_const().map(i128::from))
        .collect::<Option<_>>()?;
    (values.len() == count(&shape))
        .then(|| vec![(result, Tensor::from_int(ty.elem, shape, values))])
}

/// Every operand is a constant: ask the evaluator.
fn by_evaluation(module: &Module, id: NodeId, limits: Limits) -> Option<Vec<(ValueId, Tensor)>> {
    let node = module.node(id);
    let constants = constants(module, id)?;
    let operand_elements: usize = constants.iter().flatten().map(|c| count(c.shape())).sum();
    let result_elements: usize = node
        .results
        .iter()
        .map(|&r| Some(count(&module.value(r).ty.as_tensor()?.const_shape()?)))
        .sum::<Option<usize>>()?;
    if operand_elements > limits.operand_elements
        || result_elements > limits.elements.max(operand_elements)
    {
        return None;
    }
    if constants.iter().flatten().any(|c| c.is_compressed()) && result_elements > VISIBLE {
        // Folding would store what is compressed as plain numbers.
        return None;
    }
    let operands: Vec<Option<Value>> = constants
        .iter()
        .map(|c| c.map(|c| c.decode().map(Value::from)).transpose())
        .collect::<Result<_, _>>()
        .ok()?;
    let operands: Vec<Option<&Value>> = operands.iter().map(Option::as_ref).collect();
    let results = eval_node(module, id, &operands).ok()?;
    node.results
        .iter()
        .copied()
        .zip(results)
        .map(|(r, v)| match v {
            Value::Tensor(t) => Some((r, t)),
            _ => None,
        })
        .collect()
}

/// The branch of an `if` that a constant condition takes.
fn constant_branch(module: &Module, id: NodeId) -> Option<RegionId> {
    let node = module.node(id);
    if node.op.name != "if" {
        return None;
    }
    let condition = module.as_constant(node.operand(0)?)?.decode().ok()?;
    let taken = *condition.integers()?.first()? != 0;
    node.regions.get(usize::from(!taken)).copied()
}

/// Replaces an `if` node by the nodes of its taken branch.
fn inline_branch(module: &mut Module, region: RegionId, id: NodeId, taken: RegionId) {
    let branch = std::mem::take(module.region_mut(taken));
    let results = module.node(id).results.clone();
    for (&result, &yielded) in results.iter().zip(&branch.outputs) {
        if matches!(module.value(yielded).def, Def::Result(..))
            && module.value(yielded).name.is_empty()
        {
            let name = module.value(result).name.clone();
            module.value_mut(yielded).name = name;
        }
        module.replace_uses(result, yielded);
    }
    let nodes = &mut module.region_mut(region).nodes;
    let at = nodes
        .iter()
        .position(|&n| n == id)
        .expect("the node is in the region being walked");
    nodes.splice(at..=at, branch.nodes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::builder::Builder;
    use lapidary_ir::{ElemType, Type};

    #[test]
    fn arithmetic_on_constants_disappears() {
        let mut m = Module::new("t");
        let fresh = Cell::new(0);
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [2i64]));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let (one, two) = (b.scalar(ElemType::F32, 1.0), b.scalar(ElemType::F32, 2.0));
        let three = b.op("add", &[one, two]).expect("types fit");
        let y = b.op("add", &[x, three]).expect("types fit");
        m.region_mut(Module::TOP).outputs.push(y);
        assert_eq!(fold_constants(&mut m, Limits::default()), 1);
        assert_eq!(m.top().nodes.len(), 1);
        let c = m
            .as_constant(m.node(m.top().nodes[0]).operands[1].expect("given"))
            .expect("folded");
        assert_eq!(c.decode().expect("valid"), Tensor::f32(3.0));
    }
}
