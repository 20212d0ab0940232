//! The command line of a compiled executable.
//!
//! Exit status: 0 done; 1 the model or its data cannot be run; 2 wrong usage.

use crate::image::Image;
use std::process::ExitCode;

/// Runs the model at the end of this process' own executable as the command line says.
pub fn main() -> ExitCode {
    match Image::of_this_executable().and_then(|image| image.load(Default::default())) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}
