//! Operations that work element by element.

use crate::function::Fun;
use crate::tile::{Tile, in_vectors};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, F64, I8, I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Literal, Op, TileElem, TileType, Unary, Var};

const I32_ELEM: TileElem = TileElem::Elem(ElemType::I32);
const BOOL: TileElem = TileElem::Elem(ElemType::Bool);

impl Fun<'_, '_> {
    /// A constant beside a value: in all lanes if it is a vector.
    fn beside(&mut self, elem: TileElem, literal: Literal, vector: bool) -> Value {
        if vector {
            self.vector_const(elem, literal)
        } else {
            self.scalar_const(elem, literal)
        }
    }

    /// `condition ? a : b` on parts; the condition is a mask if `vector`.
    pub fn choose(&mut self, condition: Value, a: Value, b: Value, vector: bool) -> Value {
        if !vector {
            return self.b.ins().select(condition, a, b);
        }
        let ty = self.b.func.dfg.value_type(a);
        let mask = if ty == I32X4 {
            condition
        } else {
            self.bits(ty, condition)
        };
        self.b.ins().bitselect(mask, a, b)
    }

    /// The same bits as another type.
    pub fn bits(&mut self, ty: cranelift_codegen::ir::Type, x: Value) -> Value {
        use cranelift_codegen::ir::{Endianness, MemFlagsData};
        if self.b.func.dfg.value_type(x) == ty {
            return x;
        }
        let flags = MemFlagsData::new().with_endianness(Endianness::Little);
        self.b.ins().bitcast(ty, flags, x)
    }

    pub fn unary(&mut self, ty: &TileType, f: Unary, x: &Tile) -> Result<Tile, Error> {
        if let Some(function) = lapidary_ir::kernel::map::function_of(f, ty)
            && self.micro_kernels
        {
            return Ok(self.unary_call(ty, function, x));
        }
        let elem = x.ty.elem;
        let kind = elem.class();
        let float = matches!(kind, Class::F32 | Class::F64);
        let supported = match f {
            Unary::Not => kind == Class::Bool,
            Unary::BitNot => matches!(kind, Class::Int { .. }),
            Unary::Neg | Unary::Abs | Unary::Sign => float || matches!(kind, Class::Int { .. }),
            Unary::Floor | Unary::Ceil | Unary::RoundEven | Unary::Trunc => {
                float || matches!(kind, Class::Int { .. })
            }
            Unary::Sqrt | Unary::Reciprocal | Unary::IsNan | Unary::IsInf => float,
            _ => false,
        };
        if !supported {
            return Err(self.unsupported(format!("{f:?} of {elem:?}")));
        }
        Ok(self.elementwise(ty, &[x], true, |s, v, vector| {
            if float {
                s.unary_float(f, elem, v[0], vector)
            } else {
                s.unary_int(f, elem, v[0], vector)
            }
        }))
    }

    fn unary_float(&mut self, f: Unary, elem: TileElem, x: Value, vector: bool) -> Value {
        match f {
            Unary::Neg => self.b.ins().fneg(x),
            Unary::Abs => self.b.ins().fabs(x),
            Unary::Sqrt => self.b.ins().sqrt(x),
            Unary::Floor => self.b.ins().floor(x),
            Unary::Ceil => self.b.ins().ceil(x),
            Unary::RoundEven => self.b.ins().nearest(x),
            Unary::Trunc => self.b.ins().trunc(x),
            Unary::Reciprocal => {
                let one = self.beside(elem, Literal::Float(1.0), vector);
                self.b.ins().fdiv(one, x)
            }
            Unary::IsNan => self.b.ins().fcmp(FloatCC::Unordered, x, x),
            Unary::IsInf => {
                let inf = self.beside(elem, Literal::Float(f64::INFINITY), vector);
                let magnitude = self.b.ins().fabs(x);
                self.b.ins().fcmp(FloatCC::Equal, magnitude, inf)
            }
            _ => {
                // The sign; zeros and NaN stay themselves.
                let zero = self.beside(elem, Literal::Float(0.0), vector);
                let one = self.beside(elem, Literal::Float(1.0), vector);
                let minus = self.beside(elem, Literal::Float(-1.0), vector);
                let above = self.b.ins().fcmp(FloatCC::GreaterThan, x, zero);
                let below = self.b.ins().fcmp(FloatCC::LessThan, x, zero);
                let rest = self.choose(below, minus, x, vector);
                self.choose(above, one, rest, vector)
            }
        }
    }

