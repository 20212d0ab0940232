//! Instructions as they are run: operands resolved, labels as positions.

use std::collections::BTreeMap;

/// A parsed text.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// What `.target` names.
    pub target: String,
    /// Entries by name.
    pub entries: BTreeMap<String, Entry>,
}

/// A kernel.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Bytes of each parameter.
    pub(crate) params: Vec<u32>,
    /// Threads of a block, as `.maxntid` says.
    pub threads: u32,
    /// Bytes of shared memory.
    pub(crate) shared_bytes: u32,
    /// Registers of a thread.
    pub(crate) registers: u32,
    pub(crate) code: Vec<Instruction>,
}

/// An instruction.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub line: u32,
    /// Runs where this register is as the flag says.
    pub guard: Option<(u32, bool)>,
    pub op: Op,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Register(u32),
    Bits(u64),
    Tid,
    Ctaid,
}

/// What bits mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bits,
    Unsigned,
    Signed,
    Float,
    /// `bf16`.
    Brain,
    Pred,
}

/// A type as instructions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub kind: Kind,
    pub bits: u32,
}

/// Rounding of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To the nearest number of the result's type.
    Nearest,
    /// To an integer: nearest even, zero, below, above.
    Rni,
    Rzi,
    Rmi,
    Rpi,
}

/// A function of one to three operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Mov,
    Neg,
    Abs,
    Not,
    Sqrt,
    Rcp,
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Div,
    Min,
    Max,
    /// Not a number if either is not.
    MinNan,
    MaxNan,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    /// `a * b + c`.
    Mad,
    /// Bits of `a` from `b` on, `c` of them.
    Bfe,
    /// Bytes of `a` and `b` by the digits of `c`.
    Prmt,
    /// The three-input logic function is in the type's place: see `Lop3`.
    Lop3(u8),
    /// Pairs of halves.
    Sub2,
    Fma2,
    Mul2,
}

/// How `setp` compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Neu,
    Nan,
}

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
}

/// What a matrix product multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mma {
    /// m16n8k16 of `f16`, into `f32`.
    F16,
    /// m16n8k16 of `bf16`, into `f32`.
    Bf16,
    /// m16n8k32 of bytes, into `i32`: whether the left and the right ones are signed.
    Bytes([bool; 2]),
}

/// An operation.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Function {
        function: Function,
        ty: Type,
        to: u32,
        from: [From; 3],
    },
    Cvt {
        to: u32,
        to_ty: Type,
        from: From,
        from_ty: Type,
        round: Round,
    },
    /// Two halves of `f32`, the second in the low bits.
    CvtPair {
        to: u32,
        brain: bool,
        from: [From; 2],
    },
    Setp {
        compare: Compare,
        ty: Type,
        to: u32,
        from: [From; 2],
    },
    Selp {
        to: u32,
        from: [From; 2],
        condition: From,
    },
    /// `mov.b64 {a, b}, x`.
    Split {
        to: [u32; 2],
        from: From,
        half: u32,
    },
    /// `mov.b64 x, {a, b}`.
    Join {
        to: u32,
        from: [From; 2],
        half: u32,
    },
    LdParam {
        to: u32,
        param: u32,
    },
    Ld {
        space: Space,
        ty: Type,
        to: Vec<u32>,
        at: From,
        offset: i64,
    },
    St {
        space: Space,
        ty: Type,
        at: From,
        offset: i64,
        from: Vec<From>,
    },
    Bra {
        to: usize,
    },
    Ret,
    Barrier,
    Shfl {
        butterfly: bool,
        to: u32,
        from: From,
        lane: From,
    },
    CpAsync {
        bytes: u32,
        to: (From, i64),
        from: (From, i64),
        /// Bytes that are copied; zeros follow.
        count: Option<From>,
    },
    Commit,
    Wait(u32),
    LdMatrix {
        transposed: bool,
        to: Vec<u32>,
        at: From,
        offset: i64,
    },
    Mma {
        kind: Mma,
        to: [u32; 4],
        a: [From; 4],
        b: [From; 2],
        c: [From; 4],
    },
    /// m16n8k32 of `f16` into `f32`, the left matrix with two numbers of four.
    SparseMma {
        to: [u32; 4],
        a: [From; 4],
        b: [From; 4],
        c: [From; 4],
        places: From,
        /// Which two lanes of four have the places.
        selector: usize,
    },
}
