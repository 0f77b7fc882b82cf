//! Keeps the index on disk: closed extents become runs, and neighboring runs become one, so that
//! their number grows with the logarithm of the log's length. One thread does the first, so that the
//! memory of closed extents is soon free; another, of lower priority, the second.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::build::{self, Disorder};
use super::entry::RUN_EVENTS_MAX;
use super::pages::RunError;
use super::run::Run;
use super::{Index, Work, heal, remove};
use crate::error::OpenError;

/// Runs of one tier that are made one of the next.
const MERGE: usize = 4;
/// LIMIT: pause before something that failed is tried again; doubles from the first to the second.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(60);

/// One of the things that are done over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    Seal,
    Merge,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There may be more to do.
    More,
    /// There was nothing to do, or the log is closing.
    Idle,
    /// The disk has refused it.
    Refused,
}

impl Index {
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There may be something to do, or room again.
    pub(super) fn wake(&self) {
        self.work().turn += 1;
        self.changed.notify_all();
    }

    /// Ends the threads of the index, and whoever waits for them.
    pub(crate) fn stop(&self) {
        self.over.stop.store(true, Ordering::Relaxed);
        self.work().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for `pause`. Whether the log still runs.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let work = self.work();
        let waited = self
            .changed
            .wait_timeout_while(work, pause, |work| !work.stopped);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    /// Grows whenever there may be something to do; `None` when the log closes.
    pub(crate) fn turn(&self) -> Option<u64> {
        let work = self.work();
        (!work.stopped).then_some(work.turn)
    }

    /// Waits until there may be something to do that was not there at `turn`, or the log closes.
    pub(crate) fn wait_after(&self, turn: u64) {
        let work = self.work();
        let idle = |work: &mut Work| !work.stopped && work.turn == turn;
        drop(self.changed.wait_while(work, idle));
    }

    /// Does one duty until the log closes. What is wrong with the log itself ends it.
    pub(crate) fn keep(&self, duty: Duty) -> Result<(), OpenError> {
        let mut retry = RETRY_FIRST;
        loop {
            let Some(turn) = self.turn() else {
                return Ok(());
            };
            match self.step(duty)? {
                Step::More => retry = RETRY_FIRST,
                Step::Idle => self.wait_after(turn),
                Step::Refused => {
                    self.pause(retry);
                    retry = (retry * 2).min(RETRY_LAST);
                }
            }
        }
    }

    /// Does what there is to do at once: where no thread keeps the index.
    pub(crate) fn keep_now(&self) -> Result<(), OpenError> {
        for duty in [Duty::Seal, Duty::Merge] {
            while self.step(duty)? == Step::More {}
        }
        Ok(())
    }

    /// One run. A disk that refuses it is no reason to end the log.
    fn step(&self, duty: Duty) -> Result<Step, OpenError> {
        let done = match duty {
            Duty::Seal => self.seal(),
            Duty::Merge => self.merge(),
        };
        match done {
            Ok(true) => {
                if duty == Duty::Seal {
                    self.work().stuck = None;
                }
                self.wake();
                Ok(Step::More)
            }
            Ok(false) => Ok(Step::Idle),
            Err(RunError::Log(damage)) => Err(*damage),
            Err(error) => {
                if self.over.stop.load(Ordering::Relaxed) {
                    return Ok(Step::Idle);
                }
                tracing::warn!(error = &error as &dyn std::error::Error, dir = %self.over.dir.display(),
                    "the log's index cannot be written; it is tried again");
                if duty == Duty::Seal {
                    self.work().stuck = Some(format!("the index cannot be written: {error}"));
                    self.changed.notify_all();
                }
                Ok(Step::Refused)
            }
        }
    }

    /// Turns the oldest closed extent into a run, if that is due. Whether it was.
    fn seal(&self) -> Result<bool, RunError> {
        let _one = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let (part, before) = {
            let parts = self.parts();
            let Some(part) = parts.to_seal(self.over.seal_len) else {
                return Ok(false);
            };
            let before = Self::sealed_tip(&parts.runs, self.over.log_id);
            (Arc::clone(part), before)
        };
        let run = heal::sealed(&self.over, &part.path, before).map_err(RunError::of_log)??;
        let mut parts = self.parts_mut();
        let mut runs = parts.runs.to_vec();
        runs.push(Arc::new(run));
        parts.runs = Arc::new(runs);
        parts.closed.pop_front();
        Ok(true)
    }

    /// Makes neighboring runs one, if there are enough of them. Whether there were.
    fn merge(&self) -> Result<bool, RunError> {
        let runs = self.runs();
        let sizes = runs.iter().map(|run| run.size());
        let Some(due) = due(&sizes.collect::<Vec<_>>()) else {
            return Ok(false);
        };
        let old = &runs[due];
        let made = build::merged(&self.over, old, |disorder| self.out_of_order(disorder));
        let new = match made {
            Ok(Some(new)) => Arc::new(new),
            Ok(None) => return Ok(false),
            Err(error @ RunError::Damaged { .. }) => {
                let broken = |run: &&Arc<Run>| matches!(&error, RunError::Damaged { run: path, .. } if run.path == *path);
                if let Some(run) = old.iter().find(broken) {
                    self.heal(run, &error).map_err(RunError::of_log)?;
                }
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        if !self.replace(old, &[Arc::clone(&new)]) {
            // One of them has been made anew meanwhile; the merge comes again.
            remove(&*self.over.disk, &new.path).map_err(RunError::io("remove", &new.path))?;
        }
        Ok(true)
    }

    /// Puts runs in the place of others, which are removed. Whether the others were still there.
    pub(super) fn replace(&self, old: &[Arc<Run>], new: &[Arc<Run>]) -> bool {
        let mut parts = self.parts_mut();
        let same = |window: &[Arc<Run>]| window.iter().zip(old).all(|(a, b)| Arc::ptr_eq(a, b));
        let Some(at) = parts.runs.windows(old.len().max(1)).position(same) else {
            return false;
        };
        let mut runs = parts.runs.to_vec();
        runs.splice(at..at + old.len(), new.iter().cloned());
        parts.runs = Arc::new(runs);
        drop(parts);
        for run in old {
            if new.iter().all(|new| new.path != run.path) {
                // What stays behind is removed at the next open.
                if let Err(error) = remove(&*self.over.disk, &run.path) {
                    tracing::warn!(%error, run = %run.path.display(), "a replaced index file stays");
                }
            }
        }
        true
    }

    /// What two runs together show to be wrong with the log.
    fn out_of_order(&self, disorder: Disorder) -> RunError {
        let Disorder { position, what } = disorder;
        let error = match self.locate(position) {
            Ok(at) => OpenError::damaged(
                &at.extent,
                at.offset,
                format!("position {position}: {what}"),
            ),
            Err(error) => error,
        };
        RunError::of_log(error)
    }
}

/// The runs to merge next, of runs by their tiers and events: four neighbors of one tier, or two of
/// which the older is of a lower one, as a run that was made anew can be. So tiers fall from the oldest
/// to the newest, with at most three of each.
fn due(runs: &[(u8, u64)]) -> Option<Range<usize>> {
    let fits = |range: &Range<usize>| {
        let events = runs[range.clone()].iter().map(|(_, events)| events);
        events.sum::<u64>() < RUN_EVENTS_MAX
    };
    let rising = runs.windows(2).enumerate();
    let rising = rising.filter(|(_, pair)| pair[0].0 < pair[1].0);
    let alike = runs.windows(MERGE).enumerate();
    let alike = alike.filter(|(_, group)| group.iter().all(|run| run.0 == group[0].0));
    let rising = rising.map(|(at, _)| at..at + 2);
    let mut due = rising.chain(alike.map(|(at, _)| at..at + MERGE));
    due.find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(runs: &mut Vec<(u8, u64)>) {
        while let Some(due) = due(runs) {
            let of = &runs[due.clone()];
            let highest = of.iter().map(|run| run.0).max().unwrap();
            let alike = of.iter().all(|run| run.0 == highest);
            let events = of.iter().map(|run| run.1).sum();
            runs.splice(due, [(highest + u8::from(alike), events)]);
        }
    }

    #[test]
    fn the_number_of_runs_grows_with_the_logarithm() {
        let mut runs = Vec::new();
        for n in 1..=5000_u32 {
            runs.push((0, 100_000));
            merge(&mut runs);
            let tiers = n.ilog2() / 2 + 1;
            assert!(runs.len() <= 3 * tiers as usize, "{n}: {runs:?}");
            let total = u64::from(n) * 100_000;
            assert_eq!(runs.iter().map(|run| run.1).sum::<u64>(), total);
        }
        // One is made anew, of its extents alone.
        let widest = runs.remove(0);
        let pieces = widest.1 / 100_000;
        runs.splice(0..0, (0..pieces).map(|_| (0, 100_000)));
        merge(&mut runs);
        assert!(
            runs.len() < 30 && runs.is_sorted_by(|a, b| a.0 >= b.0),
            "{runs:?}"
        );
        // No run outgrows its positions.
        let mut runs = vec![(7, RUN_EVENTS_MAX / 3); 9];
        merge(&mut runs);
        assert_eq!(runs.len(), 9);
    }
}
