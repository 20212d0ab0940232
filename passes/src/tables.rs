//! Functions of one 8-bit code become tables of 256 codes.
//!
//! `before => after`: `quantize_linear(gelu(dequantize_linear(x)))  =>  lookup(x, table)`. What quantized networks do between
//! products (activations written out, changes of scale) reads one code and gives one code, element by element, however
//! long the chain is; all of its results are found at compile time by the reference evaluator.
//! (BCT: Blockwise Compression of Transformers, arXiv 2304.01483, does so for GELU and softmax's exponential.)

use crate::lower::{Fuse, rule};
use lapidary_ir::builder::Builder;
use lapidary_ir::eval::eval_node;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::tensor::{Value, count};
use lapidary_ir::{Constant, ElemType, Module, NodeId, RegionId, Tensor, ValueId};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

/// Replaces what it can; the number of tables.
pub fn tabulate(module: &mut Module) -> usize {
    let mut made = 0;
    for region in module.reachable_regions() {
        let sources = sources(module, region);
        // From the last to the first, so that a chain is found from its end.
        for n in module.region(region).nodes.clone().into_iter().rev() {
            if let Some(chain) = Chain::find(module, &sources, n)
                && is_used(module, region, n)
                && let Some(table) = chain.table(module)
            {
                replace(module, region, n, &chain, &table);
                // The rest of the chain must not be taken for one of its own.
                module.remove_dead_nodes();
                made += 1;
            }
        }
    }
    made
}

/// True if something reads a node's result.
fn is_used(module: &Module, region: RegionId, n: NodeId) -> bool {
    let &[result] = module.node(n).results.as_slice() else {
        return false;
    };
    let region = module.region(region);
    region.outputs.contains(&result)
        || region.nodes.iter().any(|&user| {
            let user = module.node(user);
            !user.regions.is_empty() || user.operands.contains(&Some(result))
        })
}

/// For each value that is computed element by element from the codes of one value: that value.
fn sources(module: &Module, region: RegionId) -> HashMap<ValueId, ValueId> {
    let mut sources: HashMap<ValueId, ValueId> = HashMap::new();
    for &n in &module.region(region).nodes {
        if !is_pointwise(module, n) {
            continue;
        }
        let node = module.node(n);
        let result = node.results[0];
        let shape = |v: ValueId| module.value(v).ty.shape();
        let mut source = None;
        let one = node.operands.iter().flatten().all(|&v| {
            if let Some(c) = module.as_constant(v) {
                return count(c.shape()) == 1;
            }
            let own = sources.get(&v).copied().or(is_code(module, v).then_some(v));
            let first = *source.get_or_insert(own);
            own.is_some() && own == first && shape(v).is_some() && shape(v) == shape(result)
        });
        if let Some(source) = source.flatten().filter(|_| one) {
            sources.insert(result, source);
        }
    }
    sources
}

/// What computes codes from the codes of one value.
struct Chain {
    /// The value.
    x: ValueId,
    /// The nodes, in order.
    nodes: Vec<NodeId>,
}

impl Chain {
    fn find(module: &Module, sources: &HashMap<ValueId, ValueId>, root: NodeId) -> Option<Chain> {
        let result = *module.node(root).results.first()?;
        let x = *sources.get(&result)?;
        if !is_code(module, result) {
            return None;
        }
        let mut nodes = vec![];
        let mut seen = HashSet::new();
        // Depth first; a node is put down after all that it needs.
        let mut stack = vec![(root, false)];
        while let Some((n, done)) = stack.pop() {
            if done {
                nodes.push(n);
            } else if seen.insert(n) {
                stack.push((n, true));
                let operands = module.node(n).operands.iter().flatten();
                let inner = operands.filter(|&&v| v != x);
                stack.extend(inner.filter_map(|&v| Some((module.producer(v)?, false))));
            }
        }
        (nodes.len() > 1).then_some(Chain { x, nodes })
    }

    /// Its results for every code, by the code's bits.
    fn table(&self, module: &Module) -> Option<Constant> {
        let elem = module.value(self.x).ty.elem()?;
        let codes: Vec<i128> = match elem {
            ElemType::U8 => (0..256).collect(),
            _ => (0..128).chain(-128..0).collect(),
        };
        let codes = Tensor::from_int(elem, [256], codes);
        let mut known: HashMap<ValueId, Value> = HashMap::from([(self.x, codes.into())]);
        for &n in &self.nodes {
            let node = module.node(n);
            for &v in node.operands.iter().flatten() {
                if let Some(c) = module.as_constant(v) {
                    // One element broadcasts whatever its rank is; more axes than the codes have would add some.
                    let c = c.decode().ok()?.with_shape([]);
                    known.insert(v, c.into());
                }
            }
            let operands: Vec<Option<&Value>> = node
                .operands
                .iter()
                .map(|o| o.and_then(|v| known.get(&v)))
                .collect();
            let result = eval_node(module, n, &operands).ok()?.into_iter().next()?;
            known.insert(node.results[0], result);
        }
        let last = module.node(*self.nodes.last()?).results[0];
        let table = known[&last].as_tensor()?;
        (table.shape() == [256]).then(|| Constant::from_tensor(table))
    }
}

fn is_code(module: &Module, v: ValueId) -> bool {
    matches!(module.value(v).ty.elem(), Some(ElemType::U8 | ElemType::I8))
}

