//! What is wrong with a file, and what was changed in it: each with its line.

use std::fmt;
use std::sync::Arc;

use crate::limits::PROBLEMS_MAX;
use crate::tree::Place;

/// One mistake. Displays as `tabbify.toml:8: runtime.memry is not a known key; did you mean
/// runtime.memory?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the caller named it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The dotted key, such as `runtime.memory`; empty if the text is not TOML at all.
    pub key: String,
    /// What is wrong, with the offending value.
    pub message: String,
    /// What to do; empty if the message already says it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)?;
        if self.fix.is_empty() {
            Ok(())
        } else {
            write!(f, "; {}", self.fix)
        }
    }
}

/// One change that the upgrade of an earlier form made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The file as the caller named it.
    pub file: Arc<str>,
    /// Line of the key that was changed, from 1.
    pub line: u32,
    /// What it was and what it is now.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Everything that is wrong with one file, in the order of its lines. Displays one problem a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct ManifestErrors {
    /// At least one, at most [`PROBLEMS_MAX`], sorted by line and column.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl ManifestErrors {
    fn lines(&self) -> String {
        let mut lines: Vec<String> = self.problems.iter().map(Problem::to_string).collect();
        if self.more > 0 {
            lines.push(format!("and {} more", self.more));
        }
        lines.join("\n")
    }
}

/// Collects the problems of one file while it is read.
#[derive(Debug)]
pub(crate) struct Problems {
    file: Arc<str>,
    /// As many as a file of limited size can have; cut to the first ones when they are sorted.
    list: Vec<Problem>,
}

impl Problems {
    pub(crate) fn new(file: &str) -> Self {
        Self {
            file: file.into(),
            list: Vec::new(),
        }
    }

    pub(crate) fn file(&self) -> Arc<str> {
        Arc::clone(&self.file)
    }

    pub(crate) fn add(
        &mut self,
        place: Place,
        key: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.list.push(Problem {
            file: self.file(),
            line: place.line,
            column: place.column,
            key: key.into(),
            message: message.into(),
            fix: fix.into(),
        });
    }

    /// The value if nothing was wrong, else everything that was.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, ManifestErrors> {
        match value {
            Some(value) if self.list.is_empty() => Ok(value),
            _ => Err(self.into_errors()),
        }
    }

    pub(crate) fn into_errors(mut self) -> ManifestErrors {
        self.list
            .sort_by(|a, b| (a.line, a.column, &a.key).cmp(&(b.line, b.column, &b.key)));
        let more = self.list.len().saturating_sub(PROBLEMS_MAX);
        self.list.truncate(PROBLEMS_MAX);
        ManifestErrors {
            problems: self.list,
            more,
        }
    }
}
