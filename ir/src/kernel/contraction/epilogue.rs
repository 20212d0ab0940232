//! What follows a contraction, written and recognised side by side.
//!
//! The chain, all parts optional but the store:
//!
//! ```text
//! x = acc
//! i32 accumulators only, all or nothing but the first line:
//!   x = sub x, mul(broadcast(load sums), broadcast zero)
//!   x = mul (cast f32 x), broadcast(load scale)
//! x = add x, broadcast(load bias)          a row of [32], repeated along axis 0
//! x = add x, load residual                 [rows, 32]
//! x = max x, constant;  x = min x, constant
//! x = cast (add (cast i32 (round x)), constant)        to u8 or i8
//! store x
//! ```
//! Each value in it has one use, and between the loop and the store there is no other loop, branch or store.

use super::super::build::KernelBuilder;
use super::super::*;
use super::{Facts, RowsAt};
use lapidary_abi::kernel::{RESULT_CODE, RESULT_F32, RESULT_I32};

/// What follows a contraction; the parts apply in this order.
#[derive(Clone, Debug)]
pub struct Epilogue {
    /// How sums of codes become numbers; `None` for `f32` accumulators, and where sums are the result.
    pub scaled: Option<Scaled>,
    /// A row of biases, as long as the tile's: buffer and first element.
    pub bias: Option<(Buf, Var)>,
    /// A tile to add.
    pub residual: Option<(Buf, RowsAt)>,
    /// Lower bound (0 for a rectifier).
    pub lo: Option<f32>,
    /// Upper bound.
    pub hi: Option<f32>,
    /// The 8-bit type of the results' codes and the code of zero there; `None`: the results are numbers. The bounds must
    /// keep the code in the type's range.
    pub code: Option<(ElemType, i64)>,
    /// Result buffer.
    pub c: Buf,
    /// Where in it; `rows.valid` says how many rows exist.
    pub c_at: RowsAt,
    /// How many columns exist; all if `None`.
    pub cols: Option<Var>,
}

/// Sums of products of codes as numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled {
    /// The code of zero in A (an `i32` scalar), and the sums of B's columns: buffer and first element. `None` where the
    /// code is 0.
    pub zero: Option<(Var, Buf, Var)>,
    /// A row of factors: buffer and first element.
    pub scale: (Buf, Var),
}

/// Writes the epilogue that a micro-kernel takes over. Anything else may be written by hand instead.
pub fn epilogue(b: &mut KernelBuilder, acc: Var, e: Epilogue) {
    let cols = || Axis {
        valid: e.cols,
        ..Axis::stride(1)
    };
    let shape = b.ty(acc).shape;
    let row = |b: &mut KernelBuilder, (buf, base)| {
        let row = b.load(buf, base, &shape[1..], vec![cols()]);
        b.broadcast(row, &shape, 0)
    };
    let number = TileElem::Elem(ElemType::F32);
    let mut x = acc;
    if let Some(scaled) = e.scaled {
        if let Some((zero, sums, base)) = scaled.zero {
            let sums = row(b, (sums, base));
            let zero = b.broadcast(zero, &shape, 0);
            let more = b.binary(Binary::Mul, sums, zero);
            x = b.binary(Binary::Sub, x, more);
        }
        x = b.cast(x, number);
        let scale = row(b, scaled.scale);
        x = b.binary(Binary::Mul, x, scale);
    }
    if let Some(bias) = e.bias {
        let tile = row(b, bias);
        x = b.binary(Binary::Add, x, tile);
    }
    if let Some((buf, at)) = e.residual {
        let tile = b.load(buf, at.base, &shape, vec![at.rows, cols()]);
        x = b.binary(Binary::Add, x, tile);
    }
    for (bound, f) in [(e.lo, Binary::Max), (e.hi, Binary::Min)] {
        if let Some(bound) = bound {
            let ty = b.ty(x);
            let bound = b.constant(ty, Literal::Float(f64::from(bound)));
            x = b.binary(f, x, bound);
        }
    }
    if let Some((elem, zero)) = e.code {
        let whole = b.unary(Unary::RoundEven, x);
        let whole = b.cast(whole, TileElem::Elem(ElemType::I32));
        let ty = b.ty(whole);
        let zero = b.constant(ty, Literal::Int(zero));
        let code = b.binary(Binary::Add, whole, zero);
        x = b.cast(code, TileElem::Elem(elem));
    }
    b.store(e.c, e.c_at.base, vec![e.c_at.rows.clone(), cols()], x);
}

