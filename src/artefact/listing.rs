//! Listings: for each kernel its text and the machine code made from it, for people.

use super::{Parts, at_path, write_file};
use crate::driver::CompileOptions;
use crate::error::Error;
use lapidary_ir::kernel::Kernel;
use std::io::Write;
use std::path::Path;

/// Writes a listing of the kernels that the parts' code was made from.
pub fn write_listing(
    path: &Path,
    parts: &Parts,
    kernels: &[Kernel],
    options: &CompileOptions,
) -> Result<(), Error> {
    let target = &options.target;
    let code = (options.backend.listing)(kernels, target).map_err(|e| parts.code_error(e))?;
    let head = format!(
        "; {} for {}: {} kernels, {} bytes of code\n",
        parts.file,
        target.triple,
        kernels.len(),
        parts.code.len()
    );
    let write = |out: &mut dyn Write| {
        out.write_all(head.as_bytes())?;
        for ((kernel, code), at) in kernels.iter().zip(&code).zip(&parts.program.kernels) {
            write!(out, "\n; == {} at {:#x}\n", kernel.name, at.code_offset)?;
            for line in kernel.to_string().lines() {
                writeln!(out, "; {line}")?;
            }
            writeln!(out, "{}:\n{}", kernel.name, code.trim_end())?;
        }
        Ok(())
    };
    write_file(path, false, |out| write(out).map_err(at_path(path)))
}
