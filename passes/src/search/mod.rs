//! Choosing one candidate for each weight, over the whole model, within budgets.
//!
//! [`knapsack`] minimises the sum of the candidates' errors, with a lower bound as the proof of how good the choice is.
//! A sum of layers' errors is only a stand-in for the model's loss, so [`evopress`] goes on from there by measuring the
//! whole model. Neither knows what an option is: they see costs, errors and levels.

pub mod evopress;
pub mod knapsack;
