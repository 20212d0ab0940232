//! Caches of keys and values that hold codes, or halves.

use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::{AttrDef, AttrKind, Default, OpDef, OpError, Operand, Tolerance};
use crate::{Attr, ElemType, Module, NodeId, Tensor, ValueId};

/// Numbers that share a scale and a minimum.
pub const GROUP: i64 = 32;

/// Bits of a number that is no code.
pub const HALF: i64 = 16;

/// Keys or values as a cache of codes or of halves holds them.
pub static ROUND_CACHE: OpDef = OpDef {
    name: "round_cache",
    summary: "x where tokens are recent or among the first 32, else min + s * clamp(round((x - min) / s), 0, 2^bits - 1), ties to even, \
              where s = (max - min) / (2^bits - 1) of 32 tokens of a number (`tokens`), or of 32 numbers of a token's head (`channels`), s and \
              min rounded to f16; recent are those behind the last multiple of 32 that is `window` or more before `filled`; of 16 bits: every x \
              rounded to f16",
    source: "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache (arXiv 2402.02750); tokens at the beginning kept as in StreamingLLM (arXiv 2309.17453)",
    operands: &[Operand::One("x"), Operand::Optional("filled")],
    attrs: &[
        AttrDef::new("axis", AttrKind::Str, Default::Required, "`tokens` for keys, `channels` for values"),
        AttrDef::new("bits", AttrKind::Int, Default::Required, "bits of a code: 2, 4 or 8; 16 for halves"),
        AttrDef::new("heads", AttrKind::Int, Default::Required, "heads that a row is made of"),
        AttrDef::new("window", AttrKind::Int, Default::Int(GROUP), "tokens at the end that stay numbers at least: a multiple of 32"),
    ],
    infer: |ctx| {
        let rounding = Rounding::of(ctx.node)?;
        if ctx.elem(0)? != ElemType::F32 {
            return Err(OpError::new("only caches of f32 are rounded"));
        }
        if let Some(shape) = ctx.shape(0)? {
            let whole = shape.last().and_then(|d| d.as_const()).is_none_or(|w| w % rounding.heads == 0);
            if shape.len() != 3 || !whole {
                return Err(OpError::new(format!("a cache is [batch, tokens, numbers] with whole rows of {} heads", rounding.heads)));
            }
        }
        Ok(vec![ctx.ty(0)?.clone()])
    },
    decompose: Some(decompose),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// What a `round_cache` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding {
    /// Groups run along tokens.
    pub along_tokens: bool,
    /// Bits of a code, or [`HALF`].
    pub bits: i64,
    /// Heads of a row.
    pub heads: i64,
    /// Tokens at the end that stay numbers.
    pub window: i64,
}

impl Rounding {
    /// Reads and checks the attributes.
    pub fn of(node: &Node) -> Result<Rounding, OpError> {
        let rounding = Rounding {
            along_tokens: match node.text("axis").as_str() {
                "tokens" => true,
                "channels" => false,
                other => return Err(OpError::new(format!("attribute `axis` is `{other}`, expected `tokens` or `channels`"))),
            },
            bits: node.int("bits")?,
            heads: node.int("heads")?,
            window: node.int("window")?,
        };
        let whole = rounding.window >= GROUP && rounding.window % GROUP == 0 && rounding.window <= 1 << 20;
        if ![2, 4, 8, HALF].contains(&rounding.bits) || rounding.heads < 1 || !whole {
            return Err(OpError::new("attribute `bits` must be 2, 4, 8 or 16, `heads` positive, `window` a multiple of 32 up to 2^20"));
        }
        Ok(rounding)
    }

    /// The node of a module, if it is one.
    pub fn find(module: &Module, n: NodeId) -> Option<Rounding> {
        let node = module.node(n);
        (node.op.name == ROUND_CACHE.name).then(|| Rounding::of(node).ok())?
    }
}

fn decompose(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let x = node.need(0)?;
    let rounding = Rounding::of(node)?;
    if rounding.bits == HALF {
        return Ok(vec![half(b, x)?]);
    }
    let width = b.shape(x)?.get(2).and_then(|d| d.as_const());
    let width = width.ok_or_else(|| OpError::new("rows must have a known length"))?;
    // `[batch, rows, what groups run along]`.
    let rows = match rounding.along_tokens {
        true => b.transpose(x, &[0, 2, 1])?,
        false => b.reshape(x, &[Len::Of(x, 0), Len::N(-1), Len::N(width / rounding.heads)])?,
    };
    let rounded = round_rows(b, rows, rounding.bits)?;
    let rounded = match rounding.along_tokens {
        true => b.transpose(rounded, &[0, 2, 1])?,
        false => b.reshape(rounded, &[Len::Of(x, 0), Len::Of(x, 1), Len::N(width)])?,
    };
    let coarse = coarse(b, x, node.operand(1), rounding.window)?;
    Ok(vec![b.op("where", &[coarse, rounded, x])?])
}

