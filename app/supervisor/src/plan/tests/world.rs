//! A model of the machine around the plan: processes, directories, a log, and a supervisor that
//! crashes between any two steps. Whatever happens in whatever order, nothing runs twice, and once
//! the crashes stop everything comes to rest where the orders want it.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use proptest::sample::Index;
use tabbify_process::fold::Fold as _;
use tabbify_types::Recorded;

use super::*;
use crate::state::tests::{home, host};

/// What is true of one instance, whether the supervisor knows it or not.
#[derive(Debug, Clone, Default)]
struct Truth {
    directory: bool,
    /// Its runner has written its birth record.
    born: bool,
    /// Its process, which holds the lock.
    process: Option<Process>,
    /// The last process ended because it was told to.
    clean: bool,
    /// Somebody waits for it at the doorbell.
    wanted: bool,
    processes_ever: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Starting,
    /// As starting, but for ever.
    Hung,
    Ready,
    /// The same, with nothing to do.
    Idle,
    Draining,
    Broken,
}

#[derive(Debug, Clone)]
enum Step {
    Place,
    StopOrder(Index),
    /// The supervisor plans and does this many sub-steps; then, perhaps, it crashes.
    Turn {
        sub_steps: usize,
        crash: bool,
    },
    /// A runner gets on: writes its birth record, becomes ready, has nothing to do, fails, hangs, dies.
    Get(Index, Fate),
    /// Somebody rings for an instance; who was served before is gone.
    Ring(Index),
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Born,
    Ready,
    Idle,
    Broken,
    Hang,
    Die,
}

struct World {
    script: Script,
    log: Vec<Recorded>,
    truth: BTreeMap<InstanceRef, Truth>,
}

impl World {
    fn append(&mut self, event: &Event) {
        let story = &mut self.script.story;
        let event = story.next(&home(event), self.script.now, event);
        story.desired.apply(&event).unwrap();
        self.log.push(event);
    }

    fn report(&mut self, of: InstanceRef, report: &Report) {
        let segment = tabbify_types::Segment::host_reports(&host());
        let placed = &self.script.story.desired.placed()[&of];
        let new = report.event(&segment, placed, "").unwrap();
        let decoded = Event::decode(&new.kind, new.version, new.data.get());
        // The same id again is the same report: the log takes it once.
        if self.log.iter().all(|event| event.id != new.id) {
            self.append(&decoded.unwrap().unwrap());
            self.log.last_mut().unwrap().id = new.id;
        }
    }

    /// What a scan of the directories sees.
    fn look(&self, of: InstanceRef) -> Option<Life> {
        let truth = self.truth.get(&of)?;
        match (truth.process, truth.born) {
            _ if !truth.directory => None,
            (Some(_), _) => Some(Life::Alive(Control::Unwatched)),
            (None, true) if truth.clean => Some(Life::Dead(clean())),
            (None, true) => Some(Life::Dead(End::default())),
            (None, false) => Some(Life::Unborn),
        }
    }

    fn crash(&mut self) {
        let mut desired = Desired::new(host());
        for event in &self.log {
            desired.apply(event).unwrap();
        }
        assert_eq!(
            desired, self.script.story.desired,
            "replay gives another state"
        );
        self.script.observed.clear();
        for of in self.truth.keys() {
            if let Some(life) = self.look(*of) {
                self.script.observed.insert(*of, fresh(life));
            }
        }
    }

    /// Those who wait are let in, where anybody can be; then what the watches of living runners tell.
    fn hear(&mut self) {
        for (of, truth) in &mut self.truth {
            if truth.wanted && matches!(truth.process, Some(Process::Ready | Process::Idle)) {
                (truth.process, truth.wanted) = (Some(Process::Ready), false);
            }
            let placed = self.script.story.desired.placed().get(of);
            let sleeps = placed.is_some_and(|placed| placed.said.idle && placed.stop.is_none());
            if truth.wanted && sleeps {
                let unborn = || fresh(Life::Unborn);
                self.script.observed.entry(*of).or_insert_with(unborn);
            }
        }
        for (of, seen) in &mut self.script.observed {
            seen.is_wanted = self.truth.get(of).is_some_and(|truth| truth.wanted);
            if let Some(told) = &mut seen.told_for {
                *told += Duration::from_secs(1);
            }
        }
        for (of, seen) in &mut self.script.observed {
            let watched =
                matches!(&seen.life, Life::Alive(control) if *control != Control::Unwatched);
            if watched {
                seen.life = match self.truth[of].process {
                    Some(Process::Starting) => Life::Alive(Control::Starting),
                    Some(Process::Hung) => {
                        seen.starting_for = Duration::from_secs(61);
                        Life::Alive(Control::Starting)
                    }
                    Some(Process::Ready) => Life::Alive(Control::Ready {
                        key: KEY,
                        secrets: BTreeMap::new(),
                    }),
                    Some(Process::Idle) => Life::Alive(Control::Idle {
                        key: KEY,
                        secrets: BTreeMap::new(),
                    }),
                    Some(Process::Draining) => Life::Alive(Control::Draining),
                    Some(Process::Broken) => Life::Alive(Control::Failed),
                    None if self.truth[of].clean => Life::Dead(clean()),
                    None => Life::Dead(End::default()),
                };
                if !matches!(seen.life, Life::Alive(Control::Idle { .. })) {
                    seen.told_for = None;
                }
            }
        }
    }

