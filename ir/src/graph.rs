//! The graph IR: modules of typed SSA nodes in regions.
//!
//! Everything is an index (`u32` newtypes) into the module's tables; there are no pointers between nodes.
//! A [`Region`] is a flat list of nodes in an order in which every operand is defined before its use;
//! control-flow nodes (`if`, `loop`, `scan`) own further regions, whose nodes may also use values of the
//! regions around them. Nodes that a pass replaces are dropped from their region's list; their table
//! entries stay.

use crate::sources::Sources;
use crate::{Attr, Attrs, Constant, Op, Type};
use std::collections::HashSet;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            /// Position in the module's table.
            pub fn index(self) -> usize { self.0 as usize }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, concat!($prefix, "{}"), self.0) }
        }
    )* };
}

ids! {
    /// A node.
    NodeId "n";
    /// A value: a node's result, a region's input or a constant.
    ValueId "v";
    /// A region.
    RegionId "r";
    /// A constant.
    ConstId "c";
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Def {
    /// The n-th input of a region.
    Input(RegionId, u32),
    /// The n-th result of a node.
    Result(NodeId, u32),
    /// A constant.
    Constant(ConstId),
}

/// A value's table entry.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Name kept from the source model; unique within the module after [`Module::uniquify_names`], may be empty.
    pub name: String,
    /// Type; what inference knows so far.
    pub ty: Type,
    /// Definition.
    pub def: Def,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Path in the source model (`/layers.0/attn/MatMul`), for messages.
    pub name: String,
    /// Operands in the op's order; `None` for an optional one left out.
    pub operands: Vec<Option<ValueId>>,
    /// Results in the op's order.
    pub results: Vec<ValueId>,
    /// Attributes.
    pub attrs: Attrs,
    /// Regions of control-flow ops, in the op's order.
    pub regions: Vec<RegionId>,
}

/// A list of nodes with inputs and outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Region {
    /// Values that its user supplies.
    pub inputs: Vec<ValueId>,
    /// Nodes in order of definition.
    pub nodes: Vec<NodeId>,
    /// Values that it yields.
    pub outputs: Vec<ValueId>,
}

/// A program: one top region and everything it refers to.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Name, for messages and symbols of artefacts.
    pub name: String,
    /// Names of the top region's outputs, which are part of the interface (two outputs may be one value).
    pub output_names: Vec<String>,
    /// The mapped files that constants view.
    pub sources: Sources,
    values: Vec<ValueInfo>,
    nodes: Vec<Node>,
    regions: Vec<Region>,
    constants: Vec<Constant>,
}

impl Module {
    /// The top region.
    pub const TOP: RegionId = RegionId(0);

    /// An empty module.
    pub fn new(name: &str) -> Module {
        Module {
            name: name.to_owned(),
            output_names: vec![],
            sources: Sources::default(),
            values: vec![],
            nodes: vec![],
            regions: vec![Region::default()],
            constants: vec![],
        }
    }

    /// The top region.
    pub fn top(&self) -> &Region {
        self.region(Module::TOP)
    }

