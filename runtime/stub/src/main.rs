//! The prebuilt program that a compiled executable begins with: it runs the model appended to its own file.

use std::process::ExitCode;

fn main() -> ExitCode {
    lapidary_runtime::cli::main()
}
