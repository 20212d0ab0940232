//! What lasts from one run to the next, such as a language model's caches of keys and values.

use super::ports::OutputBuffer;
use crate::bytes::{ALIGN, Bytes};
use crate::error::RunError;
use crate::plan::{Plan, byte_len};
use crate::sizes::{self, UNBOUND};
use lapidary_abi::Size;
use lapidary_abi::program::{Port, ValueType};
use std::ops::Range;

/// Memory of a program's states, and the values of the symbols that their sizes were made for. Each is used by one run at a time;
/// a model may have any number of them.
///
/// Where the first axis of every part is the same symbol, such as the number of sequences, that axis is the state's *rows*: what
/// belongs to one index of it is contiguous, so a run may take a few rows of a state that has room for more.
#[derive(Default)]
pub struct State {
    /// Symbol, value.
    symbols: Vec<(usize, i64)>,
    /// The symbol of the first axis of every part.
    outer: Option<usize>,
    parts: Vec<Part>,
}

struct Part {
    memory: Bytes,
    dims: Vec<usize>,
    /// Bytes of an element.
    elem: usize,
}

impl State {
    pub(super) fn new(plan: &Plan, symbols: &[(&str, usize)]) -> Result<State, RunError> {
        let find = |&(name, value): &(&str, usize)| {
            let index = plan.symbols.iter().position(|s| s == name)?;
            Some((index, i64::try_from(value).ok()?))
        };
        // A symbol that the program does not have decides nothing.
        let symbols: Vec<(usize, i64)> = symbols.iter().filter_map(find).collect();
        let mut values = vec![UNBOUND; plan.symbols.len()];
        symbols.iter().for_each(|&(s, v)| values[s] = v);
        let parts = plan.states.iter().map(|port| Part::new(port, &values));
        Ok(State {
            parts: parts.collect::<Result<_, _>>()?,
            outer: outer(&plan.states),
            symbols,
        })
    }

    /// Rows of every part; 1 where they have none in common.
    pub fn rows(&self) -> usize {
        let first = self.parts.first().filter(|_| self.outer.is_some());
        first.map_or(1, |part| part.dims[0])
    }

    /// An error unless it was made for this program.
    pub(super) fn check(&self, plan: &Plan) -> Result<(), RunError> {
        if self.parts.len() == plan.states.len() {
            return Ok(());
        }
        Err(RunError::Input(format!(
            "the model keeps {} states between runs, {} are given",
            plan.states.len(),
            self.parts.len()
        )))
    }

    /// Gives the symbols their values, for a run with these rows.
    pub(super) fn bind(&self, rows: &Range<usize>, symbols: &mut [i64]) {
        for &(symbol, value) in &self.symbols {
            let value = match self.outer == Some(symbol) {
                true => rows.len() as i64,
                false => value,
            };
            if let Some(s) = symbols.get_mut(symbol) {
                *s = value;
            }
        }
    }

    /// The memory of these rows.
    pub(super) fn buffers(&mut self, rows: &Range<usize>) -> Result<Vec<OutputBuffer>, RunError> {
        let all = self.rows();
        if rows.start > rows.end || rows.end > all {
            return Err(RunError::Input(format!(
                "rows {rows:?} of a state that has {all}"
            )));
        }
        let buffer = |part: &mut Part| {
            let len = part.memory.as_slice().len() / all.max(1);
            let own = &mut part.memory.as_mut_slice()[rows.start * len..rows.end * len];
            let buffer = OutputBuffer {
                address: own.as_mut_ptr(),
                bytes: own.len(),
            };
            match (buffer.address as usize).is_multiple_of(ALIGN) {
                true => Ok(buffer),
                false => Err(RunError::program(format!(
                    "a row of a state has {len} bytes, which is no multiple of {ALIGN}"
                ))),
            }
        };
        self.parts.iter_mut().map(buffer).collect()
    }

    /// Copies what one row holds to another.
    pub fn copy_row(&mut self, from: usize, to: usize) -> Result<(), RunError> {
        let rows = self.rows();
        if from.max(to) >= rows {
            let row = from.max(to);
            return Err(RunError::Input(format!(
                "row {row} of a state that has {rows}"
            )));
        }
        for part in &mut self.parts {
            let bytes = part.memory.as_mut_slice();
            let len = bytes.len() / rows;
            bytes.copy_within(from * len..(from + 1) * len, to * len);
        }
        Ok(())
    }

    /// Copies what another state of the same program holds in its first rows to the beginning of each axis, as far as this one has
    /// room for it.
    pub fn take_over(&mut self, from: &State, rows: usize) -> Result<(), RunError> {
        // Without rows in common, it is all.
        let rows = from.outer.map_or(usize::MAX, |_| rows);
        let alike = self.parts.len() == from.parts.len();
        let mut both = self.parts.iter_mut().zip(&from.parts);
        if !alike || !both.all(|(to, from)| to.is_like(from)) {
            return Err(RunError::Input("a state of another program".to_owned()));
        }
        for (to, from) in self.parts.iter_mut().zip(&from.parts) {
            to.take_over(from, rows);
        }
        Ok(())
    }

    /// The memory of each part.
    pub fn memory(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|p| p.memory.as_slice())
    }

    /// The same, to fill it.
    pub fn memory_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.parts.iter_mut().map(|p| p.memory.as_mut_slice())
    }

    /// Lengths of the axes of each part, and its memory, to change it.
    pub fn parts_mut(&mut self) -> impl Iterator<Item = (&[usize], &mut [u8])> {
        self.parts.iter_mut().map(|p| {
            let Part { memory, dims, .. } = p;
            (dims.as_slice(), memory.as_mut_slice())
        })
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.memory.as_slice().len()).sum()
    }
}

