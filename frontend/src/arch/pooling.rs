//! How an encoder's states of a text's tokens become one vector, its embedding.
//!
//! It is part of the graph, so the evaluator and every target compute it, and padding (whatever the mask leaves out) has no part in it.
//! Source: Reimers, Gurevych, Sentence-BERT (arXiv 1908.10084), section 3.

use super::net::{Built, Net};
use lapidary_ir::{ElemType, ValueId};

/// What becomes of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// How they become one.
    pub mode: Mode,
    /// Whether the vector is divided by its length.
    pub unit: bool,
}

/// How states become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The first token's, which BERT calls CLS.
    First,
    /// Their mean.
    Mean,
    /// The largest number of each column.
    Max,
}

/// The mean of all tokens' states, divided by its length: what holds where a checkpoint says nothing.
impl Default for Pooling {
    fn default() -> Pooling {
        Pooling {
            mode: Mode::Mean,
            unit: true,
        }
    }
}

/// Least divisor of a mean.
const LEAST_COUNT: f64 = 1e-9;

/// Least length that a vector is divided by.
const LEAST_LENGTH: f64 = 1e-12;

impl Pooling {
    /// `f32[batch,width]` of states `f32[batch,seq,width]`, of which those count where `mask`, `i64[batch,seq]`, is not zero.
    pub(super) fn build(self, net: &mut Net, states: ValueId, mask: ValueId) -> Built {
        let mut b = net.b();
        let mask = b.unsqueeze(mask, &[2])?;
        let y = match self.mode {
            Mode::First => {
                let first = b.scalar(ElemType::I64, 0.0);
                b.op_with("gather", &[states, first], [("axis", 1i64.into())])?
            }
            Mode::Mean => {
                let counted = b.cast(mask, ElemType::Bool)?;
                let counted = b.cast(counted, ElemType::F32)?;
                let kept = b.op("mul", &[states, counted])?;
                let sum = b.reduce("reduce_sum", kept, &[1], false)?;
                let count = b.reduce("reduce_sum", counted, &[1], false)?;
                let least = b.lit(count, LEAST_COUNT)?;
                let count = b.op("max", &[count, least])?;
                b.op("div", &[sum, count])?
            }
            Mode::Max => {
                let counted = b.cast(mask, ElemType::Bool)?;
                let least = b.lit(states, f64::NEG_INFINITY)?;
                let kept = b.op("where", &[counted, states, least])?;
                b.reduce("reduce_max", kept, &[1], false)?
            }
        };
        if !self.unit {
            return Ok(y);
        }
        let length = b.reduce("reduce_l2", y, &[1], true)?;
        let least = b.lit(length, LEAST_LENGTH)?;
        let length = b.op("max", &[length, least])?;
        Ok(b.op("div", &[y, length])?)
    }
}