/// True if the node computes each element of its one result from the same element of its operands.
fn is_pointwise(module: &Module, n: NodeId) -> bool {
    let node = module.node(n);
    let coding = ["quantize_linear", "dequantize_linear"].contains(&node.op.name);
    let listed = rule(node.op.name).is_some_and(|r| r.fuse == Fuse::Pointwise);
    node.results.len() == 1 && node.op.pure && node.regions.is_empty() && (coding || listed)
}

fn replace(module: &mut Module, region: RegionId, n: NodeId, chain: &Chain, table: &Constant) {
    let fresh = Cell::new(first_fresh(module));
    let (result, name) = (module.node(n).results[0], module.node(n).name.clone());
    let at = module.region(region).nodes.iter().position(|&m| m == n);
    let at = at.expect("a used node is in its region");
    let after = module.region_mut(region).nodes.split_off(at);
    let table = module.add_constant("", table.clone());
    let mut b = Builder::new(module, region, &name, &fresh);
    let made = b.op("lookup", &[chain.x, table]);
    let nodes = &mut module.region_mut(region).nodes;
    nodes.extend(after);
    if let Ok(made) = made {
        module.replace_uses(result, made);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::{Type, eval};

    /// Builds a program of one input of codes, and tabulates it: the number of tables, after checking the results.
    fn check(elem: ElemType, build: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> usize {
        let mut module = Module::new("t");
        let fresh = Cell::new(0);
        let x = module.add_input(Module::TOP, "x", Type::tensor(elem, [4i64, 64]));
        let y = build(&mut Builder::new(&mut module, Module::TOP, "n", &fresh), x);
        module.region_mut(Module::TOP).outputs.push(y);
        let (least, most) = elem.int_range().expect("codes");
        let codes = Tensor::from_int(elem, [4, 64], (least..=most).collect());
        let want = eval::run(&module, vec![codes.clone().into()]).expect("it evaluates");
        let made = tabulate(&mut module);
        assert!(lapidary_ir::verify::errors(&module).is_empty());
        let got = eval::run(&module, vec![codes.into()]).expect("it evaluates");
        assert_eq!(want, got);
        made
    }

    fn coded(b: &mut Builder, x: ValueId, op: &str, scale: f64, elem: ElemType) -> ValueId {
        let zero = b.constant(&Tensor::from_int(elem, [], vec![3]));
        let scale = b.scalar(ElemType::F32, scale);
        b.op(op, &[x, scale, zero]).expect("codes")
    }

    #[test]
    fn chains_become_one_table() {
        for elem in [ElemType::U8, ElemType::I8] {
            let made = check(elem, |b, x| {
                let number = coded(b, x, "dequantize_linear", 0.1, elem);
                let e = b.op("erf", &[number]).expect("erf");
                let e = coded(b, e, "quantize_linear", 0.01, ElemType::U8);
                let e = coded(b, e, "dequantize_linear", 0.01, ElemType::U8);
                let y = b.op("mul", &[number, e]).expect("mul");
                coded(b, y, "quantize_linear", 0.05, ElemType::I8)
            });
            assert_eq!(made, 1);
        }
    }

    /// What programs look up is what `methods/bct.rs` defines, and loses what its tests say.
    #[test]
    fn activations_are_tables_of_their_formulas() {
        let gelu = |x: f64| 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let cases: [(&str, &dyn Fn(f64) -> f64, f64, f64); 4] = [
            ("gelu", &gelu, 4.0 / 127.0, 4.0 / 127.0),
            ("gelu", &gelu, 8.0 / 127.0, 8.0 / 127.0),
            ("sigmoid", &sigmoid, 6.0 / 127.0, 1.0 / 127.0),
            ("exp", &f64::exp, 1.0 / 127.0, 2.72 / 127.0),
        ];
        for (op, f, from, to) in cases {
            let mut module = Module::new("t");
            let fresh = Cell::new(0);
            let x = module.add_input(Module::TOP, "x", Type::tensor(ElemType::I8, [256i64]));
            let mut b = Builder::new(&mut module, Module::TOP, "n", &fresh);
            let [from_scale, to_scale] = [from, to].map(|v| b.scalar(ElemType::F32, v));
            let zero = b.constant(&Tensor::from_int(ElemType::I8, [], vec![0]));
            let number = b.op("dequantize_linear", &[x, from_scale, zero]);
            let y = b.op(op, &[number.expect("numbers")]).expect("a function");
            let y = b.op("quantize_linear", &[y, to_scale, zero]);
            let y = y.expect("codes");
            module.region_mut(Module::TOP).outputs.push(y);
            assert_eq!(tabulate(&mut module), 1);
            let codes = (0..128).chain(-128..0).collect();
            let codes = Tensor::from_int(ElemType::I8, [256], codes);
            let found = eval::run(&module, vec![codes.into()]).expect("it evaluates");
            let found = found[0].as_tensor().and_then(Tensor::to_i64s);
            let want = crate::methods::bct::table(f, from, to).map(i64::from);
            assert_eq!(found.expect("codes"), want, "{op}");
        }
    }

    #[test]
    fn two_values_are_no_table() {
        let made = check(ElemType::U8, |b, x| {
            let number = coded(b, x, "dequantize_linear", 0.1, ElemType::U8);
            let turned = b.ints(&[64, 4]);
            let turned = b.op("reshape", &[number, turned]).expect("reshape");
            let turned = b.transpose(turned, &[1, 0]).expect("transpose");
            let y = b.op("add", &[number, turned]).expect("add");
            coded(b, y, "quantize_linear", 0.05, ElemType::U8)
        });
        assert_eq!(made, 0);
    }
}
