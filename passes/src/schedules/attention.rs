//! Attention without a matrix of scores: a tile of queries meets the keys run by run, with a running softmax.
//!
//! ```text
//! q, y rows of a head, any distance apart      kp [b][kv head][keys / 32][d][32]      vp [b][kv head][dv / 32][keys][32]
//! grid (b, head, tile of up to 14 queries)
//!   for each run of up to RUN keys                       a causal tile stops at its last query, one with a window begins
//!                                                        with the panel of its first key
//!     s = q k'                                            micro-kernel, 32 keys at a time, into scratch
//!     for each row: x = s * scale + mask; m' = max(m, x); p = exp(x - m'); l = l * exp(m - m') + sum p; o *= exp(m - m')
//!     o += p v                                            micro-kernel, 32 columns at a time
//!   y = o / l                                             zero where nothing may be attended
//! ```
//! Keys and values that lie in caches ([`super::cache`]) are in panels already: `keys` is then how many there is room for, and
//! the queries are the last of those that are filled. Of caches of halves or codes ([`super::cache::coded`]) a run is made `f32` in
//! scratch memory first.
//!
//! The running maximum and sum are those of "Online normalizer calculation for softmax" (arXiv 1805.02867).

mod attended;
mod pack;
mod softmax;
mod source;

use self::source::Source;
use super::cache::coded::Codes;
use super::epilogue::whole_lanes;
use super::{Bound, Num, add, even_rows, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, GemmTile, Kind, MAX_ROWS, PANEL, RowsAt};
use lapidary_ir::kernel::softmax::reciprocal;
use lapidary_ir::kernel::{Axis, Binary, Buf, Extent, Kernel, Literal, TileElem, TileType, Var};

/// Keys of a run: scores of a tile are then 28 KiB.
const RUN: i64 = 512;
/// Elements of a row that are computed together.
const LANES: u32 = 32;

/// How heads lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// `[b][h][s][d]`.
    Apart,
    /// `[b][s][h][d]`.
    Packed,
}

/// A mask `[b or 1][h or 1][queries or 1][keys]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// One for each sequence of the batch.
    pub batch: bool,
    /// One for each head.
    pub heads: bool,
    /// One for each query.
    pub rows: bool,
    /// `bool`, where true is allowed; else `f32`, which is added.
    pub condition: bool,
}

/// Extents and restraints.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Sequences.
    pub batch: Num,
    /// Heads of queries.
    pub heads: i64,
    /// Heads of keys and values.
    pub kv_heads: i64,
    /// Queries.
    pub queries: Num,
    /// Keys.
    pub keys: Num,
    /// Numbers of a head of queries and keys.
    pub size: i64,
    /// Numbers of a head of values.
    pub value_size: i64,
    /// Layout of all four.
    pub layout: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Mask.
    pub mask: Option<Mask>,
    /// A query sees keys up to its own position.
    pub causal: bool,
    /// A query sees keys from this far before its own position on; else all.
    pub left: Option<i64>,
    /// Bound of the scores, if they have one.
    pub softcap: Option<f32>,
    /// Where keys and values are.
    pub stored: Stored,
    /// Cached tokens have a number that is added to their scores, and how much attention they get is counted
    /// ([`lapidary_abi::attended`]); without a mask, of [`Stored::Cached`] only.
    pub counted: bool,
}

/// Where keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In tensors that are packed for it.
    Packed,
    /// In caches of `f32` or `f16`, of which only the first rows are filled.
    Cached(ElemType),
    /// In such caches whose older tokens are codes.
    Coded {
        /// Keys.
        keys: Codes,
        /// Values.
        values: Codes,
    },
}

/// Which operand is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// Keys: columns of a panel are keys.
    Keys,
    /// Values: columns of a panel are numbers of a head.
    Values,
}

/// The extents inside a kernel.
struct Extents {
    batch: Bound,
    queries: Bound,
    keys: Bound,
}

fn panels(n: i64) -> i64 {
    (n as u64).div_ceil(u64::from(PANEL)) as i64
}

