//! Which machines live: the coordinator alone says that one is lost, that it is back, or that it is empty.
//!
//! A machine that joined or that was heard of is given [`Options::lost_after`](crate::Options::lost_after)
//! from then on; so is every one after a start of this process. Only time in which this process was there to
//! hear counts as silence: while it is frozen, suspended or starved, nobody else is silent.
//! With several coordinators each goes by what it hears itself: one says that a machine is lost once for each
//! silence, and one that hears it takes that back, so that a machine which only some can hear stays a place
//! for apps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tabbify_process::chain;
use tabbify_process::fold::Link;
use tabbify_types::{HostName, Rev, Segment};
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

/// What is found out about one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    host: HostName,
    verdict: Verdict,
    /// What was last heard of it when this was found.
    heard: Option<Instant>,
}

/// What one process knows of a machine beside the log; times are those of [`Machines::listened`].
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Revision of what the log says of it: another one is another chance.
    rev: Option<Rev>,
    /// Since when it is known here with that.
    since: Duration,
    /// What was last heard of it, and how long this process had listened by then.
    heard: Option<(Instant, Duration)>,
}

/// What one process knows of the machines beside the log.
#[derive(Debug)]
pub(crate) struct Machines {
    /// The machine of this process, which it needs not hear.
    own: Option<HostName>,
    lost_after: Duration,
    /// How long this process has been there to hear, and when it last looked.
    listened: Duration,
    looked: Option<Instant>,
    /// Each that is a place for apps.
    known: BTreeMap<HostName, Known>,
    /// What was last heard of those that were declared lost here.
    declared: BTreeMap<HostName, Option<Instant>>,
}

impl Machines {
    pub(crate) fn new(own: Option<&Config>, lost_after: Duration) -> Self {
        Self {
            own: own.map(|config| config.host.clone()),
            lost_after,
            listened: Duration::ZERO,
            looked: None,
            known: BTreeMap::new(),
            declared: BTreeMap::new(),
        }
    }

