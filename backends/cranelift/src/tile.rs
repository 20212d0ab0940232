//! How tiles lie in Cranelift values.
//!
//! Elements of at most 32 bits travel four at a time in 128-bit vectors, widened to 32 bits per lane: `f32`
//! as `f32x4`, every integer as `i32x4` sign- or zero-extended, `bool` as a mask of all ones or zeros,
//! small floats as their bits. Each row of a tile is a run of such vectors, then scalars for the rest of the
//! row. Elements of 64 bits (`f64`, `i64`, `u64`, index) are scalars. A scalar `bool` is an `i8` 0 or 1.

use crate::function::Fun;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, F64, I8, I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::{Class, Literal, TileElem, TileType};

/// Lanes of a vector.
pub(crate) const LANES: usize = 4;

/// A tile's values: per row vectors, then scalars; rows in order.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub ty: TileType,
    pub parts: Vec<Value>,
}

/// True if elements travel in vectors.
pub(crate) fn in_vectors(elem: TileElem) -> bool {
    !matches!(elem.class(), Class::F64 | Class::Int { bits: 64, .. })
}

pub(crate) fn scalar_type(elem: TileElem) -> Type {
    match elem.class() {
        Class::F32 => F32,
        Class::F64 => F64,
        Class::Bool => I8,
        Class::Int { bits: 64, .. } => I64,
        Class::Int { .. } | Class::Bits(_) => I32,
    }
}

pub(crate) fn vector_type(elem: TileElem) -> Type {
    match elem.class() {
        Class::F32 => F32X4,
        _ => I32X4,
    }
}

/// Rows, vectors per row, scalars per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub rows: usize,
    pub vectors: usize,
    pub tail: usize,
}

impl Layout {
    pub fn of(ty: &TileType) -> Layout {
        let cols = ty.shape.last().map_or(1, |&n| n as usize);
        let rows = if ty.shape.len() == 2 {
            ty.shape[0] as usize
        } else {
            1
        };
        let vectors = if in_vectors(ty.elem) && !ty.shape.is_empty() {
            cols / LANES
        } else {
            0
        };
        Layout {
            rows,
            vectors,
            tail: cols - vectors * LANES,
        }
    }

    pub fn per_row(&self) -> usize {
        self.vectors + self.tail
    }

    pub fn len(&self) -> usize {
        self.rows * self.per_row()
    }

    pub fn is_vector(&self, part: usize) -> bool {
        part % self.per_row().max(1) < self.vectors
    }

    /// Elements of a row before a part of it.
    pub fn column(&self, part_in_row: usize) -> usize {
        if part_in_row < self.vectors {
            part_in_row * LANES
        } else {
            self.vectors * LANES + part_in_row - self.vectors
        }
    }
}

impl Fun<'_, '_> {
    /// Cranelift types of a tile's parts.
    pub fn part_types(&self, ty: &TileType) -> Vec<Type> {
        let layout = Layout::of(ty);
        (0..layout.len())
            .map(|i| {
                if layout.is_vector(i) {
                    vector_type(ty.elem)
                } else {
                    scalar_type(ty.elem)
                }
            })
            .collect()
    }

    /// A literal in one scalar.
    pub fn scalar_const(&mut self, elem: TileElem, literal: Literal) -> Value {
        match elem.class() {
            Class::F32 => {
                let x = literal.as_float() as f32;
                self.b.ins().f32const(x)
            }
            Class::F64 => {
                let x = literal.as_float();
                self.b.ins().f64const(x)
            }
            Class::Bool => {
                let x = i64::from(literal.as_int() != 0);
                self.b.ins().iconst(I8, x)
            }
            Class::Int { bits: 64, .. } => self.b.ins().iconst(I64, literal.as_int()),
            Class::Int { .. } | Class::Bits(_) => {
                let x = i64::from(elem.wrap_literal(literal.as_int()) as u32);
                self.b.ins().iconst(I32, x)
            }
        }
    }

    /// A literal in every lane of a vector.
    pub fn vector_const(&mut self, elem: TileElem, literal: Literal) -> Value {
        let lane = match elem.class() {
            Class::F32 => (literal.as_float() as f32).to_bits(),
            Class::Bool => 0u32.wrapping_sub(u32::from(literal.as_int() != 0)),
            _ => elem.wrap_literal(literal.as_int()) as u32,
        };
        self.lanes_const(vector_type(elem), [lane; LANES])
    }

