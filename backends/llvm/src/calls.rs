//! Contractions: in registers, or by a call of a micro-kernel of the runtime.
//!
//! See the crate's page for which is chosen.

use crate::function::Fun;
use crate::writer::{Lane, Ty, Val};
use lapidary_abi::kernel::{
    GemmF32, GemmI8, Import, KernelContext, RESULT_I32, StageI8, WindowF32,
};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::contraction::{Contraction, EpilogueMatch, Kind, PANEL, Plan, plan};
use lapidary_ir::kernel::{At, Axis, Buf, Stmt, Var};
use std::mem::offset_of;

/// A field of a call's arguments: value and offset.
type Fields = Vec<(Val, usize)>;

impl<'k> Fun<'k> {
    /// Translates a contraction, and its epilogue if that goes into a call; the number of statements done, 0 if there is
    /// none.
    pub fn contraction(&mut self, stmt: &'k Stmt, rest: &'k [Stmt]) -> Result<usize, Error> {
        let Some(plan) = plan(&self.facts, stmt, rest) else {
            return Ok(0);
        };
        if !self.calls(&plan) {
            // Windows are good code as they stand; wide panels are for micro-kernels.
            if plan.found.window.is_some() || plan.found.width() != PANEL {
                return Ok(0);
            }
            self.product(&plan)?;
            return Ok(1);
        }
        if let Some(tail) = &plan.tail {
            for (i, s) in rest[..=tail.last].iter().enumerate() {
                if !tail.replaced.contains(&i) {
                    self.statements(std::slice::from_ref(s))?;
                }
            }
        }
        self.call(&plan)?;
        Ok(plan.statements())
    }

    /// Whether a micro-kernel is called.
    fn calls(&self, plan: &Plan) -> bool {
        let found = &plan.found;
        let narrow = self.target.arch() == "x86_64" && self.target.vector_bytes < 64;
        self.target.micro_kernels && (narrow || found.window.is_some() || found.kind == Kind::I8)
    }

