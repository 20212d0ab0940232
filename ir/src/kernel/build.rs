//! Writing kernels: one call per statement, types worked out here.

use super::*;
use std::collections::HashMap;

/// Writes a replacement for an operation whose result has the given type; see [`KernelBuilder::rewrite`].
pub type Rewriter<'f> = dyn FnMut(&mut KernelBuilder, &Op, &TileType) -> Option<Var> + 'f;

/// Writes a kernel statement by statement. Wrong types are the caller's bugs and panic in tests via the
/// verifier, not here.
#[derive(Debug)]
pub struct KernelBuilder {
    kernel: Kernel,
    /// Open bodies, innermost last.
    bodies: Vec<Vec<Stmt>>,
}

impl KernelBuilder {
    /// A kernel without parameters yet.
    pub fn new(name: &str) -> KernelBuilder {
        let kernel = Kernel {
            name: name.to_owned(),
            params: vec![],
            grid: vec![],
            scratch: vec![],
            vars: vec![],
            body: vec![],
        };
        KernelBuilder {
            kernel,
            bodies: vec![vec![]],
        }
    }

    /// Adds a buffer parameter. All parameters come before the first scratch.
    pub fn buffer(&mut self, name: &str, elem: ElemType, written: bool) -> Buf {
        self.kernel.params.push(Param::Buffer {
            name: name.to_owned(),
            elem,
            written,
        });
        Buf(self.kernel.params.len() as u32 - 1)
    }

    /// Adds a size parameter; its position.
    pub fn size_param(&mut self, name: &str) -> u32 {
        self.kernel.params.push(Param::Size {
            name: name.to_owned(),
        });
        self.kernel.params.len() as u32 - 1
    }

    /// Adds scratch memory, after all parameters.
    pub fn scratch(&mut self, elem: ElemType, len: u32) -> Buf {
        self.kernel.scratch.push(Scratch { elem, len });
        Buf((self.kernel.params.len() + self.kernel.scratch.len()) as u32 - 1)
    }

    /// Adds a grid axis; this block's position along it.
    pub fn grid(&mut self, extent: Extent) -> Var {
        self.kernel.grid.push(extent);
        let axis = self.kernel.grid.len() as u32 - 1;
        self.emit(TileType::index(), Op::Grid(axis))
    }

    /// Makes a var without defining it.
    pub fn var(&mut self, ty: TileType) -> Var {
        self.kernel.vars.push(ty);
        Var(self.kernel.vars.len() as u32 - 1)
    }

    /// Type of a var.
    pub fn ty(&self, var: Var) -> TileType {
        self.kernel.ty(var).clone()
    }

    /// The literal that defines a var, if it was emitted as one, repeated or not, in a body that is still open.
    pub fn literal(&self, var: Var) -> Option<Literal> {
        self.bodies.iter().flatten().find_map(|s| match s.op {
            Op::Const(l) if s.results == [var] => Some(l),
            Op::Broadcast { x, .. } if s.results == [var] => self.literal(x),
            _ => None,
        })
    }

    /// Emits an operation with one result of this type.
    pub fn emit(&mut self, ty: TileType, op: Op) -> Var {
        let var = self.var(ty);
        self.push(Stmt {
            results: vec![var],
            op,
        });
        var
    }

    fn push(&mut self, stmt: Stmt) {
        self.bodies
            .last_mut()
            .expect("there is always an open body")
            .push(stmt);
    }

    /// A size parameter's value.
    pub fn size(&mut self, param: u32) -> Var {
        self.emit(TileType::index(), Op::Size(param))
    }

    /// A scalar index constant.
    pub fn index(&mut self, value: i64) -> Var {
        self.emit(TileType::index(), Op::Const(Literal::Int(value)))
    }

    /// A constant of any type.
    pub fn constant(&mut self, ty: TileType, value: Literal) -> Var {
        self.emit(ty, Op::Const(value))
    }

    /// `0..n` as an index tile.
    pub fn iota(&mut self, n: u32) -> Var {
        self.emit(
            TileType {
                elem: TileElem::Index,
                shape: vec![n],
            },
            Op::Iota,
        )
    }

