//! Independent pieces of work over all processors, by scoped threads.
//!
//! Pieces are cut by the caller, in sizes that do not depend on the number of threads, so that results are the same on
//! every machine of one kind.

use std::sync::{Mutex, PoisonError};

/// Rows of a matrix that make one piece of work.
pub const ROWS: usize = 64;

/// Calls `body` on every task, in no particular order.
pub fn for_each<T: Send>(tasks: Vec<T>, body: impl Fn(T) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = threads.min(tasks.len());
    if threads <= 1 {
        tasks.into_iter().for_each(body);
        return;
    }
    let queue = Mutex::new(tasks.into_iter());
    let work = || {
        loop {
            let task = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            match task {
                Some(task) => body(task),
                None => return,
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| {
            scope.spawn(work);
        });
        work();
    });
}

/// `f` of every index below `count`, in order.
pub fn map<R: Send>(count: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let mut out: Vec<Option<R>> = (0..count).map(|_| None).collect();
    let piece = count.div_ceil(256).max(1);
    let tasks = out.chunks_mut(piece).enumerate().collect();
    for_each(tasks, |(at, slots): (usize, &mut [Option<R>])| {
        for (k, slot) in slots.iter_mut().enumerate() {
            *slot = Some(f(at * piece + k));
        }
    });
    out.into_iter()
        .map(|r| r.expect("every slot was filled"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order() {
        assert_eq!(
            map(1000, |i| i * 2),
            (0..1000).map(|i| i * 2).collect::<Vec<_>>()
        );
        assert!(map(0, |i| i).is_empty());
    }
}
