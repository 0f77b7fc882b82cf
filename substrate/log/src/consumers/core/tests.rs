//! The core against a model that keeps one record per event and searches it from the front.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::value::RawValue;
use tabbify_types::{EventId, Rev};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(8);
const ATTEMPTS: u32 = 3;
const RULES: Rules = Rules {
    ack_timeout: TIMEOUT,
    attempts_max: ATTEMPTS,
};

fn event(position: u64, key: u8) -> Arc<Recorded> {
    Arc::new(Recorded {
        position: Position(position),
        segment: "tenant_main.apps".parse().expect("a literal segment"),
        key: format!("k{key}"),
        rev: Rev(1),
        id: EventId::from_uuid(uuid::Uuid::nil()),
        kind: "thing_happened".to_owned(),
        version: 1,
        at: Timestamp::default(),
        actor: "test".to_owned(),
        cause: None,
        trace: None,
        data: RawValue::from_string("{}".to_owned()).expect("JSON"),
    })
}

fn member(n: u8) -> MemberName {
    format!("m{n}").parse().expect("a valid name")
}

fn at(seconds: u64) -> Now {
    Now {
        elapsed: Duration::from_secs(seconds),
        wall: Timestamp::from_secs(seconds),
    }
}

/// Members, the events each is given, and what is left, as text: `take(core, 0, 9, at(0))`.
fn take(core: &mut Core, who: u8, max: usize, now: Now) -> Vec<(u64, u32)> {
    let taken = core.take(&member(who), max, now).expect("it gives");
    taken
        .iter()
        .map(|delivered| (delivered.event.position.get(), delivered.attempt))
        .collect()
}

fn positions(numbers: &[u64]) -> Vec<Position> {
    numbers.iter().copied().map(Position).collect()
}

#[test]
fn members_share_by_key_and_keep_its_order() {
    let mut core = Core::new(RULES, Position(0));
    for (position, key) in [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2)] {
        core.feed(event(position, key));
    }
    assert_eq!(take(&mut core, 0, 2, at(0)), [(1, 1), (3, 1)]);
    assert_eq!(take(&mut core, 1, 9, at(0)), [(6, 1)]);
    assert_eq!(
        (core.floor(), core.in_flight(), core.waiting()),
        (Position(0), 3, 2)
    );
    assert_eq!(core.ack(&member(0), &positions(&[3]), at(1)), Ok(()));
    assert_eq!(take(&mut core, 1, 9, at(1)), [(5, 1)]);
    assert_eq!(core.ack(&member(0), &positions(&[1]), at(1)), Ok(()));
    assert_eq!(core.floor(), Position(1));
    assert_eq!(core.ack(&member(1), &positions(&[5, 6]), at(1)), Ok(()));
    assert_eq!(take(&mut core, 1, 9, at(1)), [(2, 1)]);
    assert_eq!(core.ack(&member(1), &positions(&[2]), at(1)), Ok(()));
    assert_eq!(
        (core.floor(), core.keys.len(), core.held_len),
        (Position(6), 0, 0)
    );
}

#[test]
fn what_was_not_given_cannot_be_acknowledged() {
    let mut core = Core::new(RULES, Position(0));
    for (position, key) in [(1, 0), (2, 1), (3, 2)] {
        core.feed(event(position, key));
    }
    assert_eq!(take(&mut core, 0, 2, at(0)).len(), 2);
    let acked = core.ack(&member(1), &positions(&[1]), at(0));
    assert_eq!(acked, Err(positions(&[1])), "of another member");
    let acked = core.ack(&member(0), &positions(&[2, 3, 4]), at(0));
    assert_eq!(acked, Err(positions(&[3, 4])), "waiting, and unknown");
    let acked = core.ack(&member(0), &positions(&[2, 1, 1]), at(0));
    assert_eq!(acked, Err(positions(&[2, 1])), "settled before");
    assert!(!core.nack(&member(0), Position(3), "", at(0)));
    assert_eq!((core.in_flight(), core.waiting()), (0, 1));
}