    /// A function of each element.
    pub fn unary(&mut self, f: Unary, x: Var) -> Var {
        let mut ty = self.ty(x);
        if matches!(f, Unary::IsNan | Unary::IsInf | Unary::Not) {
            ty.elem = TileElem::Elem(ElemType::Bool);
        }
        self.emit(ty, Op::Unary(f, x))
    }

    /// A function of each pair; a scalar operand is repeated to the other's shape.
    pub fn binary(&mut self, f: Binary, a: Var, b: Var) -> Var {
        let (a, b) = self.same_shape(a, b);
        let mut ty = self.ty(a);
        if matches!(
            f,
            Binary::Eq | Binary::Ne | Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge
        ) {
            ty.elem = TileElem::Elem(ElemType::Bool);
        }
        self.emit(ty, Op::Binary(f, a, b))
    }

    /// Repeats whichever operand is a scalar to the other's shape.
    fn same_shape(&mut self, a: Var, b: Var) -> (Var, Var) {
        let (sa, sb) = (self.ty(a).shape, self.ty(b).shape);
        match (sa.is_empty(), sb.is_empty()) {
            (true, false) => (self.broadcast(a, &sb, 0), b),
            (false, true) => (a, self.broadcast(b, &sa, 0)),
            _ => (a, b),
        }
    }

    /// `condition ? a : b`; scalars are repeated.
    pub fn select(&mut self, condition: Var, a: Var, b: Var) -> Var {
        let (a, b) = self.same_shape(a, b);
        let (condition, a) = self.same_shape(condition, a);
        let (condition, b) = self.same_shape(condition, b);
        let ty = self.ty(a);
        self.emit(ty, Op::Select(condition, a, b))
    }

    /// `a * b + c`.
    pub fn mul_add(&mut self, a: Var, b: Var, c: Var) -> Var {
        let (a, b) = self.same_shape(a, b);
        let (a, c) = self.same_shape(a, c);
        let (b, c) = self.same_shape(b, c);
        let ty = self.ty(c);
        self.emit(ty, Op::MulAdd(a, b, c))
    }

    /// Conversion (nothing if the type is already that).
    pub fn cast(&mut self, x: Var, elem: TileElem) -> Var {
        let ty = self.ty(x);
        if ty.elem == elem {
            return x;
        }
        self.emit(
            TileType {
                elem,
                shape: ty.shape,
            },
            Op::Cast(x),
        )
    }

    /// Repeats to `shape`; see [`Op::Broadcast`].
    pub fn broadcast(&mut self, x: Var, shape: &[u32], axis: u32) -> Var {
        let elem = self.ty(x).elem;
        self.emit(
            TileType {
                elem,
                shape: shape.to_vec(),
            },
            Op::Broadcast { x, axis },
        )
    }

    /// Reduces an axis.
    pub fn reduce(&mut self, kind: ReduceKind, x: Var, axis: u32) -> Var {
        let mut ty = self.ty(x);
        ty.shape.remove(axis as usize);
        self.emit(ty, Op::Reduce { kind, x, axis })
    }

    /// `acc + a * b`.
    pub fn dot(&mut self, acc: Var, a: Var, b: Var) -> Var {
        let ty = self.ty(acc);
        self.emit(ty, Op::Dot { acc, a, b })
    }

    /// Reads a tile of `shape`, in the buffer's element type.
    pub fn load(&mut self, buf: Buf, base: Var, shape: &[u32], axes: Vec<Axis>) -> Var {
        let elem = self.kernel.buf_elem(buf).expect("loads name a buffer");
        self.emit(TileType::of(elem, shape), Op::Load { buf, base, axes })
    }

    /// Writes a tile.
    pub fn store(&mut self, buf: Buf, base: Var, axes: Vec<Axis>, x: Var) {
        self.push(Stmt {
            results: vec![],
            op: Op::Store { buf, base, axes, x },
        });
    }

