//! The folder where compression keeps its work: a file for each entry, complete or absent.

use crate::error::Error;
use bytes::Bytes;
use lapidary_passes::compress::{Failure, Store};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A folder of entries. Several processes may use one at once: who comes second finds or replaces what is the same.
#[derive(Debug)]
pub struct WorkFolder(PathBuf);

impl WorkFolder {
    /// The folder at this path, which is made if there is none.
    pub fn at(path: &Path) -> Result<WorkFolder, Error> {
        std::fs::create_dir_all(path).map_err(|error| Error::File {
            path: path.to_owned(),
            error,
        })?;
        Ok(WorkFolder(path.to_owned()))
    }
}

impl Store for WorkFolder {
    fn get(&self, name: &str) -> Option<Bytes> {
        // Entries are replaced by renaming and never written in place, so what is mapped does not change.
        lapidary_frontend::map(&self.0.join(name)).ok()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), Failure> {
        let mut file = NamedTempFile::new_in(&self.0)?;
        for part in parts {
            file.write_all(part)?;
        }
        // Renamed before its bytes are on the disk, an entry could be found empty after the machine has failed.
        file.as_file().sync_data()?;
        file.persist(self.0.join(name))?;
        Ok(())
    }
}
