//! What a product of codes does to its codes while they are in registers: additions in new steps, then a table.
//!
//! A stage is `quantize_linear(dequantize_linear(x, x_scale, zero so far) + bias + dequantize_linear(residual, ..), y_scale,
//! y_zero)`; the table is that of `lookup`. A stage exists if its `y_zero` does. They are operands of
//! [`QUANTIZED_LINEAR`](super::fused::QUANTIZED_LINEAR) and [`QUANTIZED_CONV`](super::fused::QUANTIZED_CONV).

use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::{InferCtx, OpError, Operand};
use crate::{Dim, ElemType, Type, ValueId};

/// Most stages.
pub const STAGES: usize = 2;
/// Operands before the tail's.
const FIRST: usize = 6;
/// Operands of a stage, by name.
const NAMES: [&str; 7] = [
    "x_scale",
    "bias",
    "residual",
    "residual_scale",
    "residual_zero",
    "y_scale",
    "y_zero",
];
/// The operand that the table is.
pub const TABLE: usize = FIRST + STAGES * NAMES.len();

/// The position of a stage's operand among the node's.
///
/// # Panics
/// If no operand has this name.
pub fn stage_operand(stage: usize, name: &str) -> usize {
    let at = NAMES.iter().position(|&n| n == name);
    FIRST + stage * NAMES.len() + at.expect("an operand of a stage")
}

/// A product's operands and those of its tail.
pub(super) const fn operands(product: [Operand; FIRST]) -> [Operand; TABLE + 1] {
    let mut all = [Operand::Late("table"); TABLE + 1];
    let mut i = 0;
    while i < FIRST {
        all[i] = product[i];
        i += 1;
    }
    const STAGE_NAMES: [&str; STAGES * NAMES.len()] = [
        "x_scale_1",
        "bias_1",
        "residual_1",
        "residual_scale_1",
        "residual_zero_1",
        "y_scale_1",
        "y_zero_1",
        "x_scale_2",
        "bias_2",
        "residual_2",
        "residual_scale_2",
        "residual_zero_2",
        "y_scale_2",
        "y_zero_2",
    ];
    while i < TABLE {
        all[i] = Operand::Late(STAGE_NAMES[i - FIRST]);
        i += 1;
    }
    all
}

/// The element type after the tail, of codes that are `elem` before it.
pub(super) fn elem(ctx: &InferCtx, elem: ElemType) -> Result<ElemType, OpError> {
    let mut elem = elem;
    let ends = (0..STAGES).map(|stage| stage_operand(stage, "y_zero"));
    for end in ends.chain([TABLE]) {
        if ctx.has(end) {
            elem = ctx.elem(end)?;
            if !matches!(elem, ElemType::U8 | ElemType::I8) {
                return Err(OpError::new("what follows must make codes of 8 bits"));
            }
        }
    }
    Ok(elem)
}

/// Refuses what would change the shape of a result of type `ty`.
pub(super) fn check(ctx: &InferCtx, ty: &Type) -> Result<(), OpError> {
    let differ = |a: &Dim, b: &Dim| {
        let known = a.as_const().zip(b.as_const());
        known.is_some_and(|(a, b)| a != b)
    };
    for stage in 0..STAGES {
        for (name, scalar) in [
            ("x_scale", true),
            ("residual_scale", true),
            ("residual_zero", true),
            ("y_scale", true),
            ("y_zero", true),
            ("residual", false),
        ] {
            let at = stage_operand(stage, name);
            if !ctx.has(at) {
                continue;
            }
            let (Some(own), Some(all)) = (ctx.shape(at)?, ty.shape()) else {
                continue;
            };
            let fits = match scalar {
                true => own.is_empty(),
                false => {
                    own.len() == all.len() && !own.iter().zip(all).any(|(a, b)| differ(a, b))
                }
            };
            if !fits {
                return Err(OpError::new(format!("`{name}` does not fit the result")));
            }
        }
        let bias = stage_operand(stage, "bias");
        if ctx.has(bias) && ctx.shape(bias)?.is_some_and(|s| s.len() != 1) {
            return Err(OpError::new("`bias` must have one axis"));
        }
    }
    Ok(())
}

/// Writes the tail of `node` after its codes `x`; `column` makes numbers for each column fit them.
pub(super) fn apply(
    b: &mut Builder,
    node: &Node,
    x: ValueId,
    column: impl Fn(&mut Builder, ValueId) -> Result<ValueId, OpError>,
) -> Result<ValueId, OpError> {
    let mut x = x;
    let mut zero = node.need(FIRST - 1)?;
    for stage in 0..STAGES {
        let operand = |name| node.operand(stage_operand(stage, name));
        let need = |name| node.need(stage_operand(stage, name));
        let Some(y_zero) = operand("y_zero") else {
            continue;
        };
        let mut sum = b.op("dequantize_linear", &[x, need("x_scale")?, zero])?;
        if let Some(bias) = operand("bias") {
            let bias = column(b, bias)?;
            sum = b.op("add", &[sum, bias])?;
        }
        if let Some(residual) = operand("residual") {
            let (scale, zero) = (need("residual_scale")?, need("residual_zero")?);
            let residual = b.op("dequantize_linear", &[residual, scale, zero])?;
            sum = b.op("add", &[sum, residual])?;
        }
        x = b.op("quantize_linear", &[sum, need("y_scale")?, y_zero])?;
        zero = y_zero;
    }
    match node.operand(TABLE) {
        Some(table) => b.op("lookup", &[x, table]),
        None => Ok(x),
    }
}
