//! Speed of the micro-kernels and of a fork-join, on this machine: `cargo run --release --example micro_bench [LEVEL]`.
//!
//! Each figure is the best of several runs. The matrix products walk tiles over `M=256, K=N=4096` with
//! prepacked weights; a single row of the products in blocks cycles through 12 copies of its weights so that they come from
//! memory.

use core::ffi::c_void;
use std::time::Instant;

use lapidary_abi::kernel::*;
use lapidary_runtime::micro::{Level, table_for};
use lapidary_runtime::pool::Pool;

fn best_seconds(runs: usize, mut body: impl FnMut()) -> f64 {
    body();
    let time = |_| {
        let start = Instant::now();
        body();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

/// 64-byte aligned values.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line<T, const N: usize>([T; N]);

fn aligned<T: Copy, const N: usize>(n: usize, value: T) -> Vec<Line<T, N>> {
    vec![Line([value; N]); n.div_ceil(N)]
}

/// Shares raw pointers with the pool's threads.
#[derive(Clone, Copy)]
struct Shared<T>(T);
// SAFETY: each bench writes disjoint parts only.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn get(&self) -> &T {
        &self.0
    }
}

fn gemm<W: Copy>(
    (address, weight, width): (*const c_void, W, usize),
    pool: &Pool,
    m: usize,
    k: usize,
    n: usize,
    pitch: usize,
    runs: usize,
) -> f64 {
    // SAFETY: the table holds a function of this type.
    let kernel: unsafe extern "C" fn(*const Gemm<W>) = unsafe { core::mem::transmute(address) };
    let a = aligned::<f32, 16>(m * pitch, 0.5);
    let b = aligned::<W, 32>(n * k, weight);
    let mut c = aligned::<f32, 16>(m * n, 0.0);
    let at = Shared((
        a.as_ptr().cast::<f32>(),
        b.as_ptr().cast::<W>(),
        c.as_mut_ptr().cast::<f32>(),
    ));
    let tiles = m.div_ceil(MAX_ROWS_F32);
    let seconds = best_seconds(runs, || {
        pool.run(
            (n / width * tiles) as u64,
            tiles as u64,
            &|_, begin, end| {
                let (a, b, c) = *at.get();
                for block in begin as usize..end as usize {
                    let (panel, r0) = (block / tiles, block % tiles * MAX_ROWS_F32);
                    let rows = MAX_ROWS_F32.min(m - r0);
                    let mut addresses = [core::ptr::null(); MAX_ROWS_F32];
                    for (r, p) in addresses.iter_mut().enumerate().take(rows) {
                        *p = a.wrapping_add((r0 + r) * pitch);
                    }
                    // SAFETY: the block describes parts of the buffers above.
                    unsafe {
                        kernel(&Gemm {
                            a: addresses.as_ptr(),
                            b: b.add(panel * k * width),
                            c: c.add(r0 * n + panel * width),
                            bias: core::ptr::null(),
                            residual: core::ptr::null(),
                            c_stride: n,
                            residual_stride: 0,
                            k,
                            taps: 1,
                            rows: rows as u32,
                            cols: width as u32,
                            width: width as u32,
                            lo: f32::NEG_INFINITY,
                            hi: f32::INFINITY,
                            accumulate: 0,
                        });
                    }
                }
            },
        );
    });
    2.0 * (m * k * n) as f64 / seconds / 1e9
}

fn gemm_i8(
    address: *const c_void,
    pool: &Pool,
    m: usize,
    k: usize,
    n: usize,
    pitch: usize,
    runs: usize,
) -> f64 {
    // SAFETY: the table holds a function of this type.
    let kernel: unsafe extern "C" fn(*const GemmI8) = unsafe { core::mem::transmute(address) };
    let a = aligned::<u8, 64>(m * pitch, 3);
    let b = aligned::<i8, 64>(n * k, -2);
    let mut c = aligned::<i32, 16>(m * n, 0);
    let at = Shared((
        a.as_ptr().cast::<u8>(),
        b.as_ptr().cast::<i8>(),
        c.as_mut_ptr().cast::<i32>(),
    ));
    let tiles = m.div_ceil(MAX_ROWS_I8);
    let seconds = best_seconds(runs, || {
        pool.run(
            (n / PANEL_I8 * tiles) as u64,
            tiles as u64,
            &|_, begin, end| {
                let (a, b, c) = *at.get();
                for block in begin as usize..end as usize {
                    let (panel, r0) = (block / tiles, block % tiles * MAX_ROWS_I8);
                    let rows = MAX_ROWS_I8.min(m - r0);
                    let mut addresses = [core::ptr::null(); MAX_ROWS_I8];
                    for (r, p) in addresses.iter_mut().enumerate().take(rows) {
                        *p = a.wrapping_add((r0 + r) * pitch);
                    }
                    // SAFETY: the block describes parts of the buffers above.
                    unsafe {
                        kernel(&GemmI8 {
                            init: std::ptr::null(),
                            init_stride: 0,
                            a: addresses.as_ptr(),
                            b: b.add(panel * k * PANEL_I8),
                            c: c.add(r0 * n + panel * PANEL_I8).cast(),
                            sums: std::ptr::null(),
                            scale: std::ptr::null(),
                            bias: std::ptr::null(),
                            c_stride: n,
                            k,
                            taps: 1,
                            rows: rows as u32,
                            cols: PANEL_I8 as u32,
                            a_zero: 0,
                            zero: 0,
                            lo: f32::NEG_INFINITY,
                            hi: f32::INFINITY,
                            result: RESULT_I32,
                            width: PANEL_I8 as u32,
                            table: core::ptr::null(),
                            stage_count: 0,
                            stages: [StageI8::NONE; MAX_STAGES_I8],
                        });
                    }
                }
            },
        );
    });
    2.0 * (m * k * n) as f64 / seconds / 1e9
}

