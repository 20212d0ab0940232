//! Runs a launch: blocks one after the other, threads each until it waits.

use crate::instruction::{Entry, From, Instruction, Kind, Op, Space, Type};
use crate::memory::{Global, Segment, Shared};
use crate::{Fault, Wrong, matrix, scalar};

/// Threads of a warp.
const WARP: usize = 32;

/// Instructions of a thread after which it is taken for endless.
const MOST_STEPS: u64 = 1 << 28;

/// A launch of an entry.
#[derive(Debug)]
pub struct Launch<'e> {
    /// The entry.
    pub entry: &'e Entry,
    /// Its parameters, in order.
    pub params: &'e [u64],
    /// Blocks.
    pub blocks: u32,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions, of all threads.
    pub instructions: u64,
    /// Barriers that blocks passed.
    pub barriers: u64,
    /// Bytes that threads read from global memory.
    pub global_read: u64,
    /// Bytes that they wrote to it.
    pub global_written: u64,
    /// Matrix products of warps.
    pub matrix_products: u64,
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    /// At a barrier of the block.
    Barrier,
    /// At an instruction of the whole warp.
    Warp,
    Ended,
}

/// A copy to shared memory that is under way.
struct Copy {
    to: usize,
    data: Vec<u8>,
}

struct Thread {
    registers: Vec<u64>,
    at: usize,
    state: State,
    steps: u64,
    /// Copies that are in no group yet.
    copies: Vec<Copy>,
    /// Groups of copies, oldest first.
    groups: Vec<Vec<Copy>>,
}

struct Block<'l, 's, 'm> {
    launch: &'l Launch<'l>,
    number: u32,
    threads: Vec<Thread>,
    shared: Shared,
    global: &'l mut Global<'s, 'm>,
    /// Counts barriers, of all blocks.
    epoch: &'l mut u32,
    statistics: &'l mut Statistics,
}

impl Launch<'_> {
    /// Runs it on this global memory.
    ///
    /// # Errors
    /// The first thing that a program must not do.
    pub fn run(&self, segments: &mut [Segment]) -> Result<Statistics, Fault> {
        let mut statistics = Statistics::default();
        if self.params.len() != self.entry.params.len() {
            return Err(Fault {
                entry: self.entry.name.clone(),
                line: 0,
                block: 0,
                thread: 0,
                wrong: Wrong::Launch,
                detail: format!(
                    "{} parameters, {} are given",
                    self.entry.params.len(),
                    self.params.len()
                ),
            });
        }
        let mut global = Global::new(segments);
        let mut epoch = 0;
        for number in 0..self.blocks {
            epoch += 1;
            let thread = || Thread {
                registers: vec![0; self.entry.registers as usize],
                at: 0,
                state: State::Runs,
                steps: 0,
                copies: vec![],
                groups: vec![],
            };
            let mut block = Block {
                launch: self,
                number,
                threads: (0..self.entry.threads).map(|_| thread()).collect(),
                shared: Shared::new(self.entry.shared_bytes as usize),
                global: &mut global,
                epoch: &mut epoch,
                statistics: &mut statistics,
            };
            block.run()?;
        }
        Ok(statistics)
    }
}

impl<'l> Block<'l, '_, '_> {
    fn fault(&self, thread: usize, wrong: Wrong, detail: impl Into<String>) -> Fault {
        let at = self.threads[thread].at;
        let entry = self.launch.entry;
        Fault {
            entry: entry.name.clone(),
            line: entry.code.get(at).map_or(0, |i| i.line),
            block: self.number,
            thread: thread as u32,
            wrong,
            detail: detail.into(),
        }
    }

    fn run(&mut self) -> Result<(), Fault> {
        loop {
            for thread in 0..self.threads.len() {
                while self.threads[thread].state == State::Runs {
                    self.step(thread)?;
                }
            }
            let mut moved = false;
            for first in (0..self.threads.len()).step_by(WARP) {
                moved |= self.warp(first)?;
            }
            if moved {
                continue;
            }
            if self.threads.iter().all(|t| t.state == State::Ended) {
                return Ok(());
            }
            self.barrier()?;
        }
    }

