//! What is wrong with a model: all of it, each problem at its place.

use std::collections::BTreeSet;
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
#[derive(Debug)]
pub(crate) struct Problems {
    pub list: Vec<Problem>,
    pub more: usize,
    /// What to do where nothing better is known.
    remedy: &'static str,
}

impl Problems {
    const MAX: usize = 100;

    /// None yet.
    pub fn new(remedy: &'static str) -> Problems {
        Problems {
            list: vec![],
            more: 0,
            remedy,
        }
    }

    /// Adds a problem.
    pub fn add(&mut self, place: &str, reason: impl Into<String>, remedy: Option<&str>) {
        self.push(Problem {
            place: place.to_owned(),
            reason: reason.into(),
            remedy: remedy.map(str::to_owned),
        });
    }

    /// Adds a problem; without a remedy it gets the usual one.
    pub fn push(&mut self, mut problem: Problem) {
        if self.list.len() == Problems::MAX {
            self.more += 1;
            return;
        }
        problem.remedy.get_or_insert_with(|| self.remedy.to_owned());
        self.list.push(problem);
    }

    /// True if nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What was read of the file, if nothing was wrong with it.
    pub fn or<T>(self, read: Option<T>, file: &std::path::Path) -> Result<T, ImportError> {
        match read {
            Some(read) if self.is_empty() => Ok(read),
            _ => Err(self.of(&file.display().to_string())),
        }
    }

    /// The error about this file.
    pub fn of(self, file: &str) -> ImportError {
        ImportError {
            file: file.to_owned(),
            problems: self.list,
            more: self.more,
        }
    }
}

/// A number for a dimension that the model does not have is a mistake in its name.
pub(crate) fn unknown_dim(name: &str, known: &BTreeSet<String>) -> Problem {
    let known: Vec<String> = known.iter().map(|k| format!("`{k}`")).collect();
    let has = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    Problem {
        place: format!("dimension `{name}`"),
        reason: format!("the model has no symbolic dimension of this name; it has {has}"),
        remedy: Some("`lapidary inspect` shows the inputs with their dimensions".to_owned()),
    }
}
