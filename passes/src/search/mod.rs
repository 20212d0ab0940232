//! Choosing one candidate for each weight, over the whole model.
//!
