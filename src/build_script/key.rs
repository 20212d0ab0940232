//! Whether a model's output is current: a text that differs when anything it was made from does.

use lapidary_abi::image::checksum;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The options, the compiler (which is part of the running program), and each file by name, length and
/// checksum of its content: a new time stamp alone, as from a fresh checkout, changes nothing. `None` if
/// something cannot be read.
pub fn of<'f>(options: &str, files: impl Iterator<Item = &'f PathBuf>) -> Option<String> {
    let mut key = format!("{}\n{options}\n", compiler()?);
    for file in files {
        let (len, sum) = content(file).ok()?;
        key += &format!("{} {len} {sum:016x}\n", file.display());
    }
    Some(key)
}

fn compiler() -> Option<String> {
    let program = std::env::current_exe().ok()?.metadata().ok()?;
    let built = program.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let version = env!("CARGO_PKG_VERSION");
    Some(format!("{version} {} {}", program.len(), built.as_nanos()))
}

/// Length and checksum of a file, read piece by piece.
fn content(path: &Path) -> std::io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    let (mut len, mut sums) = (0, Vec::new());
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            return Ok((len, checksum(&sums)));
        }
        len += n as u64;
        sums.extend(checksum(&piece[..n]).to_le_bytes());
    }
}
