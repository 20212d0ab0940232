//! The mapped files that constants view, so that their pages can be given back once they have been read.
//!
//! Weights are views of mapped files. Each page that is read stays in the process's memory for as long as the map
//! does, and next to what is made of it a large model would be held twice. Whoever has read much calls
//! [`Sources::release`]; a later read finds the same bytes in the file again.

use std::fmt;
use std::sync::{Arc, Weak};

/// A file whose pages can be given back.
pub trait Source: Send + Sync {
    /// Gives back the memory of pages that were read. Views stay valid and keep their contents.
    fn release(&self);
}

/// Bytes read, after which giving pages back is worth the call and the page faults of what is read again.
pub const WORTHWHILE: usize = 1 << 20;

/// The files of a module, for as long as something views them. They are no part of its meaning: any two lists are equal.
#[derive(Clone, Default)]
pub struct Sources(Vec<Weak<dyn Source>>);

impl Sources {
    /// One more file.
    pub fn push(&mut self, source: &Arc<dyn Source>) {
        if self.0.len() == self.0.capacity() {
            self.0.retain(|s| s.strong_count() > 0);
        }
        self.0.push(Arc::downgrade(source));
    }

    /// The files of both.
    pub fn extend(&mut self, more: Sources) {
        self.0.extend(more.0);
    }

    /// Gives back the pages of all files, if this many bytes that were read are worth it.
    pub fn release(&self, read: usize) {
        if read >= WORTHWHILE {
            self.0
                .iter()
                .filter_map(Weak::upgrade)
                .for_each(|s| s.release());
        }
    }
}

impl PartialEq for Sources {
    fn eq(&self, _: &Sources) -> bool {
        true
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files", self.0.len())
    }
}