/// Seconds of a product of `m` rows with 4096 x 4096 weights in blocks, and the bytes of the weights.
fn gemm_blocks(
    address: *const c_void,
    pool: &Pool,
    m: usize,
    bits: u32,
    block: usize,
) -> (f64, f64) {
    const SIZE: usize = 4096;
    // SAFETY: the table holds a function of this type.
    let kernel: unsafe extern "C" fn(*const GemmBlocks) = unsafe { core::mem::transmute(address) };
    let copies = if m == 1 { 12 } else { 1 };
    let blocks = SIZE / block;
    let (a_stride, panel_bytes) = (
        blocks * (block + ACT_BLOCK_EXTRA),
        blocks * (32 + PANEL_BLOCKS * block * bits as usize / 8),
    );
    let matrix_bytes = SIZE / PANEL_BLOCKS * panel_bytes;
    let weights = aligned::<u8, 64>(copies * matrix_bytes, 0x11);
    let act = aligned::<u8, 64>(m * a_stride, 0x3C);
    let mut out = vec![0f32; m * SIZE];
    let at = Shared((
        weights.as_ptr().cast::<u8>(),
        out.as_mut_ptr(),
        act.as_ptr().cast::<u8>(),
    ));
    let tile = if m.is_multiple_of(8) && m < 96 {
        8
    } else {
        MAX_ROWS_BLOCKS
    };
    let tiles = m.div_ceil(tile);
    let seconds = best_seconds(if m == 1 { 20 } else { 5 }, || {
        for copy in 0..copies {
            pool.run((SIZE / PANEL_BLOCKS * tiles) as u64, 1, &|_, begin, end| {
                let (weights, out, act) = *at.get();
                for i in begin as usize..end as usize {
                    let (panel, row) = (i / tiles, i % tiles * tile);
                    // SAFETY: the block describes parts of the buffers above.
                    unsafe {
                        kernel(&GemmBlocks {
                            a: act.add(row * a_stride),
                            w: weights.add(copy * matrix_bytes + panel * panel_bytes),
                            c: out.add(row * SIZE + panel * PANEL_BLOCKS),
                            bias: core::ptr::null(),
                            a_stride,
                            c_stride: SIZE,
                            block,
                            blocks,
                            rows: tile.min(m - row) as u32,
                            cols: PANEL_BLOCKS as u32,
                            bits,
                            scale_bytes: 2,
                            zeros: ZEROS_SHARED,
                            lo: f32::NEG_INFINITY,
                            hi: f32::INFINITY,
                        });
                    }
                }
            });
        }
    });
    (seconds / copies as f64, matrix_bytes as f64)
}

/// Bytes that can be read from memory each second, in 10^9: sums of 512 MB.
fn bandwidth(pool: &Pool) -> f64 {
    const LINES: usize = 8 << 20;
    let data = aligned::<u64, 8>(8 * LINES, 1);
    let seconds = best_seconds(5, || {
        pool.run(LINES as u64, 1 << 12, &|_, begin, end| {
            let mut sums = [0u64; 8];
            for line in &data[begin as usize..end as usize] {
                (0..8).for_each(|i| sums[i] = sums[i].wrapping_add(line.0[i]));
            }
            std::hint::black_box(sums);
        });
    });
    (LINES * 64) as f64 / seconds / 1e9
}

