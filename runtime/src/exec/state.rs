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
        let parts = Extent::new(plan, symbols)?.0.into_iter().zip(&plan.states);
        let parts = parts.map(|(dims, port)| Part::new(port, dims));
        Ok(State {
            parts: parts.collect::<Result<_, _>>()?,
            outer: outer(&plan.states),
            symbols: symbols.iter().filter_map(find).collect(),
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

    /// Copies what one row holds to another, as much of it as the extent of a row is.
    ///
    /// # Errors
    /// There are no such rows, or the extent is larger than they are, or one of another program.
    pub fn copy_row(&mut self, from: usize, to: usize, of: &Extent) -> Result<(), RunError> {
        let rows = self.rows();
        if from.max(to) >= rows {
            let row = from.max(to);
            return Err(RunError::Input(format!(
                "row {row} of a state that has {rows}"
            )));
        }
        self.check_extent(of)?;
        for (part, dims) in self.parts.iter_mut().zip(&of.0) {
            let runs = Runs::new(part, part, dims);
            let bytes = part.memory.as_mut_slice();
            let row = bytes.len() / rows;
            for (s, t) in runs.all() {
                let s = from * row + s;
                bytes.copy_within(s..s + runs.bytes, to * row + t);
            }
        }
        Ok(())
    }

    /// Copies what another state of the same program holds at the beginning of each axis.
    ///
    /// # Errors
    /// The extent is larger than one of both, or one of them is of another program.
    pub fn take_over(&mut self, from: &State, of: &Extent) -> Result<(), RunError> {
        self.check_extent(of)?;
        from.check_extent(of)?;
        let parts = self.parts.iter_mut().zip(&from.parts);
        for ((to, from), dims) in parts.zip(&of.0) {
            if to.elem != from.elem {
                return Err(RunError::Input("a state of another program".to_owned()));
            }
            let runs = Runs::new(from, to, dims);
            let (source, target) = (from.memory.as_slice(), to.memory.as_mut_slice());
            for (s, t) in runs.all() {
                target[t..t + runs.bytes].copy_from_slice(&source[s..s + runs.bytes]);
            }
        }
        Ok(())
    }

    fn check_extent(&self, of: &Extent) -> Result<(), RunError> {
        let holds = |part: &Part, dims: &Vec<usize>| {
            part.dims.len() == dims.len() && part.dims.iter().zip(dims).all(|(all, n)| n <= all)
        };
        let mut both = self.parts.iter().zip(&of.0);
        match self.parts.len() == of.0.len() && both.all(|(part, dims)| holds(part, dims)) {
            true => Ok(()),
            false => Err(RunError::Input(
                "a state has less room than is copied, or is one of another program".to_owned(),
            )),
        }
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

/// How far each axis of each part of a state reaches.
pub struct Extent(Vec<Vec<usize>>);

impl Extent {
    /// For these values of the symbols that the sizes of states depend on.
    pub(super) fn new(plan: &Plan, symbols: &[(&str, usize)]) -> Result<Extent, RunError> {
        let mut values = vec![UNBOUND; plan.symbols.len()];
        for &(name, value) in symbols {
            let index = plan.symbols.iter().position(|s| s == name);
            if let (Some(index), Ok(value)) = (index, i64::try_from(value)) {
                values[index] = value;
            }
        }
        let dims = |port: &Port| {
            let known = match &port.ty {
                ValueType::Tensor { dims: Some(d), .. } => sizes::dims(d, &values),
                _ => None,
            };
            known.ok_or_else(|| {
                let name = &port.name;
                RunError::Input(format!("the size of the state `{name}` is not known"))
            })
        };
        let all = plan.states.iter().map(dims);
        Ok(Extent(all.collect::<Result<_, _>>()?))
    }
}

impl Part {
    fn new(port: &Port, dims: Vec<usize>) -> Result<Part, RunError> {
        let ValueType::Tensor { elem, .. } = port.ty else {
            let name = &port.name;
            return Err(RunError::program(format!(
                "the state `{name}` is no tensor"
            )));
        };
        Ok(Part {
            memory: Bytes::zeroed(byte_len(elem, &dims)?)?,
            dims,
            elem: elem.size_bytes(),
        })
    }
}

/// What is at the beginning of each axis of two parts, as runs that are contiguous in both.
struct Runs {
    /// Lengths of the axes before those of a run.
    counts: Vec<usize>,
    /// Bytes from one index of each of them to the next.
    strides: [Vec<usize>; 2],
    /// Bytes of a run.
    bytes: usize,
}

impl Runs {
    fn new(from: &Part, to: &Part, dims: &[usize]) -> Runs {
        // The last axis that is not copied whole ends them.
        let partial = |&i: &usize| from.dims[i] != dims[i] || to.dims[i] != dims[i];
        let axis = (0..dims.len()).rev().find(partial).unwrap_or(0);
        let strides = |part: &Part| {
            let inner = |a: usize| part.dims[a + 1..].iter().product::<usize>() * part.elem;
            (0..axis).map(inner).collect()
        };
        Runs {
            counts: dims[..axis].to_vec(),
            strides: [strides(from), strides(to)],
            bytes: dims[axis.min(dims.len())..].iter().product::<usize>() * from.elem,
        }
    }

    /// Where each begins in both.
    fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        let count = self.counts.iter().product();
        (0..count).map(|mut index| {
            let mut at = [0, 0];
            for (axis, n) in self.counts.iter().enumerate().rev() {
                for (at, strides) in at.iter_mut().zip(&self.strides) {
                    *at += index % n * strides[axis];
                }
                index /= n;
            }
            (at[0], at[1])
        })
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

    fn state(part: Part) -> State {
        State {
            symbols: vec![],
            outer: Some(0),
            parts: vec![part],
        }
    }

    #[test]
    fn what_is_taken_over_keeps_its_place() {
        let small = state(part(&[2, 2, 3], 0));
        let found = |to: &[usize], begin, from: &State, of: &[usize]| {
            let mut to = state(part(to, begin));
            let copied = to.take_over(from, &Extent(vec![of.to_vec()]));
            copied.map(|()| to)
        };
        let bytes = |s: &State| s.parts[0].memory.as_slice().to_vec();
        let wide = found(&[2, 4, 3], 100, &small, &[2, 2, 3]).expect("it fits");
        assert_eq!(&bytes(&wide)[..6], [0, 1, 2, 3, 4, 5]);
        assert_eq!(&bytes(&wide)[6..12], [106, 107, 108, 109, 110, 111]);
        assert_eq!(&bytes(&wide)[12..18], [6, 7, 8, 9, 10, 11]);
        let both = found(&[3, 4, 3], 100, &small, &[2, 2, 3]).expect("it fits");
        assert_eq!(&bytes(&both)[12..18], [6, 7, 8, 9, 10, 11]);
        let same = found(&[2, 2, 3], 100, &small, &[2, 2, 3]).expect("it fits");
        assert_eq!(bytes(&same), bytes(&small));
        // One row of two, into memory that has no more, and longer ones.
        let one = found(&[1, 4, 3], 100, &small, &[1, 2, 3]).expect("it fits");
        assert_eq!(&bytes(&one)[..7], [0, 1, 2, 3, 4, 5, 106]);
        // And back: what is beyond the extent stays away.
        let back = found(&[2, 2, 3], 200, &wide, &[2, 2, 3]).expect("it fits");
        assert_eq!(bytes(&back), bytes(&small));
        let some = found(&[2, 2, 3], 100, &small, &[2, 1, 2]).expect("it fits");
        assert_eq!(
            bytes(&some),
            [0, 1, 102, 103, 104, 105, 6, 7, 108, 109, 110, 111]
        );
        for of in [&[2, 3, 3][..], &[3, 2, 3], &[2, 2]] {
            assert!(found(&[4, 4, 3], 0, &small, of).is_err(), "{of:?}");
        }
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
        let row = Extent(vec![vec![1, 128], vec![1, 48]]);
        state.copy_row(2, 0, &row).expect("they exist");
        let bytes = state.parts[1].memory.as_slice();
        assert_eq!(bytes[..48], bytes[128..176]);
        assert_eq!(bytes[48..64], (48..64).collect::<Vec<u8>>());
        assert!(state.buffers(&(2..4)).is_err());
        assert!(state.copy_row(0, 3, &row).is_err());
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
