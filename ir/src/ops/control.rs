//! Control flow: ops that own regions. The evaluator runs them (`eval/control.rs`), and shape inference
//! gives their regions' inputs their types (`infer.rs`).

use super::{
    AttrDef, AttrKind, Default, Eval, OpDef, OpError, Operand, Tolerance, resolve_axis,
};
use crate::graph::Node;
use crate::types::TensorType;
use crate::{Attr, Dim, Type};
use std::cell::Cell;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&IF, &LOOP, &SCAN, &SEQUENCE_MAP];

/// One of two regions.
pub static IF: OpDef = OpDef {
    name: "if",
    summary: "runs `then_branch` if the condition holds, else `else_branch`",
    source: "ONNX If-25",
    operands: &[Operand::One("cond")],
    results: &[Operand::Variadic("outputs")],
    regions: &["then_branch", "else_branch"],
    infer: |ctx| {
        let [a, b] = ctx.region_outputs.as_slice() else {
            return Err(OpError::new("needs two regions"));
        };
        if a.len() != b.len() {
            return Err(OpError::new("its branches yield different numbers of values"));
        }
        a.iter().zip(b).map(|(a, b)| join(a, b, ctx.fresh)).collect()
    },
    eval: Eval::Control,
    tolerance: Tolerance::Exact,
    ..OpDef::BASE
};

/// A region repeated.
pub static LOOP: OpDef = OpDef {
    name: "loop",
    summary: "repeats `body` up to `max_trip_count` times while its condition holds; carried values, then stacked scan outputs",
    source: "ONNX Loop-25",
    operands: &[
        Operand::Optional("max_trip_count"),
        Operand::Optional("cond"),
        Operand::Variadic("v_initial"),
    ],
    results: &[Operand::Variadic("v_final_and_scan_outputs")],
    regions: &["body"],
    infer: |ctx| {
        let n = ctx.types.len().saturating_sub(2);
        let out = ctx.region_outputs.first().ok_or_else(|| OpError::new("needs a region"))?;
        let (carried, scans) = out
            .split_at_checked(1 + n)
            .ok_or_else(|| OpError::new("its body yields fewer values than it carries"))?;
        let mut types = vec![];
        for (i, after) in carried.iter().skip(1).enumerate() {
            // A body that fills an optional gives what is in it, says ONNX (as after one iteration).
            types.push(match (ctx.ty(2 + i)?, after) {
                (Type::Optional(before), Type::Tensor(_) | Type::Sequence(_)) => {
                    join(before, after, ctx.fresh)?
                }
                (before, _) => join(before, after, ctx.fresh)?,
            });
        }
        let trips = ctx.fresh_dim();
        for row in scans {
            types.push(stacked(row, 0, &trips)?);
        }
        Ok(types)
    },
    eval: Eval::Control,
    ..OpDef::BASE
};

/// A region repeated over slices.
pub static SCAN: OpDef = OpDef {
    name: "scan",
    summary: "runs `body` once per slice of the scan inputs; final states, then stacked scan outputs",
    source: "ONNX Scan-25",
    operands: &[Operand::Variadic("initial_state_and_scan_inputs")],
    results: &[Operand::Variadic("final_state_and_scan_outputs")],
    regions: &["body"],
    attrs: &[
        AttrDef::new("num_scan_inputs", AttrKind::Int, Default::Required, "how many operands are sliced; the others are states"),
        AttrDef::new("scan_input_axes", AttrKind::Ints, Default::Absent, "axis each scan input is sliced along (0)"),
        AttrDef::new("scan_input_directions", AttrKind::Ints, Default::Absent, "1 to slice from the end (0)"),
        AttrDef::new("scan_output_axes", AttrKind::Ints, Default::Absent, "axis each scan output is stacked along (0)"),
        AttrDef::new("scan_output_directions", AttrKind::Ints, Default::Absent, "1 to stack from the end (0)"),
    ],
    infer: |ctx| {
        let out = ctx.region_outputs.first().ok_or_else(|| OpError::new("needs a region"))?;
        let axes = ScanAxes::new(ctx.node, out.len())?;
        let mut types = vec![];
        for (i, after) in out.iter().take(axes.inputs.states).enumerate() {
            types.push(join(ctx.ty(i)?, after, ctx.fresh)?);
        }
        let steps = match ctx.shape(axes.inputs.states)? {
            Some(shape) => shape[axes.inputs.axis(0, shape.len())?].clone(),
            None => ctx.fresh_dim(),
        };
        for (k, row) in out.iter().skip(axes.inputs.states).enumerate() {
            let axis = match row.shape() {
                Some(s) => axes.output_axis(k, s.len() + 1)?,
                None => 0,
            };
            types.push(stacked(row, axis, &steps)?);
        }
        Ok(types)
    },
    eval: Eval::Control,
    ..OpDef::BASE
};

