//! What the app prints: cut into lines, queued, written as NDJSON to `<instance>.ndjson`.
//!
//! ```text
//! guest ─▶ Printer (one per stream, [`printer`]) ─┐
//! guest ─▶ Printer                                ├─▶ queue ─▶ task `output` ─▶ file ([`file`])
//! runner ─▶ Output::platform                      ┘
//! ```
//! A full queue holds the printer back: an app that prints faster than the disk writes waits.

mod file;
mod printer;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tabbify_api::logs::{LINE_LEN_MAX, LogLine, Stream};
use tabbify_process::{Clock, Importance, Tasks};
use tabbify_types::InstanceId;
use tokio::sync::{mpsc, oneshot};

pub use self::file::FILE_LEN_MAX;
use self::file::LogFile;
pub use self::printer::Printer;

/// LIMIT: lines that wait for the disk, of at most [`LINE_LEN_MAX`] bytes each.
pub const QUEUE_LINES: usize = 256;

/// LIMIT: bytes that go to the disk in one write.
const BATCH_LEN: usize = 64 * 1024;

/// Where an app's lines go; clones go to the same place.
#[derive(Debug, Clone)]
pub struct Output {
    queue: mpsc::Sender<Entry>,
    instance: InstanceId,
    clock: Arc<dyn Clock>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Line(LogLine),
    /// Answered when all before it is in the file.
    Flush(oneshot::Sender<()>),
}

impl Output {
    /// Opens `directory/<instance>.ndjson` for more lines and starts the task that writes them.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(
        directory: &Path,
        instance: InstanceId,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> io::Result<Self> {
        let file = LogFile::open(directory, instance, FILE_LEN_MAX)?;
        let (queue, entries) = mpsc::channel(QUEUE_LINES);
        let this = Self {
            queue,
            instance,
            clock,
            lost: Arc::default(),
        };
        let lost = Arc::clone(&this.lost);
        let (instance, clock) = (this.instance, Arc::clone(&this.clock));
        tasks.spawn("output", Importance::Detached, async move {
            let lost = move || lost_line(&lost, instance, &*clock);
            write(entries, file, lost).await;
        });
        Ok(this)
    }

    /// A line of the platform's own, for the app's people. Waits while the queue is full.
    pub async fn platform(&self, text: &str) {
        for part in cut(text.as_bytes()) {
            let line = self.line(Stream::Platform, part);
            // Without a writer there is nobody to tell.
            let _ = self.queue.send(Entry::Line(line)).await;
        }
    }

    /// One of the app's streams.
    #[must_use]
    pub fn printer(&self, stream: Stream) -> Printer {
        Printer::new(self.clone(), stream)
    }

    /// Returns when all that was printed before is in the file.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Entry::Flush(done)).await.is_ok() {
            // The writer may end first; there is nothing left to wait for then.
            let _ = wait.await;
        }
    }

    fn line(&self, stream: Stream, text: &[u8]) -> LogLine {
        LogLine {
            at: self.clock.now(),
            instance: self.instance,
            stream,
            line: String::from_utf8_lossy(text).into_owned(),
        }
    }
}

/// A line that says how many were lost since the last one, if any were.
fn lost_line(lost: &AtomicU64, instance: InstanceId, clock: &dyn Clock) -> Option<LogLine> {
    let count = lost.swap(0, Ordering::Relaxed);
    (count > 0).then(|| LogLine {
        at: clock.now(),
        instance,
        stream: Stream::Platform,
        line: format!("tabbify: {count} lines were lost: the log could not take them"),
    })
}

/// Cuts `text` into parts that fit a line, between characters where it can.
fn cut(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut first = true;
    std::iter::from_fn(move || {
        if text.is_empty() && !std::mem::take(&mut first) {
            return None;
        }
        first = false;
        let (part, rest) = text.split_at(line_end(text));
        text = rest;
        Some(part)
    })
}

/// How many of `text`'s first bytes fit a line: all, or up to the last whole character that does.
fn line_end(text: &[u8]) -> usize {
    if text.len() <= LINE_LEN_MAX {
        return text.len();
    }
    let continues = |at: &usize| text[*at] & 0b1100_0000 == 0b1000_0000;
    (LINE_LEN_MAX - 3..=LINE_LEN_MAX)
        .rev()
        .find(|at| !continues(at))
        .unwrap_or(LINE_LEN_MAX)
}

/// Writes what is queued until every [`Output`] is gone.
async fn write(
    mut entries: mpsc::Receiver<Entry>,
    mut file: LogFile,
    lost: impl Fn() -> Option<LogLine>,
) {
    let mut batch = Vec::with_capacity(BATCH_LEN);
    let mut waiting = Vec::new();
    while let Some(entry) = entries.recv().await {
        let mut next = Some(entry);
        while let Some(entry) = next {
            match entry {
                Entry::Line(line) => encode(&mut batch, &line),
                Entry::Flush(done) => waiting.push(done),
            }
            next = (batch.len() < BATCH_LEN)
                .then(|| entries.try_recv().ok())
                .flatten();
        }
        if let Some(line) = lost() {
            encode(&mut batch, &line);
        }
        file.append(&batch).await;
        batch.clear();
        for done in waiting.drain(..) {
            // Who asked may have stopped waiting.
            let _ = done.send(());
        }
    }
}

fn encode(batch: &mut Vec<u8>, line: &LogLine) {
    // A line is plain data: writing it to memory as JSON cannot fail.
    if serde_json::to_writer(&mut *batch, line).is_ok() {
        batch.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cutting_loses_nothing_and_no_part_is_too_long(
            text in proptest::collection::vec(any::<u8>(), 0..3 * LINE_LEN_MAX),
        ) {
            let parts: Vec<&[u8]> = cut(&text).collect();
            prop_assert!(parts.iter().all(|part| part.len() <= LINE_LEN_MAX));
            prop_assert_eq!(parts.concat(), text);
        }

        #[test]
        fn characters_stay_whole(lead in 0_usize..8) {
            let text = "a".repeat(lead) + &"€𝄞".repeat(LINE_LEN_MAX / 3);
            for part in cut(text.as_bytes()) {
                prop_assert!(std::str::from_utf8(part).is_ok());
            }
        }
    }

    #[test]
    fn an_empty_text_is_one_empty_line() {
        assert_eq!(cut(b"").count(), 1);
    }
}