    /// Does an action up to `sub_steps` of its sub-steps; how many it used. As in `act`, each is
    /// atomic and a crash may come between them.
    fn act(&mut self, action: &Action, sub_steps: usize) -> usize {
        let of = action.of();
        let unborn = || fresh(Life::Unborn);
        let seen = self.script.observed.entry(of).or_insert_with(unborn);
        match action {
            Action::Spawn(_) => {
                self.report(of, &Report::Starting);
                if sub_steps >= 2 {
                    self.truth.entry(of).or_default().directory = true;
                }
                if sub_steps >= 3 {
                    self.exec(of);
                }
                return 3;
            }
            Action::Wake(_) => {
                self.truth.entry(of).or_default().directory = true;
                if sub_steps >= 2 {
                    self.wake(of);
                }
                return 2;
            }
            Action::Tell(_) => seen.told_for = Some(Duration::ZERO),
            Action::Sleep(..) => return self.fall_asleep(of, sub_steps),
            Action::Adopt(_) => seen.life = Life::Alive(Control::Connecting),
            Action::Report(_, reports) => {
                for report in reports {
                    self.report(of, report);
                }
            }
            Action::Drain(..) => {
                let truth = self.truth.get_mut(&of).unwrap();
                truth.process = truth.process.map(|_| Process::Draining);
                if sub_steps >= 2 {
                    seen.drain = Drain::Done {
                        finished: 1,
                        cut: 0,
                    };
                }
                return 2;
            }
            Action::Stop(_) => {
                let truth = self.truth.get_mut(&of).unwrap();
                truth.clean = !matches!(truth.process, Some(Process::Broken));
                truth.process = None;
                let end = if truth.clean { clean() } else { End::default() };
                seen.life = Life::Dead(end);
            }
            Action::Remove(_) => {
                let truth = self.truth.entry(of).or_default();
                assert_eq!(
                    truth.process, None,
                    "the directory of a living runner is removed"
                );
                (truth.directory, truth.born) = (false, false);
                self.script.observed.remove(&of);
            }
            Action::Quarantine(_) => panic!("everything here was placed"),
        }
        1
    }

    fn exec(&mut self, of: InstanceRef) {
        let truth = self.truth.get_mut(&of).unwrap();
        assert!(truth.process.is_none() && !truth.born, "{of:?} runs twice");
        let said = self.script.story.desired.placed()[&of].said;
        assert!(said.starting && !said.started, "spawned without intent");
        truth.process = Some(Process::Starting);
        truth.processes_ever += 1;
        let seen = self.script.observed.get_mut(&of).unwrap();
        seen.life = Life::Alive(Control::Connecting);
    }

    /// The same of an instance that is asleep: as often as somebody rings.
    fn wake(&mut self, of: InstanceRef) {
        let truth = self.truth.get_mut(&of).unwrap();
        assert!(truth.process.is_none() && !truth.born, "{of:?} runs twice");
        let placed = &self.script.story.desired.placed()[&of];
        assert!(
            placed.said.idle && placed.stop.is_none(),
            "it does not sleep"
        );
        truth.process = Some(Process::Starting);
        truth.clean = false;
        let seen = self.script.observed.get_mut(&of).unwrap();
        seen.life = Life::Alive(Control::Connecting);
    }

    /// As many sub-steps of it as that: who has something to do again goes on.
    fn fall_asleep(&mut self, of: InstanceRef, sub_steps: usize) -> usize {
        let truth = self.truth.get_mut(&of).unwrap();
        let seen = self.script.observed.get_mut(&of).unwrap();
        if truth.process != Some(Process::Idle) {
            seen.told_for = None;
            return 1;
        }
        truth.process = Some(Process::Draining);
        if sub_steps >= 2 {
            seen.drain = Drain::Done {
                finished: 0,
                cut: 0,
            };
        }
        2
    }