/// A region per sequence item.
pub static SEQUENCE_MAP: OpDef = OpDef {
    name: "sequence_map",
    summary: "runs `body` on each item of the sequence (and of further sequences); sequences of its results",
    source: "ONNX SequenceMap-17",
    operands: &[Operand::One("input_sequence"), Operand::Variadic("additional_inputs")],
    results: &[Operand::Variadic("out_sequence")],
    regions: &["body"],
    infer: |ctx| {
        let out = ctx.region_outputs.first().ok_or_else(|| OpError::new("needs a region"))?;
        Ok(out.iter().map(|t| Type::Sequence(Box::new(t.clone()))).collect())
    },
    eval: Eval::Control,
    ..OpDef::BASE
};

/// What the attributes of `scan` say of its operands.
pub struct ScanInputs {
    /// How many operands are states.
    pub states: usize,
    axes: Vec<i64>,
    reversed: Vec<i64>,
}

/// What the attributes of `scan` say, with their defaults filled in.
pub struct ScanAxes {
    /// The operands.
    pub inputs: ScanInputs,
    output_axes: Vec<i64>,
    output_reversed: Vec<i64>,
}

fn scan_list(node: &Node, name: &str, len: usize) -> Result<Vec<i64>, OpError> {
    match node.attr(name) {
        Some(Attr::Ints(v)) if v.len() == len => Ok(v),
        Some(_) => Err(OpError::new(format!("`{name}` must have {len} entries"))),
        None => Ok(vec![0; len]),
    }
}

impl ScanInputs {
    fn new(node: &Node) -> Result<ScanInputs, OpError> {
        let scans = match node.attr("num_scan_inputs") {
            Some(Attr::Int(n)) => usize::try_from(n).ok(),
            _ => None,
        };
        let scans = scans.filter(|&n| n >= 1 && n <= node.operands.len()).ok_or_else(|| {
            OpError::new("`num_scan_inputs` must be between 1 and the number of operands")
        })?;
        Ok(ScanInputs {
            states: node.operands.len() - scans,
            axes: scan_list(node, "scan_input_axes", scans)?,
            reversed: scan_list(node, "scan_input_directions", scans)?,
        })
    }

    /// Axis that scan input `k` of this rank is sliced along.
    pub fn axis(&self, k: usize, rank: usize) -> Result<usize, OpError> {
        resolve_axis(self.axes[k], rank)
    }

    /// True if scan input `k` is read from its end.
    pub fn is_reversed(&self, k: usize) -> bool {
        self.reversed[k] != 0
    }
}

impl ScanAxes {
    /// Reads a `scan` node whose body yields `outputs` values.
    pub fn new(node: &Node, outputs: usize) -> Result<ScanAxes, OpError> {
        let inputs = ScanInputs::new(node)?;
        let scans = outputs
            .checked_sub(inputs.states)
            .ok_or_else(|| OpError::new("its body yields fewer values than it has states"))?;
        Ok(ScanAxes {
            inputs,
            output_axes: scan_list(node, "scan_output_axes", scans)?,
            output_reversed: scan_list(node, "scan_output_directions", scans)?,
        })
    }

