//! Dependency groups: channels that can only be removed together.
//!
//! Every index of every axis of known length is an *atom*. Each op says which atoms of its operands are which of its
//! results: an element-wise op keeps them, a product ties the columns of one operand to the rows of the other, a
//! concatenation moves them, a reshape that splits an axis ties all places of a head to the head. Atoms that are tied are a
//! group. Where an op needs an axis whole (a softmax, a norm's mean, an input of the program), its atoms are *fixed*, and so
//! are those of an op that no rule is known of: what is left can be removed, and the program means what it means with
//! zeros in its place.
//! Source: Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", section 3.1; Fang et al., "DepGraph:
//! Towards Any Structural Pruning". Their rules are on modules; these are on axes of values.

use super::rules::rule;
use lapidary_ir::{Module, RegionId, ValueId};
use std::collections::{BTreeMap, HashMap};

/// Slices of a constant that belong to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The constant.
    pub value: ValueId,
    /// The axis.
    pub axis: usize,
    /// Places on the axis, rising.
    pub indices: Vec<usize>,
}

/// What goes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its slices, by constants and axes.
    pub members: Vec<Member>,
    /// The atom that stands for it.
    root: usize,
}

/// All ties of a module's top region.
#[derive(Clone, Debug)]
pub struct Dependencies {
    first: HashMap<(ValueId, usize), (usize, usize)>,
    root: Vec<usize>,
    groups: Vec<Group>,
}

impl Dependencies {
    /// Finds the groups of a module whose types are inferred.
    pub fn of(module: &Module) -> Dependencies {
        let mut links = Links::default();
        for v in 0..module.value_count() as u32 {
            links.add(module, ValueId(v));
        }
        let top = module.region(Module::TOP);
        for &v in top.inputs.iter().chain(&top.outputs) {
            links.fix_all(v);
        }
        for &id in &top.nodes {
            let node = module.node(id);
            if rule(&mut links, module, node).is_none() {
                let values = node.operands.iter().flatten().chain(&node.results);
                values.for_each(|&v| links.fix_all(v));
            }
        }
        let inner = |r: &RegionId| *r != Module::TOP;
        for region in module.reachable_regions().into_iter().filter(inner) {
            for &id in &module.region(region).nodes {
                let operands = module.node(id).operands.iter().flatten();
                operands.for_each(|&v| links.fix_all(v));
            }
        }
        links.finish(module)
    }

    /// The groups that may be removed, in the order of their first constants.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Length of an axis, and its places that stay where the groups of `dropped` (by their roots) go; `None` where the axis
    /// has no length.
    pub(super) fn kept(
        &self,
        value: ValueId,
        axis: usize,
        dropped: &dyn Fn(usize) -> bool,
    ) -> Option<(usize, Vec<usize>)> {
        let &(first, len) = self.first.get(&(value, axis))?;
        let stays = |i: &usize| !dropped(self.root[first + i]);
        Some((len, (0..len).filter(stays).collect()))
    }
}

impl Group {
    pub(super) fn root(&self) -> usize {
        self.root
    }

    /// Its places on an axis of a constant; none if it has none there.
    pub fn indices(&self, value: ValueId, axis: usize) -> &[usize] {
        let own = |m: &&Member| (m.value, m.axis) == (value, axis);
        self.members.iter().find(own).map_or(&[], |m| &m.indices)
    }
}

/// Ties as they are found: a forest over atoms.
#[derive(Default)]
pub(super) struct Links {
    first: HashMap<(ValueId, usize), (usize, usize)>,
    rank: HashMap<ValueId, usize>,
    parent: Vec<usize>,
    fixed: Vec<bool>,
}

/// An axis of a value.
pub(super) type Axis = (ValueId, usize);

impl Links {
    fn add(&mut self, module: &Module, v: ValueId) {
        let Some(shape) = module.value(v).ty.shape() else {
            return;
        };
        self.rank.insert(v, shape.len());
        for (axis, dim) in shape.iter().enumerate() {
            if let Some(len) = dim.as_const().and_then(|n| usize::try_from(n).ok()) {
                self.first.insert((v, axis), (self.parent.len(), len));
                self.parent
                    .extend(self.parent.len()..self.parent.len() + len);
                self.fixed.resize(self.parent.len(), false);
            }
        }
    }

