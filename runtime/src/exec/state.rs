//! What lasts from one run to the next, such as a language model's caches of keys and values.

use super::ports::OutputBuffer;
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::plan::{Plan, byte_len};
use crate::sizes::{self, UNBOUND};
use lapidary_abi::program::{Port, ValueType};

/// Memory of a program's states, and the values of the symbols that their sizes were made for. Each is used by one run at a time;
/// a model may have any number of them.
#[derive(Default)]
pub struct State {
    /// Symbol, value.
    symbols: Vec<(usize, i64)>,
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
            symbols,
        })
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

    /// Gives the symbols their values.
    pub(super) fn bind(&self, symbols: &mut [i64]) {
        for &(symbol, value) in &self.symbols {
            if let Some(s) = symbols.get_mut(symbol) {
                *s = value;
            }
        }
    }

    pub(super) fn buffers(&mut self) -> Vec<OutputBuffer> {
        let buffer = |part: &mut Part| OutputBuffer {
            address: part.memory.address(),
            bytes: part.memory.as_slice().len(),
        };
        self.parts.iter_mut().map(buffer).collect()
    }

    /// Copies what another state of the same program holds to the beginning of each axis; this one must have room for it along all
    /// of them.
    pub fn take_over(&mut self, from: &State) -> Result<(), RunError> {
        let room = self.parts.len() == from.parts.len();
        let room = room
            && self
                .parts
                .iter()
                .zip(&from.parts)
                .all(|(to, from)| to.holds(from));
        if !room {
            return Err(RunError::Input(
                "a state has no room for what another one holds".to_owned(),
            ));
        }
        for (to, from) in self.parts.iter_mut().zip(&from.parts) {
            to.take_over(from);
        }
        Ok(())
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.memory.as_slice().len()).sum()
    }
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

    fn holds(&self, other: &Part) -> bool {
        self.elem == other.elem
            && self.dims.len() == other.dims.len()
            && self.dims.iter().zip(&other.dims).all(|(a, b)| a >= b)
    }

    fn take_over(&mut self, from: &Part) {
        // Runs along the last axis that differs are contiguous in both.
        let last = (0..self.dims.len())
            .rev()
            .find(|&i| self.dims[i] != from.dims[i]);
        let axis = last.unwrap_or(0);
        let run: usize = from.dims[axis..].iter().product::<usize>() * from.elem;
        let before: usize = from.dims[..axis].iter().product();
        let (source, target) = (from.memory.as_slice(), self.memory.as_mut_slice());
        for i in 0..before {
            // The index before the axis, in the numbers of rows that the other one has.
            let (mut rest, mut at, mut stride) = (i, 0, 1);
            for a in (0..axis).rev() {
                at += rest % from.dims[a] * stride;
                rest /= from.dims[a];
                stride *= self.dims[a];
            }
            let to = at * self.dims[axis..].iter().product::<usize>() * self.elem;
            target[to..to + run].copy_from_slice(&source[i * run..(i + 1) * run]);
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
        assert!(wide.holds(&small) && !small.holds(&wide));
        wide.take_over(&small);
        let found = wide.memory.as_slice();
        assert_eq!(&found[..6], [0, 1, 2, 3, 4, 5]);
        assert_eq!(&found[6..12], [106, 107, 108, 109, 110, 111]);
        assert_eq!(&found[12..18], [6, 7, 8, 9, 10, 11]);
        let mut both = part(&[3, 4, 3], 100);
        both.take_over(&small);
        assert_eq!(&both.memory.as_slice()[12..18], [6, 7, 8, 9, 10, 11]);
        let mut same = part(&[2, 2, 3], 100);
        same.take_over(&small);
        assert_eq!(same.memory.as_slice(), small.memory.as_slice());
    }
}
