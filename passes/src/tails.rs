//! What is done to the codes of a product goes into the product.
//!
//! `before => after`: `quantize_linear(add(dequantize_linear(quantized_conv(..)), dequantize_linear(r)))  =>
//! quantized_conv(.., r, scales, zeros)`, and `lookup(quantized_conv(..), table)  =>  quantized_conv(.., table)`. Residual sums,
//! biases that come after a quantization, activations and changes of scale then cost no pass over memory. It needs to know
//! that nothing else reads the codes, and so is no rule.

use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::quant::tail::{STAGES, TABLE, stage_operand};
use lapidary_ir::tensor::count;
use lapidary_ir::{Attr, Dim, ElemType, Module, NodeId, RegionId, ValueId};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

/// Puts what it can into products; the number of products.
pub fn attach(module: &mut Module) -> usize {
    let mut made = 0;
    for region in module.reachable_regions() {
        let mut seen = Region::new(module, region);
        for n in module.region(region).nodes.clone() {
            if let Some(tail) = seen.tail(module, n)
                && seen.replace(module, region, n, tail).is_some()
            {
                made += 1;
            }
        }
    }
    if made > 0 {
        module.remove_dead_nodes();
    }
    made
}

/// What reads what, in a region.
struct Region {
    users: HashMap<ValueId, Vec<NodeId>>,
    /// Read from elsewhere too.
    kept: HashSet<ValueId>,
    /// Nodes that a product has taken over.
    gone: HashSet<NodeId>,
}

/// An addition; operands as the tail of a product has them.
struct Stage {
    operands: Vec<(&'static str, ValueId)>,
}

/// What follows a product.
#[derive(Default)]
struct Tail {
    stages: Vec<Stage>,
    table: Option<ValueId>,
    /// Nodes that it is made of.
    nodes: Vec<NodeId>,
    /// The shape in the end, if it is not the product's.
    shape: Option<ValueId>,
}

impl Region {
    fn new(module: &Module, region: RegionId) -> Region {
        let mut users: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        let mut kept: HashSet<ValueId> = module.region(region).outputs.iter().copied().collect();
        for r in module.reachable_regions() {
            for &n in &module.region(r).nodes {
                for &v in module.node(n).operands.iter().flatten() {
                    if r == region {
                        users.entry(v).or_default().push(n);
                    } else {
                        kept.insert(v);
                    }
                }
            }
            if r != region {
                kept.extend(&module.region(r).outputs);
            }
        }
        Region {
            users,
            kept,
            gone: HashSet::new(),
        }
    }

    /// The one node that reads a value.
    fn only_user(&self, v: ValueId) -> Option<NodeId> {
        match self.users.get(&v).map(Vec::as_slice) {
            Some(&[n]) if !self.kept.contains(&v) && !self.gone.contains(&n) => Some(n),
            _ => None,
        }
    }

    /// What follows a product of codes, if something does that can go into it.
    fn tail(&self, module: &Module, n: NodeId) -> Option<Tail> {
        let node = module.node(n);
        if !matches!(node.op.name, "quantized_linear" | "quantized_conv")
            || node.operand(6).is_some()
        {
            return None;
        }
        let w = module.as_constant(node.operand(2)?)?;
        // Windows over single channels have kernels of their own.
        if node.op.name == "quantized_conv"
            && (node.int("group").unwrap_or(1) > 1 && w.shape().get(1) == Some(&1))
        {
            return None;
        }
        let linear = node.op.name == "quantized_linear";
        let mut zero = node.operand(5)?;
        let mut v = node.results[0];
        let mut tail = Tail::default();
        loop {
            let mut taken = vec![];
            let mut shape = None;
            let Some(mut user) = self.only_user(v) else {
                break;
            };
            let mut from = v;
            if linear && tail.shape.is_none() && module.node(user).op.name == "reshape" {
                shape = module.node(user).operand(1);
                from = module.node(user).results[0];
                taken.push(user);
                let Some(next) = self.only_user(from) else {
                    break;
                };
                user = next;
            }
            match module.node(user).op.name {
                "lookup" if module.node(user).operand(0) == Some(from) => {
                    let table = module.node(user).operand(1);
                    let table = table.filter(|&t| module.as_constant(t).is_some());
                    if table.is_none() {
                        break;
                    }
                    tail.table = table;
                    taken.push(user);
                }
                "dequantize_linear" if tail.stages.len() < STAGES && from == v => {
                    let Some((stage, end, reshaped)) =
                        self.stage(module, user, zero, &mut taken, linear, &tail)
                    else {
                        break;
                    };
                    shape = reshaped;
                    zero = end;
                    tail.stages.push(stage);
                }
                _ => break,
            }
            tail.shape = tail.shape.or(shape);
            v = module.node(*taken.last()?).results[0];
            tail.nodes.extend(taken);
            if tail.table.is_some() {
                break;
            }
        }
        (!tail.nodes.is_empty()).then_some(tail)
    }

