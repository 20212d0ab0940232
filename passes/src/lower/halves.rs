//! Dense products of halves on tensor cores, where the user allows that the left side is rounded.
//!
//! ```text
//! half x; halves (half x, W) => sums of parts; what follows the product: an element-wise kernel behind it
//! ```
//! Weights lose nothing: they are multiplied so only if each is a number of `f16`, or each one of `bf16`, as those of most checkpoints are.

use super::expand::Sums;
use super::index::Pos;
use super::linear::{self, Plan};
use super::schedule::Spec;
use super::{Choice, KernelArg, Lowerer, WeightSource};
use crate::predict::{self, Operand};
use lapidary_ir::kernel::packed::Halves;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Constant, Dim, ElemType, NodeId, ValueId};
use std::sync::Arc;

/// The halves that all numbers of a matrix are.
fn half_of(bytes: &[u8]) -> Option<ElemType> {
    let numbers = || {
        bytes
            .chunks_exact(4)
            .filter_map(|b| b.first_chunk().copied())
    };
    let all = |is: fn(f32) -> bool| numbers().all(|b| is(f32::from_le_bytes(b)));
    if all(|x| half::f16::from_f32(x).to_f32() == x) {
        return Some(ElemType::F16);
    }
    all(|x| x.to_bits().trailing_zeros() >= 16).then_some(ElemType::BF16)
}

/// The constant weights `[k, n]` of a product.
fn weights(low: &Lowerer, plan: &Plan) -> Option<Constant> {
    let constant = low.facts.module.as_constant(plan.w)?;
    (!plan.gemm.w_batched && plan.gemm.codes.is_none()).then(|| constant.clone())
}

/// What was chosen for a product, and its kernel if it is one of halves; `None` if there is none for it, or the user does not allow it.
pub fn choose(low: &Lowerer, n: NodeId, plan: &Plan) -> Option<(Choice, Option<Halves>)> {
    if !low.options.halves || !low.target.has_wide_vectors() {
        return None;
    }
    let numbers = [&plan.m, &plan.n, &plan.k].map(|d| u32::try_from(d.as_const()?).ok());
    let [Some(m), Some(columns), Some(k)] = numbers else {
        return None;
    };
    let whole = Halves {
        name: "gemm_halves".to_owned(),
        elem: ElemType::F16,
        m: Some(m),
        n: columns,
        k,
        parts: 1,
    };
    whole.check().ok()?;
    let bytes = linear::dense(&weights(low, plan)?).ok()?;
    let elem = half_of(&bytes);
    low.facts.module.sources.release(bytes.len());
    let elem = elem?;
    // As many parts as give each multiprocessor two blocks.
    let most = k.div_ceil(lapidary_ir::kernel::packed::DEPTH);
    let parts = (2 * low.target.threads / whole.grid(m)).clamp(1, most);
    let split = Halves {
        elem,
        parts,
        ..whole.clone()
    };
    let halves = match split.check() {
        Ok(()) => split,
        Err(_) => Halves { elem, ..whole },
    };
    let [m, columns, k] = [m, columns, k].map(u64::from);
    let (parts, results) = (u64::from(halves.parts), 4 * m * columns);
    let operands = [
        Operand::made(2 * m * k),
        Operand::constant(2 * columns * k),
        Operand::made(results * parts),
    ];
    let blocks = i64::from(halves.grid(m as u32));
    let mut ns = predict::alone(&halves.kernel(), &operands, blocks, &low.target);
    // The left side is rounded before.
    ns += predict::moved(6 * m * k, &low.target);
    if parts > 1 || plan.has_epilogue() {
        ns += predict::moved(results * (parts + 2), &low.target);
    }
    let (choice, chosen) = Choice::between(
        [
            low.facts.module.node(n).name.clone(),
            plan.m.to_string(),
            format!("weights of {elem}"),
        ],
        [columns as usize, k as usize],
        (vec![halves.name.clone()], ns),
        (
            vec![linear::KERNEL.to_owned()],
            linear::predicted(low, plan, m as u32),
        ),
        false,
    );
    Some((choice, chosen.then_some(halves)))
}

/// The steps of such a product.
pub fn steps(low: &mut Lowerer, n: NodeId, plan: &Plan, p: &Halves) -> Result<(), OpError> {
    let missing = || OpError::new("a product of halves without its weights");
    let constant = weights(low, plan).ok_or_else(missing)?;
    let (rows, columns, elem) = (p.n as usize, p.k as usize, p.elem);
    let made = move || {
        let bytes = linear::dense(&constant)?;
        let mut out = Vec::with_capacity(bytes.len() / 2);
        for row in 0..rows {
            for column in 0..columns {
                let at = 4 * (column * rows + row);
                let number = bytes.get(at..).and_then(|b| b.first_chunk());
                let number = f32::from_le_bytes(*number.ok_or("a weight has too few numbers")?);
                out.extend(match elem {
                    ElemType::F16 => half::f16::from_f32(number).to_le_bytes(),
                    _ => half::bf16::from_f32(number).to_le_bytes(),
                });
            }
        }
        Ok(out)
    };
    let source = WeightSource::Made(Arc::new(made));
    let w = low.made_weight(elem, vec![rows, columns], source);
    let x = rounded(low, plan.a, elem)?;
    let flops = Dim::from(2i64) * &plan.m * &plan.n * &plan.k;
    let blocks = Dim::from(i64::from(p.grid(p.m.unwrap_or(1))));
    with_sums(low, n, plan, p.parts, |low, y| {
        let args = [x, w, y].map(KernelArg::Value);
        low.launch(p.kernel(), &args, &blocks, 1, &flops)
    })
}

/// Launches the product of a node, to its result or, if more is to be done with it, to sums in so many parts, and then does that.
pub fn with_sums(
    low: &mut Lowerer,
    n: NodeId,
    plan: &Plan,
    parts: u32,
    launch: impl FnOnce(&mut Lowerer, ValueId) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let out = low.facts.module.node(n).results[0];
    if parts == 1 && !plan.has_epilogue() {
        return launch(low, out);
    }
    let shape = vec![Dim::from(i64::from(parts)), plan.m.clone(), plan.n.clone()];
    let value = low.temporary(ElemType::F32, shape);
    launch(low, value)?;
    low.facts.sums.insert(n, Sums { value, parts });
    low.elements(n, out, linear::element)
}

/// A left side as halves: one copy for all products of a block of steps that read it.
pub fn rounded(low: &mut Lowerer, a: ValueId, elem: ElemType) -> Result<ValueId, OpError> {
    let known = low.rounded.get(&(a, elem)).copied();
    if let Some(known) = known.filter(|&v| low.is_declared(v)) {
        return Ok(known);
    }
    let shape = low.facts.shape(a)?;
    let to = low.temporary(elem, shape.clone());
    low.kernel("half", to, |x| {
        let vars = x.body.loop_vars(&shape);
        let pos = Pos::At(vars.iter().map(|v| v.dim()).collect());
        let value = x.value(a, &pos)?;
        Ok(Spec {
            offset: pos.linear(&shape),
            vars,
            mask: None,
            value: x.body.cast(elem, value),
            serial: vec![],
        })
    })?;
    low.mark_local(to);
    low.rounded.insert((a, elem), to);
    Ok(to)
}
