//! The tokens of a program's states, which lie in the panels that attention reads.
//!
//! ```text
//! keys      [sequence][head][capacity / 32][size][32]
//! values    [sequence][head][panels of 32 columns][capacity][32]
//! attended  [sequence][head][rows of lapidary_abi::attended][capacity]
//! ```
//! Each layer has the three in this order.

use super::{Head, Rule};
use crate::Error;
use lapidary_abi::attended::{BIAS, LOCAL, QUERIES, ROWS, SUFFIX, TOTAL};
use lapidary_abi::program::Port;
use lapidary_runtime::exec::State;

/// Whether a program with these states counts the attention that its tokens get.
pub(crate) fn is_counted(states: &[Port]) -> bool {
    let mut layers = states.chunks(3);
    !states.is_empty()
        && layers.all(|l| matches!(l, [_, _, counted] if counted.name.ends_with(SUFFIX)))
}

/// A layer's memory of one sequence, and how it is laid out.
struct Layer<'s> {
    keys: &'s mut [u8],
    values: &'s mut [u8],
    attended: &'s mut [u8],
    heads: usize,
    capacity: usize,
    /// Numbers of a key.
    size: usize,
    /// Keys of a panel, and columns of one of values.
    width: usize,
    /// Panels of a head's values.
    panels: usize,
}

/// The layers of one sequence.
fn layers(state: &mut State, sequence: usize) -> Result<Vec<Layer<'_>>, Error> {
    let mut parts = state.parts_mut().map(|(dims, memory)| {
        let &[rows, a, b, c] = dims else { return None };
        let len = memory.len() / rows.max(1);
        let own = memory.get_mut(sequence * len..(sequence + 1) * len)?;
        (len == a * b * c * size_of::<f32>()).then_some(([a, b, c], own))
    });
    let mut layers = vec![];
    while let Some(keys) = parts.next() {
        let both = [parts.next().flatten(), parts.next().flatten()];
        let layer = Layer::of(keys, both);
        layers.push(layer.ok_or_else(|| {
            Error::new(
                "the caches are not laid out as they should be",
                "build the model again",
            )
        })?);
    }
    Ok(layers)
}

/// Leaves at most `budget` of the first `len` tokens of every head of a sequence.
pub(crate) fn compress(
    state: &mut State,
    sequence: usize,
    len: usize,
    (rule, budget): (&Rule, usize),
) -> Result<(), Error> {
    for mut layer in layers(state, sequence)? {
        for head in 0..layer.heads {
            let mut tokens = layer.read(head, len);
            tokens.compress(rule, budget);
            layer.write(head, &tokens);
        }
    }
    Ok(())
}

/// Makes what is counted of a sequence zero.
pub(crate) fn forget(state: &mut State, sequence: usize) -> Result<(), Error> {
    for layer in layers(state, sequence)? {
        layer.attended.fill(0);
    }
    Ok(())
}

/// A part's lengths after its rows, and its memory.
type Own<'s> = ([usize; 3], &'s mut [u8]);

impl<'s> Layer<'s> {
    /// Of its three parts, if they fit together.
    fn of(keys: Option<Own<'s>>, [values, attended]: [Option<Own<'s>>; 2]) -> Option<Layer<'s>> {
        let ([heads, places, numbers], keys) = keys?;
        let ([columns, capacity, width], values) = values?;
        let (counted, attended) = attended?;
        let whole = width > 0 && heads > 0 && numbers.is_multiple_of(width);
        let fits = whole
            && places * width == capacity
            && columns.is_multiple_of(heads)
            && counted == [heads, ROWS, capacity];
        fits.then(|| Layer {
            keys,
            values,
            attended,
            heads,
            capacity,
            size: numbers / width,
            width,
            panels: columns / heads,
        })
    }

    fn key_at(&self, head: usize, token: usize, j: usize) -> usize {
        let panel = head * (self.capacity / self.width) + token / self.width;
        (panel * self.size + j) * self.width + token % self.width
    }

    fn value_at(&self, head: usize, token: usize, j: usize) -> usize {
        let panel = head * self.panels + j / self.width;
        (panel * self.capacity + token) * self.width + j % self.width
    }

    fn row_at(&self, head: usize, row: usize) -> usize {
        (head * ROWS + row) * self.capacity
    }

    fn columns(&self) -> usize {
        self.panels * self.width
    }

    fn read(&self, head: usize, len: usize) -> Head {
        let pairs = |size: usize| (0..len).flat_map(move |t| (0..size).map(move |j| (t, j)));
        let keys = pairs(self.size).map(|(t, j)| number(self.keys, self.key_at(head, t, j)));
        let values =
            pairs(self.columns()).map(|(t, j)| number(self.values, self.value_at(head, t, j)));
        let row = |row: usize| {
            let at = self.row_at(head, row);
            (at..at + len).map(|i| number(self.attended, i)).collect()
        };
        Head {
            keys: keys.collect(),
            values: values.collect(),
            total: row(TOTAL),
            local: row(LOCAL),
            queries: row(QUERIES),
            bias: row(BIAS),
        }
    }

    fn write(&mut self, head: usize, tokens: &Head) {
        let (size, columns) = (self.size, self.columns());
        for t in 0..tokens.len() {
            for j in 0..size {
                let at = self.key_at(head, t, j);
                set(self.keys, at, tokens.keys[t * size + j]);
            }
            for j in 0..columns {
                let at = self.value_at(head, t, j);
                set(self.values, at, tokens.values[t * columns + j]);
            }
        }
        let rows = [
            (TOTAL, &tokens.total),
            (LOCAL, &tokens.local),
            (QUERIES, &tokens.queries),
            (BIAS, &tokens.bias),
        ];
        for (row, numbers) in rows {
            // Zero behind the last token.
            let at = self.row_at(head, row);
            let padded = numbers.iter().copied().chain(std::iter::repeat(0.0));
            for (i, x) in padded.take(self.capacity).enumerate() {
                set(self.attended, at + i, x);
            }
        }
    }
}

fn number(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes(bytes.as_chunks::<4>().0[i])
}

fn set(bytes: &mut [u8], i: usize, x: f32) {
    bytes.as_chunks_mut::<4>().0[i] = x.to_le_bytes();
}
