//! Windows over each channel: the canonical loop of depthwise convolutions and maximum pools, written and recognised.
//!
//! ```text
//! acc = for t in 0..taps carry (const 0 or -inf : [rows, width]) {
//!   <pure statements: row addresses of this tap>
//!   a = load A[a_base], rows: <any axis>, columns: stride 1      [rows, width]
//!   w = load W[add(w_base, mul(t, pitch))], stride 1             [width]
//!   acc = muladd(a, broadcast w, acc)     or, without w, max(acc, a)
//! }
//! ```
//! Of codes, a and w are the casts of loads of u8 and i8. The epilogue is that of a matrix product
//! ([`super::contraction`]); its columns that exist are the loads'.

use super::build::KernelBuilder;
use super::contraction::{
    Contraction, Facts, Kind, MAX_ROWS, RowsAt, Window, defined_in, single_loop,
};
use super::*;

/// What [`window()`] computes.
#[derive(Clone, Copy, Debug)]
pub struct WindowTile {
    /// Pixels, `1..=MAX_ROWS`.
    pub rows: u32,
    /// Channels.
    pub width: u32,
    /// The input.
    pub a: Buf,
    /// It is `u8` and the weights are `i8`, which count as the numbers that they hold; else `f32`.
    pub codes: bool,
    /// Weights: buffer, first element, elements between taps. The maximum if there are none.
    pub weights: Option<(Buf, Var, i64)>,
    /// Channels that exist; all if `None`.
    pub cols: Option<Var>,
    /// Number of taps.
    pub taps: u32,
}

/// Writes the canonical loop and returns the accumulator. `rows` writes what computes the addresses of a tap's rows.
pub fn window(
    b: &mut KernelBuilder,
    tile: WindowTile,
    rows: impl FnOnce(&mut KernelBuilder, Var) -> RowsAt,
) -> Var {
    let ty = TileType::of(ElemType::F32, &[tile.rows, tile.width]);
    let start = if tile.weights.is_some() {
        0.0
    } else {
        f64::NEG_INFINITY
    };
    let acc = b.constant(ty.clone(), Literal::Float(start));
    let (zero, taps) = (b.index(0), b.index(i64::from(tile.taps)));
    let pitch = tile.weights.map(|w| b.index(w.2));
    let cols = || Axis {
        valid: tile.cols,
        ..Axis::stride(1)
    };
    b.for_loop(zero, taps, 1, &[acc], |b, t, acc| {
        let at = rows(b, t);
        let mut a = b.load(tile.a, at.base, &ty.shape, vec![at.rows, cols()]);
        if tile.codes {
            a = b.cast(a, ty.elem);
        }
        let (Some((buf, base, _)), Some(pitch)) = (tile.weights, pitch) else {
            return vec![b.binary(Binary::Max, acc[0], a)];
        };
        let skip = b.binary(Binary::Mul, t, pitch);
        let at = b.binary(Binary::Add, base, skip);
        let mut w = b.load(buf, at, &[tile.width], vec![cols()]);
        if tile.codes {
            w = b.cast(w, ty.elem);
        }
        let w = b.broadcast(w, &ty.shape, 0);
        vec![b.mul_add(a, w, acc[0])]
    })[0]
}

/// Recognises what [`window()`] writes.
pub fn recognise<'k>(facts: &Facts<'k>, stmt: &'k Stmt) -> Option<Contraction<'k>> {
    let l = single_loop(facts, stmt)?;
    let taps = u32::try_from(facts.int(l.end)?).ok().filter(|&t| t > 0)?;
    let [rows, width] = facts.ty(l.acc).shape[..] else {
        return None;
    };
    let f32s = facts.ty(l.acc).elem == TileElem::Elem(ElemType::F32);
    if facts.int(l.begin) != Some(0) || l.step != 1 || !f32s || facts.uses(l.acc) != 1 {
        return None;
    }
    let Literal::Float(start) = facts.literal(l.init)? else {
        return None;
    };
    let (a, weights) = match facts.def(l.yielded)? {
        Op::Binary(Binary::Max, acc, a) if *acc == l.acc && start == f64::NEG_INFINITY => {
            (*a, None)
        }
        Op::MulAdd(a, w, acc) if *acc == l.acc && start.to_bits() == 0 => match facts.def(*w)? {
            Op::Broadcast { x, axis: 0 } => (*a, Some(*x)),
            _ => return None,
        },
        _ => return None,
    };
    let is = |v: Var, elem| facts.ty(v).elem == TileElem::Elem(elem);
    let is_f32 = |v: Var| is(v, ElemType::F32);
    let stored = |v: Var, code: ElemType| match facts.def(v)? {
        Op::Cast(codes) if is(*codes, code) && facts.uses(*codes) == 1 => Some((*codes, true)),
        _ => is_f32(v).then_some((v, false)),
    };
    let (a, coded) = stored(a, ElemType::U8)?;
    let Op::Load { buf, base, axes } = facts.def(a)? else {
        return None;
    };
    let plain = |axis: &Axis| axis.at == At::Stride(1) && axis.mask.is_none();
    let at = l.body.iter().position(|s| s.results.contains(&a))?;
    let (prefix, rest) = l.body.split_at(at);
    let pure = prefix
        .iter()
        .all(|s| s.op.bodies().next().is_none() && !matches!(s.op, Op::Store { .. }));
    let simple = rest.iter().all(|s| {
        matches!(
            s.op,
            Op::Const(_)
                | Op::Binary(..)
                | Op::Cast(_)
                | Op::Load { .. }
                | Op::Broadcast { .. }
                | Op::MulAdd(..)
        )
    });
    if !pure || !simple || !plain(&axes[1]) || rows > MAX_ROWS {
        return None;
    }
    let outside = |v: Var| !defined_in(l.body, v) && v != l.index;
    if axes[1].valid.is_some_and(|v| !outside(v)) {
        return None;
    }
    let (b, b_base, pitch) = match weights {
        None => (*buf, l.begin, l.begin),
        Some(w) => {
            let (w, weights_coded) = stored(w, ElemType::I8)?;
            let Op::Load {
                buf: b,
                base: w_at,
                axes: w_axes,
            } = facts.def(w)?
            else {
                return None;
            };
            let (w_base, pitch) = facts.base_and_factor(*w_at, l.index)?;
            let same = plain(&w_axes[0]) && w_axes[0].valid == axes[1].valid;
            if !same || weights_coded != coded || !outside(w_base) || !outside(pitch) {
                return None;
            }
            (*b, w_base, pitch)
        }
    };
    Some(Contraction {
        kind: Kind::F32,
        rows,
        taps,
        tap: Some((l.index, prefix)),
        k: pitch,
        a: *buf,
        a_base: *base,
        a_rows: &axes[0],
        b,
        b_base,
        panel: width,
        acc: stmt.results[0],
        window: Some(Window {
            width,
            maximum: weights.is_none(),
            cols: axes[1].valid,
        }),
    })
}