/// A recognised epilogue.
#[derive(Debug)]
pub struct EpilogueMatch<'k> {
    /// Position of the store among the statements after the loop.
    pub store: usize,
    /// Positions of the statements that the micro-kernel replaces, ascending, the store included.
    pub replaced: Vec<usize>,
    /// How sums become numbers.
    pub scaled: Option<Scaled>,
    /// Biases: buffer and first element.
    pub bias: Option<(Buf, Var)>,
    /// Residual: buffer, base, row axis (a stride, without mask).
    pub residual: Option<(Buf, Var, &'k Axis)>,
    /// Lower bound.
    pub lo: Option<f32>,
    /// Upper bound.
    pub hi: Option<f32>,
    /// Type of the results' codes and the code of zero there.
    pub code: Option<(ElemType, i64)>,
    /// Result buffer.
    pub c: Buf,
    /// Its base.
    pub c_base: Var,
    /// Its row axis (a stride, without mask).
    pub c_rows: &'k Axis,
    /// Columns that exist.
    pub cols: Option<Var>,
}

impl EpilogueMatch<'_> {
    /// What a micro-kernel is told of its result ([`GemmI8::result`](lapidary_abi::kernel::GemmI8)), whose sums are of this
    /// type, and the code of zero there.
    pub fn result(&self, sums: ElemType) -> (u32, i64) {
        match self.code {
            Some((_, zero)) => (RESULT_CODE, zero),
            None if sums == ElemType::I32 && self.scaled.is_none() => (RESULT_I32, 0),
            None => (RESULT_F32, 0),
        }
    }
}

/// Recognises what [`epilogue`] writes among the statements after a contraction that defines `acc`.
pub fn recognise_epilogue<'k>(
    facts: &Facts<'k>,
    rest: &'k [Stmt],
    acc: Var,
) -> Option<EpilogueMatch<'k>> {
    let store = rest
        .iter()
        .position(|s| matches!(s.op, Op::Store { .. }) || s.op.bodies().next().is_some())?;
    let Op::Store { buf, base, axes, x } = &rest[store].op else {
        return None;
    };
    let [c_rows, c_cols] = &axes[..] else {
        return None;
    };
    if !plain_rows(c_rows) || c_cols.at != At::Stride(1) || c_cols.mask.is_some() {
        return None;
    }
    let mut found = EpilogueMatch {
        store,
        replaced: vec![store],
        scaled: None,
        bias: None,
        residual: None,
        lo: None,
        hi: None,
        code: None,
        c: *buf,
        c_base: *base,
        c_rows,
        cols: c_cols.valid,
    };
    let at = |v: Var| rest[..store].iter().position(|s| s.results.contains(&v));
    let sums = facts.ty(acc).elem == TileElem::Elem(ElemType::I32);
    // Walk the chain from the store back to the accumulator.
    let mut x = *x;
    found.code = code_of(facts, &mut x, &at, &mut found);
    while x != acc {
        if facts.uses(x) != 1 || found.replaced.len() > MOST {
            return None;
        }
        if sums && let Some((rest, scaled)) = scaled(facts, x, acc, &at, &mut found) {
            found.scaled = Some(scaled);
            x = rest;
            break;
        }
        let Op::Binary(f, left, right) = facts.def(x)? else {
            return None;
        };
        found.replaced.push(at(x)?);
        let unbounded = found.lo.is_none() && found.bias.is_none() && found.residual.is_none();
        match f {
            Binary::Min if unbounded && found.hi.is_none() => {
                found.hi = Some(facts.float(*right)? as f32);
                x = *left;
            }
            Binary::Max if unbounded => {
                found.lo = Some(facts.float(*right)? as f32);
                x = *left;
            }
            Binary::Add => x = addend(facts, &mut found, &at, *left, *right)?,
            _ => return None,
        }
    }
    // Sums are stored as they are, or become numbers.
    let as_sums = found.scaled.is_none() && found.replaced.len() == 1;
    if x != acc || facts.uses(acc) != 1 || sums && !as_sums && found.scaled.is_none() {
        return None;
    }
    found.replaced.sort_unstable();
    Some(found)
}

/// More statements than any chain has.
const MOST: usize = 24;

/// Takes the conversion to codes off the chain's end; `None` if there is none.
fn code_of(
    facts: &Facts,
    x: &mut Var,
    at: &impl Fn(Var) -> Option<usize>,
    found: &mut EpilogueMatch,
) -> Option<(ElemType, i64)> {
    let TileElem::Elem(elem @ (ElemType::U8 | ElemType::I8)) = facts.ty(*x).elem else {
        return None;
    };
    let Op::Cast(sum) = facts.def(*x)? else {
        return None;
    };
    let Op::Binary(Binary::Add, whole, zero) = facts.def(*sum)? else {
        return None;
    };
    let Op::Cast(round) = facts.def(*whole)? else {
        return None;
    };
    let Op::Unary(Unary::RoundEven, number) = facts.def(*round)? else {
        return None;
    };
    let (zero, chain) = (facts.int(*zero)?, [*x, *sum, *whole, *round]);
    let is_i32 = facts.ty(*whole).elem == TileElem::Elem(ElemType::I32);
    if !is_i32 || chain.iter().any(|&v| facts.uses(v) != 1) {
        return None;
    }
    for v in chain {
        found.replaced.push(at(v)?);
    }
    *x = *number;
    Some((elem, zero))
}

