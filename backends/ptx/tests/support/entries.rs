//! Runs entries that are written for a shape.

use lapidary_ptx::{Entry, GPUS};
use lapidary_ptx_interp::{Fault, Launch, Module, Segment, Statistics};

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