    fn unary_int(&mut self, f: Unary, elem: TileElem, x: Value, vector: bool) -> Value {
        let signed = matches!(elem.class(), Class::Int { signed: true, .. });
        let y = match f {
            Unary::Not if vector => self.b.ins().bnot(x),
            Unary::Not => return self.b.ins().bxor_imm_u(x, 1),
            Unary::BitNot => self.b.ins().bnot(x),
            Unary::Neg => self.b.ins().ineg(x),
            Unary::Abs if signed => self.b.ins().iabs(x),
            Unary::Sign => {
                let zero = self.beside(elem, Literal::Int(0), vector);
                let one = self.beside(elem, Literal::Int(1), vector);
                let positive = self.b.ins().icmp(IntCC::NotEqual, x, zero);
                let y = self.choose(positive, one, zero, vector);
                if !signed {
                    return y;
                }
                let minus = self.beside(elem, Literal::Int(-1), vector);
                let below = self.b.ins().icmp(IntCC::SignedLessThan, x, zero);
                return self.choose(below, minus, y, vector);
            }
            _ => return x,
        };
        if f == Unary::Not {
            y
        } else {
            self.normalize(elem, y)
        }
    }

    pub fn binary(&mut self, ty: &TileType, f: Binary, a: Var, b: Var) -> Result<Tile, Error> {
        let (x, y) = (self.get(a)?, self.get(b)?);
        let elem = x.ty.elem;
        match elem.class() {
            Class::F32 | Class::F64 => self.binary_float(ty, f, (a, &x), (b, &y)),
            Class::Int { .. } => self.binary_int(ty, f, &x, (b, &y)),
            Class::Bool => self.binary_bool(ty, f, &x, &y),
            Class::Bits(_) => Err(self.unsupported(format!("{f:?} of {elem:?}"))),
        }
    }

    fn binary_float(
        &mut self,
        ty: &TileType,
        f: Binary,
        (a, x): (Var, &Tile),
        (b, y): (Var, &Tile),
    ) -> Result<Tile, Error> {
        let number = |s: &Self, v: Var| match s.facts.literal(v) {
            Some(Literal::Float(c)) => !c.is_nan(),
            _ => false,
        };
        let (a_number, b_number) = (number(self, a), number(self, b));
        let known = float_compare(f).is_some()
            || matches!(
                f,
                Binary::Add
                    | Binary::Sub
                    | Binary::Mul
                    | Binary::Div
                    | Binary::FloorDiv
                    | Binary::Min
                    | Binary::Max
            );
        if !known {
            return Err(self.unsupported(format!("{f:?} of {:?}", x.ty.elem)));
        }
        Ok(self.elementwise(ty, &[x, y], true, |s, v, vector| {
            let (x, y) = (v[0], v[1]);
            match f {
                Binary::Min | Binary::Max if a_number => s.min_max(f == Binary::Max, x, y, vector),
                Binary::Min | Binary::Max if b_number => s.min_max(f == Binary::Max, y, x, vector),
                _ => s.float_parts(f, x, y, vector),
            }
        }))
    }

    /// A function of two float parts; one of those that need no expansion.
    fn float_parts(&mut self, f: Binary, x: Value, y: Value, vector: bool) -> Value {
        if let Some(cc) = float_compare(f) {
            return self.b.ins().fcmp(cc, x, y);
        }
        match f {
            Binary::Add => self.b.ins().fadd(x, y),
            Binary::Sub => self.b.ins().fsub(x, y),
            Binary::Mul => self.b.ins().fmul(x, y),
            Binary::Div => self.b.ins().fdiv(x, y),
            Binary::FloorDiv => {
                let q = self.b.ins().fdiv(x, y);
                self.b.ins().floor(q)
            }
            _ => {
                let z = self.min_max(f == Binary::Max, y, x, vector);
                let nan = self.b.ins().fcmp(FloatCC::Unordered, y, y);
                self.choose(nan, y, z, vector)
            }
        }
    }

