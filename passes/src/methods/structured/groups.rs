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

use lapidary_ir::graph::Node;
use lapidary_ir::{Attr, Module, RegionId, ValueId};
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
struct Links {
    first: HashMap<(ValueId, usize), (usize, usize)>,
    rank: HashMap<ValueId, usize>,
    parent: Vec<usize>,
    fixed: Vec<bool>,
}

type Axis = (ValueId, usize);

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

    fn len(&self, at: Axis) -> Option<usize> {
        self.first.get(&at).map(|a| a.1)
    }

    fn find(&mut self, mut atom: usize) -> usize {
        while self.parent[atom] != atom {
            self.parent[atom] = self.parent[self.parent[atom]];
            atom = self.parent[atom];
        }
        atom
    }

    fn tie_atoms(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        // The least atom stands for the group, so that the result does not depend on the order.
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high] = low;
        self.fixed[low] |= self.fixed[high];
    }

    /// Ties `count` places of two axes, from a place on each.
    fn tie_runs(&mut self, a: Axis, from_a: usize, b: Axis, from_b: usize, count: usize) {
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
    fn tie(&mut self, a: Axis, b: Axis) {
        match (self.len(a), self.len(b)) {
            (Some(n), Some(m)) if n == m => self.tie_runs(a, 0, b, 0, n),
            (Some(1), _) | (_, Some(1)) | (None, None) => {}
            _ => {
                self.fix(a);
                self.fix(b);
            }
        }
    }

    fn fix(&mut self, at: Axis) {
        if let Some(&(first, len)) = self.first.get(&at) {
            for atom in first..first + len {
                let root = self.find(atom);
                self.fixed[root] = true;
            }
        }
    }

    fn fix_all(&mut self, v: ValueId) {
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

/// Ops whose result has, at each place, something of its operands at that place alone.
const ELEMENTWISE: &[&str] = &[
    "abs",
    "add",
    "bias_gelu",
    "cast",
    "ceil",
    "clip",
    "cos",
    "div",
    "dropout",
    "elu",
    "erf",
    "exp",
    "fast_gelu",
    "floor",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "identity",
    "leaky_relu",
    "log",
    "max",
    "mean",
    "min",
    "mish",
    "mul",
    "neg",
    "pow",
    "prelu",
    "quick_gelu",
    "reciprocal",
    "relu",
    "round",
    "selu",
    "sigmoid",
    "sign",
    "sin",
    "softplus",
    "softsign",
    "sqrt",
    "sub",
    "sum",
    "swish",
    "tanh",
    "where",
];

/// Ops that keep images' channels apart.
const POOLS: &[&str] = &[
    "average_pool",
    "global_average_pool",
    "global_lp_pool",
    "global_max_pool",
    "lp_pool",
    "max_pool",
];

/// Ties what a node ties; `None` if it has no rule, or is used in a way that the rule is not about.
fn rule(links: &mut Links, module: &Module, node: &Node) -> Option<()> {
    let y = *node.results.first()?;
    let operand = |i: usize| node.operand(i);
    let int = |name: &str| match node.attr(name) {
        Some(Attr::Int(v)) => Some(v),
        _ => None,
    };
    let name = node.op.name;
    match name {
        _ if ELEMENTWISE.contains(&name) => {
            for &v in node.operands.iter().flatten() {
                aligned(links, v, y)?;
            }
            Some(())
        }
        _ if POOLS.contains(&name) => {
            let x = operand(0)?;
            (0..2).for_each(|axis| links.tie((x, axis), (y, axis)));
            (2..*links.rank.get(&x)?).for_each(|axis| links.fix((x, axis)));
            Some(())
        }
        "matmul" => matmul(links, operand(0)?, operand(1)?, y),
        "gemm" => {
            let turned = |name: &str| usize::from(int(name) == Some(1));
            let (a, b, ta, tb) = (operand(0)?, operand(1)?, turned("transA"), turned("transB"));
            links.tie((a, ta), (y, 0));
            links.tie((a, 1 - ta), (b, tb));
            links.tie((b, 1 - tb), (y, 1));
            operand(2).map_or(Some(()), |c| aligned(links, c, y))
        }
        "conv" => conv(
            links,
            operand(0)?,
            operand(1)?,
            operand(2),
            y,
            int("group")?,
        ),
        "batch_normalization" if node.results.len() == 1 => {
            let x = operand(0)?;
            (0..*links.rank.get(&x)?).for_each(|axis| links.tie((x, axis), (y, axis)));
            (1..5).try_for_each(|i| {
                links.tie((operand(i)?, 0), (y, 1));
                Some(())
            })
        }
        "softmax" | "log_softmax" => along(links, operand(0)?, y, int("axis")?, 1),
        "layer_normalization" | "rms_normalization" if node.results.len() == 1 => {
            let others = node.operands[1..].iter().flatten();
            others.for_each(|&v| links.fix_all(v));
            along(links, operand(0)?, y, int("axis")?, usize::MAX)
        }
        "transpose" => {
            let Some(Attr::Ints(perm)) = node.attr("perm") else {
                return None;
            };
            let x = operand(0)?;
            for (axis, &from) in perm.iter().enumerate() {
                links.tie((x, usize::try_from(from).ok()?), (y, axis));
            }
            Some(())
        }
        "reshape" | "flatten" | "squeeze" | "unsqueeze" => {
            // The new shape is rewritten where an axis of it gets shorter, so it has to be a constant.
            if name == "reshape" {
                module.as_constant(operand(1)?)?;
            }
            if name == "flatten" {
                return None;
            }
            reshape(links, module, operand(0)?, y)
        }
        "expand" => {
            module.as_constant(operand(1)?)?;
            aligned(links, operand(0)?, y)
        }
        "concat" | "split" => pieces(links, node, int("axis")?),
        "gather" => {
            let (x, at) = (operand(0)?, operand(1)?);
            let (rank, axis) = (
                *links.rank.get(&x)?,
                resolve(int("axis")?, *links.rank.get(&x)?)?,
            );
            let width = *links.rank.get(&at)?;
            links.fix((x, axis));
            links.fix_all(at);
            (0..width).for_each(|k| links.fix((y, axis + k)));
            for from in (0..rank).filter(|&a| a != axis) {
                let to = if from < axis { from } else { from + width - 1 };
                links.tie((x, from), (y, to));
            }
            Some(())
        }
        "rotary_embedding" => {
            let (x, heads) = (operand(0)?, int("num_heads")?);
            let heads = usize::try_from(heads).ok().filter(|&h| h > 0)?;
            node.operands[1..]
                .iter()
                .flatten()
                .for_each(|&v| links.fix_all(v));
            (0..2).for_each(|axis| links.tie((x, axis), (y, axis)));
            in_heads(links, &[(x, heads), (y, heads)], heads)
        }
        "attention" if node.results.len() == 1 && operand(4).is_none() && operand(5).is_none() => {
            let (q, k, v) = (operand(0)?, operand(1)?, operand(2)?);
            let heads = |name| usize::try_from(int(name)?).ok().filter(|&h| h > 0);
            let (of_q, of_kv) = (heads("q_num_heads")?, heads("kv_num_heads")?);
            node.operands[3..]
                .iter()
                .flatten()
                .for_each(|&v| links.fix_all(v));
            (0..2).for_each(|axis| links.tie((q, axis), (y, axis)));
            links.tie((k, 0), (v, 0));
            links.tie((k, 1), (v, 1));
            links.fix((k, 1));
            in_heads(
                links,
                &[(q, of_q), (k, of_kv), (v, of_kv), (y, of_q)],
                of_kv,
            )
        }
        _ => None,
    }
}

fn resolve(axis: i64, rank: usize) -> Option<usize> {
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis })
        .ok()
        .filter(|&a| a < rank)
}

