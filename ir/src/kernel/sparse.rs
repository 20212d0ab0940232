//! Rows of a sparse matrix times a panel: the canonical loop, written and recognised.
//!
//! The matrix is cut into groups of `R` rows that have equally many entries (sorted by it when it is packed), so that
//! a group is one loop without branches. The panel's `L` lanes are tokens or pixels; see [`Form`] for `(R, L)`. Of numbers
//! it is
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
//! Entries of codes are four, of consecutive inputs, and the panel has these beside each other: `X[(at + o) * 4 + q]`. Sums
//! are `i32`, without bias and bounds, and the loop over `t` is
//!
//! ```text
//!     o = mul (cast index (load OFFSETS[t * R])), 4              [R]
//!     for each q of 0..4, one after the other:
//!       w = cast i32 (load VALUES[t * R * 4 + q], stride 4)      [R]
//!       x = cast i32 (load X[at * 4 + q + o], stride 4)          [R, L]
//!       acc = add acc, mul(broadcast w, x)
//! ```

use super::build::KernelBuilder;
use super::call::{Call, Operand, fields};
use super::contraction::Facts;
use super::pattern::{Bindings, tile_loop, unify};
use super::*;
pub use lapidary_abi::kernel::SPARSE_SHAPES;
use lapidary_abi::kernel::{Import, SPARSE_LANES_I8, SPARSE_ROWS_I8, SparseF32, SparseI8};

/// What is multiplied, and how many rows and lanes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Numbers: a position in [`SPARSE_SHAPES`].
    Numbers(usize),
    /// Codes: so many lanes, a multiple of 16 up to [`SPARSE_LANES_I8`]; [`SPARSE_ROWS_I8`] rows.
    Codes(u32),
}

impl Form {
    /// Rows of a group, and lanes.
    pub fn shape(self) -> [u32; 2] {
        match self {
            Form::Numbers(at) => {
                let (rows, lanes) = SPARSE_SHAPES[at];
                [rows as u32, lanes as u32]
            }
            Form::Codes(lanes) => [SPARSE_ROWS_I8 as u32, lanes],
        }
    }

    /// Element types of values, panel and sums.
    pub fn elems(self) -> [ElemType; 3] {
        match self {
            Form::Numbers(_) => [ElemType::F32; 3],
            Form::Codes(_) => [ElemType::I8, ElemType::U8, ElemType::I32],
        }
    }

    /// The form that a tile of sums has.
    fn of(sums: &TileType) -> Option<Form> {
        let shape = <[u32; 2]>::try_from(&sums.shape[..]).ok()?;
        let numbers = (0..SPARSE_SHAPES.len()).map(Form::Numbers);
        let codes = (16..=SPARSE_LANES_I8 as u32).step_by(16).map(Form::Codes);
        numbers
            .chain(codes)
            .find(|f| f.shape() == shape && sums.elem == TileElem::Elem(f.elems()[2]))
    }
}

/// Rows of a tensor: `base + row * stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Buffer of `f32`, or of `i32` for codes.
    pub buf: Buf,
    /// First element (scalar index).
    pub base: Var,
    /// Elements between rows (scalar index).
    pub stride: Var,
}

/// A packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// `f32` `[entry][R]`, or `i8` `[entry][R][4]`.
    pub values: Buf,
    /// `u16` `[entry][R]`: elements, or fours of codes, from the panel's start.
    pub offsets: Buf,
    /// `u32` `[groups + 1]`.
    pub starts: Buf,
    /// `u32` `[group][R]`.
    pub rows: Buf,
}

/// What [`sparse()`] computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseTile {
    /// What is multiplied.
    pub form: Form,
    /// The matrix.
    pub matrix: Packed,
    /// First group.
    pub first: Var,
    /// End of the groups.
    pub end: Var,
    /// The panel: a buffer of `f32`, or of `u8`, and its first element, or four of them.
    pub x: (Buf, Var),
    /// What sums start from.
    pub init: Option<Rows>,
    /// A number for each row: buffer and first element. Not for codes, as the bounds.
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
    let shape = tile.form.shape();
    let r = shape[0];
    let number = TileElem::Elem(tile.form.elems()[2]);
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
            None => {
                let zero = match tile.form {
                    Form::Numbers(_) => Literal::Float(0.0),
                    Form::Codes(_) => Literal::Int(0),
                };
                b.constant(ty.clone(), zero)
            }
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
            let offset = b.load(tile.matrix.offsets, at, &[r], whole());
            let offset = b.cast(offset, TileElem::Index);
            vec![match tile.form {
                Form::Numbers(_) => {
                    let value = b.load(tile.matrix.values, at, &[r], whole());
                    let axes = vec![Axis::offsets(offset), Axis::stride(1)];
                    let x = b.load(tile.x.0, tile.x.1, &shape, axes);
                    let value = b.broadcast(value, &shape, 1);
                    b.mul_add(value, x, acc[0])
                }
                Form::Codes(_) => fours(b, &tile, at, offset, acc[0]),
            }]
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

