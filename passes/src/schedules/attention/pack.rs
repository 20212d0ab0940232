//! Keys and values into panels.

use super::{Attention, Packed, panels, panels_of};
use crate::schedules::{add, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::{Axis, Binary, Extent, Kernel};

impl Attention {
    /// Packs keys or values. Parameters: `src`, `dst`, then those of `batch`, `keys` that are [`Num::Sym`](crate::schedules::Num::Sym).
    pub fn pack(&self, what: Packed) -> Kernel {
        let size = match what {
            Packed::Keys => self.size,
            Packed::Values => self.value_size,
        };
        let mut b = KernelBuilder::new("pack_heads");
        let src = b.buffer("src", ElemType::F32, false);
        let dst = b.buffer("dst", ElemType::F32, true);
        let batch = self.batch.bind(&mut b, "batch");
        let keys = self.keys.bind(&mut b, "keys");
        let at = b.grid(batch.tiles(1));
        let head = b.grid(Extent::Const(self.kv_heads as u64));
        let panel = match what {
            Packed::Keys => b.grid(keys.tiles(PANEL)),
            Packed::Values => b.grid(Extent::Const(panels(size) as u64)),
        };
        let key_panels = panels_of(&mut b, self.keys, keys);
        let (row, by_head, by_batch) = self.strides(&mut b, self.kv_heads, size, keys.var);
        let (x, y) = (mul(&mut b, at, by_batch), mul(&mut b, head, by_head));
        let first = add(&mut b, x, y);
        let heads_before = mul_const(&mut b, at, self.kv_heads);
        let head_index = add(&mut b, heads_before, head);
        let col0 = mul_const(&mut b, panel, i64::from(PANEL));
        let zero = b.index(0);
        match what {
            Packed::Keys => {
                let before = mul(&mut b, head_index, key_panels);
                let index = add(&mut b, before, panel);
                let to = mul_const(&mut b, index, size * i64::from(PANEL));
                let skip = mul_const(&mut b, col0, row);
                let from = add(&mut b, first, skip);
                let left = b.binary(Binary::Sub, keys.var, col0);
                let end = b.index(size);
                b.for_loop(zero, end, 1, &[], |b, j, _| {
                    let at = add(b, from, j);
                    // Keys that do not exist read as zero.
                    let x = b.load(src, at, &[PANEL], vec![Axis::stride(row).valid(left)]);
                    let skip = mul_const(b, j, i64::from(PANEL));
                    let at = add(b, to, skip);
                    b.store(dst, at, vec![Axis::stride(1)], x);
                    vec![]
                });
            }
            Packed::Values => {
                let before = mul_const(&mut b, head_index, panels(size));
                let index = add(&mut b, before, panel);
                let rows_before = mul(&mut b, index, keys.var);
                let to = mul_const(&mut b, rows_before, i64::from(PANEL));
                let from = add(&mut b, first, col0);
                let end = b.index(size);
                let left = b.binary(Binary::Sub, end, col0);
                let mut axis = Axis::stride(1);
                if size % i64::from(PANEL) != 0 {
                    axis = axis.valid(left);
                }
                b.for_loop(zero, keys.var, 1, &[], |b, key, _| {
                    let skip = mul_const(b, key, row);
                    let at = add(b, from, skip);
                    let x = b.load(src, at, &[PANEL], vec![axis]);
                    let skip = mul_const(b, key, i64::from(PANEL));
                    let at = add(b, to, skip);
                    b.store(dst, at, vec![Axis::stride(1)], x);
                    vec![]
                });
            }
        }
        b.finish()
    }
}
