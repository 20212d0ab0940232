//! How tiles lie in LLVM values.
//!
//! Each row of a tile is cut into vectors of the target's width, then into halves of it for the rest of the row, down
//! to single scalars. The cuts depend on the length of a row alone, so that tiles of different elements fit
//! each other: as many lanes as the kernel's widest common element fills a register with.
//! Integers have their own width, `bool` is `i1`, small floats are their bits; narrower than a byte is a byte in
//! range.

use crate::function::Fun;
use crate::writer::{Lane, Ty, Val};
use lapidary_ir::kernel::{Class, Kernel, Literal, TileElem, TileType};
use lapidary_ir::target::Target;

/// A tile's values, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub ty: TileType,
    pub parts: Vec<Val>,
}

pub(crate) fn lane(elem: TileElem) -> Lane {
    match elem.class() {
        Class::F32 => Lane::F32,
        Class::F64 => Lane::F64,
        Class::Bool => Lane::I1,
        Class::Int { bits, .. } | Class::Bits(bits) => match bits {
            0..=8 => Lane::I8,
            9..=16 => Lane::I16,
            17..=32 => Lane::I32,
            _ => Lane::I64,
        },
    }
}

/// The lane of an element in memory.
pub(crate) fn memory_lane(elem: TileElem) -> Lane {
    match lane(elem) {
        Lane::I1 => Lane::I8,
        lane => lane,
    }
}

pub(crate) fn is_signed(elem: TileElem) -> bool {
    matches!(elem.class(), Class::Int { signed: true, .. })
}

/// Lanes of a full vector in this kernel: those of its 32-bit elements if it has any, for narrower ones are widened to
/// them and wider ones are rare; else those of its widest.
pub(crate) fn full_lanes(kernel: &Kernel, target: &Target) -> u32 {
    let bytes = kernel
        .vars
        .iter()
        .filter(|ty| !ty.shape.is_empty())
        .filter_map(|ty| match ty.elem {
            TileElem::Index => None,
            elem => Some(memory_lane(elem).bytes()),
        });
    let (mut four, mut widest) = (false, 1);
    for b in bytes {
        four |= b == 4;
        widest = widest.max(b);
    }
    (target.vector_bytes / if four { 4 } else { widest }).max(2)
}

/// Lanes of the parts of a row.
pub(crate) fn cuts(cols: u32, full: u32) -> Vec<u32> {
    let mut cuts = vec![full; (cols / full) as usize];
    let mut rest = cols % full;
    let mut half = full;
    while rest > 0 {
        half /= 2;
        if rest >= half {
            cuts.push(half);
            rest -= half;
        }
    }
    cuts
}

pub(crate) fn rows_cols(ty: &TileType) -> (u32, u32) {
    match ty.shape[..] {
        [] => (1, 1),
        [n] => (1, n),
        [m, n, ..] => (m, n),
    }
}

impl Fun<'_> {
    /// Lanes of the parts of a row.
    pub fn row_cuts(&self, ty: &TileType) -> Vec<u32> {
        cuts(rows_cols(ty).1, self.lanes)
    }

    /// LLVM types of a tile's parts.
    pub fn part_types(&self, ty: &TileType) -> Vec<Ty> {
        let row: Vec<Ty> = self
            .row_cuts(ty)
            .into_iter()
            .map(|lanes| Ty {
                lane: lane(ty.elem),
                lanes,
            })
            .collect();
        (0..rows_cols(ty).0).flat_map(|_| row.clone()).collect()
    }

    /// A literal of an element, in all lanes.
    pub fn literal(&mut self, elem: TileElem, literal: Literal, lanes: u32) -> Val {
        let ty = Ty {
            lane: lane(elem),
            lanes,
        };
        if ty.lane.is_float() {
            return self.w.float(ty, literal.as_float());
        }
        match elem.class() {
            Class::Bool => self.w.int(ty, i64::from(literal.as_int() != 0)),
            _ => self.w.int(ty, elem.wrap_literal(literal.as_int())),
        }
    }

    /// A literal beside a value.
    pub fn beside(&mut self, elem: TileElem, literal: Literal, x: Val) -> Val {
        self.literal(elem, literal, x.ty.lanes)
    }

    pub fn const_tile(&mut self, ty: &TileType, literal: Literal) -> Tile {
        let types = self.part_types(ty);
        let parts = types
            .iter()
            .map(|t| self.literal(ty.elem, literal, t.lanes))
            .collect();
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    /// All elements of a tile as scalars, row by row.
    pub fn scalars(&mut self, tile: &Tile) -> Vec<Val> {
        let mut out = Vec::with_capacity(tile.ty.len() as usize);
        for &part in &tile.parts {
            for i in 0..part.ty.lanes {
                out.push(self.w.extract(part, i));
            }
        }
        out
    }

    /// A tile from its elements as scalars, row by row.
    pub fn tile_of_scalars(&mut self, ty: &TileType, scalars: &[Val]) -> Tile {
        let cuts = self.row_cuts(ty);
        let cols = rows_cols(ty).1 as usize;
        let mut parts = vec![];
        for mut row in scalars.chunks(cols.max(1)) {
            for &lanes in &cuts {
                let (now, rest) = row.split_at((lanes as usize).min(row.len()));
                parts.push(self.w.gather(now));
                row = rest;
            }
        }
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    /// Applies `f` part by part; what is repeated is computed once.
    pub fn elementwise(
        &mut self,
        ty: &TileType,
        operands: &[&Tile],
        mut f: impl FnMut(&mut Self, &[Val]) -> Val,
    ) -> Tile {
        let count = operands[0].parts.len();
        let mut parts: Vec<Val> = Vec::with_capacity(count);
        let mut last: Option<Vec<Val>> = None;
        for i in 0..count {
            let values: Vec<Val> = operands.iter().map(|o| o.parts[i]).collect();
            let part = match last.as_ref() == Some(&values) {
                true => parts[i - 1],
                false => f(self, &values),
            };
            parts.push(part);
            last = Some(values);
        }
        Tile {
            ty: ty.clone(),
            parts,
        }
    }

    /// Brings an integer of less than eight bits back into its range after arithmetic.
    pub fn normalize(&mut self, elem: TileElem, x: Val) -> Val {
        match elem.class() {
            Class::Int { bits, signed } if bits < 8 => {
                let up = self.w.two_int("shl", x, i64::from(8 - bits));
                let down = if signed { "ashr" } else { "lshr" };
                self.w.two_int(down, up, i64::from(8 - bits))
            }
            Class::Bits(bits) if bits < 8 => self.w.two_int("and", x, (1 << bits) - 1),
            _ => x,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::cuts;

    #[test]
    fn rows_are_cut_into_full_vectors_then_halves() {
        assert_eq!(cuts(32, 16), [16, 16]);
        assert_eq!(cuts(31, 16), [16, 8, 4, 2, 1]);
        assert_eq!(cuts(5, 16), [4, 1]);
        assert_eq!(cuts(1, 4), [1]);
    }
}
