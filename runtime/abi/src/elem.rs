//! Element types of tensors, shared by the compiler and the runtime.
//!
//! Sub-byte types hold one element per byte wherever a tensor lives in memory as a value (sign-extended
//! for the signed ones); packing happens in encodings and in file formats only. `F8*`, `F4E2M1` and
//! `F8E8M0` are stored as their bit pattern, one byte each. `Bool` is one byte, 0 or 1.

use serde::{Deserialize, Serialize};

/// The class of arithmetic an element type belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElemClass {
    /// IEEE and brain floats, and the small float formats.
    Float,
    /// Two's-complement integers.
    Signed,
    /// Unsigned integers.
    Unsigned,
    /// Truth values.
    Bool,
    /// Pairs of floats: real, imaginary.
    Complex,
    /// UTF-8 strings.
    String,
}

macro_rules! elem_types {
    ($($variant:ident $name:literal $class:ident $bits:literal $onnx:literal,)*) => {
        /// Logical type of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "each variant is named as in the table below")]
        pub enum ElemType { $($variant,)* }

        impl ElemType {
            /// Every element type, in declaration order.
            pub const ALL: &'static [ElemType] = &[$(ElemType::$variant,)*];
            /// Name in the text form: `f32`, `i8`, `bool` …
            pub const fn name(self) -> &'static str { match self { $(ElemType::$variant => $name,)* } }
            /// Arithmetic class.
            pub const fn class(self) -> ElemClass { match self { $(ElemType::$variant => ElemClass::$class,)* } }
            /// Significant bits of one element (0 for strings).
            pub const fn bits(self) -> u32 { match self { $(ElemType::$variant => $bits,)* } }
            /// Number of this type in ONNX's `TensorProto.DataType`.
            pub const fn onnx(self) -> i32 { match self { $(ElemType::$variant => $onnx,)* } }
        }
    };
}

elem_types! {
    F32 "f32" Float 32 1,
    F64 "f64" Float 64 11,
    F16 "f16" Float 16 10,
    BF16 "bf16" Float 16 16,
    F8E4M3FN "f8e4m3fn" Float 8 17,
    F8E4M3FNUZ "f8e4m3fnuz" Float 8 18,
    F8E5M2 "f8e5m2" Float 8 19,
    F8E5M2FNUZ "f8e5m2fnuz" Float 8 20,
    F8E8M0 "f8e8m0" Float 8 24,
    F4E2M1 "f4e2m1" Float 4 23,
    I64 "i64" Signed 64 7,
    I32 "i32" Signed 32 6,
    I16 "i16" Signed 16 5,
    I8 "i8" Signed 8 3,
    I4 "i4" Signed 4 22,
    I2 "i2" Signed 2 26,
    U64 "u64" Unsigned 64 13,
    U32 "u32" Unsigned 32 12,
    U16 "u16" Unsigned 16 4,
    U8 "u8" Unsigned 8 2,
    U4 "u4" Unsigned 4 21,
    U2 "u2" Unsigned 2 25,
    Bool "bool" Bool 1 9,
    C64 "c64" Complex 64 14,
    C128 "c128" Complex 128 15,
    String "string" String 0 8,
}

impl ElemType {
    /// Bytes one element occupies in a tensor value (sub-byte types: 1; strings: 0, they live apart).
    pub const fn size_bytes(self) -> usize {
        match self.bits() {
            0 => 0,
            b if b < 8 => 1,
            b => (b / 8) as usize,
        }
    }

    /// The element type of an ONNX `DataType` number.
    pub fn from_onnx(number: i32) -> Option<ElemType> {
        Self::ALL.iter().copied().find(|e| e.onnx() == number)
    }

    /// The element type with this text name.
    pub fn from_name(name: &str) -> Option<ElemType> {
        Self::ALL.iter().copied().find(|e| e.name() == name)
    }

    /// True for every float class type, 8- and 4-bit ones included.
    pub const fn is_float(self) -> bool {
        matches!(self.class(), ElemClass::Float)
    }

    /// True for signed and unsigned integers (not `bool`).
    pub const fn is_int(self) -> bool {
        matches!(self.class(), ElemClass::Signed | ElemClass::Unsigned)
    }

    /// Smallest and largest value of an integer type or `bool`; `None` for others.
    pub const fn int_range(self) -> Option<(i128, i128)> {
        match self.class() {
            ElemClass::Signed => Some((-(1 << (self.bits() - 1)), (1 << (self.bits() - 1)) - 1)),
            ElemClass::Unsigned => Some((0, (1 << self.bits()) - 1)),
            ElemClass::Bool => Some((0, 1)),
            _ => None,
        }
    }
}

impl std::fmt::Display for ElemType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_onnx_numbers_read_back() {
        for &e in ElemType::ALL {
            assert_eq!(ElemType::from_name(e.name()), Some(e));
            assert_eq!(ElemType::from_onnx(e.onnx()), Some(e));
        }
    }
}
