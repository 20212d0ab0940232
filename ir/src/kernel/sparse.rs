//! Rows of a sparse matrix times a panel: the canonical loop, written and recognised.
//!
//! The matrix is cut into groups of `R` rows that have equally many entries (sorted by it when it is packed), so that
//! a group is one loop without branches. The panel's `L` lanes are tokens or pixels. `(R, L)` is one of
//! [`SPARSE_SHAPES`].
//!
//! ```text
//! for g in first..end {
//!   rows = cast index (load ROWS[g * R])                         [R]
//!   acc = const 0   or   load INIT[at + rows * stride], lanes    [R, L]
//!   acc = add acc, broadcast(load BIAS[at + rows])               optional
//!   for t in (load STARTS[g])..(load STARTS[g + 1]) carry acc {
//!     w = load VALUES[t * R]                                     [R]
//!     o = cast index (load OFFSETS[t * R])                       [R]
//!     acc = muladd(broadcast w, load X[at + o], acc)             [R, L]
//!   }
//!   acc = max acc, lo; acc = min acc, hi                         optional, constants
//!   store C[at + rows * stride], lanes
//! }
//! ```

use super::build::KernelBuilder;
use super::contraction::Facts;
use super::pattern::{Bindings, unify};
use super::*;
pub use lapidary_abi::kernel::SPARSE_SHAPES;

/// Rows of a tensor: `base + row * stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Buffer of `f32`.
    pub buf: Buf,
    /// First element (scalar index).
    pub base: Var,
    /// Elements between rows (scalar index).
    pub stride: Var,
}

/// A packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// `f32` `[entry][R]`.
    pub values: Buf,
    /// `u16` `[entry][R]`: elements from the panel's start.
    pub offsets: Buf,
    /// `u32` `[groups + 1]`.
    pub starts: Buf,
    /// `u32` `[group][R]`.
    pub rows: Buf,
}

/// What [`sparse()`] computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseTile {
    /// Position in [`SPARSE_SHAPES`].
    pub shape: usize,
    /// The matrix.
    pub matrix: Packed,
    /// First group.
    pub first: Var,
    /// End of the groups.
    pub end: Var,
    /// The panel: a buffer of `f32` and its first element.
    pub x: (Buf, Var),
    /// What sums start from.
    pub init: Option<Rows>,
    /// A number for each row: buffer and first element.
    pub bias: Option<(Buf, Var)>,
    /// Lower bound.
    pub lo: Option<f32>,
    /// Upper bound.
    pub hi: Option<f32>,
    /// The result.
    pub c: Rows,
    /// Lanes of `init` and `c` that exist; all if `None`.
    pub cols: Option<Var>,
}

/// Writes the canonical loop.
pub fn sparse(b: &mut KernelBuilder, tile: SparseTile) {
    let (r, lanes) = SPARSE_SHAPES[tile.shape];
    let (r, shape) = (r as u32, [r as u32, lanes as u32]);
    let number = TileElem::Elem(ElemType::F32);
    let whole = || vec![Axis::stride(1)];
    let of_rows = |at: Var| {
        let columns = Axis {
            valid: tile.cols,
            ..Axis::stride(1)
        };
        vec![Axis::offsets(at), columns]
    };
    b.for_loop(tile.first, tile.end, 1, &[], |b, g, _| {
        let in_group = b.index(i64::from(r));
        let at = b.binary(Binary::Mul, g, in_group);
        let rows = b.load(tile.matrix.rows, at, &[r], whole());
        let rows = b.cast(rows, TileElem::Index);
        let ty = TileType {
            elem: number,
            shape: shape.to_vec(),
        };
        let mut acc = match tile.init {
            Some(from) => {
                let at = b.binary(Binary::Mul, rows, from.stride);
                b.load(from.buf, from.base, &shape, of_rows(at))
            }
            None => b.constant(ty.clone(), Literal::Float(0.0)),
        };
        if let Some((buf, base)) = tile.bias {
            let bias = b.load(buf, base, &[r], vec![Axis::offsets(rows)]);
            let bias = b.broadcast(bias, &shape, 1);
            acc = b.binary(Binary::Add, acc, bias);
        }
        let one = b.index(1);
        let next = b.binary(Binary::Add, g, one);
        let [begin, end] = [g, next].map(|at| {
            let start = b.load(tile.matrix.starts, at, &[], vec![]);
            b.cast(start, TileElem::Index)
        });
        acc = b.for_loop(begin, end, 1, &[acc], |b, t, acc| {
            let at = b.binary(Binary::Mul, t, in_group);
            let value = b.load(tile.matrix.values, at, &[r], whole());
            let offset = b.load(tile.matrix.offsets, at, &[r], whole());
            let offset = b.cast(offset, TileElem::Index);
            let axes = vec![Axis::offsets(offset), Axis::stride(1)];
            let x = b.load(tile.x.0, tile.x.1, &shape, axes);
            let value = b.broadcast(value, &shape, 1);
            vec![b.mul_add(value, x, acc[0])]
        })[0];
        for (bound, f) in [(tile.lo, Binary::Max), (tile.hi, Binary::Min)] {
            if let Some(bound) = bound {
                let bound = b.constant(ty.clone(), Literal::Float(f64::from(bound)));
                acc = b.binary(f, acc, bound);
            }
        }
        let at = b.binary(Binary::Mul, rows, tile.c.stride);
        b.store(tile.c.buf, tile.c.base, of_rows(at), acc);
        vec![]
    });
}

