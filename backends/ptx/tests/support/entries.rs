//! Runs entries that are written for a shape.

use super::ptxas::{assemble, assemblers};
use lapidary_ptx::packed::halves::sum;
use lapidary_ptx::{Entry, GPUS};
use lapidary_ptx_interp::{Fault, Launch, Module, Segment, Statistics, Wrong};
use lapidary_suite::Rng;

/// Where buffer `i` is: far from every other.
pub fn address(i: usize) -> u64 {
    (i as u64 + 1) << 32
}

/// Runs a text on buffers, of which the last is written.
pub fn try_launch(
    entry: &Entry,
    text: &str,
    blocks: u32,
    buffers: &mut [Vec<u8>],
) -> Result<Statistics, Fault> {
    let text = lapidary_ptx::header(&GPUS[0]) + text;
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let last = buffers.len() - 1;
    let mut params: Vec<u64> = (0..=last + 1).map(address).collect();
    params.push(0);
    let mut segments: Vec<Segment> = buffers
        .iter_mut()
        .enumerate()
        .map(|(i, bytes)| Segment {
            address: address(i),
            bytes,
            read_only: i != last,
        })
        .collect();
    let run = Launch {
        entry: &module.entries[&entry.name],
        params: &params,
        blocks,
    };
    run.run(&mut segments)
}

/// Runs an entry on buffers, of which the last is written.
pub fn launch(entry: &Entry, blocks: u32, buffers: &mut [Vec<u8>]) -> Statistics {
    try_launch(entry, &entry.text, blocks, buffers)
        .unwrap_or_else(|f| panic!("{f}\n{}", entry.text))
}

/// Bits of an `f16` that is a positive normal number `(1 + m / 1024) 2^e`.
pub fn f16_bits(m: u16, e: i32) -> u16 {
    ((e + 15) as u16) << 10 | m
}

pub fn f16_value(bits: u16) -> f64 {
    let (m, e) = (bits & 1023, i32::from(bits >> 10 & 31) - 15);
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    sign * (1.0 + f64::from(m) / 1024.0) * 2f64.powi(e)
}

/// Bits of `f16`s of either sign, from `2^low` up to `2^(low + 4)`.
pub fn halves(rng: &mut Rng, n: u32, low: i32) -> Vec<u16> {
    let one = |_| {
        let sign = (rng.below(2) as u16) << 15;
        f16_bits(rng.below(1024) as u16, rng.below(4) as i32 + low) | sign
    };
    (0..n).map(one).collect()
}

/// Adds up the sums of parts, and compares each with its terms: codes are exact, so no rounding is expected but that of sums of single
/// precision.
pub fn check_sums<T: Iterator<Item = f64>>(
    what: &str,
    (c, parts, count): (Vec<u8>, u32, u32),
    terms: impl Fn(usize) -> T,
) {
    let (entry, blocks) = sum("sum", parts, count).unwrap();
    let mut buffers = [c, vec![0xFF; 4 * count as usize]];
    launch(&entry, blocks, &mut buffers);
    for (i, got) in buffers[1].chunks_exact(4).enumerate() {
        let got = f64::from(f32::from_le_bytes(got.try_into().unwrap()));
        let (want, size) = terms(i).fold((0.0, 0.0), |(s, a), t| (s + t, a + f64::abs(t)));
        assert!(
            (got - want).abs() <= 2e-6 * size,
            "{what}, element {i}: {got}, expected {want}"
        );
    }
}

/// Launches texts that were damaged, each by one change: the checks find what they are for.
pub fn check_faults(
    entry: &Entry,
    blocks: u32,
    buffers: &mut [Vec<u8>],
    changes: &[(&str, &str, Wrong)],
) {
    assert!(try_launch(entry, &entry.text, blocks, buffers).is_ok());
    for (of, with, wrong) in changes {
        let text = entry.text.replace(of, with);
        assert_ne!(text, entry.text);
        let fault = try_launch(entry, &text, blocks, buffers).unwrap_err();
        assert_eq!(fault.wrong, *wrong, "{fault}");
    }
}

/// Assembles an entry for every GPU, for two blocks of 256 threads on a multiprocessor.
pub fn check_registers(what: &str, entry: &Entry) {
    for ptxas in assemblers() {
        for gpu in GPUS {
            let text = lapidary_ptx::header(gpu) + &gpu.text(&entry.text);
            let used = assemble(&ptxas, gpu, &text)[&entry.name];
            println!("{} {what}: {used} registers", gpu.name());
            assert!(used <= 128);
        }
    }
}
