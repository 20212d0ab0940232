//! The prebuilt program that the executable of a language model begins with.

use std::process::ExitCode;

fn main() -> ExitCode {
    lapidary_language::cli::main::<lapidary_language::cli::Nothing>()
}
