//! The GGUF reader.
#![no_main]

use lapidary_fuzz::gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| gguf(data));
