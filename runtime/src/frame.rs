//! The memory of one run: arena, scratch, values, symbols. Kept between runs, one for each concurrent call.

use crate::bytes::{ALIGN, Bytes};
use crate::error::RunError;
use crate::memory::advise_huge;
use crate::plan::{Plan, byte_len};
use crate::sizes::UNBOUND;
use crate::value::{Tensor, Value};
use lapidary_abi::ElemType;

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
    /// Dimensions of the value that is being allocated.
    pub dims: Vec<usize>,
    /// Tensors nobody uses any more: their memory serves the next ones.
    spare: Vec<Tensor>,
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
            dims: Vec::new(),
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
        if let Some(Value::Tensor(tensor)) = self.slots[slot].take() {
            self.keep(tensor);
        }
    }

    /// Keeps a tensor's memory for the next allocation, if nobody shares it.
    pub fn keep(&mut self, mut tensor: Tensor) {
        if self.spare.len() < MAX_SPARE && tensor.room().is_some() {
            self.spare.push(tensor);
        }
    }

    /// A tensor with unspecified content: one that is not used any more and fits well, or a new one.
    pub fn allocate(&mut self, elem: ElemType, dims: &[usize]) -> Result<Tensor, RunError> {
        let bytes = byte_len(elem, dims)?;
        let mut best: Option<(usize, usize)> = None;
        for (i, tensor) in self.spare.iter_mut().enumerate() {
            let room = tensor.room().unwrap_or(0);
            let fits = room >= bytes && room / 2 <= bytes.max(ALIGN);
            if fits && best.is_none_or(|(least, _)| room < least) {
                best = Some((room, i));
            }
        }
        let Some((_, i)) = best else {
            return Tensor::from_bytes(elem, dims.to_vec(), Bytes::zeroed(bytes)?);
        };
        let mut tensor = self.spare.swap_remove(i);
        tensor.recycle(elem, dims, bytes);
        Ok(tensor)
    }
}