/// Recognises what [`sparse()`] writes.
pub fn recognise(facts: &Facts, stmt: &Stmt) -> Option<SparseTile> {
    let Op::For { body, carried, .. } = &stmt.op else {
        return None;
    };
    // What the form certainly has, and which of its parts are there.
    let Op::Store { x, axes, .. } = &body.last()?.op else {
        return None;
    };
    let [_, columns] = &axes[..] else { return None };
    let elem = facts.ty(*x);
    let shape = SPARSE_SHAPES
        .iter()
        .position(|&(r, lanes)| elem.shape == [r as u32, lanes as u32])?;
    let inner = body.iter().position(|s| s.op.bodies().next().is_some())?;
    if !carried.is_empty() || elem.elem != TileElem::Elem(ElemType::F32) {
        return None;
    }
    let before = &body[..inner];
    let loads = |s: &&Stmt| matches!(s.op, Op::Load { .. });
    let tiles = |s: &Stmt| s.results.iter().any(|&v| facts.ty(v).shape.len() == 2);
    let init = before.iter().filter(loads).any(tiles);
    let bias = before
        .iter()
        .any(|s| matches!(s.op, Op::Broadcast { axis: 1, .. }));
    let bound = |f: Binary| {
        body[inner..].iter().find_map(|s| match s.op {
            Op::Binary(g, _, bound) if g == f => facts.float(bound),
            _ => None,
        })
    };
    let (lo, hi) = (bound(Binary::Max), bound(Binary::Min));

    let mut b = KernelBuilder::new("pattern");
    let mut buf = |elem| b.buffer("", elem, true);
    let matrix = Packed {
        values: buf(ElemType::F32),
        offsets: buf(ElemType::U16),
        starts: buf(ElemType::U32),
        rows: buf(ElemType::U32),
    };
    let [x, from, added, c] = [(); 4].map(|()| buf(ElemType::F32));
    let mut var = || b.var(TileType::index());
    let rows = |buf, base, stride| Rows { buf, base, stride };
    let pattern = SparseTile {
        shape,
        matrix,
        first: var(),
        end: var(),
        x: (x, var()),
        init: init.then(|| rows(from, var(), var())),
        bias: bias.then(|| (added, var())),
        lo: lo.map(|v| v as f32),
        hi: hi.map(|v| v as f32),
        c: rows(c, var(), var()),
        cols: columns.valid.map(|_| var()),
    };
    sparse(&mut b, pattern);
    let found = unify(&b.finish(), facts.kernel(), std::slice::from_ref(stmt))?;
    rename(&pattern, &found)
}

fn rename(tile: &SparseTile, found: &Bindings) -> Option<SparseTile> {
    let rows = |r: Rows| {
        Some(Rows {
            buf: found.buf(r.buf)?,
            base: found.var(r.base)?,
            stride: found.var(r.stride)?,
        })
    };
    let at = |(buf, base): (Buf, Var)| Some((found.buf(buf)?, found.var(base)?));
    let matrix = Packed {
        values: found.buf(tile.matrix.values)?,
        offsets: found.buf(tile.matrix.offsets)?,
        starts: found.buf(tile.matrix.starts)?,
        rows: found.buf(tile.matrix.rows)?,
    };
    Some(SparseTile {
        matrix,
        first: found.var(tile.first)?,
        end: found.var(tile.end)?,
        x: at(tile.x)?,
        init: tile.init.map_or(Some(None), |r| rows(r).map(Some))?,
        bias: tile.bias.map_or(Some(None), |b| at(b).map(Some))?,
        c: rows(tile.c)?,
        cols: tile.cols.map_or(Some(None), |v| found.var(v).map(Some))?,
        ..*tile
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        for shape in 0..SPARSE_SHAPES.len() {
            for parts in 0..32u32 {
                let has = |bit: u32| parts >> bit & 1 == 1;
                let mut b = KernelBuilder::new("k");
                let other = b.buffer("other", ElemType::F32, false);
                let c = b.buffer("c", ElemType::F32, true);
                let matrix = Packed {
                    starts: b.buffer("starts", ElemType::U32, false),
                    rows: b.buffer("rows", ElemType::U32, false),
                    values: b.buffer("values", ElemType::F32, false),
                    offsets: b.buffer("offsets", ElemType::U16, false),
                };
                let x = b.buffer("x", ElemType::F32, false);
                let [zero, base, stride, end] = [0, 7, 100, 3].map(|v| b.index(v));
                let tile = SparseTile {
                    shape,
                    matrix,
                    first: zero,
                    end,
                    x: (x, base),
                    init: has(0).then_some(Rows {
                        buf: other,
                        base,
                        stride,
                    }),
                    bias: has(1).then_some((other, base)),
                    lo: has(2).then_some(-1.0),
                    hi: has(3).then_some(2.5),
                    c: Rows {
                        buf: c,
                        base: zero,
                        stride,
                    },
                    cols: has(4).then_some(end),
                };
                sparse(&mut b, tile);
                let kernel = b.finish();
                super::super::verify::verify(&kernel).expect("valid");
                let facts = Facts::new(&kernel);
                let last = kernel.body.last().expect("the loop");
                assert_eq!(recognise(&facts, last), Some(tile), "{parts:b}");
            }
        }
    }
}