/// `ceil(n / 32)` inside a kernel.
fn panels_of(b: &mut KernelBuilder, num: Num, bound: Bound) -> Var {
    if let Some(n) = num.known() {
        return b.index(panels(n));
    }
    let up = super::add_const(b, bound.var, i64::from(PANEL) - 1);
    let width = b.index(i64::from(PANEL));
    b.binary(Binary::FloorDiv, up, width)
}

impl Attention {
    /// Queries of a tile.
    pub fn tile_rows(&self) -> u32 {
        even_rows(self.queries, MAX_ROWS)
    }

    fn run(&self) -> i64 {
        if self.is_decoded() {
            return source::RUN;
        }
        self.keys
            .known()
            .map_or(RUN, |k| (panels(k) * i64::from(PANEL)).min(RUN))
    }

    /// Distance between rows, heads and sequences of an operand with this many heads of this size.
    fn strides(&self, b: &mut KernelBuilder, heads: i64, size: i64, rows: Var) -> (i64, Var, Var) {
        let all = mul_const(b, rows, heads * size);
        match self.layout {
            Heads::Apart => (size, mul_const(b, rows, size), all),
            Heads::Packed => (heads * size, b.index(size), all),
        }
    }

    /// Stretches of keys that are stored alike: from `begin` to `end`, of which `filled` are there in all.
    fn spans<'s>(
        &self,
        b: &mut KernelBuilder,
        sources: &'s [Source],
        filled: Var,
        (begin, end): (Var, Var),
    ) -> Vec<Span<'s>> {
        let Stored::Coded { keys, .. } = self.stored else {
            return sources
                .iter()
                .map(|source| Span {
                    source,
                    begin,
                    end,
                    step: self.run(),
                })
                .collect();
        };
        let width = i64::from(PANEL);
        let first = b.index(width);
        let coarse = keys.coarse(b, filled);
        let coarse = mul_const(b, coarse, width);
        let behind = b.binary(Binary::Max, begin, first);
        let recent = b.binary(Binary::Max, behind, coarse);
        let mut until = |stop: Var| b.binary(Binary::Min, end, stop);
        let (first, coarse) = (until(first), until(coarse));
        let bounds = [(begin, first), (behind, coarse), (recent, end)];
        sources
            .iter()
            .zip(bounds)
            .map(|(source, (begin, end))| Span {
                source,
                begin,
                end,
                step: if source.is_coded() { self.run() } else { width },
            })
            .collect()
    }

    /// The kernel. Parameters: `q`, keys, values, `mask`?, `filled` if keys are cached, `attended` and `softmax` if it is counted, `y`,
    /// then those of `batch`, `queries`, `keys` that are [`Num::Sym`]. Keys and values are one buffer each, or the three of a cache of
    /// codes. `softmax` gets what makes probabilities of scores, the maximum of each row and one over its sum,
    /// `f32[batch][heads][queries][2]`.
    pub fn kernel(&self, name: &str) -> Kernel {
        let mut b = KernelBuilder::new(name);
        let q = b.buffer("q", ElemType::F32, false);
        let buffers = [Packed::Keys, Packed::Values].map(|what| self.buffers(&mut b, what));
        let mask = self.mask.map(|m| {
            let elem = if m.condition {
                ElemType::Bool
            } else {
                ElemType::F32
            };
            (b.buffer("mask", elem, false), m)
        });
        let filled = self
            .cached()
            .then(|| b.buffer("filled", ElemType::I64, false));
        let counted = self.counted.then(|| {
            let read = b.buffer("attended", ElemType::F32, false);
            (read, b.buffer("softmax", ElemType::F32, true))
        });
        let y = b.buffer("y", ElemType::F32, true);
        let n = Extents {
            batch: self.batch.bind(&mut b, "batch"),
            queries: self.queries.bind(&mut b, "queries"),
            keys: self.keys.bind(&mut b, "keys"),
        };
        let rows = self.tile_rows();
        let (run, width) = (self.run(), panels(self.value_size) * i64::from(PANEL));
        let at = b.grid(n.batch.tiles(1));
        let head = b.grid(Extent::Const(self.heads as u64));
        let tile = b.grid(n.queries.tiles(rows));
        let scratch = Scratch {
            s: b.scratch(ElemType::F32, rows * run as u32),
            o: b.scratch(ElemType::F32, rows * width as u32),
            m: b.scratch(ElemType::F32, rows),
            l: b.scratch(ElemType::F32, rows),
        };

        let zero = b.index(0);
        let row0 = mul_const(&mut b, tile, i64::from(rows));
        let rows_left = b.binary(Binary::Sub, n.queries.var, row0);
        let all = b.index(i64::from(rows));
        let rows_here = b.binary(Binary::Min, rows_left, all);
        let (q_row, q_head, q_batch) = self.strides(&mut b, self.heads, self.size, n.queries.var);
        let q_at = place(&mut b, (at, q_batch), (head, q_head), (row0, q_row));
        let (y_row, y_head, y_batch) =
            self.strides(&mut b, self.heads, self.value_size, n.queries.var);
        let y_at = place(&mut b, (at, y_batch), (head, y_head), (row0, y_row));
        // Several heads of queries share one of keys.
        let group = b.index(self.heads / self.kv_heads);
        let kv_head = b.binary(Binary::FloorDiv, head, group);
        let kv_before = mul_const(&mut b, at, self.kv_heads);
        let kv_index = add(&mut b, kv_before, kv_head);
        let key_panels = panels_of(&mut b, self.keys, n.keys);
        let sources = Source::of(&mut b, self, buffers, (kv_index, key_panels, n.keys.var));
        let mask = mask.map(|(buf, m)| {
            let by_row = m.rows.then_some(n.keys.var);
            let plane = if m.rows {
                mul(&mut b, n.queries.var, n.keys.var)
            } else {
                n.keys.var
            };
            let planes = if m.heads {
                mul_const(&mut b, plane, self.heads)
            } else {
                plane
            };
            let mut base = zero;
            for (index, stride, there) in [
                (at, planes, m.batch),
                (head, plane, m.heads),
                (row0, n.keys.var, m.rows),
            ] {
                if there {
                    let skip = mul(&mut b, index, stride);
                    base = add(&mut b, base, skip);
                }
            }
            MaskAt { buf, base, by_row }
        });
        let mask = match counted {
            Some((read, _)) => Some(self::attended::bias(&mut b, read, kv_index, n.keys.var)),
            None => mask,
        };

        let low = b.constant(scalar(), Literal::Float(f64::NEG_INFINITY));
        let nothing = b.constant(scalar(), Literal::Float(0.0));
        let many = if self.one_run() { zero } else { rows_here };
        b.for_loop(zero, many, 1, &[], |b, r, _| {
            b.store(scratch.m, r, vec![], low);
            b.store(scratch.l, r, vec![], nothing);
            let from = mul_const(b, r, width);
            let end = b.index(width);
            b.for_loop(zero, end, LANES, &[], |b, j, _| {
                let zeros = b.constant(TileType::of(ElemType::F32, &[LANES]), Literal::Float(0.0));
                let at = add(b, from, j);
                b.store(scratch.o, at, vec![Axis::stride(1)], zeros);
                vec![]
            });
            vec![]
        });
        let mut end = n.keys.var;
        let mut filled_end = end;
        let mut position = row0;
        if let Some(filled) = filled {
            let there = b.load(filled, at, &[], vec![]);
            let there = b.cast(there, TileElem::Index);
            end = b.binary(Binary::Min, end, there);
            filled_end = end;
            let before = b.binary(Binary::Sub, there, n.queries.var);
            position = add(&mut b, before, row0);
        }
        if self.causal {
            let reach = add(&mut b, position, rows_here);
            end = b.binary(Binary::Min, end, reach);
        }
        let begin = match self.left {
            None => zero,
            Some(left) => {
                let first = super::add_const(&mut b, position, -left);
                let width = b.index(i64::from(PANEL));
                let panel = b.binary(Binary::FloorDiv, first, width);
                let first = mul(&mut b, panel, width);
                b.binary(Binary::Max, first, zero)
            }
        };
        let spans = self.spans(&mut b, &sources, filled_end, (begin, end));
        for Span {
            source,
            begin,
            end,
            step,
        } in spans
        {
            b.for_loop(begin, end, step as u32, &[], |b, key0, _| {
                let left = b.binary(Binary::Sub, end, key0);
                let most = b.index(step);
                let here = b.binary(Binary::Min, left, most);
                self.scores(
                    b,
                    &scratch,
                    (q, q_at, q_row),
                    source,
                    (key0, here),
                    rows_left,
                );
                let keys = (key0, here);
                self.weigh(b, &scratch, mask.as_ref(), (rows_here, position), keys);
                let result = self.direct().then_some((y, y_at, y_row));
                self.weighted(b, &scratch, source, (key0, here), rows_left, result);
                vec![]
            });
        }
        if self.direct() {
            return b.finish();
        }
        b.for_loop(zero, rows_here, 1, &[], |b, r, _| {
            let sum = b.load(scratch.l, r, &[], vec![]);
            let inverse = reciprocal(b, sum);
            if let Some((_, softmax)) = counted {
                let row = add(b, row0, r);
                let to = self.softmax_at(b, n.queries.var, (at, head, row));
                let most = b.load(scratch.m, r, &[], vec![]);
                b.store(softmax, to, vec![], most);
                let next = super::add_const(b, to, 1);
                b.store(softmax, next, vec![], inverse);
            }
            let from = mul_const(b, r, width);
            let skip = mul_const(b, r, y_row);
            let to = add(b, y_at, skip);
            let size = b.index(self.value_size);
            let whole = whole_lanes(Num::Const(self.value_size), LANES);
            let lanes = whole.unwrap_or(4);
            b.for_loop(zero, size, lanes, &[], |b, j, _| {
                let at = add(b, from, j);
                let x = b.load(scratch.o, at, &[lanes], vec![Axis::stride(1)]);
                let x = b.binary(Binary::Mul, x, inverse);
                let mut axis = Axis::stride(1);
                if whole.is_none() {
                    axis = axis.valid(b.binary(Binary::Sub, size, j));
                }
                let at = add(b, to, j);
                b.store(y, at, vec![axis], x);
                vec![]
            });
            vec![]
        });
        b.finish()
    }

    /// `s[rows][here] = q k'`, for a run of keys.
    fn scores(
        &self,
        b: &mut KernelBuilder,
        scratch: &Scratch,
        (q, q_at, q_row): (Buf, Var, i64),
        source: &Source,
        (key0, here): (Var, Var),
        rows_left: Var,
    ) {
        let rows = self.tile_rows();
        let (zero, k) = (b.index(0), b.index(self.size));
        b.for_loop(zero, here, PANEL, &[], |b, key, _| {
            let first = add(b, key0, key);
            let (panel, b_base) = source.keys(b, self.size, first);
            let spec = GemmTile {
                kind: Kind::F32,
                rows,
                a: q,
                b: panel,
                b_base,
                k,
                taps: 1,
                width: PANEL,
            };
            let acc = contraction::gemm(b, spec, |_, _| RowsAt {
                base: q_at,
                rows: Axis::stride(q_row).valid(rows_left),
            });
            let c_at = RowsAt {
                base: key,
                rows: Axis::stride(self.run()).valid(rows_left),
            };
            contraction::epilogue(b, acc, plain(scratch.s, c_at, None));
            vec![]
        });
    }

    /// `o += p v`, for a run of keys.
    fn weighted(
        &self,
        b: &mut KernelBuilder,
        scratch: &Scratch,
        source: &Source,
        (key0, here): (Var, Var),
        rows_left: Var,
        result: Option<(Buf, Var, i64)>,
    ) {
        let rows = self.tile_rows();
        let width = panels(self.value_size) * i64::from(PANEL);
        let (zero, end) = (b.index(0), b.index(width));
        b.for_loop(zero, end, PANEL, &[], |b, column, _| {
            let (panel, b_base) = source.values(b, column, (key0, here));
            let spec = GemmTile {
                kind: Kind::F32,
                rows,
                a: scratch.s,
                b: panel,
                b_base,
                k: here,
                taps: 1,
                width: PANEL,
            };
            let acc = contraction::gemm(b, spec, |_, _| RowsAt {
                base: zero,
                rows: Axis::stride(self.run()).valid(rows_left),
            });
            if let Some((y, y_at, y_row)) = result {
                let c_at = RowsAt {
                    base: add(b, y_at, column),
                    rows: Axis::stride(y_row).valid(rows_left),
                };
                let partial = self.value_size % i64::from(PANEL) != 0;
                let cols = partial.then(|| {
                    let size = b.index(self.value_size);
                    b.binary(Binary::Sub, size, column)
                });
                let epilogue = Epilogue {
                    cols,
                    ..plain(y, c_at, None)
                };
                contraction::epilogue(b, acc, epilogue);
                return vec![];
            }
            let c_at = RowsAt {
                base: column,
                rows: Axis::stride(width).valid(rows_left),
            };
            let residual = (!self.one_run()).then(|| (scratch.o, c_at.clone()));
            contraction::epilogue(b, acc, plain(scratch.o, c_at, residual));
            vec![]
        });
    }

    /// True if rows of weights are so short that dividing them by their sum costs less than dividing the result: it is then
    /// written by the micro-kernel, and nothing runs on from one run to the next.
    fn direct(&self) -> bool {
        let most = self.value_size.max(64);
        !self.cached() && self.one_run() && self.keys.known().is_some_and(|k| k <= most)
    }

    /// Elements of a row of scores that are computed together.
    fn lanes(&self) -> u32 {
        let short = self.keys.known().is_some_and(|k| k < 64);
        let any = if short { 4 } else { LANES };
        whole_lanes(self.keys, LANES).unwrap_or(any)
    }

    /// True if a run becomes `f32` in scratch memory first.
    fn is_decoded(&self) -> bool {
        matches!(
            self.stored,
            Stored::Coded { .. } | Stored::Cached(ElemType::F16)
        )
    }

    fn cached(&self) -> bool {
        self.stored != Stored::Packed
    }

    fn one_run(&self) -> bool {
        let whole = !self.is_decoded() && !self.counted;
        whole && self.keys.known().is_some_and(|k| k <= self.run())
    }

    /// True if rows are whole vectors.
    fn exact(&self) -> bool {
        let whole = |k: i64| k % i64::from(self.lanes()) == 0;
        !self.causal && !self.cached() && self.keys.known().is_some_and(whole)
    }
}

/// Keys that are stored alike.
struct Span<'s> {
    source: &'s Source,
    begin: Var,
    end: Var,
    /// Keys of a run.
    step: i64,
}

struct Scratch {
    s: Buf,
    o: Buf,
    m: Buf,
    l: Buf,
}

struct MaskAt {
    buf: Buf,
    base: Var,
    by_row: Option<Var>,
}

fn scalar() -> TileType {
    TileType::of(ElemType::F32, &[])
}

fn place(
    b: &mut KernelBuilder,
    batch: (Var, Var),
    head: (Var, Var),
    (row, stride): (Var, i64),
) -> Var {
    let x = mul(b, batch.0, batch.1);
    let y = mul(b, head.0, head.1);
    let z = mul_const(b, row, stride);
    let sum = add(b, x, y);
    add(b, sum, z)
}

fn plain(c: Buf, c_at: RowsAt, residual: Option<(Buf, RowsAt)>) -> Epilogue {
    Epilogue {
        scaled: None,
        code: None,
        stages: vec![],
        table: None,
        bias: None,
        residual,
        lo: None,
        hi: None,
        c,
        c_at,
        cols: None,
    }
}

#[cfg(test)]
mod tests;
