//! The verifier and type inference, on modules that no reader would make.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lapidary_fuzz::graph(data));
