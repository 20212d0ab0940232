//! The plain interpreter of kernels: what each operation means.
//!
//! Integers are held as `i128` wrapped to their type, floats as `f64` rounded to theirs, as in
//! [`crate::tensor`]. Every address is checked. It runs blocks one after the other.

use super::*;
use crate::minifloat::round_to;
use crate::tensor::wrap;
use crate::{ElemType, Tensor, tensor};
use lapidary_abi::elem::ElemClass;

/// What went wrong, and in which kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}`: {reason}")]
pub struct InterpError {
    /// Name of the kernel.
    pub kernel: String,
    /// What is wrong.
    pub reason: String,
}

/// A tile's elements, row-major.
#[derive(Clone, Debug, PartialEq)]
enum Tile {
    Int(Vec<i128>),
    Float(Vec<f64>),
}

type Result<T> = std::result::Result<T, String>;

/// Runs the blocks `begin..end` of a kernel's linearised grid. `buffers` are its buffer parameters in
/// order, `sizes` its size parameters in order.
pub fn run(
    kernel: &Kernel,
    buffers: &mut [&mut [u8]],
    sizes: &[i64],
    begin: u64,
    end: u64,
) -> std::result::Result<(), InterpError> {
    let fail = |reason: String| InterpError {
        kernel: kernel.name.clone(),
        reason,
    };
    let mut memory = vec![];
    let (mut given, mut sizes_given) = (buffers.iter_mut(), sizes.iter());
    let mut size_of = vec![None; kernel.params.len()];
    for (i, param) in kernel.params.iter().enumerate() {
        match param {
            Param::Buffer { name, .. } => memory.push(Some(Memory::Outside(
                given
                    .next()
                    .ok_or_else(|| fail(format!("buffer `{name}` is missing")))?,
            ))),
            Param::Size { name } => {
                memory.push(None);
                size_of[i] = Some(
                    *sizes_given
                        .next()
                        .ok_or_else(|| fail(format!("size `{name}` is missing")))?,
                );
            }
        }
    }
    for s in &kernel.scratch {
        memory.push(Some(Memory::Own(vec![
            0xFF;
            s.len as usize * s.elem.size_bytes()
        ])));
    }
    let mut machine = Machine {
        kernel,
        memory,
        sizes: size_of,
        vars: vec![None; kernel.vars.len()],
        grid: vec![],
    };
    let extents = machine.extents().map_err(fail)?;
    for block in begin..end {
        machine.grid = position(block, &extents);
        machine.body(&kernel.body).map_err(fail)?;
    }
    Ok(())
}

/// Extents of a kernel's grid, given its size parameters in order.
pub fn grid(kernel: &Kernel, sizes: &[i64]) -> Option<Vec<u64>> {
    let mut next = sizes.iter();
    let sizes = kernel
        .params
        .iter()
        .map(|p| match p {
            Param::Size { .. } => next.next().copied(),
            Param::Buffer { .. } => None,
        })
        .collect();
    let machine = Machine {
        kernel,
        memory: vec![],
        sizes,
        vars: vec![],
        grid: vec![],
    };
    machine.extents().ok()
}

fn position(mut block: u64, extents: &[u64]) -> Vec<u64> {
    let mut at = vec![0; extents.len()];
    for (a, &n) in at.iter_mut().zip(extents).rev() {
        *a = block % n.max(1);
        block /= n.max(1);
    }
    at
}

enum Memory<'b> {
    Outside(&'b mut [u8]),
    Own(Vec<u8>),
}

struct Machine<'k, 'b> {
    kernel: &'k Kernel,
    memory: Vec<Option<Memory<'b>>>,
    sizes: Vec<Option<i64>>,
    vars: Vec<Option<Tile>>,
    grid: Vec<u64>,
}

impl Machine<'_, '_> {
    fn extents(&self) -> Result<Vec<u64>> {
        let of = |e: &Extent| match *e {
            Extent::Const(n) => Ok(n),
            Extent::Param { param, divisor } => {
                let n = self.sizes.get(param as usize).copied().flatten();
                let n = n.ok_or("a grid extent names no size parameter")?;
                Ok((n.max(0) as u64).div_ceil(u64::from(divisor.max(1))))
            }
        };
        self.kernel.grid.iter().map(of).collect()
    }

