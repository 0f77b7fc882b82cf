//! What the log says must run here: a pure fold of `platform.hosts.<host>` and of this host's own
//! reports. First step of the path: log → [`Desired`] → plan → act.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tabbify_api::log::Filter;
use tabbify_process::fold::{Fold, pairs};
use tabbify_types::event::EventError;
use tabbify_types::event::v1::{AppFailed, AppPlaced, InstanceRef};
use tabbify_types::{
    AppId, DeployId, Event, EventId, HostName, Position, Recorded, Segment, SegmentGlob, Timestamp,
};

/// An instance that has been healthy for so long is not part of a crash loop.
pub(crate) const STABLE_AFTER_MS: u64 = 60_000;

/// The fold: everything placed here that has not ended, and what was said about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Desired {
    orders: Segment,
    reports: Segment,
    host: HostName,
    #[serde(with = "pairs")]
    placed: BTreeMap<InstanceRef, Placed>,
    ended: BTreeSet<InstanceRef>,
    histories: BTreeMap<AppId, History>,
}

/// One instance that was placed here and has not been reported as ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placed {
    /// The id of its `app_placed`: the ids of all reports derive from it.
    pub(crate) event: EventId,
    /// Where its `app_placed` is: the cause of all reports.
    pub(crate) position: Position,
    /// What to run.
    pub(crate) app: AppPlaced,
    /// Set once it is to end: how long it may finish what it has begun, in milliseconds.
    pub(crate) stop: Option<u64>,
    /// What has been reported.
    pub(crate) said: Said,
}

/// What has been reported about an instance; its end removes it from the fold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Said {
    /// The intent to spawn.
    pub(crate) starting: bool,
    /// That it runs.
    pub(crate) started: bool,
    /// That it answers, and when that was recorded.
    pub(crate) healthy: Option<Timestamp>,
    /// That it was drained.
    pub(crate) drained: bool,
    /// How often, that it is idle.
    #[serde(default)]
    pub(crate) idles: u32,
    /// That it is idle, and not yet that it answers again.
    #[serde(default)]
    pub(crate) idle: bool,
}

/// How an app's instances of one deploy have fared: what back-off is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// The deploy; another one starts afresh.
    pub(crate) deploy: DeployId,
    /// Failures in a row, without a stable instance between them.
    pub(crate) failures: u32,
    /// When the last failure was recorded.
    pub(crate) failed_at: Timestamp,
}

impl Fold for Desired {
    const NAME: &'static str = "supervisor";
    const VERSION: u32 = 1;
    type News = ();
    /// An event of a later version: what it asks for is not known.
    type Error = EventError;

    fn filter(&self) -> Filter {
        Filter::segments([&self.orders, &self.reports].map(SegmentGlob::from))
    }

    /// Orders count only in the host's segment and reports only in the segment of reports, whatever
    /// else the log delivers.
    fn apply(&mut self, recorded: &Recorded) -> Result<(), EventError> {
        if let Some(event) = recorded.event()? {
            if recorded.segment == self.orders {
                self.order(recorded, event);
            } else if recorded.segment == self.reports {
                self.report(recorded, event);
            }
        }
        Ok(())
    }
}

impl Desired {
    /// Nothing is desired of `host` yet.
    pub(crate) fn new(host: HostName) -> Self {
        Self {
            orders: Segment::host(&host),
            reports: Segment::host_reports(&host),
            host,
            placed: BTreeMap::new(),
            ended: BTreeSet::new(),
            histories: BTreeMap::new(),
        }
    }

    /// Every instance that was placed here and has not ended.
    pub(crate) fn placed(&self) -> &BTreeMap<InstanceRef, Placed> {
        &self.placed
    }

    /// Whether the instance was placed here and has been reported as ended.
    pub(crate) fn has_ended(&self, of: InstanceRef) -> bool {
        self.ended.contains(&of)
    }

    /// How the app has fared, if anything was ever placed here.
    pub(crate) fn history(&self, app: AppId) -> Option<&History> {
        self.histories.get(&app)
    }

    fn order(&mut self, recorded: &Recorded, event: Event) {
        match event {
            Event::AppPlaced(app) if app.host == self.host => self.place(recorded, app),
            Event::AppStopRequested(stop) => {
                if let Some(placed) = self.placed.get_mut(&stop.of) {
                    placed.stop = Some(stop.drain_ms);
                }
            }
            _ => {}
        }
    }

    fn place(&mut self, recorded: &Recorded, app: AppPlaced) {
        let of = InstanceRef {
            app: app.app,
            instance: app.instance,
        };
        // INVARIANT: an instance number is placed once. A second order for it changes nothing.
        if self.ended.contains(&of) || self.placed.contains_key(&of) {
            return;
        }
        let fresh = History {
            deploy: app.deploy,
            failures: 0,
            failed_at: Timestamp::default(),
        };
        let history = self.histories.entry(app.app).or_insert(fresh);
        if history.deploy != app.deploy {
            *history = fresh;
        }
        let placed = Placed {
            event: recorded.id,
            position: recorded.position,
            app,
            stop: None,
            said: Said::default(),
        };
        self.placed.insert(of, placed);
    }

    fn report(&mut self, recorded: &Recorded, event: Event) {
        match event {
            Event::AppStarting(said) => self.say(said.of, |it| it.starting = true),
            Event::AppStarted(said) => self.say(said.of, |it| it.started = true),
            Event::AppHealthy(said) => {
                self.say(said.of, |it| it.healthy = Some(recorded.at));
            }
            Event::InstanceDrained(said) => self.say(said.of, |it| it.drained = true),
            Event::AppIdled(said) => self.say(said.of, |it| {
                it.idles = it.idles.saturating_add(u32::from(!it.idle));
                it.idle = true;
            }),
            Event::AppWoken(said) => self.say(said.of, |it| it.idle = false),
            Event::AppFailed(failed) => self.fail(recorded.at, &failed),
            Event::AppStopped(stopped) => {
                self.end(stopped.of);
            }
            _ => {}
        }
    }

    fn say(&mut self, of: InstanceRef, note: impl FnOnce(&mut Said)) {
        if let Some(placed) = self.placed.get_mut(&of) {
            note(&mut placed.said);
        }
    }

    fn fail(&mut self, at: Timestamp, failed: &AppFailed) {
        let Some(placed) = self.end(failed.of) else {
            return;
        };
        let Some(history) = self.histories.get_mut(&failed.of.app) else {
            return;
        };
        if history.deploy != placed.app.deploy {
            return;
        }
        let stable = placed
            .said
            .healthy
            .is_some_and(|since| at.millis().saturating_sub(since.millis()) >= STABLE_AFTER_MS);
        history.failures = if stable {
            0
        } else {
            history.failures.saturating_add(1)
        };
        history.failed_at = at;
    }

    fn end(&mut self, of: InstanceRef) -> Option<Placed> {
        let placed = self.placed.remove(&of)?;
        self.ended.insert(of);
        Some(placed)
    }
}

#[cfg(test)]
pub(crate) mod tests;
