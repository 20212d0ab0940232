//! `sum`: terms added up.
//!
//! ```text
//! children: e*                       (at least one)
//! value[i] = e0[i] + e1[i] + …, from left to right
//! ```
//! Residual stacks, a quantized base with a low-rank or sparse correction, additive codebooks.
//! Source: `EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation`; `BitStack: Any-Size
//! Compression of Large Language Models in Variable Memory Environments`, section 3.

use super::{Constructor, Encoding, elementwise};
use crate::ElemType;

/// The constructor.
pub static SUM: Constructor = Constructor {
    name: "sum",
    summary: "terms added up",
    children: &["e*"],
    has_blob: false,
    algebraic: true,
    contents: None,
    check: elementwise::check,
    decode: |e| elementwise::decode(e, |a, b| a + b),
    open: |e, b| elementwise::open(e, b, "add"),
    sample: |s, elem, shape| elementwise::sample(&SUM, s, elem, shape),
};

/// A term decoding to `elem`.
pub fn sum(elem: ElemType, terms: Vec<Encoding>) -> Encoding {
    elementwise::of(&SUM, elem, terms)
}
