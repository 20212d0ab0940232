//! Operations that move, combine or multiply elements.

use crate::function::Fun;
use crate::tile::{Tile, rows_cols};
use crate::writer::{Lane, Ty, Val};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Op, ReduceKind, TileElem, TileType};

impl Fun<'_> {
    /// Every operation that computes its result from tiles alone.
    pub fn operation(&mut self, ty: &TileType, op: &Op) -> Result<Tile, Error> {
        match op {
            Op::Const(literal) => Ok(self.const_tile(ty, literal.held(ty.elem))),
            Op::Iota => {
                let mut first = 0;
                let mut parts = vec![];
                for part in self.part_types(ty) {
                    parts.push(self.w.iota(part, first));
                    first += i64::from(part.lanes);
                }
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
                let moved: Vec<Val> = (0..rows * cols)
                    .map(|i| scalars[i % rows * cols + i / rows])
                    .collect();
                Ok(self.tile_of_scalars(ty, &moved))
            }
            Op::Dot { acc, a, b } => self.dot(*acc, *a, *b),
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
        let cuts = self.row_cuts(ty);
        let (rows, _) = rows_cols(ty);
        let mut parts = vec![];
        match (&x.ty.shape[..], &ty.shape[..]) {
            ([], _) => {
                for _ in 0..rows {
                    parts.extend(self.splats(&cuts, x.parts[0]));
                }
            }
            (&[n], &[_, cols]) if axis == 0 && n == cols => {
                parts.extend((0..rows).flat_map(|_| x.parts.clone()));
            }
            (&[n], &[m, _]) if axis == 1 && n == m => {
                for scalar in self.scalars(x) {
                    parts.extend(self.splats(&cuts, scalar));
                }
            }
            (from, to) => {
                return Err(self.unsupported(format!("a broadcast of {from:?} to {to:?}")));
            }
        }
        Ok(Tile {
            ty: ty.clone(),
            parts,
        })
    }

    /// A scalar in every part of a row.
    pub fn splats(&mut self, cuts: &[u32], scalar: Val) -> Vec<Val> {
        let mut last: Option<Val> = None;
        cuts.iter()
            .map(|&lanes| {
                let v = match last.filter(|l| l.ty.lanes == lanes) {
                    Some(v) => v,
                    None => self.w.splat(scalar, lanes),
                };
                last = Some(v);
                v
            })
            .collect()
    }

    fn reduce(
        &mut self,
        ty: &TileType,
        kind: ReduceKind,
        x: &Tile,
        axis: u32,
    ) -> Result<Tile, Error> {
        let elem = x.ty.elem;
        let f = match kind {
            ReduceKind::Sum => Binary::Add,
            ReduceKind::Prod => Binary::Mul,
            ReduceKind::Max => Binary::Max,
            ReduceKind::Min => Binary::Min,
            ReduceKind::And => Binary::And,
            ReduceKind::Or => Binary::Or,
        };
        let float = matches!(elem.class(), Class::F32 | Class::F64);
        let bits = matches!(elem.class(), Class::Bits(_));
        if bits || float && matches!(kind, ReduceKind::And | ReduceKind::Or) {
            return Err(self.unsupported(format!("{kind:?} of {elem:?}")));
        }
        let per_row = self.row_cuts(&x.ty).len().max(1);
        if x.ty.shape.len() == 2 && axis == 0 {
            let parts = (0..per_row)
                .map(|part| {
                    let column: Vec<Val> = x
                        .parts
                        .iter()
                        .skip(part)
                        .step_by(per_row)
                        .copied()
                        .collect();
                    self.tree(elem, f, column)
                })
                .collect();
            return Ok(Tile {
                ty: ty.clone(),
                parts,
            });
        }
        let rows: Vec<Val> = x
            .parts
            .chunks(per_row)
            .map(|row| self.reduce_row(elem, f, row))
            .collect();
        Ok(self.tile_of_scalars(ty, &rows))
    }

    /// Combines full vectors, then halves again and again, taking in the shorter parts on the way.
    fn reduce_row(&mut self, elem: TileElem, f: Binary, row: &[Val]) -> Val {
        let longest = row[0].ty.lanes;
        let same = row.iter().take_while(|p| p.ty.lanes == longest).count();
        let mut rest = row[same..].iter().peekable();
        let mut x = self.tree(elem, f, row[..same].to_vec());
        while x.ty.lanes > 1 {
            let half = x.ty.lanes / 2;
            let low: Vec<u32> = (0..half).collect();
            let high: Vec<u32> = (half..2 * half).collect();
            let (a, b) = (self.w.shuffle(x, x, &low), self.w.shuffle(x, x, &high));
            x = self.binary_parts(elem, f, a, b);
            if let Some(&part) = rest.next_if(|p| p.ty.lanes == half) {
                x = self.binary_parts(elem, f, x, part);
            }
        }
        x
    }

    /// Combines values of one type pairwise.
    fn tree(&mut self, elem: TileElem, f: Binary, mut values: Vec<Val>) -> Val {
        while values.len() > 1 {
            values = values
                .chunks(2)
                .map(|pair| match pair {
                    [a, b] => self.binary_parts(elem, f, *a, *b),
                    _ => pair[0],
                })
                .collect();
        }
        values[0]
    }

    /// Codes of one byte are side by side in the result.
    fn unpack(&mut self, ty: &TileType, x: &Tile, bits: u32, signed: bool) -> Result<Tile, Error> {
        if !matches!(bits, 1 | 2 | 4) || x.ty.shape.len() != 1 || ty.len() != x.ty.len() * 8 / bits
        {
            return Err(self.unsupported(format!("unpacking {bits}-bit codes from {:?}", x.ty)));
        }
        let per_byte = 8 / bits;
        let mut run = vec![];
        for &bytes in &x.parts {
            let codes: Vec<Val> = (0..per_byte)
                .map(|p| self.code(bytes, p * bits, bits, signed))
                .collect();
            run.push(self.interleave(codes));
        }
        let from = TileElem::Elem(if signed { ElemType::I8 } else { ElemType::U8 });
        let parts = self
            .recut(&run, &self.row_cuts(ty))
            .into_iter()
            .map(|part| self.cast_part(from, ty.elem, part))
            .collect();
        Ok(Tile {
            ty: ty.clone(),
            parts,
        })
    }

    fn code(&mut self, bytes: Val, shift: u32, bits: u32, signed: bool) -> Val {
        if signed {
            let up = self.w.two_int("shl", bytes, i64::from(8 - shift - bits));
            return self.w.two_int("ashr", up, i64::from(8 - bits));
        }
        let down = self.w.two_int("lshr", bytes, i64::from(shift));
        self.w.two_int("and", down, (1 << bits) - 1)
    }

    /// `m` vectors whose lanes are dealt out in turn: first lanes of all, second lanes of all, …
    fn interleave(&mut self, mut vectors: Vec<Val>) -> Val {
        // Pairs a power of two apart, so that each round doubles the run of lanes that are together.
        while vectors.len() > 1 {
            let half = vectors.len() / 2;
            vectors = (0..half)
                .map(|i| {
                    let (a, b) = (vectors[i], vectors[i + half]);
                    if a.ty.lanes == 1 {
                        return self.w.gather(&[a, b]);
                    }
                    let n = a.ty.lanes;
                    let order: Vec<u32> = (0..n).flat_map(|l| [l, n + l]).collect();
                    self.w.shuffle(a, b, &order)
                })
                .collect();
        }
        vectors[0]
    }

    /// A run of vectors cut anew.
    pub fn recut(&mut self, run: &[Val], cuts: &[u32]) -> Vec<Val> {
        let mut lanes: Vec<(Val, u32)> = vec![];
        for &v in run {
            lanes.extend((0..v.ty.lanes).map(|l| (v, l)));
        }
        let mut at = 0;
        let mut out = vec![];
        for &cut in cuts {
            let want = &lanes[at..at + cut as usize];
            at += cut as usize;
            let (a, b) = (want[0].0, want[want.len() - 1].0);
            let two = a.ty == b.ty && want.iter().all(|(v, _)| *v == a || *v == b);
            out.push(if two {
                let order: Vec<u32> = want
                    .iter()
                    .map(|&(v, l)| if v == a { l } else { a.ty.lanes + l })
                    .collect();
                self.w.shuffle(a, b, &order)
            } else {
                let scalars: Vec<Val> = want.iter().map(|&(v, l)| self.w.extract(v, l)).collect();
                self.w.gather(&scalars)
            });
        }
        out
    }

    /// A 32-bit integer of four bytes.
    pub fn dword(&mut self, bytes: Val) -> Val {
        self.w.convert("bitcast", bytes, Ty::scalar(Lane::I32))
    }
}
