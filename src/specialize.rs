//! Fitting a module to inputs at hand: what `run` knows and `build` does not.
//!
//! Dimensions of every input become numbers. Then, where a result's shape still depends on the *contents* of a
//! small input (`axes`, `shape`, `pads`, `k` …), that input's value becomes a constant of the program. The inputs
//! stay part of the interface; a program specialised to values is used for these inputs only.

use lapidary_ir::graph::Def;
use lapidary_ir::infer::{InferError, bind_symbols, infer_module};
use lapidary_ir::ops::Eval;
use lapidary_ir::tensor::{Value, count};
use lapidary_ir::types::TensorType;
use lapidary_ir::{Constant, Dim, Module, NodeId, Type, ValueId};
use lapidary_passes::fold::{Limits, fold_constants};
use std::collections::{BTreeMap, BTreeSet};

/// Inputs above this many elements do not become constants.
const SMALL: usize = 1024;

/// Types of concrete inputs, and contents of the small ones.
pub struct Given {
    /// One per input of the module.
    pub types: Vec<Option<Type>>,
    /// The value itself where it is a small tensor.
    pub small: Vec<Option<Value>>,
}

/// Binds dimensions to those of `given`, and small shape-deciding inputs to their values.
pub fn specialize(module: &mut Module, given: &Given) -> Vec<InferError> {
    // A mode that is an input (a sample rate) chooses branches; those not taken need not fit the dimensions.
    for index in mode_inputs(module, given) {
        bind_value(module, index, given);
    }
    fold_constants(module, Limits::default());
    let errors = bind_dimensions(module, given);
    if !errors.is_empty() {
        return errors;
    }
    fold_constants(module, Limits::default());
    // Each round may reveal more: a constant shape makes a rank known, which needs axes, and so on.
    for _ in 0..8 {
        let wanted: BTreeSet<usize> = undetermined_nodes(module)
            .into_iter()
            .flat_map(|n| deciding_inputs(module, n))
            .collect();
        let mut bound = false;
        for index in wanted {
            bound |= bind_value(module, index, given);
        }
        if !bound {
            break;
        }
        let errors = infer_module(module);
        if !errors.is_empty() {
            return errors;
        }
        fold_constants(module, Limits::default());
    }
    let mut bound = false;
    for index in parameter_inputs(module) {
        bound |= bind_value(module, index, given);
    }
    if bound {
        let errors = infer_module(module);
        if !errors.is_empty() {
            return errors;
        }
        fold_constants(module, Limits::default());
    }
    vec![]
}

/// Makes one small input's value a constant; false if it is not small or not used any more.
pub fn bind_value(module: &mut Module, index: usize, given: &Given) -> bool {
    let Some(Some(Value::Tensor(tensor))) = given.small.get(index) else {
        return false;
    };
    let input = module.top().inputs[index];
    let used = module.reachable_regions().iter().any(|&r| {
        let region = module.region(r);
        region.outputs.contains(&input)
            || region
                .nodes
                .iter()
                .any(|&n| module.node(n).operands.contains(&Some(input)))
    });
    if used {
        let constant = module.add_constant("", Constant::from_tensor(tensor));
        module.replace_uses(input, constant);
    }
    used
}

fn bind_dimensions(module: &mut Module, given: &Given) -> Vec<InferError> {
    let mut symbols = BTreeMap::new();
    for (&input, ty) in module.top().inputs.clone().iter().zip(&given.types) {
        let (Some(Type::Tensor(given)), Type::Tensor(declared)) =
            (ty, module.value(input).ty.clone())
        else {
            continue;
        };
        match (&declared.shape, given.const_shape()) {
            (Some(dims), Some(numbers)) if dims.len() == numbers.len() => {
                for (dim, number) in dims.iter().zip(&numbers) {
                    if let Some(name) = symbol(dim) {
                        symbols.entry(name).or_insert(*number as i64);
                    }
                }
            }
            // Unknown rank, or a declaration that the run-time check will refuse anyway.
            (None, Some(numbers)) => {
                module.value_mut(input).ty = Type::Tensor(TensorType::new(declared.elem, numbers));
            }
            _ => {}
        }
    }
    bind_symbols(module, &symbols)
}

/// The name of a dimension that is one symbol and nothing else.
fn symbol(dim: &Dim) -> Option<String> {
    let mut name = None;
    dim.visit_symbols(&mut |n| name = Some(n.to_owned()));
    name.filter(|n| *dim == Dim::sym(n))
}

