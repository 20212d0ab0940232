//! Matrix products with a packed right side: the canonical loops, written and recognised side by side.
//!
//! Whoever lowers a matrix product or convolution calls [`gemm`]; a backend with micro-kernels calls
//! [`plan`] on each `For` and the statements after it. Both live here and in the module `epilogue`, so that
//! the form is stated once. For `f32` (`STEP` = 1; for `bf16` weights `STEP` = 2, for 8-bit operands 4) it is, with `W` = 32 for
//! `f32` and a multiple of 32 for the others,
//!
//! ```text
//! acc0 = const 0 : [rows, W]                         rows <= MAX_ROWS
//! acc = for t in 0..taps carry acc0 {                only if taps > 1; taps is constant
//!   <pure statements: row addresses of this tap>
//!   t_at = add b_base, mul(t, k * W)
//!   for kk in 0..k step STEP {
//!     a = load A[add(a_base, kk)], rows: <any axis>, stride 1      [rows, STEP]
//!     b = load B[add(t_at, mul(kk, W))], see below                 [STEP, W]
//!     dot acc, a, b
//! } }
//! ```
//!
//! * B is a packed panel `[taps][k][32]` (`f32`) or `[taps][ceil(k / STEP)][W][STEP]` (others), whose start must be
//!   64-byte aligned. The axes of its tile are strides 32 and 1 (`f32`), or 1 and `STEP`.
//! * A's row axis is anything that does not change with `kk`: a stride, offsets, `valid`, `mask`. Its `k`
//!   elements are consecutive. Where `STEP` is more than 1, its second axis has `valid = k - kk`. For `i8` operands A is `u8`.
//! * For `bf16` weights, A is `f32`, and `a` is what is left of it after a cast to `bf16` and back; `b` is cast to `f32`.
//! * The accumulator is `f32`, or `i32` for 8-bit operands, and starts at zero.
//!
//! What is not recognised still runs: it is ordinary kernel IR.

mod bf16;
mod call;
mod epilogue;
#[cfg(test)]
mod tests;

pub use call::{Sums, call, load_sums, recognise_sums};
pub use epilogue::{
    Epilogue, EpilogueMatch, Scaled, Stage, StageMatch, epilogue, recognise_epilogue,
};

use super::build::KernelBuilder;
use super::*;
use lapidary_abi::kernel::{MAX_ROWS_F32, MAX_STAGES_I8, PANEL_F32, ZEROS_BYTES};
use std::collections::HashMap;

/// Columns of a panel.
pub const PANEL: u32 = PANEL_F32 as u32;

/// Most rows of a tile.
pub const MAX_ROWS: u32 = MAX_ROWS_F32 as u32;

/// Operand types of a contraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `f32` everywhere.
    F32,
    /// `f32` rounded to `bf16`, times `bf16`, into `f32`.
    Bf16,
    /// `u8` times `i8` into `i32`.
    I8,
}

impl Kind {
    /// Elements of `k` per iteration.
    pub fn step(self) -> u32 {
        match self {
            Kind::F32 => 1,
            Kind::Bf16 => 2,
            Kind::I8 => 4,
        }
    }

    /// Elements of the left operand, the right one and the sums.
    pub fn elems(self) -> [ElemType; 3] {
        match self {
            Kind::F32 => [ElemType::F32; 3],
            Kind::Bf16 => [ElemType::F32, ElemType::BF16, ElemType::F32],
            Kind::I8 => [ElemType::U8, ElemType::I8, ElemType::I32],
        }
    }

    /// True if results are numbers as they are, with nothing to scale.
    pub fn of_numbers(self) -> bool {
        self != Kind::I8
    }

    /// Elements that a column of `k` has in a panel.
    pub fn padded(self, k: i64) -> i64 {
        let step = i64::from(self.step());
        (k + step - 1) / step * step
    }

    /// [`Kind::padded`] of an extent that need not be known.
    pub fn padded_extent(self, b: &mut KernelBuilder, k: Var) -> Var {
        if let Some(Literal::Int(k)) = b.literal(k) {
            return b.index(self.padded(k));
        }
        if self.step() == 1 {
            return k;
        }
        let (more, step) = (self.step() - 1, self.step());
        let (more, step) = (b.index(more.into()), b.index(step.into()));
        let up = b.binary(Binary::Add, k, more);
        let steps = b.binary(Binary::FloorDiv, up, step);
        b.binary(Binary::Mul, steps, step)
    }
}

