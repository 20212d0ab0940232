//! How well a language model predicts text, measured on its compiled program: perplexity, and how far its predictions
//! are from another model's.
//!
//! A text is cut into windows of `seq` tokens that do not overlap. The model sees a window's tokens, and predicts for each
//! the one that follows it; what is left at the end and fills no window is not used.

mod budget;
pub mod inputs;
pub mod score;
pub mod tokens;

use crate::driver::{self, CompileOptions};
use crate::error::Error;
pub use budget::Limit;
use budget::Stepwise;
use inputs::{SEQ, TokenInputs};
use lapidary_ir::{ElemType, Module, Type};
use lapidary_runtime::{Model, ModelOptions, Value};
use score::{Rows, Score, compare, score};
use std::path::Path;

/// A compiled language model, for windows of one length.
pub struct LanguageModel {
    file: String,
    kind: Kind,
    threads: usize,
    /// Length of a window.
    pub seq: usize,
    /// Numbers of a prediction, where they are known.
    pub vocabulary: Option<usize>,
}

/// How it reads a window.
enum Kind {
    /// At once.
    Whole {
        model: Model,
        inputs: TokenInputs,
        /// Which output the predictions are.
        logits: usize,
    },
    /// In pieces.
    Stepwise(Stepwise),
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
    /// Compiles the model at `path` for windows of `seq` tokens; without it, of as many as the model is made for. With a limit,
    /// it is one that writes text with such caches.
    pub fn load(
        path: &Path,
        options: &CompileOptions,
        threads: usize,
        seq: Option<usize>,
        limit: Option<Limit>,
    ) -> Result<LanguageModel, Error> {
        let file = path.display().to_string();
        let loading = ModelOptions {
            threads,
            ..ModelOptions::default()
        };
        if let Some(limit) = limit {
            let seq = seq.unwrap_or(SEQ);
            let model = Stepwise::load(path, options, loading, seq, limit)?;
            return Ok(LanguageModel {
                file,
                threads,
                seq,
                vocabulary: Some(model.vocabulary),
                kind: Kind::Stepwise(model),
            });
        }
        let module = driver::import(path, options)?;
        let logits = logits_output(&module)
            .ok_or_else(|| unfit(&file, "no output predicts tokens".to_owned()))?;
        let inputs = TokenInputs::of(&module, &file, seq)?;
        let out = module.top().outputs[logits];
        let vocabulary = |ty: &Type| ty.shape()?.last()?.as_const().map(|n| n as usize);
        let vocabulary = vocabulary(&module.value(out).ty);
        let compiled = driver::compile(module, &file, options, Some(&inputs.given()))?;
        let model = compiled.load(loading)?;
        Ok(LanguageModel {
            file,
            seq: inputs.seq,
            kind: Kind::Whole {
                model,
                inputs,
                logits,
            },
            threads,
            vocabulary,
        })
    }

    fn compiled(&self) -> &Model {
        match &self.kind {
            Kind::Whole { model, .. } => model,
            Kind::Stepwise(model) => model.compiled(),
        }
    }

    /// Uses as many parts of the weights as make up so many bytes.
    ///
    /// # Errors
    /// It was not compiled to use less than all.
    pub fn use_weights(&self, bytes: u64) -> Result<(), Error> {
        let used = self.compiled().use_weights(bytes);
        used.map_err(|error| Error::Run {
            file: self.file.clone(),
            error,
        })
    }

    /// Bytes of weights, as [`Model::weight_bytes`].
    pub fn weight_bytes(&self) -> Option<[u64; 3]> {
        self.compiled().weight_bytes()
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
        match &mut self.kind {
            Kind::Whole {
                model,
                inputs,
                logits,
            } => {
                inputs.show(window).map_err(failed)?;
                let mut outputs = model.run(&inputs.values).map_err(failed)?;
                Ok(outputs.swap_remove(*logits))
            }
            Kind::Stepwise(model) => model.logits(&self.file, window),
        }
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