    /// Lanes of a warp that wait for each other do together what they wait for.
    fn warp(&mut self, first: usize) -> Result<bool, Fault> {
        let end = (first + WARP).min(self.threads.len());
        let lanes = first..end;
        if self.threads[lanes.clone()]
            .iter()
            .all(|t| t.state != State::Warp)
        {
            return Ok(false);
        }
        let at = self.threads[first].at;
        for lane in lanes.clone() {
            let thread = &self.threads[lane];
            if thread.state != State::Warp || thread.at != at || lanes.len() != WARP {
                let detail = "not all lanes of a warp are at the same instruction";
                return Err(self.fault(lane, Wrong::Divergence, detail));
            }
        }
        let instruction = &self.launch.entry.code[at];
        self.together(first, instruction)?;
        for lane in lanes {
            self.threads[lane].at += 1;
            self.threads[lane].state = State::Runs;
        }
        Ok(true)
    }

    fn barrier(&mut self) -> Result<(), Fault> {
        let at = self.threads[0].at;
        for thread in 0..self.threads.len() {
            let t = &self.threads[thread];
            if t.state != State::Barrier || t.at != at {
                let detail = "not all threads of a block are at the same barrier";
                return Err(self.fault(thread, Wrong::Divergence, detail));
            }
        }
        *self.epoch += 1;
        self.statistics.barriers += 1;
        for thread in &mut self.threads {
            thread.at += 1;
            thread.state = State::Runs;
        }
        Ok(())
    }

    fn value(&self, thread: usize, from: From) -> u64 {
        match from {
            From::Register(r) => self.threads[thread].registers[r as usize],
            From::Bits(b) => b,
            From::Tid => thread as u64,
            From::Ctaid => u64::from(self.number),
        }
    }

    fn set(&mut self, thread: usize, to: u32, x: u64) {
        self.threads[thread].registers[to as usize] = x;
    }

    fn step(&mut self, thread: usize) -> Result<(), Fault> {
        let code: &'l [Instruction] = &self.launch.entry.code;
        let at = self.threads[thread].at;
        let Some(instruction) = code.get(at) else {
            return Err(self.fault(thread, Wrong::Endless, "the code ends without `ret`"));
        };
        self.statistics.instructions += 1;
        self.threads[thread].steps += 1;
        if self.threads[thread].steps > MOST_STEPS {
            return Err(self.fault(thread, Wrong::Endless, "too many instructions"));
        }
        if let Some((register, wanted)) = instruction.guard {
            let holds = self.threads[thread].registers[register as usize] & 1 != 0;
            if holds != wanted {
                self.threads[thread].at += 1;
                return Ok(());
            }
        }
        match &instruction.op {
            Op::Ret => {
                let t = &mut self.threads[thread];
                t.state = State::Ended;
                if !t.copies.is_empty() || t.groups.iter().any(|g| !g.is_empty()) {
                    let detail = "a thread ends while it copies";
                    return Err(self.fault(thread, Wrong::PendingCopy, detail));
                }
                return Ok(());
            }
            Op::Barrier => {
                self.threads[thread].state = State::Barrier;
                return Ok(());
            }
            Op::Shfl { .. } | Op::LdMatrix { .. } | Op::Mma { .. } | Op::SparseMma { .. } => {
                self.threads[thread].state = State::Warp;
                return Ok(());
            }
            Op::Bra { to } => {
                self.threads[thread].at = *to;
                return Ok(());
            }
            op => self.alone(thread, op)?,
        }
        self.threads[thread].at += 1;
        Ok(())
    }

