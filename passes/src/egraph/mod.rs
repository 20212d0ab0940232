//! Equality saturation, block by block.
//!
//! A module is cut into blocks ([`blocks`]), each is loaded into an e-graph ([`lang`]), saturated with the rule
//! table within limits of nodes and rounds, and the cheapest program is extracted as a DAG ([`extract`]).
//! Blocks of equal structure are solved once. `egg` and its ids stay inside this crate.

mod blocks;
mod cost;
mod extract;
pub mod lang;
pub mod saturate;
mod single;
pub mod traits;

pub use saturate::{Options, Report, saturate};