/// Nanoseconds to transpose 64 rows of 64.
fn move_f32(address: *const c_void) -> f64 {
    // SAFETY: the table holds a function of this type.
    let kernel: unsafe extern "C" fn(*const MoveF32) = unsafe { core::mem::transmute(address) };
    let n = MOVE_COLS;
    let src = vec![1f32; n * n];
    let mut dst = aligned::<f32, 16>(n * n, 0.0);
    let at: Vec<i64> = (0..n).map(|j| (j * n) as i64).collect();
    let seconds = best_seconds(1000, || {
        // SAFETY: the block describes the buffers above.
        unsafe {
            kernel(&MoveF32 {
                src: src.as_ptr(),
                dst: dst.as_mut_ptr().cast(),
                at: at.as_ptr(),
                src_stride: 1,
                dst_stride: n,
                rows: n,
                cols: n,
            })
        }
    });
    seconds * 1e9
}

/// GFLOP/s of 256 rows with one non-zero in ten of 128 columns (of 1,024 for one lane).
fn sparse_f32(address: *const c_void, shape: usize) -> f64 {
    // SAFETY: the table holds a function of this type.
    let kernel: unsafe extern "C" fn(*const SparseF32) = unsafe { core::mem::transmute(address) };
    let (in_group, lanes) = SPARSE_SHAPES[shape];
    let (rows, k) = (256, [128, 512, 4096][shape]);
    let (groups, each) = (rows / in_group, k / 10);
    let x = aligned::<f32, 16>(k * lanes, 1.0);
    let values = vec![1f32; rows * each];
    let offsets: Vec<u16> = (0..rows * each)
        .map(|i| (i.wrapping_mul(2_654_435_761) % k * lanes) as u16)
        .collect();
    let starts: Vec<u32> = (0..=groups).map(|g| (g * each) as u32).collect();
    let row_of: Vec<u32> = (0..rows as u32).collect();
    let mut c = aligned::<f32, 16>(rows * lanes, 0.0);
    let seconds = best_seconds(200, || {
        // SAFETY: the block describes the buffers above.
        unsafe {
            kernel(&SparseF32 {
                x: x.as_ptr().cast(),
                values: values.as_ptr(),
                offsets: offsets.as_ptr(),
                starts: starts.as_ptr(),
                rows: row_of.as_ptr(),
                bias: core::ptr::null(),
                init: core::ptr::null(),
                c: c.as_mut_ptr().cast(),
                init_stride: 0,
                c_stride: lanes,
                groups,
                cols: lanes as u32,
                shape: shape as u32,
                lo: f32::NEG_INFINITY,
                hi: f32::INFINITY,
            })
        }
    });
    (2 * rows * each * lanes) as f64 / seconds / 1e9
}

/// Operations a second on what is left of the int8 weights, of which a fifth of the blocks is.
fn sparse_i8(address: *const c_void, lanes: usize) -> f64 {
    const R: usize = SPARSE_ROWS_I8;
    // SAFETY: the table holds a function of this type.
    let kernel: unsafe extern "C" fn(*const SparseI8) = unsafe { core::mem::transmute(address) };
    let (rows, fours) = (768, (36 << 10) / 4 / lanes);
    let (groups, each) = (rows / R, fours / 5);
    let x = aligned::<u8, 64>(fours * lanes * 4, 3);
    let values = vec![1i8; rows * each * 4];
    let offsets: Vec<u16> = (0..rows * each)
        .map(|i| (i.wrapping_mul(2_654_435_761) % fours * lanes) as u16)
        .collect();
    let starts: Vec<u32> = (0..=groups).map(|g| (g * each) as u32).collect();
    let row_of: Vec<u32> = (0..rows as u32).collect();
    let mut c = aligned::<i32, 16>(rows * lanes, 0);
    let seconds = best_seconds(200, || {
        // SAFETY: the block describes the buffers above.
        unsafe {
            kernel(&SparseI8 {
                x: x.as_ptr().cast(),
                values: values.as_ptr(),
                offsets: offsets.as_ptr(),
                starts: starts.as_ptr(),
                rows: row_of.as_ptr(),
                init: core::ptr::null(),
                c: c.as_mut_ptr().cast(),
                init_stride: 0,
                c_stride: lanes,
                groups,
                cols: lanes as u32,
            })
        }
    });
    (8 * rows * each * lanes) as f64 / seconds / 1e9
}

