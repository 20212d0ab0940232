//! Pooling.

use super::conv::Taps;
use super::expr::{E, neutral};
use super::index::Pos;
use super::{Element, Rule};
use lapidary_ir::kernel::{Binary, Literal, ReduceKind, Unary};
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::steps("max_pool", |low, n| {
        if super::max_pool::steps(low, n)? {
            return Ok(());
        }
        for v in low.facts.module.node(n).results.clone() {
            low.elements(n, v, max_pool)?;
        }
        Ok(())
    }),
    Rule::general("average_pool", |x, p| {
        let with_pad = x.flag("count_include_pad");
        let (shape, out) = (x.shape(0)?, x.out_shape()?);
        let at = p.indices(&x.x.body, &out);
        let (window, v, inside) = tap(x, p, 0.0)?;
        let b = x.b();
        let ty = b.ty(v);
        let sum = b.reduce(ReduceKind::Sum, &window.vars, v);
        let mut counted = inside;
        if with_pad {
            counted = b.bool(true);
            for (i, v) in window.vars.iter().enumerate() {
                let q = &at[2 + i] * &Dim::from(window.strides[i])
                    + v.dim() * Dim::from(window.dilations[i]);
                let limit = &window.begin[i] + &shape[2 + i] + &window.end[i];
                let here = b.index_less(&q, &limit);
                counted = b.binary(Binary::And, counted, here);
            }
        }
        let n = match b.as_bool(counted) {
            Some(true) => b.int(ty, window.kernel.iter().product()),
            _ => {
                let (one, zero) = (b.int(ty, 1), b.int(ty, 0));
                let each = b.select(counted, one, zero);
                b.reduce(ReduceKind::Sum, &window.vars, each)
            }
        };
        Ok(b.binary(Binary::Div, sum, n))
    }),
    Rule::general("lp_pool", |x, p| {
        let norm = x.int("p").unwrap_or(2) as f64;
        let (window, v, _) = tap(x, p, 0.0)?;
        let b = x.b();
        let ty = b.ty(v);
        let v = b.unary(Unary::Abs, v);
        let (e, inverse) = (b.float(ty, norm), b.float(ty, 1.0 / norm));
        let v = if norm == 2.0 {
            b.binary(Binary::Mul, v, v)
        } else if norm == 1.0 {
            v
        } else {
            b.binary(Binary::Pow, v, e)
        };
        let sum = b.reduce(ReduceKind::Sum, &window.vars, v);
        Ok(if norm == 2.0 {
            b.unary(Unary::Sqrt, sum)
        } else {
            b.binary(Binary::Pow, sum, inverse)
        })
    }),
];

/// The element under the taps of a window, `outside` in the padding.
fn tap(x: &mut Element, p: &Pos, outside: f64) -> Result<(Taps, E, E), OpError> {
    let (window, v, inside, _) = tap_at(x, p, outside)?;
    Ok((window, v, inside))
}

fn tap_at(x: &mut Element, p: &Pos, outside: f64) -> Result<(Taps, E, E, Vec<Dim>), OpError> {
    let (shape, out) = (x.shape(0)?, x.out_shape()?);
    let at = p.indices(&x.x.body, &out);
    let kernel = x
        .ints("kernel_shape")
        .ok_or_else(|| OpError::new("attribute `kernel_shape` is missing"))?;
    let window = Taps::new(x, kernel, &shape[2..], &out[2..])?;
    let (spatial, inside) = window.place(&mut x.x.body, &at[2..], &shape[2..]);
    let from = [&at[..2], &spatial].concat();
    let v = x.at(0, &Pos::At(from.clone()))?;
    let b = x.b();
    let ty = b.ty(v);
    let fill = match (ty.is_float(), neutral(ReduceKind::Max, ty)) {
        (true, _) => b.float(ty, outside),
        (false, Literal::Int(i)) if outside != 0.0 => b.int(ty, i),
        _ => b.int(ty, 0),
    };
    let v = b.where_inside(inside, v, fill);
    Ok((window, v, inside, from))
}

/// The largest element, or the position of the first that is largest.
fn max_pool(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let shape = x.shape(0)?;
    let (window, v, inside, from) = tap_at(x, p, f64::NEG_INFINITY)?;
    let most = x.b().reduce(ReduceKind::Max, &window.vars, v);
    if x.result == 0 {
        return Ok(most);
    }
    // Row-major position in the whole operand, or column-major over the spatial axes.
    let column_major = x.int("storage_order") == Some(1);
    let position = if column_major {
        let lead = &from[0] * &shape[1] + &from[1];
        let plane = shape[2..]
            .iter()
            .fold(Dim::from(1i64), |n, d| n * d.clone());
        let (mut sum, mut stride) = (Dim::default(), Dim::from(1i64));
        for (i, n) in from[2..].iter().zip(&shape[2..]) {
            sum = sum + i * &stride;
            stride = stride * n.clone();
        }
        lead * plane + sum
    } else {
        Pos::At(from).linear(&shape)
    };
    // The first in the order in which the window is walked, which is row-major.
    let order = Pos::At(window.vars.iter().map(|v| v.dim()).collect::<Vec<_>>()).linear(
        &window
            .kernel
            .iter()
            .map(|&k| Dim::from(k))
            .collect::<Vec<_>>(),
    );
    let taps: i64 = window.kernel.iter().product();
    let b = x.b();
    let mut hit = b.binary(Binary::Eq, v, most);
    if b.ty(v).is_float() {
        let nan = b.unary(Unary::IsNan, v);
        hit = b.binary(Binary::Or, hit, nan);
    }
    hit = b.binary(Binary::And, hit, inside);
    let (i, none) = (b.index(order), b.int(ElemType::I64, taps));
    let key = b.select(hit, i, none);
    let first = b.reduce(ReduceKind::Min, &window.vars, key);
    let here = b.binary(Binary::Eq, key, first);
    let (position, zero) = (b.index(position), b.int(ElemType::I64, 0));
    let position = b.select(here, position, zero);
    Ok(b.reduce(ReduceKind::Sum, &window.vars, position))
}
