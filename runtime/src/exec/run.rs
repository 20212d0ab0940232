//! One run: the steps, in order.

use super::ports::{Input, OutputBuffer, view_at};
use super::{KernelTiming, Model, Output};
use crate::device;
use crate::error::RunError;
use crate::frame::Frame;
use crate::ops::Call;
use crate::plan::{Body, Decl, Op, byte_len};
use crate::sizes;
use crate::value::{Operand, Value, View};
use core::ffi::c_void;
use lapidary_abi::kernel::{KernelContext, KernelFn, ZEROS_BYTES};
use lapidary_abi::program::{Arg, Place, ValueIndex, ValueType};
use lapidary_abi::{ElemType, Size};
use std::time::Instant;

#[repr(align(64))]
struct Zeros([u8; ZEROS_BYTES]);

static ZEROS: Zeros = Zeros([0; ZEROS_BYTES]);

pub struct Run<'a, 't> {
    pub model: &'a Model,
    pub imports: *const *const c_void,
    pub frame: &'a mut Frame,
    pub inputs: Vec<Input<'a>>,
    pub outputs: Vec<Option<OutputBuffer>>,
    /// Memory of the states; none while the model is prepared.
    pub states: Vec<OutputBuffer>,
    pub timing: Option<&'t mut dyn FnMut(KernelTiming)>,
}

/// What all threads of a launch share.
struct Launch {
    entry: KernelFn,
    imports: *const *const c_void,
    args: *const u64,
    scratch: *mut u8,
    stride: usize,
}

// SAFETY: arguments and imports are only read; scratch is divided by thread index.
unsafe impl Sync for Launch {}

impl Launch {
    fn blocks(&self, thread: usize, begin: u64, end: u64) {
        let context = KernelContext {
            imports: self.imports,
            // SAFETY: scratch has room for every thread of the pool.
            scratch: unsafe { self.scratch.add(thread * self.stride) },
            zeros: ZEROS.0.as_ptr(),
        };
        // SAFETY: the code comes from the compiler that made the program; arguments are as it asked.
        unsafe { (self.entry)(&context, self.args, begin, end) }
    }
}

