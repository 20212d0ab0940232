//! How fast a machine does each kind of work: what the cost model multiplies amounts of work with.
//!
//! Rates are of one thread whose data is in a near cache; what comes from farther is a matter of [`Speeds::memory`]. They come
//! with a target's description ([`Speeds::of`]), or were measured (`lapidary tune`), and mean the same in both cases.

use crate::target::{Feature, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

macro_rules! works {
    ($($work:ident $name:literal $unit:literal $shape:literal [$(($at:literal, $rate:literal)),+];)*) => {
        /// A kind of work.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Work {
            $(#[doc = $unit] #[serde(rename = $name)] $work,)*
        }

        /// Every kind of work.
        pub const WORKS: &[WorkRow] = &[$(WorkRow {
            work: Work::$work,
            name: $name,
            unit: $unit,
            shape: $shape,
            rates: &[$(($at, $rate)),+],
        },)*];
    };
}

/// What is known of a kind of work.
#[derive(Clone, Copy, Debug)]
pub struct WorkRow {
    /// The kind.
    pub work: Work,
    /// As profiles name it.
    pub name: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// What else the rate depends on; empty if nothing.
    pub shape: &'static str,
    /// Units in a cycle at some shapes, of a core with 512-bit vectors and 8-bit dot products.
    rates: &'static [(f64, f64)],
}

works! {
    Vector "vector" "operations of generated code on vector registers" "" [(0.0, 1.5)];
    Scalar "scalar" "operations of generated code on single numbers, addresses included" "" [(0.0, 2.0)];
    Call "call" "calls of micro-kernels" "" [(0.0, 0.02)];
    Store "store" "results that products write" "" [(0.0, 8.0)];
    Gemm "gemm" "operations of f32 products" "rows of a tile" [(1.0, 16.0), (2.0, 26.0), (4.0, 36.0), (8.0, 44.0), (14.0, 48.0)];
    GemmBf16 "gemm_bf16" "operations of bf16 products" "rows of a tile" [(1.0, 24.0), (2.0, 44.0), (4.0, 66.0), (8.0, 80.0), (14.0, 88.0)];
    GemmCodes "gemm_codes" "operations of int8 products" "rows of a tile" [(1.0, 50.0), (4.0, 120.0), (8.0, 150.0), (14.0, 160.0)];
    Blocks2 "blocks_2" "operations of products with 2-bit weights in long blocks" "rows" [(1.0, 80.0), (4.0, 110.0), (12.0, 120.0)];
    Blocks4 "blocks_4" "operations of products with 4-bit weights in long blocks" "rows" [(1.0, 70.0), (4.0, 110.0), (12.0, 120.0)];
    Blocks8 "blocks_8" "operations of products with 8-bit weights in long blocks" "rows" [(1.0, 50.0), (4.0, 100.0), (12.0, 120.0)];
    ShortBlocks2 "short_blocks_2" "operations of products with 2-bit weights in short blocks" "rows" [(1.0, 60.0), (4.0, 80.0), (12.0, 90.0)];
    ShortBlocks4 "short_blocks_4" "operations of products with 4-bit weights in short blocks" "rows" [(1.0, 60.0), (4.0, 80.0), (12.0, 90.0)];
    ShortBlocks8 "short_blocks_8" "operations of products with 8-bit weights in short blocks" "rows" [(1.0, 40.0), (4.0, 80.0), (12.0, 90.0)];
    Round "round" "numbers rounded to blocks of codes" "" [(0.0, 2.0)];
    Unpack2 "unpack_2" "2-bit weights made numbers" "length of a block" [(32.0, 4.0), (128.0, 5.0)];
    Unpack4 "unpack_4" "4-bit weights made numbers" "length of a block" [(32.0, 4.0), (128.0, 5.0)];
    Unpack8 "unpack_8" "8-bit weights made numbers" "length of a block" [(32.0, 4.0), (128.0, 5.0)];
    Sparse "sparse" "operations of f32 products with sparse weights, 64 lanes at a time" "" [(0.0, 30.0)];
    SparseFew "sparse_few" "operations of f32 products with sparse weights, 16 lanes at a time" "" [(0.0, 18.0)];
    SparseColumn "sparse_column" "operations of f32 products of sparse weights and one column" "" [(0.0, 2.9)];
    SparseCodes "sparse_codes" "operations of int8 products with sparse weights" "lanes" [(16.0, 73.0), (32.0, 128.0)];
    Move "move" "elements gathered or transposed into panels" "" [(0.0, 3.0)];
    Copy "copy" "elements copied into panels" "" [(0.0, 14.0)];
    Window "window" "operations of windows over channels of f32" "" [(0.0, 12.0)];
    WindowCodes "window_codes" "operations of windows over channels of codes" "" [(0.0, 16.0)];
    Exp "exp" "exponentials" "" [(0.0, 1.5)];
    Tanh "tanh" "hyperbolic tangents" "" [(0.0, 1.2)];
    Erf "erf" "error functions" "" [(0.0, 1.0)];
    Sigmoid "sigmoid" "sigmoids" "" [(0.0, 1.3)];
    Swish "swish" "x times its sigmoid" "" [(0.0, 1.2)];
    Gelu "gelu" "GELUs by the error function" "" [(0.0, 0.9)];
    GeluTanh "gelu_tanh" "GELUs by the hyperbolic tangent" "" [(0.0, 0.9)];
}

/// Points of a function, by what it depends on, ascending; between them it is linear, and constant beyond them.
pub type Points = Vec<(f64, f64)>;

/// How fast a machine is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speeds {
    /// Threads that [`Memory::all`] is of.
    pub threads: u32,
    /// Nanoseconds of a launch before its kernel begins.
    pub launch_ns: f64,
    /// Nanoseconds that sharing a launch among so many threads costs besides.
    pub fork_ns: Points,
    /// How fast data is read, by where it is: ascending bytes of all that is used in turn.
    pub memory: Vec<Memory>,
    /// Units of each kind of work in a nanosecond.
    pub rates: BTreeMap<Work, Points>,
}

