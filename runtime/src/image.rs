//! Opening an image: from a file (an executable's own, or another), or from parts in memory.

use crate::error::RunError;
use crate::exec::{Model, ModelOptions};
use crate::memory::{Code, Mapping, Weights};
use lapidary_abi::image::{ImageError, TRAILER_BYTES, Trailer, checksum, machine};
use lapidary_abi::program::Program;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// Largest encoded program that is read: programs are lists of steps, a few MB for the largest models.
const MAX_PROGRAM_BYTES: u64 = 1 << 30;

/// A compiled model that is not loaded yet.
pub struct Image {
    /// The host program.
    pub program: Program,
    /// Machine code.
    pub code: Code,
    /// Weights.
    pub weights: Weights,
    /// Checksum of the host program's bytes.
    pub checksum: u64,
}

impl Image {
    /// An image from its parts in memory, as a compiler in the same process has them: code is copied to
    /// executable memory.
    pub fn from_parts(program: Program, code: &[u8], weights: Weights) -> Result<Image, RunError> {
        Ok(Image {
            checksum: checksum(&program.to_bytes()),
            program,
            code: Code::copy_of(code)?,
            weights,
        })
    }

    /// The image at the end of this process' own executable.
    pub fn of_this_executable() -> Result<Image, RunError> {
        let path = if cfg!(target_os = "linux") {
            "/proc/self/exe".into()
        } else {
            std::env::current_exe().map_err(|e| RunError::System(e.to_string()))?
        };
        Image::open(&path)
    }

    /// The image at the end of a file. Code and weights are mapped, not read.
    pub fn open(path: &Path) -> Result<Image, RunError> {
        let fail = |e: std::io::Error| RunError::System(format!("{}: {e}", path.display()));
        let mut file = File::open(path).map_err(fail)?;
        let file_bytes = file.metadata().map_err(fail)?.len();
        let trailer = read_trailer(&mut file, file_bytes).map_err(fail)?;
        let trailer = check(Trailer::decode(&trailer, file_bytes))?;
        if trailer.program_bytes > MAX_PROGRAM_BYTES {
            return Err(RunError::program("the program is too long"));
        }
        let mut program = vec![0; trailer.program_bytes as usize];
        file.seek(SeekFrom::Start(trailer.program_offset))
            .map_err(fail)?;
        file.read_exact(&mut program).map_err(fail)?;
        let program = decode(&program, &trailer)?;
        let code = map(&file, trailer.code_offset, trailer.code_bytes, true)?;
        let weights = map(&file, trailer.weights_offset, trailer.weights_bytes, false)?;
        Ok(Image {
            checksum: trailer.program_checksum,
            program,
            code: code.map_or(Code::Linked(&[]), Code::Mapped),
            weights: weights.map_or(Weights::Linked(&[]), Weights::Mapped),
        })
    }

    /// An image that is part of this program (`include_model!`): weights are used in place, code is copied
    /// to executable memory. `bytes` begin at a multiple of 64.
    pub fn of_included(bytes: &'static [u8]) -> Result<Image, RunError> {
        let last = bytes
            .last_chunk()
            .ok_or_else(|| RunError::program("an image without a trailer"))?;
        let trailer = check(Trailer::decode(last, bytes.len() as u64))?;
        let part = |offset: u64, len: u64| {
            let begin = offset as usize;
            bytes
                .get(begin..begin + len as usize)
                .ok_or_else(|| RunError::program("a part lies outside the image"))
        };
        let program = part(trailer.program_offset, trailer.program_bytes)?;
        let weights = part(trailer.weights_offset, trailer.weights_bytes)?;
        Ok(Image {
            program: decode(program, &trailer)?,
            code: Code::copy_of(part(trailer.code_offset, trailer.code_bytes)?)?,
            weights: Weights::Linked(weights),
            checksum: trailer.program_checksum,
        })
    }

    /// Checks the program and makes it ready to run.
    pub fn load(self, options: ModelOptions) -> Result<Model, RunError> {
        Model::new(self, options)
    }
}

/// A trailer for this machine.
fn check(trailer: Result<Trailer, ImageError>) -> Result<Trailer, RunError> {
    let trailer = trailer.map_err(|e| RunError::Program(e.to_string()))?;
    if trailer.machine != machine() {
        return Err(RunError::program(format!(
            "made for instruction set {}, this machine is {}",
            trailer.machine,
            machine()
        )));
    }
    Ok(trailer)
}

fn decode(program: &[u8], trailer: &Trailer) -> Result<Program, RunError> {
    if checksum(program) != trailer.program_checksum {
        return Err(RunError::program(
            "damaged: the checksum of the program differs",
        ));
    }
    Program::from_bytes(program).map_err(RunError::Program)
}

fn read_trailer(file: &mut File, file_bytes: u64) -> std::io::Result<[u8; TRAILER_BYTES]> {
    let mut last = [0; TRAILER_BYTES];
    if let Some(at) = file_bytes.checked_sub(TRAILER_BYTES as u64) {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut last)?;
    }
    Ok(last)
}

fn map(
    file: &File,
    offset: u64,
    bytes: u64,
    executable: bool,
) -> Result<Option<Arc<Mapping>>, RunError> {
    if bytes == 0 {
        return Ok(None);
    }
    let len =
        usize::try_from(bytes).map_err(|_| RunError::program("too large for this machine"))?;
    Mapping::of_file(file, offset, len, executable).map(|m| Some(Arc::new(m)))
}
