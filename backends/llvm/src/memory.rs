//! Loads and stores of tiles.
//!
//! Consecutive columns move as vectors. Columns that may not exist are masked where the target has masked moves of
//! their width; elsewhere there are two paths: vectors when all exist, which is tested at run time, and single
//! elements. A missing row is read from the zeros of the context, and a store branches around it. Everything
//! else (gathers, strides) moves element by element: what does not exist is read from the zeros and written to a dummy.

use crate::function::Fun;
use crate::tile::{Tile, memory_lane, rows_cols};
use crate::writer::{Lane, Ty, Val};
use lapidary_abi::kernel::ZEROS_BYTES;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{At, Axis, Class, Op, Stmt, TileElem, TileType, Var};
use lapidary_ir::target::Feature;

/// Offsets along an axis, in elements.
#[derive(Clone)]
enum Offsets {
    Stride(i64),
    Dynamic(Val),
    Each(Vec<Val>),
}

/// An axis with its operands' values.
#[derive(Clone)]
pub(crate) struct AxisValues {
    len: u32,
    at: Offsets,
    valid: Option<Val>,
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
    address: Val,
    elem: TileElem,
    size: i64,
    rows: AxisValues,
    cols: AxisValues,
}

impl Place {
    /// A missing row may be read from the zeros instead.
    fn rows_fit_zeros(&self) -> bool {
        match self.cols.at {
            Offsets::Stride(s) if s >= 0 => {
                (i64::from(self.cols.len) - 1) * s * self.size + self.size <= ZEROS_BYTES as i64
            }
            _ => false,
        }
    }
}

