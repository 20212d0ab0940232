//! Rounds what is multiplied with weights of a few bits, so that products are of integers.
//!
//! ```text
//! matmul(x, transpose(const affine{..}))  =>  matmul(round_blocks(x), transpose(const affine{..}))
//! ```
//! This changes results a little (the blocks of `x` keep 8 bits), so it is done only where the user asks for it; one row of
//! `x` is then bound by how fast the weights are read. llama.cpp does so always, with blocks of 32.

use super::blocked::block_of;
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, ElemType, Module, NodeId, ValueId};
use std::cell::Cell;
use std::collections::HashMap;

/// Rounds in place; the number of products that read rounded numbers now.
pub fn round(module: &mut Module) -> Result<usize, OpError> {
    let fresh = Cell::new(first_fresh(module));
    let mut products = 0;
    for r in module.reachable_regions() {
        let nodes = std::mem::take(&mut module.region_mut(r).nodes);
        // Products that read the same numbers read them rounded once.
        let mut made: HashMap<(ValueId, u32), ValueId> = HashMap::new();
        for n in nodes {
            if let Some((x, block)) = numbers(module, n) {
                let rounded = match made.get(&(x, block)) {
                    Some(&rounded) => rounded,
                    None => {
                        let name = module.node(n).name.clone();
                        let mut b = Builder::new(module, r, &name, &fresh);
                        let attrs = [("block_size", Attr::Int(block.into()))];
                        b.op_with("round_blocks", &[x], attrs)?
                    }
                };
                made.insert((x, block), rounded);
                module.node_mut(n).operands[0] = Some(rounded);
                products += 1;
            }
            module.region_mut(r).nodes.push(n);
        }
    }
    Ok(products)
}

/// What a product with such weights multiplies, if that is not rounded yet, and the length of the weights' blocks.
fn numbers(module: &Module, n: NodeId) -> Option<(ValueId, u32)> {
    let block = block_of(module, n)?;
    let x = module.node(n).operand(0)?;
    let rounded = module
        .producer(x)
        .is_some_and(|p| module.node(p).op.name == "round_blocks");
    let plain = module.value(x).ty.elem() == Some(ElemType::F32) && !rounded;
    plain.then_some((x, block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::encode;
    use crate::lower::checks::numbers;
    use crate::lower::testing::run;
    use crate::lower::{Options, lower};
    use lapidary_ir::target::Target;
    use lapidary_ir::types::Type;
    use lapidary_ir::{Attrs, Tensor, eval};

    /// Two products of one matrix with weights of 4 bits, and one with a plain matrix.
    fn module() -> Module {
        let mut m = Module::new("products");
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [3usize, 64]));
        let fresh = Cell::new(0);
        let mut b = Builder::new(&mut m, Module::TOP, "", &fresh);
        let mut outputs = vec![];
        for seed in [1, 2] {
            let codes = (0..8 * 2 * 16)
                .map(|i| (i * 37 + seed * 11) % 256)
                .collect();
            let codes = b.constant(&Tensor::from_int(ElemType::U8, [8, 2, 16], codes));
            let scales = b.constant(&numbers(&[8, 2], seed as u64));
            let attrs: Attrs = [("K", 64), ("N", 8), ("bits", 4), ("block_size", 32)]
                .map(|(name, v)| (name.to_owned(), Attr::Int(v)))
                .into();
            let operands = vec![Some(x), Some(codes), Some(scales)];
            let made = b.node("matmul_nbits", operands, attrs, 1);
            outputs.push(made.expect("a product")[0]);
        }
        let w = b.constant(&numbers(&[64, 8], 3));
        outputs.push(b.op("matmul", &[x, w]).expect("a product"));
        m.region_mut(Module::TOP).outputs = outputs;
        m.output_names = ["a", "b", "c"].map(str::to_owned).into();
        m
    }

    #[test]
    fn numbers_are_rounded_once_for_all_products_with_such_weights() {
        let module = module();
        let mut rounded = module.clone();
        encode(&mut rounded);
        assert_eq!(round(&mut rounded), Ok(2));
        let made = |m: &Module| {
            let nodes = m.top().nodes.iter();
            nodes
                .filter(|&&n| m.node(n).op.name == "round_blocks")
                .count()
        };
        assert_eq!(made(&rounded), 1);
        assert_eq!(round(&mut rounded), Ok(0), "what is rounded stays so");
        let options = Options {
            round: true,
            ..Options::default()
        };
        let lowered = lower(&module, &Target::x86_64(), &options).unwrap_or_else(|e| panic!("{e}"));
        let given = vec![numbers(&[3, 64], 9).into()];
        let got = run(&lowered, &given).unwrap_or_else(|e| panic!("{e}"));
        let want = eval::run(&rounded, given).unwrap_or_else(|e| panic!("{e}"));
        for (g, w) in got.iter().zip(&want) {
            let all = |v: &lapidary_ir::tensor::Value| {
                v.as_tensor().and_then(Tensor::to_f64s).expect("numbers")
            };
            for (g, w) in all(g).into_iter().zip(all(w)) {
                assert!((g - w).abs() <= 1e-4 * (1.0 + w.abs()), "{g}, not {w}");
            }
        }
    }
}