    fn body(&mut self, body: &[Stmt]) -> Result<()> {
        body.iter().try_for_each(|s| self.stmt(s))
    }

    fn tile(&self, v: Var) -> Result<&Tile> {
        self.vars
            .get(v.0 as usize)
            .and_then(Option::as_ref)
            .ok_or_else(|| format!("%{} is used before it is defined", v.0))
    }

    fn ints(&self, v: Var) -> Result<&[i128]> {
        match self.tile(v)? {
            Tile::Int(x) => Ok(x),
            Tile::Float(_) => Err(format!("%{} must hold integers", v.0)),
        }
    }

    fn int(&self, v: Var) -> Result<i64> {
        match self.ints(v)? {
            [x] => Ok(*x as i64),
            _ => Err(format!("%{} must be a scalar", v.0)),
        }
    }

    fn set(&mut self, v: Var, tile: Tile) -> Result<()> {
        let ty = self.kernel.ty(v);
        let len = match &tile {
            Tile::Int(x) => x.len(),
            Tile::Float(x) => x.len(),
        };
        if len != ty.len() as usize || matches!(tile, Tile::Float(_)) != is_float(ty.elem) {
            return Err(format!("%{} gets a value of another type", v.0));
        }
        self.vars[v.0 as usize] = Some(tile);
        Ok(())
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<()> {
        let values = match &stmt.op {
            Op::Store { buf, base, axes, x } => {
                self.store(*buf, *base, axes, *x)?;
                return Ok(());
            }
            Op::For {
                index,
                begin,
                end,
                step,
                carried,
                body,
                yields,
            } => {
                let (mut i, end) = (self.int(*begin)?, self.int(*end)?);
                let mut now: Vec<Tile> = carried
                    .iter()
                    .map(|c| self.tile(c.1).cloned())
                    .collect::<Result<_>>()?;
                while i < end {
                    self.set(*index, Tile::Int(vec![i128::from(i)]))?;
                    for (c, v) in carried.iter().zip(now) {
                        self.set(c.0, v)?;
                    }
                    self.body(body)?;
                    now = self.all(yields)?;
                    i += i64::from(*step).max(1);
                }
                now
            }
            Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            } => {
                let (body, yields) = if self.int(*condition)? != 0 {
                    (then_body, then_yields)
                } else {
                    (else_body, else_yields)
                };
                self.body(body)?;
                self.all(yields)?
            }
            op => {
                let ty = self
                    .kernel
                    .ty(*stmt.results.first().ok_or("a result is missing")?);
                vec![self.pure(op, ty)?]
            }
        };
        if values.len() != stmt.results.len() {
            return Err("a statement defines another number of values than it has results".into());
        }
        for (&v, value) in stmt.results.iter().zip(values) {
            self.set(v, value)?;
        }
        Ok(())
    }

    fn all(&self, vars: &[Var]) -> Result<Vec<Tile>> {
        vars.iter().map(|&v| self.tile(v).cloned()).collect()
    }

