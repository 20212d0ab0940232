//! Which memory threads of a block accessed since they last waited for each other.
//!
//! A kernel's statements run one after the other, its threads do not: a barrier must come between a write and
//! another thread's access to the same memory. Memory is told apart by buffer, not by element.

use std::collections::BTreeSet;

/// Accesses since the last barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hazards {
    read: BTreeSet<usize>,
    written: BTreeSet<usize>,
}

impl Hazards {
    /// A read; true if it needs a barrier first.
    pub fn read(&mut self, what: usize) -> bool {
        self.read.insert(what);
        self.written.contains(&what)
    }

    /// A write; true if it needs a barrier first.
    pub fn write(&mut self, what: usize) -> bool {
        let clear = self.is_clear(what);
        self.written.insert(what);
        !clear
    }

    /// Nothing accessed it.
    pub fn is_clear(&self, what: usize) -> bool {
        !self.read.contains(&what) && !self.written.contains(&what)
    }

    /// A barrier.
    pub fn clear(&mut self) {
        self.read.clear();
        self.written.clear();
    }

    /// These may have been accessed as well.
    pub fn open(&mut self, read: &[usize], written: &[usize]) {
        self.read.extend(read);
        self.written.extend(written);
    }

    /// What may have been accessed on either of two ways here.
    pub fn join(&mut self, other: &Hazards) {
        self.read.extend(&other.read);
        self.written.extend(&other.written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barriers_come_between_writes_and_other_accesses() {
        let mut h = Hazards::default();
        assert!(!h.read(1) && !h.read(1) && !h.write(2));
        assert!(h.write(1) && h.read(2));
        h.clear();
        assert!(!h.write(1));
        let mut other = Hazards::default();
        other.join(&h);
        assert!(other.read(1) && !other.read(2));
    }
}
