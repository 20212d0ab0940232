//! What is wrong with a model: all of it, each problem at its place.

use std::fmt;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Node path, value or part of the model.
    pub place: String,
    /// What was found, and what was expected.
    pub reason: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Why a model was not imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportError {
    /// The file, or a name for bytes from elsewhere.
    pub file: String,
    /// Every problem found, in the model's order.
    pub problems: Vec<Problem>,
    /// Problems beyond those listed.
    pub more: usize,
}

impl std::error::Error for ImportError {}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot import `{}`", self.file)?;
        for p in &self.problems {
            write!(f, "\n  {}: {}", p.place, p.reason)?;
            if let Some(remedy) = &p.remedy {
                write!(f, " ({remedy})")?;
            }
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        Ok(())
    }
}

/// Problems gathered while importing, at most [`Problems::MAX`] of them in full.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub list: Vec<Problem>,
    pub more: usize,
}

impl Problems {
    const MAX: usize = 100;

    /// What to do where nothing better is known.
    const REMEDY: &str =
        "`onnx.checker.check_model(path, full_check=True)` tells whether the model itself is wrong";

    /// Adds a problem.
    pub fn add(&mut self, place: &str, reason: impl Into<String>, remedy: Option<&str>) {
        if self.list.len() == Problems::MAX {
            self.more += 1;
            return;
        }
        let problem = Problem {
            place: place.to_owned(),
            reason: reason.into(),
            remedy: Some(remedy.unwrap_or(Problems::REMEDY).to_owned()),
        };
        self.list.push(problem);
    }
}
