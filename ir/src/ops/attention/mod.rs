//! Attention in all its forms, and rotary position embeddings.

pub mod cache;
mod contrib;
mod group;
mod linear;
mod rotary;
mod scaled;

use super::OpDef;

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &scaled::ATTENTION,
    &cache::ROUND_CACHE,
    &linear::LINEAR_ATTENTION,
    &rotary::ROTARY_EMBEDDING,
    &rotary::MS_ROTARY_EMBEDDING,
    &contrib::MS_ATTENTION,
    &contrib::MULTI_HEAD_ATTENTION,
    &group::GROUP_QUERY_ATTENTION,
];
