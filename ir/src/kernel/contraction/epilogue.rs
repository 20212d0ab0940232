//! What follows a contraction, written and recognised side by side.
//!
//! The chain, all parts optional but the store:
//!
//! ```text
//! x = acc
//! i32 accumulators only, all or nothing but the first line; of sums of a window, the last:
//!   x = sub x, mul(broadcast(load sums), broadcast zero)
//!   x = mul (cast f32 x), broadcast(load scale)
//! x = add x, broadcast(load bias)          a row of [32], repeated along axis 0
//! x = add x, load residual                 [rows, 32]
//! x = max x, constant;  x = min x, constant
//! codes only, any number of times, with bounds that keep them in range:
//!   x = mul (round x), constant
//!   x = add x, broadcast(load row)
//!   x = add x, mul(cast f32 (load residual : u8), constant)
//!   x = max x, constant;  x = min x, constant
//! x = cast (add (cast i32 (round x)), constant)        to u8 or i8
//! store x
//! ```
//! Each value in it has one use, and between the loop and the store there is no other loop, branch or store. Codes may go
//! through a table: the store is to scratch memory then, and two loops follow, over its rows and over runs of their columns.

use super::super::build::KernelBuilder;
use super::super::*;
use super::{Facts, RowsAt, defined_in};
use lapidary_abi::kernel::{RESULT_CODE, RESULT_F32, RESULT_I32};

/// What follows a contraction; the parts apply in this order.
#[derive(Clone, Debug)]
pub struct Epilogue {
    /// How sums of codes become numbers; `None` for products of numbers, and where sums are the result.
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
    /// What codes go through before the last rounding.
    pub stages: Vec<Stage>,
    /// 256 codes, by the bits of a code; they are what `c` holds.
    pub table: Option<Buf>,
    /// Result buffer.
    pub c: Buf,
    /// Where in it; `rows.valid` says how many rows exist.
    pub c_at: RowsAt,
    /// How many columns exist; all if `None`.
    pub cols: Option<Var>,
}

/// An addition to codes: `clamp(round(x) * factor + row + residual * factor of it, lo, hi)`.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Of what was rounded.
    pub factor: f32,
    /// A row to add, as long as the tile's: buffer and first element.
    pub row: (Buf, Var),
    /// A tile of `u8` codes to add, and their factor.
    pub residual: Option<(Buf, RowsAt, f32)>,
    /// Lower bound.
    pub lo: f32,
    /// Upper bound.
    pub hi: f32,
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
    let clamp = |b: &mut KernelBuilder, mut x, lo, hi| {
        for (bound, f) in [(lo, Binary::Max), (hi, Binary::Min)] {
            if let Some(bound) = bound {
                x = with(b, f, x, bound);
            }
        }
        x
    };
    x = clamp(b, x, e.lo, e.hi);
    for stage in &e.stages {
        let whole = b.unary(Unary::RoundEven, x);
        x = with(b, Binary::Mul, whole, stage.factor);
        let tile = row(b, stage.row);
        x = b.binary(Binary::Add, x, tile);
        if let Some((buf, at, factor)) = &stage.residual {
            let tile = b.load(*buf, at.base, &shape, vec![at.rows.clone(), cols()]);
            let tile = b.cast(tile, number);
            let tile = with(b, Binary::Mul, tile, *factor);
            x = b.binary(Binary::Add, x, tile);
        }
        x = clamp(b, x, Some(stage.lo), Some(stage.hi));
    }
    if let Some((elem, zero)) = e.code {
        let whole = b.unary(Unary::RoundEven, x);
        let whole = b.cast(whole, TileElem::Elem(ElemType::I32));
        let ty = b.ty(whole);
        let zero = b.constant(ty, Literal::Int(zero));
        let code = b.binary(Binary::Add, whole, zero);
        x = b.cast(code, TileElem::Elem(elem));
    }
    let Some(table) = e.table else {
        return b.store(e.c, e.c_at.base, vec![e.c_at.rows.clone(), cols()], x);
    };
    let TileElem::Elem(elem) = b.ty(x).elem else {
        return;
    };
    let scratch = b.scratch(elem, shape[0] * shape[1]);
    let (zero, rows) = (b.index(0), e.c_at.rows.clone());
    let inside = Axis {
        at: At::Stride(i64::from(shape[1])),
        ..rows.clone()
    };
    b.store(scratch, zero, vec![inside, cols()], x);
    let least = |b: &mut KernelBuilder, all: u32, valid: Option<Var>| {
        let all = b.index(i64::from(all));
        valid.map_or(all, |valid| b.binary(Binary::Min, valid, all))
    };
    let (end, columns) = (least(b, shape[0], rows.valid), least(b, shape[1], e.cols));
    b.for_loop(zero, end, 1, &[], |b, row, _| {
        let width = b.index(i64::from(shape[1]));
        let from = b.binary(Binary::Mul, row, width);
        let stride = match rows.at {
            At::Stride(s) => b.index(s),
            At::DynStride(s) | At::Offsets(s) => s,
        };
        let skip = b.binary(Binary::Mul, row, stride);
        let to = b.binary(Binary::Add, e.c_at.base, skip);
        b.for_loop(zero, columns, RUN, &[], |b, column, _| {
            let at = b.binary(Binary::Add, from, column);
            let codes = b.load(scratch, at, &[RUN], vec![Axis::stride(1)]);
            let bits = b.cast(codes, TileElem::Elem(ElemType::U8));
            let bits = b.cast(bits, TileElem::Elem(ElemType::I64));
            let index = b.cast(bits, TileElem::Index);
            let found = b.load(table, zero, &[RUN], vec![Axis::offsets(index)]);
            let left = b.binary(Binary::Sub, columns, column);
            let at = b.binary(Binary::Add, to, column);
            b.store(e.c, at, vec![Axis::stride(1).valid(left)], found);
            vec![]
        });
        vec![]
    });
}

