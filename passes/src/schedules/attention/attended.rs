//! How much attention each cached token gets: sums over the queries of a run, from the scores once more.
//!
//! ```text
//! grid (b, kv head, panel of 32 keys)
//!   for each query that sees the panel                     in order, so that a run of many is as many runs of one
//!     local *= DECAY
//!     for each head that shares the keys
//!       p = exp(q k' * scale + bias - maximum) / sum        what attention has written of the row
//!       total += p; local += p
//!     queries += 1 where the key is seen
//! ```
//! So attention itself stays as it is, and keys are read once more. The layout of the sums: [`lapidary_abi::attended`]. Accumulated
//! attention is what H2O (arXiv 2306.14048) keeps tokens by.

use super::{Attention, Extents, MaskAt, place, scalar};
use crate::schedules::{add, mul, mul_const};
use lapidary_abi::attended::{BIAS, DECAY, LOCAL, QUERIES, ROWS, TOTAL};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::softmax::bounded;
use lapidary_ir::kernel::{Axis, Binary, Buf, Extent, Kernel, Literal, TileElem, Unary, Var};

const WIDTH: i64 = PANEL as i64;

/// Where a row of a head's sums begins.
fn row_at(b: &mut KernelBuilder, kv_index: Var, row: usize, capacity: Var) -> Var {
    let before = mul_const(b, kv_index, ROWS as i64);
    let index = super::super::add_const(b, before, row as i64);
    mul(b, index, capacity)
}

/// What is added to the scores of a head of keys, as a mask.
pub(super) fn bias(b: &mut KernelBuilder, buf: Buf, kv_index: Var, capacity: Var) -> MaskAt {
    MaskAt {
        buf,
        base: row_at(b, kv_index, BIAS, capacity),
        by_row: None,
    }
}

impl Attention {
    /// Where the maximum of a row of scores is, and behind it one over its sum.
    pub(super) fn softmax_at(
        &self,
        b: &mut KernelBuilder,
        queries: Var,
        (at, head, row): (Var, Var, Var),
    ) -> Var {
        let before = mul_const(b, at, self.heads);
        let index = add(b, before, head);
        let before = mul(b, index, queries);
        let index = add(b, before, row);
        mul_const(b, index, 2)
    }

    /// The kernel that counts. Parameters: `q`, the cache of keys, `filled`, `softmax`, `attended`, then those of `batch`, `queries`,
    /// `keys` that are [`super::Num::Sym`].
    pub fn count_attended(&self) -> Kernel {
        let mut b = KernelBuilder::new("attended");
        let q = b.buffer("q", ElemType::F32, false);
        let keys = b.buffer("kp", ElemType::F32, false);
        let filled = b.buffer("filled", ElemType::I64, false);
        let softmax = b.buffer("softmax", ElemType::F32, false);
        let sums = b.buffer("attended", ElemType::F32, true);
        let n = Extents {
            batch: self.batch.bind(&mut b, "batch"),
            queries: self.queries.bind(&mut b, "queries"),
            keys: self.keys.bind(&mut b, "keys"),
        };
        let at = b.grid(n.batch.tiles(1));
        let kv_head = b.grid(Extent::Const(self.kv_heads as u64));
        let panel = b.grid(n.keys.tiles(PANEL));
        let (zero, one) = (b.index(0), b.index(1));
        let key0 = mul_const(&mut b, panel, WIDTH);
        let before = mul_const(&mut b, at, self.kv_heads);
        let kv_index = add(&mut b, before, kv_head);
        let capacity = n.keys.var;
        let width = b.index(WIDTH);
        let panels = b.binary(Binary::FloorDiv, capacity, width);
        let before = mul(&mut b, kv_index, panels);
        let index = add(&mut b, before, panel);
        let k_at = mul_const(&mut b, index, self.size * WIDTH);
        let [total, local, seen, bias] = [TOTAL, LOCAL, QUERIES, BIAS].map(|row| {
            let first = row_at(&mut b, kv_index, row, capacity);
            add(&mut b, first, key0)
        });
        let read =
            |b: &mut KernelBuilder, at: Var| b.load(sums, at, &[PANEL], vec![Axis::stride(1)]);
        let extra = read(&mut b, bias);
        let init = [total, local, seen].map(|at| read(&mut b, at));

        let there = b.load(filled, at, &[], vec![]);
        let there = b.cast(there, TileElem::Index);
        let past = b.binary(Binary::Sub, there, n.queries.var);
        let first = b.binary(Binary::Sub, key0, past);
        let first = b.binary(Binary::Max, first, zero);
        let lane = b.iota(PANEL);
        let key = b.binary(Binary::Add, lane, key0);
        let number =
            |b: &mut KernelBuilder, x: f32| b.constant(scalar(), Literal::Float(f64::from(x)));
        let (nothing, unit) = (number(&mut b, 0.0), number(&mut b, 1.0));
        let zeros = b.broadcast(nothing, &[PANEL], 0);
        let ones = b.broadcast(unit, &[PANEL], 0);
        let (decay, scale) = (number(&mut b, DECAY), number(&mut b, self.scale));
        let (q_row, q_head, q_batch) = self.strides(&mut b, self.heads, self.size, n.queries.var);
        let group = self.heads / self.kv_heads;
        let head0 = mul_const(&mut b, kv_head, group);
        let last = b.for_loop(first, n.queries.var, 1, &init, |b, query, carried| {
            let position = add(b, past, query);
            let visible = b.binary(Binary::Le, key, position);
            let local = b.binary(Binary::Mul, carried[1], decay);
            let heads = b.index(group);
            let sums = b.for_loop(zero, heads, 1, &[carried[0], local], |b, own, sums| {
                let head = add(b, head0, own);
                let from = place(b, (at, q_batch), (head, q_head), (query, q_row));
                let size = b.index(self.size);
                let x = b.for_loop(zero, size, 1, &[zeros], |b, j, x| {
                    let from = add(b, from, j);
                    let number = b.load(q, from, &[], vec![]);
                    let number = b.broadcast(number, &[PANEL], 0);
                    let skip = mul(b, j, width);
                    let to = add(b, k_at, skip);
                    let k = b.load(keys, to, &[PANEL], vec![Axis::stride(1)]);
                    vec![b.mul_add(number, k, x[0])]
                })[0];
                let mut x = b.binary(Binary::Mul, x, scale);
                if let Some(cap) = self.softcap {
                    x = bounded(b, x, cap);
                }
                let x = b.binary(Binary::Add, x, extra);
                let row = self.softmax_at(b, n.queries.var, (at, head, query));
                let most = b.load(softmax, row, &[], vec![]);
                let next = add(b, row, one);
                let inverse = b.load(softmax, next, &[], vec![]);
                let x = b.binary(Binary::Sub, x, most);
                let e = b.unary(Unary::Exp, x);
                let p = b.binary(Binary::Mul, e, inverse);
                // Whatever lies where no token is yet.
                let p = b.select(visible, p, zeros);
                sums.iter()
                    .map(|&sum| b.binary(Binary::Add, sum, p))
                    .collect()
            });
            let more = b.select(visible, ones, zeros);
            let seen = b.binary(Binary::Add, carried[2], more);
            vec![sums[0], sums[1], seen]
        });
        for (at, x) in [total, local, seen].into_iter().zip(last) {
            b.store(sums, at, vec![Axis::stride(1)], x);
        }
        b.finish()
    }
}