    /// A loop; `body` gets the index and the carried values, and returns their next values.
    pub fn for_loop(
        &mut self,
        begin: Var,
        end: Var,
        step: u32,
        init: &[Var],
        body: impl FnOnce(&mut Self, Var, &[Var]) -> Vec<Var>,
    ) -> Vec<Var> {
        let index = self.var(TileType::index());
        let carried: Vec<(Var, Var)> = init
            .iter()
            .map(|&v| {
                let ty = self.ty(v);
                (self.var(ty), v)
            })
            .collect();
        let inner: Vec<Var> = carried.iter().map(|c| c.0).collect();
        self.bodies.push(vec![]);
        let yields = body(self, index, &inner);
        let body = self.bodies.pop().expect("pushed above");
        let results: Vec<Var> = init
            .iter()
            .map(|&v| {
                let ty = self.ty(v);
                self.var(ty)
            })
            .collect();
        self.push(Stmt {
            results: results.clone(),
            op: Op::For {
                index,
                begin,
                end,
                step,
                carried,
                body,
                yields,
            },
        });
        results
    }

    /// A branch; both sides return vars of the same types.
    pub fn if_else(
        &mut self,
        condition: Var,
        then_side: impl FnOnce(&mut Self) -> Vec<Var>,
        else_side: impl FnOnce(&mut Self) -> Vec<Var>,
    ) -> Vec<Var> {
        self.bodies.push(vec![]);
        let then_yields = then_side(self);
        let then_body = self.bodies.pop().expect("pushed above");
        self.bodies.push(vec![]);
        let else_yields = else_side(self);
        let else_body = self.bodies.pop().expect("pushed above");
        let results: Vec<Var> = then_yields
            .iter()
            .map(|&v| {
                let ty = self.ty(v);
                self.var(ty)
            })
            .collect();
        self.push(Stmt {
            results: results.clone(),
            op: Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            },
        });
        results
    }

    /// Goes through a kernel in order and lets `f` write something else in the place of each operation that
    /// defines one var; `None` keeps the operation.
    pub fn rewrite(mut kernel: Kernel, f: &mut Rewriter<'_>) -> Kernel {
        let body = std::mem::take(&mut kernel.body);
        let mut b = KernelBuilder {
            kernel,
            bodies: vec![vec![]],
        };
        b.rewrite_body(body, &mut HashMap::new(), f);
        b.finish()
    }

    fn rewrite_body(
        &mut self,
        body: Vec<Stmt>,
        renamed: &mut HashMap<Var, Var>,
        f: &mut Rewriter<'_>,
    ) {
        for mut stmt in body {
            stmt.op.rename(&|v| renamed.get(&v).copied().unwrap_or(v));
            match &mut stmt.op {
                Op::For { body, yields, .. } => {
                    self.rewrite_inner(body, yields, renamed, f);
                }
                Op::If {
                    then_body,
                    then_yields,
                    else_body,
                    else_yields,
                    ..
                } => {
                    self.rewrite_inner(then_body, then_yields, renamed, f);
                    self.rewrite_inner(else_body, else_yields, renamed, f);
                }
                _ => {}
            }
            if let &[result] = &stmt.results[..] {
                let ty = self.ty(result);
                if let Some(new) = f(self, &stmt.op, &ty) {
                    renamed.insert(result, new);
                    continue;
                }
            }
            self.push(stmt);
        }
    }

    /// Rewrites the statements inside an operation; what they yield may be renamed there.
    fn rewrite_inner(
        &mut self,
        body: &mut Vec<Stmt>,
        yields: &mut [Var],
        renamed: &mut HashMap<Var, Var>,
        f: &mut Rewriter<'_>,
    ) {
        self.bodies.push(vec![]);
        self.rewrite_body(std::mem::take(body), renamed, f);
        *body = self.bodies.pop().expect("pushed above");
        for y in yields {
            *y = renamed.get(y).copied().unwrap_or(*y);
        }
    }

    /// The finished kernel.
    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self
            .bodies
            .pop()
            .expect("the outermost body is open until now");
        self.kernel
    }
}

impl Axis {
    /// Every element exists, at this stride.
    pub fn stride(stride: i64) -> Axis {
        Axis {
            at: At::Stride(stride),
            valid: None,
            mask: None,
        }
    }

    /// Every element exists, at these offsets.
    pub fn offsets(offsets: Var) -> Axis {
        Axis {
            at: At::Offsets(offsets),
            valid: None,
            mask: None,
        }
    }

    /// Only this many leading elements exist.
    pub fn valid(mut self, count: Var) -> Axis {
        self.valid = Some(count);
        self
    }
}