    /// A function of two parts of this element type, as reductions need it.
    pub fn binary_parts(
        &mut self,
        elem: TileElem,
        f: Binary,
        x: Value,
        y: Value,
        vector: bool,
    ) -> Result<Value, Error> {
        Ok(match (elem.class(), f) {
            (Class::F32 | Class::F64, _) => self.float_parts(f, x, y, vector),
            (Class::Bool, Binary::And | Binary::Min | Binary::Mul) | (_, Binary::And) => {
                self.b.ins().band(x, y)
            }
            (Class::Bool, _) | (_, Binary::Or) => self.b.ins().bor(x, y),
            (Class::Int { signed, .. }, Binary::Min | Binary::Max) => {
                self.int_min_max(f == Binary::Max, signed, x, y, vector)
            }
            (Class::Int { .. }, Binary::Add | Binary::Mul) => {
                let z = if f == Binary::Add {
                    self.b.ins().iadd(x, y)
                } else {
                    self.b.ins().imul(x, y)
                };
                self.normalize(elem, z)
            }
            _ => return Err(self.unsupported(format!("a reduction by {f:?} of {elem:?}"))),
        })
    }

    /// The smaller or larger of two; `x` if either is NaN. This form is one instruction on x86.
    fn min_max(&mut self, max: bool, c: Value, x: Value, vector: bool) -> Value {
        let first = if max {
            self.b.ins().fcmp(FloatCC::LessThan, x, c)
        } else {
            self.b.ins().fcmp(FloatCC::LessThan, c, x)
        };
        self.choose(first, c, x, vector)
    }

    fn binary_bool(&mut self, ty: &TileType, f: Binary, x: &Tile, y: &Tile) -> Result<Tile, Error> {
        let known = matches!(
            f,
            Binary::And
                | Binary::Or
                | Binary::Xor
                | Binary::Eq
                | Binary::Ne
                | Binary::Min
                | Binary::Max
                | Binary::Mul
                | Binary::Add
                | Binary::Lt
                | Binary::Le
                | Binary::Gt
                | Binary::Ge
        );
        if !known {
            return Err(self.unsupported(format!("{f:?} of bool")));
        }
        Ok(self.elementwise(ty, &[x, y], true, |s, v, vector| {
            let (x, y) = (v[0], v[1]);
            let not = |s: &mut Self, x| {
                if vector {
                    s.b.ins().bnot(x)
                } else {
                    s.b.ins().bxor_imm_u(x, 1)
                }
            };
            match f {
                Binary::And | Binary::Min | Binary::Mul => s.b.ins().band(x, y),
                Binary::Or | Binary::Max | Binary::Add => s.b.ins().bor(x, y),
                Binary::Xor | Binary::Ne => s.b.ins().bxor(x, y),
                Binary::Lt => {
                    let n = not(s, x);
                    s.b.ins().band(n, y)
                }
                Binary::Gt => {
                    let n = not(s, y);
                    s.b.ins().band(x, n)
                }
                Binary::Le => {
                    let n = not(s, x);
                    s.b.ins().bor(n, y)
                }
                Binary::Ge => {
                    let n = not(s, y);
                    s.b.ins().bor(x, n)
                }
                _ => {
                    let z = s.b.ins().bxor(x, y);
                    not(s, z)
                }
            }
        }))
    }

    fn binary_int(
        &mut self,
        ty: &TileType,
        f: Binary,
        x: &Tile,
        (b, y): (Var, &Tile),
    ) -> Result<Tile, Error> {
        let elem = x.ty.elem;
        let Class::Int { bits, signed } = elem.class() else {
            return Err(self.unsupported(format!("{f:?} of {elem:?}")));
        };
        let constant = self.facts.int(b);
        let compare = int_compare(f, signed);
        let vectors = match f {
            Binary::Div | Binary::Mod | Binary::Rem | Binary::FloorDiv => false,
            // One instruction shifts all lanes by the same amount.
            Binary::Shl | Binary::Shr => constant.is_some(),
            _ => true,
        };
        if matches!(f, Binary::Pow | Binary::Atan2) {
            return Err(self.unsupported(format!("{f:?} of {elem:?}")));
        }
        Ok(self.elementwise(ty, &[x, y], vectors, |s, v, vector| {
            let (x, y) = (v[0], v[1]);
            let z = match (f, compare) {
                (_, Some(cc)) => return s.b.ins().icmp(cc, x, y),
                (Binary::Add, _) => s.b.ins().iadd(x, y),
                (Binary::Sub, _) => s.b.ins().isub(x, y),
                (Binary::Mul, _) => s.b.ins().imul(x, y),
                (Binary::And, _) => return s.b.ins().band(x, y),
                (Binary::Or, _) => return s.b.ins().bor(x, y),
                (Binary::Xor, _) => return s.b.ins().bxor(x, y),
                (Binary::Min | Binary::Max, _) => {
                    return s.int_min_max(f == Binary::Max, signed, x, y, vector);
                }
                (Binary::Shl | Binary::Shr, _) => s.shift(f, bits, signed, x, y, constant, vector),
                _ => s.quotient(f, bits, signed, x, y, constant),
            };
            s.normalize(elem, z)
        }))
    }

