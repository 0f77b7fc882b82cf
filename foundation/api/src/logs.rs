//! What apps print: lines per instance, kept across deploys, read back by the app's people.

use std::fmt;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppId, InstanceId, Timestamp};

use crate::BoxFuture;

/// LIMIT: one line of output, in bytes; a longer one is cut into several.
pub const LINE_LEN_MAX: usize = 16 * 1024;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// The app's standard output.
    Stdout,
    /// The app's standard error.
    Stderr,
    /// The platform's own words about the app, such as a blocked connection.
    Platform,
}

/// One line; also the form on disk, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read from the app.
    pub at: Timestamp,
    /// The instance that printed it.
    pub instance: InstanceId,
    /// Where it came from.
    pub stream: Stream,
    /// The text without its line end; bytes that are not UTF-8 are replaced.
    pub line: String,
}

/// Which lines to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only lines from then on.
    pub since: Option<Timestamp>,
    /// At most this many of the newest existing lines; `None` means all that are kept.
    pub tail: Option<usize>,
    /// Whether to wait for more.
    pub follow: bool,
}

/// Why logs cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the logs of {app} cannot be read")]
pub struct LogsError {
    /// The app.
    pub app: AppId,
    /// What failed.
    #[source]
    pub source: std::io::Error,
}

/// Lines, oldest first.
pub trait LogReader: Send + fmt::Debug {
    /// The next line; `None` at the end, which a followed log does not have. Safe to cancel.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogLine>, LogsError>>;
}

/// Reads the logs of the apps of a machine.
pub trait AppLogs: Send + Sync + fmt::Debug {
    /// Opens an app's logs; an app that never printed has no lines.
    fn open(
        &self,
        app: AppId,
        query: LogQuery,
    ) -> BoxFuture<'_, Result<Box<dyn LogReader>, LogsError>>;
}
