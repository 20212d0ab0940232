//! Elementary functions as kernel IR: range reduction, a polynomial, and what to do at the edges.
//!
//! `exp`, `log`, `tanh`, `erf`, `sin`, `cos` of `f32` have their own short forms; every other function of `f32` is
//! computed in `f64` and rounded. The `f32` polynomials interpolate the reduced function at Chebyshev nodes;
//! the `f64` ones are Taylor series where those converge fast enough. Errors, as the tests assert them: `f32`
//! 3 units in the last place at most, `f64` a relative 1e-13 (`tan`, `pow`: 1e-12).

mod double;
mod power;
mod single;

use super::build::KernelBuilder;
use super::*;

/// True for the functions that [`unary`] writes.
pub(super) fn is_elementary(f: Unary) -> bool {
    !matches!(
        f,
        Unary::Neg
            | Unary::Abs
            | Unary::Sign
            | Unary::Not
            | Unary::BitNot
            | Unary::Sqrt
            | Unary::Reciprocal
            | Unary::Floor
            | Unary::Ceil
            | Unary::RoundEven
            | Unary::Trunc
            | Unary::IsNan
            | Unary::IsInf
    )
}

const F32: TileElem = TileElem::Elem(ElemType::F32);
const F64: TileElem = TileElem::Elem(ElemType::F64);
const I32: TileElem = TileElem::Elem(ElemType::I32);
const I64: TileElem = TileElem::Elem(ElemType::I64);
const U64: TileElem = TileElem::Elem(ElemType::U64);

/// Writes an elementary function of a float tile; `None` for other element types.
pub(super) fn unary(b: &mut KernelBuilder, f: Unary, x: Var) -> Option<Var> {
    let ty = b.ty(x);
    let mut m = Math {
        b,
        shape: ty.shape,
        elem: ty.elem,
    };
    match ty.elem {
        F32 => match single::unary(&mut m, f, x) {
            Some(y) => Some(y),
            None => {
                let wide = m.to(x, F64);
                m.elem = F64;
                let y = double::unary(&mut m, f, wide)?;
                Some(m.to(y, F32))
            }
        },
        F64 => double::unary(&mut m, f, x),
        _ => None,
    }
}

/// Writes a power, an arc tangent of two operands or a float remainder; `None` where the operation can stay.
pub(super) fn binary(b: &mut KernelBuilder, f: Binary, x: Var, y: Var) -> Option<Var> {
    let ty = b.ty(x);
    let mut m = Math {
        b,
        shape: ty.shape,
        elem: ty.elem,
    };
    match (ty.elem, f) {
        (F32 | F64, Binary::Mod | Binary::Rem) => Some(power::remainder(&mut m, f, x, y)),
        (F32 | F64, Binary::Pow) if m.small_power(y).is_some() => power::small(&mut m, x, y),
        (F32, _) => {
            let (wide_x, wide_y) = (m.to(x, F64), m.to(y, F64));
            m.elem = F64;
            let z = double::binary(&mut m, f, wide_x, wide_y)?;
            Some(m.to(z, F32))
        }
        (F64, _) => double::binary(&mut m, f, x, y),
        (_, Binary::Pow) => power::integer(&mut m, x, y),
        _ => None,
    }
}

/// Short words for float arithmetic on tiles of one shape.
struct Math<'b> {
    b: &'b mut KernelBuilder,
    shape: Vec<u32>,
    /// Element type of constants.
    elem: TileElem,
}

