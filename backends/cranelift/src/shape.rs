//! Operations that move, combine or multiply elements.

use crate::function::Fun;
use crate::tile::{LANES, Layout, Tile, in_vectors};
use cranelift_codegen::ir::types::{I8X16, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Literal, Op, ReduceKind, TileElem, TileType};

impl Fun<'_, '_> {
    /// Every operation that computes its result from tiles alone.
    pub fn operation(&mut self, ty: &TileType, op: &Op) -> Result<Tile, Error> {
        match op {
            Op::Const(literal) => Ok(self.const_tile(ty, literal.held(ty.elem))),
            Op::Iota => {
                let parts = (0..ty.len())
                    .map(|i| self.b.ins().iconst(I64, i64::from(i)))
                    .collect();
                Ok(Tile {
                    ty: ty.clone(),
                    parts,
                })
            }
            Op::Unary(f, x) => {
                let x = self.get(*x)?;
                self.unary(ty, *f, &x)
            }
            Op::Binary(f, a, b) => self.binary(ty, *f, *a, *b),
            Op::Select(c, a, b) => {
                let (c, a, b) = (self.get(*c)?, self.get(*a)?, self.get(*b)?);
                Ok(self.select(ty, &c, &a, &b))
            }
            Op::MulAdd(a, b, c) => {
                let (a, b, c) = (self.get(*a)?, self.get(*b)?, self.get(*c)?);
                Ok(self.mul_add(ty, &a, &b, &c))
            }
            Op::Cast(x) if let Some(number) = self.small_number(ty, *x) => {
                let number = self.get(number)?.clone();
                Ok(self.cast_small(ty, &number))
            }
            Op::Cast(x) => {
                let x = self.get(*x)?;
                self.cast(ty, &x)
            }
            Op::Bitcast(x) => {
                let x = self.get(*x)?;
                self.bitcast(ty, &x)
            }
            Op::Broadcast { x, axis } => {
                let x = self.get(*x)?;
                self.broadcast(ty, &x, *axis)
            }
            Op::Reduce { kind, x, axis } => {
                let x = self.get(*x)?;
                self.reduce(ty, *kind, &x, *axis)
            }
            Op::Transpose(x) => {
                let x = self.get(*x)?;
                let [rows, cols] = x.ty.shape[..] else {
                    return Err(self.unsupported("a transposition of a tile that is not of rank 2"));
                };
                let scalars = self.scalars(&x);
                let (rows, cols) = (rows as usize, cols as usize);
                let moved: Vec<Value> = (0..rows * cols)
                    .map(|i| scalars[i % rows * cols + i / rows])
                    .collect();
                Ok(self.tile_of_scalars(ty, &moved))
            }
            Op::Dot { acc, a, b } => {
                let (acc, a, b) = (self.get(*acc)?, self.get(*a)?, self.get(*b)?);
                self.dot(acc, &a, &b)
            }
            Op::Unpack { x, bits, signed } => {
                let x = self.get(*x)?;
                self.unpack(ty, &x, *bits, *signed)
            }
            Op::Grid(_)
            | Op::Size(_)
            | Op::Load { .. }
            | Op::Store { .. }
            | Op::For { .. }
            | Op::If { .. } => Err(self.unsupported("a statement in an operand's place")),
        }
    }

    fn broadcast(&mut self, ty: &TileType, x: &Tile, axis: u32) -> Result<Tile, Error> {
        let layout = Layout::of(ty);
        match (&x.ty.shape[..], &ty.shape[..]) {
            ([], _) => {
                let scalar = x.parts[0];
                let vector = (layout.vectors > 0).then(|| self.splat(ty.elem, scalar));
                Ok(self.repeat(ty, vector, Some(scalar)))
            }
            (&[n], &[_, cols]) if axis == 0 && n == cols => Ok(Tile {
                ty: ty.clone(),
                parts: (0..layout.rows).flat_map(|_| x.parts.clone()).collect(),
            }),
            (&[n], &[rows, _]) if axis == 1 && n == rows => {
                let scalars = self.scalars(x);
                let mut parts = vec![];
                for scalar in scalars {
                    let vector = (layout.vectors > 0).then(|| self.splat(ty.elem, scalar));
                    let row = TileType {
                        elem: ty.elem,
                        shape: ty.shape[1..].to_vec(),
                    };
                    parts.extend(self.repeat(&row, vector, Some(scalar)).parts);
                }
                Ok(Tile {
                    ty: ty.clone(),
                    parts,
                })
            }
            (from, to) => Err(self.unsupported(format!("a broadcast of {from:?} to {to:?}"))),
        }
    }

