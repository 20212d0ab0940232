//! Decoder language models as streams of instructions for an FPGA overlay, after FlightLLM (Zeng et al., FPGA 2024).
//!
//! [`isa`] is the instruction set: six classes, one table of fields. [`packing`] packs N:16 sparse weights of 8, 4 or 3 bits.
//! [`arith`] is the integer arithmetic of everything that is not a product. [`model`] quantizes a Llama-shaped network and runs it
//! in plain Rust, without instructions. [`compile`] makes a memory image and a stream of instructions of a decode step;
//! [`simulate`] executes the encoded stream, [`emit`] writes an engine that does, as HLS C++; [`timing`] predicts what it takes.
//!
//! *Absent:* reading checkpoints (the command gives tensors by name), the graph IR, vendor tools.

pub mod arith;
pub mod compile;
pub mod emit;
pub mod isa;
pub mod model;
pub mod packing;
pub mod simulate;
pub mod timing;
