//! Removing groups from a module, and silencing them in place.
//!
//! `before => after`: a constant loses the slices of its members; what an op is told of the length of an axis (the target of
//! a reshape, pieces of a split, numbers of heads and of filters) becomes that of what is left. [`silence`] writes zeros
//! instead. Both programs compute the same, to rounding: a group's channels are read by slices of its own alone, so that
//! zeros there take whatever the channels hold out of every sum.
//! Source: Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", section 3.

use super::groups::{Dependencies, Group};
use lapidary_ir::infer::infer_module;
use lapidary_ir::{Attr, Constant, ElemType, Module, NodeId, Tensor, ValueId};
use std::collections::HashSet;

/// Why groups are not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// Nothing would be left.
    #[error("`{0}` would lose the whole of axis {1}")]
    Empty(String, usize),
    /// A member is not stored plainly, or does not decode.
    #[error("`{0}` is not a plain constant")]
    Constant(String),
    /// An op's pieces are of different lengths, which it has no way to say.
    #[error("`{0}` would have pieces of different lengths")]
    Pieces(String),
}

/// Removes groups of `dependencies`, which are the module's, from it, and infers types anew.
///
/// # Errors
/// An axis would be left empty, or a constant is not plain; the module is then as it was.
pub fn cut(
    module: &mut Module,
    dependencies: &Dependencies,
    groups: &[&Group],
) -> Result<(), CutError> {
    let roots: HashSet<usize> = groups.iter().map(|g| g.root()).collect();
    let dropped = |root: usize| roots.contains(&root);
    let kept = |v: ValueId, axis: usize| dependencies.kept(v, axis, &dropped);
    let mut smaller = module.clone();
    let mut sliced: HashSet<ValueId> = HashSet::new();
    let members = groups.iter().flat_map(|g| &g.members);
    for v in members.map(|m| m.value).filter(|&v| sliced.insert(v)) {
        let name = || module.value(v).name.clone();
        let constant = module
            .as_constant(v)
            .ok_or_else(|| CutError::Constant(name()))?;
        let tensor = constant.encoding().decode();
        let mut tensor = tensor.map_err(|_| CutError::Constant(name()))?;
        for axis in 0..tensor.shape().len() {
            let places = kept(v, axis).filter(|(len, places)| places.len() < *len);
            let Some((_, places)) = places else {
                continue;
            };
            if places.is_empty() {
                return Err(CutError::Empty(name(), axis));
            }
            tensor = select(&tensor, axis, &places);
        }
        let new = smaller.add_constant(&name(), Constant::from_tensor(&tensor));
        smaller.replace_uses(v, new);
    }
    for node in smaller.region(Module::TOP).nodes.clone() {
        adjust(&mut smaller, module, node, &kept)?;
    }
    infer_module(&mut smaller);
    smaller.remove_dead_nodes();
    *module = smaller;
    Ok(())
}

/// Writes zeros over the slices of groups; shapes stay.
///
/// # Errors
/// A constant is not plain; the module is then as it was.
pub fn silence(module: &mut Module, groups: &[&Group]) -> Result<(), CutError> {
    let mut silent = module.clone();
    let mut seen = HashSet::new();
    let members = groups.iter().flat_map(|g| &g.members);
    for v in members.map(|m| m.value).filter(|&v| seen.insert(v)) {
        let name = || module.value(v).name.clone();
        let constant = module
            .as_constant(v)
            .ok_or_else(|| CutError::Constant(name()))?;
        let tensor = constant.encoding().decode();
        let tensor = tensor.map_err(|_| CutError::Constant(name()))?;
        let mut values = tensor.to_f64s().ok_or_else(|| CutError::Constant(name()))?;
        let shape = tensor.shape();
        for axis in 0..shape.len() {
            let inner: usize = shape[axis + 1..].iter().product();
            let zeros: HashSet<usize> = groups
                .iter()
                .flat_map(|g| g.indices(v, axis))
                .copied()
                .collect();
            let places = values.iter_mut().enumerate();
            let at = |i: usize| i / inner % shape[axis];
            places
                .filter(|(i, _)| zeros.contains(&at(*i)))
                .for_each(|(_, x)| *x = 0.0);
        }
        let zeroed = Tensor::from_f64(tensor.elem(), shape, values);
        let new = silent.add_constant(&name(), Constant::from_tensor(&zeroed));
        silent.replace_uses(v, new);
    }
    *module = silent;
    Ok(())
}

