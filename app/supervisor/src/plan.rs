//! What to do next: a pure function of what is desired and what was observed. Second step of the
//! path: log → desired → [`plan`] → act. Tested by the text scripts in `tests/plan`.
//!
//! At most one action per instance and turn; the next follows from what it changed. So a crash
//! between any two of them leaves a state from which the same rules go on.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tabbify_api::runner::Failure;
use tabbify_types::event::v1::{FailureReason, InstanceRef};
use tabbify_types::{EventId, MeshKey, SecretName, SecretVersion, Timestamp};

use crate::report::{End, Report};
use crate::state::{Desired, Placed};

/// Back-off after the first failure of a deploy; doubles with each.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// LIMIT: back-off, before jitter.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// How long an idle instance is kept after callers are sent to the doorbell: one who has not heard finds it.
const LINGER: Duration = Duration::from_secs(1);

/// What is known of one instance's directory and process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Whether it lives.
    pub(crate) life: Life,
    /// How long it has been starting; meaningful until it is ready.
    pub(crate) starting_for: Duration,
    /// How draining it went.
    pub(crate) drain: Drain,
    /// Why its process could not be made, if that was tried.
    pub(crate) unspawnable: Option<String>,
    /// Why it cannot serve, if it said so before it ended.
    pub(crate) failure: Option<Failure>,
    /// Whether it has been shown as foreign.
    pub(crate) quarantined: bool,
    /// Whether an action on it is under way.
    pub(crate) busy: bool,
    /// How long callers have been sent to the doorbell, since it is idle.
    pub(crate) told_for: Option<Duration>,
    /// Whether somebody waits for it at the doorbell.
    pub(crate) is_wanted: bool,
    /// Whether its process has served somebody who rang: it can be reached, if only so.
    pub(crate) is_visited: bool,
}

/// Whether an instance lives: locked ⇔ alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its lock is free and no runner ever wrote its birth record.
    Unborn,
    /// Its lock is held.
    Alive(Control),
    /// Its lock is free, and it did live.
    Dead(End),
}

/// What is known from the control socket of a living runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nobody watches it yet.
    Unwatched,
    /// Watched; its control socket has not answered yet.
    Connecting,
    /// Watched; its control socket does not answer as it must.
    Unreachable,
    /// It says that it is starting.
    Starting,
    /// It says that it answers requests.
    Ready {
        /// The WireGuard key that it made.
        key: MeshKey,
        /// The versions of the secrets that it got.
        secrets: BTreeMap<SecretName, SecretVersion>,
    },
    /// The same, and that it has had nothing to do for a while.
    Idle {
        /// The WireGuard key that it made.
        key: MeshKey,
        /// The versions of the secrets that it got.
        secrets: BTreeMap<SecretName, SecretVersion>,
    },
    /// It says that it takes no new requests.
    Draining,
    /// It says that it cannot serve; [`Observed::failure`] says why.
    Failed,
}

/// How draining went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Not asked for.
    Untried,
    /// Done.
    Done {
        /// Requests that ended well after it began.
        finished: u64,
        /// Requests that the deadline cut off.
        cut: u64,
    },
    /// The runner did not do it.
    Refused,
}

/// One thing to do. Each is idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Record the intent, then make the directory, take the lock, start the process, watch it.
    Spawn(InstanceRef),
    /// Watch a process that lives already.
    Adopt(InstanceRef),
    /// Append these to the host's reports, as one batch.
    Report(InstanceRef, Vec<Report>),
    /// Let it finish what it has begun, for so many milliseconds.
    Drain(InstanceRef, u64),
    /// Make sure that callers are sent to the doorbell.
    Tell(InstanceRef),
    /// The same as to drain, if it has nothing to do still.
    Sleep(InstanceRef, u64),
    /// Make a process of an instance that is asleep.
    Wake(InstanceRef),
    /// End its process.
    Stop(InstanceRef),
    /// Remove its directory.
    Remove(InstanceRef),
    /// Say that it lives and that nobody placed it here.
    Quarantine(InstanceRef),
}

/// What to do now, and when to look again if nothing happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// At most one for each instance.
    pub(crate) actions: Vec<Action>,
    /// The first moment at which time alone changes the plan.
    pub(crate) wake_in: Option<Duration>,
}

enum Step {
    Nothing,
    Do(Action),
    Later(Duration),
}

/// Decides for every instance that is desired or observed.
pub(crate) fn plan(
    desired: &Desired,
    observed: &BTreeMap<InstanceRef, Observed>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let unseen = desired
        .placed()
        .keys()
        .filter(|of| !observed.contains_key(of));
    for of in observed.keys().chain(unseen) {
        let seen = observed.get(of);
        if seen.is_some_and(|seen| seen.busy) {
            continue;
        }
        let step = match (desired.placed().get(of), seen) {
            (Some(placed), _) if placed.stop.is_some() => ending(*of, placed, seen),
            (Some(placed), _) => running(*of, placed, seen, backoff(desired, placed, now)),
            (None, Some(seen)) if desired.has_ended(*of) => ended(*of, seen),
            (None, Some(seen)) => foreign(*of, seen),
            (None, None) => Step::Nothing,
        };
        match step {
            Step::Nothing => {}
            Step::Do(action) => plan.actions.push(action),
            Step::Later(span) => {
                plan.wake_in = Some(plan.wake_in.map_or(span, |other| other.min(span)));
            }
        }
    }
    plan
}

