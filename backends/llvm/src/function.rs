//! The frame of a kernel's function: arguments, the loop over blocks, statements and control flow.

use crate::tile::{Tile, full_lanes};
use crate::writer::{Block, Lane, Phi, Ty, Val, Writer};
use lapidary_abi::kernel::KernelContext;
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::contraction::Facts;
use lapidary_ir::kernel::{Buf, Extent, Kernel, Op, Param, Stmt, TileType, Var};
use lapidary_ir::target::Target;
use std::collections::HashMap;
use std::mem::offset_of;

/// The kernel, which is legalized, as text: one function `kernel` with the parameters of
/// [`lapidary_abi::kernel::KernelFn`].
pub(crate) fn write(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    let mut w = Writer::default();
    let ctx = w.param(Ty::PTR, "ctx");
    let zeros = w.null();
    let mut fun = Fun {
        w,
        kernel,
        facts: Facts::new(kernel),
        target,
        lanes: full_lanes(kernel, target),
        ctx,
        zeros,
        dummy: None,
        env: vec![None; kernel.vars.len()],
        quads: HashMap::new(),
        params: vec![],
        scratch: vec![],
        grid: vec![],
    };
    fun.function()?;
    let bits = target.vector_bytes * 8;
    Ok(fun.w.finish(&format!(
        "nounwind nobuiltin \"no-builtins\" \"frame-pointer\"=\"none\" \
         \"prefer-vector-width\"=\"{bits}\" \"min-legal-vector-width\"=\"{bits}\""
    )))
}

/// A kernel being translated.
pub(crate) struct Fun<'k> {
    pub w: Writer,
    pub kernel: &'k Kernel,
    pub facts: Facts<'k>,
    pub target: &'k Target,
    /// Lanes of a full vector.
    pub lanes: u32,
    pub ctx: Val,
    /// Address of [`lapidary_abi::kernel::ZEROS_BYTES`] zeros: what does not exist is read from there.
    pub zeros: Val,
    /// What does not exist is written there.
    pub dummy: Option<Val>,
    /// Value of each var defined so far.
    env: Vec<Option<Tile>>,
    /// Tiles of bytes that also lie as dwords of four: see `quads`.
    pub quads: HashMap<Var, Vec<Val>>,
    /// Argument of each parameter.
    params: Vec<Val>,
    /// Address of each scratch.
    scratch: Vec<Val>,
    /// This block's coordinates.
    grid: Vec<Val>,
}

