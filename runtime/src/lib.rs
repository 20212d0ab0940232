//! What compiled programs link against; nothing here knows the compiler.
//!
//! A compiled model is an image: a host program, machine code and weights ([`image`]). [`exec::Model`] runs
//! it: kernels on the thread [`pool`], dense products through the [`micro`]-kernels, everything whose
//! shape depends on data through the library operations ([`ops`]). Around it: values ([`value`]), files of
//! inputs and outputs ([`io`]), the command line of an executable ([`cli`]) and the C interface ([`capi`]).

pub mod bytes;
pub mod capi;
pub mod ceiling;
pub mod cli;
pub mod device;
pub mod error;
pub mod exec;
mod frame;
pub mod image;
pub mod io;

pub mod memory;
pub mod ops;
mod plan;
pub mod pool;
mod sizes;
pub mod typed;
pub mod value;

pub use lapidary_micro as micro;

pub use error::RunError;
pub use exec::{KernelTiming, Model, ModelOptions};
pub use value::{Tensor, Value};