/// How fast data is read that is as much as this.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Bytes that are read in turn.
    pub bytes: u64,
    /// Bytes in a nanosecond, by one thread.
    pub one: f64,
    /// Bytes in a nanosecond by all threads that were measured, together.
    pub all: f64,
}

/// Cycles in a nanosecond that a machine is taken to have whose speed was not measured.
const GHZ: f64 = 3.0;

impl Speeds {
    /// What a target's description says.
    pub fn of(target: &Target) -> Speeds {
        let has = |f| target.features.contains(&f);
        if target.arch() == "nvptx64" {
            return Speeds::of_gpu(target, has(Feature::Sm90a) || has(Feature::Sm100));
        }
        let (bits, dots) = if has(Feature::Avx512) {
            (1.0, has(Feature::Avx512Vnni))
        } else if has(Feature::Avx2) {
            (0.5, has(Feature::AvxVnni))
        } else {
            (0.25, has(Feature::DotProd))
        };
        // Without dot products two multiplications and an addition do the same on half as many.
        let dots = if dots { 1.0 } else { 0.4 };
        let factor = |work| match work {
            // Counted in vectors of the target, or in what has no vectors.
            Work::Vector
            | Work::Scalar
            | Work::Call
            | Work::Store
            | Work::SparseColumn
            | Work::Move => 1.0,
            Work::GemmCodes | Work::SparseCodes => bits * dots,
            Work::Blocks2
            | Work::Blocks4
            | Work::Blocks8
            | Work::ShortBlocks2
            | Work::ShortBlocks4
            | Work::ShortBlocks8 => bits * dots,
            _ => bits,
        };
        let rates = |row: &WorkRow| {
            let scaled = |&(at, rate): &(f64, f64)| (at, rate * factor(row.work) * GHZ);
            (row.work, row.rates.iter().map(scaled).collect())
        };
        let memory = |bytes: u64, rate: f64, threads: f64| Memory {
            bytes,
            one: rate * GHZ,
            all: rate * threads * GHZ,
        };
        let threads = f64::from(target.threads.max(1));
        Speeds {
            threads: target.threads.max(1),
            launch_ns: 60.0,
            fork_ns: vec![(1.0, 0.0), (2.0, 500.0), (16.0, 2000.0)],
            memory: vec![
                memory(target.l1_bytes, 40.0, threads),
                memory(target.l2_bytes, 20.0, threads),
                memory(4 * target.l2_bytes, 12.0, threads),
                // All threads share what is behind the caches.
                memory(64 * target.l2_bytes, 4.3, threads.min(2.0)),
            ],
            rates: WORKS.iter().map(rates).collect(),
        }
    }

