//! Readers, verifier and inference on mutated input: no panic, no hang, bounded memory.
//!
//! The functions and mutations are those of the fuzz targets in `fuzz/`, driven here without libFuzzer, from
//! the seeds kept in `fuzz/corpus`, in the same order on every run. `LAPIDARY_FUZZ_SECONDS=600` runs each one
//! longer, with other seeds; a failure names the input, which is written to the temporary folder.

#[path = "../fuzz/src/lib.rs"]
#[allow(missing_docs, reason = "documented in its own workspace")]
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use targets::random::Random;

/// Most memory that one small input may take.
const MAX_BYTES: usize = 64 << 20;

/// Longest that one small input may take, in a build without optimisation on a busy machine.
const MAX_TIME: Duration = Duration::from_secs(20);

thread_local! {
    static NOW: AtomicUsize = const { AtomicUsize::new(0) };
    static PEAK: AtomicUsize = const { AtomicUsize::new(0) };
}

/// Counts what each thread holds, as closely as needed: each target runs in one thread.
struct Counting;

fn grow(bytes: usize) {
    let _ = NOW.try_with(|now| {
        let held = now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let _ = PEAK.try_with(|peak| peak.fetch_max(held, Ordering::Relaxed));
    });
}

fn shrink(bytes: usize) {
    let _ = NOW.try_with(|now| {
        let held = now.load(Ordering::Relaxed);
        now.store(held.saturating_sub(bytes), Ordering::Relaxed);
    });
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        grow(new_size);
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Seeds of a target, by name.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    files.iter().filter_map(|f| std::fs::read(f).ok()).collect()
}

thread_local! {
    /// Where and why this thread last panicked.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

/// From now on, panics of inputs are noted; others are shown as usual.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !WATCHING.get() {
                return usual(info);
            }
            let place = info
                .location()
                .map_or(String::new(), |l| format!("{}:{}", l.file(), l.line()));
            let why: String = info
                .payload_as_str()
                .unwrap_or_default()
                .chars()
                .take(2000)
                .collect();
            PANIC.set(format!("{place}: {why}"));
        }));
    });
}

/// What an input did that it must not, or nothing.
fn watched(run: fn(&[u8]), input: &[u8]) -> Option<String> {
    let before = NOW.with(|n| n.load(Ordering::Relaxed));
    PEAK.with(|p| p.store(before, Ordering::Relaxed));
    let start = Instant::now();
    WATCHING.set(true);
    let panicked = catch_unwind(AssertUnwindSafe(|| run(input))).is_err();
    WATCHING.set(false);
    let time = start.elapsed();
    let peak = PEAK
        .with(|p| p.load(Ordering::Relaxed))
        .saturating_sub(before);
    match () {
        () if panicked => Some(PANIC.with_borrow(String::clone)),
        () if peak > MAX_BYTES => Some(format!("takes {} MB", peak >> 20)),
        () if time > MAX_TIME => Some(format!("takes {time:?}")),
        () => None,
    }
}

/// What went wrong, each cause with its shortest input.
#[derive(Default)]
struct Failures(BTreeMap<String, Vec<u8>>);

impl Failures {
    fn add(&mut self, why: String, input: &[u8]) {
        // Numbers and names differ from input to input; the place does not.
        let cause = why.split(": ").next().unwrap_or_default().to_owned();
        let known = self
            .0
            .iter()
            .find(|(w, _)| w.starts_with(&cause))
            .map(|(w, i)| (w.clone(), i.len()));
        match known {
            Some((_, len)) if len <= input.len() => return,
            Some((w, _)) => drop(self.0.remove(&w)),
            None => {}
        }
        self.0.insert(why, input.to_vec());
    }

    /// Keeps the inputs, and panics if there are any.
    fn report(&self, target: &str) {
        let mut text = String::new();
        for (i, (why, input)) in self.0.iter().enumerate() {
            let file = std::env::temp_dir().join(format!("lapidary-fuzz-{target}-{i}"));
            let kept = std::fs::write(&file, input).map_or("not written", |()| "written");
            text += &format!("{why}\n  input {kept}: {}\n", file.display());
        }
        assert!(text.is_empty(), "{target}:\n{text}");
    }
}

/// Seeds as they are, then mutations of them and of what came before.
fn fuzz(target: &str, run: fn(&[u8]), mutate: fn(&[u8], &mut Random) -> Vec<u8>) {
    let longer = std::env::var("LAPIDARY_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let (seed, limit) = match longer {
        Some(seconds) => (std::process::id().into(), Duration::from_secs(seconds)),
        None => (1, Duration::from_secs(5)),
    };
    let cases = if longer.is_some() { usize::MAX } else { 20_000 };
    let mut pool = seeds(target);
    assert!(!pool.is_empty());
    listen();
    let mut failures = Failures::default();
    let start = Instant::now();
    for input in &pool {
        if let Some(why) = watched(run, input) {
            failures.add(why, input);
        }
    }
    let mut random = Random::new(seed);
    let mut n = 0;
    while n < cases && start.elapsed() < limit {
        let mut input = random.pick(&pool).cloned().unwrap_or_default();
        input = match random.below(4) {
            0 => flip(input, &mut random),
            _ => mutate(&input, &mut random),
        };
        input.truncate(1 << 16);
        if let Some(why) = watched(run, &input) {
            failures.add(why, &input);
        }
        if random.below(4) == 0 {
            // A later input starts from this one. The first ones stay as they are.
            let at = seeds_kept(pool.len()) + random.below(64);
            if at < pool.len() {
                pool[at] = input
            } else {
                pool.push(input)
            }
        }
        n += 1;
    }
    println!("{target}: {n} inputs, seed {seed}, {:?}", start.elapsed());
    failures.report(target);
}

/// How many of the pool's inputs are never replaced.
fn seeds_kept(len: usize) -> usize {
    len.min(64)
}

/// Bytes changed, cut off, added.
fn flip(mut input: Vec<u8>, random: &mut Random) -> Vec<u8> {
    for _ in 0..=random.below(6) {
        let at = random.below(input.len());
        match random.below(4) {
            0 => input.truncate(at),
            1 => input.insert(at, random.next() as u8),
            _ if input.is_empty() => {}
            _ => input[at] ^= 1 << random.below(8),
        }
    }
    input
}

/// Random bytes behind some that were there.
fn grown(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = flip(input.to_vec(), random);
    out.extend((0..random.below(400)).map(|_| random.next() as u8));
    out.truncate(2000);
    out
}

#[test]
fn onnx_reader() {
    fuzz("onnx", targets::onnx, targets::wire::mutate);
}

#[test]
fn gguf_reader() {
    fuzz("gguf", targets::gguf, targets::numbers::mutate);
}

#[test]
fn text_reader() {
    fuzz("text", targets::text, targets::words::mutate);
}

#[test]
fn verifier_and_inference() {
    fuzz("graph", targets::graph, grown);
}