/// Reads how `x` is made of sums: what they are, and the factors.
fn scaled(
    facts: &Facts,
    x: Var,
    acc: Var,
    at: &impl Fn(Var) -> Option<usize>,
    found: &mut EpilogueMatch,
) -> Option<(Var, Scaled)> {
    let Op::Binary(Binary::Mul, cast, scale) = facts.def(x)? else {
        return None;
    };
    let Op::Cast(sum) = facts.def(*cast)? else {
        return None;
    };
    let (row, scale_at) = row_of(facts, *scale, found.cols)?;
    if !is_f32(facts, row) || !is_f32(facts, *cast) || facts.uses(*cast) != 1 {
        return None;
    }
    let mut taken = vec![x, *cast, *scale, row];
    let mut zero = None;
    let mut rest = *sum;
    if rest != acc {
        let Op::Binary(Binary::Sub, left, more) = facts.def(rest)? else {
            return None;
        };
        let Op::Binary(Binary::Mul, sums, point) = facts.def(*more)? else {
            return None;
        };
        let Op::Broadcast { x: point_of, .. } = facts.def(*point)? else {
            return None;
        };
        let (row, (buf, base)) = row_of(facts, *sums, found.cols)?;
        let i32s = [row, *point_of]
            .iter()
            .all(|&v| facts.ty(v).elem == TileElem::Elem(ElemType::I32));
        if !i32s || [rest, *more, *point].iter().any(|&v| facts.uses(v) != 1) {
            return None;
        }
        zero = Some((*point_of, buf, base));
        taken.extend([rest, *more, *sums, row, *point]);
        rest = *left;
    }
    for v in taken {
        found.replaced.push(at(v)?);
    }
    let scaled = Scaled {
        zero,
        scale: scale_at,
    };
    Some((rest, scaled))
}

/// The row that a tile repeats, and where it is loaded from.
fn row_of(facts: &Facts, tile: Var, cols: Option<Var>) -> Option<(Var, (Buf, Var))> {
    let Op::Broadcast { x: row, axis: 0 } = facts.def(tile)? else {
        return None;
    };
    let Op::Load { buf, base, axes } = facts.def(*row)? else {
        return None;
    };
    let [axis] = &axes[..] else { return None };
    let once = facts.uses(tile) == 1 && facts.uses(*row) == 1;
    (once && cols_match(axis, cols)).then_some((*row, (*buf, *base)))
}

fn cols_match(axis: &Axis, cols: Option<Var>) -> bool {
    axis.at == At::Stride(1) && axis.mask.is_none() && (axis.valid.is_none() || axis.valid == cols)
}

fn plain_rows(axis: &Axis) -> bool {
    axis.mask.is_none() && !matches!(axis.at, At::Offsets(_))
}

/// Notes which operand is bias or residual; the other one continues the chain.
fn addend<'k>(
    facts: &Facts<'k>,
    found: &mut EpilogueMatch<'k>,
    at: &impl Fn(Var) -> Option<usize>,
    left: Var,
    right: Var,
) -> Option<Var> {
    if facts.uses(right) != 1 {
        return None;
    }
    match facts.def(right)? {
        Op::Broadcast { .. } if found.bias.is_none() => {
            let (row, from) = row_of(facts, right, found.cols)?;
            if !is_f32(facts, row) {
                return None;
            }
            found.bias = Some(from);
            found.replaced.extend([at(right)?, at(row)?]);
        }
        Op::Load { buf, base, axes } if found.residual.is_none() && is_f32(facts, right) => {
            let [rows, cols] = &axes[..] else {
                return None;
            };
            let same_rows = rows.valid.is_none() || rows.valid == found.c_rows.valid;
            if !plain_rows(rows) || !same_rows || !cols_match(cols, found.cols) {
                return None;
            }
            found.residual = Some((*buf, *base, rows));
            found.replaced.push(at(right)?);
        }
        _ => return None,
    }
    Some(left)
}

fn is_f32(facts: &Facts, var: Var) -> bool {
    facts.ty(var).elem == TileElem::Elem(ElemType::F32)
}
