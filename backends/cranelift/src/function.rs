//! The frame of a kernel's function: arguments, the loop over blocks, statements and control flow.

use crate::isa::Isas;
use crate::tile::Tile;
use cranelift_codegen::CompiledCode;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I64};
use cranelift_codegen::ir::{
    self, AbiParam, Block, BlockArg, InstBuilder, MemFlagsData, Signature, StackSlot,
    StackSlotData, StackSlotKind, UserFuncName, Value,
};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use lapidary_abi::kernel::KernelContext;
use lapidary_ir::backend::{Error, Function};
use lapidary_ir::kernel::contraction::Facts;
use lapidary_ir::kernel::{Buf, Extent, Kernel, Op, Param, Stmt, Var, legalize};
use lapidary_ir::target::Target;
use std::mem::offset_of;

/// Translates one kernel to machine code.
pub(crate) fn compile(kernel: &Kernel, target: &Target, isas: &Isas) -> Result<Function, Error> {
    let mut ctx = cranelift_codegen::Context::new();
    let code = compile_in(&mut ctx, kernel, target, isas)?;
    Ok(Function {
        bytes: code.code_buffer().to_vec(),
        entry: 0,
    })
}

/// The machine code of one kernel as text: blocks and instructions in the order of their bytes.
pub(crate) fn listing(kernel: &Kernel, target: &Target, isas: &Isas) -> Result<String, Error> {
    let mut ctx = cranelift_codegen::Context::new();
    ctx.set_disasm(true);
    let code = compile_in(&mut ctx, kernel, target, isas)?;
    Ok(code.vcode.clone().unwrap_or_default())
}

fn compile_in<'c>(
    ctx: &'c mut cranelift_codegen::Context,
    kernel: &Kernel,
    target: &Target,
    isas: &Isas,
) -> Result<&'c CompiledCode, Error> {
    let calls =
        |f, ty: &_| target.micro_kernels && lapidary_ir::kernel::map::function_of(f, ty).is_some();
    let kernel = legalize::legalize_but(kernel.clone(), &calls);
    let scalar = kernel.vars.iter().all(|ty| ty.len() == 1);
    let isa = if scalar { &isas.scalars } else { &isas.vectors };
    ctx.func = translate(&kernel, target, &**isa)?;
    let failed = |message: String| Error::Codegen {
        kernel: kernel.name.clone(),
        message,
    };
    let code = ctx
        .compile(&**isa, &mut ControlPlane::default())
        .map_err(|e| failed(format!("{:?}", e.inner)))?;
    match code.buffer.relocs().first() {
        Some(reloc) => Err(failed(format!("the code needs a relocation: {reloc:?}"))),
        None => Ok(code),
    }
}

/// Parameters of [`lapidary_abi::kernel::KernelFn`].
pub(crate) fn signature(isa: &dyn TargetIsa) -> Signature {
    let mut signature = Signature::new(isa.default_call_conv());
    signature.params = vec![AbiParam::new(I64); 4];
    signature
}

/// The kernel as a Cranelift function.
pub(crate) fn translate(
    kernel: &Kernel,
    target: &Target,
    isa: &dyn TargetIsa,
) -> Result<ir::Function, Error> {
    let mut func = ir::Function::with_name_signature(UserFuncName::default(), signature(isa));
    let mut builder_ctx = FunctionBuilderContext::new();
    let mut fun = Fun {
        b: FunctionBuilder::new(&mut func, &mut builder_ctx),
        kernel,
        facts: Facts::new(kernel),
        fused: target.fused_multiply_add,
        x86: target.arch() == "x86_64",
        micro_kernels: target.micro_kernels,
        call_conv: isa.default_call_conv(),
        env: vec![None; kernel.vars.len()],
        params: vec![],
        scratch: vec![],
        grid: vec![],
        ctx: Value::from_u32(0),
        zeros: None,
    };
    fun.function()?;
    fun.b.seal_all_blocks();
    fun.b.finalize(isa.frontend_config());
    Ok(func)
}

