//! What can go wrong between a model's file and its results, with what the user can do about it.

use lapidary_frontend::ImportError;
use lapidary_ir::infer::InferError;
use lapidary_passes::compress::CompressError;
use lapidary_passes::lower::LowerErrors;
use lapidary_runtime::RunError;
use miette::Diagnostic;
use std::path::PathBuf;

/// An error of the compiler; its help says what to do.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum Error {
    /// The model's file cannot be read as a model.
    #[error("{0}")]
    #[diagnostic(code(lapidary::import))]
    Import(ImportError),
    /// Types do not fit the given dimensions or inputs.
    #[error("{file}: {}", list(problems))]
    #[diagnostic(
        code(lapidary::types),
        help("check the given dimensions and the shapes of the inputs against `lapidary inspect`")
    )]
    Types {
        /// The model.
        file: String,
        /// Every problem found.
        problems: Vec<InferError>,
    },
    /// Weights cannot be compressed as asked.
    #[error("{file}: {error}")]
    #[diagnostic(
        code(lapidary::compress),
        help(
            "a larger `--size` or `--bits` leaves more room; `lapidary inspect` names the weights that a recipe may speak of"
        )
    )]
    Compress {
        /// The model.
        file: String,
        /// Why not.
        error: CompressError,
    },
    /// A compressed model cannot be written in the wanted form.
    #[error("{output}: {place}: {reason}")]
    #[diagnostic(code(lapidary::export))]
    Export {
        /// What was to be written.
        output: String,
        /// Which part of the model.
        place: String,
        /// Why not.
        reason: String,
        /// What to do.
        #[help]
        help: String,
    },
    /// Some nodes cannot be compiled.
    #[error("{file}: cannot be compiled:\n{errors}")]
    #[diagnostic(
        code(lapidary::lower),
        help(
            "dimensions that are known help: `--dim NAME=N`; `run --reference` runs the model by the evaluator"
        )
    )]
    Lower {
        /// The model.
        file: String,
        /// Every node, with the reason.
        errors: LowerErrors,
    },
    /// Code could not be generated.
    #[error("{file}: {error}")]
    #[diagnostic(
        code(lapidary::code),
        help(
            "the code generator has a limit here: `run --reference` runs the model by the evaluator"
        )
    )]
    Code {
        /// The model.
        file: String,
        /// What the code generator says.
        error: lapidary_ir::backend::Error,
    },
    /// A weight could not be made.
    #[error("{file}: weights: {reason}")]
    #[diagnostic(
        code(lapidary::weights),
        help(
            "are the model and the files of its weights complete, and unchanged since compiling began?"
        )
    )]
    Weights {
        /// The model.
        file: String,
        /// Why.
        reason: String,
    },
    /// The compiled model could not be loaded or run.
    #[error("{file}: {error}")]
    #[diagnostic(code(lapidary::run), help("{}", error.remedy()))]
    Run {
        /// The model.
        file: String,
        /// What the runtime says.
        error: RunError,
    },
    /// A language model could not write a text.
    #[error("{file}: {error}")]
    #[diagnostic(code(lapidary::text), help("{}", error.help))]
    Text {
        /// The model.
        file: String,
        /// What the generator says.
        error: lapidary_language::Error,
    },
    /// The reference evaluator failed.
    #[error("{file}: {reason}")]
    #[diagnostic(
        code(lapidary::evaluate),
        help("check the types, shapes and values of the inputs against `lapidary inspect`")
    )]
    Evaluate {
        /// The model.
        file: String,
        /// What it says.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    #[diagnostic(
        code(lapidary::file),
        help("check that the path exists, that you may use it, and that the disk has room")
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Wrong usage that only the model's content shows.
    #[error("{message}")]
    #[diagnostic(code(lapidary::usage))]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        #[help]
        help: String,
    },
}

/// Problems shown in full; beyond them only their number is given.
const SHOWN: usize = 20;

fn list(problems: &[InferError]) -> String {
    let mut text = String::from("the types of the model do not fit");
    for p in problems.iter().take(SHOWN) {
        text += &format!("\n  `{}` ({}): {}", p.node, p.op, p.reason);
    }
    if problems.len() > SHOWN {
        text += &format!("\n  and {} more", problems.len() - SHOWN);
    }
    text
}
