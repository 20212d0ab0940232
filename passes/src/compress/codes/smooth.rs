//! The spread of a product's inputs moves into its weights.
//!
//! `before => after`: `matmul(x, W)  =>  matmul(x * (1 / s), s W)`, with one `s` for all products that read `x`. The
//! multiplication is part of whatever writes the codes of `x`.

use super::super::CompressError;
use super::super::samples::Samples;
use super::Scope;
use super::place::{self, Product};
use super::write::{number_of, weight};
use crate::methods::smoothquant;
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{Constant, ElemType, Module, Tensor, ValueId};
use std::cell::Cell;
use std::collections::BTreeMap;

/// Smooths the inputs of all matrix products with weights.
pub(super) fn smooth(
    module: &mut Module,
    alpha: f64,
    samples: &dyn Samples,
    progress: &dyn Fn(&str),
) -> Result<(), CompressError> {
    let mut inputs: BTreeMap<ValueId, Vec<Product>> = BTreeMap::new();
    for product in place::find(module, Scope::Products).products {
        let node = module.node(product.node);
        if let Some(x) = node.operand(0).filter(|_| node.op.name != "conv") {
            inputs.entry(x).or_default().push(product);
        }
    }
    let channels = |products: &[Product]| {
        let weight = module.node(products[0].node).operand(1)?;
        // Weights of matrix products have two axes of known lengths.
        module.value(weight).ty.shape()?[1 - products[0].axis].as_const()
    };
    let watched = inputs.iter().filter_map(|(&x, p)| Some((x, channels(p)?)));
    let watched: BTreeMap<ValueId, i64> = watched.collect();
    inputs.retain(|x, _| watched.contains_key(x));
    let mut largest: Vec<Vec<f64>> = vec![vec![]; watched.len()];
    let maxima = |probe: &mut Module, fresh: &Cell<u32>| {
        let of = |(&x, &channels): (&ValueId, &i64)| {
            let mut b = Builder::new(probe, Module::TOP, "calibrate", fresh);
            channel_maxima(&mut b, x, channels)
        };
        watched.iter().map(of).collect()
    };
    let mut see = |i: usize, found: &[f32]| {
        largest[i].resize(found.len(), 0.0);
        let pairs = largest[i].iter_mut().zip(found);
        pairs.for_each(|(most, &x)| *most = most.max(x.into()));
    };
    super::watch(module, samples, progress, "channels", maxima, &mut see)?;
    let fresh = Cell::new(first_fresh(module));
    for ((x, products), largest) in inputs.into_iter().zip(largest) {
        // What is not finite has no range either, and stays as it is.
        if largest.iter().all(|m| m.is_finite()) {
            move_spread(module, x, &products, &largest, alpha, &fresh)
                .map_err(CompressError::Graph)?;
        }
    }
    Ok(())
}

/// The largest `|x|` of each channel.
fn channel_maxima(b: &mut Builder, x: ValueId, channels: i64) -> Result<ValueId, OpError> {
    let rows = b.reshape(x, &[Len::N(-1), Len::N(channels)])?;
    let abs = b.op("abs", &[rows])?;
    b.reduce("reduce_max", abs, &[0], false)
}

fn move_spread(
    module: &mut Module,
    x: ValueId,
    products: &[Product],
    largest: &[f64],
    alpha: f64,
    fresh: &Cell<u32>,
) -> Result<(), OpError> {
    // Outputs lie along the axis, inputs along the other of two.
    let input = |i: usize, product: &Product, tensor: &Tensor| match product.axis {
        0 => i % largest.len(),
        _ => i / tensor.shape()[1],
    };
    let mut of_weights = vec![0f64; largest.len()];
    let mut weights = vec![];
    for product in products {
        let (value, tensor) = weight(module, product)?;
        for (i, w) in number_of(&tensor)?.iter().enumerate() {
            let most = &mut of_weights[input(i, product, &tensor)];
            *most = most.max(w.abs());
        }
        weights.push((product, value, tensor));
    }
    let factors = smoothquant::balance(largest, &of_weights, alpha);
    for (product, value, tensor) in weights {
        let numbers = number_of(&tensor)?.iter().enumerate();
        let scaled = numbers.map(|(i, w)| w * factors[input(i, product, &tensor)]);
        let scaled = Tensor::from_f64(ElemType::F32, tensor.shape(), scaled.collect());
        let name = module.value(value).name.clone();
        let constant = module.add_constant(&name, Constant::from_tensor(&scaled));
        module.node_mut(product.node).operands[1] = Some(constant);
    }
    let inverse: Vec<f64> = factors.iter().map(|f| 1.0 / f).collect();
    let mut b = Builder::new(module, Module::TOP, "smooth", fresh);
    let inverse = b.constant(&Tensor::from_f64(ElemType::F32, [factors.len()], inverse));
    let even = b.op("mul", &[x, inverse])?;
    // It stands before the first that reads it.
    let nodes = &mut module.region_mut(Module::TOP).nodes;
    if let Some(new) = nodes.pop() {
        let first = nodes
            .iter()
            .position(|n| products.iter().any(|p| p.node == *n));
        nodes.insert(first.unwrap_or(nodes.len()), new);
    }
    for product in products {
        module.node_mut(product.node).operands[0] = Some(even);
    }
    Ok(())
}
