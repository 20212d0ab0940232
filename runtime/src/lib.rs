//! What compiled programs link against: micro-kernels and threads now; nothing here knows the compiler.

pub mod micro;
pub mod pool;
