//! Operations that work element by element.

use crate::function::Fun;
use crate::tile::{Tile, is_signed, literal, register};
use crate::writer::{Ty, Val};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Literal, TileElem, TileType, Unary};

impl Fun<'_> {
    pub fn unary(&mut self, ty: &TileType, f: Unary, x: &Tile) -> Result<Tile, Error> {
        let elem = x.ty.elem;
        let kind = elem.class();
        let float = matches!(kind, Class::F32 | Class::F64);
        let int = matches!(kind, Class::Int { .. });
        let supported = match f {
            Unary::Not => kind == Class::Bool || int,
            Unary::BitNot | Unary::IsNan | Unary::IsInf if int => true,
            Unary::Neg | Unary::Abs | Unary::Sign => float || int,
            Unary::Floor | Unary::Ceil | Unary::RoundEven | Unary::Trunc => float || int,
            Unary::Sqrt | Unary::Reciprocal | Unary::IsNan | Unary::IsInf => float,
            _ => false,
        };
        if !supported {
            return Err(self.unsupported(format!("{f:?} of {elem:?}")));
        }
        Ok(self.elementwise(ty, &[x], |s, v| {
            if float {
                s.unary_float(f, elem, v[0])
            } else {
                s.unary_int(f, elem, v[0])
            }
        }))
    }

    fn unary_float(&mut self, f: Unary, elem: TileElem, x: Val) -> Val {
        let ty = x.ty;
        let t = ty.name();
        let number = |c| literal(elem, Literal::Float(c));
        let w = &mut self.w;
        match f {
            Unary::Neg => w.op(ty, &format!("neg.{t}"), &[x]),
            Unary::Abs => w.op(ty, &format!("abs.{t}"), &[x]),
            Unary::Sqrt => w.op(ty, &format!("sqrt.rn.{t}"), &[x]),
            Unary::Reciprocal => w.op(ty, &format!("rcp.rn.{t}"), &[x]),
            Unary::Floor => w.op(ty, &format!("cvt.rmi.{t}.{t}"), &[x]),
            Unary::Ceil => w.op(ty, &format!("cvt.rpi.{t}.{t}"), &[x]),
            Unary::RoundEven => w.op(ty, &format!("cvt.rni.{t}.{t}"), &[x]),
            Unary::Trunc => w.op(ty, &format!("cvt.rzi.{t}.{t}"), &[x]),
            Unary::IsNan => w.compare(&format!("nan.{t}"), x, x),
            Unary::IsInf => {
                let magnitude = w.op(ty, &format!("abs.{t}"), &[x]);
                w.compare(&format!("eq.{t}"), magnitude, number(f64::INFINITY))
            }
            _ => {
                // The sign; zeros and NaN stay themselves.
                let above = w.compare(&format!("gt.{t}"), x, number(0.0));
                let below = w.compare(&format!("lt.{t}"), x, number(0.0));
                let rest = w.select(below, number(-1.0), x);
                w.select(above, number(1.0), rest)
            }
        }
    }

    fn unary_int(&mut self, f: Unary, elem: TileElem, x: Val) -> Val {
        let ty = x.ty;
        let s = signed_name(ty);
        let number = |c| literal(elem, Literal::Int(c));
        let y = match f {
            Unary::Not if ty == Ty::Pred => return self.w.op(ty, "not.pred", &[x]),
            Unary::Not => return self.w.compare(&format!("eq.{s}"), x, number(0)),
            Unary::IsNan | Unary::IsInf => return Val::bool(false),
            Unary::BitNot => self.w.op(ty, &format!("not.{}", ty.name()), &[x]),
            Unary::Neg => self.w.op(ty, &format!("neg.{s}"), &[x]),
            Unary::Abs if is_signed(elem) => self.w.op(ty, &format!("abs.{s}"), &[x]),
            Unary::Sign => {
                let other = self.w.compare(&format!("ne.{s}"), x, number(0));
                let y = self.w.select(other, number(1), number(0));
                if !is_signed(elem) {
                    return y;
                }
                let below = self.w.compare(&format!("lt.{s}"), x, number(0));
                return self.w.select(below, number(-1), y);
            }
            _ => return x,
        };
        self.normalize(elem, y)
    }

    pub fn binary(&mut self, ty: &TileType, f: Binary, x: &Tile, y: &Tile) -> Result<Tile, Error> {
        let elem = x.ty.elem;
        if !self.has_binary(f, elem) {
            return Err(self.unsupported(format!("{f:?} of {elem:?}")));
        }
        Ok(self.elementwise(ty, &[x, y], |s, v| s.binary_parts(elem, f, v[0], v[1])))
    }

    /// Whether [`Fun::binary_parts`] knows a function.
    pub fn has_binary(&self, f: Binary, elem: TileElem) -> bool {
        match elem.class() {
            Class::F32 | Class::F64 => comparison(f).is_some() || float_binary(f),
            Class::Int { .. } => !matches!(f, Binary::Pow | Binary::Atan2),
            Class::Bool => bool_binary(f).is_some(),
            Class::Bits(_) => false,
        }
    }

    /// A function of two parts of this element type that is defined for it.
    pub fn binary_parts(&mut self, elem: TileElem, f: Binary, x: Val, y: Val) -> Val {
        match elem.class() {
            Class::F32 | Class::F64 => self.float_parts(f, x, y),
            Class::Bool => self.bool_parts(f, x, y),
            _ => self.int_parts(f, elem, x, y),
        }
    }

    fn float_parts(&mut self, f: Binary, x: Val, y: Val) -> Val {
        let ty = x.ty;
        let t = ty.name();
        let w = &mut self.w;
        if let Some(condition) = comparison(f) {
            // A NaN differs from everything.
            let condition = if f == Binary::Ne { "neu" } else { condition };
            return w.compare(&format!("{condition}.{t}"), x, y);
        }
        match f {
            Binary::Add => w.op(ty, &format!("add.rn.{t}"), &[x, y]),
            Binary::Sub => w.op(ty, &format!("sub.rn.{t}"), &[x, y]),
            Binary::Mul => w.op(ty, &format!("mul.rn.{t}"), &[x, y]),
            Binary::Div => w.op(ty, &format!("div.rn.{t}"), &[x, y]),
            Binary::FloorDiv => {
                let q = w.op(ty, &format!("div.rn.{t}"), &[x, y]);
                w.op(ty, &format!("cvt.rmi.{t}.{t}"), &[q])
            }
            _ => {
                let name = if f == Binary::Max { "max" } else { "min" };
                if ty == Ty::F32 {
                    return w.op(ty, &format!("{name}.NaN.f32"), &[x, y]);
                }
                let z = w.op(ty, &format!("{name}.f64"), &[x, y]);
                let nan = w.compare("nan.f64", x, y);
                let sum = w.op(ty, "add.rn.f64", &[x, y]);
                w.select(nan, sum, z)
            }
        }
    }

    fn bool_parts(&mut self, f: Binary, x: Val, y: Val) -> Val {
        // Less is "not x and y": one negation makes every comparison an `and`, `or` or `xor`.
        let (negate_x, name, negate_y) = bool_binary(f).unwrap_or((false, "xor", false));
        let mut side = |negate: bool, v: Val| match negate {
            true => self.w.op(Ty::Pred, "not.pred", &[v]),
            false => v,
        };
        let (x, y) = (side(negate_x, x), side(negate_y, y));
        self.w.op(Ty::Pred, &format!("{name}.pred"), &[x, y])
    }

    fn int_parts(&mut self, f: Binary, elem: TileElem, x: Val, y: Val) -> Val {
        let ty = x.ty;
        let b = ty.name();
        let t = int_name(elem);
        if let Some(condition) = comparison(f) {
            return self.w.compare(&format!("{condition}.{t}"), x, y);
        }
        let z = match f {
            Binary::Add => self.w.add(x, y),
            Binary::Sub => self.w.sub(x, y),
            Binary::Mul => self.w.mul(x, y),
            Binary::And => return self.w.op(ty, &format!("and.{b}"), &[x, y]),
            Binary::Or => return self.w.op(ty, &format!("or.{b}"), &[x, y]),
            Binary::Xor => return self.w.op(ty, &format!("xor.{b}"), &[x, y]),
            Binary::Min => return self.w.op(ty, &format!("min.{t}"), &[x, y]),
            Binary::Max => return self.w.op(ty, &format!("max.{t}"), &[x, y]),
            Binary::Shl | Binary::Shr => self.shift(f, elem, x, y),
            _ => match y.known().filter(|&d| d > 0 && elem == TileElem::Index) {
                Some(d) if matches!(f, Binary::FloorDiv | Binary::Mod) => {
                    self.floor_by_constant(f, x, d)
                }
                _ => self.quotient(f, elem, x, y),
            },
        };
        self.normalize(elem, z)
    }

    /// Shifts by the type's width or more give zero, or the sign: those of 32 and 64 bits do so by themselves, and narrower
    /// numbers are held in 32 bits.
    fn shift(&mut self, f: Binary, elem: TileElem, x: Val, y: Val) -> Val {
        let amount = match y.ty {
            Ty::B64 => {
                let most = self.w.op(Ty::B64, "min.u64", &[y, Val::long(64)]);
                self.w.narrow(most)
            }
            _ => y,
        };
        match f {
            Binary::Shl => self
                .w
                .op(x.ty, &format!("shl.{}", x.ty.name()), &[x, amount]),
            _ => self
                .w
                .op(x.ty, &format!("shr.{}", int_name(elem)), &[x, amount]),
        }
    }

    /// Division and remainders; never by zero.
    fn quotient(&mut self, f: Binary, elem: TileElem, x: Val, y: Val) -> Val {
        let (ty, t, signed) = (x.ty, int_name(elem), is_signed(elem));
        let number = |c| literal(elem, Literal::Int(c));
        let (zero, one) = (number(0), number(1));
        let by_zero = self.w.compare(&format!("eq.{t}"), y, zero);
        let quotient = if signed {
            // Division by -1 overflows for the smallest number; as a negation it wraps.
            let by_minus_one = self.w.compare(&format!("eq.{t}"), y, number(-1));
            let special = self.w.op(Ty::Pred, "or.pred", &[by_zero, by_minus_one]);
            let divisor = self.w.select(special, one, y);
            let q = self.w.op(ty, &format!("div.{t}"), &[x, divisor]);
            let negated = self.w.op(ty, &format!("neg.{t}"), &[x]);
            self.w.select(by_minus_one, negated, q)
        } else {
            let divisor = self.w.select(by_zero, one, y);
            self.w.op(ty, &format!("div.{t}"), &[x, divisor])
        };
        let product = self.w.mul(quotient, y);
        let remainder = self.w.sub(x, product);
        let down = (signed && matches!(f, Binary::Mod | Binary::FloorDiv)).then(|| {
            let inexact = self.w.compare(&format!("ne.{t}"), remainder, zero);
            let mixed = self
                .w
                .op(ty, &format!("xor.{}", ty.name()), &[remainder, y]);
            let mixed = self.w.compare(&format!("lt.{t}"), mixed, zero);
            self.w.and(inexact, mixed)
        });
        let z = match (f, down) {
            (Binary::Div, _) | (Binary::FloorDiv, None) => quotient,
            (Binary::FloorDiv, Some(down)) => {
                let lower = self.w.sub(quotient, one);
                self.w.select(down, lower, quotient)
            }
            (Binary::Mod, Some(down)) => {
                let up = self.w.add(remainder, y);
                self.w.select(down, up, remainder)
            }
            _ => remainder,
        };
        self.w.select(by_zero, zero, z)
    }

    /// Index quotient or remainder by a positive constant, rounded down: a negative number is complemented before and
    /// after an unsigned division, which is a multiplication: with `t < 2^63` and `d > 2^(log - 1)` the quotient is the
    /// high half of `t * (2^(63 + log) / d + 1)`, shifted by `log - 1`.
    fn floor_by_constant(&mut self, f: Binary, x: Val, d: i64) -> Val {
        if let Some(k) = x.known() {
            return Val::long(match f {
                Binary::FloorDiv => k.div_euclid(d),
                _ => k.rem_euclid(d),
            });
        }
        let w = &mut self.w;
        if d.count_ones() == 1 {
            return match f {
                _ if d == 1 && f == Binary::FloorDiv => x,
                Binary::FloorDiv => {
                    let by = Val::int(i64::from(d.trailing_zeros()));
                    w.op(Ty::B64, "shr.s64", &[x, by])
                }
                _ => w.op(Ty::B64, "and.b64", &[x, Val::long(d - 1)]),
            };
        }
        let log = u64::BITS - (d as u64 - 1).leading_zeros();
        let factor = (1u128 << (63 + log)) / d as u128 + 1;
        let sign = w.op(Ty::B64, "shr.s64", &[x, Val::int(63)]);
        let t = w.op(Ty::B64, "xor.b64", &[x, sign]);
        let high = w.op(Ty::B64, "mul.hi.u64", &[t, Val::long(factor as u64 as i64)]);
        let q = w.op(Ty::B64, "shr.u64", &[high, Val::int(i64::from(log) - 1)]);
        let quotient = w.op(Ty::B64, "xor.b64", &[q, sign]);
        if f == Binary::FloorDiv {
            return quotient;
        }
        let product = w.mul(quotient, Val::long(d));
        w.sub(x, product)
    }

    pub fn select(&mut self, ty: &TileType, c: &Tile, a: &Tile, b: &Tile) -> Tile {
        self.elementwise(ty, &[c, a, b], |s, v| s.w.select(v[0], v[1], v[2]))
    }

    pub fn mul_add(&mut self, ty: &TileType, a: &Tile, b: &Tile, c: &Tile) -> Tile {
        self.elementwise(ty, &[a, b, c], |s, v| {
            s.multiply_add(ty.elem, v[0], v[1], v[2])
        })
    }

    /// `a * b + c` on parts.
    pub fn multiply_add(&mut self, elem: TileElem, a: Val, b: Val, c: Val) -> Val {
        match elem.class() {
            Class::F32 | Class::F64 => {
                let name = format!("fma.rn.{}", c.ty.name());
                self.w.op(c.ty, &name, &[a, b, c])
            }
            _ => {
                let sum = self.w.mul_add(a, b, c);
                self.normalize(elem, sum)
            }
        }
    }

    pub fn cast(&mut self, ty: &TileType, x: &Tile) -> Result<Tile, Error> {
        let (from, to) = (x.ty.elem, ty.elem);
        let bits = |e: TileElem| matches!(e.class(), Class::Bits(_));
        if from != to && (bits(from) || bits(to)) {
            return Err(self.unsupported(format!("a conversion of {from:?} to {to:?}")));
        }
        Ok(self.elementwise(ty, &[x], |s, v| s.cast_part(from, to, v[0])))
    }

    /// A conversion of one part.
    pub fn cast_part(&mut self, from: TileElem, to: TileElem, x: Val) -> Val {
        let ty = register(to);
        let name = ty.name();
        match (from.class(), to.class()) {
            (a, b) if a == b => x,
            (Class::F32, Class::F64) => self.w.op(ty, "cvt.f64.f32", &[x]),
            (Class::F64, Class::F32) => self.w.op(ty, "cvt.rn.f32.f64", &[x]),
            (Class::F32 | Class::F64, Class::Bool) => {
                let zero = literal(from, Literal::Float(0.0));
                self.w.compare(&format!("neu.{}", x.ty.name()), x, zero)
            }
            (Class::F32 | Class::F64, Class::Int { bits, signed }) => {
                self.float_to_int(x, ty, bits, signed)
            }
            (Class::Bool, _) => {
                let [one, zero] = [1, 0].map(|c| literal(to, Literal::Int(c)));
                self.w.select(x, one, zero)
            }
            (_, Class::Bool) => {
                let zero = literal(from, Literal::Int(0));
                self.w.compare(&format!("ne.{}", int_name(from)), x, zero)
            }
            (_, Class::F32 | Class::F64) => {
                let name = format!("cvt.rn.{name}.{}", int_name(from));
                self.w.op(ty, &name, &[x])
            }
            _ => {
                let y = match (x.ty, ty) {
                    (Ty::B32, Ty::B64) if is_signed(from) => self.w.widen(x),
                    (Ty::B32, Ty::B64) => match x.known() {
                        Some(k) => Val::long(i64::from(k as u32)),
                        None => self.w.op(ty, "cvt.u64.u32", &[x]),
                    },
                    (Ty::B64, Ty::B32) => self.w.narrow(x),
                    _ => x,
                };
                self.normalize(to, y)
            }
        }
    }

    /// The instruction saturates, and makes 0 of NaN but for 64 bits.
    fn float_to_int(&mut self, x: Val, ty: Ty, bits: u32, signed: bool) -> Val {
        let f = x.ty.name();
        let sign = if signed { 's' } else { 'u' };
        let width = ty.bytes() * 8;
        let y = self.w.op(ty, &format!("cvt.rzi.{sign}{width}.{f}"), &[x]);
        let y = match width == 64 || x.ty == Ty::F64 {
            true => {
                let nan = self.w.compare(&format!("nan.{f}"), x, x);
                let zero = match ty {
                    Ty::B64 => Val::long(0),
                    _ => Val::int(0),
                };
                self.w.select(nan, zero, y)
            }
            false => y,
        };
        if bits >= 32 {
            return y;
        }
        let (lo, hi) = match signed {
            true => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
            false => (0, (1 << bits) - 1),
        };
        let t = format!("{sign}32");
        let y = match signed {
            true => self.w.op(ty, &format!("max.{t}"), &[y, Val::int(lo)]),
            false => y,
        };
        self.w.op(ty, &format!("min.{t}"), &[y, Val::int(hi)])
    }

    pub fn bitcast(&mut self, ty: &TileType, x: &Tile) -> Result<Tile, Error> {
        let (from, to) = (register(x.ty.elem), register(ty.elem));
        if from == Ty::Pred || to == Ty::Pred {
            return self.cast(ty, x);
        }
        if from.bytes() != to.bytes() {
            return Err(self.unsupported(format!("{:?} bits as {:?}", x.ty.elem, ty.elem)));
        }
        Ok(self.elementwise(ty, &[x], |s, v| {
            if from == to {
                return s.normalize(ty.elem, v[0]);
            }
            let name = format!("mov.b{}", 8 * to.bytes());
            s.w.op(to, &name, &[v[0]])
        }))
    }
}