#[test]
fn a_late_acknowledgment_counts_as_failure() {
    let mut core = Core::new(RULES, Position(0));
    core.feed(event(1, 0));
    assert_eq!(take(&mut core, 0, 1, at(0)), [(1, 1)]);
    assert_eq!(core.wakes(), Some(TIMEOUT));
    assert_eq!(
        core.ack(&member(0), &positions(&[1]), at(8)),
        Err(positions(&[1]))
    );
    // One second, then two, then it is parked.
    assert_eq!(take(&mut core, 1, 1, at(8)), []);
    assert_eq!(take(&mut core, 1, 1, at(9)), [(1, 2)]);
    assert!(core.nack(&member(1), Position(1), "no such app", at(10)));
    assert_eq!(core.wakes(), Some(Duration::from_secs(12)));
    assert_eq!(take(&mut core, 1, 1, at(12)), [(1, 3)]);
    core.tick(at(20));
    let parked = &core.parked()[&Position(1)];
    assert_eq!(parked.reason, "not acknowledged within 8000 ms");
    assert_eq!((parked.attempts, parked.at), (3, Timestamp::from_secs(20)));
    assert_eq!((core.floor(), core.wakes()), (Position(1), None));
    // Retried in front of what came later, with all its attempts.
    core.feed(event(2, 0));
    assert!(core.retry(event(1, 0)));
    assert!(!core.retry(event(1, 0)));
    assert_eq!(core.floor(), Position(0));
    assert_eq!(take(&mut core, 1, 9, at(20)), [(1, 1)]);
    assert_eq!(core.ack(&member(1), &positions(&[1]), at(20)), Ok(()));
    assert_eq!(take(&mut core, 1, 9, at(20)), [(2, 1)]);
}

#[test]
fn limits() {
    let mut core = Core::new(RULES, Position(0));
    let mut position = 0;
    while core.has_room() {
        position += 1;
        core.feed(event(
            position,
            u8::try_from(position % 250).expect("small"),
        ));
    }
    assert_eq!(position, HELD_EVENTS_MAX as u64);
    // One event a key, and no more members than there may be until some have been silent.
    for n in 0..u8::try_from(MEMBERS_MAX).expect("small") {
        core.take(&member(n), 4, at(0)).expect("a place");
    }
    assert_eq!(core.in_flight(), 250);
    assert_eq!(
        core.take(&member(99), 1, at(1)).err(),
        Some(Refused::Members)
    );
    // Until their time has passed; what they held comes again after its pause.
    assert_eq!(take(&mut core, 99, 1, at(9)), []);
    assert_eq!(core.members(), 1);
    assert_eq!(take(&mut core, 99, 1, at(10)), [(1, 2)]);

    let mut core = Core::new(RULES, Position(0));
    let wide = |n: u64| {
        let mut event = (*event(n, 0)).clone();
        event.key = n.to_string();
        Arc::new(event)
    };
    (1..=2000).for_each(|n| core.feed(wide(n)));
    assert_eq!(take(&mut core, 0, usize::MAX, at(0)).len(), IN_FLIGHT_MAX);
    assert_eq!(take(&mut core, 1, usize::MAX, at(0)), []);
    assert_eq!(pause(1, TIMEOUT), PAUSE_FIRST);
    assert_eq!(pause(3, TIMEOUT), Duration::from_secs(4));
    assert_eq!(pause(4000, TIMEOUT), TIMEOUT);
    assert_eq!(shortened(&"é".repeat(400)).len(), REASON_LEN_MAX);
}

#[test]
fn too_many_parked_events_stop_the_consumer_loudly() {
    let once = Rules {
        attempts_max: 1,
        ..RULES
    };
    let mut core = Core::new(once, Position(0));
    let mut last = 0;
    while core.parked().len() < PARKED_MAX {
        last += 1;
        core.feed(event(last, 0));
        assert_eq!(take(&mut core, 0, 1, at(0)), [(last, 1)]);
        assert!(core.nack(&member(0), Position(last), "no", at(0)));
    }
    core.feed(event(last + 1, 0));
    let full = core.take(&member(0), 1, at(0)).err();
    assert_eq!(full, Some(Refused::ParkedFull(PARKED_MAX)));
    assert!(core.drop_parked(Position(7)));
    assert_eq!(take(&mut core, 0, 1, at(0)), [(last + 1, 1)]);
}

/// One event of the model.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Unseen,
    Waiting { due: u64 },
    Leased { member: u8, until: u64 },
    Settled,
    Parked,
}

/// The events by position − 1: key, fate, failures. All searching, no bookkeeping.
#[derive(Debug, Clone)]
struct Model(Vec<(u8, Fate, u32)>);

impl Model {
    fn fail(&mut self, index: usize, now: u64) {
        let (_, fate, failures) = &mut self.0[index];
        *failures += 1;
        *fate = if *failures >= ATTEMPTS {
            Fate::Parked
        } else {
            let due = now + pause(*failures, TIMEOUT).as_secs();
            Fate::Waiting { due }
        };
    }

    fn tick(&mut self, now: u64) {
        for index in 0..self.0.len() {
            if matches!(self.0[index].1, Fate::Leased { until, .. } if until <= now) {
                self.fail(index, now);
            }
        }
    }

