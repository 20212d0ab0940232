//! Values between weights as 8-bit codes of ranges that the data shows.
//!
//! `before => after`: `conv(x, W)  =>  conv(dequantize_linear(quantize_linear(x)), dequantize_linear(codes of W))`, which
//! `rules/quant.rs` makes a product of integers of; what lies between two products and reads one code becomes a table
//! (`tables.rs`), a softmax and a layer normalization become integer arithmetic where that is asked for.
//!
//! Which operations read codes is a table ([`place`]); a range is that of all samples, cut where the squared error of
//! the codes is least ([`range`]); weights have a scale for each output, by their largest value.
//! Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 2;
//! Xiao et al., "SmoothQuant", section 4 ([`smooth`]); "Blockwise Compression of Transformer-based Models without Retraining" (BCT,
//! arXiv 2304.01483), which has codes between all operations.

mod integers;
mod place;
mod range;
mod smooth;
mod write;

use super::samples::Samples;
use super::{CompressError, Means, Measured, loss};
use crate::egraph::{self, saturate};
use crate::fold::{Limits, fold_constants};
use crate::lower::LowerErrors;
use crate::lower::decompose::decompose_where;
use crate::rules::{Rule, activation, algebra, fold, norm};
use lapidary_ir::infer::{first_fresh, infer_module};
use lapidary_ir::ops::OpError;
use lapidary_ir::target::Target;
use lapidary_ir::{Module, NodeId, ValueId};
use serde::{Deserialize, Serialize};
use std::cell::Cell;

/// Which operations read and write codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Products with weights.
    #[default]
    Products,
    /// All that are no sums or products element by element.
    All,
}

/// What becomes of the values between weights, as recipes say it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activations {
    /// Which operations read codes.
    #[serde(default)]
    pub scope: Scope,
    /// A code's step is a power of two, so that scales are shifts, and tables are shared.
    #[serde(default)]
    pub powers_of_two: bool,
    /// Softmax and layer normalization compute with integers alone.
    #[serde(default)]
    pub integers: bool,
    /// What part of the spread of inputs of matrix products moves into the weights: the exponent of SmoothQuant; 0 for none.
    #[serde(default)]
    pub smooth: f64,
}

/// Settings by a name.
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// What it is, for users.
    pub help: &'static str,
    /// The settings.
    pub activations: fn() -> Activations,
}

/// Every preset.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "int8",
        help: "Products with weights; the spread of inputs of matrix products is shared with the weights (SmoothQuant)",
        activations: Activations::int8,
    },
    Preset {
        name: "bct",
        help: "All operations, with steps that are powers of two; softmax and layer normalization with integers alone (BCT)",
        activations: Activations::bct,
    },
];

impl Activations {
    /// The settings of [`PRESETS`] with this name.
    pub fn preset(name: &str) -> Option<Activations> {
        let preset = PRESETS.iter().find(|p| p.name == name)?;
        Some((preset.activations)())
    }

    /// Integer products with weights: SmoothQuant's setting.
    pub fn int8() -> Activations {
        Activations {
            smooth: 0.5,
            ..Activations::default()
        }
    }

    /// Codes between all operations, and integers in them.
    pub fn bct() -> Activations {
        Activations {
            scope: Scope::All,
            powers_of_two: true,
            integers: true,
            smooth: 0.0,
        }
    }
}

/// What became of a module's values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coded {
    /// Values that are stored as codes.
    pub values: usize,
    /// Products of codes with codes of weights.
    pub products: usize,
    /// Softmaxes and layer normalizations in integers.
    pub integers: usize,
    /// What stays a computation with floats though it reads codes elsewhere, and why.
    pub left: Vec<String>,
    /// How far the results are from the original's, on the data.
    pub measured: Option<Measured>,
}

/// Lets the operations of a module read and write codes.
///
/// # Errors
/// There is no data, it cannot be run, the settings are none, or there is nothing to write as codes.
pub(super) fn encode(
    module: &mut Module,
    asked: &Activations,
    means: &Means,
) -> Result<Coded, CompressError> {
    let samples = means.data.ok_or(CompressError::NoMeasure(
        "ranges of values need data: give some with `--calibrate`",
    ))?;
    if !(0.0..=1.0).contains(&asked.smooth) {
        return Err(CompressError::Codes(format!(
            "`smooth` is between 0 and 1, not {}",
            asked.smooth
        )));
    }
    let original = module.clone();
    let graph = |e: OpError| CompressError::Graph(e);
    if asked.scope == Scope::All {
        open(module)?;
    }
    fuse(module);
    if asked.smooth > 0.0 {
        smooth::smooth(module, asked.smooth, samples, means.progress)?;
    }
    let found = place::find(module, asked.scope);
    if found.places.is_empty() {
        return Err(CompressError::Codes(
            "no operation of the model reads values that can be codes".to_owned(),
        ));
    }
    let ranges = range::ranges(module, &found, asked.powers_of_two, samples, means.progress)?;
    let mut coded = write::write(module, &found, &ranges).map_err(graph)?;
    if asked.integers {
        coded.integers = integers::rewrite(module).map_err(graph)?;
    }
    module.remove_dead_nodes();
    infer_module(module);
    coded.measured = loss::compare(&original, module, samples, means.progress)?;
    Ok(coded)
}

/// Runs other outputs of a module on all samples: `outputs` adds them to a copy, `see` is shown each sample's, by number.
fn watch(
    module: &Module,
    samples: &dyn Samples,
    progress: &dyn Fn(&str),
    stage: &str,
    outputs: impl FnOnce(&mut Module, &Cell<u32>) -> Result<Vec<ValueId>, OpError>,
    see: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), CompressError> {
    let mut probe = module.clone();
    let fresh = Cell::new(first_fresh(&probe));
    let values = outputs(&mut probe, &fresh).map_err(CompressError::Graph)?;
    if values.is_empty() {
        return Ok(());
    }
    loss::only(&mut probe, values);
    let mut program = samples.prepare(probe).map_err(CompressError::Data)?;
    let all = samples.count();
    for sample in 0..all {
        progress(&format!("{stage}: sample {} of {all}", sample + 1));
        let mut shown = |i: usize, numbers: &[f32]| {
            see(i, numbers);
            Ok(())
        };
        program
            .run(sample, &mut shown)
            .map_err(CompressError::Data)?;
    }
    Ok(())
}

/// Operations whose parts read and write codes of their own.
const WHOLES: &[&str] = &[
    "attention",
    "multi_head_attention",
    "ms_attention",
    "group_query_attention",
    "skip_layer_normalization",
    "embed_layer_normalization",
    "bias_gelu",
];

/// Writes operations as their parts.
fn open(module: &mut Module) -> Result<(), CompressError> {
    let whole = |m: &Module, n: NodeId| WHOLES.contains(&m.node(n).op.name);
    decompose_where(module, &whole).map_err(|errors| {
        let all = LowerErrors(errors).to_string();
        CompressError::Codes(format!(
            "an operation has no parts that could read codes: {all}"
        ))
    })
}

/// Finds the operations that a file spells out as many: norms, activations, and normalizations of batches as part of convolutions.
fn fuse(module: &mut Module) {
    let codes_stay = Limits {
        decode: false,
        ..Limits::default()
    };
    fold_constants(module, codes_stay);
    let families = [activation::RULES, algebra::RULES, fold::RULES, norm::RULES];
    let rules: Vec<&'static Rule> = families.into_iter().flatten().collect();
    // What is found must not depend on the machine.
    saturate(
        module,
        &Target::x86_64(),
        &egraph::Options::default(),
        &rules,
    );
    fold_constants(module, codes_stay);
}