    fn call(&mut self, plan: &Plan<'k>) -> Result<(), Error> {
        let g = &plan.found;
        let tail = plan.tail.as_ref();
        let rows = self.clamped(tail.and_then(|t| t.c_rows.valid), g.rows)?;
        let cols = self.clamped(tail.and_then(|t| t.cols), g.width())?;
        let k = self.scalar(g.k)?;
        let Some(tail) = tail else {
            let c = self.w.slot(u64::from(g.rows * g.width() * 4));
            let c_stride = self.w.index(i64::from(g.width()));
            let pointers = self.row_pointers(plan, rows)?;
            self.fill_and_call(
                g,
                Call {
                    pointers,
                    rows,
                    cols,
                    k,
                    c,
                    c_stride,
                    tail: None,
                },
            )?;
            let ty = self.kernel.ty(g.acc).clone();
            let tile = self.reload(&ty, c);
            self.set(g.acc, tile);
            return Ok(());
        };
        let some_rows = self.w.compare_int("icmp sgt", rows, 0);
        let some_cols = self.w.compare_int("icmp sgt", cols, 0);
        let any = self.w.two("and", some_rows, some_cols);
        self.when(any, |s| {
            let pointers = s.row_pointers(plan, rows)?;
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
    fn clamped(&mut self, valid: Option<Var>, all: u32) -> Result<Val, Error> {
        let all = self.w.index(i64::from(all));
        let Some(valid) = valid else {
            return Ok(all);
        };
        let valid = self.scalar(valid)?;
        Ok(self.w.intrinsic("llvm.smin.i64", Ty::I64, &[valid, all]))
    }

    fn stride(&mut self, axis: &Axis) -> Result<Val, Error> {
        match axis.at {
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

    fn fill_and_call(&mut self, g: &Contraction<'k>, call: Call<'_, 'k>) -> Result<(), Error> {
        let (b, elem) = self.buffer(g.b)?;
        let b_base = self.scalar(g.b_base)?;
        let b = self.element(b, b_base, elem.size_bytes() as i64);
        let taps = self.w.index(i64::from(g.taps));
        let (bytes, import) = match g.kind {
            Kind::F32 if g.window.is_some() => (size_of::<WindowF32>(), Import::WindowF32),
            Kind::F32 => (size_of::<GemmF32>(), Import::GemmF32),
            Kind::I8 => (size_of::<GemmI8>(), Import::GemmI8),
        };
        let at = self.w.slot(bytes as u64);
        let (rows, cols) = (self.low(call.rows), self.low(call.cols));
        let no = self.w.int(Ty::scalar(Lane::I32), 0);
        macro_rules! fields {
            ($args:ident { $($field:ident: $value:expr,)* }) => {
                [$(($value, offset_of!($args, $field))),*].to_vec()
            };
        }
        let fields: Fields = match g.kind {
            Kind::I8 => {
                let (bias, _, _, lo, hi) = self.epilogue_fields(call.tail)?;
                let (sums, scale, a_zero) = self.scaling(call.tail)?;
                let (result, zero) = self.result(call.tail, ElemType::I32);
                let table = match call.tail.and_then(|t| t.table) {
                    Some(table) => self.buffer(table)?.0,
                    None => self.w.null(),
                };
                let stages = self.stages(call.tail)?;
                let count = call.tail.map_or(0, |t| t.stages.len());
                let stage_count = self.w.int(Ty::scalar(Lane::I32), count as i64);
                let width = self.w.int(Ty::scalar(Lane::I32), i64::from(g.width()));
                fields!(GemmI8 {
                    a: call.pointers,
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
            Kind::F32 => {
                let (bias, residual, residual_stride, lo, hi) = self.epilogue_fields(call.tail)?;
                let (result, zero) = self.result(call.tail, ElemType::F32);
                let codes = self.buffer(g.a)?.1 == ElemType::U8;
                let codes = self.w.int(Ty::scalar(Lane::I32), i64::from(codes));
                let (_, scale, _) = self.scaling(call.tail)?;
                match g.window {
                    Some(w) => fields!(WindowF32 {
                        a: call.pointers,
                        b: if w.maximum { self.w.null() } else { b },
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
                    }),
                    None => fields!(GemmF32 {
                        a: call.pointers,
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
                    }),
                }
            }
        };
        for (value, offset) in fields {
            let field = self.w.offset_by(at, offset as i64);
            self.w.store(value, field);
        }
        let table = self.context_field(offset_of!(KernelContext, imports));
        let entry = self.w.offset_by(table, import as i64 * 8);
        let callee = self.w.load(Ty::PTR, entry);
        self.w.call_pointer(callee, at);
        Ok(())
    }

    /// What the result is, and the code of zero there.
    fn result(&mut self, tail: Option<&EpilogueMatch<'k>>, sums: ElemType) -> (Val, Val) {
        let (result, zero) = tail.map_or((RESULT_I32, 0), |t| t.result(sums));
        let i32s = Ty::scalar(Lane::I32);
        (self.w.int(i32s, i64::from(result)), self.w.int(i32s, zero))
    }

    /// The fields of the stages.
    fn stages(&mut self, tail: Option<&EpilogueMatch<'k>>) -> Result<Vec<(Val, usize)>, Error> {
        let mut fields = vec![];
        for (i, stage) in tail.map_or(&[][..], |t| &t.stages[..]).iter().enumerate() {
            let f32s = Ty::scalar(Lane::F32);
            let number = |s: &mut Self, x: f32| s.w.float(f32s, f64::from(x));
            let row = self.address(stage.row)?;
            let (mut residual, mut stride, mut of_residual) = (self.w.null(), self.w.index(0), 0.0);
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
    fn scaling(&mut self, tail: Option<&EpilogueMatch<'k>>) -> Result<(Val, Val, Val), Error> {
        let null = self.w.null();
        let none = self.w.int(Ty::scalar(Lane::I32), 0);
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
    fn address(&mut self, (buf, base): (Buf, Var)) -> Result<Val, Error> {
        let (address, base) = (self.buffer(buf)?.0, self.scalar(base)?);
        Ok(self.element(address, base, 4))
    }

    /// Bias, residual, its stride, lower and upper bound.
    fn epilogue_fields(
        &mut self,
        tail: Option<&EpilogueMatch<'k>>,
    ) -> Result<(Val, Val, Val, Val, Val), Error> {
        let null = self.w.null();
        let (mut bias, mut residual, mut stride) = (null, null, self.w.index(0));
        if let Some(from) = tail.and_then(|t| t.bias) {
            bias = self.address(from)?;
        }
        if let Some((buf, base, rows)) = tail.and_then(|t| t.residual) {
            residual = self.address((buf, base))?;
            stride = self.stride(rows)?;
        }
        let lo = tail.and_then(|t| t.lo).unwrap_or(f32::NEG_INFINITY);
        let hi = tail.and_then(|t| t.hi).unwrap_or(f32::INFINITY);
        let f32s = Ty::scalar(Lane::F32);
        let (lo, hi) = (
            self.w.float(f32s, f64::from(lo)),
            self.w.float(f32s, f64::from(hi)),
        );
        Ok((bias, residual, stride, lo, hi))
    }
}

/// What a call needs besides its operands.
struct Call<'t, 'k> {
    pointers: Val,
    rows: Val,
    cols: Val,
    k: Val,
    c: Val,
    c_stride: Val,
    tail: Option<&'t EpilogueMatch<'k>>,
}
