//! `emul`: terms multiplied element by element.
//!
//! ```text
//! children: e*                       (at least one)
//! value[i] = e0[i] * e1[i] * …, from left to right
//! ```
//! Signs times a low-rank magnitude, masks, composed embeddings.
//! Source: `BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments`, section 3;
//! `Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems`, section 3.

use super::{Constructor, Encoding, elementwise};
use crate::ElemType;

/// The constructor.
pub static EMUL: Constructor = Constructor {
    name: "emul",
    summary: "terms multiplied element by element",
    children: &["e*"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check: elementwise::check,
    decode: |e| elementwise::decode(e, |a, b| a * b),
    open: |e, b| elementwise::open(e, b, "mul"),
    sample: |s, elem, shape| elementwise::sample(&EMUL, s, elem, shape),
};

/// A term decoding to `elem`.
pub fn emul(elem: ElemType, terms: Vec<Encoding>) -> Encoding {
    elementwise::of(&EMUL, elem, terms)
}