    fn int_min_max(&mut self, max: bool, signed: bool, x: Value, y: Value, vector: bool) -> Value {
        if vector {
            return match (max, signed) {
                (true, true) => self.b.ins().smax(x, y),
                (true, false) => self.b.ins().umax(x, y),
                (false, true) => self.b.ins().smin(x, y),
                (false, false) => self.b.ins().umin(x, y),
            };
        }
        let cc = match (max, signed) {
            (true, true) => IntCC::SignedGreaterThan,
            (true, false) => IntCC::UnsignedGreaterThan,
            (false, true) => IntCC::SignedLessThan,
            (false, false) => IntCC::UnsignedLessThan,
        };
        let first = self.b.ins().icmp(cc, x, y);
        self.b.ins().select(first, x, y)
    }

    /// Shifts by the type's width or more give zero, or the sign.
    #[allow(
        clippy::too_many_arguments,
        reason = "one operand of an instruction each"
    )]
    fn shift(
        &mut self,
        f: Binary,
        bits: u32,
        signed: bool,
        x: Value,
        y: Value,
        constant: Option<i64>,
        vector: bool,
    ) -> Value {
        let arithmetic = signed && f == Binary::Shr;
        let lanes = if bits == 64 { 64 } else { 32 };
        let by = |s: &mut Self, amount: Value| match (f, arithmetic) {
            (Binary::Shl, _) => s.b.ins().ishl(x, amount),
            (_, true) => s.b.ins().sshr(x, amount),
            (_, false) => s.b.ins().ushr(x, amount),
        };
        if let Some(c) = constant {
            let out = !(0..i64::from(bits)).contains(&c);
            let amount = if out { lanes - 1 } else { c };
            let amount = self.b.ins().iconst(I32, amount);
            let z = by(self, amount);
            return if out && !arithmetic {
                let ty = if bits == 64 {
                    TileElem::Index
                } else {
                    I32_ELEM
                };
                self.beside(ty, Literal::Int(0), vector)
            } else {
                z
            };
        }
        let out = self
            .b
            .ins()
            .icmp_imm_s(IntCC::UnsignedGreaterThanOrEqual, y, i64::from(bits));
        let ty = self.b.func.dfg.value_type(x);
        let last = self.b.ins().iconst(ty, lanes - 1);
        let zero = self.b.ins().iconst(ty, 0);
        let amount = self.b.ins().select(out, last, y);
        let z = by(self, amount);
        if arithmetic {
            z
        } else {
            self.b.ins().select(out, zero, z)
        }
    }

    /// Division and remainders of scalars; never traps.
    fn quotient(
        &mut self,
        f: Binary,
        bits: u32,
        signed: bool,
        x: Value,
        y: Value,
        constant: Option<i64>,
    ) -> Value {
        let ty = self.b.func.dfg.value_type(x);
        if let (Some(d), 64, true, Binary::FloorDiv | Binary::Mod) =
            (constant.filter(|&d| d > 0), bits, signed, f)
        {
            return self.floor_by_constant(f, x, d);
        }
        let zero = self.b.ins().iconst(ty, 0);
        let one = self.b.ins().iconst(ty, 1);
        let by_zero = self.b.ins().icmp(IntCC::Equal, y, zero);
        let (quotient, remainder) = if signed {
            // Division by -1 overflows for the smallest number; as a negation it wraps.
            let by_minus_one = self.b.ins().icmp_imm_s(IntCC::Equal, y, -1);
            let special = self.b.ins().bor(by_zero, by_minus_one);
            let divisor = self.b.ins().select(special, one, y);
            let q = self.b.ins().sdiv(x, divisor);
            let negated = self.b.ins().ineg(x);
            let q = self.b.ins().select(by_minus_one, negated, q);
            let product = self.b.ins().imul(q, y);
            (q, self.b.ins().isub(x, product))
        } else {
            let divisor = self.b.ins().select(by_zero, one, y);
            let q = self.b.ins().udiv(x, divisor);
            let product = self.b.ins().imul(q, y);
            (q, self.b.ins().isub(x, product))
        };
        let adjust = if signed && matches!(f, Binary::Mod | Binary::FloorDiv) {
            let inexact = self.b.ins().icmp(IntCC::NotEqual, remainder, zero);
            let mixed = self.b.ins().bxor(remainder, y);
            let mixed = self.b.ins().icmp(IntCC::SignedLessThan, mixed, zero);
            Some(self.b.ins().band(inexact, mixed))
        } else {
            None
        };
        let z = match (f, adjust) {
            (Binary::Div, _) | (Binary::FloorDiv, None) => quotient,
            (Binary::FloorDiv, Some(adjust)) => {
                let down = self.b.ins().isub(quotient, one);
                self.b.ins().select(adjust, down, quotient)
            }
            (Binary::Mod, Some(adjust)) => {
                let up = self.b.ins().iadd(remainder, y);
                self.b.ins().select(adjust, up, remainder)
            }
            _ => remainder,
        };
        self.b.ins().select(by_zero, zero, z)
    }

    /// Index quotient or remainder by a positive constant, by multiplication: for `0 <= t < 2^63` and
    /// `2^s < d <= 2^(s+1)`, `t / d` is the high half of `t * (2^(64+s) / d + 1)`, shifted right by `s`. A
    /// negative number is complemented before and after, which rounds down.
    fn floor_by_constant(&mut self, f: Binary, x: Value, d: i64) -> Value {
        let quotient = if d == 1 {
            x
        } else if d.count_ones() == 1 {
            self.b.ins().sshr_imm_u(x, i64::from(d.trailing_zeros()))
        } else {
            let s = 63 - (d - 1).leading_zeros();
            let magic = ((1u128 << (64 + s)) / d as u128 + 1) as u64;
            let sign = self.b.ins().sshr_imm_u(x, 63);
            let t = self.b.ins().bxor(x, sign);
            let magic = self.b.ins().iconst(I64, magic as i64);
            let high = self.b.ins().umulhi(t, magic);
            let q = self.b.ins().ushr_imm_u(high, i64::from(s));
            self.b.ins().bxor(q, sign)
        };
        if f == Binary::FloorDiv {
            return quotient;
        }
        let product = self.b.ins().imul_imm_s(quotient, d);
        self.b.ins().isub(x, product)
    }

    pub fn select(&mut self, ty: &TileType, c: &Tile, a: &Tile, b: &Tile) -> Tile {
        self.elementwise(ty, &[c, a, b], true, |s, v, vector| {
            s.choose(v[0], v[1], v[2], vector)
        })
    }

    pub fn mul_add(&mut self, ty: &TileType, a: &Tile, b: &Tile, c: &Tile) -> Tile {
        self.elementwise(ty, &[a, b, c], true, |s, v, _| {
            s.multiply_add(ty.elem, v[0], v[1], v[2])
        })
    }

    /// `a * b + c` on parts.
    pub fn multiply_add(&mut self, elem: TileElem, a: Value, b: Value, c: Value) -> Value {
        match elem.class() {
            Class::F32 | Class::F64 if self.fused => self.b.ins().fma(a, b, c),
            Class::F32 | Class::F64 => {
                let product = self.b.ins().fmul(a, b);
                self.b.ins().fadd(product, c)
            }
            _ => {
                let product = self.b.ins().imul(a, b);
                let sum = self.b.ins().iadd(product, c);
                self.normalize(elem, sum)
            }
        }
    }

    pub fn cast(&mut self, ty: &TileType, x: &Tile) -> Result<Tile, Error> {
        let (from, to) = (x.ty.elem.class(), ty.elem.class());
        if matches!(from, Class::Bits(_)) || matches!(to, Class::Bits(_)) {
            return Err(
                self.unsupported(format!("a conversion of {:?} to {:?}", x.ty.elem, ty.elem))
            );
        }
        let (from_elem, to_elem) = (x.ty.elem, ty.elem);
        Ok(self.elementwise(ty, &[x], true, |s, v, vector| match from {
            Class::F32 | Class::F64 => s.cast_float(from_elem, to_elem, v[0], vector),
            Class::Bool => s.cast_bool(to_elem, v[0], vector),
            _ => s.cast_int(from_elem, to_elem, v[0], vector),
        }))
    }

    /// The `f32` value that `x` is a conversion to `i32` of, if the result is of 8 bits and the value is kept within the
    /// range of `i32` by constants: then the conversion need not saturate. What is no number converts to the least `i32`,
    /// whose low 8 bits are those of zero.
    pub fn small_number(&self, ty: &TileType, x: Var) -> Option<Var> {
        let eight = matches!(ty.elem.class(), Class::Int { bits: 8, .. });
        let Some(Op::Cast(number)) = self.facts.def(x) else {
            return None;
        };
        let from = self.facts.ty(*number).elem.class();
        let bound = |v: Var| match self.facts.literal(v)? {
            Literal::Float(f) if f.abs() < 1e9 => Some(f),
            _ => None,
        };
        let Some(Op::Binary(Binary::Min, inner, hi)) = self.facts.def(*number) else {
            return None;
        };
        let Some(Op::Binary(Binary::Max, _, lo)) = self.facts.def(*inner) else {
            return None;
        };
        let bounded = bound(*lo)? <= bound(*hi)?;
        (self.x86 && eight && self.facts.ty(x).elem == I32_ELEM && from == Class::F32 && bounded)
            .then_some(*number)
    }

    /// The conversion of what [`Fun::small_number`] finds.
    pub fn cast_small(&mut self, ty: &TileType, x: &Tile) -> Tile {
        self.elementwise(ty, &[x], true, |s, v, vector| {
            let whole = match vector {
                true => s.b.ins().x86_cvtt2dq(I32X4, v[0]),
                false => s.b.ins().fcvt_to_sint_sat(I32, v[0]),
            };
            s.normalize(ty.elem, whole)
        })
    }

    fn cast_float(&mut self, from: TileElem, to: TileElem, x: Value, vector: bool) -> Value {
        match (from.class(), to.class()) {
            (a, b) if a == b => x,
            (_, Class::F64) => self.b.ins().fpromote(F64, x),
            (_, Class::F32) => self.b.ins().fdemote(F32, x),
            (_, Class::Bool) => {
                let zero = self.beside(from, Literal::Float(0.0), vector);
                self.b.ins().fcmp(FloatCC::NotEqual, x, zero)
            }
            (_, Class::Int { bits, signed }) => {
                let ty = match (bits, vector) {
                    (64, _) => I64,
                    (_, true) => I32X4,
                    _ => I32,
                };
                if bits >= 32 && !signed {
                    return self.b.ins().fcvt_to_uint_sat(ty, x);
                }
                let y = self.b.ins().fcvt_to_sint_sat(ty, x);
                if bits >= 32 {
                    return y;
                }
                let (lo, hi) = if signed {
                    (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
                } else {
                    (0, (1 << bits) - 1)
                };
                let lo = self.beside(I32_ELEM, Literal::Int(lo), vector);
                let hi = self.beside(I32_ELEM, Literal::Int(hi), vector);
                let y = self.int_min_max(true, true, y, lo, vector);
                self.int_min_max(false, true, y, hi, vector)
            }
            _ => x,
        }
    }

    fn cast_bool(&mut self, to: TileElem, x: Value, vector: bool) -> Value {
        let elem = if to.class() == Class::Bool { BOOL } else { to };
        match to.class() {
            Class::Bool => x,
            // A mask selects the bits of one.
            _ if vector => {
                let literal = if to.class() == Class::F32 {
                    Literal::Float(1.0)
                } else {
                    Literal::Int(1)
                };
                let one = self.vector_const(elem, literal);
                let one = self.bits(I32X4, one);
                let y = self.b.ins().band(x, one);
                let ty = crate::tile::vector_type(to);
                self.bits(ty, y)
            }
            Class::Int { bits: 64, .. } => self.b.ins().uextend(I64, x),
            Class::Int { .. } | Class::Bits(_) => self.b.ins().uextend(I32, x),
            class => {
                let wide = self.b.ins().uextend(I32, x);
                let ty = if class == Class::F32 { F32 } else { F64 };
                self.b.ins().fcvt_from_sint(ty, wide)
            }
        }
    }

    fn cast_int(&mut self, from: TileElem, to: TileElem, x: Value, vector: bool) -> Value {
        let Class::Int { bits, signed } = from.class() else {
            return x;
        };
        match to.class() {
            Class::Bool => {
                let zero = self.beside(from, Literal::Int(0), vector);
                self.b.ins().icmp(IntCC::NotEqual, x, zero)
            }
            Class::F32 | Class::F64 => {
                let ty = match (to.class(), vector) {
                    (Class::F64, _) => F64,
                    (_, true) => F32X4,
                    _ => F32,
                };
                if signed || bits < 32 {
                    self.b.ins().fcvt_from_sint(ty, x)
                } else {
                    self.b.ins().fcvt_from_uint(ty, x)
                }
            }
            Class::Int { bits: 64, .. } => match (bits, signed) {
                (64, _) => x,
                (_, true) => self.b.ins().sextend(I64, x),
                (_, false) => self.b.ins().uextend(I64, x),
            },
            _ => {
                let x = if bits == 64 {
                    self.b.ins().ireduce(I32, x)
                } else {
                    x
                };
                self.normalize(to, x)
            }
        }
    }

    pub fn bitcast(&mut self, ty: &TileType, x: &Tile) -> Result<Tile, Error> {
        let width = |elem: TileElem| match elem.class() {
            Class::F32 => 32,
            Class::F64 => 64,
            Class::Bool => 8,
            Class::Int { bits, .. } | Class::Bits(bits) => bits.next_multiple_of(8),
        };
        if width(x.ty.elem) != width(ty.elem) || in_vectors(x.ty.elem) != in_vectors(ty.elem) {
            return Err(self.unsupported(format!("{:?} bits as {:?}", x.ty.elem, ty.elem)));
        }
        let bool_either = x.ty.elem.class() == Class::Bool || ty.elem.class() == Class::Bool;
        if bool_either {
            return self.cast(ty, x);
        }
        Ok(self.elementwise(ty, &[x], true, |s, v, vector| {
            let to = if vector {
                crate::tile::vector_type(ty.elem)
            } else {
                crate::tile::scalar_type(ty.elem)
            };
            let y = s.bits(to, v[0]);
            s.normalize(ty.elem, y)
        }))
    }

    /// All elements of a `bool` tile are true: an `i8`.
    pub fn all_true(&mut self, tile: &Tile) -> Value {
        let mut all = self.yes();
        for i in 0..tile.parts.len() {
            let part = tile.parts[i];
            let one = if self.b.func.dfg.value_type(part) == I8 {
                part
            } else {
                self.b.ins().vall_true(part)
            };
            all = self.b.ins().band(all, one);
        }
        all
    }
}

