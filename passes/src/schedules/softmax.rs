//! Softmax of rows that are consecutive elements: each exponential is computed once, while the row is in cache.
//!
//! ```text
//! grid (row)
//!   m = max x;   y = exp(x - m), l = sum y;   y = y * (1 / l)
//! ```

use super::attention::{LANES, existing, lanes};
use super::{Num, add, mul};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::{Axis, Binary, Kernel, Literal, ReduceKind, TileType, Unary};

/// The kernel. Parameters: `x`, `y`, then those of `rows`, `n` that are [`Num::Sym`].
pub fn kernel(rows: Num, n: Num) -> Kernel {
    let mut b = KernelBuilder::new("softmax");
    let x = b.buffer("x", ElemType::F32, false);
    let y = b.buffer("y", ElemType::F32, true);
    let rows = rows.bind(&mut b, "rows");
    let exact = n.known().is_some_and(|n| n % i64::from(LANES) == 0);
    let n = n.bind(&mut b, "n").var;
    let row = b.grid(rows.tiles(1));
    let first = mul(&mut b, row, n);
    let scalar =
        |b: &mut KernelBuilder, v| b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(v));
    let low = scalar(&mut b, f64::NEG_INFINITY);
    let wide = b.broadcast(low, &[LANES], 0);
    let most = lanes(&mut b, n, exact, wide, |b, j, axis, left, most| {
        let at = add(b, first, j);
        let v = b.load(x, at, &[LANES], vec![axis]);
        let v = existing(b, v, low, left);
        b.binary(Binary::Max, most, v)
    });
    let most = b.reduce(ReduceKind::Max, most, 0);
    let zero = scalar(&mut b, 0.0);
    let zeros = b.broadcast(zero, &[LANES], 0);
    let sum = lanes(&mut b, n, exact, zeros, |b, j, axis, left, sum| {
        let at = add(b, first, j);
        let v = b.load(x, at, &[LANES], vec![axis.clone()]);
        let v = b.binary(Binary::Sub, v, most);
        let e = b.unary(Unary::Exp, v);
        b.store(y, at, vec![axis], e);
        let e = existing(b, e, zero, left);
        b.binary(Binary::Add, sum, e)
    });
    let sum = b.reduce(ReduceKind::Sum, sum, 0);
    let inverse = b.unary(Unary::Reciprocal, sum);
    let (begin, width) = (b.index(0), LANES);
    b.for_loop(begin, n, width, &[], |b, j, _| {
        let mut axis = Axis::stride(1);
        if !exact {
            axis = axis.valid(b.binary(Binary::Sub, n, j));
        }
        let at = add(b, first, j);
        let e = b.load(y, at, &[LANES], vec![axis.clone()]);
        let e = b.binary(Binary::Mul, e, inverse);
        b.store(y, at, vec![axis], e);
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
        for (rows, n, symbolic) in [(3, 32, false), (2, 21, false), (4, 7, true), (1, 1, false)] {
            let x = numbers(rows * n, 1);
            let num = |v: usize| {
                if symbolic {
                    Num::Sym
                } else {
                    Num::Const(v as i64)
                }
            };
            let sizes = if symbolic {
                vec![rows as i64, n as i64]
            } else {
                vec![]
            };
            let got = run(&kernel(num(rows), num(n)), &[&x], rows * n, &sizes);
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
