//! What is wrong, at which place, and what to do: the one form of message that users see.
//!
//! Each kind of mistake is one row of [`CODES`]. Parser and verifier make [`Diagnostic`]s; the root package
//! turns other errors into them, and draws them.

use crate::{NodeId, ValueId};
use std::fmt;
use std::ops::Range;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing can be compiled.
    Error,
    /// Worth knowing.
    Warning,
}

/// Which part of the compiler reports a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading text.
    Text,
    /// Verifying a module, however it was made.
    Verify,
    /// Verifying, but text cannot say it: only a program that builds modules can be wrong in this way.
    Structure,
    /// Importing a model.
    Import,
    /// Lowering.
    Lower,
    /// Evaluating.
    Eval,
}

/// A kind of mistake.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `LAP0001` …
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Who reports it.
    pub stage: Stage,
    /// One line for the table of codes.
    pub title: &'static str,
}

macro_rules! codes {
    ($($name:ident $code:literal $severity:ident $stage:ident $title:literal;)*) => {
        $(
            #[doc = $title]
            pub static $name: Code = Code {
                code: $code,
                severity: Severity::$severity,
                stage: Stage::$stage,
                title: $title,
            };
        )*
        /// Every code, in order.
        pub static CODES: &[&Code] = &[$(&$name,)*];
    };
}

codes! {
    SYNTAX "LAP0001" Error Text "the text is not well formed";
    LIMIT "LAP0002" Error Text "the text is nested too deeply, or too large";
    UNKNOWN_OP "LAP0003" Error Text "there is no op of this name";
    UNDEFINED "LAP0004" Error Text "a value is used but nowhere defined";
    REDEFINED "LAP0005" Error Text "a value is defined twice";
    LITERAL "LAP0006" Error Text "a literal or written type does not fit its place";
    ELIDED "LAP0007" Error Text "the bytes of a constant are not there";
    CHECKSUM "LAP0008" Error Text "the bytes of a constant are not those that were written";
    UNKNOWN_ENCODING "LAP0009" Error Text "there is no encoding of this name";
    OPERANDS "LAP0101" Error Verify "an op has too few or too many operands";
    UNKNOWN_ATTRIBUTE "LAP0102" Error Verify "an op has no attribute of this name";
    ATTRIBUTE_KIND "LAP0103" Error Verify "an attribute is of the wrong kind";
    MISSING_ATTRIBUTE "LAP0104" Error Verify "a required attribute is missing";
    DOMINANCE "LAP0105" Error Verify "a value is used where it is not defined";
    RESULTS "LAP0106" Error Verify "an op has too few or too many results";
    TYPE_DIFFERS "LAP0107" Error Verify "a result's type is not the one that follows from the operands";
    TYPE_RULE "LAP0108" Error Verify "an op does not accept its operands";
    REGIONS "LAP0109" Error Verify "a region does not fit its op";
    ENCODING "LAP0110" Error Verify "the encoding of a constant is not valid";
    INTERFACE_NAME "LAP0111" Error Verify "two inputs or two outputs of a program share a name";
    SHARED_NAME "LAP0112" Warning Verify "two values share a name";
    STRUCTURE "LAP0113" Error Structure "the tables of a module contradict each other";
    IMPOSSIBLE_TYPE "LAP0114" Error Verify "no value can have this type";
    IMPORT "LAP0201" Error Import "a model cannot be imported";
    LOWER "LAP0301" Error Lower "an op cannot be lowered";
    EVAL "LAP0401" Error Eval "a program cannot be evaluated";
}

/// Where something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The whole program.
    Program,
    /// Bytes of the text.
    Text(Range<usize>),
    /// A node, with its path in the source model.
    Node(NodeId, String),
    /// A value, with its name.
    Value(ValueId, String),
    /// A part of a model that is not (yet) a node here.
    Path(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Program => f.write_str("the program"),
            Place::Text(span) => write!(f, "byte {}", span.start),
            Place::Node(id, path) if path.is_empty() => write!(f, "node {id}"),
            Place::Value(id, name) if name.is_empty() => write!(f, "value {id}"),
            Place::Node(_, name) | Place::Value(_, name) | Place::Path(name) => {
                write!(f, "`{name}`")
            }
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What kind of mistake.
    pub code: &'static Code,
    /// What was found and what was expected; lower case, no full stop.
    pub message: String,
    /// Where it is.
    pub place: Place,
    /// Further places, each with what it has to do with this.
    pub labels: Vec<(Place, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A message at a place.
    pub fn new(code: &'static Code, place: Place, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            code,
            message: message.into(),
            place,
            labels: vec![],
            help: None,
        }
    }

    /// Adds what to do.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    /// Adds a further place.
    pub fn label(mut self, place: Place, text: impl Into<String>) -> Diagnostic {
        self.labels.push((place, text.into()));
        self
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.code.severity
    }

    /// True if it stops compilation.
    pub fn is_error(&self) -> bool {
        self.severity() == Severity::Error
    }
}

impl std::error::Error for Diagnostic {}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(
            f,
            "{severity}[{}] {}: {}",
            self.code.code, self.place, self.message
        )?;
        for (place, text) in &self.labels {
            write!(f, "; {place}: {text}")?;
        }
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_unique() {
        assert!(CODES.is_sorted_by(|a, b| a.code < b.code));
    }
}
