//! What arithmetic an element needs: the distinction that every code generator makes.

use super::{Literal, TileElem};
use crate::ElemType;
use lapidary_abi::elem::ElemClass;

/// What arithmetic an element needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Truth values.
    Bool,
    /// Integers; an index is a signed 64-bit integer.
    Int {
        /// Significant bits.
        bits: u32,
        /// Two's complement.
        signed: bool,
    },
    /// Bits of a float that is only loaded, stored and converted.
    Bits(u32),
}

impl TileElem {
    /// The class of an element.
    pub fn class(self) -> Class {
        let TileElem::Elem(elem) = self else {
            return Class::Int {
                bits: 64,
                signed: true,
            };
        };
        match (elem, elem.class()) {
            (ElemType::F32, _) => Class::F32,
            (ElemType::F64, _) => Class::F64,
            (_, ElemClass::Bool) => Class::Bool,
            (_, ElemClass::Signed) => Class::Int {
                bits: elem.bits(),
                signed: true,
            },
            (_, ElemClass::Unsigned) => Class::Int {
                bits: elem.bits(),
                signed: false,
            },
            _ => Class::Bits(elem.bits()),
        }
    }

    /// An integer literal in the range of an integer type or of a float's bits.
    pub fn wrap_literal(self, x: i64) -> i64 {
        match self.class() {
            Class::Int { bits, signed: true } if bits < 64 => x << (64 - bits) >> (64 - bits),
            Class::Int { bits, .. } | Class::Bits(bits) if bits < 64 => {
                ((x as u64) << (64 - bits) >> (64 - bits)) as i64
            }
            _ => x,
        }
    }
}

impl Literal {
    /// As a float.
    pub fn as_float(self) -> f64 {
        match self {
            Literal::Int(i) => i as f64,
            Literal::Float(f) => f,
        }
    }

    /// As an integer.
    pub fn as_int(self) -> i64 {
        match self {
            Literal::Int(i) => i,
            Literal::Float(f) => f as i64,
        }
    }

    /// The literal of an element; one of a float that is held as bits becomes these bits.
    pub fn held(self, elem: TileElem) -> Literal {
        match (elem.class(), elem, self) {
            (Class::Bits(_), TileElem::Elem(elem), Literal::Float(f)) => {
                let bytes = crate::Tensor::from_f64(elem, [], vec![f]).to_bytes();
                let bytes = bytes.unwrap_or_default().into_iter().rev();
                Literal::Int(bytes.fold(0, |bits, b| bits << 8 | i64::from(b)))
            }
            _ => self,
        }
    }
}
