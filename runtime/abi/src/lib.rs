//! What compiled programs and the runtime agree on, written once.
//!
//! The compiler's crates and the runtime never depend on each other; both depend on this small crate of
//! plain data: element types ([`ElemType`]), run-time sizes ([`Size`]), the host program that sequences
//! compiled kernels ([`program`]), the kernel calling convention and the argument blocks of the
//! micro-kernels ([`kernel`]), how an image lies in a file ([`image`]), and the number formats that both read ([`minifloat`],
//! [`rans`]), what caches that may lose tokens keep of attention ([`attended`]), and in which order experts are loaded ([`experts`]). Nothing here allocates device memory, runs code or knows a graph op.

pub mod attended;
pub mod elem;
pub mod experts;
pub mod image;
pub mod kernel;
pub mod math;
pub mod minifloat;
pub mod program;
pub mod rans;
pub mod size;

pub use elem::ElemType;
pub use size::Size;