/// Rounds groups along the last of three axes.
fn round_rows(b: &mut Builder, x: ValueId, bits: i64) -> Result<ValueId, OpError> {
    let levels = ((1 << bits) - 1) as f64;
    let group = b.constant(&Tensor::int(GROUP));
    let place = b.iota(Len::Of(x, 2))?;
    let place = b.op("div", &[place, group])?;
    // The largest of each group, at each of its members.
    let largest = |b: &mut Builder, x: ValueId| -> Result<ValueId, OpError> {
        // A last group that is not whole is as good as one; what is beyond it is less than anything.
        let attrs: [(&str, Attr); 3] =
            [("kernel_shape", vec![GROUP].into()), ("strides", vec![GROUP].into()), ("pads", vec![0, GROUP - 1].into())];
        let each = b.op_with("max_pool", &[x], attrs)?;
        b.op_with("gather", &[each, place], [("axis", 2i64.into())])
    };
    let max = largest(b, x)?;
    let min = b.op("neg", &[x])?;
    let min = largest(b, min)?;
    let min = b.op("neg", &[min])?;
    let span = b.op("sub", &[max, min])?;
    let levels = b.lit(x, levels)?;
    let step = b.op("div", &[span, levels])?;
    let (step, min) = (half(b, step)?, half(b, min)?);
    let (zero, one) = (b.lit(x, 0.0)?, b.lit(x, 1.0)?);
    let flat = b.op("equal", &[step, zero])?;
    let inverse = b.op("div", &[one, step])?;
    let inverse = b.op("where", &[flat, zero, inverse])?;
    let code = b.op("sub", &[x, min])?;
    let code = b.op("mul", &[code, inverse])?;
    let code = b.op("round", &[code])?;
    let code = b.op("clip", &[code, zero, levels])?;
    let value = b.op("mul", &[code, step])?;
    b.op("add", &[value, min])
}

/// Rounded to a finite f16.
fn half(b: &mut Builder, x: ValueId) -> Result<ValueId, OpError> {
    let most = f64::from(f32::from(half::f16::MAX));
    let (low, high) = (b.lit(x, -most)?, b.lit(x, most)?);
    let x = b.op("clip", &[x, low, high])?;
    let x = b.cast(x, ElemType::F16)?;
    b.cast(x, ElemType::F32)
}

/// Which tokens are rounded, `bool[batch or 1, tokens, 1]`.
fn coarse(b: &mut Builder, x: ValueId, filled: Option<ValueId>, window: i64) -> Result<ValueId, OpError> {
    let filled = match filled {
        Some(filled) => filled,
        None => b.lens(&[Len::Of(x, 1)])?,
    };
    let int = |b: &mut Builder, n: i64| b.constant(&Tensor::int(n));
    let (group, window, zero) = (int(b, GROUP), int(b, window), int(b, 0));
    let old = b.op("sub", &[filled, window])?;
    let old = b.op("max", &[old, zero])?;
    let panels = b.op("div", &[old, group])?;
    let end = b.op("mul", &[panels, group])?;
    let end = b.unsqueeze(end, &[1, 2])?;
    let token = b.iota(Len::Of(x, 1))?;
    let token = b.unsqueeze(token, &[0, 2])?;
    let before = b.op("less", &[token, end])?;
    let behind = b.op("greater_or_equal", &[token, group])?;
    b.op("and", &[before, behind])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Type, eval};
    use std::cell::Cell;

    fn rounded(x: &Tensor, filled: &[i64], axis: &str, bits: i64, heads: i64) -> Vec<f64> {
        let mut m = Module::new("cache");
        let input = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, x.shape().iter().copied()));
        let fresh = Cell::new(0);
        let mut b = Builder::new(&mut m, Module::TOP, "", &fresh);
        let filled = b.ints(filled);
        let attrs: [(&str, Attr); 3] = [("axis", axis.into()), ("bits", bits.into()), ("heads", heads.into())];
        let y = b.op_with("round_cache", &[input, filled], attrs).expect("a node");
        m.region_mut(Module::TOP).outputs = vec![y];
        m.output_names = vec!["y".to_owned()];
        let found = eval::run(&m, vec![x.clone().into()]).expect("evaluated");
        found[0].as_tensor().and_then(Tensor::to_f64s).expect("numbers")
    }

    #[test]
    fn what_is_recent_or_first_stays() {
        // 2 sequences, 128 tokens, 2 heads of 3.
        let n = 2 * 128 * 6;
        let values: Vec<f64> = (0..n).map(|i| f64::from((((i * 7919) % 1009) as f32 / 100.0) - 5.0)).collect();
        let x = Tensor::from_f64(ElemType::F32, [2, 128, 6], values.clone());
        for (axis, bits) in [("tokens", 8), ("channels", 4)] {
            let found = rounded(&x, &[128, 95], axis, bits, 2);
            let changed = |b: usize, t: usize| (0..6).any(|j| found[(b * 128 + t) * 6 + j] != values[(b * 128 + t) * 6 + j]);
            for t in 0..128 {
                assert_eq!(changed(0, t), (32..96).contains(&t), "{axis}: token {t} of 128");
                assert_eq!(changed(1, t), (32..32).contains(&t), "{axis}: token {t} of 95");
            }
        }
    }

    #[test]
    fn groups_are_rounded_between_their_least_and_greatest() {
        let mut values = vec![0.0; 96 * 2];
        // Tokens 32 to 63 of the first number: 0, 1, .. 31; the second number is constant.
        for t in 0..32 {
            values[(32 + t) * 2] = t as f64;
            values[(32 + t) * 2 + 1] = 7.0;
        }
        let x = Tensor::from_f64(ElemType::F32, [1, 96, 2], values);
        let found = rounded(&x, &[96], "tokens", 2, 1);
        let of = |t: usize| found[(32 + t) * 2];
        let step = f64::from(f32::from(half::f16::from_f32(31.0 / 3.0)));
        assert_eq!([of(0), of(5), of(6), of(31)], [0.0, 0.0, step, 3.0 * step]);
        assert!((0..32).all(|t| found[(32 + t) * 2 + 1] == 7.0));
    }
}
