//! The `lapidary` command.
//!
//! Exit status: 0 done; 1 the model or its data cannot be compiled or run; 2 wrong usage.

mod cli;
mod commands;

use clap::Parser;
use cli::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let done = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Serve(args) => commands::serve::serve(&args),
        Command::Build(args) => commands::build::build(&args),
        Command::Compress(args) => commands::compress::compress(&args),
        Command::Inspect(args) => commands::inspect::inspect(&args),
        Command::Bench(args) => commands::bench::bench(&args),
        Command::Eval(args) => commands::eval::eval(&args),
        Command::Tune(args) => commands::tune::tune(&args),
        Command::Completions { shell } => {
            commands::completions(shell);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{:?}", miette::Report::new(error));
            ExitCode::from(1)
        }
    }
}