    /// What a thread does by itself.
    fn alone(&mut self, thread: usize, op: &Op) -> Result<(), Fault> {
        match op {
            Op::Function {
                function,
                ty,
                to,
                from,
            } => {
                let x = from.map(|f| self.value(thread, f));
                self.set(thread, *to, scalar::compute(*function, *ty, x));
            }
            Op::Cvt {
                to,
                to_ty,
                from,
                from_ty,
                round,
            } => {
                let x = self.value(thread, *from);
                self.set(thread, *to, scalar::convert(*to_ty, *from_ty, *round, x));
            }
            Op::CvtPair { to, brain, from } => {
                let [high, low] = from.map(|f| self.value(thread, f));
                self.set(thread, *to, scalar::pair(*brain, high, low));
            }
            Op::Setp {
                compare,
                ty,
                to,
                from,
            } => {
                let [a, b] = from.map(|f| self.value(thread, f));
                let holds = scalar::compare(*compare, *ty, a, b);
                self.set(thread, *to, u64::from(holds));
            }
            Op::Selp {
                to,
                from,
                condition,
            } => {
                let [a, b] = from.map(|f| self.value(thread, f));
                let c = self.value(thread, *condition) & 1 != 0;
                self.set(thread, *to, if c { a } else { b });
            }
            Op::Split { to, from, half } => {
                let x = self.value(thread, *from);
                self.set(thread, to[0], x & ((1 << half) - 1));
                self.set(thread, to[1], x >> half & ((1 << half) - 1));
            }
            Op::Join { to, from, half } => {
                let [low, high] = from.map(|f| self.value(thread, f) & ((1 << half) - 1));
                self.set(thread, *to, high << half | low);
            }
            Op::LdParam { to, param } => {
                let x = self.launch.params[*param as usize];
                let x = match self.launch.entry.params[*param as usize] {
                    4 => x & 0xFFFF_FFFF,
                    _ => x,
                };
                self.set(thread, *to, x);
            }
            Op::Ld {
                space,
                ty,
                to,
                at,
                offset,
            } => self.load(thread, *space, *ty, to, (*at, *offset))?,
            Op::St {
                space,
                ty,
                at,
                offset,
                from,
            } => self.store(thread, *space, *ty, (*at, *offset), from)?,
            Op::CpAsync {
                bytes,
                to,
                from,
                count,
            } => self.copy(thread, *bytes as usize, *to, *from, *count)?,
            Op::Commit => {
                let t = &mut self.threads[thread];
                let group = std::mem::take(&mut t.copies);
                t.groups.push(group);
            }
            Op::Wait(left) => self.wait(thread, *left as usize)?,
            _ => {}
        }
        Ok(())
    }

    fn address(&self, thread: usize, (at, offset): (From, i64)) -> u64 {
        self.value(thread, at).wrapping_add(offset as u64)
    }

    fn aligned(&self, thread: usize, address: u64, bytes: usize) -> Result<(), Fault> {
        match address.is_multiple_of(bytes as u64) {
            true => Ok(()),
            false => {
                let detail = format!("{bytes} bytes at {address:#x}");
                Err(self.fault(thread, Wrong::Misaligned, detail))
            }
        }
    }

    fn refused(
        &self,
        thread: usize,
        (wrong, other): (Wrong, Option<u32>),
        address: u64,
        space: Space,
    ) -> Fault {
        let with = match other {
            Some(0xFFFE) => " with several threads".to_owned(),
            Some(other) => format!(" with thread {other}"),
            None => String::new(),
        };
        self.fault(thread, wrong, format!("{space:?} {address:#x}{with}"))
    }

