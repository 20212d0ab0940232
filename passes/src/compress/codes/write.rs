//! Codes in the place of values and weights.

use super::Coded;
use super::place::{Found, Place, Product};
use super::range::Code;
use crate::methods::matrix::Matrix;
use crate::methods::smoothquant::RowCodes;
use lapidary_ir::builder::Builder;
use lapidary_ir::eval::eval_node;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::tensor::Value;
use lapidary_ir::{Constant, ElemType, Module, NodeId, Tensor, ValueId};
use std::cell::Cell;
use std::collections::HashMap;

/// Lets all that is found read codes.
pub(super) fn write(
    module: &mut Module,
    found: &Found,
    ranges: &[Option<Code>],
) -> Result<Coded, OpError> {
    let fresh = Cell::new(first_fresh(module));
    let mut coded = Coded::default();
    let mut places: HashMap<ValueId, (&Place, Code)> = HashMap::new();
    for place in &found.places {
        match ranges[place.range] {
            Some(code) => {
                places.insert(place.value, (place, code));
            }
            None => {
                let name = &module.value(place.value).name;
                coded
                    .left
                    .push(format!("`{name}` has numbers that are not finite"));
            }
        }
    }
    coded.values = places.len();
    let products: HashMap<NodeId, &Product> = found
        .products
        .iter()
        .filter(|p| p.reads.iter().all(|v| places.contains_key(v)))
        .map(|p| (p.node, p))
        .collect();
    coded.products = products.len();
    let mut decoded: HashMap<ValueId, ValueId> = HashMap::new();
    let mut weights: HashMap<(ValueId, usize), ValueId> = HashMap::new();
    let nodes = std::mem::take(&mut module.region_mut(Module::TOP).nodes);
    for v in module.top().inputs.clone() {
        decode(module, v, &places, &mut decoded, &fresh)?;
    }
    for n in nodes {
        if let Some(product) = products.get(&n) {
            let (value, tensor) = weight(module, product)?;
            let codes = match weights.get(&(value, product.axis)) {
                Some(&codes) => codes,
                None => {
                    let codes = weight_codes(module, value, &tensor, product.axis, &fresh)?;
                    weights.insert((value, product.axis), codes);
                    codes
                }
            };
            module.node_mut(n).operands[1] = Some(codes);
        }
        for i in 0..module.node(n).operands.len() {
            let Some(v) = module.node(n).operands[i] else {
                continue;
            };
            let reads = places
                .get(&v)
                .is_some_and(|(p, _)| p.everywhere || p.uses.contains(&(n, i)));
            if let Some(&codes) = decoded.get(&v).filter(|_| reads) {
                module.node_mut(n).operands[i] = Some(codes);
            }
        }
        module.region_mut(Module::TOP).nodes.push(n);
        for v in module.node(n).results.clone() {
            decode(module, v, &places, &mut decoded, &fresh)?;
        }
    }
    Ok(coded)
}

/// Writes a value's codes, if it has some, and reads them again.
fn decode(
    module: &mut Module,
    v: ValueId,
    places: &HashMap<ValueId, (&Place, Code)>,
    decoded: &mut HashMap<ValueId, ValueId>,
    fresh: &Cell<u32>,
) -> Result<(), OpError> {
    let Some(&(_, Code { scale, zero })) = places.get(&v) else {
        return Ok(());
    };
    let name = module.value(v).name.clone();
    let mut b = Builder::new(module, Module::TOP, &name, fresh);
    let scale = b.scalar(ElemType::F32, scale.into());
    let zero = b.constant(&Tensor::from_int(ElemType::U8, [], vec![zero.into()]));
    let codes = b.op("quantize_linear", &[v, scale, zero])?;
    decoded.insert(v, b.op("dequantize_linear", &[codes, scale, zero])?);
    Ok(())
}

/// A product's weight and its numbers.
pub(super) fn weight(module: &Module, product: &Product) -> Result<(ValueId, Tensor), OpError> {
    let node = module.node(product.node);
    let value = node
        .operand(1)
        .ok_or_else(|| OpError::new("a product has no weight"))?;
    Ok((value, evaluate(module, value)?))
}

/// The numbers of a value that depends on constants alone.
fn evaluate(module: &Module, v: ValueId) -> Result<Tensor, OpError> {
    if let Some(constant) = module.as_constant(v) {
        return constant.decode().map_err(|e| OpError::new(e.reason));
    }
    let n = module
        .producer(v)
        .ok_or_else(|| OpError::new("a weight is no constant"))?;
    let node = module.node(n);
    let operands = node
        .operands
        .iter()
        .map(|o| o.map(|v| evaluate(module, v).map(Value::from)).transpose());
    let operands = operands.collect::<Result<Vec<Option<Value>>, OpError>>()?;
    let operands: Vec<Option<&Value>> = operands.iter().map(Option::as_ref).collect();
    let results = eval_node(module, n, &operands).map_err(|e| OpError::new(e.to_string()))?;
    let which = node.results.iter().position(|&r| r == v).unwrap_or(0);
    let result = results.get(which).and_then(Value::as_tensor);
    result
        .cloned()
        .ok_or_else(|| OpError::new("a weight is no tensor"))
}

/// The numbers of a weight of floats.
pub(super) fn number_of(tensor: &Tensor) -> Result<&[f64], OpError> {
    tensor
        .floats()
        .ok_or_else(|| OpError::new("a weight is not of floats"))
}

/// A weight as codes of `i8` with a scale for each place along an axis, decoded.
fn weight_codes(
    module: &mut Module,
    value: ValueId,
    tensor: &Tensor,
    axis: usize,
    fresh: &Cell<u32>,
) -> Result<ValueId, OpError> {
    let (shape, numbers) = (tensor.shape(), number_of(tensor)?);
    let rows = shape[axis];
    let columns = numbers.len() / rows.max(1);
    let bad = || OpError::new("a weight has another number of elements than its shape");
    let matrix = match axis {
        0 => Matrix::new(rows, columns, numbers.to_vec()),
        _ => Matrix::new(columns, rows, numbers.to_vec()).map(|m| m.transpose()),
    };
    let coded = RowCodes::quantize(&matrix.ok_or_else(bad)?, false);
    let at = |i: usize| match axis {
        0 => coded.codes[i],
        _ => coded.codes[i % rows * columns + i / rows],
    };
    let codes = (0..numbers.len()).map(|i| i128::from(at(i))).collect();
    let name = module.value(value).name.clone();
    let codes = Tensor::from_int(ElemType::I8, shape, codes);
    let codes = module.add_constant(&name, Constant::from_tensor(&codes));
    let mut b = Builder::new(module, Module::TOP, &name, fresh);
    let scales = b.constant(&Tensor::from_f64(ElemType::F32, [rows], coded.scales));
    b.op_with(
        "dequantize_linear",
        &[codes, scales],
        [("axis", (axis as i64).into())],
    )
}
