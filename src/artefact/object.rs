//! Freestanding objects: one C function, no runtime, no libc.

use super::header::{self, object_header};
use super::{Parts, Staged, at_path, write_file};
use crate::error::Error;
use lapidary_cranelift::object::object;
use lapidary_ir::backend::Code;
use lapidary_ir::target::Target;
use std::path::Path;

/// Writes an object with `NAME_run`, and its header beside it. `target` has no micro-kernels, and the parts
/// were compiled for it.
pub fn write_object(path: &Path, parts: &Parts, target: &Target) -> Result<(), Error> {
    let name = header::name_of(path);
    let code = Code {
        bytes: parts.code.to_vec(),
        entries: Vec::new(),
    };
    let weights = parts.read_weights()?;
    let object = object(&name, parts.program, code, weights, target)
        .map_err(|error| parts.code_error(error))?;
    let header_path = path.with_extension("h");
    let header = Staged::new(&header_path, false, |out| {
        let text = object_header(&name, parts.program);
        out.write_all(text.as_bytes())
            .map_err(at_path(&header_path))
    })?;
    write_file(path, false, |out| object.write(out).map_err(at_path(path)))?;
    header.commit()
}