/// The places of an axis that stay.
fn select(tensor: &Tensor, axis: usize, places: &[usize]) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let (long, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    shape[axis] = places.len();
    let at = |i: usize| {
        (i / inner / places.len() * long + places[i / inner % places.len()]) * inner + i % inner
    };
    tensor.gather_linear(shape, at)
}

/// Length of an axis and its places that stay.
type Kept<'a> = &'a dyn Fn(ValueId, usize) -> Option<(usize, Vec<usize>)>;

/// Tells a node the new lengths of what it reads and gives. `before` is the module as the lengths are of it.
fn adjust(module: &mut Module, before: &Module, node: NodeId, kept: Kept) -> Result<(), CutError> {
    let old = before.node(node);
    let lengths = |v: ValueId, axis: usize| {
        let (len, places) = kept(v, axis)?;
        (places.len() < len).then_some((len, places.len()))
    };
    let axis_of = |v: ValueId| {
        let rank = before.value(v).ty.shape().map_or(0, <[_]>::len) as i64;
        let axis = match old.attr("axis") {
            Some(Attr::Int(axis)) => axis,
            _ => 0,
        };
        (if axis < 0 { axis + rank } else { axis }) as usize
    };
    // A number of equal runs of an axis, of which some are gone.
    let count = |module: &mut Module, name: &str, v: Option<ValueId>, axis: usize| {
        if let (Some(Attr::Int(runs)), Some((long, short))) =
            (old.attr(name), v.and_then(|v| lengths(v, axis)))
        {
            let runs = runs * short as i64 / long as i64;
            module
                .node_mut(node)
                .attrs
                .insert(name.into(), Attr::Int(runs));
        }
    };
    match old.op.name {
        "reshape" | "expand" => {
            let (y, shape) = (old.results[0], old.operand(1));
            let target = shape.and_then(|v| before.as_constant(v)?.encoding().integers().ok());
            let (Some(shape), Some(mut target)) = (shape, target) else {
                return Ok(());
            };
            let rank = before.value(y).ty.shape().map_or(0, <[_]>::len);
            let (count, mut changed) = (target.len(), false);
            for (k, entry) in target.iter_mut().enumerate() {
                // What `expand` is told may have fewer axes than its result.
                if let Some((long, short)) = lengths(y, (rank + k).saturating_sub(count))
                    && *entry == long as i64
                {
                    (*entry, changed) = (short as i64, true);
                }
            }
            if changed {
                set_ints(module, node, 1, &before.value(shape).name, &target);
            }
        }
        "split" => {
            let axis = axis_of(old.results[0]);
            let pieces = old
                .results
                .iter()
                .map(|&y| Some((kept(y, axis)?.0, kept(y, axis)?.1.len())));
            let Some(pieces) = pieces.collect::<Option<Vec<_>>>() else {
                return Ok(());
            };
            if pieces.iter().all(|(long, short)| long == short) {
                return Ok(());
            }
            let short: Vec<i64> = pieces.iter().map(|p| p.1 as i64).collect();
            match old.operand(1) {
                Some(v) => set_ints(module, node, 1, &before.value(v).name, &short),
                None if short.iter().all(|n| n == &short[0]) => {}
                None => return Err(CutError::Pieces(old.name.clone())),
            }
        }
        "conv" if old.attr("group") != Some(Attr::Int(1)) => {
            count(module, "group", old.operand(0), 1)
        }
        "rotary_embedding" => count(module, "num_heads", old.operand(0), 2),
        "attention" => {
            count(module, "q_num_heads", old.operand(0), 2);
            count(module, "kv_num_heads", old.operand(1), 2);
        }
        _ => {}
    }
    Ok(())
}

/// Gives a node another list of integers as its `operand`-th operand.
fn set_ints(module: &mut Module, node: NodeId, operand: usize, name: &str, values: &[i64]) {
    let values: Vec<i128> = values.iter().map(|&v| v.into()).collect();
    let list = Tensor::from_int(ElemType::I64, [values.len()], values);
    let new = module.add_constant(name, Constant::from_tensor(&list));
    module.node_mut(node).operands[operand] = Some(new);
}
