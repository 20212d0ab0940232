//! Structured pruning: whole channels, neurons and heads go, and what is left is a smaller program.
//!
//! [`groups`] finds from a module which slices of its constants must go together, [`cut`] takes them out, [`fold`] with
//! their means moved to biases; the rest are
//! numbers about which to take, as functions of plain matrices: [`flap`] (fluctuations and a bias), [`ziplm`] (exact removal
//! at several sizes, chosen by measured times), [`criteria`] (activations, norms' scales, blocks).

pub mod criteria;
pub mod cut;
pub mod fisher;
pub mod flap;
pub mod fold;
pub mod groups;
mod rules;
pub mod soup;
pub mod ziplm;

#[cfg(test)]
mod tests;
