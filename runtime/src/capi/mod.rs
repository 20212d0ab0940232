//! The C interface of compiled libraries; `lapidary.h` is its contract.
//!
//! A library holds a [`LinkedImage`] and small functions `NAME_create`, `NAME_run`, … that call these ones. Errors
//! become status codes, with the text kept for [`lapidary_last_error`] in the thread. A panic, which would
//! be a defect of ours, does not cross the border: it becomes `LAPIDARY_INTERNAL`.

use crate::error::RunError;
use crate::exec::{Model, ModelOptions};
use crate::image::Image;
use crate::memory::{Code, Weights};
use crate::value::{Operand, View};
use lapidary_abi::ElemType;
use lapidary_abi::image::machine;
use lapidary_abi::program::{Port, Program, ValueType};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(test)]
mod tests;

/// Text of the header, included in every generated one.
pub const HEADER: &str = include_str!("lapidary.h");

/// Version of [`LinkedImage`].
pub const LINKED_VERSION: u32 = 1;

/// Most dimensions of a tensor that crosses the border.
pub const MAX_RANK: usize = 8;

const OK: i32 = 0;
const PROGRAM: i32 = 1;
const INPUT: i32 = 2;
const STEP: i32 = 3;
const MEMORY: i32 = 4;
const SYSTEM: i32 = 5;
const ARGUMENT: i32 = 6;
const TOO_SMALL: i32 = 7;
const INTERNAL: i32 = 8;

/// A compiled model that a linker has placed in memory; generated objects hold one.
#[repr(C)]
pub struct LinkedImage {
    /// [`LINKED_VERSION`].
    pub version: u32,
    /// [`machine`].
    pub machine: u32,
    /// Machine code, in executable memory.
    pub code: *const u8,
    /// Its length.
    pub code_bytes: u64,
    /// Weights, aligned to 64 bytes.
    pub weights: *const u8,
    /// Their length.
    pub weights_bytes: u64,
    /// The encoded program.
    pub program: *const u8,
    /// Its length.
    pub program_bytes: u64,
}

/// A loaded model.
pub struct Handle {
    model: Model,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
}

/// `lapidary_tensor`.
#[repr(C)]
pub struct CTensor {
    name: *const c_char,
    elem: i32,
    rank: i32,
    dims: [i64; MAX_RANK],
    data: *mut c_void,
    bytes: usize,
}

/// `lapidary_port`.
#[repr(C)]
pub struct CPort {
    name: *const c_char,
    elem: i32,
    rank: i32,
    dims: [i64; MAX_RANK],
}

struct Failure(i32, String);

impl From<RunError> for Failure {
    fn from(error: RunError) -> Failure {
        let status = match &error {
            RunError::Program(_) => PROGRAM,
            RunError::Input(_) => INPUT,
            RunError::Step { .. } => STEP,
            RunError::OutOfMemory { .. } => MEMORY,
            RunError::System(_) => SYSTEM,
        };
        Failure(status, error.to_string())
    }
}

fn argument(message: &str) -> Failure {
    Failure(ARGUMENT, message.to_owned())
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn guarded(f: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(_) => Failure(INTERNAL, "the runtime has a defect: it panicked".to_owned()),
    };
    let text = CString::new(failure.1.replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with(|last| *last.borrow_mut() = text);
    failure.0
}

/// Text on the last failure in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn lapidary_last_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}

/// Loads a linked model; `threads` 0 stands for one for each core.
///
/// # Safety
/// `image` points to a [`LinkedImage`] whose parts stay as they are for the life of the process; `out` may
/// be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_create(
    image: *const LinkedImage,
    threads: u32,
    out: *mut *mut Handle,
) -> i32 {
    guarded(|| {
        if image.is_null() || out.is_null() {
            return Err(argument("a pointer is null"));
        }
        // SAFETY: the caller's promise.
        let linked = unsafe { &*image };
        // SAFETY: as above.
        let handle = unsafe { load(linked, threads) }?;
        // SAFETY: as above.
        unsafe { *out = Box::into_raw(Box::new(handle)) };
        Ok(())
    })
}