    fn pure(&self, op: &Op, ty: &TileType) -> Result<Tile> {
        let n = ty.len() as usize;
        let elem_of = |v: Var| self.kernel.ty(v).elem;
        let shape_of = |v: Var| &self.kernel.ty(v).shape;
        Ok(match op {
            Op::Const(Literal::Int(i)) if is_float(ty.elem) => {
                Tile::Float(vec![round(ty.elem, *i as f64); n])
            }
            Op::Const(Literal::Int(i)) => Tile::Int(vec![wrapped(ty.elem, i128::from(*i)); n]),
            Op::Const(Literal::Float(f)) => Tile::Float(vec![round(ty.elem, *f); n]),
            Op::Grid(axis) => Tile::Int(vec![i128::from(
                *self.grid.get(*axis as usize).ok_or("no such grid axis")?,
            )]),
            Op::Size(param) => {
                let s = self.sizes.get(*param as usize).copied().flatten();
                Tile::Int(vec![i128::from(s.ok_or("no such size parameter")?)])
            }
            Op::Iota => Tile::Int((0..n as i128).collect()),
            Op::Unary(f, x) => unary(*f, elem_of(*x), self.tile(*x)?)?,
            Op::Binary(f, a, b) => binary(*f, elem_of(*a), self.tile(*a)?, self.tile(*b)?)?,
            Op::Select(c, a, b) => {
                let c = self.ints(*c)?;
                match (self.tile(*a)?, self.tile(*b)?) {
                    (Tile::Int(a), Tile::Int(b)) => Tile::Int(pick(c, a, b)?),
                    (Tile::Float(a), Tile::Float(b)) => Tile::Float(pick(c, a, b)?),
                    _ => return Err("select of different types".into()),
                }
            }
            Op::MulAdd(a, b, c) => match (self.tile(*a)?, self.tile(*b)?, self.tile(*c)?) {
                (Tile::Float(a), Tile::Float(b), Tile::Float(c)) => Tile::Float(
                    (0..n)
                        .map(|i| round(ty.elem, a[i].mul_add(b[i], c[i])))
                        .collect(),
                ),
                (Tile::Int(a), Tile::Int(b), Tile::Int(c)) => Tile::Int(
                    (0..n)
                        .map(|i| wrapped(ty.elem, a[i].wrapping_mul(b[i]).wrapping_add(c[i])))
                        .collect(),
                ),
                _ => return Err("fused multiply-add of different types".into()),
            },
            Op::Cast(x) => cast(self.tile(*x)?, ty.elem),
            Op::Bitcast(x) => self.bitcast(*x, ty)?,
            Op::Broadcast { x, axis } => {
                let from = shape_of(*x).clone();
                let at = |i: usize| match (from.len(), ty.shape.len(), axis) {
                    (0, _, _) => 0,
                    (1, 2, 0) => i % ty.shape[1] as usize,
                    (1, 2, _) => i / ty.shape[1] as usize,
                    _ => i,
                };
                gather(self.tile(*x)?, (0..n).map(at))?
            }
            Op::Reduce { kind, x, axis } => {
                let shape = shape_of(*x).clone();
                let (outer, len, inner) = match (shape.as_slice(), axis) {
                    ([n], _) => (1, *n, 1),
                    ([a, b], 0) => (1, *a, *b),
                    ([a, b], _) => (*a, *b, 1),
                    _ => return Err("a scalar has no axis to reduce".into()),
                };
                reduce(*kind, ty.elem, self.tile(*x)?, [outer, len, inner])?
            }
            Op::Transpose(x) => {
                let rows = shape_of(*x)[0] as usize;
                let cols = shape_of(*x)[1] as usize;
                gather(self.tile(*x)?, (0..n).map(|i| i % rows * cols + i / rows))?
            }
            Op::Dot { acc, a, b } => {
                let (rows, k, cols) = (shape_of(*a)[0], shape_of(*a)[1], shape_of(*b)[1]);
                let (rows, k, cols) = (rows as usize, k as usize, cols as usize);
                match (self.tile(*acc)?, self.tile(*a)?, self.tile(*b)?) {
                    (Tile::Float(acc), Tile::Float(a), Tile::Float(b)) => Tile::Float(
                        (0..rows * cols)
                            .map(|i| {
                                (0..k).fold(acc[i], |s, kk| {
                                    round(
                                        ty.elem,
                                        a[i / cols * k + kk].mul_add(b[kk * cols + i % cols], s),
                                    )
                                })
                            })
                            .collect(),
                    ),
                    (Tile::Int(acc), Tile::Int(a), Tile::Int(b)) => Tile::Int(
                        (0..rows * cols)
                            .map(|i| {
                                let sum: i128 = (0..k)
                                    .map(|kk| a[i / cols * k + kk] * b[kk * cols + i % cols])
                                    .sum();
                                wrapped(ty.elem, acc[i] + sum)
                            })
                            .collect(),
                    ),
                    _ => return Err("dot of different types".into()),
                }
            }
            Op::Unpack { x, bits, signed } => {
                let per = (8 / bits) as usize;
                let codes = self.ints(*x)?;
                let code = |i: usize| {
                    let c = (codes[i / per] >> (i % per * *bits as usize)) & ((1 << bits) - 1);
                    if *signed && c >> (bits - 1) == 1 {
                        c - (1 << bits)
                    } else {
                        c
                    }
                };
                Tile::Int(
                    (0..codes.len() * per)
                        .map(|i| wrapped(ty.elem, code(i)))
                        .collect(),
                )
            }
            Op::Load { buf, base, axes } => self.load(*buf, *base, axes, ty)?,
            Op::Store { .. } | Op::For { .. } | Op::If { .. } => {
                return Err("not an operation with one value".into());
            }
        })
    }

