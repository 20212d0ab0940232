//! Normalization over axes, batches, groups and neighbourhoods.

mod batch;
mod contrib;
mod layer;
mod softmax;

use super::OpDef;

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &softmax::SOFTMAX,
    &softmax::LOG_SOFTMAX,
    &batch::BATCH_NORMALIZATION,
    &batch::INSTANCE_NORMALIZATION,
    &batch::GROUP_NORMALIZATION,
    &batch::LP_NORMALIZATION,
    &batch::MEAN_VARIANCE_NORMALIZATION,
    &batch::LRN,
    &layer::LAYER_NORMALIZATION,
    &layer::RMS_NORMALIZATION,
    &layer::SIMPLIFIED_LAYER_NORMALIZATION,
    &contrib::SKIP_LAYER_NORMALIZATION,
    &contrib::SKIP_SIMPLIFIED_LAYER_NORMALIZATION,
    &contrib::EMBED_LAYER_NORMALIZATION,
    &contrib::BIAS_GELU,
    &contrib::FAST_GELU,
    &contrib::QUICK_GELU,
];
