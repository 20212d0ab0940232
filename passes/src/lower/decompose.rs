//! Replaces ops that have no lowering by what they decompose into, until only lowerable ones remain.

use super::{LowerError, library, rule};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::{Module, NodeId, RegionId, ValueId};
use std::cell::Cell;
use std::collections::HashMap;

/// Decompositions nest at most this deep: an op that decomposes into itself is an error, not a hang.
const MAX_DEPTH: usize = 32;

/// Decomposes in place what has no lowering, unless `kept` says that a node has; gathers every error.
pub fn decompose(
    module: &mut Module,
    kept: &dyn Fn(NodeId) -> bool,
) -> Result<(), Vec<LowerError>> {
    decompose_where(module, &|module, id| {
        let name = module.node(id).op.name;
        let lowered = rule(name).is_some_and(|r| (r.takes)(module, id));
        !lowered && !kept(id) && library::reason(name).is_none()
    })
}

/// Decomposes the nodes that `wanted` says, and what they decompose into.
pub fn decompose_where(
    module: &mut Module,
    wanted: &dyn Fn(&Module, NodeId) -> bool,
) -> Result<(), Vec<LowerError>> {
    let fresh = Cell::new(first_fresh(module));
    let mut run = Run {
        module,
        wanted,
        fresh: &fresh,
        renamed: HashMap::new(),
        errors: vec![],
    };
    run.region(Module::TOP);
    let errors = run.errors;
    if errors.is_empty() {
        module.remove_dead_nodes();
        Ok(())
    } else {
        Err(errors)
    }
}

struct Run<'m> {
    module: &'m mut Module,
    wanted: &'m dyn Fn(&Module, NodeId) -> bool,
    fresh: &'m Cell<u32>,
    renamed: HashMap<ValueId, ValueId>,
    errors: Vec<LowerError>,
}

impl Run<'_> {
    fn region(&mut self, region: RegionId) {
        let nodes = std::mem::take(&mut self.module.region_mut(region).nodes);
        for n in nodes {
            self.node(region, n, 0);
        }
        let mut outputs = self.module.region(region).outputs.clone();
        outputs.iter_mut().for_each(|v| *v = self.current(*v));
        self.module.region_mut(region).outputs = outputs;
    }

    fn current(&self, mut v: ValueId) -> ValueId {
        while let Some(&next) = self.renamed.get(&v) {
            v = next;
        }
        v
    }

    fn node(&mut self, region: RegionId, id: NodeId, depth: usize) {
        let mut node = self.module.node(id).clone();
        for o in node.operands.iter_mut().flatten() {
            *o = self.current(*o);
        }
        self.module.node_mut(id).operands = node.operands.clone();
        for &r in &node.regions {
            self.region(r);
        }
        let name = node.op.name;
        let keep = !node.regions.is_empty() || !(self.wanted)(self.module, id);
        let Some(f) = node.op.decompose.filter(|_| !keep && depth < MAX_DEPTH) else {
            self.module.region_mut(region).nodes.push(id);
            return;
        };
        let before = std::mem::take(&mut self.module.region_mut(region).nodes);
        let mut builder = Builder::new(self.module, region, &node.name, self.fresh);
        let made = f(&mut builder, &node);
        let new = std::mem::replace(&mut self.module.region_mut(region).nodes, before);
        match made {
            Ok(values) => {
                for (&old, &to) in node.results.iter().zip(&values) {
                    let info = self.module.value(old).clone();
                    let target = self.module.value_mut(to);
                    if target.name.is_empty() {
                        target.name = info.name;
                    }
                    if target.ty.shape().is_none() {
                        target.ty = info.ty;
                    }
                    self.renamed.insert(old, to);
                }
                for n in new {
                    self.node(region, n, depth + 1);
                }
            }
            Err(_) if library::OTHERWISE.contains(&name) => {
                self.module.region_mut(region).nodes.push(id);
            }
            Err(e) => self.errors.push(LowerError {
                node: node.name,
                op: name.to_owned(),
                reason: e.0,
            }),
        }
    }
}