    fn bitcast(&self, x: Var, ty: &TileType) -> Result<Tile> {
        let (TileElem::Elem(from), TileElem::Elem(to)) = (self.kernel.ty(x).elem, ty.elem) else {
            return Err("bitcast of an index".into());
        };
        let n = ty.len() as usize;
        let source = match self.tile(x)? {
            Tile::Int(v) => Tensor::from_int(from, [n], v.clone()),
            Tile::Float(v) => Tensor::from_f64(from, [n], v.clone()),
        };
        let bytes = source.to_bytes().ok_or("bitcast of strings")?;
        let out = Tensor::from_bytes(to, [n], &bytes).ok_or("bitcast between different widths")?;
        from_data(out.data())
    }

    /// Addresses of a tile's elements, `None` for one that does not exist.
    fn addresses(&self, base: Var, axes: &[Axis], shape: &[u32]) -> Result<Vec<Option<i64>>> {
        if axes.len() != shape.len() {
            return Err("a tile's address has another rank than the tile".into());
        }
        let mut all = vec![Some(self.int(base)?)];
        for (axis, &n) in axes.iter().zip(shape) {
            let offset: Vec<i64> = match axis.at {
                At::Stride(s) => (0..i64::from(n)).map(|i| i * s).collect(),
                At::DynStride(s) => {
                    let s = self.int(s)?;
                    (0..i64::from(n)).map(|i| i.wrapping_mul(s)).collect()
                }
                At::Offsets(o) => self.ints(o)?.iter().map(|&o| o as i64).collect(),
            };
            let count = axis.valid.map_or(Ok(i64::MAX), |v| self.int(v))?;
            let mask = axis.mask.map(|m| self.ints(m)).transpose()?;
            let exists = |i: usize| (i as i64) < count && mask.is_none_or(|m| m[i] != 0);
            all = all
                .iter()
                .flat_map(|&at| {
                    (0..n as usize)
                        .map(move |i| (i, at))
                        .map(|(i, at)| at.filter(|_| exists(i)).map(|a| a.wrapping_add(offset[i])))
                        .collect::<Vec<_>>()
                })
                .collect();
        }
        Ok(all)
    }

    fn bytes(&self, buf: Buf) -> Result<&[u8]> {
        match self.memory.get(buf.0 as usize) {
            Some(Some(Memory::Outside(b))) => Ok(b),
            Some(Some(Memory::Own(b))) => Ok(b),
            _ => Err(format!("there is no buffer {}", buf.0)),
        }
    }

    fn span(&self, buf: Buf, at: i64, elem: ElemType) -> Result<std::ops::Range<usize>> {
        let size = elem.size_bytes();
        let len = self.bytes(buf)?.len();
        usize::try_from(at)
            .ok()
            .and_then(|a| a.checked_mul(size))
            .filter(|&a| a + size <= len)
            .map(|a| a..a + size)
            .ok_or_else(|| {
                format!(
                    "element {at} of buffer {} ({} elements of {elem})",
                    buf.0,
                    len / size.max(1)
                )
            })
    }

    fn load(&self, buf: Buf, base: Var, axes: &[Axis], ty: &TileType) -> Result<Tile> {
        let elem = self.kernel.buf_elem(buf).ok_or("a load names no buffer")?;
        let mut raw = vec![];
        for at in self.addresses(base, axes, &ty.shape)? {
            match at {
                Some(at) => raw.extend(&self.bytes(buf)?[self.span(buf, at, elem)?]),
                None => raw.extend(std::iter::repeat_n(0, elem.size_bytes())),
            }
        }
        let n = ty.len() as usize;
        let t = Tensor::from_bytes(elem, [n], &raw).ok_or("a load of strings")?;
        from_data(t.data())
    }

