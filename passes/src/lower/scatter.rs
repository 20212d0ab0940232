//! Writing at indices that are data: a copy, then one block that goes through the updates in order, since
//! two of them may meet. An update outside its tensor, which the evaluator rejects, is not written.

use super::expr::{Body, E};
use super::index::Pos;
use super::{Lowerer, Rule, Spec};
use lapidary_ir::graph::Node;
use lapidary_ir::kernel::Binary;
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{Attr, Dim, ElemType, NodeId, ValueId};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::steps("scatter_elements", |low, n| {
        let parts = Parts::new(low, n)?;
        let rank = parts.shape.len();
        let axis = match parts.node.attr("axis") {
            Some(Attr::Int(a)) => resolve_axis(a, rank)?,
            _ => 0,
        };
        let shape = low.facts.shape(parts.indices)?;
        parts.write(low, &shape, move |x, at, parts| {
            let i = x.value(parts.indices, &Pos::At(at.to_vec()))?;
            let mut to = at.to_vec();
            let (i, inside) = legal(&mut x.body, i, &parts.shape[axis]);
            to[axis] = i;
            Ok((to, inside))
        })
    }),
    Rule::steps("scatter_nd", |low, n| {
        let parts = Parts::new(low, n)?;
        let index_shape = low.facts.shape(parts.indices)?;
        let (depth, lead) = index_shape
            .split_last()
            .ok_or_else(|| OpError::new("indices need at least one axis"))?;
        let depth = depth
            .as_const()
            .and_then(|d| usize::try_from(d).ok())
            .ok_or_else(|| OpError::new("the length of a coordinate must be constant"))?;
        let lead = lead.len();
        let shape = low.facts.shape(parts.updates)?;
        parts.write(low, &shape, move |x, at, parts| {
            let mut inside = x.body.bool(true);
            let mut to = vec![];
            for k in 0..depth {
                let mut from = at[..lead].to_vec();
                from.push(Dim::from(k));
                let i = x.value(parts.indices, &Pos::At(from))?;
                let (i, ok) = legal(&mut x.body, i, &parts.shape[k]);
                inside = x.body.binary(Binary::And, inside, ok);
                to.push(i);
            }
            to.extend_from_slice(&at[lead..]);
            Ok((to, inside))
        })
    }),
];

/// Operands of a scatter.
struct Parts {
    node: Node,
    data: ValueId,
    indices: ValueId,
    updates: ValueId,
    out: ValueId,
    shape: Vec<Dim>,
    elem: ElemType,
}

/// A data index as an index, and whether it lies in an axis of length `n`.
fn legal(b: &mut Body, i: E, n: &Dim) -> (Dim, E) {
    let i = b.cast(ElemType::I64, i);
    let (zero, len) = (b.index(Dim::default()), b.index(n.clone()));
    let negative = b.binary(Binary::Lt, i, zero);
    let from_end = b.binary(Binary::Add, i, len);
    let i = b.select(negative, from_end, i);
    let low = b.binary(Binary::Ge, i, zero);
    let high = b.binary(Binary::Lt, i, len);
    let inside = b.binary(Binary::And, low, high);
    (b.data_index(i), inside)
}

impl Parts {
    fn new(low: &mut Lowerer, n: NodeId) -> Result<Parts, OpError> {
        let node = low.facts.module.node(n).clone();
        let operand = |i: usize| {
            node.operand(i)
                .ok_or_else(|| OpError::new(format!("operand {i} is missing")))
        };
        let out = node.results[0];
        Ok(Parts {
            data: operand(0)?,
            indices: operand(1)?,
            updates: operand(2)?,
            out,
            shape: low.facts.shape(out)?,
            elem: low.facts.elem(out)?,
            node,
        })
    }

    /// Copies, then writes every update; `place` tells where, and whether that exists.
    fn write(
        &self,
        low: &mut Lowerer,
        updates: &[Dim],
        place: impl Fn(&mut super::Expand, &[Dim], &Parts) -> Result<(Vec<Dim>, E), OpError>,
    ) -> Result<(), OpError> {
        low.kernel("copy", self.out, |x| {
            let vars = x.body.loop_vars(&self.shape);
            let pos = Pos::At(vars.iter().map(|v| v.dim()).collect());
            Ok(Spec {
                value: x.value(self.data, &pos)?,
                vars,
                offset: pos.linear(&self.shape),
                mask: None,
                serial: vec![],
            })
        })?;
        if updates.iter().any(|d| d.as_const() == Some(0)) {
            return Ok(());
        }
        let combine = match self.node.attr("reduction") {
            Some(Attr::Str(s)) => match s.as_str() {
                "none" => None,
                "add" => Some(Binary::Add),
                "mul" => Some(Binary::Mul),
                "max" => Some(Binary::Max),
                "min" => Some(Binary::Min),
                other => return Err(OpError::new(format!("reduction `{other}` is not known"))),
            },
            _ => None,
        };
        low.kernel(self.node.op.name, self.out, |x| {
            let vars = x.body.loop_vars(updates);
            let at: Vec<Dim> = vars.iter().map(|v| v.dim()).collect();
            let (to, inside) = place(x, &at, self)?;
            let offset = Pos::At(to).linear(&self.shape);
            let mut value = x.value(self.updates, &Pos::At(at))?;
            if let Some(f) = combine {
                let at = offset.clone();
                // Two updates may meet even where the index is one for all of them.
                let old = x
                    .body
                    .load_anew(self.out, self.elem, at, Some(inside), &vars);
                value = x.body.binary(f, old, value);
            }
            Ok(Spec {
                serial: vars.clone(),
                vars,
                offset,
                mask: Some(inside),
                value,
            })
        })
    }
}
