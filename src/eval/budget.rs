//! Windows as a program reads them that writes text with caches within a budget: piece by piece, with evictions between.

use super::unfit;
use crate::driver::CompileOptions;
use crate::error::Error;
use crate::language;
use lapidary_ir::ElemType;
use lapidary_language::Session;
use lapidary_language::evict::{Budget, Eviction, Policy};
use lapidary_language::session::vocabulary_size;
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::{Model, ModelOptions, Tensor, Value};
use std::path::Path;

/// How caches are limited: the share is one of a window.
pub type Limit = (Policy, Budget);

/// A model that was compiled step by step.
pub struct Stepwise {
    model: Model,
    eviction: Eviction,
    /// Numbers of a prediction.
    pub vocabulary: usize,
}

impl Stepwise {
    /// The compiled model.
    pub fn compiled(&self) -> &Model {
        &self.model
    }

    /// Compiles the checkpoint at `path` for windows of `seq` tokens.
    pub fn load(
        path: &Path,
        options: &CompileOptions,
        loading: ModelOptions,
        seq: usize,
        (policy, budget): Limit,
    ) -> Result<Stepwise, Error> {
        let file = path.display().to_string();
        let options = CompileOptions {
            evictable: true,
            ..options.clone()
        };
        let model = language::compile_text(path, &file, &options)?.load(loading)?;
        let failed = |error| Error::Text {
            file: file.clone(),
            error,
        };
        Ok(Stepwise {
            vocabulary: vocabulary_size(model.inputs(), model.outputs()).map_err(failed)?,
            eviction: Eviction::new(policy, budget, Some(seq)).map_err(failed)?,
            model,
        })
    }

    /// Predictions for each token of a window, `f32[1,tokens,vocabulary]`.
    pub fn logits(&self, file: &str, window: &[u32]) -> Result<Value, Error> {
        let read = || -> Result<Vec<f32>, lapidary_language::Error> {
            let mut session = Session::new(&self.model, Some(self.eviction.clone()))?;
            session.join()?;
            let mut all = Vec::with_capacity(window.len() * self.vocabulary);
            for piece in window.chunks(session.piece()) {
                session.feed_and_score(piece, piece.len())?;
                for i in 0..piece.len() {
                    all.extend(session.scores(i));
                }
            }
            Ok(all)
        };
        let all = read().map_err(|error| Error::Text {
            file: file.to_owned(),
            error,
        })?;
        let bytes: Vec<u8> = all.iter().flat_map(|x| x.to_le_bytes()).collect();
        let dims = vec![1, window.len(), self.vocabulary];
        let tensor =
            Bytes::copy_of(&bytes).and_then(|b| Tensor::from_bytes(ElemType::F32, dims, b));
        Ok(tensor.map_err(|e| unfit(file, e.to_string()))?.into())
    }
}
