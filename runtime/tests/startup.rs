//! Opening an image maps its weights and does not read them.
#![cfg(target_os = "linux")]

use lapidary_abi::image::{TRAILER_BYTES, Trailer, checksum};
use lapidary_abi::program::Program;
use lapidary_runtime::ModelOptions;
use lapidary_runtime::image::Image;
use std::fs::File;
use std::os::unix::fs::FileExt;

const WEIGHTS: u64 = 1 << 28;

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = text.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.expect("a number of pages") * 4096
}

#[test]
fn weights_are_not_touched() {
    let path = std::env::temp_dir().join(format!("lapidary-startup-{}", std::process::id()));
    let file = File::create(&path).expect("can be made");
    let program = Program {
        weights_bytes: WEIGHTS,
        ..Program::default()
    };
    let program = program.to_bytes();
    let mut trailer = Trailer::layout(0, 0, WEIGHTS, program.len() as u64).expect("fits");
    trailer.program_checksum = checksum(&program);
    file.write_all_at(&program, trailer.program_offset)
        .expect("written");
    file.write_all_at(&trailer.encode(), trailer.offset())
        .expect("written");
    assert_eq!(
        file.metadata().expect("there").len(),
        trailer.offset() + TRAILER_BYTES as u64
    );

    let before = resident();
    let start = std::time::Instant::now();
    let model = Image::open(&path).and_then(|image| {
        image.load(ModelOptions {
            threads: 1,
            ..ModelOptions::default()
        })
    });
    let (took, grown) = (start.elapsed(), resident().saturating_sub(before));
    std::fs::remove_file(&path).expect("was made");
    model.expect("loads").run(&[]).expect("runs");
    assert!(grown < WEIGHTS / 16, "{grown} bytes were read");
    println!("opened in {took:?}");
}
