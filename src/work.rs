//! The folder where compression keeps its work: a file for each entry, complete or absent.

use crate::error::Error;
use bytes::Bytes;
use lapidary_ir::sources::Sources;
use lapidary_passes::compress::{Failure, Store};
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempDir};

/// A folder of entries. Several processes may use one at once: who comes second finds or replaces what is the same.
#[derive(Debug)]
pub struct WorkFolder {
    folder: PathBuf,
    mapped: RefCell<Sources>,
    /// Removes the folder in the end, if it is for one run only.
    temporary: Option<TempDir>,
}

impl WorkFolder {
    /// The folder at this path, which is made if there is none.
    pub fn at(path: &Path) -> Result<WorkFolder, Error> {
        std::fs::create_dir_all(path).map_err(|error| Error::File {
            path: path.to_owned(),
            error,
        })?;
        Ok(WorkFolder {
            folder: path.to_owned(),
            mapped: RefCell::default(),
            temporary: None,
        })
    }

    /// A new folder among those for temporary files, which is gone when this is. What was got from it stays.
    ///
    /// # Errors
    /// None can be made.
    pub fn temporary() -> std::io::Result<WorkFolder> {
        let folder = TempDir::new()?;
        Ok(WorkFolder {
            folder: folder.path().to_owned(),
            mapped: RefCell::default(),
            temporary: Some(folder),
        })
    }

    /// Keeps bytes for as long as they are viewed, and gives a view of them.
    pub fn aside(&self, bytes: Vec<u8>) -> Result<Bytes, Failure> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(&bytes)?;
        drop(bytes);
        let view = lapidary_frontend::map_source(file.path(), &mut self.mapped.borrow_mut())?;
        Ok(view)
    }

    /// The entries that are mapped.
    pub fn sources(&self) -> Sources {
        self.mapped.borrow().clone()
    }
}

impl Store for WorkFolder {
    fn get(&self, name: &str) -> Option<Bytes> {
        // Entries are replaced by renaming and never written in place, so what is mapped does not change.
        lapidary_frontend::map_source(&self.folder.join(name), &mut self.mapped.borrow_mut()).ok()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), Failure> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        for part in parts {
            file.write_all(part)?;
        }
        if self.temporary.is_none() {
            // Renamed before its bytes are on the disk, an entry could be found empty after the machine has failed.
            file.as_file().sync_data()?;
        }
        file.persist(self.folder.join(name))?;
        // Whoever makes entries reads others.
        self.mapped
            .borrow()
            .release(parts.iter().map(|p| p.len()).sum());
        Ok(())
    }

    fn remove(&self, name: &str) {
        // What cannot be removed is only in the way.
        let _ = std::fs::remove_file(self.folder.join(name));
    }
}
