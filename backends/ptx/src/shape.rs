//! Operations that move, combine or multiply elements.

use crate::function::{Address, Fun};
use crate::memory::memory_bytes;
use crate::tile::{Index, Route, Tile, WARP, literal, register};
use crate::writer::{Ty, Val};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Literal, Op, ReduceKind, TileElem, TileType};

/// A tile whose elements others need.
pub(crate) enum Source {
    /// In its registers.
    Registers(Tile),
    /// In memory, element by element; in this slot.
    Memory(Tile, Address, usize),
}

impl Source {
    fn slot(&self) -> Option<usize> {
        match self {
            Source::Registers(_) => None,
            Source::Memory(_, _, slot) => Some(*slot),
        }
    }
}

impl Fun<'_> {
    /// Every operation that computes its result from tiles alone.
    pub fn operation(&mut self, ty: &TileType, op: &Op) -> Result<Tile, Error> {
        match op {
            Op::Const(x) => Ok(self.const_tile(ty, *x)),
            Op::Iota => {
                let parts = 0..self.layout(ty.len()).parts();
                let parts = parts
                    .map(|part| {
                        let e = self.element(ty.len(), part);
                        self.w.widen(e)
                    })
                    .collect();
                Ok(Tile {
                    ty: ty.clone(),
                    uniform: ty.len() == 1,
                    parts,
                })
            }
            Op::Unary(f, x) => {
                let x = self.get(*x)?;
                self.unary(ty, *f, &x)
            }
            Op::Binary(f, a, b) => {
                let (a, b) = (self.get(*a)?, self.get(*b)?);
                self.binary(ty, *f, &a, &b)
            }
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
                let index = match (ty.shape.len(), axis) {
                    (2, 0) => Index::col(ty.shape[1]),
                    (2, _) => Index::row(ty.shape[1]),
                    _ => Index::SAME,
                };
                Ok(self.moved(ty, &x, index))
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
                // Element (i, j) of the result is (j, i) of the operand.
                let index = Index {
                    len: rows,
                    outer: 1,
                    inner: cols,
                    first: 0,
                };
                Ok(self.moved(ty, &x, index))
            }
            Op::Dot { acc, a, b } => {
                let (acc, a, b) = (self.get(*acc)?, self.get(*a)?, self.get(*b)?);
                self.dot(ty, &acc, &a, &b)
            }
            Op::Unpack { x, bits, signed } => {
                let x = self.get(*x)?;
                self.unpack(ty, &x, *bits, *signed)
            }
            _ => Err(self.unsupported("an operation that is no value")),
        }
    }

    /// A tile of the elements at `index` of another.
    fn moved(&mut self, ty: &TileType, x: &Tile, index: Index) -> Tile {
        Tile {
            ty: ty.clone(),
            parts: self.fetch(x, ty.len(), index),
            uniform: x.uniform,
        }
    }

    /// The elements at `index` of a tile, for each part of a tile of `len` elements.
    pub fn fetch(&mut self, x: &Tile, len: u32, index: Index) -> Vec<Val> {
        let source = self.source(x, len, &[index], None);
        self.read(&source, len, index)
    }

    /// Makes the elements of a tile ready to be read at these indices; a slot stays as it is.
    pub fn source(&mut self, x: &Tile, len: u32, indices: &[Index], held: Option<usize>) -> Source {
        let (from, to) = (self.layout(x.ty.len()), self.layout(len));
        let near = x.uniform
            || indices.iter().all(|&index| {
                (0..to.parts()).all(|part| from.route(to, part, index) != Route::Shared)
            });
        match near {
            true => Source::Registers(x.clone()),
            false => self.put_down(x, held),
        }
    }

    /// Writes a tile to a slot.
    fn put_down(&mut self, x: &Tile, held: Option<usize>) -> Source {
        let len = x.ty.len();
        let (slot, address) = self.slot(len * memory_bytes(x.ty.elem), held);
        let resource = self.slot_resource(slot);
        self.before_write(resource);
        for part in 0..self.layout(len).parts() {
            let there = self.owns(len, part);
            let e = self.element(len, part);
            let at = self.byte_address(address, e, x.ty.elem);
            self.store_element(x.ty.elem, at, x.parts[part as usize], there);
        }
        Source::Memory(x.clone(), address, slot)
    }

    /// The elements at `index` of a source, for each part of a tile of `len` elements.
    pub fn read(&mut self, source: &Source, len: u32, index: Index) -> Vec<Val> {
        let parts = 0..self.layout(len).parts();
        match source {
            Source::Registers(x) if x.uniform => parts.map(|_| x.parts[0]).collect(),
            Source::Registers(x) => {
                let (from, to) = (self.layout(x.ty.len()), self.layout(len));
                parts
                    .map(|part| match from.route(to, part, index) {
                        Route::Own(own) => x.parts[own as usize],
                        Route::Lane(other) => {
                            let e = self.indexed(len, part, index);
                            let lane = match from.in_every_warp() || from.threads == WARP {
                                true => e,
                                false => self.w.op(Ty::B32, "and.b32", &[e, Val::int(31)]),
                            };
                            self.shuffle("idx", x.parts[other as usize], lane)
                        }
                        // `source` asked for the same routes.
                        Route::Shared => x.parts[0],
                    })
                    .collect()
            }
            Source::Memory(x, address, slot) => {
                let resource = self.slot_resource(*slot);
                self.before_read(resource);
                parts
                    .map(|part| {
                        let there = self.exists(len, part);
                        let e = self.indexed(len, part, index);
                        let at = self.byte_address(*address, e, x.ty.elem);
                        self.load_element(x.ty.elem, at, there)
                    })
                    .collect()
            }
        }
    }

    /// An element of a tile that every warp holds, by its number; of the elements that there are.
    pub fn fetch_lane(&mut self, x: &Tile, number: Val) -> Val {
        match x.uniform {
            true => x.parts[0],
            false => self.shuffle("idx", x.parts[0], number),
        }
    }

    /// What other lanes of the warp hold: of lane `b`, or of the lane whose number differs in the bits `b`.
    fn shuffle(&mut self, mode: &str, x: Val, b: Val) -> Val {
        let half = |w: &mut crate::writer::Writer, ty: Ty, x: Val| {
            let x = w.in_register(x);
            let to = w.register(ty);
            w.line(format_args!(
                "shfl.sync.{mode}.b32 {to}, {x}, {b}, 31, 0xffffffff;"
            ));
            to
        };
        match x.ty {
            Ty::Pred => {
                let number = self.w.select(x, Val::int(1), Val::int(0));
                let y = half(&mut self.w, Ty::B32, number);
                self.w.compare("ne.u32", y, Val::int(0))
            }
            Ty::B32 | Ty::F32 => half(&mut self.w, x.ty, x),
            Ty::B16 => {
                let x = self.w.in_register(x);
                let pair = self.w.register(Ty::B32);
                self.w.line(format_args!("mov.b32 {pair}, {{{x}, {x}}};"));
                let pair = half(&mut self.w, Ty::B32, pair);
                let [to, other] = [(); 2].map(|()| self.w.register(Ty::B16));
                self.w
                    .line(format_args!("mov.b32 {{{to}, {other}}}, {pair};"));
                to
            }
            Ty::B64 | Ty::F64 => {
                let x = self.w.in_register(x);
                let [low, high] = [(); 2].map(|()| self.w.register(Ty::B32));
                self.w.line(format_args!("mov.b64 {{{low}, {high}}}, {x};"));
                let [low, high] = [low, high].map(|h| half(&mut self.w, Ty::B32, h));
                let to = self.w.register(x.ty);
                self.w
                    .line(format_args!("mov.b64 {to}, {{{low}, {high}}};"));
                to
            }
        }
    }

    /// Codes of a few bits: the byte, then its bits.
    fn unpack(&mut self, ty: &TileType, x: &Tile, bits: u32, signed: bool) -> Result<Tile, Error> {
        if !matches!(ty.elem.class(), Class::Int { .. }) || !matches!(bits, 1 | 2 | 4) {
            return Err(self.unsupported(format!("codes of {bits} bits as {:?}", ty.elem)));
        }
        let len = ty.len();
        let per = 8 / bits;
        let bytes = self.fetch(x, len, Index::row(per));
        let name = if signed { "bfe.s32" } else { "bfe.u32" };
        let mut parts = vec![];
        for (part, byte) in bytes.into_iter().enumerate() {
            let (_, within) = self.split(len, part as u32, per);
            let first = self.w.mul(within, Val::int(i64::from(bits)));
            let width = Val::int(i64::from(bits));
            let code = self.w.op(Ty::B32, name, &[byte, first, width]);
            parts.push(match register(ty.elem) {
                Ty::B64 => self.w.widen(code),
                _ => self.normalize(ty.elem, code),
            });
        }
        Ok(Tile {
            ty: ty.clone(),
            parts,
            uniform: len == 1,
        })
    }

    fn reduce(
        &mut self,
        ty: &TileType,
        kind: ReduceKind,
        x: &Tile,
        axis: u32,
    ) -> Result<Tile, Error> {
        let f = match kind {
            ReduceKind::Sum => Binary::Add,
            ReduceKind::Prod => Binary::Mul,
            ReduceKind::Max => Binary::Max,
            ReduceKind::Min => Binary::Min,
            ReduceKind::And => Binary::And,
            ReduceKind::Or => Binary::Or,
        };
        let elem = ty.elem;
        if !self.has_binary(f, elem) {
            return Err(self.unsupported(format!("{f:?} of {elem:?}")));
        }
        if ty.len() == 1 {
            let all = self.reduce_all(kind, f, x);
            return Ok(self.repeat(ty, all));
        }
        // Element `e` of the result is made of `e * outer + k * inner`.
        let [rows, cols] = x.ty.shape[..] else {
            return Err(self.unsupported("a reduction of a tile without this axis"));
        };
        let (count, outer, inner) = match axis {
            0 => (rows, 1, cols),
            _ => (cols, cols, 1),
        };
        let at = |k: u32| Index {
            len: 1,
            outer,
            inner: 0,
            first: k * inner,
        };
        let indices: Vec<Index> = (0..count).map(at).collect();
        let source = self.source(x, ty.len(), &indices, None);
        if let (Source::Memory(_, address, slot), true) = (&source, count > UNROLLED) {
            let (address, slot) = (*address, *slot);
            return Ok(self.reduce_in_memory(ty, f, address, slot, at(0), count, inner));
        }
        let mut parts = self.read(&source, ty.len(), indices[0]);
        for &index in &indices[1..] {
            let next = self.read(&source, ty.len(), index);
            for (acc, x) in parts.iter_mut().zip(next) {
                *acc = self.binary_parts(elem, f, *acc, x);
            }
        }
        Ok(Tile {
            ty: ty.clone(),
            parts,
            uniform: x.uniform,
        })
    }

    /// A loop over `count` elements that are `step` apart in a slot.
    #[allow(clippy::too_many_arguments, reason = "where the elements are")]
    fn reduce_in_memory(
        &mut self,
        ty: &TileType,
        f: Binary,
        address: Address,
        slot: usize,
        first: Index,
        count: u32,
        step: u32,
    ) -> Tile {
        let resource = self.slot_resource(slot);
        self.before_read(resource);
        let mut parts = vec![];
        for part in 0..self.layout(ty.len()).parts() {
            let there = self.exists(ty.len(), part);
            let e = self.indexed(ty.len(), part, first);
            let from = self.byte_address(address, e, ty.elem);
            let now = self.load_element(ty.elem, from, there);
            let acc = self.w.register(now.ty);
            self.w.copy(acc, now);
            let at = self.w.register(from.at.ty);
            self.w.copy(at, from.at);
            let left = self.w.register(Ty::B32);
            self.w.copy(left, Val::int(i64::from(count - 1)));
            let top = self.w.label();
            self.w.place(top);
            let bytes = i64::from(step * memory_bytes(ty.elem));
            let next = match at.ty {
                Ty::B32 => self.w.add(at, Val::int(bytes)),
                _ => self.w.add(at, Val::long(bytes)),
            };
            self.w.copy(at, next);
            let now = self.load_element(ty.elem, Address { at, ..address }, there);
            let sum = self.binary_parts(ty.elem, f, acc, now);
            self.w.copy(acc, sum);
            let fewer = self.w.add(left, Val::int(-1));
            self.w.copy(left, fewer);
            let more = self.w.compare("ne.s32", left, Val::int(0));
            self.w.line(format_args!("@{more} bra.uni {top};"));
            parts.push(acc);
        }
        Tile {
            ty: ty.clone(),
            parts,
            uniform: false,
        }
    }

    /// All elements of a tile: a thread's, then a warp's, then those of all warps. Every thread gets the same result.
    fn reduce_all(&mut self, kind: ReduceKind, f: Binary, x: &Tile) -> Val {
        let elem = x.ty.elem;
        let len = x.ty.len();
        if len == 1 {
            return x.parts[0];
        }
        let none = neutral(kind, elem);
        let mut acc: Option<Val> = None;
        for (part, &x) in x.parts.iter().enumerate() {
            let x = match self.exists(len, part as u32) {
                Some(there) => self.w.select(there, x, none),
                None => x,
            };
            acc = Some(match acc {
                Some(acc) => self.binary_parts(elem, f, acc, x),
                None => x,
            });
        }
        let mut acc = acc.unwrap_or(none);
        for bit in [16, 8, 4, 2, 1] {
            let other = self.shuffle("bfly", acc, Val::int(bit));
            acc = self.binary_parts(elem, f, acc, other);
        }
        let warps = self.threads / WARP;
        if len <= WARP || warps == 1 {
            return acc;
        }
        let (slot, address) = self.slot(warps * memory_bytes(elem), None);
        let resource = self.slot_resource(slot);
        self.before_write(resource);
        let (lane, tid) = (self.lane, self.tid);
        let first = self.w.compare("eq.u32", lane, Val::int(0));
        let warp = self.w.op(Ty::B32, "shr.u32", &[tid, Val::int(5)]);
        let to = self.byte_address(address, warp, elem);
        self.store_element(elem, to, acc, Some(first));
        self.before_read(resource);
        let mut all: Option<Val> = None;
        for warp in 0..warps {
            let from = self.byte_address(address, Val::int(i64::from(warp)), elem);
            let x = self.load_element(elem, from, None);
            all = Some(match all {
                Some(all) => self.binary_parts(elem, f, all, x),
                None => x,
            });
        }
        all.unwrap_or(acc)
    }

    /// `acc[m,n] + a[m,k] * b[k,n]`, one `k` after the other.
    fn dot(&mut self, ty: &TileType, acc: &Tile, a: &Tile, b: &Tile) -> Result<Tile, Error> {
        let ([_, depth], [_, cols]) = (&a.ty.shape[..], &b.ty.shape[..]) else {
            return Err(self.unsupported("a dot of tiles that are not of rank 2"));
        };
        let (depth, cols) = (*depth, *cols);
        let registers = [a, b].map(|x| register(x.ty.elem));
        if registers != [register(ty.elem); 2] || registers[0] == Ty::Pred {
            let (a, b) = (a.ty.elem, b.ty.elem);
            return Err(self.unsupported(format!("a dot of {a:?} and {b:?}")));
        }
        let of_a = |k| Index {
            len: cols,
            outer: depth,
            inner: 0,
            first: k,
        };
        let of_b = |k| Index {
            len: cols,
            outer: 0,
            inner: 1,
            first: k * cols,
        };
        let len = ty.len();
        let a = self.source(a, len, &(0..depth).map(of_a).collect::<Vec<_>>(), None);
        let held = a.slot();
        let b = self.source(b, len, &(0..depth).map(of_b).collect::<Vec<_>>(), held);
        let mut parts = acc.parts.clone();
        for k in 0..depth {
            let x = self.read(&a, len, of_a(k));
            let y = self.read(&b, len, of_b(k));
            for ((acc, x), y) in parts.iter_mut().zip(x).zip(y) {
                *acc = self.multiply_add(ty.elem, x, y, *acc);
            }
        }
        Ok(Tile {
            ty: ty.clone(),
            parts,
            uniform: false,
        })
    }
}

/// Steps of a reduction that are written one after the other.
const UNROLLED: u32 = 32;

/// What changes nothing.
fn neutral(kind: ReduceKind, elem: TileElem) -> Val {
    let float = matches!(elem.class(), Class::F32 | Class::F64);
    let range = match elem {
        TileElem::Index => (i64::MIN, i64::MAX),
        TileElem::Elem(e) => e
            .int_range()
            .map_or((0, 0), |(lo, hi)| (lo as i64, hi as u64 as i64)),
    };
    let x = match kind {
        ReduceKind::Max if float => Literal::Float(f64::NEG_INFINITY),
        ReduceKind::Min if float => Literal::Float(f64::INFINITY),
        ReduceKind::Sum | ReduceKind::Or => Literal::Int(0),
        ReduceKind::Prod => Literal::Int(1),
        ReduceKind::And => Literal::Int(-1),
        ReduceKind::Max => Literal::Int(range.0),
        ReduceKind::Min => Literal::Int(range.1),
    };
    literal(elem, x)
}
