//! What this machine can do: the arithmetic and memory speed that `bench` sets beside what a model reaches.

use crate::bytes::Bytes;
use crate::error::RunError;
use crate::micro;
use crate::pool::Pool;
use lapidary_abi::kernel::{GemmF32, Import, MAX_ROWS_F32, PANEL_F32};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Measured speeds of all threads together.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// 32-bit floating-point operations, 10^9 in a second: a matrix product out of the first-level cache.
    pub gflops: f64,
    /// Bytes read from memory, 10^9 in a second.
    pub gbytes: f64,
}

/// Time given to each measurement.
const TIME: Duration = Duration::from_millis(150);

/// Row length of the measured product: panel and rows stay in the first-level cache.
const K: usize = 256;

/// Bytes of a line of the panel.
const LINE: usize = PANEL_F32 * 4;

/// Bytes that are read of memory: more than caches hold.
const READ: usize = 128 << 20;

/// Bytes of a run of a measurement at least.
const LEAST_READ: usize = 8 << 20;

/// Measures for this many threads; takes about half a second.
pub fn measure(threads: usize) -> Result<Ceilings, RunError> {
    let pool = Pool::new(threads, true);
    Ok(Ceilings {
        gflops: arithmetic(&pool)?,
        gbytes: reading(&pool, READ)?,
    })
}

/// The best of many short runs of `body`, in seconds.
fn best(mut body: impl FnMut()) -> f64 {
    body();
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < TIME {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn arithmetic(pool: &Pool) -> Result<f64, RunError> {
    const TIMES: usize = 200;
    let threads = pool.threads();
    let kernel = gemm();
    let a = Bytes::zeroed(MAX_ROWS_F32 * K * 4)?;
    let b = Bytes::zeroed(PANEL_F32 * K * 4)?;
    let c: Vec<Bytes> = (0..threads)
        .map(|_| Bytes::zeroed(MAX_ROWS_F32 * PANEL_F32 * 4))
        .collect::<Result<_, _>>()?;
    let seconds = best(|| {
        pool.run(threads as u64, 1, &|_, begin, end| {
            let row = a.address() as *const f32;
            let rows: [*const f32; MAX_ROWS_F32] =
                core::array::from_fn(|r| row.wrapping_add(r * K));
            for block in begin..end {
                let result = c[block as usize].address().cast();
                let tile = product(&rows, b.address() as *const f32, result);
                for _ in 0..TIMES {
                    // SAFETY: the tile describes the buffers above; each block writes its own.
                    unsafe { kernel(&tile) };
                }
            }
        })
    });
    let operations = 2 * MAX_ROWS_F32 * PANEL_F32 * K * TIMES * threads;
    Ok(operations as f64 / seconds / 1e9)
}

/// Bytes that all threads of a pool together read in a nanosecond, of so many that they read again and again. They are read as kernels read
/// weights: by products of one row.
pub fn reading(pool: &Pool, bytes: usize) -> Result<f64, RunError> {
    let threads = pool.threads();
    let kernel = gemm();
    let mut data = Bytes::zeroed(bytes)?;
    // Every page gets memory of its own: untouched ones would all be the same zero page.
    data.as_mut_slice().fill(1);
    let row = Bytes::zeroed(K * 4)?;
    let lines = bytes / LINE;
    // Short runs would measure how they are begun.
    let times = (LEAST_READ / bytes.max(1)).max(1);
    let seconds = best(|| {
        pool.run(threads as u64, 1, &|_, begin, end| {
            let (from, to) = (begin as usize * lines, end as usize * lines);
            let mut c = [0f32; PANEL_F32];
            for _ in 0..times {
                for first in (from / threads..to / threads).step_by(K) {
                    let k = K.min(to / threads - first);
                    let rows = [row.address() as *const f32];
                    let panel = data.address().wrapping_add(first * LINE);
                    let tile = GemmF32 {
                        k,
                        rows: 1,
                        ..product(&rows, panel as *const f32, c.as_mut_ptr())
                    };
                    // SAFETY: the row has `K` elements, the panel `k` lines, the result a line.
                    unsafe { kernel(&tile) };
                }
            }
            black_box(c);
        })
    });
    Ok((lines * LINE * times) as f64 / seconds / 1e9)
}

/// The kernel of matrix products.
fn gemm() -> unsafe extern "C" fn(*const GemmF32) {
    // SAFETY: the table holds a function of this type at this index.
    unsafe { core::mem::transmute(micro::table()[Import::GemmF32 as usize]) }
}

/// A tile of [`K`] numbers in a row.
fn product(rows: &[*const f32], panel: *const f32, result: *mut f32) -> GemmF32 {
    GemmF32 {
        a: rows.as_ptr(),
        b: panel,
        c: result,
        bias: core::ptr::null(),
        residual: core::ptr::null(),
        c_stride: PANEL_F32,
        residual_stride: 0,
        k: K,
        taps: 1,
        rows: rows.len() as u32,
        cols: PANEL_F32 as u32,
        width: PANEL_F32 as u32,
        lo: f32::NEG_INFINITY,
        hi: f32::INFINITY,
        accumulate: 0,
    }
}