    /// The stage that begins with a decoding of codes whose zero is `zero`: it, its own code of zero, and the shape that it
    /// gives them.
    fn stage(
        &self,
        module: &Module,
        decoding: NodeId,
        zero: ValueId,
        taken: &mut Vec<NodeId>,
        linear: bool,
        tail: &Tail,
    ) -> Option<(Stage, ValueId, Option<ValueId>)> {
        let (scale, own_zero) = scalar_coding(module, decoding)?;
        if !same(module, own_zero, zero) {
            return None;
        }
        let mut stage = Stage {
            operands: vec![("x_scale", scale)],
        };
        taken.push(decoding);
        let mut number = module.node(decoding).results[0];
        let mut shape = None;
        let mut user = self.only_user(number)?;
        if linear && tail.shape.is_none() && module.node(user).op.name == "reshape" {
            shape = module.node(user).operand(1);
            number = module.node(user).results[0];
            taken.push(user);
            user = self.only_user(number)?;
        }
        let sum = module.node(user);
        let (Some(a), Some(b)) = (sum.operand(0), sum.operand(1)) else {
            return None;
        };
        if sum.op.name != "add" || a == b {
            return None;
        }
        taken.push(user);
        let other = if a == number { b } else { a };
        let dims = module.value(number).ty.shape()?;
        if let Some(c) = module.as_constant(other) {
            let last = dims.last()?.as_const()?;
            let fits = linear && c.shape() == [last as usize];
            if !fits || module.value(other).ty.elem() != Some(ElemType::F32) {
                return None;
            }
            stage.operands.push(("bias", other));
        } else {
            let n = module.producer(other)?;
            let (scale, zero) = scalar_coding(module, n)?;
            let codes = module.node(n).operand(0)?;
            let ty = &module.value(codes).ty;
            if module.node(n).op.name != "dequantize_linear"
                || ty.elem() != Some(ElemType::U8)
                || ty.shape() != Some(dims)
                || !matches!(module.value(zero).ty.elem(), Some(ElemType::U8))
            {
                return None;
            }
            stage.operands.extend([
                ("residual", codes),
                ("residual_scale", scale),
                ("residual_zero", zero),
            ]);
            // With the addition, the decoding goes too, unless something else reads it.
            if self.only_user(other).is_some() {
                taken.push(n);
            }
        }
        let mut result = sum.results[0];
        let mut next = self.only_user(result)?;
        let rectified = module.node(next).op.name == "relu";
        if rectified {
            taken.push(next);
            result = module.node(next).results[0];
            next = self.only_user(result)?;
        }
        let coding = module.node(next);
        if coding.op.name != "quantize_linear" || coding.operand(0) != Some(result) {
            return None;
        }
        let (scale, zero) = scalar_coding(module, next)?;
        let elem = module.value(zero).ty.elem()?;
        let (least, _) = elem.int_range()?;
        // What is below zero is the least code anyway.
        if rectified && code(module, zero)? != least {
            return None;
        }
        stage
            .operands
            .extend([("y_scale", scale), ("y_zero", zero)]);
        taken.push(next);
        Some((stage, zero, shape))
    }