/// # Safety
/// The parts of `linked` are there for the life of the process.
unsafe fn load(linked: &LinkedImage, threads: u32) -> Result<Handle, Failure> {
    if linked.version != LINKED_VERSION || linked.machine != machine() {
        return Err(Failure(
            PROGRAM,
            format!(
                "the model is of version {} for instruction set {}, the runtime of version {LINKED_VERSION} for {}",
                linked.version,
                linked.machine,
                machine()
            ),
        ));
    }
    let part = |data: *const u8, bytes: u64| -> &'static [u8] {
        match bytes {
            0 => &[],
            // SAFETY: the caller's promise.
            n => unsafe { std::slice::from_raw_parts(data, n as usize) },
        }
    };
    let program = part(linked.program, linked.program_bytes);
    let image = Image {
        program: Program::from_bytes(program).map_err(RunError::Program)?,
        code: Code::Linked(part(linked.code, linked.code_bytes)),
        weights: Weights::Linked(part(linked.weights, linked.weights_bytes)),
    };
    let model = image.load(ModelOptions {
        threads: threads as usize,
        // A library leaves its host's threads where they are.
        pin: false,
        ..ModelOptions::default()
    })?;
    let names = |ports: &[Port]| -> Vec<CString> {
        let name = |p: &Port| CString::new(p.name.replace('\0', " ")).unwrap_or_default();
        ports.iter().map(name).collect()
    };
    Ok(Handle {
        inputs: names(model.inputs()),
        outputs: names(model.outputs()),
        model,
    })
}

/// Frees a model.
///
/// # Safety
/// `model` is null or came from [`lapidary_create`], is not used any more, and nobody is running it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_destroy(model: *mut Handle) {
    if !model.is_null() {
        guarded(|| {
            // SAFETY: the caller's promise.
            drop(unsafe { Box::from_raw(model) });
            Ok(())
        });
    }
}

/// Runs a model.
///
/// # Safety
/// `model` is alive; `inputs` and `outputs` hold as many tensors as stated, their names are texts or null,
/// and their data has as many bytes as stated and no overlaps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_run(
    model: *const Handle,
    inputs: *const CTensor,
    n_inputs: usize,
    outputs: *mut CTensor,
    n_outputs: usize,
) -> i32 {
    guarded(|| {
        if model.is_null() || (inputs.is_null() && n_inputs > 0) {
            return Err(argument("a pointer is null"));
        }
        if outputs.is_null() && n_outputs > 0 {
            return Err(argument("a pointer is null"));
        }
        // SAFETY: the caller's promise.
        let handle = unsafe { &*model };
        let inputs = match n_inputs {
            0 => &[],
            // SAFETY: as above.
            n => unsafe { std::slice::from_raw_parts(inputs, n) },
        };
        let outputs = match n_outputs {
            0 => &mut [],
            // SAFETY: as above.
            n => unsafe { std::slice::from_raw_parts_mut(outputs, n) },
        };
        // SAFETY: as above.
        unsafe { run(handle, inputs, outputs) }
    })
}

