//! Why a model could not be loaded or run.

use std::fmt;

/// An error of loading or running a model. The text is for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunError {
    /// The compiled program is damaged, or made for another runtime or machine.
    Program(String),
    /// An input or an output buffer does not fit the model.
    Input(String),
    /// A step failed: what ran, and why.
    Step {
        /// The operation or kernel.
        what: String,
        /// The reason.
        message: String,
    },
    /// Memory could not be had.
    OutOfMemory {
        /// How much was asked for.
        bytes: usize,
    },
    /// A file or the operating system refused.
    System(String),
}

impl RunError {
    /// What the user can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            RunError::Program(_) => {
                "compile the model again, for this machine and with this version"
            }
            RunError::Input(_) => {
                "give every input in the type and shape that the model states; `lapidary inspect MODEL`, or \
                 `--help` of the executable, lists them"
            }
            RunError::Step { .. } => {
                "the values of some input do not fit the model: check shapes, indices and sizes among them"
            }
            RunError::OutOfMemory { .. } => {
                "give smaller inputs, fewer at a time, or a machine with more memory"
            }
            RunError::System(_) => {
                "check that the path exists, that you may use it, and that the disk has room"
            }
        }
    }

    pub(crate) fn program(message: impl Into<String>) -> RunError {
        RunError::Program(message.into())
    }

    pub(crate) fn step(what: &str, message: impl Into<String>) -> RunError {
        RunError::Step {
            what: what.to_owned(),
            message: message.into(),
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Program(m) => write!(f, "compiled program: {m}"),
            RunError::Input(m) | RunError::System(m) => f.write_str(m),
            RunError::Step { what, message } => write!(f, "`{what}`: {message}"),
            RunError::OutOfMemory { bytes } => write!(f, "out of memory: {bytes} bytes"),
        }
    }
}

impl std::error::Error for RunError {}
