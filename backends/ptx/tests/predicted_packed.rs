//! What is predicted of the entries that are written for a shape: a bound from the instructions of their loops, the assembler's
//! registers, and figures of GPUs. **Nothing here was measured on a GPU.** The table is in `benches/RESULTS.md` between two
//! comments; `LAPIDARY_BLESS=1` writes it anew, otherwise it must be the one that is there.
//!
//! **Model.** The loop of a warp is read from the text. A multiprocessor issues four of its instructions a cycle (moves between
//! registers are free: the assembler drops them), its shared memory and first cache pass 128 bytes a cycle, its arithmetic and its tensor
//! cores what [`MACHINES`] says, of sparse products twice that; these overlap, so the slowest counts, on the multiprocessor with the most blocks. Memory gives
//! [`STREAM`] of its bandwidth, less where fewer bytes are on their way than pass in [`LATENCY`]. Both begin with one latency.
//! Skipped, visibly, where there is no assembler.

mod support;

use lapidary_ir::ElemType;
use lapidary_ir::kernel::packed::{Batch, Bits, Gemv, Halves, TwoOfFour, Weights};
use lapidary_ir::target::Feature;
use lapidary_ptx::occupancy::Multiprocessor;
use lapidary_ptx::packed::halves::halves;
use lapidary_ptx::packed::{gemv, marlin, two_of_four};
use lapidary_ptx::{Entry, GPUS};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use support::ptxas::{assemble, assemblers};

/// Share of the bandwidth that a stream of reads gets: an assumption, the same for what is compared with.
const STREAM: f64 = 0.92;

/// Share of their rate that tensor cores, and shared memory beside them, reach: an assumption, cuBLAS' on most GPUs.
const CORES: f64 = 0.85;

/// Seconds that a read takes under load: an assumption.
const LATENCY: f64 = 0.8e-6;

/// A GPU. Source: NVIDIA's data sheets of the A100 80 GB SXM, the H100 SXM and the white paper of the Ada architecture.
struct Machine {
    name: &'static str,
    feature: Feature,
    multiprocessors: f64,
    /// Cycles a second, at boost.
    clock: f64,
    /// Bytes a second.
    bandwidth: f64,
    /// Lanes of single precision of a multiprocessor.
    lanes: f64,
    /// Multiply-adds of `f16` into `f32` that a multiprocessor's tensor cores do in a cycle.
    tensor: f64,
    /// What of that `mma.sync` reaches: 0.63 on Hopper, whose full rate only `wgmma` has ("Benchmarking and Dissecting the Nvidia
    /// Hopper GPU Architecture via Microbenchmarking", Luo et al. 2024).
    sync: f64,
    /// What of that cuBLAS reaches in large products: an assumption.
    cublas: f64,
}

const MACHINES: [Machine; 3] = [
    Machine {
        name: "A100",
        feature: Feature::Sm80,
        multiprocessors: 108.0,
        clock: 1.41e9,
        bandwidth: 2.039e12,
        lanes: 64.0,
        tensor: 1024.0,
        sync: 1.0,
        cublas: CORES,
    },
    Machine {
        name: "H100",
        feature: Feature::Sm90a,
        multiprocessors: 132.0,
        clock: 1.83e9,
        bandwidth: 3.35e12,
        lanes: 128.0,
        tensor: 2048.0,
        sync: 0.63,
        cublas: 0.70,
    },
    Machine {
        name: "RTX 4090",
        feature: Feature::Sm89,
        multiprocessors: 128.0,
        clock: 2.52e9,
        bandwidth: 1.008e12,
        lanes: 128.0,
        tensor: 256.0,
        sync: 1.0,
        cublas: CORES,
    },
];

/// What a warp does in a pass through its loop.
#[derive(Debug, Default)]
struct Pass {
    instructions: f64,
    floats: f64,
    products: f64,
    /// Bytes through shared memory and the first cache, which are one.
    shared: f64,
}