impl<'a> Run<'a, '_> {
    fn decl(&self, value: ValueIndex) -> &'a Decl {
        &self.model.plan.values[value as usize]
    }

    pub(super) fn size(&self, size: &Size) -> Result<i64, RunError> {
        sizes::eval(size, &self.frame.symbols).ok_or_else(|| {
            let text = sizes::text(size, &self.model.plan.symbols);
            RunError::program(format!("the size `{text}` has no value"))
        })
    }

    fn dims(&self, decl: &Decl) -> Result<Vec<usize>, RunError> {
        let mut dims = Vec::new();
        self.dims_into(decl, &mut dims)?;
        Ok(dims)
    }

    fn dims_into(&self, decl: &Decl, out: &mut Vec<usize>) -> Result<(), RunError> {
        if let Some(dims) = &decl.dims {
            out.clear();
            out.extend_from_slice(dims);
            return Ok(());
        }
        match &decl.ty {
            ValueType::Tensor { dims: Some(d), .. }
                if sizes::dims_into(d, &self.frame.symbols, out) =>
            {
                Ok(())
            }
            ValueType::Tensor { dims: Some(_), .. } => {
                let text = super::ports::type_text(&decl.ty, &self.model.plan.symbols);
                Err(RunError::program(format!(
                    "the shape of {text} is not known"
                )))
            }
            _ => Err(RunError::program(
                "a value without shape is used as a tensor",
            )),
        }
    }

    /// Inputs whose value lives on the heap are defined before the first step.
    pub fn define_inputs(&mut self) -> Result<(), RunError> {
        for (n, port) in self.model.plan.inputs.iter().enumerate() {
            match self.decl(port.value).place {
                Place::Input(m) if m as usize == n => {}
                _ => {
                    let value = self.inputs[n].operand.to_value()?;
                    self.store(port.value, value)?;
                }
            }
        }
        Ok(())
    }

    pub fn body(&mut self, body: &'a Body) -> Result<(), RunError> {
        for &local in &body.locals {
            self.frame.clear(local as usize);
        }
        body.ops.iter().try_for_each(|op| self.op(op))
    }

    pub(super) fn op(&mut self, op: &'a Op) -> Result<(), RunError> {
        match op {
            Op::Launch { .. } => self.launch(op),
            Op::Call { .. } => self.call(op),
            Op::BindDim {
                symbol,
                value,
                axis,
            } => {
                let dims = match self.operand(*value)? {
                    Operand::Tensor(v) => v.dims().to_vec(),
                    other => return Err(not_a_tensor(&other)),
                };
                let len = dims.get(*axis).ok_or_else(|| {
                    RunError::program(format!("shape {dims:?} has no axis {axis}"))
                })?;
                self.frame.symbols[*symbol] = *len as i64;
                Ok(())
            }
            Op::BindElement {
                symbol,
                value,
                element,
            } => {
                self.frame.symbols[*symbol] = self.integer(*value, *element)?;
                Ok(())
            }
            Op::Move { from, to } => {
                let value = self.operand(*from)?.to_value()?;
                self.store(*to, value)
            }
            Op::If {
                condition,
                then_body,
                else_body,
                results,
            } => {
                let body = if self.integer(*condition, 0)? != 0 {
                    then_body
                } else {
                    else_body
                };
                self.body(body)?;
                let values = self.take(&body.results)?;
                for (&to, value) in results.iter().zip(values) {
                    self.store(to, value)?;
                }
                Ok(())
            }
            Op::Loop(l) => self.run_loop(l),
            Op::Experts(mixture) => self.experts(mixture),
            Op::Free { value } => {
                let root = self.decl(*value).root;
                self.frame.clear(root);
                Ok(())
            }
            Op::Require {
                left,
                right,
                message,
            } => {
                let (left, right) = (self.size(left)?, self.size(right)?);
                if left != right {
                    return Err(RunError::Input(format!(
                        "{message} ({left} is not {right})"
                    )));
                }
                Ok(())
            }
        }
    }

    fn launch(&mut self, op: &'a Op) -> Result<(), RunError> {
        let Op::Launch {
            kernel,
            grid,
            grain,
            args,
            flops,
            fresh,
        } = op
        else {
            return Ok(());
        };
        let decl = &self.model.plan.kernels[*kernel];
        let grid = self.size(grid)?;
        for &value in fresh {
            self.allocate(value)?;
        }
        self.frame.args.clear();
        for arg in args {
            let bits = match arg {
                Arg::Buffer(v) => self.address(*v)? as u64,
                Arg::Size(s) => self.size(s)? as u64,
            };
            self.frame.args.push(bits);
        }
        if let Some(residency) = &self.model.residency {
            let weights = args.iter().filter_map(|arg| match arg {
                Arg::Buffer(v) => match self.decl(*v).place {
                    Place::Weights { offset, .. } => Some(offset),
                    _ => None,
                },
                Arg::Size(_) => None,
            });
            residency.visit(weights, grid > 0);
        }
        let start = self.timing.is_some().then(Instant::now);
        if grid > 0 {
            match &self.model.device {
                None => self.launch_here(decl.code_offset, grid as u64, u64::from(*grain)),
                Some(device) => {
                    let bytes: Vec<Option<usize>> =
                        args.iter().map(|a| self.arg_bytes(a)).collect();
                    device.launch(&device::Launch {
                        code_offset: decl.code_offset,
                        blocks: grid as u64,
                        args: &self.frame.args,
                        bytes: &bytes,
                    })?;
                }
            }
        }
        if let Some(start) = start {
            let nanoseconds = start.elapsed().as_nanos() as u64;
            let bytes = args.iter().filter_map(|a| self.arg_bytes(a)).sum::<usize>();
            let flops = self.size(flops).unwrap_or(0).max(0) as u64;
            self.report(&decl.name, nanoseconds, flops, bytes as u64);
        }
        Ok(())
    }

    /// Runs a kernel that is code of this processor.
    fn launch_here(&self, code_offset: u64, blocks: u64, grain: u64) {
        let code = self.model.code.as_slice();
        // SAFETY: the offset is inside the code, where the compiler put a function of this type.
        let entry = unsafe {
            std::mem::transmute::<*const u8, KernelFn>(code.as_ptr().add(code_offset as usize))
        };
        let launch = Launch {
            entry,
            imports: self.imports,
            args: self.frame.args.as_ptr(),
            scratch: self.frame.scratch.address(),
            stride: self.frame.scratch_stride,
        };
        let body = |thread: usize, begin: u64, end: u64| launch.blocks(thread, begin, end);
        self.model.pool.run(blocks, grain, &body);
    }

    fn report(&mut self, name: &str, nanoseconds: u64, flops: u64, bytes: u64) {
        if let Some(timing) = &mut self.timing {
            timing(KernelTiming {
                name,
                nanoseconds,
                flops,
                bytes,
            });
        }
    }

    /// Bytes of an argument that is a buffer.
    fn arg_bytes(&self, arg: &Arg) -> Option<usize> {
        match arg {
            Arg::Buffer(v) => match self.operand(*v).ok()? {
                Operand::Tensor(v) => Some(v.bytes().len()),
                _ => None,
            },
            Arg::Size(_) => None,
        }
    }

    fn call(&mut self, step: &'a Op) -> Result<(), RunError> {
        let Op::Call {
            function,
            op,
            attrs,
            operands,
            results,
        } = step
        else {
            return Ok(());
        };
        let start = self.timing.is_some().then(Instant::now);
        let operands = operands
            .iter()
            .map(|o| o.map(|v| self.operand(v)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let lookup = |v: ValueIndex| self.operand(v);
        let call = Call {
            op,
            attrs,
            operands,
            results: results.len(),
            constant: &lookup,
        };
        let values = function(&call).map_err(|e| match e {
            RunError::Input(m) => RunError::step(op, m),
            other => other,
        })?;
        drop(call);
        if values.len() < results.len() {
            return Err(RunError::step(
                op,
                format!("gives {} values, {} are used", values.len(), results.len()),
            ));
        }
        for (&to, value) in results.iter().zip(values) {
            self.check_result(op, to, &value)?;
            self.store(to, value)?;
        }
        if let Some(start) = start {
            self.report(op, start.elapsed().as_nanos() as u64, 0, 0);
        }
        Ok(())
    }

    /// A result must be what the program says, as far as that is known: kernels rely on it.
    fn check_result(&self, op: &str, to: ValueIndex, value: &Value) -> Result<(), RunError> {
        let ty = &self.decl(to).ty;
        let operand = value.operand();
        let shape_fits = match (ty, &operand) {
            (
                ValueType::Tensor {
                    dims: Some(dims), ..
                },
                Operand::Tensor(v),
            ) => {
                dims.len() == v.rank()
                    && dims.iter().zip(v.dims()).all(|(size, &len)| {
                        !matches!(size, Size::Const(_))
                            || sizes::eval(size, &[]) == Some(len as i64)
                    })
            }
            _ => true,
        };
        if shape_fits && operand.has_kind(ty) {
            return Ok(());
        }
        let expected = super::ports::type_text(ty, &self.model.plan.symbols);
        Err(RunError::step(
            op,
            format!(
                "gives {}, the program expects {expected}",
                operand.describe()
            ),
        ))
    }

    /// Memory for a value that a kernel is about to write.
    fn allocate(&mut self, value: ValueIndex) -> Result<(), RunError> {
        let decl = self.decl(value);
        if self.output_buffer(&decl.place).is_some() {
            return Ok(());
        }
        let ValueType::Tensor { elem, .. } = decl.ty else {
            return Err(RunError::program(
                "a kernel writes a value that is no tensor",
            ));
        };
        self.frame.clear(decl.root);
        let mut dims = std::mem::take(&mut self.frame.dims);
        self.dims_into(decl, &mut dims)?;
        let tensor = self.frame.allocate(elem, &dims)?;
        self.frame.dims = dims;
        self.frame.slots[decl.root] = Some(tensor.into());
        Ok(())
    }

    fn output_buffer(&self, place: &Place) -> Option<OutputBuffer> {
        match place {
            Place::Output(n) => self.outputs[*n as usize],
            _ => None,
        }
    }

    /// Address of a tensor's first element.
    fn address(&self, value: ValueIndex) -> Result<*mut u8, RunError> {
        let decl = self.decl(value);
        let missing = || RunError::program(format!("value {value} is used before it is defined"));
        match &decl.place {
            Place::Arena { offset } => {
                if decl.dims.is_none() {
                    self.check_room(decl, self.model.plan.arena_bytes - *offset as usize)?;
                }
                // SAFETY: the plan has checked that the offset is inside the arena.
                Ok(unsafe { self.frame.arena.address().add(*offset as usize) })
            }
            Place::Prepared { offset } => {
                if decl.dims.is_none() {
                    self.check_room(decl, self.model.plan.prepared_bytes - *offset as usize)?;
                }
                // SAFETY: the plan has checked that the offset is inside this memory. Only the preparation, which runs
                // before anyone else has the model, writes to it.
                Ok(unsafe { self.model.prepared.address().add(*offset as usize) })
            }
            Place::Weights { offset, .. } => {
                let weights = self.model.weights.as_slice();
                // SAFETY: the plan has checked that the offset is inside the weights. Kernels only read it.
                Ok(unsafe { weights.as_ptr().add(*offset as usize) }.cast_mut())
            }
            Place::State(n) => {
                let buffer = self.states.get(*n as usize).ok_or_else(missing)?;
                self.check_room(decl, buffer.bytes)?;
                Ok(buffer.address)
            }
            Place::Input(n) => self.inputs[*n as usize]
                .address()
                .map(|p| p.cast_mut())
                .ok_or_else(missing),
            place => {
                if let Some(buffer) = self.output_buffer(place) {
                    return Ok(buffer.address);
                }
                match &self.frame.slots[decl.root] {
                    Some(Value::Tensor(t)) => {
                        self.check_room(decl, t.bytes().len())?;
                        t.address().ok_or_else(missing)
                    }
                    _ => Err(missing()),
                }
            }
        }
    }

    /// Kernels rely on declared sizes: a value whose size was not known when the program was checked must
    /// have room for them. What depends on a symbol without a value no kernel can use.
    fn check_room(&self, decl: &Decl, room: usize) -> Result<(), RunError> {
        let ValueType::Tensor {
            elem,
            dims: Some(dims),
        } = &decl.ty
        else {
            return Ok(());
        };
        let mut bytes = elem.size_bytes() as u64;
        for size in dims {
            let Some(len) = sizes::eval(size, &self.frame.symbols) else {
                return Ok(());
            };
            let product = u64::try_from(len).ok().and_then(|n| bytes.checked_mul(n));
            bytes = product.ok_or_else(|| RunError::program("a value is too large"))?;
        }
        if bytes > room as u64 {
            let text = super::ports::type_text(&decl.ty, &self.model.plan.symbols);
            return Err(RunError::program(format!(
                "a value of type {text} needs {bytes} bytes and has {room}"
            )));
        }
        Ok(())
    }

    /// The value, borrowed.
    pub(super) fn operand(&self, value: ValueIndex) -> Result<Operand<'_>, RunError> {
        let decl = self.decl(value);
        if let Place::Strings(strings) = &decl.place {
            let dims = self.dims(decl).unwrap_or_else(|_| vec![strings.len()]);
            return View::of_strings(dims, strings).map(Operand::Tensor);
        }
        let (whole, room) = match &decl.place {
            Place::Input(n) => (Some(&self.inputs[*n as usize].operand), None),
            Place::Arena { offset } => (None, Some(self.model.plan.arena_bytes - *offset as usize)),
            Place::Prepared { offset } => (
                None,
                Some(self.model.plan.prepared_bytes - *offset as usize),
            ),
            Place::Weights { bytes, .. } => (None, Some(*bytes as usize)),
            Place::State(n) => (None, self.states.get(*n as usize).map(|s| s.bytes)),
            place => match self.output_buffer(place) {
                Some(buffer) => (None, Some(buffer.bytes)),
                None => return self.slot_operand(value),
            },
        };
        if let Some(whole) = whole {
            return reshaped(whole.clone(), decl, || self.dims(decl));
        }
        let ValueType::Tensor { elem, .. } = decl.ty else {
            return Err(RunError::program("a fixed place holds tensors only"));
        };
        let dims = self.dims(decl)?;
        if byte_len(elem, &dims)? > room.unwrap_or(0) {
            return Err(RunError::program(format!(
                "value {value} does not fit its place"
            )));
        }
        let address = self.address(value)?;
        // SAFETY: the bytes lie inside the place, and no kernel runs while the view is used.
        unsafe { view_at(elem, dims, address) }.map(Operand::Tensor)
    }

    fn slot_operand(&self, value: ValueIndex) -> Result<Operand<'_>, RunError> {
        let decl = self.decl(value);
        match &self.frame.slots[decl.root] {
            // The root has whatever shape the value came with: its symbols may still have the values of
            // the last iteration. An alias has its own shape.
            Some(v) if decl.root == value as usize => Ok(v.operand()),
            Some(v) => reshaped(v.operand(), decl, || self.dims(decl)),
            None => Err(RunError::program(format!(
                "value {value} is used before it is defined"
            ))),
        }
    }

    /// Gives a value its content, wherever it lives.
    pub(super) fn store(&mut self, to: ValueIndex, value: Value) -> Result<(), RunError> {
        let decl = self.decl(to);
        let fixed = match &decl.place {
            Place::Arena { .. } | Place::Prepared { .. } => true,
            Place::Output(_) => self.output_buffer(&decl.place).is_some(),
            Place::Heap => false,
            _ => return Err(RunError::program(format!("value {to} cannot be written"))),
        };
        if !fixed {
            self.frame.clear(decl.root);
            self.frame.slots[decl.root] = Some(value);
            return Ok(());
        }
        let elem_differs = !value.operand().has_kind(&decl.ty);
        let dims = self.dims(decl)?;
        match value {
            Value::Tensor(t) if t.dims() == dims && !elem_differs => {
                let address = self.address(to)?;
                // SAFETY: the place has room for the value's type, which this tensor has.
                unsafe {
                    std::ptr::copy_nonoverlapping(t.bytes().as_ptr(), address, t.bytes().len())
                };
                Ok(())
            }
            other => Err(RunError::program(format!(
                "value {to} is {}, given is {}",
                super::ports::type_text(&decl.ty, &self.model.plan.symbols),
                other.describe()
            ))),
        }
    }

    /// The values, owned: they survive what later steps write.
    pub(super) fn take(&self, values: &[ValueIndex]) -> Result<Vec<Value>, RunError> {
        values
            .iter()
            .map(|&v| self.operand(v)?.to_value())
            .collect()
    }

    /// One element of an integer or bool tensor.
    pub(super) fn integer(&self, value: ValueIndex, element: usize) -> Result<i64, RunError> {
        match self.operand(value)? {
            Operand::Tensor(v) if v.elem().is_int() || v.elem() == ElemType::Bool => {
                if element >= v.len() {
                    return Err(RunError::program(format!(
                        "{:?} has no element {element}",
                        v.dims()
                    )));
                }
                Ok(crate::ops::number::int(&v, element) as i64)
            }
            other => Err(RunError::program(format!(
                "an integer is needed, found {}",
                other.describe()
            ))),
        }
    }

    /// Hands the outputs over.
    pub fn finish(mut self, buffers: &mut [Option<&mut [u8]>]) -> Result<Vec<Output>, RunError> {
        let mut outputs = Vec::with_capacity(self.model.plan.outputs.len());
        for (n, port) in self.model.plan.outputs.iter().enumerate() {
            let operand = self.operand(port.value)?;
            let (elem, dims) = match &operand {
                Operand::Tensor(v) => (Some(v.elem()), v.dims().to_vec()),
                _ => (None, Vec::new()),
            };
            let in_place = matches!(self.decl(port.value).place, Place::Output(m) if m as usize == n)
                && self.outputs[n].is_some();
            let buffer = buffers.get_mut(n).and_then(|b| b.as_deref_mut());
            let value = match (buffer, &operand) {
                (Some(_), _) if in_place => None,
                (Some(buffer), Operand::Tensor(v)) if v.elem() != ElemType::String => {
                    if buffer.len() != v.bytes().len() {
                        return Err(RunError::Input(format!(
                            "output `{}` is {} and needs {} bytes, the buffer has {}",
                            port.name,
                            operand.describe(),
                            v.bytes().len(),
                            buffer.len()
                        )));
                    }
                    buffer.copy_from_slice(v.bytes());
                    None
                }
                (Some(_), _) => {
                    return Err(RunError::Input(format!(
                        "output `{}` is {}, which no buffer can hold",
                        port.name,
                        operand.describe()
                    )));
                }
                (None, _) => Some(operand.to_value()?),
            };
            outputs.push(Output { elem, dims, value });
        }
        for input in std::mem::take(&mut self.inputs) {
            if let Some(copy) = input.copy {
                self.frame.keep(copy);
            }
        }
        Ok(outputs)
    }
}

fn not_a_tensor(found: &Operand) -> RunError {
    RunError::program(format!("a tensor is needed, found {}", found.describe()))
}

/// A tensor under the shape of an alias, where the element type and number of elements allow it.
fn reshaped<'v>(
    operand: Operand<'v>,
    decl: &Decl,
    dims: impl FnOnce() -> Result<Vec<usize>, RunError>,
) -> Result<Operand<'v>, RunError> {
    match operand {
        Operand::Tensor(v) => match dims() {
            Ok(dims) if dims != v.dims() => {
                if !Operand::Tensor(v.clone()).has_kind(&decl.ty) {
                    return Err(RunError::program("an alias has another element type"));
                }
                v.with_dims(dims).map(Operand::Tensor)
            }
            _ => Ok(Operand::Tensor(v)),
        },
        other => Ok(other),
    }
}