/// Adds the products of an entry of codes for each row of a group; `at` is the first of them, `offset` where they meet the
/// panel.
fn fours(b: &mut KernelBuilder, tile: &SparseTile, at: Var, offset: Var, acc: Var) -> Var {
    let shape = tile.form.shape();
    let four = b.index(4);
    let [at, panel, offset] = [at, tile.x.1, offset].map(|v| b.binary(Binary::Mul, v, four));
    let sum = TileElem::Elem(ElemType::I32);
    (0..4).fold(acc, |acc, q| {
        let q = b.index(q);
        let [at, panel] = [at, panel].map(|v| b.binary(Binary::Add, v, q));
        let value = b.load(tile.matrix.values, at, &shape[..1], vec![Axis::stride(4)]);
        let value = b.cast(value, sum);
        let value = b.broadcast(value, &shape, 1);
        let axes = vec![Axis::offsets(offset), Axis::stride(4)];
        let x = b.load(tile.x.0, panel, &shape, axes);
        let x = b.cast(x, sum);
        let product = b.binary(Binary::Mul, value, x);
        b.binary(Binary::Add, acc, product)
    })
}

impl SparseTile {
    /// The call of a micro-kernel that computes it.
    pub fn call(&self) -> Call {
        let [rows, lanes] = self.form.shape().map(i64::from);
        let of = |rows: Option<Rows>| match rows {
            Some(r) => (
                Operand::Element(r.buf, r.base, 1),
                Operand::Scalar(r.stride),
            ),
            None => (Operand::Null, Operand::Index(0)),
        };
        let ((init, init_stride), (c, c_stride)) = (of(self.init), of(Some(self.c)));
        let matrix = self.matrix;
        let [values, offsets] = [matrix.values, matrix.offsets].map(Operand::Start);
        let starts = Operand::Element(matrix.starts, self.first, 1);
        let of_rows = Operand::Element(matrix.rows, self.first, rows);
        let groups = Operand::Count(self.first, self.end);
        let cols = Operand::Present(self.cols, lanes);
        match self.form {
            Form::Numbers(shape) => Call {
                import: Import::SparseF32,
                bytes: size_of::<SparseF32>(),
                fields: fields!(SparseF32 {
                    x: Operand::Element(self.x.0, self.x.1, 1),
                    values: values,
                    offsets: offsets,
                    starts: starts,
                    rows: of_rows,
                    bias: Operand::maybe(self.bias),
                    init: init,
                    c: c,
                    init_stride: init_stride,
                    c_stride: c_stride,
                    groups: groups,
                    cols: cols,
                    shape: Operand::Int(shape as i64),
                    lo: Operand::Float(self.lo.unwrap_or(f32::NEG_INFINITY)),
                    hi: Operand::Float(self.hi.unwrap_or(f32::INFINITY)),
                }),
            },
            Form::Codes(_) => Call {
                import: Import::SparseI8,
                bytes: size_of::<SparseI8>(),
                fields: fields!(SparseI8 {
                    x: Operand::Element(self.x.0, self.x.1, 4),
                    values: values,
                    offsets: offsets,
                    starts: starts,
                    rows: of_rows,
                    init: init,
                    c: c,
                    init_stride: init_stride,
                    c_stride: c_stride,
                    groups: groups,
                    cols: cols,
                }),
            },
        }
    }
}

/// Recognises what [`sparse()`] writes.
pub fn recognise(facts: &Facts, stmt: &Stmt) -> Option<SparseTile> {
    let Op::For { body, carried, .. } = &stmt.op else {
        return None;
    };
    // What the form certainly has, and which of its parts are there.
    let (x, columns, inner) = tile_loop(body)?;
    let form = Form::of(facts.ty(x))?;
    if !carried.is_empty() {
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
    let [of_values, of_x, of_sums] = form.elems();
    let matrix = Packed {
        values: buf(of_values),
        offsets: buf(ElemType::U16),
        starts: buf(ElemType::U32),
        rows: buf(ElemType::U32),
    };
    let x = buf(of_x);
    let [from, added, c] = [(); 3].map(|()| buf(of_sums));
    let mut var = || b.var(TileType::index());
    let rows = |buf, base, stride| Rows { buf, base, stride };
    let pattern = SparseTile {
        form,
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
        let numbers = (0..SPARSE_SHAPES.len()).map(Form::Numbers);
        for form in numbers.chain([16, 48, 64].map(Form::Codes)) {
            let [of_values, of_x, of_sums] = form.elems();
            for parts in 0..32u32 {
                let has = |bit: u32| parts >> bit & 1 == 1;
                if matches!(form, Form::Codes(_)) && (has(1) || has(2) || has(3)) {
                    continue;
                }
                let mut b = KernelBuilder::new("k");
                let other = b.buffer("other", of_sums, false);
                let c = b.buffer("c", of_sums, true);
                let matrix = Packed {
                    starts: b.buffer("starts", ElemType::U32, false),
                    rows: b.buffer("rows", ElemType::U32, false),
                    values: b.buffer("values", of_values, false),
                    offsets: b.buffer("offsets", ElemType::U16, false),
                };
                let x = b.buffer("x", of_x, false);
                let [zero, base, stride, end] = [0, 7, 100, 3].map(|v| b.index(v));
                let tile = SparseTile {
                    form,
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
                assert_eq!(recognise(&facts, last), Some(tile), "{form:?} {parts:b}");
            }
        }
    }
}
