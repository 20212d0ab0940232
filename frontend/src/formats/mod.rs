//! How compressed weights lie in checkpoints: one file for each format, and one line in [`FORMATS`].
//!
//! ```text
//! model.layers.0.mlp.up_proj.qweight, .qzeros, .scales  =>  model.layers.0.mlp.up_proj.weight, a term [to, from]
//! ```
//! A format says which of a module's tensors it is known by, and the term that the parts mean: their bytes stay where
//! they are in the file, and nothing is decoded. Architectures then find a `weight` as if it had been stored plainly.
//! What activations are rounded to in other programs is not part of a weight: they stay floats.

mod aqlm;
mod awq;
mod bitnet;
mod bitsandbytes;
mod compressed_tensors;
mod fp8;
mod gptq;
mod hqq;
mod marlin24;
mod parts;
mod qmoe;
mod spqr;
#[cfg(test)]
mod tests;

use crate::checkpoint::config::Config;
use crate::checkpoint::weights::Weights;
use crate::error::{Problem, Problems};
use lapidary_ir::encodings::Encoding;
use parts::Parts;
pub(crate) use parts::codes;

/// A way to hold compressed weights.
#[derive(Debug)]
pub struct Format {
    /// What `quantization_config.quant_method` calls it.
    pub method: &'static str,
    /// How the name of a tensor that every packed weight has ends, behind that of its module.
    pub marker: &'static str,
    /// The term `f32[to, from]` of a module's parts; none if its weight is not packed after all.
    term: fn(&Parts) -> Result<Option<Encoding>, Problem>,
}

/// Every format.
pub static FORMATS: &[&Format] = &[
    &aqlm::AQLM,
    &awq::AWQ,
    &bitnet::BITNET,
    &bitsandbytes::FP4,
    &bitsandbytes::INT8,
    &bitsandbytes::NF4,
    &compressed_tensors::BITMASK,
    &compressed_tensors::PACKED,
    &compressed_tensors::QUANTIZED,
    &marlin24::MARLIN24,
    &fp8::BLOCKS,
    &gptq::GPTQ,
    &hqq::HQQ,
    &qmoe::QMOE,
    &spqr::SPQR,
];

/// How tensors end that say how a cache of keys and values may be rounded: none is.
const OF_CACHES: &[&str] = &[".k_scale", ".v_scale"];

/// Names of the methods, each once.
fn methods() -> Vec<&'static str> {
    let mut all: Vec<&str> = FORMATS.iter().map(|f| f.method).collect();
    all.dedup();
    all
}

/// Puts a term in the place of each packed weight, if the settings say that there are any.
pub(crate) fn unpack(config: &Config, weights: &mut Weights, problems: &mut Problems) {
    let settings = config.inner("quantization_config").and_then(|settings| {
        let Some(settings) = settings else {
            return Ok(None);
        };
        let method = settings.text("quant_method")?.unwrap_or_default();
        if methods().contains(&method.as_str()) {
            return Ok(Some((settings, method)));
        }
        Err(Problem {
            remedy: Some(format!(
                "known are {}; or use the checkpoint that it was made from",
                methods().join(", ")
            )),
            ..settings.problem("quant_method", format!("`{method}` is not a known format"))
        })
    });
    let (settings, method) = match settings {
        Ok(Some(found)) => found,
        Ok(None) => return,
        Err(problem) => return problems.push(problem),
    };
    for ending in OF_CACHES {
        for module in weights.modules(ending) {
            weights.take(&format!("{module}{ending}"));
        }
    }
    for format in FORMATS.iter().filter(|f| f.method == method) {
        let marked = format!(".{}", format.marker);
        for module in weights.modules(&marked) {
            let parts = Parts::new(&module, weights, &settings);
            match (format.term)(&parts) {
                Ok(Some(term)) => {
                    weights.put(&module, &marked, term);
                    weights.excuse_zeros(&format!("{module}.bias"));
                }
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
    }
}
