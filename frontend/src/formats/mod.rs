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
mod quip;
mod spqr;
#[cfg(test)]
mod tests;

use crate::checkpoint::config::Config;
use crate::checkpoint::weights::Weights;
use crate::error::{Problem, Problems};
use lapidary_ir::encodings::{Encoding, dense, gather};
use lapidary_ir::{ElemType, Tensor};
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
    /// The modules beside it that a module of this name stands for with a weight `[to, from]`, and the rows of each; none if it stands
    /// for itself.
    split: fn(&str, [usize; 2]) -> Vec<(&'static str, usize)>,
}

/// Modules that stand for themselves.
fn whole(_: &str, _: [usize; 2]) -> Vec<(&'static str, usize)> {
    vec![]
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
    &quip::QUIP,
    &spqr::SPQR,
];

/// Settings that published files have in the place of `quantization_config`, and the method that they are of.
const OWN_SETTINGS: &[(&str, &str)] = &[("quip_params", "quip")];

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
            for (name, method) in OWN_SETTINGS {
                if let Some(settings) = config.inner(name)? {
                    return Ok(Some((settings, (*method).to_owned())));
                }
            }
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
                    put(format, &module, term, weights);
                    weights.excuse_zeros(&format!("{module}.bias"));
                }
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
    }
}

/// Puts the term of a module in its place, or its rows in those of the modules that it stands for.
fn put(format: &Format, module: &str, term: Encoding, weights: &mut Weights) {
    let file = weights.file_of(&format!("{module}.{}", format.marker));
    let file = file.unwrap_or_default().to_owned();
    let parts = match term.shape[..] {
        [to, from] => (format.split)(module, [to, from]),
        _ => vec![],
    };
    if parts.is_empty() {
        return weights.put(module, &file, term);
    }
    let beside = module.rsplit_once('.').map_or("", |(front, _)| front);
    let mut first = 0;
    for (name, rows) in parts {
        let index = (first..first + rows).map(|r| r as i128).collect();
        let index = dense::from_tensor(&Tensor::from_int(ElemType::U32, [rows], index));
        let rows_of = gather::gather(0, index, term.clone());
        weights.put(&format!("{beside}.{name}"), &file, rows_of);
        first += rows;
    }
}
