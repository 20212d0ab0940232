//! Recognises the loop over `k` of numbers that are rounded to `bf16`. Backends get it with its conversions expanded to integer
//! arithmetic, so it is written once more and compared instead of read.

use super::super::pattern::written;
use super::*;
use lapidary_abi::kernel::MAX_WIDTH_BF16;

/// Columns that a panel may have, if they are a multiple of [`PANEL`].
const WIDTHS: std::ops::RangeInclusive<u32> = PANEL..=MAX_WIDTH_BF16 as u32;

/// The loop that [`super::over_k`] writes for [`Kind::Bf16`], before its conversions are expanded or after it.
pub(super) fn recognise<'k>(
    facts: &Facts<'k>,
    l: &Loop<'k>,
    stmt: &'k Stmt,
) -> Option<Contraction<'k>> {
    let mut loads = l.body.iter().filter_map(|s| match &s.op {
        Op::Load { buf, axes, .. } => Some((*buf, axes, facts.ty(*s.results.first()?))),
        _ => None,
    });
    let ((a_buf, a_axes, a_ty), (b_buf, _, b_ty)) = (loads.next()?, loads.next()?);
    let of = [a_buf, b_buf].map(|buf| facts.kernel().buf_elem(buf));
    if of != [Some(ElemType::F32), Some(ElemType::BF16)] {
        return None;
    }
    let ([a_rows, _], &[rows, _], &[_, width]) = (&a_axes[..], &a_ty.shape[..], &b_ty.shape[..])
    else {
        return None;
    };
    let mut b = KernelBuilder::new("pattern");
    let [a, w] = [ElemType::F32, ElemType::BF16].map(|elem| b.buffer("", elem, true));
    let [base, b_base, k] = [(); 3].map(|()| b.var(TileType::index()));
    let acc = b.var(TileType::of(ElemType::F32, &[rows, width]));
    let free = |b: &mut KernelBuilder, v: Option<Var>| v.map(|v| b.var(facts.ty(v).clone()));
    let at = match a_rows.at {
        At::Stride(s) => At::Stride(s),
        At::DynStride(v) => At::DynStride(free(&mut b, Some(v))?),
        At::Offsets(v) => At::Offsets(free(&mut b, Some(v))?),
    };
    let (valid, mask) = (free(&mut b, a_rows.valid), free(&mut b, a_rows.mask));
    let tile = GemmTile {
        kind: Kind::Bf16,
        rows,
        a,
        b: w,
        b_base,
        k,
        taps: 1,
        width,
    };
    let rows_at = RowsAt {
        base,
        rows: Axis { at, valid, mask },
    };
    over_k(&mut b, tile, &rows_at, b_base, acc);
    let mut pattern = b.finish();
    // What is before the loop are constants, which are somebody else's here.
    let written_loop = pattern.body.pop()?;
    let (begin, skip) = match (&written_loop.op, &pattern.body[..]) {
        (Op::For { begin, .. }, [_, width]) => (*begin, *width.results.first()?),
        _ => return None,
    };
    pattern.body = vec![written_loop];
    let found = written(pattern, facts, std::slice::from_ref(stmt))?;
    let int = |v| facts.int(found.var(v)?);
    if !WIDTHS.contains(&width)
        || !width.is_multiple_of(PANEL)
        || int(begin) != Some(0)
        || int(skip) != Some(i64::from(width))
    {
        return None;
    }
    let [a_base, b_base, k] = [found.var(base)?, found.var(b_base)?, found.var(k)?];
    let rows_vars = [a_rows.valid, a_rows.mask].into_iter().flatten();
    let rows_vars = rows_vars.chain(match a_rows.at {
        At::Stride(_) => None,
        At::DynStride(v) | At::Offsets(v) => Some(v),
    });
    let mut outside = [a_base, b_base, k].into_iter().chain(rows_vars);
    outside
        .all(|v| v != l.index && v != l.acc && !defined_in(l.body, v))
        .then_some(Contraction {
            kind: Kind::Bf16,
            rows,
            taps: 1,
            tap: None,
            k,
            a: a_buf,
            a_base,
            a_rows,
            b: b_buf,
            b_base,
            panel: width,
            acc: l.yielded,
            window: None,
        })
}
