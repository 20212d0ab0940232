//! Memory that the operating system maps: machine code and weights.
//!
//! Code is never writable and executable at once: it is mapped from its file, or copied and then sealed.

use crate::error::RunError;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Bytes of a page; where pages are larger, advice on parts of them is refused, and nothing but speed is lost.
const PAGE: usize = 4096;

/// Pages mapped into the process; unmapped when dropped.
pub struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
    /// Its content is a file's.
    of_file: bool,
}

// SAFETY: a mapping is plain memory that nobody writes once it is built.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn map(
        len: usize,
        protection: i32,
        flags: i32,
        file: i32,
        offset: i64,
    ) -> Result<Mapping, RunError> {
        // SAFETY: a new mapping at an address of the system's choice touches no existing memory.
        let ptr = unsafe { libc::mmap(null_mut(), len, protection, flags, file, offset) };
        if ptr == libc::MAP_FAILED {
            return Err(system("cannot map memory"));
        }
        NonNull::new(ptr.cast())
            .map(|ptr| Mapping {
                ptr,
                len,
                of_file: file >= 0,
            })
            .ok_or_else(|| RunError::System("memory mapped at address 0".into()))
    }

    /// Part of a file; `offset` is a multiple of the page size. With `executable`, for running; else for reading.
    ///
    /// The file must stay as it is while it is mapped: cutting it short makes reads fail with a signal.
    pub fn of_file(
        file: &File,
        offset: u64,
        len: usize,
        executable: bool,
    ) -> Result<Mapping, RunError> {
        let protection = libc::PROT_READ | if executable { libc::PROT_EXEC } else { 0 };
        let offset = i64::try_from(offset).map_err(|_| RunError::program("offset too large"))?;
        Mapping::map(len, protection, libc::MAP_PRIVATE, file.as_raw_fd(), offset)
    }

    /// Executable memory with a copy of `code`.
    pub fn of_code(code: &[u8]) -> Result<Mapping, RunError> {
        let mapping = Mapping::map(
            code.len().max(1),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )?;
        // SAFETY: the mapping is new, writable and at least as long as the code.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), mapping.ptr.as_ptr(), code.len()) };
        let seal = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: changes the protection of our own mapping.
        if unsafe { libc::mprotect(mapping.ptr.as_ptr().cast(), mapping.len, seal) } != 0 {
            return Err(system("cannot make compiled code executable"));
        }
        Ok(mapping)
    }

    /// Asks for huge pages; the system may ignore it.
    pub fn advise_huge(&self) {
        advise_huge(self.ptr.as_ptr(), self.len);
    }

    /// Lets go of the whole pages of a range: they are read from the file again when they are used.
    pub fn give_back(&self, offset: usize, len: usize) {
        let start = offset.min(self.len).next_multiple_of(PAGE);
        let end = offset.saturating_add(len).min(self.len) & !(PAGE - 1);
        if self.of_file && start < end {
            // SAFETY: the range lies in our mapping, of a file and never written: what is read there stays the same.
            unsafe {
                let address = self.ptr.as_ptr().add(start);
                libc::madvise(address.cast(), end - start, libc::MADV_DONTNEED)
            };
        }
    }

    /// Whole pages that hold a range.
    fn pages(&self, offset: usize, len: usize) -> Range<usize> {
        let end = offset.saturating_add(len).min(self.len);
        offset.min(self.len) & !(PAGE - 1)..end.next_multiple_of(PAGE)
    }

    /// False if the system tells that some page of a range must be read from the file before it is used.
    pub fn is_in_memory(&self, offset: usize, len: usize) -> bool {
        #[cfg(target_os = "linux")]
        if self.of_file {
            const AT_ONCE: usize = 1024;
            let (pages, mut flags) = (self.pages(offset, len), [0u8; AT_ONCE]);
            for at in pages.clone().step_by(AT_ONCE * PAGE) {
                let bytes = (pages.end - at).min(AT_ONCE * PAGE);
                // SAFETY: the range is of our mapping, and there is a flag for each page of it, or of larger ones.
                let told = unsafe {
                    let address = self.ptr.as_ptr().add(at);
                    libc::mincore(address.cast(), bytes, flags.as_mut_ptr())
                };
                if told == 0 && flags[..bytes / PAGE].iter().any(|f| f & 1 == 0) {
                    return false;
                }
            }
        }
        let _ = (offset, len);
        true
    }

    /// Reads a range from the file, and returns when it is in memory.
    ///
    /// By touching it: the system notices that it is read in order and reads ahead in large pages. Advice that it will be needed makes
    /// it read small ones, which was twice as slow.
    pub fn read_ahead(&self, offset: usize, len: usize) {
        if self.of_file {
            for at in self.pages(offset, len).step_by(PAGE) {
                // SAFETY: the page is of our mapping, readable. The read is volatile so that it happens.
                unsafe { self.ptr.as_ptr().add(at).read_volatile() };
            }
        }
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the pages are mapped readable as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and borrows of it have ended.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// Asks for huge pages for the whole pages of a range.
pub fn advise_huge(ptr: *const u8, len: usize) {
    #[cfg(target_os = "linux")]
    {
        let start = (ptr as usize).next_multiple_of(PAGE);
        let end = (ptr as usize).saturating_add(len) & !(PAGE - 1);
        if start < end {
            // SAFETY: advice changes no content; the range lies in memory that the caller owns.
            unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (ptr, len);
}

fn system(what: &str) -> RunError {
    RunError::System(format!("{what}: {}", std::io::Error::last_os_error()))
}

/// Compiled code: bytes that may be executed.
#[derive(Clone)]
pub enum Code {
    /// Mapped here.
    Mapped(Arc<Mapping>),
    /// Part of the program itself (linked in).
    Linked(&'static [u8]),
}

impl Code {
    /// Copies code to executable memory.
    pub fn copy_of(code: &[u8]) -> Result<Code, RunError> {
        Ok(Code::Mapped(Arc::new(Mapping::of_code(code)?)))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Code::Mapped(m) => m.as_slice(),
            Code::Linked(s) => s,
        }
    }
}

/// The weights blob: read-only, aligned to 64 bytes.
#[derive(Clone)]
pub enum Weights {
    /// Mapped here.
    Mapped(Arc<Mapping>),
    /// Part of the program itself (linked in).
    Linked(&'static [u8]),
    /// In memory.
    Owned(Arc<crate::bytes::Bytes>),
}

impl Weights {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Weights::Mapped(m) => m.as_slice(),
            Weights::Linked(s) => s,
            Weights::Owned(b) => b.as_slice(),
        }
    }
}