    /// A value's entry.
    pub fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.index()]
    }

    /// A value's entry, for changes.
    pub fn value_mut(&mut self, id: ValueId) -> &mut ValueInfo {
        &mut self.values[id.index()]
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// A node, for changes.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// A region.
    pub fn region(&self, id: RegionId) -> &Region {
        &self.regions[id.index()]
    }

    /// A region, for changes.
    pub fn region_mut(&mut self, id: RegionId) -> &mut Region {
        &mut self.regions[id.index()]
    }

    /// A constant.
    pub fn constant(&self, id: ConstId) -> &Constant {
        &self.constants[id.index()]
    }

    /// The constant behind a value, if it is one.
    pub fn as_constant(&self, value: ValueId) -> Option<&Constant> {
        match self.value(value).def {
            Def::Constant(c) => Some(self.constant(c)),
            _ => None,
        }
    }

    /// The node that defines a value, if one does.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.value(value).def {
            Def::Result(node, _) => Some(node),
            _ => None,
        }
    }

    /// Number of values ever made (ids are below it).
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// Number of nodes ever made.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of regions ever made.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Number of constants ever made.
    pub fn constant_count(&self) -> usize {
        self.constants.len()
    }

    fn new_value(&mut self, name: &str, ty: Type, def: Def) -> ValueId {
        let id =
            ValueId(u32::try_from(self.values.len()).expect("a module has fewer than 2^32 values"));
        self.values.push(ValueInfo {
            name: name.to_owned(),
            ty,
            def,
        });
        id
    }

    /// Adds a region without inputs.
    pub fn add_region(&mut self) -> RegionId {
        let id = RegionId(self.regions.len() as u32);
        self.regions.push(Region::default());
        id
    }

    /// Adds an input to a region.
    pub fn add_input(&mut self, region: RegionId, name: &str, ty: Type) -> ValueId {
        let at = self.region(region).inputs.len() as u32;
        let value = self.new_value(name, ty, Def::Input(region, at));
        self.region_mut(region).inputs.push(value);
        value
    }

    /// Adds a constant value.
    pub fn add_constant(&mut self, name: &str, constant: Constant) -> ValueId {
        let ty = constant.ty();
        let id = ConstId(self.constants.len() as u32);
        self.constants.push(constant);
        self.new_value(name, ty, Def::Constant(id))
    }

    /// Makes a node without placing it in a region; `result_types` gives one result each.
    pub fn make_node(
        &mut self,
        op: Op,
        name: &str,
        operands: Vec<Option<ValueId>>,
        attrs: Attrs,
        regions: Vec<RegionId>,
        result_types: Vec<Type>,
    ) -> NodeId {
        let id =
            NodeId(u32::try_from(self.nodes.len()).expect("a module has fewer than 2^32 nodes"));
        self.nodes.push(Node {
            op,
            name: name.to_owned(),
            operands,
            results: vec![],
            attrs,
            regions,
        });
        let results = result_types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| self.new_value("", ty, Def::Result(id, i as u32)))
            .collect();
        self.nodes[id.index()].results = results;
        id
    }

    /// Makes a node and appends it to a region.
    #[allow(
        clippy::too_many_arguments,
        reason = "a node has these parts; the builder is the convenient way"
    )]
    pub fn add_node(
        &mut self,
        region: RegionId,
        op: Op,
        name: &str,
        operands: Vec<Option<ValueId>>,
        attrs: Attrs,
        regions: Vec<RegionId>,
        result_types: Vec<Type>,
    ) -> NodeId {
        let id = self.make_node(op, name, operands, attrs, regions, result_types);
        self.region_mut(region).nodes.push(id);
        id
    }

    /// Gives a node without results yet its results, one per type.
    pub fn set_result_types(&mut self, id: NodeId, types: Vec<Type>) {
        let results = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| self.new_value("", ty, Def::Result(id, i as u32)))
            .collect();
        self.nodes[id.index()].results = results;
    }

    /// Every region reachable from the top, outer before inner.
    pub fn reachable_regions(&self) -> Vec<RegionId> {
        let mut out = vec![Module::TOP];
        let mut next = 0;
        while next < out.len() {
            for &node in &self.region(out[next]).nodes {
                out.extend(&self.node(node).regions);
            }
            next += 1;
        }
        out
    }

    /// Replaces every use of `old` (operands and region outputs) by `new`.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        self.replace_each(|v| (v == old).then_some(new));
    }

    /// Replaces every use of each value that there is another for.
    pub fn replace_each(&mut self, by: impl Fn(ValueId) -> Option<ValueId>) {
        let operands = self.nodes.iter_mut().flat_map(|n| &mut n.operands);
        let outputs = self.regions.iter_mut().flat_map(|r| &mut r.outputs);
        for v in operands.flatten().chain(outputs) {
            if let Some(new) = by(*v) {
                *v = new;
            }
        }
    }

    /// Forgets the bytes of a constant that nothing uses any more, so that what was made of it does not stay beside it.
    pub fn drop_unused_constant(&mut self, value: ValueId) {
        let Def::Constant(id) = self.value(value).def else {
            return;
        };
        let uses = |region: &Region| {
            let mut operands = region.nodes.iter().flat_map(|&n| &self.node(n).operands);
            region.outputs.contains(&value) || operands.any(|o| *o == Some(value))
        };
        if self
            .reachable_regions()
            .iter()
            .any(|&r| uses(self.region(r)))
        {
            return;
        }
        let empty = Constant::dense(self.constant(id).elem(), vec![0], bytes::Bytes::new());
        self.value_mut(value).ty = empty.ty();
        self.constants[id.index()] = empty;
    }

    /// Drops nodes without used results, innermost regions included. Pure ops only exist, so nothing
    /// else could be lost.
    pub fn remove_dead_nodes(&mut self) {
        let mut live: HashSet<ValueId> = HashSet::new();
        let mut order = self.reachable_regions();
        for &r in &order {
            live.extend(&self.region(r).outputs);
        }
        // Inner regions use outer values, so a single pass from the inside out, repeated until nothing
        // changes, finds every dead chain.
        order.reverse();
        loop {
            let mut used = live.clone();
            for &r in &self.reachable_regions() {
                for &n in &self.region(r).nodes {
                    used.extend(self.node(n).operands.iter().flatten());
                }
            }
            let mut changed = false;
            for &r in &order {
                let nodes = std::mem::take(&mut self.region_mut(r).nodes);
                let before = nodes.len();
                let kept: Vec<NodeId> = nodes
                    .into_iter()
                    .rev()
                    .filter(|&n| {
                        let keep = self.node(n).results.iter().any(|v| used.contains(v));
                        if !keep {
                            changed = true;
                        }
                        keep
                    })
                    .collect();
                debug_assert!(kept.len() <= before);
                self.region_mut(r).nodes = kept.into_iter().rev().collect();
            }
            if !changed {
                return;
            }
        }
    }

    /// Gives every value that lacks one, or shares one, a name of its own.
    pub fn uniquify_names(&mut self) {
        let mut seen = HashSet::new();
        for i in 0..self.values.len() {
            let base = match self.values[i].name.as_str() {
                "" => format!("%{i}"),
                name => name.to_owned(),
            };
            let mut name = base.clone();
            let mut suffix = 1;
            while !seen.insert(name.clone()) {
                name = format!("{base}.{suffix}");
                suffix += 1;
            }
            self.values[i].name = name;
        }
    }
}

impl Node {
    /// Operand `i`, if given.
    pub fn operand(&self, i: usize) -> Option<ValueId> {
        self.operands.get(i).copied().flatten()
    }

    /// Attribute, or the op's default for it.
    pub fn attr(&self, name: &str) -> Option<Attr> {
        self.attrs
            .get(name)
            .cloned()
            .or_else(|| self.op.attr_default(name))
    }
}