/// Reads the longest loop of a text.
fn pass(text: &str) -> Pass {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let place = |label: &str| {
        lines
            .iter()
            .position(|l| l.strip_suffix(':') == Some(label))
    };
    let back = |(end, line): (usize, &&str)| {
        let label = line.split_once("bra ")?.1.trim_end_matches(';');
        place(label)
            .filter(|&begin| begin < end)
            .map(|begin| begin..end + 1)
    };
    let loops = lines.iter().enumerate().filter_map(back);
    let inside = loops.max_by_key(|l| l.len()).expect("a loop");
    let mut all = Pass::default();
    for line in &lines[inside] {
        let is = |what: &str| line.contains(what);
        if line.ends_with(':') || line.starts_with("mov.") {
            continue;
        }
        all.instructions += 1.0;
        match () {
            // Sparse ones are of 32 columns, of which 16 are multiplied.
            () if is("mma.s") => all.products += 1.0,
            () if is("ld.shared.v2.") => all.shared += 8.0 * 32.0,
            () if is("ldmatrix") || is("cp.async.cg") || is("ld.") && is(".v4.") => {
                all.shared += 16.0 * 32.0;
            }
            () if is(".f32") && !is("ld.") && !is("cvt.") => all.floats += 1.0,
            () => {}
        }
    }
    all
}

/// A launch.
struct Work {
    entry: Entry,
    blocks: f64,
    /// Passes of a warp.
    passes: f64,
    /// Bytes that memory gives and takes.
    bytes: f64,
    /// Bytes that a block has on their way.
    ahead: f64,
}

impl Work {
    /// Seconds, and what bounds them.
    fn predict(&self, machine: &Machine, ptxas: &Path) -> (f64, &'static str) {
        let gpu = GPUS.iter().find(|g| g.feature == machine.feature).unwrap();
        let text = lapidary_ptx::header(gpu) + &gpu.text(&self.entry.text);
        let registers = assemble(ptxas, gpu, &text)[&self.entry.name];
        let sm = Multiprocessor::of(machine.feature);
        let resident = sm.resident(self.entry.threads, registers, self.entry.shared_bytes);
        assert!(resident > 0);
        let warps = f64::from(self.entry.threads) / 32.0;
        let pass = pass(&self.entry.text);
        let most = (self.blocks / machine.multiprocessors).ceil();
        let cycles = |of_warp: f64| of_warp * warps * self.passes * most / machine.clock;
        let here = most.min(f64::from(resident));
        let ahead = self.ahead * here * self.blocks.min(machine.multiprocessors);
        let filled = (ahead / (machine.bandwidth * LATENCY)).min(1.0);
        [
            (self.bytes / (machine.bandwidth * STREAM * filled), "memory"),
            (cycles(pass.instructions / 4.0), "issue"),
            (cycles(pass.floats * 32.0 / machine.lanes), "arithmetic"),
            (cycles(pass.shared / 128.0 / CORES), "shared memory"),
            (
                cycles(pass.products * 2048.0 / (machine.tensor * machine.sync * CORES)),
                "tensor cores",
            ),
        ]
        .into_iter()
        .map(|(time, what)| (time + LATENCY, what))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap()
    }
}

/// Seconds that cuBLAS takes for a product of `f16`, as modelled.
fn cublas(machine: &Machine, [m, n, k]: [f64; 3]) -> f64 {
    let bytes = 2.0 * (m * k + n * k + m * n);
    let rate = machine.tensor * machine.cublas * machine.multiprocessors * machine.clock;
    let by_memory = bytes / (machine.bandwidth * STREAM);
    by_memory.max(m * n * k / rate) + LATENCY
}

fn row(
    table: &mut String,
    machine: &Machine,
    what: &str,
    (time, by): (f64, &str),
    figure: f64,
    goal: f64,
) {
    let met = if figure >= goal { "yes" } else { "no" };
    let (name, us) = (machine.name, time * 1e6);
    writeln!(
        table,
        "| {name} | {what} | {us:.1} | {by} | {figure:.2} | {goal:.2} | {met} |"
    )
    .unwrap();
}

/// Seconds of a launch that has parts for `tiles` tiles of outputs, made by `entry`: of `stored` bytes of weights, of which a block
/// has so many on their way, times a batch; and what bounds them.
fn batch_of(
    machine: &Machine,
    ptxas: &Path,
    [batch, n, k]: [u32; 3],
    [stored, ahead]: [f64; 2],
    tiles: u32,
    entry: impl Fn(u32) -> (Entry, u32),
) -> (f64, &'static str) {
    // As many parts as make two blocks for each multiprocessor at most.
    let parts = (2 * machine.multiprocessors as u32 / tiles).max(1);
    let (entry, blocks) = entry(parts);
    let (b, parts) = (f64::from(batch), f64::from(parts));
    let results = 4.0 * b * f64::from(n);
    let work = Work {
        entry,
        blocks: f64::from(blocks),
        passes: f64::from(k / 128) / parts,
        bytes: stored + 2.0 * b * f64::from(k) + results * (2.0 * parts + 1.0),
        ahead,
    };
    let (time, by) = work.predict(machine, ptxas);
    // The parts are added up by a launch of its own.
    (time + LATENCY, by)
}

