//! Recognises the canonical loops: what few numbers in them say which format it could be, then the loop written once more.

use super::*;
use crate::kernel::contraction::Facts;
use crate::kernel::pattern::{tile_loop, written};

/// The constants that are defined in a body, in their order.
fn constants<'k>(body: &'k [Stmt]) -> impl Iterator<Item = i64> + 'k {
    body.iter().filter_map(|s| match s.op {
        Op::Const(Literal::Int(v)) => Some(v),
        _ => None,
    })
}

/// Recognises what [`blocks()`] writes.
pub fn recognise(facts: &Facts, stmt: &Stmt) -> Option<BlocksTile> {
    let Op::For { body, step, .. } = &stmt.op else {
        return None;
    };
    let (x, columns, inner) = tile_loop(body)?;
    if facts.ty(x) != &TileType::of(ElemType::F32, &[*step, PANEL]) {
        return None;
    }
    let Op::For {
        body: of_blocks, ..
    } = &body[inner].op
    else {
        return None;
    };
    // The first two constants inside say how long a block of each side is; few formats have these lengths.
    let mut lengths = constants(of_blocks);
    let (act_bytes, panel_bytes) = (lengths.next()?, lengths.next()?);
    let block = u32::try_from(act_bytes - ACT_BLOCK_EXTRA as i64).ok()?;
    let after = &body[inner..];
    let bound = |f: Binary| {
        after.iter().find_map(|s| match s.op {
            Op::Binary(g, _, bound) if g == f => facts.float(bound),
            _ => None,
        })
    };
    let (lo, hi) = (bound(Binary::Max), bound(Binary::Min));
    let bias = after.iter().any(|s| matches!(s.op, Op::Load { .. }));
    let found = |format: Format| {
        let mut b = KernelBuilder::new("pattern");
        let [a, w] = [(); 2].map(|()| b.buffer("", ElemType::U8, true));
        let [added, c] = [(); 2].map(|()| b.buffer("", ElemType::F32, true));
        let mut var = || b.var(TileType::index());
        let mut rows = |buf| Rows {
            buf,
            base: var(),
            stride: var(),
        };
        let (a, c) = (rows(a), rows(c));
        let pattern = BlocksTile {
            format,
            rows: *step,
            first: var(),
            end: var(),
            blocks: var(),
            a,
            w: (w, var()),
            bias: bias.then(|| (added, var())),
            lo: lo.map(|v| v as f32),
            hi: hi.map(|v| v as f32),
            c,
            cols: columns.valid.map(|_| var()),
        };
        blocks(&mut b, pattern);
        let found = written(b.finish(), facts, std::slice::from_ref(stmt))?;
        let rows = |r: Rows| {
            Some(Rows {
                buf: found.buf(r.buf)?,
                base: found.var(r.base)?,
                stride: found.var(r.stride)?,
            })
        };
        let at = |(buf, base): (Buf, Var)| Some((found.buf(buf)?, found.var(base)?));
        Some(BlocksTile {
            first: found.var(pattern.first)?,
            end: found.var(pattern.end)?,
            blocks: found.var(pattern.blocks)?,
            a: rows(pattern.a)?,
            w: at(pattern.w)?,
            bias: pattern.bias.map_or(Some(None), |b| at(b).map(Some))?,
            c: rows(pattern.c)?,
            cols: pattern
                .cols
                .map_or(Some(None), |v| found.var(v).map(Some))?,
            ..pattern
        })
    };
    Format::of(block, panel_bytes).find_map(found)
}

/// Recognises what [`unpack()`] writes: the loop, after the statement that defines its first index.
pub fn recognise_unpack(facts: &Facts, stmt: &Stmt) -> Option<UnpackTile> {
    let Op::For {
        begin,
        body,
        step: 1,
        ..
    } = &stmt.op
    else {
        return None;
    };
    let inner = body.iter().find_map(|s| s.op.bodies().next())?;
    let Op::Store { x, axes, .. } = &inner.last()?.op else {
        return None;
    };
    let whole = facts.ty(*x) == &TileType::of(ElemType::F32, &[4, PANEL]) && axes.len() == 2;
    if !whole || facts.int(*begin) != Some(0) {
        return None;
    }
    let mut lengths = constants(body);
    let (panel_bytes, block) = (lengths.next()?, lengths.next()?);
    let zero = body.iter().find_map(|s| match (s.results.first(), &s.op) {
        (Some(&v), Op::Const(Literal::Int(zero))) => {
            (facts.ty(v).shape == [4, PANEL]).then_some(*zero)
        }
        _ => None,
    });
    let zero = i32::try_from(zero.unwrap_or(0)).ok()?;
    Format::of(u32::try_from(block).ok()?, panel_bytes).find_map(|format| {
        let mut b = KernelBuilder::new("pattern");
        let (w, y) = (
            b.buffer("", ElemType::U8, true),
            b.buffer("", ElemType::F32, true),
        );
        let mut var = || b.var(TileType::index());
        let pattern = UnpackTile {
            format,
            zero,
            blocks: var(),
            w: (w, var()),
            y: Rows {
                buf: y,
                base: var(),
                stride: var(),
            },
        };
        unpack(&mut b, pattern);
        let mut kernel = b.finish();
        // The loop alone: the index that it begins at is a constant of somebody else.
        kernel.body.remove(0);
        let found = written(kernel, facts, std::slice::from_ref(stmt))?;
        Some(UnpackTile {
            blocks: found.var(pattern.blocks)?,
            w: (found.buf(w)?, found.var(pattern.w.1)?),
            y: Rows {
                buf: found.buf(y)?,
                base: found.var(pattern.y.base)?,
                stride: found.var(pattern.y.stride)?,
            },
            ..pattern
        })
    })
}

/// Recognises what [`round()`] writes.
pub fn recognise_round(facts: &Facts, stmt: &Stmt) -> Option<RoundTile> {
    let Op::For { body, step: 1, .. } = &stmt.op else {
        return None;
    };
    let block = body.iter().find_map(|s| match (&s.op, &s.results[..]) {
        (Op::Load { .. }, &[x]) => Some(facts.ty(x)),
        _ => None,
    })?;
    let &[block] = &block.shape[..] else {
        return None;
    };
    let sum = body.iter().find_map(|s| match s.op {
        Op::Reduce {
            kind: ReduceKind::Sum,
            ..
        } => s.results.first(),
        _ => None,
    })?;
    let factor = body.iter().find_map(|s| match s.op {
        Op::Binary(Binary::Mul, x, by) if x == *sum => facts.int(by),
        _ => None,
    })?;
    let mut b = KernelBuilder::new("pattern");
    let (x, y) = (
        b.buffer("", ElemType::F32, true),
        b.buffer("", ElemType::U8, true),
    );
    let mut var = || b.var(TileType::index());
    let pattern = RoundTile {
        block,
        factor: i32::try_from(factor).ok()?,
        first: var(),
        end: var(),
        x: (x, var()),
        y: (y, var()),
    };
    round(&mut b, pattern);
    let found = written(b.finish(), facts, std::slice::from_ref(stmt))?;
    let at = |(buf, base): (Buf, Var)| Some((found.buf(buf)?, found.var(base)?));
    Some(RoundTile {
        first: found.var(pattern.first)?,
        end: found.var(pattern.end)?,
        x: at(pattern.x)?,
        y: at(pattern.y)?,
        ..pattern
    })
}
