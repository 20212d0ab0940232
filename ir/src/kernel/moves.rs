//! Gathered columns: the canonical loop that fills and empties panels, written and recognised.
//!
//! ```text
//! for i in 0..rows {
//!   x = load SRC[src_base + i * src_stride], lanes: offsets `at`, mask?     [W]
//!   store DST[dst_base + i * dst_stride], stride 1, valid?
//! }
//! ```
//! Elements are `f32`, or fours of codes, of which every index counts the fours: `[W, 4]` codes, whose second axis is of
//! stride 1.

use super::build::KernelBuilder;
use super::contraction::Facts;
use super::pattern::{loop_alone, unify};
use super::*;
use lapidary_abi::kernel::MOVE_COLS;

/// Most columns.
pub const MOST: u32 = MOVE_COLS as u32;

/// What [`moves()`] copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Elements are fours of codes (`u8`), else `f32`.
    pub fours: bool,
    /// Source: buffer, first element, elements between rows.
    pub src: (Buf, Var, Var),
    /// Where columns are from there: an index tile `[W]`, `W <= MOST`.
    pub at: Var,
    /// Which columns exist (a `bool` tile `[W]`): the others are zero.
    pub mask: Option<Var>,
    /// Result: buffer, first element, elements between rows.
    pub dst: (Buf, Var, Var),
    /// Rows.
    pub rows: Var,
    /// Columns that are written; all if `None`.
    pub cols: Option<Var>,
}

/// Writes the canonical loop.
pub fn moves(b: &mut KernelBuilder, m: Move) {
    let mut shape = b.ty(m.at).shape;
    let four = if m.fours { 4 } else { 1 };
    let zero = b.index(0);
    b.for_loop(zero, m.rows, 1, &[], |b, i, _| {
        let four_var = b.index(four);
        let elements = |b: &mut KernelBuilder, v: Var| match m.fours {
            true => b.binary(Binary::Mul, v, four_var),
            false => v,
        };
        let [from, to] = [m.src, m.dst].map(|(_, base, stride)| {
            let skip = b.binary(Binary::Mul, i, stride);
            let at = b.binary(Binary::Add, base, skip);
            elements(b, at)
        });
        let columns = elements(b, m.at);
        let (mut of_load, mut of_store) = (
            vec![Axis {
                mask: m.mask,
                ..Axis::offsets(columns)
            }],
            vec![Axis {
                valid: m.cols,
                ..Axis::stride(four)
            }],
        );
        if m.fours {
            shape.push(4);
            of_load.push(Axis::stride(1));
            of_store.push(Axis::stride(1));
        }
        let x = b.load(m.src.0, from, &shape, of_load);
        b.store(m.dst.0, to, of_store, x);
        vec![]
    });
}

/// Recognises what [`moves()`] writes: the loop, after the statement that defines its first index.
pub fn recognise(facts: &Facts, stmt: &Stmt) -> Option<Move> {
    let Op::For { begin, body, .. } = &stmt.op else {
        return None;
    };
    let Op::Store { x, axes, .. } = &body.last()?.op else {
        return None;
    };
    let Op::Load { axes: of_load, .. } = facts.def(*x)? else {
        return None;
    };
    let (fours, width) = match facts.ty(*x).shape[..] {
        [width] => (false, width),
        [width, 4] => (true, width),
        _ => return None,
    };
    let ([to, ..], [from, ..]) = (&axes[..], &of_load[..]) else {
        return None;
    };
    if width > MOST || facts.int(*begin) != Some(0) {
        return None;
    }
    let elem = if fours { ElemType::U8 } else { ElemType::F32 };
    let mut b = KernelBuilder::new("pattern");
    let (src, dst) = (b.buffer("", elem, true), b.buffer("", elem, true));
    let mut var = || b.var(TileType::index());
    let [src_at, src_stride, dst_at, dst_stride, rows] = [(); 5].map(|()| var());
    let cols = to.valid.map(|_| var());
    let tile = |elem| TileType {
        elem,
        shape: vec![width],
    };
    let pattern = Move {
        fours,
        src: (src, src_at, src_stride),
        at: b.var(tile(TileElem::Index)),
        mask: from
            .mask
            .map(|_| b.var(tile(TileElem::Elem(ElemType::Bool)))),
        dst: (dst, dst_at, dst_stride),
        rows,
        cols,
    };
    moves(&mut b, pattern);
    let stmts = std::slice::from_ref(stmt);
    let found = unify(&loop_alone(b), facts.kernel(), stmts)?;
    let side = |(buf, base, stride): (Buf, Var, Var)| {
        Some((found.buf(buf)?, found.var(base)?, found.var(stride)?))
    };
    let maybe = |v: Option<Var>| v.map_or(Some(None), |v| found.var(v).map(Some));
    Some(Move {
        fours,
        src: side(pattern.src)?,
        at: found.var(pattern.at)?,
        mask: maybe(pattern.mask)?,
        dst: side(pattern.dst)?,
        rows: found.var(pattern.rows)?,
        cols: maybe(pattern.cols)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        let cases = [(false, false), (true, false), (true, true)];
        for ((masked, few), fours) in cases.into_iter().flat_map(|c| [(c, false), (c, true)]) {
            let mut b = KernelBuilder::new("k");
            let elem = if fours { ElemType::U8 } else { ElemType::F32 };
            let (src, dst) = (b.buffer("src", elem, false), b.buffer("dst", elem, true));
            let [base, stride, rows] = [1, 5, 9].map(|v| b.index(v));
            let at = b.iota(16);
            let mask = masked.then(|| b.binary(Binary::Lt, at, stride));
            let m = Move {
                fours,
                src: (src, base, stride),
                at,
                mask,
                dst: (dst, base, rows),
                rows,
                cols: few.then_some(stride),
            };
            moves(&mut b, m);
            let kernel = b.finish();
            super::super::verify::verify(&kernel).expect("valid");
            let facts = Facts::new(&kernel);
            assert_eq!(recognise(&facts, kernel.body.last().expect("it")), Some(m));
        }
    }
}