impl<'k> Fun<'k> {
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
            len,
            at,
            valid: match axis.valid {
                Some(v) if !all(self, v) => Some(self.scalar(v)?),
                _ => None,
            },
            mask: axis.mask.map(|v| self.get(v)).transpose()?,
        };
        let ok = values.mask.as_ref().is_none_or(|m| m.ty.len() == len)
            && match &values.at {
                Offsets::Each(o) => o.len() == len as usize,
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
    pub fn element(&mut self, address: Val, index: Val, size: i64) -> Val {
        let bytes = match size {
            1 => index,
            _ => self
                .w
                .two_int("shl", index, i64::from(size.trailing_zeros())),
        };
        self.w.offset(address, bytes)
    }

    /// Address of element `i` along an axis.
    fn along(&mut self, address: Val, at: &Offsets, i: u32, size: i64) -> Val {
        match at {
            Offsets::Stride(s) => {
                let bytes = i64::from(i).wrapping_mul(*s).wrapping_mul(size);
                self.w.offset_by(address, bytes)
            }
            Offsets::Dynamic(s) => match i {
                0 => address,
                _ => {
                    let elements = self.w.two_int("mul", *s, i64::from(i));
                    self.element(address, elements, size)
                }
            },
            Offsets::Each(all) => self.element(address, all[i as usize], size),
        }
    }

    /// Whether each element of an axis exists; `None` for all if every one does.
    fn exists(&mut self, axis: &AxisValues) -> Vec<Option<Val>> {
        let masks = axis.mask.as_ref().map(|m| self.scalars(m));
        (0..axis.len)
            .map(|i| {
                let counted = axis
                    .valid
                    .map(|v| self.w.compare_int("icmp sgt", v, i64::from(i)));
                let masked = masks.as_ref().map(|m| m[i as usize]);
                self.both(counted, masked)
            })
            .collect()
    }

    /// Masks of the parts of a row.
    fn part_masks(&mut self, axis: &AxisValues, cuts: &[u32]) -> Vec<Option<Val>> {
        let count = axis.valid.map(|v| {
            let (zero, len) = (self.w.index(0), self.w.index(i64::from(axis.len)));
            let v = self.w.intrinsic("llvm.smax.i64", Ty::I64, &[v, zero]);
            let v = self.w.intrinsic("llvm.smin.i64", Ty::I64, &[v, len]);
            self.low(v)
        });
        let mut first = 0;
        let mut masks = vec![];
        for (i, &lanes) in cuts.iter().enumerate() {
            let counted = count.map(|n| {
                let ty = Ty {
                    lane: Lane::I32,
                    lanes,
                };
                let (n, lane) = (self.w.splat(n, lanes), self.w.iota(ty, first));
                self.w.compare("icmp sgt", n, lane)
            });
            first += i64::from(lanes);
            let masked = axis.mask.as_ref().map(|m| m.parts[i]);
            masks.push(self.both(counted, masked));
        }
        masks
    }

    /// The target moves vectors of elements of this size under a mask.
    fn masks(&self, size: i64) -> bool {
        let has = |f| self.target.features.contains(&f);
        match self.target.arch() {
            "x86_64" => has(Feature::Avx512) || has(Feature::Avx2) && size >= 4,
            "riscv64" => true,
            _ => false,
        }
    }

    /// Loads what defines `var`; bytes in groups of four are also kept as dwords, which is what dot products read.
    pub fn load_var(&mut self, var: Var, ty: &TileType, op: &Op) -> Result<Tile, Error> {
        let place = self.place(op, ty)?;
        let bytes = matches!(ty.elem.class(), Class::Int { bits: 8, .. });
        let by_fours = matches!(
            (&place.rows.at, &place.cols.at),
            (Offsets::Stride(1), Offsets::Stride(4))
        );
        if bytes
            && by_fours
            && ty.shape.first() == Some(&4)
            && !place.rows.conditional()
            && !place.cols.conditional()
        {
            return Ok(self.load_fours(var, ty, &place));
        }
        self.load(ty, &place)
    }

    /// `[4, n]` bytes that lie as `[n][4]`.
    fn load_fours(&mut self, var: Var, ty: &TileType, place: &Place) -> Tile {
        let cuts = self.row_cuts(ty);
        let mut quads = vec![];
        let mut rows = vec![vec![]; 4];
        let mut at = 0;
        for lanes in cuts {
            let address = self.w.offset_by(place.address, at);
            at += i64::from(4 * lanes);
            let bytes = Ty {
                lane: Lane::I8,
                lanes: 4 * lanes,
            };
            let bytes = self.w.load(bytes, address);
            let dwords = Ty {
                lane: Lane::I32,
                lanes,
            };
            quads.push(self.w.convert("bitcast", bytes, dwords));
            for (r, row) in rows.iter_mut().enumerate() {
                let order: Vec<u32> = (0..lanes).map(|i| 4 * i + r as u32).collect();
                row.push(self.w.shuffle(bytes, bytes, &order));
            }
        }
        self.quads.insert(var, quads);
        Tile {
            ty: ty.clone(),
            parts: rows.into_iter().flatten().collect(),
        }
    }

    fn load(&mut self, ty: &TileType, place: &Place) -> Result<Tile, Error> {
        let Offsets::Stride(1) = place.cols.at else {
            return match place.cols.at {
                Offsets::Stride(0) if !place.cols.conditional() => {
                    Ok(self.load_repeated(ty, place))
                }
                _ => Ok(self.load_elements(ty, place)),
            };
        };
        let masked = self.masks(place.size);
        if !place.cols.conditional() || masked {
            if !masked && place.rows.conditional() && !place.rows_fit_zeros() {
                return Ok(self.load_elements(ty, place));
            }
            return Ok(self.load_rows(ty, place));
        }
        if ty.len() <= self.lanes {
            return Ok(self.load_elements(ty, place));
        }
        let all = self.all_columns(&place.cols);
        let [fast, slow, after] = [(); 3].map(|()| self.w.new_block());
        self.w.branch(all, fast, slow);
        self.w.begin(fast);
        let whole = Place {
            cols: AxisValues {
                valid: None,
                mask: None,
                ..place.cols.clone()
            },
            rows: place.rows.clone(),
            ..*place
        };
        let tile = self.load(ty, &whole)?;
        let fast_end = (tile.parts, self.w.current());
        self.w.jump(after);
        self.w.begin(slow);
        let tile = self.load_elements(ty, place);
        let slow_end = (tile.parts, self.w.current());
        self.w.jump(after);
        self.w.begin(after);
        Ok(Tile {
            ty: ty.clone(),
            parts: self.merge(&fast_end, &slow_end),
        })
    }

    /// All elements of an axis exist.
    fn all_columns(&mut self, axis: &AxisValues) -> Val {
        let counted = axis
            .valid
            .map(|v| self.w.compare_int("icmp sge", v, i64::from(axis.len)));
        let masked = axis.mask.as_ref().map(|m| {
            let scalars = self.scalars(m);
            let mut all = scalars[0];
            for &s in &scalars[1..] {
                all = self.w.two("and", all, s);
            }
            all
        });
        match self.both(counted, masked) {
            Some(all) => all,
            None => self.w.int(Ty::I1, 1),
        }
    }

    /// Consecutive columns, under masks where they may not exist.
    fn load_rows(&mut self, ty: &TileType, place: &Place) -> Tile {
        let cuts = self.row_cuts(ty);
        let masks = self.part_masks(&place.cols, &cuts);
        let rows = self.exists(&place.rows);
        let redirect = place.rows_fit_zeros();
        let mut parts = vec![];
        for (i, exists) in rows.into_iter().enumerate() {
            let mut address = self.along(place.address, &place.rows.at, i as u32, place.size);
            let mut row_mask = exists;
            if redirect && let Some(exists) = row_mask.take() {
                address = self.w.select(exists, address, self.zeros);
            }
            let mut at = 0;
            for (&lanes, &mask) in cuts.iter().zip(&masks) {
                let from = self.w.offset_by(address, at);
                at += i64::from(lanes) * place.size;
                let row_mask = row_mask.map(|m| self.w.splat(m, lanes));
                let mask = self.both(mask, row_mask);
                parts.push(self.load_part(place.elem, from, lanes, mask));
            }
        }
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    fn load_part(&mut self, elem: TileElem, address: Val, lanes: u32, mask: Option<Val>) -> Val {
        let ty = Ty {
            lane: memory_lane(elem),
            lanes,
        };
        let x = match mask {
            None => self.w.load(ty, address),
            Some(mask) if lanes == 1 => {
                let address = self.w.select(mask, address, self.zeros);
                self.w.load(ty, address)
            }
            Some(mask) => {
                let align = self
                    .w
                    .int(Ty::scalar(Lane::I32), i64::from(ty.lane.bytes()));
                let none = self.w.zero(ty);
                let name = format!("llvm.masked.load.{}.p0", ty.suffix());
                self.w.intrinsic(&name, ty, &[address, align, mask, none])
            }
        };
        self.truth(elem, x)
    }

    /// Loaded bytes of `bool` become truth values.
    fn truth(&mut self, elem: TileElem, x: Val) -> Val {
        match elem.class() {
            Class::Bool => self.w.compare_int("icmp ne", x, 0),
            _ => x,
        }
    }

    /// One element in a whole row.
    fn load_repeated(&mut self, ty: &TileType, place: &Place) -> Tile {
        let cuts = self.row_cuts(ty);
        let rows = self.exists(&place.rows);
        let mut parts = vec![];
        for (i, exists) in rows.into_iter().enumerate() {
            let address = self.along(place.address, &place.rows.at, i as u32, place.size);
            let x = self.load_part(place.elem, address, 1, exists);
            parts.extend(self.splats(&cuts, x));
        }
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    fn load_elements(&mut self, ty: &TileType, place: &Place) -> Tile {
        let (rows, cols) = (self.exists(&place.rows), self.exists(&place.cols));
        let mut scalars = vec![];
        for (i, &row) in rows.iter().enumerate() {
            let address = self.along(place.address, &place.rows.at, i as u32, place.size);
            for (j, &col) in cols.iter().enumerate() {
                let at = self.along(address, &place.cols.at, j as u32, place.size);
                let exists = self.both(row, col);
                scalars.push(self.load_part(place.elem, at, 1, exists));
            }
        }
        self.tile_of_scalars(ty, &scalars)
    }

    pub fn store(&mut self, stmt: &'k Stmt) -> Result<(), Error> {
        let Op::Store { x, .. } = &stmt.op else {
            return Err(self.unsupported("a store that is none"));
        };
        let tile = self.get(*x)?;
        let place = self.place(&stmt.op, &tile.ty)?;
        let vectors = matches!(place.cols.at, Offsets::Stride(1));
        if !vectors {
            self.store_elements(&tile, &place);
            return Ok(());
        }
        if !place.cols.conditional() || self.masks(place.size) {
            return self.store_rows(&tile, &place);
        }
        let all = self.all_columns(&place.cols);
        let [fast, slow, after] = [(); 3].map(|()| self.w.new_block());
        self.w.branch(all, fast, slow);
        self.w.begin(fast);
        let whole = Place {
            cols: AxisValues {
                valid: None,
                mask: None,
                ..place.cols.clone()
            },
            rows: place.rows.clone(),
            ..place
        };
        self.store_rows(&tile, &whole)?;
        self.w.jump(after);
        self.w.begin(slow);
        self.store_elements(&tile, &place);
        self.w.jump(after);
        self.w.begin(after);
        Ok(())
    }

    fn store_rows(&mut self, tile: &Tile, place: &Place) -> Result<(), Error> {
        let cuts = self.row_cuts(&tile.ty);
        let masks = self.part_masks(&place.cols, &cuts);
        let rows = self.exists(&place.rows);
        for (i, exists) in rows.into_iter().enumerate() {
            let row = &tile.parts[i * cuts.len()..(i + 1) * cuts.len()];
            let body = |s: &mut Self| {
                let address = s.along(place.address, &place.rows.at, i as u32, place.size);
                let mut at = 0;
                for (&x, &mask) in row.iter().zip(&masks) {
                    let to = s.w.offset_by(address, at);
                    at += i64::from(x.ty.lanes) * place.size;
                    s.store_part(place.elem, x, to, mask);
                }
                Ok(())
            };
            match exists {
                Some(exists) => self.when(exists, body)?,
                None => body(self)?,
            }
        }
        Ok(())
    }

    fn store_part(&mut self, elem: TileElem, x: Val, address: Val, mask: Option<Val>) {
        let x = self.w.convert("zext", x, x.ty.of(memory_lane(elem)));
        match mask {
            None => self.w.store(x, address),
            Some(mask) if x.ty.lanes == 1 => {
                let dummy = self.dummy();
                let address = self.w.select(mask, address, dummy);
                self.w.store(x, address);
            }
            Some(mask) => {
                let align = self
                    .w
                    .int(Ty::scalar(Lane::I32), i64::from(x.ty.lane.bytes()));
                let name = format!("llvm.masked.store.{}.p0", x.ty.suffix());
                self.w.effect(&name, &[x, address, align, mask]);
            }
        }
    }

    fn store_elements(&mut self, tile: &Tile, place: &Place) {
        let (rows, cols) = (self.exists(&place.rows), self.exists(&place.cols));
        let scalars = self.scalars(tile);
        let per_row = rows_cols(&tile.ty).1 as usize;
        for (i, &row) in rows.iter().enumerate() {
            let address = self.along(place.address, &place.rows.at, i as u32, place.size);
            for (j, &col) in cols.iter().enumerate() {
                let at = self.along(address, &place.cols.at, j as u32, place.size);
                let exists = self.both(row, col);
                self.store_part(place.elem, scalars[i * per_row + j], at, exists);
            }
        }
    }

    /// Address of each row's first element; `missing`, or else the first row's, for a row that is missing.
    pub fn row_addresses(
        &mut self,
        buffer: Val,
        elem: lapidary_ir::ElemType,
        base: Val,
        axis: &Axis,
        rows: u32,
        missing: Option<Val>,
    ) -> Result<Vec<Val>, Error> {
        let size = elem.size_bytes() as i64;
        let axis = self.axis(axis, rows)?;
        let first = self.element(buffer, base, size);
        let exists = self.exists(&axis);
        Ok(exists
            .into_iter()
            .enumerate()
            .map(|(i, exists)| {
                let address = self.along(first, &axis.at, i as u32, size);
                match exists {
                    Some(exists) => self.w.select(exists, address, missing.unwrap_or(first)),
                    None => address,
                }
            })
            .collect())
    }

    /// Reads a tile of numbers from memory of the frame, where it lies row by row.
    pub fn reload(&mut self, ty: &TileType, from: Val) -> Tile {
        let mut at = 0;
        let mut parts = vec![];
        for part in self.part_types(ty) {
            let address = self.w.offset_by(from, at);
            at += i64::from(part.lanes * part.lane.bytes());
            parts.push(self.w.load(part, address));
        }
        Tile {
            ty: ty.clone(),
            parts,
        }
    }
}