    /// What is published of an A100, or of an H100 for what is newer; the share of it that kernels reach is assumed. A thread
    /// stands for a multiprocessor, a vector for 128 elements.
    fn of_gpu(target: &Target, newer: bool) -> Speeds {
        // Cycles in a nanosecond; operations of `f32` and of codes in a cycle; bytes in a nanosecond.
        let (ghz, numbers, codes, memory, cache) = match newer {
            true => (1.75, 256.0, 8192.0, 3350.0, 5500.0),
            false => (1.41, 128.0, 4096.0, 1555.0, 4000.0),
        };
        const REACHED: f64 = 0.4;
        let rate = |work| match work {
            Work::Gemm => vec![(0.0, numbers * REACHED)],
            // Of eight times as many rows as a tile has.
            Work::GemmCodes => vec![(0.0, codes * REACHED / 8.0)],
            // Counted in what is written for a code and its products, which bounds up to four rows; more are for tensor cores.
            Work::Blocks4 | Work::Blocks8 => [(1.0, 0.2), (4.0, 0.45), (16.0, 4.0), (64.0, 8.0)]
                .map(|(rows, share)| (rows, numbers * share))
                .into(),
            Work::Scalar => vec![(0.0, 0.25)],
            Work::Call => vec![(0.0, 1.0)],
            _ => vec![(0.0, numbers / 2.0 / 128.0 * REACHED)],
        };
        let rates = |row: &WorkRow| {
            let scaled = rate(row.work)
                .into_iter()
                .map(|(at, rate)| (at, rate * ghz));
            (row.work, scaled.collect())
        };
        let threads = target.threads.max(1);
        let level = |bytes: u64, all: f64| Memory {
            bytes,
            one: all / f64::from(threads),
            all,
        };
        Speeds {
            threads,
            launch_ns: 3000.0,
            fork_ns: vec![(1.0, 0.0)],
            memory: vec![
                level(target.l2_bytes, cache),
                level(2 * target.l2_bytes, memory),
            ],
            rates: WORKS.iter().map(rates).collect(),
        }
    }

    /// Units of a kind of work that one thread does in a nanosecond.
    pub fn rate(&self, work: Work, shape: f64) -> f64 {
        self.rates
            .get(&work)
            .map_or(1.0, |points| at(points, shape))
    }

    /// Bytes in a nanosecond that so many threads read together, of data of which `bytes` are used in turn.
    pub fn bandwidth(&self, bytes: u64, threads: u32) -> f64 {
        let others = self.threads.saturating_sub(1).max(1);
        let share = f64::from(threads.saturating_sub(1)) / f64::from(others);
        // Sizes double from one level to the next, so between them is where their logarithms are.
        let points = |f: &dyn Fn(&Memory) -> f64| -> Points {
            let log = |m: &Memory| (m.bytes.max(1) as f64).ln();
            self.memory.iter().map(|m| (log(m), f(m))).collect()
        };
        let both = points(&|m| m.one + (m.all - m.one) * share.clamp(0.0, 1.0));
        at(&both, (bytes.max(1) as f64).ln())
    }