/// The type of instructions on an integer: those of less than 32 bits are held in 32.
pub(crate) fn int_name(elem: TileElem) -> &'static str {
    match (is_signed(elem), register(elem)) {
        (true, Ty::B64) => "s64",
        (false, Ty::B64) => "u64",
        (true, _) => "s32",
        (false, _) => "u32",
    }
}

fn signed_name(ty: Ty) -> &'static str {
    match ty {
        Ty::B64 => "s64",
        _ => "s32",
    }
}

fn float_binary(f: Binary) -> bool {
    matches!(
        f,
        Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Div
            | Binary::FloorDiv
            | Binary::Min
            | Binary::Max
    )
}

fn comparison(f: Binary) -> Option<&'static str> {
    Some(match f {
        Binary::Eq => "eq",
        Binary::Ne => "ne",
        Binary::Lt => "lt",
        Binary::Le => "le",
        Binary::Gt => "gt",
        Binary::Ge => "ge",
        _ => return None,
    })
}

/// Which operands are negated, and the instruction between them.
fn bool_binary(f: Binary) -> Option<(bool, &'static str, bool)> {
    Some(match f {
        Binary::And | Binary::Min | Binary::Mul => (false, "and", false),
        Binary::Or | Binary::Max | Binary::Add => (false, "or", false),
        Binary::Xor | Binary::Ne => (false, "xor", false),
        Binary::Eq => (true, "xor", false),
        Binary::Lt => (true, "and", false),
        Binary::Gt => (false, "and", true),
        Binary::Le => (true, "or", false),
        Binary::Ge => (false, "or", true),
        _ => return None,
    })
}