/// Codes that are looked up together.
const RUN: u32 = 16;

/// A tile with a constant.
fn with(b: &mut KernelBuilder, f: Binary, x: Var, constant: f32) -> Var {
    let ty = b.ty(x);
    let constant = b.constant(ty, Literal::Float(f64::from(constant)));
    b.binary(f, x, constant)
}

/// A recognised epilogue.
#[derive(Debug)]
pub struct EpilogueMatch<'k> {
    /// Position of the last statement among those after the loop: the store, or the loop that looks codes up.
    pub last: usize,
    /// Positions of the statements that the micro-kernel replaces, ascending, the last included.
    pub replaced: Vec<usize>,
    /// How sums become numbers.
    pub scaled: Option<Scaled>,
    /// Biases: buffer and first element.
    pub bias: Option<(Buf, Var)>,
    /// Residual: buffer, base, row axis (a stride, without mask).
    pub residual: Option<(Buf, Var, &'k Axis)>,
    /// What codes go through.
    pub stages: Vec<StageMatch<'k>>,
    /// What they are replaced by in the end.
    pub table: Option<Buf>,
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
    pub c_rows: Axis,
    /// Columns that exist.
    pub cols: Option<Var>,
}

/// A recognised [`Stage`].
#[derive(Debug)]
pub struct StageMatch<'k> {
    /// Of what was rounded.
    pub factor: f32,
    /// The row: buffer and first element.
    pub row: (Buf, Var),
    /// Residual: buffer, base, row axis (a stride, without mask), factor.
    pub residual: Option<(Buf, Var, &'k Axis, f32)>,
    /// Lower bound.
    pub lo: f32,
    /// Upper bound.
    pub hi: f32,
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
        last: store,
        replaced: vec![store],
        scaled: None,
        bias: None,
        residual: None,
        stages: vec![],
        table: None,
        lo: None,
        hi: None,
        code: None,
        c: *buf,
        c_base: *base,
        c_rows: c_rows.clone(),
        cols: c_cols.valid,
    };
    let at = |v: Var| rest[..store].iter().position(|s| s.results.contains(&v));
    let sums = facts.ty(acc).elem == TileElem::Elem(ElemType::I32);
    // Walk the chain from the store back to the accumulator.
    let mut x = *x;
    found.code = code_of(facts, &mut x, &at, &mut found);
    while found.code.is_some()
        && let Some((rest, stage, taken)) = stage_of(facts, x, &found)
    {
        for v in taken {
            found.replaced.push(at(v)?);
        }
        found.stages.insert(0, stage);
        x = rest;
    }
    while x != acc {
        if facts.uses(x) != 1 || found.replaced.len() > MOST * (1 + found.stages.len()) {
            return None;
        }
        if let Some((rest, scaled)) = scaled(facts, x, acc, &at, &mut found) {
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
    if facts.is_scratch(found.c) && found.code.is_some() {
        looked_up(facts, rest, &mut found);
    }
    found.replaced.sort_unstable();
    Some(found)
}

/// Reads a stage whose result is `x`: what it rounds, and the statements that it takes.
fn stage_of<'k>(
    facts: &Facts<'k>,
    x: Var,
    found: &EpilogueMatch<'k>,
) -> Option<(Var, StageMatch<'k>, Vec<Var>)> {
    let mut taken = vec![];
    let mut both = |v: Var, f: Binary| match facts.def(v)? {
        Op::Binary(g, a, b) if *g == f && facts.uses(v) == 1 => {
            taken.push(v);
            Some((*a, *b))
        }
        _ => None,
    };
    let (y, hi) = both(x, Binary::Min)?;
    let (y, lo) = both(y, Binary::Max)?;
    let (mut y, mut addend) = both(y, Binary::Add)?;
    let mut residual = None;
    if let Some((tile, factor)) = both(addend, Binary::Mul) {
        let Op::Cast(codes) = facts.def(tile)? else {
            return None;
        };
        let Op::Load { buf, base, axes } = facts.def(*codes)? else {
            return None;
        };
        let [rows, cols] = &axes[..] else {
            return None;
        };
        let same_rows = rows.valid.is_none() || rows.valid == found.c_rows.valid;
        let of_codes = facts.ty(*codes).elem == TileElem::Elem(ElemType::U8);
        let once = facts.uses(tile) == 1 && facts.uses(*codes) == 1;
        let plain = plain_rows(rows) && same_rows && cols_match(cols, found.cols);
        if !of_codes || !once || !plain {
            return None;
        }
        residual = Some((*buf, *base, rows, facts.float(factor)? as f32));
        (y, addend) = both(y, Binary::Add)?;
        taken.extend([tile, *codes]);
        return stage_with(facts, (y, addend), (lo, hi), residual, found, taken);
    }
    stage_with(facts, (y, addend), (lo, hi), residual, found, taken)
}

