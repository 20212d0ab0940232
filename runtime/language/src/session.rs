//! A sequence of tokens and what the model keeps of it.

use crate::Error;
use lapidary_abi::program::{Port, ValueType};
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::Model;
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::exec::State;
use lapidary_runtime::value::{Operand, View};

/// Most tokens that one run of the model is given: working memory grows with them.
const CHUNK: usize = 256;

/// Caches hold a multiple of this many tokens.
const UNIT: usize = 32;

/// Tokens that there is room for at first.
const FIRST: usize = 256;

/// One sequence.
pub struct Session<'m> {
    model: &'m Model,
    state: State,
    /// Tokens that the caches have room for.
    capacity: usize,
    /// Tokens that they hold.
    past: usize,
    /// Scores after the last token.
    scores: Bytes,
}

/// The number of tokens that a model that was compiled step by step knows; an error if it is none.
pub fn vocabulary_size(model: &Model) -> Result<usize, Error> {
    let names: Vec<&str> = model.inputs().iter().map(|p| p.name.as_str()).collect();
    let scores = |p: &Port| match &p.ty {
        ValueType::Tensor {
            elem: ElemType::F32,
            dims: Some(dims),
        } if p.name == "logits" => dims.last().and_then(Size::as_const),
        _ => None,
    };
    let size = match model.outputs() {
        [only] if names == ["input_ids", "past", "last"] => scores(only),
        _ => None,
    };
    size.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        Error::new(
            "the model does not predict tokens step by step",
            "compile the folder of a language model's checkpoint",
        )
    })
}

impl<'m> Session<'m> {
    /// Of no tokens yet.
    pub fn new(model: &'m Model) -> Result<Session<'m>, Error> {
        let size = vocabulary_size(model)?;
        Ok(Session {
            model,
            state: room(model, FIRST)?,
            capacity: FIRST,
            past: 0,
            scores: Bytes::zeroed(size * size_of::<f32>())?,
        })
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.past
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.past == 0
    }

    /// Bytes of the caches.
    pub fn cache_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// Forgets tokens from this number on.
    pub fn truncate(&mut self, len: usize) {
        self.past = self.past.min(len);
    }

    /// Adds tokens, of which there must be some.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.make_room(tokens.len())?;
        for chunk in tokens.chunks(CHUNK) {
            let ids: Vec<u8> = chunk
                .iter()
                .flat_map(|&t| i64::from(t).to_le_bytes())
                .collect();
            let (past, last) = (self.past as i64, chunk.len() as i64 - 1);
            let (past, last) = (past.to_le_bytes(), last.to_le_bytes());
            let inputs = [
                View::new(ElemType::I64, vec![1, chunk.len()], &ids)?,
                View::new(ElemType::I64, vec![1], &past)?,
                View::new(ElemType::I64, vec![1], &last)?,
            ]
            .map(Operand::Tensor);
            let mut scores = [Some(self.scores.as_mut_slice())];
            self.model
                .run_from(&mut self.state, &inputs, &mut scores, None)?;
            self.past += chunk.len();
        }
        Ok(())
    }

    /// The model's scores of every token for the place after the last one.
    pub fn scores(&self) -> impl Iterator<Item = f32> {
        let (all, _) = self.scores.as_slice().as_chunks::<4>();
        all.iter().map(|&b| f32::from_le_bytes(b))
    }

    /// The caches double when they are full, so that tokens are moved about once each.
    fn make_room(&mut self, more: usize) -> Result<(), Error> {
        let needed = self.past + more;
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = needed.max(2 * self.capacity).next_multiple_of(UNIT);
        let mut state = room(self.model, capacity)?;
        state.take_over(&self.state)?;
        (self.state, self.capacity) = (state, capacity);
        Ok(())
    }
}

fn room(model: &Model, capacity: usize) -> Result<State, Error> {
    Ok(model.state(&[("batch", 1), ("capacity", capacity)])?)
}
