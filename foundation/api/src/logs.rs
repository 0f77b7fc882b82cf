//! What apps print: lines per instance, kept across deploys, read back by the app's people.
//!
//! A supervisor has the lines of the instances of its machine, and gives them to the node over the mesh:
//! `GET /v1/apps/<id>/logs?tail=&since=&follow=` at [`SUPERVISOR_PORT`] answers one [`LogLine`] a line, and
//! an empty line now and then while a followed app says nothing. The node answers its callers the same.

use std::fmt;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppId, InstanceId, Timestamp};

use crate::BoxFuture;

/// Where a supervisor answers on its machine's address in the mesh.
pub const SUPERVISOR_PORT: u16 = 8730;
/// Header of a supervisor's answer: [`LogReader::found`].
pub const FOUND_HEADER: &str = "x-tabbify-found";
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

impl LogQuery {
    /// The path and query that ask for them.
    #[must_use]
    pub fn path_of(&self, app: AppId) -> String {
        let mut path = format!("/v1/apps/{app}/logs?follow={}", self.follow);
        for (name, value) in [
            ("tail", self.tail.map(|tail| tail.to_string())),
            ("since", self.since.map(|since| since.to_string())),
        ] {
            if let Some(value) = value {
                path.extend(["&", name, "=", &value]);
            }
        }
        path
    }

    /// Which app a path and query of [`path_of`](Self::path_of) asks for, and which lines; `None` for
    /// anything else.
    #[must_use]
    pub fn read(path: &str, query: Option<&str>) -> Option<(AppId, Self)> {
        let app = path.strip_prefix("/v1/apps/")?.strip_suffix("/logs")?;
        let mut this = Self::default();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            match pair.split_once('=')? {
                ("follow", follow) => this.follow = follow.parse().ok()?,
                ("tail", tail) => this.tail = Some(tail.parse().ok()?),
                ("since", since) => this.since = Some(since.parse().ok()?),
                _ => return None,
            }
        }
        Some((app.parse().ok()?, this))
    }
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
    /// How many lines [`LogQuery::tail`] found when it was opened; 0 if it was not asked for.
    fn found(&self) -> usize;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_asked_is_read(
            since in proptest::option::of(0_u64..4_102_444_800_000),
            tail in proptest::option::of(0_usize..10_000),
            follow in any::<bool>(),
        ) {
            let app: AppId = "0191e7c2-1111-7222-8333-444455556666".parse().unwrap();
            let since = since.map(Timestamp::from_millis);
            let query = LogQuery { since, tail, follow };
            let asked = query.path_of(app);
            let (path, rest) = asked.split_once('?').unwrap();
            prop_assert_eq!(LogQuery::read(path, Some(rest)), Some((app, query)));
        }

        #[test]
        fn any_text_is_read_or_refused(path in "\\PC{0,80}", query in "\\PC{0,80}") {
            let _ = LogQuery::read(&path, Some(&query));
        }
    }
}
