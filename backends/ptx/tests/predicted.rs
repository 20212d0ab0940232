//! What is predicted of the hot kernels on an A100 and an H100, from the assembler's report and the target's description.
//! Nothing here was measured on a GPU.
//!
//! Skipped, visibly, where there is no assembler: see `ptxas.rs`.

mod support;

use lapidary_ir::kernel::contraction::{Kind, PANEL};
use lapidary_ir::speeds::Work;
use lapidary_ir::target::{Feature, Target};
use lapidary_ptx::GPUS;
use lapidary_ptx::occupancy::Multiprocessor;
use support::product;
use support::ptxas::{assemble, assemblers};

/// A product of `m` rows with `n` columns.
struct Case {
    name: &'static str,
    kind: Kind,
    /// Rows of a tile.
    rows: u32,
    m: u64,
    n: u64,
    k: u64,
}

#[test]
fn hot_kernels_hide_latency() {
    let Some(ptxas) = assemblers().pop() else {
        return;
    };
    let cases = [
        Case {
            name: "f32, one row (a token)",
            kind: Kind::F32,
            rows: 1,
            m: 1,
            n: 4096,
            k: 4096,
        },
        Case {
            name: "f32, 128 rows",
            kind: Kind::F32,
            rows: 13,
            m: 128,
            n: 4096,
            k: 4096,
        },
        Case {
            name: "int8, 128 rows",
            kind: Kind::I8,
            rows: 13,
            m: 128,
            n: 4096,
            k: 4096,
        },
    ];
    for case in &cases {
        let kernel = product(case.kind, case.rows, case.k as i64, PANEL, 1, false, true);
        let entry = lapidary_ptx::entry(&kernel).unwrap();
        for (machine, feature) in [("A100", Feature::Sm80), ("H100", Feature::Sm90a)] {
            let gpu = GPUS.iter().find(|g| g.feature == feature).unwrap();
            let text = lapidary_ptx::header(gpu) + &entry.text;
            let registers = assemble(&ptxas, gpu, &text)[&entry.name];
            let sm = Multiprocessor::of(feature);
            let resident = sm.resident(entry.threads, registers, entry.shared_bytes);
            let occupancy = f64::from(resident * entry.threads) / f64::from(sm.threads);
            let target = Target::nvptx64(feature);
            let speeds = target.speeds();
            let (size, work) = match case.kind {
                Kind::I8 => (1, Work::GemmCodes),
                _ => (4, Work::Gemm),
            };
            // Each operand once: what tiles read again is in the cache.
            let bytes = size * (case.m * case.k + case.k * case.n) + 4 * case.m * case.n;
            let flops = 2 * case.m * case.n * case.k;
            let by_memory = bytes as f64 / speeds.bandwidth(u64::MAX, target.threads);
            let rate = speeds.rate(work, f64::from(case.rows)) * f64::from(target.threads);
            let by_flops = flops as f64 / rate;
            println!(
                "predicted, {machine}, {}: {registers} registers, {} threads, {} bytes shared, {resident} blocks on a multiprocessor \
                 (occupancy {:.0} %); {bytes} bytes take {:.1} us, {flops} operations {:.1} us: {:.1} us",
                case.name,
                entry.threads,
                entry.shared_bytes,
                100.0 * occupancy,
                by_memory / 1e3,
                by_flops / 1e3,
                by_memory.max(by_flops) / 1e3,
            );
            assert!(occupancy >= 0.25, "{}: occupancy {occupancy}", case.name);
        }
    }
}
