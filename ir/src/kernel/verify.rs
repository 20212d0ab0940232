//! Checks a kernel: every var defined once and before its use, every type as the operation wants it.
//! All errors are gathered.

use super::*;
use std::collections::HashSet;

/// What is wrong with a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}`: {}", reasons.join("; "))]
pub struct VerifyError {
    /// Name of the kernel.
    pub kernel: String,
    /// Everything that is wrong.
    pub reasons: Vec<String>,
}

/// Checks a kernel.
pub fn verify(kernel: &Kernel) -> Result<(), VerifyError> {
    let mut check = Check {
        kernel,
        scopes: vec![HashSet::new()],
        seen: HashSet::new(),
        reasons: vec![],
    };
    for extent in &kernel.grid {
        if let Extent::Param { param, divisor } = extent
            && (*divisor == 0
                || !matches!(kernel.params.get(*param as usize), Some(Param::Size { .. })))
        {
            check.fail(format!("grid extent {extent:?} names no size"));
        }
    }
    check.body(&kernel.body);
    if check.reasons.is_empty() {
        return Ok(());
    }
    Err(VerifyError {
        kernel: kernel.name.clone(),
        reasons: check.reasons,
    })
}

struct Check<'k> {
    kernel: &'k Kernel,
    scopes: Vec<HashSet<Var>>,
    seen: HashSet<Var>,
    reasons: Vec<String>,
}

