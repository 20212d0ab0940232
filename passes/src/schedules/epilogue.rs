//! What follows a product, with an activation that a micro-kernel does not know.
//!
//! ```text
//! tile = clamp(acc + bias + residual)       the micro-kernel, into scratch memory: it stays in cache
//! for each row: c = activation(tile)
//! ```

use super::activation::Activation;
use super::{Num, add, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, RowsAt};
use lapidary_ir::kernel::map::{Map, map};
use lapidary_ir::kernel::{At, Axis, Binary, Var};

/// The most of these that divides `n`: columns that are computed together, none of which is missing. A number of columns
/// that is not known, or odd, is computed by vectors that may not be whole.
pub fn whole_lanes(n: Num, most: u32) -> Option<u32> {
    let divides = |l: &u32| n.known().is_some_and(|n| n % i64::from(*l) == 0);
    [32, 16, 8, 4]
        .into_iter()
        .filter(|&l| l <= most)
        .find(divides)
}

/// Writes the epilogue of `acc`; the result has `n` columns.
pub fn finish(
    b: &mut KernelBuilder,
    acc: Var,
    e: Epilogue,
    activation: Option<Activation>,
    n: Num,
) {
    let Some(activation) = activation else {
        return contraction::epilogue(b, acc, e);
    };
    let shape = b.ty(acc).shape;
    let (rows, width) = (shape[0], shape[1]);
    let tile = b.scratch(ElemType::F32, rows * width);
    let zero = b.index(0);
    let (c, c_at, cols) = (e.c, e.c_at.clone(), e.cols);
    let inside = RowsAt {
        base: zero,
        rows: Axis {
            valid: c_at.rows.valid,
            ..Axis::stride(i64::from(width))
        },
    };
    contraction::epilogue(
        b,
        acc,
        Epilogue {
            c: tile,
            c_at: inside,
            ..e
        },
    );
    let all = b.index(i64::from(rows));
    let end = match c_at.rows.valid {
        Some(valid) => b.binary(Binary::Min, valid, all),
        None => all,
    };
    b.for_loop(zero, end, 1, &[], |b, row, _| {
        let skip = match c_at.rows.at {
            At::Stride(s) => mul_const(b, row, s),
            At::DynStride(s) => mul(b, row, s),
            At::Offsets(_) => unreachable!("a schedule's rows are evenly apart"),
        };
        let to = add(b, c_at.base, skip);
        let from = mul_const(b, row, i64::from(width));
        let all = b.index(i64::from(width));
        let columns = cols.map_or(all, |cols| b.binary(Binary::Min, cols, all));
        // A few columns that are no whole vector go one by one.
        let few = n.known().is_some_and(|n| n < 8);
        let (lanes, whole) = match whole_lanes(n, width) {
            Some(lanes) => (lanes, true),
            None if few => (1, true),
            None => (4, false),
        };
        // The tile in scratch memory is whole; what is missing in the result is not written.
        let m = Map {
            activation,
            lanes,
            src: (tile, from),
            dst: (c, to),
            n: columns,
            whole,
        };
        map(b, m);
        vec![]
    });
}
