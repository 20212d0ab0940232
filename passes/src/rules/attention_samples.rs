//! Programs in which attention is written out.

use crate::rules::Sample;
use crate::rules::algebra::input;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, ElemType, Tensor, ValueId};

/// Heads, queries and keys, numbers of a head.
const DIMS: [i64; 4] = [1, 2, 3, 4];

/// A softmax between two products.
pub static SOFTMAX: &[Sample] = &[
    // Divided by a constant, masked.
    |b| {
        let s = scores(b)?;
        let root = b.scalar(ElemType::F32, 2.0);
        let s = b.op("div", &[s, root])?;
        let mask = input(b, "mask", &[1, 1, 1, 3]);
        let s = b.op("add", &[s, mask])?;
        weighted(b, s)
    },
    // The mask first, no factor.
    |b| {
        let s = scores(b)?;
        let mask = input(b, "mask", &[3, 3]);
        let s = b.op("add", &[mask, s])?;
        weighted(b, s)
    },
    // Both operands scaled.
    |b| {
        let (q, k) = (input(b, "q", &DIMS), input(b, "k", &DIMS));
        let root = b.scalar(ElemType::F32, 0.5f64.sqrt());
        let q = b.op("mul", &[q, root])?;
        let k = b.transpose(k, &[0, 1, 3, 2])?;
        let k = b.op("mul", &[k, root])?;
        let s = b.op("matmul", &[q, k])?;
        weighted(b, s)
    },
    // A constant condition that is the lower triangle.
    |b| {
        let s = scores(b)?;
        let allowed = (0..9).map(|i| i128::from(i % 3 <= i / 3)).collect();
        let allowed = b.constant(&Tensor::from_int(ElemType::Bool, [1, 1, 3, 3], allowed));
        let low = b.scalar(ElemType::F32, f64::from(f32::MIN));
        let s = b.op("where", &[allowed, s, low])?;
        weighted(b, s)
    },
    // Masked with minus infinity where a condition holds; the last key is always allowed.
    |b| {
        let s = scores(b)?;
        let hidden = b.constant(&Tensor::from_int(ElemType::Bool, [1, 1, 1, 3], vec![1, 0, 0]));
        let low = b.scalar(ElemType::F32, f64::NEG_INFINITY);
        let s = b.op("where", &[hidden, low, s])?;
        weighted(b, s)
    },
    // Heads and batch in one axis.
    |b| {
        let (q, k, v) = (input(b, "q", &[2, 3, 4]), input(b, "k", &[2, 5, 4]), input(b, "v", &[2, 5, 6]));
        let k = b.transpose(k, &[0, 2, 1])?;
        let s = b.op("matmul", &[q, k])?;
        let mask = input(b, "mask", &[1, 3, 5]);
        let s = b.op("add", &[s, mask])?;
        let p = b.op("softmax", &[s])?;
        b.op("matmul", &[p, v])
    },
];

/// Heads of keys and values repeated for the heads of queries.
pub static GROUPED: &[Sample] = &[
    |b| {
        let q = input(b, "q", &[1, 4, 3, 4]);
        let (k, v) = (input(b, "k", &DIMS), input(b, "v", &DIMS));
        let (k, v) = (repeat(b, k, "expand", &[1, 2, 2, 3, 4])?, repeat(b, v, "expand", &[1, 2, 2, 3, 4])?);
        b.op("attention", &[q, k, v])
    },
    |b| {
        let q = input(b, "q", &[1, 4, 3, 4]);
        let (k, v) = (input(b, "k", &DIMS), input(b, "v", &DIMS));
        let (k, v) = (repeat(b, k, "tile", &[1, 1, 2, 1, 1])?, repeat(b, v, "tile", &[1, 1, 2, 1, 1])?);
        b.op("attention", &[q, k, v])
    },
];

/// Masks that are lower triangles.
pub static CAUSAL: &[Sample] = &[
    |b| {
        let mask = (0..9).map(|i| if i % 3 <= i / 3 { 0.0 } else { f64::from(f32::MIN) }).collect();
        let mask = b.constant(&Tensor::from_f64(ElemType::F32, [1, 1, 3, 3], mask));
        attention(b, mask)
    },
    |b| {
        let allowed = (0..9).map(|i| i128::from(i % 3 <= i / 3)).collect();
        let allowed = b.constant(&Tensor::from_int(ElemType::Bool, [3, 3], allowed));
        attention(b, allowed)
    },
    |b| {
        let (shape, one) = (b.ints(&[3, 3]), b.constant(&Tensor::int(1)));
        let low = b.scalar(ElemType::F32, f64::NEG_INFINITY);
        let full = b.op("expand", &[low, shape])?;
        let mask = b.op_with("trilu", &[full, one], [("upper", Attr::Int(1))])?;
        let mask = b.unsqueeze(mask, &[0, 1])?;
        attention(b, mask)
    },
];

/// Heads split from rows and joined to rows.
pub static PACKED: &[Sample] = &[|b| {
    let mut heads = |name: &str, h: i64| -> Result<ValueId, OpError> {
        let x = input(b, name, &[2, 3, h * 4]);
        let shape = b.ints(&[2, 3, h, 4]);
        let x = b.op("reshape", &[x, shape])?;
        b.transpose(x, &[0, 2, 1, 3])
    };
    let (q, k, v) = (heads("q", 4)?, heads("k", 2)?, heads("v", 2)?);
    let y = b.op_with("attention", &[q, k, v], [("scale", Attr::Float(0.5))])?;
    let y = b.transpose(y, &[0, 2, 1, 3])?;
    let shape = b.ints(&[0, 0, 16]);
    b.op("reshape", &[y, shape])
}];

fn scores(b: &mut Builder) -> Result<ValueId, OpError> {
    let (q, k) = (input(b, "q", &DIMS), input(b, "k", &DIMS));
    let k = b.transpose(k, &[0, 1, 3, 2])?;
    b.op("matmul", &[q, k])
}

fn weighted(b: &mut Builder, s: ValueId) -> Result<ValueId, OpError> {
    let v = input(b, "v", &DIMS);
    let p = b.op_with("softmax", &[s], [("axis", Attr::Int(-1))])?;
    b.op("matmul", &[p, v])
}

fn repeat(b: &mut Builder, x: ValueId, op: &str, by: &[i64]) -> Result<ValueId, OpError> {
    let x = b.unsqueeze(x, &[2])?;
    let by = b.ints(by);
    let x = b.op(op, &[x, by])?;
    let shape = b.ints(&[1, 4, 3, 4]);
    b.op("reshape", &[x, shape])
}

fn attention(b: &mut Builder, mask: ValueId) -> Result<ValueId, OpError> {
    let (q, k, v) = (input(b, "q", &DIMS), input(b, "k", &DIMS), input(b, "v", &DIMS));
    b.op_with("attention", &[q, k, v, mask], [("scale", Attr::Float(0.5))])
}