    fn store(&mut self, buf: Buf, base: Var, axes: &[Axis], x: Var) -> Result<()> {
        let elem = self.kernel.buf_elem(buf).ok_or("a store names no buffer")?;
        if let Some(Param::Buffer {
            written: false,
            name,
            ..
        }) = self.kernel.params.get(buf.0 as usize)
        {
            return Err(format!("buffer `{name}` is not declared as written"));
        }
        let ty = self.kernel.ty(x);
        if ty.elem != TileElem::Elem(elem) {
            return Err(format!("a store of another type than {elem}"));
        }
        let n = ty.len() as usize;
        let values = match self.tile(x)? {
            Tile::Int(v) => Tensor::from_int(elem, [n], v.clone()),
            Tile::Float(v) => Tensor::from_f64(elem, [n], v.clone()),
        };
        let bytes = values.to_bytes().ok_or("a store of strings")?;
        let size = elem.size_bytes();
        for (i, at) in self
            .addresses(base, axes, &ty.shape.clone())?
            .into_iter()
            .enumerate()
        {
            let Some(at) = at else { continue };
            let span = self.span(buf, at, elem)?;
            match self.memory[buf.0 as usize].as_mut() {
                Some(Memory::Outside(b)) => b[span].copy_from_slice(&bytes[i * size..][..size]),
                Some(Memory::Own(b)) => b[span].copy_from_slice(&bytes[i * size..][..size]),
                None => return Err("a store names no buffer".into()),
            }
        }
        Ok(())
    }
}

fn from_data(data: &tensor::Data) -> Result<Tile> {
    match data {
        tensor::Data::Int(v) => Ok(Tile::Int(v.clone())),
        tensor::Data::Float(v) => Ok(Tile::Float(v.clone())),
        _ => Err("kernels know numbers only".into()),
    }
}

fn is_float(elem: TileElem) -> bool {
    matches!(elem, TileElem::Elem(e) if e.is_float())
}

fn round(elem: TileElem, x: f64) -> f64 {
    match elem {
        TileElem::Elem(e) => round_to(e, x),
        TileElem::Index => x,
    }
}

fn wrapped(elem: TileElem, x: i128) -> i128 {
    match elem {
        TileElem::Elem(e) => wrap(e, x),
        TileElem::Index => i128::from(x as i64),
    }
}

fn bits_of(elem: TileElem) -> u32 {
    match elem {
        TileElem::Elem(e) => e.bits(),
        TileElem::Index => 64,
    }
}

fn pick<T: Copy>(c: &[i128], a: &[T], b: &[T]) -> Result<Vec<T>> {
    if c.len() != a.len() || c.len() != b.len() {
        return Err("select of different shapes".into());
    }
    Ok((0..c.len())
        .map(|i| if c[i] != 0 { a[i] } else { b[i] })
        .collect())
}

fn gather(x: &Tile, at: impl Iterator<Item = usize>) -> Result<Tile> {
    fn pick<T: Copy>(x: &[T], at: impl Iterator<Item = usize>) -> Result<Vec<T>> {
        at.map(|i| x.get(i).copied().ok_or("a tile of another shape".into()))
            .collect()
    }
    Ok(match x {
        Tile::Int(v) => Tile::Int(pick(v, at)?),
        Tile::Float(v) => Tile::Float(pick(v, at)?),
    })
}

fn cast(x: &Tile, to: TileElem) -> Tile {
    let int_from_float = |v: f64| match to {
        TileElem::Elem(ElemType::Bool) => i128::from(v != 0.0),
        TileElem::Elem(e) => {
            let (lo, hi) = e.int_range().unwrap_or((i128::MIN, i128::MAX));
            (v as i128).clamp(lo, hi)
        }
        TileElem::Index => i128::from(v as i64),
    };
    match (x, is_float(to)) {
        (Tile::Int(v), true) => Tile::Float(v.iter().map(|&v| int_to_float(to, v)).collect()),
        (Tile::Int(v), false) => Tile::Int(v.iter().map(|&v| wrapped(to, v)).collect()),
        (Tile::Float(v), true) => Tile::Float(v.iter().map(|&v| round(to, v)).collect()),
        (Tile::Float(v), false) => Tile::Int(v.iter().map(|&v| int_from_float(v)).collect()),
    }
}

/// Rounds once: an `i64` would be rounded twice on its way to `f32` through `f64`.
fn int_to_float(to: TileElem, v: i128) -> f64 {
    match to {
        TileElem::Elem(ElemType::F32) => f64::from(v as f32),
        _ => round(to, v as f64),
    }
}

