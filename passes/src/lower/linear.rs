//! Matrix products.

use super::Rule;
use super::index::Pos;
use lapidary_ir::Dim;
use lapidary_ir::kernel::{Binary, ReduceKind};
use lapidary_ir::ops::OpError;

/// The family's lowerings.
pub static RULES: &[Rule] = &[Rule::general("matmul", |x, p| {
    let (a, b, out) = (x.shape(0)?, x.shape(1)?, x.out_shape()?);
    let at = p.indices(&x.x.body, &out);
    let k = a
        .last()
        .ok_or_else(|| OpError::new("a scalar has no matrix product"))?
        .clone();
    let k = x.b().loop_var(k);
    // Batch indices, then the row (unless `a` is a vector), then the column (unless `b` is one).
    let column = (b.len() > 1) as usize;
    let rows = (a.len() > 1) as usize;
    let batch = at.len() - rows - column;
    let of = |shape: &[Dim], own: &[Dim]| -> Vec<Dim> {
        let lead = shape.len() - own.len();
        let mut index: Vec<Dim> = at[batch - lead..batch]
            .iter()
            .zip(&shape[..lead])
            .zip(&out[batch - lead..])
            .map(|((i, d), o)| match d.as_const() {
                Some(1) => Dim::default(),
                _ if d == o => i.clone(),
                Some(_) => i.clone(),
                None => i.min_dim(&(d - &Dim::from(1i64))),
            })
            .collect();
        index.extend_from_slice(own);
        index
    };
    let row: Vec<Dim> = at[batch..batch + rows].to_vec();
    let col: Vec<Dim> = at[batch + rows..].to_vec();
    let in_a = of(&a, &[row, vec![k.dim()]].concat());
    let in_b = of(&b, &[vec![k.dim()], col].concat());
    let (l, r) = (x.at(0, &Pos::At(in_a))?, x.at(1, &Pos::At(in_b))?);
    let b = x.b();
    let product = b.binary(Binary::Mul, l, r);
    Ok(b.reduce(ReduceKind::Sum, &[k], product))
})];
