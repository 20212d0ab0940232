//! Sequences of tokens, and what the model keeps of them.

use crate::Error;
use crate::evict::{self, Eviction};
use lapidary_abi::attended::POSITION;
use lapidary_abi::program::{Port, ValueType};
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::Model;
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::exec::{Extent, State};
use lapidary_runtime::value::{Operand, View};
use std::ops::Range;

/// Most tokens that one run of the model is given: working memory grows with them. A prompt is always cut at multiples of it, so
/// that its numbers are the same whoever runs beside it.
pub const CHUNK: usize = 256;

/// Caches hold a multiple of this many tokens.
const UNIT: usize = 32;

/// Tokens of each sequence that there is room for at first.
const FIRST: usize = 256;

/// What a program takes; the last one where its caches may lose tokens.
const TAKEN: [&str; 4] = ["input_ids", "past", "wanted", POSITION];

/// Any number of sequences, numbered from 0 on. Those before a number can be gone on with in one run.
pub struct Session<'m> {
    model: &'m Model,
    /// A row for each sequence, and perhaps for more.
    state: State,
    /// Tokens of a sequence that the caches have room for.
    capacity: usize,
    /// Tokens of each sequence that they hold.
    past: Vec<usize>,
    /// Tokens of each sequence so far: more where some were evicted.
    read: Vec<usize>,
    /// How caches are kept within a budget, if they are.
    eviction: Option<Eviction>,
    /// Scores after the last token of each, a row for each sequence.
    scores: Bytes,
    vocabulary: usize,
}