    fn reduce(
        &mut self,
        ty: &TileType,
        kind: ReduceKind,
        x: &Tile,
        axis: u32,
    ) -> Result<Tile, Error> {
        let layout = Layout::of(&x.ty);
        if x.ty.shape.len() == 2 && axis == 0 {
            let rows: Vec<Vec<Value>> = x
                .parts
                .chunks(layout.per_row().max(1))
                .map(<[_]>::to_vec)
                .collect();
            let mut parts = vec![];
            for part in 0..layout.per_row() {
                let column: Vec<Value> = rows.iter().map(|r| r[part]).collect();
                let combined = self.tree(kind, x.ty.elem, &column, layout.is_vector(part))?;
                parts.push(combined);
            }
            return Ok(Tile {
                ty: ty.clone(),
                parts,
            });
        }
        let mut results = vec![];
        for row in x.parts.chunks(layout.per_row().max(1)) {
            let (vectors, tail) = row.split_at(layout.vectors);
            let mut scalars = vec![];
            if !vectors.is_empty() {
                let vector = self.tree(kind, x.ty.elem, vectors, true)?;
                let lanes = Tile {
                    ty: TileType {
                        elem: x.ty.elem,
                        shape: vec![LANES as u32],
                    },
                    parts: vec![vector],
                };
                scalars = self.scalars(&lanes);
            }
            scalars.extend(tail);
            results.push(self.tree(kind, x.ty.elem, &scalars, false)?);
        }
        Ok(self.tile_of_scalars(ty, &results))
    }

    /// Combines values pairwise.
    fn tree(
        &mut self,
        kind: ReduceKind,
        elem: TileElem,
        values: &[Value],
        vector: bool,
    ) -> Result<Value, Error> {
        let mut values = values.to_vec();
        while values.len() > 1 {
            let mut next = vec![];
            for pair in values.chunks(2) {
                next.push(match pair {
                    [a, b] => self.combine(kind, elem, *a, *b, vector)?,
                    _ => pair[0],
                });
            }
            values = next;
        }
        Ok(values[0])
    }

    fn combine(
        &mut self,
        kind: ReduceKind,
        elem: TileElem,
        a: Value,
        b: Value,
        vector: bool,
    ) -> Result<Value, Error> {
        let float = matches!(elem.class(), Class::F32 | Class::F64);
        let f = match kind {
            ReduceKind::Sum => Binary::Add,
            ReduceKind::Prod => Binary::Mul,
            ReduceKind::Max => Binary::Max,
            ReduceKind::Min => Binary::Min,
            ReduceKind::And => Binary::And,
            ReduceKind::Or => Binary::Or,
        };
        if float && matches!(kind, ReduceKind::And | ReduceKind::Or) {
            return Err(self.unsupported(format!("{kind:?} of {elem:?}")));
        }
        self.binary_parts(elem, f, a, b, vector)
    }

    /// `acc + a * b`.
    fn dot(&mut self, mut acc: Tile, a: &Tile, b: &Tile) -> Result<Tile, Error> {
        let ([m, n], [_, k]) = (&acc.ty.shape[..], &a.ty.shape[..]) else {
            return Err(self.unsupported("a dot of tiles that are not of rank 2"));
        };
        let (m, n, k) = (*m as usize, *n as usize, *k as usize);
        if a.ty.shape[0] as usize != m || b.ty.shape[..] != [k as u32, n as u32] {
            return Err(self.unsupported("a dot of tiles that do not fit"));
        }
        let elem = acc.ty.elem;
        let layout = Layout::of(&acc.ty);
        // 8-bit operands are 32-bit lanes already.
        let lane_elem = if in_vectors(elem) && elem.class() != Class::F32 {
            TileElem::Elem(ElemType::I32)
        } else {
            elem
        };
        let left = self.scalars(a);
        let per_row = layout.per_row();
        for i in 0..m {
            for kk in 0..k {
                let scalar = left[i * k + kk];
                let vector = (layout.vectors > 0).then(|| self.splat(lane_elem, scalar));
                for part in 0..per_row {
                    let factor = vector.filter(|_| layout.is_vector(part)).unwrap_or(scalar);
                    let at = i * per_row + part;
                    acc.parts[at] = self.multiply_add(
                        lane_elem,
                        factor,
                        b.parts[kk * per_row + part],
                        acc.parts[at],
                    );
                }
            }
        }
        Ok(acc)
    }