    /// Number of a value's axes.
    pub(super) fn rank(&self, v: ValueId) -> Option<usize> {
        self.rank.get(&v).copied()
    }

    /// The first atom of an axis, and how many there are.
    pub(super) fn atoms(&self, at: Axis) -> Option<(usize, usize)> {
        self.first.get(&at).copied()
    }

    /// Length of an axis, if it has one.
    pub(super) fn len(&self, at: Axis) -> Option<usize> {
        self.first.get(&at).map(|a| a.1)
    }

    fn find(&mut self, mut atom: usize) -> usize {
        while self.parent[atom] != atom {
            self.parent[atom] = self.parent[self.parent[atom]];
            atom = self.parent[atom];
        }
        atom
    }

    /// Ties two atoms.
    pub(super) fn tie_atoms(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        // The least atom stands for the group, so that the result does not depend on the order.
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high] = low;
        self.fixed[low] |= self.fixed[high];
    }

    /// Ties `count` places of two axes, from a place on each.
    pub(super) fn tie_runs(
        &mut self,
        a: Axis,
        from_a: usize,
        b: Axis,
        from_b: usize,
        count: usize,
    ) {
        let (Some(&(x, n)), Some(&(y, m))) = (self.first.get(&a), self.first.get(&b)) else {
            self.fix(a);
            self.fix(b);
            return;
        };
        for i in 0..count
            .min(n.saturating_sub(from_a))
            .min(m.saturating_sub(from_b))
        {
            self.tie_atoms(x + from_a + i, y + from_b + i);
        }
    }

    /// Ties two axes place by place. One of length 1 is spread and has no part in it; of two other lengths both are fixed.
    pub(super) fn tie(&mut self, a: Axis, b: Axis) {
        match (self.len(a), self.len(b)) {
            (Some(n), Some(m)) if n == m => self.tie_runs(a, 0, b, 0, n),
            (Some(1), _) | (_, Some(1)) | (None, None) => {}
            _ => {
                self.fix(a);
                self.fix(b);
            }
        }
    }

    /// Keeps an axis whole.
    pub(super) fn fix(&mut self, at: Axis) {
        if let Some(&(first, len)) = self.first.get(&at) {
            for atom in first..first + len {
                let root = self.find(atom);
                self.fixed[root] = true;
            }
        }
    }

    /// Keeps all axes of a value whole.
    pub(super) fn fix_all(&mut self, v: ValueId) {
        (0..self.rank.get(&v).copied().unwrap_or(0)).for_each(|axis| self.fix((v, axis)));
    }

    fn finish(mut self, module: &Module) -> Dependencies {
        let root: Vec<usize> = (0..self.parent.len()).map(|atom| self.find(atom)).collect();
        let mut found: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
        for v in (0..module.value_count() as u32).map(ValueId) {
            if module.as_constant(v).is_none() {
                continue;
            }
            for axis in 0..self.rank.get(&v).copied().unwrap_or(0) {
                let Some(&(first, len)) = self.first.get(&(v, axis)) else {
                    continue;
                };
                for i in (0..len).filter(|i| !self.fixed[root[first + i]]) {
                    let members = found.entry(root[first + i]).or_default();
                    match members.last_mut() {
                        Some(m) if (m.value, m.axis) == (v, axis) => m.indices.push(i),
                        _ => members.push(Member {
                            value: v,
                            axis,
                            indices: vec![i],
                        }),
                    }
                }
            }
        }
        let group = |(root, members)| Group { members, root };
        let mut groups: Vec<Group> = found.into_iter().map(group).collect();
        let order = |g: &Group| {
            let m = &g.members[0];
            (m.value, m.axis, m.indices[0])
        };
        groups.sort_by_key(order);
        Dependencies {
            first: self.first,
            root,
            groups,
        }
    }
}
