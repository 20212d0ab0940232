//! Random terms, for tests and fuzzing: every constructor says what a term of it may look like, and terms nest.

use super::{ENCODINGS, Encoding, dense};
use crate::ElemType;
use crate::random::SplitMix64;
use crate::tensor::count;

/// Draws terms; the same seed gives the same terms.
#[derive(Clone, Debug)]
pub struct Sampler {
    random: SplitMix64,
    /// Levels that may still nest.
    depth: u32,
    /// Integers are below this.
    limit: i64,
}

impl Sampler {
    /// The sampler of a seed, for terms of at most this many levels.
    pub fn new(seed: u64, depth: u32) -> Sampler {
        Sampler {
            random: SplitMix64::new(seed),
            depth,
            limit: 256,
        }
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.random.below(n)
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Floats that every type of at least 16 bits holds.
    pub fn numbers(&mut self, n: usize) -> Vec<f64> {
        (0..n)
            .map(|_| (self.below(65) as f64 - 32.0) / 16.0)
            .collect()
    }

    /// Integers within the limit that holds here.
    pub fn integers(&mut self, n: usize) -> Vec<i128> {
        let limit = self.limit as usize;
        (0..n).map(|_| self.below(limit) as i128).collect()
    }

    /// The limit of integers that holds here.
    pub fn limit(&self) -> i64 {
        self.limit
    }

    /// A shape that the block rule spreads over this one.
    pub fn blocks(&mut self, shape: &[usize]) -> Vec<usize> {
        let part = |s: &mut Sampler, n: usize| n.div_ceil(s.below(n.max(1)) + 1).max(1);
        shape.iter().map(|&n| part(self, n)).collect()
    }

    /// A divisor of `n`.
    pub fn divisor(&mut self, n: usize) -> usize {
        let all: Vec<usize> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
        if all.is_empty() { 1 } else { self.one_of(&all) }
    }

    /// A term of this type, of any constructor that has one.
    pub fn term(&mut self, elem: ElemType, shape: &[usize]) -> Encoding {
        if self.depth > 0 {
            for _ in 0..4 {
                let ctor = ENCODINGS[self.below(ENCODINGS.len())];
                if let Some(e) = self.inside(|s| (ctor.sample)(s, elem, shape)) {
                    return e;
                }
            }
        }
        let plain = (dense::DENSE.sample)(self, elem, shape);
        plain.unwrap_or_else(|| panic!("no term of {elem}"))
    }

    /// A term of codes, each from 0 to below `limit`.
    pub fn codes(&mut self, shape: &[usize], limit: i64) -> Encoding {
        let elem = if limit <= 256 {
            ElemType::U8
        } else {
            ElemType::U16
        };
        let before = std::mem::replace(&mut self.limit, limit);
        let e = self.term(elem, shape);
        self.limit = before;
        e
    }

    /// Draws one level further down.
    fn inside<T>(&mut self, f: impl FnOnce(&mut Sampler) -> T) -> T {
        self.depth -= 1;
        let out = f(self);
        self.depth += 1;
        out
    }

    /// A shape of this rank with short axes.
    pub fn shape(&mut self, rank: usize) -> Vec<usize> {
        let shape: Vec<usize> = (0..rank)
            .map(|_| self.one_of(&[1, 2, 3, 4, 6, 8, 12, 16]))
            .collect();
        debug_assert!(count(&shape) > 0);
        shape
    }
}
