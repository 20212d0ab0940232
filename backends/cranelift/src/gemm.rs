//! Contractions: what [`lapidary_ir::kernel::contraction`] recognises becomes a call of a micro-kernel.
//!
//! The epilogue goes into the call where it is one that the micro-kernel knows; otherwise the micro-kernel
//! writes the accumulator to the stack, from where the statements that follow use it.

use crate::function::{Fun, flags};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I32;
use cranelift_codegen::ir::{InstBuilder, StackSlot, Value};
use lapidary_abi::kernel::{GemmF32, GemmI8, Import, RESULT_I32, StageI8, WindowF32};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::contraction::{Contraction, EpilogueMatch, Kind, plan};
use lapidary_ir::kernel::{At, Axis, Buf, Stmt, Var};
use std::mem::offset_of;

impl<'k> Fun<'k, '_> {
    /// Translates a contraction and its epilogue; the number of statements done, 0 if there is none.
    pub fn contraction(&mut self, stmt: &'k Stmt, rest: &'k [Stmt]) -> Result<usize, Error> {
        if !self.micro_kernels {
            return Ok(0);
        }
        let Some(plan) = plan(&self.facts, stmt, rest) else {
            return Ok(0);
        };
        if let Some(tail) = &plan.tail {
            for (i, s) in rest[..=tail.last].iter().enumerate() {
                if !tail.replaced.contains(&i) {
                    self.statements(std::slice::from_ref(s))?;
                }
            }
        }
        self.call(&plan.found, plan.tail.as_ref(), plan.to_zeros)?;
        Ok(plan.statements())
    }

    fn call(
        &mut self,
        g: &Contraction<'k>,
        tail: Option<&EpilogueMatch<'k>>,
        to_zeros: bool,
    ) -> Result<(), Error> {
        let rows = self.clamped(tail.and_then(|t| t.c_rows.valid), g.rows)?;
        let cols = self.clamped(tail.and_then(|t| t.cols), g.width())?;
        let k = self.scalar(g.k)?;
        let Some(tail) = tail else {
            let slot = self.slot((g.rows * g.width() * 4) as usize);
            let c = self.slot_addr(slot);
            let stride = self.index(i64::from(g.width()));
            let pointers = self.row_pointers(g, rows, to_zeros)?;
            self.fill_and_call(
                g,
                Call {
                    pointers,
                    rows,
                    cols,
                    k,
                    c,
                    c_stride: stride,
                    tail: None,
                },
            )?;
            let ty = self.kernel.ty(g.acc).clone();
            let tile = self.reload(&ty, c);
            self.set(g.acc, tile);
            return Ok(());
        };
        let zero = self.index(0);
        let some_rows = self.b.ins().icmp(IntCC::SignedGreaterThan, rows, zero);
        let some_cols = self.b.ins().icmp(IntCC::SignedGreaterThan, cols, zero);
        let any = self.b.ins().band(some_rows, some_cols);
        self.when(any, |s| {
            let pointers = s.row_pointers(g, rows, to_zeros)?;
            let (c, elem) = s.buffer(tail.c)?;
            let base = s.scalar(tail.c_base)?;
            let c = s.element(c, base, elem.size_bytes() as i64);
            let c_stride = s.stride(&tail.c_rows)?;
            s.fill_and_call(
                g,
                Call {
                    pointers,
                    rows,
                    cols,
                    k,
                    c,
                    c_stride,
                    tail: Some(tail),
                },
            )
        })
    }

    /// `min(valid, all)`, or `all`.
    fn clamped(&mut self, valid: Option<Var>, all: u32) -> Result<Value, Error> {
        let all = self.index(i64::from(all));
        let Some(valid) = valid else {
            return Ok(all);
        };
        let valid = self.scalar(valid)?;
        let fewer = self.b.ins().icmp(IntCC::SignedLessThan, valid, all);
        Ok(self.b.ins().select(fewer, valid, all))
    }

    fn stride(&mut self, axis: &Axis) -> Result<Value, Error> {
        match axis.at {
            At::Stride(s) => Ok(self.index(s)),
            At::DynStride(v) => self.scalar(v),
            At::Offsets(_) => Err(self.unsupported("a micro-kernel's result with gathered rows")),
        }
    }

    /// Fills the array of row addresses, tap by tap; each tap has `rows` of them.
    fn row_pointers(
        &mut self,
        g: &Contraction<'k>,
        rows: Value,
        to_zeros: bool,
    ) -> Result<StackSlot, Error> {
        let slot = self.slot((g.taps * g.rows * 8) as usize);
        let Some((index, prefix)) = g.tap else {
            let to = self.slot_addr(slot);
            self.pointers_of_tap(g, to, to_zeros)?;
            return Ok(slot);
        };
        let taps = self.index(i64::from(g.taps));
        self.count(taps, |s, t| {
            s.set_scalar(index, t);
            s.statements(prefix)?;
            let first = s.b.ins().imul(t, rows);
            let to = s.slot_addr(slot);
            let to = s.element(to, first, 8);
            // Rows beyond `rows` are written too; the next tap overwrites them.
            s.pointers_of_tap(g, to, to_zeros)
        })?;
        Ok(slot)
    }

    fn pointers_of_tap(
        &mut self,
        g: &Contraction<'k>,
        to: Value,
        to_zeros: bool,
    ) -> Result<(), Error> {
        let (a, elem) = self.buffer(g.a)?;
        let base = self.scalar(g.a_base)?;
        let mut axis = g.a_rows.clone();
        if !to_zeros {
            axis.valid = None;
        }
        for (i, address) in self
            .row_addresses(a, elem, base, &axis, g.rows)?
            .into_iter()
            .enumerate()
        {
            self.b.ins().store(flags(), address, to, i as i32 * 8);
        }
        Ok(())
    }

    fn fill_and_call(&mut self, g: &Contraction<'k>, call: Call<'_, 'k>) -> Result<(), Error> {
        let (b, elem) = self.buffer(g.b)?;
        let b_base = self.scalar(g.b_base)?;
        let b = self.element(b, b_base, elem.size_bytes() as i64);
        let a = self.slot_addr(call.pointers);
        let taps = self.index(i64::from(g.taps));
        let (bytes, import) = match g.kind {
            Kind::F32 if g.window.is_some() => (size_of::<WindowF32>(), Import::WindowF32),
            Kind::F32 => (size_of::<GemmF32>(), Import::GemmF32),
            Kind::I8 => (size_of::<GemmI8>(), Import::GemmI8),
        };
        let rows = self.b.ins().ireduce(I32, call.rows);
        let cols = self.b.ins().ireduce(I32, call.cols);
        let no = self.b.ins().iconst(I32, 0);
        macro_rules! fields {
            ($args:ident { $($field:ident: $value:expr,)* }) => {
                [$(($value, offset_of!($args, $field))),*].to_vec()
            };
        }
        let fields: Vec<(Value, usize)> = match g.kind {
            Kind::I8 => {
                let (bias, _, _, lo, hi) = self.epilogue_fields(call.tail)?;
                let (sums, scale, a_zero) = self.scaling(call.tail)?;
                let (result, zero) = self.result(call.tail, ElemType::I32);
                let table = match call.tail.and_then(|t| t.table) {
                    Some(table) => self.buffer(table)?.0,
                    None => self.index(0),
                };
                let stages = self.stages(call.tail)?;
                let count = call.tail.map_or(0, |t| t.stages.len());
                let stage_count = self.b.ins().iconst(I32, count as i64);
                let width = self.b.ins().iconst(I32, i64::from(g.width()));
                fields!(GemmI8 {
                    a: a,
                    b: b,
                    c: call.c,
                    sums: sums,
                    scale: scale,
                    bias: bias,
                    c_stride: call.c_stride,
                    k: call.k,
                    taps: taps,
                    rows: rows,
                    cols: cols,
                    a_zero: a_zero,
                    zero: zero,
                    lo: lo,
                    hi: hi,
                    result: result,
                    table: table,
                    width: width,
                    stage_count: stage_count,
                })
                .into_iter()
                .chain(stages)
                .collect()
            }
            Kind::F32 if let Some(w) = g.window => {
                let (bias, residual, residual_stride, lo, hi) = self.epilogue_fields(call.tail)?;
                let (result, zero) = self.result(call.tail, ElemType::F32);
                let codes = self.buffer(g.a)?.1 == ElemType::U8;
                let codes = self.b.ins().iconst(I32, i64::from(codes));
                let (_, scale, _) = self.scaling(call.tail)?;
                let null = self.index(0);
                fields!(WindowF32 {
                    a: a,
                    b: if w.maximum { null } else { b },
                    c: call.c,
                    scale: scale,
                    bias: bias,
                    residual: residual,
                    b_stride: call.k,
                    c_stride: call.c_stride,
                    residual_stride: residual_stride,
                    taps: taps,
                    cols: call.cols,
                    rows: rows,
                    lo: lo,
                    hi: hi,
                    codes: codes,
                    result: result,
                    zero: zero,
                })
            }
            Kind::F32 => {
                let (bias, residual, residual_stride, lo, hi) = self.epilogue_fields(call.tail)?;
                fields!(GemmF32 {
                    a: a,
                    b: b,
                    c: call.c,
                    bias: bias,
                    residual: residual,
                    c_stride: call.c_stride,
                    residual_stride: residual_stride,
                    k: call.k,
                    taps: taps,
                    rows: rows,
                    cols: cols,
                    lo: lo,
                    hi: hi,
                    accumulate: no,
                })
            }
        };
        self.call_micro_kernel(import, bytes, &fields);
        Ok(())
    }

    /// What the result is, and the code of zero there.
    fn result(&mut self, tail: Option<&EpilogueMatch<'k>>, sums: ElemType) -> (Value, Value) {
        let (result, zero) = tail.map_or((RESULT_I32, 0), |t| t.result(sums));
        let result = self.b.ins().iconst(I32, i64::from(result));
        (result, self.b.ins().iconst(I32, zero))
    }

    /// The fields of the stages.
    fn stages(&mut self, tail: Option<&EpilogueMatch<'k>>) -> Result<Vec<(Value, usize)>, Error> {
        let mut fields = vec![];
        for (i, stage) in tail.map_or(&[][..], |t| &t.stages[..]).iter().enumerate() {
            let number = |s: &mut Self, x: f32| s.b.ins().f32const(x);
            let row = self.address(stage.row)?;
            let (mut residual, mut stride, mut of_residual) = (self.index(0), self.index(0), 0.0);
            if let Some((buf, base, rows, factor)) = stage.residual {
                let (address, base) = (self.buffer(buf)?.0, self.scalar(base)?);
                residual = self.element(address, base, 1);
                (stride, of_residual) = (self.stride(rows)?, factor);
            }
            let at = offset_of!(GemmI8, stages) + i * size_of::<StageI8>();
            fields.extend([
                (row, at + offset_of!(StageI8, row)),
                (residual, at + offset_of!(StageI8, residual)),
                (stride, at + offset_of!(StageI8, residual_stride)),
                (number(self, stage.factor), at + offset_of!(StageI8, factor)),
                (
                    number(self, of_residual),
                    at + offset_of!(StageI8, residual_factor),
                ),
                (number(self, stage.lo), at + offset_of!(StageI8, lo)),
                (number(self, stage.hi), at + offset_of!(StageI8, hi)),
            ]);
        }
        Ok(fields)
    }

    /// Column sums, scale, and the code of zero in A.
    fn scaling(
        &mut self,
        tail: Option<&EpilogueMatch<'k>>,
    ) -> Result<(Value, Value, Value), Error> {
        let null = self.index(0);
        let none = self.b.ins().iconst(I32, 0);
        let Some(scaled) = tail.and_then(|t| t.scaled) else {
            return Ok((null, null, none));
        };
        let scale = self.address(scaled.scale)?;
        match scaled.zero {
            None => Ok((null, scale, none)),
            Some((zero, sums, base)) => {
                let sums = self.address((sums, base))?;
                Ok((sums, scale, self.scalar(zero)?))
            }
        }
    }

    /// Where an element of a buffer of 4-byte elements is.
    fn address(&mut self, (buf, base): (Buf, Var)) -> Result<Value, Error> {
        let (address, base) = (self.buffer(buf)?.0, self.scalar(base)?);
        Ok(self.element(address, base, 4))
    }

    /// Bias, residual, its stride, lower and upper bound.
    fn epilogue_fields(
        &mut self,
        tail: Option<&EpilogueMatch<'k>>,
    ) -> Result<(Value, Value, Value, Value, Value), Error> {
        let null = self.index(0);
        let (mut bias, mut residual, mut stride) = (null, null, null);
        if let Some(from) = tail.and_then(|t| t.bias) {
            bias = self.address(from)?;
        }
        if let Some((buf, base, rows)) = tail.and_then(|t| t.residual) {
            residual = self.address((buf, base))?;
            stride = self.stride(rows)?;
        }
        let lo = tail.and_then(|t| t.lo).unwrap_or(f32::NEG_INFINITY);
        let hi = tail.and_then(|t| t.hi).unwrap_or(f32::INFINITY);
        let (lo, hi) = (self.b.ins().f32const(lo), self.b.ins().f32const(hi));
        Ok((bias, residual, stride, lo, hi))
    }
}

/// What a call needs besides its operands.
struct Call<'t, 'k> {
    pointers: StackSlot,
    rows: Value,
    cols: Value,
    k: Value,
    c: Value,
    c_stride: Value,
    tail: Option<&'t EpilogueMatch<'k>>,
}
