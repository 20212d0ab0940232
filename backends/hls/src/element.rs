//! One element of a value as a C++ expression.

use crate::kernel::Fun;
use crate::types::{is_float, value};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Literal, Op, TileElem, Unary, Var};

impl<'k> Fun<'k> {
    /// The element of a value at a place, through what only says where it is.
    pub fn at(&self, v: Var, place: &[String]) -> String {
        match self.views.get(&v) {
            Some(Op::Const(l)) => literal(*l, self.kernel.ty(v).elem),
            Some(Op::Iota) => place[0].clone(),
            Some(Op::Grid(axis)) => format!("g{axis}"),
            Some(Op::Size(param)) => self.param(*param),
            Some(Op::Broadcast { x, axis }) => match self.kernel.ty(*x).shape.len() {
                0 => self.at(*x, &[]),
                1 if place.len() == 2 => self.at(*x, &[place[1 - *axis as usize].clone()]),
                _ => self.at(*x, place),
            },
            Some(Op::Transpose(x)) => self.at(*x, &[place[1].clone(), place[0].clone()]),
            _ => {
                if let Some(stmt) = self.inlined.get(&v) {
                    return format!("({})", self.value(stmt, v, place).unwrap_or_default());
                }
                let name = self.name(v);
                if self.inside.contains(&v) {
                    return name;
                }
                place.iter().fold(name, |name, i| format!("{name}[{i}]"))
            }
        }
    }

    /// A scalar.
    pub fn scalar(&self, v: Var) -> String {
        self.at(v, &[])
    }

    /// The element at a place of what an operation defines.
    pub fn element(&self, op: &Op, result: Var, place: &[String]) -> Result<String, Error> {
        let elem = self.kernel.ty(result).elem;
        let ty = value(elem);
        Ok(match op {
            Op::Unary(f, x) => self.unary(*f, self.kernel.ty(*x).elem, &self.at(*x, place))?,
            Op::Binary(f, a, b) => {
                let of = self.kernel.ty(*a).elem;
                self.binary(*f, of, &self.at(*a, place), &self.at(*b, place))?
            }
            Op::Select(c, a, b) => format!(
                "{} ? {} : {}",
                self.at(*c, place),
                self.at(*a, place),
                self.at(*b, place)
            ),
            Op::MulAdd(a, b, c) => {
                let [a, b, c] = [a, b, c].map(|v| self.at(*v, place));
                if is_float(elem) {
                    format!("{a} * {b} + {c}")
                } else {
                    format!("lp::add<{ty}>(lp::mul<{ty}>({a}, {b}), {c})")
                }
            }
            Op::Cast(x) => self.cast(self.kernel.ty(*x).elem, elem, &self.at(*x, place)),
            Op::Bitcast(x) => {
                let from = self.kernel.ty(*x).elem;
                let x = self.at(*x, place);
                if is_float(elem) || is_float(from) {
                    format!("lp::bits<{ty}>({x})")
                } else {
                    format!("({ty})({x})")
                }
            }
            Op::Unpack { x, bits, signed } => {
                let per = 8 / bits;
                let i = &place[0];
                let byte = self.at(*x, &[format!("({i}) / {per}")]);
                let code = if *signed { "signed_code" } else { "code" };
                format!("({ty})lp::{code}<{bits}>({byte}, (int)(({i}) % {per}))")
            }
            _ => return Err(self.unsupported(format!("{op:?} as an element"))),
        })
    }

    fn cast(&self, from: TileElem, to: TileElem, x: &str) -> String {
        let ty = value(to);
        match (is_float(from), to.class()) {
            (_, Class::Bool) => format!("{x} != 0"),
            (true, Class::Int { bits, signed }) => {
                format!("({ty})lp::saturate<{bits}, {signed}>({x})")
            }
            (false, Class::F32 | Class::F64) if narrow(from) => format!("({ty})(int)({x})"),
            _ => format!("({ty})({x})"),
        }
    }

    fn unary(&self, f: Unary, elem: TileElem, x: &str) -> Result<String, Error> {
        let ty = value(elem);
        let float = is_float(elem);
        let int = matches!(elem.class(), Class::Int { .. } | Class::Bool);
        Ok(match f {
            Unary::Not if int => format!("{x} == 0"),
            Unary::BitNot if int => format!("lp::wrap<{ty}>(~(uint64_t)({x}))"),
            Unary::Neg if float => format!("-({x})"),
            Unary::Neg if int => format!("lp::sub<{ty}>(0, {x})"),
            Unary::Abs if float => format!("std::fabs({x})"),
            Unary::Abs if int => format!("lp::abs<{ty}>({x})"),
            Unary::Sign if float || int => format!("lp::sign<{ty}>({x})"),
            Unary::Sqrt if float => format!("std::sqrt({x})"),
            Unary::Reciprocal if float => format!("1 / ({x})"),
            Unary::Floor if float => format!("std::floor({x})"),
            Unary::Ceil if float => format!("std::ceil({x})"),
            Unary::Trunc if float => format!("std::trunc({x})"),
            Unary::RoundEven if float => format!("std::rint({x})"),
            Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::RoundEven if int => x.to_owned(),
            Unary::IsNan if float => format!("{x} != {x}"),
            Unary::IsInf if float => format!("lp::is_inf({x})"),
            Unary::IsNan | Unary::IsInf if int => "false".to_owned(),
            _ => return Err(self.unsupported(format!("{f:?} of {elem:?}"))),
        })
    }

