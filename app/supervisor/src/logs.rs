//! Reads what apps print: `<logs>/<app>/<instance>.ndjson`, with `<instance>.1.ndjson` before it
//! once it was rotated. Lines of several instances are merged by time.
//!
//! Every line is read from disk when it is wanted: memory is bounded by one line a file and one
//! batch. Lines that are not ours (torn by a crash, or hostile) are skipped.

mod backward;
mod file;
pub(crate) mod keep;
mod service;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::logs::{AppLogs, LogLine, LogQuery, LogReader, LogsError};
use tabbify_types::{AppId, InstanceId};
use tokio::task::JoinHandle;

use file::Tail;
pub use service::LogService;

/// LIMIT: one line on disk, in bytes: 16 KiB of text, escaped at worst six times, and its frame.
const LINE_LEN_MAX: usize = 128 * 1024;
/// LIMIT: instances whose output is read; the newest count.
const INSTANCES_MAX: usize = 256;
/// LIMIT: lines read ahead of the reader.
const BATCH_LINES_MAX: usize = 64;
/// LIMIT: how far back the tail of a failure is looked for among lines that are not ours, in bytes.
const TAIL_SCAN_MAX: usize = 4 * 1024 * 1024;
/// How often a follower looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The logs of all apps of this machine.
#[derive(Debug, Clone)]
pub struct FileLogs {
    root: PathBuf,
}

impl FileLogs {
    /// The logs below a supervisor's data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self {
            root: data_dir.join("logs"),
        }
    }
}

impl AppLogs for FileLogs {
    fn open(
        &self,
        app: AppId,
        query: LogQuery,
    ) -> BoxFuture<'_, Result<Box<dyn LogReader>, LogsError>> {
        let directory = self.root.join(app.to_string());
        Box::pin(async move {
            let follow = query.follow;
            let opened = tokio::task::spawn_blocking(move || Merge::open(directory, &query)).await;
            let merge = opened
                .unwrap_or_else(|panic| Err(io::Error::other(panic)))
                .map_err(|source| LogsError { app, source })?;
            let reader = Reader {
                app,
                found: merge.found,
                follow,
                batch: VecDeque::new(),
                state: State::Idle(Some(Box::new(merge))),
            };
            Ok(Box::new(reader) as Box<dyn LogReader>)
        })
    }
}

/// Hands out batches that a blocking thread reads. The work in flight is part of the state, so
/// that dropping a `next` loses nothing.
#[derive(Debug)]
struct Reader {
    app: AppId,
    found: usize,
    follow: bool,
    batch: VecDeque<LogLine>,
    state: State,
}

type Batch = (Box<Merge>, io::Result<VecDeque<LogLine>>);

#[derive(Debug)]
enum State {
    /// `None` after an error that lost it.
    Idle(Option<Box<Merge>>),
    Reading(JoinHandle<Batch>),
}