/// What [`gemm`] multiplies.
#[derive(Clone, Copy, Debug)]
pub struct GemmTile {
    /// Operand types.
    pub kind: Kind,
    /// Rows, `1..=MAX_ROWS`.
    pub rows: u32,
    /// Left operand's buffer (`f32` or `u8`).
    pub a: Buf,
    /// Packed right operand (`f32` or `i8`).
    pub b: Buf,
    /// First element of the panel.
    pub b_base: Var,
    /// Consecutive elements of each row of A per tap; a scalar index, a constant where known.
    pub k: Var,
    /// Number of taps; 1 for a matrix product.
    pub taps: u32,
    /// Columns of the panel: [`PANEL`], or a multiple of it for codes and (up to four) `bf16`.
    pub width: u32,
}

/// Where a tile of rows is: `base + rows(i) + j`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowsAt {
    /// Element offset (scalar index).
    pub base: Var,
    /// The row axis.
    pub rows: Axis,
}

/// Writes the canonical loop and returns the accumulator `[rows, width]`. `rows` writes what computes the
/// addresses of A's rows, for the tap it is given (`None` when there is one tap only).
pub fn gemm(
    b: &mut KernelBuilder,
    tile: GemmTile,
    rows: impl FnOnce(&mut KernelBuilder, Option<Var>) -> RowsAt,
) -> Var {
    let [.., sums] = tile.kind.elems();
    let zero = match sums {
        ElemType::I32 => Literal::Int(0),
        _ => Literal::Float(0.0),
    };
    let acc = b.constant(TileType::of(sums, &[tile.rows, tile.width]), zero);
    if tile.taps == 1 {
        let at = rows(b, None);
        return over_k(b, tile, &at, tile.b_base, acc);
    }
    let k_padded = tile.kind.padded_extent(b, tile.k);
    let width = b.index(i64::from(tile.width));
    let tap_len = b.binary(Binary::Mul, k_padded, width);
    let (zero, taps) = (b.index(0), b.index(i64::from(tile.taps)));
    b.for_loop(zero, taps, 1, &[acc], |b, t, acc| {
        let at = rows(b, Some(t));
        let skip = b.binary(Binary::Mul, t, tap_len);
        let b_base = b.binary(Binary::Add, tile.b_base, skip);
        vec![over_k(b, tile, &at, b_base, acc[0])]
    })[0]
}

fn over_k(b: &mut KernelBuilder, tile: GemmTile, at: &RowsAt, b_base: Var, acc: Var) -> Var {
    let (zero, width) = (b.index(0), b.index(i64::from(tile.width)));
    let step = tile.kind.step();
    b.for_loop(zero, tile.k, step, &[acc], |b, kk, acc| {
        let a_at = b.binary(Binary::Add, at.base, kk);
        let mut k_axis = Axis::stride(1);
        if step > 1 {
            k_axis = k_axis.valid(b.binary(Binary::Sub, tile.k, kk));
        }
        let mut a = b.load(
            tile.a,
            a_at,
            &[tile.rows, step],
            vec![at.rows.clone(), k_axis],
        );
        let skip = b.binary(Binary::Mul, kk, width);
        let b_at = b.binary(Binary::Add, b_base, skip);
        let mut panel = b.load(tile.b, b_at, &[step, tile.width], panel_axes(tile.kind));
        if tile.kind == Kind::Bf16 {
            let [half, number] = [ElemType::BF16, ElemType::F32].map(TileElem::Elem);
            let rounded = b.cast(a, half);
            a = b.cast(rounded, number);
            panel = b.cast(panel, number);
        }
        vec![b.dot(acc[0], a, panel)]
    })[0]
}

fn panel_axes(kind: Kind) -> Vec<Axis> {
    match kind {
        Kind::F32 => vec![Axis::stride(i64::from(PANEL)), Axis::stride(1)],
        Kind::Bf16 | Kind::I8 => vec![Axis::stride(1), Axis::stride(i64::from(kind.step()))],
    }
}

/// What recognising needs to know of a kernel: where each var is defined, and how often it is used.
#[derive(Debug)]
pub struct Facts<'k> {
    kernel: &'k Kernel,
    defs: HashMap<Var, &'k Op>,
    uses: Vec<u32>,
}

impl<'k> Facts<'k> {
    /// Reads the whole kernel once.
    pub fn new(kernel: &'k Kernel) -> Facts<'k> {
        let mut facts = Facts {
            kernel,
            defs: HashMap::new(),
            uses: vec![0; kernel.vars.len()],
        };
        facts.scan(&kernel.body);
        facts
    }

    fn scan(&mut self, body: &'k [Stmt]) {
        for stmt in body {
            for &result in &stmt.results {
                self.defs.insert(result, &stmt.op);
            }
            stmt.op.for_each_use(&mut |v| self.uses[v.0 as usize] += 1);
            for inner in stmt.op.bodies() {
                self.scan(inner);
            }
        }
    }

    /// The kernel.
    pub fn kernel(&self) -> &'k Kernel {
        self.kernel
    }

