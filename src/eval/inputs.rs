//! The inputs of a language model: windows of tokens, and what goes with them.

use super::unfit;
use crate::error::Error;
use crate::specialize::Given;
use lapidary_ir::{Dim, ElemType, Module};
use lapidary_runtime::{RunError, Tensor, Value};

/// Tokens of a window where nothing else is said.
pub const SEQ: usize = 256;

/// What a model takes for a window of one length.
#[derive(Clone, Debug)]
pub struct TokenInputs {
    /// One for each input; that of the tokens is replaced for each window.
    pub values: Vec<Value>,
    /// Length of a window.
    pub seq: usize,
    tokens: usize,
    wide: bool,
}

/// What an input other than the tokens is, in every window.
fn constant(name: &str, elem: ElemType, dims: Vec<usize>) -> Option<Result<Tensor, RunError>> {
    let n: usize = dims.iter().product();
    let integers = |of: &dyn Fn(usize) -> i64| {
        let bytes: Vec<u8> = (0..n)
            .flat_map(|i| of(i).to_le_bytes()[..elem.size_bytes()].to_vec())
            .collect();
        lapidary_runtime::bytes::Bytes::copy_of(&bytes)
            .and_then(|b| Tensor::from_bytes(elem, dims.clone(), b))
    };
    let is_int = elem.int_range().is_some();
    match name {
        "attention_mask" if is_int => Some(integers(&|_| 1)),
        "token_type_ids" if is_int => Some(integers(&|_| 0)),
        "position_ids" if is_int => Some(integers(&|i| i as i64)),
        _ if name.starts_with("past_key_values") => Some(Tensor::zeros(elem, dims)),
        _ => None,
    }
}

/// The input with the tokens: `input_ids`, or the only one of integers.
pub fn tokens_input(module: &Module) -> Option<usize> {
    let inputs = &module.top().inputs;
    let named = inputs
        .iter()
        .position(|&v| module.value(v).name == "input_ids");
    let is_ids = |i: &usize| {
        let ty = &module.value(inputs[*i]).ty;
        matches!(ty.elem(), Some(ElemType::I64 | ElemType::I32))
            && ty.shape().is_none_or(|s| s.len() == 2)
    };
    named.or((inputs.len() == 1).then_some(0)).filter(is_ids)
}

impl TokenInputs {
    /// For windows of `seq` tokens; without it, of as many as the model is made for.
    pub fn of(module: &Module, file: &str, seq: Option<usize>) -> Result<TokenInputs, Error> {
        let tokens =
            tokens_input(module).ok_or_else(|| unfit(file, "no input takes tokens".to_owned()))?;
        let own = module
            .value(module.top().inputs[tokens])
            .ty
            .shape()
            .map(<[Dim]>::to_vec);
        let fixed = |axis: usize| {
            own.as_ref()
                .and_then(|s| s[axis].as_const())
                .map(|n| n as usize)
        };
        if fixed(0).is_some_and(|n| n != 1) {
            return Err(unfit(file, "the batch is fixed, and is not 1".to_owned()));
        }
        let seq = match (fixed(1), seq) {
            (Some(n), Some(wanted)) if n != wanted => {
                return Err(unfit(
                    file,
                    format!("is made for windows of {n} tokens, not {wanted}"),
                ));
            }
            (fixed, wanted) => wanted.or(fixed).unwrap_or(SEQ),
        };
        let failed = |error| Error::Run {
            file: file.to_owned(),
            error,
        };
        let mut values: Vec<Value> = vec![];
        for (i, &v) in module.top().inputs.iter().enumerate() {
            let info = module.value(v);
            let elem = info.ty.elem().unwrap_or(ElemType::I64);
            let shape = info.ty.shape().unwrap_or_default();
            let past = info.name.starts_with("past_key_values");
            let length = |(axis, d): (usize, &Dim)| match (d.as_const(), axis) {
                (Some(n), _) => n as usize,
                (None, 0) => 1,
                (None, _) => {
                    if past {
                        0
                    } else {
                        seq
                    }
                }
            };
            let dims: Vec<usize> = match i == tokens {
                true => vec![1, seq],
                false => shape.iter().enumerate().map(length).collect(),
            };
            let value = match i == tokens {
                true => Some(Tensor::zeros(elem, dims)),
                false => constant(&info.name, elem, dims),
            };
            let value = value
                .ok_or_else(|| unfit(file, format!("the input `{}` is not known", info.name)))?;
            values.push(value.map_err(&failed)?.into());
        }
        let wide = values[tokens]
            .as_tensor()
            .is_some_and(|t| t.elem() == ElemType::I64);
        Ok(TokenInputs {
            values,
            seq,
            tokens,
            wide,
        })
    }

    /// Whatever a shape depends on is the same for all windows, but for the tokens.
    pub fn given(&self) -> Given {
        let mut given = Given::from_runtime(&self.values);
        given.small[self.tokens] = None;
        given
    }

    /// Sees these tokens from now on.
    pub fn show(&mut self, window: &[u32]) -> Result<(), RunError> {
        let ids = window.iter().map(|&t| i64::from(t));
        let (elem, bytes): (ElemType, Vec<u8>) = match self.wide {
            true => (ElemType::I64, ids.flat_map(i64::to_le_bytes).collect()),
            false => (
                ElemType::I32,
                ids.flat_map(|t| (t as i32).to_le_bytes()).collect(),
            ),
        };
        let bytes = lapidary_runtime::bytes::Bytes::copy_of(&bytes)?;
        self.values[self.tokens] = Tensor::from_bytes(elem, vec![1, window.len()], bytes)?.into();
        Ok(())
    }
}
