//! Softmax of rows that are consecutive elements: each exponential is computed once, while the row is in cache.
//!
//! ```text
//! grid (row)
//!   m = max x;   y = exp(x - m), l = sum y;   y = y * (1 / l)
//! ```

use super::epilogue::whole_lanes;
use super::{Num, add, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::{Axis, Binary, Kernel, Literal, ReduceKind, TileType, Unary};

/// Elements that are computed together, at most; where vectors are what the threads of a block hold, a row is.
const MOST: u32 = 16;
const MOST_WIDE: u32 = 1024;

/// The kernel for rows of `n` elements, a multiple of four. Parameters: `x`, `y`, then `rows` if it is [`Num::Sym`].
pub fn kernel(rows: Num, n: i64, wide: bool) -> Kernel {
    let mut b = KernelBuilder::new("softmax");
    let x = b.buffer("x", ElemType::F32, false);
    let y = b.buffer("y", ElemType::F32, true);
    let rows = rows.bind(&mut b, "rows");
    let fills = |l: &u32| n % i64::from(*l) == 0;
    let lanes = match wide {
        true => (1..=MOST_WIDE).rev().find(fills),
        false => whole_lanes(Num::Const(n), MOST),
    };
    let lanes = lanes.unwrap_or(1);
    let row = b.grid(rows.tiles(1));
    let first = mul_const(&mut b, row, n);
    let ty = TileType::of(ElemType::F32, &[lanes]);
    let (zero, end) = (b.index(0), b.index(n));
    let low = b.constant(ty.clone(), Literal::Float(f64::NEG_INFINITY));
    let most = b.for_loop(zero, end, lanes, &[low], |b, j, most| {
        let at = add(b, first, j);
        let v = b.load(x, at, &[lanes], vec![Axis::stride(1)]);
        vec![b.binary(Binary::Max, most[0], v)]
    })[0];
    let most = b.reduce(ReduceKind::Max, most, 0);
    let none = b.constant(ty, Literal::Float(0.0));
    let sum = b.for_loop(zero, end, lanes, &[none], |b, j, sum| {
        let at = add(b, first, j);
        let v = b.load(x, at, &[lanes], vec![Axis::stride(1)]);
        let v = b.binary(Binary::Sub, v, most);
        let e = b.unary(Unary::Exp, v);
        b.store(y, at, vec![Axis::stride(1)], e);
        vec![b.binary(Binary::Add, sum[0], e)]
    })[0];
    let sum = b.reduce(ReduceKind::Sum, sum, 0);
    let inverse = b.unary(Unary::Reciprocal, sum);
    b.for_loop(zero, end, lanes, &[], |b, j, _| {
        let at = add(b, first, j);
        let e = b.load(y, at, &[lanes], vec![Axis::stride(1)]);
        let e = b.binary(Binary::Mul, e, inverse);
        b.store(y, at, vec![Axis::stride(1)], e);
        vec![]
    });
    b.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedules::testing::{close, numbers, run};

    #[test]
    fn rows_sum_to_one() {
        for (rows, n, symbolic) in [
            (3, 32, false),
            (2, 20, false),
            (4, 8, true),
            (2, 1500, false),
        ] {
            for wide in [false, true] {
                let x = numbers(rows * n, 1);
                let (num, sizes) = match symbolic {
                    true => (Num::Sym, vec![rows as i64]),
                    false => (Num::Const(rows as i64), vec![]),
                };
                let got = run(&kernel(num, n as i64, wide), &[&x], rows * n, &sizes);
                let want: Vec<f32> = x
                    .chunks(n)
                    .flat_map(|row| {
                        let e: Vec<f64> = row.iter().map(|&v| f64::from(v).exp()).collect();
                        let sum: f64 = e.iter().sum();
                        e.into_iter().map(move |e| (e / sum) as f32)
                    })
                    .collect();
                close(&got, &want);
            }
        }
    }
}
