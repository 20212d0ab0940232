//! An activation of consecutive numbers: the canonical loop, written and recognised.
//!
//! ```text
//! for i in 0..n step W {
//!   x = load SRC[src + i]                       [W], stride 1
//!   store DST[dst + i], activation x            stride 1, valid n - i where `n` may be no multiple of W
//! }
//! ```

use super::activation::Activation;
use super::build::KernelBuilder;
use super::contraction::Facts;
use super::pattern::{loop_alone, unify};
use super::*;
use lapidary_abi::kernel::{
    UNARY_ERF, UNARY_EXP, UNARY_GELU, UNARY_GELU_TANH, UNARY_SIGMOID, UNARY_SWISH, UNARY_TANH,
};

/// Activations that a micro-kernel computes, with its numbers for them.
pub const CALLED: [(Activation, u32); 5] = [
    (Activation::Tanh, UNARY_TANH),
    (Activation::Sigmoid, UNARY_SIGMOID),
    (Activation::Swish(1.0), UNARY_SWISH),
    (Activation::Gelu, UNARY_GELU),
    (Activation::GeluTanh, UNARY_GELU_TANH),
];

/// Tiles of fewer elements are not worth a call.
const FEW: u32 = 16;

/// The micro-kernel's number of a function that it computes for tiles of this type.
pub fn function_of(f: Unary, ty: &TileType) -> Option<u32> {
    let function = match f {
        Unary::Exp => UNARY_EXP,
        Unary::Tanh => UNARY_TANH,
        Unary::Erf => UNARY_ERF,
        _ => return None,
    };
    let fits = ty.elem == TileElem::Elem(ElemType::F32) && ty.len() >= FEW;
    fits.then_some(function)
}

/// What [`map()`] computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Map {
    /// The function.
    pub activation: Activation,
    /// Elements of a step; 1: scalars.
    pub lanes: u32,
    /// Operands (`f32`): buffer and first element. What `n` leaves of the last step is read as well.
    pub src: (Buf, Var),
    /// Results (`f32`).
    pub dst: (Buf, Var),
    /// How many.
    pub n: Var,
    /// `n` is a multiple of `lanes`.
    pub whole: bool,
}

/// Writes the canonical loop.
pub fn map(b: &mut KernelBuilder, m: Map) {
    let zero = b.index(0);
    b.for_loop(zero, m.n, m.lanes, &[], |b, i, _| {
        let from = b.binary(Binary::Add, m.src.1, i);
        let lanes = [m.lanes];
        let shape = if m.lanes == 1 { &[][..] } else { &lanes[..] };
        let axes = |axis: Axis| if m.lanes == 1 { vec![] } else { vec![axis] };
        let x = b.load(m.src.0, from, shape, axes(Axis::stride(1)));
        let y = m.activation.apply(b, x);
        let axis = Axis {
            valid: (!m.whole).then(|| b.binary(Binary::Sub, m.n, i)),
            ..Axis::stride(1)
        };
        let to = b.binary(Binary::Add, m.dst.1, i);
        b.store(m.dst.0, to, axes(axis), y);
        vec![]
    });
}

/// Recognises what [`map()`] writes for one of these activations.
pub fn recognise(facts: &Facts, stmt: &Stmt, known: &[Activation]) -> Option<Map> {
    let Op::For {
        begin, step, body, ..
    } = &stmt.op
    else {
        return None;
    };
    let Op::Store { axes, .. } = &body.last()?.op else {
        return None;
    };
    let ([to], [_, load, ..]) = (&axes[..], &body[..]) else {
        return None;
    };
    if facts.int(*begin) != Some(0) || !matches!(load.op, Op::Load { .. }) {
        return None;
    }
    known.iter().find_map(|&activation| {
        let mut b = KernelBuilder::new("pattern");
        let (src, dst) = (
            b.buffer("", ElemType::F32, true),
            b.buffer("", ElemType::F32, true),
        );
        let [src_at, dst_at, n] = [(); 3].map(|()| b.var(TileType::index()));
        let pattern = Map {
            activation,
            lanes: *step,
            src: (src, src_at),
            dst: (dst, dst_at),
            n,
            whole: to.valid.is_none(),
        };
        map(&mut b, pattern);
        let stmts = std::slice::from_ref(stmt);
        let found = unify(&loop_alone(b), facts.kernel(), stmts)?;
        Some(Map {
            src: (found.buf(src)?, found.var(src_at)?),
            dst: (found.buf(dst)?, found.var(dst_at)?),
            n: found.var(n)?,
            ..pattern
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        let known = [
            Activation::Tanh,
            Activation::Sigmoid,
            Activation::Gelu,
            Activation::GeluTanh,
        ];
        for (activation, whole) in known.into_iter().flat_map(|a| [(a, true), (a, false)]) {
            let mut b = KernelBuilder::new("k");
            let (src, dst) = (
                b.buffer("src", ElemType::F32, false),
                b.buffer("dst", ElemType::F32, true),
            );
            let [from, to, n] = [1, 5, 32].map(|v| b.index(v));
            let m = Map {
                activation,
                lanes: 16,
                src: (src, from),
                dst: (dst, to),
                n,
                whole,
            };
            map(&mut b, m);
            let kernel = b.finish();
            super::super::verify::verify(&kernel).expect("valid");
            let facts = Facts::new(&kernel);
            let last = kernel.body.last().expect("the loop");
            assert_eq!(recognise(&facts, last, &known), Some(m));
            assert_eq!(recognise(&facts, last, &[Activation::HardSwish]), None);
        }
    }
}
