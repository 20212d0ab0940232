//! Vectors: loads and stores of 16 bytes, and elements narrower than they are computed in.

use super::signed;
use crate::function::{Fun, flags};
use crate::tile::LANES;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32X4, I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::kernel::{Class, TileElem};

impl Fun<'_, '_> {
    /// Four consecutive elements.
    pub(super) fn load_vector(&mut self, elem: TileElem, address: Value, offset: i64) -> Value {
        let at = offset as i32;
        match (elem.class(), signed(elem)) {
            (Class::F32, _) => self.b.ins().load(F32X4, flags(), address, at),
            (Class::Int { bits: 32, .. }, _) => self.b.ins().load(I32X4, flags(), address, at),
            (Class::Int { bits: 16, .. }, true) => {
                let halves = self.load_half(address, at, I16X8);
                self.b.ins().swiden_low(halves)
            }
            (Class::Int { bits: 16, .. } | Class::Bits(16), _) => {
                let halves = self.load_half(address, at, I16X8);
                self.b.ins().uwiden_low(halves)
            }
            _ => {
                let word = self.b.ins().load(I32, flags(), address, at);
                let vector = self.b.ins().scalar_to_vector(I32X4, word);
                let bytes = self.bits(I8X16, vector);
                let halves = self.widen(elem, bytes, false);
                let words = self.widen(elem, halves, false);
                self.truth(elem, words)
            }
        }
    }

    pub(super) fn load_half(
        &mut self,
        address: Value,
        at: i32,
        ty: cranelift_codegen::ir::Type,
    ) -> Value {
        let word = self.b.ins().load(I64, flags(), address, at);
        let vector = self.b.ins().scalar_to_vector(I64X2, word);
        self.bits(ty, vector)
    }

    pub(super) fn widen(&mut self, elem: TileElem, x: Value, high: bool) -> Value {
        match (signed(elem), high) {
            (true, false) => self.b.ins().swiden_low(x),
            (true, true) => self.b.ins().swiden_high(x),
            (false, false) => self.b.ins().uwiden_low(x),
            (false, true) => self.b.ins().uwiden_high(x),
        }
    }

    /// Loaded bytes of `bool` become masks.
    pub(super) fn truth(&mut self, elem: TileElem, words: Value) -> Value {
        if elem.class() != Class::Bool {
            return words;
        }
        let zero = self.lanes_const(I32X4, [0; LANES]);
        self.b.ins().icmp(IntCC::NotEqual, words, zero)
    }

    /// Sixteen consecutive bytes as four vectors.
    pub(super) fn load_16_bytes(
        &mut self,
        elem: TileElem,
        address: Value,
        offset: i64,
    ) -> [Value; 4] {
        let bytes = self.b.ins().load(I8X16, flags(), address, offset as i32);
        let halves = [
            self.widen(elem, bytes, false),
            self.widen(elem, bytes, true),
        ];
        [(0, false), (0, true), (1, false), (1, true)].map(|(half, high)| {
            let words = self.widen(elem, halves[half], high);
            self.truth(elem, words)
        })
    }

    /// Lanes in their type's range, two vectors into one of half the width.
    pub(super) fn halves(&mut self, elem: TileElem, a: Value, b: Value) -> Value {
        // 16-bit unsigned values need the unsigned narrowing; all others fit a signed half.
        match elem.class() {
            Class::Int {
                bits: 16,
                signed: false,
            }
            | Class::Bits(16) => self.b.ins().unarrow(a, b),
            _ => self.b.ins().snarrow(a, b),
        }
    }

    pub(super) fn quarters(&mut self, elem: TileElem, a: Value, b: Value) -> Value {
        if signed(elem) {
            self.b.ins().snarrow(a, b)
        } else {
            self.b.ins().unarrow(a, b)
        }
    }

    /// Masks become ones.
    pub(super) fn ones(&mut self, elem: TileElem, x: Value) -> Value {
        if elem.class() == Class::Bool {
            let one = self.lanes_const(I32X4, [1; LANES]);
            self.b.ins().band(x, one)
        } else {
            x
        }
    }

    pub(super) fn store_vector(&mut self, elem: TileElem, x: Value, address: Value, offset: i64) {
        let at = offset as i32;
        match elem.class() {
            Class::F32 | Class::Int { bits: 32, .. } => {
                self.b.ins().store(flags(), x, address, at);
            }
            Class::Int { bits: 16, .. } | Class::Bits(16) => {
                let halves = self.halves(elem, x, x);
                let words = self.bits(I64X2, halves);
                let word = self.b.ins().extractlane(words, 0);
                self.b.ins().store(flags(), word, address, at);
            }
            _ => {
                let x = self.ones(elem, x);
                let halves = self.halves(elem, x, x);
                let bytes = self.quarters(elem, halves, halves);
                let words = self.bits(I32X4, bytes);
                let word = self.b.ins().extractlane(words, 0);
                self.b.ins().store(flags(), word, address, at);
            }
        }
    }

    pub(super) fn store_16_bytes(
        &mut self,
        elem: TileElem,
        x: &[Value],
        address: Value,
        offset: i64,
    ) {
        let x: Vec<Value> = x.iter().map(|&v| self.ones(elem, v)).collect();
        let low = self.halves(elem, x[0], x[1]);
        let high = self.halves(elem, x[2], x[3]);
        let bytes = self.quarters(elem, low, high);
        self.b.ins().store(flags(), bytes, address, offset as i32);
    }
}
