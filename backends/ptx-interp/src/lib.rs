//! Runs PTX without a GPU: the test machine of the PTX backend.
//!
//! It knows the instructions that `lapidary-ptx` prints, as the PTX ISA defines them, and is stricter than a GPU. A
//! block's threads run one after the other, each until it waits for others; blocks run one after the other. It stops at the
//! first [`Fault`]:
//!
//! * an address outside of all memory that the launch was given, or one that is not aligned;
//! * threads that wait at different barriers, or of which some have ended; lanes of a warp that are not all at a warp-wide
//!   instruction;
//! * two threads that access the same byte between two barriers, where one writes, in shared or global memory;
//! * memory that `cp.async` copies to, used before the copy was waited for.
//!
//! `instruction` is what is known of the instructions, `parse` reads them, `machine` runs them, `scalar` computes, `matrix`
//! multiplies, `memory` is memory and who touched it.
//!
//! What is absent: time, caches, everything that is not printed. Source: "Parallel Thread Execution ISA", NVIDIA.

mod instruction;
mod machine;
mod matrix;
mod memory;
mod parse;
mod scalar;
#[cfg(test)]
mod tests;

pub use instruction::{Entry, Module};
pub use machine::{Launch, Statistics};
pub use memory::Segment;

/// A text that is not what this crate knows of PTX.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// From 1.
    pub line: u32,
    /// What is wrong.
    pub reason: String,
}

/// What a program must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// An access outside of memory.
    #[error("an access outside of memory")]
    OutOfBounds,
    /// A write to memory that may only be read.
    #[error("a write to read-only memory")]
    ReadOnly,
    /// An address that is no multiple of the access' size.
    #[error("a misaligned access")]
    Misaligned,
    /// Threads do not come together.
    #[error("threads diverge")]
    Divergence,
    /// Threads access the same memory without a barrier between.
    #[error("a race")]
    Race,
    /// A copy was not waited for.
    #[error("a use of memory that `cp.async` still copies to")]
    PendingCopy,
    /// Places of a sparse matrix that do not grow within four columns.
    #[error("metadata that no sparse matrix has")]
    Metadata,
    /// It runs for too long.
    #[error("no end")]
    Endless,
    /// The launch does not fit the entry.
    #[error("a launch that does not fit")]
    Launch,
}

/// Where a program did what it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry `{entry}`, line {line}, block {block}, thread {thread}: {wrong}: {detail}")]
pub struct Fault {
    /// The entry.
    pub entry: String,
    /// Line of the text.
    pub line: u32,
    /// Block of the launch.
    pub block: u32,
    /// Thread of the block.
    pub thread: u32,
    /// What.
    pub wrong: Wrong,
    /// Of what.
    pub detail: String,
}
