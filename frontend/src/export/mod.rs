//! Compressed weights into the files of other programs: what a format can hold, and its bytes.
//!
//! [`Format`] is the list of formats. A format says which kinds of grids it holds for a weight ([`Target::grids`]), and makes the
//! files from the model's own with the weights' terms in place: everything else is copied as it is. Files are pieces of bytes:
//! views of the model's files, and what is new.

mod checkpoint;
mod gguf;
mod grid;
mod onnx;
mod wire;

pub use grid::Grid;

use crate::error::Problem;
use bytes::Bytes;
use lapidary_ir::encodings::Encoding;
use lapidary_ir::sources::Sources;
use std::path::Path;

/// A format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An ONNX file, from an ONNX file.
    Onnx,
    /// A folder with safetensors of compressed-tensors, from such a folder.
    CompressedTensors,
    /// A folder with safetensors of GPTQ, from such a folder.
    Gptq,
    /// A GGUF file, from a folder with safetensors.
    Gguf,
}

/// A kind of grids, as methods are asked for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Bits of a code.
    pub bits: u32,
    /// Weights of a row that share a scale; 0 for the whole row.
    pub group: usize,
    /// The same range on both sides of zero.
    pub symmetric: bool,
}

/// A weight in its new form.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'t> {
    /// Its name in the model's file.
    pub name: &'t str,
    /// What it is now, `f32[outputs, inputs]`.
    pub term: &'t Encoding,
    /// The file has outputs as columns.
    pub by_columns: bool,
}

/// A file to write: where, within the output, and its bytes piece by piece.
#[derive(Clone, Debug)]
pub struct File {
    /// Its name in the output's folder; empty if the output is a file.
    pub name: String,
    /// Its bytes.
    pub pieces: Vec<Bytes>,
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// All files.
    pub files: Vec<File>,
    /// What was said of weights, a line each: those that the format holds in another form than chosen.
    pub notes: Vec<String>,
    /// The model's files, of which pieces are views.
    pub sources: Sources,
}

/// Puts bytes aside that will be written in the end, and gives them back: a view of a temporary file, as all of them together may be
/// larger than memory.
pub type Aside<'a> = dyn Fn(Vec<u8>) -> Result<Bytes, Problem> + 'a;

/// Where weights come from and what they may become.
pub trait Target {
    /// The kinds of grids that the format holds for a weight of this name and shape `[outputs, inputs]`; none if it must stay as
    /// it is.
    fn grids(&self, name: &str, shape: [usize; 2], by_columns: bool) -> Vec<Kind>;

    /// The files, with these weights in place.
    ///
    /// # Errors
    /// A weight is of a form that the format does not hold, or nothing can be put aside.
    fn write(&self, weights: &[Weight], aside: &Aside) -> Result<Written, Problem>;
}

impl Format {
    /// The format of the model at `path`, for output there.
    ///
    /// # Errors
    /// The model cannot be read, or is of a kind that the format is not written from.
    pub fn target(self, path: &Path) -> Result<Box<dyn Target>, Problem> {
        Ok(match self {
            Format::Onnx => Box::new(onnx::Model::read(path)?),
            Format::CompressedTensors => Box::new(checkpoint::Folder::read(
                path,
                checkpoint::Style::CompressedTensors,
            )?),
            Format::Gptq => Box::new(checkpoint::Folder::read(path, checkpoint::Style::Gptq)?),
            Format::Gguf => Box::new(gguf::Model::read(path)?),
        })
    }
}

/// A problem with a weight that a format does not hold.
fn misfit(name: &str, term: &Encoding, format: &str, holds: &str) -> Problem {
    Problem {
        place: format!("weight `{name}`"),
        reason: format!("is `{term}`, which {format} does not hold"),
        remedy: Some(format!(
            "it holds {holds}; `keep` in a recipe leaves a weight as it is"
        )),
    }
}