    /// A function of two elements of this type.
    pub fn binary(&self, f: Binary, elem: TileElem, a: &str, b: &str) -> Result<String, Error> {
        let ty = value(elem);
        if let Some(sign) = comparison(f) {
            return Ok(format!("{a} {sign} {b}"));
        }
        let float = is_float(elem);
        let int = matches!(elem.class(), Class::Int { .. });
        let bit = int || elem.class() == Class::Bool;
        let name = match f {
            Binary::Add if float => return Ok(format!("{a} + {b}")),
            Binary::Sub if float => return Ok(format!("{a} - {b}")),
            Binary::Mul if float => return Ok(format!("{a} * {b}")),
            Binary::Div if float => return Ok(format!("{a} / {b}")),
            Binary::FloorDiv if float => return Ok(format!("std::floor({a} / {b})")),
            Binary::And if bit => return Ok(format!("({ty})({a} & {b})")),
            Binary::Or if bit => return Ok(format!("({ty})({a} | {b})")),
            Binary::Xor if bit => return Ok(format!("({ty})({a} ^ {b})")),
            Binary::Min if float || bit => "min",
            Binary::Max if float || bit => "max",
            Binary::Add if bit => "add",
            Binary::Sub if bit => "sub",
            Binary::Mul if bit => "mul",
            Binary::Div if int => "div",
            Binary::Rem if int => "rem",
            Binary::Mod if int => "mod",
            Binary::FloorDiv if int => "floor_div",
            Binary::Shl | Binary::Shr if int => {
                let Class::Int { bits, .. } = elem.class() else {
                    return Err(self.unsupported("a shift of no integer".to_owned()));
                };
                let name = if f == Binary::Shl { "shl" } else { "shr" };
                return Ok(format!("lp::{name}<{ty}, {bits}>({a}, {b})"));
            }
            Binary::Pow if int => "pow",
            _ => return Err(self.unsupported(format!("{f:?} of {elem:?}"))),
        };
        Ok(format!("lp::{name}<{ty}>({a}, {b})"))
    }
}

/// Whether a type converts to floats through `int`, because the header's small integers know only that way.
fn narrow(elem: TileElem) -> bool {
    matches!(elem.class(), Class::Int { bits, .. } if bits < 8)
}

fn comparison(f: Binary) -> Option<&'static str> {
    Some(match f {
        Binary::Eq => "==",
        Binary::Ne => "!=",
        Binary::Lt => "<",
        Binary::Le => "<=",
        Binary::Gt => ">",
        Binary::Ge => ">=",
        _ => return None,
    })
}

/// A literal of an element's type, in parentheses where it needs them.
fn literal(l: Literal, elem: TileElem) -> String {
    match elem.class() {
        Class::F32 => float(f64::from(l.as_float() as f32), "f"),
        Class::F64 => float(l.as_float(), ""),
        Class::Bool => (l.as_int() != 0).to_string(),
        _ => {
            let x = elem.wrap_literal(l.held(elem).as_int());
            match elem.class() {
                Class::Int {
                    bits: 64,
                    signed: false,
                } => format!("UINT64_C({})", x as u64),
                // The one number whose digits are not of its type.
                _ if x == i64::MIN => "INT64_MIN".to_owned(),
                // An `int` becomes an index wherever it meets one.
                _ if elem == TileElem::Index && i32::try_from(x).is_ok() => match x < 0 {
                    true => format!("({x})"),
                    false => x.to_string(),
                },
                _ => format!("(({})INT64_C({x}))", value(elem)),
            }
        }
    }
}

/// A number as a literal.
pub fn literal_f32(x: f32) -> String {
    float(f64::from(x), "f")
}

/// A number as a literal.
pub fn literal_f64(x: f64) -> String {
    float(x, "")
}

/// A float in the fewest digits that read back as the same.
fn float(x: f64, suffix: &str) -> String {
    if x.is_nan() {
        return format!("lp::nan{suffix}()");
    }
    if x.is_infinite() {
        let sign = if x < 0.0 { "-" } else { "" };
        return format!("({sign}lp::infinity{suffix}())");
    }
    if x < 0.0 || (x == 0.0 && x.is_sign_negative()) {
        return format!("(-{})", float(-x, suffix));
    }
    let digits = if suffix == "f" {
        format!("{:?}", x as f32)
    } else {
        format!("{x:?}")
    };
    format!("{digits}{suffix}")
}