    /// What is wrong with speeds that come from a file, if anything is.
    pub fn problem(&self) -> Option<String> {
        let good = |v: f64| v.is_finite() && v > 0.0;
        let ascending = |p: &Points| !p.is_empty() && p.windows(2).all(|w| w[0].0 < w[1].0);
        let finite = |p: &Points| p.iter().all(|v| v.0.is_finite() && v.1.is_finite());
        for row in WORKS {
            let Some(points) = self.rates.get(&row.work) else {
                return Some(format!("there is no rate of `{}`", row.name));
            };
            if !ascending(points) || !finite(points) || !points.iter().all(|p| good(p.1)) {
                return Some(format!(
                    "the rates of `{}` are not positive at ascending shapes",
                    row.name
                ));
            }
        }
        let levels = &self.memory;
        let ordered = levels.windows(2).all(|w| w[0].bytes < w[1].bytes);
        if levels.is_empty() || !ordered || !levels.iter().all(|m| good(m.one) && good(m.all)) {
            return Some("the speeds of memory are not positive at ascending sizes".to_owned());
        }
        let costs = self.fork_ns.iter().all(|p| p.1 >= 0.0);
        if !ascending(&self.fork_ns) || !finite(&self.fork_ns) || !costs {
            return Some("the costs of sharing work are not those of ascending threads".to_owned());
        }
        if self.threads == 0 {
            return Some("there are no threads".to_owned());
        }
        let launch = self.launch_ns.is_finite() && self.launch_ns >= 0.0;
        (!launch).then(|| "the cost of a launch is no time".to_owned())
    }
}

/// The value of a function that is given by points.
pub fn at(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|p| p.0 < x);
    match (
        after.checked_sub(1).and_then(|i| points.get(i)),
        points.get(after),
    ) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0),
        (Some(p), None) | (None, Some(p)) => p.1,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_points_values_are_between_theirs() {
        let points = [(1.0, 2.0), (3.0, 6.0)];
        for (x, want) in [(0.0, 2.0), (1.0, 2.0), (2.0, 4.0), (3.0, 6.0), (9.0, 6.0)] {
            assert_eq!(at(&points, x), want, "{x}");
        }
        assert_eq!(at(&[], 1.0), 0.0);
    }

    #[test]
    fn descriptions_are_complete_and_wider_machines_faster() {
        let plain = Speeds::of(&Target::x86_64());
        let wide = Target::x86_64().with_features(vec![Feature::Avx512Vnni]);
        let wide = Speeds::of(&wide);
        assert_eq!((plain.problem(), wide.problem()), (None, None));
        for work in [Work::Gemm, Work::GemmCodes, Work::Blocks4, Work::Sparse] {
            assert!(wide.rate(work, 8.0) > plain.rate(work, 8.0), "{work:?}");
        }
        assert!(wide.bandwidth(1 << 14, 1) > wide.bandwidth(1 << 30, 1));
    }

    #[test]
    fn threads_share_memory() {
        let speeds = Speeds::of(&Target {
            threads: 4,
            ..Target::x86_64()
        });
        let [one, two, four] = [1, 2, 4].map(|t| speeds.bandwidth(1 << 20, t));
        assert!(one < two && two < four);
    }

    #[test]
    fn wrong_speeds_are_refused() {
        let good = Speeds::of(&Target::x86_64());
        let edits: [&dyn Fn(&mut Speeds); 6] = [
            &|s| s.launch_ns = f64::NAN,
            &|s| s.memory.clear(),
            &|s| s.memory[0].one = 0.0,
            &|s| s.fork_ns.reverse(),
            &|s| drop(s.rates.remove(&Work::Gemm)),
            &|s| drop(s.rates.insert(Work::Exp, vec![(0.0, -1.0)])),
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut bad = good.clone();
            edit(&mut bad);
            assert!(bad.problem().is_some(), "{i}");
        }
    }
}
