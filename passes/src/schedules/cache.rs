//! Caches of keys and values: what [`super::attention`] reads, kept from one run to the next in its panels.
//!
//! ```text
//! keys [b][head][capacity / 32][d][32]      values [b][head][dv / 32][capacity][32]
//! grid (b, head, token)                     each token's numbers go to row at[b] + token of its sequence
//! ```
//! So a token is added without moving those before it, and nothing is packed when it is attended to. `capacity` is a multiple
//! of 32.

pub mod coded;

use super::attention::Packed;
use super::{Num, add, mul, mul_const};
use half::f16;
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::{Axis, Binary, Extent, Kernel, Literal, TileElem, TileType, Var};

const WIDTH: i64 = PANEL as i64;

/// Adds tokens to a cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Sequences.
    pub batch: Num,
    /// Heads of keys and values.
    pub heads: i64,
    /// Numbers of a head.
    pub size: i64,
    /// New tokens of each sequence.
    pub tokens: Num,
    /// Tokens that there is room for.
    pub capacity: Num,
    /// What is added.
    pub what: Packed,
    /// What numbers are stored as: `f32` or `f16`.
    pub elem: ElemType,
}

impl Append {
    /// The kernel. Parameters: `x` `[b][token][head][size]`, `at` (`i64`, one for each sequence), the cache, then those of
    /// `batch`, `tokens`, `capacity` that are [`Num::Sym`]. A row that there is no room for is moved to the nearest one: a kernel
    /// cannot fail, and must not write elsewhere.
    pub fn kernel(&self) -> Kernel {
        let mut b = KernelBuilder::new("append");
        let x = b.buffer("x", ElemType::F32, false);
        let rows = b.buffer("at", ElemType::I64, false);
        let cache = b.buffer("cache", self.elem, true);
        let batch = self.batch.bind(&mut b, "batch");
        let tokens = self.tokens.bind(&mut b, "tokens");
        let capacity = self.capacity.bind(&mut b, "capacity");
        let at = b.grid(batch.tiles(1));
        let head = b.grid(Extent::Const(self.heads as u64));
        let token = b.grid(tokens.tiles(1));

        let (zero, width) = (b.index(0), b.index(WIDTH));
        let before = mul(&mut b, at, tokens.var);
        let index = add(&mut b, before, token);
        let index = mul_const(&mut b, index, self.heads);
        let index = add(&mut b, index, head);
        let from = mul_const(&mut b, index, self.size);
        let first = b.load(rows, at, &[], vec![]);
        let first = b.cast(first, TileElem::Index);
        let row = add(&mut b, first, token);
        let last = super::add_const(&mut b, capacity.var, -1);
        let row = b.binary(Binary::Min, row, last);
        let row = b.binary(Binary::Max, row, zero);
        let heads_before = mul_const(&mut b, at, self.heads);
        let head_index = add(&mut b, heads_before, head);
        let size = b.index(self.size);
        match self.what {
            Packed::Keys => {
                let panels = b.binary(Binary::FloorDiv, capacity.var, width);
                let before = mul(&mut b, head_index, panels);
                let own = b.binary(Binary::FloorDiv, row, width);
                let column = b.binary(Binary::Mod, row, width);
                let panel = add(&mut b, before, own);
                let to = mul_const(&mut b, panel, self.size * WIDTH);
                let to = add(&mut b, to, column);
                b.for_loop(zero, size, PANEL, &[], |b, j, _| {
                    let left = b.binary(Binary::Sub, size, j);
                    let at = add(b, from, j);
                    let numbers = b.load(x, at, &[PANEL], vec![Axis::stride(1).valid(left)]);
                    let numbers = self.stored(b, numbers);
                    let skip = mul(b, j, width);
                    let at = add(b, to, skip);
                    let axis = Axis::stride(WIDTH).valid(left);
                    b.store(cache, at, vec![axis], numbers);
                    vec![]
                });
            }
            Packed::Values => {
                let panels = (self.size as u64).div_ceil(WIDTH as u64) as i64;
                let panel = mul_const(&mut b, head_index, panels);
                let to = mul(&mut b, panel, capacity.var);
                let to = add(&mut b, to, row);
                let to = mul(&mut b, to, width);
                b.for_loop(zero, size, PANEL, &[], |b, j, _| {
                    let left = b.binary(Binary::Sub, size, j);
                    let at = add(b, from, j);
                    // Columns that do not exist read as zero.
                    let numbers = b.load(x, at, &[PANEL], vec![Axis::stride(1).valid(left)]);
                    let numbers = self.stored(b, numbers);
                    // The next panel is `capacity` rows of 32 further on, for 32 more columns.
                    let skip = mul(b, j, capacity.var);
                    let at = add(b, to, skip);
                    b.store(cache, at, vec![Axis::stride(1)], numbers);
                    vec![]
                });
            }
        }
        b.finish()
    }

    /// Numbers as they are stored: of halves the nearest finite one.
    fn stored(&self, b: &mut KernelBuilder, x: Var) -> Var {
        if self.elem == ElemType::F32 {
            return x;
        }
        let most = f64::from(f32::from(f16::MAX));
        let [low, high] =
            [-most, most].map(|n| b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(n)));
        let x = b.binary(Binary::Max, x, low);
        let x = b.binary(Binary::Min, x, high);
        b.cast(x, TileElem::Elem(self.elem))
    }
}