impl Check<'_> {
    fn fail(&mut self, reason: String) {
        self.reasons.push(reason);
    }

    fn require(&mut self, holds: bool, reason: impl FnOnce() -> String) {
        if !holds {
            self.fail(reason());
        }
    }

    fn define(&mut self, v: Var) {
        if v.0 as usize >= self.kernel.vars.len() {
            return self.fail(format!("%{} has no type", v.0));
        }
        let ty = self.kernel.ty(v);
        let fits = ty.shape.len() <= 2 && !ty.is_empty();
        self.require(fits, || format!("%{} has an illegal shape", v.0));
        if !self.seen.insert(v) {
            self.fail(format!("%{} is defined twice", v.0));
        }
        self.scopes.last_mut().expect("a scope is open").insert(v);
    }

    /// Type of a used var; a scalar index if it is not defined here (which is reported).
    fn ty(&mut self, v: Var) -> TileType {
        if !self.scopes.iter().any(|s| s.contains(&v)) {
            self.fail(format!("%{} is used where it is not defined", v.0));
        }
        self.kernel
            .vars
            .get(v.0 as usize)
            .cloned()
            .unwrap_or_else(TileType::index)
    }

    fn index(&mut self, v: Var, what: &str) {
        let ty = self.ty(v);
        self.require(ty == TileType::index(), || {
            format!("%{} ({what}) must be a scalar index", v.0)
        });
    }

    fn same(&mut self, a: Var, b: Var, what: &str) {
        let (ta, tb) = (self.ty(a), self.ty(b));
        self.require(ta == tb, || {
            format!(
                "{what}: %{} and %{} have different types {ta:?} and {tb:?}",
                a.0, b.0
            )
        });
    }

    fn body(&mut self, body: &[Stmt]) {
        for stmt in body {
            self.stmt(stmt);
        }
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match &stmt.op {
            Op::For {
                index,
                begin,
                end,
                step,
                carried,
                body,
                yields,
            } => {
                self.index(*begin, "begin");
                self.index(*end, "end");
                self.require(*step > 0, || "a loop's step is 0".into());
                let counts = carried.len() == yields.len() && yields.len() == stmt.results.len();
                self.require(counts, || {
                    "a loop's carried, yielded and final values differ in number".into()
                });
                for c in carried {
                    self.ty(c.1);
                }
                self.scopes.push(HashSet::new());
                self.define(*index);
                carried.iter().for_each(|c| self.define(c.0));
                self.body(body);
                for (c, &y) in carried.iter().zip(yields) {
                    self.same(c.0, y, "carried value");
                }
                self.scopes.pop();
                stmt.results.iter().for_each(|&r| self.define(r));
                for (c, &r) in carried.iter().zip(&stmt.results) {
                    self.same(c.1, r, "loop result");
                }
            }
            Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            } => {
                let ty = self.ty(*condition);
                self.require(ty == TileType::of(ElemType::Bool, &[]), || {
                    format!("condition %{} must be a scalar bool", condition.0)
                });
                for (body, yields) in [(then_body, then_yields), (else_body, else_yields)] {
                    self.scopes.push(HashSet::new());
                    self.body(body);
                    let types: Vec<_> = yields.iter().map(|&y| self.ty(y)).collect();
                    let want: Vec<_> = stmt
                        .results
                        .iter()
                        .map(|&r| self.kernel.ty(r).clone())
                        .collect();
                    self.require(types == want, || {
                        "a branch yields other types than its results".into()
                    });
                    self.scopes.pop();
                }
                stmt.results.iter().for_each(|&r| self.define(r));
            }
            op => {
                let wanted = usize::from(!matches!(op, Op::Store { .. }));
                self.require(stmt.results.len() == wanted, || {
                    format!("an operation has {} results", stmt.results.len())
                });
                let result = stmt
                    .results
                    .first()
                    .and_then(|r| self.kernel.vars.get(r.0 as usize))
                    .cloned();
                self.pure(op, result.unwrap_or_else(TileType::index));
                stmt.results.iter().for_each(|&r| self.define(r));
            }
        }
    }

    fn pure(&mut self, op: &Op, ty: TileType) {
        let bool_elem = TileElem::Elem(ElemType::Bool);
        let with = |elem: TileElem, shape: &[u32]| TileType {
            elem,
            shape: shape.to_vec(),
        };
        let want = match op {
            Op::Const(_) => ty.clone(),
            Op::Grid(axis) => {
                let exists = (*axis as usize) < self.kernel.grid.len();
                self.require(exists, || format!("there is no grid axis {axis}"));
                TileType::index()
            }
            Op::Size(p) => {
                let exists = matches!(
                    self.kernel.params.get(*p as usize),
                    Some(Param::Size { .. })
                );
                self.require(exists, || format!("parameter {p} is no size"));
                TileType::index()
            }
            Op::Iota => {
                self.require(ty.shape.len() == 1, || "iota has rank 1".into());
                with(TileElem::Index, &ty.shape)
            }
            Op::Unary(f, x) => {
                let t = self.ty(*x);
                match f {
                    Unary::IsNan | Unary::IsInf | Unary::Not => with(bool_elem, &t.shape),
                    _ => t,
                }
            }
            Op::Binary(f, a, b) => {
                self.same(*a, *b, &format!("{f:?}"));
                let t = self.ty(*a);
                match f {
                    Binary::Eq | Binary::Ne | Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge => {
                        with(bool_elem, &t.shape)
                    }
                    _ => t,
                }
            }
            Op::Select(c, a, b) => {
                self.same(*a, *b, "select");
                let (tc, ta) = (self.ty(*c), self.ty(*a));
                self.require(tc == with(bool_elem, &ta.shape), || {
                    format!("select's condition %{} has type {tc:?}", c.0)
                });
                ta
            }
            Op::MulAdd(a, b, c) => {
                self.same(*a, *b, "multiply-add");
                self.same(*b, *c, "multiply-add");
                self.ty(*a)
            }
            Op::Cast(x) => {
                let t = self.ty(*x);
                with(ty.elem, &t.shape)
            }
            Op::Bitcast(x) => {
                let t = self.ty(*x);
                let width = |e: TileElem| match e {
                    TileElem::Elem(e) => e.size_bytes(),
                    TileElem::Index => 8,
                };
                self.require(width(t.elem) == width(ty.elem), || {
                    "bitcast between different widths".into()
                });
                with(ty.elem, &t.shape)
            }
            Op::Broadcast { x, axis } => {
                let t = self.ty(*x);
                let fits = match (t.shape.as_slice(), ty.shape.as_slice()) {
                    ([], _) => true,
                    ([n], [_, m]) if *axis == 0 => n == m,
                    ([n], [m, _]) => n == m && *axis == 1,
                    _ => false,
                };
                self.require(fits, || {
                    format!("%{} of shape {:?} repeats to {:?}", x.0, t.shape, ty.shape)
                });
                with(t.elem, &ty.shape)
            }
            Op::Reduce { x, axis, .. } => {
                let mut t = self.ty(*x);
                if (*axis as usize) < t.shape.len() {
                    t.shape.remove(*axis as usize);
                } else {
                    self.fail(format!("%{} has no axis {axis}", x.0));
                }
                t
            }
            Op::Transpose(x) => {
                let t = self.ty(*x);
                self.require(t.shape.len() == 2, || "transpose has rank 2".into());
                with(t.elem, &t.shape.iter().rev().copied().collect::<Vec<_>>())
            }
            Op::Dot { acc, a, b } => {
                let (tc, ta, tb) = (self.ty(*acc), self.ty(*a), self.ty(*b));
                let fits = match (&tc.shape[..], &ta.shape[..], &tb.shape[..]) {
                    ([m, n], [m2, k], [k2, n2]) => m == m2 && n == n2 && k == k2,
                    _ => false,
                };
                self.require(fits, || "dot of shapes that do not fit".into());
                tc
            }
            Op::Unpack { x, bits, .. } => {
                let t = self.ty(*x);
                self.require(matches!(bits, 1 | 2 | 4), || {
                    format!("{bits}-bit codes are not unpacked")
                });
                let n = t.shape.first().copied().unwrap_or(0) * 8 / (*bits).max(1);
                with(ty.elem, &[n])
            }
            Op::Load { buf, base, axes } => {
                self.address(*buf, *base, axes, &ty.shape);
                match self.kernel.buf_elem(*buf) {
                    Some(e) => with(TileElem::Elem(e), &ty.shape),
                    None => ty.clone(),
                }
            }
            Op::Store { buf, base, axes, x } => {
                let t = self.ty(*x);
                self.address(*buf, *base, axes, &t.shape);
                let elem = self.kernel.buf_elem(*buf).map(TileElem::Elem);
                self.require(elem == Some(t.elem), || {
                    format!("%{} is stored into another type", x.0)
                });
                let read_only = matches!(
                    self.kernel.params.get(buf.0 as usize),
                    Some(Param::Buffer { written: false, .. })
                );
                self.require(!read_only, || {
                    format!("buffer {} is not declared as written", buf.0)
                });
                return;
            }
            Op::For { .. } | Op::If { .. } => return,
        };
        self.require(want == ty, || {
            format!("{op:?} gives {want:?}, its result is {ty:?}")
        });
    }

    fn address(&mut self, buf: Buf, base: Var, axes: &[Axis], shape: &[u32]) {
        let known = (buf.0 as usize) < self.kernel.params.len() + self.kernel.scratch.len()
            && self.kernel.buf_elem(buf).is_some();
        self.require(known, || format!("there is no buffer {}", buf.0));
        self.index(base, "base");
        self.require(axes.len() == shape.len(), || {
            format!("{} axes address a tile of rank {}", axes.len(), shape.len())
        });
        for (axis, &n) in axes.iter().zip(shape) {
            match axis.at {
                At::Stride(_) => {}
                At::DynStride(v) => self.index(v, "stride"),
                At::Offsets(v) => {
                    let t = self.ty(v);
                    let fits = t.elem == TileElem::Index && t.shape == [n];
                    self.require(fits, || format!("offsets %{} have type {t:?}", v.0));
                }
            }
            if let Some(v) = axis.valid {
                self.index(v, "valid");
            }
            if let Some(m) = axis.mask {
                let t = self.ty(m);
                self.require(t == TileType::of(ElemType::Bool, &[n]), || {
                    format!("mask %{} has type {t:?}", m.0)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_are_gathered() {
        let mut b = build::KernelBuilder::new("bad");
        let x = b.buffer("x", ElemType::F32, false);
        let i = b.index(0);
        let v = b.load(x, i, &[4], vec![Axis::stride(1)]);
        b.store(x, i, vec![], v);
        b.emit(TileType::index(), Op::Binary(Binary::Add, i, Var(99)));
        let e = verify(&b.finish()).unwrap_err();
        assert!(e.reasons.len() >= 3, "{e}");
    }
}
