//! Loads and stores of tiles.
//!
//! What exists by the row is decided row by row: a load reads a missing row from the zeros of the context, a
//! store branches around it. What exists by the column has two paths: when every column exists, which is
//! tested at run time, vectors; otherwise a loop over the elements, through a stack slot.

mod elements;
mod vectors;

use crate::function::{Fun, flags};
use crate::tile::{LANES, Layout, Tile, in_vectors};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, F64, I8, I32, I32X4, I64};
use cranelift_codegen::ir::{BlockArg, InstBuilder, Value};
use lapidary_abi::kernel::ZEROS_BYTES;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{At, Axis, Class, Literal, Op, Stmt, TileElem, TileType};

/// Tiles with conditional columns up to this size are translated element by element without branches.
const SMALL: usize = 8;

/// Offsets along an axis, in elements.
#[derive(Clone)]
enum Offsets {
    Stride(i64),
    Dynamic(Value),
    Each(Vec<Value>),
}

/// An axis with its operands' values.
#[derive(Clone)]
struct AxisValues {
    len: usize,
    at: Offsets,
    valid: Option<Value>,
    mask: Option<Tile>,
}

impl AxisValues {
    /// One element.
    fn point() -> AxisValues {
        AxisValues {
            len: 1,
            at: Offsets::Stride(0),
            valid: None,
            mask: None,
        }
    }

    fn conditional(&self) -> bool {
        self.valid.is_some() || self.mask.is_some()
    }
}

/// A tile's place in memory.
struct Place {
    /// Address of the element at `base`.
    address: Value,
    elem: TileElem,
    size: i64,
    rows: AxisValues,
    cols: AxisValues,
}

impl Place {
    /// Bytes from the first to past the last element of a row that is not gathered.
    fn row_span(&self) -> Option<i64> {
        match self.cols.at {
            Offsets::Stride(s) if s >= 0 => {
                Some((self.cols.len as i64 - 1) * s * self.size + self.size)
            }
            _ => None,
        }
    }
}