fn float_compare(f: Binary) -> Option<FloatCC> {
    Some(match f {
        Binary::Eq => FloatCC::Equal,
        Binary::Ne => FloatCC::NotEqual,
        Binary::Lt => FloatCC::LessThan,
        Binary::Le => FloatCC::LessThanOrEqual,
        Binary::Gt => FloatCC::GreaterThan,
        Binary::Ge => FloatCC::GreaterThanOrEqual,
        _ => return None,
    })
}

fn int_compare(f: Binary, signed: bool) -> Option<IntCC> {
    Some(match (f, signed) {
        (Binary::Eq, _) => IntCC::Equal,
        (Binary::Ne, _) => IntCC::NotEqual,
        (Binary::Lt, true) => IntCC::SignedLessThan,
        (Binary::Le, true) => IntCC::SignedLessThanOrEqual,
        (Binary::Gt, true) => IntCC::SignedGreaterThan,
        (Binary::Ge, true) => IntCC::SignedGreaterThanOrEqual,
        (Binary::Lt, false) => IntCC::UnsignedLessThan,
        (Binary::Le, false) => IntCC::UnsignedLessThanOrEqual,
        (Binary::Gt, false) => IntCC::UnsignedGreaterThan,
        (Binary::Ge, false) => IntCC::UnsignedGreaterThanOrEqual,
        _ => return None,
    })
}
