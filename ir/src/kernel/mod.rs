//! The kernel IR: loops over a grid and over reductions, whose values are small tiles.
//!
//! A [`Kernel`] computes one block of a parallel grid. Values are [`Var`]s: scalars or tiles of one or
//! two static dimensions, of an element type or of `index` (a 64-bit integer). Control is structured:
//! [`Op::For`] with carried values, [`Op::If`]. About two dozen operations, closed: backends match them
//! exhaustively. [`interp`] is their meaning.
//!
//! **Addresses.** A [`Op::Load`] or [`Op::Store`] of a tile reaches element `(i, j)` at
//! `base + axis0(i) + axis1(j)` elements into its buffer, where an axis is a stride times `i` or an
//! explicit tile of offsets (a gather). `valid` counts how many leading elements of an axis exist, `mask`
//! says it for each; what does not exist reads as zero and is not written, and its address is never
//! touched.
//!
//! **Contractions.** Matrix products are [`Op::Dot`] on tiles inside a `For` that carries the accumulator.
//! A backend may translate the whole loop: the Cranelift backend calls a micro-kernel for the canonical
//! forms that [`contraction`] recognises, a GPU backend stages both operands through shared memory, an HLS
//! backend unrolls the tile into processing elements.
//!
//! What is absent: encodings, graph ops, threads, targets, strings, allocation.

pub mod activation;
pub mod blocks;
pub mod build;
pub mod call;
mod class;
pub mod contraction;
mod convert;
pub mod interp;
pub mod legalize;
pub mod map;
mod math;
pub mod moves;
pub mod packed;
pub mod pattern;
pub mod softmax;
pub mod sparse;
pub mod text;
pub mod verify;
pub mod widen;
pub mod window;

pub use class::Class;

use crate::ElemType;

/// A value inside a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(pub u32);

/// A buffer parameter of a kernel, by position in [`Kernel::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buf(pub u32);

/// Element of a tile: a tensor element type or a 64-bit index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TileElem {
    /// Index arithmetic; two's complement, 64 bits.
    Index,
    /// Tensor elements. Kernels compute in `f32`, `f64`, `i8`…`i64`, `u8`…`u64`, `bool`; the other float
    /// types are only loaded, stored and converted.
    Elem(ElemType),
}

/// Type of a [`Var`]: `shape` is empty for a scalar, else one or two dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileType {
    /// Element.
    pub elem: TileElem,
    /// Static dimensions.
    pub shape: Vec<u32>,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Name for profiles and dumps; an identifier.
    pub name: String,
    /// Parameters in calling order.
    pub params: Vec<Param>,
    /// Extents of the parallel grid, outermost first. Blocks are independent of each other.
    pub grid: Vec<Extent>,
    /// Memory of one block (one thread): what tiles are too big for registers.
    pub scratch: Vec<Scratch>,
    /// Type of every var.
    pub vars: Vec<TileType>,
    /// Statements of one block.
    pub body: Vec<Stmt>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// A tensor's memory.
    Buffer {
        /// Name for dumps.
        name: String,
        /// Stored element type.
        elem: ElemType,
        /// True if the kernel writes it.
        written: bool,
    },
    /// A size known at launch.
    Size {
        /// Name for dumps.
        name: String,
    },
}

/// Scratch memory of a block; used like a buffer: its [`Buf`] is `params.len() + position`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scratch {
    /// Element type.
    pub elem: ElemType,
    /// Number of elements.
    pub len: u32,
}

/// Extent of a grid axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Known.
    Const(u64),
    /// `ceil(param / divisor)`: the size parameter at this position, by tiles.
    Param {
        /// Position in [`Kernel::params`].
        param: u32,
        /// Tile length.
        divisor: u32,
    },
}

/// A statement: an operation and the vars it defines.
#[derive(Clone, Debug, PartialEq)]
pub struct Stmt {
    /// Defined vars; most operations define one.
    pub results: Vec<Var>,
    /// The operation.
    pub op: Op,
}

/// A literal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Literal {
    /// Of an integer, bool or index type.
    Int(i64),
    /// Of a float type.
    Float(f64),
}

/// Functions of one operand. Float functions are exact to a few units in the last place in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "named for the functions they are")]
pub enum Unary {
    Neg,
    Abs,
    Sign,
    Not,
    BitNot,
    Sqrt,
    Reciprocal,
    Exp,
    Log,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Tanh,
    Asinh,
    Acosh,
    Atanh,
    Erf,
    Floor,
    Ceil,
    RoundEven,
    Trunc,
    IsNan,
    IsInf,
}

/// Functions of two operands of one type. Comparisons give `bool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "named for the functions they are")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    /// Float division; integers truncate towards zero, and x / 0 is 0 (no trap).
    Div,
    /// Remainder with the sign of the divisor (Python `%`); by 0 is 0. Index and integers and floats.
    Mod,
    /// Remainder with the sign of the dividend (C `fmod`); by 0 is 0 for integers.
    Rem,
    /// Index and integer quotient rounded towards minus infinity; by 0 is 0.
    FloorDiv,
    /// NaN if either is NaN.
    Min,
    /// NaN if either is NaN.
    Max,
    Pow,
    Atan2,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// How a reduction combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "named for the functions they are")]