fn reduce(kind: ReduceKind, elem: TileElem, x: &Tile, [a, n, b]: [u32; 3]) -> Result<Tile> {
    let f = match kind {
        ReduceKind::Sum => Binary::Add,
        ReduceKind::Prod => Binary::Mul,
        ReduceKind::Max => Binary::Max,
        ReduceKind::Min => Binary::Min,
        ReduceKind::And => Binary::And,
        ReduceKind::Or => Binary::Or,
    };
    let (a, n, b) = (a as usize, n as usize, b as usize);
    let at = |k: usize| (0..a * b).map(move |i| (i / b * n + k) * b + i % b);
    let first = gather(x, at(0))?;
    (1..n).try_fold(first, |acc, k| binary(f, elem, &acc, &gather(x, at(k))?))
}

fn unary(f: Unary, elem: TileElem, x: &Tile) -> Result<Tile> {
    let bools = |v: Vec<bool>| Tile::Int(v.into_iter().map(i128::from).collect());
    match x {
        Tile::Float(v) => match f {
            Unary::IsNan => Ok(bools(v.iter().map(|v| v.is_nan()).collect())),
            Unary::IsInf => Ok(bools(v.iter().map(|v| v.is_infinite()).collect())),
            _ => {
                let g = float_unary(f).ok_or_else(|| format!("{f:?} of floats"))?;
                Ok(Tile::Float(v.iter().map(|&v| round(elem, g(v))).collect()))
            }
        },
        Tile::Int(v) => {
            let g: fn(i128) -> i128 = match f {
                Unary::Neg => |v| -v,
                Unary::Abs => |v| v.abs(),
                Unary::Sign => |v| v.signum(),
                Unary::Not => |v| i128::from(v == 0),
                Unary::BitNot => |v| !v,
                Unary::Floor | Unary::Ceil | Unary::RoundEven | Unary::Trunc => |v| v,
                Unary::IsNan | Unary::IsInf => |_| 0,
                _ => return Err(format!("{f:?} of integers")),
            };
            let ty = if f == Unary::Not {
                TileElem::Elem(ElemType::Bool)
            } else {
                elem
            };
            Ok(Tile::Int(v.iter().map(|&v| wrapped(ty, g(v))).collect()))
        }
    }
}

fn float_unary(f: Unary) -> Option<fn(f64) -> f64> {
    Some(match f {
        Unary::Neg => |v| -v,
        Unary::Abs => f64::abs,
        Unary::Sign => |v: f64| {
            if v > 0.0 {
                1.0
            } else if v < 0.0 {
                -1.0
            } else {
                v
            }
        },
        Unary::Sqrt => f64::sqrt,
        Unary::Reciprocal => f64::recip,
        Unary::Exp => f64::exp,
        Unary::Log => f64::ln,
        Unary::Sin => f64::sin,
        Unary::Cos => f64::cos,
        Unary::Tan => f64::tan,
        Unary::Asin => f64::asin,
        Unary::Acos => f64::acos,
        Unary::Atan => f64::atan,
        Unary::Sinh => f64::sinh,
        Unary::Cosh => f64::cosh,
        Unary::Tanh => f64::tanh,
        Unary::Asinh => f64::asinh,
        Unary::Acosh => f64::acosh,
        Unary::Atanh => f64::atanh,
        Unary::Erf => libm::erf,
        Unary::Floor => f64::floor,
        Unary::Ceil => f64::ceil,
        Unary::RoundEven => f64::round_ties_even,
        Unary::Trunc => f64::trunc,
        Unary::Not | Unary::BitNot | Unary::IsNan | Unary::IsInf => return None,
    })
}

