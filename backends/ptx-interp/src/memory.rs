//! Memory, and who touched which byte of it since the last barrier.

use crate::Wrong;

/// Global memory that a launch is given.
#[derive(Debug)]
pub struct Segment<'m> {
    /// Address of the first byte, as the program sees it.
    pub address: u64,
    /// What is there.
    pub bytes: &'m mut [u8],
    /// Writes are faults.
    pub read_only: bool,
}

/// What happened to a byte in the epoch: the epoch (32 bits), who wrote it and who read it (16 bits each: thread + 1, or
/// [`MANY`]).
type Touch = u64;

/// More than one thread.
const MANY: u64 = 0xFFFF;

/// Who touched the bytes of a piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    touched: Vec<Touch>,
}

impl Shadow {
    pub fn new(bytes: usize) -> Shadow {
        Shadow {
            touched: vec![0; bytes],
        }
    }

    /// Notes an access; the other thread if there is a race.
    pub fn access(
        &mut self,
        at: usize,
        bytes: usize,
        epoch: u32,
        thread: u32,
        writes: bool,
    ) -> Option<u32> {
        let me = u64::from(thread) + 1;
        for touch in self.touched.get_mut(at..at + bytes)? {
            let (mut writer, mut reader) = match (*touch >> 32) as u32 == epoch {
                true => (*touch >> 16 & 0xFFFF, *touch & 0xFFFF),
                false => (0, 0),
            };
            if writer != 0 && writer != me {
                return Some(writer as u32 - 1);
            }
            match writes {
                true if reader != 0 && reader != me => return Some(reader as u32 - 1),
                true => writer = me,
                false if reader == 0 => reader = me,
                false if reader != me => reader = MANY,
                false => {}
            }
            *touch = u64::from(epoch) << 32 | writer << 16 | reader;
        }
        None
    }
}

/// Global memory during a launch.
pub(crate) struct Global<'s, 'm> {
    segments: &'s mut [Segment<'m>],
    shadows: Vec<Shadow>,
    /// Where the last access was.
    last: usize,
}

impl<'s, 'm> Global<'s, 'm> {
    pub fn new(segments: &'s mut [Segment<'m>]) -> Global<'s, 'm> {
        let shadow = |s: &Segment| match s.read_only {
            true => Shadow::default(),
            false => Shadow::new(s.bytes.len()),
        };
        Global {
            shadows: segments.iter().map(shadow).collect(),
            segments,
            last: 0,
        }
    }

    fn find(&mut self, address: u64, bytes: usize) -> Result<(usize, usize), Wrong> {
        let inside = |s: &Segment| {
            let at = address.checked_sub(s.address)? as usize;
            (at.checked_add(bytes)? <= s.bytes.len()).then_some(at)
        };
        if let Some(at) = self.segments.get(self.last).and_then(inside) {
            return Ok((self.last, at));
        }
        let found = self
            .segments
            .iter()
            .enumerate()
            .find_map(|(i, s)| Some((i, inside(s)?)));
        let (segment, at) = found.ok_or(Wrong::OutOfBounds)?;
        self.last = segment;
        Ok((segment, at))
    }

    /// Bytes that a thread reads.
    pub fn read(
        &mut self,
        address: u64,
        bytes: usize,
        epoch: u32,
        thread: u32,
    ) -> Result<&[u8], (Wrong, Option<u32>)> {
        let (segment, at) = self.find(address, bytes).map_err(|w| (w, None))?;
        if let Some(other) = self.shadows[segment].access(at, bytes, epoch, thread, false) {
            return Err((Wrong::Race, Some(other)));
        }
        Ok(&self.segments[segment].bytes[at..at + bytes])
    }

    /// Bytes that a thread writes.
    pub fn write(
        &mut self,
        address: u64,
        bytes: usize,
        epoch: u32,
        thread: u32,
    ) -> Result<&mut [u8], (Wrong, Option<u32>)> {
        let (segment, at) = self.find(address, bytes).map_err(|w| (w, None))?;
        if self.segments[segment].read_only {
            return Err((Wrong::ReadOnly, None));
        }
        if let Some(other) = self.shadows[segment].access(at, bytes, epoch, thread, true) {
            return Err((Wrong::Race, Some(other)));
        }
        Ok(&mut self.segments[segment].bytes[at..at + bytes])
    }
}

/// Shared memory of a block.
pub(crate) struct Shared {
    pub bytes: Vec<u8>,
    shadow: Shadow,
    /// Bytes that copies are under way to.
    pending: Vec<bool>,
}

impl Shared {
    pub fn new(bytes: usize) -> Shared {
        Shared {
            bytes: vec![0xFF; bytes],
            shadow: Shadow::new(bytes),
            pending: vec![false; bytes],
        }
    }

    /// Where an access lies, if it may be.
    pub fn access(
        &mut self,
        address: u64,
        bytes: usize,
        epoch: u32,
        thread: u32,
        writes: bool,
    ) -> Result<usize, (Wrong, Option<u32>)> {
        let at = usize::try_from(address).unwrap_or(usize::MAX);
        match at.checked_add(bytes) {
            Some(end) if end <= self.bytes.len() => {}
            _ => return Err((Wrong::OutOfBounds, None)),
        }
        if self.pending[at..at + bytes].contains(&true) {
            return Err((Wrong::PendingCopy, None));
        }
        match self.shadow.access(at, bytes, epoch, thread, writes) {
            Some(other) => Err((Wrong::Race, Some(other))),
            None => Ok(at),
        }
    }

    /// A copy to here begins, or ends.
    pub fn set_pending(&mut self, at: usize, bytes: usize, pending: bool) {
        self.pending[at..at + bytes].fill(pending);
    }
}