/// Median and 99th percentile of one fork-join in microseconds, beyond the `work` that each thread does.
fn fork_join(pool: &Pool, work: f64) -> (f64, f64) {
    let spin = || {
        let start = Instant::now();
        while start.elapsed().as_secs_f64() * 1e6 < work {}
    };
    let mut times: Vec<f64> = (0..50_000)
        .map(|_| {
            let start = Instant::now();
            pool.run(pool.threads() as u64, 1, &|_, _, _| spin());
            start.elapsed().as_secs_f64() * 1e6 - work
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn main() {
    let only = std::env::args().nth(1);
    for threads in [
        1,
        std::thread::available_parallelism().map_or(1, |n| n.get()),
    ] {
        let pool = Pool::new(threads, true);
        println!("threads {threads}, memory {:.1} GB/s", bandwidth(&pool));
        for level in Level::ALL {
            if only.as_ref().is_some_and(|o| *o != format!("{level:?}")) {
                continue;
            }
            let Some(table) = table_for(level) else {
                continue;
            };
            let f32_at = (table[Import::GemmF32 as usize], 0.25f32, PANEL_F32);
            let runs = if level == Level::Portable { 1 } else { 5 };
            println!("  {level:?}");
            println!(
                "    f32  M=256 K=N=4096, row pitch 4096: {:7.1} GFLOP/s",
                gemm(f32_at, &pool, 256, 4096, 4096, 4096, runs)
            );
            println!(
                "    f32  M=256 K=N=4096, row pitch 4112: {:7.1} GFLOP/s",
                gemm(f32_at, &pool, 256, 4096, 4096, 4112, runs)
            );
            println!(
                "    f32  M=196 K=576 N=128             : {:7.1} GFLOP/s",
                gemm(f32_at, &pool, 196, 576, 128, 576, 20 * runs)
            );
            println!(
                "    f32  M=1 K=N=4096 (weights)        : {:7.1} GB/s",
                2.0 * gemm(f32_at, &pool, 1, 4096, 4096, 4096, 10 * runs)
            );
            // A quarter.
            let bf16_at = (table[Import::GemmBf16 as usize], 0x3E80u16, PANEL_F32);
            let wide_at = (bf16_at.0, bf16_at.1, MAX_WIDTH_BF16);
            println!(
                "    bf16 M=256 K=N=4096                : {:7.1} GFLOP/s",
                gemm(wide_at, &pool, 256, 4096, 4096, 4096, runs)
            );
            println!(
                "    bf16 M=196 K=576 N=128             : {:7.1} GFLOP/s",
                gemm(wide_at, &pool, 196, 576, 128, 576, 20 * runs)
            );
            println!(
                "    bf16 M=1 K=N=4096 (weights)        : {:7.1} GB/s",
                gemm(bf16_at, &pool, 1, 4096, 4096, 4096, 10 * runs)
            );
            let i8_at = table[Import::GemmI8 as usize];
            for pitch in [4096, 4160] {
                println!(
                    "    int8 M=256 K=N=4096, row pitch {pitch}: {:7.1} GOP/s",
                    gemm_i8(i8_at, &pool, 256, 4096, 4096, pitch, runs)
                );
            }
            let widths = [(2, 32), (3, 32), (4, 32), (5, 32), (6, 32), (8, 32)];
            for (bits, block) in widths
                .into_iter()
                .chain(widths.map(|(bits, _)| (bits, 128)))
            {
                let at = table[Import::GemmBlocks as usize];
                let (seconds, bytes) = gemm_blocks(at, &pool, 1, bits, block);
                print!(
                    "    {bits} bits, block {block:3}: M=1 {:5.1} GB/s",
                    bytes / seconds / 1e9
                );
                for m in [4, 16, 64, 256] {
                    let (seconds, _) = gemm_blocks(at, &pool, m, bits, block);
                    let operations = 2.0 * (m << 24) as f64;
                    print!(", M={m} {:.0} GOP/s", operations / seconds / 1e9);
                }
                println!();
            }
            if threads == 1 {
                println!(
                    "    move 64x64 transposed              : {:7.1} ns",
                    move_f32(table[Import::MoveF32 as usize])
                );
                for (shape, (rows, lanes)) in SPARSE_SHAPES.iter().enumerate() {
                    println!(
                        "    sparse f32 {rows:2} rows x {lanes:2} lanes, 0.1   : {:7.1} GFLOP/s",
                        sparse_f32(table[Import::SparseF32 as usize], shape)
                    );
                }
                for lanes in [16, 48, 64] {
                    println!(
                        "    sparse i8, {SPARSE_ROWS_I8} rows of {lanes} lanes, a fifth of the fours: {:7.1} Gop/s",
                        sparse_i8(table[Import::SparseI8 as usize], lanes)
                    );
                }
            }
        }
        for work in [0.0, 2.0, 20.0] {
            let (median, late) = fork_join(&pool, work);
            println!(
                "  fork-join, {work} us each: + {median:.2} us (median), + {late:.2} us (99th percentile)"
            );
        }
    }
}
