//! Cutting a region into blocks that are saturated one at a time.
//!
//! A block is a run of consecutive nodes that can enter the e-graph: pure, one result, no region. Long runs are cut
//! where the fewest values cross, which in a deep network is the residual stream between layers, and rather before a
//! product than between a product and what follows it. The first of equal
//! places is taken, so that equal layers are cut equally and are solved once.

use lapidary_ir::graph::Def;
use lapidary_ir::{ElemType, Module, NodeId, RegionId, ValueId};
use std::collections::HashMap;
use std::ops::Range;

/// A block is cut once it has this many nodes …
const FEWEST: usize = 24;
/// … and at the latest at this many.
const MOST: usize = 56;

/// Nodes that a block is best cut before: what follows them is fused into them, so it must be in their block.
const HEADS: &[&str] = &[
    "conv",
    "matmul",
    "gemm",
    "conv_transpose",
    "dequantize_linear",
];

/// Ranges of positions in the region's node list, in order, that are blocks.
pub fn blocks(module: &Module, region: RegionId) -> Vec<Range<usize>> {
    let nodes = &module.region(region).nodes;
    let crossing = crossing_values(module, region);
    let mut out = vec![];
    let mut start = 0;
    while start < nodes.len() {
        if !enters(module, nodes[start]) {
            start += 1;
            continue;
        }
        let run = nodes[start..]
            .iter()
            .take_while(|&&n| enters(module, n))
            .count();
        let len = if run <= FEWEST {
            run
        } else {
            let last = run.min(MOST);
            (FEWEST..=last)
                .min_by_key(|&l| {
                    if l == run {
                        (0, false, l)
                    } else {
                        let next = module.node(nodes[start + l]).op.name;
                        (crossing[start + l], !HEADS.contains(&next), l)
                    }
                })
                .unwrap_or(last)
        };
        out.push(start..start + len);
        start += len;
    }
    out
}

/// Moves what is computed of constants alone to where it is first used, so that it is in the block of its use: exporters
/// decode all weights at the beginning.
pub fn sink_constants(module: &mut Module, region: RegionId) {
    let nodes = module.region(region).nodes.clone();
    let mut waiting: HashMap<ValueId, NodeId> = HashMap::new();
    let mut order = Vec::with_capacity(nodes.len());
    for &n in &nodes {
        let node = module.node(n);
        let constant = |v: &ValueId| module.as_constant(*v).is_some() || waiting.contains_key(v);
        if enters(module, n) && node.operands.iter().flatten().all(constant) {
            waiting.insert(node.results[0], n);
            continue;
        }
        if node.regions.is_empty() {
            for &v in node.operands.iter().flatten() {
                settle(module, v, &mut waiting, &mut order);
            }
        } else {
            // Regions may use values from around them.
            settle_all(module, &nodes, &mut waiting, &mut order);
        }
        order.push(n);
    }
    settle_all(module, &nodes, &mut waiting, &mut order);
    module.region_mut(region).nodes = order;
}

/// Puts the waiting node that defines a value, after those that it needs.
fn settle(
    module: &Module,
    value: ValueId,
    waiting: &mut HashMap<ValueId, NodeId>,
    order: &mut Vec<NodeId>,
) {
    let mut stack = vec![value];
    while let Some(&v) = stack.last() {
        let Some(&n) = waiting.get(&v) else {
            stack.pop();
            continue;
        };
        let operands = module.node(n).operands.iter().flatten();
        let needed: Vec<ValueId> = operands
            .copied()
            .filter(|o| waiting.contains_key(o))
            .collect();
        if needed.is_empty() {
            waiting.remove(&v);
            order.push(n);
            stack.pop();
        } else {
            stack.extend(needed);
        }
    }
}

fn settle_all(
    module: &Module,
    nodes: &[NodeId],
    waiting: &mut HashMap<ValueId, NodeId>,
    order: &mut Vec<NodeId>,
) {
    for &n in nodes {
        for &v in &module.node(n).results {
            settle(module, v, waiting, order);
        }
    }
}

/// True if a node can be an e-node.
pub fn enters(module: &Module, id: NodeId) -> bool {
    let node = module.node(id);
    node.op.pure && node.results.len() == 1 && node.regions.is_empty()
}

/// For each position, how many node results defined before it are used at or after it, those that are codes half: a block
/// rather ends with `quantize_linear` than after `dequantize_linear`.
fn crossing_values(module: &Module, region: RegionId) -> Vec<usize> {
    let nodes = &module.region(region).nodes;
    let mut last_use: HashMap<ValueId, usize> = HashMap::new();
    for (at, &id) in nodes.iter().enumerate() {
        for &operand in module.node(id).operands.iter().flatten() {
            last_use.insert(operand, at);
        }
    }
    for &output in &module.region(region).outputs {
        last_use.insert(output, nodes.len());
    }
    let mut change = vec![0isize; nodes.len() + 2];
    for (at, &id) in nodes.iter().enumerate() {
        for &result in &module.node(id).results {
            if let (Def::Result(..), Some(&last)) =
                (module.value(result).def, last_use.get(&result))
                && last > at
            {
                let code = matches!(
                    module.value(result).ty.elem(),
                    Some(ElemType::U8 | ElemType::I8)
                );
                let weight = if code { 1 } else { 2 };
                change[at + 1] += weight;
                change[last + 1] -= weight;
            }
        }
    }
    change
        .iter()
        .scan(0isize, |sum, c| {
            *sum += c;
            Some(*sum as usize)
        })
        .collect()
}