/// Axes of an operand that is spread over the result, from the last on.
fn aligned(links: &mut Links, v: ValueId, y: ValueId) -> Option<()> {
    let (rank, of_y) = (*links.rank.get(&v)?, *links.rank.get(&y)?);
    for axis in 0..rank {
        links.tie((v, axis), (y, axis + of_y.checked_sub(rank)?));
    }
    Some(())
}

fn matmul(links: &mut Links, a: ValueId, b: ValueId, y: ValueId) -> Option<()> {
    let (ra, rb) = (*links.rank.get(&a)?, *links.rank.get(&b)?);
    if ra < 2 || rb < 2 {
        return None;
    }
    let ry = *links.rank.get(&y)?;
    links.tie((a, ra - 1), (b, rb - 2));
    links.tie((a, ra - 2), (y, ry - 2));
    links.tie((b, rb - 1), (y, ry - 1));
    for (v, rank) in [(a, ra), (b, rb)] {
        for axis in 0..rank - 2 {
            links.tie((v, axis), (y, axis + ry - rank));
        }
    }
    Some(())
}

/// Of one group, or with a filter for each channel.
fn conv(
    links: &mut Links,
    x: ValueId,
    w: ValueId,
    b: Option<ValueId>,
    y: ValueId,
    group: i64,
) -> Option<()> {
    let channels = links.len((x, 1))?;
    links.tie((x, 0), (y, 0));
    if group == 1 {
        links.tie((x, 1), (w, 1));
    } else if usize::try_from(group).ok()? == channels && links.len((w, 0)) == Some(channels) {
        links.tie((x, 1), (w, 0));
    } else {
        return None;
    }
    links.tie((w, 0), (y, 1));
    if let Some(b) = b {
        links.tie((b, 0), (y, 1));
    }
    for axis in 2..*links.rank.get(&x)? {
        for v in [x, w, y] {
            links.fix((v, axis));
        }
    }
    Some(())
}

