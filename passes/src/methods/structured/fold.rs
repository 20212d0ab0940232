//! Removing groups with the means of what they held moved to biases.
//!
//! `before => after`: `matmul(x, w)` whose inputs `S` go becomes `add(matmul(x', w'), w_S mean(x_S))`. A product then loses only
//! how its inputs vary. Products of two matrices are treated so, where the mean of the left one is known.
//! Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", section 3.3.

use super::cut::{CutError, cut};
use super::groups::{Dependencies, Group};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::{first_fresh, infer_module};
use lapidary_ir::{Constant, Module, NodeId, Tensor, ValueId};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

/// As [`cut`], and adds to each product what the inputs that go gave on average. `mean` is of a value's last axis, before
/// anything goes; where it is not known nothing is added.
///
/// # Errors
/// As [`cut`].
pub fn cut_with_means(
    module: &mut Module,
    dependencies: &Dependencies,
    groups: &[&Group],
    mean: &dyn Fn(ValueId) -> Option<Vec<f64>>,
) -> Result<(), CutError> {
    let roots: HashSet<usize> = groups.iter().map(|g| g.root()).collect();
    let dropped = |root: usize| roots.contains(&root);
    let kept = |v: ValueId, axis: usize| dependencies.kept(v, axis, &dropped);
    let bias = |node: NodeId| -> Option<Tensor> {
        let product = module.node(node);
        if product.op.name != "matmul" {
            return None;
        }
        let (x, w) = (product.operand(0)?, product.operand(1)?);
        let (inputs, stay) = kept(w, 0)?;
        let stay: HashSet<usize> = stay.into_iter().collect();
        if stay.len() == inputs {
            return None;
        }
        let (weight, mean) = (plain(module, w)?, mean(x)?);
        let &[_, outputs] = weight.shape() else {
            return None;
        };
        let (_, columns) = kept(w, 1)?;
        let values = weight.to_f64s()?;
        let lost = |c: usize| {
            let gone = (0..inputs).filter(|i| !stay.contains(i));
            gone.map(|i| mean[i] * values[i * outputs + c]).sum::<f64>()
        };
        let lost: Vec<f64> = columns.iter().map(|&c| lost(c)).collect();
        let elem = module.value(product.results[0]).ty.elem()?;
        Some(Tensor::from_f64(elem, [lost.len()], lost))
    };
    let nodes = module.region(Module::TOP).nodes.iter();
    let biases: HashMap<NodeId, Tensor> = nodes.filter_map(|&n| Some((n, bias(n)?))).collect();
    cut(module, dependencies, groups)?;
    add(module, &biases);
    infer_module(module);
    Ok(())
}

/// A constant behind casts and transpositions, as what is read of it.
fn plain(module: &Module, v: ValueId) -> Option<Tensor> {
    if let Some(constant) = module.as_constant(v) {
        return constant.encoding().decode().ok();
    }
    let node = module.node(module.producer(v)?);
    let from = plain(module, node.operand(0)?)?;
    let &[rows, columns] = from.shape() else {
        return None;
    };
    match node.op.name {
        "cast" => Some(from),
        "transpose" => {
            Some(from.gather_linear(vec![columns, rows], |at| at % rows * columns + at / rows))
        }
        _ => None,
    }
}

/// Adds constants to the first results of nodes of the top region.
fn add(module: &mut Module, biases: &HashMap<NodeId, Tensor>) {
    let fresh = Cell::new(first_fresh(module));
    let nodes = std::mem::take(&mut module.region_mut(Module::TOP).nodes);
    let mut sums: HashMap<ValueId, ValueId> = HashMap::new();
    for n in nodes {
        for v in module.node_mut(n).operands.iter_mut().flatten() {
            *v = sums.get(v).copied().unwrap_or(*v);
        }
        module.region_mut(Module::TOP).nodes.push(n);
        if let Some(bias) = biases.get(&n) {
            let (y, name) = (module.node(n).results[0], module.node(n).name.clone());
            let bias = module.add_constant(&format!("{name}.bias"), Constant::from_tensor(bias));
            let mut b = Builder::new(module, Module::TOP, &name, &fresh);
            let sum = b
                .op("add", &[y, bias])
                .expect("a bias fits its product's columns");
            sums.insert(y, sum);
        }
    }
    for v in &mut module.region_mut(Module::TOP).outputs {
        *v = sums.get(v).copied().unwrap_or(*v);
    }
}