    /// How often it is looked.
    fn every(&self) -> Duration {
        (self.lost_after / 4).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)
    }

    /// Looks for ever.
    pub(crate) async fn watch(mut self, coordinator: Coordinator) {
        loop {
            tokio::time::sleep(self.every()).await;
            let heard = |host: &HostName| coordinator.0.soft.sign_of_life(host);
            let found = coordinator.0.folded.read(|view| {
                let found = self.find_out(&view.state, Instant::now(), heard);
                // What cannot be written down is not decided either; but it was listened.
                (view.link == Link::Live).then_some(found)
            });
            for finding in found.unwrap_or_default() {
                let (host, verdict) = (&finding.host, finding.verdict);
                if let Err(error) = say(&coordinator, host, verdict).await {
                    tracing::warn!(
                        role = "coordinator", %host, ?verdict, error = %chain(&error), "not written yet"
                    );
                    continue;
                }
                tracing::info!(role = "coordinator", %host, ?verdict, "machine");
                if verdict == Verdict::Lost {
                    count(&coordinator.0.counters.lost);
                    self.declared(finding);
                }
            }
        }
    }

    /// It was said that a machine is lost.
    fn declared(&mut self, finding: Finding) {
        self.declared.insert(finding.host, finding.heard);
    }

    fn find_out(
        &mut self,
        state: &State,
        now: Instant,
        heard: impl Fn(&HostName) -> Option<Instant>,
    ) -> Vec<Finding> {
        let gap = self.looked.map_or(Duration::ZERO, |looked| {
            now.saturating_duration_since(looked)
        });
        // Whoever comes back later than it meant to has not listened meanwhile.
        let passed = gap.min(self.every() * 2);
        self.looked = Some(now);
        self.listened += passed;
        let mut found = Vec::new();
        for host in state.supervisors.keys() {
            let heard = heard(host);
            let known = self.noted(state, host, heard, passed);
            let since_heard = known.heard.map(|(_, at)| self.listened.saturating_sub(at));
            let since_known = self.listened.saturating_sub(known.since);
            let silent = since_heard.map_or(since_known, |heard| heard.min(since_known));
            let is_own = self.own.as_ref() == Some(host);
            let mut find = |verdict: Verdict| {
                found.push(Finding {
                    host: host.clone(),
                    verdict,
                    heard,
                });
            };
            if state.is_lost(host) {
                if is_own || since_heard.is_some_and(|since| since < self.lost_after / 2) {
                    find(Verdict::Back);
                }
            } else if !is_own
                && silent >= self.lost_after
                && self.declared.get(host) != Some(&heard)
            {
                find(Verdict::Lost);
            }
            if state.drain_of(host).is_some_and(|drain| !drain.done) && state.load(host) == 0 {
                find(Verdict::Drained);
            }
        }
        let gone = |host: &HostName| !state.supervisors.contains_key(host);
        self.known.retain(|host, _| !gone(host));
        self.declared.retain(|host, _| !gone(host));
        found
    }

    /// Takes note of what the log and the machine itself say, `passed` after the last time.
    fn noted(
        &mut self,
        state: &State,
        host: &HostName,
        heard: Option<Instant>,
        passed: Duration,
    ) -> Known {
        let segment = Segment::supervisors();
        let rev = state.revs.get(&(segment, host.to_string())).copied();
        let listened = self.listened;
        let known = self.known.entry(host.clone()).or_insert(Known {
            rev,
            since: listened,
            heard: None,
        });
        if known.rev != rev {
            (known.rev, known.since) = (rev, listened);
        }
        if let Some(at) = heard
            && known.heard.is_none_or(|(before, _)| before != at)
        {
            // Since the last look: then, this process was there.
            let now = self.looked.unwrap_or(at);
            let ago = now.saturating_duration_since(at).min(passed);
            known.heard = Some((at, listened.saturating_sub(ago)));
        }
        *known
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
    use crate::state::Machine;

    const AFTER: Duration = Duration::from_secs(60);

    /// One coordinator's look at two machines, `box1` its own.
    struct Eye {
        machines: Machines,
        state: State,
        heard: Option<Instant>,
        start: Instant,
        looked: u64,
    }

    fn box2() -> HostName {
        "box2".parse().expect("INVARIANT: it is a name")
    }

    impl Eye {
        fn new() -> Self {
            let mut state = State::default();
            for host in ["box1", "box2"] {
                let host = host.parse().expect("INVARIANT: it is a name");
                state.supervisors.insert(host, Machine::default());
            }
            let mut machines = Machines::new(None, AFTER);
            machines.own = "box1".parse().ok();
            Self {
                machines,
                state,
                heard: None,
                start: Instant::now(),
                looked: 0,
            }
        }

        fn at(&self, secs: u64) -> Instant {
            self.start + Duration::from_secs(secs)
        }

        /// What is said of `box2` at this second, once, and that nothing is said of `box1`.
        fn looks(&mut self, secs: u64) -> Option<Verdict> {
            let heard = |host: &HostName| self.heard.filter(|_| host.as_str() == "box2");
            let now = self.at(secs);
            let found = self.machines.find_out(&self.state, now, heard);
            self.looked = secs;
            assert!(found.iter().all(|it| it.host == box2()));
            for finding in &found {
                if finding.verdict == Verdict::Lost {
                    self.machines.declared(finding.clone());
                }
            }
            found.first().map(|finding| finding.verdict)
        }

        /// Looks every second up to this one; what is said in the end, and nothing before.
        fn says(&mut self, secs: u64) -> Option<Verdict> {
            for between in self.looked + 1..secs {
                assert_eq!(self.looks(between), None, "at {between}");
            }
            self.looks(secs)
        }

        fn hears(&mut self, secs: u64) {
            self.heard = Some(self.at(secs));
        }

        /// What stands in the log about `box2`.
        fn is_lost(&mut self, is_lost: bool) {
            let mark = crate::trouble::Mark {
                position: tabbify_types::Position(1),
                id: tabbify_types::EventId::mint(),
            };
            self.state.troubles.remove(&box2());
            if is_lost {
                let trouble = crate::trouble::Trouble {
                    lost: Some(mark),
                    ..Default::default()
                };
                self.state.troubles.insert(box2(), trouble);
            }
            self.is_written();
        }

        /// Something about `box2` is in the log.
        fn is_written(&mut self) {
            let key = (Segment::supervisors(), "box2".to_owned());
            let rev = self.state.revs.entry(key).or_default();
            *rev = rev.next();
        }
    }

    #[test]
    fn silence_counts_from_the_start_and_from_what_was_heard() {
        let mut eye = Eye::new();
        assert_eq!(eye.looks(0), None);
        assert_eq!(eye.says(59), None, "a whole period from the start");
        eye.hears(59);
        assert_eq!(eye.says(118), None);
        assert_eq!(eye.says(119), Some(Verdict::Lost));
        eye.is_lost(true);
        assert_eq!(eye.says(199), None, "nothing was heard since");
        eye.hears(200);
        assert_eq!(eye.says(200), Some(Verdict::Back));
        eye.is_lost(false);
        assert_eq!(eye.says(260), None, "a whole period since it is back");
        assert_eq!(eye.says(261), Some(Verdict::Lost));
    }

    #[test]
    fn whom_only_others_hear_is_declared_lost_once() {
        let mut eye = Eye::new();
        assert_eq!((eye.looks(0), eye.says(60)), (None, Some(Verdict::Lost)));
        eye.is_lost(true);
        assert_eq!(eye.says(61), None);
        // Another coordinator hears it, and takes that back: it is not said again and again.
        eye.is_lost(false);
        assert_eq!((eye.says(62), eye.says(600)), (None, None));
        eye.hears(601);
        assert_eq!((eye.says(602), eye.says(661)), (None, Some(Verdict::Lost)));
    }

    /// However long this process was away, and whether nobody spoke meanwhile or all did.
    #[test]
    fn time_in_which_nobody_listened_is_nobody_s_silence() {
        for away in [10, 60, 3_600, 30 * 24 * 3_600] {
            let mut eye = Eye::new();
            assert_eq!(eye.looks(0), None);
            eye.hears(10);
            assert_eq!(eye.says(11), None);
            // Just heard, not seen yet.
            eye.hears(11);
            let back = 11 + away;
            assert_eq!(eye.looks(back), None, "away for {away} s");
            // What it had listened before counts, and what it listens from here on.
            assert_eq!(eye.says(back + 57), None);
            assert_eq!(eye.says(back + 58), Some(Verdict::Lost));
        }
    }

    #[test]
    fn one_that_stumbles_all_the_time_still_finds_out() {
        let mut eye = Eye::new();
        // Every look comes ten seconds late: two of each count.
        let late = (0..100).map(|n| n * 11);
        let lost = late.into_iter().find(|secs| eye.looks(*secs).is_some());
        assert_eq!(lost, Some(30 * 11));
    }

    #[test]
    fn a_machine_that_joins_again_has_a_whole_period() {
        let mut eye = Eye::new();
        assert_eq!((eye.looks(0), eye.says(59)), (None, None));
        // Between two looks it has left and is there again.
        eye.is_written();
        assert_eq!(eye.says(119), None);
        assert_eq!(eye.says(120), Some(Verdict::Lost));
    }

    /// It is heard while it is being declared lost; that it falls silent again right after is another silence.
    #[test]
    fn what_is_heard_meanwhile_is_no_part_of_the_silence() {
        let mut eye = Eye::new();
        let machines = &mut eye.machines;
        let found = |machines: &mut Machines, secs: u64, heard: Option<Instant>| {
            let now = eye.start + Duration::from_secs(secs);
            machines.find_out(&eye.state, now, |host| {
                heard.filter(|_| host.as_str() == "box2")
            })
        };
        for secs in 0..60 {
            assert_eq!(found(machines, secs, None), []);
        }
        let lost = found(machines, 60, None);
        assert_eq!(lost[0].verdict, Verdict::Lost);
        let heard = Some(eye.start + Duration::from_secs(60));
        machines.declared(lost[0].clone());
        let said = (61..200).filter(|secs| !found(machines, *secs, heard).is_empty());
        assert_eq!(said.min(), Some(120));
    }

    #[test]
    fn its_own_machine_is_never_lost_to_it() {
        let mut eye = Eye::new();
        eye.machines.own = Some(box2());
        let find_out = |eye: &mut Eye, secs: u64| {
            let now = eye.at(secs);
            let heard = |host: &HostName| (host.as_str() == "box1").then_some(now);
            eye.machines.find_out(&eye.state, now, heard)
        };
        for secs in 0..200 {
            assert_eq!(find_out(&mut eye, secs), [], "at {secs}");
        }
        eye.is_lost(true);
        let found = find_out(&mut eye, 200);
        let said: Vec<Verdict> = found.iter().map(|it| it.verdict).collect();
        assert_eq!(said, [Verdict::Back], "another said so");
    }
}
