//! The ONNX reader. Half of the mutations respect the wire format, so that they reach beyond it.
#![no_main]

use lapidary_fuzz::{onnx, random::Random, wire};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| onnx(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random::new(u64::from(seed));
    if random.below(2) == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let changed = wire::mutate(&data[..size], &mut random);
    let len = changed.len().min(max_size).min(data.len());
    data[..len].copy_from_slice(&changed[..len]);
    len
});
