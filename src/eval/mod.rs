//! How well a language model predicts text, measured on its compiled program: perplexity, and how far its predictions
//! are from another model's.
//!
//! A text is cut into windows of `seq` tokens that do not overlap. The model sees a window's tokens, and predicts for each
//! the one that follows it; what is left at the end and fills no window is not used.

pub mod score;
pub mod tokens;

use crate::driver::{self, CompileOptions};
use crate::error::Error;
use crate::specialize::Given;
use lapidary_ir::{Dim, ElemType, Module, Type};
use lapidary_runtime::{Model, ModelOptions, RunError, Tensor, Value};
use score::{Rows, Score, compare, score};
use std::path::Path;

/// Tokens of a window where nothing else is said.
pub const SEQ: usize = 256;

/// A compiled language model, for windows of one length.
pub struct LanguageModel {
    file: String,
    model: Model,
    /// Inputs; that of the tokens is replaced for each window.
    inputs: Vec<Value>,
    tokens: usize,
    wide_tokens: bool,
    logits: usize,
    threads: usize,
    /// Length of a window.
    pub seq: usize,
    /// Numbers of a prediction, where they are known.
    pub vocabulary: Option<usize>,
}

/// A model that is not one to evaluate.
fn unfit(file: &str, reason: String) -> Error {
    Error::Usage {
        message: format!("{file}: {reason}"),
        help: "a language model takes `input_ids` [batch, seq] and gives `logits` f32[batch, seq, vocabulary]; \
               `lapidary inspect` shows what this one takes and gives"
            .to_owned(),
    }
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
fn tokens_input(module: &Module) -> Option<usize> {
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

/// The output with the predictions: `logits`, or the only one.
fn logits_output(module: &Module) -> Option<usize> {
    let outputs = &module.top().outputs;
    let named = module.output_names.iter().position(|n| n == "logits");
    let fits = |i: &usize| {
        let ty = &module.value(outputs[*i]).ty;
        ty.elem() == Some(ElemType::F32) && ty.shape().is_none_or(|s| s.len() == 3)
    };
    let only = outputs.len() == 1
        && module
            .output_names
            .first()
            .is_none_or(|n| n != "last_hidden_state");
    named.or(only.then_some(0)).filter(fits)
}

impl LanguageModel {
    /// Compiles the model at `path` for windows of `seq` tokens; without it, of as many as the model is made for.
    pub fn load(
        path: &Path,
        options: &CompileOptions,
        threads: usize,
        seq: Option<usize>,
    ) -> Result<LanguageModel, Error> {
        let file = path.display().to_string();
        let module = driver::import(path, options)?;
        let tokens = tokens_input(&module)
            .ok_or_else(|| unfit(&file, "no input takes tokens".to_owned()))?;
        let logits = logits_output(&module)
            .ok_or_else(|| unfit(&file, "no output predicts tokens".to_owned()))?;
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
            return Err(unfit(&file, "the batch is fixed, and is not 1".to_owned()));
        }
        let seq = match (fixed(1), seq) {
            (Some(n), Some(wanted)) if n != wanted => {
                return Err(unfit(
                    &file,
                    format!("is made for windows of {n} tokens, not {wanted}"),
                ));
            }
            (fixed, wanted) => wanted.or(fixed).unwrap_or(SEQ),
        };
        let failed = |error| Error::Run {
            file: file.clone(),
            error,
        };
        let mut inputs: Vec<Value> = vec![];
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
                .ok_or_else(|| unfit(&file, format!("the input `{}` is not known", info.name)))?;
            inputs.push(value.map_err(&failed)?.into());
        }
        // Whatever a shape depends on is the same for all windows, but for the tokens.
        let mut given = Given::from_runtime(&inputs);
        given.small[tokens] = None;
        let wide_tokens = inputs[tokens]
            .as_tensor()
            .is_some_and(|t| t.elem() == ElemType::I64);
        let out = module.top().outputs[logits];
        let vocabulary = |ty: &Type| ty.shape()?.last()?.as_const().map(|n| n as usize);
        let vocabulary = vocabulary(&module.value(out).ty);
        let compiled = driver::compile(module, &file, options, Some(&given))?;
        let model = compiled.load(ModelOptions {
            threads,
            ..ModelOptions::default()
        })?;
        Ok(LanguageModel {
            file,
            model,
            inputs,
            tokens,
            wide_tokens,
            logits,
            threads,
            seq,
            vocabulary,
        })
    }

    /// Predictions for each token of a window.
    fn logits(&mut self, window: &[u32]) -> Result<Value, Error> {
        let failed = |error| Error::Run {
            file: self.file.clone(),
            error,
        };
        if let Some(limit) = self.vocabulary
            && let Some(token) = window.iter().find(|&&t| t as usize >= limit)
        {
            return Err(Error::Usage {
                message: format!("the text has token {token}, but {} knows {limit} tokens", self.file),
                help: "were the tokens made by this model's tokenizer, and are their numbers of the right width?".to_owned(),
            });
        }
        let ids = window.iter().map(|&t| i64::from(t));
        let bytes: Vec<u8> = match self.wide_tokens {
            true => ids.flat_map(i64::to_le_bytes).collect(),
            false => ids.flat_map(|t| (t as i32).to_le_bytes()).collect(),
        };
        let elem = if self.wide_tokens {
            ElemType::I64
        } else {
            ElemType::I32
        };
        let tensor = lapidary_runtime::bytes::Bytes::copy_of(&bytes)
            .and_then(|b| Tensor::from_bytes(elem, vec![1, window.len()], b))
            .map_err(failed)?;
        self.inputs[self.tokens] = tensor.into();
        let mut outputs = self.model.run(&self.inputs).map_err(failed)?;
        Ok(outputs.swap_remove(self.logits))
    }

    fn rows<'v>(&self, logits: &'v Value) -> Result<Rows<'v>, Error> {
        let rows = logits.as_tensor().and_then(|t| Rows::of(t, self.seq));
        rows.ok_or_else(|| unfit(&self.file, format!("predictions are {}", logits.describe())))
    }
}