/// An instance that is to run.
fn running(of: InstanceRef, placed: &Placed, seen: Option<&Observed>, wait: Duration) -> Step {
    let report = |report| Step::Do(Action::Report(of, vec![report]));
    let Some(seen) = seen else {
        return match placed.said.idle {
            true => Step::Nothing,
            false => unborn(of, placed, wait),
        };
    };
    if let Some(detail) = &seen.unspawnable {
        let detail = detail.clone();
        let reason = FailureReason::Spawn;
        return report(Report::Failed(Failure { reason, detail }));
    }
    if placed.said.idle {
        return dozing(of, placed, seen);
    }
    match &seen.life {
        Life::Unborn => unborn(of, placed, wait),
        Life::Dead(end) => report(Report::Failed(end.failure(seen.failure.as_ref()))),
        Life::Alive(Control::Unwatched) => Step::Do(Action::Adopt(of)),
        // Reported once it has ended: then all that it printed is on disk.
        Life::Alive(Control::Failed) => Step::Do(Action::Stop(of)),
        Life::Alive(Control::Ready { key, secrets } | Control::Idle { key, secrets })
            if placed.said.healthy.is_none() =>
        {
            let (key, secrets) = (*key, secrets.clone());
            let said = vec![Report::Started { key, secrets }, Report::Healthy];
            Step::Do(Action::Report(of, said))
        }
        Life::Alive(Control::Idle { .. }) => report(Report::Idled),
        // One that has not been heard yet may have been ready for long: it is given the time to
        // say so, which its watch limits.
        Life::Alive(Control::Unreachable | Control::Starting) if placed.said.healthy.is_none() => {
            let within = Duration::from_millis(placed.app.run.healthy_within_ms);
            match within.checked_sub(seen.starting_for) {
                Some(left) if !left.is_zero() => Step::Later(left),
                _ => report(Report::Failed(unhealthy(within))),
            }
        }
        // It serves, or somebody else drains it: its end will be seen.
        Life::Alive(_) => Step::Nothing,
    }
}

/// An instance that was idle, and of which it is not said that it answers again: it goes to sleep, sleeps, or
/// wakes up.
fn dozing(of: InstanceRef, placed: &Placed, seen: &Observed) -> Step {
    let report = |report| Step::Do(Action::Report(of, vec![report]));
    let drain_ms = placed.app.run.stop_timeout_ms;
    match &seen.life {
        Life::Unborn if seen.is_wanted => Step::Do(Action::Wake(of)),
        // Asleep. Of who ended otherwise than it was told, it is said: waking it again and again is no help.
        Life::Unborn => Step::Do(Action::Remove(of)),
        Life::Dead(end) if end.is_clean() || matches!(seen.drain, Drain::Done { .. }) => {
            Step::Do(Action::Remove(of))
        }
        Life::Dead(end) => report(Report::Failed(end.failure(seen.failure.as_ref()))),
        Life::Alive(Control::Unwatched) => Step::Do(Action::Adopt(of)),
        Life::Alive(Control::Connecting) => Step::Nothing,
        Life::Alive(Control::Failed) => Step::Do(Action::Stop(of)),
        Life::Alive(Control::Ready { key, secrets }) => report(Report::Woken {
            key: *key,
            secrets: secrets.clone(),
        }),
        // It takes no more requests, and has not been heard to say so yet.
        Life::Alive(Control::Idle { .. }) if matches!(seen.drain, Drain::Done { .. }) => {
            Step::Do(Action::Stop(of))
        }
        // Whoever waits is let in, and then it is idle no more.
        Life::Alive(Control::Idle { .. }) if seen.is_wanted => Step::Nothing,
        Life::Alive(Control::Idle { .. }) => match seen.told_for {
            None => Step::Do(Action::Tell(of)),
            Some(told) => match LINGER.checked_sub(told) {
                Some(left) if !left.is_zero() => Step::Later(left),
                _ => Step::Do(Action::Sleep(of, drain_ms)),
            },
        },
        Life::Alive(Control::Draining) if seen.drain == Drain::Untried => {
            Step::Do(Action::Drain(of, drain_ms))
        }
        Life::Alive(Control::Draining) => Step::Do(Action::Stop(of)),
        // It can be reached through the doorbell, and is waiting for its lease.
        Life::Alive(Control::Starting) if seen.is_visited => Step::Nothing,
        Life::Alive(Control::Unreachable | Control::Starting) => {
            let within = Duration::from_millis(placed.app.run.healthy_within_ms);
            match within.checked_sub(seen.starting_for) {
                Some(left) if !left.is_zero() => Step::Later(left),
                _ => report(Report::Failed(unhealthy(within))),
            }
        }
    }
}

