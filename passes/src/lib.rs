//! Rewriting graphs and lowering them to kernels.

pub mod egraph;
pub mod fold;
pub mod rules;
pub mod schedules;
