//! Operations that work element by element.

use crate::function::Fun;
use crate::tile::{Tile, is_signed, lane};
use crate::writer::{Lane, Val};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Literal, TileElem, TileType, Unary, Var};

impl Fun<'_> {
    /// An intrinsic that is overloaded by its only type.
    fn same(&mut self, name: &str, args: &[Val]) -> Val {
        let ty = args[0].ty;
        self.w
            .intrinsic(&format!("llvm.{name}.{}", ty.suffix()), ty, args)
    }

    pub fn unary(&mut self, ty: &TileType, f: Unary, x: &Tile) -> Result<Tile, Error> {
        let elem = x.ty.elem;
        let kind = elem.class();
        let float = matches!(kind, Class::F32 | Class::F64);
        let int = matches!(kind, Class::Int { .. });
        let supported = match f {
            Unary::Not => kind == Class::Bool,
            Unary::BitNot => int,
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
        match f {
            Unary::Neg => self.w.negate_float(x),
            Unary::Abs => self.same("fabs", &[x]),
            Unary::Sqrt => self.same("sqrt", &[x]),
            Unary::Floor => self.same("floor", &[x]),
            Unary::Ceil => self.same("ceil", &[x]),
            Unary::RoundEven => self.same("roundeven", &[x]),
            Unary::Trunc => self.same("trunc", &[x]),
            Unary::Reciprocal => {
                let one = self.beside(elem, Literal::Float(1.0), x);
                self.w.two("fdiv", one, x)
            }
            Unary::IsNan => self.w.compare("fcmp uno", x, x),
            Unary::IsInf => {
                let inf = self.beside(elem, Literal::Float(f64::INFINITY), x);
                let magnitude = self.same("fabs", &[x]);
                self.w.compare("fcmp oeq", magnitude, inf)
            }
            _ => {
                // The sign; zeros and NaN stay themselves.
                let [zero, one, minus] =
                    [0.0, 1.0, -1.0].map(|c| self.beside(elem, Literal::Float(c), x));
                let above = self.w.compare("fcmp ogt", x, zero);
                let below = self.w.compare("fcmp olt", x, zero);
                let rest = self.w.select(below, minus, x);
                self.w.select(above, one, rest)
            }
        }
    }

    fn unary_int(&mut self, f: Unary, elem: TileElem, x: Val) -> Val {
        let signed = is_signed(elem);
        let y = match f {
            Unary::Not => return self.w.two_int("xor", x, 1),
            Unary::BitNot => self.w.two_int("xor", x, -1),
            Unary::Neg => {
                let zero = self.w.int(x.ty, 0);
                self.w.two("sub", zero, x)
            }
            Unary::Abs if signed => {
                let zero = self.w.int(x.ty, 0);
                let negated = self.w.two("sub", zero, x);
                self.same("smax", &[x, negated])
            }
            Unary::Sign => {
                let [zero, one, minus] = [0, 1, -1].map(|c| self.w.int(x.ty, c));
                let positive = self.w.compare("icmp ne", x, zero);
                let y = self.w.select(positive, one, zero);
                if !signed {
                    return y;
                }
                let below = self.w.compare("icmp slt", x, zero);
                return self.w.select(below, minus, y);
            }
            _ => return x,
        };
        self.normalize(elem, y)
    }

    pub fn binary(&mut self, ty: &TileType, f: Binary, a: Var, b: Var) -> Result<Tile, Error> {
        let (x, y) = (self.get(a)?, self.get(b)?);
        let elem = x.ty.elem;
        let constant = self.facts.int(b);
        let numbers = [a, b].map(|v| match self.facts.literal(v) {
            Some(Literal::Float(c)) => !c.is_nan(),
            _ => false,
        });
        let known = match elem.class() {
            Class::F32 | Class::F64 => float_compare(f).is_some() || float_binary(f),
            Class::Int { .. } => !matches!(f, Binary::Pow | Binary::Atan2),
            Class::Bool => bool_binary(f).is_some(),
            Class::Bits(_) => false,
        };
        if !known {
            return Err(self.unsupported(format!("{f:?} of {elem:?}")));
        }
        Ok(self.elementwise(ty, &[&x, &y], |s, v| {
            let (x, y) = (v[0], v[1]);
            match elem.class() {
                Class::F32 | Class::F64 => match f {
                    Binary::Min | Binary::Max if numbers[0] => s.min_max(f, x, y),
                    Binary::Min | Binary::Max if numbers[1] => s.min_max(f, y, x),
                    _ => s.float_parts(f, x, y),
                },
                Class::Int { .. } => s.int_parts(f, elem, x, y, constant),
                _ => s.bool_parts(f, x, y),
            }
        }))
    }

    /// A function of two parts of this element type that is defined for it.
    pub fn binary_parts(&mut self, elem: TileElem, f: Binary, x: Val, y: Val) -> Val {
        match elem.class() {
            Class::F32 | Class::F64 => self.float_parts(f, x, y),
            Class::Bool => self.bool_parts(f, x, y),
            _ => self.int_parts(f, elem, x, y, None),
        }
    }

    fn float_parts(&mut self, f: Binary, x: Val, y: Val) -> Val {
        if let Some(condition) = float_compare(f) {
            return self.w.compare(condition, x, y);
        }
        match f {
            Binary::Add => self.w.two("fadd", x, y),
            Binary::Sub => self.w.two("fsub", x, y),
            Binary::Mul => self.w.two("fmul", x, y),
            Binary::Div => self.w.two("fdiv", x, y),
            Binary::FloorDiv => {
                let q = self.w.two("fdiv", x, y);
                self.same("floor", &[q])
            }
            _ => {
                let z = self.min_max(f, y, x);
                let nan = self.w.compare("fcmp uno", y, y);
                self.w.select(nan, y, z)
            }
        }
    }

    /// The smaller or larger of two; `x` if either is NaN. This form is one instruction on x86.
    fn min_max(&mut self, f: Binary, c: Val, x: Val) -> Val {
        let condition = match f {
            Binary::Max => "fcmp ogt",
            _ => "fcmp olt",
        };
        let first = self.w.compare(condition, c, x);
        self.w.select(first, c, x)
    }

    fn bool_parts(&mut self, f: Binary, x: Val, y: Val) -> Val {
        // Less is "not x and y": one negation makes every comparison an `and`, `or` or `xor`.
        let (negate_x, name, negate_y) = bool_binary(f).unwrap_or((false, "xor", false));
        let x = if negate_x {
            self.w.two_int("xor", x, 1)
        } else {
            x
        };
        let y = if negate_y {
            self.w.two_int("xor", y, 1)
        } else {
            y
        };
        self.w.two(name, x, y)
    }

    fn int_parts(
        &mut self,
        f: Binary,
        elem: TileElem,
        x: Val,
        y: Val,
        constant: Option<i64>,
    ) -> Val {
        let signed = is_signed(elem);
        let z = match f {
            Binary::Add => self.w.two("add", x, y),
            Binary::Sub => self.w.two("sub", x, y),
            Binary::Mul => self.w.two("mul", x, y),
            Binary::And => return self.w.two("and", x, y),
            Binary::Or => return self.w.two("or", x, y),
            Binary::Xor => return self.w.two("xor", x, y),
            Binary::Min | Binary::Max => {
                let name = match (f == Binary::Max, signed) {
                    (true, true) => "smax",
                    (true, false) => "umax",
                    (false, true) => "smin",
                    (false, false) => "umin",
                };
                return self.same(name, &[x, y]);
            }
            Binary::Shl | Binary::Shr => self.shift(f, elem, x, y, constant),
            Binary::Div | Binary::Mod | Binary::Rem | Binary::FloorDiv => {
                match constant.filter(|&d| d > 0 && elem == TileElem::Index) {
                    Some(d) if matches!(f, Binary::FloorDiv | Binary::Mod) => {
                        self.floor_by_constant(f, x, d)
                    }
                    _ => self.quotient(f, signed, x, y),
                }
            }
            _ => return self.w.compare(int_compare(f, signed), x, y),
        };
        self.normalize(elem, z)
    }

    /// Shifts by the type's width or more give zero, or the sign.
    fn shift(&mut self, f: Binary, elem: TileElem, x: Val, y: Val, constant: Option<i64>) -> Val {
        let Class::Int { bits, signed } = elem.class() else {
            return x;
        };
        let arithmetic = signed && f == Binary::Shr;
        let name = match (f, arithmetic) {
            (Binary::Shl, _) => "shl",
            (_, true) => "ashr",
            (_, false) => "lshr",
        };
        if constant.is_some_and(|c| (0..i64::from(bits)).contains(&c)) {
            return self.w.two(name, x, y);
        }
        let out = self.w.compare_int("icmp uge", y, i64::from(bits));
        let last = self.w.int(x.ty, i64::from(bits) - 1);
        let amount = self.w.select(out, last, y);
        let z = self.w.two(name, x, amount);
        if arithmetic {
            return z;
        }
        let zero = self.w.int(x.ty, 0);
        self.w.select(out, zero, z)
    }

    /// Division and remainders; never traps.
    fn quotient(&mut self, f: Binary, signed: bool, x: Val, y: Val) -> Val {
        let [zero, one] = [0, 1].map(|c| self.w.int(x.ty, c));
        let by_zero = self.w.compare("icmp eq", y, zero);
        let quotient = if signed {
            // Division by -1 overflows for the smallest number; as a negation it wraps.
            let by_minus_one = self.w.compare_int("icmp eq", y, -1);
            let special = self.w.two("or", by_zero, by_minus_one);
            let divisor = self.w.select(special, one, y);
            let q = self.w.two("sdiv", x, divisor);
            let negated = self.w.two("sub", zero, x);
            self.w.select(by_minus_one, negated, q)
        } else {
            let divisor = self.w.select(by_zero, one, y);
            self.w.two("udiv", x, divisor)
        };
        let product = self.w.two("mul", quotient, y);
        let remainder = self.w.two("sub", x, product);
        let down = (signed && matches!(f, Binary::Mod | Binary::FloorDiv)).then(|| {
            let inexact = self.w.compare("icmp ne", remainder, zero);
            let mixed = self.w.two("xor", remainder, y);
            let mixed = self.w.compare("icmp slt", mixed, zero);
            self.w.two("and", inexact, mixed)
        });
        let z = match (f, down) {
            (Binary::Div, _) | (Binary::FloorDiv, None) => quotient,
            (Binary::FloorDiv, Some(down)) => {
                let lower = self.w.two("sub", quotient, one);
                self.w.select(down, lower, quotient)
            }
            (Binary::Mod, Some(down)) => {
                let up = self.w.two("add", remainder, y);
                self.w.select(down, up, remainder)
            }
            _ => remainder,
        };
        self.w.select(by_zero, zero, z)
    }

    /// Index quotient or remainder by a positive constant, rounded down: a negative number is complemented before and
    /// after an unsigned division, which the code generator turns into a multiplication.
    fn floor_by_constant(&mut self, f: Binary, x: Val, d: i64) -> Val {
        if d.count_ones() == 1 {
            return match f {
                Binary::FloorDiv => self.w.two_int("ashr", x, i64::from(d.trailing_zeros())),
                _ => self.w.two_int("and", x, d - 1),
            };
        }
        let sign = self.w.two_int("ashr", x, 63);
        let t = self.w.two("xor", x, sign);
        let q = self.w.two_int("udiv", t, d);
        let quotient = self.w.two("xor", q, sign);
        if f == Binary::FloorDiv {
            return quotient;
        }
        let product = self.w.two_int("mul", quotient, d);
        self.w.two("sub", x, product)
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
            // Without the instruction the intrinsic would be a call.
            Class::F32 | Class::F64 if self.target.fused_multiply_add => {
                self.same("fma", &[a, b, c])
            }
            Class::F32 | Class::F64 => {
                let product = self.w.two("fmul", a, b);
                self.w.two("fadd", product, c)
            }
            _ => {
                let product = self.w.two("mul", a, b);
                let sum = self.w.two("add", product, c);
                self.normalize(elem, sum)
            }
        }
    }

    pub fn cast(&mut self, ty: &TileType, x: &Tile) -> Result<Tile, Error> {
        let (from, to) = (x.ty.elem, ty.elem);
        if from != to
            && [from, to]
                .iter()
                .any(|e| matches!(e.class(), Class::Bits(_)))
        {
            return Err(self.unsupported(format!("a conversion of {from:?} to {to:?}")));
        }
        Ok(self.elementwise(ty, &[x], |s, v| s.cast_part(from, to, v[0])))
    }

    /// A conversion of one part.
    pub fn cast_part(&mut self, from: TileElem, to: TileElem, x: Val) -> Val {
        let ty = x.ty.of(lane(to));
        match (from.class(), to.class()) {
            (a, b) if a == b => x,
            (Class::F32, Class::F64) => self.w.convert("fpext", x, ty),
            (Class::F64, Class::F32) => self.w.convert("fptrunc", x, ty),
            (Class::F32 | Class::F64, Class::Bool) => {
                let zero = self.beside(from, Literal::Float(0.0), x);
                self.w.compare("fcmp une", x, zero)
            }
            (Class::F32 | Class::F64, Class::Int { bits, signed }) => {
                let name = if signed { "fptosi" } else { "fptoui" };
                let name = format!("llvm.{name}.sat.{}.{}", ty.suffix(), x.ty.suffix());
                let y = self.w.intrinsic(&name, ty, &[x]);
                if bits >= 8 {
                    return y;
                }
                let (lo, hi) = if signed {
                    (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
                } else {
                    (0, (1 << bits) - 1)
                };
                let (lo, hi) = (self.w.int(ty, lo), self.w.int(ty, hi));
                let y = if signed {
                    self.same("smax", &[y, lo])
                } else {
                    y
                };
                self.same(if signed { "smin" } else { "umin" }, &[y, hi])
            }
            (Class::Bool, Class::F32 | Class::F64) => self.w.convert("uitofp", x, ty),
            (Class::Bool, _) => self.w.convert("zext", x, ty),
            (_, Class::Bool) => {
                let zero = self.w.int(x.ty, 0);
                self.w.compare("icmp ne", x, zero)
            }
            (_, Class::F32 | Class::F64) => {
                let name = if is_signed(from) { "sitofp" } else { "uitofp" };
                self.w.convert(name, x, ty)
            }
            _ => {
                let y = if ty.lane.bytes() < x.ty.lane.bytes() {
                    self.w.convert("trunc", x, ty)
                } else {
                    let name = if is_signed(from) { "sext" } else { "zext" };
                    self.w.convert(name, x, ty)
                };
                self.normalize(to, y)
            }
        }
    }

    pub fn bitcast(&mut self, ty: &TileType, x: &Tile) -> Result<Tile, Error> {
        let (from, to) = (lane(x.ty.elem), lane(ty.elem));
        if from.bytes() != to.bytes() {
            return Err(self.unsupported(format!("{:?} bits as {:?}", x.ty.elem, ty.elem)));
        }
        if from == Lane::I1 || to == Lane::I1 {
            return self.cast(ty, x);
        }
        Ok(self.elementwise(ty, &[x], |s, v| {
            let y = s.w.convert("bitcast", v[0], v[0].ty.of(to));
            s.normalize(ty.elem, y)
        }))
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

fn float_compare(f: Binary) -> Option<&'static str> {
    Some(match f {
        Binary::Eq => "fcmp oeq",
        Binary::Ne => "fcmp une",
        Binary::Lt => "fcmp olt",
        Binary::Le => "fcmp ole",
        Binary::Gt => "fcmp ogt",
        Binary::Ge => "fcmp oge",
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

fn int_compare(f: Binary, signed: bool) -> &'static str {
    match (f, signed) {
        (Binary::Eq, _) => "icmp eq",
        (Binary::Lt, true) => "icmp slt",
        (Binary::Le, true) => "icmp sle",
        (Binary::Gt, true) => "icmp sgt",
        (Binary::Ge, true) => "icmp sge",
        (Binary::Lt, false) => "icmp ult",
        (Binary::Le, false) => "icmp ule",
        (Binary::Gt, false) => "icmp ugt",
        (Binary::Ge, false) => "icmp uge",
        _ => "icmp ne",
    }
}
