//! Rewriting graphs and lowering them to kernels.

pub mod egraph;
pub mod encode;
pub mod fold;
pub mod lower;
pub mod rules;
pub mod schedules;
pub mod tables;
pub mod tails;