    /// Codes of one byte are side by side in the result.
    fn unpack(&mut self, ty: &TileType, x: &Tile, bits: u32, signed: bool) -> Result<Tile, Error> {
        if !matches!(bits, 1 | 2 | 4) || x.ty.shape.len() != 1 || ty.len() != x.ty.len() * 8 / bits
        {
            return Err(self.unsupported(format!("unpacking {bits}-bit codes from {:?}", x.ty)));
        }
        let per_byte = (8 / bits) as usize;
        let layout = Layout::of(&x.ty);
        let mut parts = vec![];
        for (i, &bytes) in x.parts.iter().enumerate() {
            let vector = layout.is_vector(i);
            let codes: Vec<Value> = (0..per_byte as u32)
                .map(|p| {
                    let code = self.code(bytes, p * bits, bits, signed, vector);
                    self.normalize(ty.elem, code)
                })
                .collect();
            if vector {
                parts.extend(self.interleave(codes));
            } else {
                parts.push(codes[0]);
                parts.extend(&codes[1..]);
            }
        }
        let tail_scalars = layout.tail * per_byte;
        if tail_scalars >= LANES {
            // The scalar bytes at the end give enough codes for vectors.
            let row = TileType {
                elem: ty.elem,
                shape: vec![tail_scalars as u32],
            };
            let at = parts.len() - tail_scalars;
            let scalars = parts.split_off(at);
            parts.extend(self.tile_of_scalars(&row, &scalars).parts);
        }
        Ok(Tile {
            ty: ty.clone(),
            parts,
        })
    }

    fn code(&mut self, bytes: Value, shift: u32, bits: u32, signed: bool, vector: bool) -> Value {
        if signed {
            let left = self.b.ins().ishl_imm_u(bytes, i64::from(32 - shift - bits));
            return self.b.ins().sshr_imm_u(left, i64::from(32 - bits));
        }
        let shifted = self.b.ins().ushr_imm_u(bytes, i64::from(shift));
        let i32s = TileElem::Elem(ElemType::I32);
        let mask = Literal::Int((1 << bits) - 1);
        let mask = if vector {
            self.vector_const(i32s, mask)
        } else {
            self.scalar_const(i32s, mask)
        };
        self.b.ins().band(shifted, mask)
    }

    /// `m` vectors whose lanes are dealt out in turn: first lanes of all, second lanes of all, …
    fn interleave(&mut self, vectors: Vec<Value>) -> Vec<Value> {
        if vectors.len() == 1 {
            return vectors;
        }
        let side = |odd| {
            vectors
                .iter()
                .copied()
                .skip(odd)
                .step_by(2)
                .collect::<Vec<_>>()
        };
        let (even, odd) = (self.interleave(side(0)), self.interleave(side(1)));
        let mut out = vec![];
        for (a, b) in even.into_iter().zip(odd) {
            out.push(self.shuffle32(a, b, [0, 4, 1, 5]));
            out.push(self.shuffle32(a, b, [2, 6, 3, 7]));
        }
        out
    }

    /// Lanes of two vectors; 0 to 3 are `a`'s, 4 to 7 are `b`'s.
    fn shuffle32(&mut self, a: Value, b: Value, lanes: [u8; LANES]) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        let mask: Vec<u8> = lanes
            .iter()
            .flat_map(|&l| (0..4).map(move |i| 4 * l + i))
            .collect();
        let mask = self.b.func.dfg.immediates.push(mask.into());
        let (a, b) = (self.bits(I8X16, a), self.bits(I8X16, b));
        let bytes = self.b.ins().shuffle(a, b, mask);
        self.bits(ty, bytes)
    }
}