    fn load(
        &mut self,
        thread: usize,
        space: Space,
        ty: Type,
        to: &[u32],
        at: (From, i64),
    ) -> Result<(), Fault> {
        let size = (ty.bits / 8) as usize;
        let bytes = size * to.len();
        let address = self.address(thread, at);
        self.aligned(thread, address, bytes)?;
        let (epoch, id) = (*self.epoch, thread as u32);
        let mut data = [0; 16];
        match space {
            Space::Global => match self.global.read(address, bytes, epoch, id) {
                Ok(from) => data[..bytes].copy_from_slice(from),
                Err(wrong) => return Err(self.refused(thread, wrong, address, space)),
            },
            Space::Shared => match self.shared.access(address, bytes, epoch, id, false) {
                Ok(at) => data[..bytes].copy_from_slice(&self.shared.bytes[at..at + bytes]),
                Err(wrong) => return Err(self.refused(thread, wrong, address, space)),
            },
        }
        if space == Space::Global {
            self.statistics.global_read += bytes as u64;
        }
        for (i, &to) in to.iter().enumerate() {
            let mut eight = [0; 8];
            eight[..size].copy_from_slice(&data[i * size..(i + 1) * size]);
            let x = u64::from_le_bytes(eight);
            // A narrow number is extended to its register.
            let x = match (ty.kind, ty.bits) {
                (Kind::Signed, 8) => u64::from(x as i8 as u32),
                (Kind::Signed, 16) => u64::from(x as i16 as u32),
                _ => x,
            };
            self.set(thread, to, x);
        }
        Ok(())
    }

    fn store(
        &mut self,
        thread: usize,
        space: Space,
        ty: Type,
        at: (From, i64),
        from: &[From],
    ) -> Result<(), Fault> {
        let size = (ty.bits / 8) as usize;
        let bytes = size * from.len();
        let address = self.address(thread, at);
        self.aligned(thread, address, bytes)?;
        let mut data = [0; 16];
        for (i, &from) in from.iter().enumerate() {
            let x = self.value(thread, from).to_le_bytes();
            data[i * size..(i + 1) * size].copy_from_slice(&x[..size]);
        }
        let (epoch, id) = (*self.epoch, thread as u32);
        match space {
            Space::Global => match self.global.write(address, bytes, epoch, id) {
                Ok(to) => to.copy_from_slice(&data[..bytes]),
                Err(wrong) => return Err(self.refused(thread, wrong, address, space)),
            },
            Space::Shared => match self.shared.access(address, bytes, epoch, id, true) {
                Ok(at) => self.shared.bytes[at..at + bytes].copy_from_slice(&data[..bytes]),
                Err(wrong) => return Err(self.refused(thread, wrong, address, space)),
            },
        }
        if space == Space::Global {
            self.statistics.global_written += bytes as u64;
        }
        Ok(())
    }

    /// Begins a copy: what is read is read now, nobody may touch the place until the copy is waited for.
    fn copy(
        &mut self,
        thread: usize,
        bytes: usize,
        to: (From, i64),
        from: (From, i64),
        count: Option<From>,
    ) -> Result<(), Fault> {
        let (to, from) = (self.address(thread, to), self.address(thread, from));
        self.aligned(thread, to, bytes)?;
        let count = count.map_or(bytes, |c| {
            (self.value(thread, c) as u32 as usize).min(bytes)
        });
        let (epoch, id) = (*self.epoch, thread as u32);
        let mut data = vec![0; bytes];
        if count > 0 {
            self.aligned(thread, from, bytes)?;
            match self.global.read(from, count, epoch, id) {
                Ok(source) => data[..count].copy_from_slice(source),
                Err(wrong) => return Err(self.refused(thread, wrong, from, Space::Global)),
            }
            self.statistics.global_read += count as u64;
        }
        match self.shared.access(to, bytes, epoch, id, true) {
            Ok(to) => {
                self.shared.set_pending(to, bytes, true);
                self.threads[thread].copies.push(Copy { to, data });
                Ok(())
            }
            Err(wrong) => Err(self.refused(thread, wrong, to, Space::Shared)),
        }
    }

    /// Ends all groups of copies of a thread but the newest `left`.
    fn wait(&mut self, thread: usize, left: usize) -> Result<(), Fault> {
        let groups = &mut self.threads[thread].groups;
        let done = groups.len().saturating_sub(left);
        let done: Vec<Copy> = groups.drain(..done).flatten().collect();
        for copy in done {
            let bytes = copy.data.len();
            self.shared.set_pending(copy.to, bytes, false);
            // It is written now: others see it after a barrier.
            let (epoch, id) = (*self.epoch, thread as u32);
            match self.shared.access(copy.to as u64, bytes, epoch, id, true) {
                Ok(at) => self.shared.bytes[at..at + bytes].copy_from_slice(&copy.data),
                Err(wrong) => {
                    return Err(self.refused(thread, wrong, copy.to as u64, Space::Shared));
                }
            }
        }
        Ok(())
    }

