//! Contractions: what [`lapidary_ir::kernel::contraction`] recognises becomes a call of a micro-kernel.
//!
//! The epilogue goes into the call where it is one that the micro-kernel knows; otherwise the micro-kernel
//! writes the accumulator to the stack, from where the statements that follow use it.

use crate::function::{Fun, flags};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I32;
use cranelift_codegen::ir::{InstBuilder, StackSlot, Value};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::call::{Call, Given, Operand};
use lapidary_ir::kernel::contraction::{self, Contraction, EpilogueMatch, plan};
use lapidary_ir::kernel::{At, Stmt, Var};

impl<'k> Fun<'k, '_> {
    /// Translates a contraction and its epilogue; the number of statements done, 0 if there is none.
    pub fn contraction(&mut self, stmt: &'k Stmt, rest: &'k [Stmt]) -> Result<usize, Error> {
        if !self.micro_kernels {
            return Ok(0);
        }
        if let Some(sums) = contraction::recognise_sums(&self.facts, stmt, rest) {
            self.before(&sums.tail, rest)?;
            self.with_result(&sums.tail, [sums.rows, sums.width], |s, given| {
                s.micro_call(&sums.call(), &given)
            })?;
            return Ok(sums.tail.last + 2);
        }
        let Some(plan) = plan(&self.facts, stmt, rest) else {
            return Ok(0);
        };
        if let Some(tail) = &plan.tail {
            self.before(tail, rest)?;
        }
        self.call(&plan.found, plan.tail.as_ref(), plan.to_zeros)?;
        Ok(plan.statements())
    }

    /// The statements up to the end of an epilogue that a micro-kernel does not take over.
    fn before(&mut self, tail: &EpilogueMatch<'k>, rest: &'k [Stmt]) -> Result<(), Error> {
        for (i, s) in rest[..=tail.last].iter().enumerate() {
            if !tail.replaced.contains(&i) {
                self.statements(std::slice::from_ref(s))?;
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        g: &Contraction<'k>,
        tail: Option<&EpilogueMatch<'k>>,
        to_zeros: bool,
    ) -> Result<(), Error> {
        let call = contraction::call(&self.facts, g, tail);
        if let Some(tail) = tail {
            return self.with_result(tail, [g.rows, g.width()], |s, mut given| {
                let pointers = s.row_pointers(g, given.rows, to_zeros)?;
                given.pointers = Some(pointers);
                s.micro_call(&call, &given)
            });
        }
        let rows = self.index(i64::from(g.rows));
        let slot = self.slot((g.rows * g.width() * 4) as usize);
        let result = self.slot_addr(slot);
        let given = AtHand {
            pointers: Some(self.row_pointers(g, rows, to_zeros)?),
            rows,
            cols: self.index(i64::from(g.width())),
            result,
            stride: self.index(i64::from(g.width())),
        };
        self.micro_call(&call, &given)?;
        let ty = self.kernel.ty(g.acc).clone();
        let tile = self.reload(&ty, result);
        self.set(g.acc, tile);
        Ok(())
    }

    /// Does something with where results go, if there are any.
    fn with_result(
        &mut self,
        tail: &EpilogueMatch<'k>,
        [rows, width]: [u32; 2],
        call: impl FnOnce(&mut Self, AtHand) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let rows = self.clamped(tail.c_rows.valid, rows)?;
        let cols = self.clamped(tail.cols, width)?;
        let zero = self.index(0);
        let some_rows = self.b.ins().icmp(IntCC::SignedGreaterThan, rows, zero);
        let some_cols = self.b.ins().icmp(IntCC::SignedGreaterThan, cols, zero);
        let any = self.b.ins().band(some_rows, some_cols);
        self.when(any, |s| {
            let (c, elem) = s.buffer(tail.c)?;
            let base = s.scalar(tail.c_base)?;
            let given = AtHand {
                pointers: None,
                rows,
                cols,
                result: s.element(c, base, elem.size_bytes() as i64),
                stride: s.stride(tail.c_rows.at)?,
            };
            call(s, given)
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

    fn stride(&mut self, at: At) -> Result<Value, Error> {
        match at {
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

    /// Calls a micro-kernel.
    pub fn micro_call(&mut self, call: &Call, given: &AtHand) -> Result<(), Error> {
        let fields = call.fields.iter().map(|&(operand, offset)| {
            let value = self.operand(operand, given)?;
            Ok((value, offset))
        });
        let fields = fields.collect::<Result<Vec<_>, Error>>()?;
        self.call_micro_kernel(call.import, call.bytes, &fields);
        Ok(())
    }

    fn operand(&mut self, operand: Operand, given: &AtHand) -> Result<Value, Error> {
        Ok(match operand {
            Operand::Null => self.index(0),
            Operand::Index(x) => self.index(x),
            Operand::Int(x) => self.b.ins().iconst(I32, x),
            Operand::Float(x) => self.b.ins().f32const(x),
            Operand::Element(buf, base, times) => {
                let ((address, elem), base) = (self.buffer(buf)?, self.scalar(base)?);
                self.element(address, base, elem.size_bytes() as i64 * times)
            }
            Operand::Start(buf) => self.buffer(buf)?.0,
            Operand::Stride(at) => self.stride(at)?,
            Operand::Scalar(var) => self.scalar(var)?,
            Operand::Count(begin, end) => {
                let (begin, end) = (self.scalar(begin)?, self.scalar(end)?);
                self.count_of(begin, end)
            }
            Operand::Present(valid, all) => {
                let some = self.present(valid, all)?;
                self.b.ins().ireduce(I32, some)
            }
            Operand::Given(Given::Rows) => match given.pointers {
                Some(slot) => self.slot_addr(slot),
                None => return Err(self.unsupported("a call without rows")),
            },
            Operand::Given(Given::Result) => given.result,
            Operand::Given(Given::ResultStride) => given.stride,
            Operand::Given(Given::RowCount) => self.b.ins().ireduce(I32, given.rows),
            Operand::Given(Given::Columns) => self.b.ins().ireduce(I32, given.cols),
            Operand::Given(Given::LongColumns) => given.cols,
        })
    }
}

/// What a call needs besides its operands: [`Given`].
#[derive(Clone, Copy)]
pub struct AtHand {
    pointers: Option<StackSlot>,
    rows: Value,
    cols: Value,
    result: Value,
    stride: Value,
}

impl AtHand {
    /// Of a call that needs nothing.
    pub fn nothing(fun: &mut Fun) -> AtHand {
        let none = fun.index(0);
        AtHand {
            pointers: None,
            rows: none,
            cols: none,
            result: none,
            stride: none,
        }
    }
}