    fn take(&mut self, member: u8, max: usize, now: u64) -> Vec<(u64, u32)> {
        let mut taken = Vec::new();
        let mut seen = BTreeSet::new();
        let leased = |(_, fate, _): &&(u8, Fate, u32)| matches!(fate, Fate::Leased { .. });
        let busy: BTreeSet<u8> = self.0.iter().filter(leased).map(|one| one.0).collect();
        for (index, (key, fate, failures)) in self.0.iter_mut().enumerate() {
            let Fate::Waiting { due } = *fate else {
                continue;
            };
            // Only the first of its key, only if none of its key is out.
            if seen.insert(*key) && !busy.contains(key) && due <= now && taken.len() < max {
                let until = now + TIMEOUT.as_secs();
                *fate = Fate::Leased { member, until };
                taken.push((index as u64 + 1, *failures + 1));
            }
        }
        taken
    }

    /// After a crash: what was leased waits, and pauses are over.
    fn reloaded(mut self) -> Self {
        for (_, fate, _) in &mut self.0 {
            if matches!(fate, Fate::Leased { .. } | Fate::Waiting { .. }) {
                *fate = Fate::Waiting { due: 0 };
            }
        }
        self
    }

    fn with(&self, wanted: impl Fn(&Fate) -> bool) -> Vec<u64> {
        let all = self.0.iter().enumerate();
        all.filter(|(_, (_, fate, _))| wanted(fate))
            .map(|(index, _)| index as u64 + 1)
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Feed(u8),
    Take { member: u8, max: usize },
    Ack { member: u8, which: Vec<u8> },
    Nack { member: u8, which: u8 },
    Wait(u64),
    Retry(u8),
    Drop(u8),
    Reset(u8),
    Save,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let which = || prop::collection::vec(any::<u8>(), 1..4);
    prop_oneof![
        4 => (1..6u8).prop_map(Op::Feed),
        6 => (0..3u8, 1..4usize).prop_map(|(member, max)| Op::Take { member, max }),
        5 => (0..3u8, which()).prop_map(|(member, which)| Op::Ack { member, which }),
        3 => (0..3u8, any::<u8>()).prop_map(|(member, which)| Op::Nack { member, which }),
        3 => (0..6u64).prop_map(Op::Wait),
        1 => any::<u8>().prop_map(Op::Retry),
        1 => any::<u8>().prop_map(Op::Drop),
        1 => any::<u8>().prop_map(Op::Reset),
        2 => Just(Op::Save),
        1 => Just(Op::Crash),
    ]
}

/// Core and model side by side.
struct Pair {
    core: Core,
    model: Model,
    log: Vec<Arc<Recorded>>,
    now: u64,
    saved: (Snapshot, Model),
}

impl Pair {
    fn new(keys: &[u8]) -> Self {
        let numbered = keys.iter().enumerate();
        let log = numbered.map(|(n, key)| event(n as u64 + 1, *key)).collect();
        let model = Model(keys.iter().map(|key| (*key, Fate::Unseen, 0)).collect());
        let core = Core::new(RULES, Position(0));
        let saved = (core.snapshot(), model.clone());
        Self {
            core,
            model,
            log,
            now: 0,
            saved,
        }
    }

    /// One of the events that some member was given, or any.
    fn pick(&self, which: u8) -> u64 {
        let leased = self.model.with(|fate| matches!(fate, Fate::Leased { .. }));
        let all = self.log.len() as u64;
        match leased.get(usize::from(which) % 4) {
            Some(position) => *position,
            None => 1 + u64::from(which) % all,
        }
    }

    fn feed(&mut self, count: u8) {
        for _ in 0..count {
            let index = usize::try_from(self.core.read().get()).expect("small");
            if let Some(event) = self.log.get(index) {
                self.core.feed(Arc::clone(event));
                self.model.0[index].1 = Fate::Waiting { due: 0 };
            }
        }
    }

    fn take(&mut self, who: u8, max: usize) -> Vec<(u64, u32)> {
        let taken = take(&mut self.core, who, max, at(self.now));
        self.model.tick(self.now);
        assert_eq!(taken, self.model.take(who, max, self.now));
        taken
    }

    fn ack(&mut self, who: u8, which: &[u64]) {
        let acked = self.core.ack(&member(who), &positions(which), at(self.now));
        self.model.tick(self.now);
        let mut others = Vec::new();
        for position in which {
            let fate = &mut self.model.0[usize::try_from(position - 1).expect("small")].1;
            match fate {
                Fate::Leased { member, .. } if *member == who => *fate = Fate::Settled,
                _ => others.push(Position(*position)),
            }
        }
        assert_eq!(acked.err().unwrap_or_default(), others);
    }

    fn nack(&mut self, who: u8, position: u64) {
        let index = usize::try_from(position - 1).expect("small");
        let nacked = self
            .core
            .nack(&member(who), Position(position), "no", at(self.now));
        self.model.tick(self.now);
        let was = matches!(self.model.0[index].1, Fate::Leased { member, .. } if member == who);
        assert_eq!(nacked, was);
        if was {
            self.model.fail(index, self.now);
        }
    }

