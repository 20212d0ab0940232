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
    // SAFETY: the table holds a function of this type at this index.
    let kernel: unsafe extern "C" fn(*const GemmF32) =
        unsafe { core::mem::transmute(micro::table()[Import::GemmF32 as usize]) };
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
                let tile = GemmF32 {
                    a: rows.as_ptr(),
                    b: b.address() as *const f32,
                    c: c[block as usize].address().cast(),
                    bias: core::ptr::null(),
                    residual: core::ptr::null(),
                    c_stride: PANEL_F32,
                    residual_stride: 0,
                    k: K,
                    taps: 1,
                    rows: MAX_ROWS_F32 as u32,
                    cols: PANEL_F32 as u32,
                    lo: f32::NEG_INFINITY,
                    hi: f32::INFINITY,
                    accumulate: 0,
                };
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

/// Bytes that all threads of a pool together read in a nanosecond, of so many that they read again and again.
pub fn reading(pool: &Pool, bytes: usize) -> Result<f64, RunError> {
    let threads = pool.threads();
    let mut data = Bytes::zeroed(bytes)?;
    // Every page gets memory of its own: untouched ones would all be the same zero page.
    data.as_mut_slice().fill(1);
    let data = data.as_slice();
    // Short runs would measure how they are begun.
    let times = (LEAST_READ / bytes.max(1)).max(1);
    let seconds = best(|| {
        pool.run(threads as u64, 1, &|_, begin, end| {
            let (from, to) = (begin as usize * bytes, end as usize * bytes);
            for _ in 0..times {
                let mut sums = [0u64; 16];
                for line in data[from / threads..to / threads].chunks_exact(128) {
                    for (sum, eight) in sums.iter_mut().zip(line.chunks_exact(8)) {
                        let mut word = [0; 8];
                        word.copy_from_slice(eight);
                        *sum = sum.wrapping_add(u64::from_le_bytes(word));
                    }
                }
                black_box(sums);
            }
        })
    });
    Ok((bytes * times) as f64 / seconds / 1e9)
}