/// An instance without a process. INVARIANT: once it has been reported as started it is never
/// spawned again; before that, the free lock proves that no process of it lives.
fn unborn(of: InstanceRef, placed: &Placed, wait: Duration) -> Step {
    if placed.said.started {
        let failure = Failure {
            reason: FailureReason::Exited,
            detail: "the directory of its runner is gone".to_owned(),
        };
        Step::Do(Action::Report(of, vec![Report::Failed(failure)]))
    } else if wait.is_zero() {
        Step::Do(Action::Spawn(of))
    } else {
        Step::Later(wait)
    }
}

/// An instance that is to end.
fn ending(of: InstanceRef, placed: &Placed, seen: Option<&Observed>) -> Step {
    let stopped = Step::Do(Action::Report(of, vec![Report::Stopped]));
    let (Some(seen), Some(drain_ms)) = (seen, placed.stop) else {
        return stopped;
    };
    match (&seen.life, seen.drain) {
        (Life::Unborn | Life::Dead(_), _) => stopped,
        (Life::Alive(Control::Unwatched), _) => Step::Do(Action::Adopt(of)),
        // Its socket will answer soon, or be given up.
        (Life::Alive(Control::Connecting), _) => Step::Nothing,
        (Life::Alive(_), _) if placed.said.drained => Step::Do(Action::Stop(of)),
        (Life::Alive(_), Drain::Done { finished, cut }) => {
            let drained = Report::Drained { finished, cut };
            Step::Do(Action::Report(of, vec![drained]))
        }
        (
            Life::Alive(Control::Ready { .. } | Control::Idle { .. } | Control::Draining),
            Drain::Untried,
        ) => Step::Do(Action::Drain(of, drain_ms)),
        (Life::Alive(_), _) => Step::Do(Action::Stop(of)),
    }
}

/// An instance whose end has been reported.
fn ended(of: InstanceRef, seen: &Observed) -> Step {
    match seen.life {
        Life::Alive(_) => Step::Do(Action::Stop(of)),
        Life::Unborn | Life::Dead(_) => Step::Do(Action::Remove(of)),
    }
}

/// A directory that no order of this host explains: from another log, or from one that lost its
/// tail. Killing it could kill what serves; removing it could remove what explains it.
fn foreign(of: InstanceRef, seen: &Observed) -> Step {
    if seen.quarantined {
        Step::Nothing
    } else {
        Step::Do(Action::Quarantine(of))
    }
}

fn unhealthy(within: Duration) -> Failure {
    let detail = format!("it did not answer within {} s", within.as_secs_f64());
    Failure {
        reason: FailureReason::Unhealthy,
        detail,
    }
}

/// How long the spawn of `placed` must still wait for the failures before it.
fn backoff(desired: &Desired, placed: &Placed, now: Timestamp) -> Duration {
    let Some(history) = desired.history(placed.app.app) else {
        return Duration::ZERO;
    };
    if history.failures == 0 || history.deploy != placed.app.deploy {
        return Duration::ZERO;
    }
    let delay = backoff_after(history.failures, placed.event);
    let due = history.failed_at.plus(delay).millis();
    // A clock that was set back must not hold an app for longer than the back-off itself; one
    // that is a little behind the log's is normal.
    let left = Duration::from_millis(due.saturating_sub(now.millis()));
    if left > BACKOFF_MAX * 2 {
        Duration::ZERO
    } else {
        left
    }
}

/// 1 s, 2 s, 4 s … 5 min, and up to a quarter more: the jitter comes from the placement's id, so
/// that the same log gives the same plan.
fn backoff_after(failures: u32, placement: EventId) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(1_u32 << (failures.saturating_sub(1)).min(16));
    let base = doubled.min(BACKOFF_MAX);
    let jitter = u32::from(placement.uuid().as_bytes()[15]);
    base + base * jitter / (4 * 256)
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn(_) => f.write_str("spawn"),
            Self::Adopt(_) => f.write_str("adopt"),
            Self::Report(_, reports) => {
                f.write_str("report")?;
                reports.iter().try_for_each(|report| write!(f, " {report}"))
            }
            Self::Drain(_, ms) => write!(f, "drain {ms}ms"),
            Self::Tell(_) => f.write_str("tell"),
            Self::Sleep(_, ms) => write!(f, "sleep {ms}ms"),
            Self::Wake(_) => f.write_str("wake"),
            Self::Stop(_) => f.write_str("stop"),
            Self::Remove(_) => f.write_str("remove"),
            Self::Quarantine(_) => f.write_str("quarantine"),
        }
    }
}

impl Action {
    /// The instance that it is about.
    pub(crate) const fn of(&self) -> InstanceRef {
        match self {
            Self::Spawn(of)
            | Self::Adopt(of)
            | Self::Report(of, _)
            | Self::Drain(of, _)
            | Self::Tell(of)
            | Self::Sleep(of, _)
            | Self::Wake(of)
            | Self::Stop(of)
            | Self::Remove(of)
            | Self::Quarantine(of) => *of,
        }
    }
}

#[cfg(test)]
mod tests;