/// The symbol that is the first axis of every one of these.
fn outer(ports: &[Port]) -> Option<usize> {
    let first = |port: &Port| match &port.ty {
        ValueType::Tensor {
            dims: Some(dims), ..
        } => match dims.first()? {
            Size::Sym(symbol) => Some(*symbol as usize),
            _ => None,
        },
        _ => None,
    };
    let symbol = first(ports.first()?)?;
    ports
        .iter()
        .all(|p| first(p) == Some(symbol))
        .then_some(symbol)
}

impl Part {
    fn new(port: &Port, symbols: &[i64]) -> Result<Part, RunError> {
        let unknown = || {
            RunError::Input(format!(
                "the size of the state `{}` is not known",
                port.name
            ))
        };
        let ValueType::Tensor {
            elem,
            dims: Some(dims),
        } = &port.ty
        else {
            return Err(unknown());
        };
        let dims = sizes::dims(dims, symbols).ok_or_else(unknown)?;
        Ok(Part {
            memory: Bytes::zeroed(byte_len(*elem, &dims)?)?,
            dims,
            elem: elem.size_bytes(),
        })
    }

    fn is_like(&self, other: &Part) -> bool {
        self.elem == other.elem && self.dims.len() == other.dims.len()
    }

    fn take_over(&mut self, from: &Part, rows: usize) {
        let mut dims: Vec<usize> = self
            .dims
            .iter()
            .zip(&from.dims)
            .map(|(a, b)| *a.min(b))
            .collect();
        if let Some(first) = dims.first_mut() {
            *first = rows.min(*first);
        }
        // Runs along the last axis that differs are contiguous in both.
        let last = (0..dims.len())
            .rev()
            .find(|&i| self.dims[i] != from.dims[i]);
        let axis = last.unwrap_or(0);
        let inner = dims.iter().skip(axis + 1).product::<usize>() * self.elem;
        let length = |part: &Part| part.dims.get(axis).unwrap_or(&1) * inner;
        let (source_run, target_run) = (length(from), length(self));
        let run = dims.get(axis).unwrap_or(&1) * inner;
        let (source, target) = (from.memory.as_slice(), self.memory.as_mut_slice());
        for i in 0..dims[..axis].iter().product() {
            // The index before the axis, in the numbers of rows that each has.
            let (mut rest, mut s, mut t) = (i, 0, 0);
            let (mut source_stride, mut target_stride) = (source_run, target_run);
            for a in (0..axis).rev() {
                s += rest % dims[a] * source_stride;
                t += rest % dims[a] * target_stride;
                rest /= dims[a];
                source_stride *= from.dims[a];
                target_stride *= self.dims[a];
            }
            target[t..t + run].copy_from_slice(&source[s..s + run]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(dims: &[usize], begin: u8) -> Part {
        let n = dims.iter().product();
        let all: Vec<u8> = (0..n).map(|i: usize| begin + i as u8).collect();
        Part {
            memory: Bytes::copy_of(&all).expect("small"),
            dims: dims.to_vec(),
            elem: 1,
        }
    }

    #[test]
    fn what_is_taken_over_keeps_its_place() {
        let small = part(&[2, 2, 3], 0);
        let mut wide = part(&[2, 4, 3], 100);
        let all = usize::MAX;
        assert!(wide.is_like(&small));
        wide.take_over(&small, all);
        let found = wide.memory.as_slice();
        assert_eq!(&found[..6], [0, 1, 2, 3, 4, 5]);
        assert_eq!(&found[6..12], [106, 107, 108, 109, 110, 111]);
        assert_eq!(&found[12..18], [6, 7, 8, 9, 10, 11]);
        let mut both = part(&[3, 4, 3], 100);
        both.take_over(&small, all);
        assert_eq!(&both.memory.as_slice()[12..18], [6, 7, 8, 9, 10, 11]);
        let mut same = part(&[2, 2, 3], 100);
        same.take_over(&small, all);
        assert_eq!(same.memory.as_slice(), small.memory.as_slice());
        // One row of two, into memory that has no more, and longer ones.
        let mut one = part(&[1, 4, 3], 100);
        one.take_over(&small, 1);
        assert_eq!(&one.memory.as_slice()[..7], [0, 1, 2, 3, 4, 5, 106]);
        // And back: what there is no room for is left out.
        let mut back = part(&[2, 2, 3], 200);
        back.take_over(&wide, all);
        assert_eq!(back.memory.as_slice(), small.memory.as_slice());
    }

    #[test]
    fn rows_are_parts_of_the_memory() {
        let mut state = State {
            symbols: vec![(0, 3), (1, 128)],
            outer: Some(0),
            parts: vec![part(&[3, 128], 0), part(&[3, 64], 0)],
        };
        let mut symbols = [UNBOUND; 2];
        state.bind(&(1..3), &mut symbols);
        assert_eq!(symbols, [2, 128]);
        let begin = state.parts[1].memory.address() as usize;
        let found = state.buffers(&(1..3)).expect("they exist");
        assert_eq!((found[0].bytes, found[1].bytes), (256, 128));
        assert_eq!(found[1].address as usize, begin + 64);
        state.copy_row(2, 0).expect("they exist");
        let bytes = state.parts[1].memory.as_slice();
        assert_eq!(bytes[..64], bytes[128..]);
        assert!(state.buffers(&(2..4)).is_err());
        assert!(state.copy_row(0, 3).is_err());
        let mut narrow = State {
            parts: vec![part(&[2, 32], 0)],
            ..state
        };
        assert!(narrow.buffers(&(0..2)).is_ok());
        assert!(
            narrow.buffers(&(1..2)).is_err(),
            "kernels want aligned memory"
        );
    }
}
