//! Which machines live: the coordinator alone says that one is lost, that it is back, or that it is empty.
//!
//! A machine that joined or that was heard of is given [`Options::lost_after`](crate::Options::lost_after)
//! from then on; so is every one after a start of this process. With several coordinators each goes by what
//! it hears itself: one says that a machine is lost once for each silence, and one that hears it takes that
//! back, so that a machine which only some can hear stays a place for apps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tabbify_process::chain;
use tabbify_process::fold::Link;
use tabbify_types::HostName;
use tokio::time::Instant;

use crate::Config;
use crate::coordinator::Coordinator;
use crate::refusal::Refusal;
use crate::standing::{back, drain, drained, lost, resume};
use crate::state::State;
use crate::stats::count;

/// How often it is looked, at least and at most.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(10);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// What is to be said of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Lost,
    Back,
    Drained,
}

/// What one process knows of the machines beside the log.
#[derive(Debug)]
pub(crate) struct Machines {
    /// The machine of this process, which it needs not hear.
    own: Option<HostName>,
    /// Since when each is known here to be a place for apps.
    known: BTreeMap<HostName, Instant>,
    /// What was last heard of those that were declared lost here.
    declared: BTreeMap<HostName, Option<Instant>>,
}

impl Machines {
    pub(crate) fn new(own: Option<&Config>) -> Self {
        Self {
            own: own.map(|config| config.host.clone()),
            known: BTreeMap::new(),
            declared: BTreeMap::new(),
        }
    }

    /// Looks for ever.
    pub(crate) async fn watch(mut self, coordinator: Coordinator) {
        let lost_after = coordinator.lost_after();
        let every = (lost_after / 4).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        loop {
            tokio::time::sleep(every).await;
            let heard = |host: &HostName| coordinator.0.soft.heard_at(host);
            let verdicts = coordinator.0.folded.read(|view| {
                // What cannot be written down is not decided either.
                let is_live = view.link == Link::Live;
                is_live.then(|| self.verdicts(&view.state, lost_after, Instant::now(), heard))
            });
            for (host, verdict) in verdicts.unwrap_or_default() {
                if let Err(error) = say(&coordinator, &host, verdict).await {
                    tracing::warn!(
                        role = "coordinator", %host, ?verdict, error = %chain(&error), "not written yet"
                    );
                    continue;
                }
                if verdict == Verdict::Lost {
                    count(&coordinator.0.counters.lost);
                    self.declared.insert(host.clone(), heard(&host));
                }
                tracing::info!(role = "coordinator", %host, ?verdict, "machine");
            }
        }
    }

    fn verdicts(
        &mut self,
        state: &State,
        lost_after: Duration,
        now: Instant,
        heard: impl Fn(&HostName) -> Option<Instant>,
    ) -> Vec<(HostName, Verdict)> {
        let mut verdicts = Vec::new();
        for host in state.supervisors.keys() {
            let known = *self.known.entry(host.clone()).or_insert(now);
            let heard = heard(host);
            let is_own = self.own.as_ref() == Some(host);
            let silent =
                now.saturating_duration_since(heard.map_or(known, |heard| heard.max(known)));
            if state.is_lost(host) {
                if is_own || heard.is_some() && silent < lost_after / 2 {
                    verdicts.push((host.clone(), Verdict::Back));
                }
            } else if !is_own && silent >= lost_after && self.declared.get(host) != Some(&heard) {
                verdicts.push((host.clone(), Verdict::Lost));
            }
            if state.drain_of(host).is_some_and(|drain| !drain.done) && state.load(host) == 0 {
                verdicts.push((host.clone(), Verdict::Drained));
            }
        }
        let gone = |host: &HostName| !state.supervisors.contains_key(host);
        self.known.retain(|host, _| !gone(host));
        self.declared.retain(|host, _| !gone(host));
        verdicts
    }
}

async fn say(coordinator: &Coordinator, host: &HostName, verdict: Verdict) -> Result<(), Refusal> {
    let decide = match verdict {
        Verdict::Lost => lost,
        Verdict::Back => back,
        Verdict::Drained => drained,
    };
    coordinator.settle(|state| decide(state, host)).await
}