impl<'k> Fun<'k> {
    /// An error that names what is not translated.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported {
            kernel: self.kernel.name.clone(),
            what: what.into(),
        }
    }

    fn function(&mut self) -> Result<(), Error> {
        let args = self.w.param(Ty::PTR, "args");
        let begin = self.w.param(Ty::I64, "begin");
        let end = self.w.param(Ty::I64, "end");
        for (i, param) in self.kernel.params.iter().enumerate() {
            let ty = match param {
                Param::Buffer { .. } => Ty::PTR,
                Param::Size { .. } => Ty::I64,
            };
            let at = self.w.offset_by(args, 8 * i as i64);
            let x = self.w.load(ty, at);
            self.params.push(x);
        }
        self.zeros = self.context_field(offset_of!(KernelContext, zeros));
        if !self.kernel.scratch.is_empty() {
            let mut at = self.context_field(offset_of!(KernelContext, scratch));
            for scratch in &self.kernel.scratch {
                self.scratch.push(at);
                let bytes = u64::from(scratch.len) * scratch.elem.size_bytes() as u64;
                at = self.w.offset_by(at, bytes.next_multiple_of(64) as i64);
            }
        }
        self.blocks(begin, end)?;
        self.w.ret();
        Ok(())
    }

    /// A pointer in the context.
    pub fn context_field(&mut self, offset: usize) -> Val {
        let at = self.w.offset_by(self.ctx, offset as i64);
        self.w.load(Ty::PTR, at)
    }

    /// The loop over `begin..end`, with the block's coordinates counted up beside it.
    fn blocks(&mut self, begin: Val, end: Val) -> Result<(), Error> {
        let extents = self.extents()?;
        let mut coords = vec![begin; extents.len()];
        let mut rest = begin;
        for axis in (1..extents.len()).rev() {
            // An empty axis means an empty grid, whose coordinates nobody sees.
            let one = self.w.index(1);
            let extent = self
                .w
                .intrinsic("llvm.umax.i64", Ty::I64, &[extents[axis], one]);
            let quotient = self.w.two("udiv", rest, extent);
            let product = self.w.two("mul", quotient, extent);
            coords[axis] = self.w.two("sub", rest, product);
            rest = quotient;
        }
        if let Some(first) = coords.first_mut() {
            *first = rest;
        }
        let before = self.w.current();
        let [header, body, exit] = [(); 3].map(|()| self.w.new_block());
        self.w.jump(header);
        self.w.begin(header);
        let block = self.w.phi(Ty::I64);
        let at: Vec<Phi> = coords.iter().map(|_| self.w.phi(Ty::I64)).collect();
        let more = self.w.compare("icmp ult", block.value, end);
        self.w.branch(more, body, exit);
        self.w.begin(body);
        self.grid = at.iter().map(|p| p.value).collect();
        let kernel = self.kernel;
        self.statements(&kernel.body)?;
        let next = self.w.two_int("add", block.value, 1);
        let grid = self.grid.clone();
        let following = self.next_coordinates(&grid, &extents);
        let latch = self.w.current();
        self.w.jump(header);
        self.w.complete(block, &[(begin, before), (next, latch)]);
        for ((phi, first), next) in at.into_iter().zip(coords).zip(following) {
            self.w.complete(phi, &[(first, before), (next, latch)]);
        }
        self.w.begin(exit);
        Ok(())
    }

    /// Counts up the last coordinate and carries over.
    fn next_coordinates(&mut self, coords: &[Val], extents: &[Val]) -> Vec<Val> {
        let mut next = coords.to_vec();
        let mut carry = self.w.index(1);
        for axis in (0..coords.len()).rev() {
            let up = self.w.two("add", coords[axis], carry);
            if axis == 0 {
                next[0] = up;
                break;
            }
            let wraps = self.w.compare("icmp eq", up, extents[axis]);
            let zero = self.w.index(0);
            next[axis] = self.w.select(wraps, zero, up);
            carry = self.w.convert("zext", wraps, Ty::I64);
        }
        next
    }

    fn extents(&mut self) -> Result<Vec<Val>, Error> {
        let mut extents = vec![];
        for extent in &self.kernel.grid {
            extents.push(match extent {
                Extent::Const(n) => self.w.index(*n as i64),
                Extent::Param { param, divisor } => {
                    let size = *self
                        .params
                        .get(*param as usize)
                        .ok_or_else(|| self.unsupported("a grid axis of an unknown parameter"))?;
                    let divisor = i64::from((*divisor).max(1));
                    let up = self.w.two_int("add", size, divisor - 1);
                    self.w.two_int("udiv", up, divisor)
                }
            });
        }
        Ok(extents)
    }

    /// Address of a buffer's or scratch's first element, and its element type.
    pub fn buffer(&self, buf: Buf) -> Result<(Val, ElemType), Error> {
        let unknown =
            || self.unsupported(format!("an access to buffer {}, which there is not", buf.0));
        let i = buf.0 as usize;
        if i >= self.params.len() + self.scratch.len() {
            return Err(unknown());
        }
        let elem = self.kernel.buf_elem(buf).ok_or_else(unknown)?;
        let address = match self.kernel.params.get(i) {
            Some(Param::Buffer { .. }) => self.params[i],
            _ => self.scratch[i - self.kernel.params.len()],
        };
        Ok((address, elem))
    }

    /// The value of a var.
    pub fn get(&self, var: Var) -> Result<Tile, Error> {
        self.env
            .get(var.0 as usize)
            .and_then(|t| t.clone())
            .ok_or_else(|| self.unsupported(format!("a use of %{} before its definition", var.0)))
    }

    /// The value of a scalar var.
    pub fn scalar(&self, var: Var) -> Result<Val, Error> {
        let tile = self.get(var)?;
        match tile.parts[..] {
            [x] if tile.ty.shape.is_empty() => Ok(x),
            _ => Err(self.unsupported(format!("%{} where a scalar is needed", var.0))),
        }
    }

    /// Defines a var.
    pub fn set(&mut self, var: Var, tile: Tile) {
        self.env[var.0 as usize] = Some(tile);
    }

    /// Defines a scalar index var.
    pub fn set_scalar(&mut self, var: Var, x: Val) {
        let tile = self.scalar_tile(x);
        self.set(var, tile);
    }

    fn scalar_tile(&self, x: Val) -> Tile {
        Tile {
            ty: TileType::index(),
            parts: vec![x],
        }
    }

    pub fn statements(&mut self, body: &'k [Stmt]) -> Result<(), Error> {
        let mut i = 0;
        while i < body.len() {
            i += match self.contraction(&body[i], &body[i + 1..])? {
                0 => {
                    self.statement(&body[i])?;
                    1
                }
                done => done,
            };
        }
        Ok(())
    }

    fn statement(&mut self, stmt: &'k Stmt) -> Result<(), Error> {
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
                let (begin, end) = (self.scalar(*begin)?, self.scalar(*end)?);
                let init = self.parts_of(carried.iter().map(|c| c.1))?;
                let l = self.begin_loop(begin, end, &init);
                let inside: Vec<Var> = carried.iter().map(|c| c.0).collect();
                self.set_parts(&inside, &l.values());
                self.set_scalar(*index, l.index.value);
                self.statements(body)?;
                let next = self.parts_of(yields.iter().copied())?;
                let values = l.values();
                self.end_loop(l, i64::from(*step), &next);
                self.set_parts(&stmt.results, &values);
                Ok(())
            }
            Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            } => {
                let condition = self.scalar(*condition)?;
                let [yes, no, after] = [(); 3].map(|()| self.w.new_block());
                self.w.branch(condition, yes, no);
                let mut ends = vec![];
                for (block, body, yields) in
                    [(yes, then_body, then_yields), (no, else_body, else_yields)]
                {
                    self.w.begin(block);
                    self.statements(body)?;
                    ends.push((self.parts_of(yields.iter().copied())?, self.w.current()));
                    self.w.jump(after);
                }
                self.w.begin(after);
                let merged = self.merge(&ends[0], &ends[1]);
                self.set_parts(&stmt.results, &merged);
                Ok(())
            }
            Op::Store { .. } => self.store(stmt),
            _ => {
                let result = stmt.results[0];
                let ty = self.kernel.ty(result).clone();
                let tile = match &stmt.op {
                    Op::Grid(axis) => {
                        let x = self.grid.get(*axis as usize).copied();
                        self.scalar_tile(x.ok_or_else(|| self.unsupported("an unknown grid axis"))?)
                    }
                    Op::Size(param) => {
                        let x = self.params.get(*param as usize).copied();
                        self.scalar_tile(x.ok_or_else(|| self.unsupported("an unknown size"))?)
                    }
                    Op::Load { .. } => self.load_var(result, &ty, &stmt.op)?,
                    op => self.operation(&ty, op)?,
                };
                if tile.parts.iter().map(|p| p.ty).collect::<Vec<_>>() != self.part_types(&ty) {
                    return Err(self.unsupported(format!("the shape of %{}", result.0)));
                }
                self.set(result, tile);
                Ok(())
            }
        }
    }

    fn parts_of(&self, vars: impl Iterator<Item = Var>) -> Result<Vec<Val>, Error> {
        let mut parts = vec![];
        for var in vars {
            parts.extend(self.get(var)?.parts);
        }
        Ok(parts)
    }

    /// Defines vars by all their parts in a row.
    fn set_parts(&mut self, vars: &[Var], mut parts: &[Val]) {
        for &var in vars {
            let ty = self.kernel.ty(var).clone();
            let (now, rest) = parts.split_at(self.part_types(&ty).len().min(parts.len()));
            parts = rest;
            self.set(
                var,
                Tile {
                    ty,
                    parts: now.to_vec(),
                },
            );
        }
    }

    /// Values that come from one of two blocks, at the beginning of the next.
    pub fn merge(&mut self, a: &(Vec<Val>, Block), b: &(Vec<Val>, Block)) -> Vec<Val> {
        a.0.iter()
            .zip(&b.0)
            .map(|(&x, &y)| {
                let phi = self.w.phi(x.ty);
                self.w.complete(phi, &[(x, a.1), (y, b.1)]);
                phi.value
            })
            .collect()
    }

    /// Opens a loop whose body follows.
    pub fn begin_loop(&mut self, begin: Val, end: Val, init: &[Val]) -> Loop {
        let before = self.w.current();
        let [header, body, exit] = [(); 3].map(|()| self.w.new_block());
        self.w.jump(header);
        self.w.begin(header);
        let index = self.w.phi(Ty::I64);
        let carried: Vec<Phi> = init.iter().map(|x| self.w.phi(x.ty)).collect();
        let more = self.w.compare("icmp slt", index.value, end);
        self.w.branch(more, body, exit);
        self.w.begin(body);
        Loop {
            header,
            exit,
            before,
            index,
            carried,
            begin,
            init: init.to_vec(),
        }
    }

    /// Closes it; what follows sees the carried values.
    pub fn end_loop(&mut self, l: Loop, step: i64, next: &[Val]) {
        let index = self.w.two_int("add", l.index.value, step);
        let latch = self.w.current();
        self.w.jump(l.header);
        self.w
            .complete(l.index, &[(l.begin, l.before), (index, latch)]);
        for ((phi, init), next) in l.carried.into_iter().zip(l.init).zip(next) {
            self.w.complete(phi, &[(init, l.before), (*next, latch)]);
        }
        self.w.begin(l.exit);
    }

    /// `for i in 0..end { body(i) }` in generated code.
    pub fn count(
        &mut self,
        end: Val,
        body: impl FnOnce(&mut Self, Val) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let zero = self.w.index(0);
        let l = self.begin_loop(zero, end, &[]);
        body(self, l.index.value)?;
        self.end_loop(l, 1, &[]);
        Ok(())
    }

    /// `if condition { body() }` in generated code.
    pub fn when(
        &mut self,
        condition: Val,
        body: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [yes, after] = [(); 2].map(|()| self.w.new_block());
        self.w.branch(condition, yes, after);
        self.w.begin(yes);
        body(self)?;
        self.w.jump(after);
        self.w.begin(after);
        Ok(())
    }

    /// `a and b` where there are both.
    pub fn both(&mut self, a: Option<Val>, b: Option<Val>) -> Option<Val> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.w.two("and", a, b)),
            (a, b) => a.or(b),
        }
    }

    /// A slot that writes of single elements go to when they are not wanted.
    pub fn dummy(&mut self) -> Val {
        match self.dummy {
            Some(d) => d,
            None => {
                let d = self.w.slot(64);
                self.dummy = Some(d);
                d
            }
        }
    }

    /// A 32-bit integer of the low bits of an index.
    pub fn low(&mut self, x: Val) -> Val {
        self.w.convert("trunc", x, Ty::scalar(Lane::I32))
    }
}

/// An open loop.
pub(crate) struct Loop {
    header: Block,
    exit: Block,
    before: Block,
    pub index: Phi,
    carried: Vec<Phi>,
    begin: Val,
    init: Vec<Val>,
}

impl Loop {
    /// The carried values.
    pub fn values(&self) -> Vec<Val> {
        self.carried.iter().map(|p| p.value).collect()
    }
}
