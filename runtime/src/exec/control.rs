//! Loops: ONNX's `Loop`, with carried values and stacked scan outputs.

use super::run::Run;
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::plan::Loop;
use crate::sizes;
use crate::value::{Tensor, Value, count};
use lapidary_abi::ElemType;
use lapidary_abi::program::ValueType;

impl<'a> Run<'a, '_> {
    pub(super) fn run_loop(&mut self, l: &'a Loop) -> Result<(), RunError> {
        let trips = l
            .trip_count
            .map(|v| self.integer(v, 0))
            .transpose()?
            .unwrap_or(i64::MAX);
        let mut go_on = l
            .condition
            .map(|v| self.integer(v, 0))
            .transpose()?
            .unwrap_or(1)
            != 0;
        let mut carried = self.take(&l.carried)?;
        let mut scans: Vec<Vec<Value>> = vec![Vec::new(); l.scan_types.len()];
        let mut iteration = 0;
        while go_on && iteration < trips {
            self.store(l.body.params[0], self.iteration_number(l, iteration)?)?;
            self.store(l.body.params[1], Tensor::from_bool(go_on)?.into())?;
            for (&param, value) in l.body.params[2..].iter().zip(carried.drain(..)) {
                self.store(param, value)?;
            }
            self.body(&l.body)?;
            go_on = self.integer(l.body.results[0], 0)? != 0;
            let mut results = self.take(&l.body.results[1..])?;
            for (scan, value) in scans.iter_mut().zip(results.split_off(l.carried.len())) {
                scan.push(value);
            }
            carried = results;
            iteration += 1;
        }
        for (scan, ty) in scans.iter().zip(&l.scan_types) {
            carried.push(match scan.is_empty() {
                true => self.empty_scan(ty)?,
                false => stack(scan)?.into(),
            });
        }
        for (&to, value) in l.results.iter().zip(carried) {
            self.store(to, value)?;
        }
        Ok(())
    }

    /// The iteration number, as a scalar or as a tensor of one element: models declare both.
    fn iteration_number(&self, l: &Loop, iteration: i64) -> Result<Value, RunError> {
        let decl = &self.model.plan.values[l.body.params[0] as usize];
        let dims = match &decl.ty {
            ValueType::Tensor { dims: Some(d), .. } => vec![1; d.len()],
            _ => Vec::new(),
        };
        Ok(Tensor::from_i64(dims, &[iteration])?.into())
    }

    /// A scan output without iterations: its first axis, and every axis not known, has length 0.
    fn empty_scan(&self, ty: &ValueType) -> Result<Value, RunError> {
        let ValueType::Tensor { elem, dims } = ty else {
            return Err(RunError::program("a scan output is no tensor"));
        };
        let mut shape: Vec<usize> = dims
            .iter()
            .flatten()
            .map(|d| {
                sizes::eval(d, &self.frame.symbols)
                    .and_then(|v| v.try_into().ok())
                    .unwrap_or(0)
            })
            .collect();
        match shape.first_mut() {
            Some(first) => *first = 0,
            None => shape.push(0),
        }
        Ok(Tensor::zeros(*elem, shape)?.into())
    }
}

/// Tensors of one type and shape, stacked along a new first axis.
fn stack(values: &[Value]) -> Result<Tensor, RunError> {
    let mut tensors = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::Tensor(t) => tensors.push(t),
            other => {
                return Err(RunError::Input(format!(
                    "cannot stack {}",
                    other.describe()
                )));
            }
        }
    }
    let first = tensors[0];
    if let Some(odd) = tensors
        .iter()
        .find(|t| t.elem() != first.elem() || t.dims() != first.dims())
    {
        return Err(RunError::Input(format!(
            "cannot stack {}{:?} on {}{:?}",
            odd.elem(),
            odd.dims(),
            first.elem(),
            first.dims()
        )));
    }
    let mut dims = vec![tensors.len()];
    dims.extend(first.dims());
    if first.elem() == ElemType::String {
        let strings = tensors
            .iter()
            .flat_map(|t| t.strings().iter().cloned())
            .collect();
        return Tensor::from_strings(dims, strings);
    }
    let mut bytes = Bytes::zeroed(count(&dims)? * first.elem().size_bytes())?;
    let piece = first.bytes().len();
    for (i, t) in tensors.iter().enumerate() {
        bytes.as_mut_slice()[i * piece..(i + 1) * piece].copy_from_slice(t.bytes());
    }
    Tensor::from_bytes(first.elem(), dims, bytes)
}
