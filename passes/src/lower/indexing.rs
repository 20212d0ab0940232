//! Reading at indices that are data. An index outside its axis, which the evaluator rejects, is moved to
//! the nearest legal one: a kernel cannot fail, and must not read elsewhere.

use super::expr::E;
use super::index::Pos;
use super::{Element, Rule};
use lapidary_ir::kernel::Binary;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::pointwise("lookup", |x, p| {
        let code = x.at(0, p)?;
        let b = &mut x.x.body;
        // Every byte is inside the table.
        let code = b.cast(ElemType::U8, code);
        let code = b.cast(ElemType::I64, code);
        let at = b.data_index(code);
        x.at(1, &Pos::At(vec![at]))
    }),
    Rule::view("gather", |x, p| {
        let (shape, at_shape, out) = (x.shape(0)?, x.shape(1)?, x.out_shape()?);
        let axis = x.axis("axis", shape.len())?;
        let i = p.indices(&x.x.body, &out);
        let (r, k) = (at_shape.len(), axis);
        let at = x.at(1, &Pos::At(i[k..k + r].to_vec()))?;
        let at = wrapped(x, at, &shape[axis]);
        let from = [&i[..k], &[at], &i[k + r..]].concat();
        x.at(0, &Pos::At(from))
    }),
    Rule::view("gather_elements", |x, p| {
        let (shape, out) = (x.shape(0)?, x.out_shape()?);
        let axis = x.axis("axis", shape.len())?;
        let mut i = p.indices(&x.x.body, &out);
        let at = x.at(1, p)?;
        i[axis] = wrapped(x, at, &shape[axis]);
        x.at(0, &Pos::At(i))
    }),
    Rule::view("gather_nd", |x, p| {
        let (shape, at_shape, out) = (x.shape(0)?, x.shape(1)?, x.out_shape()?);
        let batch = usize::try_from(x.int("batch_dims").unwrap_or(0)).unwrap_or(0);
        let i = p.indices(&x.x.body, &out);
        let (last, lead) = at_shape
            .split_last()
            .ok_or_else(|| OpError::new("indices need at least one axis"))?;
        let depth = last
            .as_const()
            .and_then(|d| usize::try_from(d).ok())
            .ok_or_else(|| OpError::new("the length of a coordinate must be constant"))?;
        let mut from = i[..batch].to_vec();
        for k in 0..depth {
            let mut at = i[..lead.len()].to_vec();
            at.push(Dim::from(k));
            let at = x.at(1, &Pos::At(at))?;
            from.push(wrapped(x, at, &shape[batch + k]));
        }
        from.extend_from_slice(&i[lead.len()..]);
        x.at(0, &Pos::At(from))
    }),
];

/// A data index as an index: negative ones count from the end, others are moved inside.
pub fn wrapped(x: &mut Element, at: E, n: &Dim) -> Dim {
    let b = &mut x.x.body;
    let at = b.cast(ElemType::I64, at);
    if let super::expr::Node::Const(_, super::expr::Number::Int(i)) = b.node(at)
        && let Some(n) = n.as_const()
    {
        let i = if *i < 0 { i + n } else { *i };
        return Dim::from(i.clamp(0, (n - 1).max(0)));
    }
    let zero = b.index(Dim::default());
    let len = b.index(n.clone());
    let last = b.index(n - &Dim::from(1i64));
    let negative = b.binary(Binary::Lt, at, zero);
    let from_end = b.binary(Binary::Add, at, len);
    let at = b.select(negative, from_end, at);
    let at = b.binary(Binary::Min, at, last);
    let at = b.binary(Binary::Max, at, zero);
    b.data_index(at)
}