/// # Safety
/// As [`lapidary_run`].
unsafe fn run(handle: &Handle, inputs: &[CTensor], outputs: &mut [CTensor]) -> Result<(), Failure> {
    let mut operands: Vec<Option<Operand>> = vec![None; handle.inputs.len()];
    for (i, tensor) in inputs.iter().enumerate() {
        // SAFETY: the caller's promise.
        let at = unsafe { position(tensor.name, i, &handle.inputs, "input") }?;
        // SAFETY: as above.
        let view = unsafe { view(tensor, &handle.model.inputs()[at]) }?;
        if operands[at].replace(Operand::Tensor(view)).is_some() {
            return Err(Failure(
                INPUT,
                format!("input {:?} is given twice", handle.inputs[at]),
            ));
        }
    }
    let operands = operands
        .into_iter()
        .zip(handle.model.inputs())
        .map(|(operand, port)| match (operand, &port.ty) {
            (Some(operand), _) => Ok(operand),
            (None, ValueType::Optional(_)) => Ok(Operand::Optional(None)),
            (None, _) => Err(Failure(
                INPUT,
                format!("input `{}` is not given", port.name),
            )),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut places = vec![None; outputs.len()];
    let mut buffers: Vec<Option<&mut [u8]>> = (0..handle.outputs.len()).map(|_| None).collect();
    for (i, tensor) in outputs.iter().enumerate() {
        // SAFETY: the caller's promise.
        let at = unsafe { position(tensor.name, i, &handle.outputs, "output") }?;
        if places.contains(&Some(at)) {
            return Err(Failure(
                INPUT,
                format!("output {:?} is given twice", handle.outputs[at]),
            ));
        }
        places[i] = Some(at);
        if let Some(bytes) = known_bytes(&handle.model.outputs()[at])
            && bytes <= tensor.bytes
            && !tensor.data.is_null()
        {
            // SAFETY: as above; the buffer has at least these bytes, and overlaps no other.
            buffers[at] =
                Some(unsafe { std::slice::from_raw_parts_mut(tensor.data.cast(), bytes) });
        }
    }
    let results = handle.model.run_with(&operands, &mut buffers, None)?;
    for (tensor, at) in outputs.iter_mut().zip(places) {
        let at = at.expect("the loop above filled every place");
        let name = &handle.model.outputs()[at].name;
        let (result, value) = (&results[at], results[at].value.as_ref());
        // SAFETY: as above.
        unsafe { give(tensor, name, result, value) }?;
    }
    Ok(())
}

/// Writes an output's description, and its elements if they are not there yet.
///
/// # Safety
/// As [`lapidary_run`].
unsafe fn give(
    tensor: &mut CTensor,
    name: &str,
    result: &crate::exec::Output,
    value: Option<&crate::Value>,
) -> Result<(), Failure> {
    let elem = result.elem.filter(|&e| e != ElemType::String);
    let (Some(elem), true) = (elem, result.dims.len() <= MAX_RANK) else {
        return Err(Failure(
            INPUT,
            format!(
                "output `{name}` cannot be given to C: only tensors of numbers of rank {MAX_RANK} or less can"
            ),
        ));
    };
    let capacity = tensor.bytes;
    tensor.elem = elem.onnx();
    tensor.rank = result.dims.len() as i32;
    for (to, &from) in tensor.dims.iter_mut().zip(&result.dims) {
        *to = from as i64;
    }
    tensor.bytes = result.dims.iter().product::<usize>() * elem.size_bytes();
    let Some(bytes) = value.and_then(crate::Value::as_tensor).map(|t| t.bytes()) else {
        return Ok(());
    };
    if tensor.bytes > capacity || (tensor.data.is_null() && tensor.bytes > 0) {
        return Err(Failure(
            TOO_SMALL,
            format!(
                "output `{name}` needs {} bytes, {capacity} are given",
                tensor.bytes
            ),
        ));
    }
    if !bytes.is_empty() {
        // SAFETY: the buffer is large enough, and the source is memory of the runtime.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), tensor.data.cast(), bytes.len()) };
    }
    Ok(())
}

/// Position of the port that a tensor is for.
///
/// # Safety
/// `name` is null or a text.
unsafe fn position(
    name: *const c_char,
    index: usize,
    names: &[CString],
    kind: &str,
) -> Result<usize, Failure> {
    let found = if name.is_null() {
        Some(index).filter(|&i| i < names.len())
    } else {
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(name) };
        names.iter().position(|n| n.as_c_str() == name)
    };
    found.ok_or_else(|| {
        let given = match name.is_null() {
            true => format!("number {index}"),
            // SAFETY: as above.
            false => unsafe { CStr::from_ptr(name) }
                .to_string_lossy()
                .into_owned(),
        };
        Failure(
            INPUT,
            format!("the model has no {kind} `{given}`; it has {names:?}"),
        )
    })
}

/// # Safety
/// The tensor's data has as many bytes as stated.
unsafe fn view<'a>(tensor: &'a CTensor, port: &Port) -> Result<View<'a>, Failure> {
    let bad = |what: String| Failure(INPUT, format!("input `{}`: {what}", port.name));
    let elem = ElemType::from_onnx(tensor.elem)
        .filter(|&e| e != ElemType::String)
        .ok_or_else(|| bad(format!("{} is no element type", tensor.elem)))?;
    let rank = usize::try_from(tensor.rank)
        .ok()
        .filter(|&r| r <= MAX_RANK)
        .ok_or_else(|| bad(format!("its rank is {}", tensor.rank)))?;
    let dims = tensor.dims[..rank]
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| bad(format!("a dimension is {d}"))))
        .collect::<Result<Vec<_>, _>>()?;
    if tensor.data.is_null() && tensor.bytes > 0 {
        return Err(argument("the data of an input is null"));
    }
    let bytes = match tensor.bytes {
        0 => &[],
        // SAFETY: the caller's promise.
        n => unsafe { std::slice::from_raw_parts(tensor.data.cast_const().cast(), n) },
    };
    View::new(elem, dims, bytes).map_err(|e| bad(e.to_string()))
}