/// Nodes with a result whose rank or dimensions are not numbers although they are not control flow.
fn undetermined_nodes(module: &Module) -> Vec<NodeId> {
    let regions = module.reachable_regions();
    let nodes = regions
        .iter()
        .flat_map(|&r| module.region(r).nodes.iter().copied());
    nodes
        .filter(|&n| {
            let node = module.node(n);
            !matches!(node.op.eval, Eval::Control)
                && node.results.iter().any(|&r| matches!(&module.value(r).ty, Type::Tensor(t) if t.const_shape().is_none()))
        })
        .collect()
}

/// Ops and the operand that lowering needs as a constant although it decides no shape.
const PARAMETERS: &[(&str, usize)] = &[
    ("trilu", 1),
    ("cumsum", 1),
    ("cumprod", 1),
    ("reduce_l1", 1),
    ("reduce_l2", 1),
    ("reduce_log_sum", 1),
    ("reduce_log_sum_exp", 1),
    ("reduce_max", 1),
    ("reduce_mean", 1),
    ("reduce_min", 1),
    ("reduce_prod", 1),
    ("reduce_sum", 1),
    ("reduce_sum_square", 1),
    ("resize", 1),
    ("resize", 2),
    ("resize", 3),
    ("affine_grid", 1),
];

/// Inputs of one integer or truth value that decide a branch.
fn mode_inputs(module: &Module, given: &Given) -> BTreeSet<usize> {
    let mut found = vec![];
    for r in module.reachable_regions() {
        for &n in &module.region(r).nodes {
            let node = module.node(n);
            if let ("if", Some(condition)) = (node.op.name, node.operand(0)) {
                trace(module, condition, 16, &mut found);
            }
        }
    }
    let is_mode = |&index: &usize| {
        let value = given.small.get(index).and_then(Option::as_ref);
        let tensor = value.and_then(Value::as_tensor);
        tensor.is_some_and(|t| t.len() == 1 && t.integers().is_some())
    };
    found.into_iter().filter(is_mode).collect()
}

/// Inputs that are parameters of some op.
fn parameter_inputs(module: &Module) -> BTreeSet<usize> {
    let mut found = vec![];
    for r in module.reachable_regions() {
        for &n in &module.region(r).nodes {
            let node = module.node(n);
            for (_, i) in PARAMETERS.iter().filter(|p| p.0 == node.op.name) {
                if let Some(v) = node.operand(*i) {
                    trace(module, v, 16, &mut found);
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Top-region inputs whose contents may decide the shape of this node's results.
fn deciding_inputs(module: &Module, node: NodeId) -> Vec<usize> {
    let operands = &module.node(node).operands;
    let mut found = vec![];
    for (position, operand) in operands.iter().enumerate() {
        let Some(value) = *operand else { continue };
        // The first of several operands is the data, unless it is a scalar (as in `range`).
        let is_data = position == 0
            && operands.len() > 1
            && module.value(value).ty.shape().is_none_or(|s| !s.is_empty());
        if !is_data {
            trace(module, value, 16, &mut found);
        }
    }
    found
}

fn trace(module: &Module, value: ValueId, depth: usize, found: &mut Vec<usize>) {
    let info = module.value(value);
    let small = match &info.ty {
        Type::Tensor(t) => t.const_shape().is_none_or(|s| count(&s) <= SMALL),
        _ => true,
    };
    if !small || depth == 0 {
        return;
    }
    match info.def {
        Def::Input(Module::TOP, index) => found.push(index as usize),
        Def::Result(node, _) => module
            .node(node)
            .operands
            .iter()
            .flatten()
            .for_each(|&v| trace(module, v, depth - 1, found)),
        _ => {}
    }
}

impl Given {
    /// From the inputs as values of the runtime.
    pub fn from_runtime(values: &[lapidary_runtime::Value]) -> Given {
        let small = |v: &lapidary_runtime::Value| {
            let tensor = v.as_tensor().filter(|t| count(t.dims()) <= SMALL)?;
            crate::values::to_evaluator(&lapidary_runtime::Value::Tensor(tensor.clone()))
        };
        Given {
            types: values.iter().map(crate::values::type_of).collect(),
            small: values.iter().map(small).collect(),
        }
    }

    /// From the inputs as values of the reference evaluator.
    pub fn from_values(values: &[Value]) -> Given {
        Given {
            types: values.iter().map(lapidary_ir::eval::type_of).collect(),
            small: values
                .iter()
                .map(|v| {
                    v.as_tensor()
                        .filter(|t| t.len() <= SMALL)
                        .map(|t| Value::Tensor(t.clone()))
                })
                .collect(),
        }
    }
}
