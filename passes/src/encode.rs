//! Products with packed weights become products with compressed constants.
//!
//! `before => after`: `matmul_nbits(a, const, const)  =>  matmul(round_blocks(a), transpose(const affine{..; int{4}}))`. What a
//! format means is its op's decomposition; here it is only done early, so that rules see a product, with what follows it.
//! Nothing is decoded: the constant's bytes are the file's.

use crate::lower::decompose::decompose_where;
use lapidary_ir::{Module, NodeId};

/// Ops that mean a product with weights in a format of their own.
const PACKED: &[&str] = &["matmul_nbits"];

/// Replaces what it can; true if there was something.
pub fn encode(module: &mut Module) -> bool {
    let wanted = |module: &Module, id: NodeId| {
        let node = module.node(id);
        let constant = |v| module.as_constant(v).is_some();
        PACKED.contains(&node.op.name)
            && node.operands.iter().skip(1).flatten().all(|&v| constant(v))
    };
    let regions = module.reachable_regions();
    let mut nodes = regions.iter().flat_map(|&r| &module.region(r).nodes);
    if !nodes.any(|&n| wanted(module, n)) {
        return false;
    }
    // On a copy: a node that does not fit its attributes stays, and lowering says what is wrong.
    let mut changed = module.clone();
    match decompose_where(&mut changed, &wanted) {
        Ok(()) => *module = changed,
        Err(_) => return false,
    }
    true
}