    /// A vector of these lanes.
    pub fn lanes_const(&mut self, ty: Type, lanes: [u32; LANES]) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|l| l.to_le_bytes()).collect();
        let constant = self.b.func.dfg.constants.insert(bytes.into());
        self.b.ins().vconst(ty, constant)
    }

    /// A tile of one literal.
    pub fn const_tile(&mut self, ty: &TileType, literal: Literal) -> Tile {
        let layout = Layout::of(ty);
        let vector = (layout.vectors > 0).then(|| self.vector_const(ty.elem, literal));
        let scalar = (layout.tail > 0).then(|| self.scalar_const(ty.elem, literal));
        self.repeat(ty, vector, scalar)
    }

    /// A tile whose vectors and scalars are all the same.
    pub fn repeat(&mut self, ty: &TileType, vector: Option<Value>, scalar: Option<Value>) -> Tile {
        let layout = Layout::of(ty);
        let parts = (0..layout.len())
            .filter_map(|i| if layout.is_vector(i) { vector } else { scalar })
            .collect();
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, elem: TileElem, scalar: Value) -> Value {
        let lane = self.lane_of_scalar(elem, scalar);
        self.b.ins().splat(vector_type(elem), lane)
    }

    fn lane_of_scalar(&mut self, elem: TileElem, scalar: Value) -> Value {
        match elem.class() {
            Class::Bool => {
                let wide = self.b.ins().uextend(I32, scalar);
                self.b.ins().ineg(wide)
            }
            _ => scalar,
        }
    }

    fn scalar_of_lane(&mut self, elem: TileElem, lane: Value) -> Value {
        match elem.class() {
            Class::Bool => self.b.ins().icmp_imm_s(IntCC::NotEqual, lane, 0),
            _ => lane,
        }
    }

    /// All elements of a tile as scalars, row by row.
    pub fn scalars(&mut self, tile: &Tile) -> Vec<Value> {
        let layout = Layout::of(&tile.ty);
        let mut out = Vec::with_capacity(tile.ty.len() as usize);
        // A repeated vector is taken apart once.
        let mut last: Option<(Value, [Value; LANES])> = None;
        for (i, &part) in tile.parts.iter().enumerate() {
            if !layout.is_vector(i) {
                out.push(part);
                continue;
            }
            let lanes = match last {
                Some((vector, lanes)) if vector == part => lanes,
                _ => [0u8, 1, 2, 3].map(|lane| {
                    let x = self.b.ins().extractlane(part, lane);
                    self.scalar_of_lane(tile.ty.elem, x)
                }),
            };
            last = Some((part, lanes));
            out.extend(lanes);
        }
        out
    }

    /// A tile from its elements as scalars, row by row.
    pub fn tile_of_scalars(&mut self, ty: &TileType, scalars: &[Value]) -> Tile {
        let layout = Layout::of(ty);
        let cols = layout.vectors * LANES + layout.tail;
        let mut parts = Vec::with_capacity(layout.len());
        for row in scalars.chunks(cols.max(1)) {
            let (vectors, tail) = row.split_at(layout.vectors * LANES);
            for lanes in vectors.chunks(LANES) {
                let part = self.vector_of(ty.elem, lanes);
                parts.push(part);
            }
            parts.extend(tail);
        }
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    fn vector_of(&mut self, elem: TileElem, lanes: &[Value]) -> Value {
        if lanes.iter().all(|&l| l == lanes[0]) {
            return self.splat(elem, lanes[0]);
        }
        let first = self.lane_of_scalar(elem, lanes[0]);
        let mut vector = self.b.ins().scalar_to_vector(vector_type(elem), first);
        for (i, &lane) in lanes.iter().enumerate().skip(1) {
            let lane = self.lane_of_scalar(elem, lane);
            vector = self.b.ins().insertlane(vector, lane, i as u8);
        }
        vector
    }

    /// Applies `f` part by part. `f` gets the operands' parts and whether they are vectors; when operands or
    /// result do not all travel in vectors, or `vectors` is false, it only ever sees scalars.
    pub fn elementwise(
        &mut self,
        ty: &TileType,
        operands: &[&Tile],
        vectors: bool,
        mut f: impl FnMut(&mut Self, &[Value], bool) -> Value,
    ) -> Tile {
        let together =
            vectors && in_vectors(ty.elem) && operands.iter().all(|o| in_vectors(o.ty.elem));
        let layout = Layout::of(ty);
        let lists: Vec<Vec<Value>> = if together {
            operands.iter().map(|o| o.parts.clone()).collect()
        } else {
            operands.iter().map(|o| self.scalars(o)).collect()
        };
        let count = if together {
            layout.len()
        } else {
            ty.len() as usize
        };
        let mut parts: Vec<Value> = Vec::with_capacity(count);
        let mut last: Option<(Vec<Value>, bool)> = None;
        for i in 0..count {
            let values: Vec<Value> = lists.iter().map(|l| l[i]).collect();
            let key = (values, together && layout.is_vector(i));
            // What is repeated is computed once.
            if last.as_ref() == Some(&key) {
                parts.push(parts[i - 1]);
                continue;
            }
            let part = f(self, &key.0, key.1);
            parts.push(part);
            last = Some(key);
        }
        if together {
            Tile {
                ty: ty.clone(),
                parts,
            }
        } else {
            self.tile_of_scalars(ty, &parts)
        }
    }

    /// Brings an integer back into its type's range after arithmetic in 32-bit lanes.
    pub fn normalize(&mut self, elem: TileElem, x: Value) -> Value {
        match elem.class() {
            Class::Int { bits, signed: true } if bits < 32 => {
                let left = self.b.ins().ishl_imm_u(x, i64::from(32 - bits));
                self.b.ins().sshr_imm_u(left, i64::from(32 - bits))
            }
            Class::Int { bits, .. } | Class::Bits(bits) if bits < 32 => {
                let vector = self.b.func.dfg.value_type(x).is_vector();
                let mask = Literal::Int((1 << bits) - 1);
                let mask = if vector {
                    self.vector_const(TileElem::Elem(ElemType::I32), mask)
                } else {
                    self.scalar_const(TileElem::Elem(ElemType::I32), mask)
                };
                self.b.ins().band(x, mask)
            }
            _ => x,
        }
    }
}