/// What was measured of one model, and of its distance from another.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Windows evaluated.
    pub windows: usize,
    /// Of the model.
    pub score: Score,
    /// Of the other model, if there is one.
    pub other: Option<Score>,
}

/// Evaluates `model` on at most `limit` windows of `tokens`, beside `other`; `tell` hears of each window.
pub fn evaluate(
    model: &mut LanguageModel,
    mut other: Option<&mut LanguageModel>,
    tokens: &[u32],
    limit: usize,
    mut tell: impl FnMut(&Evaluation),
) -> Result<Evaluation, Error> {
    let (seq, threads) = (model.seq, model.threads);
    let mut all = Evaluation::default();
    for window in windows(tokens, seq).take(limit) {
        let (seen, next) = (&window[..seq], &window[1..]);
        let logits = model.logits(seen)?;
        let rows = model.rows(&logits)?;
        match &mut other {
            None => all.score.add(&score(rows, next, threads)),
            Some(other) => {
                let theirs = other.logits(seen)?;
                let from = other.rows(&theirs)?;
                if from.width() != rows.width() {
                    let reason = format!(
                        "predicts {} tokens, the other model {}",
                        rows.width(),
                        from.width()
                    );
                    return Err(unfit(&model.file, reason));
                }
                all.score.add(&compare(rows, from, next, threads));
                all.other
                    .get_or_insert_default()
                    .add(&score(from, next, threads));
            }
        }
        all.windows += 1;
        tell(&all);
    }
    Ok(all)
}

/// Windows of `seq` tokens, each with the one after it.
pub fn windows(tokens: &[u32], seq: usize) -> impl ExactSizeIterator<Item = &[u32]> {
    let count = tokens.len().saturating_sub(1) / seq.max(1);
    (0..count).map(move |w| &tokens[w * seq..(w + 1) * seq + 1])
}
