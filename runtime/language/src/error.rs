//! Why no text can be written, or none embedded.

use lapidary_runtime::RunError;
use std::fmt;

/// An error of generation, with what to do about it. Both are for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Error {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Error {
        Error {
            message: message.into(),
            help: help.into(),
        }
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Error {
        Error::new(error.to_string(), error.remedy())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
