//! Products with packed weights become products with compressed constants, and dropout that drops nothing goes.
//!
//! `before => after`: `matmul_nbits(a, const, const)  =>  matmul(round_blocks(a), transpose(const affine{..; int{4}}))`, `dropout(x)  =>
//! identity(x)`. What they mean is the op's decomposition; here it is only done early, so that rules see a product, with what is
//! around it. Nothing is decoded: the constant's bytes are the file's.

use crate::lower::decompose::decompose_where;
use lapidary_ir::{Module, NodeId};

/// Ops that mean a product with weights in a format of their own.
const PACKED: &[&str] = &["matmul_nbits"];

/// Replaces what it can; true if there was something.
pub fn encode(module: &mut Module) -> bool {
    let wanted = |module: &Module, id: NodeId| {
        let node = module.node(id);
        let constant = |v| module.as_constant(v).is_some();
        let packed = PACKED.contains(&node.op.name);
        packed && node.operands.iter().skip(1).flatten().all(|&v| constant(v))
            || node.op.name == "dropout" && node.operand(2).is_none()
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

#[cfg(test)]
mod tests {
    use super::encode;
    use lapidary_ir::builder::Builder;
    use lapidary_ir::types::Type;
    use lapidary_ir::{Attrs, ElemType, Module, Tensor};
    use std::cell::Cell;

    #[test]
    fn dropout_that_drops_nothing_goes() {
        for (training, left) in [(false, "identity"), (true, "dropout")] {
            let mut module = Module::new("m");
            let of = |elem| Type::tensor(elem, vec![3i64; 1]);
            let x = module.add_input(Module::TOP, "x", of(ElemType::F32));
            let fresh = Cell::new(0);
            let mut b = Builder::new(&mut module, Module::TOP, "n", &fresh);
            let ratio = b.constant(&Tensor::from_f64(ElemType::F32, [], vec![0.5]));
            let training = training.then(|| b.constant(&Tensor::bool(true)));
            let operands = vec![Some(x), Some(ratio), training];
            let results = b.node("dropout", operands, Attrs::default(), 2);
            module.region_mut(Module::TOP).outputs = vec![results.expect("a node")[0]];
            module.output_names = vec!["y".into()];
            assert_eq!(encode(&mut module), left == "identity");
            let nodes = module.region(Module::TOP).nodes.iter();
            let names: Vec<&str> = nodes.map(|&n| module.node(n).op.name).collect();
            assert_eq!(names, [left]);
        }
    }
}