    /// The operation that defines a var; `None` for loop variables and carried values.
    pub fn def(&self, var: Var) -> Option<&'k Op> {
        self.defs.get(&var).copied()
    }

    /// Type of a var.
    pub fn ty(&self, var: Var) -> &'k TileType {
        self.kernel.ty(var)
    }

    /// True if a buffer is a thread's own memory.
    fn is_scratch(&self, buf: Buf) -> bool {
        buf.0 as usize >= self.kernel.params.len()
    }

    /// Elements of scratch memory.
    fn scratch_len(&self, buf: Buf) -> Option<u32> {
        let at = (buf.0 as usize).checked_sub(self.kernel.params.len())?;
        self.kernel.scratch.get(at).map(|s| s.len)
    }

    /// Loads and stores of a buffer.
    fn accesses(&self, buf: Buf) -> u32 {
        fn count(body: &[Stmt], buf: Buf) -> u32 {
            let own = |op: &Op| match op {
                Op::Load { buf: b, .. } | Op::Store { buf: b, .. } => u32::from(*b == buf),
                _ => op.bodies().map(|body| count(body, buf)).sum(),
            };
            body.iter().map(|s| own(&s.op)).sum()
        }
        count(&self.kernel.body, buf)
    }

    /// Uses of a var, yields included.
    pub fn uses(&self, var: Var) -> u32 {
        self.uses[var.0 as usize]
    }

    /// The literal that a var is, repeated or not.
    pub fn literal(&self, var: Var) -> Option<Literal> {
        match self.def(var)? {
            Op::Const(l) => Some(*l),
            Op::Broadcast { x, .. } => self.literal(*x),
            Op::Binary(Binary::Mul, a, b) => match (self.literal(*a)?, self.literal(*b)?) {
                (Literal::Int(a), Literal::Int(b))
                    if self.kernel.ty(var).elem == TileElem::Index =>
                {
                    Some(Literal::Int(a.wrapping_mul(b)))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// The integer that a var is.
    pub fn int(&self, var: Var) -> Option<i64> {
        match self.literal(var)? {
            Literal::Int(i) => Some(i),
            Literal::Float(_) => None,
        }
    }

    pub(super) fn float(&self, var: Var) -> Option<f64> {
        match self.literal(var)? {
            Literal::Float(f) => Some(f),
            Literal::Int(_) => None,
        }
    }

    /// The other operand of `a + b` if one of them is `known`.
    fn other_addend(&self, sum: Var, known: Var) -> Option<Var> {
        match self.def(sum)? {
            Op::Binary(Binary::Add, a, b) if *b == known => Some(*a),
            Op::Binary(Binary::Add, a, b) if *a == known => Some(*b),
            _ => None,
        }
    }

    /// `base` and `factor` if `sum` is `base + index * factor`.
    pub(super) fn base_and_factor(&self, sum: Var, index: Var) -> Option<(Var, Var)> {
        let Op::Binary(Binary::Add, base, product) = self.def(sum)? else {
            return None;
        };
        match self.def(*product)? {
            Op::Binary(Binary::Mul, i, factor) if *i == index => Some((*base, *factor)),
            _ => None,
        }
    }
}

/// A recognised contraction.
#[derive(Debug)]
pub struct Contraction<'k> {
    /// Operand types.
    pub kind: Kind,
    /// Rows of the tile.
    pub rows: u32,
    /// Number of taps.
    pub taps: u32,
    /// Index and address statements of the loop over taps, if there is one.
    pub tap: Option<(Var, &'k [Stmt])>,
    /// Row length.
    pub k: Var,
    /// Left buffer.
    pub a: Buf,
    /// Where its rows are, at `kk = 0`; may be computed by the statements of `tap`.
    pub a_base: Var,
    /// The row axis; may be computed by the statements of `tap`.
    pub a_rows: &'k Axis,
    /// Panel buffer.
    pub b: Buf,
    /// First element of the panel.
    pub b_base: Var,
    /// Columns of the panel.
    pub panel: u32,
    /// The result.
    pub acc: Var,
    /// Not a product, but a window over each channel: `k` is the distance between the weights of taps.
    pub window: Option<Window>,
}

/// A window over each channel, as [`super::window`] writes it.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Channels of the tile.
    pub width: u32,
    /// The maximum, without weights.
    pub maximum: bool,
    /// Channels that exist.
    pub cols: Option<Var>,
}

impl Contraction<'_> {
    /// Columns of the tile.
    pub fn width(&self) -> u32 {
        self.window.map_or(self.panel, |w| w.width)
    }
}

/// Recognises what [`gemm`] writes: the `For` statement that defines the accumulator.
pub fn recognise<'k>(facts: &Facts<'k>, stmt: &'k Stmt) -> Option<Contraction<'k>> {
    let outer = single_loop(facts, stmt)?;
    let zero = match facts.literal(outer.init)? {
        Literal::Float(f) => f.to_bits() == 0,
        Literal::Int(i) => i == 0,
    };
    if !zero || facts.int(outer.begin) != Some(0) {
        return None;
    }
    let mut found = match outer.body.last()?.op {
        Op::For { .. } => {
            let (prefix, inner) = outer.body.split_at(outer.body.len() - 1);
            let inner_loop = single_loop(facts, &inner[0])?;
            let pure = prefix
                .iter()
                .all(|s| s.op.bodies().next().is_none() && !matches!(s.op, Op::Store { .. }));
            if !pure
                || outer.step != 1
                || inner_loop.init != outer.acc
                || outer.yielded != inner[0].results[0]
                || facts.uses(outer.acc) != 1
                || facts.int(inner_loop.begin) != Some(0)
            {
                return None;
            }
            let mut found = innermost(facts, &inner_loop, &inner[0])?;
            let (b_base, factor) = facts.base_and_factor(found.b_base, outer.index)?;
            let by_literal = || {
                let (f, k) = (facts.int(factor)?, facts.int(found.k)?);
                Some(f == found.kind.padded(k) * i64::from(found.panel))
            };
            let by_shape = || match facts.def(factor)? {
                Op::Binary(Binary::Mul, k, p) => Some(
                    found.kind == Kind::F32 && *k == found.k && facts.int(*p)? == i64::from(PANEL),
                ),
                _ => None,
            };
            if by_literal().or_else(by_shape) != Some(true) {
                return None;
            }
            found.taps = u32::try_from(facts.int(outer.end)?)
                .ok()
                .filter(|&t| t > 0)?;
            found.tap = Some((outer.index, prefix));
            found.b_base = b_base;
            // The panel must not depend on the tap but through the factor.
            if defined_in(prefix, b_base)
                || defined_in(prefix, factor)
                || defined_in(prefix, found.k)
            {
                return None;
            }
            found
        }
        _ => innermost(facts, &outer, stmt)?,
    };
    found.acc = stmt.results[0];
    (found.rows >= 1 && found.rows <= MAX_ROWS).then_some(found)
}

pub(super) fn defined_in(body: &[Stmt], var: Var) -> bool {
    body.iter().any(|s| s.results.contains(&var))
}

/// A loop with one carried value.
pub(super) struct Loop<'k> {
    pub index: Var,
    pub begin: Var,
    pub end: Var,
    pub step: u32,
    pub acc: Var,
    pub init: Var,
    pub body: &'k [Stmt],
    pub yielded: Var,
}

