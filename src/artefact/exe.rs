//! Executables, and images for `include_model!`: the layout of [`lapidary_abi::image`].

use super::{Parts, Staged, at_path, write_file, zeros};
use crate::error::Error;
use lapidary_abi::image::{Trailer, checksum};
use std::io::Write;
use std::path::Path;

/// The prebuilt runtime that the executable of a language model, or of an encoder for texts, begins with.
static LANGUAGE_STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/language-stub"));

/// The same with a server.
static SERVER_STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/server-stub"));

/// The prebuilt runtime that any other executable begins with.
static STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub"));

/// Writes an executable: it needs no toolchain, here or where it runs. Only that of a program for texts can serve clients.
pub fn write_exe(path: &Path, parts: &Parts, server: bool) -> Result<(), Error> {
    parts.require_own_runtime("an executable")?;
    // Only programs for texts carry files: their tokenizers.
    let stub = match (parts.program.files.is_empty(), server) {
        (true, _) => STUB,
        (false, false) => LANGUAGE_STUB,
        (false, true) => SERVER_STUB,
    };
    write_file(path, true, |out| {
        out.write_all(stub).map_err(at_path(path))?;
        write_parts(out, path, stub.len() as u64, parts)
    })
}

/// Writes program, code and weights into one file.
pub fn write_image(path: &Path, parts: &Parts) -> Result<(), Error> {
    write_file(path, false, |out| write_parts(out, path, 0, parts))
}

/// Writes the text of the kernels, and beside it the image with program and weights. Both are written before either is
/// put in its place.
pub fn write_ptx(path: &Path, parts: &Parts) -> Result<(), Error> {
    let beside = path.with_extension("image");
    if beside == path {
        return Err(Error::Usage {
            message: format!(
                "`{}` is the name of the image beside the PTX",
                path.display()
            ),
            help: "give the PTX a name that ends in `.ptx`".to_owned(),
        });
    }
    let image = Staged::new(&beside, false, |out| write_parts(out, &beside, 0, parts))?;
    write_file(path, false, |out| {
        out.write_all(parts.code).map_err(at_path(path))
    })?;
    image.commit()
}

fn write_parts(out: &mut dyn Write, path: &Path, start: u64, parts: &Parts) -> Result<(), Error> {
    let program = parts.program.to_bytes();
    let (code, weights) = (parts.code.len() as u64, parts.program.weights_bytes);
    let layout = Trailer::layout(start, code, weights, program.len() as u64);
    let trailer = Trailer {
        program_checksum: checksum(&program),
        machine: parts.machine(),
        ..layout.ok_or_else(|| parts.bad_weights("they are too large for a file".to_owned()))?
    };
    let fail = at_path(path);
    zeros(out, trailer.code_offset - start).map_err(&fail)?;
    out.write_all(parts.code).map_err(&fail)?;
    let gap = trailer.weights_offset - trailer.code_offset - code;
    zeros(out, gap).map_err(&fail)?;
    parts.write_weights(out, path)?;
    let gap = trailer.program_offset - trailer.weights_offset - weights;
    zeros(out, gap).map_err(&fail)?;
    out.write_all(&program).map_err(&fail)?;
    out.write_all(&trailer.encode()).map_err(&fail)
}
