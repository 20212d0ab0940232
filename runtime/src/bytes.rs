//! Owned memory for tensors: aligned to 64 bytes, zero at first, reusable for another length.

use crate::error::RunError;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of every tensor's first element, as kernels expect.
pub const ALIGN: usize = 64;

/// What the allocator is asked for. Only memory of no more than its own alignment comes from the system as it is, zero and not in
/// use until it is touched; any other would be written over whole.
const ASKED: usize = 16;

/// A buffer of bytes.
pub struct Bytes {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// Bytes of the allocation before the first of ours.
    skipped: usize,
}

// SAFETY: the buffer is plain owned memory.
unsafe impl Send for Bytes {}
// SAFETY: shared references only read.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Result<Bytes, RunError> {
        let fail = || RunError::OutOfMemory { bytes: len };
        let capacity = len
            .max(1)
            .checked_next_multiple_of(ALIGN)
            .ok_or_else(fail)?;
        let layout = layout(capacity).ok_or_else(fail)?;
        // SAFETY: the layout's size is not zero.
        let begin = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(fail)?;
        let skipped = begin.as_ptr().addr().next_multiple_of(ALIGN) - begin.as_ptr().addr();
        // SAFETY: the layout has room for what is skipped, which is less than `ALIGN`.
        let ptr = unsafe { begin.add(skipped) };
        Ok(Bytes {
            ptr,
            len,
            capacity,
            skipped,
        })
    }

    /// A copy of `source`.
    pub fn copy_of(source: &[u8]) -> Result<Bytes, RunError> {
        let mut bytes = Bytes::zeroed(source.len())?;
        bytes.as_mut_slice().copy_from_slice(source);
        Ok(bytes)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes from `ptr` on are ours and initialised.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Address of the first byte, for kernels.
    pub fn address(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The most bytes it could hold.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Becomes a buffer of `len` bytes with unspecified content; `len` is at most the capacity.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(self.capacity);
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(layout) = layout(self.capacity) {
            // SAFETY: allocated in `zeroed` with this very layout, so many bytes before.
            unsafe { dealloc(self.ptr.as_ptr().sub(self.skipped), layout) }
        }
    }
}

/// Room for so many bytes from a multiple of [`ALIGN`] on.
fn layout(capacity: usize) -> Option<Layout> {
    Layout::from_size_align(capacity.checked_add(ALIGN)?, ASKED).ok()
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}
