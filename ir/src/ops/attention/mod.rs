//! Attention in all its forms, and rotary position embeddings.

mod contrib;
mod group;
mod linear;
mod rotary;
mod scaled;

use super::OpDef;

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &scaled::ATTENTION,
    &linear::LINEAR_ATTENTION,
    &rotary::ROTARY_EMBEDDING,
    &rotary::MS_ROTARY_EMBEDDING,
    &contrib::MS_ATTENTION,
    &contrib::MULTI_HEAD_ATTENTION,
    &group::GROUP_QUERY_ATTENTION,
];
