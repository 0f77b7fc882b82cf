//! What an app has printed, on every machine that ran it: the lines of several supervisors, merged by time.
//!
//! A machine that cannot be reached is named in the log itself, and what the others have is shown. Memory is
//! bounded by one line a machine, and what its connection has under way.

mod remote;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{join_all, select_all};
use tabbify_api::BoxFuture;
use tabbify_api::logs::{LogLine, LogQuery, LogReader, LogsError, Stream};
use tabbify_process::Clock;
use tabbify_types::{AppId, HostName, InstanceId};
use tokio::time::timeout;

pub(crate) use self::remote::Machine;
use self::remote::{Remote, Said};

/// LIMIT: how long one machine may hold back the lines that others have, each time it has fallen silent.
const HOLD: Duration = Duration::from_millis(200);

/// LIMIT: the same for lines that a machine has found: which are the newest is known only with them.
const OWED_WITHIN: Duration = Duration::from_secs(5);

/// Lines of one app, of several machines.
#[derive(Debug)]
pub(crate) struct Merged {
    parts: Vec<Part>,
    follow: bool,
    /// Of the lines that there were, so many of the newest are shown.
    tail: usize,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Part {
    reader: Reader,
    head: Option<LogLine>,
    /// Lines that it found and has not given yet; 0 if all are wanted.
    owed: usize,
    /// It has nothing more to say now: nobody waits for it.
    quiet: bool,
    ended: bool,
}

#[derive(Debug)]
enum Reader {
    Here(Box<dyn LogReader>),
    There(Box<Remote>),
}

impl Merged {
    /// The lines that `here` has, and those of `machines`, which are asked at once.
    pub(crate) async fn open(
        here: Box<dyn LogReader>,
        machines: Vec<Machine>,
        app: AppId,
        query: &LogQuery,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let opening = machines
            .into_iter()
            .map(|machine| Remote::open(machine, app, query.clone(), clock.now()));
        let there = join_all(opening).await;
        let tail = query.tail.unwrap_or(0);
        let here = Part::new(here.found(), Reader::Here(here));
        let there = there.into_iter().map(|remote| {
            // More than was asked for is not believed: it would hide what others have.
            Part::new(remote.found().min(tail), Reader::There(Box::new(remote)))
        });
        Self {
            parts: std::iter::once(here).chain(there).collect(),
            follow: query.follow,
            tail,
            clock: Arc::clone(clock),
        }
    }

    /// The next line; `None` at the end, which a followed log does not have. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Option<LogLine>, LogsError> {
        loop {
            self.fill().await?;
            // What machines that broke off did not say any more is not counted.
            let surplus = self.parts.iter().map(|part| part.owed).sum::<usize>() > self.tail;
            let ended = self.parts.iter().all(|part| part.ended);
            let heads = self.parts.iter_mut().filter(|part| part.head.is_some());
            let first = heads.min_by_key(|part| part.head.as_ref().map(order));
            let first = first.and_then(|part| Some((part.head.take()?, part)));
            match first {
                Some((line, part)) => {
                    let is_old = part.owed > 0;
                    part.owed = part.owed.saturating_sub(1);
                    if !(is_old && surplus) {
                        return Ok(Some(line));
                    }
                }
                None if ended => return Ok(None),
                None => self.wait().await?,
            }
        }
    }

    /// Gives every part that may have more the chance to say it.
    async fn fill(&mut self) -> Result<(), LogsError> {
        let (follow, clock) = (self.follow, &self.clock);
        let waiting = self.parts.iter_mut().filter(|part| part.is_wanted());
        let filling = waiting.map(|part| async move {
            if part.quiet {
                part.fill(clock).now_or_never().unwrap_or(Ok(()))
            } else if follow {
                let within = if part.owed > 0 { OWED_WITHIN } else { HOLD };
                let filled = timeout(within, part.fill(clock)).await;
                filled.unwrap_or_else(|_| {
                    (part.quiet, part.owed) = (true, 0);
                    Ok(())
                })
            } else {
                part.fill(clock).await
            }
        });
        join_all(filling).await.into_iter().collect()
    }

    /// Returns when a part has something.
    async fn wait(&mut self) -> Result<(), LogsError> {
        let clock = &self.clock;
        let waiting = self.parts.iter_mut().filter(|part| part.is_wanted());
        let filling: Vec<_> = waiting.map(|part| Box::pin(part.fill(clock))).collect();
        if filling.is_empty() {
            return Ok(());
        }
        // What a reader has under way is its state: those that are not first lose nothing.
        let (filled, ..) = select_all(filling).await;
        filled
    }
}

/// Lines of one moment stand in the order of their instances, each instance's as it printed them.
fn order(line: &LogLine) -> (tabbify_types::Timestamp, InstanceId) {
    (line.at, line.instance)
}

impl Part {
    const fn new(owed: usize, reader: Reader) -> Self {
        Self {
            reader,
            head: None,
            owed,
            quiet: false,
            ended: false,
        }
    }

    const fn is_wanted(&self) -> bool {
        self.head.is_none() && !self.ended
    }

    /// Waits for the next line, or for the end. Safe to cancel.
    async fn fill(&mut self, clock: &Arc<dyn Clock>) -> Result<(), LogsError> {
        let next = match &mut self.reader {
            Reader::Here(reader) => reader.next().await?,
            Reader::There(remote) => match remote.next().await {
                Said::Line(line) => Some(line),
                Said::End => None,
                Said::Missing { why, goes_on } => {
                    (self.ended, self.owed) = (!goes_on, 0);
                    let host = remote.host();
                    Some(missing(host, &why, clock))
                }
            },
        };
        if next.is_none() {
            (self.ended, self.owed) = (true, 0);
        }
        self.quiet = false;
        self.head = next;
        Ok(())
    }
}

/// The platform's own line about a machine.
fn missing(host: &HostName, why: &str, clock: &Arc<dyn Clock>) -> LogLine {
    LogLine {
        at: clock.now(),
        instance: InstanceId(0),
        stream: Stream::Platform,
        line: format!("tabbify: what {host} has is missing here: {why}"),
    }
}

impl LogReader for Merged {
    fn found(&self) -> usize {
        0
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogLine>, LogsError>> {
        Box::pin(Self::next(self))
    }
}

#[cfg(test)]
mod tests;