impl<'k> Fun<'k, '_> {
    fn axis(&mut self, axis: &Axis, len: u32) -> Result<AxisValues, Error> {
        let at = match axis.at {
            At::Stride(s) => Offsets::Stride(s),
            At::DynStride(v) => match self.facts.int(v) {
                Some(s) => Offsets::Stride(s),
                None => Offsets::Dynamic(self.scalar(v)?),
            },
            At::Offsets(v) => {
                let tile = self.get(v)?;
                Offsets::Each(self.scalars(&tile))
            }
        };
        let all = |s: &Self, v| s.facts.int(v).is_some_and(|n| n >= i64::from(len));
        let values = AxisValues {
            len: len as usize,
            at,
            valid: match axis.valid {
                Some(v) if !all(self, v) => Some(self.scalar(v)?),
                _ => None,
            },
            mask: axis.mask.map(|v| self.get(v)).transpose()?,
        };
        let fits = |n: usize| n == len as usize;
        let ok = values
            .mask
            .as_ref()
            .is_none_or(|m| fits(m.ty.len() as usize))
            && match &values.at {
                Offsets::Each(o) => fits(o.len()),
                _ => true,
            };
        if ok {
            Ok(values)
        } else {
            Err(self.unsupported("an axis whose offsets or mask have another length"))
        }
    }

    fn place(&mut self, op: &Op, ty: &TileType) -> Result<Place, Error> {
        let (Op::Load { buf, base, axes }
        | Op::Store {
            buf, base, axes, ..
        }) = op
        else {
            return Err(self.unsupported("an access that is neither load nor store"));
        };
        let (buffer, elem) = self.buffer(*buf)?;
        if elem.size_bytes() == 0 || elem.size_bytes() > 8 || TileElem::Elem(elem) != ty.elem {
            return Err(self.unsupported(format!("an access to {elem} as {:?}", ty.elem)));
        }
        if matches!(elem, lapidary_ir::ElemType::C64) || axes.len() != ty.shape.len() {
            return Err(self.unsupported(format!("an access to {elem} with {} axes", axes.len())));
        }
        let mut values = vec![];
        for (axis, &len) in axes.iter().zip(&ty.shape) {
            values.push(self.axis(axis, len)?);
        }
        let cols = values.pop().unwrap_or_else(AxisValues::point);
        let rows = values.pop().unwrap_or_else(AxisValues::point);
        let size = elem.size_bytes() as i64;
        let base = self.scalar(*base)?;
        let address = self.element(buffer, base, size);
        Ok(Place {
            address,
            elem: ty.elem,
            size,
            rows,
            cols,
        })
    }

    /// `address + index * size`.
    pub fn element(&mut self, address: Value, index: Value, size: i64) -> Value {
        let bytes = if size == 1 {
            index
        } else {
            self.b
                .ins()
                .ishl_imm_u(index, i64::from(size.trailing_zeros()))
        };
        self.b.ins().iadd(address, bytes)
    }

    /// Address of element `i` along an axis; strides become a constant where that is possible.
    fn along(
        &mut self,
        address: Value,
        offset: i64,
        at: &Offsets,
        i: usize,
        size: i64,
    ) -> (Value, i64) {
        match at {
            Offsets::Stride(s) => {
                let offset = offset.wrapping_add((i as i64).wrapping_mul(*s).wrapping_mul(size));
                if i32::try_from(offset).is_ok_and(|o| o.unsigned_abs() < 1 << 30) {
                    (address, offset)
                } else {
                    (self.b.ins().iadd_imm_s(address, offset), 0)
                }
            }
            Offsets::Dynamic(s) => {
                let elements = match i {
                    0 => return (address, offset),
                    1 => *s,
                    _ => self.b.ins().imul_imm_s(*s, i as i64),
                };
                (self.element(address, elements, size), offset)
            }
            Offsets::Each(all) => (self.element(address, all[i], size), offset),
        }
    }

    /// Whether element `i` of an axis exists; `None` if it always does.
    fn exists(&mut self, axis: &AxisValues, masks: Option<&[Value]>, i: usize) -> Option<Value> {
        let counted = axis.valid.map(|v| {
            self.b
                .ins()
                .icmp_imm_s(IntCC::SignedGreaterThan, v, i as i64)
        });
        let masked = masks.map(|m| m[i]);
        match (counted, masked) {
            (Some(a), Some(b)) => Some(self.b.ins().band(a, b)),
            (a, b) => a.or(b),
        }
    }

    fn mask_scalars(&mut self, axis: &AxisValues) -> Option<Vec<Value>> {
        let mask = axis.mask.clone()?;
        Some(self.scalars(&mask))
    }

    pub fn load(&mut self, ty: &TileType, op: &Op) -> Result<Tile, Error> {
        let place = self.place(op, ty)?;
        if !place.cols.conditional() {
            return self.load_rows(ty, &place);
        }
        if ty.len() as usize <= SMALL {
            return self.load_elements(ty, &place);
        }
        let all = self.all_columns(&place.cols);
        let (fast, slow, after) = (
            self.b.create_block(),
            self.b.create_block(),
            self.b.create_block(),
        );
        let types = self.part_types(ty);
        let parts: Vec<Value> = types
            .iter()
            .map(|&t| self.b.append_block_param(after, t))
            .collect();
        self.b.set_cold_block(slow);
        self.b.ins().brif(all, fast, &[], slow, &[]);
        self.b.switch_to_block(fast);
        let tile = self.load_rows(ty, &place)?;
        self.jump(after, &tile.parts);
        self.b.switch_to_block(slow);
        let tile = self.load_slowly(ty, &place)?;
        self.jump(after, &tile.parts);
        self.b.switch_to_block(after);
        Ok(Tile {
            ty: ty.clone(),
            parts,
        })
    }

    /// All elements of an axis exist: an `i8`.
    fn all_columns(&mut self, axis: &AxisValues) -> Value {
        let counted = axis.valid.map(|v| {
            self.b
                .ins()
                .icmp_imm_s(IntCC::SignedGreaterThanOrEqual, v, axis.len as i64)
        });
        let masked = axis.mask.clone().map(|m| self.all_true(&m));
        match (counted, masked) {
            (Some(a), Some(b)) => self.b.ins().band(a, b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => self.yes(),
        }
    }

    /// Loads every row whose columns all exist.
    fn load_rows(&mut self, ty: &TileType, place: &Place) -> Result<Tile, Error> {
        let redirect = place.row_span().is_some_and(|s| s <= ZEROS_BYTES as i64);
        if place.rows.conditional() && !redirect {
            return self.load_elements_of(
                ty,
                place,
                &AxisValues {
                    valid: None,
                    mask: None,
                    ..place.cols.clone()
                },
            );
        }
        let masks = self.mask_scalars(&place.rows);
        let mut parts = vec![];
        for i in 0..place.rows.len {
            let (mut address, mut offset) =
                self.along(place.address, 0, &place.rows.at, i, place.size);
            if let Some(exists) = self.exists(&place.rows, masks.as_deref(), i) {
                if offset != 0 {
                    address = self.b.ins().iadd_imm_s(address, offset);
                    offset = 0;
                }
                let zeros = self.zeros();
                address = self.b.ins().select(exists, address, zeros);
            }
            self.load_row(ty, place, address, offset, &mut parts);
        }
        Ok(Tile {
            ty: ty.clone(),
            parts,
        })
    }

    fn load_row(
        &mut self,
        ty: &TileType,
        place: &Place,
        address: Value,
        offset: i64,
        parts: &mut Vec<Value>,
    ) {
        let layout = Layout::of(ty);
        match place.cols.at {
            Offsets::Stride(1) => {
                let mut part = 0;
                while part < layout.vectors {
                    let at = offset + layout.column(part) as i64 * place.size;
                    if place.size == 1 && part + 4 <= layout.vectors {
                        parts.extend(self.load_16_bytes(place.elem, address, at));
                        part += 4;
                    } else {
                        let vector = self.load_vector(place.elem, address, at);
                        parts.push(vector);
                        part += 1;
                    }
                }
                for part in layout.vectors..layout.per_row() {
                    let at = offset + layout.column(part) as i64 * place.size;
                    let x = self.load_scalar(place.elem, address, at);
                    parts.push(x);
                }
            }
            Offsets::Stride(0) => {
                let x = self.load_scalar(place.elem, address, offset);
                let vector = (layout.vectors > 0).then(|| self.splat(place.elem, x));
                parts.extend(
                    (0..layout.per_row())
                        .map(|p| vector.filter(|_| p < layout.vectors).unwrap_or(x)),
                );
            }
            _ => {
                let mut scalars = vec![];
                for j in 0..place.cols.len {
                    let (address, offset) =
                        self.along(address, offset, &place.cols.at, j, place.size);
                    let x = self.load_scalar(place.elem, address, offset);
                    scalars.push(x);
                }
                let row = TileType {
                    elem: ty.elem,
                    shape: ty.shape.last().copied().into_iter().collect(),
                };
                parts.extend(self.tile_of_scalars(&row, &scalars).parts);
            }
        }
    }

    fn clear(&mut self, to: Value, bytes: usize) {
        let zero = self.lanes_const(I32X4, [0; LANES]);
        for at in (0..bytes.next_multiple_of(16)).step_by(16) {
            self.b.ins().store(flags(), zero, to, at as i32);
        }
    }

    /// A scalar as it lies in a slot: `bool` as a mask, so that vectors can be read back.
    fn slot_form(&mut self, elem: TileElem, x: Value) -> Value {
        if elem.class() == Class::Bool {
            let wide = self.b.ins().uextend(I32, x);
            return self.b.ins().ineg(wide);
        }
        x
    }

    /// Reads a tile back from a slot.
    pub fn reload(&mut self, ty: &TileType, from: Value) -> Tile {
        let layout = Layout::of(ty);
        let size = slot_size(ty.elem);
        let cols = layout.vectors * LANES + layout.tail;
        let mut parts = vec![];
        for row in 0..layout.rows {
            for part in 0..layout.per_row() {
                let at = ((row * cols + layout.column(part)) as i64 * size) as i32;
                let vector = part < layout.vectors;
                let x = match (ty.elem.class(), vector) {
                    (Class::F32, true) => self.b.ins().load(F32X4, flags(), from, at),
                    (_, true) => self.b.ins().load(I32X4, flags(), from, at),
                    (Class::Bool, false) => {
                        let lane = self.b.ins().load(I32, flags(), from, at);
                        self.b.ins().icmp_imm_s(IntCC::NotEqual, lane, 0)
                    }
                    _ => self
                        .b
                        .ins()
                        .load(crate::tile::scalar_type(ty.elem), flags(), from, at),
                };
                parts.push(x);
            }
        }
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    /// Writes a tile to a slot.
    pub fn spill(&mut self, tile: &Tile, to: Value) {
        let layout = Layout::of(&tile.ty);
        let size = slot_size(tile.ty.elem);
        let cols = layout.vectors * LANES + layout.tail;
        for (i, &part) in tile.parts.iter().enumerate() {
            let (row, in_row) = (i / layout.per_row(), i % layout.per_row());
            let at = ((row * cols + layout.column(in_row)) as i64 * size) as i32;
            let x = if layout.is_vector(i) {
                part
            } else {
                self.slot_form(tile.ty.elem, part)
            };
            self.b.ins().store(flags(), x, to, at);
        }
    }

    pub fn store(&mut self, stmt: &'k Stmt) -> Result<(), Error> {
        let Op::Store { x, .. } = &stmt.op else {
            return Err(self.unsupported("a store that is none"));
        };
        let tile = self.get(*x)?;
        let place = self.place(&stmt.op, &tile.ty)?;
        if !place.cols.conditional() {
            return self.store_rows(&tile, &place);
        }
        let all = self.all_columns(&place.cols);
        let (fast, slow, after) = (
            self.b.create_block(),
            self.b.create_block(),
            self.b.create_block(),
        );
        self.b.set_cold_block(slow);
        self.b.ins().brif(all, fast, &[] as &[BlockArg], slow, &[]);
        self.b.switch_to_block(fast);
        self.store_rows(&tile, &place)?;
        self.jump(after, &[]);
        self.b.switch_to_block(slow);
        let slot = self.slot(tile.ty.len() as usize * 8);
        let from = self.slot_addr(slot);
        self.spill(&tile, from);
        self.over_elements(&place, |s, address, linear| {
            let at = s.element(from, linear, slot_size(tile.ty.elem));
            let x = match tile.ty.elem.class() {
                Class::Bool => {
                    let lane = s.b.ins().load(I32, flags(), at, 0);
                    s.b.ins().icmp_imm_s(IntCC::NotEqual, lane, 0)
                }
                _ => {
                    s.b.ins()
                        .load(crate::tile::scalar_type(tile.ty.elem), flags(), at, 0)
                }
            };
            s.store_scalar(tile.ty.elem, x, address, 0);
            Ok(())
        })?;
        self.jump(after, &[]);
        self.b.switch_to_block(after);
        Ok(())
    }

    /// Stores rows whose columns all exist.
    fn store_rows(&mut self, tile: &Tile, place: &Place) -> Result<(), Error> {
        let masks = self.mask_scalars(&place.rows);
        let per_row = Layout::of(&tile.ty).per_row();
        for i in 0..place.rows.len {
            let row = &tile.parts[i * per_row..(i + 1) * per_row];
            match self.exists(&place.rows, masks.as_deref(), i) {
                Some(exists) => self.when(exists, |s| {
                    s.store_row(&tile.ty, place, i, row);
                    Ok(())
                })?,
                None => self.store_row(&tile.ty, place, i, row),
            }
        }
        Ok(())
    }

    fn store_row(&mut self, ty: &TileType, place: &Place, i: usize, row: &[Value]) {
        let layout = Layout::of(ty);
        let (address, offset) = self.along(place.address, 0, &place.rows.at, i, place.size);
        if let Offsets::Stride(1) = place.cols.at {
            let mut part = 0;
            while part < row.len() {
                let at = offset + layout.column(part) as i64 * place.size;
                if part >= layout.vectors {
                    self.store_scalar(place.elem, row[part], address, at);
                } else if place.size == 1 && part + 4 <= layout.vectors {
                    self.store_16_bytes(place.elem, &row[part..part + 4], address, at);
                    part += 3;
                } else {
                    self.store_vector(place.elem, row[part], address, at);
                }
                part += 1;
            }
            return;
        }
        let row = Tile {
            ty: TileType {
                elem: ty.elem,
                shape: ty.shape.last().copied().into_iter().collect(),
            },
            parts: row.to_vec(),
        };
        for (j, x) in self.scalars(&row).into_iter().enumerate() {
            let (address, offset) = self.along(address, offset, &place.cols.at, j, place.size);
            self.store_scalar(place.elem, x, address, offset);
        }
    }

    fn load_scalar(&mut self, elem: TileElem, address: Value, offset: i64) -> Value {
        let at = offset as i32;
        match (elem.class(), signed(elem)) {
            (Class::F32, _) => self.b.ins().load(F32, flags(), address, at),
            (Class::F64, _) => self.b.ins().load(F64, flags(), address, at),
            (Class::Bool, _) => {
                let x = self.b.ins().load(I8, flags(), address, at);
                self.b.ins().icmp_imm_s(IntCC::NotEqual, x, 0)
            }
            (Class::Int { bits: 64, .. }, _) => self.b.ins().load(I64, flags(), address, at),
            (Class::Int { bits: 32, .. }, _) => self.b.ins().load(I32, flags(), address, at),
            (Class::Int { bits: 16, .. }, true) => self.b.ins().sload16(I32, flags(), address, at),
            (Class::Int { bits: 16, .. } | Class::Bits(16), _) => {
                self.b.ins().uload16(I32, flags(), address, at)
            }
            (_, true) => self.b.ins().sload8(I32, flags(), address, at),
            (_, false) => self.b.ins().uload8(I32, flags(), address, at),
        }
    }

    fn store_scalar(&mut self, elem: TileElem, x: Value, address: Value, offset: i64) {
        let at = offset as i32;
        match elem.class() {
            Class::F32 | Class::F64 | Class::Bool | Class::Int { bits: 32 | 64, .. } => {
                self.b.ins().store(flags(), x, address, at);
            }
            Class::Int { bits: 16, .. } | Class::Bits(16) => {
                self.b.ins().istore16(flags(), x, address, at);
            }
            _ => {
                self.b.ins().istore8(flags(), x, address, at);
            }
        }
    }

    /// Address of each row's first element; of zeros for a row that is missing.
    pub fn row_addresses(
        &mut self,
        buffer: Value,
        elem: lapidary_ir::ElemType,
        base: Value,
        axis: &Axis,
        rows: u32,
    ) -> Result<Vec<Value>, Error> {
        let size = elem.size_bytes() as i64;
        let axis = self.axis(axis, rows)?;
        let first = self.element(buffer, base, size);
        let masks = self.mask_scalars(&axis);
        let mut addresses = vec![];
        for i in 0..axis.len {
            let (address, offset) = self.along(first, 0, &axis.at, i, size);
            let mut address = self.b.ins().iadd_imm_s(address, offset);
            if let Some(exists) = self.exists(&axis, masks.as_deref(), i) {
                let zeros = self.zeros();
                address = self.b.ins().select(exists, address, zeros);
            }
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// A constant index.
    pub fn index(&mut self, x: i64) -> Value {
        self.scalar_const(TileElem::Index, Literal::Int(x))
    }
}

fn slot_size(elem: TileElem) -> i64 {
    if in_vectors(elem) { 4 } else { 8 }
}

fn signed(elem: TileElem) -> bool {
    matches!(elem.class(), Class::Int { signed: true, .. })
}