/// The rest of [`stage_of`]: the row that is added, the factor, the rounding.
fn stage_with<'k>(
    facts: &Facts<'k>,
    (scaled, addend): (Var, Var),
    (lo, hi): (Var, Var),
    residual: Option<(Buf, Var, &'k Axis, f32)>,
    found: &EpilogueMatch<'k>,
    mut taken: Vec<Var>,
) -> Option<(Var, StageMatch<'k>, Vec<Var>)> {
    let (row, from) = row_of(facts, addend, found.cols)?;
    let Op::Binary(Binary::Mul, whole, factor) = facts.def(scaled)? else {
        return None;
    };
    let Op::Unary(Unary::RoundEven, before) = facts.def(*whole)? else {
        return None;
    };
    if !is_f32(facts, row) || facts.uses(scaled) != 1 || facts.uses(*whole) != 1 {
        return None;
    }
    taken.extend([addend, row, scaled, *whole]);
    let stage = StageMatch {
        factor: facts.float(*factor)? as f32,
        row: from,
        residual,
        lo: facts.float(lo)? as f32,
        hi: facts.float(hi)? as f32,
    };
    Some((*before, stage, taken))
}

/// Reads the loops that take codes from scratch memory, through a table, to where the result is. If there are none the
/// result is in scratch memory.
fn looked_up<'k>(facts: &Facts<'k>, rest: &'k [Stmt], found: &mut EpilogueMatch<'k>) -> Option<()> {
    let At::Stride(width) = found.c_rows.at else {
        return None;
    };
    if facts.int(found.c_base) != Some(0) {
        return None;
    }
    let after = &rest[found.last + 1..];
    let outer = after.iter().position(|s| s.op.bodies().next().is_some())?;
    let stores = after[..outer]
        .iter()
        .any(|s| matches!(s.op, Op::Store { .. }));
    let (row, end, body) = plain_loop(facts, &after[outer], 1)?;
    let (inner, prefix) = body.split_last()?;
    let (column, columns, inside) = plain_loop(facts, inner, RUN)?;
    let Op::Store { buf, base, axes, x } = &inside.last()?.op else {
        return None;
    };
    let pure = |body: &[Stmt]| {
        body.iter().all(|s| {
            matches!(
                s.op,
                Op::Const(_) | Op::Binary(..) | Op::Cast(_) | Op::Load { .. }
            )
        })
    };
    if stores || !pure(prefix) || !pure(&inside[..inside.len() - 1]) {
        return None;
    }
    let Op::Load {
        buf: table,
        base: first,
        axes: by,
    } = facts.def(*x)?
    else {
        return None;
    };
    let [
        Axis {
            at: At::Offsets(index),
            valid: None,
            mask: None,
        },
    ] = by[..]
    else {
        return None;
    };
    let mut codes = index;
    for elem in [ElemType::I64, ElemType::U8] {
        let Op::Cast(of) = facts.def(codes)? else {
            return None;
        };
        if facts.ty(*of).elem != TileElem::Elem(elem) {
            return None;
        }
        codes = *of;
    }
    // The bits of signed codes are cast.
    if let Op::Cast(signed) = facts.def(codes)? {
        codes = *signed;
    }
    let Op::Load {
        buf: scratch,
        base: at,
        axes: run,
    } = facts.def(codes)?
    else {
        return None;
    };
    let from = facts.other_addend(*at, column)?;
    let row_at = |v: Var| match facts.def(v)? {
        Op::Binary(Binary::Mul, i, stride) if *i == row => Some(*stride),
        _ => None,
    };
    let to = facts.other_addend(*base, column)?;
    let Op::Binary(Binary::Add, c_base, skip) = facts.def(to)? else {
        return None;
    };
    let stride = row_at(*skip)?;
    let left = match axes[..] {
        [
            Axis {
                at: At::Stride(1),
                valid: Some(left),
                mask: None,
            },
        ] => left,
        _ => return None,
    };
    let all_left = matches!(facts.def(left)?,
        Op::Binary(Binary::Sub, end, i) if *end == columns && *i == column);
    let ends = |end: Var, all: i64, valid: Option<Var>| match (facts.def(end), valid) {
        (Some(Op::Binary(Binary::Min, v, most)), Some(valid)) => {
            *v == valid && facts.int(*most) == Some(all)
        }
        (_, None) => facts.int(end) == Some(all),
        _ => false,
    };
    let rows = i64::from(facts.scratch_len(found.c)?) / width.max(1);
    let outside = |v: Var| v != row && !defined_in(prefix, v);
    if *scratch != found.c
        || run[..] != [Axis::stride(1)]
        || facts.int(row_at(from)?) != Some(width)
        || facts.int(*first) != Some(0)
        || !all_left
        || !ends(columns, width, found.cols)
        || !ends(end, rows, found.c_rows.valid)
        || !outside(*c_base)
        || facts.int(stride).is_none() && !outside(stride)
        || facts.accesses(found.c) != 2
    {
        return None;
    }
    found.c_rows.at = facts.int(stride).map_or(At::DynStride(stride), At::Stride);
    (found.c, found.c_base, found.table) = (*buf, *c_base, Some(*table));
    found.last += 1 + outer;
    found.replaced.push(found.last);
    Some(())
}

/// Index, end and body of a loop that carries nothing, from 0 by this step.
fn plain_loop<'k>(facts: &Facts<'k>, stmt: &'k Stmt, by: u32) -> Option<(Var, Var, &'k [Stmt])> {
    match &stmt.op {
        Op::For {
            index,
            begin,
            end,
            step,
            carried,
            body,
            ..
        } if carried.is_empty() && *step == by && facts.int(*begin) == Some(0) => {
            Some((*index, *end, body))
        }
        _ => None,
    }
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
    if *cast == acc && is_f32(facts, acc) {
        let (row, scale_at) = row_of(facts, *scale, found.cols)?;
        if !is_f32(facts, row) {
            return None;
        }
        for v in [x, *scale, row] {
            found.replaced.push(at(v)?);
        }
        let scaled = Scaled {
            zero: None,
            scale: scale_at,
        };
        return Some((acc, scaled));
    }
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
