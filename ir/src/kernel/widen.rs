//! Consecutive halves to numbers: the canonical loop, written and recognised.
//!
//! ```text
//! for i in 0..n step 32 {
//!   x = load SRC[src + i]                       [32], stride 1
//!   store DST[dst + i], cast f32 x              stride 1
//! }
//! ```

use super::build::KernelBuilder;
use super::contraction::{Facts, PANEL};
use super::pattern::{loop_alone, written};
use super::*;

/// What [`widen()`] does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Widen {
    /// Operands (`f16`): buffer and first element.
    pub src: (Buf, Var),
    /// Results (`f32`).
    pub dst: (Buf, Var),
    /// How many: a multiple of [`PANEL`].
    pub n: Var,
}

/// Writes the canonical loop.
pub fn widen(b: &mut KernelBuilder, w: Widen) {
    let zero = b.index(0);
    b.for_loop(zero, w.n, PANEL, &[], |b, i, _| {
        let from = b.binary(Binary::Add, w.src.1, i);
        let x = b.load(w.src.0, from, &[PANEL], vec![Axis::stride(1)]);
        let x = b.cast(x, TileElem::Elem(ElemType::F32));
        let to = b.binary(Binary::Add, w.dst.1, i);
        b.store(w.dst.0, to, vec![Axis::stride(1)], x);
        vec![]
    });
}

/// Recognises what [`widen()`] writes, before its conversions are expanded and after it.
pub fn recognise(facts: &Facts, stmt: &Stmt) -> Option<Widen> {
    let Op::For { begin, body, .. } = &stmt.op else {
        return None;
    };
    let halves = match body.get(1)?.op {
        Op::Load { buf, .. } => facts.kernel().buf_elem(buf) == Some(ElemType::F16),
        _ => false,
    };
    if facts.int(*begin) != Some(0) || !halves {
        return None;
    }
    let mut b = KernelBuilder::new("pattern");
    let (src, dst) = (
        b.buffer("", ElemType::F16, true),
        b.buffer("", ElemType::F32, true),
    );
    let [src_at, dst_at, n] = [(); 3].map(|()| b.var(TileType::index()));
    let pattern = Widen {
        src: (src, src_at),
        dst: (dst, dst_at),
        n,
    };
    widen(&mut b, pattern);
    let found = written(loop_alone(b), facts, std::slice::from_ref(stmt))?;
    Some(Widen {
        src: (found.buf(src)?, found.var(src_at)?),
        dst: (found.buf(dst)?, found.var(dst_at)?),
        n: found.var(n)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::pattern::expanded;
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        for (elem, known) in [(ElemType::F16, true), (ElemType::F64, false)] {
            let mut b = KernelBuilder::new("k");
            let (src, dst) = (
                b.buffer("src", elem, false),
                b.buffer("dst", ElemType::F32, true),
            );
            let [from, to, n] = [1, 5, 64].map(|v| b.index(v));
            let w = Widen {
                src: (src, from),
                dst: (dst, to),
                n,
            };
            widen(&mut b, w);
            let kernel = b.finish();
            super::super::verify::verify(&kernel).expect("valid");
            for kernel in [kernel.clone(), expanded(kernel)] {
                let facts = Facts::new(&kernel);
                let last = kernel.body.last().expect("the loop");
                let found = recognise(&facts, last);
                assert_eq!(
                    found.map(|f| (f.src.0, f.dst.0)),
                    known.then_some((src, dst))
                );
                let n = found.and_then(|f| facts.int(f.n));
                assert_eq!(n, known.then_some(64));
            }
        }
    }
}
