//! Kernels that are no code of this processor: a device runs them, on memory that the host shares with it.
//!
//! The host program stays what it is (sizes, library calls, branches); only its launches go another way.

use crate::error::RunError;

/// Runs the kernels of a model's image, whose code is in the device's language.
pub trait Device: Send + Sync {
    /// Runs all blocks of a kernel, and returns when their results are in memory.
    ///
    /// # Errors
    /// The device cannot run it.
    fn launch(&self, launch: &Launch) -> Result<(), RunError>;
}

/// A launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Where the kernel begins in the image's code.
    pub code_offset: u64,
    /// Number of blocks of its linearised grid.
    pub blocks: u64,
    /// Its parameters in order: addresses of buffers, and sizes.
    pub args: &'a [u64],
    /// For each parameter the bytes of its buffer; `None` for a size.
    pub bytes: &'a [Option<usize>],
}