pub enum ReduceKind {
    Sum,
    Prod,
    Max,
    Min,
    And,
    Or,
}

/// One axis of a tile's address.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Where its elements are.
    pub at: At,
    /// Number of leading elements that exist (a scalar index); all if `None`.
    pub valid: Option<Var>,
    /// Which elements exist (a `bool` tile of this axis' length); all if `None`.
    pub mask: Option<Var>,
}

/// Offsets along an axis, in elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    /// `i * stride` with a known stride (1 is consecutive, 0 repeats).
    Stride(i64),
    /// `i * stride` with a scalar index.
    DynStride(Var),
    /// An index tile of this axis' length.
    Offsets(Var),
}

/// An operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A literal in every element of the result type.
    Const(Literal),
    /// This block's position along a grid axis (scalar index).
    Grid(u32),
    /// A size parameter (scalar index), by position in `params`.
    Size(u32),
    /// `0, 1, …` (index tile of rank 1).
    Iota,
    /// A function of each element.
    Unary(Unary, Var),
    /// A function of each pair of elements of equal shapes.
    Binary(Binary, Var, Var),
    /// `condition ? a : b` by element.
    Select(Var, Var, Var),
    /// Fused multiply-add `a * b + c` (floats: one rounding where the target has it, else two).
    MulAdd(Var, Var, Var),
    /// Conversion to the result's element type: floats round to nearest even; float to integer truncates
    /// towards zero and saturates, NaN gives 0; integers wrap; to `bool` is "not zero". To 8- and 4-bit
    /// floats it saturates.
    Cast(Var),
    /// The same bits as another element type of the same width.
    Bitcast(Var),
    /// Repeats: a scalar to any shape, or a rank-1 tile along a new axis `axis` of the result.
    Broadcast {
        /// What to repeat.
        x: Var,
        /// The new axis of the rank-2 result (ignored for scalars).
        axis: u32,
    },
    /// Reduces one axis of a tile.
    Reduce {
        /// How.
        kind: ReduceKind,
        /// The tile.
        x: Var,
        /// The axis that disappears.
        axis: u32,
    },
    /// Rank-2 transposition.
    Transpose(Var),
    /// `acc[m,n] + a[m,k] * b[k,n]`; `f32` (or `f64`), or `i32` of 8-bit operands.
    Dot {
        /// Accumulator.
        acc: Var,
        /// Left.
        a: Var,
        /// Right.
        b: Var,
    },
    /// Codes from packed bytes: the rank-1 `u8` tile `x[n]` becomes `n * 8 / bits` codes, low bits first.
    Unpack {
        /// Packed bytes.
        x: Var,
        /// 1, 2 or 4.
        bits: u32,
        /// Sign-extend.
        signed: bool,
    },
    /// Reads a tile.
    Load {
        /// From.
        buf: Buf,
        /// Element offset (scalar index).
        base: Var,
        /// One per dimension of the result.
        axes: Vec<Axis>,
    },
    /// Writes a tile; defines nothing.
    Store {
        /// To.
        buf: Buf,
        /// Element offset.
        base: Var,
        /// One per dimension of `x`.
        axes: Vec<Axis>,
        /// What.
        x: Var,
    },
    /// `for index in (begin..end).step(step)`: defines the final carried values.
    For {
        /// The loop variable (scalar index), defined for the body.
        index: Var,
        /// First value.
        begin: Var,
        /// End, exclusive.
        end: Var,
        /// Step, positive.
        step: u32,
        /// Body-side var and initial value of each carried value.
        carried: Vec<(Var, Var)>,
        /// Statements.
        body: Vec<Stmt>,
        /// Next value of each carried value.
        yields: Vec<Var>,
    },
    /// Runs one of two bodies; defines what it yields.
    If {
        /// Scalar `bool`.
        condition: Var,
        /// Statements if true.
        then_body: Vec<Stmt>,
        /// Yields if true.
        then_yields: Vec<Var>,
        /// Statements if false.
        else_body: Vec<Stmt>,
        /// Yields if false.
        else_yields: Vec<Var>,
    },
}

impl TileType {
    /// A scalar index.
    pub fn index() -> TileType {
        TileType {
            elem: TileElem::Index,
            shape: vec![],
        }
    }

    /// A tile (or scalar) of tensor elements.
    pub fn of(elem: ElemType, shape: &[u32]) -> TileType {
        TileType {
            elem: TileElem::Elem(elem),
            shape: shape.to_vec(),
        }
    }

    /// Elements in it.
    pub fn len(&self) -> u32 {
        self.shape.iter().product()
    }

    /// Never true: tiles have elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Kernel {
    /// Type of a var.
    pub fn ty(&self, var: Var) -> &TileType {
        &self.vars[var.0 as usize]
    }

