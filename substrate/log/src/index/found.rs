//! The runs that a log is opened with: each offered where it starts, the widest first. What nobody
//! takes is removed: the parts of a merge that a crash kept, drafts, runs of another version.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use tabbify_types::Position;

use super::run::{self, Run};
use super::{Index, Over, remove};
use crate::error::OpenError;

/// Runs whose headers are intact, by their first and last position.
#[derive(Debug)]
pub(crate) struct FoundRuns {
    runs: BTreeMap<(Position, Position), Run>,
    useless: Vec<PathBuf>,
}

impl FoundRuns {
    /// What is in the directory of the log.
    pub(crate) fn list(over: &Over) -> Result<Self, OpenError> {
        let mut found = Self {
            runs: BTreeMap::new(),
            useless: Vec::new(),
        };
        let (disk, dir) = (&*over.disk, &*over.dir);
        for path in disk.list(dir).map_err(OpenError::io("list", dir))? {
            if path.extension() != Some(OsStr::new("run")) {
                continue;
            }
            let opened = run::named(&path).map(|_| Run::open(disk, &path));
            match opened {
                Some(Ok(run)) if run.header.log_id == over.log_id => {
                    found.runs.insert((run.header.first, run.header.last), run);
                }
                Some(Err(error)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a part of the log's index is made anew"
                    );
                    found.useless.push(path);
                }
                _ => found.useless.push(path),
            }
        }
        Ok(found)
    }

    /// The widest run from `first` on that has not been offered.
    pub(crate) fn take(&mut self, first: Position) -> Option<Arc<Run>> {
        let from = (first, Position(0))..=(first, Position(u64::MAX));
        let (widest, _) = self.runs.range(from).next_back()?;
        let widest = *widest;
        self.runs.remove(&widest).map(Arc::new)
    }

    /// A run that was taken and does not fit the extents.
    pub(crate) fn discard(&mut self, run: &Run, why: &str) {
        tracing::warn!(run = %run.path.display(), why, "a part of the log's index is made anew");
        self.useless.push(run.path.clone());
    }

    /// Removes what was not taken, now that its place is covered.
    pub(crate) fn clear(self, index: &Index) {
        let (disk, kept) = (&*index.over.disk, index.runs());
        let left = self.runs.into_values().map(|run| run.path);
        for path in self.useless.into_iter().chain(left) {
            if kept.iter().any(|run| run.path == path) {
                continue;
            }
            if let Err(error) = remove(disk, &path) {
                tracing::warn!(%error, run = %path.display(), "a useless index file stays");
            }
        }
    }
}