    fn unpark(&mut self, which: u8, to: Fate) {
        let parked = self.model.with(|fate| *fate == Fate::Parked);
        let any = 1 + u64::from(which) % self.log.len() as u64;
        let position = parked.get(usize::from(which) % 3).copied().unwrap_or(any);
        let index = usize::try_from(position - 1).expect("small");
        let was = self.model.0[index].1 == Fate::Parked;
        let done = if to == Fate::Settled {
            self.core.drop_parked(Position(position))
        } else {
            self.core.retry(Arc::clone(&self.log[index]))
        };
        assert_eq!(done, was);
        if was {
            self.model.0[index] = (self.model.0[index].0, to, 0);
        }
    }

    fn reset(&mut self, which: u8) {
        let to = usize::from(which) % (self.log.len() + 1);
        self.core.reset(Position(to as u64));
        for (index, (_, fate, failures)) in self.model.0.iter_mut().enumerate() {
            if index >= to {
                (*fate, *failures) = (Fate::Unseen, 0);
            } else if *fate != Fate::Parked {
                *fate = Fate::Settled;
            }
        }
    }

    fn crash(&mut self) {
        let (snapshot, model) = self.saved.clone();
        let unsettled = snapshot.unsettled.iter();
        let index = |position: Position| usize::try_from(position.get() - 1).expect("small");
        let events = unsettled.map(|one| Arc::clone(&self.log[index(one.position)]));
        let events = events.collect();
        self.core = Core::restore(RULES, snapshot, events).expect("every event is there");
        self.model = model.reloaded();
        self.now = 0;
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Feed(count) => self.feed(count),
            Op::Take { member, max } => drop(self.take(member, max)),
            Op::Ack { member, which } => {
                let which: Vec<u64> = which.into_iter().map(|one| self.pick(one)).collect();
                self.ack(member, &which);
            }
            Op::Nack { member, which } => self.nack(member, self.pick(which)),
            Op::Wait(seconds) => self.now += seconds,
            Op::Retry(which) => self.unpark(which, Fate::Waiting { due: 0 }),
            Op::Drop(which) => self.unpark(which, Fate::Settled),
            Op::Reset(which) => self.reset(which),
            Op::Save => self.saved = (self.core.snapshot(), self.model.clone()),
            Op::Crash => self.crash(),
        }
        self.compare();
    }

    fn compare(&self) {
        let leased = self.model.with(|fate| matches!(fate, Fate::Leased { .. }));
        let waiting = self.model.with(|fate| matches!(fate, Fate::Waiting { .. }));
        assert_eq!(
            (self.core.in_flight(), self.core.waiting()),
            (leased.len(), waiting.len())
        );
        let parked = self.core.parked().keys().map(|position| position.get());
        let expected = self.model.with(|fate| *fate == Fate::Parked);
        assert_eq!(parked.collect::<Vec<_>>(), expected);
        let open = leased.into_iter().chain(waiting).min();
        let read = self.core.read().get();
        let floor = open.map_or(read, |first| first - 1);
        assert_eq!(self.core.floor(), Position(floor));
    }

    /// Whoever goes on to the end has had every event: each is settled or parked.
    fn finish(mut self) {
        let mut rounds = 0;
        loop {
            self.feed(4);
            let taken: Vec<u64> = self.take(0, 2).into_iter().map(|one| one.0).collect();
            self.ack(0, &taken);
            if taken.is_empty() {
                self.now += 1;
            }
            self.compare();
            let done = |fate: &Fate| matches!(fate, Fate::Settled | Fate::Parked);
            if self.model.with(done).len() == self.log.len() {
                break;
            }
            rounds += 1;
            assert!(
                rounds < 1000,
                "it does not come to an end: {:?}",
                self.model
            );
        }
        assert_eq!((self.core.keys.len(), self.core.wakes()), (0, None));
        assert!(self.core.ready.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn like_the_model(keys in prop::collection::vec(0..4u8, 1..24), ops in prop::collection::vec(op(), 0..80)) {
        let mut pair = Pair::new(&keys);
        for op in ops {
            pair.act(op);
        }
        pair.finish();
    }

    #[test]
    fn a_restored_consumer_has_all_its_events_or_says_which_is_missing(
        keys in prop::collection::vec(0..4u8, 1..12), gone: prop::sample::Index,
    ) {
        let mut pair = Pair::new(&keys);
        pair.feed(12);
        pair.now = 1;
        let gone = gone.index(keys.len());
        let mut events = pair.log.clone();
        events.remove(gone);
        let error = Core::restore(RULES, pair.core.snapshot(), events).err();
        prop_assert_eq!(error, Some(Position(gone as u64 + 1)));
    }
}