    /// Stored element type of a buffer or scratch.
    pub fn buf_elem(&self, buf: Buf) -> Option<ElemType> {
        match self.params.get(buf.0 as usize) {
            Some(Param::Buffer { elem, .. }) => Some(*elem),
            Some(Param::Size { .. }) => None,
            None => self
                .scratch
                .get(buf.0 as usize - self.params.len())
                .map(|s| s.elem),
        }
    }

    /// Bytes of scratch that one thread needs, each piece 64-byte aligned.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch
            .iter()
            .map(|s| (u64::from(s.len) * s.elem.size_bytes() as u64).next_multiple_of(64))
            .sum()
    }
}

impl Op {
    /// Calls `f` on every var that the operation itself reads, what its bodies yield included (but not
    /// what the statements inside its bodies read).
    pub fn for_each_use(&self, f: &mut dyn FnMut(Var)) {
        match self {
            Op::Const(_) | Op::Grid(_) | Op::Size(_) | Op::Iota => {}
            Op::Unary(_, x)
            | Op::Cast(x)
            | Op::Bitcast(x)
            | Op::Broadcast { x, .. }
            | Op::Reduce { x, .. }
            | Op::Transpose(x)
            | Op::Unpack { x, .. } => f(*x),
            Op::Binary(_, a, b) => [*a, *b].into_iter().for_each(f),
            Op::Select(a, b, c) | Op::MulAdd(a, b, c) => [*a, *b, *c].into_iter().for_each(f),
            Op::Dot { acc, a, b } => [*acc, *a, *b].into_iter().for_each(f),
            Op::Load { base, axes, .. } => {
                f(*base);
                axes.iter().for_each(|a| a.for_each_use(f));
            }
            Op::Store { base, axes, x, .. } => {
                f(*base);
                axes.iter().for_each(|a| a.for_each_use(f));
                f(*x);
            }
            Op::For {
                begin,
                end,
                carried,
                yields,
                ..
            } => {
                f(*begin);
                f(*end);
                carried.iter().for_each(|c| f(c.1));
                yields.iter().for_each(|&y| f(y));
            }
            Op::If {
                condition,
                then_yields,
                else_yields,
                ..
            } => {
                f(*condition);
                then_yields.iter().chain(else_yields).for_each(|&y| f(y));
            }
        }
    }

    /// The statement lists inside the operation.
    pub fn bodies(&self) -> impl Iterator<Item = &Vec<Stmt>> {
        let (first, second) = match self {
            Op::For { body, .. } => (Some(body), None),
            Op::If {
                then_body,
                else_body,
                ..
            } => (Some(then_body), Some(else_body)),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }
}

impl Op {
    /// Replaces every var that the operation itself reads, yields included.
    pub fn rename(&mut self, f: &dyn Fn(Var) -> Var) {
        let on = |vars: &mut [&mut Var]| vars.iter_mut().for_each(|v| **v = f(**v));
        match self {
            Op::Const(_) | Op::Grid(_) | Op::Size(_) | Op::Iota => {}
            Op::Unary(_, x)
            | Op::Cast(x)
            | Op::Bitcast(x)
            | Op::Broadcast { x, .. }
            | Op::Reduce { x, .. }
            | Op::Transpose(x)
            | Op::Unpack { x, .. } => on(&mut [x]),
            Op::Binary(_, a, b) => on(&mut [a, b]),
            Op::Select(a, b, c) | Op::MulAdd(a, b, c) => on(&mut [a, b, c]),
            Op::Dot { acc, a, b } => on(&mut [acc, a, b]),
            Op::Load { base, axes, .. } => {
                on(&mut [base]);
                axes.iter_mut().for_each(|a| a.rename(f));
            }
            Op::Store { base, axes, x, .. } => {
                on(&mut [base, x]);
                axes.iter_mut().for_each(|a| a.rename(f));
            }
            Op::For {
                begin,
                end,
                carried,
                yields,
                ..
            } => {
                on(&mut [begin, end]);
                carried.iter_mut().for_each(|c| c.1 = f(c.1));
                yields.iter_mut().for_each(|y| *y = f(*y));
            }
            Op::If {
                condition,
                then_yields,
                else_yields,
                ..
            } => {
                on(&mut [condition]);
                then_yields
                    .iter_mut()
                    .chain(else_yields)
                    .for_each(|y| *y = f(*y));
            }
        }
    }
}

impl Axis {
    /// Replaces every var the axis reads.
    fn rename(&mut self, f: &dyn Fn(Var) -> Var) {
        if let At::DynStride(v) | At::Offsets(v) = &mut self.at {
            *v = f(*v);
        }
        for v in [&mut self.valid, &mut self.mask].into_iter().flatten() {
            *v = f(*v);
        }
    }

    /// Calls `f` on every var the axis reads.
    pub fn for_each_use(&self, f: &mut dyn FnMut(Var)) {
        if let At::DynStride(v) | At::Offsets(v) = self.at {
            f(v);
        }
        self.valid.into_iter().chain(self.mask).for_each(f);
    }
}
