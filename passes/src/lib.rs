//! Rewriting graphs and lowering them to kernels.

pub mod adjust;
pub mod compress;
pub mod egraph;
pub mod encode;
pub mod fold;
pub mod lower;
pub mod methods;
pub mod predict;
pub mod rules;
pub mod schedules;
pub mod search;

pub mod tables;
pub mod tails;
