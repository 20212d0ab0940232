//! One result for each node: a `split` becomes a `slice` for each part, so that patterns see what the parts are of.
//!
//! `a, b = split(x) => a = slice(x), b = slice(x)`. Both move elements and cost the same when they are lowered.

use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{Module, NodeId, RegionId, ValueId};
use std::cell::Cell;
use std::collections::HashMap;

/// Replaces every split into parts of known lengths; what became of the parts is added to `renamed`.
pub fn split_to_slices(module: &mut Module, renamed: &mut HashMap<ValueId, ValueId>) {
    let fresh = Cell::new(first_fresh(module));
    for region in module.reachable_regions() {
        if !module
            .region(region)
            .nodes
            .iter()
            .any(|&n| is_split(module, n))
        {
            continue;
        }
        for n in std::mem::take(&mut module.region_mut(region).nodes) {
            match part_ends(module, n) {
                Some(ends) if slices(module, region, &fresh, n, &ends, renamed).is_ok() => {}
                _ => module.region_mut(region).nodes.push(n),
            }
        }
    }
}

fn is_split(module: &Module, n: NodeId) -> bool {
    module.node(n).op.name == "split"
}

/// The axis, and where each part ends.
fn part_ends(module: &Module, n: NodeId) -> Option<(i64, Vec<i64>)> {
    if !is_split(module, n) {
        return None;
    }
    let node = module.node(n);
    let rank = module.value(node.operand(0)?).ty.shape()?.len();
    let axis = resolve_axis(node.int("axis").ok()?, rank).ok()?;
    let mut end = 0;
    let ends = node.results.iter().map(|&v| {
        end += module.value(v).ty.shape()?.get(axis)?.as_const()?;
        Some(end)
    });
    Some((axis as i64, ends.collect::<Option<_>>()?))
}

fn slices(
    module: &mut Module,
    region: RegionId,
    fresh: &Cell<u32>,
    n: NodeId,
    (axis, ends): &(i64, Vec<i64>),
    renamed: &mut HashMap<ValueId, ValueId>,
) -> Result<(), OpError> {
    let node = module.node(n).clone();
    let x = node.need(0)?;
    let mut begin = 0;
    for (&part, &end) in node.results.iter().zip(ends) {
        let slice = Builder::new(module, region, &node.name, fresh).slice(x, *axis, begin, end)?;
        let (name, ty) = (
            module.value(part).name.clone(),
            module.value(part).ty.clone(),
        );
        let info = module.value_mut(slice);
        info.name = name;
        info.ty = ty;
        renamed.insert(part, slice);
        begin = end;
    }
    Ok(())
}
