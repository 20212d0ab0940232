//! C++ types of elements.

use lapidary_ir::ElemType;
use lapidary_ir::kernel::{Class, TileElem};

/// The type of an element in memory, one or more whole bytes.
pub fn storage(elem: ElemType) -> String {
    match TileElem::Elem(elem).class() {
        // A byte of memory may hold anything, a `bool` may not.
        Class::Bool => "uint8_t".to_owned(),
        Class::Int { bits, signed } if bits < 8 => integer(8, signed),
        Class::Bits(bits) => integer(bits.max(8), false),
        _ => value(TileElem::Elem(elem)),
    }
}

/// The type of a value that is computed with: of exactly so many bits where they are fewer than a byte.
pub fn value(elem: TileElem) -> String {
    match elem.class() {
        Class::F32 => "float".to_owned(),
        Class::F64 => "double".to_owned(),
        Class::Bool => "bool".to_owned(),
        Class::Int { bits, signed } => integer(bits, signed),
        Class::Bits(bits) => integer(bits.max(8), false),
    }
}

fn integer(bits: u32, signed: bool) -> String {
    let prefix = if signed { "" } else { "u" };
    match bits {
        8 | 16 | 32 | 64 => format!("{prefix}int{bits}_t"),
        _ => format!("ap_{prefix}int<{bits}>"),
    }
}

/// Whether it is a float that is computed with.
pub fn is_float(elem: TileElem) -> bool {
    matches!(elem.class(), Class::F32 | Class::F64)
}
