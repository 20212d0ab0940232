//! How much memory a model may have: a number of bytes, or what a file says from time to time.

use crate::error::RunError;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// A limit on memory, as users give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// So many bytes.
    Bytes(u64),
    /// What this file says, also when it changes while the model runs.
    File(PathBuf),
}

impl Memory {
    /// From what people write: `2GiB`, or `@FILE` for a file that holds such a number.
    pub fn parse(text: &str) -> Result<Memory, String> {
        if let Some(path) = text.strip_prefix('@').filter(|path| !path.is_empty()) {
            return Ok(Memory::File(path.into()));
        }
        let bytes = parse_bytes(text).map(Memory::Bytes);
        bytes.ok_or_else(|| {
            format!(
                "`{text}` is no number of bytes like 2GiB, and no file that holds one like @FILE"
            )
        })
    }
}

/// A limit, as it was when it was last looked at.
pub struct Limit {
    memory: Memory,
    bytes: AtomicU64,
    /// When the file was written that said so.
    modified: Mutex<Option<SystemTime>>,
}

impl Limit {
    /// Reads the limit.
    ///
    /// # Errors
    /// The file cannot be read, or holds no number of bytes.
    pub fn new(memory: Memory) -> Result<Limit, RunError> {
        let (bytes, modified) = match &memory {
            Memory::Bytes(bytes) => (*bytes, None),
            Memory::File(path) => {
                let modified = written(path);
                let bytes = said(path).map_err(|e| {
                    let file = path.display();
                    RunError::Input(format!("the limit of memory in {file}: {e}"))
                })?;
                (bytes, modified)
            }
        };
        Ok(Limit {
            memory,
            bytes: AtomicU64::new(bytes),
            modified: Mutex::new(modified),
        })
    }

    /// Reads a file again that was written since; while it holds no number the last one holds.
    pub fn look(&self) {
        let Memory::File(path) = &self.memory else {
            return;
        };
        let mut before = self.modified.lock().unwrap_or_else(PoisonError::into_inner);
        let now = written(path);
        // What is no number is still being written, perhaps within the same tick of the clock.
        if now.is_some()
            && now != *before
            && let Ok(bytes) = said(path)
        {
            *before = now;
            self.bytes.store(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// When a file was last written, as far as that is known.
fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// The number of bytes that a file holds.
fn said(path: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    parse_bytes(text.trim()).ok_or_else(|| "is no number of bytes like 2GiB".to_owned())
}

/// A number of bytes as people write it: `2GiB`, `500MB`, `1000000`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 7] = [
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1_000),
        ("B", 1),
    ];
    let unit = UNITS.iter().find(|(name, _)| text.ends_with(name));
    let (number, factor) = match unit {
        Some((name, factor)) => (&text[..text.len() - name.len()], *factor),
        None => (text, 1),
    };
    let number: f64 = number.trim().parse().ok()?;
    let bytes = number * factor as f64;
    (1.0..9e18).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes_are_read() {
        assert_eq!(parse_bytes("2GiB"), Some(2 << 30));
        assert_eq!(parse_bytes("0.5 MB"), Some(500_000));
        assert_eq!(parse_bytes("1000"), Some(1000));
        for wrong in ["", "GiB", "-1MB", "many", "0", "1e40GB", "nan"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn limits_are_numbers_or_files() {
        assert_eq!(Memory::parse("2GiB"), Ok(Memory::Bytes(2 << 30)));
        assert_eq!(Memory::parse("@limit"), Ok(Memory::File("limit".into())));
        assert!(Memory::parse("@").is_err() && Memory::parse("limit").is_err());
    }

    #[test]
    fn what_a_file_says_is_the_limit_when_it_changes() {
        let folder = std::env::temp_dir().join(format!("lapidary-limit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("limit");
        let memory = || Memory::File(path.clone());
        assert!(Limit::new(memory()).is_err(), "there is no file yet");
        let mut clock = SystemTime::UNIX_EPOCH;
        let mut write = |text: &str| {
            std::fs::write(&path, text).expect("it can be written");
            clock += std::time::Duration::from_secs(10);
            let file = std::fs::File::options().write(true).open(&path);
            let set = file.and_then(|f| f.set_modified(clock));
            set.expect("its time can be set");
        };
        write("a lot\n");
        assert!(Limit::new(memory()).is_err(), "it holds no number");
        write("3MB\n");
        let limit = Limit::new(memory()).expect("a limit");
        assert_eq!(limit.bytes(), 3_000_000);
        let now = || {
            limit.look();
            limit.bytes()
        };
        write("4MB\n");
        assert_eq!(limit.bytes(), 3_000_000, "nobody has looked");
        assert_eq!(now(), 4_000_000);
        write("");
        assert_eq!(now(), 4_000_000, "it is being written");
        write("1MB");
        assert_eq!(now(), 1_000_000);
        std::fs::remove_dir_all(&folder).expect("it is there");
        assert_eq!(now(), 1_000_000, "it is gone");
    }
}
