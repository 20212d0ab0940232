//! The thread pool: one fork-join per kernel, hundreds per inference, so its cost must be well under 1 µs.
//!
//! Each thread gets one contiguous range of blocks (shared counters would cut memory streams to pieces)
//! and works through it front to back in a few pieces; a thread that has finished takes the back half of
//! the largest range left, so that a core taken away by somebody else costs little. Waiting threads spin
//! for some tens of microseconds, longer than the gap between two kernels, then park. The caller works as
//! thread 0, and waits only for workers that have begun: one that wakes late finds the job closed.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// What runs on every thread: `(thread_index, begin, end)`, for blocks `begin..end`.
pub type Body<'a> = dyn Fn(usize, u64, u64) + Sync + 'a;

/// How long a thread that waits keeps its core before it parks.
const SPIN: Duration = Duration::from_micros(50);

/// A thread takes its range in this many pieces, so that the rest can be taken over.
const PIECES: u32 = 8;

/// A fixed set of threads that work on one job at a time. Dropping it ends the threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The cores that workers are pinned to, if they are.
    cores: Option<Vec<usize>>,
    /// Held by the caller whose job the workers do.
    busy: AtomicBool,
}

impl Pool {
    /// Starts `threads - 1` workers (the caller of [`Pool::run`] is the remaining thread); 0 counts as 1.
    ///
    /// With `pin`, each worker stays on one core, if the process may use all cores and the pool uses at
    /// least half of them; otherwise pinning could only do harm, and is left out. The calling thread is
    /// never pinned here, see [`pin_this_thread`].
    ///
    /// If the system refuses to start a thread, the pool is smaller: see [`Pool::threads`].
    pub fn new(threads: usize, pin: bool) -> Pool {
        let cores = if pin {
            affinity::cores_to_pin(threads)
        } else {
            None
        };
        let shared = Arc::new(Shared::new(threads.max(1)));
        let mut workers = Vec::new();
        for index in 1..threads {
            let core = cores.as_ref().map(|c| c[index % c.len()]);
            let worker_shared = Arc::clone(&shared);
            let spawned = std::thread::Builder::new()
                .name(format!("lapidary-{index}"))
                .spawn(move || {
                    if let Some(core) = core {
                        affinity::pin(&[core]);
                    }
                    worker_shared.work(index);
                });
            match spawned {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        Pool {
            shared,
            workers,
            cores,
            busy: AtomicBool::new(false),
        }
    }

    /// Threads that work on a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Lets the calling thread, which was started by a pinned one, use every core that threads of the pool are pinned to.
    pub fn unpin_this_thread(&self) {
        if let Some(cores) = &self.cores {
            affinity::pin(cores);
        }
    }

    /// Calls `body` on disjoint ranges that cover `0..n_blocks`, and returns when all are done.
    ///
    /// Ranges begin at multiples of `grain` (the fewest blocks worth a call; 0 counts as 1). The thread
    /// index is below [`Pool::threads`], and no two calls of one `run` with the same index overlap in
    /// time. While the workers are busy with another caller's job, or when called from inside a job, the
    /// caller does all blocks itself, as thread 0.
    ///
    /// # Panics
    /// Passes on a panic of `body`, after all threads have left it. Some blocks are then not done.
    pub fn run(&self, n_blocks: u64, grain: u64, body: &Body) {
        if n_blocks == 0 {
            return;
        }
        // Ranges are kept as two 32-bit counts of pieces of `grain` blocks.
        let grain = grain.max(1).max(n_blocks.div_ceil(u32::MAX as u64));
        let units = n_blocks.div_ceil(grain) as u32;
        let alone = self.workers.is_empty() || units < 2;
        if alone || self.busy.swap(true, Ordering::Acquire) {
            return body(0, 0, n_blocks);
        }
        let result = self.run_shared(
            Job {
                body,
                n_blocks,
                grain,
            },
            units,
        );
        self.busy.store(false, Ordering::Release);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    fn run_shared(&self, job: Job, units: u32) -> Result<(), Box<dyn Any + Send>> {
        let shared = &*self.shared;
        let threads = self.threads().min(units as usize) as u64;
        for (i, range) in shared.ranges.iter().enumerate() {
            let cut = |i: u64| (i.min(threads) * units as u64 / threads) as u32;
            range
                .0
                .store(pack(cut(i as u64), cut(i as u64 + 1)), Ordering::Relaxed);
        }
        shared.open(job);
        for worker in 1..threads as usize {
            if shared.sleeping[worker].0.load(Ordering::SeqCst) {
                self.workers[worker - 1].thread().unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.take_part(0, &job)));
        shared.close();
        let theirs = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        mine.and(theirs.map_or(Ok(()), Err))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.fetch_or(QUIT, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker ends only by returning: panics of jobs are caught inside.
            let _ = worker.join();
        }
    }
}

/// Pins the calling thread to the process' first core, under the same conditions as [`Pool::new`] pins
/// its workers to the others. For programs that own their main thread; a library should not do this.
pub fn pin_this_thread(threads: usize) {
    if let Some(cores) = affinity::cores_to_pin(threads) {
        affinity::pin(&cores[..1]);
    }
}

/// A job as the threads see it.
#[derive(Clone, Copy)]
struct Job<'a> {
    body: &'a Body<'a>,
    n_blocks: u64,
    grain: u64,
}

/// On its own pair of cache lines (CPUs fetch neighbours along).
#[repr(align(128))]
struct Padded<T>(T);

/// Gate: job number (upper bits), whether workers may join, whether the caller parks, number inside.
const JOB: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;
const CALLER_PARKED: u64 = 1 << 30;
const QUIT: u64 = 1 << 29;
const INSIDE: u64 = QUIT - 1;

#[repr(align(128))]
struct Shared {
    gate: AtomicU64,
    /// Written by the caller while nobody is inside and the gate is closed; read by those inside.
    job: UnsafeCell<Option<Job<'static>>>,
    /// For each thread, the units it has still to do.
    ranges: Vec<Padded<AtomicU64>>,
    sleeping: Vec<Padded<AtomicBool>>,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is only accessed under the gate's protocol; the rest is synchronised by its types.
unsafe impl Sync for Shared {}
// SAFETY: a `Job` is a shared reference to something `Sync`, and numbers.
unsafe impl Send for Shared {}

impl Shared {
    fn new(threads: usize) -> Shared {
        Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            ranges: (0..threads).map(|_| Padded(AtomicU64::new(0))).collect(),
            sleeping: (0..threads)
                .map(|_| Padded(AtomicBool::new(false)))
                .collect(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        }
    }

    /// Caller: publishes a job. It must `close` before the job's borrow ends.
    fn open(&self, job: Job) {
        // SAFETY: only the lifetime changes; `close` returns only when no worker can use it any more.
        let job: Job<'static> = unsafe { std::mem::transmute(job) };
        // SAFETY: the gate is closed and nobody is inside, so nobody else looks at the cell.
        unsafe { *self.job.get() = Some(job) };
        let number = self.gate.load(Ordering::Relaxed) / JOB + 1;
        // Sequentially consistent, as are the accesses to `sleeping`: either the caller sees that a
        // worker sleeps, or the worker sees the job.
        self.gate
            .store(number.wrapping_mul(JOB) | OPEN, Ordering::SeqCst);
    }

    /// Caller: lets nobody in any more and waits until those inside have left.
    fn close(&self) {
        let mut state = self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spin = Spin::default();
        while state & INSIDE != 0 {
            if spin.go_on() {
                state = self.gate.load(Ordering::Acquire);
                continue;
            }
            *self.caller.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(std::thread::current());
            state = self.gate.fetch_or(CALLER_PARKED, Ordering::AcqRel);
            if state & INSIDE != 0 {
                std::thread::park();
                state = self.gate.load(Ordering::Acquire);
            }
        }
    }

    /// Worker: does jobs until the pool is dropped.
    fn work(&self, index: usize) {
        let mut done = 0;
        loop {
            let state = self.wait_for_job(index, done);
            if state & QUIT != 0 {
                return;
            }
            if self
                .gate
                .compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            done = state / JOB;
            // SAFETY: inside the gate the job is not changed, and its borrow lasts until we have left.
            let job = unsafe { *self.job.get() };
            let result = catch_unwind(AssertUnwindSafe(|| {
                if let Some(job) = job {
                    self.take_part(index, &job);
                }
            }));
            if let Err(panic) = result {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            let before = self.gate.fetch_sub(1, Ordering::AcqRel);
            if before & CALLER_PARKED != 0 && before & INSIDE == 1 {
                // Possibly a later caller by now; an extra unpark does no harm.
                if let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner) {
                    caller.unpark();
                }
            }
        }
    }

    /// Worker: the gate's state once it is open for a job not yet done, or the pool ends.
    fn wait_for_job(&self, index: usize, done: u64) -> u64 {
        let ready = |state: u64| state & QUIT != 0 || (state & OPEN != 0 && state / JOB != done);
        let mut spin = Spin::default();
        loop {
            let state = self.gate.load(Ordering::Acquire);
            if ready(state) {
                return state;
            }
            if spin.go_on() {
                continue;
            }
            self.sleeping[index].0.store(true, Ordering::SeqCst);
            while !ready(self.gate.load(Ordering::SeqCst)) {
                std::thread::park();
            }
            self.sleeping[index].0.store(false, Ordering::SeqCst);
        }
    }

    /// Does the thread's own range, then what others have left.
    fn take_part(&self, index: usize, job: &Job) {
        let own = &self.ranges[index].0;
        loop {
            let (begin, end) = unpack(own.load(Ordering::Relaxed));
            let piece = (end - begin).div_ceil(PIECES).max(1);
            while let Some((begin, end)) = take_front(own, piece) {
                (job.body)(
                    index,
                    begin as u64 * job.grain,
                    (end as u64 * job.grain).min(job.n_blocks),
                );
            }
            let Some((begin, end)) = self.take_back_half(index) else {
                return;
            };
            // Nobody writes to an empty range but its thread, so a plain store is enough.
            own.store(pack(begin, end), Ordering::Relaxed);
        }
    }

    /// The back half of the largest range of another thread, or `None` when all are empty.
    fn take_back_half(&self, index: usize) -> Option<(u32, u32)> {
        loop {
            let others = self.ranges.iter().enumerate().filter(|&(i, _)| i != index);
            let (victim, state) = others
                .map(|(_, r)| (&r.0, r.0.load(Ordering::Relaxed)))
                .max_by_key(|&(_, s)| len(s))?;
            if len(state) == 0 {
                return None;
            }
            let (begin, end) = unpack(state);
            let middle = begin + (end - begin) / 2;
            // Equal bits are an equal state, so it does not matter whether it changed in between.
            if victim
                .compare_exchange(
                    state,
                    pack(begin, middle),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
            {
                return Some((middle, end));
            }
        }
    }
}

fn pack(begin: u32, end: u32) -> u64 {
    (begin as u64) << 32 | end as u64
}

fn unpack(range: u64) -> (u32, u32) {
    ((range >> 32) as u32, range as u32)
}

fn len(range: u64) -> u32 {
    let (begin, end) = unpack(range);
    end - begin
}

/// Takes at most `n` units from the front.
fn take_front(range: &AtomicU64, n: u32) -> Option<(u32, u32)> {
    let mut state = range.load(Ordering::Relaxed);
    loop {
        let (begin, end) = unpack(state);
        if begin == end {
            return None;
        }
        let middle = begin + n.min(end - begin);
        match range.compare_exchange_weak(
            state,
            pack(middle, end),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            Ok(_) => return Some((begin, middle)),
            Err(now) => state = now,
        }
    }
}

/// Counts a wait: looks at the clock only now and then.
#[derive(Default)]
struct Spin {
    rounds: u32,
    since: Option<Instant>,
}

impl Spin {
    /// Spins a little; false once [`SPIN`] has passed.
    fn go_on(&mut self) -> bool {
        std::hint::spin_loop();
        self.rounds += 1;
        if !self.rounds.is_multiple_of(64) {
            return true;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}

#[cfg(target_os = "linux")]
mod affinity {
    //! Which cores the process may use, and keeping a thread on one.

    use std::mem::{size_of, zeroed};

    /// The cores to pin `threads` threads to, or `None` when pinning is not wise: the process was given
    /// a part of the machine, or leaves most of it idle (another process would choose the same cores).
    pub fn cores_to_pin(threads: usize) -> Option<Vec<usize>> {
        // SAFETY: the set is plain data that the call fills; sizes are those of the set.
        let (allowed, online) = unsafe {
            let mut set: libc::cpu_set_t = zeroed();
            if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
                return None;
            }
            let allowed: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
                .filter(|&c| libc::CPU_ISSET(c, &set))
                .collect();
            (allowed, libc::sysconf(libc::_SC_NPROCESSORS_ONLN))
        };
        let wise = usize::try_from(online) == Ok(allowed.len())
            && threads <= allowed.len()
            && 2 * threads >= allowed.len();
        (wise && threads > 1).then_some(allowed)
    }

    /// Keeps the calling thread on these cores; a refusal is ignored, since only speed depends on it.
    pub fn pin(cores: &[usize]) {
        // SAFETY: the cores came from a set of this size.
        unsafe {
            let mut set: libc::cpu_set_t = zeroed();
            cores.iter().for_each(|&core| libc::CPU_SET(core, &mut set));
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    //! No pinning on this system.

    pub fn cores_to_pin(_threads: usize) -> Option<Vec<usize>> {
        None
    }

    pub fn pin(_cores: &[usize]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Runs a job and checks that each block was done once, by ranges that begin at the grain.
    fn check(pool: &Pool, n: u64, grain: u64) {
        let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        pool.run(n, grain, &|thread, begin, end| {
            assert!(
                thread < pool.threads() && begin < end && end <= n && begin % grain.max(1) == 0
            );
            counts[begin as usize..end as usize]
                .iter()
                .for_each(|c| _ = c.fetch_add(1, Ordering::Relaxed));
        });
        assert!(
            counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
            "{n} blocks, grain {grain}"
        );
    }

    #[test]
    fn every_block_is_done_once() {
        for threads in [0, 1, 2, 3, 5] {
            for pin in [false, true] {
                let pool = Pool::new(threads, pin);
                assert_eq!(pool.threads(), threads.max(1));
                for n in [0, 1, 2, 3, 7, 64, 1000] {
                    for grain in [0, 1, 2, 3, 64, 5000] {
                        check(&pool, n, grain);
                    }
                }
            }
        }
    }

    #[test]
    fn more_blocks_than_32_bits() {
        let pool = Pool::new(3, false);
        let n = u64::MAX / 2 - 12345;
        let sum = AtomicU64::new(0);
        pool.run(n, 1, &|_, begin, end| {
            _ = sum.fetch_add(end - begin, Ordering::Relaxed)
        });
        assert_eq!(sum.into_inner(), n);
    }

    #[test]
    fn many_tiny_jobs_with_and_without_pauses() {
        let pool = Pool::new(3, false);
        let total = AtomicU64::new(0);
        let body =
            |_: usize, begin: u64, end: u64| _ = total.fetch_add(end - begin, Ordering::Relaxed);
        let mut want = 0;
        for i in 0..20_000u64 {
            if i % 400 == 0 {
                // Long enough for workers to park.
                std::thread::sleep(Duration::from_micros(200));
            }
            pool.run(i % 9, 1, &body);
            want += i % 9;
            assert_eq!(total.load(Ordering::Relaxed), want);
        }
    }

    #[test]
    fn callers_may_share_a_pool_and_nest() {
        let pool = Pool::new(3, false);
        std::thread::scope(|scope| {
            for n in [5, 64, 100] {
                let pool = &pool;
                scope.spawn(move || (0..500).for_each(|_| check(pool, n, 1)));
            }
        });
        pool.run(8, 1, &|_, _, _| check(&pool, 10, 1));
    }

    #[test]
    fn thread_indices_do_not_overlap() {
        let pool = Pool::new(4, false);
        let inside: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
        for _ in 0..2000 {
            pool.run(40, 1, &|thread, _, _| {
                assert!(!inside[thread].swap(true, Ordering::AcqRel));
                inside[thread].store(false, Ordering::Release);
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3, false);
        for at in [0u64, 50, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, 1, &|_, begin, end| {
                    assert!(!(begin..end).contains(&at), "block {at}")
                });
            }));
            assert!(result.is_err(), "block {at}");
            check(&pool, 100, 1);
        }
    }

    #[test]
    fn a_slow_thread_loses_its_tail() {
        let pool = Pool::new(2, false);
        let by_thread = [AtomicU64::new(0), AtomicU64::new(0)];
        pool.run(1000, 1, &|thread, begin, end| {
            by_thread[thread].fetch_add(end - begin, Ordering::Relaxed);
            if thread == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let [caller, worker] = by_thread.map(AtomicU64::into_inner);
        assert_eq!(caller + worker, 1000);
    }
}
