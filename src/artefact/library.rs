//! Static and shared libraries: the runtime and one model, behind the C interface of `lapidary.h`.
//!
//! The model is an object with code, weights and program in sections of their own and functions `NAME_create`, …
//! that hand them to the runtime, which is another object, made when the compiler was built. A static library is
//! both in an archive; a shared one is linked by `cc`.

use super::archive::{self, Member};
use super::header::{self, library_header};
use super::{Parts, Staged, at_path, write_file};
use crate::error::Error;
use lapidary_cranelift::object::{Description, Forward, ObjectFile, library_object};
use lapidary_ir::target::Target;
use lapidary_runtime::capi::LINKED_VERSION;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The runtime as a relocatable object; empty if the linker could not make one.
static RUNTIME: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime.o"));

/// What the runtime exports.
const API: &str = include_str!("../../runtime/src/capi/exports.txt");

/// What each model's object exports.
const FORWARDS: [Forward; 4] = [
    forward("create", true, &[false, true], Some(false)),
    forward("destroy", false, &[true], None),
    forward("run", false, &[true; 5], Some(false)),
    forward("last_error", false, &[], Some(true)),
];

const fn forward(
    suffix: &'static str,
    describes: bool,
    params: &'static [bool],
    result: Option<bool>,
) -> Forward<'static> {
    Forward {
        suffix,
        describes,
        params,
        result,
    }
}

/// Writes a static library, and its header beside it.
pub fn write_staticlib(path: &Path, parts: &Parts, target: &Target) -> Result<(), Error> {
    let name = header::name_of(path);
    let header_path = path.with_extension("h");
    let header = stage_header(&header_path, parts, &name)?;
    let object = model_object(parts, &name, target)?;
    let fail = at_path(path);
    let folder = folder(path);
    let mut file = tempfile::tempfile_in(folder).map_err(&fail)?;
    write_object(&object, &mut file, path)?;
    drop(object);
    let bytes = file.stream_position().map_err(&fail)?;
    file.rewind().map_err(&fail)?;
    write_file(path, false, |out| {
        let mut runtime = RUNTIME;
        let members = vec![
            Member {
                name: "runtime.o",
                symbols: API.lines().map(str::to_owned).collect(),
                content: &mut runtime,
                bytes: RUNTIME.len() as u64,
            },
            Member {
                name: "model.o",
                symbols: FORWARDS
                    .iter()
                    .map(|f| format!("{name}_{}", f.suffix))
                    .collect(),
                content: &mut file,
                bytes,
            },
        ];
        archive::write(out, members).map_err(at_path(path))
    })?;
    header.commit()
}

/// Writes a shared library, and its header beside it. Needs `cc`.
pub fn write_dylib(path: &Path, parts: &Parts, target: &Target) -> Result<(), Error> {
    let name = header::name_of(path);
    let header_path = path.with_extension("h");
    let header = stage_header(&header_path, parts, &name)?;
    let object = model_object(parts, &name, target)?;
    let fail = at_path(path);
    let work = tempfile::Builder::new()
        .prefix(".lapidary-")
        .tempdir_in(folder(path))
        .map_err(&fail)?;
    let at = |name: &str| work.path().join(name);
    write_object(&object, &mut create(&at("model.o"))?, path)?;
    drop(object);
    std::fs::write(at("runtime.o"), RUNTIME).map_err(&fail)?;
    let exports = format!("{{ global: {name}_*; lapidary_*; local: *; }};\n");
    std::fs::write(at("exports"), exports).map_err(&fail)?;
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let linked = Command::new(&cc)
        .current_dir(work.path())
        .args(["-shared", "-o", "library", "model.o", "runtime.o"])
        .args(["-static-libgcc", "-Wl,--version-script=exports"])
        .args(["-Wl,-Bsymbolic", "-Wl,-s", "-Wl,--build-id=none"])
        .args(["-Wl,--gc-sections", "-lm", "-lpthread", "-ldl"])
        .output();
    let refused = |why: String| Error::Usage {
        message: format!("{}: the linker failed: {why}", path.display()),
        help: "a shared library needs a C linker: `cc`, or the one that the variable `CC` names"
            .to_owned(),
    };
    match linked {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return Err(refused(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        Err(error) => return Err(refused(format!("{}: {error}", cc.display()))),
    }
    std::fs::rename(at("library"), path).map_err(&fail)?;
    header.commit()
}

fn stage_header<'p>(path: &'p Path, parts: &Parts, name: &str) -> Result<Staged<'p>, Error> {
    Staged::new(path, false, |out| {
        let text = library_header(name, parts.program);
        out.write_all(text.as_bytes()).map_err(at_path(path))
    })
}

fn model_object(parts: &Parts, name: &str, target: &Target) -> Result<ObjectFile, Error> {
    parts.require_own_runtime("a library")?;
    if RUNTIME.is_empty() {
        return Err(Error::Usage {
            message: "this lapidary was built without the runtime for libraries".to_owned(),
            help: "build it where `cc -r` works".to_owned(),
        });
    }
    let description = Description {
        version: LINKED_VERSION,
        machine: parts.machine(),
    };
    library_object(
        name,
        &description,
        parts.code.to_vec(),
        parts.read_weights()?,
        parts.program.to_bytes(),
        &FORWARDS,
        target,
    )
    .map_err(|error| parts.code_error(error))
}

pub(super) fn write_object(object: &ObjectFile, file: &mut File, path: &Path) -> Result<(), Error> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    object.write(&mut out).map_err(at_path(path))?;
    out.flush().map_err(at_path(path))
}

fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(at_path(path))
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}
