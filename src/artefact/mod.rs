//! Artefacts: how program, code and weights become files.
//!
//! [`write_exe`] puts them behind the prebuilt runtime stub, [`write_image`] in a file of their own for
//! `include_model!`, [`write_ptx`] in one beside the text of a GPU's kernels; [`write_staticlib`] and [`write_dylib`] link them with the
//! runtime behind a C interface, [`write_object`] makes one function without runtime; [`header`] writes their C headers; [`hls`] makes
//! projects for FPGAs, [`flight`] instructions for an overlay on one. [`write_listing`] is
//! for people. Every file is written beside its place and renamed when complete; weights stream through,
//! except into object files.
//! The same parts give the same bytes.

mod archive;
mod exe;
pub mod flight;
pub mod header;
pub mod hls;
mod library;
mod listing;
mod object;

pub use exe::{write_exe, write_image, write_ptx};
pub use library::{write_dylib, write_staticlib};
pub use listing::write_listing;
pub use object::write_object;

use crate::error::Error;
use lapidary_abi::program::Program;
use lapidary_passes::lower::WeightPiece;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What an artefact holds.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The model's file, for messages.
    pub file: &'a str,
    /// Triple of the target that the code is for.
    pub triple: &'a str,
    /// The host program; kernels lie at their offsets in `code`.
    pub program: &'a Program,
    /// Position-independent machine code.
    pub code: &'a [u8],
    /// The weights blob, piece by piece, in order.
    pub weights: &'a [WeightPiece],
}

impl Parts<'_> {
    /// Writes the weights blob, the gaps between its pieces as zeros. Returns how many bytes it has.
    fn write_weights(&self, out: &mut dyn Write, path: &Path) -> Result<(), Error> {
        let mut at = 0;
        for piece in self.weights {
            let bytes = piece.read().map_err(|reason| self.bad_weights(reason))?;
            if piece.offset < at || piece.offset + piece.bytes > self.program.weights_bytes {
                return Err(self.bad_weights("the pieces overlap".to_owned()));
            }
            zeros(out, piece.offset - at).map_err(at_path(path))?;
            out.write_all(&bytes).map_err(at_path(path))?;
            at = piece.offset + piece.bytes;
        }
        zeros(out, self.program.weights_bytes - at).map_err(at_path(path))
    }

    /// The weights blob in memory.
    fn read_weights(&self) -> Result<Vec<u8>, Error> {
        let mut blob = Vec::with_capacity(self.program.weights_bytes as usize);
        self.write_weights(&mut blob, Path::new(self.file))?;
        Ok(blob)
    }

    fn code_error(&self, error: lapidary_ir::backend::Error) -> Error {
        Error::Code {
            file: self.file.to_owned(),
            error,
        }
    }

    fn bad_weights(&self, reason: String) -> Error {
        Error::Weights {
            file: self.file.to_owned(),
            reason,
        }
    }

    /// The number of the target's instruction set, as in ELF's `e_machine`.
    fn machine(&self) -> u32 {
        match self.architecture() {
            "x86_64" => 62,
            "aarch64" => 183,
            "nvptx64" => lapidary_abi::image::CUDA,
            arch if arch.starts_with("riscv64") => 243,
            _ => 0,
        }
    }

    fn architecture(&self) -> &str {
        self.triple.split('-').next().unwrap_or_default()
    }

    /// An error unless the target is the machine that the embedded runtime was built for.
    fn require_own_runtime(&self, what: &str) -> Result<(), Error> {
        let own = lapidary_abi::image::machine();
        if self.machine() == own && self.triple.contains(std::env::consts::OS) {
            return Ok(());
        }
        Err(Error::Usage {
            message: format!("{what} for `{}` cannot be made here", self.triple),
            help: "this lapidary carries the runtime of its own machine alone: use `--emit obj` or `--emit \
                   image`, or a lapidary built for that machine"
                .to_owned(),
        })
    }
}

/// Writes a file beside `path` and renames it when `write` has succeeded; nothing is left otherwise.
pub(crate) fn write_file(
    path: &Path,
    executable: bool,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    Staged::new(path, executable, write)?.commit()
}

/// Writes a text, whole or not at all.
pub fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    write_file(path, false, |out| {
        out.write_all(text.as_bytes()).map_err(|error| Error::File {
            path: path.to_owned(),
            error,
        })
    })
}

