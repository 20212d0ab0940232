//! What runs in one cycle: which loops are pipelined, and how much of a product is computed at once.
//!
//! A product `[rows, inner] x [inner, columns]` inside a loop is an array of processing elements: `PE` columns at once, each of
//! `SIMD` = `inner` products. Rows, groups of columns, and the loop around them are one pipeline that starts a group in every
//! cycle, so a layer of `MH` outputs and `MW` inputs takes `(MH / PE) * (MW / SIMD)` cycles for each of its vectors.
//! Source: "FINN: A Framework for Fast, Scalable Binarized Neural Network Inference", section 4.2.

use lapidary_ir::kernel::{Binary, Class, Kernel, Op, Stmt, TileElem, Var};

/// Largest tile that is held in registers, each element at once.
pub const REGISTERS: u32 = 64;

/// Largest tile whose elements are computed at once where nothing else is pipelined.
const UNROLLED: u32 = 16;

/// How much of a kernel is computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folding {
    /// Columns of a product: a divisor of a tile's is taken, the largest up to this.
    pub pe: u32,
}

impl Default for Folding {
    /// Every column of a tile.
    fn default() -> Folding {
        Folding { pe: u32::MAX }
    }
}

impl Folding {
    /// Columns at once, of a tile of so many.
    pub fn columns(self, columns: u32) -> u32 {
        let limit = self.pe.clamp(1, columns.max(1));
        let divides = |n: &u32| columns.is_multiple_of(*n);
        (1..=limit).rev().find(divides).unwrap_or(1)
    }

    /// Elements at once of a tile that is no product's operand.
    pub fn lanes(self, shape: &[u32]) -> u32 {
        let last = shape.last().copied().unwrap_or(1);
        Folding {
            pe: self.pe.min(UNROLLED),
        }
        .columns(last)
    }
}

/// Whether the elements of a tile are computed at once outside of pipelines.
pub fn is_unrolled(shape: &[u32]) -> bool {
    shape.iter().product::<u32>() <= UNROLLED
}

/// Iterations of a loop whose ends depend on data.
pub const GUESS: i64 = 16;

/// Iterations of a loop.
pub fn trips(begin: i64, end: i64, step: u32) -> i64 {
    let distance = i128::from(end) - i128::from(begin);
    let step = i128::from(step.max(1));
    i64::try_from((distance.max(0) + step - 1) / step).unwrap_or(i64::MAX)
}

/// What index arithmetic gives, where it does not overflow.
pub fn index(f: Binary, a: i64, b: i64) -> Option<i64> {
    match f {
        Binary::Add => a.checked_add(b),
        Binary::Sub => a.checked_sub(b),
        Binary::Mul => a.checked_mul(b),
        Binary::FloorDiv if b > 0 => Some(a.div_euclid(b)),
        Binary::Mod if b > 0 => Some(a.rem_euclid(b)),
        Binary::Min => Some(a.min(b)),
        Binary::Max => Some(a.max(b)),
        _ => None,
    }
}

/// Whether a loop around these statements is one pipeline: nothing loops inside, and its tiles fit registers.
pub fn is_pipelined(kernel: &Kernel, body: &[Stmt]) -> bool {
    body.iter().all(|s| {
        let small = |v: &Var| kernel.ty(*v).len() <= REGISTERS;
        let stored = match &s.op {
            Op::For { .. } => return false,
            Op::Store { x, .. } => small(x),
            Op::Dot { a, b, .. } => small(a) && small(b),
            Op::Reduce { x, .. } => small(x),
            _ => true,
        };
        stored
            && s.results.iter().all(small)
            && s.op.bodies().all(|inner| is_pipelined(kernel, inner))
    })
}

/// A loop whose body is a product that it accumulates.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub acc: Var,
    pub a: Var,
    pub b: Var,
    pub rows: u32,
    pub inner: u32,
    pub columns: u32,
    /// Of the sums.
    pub sum: TileElem,
    operands: [Class; 2],
}

impl Product {
    /// The product that a loop is: it carries one tile, which its last statement adds to, and loads the operands.
    pub fn of(kernel: &Kernel, op: &Op) -> Option<Product> {
        let Op::For {
            carried,
            body,
            yields,
            ..
        } = op
        else {
            return None;
        };
        let ([(inside, _)], [next], Some((last, loads))) =
            (&carried[..], &yields[..], body.split_last())
        else {
            return None;
        };
        let Op::Dot { acc, a, b } = last.op else {
            return None;
        };
        let simple = |s: &Stmt| {
            let other = matches!(
                s.op,
                Op::For { .. }
                    | Op::If { .. }
                    | Op::Store { .. }
                    | Op::Dot { .. }
                    | Op::Reduce { .. }
            );
            let mut reads_sum = false;
            s.op.for_each_use(&mut |v| reads_sum |= v == *inside);
            !other && !reads_sum
        };
        if acc != *inside || last.results != [*next] || !loads.iter().all(simple) {
            return None;
        }
        let (shape, of_a) = (&kernel.ty(acc).shape, &kernel.ty(a).shape);
        Some(Product {
            acc,
            a,
            b,
            rows: shape[0],
            inner: of_a[1],
            columns: shape[1],
            sum: kernel.ty(acc).elem,
            operands: [a, b].map(|v| kernel.ty(v).elem.class()),
        })
    }

    /// Whether two columns share a multiplier: codes of 8 bits, the shared one unsigned.
    pub fn is_packed(&self, pe: u32) -> bool {
        let code = |signed| Class::Int { bits: 8, signed };
        let wide = Class::Int {
            bits: 32,
            signed: true,
        };
        self.operands == [code(false), code(true)]
            && self.sum.class() == wide
            && pe.is_multiple_of(2)
    }
}
