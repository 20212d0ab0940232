//! The memory of one run: arena, scratch, values, symbols. Kept between runs, one for each concurrent call.

use crate::bytes::Bytes;
use crate::error::RunError;
use crate::memory::advise_huge;
use crate::plan::Plan;
use crate::sizes::UNBOUND;
use crate::value::Value;

/// Freed buffers that are kept for the next allocation.
const MAX_SPARE: usize = 64;

pub struct Frame {
    pub arena: Bytes,
    pub scratch: Bytes,
    /// Bytes of scratch of one thread.
    pub scratch_stride: usize,
    pub symbols: Vec<i64>,
    pub slots: Vec<Option<Value>>,
    pub args: Vec<u64>,
    spare: Vec<Bytes>,
}

impl Frame {
    pub fn new(plan: &Plan, threads: usize, huge_pages: bool) -> Result<Frame, RunError> {
        // A line of distance keeps threads from sharing one.
        let scratch_stride = plan.scratch_bytes.next_multiple_of(64) + 64;
        let scratch = scratch_stride
            .checked_mul(threads)
            .ok_or(RunError::OutOfMemory { bytes: usize::MAX })?;
        let frame = Frame {
            arena: Bytes::zeroed(plan.arena_bytes)?,
            scratch: Bytes::zeroed(scratch)?,
            scratch_stride,
            symbols: Vec::new(),
            slots: Vec::new(),
            args: Vec::new(),
            spare: Vec::new(),
        };
        if huge_pages {
            advise_huge(frame.arena.address(), plan.arena_bytes);
        }
        Ok(frame)
    }

    /// Forgets the last run's values; keeps memory.
    pub fn begin(&mut self, plan: &Plan) {
        self.symbols.clear();
        self.symbols.resize(plan.symbols.len(), UNBOUND);
        for slot in 0..self.slots.len() {
            self.clear(slot);
        }
        self.slots.resize(plan.values.len(), None);
    }

    /// Empties a slot and keeps its memory for the next allocation, if nobody shares it.
    pub fn clear(&mut self, slot: usize) {
        if let Some(Value::Tensor(t)) = self.slots[slot].take()
            && let Some(buffer) = t.into_buffer()
            && self.spare.len() < MAX_SPARE
        {
            self.spare.push(buffer);
        }
    }

    /// A buffer with unspecified content: a freed one that fits well, or a new one.
    pub fn allocate(&mut self, bytes: usize) -> Result<Bytes, RunError> {
        let fits = |b: &Bytes| b.capacity() >= bytes && b.capacity() / 2 <= bytes;
        let best = (0..self.spare.len())
            .filter(|&i| fits(&self.spare[i]))
            .min_by_key(|&i| self.spare[i].capacity());
        match best {
            Some(i) => {
                let mut buffer = self.spare.swap_remove(i);
                buffer.set_len(bytes);
                Ok(buffer)
            }
            None => Bytes::zeroed(bytes),
        }
    }
}
