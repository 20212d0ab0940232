//! Rewriting graphs and lowering them to kernels.

pub mod fold;