    /// Puts a product with its tail where the tail ends.
    fn replace(
        &mut self,
        module: &mut Module,
        region: RegionId,
        n: NodeId,
        tail: Tail,
    ) -> Option<()> {
        let last = *tail.nodes.last()?;
        let (result, name) = (module.node(last).results[0], module.node(last).name.clone());
        let product = module.node(n).clone();
        let dims = module
            .value(product.results[0])
            .ty
            .shape()
            .map(<[Dim]>::to_vec);
        let at = module
            .region(region)
            .nodes
            .iter()
            .position(|&m| m == last)?;
        let fresh = Cell::new(first_fresh(module));
        let after = module.region_mut(region).nodes.split_off(at);
        let mut operands = product.operands.clone();
        operands.resize(TABLE + 1, None);
        operands[TABLE] = tail.table;
        let mut b = Builder::new(module, region, &name, &fresh);
        let build = || {
            for (i, stage) in tail.stages.iter().enumerate() {
                for &(name, v) in &stage.operands {
                    let mut v = v;
                    if name == "residual" && b.shape(v).ok() != dims {
                        let own = dims.as_ref()?.iter().map(Dim::as_const);
                        let own = b.ints(&own.collect::<Option<Vec<i64>>>()?);
                        v = b.op("reshape", &[v, own]).ok()?;
                    }
                    operands[stage_operand(i, name)] = Some(v);
                }
            }
            let made = b.node(product.op.name, operands, product.attrs, 1).ok()?[0];
            match tail.shape {
                Some(shape) => b.op("reshape", &[made, shape]).ok(),
                None => Some(made),
            }
        };
        let made = build();
        module.region_mut(region).nodes.extend(after);
        let made = made?;
        module.replace_uses(result, made);
        if let Some(users) = self.users.get(&result).cloned() {
            self.users.insert(made, users);
        }
        self.gone.extend(tail.nodes);
        self.gone.insert(n);
        Some(())
    }
}

/// Scale and code of zero of a plain coding or decoding: one of each for all, known, and numbers in `f32`.
fn scalar_coding(module: &Module, n: NodeId) -> Option<(ValueId, ValueId)> {
    let node = module.node(n);
    if !matches!(node.op.name, "quantize_linear" | "dequantize_linear") {
        return None;
    }
    let (scale, zero) = (node.operand(1)?, node.operand(2)?);
    let scalar = |v| module.as_constant(v).is_some_and(|c| c.shape().is_empty());
    let f32s = |v| module.value(v).ty.elem() == Some(ElemType::F32);
    let number = if node.op.name == "quantize_linear" {
        node.operand(0)?
    } else {
        node.results[0]
    };
    let bytes = matches!(
        module.value(zero).ty.elem(),
        Some(ElemType::U8 | ElemType::I8)
    );
    let blocks = node.int("block_size").unwrap_or(0) != 0
        || matches!(node.attr("precision"), Some(Attr::Elem(_)));
    let value = module.as_constant(scale)?.decode().ok()?.to_f64s()?;
    let positive = value.first().is_some_and(|&s| s > 0.0 && s.is_finite());
    let all = scalar(scale) && scalar(zero) && f32s(scale) && f32s(number) && bytes && positive;
    (all && !blocks).then_some((scale, zero))
}

/// The number that a constant code is.
fn code(module: &Module, v: ValueId) -> Option<i128> {
    let c = module.as_constant(v)?;
    if count(c.shape()) != 1 {
        return None;
    }
    c.decode().ok()?.integers()?.first().copied()
}

/// True if two constants are the same code.
fn same(module: &Module, a: ValueId, b: ValueId) -> bool {
    let elem = |v: ValueId| module.value(v).ty.elem();
    a == b || elem(a) == elem(b) && code(module, a).is_some() && code(module, a) == code(module, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::{Tensor, Type, eval};

    fn coded(b: &mut Builder, x: ValueId, op: &str, scale: f64, zero: i128) -> ValueId {
        let zero = b.constant(&Tensor::from_int(ElemType::U8, [], vec![zero]));
        let scale = b.scalar(ElemType::F32, scale);
        b.op(op, &[x, scale, zero]).expect("codes")
    }

    /// The product of codes of `x` (zero 5) with constant weights of this shape.
    fn product(b: &mut Builder, op: &str, x: ValueId, w: &[usize], zero: i128) -> ValueId {
        let n = if op == "quantized_conv" { w[0] } else { w[1] };
        let codes = (0..w.iter().product::<usize>()).map(|i| (i * 37 % 200) as i128 - 100);
        let w = b.constant(&Tensor::from_int(ElemType::I8, w.to_vec(), codes.collect()));
        let scale = (0..n).map(|j| 0.0013 * (1 + j % 3) as f64).collect();
        let scale = b.constant(&Tensor::from_f64(ElemType::F32, [n], scale));
        let [of_x, of_y] =
            [5, zero].map(|z| b.constant(&Tensor::from_int(ElemType::U8, [], vec![z])));
        let operands = vec![Some(x), Some(of_x), Some(w), Some(scale), None, Some(of_y)];
        b.node(op, operands, lapidary_ir::Attrs::new(), 1)
            .expect("a product")[0]
    }

    /// Builds a program of inputs of codes and attaches: the number of products and of nodes, after checking the results.
    fn check(
        shapes: &[&[usize]],
        build: impl FnOnce(&mut Builder, &[ValueId]) -> Vec<ValueId>,
    ) -> (usize, usize) {
        let mut module = Module::new("t");
        let fresh = Cell::new(0);
        let input = |(i, s): (usize, &&[usize])| {
            let dims: Vec<Dim> = s.iter().map(|&d| Dim::from(d)).collect();
            module.add_input(
                Module::TOP,
                &format!("x{i}"),
                Type::tensor(ElemType::U8, dims),
            )
        };
        let inputs: Vec<ValueId> = shapes.iter().enumerate().map(input).collect();
        let outputs = build(
            &mut Builder::new(&mut module, Module::TOP, "n", &fresh),
            &inputs,
        );
        module.region_mut(Module::TOP).outputs = outputs;
        let values: Vec<_> = shapes
            .iter()
            .map(|s| {
                let codes = (0..s.iter().product::<usize>()).map(|i| (i * 89 % 256) as i128);
                Tensor::from_int(ElemType::U8, s.to_vec(), codes.collect()).into()
            })
            .collect();
        let want = eval::run(&module, values.clone()).expect("it evaluates");
        let made = attach(&mut module);
        assert!(lapidary_ir::verify::errors(&module).is_empty());
        assert_eq!(want, eval::run(&module, values).expect("it evaluates"));
        (made, module.region(Module::TOP).nodes.len())
    }

    #[test]
    fn sums_and_tables_go_into_the_product() {
        let result = check(&[&[1, 6, 5], &[1, 6, 40]], |b, x| {
            let flat = b.ints(&[6, 5]);
            let flat = b.op("reshape", &[x[0], flat]).expect("reshape");
            let y = product(b, "quantized_linear", flat, &[5, 40], 100);
            let y = coded(b, y, "dequantize_linear", 0.02, 100);
            let bias = (0..40).map(|j| 0.03 * (j % 7) as f64 - 0.1).collect();
            let bias = b.constant(&Tensor::from_f64(ElemType::F32, [40], bias));
            let y = b.op("add", &[bias, y]).expect("add");
            let y = coded(b, y, "quantize_linear", 0.021, 90);
            let y = coded(b, y, "dequantize_linear", 0.021, 90);
            let back = b.ints(&[1, 6, 40]);
            let y = b.op("reshape", &[y, back]).expect("reshape");
            let r = coded(b, x[1], "dequantize_linear", 0.004, 30);
            let y = b.op("add", &[y, r]).expect("add");
            let y = coded(b, y, "quantize_linear", 0.03, 77);
            let table = (0..256).map(|i| (i * 167 + 3) % 256).collect();
            let table = b.constant(&Tensor::from_int(ElemType::U8, [256], table));
            vec![b.op("lookup", &[y, table]).expect("lookup")]
        });
        // The product, reshapes of both its inputs and of its result.
        assert_eq!(result, (1, 4));
    }

    #[test]
    fn two_convolutions_are_added_by_one_of_them() {
        let result = check(&[&[1, 3, 4, 4], &[1, 8, 4, 4]], |b, x| {
            let y = product(b, "quantized_conv", x[0], &[7, 3, 1, 1], 3);
            let z = product(b, "quantized_conv", x[1], &[7, 8, 1, 1], 128);
            let y = coded(b, y, "dequantize_linear", 0.02, 3);
            let z = coded(b, z, "dequantize_linear", 0.01, 128);
            let sum = b.op("add", &[y, z]).expect("add");
            let sum = b.op("relu", &[sum]).expect("relu");
            vec![coded(b, sum, "quantize_linear", 0.025, 0)]
        });
        assert_eq!(result, (1, 2));
    }

    #[test]
    fn codes_that_are_read_elsewhere_stay() {
        let result = check(&[&[6, 5]], |b, x| {
            let y = product(b, "quantized_linear", x[0], &[5, 4], 100);
            let table = (0..256).rev().collect();
            let table = b.constant(&Tensor::from_int(ElemType::U8, [256], table));
            vec![y, b.op("lookup", &[y, table]).expect("lookup")]
        });
        assert_eq!(result, (0, 2));
        // A rectifier below whose zero there are codes is not the range's end.
        let result = check(&[&[6, 5], &[6, 4]], |b, x| {
            let y = product(b, "quantized_linear", x[0], &[5, 4], 100);
            let y = coded(b, y, "dequantize_linear", 0.02, 100);
            let r = coded(b, x[1], "dequantize_linear", 0.004, 30);
            let y = b.op("add", &[y, r]).expect("add");
            let y = b.op("relu", &[y]).expect("relu");
            vec![coded(b, y, "quantize_linear", 0.03, 77)]
        });
        assert_eq!(result.0, 0);
    }
}
