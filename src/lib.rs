//! Lapidary: an ahead-of-time compiler for compressed neural networks.
//!
//! The library behind the `lapidary` command: [`driver`] takes a model from its file to machine code,
//! [`specialize`] fits it to inputs at hand, [`eval`] measures how well it predicts text, [`calibrate`] reads the
//! data that compression looks at, [`tune`] measures a machine and [`profile`] keeps what it says, [`work`] keeps what compression has made between runs, [`report`] draws what became of the weights, [`values`] converts between the
//! values of the reference evaluator and those of the runtime.

pub mod artefact;
pub mod backend;
pub mod build_script;
pub mod calibrate;
pub mod driver;
pub mod error;
pub mod eval;
pub mod language;
pub mod profile;
pub mod report;
pub mod specialize;
pub mod tune;
pub mod values;
pub mod work;

pub use build_script::{Build, BuildError};
pub use driver::{CompileOptions, Compiled};
pub use error::Error;
