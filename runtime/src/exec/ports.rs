//! What the caller gives: checks of inputs, symbols bound from them, buffers for outputs.

use crate::bytes::ALIGN;
use crate::error::RunError;
use crate::frame::Frame;
use crate::plan::{Plan, byte_len};
use crate::sizes::{self, UNBOUND};
use crate::value::{Operand, Tensor, View};
use lapidary_abi::program::{Port, ValueType};
use lapidary_abi::{ElemType, Size};

/// An input, with an aligned copy where the caller's memory is not aligned.
pub struct Input<'a> {
    pub operand: Operand<'a>,
    /// Kept for the next run afterwards.
    pub copy: Option<Tensor>,
}

impl<'a> Input<'a> {
    /// Address of a tensor's first element.
    pub fn address(&self) -> Option<*const u8> {
        match (&self.copy, &self.operand) {
            (Some(copy), _) => copy.address().map(|p| p.cast_const()),
            (None, Operand::Tensor(v)) => Some(v.bytes().as_ptr()),
            _ => None,
        }
    }
}

/// The caller's memory for an output.
#[derive(Clone, Copy)]
pub struct OutputBuffer {
    pub address: *mut u8,
    pub bytes: usize,
}

/// Checks number, kinds, element types and shapes of the inputs, and gives symbols their values.
pub fn bind_inputs<'a>(
    plan: &Plan,
    frame: &mut Frame,
    inputs: &[Operand<'a>],
) -> Result<Vec<Input<'a>>, RunError> {
    if inputs.len() != plan.inputs.len() {
        return Err(RunError::Input(format!(
            "the model takes {} inputs, {} are given",
            plan.inputs.len(),
            inputs.len()
        )));
    }
    for (port, input) in plan.inputs.iter().zip(inputs) {
        check_kind(plan, port, input)?;
        bind_symbols(port, input, &mut frame.symbols);
    }
    for (port, input) in plan.inputs.iter().zip(inputs) {
        check_dims(plan, port, input, &frame.symbols)?;
    }
    inputs
        .iter()
        .map(|operand| {
            let copy = match operand {
                Operand::Tensor(v)
                    if v.elem() != ElemType::String
                        && !(v.bytes().as_ptr() as usize).is_multiple_of(ALIGN) =>
                {
                    let mut copy = frame.allocate(v.elem(), v.dims())?;
                    if let Some(bytes) = copy.bytes_mut() {
                        bytes.copy_from_slice(v.bytes());
                    }
                    Some(copy)
                }
                _ => None,
            };
            Ok(Input {
                operand: operand.clone(),
                copy,
            })
        })
        .collect()
}

fn check_kind(plan: &Plan, port: &Port, input: &Operand) -> Result<(), RunError> {
    let rank_differs = match (&port.ty, input) {
        (ValueType::Tensor { dims: Some(d), .. }, Operand::Tensor(v)) => d.len() != v.rank(),
        _ => false,
    };
    if rank_differs || !input.has_kind(&port.ty) {
        return Err(mismatch(plan, port, input, ""));
    }
    Ok(())
}

fn bind_symbols(port: &Port, input: &Operand, symbols: &mut [i64]) {
    if let (
        ValueType::Tensor {
            dims: Some(dims), ..
        },
        Operand::Tensor(v),
    ) = (&port.ty, input)
    {
        for (size, &len) in dims.iter().zip(v.dims()) {
            if let Size::Sym(s) = size
                && let Some(symbol) = symbols.get_mut(*s as usize)
                && *symbol == UNBOUND
            {
                *symbol = len as i64;
            }
        }
    }
}

fn check_dims(plan: &Plan, port: &Port, input: &Operand, symbols: &[i64]) -> Result<(), RunError> {
    let (
        ValueType::Tensor {
            dims: Some(dims), ..
        },
        Operand::Tensor(v),
    ) = (&port.ty, input)
    else {
        return Ok(());
    };
    for (axis, (size, &len)) in dims.iter().zip(v.dims()).enumerate() {
        match sizes::eval(size, symbols) {
            Some(expected) if expected != len as i64 => {
                let why = format!(": axis {axis} must be {expected}");
                return Err(mismatch(plan, port, input, &why));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mismatch(plan: &Plan, port: &Port, input: &Operand, why: &str) -> RunError {
    RunError::Input(format!(
        "input `{}` is {}, given is {}{why}",
        port.name,
        type_text(&port.ty, &plan.symbols),
        input.describe()
    ))
}

/// Text of a type for messages and help: `f32[batch, 10]`.
pub fn type_text(ty: &ValueType, symbols: &[String]) -> String {
    match ty {
        ValueType::Tensor {
            elem,
            dims: Some(dims),
        } => {
            let dims: Vec<String> = dims.iter().map(|d| sizes::text(d, symbols)).collect();
            format!("{elem}[{}]", dims.join(", "))
        }
        ValueType::Tensor { elem, dims: None } => format!("{elem}[...]"),
        ValueType::Sequence(of) => format!("sequence of {}", type_text(of, symbols)),
        ValueType::Optional(of) => format!("optional {}", type_text(of, symbols)),
    }
}

/// The buffers that kernels can write directly: aligned, and of a size that is known already.
pub fn bind_outputs(
    plan: &Plan,
    frame: &Frame,
    buffers: &mut [Option<&mut [u8]>],
) -> Vec<Option<OutputBuffer>> {
    let usable = |(n, port): (usize, &Port)| {
        let buffer = buffers.get_mut(n)?.as_deref_mut()?;
        let ValueType::Tensor {
            elem,
            dims: Some(dims),
        } = &port.ty
        else {
            return None;
        };
        let expected = byte_len(*elem, &sizes::dims(dims, &frame.symbols)?).ok()?;
        let fits = buffer.len() == expected && (buffer.as_ptr() as usize).is_multiple_of(ALIGN);
        fits.then_some(OutputBuffer {
            address: buffer.as_mut_ptr(),
            bytes: buffer.len(),
        })
    };
    plan.outputs.iter().enumerate().map(usable).collect()
}

/// A view of `bytes` from `address` on.
///
/// # Safety
/// The bytes are readable and not written while the view lives.
pub unsafe fn view_at<'a>(
    elem: lapidary_abi::ElemType,
    dims: Vec<usize>,
    address: *const u8,
) -> Result<View<'a>, RunError> {
    let len = byte_len(elem, &dims)?;
    // SAFETY: the caller promises it.
    View::new(elem, dims, unsafe {
        std::slice::from_raw_parts(address, len)
    })
}