/// The number of tokens that a model that was compiled step by step knows, by its inputs and outputs; an error if it is none.
pub fn vocabulary_size(inputs: &[Port], outputs: &[Port]) -> Result<usize, Error> {
    let names: Vec<&str> = inputs.iter().map(|p| p.name.as_str()).collect();
    let scores = |p: &Port| match &p.ty {
        ValueType::Tensor {
            elem: ElemType::F32,
            dims: Some(dims),
        } if p.name == "logits" => dims.last().and_then(Size::as_const),
        _ => None,
    };
    let size = match outputs {
        [only] if names == TAKEN[..3] || names == TAKEN => scores(only),
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
    /// Of no sequence yet, whose caches keep all tokens or are kept within a budget.
    ///
    /// # Errors
    /// The model does not predict step by step, or a budget is given for one that does not count what it takes.
    pub fn new(model: &'m Model, eviction: Option<Eviction>) -> Result<Session<'m>, Error> {
        if eviction.is_some() && !evict::is_counted(model.states()) {
            return Err(Error::new(
                "caches within a budget (`--kv-budget`) need a program that counts attention",
                "build it with `--kv-evictable`",
            ));
        }
        let first = FIRST.min(most(eviction.as_ref()));
        Ok(Session {
            eviction,
            read: vec![],
            vocabulary: vocabulary_size(model.inputs(), model.outputs())?,
            model,
            state: room(model, 1, first)?,
            capacity: first,
            past: vec![],
            scores: Bytes::zeroed(0)?,
        })
    }

    /// Sequences.
    pub fn sequences(&self) -> usize {
        self.past.len()
    }

    /// Tokens of a sequence so far.
    pub fn len(&self, at: usize) -> usize {
        self.read.get(at).copied().unwrap_or(0)
    }

    /// Tokens of a sequence that the caches hold.
    pub fn cached(&self, at: usize) -> usize {
        self.past.get(at).copied().unwrap_or(0)
    }

    /// Most tokens that are best given at once.
    pub fn piece(&self) -> usize {
        let own = self.eviction.as_ref().map_or(CHUNK, Eviction::piece);
        own.min(CHUNK)
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.past.is_empty()
    }

    /// Bytes of the caches.
    pub fn cache_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// Makes room for so many tokens of a sequence at once: nothing is moved while sequences grow to that.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), Error> {
        let tokens = tokens.min(most(self.eviction.as_ref()));
        if tokens > self.capacity {
            self.resize(self.state.rows(), tokens.next_multiple_of(UNIT))?;
        }
        Ok(())
    }

    /// Begins a sequence, the last one now.
    pub fn join(&mut self) -> Result<(), Error> {
        let rows = self.past.len() + 1;
        if rows > self.state.rows() {
            self.resize(rows.max(2 * self.state.rows()), self.capacity)?;
        }
        if evict::is_counted(self.model.states()) {
            evict::forget(&mut self.state, self.past.len())?;
        }
        self.past.push(0);
        self.read.push(0);
        Ok(())
    }

    /// Gives what there is of one sequence to another, which is forgotten.
    pub fn replace(&mut self, at: usize, by: usize) -> Result<(), Error> {
        if at != by {
            let row = self.extent(1, self.past[by])?;
            self.state.copy_row(by, at, &row)?;
            self.past[at] = self.past[by];
            self.read[at] = self.read[by];
        }
        Ok(())
    }

    /// Forgets the last sequence.
    pub fn leave(&mut self) {
        self.past.pop();
        self.read.pop();
    }

    /// Forgets all sequences, and gives back memory that only long ones or many of them need.
    pub fn clear(&mut self) -> Result<(), Error> {
        self.past.clear();
        self.read.clear();
        let first = FIRST.min(most(self.eviction.as_ref()));
        if self.capacity > first || self.state.rows() > 1 {
            self.state = room(self.model, 1, first)?;
            self.capacity = first;
        }
        Ok(())
    }

    /// Forgets tokens of a sequence from this number on. An error where caches are codes and too many are forgotten: they have
    /// numbers of the newest only.
    pub fn truncate(&mut self, at: usize, len: usize) -> Result<(), Error> {
        let past = self.len(at);
        if len < past && evict::is_counted(self.model.states()) {
            return Err(Error::new(
                "tokens cannot be taken back where attention is counted",
                "build the model without `--kv-evictable`",
            ));
        }
        if len < past && !self.can_forget(past, len) {
            return Err(Error::new(
                format!("{past} tokens cannot become {len} in caches of codes"),
                "read the tokens again, or build the model without --kv",
            ));
        }
        self.past[at] = past.min(len);
        self.read[at] = past.min(len);
        Ok(())
    }

    /// Whether a sequence of `past` tokens can go on from fewer as if there had been no more.
    pub(crate) fn can_forget(&self, past: usize, len: usize) -> bool {
        let codes = |p: &Port| {
            matches!(
                p.ty,
                ValueType::Tensor {
                    elem: ElemType::U8,
                    ..
                }
            )
        };
        len == 0 || past - len <= UNIT || !self.model.states().iter().any(codes)
    }

    /// The model.
    pub(crate) fn model(&self) -> &'m Model {
        self.model
    }

    /// Caches of one sequence with room for so many tokens.
    pub(crate) fn room_for(&self, tokens: usize) -> Result<State, Error> {
        room(self.model, 1, tokens.next_multiple_of(UNIT))
    }

    /// What the first sequence is kept as.
    pub(crate) fn kept(&self) -> Result<State, Error> {
        let mut state = self.room_for(self.len(0))?;
        state.take_over(&self.state, &self.extent(1, self.cached(0))?)?;
        Ok(state)
    }

    /// Bytes of what a sequence of so many tokens is kept as, with these tokens and scores; none if they cannot be counted.
    pub(crate) fn kept_bytes(&self, tokens: usize) -> Option<u64> {
        let units = tokens.checked_next_multiple_of(UNIT)? / UNIT;
        let unit = self.room_for(UNIT).ok()?.bytes();
        let all = units.checked_mul(unit)?.checked_add(self.score_bytes())?;
        u64::try_from(all.checked_add(tokens.checked_mul(size_of::<u32>())?)?).ok()
    }

    /// Bytes of the scores after one token.
    pub(crate) fn score_bytes(&self) -> usize {
        self.vocabulary * size_of::<f32>()
    }

    /// The scores after the first sequence.
    pub(crate) fn score_row(&self) -> &[u8] {
        self.scores
            .as_slice()
            .get(..self.score_bytes())
            .unwrap_or_default()
    }

    /// Gives the first sequence so many tokens of what one was kept as, and the scores after them if they are known.
    pub(crate) fn restore(
        &mut self,
        kept: &State,
        tokens: usize,
        scores: Option<&Vec<u8>>,
    ) -> Result<(), Error> {
        self.reserve(tokens)?;
        self.state.take_over(kept, &self.extent(1, tokens)?)?;
        self.past[0] = tokens;
        self.read[0] = tokens;
        if let Some(scores) = scores {
            self.scores = Bytes::copy_of(scores)?;
        }
        Ok(())
    }

    /// Adds tokens to one sequence.
    pub fn feed(&mut self, at: usize, tokens: &[u32]) -> Result<(), Error> {
        for chunk in tokens.chunks(self.piece()) {
            self.run(at..at + 1, chunk, &[chunk.len() - 1])?;
        }
        Ok(())
    }

    /// Adds a few tokens to the only sequence; scores `n` are those after token `n` of the last ones, of which there are so many.
    pub fn feed_and_score(&mut self, tokens: &[u32], last: usize) -> Result<(), Error> {
        let wanted: Vec<usize> = (tokens.len() - last..tokens.len()).collect();
        self.run(0..1, tokens, &wanted)
    }

    /// Adds one token to each of the first sequences.
    pub fn step(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.run(0..tokens.len(), tokens, &[0])
    }

    /// The model's scores of every token for the place after the last one of a sequence.
    pub fn scores(&self, at: usize) -> impl Iterator<Item = f32> + Clone {
        let bytes = self.vocabulary * size_of::<f32>();
        let row = self.scores.as_slice().get(at * bytes..(at + 1) * bytes);
        let (all, _) = row.unwrap_or_default().as_chunks::<4>();
        all.iter().map(|&b| f32::from_le_bytes(b))
    }

    /// Adds tokens, as many to each of these sequences, given one sequence after the other; scores are those after the wanted
    /// ones of them.
    fn run(&mut self, rows: Range<usize>, tokens: &[u32], wanted: &[usize]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let (count, each) = (rows.len(), tokens.len() / rows.len());
        self.make_room(rows.clone(), each)?;
        let Some(longest) = self.past.get(rows.clone()).and_then(|p| p.iter().max()) else {
            return Ok(());
        };
        let needed = longest + each;
        if needed > self.capacity {
            // They double when they are full, so that tokens are moved about once each.
            let doubled = (2 * self.capacity).min(most(self.eviction.as_ref()));
            let capacity = needed.max(doubled).next_multiple_of(UNIT);
            self.resize(self.state.rows(), capacity)?;
        }
        let of = |numbers: &mut dyn Iterator<Item = i64>| -> Vec<u8> {
            numbers.flat_map(i64::to_le_bytes).collect()
        };
        let ids = of(&mut tokens.iter().map(|&t| t.into()));
        let past = of(&mut self.past[rows.clone()].iter().map(|&n| n as i64));
        let read = of(&mut self.read[rows.clone()].iter().map(|&n| n as i64));
        let places = wanted.iter().map(|&n| n as i64);
        let places = of(&mut std::iter::repeat_n(places, count).flatten());
        let inputs = [
            View::new(ElemType::I64, vec![count, each], &ids)?,
            View::new(ElemType::I64, vec![count], &past)?,
            View::new(ElemType::I64, vec![count, wanted.len()], &places)?,
            View::new(ElemType::I64, vec![count], &read)?,
        ]
        .map(Operand::Tensor);
        // Most programs know the positions by what their caches hold.
        let inputs = &inputs[..self.model.inputs().len().min(inputs.len())];
        let row = self.vocabulary * size_of::<f32>();
        let (begin, end) = (rows.start * row, (rows.start + count * wanted.len()) * row);
        if end > self.scores.as_slice().len() {
            let mut scores = Bytes::zeroed(end)?;
            let before = self.scores.as_slice();
            scores.as_mut_slice()[..before.len()].copy_from_slice(before);
            self.scores = scores;
        }
        let scores = &mut self.scores.as_mut_slice()[begin..end];
        let state = (&mut self.state, rows.clone());
        self.model
            .run_rows(state, inputs, &mut [Some(scores)], None)?;
        let past = self.past[rows.clone()].iter_mut();
        past.chain(&mut self.read[rows]).for_each(|n| *n += each);
        Ok(())
    }

    /// Evicts tokens of these sequences where so many more would be over the budget.
    fn make_room(&mut self, rows: Range<usize>, each: usize) -> Result<(), Error> {
        let Some(eviction) = &self.eviction else {
            return Ok(());
        };
        let target = eviction.budget.saturating_sub(each.max(eviction.piece()));
        for at in rows {
            let len = self.past[at];
            if len + each > eviction.budget {
                evict::compress(&mut self.state, at, len, (&eviction.rule, target))?;
                self.past[at] = len.min(target);
            }
        }
        Ok(())
    }

    /// What of the caches so many tokens of so many sequences fill.
    fn extent(&self, rows: usize, tokens: usize) -> Result<Extent, Error> {
        let capacity = tokens.next_multiple_of(UNIT);
        Ok(self
            .model
            .extent(&[("batch", rows), ("capacity", capacity)])?)
    }

    /// Makes the caches so large.
    fn resize(&mut self, rows: usize, capacity: usize) -> Result<(), Error> {
        let mut state = room(self.model, rows, capacity)?;
        let longest = self.past.iter().max().copied().unwrap_or(0);
        state.take_over(&self.state, &self.extent(self.past.len(), longest)?)?;
        (self.state, self.capacity) = (state, capacity);
        Ok(())
    }
}

/// Most tokens of a sequence that caches ever need room for.
fn most(eviction: Option<&Eviction>) -> usize {
    let budget = eviction.map_or(usize::MAX, |e| e.budget);
    budget.checked_next_multiple_of(UNIT).unwrap_or(usize::MAX)
}

fn room(model: &Model, rows: usize, capacity: usize) -> Result<State, Error> {
    Ok(model.state(&[("batch", rows), ("capacity", capacity)])?)
}