/// Bytes of an output whose shape does not depend on the inputs.
fn known_bytes(port: &Port) -> Option<usize> {
    let ValueType::Tensor {
        elem,
        dims: Some(dims),
    } = &port.ty
    else {
        return None;
    };
    if *elem == ElemType::String || dims.len() > MAX_RANK {
        return None;
    }
    dims.iter().try_fold(elem.size_bytes(), |n, d| {
        n.checked_mul(usize::try_from(d.as_const()?).ok()?)
    })
}

/// Number of inputs; 0 for null.
///
/// # Safety
/// `model` is alive or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_input_count(model: *const Handle) -> usize {
    // SAFETY: the caller's promise.
    unsafe { model.as_ref() }.map_or(0, |m| m.inputs.len())
}

/// Number of outputs; 0 for null.
///
/// # Safety
/// `model` is alive or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_output_count(model: *const Handle) -> usize {
    // SAFETY: the caller's promise.
    unsafe { model.as_ref() }.map_or(0, |m| m.outputs.len())
}

/// Describes an input.
///
/// # Safety
/// `model` is alive; `port` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_input(
    model: *const Handle,
    index: usize,
    port: *mut CPort,
) -> i32 {
    // SAFETY: the caller's promise.
    let handle = unsafe { model.as_ref() };
    // SAFETY: as above.
    let port = unsafe { port.as_mut() };
    guarded(|| {
        describe(
            handle.map(|h| (&h.inputs[..], h.model.inputs())),
            index,
            port,
        )
    })
}

/// Describes an output.
///
/// # Safety
/// `model` is alive; `port` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_output(
    model: *const Handle,
    index: usize,
    port: *mut CPort,
) -> i32 {
    // SAFETY: the caller's promise.
    let handle = unsafe { model.as_ref() };
    // SAFETY: as above.
    let port = unsafe { port.as_mut() };
    guarded(|| {
        describe(
            handle.map(|h| (&h.outputs[..], h.model.outputs())),
            index,
            port,
        )
    })
}

fn describe(
    ports: Option<(&[CString], &[Port])>,
    index: usize,
    out: Option<&mut CPort>,
) -> Result<(), Failure> {
    let (Some((names, ports)), Some(out)) = (ports, out) else {
        return Err(argument("a pointer is null"));
    };
    let port = ports
        .get(index)
        .ok_or_else(|| argument("there is no port with this number"))?;
    *out = CPort {
        name: names[index].as_ptr(),
        elem: 0,
        rank: -1,
        dims: [-1; MAX_RANK],
    };
    if let ValueType::Tensor { elem, dims } = &port.ty {
        out.elem = elem.onnx();
        if let Some(dims) = dims.as_ref().filter(|d| d.len() <= MAX_RANK) {
            out.rank = dims.len() as i32;
            for (to, from) in out.dims.iter_mut().zip(dims) {
                *to = from.as_const().unwrap_or(-1);
            }
        }
    }
    Ok(())
}