fn table(ptxas: &Path) -> String {
    let mut table =
        "| GPU | product | µs | bound by | figure | goal | met |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    let (n, k) = (8192, 28672);
    for machine in &MACHINES {
        for (bits, group) in [(Bits::Four, 128), (Bits::Eight, 128)] {
            let weights = Weights::new("w", n, k, bits, group).unwrap();
            let spec = Gemv::new(weights.clone(), 1, Some(1)).unwrap();
            let (entry, blocks) = (gemv(&spec), spec.grid(1));
            let bytes = (weights.code_bytes() + weights.scale_bytes()) as f64;
            // A pass is 512 bytes of codes of each of four outputs.
            let passes = weights.code_bytes() as f64 / (2048.0 * 8.0 * f64::from(blocks));
            let work = Work {
                entry,
                blocks: f64::from(blocks),
                passes,
                bytes,
                ahead: 4.0 * 16.0 * 256.0,
            };
            let found = work.predict(machine, ptxas);
            let of_peak = bytes / found.0 / machine.bandwidth;
            let what = format!(
                "{} bits, {n} x {k}, a vector: share of the bandwidth",
                bits.count()
            );
            row(&mut table, machine, &what, found, of_peak, 0.85);
        }
        for (batch, goal) in [(16, 3.5), (64, 2.0)] {
            let weights = Weights::new("w", n, k, Bits::Four, 128).unwrap();
            let all = [batch, n, k];
            let stored = (weights.code_bytes() + weights.scale_bytes()) as f64;
            let bytes = [stored, 3.0 * 4096.0];
            let dense = batch_of(machine, ptxas, all, bytes, n / 128, |parts| {
                let spec = Batch::new(weights.clone(), parts, Some(batch)).unwrap();
                (marlin(&spec), spec.grid(batch))
            });
            let ratio = cublas(machine, all.map(f64::from)) / dense.0;
            let what = format!("4 bits, {n} x {k}, batch {batch}: times cuBLAS of f16");
            row(&mut table, machine, &what, dense, ratio, goal);
            let whole = TwoOfFour::new(weights.clone(), 1, Some(batch)).unwrap();
            // Three steps are on their way at least.
            let ahead = 3.0 * 24.0 * f64::from(whole.outputs());
            let bytes = [whole.bytes().iter().sum::<u64>() as f64, ahead];
            let sparse = batch_of(machine, ptxas, all, bytes, whole.across(), |parts| {
                let spec = TwoOfFour::new(weights.clone(), parts, Some(batch)).unwrap();
                (two_of_four(&spec), spec.grid(batch))
            });
            let what = format!("4 bits 2:4, {n} x {k}, batch {batch}: times 4 bits");
            row(&mut table, machine, &what, sparse, dense.0 / sparse.0, 1.0);
        }
        let size = 8192u32;
        let product = Halves {
            name: "p".to_owned(),
            elem: ElemType::F16,
            m: Some(size),
            n: size,
            k: size,
            parts: 1,
        };
        let (entry, blocks) = (halves(&product), product.grid(size));
        let side = f64::from(size);
        let work = Work {
            entry,
            blocks: f64::from(blocks),
            passes: side / 32.0,
            // What a wave of blocks reads, of both operands, of which the cache keeps what they share.
            bytes: f64::from(blocks) * 2.0 * 2.0 * 128.0 * side / 8.0,
            ahead: 2.0 * 16384.0,
        };
        let found = work.predict(machine, ptxas);
        let ratio = cublas(machine, [side; 3]) / found.0;
        row(
            &mut table,
            machine,
            "f16, 8192 x 8192 x 8192: times cuBLAS",
            found,
            ratio,
            0.85,
        );
    }
    table
}

#[test]
fn the_prediction_is_the_stated_one() {
    let Some(ptxas) = assemblers().pop() else {
        return;
    };
    let table = table(&ptxas);
    println!("{table}");
    for line in table.lines().filter(|l| l.contains("a vector")) {
        assert!(line.ends_with("| yes |"), "{line}");
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../benches/RESULTS.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- predicted for GPUs -->\n", "<!-- end -->\n");
    let (before, rest) = text.split_once(begin).expect("a place for the table");
    let (stated, after) = rest.split_once(end).expect("the table's end");
    if std::env::var_os("LAPIDARY_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(stated, table, "`LAPIDARY_BLESS=1` writes the table anew");
}