pub(super) fn single_loop<'k>(_facts: &Facts<'k>, stmt: &'k Stmt) -> Option<Loop<'k>> {
    match &stmt.op {
        Op::For {
            index,
            begin,
            end,
            step,
            carried,
            body,
            yields,
        } if carried.len() == 1 => Some(Loop {
            index: *index,
            begin: *begin,
            end: *end,
            step: *step,
            acc: carried[0].0,
            init: carried[0].1,
            body,
            yielded: yields[0],
        }),
        _ => None,
    }
}

/// The loop over `k`: loads, index arithmetic and the dot, nothing else.
fn innermost<'k>(facts: &Facts<'k>, l: &Loop<'k>, stmt: &'k Stmt) -> Option<Contraction<'k>> {
    if let Some(found) = bf16::recognise(facts, l, stmt) {
        return Some(found);
    }
    let Op::Dot { acc, a, b } = facts.def(l.yielded)? else {
        return None;
    };
    let pure = l.body.iter().all(|s| {
        matches!(
            s.op,
            Op::Const(_) | Op::Binary(..) | Op::Load { .. } | Op::Dot { .. }
        )
    });
    if !pure || *acc != l.acc || facts.uses(l.acc) != 1 {
        return None;
    }
    let kernel = facts.kernel;
    let elem = |v: Var| kernel.ty(v).elem;
    let of = |e| TileElem::Elem(e);
    let is = |k: &Kind| k.elems().map(of) == [elem(*a), elem(*b), elem(*acc)];
    let kind = [Kind::F32, Kind::I8].into_iter().find(is)?;
    let [rows, cols] = kernel.ty(*acc).shape[..] else {
        return None;
    };
    let wide = kind == Kind::I8 && cols > 0 && cols.is_multiple_of(PANEL);
    if cols != PANEL && !wide || l.step != kind.step() || kernel.ty(*a).shape[1] != kind.step() {
        return None;
    }
    let (
        Op::Load {
            buf: a_buf,
            base: a_at,
            axes: a_axes,
        },
        Op::Load {
            buf: b_buf,
            base: b_at,
            axes: b_axes,
        },
    ) = (facts.def(*a)?, facts.def(*b)?)
    else {
        return None;
    };
    let a_base = facts.other_addend(*a_at, l.index)?;
    let (b_base, factor) = facts.base_and_factor(*b_at, l.index)?;
    let k_axis = &a_axes[1];
    let k_axis_ok = k_axis.mask.is_none()
        && match (kind, k_axis.valid) {
            (Kind::F32, None) => true,
            (Kind::I8, Some(left)) => matches!(facts.def(left),
                Some(Op::Binary(Binary::Sub, k, kk)) if *k == l.end && *kk == l.index),
            _ => false,
        }
        && (k_axis.at == At::Stride(1) || kind == Kind::F32);
    let invariant = [Some(a_base), Some(b_base), a_axes[0].valid, a_axes[0].mask]
        .into_iter()
        .chain([match a_axes[0].at {
            At::Stride(_) => None,
            At::DynStride(v) | At::Offsets(v) => Some(v),
        }])
        .flatten()
        .all(|v| v != l.index && !defined_in(l.body, v));
    if facts.int(factor) != Some(i64::from(cols))
        || *b_axes != panel_axes(kind)
        || !k_axis_ok
        || !invariant
    {
        return None;
    }
    Some(Contraction {
        kind,
        rows,
        taps: 1,
        tap: None,
        k: l.end,
        a: *a_buf,
        a_base,
        a_rows: &a_axes[0],
        b: *b_buf,
        b_base,
        panel: cols,
        acc: l.yielded,
        window: None,
    })
}