    /// Axis of the stacked scan output `k` of this rank.
    pub fn output_axis(&self, k: usize, rank: usize) -> Result<usize, OpError> {
        resolve_axis(self.output_axes[k], rank)
    }

    /// True if scan output `k` is filled from its end.
    pub fn output_reversed(&self, k: usize) -> bool {
        self.output_reversed[k] != 0
    }
}

/// Types that the inputs of a control-flow node's regions have before the first iteration, from its
/// operands' types; carried values may have to be widened (see `infer.rs`).
pub fn region_input_types(node: &Node, operands: &[Option<&Type>]) -> Result<Vec<Vec<Type>>, OpError> {
    let given = |i: usize| {
        let ty = operands.get(i).copied().flatten().cloned();
        ty.ok_or_else(|| OpError::new(format!("operand {i} is missing")))
    };
    let none: [Dim; 0] = [];
    match node.op.name {
        "if" => Ok(vec![vec![]; 2]),
        "loop" => {
            let bool_scalar = Type::tensor(crate::ElemType::Bool, none.clone());
            let mut types = vec![Type::tensor(crate::ElemType::I64, none)];
            types.push(operands.get(1).copied().flatten().cloned().unwrap_or(bool_scalar));
            for i in 2..operands.len() {
                types.push(given(i)?);
            }
            Ok(vec![types])
        }
        "scan" => {
            let axes = ScanInputs::new(node)?;
            let mut types = vec![];
            for i in 0..operands.len() {
                types.push(match (i.checked_sub(axes.states), given(i)?) {
                    (None, ty) => ty,
                    (Some(k), Type::Tensor(TensorType { elem, shape: Some(mut shape) })) => {
                        shape.remove(axes.axis(k, shape.len())?);
                        Type::tensor(elem, shape)
                    }
                    (Some(_), ty) => ty,
                });
            }
            Ok(vec![types])
        }
        "sequence_map" => {
            let mut types = vec![];
            for i in 0..operands.len() {
                types.push(match given(i)? {
                    Type::Sequence(item) => *item,
                    _ if i == 0 => return Err(OpError::new("operand 0 must be a sequence")),
                    ty => ty,
                });
            }
            Ok(vec![types])
        }
        other => Err(OpError::new(format!("`{other}` has no regions"))),
    }
}

/// The type of a value that is either of these: dimensions that differ become fresh symbols.
pub fn join(a: &Type, b: &Type, fresh: &Cell<u32>) -> Result<Type, OpError> {
    Ok(match (a, b) {
        (Type::Tensor(x), Type::Tensor(y)) if x.elem == y.elem => match (&x.shape, &y.shape) {
            (Some(p), Some(q)) if p.len() == q.len() => {
                let dims = p.iter().zip(q).map(|(p, q)| {
                    if p == q {
                        return p.clone();
                    }
                    let n = fresh.get();
                    fresh.set(n + 1);
                    Dim::sym(&format!("?{n}"))
                });
                Type::tensor(x.elem, dims.collect::<Vec<_>>())
            }
            _ => Type::unranked(x.elem),
        },
        (Type::Sequence(x), Type::Sequence(y)) => Type::Sequence(Box::new(join(x, y, fresh)?)),
        (Type::Optional(x), Type::Optional(y)) => Type::Optional(Box::new(join(x, y, fresh)?)),
        (Type::Optional(x), y) | (y, Type::Optional(x)) => Type::Optional(Box::new(join(x, y, fresh)?)),
        _ => return Err(OpError::new(format!("a value is `{a}` on one path and `{b}` on another"))),
    })
}

fn stacked(row: &Type, axis: usize, len: &Dim) -> Result<Type, OpError> {
    match row {
        Type::Tensor(TensorType { elem, shape: Some(shape) }) => {
            let mut shape = shape.clone();
            shape.insert(axis, len.clone());
            Ok(Type::tensor(*elem, shape))
        }
        Type::Tensor(t) => Ok(Type::unranked(t.elem)),
        other => Err(OpError::new(format!("a scan output must be a tensor, found `{other}`"))),
    }
}
