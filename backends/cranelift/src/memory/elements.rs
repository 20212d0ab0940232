//! Elements one by one: what lies neither in rows nor in vectors.

use super::{AxisValues, Offsets, Place, slot_size};
use crate::function::{Fun, flags};
use crate::tile::Tile;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I64};
use cranelift_codegen::ir::{InstBuilder, StackSlot, Value};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::TileType;

impl<'k> Fun<'k, '_> {
    pub(super) fn load_elements(&mut self, ty: &TileType, place: &Place) -> Result<Tile, Error> {
        self.load_elements_of(ty, place, &place.cols.clone())
    }

    /// Loads element by element; one that is missing is read from the zeros.
    pub(super) fn load_elements_of(
        &mut self,
        ty: &TileType,
        place: &Place,
        cols: &AxisValues,
    ) -> Result<Tile, Error> {
        let (row_masks, col_masks) = (self.mask_scalars(&place.rows), self.mask_scalars(cols));
        let columns: Vec<Option<Value>> = (0..cols.len)
            .map(|j| self.exists(cols, col_masks.as_deref(), j))
            .collect();
        let mut scalars = vec![];
        for i in 0..place.rows.len {
            let row = self.along(place.address, 0, &place.rows.at, i, place.size);
            let row_exists = self.exists(&place.rows, row_masks.as_deref(), i);
            for (j, &column) in columns.iter().enumerate() {
                let (mut address, mut offset) = self.along(row.0, row.1, &cols.at, j, place.size);
                let exists = match (row_exists, column) {
                    (Some(a), Some(b)) => Some(self.b.ins().band(a, b)),
                    (a, b) => a.or(b),
                };
                if let Some(exists) = exists {
                    address = self.b.ins().iadd_imm_s(address, offset);
                    offset = 0;
                    let zeros = self.zeros();
                    address = self.b.ins().select(exists, address, zeros);
                }
                let x = self.load_scalar(place.elem, address, offset);
                scalars.push(x);
            }
        }
        Ok(self.tile_of_scalars(ty, &scalars))
    }

    /// Loads through a zeroed stack slot, by a loop over what exists.
    pub(super) fn load_slowly(&mut self, ty: &TileType, place: &Place) -> Result<Tile, Error> {
        let slot = self.slot(ty.len() as usize * 8);
        let to = self.slot_addr(slot);
        self.clear(to, ty.len() as usize * slot_size(ty.elem) as usize);
        self.over_elements(place, |s, address, linear| {
            let x = s.load_scalar(place.elem, address, 0);
            let x = s.slot_form(ty.elem, x);
            let at = s.element(to, linear, slot_size(ty.elem));
            s.b.ins().store(flags(), x, at, 0);
            Ok(())
        })?;
        Ok(self.reload(ty, to))
    }

    /// Two nested loops over what exists; `body` gets an element's address and its position in the tile.
    pub(super) fn over_elements(
        &mut self,
        place: &Place,
        body: impl FnOnce(&mut Self, Value, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let rows = self.loop_axis(&place.rows);
        let cols = self.loop_axis(&place.cols);
        let len = place.cols.len as i64;
        self.count(rows.count, |s, i| {
            let row_exists = s.loop_exists(&rows, i);
            s.when(row_exists, |s| {
                let offset = s.loop_offset(&rows, i);
                let row = s.element(place.address, offset, place.size);
                let first = s.b.ins().imul_imm_s(i, len);
                s.count(cols.count, |s, j| {
                    let exists = s.loop_exists(&cols, j);
                    s.when(exists, |s| {
                        let offset = s.loop_offset(&cols, j);
                        let address = s.element(row, offset, place.size);
                        let linear = s.b.ins().iadd(first, j);
                        body(s, address, linear)
                    })
                })
            })
        })
    }

    /// Puts an axis' offsets and mask in memory, where a loop can index them.
    pub(super) fn loop_axis(&mut self, axis: &AxisValues) -> LoopAxis {
        let offsets = match &axis.at {
            Offsets::Stride(s) => LoopOffsets::Stride(*s),
            Offsets::Dynamic(s) => LoopOffsets::Dynamic(*s),
            Offsets::Each(all) => {
                let slot = self.slot(all.len() * 8);
                let to = self.slot_addr(slot);
                for (i, &offset) in all.iter().enumerate() {
                    self.b.ins().store(flags(), offset, to, i as i32 * 8);
                }
                LoopOffsets::Slot(slot)
            }
        };
        let mask = self.mask_scalars(axis).map(|mask| {
            let slot = self.slot(mask.len());
            let to = self.slot_addr(slot);
            for (i, &bit) in mask.iter().enumerate() {
                self.b.ins().store(flags(), bit, to, i as i32);
            }
            slot
        });
        let len = self.b.ins().iconst(I64, axis.len as i64);
        let count = match axis.valid {
            Some(valid) => {
                let fewer = self.b.ins().icmp(IntCC::SignedLessThan, valid, len);
                self.b.ins().select(fewer, valid, len)
            }
            None => len,
        };
        LoopAxis {
            count,
            offsets,
            mask,
        }
    }

    pub(super) fn loop_exists(&mut self, axis: &LoopAxis, i: Value) -> Value {
        let Some(slot) = axis.mask else {
            return self.yes();
        };
        let from = self.slot_addr(slot);
        let at = self.b.ins().iadd(from, i);
        self.b.ins().load(I8, flags(), at, 0)
    }

    pub(super) fn loop_offset(&mut self, axis: &LoopAxis, i: Value) -> Value {
        match axis.offsets {
            LoopOffsets::Stride(s) => self.b.ins().imul_imm_s(i, s),
            LoopOffsets::Dynamic(s) => self.b.ins().imul(i, s),
            LoopOffsets::Slot(slot) => {
                let from = self.slot_addr(slot);
                let at = self.element(from, i, 8);
                self.b.ins().load(I64, flags(), at, 0)
            }
        }
    }
}

/// An axis as a loop sees it.
pub(super) struct LoopAxis {
    count: Value,
    offsets: LoopOffsets,
    mask: Option<StackSlot>,
}

enum LoopOffsets {
    Stride(i64),
    Dynamic(Value),
    Slot(StackSlot),
}
