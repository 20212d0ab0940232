//! Calls of micro-kernels as data: which one, and what each field of its block is. Backends translate a [`Operand`] each in
//! their own way, and nothing else about a block.

use super::*;
use lapidary_abi::kernel::Import;

/// A call of a micro-kernel.
#[derive(Debug)]
pub struct Call {
    /// Which.
    pub import: Import,
    /// Bytes of its block.
    pub bytes: usize,
    /// What the fields at these offsets are. Fields that are not here are not read.
    pub fields: Vec<(Operand, usize)>,
}

/// What a field is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// An address of nothing.
    Null,
    /// 64 bits.
    Index(i64),
    /// 32 bits.
    Int(i64),
    /// An `f32`.
    Float(f32),
    /// The address of an element of a buffer: so many times the index.
    Element(Buf, Var, i64),
    /// The address of a buffer's first element.
    Start(Buf),
    /// Elements between rows, 64 bits; not offsets.
    Stride(At),
    /// A scalar of 32 bits, or an index.
    Scalar(Var),
    /// Iterations of a loop by ones, 64 bits.
    Count(Var, Var),
    /// The first between 0 and the second, or the second; 32 bits.
    Present(Option<Var>, i64),
    /// What the backend has at hand.
    Given(Given),
}

/// What backends compute before a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The array of row addresses.
    Rows,
    /// The result's first element.
    Result,
    /// Elements between the result's rows.
    ResultStride,
    /// Rows that exist, 32 bits.
    RowCount,
    /// Columns that exist, 32 bits.
    Columns,
    /// Columns that exist, 64 bits.
    LongColumns,
}

/// Fields of a block, each with its offset.
macro_rules! fields {
    ($args:ident { $($field:ident: $value:expr,)* }) => {
        vec![$(($value, std::mem::offset_of!($args, $field))),*]
    };
}
pub(super) use fields;

impl Operand {
    /// An element of a buffer that may not be there.
    pub(super) fn maybe(at: Option<(Buf, Var)>) -> Operand {
        at.map_or(Operand::Null, |(buf, base)| Operand::Element(buf, base, 1))
    }
}