/// An op that keeps the shape and needs `count` axes from `axis` on whole.
fn along(links: &mut Links, x: ValueId, y: ValueId, axis: i64, count: usize) -> Option<()> {
    let rank = *links.rank.get(&x)?;
    let axis = resolve(axis, rank)?;
    for a in 0..rank {
        links.tie((x, a), (y, a));
        if a >= axis && a - axis < count {
            links.fix((x, a));
        }
    }
    Some(())
}

/// Pieces one after the other along an axis: operands of a concatenation, or results of a split.
fn pieces(links: &mut Links, node: &Node, axis: i64) -> Option<()> {
    let (whole, parts) = match node.op.name {
        "concat" => (
            *node.results.first()?,
            node.operands.iter().flatten().copied().collect(),
        ),
        _ => (node.operand(0)?, node.results.clone()),
    };
    let parts: Vec<ValueId> = parts;
    let rank = *links.rank.get(&whole)?;
    let axis = resolve(axis, rank)?;
    let mut start = 0;
    for &part in &parts {
        let len = links.len((part, axis))?;
        links.tie_runs((whole, axis), start, (part, axis), 0, len);
        start += len;
        for other in (0..rank).filter(|&a| a != axis) {
            links.tie((part, other), (whole, other));
        }
    }
    Some(())
}

/// Axes in heads: places of the `h`-th of `heads` equal runs are tied, within each value and across them. A value with more
/// heads than that (queries that share keys) has that many of them in a run.
fn in_heads(links: &mut Links, values: &[(ValueId, usize)], heads: usize) -> Option<()> {
    let mut runs = vec![];
    for &(v, own) in values {
        let axis = links.rank.get(&v)?.checked_sub(1).filter(|&a| a == 2)?;
        let &(first, len) = links.first.get(&(v, axis))?;
        if own % heads != 0 || len % own != 0 {
            return None;
        }
        runs.push((first, len / heads));
    }
    for h in 0..heads {
        let lead = runs[0].0 + h * runs[0].1;
        for &(first, len) in &runs {
            (first + h * len..first + (h + 1) * len).for_each(|atom| links.tie_atoms(lead, atom));
        }
    }
    Some(())
}

/// Ties axes of a value and of the same elements in another shape. Where one axis becomes several, its places are tied to
/// those of the first of them, which they have in common, and the others are fixed.
fn reshape(links: &mut Links, module: &Module, x: ValueId, y: ValueId) -> Option<()> {
    let dims = |v: ValueId| module.value(v).ty.shape().map(|s| s.to_vec());
    let (from, to) = (dims(x)?, dims(y)?);
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let one = |d: Option<&lapidary_ir::Dim>| d.is_some_and(|d| d.as_const() == Some(1));
        if one(from.get(i)) && !one(to.get(j)) {
            i += 1;
            continue;
        }
        if one(to.get(j)) && !one(from.get(i)) {
            j += 1;
            continue;
        }
        let (a, b) = (from.get(i)?, to.get(j)?);
        if a == b {
            links.tie((x, i), (y, j));
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let (a, b) = (a.as_const()?, b.as_const()?);
        // One axis on this side, a run of axes on that.
        let (whole, many, list, start) = if a > b {
            ((x, i), y, &to, j)
        } else {
            ((y, j), x, &from, i)
        };
        let (long, mut product, mut end) = (a.max(b), 1, start);
        while product < long {
            product *= list.get(end)?.as_const()?;
            end += 1;
        }
        if product != long {
            return None;
        }
        let outer = links.len((many, start))?;
        let inner = long as usize / outer;
        let (&(first, _), &(heads, _)) =
            (links.first.get(&whole)?, links.first.get(&(many, start))?);
        for place in 0..long as usize {
            links.tie_atoms(first + place, heads + place / inner);
        }
        (start + 1..end).for_each(|axis| links.fix((many, axis)));
        (i, j) = if a > b { (i + 1, end) } else { (end, j + 1) };
    }
    Some(())
}
