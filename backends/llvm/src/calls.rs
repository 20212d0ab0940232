//! Contractions: in registers, or by a call of a micro-kernel of the runtime.
//!
//! See the crate's page for which is chosen.

use crate::function::Fun;
use crate::writer::{Lane, Ty, Val};
use lapidary_abi::kernel::KernelContext;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::call::{Call, Given, Operand};
use lapidary_ir::kernel::contraction::{self, EpilogueMatch, Kind, PANEL, Plan, plan};
use lapidary_ir::kernel::sparse::{self, Form};
use lapidary_ir::kernel::{At, Stmt, Var};
use std::mem::offset_of;

impl<'k> Fun<'k> {
    /// Translates a contraction, and its epilogue if that goes into a call; the number of statements done, 0 if there is
    /// none.
    pub fn contraction(&mut self, stmt: &'k Stmt, rest: &'k [Stmt]) -> Result<usize, Error> {
        if self.target.micro_kernels {
            if let Some(sums) = contraction::recognise_sums(&self.facts, stmt, rest) {
                self.before(&sums.tail, rest)?;
                self.with_result(&sums.tail, [sums.rows, sums.width], |s, given| {
                    s.micro_call(&sums.call(), &given)
                })?;
                return Ok(sums.tail.last + 2);
            }
            let tile = sparse::recognise(&self.facts, stmt);
            if let Some(tile) = tile.filter(|t| matches!(t.form, Form::Codes(_))) {
                let nothing = AtHand::nothing(self);
                self.micro_call(&tile.call(), &nothing)?;
                return Ok(1);
            }
        }
        let Some(plan) = plan(&self.facts, stmt, rest) else {
            return Ok(0);
        };
        if !self.calls(&plan) {
            // Windows are good code as they stand; wide panels and `bf16` are for micro-kernels.
            let found = &plan.found;
            if found.window.is_some() || found.width() != PANEL || found.kind == Kind::Bf16 {
                return Ok(0);
            }
            self.product(&plan)?;
            return Ok(1);
        }
        if let Some(tail) = &plan.tail {
            self.before(tail, rest)?;
        }
        self.call(&plan)?;
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

    /// Whether a micro-kernel is called.
    fn calls(&self, plan: &Plan) -> bool {
        let found = &plan.found;
        let narrow = self.target.arch() == "x86_64" && self.target.vector_bytes < 64;
        // Products of `bf16` are chosen where micro-kernels have them.
        let other = found.window.is_some() || found.kind != Kind::F32;
        self.target.micro_kernels && (narrow || other)
    }

    fn call(&mut self, plan: &Plan<'k>) -> Result<(), Error> {
        let g = &plan.found;
        let call = contraction::call(&self.facts, g, plan.tail.as_ref());
        if let Some(tail) = &plan.tail {
            return self.with_result(tail, [g.rows, g.width()], |s, mut given| {
                given.pointers = Some(s.row_pointers(plan, given.rows)?);
                s.micro_call(&call, &given)
            });
        }
        let rows = self.w.index(i64::from(g.rows));
        let result = self.w.slot(u64::from(g.rows * g.width() * 4));
        let given = AtHand {
            pointers: Some(self.row_pointers(plan, rows)?),
            rows,
            cols: self.w.index(i64::from(g.width())),
            result,
            stride: self.w.index(i64::from(g.width())),
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
        let some_rows = self.w.compare_int("icmp sgt", rows, 0);
        let some_cols = self.w.compare_int("icmp sgt", cols, 0);
        let any = self.w.two("and", some_rows, some_cols);
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
    fn clamped(&mut self, valid: Option<Var>, all: u32) -> Result<Val, Error> {
        let all = self.w.index(i64::from(all));
        let Some(valid) = valid else {
            return Ok(all);
        };
        let valid = self.scalar(valid)?;
        Ok(self.w.intrinsic("llvm.smin.i64", Ty::I64, &[valid, all]))
    }

    fn stride(&mut self, at: At) -> Result<Val, Error> {
        match at {
            At::Stride(s) => Ok(self.w.index(s)),
            At::DynStride(v) => self.scalar(v),
            At::Offsets(_) => Err(self.unsupported("a micro-kernel's result with gathered rows")),
        }
    }

    /// Fills the array of row addresses, tap by tap; each tap has `rows` of them.
    fn row_pointers(&mut self, plan: &Plan<'k>, rows: Val) -> Result<Val, Error> {
        let g = &plan.found;
        let slot = self.w.slot(u64::from(g.taps * g.rows * 8));
        let Some((index, prefix)) = g.tap else {
            self.pointers_of_tap(plan, slot)?;
            return Ok(slot);
        };
        let taps = self.w.index(i64::from(g.taps));
        self.count(taps, |s, t| {
            s.set_scalar(index, t);
            s.statements(prefix)?;
            let first = s.w.two("mul", t, rows);
            let to = s.element(slot, first, 8);
            // Rows beyond `rows` are written too; the next tap overwrites them.
            s.pointers_of_tap(plan, to)
        })?;
        Ok(slot)
    }

    fn pointers_of_tap(&mut self, plan: &Plan<'k>, to: Val) -> Result<(), Error> {
        let g = &plan.found;
        let (a, elem) = self.buffer(g.a)?;
        let base = self.scalar(g.a_base)?;
        let mut axis = g.a_rows.clone();
        if !plan.to_zeros {
            axis.valid = None;
        }
        let zeros = self.zeros;
        let rows = self.row_addresses(a, elem, base, &axis, g.rows, Some(zeros))?;
        for (i, address) in rows.into_iter().enumerate() {
            let at = self.w.offset_by(to, 8 * i as i64);
            self.w.store(address, at);
        }
        Ok(())
    }

    /// Calls a micro-kernel.
    fn micro_call(&mut self, call: &Call, given: &AtHand) -> Result<(), Error> {
        let block = self.w.slot(call.bytes as u64);
        for &(operand, offset) in &call.fields {
            let value = self.operand(operand, given)?;
            let field = self.w.offset_by(block, offset as i64);
            self.w.store(value, field);
        }
        let table = self.context_field(offset_of!(KernelContext, imports));
        let entry = self.w.offset_by(table, call.import as i64 * 8);
        let callee = self.w.load(Ty::PTR, entry);
        self.w.call_pointer(callee, block);
        Ok(())
    }

    fn operand(&mut self, operand: Operand, given: &AtHand) -> Result<Val, Error> {
        Ok(match operand {
            Operand::Null => self.w.null(),
            Operand::Index(x) => self.w.index(x),
            Operand::Int(x) => self.w.int(Ty::scalar(Lane::I32), x),
            Operand::Float(x) => self.w.float(Ty::scalar(Lane::F32), f64::from(x)),
            Operand::Element(buf, base, times) => {
                let ((address, elem), base) = (self.buffer(buf)?, self.scalar(base)?);
                self.element(address, base, elem.size_bytes() as i64 * times)
            }
            Operand::Start(buf) => self.buffer(buf)?.0,
            Operand::Stride(at) => self.stride(at)?,
            Operand::Scalar(var) => self.scalar(var)?,
            Operand::Count(begin, end) => {
                let (begin, end) = (self.scalar(begin)?, self.scalar(end)?);
                let n = self.w.two("sub", end, begin);
                self.not_negative(n)
            }
            Operand::Present(valid, all) => {
                let all = self.w.index(all);
                let some = match valid {
                    Some(valid) => {
                        let valid = self.scalar(valid)?;
                        let some = self.not_negative(valid);
                        self.w.intrinsic("llvm.smin.i64", Ty::I64, &[some, all])
                    }
                    None => all,
                };
                self.low(some)
            }
            Operand::Given(Given::Rows) => match given.pointers {
                Some(pointers) => pointers,
                None => return Err(self.unsupported("a call without rows")),
            },
            Operand::Given(Given::Result) => given.result,
            Operand::Given(Given::ResultStride) => given.stride,
            Operand::Given(Given::RowCount) => self.low(given.rows),
            Operand::Given(Given::Columns) => self.low(given.cols),
            Operand::Given(Given::LongColumns) => given.cols,
        })
    }

    fn not_negative(&mut self, x: Val) -> Val {
        let zero = self.w.index(0);
        self.w.intrinsic("llvm.smax.i64", Ty::I64, &[x, zero])
    }
}

/// What a call needs besides its operands: [`Given`].
#[derive(Clone, Copy)]
struct AtHand {
    pointers: Option<Val>,
    rows: Val,
    cols: Val,
    result: Val,
    stride: Val,
}

impl AtHand {
    /// Of a call that needs nothing.
    fn nothing(fun: &mut Fun) -> AtHand {
        let none = fun.w.index(0);
        AtHand {
            pointers: None,
            rows: none,
            cols: none,
            result: none,
            stride: none,
        }
    }
}