    fn step(&mut self, step: &Step) {
        self.script.now = self.script.now.plus(Duration::from_millis(700));
        match step {
            Step::Place => {
                let next = u32::try_from(self.truth.len()).unwrap() + 1;
                self.append(&Event::from(placement(of(1, next), 1)));
                self.truth.insert(of(1, next), Truth::default());
            }
            Step::StopOrder(which) if !self.truth.is_empty() => {
                let of = *which.get(&self.truth.keys().collect::<Vec<_>>());
                let drain_ms = 10;
                self.append(&Event::from(AppStopRequested { of: *of, drain_ms }));
            }
            Step::Ring(which) if !self.truth.is_empty() => {
                let of = **which.get(&self.truth.keys().collect::<Vec<_>>());
                // Nobody is held for who is not placed, or is about to end.
                let placed = self.script.story.desired.placed().get(&of);
                if placed.is_some_and(|placed| placed.stop.is_none()) {
                    self.truth.get_mut(&of).unwrap().wanted = true;
                }
            }
            Step::StopOrder(_) | Step::Ring(_) => {}
            Step::Turn { sub_steps, crash } => {
                self.turn(*sub_steps);
                if *crash {
                    self.crash();
                }
            }
            Step::Get(which, fate) if !self.truth.is_empty() => {
                let of = **which.get(&self.truth.keys().collect::<Vec<_>>());
                self.fate(of, *fate);
            }
            Step::Get(..) => {}
        }
    }

    /// Whether there was anything to do.
    fn turn(&mut self, mut sub_steps: usize) -> bool {
        self.hear();
        let Plan { actions, wake_in } = plan(
            &self.script.story.desired,
            &self.script.observed,
            self.script.now,
        );
        for action in &actions {
            if sub_steps == 0 {
                // The process ended here: what follows is a crash, even if it was not drawn.
                self.crash();
                return true;
            }
            let used = self.act(action, sub_steps);
            if used > sub_steps {
                self.crash();
                return true;
            }
            sub_steps -= used;
        }
        !actions.is_empty() || wake_in.is_some()
    }

    fn fate(&mut self, of: InstanceRef, fate: Fate) {
        let truth = self.truth.get_mut(&of).unwrap();
        let Some(process) = truth.process else {
            return;
        };
        match fate {
            Fate::Born => truth.born = true,
            Fate::Ready if process == Process::Starting => {
                truth.born = true;
                truth.process = Some(Process::Ready);
            }
            Fate::Idle if process == Process::Ready && !truth.wanted => {
                truth.process = Some(Process::Idle);
            }
            Fate::Broken if process == Process::Starting => {
                truth.born = true;
                truth.process = Some(Process::Broken);
            }
            Fate::Hang if process == Process::Starting => truth.process = Some(Process::Hung),
            Fate::Die => (truth.process, truth.clean) = (None, false),
            Fate::Ready | Fate::Idle | Fate::Broken | Fate::Hang => {}
        }
    }

    /// No more crashes; every runner that does not hang becomes ready.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.script.now = self.script.now.plus(Duration::from_secs(1));
            for of in self.truth.keys().copied().collect::<Vec<_>>() {
                self.fate(of, Fate::Ready);
            }
            if !self.turn(usize::MAX) {
                return self.check_rest();
            }
        }
        panic!("it never comes to rest");
    }

    fn check_rest(&self) {
        for (of, truth) in &self.truth {
            let placed = self.script.story.desired.placed().get(of);
            match truth.process {
                Some(process) => {
                    let placed = placed.expect("who runs is placed");
                    assert!(placed.said.healthy.is_some() && placed.stop.is_none());
                    assert!(!placed.said.idle, "{of:?} is awake, and nobody was told");
                    assert!(matches!(process, Process::Ready | Process::Draining));
                }
                None => {
                    let sleeps = placed.is_some_and(|placed| placed.said.idle);
                    assert!(
                        placed.is_none() || sleeps && !truth.wanted,
                        "{of:?} neither runs nor sleeps nor has ended"
                    );
                    assert!(!truth.directory, "{of:?} left its directory");
                }
            }
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        proptest::strategy::Just(Fate::Born),
        proptest::strategy::Just(Fate::Ready),
        proptest::strategy::Just(Fate::Idle),
        proptest::strategy::Just(Fate::Broken),
        proptest::strategy::Just(Fate::Hang),
        proptest::strategy::Just(Fate::Die),
    ];
    prop_oneof![
        1 => proptest::strategy::Just(Step::Place),
        1 => any::<Index>().prop_map(Step::StopOrder),
        6 => (0..6_usize, any::<bool>())
            .prop_map(|(sub_steps, crash)| Step::Turn { sub_steps, crash }),
        3 => (any::<Index>(), fate).prop_map(|(which, fate)| Step::Get(which, fate)),
        1 => any::<Index>().prop_map(Step::Ring),
    ]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(1_000))]

    #[test]
    fn nothing_runs_twice_and_everything_comes_to_rest(steps in vec(any_step(), 0..60)) {
        let mut world = World {
            script: Script::new(),
            log: Vec::new(),
            truth: BTreeMap::new(),
        };
        for step in &steps {
            world.step(step);
        }
        world.settle();
        // A process that was never reported may be replaced by one more; never after that.
        for (of, truth) in &world.truth {
            let crashes = u32::try_from(steps.len()).unwrap();
            assert!(truth.processes_ever <= crashes, "{of:?} {truth:?}");
        }
    }
}
