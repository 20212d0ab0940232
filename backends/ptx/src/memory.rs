//! Loads and stores of tiles.

use crate::function::{Address, Fun};
use crate::tile::{Index, Tile, is_signed, literal, register};
use crate::writer::{Ty, Val};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{At, Axis, Buf, Class, Literal, TileElem, TileType, Var};

/// One axis of a tile's address in registers.
pub(crate) enum Along {
    /// `i * stride`.
    Stride(i64),
    /// `i * stride`.
    Dynamic(Val),
    /// What each part adds.
    Offsets(Vec<Val>),
}

/// An axis: where its elements are and which exist, part by part.
pub(crate) struct Place {
    along: Along,
    valid: Option<Val>,
    mask: Option<Vec<Val>>,
}

impl Fun<'_> {
    pub fn load(
        &mut self,
        ty: &TileType,
        buf: Buf,
        base: Var,
        axes: &[Axis],
    ) -> Result<Tile, Error> {
        let (address, elem) = self.buffer(buf)?;
        let elem = TileElem::Elem(elem);
        self.known_elem(elem)?;
        let resource = self.buffer_resource(buf);
        self.before_read(resource);
        let base = self.scalar(base)?;
        let places = self.places_of(ty, axes)?;
        let mut parts = vec![];
        for part in 0..self.layout(ty.len()).parts() {
            let (at, there) = self.locate(ty, part, base, &places, false);
            let at = self.byte_address(address, at, elem);
            parts.push(self.load_element(elem, at, there));
        }
        Ok(Tile {
            ty: ty.clone(),
            uniform: ty.len() == 1,
            parts,
        })
    }

    pub fn store(&mut self, buf: Buf, base: Var, axes: &[Axis], x: Var) -> Result<(), Error> {
        let (address, elem) = self.buffer(buf)?;
        let elem = TileElem::Elem(elem);
        self.known_elem(elem)?;
        let tile = self.get(x)?;
        let base = self.scalar(base)?;
        let ty = tile.ty.clone();
        let places = self.places_of(&ty, axes)?;
        let resource = self.buffer_resource(buf);
        self.before_write(resource);
        for part in 0..self.layout(ty.len()).parts() {
            let (at, there) = self.locate(&ty, part, base, &places, true);
            let at = self.byte_address(address, at, elem);
            self.store_element(elem, at, tile.parts[part as usize], there);
        }
        Ok(())
    }

    fn known_elem(&self, elem: TileElem) -> Result<(), Error> {
        match elem.class() {
            Class::Bits(bits) if bits > 64 || bits == 0 => {
                Err(self.unsupported(format!("a buffer of {elem:?}")))
            }
            _ => Ok(()),
        }
    }

    /// Axes of a tile of this type; what is a tile itself comes to where it is needed.
    pub fn places_of(&mut self, ty: &TileType, axes: &[Axis]) -> Result<Vec<Place>, Error> {
        let mut places = vec![];
        for (i, axis) in axes.iter().enumerate() {
            let index = match (axes.len(), i) {
                (2, 0) => Index::row(ty.shape[1]),
                (2, _) => Index::col(ty.shape[1]),
                _ => Index::SAME,
            };
            let along = match axis.at {
                At::Stride(s) => Along::Stride(s),
                At::DynStride(v) => match self.scalar(v)? {
                    x if x.known().is_some() => Along::Stride(x.known().unwrap_or(0)),
                    x => Along::Dynamic(x),
                },
                At::Offsets(v) => {
                    let offsets = self.get(v)?;
                    Along::Offsets(self.fetch(&offsets, ty.len(), index))
                }
            };
            let mask = match axis.mask {
                Some(m) => {
                    let mask = self.get(m)?;
                    Some(self.fetch(&mask, ty.len(), index))
                }
                None => None,
            };
            let valid = axis.valid.map(|v| self.scalar(v)).transpose()?;
            // More elements than there are in the tile.
            let len = i64::from(ty.shape[i]);
            let valid = valid.filter(|v| v.known().is_none_or(|k| k < len));
            places.push(Place { along, valid, mask });
        }
        Ok(places)
    }

    /// Element offset of a part, and whether this thread accesses it.
    pub fn locate(
        &mut self,
        ty: &TileType,
        part: u32,
        base: Val,
        places: &[Place],
        writes: bool,
    ) -> (Val, Option<Val>) {
        let len = ty.len();
        let mut there = match writes {
            true => self.owns(len, part),
            false => self.exists(len, part),
        };
        let along = match places.len() {
            0 => vec![],
            1 => vec![self.element(len, part)],
            _ => {
                let (i, j) = self.split(len, part, ty.shape[1]);
                vec![i, j]
            }
        };
        // What is known is added up in 32 bits, as far as it fits.
        let mut near = Val::int(0);
        let mut reach = 0i64;
        let mut at = base;
        for ((place, &i), &n) in places.iter().zip(&along).zip(&ty.shape) {
            match &place.along {
                Along::Stride(s) => {
                    let far = s.saturating_mul(i64::from(n));
                    let sum = reach.saturating_add(far.saturating_abs());
                    if sum < i64::from(i32::MAX) {
                        reach = sum;
                        near = self.w.mul_add(i, Val::int(*s), near);
                    } else {
                        let i = self.w.widen(i);
                        at = self.w.mul_add(i, Val::long(*s), at);
                    }
                }
                Along::Dynamic(s) => {
                    let i = self.w.widen(i);
                    at = self.w.mul_add(i, *s, at);
                }
                Along::Offsets(parts) => at = self.w.add(at, parts[part as usize]),
            }
            if let Some(valid) = place.valid {
                let i = self.w.widen(i);
                let inside = match (i.known(), valid.known()) {
                    (Some(i), Some(n)) => Val::bool(i < n),
                    _ => self.w.compare("lt.s64", i, valid),
                };
                there = self.w.both(there, Some(inside));
            }
            if let Some(mask) = &place.mask {
                there = self.w.both(there, Some(mask[part as usize]));
            }
        }
        let near = self.w.widen(near);
        (self.w.add(at, near), there)
    }

    /// The address of an element at an offset.
    pub fn byte_address(&mut self, address: Address, offset: Val, elem: TileElem) -> Address {
        let size = memory_bytes(elem);
        let at = match address.at.ty {
            Ty::B32 => {
                let offset = match offset.ty {
                    Ty::B64 => self.w.narrow(offset),
                    _ => offset,
                };
                self.w
                    .mul_add(offset, Val::int(i64::from(size)), address.at)
            }
            _ => {
                let offset = match offset.ty {
                    Ty::B32 => self.w.widen(offset),
                    _ => offset,
                };
                self.w
                    .mul_add(offset, Val::long(i64::from(size)), address.at)
            }
        };
        Address { at, ..address }
    }

    /// Reads an element, or zero where the condition does not hold.
    pub fn load_element(&mut self, elem: TileElem, from: Address, there: Option<Val>) -> Val {
        let ty = match register(elem) {
            Ty::Pred => Ty::B32,
            ty => ty,
        };
        let to = self.w.register(ty);
        if there.is_some() {
            let zero = match ty {
                Ty::F32 | Ty::F64 => literal(elem, Literal::Float(0.0)),
                Ty::B64 => Val::long(0),
                _ => Val::int(0),
            };
            self.w.copy(to, zero);
        }
        let guard = self.w.guard(there);
        let (space, name) = (from.space.name(), memory_name(elem));
        self.w.line(format_args!(
            "{guard}ld.{space}.{name} {to}, [{}];",
            from.at
        ));
        match register(elem) {
            Ty::Pred => self.w.compare("ne.u32", to, Val::int(0)),
            _ => to,
        }
    }

    /// Writes an element where the condition holds.
    pub fn store_element(&mut self, elem: TileElem, to: Address, x: Val, there: Option<Val>) {
        let x = match x.ty {
            Ty::Pred => self.w.select(x, Val::int(1), Val::int(0)),
            _ => x,
        };
        let guard = self.w.guard(there);
        let (space, name) = (to.space.name(), memory_name(elem));
        // An address may be a number only where the buffer is.
        self.w
            .line(format_args!("{guard}st.{space}.{name} [{}], {x};", to.at));
    }
}

/// Bytes of an element in memory.
pub(crate) fn memory_bytes(elem: TileElem) -> u32 {
    match elem {
        TileElem::Index => 8,
        TileElem::Elem(e) => e.size_bytes() as u32,
    }
}

/// The type of an access to an element.
fn memory_name(elem: TileElem) -> &'static str {
    match (register(elem), memory_bytes(elem), is_signed(elem)) {
        (Ty::F32, ..) => "f32",
        (Ty::F64, ..) => "f64",
        (_, 1, true) => "s8",
        (_, 1, false) => "u8",
        (_, 2, true) => "s16",
        (_, 2, false) => "u16",
        (_, 4, _) => "b32",
        _ => "b64",
    }
}