/// A kernel being translated.
pub(crate) struct Fun<'k, 'f> {
    pub b: FunctionBuilder<'f>,
    pub kernel: &'k Kernel,
    pub facts: Facts<'k>,
    /// The target has fused multiply-add.
    pub fused: bool,
    /// The target is x86-64.
    pub x86: bool,
    /// Micro-kernels may be called.
    pub micro_kernels: bool,
    pub call_conv: cranelift_codegen::isa::CallConv,
    /// Value of each var defined so far.
    env: Vec<Option<Tile>>,
    /// Argument of each parameter.
    params: Vec<Value>,
    /// Address of each scratch.
    scratch: Vec<Value>,
    /// This block's coordinates.
    grid: Vec<Value>,
    pub ctx: Value,
    /// Zero bytes that what does not exist is read from.
    zeros: Option<Value>,
}

/// Memory accesses of kernels never trap; nothing is known of their alignment.
pub(crate) fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl<'k> Fun<'k, '_> {
    /// An error that names what is not translated.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported {
            kernel: self.kernel.name.clone(),
            what: what.into(),
        }
    }

    fn function(&mut self) -> Result<(), Error> {
        let entry = self.b.create_block();
        self.b.append_block_params_for_function_params(entry);
        self.b.switch_to_block(entry);
        let [ctx, args, begin, end] = *self.b.block_params(entry) else {
            return Err(self.unsupported("a function without its four parameters"));
        };
        self.ctx = ctx;
        for i in 0..self.kernel.params.len() {
            let x = self.b.ins().load(I64, flags(), args, 8 * i as i32);
            self.params.push(x);
        }
        let zeros = offset_of!(KernelContext, zeros) as i32;
        self.zeros = Some(self.b.ins().load(I64, flags(), ctx, zeros));
        if !self.kernel.scratch.is_empty() {
            let offset = offset_of!(KernelContext, scratch) as i32;
            let mut at = self.b.ins().load(I64, flags(), ctx, offset);
            for scratch in &self.kernel.scratch {
                self.scratch.push(at);
                let bytes = u64::from(scratch.len) * scratch.elem.size_bytes() as u64;
                at = self
                    .b
                    .ins()
                    .iadd_imm_s(at, bytes.next_multiple_of(64) as i64);
            }
        }
        self.blocks(begin, end)?;
        self.b.ins().return_(&[]);
        Ok(())
    }

    /// The loop over `begin..end`, with the block's coordinates counted up beside it.
    fn blocks(&mut self, begin: Value, end: Value) -> Result<(), Error> {
        let extents = self.extents()?;
        let mut coords = vec![begin; extents.len()];
        let mut rest = begin;
        for axis in (1..extents.len()).rev() {
            // An empty axis means an empty grid, whose coordinates nobody sees.
            let one = self.b.ins().iconst(I64, 1);
            let extent = self.b.ins().umax(extents[axis], one);
            let quotient = self.b.ins().udiv(rest, extent);
            let product = self.b.ins().imul(quotient, extent);
            coords[axis] = self.b.ins().isub(rest, product);
            rest = quotient;
        }
        if let Some(first) = coords.first_mut() {
            *first = rest;
        }
        let (header, body, exit) = (
            self.b.create_block(),
            self.b.create_block(),
            self.b.create_block(),
        );
        for _ in 0..=coords.len() {
            self.b.append_block_param(header, I64);
        }
        let start: Vec<Value> = [begin].into_iter().chain(coords).collect();
        self.jump(header, &start);
        self.b.switch_to_block(header);
        let state = self.b.block_params(header).to_vec();
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, state[0], end);
        self.b.ins().brif(more, body, &[], exit, &[]);
        self.b.switch_to_block(body);
        self.grid = state[1..].to_vec();
        let kernel = self.kernel;
        self.statements(&kernel.body)?;
        let mut next = vec![self.b.ins().iadd_imm_s(state[0], 1)];
        next.extend(self.next_coordinates(&state[1..], &extents));
        self.jump(header, &next);
        self.b.switch_to_block(exit);
        Ok(())
    }

    /// Counts up the last coordinate and carries over.
    fn next_coordinates(&mut self, coords: &[Value], extents: &[Value]) -> Vec<Value> {
        let mut next = coords.to_vec();
        let mut carry = self.b.ins().iconst(I64, 1);
        for axis in (0..coords.len()).rev() {
            let up = self.b.ins().iadd(coords[axis], carry);
            if axis == 0 {
                next[0] = up;
                break;
            }
            let wraps = self.b.ins().icmp(IntCC::Equal, up, extents[axis]);
            let zero = self.b.ins().iconst(I64, 0);
            next[axis] = self.b.ins().select(wraps, zero, up);
            carry = self.b.ins().uextend(I64, wraps);
        }
        next
    }

    fn extents(&mut self) -> Result<Vec<Value>, Error> {
        let mut extents = vec![];
        for extent in &self.kernel.grid {
            extents.push(match extent {
                Extent::Const(n) => self.b.ins().iconst(I64, *n as i64),
                Extent::Param { param, divisor } => {
                    let size = *self
                        .params
                        .get(*param as usize)
                        .ok_or_else(|| self.unsupported("a grid axis of an unknown parameter"))?;
                    let divisor = (*divisor).max(1);
                    let up = self.b.ins().iadd_imm_s(size, i64::from(divisor) - 1);
                    let divisor = self.b.ins().iconst(I64, i64::from(divisor));
                    self.b.ins().udiv(up, divisor)
                }
            });
        }
        Ok(extents)
    }

    /// Address of a buffer's or scratch's first element, and its element type.
    pub fn buffer(&self, buf: Buf) -> Result<(Value, lapidary_ir::ElemType), Error> {
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

    /// Address of [`lapidary_abi::kernel::ZEROS_BYTES`] zeros.
    pub fn zeros(&self) -> Value {
        self.zeros.expect("loaded before the first statement")
    }

    /// The value of a var.
    pub fn get(&self, var: Var) -> Result<Tile, Error> {
        self.env
            .get(var.0 as usize)
            .and_then(|t| t.clone())
            .ok_or_else(|| self.unsupported(format!("a use of %{} before its definition", var.0)))
    }

    /// The value of a scalar var.
    pub fn scalar(&self, var: Var) -> Result<Value, Error> {
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

    /// A stack slot of this many bytes, 16-byte aligned.
    pub fn slot(&mut self, bytes: usize) -> StackSlot {
        let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes.max(1) as u32, 4);
        self.b.create_sized_stack_slot(data)
    }

    /// Address of a stack slot.
    pub fn slot_addr(&mut self, slot: StackSlot) -> Value {
        self.b.ins().stack_addr(I64, slot, 0)
    }

    pub fn jump(&mut self, to: Block, args: &[Value]) {
        let args: Vec<BlockArg> = args.iter().map(|&v| BlockArg::Value(v)).collect();
        self.b.ins().jump(to, &args);
    }

    /// Statements in order; what a micro-kernel computes is translated as a whole.
    pub fn statements(&mut self, body: &'k [Stmt]) -> Result<(), Error> {
        let mut i = 0;
        while i < body.len() {
            i += match self.contraction(&body[i], &body[i + 1..])? {
                0 => {
                    if !self.panel(&body[i])? {
                        self.statement(&body[i])?;
                    }
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
                let init: Vec<Var> = carried.iter().map(|c| c.1).collect();
                let inside: Vec<Var> = carried.iter().map(|c| c.0).collect();
                let header = self.begin_loop(begin, end, &init)?;
                self.set_tiles(&inside, &header.carried);
                self.set_scalar(*index, header.index);
                self.statements(body)?;
                self.end_loop(&header, i64::from(*step), yields)?;
                self.set_tiles(&stmt.results, &header.carried);
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
                let (yes, no, after) = (
                    self.b.create_block(),
                    self.b.create_block(),
                    self.b.create_block(),
                );
                self.b.ins().brif(condition, yes, &[], no, &[]);
                let tiles = self.block_tiles(after, &stmt.results);
                for (block, body, yields) in
                    [(yes, then_body, then_yields), (no, else_body, else_yields)]
                {
                    self.b.switch_to_block(block);
                    self.statements(body)?;
                    let parts = self.parts_of(yields)?;
                    self.jump(after, &parts);
                }
                self.b.switch_to_block(after);
                self.set_tiles(&stmt.results, &tiles);
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
                    Op::Load { .. } => self.load(&ty, &stmt.op)?,
                    op => self.operation(&ty, op)?,
                };
                if tile.parts.len() != crate::tile::Layout::of(&ty).len() {
                    return Err(self.unsupported(format!("the shape of %{}", result.0)));
                }
                self.set(result, tile);
                Ok(())
            }
        }
    }

    fn scalar_tile(&self, x: Value) -> Tile {
        Tile {
            ty: lapidary_ir::kernel::TileType::index(),
            parts: vec![x],
        }
    }

    /// Defines a scalar index var.
    pub fn set_scalar(&mut self, var: Var, x: Value) {
        let tile = self.scalar_tile(x);
        self.set(var, tile);
    }

    fn set_tiles(&mut self, vars: &[Var], tiles: &[Tile]) {
        for (&var, tile) in vars.iter().zip(tiles) {
            self.set(var, tile.clone());
        }
    }

    fn parts_of(&self, vars: &[Var]) -> Result<Vec<Value>, Error> {
        let mut parts = vec![];
        for &var in vars {
            parts.extend(self.get(var)?.parts);
        }
        Ok(parts)
    }

    /// Tiles of these vars' types as parameters of a block.
    fn block_tiles(&mut self, block: Block, vars: &[Var]) -> Vec<Tile> {
        vars.iter()
            .map(|&var| {
                let ty = self.kernel.ty(var).clone();
                let parts = self
                    .part_types(&ty)
                    .into_iter()
                    .map(|t| self.b.append_block_param(block, t))
                    .collect();
                Tile { ty, parts }
            })
            .collect()
    }

    /// Opens a loop whose body follows.
    fn begin_loop(&mut self, begin: Value, end: Value, init: &[Var]) -> Result<Loop, Error> {
        let (header, body, exit) = (
            self.b.create_block(),
            self.b.create_block(),
            self.b.create_block(),
        );
        let index = self.b.append_block_param(header, I64);
        let carried = self.block_tiles(header, init);
        let mut args = vec![begin];
        args.extend(self.parts_of(init)?);
        self.jump(header, &args);
        self.b.switch_to_block(header);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, index, end);
        self.b.ins().brif(more, body, &[], exit, &[]);
        self.b.switch_to_block(body);
        Ok(Loop {
            header,
            exit,
            index,
            carried,
        })
    }

    fn end_loop(&mut self, l: &Loop, step: i64, yields: &[Var]) -> Result<(), Error> {
        let mut args = vec![self.b.ins().iadd_imm_s(l.index, step)];
        args.extend(self.parts_of(yields)?);
        self.jump(l.header, &args);
        self.b.switch_to_block(l.exit);
        Ok(())
    }

    /// `for i in 0..end { body(i) }` in generated code.
    pub fn count(
        &mut self,
        end: Value,
        body: impl FnOnce(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let zero = self.b.ins().iconst(I64, 0);
        let l = self.begin_loop(zero, end, &[])?;
        body(self, l.index)?;
        self.end_loop(&l, 1, &[])
    }

    /// `if condition { body() }` in generated code.
    pub fn when(
        &mut self,
        condition: Value,
        body: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (yes, after) = (self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, yes, &[], after, &[]);
        self.b.switch_to_block(yes);
        body(self)?;
        self.jump(after, &[]);
        self.b.switch_to_block(after);
        Ok(())
    }

    /// True (an `i8`) in generated code.
    pub fn yes(&mut self) -> Value {
        self.b.ins().iconst(I8, 1)
    }
}

/// An open loop.
struct Loop {
    header: Block,
    exit: Block,
    index: Value,
    carried: Vec<Tile>,
}