/// Writes files out of pieces, all of them or none; `written` is told the length of each piece that was.
///
/// # Errors
/// A file cannot be written; those that are in place already stay, as they are whole.
pub fn write_pieces<P: AsRef<[u8]>>(
    files: &[(PathBuf, Vec<P>)],
    written: &dyn Fn(usize),
) -> Result<(), Error> {
    let mut staged = vec![];
    for (path, pieces) in files {
        let write = |out: &mut dyn Write| {
            let mut all = pieces.iter();
            all.try_for_each(|p| write_piece(out, p.as_ref(), written))
                .map_err(at_path(path))
        };
        staged.push(Staged::new(path, false, write)?);
    }
    staged.into_iter().try_for_each(Staged::commit)
}

fn write_piece(out: &mut dyn Write, piece: &[u8], written: &dyn Fn(usize)) -> io::Result<()> {
    out.write_all(piece)?;
    written(piece.len());
    Ok(())
}

/// Writes a folder of files, whole or not at all; `written` is told the length of each piece that was. There may be no folder of its name, unless it
/// is empty.
///
/// # Errors
/// The folder exists, or a file cannot be written.
pub fn write_folder<P: AsRef<[u8]>>(
    path: &Path,
    files: &[(String, Vec<P>)],
    written: &dyn Fn(usize),
) -> Result<(), Error> {
    let fail = at_path(path);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = tempfile::Builder::new()
        .prefix(".lapidary-")
        .tempdir_in(parent)
        .map_err(&fail)?;
    for (name, pieces) in files {
        let write = || {
            let mut out =
                BufWriter::with_capacity(1 << 20, std::fs::File::create(folder.path().join(name))?);
            let mut all = pieces.iter();
            all.try_for_each(|p| write_piece(&mut out, p.as_ref(), written))?;
            out.flush()
        };
        write().map_err(&fail)?;
    }
    set_folder_mode(folder.path()).map_err(&fail)?;
    std::fs::rename(folder.path(), path).map_err(&fail)?;
    // What it would remove is not there any more.
    let _ = folder.keep();
    Ok(())
}

/// A complete file beside its place; gone unless it is committed. What makes several files stages all of them
/// first, so that a disk that fills up leaves none.
struct Staged<'p> {
    file: NamedTempFile,
    path: &'p Path,
}

impl<'p> Staged<'p> {
    fn new(
        path: &'p Path,
        executable: bool,
        write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<Staged<'p>, Error> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let fail = at_path(path);
        let mut file = tempfile::Builder::new()
            .prefix(".lapidary-")
            .tempfile_in(folder)
            .map_err(&fail)?;
        let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        write(&mut out)?;
        out.flush().map_err(&fail)?;
        drop(out);
        set_mode(file.as_file(), executable).map_err(&fail)?;
        Ok(Staged { file, path })
    }

    fn commit(self) -> Result<(), Error> {
        let placed = self.file.persist(self.path);
        placed.map_err(|e| at_path(self.path)(e.error)).map(drop)
    }
}

#[cfg(unix)]
fn set_mode(file: &std::fs::File, executable: bool) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if executable { 0o755 } else { 0o644 };
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

/// As folders are made: those for temporary files are their owner's alone.
#[cfg(unix)]
fn set_folder_mode(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn set_folder_mode(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn set_mode(_: &std::fs::File, _: bool) -> std::io::Result<()> {
    Ok(())
}

fn at_path(path: &Path) -> impl Fn(std::io::Error) -> Error + use<'_> {
    move |error| Error::File {
        path: path.to_owned(),
        error,
    }
}

fn zeros(out: &mut dyn Write, mut n: u64) -> std::io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while n > 0 {
        let now = n.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..now as usize])?;
        n -= now;
    }
    Ok(())
}

/// An identifier of C and Rust from a name: what is no letter or digit becomes `_`.
pub(crate) fn identifier(name: &str) -> String {
    let mut id: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if id.is_empty() || id.starts_with(|c: char| c.is_ascii_digit()) {
        id.insert(0, '_');
    }
    id
}

/// Distinct identifiers for ports, in order.
pub(crate) fn identifiers<'a>(names: impl Iterator<Item = &'a str>, taken: &[&str]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for name in names {
        let base = identifier(name);
        let mut id = base.clone();
        let mut n = 2;
        while ids.contains(&id) || taken.contains(&id.as_str()) {
            id = format!("{base}_{n}");
            n += 1;
        }
        ids.push(id);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_distinct_identifiers() {
        let ids = identifiers(["a.b", "a:b", "1", "", "if"].into_iter(), &["if"]);
        assert_eq!(ids, ["a_b", "a_b_2", "_1", "_", "if_2"]);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x");
        let failed = write_file(&path, false, |out| {
            out.write_all(b"half").map_err(at_path(&path))?;
            Err(at_path(&path)(std::io::ErrorKind::StorageFull.into()))
        });
        assert!(failed.is_err());
        let left = std::fs::read_dir(folder.path()).expect("it is there");
        assert_eq!(left.count(), 0);
    }
}
