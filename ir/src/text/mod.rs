//! The text form of the graph IR: what is printed can be read back.
//!
//! ```text
//! fn digits(%x: f32[batch,4]) -> (y: f32[batch,2]) {
//!   const %w = dense f32[4,2] [1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0]
//!   %h = matmul(%x, %w) : f32[batch,2] "/layers.0/MatMul"
//!   %y = softmax(%h) {axis = -1} : f32[batch,2]
//!   return %y
//! }
//! ```
//!
//! * One statement per line. `;` starts a comment. Names that are not plain are quoted: `%"a b"`.
//!   `%7` is a value without a name; `%h#1` is the second value named `h`.
//! * `_` stands for an optional operand left out (and for an output without a name).
//! * A node is `results = op(operands) {attributes} : types "path" { regions }`; a region is
//!   `body(%i: i64[]) { … yield %i }`. Types of results may be left out in text that people write, if
//!   everything the node uses stands above it: the op's type rule then gives them.
//! * Attributes: `1`, `1.5`, `"text"`, lists `[1, 2]` (`floats[]` and `strs[]` when empty), element
//!   types `f32`, types `f32[2]`, tensors `tensor f32[2] [1.0, 2.0]`.
//! * Dimensions are written as [`crate::Dim`] displays them: `2*N + 1`, `floordiv(N, 2)`.
//! * Constants are encoding terms: `dense`, `int{bits = 4} u8[8] x"1032"`,
//!   `affine{scale = …, codes = …, zero = …} f32[2,4]`. Bytes are a list of elements, `x"…"` in
//!   hexadecimal, or, when large, `bytes(length, checksum)`: then they are elsewhere (`at offset` of the
//!   side file), or left out for reading only.
//!
//! Reading checks only what it must to make a module; the rest is [`crate::verify`]'s.

mod dims;
mod lex;
mod literal;
mod parse;
mod print;
mod terms;

pub use literal::symbol;
pub(crate) use print::term;

use crate::diagnostic::{Diagnostic, Place};
use crate::{Module, NodeId, ValueId};
use bytes::Bytes;
use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

/// Checksum of bytes that stand elsewhere (FNV-1a, 64 bits): against mix-ups, not against malice.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The whole module as text, all bytes in it.
pub fn print(module: &Module) -> String {
    print::module(module, &mut print::Blobs::Inline)
}

/// The module as text for reading: large constants as type, encoding and checksum only.
pub fn print_elided(module: &Module) -> String {
    print::module(module, &mut print::Blobs::Elide)
}

/// The module as text, and the bytes of its large constants: parts of the side file with their offsets, in order.
pub fn print_with_weights(module: &Module) -> (String, Vec<(u64, Bytes)>) {
    let mut parts = vec![];
    let text = print::module(module, &mut print::Blobs::Side(&mut parts));
    (text, parts)
}

/// Reads a module whose bytes are all in the text.
pub fn parse(text: &str) -> Result<Module, Vec<Diagnostic>> {
    parse_located(text, None).map(|p| p.module)
}

/// Reads a module; `weights` is the content of its side file. Places of everything are kept.
pub fn parse_located(text: &str, weights: Option<&Bytes>) -> Result<Parsed, Vec<Diagnostic>> {
    parse::parse(text, weights)
}

/// Writes `path`, and beside it a file with the same stem and the ending `.weights` if there are large constants.
pub fn save(module: &Module, path: &Path) -> io::Result<()> {
    let (text, parts) = print_with_weights(module);
    std::fs::write(path, text)?;
    if parts.is_empty() {
        return Ok(());
    }
    let mut file = io::BufWriter::new(std::fs::File::create(path.with_extension("weights"))?);
    let mut at = 0;
    for (offset, bytes) in parts {
        io::copy(&mut io::Read::take(io::repeat(0), offset - at), &mut file)?;
        file.write_all(&bytes)?;
        at = offset + bytes.len() as u64;
    }
    file.flush()
}

/// A module read from text.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The module.
    pub module: Module,
    /// Bytes of each node's statement, from its results to its path.
    pub nodes: HashMap<NodeId, Range<usize>>,
    /// Bytes of the name where each value is defined.
    pub values: HashMap<ValueId, Range<usize>>,
}

impl Parsed {
    /// Where in the text a place of the module is, if it is in the text.
    pub fn span(&self, place: &Place) -> Option<Range<usize>> {
        match place {
            Place::Text(span) => Some(span.clone()),
            Place::Node(id, _) => self.nodes.get(id).cloned(),
            Place::Value(id, _) => self.values.get(id).cloned(),
            Place::Program | Place::Path(_) => None,
        }
    }

    /// The same diagnostic with places in the text, so that it can be drawn there.
    pub fn locate(&self, mut d: Diagnostic) -> Diagnostic {
        let to_text = |place: &mut Place| {
            if let Some(span) = self.span(place) {
                *place = Place::Text(span);
            }
        };
        to_text(&mut d.place);
        d.labels.iter_mut().for_each(|(place, _)| to_text(place));
        d
    }
}

#[cfg(test)]
mod tests;