fn binary(f: Binary, elem: TileElem, a: &Tile, b: &Tile) -> Result<Tile> {
    let same = |x: usize, y: usize| {
        (x == y)
            .then_some(x)
            .ok_or_else(|| format!("{f:?} of different shapes"))
    };
    match (a, b) {
        (Tile::Float(a), Tile::Float(b)) => {
            let n = same(a.len(), b.len())?;
            if let Some(g) = float_compare(f) {
                return Ok(Tile::Int(
                    (0..n).map(|i| i128::from(g(a[i], b[i]))).collect(),
                ));
            }
            let g = float_binary(f).ok_or_else(|| format!("{f:?} of floats"))?;
            Ok(Tile::Float(
                (0..n).map(|i| round(elem, g(a[i], b[i]))).collect(),
            ))
        }
        (Tile::Int(a), Tile::Int(b)) => {
            let n = same(a.len(), b.len())?;
            let values: Option<Vec<i128>> =
                (0..n).map(|i| int_binary(f, elem, a[i], b[i])).collect();
            Ok(Tile::Int(
                values.ok_or_else(|| format!("{f:?} of integers"))?,
            ))
        }
        _ => Err(format!("{f:?} of different types")),
    }
}

fn float_compare(f: Binary) -> Option<fn(f64, f64) -> bool> {
    Some(match f {
        Binary::Eq => |a, b| a == b,
        Binary::Ne => |a, b| a != b,
        Binary::Lt => |a, b| a < b,
        Binary::Le => |a, b| a <= b,
        Binary::Gt => |a, b| a > b,
        Binary::Ge => |a, b| a >= b,
        _ => return None,
    })
}

fn float_binary(f: Binary) -> Option<fn(f64, f64) -> f64> {
    Some(match f {
        Binary::Add => |a, b| a + b,
        Binary::Sub => |a, b| a - b,
        Binary::Mul => |a, b| a * b,
        Binary::Div => |a, b| a / b,
        Binary::Rem => |a: f64, b: f64| a % b,
        Binary::Mod => |a: f64, b: f64| {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) {
                r + b
            } else {
                r
            }
        },
        Binary::FloorDiv => |a: f64, b: f64| (a / b).floor(),
        Binary::Min => |a: f64, b: f64| {
            if a.is_nan() || b.is_nan() {
                f64::NAN
            } else {
                a.min(b)
            }
        },
        Binary::Max => |a: f64, b: f64| {
            if a.is_nan() || b.is_nan() {
                f64::NAN
            } else {
                a.max(b)
            }
        },
        Binary::Pow => f64::powf,
        Binary::Atan2 => f64::atan2,
        _ => return None,
    })
}

/// Shifts by the width or more shift everything out.
fn int_binary(f: Binary, elem: TileElem, a: i128, b: i128) -> Option<i128> {
    let floor_div = |a: i128, b: i128| {
        let (q, r) = (a / b, a % b);
        if r != 0 && (r < 0) != (b < 0) {
            q - 1
        } else {
            q
        }
    };
    let value = match f {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a.wrapping_mul(b),
        Binary::Div | Binary::Mod | Binary::Rem | Binary::FloorDiv if b == 0 => 0,
        Binary::Div => a / b,
        Binary::Rem => a % b,
        Binary::FloorDiv => floor_div(a, b),
        Binary::Mod => a - floor_div(a, b) * b,
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        Binary::Pow => int_pow(elem, a, b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::Shl if b >= i128::from(bits_of(elem)) => 0,
        Binary::Shl => a << b.max(0),
        Binary::Shr => a >> b.clamp(0, i128::from(bits_of(elem)).min(127)),
        Binary::Eq => return Some(i128::from(a == b)),
        Binary::Ne => return Some(i128::from(a != b)),
        Binary::Lt => return Some(i128::from(a < b)),
        Binary::Le => return Some(i128::from(a <= b)),
        Binary::Gt => return Some(i128::from(a > b)),
        Binary::Ge => return Some(i128::from(a >= b)),
        Binary::Atan2 => return None,
    };
    let bool_class = matches!(elem, TileElem::Elem(e) if e.class() == ElemClass::Bool);
    Some(if bool_class {
        value & 1
    } else {
        wrapped(elem, value)
    })
}

/// Integer power with wrapping; a negative exponent gives 0 except for bases 1 and -1.
fn int_pow(elem: TileElem, a: i128, b: i128) -> i128 {
    if b < 0 {
        return match a {
            1 => 1,
            -1 if b % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut base, mut exp, mut out) = (wrapped(elem, a), b, 1i128);
    while exp > 0 {
        if exp & 1 == 1 {
            out = wrapped(elem, out.wrapping_mul(base));
        }
        base = wrapped(elem, base.wrapping_mul(base));
        exp >>= 1;
    }
    out
}

#[cfg(test)]
mod tests;
