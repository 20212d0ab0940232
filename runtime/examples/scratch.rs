use lapidary_abi::kernel::*;
use lapidary_runtime::micro::{Level, table_for};
use std::time::Instant;
fn main() {
    let table = table_for(Level::Avx512Vnni).unwrap();
    let kernel: unsafe extern "C" fn(*const SparseF32) =
        unsafe { core::mem::transmute(table[Import::SparseF32 as usize]) };
    for (n, k, kb, keep) in [
        (256usize, 576usize, 128usize, 3usize),
        (256, 576, 144, 3),
        (256, 2304, 144, 10),
        (192, 432, 144, 3),
        (64, 144, 144, 3),
        (768, 768, 144, 10),
        (512, 128, 128, 10),
    ] {
        let blocks = k.div_ceil(kb);
        // one set of entries per block, sorted by count
        let copies = (40_000_000 / (n * k / keep * 6)).clamp(1, 40);
        let mut sets = vec![];
        let mut seed = 1u64;
        let mut rnd = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..copies {
            let mut values: Vec<f32> = vec![];
            let mut offsets: Vec<u16> = vec![];
            let mut starts = vec![0u32];
            let mut rows: Vec<u32> = vec![];
            let mut first = vec![0usize];
            for b in 0..blocks {
                let len = kb.min(k - b * kb);
                let mut lists: Vec<(usize, Vec<u16>)> = (0..n)
                    .map(|r| {
                        (
                            r,
                            (0..len)
                                .filter(|_| rnd() % keep as u64 == 0)
                                .map(|i| (i * 64) as u16)
                                .collect(),
                        )
                    })
                    .collect();
                lists.sort_by_key(|l| (std::cmp::Reverse(l.1.len()), l.0));
                for g in lists.chunks(2) {
                    let most = g[0].1.len();
                    for t in 0..most {
                        for r in g {
                            values.push(0.5);
                            offsets.push(r.1.get(t).copied().unwrap_or(0));
                        }
                    }
                    for r in g {
                        rows.push(r.0 as u32);
                    }
                    starts.push((values.len() / 2) as u32);
                }
                first.push(starts.len() - 1);
            }
            sets.push((values, offsets, starts, rows, first));
        }
        let panel = vec![1f32; kb * 64 + 16];
        let mut sums = vec![0f32; n * 64 + 16];
        let panel_at = panel.as_ptr().wrapping_add(panel.as_ptr().align_offset(64));
        let sums_at = sums
            .as_mut_ptr()
            .wrapping_add(sums.as_ptr().align_offset(64));
        let mut best = f64::INFINITY;
        let mut flops = 0usize;
        for _ in 0..30 {
            let t = Instant::now();
            flops = 0;
            for s in &sets {
                flops += s.0.len() * 128;
                for b in 0..blocks {
                    unsafe {
                        kernel(&SparseF32 {
                            x: panel_at,
                            values: s.0.as_ptr(),
                            offsets: s.1.as_ptr(),
                            starts: s.2.as_ptr().add(s.4[b]),
                            rows: s.3.as_ptr().add(2 * s.4[b]),
                            bias: core::ptr::null(),
                            init: if b == 0 { core::ptr::null() } else { sums_at },
                            c: sums_at,
                            init_stride: 64,
                            c_stride: 64,
                            groups: s.4[b + 1] - s.4[b],
                            cols: 64,
                            shape: 0,
                            lo: f32::NEG_INFINITY,
                            hi: f32::INFINITY,
                        })
                    }
                }
            }
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!(
            "n {n} k {k} kb {kb} copies {copies}: {:.1} GFLOP/s",
            flops as f64 / best / 1e9
        );
    }
}
