//! Bytes of a model's files: mapped, never read whole, and never outside the model's folder.

use super::proto::{EXTERNAL, TensorProto};
use bytes::Bytes;
use lapidary_ir::sources::{Source, Sources};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A mapped file.
#[derive(Clone)]
struct Mapped(Arc<memmap2::Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
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
pub(super) fn map_source(path: &Path, sources: &mut Sources) -> Result<Bytes, String> {
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
    let mapped = Mapped(Arc::new(mapped));
    sources.push(Arc::new(mapped.clone()));
    Ok(Bytes::from_owner(mapped))
}

/// Files beside a model, for tensors with external data.
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
    pub(super) fn into_sources(self) -> Sources {
        self.sources.into_inner()
    }

    /// Whether a location names something inside the model's folder (links aside).
    pub(super) fn is_inside(location: &str) -> bool {
        let mut parts = Path::new(location).components();
        !location.is_empty() && parts.all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    }

    /// The bytes of a tensor whose data is external; `None` if they are inside the message.
    pub fn external(&self, tensor: &TensorProto) -> Result<Option<Bytes>, String> {
        if tensor.data_location.unwrap_or(0) != EXTERNAL {
            return Ok(None);
        }
        let entry = |key: &str| {
            tensor
                .external_data
                .iter()
                .find(|e| e.key == key)
                .map(|e| e.value.as_str())
        };
        let number = |key: &str| match entry(key) {
            None | Some("") => Ok(None),
            Some(v) => v
                .parse::<usize>()
                .map(Some)
                .map_err(|_| format!("external data has `{key}` {v:?}, which is not a number")),
        };
        let location = entry("location").ok_or("external data has no `location`")?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let file = self.open(location)?;
        let end = match length {
            Some(n) => offset
                .checked_add(n)
                .ok_or("external data has an offset and length that overflow")?,
            None => file.len(),
        };
        if offset > end || end > file.len() {
            return Err(format!(
                "external data is bytes {offset}..{end} of `{location}`, which has {} bytes",
                file.len()
            ));
        }
        Ok(Some(file.slice(offset..end)))
    }

    fn open(&self, location: &str) -> Result<Bytes, String> {
        let folder = self
            .folder
            .as_deref()
            .ok_or("external data needs a model read from a file")?;
        if !Files::is_inside(location) {
            return Err(format!(
                "external data is at {location:?}, but must stay inside the model's folder"
            ));
        }
        let resolve = |p: &Path| {
            p.canonicalize()
                .map_err(|e| format!("cannot read external data `{location}`: {e}"))
        };
        let (root, path) = (resolve(folder)?, resolve(&folder.join(location))?);
        if !path.starts_with(&root) {
            return Err(format!(
                "external data is at {location:?}, a link that leaves the model's folder; copy the file there"
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

#[cfg(test)]
mod tests {
    use super::super::proto::StringStringEntryProto;
    use super::*;

    fn external(entries: &[(&str, &str)]) -> TensorProto {
        let entry = |&(k, v): &(&str, &str)| StringStringEntryProto {
            key: k.into(),
            value: v.into(),
        };
        TensorProto {
            data_location: Some(EXTERNAL),
            external_data: entries.iter().map(entry).collect(),
            ..TensorProto::default()
        }
    }

    #[test]
    fn external_data_stays_in_the_folder_and_in_range() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let outer = dir.path();
        let folder = outer.join("model");
        std::fs::create_dir(&folder).expect("create");
        std::fs::write(folder.join("w.bin"), [1, 2, 3, 4]).expect("write");
        std::fs::write(outer.join("secret"), [9]).expect("write");
        #[cfg(unix)]
        std::os::unix::fs::symlink(outer.join("secret"), folder.join("link")).expect("link");
        let files = Files::new(Some(&folder));
        let cases: &[(&[(&str, &str)], Result<&[u8], &str>)] = &[
            (&[("location", "w.bin")], Ok(&[1, 2, 3, 4])),
            (
                &[("location", "./w.bin"), ("offset", "1"), ("length", "2")],
                Ok(&[2, 3]),
            ),
            (
                &[("location", "w.bin"), ("offset", "3"), ("length", "2")],
                Err("which has 4 bytes"),
            ),
            (
                &[("location", "w.bin"), ("offset", "5")],
                Err("which has 4 bytes"),
            ),
            (
                &[
                    ("location", "w.bin"),
                    ("offset", "18446744073709551615"),
                    ("length", "2"),
                ],
                Err("overflow"),
            ),
            (
                &[("location", "w.bin"), ("offset", "-1")],
                Err("not a number"),
            ),
            (
                &[("location", "missing.bin")],
                Err("cannot read external data"),
            ),
            (&[("location", "../secret")], Err("must stay inside")),
            (&[("location", "/etc/hostname")], Err("must stay inside")),
            (&[("location", "")], Err("must stay inside")),
            (&[], Err("no `location`")),
            #[cfg(unix)]
            (&[("location", "link")], Err("leaves the model's folder")),
            (&[("location", ".")], Err("not a regular file")),
        ];
        for (entries, want) in cases {
            match (files.external(&external(entries)), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.as_deref(), Some(*want)),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{entries:?}: found {got:?}, expected {want:?}"),
            }
        }
    }
}
