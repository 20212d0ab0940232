//! How much of the weights a run uses: the parts that it may leave out, and where they lie.

use super::Lowerer;
use crate::lower::refine;
use lapidary_abi::program::{Detail, Place, WeightPart};
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, NodeId, ValueId};
use std::collections::{HashMap, HashSet};

/// Name of the symbol; no dimension of a model is called so.
const SYMBOL: &str = "parts of the weights";

/// Parts of the weights, as they are found.
#[derive(Debug)]
pub struct Parts {
    symbol: u32,
    /// Where the pieces of each are.
    pieces: Vec<Vec<u64>>,
    /// Sums that may be written over.
    own_sums: HashSet<ValueId>,
}

impl Lowerer {
    /// Makes a symbol of the input that says how many parts are used.
    pub(super) fn bind_detail(&mut self, input: ValueId) {
        self.facts.contents.insert(input, vec![Dim::sym(SYMBOL)]);
        self.bound.insert(SYMBOL.to_owned());
        self.parts = Some(Parts {
            symbol: self.symbol(SYMBOL),
            pieces: vec![],
            own_sums: refine::own_sums(&self.facts.module),
        });
    }

    /// True for a sum that what refines it may write over.
    pub(in crate::lower) fn is_own_sum(&self, sum: ValueId) -> bool {
        let parts = self.parts.as_ref();
        parts.is_some_and(|p| p.own_sums.contains(&sum))
    }

    /// Notes that there is a part.
    pub(in crate::lower) fn know_part(&mut self, part: usize) {
        if let Some(parts) = &mut self.parts
            && parts.pieces.len() <= part
        {
            parts.pieces.resize(part + 1, vec![]);
        }
    }

    /// Notes that nothing but a node's part reads a weight, if it is of a part. What is decoded when the model is loaded lies nowhere
    /// among the weights.
    pub(in crate::lower) fn note_part(
        &mut self,
        n: NodeId,
        weight: ValueId,
    ) -> Result<(), OpError> {
        let Some(part) = refine::part(&self.facts, n)? else {
            return Ok(());
        };
        let value = self.stored(weight)? as usize;
        let place = self.program.values.get(value).map(|v| &v.place);
        if let (Some(&Place::Weights { offset, .. }), Some(parts)) = (place, &mut self.parts) {
            parts.pieces[part].push(offset);
        }
        Ok(())
    }

    /// Puts the parts' weights behind all others, one part after the other: what a run does not use shares no page with what it does.
    pub(super) fn arrange_parts(&mut self) {
        let Some(found) = self.parts.take() else {
            return;
        };
        let numbered = found.pieces.iter().enumerate();
        let part_of: HashMap<u64, usize> = numbered
            .flat_map(|(part, pieces)| pieces.iter().map(move |&at| (at, part)))
            .collect();
        let mut parts = vec![WeightPart::default(); found.pieces.len()];
        let old: Vec<(u64, u64)> = self.weights.iter().map(|w| (w.offset, w.bytes)).collect();
        self.weights
            .sort_by_key(|w| part_of.get(&w.offset).map_or(0, |part| part + 1));
        let (mut moved, mut end) = (HashMap::new(), 0);
        for piece in &mut self.weights {
            moved.insert(piece.offset, end);
            if let Some(&part) = part_of.get(&piece.offset) {
                let part = &mut parts[part];
                if part.bytes == 0 {
                    part.offset = end;
                }
                part.bytes = end + piece.bytes - part.offset;
            }
            piece.offset = end;
            end = (end + piece.bytes).next_multiple_of(64);
        }
        for value in &mut self.program.values {
            // Several values may lie in one piece.
            if let Place::Weights { offset, bytes } = &mut value.place
                && *bytes > 0
            {
                let (piece, _) = old[old.partition_point(|p| p.0 <= *offset) - 1];
                *offset = moved[&piece] + (*offset - piece);
            }
        }
        self.program.detail = Some(Detail {
            symbol: found.symbol,
            parts,
        });
    }
}
