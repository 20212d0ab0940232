//! Programs in which rotary embeddings are written out.

use crate::rules::Sample;
use crate::rules::algebra::input;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{ElemType, Tensor, ValueId};

/// By halves: tables made from one half, and constant tables.
pub static HALVES: &[Sample] = &[
    |b| {
        let angles = input(b, "angles", &[1, 3, 2]);
        let both = b.concat(&[angles, angles], -1)?;
        let (cos, sin) = (b.op("cos", &[both])?, b.op("sin", &[both])?);
        let (cos, sin) = (b.unsqueeze(cos, &[1])?, b.unsqueeze(sin, &[1])?);
        halves(b, cos, sin)
    },
    |b| {
        let table = |f: fn(f64) -> f64| Tensor::from_f64(ElemType::F32, [3, 4], (0..12).map(|i| f(f64::from(i / 4 * 2 + i % 2))).collect());
        let (cos, sin) = (b.constant(&table(f64::cos)), b.constant(&table(f64::sin)));
        halves(b, cos, sin)
    },
];

/// By neighbours.
pub static PAIRS: &[Sample] = &[|b| {
    let table = |f: fn(f64) -> f64| Tensor::from_f64(ElemType::F32, [3, 4], (0..12).map(|i| f(f64::from(i / 2))).collect());
    let (cos, sin) = (b.constant(&table(f64::cos)), b.constant(&table(f64::sin)));
    let x = input(b, "x", &[1, 2, 3, 4]);
    let (even, odd) = (b.slice_step(x, 3, 0, 4, 2)?, b.slice_step(x, 3, 1, 4, 2)?);
    let odd = b.op("neg", &[odd])?;
    let (even, odd) = (b.unsqueeze(even, &[4])?, b.unsqueeze(odd, &[4])?);
    let turned = b.concat(&[odd, even], 4)?;
    let shape = b.ints(&[1, 2, 3, 4]);
    let turned = b.op("reshape", &[turned, shape])?;
    let (straight, across) = (b.op("mul", &[x, cos])?, b.op("mul", &[turned, sin])?);
    b.op("add", &[straight, across])
}];

fn halves(b: &mut Builder, cos: ValueId, sin: ValueId) -> Result<ValueId, OpError> {
    let x = input(b, "x", &[1, 2, 3, 4]);
    let (low, high) = (b.slice(x, 3, 0, 2)?, b.slice(x, 3, 2, 4)?);
    let high = b.op("neg", &[high])?;
    let turned = b.concat(&[high, low], -1)?;
    let (straight, across) = (b.op("mul", &[x, cos])?, b.op("mul", &[turned, sin])?);
    b.op("add", &[straight, across])
}
