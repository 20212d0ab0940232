//! How much memory a model may have: a number of bytes, or what a file says from time to time.

use crate::error::RunError;
use std::path::PathBuf;
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

/// A limit, as it is now.
pub struct Limit {
    memory: Memory,
    read: Mutex<Read>,
}

/// What a file said.
struct Read {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Limit {
    /// Reads the limit.
    ///
    /// # Errors
    /// The file cannot be read, or holds no number of bytes.
    pub fn new(memory: Memory) -> Result<Limit, RunError> {
        let read = match &memory {
            Memory::Bytes(bytes) => Read {
                bytes: *bytes,
                modified: None,
            },
            Memory::File(path) => {
                let wrong = |e: String| {
                    RunError::Input(format!("the limit of memory in {}: {e}", path.display()))
                };
                let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
                let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
                let bytes = parse_bytes(text.trim());
                let bytes = bytes.ok_or_else(|| wrong("is no number of bytes like 2GiB".into()))?;
                Read { bytes, modified }
            }
        };
        Ok(Limit {
            memory,
            read: Mutex::new(read),
        })
    }

    /// Bytes. A file is read again if it was written since; while it holds no number the last one holds.
    pub fn bytes(&self) -> u64 {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Memory::File(path) = &self.memory
            && let Ok(modified) = std::fs::metadata(path).and_then(|m| m.modified())
            && read.modified != Some(modified)
        {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if let Some(bytes) = parse_bytes(text.trim()) {
                *read = Read {
                    bytes,
                    modified: Some(modified),
                };
            }
        }
        read.bytes
    }
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
        write("4MB\n");
        assert_eq!(limit.bytes(), 4_000_000);
        write("");
        assert_eq!(limit.bytes(), 4_000_000, "it is being written");
        write("1MB");
        assert_eq!(limit.bytes(), 1_000_000);
        std::fs::remove_dir_all(&folder).expect("it is there");
        assert_eq!(limit.bytes(), 1_000_000, "it is gone");
    }
}
