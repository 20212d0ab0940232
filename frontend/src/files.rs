//! Bytes of a model's files: mapped, never read whole, and never outside the model's folder.

use bytes::Bytes;
use lapidary_ir::sources::{Source, Sources};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A mapped file.
struct Mapped(memmap2::Mmap);

/// What views of a mapped file hold.
struct Owner(Arc<Mapped>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.0
    }
}

impl Source for Mapped {
    fn release(&self) {
        // It is a wish: where it cannot be granted the pages stay.
        // SAFETY: the map is private and never written, so each dropped page is read from the file again.
        #[cfg(unix)]
        unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }.ok();
    }
}

/// Maps a file. The bytes live as long as any view of them does.
pub fn map(path: &Path) -> Result<Bytes, String> {
    map_source(path, &mut Sources::default())
}

/// Maps a file and notes it in `sources`.
pub fn map_source(path: &Path, sources: &mut Sources) -> Result<Bytes, String> {
    let fail = |e: std::io::Error| format!("cannot read `{}`: {e}", path.display());
    let file = File::open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(format!("`{}` is not a regular file", path.display()));
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is private and read-only, so this process never changes it; a model file that
    // another process rewrites while it is compiled gives other bytes, and one that is truncated stops
    // the process with a signal, as with every mapped file.
    let mapped = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) }.map_err(fail)?;
    let mapped = Arc::new(Mapped(mapped));
    let source: Arc<dyn Source> = mapped.clone();
    sources.push(&source);
    Ok(Bytes::from_owner(Owner(mapped)))
}

/// Files in a model's folder: those with external data, or the parts of a checkpoint.
#[derive(Debug, Default)]
pub struct Files {
    folder: Option<PathBuf>,
    mapped: RefCell<HashMap<PathBuf, Bytes>>,
    sources: RefCell<Sources>,
}

impl Files {
    /// Files in this folder and below; with `None`, external data is an error.
    pub fn new(folder: Option<&Path>) -> Files {
        Files {
            folder: folder.map(Path::to_owned),
            mapped: RefCell::default(),
            sources: RefCell::default(),
        }
    }

    /// What has been mapped.
    pub(crate) fn into_sources(self) -> Sources {
        self.sources.into_inner()
    }

    /// Whether a location names something inside the model's folder (links aside).
    pub(crate) fn is_inside(location: &str) -> bool {
        let mut parts = Path::new(location).components();
        !location.is_empty() && parts.all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    }

    /// Maps a file that a model names; `what` it is, for messages. Once mapped, it is not mapped again.
    pub fn open(&self, location: &str, what: &str) -> Result<Bytes, String> {
        let folder = self
            .folder
            .as_deref()
            .ok_or_else(|| format!("{what} needs a model read from a file"))?;
        if !Files::is_inside(location) {
            return Err(format!(
                "{what} is at {location:?}, but must stay inside the model's folder"
            ));
        }
        let resolve = |p: &Path| {
            p.canonicalize()
                .map_err(|e| format!("cannot read {what} `{location}`: {e}"))
        };
        let (root, path) = (resolve(folder)?, resolve(&folder.join(location))?);
        let cached = blobs(folder).is_some_and(|b| path.starts_with(b));
        if !path.starts_with(&root) && !cached {
            return Err(format!(
                "{what} is at {location:?}, a link that leaves the model's folder; copy the file there"
            ));
        }
        if let Some(bytes) = self.mapped.borrow().get(&path) {
            return Ok(bytes.clone());
        }
        let bytes = map_source(&path, &mut self.sources.borrow_mut())?;
        self.mapped.borrow_mut().insert(path, bytes.clone());
        Ok(bytes)
    }
}

/// Where Hugging Face's cache keeps what its folders `snapshots/REVISION` link to.
fn blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.canonicalize().ok()?.parent()?.to_owned();
    let named = snapshots.file_name()? == "snapshots";
    named.then(|| snapshots.parent()?.join("blobs").canonicalize().ok())?
}