/// A contraction with what a call of a micro-kernel takes over besides it.
#[derive(Debug)]
pub struct Plan<'k> {
    /// The contraction.
    pub found: Contraction<'k>,
    /// Its epilogue, if a micro-kernel can do all of it.
    pub tail: Option<EpilogueMatch<'k>>,
    /// Rows that are missing are to be pointed at zeros. Otherwise they are exactly those that are not computed.
    pub to_zeros: bool,
}

impl Plan<'_> {
    /// Statements that the plan takes care of: the loop and, with a whole epilogue, what follows up to its end.
    pub fn statements(&self) -> usize {
        self.tail.as_ref().map_or(1, |t| t.last + 2)
    }
}

/// Most row addresses of one call.
pub const MAX_POINTERS: u32 = 4096;

/// Plans the call of a micro-kernel for `stmt` and the statements after it; `None` if there is none for it.
pub fn plan<'k>(facts: &Facts<'k>, stmt: &'k Stmt, rest: &'k [Stmt]) -> Option<Plan<'k>> {
    let found = recognise(facts, stmt).or_else(|| super::window::recognise(facts, stmt))?;
    let mut tail = recognise_epilogue(facts, rest, found.acc);
    // Products of numbers are stored as numbers.
    let numbers = found.kind.of_numbers();
    let plain = numbers && found.window.is_none();
    let no_call = |t: &EpilogueMatch| {
        let more = !t.stages.is_empty() || t.table.is_some();
        plain && (t.code.is_some() || t.scaled.is_some())
            || numbers && more
            || !numbers && t.residual.is_some()
            || t.stages.len() > MAX_STAGES_I8
    };
    if tail.as_ref().is_some_and(no_call) {
        tail = None;
    }
    let row_valid = tail.as_ref().and_then(|t| t.c_rows.valid);
    let to_zeros = found.a_rows.mask.is_some()
        || (found.a_rows.valid.is_some() && found.a_rows.valid != row_valid);
    let [of_a, ..] = found.kind.elems();
    let size = of_a.size_bytes() as i64;
    if let Some(w) = found.window
        && tail.as_ref().is_none_or(|t| t.cols != w.cols)
    {
        return None;
    }
    let row_length = match found.window {
        Some(w) => Some(i64::from(w.width)),
        None => facts.int(found.k),
    };
    let zeros_suffice = row_length.is_some_and(|k| k * size <= ZEROS_BYTES as i64);
    if (to_zeros && !zeros_suffice) || found.taps.saturating_mul(found.rows) > MAX_POINTERS {
        return None;
    }
    Some(Plan {
        found,
        tail,
        to_zeros,
    })
}