impl Coordinator {
    /// Empties a machine: it gets no new instances, what serves there is placed elsewhere first and then
    /// stops; `supervisor_drained` says when it has nothing left. What no other machine can run stays.
    /// Whether `by` may is the caller's to check.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn drain(&self, host: &HostName, by: &str) -> Result<(), Refusal> {
        self.check_supervisor(host)?;
        self.settle(|state| drain(state, host, by)).await
    }

    /// Makes a machine that was emptied, or is being so, a place for apps again.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn resume(&self, host: &HostName) -> Result<(), Refusal> {
        self.check_supervisor(host)?;
        self.settle(|state| resume(state, host)).await
    }

    fn check_supervisor(&self, host: &HostName) -> Result<(), Refusal> {
        if self.read(|state| state.supervisors.contains_key(host))? {
            return Ok(());
        }
        let known = self.read(|state| {
            let names: BTreeSet<&str> = state.supervisors.keys().map(HostName::as_str).collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        })?;
        Err(Refusal::Invalid(format!(
            "no machine that runs apps is called {host}; there are: {known}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    /// One coordinator's look at two machines, `box1` its own.
    struct Eye {
        machines: Machines,
        state: State,
        heard: Option<Instant>,
        start: Instant,
    }

    impl Eye {
        fn new() -> Self {
            let mut state = State::default();
            for host in ["box1", "box2"] {
                let host = host.parse().expect("INVARIANT: it is a name");
                state.supervisors.insert(host, Vec::new());
            }
            let mut machines = Machines::new(None);
            machines.own = "box1".parse().ok();
            Self {
                machines,
                state,
                heard: None,
                start: Instant::now(),
            }
        }

        /// What is said of `box2` after so many seconds, and that nothing is said of `box1`.
        fn says(&mut self, secs: u64) -> Option<Verdict> {
            let now = self.start + Duration::from_secs(secs);
            let heard = |host: &HostName| self.heard.filter(|_| host.as_str() == "box2");
            let verdicts = self.machines.verdicts(&self.state, AFTER, now, heard);
            assert!(verdicts.iter().all(|(host, _)| host.as_str() == "box2"));
            for (host, verdict) in &verdicts {
                if *verdict == Verdict::Lost {
                    self.machines.declared.insert(host.clone(), self.heard);
                }
            }
            verdicts.first().map(|(_, verdict)| *verdict)
        }

        fn hears(&mut self, secs: u64) {
            self.heard = Some(self.start + Duration::from_secs(secs));
        }

        /// What stands in the log about `box2`.
        fn is_lost(&mut self, is_lost: bool) {
            let mark = crate::trouble::Mark {
                position: tabbify_types::Position(1),
                id: tabbify_types::EventId::mint(),
            };
            let host: HostName = "box2".parse().expect("INVARIANT: it is a name");
            self.state.troubles.remove(&host);
            if is_lost {
                let trouble = crate::trouble::Trouble {
                    lost: Some(mark),
                    ..Default::default()
                };
                self.state.troubles.insert(host, trouble);
            }
        }
    }

    #[test]
    fn silence_counts_from_the_start_and_from_what_was_heard() {
        let mut eye = Eye::new();
        assert_eq!(eye.says(0), None);
        assert_eq!(eye.says(59), None, "a whole period from the start");
        eye.hears(50);
        assert_eq!(eye.says(109), None);
        assert_eq!(eye.says(110), Some(Verdict::Lost));
        eye.is_lost(true);
        assert_eq!(eye.says(111), None);
        eye.hears(200);
        assert_eq!(eye.says(201), Some(Verdict::Back));
        eye.is_lost(false);
        assert_eq!(eye.says(202), None);
        assert_eq!(eye.says(260), Some(Verdict::Lost));
    }

    #[test]
    fn whom_only_others_hear_is_declared_lost_once() {
        let mut eye = Eye::new();
        assert_eq!((eye.says(0), eye.says(60)), (None, Some(Verdict::Lost)));
        eye.is_lost(true);
        assert_eq!(eye.says(61), None);
        // Another coordinator hears it, and takes that back: it is not said again and again.
        eye.is_lost(false);
        assert_eq!((eye.says(62), eye.says(600)), (None, None));
        eye.hears(601);
        assert_eq!((eye.says(602), eye.says(661)), (None, Some(Verdict::Lost)));
    }

    #[test]
    fn its_own_machine_is_never_lost_to_it() {
        let mut eye = Eye::new();
        eye.machines.own = "box2".parse().ok();
        let now = eye.start + AFTER * 2;
        let heard = |host: &HostName| (host.as_str() == "box1").then_some(now);
        let verdicts = eye.machines.verdicts(&eye.state, AFTER, now, heard);
        assert_eq!(verdicts, []);
        eye.is_lost(true);
        let verdicts = eye.machines.verdicts(&eye.state, AFTER, now, heard);
        let said: Vec<Verdict> = verdicts.iter().map(|(_, verdict)| *verdict).collect();
        assert_eq!(said, [Verdict::Back], "another said so");
    }
}