    /// What the lanes of a warp hold, 32 bits each.
    fn held<const N: usize>(&self, first: usize, from: &[From; N]) -> [[u32; N]; WARP] {
        std::array::from_fn(|l| from.map(|f| self.value(first + l, f) as u32))
    }

    /// Gives the lanes of a warp their parts of a product.
    fn put(&mut self, first: usize, to: &[u32; 4], product: &[[u32; 4]; WARP]) {
        for (l, numbers) in product.iter().enumerate() {
            for (&to, &x) in to.iter().zip(numbers) {
                self.set(first + l, to, u64::from(x));
            }
        }
        self.statistics.matrix_products += 1;
    }

    /// What a warp does together.
    fn together(&mut self, first: usize, instruction: &Instruction) -> Result<(), Fault> {
        match &instruction.op {
            Op::Shfl {
                butterfly,
                to,
                from,
                lane,
            } => {
                let held: Vec<u64> = (0..WARP).map(|l| self.value(first + l, *from)).collect();
                for l in 0..WARP {
                    let b = self.value(first + l, *lane) as usize & (WARP - 1);
                    let source = if *butterfly { l ^ b } else { b };
                    self.set(first + l, *to, held[source] & 0xFFFF_FFFF);
                }
            }
            Op::LdMatrix {
                transposed,
                to,
                at,
                offset,
            } => self.load_matrices(first, *transposed, to, (*at, *offset))?,
            Op::Mma { kind, to, a, b, c } => {
                let (a, b, c) = (
                    self.held(first, a),
                    self.held(first, b),
                    self.held(first, c),
                );
                let d = matrix::multiply(*kind, &a, &b, &c);
                self.put(first, to, &d);
            }
            Op::SparseMma {
                to,
                a,
                b,
                c,
                places,
                selector,
            } => {
                let (a, b, c) = (
                    self.held(first, a),
                    self.held(first, b),
                    self.held(first, c),
                );
                let places = self.held(first, &[*places]).map(|[places]| places);
                match matrix::multiply_sparse(&a, &b, &c, &places, *selector) {
                    Ok(d) => self.put(first, to, &d),
                    Err(lane) => {
                        let detail = format!("{:#010x}", places[lane]);
                        return Err(self.fault(first + lane, Wrong::Metadata, detail));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Matrices of 8 rows of 16 bytes: lane `8 m + i` has the address of row `i` of matrix `m`; lane `l` gets of each
    /// elements `2 (l % 4)` and the next of row `l / 4`, or of that column.
    fn load_matrices(
        &mut self,
        first: usize,
        transposed: bool,
        to: &[u32],
        at: (From, i64),
    ) -> Result<(), Fault> {
        for (m, &to) in to.iter().enumerate() {
            let mut elements = [[0u64; 8]; 8];
            for (i, row) in elements.iter_mut().enumerate() {
                let lane = first + 8 * m + i;
                let address = self.address(lane, at);
                self.aligned(lane, address, 16)?;
                let (epoch, id) = (*self.epoch, lane as u32);
                let place = match self.shared.access(address, 16, epoch, id, false) {
                    Ok(place) => place,
                    Err(wrong) => return Err(self.refused(lane, wrong, address, Space::Shared)),
                };
                for (j, element) in row.iter_mut().enumerate() {
                    let at = place + 2 * j;
                    let b = &self.shared.bytes[at..at + 2];
                    *element = u64::from(u16::from_le_bytes([b[0], b[1]]));
                }
            }
            for l in 0..WARP {
                let (i, j) = (l / 4, 2 * (l % 4));
                let [low, high] = match transposed {
                    false => [elements[i][j], elements[i][j + 1]],
                    true => [elements[j][i], elements[j + 1][i]],
                };
                self.set(first + l, to, high << 16 | low);
            }
        }
        Ok(())
    }
}