impl Math<'_> {
    fn ty(&self, elem: TileElem) -> TileType {
        TileType {
            elem,
            shape: self.shape.clone(),
        }
    }

    /// A float constant.
    fn c(&mut self, x: f64) -> Var {
        let ty = self.ty(self.elem);
        self.b.constant(ty, Literal::Float(x))
    }

    /// An integer constant.
    fn i(&mut self, elem: TileElem, x: i64) -> Var {
        let ty = self.ty(elem);
        self.b.constant(ty, Literal::Int(x))
    }

    fn to(&mut self, x: Var, elem: TileElem) -> Var {
        self.b.cast(x, elem)
    }

    fn bits(&mut self, x: Var, elem: TileElem) -> Var {
        let ty = self.ty(elem);
        self.b.emit(ty, Op::Bitcast(x))
    }

    fn op(&mut self, f: Binary, x: Var, y: Var) -> Var {
        self.b.binary(f, x, y)
    }

    fn add(&mut self, x: Var, y: Var) -> Var {
        self.op(Binary::Add, x, y)
    }

    fn sub(&mut self, x: Var, y: Var) -> Var {
        self.op(Binary::Sub, x, y)
    }

    fn mul(&mut self, x: Var, y: Var) -> Var {
        self.op(Binary::Mul, x, y)
    }

    fn div(&mut self, x: Var, y: Var) -> Var {
        self.op(Binary::Div, x, y)
    }

    fn add_c(&mut self, x: Var, c: f64) -> Var {
        let c = self.c(c);
        self.add(x, c)
    }

    fn mul_c(&mut self, x: Var, c: f64) -> Var {
        let c = self.c(c);
        self.mul(x, c)
    }

    /// `a * b + c`.
    fn fma(&mut self, a: Var, b: Var, c: Var) -> Var {
        self.b.mul_add(a, b, c)
    }

    /// `a + b * c`.
    fn fma_c(&mut self, a: Var, b: Var, c: f64) -> Var {
        let c = self.c(c);
        self.fma(b, c, a)
    }

    fn un(&mut self, f: Unary, x: Var) -> Var {
        self.b.unary(f, x)
    }

    fn pick(&mut self, condition: Var, yes: Var, no: Var) -> Var {
        self.b.select(condition, yes, no)
    }

    /// `x f c ? yes : no`.
    fn where_c(&mut self, f: Binary, x: Var, c: f64, yes: Var, no: Var) -> Var {
        let c = self.c(c);
        let condition = self.op(f, x, c);
        self.pick(condition, yes, no)
    }

    /// Like `clamp`, and NaN stays NaN.
    fn clamp(&mut self, x: Var, lo: f64, hi: f64) -> Var {
        let (lo, hi) = (self.c(lo), self.c(hi));
        let x = self.op(Binary::Max, x, lo);
        self.op(Binary::Min, x, hi)
    }

    /// A polynomial, coefficients from the constant one up.
    fn poly(&mut self, x: Var, coefficients: &[f64]) -> Var {
        let mut terms = coefficients.iter().rev();
        let first = terms.next().copied().unwrap_or(0.0);
        let mut sum = self.c(first);
        for &term in terms {
            let term = self.c(term);
            sum = self.fma(sum, x, term);
        }
        sum
    }

    /// Integer type of the same width.
    fn int(&self) -> TileElem {
        if self.elem == F32 { I32 } else { I64 }
    }

    /// Bits of the mantissa.
    fn mantissa(&self) -> i64 {
        if self.elem == F32 { 23 } else { 52 }
    }

    /// `magnitude` with the sign of `sign`.
    fn copy_sign(&mut self, magnitude: Var, sign: Var) -> Var {
        let int = self.int();
        let top = if self.elem == F32 {
            i64::from(i32::MIN)
        } else {
            i64::MIN
        };
        let (m, s) = (self.bits(magnitude, int), self.bits(sign, int));
        let (top, rest) = (self.i(int, top), self.i(int, !top));
        let (m, s) = (self.op(Binary::And, m, rest), self.op(Binary::And, s, top));
        let both = self.op(Binary::Or, m, s);
        let elem = self.elem;
        self.bits(both, elem)
    }

    /// `2^k` for a whole tile of exponents of normal numbers.
    fn power_of_two(&mut self, k: Var) -> Var {
        let (int, elem, mantissa) = (self.int(), self.elem, self.mantissa());
        let bias = self.i(int, if elem == F32 { 127 } else { 1023 });
        let mantissa = self.i(int, mantissa);
        let biased = self.add(k, bias);
        let placed = self.op(Binary::Shl, biased, mantissa);
        self.bits(placed, elem)
    }

    /// `x * 2^k`, right for results from subnormal to infinite; `k` is an integer tile.
    fn scale(&mut self, x: Var, k: Var) -> Var {
        let int = self.int();
        let one = self.i(int, 1);
        let half = self.op(Binary::Shr, k, one);
        let rest = self.sub(k, half);
        let (first, second) = (self.power_of_two(half), self.power_of_two(rest));
        let x = self.mul(x, first);
        self.mul(x, second)
    }

    /// The whole number that a power's exponent is, if it is a small constant one.
    fn small_power(&self, y: Var) -> Option<i32> {
        match self.b.literal(y)? {
            Literal::Float(f) if f.fract() == 0.0 && f.abs() <= 4.0 => Some(f as i32),
            _ => None,
        }
    }
}