impl LogReader for Reader {
    fn found(&self) -> usize {
        self.found
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogLine>, LogsError>> {
        Box::pin(async move {
            loop {
                if let Some(line) = self.batch.pop_front() {
                    return Ok(Some(line));
                }
                let (app, follow) = (self.app, self.follow);
                let failed = |source| LogsError { app, source };
                self.batch = self.read().await.map_err(failed)?;
                if self.batch.is_empty() {
                    if !follow {
                        return Ok(None);
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        })
    }
}

impl Reader {
    /// Safe to cancel: the next call waits for the same batch.
    async fn read(&mut self) -> io::Result<VecDeque<LogLine>> {
        if let State::Idle(merge) = &mut self.state {
            let Some(mut merge) = merge.take() else {
                return Ok(VecDeque::new());
            };
            let reading = tokio::task::spawn_blocking(move || {
                let batch = merge.batch();
                (merge, batch)
            });
            self.state = State::Reading(reading);
        }
        let State::Reading(reading) = &mut self.state else {
            return Ok(VecDeque::new());
        };
        let read = reading.await;
        let (merge, batch) = match read {
            Ok((merge, batch)) => (Some(merge), batch),
            Err(panic) => (None, Err(io::Error::other(panic))),
        };
        self.state = State::Idle(merge);
        batch
    }
}

/// The lines of one app in the order of their times.
#[derive(Debug)]
struct Merge {
    directory: PathBuf,
    since: Option<tabbify_types::Timestamp>,
    follow: bool,
    /// Lines that there are of the newest `tail`.
    found: usize,
    /// Lines still to be dropped at the beginning, so that the newest `tail` are left.
    surplus: usize,
    tails: BTreeMap<InstanceId, Tail>,
}

impl Merge {
    fn open(directory: PathBuf, query: &LogQuery) -> io::Result<Self> {
        let mut merge = Self {
            directory,
            since: query.since,
            follow: query.follow,
            found: 0,
            surplus: 0,
            tails: BTreeMap::new(),
        };
        let mut found = 0;
        for instance in merge.instances()? {
            let mut tail = Tail::new(&merge.directory, instance);
            if let Some(newest) = query.tail {
                found += tail.skip_to_last(newest, query.since)?;
            }
            merge.tails.insert(instance, tail);
        }
        if let Some(newest) = query.tail {
            merge.found = found.min(newest);
            merge.surplus = found - merge.found;
        }
        Ok(merge)
    }

    /// Up to [`BATCH_LINES_MAX`] lines; none when there is nothing more for now.
    fn batch(&mut self) -> io::Result<VecDeque<LogLine>> {
        let mut batch = VecDeque::new();
        if self.follow {
            let instances = self.instances()?;
            self.tails
                .retain(|instance, _| instances.contains(instance));
            for instance in instances {
                let directory = &self.directory;
                let new = || Tail::new(directory, instance);
                self.tails.entry(instance).or_insert_with(new);
            }
        }
        while batch.len() < BATCH_LINES_MAX {
            let Some(line) = self.earliest()? else {
                break;
            };
            if self.surplus > 0 {
                self.surplus -= 1;
            } else {
                batch.push_back(line);
            }
        }
        if batch.is_empty() {
            // All that was there to drop has been dropped; what comes now is new.
            self.surplus = 0;
        }
        Ok(batch)
    }

    fn earliest(&mut self) -> io::Result<Option<LogLine>> {
        let mut first: Option<(tabbify_types::Timestamp, InstanceId)> = None;
        for (instance, tail) in &mut self.tails {
            if let Some(line) = tail.peek(self.since)? {
                let at = (line.at, *instance);
                first = Some(first.map_or(at, |other| other.min(at)));
            }
        }
        let tail = first.and_then(|(_, instance)| self.tails.get_mut(&instance));
        Ok(tail.and_then(Tail::pop))
    }

    /// The newest instances that have printed something.
    fn instances(&self) -> io::Result<Vec<InstanceId>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".ndjson"));
            let number = stem.map(|stem| stem.strip_suffix(".1").unwrap_or(stem));
            if let Some(instance) = number.and_then(|number| number.parse().ok()) {
                found.push(instance);
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found.split_off(found.len().saturating_sub(INSTANCES_MAX)))
    }
}

/// The last lines of an instance, as text of at most `len_max` bytes; empty if it has none.
pub(crate) fn log_tail(directory: &Path, instance: InstanceId, len_max: usize) -> String {
    let mut lines = VecDeque::new();
    let (mut len, mut looked_at) = (0, 0);
    for path in file::paths(directory, instance).iter().rev() {
        let Ok(file) = fs::File::open(path) else {
            continue;
        };
        // A log that cannot be read must not keep the failure from being reported.
        let _ = backward::lines(&file, |_, line| {
            looked_at += line.len() + 1;
            if let Some(line) = file::parse(line, instance) {
                len += line.line.len() + 1;
                lines.push_front(line.line);
            }
            len <= len_max && looked_at <= TAIL_SCAN_MAX
        });
    }
    let text: Vec<String> = lines.into();
    crate::report::tail(&text.join("\n"), len_max).to_owned()
}

#[cfg(test)]
mod tests;
